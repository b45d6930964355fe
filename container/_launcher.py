# SPDX-License-Identifier: Apache-2.0
"""The launcher process and the messages to and from it: the only door to the cffi module.

One launcher per process, started on first use, replaced after ``os.fork()``, after its own death
and after a change of the caller's rights. Every start has a socket of its own, its channel: the
request's other end of it reports what became of the container, so threads do not wait for each
other, and nothing has to be matched up.
"""

import _socket
import atexit
import errno
import fcntl
import os
import socket
import struct
import threading
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntFlag
from functools import cache
from math import ceil
from select import POLLIN, poll
from signal import SIGKILL, pidfd_send_signal
from sys import byteorder
from termios import TIOCSWINSZ
from time import monotonic
from types import MappingProxyType
from typing import Any, Final
from zlib import crc32

from container import _ids
from container._cgroup import Cgroup, Place, claim_place, extend_place
from container._config import NAMESPACE_FLAGS, IDMapping
from container._errors import CgroupError, LaunchError, StateError, UnsupportedError, launch_error
from container._hints import LAUNCHER_HINT, launcher_hint
from container._limits import Setting, controllers_of
from container._native import ffi, lib
from container._rootfs import Row, RowFlag, map_text
from container._systemd import Property, Unit, make_scope, start_scope, user_bus

# The plain one: making two of the class above it takes longer than all else that a start does here.
Socket = _socket.socket

STEPS: Final[dict[int, str]] = {
    value: name.removeprefix("STEP_").lower().replace("_", "-")
    for value, name in ffi.typeof("enum step").elements.items()
    if name not in ("STEP_NONE", "STEP_COUNT")
}


class StartFlag(IntFlag):
    """``enum start_flag``."""

    GATE = lib.START_GATE
    FRESH_USER = lib.START_FRESH_USER
    DENY_SETGROUPS = lib.START_DENY_SETGROUPS
    SET_GROUPS = lib.START_SET_GROUPS
    LOOPBACK = lib.START_LOOPBACK
    LOCK_MOUNTS = lib.START_LOCK_MOUNTS
    CHROOT = lib.START_CHROOT
    NO_NEW_PRIVS = lib.START_NO_NEW_PRIVS
    PRIVATE = lib.START_PRIVATE
    SHARE_MEMORY = lib.START_SHARE_MEMORY
    QUIET = lib.START_QUIET
    LEASE = lib.START_LEASE
    MAP_BY_PROGRAM = lib.START_MAP_BY_PROGRAM
    INIT = lib.START_INIT
    NICE = lib.START_NICE
    OOM_SCORE = lib.START_OOM_SCORE
    CGROUP = lib.START_CGROUP
    TERMINAL = lib.START_TERMINAL
    STREAMS = lib.START_STREAMS
    FILTER_AHEAD = lib.START_FILTER_AHEAD
    HOOKS = lib.START_HOOKS


_MFD_EXEC = 0x10
# Who executes what it may not read is not dumpable from the first moment on: a tiny init.
_PROGRAM_MODE = 0o111
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_START_SIZE: Final[int] = ffi.sizeof("struct start")
_REPORT_SIZE: Final[int] = ffi.sizeof("struct report")
_WALL = 0x40000000  # wait(2): children without an exit signal too
MAX_ROWS: Final[int] = lib.MAX_ROWS
MAX_SOURCES: Final[int] = lib.MAX_SOURCES
MAX_PASSED: Final[int] = lib.MAX_PASSED
_KIND = socket.SOCK_SEQPACKET
_OUTPUTS = ("stdout", "stderr")
_MOST_LINES = 4  # that wait, of a container
_STARTED: Final[int] = lib.REPORT_STARTED
_OF_HOOKS = (lib.REPORT_HOOKS, lib.REPORT_HOOK)
_ENDS: Final = (lib.REPORT_EXITED, lib.REPORT_FAILED)
TRIES = 8  # of launchers that are being killed while they are asked
_HELLO_PATIENCE = 10.0  # seconds; only one that was stopped needs more
_EXIT_PATIENCE = 5.0  # seconds; only a stuck kernel needs more
_ANSWER: Final[Any] = ffi.typeof("struct answer *")
MAX_INLINE: Final[int] = lib.MAX_INLINE
_FDS_PER_MESSAGE: Final[int] = lib.MAX_FDS
# Namespaces that one thread can leave without its process: names in /proc/PID/ns.
OWN_NAMESPACES = ("user", "mnt", "net", "ipc", "uts", "cgroup")
_THREAD_NAMESPACES = {
    "mnt": 0x20000,
    "net": 0x40000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "cgroup": 0x02000000,
}


# Requests --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Source:
    """What the caller opened for a row of a bind mount."""

    fd: int
    device: int
    inode: int
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Base:
    """The part of a request that a Config decides alone."""

    clone_flags: int
    kept_namespaces: tuple[str, ...]  # of the caller, by or in which the container is made
    flags: StartFlag
    table: "RowTable"
    hostname: str
    domainname: str
    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    filter: bytes = b""  # struct sock_filter[]
    filter_flags: int = 0
    filter_lets_wait: bool = False
    rules: Sequence[tuple[str, int]] = ()  # of Landlock: path, LANDLOCK_ACCESS_FS_*
    handled_access: int = 0
    settings: tuple[Setting, ...] = ()  # of the control group, with StartFlag.CGROUP
    devices: bytes = b""  # struct bpf_insn[], likewise


@dataclass(frozen=True, slots=True)
class Join:
    """Whose namespaces an exec joins; which of them says `Base.clone_flags`."""

    serial: int  # of a container of the launcher's; 0: that of a pidfd
    root: str  # a directory there that becomes /, "": none


@dataclass(slots=True)
class StartRequest:
    """All that the launcher is told of a container, in Python's terms."""

    base: Base
    flags: StartFlag
    programs: Sequence[str]
    args: Sequence[str]
    env: Sequence[str]
    groups: Sequence[int]
    limits: Sequence[tuple[int, int, int]]  # resource, soft, hard
    cwd: str
    uid: int
    gid: int
    umask: int
    join: "Join | None" = None  # an exec: no container of its own
    cpus: bytes = b""  # a bit for each; none leaves them
    nice: int = 0
    oom_score: int = 0
    passed: Sequence[int] = ()  # fds of the caller, whose numbers they keep
    joined: Sequence[int] = ()  # CLONE_NEW* of the namespaces that are there
    shared_slot: int = 0  # whose range of ids is used, when one of those is a user namespace
    clocks: bytes = b""  # of /proc/PID/timens_offsets
    map_programs: Sequence[Sequence[str]] = ((), ())  # for uids and gids: see _ids.map_program
    terminal_size: tuple[int, int] | None = None  # with StartFlag.TERMINAL: rows, columns
    is_hook: bool = False
    _kept: tuple[object, bytes] | None = None

    def encode(
        self, maps: "Maps", sources: Sequence[Source | None], *, by_fd: bool, pipes: int
    ) -> bytes:
        """`encode_start`, kept for the next start of the like."""
        opened = [source for source in sources if source is not None]
        kinds = (each.is_directory if by_fd else each for each in opened)
        key = (fail_step, by_fd, pipes, *kinds)
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        data = encode_start(self, maps, sources, by_fd=by_fd, pipes=pipes)
        if by_fd:  # inodes differ from start to start
            self._kept = (key, data)
        return data


# A test of the undo sets this to a step's number: that step then fails with EIO.
fail_step = 0


def failing_step() -> int:
    """It, for who keeps a request: another step is another request."""
    return fail_step


