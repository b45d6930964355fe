# SPDX-License-Identifier: Apache-2.0
"""The default profile: an allow-list, and why what is missing is missing. Data.

Allowed is what programs use that have no power over the machine, as Docker does it: shells,
compilers, interpreters, servers, debuggers of their own children. Not allowed, and why:

=====================================  ===========================================================
clone with CLONE_NEW*, unshare, setns  A new user namespace gives its maker every capability in it,
                                       and with that most of the kernel's code to attack.
clone3                                 ENOSYS: its flags lie in memory, out of sight. C libraries
                                       then use clone.
mount and its younger family,          The walls of the container are made of mounts.
pivot_root, chroot
io_uring_*                             Makes system calls that no filter sees, AF_VSOCK included;
                                       the richest source of holes of late.
keyctl, add_key, request_key           Keyrings are not namespaced: those of a user of the host.
bpf, perf_event_open, userfaultfd      Programs in the kernel; its timing; stopping it midway.
socket beyond UNIX, INET, INET6,       AF_VSOCK reaches the hypervisor, AF_ALG the kernel's
NETLINK; socketpair beyond UNIX        ciphers, AF_PACKET the wire; asking for a family loads its
                                       module. AF_PACKET comes with CAP_NET_ADMIN.
ioctl TIOCSTI, TIOCLINUX, TIOCSETD     The first two type into a terminal that others read; the
                                       third loads line disciplines.
personality beyond Linux's own         Switches protections of memory off, and old ABIs on.
open_by_handle_at                      Opens any file of a file system by its number.
kexec_*, *_module, reboot, swap*,      Power over the machine, with the capability for it only or
acct, quotactl, syslog, iopl, ...      not at all.
modify_ldt, vm86*                      For 16-bit programs.
set_mempolicy, mbind, move_pages, ...  Move memory between nodes that others use.
kcmp, pidfd_getfd, process_madvise     Look into other processes: with CAP_SYS_PTRACE.
cachestat, lsm_*, fanotify_init        Tell of the machine rather than of the container.
file_getattr, listns, fchroot, ...     Too young to be judged: ENOSYS, so that programs fall back.
obsolete ones                          uselib, ustat, sysfs, nfsservctl, ...: no program left.
=====================================  ===========================================================

Whatever is on no list here gets EPERM; what this version of the package has no name for, ENOSYS.
"""

from collections.abc import Iterator
from itertools import pairwise

from container._seccomp._profile import (
    SeccompAction,
    SeccompOperator,
    SeccompProfile,
    SyscallArg,
    SyscallCondition,
    SyscallRule,
)

_EPERM, _ENOSYS = 1, 38
_WORD = 2**32 - 1

_FILES = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat
    fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
    futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch lchown lchown32 lgetxattr link linkat listmount listxattr
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat
    name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev
    pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat
    renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64
    statmount statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask
    unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev _llseek
    landlock_add_rule landlock_create_ruleset landlock_restrict_self arm_fadvise64_64
    arm_sync_file_range sync_file_range2
"""
_EVENTS = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit pipe pipe2 poll ppoll ppoll_time64 pselect6
    pselect6_time64 select signalfd signalfd4 _newselect
"""
_MEMORY = """
    brk cacheflush madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock
    mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc
    pkey_free pkey_mprotect remap_file_pages
    futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list
    set_robust_list
"""
_PROCESSES = """
    arch_prctl breakpoint capget capset execve execveat exit exit_group fork getcpu getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid
    getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid
    gettid getuid getuid32 get_thread_area ioprio_get ioprio_set pidfd_open pidfd_send_signal
    prctl prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall
    riscv_flush_icache riscv_hwprobe rseq s390_pci_mmio_read s390_pci_mmio_write
    s390_runtime_instr sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
    sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp setfsgid
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
    setsid setuid setuid32 set_thread_area set_tid_address set_tls swapcontext ugetrlimit
    uretprobe vfork wait4 waitid waitpid
"""
_SIGNALS = """
    alarm getitimer kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo setitimer
    sigaltstack sigprocmask sigreturn tgkill tkill
"""
_TIME = """
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 gettimeofday nanosleep time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times
"""
_MESSAGES = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
    semtimedop_time64 shmat shmctl shmdt shmget
    getrandom sysinfo uname
