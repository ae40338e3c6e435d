/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the benchmark asks of this module beside the calls of the contract.
 */
#ifndef _YARDSTICK_H
#define _YARDSTICK_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * Change the generation as a backend does, from within the kernel. The
 * argument says whose: 0 for that of the node, 1 for that of sysgenid.ko.
 */
#define YARDSTICK_BUMP_AS_BACKEND	_IO(0xE4, 0x80)

/*
 * The argument is a period in microseconds: from now on a timer of the calling
 * CPU fires that often, with interrupts off. With 0 it stops. Returns how late
 * it was at most since it was started, in microseconds.
 */
#define YARDSTICK_LATENESS		_IO(0xE4, 0x81)

long yardstick_lateness(unsigned long period_us);
void yardstick_stop_timer(void);

int yardstick_open_urandom(void);
void yardstick_close_urandom(void);
void yardstick_reseed(void);

#endif /* _YARDSTICK_H */
