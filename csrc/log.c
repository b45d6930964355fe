/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log of a detached container: what comes out of two pipes, in pieces with a head each. It is
 * two files, each up to half of what was allowed: the full one takes the place of the older one. A
 * piece that cannot be stored whole (the disk is full) is let go of, which shows in the next head.
 */
#include "state.h"

enum { PIECE_SIZE = 16384, SOURCES = 2, MOST_LEFT = 1 << 20 };

static const char NAME[] = "log", OLDER[] = "log.1";

static struct {
    int directory;
    int file; /* 0: none */
    uint64_t size, most, offset;
    int sources[SOURCES]; /* < 0: none */
} logs = {.sources = {-1, -1}};

uint64_t microseconds_now(void)
{
    struct timespec_pair now = {0, 0};
    (void)sys(__NR_clock_gettime, CLOCK_REALTIME, &now); /* cannot fail */
    return (uint64_t)now.seconds * 1000000 + (uint64_t)now.nanoseconds / 1000;
}

static long open_file(void)
{
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    long fd = sys(__NR_openat, logs.directory, NAME, flags, 0600);
    logs.file = fd < 0 ? 0 : (int)fd;
    logs.size = 0;
    return fd < 0 ? fd : 0;
}

long open_log(int directory, uint64_t most)
{
    logs.directory = directory;
    logs.most = most;
    return logs.file > 0 ? 0 : open_file();
}

long add_source(uint32_t number, int fd)
{
    logs.sources[number] = fd;
    return watch(fd, EVENT_LOG, number);
}

static void rotate(void)
{
    if (logs.file > 0)
        (void)close_fd(logs.file);
    logs.file = 0;
    (void)sys(__NR_renameat2, logs.directory, NAME, logs.directory, OLDER, 0); /* or it is gone */
    (void)open_file(); /* if not, the next piece tries again */
}

/* A piece with its head, whole or not at all. */
static void store(const uint8_t *bytes, size_t size)
{
    long written;
    if (size > logs.most / 2) /* of a log that is not to be kept */
        return;
    if (logs.file <= 0 || logs.size + size > logs.most / 2)
        rotate();
    if (logs.file <= 0)
        return;
    written = sys(__NR_pwrite64, logs.file, bytes, size, logs.size);
    if (written == (long)size)
        logs.size += size;
    else
        (void)sys(__NR_ftruncate, logs.file, logs.size); /* or the next one is written over it */
}

/* Its size; 0: nothing now, < 0: nothing ever. */
static long copy_piece(uint32_t number)
{
    struct log_record *head = (struct log_record *)launcher.buffer;
    long size = sys(__NR_read, logs.sources[number], head + 1, PIECE_SIZE - sizeof *head);
    if (size == -EAGAIN || size == -EINTR)
        return 0;
    if (size <= 0)
        return -EPIPE;
    *head = (struct log_record){number + 1, (uint32_t)size, microseconds_now(), logs.offset};
    logs.offset += (uint64_t)size;
    store(launcher.buffer, sizeof *head + (size_t)size);
    return size;
}

void handle_log(uint32_t number)
{
    if (logs.sources[number] < 0)
        return;
    if (copy_piece(number) < 0)
        close_watched(&logs.sources[number]);
    else
        tell_followers();
}

/* The container has ended; somebody else may hold the other ends, and write for ever. */
void drain_logs(void)
{
    for (uint32_t number = 0; number < SOURCES; number++) {
        long left = MOST_LEFT, size = 1;
        while (logs.sources[number] >= 0 && left > 0 && size > 0) {
            size = copy_piece(number);
            left -= size;
        }
        close_watched(&logs.sources[number]);
    }
    tell_followers();
}
