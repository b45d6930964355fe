/* SPDX-License-Identifier: Apache-2.0 */
/* Containers: from their slot in the table to the report of their end. */
#include "state.h"

/* A report that the other side does not take is lost: its reader is gone. */
static void send_with_fds(int channel, const struct report *report, const int *fds, uint32_t count)
{
    if (channel >= 0)
        (void)send_message(channel, report, sizeof *report, fds, count);
}

void send_report(int channel, const struct report *report, int fd)
{
    send_with_fds(channel, report, &fd, fd >= 0);
}

void report_failure(int channel, enum step step, long result)
{
    struct report report = {
        .kind = REPORT_FAILED, .step = step, .error = (int32_t)-result, .row = -1};
    send_report(channel, &report, -1);
}

void kill_container(const struct container *container, int signal)
{
    (void)sys(NR_PIDFD_SEND_SIGNAL, container->pidfd, signal, 0, 0); /* or it is dead already */
}

/* A child that has not dropped our fds yet has a copy of the socket, so closing it would not take
 * it out of the epoll set. */
void close_watched(int *fd)
{
    if (*fd < 0)
        return;
    (void)sys(__NR_epoll_ctl, launcher.epoll, EPOLL_CTL_DEL, *fd, 0); /* or it is not in there */
    (void)close_fd(*fd);
    *fd = -1;
}

static void close_sync(struct container *container)
{
    launcher.unwatched -= container->unwatched != 0;
    container->unwatched = 0;
    close_watched(&container->sync);
    if (container->arena != NULL)
        release_arena(container->arena);
    container->arena = NULL;
}

/* A range of ids goes with the last container that has it. */
static void release_slot(const struct container *container)
{
    int kept = container->keeps_slot;
    for (uint32_t i = 0; i < launcher.highest && container->slot >= 0; i++) {
        struct container *other = &launcher.containers[i];
        if (other == container || other->phase == PHASE_FREE || other->slot != container->slot)
            continue;
        other->keeps_slot |= container->keeps_slot;
        kept = 1;
    }
    if (!kept)
        give_slot(container->slot);
}

/* Nothing of it is left, but for its place in the table and, of one that was not told of, that. */
void forget_container(struct container *container)
{
    close_watched(&container->sync);
    if (container->end.kind != 0)
        send_report(container->channel, &container->end, -1);
    close_watched(&container->channel);
    release_slot(container);
    container->phase = PHASE_FREE;
    launcher.alive--;
}

void free_container(struct container *container)
{
    close_sync(container);
    if (container->pidfd >= 0)
        (void)close_fd(container->pidfd);
    container->pidfd = -1;
    close_fds(&container->payload, 1);
    close_fds(&container->status, 1);
    close_fds(container->streams, STREAM_COUNT);
    if (become_line(container))
        return;
    drop_lines(container->serial);
    if (container->end.kind == 0)
        close_watched(&container->channel);
    forget_blank(container);
    forget_spare(container);
    if (!remove_cgroup(container)) {
        if (await_empty_cgroup(container)) {
            container->phase = PHASE_LEFT;
            container->pid = 0; /* somebody else's by now */
            return;
        }
        container->keeps_slot = 1; /* killed, but nobody will tell of their end */
    }
    forget_container(container);
}

/* The pidfd goes out at the start, while the child works: the caller can then kill even what has
 * taken its death signal off, should the launcher die. What was a spare can have done so only once
 * it runs, and is told of only then. */
static enum report_kind first_report(const struct container *container)
{
    return container->was_spare ? REPORT_STARTED : REPORT_CLONED;
}

static enum report_kind streams_report(const struct container *container)
{
    return container->tells_itself ? REPORT_CLONED : REPORT_STARTED;
}

void report_progress(struct container *container, enum report_kind kind)
{
    struct report report = {.kind = kind,
                            .pid = container->pid,
                            .row = -1,
                            .value = launcher.guard,
                            .serial = container->serial};
    int fds[1 + STREAM_COUNT];
    uint32_t count = 0;
    if (kind == first_report(container))
        fds[count++] = container->pidfd;
    for (int i = 0; i < STREAM_COUNT && kind == streams_report(container); i++)
        if (container->streams[i] >= 0)
            fds[count++] = container->streams[i];
    send_with_fds(container->channel, &report, fds, count);
    if (kind == streams_report(container))
        close_fds(container->streams, STREAM_COUNT); /* the caller's now */
}

/* What belongs to the caller goes on to it: we keep no copy, which would hold up a hangup. */
static void take_fd(struct container *container, enum child_word kind)
{
    struct report report = {.kind = kind == CHILD_LISTENER ? REPORT_LISTENER : REPORT_TERMINAL,
                            .row = -1};
    int *fd = &launcher.message.fds[0];
    if (kind == CHILD_PAYLOAD) {
        container->payload = *fd;
        *fd = -1;
    } else {
        send_report(container->channel, &report, *fd);
    }
    close_fds(launcher.message.fds, launcher.message.fd_count);
}