class _Blob:
    """Strings and bytes behind the fixed part of a request, with their offsets."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.parts: list[bytes] = []
        self.known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        offset = self.offset
        self.parts.append(data)
        self.offset += len(data)
        return offset

    def string(self, text: str) -> int:
        data = os.fsencode(text) + b"\0"
        offset = self.known.get(data)
        if offset is None:
            offset = self.known[data] = self.add(data)
        return offset


class RowTable:
    """The rows of a file system, with their encoding kept for the next start of the like.

    The encoding stands right behind ``struct start``, so nothing in it depends on the rest.
    """

    def __init__(self, rows: Sequence[Row], stage: Sequence[Row] = ()) -> None:
        self.root = len(stage)
        shifted = (replace(row, base=row.base + self.root) for row in rows[1:])
        self.rows = (*stage, *rows[:1], *shifted)
        self.opened = [index for index, row in enumerate(self.rows) if row.opened]
        self._kept: dict[tuple[bool | None, ...], bytes] = {}

    def encode(self, sources: Sequence[Source | None], *, by_fd: bool) -> bytes:
        """``struct row[]`` and its strings; ``by_fd``: the launcher copies the sources."""
        if not by_fd:  # inodes differ from start to start
            return self._encode(sources, by_fd=False)
        kinds = tuple(None if source is None else source.is_directory for source in sources)
        encoded = self._kept.get(kinds)
        if encoded is None:
            encoded = self._kept[kinds] = self._encode(sources, by_fd=True)
        return encoded

    def _encode(self, sources: Sequence[Source | None], *, by_fd: bool) -> bytes:
        blob = _Blob(_START_SIZE + len(self.rows) * ffi.sizeof("struct row"))
        encoded = []
        next_fd = 0
        for row, source in zip(self.rows, sources, strict=True):
            flags = row.flags
            source_fd = -1
            device, inode = row.device, 0
            if source is not None:
                flags |= RowFlag.MAKE_DIRECTORY if source.is_directory else RowFlag.MAKE_FILE
                if by_fd:
                    source_fd, next_fd = next_fd, next_fd + 1
                else:
                    flags |= RowFlag.CHECK_INODE
                    device = (os.major(source.device), os.minor(source.device))
                    inode = source.inode
            data = (blob.add(row.data), len(row.data))
            encoded.append(
                (
                    *(row.op, flags, row.base, blob.string(row.target), blob.string(row.source)),
                    *(source_fd, data, row.mode, row.attributes, *device, *row.owner, inode),
                )
            )
        blob.add(bytes(-blob.offset % 8))
        return b"".join((bytes(ffi.buffer(ffi.new("struct row[]", encoded))), *blob.parts))


def _place_vectors(at: int, vectors: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Where each of them begins, and how many strings it has; behind each is a 0."""
    placed = []
    for vector in vectors:
        placed.append((at, len(vector)))
        at += 8 * (len(vector) + 1)
    return placed


