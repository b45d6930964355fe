# SPDX-License-Identifier: Apache-2.0
"""Standard streams: the child's ends, ours, and the exchange between them, without threads."""

import fcntl
import io
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from errno import EIO, EPIPE
from select import POLLIN, POLLOUT, poll
from sys import byteorder
from termios import FIONREAD
from time import monotonic
from typing import IO, Any, Literal, Protocol

from container._config import DEVNULL, PIPE, STDOUT, ExecConfig, Process
from container._errors import ConfigError
from container._launcher import Child, Socket, above_stdio, milliseconds, wait_readable

_CHUNK = 1 << 16  # bytes per read or write: what a pipe holds
_MOST_IN_TERMINAL = 1 << 17  # bytes that can be on their way through one, and then some
_END_OF_FILE = b"\x04"  # what is typed for it, as a terminal is set up at first
NAMES = ("stdin", "stdout", "stderr")


@dataclass(slots=True)
class Stdio:
    """File descriptors 0 to 2 of a child, and our ends of those that are pipes."""

    child: list[int] = field(default_factory=list)
    ours: dict[str, int] = field(default_factory=dict)
    pipes: int = 0  # bit N: fd N is a pipe that we made
    _close: list[int] = field(default_factory=list)

    def add_terminal(self, child: Child) -> None:
        """Our end of its terminal, for reading and for writing."""
        if child.terminal is not None:  # also of one that has ended already
            for name in ("stdin", "stdout"):
                self.ours[name] = above_stdio(fcntl.fcntl(child.terminal, fcntl.F_DUPFD_CLOEXEC, 3))

    def close_child_ends(self) -> None:
        while self._close:
            os.close(self._close.pop())

    def __del__(self) -> None:
        self.close()

    def take(self) -> "Stdio":
        """Our ends, which are the taker's from then on."""
        ours, self.ours = self.ours, {}
        return Stdio(ours=ours)

    def close(self) -> None:
        self.close_child_ends()
        while self.ours:
            os.close(self.ours.popitem()[1])


def open_stdio(stdin: Any, stdout: Any, stderr: Any) -> Stdio:
    """As they are given to a `Process`. `ConfigError` names a bad one."""
    stdio = Stdio()
    try:
        for number, wanted in enumerate((stdin, stdout, stderr)):
            stdio.child.append(_open_one(stdio, number, NAMES[number], wanted))
    except BaseException:
        stdio.close()
        raise
    return stdio


def open_process_stdio(process: Process | ExecConfig) -> Stdio:
    """What a program begins with; a terminal it makes for itself."""
    if process.tty:
        return open_stdio(DEVNULL, DEVNULL, DEVNULL)
    return open_stdio(process.stdin, process.stdout, process.stderr)


def _open_one(stdio: Stdio, number: int, name: str, wanted: Any) -> int:
    if wanted == PIPE and isinstance(wanted, int):
        read, write = map(above_stdio, os.pipe2(os.O_CLOEXEC))
        child, ours = (read, write) if number == 0 else (write, read)
        stdio.ours[name] = ours
        stdio._close.append(child)
        stdio.pipes |= 1 << number
        return child
    if wanted == DEVNULL and isinstance(wanted, int):
        mode = os.O_RDONLY if number == 0 else os.O_WRONLY
        fd = above_stdio(os.open("/dev/null", mode | os.O_CLOEXEC))
        stdio._close.append(fd)
        return fd
    if wanted == STDOUT and isinstance(wanted, int):
        return stdio.child[1]  # and as much the process's own
    try:
        fd = number if wanted is None else wanted if isinstance(wanted, int) else wanted.fileno()
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        path_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    except (OSError, ValueError) as error:
        raise ConfigError(f"is not an open file: {error}", field=name) from None
    if directory or path_only:
        # A way to the host's files, from /proc/self/fd on.
        raise ConfigError("must not be a directory or an O_PATH file descriptor", field=name)
    return fd


