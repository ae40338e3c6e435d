/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A library that keeps a secret, here the state of a generator of its own, looks at the mapped generation before and
 * after each use. It takes no privilege, no thread and no system call, and nobody waits for it. Each line on standard
 * input is answered by a token, until it ends.
 *
 *     mapped_secret [NODE]
 */
#define _POSIX_C_SOURCE 200809L
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <linux/sysgenid.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

/* What the page begins with, to be loaded at once. */
union word {
	uint64_t whole;
	struct {
		uint32_t generation;
		uint32_t flags;
	} parts;
};

static const _Atomic uint64_t *page;
static uint64_t word_of_state;
static uint64_t state;

static void map_generation(const char *path)
{
	int node = open(path, O_RDONLY | O_CLOEXEC);
	void *mapped;

	if (node < 0)
		err(1, "open %s", path);
	mapped = mmap(NULL, sizeof(*page), PROT_READ, MAP_SHARED, node, 0);
	if (mapped == MAP_FAILED)
		err(1, "map %s", path);
	close(node);
	page = mapped;
}

static void seed(uint64_t now)
{
	union word word = { .whole = now };

	/* Nobody serves this page any more: it will show no other change. libsysgenid would look for the next one. */
	if (!(word.parts.flags & SYSGENID_PAGE_LIVE))
		errx(1, "the node has gone");
	/* Not getrandom(), which in newer C libraries has a generator in this process: that is in the snapshot as well. */
	if (getentropy(&state, sizeof(state)))
		err(1, "getentropy");
	word_of_state = now;
}

/* The splitmix64 generator: fast, and the same in every clone that has the same state. */
static uint64_t draw(void)
{
	uint64_t mixed = (state += 0x9e3779b97f4a7c15);

	mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
	mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
	return mixed ^ (mixed >> 31);
}

static uint64_t next_token(void)
{
	uint64_t token;
	union word now;

	do {
		now.whole = *page;
		if (now.whole != word_of_state) {
			seed(now.whole);
			printf("generation %" PRIu32 ": rebuilt\n", now.parts.generation);
		}
		token = draw();
		/* A token that was drawn while the machine was cloned is not given away: both clones have it. */
	} while (*page != now.whole);
	return token;
}

int main(int argc, char **argv)
{
	char line[256];

	setvbuf(stdout, NULL, _IOLBF, 0);
	map_generation(argc > 1 ? argv[1] : "/dev/sysgenid");
	seed(*page);
	puts("ready");

	while (fgets(line, sizeof(line), stdin))
		printf("token %016" PRIx64 "\n", next_token());
	return 0;
}
