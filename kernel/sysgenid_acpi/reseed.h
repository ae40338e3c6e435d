/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SYSGENID_RESEED_H
#define _SYSGENID_RESEED_H

int sysgenid_reseed(void);

#endif /* _SYSGENID_RESEED_H */
