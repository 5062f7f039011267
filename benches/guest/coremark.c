// In the manner of EEMBC's CoreMark, not its code: a linked list, a small integer matrix and a state machine, with a CRC over the
// results.

#include "bench.h"

static uint16_t crc16(uint16_t crc, uint16_t value)
{
	for (int i = 0; i < 16; i++) {
		int carry = (crc ^ value) & 1;
		crc >>= 1;
		value >>= 1;
		if (carry)
			crc ^= 0xa001;
	}
	return crc;
}

struct node {
	struct node *next;
	int16_t key, data;
};

#define NODES 64
static struct node nodes[NODES];

static struct node *list_make(uint16_t seed)
{
	for (int i = 0; i < NODES; i++) {
		seed = seed * 25173 + 13849;
		nodes[i] = (struct node){i + 1 < NODES ? &nodes[i + 1] : NULL, seed >> 4 & 0x7ff, i};
	}
	return nodes;
}

static struct node *list_reverse(struct node *l)
{
	struct node *out = NULL;
	while (l) {
		struct node *next = l->next;
		l->next = out;
		out = l;
		l = next;
	}
	return out;
}

static struct node *list_find(struct node *l, int16_t data)
{
	while (l && l->data != data)
		l = l->next;
	return l;
}

static int by_key(const struct node *a, const struct node *b)
{
	return a->key - b->key;
}

static int by_data(const struct node *a, const struct node *b)
{
	return a->data - b->data;
}

// Merge sort from runs of one upwards.
static struct node *list_sort(struct node *list, int (*compare)(const struct node *, const struct node *))
{
	for (int run = 1;; run *= 2) {
		struct node *from = list, *tail = NULL;
		int merges = 0;
		list = NULL;
		while (from) {
			merges++;
			struct node *a = from, *b = from;
			int na = 0, nb = run;
			while (na < run && b) {
				na++;
				b = b->next;
			}
			while (na > 0 || (nb > 0 && b)) {
				struct node *e;
				if (na > 0 && (!nb || !b || compare(a, b) <= 0)) {
					e = a;
					a = a->next;
					na--;
				} else {
					e = b;
					b = b->next;
					nb--;
				}
				if (tail)
					tail->next = e;
				else
					list = e;
				tail = e;
			}
			from = b;
		}
		tail->next = NULL;
		if (merges <= 1)
			return list;
	}
}

static uint16_t list_work(uint16_t seed, uint16_t crc)
{
	struct node *l = list_make(seed);
	for (int16_t i = 0; i < 12; i++) {
		l = list_reverse(l);
		struct node *e = list_find(l, (int16_t)(i * 5));
		if (!e)
			fail("the list lost %d", i * 5);
		crc = crc16(crc, e->key);
	}
	l = list_sort(l, by_key);
	for (struct node *e = l; e; e = e->next) {
		if (e->next && e->key > e->next->key)
			fail("the list is not sorted");
		crc = crc16(crc, e->data);
	}
	l = list_sort(l, by_data);
	return crc16(crc, l->key);
}

#define SIDE 12

static uint16_t matrix_work(int16_t seed, uint16_t crc)
{
	static int16_t a[SIDE][SIDE], b[SIDE][SIDE];
	static int32_t c[SIDE][SIDE];
	int32_t order = 1;
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++, order++) {
			seed = (int16_t)(order * seed % 65536);
			a[i][j] = (int16_t)(seed + order);
			b[i][j] = (int16_t)(a[i][j] & 0xff);
		}
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++)
			a[i][j] = (int16_t)(a[i][j] + seed);
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			int32_t sum = 0;
			for (int k = 0; k < SIDE; k++) {
				int32_t product = a[i][k] * b[k][j];
				sum += (product >> 2 & 15) * (product >> 5 & 127);
			}
			c[i][j] = sum;
		}
	int32_t last = 0, total = 0;
	int16_t result = 0;
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			total += c[i][j];
			if (total > 20000) {
				result += 10;
				total = 0;
			} else {
				result += c[i][j] > last;
			}
			last = c[i][j];
		}
	return crc16(crc, result);
}

enum state { START, SIGN, INTEGER, FRACTION, EXPONENT, EXPONENT_SIGN, SCIENTIFIC, INVALID, STATES };

// Numbers in text, separated by commas.
static uint16_t state_work(const char *text, uint16_t crc)
{
	uint32_t ends[STATES] = {0}, moves[STATES] = {0};
	enum state s = START;
	for (const char *p = text; *p; p++) {
		char c = *p;
		if (c == ',') {
			ends[s]++;
			s = START;
			continue;
		}
		int digit = c >= '0' && c <= '9';
		moves[s]++;
		switch (s) {
		case START:
			s = digit ? INTEGER : c == '+' || c == '-' ? SIGN : c == '.' ? FRACTION : INVALID;
			break;
		case SIGN:
			s = digit ? INTEGER : c == '.' ? FRACTION : INVALID;
			break;
		case INTEGER:
			if (c == '.')
				s = FRACTION;
			else if (!digit)
				s = INVALID;
			break;
		case FRACTION:
			if (c == 'e' || c == 'E')
				s = EXPONENT;
			else if (!digit)
				s = INVALID;
			break;
		case EXPONENT:
			s = c == '+' || c == '-' ? EXPONENT_SIGN : INVALID;
			break;
		case EXPONENT_SIGN:
			s = digit ? SCIENTIFIC : INVALID;
			break;
		case SCIENTIFIC:
			if (!digit)
				s = INVALID;
			break;
		default:
			break;
		}
	}
	for (int i = 0; i < STATES; i++)
		crc = crc16(crc16(crc, ends[i]), moves[i]);
	return crc;
}

static uint64_t coremark(uint64_t n)
{
	const char *text = "5012,1234,-874,+122,35.54400,.1234500,-110.700,+0.64400,5.500e+3,-.123e-2,-87e+832,+0.6e-12,T0.3e-1F,"
			   "-T.T++Tq,1T3.4e4z,34.0e-T^,12,-0.5,+1.e+9,x";
	uint16_t first = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint16_t crc = 0;
		OPAQUE(text);
		for (uint16_t k = 0; k < 4; k++) {
			crc = list_work(k * 977 + 3, crc);
			crc = matrix_work((int16_t)(k + 5), crc);
			crc = state_work(text, crc);
		}
		if (i && crc != first)
			fail("a CRC of %#x, then %#x", first, crc);
		first = crc;
	}
	return first;
}

const struct bench coremark_benches[] = {
	{"coremark", NULL, coremark},
	{NULL, NULL, NULL},
};
