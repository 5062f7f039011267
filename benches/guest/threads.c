// Threads: how they are made, how they hand over, and whether two of them run at once.

#include "bench.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *nothing(void *argument)
{
	return argument;
}

static uint64_t threads(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		pthread_t t;
		void *result;
		if (pthread_create(&t, NULL, nothing, (void *)i) || pthread_join(t, &result) || result != (void *)i)
			fail("thread %lu", i);
	}
	return 1;
}

static uint32_t turn;

static void wait_for(uint32_t mine)
{
	uint32_t now;
	while ((now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != mine)
		syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
}

static void pass_to(uint32_t other)
{
	__atomic_store_n(&turn, other, __ATOMIC_RELEASE);
	syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static uint64_t handed_over;

static void *second(void *argument)
{
	for (uint64_t i = 0; i < *(uint64_t *)argument; i++) {
		wait_for(1);
		handed_over++;
		pass_to(0);
	}
	return NULL;
}

// One iteration is there and back between two threads.
static uint64_t futexes(uint64_t n)
{
	pthread_t t;
	if (pthread_create(&t, NULL, second, &n))
		fail("no thread");
	for (uint64_t i = 0; i < n; i++) {
		pass_to(1);
		wait_for(0);
		if (handed_over != i + 1)
			fail("turn %lu was lost", i);
	}
	pthread_join(t, NULL);
	return 1;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t shared, each;

static void *add(void *argument)
{
	for (uint64_t i = 0; i < each; i++) {
		pthread_mutex_lock(&lock);
		shared++;
		pthread_mutex_unlock(&lock);
	}
	return argument;
}

// Two threads fight for a mutex. One iteration is one turn of each.
static uint64_t mutex(uint64_t n)
{
	pthread_t t;
	each = n;
	if (pthread_create(&t, NULL, add, NULL))
		fail("no thread");
	add(NULL);
	pthread_join(t, NULL);
	if (shared != 2 * n)
		fail("%lu turns came to %lu", 2 * n, shared);
	return 1;
}

static void *busy(void *argument)
{
	sha256(*(uint64_t *)argument);
	return NULL;
}

static uint64_t run_busy(uint64_t n, int count)
{
	pthread_t t[2];
	for (int i = 0; i < count; i++)
		if (pthread_create(&t[i], NULL, busy, &n))
			fail("no thread");
	for (int i = 0; i < count; i++)
		pthread_join(t[i], NULL);
	return 1;
}

// One thread that computes, and two that each compute as much.
static uint64_t busy1(uint64_t n)
{
	return run_busy(n, 1);
}

static uint64_t busy2(uint64_t n)
{
	return run_busy(n, 2);
}

const struct bench thread_benches[] = {
	{"threads", NULL, threads}, {"futex", NULL, futexes}, {"mutex", NULL, mutex},
	{"busy1", NULL, busy1},	    {"busy2", NULL, busy2},   {NULL, NULL, NULL},
};
