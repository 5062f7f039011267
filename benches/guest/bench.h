// What the programs of the guest benchmark share.
#ifndef BENCH_H
#define BENCH_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>

// One program. `setup` (if any) is not timed. `run` does the work `n` times, fails if a result is wrong, and returns a
// number that tells the result of one time, whatever `n`: all engines must give the same.
struct bench {
	const char *name;
	void (*setup)(void);
	uint64_t (*run)(uint64_t n);
};

// Each file's programs, ended by one without a name.
extern const struct bench integer_benches[], coremark_benches[], float_benches[], simd_benches[], crypto_benches[], control_benches[],
	code_benches[], memory_benches[], system_benches[], thread_benches[], package_benches[];

// End the program: its result is wrong, or this processor cannot run it.
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void skip(const char *why);

// Fails, with errno's words, unless `ok`.
#define NEED(ok) ((ok) ? (void)0 : need_failed(#ok))
_Noreturn void need_failed(const char *what);

// FNV-1a over `len` bytes, going on from `hash`.
#define HASH_START 0xcbf29ce484222325u
uint64_t hash(uint64_t hash, const void *data, size_t len);

// Pseudo-random numbers, the same everywhere (xorshift64*).
uint64_t next_random(uint64_t *state);

// SHA-256 of 64 KiB of zero bytes, `n` times: first and last word of the state without padding.
uint64_t sha256(uint64_t n);

// An anonymous mapping in small pages.
void *map_pages(size_t bytes, int protection);

// Whether CPUID's leaf 7 or 1 says that the processor has it.
int has_feature(unsigned leaf, int reg, int bit);

// Keeps the compiler from knowing the value of `x`.
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))
// Keeps the compiler from dropping or moving writes to memory.
#define BARRIER() __asm__ volatile("" ::: "memory")

#endif
