/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor_a: the default container, written directly in C. The figure that the
 * library is compared with ("floor").
 *
 *     floor_a [--map-base N] [--mask PATH]... [--read-only PATH]... [--filter FILE]
 *             [--repeat N | --serve] ROOT CMD [ARG...]
 *
 * Run as root. Does what container.run([CMD, ARG...], root=ROOT) does and ends
 * in the same state; tests/system/test_floor.py compares the two. ROOT needs
 * the directories proc, sys and dev; CMD is a path inside. Exit status: that of
 * CMD, 128 + N for signal N, 125 for a failure of our own, which is told with
 * its step and errno.
 *
 * --map-base N   first of the 65536 host ids that become ids 0..65535
 * --mask PATH    below /proc or /sys: shows as empty. With these three it is
 * --read-only P  "floor_b", the floor of what the library does by default.
 * --filter FILE  the seccomp filter, struct sock_filter[]
 * --repeat N     start N containers in turn, print the microseconds of each
 * --serve        start one container for each byte on standard input, likewise
 *
 * A time is taken from before the first to after the last system call that a
 * container costs a process which is already running: from open_tree to the
 * end of waitpid.
 *
 * Theory of operation. Two processes. The parent keeps the host's rights: it
 * clones the root directory into a detached mount tree, clones the child into
 * seven new namespaces, writes its id maps, maps the ids of the tree by them,
 * tells the child by one byte in a pipe, and reaps it. The child does the rest
 * in its namespaces. The tree's fd is made before the clone, so the child
 * inherits it and no fd has to be sent.
 *
 * Why not vfork(): only a process with rights over the parent's user namespace
 * may write the maps of a range, so the parent must run while the child waits,
 * and CLONE_VFORK would suspend it until exec. CLONE_VM alone is what makes
 * vfork cheap (no copy of the address space), so that is used, on a stack of
 * the child's own. Consequences: both share errno, which is harmless because
 * either reads it only after a failure of its own, which ends the run; and the
 * child calls nothing that locks or allocates.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_LEN(array) (sizeof(array) / sizeof((array)[0]))

enum {
    EXIT_FLOOR = 125,
    ID_COUNT = 65536,
    CHILD_STACK_SIZE = 256 * 1024,
    MOST_PATHS = 64,
};

static const int namespace_flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
                                   CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;

/* Two slots of 65536 below the end of systemd's container range. */
static const unsigned long default_map_base = 1879048192UL - 2 * ID_COUNT;

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

