/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor_exec: one more command in a default container, written directly in C. The figure that
 * `Container.exec` is compared with ("exec floor").
 *
 *     floor_exec [--filter FILE] [--serve] PID CMD [ARG...]
 *
 * Run as root. PID is the first process of a container of `container.run`'s defaults. Does what
 * Container.exec([CMD, ARG...]) and wait() do, and its command is in the same state;
 * tests/system/test_floor.py compares the two. Exit status: that of CMD, 128 + N for signal N, 125
 * for a failure of our own, which is told with its step and errno. CMD has pipes as standard
 * output and error; what is in them when it has ended is copied to ours.
 *
 * --filter FILE  the seccomp filter, struct sock_filter[]
 * --serve        run CMD once for each byte on standard input, print the microseconds of each,
 *                and no output
 *
 * A time is taken from before the first to after the last system call that a command costs a
 * process which is already running: from open of its /dev/null to the close of its pipes.
 *
 * Theory of operation. The parent enters the PID namespace for the moment of one vfork (clone with
 * CLONE_VM and CLONE_VFORK, as vfork must not return in the child of another function), so that
 * the child is born inside, and reaps it. The child does the rest. It shares the parent's memory
 * until execve, which is not dumpable: nobody inside can look into it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_FLOOR = 125, CHILD_STACK_SIZE = 64 * 1024, STREAMS = 3 };

/* But the PID namespace, which the child is born in. */
static const int joined_namespaces =
    CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;

/* Docker's default set. */
static const uint64_t kept_capabilities =
    1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE | 1ULL << CAP_FSETID | 1ULL << CAP_FOWNER |
    1ULL << CAP_MKNOD | 1ULL << CAP_NET_RAW | 1ULL << CAP_SETGID | 1ULL << CAP_SETUID |
    1ULL << CAP_SETFCAP | 1ULL << CAP_SETPCAP | 1ULL << CAP_NET_BIND_SERVICE |
    1ULL << CAP_SYS_CHROOT | 1ULL << CAP_KILL | 1ULL << CAP_AUDIT_WRITE;

static char *const container_environment[] = {
    (char *)"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    (char *)"HOME=/root",
    (char *)"TERM=xterm",
    (char *)"LANG=C.UTF-8",
    NULL,
};

/* What stays the same from command to command. */
struct target {
    int pidfd, own_pidfd;
    uid_t uid; /* of the host, its root */
    gid_t gid;
    char **argv;
    struct sock_fprog filter;
};

struct streams {
    int child[STREAMS];
    int ours[STREAMS]; /* [0]: none */
};

struct child_start {
    const struct target *target;
    const struct streams *streams;
};

static _Noreturn void fail(const char *step)
{
    dprintf(STDERR_FILENO, "floor_exec: %s: %s (errno %d)\n", step, strerrordesc_np(errno), errno);
    _exit(EXIT_FLOOR);
}

static long check(const char *step, long result)
{
    if (result < 0)
        fail(step);
    return result;
}

/* ---- the child's steps ---- */

static void die_with_parent(void)
{
    check("pdeathsig", prctl(PR_SET_PDEATHSIG, SIGKILL));
}

/* Raw calls, because glibc's signal every thread of an address space that is here shared. */
static void become_container_root(void)
{
    const gid_t group = 0;

    check("setgroups", syscall(SYS_setgroups, 1, &group));
    check("setresgid", syscall(SYS_setresgid, 0, 0, 0));
    check("setresuid", syscall(SYS_setresuid, 0, 0, 0));
}

static void drop_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    const uint32_t low = (uint32_t)kept_capabilities;
    const uint32_t high = (uint32_t)(kept_capabilities >> 32);
    const struct __user_cap_data_struct sets[2] = {{low, low, 0}, {high, high, 0}};

    for (unsigned long capability = 0; capability <= CAP_LAST_CAP; capability++)
        if (!(kept_capabilities >> capability & 1))
            check("bounding set", prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
    check("capset", syscall(SYS_capset, &header, sets));
}

