/* SPDX-License-Identifier: Apache-2.0 */
/* What the launcher's own files share. */
#ifndef CONTAINER_LAUNCHER_INTERNAL_H
#define CONTAINER_LAUNCHER_INTERNAL_H
#include "launcher.h"
#include "sys.h"

/* The fds that the caller leaves to the launcher; 0 to 2 are /dev/null. */
enum { FD_CALLER = 3, FD_CALLER_PIDFD = 4, FD_CALLER_STATUS = 5, FD_FIRST_FREE = 6 };

/* Of a launcher without root: its child is dumpable until the ids are mapped. */
enum { DUMPABLE_FLAGS = START_DENY_SETGROUPS | START_MAP_BY_PROGRAM };

enum { FILTER_SIZE = 8 }; /* of a struct sock_filter */

enum { STDIO_COUNT = 3, STREAM_COUNT = 3, STACK_SIZE = 32768, SMALL_STACK = 4096 };

/* Where a child is. In memory that it shares with the launcher: a plain store gets through even
 * where a filter refuses write(2), and outlives the child. */
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
    int streams[STREAM_COUNT]; /* START_STREAMS: the caller's ends of its pipes: see line.c */
    int word;                  /* the child's end of the last of them; -1: none */
    int sources[MAX_SOURCES];  /* in the launcher: what the caller opened, then the copies of it */
    uint32_t source_count;
    int passed[MAX_PASSED];
    uint32_t passed_count;
    int joined[MAX_JOINED];
    uint32_t joined_count;
    int status;  /* START_INIT: the pipe that takes the payload's wait status; -1: none */
    int program; /* START_INIT: the launcher's own image */
};

enum { MOST_FDS = 253 }; /* SCM_MAX_FD */

struct message {
    size_t size;
    int fds[MOST_FDS];
    uint32_t fd_count;
    int32_t sender; /* pid; 0: not told */
};

struct filesystem {
    const struct request *request;
    int *trees;           /* detached copies made by the launcher, by source index */
    int mounts[MAX_ROWS]; /* the mount that a row made, for rows that name it as base */
    int32_t row;
    int mask;     /* what masks are copies of; 0: not there yet */
    int late;     /* the file of the ROW_LATE row; 0: there is none */
    int terminal; /* 0: there is none */
    int master;   /* its other end, which is not for the container */
    const struct row *late_row;
};

/* What a child says to the launcher before it is a program: the first ones with an fd. */
enum child_word {
    CHILD_LISTENER = 1,
    CHILD_PAYLOAD,
    CHILD_TERMINAL,
    CHILD_CREATED,
    CHILD_HOOKS, /* it waits for hooks */
    CHILD_HOOK   /* one of them has ended: see `struct child` */
};

enum { HOOK_FDS = 1 + STDIO_COUNT }; /* of COMMAND_HOOK */

struct child {
    const struct request *request;
    const struct start *start;
    struct progress *progress;
    int sync;
    int stdio[STDIO_COUNT];
    int target;        /* exec: the pidfd of the process that is joined; 0: none */
    int target_root;   /* exec: what is / there, where a mount namespace does not say it; 0 */
    int cgroup;        /* exec: that of the container; 0: none */
    int cgroup_space;  /* exec: its namespace, where it is joined from inside; 0: none */
    uint64_t join;     /* exec: CLONE_NEW* */
    int32_t successor; /* exec: the process that goes on inside, once there is one */
    volatile int32_t listener;      /* of the filter, once it is loaded; 0 */
    volatile int32_t listener_sent; /* 1: not yet; 0, or a negative errno */
    int status;                     /* as in the request; 0: none */
    int program;                    /* likewise */
    int meeting[2];                 /* socket pair of an init and its payload */
    int passed[MAX_PASSED];
    uint32_t passed_count;
    int is_spare; /* exec: it waits for the program */
    int word;     /* exec: to be closed by execve, and written to before nothing but the end; 0 */
    struct progress hook;          /* of the last hook that it ran */
    volatile uint32_t hook_status; /* likewise, where that had no error */
    uint8_t *helper_stack;
    int trees[MAX_SOURCES];
    struct filesystem filesystem;
};

/*
 * What launcher and child of one start have in common, in memory that both see: the child may
 * share all of the launcher's (START_SHARE_MEMORY), so nothing that it uses until execve may be
 * the launcher's own. Kept for the next start when the child is through.
 */
