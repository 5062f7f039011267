// Control flow and locked instructions: calls, indirect jumps, atomics.

#include "bench.h"

__attribute__((noinline, noclone)) static uint32_t fibonacci(uint32_t n)
{
	return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

// One iteration is 75,000 calls.
static uint64_t calls(uint64_t n)
{
	uint32_t result = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint32_t x = 23;
		OPAQUE(x);
		result = fibonacci(x);
		if (result != 28657)
			fail("the 23rd Fibonacci number is %u", result);
	}
	return result;
}

// A register machine: the lengths of all Collatz sequences up to 255.
enum op { SET, ADD, ADDI, SHR, MUL3, ODD, LESS, JUMP, COPY, ACCUMULATE, STOP };

struct op3 {
	uint8_t op, a, b, c;
};

static const struct op3 program[] = {
	{SET, 0, 1, 0},	       // 0: start = 1
	{COPY, 1, 0, 0},       // 1: x = start
	{LESS, 1, 2, 9},       // 2: if x < 2 go to 9
	{ADDI, 2, 1, 0},       // 3: steps += 1
	{ODD, 1, 7, 0},	       // 4: if x is odd go to 7
	{SHR, 1, 1, 0},	       // 5: x >>= 1
	{JUMP, 2, 0, 0},       // 6
	{MUL3, 1, 0, 0},       // 7: x = 3 x + 1
	{JUMP, 2, 0, 0},       // 8
	{ACCUMULATE, 3, 2, 0}, // 9: sum += steps
	{ADDI, 0, 1, 0},       // 10: start += 1
	{LESS, 0, 255, 1},     // 11: if start < 255 go to 1
	{STOP, 3, 0, 0},       // 12
};
// What it stops with: the sum of the running sum of lengths.
static uint64_t expected(void)
{
	uint64_t steps = 0, sum = 0;
	for (uint64_t start = 1; start < 255; start++) {
		for (uint64_t x = start; x >= 2; x = x & 1 ? 3 * x + 1 : x >> 1)
			steps++;
		sum += steps;
	}
	return sum;
}

__attribute__((noinline)) static uint64_t run_switch(const struct op3 *code)
{
	uint64_t r[4] = {0};
	for (const struct op3 *p = code;; p++)
		switch (p->op) {
		case SET:
			r[p->a] = p->b;
			break;
		case ADD:
			r[p->a] += r[p->b];
			break;
		case ADDI:
			r[p->a] += p->b;
			break;
		case SHR:
			r[p->a] >>= p->b;
			break;
		case MUL3:
			r[p->a] = r[p->a] * 3 + 1;
			break;
		case ODD:
			if (r[p->a] & 1)
				p = code + p->b - 1;
			break;
		case LESS:
			if (r[p->a] < p->b)
				p = code + p->c - 1;
			break;
		case JUMP:
			p = code + p->a - 1;
			break;
		case COPY:
			r[p->a] = r[p->b];
			break;
		case ACCUMULATE:
			r[p->a] += r[p->b];
			break;
		default:
			return r[p->a];
		}
}

__attribute__((noinline)) static uint64_t run_goto(const struct op3 *code)
{
	static const void *const labels[] = {&&set, &&add, &&addi, &&shr, &&mul3, &&odd, &&less, &&jump, &&copy, &&add, &&stop};
	uint64_t r[4] = {0};
	const struct op3 *p = code;
#define NEXT goto *labels[(++p)->op]
#define GO(to)              \
	do {                \
		p = code + (to); \
		goto *labels[p->op]; \
	} while (0)
	goto *labels[p->op];
set:
	r[p->a] = p->b;
	NEXT;
add:
	r[p->a] += r[p->b];
	NEXT;
addi:
	r[p->a] += p->b;
	NEXT;
shr:
	r[p->a] >>= p->b;
	NEXT;
mul3:
	r[p->a] = r[p->a] * 3 + 1;
	NEXT;
odd:
	if (r[p->a] & 1)
		GO(p->b);
	NEXT;
less:
	if (r[p->a] < p->b)
		GO(p->c);
	NEXT;
jump:
	GO(p->a);
copy:
	r[p->a] = r[p->b];
	NEXT;
stop:
	return r[p->a];
}

static uint64_t interpret(uint64_t n, uint64_t (*run)(const struct op3 *))
{
	uint64_t want = expected();
	for (uint64_t i = 0; i < n; i++) {
		uint64_t got = run(program);
		if (got != want)
			fail("the machine stopped with %lu, not %lu", got, want);
	}
	return want;
}

static uint64_t vm_switch(uint64_t n)
{
	return interpret(n, run_switch);
}

static uint64_t vm_goto(uint64_t n)
{
	return interpret(n, run_goto);
}

static uint64_t plus(uint64_t x)
{
	return x + 3;
}

static uint64_t twist(uint64_t x)
{
	return x ^ 0x55;
}

static uint64_t turn(uint64_t x)
{
	return x << 1 | x >> 63;
}

static uint64_t minus(uint64_t x)
{
	return x - 7;
}

// Calls through pointers that change in a pattern too long for one prediction.
static uint64_t indirect(uint64_t n)
{
	static uint64_t (*const functions[])(uint64_t) = {plus, twist, turn, minus};
	uint64_t first = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t x = 1;
		uint32_t pattern = 0x9e3779b9;
		for (int k = 0; k < 1000; k++) {
			x = functions[pattern >> 30](x);
			pattern = pattern * 1664525 + 1013904223;
		}
		if (i && x != first)
			fail("%#lx, then %#lx", first, x);
		first = x;
	}
	return first;
}

// One iteration is one of each of four locked instructions.
static uint64_t atomics(uint64_t n)
{
	static uint64_t counter, word, bits;
	for (uint64_t i = 0; i < n; i++) {
		__atomic_add_fetch(&counter, 3, __ATOMIC_SEQ_CST);
		uint64_t old = i ? i - 1 : 0;
		if (!__atomic_compare_exchange_n(&word, &old, i, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			fail("compare-and-exchange found %lu", old);
		__atomic_xor_fetch(&bits, i, __ATOMIC_SEQ_CST);
		if (__atomic_exchange_n(&word, i, __ATOMIC_SEQ_CST) != i)
			fail("exchange found another value");
	}
	if (counter != 3 * n)
		fail("%lu additions came to %lu", n, counter);
	return 1;
}

const struct bench control_benches[] = {
	{"calls", NULL, calls},	      {"indirect", NULL, indirect}, {"vm-switch", NULL, vm_switch},
	{"vm-goto", NULL, vm_goto},   {"atomics", NULL, atomics},   {NULL, NULL, NULL},
};
