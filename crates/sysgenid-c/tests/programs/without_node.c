/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the library says where there is no node: the argument names a path at which nothing is. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <string.h>
#include "check.h"

static void null_is_an_error(void)
{
	struct sysgenid_probe *probe;
	struct sysgenid_stamp stamp;
	uint32_t number;

	CHECK(sysgenid_probe_open(NULL, NULL) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(strstr(sysgenid_error_message(), "probe"));
	CHECK(sysgenid_error_errno() == EINVAL);
	CHECK(sysgenid_probe_open_or_never(NULL, NULL) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_probe_stamp(NULL, &stamp) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_probe_stamp_for_rebuild(NULL, &stamp, &stamp) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_probe_has_changed(NULL, NULL));
	CHECK(sysgenid_probe_generation(NULL) == 0);
	CHECK(!sysgenid_probe_is_live(NULL));
	CHECK(!sysgenid_probe_can_change(NULL));
	CHECK(sysgenid_stamp_generation(NULL) == 0);
	sysgenid_probe_close(NULL);

	CHECK(sysgenid_probe_open_or_never("/nowhere", &probe) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_probe_stamp(probe, NULL) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_probe_stamp_for_rebuild(probe, NULL, &stamp) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_probe_stamp(probe, &stamp) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_probe_stamp_for_rebuild(probe, &stamp, NULL) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_probe_has_changed(probe, NULL));
	sysgenid_probe_close(probe);

	CHECK(sysgenid_watcher_open(NULL, true, NULL) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_watcher_fd(NULL) == -1);
	CHECK(sysgenid_watcher_generation(NULL, &number) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_watcher_wait(NULL, 0, &number) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_watcher_try_changed(NULL, &number) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_watcher_acknowledge(NULL, 0, &number) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_watcher_reconnect(NULL, 0, &number) == SYSGENID_ERROR_INVALID_ARGUMENT);
	sysgenid_watcher_close(NULL);

	CHECK(sysgenid_bump("/nowhere", 0, NULL) == SYSGENID_ERROR_INVALID_ARGUMENT);
	CHECK(sysgenid_settle("/nowhere", 0, NULL) == SYSGENID_ERROR_INVALID_ARGUMENT);
}

/* On a kernel that is too old to have a node it is said so. */
static bool is_absent(enum sysgenid_error error)
{
	return error == SYSGENID_ERROR_NO_NODE || error == SYSGENID_ERROR_KERNEL_TOO_OLD;
}

static void no_node_is_told(const char *path)
{
	struct sysgenid_probe *probe = (struct sysgenid_probe *)&probe;
	struct sysgenid_watcher *watcher = (struct sysgenid_watcher *)&watcher;
	uint32_t number = 7;

	CHECK(is_absent(sysgenid_probe_open(path, &probe)));
	CHECK(probe == NULL);
	CHECK(sysgenid_error_errno() == ENOENT);
	CHECK(strstr(sysgenid_error_message(), path));
	CHECK(is_absent(sysgenid_watcher_open(path, true, &watcher)));
	CHECK(watcher == NULL);
	CHECK(is_absent(sysgenid_bump(path, 0, &number)));
	CHECK(number == 7);
	CHECK(is_absent(sysgenid_settle(path, 0, &number)));
}

static void what_is_no_node_is_told(void)
{
	struct sysgenid_probe *probe;

	CHECK(sysgenid_probe_open_or_never("/dev/null", &probe) == SYSGENID_ERROR_NOT_A_NODE);
	CHECK(probe == NULL);
	CHECK(sysgenid_error_errno() == ENOTTY);
	CHECK(is_absent(sysgenid_probe_open("/dev/null/node", &probe)));
}

static void a_probe_can_be_used_before_there_is_a_node(const char *path)
{
	struct sysgenid_probe *probe;
	struct sysgenid_stamp stamp, now;

	CHECK(sysgenid_probe_open_or_never(path, &probe) == SYSGENID_ERROR_NONE);
	CHECK(sysgenid_probe_can_change(probe));
	CHECK(!sysgenid_probe_is_live(probe));
	CHECK(sysgenid_probe_generation(probe) == 0);
	CHECK(sysgenid_probe_stamp(probe, &stamp) == SYSGENID_ERROR_NONE);
	CHECK(!sysgenid_probe_has_changed(probe, &stamp));
	CHECK(sysgenid_probe_stamp_for_rebuild(probe, &stamp, &now) == SYSGENID_ERROR_NONE);
	CHECK(!sysgenid_probe_has_changed(probe, &now));
	CHECK(sysgenid_stamp_generation(&now) == 0);
	sysgenid_probe_close(probe);
}

int main(int argc, char **argv)
{
	uint32_t number;

	CHECK(argc == 2);
	CHECK(*sysgenid_error_message() == '\0');
	CHECK(sysgenid_error_errno() == 0);
	null_is_an_error();
	no_node_is_told(argv[1]);
	what_is_no_node_is_told();
	a_probe_can_be_used_before_there_is_a_node(argv[1]);
	/* The environment has it as well. */
	CHECK(setenv("SYSGENID_PATH", argv[1], 1) == 0);
	CHECK(is_absent(sysgenid_settle(NULL, 0, &number)));
	CHECK(strstr(sysgenid_error_message(), argv[1]));
	return 0;
}
