/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Every function on the node that the argument names, whose generation nobody else may change meanwhile. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "check.h"

static const char *path;

static uint32_t bump(void)
{
	uint32_t generation = 0;

	CHECK(sysgenid_bump(path, 0, &generation) == SYSGENID_ERROR_NONE);
	CHECK(generation != 0);
	return generation;
}

static bool is_readable(const struct sysgenid_watcher *watcher)
{
	struct pollfd file = { .fd = sysgenid_watcher_fd(watcher), .events = POLLIN };

	CHECK(file.fd >= 0);
	return poll(&file, 1, 0) == 1;
}

static void a_probe_sees_each_change(void)
{
	struct sysgenid_probe *probe;
	struct sysgenid_stamp stamp, now;
	uint32_t generation;

	CHECK(sysgenid_probe_open(path, &probe) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_probe_can_change(probe));
	CHECK(sysgenid_probe_is_live(probe));
	CHECK(sysgenid_probe_stamp(probe, &stamp) == SYSGENID_ERROR_NONE);
	CHECK(!sysgenid_probe_has_changed(probe, &stamp));
	generation = bump();
	CHECK(sysgenid_probe_has_changed(probe, &stamp));
	CHECK(sysgenid_probe_generation(probe) == generation);
	CHECK(sysgenid_probe_stamp_for_rebuild(probe, &stamp, &now) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_stamp_generation(&now) == generation);
	CHECK(!sysgenid_probe_has_changed(probe, &now));
	/* What was made under the old one is still over, until it is made anew. */
	CHECK(sysgenid_probe_has_changed(probe, &stamp));
	sysgenid_probe_close(probe);
}

static void others_wait_for_a_tracked_watcher(void)
{
	struct sysgenid_watcher *watcher;
	uint32_t generation, number, outdated;

	CHECK(sysgenid_watcher_open(path, true, &watcher) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_watcher_try_changed(watcher, &number) == SYSGENID_ERROR_NONE && number == 0);
	CHECK(sysgenid_watcher_wait(watcher, 1, &number) == SYSGENID_ERROR_TIMED_OUT);
	CHECK(!is_readable(watcher));

	generation = bump();
	CHECK(is_readable(watcher));
	CHECK(sysgenid_settle(path, 1, &outdated) == SYSGENID_ERROR_TIMED_OUT && outdated == 1);
	CHECK(sysgenid_watcher_wait(watcher, -1, &number) == SYSGENID_ERROR_NONE && number == generation);
	/* It is told until it has acknowledged. */
	CHECK(sysgenid_watcher_try_changed(watcher, &number) == SYSGENID_ERROR_NONE && number == generation);
	CHECK(sysgenid_watcher_generation(watcher, &number) == SYSGENID_ERROR_NONE && number == generation);
	CHECK(sysgenid_watcher_acknowledge(watcher, generation, &number) == SYSGENID_ERROR_NONE && number == 0);
	CHECK(!is_readable(watcher));
	CHECK(sysgenid_settle(path, -1, &outdated) == SYSGENID_ERROR_NONE && outdated == 0);
	/* Again is harmless. */
	CHECK(sysgenid_watcher_acknowledge(watcher, generation, &number) == SYSGENID_ERROR_NONE && number == 0);
	sysgenid_watcher_close(watcher);
}

static void an_acknowledgement_tells_of_a_newer_change(void)
{
	struct sysgenid_watcher *watcher;
	uint32_t told, number, newer, outdated;

	CHECK(sysgenid_watcher_open(path, true, &watcher) == SYSGENID_ERROR_NONE);
	bump();
	CHECK(sysgenid_watcher_wait(watcher, -1, &told) == SYSGENID_ERROR_NONE);
	newer = bump();
	CHECK(sysgenid_watcher_acknowledge(watcher, told, &number) == SYSGENID_ERROR_NONE && number == newer);
	CHECK(sysgenid_settle(path, 1, &outdated) == SYSGENID_ERROR_TIMED_OUT && outdated == 1);
	CHECK(sysgenid_watcher_acknowledge(watcher, newer, &number) == SYSGENID_ERROR_NONE && number == 0);
	CHECK(sysgenid_settle(path, -1, &outdated) == SYSGENID_ERROR_NONE);
	sysgenid_watcher_close(watcher);
}

static void nobody_waits_for_a_watcher_that_is_not_tracked(void)
{
	struct sysgenid_watcher *watcher;
	uint32_t generation, number, outdated;

	CHECK(sysgenid_watcher_open(path, false, &watcher) == SYSGENID_ERROR_NONE);
	generation = bump();
	CHECK(sysgenid_settle(path, -1, &outdated) == SYSGENID_ERROR_NONE && outdated == 0);
	CHECK(is_readable(watcher));
	CHECK(sysgenid_watcher_wait(watcher, -1, &number) == SYSGENID_ERROR_NONE && number == generation);
	/* It is told of it until it acknowledges. */
	CHECK(is_readable(watcher));
	CHECK(sysgenid_watcher_try_changed(watcher, &number) == SYSGENID_ERROR_NONE && number == generation);
	CHECK(sysgenid_watcher_acknowledge(watcher, generation, &number) == SYSGENID_ERROR_NONE && number == 0);
	CHECK(!is_readable(watcher));
	CHECK(sysgenid_watcher_try_changed(watcher, &number) == SYSGENID_ERROR_NONE && number == 0);
	/* And of what came between. */
	bump();
	CHECK(sysgenid_watcher_wait(watcher, -1, &number) == SYSGENID_ERROR_NONE);
	generation = bump();
	CHECK(sysgenid_watcher_acknowledge(watcher, number, &number) == SYSGENID_ERROR_NONE && number == generation);
	sysgenid_watcher_close(watcher);
}

