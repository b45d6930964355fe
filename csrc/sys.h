/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel as the launcher sees it: raw system calls, no libc.
 * Numbers and structures younger than the oldest headers that we build with (manylinux) stand
 * here themselves; calls from 424 on have one number on every architecture.
 */
#ifndef CONTAINER_SYS_H
#define CONTAINER_SYS_H
#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

enum {
    NR_PIDFD_SEND_SIGNAL = 424,
    NR_PIDFD_OPEN = 434,
    NR_OPEN_TREE = 428,
    NR_MOVE_MOUNT = 429,
    NR_FSOPEN = 430,
    NR_FSCONFIG = 431,
    NR_FSMOUNT = 432,
    NR_CLONE3 = 435,
    NR_CLOSE_RANGE = 436,
    NR_OPENAT2 = 437,
    NR_MOUNT_SETATTR = 442
};

enum {
    EPERM = 1,
    ENOENT = 2,
    ESRCH = 3,
    EINTR = 4,
    EIO = 5,
    E2BIG = 7,
    EAGAIN = 11,
    ENOMEM = 12,
    EACCES = 13,
    EBUSY = 16,
    EEXIST = 17,
    EXDEV = 18,
    ENODEV = 19,
    ENOTDIR = 20,
    EINVAL = 22,
    EPIPE = 32,
    ENOSYS = 38,
    ELOOP = 40,
    EPROTO = 71,
    EOPNOTSUPP = 95,
    ESTALE = 116
};

enum { SIGKILL = 9, SIGCHLD = 17, SIGCONT = 18, SIGNAL_MAX = 64, SIG_SETMASK = 2 };

enum {
    AT_FDCWD = -100,
    AT_SYMLINK_NOFOLLOW = 0x100,
    AT_REMOVEDIR = 0x200,
    AT_EMPTY_PATH = 0x1000,
    AT_RECURSIVE = 0x8000
};

enum {
    O_RDONLY = 0,
    O_WRONLY = 1,
    O_RDWR = 2,
    O_CREAT = 0100,
    O_EXCL = 0200,
    O_TRUNC = 01000,
    O_NONBLOCK = 04000,
    O_NOCTTY = 0400,
    O_CLOEXEC = 02000000,
    O_PATH = 010000000,
#if defined(__aarch64__)
    O_DIRECTORY = 040000,
    O_NOFOLLOW = 0100000,
#else
    O_DIRECTORY = 0200000,
    O_NOFOLLOW = 0400000,
#endif
};

enum { S_IFMT = 0170000, S_IFREG = 0100000, S_IFDIR = 0040000, S_IFCHR = 0020000 };

enum {
    CLONE_VM = 0x100,
    CLONE_FILES = 0x400,
    CLONE_SIGHAND = 0x800,
    CLONE_PIDFD = 0x1000,
    CLONE_NEWNS = 0x20000,
    CLONE_NEWTIME = 0x80,
    CLONE_NEWCGROUP = 0x2000000,
    CLONE_VFORK = 0x4000,
    CLONE_PARENT = 0x8000,
    CLONE_THREAD = 0x10000,
    CLONE_PARENT_SETTID = 0x100000,
    CLONE_NEWUSER = 0x10000000,
    CLONE_NEWPID = 0x20000000,
    /* time, mnt, cgroup, uts, ipc, user, pid, net */
    CLONE_NEW_ANY = 0x7e020080
};

#define CLONE_INTO_CGROUP 0x200000000ull

enum {
    RESOLVE_NO_XDEV = 0x01,
    RESOLVE_NO_MAGICLINKS = 0x02,
    RESOLVE_NO_SYMLINKS = 0x04,
    RESOLVE_BENEATH = 0x08,
    RESOLVE_IN_ROOT = 0x10
};

enum { OPEN_TREE_CLONE = 1, MOVE_MOUNT_FROM_EMPTY = 0x4, MOVE_MOUNT_TO_EMPTY = 0x40 };

