// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plain C driver of the contract of a node, for the benchmark to hold the
 * Rust module against: one and the same program runs on both. It is as quick as
 * it can be made without being clever, and has nothing that the benchmark does
 * not call. Never to be shipped.
 *
 * There are two nodes, each with a generation of its own. /dev/yardstick
 * changes it and no more; /dev/yardstick-reseeding reseeds the kernel's random
 * number generator before, as the contract wants it when software asks.
 */

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/user_namespace.h>
#include <linux/wait.h>

#include "../../../include/uapi/linux/sysgenid.h"
#include "../../../include/uapi/linux/vmgenid.h"
#include "../../../kernel/sysgenid/sysgenid.h"
#include "yardstick.h"

/**
 * struct node - one generation, and who watches it
 * @misc: the device
 * @reseeds: whether a change that software asks for is preceded by a reseed
 * @lock: orders all changes to what follows
 * @generation: what programs see
 * @epoch: counts changes, and never wraps
 * @tracked: how many watchers are tracked
 * @outdated: how many of them have not acknowledged
 * @changed: where readers and pollers sleep
 * @settled: where those sleep who wait for all tracked watchers
 * @page: what programs map: generation, flags
 */
struct node {
	struct miscdevice misc;
	bool reseeds;
	spinlock_t lock;
	u32 generation;
	u64 epoch;
	unsigned int tracked;
	unsigned int outdated;
	wait_queue_head_t changed;
	wait_queue_head_t settled;
	u32 *page;
};

/**
 * struct watcher - an open file description
 * @node: what it watches
 * @acknowledged: the epoch that it acknowledged last
 * @read_epoch: that of its last read; 0 if it has acknowledged since
 * @read_generation: what that read returned
 * @tracked: whether it counts when others wait for everybody
 */
struct watcher {
	struct node *node;
	u64 acknowledged;
	u64 read_epoch;
	u32 read_generation;
	bool tracked;
};

/* Of sysgenid.ko, if that is loaded. */
static void (*bump_sysgenid)(void);

static bool is_outdated(const struct watcher *watcher)
{
	/* Pairs with the release in bump(): who sees the change sees the page. */
	return READ_ONCE(watcher->acknowledged) !=
	       smp_load_acquire(&watcher->node->epoch);
}

static int node_open(struct inode *inode, struct file *file)
{
	struct node *node = container_of(file->private_data, struct node, misc);
	struct watcher *watcher;

	watcher = kzalloc(sizeof(*watcher), GFP_KERNEL_ACCOUNT);
	if (!watcher)
		return -ENOMEM;
	watcher->node = node;

	spin_lock_irq(&node->lock);
	watcher->acknowledged = node->epoch;
	spin_unlock_irq(&node->lock);

	file->private_data = watcher;
	return nonseekable_open(inode, file);
}

/* Counts a watcher no longer. Says whether it was the last outdated one. */
static bool uncount(struct watcher *watcher)
{
	struct node *node = watcher->node;

	lockdep_assert_held(&node->lock);
	return watcher->acknowledged != node->epoch && !--node->outdated;
}

static bool stop_tracking(struct watcher *watcher)
{
	struct node *node = watcher->node;
	bool settled = false;

	spin_lock_irq(&node->lock);
	if (watcher->tracked) {
		watcher->tracked = false;
		node->tracked--;
		settled = uncount(watcher);
	}
	spin_unlock_irq(&node->lock);

	return settled;
}

static int node_release(struct inode *inode, struct file *file)
{
	struct watcher *watcher = file->private_data;

	if (stop_tracking(watcher))
		wake_up_interruptible(&watcher->node->settled);
	kfree(watcher);
	return 0;
}