static void a_change_keeps_its_minimum(void)
{
	uint32_t generation, minimum = bump() + 10;

	CHECK(sysgenid_bump(path, minimum, &generation) == SYSGENID_ERROR_NONE && generation == minimum);
}

static void a_reconnect_leaves_a_watcher_whose_node_is_there(void)
{
	struct sysgenid_watcher *watcher;
	uint32_t generation, current, number, outdated;
	int descriptor;

	CHECK(sysgenid_watcher_open(path, true, &watcher) == SYSGENID_ERROR_NONE);
	descriptor = sysgenid_watcher_fd(watcher);
	current = bump();
	/* As the second of two threads that were told that the node has gone. */
	CHECK(sysgenid_watcher_reconnect(watcher, 1000, &generation) == SYSGENID_ERROR_NONE);
	CHECK(generation == current);
	CHECK(sysgenid_watcher_fd(watcher) == descriptor);
	CHECK(is_readable(watcher));
	CHECK(sysgenid_settle(path, 1, &outdated) == SYSGENID_ERROR_TIMED_OUT && outdated == 1);
	CHECK(sysgenid_watcher_acknowledge(watcher, generation, &number) == SYSGENID_ERROR_NONE && number == 0);
	CHECK(sysgenid_settle(path, -1, &outdated) == SYSGENID_ERROR_NONE && outdated == 0);
	sysgenid_watcher_close(watcher);
}

static void *wait_for_ever(void *watcher)
{
	uint32_t number;

	CHECK(sysgenid_watcher_wait(watcher, -1, &number) == SYSGENID_ERROR_NONE);
	return NULL;
}

static void a_reconnect_does_not_wait_for_another_thread(void)
{
	/* Long enough for the other thread to sleep. */
	struct timespec pause = { .tv_nsec = 100 * 1000 * 1000 };
	struct sysgenid_watcher *watcher;
	uint32_t number;
	pthread_t thread;

	CHECK(sysgenid_watcher_open(path, true, &watcher) == SYSGENID_ERROR_NONE);
	CHECK(pthread_create(&thread, NULL, wait_for_ever, watcher) == 0);
	nanosleep(&pause, NULL);
	/* It ends the program if that hangs. */
	alarm(10);
	CHECK(sysgenid_watcher_reconnect(watcher, 1000, &number) == SYSGENID_ERROR_NONE);
	alarm(0);
	bump();
	CHECK(pthread_join(thread, NULL) == 0);
	sysgenid_watcher_close(watcher);
}

/* Does something in a child, which must succeed. */
static pid_t begin(void (*action)(void))
{
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		action();
		exit(0);
	}
	return child;
}

static void finish(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void bump_after_a_while(void)
{
	/* Long enough for whoever does not wait to be caught. */
	struct timespec pause = { .tv_nsec = 100 * 1000 * 1000 };

	nanosleep(&pause, NULL);
	bump();
}

static void a_negative_time_out_is_for_ever(void)
{
	struct sysgenid_watcher *watcher;
	uint32_t number;
	pid_t child;

	CHECK(sysgenid_watcher_open(path, true, &watcher) == SYSGENID_ERROR_NONE);
	child = begin(bump_after_a_while);
	CHECK(sysgenid_watcher_wait(watcher, -1, &number) == SYSGENID_ERROR_NONE);
	finish(child);
	sysgenid_watcher_close(watcher);
}

static void be_refused(void)
{
	struct sysgenid_watcher *watcher;
	uint32_t number;

	CHECK(setuid(65534) == 0);
	CHECK(sysgenid_watcher_open(path, true, &watcher) == SYSGENID_ERROR_NO_PERMISSION);
	CHECK(sysgenid_error_errno() == EACCES);
	CHECK(strstr(sysgenid_error_message(), path));
	CHECK(sysgenid_bump(path, 0, &number) == SYSGENID_ERROR_NOT_CAPABLE);
	CHECK(sysgenid_error_errno() == EACCES);
	CHECK(sysgenid_watcher_open(path, false, &watcher) == SYSGENID_ERROR_NONE);
	sysgenid_watcher_close(watcher);
}

static void whoever_may_not_is_told_why(void)
{
	finish(begin(be_refused));
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	path = argv[1];
	a_probe_sees_each_change();
	others_wait_for_a_tracked_watcher();
	an_acknowledgement_tells_of_a_newer_change();
	nobody_waits_for_a_watcher_that_is_not_tracked();
	a_change_keeps_its_minimum();
	a_reconnect_leaves_a_watcher_whose_node_is_there();
	a_reconnect_does_not_wait_for_another_thread();
	a_negative_time_out_is_for_ever();
	whoever_may_not_is_told_why();
	return 0;
}
