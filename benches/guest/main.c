// The driver of the guest benchmark. As the first process of a guest (/init) it mounts what is needed, runs the programs
// that the kernel's command line names (bench=NAME:ITERATIONS,...), and powers off; with bench=- it takes one NAME:ITERATIONS
// a line from the console until a line says "end"; without bench= it gives a shell. On a host it runs the list it is given,
// or "-", in the same root: init --root DIR NAME:ITERATIONS,...
//
// Each program is a process of its own and prints one line: bench NAME SECONDS CPU-SECONDS ITERATIONS CHECK, or bench NAME failed
// WHY, or bench NAME skipped WHY.

#include "bench.h"
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

// A program that takes longer has failed.
#define LIMIT_SECONDS 300

static const struct bench *const files[] = {
	integer_benches, coremark_benches, float_benches, simd_benches, crypto_benches, control_benches,
	code_benches, memory_benches, system_benches, thread_benches, package_benches,
};
static const char *current = "?";

static _Noreturn void end(const char *how, const char *format, va_list args)
{
	char why[512];
	vsnprintf(why, sizeof why, format, args);
	for (char *p = why; *p; p++)
		if (*p == '\n')
			*p = ' ';
	// Not through stdio: the caller may be a child or a thread.
	dprintf(1, "bench %s %s %s\n", current, how, why);
	_exit(3);
}

_Noreturn void fail(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	end("failed", format, args);
}

static _Noreturn void skip_formatted(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	end("skipped", format, args);
}

_Noreturn void skip(const char *why)
{
	skip_formatted("%s", why);
}

_Noreturn void need_failed(const char *what)
{
	fail("%s: %s", what, strerror(errno));
}

uint64_t hash(uint64_t h, const void *data, size_t len)
{
	const unsigned char *p = data;
	for (size_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 0x100000001b3u;
	return h;
}

uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1du;
}

void *map_pages(size_t bytes, int protection)
{
	void *p = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(p != MAP_FAILED);
	// A kernel that has no large pages refuses, which is as well.
	madvise(p, bytes, MADV_NOHUGEPAGE);
	return p;
}