/* Paths are relative to the new root, which is the working directory. */
static const struct mount_row {
    const char *type;
    const char *target;
    unsigned long flags;
    const char *data;
    bool make_target; /* inside our own /dev; elsewhere the root brings it */
} mount_rows[] = {
    {"proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, false},
    {"sysfs", "sys", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, false},
    {"tmpfs", "dev", MS_NOSUID | MS_NOEXEC, "mode=755,size=65536k", false},
    {"devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5", true},
    {"tmpfs", "dev/shm", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k", true},
};

static const char *const device_names[] = {"null", "zero", "full", "random", "urandom", "tty"};

static const struct link_row {
    const char *target;
    const char *path;
} link_rows[] = {
    {"/proc/self/fd", "dev/fd"},       {"/proc/self/fd/0", "dev/stdin"},
    {"/proc/self/fd/1", "dev/stdout"}, {"/proc/self/fd/2", "dev/stderr"},
    {"pts/ptmx", "dev/ptmx"},
};

struct request {
    const char *root;
    char **argv;
    unsigned long map_base;
    const char *masked[MOST_PATHS];
    const char *read_only[MOST_PATHS];
    size_t masked_count, read_only_count;
    struct sock_fprog filter;
};

struct child_start {
    const struct request *request;
    int tree_fd;
    int ready_pipe[2];
};

static _Noreturn void fail(const char *step)
{
    dprintf(STDERR_FILENO, "floor_a: %s: %s (errno %d)\n", step, strerrordesc_np(errno), errno);
    _exit(EXIT_FLOOR);
}

static long check(const char *step, long result)
{
    if (result < 0)
        fail(step);
    return result;
}

/* ---- the child's steps ---- */

static void bring_up_loopback(void)
{
    /* lo keeps its other flags: the kernel ignores them in SIOCSIFFLAGS. */
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = (int)check("socket", socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));

    check("loopback", ioctl(fd, SIOCSIFFLAGS, &request));
    close(fd);
}

static void limit_core_size(void)
{
    const struct rlimit none = {0, 0};

    check("rlimit core", setrlimit(RLIMIT_CORE, &none));
}

static void wait_for_maps(const struct child_start *start)
{
    char byte;

    /* End of file: the parent is gone. It must not go on unsupervised. */
    close(start->ready_pipe[1]);
    if (check("wait for maps", read(start->ready_pipe[0], &byte, 1)) == 0)
        _exit(EXIT_FLOOR);
}

/* Before the mounts: the host's root, as which the child begins, has no id in
 * the container and could create nothing there. Raw calls, because glibc's
 * signal every thread of an address space that is here shared. */
static void become_container_root(void)
{
    const gid_t group = 0;

    /* The primary group is one of the groups: a file can deny it what others may. */
    check("setgroups", syscall(SYS_setgroups, 1, &group));
    check("setresgid", syscall(SYS_setresgid, 0, 0, 0));
    check("setresuid", syscall(SYS_setresuid, 0, 0, 0));
}

/* After the ids, whose change clears it. */
static void die_with_parent(const struct child_start *start)
{
    struct pollfd parent = {.fd = start->ready_pipe[0]};

    check("pdeathsig", prctl(PR_SET_PDEATHSIG, SIGKILL));
    check("poll parent", poll(&parent, 1, 0));
    if (parent.revents & POLLHUP)
        _exit(EXIT_FLOOR);
}

/* On top of "/", because the container's root may be unable to walk to ROOT,
 * below a 0700 directory say. Absolute paths still begin beneath what is put
 * there. Nothing has to be made private first: the mounts of a namespace that
 * belongs to a new user namespace are slaves, and send nothing to the host. */
static void enter_root_tree(const struct child_start *start)
{
    check("attach root", move_mount(start->tree_fd, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    check("enter root", fchdir(start->tree_fd));
}

static void mount_file_systems(void)
{
    for (size_t i = 0; i < ARRAY_LEN(mount_rows); i++) {
        const struct mount_row *row = &mount_rows[i];

        if (row->make_target)
            check(row->target, mkdir(row->target, 0755));
        check(row->target, mount("none", row->target, row->type, row->flags, row->data));
    }
}

static void bind_devices(void)
{
    /* A remount would clear the other flags, too, and may not: the host's are locked. */
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY, .propagation = MS_PRIVATE};

    for (size_t i = 0; i < ARRAY_LEN(device_names); i++) {
        char host_path[32] = "/dev/";
        const char *target = host_path + 1;

        strcat(host_path, device_names[i]);
        check(host_path, mknod(target, S_IFREG | 0644, 0));
        check(host_path, mount(host_path, target, NULL, MS_BIND, NULL));
        check(host_path, mount_setattr(AT_FDCWD, target, 0, &attributes, sizeof(attributes)));
    }
}

static void make_links(void)
{
    for (size_t i = 0; i < ARRAY_LEN(link_rows); i++)
        check(link_rows[i].path, symlink(link_rows[i].target, link_rows[i].path));
}

/* As runc did for years: a file is covered by the host's /dev/null, a directory by an empty tmpfs.
 * What is not there is left out. */
static void mask_paths(const struct request *request)
{
    for (size_t i = 0; i < request->masked_count; i++) {
        const char *path = request->masked[i] + 1;
        int failed = mount("/dev/null", path, NULL, MS_BIND, NULL);

        if (failed && errno == ENOTDIR)
            failed = mount("none", path, "tmpfs", MS_RDONLY, NULL);
        if (failed && errno != ENOENT)
            fail(path);
    }
}

static void make_paths_read_only(const struct request *request)
{
    const unsigned long kept = MS_NOSUID | MS_NODEV | MS_NOEXEC;

    for (size_t i = 0; i < request->read_only_count; i++) {
        const char *path = request->read_only[i] + 1;

        if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) == 0)
            check(path, mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | kept, NULL));
        else if (errno != ENOENT)
            fail(path);
    }
}

static void load_filter(const struct request *request)
{
    if (request->filter.len > 0)
        check("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &request->filter));
}

static void pivot_to_root_tree(void)
{
    /* Puts the old root on top of the new one, from where it is detached. */
    check("pivot_root", syscall(SYS_pivot_root, ".", "."));
    check("detach old root", umount2(".", MNT_DETACH));
    check("chdir", chdir("/"));
}

/* A new user namespace begins with empty inheritable and ambient sets. */
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

    /* What needs no ids comes first, while the parent writes the maps. */
    check("setsid", setsid());
    umask(022);
    limit_core_size();
    check("hostname", sethostname("container", strlen("container")));
    bring_up_loopback();
    wait_for_maps(start);
    become_container_root();
    die_with_parent(start);
    check("session keyring", syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL));
    enter_root_tree(start);
    mount_file_systems();
    bind_devices();
    make_links();
    mask_paths(start->request);
    make_paths_read_only(start->request);
    pivot_to_root_tree();
    drop_capabilities();
    check("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    check("close_range", close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC));
    load_filter(start->request);
    execve(start->request->argv[0], start->request->argv, container_environment);
    fail("execve");
}

/* ---- the parent's steps ---- */

static int open_process_file(pid_t pid, const char *name, int flags)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
    return (int)check(name, open(path, flags | O_CLOEXEC));
}

