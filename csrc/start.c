/* SPDX-License-Identifier: Apache-2.0 */
/* REQUEST_START: from the message to a child that goes its own way. */
#include "clone.h"
#include "state.h"

/* Memory of one start, from the last one where there was one. */
struct arena *take_arena(void)
{
    struct arena *arena = launcher.free_arenas;
    long memory;
    if (arena != NULL) {
        launcher.free_arenas = arena->next;
        launcher.free_arena_count--;
        return arena;
    }
    memory =
        sys(__NR_mmap, 0, sizeof *arena, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory < 0 && memory > -4096 ? NULL : (struct arena *)memory;
}

void release_arena(struct arena *arena)
{
    if (arena->request.mapped > 0)
        (void)sys(__NR_munmap, arena->request.bytes, arena->request.mapped); /* ours, and whole */
    arena->request.mapped = 0;
    if (launcher.free_arena_count >= KEPT_ARENAS || is_claimed()) {
        (void)sys(__NR_munmap, arena, sizeof *arena); /* as above */
        return;
    }
    arena->next = launcher.free_arenas;
    launcher.free_arenas = arena;
    launcher.free_arena_count++;
}

struct joiner {
    struct arena *arena;
    struct clone_args args; /* of the child */
};

/* With our rights, which the child will not have: joins, makes it our child in there, and ends. */
static long join_and_clone(struct joiner *joiner)
{
    struct arena *arena = joiner->arena;
    const struct start *start = arena->request.start;
    const uint32_t *kinds = span_at(arena->request.bytes, start->joined);
    long result = begin_step(&arena->progress, start, STEP_JOIN);
    for (uint32_t i = 0; i < start->joined.count && result == 0; i++)
        result = sys(__NR_setns, arena->request.joined[i], kinds[i]);
    if (result < 0)
        return result;
    arena->progress.step = STEP_CLONE;
    return clone_onto(&joiner->args, arena->stack, STACK_SIZE, run_child, arena);
}

static void run_joiner(void *argument)
{
    struct joiner *joiner = argument;
    long result = join_and_clone(joiner);
    if (result < 0)
        joiner->arena->progress.error = (int32_t)-result;
    exit_process(result < 0);
}

/* A child in namespaces that are there. We sleep until the joiner, a copy of us, is gone. */
static long clone_inside(struct container *container, const struct clone_args *wanted)
{
    struct arena *arena = container->arena;
    struct clone_args args = {.flags = CLONE_VFORK, .exit_signal = SIGCHLD};
    struct joiner joiner = {arena, *wanted};
    long pid, pidfd;
    joiner.args.flags &= ~(uint64_t)CLONE_PIDFD; /* it would be the joiner's */
    joiner.args.flags |= CLONE_PARENT | CLONE_PARENT_SETTID;
    joiner.args.exit_signal = 0; /* with CLONE_PARENT it is the joiner's */
    joiner.args.parent_tid = (uint64_t)(uintptr_t)&arena->child.successor;
    arena->child.successor = 0;
    pid = clone_onto(&args, arena->helper_stack, SMALL_STACK, run_joiner, &joiner);
    if (pid < 0)
        return pid;
    (void)sys(__NR_wait4, pid, 0, WALL, 0); /* it has ended */
    pid = arena->child.successor;
    if (pid <= 0)
        return arena->progress.error != 0 ? -arena->progress.error : -ESRCH;
    pidfd = sys(NR_PIDFD_OPEN, pid, 0); /* ours, and not reaped */
    if (pidfd < 0) {
        (void)sys(__NR_kill, pid, SIGKILL); /* as above */
        (void)sys(__NR_wait4, pid, 0, WALL, 0);
        return pidfd;
    }
    container->pidfd = (int)pidfd;
    return pid;
}

static long clone_child(struct container *container)
{
    const struct start *start = container->arena->request.start;
    int sync[2];
    /* The mount namespace it makes itself, once there is a request: a copy of the mounts of then.
     */
    struct clone_args args = {.flags = (start->clone_flags & ~(uint64_t)CLONE_NEWNS) | CLONE_PIDFD,
                              .pidfd = (uint64_t)(uintptr_t)&container->pidfd,
                              .exit_signal = SIGCHLD};
    long pid = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync);
    if (pid < 0)
        return pid;
    if (start->flags & START_SHARE_MEMORY)
        args.flags |= CLONE_VM;
    if (container->cgroup > 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)container->cgroup;
    }
    if (start->clocks.count > 0) /* else they could not be set any more */
        args.flags &= ~(uint64_t)CLONE_NEWTIME;
    container->arena->child.sync = sync[1];
    pid = start->joined.count > 0
              ? clone_inside(container, &args)
              : clone_onto(&args, container->arena->stack, STACK_SIZE, run_child, container->arena);
    (void)close_fd(sync[1]);
    if (pid < 0)
        (void)close_fd(sync[0]);
    else
        container->sync = sync[0];
    return pid;
}

