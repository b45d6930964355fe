/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * caller    A Python process of any size, with any number of threads. Starts the launcher once
 *           (spawn.c) and then sends it one message per container.
 * launcher  This program: freestanding, single-threaded, a few pages, not dumpable, run from a
 *           sealed memfd. It shares the caller's namespaces and rights, and nothing of its memory.
 *           It clones children, writes their maps, copies mount sources, reaps, reports.
 * child     A copy of the launcher in fresh namespaces (child.c). Becomes the container's first
 *           process by execve.
 * guard     Shares the launcher's memory and fds and sleeps until the launcher dies; then it kills
 *           the containers that are left.
 *
 * File descriptors of the launcher
 *   0-2  /dev/null
 *   3    FD_CALLER: SOCK_SEQPACKET to the caller; every message is one request, with its fds
 *   4    FD_CALLER_PIDFD: readable when the caller is dead
 *   5    FD_CALLER_STATUS: the caller's /proc/self/status, as the caller opened it
 *   the sysctl fs.suid_dumpable, which exec.c looks at; the directory of the control groups
 *   per container: its channel (SOCK_SEQPACKET; commands in, reports out; its end means that
 *   nobody wants the container any more), its pidfd, and until execve the sync socket, whose
 *   other end the child holds close-on-exec: EOF and no error in the progress page is execve.
 *   After a command in a container its channel stays, for the next one (line.c).
 *
 * Sync points of a start
 *   child -> launcher   it is dumpable (one byte; without root only)            STEP_SYNC
 *   launcher -> child   its ids are mapped                                      STEP_SYNC
 *   launcher -> child   the request is there (fds: stdio, copies of mounts)     STEP_HANDOVER
 *                       (of an exec: to a spare child only, fds: stdio that it has not; spare.c)
 *   child -> launcher   it waits for hooks, or one has ended (one byte)         STEP_*_HOOKS
 *   launcher -> child   a hook (fds: its request, its stdio); start (one byte)  STEP_*_HOOKS
 *   child -> launcher   the container is created (one byte)                     STEP_GATE
 *   launcher -> child   start (one byte)                                        STEP_GATE
 *   child -> launcher   EOF: execve, or death
 *
 * Ends
 *   The caller dies (pidfd), or closes its socket: every container is killed and reaped, then
 *   the launcher ends. The launcher dies: its children get SIGKILL by their death signal, and by
 * the guard, which misses none, and removes their control groups. The caller's rights change:
 * requests are refused from then on, and the launcher ends with its last container.
 *
 * Detached
 *   A launcher of its own for one container, with the directory of its state, serves whoever
 *   connects to a socket in there (supervisor.c, clients.c, log.c). The caller is nothing to it
 *   from REQUEST_DETACH on; it ends with its container.
 */
#include "clone.h"
#include "state.h"

struct launcher launcher;

long watch(int fd, enum event event, uint32_t slot)
{
    struct epoll_record record = {EPOLLIN, (uint64_t)event << 32 | slot};
    return sys(__NR_epoll_ctl, launcher.epoll, EPOLL_CTL_ADD, fd, &record);
}

static void end_everything(void)
{
    launcher.ending = 1;
    for (uint32_t i = 0; i < launcher.highest; i++)
        if (launcher.containers[i].phase != PHASE_FREE)
            kill_container(&launcher.containers[i], SIGKILL);
}

static void refuse(enum step step, long result)
{
    if (launcher.message.fd_count > 0)
        report_failure(launcher.message.fds[0], step, result);
    close_fds(launcher.message.fds, launcher.message.fd_count);
}

static void handle_drop(void)
{
    drop_blanks();
    close_fds(launcher.message.fds, launcher.message.fd_count);
}

