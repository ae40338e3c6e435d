/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A tracked watcher, a probe, and another thread that shares the watcher, on a node whose server ends and comes back.
 * It says how far it is, for whoever ends the server.
 */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include "check.h"

static struct sysgenid_watcher *watcher;

static void *sleep_in_another_thread(void *unused)
{
	uint32_t generation;

	(void)unused;
	CHECK(sysgenid_watcher_wait(watcher, -1, &generation) == SYSGENID_ERROR_GONE);
	CHECK(sysgenid_watcher_reconnect(watcher, -1, &generation) == SYSGENID_ERROR_NONE);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sysgenid_probe *probe;
	struct pollfd file = { .events = POLLIN };
	uint32_t generation, newer;
	pthread_t thread;

	setvbuf(stdout, NULL, _IOLBF, 0);
	CHECK(argc == 2);
	CHECK(sysgenid_watcher_open(argv[1], true, &watcher) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_probe_open(argv[1], &probe) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_probe_is_live(probe));
	CHECK(pthread_create(&thread, NULL, sleep_in_another_thread, NULL) == 0);
	puts("open");

	/* An event loop wakes as well. */
	file.fd = sysgenid_watcher_fd(watcher);
	CHECK(poll(&file, 1, -1) == 1);
	CHECK(sysgenid_watcher_try_changed(watcher, &generation) == SYSGENID_ERROR_GONE);
	CHECK(sysgenid_watcher_generation(watcher, &generation) == SYSGENID_ERROR_GONE);
	CHECK(!sysgenid_probe_is_live(probe));
	sysgenid_probe_close(probe);
	puts("gone");

	CHECK(sysgenid_watcher_reconnect(watcher, -1, &generation) == SYSGENID_ERROR_NONE);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(sysgenid_watcher_acknowledge(watcher, generation, &newer) == SYSGENID_ERROR_NONE && newer == 0);
	puts("back");

	CHECK(sysgenid_watcher_wait(watcher, -1, &generation) == SYSGENID_ERROR_NONE);
	printf("changed to %" PRIu32 "\n", generation);
	CHECK(sysgenid_watcher_acknowledge(watcher, generation, &newer) == SYSGENID_ERROR_NONE && newer == 0);
	sysgenid_watcher_close(watcher);
	return 0;
}
