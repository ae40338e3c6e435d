// SPDX-License-Identifier: GPL-2.0-only
/*
 * The main clauses of Documentation/userspace-api/sysgenid.rst.
 *
 * It changes the generation of the machine, so it needs root, and every
 * program that watches will rebuild its secrets.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/sysgenid.h>

#include "kselftest_harness.h"

#define NODE		"/dev/sysgenid"

/* An ordinary user. */
#define NOBODY		65534

static int trigger(int fd, unsigned long minimum)
{
	return ioctl(fd, SYSGENID_TRIGGER_GEN_UPDATE, minimum);
}

static int wait_watchers(int fd, unsigned long milliseconds)
{
	return ioctl(fd, SYSGENID_WAIT_WATCHERS, milliseconds);
}

static int track(int fd, unsigned long on)
{
	return ioctl(fd, SYSGENID_SET_WATCHER_TRACKING, on);
}

static short events(int fd)
{
	struct pollfd entry = { .fd = fd, .events = POLLIN | POLLOUT };

	return poll(&entry, 1, 0) < 0 ? -1 : entry.revents;
}

/* Reads and acknowledges the generation; 0 if that fails. */
static uint32_t catch_up(int fd)
{
	uint32_t generation;

	if (read(fd, &generation, sizeof(generation)) != sizeof(generation) ||
	    write(fd, &generation, sizeof(generation)) != sizeof(generation))
		return 0;
	return generation;
}

static uint32_t load(const uint32_t *page, size_t offset)
{
	return __atomic_load_n(page + offset / sizeof(*page), __ATOMIC_ACQUIRE);
}

static long elapsed_ms(const struct timespec *since)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - since->tv_sec) * 1000 +
	       (now.tv_nsec - since->tv_nsec) / 1000000;
}

static void ignore(int signal)
{
}

FIXTURE(node)
{
	/* It triggers changes and waits for others. */
	int operator;
	/* It is told of them. */
	int watcher;
};

FIXTURE_SETUP(node)
{
	if (geteuid())
		SKIP(return, "changing the generation needs root");
	self->operator = open(NODE, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (self->operator < 0 && errno == ENOENT)
		SKIP(return, "there is no " NODE);
	ASSERT_LE(0, self->operator);
	self->watcher = open(NODE, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->watcher);
}

FIXTURE_TEARDOWN(node)
{
	close(self->watcher);
	close(self->operator);
}

TEST_F(node, a_new_watcher_is_current)
{
	uint32_t generation;

	EXPECT_EQ(-1, read(self->watcher, &generation, 4));
	EXPECT_EQ(EAGAIN, errno);
	EXPECT_EQ(POLLOUT, events(self->watcher));
}

TEST_F(node, a_change_is_read_until_it_is_acknowledged)
{
	uint32_t first = 0, second = 0;

	ASSERT_EQ(0, trigger(self->operator, 0));
	EXPECT_EQ(POLLIN | POLLOUT, events(self->watcher));
	EXPECT_EQ(4, read(self->watcher, &first, 4));
	EXPECT_EQ(4, read(self->watcher, &second, 4));
	EXPECT_NE(0, first);
	EXPECT_EQ(first, second);

	EXPECT_EQ(4, write(self->watcher, &first, 4));
	EXPECT_EQ(POLLOUT, events(self->watcher));
	EXPECT_EQ(-1, read(self->watcher, &first, 4));
	EXPECT_EQ(EAGAIN, errno);
}

TEST_F(node, sizes_other_than_a_generation_are_refused)
{
	char buffer[8] = {};

	ASSERT_EQ(0, trigger(self->operator, 0));
	EXPECT_EQ(0, read(self->watcher, buffer, 0));
	EXPECT_EQ(-1, read(self->watcher, buffer, 3));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(4, read(self->watcher, buffer, 8));
	EXPECT_EQ(-1, write(self->watcher, buffer, 8));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, write(self->watcher, buffer, 3));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(4, write(self->watcher, buffer, 4));
}

