/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start the launcher from a process of any size with any number of threads: compiled into the
 * extension module, with libc.
 *
 * fork() would copy the caller's page tables (36 ms at 1 GiB) and its locks. So two processes
 * are made that share the caller's memory while it waits (CLONE_VM|CLONE_VFORK), each on a stack
 * of its own: an intermediate without an exit signal, so that no SIGCHLD and no plain wait() of
 * the program tells of it, and the launcher, which is nobody's child once the intermediate has
 * ended. Between clone and exec only system calls are made: no malloc, no locks.
 */
#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef __WALL
#define __WALL 0x40000000
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

extern const unsigned char container_launcher_image[];
extern const unsigned long container_launcher_image_size;

enum { STACK_SIZE = 65536, HIGH_FD = 16, FIRST_FREE_FD = 6 };
enum { NO_MAGIC_LINKS = 0x02, IN_ROOT = 0x10, OPEN_TRIES = 128 }; /* linux/openat2.h */

struct intermediate {
    struct spawn *spawn;
    char *stack; /* of the launcher-to-be */
    volatile int pid;
};

const void *launcher_image(void)
{
    return container_launcher_image;
}

uint64_t launcher_image_size(void)
{
    return container_launcher_image_size;
}

int open_below(int root, const char *path)
{
    const struct {
        uint64_t flags, mode, resolve;
    } how = {O_PATH | O_CLOEXEC, 0, NO_MAGIC_LINKS | IN_ROOT};
    long fd = -1;
    errno = EAGAIN; /* again is: somebody renamed or mounted while ".." was being resolved */
    for (int i = 0; i < OPEN_TRIES && fd < 0 && errno == EAGAIN; i++)
        fd = syscall(SYS_openat2, root, path, &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
}

int join_namespace(int fd, int kind)
{
    return syscall(SYS_setns, fd, kind) < 0 ? errno : 0;
}

static int place_fds(const int *fds, int count)
{
    for (int i = 0; i < count; i++)
        if (dup2(fds[i], i) < 0)
            return -1;
    return 0;
}

/* First out of the way of the low numbers, then down to them. */
static int arrange_fds(const struct spawn *spawn, int *ret_program)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    const int given[] = {
        null, null, null, spawn->socket, spawn->caller_pidfd, spawn->caller_status, spawn->program};
    enum { COUNT = sizeof given / sizeof given[0] };
    int high[COUNT];
    if (null < 0)
        return -1;
    for (int i = 0; i < COUNT; i++) {
        high[i] = fcntl(given[i], F_DUPFD_CLOEXEC, HIGH_FD);
        if (high[i] < 0)
            return -1;
    }
    *ret_program = high[COUNT - 1];
    if (place_fds(high, COUNT - 1) < 0)
        return -1;
    /* What the program left inheritable is none of the launcher's. */
    if (syscall(SYS_close_range, FIRST_FREE_FD, *ret_program - 1, 0) < 0)
        return -1;
    return (int)syscall(SYS_close_range, *ret_program + 1, ~0u, 0);
}

/* A program that the kernel spares when memory runs out would have containers that it spares: the
 * launcher goes without that. Here, because its own file of it is root's once it runs. Fails only
 * for who is not dumpable and not root, and was spared by root. */
static void give_up_oom_protection(void)
{
    char text[16] = "";
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    if (read(fd, text, sizeof text - 1) > 0 && text[0] == '-')
        (void)!write(fd, "0", 1);
    close(fd);
}

/* Runs in the caller's memory, in a process of its own. */
static int exec_launcher(void *argument)
{
    struct intermediate *intermediate = argument;
    struct spawn *spawn = intermediate->spawn;
    char *const args[] = {"container-launcher", NULL};
    char *const env[] = {NULL};
    int program = -1;
    give_up_oom_protection();
    if ((spawn->join == 0 || syscall(SYS_setns, spawn->caller_pidfd, spawn->join) == 0) &&
        arrange_fds(spawn, &program) == 0)
        (void)syscall(SYS_execveat, program, "", args, env, AT_EMPTY_PATH); /* only on failure */
    spawn->error = errno;
    _exit(1);
}

static int run_intermediate(void *argument)
{
    struct intermediate *intermediate = argument;
    int pid = clone(exec_launcher, intermediate->stack + STACK_SIZE, CLONE_VM | CLONE_VFORK,
                    intermediate);
    if (pid < 0)
        intermediate->spawn->error = errno;
    intermediate->pid = pid;
    _exit(0);
}

static int clone_intermediate(struct intermediate *intermediate, char *stack)
{
    sigset_t every_signal, old;
    int pid;
    sigfillset(&every_signal);
    /* No handler of the program may run on these stacks. */
    if ((intermediate->spawn->error = pthread_sigmask(SIG_SETMASK, &every_signal, &old)) != 0)
        return -1;
    pid = clone(run_intermediate, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK, intermediate);
    if (pid < 0)
        intermediate->spawn->error = errno;
    else
        while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return pid;
}

int spawn_launcher(struct spawn *spawn)
{
    struct intermediate intermediate = {spawn, NULL, -1};
    char *stacks = mmap(NULL, 2 * STACK_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    spawn->error = 0;
    if (stacks == MAP_FAILED) {
        spawn->error = errno;
        return -1;
    }
    intermediate.stack = stacks + STACK_SIZE;
    if (clone_intermediate(&intermediate, stacks) < 0 || spawn->error != 0)
        intermediate.pid = -1;
    munmap(stacks, 2 * STACK_SIZE);
    return intermediate.pid;
}