def waiting_in(fd: int) -> int:
    """How many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(fd, FIONREAD, bytes(4)), byteorder)


def most_left_in(fd: int) -> int:
    """How many bytes can still come of a command that has ended."""
    return _MOST_IN_TERMINAL if os.isatty(fd) else waiting_in(fd)


def read_some(fd: int, most: int) -> bytes | None:
    """What is there; None for nothing now, empty for nothing ever."""
    try:
        return os.read(fd, most)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != EIO:
            raise
        return b""  # a terminal that nobody in the container has open any more


class _PipeReader(io.RawIOBase):
    """Our end of an output pipe: it ends with the command, though others may hold the other end."""

    def __init__(self, fd: int, child: Child) -> None:
        self._fd = fd
        self._child = child
        self._left: int | None = None  # bytes still to come from a command that has ended

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._fd

    def readinto(self, buffer: Any) -> int:
        fd = self.fileno()
        view = memoryview(buffer).cast("B")
        while self._left is None and not wait_readable(fd, 0):
            if self._child.over:
                self._left = waiting_in(fd)
            else:
                self._child.wait_news(None, also=fd)
                self._child.receive()
        if self._left is None and self._child.over:
            self._left = waiting_in(fd)
        if self._left is not None:
            view = view[: self._left]
            if not view:
                return 0
            self._left -= (count := os.readv(fd, [view]))
            return count
        return os.readv(fd, [view])

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


class _TerminalReader(_PipeReader):
    """Our end of a terminal, likewise. It does not block: two file objects share it."""

    def readinto(self, buffer: Any) -> int:
        fd = self.fileno()
        view = memoryview(buffer).cast("B")
        while True:
            over = self._child.over
            if over:
                self._left = _MOST_IN_TERMINAL if self._left is None else self._left
                view = view[: self._left]
            try:
                count = os.readv(fd, [view]) if view else 0
            except BlockingIOError:
                if over:
                    return 0
                self._child.wait_news(None, also=fd)
                self._child.receive()
                continue
            except OSError as error:
                if error.errno != EIO:
                    raise
                return 0  # nobody in the container has it open any more
            if self._left is not None:
                self._left -= count
            return count


class _TerminalWriter(io.RawIOBase):
    """Our end of a terminal. The kernel calls one that nobody has open full, never broken."""

    def __init__(self, fd: int, child: Child) -> None:
        self._fd = fd
        self._child = child

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._fd

    def write(self, data: Any) -> int:
        while not self._child.over:
            try:
                return os.write(self.fileno(), data)
            except BlockingIOError:
                self._child.wait_news(None, also=self._fd, events=POLLOUT)
                self._child.receive()
        raise BrokenPipeError(EPIPE, os.strerror(EPIPE))

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                os.close(self._fd)


def open_stream(name: str, fd: int, child: Child) -> IO[bytes]:
    """A file object for our end of a child's standard stream; owns the fd."""
    if os.isatty(fd):
        os.set_blocking(fd, False)
        if name == "stdin":
            return io.BufferedWriter(_TerminalWriter(fd, child))
        return io.BufferedReader(_TerminalReader(fd, child))
    if name == "stdin":
        return os.fdopen(fd, "wb")
    return io.BufferedReader(_PipeReader(fd, child))


def typed(data: bytes) -> bytes:
    """Input as it is typed into a terminal: with an end of file, which a line begun puts off."""
    begun = len(data) > 0 and bytes(data[-1:]) != b"\n"
    return bytes(data) + _END_OF_FILE * (2 if begun else 1)


class Capture:
    """Output kept up to a limit; what is beyond it is counted and let go.

    ``limit`` in bytes, None for all; ``keep`` which end of a longer output stays. Takes no more
    memory than that: the tail is kept in a ring.
    """

    def __init__(self, limit: int | None, keep: Literal["head", "tail"]) -> None:
        # Not a list of pieces: those may be a byte each. Its value is its memory, not a copy.
        self._content = io.BytesIO()
        self._size = 0
        self._limit = limit
        self._head = keep == "head"
        self._oldest = 0  # where the ring begins, once it is full
        self.dropped = 0  # bytes that were let go

    def add(self, data: bytes) -> None:
        view = memoryview(data)
        kept = view if self._limit is None else view[: self._limit - self._size]
        self._content.write(kept)
        self._size += len(kept)
        rest = view[len(kept) :]
        self.dropped += len(rest)
        if self._limit and not self._head:
            self._replace_oldest(rest[-self._limit :])

    def _replace_oldest(self, data: memoryview) -> None:
        while data:
            part = data[: self._size - self._oldest]
            self._content.seek(self._oldest)
            self._content.write(part)
            self._oldest = (self._oldest + len(part)) % self._size
            data = data[len(part) :]

    def content(self) -> bytes:
        if self._oldest:
            with self._content.getbuffer() as ring:
                _rotate(ring, self._oldest)
            self._oldest = 0
        return self._content.getvalue()