static ssize_t node_read(struct file *file, char __user *to, size_t length,
			 loff_t *position)
{
	struct watcher *watcher = file->private_data;
	struct node *node = watcher->node;
	u32 generation;
	int ret;

	if (!length)
		return 0;
	if (length < sizeof(generation))
		return -EINVAL;

	if (!is_outdated(watcher)) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		ret = wait_event_interruptible(node->changed,
					       is_outdated(watcher));
		if (ret)
			return ret;
	}

	spin_lock_irq(&node->lock);
	generation = node->generation;
	watcher->read_epoch = node->epoch;
	watcher->read_generation = generation;
	spin_unlock_irq(&node->lock);

	if (copy_to_user(to, &generation, sizeof(generation)))
		return -EFAULT;
	return sizeof(generation);
}

/* Whether what was read last is this very generation, but of a change before. */
static bool is_stale(const struct watcher *watcher)
{
	const struct node *node = watcher->node;

	return watcher->read_epoch && watcher->read_epoch != node->epoch &&
	       watcher->read_generation == node->generation;
}

static ssize_t node_write(struct file *file, const char __user *from,
			  size_t length, loff_t *position)
{
	struct watcher *watcher = file->private_data;
	struct node *node = watcher->node;
	bool settled = false, valid = false;
	u32 generation;

	if (length != sizeof(generation))
		return -EINVAL;
	if (copy_from_user(&generation, from, sizeof(generation)))
		return -EFAULT;

	spin_lock_irq(&node->lock);
	if (generation == node->generation) {
		valid = !is_stale(watcher);
		watcher->read_epoch = 0;
	}
	if (valid) {
		if (watcher->tracked)
			settled = uncount(watcher);
		WRITE_ONCE(watcher->acknowledged, node->epoch);
	}
	spin_unlock_irq(&node->lock);

	if (settled)
		wake_up_interruptible(&node->settled);
	return valid ? sizeof(generation) : -EINVAL;
}

static __poll_t node_poll(struct file *file, poll_table *table)
{
	struct watcher *watcher = file->private_data;
	__poll_t events = EPOLLOUT | EPOLLWRNORM;

	poll_wait(file, &watcher->node->changed, table);
	if (is_outdated(watcher))
		events |= EPOLLIN | EPOLLRDNORM;
	return events;
}

static int node_mmap(struct file *file, struct vm_area_struct *area)
{
	struct watcher *watcher = file->private_data;

	if (area->vm_pgoff || vma_pages(area) != 1)
		return -EINVAL;
	if (area->vm_flags & (VM_WRITE | VM_EXEC))
		return -EPERM;

	vm_flags_mod(area, VM_DONTEXPAND | VM_DONTDUMP,
		     VM_MAYWRITE | VM_MAYEXEC);
	return vm_insert_page(area, area->vm_start,
			      virt_to_page(watcher->node->page));
}

/* In any context in which spin locks may be taken. */
static void bump(struct node *node, u32 minimum)
{
	unsigned long flags;

	spin_lock_irqsave(&node->lock, flags);
	node->generation++;
	if (!node->generation)
		node->generation = 1;
	if (node->generation < minimum)
		node->generation = minimum;
	node->outdated = node->tracked;
	WRITE_ONCE(*node->page, node->generation);
	smp_store_release(&node->epoch, node->epoch + 1);
	spin_unlock_irqrestore(&node->lock, flags);

	wake_up_interruptible_poll(&node->changed, EPOLLIN | EPOLLRDNORM);
	wake_up_interruptible(&node->settled);
}

static long trigger(struct node *node, unsigned long minimum)
{
	if (!checkpoint_restore_ns_capable(&init_user_ns))
		return -EACCES;
	if (minimum > U32_MAX)
		return -EINVAL;
	if (node->reseeds)
		yardstick_reseed();
	bump(node, minimum);
	return 0;
}

static long start_tracking(struct watcher *watcher, fmode_t mode)
{
	struct node *node = watcher->node;

	if (!(mode & FMODE_WRITE))
		return -EBADF;
	spin_lock_irq(&node->lock);
	if (!watcher->tracked) {
		watcher->tracked = true;
		node->tracked++;
		if (watcher->acknowledged != node->epoch)
			node->outdated++;
	}
	spin_unlock_irq(&node->lock);
	return 0;
}

