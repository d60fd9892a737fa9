/* Preloaded into a gateway under test: a disk that is slow to sync, and a wall clock that somebody sets.
   The file named by FAULT_FILE holds two int64 of this machine: microseconds a sync takes, milliseconds of the clock's offset. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *faults(void) {
    static volatile int64_t *shared;
    if (!shared) {
        const char *path = getenv("FAULT_FILE");
        int file = path ? open(path, O_RDONLY) : -1;
        if (file < 0) abort();
        shared = mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
        close(file);
        if (shared == MAP_FAILED) abort();
    }
    return shared;
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (faults()[0]) usleep((useconds_t)faults()[0]);
    return real(file);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (faults()[0]) usleep((useconds_t)faults()[0]);
    return real(file);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (!failed && which == CLOCK_REALTIME) {
        int64_t ns = now->tv_nsec + faults()[1] % 1000 * 1000000;
        now->tv_sec += faults()[1] / 1000 + ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
        if (now->tv_nsec < 0) now->tv_nsec += 1000000000, now->tv_sec -= 1;
    }
    return failed;
}