TEST_F(node, an_old_generation_is_not_acknowledged)
{
	uint32_t generation;

	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_EQ(4, read(self->watcher, &generation, 4));
	ASSERT_EQ(0, trigger(self->operator, 0));
	EXPECT_EQ(-1, write(self->watcher, &generation, 4));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(POLLIN | POLLOUT, events(self->watcher));
}

TEST_F(node, a_blocked_read_is_woken_by_a_change)
{
	uint32_t generation = 0;
	int status;
	pid_t child;

	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		int fd = open(NODE, O_RDONLY);

		/* Beyond this, the parent's change makes it outdated. */
		kill(getpid(), SIGSTOP);
		_exit(read(fd, &generation, 4) == 4 ? 0 : 1);
	}
	ASSERT_EQ(child, waitpid(child, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));
	kill(child, SIGCONT);
	/* Whether it sleeps already or not, it must return. */
	usleep(100000);
	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));
}

TEST_F(node, the_mapping_is_live_and_outlives_its_descriptor)
{
	uint32_t generation = 0;
	uint32_t *page;
	int fd, i;

	fd = open(NODE, O_RDONLY);
	ASSERT_LE(0, fd);
	page = mmap(NULL, 4, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, page);
	close(fd);

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, trigger(self->operator, 0));
		generation = catch_up(self->watcher);
		EXPECT_NE(0, generation);
		EXPECT_EQ(generation,
			  load(page, SYSGENID_PAGE_GENERATION_OFFSET));
	}
	EXPECT_TRUE(load(page, SYSGENID_PAGE_FLAGS_OFFSET) & SYSGENID_PAGE_LIVE);

	/* Thrown out, it comes back. */
	EXPECT_EQ(0, madvise(page, getpagesize(), MADV_DONTNEED));
	EXPECT_EQ(generation, load(page, SYSGENID_PAGE_GENERATION_OFFSET));
	munmap(page, 4);
}