static void write_id_map(pid_t pid, const char *name, unsigned long base)
{
    char line[64];
    int length = snprintf(line, sizeof(line), "0 %lu %d\n", base, ID_COUNT);
    int fd = open_process_file(pid, name, O_WRONLY);

    check(name, write(fd, line, (size_t)length));
    close(fd);
}

/* Private too: below a shared mount the tree is the host's peer, and what the
 * child mounts on it would appear on the host. */
static void map_ids_of_tree(int tree_fd, pid_t pid)
{
    int user_namespace_fd = open_process_file(pid, "ns/user", O_RDONLY);
    struct mount_attr attributes = {
        .attr_set = MOUNT_ATTR_IDMAP | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        .propagation = MS_PRIVATE,
        .userns_fd = (unsigned int)user_namespace_fd,
    };

    check("idmap root", mount_setattr(tree_fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
                                      sizeof(attributes)));
    close(user_namespace_fd);
}

/* Returns the wait status of the container's first process. */
static int run_container(const struct request *request)
{
    static char child_stack[CHILD_STACK_SIZE] __attribute__((aligned(16)));
    struct child_start start = {.request = request};
    int status;
    pid_t pid;

    start.tree_fd =
        (int)check("open_tree", open_tree(AT_FDCWD, request->root,
                                          OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
    check("pipe", pipe2(start.ready_pipe, O_CLOEXEC));
    pid = (pid_t)check("clone", clone(run_child, child_stack + sizeof(child_stack),
                                      namespace_flags | CLONE_VM | SIGCHLD, &start));
    write_id_map(pid, "uid_map", request->map_base);
    write_id_map(pid, "gid_map", request->map_base);
    map_ids_of_tree(start.tree_fd, pid);
    check("release child", write(start.ready_pipe[1], "", 1));
    check("wait", waitpid(pid, &status, 0));
    close(start.ready_pipe[0]);
    close(start.ready_pipe[1]);
    close(start.tree_fd);
    return status;
}

/* ---- the program ---- */

/* Once, not per container: a child begins with its parent's. */
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

static int run_timed(const struct request *request)
{
    struct timespec begin, end;
    int status;

    clock_gettime(CLOCK_MONOTONIC, &begin);
    status = run_container(request);
    clock_gettime(CLOCK_MONOTONIC, &end);
    dprintf(STDOUT_FILENO, "%.1f\n",
            (double)(end.tv_sec - begin.tv_sec) * 1e6 +
                (double)(end.tv_nsec - begin.tv_nsec) / 1e3);
    return exit_code(status);
}

static int repeat(const struct request *request, unsigned long count)
{
    int code = 0;

    while (code == 0 && count-- > 0)
        code = run_timed(request);
    return code;
}

static int serve(const struct request *request)
{
    char byte;
    int code = 0;

    while (code == 0 && check("read", read(STDIN_FILENO, &byte, 1)) == 1)
        code = run_timed(request);
    return code;
}

static _Noreturn void exit_with_usage(void)
{
    dprintf(STDERR_FILENO,
            "usage: floor_a [--map-base N] [--mask PATH]... [--read-only PATH]...\n"
            "               [--filter FILE] [--repeat N | --serve] ROOT CMD [ARG...]\n");
    exit(EXIT_FLOOR);
}

static unsigned long parse_number(const char *text)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0' || number > UINT32_MAX)
        exit_with_usage();
    return number;
}

static void add_path(const char **paths, size_t *count, const char *path)
{
    if (*count == MOST_PATHS || path[0] != '/')
        exit_with_usage();
    paths[(*count)++] = path;
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

int main(int argc, char **argv)
{
    struct request request = {.map_base = default_map_base};
    unsigned long count = 0;
    bool serving = false;
    int next = 1;

    for (; next < argc && strncmp(argv[next], "--", 2) == 0; next++) {
        if (strcmp(argv[next], "--serve") == 0)
            serving = true;
        else if (strcmp(argv[next], "--repeat") == 0 && next + 1 < argc)
            count = parse_number(argv[++next]);
        else if (strcmp(argv[next], "--map-base") == 0 && next + 1 < argc)
            request.map_base = parse_number(argv[++next]);
        else if (strcmp(argv[next], "--mask") == 0 && next + 1 < argc)
            add_path(request.masked, &request.masked_count, argv[++next]);
        else if (strcmp(argv[next], "--read-only") == 0 && next + 1 < argc)
            add_path(request.read_only, &request.read_only_count, argv[++next]);
        else if (strcmp(argv[next], "--filter") == 0 && next + 1 < argc)
            read_filter(&request.filter, argv[++next]);
        else
            exit_with_usage();
    }
    if (argc - next < 2)
        exit_with_usage();
    request.root = argv[next];
    request.argv = argv + next + 1;
    reset_signals();
    if (serving)
        return serve(&request);
    if (count > 0)
        return repeat(&request, count);
    return exit_code(run_container(&request));
}