def _rotate(ring: memoryview, first: int) -> None:
    """Have ``first`` come first, with a copy of the smaller part only."""
    rest = len(ring) - first
    if first <= rest:
        moved = bytes(ring[:first])
        ring[:rest] = ring[first:]
        ring[rest:] = moved
    else:
        moved = bytes(ring[first:])
        ring[rest:] = ring[:first]
        ring[:rest] = moved


Sink = Callable[[bytes], object]


class Reporter(Protocol):
    """Of whose end the launcher tells by a channel: a `Child`, or a hook that one runs."""

    channel: Socket

    @property
    def over(self) -> bool: ...

    def receive(self) -> bool: ...


class Exchange:
    """Feed and drain a child's pipes until it has ended, all in the calling thread.

    Owns the fds in ``ours`` and closes each as it is done. What is in the pipes at the end of the
    child is all there will be: neither a copy of a pipe's end that somebody else holds nor a
    process that an exec has left behind can make us wait.
    """

    def __init__(
        self, child: Reporter, ours: dict[str, int], sinks: Mapping[str, Sink], data: bytes
    ) -> None:
        self._child = child
        self._ours = ours
        self._sinks = sinks
        self._input = memoryview(data).cast("B")
        self._poll = poll()
        self._names: dict[int, str] = {}
        for name, fd in ours.items():
            os.set_blocking(fd, False)
            self._names[fd] = name
            self._watch(fd, name)
        if "stdin" in ours and not self._input:
            self._drop("stdin")
        if not child.over:
            self._watch_child()

    def _watch(self, fd: int, name: str) -> None:
        self._poll.register(fd, POLLOUT if name == "stdin" else POLLIN)

    def _watch_child(self) -> None:
        self._poll.register(self._child.channel.fileno(), POLLIN)

    def _unwatch(self, fd: int, name: str) -> None:
        self._poll.unregister(fd)

    def run(self, deadline: float | None) -> bool:
        """True when the child has ended, False at the deadline (of `time.monotonic`)."""
        while not self._child.over:
            left = None if deadline is None else deadline - monotonic()
            events = self._poll.poll(milliseconds(left))
            if not events and deadline is not None and monotonic() >= deadline:
                return False
            for fd, _ in events:
                name = self._names.get(fd)
                if name is None:
                    self._child.receive()
                elif name == "stdin":
                    self._feed(fd)
                else:
                    self._read(name, fd)
        return True

    def finish(self) -> None:
        """Take what is still in the pipes of a child that has ended; close them."""
        for name in list(self._ours):
            if name != "stdin":
                self._read_rest(name, most_left_in(self._ours[name]))
        self.close()

    def close(self) -> None:
        for name in list(self._ours):
            self._drop(name)

    def _read_rest(self, name: str, left: int) -> None:
        while left > 0 and name in self._ours:
            left -= self._read(name, self._ours[name], left) or left

    def _drop(self, name: str) -> None:
        fd = self._ours.pop(name)
        self._unwatch(fd, name)
        del self._names[fd]
        os.close(fd)

    def _feed(self, fd: int) -> None:
        try:
            written = os.write(fd, self._input[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._input = self._input[:0]  # it does not want the rest; as communicate() has it
        else:
            self._input = self._input[written:]
        if not self._input:
            self._drop("stdin")

    def _read(self, name: str, fd: int, most: int = _CHUNK) -> int:
        """Read once; 0 when there is nothing now or nothing ever."""
        data = read_some(fd, min(most, _CHUNK))
        if data is None:
            return 0
        if not data:
            self._drop(name)
            return 0
        self._sinks[name](data)
        return len(data)
