/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SYSGENID_CONTEXT_H
#define _SYSGENID_CONTEXT_H

#include <linux/types.h>

bool sysgenid_in_hardirq(void);

#endif /* _SYSGENID_CONTEXT_H */
