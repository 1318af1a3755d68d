/* A machine with any clock, or with a disk that knows no locks. A program under test loads this before the C library.
 * CLOCK_STARTS_AT is the time when the machine starts, in seconds since 1970; the clock goes on from there. With NO_LOCKS,
 * files can't be locked. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {
  const char *start = getenv("CLOCK_STARTS_AT");
  if (!start || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return syscall(SYS_clock_gettime, id, now);
  if (syscall(SYS_clock_gettime, CLOCK_MONOTONIC, now)) return -1;
  now->tv_sec += strtoll(start, NULL, 10);
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *out) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (out) *out = exact.tv_sec;
  return exact.tv_sec;
}

int flock(int file, int operation) {
  if (!getenv("NO_LOCKS")) return syscall(SYS_flock, file, operation);
  errno = ENOLCK;
  return -1;
}
