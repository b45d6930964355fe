# SPDX-License-Identifier: Apache-2.0
"""What a test leaves behind, in this process and on this machine.

A `Guard` takes stock when it is made; `Guard.left` takes stock again and says, item by item, what
came and stayed and what went although it was not the test's. Looked at: mounts, processes,
threads, open files of this process and of its launcher, cgroups, network links, nft tables, and
the package's own files.

The kernel tears some things down after the last user has gone (network namespaces, mounts,
exiting processes), so `left` looks again until nothing is left or its time is up. Only what was
there at the first look can be reported: other programs may come and go meanwhile.

Which processes count: descendants of this one; launchers, unless one provably serves another
process; orphans in namespaces that are not this process's; and the descendants of all these.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

LAUNCHER = "container-launcher"[:15]
GUARD = "container-guard"
"""Name of a launcher's process, as long as the kernel keeps it (TASK_COMM_LEN)."""

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")

PLACE = re.compile("/container/@[^/]*$")
"""The cgroup of a launcher's containers, which it keeps."""

SECONDS = 5.0
"""How long the kernel may take to tear down what a test has let go of."""

INTERVAL = 0.005

Things = dict[Hashable, str]
"""What was found: an identity that is never used twice, and how to describe it."""


# The world, one source each -----------------------------------------------------------------------


def mounts() -> Things:
    """Every line whole: ids too, or a second mount on the same place would not show."""
    return {line: f"mount: {line}" for line in _read("/proc/self/mountinfo").splitlines()}


def threads() -> Things:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    tasks = (int(name) for name in os.listdir("/proc/self/task"))
    return {tid: f"thread {tid}: {names.get(tid, 'not of Python')}" for tid in tasks}


def cgroups() -> Things:
    """All but the places of launchers that are alive, which stay as long as these."""
    found: Things = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        if " - cgroup2 " in line:
            top = line.split(" ")[4]
            found |= {path: f"cgroup: {path}" for path, _, _ in os.walk(top) if path != top}
    places = [path for path in map(str, found) if PLACE.search(path) and _is_locked(path)]
    above = {os.path.dirname(path) for path in places}
    return {path: text for path, text in found.items() if path not in {*places, *above}}


def _is_locked(directory: str) -> bool:
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False


def links() -> Things:
    found: Things = {}
    for name in os.listdir("/sys/class/net"):
        with contextlib.suppress(FileNotFoundError):
            index = _read(f"/sys/class/net/{name}/ifindex").strip()
            found[index, name] = f"network link: {name} (index {index})"
    return found


def files() -> Things:
    """Files and directories that the package makes for itself."""
    tops = ["/run/container"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        tops.append(os.path.join(runtime, "container"))
    found: Things = {path: f"file: {path}" for top in tops for path in _tree(top)}
    with os.scandir(tempfile.gettempdir()) as entries:
        paths = (entry.path for entry in entries if entry.name.startswith("container-"))
        return found | {path: f"file: {path}" for path in paths}


def _tree(top: str) -> Iterator[str]:
    if os.path.lexists(top):
        yield top
    for directory, directories, names in os.walk(top):
        yield from (os.path.join(directory, name) for name in (*directories, *names))


def open_files(pid: int | str) -> Things:
    whose = "this process" if pid == "self" else f"the launcher {pid}"
    return {
        (pid, number, link): f"open file {number} of {whose}: {link}"
        for number, link in descriptors(pid).items()
        if pid == "self" or not PLACE.search(link)
    }


def descriptors(pid: int | str) -> dict[int, str]:
    """Number → link of each open file; empty where the process may not be looked into."""
    found: dict[int, str] = {}
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
        for name in os.listdir(directory):
            # The listing's own descriptor is closed by now.
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"{directory}/{name}")
    return found


NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETTABLE = 1
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR = 2
NLMSG_DONE = 3
NFTA_TABLE_NAME = 1
NFTA_TABLE_USE = 3


def nft_tables() -> Things:
    """Tables with the number of chains and sets in them; nothing where the kernel does not say.

    Asked by netlink: `nft list ruleset` costs some 8 ms, which is too much for every test.
    """
    found: Things = {}
    if os.geteuid() != 0:
        return found
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE
        netlink.send(struct.pack("=IHHIIBBH", 20, kind, NLM_F_REQUEST_DUMP, 1, 0, 0, 0, 0))
        for message_kind, body in _messages(netlink):
            if message_kind == NLMSG_ERROR:
                (number,) = struct.unpack_from("=i", body)
                if -number in (errno.EPERM, errno.EINVAL):
                    return {}
                raise OSError(-number, f"NFT_MSG_GETTABLE: {os.strerror(-number)}")
            attributes = dict(_attributes(body[4:]))
            name = attributes[NFTA_TABLE_NAME].rstrip(b"\0").decode()
            (use,) = struct.unpack(">I", attributes[NFTA_TABLE_USE])
            found[body[0], name, use] = f"nft table: {name} (family {body[0]}) with {use} objects"
    return found


