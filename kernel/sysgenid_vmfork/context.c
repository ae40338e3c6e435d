// SPDX-License-Identifier: GPL-2.0-only
/*
 * In which context a notifier is called: a macro, hence C.
 */

#include <linux/preempt.h>

#include "context.h"

bool sysgenid_in_hardirq(void)
{
	return in_hardirq();
}
