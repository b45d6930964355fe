/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A procfs for a container that shares the PID namespace of others. It takes the rights of who owns
 * that namespace, which a container with another user namespace has not; and it shows the PID
 * namespace of who mounts it, so a process has to be in there for that. It has the launcher's
 * memory and fds, is not dumpable, and is gone before anything else happens. Who has the ids of
 * host root in there could stop it, and us with it: Python asks for none then.
 */
#include "clone.h"
#include "internal.h"

struct visit {
    const struct request *request;
    const struct row *row;
    int pid_namespace;
    long result; /* the mount */
    uint8_t *stack;
};

static void mount_there(void *argument)
{
    struct visit *visit = argument;
    visit->result = make_mount(visit->request, visit->row, "proc");
    exit_process(0);
}

static void send_visitor(void *argument)
{
    struct visit *visit = argument;
    struct clone_args args = {.flags = CLONE_VM | CLONE_FILES | CLONE_VFORK};
    long pid = sys(__NR_setns, visit->pid_namespace, CLONE_NEWPID);
    if (pid == 0)
        pid = clone_onto(&args, visit->stack, SMALL_STACK / 2, mount_there, visit);
    if (pid < 0)
        visit->result = pid;
    else
        (void)sys(__NR_wait4, pid, 0, WALL, 0); /* it has ended */
    exit_process(0);
}

/* Of those that are joined; -1: it is the caller's that is shared. */
static int joined_pid_namespace(const struct request *request)
{
    const uint32_t *kinds = span_at(request->bytes, request->start->joined);
    for (uint32_t i = 0; i < request->joined_count; i++)
        if (kinds[i] == CLONE_NEWPID)
            return request->joined[i];
    return -1;
}

long mount_shared_procfs(const struct request *request, const struct row *row, uint8_t *stack)
{
    struct clone_args args = {.flags = CLONE_VM | CLONE_FILES | CLONE_VFORK};
    struct visit visit = {.request = request,
                          .row = row,
                          .pid_namespace = joined_pid_namespace(request),
                          .result = -ESRCH, /* it was killed */
                          .stack = stack};
    long pid;
    if (visit.pid_namespace < 0)
        return make_mount(request, row, "proc");
    pid = clone_onto(&args, stack + SMALL_STACK / 2, SMALL_STACK / 2, send_visitor, &visit);
    if (pid < 0)
        return pid;
    (void)sys(__NR_wait4, pid, 0, WALL, 0); /* it has ended */
    return visit.result;
}
