/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the sysgenid module offers to other modules.
 */
#ifndef _SYSGENID_H
#define _SYSGENID_H

void sysgenid_bump_generation(void);
void sysgenid_reseed(void);
void sysgenid_register_backend(void);
void sysgenid_unregister_backend(void);

#endif /* _SYSGENID_H */
