// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reseeding the kernel's random number generator.
 *
 * add_vmfork_randomness(), which does it for the kernel's own driver, is not
 * there for modules. The one other way is the ioctl of /dev/urandom. The file
 * is opened early and kept: where a restore has to be told of, no path is
 * walked, and nothing in user space that judges opens is asked. (So the file
 * system of /dev is in use for as long as this is loaded.)
 *
 * This is C for the sake of scoped_with_init_fs() and
 * scoped_with_kernel_creds(), which are macros.
 */

#include <linux/cred.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/kdev_t.h>
#include <linux/major.h>
#include <linux/random.h>

#include "reseed.h"

#define URANDOM_MINOR	9

/**
 * sysgenid_open_urandom() - Open /dev/urandom as the first process sees it
 *
 * Context: Process context. May sleep, also until user space lets it.
 * Return: The file, or as an error pointer -ENODEV if it is not what it should
 *	   be, or the error of opening it.
 */
struct file *sysgenid_open_urandom(void)
{
	struct file *urandom;

	scoped_with_kernel_creds() {
		scoped_with_init_fs()
			urandom = filp_open("/dev/urandom",
					    O_RDONLY | O_NONBLOCK, 0);
	}
	if (IS_ERR(urandom))
		return urandom;

	if (!S_ISCHR(file_inode(urandom)->i_mode) ||
	    file_inode(urandom)->i_rdev != MKDEV(MEM_MAJOR, URANDOM_MINOR)) {
		filp_close(urandom, NULL);
		return ERR_PTR(-ENODEV);
	}

	return urandom;
}

/**
 * sysgenid_reseed_by() - Bring into effect what was mixed into the entropy pool
 * @urandom: What sysgenid_open_urandom() returned
 *
 * Context: Process context. Waits for nobody.
 * Return: 0; also for a generator that was never seeded, for what was mixed in
 *	   is part of its seed to come. Else the error of the ioctl.
 */
int sysgenid_reseed_by(struct file *urandom)
{
	long ret;

	scoped_with_kernel_creds()
		ret = urandom->f_op->unlocked_ioctl(urandom, RNDRESEEDCRNG, 0);

	return ret == -ENODATA ? 0 : ret;
}
