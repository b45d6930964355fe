/* SPDX-License-Identifier: Apache-2.0 */
/*
 * REQUEST_EXEC: one more process in the namespaces of a container, or of any other process.
 *
 * The target is named by the serial of a container of ours, whose first process we have not reaped,
 * or by a pidfd: never by a number that might be somebody else's by now. It is joined with one
 * setns(2) of its pidfd, which takes all of its namespaces or, when it is dead, none.
 *
 * A PID namespace is for children only. So a first child joins everything, makes a process that
 * goes on in its place, as a child of the launcher's (CLONE_PARENT), and ends; the launcher sleeps
 * meanwhile. The first child stays out of the container's control group: frozen in there, or short
 * of processors or memory that the container uses up, it would keep everybody waiting. It would be
 * quicker if the launcher, where it may, entered the PID namespace for a moment and its child were
 * born inside. But that child would be seen there before it has joined the rest, and
 * /proc/PID/mountinfo and /proc/PID/net, which everybody may read, would show the host's. What the
 * container sees is in its own namespaces and not dumpable, from birth to execve: its memory
 * belongs to a user namespace outside, where no capability of the container counts.
 *
 * From EXEC_SEQUENCE's STEP_SESSION on the steps are those of a container's first process, one by
 * one. What dies on the way was killed by the kernel, with its PID namespace, or is killed by us.
 */
#include "child.h"
#include "clone.h"
#include "state.h"

static long leave_launcher(struct child *child)
{
    long result = die_with_launcher(child);
    return result < 0 ? result : close_all_but_own(child);
}

/* Of the launcher's children only this one has its rights, and no longer than until it joins. */
static long set_own_scheduling(struct child *child)
{
    long result = set_scheduling(child->request, child->progress, 0);
    return result < 0 ? result : raise_limits(child->request, child->progress, 0);
}

/* Without root the file is another's unless we are dumpable; nobody inside sees us yet, and our
 * memory is not shared: see may_share_memory(). */