def _messages(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        data = netlink.recv(1 << 16)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == NLMSG_DONE:
                return
            yield kind, data[16:length]
            data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


# Processes ----------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A line of /proc/PID/stat. Pid and start time together never come twice."""

    pid: int
    start: int
    parent: int
    state: str
    name: str

    @property
    def is_launcher(self) -> bool:
        return self.name == LAUNCHER


Table = dict[int, Process]


def processes() -> Table:
    found = (_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def _process(pid: int) -> Process | None:
    try:
        # Some hundred of these for every test: a third of the time that a text file takes.
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(descriptor, 4096).decode(errors="surrogateescape")
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    # The name may have blanks and parentheses of its own.
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split(" ")
    return Process(pid, int(rest[19]), int(rest[1]), rest[0], name)


def line_of(pid: int, table: Table) -> Iterator[Process]:
    """The process and its ancestors, upwards."""
    while pid in table:
        yield table[pid]
        pid = table[pid].parent


def namespaces(pid: int | str) -> dict[str, str]:
    """Kind → link; only those that may be seen."""
    found: dict[str, str] = {}
    for kind in NAMESPACES:
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
    return found


def pid_namespace_depth(pid: int | str) -> int:
    """How many pid namespaces the process has a pid in, seen from here; 0 where it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith("NSpid:"):
                return len(line.split()) - 1
    return 0


def elsewhere(pid: int) -> bool:
    """Whether the process is in a namespace that this one is not in.

    The depth shows even where the links may not be read (a process that is not dumpable).
    """
    if pid_namespace_depth(pid) > pid_namespace_depth("self"):
        return True
    here = namespaces("self")
    return any(link != here.get(kind) for kind, link in namespaces(pid).items())


def callers(launcher: int, table: Table) -> set[int] | None:
    """The living processes that a launcher serves: it has their pidfds, beside its descendants'.

    None where its descriptors may not be read, as an ordinary user's may not: it is not dumpable.
    """
    found: set[int] = set()
    try:
        numbers = os.listdir(f"/proc/{launcher}/fdinfo")
    except PermissionError:
        return None
    except (FileNotFoundError, ProcessLookupError):
        return found
    for number in numbers:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            information = _read(f"/proc/{launcher}/fdinfo/{number}")
            found |= {int(pid) for pid in re.findall(r"^Pid:\t([1-9]\d*)$", information, re.M)}
    return {pid for pid in found if launcher not in (each.pid for each in line_of(pid, table))}


def own_launchers(table: Table) -> list[Process]:
    """The launchers that serve this very process, as far as that can be told.

    A child of a launcher that bears its name is a container about to start.
    """
    running = {each.pid: each for each in table.values() if each.is_launcher and each.state != "Z"}
    return [
        process
        for process in running.values()
        if process.parent not in running and _serves_self(process.pid, table)
    ]


def _serves_self(launcher: int, table: Table) -> bool:
    served = callers(launcher, table)
    return _is_of_same_user(launcher) if served is None else os.getpid() in served


def _is_of_same_user(pid: int) -> bool:
    # Not the owner of /proc/PID: that is root where the process is not dumpable.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return f"\nUid:\t{os.getuid()}\t" in _read(f"/proc/{pid}/status")
    return False


@dataclass
class Suspects:
    """Tells the processes that a test made from those that it has nothing to do with."""

    before: Table
    own: int = field(default_factory=os.getpid)

    def among(self, after: Table) -> Things:
        return {
            (process.pid, process.start): _describe(process)
            for process in after.values()
            if self._is_news(process) and self._is_ours(process, after)
        }

    def _is_news(self, process: Process) -> bool:
        earlier = self.before.get(process.pid)
        if earlier is None or earlier.start != process.start:
            return True
        died = process.state == "Z" and earlier.state != "Z"
        return died and process.parent == self.own

    def _is_ours(self, process: Process, after: Table) -> bool:
        above = {ancestor.pid for ancestor in line_of(self.own, after)} - {self.own}
        if process.state == "Z" and process.parent in above:
            # An orphan that has ended: it is not ours to reap, and some inits take seconds.
            return False
        top = process
        for ancestor in line_of(process.pid, after):
            if ancestor.pid == self.own:
                return True
            if ancestor.is_launcher:
                return self._serves_us(ancestor, after)
            if not self._is_news(ancestor):
                # An orphan goes to a process above us; any other old parent is somebody else's.
                return ancestor.pid in above and elsewhere(top.pid)
            top = ancestor
        return elsewhere(top.pid)

    def _serves_us(self, launcher: Process, after: Table) -> bool:
        served = callers(launcher.pid, after)
        if served is None:
            return _is_of_same_user(launcher.pid)
        # One that has outlived its caller is a leak of whoever looks.
        lines = [line_of(pid, after) for pid in served]
        return not lines or any(self.own == each.pid for line in lines for each in line)


def _describe(process: Process) -> str:
    kind = "zombie" if process.state == "Z" else "process"
    return f"{kind} {process.pid}: {process.name}, child of {process.parent}"


# The guard ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A look at the world, and whether it matters when something of it is gone."""

    look: Callable[[], Things]
    may_go: bool = False


SOURCES = {
    "mounts": Source(mounts),
    "threads": Source(threads, may_go=True),
    "cgroups": Source(cgroups, may_go=True),
    "links": Source(links),
    "nft tables": Source(nft_tables),
    "files": Source(files, may_go=True),
}


class Guard:
    """Stock taken at one moment, to be compared with a later one.

    `replaced_launcher` in `left` allows that this process's launcher is another one than before,
    with other sockets: there must still be one, and no more of each kind of open file.
    """

    def __init__(self) -> None:
        _drop_blanks()
        table = processes()
        self._suspects = Suspects(table)
        self._launchers = {(each.pid, each.start) for each in own_launchers(table)}
        self._stock = {name: source.look() for name, source in SOURCES.items()}
        self._open_files = self._files()
        self._launcher_files = self._files_of_launchers()
        self._kinds = _kinds_of_open_files(own_launchers(table))

    def left(self, *, replaced_launcher: bool = False, seconds: float | None = None) -> list[str]:
        """What is left, a line each, at the latest after `seconds` (SECONDS unless given)."""
        _drop_blanks()
        looks = self._looks(replaced_launcher)
        deadline = time.monotonic() + (SECONDS if seconds is None else seconds)
        left = {name: look() for name, look in looks.items()}
        while any(left.values()) and time.monotonic() < deadline:
            time.sleep(INTERVAL)
            for name, things in left.items():
                if things:
                    now = looks[name]()
                    left[name] = {key: text for key, text in now.items() if key in things}
        return sorted(text for things in left.values() for text in things.values())

    def _looks(self, replaced_launcher: bool) -> dict[str, Callable[[], Things]]:
        return {
            **{name: partial(self._difference, name) for name in SOURCES},
            "processes": partial(self._processes, replaced_launcher),
            "open files": self._more_files if replaced_launcher else self._other_files,
        }

    def _difference(self, name: str) -> Things:
        source = SOURCES[name]
        return _difference(self._stock[name], source.look(), may_go=source.may_go)

    def _processes(self, replaced_launcher: bool) -> Things:
        table = processes()
        found = self._suspects.among(table)
        launchers = {(each.pid, each.start) for each in own_launchers(table)}
        if replaced_launcher and len(launchers) == len(self._launchers):
            guards = {
                (each.pid, each.start)
                for each in table.values()
                if each.name == GUARD and each.parent in {pid for pid, _ in launchers}
            }
            return {key: text for key, text in found.items() if key not in launchers | guards}
        for pid, start in self._launchers - launchers:
            found["gone", pid, start] = f"gone: process {pid}: {LAUNCHER}"
        return found

    def _other_files(self) -> Things:
        # The launcher closes its files of a container just after it has told the end of it, so
        # that the first look may have seen some that go.
        mine, launchers = self._files(), self._files_of_launchers()
        return _difference(self._open_files, mine, may_go=False) | _difference(
            self._launcher_files, launchers, may_go=True
        )

    def _files(self) -> Things:
        return open_files("self")

    def _files_of_launchers(self) -> Things:
        found: Things = {}
        for pid, _ in self._launchers:
            found |= open_files(pid)
        return found

    def _more_files(self) -> Things:
        more = _kinds_of_open_files(own_launchers(processes())) - self._kinds
        return {
            (whose, kind): f"open files of the {whose}: {count} more of {kind}"
            for (whose, kind), count in more.items()
        }


def _drop_blanks() -> None:
    """What the launcher of this process has made ahead is not left of anything. It would go by
    itself in a quarter of a second, which is too long for every test.
    """
    if launcher := sys.modules.get("container._launcher"):
        launcher.drop_blanks()


def _difference(before: Things, after: Things, *, may_go: bool) -> Things:
    found = {key: text for key, text in after.items() if key not in before}
    if not may_go:
        gone = ((key, text) for key, text in before.items() if key not in after)
        found |= {("gone", key): f"gone: {text}" for key, text in gone}
    return found


def _kinds_of_open_files(launchers: Iterable[Process]) -> Counter[tuple[str, str]]:
    """How many of each kind: comparable where sockets and pipes have been replaced."""
    found: Counter[tuple[str, str]] = Counter()
    for whose, pid in [("process", "self"), *(("launcher", str(each.pid)) for each in launchers)]:
        links = descriptors(pid).values()
        found.update((whose, re.sub(r":\[\d+\]$", "", link)) for link in links)
    return found


def report(left: Iterable[str]) -> str:
    """The text of the failure."""
    return "\n  ".join(("the test left behind:", *left))