static void handle_caller(void)
{
    uint32_t op = 0;
    long rights;
    long result = receive_message(FD_CALLER, launcher.buffer, sizeof launcher.buffer, MSG_DONTWAIT,
                                  &launcher.message);
    if (result == -EAGAIN)
        return;
    if (result == -EPIPE) {
        (void)sys(__NR_epoll_ctl, launcher.epoll, EPOLL_CTL_DEL, FD_CALLER, 0);
        if (launcher.retired)
            launcher.closed = 1; /* given up by a caller that goes on with another launcher */
        else
            end_everything();
        return;
    }
    /* First of all: what follows must not even be read if it comes from lesser rights. */
    rights = check_rights(launcher.message.sender);
    if (rights < 0) {
        refuse(STEP_RIGHTS, rights);
        return;
    }
    if (result == 0 && launcher.message.size >= sizeof op)
        memcpy(&op, launcher.buffer, sizeof op);
    if (launcher.message.fd_count == 0)
        return; /* nobody to answer */
    if (op == REQUEST_START || op == REQUEST_EXEC || op == REQUEST_HOOK)
        handle_start(&launcher.message, op);
    else if (op == REQUEST_LEASE)
        handle_lease(launcher.message.size);
    else if (op == REQUEST_PLACE)
        handle_place(launcher.message.size);
    else if (op == REQUEST_DROP_BLANKS)
        handle_drop();
    else if (op == REQUEST_CLAIM)
        handle_claim(launcher.message.size);
    else if (op == REQUEST_DETACH)
        handle_detach(launcher.message.size);
    else
        refuse(STEP_REQUEST, result < 0 ? result : -EINVAL);
}

static void handle_event(uint64_t data)
{
    struct container *container = &launcher.containers[data & 0xffffffff];
    switch ((enum event)(data >> 32)) {
    case EVENT_CALLER:
        handle_caller();
        break;
    case EVENT_CALLER_DEATH:
        (void)sys(__NR_epoll_ctl, launcher.epoll, EPOLL_CTL_DEL, FD_CALLER_PIDFD, 0);
        end_everything();
        break;
    case EVENT_CHILD:
        handle_children();
        break;
    case EVENT_CHANNEL:
        handle_channel(container);
        break;
    case EVENT_SYNC:
        handle_sync(container);
        break;
    case EVENT_CGROUP:
        if (has_emptied(container))
            forget_container(container);
        break;
    case EVENT_LISTENER:
        handle_listener();
        break;
    case EVENT_CLIENT:
        handle_client((uint32_t)data);
        break;
    case EVENT_LOG:
        handle_log((uint32_t)data);
        break;
    case EVENT_LIFETIME:
        handle_lifetime();
        break;
    case EVENT_DELAY:
        handle_delay();
        break;
    }
}

/* A death signal is lost when a process changes its ids, and can be taken off. So a second process
 * shares the launcher's memory and fds, sleeps, and kills what is in the table when the launcher
 * has died. It ends with it. */
static void guard_containers(void *unused)
{
    struct pollfd_record poll = {.fd = launcher.own_pidfd, .events = POLLIN};
    (void)unused;
    (void)sys(__NR_prctl, PR_SET_NAME, "container-guard", 0, 0, 0); /* for ps */
    while (sys(__NR_ppoll, &poll, 1, 0, 0, 0) != 1)
        ; /* every signal is blocked: it returns for the one event */
    for (uint32_t i = 0; i < launcher.highest; i++)
        if (launcher.containers[i].phase != PHASE_FREE)
            kill_container(&launcher.containers[i], SIGKILL);
    clear_place();
    exit_process(0);
}

long start_guard(void)
{
    static _Alignas(16) uint8_t stack[SMALL_STACK];
    struct clone_args args = {.flags = CLONE_VM | CLONE_FILES};
    long result;
    if (launcher.own_pidfd == 0) {
        result = sys(NR_PIDFD_OPEN, sys(__NR_getpid, 0), 0);
        if (result < 0)
            return result;
        launcher.own_pidfd = (int)result;
    }
    result = clone_onto(&args, stack, sizeof stack, guard_containers, NULL);
    launcher.guard = (int)result;
    return result < 0 ? result : 0;
}

