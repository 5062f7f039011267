// AES-128 by tables and by AES-NI, SHA-256 by SHA-NI. One iteration is 16 KiB of AES in a chain, or 64 KiB of SHA-256.

#include "bench.h"
#include <immintrin.h>
#include <string.h>

#define BLOCKS 1024

static uint8_t sbox[256];
static uint32_t tables[4][256];
static uint32_t round_keys[44];

static uint8_t times2(uint8_t x)
{
	return (uint8_t)(x << 1 ^ (x >> 7) * 0x1b);
}

static uint8_t rotl8(uint8_t x, int n)
{
	return (uint8_t)(x << n | x >> (8 - n));
}

// FIPS 197, section 5.1.1 and 5.2, with the key of its appendix C.1. Words are big-endian there, little-endian here.
static void make_tables(void)
{
	uint8_t p = 1, q = 1;
	do {
		// p runs through all values by multiplying by 3, q by dividing by it: q is p's inverse.
		p = p ^ times2(p);
		q ^= q << 1;
		q ^= q << 2;
		q ^= q << 4;
		if (q & 0x80)
			q ^= 9;
		sbox[p] = q ^ rotl8(q, 1) ^ rotl8(q, 2) ^ rotl8(q, 3) ^ rotl8(q, 4) ^ 0x63;
	} while (p != 1);
	sbox[0] = 0x63;
	for (int i = 0; i < 256; i++) {
		uint8_t s = sbox[i], s2 = times2(s);
		uint32_t t = s2 | (uint32_t)s << 8 | (uint32_t)s << 16 | (uint32_t)(s2 ^ s) << 24;
		for (int k = 0; k < 4; k++)
			tables[k][i] = k ? t << 8 * k | t >> (32 - 8 * k) : t;
	}
	for (int i = 0; i < 16; i++)
		((uint8_t *)round_keys)[i] = (uint8_t)i;
	uint8_t constant = 1;
	for (int i = 4; i < 44; i++) {
		uint32_t t = round_keys[i - 1];
		if (i % 4 == 0) {
			t = t >> 8 | t << 24;
			t = sbox[t & 255] | sbox[t >> 8 & 255] << 8 | sbox[t >> 16 & 255] << 16 | (uint32_t)sbox[t >> 24] << 24;
			t ^= constant;
			constant = times2(constant);
		}
		round_keys[i] = round_keys[i - 4] ^ t;
	}
}

static void encrypt(uint32_t s[4])
{
	uint32_t t[4];
	for (int i = 0; i < 4; i++)
		s[i] ^= round_keys[i];
	for (int round = 1; round < 10; round++) {
		for (int i = 0; i < 4; i++)
			t[i] = tables[0][s[i] & 255] ^ tables[1][s[(i + 1) % 4] >> 8 & 255] ^
			       tables[2][s[(i + 2) % 4] >> 16 & 255] ^ tables[3][s[(i + 3) % 4] >> 24] ^
			       round_keys[4 * round + i];
		memcpy(s, t, sizeof t);
	}
	for (int i = 0; i < 4; i++)
		t[i] = (sbox[s[i] & 255] | sbox[s[(i + 1) % 4] >> 8 & 255] << 8 | sbox[s[(i + 2) % 4] >> 16 & 255] << 16 |
			(uint32_t)sbox[s[(i + 3) % 4] >> 24] << 24) ^
		       round_keys[40 + i];
	memcpy(s, t, sizeof t);
}

