/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A launcher of one detached container: whose it is, and what is done when it ends.
 *
 * claimed    The directory of a container is ours: we hold the lock of a file in it. It is free
 *            again however we end, and tells everybody that nobody looks after it any more.
 * detached   The container, which waits at the gate, lives without the caller once that has started
 *            it; until then it does not. Its end is written to a file that is there
 *            already, so that it can be even where a disk is full, and told to the clients.
 * ended      What needs more than this does a program of the caller's choice, which is a client
 *            with the right to start the container again: after a delay, or when all is over.
 */
#include "clone.h"
#include "state.h"

enum stage { STAGE_NONE, STAGE_RUNNING, STAGE_DELAYED, STAGE_RESTARTING, STAGE_OVER };
enum { FD_AFTER = 3, HIGH_FD = 16, PROGRAM_FDS = 4 };

static struct {
    int top, directory, lock; /* 0: not claimed */
    int ending, manual;       /* 0: not detached */
    int lifetime, delay;      /* timers; 0: none */
    enum stage stage;
    int stopping; /* no other start */
    int after;    /* pid of the program; 0: none */
    uint32_t serial;
    uint64_t started_at;
    struct report report; /* of the last end */
    struct detach detach;
    char name[256];
    _Alignas(8) uint8_t bytes[MAX_DETACH];
} own;

int is_claimed(void)
{
    return own.lock > 0;
}

int is_main(const struct container *container)
{
    return own.stage == STAGE_RUNNING && container->serial == own.serial;
}

static void answer(enum report_kind kind, enum step step, long result)
{
    struct report report = {.kind = kind, .row = -1};
    if (result < 0)
        report_failure(launcher.message.fds[0], step, result);
    else
        send_report(launcher.message.fds[0], &report, -1);
    close_fds(launcher.message.fds, launcher.message.fd_count);
}

/* Claimed ---------------------------------------------------------------------------------------*/

static long take_claim(void)
{
    struct flock_record whole = {.type = F_WRLCK};
    int *fds = launcher.message.fds;
    long lock, result;
    if (is_claimed() || launcher.message.fd_count != 3)
        return -EINVAL;
    lock = sys(__NR_openat, fds[2], "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock < 0)
        return lock;
    result = sys(__NR_fcntl, lock, F_OFD_SETLK, &whole);
    if (result < 0) {
        (void)close_fd((int)lock);
        return result;
    }
    own.lock = (int)lock;
    own.top = fds[1];
    own.directory = fds[2];
    fds[1] = fds[2] = -1;
    return 0;
}

void handle_claim(size_t size)
{
    answer(REPORT_CLAIMED, STEP_REQUEST, size == sizeof(uint32_t) ? take_claim() : -EINVAL);
}

/* What lies in the directory beside these is not ours. */
static void remove_directory(void)
{
    static const char *const NAMES[] = {"socket", "log.1", "log", "ending", "state.json", "lock"};
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++)
        (void)sys(__NR_unlinkat, own.directory, NAMES[i], 0); /* it may lack, prune() comes along */
    (void)sys(__NR_unlinkat, own.top, own.name, AT_REMOVEDIR); /* as above */
}

/* The directory goes with us, if it is to. The lock is free before our sockets are closed: who
 * finds them so knows that nobody has it any more. An exit alone closes in no order. */
void leave_claim(void)
{
    if (!is_claimed())
        return;
    if (own.stage == STAGE_OVER && own.detach.flags & DETACH_REMOVE)
        remove_directory();
    (void)close_fd(own.lock);
}

/* Detached --------------------------------------------------------------------------------------*/