enum {
    FSOPEN_CLOEXEC = 1,
    FSMOUNT_CLOEXEC = 1,
    FSCONFIG_SET_FLAG = 0,
    FSCONFIG_SET_STRING = 1,
    FSCONFIG_CMD_CREATE = 6
};

enum {
    MOUNT_ATTR_RDONLY = 0x1,
    MOUNT_ATTR_NOSUID = 0x2,
    MOUNT_ATTR_NODEV = 0x4,
    MOUNT_ATTR_NOEXEC = 0x8,
    MOUNT_ATTR_IDMAP = 0x00100000
};

enum {
    MS_REC = 1 << 14,
    MS_PRIVATE = 1 << 18,
    MS_SLAVE = 1 << 19,
    MS_SHARED = 1 << 20,
    MNT_DETACH = 2
};

enum { CLOSE_RANGE_CLOEXEC = 4 };

enum {
    PR_SET_PDEATHSIG = 1,
    PR_SET_DUMPABLE = 4,
    PR_SET_KEEPCAPS = 8,
    PR_SET_NAME = 15,
    PR_CAPBSET_DROP = 24,
    PR_SET_SECUREBITS = 28,
    PR_SET_TIMERSLACK = 29,
    PR_SET_CHILD_SUBREAPER = 36,
    PR_SET_NO_NEW_PRIVS = 38,
    PR_CAP_AMBIENT = 47,
    PR_CAP_AMBIENT_RAISE = 2,
    PR_CAP_AMBIENT_CLEAR_ALL = 4
};

enum { KEYCTL_JOIN_SESSION_KEYRING = 1 };
enum { SECCOMP_SET_MODE_FILTER = 1, SECCOMP_FILTER_FLAG_NEW_LISTENER = 8 };
enum { BPF_PROG_LOAD = 5, BPF_PROG_ATTACH = 8 };
enum { BPF_PROG_TYPE_CGROUP_DEVICE = 15, BPF_CGROUP_DEVICE = 6, BPF_F_ALLOW_MULTI = 2 };
enum { RLIMIT_NOFILE = 7 };
enum { CAPABILITY_VERSION_3 = 0x20080522 };
enum { CLOCK_REALTIME = 0, CLOCK_BOOTTIME = 7 };
enum { TFD_CLOEXEC = 02000000, TFD_NONBLOCK = 04000 };
enum { WNOHANG = 1, WALL = 0x40000000 };
enum { PROT_READ = 1, PROT_WRITE = 2, MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20 };
enum { F_SETFD = 2, F_GET_SEALS = 1034, F_OFD_SETLK = 37, F_DUPFD_CLOEXEC = 1030 };
enum { F_WRLCK = 1, SEALS_FIXED = 0x0002 | 0x0004 | 0x0008 }; /* shrink, grow, write */
enum { AF_UNIX = 1, AF_INET = 2, SOCK_DGRAM = 2, SOCK_SEQPACKET = 5, SOCK_CLOEXEC = 02000000 };
enum { SOL_SOCKET = 1, SO_PASSCRED = 16, SO_PEERCRED = 17, SCM_RIGHTS = 1, SCM_CREDENTIALS = 2 };
enum {
    MSG_CTRUNC = 0x8,
    MSG_TRUNC = 0x20,
    MSG_DONTWAIT = 0x40,
    MSG_NOSIGNAL = 0x4000,
    MSG_CMSG_CLOEXEC = 0x40000000
};
enum { EPOLL_CTL_ADD = 1, EPOLL_CTL_DEL = 2, EPOLL_CLOEXEC = 02000000 };
enum { EPOLLIN = 1, EPOLLPRI = 2 };
enum { POLLIN = 1, POLLPRI = 2, POLLHUP = 0x10 };
enum { SFD_CLOEXEC = 02000000, SFD_NONBLOCK = 04000 };
enum { SIOCSIFFLAGS = 0x8914, IFF_UP = 1 };
enum {
    TIOCSCTTY = 0x540e,
    TIOCSWINSZ = 0x5414,
    TIOCSPTLCK = 0x40045431,
    TIOCGPTPEER = 0x5441,
    DEVPTS_SUPER_MAGIC = 0x1cd1
};
enum {
    STATX_BASIC = 0x7ff,
    STATX_TYPE = 0x1,
    STATX_INO = 0x100,
    STATX_MNT_ID = 0x1000,
    PROC_SUPER_MAGIC = 0x9fa0
};

