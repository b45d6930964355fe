/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between Python and the launcher.
 *
 * Enums and flat structs only: build_ffi.py feeds this file, less its '#' lines, to cffi's cdef,
 * and the C compiler reads it as it is, so that no number is written down twice.
 * A struct crosses the boundary as bytes. Offsets are bytes from the start of the request; a
 * string is an offset to a NUL-terminated run, and the last byte of a request is always NUL.
 */
#ifndef CONTAINER_LAUNCHER_H
#define CONTAINER_LAUNCHER_H
#include <stdint.h>

/* Every step of a start, in the order in which they happen. Errors carry one of these. */
enum step {
    STEP_NONE,
    /* the launcher's part */
    STEP_RIGHTS,  /* the caller still has the rights that the launcher has */
    STEP_REQUEST, /* decode and check the request */
    STEP_TARGET,  /* exec: find the process whose namespaces are joined */
    STEP_LEASE,   /* find a range of host ids that nobody else has */
    STEP_CGROUP,  /* make a control group, limit it (row: the setting) */
    STEP_CLONE,   /* clone3 into the new namespaces */
    STEP_ID_MAPS, /* write setgroups, uid_map, gid_map */
    STEP_OOM_SCORE,
    STEP_SOURCES,    /* detached, idmapped copies of mount sources (row) */
    STEP_SCHEDULING, /* row 0: nice value, 1: processors */
    /* the child's part */
    STEP_SYNC,          /* wait for the id maps; die with the launcher */
    STEP_JOIN,          /* into namespaces that are there; exec: of the target */
    STEP_PID_NAMESPACE, /* exec: likewise, by a child of the one that has joined the others */
    STEP_TIME,          /* shift the clocks of a new time namespace */
    STEP_SETUP_IDS,     /* become root of the user namespace */
    STEP_SESSION,       /* new session, anonymous session keyring */
    STEP_NETWORK,       /* loopback up */
    STEP_HANDOVER,      /* wait for the request: a blank child was made before there was one */
    STEP_MOUNT_NAMESPACE,
    STEP_HOSTNAME,
    STEP_FILESYSTEM,    /* the rows (row) */
    STEP_TERMINAL,      /* the terminal becomes the session's, and its other end goes out */
    STEP_CREATE_HOOKS,  /* run what the caller sends, until the word to go on */
    STEP_PIVOT,         /* the root becomes /, the old one goes */
    STEP_LOCK_MOUNTS,   /* make mount flags unremovable for a container with CAP_SYS_ADMIN */
    STEP_GATE,          /* created: wait for the word to start */
    STEP_START_HOOKS,   /* as STEP_CREATE_HOOKS */
    STEP_RLIMITS,       /* (row); before, the launcher has raised hard ones above its own */
    STEP_SECCOMP_EARLY, /* the filter, while there are the rights for it: without no_new_privs */
    STEP_BOUNDING,      /* drop the bounding set while CAP_SETPCAP is there */
    STEP_IDS,           /* groups, gid, uid of the process */
    STEP_CAPABILITIES,
    STEP_NO_NEW_PRIVS,
    STEP_CWD,
    STEP_INIT,     /* the tiny init takes PID 1, the rest is the payload's */
    STEP_FDS,      /* stdio in place, everything else close-on-exec; signals unblocked */
    STEP_LANDLOCK, /* the rules (row) */
    STEP_SECCOMP,  /* the filter, with no_new_privs: nothing but execve is made under it */
    STEP_EXEC,
    STEP_COUNT
};

enum request_op {
    REQUEST_START = 1,
    REQUEST_LEASE = 2,
    /* fds: a channel, whose end is the answer. For who counts what is left of containers. */
    REQUEST_DROP_BLANKS = 3,
    REQUEST_EXEC = 4, /* a process in the namespaces of another */
    REQUEST_PLACE = 5,
    REQUEST_HOOK = 6, /* a process where the launcher is; or, by COMMAND_HOOK, where a child is */
    /* fds: a channel, the directory of states, in there that of a container. The launcher becomes
     * its owner: it has the lock of it, and is for that container alone. */
    REQUEST_CLAIM = 7,
    REQUEST_DETACH = 8 /* a container at the gate lives on without a caller, once it is started */
};

