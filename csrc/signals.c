/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals into a pipe, whatever the interpreter does meanwhile: compiled into the extension module.
 * Python's own handlers run in its main thread only, and not while that waits in C.
 */
#define _GNU_SOURCE
#include "signals.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

static volatile int pipe_end = -1;
static struct sigaction replaced[_NSIG];

static void pass_on(int number)
{
    int error = errno;
    unsigned char byte = (unsigned char)number;
    if (write(pipe_end, &byte, 1) < 0) {
        /* It is full of signals that nobody has taken yet: one more of them tells nothing new. */
    }
    errno = error;
}

int catch_signal(int number, int fd)
{
    struct sigaction action = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
    sigfillset(&action.sa_mask);
    pipe_end = fd;
    if (number < 1 || number >= _NSIG)
        return EINVAL;
    return sigaction(number, &action, &replaced[number]) < 0 ? errno : 0;
}

int release_signal(int number)
{
    struct sigaction now;
    if (sigaction(number, NULL, &now) < 0)
        return errno;
    if (now.sa_handler != pass_on) /* somebody has set another one meanwhile */
        return 0;
    return sigaction(number, &replaced[number], NULL) < 0 ? errno : 0;
}
