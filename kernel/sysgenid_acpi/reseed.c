// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reseeding the kernel's random number generator.
 *
 * add_vmfork_randomness(), which does it for the kernel's own driver, is not
 * there for other modules. The one other way is the ioctl of /dev/urandom.
 * This is C for the sake of scoped_with_init_fs(), a macro.
 */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/kdev_t.h>
#include <linux/major.h>
#include <linux/random.h>

#include "reseed.h"

#define URANDOM_MINOR	9

/* Kernel threads have had a root of their own, an empty one, since Linux 7.3. */
#ifndef scoped_with_init_fs
#define scoped_with_init_fs()
#endif

/**
 * sysgenid_reseed() - Bring into effect what was mixed into the entropy pool
 *
 * Context: Process context, of a kernel thread or another task with
 *	    CAP_SYS_ADMIN. May sleep.
 * Return: 0; also for a generator that was never seeded, for what was mixed in
 *	   is part of its seed to come. -ENODEV if /dev/urandom is not what it
 *	   should be, or the error of opening it.
 */
int sysgenid_reseed(void)
{
	struct file *urandom;
	long ret = -ENODEV;

	scoped_with_init_fs()
		urandom = filp_open("/dev/urandom", O_RDONLY | O_NONBLOCK, 0);
	if (IS_ERR(urandom))
		return PTR_ERR(urandom);

	if (S_ISCHR(file_inode(urandom)->i_mode) &&
	    file_inode(urandom)->i_rdev == MKDEV(MEM_MAJOR, URANDOM_MINOR))
		ret = urandom->f_op->unlocked_ioctl(urandom, RNDRESEEDCRNG, 0);
	filp_close(urandom, NULL);

	return ret == -ENODATA ? 0 : ret;
}
