/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks that run inside: programs that the caller sends while the child waits for them, before it
 * has pivoted (STEP_CREATE_HOOKS: in the namespaces of the container, with the paths of the host)
 * and before it becomes the program (STEP_START_HOOKS: in the root of the container).
 *
 * Each is a request of its own, which says what it runs with: the child makes a copy of itself that
 * goes through HOOK_SEQUENCE with that, and sleeps until it ends. What runs too long is ended with
 * the whole container, whose first process the child is.
 */
#include "child.h"
#include "clone.h"

enum { HOOK_STACK_SIZE = 16384 };

/* In memory that the child and its copy share. */
struct hook {
    struct progress progress;
    struct request request;
    struct child child;
    _Alignas(16) uint8_t stack[HOOK_STACK_SIZE];
};

static const struct child_step HOOK_SEQUENCE[] = {
    {STEP_SESSION, enter_session},
    {STEP_RLIMITS, set_rlimits},
    {STEP_SECCOMP_EARLY, filter_early},
    {STEP_BOUNDING, drop_bounding},
    {STEP_IDS, set_ids},
    {STEP_CAPABILITIES, set_capabilities},
    {STEP_NO_NEW_PRIVS, forbid_new_privileges},
    {STEP_CWD, enter_cwd},
    {STEP_FDS, place_fds},
    {STEP_LANDLOCK, confine_by_rules},
    {STEP_SECCOMP, filter_last},
    {STEP_EXEC, execute},
};

static void run_hook(void *argument)
{
    struct hook *hook = argument;
    run_steps(&hook->child, HOOK_SEQUENCE, sizeof HOOK_SEQUENCE / sizeof HOOK_SEQUENCE[0]);
}

/* Returns its pid, when it has become the program or has failed. */
static long start_hook(struct hook *hook, const struct child *child, const int *fds, size_t size)
{
    struct clone_args args = {.flags = CLONE_VFORK, .exit_signal = SIGCHLD};
    struct request *request = &hook->request;
    long result;
    hook->progress = (struct progress){.step = STEP_REQUEST, .row = -1};
    result = map_request(request, fds[0], size);
    if (result == 0)
        result = check_hook(request->start, request->bytes, size);
    if (result < 0)
        return result;
    hook->child.request = request;
    hook->child.start = request->start;
    hook->child.progress = &hook->progress;
    hook->child.sync = child->sync;
    memcpy(hook->child.stdio, fds + 1, sizeof hook->child.stdio);
    return clone_onto(&args, hook->stack, HOOK_STACK_SIZE, run_hook, hook);
}

/* What became of it is in `child` then. */
static long await_hook(struct child *child, struct hook *hook, const int *fds, size_t size)
{
    uint32_t status = 0;
    long pid = start_hook(hook, child, fds, size);
    if (pid < 0)
        hook->progress.error = (int32_t)-pid;
    else
        (void)sys(__NR_wait4, pid, &status, WALL, 0); /* ours, and not reaped */
    child->hook = hook->progress;
    child->hook_status = status;
    if (hook->request.mapped > 0)
        (void)sys(__NR_munmap, hook->request.bytes, hook->request.mapped); /* ours, and whole */
    return send_message(child->sync, &(uint8_t){CHILD_HOOK}, 1, 0, 0);
}

static long take_hook(struct child *child, const struct message *message, size_t size)
{
    const int memory = MAP_SHARED | MAP_ANONYMOUS;
    struct hook *hook;
    long result = message->fd_count == HOOK_FDS ? 0 : -EPROTO;
    if (result == 0)
        result = sys(__NR_mmap, 0, sizeof *hook, PROT_READ | PROT_WRITE, memory, -1, 0);
    if (result < 0 && result > -4096)
        return result;
    hook = (struct hook *)result;
    result = await_hook(child, hook, message->fds, size);
    (void)sys(__NR_munmap, hook, sizeof *hook); /* ours, and whole */
    return result;
}

/* Until the launcher says to go on. */
static long run_hooks(struct child *child)
{
    struct message message;
    long result = send_message(child->sync, &(uint8_t){CHILD_HOOKS}, 1, 0, 0);
    while (result == 0) {
        uint32_t size = 0;
        result = receive_message(child->sync, &size, sizeof size, 0, &message);
        if (result < 0 || message.fd_count == 0)
            break;
        result = take_hook(child, &message, size);
        close_fds(message.fds, message.fd_count);
    }
    return result;
}

/* Without root, hooks outside could not use /proc/PID/ns of a child that is not dumpable. Nobody
 * else is in here yet, and who may trace it may trace the caller. */
static long run_reachable(struct child *child)
{
    int dumpable = (child->start->flags & DUMPABLE_FLAGS) != 0;
    long result = dumpable ? sys(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0) : 0;
    if (result == 0)
        result = run_hooks(child);
    if (result == 0 && dumpable)
        result = sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    return result;
}

/* The paths are the host's, and the working directory is what will be /. */
long create_hooks(struct child *child)
{
    const struct filesystem *fs = &child->filesystem;
    long result;
    if ((child->start->flags & START_HOOKS) == 0)
        return 0;
    result = sys(__NR_fchdir, fs->mounts[child->start->root]);
    if (result == 0 && fs->mask > 0) /* it has served, and covers the host's /proc: walls.c */
        result = sys(__NR_umount2, "/proc", MNT_DETACH);
    return result < 0 ? result : run_reachable(child);
}

long start_hooks(struct child *child)
{
    return child->start->flags & START_HOOKS ? run_hooks(child) : 0;
}
