/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A filter that asks: who made the container answers, through the listener of the filter.
 *
 * Once it is loaded the child may make no call but execve: any other may be one that is asked
 * about, before anybody is there to answer. So a thread of the child sends the listener on, which
 * is older than the filter and does not have it. The two meet in memory alone, and execve ends the
 * thread.
 */
#include "child.h"
#include "clone.h"

enum { PAUSE = 20000 }; /* nanoseconds: the filter is loaded in some of these */

static void send_listener(void *argument)
{
    struct child *child = argument;
    const uint8_t kind = CHILD_LISTENER;
    int fd;
    while (child->listener == 0) {
        struct {
            int64_t seconds, nanoseconds;
        } time = {0, PAUSE};
        (void)sys(__NR_ppoll, 0, 0, &time, 0, 0);
    }
    fd = child->listener;
    child->listener_sent = (int32_t)send_message(child->sync, &kind, 1, &fd, 1);
    for (;;)
        (void)sys(__NR_ppoll, 0, 0, 0, 0, 0); /* until execve, or the end of the child */
}

long load_with_listener(struct child *child, const struct sock_fprog *program)
{
    struct clone_args args = {.flags = CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD};
    long result;
    child->listener = 0;
    child->listener_sent = 1;
    result = clone_onto(&args, child->helper_stack, SMALL_STACK, send_listener, child);
    if (result < 0)
        return result;
    result = sys(__NR_seccomp, SECCOMP_SET_MODE_FILTER, child->start->filter_flags, program);
    if (result < 0)
        return result;
    child->listener = (int32_t)result;
    while (child->listener_sent > 0)
        relax();
    return child->listener_sent;
}