/* Without us it would be the child of whoever adopts it. */
static void dismiss_guard(void)
{
    if (launcher.guard <= 0)
        return;
    (void)sys(__NR_kill, launcher.guard, SIGKILL); /* it lives: we have not waited */
    (void)sys(__NR_wait4, launcher.guard, 0, WALL, 0);
}

static void reset_signals(void)
{
    struct sigaction_record standard = {0, 0, 0, 0};
    for (int signal = 1; signal <= SIGNAL_MAX; signal++) /* KILL and STOP say EINVAL */
        (void)sys(__NR_rt_sigaction, signal, &standard, 0, sizeof standard.mask);
}

static long set_up(void)
{
    uint64_t every_signal = ~0ull, child = 1ull << (SIGCHLD - 1);
    struct rlimit_pair files;
    long result = sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (result < 0)
        return result;
    (void)sys(__NR_prctl, PR_SET_NAME, "container-launcher", 0, 0, 0); /* for ps; cut to 15 */
    (void)sys(__NR_rt_sigprocmask, SIG_SETMASK, &every_signal, 0, sizeof every_signal);
    reset_signals();
    (void)sys(__NR_setsid, 0); /* fails only where it is not needed */
    /* Orphans of containers in the caller's PID namespace are ours to reap; cannot fail. */
    (void)sys(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    (void)sys(__NR_chdir, "/"); /* so as not to hold the caller's directory */
    reset_attributes();
    if (sys(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, &files) == 0) {
        launcher.soft_files = files.soft;
        files.soft = files.hard; /* two per container; children get the caller's limit */
        (void)sys(__NR_prlimit64, 0, RLIMIT_NOFILE, &files, 0);
    }
    result = remember_rights();
    if (result < 0)
        return result;
    launcher.suid_dumpable =
        (int)sys(__NR_openat, AT_FDCWD, "/proc/sys/fs/suid_dumpable", O_RDONLY | O_CLOEXEC);
    launcher.program = (int)sys(__NR_openat, AT_FDCWD, "/proc/self/exe", O_PATH | O_CLOEXEC);
    launcher.epoll = (int)sys(__NR_epoll_create1, EPOLL_CLOEXEC);
    launcher.child_signal =
        (int)sys(__NR_signalfd4, -1, &child, sizeof child, SFD_CLOEXEC | SFD_NONBLOCK);
    result = watch(launcher.child_signal, EVENT_CHILD, 0);
    if (result == 0)
        result = watch(FD_CALLER, EVENT_CALLER, 0);
    if (result == 0)
        result = watch(FD_CALLER_PIDFD, EVENT_CALLER_DEATH, 0);
    return result < 0 ? result : start_guard();
}

static _Noreturn void launcher_main(void)
{
    int busy = 0;
    if (set_up() < 0)
        exit_process(1);
    /* One event at a time: handling one may free the container that the next would name. */
    while (launcher.alive > 0 || !(launcher.ending || launcher.closed)) {
        struct epoll_record record;
        int patience = blank_patience(busy);
        uint32_t alive = launcher.alive;
        long count;
        if (patience == 0)
            (void)sys(__NR_sched_yield, 0); /* first, who was told of the end */
        count = sys(__NR_epoll_pwait, launcher.epoll, &record, 1, patience, 0, 0);
        if (count == 1)
            handle_event(record.data);
        else if (count == 0)
            make_blanks();
        else if (count != -EINTR)
            exit_process(1);                          /* children die with us */
        busy = count == 1 && launcher.alive >= alive; /* but for an end, more is to come */
    }
    remove_place();
    leave_claim();
    dismiss_guard();
    exit_process(0);
}

/* `stack` as the kernel leaves it to a program: argc, argv. */
_Noreturn void program_main(const uintptr_t *stack)
{
    if (stack[0] == 1 && is_init((const char *)stack[1]))
        init_main();
    launcher_main();
}