struct arena {
    struct arena *next;
    struct progress progress;
    struct request request;
    struct child child;
    _Alignas(16) uint8_t stack[STACK_SIZE];
    _Alignas(16) uint8_t helper_stack[SMALL_STACK];
    _Alignas(8) uint8_t bytes[MAX_INLINE];
    _Alignas(8) uint8_t late[MAX_INLINE]; /* of a spare: the request, which bytes is not yet */
};

/* message.c */
long receive_message(int socket, void *buffer, size_t size, int flags, struct message *message);
long send_message(int socket, const void *data, size_t size, const int *fds, uint32_t fd_count);
void close_fds(int *fds, uint32_t count);

/* request.c */
long check_start(const struct start *start, const uint8_t *bytes, size_t size);
long check_exec(const struct start *start, const uint8_t *bytes, size_t size);
long check_hook(const struct start *start, const uint8_t *bytes, size_t size);
long check_lease(const struct lease *lease, const uint8_t *bytes, size_t size);
long check_place(const struct place *place, const uint8_t *bytes, size_t size);
long check_detach(const struct detach *detach, const uint8_t *bytes, size_t size);

/* memfd.c */
long map_request(struct request *request, int fd, size_t size);

/* prepare.c: the launcher's part of a start */
long begin_step(struct progress *progress, const struct start *start, enum step step);
void give_pipes(const struct request *request, int32_t slot);
long map_ids(struct progress *progress, const struct request *request, int pid, int32_t slot);
long hand_over(struct progress *progress, struct request *request, int pid, int32_t slot, int sync,
               uint8_t *helper_stack);

/* proc.c */
enum { PROC_PATH_SIZE = 64 };
char *append(char *at, const char *text);
char *append_number(char *at, uint32_t number);
long open_proc(int pid, const char *name, int flags);
long write_proc(int pid, const char *name, const void *data, size_t size);

/* idmap.c */
long open_mapped_namespace(const char *maps, uint8_t *stack);

/* procfs.c */
long mount_shared_procfs(const struct request *request, const struct row *row, uint8_t *stack);

/* attributes.c */
void reset_attributes(void);
long set_scheduling(const struct request *request, struct progress *progress, int pid);
long raise_limits(const struct request *request, struct progress *progress, int pid);
long write_oom_score(const struct start *start, int pid);

/* filesystem.c */
long open_below(int base, const char *path, uint64_t flags, uint64_t resolve);
long refuse_root(const struct filesystem *fs, int target);
char *row_target(struct filesystem *fs, const struct row *row);
size_t component_start(const char *path, size_t end);
long set_mount(int mount, const struct row *row, struct mount_attr *attr);
const char *next_string(const char *at);
long make_mount(const struct request *request, const struct row *row, const char *type);
long attach_mount(struct filesystem *fs, const struct row *row, int mount);
long build_filesystem(struct filesystem *fs);

/* layers.c: rows that make a root of several directories */
long overlay_row(struct filesystem *fs, const struct row *row);
long handle_row(struct filesystem *fs, const struct row *row);
long attributes_row(const struct filesystem *fs, const struct row *row);

/* names.c */
long name_row(struct filesystem *fs, const struct row *row);

/* terminal.c */
long terminal_row(struct filesystem *fs, const struct row *row);
long console_row(struct filesystem *fs, const struct row *row);
long open_terminal(struct filesystem *fs, int directory);
long take_terminal(struct child *child);
long control_terminal(const struct child *child);

/* landlock.c */
long confine(const struct request *request, struct progress *progress);

/* walls.c: rows that take something away from what is there */
long mask_row(struct filesystem *fs, const struct row *row);
long read_only_row(struct filesystem *fs, const struct row *row);
long write_row(struct filesystem *fs, const struct row *row);
long write_late(struct filesystem *fs);

/* child.c */
void run_child(void *arena); /* does not return */

/* init.c */
int is_init(const char *name);
_Noreturn void init_main(void);

/* exec.c */
void run_exec(void *arena); /* does not return */

static inline const char *string_at(const uint8_t *bytes, uint32_t offset)
{
    return (const char *)bytes + offset;
}

static inline const void *span_at(const uint8_t *bytes, struct span span)
{
    return bytes + span.offset;
}

#endif
