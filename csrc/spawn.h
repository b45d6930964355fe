/* SPDX-License-Identifier: Apache-2.0 */
/* What the extension module offers to Python: read by build_ffi.py like launcher.h. */
#ifndef CONTAINER_SPAWN_H
#define CONTAINER_SPAWN_H
#include "launcher.h"

#include <stdint.h>

/* The fds that a new launcher gets; the caller keeps its own copies. */
struct spawn {
    int32_t program; /* the launcher's image: sealed memfd, or a private file */
    int32_t socket;
    int32_t caller_pidfd;
    int32_t caller_status; /* /proc/self/status */
    int32_t join;          /* CLONE_NEW*: namespaces that this thread has left, to be re-entered */
    int32_t error;         /* set: a positive errno, or 0 */
};

/* Start the launcher as nobody's child; return its pid, or -1 with spawn->error set. */
int spawn_launcher(struct spawn *spawn);

/* openat2 of `path` in a root of its own, without magic links, O_PATH; an fd, or -errno. */
int open_below(int root, const char *path);

/* setns(2); a positive errno, or 0. */
int join_namespace(int fd, int kind);

enum creation { CREATE_FILE, CREATE_DIRECTORY, CREATE_LINK };

/* Make `name`, which must not be there, in an O_PATH directory, as somebody with these ids and our
 * capabilities; mode 0600 or 0700. An fd of a file, else 0, or -errno. */
int create_as(int directory, const char *name, enum creation kind, const char *link, uint32_t uid,
              uint32_t gid);

/* The f_type of its file system, statfs(2), or -errno. */
int64_t file_system_type(int fd);

enum { ANSWER_FDS = 4 };

/* A report of the launcher's, with its fds, all above 2. */
struct answer {
    struct report report;
    int32_t fds[ANSWER_FDS];
    uint32_t fd_count;
    int32_t word; /* of the command itself: see await_word() */
};

/* Send a request on a channel and wait for the first report. 0, or -errno: -EPIPE where there is
 * nobody any more, -EINTR where it is sent, and a signal has come before the report. Where that
 * brings the pipe of a command that tells itself, this waits for that too. */
int ask(int channel, const void *request, uint64_t size, struct answer *ret_answer);

/* Wait for a report; at most for `timeout` milliseconds, -1: for ever. 0, or -errno: -EPIPE at the
 * end of the other side, -EAGAIN, -EINTR. */
int hear(int channel, int timeout, struct answer *ret_answer);

/* 0: it runs, or was killed; 1: it fails, or -errno: -EINTR, to be asked again; -EAGAIN is none's.
 */
int await_word(int pipe);

const void *launcher_image(void);
uint64_t launcher_image_size(void);
#endif