def encode_start(
    request: StartRequest,
    maps: tuple[Sequence[IDMapping], Sequence[IDMapping]],
    sources: Sequence[Source | None],
    *,
    by_fd: bool,
    pipes: int = 0,
) -> bytes:
    """The bytes of ``struct start``; ``by_fd``: the launcher copies the sources, as root.

    ``maps`` are empty for a leased range. ``pipes``: bit N for a fd N that the process shall own.
    """
    base = request.base
    table = base.table.encode(sources, by_fd=by_fd)
    limits_at = _START_SIZE + len(table)
    filter_at = limits_at + len(request.limits) * ffi.sizeof("struct limit")
    rules_at = filter_at + len(base.filter)
    settings = base.settings if request.join is None else ()
    settings_at = rules_at + len(base.rules) * ffi.sizeof("struct rule")
    devices = base.devices if request.join is None else b""
    devices_at = settings_at + len(settings) * ffi.sizeof("struct setting")
    vectors_at = devices_at + len(devices)
    vectors = [request.args, request.env, *filter(None, request.map_programs)]
    numbers_at = vectors_at + 8 * sum(len(each) + 1 for each in vectors)
    passed_at = numbers_at + 4 * (len(request.programs) + len(request.groups))
    joined_at = passed_at + 4 * len(request.passed)
    blob = _Blob(joined_at + 4 * len(request.joined))
    strings = [offset for each in vectors for offset in (*map(blob.string, each), 0)]
    args, env, *programs = _place_vectors(vectors_at, vectors)
    map_programs = [programs.pop(0) if each else (0, 0) for each in request.map_programs]
    spans = (
        (numbers_at, len(request.programs)),
        *(args, env),
        (numbers_at + 4 * len(request.programs), len(request.groups)),
    )
    numbers = [*map(blob.string, request.programs), *request.groups, *request.passed]
    numbers += request.joined
    passed = (passed_at, len(request.passed))
    cpus = (blob.add(request.cpus), len(request.cpus))
    joined = (joined_at, len(request.joined))
    clocks = (blob.add(request.clocks), len(request.clocks))
    text, gid_text = (map_text(mappings) for mappings in maps)
    uid_map, gid_map = (blob.add(text), len(text)), (blob.add(gid_text), len(gid_text))
    hostname, domainname = blob.string(base.hostname), blob.string(base.domainname)
    cwd = blob.string(request.cwd)
    rules = ffi.new(
        "struct rule[]", [(blob.string(path), 0, access) for path, access in base.rules]
    )
    limits_of_cgroup = ffi.new(
        "struct setting[]",
        [(blob.string(each.file), blob.string(each.value), each.optional, 0) for each in settings],
    )
    op, join = lib.REQUEST_HOOK if request.is_hook else lib.REQUEST_START, Join(0, "")
    if request.join is not None:
        op, join = lib.REQUEST_EXEC, request.join
    new_root = blob.string(join.root)
    blob.add(b"\0")
    if blob.offset > lib.MAX_REQUEST:
        raise launch_error("request", errno.E2BIG, "arguments and environment are too large")
    source_count = sum(source is not None for source in sources) if by_fd else 0
    if request.join is not None:
        source_count = int(join.serial == 0)
    # As execve will leave them to another user than root; the working directory is entered before.
    root = request.uid == 0
    effective, permitted = (
        (base.effective, base.permitted) if root else (base.ambient, base.ambient)
    )
    owner = (_ids.to_host(request.uid, maps[0]), _ids.to_host(request.gid, maps[1]))
    # In the order of the struct: the initialiser of cffi knows its layout.
    header = ffi.new(
        "struct start *",
        (
            *(op, request.flags, blob.offset, fail_step, base.clone_flags),
            *(uid_map, gid_map, cpus, passed, joined, clocks, *map_programs),
            (_START_SIZE, len(base.table.rows)),
            *(*spans, (limits_at, len(request.limits)), (filter_at, len(base.filter) // 8)),
            *(hostname, domainname, cwd, request.uid, request.gid, request.umask),
            *(source_count, base.table.root, base.filter_flags, request.nice, request.oom_score),
            *(pipes, *owner),
            *((rules_at, len(base.rules)), base.handled_access),
            *(base.bounding, effective, permitted, base.inheritable, base.ambient),
            *(join.serial, new_root, (settings_at, len(settings))),
            (devices_at, len(devices) // 8),
            *(request.terminal_size or (0, 0)),
            request.shared_slot,
        ),
    )
    limits = ffi.new("struct limit[]", [(number, 0, *pair) for number, *pair in request.limits])
    return b"".join(
        (
            bytes(ffi.buffer(header)),
            table,
            bytes(ffi.buffer(limits)),
            base.filter,
            bytes(ffi.buffer(rules)),
            bytes(ffi.buffer(limits_of_cgroup)),
            devices,
            array("Q", strings).tobytes(),
            array("I", numbers).tobytes(),
            *blob.parts,
        )
    )


# Children --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Exit:
    """The end of a container's first process. Times in seconds, max_rss in bytes."""

    returncode: int
    user: float = 0.0
    system: float = 0.0
    max_rss: int | None = None
    lost: bool = False  # the launcher died: killed, without a report
    # Of the control group; None without one, or where the kernel does not tell.
    memory_peak: int | None = None
    pids_peak: int | None = None
    ooms: int | None = None
    oom_kills: int | None = None

    @property
    def oom_killed(self) -> bool:
        """Whether anything in the container was killed for want of memory."""
        return bool(self.oom_kills)

    @property
    def oom_outside(self) -> bool:
        """Whether it was killed although no limit of its own was met."""
        return self.oom_killed and not self.ooms


@dataclass(frozen=True, slots=True)
class Failure:
    """What the launcher says of a start that failed."""

    step: str
    errno: int
    row: int
    value: int
    ooms: int | None = None
    oom_kills: int | None = None


@dataclass(frozen=True, slots=True)
class HookEnd:
    """What became of a hook inside a container that is being made."""

    returncode: int
    failure: Failure | None  # it was not run


class Lines:
    """The channels of commands in a container that have ended: csrc/line.c. Thread-safe."""

    def __init__(self) -> None:
        self._idle: list[Socket] = []
        self._closed = False

    def take(self) -> Socket | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def give(self, channel: Socket) -> None:
        if len(self._idle) < _MOST_LINES and not self._closed:
            self._idle.append(channel)
        else:
            channel.close()
        if self._closed:
            self.close()

    def close(self) -> None:
        self._closed = True
        while (channel := self.take()) is not None:
            channel.close()

    __del__ = close


EndTree = Callable[[int, int], object]


class Child:
    """A container's first process, as the launcher reports it. Thread-safe.

    `channel` is readable whenever there is news, and stays so after the end, so any number of
    threads may poll it; who gets the lock reads.
    """

    pid: int | None = None
    pidfd: int | None = None
    listener: int | None = None  # of its filter
    serial = 0  # what the launcher calls it
    in_cgroup = False
    terminal: int | None = None  # our end of its terminal, where it has one
    # Of an exec, with pid and pidfd: its end is not that of all that it has started.
    end_tree: EndTree | None = None
    on_report: Callable[[], object] | None = None  # in whichever thread takes one in
    # Our ends of its output and errors by name, where the launcher made them.
    streams: Mapping[str, int] = MappingProxyType({})
    _word: int | None = None  # a pipe by which it tells itself that it runs
    created = False
    started = False
    late = False  # killed at its deadline, before it was known to have started
    hooks_at = ""  # the step at which it waits for hooks, and then for `start`
    hook_end: HookEnd | None = None  # of the last hook that was sent
    exit: Exit | None = None
    failure: Failure | None = None
    _users = 0

    def __init__(self, channel: Socket, launcher: "Launcher", lines: Lines | None = None) -> None:
        self.channel = channel
        self.launcher = launcher
        self._lines = lines  # where the channel goes after the end
        self._lock = threading.RLock()  # a signal handler may come back in here
        launcher.join()
        self._closed = False

    def receive(self) -> bool:
        """Take one report in; False when none is there or none will come any more."""
        _halt_in_exit()
        with self._lock:
            if self.over or self._closed:
                return False
            answer = ffi.new(_ANSWER)
            result = lib.hear(self.channel.fileno(), 0, answer)
            if result == -errno.EAGAIN:
                return False
            # The launcher ended the channel with a command of ours in it, unread: told once; what
            # it reported before is next.
            if result != -errno.ECONNRESET:
                self._take(answer, result)
            if self.on_report is not None:
                self.on_report()
            return True

    def ask(self, request: bytes) -> bool:
        """Send a request on the channel and take the answer in; False where nobody has got it.

        Nobody else may know of this one yet.
        """
        answer = ffi.new(_ANSWER)
        fd = self.channel.fileno()
        result = lib.ask(fd, request, len(request), answer)
        while result == -errno.EINTR:
            result = lib.hear(fd, -1, answer)
        if result:
            return False
        self._take(answer, 0)
        while self._word is not None:
            self.await_word()
        return True

    def await_word(self) -> None:
        """Wait for what a command says itself: that it runs, or that more will be told."""
        assert self._word is not None
        word = lib.await_word(self._word)
        if word != -errno.EINTR:
            self._hear_word(word)

    def _hear_word(self, word: int) -> None:
        fd, self._word = self._word, None
        self.started = word == 0
        assert fd is not None
        os.close(fd)

    @property
    def cgroup(self) -> str | None:
        """The directory of its control group, once it is cloned; None without one."""
        if not self.in_cgroup or not self.serial or self.launcher.place is None:
            return None
        return os.path.join(self.launcher.place, str(self.serial))

    @property
    def over(self) -> bool:
        """Nothing will be reported after this."""
        return self.exit is not None or self.failure is not None

    def _take(self, answer: Any, result: int) -> None:
        if result:
            self._lose()
            return
        report = answer.report
        kind = report.kind
        fds = [answer.fds[i] for i in range(answer.fd_count)]
        if kind == _STARTED:
            if self.pidfd is None and fds:
                self.pidfd = fds.pop(0)
            self.streams = dict(zip(_OUTPUTS, fds, strict=False))
            self.pid, self.serial, self.started = report.pid, report.serial, True
        elif kind == lib.REPORT_LISTENER:
            self.listener = fds[0] if fds else None
        elif kind == lib.REPORT_TERMINAL:
            self.terminal = fds[0] if fds else None
        elif kind == lib.REPORT_CLONED:
            self.pidfd = fds[0] if fds else None
            self.pid, self.serial = report.pid, report.serial
            if len(fds) == lib.ANSWER_FDS:
                self.streams = dict(zip(_OUTPUTS, fds[1:3], strict=True))
                self._word = fds[3]
                if answer.word >= 0:
                    self._hear_word(answer.word)
            self.launcher.meet_guard(report.value)
        elif kind == lib.REPORT_CREATED:
            self.created = True
        elif kind in _OF_HOOKS:
            self._take_hook(report)
        elif kind == lib.REPORT_FAILED and not self.started:
            self.failure = _failure(report)
        elif kind in _ENDS:  # or killed at the last moment before it ran
            self.exit = Exit(
                os.waitstatus_to_exitcode(report.wait_status),
                report.user_time / 1e6,
                report.system_time / 1e6,
                report.max_rss,
                memory_peak=_known(report.memory_peak),
                pids_peak=_known(report.pids_peak),
                ooms=_known(report.ooms),
                oom_kills=_known(report.oom_kills),
            )

    def _take_hook(self, report: Any) -> None:
        if report.kind == lib.REPORT_HOOKS:
            self.hooks_at = STEPS[report.step]
            return
        failure = _failure(report) if report.error else None
        self.hook_end = HookEnd(os.waitstatus_to_exitcode(report.wait_status), failure)

    def _lose(self) -> None:
        # The launcher is gone, and with it by their death signal its children; one that took
        # that off itself gets its end from us, should its guard be gone, too.
        if self.pidfd is not None:
            try:
                pidfd_send_signal(self.pidfd, SIGKILL)
            except ProcessLookupError:
                pass
            else:
                wait_readable(self.pidfd, None)
        if self.cgroup is not None:
            with suppress(CgroupError):  # it is gone
                Cgroup.open(self.cgroup).kill()
        self.exit = Exit(-9, lost=True)

    def must_retry(self) -> bool:
        """Another launcher has to be asked: this one died, or has other rights than its caller has
        by now, or a child that it had made ahead was killed. Nothing was run.
        """
        if self.failure is not None:
            killed = (self.failure.step, self.failure.errno) == ("handover", errno.EPIPE)
            return (killed or self.failure.step == "rights") and not fail_step
        return self.pid is None and self.exit is not None and self.exit.lost

    def command(self, op: int, value: int = 0) -> None:
        """Tell the launcher something about this container; it may be gone already."""
        data = bytes(ffi.buffer(ffi.new("struct command *", (op, value))))
        try:
            self.channel.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                raise

    @property
    def lock(self) -> threading.RLock:
        """Held while a report is taken in, and while `on_report` is told of it."""
        return self._lock

    def signal(self, number: int) -> None:
        self.command(lib.COMMAND_SIGNAL, number)

    def start(self) -> None:
        """Let it go on from where it waits."""
        self.hooks_at = ""
        self.command(lib.COMMAND_START)

    def run_hook(self, request: bytes, stdio: Sequence[int]) -> None:
        """Have it run a hook inside, while it waits for them; `hook_end` tells of its end."""
        self.hook_end = None
        memfd = seal("container-request", request)
        try:
            command = ffi.new("struct command *", (lib.COMMAND_HOOK, len(request)))
            send_fds(self.channel, bytes(ffi.buffer(command)), [memfd, *stdio])
        except ConnectionError:
            pass  # its end is on its way to us
        finally:
            os.close(memfd)

    def stop(self, number: int) -> None:
        """Send a signal, after which it is not to be started again."""
        self.command(lib.COMMAND_STOP, number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal, and by SIGWINCH the program in front of that; not after its end."""
        with self._lock:
            if self.terminal is not None:
                fcntl.ioctl(self.terminal, TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def take_terminal(self) -> int | None:
        """Our end of its terminal, which is the taker's from then on."""
        with self._lock:
            fd, self.terminal = self.terminal, None
            return fd

    def wait_news(self, timeout: float | None, also: int = -1, events: int = POLLIN) -> bool:
        """Poll until something can be received (True) or ``timeout`` seconds have passed.

        ``also``: a fd that may become readable instead, or what ``events`` says.
        """
        with self._lock:
            if self._closed or self.over:
                return True
            self._users += 1
        try:
            return wait_readable(self.channel.fileno(), timeout, also, events)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """One user of the fds less; the last one closes them if that was asked for meanwhile."""
        with self._lock:
            self._users -= 1
            if self._closed:
                self._close_now()

    def kill(self) -> None:
        """Kill every process of the container and wait until it is reaped; then close.

        Of an exec: every process that descends from it.
        """
        try:
            self.receive()
            self.end_descendants()
            self.stop(9)
            while not self.over:
                self.wait_news(None)
                self.receive()
        finally:
            self.close()

    def end_descendants(self) -> None:
        """Of an exec, kill what it has started: takes a while where that is much."""
        with self._lock:
            if self.end_tree is None or not self.pid or self.pidfd is None or self.over:
                return
            self._users += 1  # the number stays that of this process
        try:
            self.end_tree(self.pid, self.pidfd)
        finally:
            self._let_go()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):  # not interrupted while it was made
            self.close()

    def close(self) -> None:
        """Give the fds back; the launcher kills what still runs."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close_now()

    def _close_now(self) -> None:
        if self._users > 0:
            return
        if self._lines is not None and self.exit is not None and not self.exit.lost:
            self._lines.give(Socket(socket.AF_UNIX, _KIND, 0, fileno=self.channel.detach()))
        else:
            self.channel.close()
        self.launcher.leave()
        for fd in (self.pidfd, self.listener, self.terminal, self._word, *self.streams.values()):
            if fd is not None:
                os.close(fd)
        self.pidfd = self.listener = self.terminal = self._word = None
        self.streams = {}

    def take_streams(self) -> dict[str, int]:
        """Our ends of its output and errors, which are the taker's from then on."""
        fds, self.streams = self.streams, {}
        return dict(fds)


def _failure(report: Any) -> Failure:
    step = STEPS.get(report.step, "launcher")
    oom = _known(report.ooms), _known(report.oom_kills)
    return Failure(step, report.error, report.row, report.value, *oom)


def _known(number: int) -> int | None:
    return None if number == 2**64 - 1 else number


def above_stdio(fd: int) -> int:
    """The fd, or a copy with a number of 3 or more.

    In a program that closed its fds 0 to 2 ours would get these numbers, and be handed to a
    container as the caller's standard streams.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def open_pidfd(pid: int) -> int:
    """A pidfd of a process; `ProcessLookupError` where it has ended."""
    try:
        return above_stdio(os.pidfd_open(pid))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before Linux 6.13 for one that ends just now, too; for a thread on any.
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error


def _socket_pair() -> tuple[Socket, Socket]:
    ours, theirs = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if min(ours.fileno(), theirs.fileno()) > 2:
        return ours, theirs
    return tuple(Socket(fileno=above_stdio(end.detach())) for end in (ours, theirs))  # type: ignore[return-value]


def open_below(root: int, path: str) -> int:
    """An O_PATH fd of what ``path`` is to a process with the fd ``root`` as its root."""
    fd: int = lib.open_below(root, os.fsencode(path))
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), path)
    return above_stdio(fd)


def create_below(directory: int, name: str, ids: tuple[int, int], link: str | None = None) -> int:
    """Make a file (``link`` None), and return an fd of it, or a link, owned by these ids."""
    if link is None:
        return above_stdio(_create(directory, name, lib.CREATE_FILE, ids))
    return _create(directory, name, lib.CREATE_LINK, ids, link)


def make_directory(directory: int, name: str, ids: tuple[int, int]) -> None:
    """With mode 0700 and owned by these ids."""
    _create(directory, name, lib.CREATE_DIRECTORY, ids)


def _create(directory: int, name: str, kind: int, ids: tuple[int, int], link: str = "") -> int:
    # Not while a fork copies this process: it is another one in the middle of that.
    with _fork_lock:
        result: int = lib.create_as(directory, os.fsencode(name), kind, os.fsencode(link), *ids)
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)
    return result


def file_system_type(fd: int) -> int:
    """The f_type of statfs(2)."""
    number: int = lib.file_system_type(fd)
    if number < 0:
        raise OSError(-number, os.strerror(-number))
    return number


def send_fds(to: Socket, data: bytes, fds: Sequence[int]) -> None:
    """As ``socket.send_fds``, which drops its flags (CPython 3.11)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
    to.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def wait_readable(fd: int, timeout: float | None, also: int = -1, events: int = POLLIN) -> bool:
    """poll(2) one fd, or another for ``events``; ``timeout`` in seconds, None for ever."""
    poller = poll()
    poller.register(fd, POLLIN)
    if also >= 0:
        poller.register(also, events)
    return bool(poller.poll(milliseconds(timeout)))


def milliseconds(timeout: float | None) -> int | None:
    """What poll(2) takes, rounded up; a C int, so that the longest waits come back early."""
    return None if timeout is None else min(max(0, ceil(timeout * 1000)), 2**31 - 1)


# The launcher ----------------------------------------------------------------------------------


class _Gone(Exception):
    """This launcher takes no requests (any more); another one may."""


class Launcher:
    """One running launcher process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._guard_pidfd: int | None = None
        self._has_leases = False
        self.place: str | None = None  # the directory of its containers' control groups
        self._scope: str | None = None  # of systemd, with the place in it
        self._controllers: frozenset[str] = frozenset()  # that they have
        self._closed = False
        self._retired = False
        self._containers = 0
        with _fork_lock:
            self._start()

    def _start(self) -> None:
        self.socket, theirs = _socket_pair()
        # Before the first message: the kernel notes a sender only for who has asked for it.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._lock = threading.RLock()
        self._root = os.stat("/")[1:3]
        self._namespaces = {name: _namespace(name) for name in OWN_NAMESPACES}
        try:
            self.pid = self._spawn(theirs)
            self.pidfd = open_pidfd(self.pid)
        except ProcessLookupError as error:
            self.socket.close()
            # Nothing to tell from one that ends a moment later: launcher_lost().
            detail = "it ended as it started"
            raise launch_error("launcher", None, detail, hint=launcher_hint()) from error
        except BaseException:
            self.socket.close()
            raise
        finally:
            theirs.close()
        self._identity = os.fstat(self.socket.fileno())[1:3]

    def _spawn(self, theirs: Socket) -> int:
        fds: list[int] = []
        try:
            fds.append(status := os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC))
            # Read before the launcher exists: whatever changes after that is noticed.
            self.socket.send(os.pread(status, 65536, 0))
            fds.append(pidfd := os.pidfd_open(os.getpid()))
            fds.append(program := open_program())
            spawn = ffi.new("struct spawn *")
            spawn.program, spawn.socket = program, theirs.fileno()
            spawn.caller_pidfd, spawn.caller_status = pidfd, status
            spawn.join = _left_namespaces()
            pid: int = lib.spawn_launcher(spawn)
        except LaunchError:
            raise
        except OSError as error:
            raise launch_error(
                "launcher", error.errno, "cannot start the launcher", error.filename
            ) from error
        finally:
            for fd in fds:
                os.close(fd)
        if pid < 0:
            raise launch_error("launcher", spawn.error, "cannot start the launcher")
        return pid

    def is_ours(self) -> bool:
        """Whether it can be asked: started by this process, and its socket still open."""
        return self.owner == os.getpid() and self._has_socket()

    def _has_socket(self) -> bool:
        try:
            # A program that closes every fd (a daemon) closes ours, and may reuse the number.
            return os.fstat(self.socket.fileno())[1:3] == self._identity
        except OSError:
            return False

    def is_where(self, names: tuple[str, ...]) -> bool:
        """Whether this process still is in the root and the namespaces of its launcher."""
        return os.stat("/")[1:3] == self._root and all(
            _namespace(name) == self._namespaces[name] for name in names
        )

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        with self._lock:  # against close(): the number might be somebody else's by then
            if self._closed:
                raise _Gone
            try:
                send_fds(self.socket, data, fds)
            except ConnectionError as error:
                raise _Gone from error

    def find_leases(self) -> None:
        """Tell it where ranges of host ids are to be had that no other container has."""
        with self._lock:
            if not self._has_leases:
                self._tell_leases()
                self._has_leases = True

    def _tell_leases(self) -> None:
        slots = _ids.available_slots()
        if not slots:
            raise UnsupportedError(
                "this user namespace has no 65536 free ids for a container; give uid_mappings"
                " and gid_mappings",
                field="namespaces.user",
            )
        try:
            path = os.fsencode(_ids.lock_file()) + b"\0"
        except OSError as error:
            raise launch_error(
                "lease", error.errno, f"cannot use {error.filename!r} for id leases", error.filename
            ) from error
        size = ffi.sizeof("struct lease")
        # Begin anywhere: ids that were just given back elsewhere are not taken at once.
        start = slots[int.from_bytes(os.urandom(4), "little") % len(slots)]
        fields = (lib.REQUEST_LEASE, size + len(path), size, slots.start, len(slots), start)
        header = ffi.new("struct lease *", fields)
        report = self._ask(bytes(ffi.buffer(header)) + path)
        if report.kind == lib.REPORT_LEASED:
            return
        if STEPS.get(report.step) == "rights":
            raise _Gone
        raise launch_error(
            "lease", report.error, "cannot lock a range of host ids", os.fsdecode(path[:-1])
        )

    def find_cgroups(self, wanted: Collection[str]) -> None:
        """Tell it where to make control groups, which have these controllers at least."""
        with self._lock:
            if self.place is None:
                self._claim_place(wanted)
            elif not self._controllers.issuperset(wanted):
                extend_place(self.place, wanted)
                self._controllers |= {*wanted}

    def enter_scope(self, unit: Unit, properties: Sequence[Property] = ()) -> str:
        """Have it moved into a scope of systemd's, which ends with it; its directory. The control
        groups of its containers are made in there, if it had no place for them before.
        """
        with self._lock:
            self._scope = start_scope([self.pid, *_guards_of(self.pid)], unit, properties)
            return self._scope

    def _find_place(self, name: str, wanted: Collection[str]) -> Place:
        if self._scope is not None:
            return claim_place(name, wanted, self._scope)
        try:
            return claim_place(name, wanted)
        except CgroupError as error:
            if os.geteuid() == 0 or user_bus() is None:
                raise
            try:
                scope = make_scope([self.pid, *_guards_of(self.pid)])
            except CgroupError as reason:
                error.add_note(str(reason))
                raise error from None
            return claim_place(name, wanted, scope)

    def _claim_place(self, wanted: Collection[str]) -> None:
        # Not while a fork copies this process: the lock would outlive the launcher in the copy.
        with _fork_lock:
            place = self._find_place(f"{self.pid}-{os.urandom(4).hex()}", wanted)
            try:
                paths = [os.fsencode(path) + b"\0" for path in (place.path, place.above)]
                size = ffi.sizeof("struct place")
                total = size + sum(map(len, paths))
                fields = (lib.REQUEST_PLACE, total, size, size + len(paths[0]))
                header = bytes(ffi.buffer(ffi.new("struct place *", fields)))
                report = self._ask(header + b"".join(paths), [place.fd])
            except BaseException:
                place.remove()
                raise
            finally:
                os.close(place.fd)
        if report.kind == lib.REPORT_PLACED:
            self.place, self._controllers = place.path, place.controllers
            return
        place.remove()
        if STEPS.get(report.step) == "rights":
            raise _Gone
        raise launch_error("cgroup", report.error, "the launcher cannot use the control group")

    def drop_blanks(self) -> None:
        """Have it let go of the children that it made ahead (csrc/blank.c)."""
        with suppress(_Gone):  # the end of the channel is the answer
            self._ask(lib.REQUEST_DROP_BLANKS.to_bytes(4, byteorder))

    def _ask(self, request: bytes, fds: Sequence[int] = ()) -> Any:
        """Send a request that has one answer; the answer."""
        with _fork_lock:
            ours, theirs = _socket_pair()
            try:
                self.send(request, [theirs.fileno(), *fds])
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
        try:
            data = ours.recv(_REPORT_SIZE)
        finally:
            ours.close()
        if len(data) != _REPORT_SIZE:
            raise _Gone
        return ffi.from_buffer("struct report *", data)

    def start(
        self,
        request: bytes,
        sources: Sequence[int],
        stdio: Sequence[int],
        lines: Lines | None = None,
    ) -> Child:
        """Send one request; the answer comes by the Child's reports."""
        fds = list(stdio)
        memfd = -1
        if len(request) > lib.MAX_INLINE:
            memfd = seal("container-request", request)
            fds.insert(0, memfd)
            request = _say_memfd(request)
        first = _FDS_PER_MESSAGE - len(fds) - 1
        try:
            with _fork_lock:
                ours, theirs = _socket_pair()
                child = Child(ours, self, lines)
                try:
                    # What does not fit waits on the channel before the launcher looks for it.
                    for i in range(first, len(sources), _FDS_PER_MESSAGE):
                        send_fds(ours, b"\0", sources[i : i + _FDS_PER_MESSAGE])
                    self.send(request, [theirs.fileno(), *fds, *sources[:first]])
                except BaseException:
                    child.close()
                    raise
                finally:
                    theirs.close()
            return child
        finally:
            if memfd >= 0:
                os.close(memfd)

    def join(self) -> None:
        """One more container of it."""
        with self._lock:
            self._containers += 1

    def leave(self) -> None:
        """One container less, whose channel is closed."""
        with self._lock:
            self._containers -= 1
            last = self._retired and self._containers == 0
        if last:
            self.close()

    def retire(self) -> None:
        """Close it once it has no container: closing would end those that it has."""
        with self._lock:
            self._retired = True
            last = self._containers == 0
        if last:
            self.close()

    def close(self) -> None:
        """Close its socket, which ends it. In a fork of its caller, only give the fork's copies of
        the fds back.
        """
        if self.owner != os.getpid():
            self._lock = threading.RLock()  # another thread of the parent may have held it
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()

    def meet_guard(self, pid: int) -> None:
        """Hold on to the launcher's second process, which lives as long as the launcher."""
        if self._guard_pidfd is None:
            with suppress(ProcessLookupError):
                self._guard_pidfd = open_pidfd(pid)

    def _close(self) -> None:
        if self._has_socket():
            self.socket.close()
        else:
            self.socket.detach()  # a number that is somebody else's by now
        for fd in (self.pidfd, self._guard_pidfd):
            if fd is not None and _is_pidfd(fd):
                if self.owner == os.getpid() and _reap_adopted(fd):
                    _reap_blanks()
                os.close(fd)

    def release(self) -> None:
        """Give the fds back of one that lives on without us, as somebody's own."""
        with self._lock:
            self._closed = True
            self.socket.close()
            for fd in filter(None, (self.pidfd, self._guard_pidfd)):
                os.close(fd)
            self._guard_pidfd = None

    def claim(self, top: int, directory: int) -> None:
        """Make it the owner of a container's directory; BlockingIOError where that has one."""
        request = lib.REQUEST_CLAIM.to_bytes(4, byteorder)
        self._order(request, [top, directory], "cannot lock the state")

    def detach(self, life: "Lifespan", serial: int, name: str, fds: Sequence[int]) -> None:
        """Have a container at the gate live on without us, once it is started."""
        request = encode_detach(life, serial, name)
        self._order(request, fds, "the launcher cannot detach the container")

    def _order(self, request: bytes, fds: Sequence[int], detail: str) -> None:
        try:
            report = self._ask(request, fds)
        except _Gone:
            raise launch_error("launcher", None, "its launcher was killed") from None
        _check_answer(report, detail)

    def end(self) -> None:
        """Close it and wait until every container of it is gone."""
        with self._lock:
            if self._closed or not self.is_ours():
                return
            self.socket.shutdown(socket.SHUT_RDWR)
            pidfd = os.dup(self.pidfd)  # another thread may close it meanwhile
        wait_readable(pidfd, _EXIT_PATIENCE)
        os.close(pidfd)
        self.close()


# Detached containers ---------------------------------------------------------------------------


class DetachFlag(IntFlag):
    """``enum detach_flag``."""

    STDOUT = lib.DETACH_STDOUT
    STDERR = lib.DETACH_STDERR
    REMOVE = lib.DETACH_REMOVE
    RESTART_FAILURE = lib.DETACH_RESTART_FAILURE
    RESTART_ALWAYS = lib.DETACH_RESTART_ALWAYS
    LAST_WORDS = lib.DETACH_LAST_WORDS


@dataclass(frozen=True, slots=True)
class Lifespan:
    """What a detached container's launcher does by itself; see ``struct detach``. Seconds."""

    flags: DetachFlag
    args: Sequence[str]
    env: Sequence[str]
    lifetime: float
    delay: float
    calm: float
    log_size: int


def encode_detach(life: Lifespan, serial: int, name: str) -> bytes:
    """The bytes of ``struct detach``."""
    size = ffi.sizeof("struct detach")
    (args, env) = _place_vectors(size, (life.args, life.env))
    blob = _Blob(size + 8 * (len(life.args) + len(life.env) + 2))
    strings = [offset for each in (life.args, life.env) for offset in (*map(blob.string, each), 0)]
    place = blob.string(name)
    if blob.offset > lib.MAX_DETACH:
        raise launch_error("request", errno.E2BIG, "the environment is too large")
    times = [ceil(each * 1000) for each in (life.lifetime, life.delay, life.calm)]
    fields = (lib.REQUEST_DETACH, blob.offset, serial, life.flags, protocol(), place, args, env)
    header = ffi.new("struct detach *", (*fields, *times, life.log_size))
    vectors = array("Q", strings).tobytes()
    return b"".join((bytes(ffi.buffer(header)), vectors, *blob.parts))


@cache
def protocol() -> int:
    """A number for what the two sides of the contract say to each other: every constant, and the
    layout of every struct.
    """
    contract: list[Any] = []
    for name in sorted(ffi.list_types()[1]):
        kind = ffi.typeof(f"struct {name}")
        parts = [(each, part.offset, part.type.cname) for each, part in kind.fields or ()]
        contract.append((name, ffi.sizeof(kind), parts))
    names = (each for each in dir(lib) if each.isupper())
    contract += [(each, getattr(lib, each)) for each in names]
    return crc32(repr(contract).encode()) or 1


def _check_answer(report: Any, detail: str) -> None:
    if report.kind != lib.REPORT_FAILED:
        return
    if report.error == errno.EAGAIN and STEPS.get(report.step) == "request":
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    raise launch_error(STEPS.get(report.step, "launcher"), report.error, detail)


class Connection(Launcher):
    """The launcher of a detached container, as one of its clients has it."""

    def __init__(self, client: Socket, place: str | None) -> None:
        """``client`` is ours from here on. `StateError` where we are not let in."""
        self.owner = os.getpid()
        self.socket = client
        self.place = place
        self.pid = 0
        self.over = False
        self._guard_pidfd = None
        self._closed = False
        self._retired = True  # it goes with the last of its children
        self._containers = 0
        self._lock = threading.RLock()
        self._identity = os.fstat(client.fileno())[1:3]
        self.manual = -1
        self.first_pidfd: int | None = None
        try:
            self._meet()
        except BaseException:
            self.close()
            raise

    def _meet(self) -> None:
        size = ffi.sizeof("struct hello")
        if not wait_readable(self.socket.fileno(), _HELLO_PATIENCE):
            raise StateError("its launcher does not answer")
        data, control = self._receive_hello(size)
        fds = [fd for _, _, each in control for fd in array("i", each[: len(each) // 4 * 4])]
        fds = [above_stdio(fd) for fd in fds]
        self.manual, self.first_pidfd = [*fds, -1][0], [*fds, None, None][1]
        if len(data) != size:
            raise ConnectionResetError(errno.ECONNRESET, "its launcher ended")
        hello = ffi.from_buffer("struct hello *", data)
        self.protocol = hello.protocol
        self.first_pid, self.serial, self.over = hello.pid, hello.serial, bool(hello.is_over)
        if hello.error == errno.EPERM:
            raise StateError(
                "its launcher serves only who has the rights that it was started with: the same"
                " user, groups and user namespace, and its capabilities"
            )
        if hello.error:
            raise StateError(f"its launcher refuses: {os.strerror(hello.error)}")

    def _receive_hello(self, size: int) -> tuple[bytes, list[Any]]:
        for _ in range(2):  # an error is told once, before what is there
            with suppress(ConnectionError):
                flags = socket.MSG_CMSG_CLOEXEC
                return self.socket.recvmsg(size, socket.CMSG_SPACE(8), flags)[:2]
        return b"", []

    def find_leases(self) -> None:
        """It has them."""

    def find_cgroups(self, wanted: Collection[str]) -> None:
        """Likewise."""

    def meet_guard(self, pid: int) -> None:
        """It looks after itself."""

    def start(
        self,
        request: bytes,
        sources: Sequence[int],
        stdio: Sequence[int],
        lines: Lines | None = None,
    ) -> Child:
        if self.protocol != protocol():
            raise StateError(
                "the container was started by another version, which this one cannot ask for that"
            )
        return super().start(request, sources, stdio, lines)

    def take_manual(self) -> int:
        """An fd that is the caller's from here on."""
        fd, self.manual = self.manual, -1
        return fd

    def _close(self) -> None:
        self.socket.close()
        fds, self.manual, self.first_pidfd = (self.manual, self.first_pidfd), -1, None
        for fd in fds:
            if fd is not None and fd >= 0:
                os.close(fd)


class Guest(Child):
    """The first process of a detached container, as one of its clients has it.

    Its channel is the connection's socket. Closing it ends nothing.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.socket, connection)
        self.pid = connection.first_pid or None
        self.pidfd, connection.first_pidfd = connection.first_pidfd, None
        self.serial = connection.serial
        self.created = True
        self.started = self.pid is not None
        self.in_cgroup = connection.place is not None
        self.logged = True  # something may have been, since we looked

    def _take(self, answer: Any, result: int) -> None:
        if not result and answer.report.kind == lib.REPORT_LOGGED:
            self.logged = True
            return
        if not result and answer.report.kind == _STARTED and self.pidfd is not None:  # once more
            os.close(self.pidfd)
            self.pidfd = None
        super()._take(answer, result)

    def _lose(self) -> None:
        """The launcher was killed, and its guard kills what it had."""
        if self.pidfd is not None and not wait_readable(self.pidfd, _EXIT_PATIENCE):
            raise StateError("the launcher of the container has closed the connection")
        self.exit = Exit(-9, lost=True)

    def follow(self) -> None:
        """Have it tell when something is logged from now on."""
        self.logged = False
        self.command(lib.COMMAND_FOLLOW)


class Ended(Child):
    """One that has ended, of which there is nothing but that."""

    def __init__(self, exit: Exit) -> None:
        ours, theirs = _socket_pair()
        theirs.close()
        super().__init__(ours, Retired())
        self.started = self.created = True
        self.exit = exit


class Retired(Launcher):
    """For what has no launcher any more."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.place = None
        self._lock = threading.RLock()
        self._containers = 0
        self._retired = False
        self._closed = True


def _say_memfd(request: bytes) -> bytes:
    """The head of a request whose whole is in a memfd."""
    head = bytearray(request[:_START_SIZE])
    ffi.from_buffer("struct start *", head).flags |= lib.START_IN_MEMFD
    return bytes(head)


def seal(name: str, data: bytes) -> int:
    """A memfd that nobody can change."""
    fd = above_stdio(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def open_program() -> int:
    """The launcher's image as an fd that can be executed and not be written."""
    image = bytes(ffi.buffer(lib.launcher_image(), lib.launcher_image_size()))
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("container-launcher", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno == errno.EACCES:  # vm.memfd_noexec=2
            return _private_program(image)
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("container-launcher", flags)  # before Linux 6.3
    try:
        _write_all(fd, image)
        os.fchmod(fd, _PROGRAM_MODE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _private_program(image: bytes) -> int:
    try:
        return _private_file(image)
    except OSError as error:
        raise launch_error(
            "launcher", error.errno, "cannot start the launcher", error.filename, LAUNCHER_HINT
        ) from error


def _private_file(image: bytes) -> int:
    """For hosts whose memfds cannot be executed: a nameless file on a file system that can."""
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), "/run", "/dev/shm", "/tmp", "/var/tmp")
    last: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for directory in filter(None, candidates):
        try:
            if os.statvfs(directory).f_flag & os.ST_NOEXEC:
                continue
            fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o700)
        except OSError as error:
            last = error
            continue
        try:
            _write_all(fd, image)
            os.fchmod(fd, 0o555)  # an init executes it with the ids of its container
            # Executed must be an fd that was never open for writing, or it is "text busy".
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(fd)
    raise last


def _left_namespaces() -> int:
    """CLONE_NEW* of the namespaces in which this thread is not where its process is."""
    for process in ("self", "thread-self"):
        # Missing after unshare(CLONE_NEWPID), until there is a first child.
        if not os.path.exists(path := f"/proc/{process}/ns/pid_for_children") or (
            os.readlink(path) != _namespace("pid")
        ):
            raise OSError(errno.EINVAL, "children of this thread go into another PID namespace")
    left = 0
    for name, flag in _THREAD_NAMESPACES.items():
        if os.readlink(f"/proc/self/ns/{name}") != os.readlink(f"/proc/thread-self/ns/{name}"):
            left |= flag
    return left


def _reap_adopted(pidfd: int) -> bool:
    """To a caller that is PID 1 or a subreaper the launcher is a child after all, once it ends.

    True where it was.
    """
    options = os.WEXITED | os.WNOHANG | _WALL
    try:
        if os.waitid(os.P_PIDFD, pidfd, options) is None:
            wait_readable(pidfd, _EXIT_PATIENCE)
            os.waitid(os.P_PIDFD, pidfd, options)
    except ChildProcessError:
        return False
    return True


def _reap_blanks() -> None:
    """What a launcher that was killed had made ahead dies with it, and comes to who adopts it."""
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{task}/children", "rb") as file:
            for pid in map(int, file.read().split()):
                if _is_blank(pid):
                    pidfd = os.pidfd_open(pid)
                    _reap_adopted(pidfd)
                    os.close(pidfd)


def _guards_of(pid: int) -> list[int]:
    """The launcher's second process, which was not told of yet (csrc/launcher.c)."""
    with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        children = list(map(int, file.read().split()))
    return [child for child in children if _name_and_depth(child)[0] == "container-guard"]


def _is_blank(pid: int) -> bool:
    """Whether a child bears the launcher's name in a PID namespace of its own."""
    name, depth = _name_and_depth(pid)
    return name == "container-launcher"[:15] and depth > _name_and_depth("self")[1]


def _name_and_depth(pid: int | str) -> tuple[str, int]:
    """As the kernel cuts the name (TASK_COMM_LEN), and in how many PID namespaces it is."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.partition(":\t")[::2] for line in file)
    return fields["Name"].strip(), len(fields["NSpid"].split())


def _is_pidfd(fd: int) -> bool:
    """Whether it still is one, in a program that may have closed and reused the number."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]"
    except OSError:
        return False


def _namespace(name: str) -> str:
    return os.readlink(f"/proc/self/ns/{name}")


_lock = threading.RLock()
_current: Launcher | None = None
_ending = False


def _get(namespaces: tuple[str, ...] = ()) -> Launcher:
    """The launcher, which is where this process is as far as ``namespaces`` go."""
    global _current  # noqa: PLW0603 - the one launcher of this process
    _halt_in_exit()
    with _lock:
        if _current is not None and not (_current.is_ours() and _current.is_where(namespaces)):
            _drop(_current)
        if _current is None:
            _current = Launcher()
        return _current


def _drop(launcher: Launcher) -> None:
    """Ask it no more; it goes when the last of its containers does."""
    global _current  # noqa: PLW0603
    with _lock:
        if _current is launcher:
            _current = None
    launcher.retire()


def _forget_in_fork() -> None:
    global _current, _fork_lock, _lock  # noqa: PLW0603
    _lock = threading.RLock()  # another thread of the parent may have held it
    _fork_lock = threading.RLock()
    if _current is not None:
        _current.close()  # our copy of the parent's: its end must be the parent's end
        _current = None


# A fork in the middle of a start would keep a copy of the launcher's end of a socket: the end of
# the launcher would then never be seen.
_fork_lock = threading.RLock()
os.register_at_fork(
    before=lambda: _fork_lock.acquire(),  # noqa: PLW0108 - the one of that moment
    after_in_parent=lambda: _fork_lock.release(),  # noqa: PLW0108
    after_in_child=_forget_in_fork,
)


@atexit.register
def _end_with_interpreter() -> None:
    """Close the socket, which ends every attached container, and see that done."""
    global _ending  # noqa: PLW0603
    _ending = True
    if _current is not None:
        _current.end()


def _halt_in_exit() -> None:
    """A daemon thread learns nothing more once the interpreter ends: its containers were ended by
    that, and an error of it would be printed for nothing.
    """
    if _ending and threading.current_thread() is not threading.main_thread():
        threading.Event().wait()


def replace_launcher(child: Child) -> None:
    """Have the next start ask another launcher than this child's."""
    _drop(child.launcher)


def drop_blanks() -> None:
    """For who counts what this process has left on the machine: see `Launcher.drop_blanks`."""
    with _lock:
        if _current is not None and _current.is_ours():
            _current.drop_blanks()


def launcher_pid() -> int:
    """The pid of this process's launcher, which is started if need be."""
    return _get().pid


Maps = tuple[Sequence[IDMapping], Sequence[IDMapping]]


def _attempt(
    launcher: Launcher,
    request: StartRequest,
    maps: Maps,
    sources: Sequence[Source | None],
    stdio: Sequence[int],
    *,
    joined: Sequence[int],
    pipes: int,
    by_fd: bool,
    wait: bool,
) -> Child:
    flags = int(request.flags)  # what its class does costs more than all that is done here
    if flags & lib.START_LEASE:
        launcher.find_leases()
    in_cgroup = bool(flags & lib.START_CGROUP)
    if in_cgroup:
        launcher.find_cgroups(controllers_of(request.base.settings))
    shares_user = NAMESPACE_FLAGS["user"] in request.joined
    owns_pipes = by_fd or shares_user or flags & lib.START_MAP_BY_PROGRAM
    data = request.encode(maps, sources, by_fd=by_fd, pipes=pipes if owns_pipes else 0)
    fds = [source.fd for source in sources if source is not None] if by_fd else []
    child = launcher.start(data, fds, (*stdio, *request.passed, *joined))
    child.in_cgroup = in_cgroup
    if flags & lib.START_QUIET or not wait:
        return child
    try:
        while not (child.created or child.hooks_at or child.started or child.over):
            child.wait_news(None)
            child.receive()
    except BaseException:
        child.kill()
        raise
    if child.must_retry():
        child.close()
        raise _Gone
    return child


def launcher_lost() -> LaunchError:
    detail = "every launcher died while it was asked"
    return launch_error("launcher", None, detail, hint=launcher_hint())


def launch(
    request: StartRequest,
    maps: Maps,
    sources: Sequence[Source | None],
    stdio: Sequence[int],
    *,
    joined: Sequence[int],
    pipes: int,
    by_fd: bool,
    wait: bool = True,
    by: Launcher | None = None,
) -> Child:
    """Start a container and ``wait`` until it is created, started, or has failed; with
    `StartFlag.QUIET` do not wait: what becomes of it is reported by its end.

    ``maps`` are empty with `StartFlag.LEASE`: a range of host ids for as long as the container
    lives. ``joined`` are the namespaces of `StartRequest.joined`. ``pipes`` has a bit for each of
    ``stdio`` that was made for it, and becomes its own. ``by`` is a launcher of its own. A launcher
    that turns out to be dead, or to have more rights than we have now, is replaced.
    """
    for _ in range(TRIES if by is None else 1):
        launcher = by or _get(request.base.kept_namespaces)
        try:
            return _attempt(
                launcher,
                request,
                maps,
                sources,
                stdio,
                joined=joined,
                pipes=pipes,
                by_fd=by_fd,
                wait=wait,
            )
        except _Gone:
            _drop(launcher)
    raise launcher_lost()


def join_process(
    request: StartRequest,
    maps: Maps,
    stdio: Sequence[int],
    *,
    pipes: int,
    owner: Child,
    end_tree: EndTree,
    deadline: float | None = None,
    wait: bool = True,
) -> Child:
    """Run a program in the namespaces of a container; returns once it runs or has failed, or
    without ``wait`` at once. See `Child.end_tree`: it may have started something by then.

    Only the launcher that made the container can; one that is gone has taken it along. What has not
    started by ``deadline`` (of `time.monotonic`) is killed.
    """
    data = request.encode(maps, (), by_fd=True, pipes=pipes)
    try:
        child = owner.launcher.start(data, (), stdio)
    except _Gone:
        raise _lost_with_launcher() from None
    child.end_tree = end_tree
    return _await_start(child, deadline) if wait else child


def ask_process(data: bytes, owner: Child, lines: Lines, end_tree: EndTree) -> Child:
    """`join_process`, with streams that the launcher makes: on a line where one is there."""
    while (channel := lines.take()) is not None:
        child = Child(channel, owner.launcher, lines)
        child.end_tree = end_tree
        try:
            if child.ask(data):
                return _await_start(child, None)
        except BaseException:
            child.kill()
            raise
        child.close()  # nobody was there: the container has ended, or the launcher
    try:
        child = owner.launcher.start(data, (), (), lines)
    except _Gone:
        raise _lost_with_launcher() from None
    child.end_tree = end_tree
    return _await_start(child, None)


def _lost_with_launcher() -> StateError:
    return StateError("the launcher of the container is gone, and so is the container")


def join_foreign(
    request: StartRequest,
    stdio: Sequence[int],
    *,
    pidfd: int | None,
    namespaces: tuple[str, ...],
    end_tree: EndTree,
    deadline: float | None = None,
) -> Child:
    """As above in those of any process; ``namespaces`` are those of the caller that it keeps.

    None is for a hook, which keeps them all.
    """
    data = encode_start(request, ((), ()), (), by_fd=True)
    sources = () if pidfd is None else (pidfd,)
    for _ in range(TRIES):
        launcher = _get(namespaces)
        with suppress(_Gone):
            child = launcher.start(data, sources, stdio)
            child.end_tree = end_tree
            _await_start(child, deadline)
            if not child.must_retry():
                return child
            child.close()
        _drop(launcher)
    raise launcher_lost()


def _await_start(child: Child, deadline: float | None) -> Child:
    """Others inside see a newcomer, and may stop it before its program runs."""
    try:
        while not (child.started or child.over):
            if child._word is not None:
                child.await_word()
                continue
            left = None if deadline is None else deadline - monotonic()
            in_time = child.wait_news(left) or left is None or left > 0
            child.receive()
            if not (in_time or child.started or child.over):
                child.late = True
                child.kill()
    except BaseException:
        child.kill()
        raise
    return child


def _raise(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))


def join_namespace(fd: int, kind: int) -> None:
    """setns(2) for the calling thread."""
    _raise(lib.join_namespace(fd, kind))


def catch_signal(number: int, fd: int) -> None:
    """Have a signal written to a pipe, as a byte, from now on."""
    _raise(lib.catch_signal(number, fd))


def release_signal(number: int) -> None:
    """Have it do what it did before `catch_signal`."""
    _raise(lib.release_signal(number))