enum start_flag {
    START_IN_MEMFD = 1u << 0,       /* the request's bytes are in the sealed memfd fds[1] */
    START_GATE = 1u << 1,           /* stop at STEP_GATE until COMMAND_START */
    START_FRESH_USER = 1u << 2,     /* new user namespace: write the maps, take its ids */
    START_DENY_SETGROUPS = 1u << 3, /* rootless: setgroups denied before gid_map */
    START_SET_GROUPS = 1u << 4,     /* set the supplementary groups */
    START_LOOPBACK = 1u << 5,
    START_LOCK_MOUNTS = 1u << 6,
    START_CHROOT = 1u << 7, /* instead of pivot_root: an explicit downgrade */
    START_NO_NEW_PRIVS = 1u << 8,
    START_PRIVATE = 1u << 9,         /* no user namespace: cut the propagation of mounts by hand */
    START_SHARE_MEMORY = 1u << 10,   /* until execve, as vfork: only for a root caller's child that
                                        neither waits at the gate nor becomes dumpable */
    START_QUIET = 1u << 11,          /* no report between CLONED and the end */
    START_LEASE = 1u << 12,          /* ids: a range that REQUEST_LEASE made available */
    START_MAP_BY_PROGRAM = 1u << 13, /* ids: maps that uid_program and gid_program write */
    START_INIT = 1u << 14,           /* the process runs under a tiny init */
    START_NICE = 1u << 15,
    START_OOM_SCORE = 1u << 16,
    START_CGROUP = 1u << 17,   /* in a control group of its own, in the place of REQUEST_PLACE; not
                                  with START_SHARE_MEMORY: out of memory would end all that share it.
                                  Needed without a new PID namespace, whose end would end all */
    START_TERMINAL = 1u << 18, /* stdio is a terminal of the container's own */
    START_STREAMS = 1u << 19,  /* exec: stdio is /dev/null and two pipes, which the launcher makes;
                                  our ends of them come with STARTED, and the channel can be asked
                                  again when the process has ended */
    START_FILTER_AHEAD =
        1u << 20,          /* exec: the filter lets a process wait for what it is to run, and
                             say that it failed; with START_STREAMS it does: see CLONED */
    START_HOOKS = 1u << 21 /* stop at STEP_CREATE_HOOKS and STEP_START_HOOKS until COMMAND_START;
                              not with START_SHARE_MEMORY */
};

enum row_op {
    ROW_BIND = 1, /* a copy of a mount: of a source fd by the launcher, or of a path by the child */
    ROW_MOUNT,    /* a new file system: source is the type, data its options */
    ROW_DIRECTORY,
    ROW_FILE,       /* a new regular file with data as content */
    ROW_SYMLINK,    /* source is what it says */
    ROW_MASK,       /* an empty file or directory, read-only, over what is there */
    ROW_READ_ONLY,  /* what is there and below, read-only from here on */
    ROW_WRITE,      /* data into a file of the procfs that base made */
    ROW_OVERLAY,    /* an overlay of what the stage holds; data is its options, for mount(2) */
    ROW_HANDLE,     /* a directory below base, opened, and `source` in the stage a link to its fd */
    ROW_ATTRIBUTES, /* change those of base's mount: clear `mode`, then set `attributes` */
    ROW_DEVICE,     /* a node; where that is forbidden and there is a source, that is bound */
    ROW_TERMINAL,   /* open a terminal of the devpts that base made; one row at most */
    ROW_CONSOLE     /* bind that terminal */
};

