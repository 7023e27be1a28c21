/* A disk that can lose its power: preloaded into a process, it keeps what was written to some files and when they were
 * synced, and ends the process at a given write.
 *
 *   POWERCUT_PREFIX   files whose path begins with it are watched
 *   POWERCUT_LOG      a record for each of their writes, truncations and syncs, in order: see `struct note`
 *   POWERCUT_AT       the number of the record at which the process is killed
 *
 * tools/journal_kills.py makes from it what a disk may hold after the power went: all that was synced, and of what was not,
 * any part. Only what SQLite uses is watched: pwrite, write, ftruncate, fsync, fdatasync; a rename is taken for synced. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct note {
    uint32_t kind;   /* 0 write, 1 truncate, 2 sync */
    uint32_t name;   /* bytes of the path that follow */
    uint64_t offset; /* or the new length */
    uint64_t length; /* bytes that follow the path */
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -2;
static unsigned long left;

static void raw(const void *data, size_t size) {
    if (syscall(SYS_write, log_fd, data, size) != (long)size)
        abort();
}

/* Keeps a record if the descriptor is of a watched file. */
static void note(int fd, uint32_t kind, uint64_t offset, const void *data, size_t length) {
    char link[64], path[4096];
    const char *prefix = getenv("POWERCUT_PREFIX"), *log = getenv("POWERCUT_LOG"), *at = getenv("POWERCUT_AT");
    if (!prefix || !log || !at)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0 || (path[size] = 0, strncmp(path, prefix, strlen(prefix)) != 0))
        return;
    pthread_mutex_lock(&mutex);
    if (log_fd == -2) {
        log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        left = strtoul(at, NULL, 10);
    }
    struct note head = {kind, (uint32_t)size, offset, length};
    raw(&head, sizeof head);
    raw(path, (size_t)size);
    raw(data, length);
    if (--left == 0)
        kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&mutex);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    note(fd, 0, (uint64_t)offset, data, size);
    return NEXT(pwrite64)(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    note(fd, 0, (uint64_t)offset, data, size);
    return NEXT(pwrite)(fd, data, size, offset);
}

ssize_t write(int fd, const void *data, size_t size) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at >= 0)
        note(fd, 0, (uint64_t)at, data, size);
    return NEXT(write)(fd, data, size);
}

int ftruncate64(int fd, off64_t length) {
    note(fd, 1, (uint64_t)length, NULL, 0);
    return NEXT(ftruncate64)(fd, length);
}

int ftruncate(int fd, off_t length) {
    note(fd, 1, (uint64_t)length, NULL, 0);
    return NEXT(ftruncate)(fd, length);
}

int fsync(int fd) {
    int status = NEXT(fsync)(fd);
    note(fd, 2, 0, NULL, 0);
    return status;
}

int fdatasync(int fd) {
    int status = NEXT(fdatasync)(fd);
    note(fd, 2, 0, NULL, 0);
    return status;
}
