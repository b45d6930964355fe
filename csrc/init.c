/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tiny init (START_INIT): PID 1 that reaps, passes signals on and ends with the payload.
 *
 * At STEP_INIT the child clones the payload, which goes on with the sequence, and executes the
 * launcher's own image, which cannot be written, as "container-init": nothing of the launcher's
 * memory stays. The payload waits until its init is harmless: not dumpable, no capability, no
 * stream of the payload's, nothing open but FD_STATUS. It writes the payload's status there: its
 * own exit could not tell a signal, because PID 1 does not die of those that it sends itself. (Root
 * of a container with a single id and CAP_SYS_PTRACE may trace it, and so tell a wrong status.)
 */
#include "child.h"
#include "clone.h"

enum {
    FD_STATUS = 3, /* the launcher's pipe: one wait status */
    FD_MEETING = 4 /* tells the payload's pid; takes a byte for the payload to go ahead */
};

static const char INIT_NAME[] = "container-init";

/* The payload: from here on in the place of the child. */
static void run_payload(void *argument)
{
    struct arena *arena = argument;
    struct child *child = &arena->child;
    int32_t pid = (int32_t)sys(__NR_getpid, 0);
    uint8_t byte;
    long result, taken;
    (void)close_fd(child->meeting[0]); /* our copy: its end is to be the init's */
    result = sys(__NR_write, child->meeting[1], &pid, sizeof pid);
    if (result > 0)
        result = sys(__NR_read, child->meeting[1], &byte, 1);
    if (result == 1 && (taken = control_terminal(child)) < 0)
        result = taken;
    child->helper_stack = arena->stack; /* ours is the other one, and the init is a program now */
    if (result == 1)
        run_after(child, STEP_INIT);
    if (child->progress->error == 0) /* else the init has told why it came to nothing */
        child->progress->error = result < 0 ? (int32_t)-result : EPIPE;
    exit_process(1);
}

static long leave_open(int fd, int number)
{
    return fd == number ? sys(__NR_fcntl, fd, F_SETFD, 0) : sys(__NR_dup3, fd, number, 0);
}

static long execute_init(int status, int meeting, int program)
{
    const char *const args[] = {INIT_NAME, NULL};
    const char *const env[] = {NULL};
    long result = 0;
    if (status == FD_MEETING) /* out of its way */
        result = status = (int)sys(__NR_fcntl, status, F_DUPFD_CLOEXEC, FD_STATUS);
    if (result >= 0)
        result = leave_open(meeting, FD_MEETING);
    if (result >= 0)
        result = leave_open(status, FD_STATUS);
    return result < 0 ? result
                      : sys(__NR_execveat, program, "", args, env, AT_EMPTY_PATH); /* no return */
}

long start_init(struct child *child)
{
    const uint8_t kind = CHILD_PAYLOAD;
    struct arena *arena =
        (struct arena *)(void *)((uint8_t *)child - offsetof(struct arena, child));
    int payload = -1;
    long result;
    if ((child->start->flags & START_INIT) == 0)
        return 0;
    result = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, child->meeting);
    if (result < 0)
        return result;
    result = clone_plainly(CLONE_VM | CLONE_PIDFD | SIGCHLD, &payload, child->helper_stack,
                           SMALL_STACK, run_payload, arena);
    if (result >= 0) /* that signals need not go by way of us */
        result = send_message(child->sync, &kind, 1, &payload, 1);
    (void)close_fd(child->meeting[1]);
    return result < 0 ? result : execute_init(child->status, child->meeting[0], child->program);
}

int is_init(const char *name)
{
    for (size_t i = 0; i < sizeof INIT_NAME; i++)
        if (name[i] != INIT_NAME[i])
            return 0;
    return 1;
}

/* Whoever got hold of it could do nothing with it. */
static long become_harmless(void)
{
    struct capability_header header = {CAPABILITY_VERSION_3, 0};
    struct capability_data none[2] = {{0, 0, 0}, {0, 0, 0}};
    uint64_t every_signal = ~0ull;
    long result = sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (result == 0)
        result = sys(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (result == 0)
        result = sys(__NR_capset, &header, none);
    if (result == 0)
        result = sys(NR_CLOSE_RANGE, 0, FD_STATUS - 1, 0);
    if (result == 0)
        result = sys(NR_CLOSE_RANGE, FD_MEETING + 1, ~0u, 0);
    if (result == 0)
        result = sys(__NR_rt_sigprocmask, SIG_SETMASK, &every_signal, 0, sizeof every_signal);
    (void)sys(__NR_prctl, PR_SET_NAME, INIT_NAME, 0, 0, 0); /* for ps */
    (void)sys(__NR_chdir, "/"); /* so as not to hold a directory; it might be closed to us */
    return result;
}

/* Ends with the payload; the kernel then kills everything else in the PID namespace. */
static void reap(int32_t payload)
{
    for (;;) {
        uint32_t status = 0;
        long pid = sys(__NR_wait4, -1, &status, WNOHANG | WALL, 0);
        if (pid <= 0)
            return;
        if (pid != payload)
            continue;
        (void)sys(__NR_write, FD_STATUS, &status, sizeof status); /* or nobody is there to know */
        exit_process(status & 0x7f ? 128 + (int)(status & 0x7f) : (int)(status >> 8));
    }
}

_Noreturn void init_main(void)
{
    int32_t payload = 0;
    uint64_t every_signal = ~0ull;
    if (become_harmless() < 0 ||
        sys(__NR_read, FD_MEETING, &payload, sizeof payload) != sizeof payload ||
        sys(__NR_write, FD_MEETING, "", 1) != 1)
        exit_process(1); /* and the payload with us */
    (void)close_fd(FD_MEETING);
    for (;;) {
        long signal = sys(__NR_rt_sigtimedwait, &every_signal, 0, 0, sizeof every_signal);
        if (signal == SIGCHLD)
            reap(payload);
        else if (signal > 0)
            (void)sys(__NR_kill, payload, signal); /* or it became somebody whom we may not */
    }
}
