/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * System generation counter: the ioctls of the 2020 proposal. See
 * <linux/sysgenid.h> for the rest, and for the layout of the mapped page; both
 * nodes accept both families and show the same page.
 */
#ifndef _UAPI_LINUX_VMGENID_H
#define _UAPI_LINUX_VMGENID_H

#include <linux/ioctl.h>

#define VMGENID_IOCTL_TYPE	0x2d

/* Return the number of tracked watchers that are outdated. */
#define VMGENID_GET_OUTDATED_WATCHERS	_IO(VMGENID_IOCTL_TYPE, 1)

/* The same as SYSGENID_WAIT_WATCHERS. */
#define VMGENID_WAIT_WATCHERS		_IO(VMGENID_IOCTL_TYPE, 2)

/*
 * Move to the next generation. The argument is ignored. EACCES as for
 * SYSGENID_TRIGGER_GEN_UPDATE.
 */
#define VMGENID_FORCE_GEN_UPDATE	_IO(VMGENID_IOCTL_TYPE, 3)

#endif /* _UAPI_LINUX_VMGENID_H */
