// Programs of Debian's packages, run as they come. One iteration is one process; its standard output is the check.

#include "bench.h"
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// Runs `argv` with `input` (or nothing) as its standard input; the hash of what it prints.
static uint64_t run(char *const argv[], const char *input)
{
	int out = memfd_create("output", MFD_CLOEXEC);
	NEED(out >= 0);
	pid_t child = vfork();
	NEED(child >= 0);
	if (!child) {
		static char *env[] = {"PATH=/usr/bin", "LC_ALL=C", "HOME=/", NULL};
		if (input) {
			int in = open(input, O_RDONLY);
			if (in < 0 || dup2(in, 0) < 0)
				_exit(126);
		} else {
			close(0);
		}
		dup2(out, 1);
		execve(argv[0], argv, env);
		_exit(127);
	}
	int status;
	NEED(waitpid(child, &status, 0) == child);
	if (status)
		fail("%s ended with status %#x", argv[0], status);
	struct stat st;
	NEED(!fstat(out, &st));
	if (!st.st_size)
		fail("%s printed nothing", argv[0]);
	void *text = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, out, 0);
	NEED(text != MAP_FAILED);
	uint64_t h = hash(HASH_START, text, st.st_size);
	munmap(text, st.st_size);
	close(out);
	return h;
}

static uint64_t run_times(uint64_t n, char *const argv[], const char *input)
{
	uint64_t first = run(argv, input);
	for (uint64_t i = 1; i < n; i++)
		if (run(argv, input) != first)
			fail("%s printed something else the second time", argv[0]);
	return first;
}

// The one file that `pattern` names.
static char *file(const char *pattern)
{
	static glob_t g;
	if (glob(pattern, 0, NULL, &g) || !g.gl_pathc)
		skip(pattern);
	return g.gl_pathv[0];
}

static uint64_t sqlite(uint64_t n)
{
	char *argv[] = {"/usr/bin/sqlite3", "-batch", ":memory:", NULL};
	return run_times(n, argv, "/bench/sqlite.sql");
}

static uint64_t python(uint64_t n)
{
	char *argv[] = {file("/usr/bin/python3.[0-9]*"), "-I", "-S", "-B", "/bench/python.py", NULL};
	return run_times(n, argv, NULL);
}

static uint64_t cc1(uint64_t n)
{
	char *argv[] = {file("/usr/lib*/gcc/*/*/cc1"), "-quiet", "-fpreprocessed", "-O2", "/bench/cc1.i", "-o", "-", NULL};
	return run_times(n, argv, NULL);
}

static uint64_t gzip(uint64_t n)
{
	char *argv[] = {"/usr/bin/gzip", "-c", "-n", NULL};
	return run_times(n, argv, "/bench/gzip.in");
}

static uint64_t shell(uint64_t n)
{
	char *argv[] = {"/usr/bin/busybox", "sh", "/bench/shell.sh", NULL};
	return run_times(n, argv, NULL);
}

const struct bench package_benches[] = {
	{"sqlite", NULL, sqlite}, {"python", NULL, python}, {"cc1", NULL, cc1},
	{"gzip", NULL, gzip},     {"shell", NULL, shell},   {NULL, NULL, NULL},
};
