# SPDX-License-Identifier: Apache-2.0
"""`Container.events`: what the kernel tells of a cgroup, without asking it again and again."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from select import EPOLLERR, EPOLLPRI, epoll
from time import monotonic

from container._cgroup import parse_flat
from container._errors import CgroupError, publish
from container._launcher import Child, wait_readable

# Half of the time of two seconds: the only window that everybody may ask for (psi.rst).
_TRIGGER = b"some 1000000 2000000"


class EventKind(StrEnum):
    """What can happen to a container with a cgroup."""

    OOM = "oom"
    """A limit of its own was met, and nothing could be taken back."""
    OOM_KILL = "oom_kill"
    """Processes were killed for want of memory, whose limit ever."""
    MEMORY_HIGH = "memory_high"
    """It was slowed down above ``MemoryResources.high``."""
    PIDS_MAX = "pids_max"
    """A process or thread more than allowed was refused."""
    THROTTLED = "throttled"
    """For half of two seconds it waited for processors, and its quota was used up."""
    EXIT = "exit"
    """The first process has ended, and with it the container: the last event."""


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """``count`` is how often it has happened in all; of an exit it is the return code."""

    kind: EventKind
    count: int
    time: datetime


_FILES = {
    "memory.events.local": {"oom": EventKind.OOM, "high": EventKind.MEMORY_HIGH},
    "memory.events": {"oom_kill": EventKind.OOM_KILL},
    "pids.events": {"max": EventKind.PIDS_MAX},
}


class Watch:
    """The events of one cgroup; counts begin where they are when it is made."""

    def __init__(self, directory: str, child: Child) -> None:
        self._child = child
        self._directory = directory
        self._stack = ExitStack()
        # Readable itself whenever there is news: something that a loop can watch, too.
        self._poller = epoll()
        self._stack.callback(self._poller.close)
        self._files: dict[int, str] = {}
        try:
            for name in _FILES:
                self._open(name)
            self._trigger()
            self._counts = self._read()
        except BaseException:
            self._stack.close()
            raise

    def fileno(self) -> int:
        return self._poller.fileno()

    def close(self) -> None:
        self._stack.close()

    def __del__(self) -> None:  # of one whose events nobody has asked for
        self._stack.close()

    def _open(self, name: str) -> None:
        with suppress(FileNotFoundError):  # no such controller
            fd = os.open(os.path.join(self._directory, name), os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, fd)
            self._poller.register(fd, EPOLLPRI | EPOLLERR)
            self._files[fd] = name

    def _trigger(self) -> None:
        """Pressure of processors, where the kernel measures that: throttling is part of it."""
        with suppress(OSError):
            path = os.path.join(self._directory, "cpu.pressure")
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._stack.callback(os.close, fd)
            os.write(fd, _TRIGGER)
            self._poller.register(fd, EPOLLPRI)

    def _read(self) -> dict[EventKind, int]:
        counts: dict[EventKind, int] = {}
        for fd, name in self._files.items():
            with suppress(OSError):  # removed: the end is told by the launcher
                numbers = parse_flat(os.pread(fd, 4096, 0).decode())
                counts |= {kind: numbers.get(key, 0) for key, kind in _FILES[name].items()}
        with suppress(OSError):
            path = os.path.join(self._directory, "cpu.stat")
            with open(path, encoding="ascii") as file:
                numbers = parse_flat(file.read())
            counts[EventKind.THROTTLED] = numbers.get("nr_throttled", 0)
        return counts

    def news(self) -> list[ContainerEvent]:
        """What has happened since the last time."""
        now, found = self._read(), []
        for kind, count in now.items():
            if count > self._counts.get(kind, 0):
                found.append(ContainerEvent(kind, count, datetime.now(UTC)))
        self._counts |= now
        return found

    def last(self) -> Iterator[ContainerEvent]:
        """The cgroup is gone, but its counts came with the end."""
        end, now = self._child.exit, datetime.now(UTC)
        if end is None:
            return
        for kind, count in ((EventKind.OOM, end.ooms), (EventKind.OOM_KILL, end.oom_kills)):
            if count is not None and count > self._counts.get(kind, 0):
                yield ContainerEvent(kind, count, now)
        yield ContainerEvent(EventKind.EXIT, end.returncode, now)

    def wait(self, deadline: float | None) -> None:
        """Until something may have happened."""
        left = None if deadline is None else max(0.0, deadline - monotonic())
        channel = self._child.channel.fileno()
        if channel >= 0:  # closed: it is over
            wait_readable(channel, left, also=self.fileno())


def begin(directory: str, child: Child) -> Watch:
    """What happens from now on, whenever it is asked for first."""
    try:
        return Watch(directory, child)
    except OSError as error:
        raise CgroupError(f"cannot read {error.filename!r}: {error.strerror}") from error


def follow(watch: Watch, child: Child, deadline: float | None) -> Iterator[ContainerEvent]:
    """The events until the end of the container, or the deadline (of `time.monotonic`)."""
    try:
        while True:
            child.receive()
            over = child.over  # as it is now: another thread may learn of the end meanwhile
            yield from watch.last() if over else watch.news()
            if over or (deadline is not None and monotonic() >= deadline):
                return
            watch.wait(deadline)
    finally:
        watch.close()


publish(EventKind, ContainerEvent)