static long wait_for_everybody(struct watcher *watcher, unsigned long timeout)
{
	struct node *node = watcher->node;
	ktime_t limit = KTIME_MAX;
	long ret;

	if (timeout && timeout < KTIME_MAX / NSEC_PER_MSEC)
		limit = ms_to_ktime(timeout);
	ret = wait_event_interruptible_hrtimeout(node->settled,
						 is_outdated(watcher) ||
						 !READ_ONCE(node->outdated),
						 limit);
	if (ret)
		return ret;
	return is_outdated(watcher) ? -EINTR : 0;
}

static long bump_as_backend(struct node *node, unsigned long whose)
{
	if (!whose)
		bump(node, 0);
	else if (bump_sysgenid)
		bump_sysgenid();
	else
		return -ENODEV;
	return 0;
}

static long node_ioctl(struct file *file, unsigned int command,
		       unsigned long argument)
{
	struct watcher *watcher = file->private_data;
	struct node *node = watcher->node;

	switch (command) {
	case VMGENID_GET_OUTDATED_WATCHERS:
		return READ_ONCE(node->outdated);
	case VMGENID_WAIT_WATCHERS:
	case SYSGENID_WAIT_WATCHERS:
		return wait_for_everybody(watcher, argument);
	case VMGENID_FORCE_GEN_UPDATE:
		return trigger(node, 0);
	case SYSGENID_TRIGGER_GEN_UPDATE:
		return trigger(node, argument);
	case SYSGENID_SET_WATCHER_TRACKING:
		if (argument)
			return start_tracking(watcher, file->f_mode);
		if (stop_tracking(watcher))
			wake_up_interruptible(&node->settled);
		return 0;
	case YARDSTICK_BUMP_AS_BACKEND:
		return bump_as_backend(node, argument);
	case YARDSTICK_LATENESS:
		return yardstick_lateness(argument);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations node_operations = {
	.owner = THIS_MODULE,
	.open = node_open,
	.release = node_release,
	.read = node_read,
	.write = node_write,
	.poll = node_poll,
	.mmap = node_mmap,
	.unlocked_ioctl = node_ioctl,
};

static struct node nodes[] = {
	{ .misc.name = "yardstick" },
	{ .misc.name = "yardstick-reseeding", .reseeds = true },
};

static int start(struct node *node)
{
	int ret;

	node->page = (u32 *)get_zeroed_page(GFP_KERNEL);
	if (!node->page)
		return -ENOMEM;
	node->page[1] = SYSGENID_PAGE_LIVE;
	spin_lock_init(&node->lock);
	init_waitqueue_head(&node->changed);
	init_waitqueue_head(&node->settled);
	node->misc.minor = MISC_DYNAMIC_MINOR;
	node->misc.mode = 0600;
	node->misc.fops = &node_operations;
	ret = misc_register(&node->misc);
	if (ret)
		free_page((unsigned long)node->page);
	return ret;
}

static void stop(struct node *node)
{
	misc_deregister(&node->misc);
	free_page((unsigned long)node->page);
}

static int __init yardstick_init(void)
{
	int ret;

	ret = yardstick_open_urandom();
	if (ret)
		return ret;
	ret = start(&nodes[0]);
	if (ret)
		goto close;
	ret = start(&nodes[1]);
	if (ret)
		goto stop;
	bump_sysgenid = symbol_get(sysgenid_bump_generation);
	return 0;
stop:
	stop(&nodes[0]);
close:
	yardstick_close_urandom();
	return ret;
}
module_init(yardstick_init);

static void __exit yardstick_exit(void)
{
	if (bump_sysgenid)
		symbol_put(sysgenid_bump_generation);
	stop(&nodes[1]);
	stop(&nodes[0]);
	yardstick_stop_timer();
	yardstick_close_urandom();
}
module_exit(yardstick_exit);

MODULE_DESCRIPTION("A plain driver of the contract of a node, to measure by");
MODULE_LICENSE("GPL");