static void report_hook(const struct container *container, const struct progress *hook,
                        uint32_t status)
{
    struct report report = {.kind = REPORT_HOOK,
                            .step = hook->step,
                            .error = hook->error,
                            .row = hook->row,
                            .value = hook->value,
                            .wait_status = status};
    send_report(container->channel, &report, -1);
}

static void take_byte(struct container *container, enum child_word word)
{
    const struct arena *arena = container->arena;
    struct report report = {.kind = REPORT_HOOKS, .step = arena->progress.step, .row = -1};
    if (word == CHILD_HOOK) {
        report_hook(container, &arena->child.hook, arena->child.hook_status);
    } else if (word == CHILD_HOOKS) {
        container->at_hooks = 1;
        send_report(container->channel, &report, -1);
    } else if (container->phase == PHASE_STARTING) {
        report_progress(container, REPORT_CREATED);
        container->phase = PHASE_CREATED;
    }
}

/* What the child says before it has become the program; -EAGAIN: nothing, for now. */
static long take_word(struct container *container)
{
    struct message *message = &launcher.message;
    uint8_t byte;
    long result = receive_message(container->sync, &byte, 1, MSG_DONTWAIT, message);
    if (result < 0)
        return result;
    if (message->fd_count > 0)
        take_fd(container, byte);
    else
        take_byte(container, byte);
    return 0;
}

/* The sync socket has ended: the page tells whether by execve. */
static void settle_start(struct container *container)
{
    if (container->phase == PHASE_FAILED || container->sync < 0)
        return;
    while ((container->flags & START_QUIET) == 0 && take_word(container) == 0)
        ; /* its end may be known before what it said is read */
    if (container->arena->progress.step == STEP_EXEC && container->arena->progress.error == 0) {
        if ((container->flags & START_QUIET) == 0 && !container->tells_itself)
            report_progress(container, REPORT_STARTED);
        container->phase = PHASE_RUNNING;
        if (is_main(container))
            note_start(container);
    } else {
        container->failure = container->arena->progress;
        container->phase = PHASE_FAILED;
        kill_container(container, SIGKILL);
    }
    close_sync(container); /* it has left our memory: before its fds were closed */
}

void handle_sync(struct container *container)
{
    long result = take_word(container);
    if (result < 0 && result != -EAGAIN)
        settle_start(container);
}

/* What an init cannot pass on, such as SIGSTOP, arrives as well. */
void signal_payload(const struct container *container, int signal)
{
    int pidfd =
        container->payload >= 0 && signal != SIGKILL ? container->payload : container->pidfd;
    (void)sys(NR_PIDFD_SEND_SIGNAL, pidfd, signal, 0, 0); /* or it is dead already */
}

/* Its child runs it: one that has never had, nor gets here, more rights than the caller has. */
static void pass_hook(const struct container *container, uint32_t size)
{
    struct message *message = &launcher.message;
    struct progress failure = {.step = STEP_RIGHTS, .row = -1};
    long result = check_rights(launcher.caller);
    if (result == 0) {
        failure.step = STEP_REQUEST;
        result = container->at_hooks && message->fd_count == HOOK_FDS ? 0 : -EINVAL;
    }
    if (result == 0)
        result = send_message(container->sync, &size, sizeof size, message->fds, HOOK_FDS);
    failure.error = (int32_t)-result;
    if (result < 0)
        report_hook(container, &failure, 0);
}

static void let_go_on(struct container *container)
{
    if (!container->at_hooks && container->phase != PHASE_CREATED)
        return;
    if (!container->at_hooks)
        container->phase = PHASE_STARTING;
    container->at_hooks = 0;
    (void)send_message(container->sync, "", 1, 0, 0); /* fails if it died: SIGCHLD tells */
}

void handle_channel(struct container *container)
{
    struct command command = {0, 0};
    long result;
    if (container->phase == PHASE_LINE) {
        handle_line(container);
        return;
    }
    result = receive_message(container->channel, &command, sizeof command, MSG_DONTWAIT,
                             &launcher.message);
    if (result == 0 && command.op == COMMAND_HOOK)
        pass_hook(container, (uint32_t)command.value);
    close_fds(launcher.message.fds, launcher.message.fd_count);
    if (result == -EAGAIN || result == -E2BIG) /* nothing, or nothing that we know */
        return;
    if (result < 0) { /* nobody holds the other end any more */
        close_watched(&container->channel);
        if (!is_main(container) || container->phase == PHASE_CREATED)
            kill_container(container, SIGKILL);
    } else if (command.op == COMMAND_STOP && is_main(container)) {
        command_main(command.op, command.value);
    } else if (command.op == COMMAND_SIGNAL || command.op == COMMAND_STOP) {
        signal_payload(container, command.value);
    } else if (command.op == COMMAND_START) {
        let_go_on(container);
    }
}

