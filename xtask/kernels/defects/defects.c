// SPDX-License-Identifier: GPL-2.0-only
/*
 * Defects to be found, of each kind that a kernel which looks for bugs is
 * trusted to find. Loading this with a kind makes it happen once. For guests in
 * tests only.
 */

#include <linux/bug.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>

static char *kind = "";
module_param(kind, charp, 0444);
MODULE_PARM_DESC(kind, "Which defect");

static DEFINE_SPINLOCK(first);
static DEFINE_SPINLOCK(second);
static DEFINE_RAW_SPINLOCK(raw);

static void lock_in_both_orders(void)
{
	spin_lock(&first);
	spin_lock(&second);
	spin_unlock(&second);
	spin_unlock(&first);

	spin_lock(&second);
	spin_lock(&first);
	spin_unlock(&first);
	spin_unlock(&second);
}

/* Two locks of one class: this does not wait for ever, but it might. */
static void lock_twice(void)
{
	static spinlock_t locks[2];
	int i;

	for (i = 0; i < 2; i++)
		spin_lock_init(&locks[i]);
	spin_lock(&locks[0]);
	spin_lock(&locks[1]);
	spin_unlock(&locks[1]);
	spin_unlock(&locks[0]);
}

static void lock_with_and_without_interrupts(void)
{
	unsigned long flags;

	/* In an interrupt, as lockdep sees it. */
	local_irq_save(flags);
	lockdep_hardirq_enter();
	raw_spin_lock(&raw);
	raw_spin_unlock(&raw);
	lockdep_hardirq_exit();
	local_irq_restore(flags);

	raw_spin_lock(&raw);
	raw_spin_unlock(&raw);
}

static void sleep_in_atomic(void)
{
	raw_spin_lock(&raw);
	might_sleep();
	raw_spin_unlock(&raw);
}

static void schedule_in_atomic(void)
{
	preempt_disable();
	schedule_timeout_uninterruptible(1);
	preempt_enable();
}

/* Where spin locks may sleep, this sleeps where it may not. */
static void take_lock_that_may_sleep(void)
{
	raw_spin_lock(&raw);
	spin_lock(&first);
	spin_unlock(&first);
	raw_spin_unlock(&raw);
}

static void look_without_rcu(void)
{
	static int __rcu *pointer;

	WRITE_ONCE(kind, rcu_dereference(pointer) ? "" : kind);
}

static void use_after_free(void)
{
	char *bytes = kmalloc(64, GFP_KERNEL);

	kfree(bytes);
	OPTIMIZER_HIDE_VAR(bytes);
	WRITE_ONCE(bytes[8], 1);
}

static void forget(void)
{
	void *bytes;
	int i;

	/*
	 * Many: what the allocator keeps at hand for each processor still
	 * points to the last ones, which hides them.
	 */
	for (i = 0; i < 4096; i++) {
		bytes = kmalloc(64, GFP_KERNEL);
		OPTIMIZER_HIDE_VAR(bytes);
	}
}

static void delete_from_corrupt_list(void)
{
	LIST_HEAD(head);
	struct list_head entry;

	list_add(&entry, &head);
	head.next = &head;
	list_del(&entry);
}

static void add_to_corrupt_list(void)
{
	LIST_HEAD(head);
	struct list_head entry;

	head.next = &entry;
	INIT_LIST_HEAD(&entry);
	list_add(&entry, &head);
}

struct timed {
	struct timer_list timer;
};

static void nothing(struct timer_list *timer)
{
}

static void free_running_timer(void)
{
	struct timed *timed = kzalloc(sizeof(*timed), GFP_KERNEL);

	timer_setup(&timed->timer, nothing, 0);
	mod_timer(&timed->timer, jiffies + 10 * HZ);
	kfree(timed);
}

static void count_too_few(void)
{
	refcount_t count = REFCOUNT_INIT(0);

	refcount_inc(&count);
}

static int racing;

static int race(void *finished)
{
	int i;

	for (i = 0; i < 1000000; i++) {
		racing++;
		barrier();
	}
	complete(finished);
	return 0;
}

static void race_in_two_threads(void)
{
	static DECLARE_COMPLETION(finished);

	kthread_run(race, &finished, "race-1");
	kthread_run(race, &finished, "race-2");
	wait_for_completion(&finished);
	wait_for_completion(&finished);
}

static int hang(void *unused)
{
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule();
	return 0;
}

static void hang_for_ever(void)
{
	kthread_run(hang, NULL, "hang");
}

static const struct {
	const char *kind;
	void (*happen)(void);
} defects[] = {
	{ "order", lock_in_both_orders },
	{ "twice", lock_twice },
	{ "interrupt", lock_with_and_without_interrupts },
	{ "sleep", sleep_in_atomic },
	{ "schedule", schedule_in_atomic },
	{ "context", take_lock_that_may_sleep },
	{ "rcu", look_without_rcu },
	{ "free", use_after_free },
	{ "leak", forget },
	{ "list-del", delete_from_corrupt_list },
	{ "list-add", add_to_corrupt_list },
	{ "timer", free_running_timer },
	{ "refcount", count_too_few },
	{ "race", race_in_two_threads },
	{ "hang", hang_for_ever },
};

static int __init defects_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(defects); i++) {
		if (!strcmp(kind, defects[i].kind)) {
			defects[i].happen();
			/* It stays: threads may be running in it. */
			return 0;
		}
	}
	return -EINVAL;
}
module_init(defects_init);

MODULE_DESCRIPTION("Defects that a kernel which looks for bugs must find");
MODULE_LICENSE("GPL");
