/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A service that must not be seen before everybody is done: at each change it pauses, acknowledges, waits for all
 * others and resumes, until it is killed.
 *
 *     orchestrator [NODE]
 *
 * With a minimum, whoever has restored a container: it makes the change itself, to that generation at least (one
 * more than the snapshot was taken at), waits for all others, and ends. It needs CAP_CHECKPOINT_RESTORE.
 *
 *     orchestrator NODE MINIMUM
 */
#define _POSIX_C_SOURCE 200809L
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <linux/sysgenid.h>
#include <linux/vmgenid.h>

#define PATIENCE_MS 30000UL

static const char *path = "/dev/sysgenid";
static int node;

/* Acknowledges what there is to acknowledge, having paused for it. */
static void pause_for_changes(void)
{
	uint32_t generation;

	/* EAGAIN: we are current. */
	while (read(node, &generation, sizeof(generation)) == sizeof(generation)) {
		printf("generation %" PRIu32 ": paused\n", generation);
		/* EINVAL: it has changed again. */
		if (write(node, &generation, sizeof(generation)) < 0 && errno != EINVAL)
			err(1, "acknowledge to %s", path);
	}
	if (errno != EAGAIN && errno != EINTR)
		err(1, "read %s", path);
}

/* Whether all others have acknowledged. */
static int wait_for_others(void)
{
	for (;;) {
		/* Whoever waits for others must not be outdated. */
		pause_for_changes();
		if (ioctl(node, SYSGENID_WAIT_WATCHERS, PATIENCE_MS) == 0)
			return 1;
		if (errno == ETIME)
			return 0;
		/* EINTR: a signal, or another change. */
		if (errno != EINTR)
			err(1, "wait for the watchers of %s", path);
	}
}

static void follow(void)
{
	struct pollfd change = { .fd = node, .events = POLLIN };

	/* Others shall wait for us as well. */
	if (ioctl(node, SYSGENID_SET_WATCHER_TRACKING, 1UL) < 0)
		err(1, "be tracked by %s", path);
	puts("ready");
	for (;;) {
		if (poll(&change, 1, -1) < 0) {
			if (errno == EINTR)
				continue;
			err(1, "poll %s", path);
		}
		while (!wait_for_others())
			printf("late: %d\n", ioctl(node, VMGENID_GET_OUTDATED_WATCHERS));
		puts("resumed");
	}
}

static int change(const char *minimum)
{
	char *end;
	unsigned long at_least = strtoul(minimum, &end, 10);

	if (*minimum == '\0' || *end != '\0')
		errx(2, "the minimum is a number, not %s", minimum);
	if (ioctl(node, SYSGENID_TRIGGER_GEN_UPDATE, at_least) < 0)
		err(1, "change the generation of %s", path);
	if (!wait_for_others()) {
		printf("late: %d\n", ioctl(node, VMGENID_GET_OUTDATED_WATCHERS));
		return 1;
	}
	puts("settled");
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1)
		path = argv[1];
	node = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (node < 0)
		err(1, "open %s", path);
	if (argc > 2)
		return change(argv[2]);
	follow();
}
