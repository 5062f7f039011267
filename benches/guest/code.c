// Code that writes code.

#include "bench.h"
#include <string.h>
#include <sys/mman.h>

#define PAGES 16
#define SLOT 64

typedef uint32_t function(uint32_t);

static unsigned char *room;

static void make_room(void)
{
	room = map_pages(PAGES * 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
}

// mov eax, constant; add eax, edi; rol eax, 5; xor eax, constant; ret: calls are few, functions many.
static uint64_t jit(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		unsigned char *at = room + i % (PAGES * 4096 / SLOT) * SLOT;
		uint32_t k = (uint32_t)i * 0x9e3779b9;
		static const unsigned char form[] = {0xb8, 0, 0, 0, 0, 0x01, 0xf8, 0xc1, 0xc0, 5, 0x35, 0, 0, 0, 0, 0xc3};
		memcpy(at, form, sizeof form);
		memcpy(at + 1, &k, 4);
		memcpy(at + 11, &k, 4);
		BARRIER();
		for (uint32_t x = 0; x < 4; x++) {
			uint32_t want = k + x;
			want = (want << 5 | want >> 27) ^ k;
			uint32_t got = ((function *)at)(x);
			if (got != want)
				fail("function %lu of %u gave %#x, not %#x", i, x, got, want);
		}
	}
	return 1;
}

// A loop that writes the constant of an instruction just ahead of it, in its own block of code:
//	again: mov [rip + 1], edi (the constant of the next instruction); add eax, constant; inc edi; dec esi; jnz again
static uint64_t smc(uint64_t n)
{
	static const unsigned char form[] = {
		0x31, 0xc0,			    // xor eax, eax
		0x89, 0x3d, 0x01, 0, 0, 0,	    // again: mov [rip + 1], edi
		0x05, 0, 0, 0, 0,		    // add eax, constant
		0xff, 0xc7,			    // inc edi
		0xff, 0xce,			    // dec esi
		0x75, 0xef,			    // jnz again
		0xc3,				    // ret
	};
	memcpy(room, form, sizeof form);
	BARRIER();
	uint32_t got = ((uint32_t(*)(uint32_t, uint32_t))room)(1, (uint32_t)n);
	uint32_t want = (uint32_t)(n * (n + 1) / 2);
	if (got != want)
		fail("the sum up to %lu came to %u, not %u", n, got, want);
	return 1;
}

// A function whose constant is written anew before each of its calls, from code elsewhere.
static uint64_t patch(uint64_t n)
{
	static const unsigned char form[] = {0xb8, 0, 0, 0, 0, 0x01, 0xf8, 0xc3}; // mov eax, constant; add eax, edi; ret
	memcpy(room, form, sizeof form);
	for (uint32_t i = 0; i < n; i++) {
		memcpy(room + 1, &i, 4);
		BARRIER();
		uint32_t got = ((function *)room)(5);
		if (got != i + 5)
			fail("call %u gave %u", i, got);
	}
	return 1;
}

const struct bench code_benches[] = {
	{"jit", make_room, jit},
	{"smc", make_room, smc},
	{"patch", make_room, patch},
	{NULL, NULL, NULL},
};
