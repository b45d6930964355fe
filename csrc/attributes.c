/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process inherits beside ids, rights and fds: how it is scheduled, and its limits.
 *
 * The launcher resets its own once, and its children inherit that: a container starts alike whoever
 * the caller is. What the kernel does not let a lesser user take back (a nice value above 0, the
 * idle policy, hard limits) was laid on the caller from outside, and stays. What a process asks for
 * is set on the child by the launcher, which has rights for it that the child has lost.
 */
#include "internal.h"

enum {
    PRIO_PROCESS = 0,
    SCHED_OTHER = 0,
    IOPRIO_WHO_PROCESS = 1,
    IOPRIO_NONE = 0,
    MPOL_DEFAULT = 0,
    PER_LINUX = 0,
    TIMER_SLACK = 50000, /* nanoseconds: the kernel's own */
    CPU_BYTES = 1024     /* more than any kernel has, CONFIG_NR_CPUS being 8192 at most */
};

enum { RLIMIT_STACK = 3, RLIMIT_CORE = 4, RLIMIT_MEMLOCK = 8, RLIMIT_MSGQUEUE = 12, RLIMITS = 16 };

static uint64_t soft_limit(int resource)
{
    switch (resource) { /* those of a kernel at boot, INIT_RLIMITS; other limits have none */
    case RLIMIT_STACK:
    case RLIMIT_MEMLOCK:
        return 8 << 20;
    case RLIMIT_CORE:
        return 0;
    case RLIMIT_MSGQUEUE:
        return 819200;
    default:
        return ~0ull;
    }
}

static void reset_soft_limits(void)
{
    for (int resource = 0; resource < RLIMITS; resource++) {
        struct rlimit_pair pair;
        uint64_t soft = soft_limit(resource);
        if (sys(__NR_prlimit64, 0, resource, 0, &pair) < 0)
            continue; /* none that this kernel has */
        pair.soft = soft < pair.hard ? soft : pair.hard;
        (void)sys(__NR_prlimit64, 0, resource, &pair, 0); /* up to the hard one: always possible */
    }
}

/* Where one fails the kernel has none of that, or a lesser user may not: see above. */
void reset_attributes(void)
{
    static const uint8_t zero[CPU_BYTES];
    uint8_t cpus[CPU_BYTES];
    int priority = 0;
    memset(cpus, 0xff, sizeof cpus);
    (void)sys(__NR_sched_setscheduler, 0, SCHED_OTHER, &priority);
    (void)sys(__NR_setpriority, PRIO_PROCESS, 0, 0);
    (void)sys(__NR_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_NONE);
    (void)sys(__NR_sched_setaffinity, 0, sizeof cpus, cpus);
    (void)sys(__NR_set_mempolicy, MPOL_DEFAULT, zero, 0);
    (void)sys(__NR_prctl, PR_SET_TIMERSLACK, TIMER_SLACK, 0, 0, 0);
    (void)sys(__NR_prctl, PR_SET_SECUREBITS, 0, 0, 0, 0); /* locked ones only take away */
    (void)sys(__NR_personality, PER_LINUX);
    reset_soft_limits();
}

long set_scheduling(const struct request *request, struct progress *progress, int pid)
{
    const struct start *start = request->start;
    long result = 0;
    if (start->flags & START_NICE) {
        progress->row = 0;
        result = sys(__NR_setpriority, PRIO_PROCESS, pid, start->nice);
    }
    if (result == 0 && start->cpus.count > 0) {
        progress->row = 1;
        result = sys(__NR_sched_setaffinity, pid, start->cpus.count,
                     span_at(request->bytes, start->cpus));
    }
    if (result >= 0)
        progress->row = -1;
    return result < 0 ? result : 0;
}

/* Hard limits above ours; the child sets all limits later, when they disturb nothing. */
long raise_limits(const struct request *request, struct progress *progress, int pid)
{
    const struct limit *limits = span_at(request->bytes, request->start->rlimits);
    progress->step = STEP_RLIMITS; /* the launcher's part of it */
    for (uint32_t i = 0; i < request->start->rlimits.count; i++) {
        struct rlimit_pair pair;
        long result = sys(__NR_prlimit64, pid, limits[i].resource, 0, &pair);
        progress->row = (int32_t)i;
        if (result == 0 && limits[i].hard > pair.hard) {
            pair.hard = limits[i].hard;
            result = sys(__NR_prlimit64, pid, limits[i].resource, &pair, 0);
        }
        if (result < 0)
            return result;
    }
    progress->row = -1;
    return 0;
}

long write_oom_score(const struct start *start, int pid)
{
    char text[12] = "-";
    uint32_t size = start->oom_score < 0 ? (uint32_t)-start->oom_score : (uint32_t)start->oom_score;
    char *number = start->oom_score < 0 ? text + 1 : text;
    if ((start->flags & START_OOM_SCORE) == 0)
        return 0;
    return write_proc(pid, "oom_score_adj", text, (size_t)(append_number(number, size) - text));
}
