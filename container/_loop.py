# SPDX-License-Identifier: Apache-2.0
"""Children and their streams on an event loop of asyncio, by nothing but ``add_reader`` and
``add_writer``: so it is the same on every loop that has these, and no thread is needed.

What a loop watches it holds. Whatever ends, a `Watch` is closed or forgotten before the fd is.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import EPIPE
from signal import SIGKILL
from threading import get_ident
from time import monotonic
from typing import Self

from container._errors import StateError
from container._launcher import Child
from container._streams import Exchange, Sink, Stdio, most_left_in, read_some

_CHUNK = 1 << 16
_HIGH, _LOW = 1 << 16, 1 << 14  # bytes that wait to be written: when `drain` blocks, and until when


class Watch:
    """What is reported of a child, taken in by the loop as it comes.

    As an asynchronous context manager it kills the child when the block raises or is cancelled.
    """

    def __init__(self, child: Child) -> None:
        self.child = child
        self.loop = asyncio.get_running_loop()
        self._owner = (os.getpid(), get_ident())
        self._fd = child.channel.fileno()
        self._waiters: set[asyncio.Future[None]] = set()
        self._at_end: list[Callable[[], object]] = []
        self._watched = not child.over
        if self._watched:
            child.on_report = self._tell
            self.loop.add_reader(self._fd, self._take)

    def _take(self) -> None:
        while self.child.receive():
            pass

    def _tell(self) -> None:
        """Whoever it was that has taken a report in, also a method that is not awaited."""
        if self._owner[1] == get_ident():
            self.wake()
        else:
            with suppress(RuntimeError):  # closed
                self.loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Have everybody look again."""
        if self.child.over:
            self.forget()
        if self.loop.is_closed():
            return
        for waiter in self._waiters:
            _release(waiter)
        if self.child.over:
            callbacks, self._at_end = self._at_end, []
            for callback in callbacks:
                self.loop.call_soon(callback)

    def at_end(self, callback: Callable[[], object]) -> None:
        if self.child.over:
            self.loop.call_soon(callback)
        else:
            self._at_end.append(callback)

    def look(self) -> Child:
        """The child, with all that is known of it now."""
        if os.getpid() != self._owner[0]:
            raise StateError(f"this command belongs to process {self._owner[0]}, not to its fork")
        self._take()
        return self.child

    def forget(self) -> None:
        """Before its channel is closed."""
        if self._watched:
            self._watched = False
            self.child.on_report = None
            if not self.loop.is_closed():
                self.loop.remove_reader(self._fd)

    def abandon(self, kept: object) -> None:
        """`forget` what nobody holds any more, in whatever thread that was noticed; ``kept``, which
        closes the channel, lives until then.
        """
        pid, thread = self._owner
        if os.getpid() != pid:  # a fork's copy, which shares the loop's epoll with its parent
            return
        if get_ident() == thread or self.loop.is_closed():
            self.forget()
            return
        with suppress(RuntimeError):  # closed just now
            self.loop.call_soon_threadsafe(lambda _kept: self.forget(), kept)

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Until it is so (True), or so many seconds have passed."""
        deadline = None if timeout is None else monotonic() + timeout
        while not condition():
            waiter = self.loop.create_future()
            timer = None
            if deadline is not None:
                if (left := deadline - monotonic()) <= 0:
                    return False
                # Not wait_for(), which in Python 3.11 may swallow a cancellation.
                timer = self.loop.call_later(left, _release, waiter)
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
                if timer is not None:
                    timer.cancel()
        return True

    async def surely(self, condition: Callable[[], bool]) -> None:
        """`until` it is so, and only then cancelled."""
        cancelled: asyncio.CancelledError | None = None
        while not condition():
            try:
                await self.until(condition)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def is_over(self) -> bool:
        return self.child.over

    async def kill(self) -> None:
        """SIGKILL, as `Child.kill`; not cancelled before the child is reaped."""
        self._take()
        ended = self._end_descendants()
        ended.add_done_callback(self._kill_itself)
        try:
            await self.surely(lambda: ended.done() and self.child.over)
        finally:
            self.close()
        ended.result()

    def _end_descendants(self) -> asyncio.Future[None]:
        """In a thread where there may be any: a tree that grows must not hold up the loop."""
        end = self.child.end_descendants
        if self.child.end_tree is not None and not self.child.over:
            try:
                return self.loop.run_in_executor(None, end)
            except RuntimeError:  # it has no threads any more, and is about to be closed
                end()
        ended: asyncio.Future[None] = self.loop.create_future()
        ended.set_result(None)
        return ended

    def _kill_itself(self, _ended: object) -> None:
        if not self.child.over:
            self.child.signal(SIGKILL)
        self.wake()

    def close(self) -> None:
        self.forget()
        self.child.close()
        self.wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is GeneratorExit:  # the loop is gone: nothing can be awaited any more
            self.close()
        elif kind is not None:
            await self.kill()


def _release(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class LoopExchange(Exchange):
    """Feeds and drains on a loop."""

    def __init__(
        self, watch: Watch, ours: dict[str, int], sinks: Mapping[str, Sink], data: bytes
    ) -> None:
        self._loop = watch.loop
        super().__init__(watch.child, ours, sinks, data)

    def _watch(self, fd: int, name: str) -> None:
        if name == "stdin":
            self._loop.add_writer(fd, self._feed, fd)
        else:
            self._loop.add_reader(fd, self._read, name, fd)

    def _watch_child(self) -> None:
        pass  # somebody else does

    def _unwatch(self, fd: int, name: str) -> None:
        if self._loop.is_closed():
            return
        if name == "stdin":
            self._loop.remove_writer(fd)
        else:
            self._loop.remove_reader(fd)


class _Pump(asyncio.ReadTransport):
    """From our end of an output stream into a StreamReader, which ends with the command."""

    def __init__(self, watch: Watch, fd: int) -> None:
        super().__init__()
        self._loop = watch.loop
        self._fd = fd
        self._left: int | None = None
        self._reading = False
        self.reader = asyncio.StreamReader(loop=watch.loop)
        self.reader.set_transport(self)
        os.set_blocking(fd, False)
        self.resume_reading()
        watch.at_end(self._expect_the_end)

    def _expect_the_end(self) -> None:
        if self._fd >= 0:
            self._left = most_left_in(self._fd)
            if self._reading:
                self._finish()

    def _finish(self) -> None:
        """What is in there now is all; the loop would not tell of nothing."""
        while self._reading and self._left and self._read():
            pass
        if self._reading:
            self.close()

    def _read(self) -> bool:
        most = _CHUNK if self._left is None else min(self._left, _CHUNK)
        data = read_some(self._fd, most)
        if data:
            if self._left is not None:
                self._left -= len(data)
            self.reader.feed_data(data)
        elif data is not None:
            self.close()
        return bool(data)

    def give_up(self) -> int:
        """Our end, for another one that reads on; what is here already stays to be read."""
        self.pause_reading()
        fd, self._fd = self._fd, -1
        self.reader.feed_eof()
        return fd

    def is_closing(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        if (fd := self.give_up()) >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and not self.is_closing():
            self._reading = True
            self._loop.add_reader(self._fd, self._read)
            if self._left is not None:
                self._loop.call_soon(self._finish)


class _Feed(asyncio.WriteTransport):
    """To our end of an input stream. That of a loop's own may read too, which of a terminal is what
    was shown; and would wait for ever where a terminal or a process left behind takes no more.
    """

    def __init__(self, watch: Watch, fd: int) -> None:
        super().__init__()
        loop = self._loop = watch.loop
        self._fd = fd
        self._data = bytearray()
        self._limits = _HIGH, _LOW
        self._closing = self._full = self._watched = False
        self._protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
        self._protocol.connection_made(self)
        self.writer = asyncio.StreamWriter(self, self._protocol, None, loop)
        os.set_blocking(fd, False)
        watch.at_end(self._end)

    def _end(self) -> None:
        """A process that was left behind may hold the other end, and read no more."""
        self._lose(BrokenPipeError(EPIPE, os.strerror(EPIPE)) if self._data else None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:  # drain() tells
            return
        self._data += data
        if not self._watched:
            self._feed()
        if len(self._data) > self._limits[0] and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def _feed(self) -> None:
        try:
            written = os.write(self._fd, self._data[:_CHUNK]) if self._data else 0
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._lose(error)
            return
        del self._data[:written]
        self._watch(bool(self._data))
        if self._full and len(self._data) <= self._limits[1]:
            self._full = False
            self._protocol.resume_writing()
        if self._closing and not self._data:
            self._lose(None)

    def _watch(self, wanted: bool) -> None:
        if wanted != self._watched and not self._loop.is_closed():
            if wanted:
                self._loop.add_writer(self._fd, self._feed)
            else:
                self._loop.remove_writer(self._fd)
            self._watched = wanted

    def _lose(self, error: OSError | None) -> None:
        self._closing = True
        self._data.clear()
        if self._fd >= 0:
            self._watch(False)
            fd, self._fd = self._fd, -1
            os.close(fd)
            if not self._loop.is_closed():
                self._loop.call_soon(self._protocol.connection_lost, error)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._data:
                self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()

    def get_write_buffer_size(self) -> int:
        return len(self._data)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._limits[1], self._limits[0]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._limits = high, low


class Streams:
    """The streams of a command that were asked for. Readers are made when they are first used."""

    def __init__(self, watch: Watch, stdio: Stdio) -> None:
        self._watch = watch
        self._fds: dict[str, int] = {}
        self._pumps: dict[str, _Pump] = {}
        self._feed: _Feed | None = None
        stdio.add_terminal(watch.child)
        for name in ("stdout", "stderr"):
            if name in stdio.ours:
                self._fds[name] = stdio.ours.pop(name)
        if "stdin" in stdio.ours:
            self._feed = _Feed(watch, stdio.ours.pop("stdin"))

    @property
    def stdin(self) -> asyncio.StreamWriter | None:
        return None if self._feed is None else self._feed.writer

    def reader(self, name: str) -> asyncio.StreamReader | None:
        if name in self._fds:
            self._pumps[name] = _Pump(self._watch, self._fds.pop(name))
        pump = self._pumps.get(name)
        return None if pump is None else pump.reader

    async def take_outputs(self) -> tuple[dict[str, int], dict[str, bytes]]:
        """Our ends, and what was read from them that nobody has taken."""
        fds, self._fds = self._fds, {}
        begun = {}
        for name, pump in self._pumps.items():
            if (fd := pump.give_up()) >= 0:
                fds[name] = fd
            begun[name] = await pump.reader.read()  # which is at its end: at once
        return fds, begun

    def __del__(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])
        for pump in self._pumps.values():
            pump.close()
        self.close_input()

    def close_input(self) -> None:
        if self._feed is not None:
            self._feed.abort()
