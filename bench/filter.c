/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a seccomp filter costs: filter ROUNDS CALLS FILE...
 *
 * In each round, for each file (a struct sock_filter[]; an empty one is no filter) in a random
 * order, a fresh process loads it and makes CALLS calls each of three kinds: one that is allowed by
 * its number, one that is allowed for its argument, one that is refused. Prints a line for each:
 * the file's index, then nanoseconds to load it and for one call of each kind.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FILES = 16 };
static const long ASK_PERSONALITY = 0xffffffff;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e9 * (double)time.tv_sec + (double)time.tv_nsec;
}

static double load(struct sock_fprog *program)
{
    double start = now();
    if (program->len > 0 && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, program) < 0)
        _exit(1);
    return now() - start;
}

static double repeat(long count, long number, long argument)
{
    double start = now();
    if (count == 0)
        return 0;
    for (long i = 0; i < count; i++)
        (void)syscall(number, argument);
    return (now() - start) / (double)count;
}

static void measure(int index, struct sock_fprog *program, long count)
{
    double results[4];
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        _exit(1);
    results[0] = load(program);
    results[1] = repeat(count, SYS_getppid, 0);
    results[2] = repeat(count, SYS_personality, ASK_PERSONALITY);
    results[3] = repeat(count, SYS_unshare, 0);
    printf("%d %.0f %.1f %.1f %.1f\n", index, results[0], results[1], results[2], results[3]);
    fflush(stdout);
    _exit(0);
}

static struct sock_fprog read_program(const char *path)
{
    static struct sock_filter storage[MOST_FILES][BPF_MAXINSNS];
    static int used;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, storage[used], sizeof storage[used]);
    if (size < 0) {
        perror(path);
        exit(1);
    }
    close(fd);
    return (struct sock_fprog){(unsigned short)((size_t)size / sizeof(struct sock_filter)),
                               storage[used++]};
}

/* What is freed of one filter may cost the next. */
static void shuffle(int *order, int count)
{
    for (int i = count - 1; i > 0; i--) {
        int other = rand() % (i + 1);
        int kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

int main(int count, char **args)
{
    struct sock_fprog programs[MOST_FILES];
    int order[MOST_FILES];
    int files = count - 3;
    if (files < 1 || files > MOST_FILES)
        return 2;
    for (int i = 0; i < files; i++) {
        order[i] = i;
        programs[i] = read_program(args[3 + i]);
    }
    for (long round = strtol(args[1], NULL, 10); round > 0; round--) {
        shuffle(order, files);
        for (int i = 0; i < files; i++) {
            int status;
            pid_t child = fork();
            if (child == 0)
                measure(order[i], &programs[order[i]], strtol(args[2], NULL, 10));
            if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0)
                return 1;
        }
    }
    return 0;
}