enum row_flag {
    ROW_RECURSIVE = 1u << 0,      /* with submounts; attributes apply to all of them */
    ROW_IDMAP = 1u << 1,          /* host root's files show as root inside */
    ROW_CHECK_INODE = 1u << 2,    /* the path must still be the inode that Python opened */
    ROW_CHECK_DEVICE = 1u << 3,   /* the source must be this device */
    ROW_MAKE_DIRECTORY = 1u << 4, /* make a missing target, a directory */
    ROW_MAKE_FILE = 1u << 5,      /* make a missing target, an empty file */
    ROW_NO_SYMLINKS = 1u << 6,    /* refuse a target with a symbolic link in its path */
    ROW_IDMAP_OPTIONAL = 1u << 7, /* go on where the file system cannot be idmapped */
    ROW_NEW_TARGET = 1u << 8,     /* the target is one new name in a mount of our own making */
    ROW_OPTIONAL = 1u << 9,       /* a target that is not there is left out */
    ROW_DETACHED = 1u << 10,      /* the mount is for other rows only, and attached nowhere */
    ROW_LATE = 1u << 11,          /* ROW_WRITE, of one row at most: opened now, written once the
                                     mounts are locked */
    ROW_OWN_MAPS = 1u << 12,      /* ROW_BIND idmapped by its data: uid map NUL gid map NUL */
    ROW_SLAVE = 1u << 13,         /* what the caller mounts below the source shows here too */
    ROW_SHARED = 1u << 14,        /* the head of a group of its own */
    ROW_MAY_FAIL = 1u << 15,      /* ROW_ATTRIBUTES only */
    ROW_PROCFS = 1u << 16         /* ROW_BIND of a source fd: instead of a copy of that, a new
                                     procfs of the PID namespace that is shared; data as of MOUNT */
};

enum limits {
    MAX_PASSED = 128,
    MAX_JOINED = 8,
    MAX_ROWS = 2048,
    MAX_SOURCES = 1000,
    MAX_FDS = 250, /* in one message */
    MAX_REQUEST = 16777216,
    MAX_INLINE = 131072, /* larger requests come in a memfd */
    MAX_SLOT = 65535,
    MAX_FILTER = 4096 /* BPF_MAXINSNS */
};

struct span {
    uint32_t offset;
    uint32_t count;
};

/* One line of the file system. `start.root` makes the root, and row 0 the stage when that is not
 * row 0 itself: a file system that holds what the root is made of, until it is made. */
struct row {
    uint32_t op;
    uint32_t flags;
    uint32_t base;         /* row whose mount the target lies in */
    uint32_t target;       /* string: path below base */
    uint32_t source;       /* string: path, file system type or link text */
    int32_t source_fd;     /* index of a source fd of the request, or -1 */
    struct span data;      /* FILE, WRITE: bytes; MOUNT: key NUL value NUL ..., "" value: a flag */
    uint32_t mode;         /* DEVICE, ROW_CHECK_DEVICE: with its kind */
    uint32_t attributes;   /* MOUNT_ATTR_* to set */
    uint32_t device_major; /* DEVICE, ROW_CHECK_DEVICE: number; ROW_CHECK_INODE: file system */
    uint32_t device_minor;
    uint32_t uid; /* DEVICE */
    uint32_t gid;
    uint64_t inode;
};

struct limit {
    uint32_t resource;
    uint32_t unused;
    uint64_t soft;
    uint64_t hard;
};

/* Landlock: what may be done at or below a path of the container, LANDLOCK_ACCESS_FS_*. */
struct rule {
    uint32_t path; /* string */
    uint32_t unused;
    uint64_t access;
};

/* A limit: what is written to which file of the control group. */
struct setting {
    uint32_t file;     /* string: a name */
    uint32_t value;    /* string */
    uint32_t optional; /* a kernel without this file has nothing to limit */
    uint32_t unused;
};

/* REQUEST_START. fds: channel, [memfd], stdin, stdout, stderr, passed..., joined..., sources...
 * REQUEST_EXEC. fds: channel, [memfd], stdin, stdout, stderr, [pidfd]; with START_STREAMS channel,
 * [memfd], or none on the channel of an earlier one, in the same container, that has ended. There
 * are no rows; clone_flags are the namespaces to join, and START_FRESH_USER: the user namespace is
 * one of them.
 * REQUEST_HOOK. fds: channel, [memfd], stdin, stdout, stderr. No namespaces and no rows.
 */
