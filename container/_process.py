# SPDX-License-Identifier: Apache-2.0
"""`ExecProcess`: a command in a container, with the face of ``subprocess.Popen``."""

import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import IO, Any, Literal, Self

from container._config import Process, Result, Usage, parse_duration
from container._config import _signal as parse_signal
from container._errors import ContainerTimeoutError, StateError, publish
from container._launcher import Child
from container._streams import Capture, Exchange


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


class ExecProcess:
    """A running command. Made by `popen`; thread-safe but for its streams.

    ``args``, ``pid`` (in the caller's PID namespace), ``pidfd`` (pollable, readable at the end),
    ``stdin``, ``stdout``, ``stderr`` (file objects where PIPE was asked for, else None) and
    ``returncode`` are as in ``subprocess.Popen``. As a context manager it waits for the end, and
    kills when the block raised.
    """

    def __init__(
        self,
        process: Process,
        child: Child,
        streams: Mapping[str, IO[bytes]],
        destroy: Callable[[], None],
        text: TextMode | None,
        capture: CaptureLimits,
        began: float,
    ) -> None:
        self.args = tuple(os.fspath(arg) for arg in process.args)
        self._child = child
        self._destroy = destroy
        self._text = text
        self._capture = capture
        self._began = began
        self._ended: float | None = None
        self.pid = child.pid
        self.stdin: IO[Any] | None = self._wrap(streams.get("stdin"))
        self.stdout: IO[Any] | None = self._wrap(streams.get("stdout"))
        self.stderr: IO[Any] | None = self._wrap(streams.get("stderr"))

    def _wrap(self, stream: IO[bytes] | None) -> IO[Any] | None:
        if stream is None or self._text is None:
            return stream
        mode = self._text
        write_through = stream.writable()
        return io.TextIOWrapper(
            stream, encoding=mode.encoding, errors=mode.errors, write_through=write_through
        )

    @property
    def pidfd(self) -> int | None:
        """A pidfd of the process; it closes once the end was noticed here."""
        return self._child.pidfd

    @property
    def returncode(self) -> int | None:
        """The exit status, -N for signal N, None until `poll` or `wait` has seen the end."""
        return self._child.exit.returncode if self._child.exit is not None else None

    @property
    def usage(self) -> Usage | None:
        """What it used, once it has ended."""
        end = self._child.exit
        if end is None:
            return None
        wall = (self._ended if self._ended is not None else monotonic()) - self._began
        return Usage(wall=wall, user=end.user, system=end.system, max_rss=end.max_rss)

    def poll(self) -> int | None:
        """The status if it has ended, else None."""
        self._child.receive()
        if self._child.over:
            return self._finish()
        return None

    def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the end; at ``timeout`` seconds kill the whole container and raise
        `ContainerTimeoutError`. A full pipe that nobody reads stops the command: `communicate`.
        """
        deadline = self._deadline(timeout)
        while not self._child.over:
            left = None if deadline is None else deadline - monotonic()
            if not self._child.wait_news(left) and left is not None and left <= 0:
                self.kill()
                self._close_streams()
                self._child.kill()
                self._raise_timeout(timeout, None, None)
            self._child.receive()
        return self._finish()

    def communicate(
        self, input: bytes | str | None = None, timeout: float | timedelta | None = None
    ) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their end, wait. Like ``Popen.communicate``, but a
        process that keeps a stream open cannot hold it up, and ``max_output`` bounds what is
        kept. At ``timeout`` seconds the container is killed: `ContainerTimeoutError`, with what
        was read in its ``result``.
        """
        result = self._exchange(input, timeout)
        return result.stdout, result.stderr

    def _exchange(
        self, data: bytes | str | None, timeout: float | timedelta | None
    ) -> Result:
        deadline = self._deadline(timeout)
        captures = {
            name: Capture(self._capture.limit, self._capture.keep)
            for name in ("stdout", "stderr")
            if getattr(self, name) is not None
        }
        exchange = Exchange(
            self._child,
            self._take_fds(),
            {name: capture.add for name, capture in captures.items()},
            self._to_bytes(data),
        )
        try:
            in_time = exchange.run(deadline)
        except BaseException:
            self._child.kill()
            exchange.finish()
            raise
        if not in_time:
            self._child.kill()
        exchange.finish()
        self._finish()
        result = self._result(captures, timed_out=not in_time)
        if not in_time:
            raise self._timeout_error(timeout, result)
        return result

    def _take_fds(self) -> dict[str, int]:
        fds = {}
        for name in ("stdin", "stdout", "stderr"):
            stream = getattr(self, name)
            if stream is None or stream.closed:
                continue
            if name == "stdin":
                with suppress(BrokenPipeError):
                    stream.flush()
            fds[name] = os.dup(stream.fileno())
            with suppress(BrokenPipeError):
                stream.close()
        return fds

    def _to_bytes(self, data: bytes | str | None) -> bytes:
        if data is None:
            return b""
        if isinstance(data, str):
            if self._text is None:
                raise TypeError("input must be bytes, not str, unless text=True")
            return self._text.encode(data)
        return data

    def _result(self, captures: Mapping[str, Capture], *, timed_out: bool) -> Result:
        outputs: dict[str, Any] = {}
        for name, capture in captures.items():
            content = capture.content()
            # Cut output may end in the middle of a character.
            text = self._text
            if text is not None and (capture.dropped or timed_out):
                text = TextMode(text.encoding, "replace")
            outputs[name] = content if text is None else text.decode(content)
            outputs[f"{name}_dropped"] = capture.dropped
        returncode = self.returncode
        assert returncode is not None
        return Result(
            args=self.args,
            returncode=returncode,
            timed_out=timed_out,
            usage=self.usage,
            **outputs,
        )

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command; nothing happens if it has ended."""
        number = parse_signal(sig, "sig")
        if self.poll() is None:
            self._child.signal(number)

    def terminate(self) -> None:
        """SIGTERM. A first process without a handler for it does not take notice: `kill`."""
        self.send_signal(15)

    def kill(self) -> None:
        """SIGKILL: every process of the container."""
        self.send_signal(9)

    def _deadline(self, timeout: float | timedelta | None) -> float | None:
        return None if timeout is None else monotonic() + parse_duration(timeout)

    def _finish(self) -> int:
        if self._ended is None:
            self._ended = monotonic()
        end = self._child.exit
        self._child.close()
        if end is None or end.lost:
            raise StateError("the command was killed: its launcher died")
        return end.returncode

    def _raise_timeout(
        self, timeout: float | timedelta | None, stdout: Any, stderr: Any
    ) -> None:
        returncode = self._finish()
        result = Result(
            self.args, returncode, stdout, stderr, timed_out=True, usage=self.usage
        )
        raise self._timeout_error(timeout, result)

    def _timeout_error(
        self, timeout: float | timedelta | None, result: Result
    ) -> ContainerTimeoutError:
        seconds = parse_duration(timeout if timeout is not None else 0)
        return ContainerTimeoutError(
            f"{self.args[0]!r} ran longer than {seconds:g} seconds and was killed", result
        )

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
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
            self._close_streams()

    def __repr__(self) -> str:
        return f"<ExecProcess {list(self.args)!r} returncode={self.returncode}>"


publish(ExecProcess)