/* Close what the launcher has no more use for, whether a child has copies of it or not. */
void close_request(struct request *request)
{
    close_fds(request->stdio, STDIO_COUNT);
    close_fds(request->streams, STREAM_COUNT);
    close_fds(&request->word, 1);
    close_fds(&request->status, 1);
    close_fds(request->passed, request->passed_count);
    close_fds(request->joined, request->joined_count);
    close_fds(request->sources, request->source_count);
    close_fds(&request->channel, 1);
}

/* Unless the child is gone already, and its page says why: that is told once it is reaped. */
static void fail_container(struct container *container, struct progress *progress, long result)
{
    if (container->arena->progress.error != 0)
        return;
    progress->error = (int32_t)-result;
    container->failure = *progress;
    container->phase = PHASE_FAILED;
    kill_container(container, SIGKILL);
}

/* See await_maps(): it takes the child two system calls. */
static long await_dumpable(int sync)
{
    struct message message;
    uint8_t byte;
    return receive_message(sync, &byte, 1, 0, &message);
}

/* The ids are mapped, and the child may go on; or a mapper has begun to map them. */
long map_child(struct progress *progress, struct container *container)
{
    const struct request *request = &container->arena->request;
    long result = 0;
    if (request->start->flags & DUMPABLE_FLAGS)
        result = await_dumpable(container->sync);
    if (result == 0)
        result = map_ids(progress, request, container->pid, container->slot);
    if (result == 0 && request->start->flags & START_MAP_BY_PROGRAM)
        return start_mapper(container);
    return result < 0 ? result : send_message(container->sync, "", 1, 0, 0);
}

/* By which an init tells what became of the payload. */
static long open_status(struct container *container)
{
    struct request *request = &container->arena->request;
    int ends[2];
    long result;
    if ((request->start->flags & START_INIT) == 0)
        return 0;
    if (launcher.program < 0)
        return launcher.program;
    result = sys(__NR_pipe2, ends, O_CLOEXEC | O_NONBLOCK);
    if (result < 0)
        return result;
    container->status = ends[0];
    request->status = ends[1];
    request->program = launcher.program;
    return 0;
}

/* To a child that has its ids. */
static long give_request(struct container *container, struct progress *progress)
{
    struct request *request = &container->arena->request;
    long result = open_status(container);
    progress->step = STEP_INIT;
    if (result == 0)
        result = hand_over(progress, request, container->pid, container->slot, container->sync,
                           container->arena->helper_stack);
    if (result == 0 && (container->flags & START_QUIET) == 0) /* else SIGCHLD will do */
        result = watch(container->sync, EVENT_SYNC, (uint32_t)(container - launcher.containers));
    return result;
}

/* From here on the container reports for itself: when a step of ours fails its child is killed,
 * and the failure is told once it is reaped. */
static void prepare_container(struct container *container)
{
    struct progress progress = {.row = -1};
    int was_blank = container->phase == PHASE_BLANK;
    long result =
        watch(container->channel, EVENT_CHANNEL, (uint32_t)(container - launcher.containers));
    container->phase = PHASE_STARTING;
    container->flags = container->arena->request.start->flags;
    if (result == 0)
        result = limit_cgroup(container, &progress);
    if (result == 0 && !was_blank)
        result = map_child(&progress, container);
    if (result == 0 && container->mapper != 0)
        return; /* to mapper_ended() */
    if (result == 0)
        result = give_request(container, &progress);
    if (result == -EPIPE && was_blank) /* killed while it waited: the caller asks again */
        progress.step = STEP_HANDOVER;
    if (result < 0)
        fail_container(container, &progress, result);
    remember_kind(&container->arena->request);
    close_request(&container->arena->request);
}

