// SPDX-License-Identifier: GPL-2.0-only
/*
 * How long interrupts are held off on a CPU: a timer that fires in one says how
 * late it was.
 */

#include <linux/atomic.h>
#include <linux/hrtimer.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/preempt.h>

#include "yardstick.h"

static struct hrtimer timer;
static bool started;
static ktime_t period;
static s64 most_late;

static enum hrtimer_restart fired(struct hrtimer *timer)
{
	s64 late = ktime_sub(ktime_get(), hrtimer_get_expires(timer));

	WRITE_ONCE(most_late, max(most_late, late));
	hrtimer_forward_now(timer, period);
	return HRTIMER_RESTART;
}

/**
 * yardstick_lateness() - Start or stop the timer
 * @period_us: its period in microseconds; 0 to stop it
 *
 * The caller sees to it that there is one of him at a time, and stays on the
 * CPU that he asks about.
 *
 * Return: how late it was at most since it was started, in microseconds.
 */
long yardstick_lateness(unsigned long period_us)
{
	long late;

	yardstick_stop_timer();
	late = ktime_to_us(READ_ONCE(most_late));
	most_late = 0;
	if (period_us) {
		period = us_to_ktime(period_us);
		hrtimer_setup(&timer, fired, CLOCK_MONOTONIC,
			      HRTIMER_MODE_REL_PINNED_HARD);
		started = true;
		hrtimer_start(&timer, period, HRTIMER_MODE_REL_PINNED_HARD);
	}
	return late;
}

/**
 * yardstick_stop_timer() - Stop the timer, if it runs
 */
void yardstick_stop_timer(void)
{
	if (started)
		hrtimer_cancel(&timer);
	started = false;
}
