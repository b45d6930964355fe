/* SPDX-License-Identifier: Apache-2.0 */
/* The state of the launcher, for the files that make up its loop. */
#ifndef CONTAINER_STATE_H
#define CONTAINER_STATE_H
#include "internal.h"

enum { MAX_CONTAINERS = 4096, STATUS_SIZE = 65536, KEPT_ARENAS = 8 };

enum phase {
    PHASE_FREE,
    PHASE_BLANK,
    PHASE_STARTING,
    PHASE_CREATED,
    PHASE_RUNNING,
    PHASE_FAILED,
    PHASE_LEFT, /* reaped, but its control group is not empty yet */
    PHASE_LINE  /* only its channel is left: see line.c */
};

/* Of a control group; ~0: not known. */
struct oom {
    uint64_t limits; /* its own limit was met */
    uint64_t kills;
};

struct container {
    struct arena *arena; /* until execve */
    struct progress failure;
    struct oom before; /* an exec: what had happened when it was asked for */
    int32_t pid, pidfd, channel, sync;
    int32_t payload; /* START_INIT: pidfd of what the init is the init of; -1: none */
    int32_t status;  /* START_INIT: pipe with its wait status, once it has ended; -1: none */
    int32_t slot;    /* of host ids; -1: not leased */
    int keeps_slot;  /* processes may be left that have its ids: nobody gets it after that */
    int32_t cgroup;  /* fd of the directory of its control group; 0: it has none */
    int32_t mapper;  /* pid of the process that has its ids mapped; 0: none */
    uint32_t flags;  /* enum start_flag */
    uint32_t serial; /* never given twice */
    uint32_t target; /* an exec: the serial of its container, 0 for a process of somebody else's */
    int was_spare;   /* an exec: see spare.c */
    int streams[STREAM_COUNT]; /* START_STREAMS: the caller's ends, until it has them; -1 */
    int tells_itself;          /* an exec: its start is not for us to report: see line.c */
    int unwatched;             /* likewise: nor have we to hear of it at once */
    int shares_pids;   /* it has no PID namespace of its own, whose end would end all in it */
    struct report end; /* to be told once nothing of it is left; kind 0: it was told */
    int at_hooks;      /* START_HOOKS: its child waits for hooks */
    enum phase phase;
};

enum event {
    EVENT_CALLER,
    EVENT_CALLER_DEATH,
    EVENT_CHILD,
    EVENT_CHANNEL,
    EVENT_SYNC,
    EVENT_CGROUP,
    EVENT_LISTENER,
    EVENT_CLIENT,
    EVENT_LOG,
    EVENT_LIFETIME,
    EVENT_DELAY
};

/* The one state of the one thread. */
struct launcher {
    int epoll, child_signal;
    int caller;          /* its pid */
    int guard;           /* its pid, for a caller that has to reap it */
    int own_pidfd;       /* what the guard waits for */
    uint64_t soft_files; /* RLIMIT_NOFILE as the caller had it */
    int suid_dumpable;   /* the file of that sysctl; < 0: there is none */
    int program;         /* our own image, for an init; or -errno */
    int ending;          /* kill and go */
    int retired;         /* the caller's rights changed: no new containers */
    int closed;          /* retired, and the last request was refused */
    uint32_t highest;    /* slots at and above this one were never used */
    uint32_t alive;
    uint32_t unwatched; /* containers */
    uint32_t serial;    /* the last one that was given */
    size_t rights_size;
    struct container containers[MAX_CONTAINERS];
    uint8_t rights[STATUS_SIZE];
    uint8_t status[STATUS_SIZE];
    struct arena *free_arenas;
    uint32_t free_arena_count;
    struct message message;
    _Alignas(8) uint8_t buffer[MAX_INLINE];
};

extern struct launcher launcher;

/* launcher.c */
long watch(int fd, enum event event, uint32_t slot);
long start_guard(void);

/* rights.c */
long remember_rights(void);
long check_rights(int sender);
int has_our_rights(int process);

/* supervisor.c */
int is_claimed(void);
int is_main(const struct container *container);
void handle_claim(size_t size);
void handle_detach(size_t size);
void handle_lifetime(void);
void handle_delay(void);
void note_start(const struct container *container);
void note_end(const struct report *report);
void note_after(int pid);
void command_main(enum command_op op, int signal);
void describe_main(struct hello *hello, int *ret_fds, uint32_t *ret_count);
void leave_claim(void);

/* clients.c */
long open_clients(int listener);
long add_client(int socket, int pid, int starts);
void handle_listener(void);
void handle_client(uint32_t slot);
void tell_clients(const struct report *report, int fd);
void tell_followers(void);

/* log.c */
long open_log(int directory, uint64_t most);
long add_source(uint32_t number, int fd);
void handle_log(uint32_t number);
void drain_logs(void);
uint64_t microseconds_now(void);

/* containers.c */
void send_report(int channel, const struct report *report, int fd);
void report_failure(int channel, enum step step, long result);
void report_progress(struct container *container, enum report_kind kind);
struct container *find_slot(void);
struct container *find_container(uint32_t serial);
struct container *find_created(uint32_t serial);
struct container *find_living(uint32_t serial);
void free_container(struct container *container);
void forget_container(struct container *container);
void kill_container(const struct container *container, int signal);
void signal_payload(const struct container *container, int signal);
void close_watched(int *fd);
void handle_sync(struct container *container);
void handle_channel(struct container *container);
void handle_children(void);

/* cgroup.c */
void handle_place(size_t size);
long make_cgroup(struct container *container);
long limit_cgroup(struct container *container, struct progress *progress);
struct oom read_oom(const struct container *container);
void read_cgroup(const struct container *container, struct report *report);
int remove_cgroup(struct container *container);
int await_empty_cgroup(struct container *container);
int has_emptied(struct container *container);
void remove_place(void);
void clear_place(void);

/* lease.c */
long take_slot(void);
void give_slot(int32_t slot);
void handle_lease(size_t size);

/* start.c */
struct arena *take_arena(void);
void release_arena(struct arena *arena);
void prepare_request(struct request *request, uint8_t *bytes);
long map_child(struct progress *progress, struct container *container);
void mapper_ended(struct container *container, uint32_t status);
long clone_container(struct arena *arena, struct progress *progress, struct container **ret);
void close_request(struct request *request);
void handle_start(struct message *message, enum request_op op);

/* exec.c */
long exec_process(struct arena *arena, struct progress *progress);
long clone_spare(struct arena *arena, struct progress *progress, struct container **ret);

/* spare.c */
struct container *take_spare(const struct request *request);
void forget_spare(const struct container *container);
void drop_spares(void);
int has_spare(void);
int lacks_spare(void);
void make_spare(void);

/* line.c */
long make_streams(struct request *request);
void take_streams(struct container *container, struct request *request);
long open_line(const struct request *request);
int become_line(struct container *container);
void handle_line(struct container *line);
void drop_lines(uint32_t target);
void watch_late(void);

/* mapper.c */
long start_mapper(struct container *container);
void stop_mapper(struct container *container);

/* blank.c */
struct container *take_blank(const struct request *request);
int is_well(const struct container *blank);
void drop_child(struct container *blank);
void remember_kind(const struct request *request);
void forget_blank(const struct container *blank);
int blank_patience(int busy);
void make_blanks(void);
void drop_blanks(void);

#endif