struct clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    uint64_t set_tid, set_tid_size, cgroup;
};
struct open_how {
    uint64_t flags, mode, resolve;
};
struct mount_attr {
    uint64_t attr_set, attr_clr, propagation, userns_fd;
};
struct iovec {
    void *base;
    size_t length;
};
struct msghdr {
    void *name;
    uint32_t name_length;
    struct iovec *iov;
    size_t iov_count;
    void *control;
    size_t control_length;
    uint32_t flags;
};
struct cmsghdr {
    size_t length;
    int32_t level, type;
};
struct ucred {
    int32_t pid;
    uint32_t uid, gid;
};
struct sock_fprog {
    uint16_t length;
    const void *filter;
};
/* The parts of union bpf_attr for two commands. */
struct bpf_load {
    uint32_t type, count;
    uint64_t code, license;
    uint32_t log_level, log_size;
    uint64_t log;
};
struct bpf_attach {
    uint32_t target, program, type, flags;
};
struct flock_record {
    int16_t type, whence;
    int64_t start, length;
    int32_t pid;
};
struct rlimit_pair {
    uint64_t soft, hard;
};
struct timeval_pair {
    int64_t seconds, microseconds;
};
struct rusage_record {
    struct timeval_pair user, system;
    int64_t max_rss;
    int64_t rest[13];
};
struct timespec_pair {
    int64_t seconds, nanoseconds;
};
struct itimer_record {
    struct timespec_pair interval, value;
};
struct capability_header {
    uint32_t version;
    int32_t pid;
};
struct capability_data {
    uint32_t effective, permitted, inheritable;
};
struct window_size {
    uint16_t rows, columns, unused[2];
};
struct pollfd_record {
    int32_t fd;
    int16_t events, revents;
};
struct sigaction_record {
    uint64_t handler, flags, restorer, mask;
};
struct epoll_record {
    uint32_t events;
    uint64_t data;
}
#if defined(__x86_64__)
__attribute__((packed))
#endif
;
struct statx_record {
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, uid, gid;
    uint16_t mode, pad;
    uint64_t inode, size, blocks, attributes_mask;
    uint64_t times[8];
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t mount_id;
    uint64_t rest[13];
};
struct statfs_record {
    int64_t type;
    uint64_t rest[14];
};

#if defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}
#else
#error "container's launcher knows x86_64 and aarch64"
#endif

/* Every result is -errno or a value >= 0; pointers go in as long. */
#define sys(n, ...) SYS_PICK(__VA_ARGS__, 6, 5, 4, 3, 2, 1, 0)(n, __VA_ARGS__)
#define SYS_PICK(a, b, c, d, e, f, count, ...) SYS_##count
#define SYS_1(n, a) sys6(n, (long)(a), 0, 0, 0, 0, 0)
#define SYS_2(n, a, b) sys6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS_3(n, a, b, c) sys6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS_4(n, a, b, c, d) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS_5(n, a, b, c, d, e) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS_6(n, a, b, c, d, e, f)                                                                 \
    sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);

static inline long close_fd(int fd)
{
    return sys(__NR_close, fd);
}

/* In a loop that waits for memory to change. */
static inline void relax(void)
{
#if defined(__x86_64__)
    __asm__ volatile("pause" ::: "memory");
#else
    __asm__ volatile("yield" ::: "memory");
#endif
}

_Noreturn static inline void exit_process(int status)
{
    (void)sys(__NR_exit_group, status); /* does not return, but where a filter forbids it */
    __builtin_trap();
}

#endif
