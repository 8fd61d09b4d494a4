// A clock that is wrong by the number of seconds in a file, for a program that asks the C library for the time. The
// file is mapped, so that a change of it is a jump of the clock. The monotonic clock stays right, as on a machine whose
// clock is set. It allocates nothing and calls nothing but the kernel: allocators ask for the time themselves.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offset;

__attribute__((constructor)) static void open_clock(void) {
	int fd = open(getenv("FERRY_TEST_CLOCK"), O_RDONLY);
	offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
}

int clock_gettime(clockid_t id, struct timespec *t) {
	int r = syscall(SYS_clock_gettime, id, t);
	if (offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
		t->tv_sec += *offset;
	}
	return r;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
	struct timespec now;
	int r = clock_gettime(CLOCK_REALTIME, &now);
	t->tv_sec = now.tv_sec;
	t->tv_usec = now.tv_nsec / 1000;
	return r;
}

time_t time(time_t *t) {
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (t) {
		*t = now.tv_sec;
	}
	return now.tv_sec;
}
