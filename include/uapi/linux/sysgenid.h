/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * System generation counter: a number that changes whenever the machine or
 * container is cloned or rolled back to a snapshot.
 *
 * The calls on an open /dev/sysgenid or /dev/vmgenid; both nodes accept both
 * families of ioctl. read() returns the generation, a native-endian __u32,
 * once it differs from the one acknowledged last; write() acknowledges it;
 * poll() reports readable meanwhile; mmap() of the first page, read-only,
 * shows it live.
 */
#ifndef _UAPI_LINUX_SYSGENID_H
#define _UAPI_LINUX_SYSGENID_H

#include <linux/ioctl.h>

#define SYSGENID_IOCTL_TYPE	0xE4

/*
 * Where things are in the mapped page, in bytes from its start. Each is a
 * native-endian __u32, and both are stored at once, so a load of the first 8
 * bytes sees a generation with the flags that belong to it. What follows is 0.
 */
#define SYSGENID_PAGE_GENERATION_OFFSET	0
#define SYSGENID_PAGE_FLAGS_OFFSET	4

/* In the flags: this page will show the next change. Other bits are 0. */
#define SYSGENID_PAGE_LIVE		0x1

/*
 * In the flags: something on this machine notices restores by itself. Without
 * it the generation changes only when somebody asks for it.
 */
#define SYSGENID_PAGE_NOTICED		0x2

/*
 * Make the caller tracked (argument not 0) or not (0): whether it counts when
 * others wait for everyone. EBADF: the caller cannot write, hence could never
 * acknowledge.
 */
#define SYSGENID_SET_WATCHER_TRACKING	_IO(SYSGENID_IOCTL_TYPE, 1)

/*
 * Wait until no tracked watcher is outdated. The argument is a time-out in
 * milliseconds, 0 is for ever. ETIME: it ran out. EINTR: a signal handler ran,
 * or the caller itself is outdated.
 */
#define SYSGENID_WAIT_WATCHERS		_IO(SYSGENID_IOCTL_TYPE, 2)

/*
 * Move to a new generation of at least the argument. EINVAL: the argument
 * does not fit a __u32. EACCES: neither CAP_CHECKPOINT_RESTORE nor
 * CAP_SYS_ADMIN in the user namespace that owns the node.
 */
#define SYSGENID_TRIGGER_GEN_UPDATE	_IO(SYSGENID_IOCTL_TYPE, 3)

#endif /* _UAPI_LINUX_SYSGENID_H */