void mapper_ended(struct container *container, uint32_t status)
{
    struct progress progress = {.step = STEP_ID_MAPS, .row = -1};
    long result = 0;
    container->mapper = 0;
    if (status != 0) {
        progress.row = status >> 8 == 1 ? 0 : 1; /* which of the programs */
        result = -EPERM;
    }
    if (result == 0)
        result = send_message(container->sync, "", 1, 0, 0);
    if (result == 0)
        result = give_request(container, &progress);
    if (result < 0 && container->phase != PHASE_FAILED)
        fail_container(container, &progress, result);
    close_request(&container->arena->request);
}

/* Another launcher's range is that one's. */
static int has_slot(int32_t slot)
{
    for (uint32_t i = 0; i < launcher.highest; i++)
        if (launcher.containers[i].phase != PHASE_FREE && launcher.containers[i].slot == slot)
            return 1;
    return 0;
}

static long find_ids(const struct start *start, int32_t *ret_slot)
{
    long slot;
    *ret_slot = -1;
    if (start->shared_slot > 0 && has_slot((int32_t)start->shared_slot))
        *ret_slot = (int32_t)start->shared_slot;
    if ((start->flags & START_LEASE) == 0)
        return 0;
    slot = take_slot();
    if (slot >= 0)
        *ret_slot = (int32_t)slot;
    return slot < 0 ? slot : 0;
}

static long clone_into_cgroup(struct container *container, struct progress *progress)
{
    const struct start *start = container->arena->request.start;
    long result = 0;
    if (start->flags & START_CGROUP)
        result = make_cgroup(container);
    if (result == 0)
        result = begin_step(progress, start, STEP_CLONE);
    if (result == 0)
        result = clone_child(container);
    if (result < 0)
        (void)remove_cgroup(container); /* nobody was in it */
    return result;
}

/* A container whose child waits for its maps. */
long clone_container(struct arena *arena, struct progress *progress, struct container **ret)
{
    struct container *container = find_slot();
    const struct start *start = arena->request.start;
    int32_t slot = -1;
    long result = begin_step(progress, start, STEP_LEASE);
    arena->progress = (struct progress){.row = -1};
    if (result == 0)
        result = find_ids(start, &slot);
    if (result == 0)
        result = begin_step(progress, start, STEP_CGROUP);
    if (result == 0 && container == NULL)
        result = -EAGAIN;
    if (result == 0) {
        *container = (struct container){.arena = arena,
                                        .pidfd = -1,
                                        .payload = -1,
                                        .status = -1,
                                        .sync = -1,
                                        .channel = -1,
                                        .slot = slot,
                                        .streams = {-1, -1, -1},
                                        .serial = ++launcher.serial,
                                        .shares_pids = (start->clone_flags & CLONE_NEWPID) == 0};
        arena->progress = (struct progress){.row = -1};
        result = clone_into_cgroup(container, progress);
    }
    if (result < 0) {
        if (arena->progress.step != STEP_NONE) /* of a joiner */
            progress->step = arena->progress.step;
        if (start->flags & START_LEASE)
            give_slot(slot);
        return result;
    }
    container->pid = (int32_t)result;
    launcher.alive++;
    *ret = container;
    return 0;
}

/* As above; where blank children hold all that there is, they have to make room. */
static long clone_or_make_room(struct arena *arena, struct progress *progress,
                               struct container **ret)
{
    long result = clone_container(arena, progress, ret);
    if (result != -EAGAIN)
        return result;
    drop_blanks();
    return clone_container(arena, progress, ret);
}

void prepare_request(struct request *request, uint8_t *bytes)
{
    request->start = (struct start *)bytes;
    request->bytes = bytes;
    request->channel = -1;
    request->source_count = 0;
    request->passed_count = 0;
    request->joined_count = 0;
    request->status = -1;
    for (int i = 0; i < STDIO_COUNT; i++)
        request->stdio[i] = -1;
    for (int i = 0; i < STREAM_COUNT; i++)
        request->streams[i] = -1;
    request->word = -1;
}

/* A blank child has memory of its own: give it the request. Both are arenas of the launcher's, and
 * everything that a request refers to lies in its bytes. */
static void move_request(struct arena *to, struct arena *from, size_t size)
{
    memcpy(to->bytes, from->bytes, size);
    memcpy(to->request.stdio, from->request.stdio, sizeof from->request.stdio);
    memcpy(to->request.sources, from->request.sources,
           from->request.source_count * sizeof from->request.sources[0]);
    to->request.source_count = from->request.source_count;
    memcpy(to->request.passed, from->request.passed, sizeof from->request.passed);
    to->request.passed_count = from->request.passed_count;
}

