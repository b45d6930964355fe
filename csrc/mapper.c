/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges of ids for a launcher without root: only newuidmap and newgidmap, which have the right to,
 * may write such maps (START_MAP_BY_PROGRAM). A process of its own, the mapper, runs them one after
 * the other while the child waits at STEP_SYNC; the launcher goes on with its other work, and with
 * this start when the mapper has ended. So neither they nor the mapper are the caller's children.
 */
#include "clone.h"
#include "state.h"

enum { NUMBER_SIZE = 12, REFUSED = 1 };

struct mapping {
    uint8_t *bytes;
    struct span programs[2]; /* vectors: the program, room for the pid, triples of numbers */
    char pid[NUMBER_SIZE];
    const char **args; /* of the one that is run */
};

/* In the mapper's memory: no two are made at once. */
static struct mapping mapping;

static void exec_program(void *unused)
{
    static const char *const no_environment[] = {NULL};
    uint64_t no_signals = 0;
    (void)unused;
    (void)sys(__NR_rt_sigprocmask, SIG_SETMASK, &no_signals, 0, sizeof no_signals); /* valid */
    (void)sys(__NR_execve, mapping.args[0], mapping.args, no_environment);
    exit_process(REFUSED); /* execve came back */
}

static int run_program(struct span program)
{
    static _Alignas(16) uint8_t stack[SMALL_STACK];
    struct clone_args args = {.flags = CLONE_VM | CLONE_VFORK, .exit_signal = SIGCHLD};
    uint64_t *slots = (uint64_t *)(mapping.bytes + program.offset);
    uint32_t status = REFUSED;
    long pid;
    if (program.count == 0)
        return 0;
    for (uint32_t i = 0; i < program.count; i++)
        slots[i] = (uint64_t)(uintptr_t)string_at(mapping.bytes, (uint32_t)slots[i]);
    slots[1] = (uint64_t)(uintptr_t)mapping.pid;
    mapping.args = (const char **)slots;
    pid = clone_onto(&args, stack, sizeof stack, exec_program, NULL);
    return pid > 0 && sys(__NR_wait4, pid, &status, WALL, 0) == pid && status == 0 ? 0 : REFUSED;
}

/* Ends with 0, or with the number of the program that failed, from 1. */
static void run_mapper(void *unused)
{
    (void)unused;
    (void)sys(__NR_setpgid, 0, 0); /* a leader's own child: it can; for stop_mapper() */
    if (sys(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        exit_process(1);
    (void)sys(NR_CLOSE_RANGE, FD_CALLER, ~0u, 0); /* none is the programs' business; valid */
    for (int i = 0; i < 2; i++)
        if (run_program(mapping.programs[i]) != 0)
            exit_process(i + 1);
    exit_process(0);
}

long start_mapper(struct container *container)
{
    static _Alignas(16) uint8_t stack[SMALL_STACK];
    const struct request *request = &container->arena->request;
    struct clone_args args = {.exit_signal = SIGCHLD};
    long pid;
    mapping.bytes = request->bytes;
    mapping.programs[0] = request->start->uid_program;
    mapping.programs[1] = request->start->gid_program;
    (void)append_number(mapping.pid, (uint32_t)container->pid); /* the end is of no use */
    pid = clone_onto(&args, stack, sizeof stack, run_mapper, NULL);
    container->mapper = pid < 0 ? 0 : (int32_t)pid;
    return pid < 0 ? pid : 0;
}

/* The child is gone, and its pid free for another process. */
void stop_mapper(struct container *container)
{
    if (container->mapper == 0)
        return;
    (void)sys(__NR_kill, -container->mapper, SIGKILL); /* with its program, whose real id is ours */
    (void)sys(__NR_kill, container->mapper, SIGKILL);  /* it lives: we have not waited */
    (void)sys(__NR_wait4, container->mapper, 0, WALL, 0);
    container->mapper = 0;
    close_request(&container->arena->request);
}
