/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The child: the first process of the container, from clone3 to execve.
 *
 * It is a copy of the launcher in fresh namespaces, or shares the launcher's memory until execve;
 * either way it holds nothing of the caller, and it is not dumpable: nothing that it shares a
 * namespace with can read or trace it. It goes through
 * CHILD_SEQUENCE from top to bottom; the order is the security of the whole and lives nowhere
 * else. What differs between containers is data: flags and arrays of the request. Up to
 * STEP_HANDOVER these are the flags in BLANK_FLAGS: the child may be a blank one (blank.c).
 */
#include "child.h"
#include "clone.h"

enum { CWD_SIZE = 4096 };

static const char *text(const struct child *child, uint32_t offset)
{
    return string_at(child->request->bytes, offset);
}

/* Close what the launcher had open, but for `keep` (ascending): the channels of other containers
 * are nobody else's business, and a copy of them would hide their end. */
long close_all_but(const int *keep, uint32_t count)
{
    uint32_t from = FD_CALLER; /* 0 to 2 are /dev/null */
    long result = 0;
    for (uint32_t i = 0; i < count && result == 0; i++) {
        if ((uint32_t)keep[i] > from)
            result = sys(NR_CLOSE_RANGE, from, (uint32_t)keep[i] - 1, 0);
        from = (uint32_t)keep[i] + 1;
    }
    return result < 0 ? result : sys(NR_CLOSE_RANGE, from, ~0u, 0);
}

static void insert_sorted(int *fds, uint32_t count, int fd)
{
    uint32_t at = count;
    for (; at > 0 && fds[at - 1] > fd; at--)
        fds[at] = fds[at - 1];
    fds[at] = fd;
}

