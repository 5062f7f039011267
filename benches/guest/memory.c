// Memory: TLB misses, copies by the C library, and by string instructions.

#include "bench.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHASE_PAGES 16384u

static uint32_t *order;
static unsigned char *pages;

static uint32_t *link_in(uint32_t page)
{
	// Not always the same cache set.
	return (uint32_t *)(pages + page * 4096ul + page % 61 * 64);
}

// One word in each of 16,384 pages names another page: all in one random ring.
static void make_ring(void)
{
	order = malloc(CHASE_PAGES * sizeof *order);
	NEED(order);
	pages = map_pages(CHASE_PAGES * 4096ul, PROT_READ | PROT_WRITE);
	uint64_t seed = 99;
	for (uint32_t i = 0; i < CHASE_PAGES; i++)
		order[i] = i;
	for (uint32_t i = CHASE_PAGES - 1; i > 0; i--) {
		uint32_t j = (uint32_t)(next_random(&seed) % (i + 1)), t = order[i];
		order[i] = order[j];
		order[j] = t;
	}
	for (uint32_t i = 0; i < CHASE_PAGES; i++)
		*link_in(order[i]) = order[(i + 1) % CHASE_PAGES];
}

static uint64_t tlb(uint64_t n)
{
	uint32_t at = order[0];
	for (uint64_t i = 0; i < n; i++)
		at = *link_in(at);
	if (at != order[n % CHASE_PAGES])
		fail("the ring leads to %u, not %u", at, order[n % CHASE_PAGES]);
	return 1;
}

#define BLOCK 65536
static unsigned char *from, *to;

static void make_blocks(void)
{
	from = map_pages(BLOCK, PROT_READ | PROT_WRITE);
	to = map_pages(BLOCK, PROT_READ | PROT_WRITE);
	for (int i = 0; i < BLOCK; i++)
		from[i] = (unsigned char)(i * 7 + i / 251);
	memset(to, 0xee, BLOCK);
}

static void need_equal(void)
{
	if (memcmp(from, to, BLOCK))
		fail("the copy differs");
}

// One iteration is 64 KiB.
static uint64_t copy(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		from[i % BLOCK]++;
		memcpy(to, from, BLOCK);
		BARRIER();
		if (to[i % BLOCK] != from[i % BLOCK])
			fail("byte %lu differs", i % BLOCK);
	}
	need_equal();
	return 1;
}

static void rep_movsb(void *dst, const void *src, size_t len)
{
	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(len)::"memory");
}

static void rep_movsq(void *dst, const void *src, size_t words)
{
	__asm__ volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(words)::"memory");
}

static void rep_stosb(void *dst, int value, size_t len)
{
	__asm__ volatile("rep stosb" : "+D"(dst), "+c"(len) : "a"(value) : "memory");
}

// One iteration is 64 KiB by rep movsb, and 16 KiB by rep stosb.
static uint64_t rep_long(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		rep_stosb(to, (int)i, BLOCK / 4);
		if (to[BLOCK / 4 - 1] != (unsigned char)i)
			fail("rep stosb did not fill");
		from[i % BLOCK]++;
		rep_movsb(to, from, BLOCK);
		if (to[i % BLOCK] != from[i % BLOCK])
			fail("byte %lu differs", i % BLOCK);
	}
	need_equal();
	return 1;
}

// One iteration is one run of 1 to 63 bytes and one of 1 to 8 words.
static uint64_t rep_short(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		size_t at = i * 24 % (BLOCK - 64), len = i % 63 + 1, words = i % 8 + 1;
		rep_movsb(to + at, from + at, len);
		rep_movsq(to + (at & ~7ul), from + (at & ~7ul), words);
		if (to[at] != from[at] || to[at + len - 1] != from[at + len - 1])
			fail("run %lu differs", i);
	}
	return 1;
}

// The C library's string functions, vectorized where the processor allows: one iteration is 4 KiB of text.
static uint64_t strings(uint64_t n)
{
	char text[4096], other[4096];
	uint64_t first = 0;
	for (int i = 0; i < 4095; i++)
		text[i] = (char)('a' + i * 7 % 26);
	text[4095] = 0;
	for (uint64_t i = 0; i < n; i++) {
		char *t = text;
		OPAQUE(t);
		strcpy(other, t);
		uint64_t r = strlen(other);
		other[r - 1] = '#';
		r = r * 31 + (uint64_t)(strchr(other, '#') - other);
		r = r * 31 + (strcmp(t, other) > 0);
		if (i && r != first)
			fail("%lu, then %lu", first, r);
		first = r;
	}
	return first;
}

const struct bench memory_benches[] = {
	{"tlb", make_ring, tlb},	     {"memcpy", make_blocks, copy},	  {"rep-long", make_blocks, rep_long},
	{"rep-short", make_blocks, rep_short}, {"strings", NULL, strings}, {NULL, NULL, NULL},
};
