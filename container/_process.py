# SPDX-License-Identifier: Apache-2.0
"""`ExecProcess`: a command in a container, with the face of ``subprocess.Popen``."""

import codecs
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from signal import SIGKILL
from time import monotonic
from types import MappingProxyType
from typing import IO, Any, Literal, Self

from container._config import (
    Result,
    StrPath,
    Usage,
    parse_duration,
    parse_signal,
    parse_size,
    parse_tty_size,
)
from container._errors import ConfigError, ContainerTimeoutError, StateError, publish
from container._launcher import Child, Exit
from container._streams import Capture, Exchange, Stdio, open_stream, typed


@dataclass(frozen=True, slots=True)
class TextMode:
    """How bytes become text: as ``subprocess`` does it, but UTF-8 whatever the locale."""

    encoding: str = "utf-8"
    errors: str = "strict"

    def decode(self, data: bytes) -> str:
        text = data.decode(self.encoding, self.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def encode(self, text: str) -> bytes:
        return text.encode(self.encoding, self.errors)


@dataclass(frozen=True, slots=True)
class CaptureLimits:
    """How much of an output stream is kept: bytes (None: all), and which end."""

    limit: int | None
    keep: Literal["head", "tail"]


_USUAL_OUTPUT = "16M"
_USUAL_CAPTURE = CaptureLimits(1 << 24, "head")


def parse_capture(max_output: int | str | None, keep: str) -> CaptureLimits:
    """``max_output`` and ``keep`` of `run` and the like."""
    if max_output == _USUAL_OUTPUT and keep == "head":
        return _USUAL_CAPTURE
    if keep not in ("head", "tail"):
        raise ConfigError(f"expected 'head' or 'tail', got {keep!r}", field="keep")
    limit = None
    if max_output is not None:
        limit = parse_size(max_output, "max_output", unlimited=True)
    return CaptureLimits(None if limit == -1 else limit, "head" if keep == "head" else "tail")


def parse_text_mode(text: bool, encoding: str | None, errors: str | None) -> TextMode | None:
    """As in ``subprocess.run``: any of them asks for text."""
    if not (text or encoding or errors):
        return None
    mode = TextMode(encoding or "utf-8", errors or "strict")
    for field, lookup, name in (
        ("encoding", codecs.lookup, mode.encoding),
        ("errors", codecs.lookup_error, mode.errors),
    ):
        try:
            lookup(name)
        except LookupError as error:
            raise ConfigError(str(error), field=field) from None
    return mode


class Conversation:
    """A command from its start to its result, for `run` and `ExecProcess.communicate`."""

    __slots__ = ("args", "began", "capture", "expired", "text")

    def __init__(
        self,
        args: Sequence[StrPath],
        text: TextMode | None,
        capture: CaptureLimits,
        began: float,
    ) -> None:
        self.args = tuple(os.fspath(arg) for arg in args)
        self.text = text
        self.capture = capture
        self.began = began
        self.expired: float | None = None  # the limit at which a timer has ended the command

    def input_bytes(self, data: bytes | str | None, child: Child) -> bytes:
        """What is sent, as ``communicate`` is given it: typed where there is a terminal."""
        if isinstance(data, str):
            if self.text is None:
                raise TypeError("input must be bytes, not str, unless text=True")
            data = self.text.encode(data)
        return typed(data or b"") if child.terminal is not None else data or b""

    def hold(
        self,
        child: Child,
        fds: dict[str, int],
        data: bytes,
        timeout: float | None,
    ) -> Result | None:
        """Feed and drain the pipes until the command ends; ``fds`` and ``child`` are closed here.

        None where the command never ran: ``child.failure`` says why.
        """
        captures = {
            name: Capture(self.capture.limit, self.capture.keep) for name in fds if name != "stdin"
        }
        sinks = {name: capture.add for name, capture in captures.items()}
        try:
            exchange = Exchange(child, fds, sinks, data)
            in_time = exchange.run(None if timeout is None else monotonic() + timeout)
            if not in_time:
                child.kill()
            exchange.finish()
        except BaseException:
            child.kill()
            raise
        finally:
            while fds:
                os.close(fds.popitem()[1])
        child.close()
        return self.conclude(child, captures, None if in_time else timeout)

    def conclude(
        self,
        child: Child,
        captures: Mapping[str, Capture],
        timed_out: float | None,
        noticed: float | None = None,
    ) -> Result | None:
        """The result of a child that is over; an error where it timed out or was lost.

        ``noticed``: when its end was, by the clock of ``began``; None: now.
        """
        end = child.exit
        if timed_out is None:
            timed_out = self.expired
        if timed_out is not None and child.failure is not None and not child.failure.errno:
            end = Exit(-SIGKILL)  # by us, before its program ran
        if end is None or child.must_retry():
            return None
        if end.lost:
            raise StateError("the command was killed: its launcher died")
        outputs: dict[str, Any] = {}
        for name, capture in captures.items():
            cut = capture.dropped > 0 or timed_out is not None
            outputs[name] = self._decode(capture.content(), cut)
            outputs[f"{name}_dropped"] = capture.dropped
        result = Result(
            args=self.args,
            returncode=end.returncode,
            timed_out=timed_out is not None,
            oom_killed=end.oom_killed,
            oom_outside=end.oom_outside,
            usage=Usage(
                (monotonic() if noticed is None else noticed) - self.began,
                end.user,
                end.system,
                end.max_rss,
                end.memory_peak,
                end.pids_peak,
            ),
            **outputs,
        )
        if timed_out is not None:
            raise ContainerTimeoutError(
                f"{self.args[0]!r} ran longer than {timed_out:g} seconds and was killed", result
            )
        return result

    def _decode(self, content: bytes, cut: bool) -> bytes | str:
        if self.text is None:
            return content
        # Cut output may end in the middle of a character.
        mode = TextMode(self.text.encoding, "replace") if cut else self.text
        return mode.decode(content)


_opening = threading.Lock()


class ExecProcess:
    """A running command. Made by `popen` and `Container.exec`; thread-safe but for its streams.

    ``args``, ``pid`` (in the caller's PID namespace), ``pidfd`` (pollable, readable at the end),
    ``stdin``, ``stdout``, ``stderr`` (file objects where PIPE was asked for, else None) and
    ``returncode`` are as in ``subprocess.Popen``. With ``tty=True`` the first two are our end of
    its terminal. A stream ends with the command, even while a
    process that it has left behind holds the other end. Iterating gives the lines of ``stdout``.
    As a context manager it waits for the end, and kills when the block raised.
    """

    def __init__(
        self,
        child: Child,
        conversation: Conversation,
        ends: Stdio,
        destroy: Callable[[], None],
        streams: Mapping[str, IO[bytes]] = MappingProxyType({}),
        *,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        self.args = conversation.args
        self._conversation = conversation
        self._child = child
        self._destroy = destroy
        self._at_end = at_end  # once its end was seen
        self._text = conversation.text
        self._owner = os.getpid()
        self.pid = child.pid
        self._ends = ends  # of which nobody has asked for a file object yet
        self._names = (*ends.ours, *streams)
        self._streams = {name: self._wrap(stream) for name, stream in streams.items()}
        self._noticed: float | None = None  # when its end was, while there is no result
        self._result: Result | None = None
        self._timer: threading.Timer | None = None

    @property
    def stdin(self) -> IO[Any] | None:
        """Its standard input, where PIPE was asked for."""
        return self._stream("stdin")

    @property
    def stdout(self) -> IO[Any] | None:
        """Its standard output, likewise."""
        return self._stream("stdout")

    @property
    def stderr(self) -> IO[Any] | None:
        """Its standard error, likewise."""
        return self._stream("stderr")

    def _stream(self, name: str) -> IO[Any] | None:
        if name in self._ends.ours:
            with _opening:
                self._open(name)
        elif name in self._names and name not in self._streams:
            self._streams[name] = self._wrap(io.BytesIO())
            self._streams[name].close()  # as it is by now
        return self._streams.get(name)

    def _open(self, name: str) -> None:
        fd = self._ends.ours.get(name)
        if fd is not None:
            self._streams[name] = self._wrap(open_stream(name, fd, self._child))
            del self._ends.ours[name]  # the file object's now

    def _wrap(self, stream: IO[bytes]) -> IO[Any]:
        if self._text is None:
            return stream
        mode = self._text
        write_through = stream.writable()
        return io.TextIOWrapper(
            stream, encoding=mode.encoding, errors=mode.errors, write_through=write_through
        )

    @property
    def child(self) -> Child:
        """Not part of the API."""
        return self._child

    @property
    def pidfd(self) -> int | None:
        """A pidfd of the process; it closes once the end was noticed here."""
        return self._child.pidfd

    @property
    def seccomp_listener(self) -> int | None:
        """The fd by which calls are answered that the profile says NOTIFY of: seccomp_unotify(2).

        It belongs to this object, and closes once the end was noticed here; None without such a
        rule.
        """
        return self._child.listener

    @property
    def returncode(self) -> int | None:
        """The exit status, -N for signal N, None until `poll` or `wait` has seen the end."""
        return self._child.exit.returncode if self._child.exit is not None else None

    @property
    def result(self) -> Result | None:
        """How it ended, once `communicate`, `wait` or `poll` has seen that; after `communicate`
        with what it wrote, and how much of that was dropped.
        """
        if self._result is None and self._noticed is not None:
            self._ran(self._conversation.conclude(self._child, {}, None, self._noticed))
        return self._result

    def __iter__(self) -> Iterator[Any]:
        """The lines of ``stdout`` as they come."""
        if self.stdout is None:
            raise ValueError("stdout is no pipe")
        return iter(self.stdout)

    @property
    def usage(self) -> Usage | None:
        """What it used, once its end was seen."""
        return None if self.result is None else self.result.usage

    def poll(self) -> int | None:
        """The status if it has ended, else None."""
        self._check_owner()
        self._child.receive()
        return self._finish() if self._child.over else None

    def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the end; at ``timeout`` seconds kill the whole container, or for an exec all
        that it has started, and raise `ContainerTimeoutError`. A full pipe that nobody reads stops
        the command: `communicate`.
        """
        self._check_owner()
        limit = None if timeout is None else parse_duration(timeout)
        deadline = None if limit is None else monotonic() + limit
        self._child.receive()
        while not self._child.over:
            left = None if deadline is None else deadline - monotonic()
            if not self._child.wait_news(left) and left is not None and left <= 0:
                self._child.kill()
                self._note_end()
                self._conversation.conclude(self._child, {}, limit)
            self._child.receive()
        return self._finish()

    def communicate(
        self, input: bytes | str | None = None, timeout: float | timedelta | None = None
    ) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their end, wait. Into a terminal it is typed, with
        an end of file (^D) after it: lines of up to 4095 bytes. Like ``Popen.communicate``, but a
        process that keeps a stream open cannot hold it up, and ``max_output`` bounds what is
        kept. At ``timeout`` seconds everything is killed as by `wait`: `ContainerTimeoutError`,
        with what was read in its ``result``.
        """
        self._check_owner()
        data = self._conversation.input_bytes(input, self._child)
        limit = None if timeout is None else parse_duration(timeout)
        try:
            result = self._ran(self._conversation.hold(self._child, self._take_fds(), data, limit))
        finally:
            self._stop_timer()
            self._note_end()
        return result.stdout, result.stderr

    def _take_fds(self) -> dict[str, int]:
        fds, self._ends.ours = self._ends.ours, {}
        for name, stream in self._streams.items():
            if stream.closed:
                continue
            if name == "stdin":
                with suppress(BrokenPipeError):
                    stream.flush()
            fds[name] = os.dup(stream.fileno())
            with suppress(BrokenPipeError):
                stream.close()
        return fds

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command; nothing happens if it has ended."""
        number = parse_signal(sig, "sig")
        if self.poll() is None:
            self._child.signal(number)

    def terminate(self) -> None:
        """SIGTERM. A first process without a handler for it does not take notice: `kill`."""
        self.send_signal(15)

    def kill(self) -> None:
        """SIGKILL: every process of the container; for an exec, the command alone."""
        self.send_signal(9)

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size, in characters; SIGWINCH tells the program in front.

        `StateError` where it has none; nothing happens if it has ended.
        """
        size = parse_tty_size(rows, columns)
        if self.poll() is None:
            if self._child.terminal is None:
                raise StateError(f"{self.args[0]!r} has no terminal")
            self._child.resize(*size)

    def end_after(self, seconds: float) -> None:
        """Have everything killed as by a timeout of `wait`, whoever waits or not."""
        self._timer = threading.Timer(seconds, self._expire, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def _expire(self, seconds: float) -> None:
        self._child.receive()
        if not self._child.over:
            self._conversation.expired = seconds
            self._child.kill()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()

    def _finish(self) -> int:
        self._stop_timer()
        self._child.close()
        self._note_end()
        end = self._child.exit
        if end is not None and not end.lost and self._conversation.expired is None:
            self._noticed = self._noticed or monotonic()  # the rest is for who asks
            return end.returncode
        return self._ran(self._conversation.conclude(self._child, {}, None)).returncode

    def _note_end(self) -> None:
        at_end, self._at_end = self._at_end, None
        if at_end is not None:
            at_end()

    def _ran(self, result: Result | None) -> Result:
        assert result is not None, "it had started, so it has ended"
        self._result = self._result or result
        return result

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise StateError(f"this command belongs to process {self._owner}, not to its fork")

    def close(self) -> None:
        """Give the streams back. The command goes on, and is not waited for."""
        self._close_streams()

    def _close_streams(self) -> None:
        self._ends.close()
        for stream in self._streams.values():
            with suppress(BrokenPipeError):
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                if self.stdin is not None:
                    with suppress(BrokenPipeError):
                        self.stdin.close()
                self.wait()
        finally:
            self._destroy()
            self._stop_timer()
            self._close_streams()

    def __repr__(self) -> str:
        return f"<ExecProcess {list(self.args)!r} returncode={self.returncode}>"


publish(ExecProcess)