"""

# Any one of the capabilities will do.
_WITH_CAPABILITY = (
    (("DAC_READ_SEARCH",), "open_by_handle_at"),
    (
        ("SYS_ADMIN",),
        "clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie"
        " lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount"
        " open_tree open_tree_attr pivot_root quotactl quotactl_fd setdomainname sethostname setns"
        " umount umount2 unshare",
    ),
    (("SYS_ADMIN", "BPF"), "bpf"),
    (("SYS_ADMIN", "PERFMON"), "perf_event_open"),
    (("SYS_ADMIN", "SYSLOG"), "syslog"),
    (("SYS_BOOT",), "reboot"),
    (("SYS_CHROOT",), "chroot"),
    (("SYS_MODULE",), "delete_module finit_module init_module"),
    (("SYS_NICE",), "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (("SYS_PACCT",), "acct"),
    (("SYS_PTRACE",), "kcmp pidfd_getfd process_madvise"),
    (("SYS_RAWIO",), "ioperm iopl"),
    (("SYS_TIME",), "clock_settime clock_settime64 settimeofday stime"),
    (("SYS_TTY_CONFIG",), "vhangup"),
)

# uprobe is made by a probe of the host's in the program, which the kernel lets through by itself.
_TOO_YOUNG = "fchroot file_getattr file_setattr listns rseq_slice_yield uprobe"

_CLONE_NEW = 0x7E020000  # CLONE_NEW*, include/uapi/linux/sched.h; in clone there is no time
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 1, 2, 10, 16, 17
_TERMINAL_INPUT = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD
_PERSONALITY = 0x0008 | 0x20000  # PER_LINUX32, UNAME26: what uname shows, and nothing else
_ASK_PERSONALITY = _WORD


_ALWAYS = SyscallCondition()


def _allow(
    names: str,
    *args: SyscallArg,
    includes: SyscallCondition = _ALWAYS,
    excludes: SyscallCondition = _ALWAYS,
) -> SyscallRule:
    return SyscallRule(
        names.split(), SeccompAction.ALLOW, args, includes=includes, excludes=excludes
    )


def _is(index: int, value: int) -> SyscallArg:
    return SyscallArg(index, value)


def _lacks(index: int, bits: int) -> SyscallArg:
    return SyscallArg(index, bits, 0, SeccompOperator.MASKED_EQ)


def _all_but(name: str, index: int, values: tuple[int, ...]) -> Iterator[SyscallRule]:
    """Rules that allow a call with any other value, none of which overlap: so they mean the same to
    runtimes for which the mildest rule decides.
    """
    yield _allow(name, SyscallArg(index, values[0], op=SeccompOperator.LT))
    for low, high in pairwise(values):
        at = low + 1
        while at < high:
            size = at & -at
            while at + size > high:
                size //= 2
            mask = _WORD & -size
            yield _allow(name, SyscallArg(index, mask, at, SeccompOperator.MASKED_EQ))
            at += size
    yield _allow(name, SyscallArg(index, values[-1], op=SeccompOperator.GT))


def _rules() -> Iterator[SyscallRule]:
    yield _allow(_FILES + _EVENTS + _MEMORY + _PROCESSES + _SIGNALS + _TIME + _MESSAGES)
    for capabilities, names in _WITH_CAPABILITY:
        for capability in capabilities:
            yield _allow(names, includes=SyscallCondition([capability]))
    admin, s390x = SyscallCondition(["SYS_ADMIN"]), ("s390", "s390x")
    yield _allow(
        "clone", _lacks(0, _CLONE_NEW), excludes=SyscallCondition(["SYS_ADMIN"], arches=s390x)
    )
    yield _allow(  # there the flags come second
        "clone",
        _lacks(1, _CLONE_NEW),
        includes=SyscallCondition(arches=s390x),
        excludes=admin,
    )
    yield SyscallRule(["clone3"], SeccompAction.ERRNO, errno_ret=_ENOSYS, excludes=admin)
    # 0 is no family: the kernel says so. With it the filter is shorter.
    yield _allow("socket", SyscallArg(0, _AF_INET, op=SeccompOperator.LE))
    for family in (_AF_INET6, _AF_NETLINK):
        yield _allow("socket", _is(0, family))
    yield _allow("socket", _is(0, _AF_PACKET), includes=SyscallCondition(["NET_ADMIN"]))
    yield _allow("socketpair", _is(0, _AF_UNIX))
    yield from _all_but("ioctl", 1, _TERMINAL_INPUT)
    yield _allow("personality", _is(0, _ASK_PERSONALITY))
    yield _allow("personality", _lacks(0, _WORD ^ _PERSONALITY))
    yield SyscallRule(_TOO_YOUNG.split(), SeccompAction.ERRNO, errno_ret=_ENOSYS)
    yield SyscallRule(["open_tree_attr"], SeccompAction.ERRNO, errno_ret=_ENOSYS, excludes=admin)


def make_default() -> SeccompProfile:
    """See `SeccompProfile.default`."""
    return SeccompProfile(SeccompAction.ERRNO, tuple(_rules()), default_errno_ret=_EPERM)
