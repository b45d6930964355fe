/* SPDX-License-Identifier: Apache-2.0 */
/*
 * timer PROGRAM [ARG...]: for each byte on standard input, posix_spawn (which
 * is vfork and exec in glibc) and reap PROGRAM, a path, and print the
 * microseconds that took. The price of a program for a caller that is as cheap
 * as can be. Ends with the first exit status that is not 0, or with 125.
 */
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { EXIT_TIMER = 125 };

static int fail(const char *step, int error)
{
    dprintf(STDERR_FILENO, "timer: %s: %s\n", step, strerror(error));
    return EXIT_TIMER;
}

static int spawn_and_reap(char **argv)
{
    int status, error;
    pid_t pid;

    error = posix_spawn(&pid, argv[0], NULL, NULL, argv, environ);
    if (error != 0)
        return fail("posix_spawn", error);
    if (waitpid(pid, &status, 0) < 0)
        return fail("waitpid", errno);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
    struct timespec begin, end;
    int code = argc > 1 ? 0 : fail("usage", EINVAL);
    char byte;

    while (code == 0 && read(STDIN_FILENO, &byte, 1) == 1) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        code = spawn_and_reap(argv + 1);
        clock_gettime(CLOCK_MONOTONIC, &end);
        dprintf(STDOUT_FILENO, "%.1f\n",
                (double)(end.tv_sec - begin.tv_sec) * 1e6 +
                    (double)(end.tv_nsec - begin.tv_nsec) / 1e3);
    }
    return code;
}
