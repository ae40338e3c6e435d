// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reseeding the kernel's random number generator, by the one way that modules
 * have: the ioctl of /dev/urandom.
 */

#include <linux/cred.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/random.h>

#include "yardstick.h"

static struct file *urandom;

int yardstick_open_urandom(void)
{
	urandom = filp_open("/dev/urandom", O_RDONLY | O_NONBLOCK, 0);
	return PTR_ERR_OR_ZERO(urandom);
}

void yardstick_close_urandom(void)
{
	filp_close(urandom, NULL);
}

void yardstick_reseed(void)
{
	ktime_t times[] = { ktime_get_real(), ktime_get_boottime() };

	add_device_randomness(times, sizeof(times));
	scoped_with_kernel_creds()
		urandom->f_op->unlocked_ioctl(urandom, RNDRESEEDCRNG, 0);
}
