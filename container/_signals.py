# SPDX-License-Identifier: Apache-2.0
"""`SignalForwarder`: signals to this process, passed on to a container or process."""

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from signal import pidfd_send_signal
from typing import Self

from container._config import SignalConfig, parse_signal
from container._container import Container
from container._errors import ConfigError, StateError, publish
from container._launcher import above_stdio, catch_signal, open_pidfd, release_signal
from container._process import ExecProcess


class SignalForwarder:
    """Passes signals that this process gets on to a container or process, while it is entered.

    ``target`` is a `Container`, an `ExecProcess` or a pid; ``signals`` those to pass on (None:
    `SignalConfig`'s ``forward_signals``). They do nothing else meanwhile: no handler of the program
    runs, SIGINT is no `KeyboardInterrupt`. It may be entered in any thread, and works while the
    main thread waits in C. Several may be entered; each gets every signal. A target that has ended
    gets none. Not inherited by a fork.
    """

    def __init__(
        self, target: int | Container | ExecProcess, signals: Sequence[int] | None = None
    ) -> None:
        self.signals = _parse_signals(signals)
        self._target = target
        self._pidfd = -1
        if isinstance(target, int) and not isinstance(target, bool):
            self._pidfd = _open(target)
        elif not isinstance(target, Container | ExecProcess):
            raise ConfigError(
                f"expected a pid, Container or ExecProcess, got {type(target).__name__}",
                field="target",
            )

    def forward_signal(self, sig: int) -> None:
        """Send a signal to the target. `StateError` when it has ended."""
        number = parse_signal(sig, "sig")
        if isinstance(self._target, Container):
            self._target.signal(number)
        elif isinstance(self._target, ExecProcess):
            self._target.send_signal(number)
        else:
            try:
                pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                raise StateError(f"process {self._target} has ended") from None

    def __enter__(self) -> Self:
        _dispatcher.add(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _dispatcher.remove(self)

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0:
            os.close(self._pidfd)


def _parse_signals(signals: Sequence[int] | None) -> tuple[int, ...]:
    if signals is None:
        return tuple(SignalConfig().forward_signals)
    try:
        return tuple(SignalConfig(forward_signals=signals).forward_signals)
    except ConfigError as error:
        field = error.field.replace("forward_signals", "signals")
        raise ConfigError(error.detail, field=field) from None


def _open(pid: int) -> int:
    if pid <= 0:
        raise ConfigError(f"{pid} is no process id", field="target")
    try:
        return open_pidfd(pid)
    except (ProcessLookupError, OverflowError):
        raise StateError(f"there is no process {pid}") from None


class _Dispatcher:
    """The one reader of the pipe that the handlers in C write to (csrc/signals.c)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the forwarders
        self._changing = threading.Lock()
        self._forwarders: list[SignalForwarder] = []
        self._barriers: deque[threading.Event] = deque()
        self._thread: threading.Thread | None = None
        self._ends = (-1, -1)

    def add(self, forwarder: SignalForwarder) -> None:
        with self._changing:
            if self._thread is None:
                self._start()
            caught = self._caught()
            with self._lock:
                self._forwarders.append(forwarder)
            for number in set(forwarder.signals) - caught:
                catch_signal(number, self._ends[1])

    def remove(self, forwarder: SignalForwarder) -> None:
        with self._changing:
            if forwarder not in self._forwarders:
                return
            rest = [each for each in self._forwarders if each is not forwarder]
            for number in set(forwarder.signals) - _signals_of(rest):
                release_signal(number)
            self._pass()  # what came before is passed on
            with self._lock:
                self._forwarders = rest
            if not rest:
                self._stop()

    def _caught(self) -> set[int]:
        return _signals_of(self._forwarders)

    def _start(self) -> None:
        read, write = map(above_stdio, os.pipe2(os.O_CLOEXEC))
        os.set_blocking(write, False)
        self._ends = read, write
        self._thread = threading.Thread(target=self._run, args=(read,), daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        assert self._thread is not None
        os.close(self._ends[1])  # the end of what there is to read
        self._thread.join()
        os.close(self._ends[0])
        self._thread = None

    def _pass(self) -> None:
        barrier = threading.Event()
        self._barriers.append(barrier)
        os.set_blocking(self._ends[1], True)
        os.write(self._ends[1], b"\0")
        os.set_blocking(self._ends[1], False)
        barrier.wait()

    def _run(self, read: int) -> None:
        while data := os.read(read, 256):
            for number in data:
                if number:
                    self._dispatch(number)
                else:
                    self._barriers.popleft().set()

    def _dispatch(self, number: int) -> None:
        with self._lock:
            forwarders = list(self._forwarders)
        for forwarder in forwarders:
            if number in forwarder.signals:
                with suppress(StateError, PermissionError):
                    forwarder.forward_signal(number)

    def forget(self) -> None:
        """In a fork: its signals are its own, and the thread is not there."""
        for number in self._caught():
            release_signal(number)
        if self._thread is not None:
            for fd in self._ends:
                os.close(fd)
        self.__init__()  # type: ignore[misc]


def _signals_of(forwarders: Sequence[SignalForwarder]) -> set[int]:
    return {number for forwarder in forwarders for number in forwarder.signals}


_dispatcher = _Dispatcher()
os.register_at_fork(after_in_child=_dispatcher.forget)

publish(SignalForwarder)
