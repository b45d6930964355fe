/* SPDX-License-Identifier: Apache-2.0 */
/* User namespaces that say how the ids of a mount are mapped, and nothing else. */
#include "clone.h"
#include "internal.h"

/* Nobody's business but its maker's, which kills it: it has the launcher's memory and rights. */
static void hold_namespace(void *unused)
{
    (void)unused;
    (void)sys(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* cannot fail */
    for (;;)
        (void)sys(__NR_ppoll, 0, 0, 0, 0, 0); /* until it is killed */
}

static long write_map(int pid, const char *name, const char *map)
{
    return write_proc(pid, name, map, (size_t)(next_string(map) - map) - 1);
}

/* An fd of a user namespace with these maps, uid NUL gid NUL: a process has to be in it for as long
 * as they are written. As root only. */
long open_mapped_namespace(const char *maps, uint8_t *stack)
{
    int pidfd = -1;
    struct clone_args args = {.flags = CLONE_NEWUSER | CLONE_VM | CLONE_PIDFD,
                              .pidfd = (uint64_t)(uintptr_t)&pidfd};
    long pid = clone_onto(&args, stack, SMALL_STACK, hold_namespace, NULL);
    long result;
    if (pid < 0)
        return pid;
    result = write_map((int)pid, "uid_map", maps);
    if (result == 0)
        result = write_map((int)pid, "gid_map", next_string(maps));
    if (result == 0)
        result = open_proc((int)pid, "ns/user", O_RDONLY);
    (void)sys(NR_PIDFD_SEND_SIGNAL, pidfd, SIGKILL, 0, 0); /* it lives: nobody has waited for it */
    (void)sys(__NR_wait4, pid, 0, WALL, 0);                /* as above */
    (void)close_fd(pidfd);
    return result;
}
