/* SPDX-License-Identifier: Apache-2.0 */
/* What the launcher's own files share. */
#ifndef CONTAINER_LAUNCHER_INTERNAL_H
#define CONTAINER_LAUNCHER_INTERNAL_H
#include "launcher.h"
#include "sys.h"

/* The fds that the caller leaves to the launcher; 0 to 2 are /dev/null. */
enum { FD_CALLER = 3, FD_CALLER_PIDFD = 4, FD_CALLER_STATUS = 5, FD_FIRST_FREE = 6 };

enum { STDIO_COUNT = 3, MAX_SOURCES = 1000, FIRST_FDS = 2 + STDIO_COUNT };

/* Where a child is. Shared between launcher and child, one page per start: a plain store gets
 * through even where a filter refuses write(2), and it outlives the child. */
struct progress {
    volatile uint32_t step;
    volatile int32_t error; /* a positive errno */
    volatile int32_t row;
    volatile int32_t value; /* STEP_EXEC: 1 when the file is there, but not its interpreter */
};

/* One decoded request and the fds that came with it. Nothing in it is trusted before
 * check_start(): see request.c. */
struct request {
    struct start *start;
    uint8_t *bytes;
    size_t mapped; /* > 0: bytes is a mapping of this size */
    int channel;
    int stdio[STDIO_COUNT];
    int sources[MAX_SOURCES]; /* in the launcher: what the caller opened, then the copies of it */
    uint32_t source_count;
};

struct message {
    size_t size;
    int fds[MAX_FDS];
    uint32_t fd_count;
    int32_t sender; /* pid; 0: not told */
};

/* message.c */
long receive_message(int socket, void *buffer, size_t size, int flags, struct message *message);
long send_message(int socket, const void *data, size_t size, const int *fds, uint32_t fd_count);
void close_fds(int *fds, uint32_t count);

/* request.c */
long check_start(const struct start *start, const uint8_t *bytes, size_t size);
long check_lease(const struct lease *lease, const uint8_t *bytes, size_t size);

/* prepare.c: the launcher's part of a start */
long begin_step(struct progress *progress, const struct start *start, enum step step);
long prepare_child(struct progress *progress, struct request *request, int pid, int sync);

/* child.c */
_Noreturn void run_child(struct request *request, struct progress *progress, int sync);

/* filesystem.c */
struct filesystem {
    const struct request *request;
    int *trees;           /* detached copies made by the launcher, by source index */
    int mounts[MAX_ROWS]; /* the mount that a row made, for rows that name it as base */
    int32_t row;
};
long build_filesystem(struct filesystem *fs);

static inline const char *string_at(const uint8_t *bytes, uint32_t offset)
{
    return (const char *)bytes + offset;
}

static inline const void *span_at(const uint8_t *bytes, struct span span)
{
    return bytes + span.offset;
}

#endif