TEST_F(node, the_mapping_is_for_reading_only)
{
	int size = getpagesize();
	void *page;

	EXPECT_EQ(MAP_FAILED, mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
				   self->watcher, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE,
				   self->watcher, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED,
				   self->watcher, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 2 * size, PROT_READ, MAP_SHARED,
				   self->watcher, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, size, PROT_READ, MAP_SHARED,
				   self->watcher, size));
	EXPECT_EQ(EINVAL, errno);

	page = mmap(NULL, size, PROT_READ, MAP_SHARED, self->watcher, 0);
	ASSERT_NE(MAP_FAILED, page);
	EXPECT_EQ(-1, mprotect(page, size, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	munmap(page, size);
}

TEST_F(node, a_wait_is_for_those_who_are_tracked)
{
	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_NE(0, catch_up(self->operator));
	EXPECT_EQ(0, wait_watchers(self->operator, 1000));

	EXPECT_EQ(0, track(self->watcher, 1));
	EXPECT_EQ(-1, wait_watchers(self->operator, 10));
	EXPECT_EQ(ETIME, errno);
	EXPECT_NE(0, catch_up(self->watcher));
	EXPECT_EQ(0, wait_watchers(self->operator, 1000));

	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_NE(0, catch_up(self->operator));
	EXPECT_EQ(-1, wait_watchers(self->operator, 10));
	EXPECT_EQ(ETIME, errno);
	EXPECT_EQ(0, track(self->watcher, 0));
	EXPECT_EQ(0, wait_watchers(self->operator, 1000));
}

TEST_F(node, a_time_out_is_as_long_as_it_says)
{
	struct timespec start;
	long elapsed;

	EXPECT_EQ(0, track(self->watcher, 1));
	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_NE(0, catch_up(self->operator));
	clock_gettime(CLOCK_MONOTONIC, &start);
	EXPECT_EQ(-1, wait_watchers(self->operator, 200));
	EXPECT_EQ(ETIME, errno);
	elapsed = elapsed_ms(&start);
	EXPECT_LE(200, elapsed);
}

TEST_F(node, who_is_outdated_himself_must_not_wait)
{
	ASSERT_EQ(0, trigger(self->operator, 0));
	EXPECT_EQ(-1, wait_watchers(self->watcher, 0));
	EXPECT_EQ(EINTR, errno);
}

TEST_F(node, a_handler_ends_a_wait)
{
	struct sigaction action = { .sa_handler = ignore, .sa_flags = SA_RESTART };
	struct timespec start;

	EXPECT_EQ(0, track(self->watcher, 1));
	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_NE(0, catch_up(self->operator));
	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	clock_gettime(CLOCK_MONOTONIC, &start);
	alarm(1);
	EXPECT_EQ(-1, wait_watchers(self->operator, 20000));
	EXPECT_EQ(EINTR, errno);
	EXPECT_GT(15000, elapsed_ms(&start));
}

TEST_F(node, a_stop_and_continue_does_not_end_a_wait)
{
	struct timespec start;
	int status;
	pid_t child;

	EXPECT_EQ(0, track(self->watcher, 1));
	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_NE(0, catch_up(self->operator));
	clock_gettime(CLOCK_MONOTONIC, &start);
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		_exit(wait_watchers(self->operator, 1000) < 0 ? errno : 0);
	usleep(300000);
	kill(child, SIGSTOP);
	ASSERT_EQ(child, waitpid(child, &status, WUNTRACED));
	kill(child, SIGCONT);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(ETIME, WEXITSTATUS(status));
	EXPECT_LE(1000, elapsed_ms(&start));
}

TEST_F(node, who_dies_is_not_waited_for)
{
	int status;
	pid_t child;

	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		int fd = open(NODE, O_RDWR);

		if (fd < 0 || track(fd, 1))
			_exit(1);
		kill(getpid(), SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(child, waitpid(child, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));
	ASSERT_EQ(0, trigger(self->operator, 0));
	ASSERT_NE(0, catch_up(self->operator));
	EXPECT_EQ(-1, wait_watchers(self->operator, 10));
	EXPECT_EQ(ETIME, errno);
	kill(child, SIGKILL);
	EXPECT_EQ(0, wait_watchers(self->operator, 10000));
	waitpid(child, &status, 0);
}

TEST_F(node, who_cannot_acknowledge_cannot_be_tracked)
{
	int fd = open(NODE, O_RDONLY);

	ASSERT_LE(0, fd);
	EXPECT_EQ(-1, track(fd, 1));
	EXPECT_EQ(EBADF, errno);
	EXPECT_EQ(0, track(fd, 0));
	close(fd);
}

TEST_F(node, a_trigger_honours_its_minimum)
{
	uint32_t generation, next;

	ASSERT_EQ(0, trigger(self->operator, 0));
	generation = catch_up(self->operator);
	ASSERT_NE(0, generation);
	ASSERT_EQ(0, trigger(self->operator, generation + 100UL));
	next = catch_up(self->operator);
	EXPECT_EQ(generation + 100, next);
	if (sizeof(long) > sizeof(uint32_t)) {
		EXPECT_EQ(-1, trigger(self->operator, 1UL << 31 << 1));
		EXPECT_EQ(EINVAL, errno);
	}
	EXPECT_EQ(-1, read(self->operator, &generation, 4));
	EXPECT_EQ(EAGAIN, errno);
}

TEST_F(node, a_user_may_look_but_not_change)
{
	int status;
	pid_t child;

	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		int fd;

		if (setgid(NOBODY) || setuid(NOBODY))
			_exit(1);
		if (trigger(self->operator, 0) != -1 || errno != EACCES)
			_exit(2);
		fd = open(NODE, O_RDONLY);
		if (fd < 0)
			_exit(3);
		if (mmap(NULL, 4, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED)
			_exit(4);
		_exit(0);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));
}

TEST_F(node, unknown_ioctls_are_told_as_such)
{
	EXPECT_EQ(-1, ioctl(self->operator, _IO(SYSGENID_IOCTL_TYPE, 0x7f), 0UL));
	EXPECT_EQ(ENOTTY, errno);
}

TEST_HARNESS_MAIN
