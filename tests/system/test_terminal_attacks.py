# SPDX-License-Identifier: Apache-2.0
"""``container run -t`` on a terminal of a test's: storms, floods, hostile programs, hangups."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system.helpers import PATIENCE, processes_in, wait_until

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

CLI = [sys.executable, "-P", "-m", "container"]


class Outer:
    """A terminal, and a command in a session of its own on it."""

    def __init__(self, *command: str, ignored: int | None = None) -> None:
        self.master, self.slave = os.openpty()
        self.resize(24, 80)
        self.before = self.attributes()
        self.shown = b""

        def begin() -> None:
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)

        self.process = subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=begin,  # noqa: PLW1509 - no threads here
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def read(self, seconds: float = 0.0) -> bytes:
        """What is shown by then."""
        if not select.select([self.master], [], [], seconds)[0]:
            return b""
        data = os.read(self.master, 1 << 16)
        self.shown = (self.shown + data)[-(1 << 17) :]
        return data

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        deadline = time.monotonic() + PATIENCE
        while (match := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < deadline, self.shown[-2000:]
            self.read(0.05)
        self.shown = self.shown[match.end() :]
        return match

    def status(self) -> int:
        """Its exit status; what it shows is read meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown[-2000:]
            self.read(0.02)
        return self.process.returncode

    def hang_up(self) -> None:
        for name in ("master", "slave"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
            setattr(self, name, -1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()


@contextlib.contextmanager
def outer(script: str, *options: str, ignored: int | None = None) -> Iterator[Outer]:
    """``container run -t`` of a script, which shows "up" once it runs."""
    terminal = Outer(
        *CLI, "run", "-t", *options, "--", "sh", "-c", f"echo u''p; {script}", ignored=ignored
    )
    try:
        terminal.wait_for(b"up\r\n")
        yield terminal
    finally:
        terminal.close()


def inside_of(terminal: Outer) -> str:
    """The PID namespace of the container."""
    pid = terminal.process.pid

    def found() -> set[str]:
        spaces = set()
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if str(10**6 + pid).encode() in argv:
                    spaces.add(os.readlink(f"/proc/{name}/ns/pid"))
        return spaces - {os.readlink("/proc/self/ns/pid")}

    terminal.type(b"%d\n" % (10**6 + pid))
    assert wait_until(found)
    (space,) = found()
    return space


ESCAPES = r"printf '\033c\033[?1049h\033]0;title\007\033[6n\033[?1000h'"
SLEEP = "read n; exec sleep $n"


# Storms -------------------------------------------------------------------------------------------


def test_a_flood_shown_while_the_size_changes_all_the_time_ends_in_order() -> None:
    with outer("trap 'kill %1; stty size; exit 3' INT; yes & wait; wait") as terminal:
        for number in range(150):
            terminal.resize(10 + number % 40, 60 + number % 60)
            terminal.read(0.01)
        terminal.resize(33, 77)
        terminal.type(b"\x03")
        terminal.wait_for(rb"33 77\r\n")
        assert terminal.status() == 3
        assert terminal.attributes() == terminal.before


def test_a_storm_of_signals_changes_neither_the_terminal_nor_the_end() -> None:
    with outer("cat; exit 5") as terminal:
        storm = [signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP, signal.SIGCONT]
        for number in range(240):
            terminal.process.send_signal(storm[number % len(storm)])
            terminal.read(0.002)
        terminal.process.send_signal(signal.SIGCONT)
        assert wait_until(lambda: not terminal.attributes()[3] & termios.ICANON)  # it goes on
        terminal.resize(21, 43)
        terminal.type(b"line\n")
        terminal.wait_for(rb"line\r\nline\r\n")
        terminal.type(b"\x04")
        assert terminal.status() == 5
        assert terminal.attributes() == terminal.before


def test_one_that_was_stopped_can_be_ended_all_the_same() -> None:
    with outer(SLEEP) as terminal:
        space = inside_of(terminal)
        terminal.process.send_signal(signal.SIGTSTP)
        assert wait_until(lambda: terminal.attributes() == terminal.before)
        terminal.process.send_signal(signal.SIGTERM)
        terminal.process.send_signal(signal.SIGCONT)
        assert terminal.status() == 128 + signal.SIGTERM
        assert terminal.attributes() == terminal.before
        assert not processes_in(space)


# Programs -----------------------------------------------------------------------------------------


def test_a_program_that_closes_its_terminal_may_open_it_again() -> None:
    script = (
        "exec <&- >&- 2>&-; sleep 0.3; exec </dev/console >/dev/console 2>&1; echo ba''ck;"
        " read x; echo got $x; exit 6"
    )
    with outer(script) as terminal:
        terminal.wait_for(rb"back\r\n")
        terminal.type(b"it\n")
        terminal.wait_for(rb"got it\r\n")
        assert terminal.status() == 6
        assert terminal.attributes() == terminal.before


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("stty raw -echo; exit 0", id="raw"),
        pytest.param("stty 0; stty rows 1 columns 1; exit 0", id="hung-up"),
        pytest.param(
            r"printf '\033c\033[?1049h\033]0;title\007\033[6n\033[?1000h'; exit 0", id="esc"
        ),
        pytest.param("setsid -c true; setsid sh -c 'exec <>/dev/console'; exit 0", id="stolen"),
        pytest.param("head -c 300000 /dev/zero | tr '\\0' '\\377'; exit 0", id="bytes"),
    ],
)
def test_what_a_program_does_to_its_terminal_is_not_done_to_ours(script: str) -> None:
    with outer(script) as terminal:
        assert terminal.status() == 0
        assert terminal.attributes() == terminal.before
        size = fcntl.ioctl(terminal.slave, termios.TIOCGWINSZ, bytes(8))
        assert struct.unpack("4H", size)[:2] == (24, 80)


# Hangups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [None, signal.SIGHUP], ids=["", "nohup"])
@pytest.mark.parametrize("floods", [False, True], ids=["quiet", "flood"])
def test_a_terminal_that_disappears_takes_the_container_along(
    ignored: int | None, floods: bool
) -> None:
    script = "read n; yes & exec sleep $n" if floods else SLEEP
    with outer(script, ignored=ignored) as terminal:
        space = inside_of(terminal)
        assert processes_in(space)
        terminal.hang_up()
        assert terminal.process.wait(PATIENCE) in (
            128 + signal.SIGHUP,
            128 + signal.SIGPIPE,  # it was about to show something
        )
        assert not processes_in(space)