static uint64_t microseconds(struct timeval_pair time)
{
    return (uint64_t)time.seconds * 1000000 + (uint64_t)time.microseconds;
}

/* Who ends a container finds nothing left, its control group included. With a PID namespace of its
 * own nothing lives by now, and run() need not wait for the removal. */
static int tells_at_once(const struct container *container)
{
    return container->cgroup <= 0 || (container->flags & START_QUIET && !container->shares_pids);
}

static void note_exit(struct container *container, uint32_t status,
                      const struct rusage_record *usage)
{
    int failed = container->phase == PHASE_FAILED;
    uint32_t told = 0;
    if (container->status >= 0 &&
        sys(__NR_read, container->status, &told, sizeof told) == sizeof told)
        status = told; /* else it was the init that died: as it did, then */
    container->end = (struct report){
        .kind = failed ? REPORT_FAILED : REPORT_EXITED,
        .pid = container->pid,
        .step = container->failure.step,
        .error = container->failure.error,
        .row = failed ? container->failure.row : -1,
        .value = container->failure.value,
        .wait_status = status,
        .user_time = microseconds(usage->user),
        .system_time = microseconds(usage->system),
        .max_rss = (uint64_t)usage->max_rss * 1024,
    };
    close_fds(&container->status, 1);
    read_cgroup(container, &container->end);
    if (is_main(container))
        note_end(&container->end);
    if (!tells_at_once(container))
        return;
    send_report(container->channel, &container->end, -1);
    container->end.kind = 0;
}

/* What was brought into a container ends with it. Those in its PID namespace have; without one of
 * its own it takes this. */
static void kill_members(const struct container *container)
{
    for (uint32_t i = 0; i < launcher.highest; i++) {
        const struct container *member = &launcher.containers[i];
        if (member->phase != PHASE_FREE && member->phase != PHASE_LINE &&
            member->target == container->serial)
            kill_container(member, SIGKILL);
    }
}

/* Reap whatever has ended, in any order. */
void handle_children(void)
{
    uint8_t info[128];
    (void)sys(__NR_read, launcher.child_signal, info, sizeof info); /* only wakes us */
    for (;;) {
        struct rusage_record usage;
        uint32_t status = 0;
        long pid = sys(__NR_wait4, -1, &status, WNOHANG | WALL, &usage);
        if (pid <= 0)
            return;
        if (pid == launcher.guard) /* somebody killed it */
            launcher.guard = start_guard() < 0 ? 0 : launcher.guard;
        note_after((int)pid);
        for (uint32_t i = 0; i < launcher.highest; i++) {
            struct container *container = &launcher.containers[i];
            if (container->phase != PHASE_FREE && container->mapper == pid)
                mapper_ended(container, status);
            if (container->phase == PHASE_FREE || container->pid != pid)
                continue;
            stop_mapper(container);
            settle_start(container);
            kill_members(container);
            close_fds(&container->payload, 1);
            close_fds(&container->pidfd, 1); /* before anybody is told and looks at our fds */
            note_exit(container, status, &usage);
            free_container(container);
        }
    }
}

/* One whose program runs. */
struct container *find_container(uint32_t serial)
{
    for (uint32_t i = 0; i < launcher.highest; i++) {
        struct container *container = &launcher.containers[i];
        if (container->phase == PHASE_RUNNING && container->serial == serial)
            return container;
    }
    return NULL;
}

/* One whose program runs, or is about to. */
/* From its first moment on, also between the gate and its program. */
struct container *find_living(uint32_t serial)
{
    for (uint32_t i = 0; i < launcher.highest; i++) {
        struct container *container = &launcher.containers[i];
        if (container->phase >= PHASE_STARTING && container->phase <= PHASE_RUNNING &&
            container->serial == serial)
            return container;
    }
    return NULL;
}

struct container *find_created(uint32_t serial)
{
    for (uint32_t i = 0; i < launcher.highest; i++) {
        struct container *container = &launcher.containers[i];
        if ((container->phase == PHASE_RUNNING || container->phase == PHASE_CREATED) &&
            container->serial == serial)
            return container;
    }
    return NULL;
}

struct container *find_slot(void)
{
    for (uint32_t i = 0; i < MAX_CONTAINERS; i++)
        if (launcher.containers[i].phase == PHASE_FREE) {
            launcher.highest = i < launcher.highest ? launcher.highest : i + 1;
            return &launcher.containers[i];
        }
    return NULL;
}
