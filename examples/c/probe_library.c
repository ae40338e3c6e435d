/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What mapped_secret.c does, by the library, which also looks at vmclock and goes on where nothing serves a node: each
 * line on standard input is answered by a token, until it ends.
 *
 *     cc probe_library.c $(pkg-config --cflags --libs sysgenid)
 *     probe_library [NODE]
 */
#define _POSIX_C_SOURCE 200809L
#include <err.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/random.h>
#include <sysgenid.h>

static uint64_t state;

static void seed(void)
{
	/* Not getrandom(), which in newer C libraries has a generator in this process: that is in the snapshot as well. */
	if (getentropy(&state, sizeof(state)))
		err(1, "getentropy");
}

int main(int argc, char **argv)
{
	/* NULL: wherever this machine has it. */
	const char *path = argc > 1 ? argv[1] : NULL;
	struct sysgenid_probe *probe;
	struct sysgenid_stamp stamp, now;
	char line[256];
	uint64_t token;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (sysgenid_probe_open_or_never(path, &probe) || sysgenid_probe_stamp(probe, &stamp))
		errx(1, "%s", sysgenid_error_message());
	if (!sysgenid_probe_is_live(probe))
		puts("nothing tells of restores here, yet");
	seed();
	puts("ready");

	while (fgets(line, sizeof(line), stdin)) {
		do {
			if (sysgenid_probe_has_changed(probe, &stamp)) {
				if (sysgenid_probe_stamp_for_rebuild(probe, &stamp, &now))
					errx(1, "%s", sysgenid_error_message());
				seed();
				/* Only now: were there no new seed, the old one must not pass for current. */
				stamp = now;
				printf("generation %" PRIu32 ": rebuilt\n", sysgenid_stamp_generation(&stamp));
			}
			token = state++;
			/* What was drawn while the machine was cloned is not given away: both clones have it. */
		} while (sysgenid_probe_has_changed(probe, &stamp));
		if (printf("token %016" PRIx64 "\n", token) < 0)
			err(1, "standard output");
	}
	if (ferror(stdin))
		err(1, "standard input");
	sysgenid_probe_close(probe);
	return 0;
}
