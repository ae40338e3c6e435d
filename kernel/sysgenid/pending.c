// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whether a signal that is pending will be one to the program. The sets of
 * signals are macros and inline functions, hence C.
 */

#include <linux/sched/signal.h>
#include <linux/signal.h>
#include <linux/spinlock.h>

#include "pending.h"

/**
 * sysgenid_handler_is_pending() - Look for a pending signal with a handler
 *
 * What makes signal_pending() true need not be a signal that the program has
 * a handler for: a stop, a freeze and a tracer do as well.
 *
 * Context: Process context.
 * Return: Whether a signal is pending for the current task that is not blocked
 *	   and has a handler.
 */
bool sysgenid_handler_is_pending(void)
{
	struct sighand_struct *sighand = current->sighand;
	bool pending = false;
	sigset_t signals;
	int sig;

	spin_lock_irq(&sighand->siglock);
	sigorsets(&signals, &current->pending.signal,
		  &current->signal->shared_pending.signal);
	sigandnsets(&signals, &signals, &current->blocked);
	for (sig = 1; sig <= _NSIG && !pending; sig++) {
		__sighandler_t handler = sighand->action[sig - 1].sa.sa_handler;

		pending = sigismember(&signals, sig) && handler != SIG_DFL &&
			  handler != SIG_IGN;
	}
	spin_unlock_irq(&sighand->siglock);

	return pending;
}
