// What the kernel does: system calls, faults, processes, maps, pipes, signals, sockets, files.

#include "bench.h"
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t null_syscall(uint64_t n)
{
	long parent = getppid();
	for (uint64_t i = 0; i < n; i++)
		if (syscall(SYS_getppid) != parent)
			fail("getppid has changed");
	return 1;
}

#define FAULT_PAGES 1024ul

// One iteration is one page: the kernel clears it, and takes it away with its neighbours.
static uint64_t page_faults(uint64_t n)
{
	unsigned char *p = map_pages(FAULT_PAGES * 4096, PROT_READ | PROT_WRITE);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t at = i % FAULT_PAGES;
		if (i && !at)
			NEED(!madvise(p, FAULT_PAGES * 4096, MADV_DONTNEED));
		if (p[at * 4096])
			fail("a new page is not empty");
		p[at * 4096] = 1;
	}
	NEED(!munmap(p, FAULT_PAGES * 4096));
	return 1;
}

static void reap(pid_t child, int want)
{
	int status;
	NEED(child > 0 && waitpid(child, &status, 0) == child);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != want)
		fail("a child ended with status %#x", status);
}

static uint64_t fork_exit(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		pid_t child = fork();
		if (!child)
			_exit(i % 100);
		reap(child, i % 100);
	}
	return 1;
}

static uint64_t fork_exec(uint64_t n)
{
	if (access("/init", X_OK))
		skip("there is no /init");
	for (uint64_t i = 0; i < n; i++) {
		pid_t child = fork();
		if (!child) {
			execl("/init", "init", "true", (char *)NULL);
			_exit(127);
		}
		reap(child, 0);
	}
	return 1;
}

static uint64_t map_unmap(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		unsigned char *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		NEED(p != MAP_FAILED);
		p[i % 16 * 4096] = 1;
		NEED(!munmap(p, 65536));
	}
	return 1;
}

// One iteration is there and back between two processes.
static uint64_t pipes(uint64_t n)
{
	int there[2], back[2];
	NEED(!pipe(there) && !pipe(back));
	pid_t child = fork();
	NEED(child >= 0);
	unsigned char c;
	if (!child) {
		close(there[1]);
		while (read(there[0], &c, 1) == 1) {
			c++;
			if (write(back[1], &c, 1) != 1)
				_exit(1);
		}
		_exit(0);
	}
	close(there[0]);
	for (uint64_t i = 0; i < n; i++) {
		c = (unsigned char)i;
		NEED(write(there[1], &c, 1) == 1 && read(back[0], &c, 1) == 1);
		if (c != (unsigned char)(i + 1))
			fail("the answer is wrong");
	}
	close(there[1]);
	reap(child, 0);
	return 1;
}

static volatile uint64_t signals_taken;

static void take(int number)
{
	(void)number;
	signals_taken++;
}

static uint64_t send_signals(uint64_t n)
{
	struct sigaction a = {.sa_handler = take};
	NEED(!sigaction(SIGUSR1, &a, NULL));
	pid_t self = getpid();
	for (uint64_t i = 0; i < n; i++)
		NEED(!kill(self, SIGUSR1));
	if (signals_taken != n)
		fail("%lu signals of %lu came", signals_taken, n);
	return 1;
}

#define PIECE 65536

// One iteration is 64 KiB through a pair of sockets to another process.
static uint64_t socket_copy(uint64_t n)
{
	static unsigned char buffer[PIECE];
	int pair[2];
	NEED(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	pid_t child = fork();
	NEED(child >= 0);
	if (!child) {
		close(pair[0]);
		for (uint64_t i = 0; i < n; i++) {
			memset(buffer, (int)(i % 251), 64);
			for (ssize_t at = 0; at < PIECE;) {
				ssize_t got = write(pair[1], buffer + at, (size_t)(PIECE - at));
				if (got <= 0)
					_exit(1);
				at += got;
			}
		}
		_exit(0);
	}
	close(pair[1]);
	for (uint64_t i = 0; i < n; i++) {
		for (ssize_t at = 0; at < PIECE;) {
			ssize_t got = read(pair[0], buffer + at, (size_t)(PIECE - at));
			NEED(got > 0);
			at += got;
		}
		if (buffer[0] != i % 251 || buffer[63] != i % 251 || buffer[64])
			fail("piece %lu is not what was sent", i);
	}
	reap(child, 0);
	return 1;
}

// One iteration makes a file of 64 KiB in /tmp by 4 KiB, reads it back, looks at it, and removes it.
static uint64_t files(uint64_t n)
{
	unsigned char buffer[4096];
	for (uint64_t i = 0; i < n; i++) {
		int f = open("/tmp/bench-file", O_RDWR | O_CREAT | O_EXCL, 0600);
		NEED(f >= 0);
		for (int k = 0; k < 16; k++) {
			memset(buffer, k + (int)i, sizeof buffer);
			NEED(write(f, buffer, sizeof buffer) == sizeof buffer);
		}
		NEED(lseek(f, 0, SEEK_END) == 65536 && !lseek(f, 0, SEEK_SET));
		for (int k = 0; k < 16; k++) {
			NEED(read(f, buffer, sizeof buffer) == sizeof buffer);
			if (buffer[0] != (unsigned char)(k + i) || buffer[4095] != (unsigned char)(k + i))
				fail("the file holds something else");
		}
		NEED(!access("/tmp/bench-file", R_OK) && !close(f) && !unlink("/tmp/bench-file"));
	}
	return 1;
}

const struct bench system_benches[] = {
	{"syscall", NULL, null_syscall}, {"fault", NULL, page_faults},  {"fork", NULL, fork_exit},
	{"exec", NULL, fork_exec},	 {"mmap", NULL, map_unmap},	{"pipe", NULL, pipes},
	{"signal", NULL, send_signals},	 {"socket", NULL, socket_copy}, {"file", NULL, files},
	{NULL, NULL, NULL},
};