static void need_vector(void (*encrypt_one)(uint32_t s[4]))
{
	static const uint8_t plain[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
					  0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
	static const uint8_t cipher[16] = {0x69, 0xc4, 0xe0, 0xd8, 0x6a, 0x7b, 0x04, 0x30,
					   0xd8, 0xcd, 0xb7, 0x80, 0x70, 0xb4, 0xc5, 0x5a};
	uint32_t s[4];
	memcpy(s, plain, 16);
	encrypt_one(s);
	if (memcmp(s, cipher, 16))
		fail("AES does not give the vector of FIPS 197");
}

static void setup_tables(void)
{
	make_tables();
	need_vector(encrypt);
}

static uint64_t aes_table(uint64_t n)
{
	uint32_t s[4] = {0};
	for (uint64_t i = 0; i < n; i++) {
		memset(s, 0, sizeof s);
		for (int k = 0; k < BLOCKS; k++)
			encrypt(s);
	}
	return hash(HASH_START, s, sizeof s);
}

__attribute__((target("aes,sse4.1"))) static __m128i encrypt_block(__m128i x)
{
	const __m128i *keys = (const __m128i *)round_keys;
	x = _mm_xor_si128(x, _mm_loadu_si128(keys));
	for (int round = 1; round < 10; round++)
		x = _mm_aesenc_si128(x, _mm_loadu_si128(keys + round));
	return _mm_aesenclast_si128(x, _mm_loadu_si128(keys + 10));
}

__attribute__((target("aes,sse4.1"))) static void encrypt_ni(uint32_t s[4])
{
	_mm_storeu_si128((__m128i *)s, encrypt_block(_mm_loadu_si128((const __m128i *)s)));
}

static void setup_aesni(void)
{
	if (!has_feature(1, 2, 25))
		skip("no AES-NI");
	make_tables();
	need_vector(encrypt_ni);
}

__attribute__((target("aes,sse4.1"))) static uint64_t aes_ni(uint64_t n)
{
	uint32_t s[4];
	__m128i x = _mm_setzero_si128();
	for (uint64_t i = 0; i < n; i++) {
		x = _mm_setzero_si128();
		for (int k = 0; k < BLOCKS; k++)
			x = encrypt_block(x);
	}
	_mm_storeu_si128((__m128i *)s, x);
	uint64_t h = hash(HASH_START, s, sizeof s);
	// The same by tables.
	if (aes_table(1) != h)
		fail("AES-NI and tables differ");
	return h;
}

static uint32_t sha_constants[64];

// The fractional parts of the cube roots of the first 64 primes (FIPS 180-4, section 4.2.2), by integers.
static void setup_sha(void)
{
	if (!has_feature(7, 1, 29))
		skip("no SHA-NI");
	int found = 0;
	for (unsigned p = 2; found < 64; p++) {
		int prime = 1;
		for (unsigned d = 2; d * d <= p; d++)
			prime &= p % d != 0;
		if (!prime)
			continue;
		// floor(cbrt(p) * 2^32) by bisection.
		unsigned __int128 low = 0, high = (unsigned __int128)7 << 32;
		while (high - low > 1) {
			unsigned __int128 mid = (low + high) / 2;
			// mid^3 <= p * 2^96; both sides fit in 106 bits.
			if (mid * mid * mid <= (unsigned __int128)p << 96)
				low = mid;
			else
				high = mid;
		}
		sha_constants[found++] = (uint32_t)low;
	}
}

__attribute__((target("sha,sse4.1"))) static uint64_t sha_ni(uint64_t n)
{
	static const uint8_t data[65536];
	uint64_t result = 0;
	for (uint64_t i = 0; i < n; i++) {
		// ABEF and CDGH, as the instructions want the state.
		__m128i abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
		__m128i cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
		const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
		for (size_t at = 0; at < sizeof data; at += 64) {
			__m128i m[4], abef0 = abef, cdgh0 = cdgh;
			for (int k = 0; k < 4; k++)
				m[k] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data + at) + k), swap);
			for (int k = 0; k < 16; k++) {
				__m128i w = m[k % 4];
				__m128i t = _mm_add_epi32(w, _mm_loadu_si128((const __m128i *)sha_constants + k));
				cdgh = _mm_sha256rnds2_epu32(cdgh, abef, t);
				abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(t, 0x0e));
				// Words k+16 .. k+19 of the schedule.
				__m128i next = _mm_sha256msg1_epu32(w, m[(k + 1) % 4]);
				next = _mm_add_epi32(next, _mm_alignr_epi8(m[(k + 3) % 4], m[(k + 2) % 4], 4));
				m[k % 4] = _mm_sha256msg2_epu32(next, m[(k + 3) % 4]);
			}
			abef = _mm_add_epi32(abef, abef0);
			cdgh = _mm_add_epi32(cdgh, cdgh0);
		}
		result = (uint64_t)(uint32_t)_mm_extract_epi32(abef, 3) << 32 | (uint32_t)_mm_extract_epi32(cdgh, 0);
	}
	if (result != sha256(1))
		fail("SHA-NI came to %#lx", result);
	return result;
}

const struct bench crypto_benches[] = {
	{"aes-table", setup_tables, aes_table},
	{"aes-ni", setup_aesni, aes_ni},
	{"sha-ni", setup_sha, sha_ni},
	{NULL, NULL, NULL},
};