int has_feature(unsigned leaf, int reg, int bit)
{
	unsigned r[4];
	return __get_cpuid_count(leaf, 0, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}

static const struct bench *find(const char *name)
{
	for (size_t f = 0; f < sizeof files / sizeof *files; f++)
		for (const struct bench *b = files[f]; b->name; b++)
			if (!strcmp(b->name, name))
				return b;
	return NULL;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double of_timeval(struct timeval t)
{
	return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

// Processor time of this process and of the children that it has waited for.
static double cpu_seconds(void)
{
	struct rusage self, children;
	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &children);
	return of_timeval(self.ru_utime) + of_timeval(self.ru_stime) + of_timeval(children.ru_utime) +
	       of_timeval(children.ru_stime);
}

// In a child.
static _Noreturn void run_child(const char *name, uint64_t n)
{
	setpgid(0, 0);
	current = name;
	const struct bench *b = find(name);
	if (!b)
		fail("there is no such program");
	alarm(LIMIT_SECONDS);
	if (b->setup)
		b->setup();
	double cpu_began = cpu_seconds(), began = now();
	uint64_t check = b->run(n);
	double took = now() - began, cpu = cpu_seconds() - cpu_began;
	dprintf(1, "bench %s %.9f %.6f %llu %016llx\n", name, took, cpu, (unsigned long long)n, (unsigned long long)check);
	_exit(0);
}

// Runs one NAME:ITERATIONS; whether it went well.
static int run_one(char *item)
{
	char *colon = strchr(item, ':');
	uint64_t n = 0;
	if (colon) {
		*colon = 0;
		n = strtoull(colon + 1, NULL, 10);
	}
	current = item;
	if (!n) {
		dprintf(1, "bench %s failed no number of iterations is given: write %s:N\n", item, item);
		return 0;
	}
	pid_t child = fork();
	NEED(child >= 0);
	if (!child)
		run_child(item, n);
	int status;
	NEED(waitpid(child, &status, 0) == child);
	// What it may have left.
	kill(-child, SIGKILL);
	if (WIFSIGNALED(status))
		dprintf(1, "bench %s failed signal %d (%s)\n", item, WTERMSIG(status), strsignal(WTERMSIG(status)));
	return status == 0;
}

static int run_list(const char *list)
{
	char *copy = strdup(list), *rest = copy, *item;
	int good = 1;
	while ((item = strsep(&rest, ",")))
		if (*item)
			good &= run_one(item);
	free(copy);
	return good;
}

// Takes one NAME:ITERATIONS a line from standard input.
static int serve(void)
{
	// Of a console only what we say should come back.
	struct termios t;
	if (!tcgetattr(0, &t)) {
		t.c_lflag &= ~(tcflag_t)(ECHO | ISIG);
		tcsetattr(0, TCSANOW, &t);
	}
	dprintf(1, "bench: ready\n");
	char line[256];
	int good = 1;
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\r\n")] = 0;
		if (!strcmp(line, "end"))
			break;
		if (*line)
			good &= run_one(line);
	}
	return good;
}

static int run_all(const char *list)
{
	return strcmp(list, "-") ? run_list(list) : serve();
}

// A shell on the console, for work by hand.
static void shell(void)
{
	pid_t child = fork();
	if (!child) {
		setsid();
		int tty = open("/dev/ttyS0", O_RDWR);
		ioctl(tty, TIOCSCTTY, 0);
		for (int fd = 0; fd < 3; fd++)
			dup2(tty, fd);
		setenv("PATH", "/usr/bin:/usr/sbin", 1);
		chdir("/bench");
		execl("/usr/bin/busybox", "sh", "-c", "busybox --install -s /usr/bin; exec sh -l", (char *)NULL);
		_exit(127);
	}
	int status;
	while (waitpid(-1, &status, 0) != child)
		;
}

static _Noreturn void init_main(void)
{
	static const char up[] = "bench: up\n";
	if (write(1, up, sizeof up - 1) < 0)
		_exit(1);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	mkdir("/dev/shm", 01777);
	mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
	const char *list = getenv("bench");
	if (list)
		run_all(list);
	else
		shell();
	static const char done[] = "bench: end\n";
	if (write(1, done, sizeof done - 1) < 0)
		_exit(1);
	// Power off must not eat what the serial port still holds.
	fsync(1);
	usleep(50000);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

// Keeps to as many processors as the guest that this is compared with has: programs that hand over to one another
// run otherwise on one than on two.
static void pin(int n)
{
	cpu_set_t all, some;
	CPU_ZERO(&some);
	if (sched_getaffinity(0, sizeof all, &all))
		return;
	for (int cpu = CPU_SETSIZE - 1; cpu >= 0 && n > 0; cpu--)
		if (CPU_ISSET(cpu, &all)) {
			CPU_SET(cpu, &some);
			n--;
		}
	if (sched_setaffinity(0, sizeof some, &some))
		fprintf(stderr, "bench: cannot keep to some processors: %s\n", strerror(errno));
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd >= 0 && write(fd, text, strlen(text)) < 0)
		perror(path);
	if (fd >= 0)
		close(fd);
}

// Makes DIR the root, in name spaces of our own if we are not root. With a tmpfs as /tmp where that is allowed: a guest
// has it so.
static void enter(const char *dir)
{
	char users[64], groups[64];
	int root = geteuid() == 0;
	snprintf(users, sizeof users, "0 %d 1", (int)geteuid());
	snprintf(groups, sizeof groups, "0 %d 1", (int)getegid());
	if (!unshare(CLONE_NEWNS | (root ? 0 : CLONE_NEWUSER))) {
		if (!root) {
			put("/proc/self/setgroups", "deny");
			put("/proc/self/uid_map", users);
			put("/proc/self/gid_map", groups);
		}
		mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
		char tmp[4096];
		snprintf(tmp, sizeof tmp, "%s/tmp", dir);
		if (mount("tmpfs", tmp, "tmpfs", 0, NULL))
			fprintf(stderr, "bench: no tmpfs as /tmp here: %s\n", strerror(errno));
	}
	if (chroot(dir) || chdir("/")) {
		fprintf(stderr, "bench: cannot make %s the root: %s\n", dir, strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	if (getpid() == 1)
		init_main();
	// What the exec program runs.
	if (argc == 2 && !strcmp(argv[1], "true"))
		return 0;
	while (argc > 3) {
		if (!strcmp(argv[1], "--root"))
			enter(argv[2]);
		else if (!strcmp(argv[1], "--cpus"))
			pin(atoi(argv[2]));
		else
			break;
		argv += 2;
		argc -= 2;
	}
	if (argc != 2) {
		fprintf(stderr, "usage: init [--cpus N] [--root DIR] NAME:ITERATIONS,...\n");
		return 2;
	}
	return !run_all(argv[1]);
}
