// Floating point: doubles in SSE2, the mathematical library, long doubles on the x87.

#include "bench.h"
#include <math.h>
#include <string.h>

#define ORDER 120

// Solves a dense system by Gaussian elimination with partial pivoting, as LINPACK does.
static uint64_t linpack(uint64_t n)
{
	static double a[ORDER][ORDER], b[ORDER];
	for (uint64_t round = 0; round < n; round++) {
		uint64_t seed = 4711;
		for (int i = 0; i < ORDER; i++) {
			b[i] = 0;
			for (int j = 0; j < ORDER; j++) {
				a[i][j] = (double)(int64_t)(next_random(&seed) >> 40) / (1 << 23) - 1;
				b[i] += a[i][j];
			}
		}
		for (int k = 0; k < ORDER; k++) {
			int pivot = k;
			for (int i = k + 1; i < ORDER; i++)
				if (fabs(a[i][k]) > fabs(a[pivot][k]))
					pivot = i;
			for (int j = k; j < ORDER; j++) {
				double t = a[k][j];
				a[k][j] = a[pivot][j];
				a[pivot][j] = t;
			}
			double t = b[k];
			b[k] = b[pivot];
			b[pivot] = t;
			for (int i = k + 1; i < ORDER; i++) {
				double m = a[i][k] / a[k][k];
				for (int j = k; j < ORDER; j++)
					a[i][j] -= m * a[k][j];
				b[i] -= m * b[k];
			}
		}
		for (int i = ORDER - 1; i >= 0; i--) {
			for (int j = i + 1; j < ORDER; j++)
				b[i] -= a[i][j] * b[j];
			b[i] /= a[i][i];
		}
		// The right-hand side was chosen so that every unknown is 1.
		for (int i = 0; i < ORDER; i++)
			if (fabs(b[i] - 1) > 1e-8)
				fail("unknown %d is %.17g, not 1", i, b[i]);
	}
	return hash(HASH_START, b, sizeof b);
}

struct body {
	double x[3], v[3], mass;
};

static const struct body sun_and_planets[5] = {
	{{0, 0, 0}, {0, 0, 0}, 39.47841760435743},
	{{4.84143144246472090e+00, -1.16032004402742839e+00, -1.03622044471123109e-01},
	 {6.06326392995832e-01, 2.81198684491626e+00, -2.52183616598876e-02},
	 3.76936749096e-02},
	{{8.34336671824457987e+00, 4.12479856412430479e+00, -4.03523417114321381e-01},
	 {-1.01077434617879e+00, 1.82566237123041e+00, 8.41576137658415e-03},
	 1.12863261319687e-02},
	{{1.28943695621391310e+01, -1.51111514016986312e+01, -2.23307578892655734e-01},
	 {1.08279100644154e+00, 8.68713018169608e-01, -1.08326374013636e-02},
	 1.72372405705971e-03},
	{{1.53796971148509165e+01, -2.59193146099879641e+01, 1.79258772950371181e-01},
	 {9.79090732243898e-01, 5.94698998647676e-01, -3.47559555040781e-02},
	 2.03368686992463e-03},
};

static double energy(const struct body *b)
{
	double e = 0;
	for (int i = 0; i < 5; i++) {
		e += 0.5 * b[i].mass * (b[i].v[0] * b[i].v[0] + b[i].v[1] * b[i].v[1] + b[i].v[2] * b[i].v[2]);
		for (int j = i + 1; j < 5; j++) {
			double d2 = 0;
			for (int k = 0; k < 3; k++)
				d2 += (b[i].x[k] - b[j].x[k]) * (b[i].x[k] - b[j].x[k]);
			e -= b[i].mass * b[j].mass / sqrt(d2);
		}
	}
	return e;
}

// One iteration is 1,000 steps from the start.
static uint64_t nbody(uint64_t n)
{
	struct body b[5];
	for (uint64_t round = 0; round < n; round++) {
		memcpy(b, sun_and_planets, sizeof b);
		double before = energy(b);
		for (int step = 0; step < 1000; step++) {
			for (int i = 0; i < 5; i++)
				for (int j = i + 1; j < 5; j++) {
					double d[3], d2 = 0;
					for (int k = 0; k < 3; k++) {
						d[k] = b[i].x[k] - b[j].x[k];
						d2 += d[k] * d[k];
					}
					double f = 0.001 / (d2 * sqrt(d2));
					for (int k = 0; k < 3; k++) {
						b[i].v[k] -= d[k] * b[j].mass * f;
						b[j].v[k] += d[k] * b[i].mass * f;
					}
				}
			for (int i = 0; i < 5; i++)
				for (int k = 0; k < 3; k++)
					b[i].x[k] += 0.001 * b[i].v[k];
		}
		if (fabs(energy(b) - before) > 1e-4)
			fail("energy went from %.12g to %.12g", before, energy(b));
	}
	return hash(HASH_START, b, sizeof b);
}

// One iteration is 1,000 arguments. The library may use FMA where there is, so the last bits do not count.
static uint64_t libm(uint64_t n)
{
	int64_t first = 0;
	for (uint64_t round = 0; round < n; round++) {
		double sum = 0;
		for (int i = 1; i <= 1000; i++) {
			double x = i * 0.0137;
			sum += sin(x) * cos(x) + exp(-x) + log(x) + pow(x, 1.37) + atan(x) + tanh(x) + cbrt(x);
		}
		int64_t r = llround(sum * 1e3);
		if (round && r != first)
			fail("%ld, then %ld", first, r);
		first = r;
	}
	return (uint64_t)first;
}

// One iteration is 1,000 turns of sums, products, quotients and roots in 80 bits.
static uint64_t x87(uint64_t n)
{
	uint64_t first = 0;
	for (uint64_t round = 0; round < n; round++) {
		long double sum = 0, x = 0.5L, y = 1.25L;
		for (int i = 1; i <= 1000; i++) {
			x = x * 1.7L - (x * x) / 3.1L;
			y = __builtin_sqrtl(y * x + i) - 0.75L;
			sum += y / (x + i) + x * 0.125L;
			if (sum > 100)
				sum -= 100;
		}
		unsigned char bytes[16] = {0};
		memcpy(bytes, &sum, 10);
		uint64_t r = hash(HASH_START, bytes, 10);
		if (round && r != first)
			fail("%#lx, then %#lx", first, r);
		first = r;
	}
	return first;
}

const struct bench float_benches[] = {
	{"linpack", NULL, linpack}, {"nbody", NULL, nbody}, {"libm", NULL, libm},
	{"x87", NULL, x87},         {NULL, NULL, NULL},
};
