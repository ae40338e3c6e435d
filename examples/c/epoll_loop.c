/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A program with an event loop has the node beside its other descriptors: here standard input, each line of which is
 * answered by a token, until it ends.
 *
 *     epoll_loop [NODE]
 */
#define _POSIX_C_SOURCE 200809L
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <unistd.h>
#include <linux/sysgenid.h>

static const char *path = "/dev/sysgenid";
static uint64_t key;

static void rebuild_key(void)
{
	/* Not getrandom(), which in newer C libraries has a generator in this process: that is in the snapshot as well. */
	if (getentropy(&key, sizeof(key)))
		err(1, "getentropy");
}

static void add(int epoll, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		err(1, "epoll_ctl");
}

static void deal_with_change(int node)
{
	uint32_t generation;

	if (read(node, &generation, sizeof(generation)) != sizeof(generation)) {
		/* EAGAIN: there is none. */
		if (errno == EAGAIN || errno == EINTR)
			return;
		err(1, "read %s", path);
	}
	rebuild_key();
	printf("generation %" PRIu32 ": rebuilt\n", generation);
	/* EINVAL: it has changed again, which the loop will be told. */
	if (write(node, &generation, sizeof(generation)) < 0 && errno != EINVAL)
		err(1, "acknowledge to %s", path);
}

int main(int argc, char **argv)
{
	struct epoll_event event;
	char line[256];
	int epoll, node;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1)
		path = argv[1];
	node = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (node < 0)
		err(1, "open %s", path);
	/* Others shall wait for us. */
	if (ioctl(node, SYSGENID_SET_WATCHER_TRACKING, 1UL) < 0)
		err(1, "be tracked by %s", path);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		err(1, "epoll_create1");
	add(epoll, node);
	add(epoll, STDIN_FILENO);

	/* The node was opened before, so no change can be missed. */
	rebuild_key();
	puts("ready");

	for (;;) {
		if (epoll_wait(epoll, &event, 1, -1) < 0) {
			if (errno == EINTR)
				continue;
			err(1, "epoll_wait");
		}
		if (event.data.fd == node) {
			deal_with_change(node);
		} else {
			if (read(STDIN_FILENO, line, sizeof(line)) <= 0)
				return 0;
			/* Events are not reported in the order in which they came about. */
			deal_with_change(node);
			printf("token %016" PRIx64 "\n", key);
		}
	}
}
