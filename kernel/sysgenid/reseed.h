/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SYSGENID_RESEED_H
#define _SYSGENID_RESEED_H

struct file;

struct file *sysgenid_open_urandom(void);
int sysgenid_reseed_by(struct file *urandom);

#endif /* _SYSGENID_RESEED_H */
