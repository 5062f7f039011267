// What the kernel does: system calls, faults, processes, memory maps, pipes.

#include "bench.h"
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t null_syscall(uint64_t n)
{
	long parent = getppid();
	for (uint64_t i = 0; i < n; i++)
		if (syscall(SYS_getppid) != parent)
			fail("getppid has changed");
	return 1;
}

const struct bench system_benches[] = {
	{"syscall", NULL, null_syscall},
	{NULL, NULL, NULL},
};