static long set_timer(int *timer, enum event event, uint64_t milliseconds)
{
    struct itimer_record time = {
        {0, 0}, {(int64_t)(milliseconds / 1000), (int64_t)(milliseconds % 1000) * 1000000}};
    long result;
    if (*timer <= 0) {
        result = sys(__NR_timerfd_create, CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
        if (result < 0)
            return result;
        *timer = (int)result;
        result = watch(*timer, event, 0);
        if (result < 0)
            return result;
    }
    result = sys(__NR_timerfd_settime, *timer, 0, &time, 0);
    return result < 0 ? result : 0;
}

/* 0 would be no time at all to a timer. */
static uint64_t at_least_one(uint64_t milliseconds)
{
    return milliseconds > 0 ? milliseconds : 1;
}

static int has_expired(int timer)
{
    uint64_t count;
    return sys(__NR_read, timer, &count, sizeof count) == sizeof count;
}

static void rewrite_vector(struct span vector)
{
    uint64_t *pointers = (uint64_t *)(own.bytes + vector.offset);
    for (uint32_t i = 0; i < vector.count; i++)
        pointers[i] = (uint64_t)(uintptr_t)string_at(own.bytes, (uint32_t)pointers[i]);
}

static long keep_request(const struct detach *detach)
{
    const char *name = string_at(launcher.buffer, detach->name);
    size_t length = 0;
    while (name[length] != 0)
        length++;
    if (length >= sizeof own.name)
        return -E2BIG;
    memcpy(own.name, name, length + 1);
    memcpy(own.bytes, detach, detach->size);
    own.detach = *detach;
    rewrite_vector(detach->args);
    rewrite_vector(detach->env);
    return 0;
}

/* The caller is nobody any more. */
static void leave_caller(void)
{
    int fds[] = {FD_CALLER, FD_CALLER_PIDFD, FD_CALLER_STATUS};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        close_watched(&fds[i]);
}

static long take_sources(uint32_t flags, uint32_t next)
{
    long result = 0;
    for (uint32_t i = 0; i < 2 && result == 0; i++) {
        if ((flags & (i == 0 ? DETACH_STDOUT : DETACH_STDERR)) == 0)
            continue;
        result = add_source(i, launcher.message.fds[next]);
        launcher.message.fds[next++] = -1;
    }
    return result;
}

static long take_files(void)
{
    int *fds = launcher.message.fds;
    long result = open_clients(fds[1]);
    fds[1] = -1;
    own.ending = fds[2];
    own.manual = fds[3];
    fds[2] = fds[3] = -1;
    if (result == 0 && own.detach.lifetime > 0)
        result = set_timer(&own.lifetime, EVENT_LIFETIME, own.detach.lifetime);
    return result;
}

static long detach_main(const struct detach *detach, struct container *container)
{
    uint32_t streams = !!(detach->flags & DETACH_STDOUT) + !!(detach->flags & DETACH_STDERR);
    uint32_t first = own.ending > 0 ? 1 : 4;
    long result;
    if (launcher.message.fd_count != first + streams)
        return -EINVAL;
    result = keep_request(detach);
    if (result == 0 && streams > 0)
        result = open_log(own.directory, own.detach.log_size);
    if (result == 0)
        result = take_sources(own.detach.flags, first);
    if (result == 0 && first > 1)
        result = take_files();
    if (result < 0)
        return result;
    own.serial = container->serial;
    own.stage = STAGE_RUNNING;
    own.started_at = microseconds_now();
    return 0;
}

void handle_detach(size_t size)
{
    const struct detach *detach = (const struct detach *)launcher.buffer;
    struct container *container = NULL;
    int first = own.ending <= 0;
    long result = check_detach(detach, launcher.buffer, size);
    if (result == 0)
        container = find_created(detach->serial);
    if (result == 0 && container == NULL)
        result = -ESRCH; /* it ended meanwhile */
    if (result == 0 && (!is_claimed() || own.stage == STAGE_RUNNING || own.stage == STAGE_OVER))
        result = -EINVAL;
    if (result == 0 && own.stopping)
        result = -ESRCH; /* while it was being started again */
    if (result == 0)
        result = detach_main(detach, container);
    answer(REPORT_DETACHED, STEP_REQUEST, result);
    if (result < 0)
        return;
    drop_blanks();
    if (first)
        leave_caller();
}

void describe_main(struct hello *hello, int *ret_fds, uint32_t *ret_count)
{
    const struct container *container = own.stage == STAGE_RUNNING ? find_living(own.serial) : NULL;
    hello->protocol = own.detach.protocol;
    hello->is_over = own.stage == STAGE_OVER;
    ret_fds[(*ret_count)++] = own.manual;
    if (container == NULL)
        return;
    hello->pid = container->pid;
    hello->serial = container->serial;
    ret_fds[(*ret_count)++] = container->pidfd;
}

/* Its program runs, perhaps not for the first time. */
void note_start(const struct container *container)
{
    const struct report report = {
        .kind = REPORT_STARTED, .pid = container->pid, .row = -1, .serial = container->serial};
    tell_clients(&report, container->pidfd);
}

void handle_lifetime(void)
{
    if (has_expired(own.lifetime))
        command_main(COMMAND_STOP, SIGKILL);
}

/* Ended -----------------------------------------------------------------------------------------*/

struct program {
    int fds[PROGRAM_FDS];
};

/* In our memory, in a process of its own. */
static void run_program(void *argument)
{
    struct program *program = argument;
    struct rlimit_pair files;
    uint64_t no_signal = 0;
    int high[PROGRAM_FDS];
    for (int i = 0; i < PROGRAM_FDS; i++)
        high[i] = (int)sys(__NR_fcntl, program->fds[i], F_DUPFD_CLOEXEC, HIGH_FD);
    for (int i = 0; i < PROGRAM_FDS; i++)
        if (sys(__NR_dup3, high[i], FD_AFTER + i, 0) < 0)
            exit_process(1);
    if (sys(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, &files) == 0) {
        files.soft = launcher.soft_files;
        (void)sys(__NR_prlimit64, 0, RLIMIT_NOFILE, &files, 0); /* it is lowered */
    }
    (void)sys(__NR_rt_sigprocmask, SIG_SETMASK, &no_signal, 0, sizeof no_signal); /* cannot fail */
    (void)sys(__NR_execve, *(char **)(own.bytes + own.detach.args.offset),
              own.bytes + own.detach.args.offset, own.bytes + own.detach.env.offset);
    exit_process(127);
}

static long clone_program(int socket)
{
    static _Alignas(16) uint8_t stack[SMALL_STACK];
    struct clone_args args = {.flags = CLONE_VM | CLONE_VFORK, .exit_signal = SIGCHLD};
    struct program program = {{socket, own.manual, own.directory, own.top}};
    if (own.detach.args.count == 0)
        return -EINVAL;
    return clone_onto(&args, stack, sizeof stack, run_program, &program);
}

/* Whether it runs: it is a client, of which we hear. */
static int start_program(void)
{
    int ends[2];
    long pid = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
    if (pid < 0)
        return 0;
    pid = clone_program(ends[1]);
    (void)close_fd(ends[1]);
    if (pid < 0) {
        (void)close_fd(ends[0]);
        return 0;
    }
    own.after = (int)pid;
    (void)add_client(ends[0], own.after, 1); /* or it finds its socket closed, and ends */
    return 1;
}

static void write_ending(void)
{
    const struct report *report = &own.report;
    struct ending ending = {
        .is_over = 1,
        .wait_status = report->wait_status,
        .ended_at = microseconds_now(),
        .user_time = report->user_time,
        .system_time = report->system_time,
        .max_rss = report->max_rss,
        .memory_peak = report->memory_peak,
        .pids_peak = report->pids_peak,
        .oom_kills = report->oom_kills,
    };
    (void)sys(__NR_pwrite64, own.ending, &ending, sizeof ending, 0); /* there is room for it */
}

static void conclude(void)
{
    own.stage = STAGE_OVER;
    write_ending();
    tell_clients(&own.report, -1);
    if ((own.detach.flags & DETACH_LAST_WORDS) == 0 || !start_program())
        launcher.ending = 1;
}

static int is_restarted(void)
{
    if (own.stopping)
        return 0;
    return own.detach.flags & DETACH_RESTART_ALWAYS ||
           (own.detach.flags & DETACH_RESTART_FAILURE && own.report.wait_status != 0);
}

void note_end(const struct report *report)
{
    uint64_t ran = (microseconds_now() - own.started_at) / 1000;
    uint64_t delay = ran >= own.detach.calm ? 0 : own.detach.delay;
    if (own.report.kind != REPORT_EXITED || report->kind == REPORT_EXITED)
        own.report = *report; /* a start that failed is no other end than the one before it */
    if (report->kind == REPORT_FAILED) /* it would fail again */
        own.stopping = 1;
    drain_logs();
    own.stage = STAGE_DELAYED;
    if (!is_restarted() || set_timer(&own.delay, EVENT_DELAY, at_least_one(delay)) < 0)
        conclude();
}

void handle_delay(void)
{
    if (!has_expired(own.delay) || own.stage != STAGE_DELAYED)
        return;
    own.stage = STAGE_RESTARTING;
    if (!start_program())
        conclude();
}

/* Somebody's child has ended; the program's end is the end of what it was to do. */
void note_after(int pid)
{
    if (own.after == 0 || pid != own.after)
        return;
    own.after = 0;
    if (own.stage == STAGE_RESTARTING)
        conclude();
    else if (own.stage == STAGE_OVER)
        launcher.ending = 1;
}

void command_main(enum command_op op, int signal)
{
    const struct container *container = own.stage == STAGE_RUNNING ? find_living(own.serial) : NULL;
    if (op == COMMAND_STOP)
        own.stopping = 1;
    if (container != NULL && signal > 0)
        signal_payload(container, signal);
    if (own.stopping && own.stage == STAGE_DELAYED)
        conclude();
}