long close_all_but_own(const struct child *child)
{
    const int others[] = {child->filesystem.late, child->target,      child->target_root,
                          child->status,          child->word,        child->program,
                          child->cgroup,          child->cgroup_space};
    int keep[STDIO_COUNT + 1 + sizeof others / sizeof others[0] + MAX_PASSED] = {child->sync};
    uint32_t count = 1;
    for (uint32_t i = 0; i < STDIO_COUNT; i++)
        if (child->stdio[i] >= 0) /* < 0: they come later */
            insert_sorted(keep, count++, child->stdio[i]);
    for (uint32_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (others[i] > 0)
            insert_sorted(keep, count++, others[i]);
    for (uint32_t i = 0; i < child->passed_count; i++)
        insert_sorted(keep, count++, child->passed[i]);
    return close_all_but(keep, count);
}

static long launcher_lives(const struct child *child)
{
    struct pollfd_record poll = {.fd = child->sync};
    struct {
        int64_t seconds, nanoseconds;
    } now = {0, 0};
    long result = sys(__NR_ppoll, &poll, 1, &now, 0, 0);
    return result < 0 ? result : poll.revents & POLLHUP ? -EPIPE : 0;
}

/* The parent's death signal, and after it the look whether the parent died before. */
long die_with_launcher(const struct child *child)
{
    long result = sys(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    return result < 0 ? result : launcher_lives(child);
}

/* The files of a non-dumpable process in /proc belong to root: without root, its maps could not be
 * written. So it is dumpable until they are, and the launcher never is. */
static long become_dumpable(const struct child *child)
{
    long result;
    if ((child->start->flags & DUMPABLE_FLAGS) == 0)
        return 0;
    result = sys(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    return result < 0 ? result : send_message(child->sync, "", 1, 0, 0);
}

/* Those of the first process too: execve moves it there. As root of its user namespace, and while
 * its own file is its own. */
static long set_clocks(struct child *child)
{
    const struct start *start = child->start;
    long fd, result;
    if (start->clocks.count == 0)
        return 0;
    result = sys(__NR_unshare, CLONE_NEWTIME);
    if (result < 0)
        return result;
    fd = sys(__NR_openat, AT_FDCWD, "/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    result =
        sys(__NR_write, fd, span_at(child->request->bytes, start->clocks), start->clocks.count);
    (void)close_fd((int)fd);
    return result < 0 ? result : 0;
}

static long await_maps(struct child *child)
{
    struct message message;
    uint8_t byte;
    long result = die_with_launcher(child);
    if (result == 0)
        result = close_all_but(&child->sync, 1);
    if (result == 0)
        result = become_dumpable(child);
    return result < 0 ? result : receive_message(child->sync, &byte, 1, 0, &message);
}

/* Where the next fd belongs: the standard streams, what an init needs, what is passed on, then
 * copies of mounts. */
static int *find_place(struct child *child, uint32_t *trees)
{
    for (int i = 0; i < STDIO_COUNT; i++)
        if (child->stdio[i] < 0)
            return &child->stdio[i];
    if (child->start->flags & START_INIT && child->status == 0)
        return &child->status;
    if (child->start->flags & START_INIT && child->program == 0)
        return &child->program;
    if (child->passed_count < child->start->passed.count)
        return &child->passed[child->passed_count++];
    return *trees < MAX_SOURCES ? &child->trees[(*trees)++] : NULL;
}

static long move_above(int *fd, uint32_t number)
{
    long result = *fd <= 0 ? *fd : sys(__NR_fcntl, *fd, F_DUPFD_CLOEXEC, number + 1);
    if (*fd <= 0 || result < 0)
        return result;
    (void)close_fd(*fd);
    *fd = (int)result;
    return 0;
}

/* Nothing of ours may have a number that something passed on shall have. Now, while the limit of
 * files is the launcher's. */
static long clear_numbers(struct child *child)
{
    const uint32_t *numbers = span_at(child->request->bytes, child->start->passed);
    int *const ours[] = {&child->sync,     &child->stdio[0], &child->stdio[1],
                         &child->stdio[2], &child->status,   &child->program};
    uint32_t highest = 0;
    long result = 0;
    for (uint32_t i = 0; i < child->passed_count; i++)
        highest = numbers[i] > highest ? numbers[i] : highest;
    for (size_t i = 0; i < sizeof ours / sizeof ours[0] && result >= 0; i++)
        result = move_above(ours[i], highest);
    for (uint32_t i = 0; i < child->passed_count && result >= 0; i++)
        result = move_above(&child->passed[i], highest);
    return result < 0 ? result : 0;
}

/* What came before this was done without a look at the request: for a blank child there was none.
 */
static long await_request(struct child *child)
{
    struct message message;
    uint32_t trees = 0;
    uint8_t byte;
    for (int i = 0; i < STDIO_COUNT; i++)
        child->stdio[i] = -1;
    do {
        long result = receive_message(child->sync, &byte, 1, 0, &message);
        if (result < 0)
            return result;
        for (uint32_t i = 0; i < message.fd_count; i++) {
            int *place = find_place(child, &trees);
            if (place != NULL)
                *place = message.fds[i];
        }
    } while (trees < child->start->source_count);
    return child->passed_count == 0 ? 0 : clear_numbers(child);
}

static long unshare_mounts(struct child *child)
{
    (void)child;
    return sys(__NR_unshare, CLONE_NEWNS);
}

long enter_session(struct child *child)
{
    long result = sys(__NR_setsid, 0);
    (void)child;
    if (result < 0)
        return result;
    result = sys(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    /* A kernel without keyrings, or an outer container that denies them to us and so to what we
     * start: there is no keyring to reach. Anything else would leave the caller's in place. */
    return result == -ENOSYS || result == -EPERM || result >= 0 ? 0 : result;
}

/* Until here the ids are the caller's, which own files of the host. setresuid also clears
 * the death signal, hence once more. */
long become_root_of_namespace(struct child *child)
{
    long result = 0;
    if (child->start->flags & START_FRESH_USER) {
        result = sys(__NR_setresgid, 0, 0, 0);
        if (result == 0)
            result = sys(__NR_setresuid, 0, 0, 0);
    }
    if (result == 0)
        result = sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    return result < 0 ? result : die_with_launcher(child);
}

/* Who is no PID 1 adopts its orphans as one does: they are the container's, not those of the
 * process that is. */
static long begin_session(struct child *child)
{
    long result = enter_session(child);
    return result < 0 || child->start->clone_flags & CLONE_NEWPID
               ? result
               : sys(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

static long raise_loopback(struct child *child)
{
    struct {
        char name[16];
        int16_t flags;
        char rest[22];
    } interface = {.name = "lo", .flags = IFF_UP};
    long socket, result;
    if ((child->start->flags & START_LOOPBACK) == 0)
        return 0;
    socket = sys(__NR_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (socket < 0)
        return socket;
    result = sys(__NR_ioctl, socket, SIOCSIFFLAGS, &interface);
    (void)close_fd((int)socket);
    return result;
}

static long set_name(long number, const char *name)
{
    size_t size = 0;
    while (name[size] != 0)
        size++;
    return size == 0 ? 0 : sys(number, name, size);
}

static long set_hostname(struct child *child)
{
    long result = set_name(__NR_sethostname, text(child, child->start->hostname));
    return result < 0 ? result
                      : set_name(__NR_setdomainname, text(child, child->start->domainname));
}

static long make_filesystem(struct child *child)
{
    long result = 0;
    (void)sys(__NR_umask, 0); /* modes are what the rows say; cannot fail */
    if (child->start->flags & START_PRIVATE)
        result = sys(__NR_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
    child->filesystem.request = child->request;
    child->filesystem.trees = child->trees;
    child->filesystem.mask = 0;
    if (result == 0)
        result = build_filesystem(&child->filesystem);
    child->progress->row = child->filesystem.row;
    return result;
}

/* pivot_root(".", ".") stacks the old root on the new one, where it is taken away at once. */
static long enter_root(struct child *child)
{
    long result = sys(__NR_fchdir, child->filesystem.mounts[child->start->root]);
    if (result < 0)
        return result;
    if (child->start->flags & START_CHROOT) {
        result = sys(__NR_chroot, ".");
    } else {
        result = sys(__NR_pivot_root, ".", ".");
        if (result == 0)
            result = sys(__NR_umount2, ".", MNT_DETACH);
    }
    if (result == 0)
        result = sys(__NR_chdir, "/");
    /* The fds of the mounts have served: fewer to hold at the gate, and under RLIMIT_NOFILE. */
    return result < 0 ? result : close_all_but_own(child);
}

static void wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        (void)sys(__NR_ppoll, 0, 0, 0, 0, 0); /* until it is killed */
}

/* A copy of a mount namespace that belongs to a lesser user namespace has every flag locked, for
 * us too. So: let a helper make such a copy, and move into it. With CAP_SYS_ADMIN a container
 * could otherwise take "read-only" and "nodev" off again. The price: the helper's user namespace
 * belongs to the container's root, whose every process has all capabilities over the mounts. */
static long lock_mounts(struct child *child)
{
    int helper_fd = -1;
    struct clone_args args = {.flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_PIDFD,
                              .pidfd = (uint64_t)(uintptr_t)&helper_fd,
                              .exit_signal = SIGCHLD};
    long result, helper;
    if ((child->start->flags & START_LOCK_MOUNTS) == 0)
        return 0;
    /* setns asks for the right to trace the helper; nobody else is in here yet to use it. */
    result = sys(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    if (result < 0)
        return result;
    /* Not on our stack: the arena is shared memory, and so would the stack be. */
    helper = clone_onto(&args, child->helper_stack, SMALL_STACK, wait_for_ever, NULL);
    if (helper < 0)
        return helper;
    result = sys(__NR_setns, helper_fd, CLONE_NEWNS);
    (void)sys(NR_PIDFD_SEND_SIGNAL, helper_fd, SIGKILL, 0, 0); /* it lives: we have not waited */
    (void)sys(__NR_wait4, helper, 0, WALL, 0);                 /* as above */
    (void)close_fd(helper_fd);
    if (result == 0)
        result = sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (result == 0) /* the helper's was the last user namespace that may be made in here */
        result = write_late(&child->filesystem);
    return result < 0 ? result : sys(__NR_chdir, "/");
}

static long wait_at_gate(struct child *child)
{
    struct message message;
    uint8_t byte = CHILD_CREATED;
    long result;
    if ((child->start->flags & START_GATE) == 0)
        return 0;
    result = send_message(child->sync, &byte, 1, 0, 0);
    return result < 0 ? result : receive_message(child->sync, &byte, 1, 0, &message);
}

long set_rlimits(struct child *child)
{
    const struct limit *limits = span_at(child->request->bytes, child->start->rlimits);
    for (uint32_t i = 0; i < child->start->rlimits.count; i++) {
        struct rlimit_pair pair = {limits[i].soft, limits[i].hard};
        long result = sys(__NR_prlimit64, 0, limits[i].resource, &pair, 0);
        if (result < 0) {
            child->progress->row = (int32_t)i;
            return result;
        }
    }
    return 0;
}

static long load_filter(struct child *child)
{
    const struct start *start = child->start;
    struct sock_fprog program = {.length = (uint16_t)start->filter.count,
                                 .filter = span_at(child->request->bytes, start->filter)};
    long result;
    if (start->filter.count == 0)
        return 0;
    if (start->filter_flags & SECCOMP_FILTER_FLAG_NEW_LISTENER)
        return load_with_listener(child, &program);
    result = sys(__NR_seccomp, SECCOMP_SET_MODE_FILTER, start->filter_flags, &program);
    return result > 0 ? -EBUSY : result; /* a thread of ours that cannot have it; there is none */
}

/* Without no_new_privs it takes CAP_SYS_ADMIN, which goes with the next steps: so they happen
 * under the filter. */
long filter_early(struct child *child)
{
    return child->start->flags & START_NO_NEW_PRIVS ? 0 : load_filter(child);
}

/* A spare child waits under it, where it lets one wait: it is a third of what is left to do. */
static int is_filtered_ahead(const struct child *child)
{
    return child->is_spare && child->start->flags & START_FILTER_AHEAD;
}

long filter_ahead(struct child *child)
{
    return is_filtered_ahead(child) ? load_filter(child) : 0;
}

long filter_last(struct child *child)
{
    return child->start->flags & START_NO_NEW_PRIVS && !is_filtered_ahead(child)
               ? load_filter(child)
               : 0;
}

long drop_bounding(struct child *child)
{
    for (int capability = 0; capability < 64; capability++) {
        long result;
        if (child->start->bounding >> capability & 1)
            continue;
        result = sys(__NR_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
        if (result == -EINVAL) /* past the last one that this kernel has */
            return 0;
        if (result < 0)
            return result;
    }
    return 0;
}

/* The process has to own its streams, or it could not open its /dev/stdout. Here where only root of
 * the user namespace may give them away; else the launcher has done it. */
static void take_pipes(const struct child *child)
{
    const struct start *start = child->start;
    int joined = start->flags & START_FRESH_USER && (start->clone_flags & CLONE_NEWUSER) == 0;
    if (!joined && (start->flags & START_MAP_BY_PROGRAM) == 0)
        return;
    for (int i = 0; i < STDIO_COUNT; i++)
        if (start->pipes >> i & 1) /* or it stays as it is: not for want of rights */
            (void)sys(__NR_fchown, child->stdio[i], start->uid, start->gid);
}

long set_ids(struct child *child)
{
    const struct start *start = child->start;
    long result = 0;
    take_pipes(child);
    (void)sys(__NR_umask, start->umask); /* cannot fail */
    if (start->flags & START_SET_GROUPS)
        result =
            sys(__NR_setgroups, start->groups.count, span_at(child->request->bytes, start->groups));
    if (result == 0)
        result = sys(__NR_setresgid, start->gid, start->gid, start->gid);
    if (result == 0) /* the next step sets what is left of them, explicitly */
        result = sys(__NR_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
    if (result == 0)
        result = sys(__NR_setresuid, start->uid, start->uid, start->uid);
    /* A change of ids makes the process dumpable by the sysctl and clears the death signal. */
    if (result == 0)
        result = sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    return result < 0 ? result : die_with_launcher(child);
}

long set_capabilities(struct child *child)
{
    const struct start *start = child->start;
    struct capability_header header = {CAPABILITY_VERSION_3, 0};
    struct capability_data data[2];
    long result;
    for (int half = 0; half < 2; half++) {
        data[half].effective = (uint32_t)(start->effective >> (32 * half));
        data[half].permitted = (uint32_t)(start->permitted >> (32 * half));
        data[half].inheritable = (uint32_t)(start->inheritable >> (32 * half));
    }
    result = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (result == 0)
        result = sys(__NR_capset, &header, data);
    for (int capability = 0; capability < 64 && result == 0; capability++)
        if (start->ambient >> capability & 1)
            result = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
    return result;
}

long forbid_new_privileges(struct child *child)
{
    if ((child->start->flags & START_NO_NEW_PRIVS) == 0)
        return 0;
    return sys(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* With the ids of the process, and never through a magic link: one of those leads out. */
long enter_cwd(struct child *child)
{
    char path[CWD_SIZE];
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_NO_MAGICLINKS};
    long fd = sys(NR_OPENAT2, AT_FDCWD, text(child, child->start->cwd), &how, sizeof how);
    long result;
    if (fd < 0)
        return fd;
    result = sys(__NR_fchdir, fd);
    (void)close_fd((int)fd);
    if (result == 0)
        result = sys(__NR_getcwd, path, sizeof path);
    return result < 0 ? result : path[0] == '/' ? 0 : -EXDEV; /* "(unreachable)..." */
}

static long place_streams(struct child *child)
{
    uint64_t no_signals = 0;
    long result;
    for (int i = 0; i < STDIO_COUNT; i++) {
        result = sys(__NR_dup3, child->stdio[i], i, 0);
        if (result < 0)
            return result;
    }
    /* All are close-on-exec already, so this finds nothing; a host fd in a container is worth a
     * second lock. */
    result = sys(NR_CLOSE_RANGE, STDIO_COUNT, ~0u, CLOSE_RANGE_CLOEXEC);
    return result < 0 ? result
                      : sys(__NR_rt_sigprocmask, SIG_SETMASK, &no_signals, 0, sizeof no_signals);
}

long place_fds(struct child *child)
{
    const uint32_t *numbers = span_at(child->request->bytes, child->start->passed);
    long result = place_streams(child);
    for (uint32_t i = 0; i < child->passed_count && result >= 0; i++)
        result = sys(__NR_dup3, child->passed[i], numbers[i], 0);
    return result < 0 ? result : 0;
}

/* In place: memory of our own would stay with a launcher that shares its own with us. */
static const char **make_vector(const struct child *child, struct span span)
{
    uint64_t *slots = (uint64_t *)(child->request->bytes + span.offset);
    for (uint32_t i = 0; i < span.count; i++)
        slots[i] = (uint64_t)(uintptr_t)text(child, (uint32_t)slots[i]);
    return (const char **)slots;
}

/* "No such file" of a file that is there: its interpreter is missing. The filter may kill for the
 * question, so the answer without it is noted first; and nothing is asked before all have failed.
 */
static void look_for_program(struct child *child)
{
    const uint32_t *programs = span_at(child->request->bytes, child->start->programs);
    child->progress->error = ENOENT;
    for (uint32_t i = 0; i < child->start->programs.count; i++) {
        if (sys(__NR_faccessat, AT_FDCWD, text(child, programs[i]), 0) != 0)
            continue;
        child->progress->row = (int32_t)i;
        child->progress->value = 1;
        return;
    }
}

/* Try the candidates as execvpe does: on to the next where one is absent or forbidden, and
 * "forbidden" is what is told when none could be run. */
static long execute_any(struct child *child, const char **args, const char **env)
{
    const uint32_t *programs = span_at(child->request->bytes, child->start->programs);
    long told = -ENOENT;
    for (uint32_t i = 0; i < child->start->programs.count; i++) {
        long error = sys(__NR_execve, text(child, programs[i]), args, env);
        if (error == -ENOENT || error == -ENOTDIR) {
            if (child->start->programs.count == 1) /* asked for by its path */
                told = error;
            continue;
        }
        told = error;
        child->progress->row = (int32_t)i;
        if (error != -EACCES)
            break;
    }
    if (child->start->filter_flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) {
        /* The caller waits for us: it answers no question of ours, and be it how to end. */
        child->progress->error = (int32_t)-told;
        __builtin_trap();
    }
    if (told == -ENOENT)
        look_for_program(child);
    return told;
}

long execute(struct child *child)
{
    const char **args = make_vector(child, child->start->args);
    const char **env = make_vector(child, child->start->env);
    return execute_any(child, args, env);
}

long confine_by_rules(struct child *child)
{
    return confine(child->request, child->progress);
}

static const struct child_step CHILD_SEQUENCE[] = {
    {STEP_SYNC, await_maps},
    {STEP_TIME, set_clocks},
    {STEP_SETUP_IDS, become_root_of_namespace},
    {STEP_SESSION, begin_session},
    {STEP_NETWORK, raise_loopback},
    {STEP_HANDOVER, await_request},
    {STEP_MOUNT_NAMESPACE, unshare_mounts},
    {STEP_HOSTNAME, set_hostname},
    {STEP_FILESYSTEM, make_filesystem},
    {STEP_TERMINAL, take_terminal},
    {STEP_CREATE_HOOKS, create_hooks},
    {STEP_PIVOT, enter_root},
    {STEP_LOCK_MOUNTS, lock_mounts},
    {STEP_GATE, wait_at_gate},
    {STEP_START_HOOKS, start_hooks},
    {STEP_RLIMITS, set_rlimits},
    {STEP_SECCOMP_EARLY, filter_early},
    {STEP_BOUNDING, drop_bounding},
    {STEP_IDS, set_ids},
    {STEP_CAPABILITIES, set_capabilities},
    {STEP_NO_NEW_PRIVS, forbid_new_privileges},
    {STEP_CWD, enter_cwd},
    {STEP_INIT, start_init},
    {STEP_FDS, place_fds},
    {STEP_LANDLOCK, confine_by_rules},
    {STEP_SECCOMP, filter_last},
    {STEP_EXEC, execute},
};

enum { STEP_COUNT_OF_CHILD = sizeof CHILD_SEQUENCE / sizeof CHILD_SEQUENCE[0] };

void run_steps(struct child *child, const struct child_step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        long result = begin_step(child->progress, child->start, steps[i].step);
        if (result == 0)
            result = steps[i].run(child);
        if (result < 0) {
            child->progress->error = (int32_t)-result;
            break;
        }
    }
    if (child->word > 0)
        (void)sys(__NR_write, child->word, "", 1); /* the filter allows it */
    exit_process(1);                               /* execve does not come back with success */
}

void prepare_child(struct child *child, struct arena *arena)
{
    child->request = &arena->request;
    child->start = arena->request.start;
    child->progress = &arena->progress;
    child->helper_stack = arena->helper_stack;
    child->filesystem.late = 0;
    child->status = 0;
    child->word = 0;
    child->program = 0;
    child->cgroup = 0;
    child->passed_count = 0;
    child->filesystem.terminal = 0;
    child->filesystem.master = 0;
}

void run_child(void *argument)
{
    struct arena *arena = argument;
    struct child *child = &arena->child;
    prepare_child(child, arena);
    child->target = 0;
    child->target_root = 0;
    child->cgroup_space = 0;
    run_steps(child, CHILD_SEQUENCE, STEP_COUNT_OF_CHILD);
}

void run_after(struct child *child, enum step step)
{
    size_t next = 0;
    while (next < STEP_COUNT_OF_CHILD && CHILD_SEQUENCE[next].step <= step)
        next++;
    run_steps(child, CHILD_SEQUENCE + next, STEP_COUNT_OF_CHILD - next);
}
