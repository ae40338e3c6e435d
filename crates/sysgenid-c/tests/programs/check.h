/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the test programs say when something is not as it should be. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <sysgenid.h>

#define CHECK(condition)                                                                              \
	do {                                                                                          \
		if (!(condition)) {                                                                   \
			fprintf(stderr, "%s:%d: %s is not so (last error: %s)\n", __FILE__, __LINE__, \
				#condition, sysgenid_error_message());                                \
			exit(1);                                                                      \
		}                                                                                     \
	} while (0)

#endif
