/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A thread that does nothing but wait for changes, beside one that serves: each line on standard input is answered
 * by a token, until it ends.
 *
 *     watchdog_thread [NODE]
 */
#define _POSIX_C_SOURCE 200809L
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <unistd.h>
#include <linux/sysgenid.h>

static const char *path = "/dev/sysgenid";
static int node;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t key;

static void rebuild_key(void)
{
	pthread_mutex_lock(&lock);
	/* Not getrandom(), which in newer C libraries has a generator in this process: that is in the snapshot as well. */
	if (getentropy(&key, sizeof(key)))
		err(1, "getentropy");
	pthread_mutex_unlock(&lock);
}

static void *watch(void *unused)
{
	uint32_t generation;

	for (;;) {
		/* Sleeps until a change. */
		if (read(node, &generation, sizeof(generation)) != sizeof(generation)) {
			if (errno == EINTR)
				continue;
			err(1, "read %s", path);
		}
		rebuild_key();
		printf("generation %" PRIu32 ": rebuilt\n", generation);
		/* EINVAL: it has changed again. The next read returns at once. */
		if (write(node, &generation, sizeof(generation)) < 0 && errno != EINVAL)
			err(1, "acknowledge to %s", path);
	}
	return unused;
}

int main(int argc, char **argv)
{
	char line[256];
	pthread_t thread;
	int error;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1)
		path = argv[1];
	node = open(path, O_RDWR | O_CLOEXEC);
	if (node < 0)
		err(1, "open %s", path);
	/* Others shall wait for us. */
	if (ioctl(node, SYSGENID_SET_WATCHER_TRACKING, 1UL) < 0)
		err(1, "be tracked by %s", path);

	/* The node was opened before, so no change can be missed. */
	rebuild_key();
	error = pthread_create(&thread, NULL, watch, NULL);
	if (error)
		errx(1, "cannot start a thread: error %d", error);
	puts("ready");

	while (fgets(line, sizeof(line), stdin)) {
		pthread_mutex_lock(&lock);
		printf("token %016" PRIx64 "\n", key);
		pthread_mutex_unlock(&lock);
	}
	return 0;
}