struct start {
    uint32_t op;
    uint32_t flags;
    uint32_t size;      /* of the whole request, this struct included */
    uint32_t fail_step; /* for tests of the undo: this step fails with EIO */
    uint64_t clone_flags;
    struct span uid_map; /* bytes as written to /proc/PID/uid_map; none with START_LEASE */
    struct span gid_map;
    struct span cpus;        /* a bit for each, sched_setaffinity(2); none leaves them */
    struct span passed;      /* uint32_t: the numbers of the fds that are passed on */
    struct span joined;      /* uint32_t: CLONE_NEW*, kinds of the namespaces to join, in order */
    struct span clocks;      /* bytes as written to /proc/PID/timens_offsets; none: as they are */
    struct span uid_program; /* uint64_t strings, and a 0: the program and what it takes, with */
    struct span gid_program; /* room for the pid; none: the map is written by the launcher */
    struct span rows;        /* struct row */
    struct span programs;    /* uint32_t strings: candidates for execve, in order */
    struct span args;    /* uint64_t strings, and a 0 behind the last: become pointers in place */
    struct span env;     /* likewise */
    struct span groups;  /* uint32_t */
    struct span rlimits; /* struct limit */
    struct span filter;  /* struct sock_filter; none: no seccomp filter */
    uint32_t hostname;   /* string, "" leaves it */
    uint32_t domainname; /* likewise */
    uint32_t cwd;        /* string */
    uint32_t uid;
    uint32_t gid;
    uint32_t umask;
    uint32_t source_count;
    uint32_t root;         /* the row */
    uint32_t filter_flags; /* of seccomp(2) */
    int32_t nice;
    int32_t oom_score; /* -1000 to 1000 */
    uint32_t pipes;    /* bit N: fd N was made for the process, which shall own it */
    uint32_t pipe_uid; /* its owner: of the host, with START_LEASE of the container */
    uint32_t pipe_gid;
    struct span rules;       /* struct rule */
    uint64_t handled_access; /* of Landlock; 0: none of it */
    uint64_t bounding;
    uint64_t effective;
    uint64_t permitted;
    uint64_t inheritable;
    uint64_t ambient;
    uint32_t target;        /* REQUEST_EXEC: the serial of a container, or 0: that of the pidfd */
    uint32_t new_root;      /* REQUEST_EXEC: string, a directory that becomes /, "": none */
    struct span settings;   /* struct setting, with START_CGROUP */
    struct span devices;    /* struct bpf_insn, likewise: which devices may be opened; none: all */
    uint32_t terminal_rows; /* START_TERMINAL: its size in characters; 0: not known */
    uint32_t terminal_columns;
    uint32_t shared_slot; /* of START_LEASE: whose ids the user namespace has that is joined */
};

/* REQUEST_LEASE. fds: reply channel. Where ranges of host ids for START_LEASE are to be had: byte
 * `slot` of the file is locked as long as the launcher lives, slot = host id >> 16. Locks one. */
struct lease {
    uint32_t op;
    uint32_t size;
    uint32_t path; /* string: the lock file */
    uint32_t first;
    uint32_t count;
    uint32_t start; /* where to begin to look, first <= start < first + count */
};

/* REQUEST_PLACE. fds: reply channel, directory. In that the control groups of START_CGROUP are
 * made, named by the serials of their containers. It is locked (flock) as long as the launcher
 * lives, which then removes it. */
struct place {
    uint32_t op;
    uint32_t size;
    uint32_t path;  /* string: of the directory */
    uint32_t above; /* string: a directory that goes too once nothing is left in it */
};

enum detach_flag {
    DETACH_STDOUT = 1u << 0, /* there is a pipe to copy to the log */
    DETACH_STDERR = 1u << 1,
    DETACH_REMOVE = 1u << 2,          /* the directory goes with the container */
    DETACH_RESTART_FAILURE = 1u << 3, /* the program is run after an end that is a failure, and */
    DETACH_RESTART_ALWAYS = 1u << 4,  /* any that nobody asked for: it may start another one */
    DETACH_LAST_WORDS = 1u << 5       /* the program is run after the last end */
};

enum detach_limits { MAX_DETACH = 8192 };

/* REQUEST_DETACH. fds: reply channel, [listening socket to be, file for struct ending, manual,]
 * [stdout], [stderr]. Those in the first brackets come once; then only the program that was run
 * after an end may send this. Times in milliseconds, 0: none. */
