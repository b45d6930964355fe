# SPDX-License-Identifier: Apache-2.0
"""The caller's own terminal, with a container's shown on it; and how OCI tools get the latter.

In raw mode what is typed goes to the container as it is, Ctrl-C and Ctrl-Z included, and its own
terminal decides what that means. Whatever ends us, the terminal is put back: where it is SIGKILL,
by a process that waits for nothing else.
"""

import fcntl
import os
import signal
import socket
import struct
import termios
from array import array
from collections.abc import Callable
from contextlib import suppress
from termios import ECHO, ICANON, ISIG, OPOST, TCSANOW
from types import FrameType
from typing import Any, NoReturn

Resize = Callable[[int, int], object]

_NAME = b"/dev/ptmx"  # what runc calls the fd that it sends
_OUTPUT, _LOCAL = 1, 3  # places in what tcgetattr(3) gives


def size_of(fd: int) -> tuple[int, int]:
    """Rows and columns; 0 where they are not known."""
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


class CallersTerminal:
    """The terminal that shows ours; `take` it, and `give_back` whatever happens."""

    def __init__(self, fd: int, *, typing: bool) -> None:
        self._fd = fd
        self._typing = typing  # what is typed on it is read, too
        self._saved: list[Any] | None = None
        self._guard: tuple[int, int] | None = None  # a pid, and what tells it of our end
        self._resize: Resize = _ignore_size
        self._handlers: dict[int, Any] = {}

    @classmethod
    def find(cls) -> "CallersTerminal | None":
        """Standard input, or where output is shown without one."""
        fd = next((fd for fd in (0, 1, 2) if os.isatty(fd)), None)
        return None if fd is None else cls(fd, typing=fd == 0)

    @property
    def size(self) -> tuple[int, int]:
        return size_of(self._fd)

    def take(self, resize: Resize) -> None:
        """Raw mode, and ``resize`` called with its size whenever that changes."""
        self._resize = resize
        self._handle(signal.SIGWINCH, self._pass_size)
        if self._typing:
            self._saved = termios.tcgetattr(self._fd)
            self._guard = _start_guard(self._fd, self._saved)
            self._set_raw()
            self._handle(signal.SIGTSTP, self._stop)
            self._handle(signal.SIGCONT, self._go_on)
        self._pass_size()  # it may have changed before the handler was there

    def give_back(self) -> None:
        """As it was before; does nothing where it was not taken."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())
        self._restore()
        if self._guard is not None:
            (pid, pipe), self._guard = self._guard, None
            os.close(pipe)
            os.waitpid(pid, 0)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handlers[number] = signal.signal(number, handler)

    def _pass_size(self, *_signal: object) -> None:
        with suppress(OSError):  # hung up
            self._resize(*self.size)

    def _set_raw(self) -> None:
        if self._saved is not None:
            termios.tcsetattr(self._fd, TCSANOW, _raw(self._saved))

    def _restore(self) -> None:
        if self._saved is not None:
            _restore(self._fd, self._saved)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Sent by somebody, not typed: whoever goes on with the terminal finds it as it was."""
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stop)

    def _go_on(self, *_signal: object) -> None:
        with suppress(termios.error):
            self._set_raw()
        self._pass_size()


def _ignore_size(_rows: int, _columns: int) -> None:
    pass


def _raw(attributes: list[Any]) -> list[Any]:
    """As cfmakeraw(3)."""
    inputs, outputs, control, local, *speeds, characters = attributes
    inputs &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR)
    inputs &= ~(termios.IGNCR | termios.ICRNL | termios.IXON)
    control = control & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    local &= ~(ECHO | termios.ECHONL | ICANON | ISIG | termios.IEXTEN)
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return [inputs, outputs & ~OPOST, control, local, *speeds, characters]


def _restore(fd: int, saved: list[Any]) -> None:
    with suppress(termios.error):  # hung up
        if _is_raw(termios.tcgetattr(fd)):
            termios.tcsetattr(fd, TCSANOW, saved)


def _is_raw(attributes: list[Any]) -> bool:
    """Still as we have made it: no shell's own mode, which keeps signals and new lines."""
    return not (attributes[_LOCAL] & (ECHO | ICANON | ISIG) or attributes[_OUTPUT] & OPOST)


def _start_guard(fd: int, saved: list[Any]) -> tuple[int, int]:
    """A process that puts the terminal back once the other end of the pipe is closed."""
    read, write = os.pipe2(os.O_CLOEXEC)
    # No handler of ours may run in it, and with all of them blocked job control leaves it alone.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _guard(fd, saved, read)
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    return pid, write


def _guard(fd: int, saved: list[Any], pipe: int) -> NoReturn:
    try:
        os.setsid()  # who ends the whole job does not mean it
        kept = sorted((fd, pipe))
        for before, after in zip((-1, *kept), (*kept, 1 << 16), strict=True):
            if before + 1 < after:  # of an empty range CPython closes everything
                os.closerange(before + 1, after)
        os.read(pipe, 1)
        _restore(fd, saved)
    finally:
        os._exit(0)


def send_terminal(fd: int, path: str) -> None:
    """Hand our end of a terminal to who listens on a socket (OCI runtimes' ``--console-socket``).

    `OSError` where nobody does. The fd stays open here: close it, and the streams of it, or the
    other side's end of it is no hangup.
    """
    os.set_blocking(fd, True)  # as others make them
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to:
        to.connect(path)
        to.sendmsg([_NAME], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])
