/* SPDX-License-Identifier: Apache-2.0 */
/* REQUEST_START: from the message to a child that goes its own way. */
#include "clone.h"
#include "state.h"

/* Memory of one start, from the last one where there was one. */
static struct arena *take_arena(void)
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
    if (launcher.free_arena_count >= KEPT_ARENAS) {
        (void)sys(__NR_munmap, arena, sizeof *arena); /* as above */
        return;
    }
    arena->next = launcher.free_arenas;
    launcher.free_arenas = arena;
    launcher.free_arena_count++;
}

static long clone_child(struct container *container)
{
    const struct start *start = container->arena->request.start;
    int sync[2];
    struct clone_args args = {.flags = start->clone_flags | CLONE_PIDFD,
                              .pidfd = (uint64_t)(uintptr_t)&container->pidfd,
                              .exit_signal = SIGCHLD};
    long pid = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync);
    if (pid < 0)
        return pid;
    if (start->flags & START_SHARE_MEMORY)
        args.flags |= CLONE_VM;
    /* The files of a non-dumpable process in /proc belong to root: without root, its maps could
     * not be written. The child ends this for itself before it meets anything of the image. */
    if (start->flags & START_DENY_SETGROUPS)
        (void)sys(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); /* if not, the maps say so */
    container->arena->child.sync = sync[1];
    memcpy(container->arena->child.stdio, container->arena->request.stdio,
           sizeof container->arena->child.stdio);
    pid = clone_onto(&args, container->arena->stack, STACK_SIZE, run_child, container->arena);
    (void)sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* 0 is always accepted */
    (void)close_fd(sync[1]);
    if (pid < 0)
        (void)close_fd(sync[0]);
    else
        container->sync = sync[0];
    return pid;
}

/* From here on the container reports for itself: when a step of ours fails its child is killed,
 * and the failure is told once it is reaped. */
static void prepare_container(struct container *container, struct request *request)
{
    uint32_t slot = (uint32_t)(container - launcher.containers);
    struct progress progress = {.row = -1};
    long result = prepare_child(&progress, request, container->pid, container->sync,
                                container->arena->helper_stack);
    if (result < 0 && container->arena->progress.error != 0)
        result = 0; /* the child is gone already, and its page says why */
    if (result == 0)
        result = watch(container->channel, EVENT_CHANNEL, slot);
    if (result == 0 && (container->flags & START_QUIET) == 0) /* else SIGCHLD will do */
        result = watch(container->sync, EVENT_SYNC, slot);
    if (result == 0)
        return;
    progress.error = (int32_t)-result;
    container->failure = progress;
    container->phase = PHASE_FAILED;
    kill_container(container, SIGKILL);
}

static long start_container(struct arena *arena, struct progress *progress)
{
    struct container *container = find_slot();
    long result = begin_step(progress, arena->request.start, STEP_CLONE);
    if (result == 0 && container == NULL)
        result = -EAGAIN;
    if (result < 0)
        return result;
    *container = (struct container){
        .arena = arena, .pidfd = -1, .sync = -1, .channel = arena->request.channel};
    arena->progress = (struct progress){.row = -1};
    result = clone_child(container);
    if (result < 0)
        return result;
    arena->request.channel = -1; /* the container's now */
    container->pid = (int32_t)result;
    container->phase = PHASE_STARTING;
    launcher.alive++;
    container->flags = arena->request.start->flags;
    /* Before the child may go on: whoever has not got this knows that nothing was run. */
    report_progress(container, REPORT_CLONED);
    prepare_container(container, &arena->request);
    return 0;
}

/* Large requests come in a memfd that nobody can change or cut under us. */
static long map_request(struct request *request, int fd, size_t size)
{
    struct statx_record file;
    long seals = sys(__NR_fcntl, fd, F_GET_SEALS, 0);
    long memory;
    if (seals < 0 || (seals & SEALS_FIXED) != SEALS_FIXED || size > MAX_REQUEST)
        return -EINVAL;
    memory = sys(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC, &file);
    if (memory < 0 || file.size < size)
        return -EINVAL;
    memory = sys(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (memory < 0 && memory > -4096)
        return memory;
    request->bytes = (uint8_t *)memory;
    request->start = (struct start *)memory;
    request->mapped = size;
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

/* The fds of the first message: channel, [memfd], stdio, sources. */
static long decode_start(struct request *request, struct message *message)
{
    uint32_t first = request->start->flags & START_IN_MEMFD ? 2 : 1;
    size_t size = message->size;
    uint32_t sources;
    long result;
    if (message->fd_count < first + STDIO_COUNT)
        return -EINVAL;
    if (first == 2) {
        size = request->start->size;
        result = map_request(request, message->fds[1], size);
        if (result < 0)
            return result;
    }
    result = check_start(request->start, request->bytes, size);
    if (result < 0)
        return result;
    sources = message->fd_count - first - STDIO_COUNT;
    if (sources > request->start->source_count)
        return -EINVAL;
    take_fds(request->stdio, message->fds + first, STDIO_COUNT);
    take_fds(request->sources, message->fds + first + STDIO_COUNT, sources);
    request->source_count = sources;
    return receive_sources(request);
}

/* Close what the launcher has no more use for, whether a child has copies of it or not. */
static void close_request(struct request *request)
{
    close_fds(request->stdio, STDIO_COUNT);
    close_fds(request->sources, request->source_count);
    close_fds(&request->channel, 1);
}

void handle_start(struct message *message)
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
    request->start = (struct start *)arena->bytes;
    request->bytes = arena->bytes;
    request->source_count = 0;
    for (int i = 0; i < STDIO_COUNT; i++)
        request->stdio[i] = -1;
    take_fds(&request->channel, message->fds, 1);
    result = message->size < sizeof(struct start) ? -EINVAL : decode_start(request, message);
    if (result == 0) /* the real check was made before a byte of the request was looked at */
        result = begin_step(&progress, request->start, STEP_RIGHTS);
    if (result == 0)
        result = begin_step(&progress, request->start, STEP_REQUEST);
    if (result == 0)
        result = start_container(arena, &progress);
    if (result < 0)
        report_failure(request->channel, progress.step, result);
    close_fds(message->fds, message->fd_count);
    close_request(request);
    if (result < 0)
        release_arena(arena);
}