static long set_own_oom_score(struct child *child)
{
    int pid = (int)sys(__NR_getpid, 0);
    long result = write_oom_score(child->start, pid);
    if (result != -EACCES)
        return result;
    result = sys(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    if (result == 0)
        result = write_oom_score(child->start, pid);
    if (result == 0)
        result = sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    return result;
}

/* Root and working directory become those of the mount namespace. */
static long join_namespaces(struct child *child)
{
    uint64_t join = child->join;
    if (child->cgroup_space > 0)
        join &= ~(uint64_t)CLONE_NEWCGROUP; /* see join_cgroup_namespace() */
    return join == 0 ? 0 : sys(__NR_setns, child->target, join);
}

enum { MOST_PENDING = 128 };

static void run_successor(void *arena);

static struct arena *arena_of(struct child *child)
{
    return (struct arena *)(void *)((uint8_t *)child - offsetof(struct arena, child));
}

/* The end of a process that may not be seen inside, once there is one that may. */
static long enter_pid_namespace(struct child *child)
{
    struct arena *arena = arena_of(child);
    /* Its pid is written before it runs, or its end could be missed. */
    struct clone_args args = {.flags = CLONE_VM | CLONE_PARENT | CLONE_PARENT_SETTID,
                              .parent_tid = (uint64_t)(uintptr_t)&child->successor,
                              .cgroup = (uint64_t)child->cgroup};
    long result;
    if ((child->join & CLONE_NEWPID) == 0)
        return 0;
    if (child->cgroup > 0)
        args.flags |= CLONE_INTO_CGROUP;
    result = clone_onto(&args, arena->stack, STACK_SIZE, run_successor, arena);
    if (result < 0)
        return result;
    exit_process(0);
}

/* In there already, or a mount with nsdelegate would not let us in. By an fd of the namespace: the
 * target is out of reach here where it is an init, whose memory belongs to the host. */
static long join_cgroup_namespace(struct child *child)
{
    long result = 0;
    if (child->cgroup_space > 0)
        result = sys(__NR_setns, child->cgroup_space, CLONE_NEWCGROUP); /* it goes with execve */
    if (child->cgroup > 0)
        (void)close_fd(child->cgroup); /* the host's */
    child->cgroup = 0;
    return result;
}

/* Orphans of what the command starts become its children, until it ends: so that who ends it in
 * time finds them (container/_tree.py). */
static long begin_session(struct child *child)
{
    long result = enter_session(child);
    return result < 0 ? result : sys(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

/* One of the container's own, whatever /dev/pts has become by now: open_terminal() takes a devpts
 * and nothing else, and every devpts that can be in there is the container's. */
static long find_terminal(struct child *child)
{
    int root = child->target_root > 0 ? child->target_root : AT_FDCWD;
    long directory, result;
    if ((child->start->flags & START_TERMINAL) == 0)
        return 0;
    directory = open_below(root, child->target_root > 0 ? "dev/pts" : "/dev/pts",
                           O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    if (directory < 0)
        return directory;
    child->filesystem.request = child->request;
    result = open_terminal(&child->filesystem, (int)directory);
    (void)close_fd((int)directory);
    return result < 0 ? result : take_terminal(child);
}

static long make_root(long directory)
{
    long result = directory;
    if (result >= 0)
        result = sys(__NR_fchdir, directory);
    return result < 0 ? result : sys(__NR_chroot, ".");
}

static long enter_root(struct child *child)
{
    const char *path = string_at(child->request->bytes, child->start->new_root);
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_NO_MAGICLINKS};
    long result = 0;
    if (child->target_root > 0)
        result = make_root(child->target_root);
    if (result == 0 && path[0] != 0) /* the fd goes with execve */
        result = make_root(sys(NR_OPENAT2, AT_FDCWD, path, &how, sizeof how));
    return result;
}

static void take_request(struct child *child)
{
    struct request *request = &arena_of(child)->request;
    request->bytes = arena_of(child)->late;
    request->start = (struct start *)request->bytes;
    child->start = request->start;
}

/* A spare child (spare.c) has been made before there was anything to run. */
static long await_program(struct child *child)
{
    uint64_t every_signal = ~0ull, none[2] = {0, 0};
    struct message message;
    uint8_t byte;
    uint32_t fds = child->start->flags & START_STREAMS ? 0 : STDIO_COUNT; /* it has them */
    long result;
    if (!child->is_spare)
        return 0;
    child->target = child->target_root = child->cgroup_space = 0; /* they have served */
    result = close_all_but_own(child);
    if (result == 0)
        result = receive_message(child->sync, &byte, 1, 0, &message);
    if (result == 0 && message.fd_count != fds)
        result = -EPROTO;
    if (result < 0)
        return result;
    take_request(child);
    memcpy(child->stdio, message.fds, fds * sizeof child->stdio[0]);
    for (int i = 0; i < MOST_PENDING; i++) /* they were blocked, and not meant for the program */
        if (sys(__NR_rt_sigtimedwait, &every_signal, 0, none, sizeof every_signal) < 0)
            break;
    return 0;
}

static const struct child_step EXEC_SEQUENCE[] = {
    {STEP_SYNC, leave_launcher},
    {STEP_OOM_SCORE, set_own_oom_score},
    {STEP_SCHEDULING, set_own_scheduling},
    {STEP_JOIN, join_namespaces},
    {STEP_PID_NAMESPACE, enter_pid_namespace},
    {STEP_PID_NAMESPACE, join_cgroup_namespace},
    {STEP_SETUP_IDS, become_root_of_namespace},
    {STEP_SESSION, begin_session},
    {STEP_TERMINAL, find_terminal},
    {STEP_PIVOT, enter_root},
    {STEP_RLIMITS, set_rlimits},
    {STEP_SECCOMP_EARLY, filter_early},
    {STEP_BOUNDING, drop_bounding},
    {STEP_IDS, set_ids},
    {STEP_CAPABILITIES, set_capabilities},
    {STEP_NO_NEW_PRIVS, forbid_new_privileges},
    {STEP_SECCOMP, filter_ahead},
    {STEP_HANDOVER, await_program},
    {STEP_CWD, enter_cwd},
    {STEP_FDS, place_fds},
    {STEP_LANDLOCK, confine_by_rules},
    {STEP_SECCOMP, filter_last},
    {STEP_EXEC, execute},
};

enum { STEP_COUNT_OF_EXEC = sizeof EXEC_SEQUENCE / sizeof EXEC_SEQUENCE[0], AFTER_BIRTH = 5 };

void run_exec(void *arena)
{
    struct child *child = &((struct arena *)arena)->child;
    run_steps(child, EXEC_SEQUENCE, STEP_COUNT_OF_EXEC);
}

static void run_successor(void *arena)
{
    struct child *child = &((struct arena *)arena)->child;
    run_steps(child, EXEC_SEQUENCE + AFTER_BIRTH, STEP_COUNT_OF_EXEC - AFTER_BIRTH);
}

/* Sharing memory, as vfork does, is for where it never becomes dumpable: not, even for a moment,
 * at a change of ids. Others inside may have those ids. */
static int may_share_memory(const struct start *start)
{
    char value;
    if ((start->flags & START_SHARE_MEMORY) == 0 || start->flags & START_OOM_SCORE ||
        launcher.suid_dumpable < 0)
        return 0;
    return sys(__NR_pread64, launcher.suid_dumpable, &value, 1, 0) == 1 && value != '1';
}

/* The first process; not an init that our rights do not reach: its image, which nobody may read,
 * belongs to the caller, and that id need not be among those that a program has mapped. */
static int process_to_join(const struct container *container)
{
    int by_program = (container->flags & START_MAP_BY_PROGRAM) != 0;
    return by_program && container->payload >= 0 ? container->payload : container->pidfd;
}

/* The container, or NULL for a process that is not ours; the fds that the child will need. */
static long find_target(struct arena *arena, struct container **ret_container)
{
    const struct start *start = arena->request.start;
    struct child *child = &arena->child;
    struct container *container = NULL;
    long root = 0;
    child->target_root = 0;
    child->successor = 0;
    child->join = start->clone_flags;
    if (start->target == 0) {
        child->target = start->source_count > 0 ? arena->request.sources[0] : 0; /* a hook: none */
    } else {
        container = find_container(start->target);
        if (container == NULL)
            return -ESRCH;
        child->target = process_to_join(container);
    }
    if (container != NULL && container->flags & START_CHROOT && start->clone_flags & CLONE_NEWNS)
        root = open_proc(container->pid, "root", O_PATH | O_DIRECTORY);
    if (root < 0)
        return root;
    child->target_root = (int)root;
    child->cgroup_space = 0;
    if (container != NULL && container->cgroup > 0 && start->clone_flags & CLONE_NEWCGROUP) {
        long space = open_proc(container->pid, "ns/cgroup", O_RDONLY);
        child->cgroup_space = space < 0 ? 0 : (int)space; /* then it is tried with the others */
    }
    *ret_container = container;
    return 0;
}

/* It joins for itself: result as of clone3. */
static long clone_and_join(struct container *container, struct clone_args *args)
{
    args->flags |= CLONE_PIDFD;
    args->pidfd = (uint64_t)(uintptr_t)&container->pidfd;
    if (container->arena->child.cgroup > 0)
        args->flags |= CLONE_INTO_CGROUP;
    args->cgroup = (uint64_t)container->arena->child.cgroup;
    return clone_onto(args, container->arena->stack, STACK_SIZE, run_exec, container->arena);
}

/* A first child joins and leaves another one; we sleep until it is gone. */
static long clone_and_move(struct container *container, struct progress *progress,
                           struct clone_args *args)
{
    struct arena *arena = container->arena;
    long pid, result;
    args->flags |= CLONE_VFORK;
    pid = clone_onto(args, arena->helper_stack, SMALL_STACK, run_exec, arena);
    if (pid < 0)
        return pid;
    (void)sys(__NR_wait4, pid, 0, WALL, 0); /* it has ended */
    if (arena->child.successor <= 0) {
        *progress = arena->progress;
        return progress->error != 0 ? -progress->error : -ESRCH;
    }
    result = sys(NR_PIDFD_OPEN, arena->child.successor, 0); /* ours, and not reaped */
    if (result < 0) {
        (void)sys(__NR_kill, arena->child.successor, SIGKILL); /* as above */
        (void)sys(__NR_wait4, arena->child.successor, 0, WALL, 0);
        return result;
    }
    container->pidfd = (int)result;
    return arena->child.successor;
}

/* In the control group of the container, if it has one. Not with CLONE_VM then: out of memory would
 * end all that share memory, the launcher too. */
static long clone_member(struct container *container, struct progress *progress)
{
    const struct start *start = container->arena->request.start;
    const struct container *owner = find_container(start->target);
    struct clone_args args = {.exit_signal = SIGCHLD};
    struct child *child = &container->arena->child;
    child->cgroup = owner == NULL ? 0 : owner->cgroup;
    if (child->cgroup == 0 && may_share_memory(start))
        args.flags |= CLONE_VM;
    return start->clone_flags & CLONE_NEWPID ? clone_and_move(container, progress, &args)
                                             : clone_and_join(container, &args);
}

static long clone_exec(struct container *container, struct progress *progress)
{
    struct arena *arena = container->arena;
    int sync[2];
    long result = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync);
    if (result < 0)
        return result;
    prepare_child(&arena->child, arena);
    arena->child.is_spare = arena->request.channel < 0;
    arena->child.sync = sync[1];
    arena->child.word = arena->request.word > 0 ? arena->request.word : 0;
    memcpy(arena->child.stdio, arena->request.stdio, sizeof arena->child.stdio);
    result = clone_member(container, progress);
    (void)close_fd(sync[1]);
    if (result < 0)
        (void)close_fd(sync[0]);
    else
        container->sync = sync[0];
    return result;
}

/* From here on it reports for itself. */
static void watch_exec(struct container *container)
{
    uint32_t slot = (uint32_t)(container - launcher.containers);
    long result = watch(container->channel, EVENT_CHANNEL, slot);
    if (result == 0 && container->tells_itself) {
        container->unwatched = 1;
        launcher.unwatched++;
    } else if (result == 0) {
        result = watch(container->sync, EVENT_SYNC, slot);
    }
    if (result == 0)
        return;
    container->failure =
        (struct progress){.step = STEP_CLONE, .error = (int32_t)-result, .row = -1};
    container->phase = PHASE_FAILED;
    kill_container(container, SIGKILL);
}

/* A process in the namespaces of `target`, or of one that is not ours. */
static long make_member(struct arena *arena, struct progress *progress, struct container **ret)
{
    const struct start *start = arena->request.start;
    struct container *container = find_slot();
    long result;
    if (container == NULL)
        return -EAGAIN;
    *container = (struct container){.arena = arena,
                                    .pidfd = -1,
                                    .payload = -1,
                                    .status = -1,
                                    .sync = -1,
                                    .channel = -1,
                                    .slot = -1,
                                    .streams = {-1, -1, -1},
                                    .serial = ++launcher.serial,
                                    .target = start->target,
                                    .flags = start->flags};
    arena->progress = (struct progress){.row = -1};
    result = clone_exec(container, progress);
    if (result < 0)
        return result;
    container->pid = (int32_t)result;
    take_streams(container, &arena->request);
    launcher.alive++;
    *ret = container;
    return 0;
}

/* What find_target() has opened. */
static void close_target(const struct arena *arena)
{
    if (arena->child.target_root > 0)
        (void)close_fd(arena->child.target_root);
    if (arena->child.cgroup_space > 0)
        (void)close_fd(arena->child.cgroup_space);
}

/* Those that the request says are the process's become so. */
static long make_own_streams(struct request *request, const struct container *target)
{
    long result = make_streams(request);
    if (result == 0)
        give_pipes(request, target != NULL && target->flags & START_LEASE ? target->slot : -1);
    return result;
}

/* See spare.c. */
long clone_spare(struct arena *arena, struct progress *progress, struct container **ret)
{
    struct container *target;
    long result = find_target(arena, &target);
    if (result < 0)
        return result;
    result = make_own_streams(&arena->request, target);
    if (result == 0)
        result = make_member(arena, progress, ret);
    close_target(arena);
    close_request(&arena->request);
    if (result < 0)
        return result;
    (*ret)->phase = PHASE_BLANK;
    return 0;
}

/* The rest of the request to a child that waits for one of its kind; 0 where there is none. */
static int use_spare(struct arena *arena, struct oom before)
{
    struct request *request = &arena->request;
    struct container *spare = take_spare(request);
    int streams = request->start->flags & START_STREAMS;
    if (spare == NULL)
        return 0;
    memcpy(spare->arena->late, request->bytes, request->start->size);
    if (send_message(spare->sync, "", 1, request->stdio, streams ? 0 : STDIO_COUNT) < 0) {
        drop_child(spare); /* it was killed this moment */
        return 0;
    }
    kill_container(spare, SIGCONT); /* somebody may have stopped it, not knowing for what */
    spare->was_spare = !spare->tells_itself;
    spare->before = before;
    spare->phase = PHASE_STARTING;
    spare->channel = request->channel;
    request->channel = -1;
    if (spare->tells_itself)
        report_progress(spare, REPORT_CLONED);
    close_request(request);
    close_target(arena);
    release_arena(arena);
    watch_exec(spare);
    return 1;
}

long exec_process(struct arena *arena, struct progress *progress)
{
    const struct start *start = arena->request.start;
    struct container *target = NULL, *container;
    struct oom before;
    long result = begin_step(progress, start, STEP_TARGET);
    if (result == 0)
        result = find_target(arena, &target);
    if (result < 0)
        return result;
    result = begin_step(progress, start, STEP_CLONE);
    if (result < 0) {
        close_target(arena);
        return result;
    }
    /* Neither PID namespace nor control group ends what it leaves behind, with these ids. */
    if (target != NULL && target->cgroup <= 0 &&
        (start->clone_flags & (CLONE_NEWUSER | CLONE_NEWPID)) == CLONE_NEWUSER)
        target->keeps_slot = 1;
    before = read_oom(target);
    result = open_line(&arena->request);
    if (result == 0 && start->flags & START_STREAMS && use_spare(arena, before)) /* it has some */
        return 0;
    if (result == 0)
        result = make_own_streams(&arena->request, target);
    if (result == 0 && (start->flags & START_STREAMS) == 0 && use_spare(arena, before))
        return 0;
    if (result == 0)
        result = make_member(arena, progress, &container);
    close_target(arena);
    if (result < 0)
        return result;
    container->before = before;
    container->phase = PHASE_STARTING;
    container->channel = arena->request.channel;
    arena->request.channel = -1;
    report_progress(container, REPORT_CLONED);
    close_request(&arena->request);
    watch_exec(container);
    return 0;
}
