// Vector instructions: matrix products and dot products in SSE2 and AVX2. All numbers are small integers, so that every order of
// summing gives the same.

#include "bench.h"
#include <immintrin.h>

#define SIDE 96

static float a[SIDE][SIDE] __attribute__((aligned(64)));
static float b[SIDE][SIDE] __attribute__((aligned(64)));
static float c[SIDE][SIDE] __attribute__((aligned(64)));

// Raises the sticky flag of inexact results, as almost any computation does: QEMU emulates the host's arithmetic by its own as
// long as that is down, and would look slower than it is.
static void be_inexact(void)
{
	volatile double one = 1, three = 3;
	one = one / three;
}

static void fill(void)
{
	be_inexact();
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			a[i][j] = (float)((i * 7 + j * 3) % 17 - 8);
			b[i][j] = (float)((i * 5 + j * 11) % 13 - 6);
		}
}

static void need_avx2(void)
{
	if (!__builtin_cpu_supports("avx2"))
		skip("no AVX2");
	fill();
}

// Compares the product with one made number by number; its hash.
static uint64_t check(void)
{
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			int sum = 0;
			for (int k = 0; k < SIDE; k++)
				sum += (int)a[i][k] * (int)b[k][j];
			if ((int)c[i][j] != sum)
				fail("element %d,%d is %g, not %d", i, j, (double)c[i][j], sum);
		}
	return hash(HASH_START, c, sizeof c);
}

static uint64_t sse2(uint64_t n)
{
	for (uint64_t round = 0; round < n; round++) {
		for (int i = 0; i < SIDE; i++)
			for (int j = 0; j < SIDE; j += 8) {
				__m128 s0 = _mm_setzero_ps(), s1 = s0;
				for (int k = 0; k < SIDE; k++) {
					__m128 x = _mm_set1_ps(a[i][k]);
					s0 = _mm_add_ps(s0, _mm_mul_ps(x, _mm_load_ps(&b[k][j])));
					s1 = _mm_add_ps(s1, _mm_mul_ps(x, _mm_load_ps(&b[k][j + 4])));
				}
				_mm_store_ps(&c[i][j], s0);
				_mm_store_ps(&c[i][j + 4], s1);
			}
		BARRIER();
	}
	return check();
}

__attribute__((target("avx2"))) static uint64_t avx2(uint64_t n)
{
	for (uint64_t round = 0; round < n; round++) {
		for (int i = 0; i < SIDE; i++)
			for (int j = 0; j < SIDE; j += 16) {
				__m256 s0 = _mm256_setzero_ps(), s1 = s0;
				for (int k = 0; k < SIDE; k++) {
					__m256 x = _mm256_set1_ps(a[i][k]);
					s0 = _mm256_add_ps(s0, _mm256_mul_ps(x, _mm256_load_ps(&b[k][j])));
					s1 = _mm256_add_ps(s1, _mm256_mul_ps(x, _mm256_load_ps(&b[k][j + 8])));
				}
				_mm256_store_ps(&c[i][j], s0);
				_mm256_store_ps(&c[i][j + 8], s1);
			}
		BARRIER();
	}
	return check();
}

#define LONG 8192
static int16_t left[LONG] __attribute__((aligned(64))), right[LONG] __attribute__((aligned(64)));
static int64_t expected_dot;

static void fill_dot(void)
{
	expected_dot = 0;
	for (int i = 0; i < LONG; i++) {
		left[i] = (int16_t)(i * 37 % 201 - 100);
		right[i] = (int16_t)(i * 91 % 181 - 90);
		expected_dot += left[i] * right[i];
	}
}

static void fill_dot_avx2(void)
{
	if (!__builtin_cpu_supports("avx2"))
		skip("no AVX2");
	fill_dot();
}

static void check_dot(int64_t sum)
{
	if (sum != expected_dot)
		fail("the product is %ld, not %ld", sum, expected_dot);
}

// 16-bit integers: multiply-add, compare and blend.
static uint64_t sse2_int(uint64_t n)
{
	for (uint64_t round = 0; round < n; round++) {
		__m128i sum = _mm_setzero_si128(), top = sum;
		for (int i = 0; i < LONG; i += 8) {
			__m128i l = _mm_load_si128((const __m128i *)&left[i]), r = _mm_load_si128((const __m128i *)&right[i]);
			sum = _mm_add_epi32(sum, _mm_madd_epi16(l, r));
			__m128i more = _mm_cmpgt_epi16(l, top);
			top = _mm_or_si128(_mm_and_si128(more, l), _mm_andnot_si128(more, top));
		}
		int32_t s[4];
		int16_t t[8];
		_mm_storeu_si128((__m128i *)s, sum);
		_mm_storeu_si128((__m128i *)t, top);
		check_dot((int64_t)s[0] + s[1] + s[2] + s[3]);
		for (int i = 0; i < 8; i++)
			if (t[i] != 100 && t[i] < 90)
				fail("the top is %d", t[i]);
	}
	return (uint64_t)expected_dot;
}

__attribute__((target("avx2"))) static uint64_t avx2_int(uint64_t n)
{
	for (uint64_t round = 0; round < n; round++) {
		__m256i sum = _mm256_setzero_si256(), top = sum;
		for (int i = 0; i < LONG; i += 16) {
			__m256i l = _mm256_load_si256((const __m256i *)&left[i]);
			__m256i r = _mm256_load_si256((const __m256i *)&right[i]);
			sum = _mm256_add_epi32(sum, _mm256_madd_epi16(l, r));
			top = _mm256_blendv_epi8(top, l, _mm256_cmpgt_epi16(l, top));
		}
		int32_t s[8];
		int16_t t[16];
		_mm256_storeu_si256((__m256i *)s, sum);
		_mm256_storeu_si256((__m256i *)t, top);
		int64_t total = 0;
		for (int i = 0; i < 8; i++)
			total += s[i];
		check_dot(total);
		for (int i = 0; i < 16; i++)
			if (t[i] != 100 && t[i] < 90)
				fail("the top is %d", t[i]);
	}
	return (uint64_t)expected_dot;
}

const struct bench simd_benches[] = {
	{"sse2", fill, sse2},
	{"avx2", need_avx2, avx2},
	{"sse2-int", fill_dot, sse2_int},
	{"avx2-int", fill_dot_avx2, avx2_int},
	{NULL, NULL, NULL},
};