struct detach {
    uint32_t op;
    uint32_t size;
    uint32_t serial; /* of the container */
    uint32_t flags;
    uint32_t protocol; /* told to clients, for who finds out that it speaks another one */
    uint32_t name;     /* string: of the claimed directory */
    struct span args;  /* uint64_t strings, and a 0: what is run after an end, its fds: */
    struct span env;   /* 3 a client's socket, 4 the manual, 5, 6 the claimed directories */
    uint64_t lifetime;
    uint64_t delay;    /* until a restart, */
    uint64_t calm;     /* none if it ran for so long */
    uint64_t log_size; /* bytes, of two files together */
};

enum command_op {
    COMMAND_START = 1,
    COMMAND_SIGNAL = 2,
    /* Of a container at a step of hooks. fds: sealed memfd with a REQUEST_HOOK, stdin, stdout,
     * stderr. Its end is told by REPORT_HOOK. */
    COMMAND_HOOK = 3,
    COMMAND_STOP = 4,  /* a signal, and it is not to be started again */
    COMMAND_FOLLOW = 5 /* of a client: REPORT_LOGGED, once, when something has been logged */
};

/* Python to launcher, on the channel of a container, or of a client on its socket. */
struct command {
    uint32_t op;
    int32_t value; /* COMMAND_SIGNAL, COMMAND_STOP: the signal, 0: none; COMMAND_HOOK: the size
                      of the request */
};

/* The first message to a client of a detached container, never to change; carries the manual, and
 * the pidfd of the first process if there is one now. What follows are reports. */
struct hello {
    uint32_t protocol;
    int32_t error; /* a positive errno: it is refused */
    int32_t pid;   /* 0: none */
    uint32_t serial;
    uint32_t is_over; /* it ended, and will not be started again */
};

/* Zero until it is over. Otherwise as in struct report; never to change. */
struct ending {
    uint32_t is_over;
    uint32_t wait_status;
    uint64_t ended_at; /* microseconds since 1970 */
    uint64_t user_time;
    uint64_t system_time;
    uint64_t max_rss;
    uint64_t memory_peak;
    uint64_t pids_peak;
    uint64_t oom_kills;
};

/* What is before each piece in a log; never to change. */
struct log_record {
    uint32_t stream; /* 1, 2 */
    uint32_t size;
    uint64_t time;   /* microseconds since 1970 */
    uint64_t offset; /* bytes that were written before; those missing could not be stored */
};

enum report_kind {
    REPORT_CLONED = 1, /* there is a child, which waits; carries its pidfd; the first of its
                          reports. With START_STREAMS and START_FILTER_AHEAD it carries the streams
                          too, and a pipe: STARTED does not come, but that ends without a byte */
    REPORT_CREATED,    /* at the gate */
    REPORT_STARTED,    /* execve succeeded; of an exec perhaps the first, then with its pidfd; with
                          START_STREAMS our ends of its output and errors */
    REPORT_FAILED,     /* step, error, row; the child is gone */
    REPORT_EXITED,     /* wait_status and usage; the child is reaped */
    REPORT_LEASED,     /* value: the slot */
    REPORT_LISTENER,   /* carries that of the filter, before STARTED */
    REPORT_PLACED,
    REPORT_TERMINAL, /* carries our end of the terminal; before CREATED and STARTED */
    REPORT_HOOKS,    /* the container waits at `step` for hooks */
    REPORT_HOOK,     /* one of them has ended: wait_status; or step, error, row, value */
    REPORT_CLAIMED,
    REPORT_DETACHED,
    REPORT_LOGGED
};

/* Launcher to Python, on the channel of a container. Times in microseconds. */
struct report {
    uint32_t kind;
    int32_t pid;
    uint32_t step;
    int32_t error; /* a positive errno */
    int32_t row;   /* -1: none */
    int32_t value; /* LEASED: the slot; FAILED at exec: see `struct progress`; CLONED: the guard */
    uint32_t wait_status; /* as wait4 gives it */
    uint32_t serial;      /* CLONED: what REQUEST_EXEC calls the container */
    uint64_t user_time;
    uint64_t system_time;
    uint64_t max_rss; /* bytes */
    /* Of the control group, with EXITED and FAILED; ~0: not known. */
    uint64_t memory_peak; /* bytes */
    uint64_t pids_peak;
    uint64_t ooms;      /* how often its own limit of memory was met, with nothing to take back */
    uint64_t oom_kills; /* processes that were killed for want of memory, whose limit ever */
};

#endif
