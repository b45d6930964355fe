# SPDX-License-Identifier: Apache-2.0
"""End a process and everything that descends from it, where no namespace or cgroup holds them.

A command of an exec is the reaper of its orphans (csrc/exec.c), so that until it ends itself every
process that it has started is its descendant, however that was started; and it leads a session.
Processes are told apart by their start time, and killed by pidfd: never another one that has got
the number meanwhile.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from select import POLLIN, poll
from signal import SIGKILL, SIGSTOP, pidfd_send_signal

_ROUNDS = 200  # of looking for what was started meanwhile
_DEATH = 1000  # milliseconds that a killed process is waited for at a time
_PARENT, _SESSION, _START = 1, 3, 19  # fields of /proc/PID/stat behind the name


@dataclass(frozen=True, slots=True)
class _Entry:
    pid: int
    parent: int
    session: int
    start: int
    dead: bool


def end_tree(pid: int, pidfd: int) -> bool:
    """SIGKILL what descends from ``pid`` or is in its session, then ``pid`` itself.

    False when there were new ones again and again, or one that may not be killed: then ``pid`` is
    stopped, not dead. What has outlived ``pid`` is left alone.
    """
    root = _look_at(pid)
    try:
        pidfd_send_signal(pidfd, SIGSTOP)  # it starts nothing more, and stays the reaper
        for _ in range(_ROUNDS):
            members = _members_of(root) if root is not None else []
            if not members:
                pidfd_send_signal(pidfd, SIGKILL)
                return True
            if not _kill(members):
                return False
    except ProcessLookupError:
        return True
    return False


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


def _look_at(pid: int) -> _Entry | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    dead = fields[0] in (b"Z", b"X")
    return _Entry(pid, int(fields[_PARENT]), int(fields[_SESSION]), int(fields[_START]), dead)


def _kill(members: list[_Entry]) -> int:
    """How many of them are dead now, or as good as."""
    pidfds = []
    try:
        for member in members:
            with suppress(OSError):  # it has ended, or we may not
                pidfds.append(pidfd := os.pidfd_open(member.pid))
                again = _look_at(member.pid)
                if again is not None and again.start == member.start:
                    pidfd_send_signal(pidfd, SIGKILL)
        return sum(_has_ended(pidfd) for pidfd in pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _has_ended(pidfd: int) -> bool:
    poller = poll()
    poller.register(pidfd, POLLIN)
    return bool(poller.poll(_DEATH))