static long start_container(struct arena *arena, struct progress *progress)
{
    struct container *container = take_blank(&arena->request);
    long result;
    if (container != NULL) {
        move_request(container->arena, arena, arena->request.start->size);
        container->channel = arena->request.channel;
        release_arena(arena);
    } else {
        result = clone_or_make_room(arena, progress, &container);
        if (result < 0)
            return result;
        container->channel = arena->request.channel;
    }
    container->arena->request.channel = -1;
    /* Before the child may go on: whoever has not got this knows that nothing was run. */
    report_progress(container, REPORT_CLONED);
    prepare_container(container);
    return 0;
}

/* Sources beyond the first message wait on the channel, in messages of their own. */
static long receive_sources(struct request *request)
{
    static struct message message;
    uint8_t byte;
    while (request->source_count < request->start->source_count) {
        uint32_t left = request->start->source_count - request->source_count;
        long result = receive_message(request->channel, &byte, 1, MSG_DONTWAIT, &message);
        if (result == 0 && (message.fd_count == 0 || message.fd_count > left))
            result = -EINVAL;
        if (result < 0) {
            close_fds(message.fds, message.fd_count);
            return result == -EAGAIN ? -EINVAL : result;
        }
        memcpy(request->sources + request->source_count, message.fds,
               message.fd_count * sizeof(int));
        request->source_count += message.fd_count;
    }
    return 0;
}

/* Hand `count` fds of the message over to the request. */
static void take_fds(int *to, int *from, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        to[i] = from[i];
        from[i] = -1;
    }
}

typedef long check(const struct start *start, const uint8_t *bytes, size_t size);

static check *check_of(enum request_op op)
{
    return op == REQUEST_START ? check_start : op == REQUEST_EXEC ? check_exec : check_hook;
}

/* The fds of the first message: channel, [memfd], [stdio], passed, joined, sources. */
static long decode_start(struct request *request, struct message *message, enum request_op op)
{
    uint32_t first = request->start->flags & START_IN_MEMFD ? 2 : 1;
    size_t size = message->size;
    uint32_t sources, stdio, next;
    long result;
    if (message->fd_count < first)
        return -EINVAL;
    if (first == 2) {
        size = request->start->size;
        result = map_request(request, message->fds[1], size);
        if (result < 0)
            return result;
    }
    if (request->start->op != op)
        return -EINVAL; /* what is in the memfd is not what it was sent as */
    result = check_of(op)(request->start, request->bytes, size);
    if (result < 0)
        return result;
    stdio = request->start->flags & START_STREAMS ? 0 : STDIO_COUNT;
    next = first + stdio;
    if (message->fd_count < next)
        return -EINVAL;
    if (message->fd_count - next < request->start->passed.count + request->start->joined.count)
        return -EINVAL;
    sources =
        message->fd_count - next - request->start->passed.count - request->start->joined.count;
    if (sources > request->start->source_count)
        return -EINVAL;
    take_fds(request->stdio, message->fds + first, stdio);
    request->passed_count = request->start->passed.count;
    take_fds(request->passed, message->fds + next, request->passed_count);
    next += request->passed_count;
    request->joined_count = request->start->joined.count;
    take_fds(request->joined, message->fds + next, request->joined_count);
    next += request->joined_count;
    take_fds(request->sources, message->fds + next, sources);
    request->source_count = sources;
    return receive_sources(request);
}

void handle_start(struct message *message, enum request_op op)
{
    struct arena *arena = take_arena();
    struct request *request;
    struct progress progress = {.step = STEP_REQUEST, .row = -1};
    long result;
    if (arena == NULL) {
        report_failure(message->fds[0], STEP_REQUEST, -ENOMEM);
        close_fds(message->fds, message->fd_count);
        return;
    }
    memcpy(arena->bytes, launcher.buffer, message->size);
    request = &arena->request;
    prepare_request(request, arena->bytes);
    take_fds(&request->channel, message->fds, 1);
    result = message->size < sizeof(struct start) ? -EINVAL : decode_start(request, message, op);
    if (result == 0) /* the real check was made before a byte of the request was looked at */
        result = begin_step(&progress, request->start, STEP_RIGHTS);
    if (result == 0)
        result = begin_step(&progress, request->start, STEP_REQUEST);
    if (result == 0)
        result = (op == REQUEST_START ? start_container : exec_process)(arena, &progress);
    close_fds(message->fds, message->fd_count);
    if (result == 0)
        return;
    report_failure(request->channel, progress.step, result);
    close_request(request);
    release_arena(arena);
}
