# SPDX-License-Identifier: Apache-2.0
"""End a process and everything that descends from it, where no namespace or cgroup holds them.

A command of an exec is the reaper of its orphans (csrc/exec.c), so that until it ends itself every
process that it has started is its descendant, however that was started; and it leads a session.
Processes are told apart by their start time, and killed by pidfd: never another one that has got
the number meanwhile.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from select import POLLIN, poll
from signal import SIGKILL, SIGSTOP, pidfd_send_signal
from time import sleep

_ROUNDS = 200  # of looking for what was started meanwhile
_PAUSE = 0.005  # seconds for a signal to take effect
_DEATH = 1000  # milliseconds that a killed process is waited for at a time
_PARENT, _SESSION, _START = 1, 3, 19  # fields of /proc/PID/stat behind the name
_AT_END = (b"Z", b"X")
_AT_REST = (b"T", b"t", *_AT_END)  # states in which nothing is started


@dataclass(frozen=True, slots=True)
class _Entry:
    pid: int
    parent: int
    session: int
    start: int
    dead: bool


def end_tree(pid: int, pidfd: int, is_frozen: Callable[[], bool] = lambda: False) -> bool:
    """SIGKILL what descends from ``pid`` or is in its session, then ``pid`` itself. What
    ``is_frozen`` does not stop, and starts nothing either.

    False when there were new ones again and again, or one that may not be killed: then ``pid`` is
    stopped, not dead. What has outlived ``pid`` is left alone.
    """
    root = _look_at(pid)
    try:
        for _ in range(_ROUNDS):
            pidfd_send_signal(pidfd, SIGSTOP)  # it starts nothing more, and stays the reaper
            members = _members_of(root) if root is not None else []
            if members and not _kill(members):
                return False
            at_rest = not members and (_is_at_rest(pid) or is_frozen())
            if at_rest and not _has_children(pid):
                pidfd_send_signal(pidfd, SIGKILL)
                return True
            if not members:
                sleep(_PAUSE)
    except ProcessLookupError:
        return True
    return False


def _is_at_rest(pid: int) -> bool:
    """Whether each of its threads has stopped, or ended: a fork that had begun goes through."""
    return all(_state_of(thread) in _AT_REST for thread in _threads_of(pid))


def _has_children(pid: int) -> bool:
    """Whether one may live of a process at rest: a look at /proc misses who was just born.

    What lives of a tree has its reaper for a parent, or somebody who has. Where the kernel has no
    list of children (CONFIG_PROC_CHILDREN), nobody is in it.
    """
    children = _children_of(pid)
    if any(_state_of(f"/proc/{child.decode()}") not in _AT_END for child in children):
        return True
    return _children_of(pid) != children  # one had a child of its own, and died


def _children_of(pid: int) -> list[bytes]:
    children = []
    for thread in _threads_of(pid):
        with suppress(OSError), open(f"{thread}/children", "rb") as file:
            children += file.read().split()
    return children


def _threads_of(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []  # it is gone


def _members_of(root: _Entry) -> list[_Entry]:
    entries = {entry.pid: entry for entry in _entries()}
    if entries.get(root.pid, root).start != root.start:
        return []  # it was killed by somebody else, and its number is another's
    inside = {root.pid}
    grown = True
    while grown:
        found = {
            each.pid
            for each in entries.values()
            if each.parent in inside or each.session == root.pid
        }
        grown = not found <= inside
        inside |= found
    return [entries[pid] for pid in inside - {root.pid} if not entries[pid].dead]


def _entries() -> list[_Entry]:
    entries = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            entry = _look_at(int(name))
            if entry is not None:
                entries.append(entry)
    return entries


def _fields_of(directory: str) -> list[bytes] | None:
    """What /proc says of a process or thread behind its name; None when it is gone."""
    try:
        with open(f"{directory}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def _state_of(directory: str) -> bytes:
    fields = _fields_of(directory)
    return b"X" if fields is None else fields[0]


def _look_at(pid: int) -> _Entry | None:
    fields = _fields_of(f"/proc/{pid}")
    if fields is None:
        return None
    dead = fields[0] in _AT_END
    return _Entry(pid, int(fields[_PARENT]), int(fields[_SESSION]), int(fields[_START]), dead)


def _kill(members: list[_Entry]) -> int:
    """How many of them are dead now, or as good as; some may have been before."""
    gone = 0
    pidfds = []
    try:
        for member in members:
            try:
                pidfd = os.pidfd_open(member.pid)
            except OSError:  # ESRCH, and before Linux 6.13 EINVAL: it has ended
                gone += 1
                continue
            again = _look_at(member.pid)
            if again is None or again.start != member.start:
                os.close(pidfd)
                gone += 1
                continue
            pidfds.append(pidfd)
            with suppress(OSError):  # it has ended just now, or we may not
                pidfd_send_signal(pidfd, SIGKILL)
        return gone + sum(_has_ended(pidfd) for pidfd in pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _has_ended(pidfd: int) -> bool:
    poller = poll()
    poller.register(pidfd, POLLIN)
    return bool(poller.poll(_DEATH))