static int run_child(void *argument)
{
    const struct child_start *start = argument;
    const struct target *target = start->target;
    const struct rlimit none = {0, 0};

    check("setns", setns(target->pidfd, joined_namespaces));
    become_container_root();
    die_with_parent(); /* a change of ids clears it */
    check("setsid", setsid());
    check("session keyring", syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL));
    check("subreaper", prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    check("rlimit core", setrlimit(RLIMIT_CORE, &none));
    umask(022);
    drop_capabilities();
    check("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    check("chdir", chdir("/"));
    for (int i = 0; i < STREAMS; i++)
        check("dup2", dup2(start->streams->child[i], i));
    check("close_range", close_range(STREAMS, UINT_MAX, CLOSE_RANGE_CLOEXEC));
    if (target->filter.len > 0)
        check("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &target->filter));
    execve(target->argv[0], target->argv, container_environment);
    fail("execve");
}

/* ---- the parent's steps ---- */

/* The command owns its pipes, or it could not open its /dev/stdout. */
static void open_streams(const struct target *target, struct streams *streams)
{
    streams->child[0] = (int)check("/dev/null", open("/dev/null", O_RDONLY | O_CLOEXEC));
    for (int i = 1; i < STREAMS; i++) {
        int ends[2];

        check("pipe", pipe2(ends, O_CLOEXEC));
        check("fchown", fchown(ends[1], target->uid, target->gid));
        streams->ours[i] = ends[0];
        streams->child[i] = ends[1];
    }
}

static pid_t clone_inside(const struct target *target, const struct streams *streams)
{
    static char stack[CHILD_STACK_SIZE] __attribute__((aligned(16)));
    struct child_start start = {target, streams};
    pid_t pid;

    check("PID namespace", setns(target->pidfd, CLONE_NEWPID));
    pid = (pid_t)check(
        "clone", clone(run_child, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, &start));
    check("own PID namespace", setns(target->own_pidfd, CLONE_NEWPID));
    return pid;
}

static void copy_output(int from, int to)
{
    char buffer[4096];
    ssize_t size;

    while ((size = check("read output", read(from, buffer, sizeof(buffer)))) > 0)
        check("write output", write(to, buffer, (size_t)size));
}

/* Returns the wait status of the command. */
static int run_command(const struct target *target, bool copying)
{
    struct streams streams;
    int status;
    pid_t pid;

    open_streams(target, &streams);
    pid = clone_inside(target, &streams);
    for (int i = 0; i < STREAMS; i++)
        close(streams.child[i]);
    check("wait", waitpid(pid, &status, 0));
    for (int i = 1; i < STREAMS; i++) {
        if (copying)
            copy_output(streams.ours[i], i);
        close(streams.ours[i]);
    }
    return status;
}

/* ---- the program ---- */

/* Once, not per command: a child begins with its parent's. */
static void reset_signals(void)
{
    sigset_t none;
    unsigned long standard[4] = {0}; /* the kernel's sigaction: glibc's refuses 32 and 33 */

    for (int number = 1; number < NSIG; number++)
        (void)syscall(SYS_rt_sigaction, number, standard, NULL, 8); /* not KILL and STOP */
    sigemptyset(&none);
    check("sigprocmask", sigprocmask(SIG_SETMASK, &none, NULL));
}

static int exit_code(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int serve(const struct target *target)
{
    struct timespec begin, end;
    int code = 0;
    char byte;

    while (code == 0 && check("read", read(STDIN_FILENO, &byte, 1)) == 1) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        code = exit_code(run_command(target, false));
        clock_gettime(CLOCK_MONOTONIC, &end);
        dprintf(STDOUT_FILENO, "%.1f\n",
                (double)(end.tv_sec - begin.tv_sec) * 1e6 +
                    (double)(end.tv_nsec - begin.tv_nsec) / 1e3);
    }
    return code;
}

static _Noreturn void exit_with_usage(void)
{
    dprintf(STDERR_FILENO, "usage: floor_exec [--filter FILE] [--serve] PID CMD [ARG...]\n");
    exit(EXIT_FLOOR);
}

static void read_filter(struct sock_fprog *filter, const char *path)
{
    static struct sock_filter instructions[BPF_MAXINSNS];
    int fd = (int)check(path, open(path, O_RDONLY | O_CLOEXEC));
    ssize_t size = check(path, read(fd, instructions, sizeof(instructions)));

    close(fd);
    filter->filter = instructions;
    filter->len = (unsigned short)((size_t)size / sizeof(instructions[0]));
}

/* Its root belongs to the ids that its own root has on the host. */
static unsigned int host_id(const char *pid, const char *map)
{
    char path[64], line[64] = "";
    unsigned int id;
    int fd;

    snprintf(path, sizeof(path), "/proc/%s/%s", pid, map);
    fd = (int)check(path, open(path, O_RDONLY | O_CLOEXEC));
    check(path, read(fd, line, sizeof(line) - 1));
    close(fd);
    if (sscanf(line, " 0 %u", &id) != 1)
        exit_with_usage();
    return id;
}

int main(int argc, char **argv)
{
    struct target target = {0};
    bool serving = false;
    int next = 1;

    for (; next < argc && strncmp(argv[next], "--", 2) == 0; next++) {
        if (strcmp(argv[next], "--serve") == 0)
            serving = true;
        else if (strcmp(argv[next], "--filter") == 0 && next + 1 < argc)
            read_filter(&target.filter, argv[++next]);
        else
            exit_with_usage();
    }
    if (argc - next < 2)
        exit_with_usage();
    target.uid = host_id(argv[next], "uid_map");
    target.gid = host_id(argv[next], "gid_map");
    target.pidfd = (int)check("pidfd", pidfd_open(atoi(argv[next]), 0));
    target.own_pidfd = (int)check("own pidfd", pidfd_open(getpid(), 0));
    target.argv = argv + next + 1;
    check("dumpable", prctl(PR_SET_DUMPABLE, 0));
    check("nice", setpriority(PRIO_PROCESS, 0, 0)); /* once: children begin with it */
    reset_signals();
    return serving ? serve(&target) : exit_code(run_command(&target, true));
}
