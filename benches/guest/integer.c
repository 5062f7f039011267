// Integer work in user code alone.

#include "bench.h"
#include <string.h>

// State words after 64 KiB of zero bytes.
#define SHA_ZEROS 0x4b30cfeadf7ec292u

static const uint32_t sha_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotr(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void sha256_block(uint32_t h[8], const unsigned char *p)
{
	uint32_t w[64], s[8];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t a = rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
		uint32_t b = rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
		w[i] = w[i - 16] + a + w[i - 7] + b;
	}
	memcpy(s, h, sizeof s);
	for (int i = 0; i < 64; i++) {
		uint32_t e = rotr(s[4], 6) ^ rotr(s[4], 11) ^ rotr(s[4], 25);
		uint32_t t1 = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha_k[i] + w[i];
		uint32_t a = rotr(s[0], 2) ^ rotr(s[0], 13) ^ rotr(s[0], 22);
		uint32_t t2 = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		memmove(s + 1, s, 7 * sizeof *s);
		s[4] += t1;
		s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

uint64_t sha256(uint64_t n)
{
	static const unsigned char data[65536];
	for (uint64_t i = 0; i < n; i++) {
		uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
				 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
		for (size_t at = 0; at < sizeof data; at += 64)
			sha256_block(h, data + at);
		uint64_t r = (uint64_t)h[0] << 32 | h[7];
		if (r != SHA_ZEROS)
			fail("SHA-256 came to %#lx", r);
	}
	return SHA_ZEROS;
}

static void quicksort(uint32_t *v, long low, long high)
{
	while (low < high) {
		uint32_t pivot = v[low + (high - low) / 2];
		long i = low, j = high;
		while (i <= j) {
			while (v[i] < pivot)
				i++;
			while (v[j] > pivot)
				j--;
			if (i <= j) {
				uint32_t t = v[i];
				v[i++] = v[j];
				v[j--] = t;
			}
		}
		// The shorter part first, so that the stack stays flat.
		if (j - low < high - i) {
			quicksort(v, low, j);
			low = i;
		} else {
			quicksort(v, i, high);
			high = j;
		}
	}
}

#define SORTED 20000

static uint64_t sort(uint64_t n)
{
	static uint32_t v[SORTED];
	uint64_t result = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t seed = 88172645463325252u, sum = 0;
		for (int k = 0; k < SORTED; k++)
			sum += v[k] = (uint32_t)next_random(&seed);
		quicksort(v, 0, SORTED - 1);
		for (int k = 0; k < SORTED; k++) {
			if (k && v[k - 1] > v[k])
				fail("not sorted at %d", k);
			sum -= v[k];
		}
		if (sum)
			fail("sorting lost a number");
		result = v[SORTED / 2];
	}
	return result;
}

#define SLOTS 32768
#define KEYS 20000

// Open addressing: fill, look up what is and is not there, remove half.
static uint64_t hash_table(uint64_t n)
{
	static uint64_t keys[SLOTS], values[SLOTS];
	uint64_t found = 0;
	for (uint64_t round = 0; round < n; round++) {
		memset(keys, 0, sizeof keys);
		uint64_t seed = 1234567;
		for (uint64_t k = 0; k < KEYS; k++) {
			uint64_t key = next_random(&seed) | 1;
			size_t at = key * 0x9e3779b97f4a7c15u >> 49;
			while (keys[at] && keys[at] != key)
				at = (at + 1) % SLOTS;
			keys[at] = key;
			values[at] = k;
		}
		found = 0;
		seed = 1234567;
		for (uint64_t k = 0; k < 3 * KEYS; k++) {
			uint64_t key = next_random(&seed) | 1;
			size_t at = key * 0x9e3779b97f4a7c15u >> 49;
			while (keys[at] && keys[at] != key)
				at = (at + 1) % SLOTS;
			if (keys[at]) {
				if (values[at] != k)
					fail("key %lu has value %lu", k, values[at]);
				found++;
			}
		}
		if (found != KEYS)
			fail("found %lu keys", found);
	}
	return found;
}

const struct bench integer_benches[] = {
	{"sha256", NULL, sha256},
	{"quicksort", NULL, sort},
	{"hash", NULL, hash_table},
	{NULL, NULL, NULL},
};
