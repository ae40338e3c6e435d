/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SYSGENID_PENDING_H
#define _SYSGENID_PENDING_H

#include <linux/types.h>

bool sysgenid_handler_is_pending(void);

#endif /* _SYSGENID_PENDING_H */
