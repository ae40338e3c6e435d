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
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

static const _Atomic uint32_t *generation;
static uint32_t generation_of_state;
static uint64_t state;

static void map_generation(const char *path)
{
	int node = open(path, O_RDONLY | O_CLOEXEC);
	void *page;

	if (node < 0)
		err(1, "open %s", path);
	page = mmap(NULL, sizeof(*generation), PROT_READ, MAP_SHARED, node, 0);
	if (page == MAP_FAILED)
		err(1, "map %s", path);
	close(node);
	generation = page;
}

static void seed(uint32_t now)
{
	if (getrandom(&state, sizeof(state), 0) != sizeof(state))
		err(1, "getrandom");
	generation_of_state = now;
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
	uint32_t now;

	do {
		now = *generation;
		if (now != generation_of_state) {
			seed(now);
			printf("generation %" PRIu32 ": rebuilt\n", now);
		}
		token = draw();
		/* A token that was drawn while the machine was cloned is not given away: both clones have it. */
	} while (*generation != now);
	return token;
}

int main(int argc, char **argv)
{
	char line[256];

	setvbuf(stdout, NULL, _IOLBF, 0);
	map_generation(argc > 1 ? argv[1] : "/dev/sysgenid");
	seed(*generation);
	puts("ready");

	while (fgets(line, sizeof(line), stdin))
		printf("token %016" PRIx64 "\n", next_token());
	return 0;
}
