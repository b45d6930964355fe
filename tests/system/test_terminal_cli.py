# SPDX-License-Identifier: Apache-2.0
"""``container run -t`` and ``exec -t`` on a terminal that is one: tmux shows it."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from system.helpers import INTERVAL, PATIENCE, wait_until

from container import Container, Process
from container._terminal import CallersTerminal

pytestmark = [pytest.mark.needs("userns", "tmux"), pytest.mark.long]

CLI = f"{shlex.quote(sys.executable)} -P -m container"
PROMPT = "outer> "
# Not one that puts its terminal in order itself after every command, as bash does.
OUTER = ["env", f"PS1={PROMPT}", "ENV=", "dash"]
SHELL = "bash --norc --noprofile"


class Screen:
    """A tmux with one window and a shell in it."""

    def __init__(self, directory: Path, columns: int = 90, lines: int = 24) -> None:
        self._command = ["tmux", "-S", str(directory / "socket"), "-f", "/dev/null"]
        # Not a daemon: it is ours to wait for. Its clients wait until it has its socket.
        self._server = subprocess.Popen(
            [*self._command, "-D"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        size = ["-x", str(columns), "-y", str(lines)]
        # exec: in place of the shell that reads this, whichever the user has.
        new = ["new-session", "-d", *size, f"exec {shlex.join(OUTER)}"]
        assert wait_until(lambda: self._try(*new))
        self.terminal = self.tell("display-message", "-p", "#{pane_tty}").strip()
        self.shell = int(self.tell("display-message", "-p", "#{pane_pid}"))
        self.wait_for(PROMPT)
        self.before = self.attributes()

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.tell("kill-server")
        self._server.kill()
        self._server.wait()

    def _try(self, *command: str) -> bool:
        done = subprocess.run([*self._command, *command], capture_output=True, check=False)
        return done.returncode == 0

    def tell(self, *command: str) -> str:
        return subprocess.run(
            [*self._command, *command], capture_output=True, text=True, check=True
        ).stdout

    def press(self, *keys: str) -> None:
        self.tell("send-keys", *keys)

    def type(self, text: str) -> None:
        self.tell("send-keys", "-l", text)
        self.press("Enter")

    def text(self) -> str:
        """What is on it and has been."""
        return self.tell("capture-pane", "-p", "-J", "-S", "-")

    def clear(self) -> None:
        """Forget what was shown."""
        self.tell("send-keys", "-R")
        self.tell("clear-history")

    def wait_for(self, text: str) -> str:
        """Until a line of what is shown is, or begins with, this; all that is shown."""
        shown = ""

        def is_there() -> bool:
            nonlocal shown
            shown = self.text()
            return re.search(rf"^{text}", shown, re.MULTILINE) is not None

        assert wait_until(is_there), f"no {text!r} in:\n{shown}"
        return shown

    def attributes(self) -> list[Any]:
        fd = os.open(self.terminal, os.O_RDWR | os.O_NOCTTY)
        try:
            return termios.tcgetattr(fd)
        finally:
            os.close(fd)

    def waiting(self) -> int:
        """Bytes that were typed and that nobody has read, as a reader of bytes would count them."""
        fd = os.open(self.terminal, os.O_RDWR | os.O_NOCTTY)
        try:
            (count,) = struct.unpack("i", ioctl(fd, termios.FIONREAD, bytes(4)))
            return int(count)
        finally:
            os.close(fd)

    def is_raw(self) -> bool:
        return not self.attributes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def is_as_before(self) -> bool:
        return self.attributes() == self.before

    def command(self) -> int:
        """The pid of what the shell runs."""
        children = Path(f"/proc/{self.shell}/task/{self.shell}/children")
        assert wait_until(children.read_text)
        return int(children.read_text().split()[0])

    def expect_status(self, status: int) -> None:
        """The command has ended with it, and the terminal is what it was."""
        self.wait_for(f".*{PROMPT}")  # perhaps in the middle of a line
        assert wait_until(self.is_as_before), (self.before, self.attributes())
        self.type("echo status=$?")
        self.wait_for(f"(outer> )?status={status}$")


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    screen = Screen(tmp_path)
    try:
        yield screen
    finally:
        screen.close()


@pytest.fixture
def inner(screen: Screen) -> Screen:
    """... with bash in a container on it."""
    screen.clear()
    screen.type(f"{CLI} run -t -- {SHELL}")
    screen.wait_for("bash-")
    assert screen.is_raw()
    return screen


# A shell ------------------------------------------------------------------------------------------


def test_the_exit_status_is_the_shells_and_the_terminal_is_as_before(inner: Screen) -> None:
    inner.type("exit 7")
    inner.expect_status(7)


def test_ctrl_c_interrupts_the_job_in_front_and_nothing_else(inner: Screen) -> None:
    inner.type("sleep 1001 &")
    inner.type("sh -c 'echo fo\"\"re; exec sleep 1002'")
    inner.wait_for("fore")
    inner.press("C-c")
    inner.type("echo status $? $(jobs -r)")
    inner.wait_for(r"status 130 \[1\]\+ Running sleep 1001")
    inner.type("exit 0")
    inner.expect_status(0)


def test_ctrl_z_stops_the_job_in_front_and_fg_goes_on_with_it(inner: Screen) -> None:
    inner.type("sh -c 'echo fo\"\"re; exec sleep 1002'")
    inner.wait_for("fore")
    inner.press("C-z")
    inner.wait_for(r"\[1\]\+ +Stopped")
    inner.type("jobs")
    inner.wait_for(r"\[1\]\+ +Stopped(.|\n)*\[1\]\+ +Stopped")
    inner.type("fg")
    inner.wait_for("sh -c")
    inner.press("C-c")
    inner.type("echo ended $?")
    inner.wait_for("ended 130")
    inner.type("exit 0")
    inner.expect_status(0)


def test_ctrl_d_and_ctrl_backslash_are_the_containers(inner: Screen) -> None:
    inner.type("sh -c 'echo fo\"\"re; exec sleep 1002'")
    inner.wait_for("fore")
    inner.press("C-\\")
    inner.type("echo status $?")
    inner.wait_for("status 131")
    inner.press("C-d")
    inner.expect_status(0)


# Programs that take all of it ---------------------------------------------------------------------


def test_less_draws_and_survives_another_size(inner: Screen) -> None:
    inner.type("stty size")
    inner.wait_for("24 90")
    inner.type("seq -f 'line %g' 500 | less")
    inner.wait_for("line 23$")
    inner.press("Space")
    inner.wait_for("line 46$")
    inner.tell("resize-window", "-x", "60", "-y", "12")

    def is_full_of_new_lines() -> bool:
        inner.press("Space")  # less takes no notice of one that comes with the new size
        pages = re.findall(r"^line (\d+)$", inner.text(), re.MULTILINE)
        return len(pages) == 11 and int(pages[0]) > 46

    assert wait_until(is_full_of_new_lines)
    inner.press("q")
    inner.type("stty size")
    inner.wait_for("12 60")
    inner.type("exit 0")
    inner.expect_status(0)


@pytest.mark.needs("busybox")
def test_vi_draws_survives_another_size_and_writes(inner: Screen) -> None:
    inner.type("busybox vi /tmp/file")
    inner.wait_for("~")
    inner.press("i")
    inner.tell("send-keys", "-l", "some words")
    inner.tell("resize-window", "-x", "70", "-y", "10")
    inner.tell("send-keys", "-l", " and more")
    inner.press("Escape")
    inner.wait_for("- /tmp/file")  # it has taken the key for what it is, not for the next one's
    inner.wait_for("some words and more *$")
    inner.type(":wq")
    inner.type("echo; cat /tmp/file; stty size")
    inner.wait_for("10 70")
    inner.wait_for("some words and more$")
    inner.type("exit 0")
    inner.expect_status(0)


def test_what_floods_it_can_be_interrupted(inner: Screen) -> None:
    inner.type("yes")
    inner.wait_for("y\ny\ny")
    inner.press("C-c")
    inner.type("echo status $?")
    inner.wait_for("status 130")
    inner.type("exit 0")
    inner.expect_status(0)


# Ends ---------------------------------------------------------------------------------------------


def end_inside(signal_number: int, screen: Screen) -> None:
    """Signal the first process of the container."""
    command = screen.command()

    def inside() -> list[int]:
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if argv[:2] == [b"sleep", str(1_000_000 + command).encode()]:
                    found.append(int(name))
        return found

    screen.type(f"exec sleep {1_000_000 + command}")
    assert wait_until(inside)
    os.kill(inside()[0], signal_number)


def test_a_kill_of_the_first_process_leaves_the_terminal_as_before(inner: Screen) -> None:
    end_inside(signal.SIGKILL, inner)
    inner.expect_status(128 + signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_ends_the_command_leaves_the_terminal_as_before(
    inner: Screen, number: signal.Signals
) -> None:
    os.kill(inner.command(), number)
    inner.expect_status(128 + number)


def test_even_sigkill_of_the_command_leaves_the_terminal_as_before(inner: Screen) -> None:
    os.kill(inner.command(), signal.SIGKILL)
    inner.expect_status(128 + signal.SIGKILL)


def test_a_timeout_leaves_the_terminal_as_before(screen: Screen) -> None:
    screen.clear()
    screen.type(f"{CLI} run -t --timeout 1 -- {SHELL}")
    screen.wait_for(".*container: error: the command ran longer than its time and was killed")
    screen.expect_status(124)


def test_an_error_before_the_start_leaves_the_terminal_as_before(screen: Screen) -> None:
    screen.clear()
    screen.type(f"{CLI} run -t -- no-such-program")
    screen.wait_for("container: error: exec: cannot execute 'no-such-program'")
    screen.expect_status(127)


def test_ctrl_c_before_the_start_and_at_any_time_in_it_leaves_all_as_before(
    screen: Screen,
) -> None:
    generator = random.Random(7)
    for _ in range(12):
        screen.clear()
        screen.type(f"{CLI} run -t -- sh -c 'read x'")
        deadline = time.monotonic() + generator.uniform(0, 0.6)
        while time.monotonic() < deadline:
            time.sleep(INTERVAL)
        screen.press("C-c")  # PID 1 of a container takes no notice of it
        screen.press("Enter")
        screen.press("Enter")
        screen.wait_for(f".*{PROMPT}")
        assert wait_until(screen.is_as_before)


def test_one_who_stops_it_from_outside_has_the_terminal_back_meanwhile(inner: Screen) -> None:
    command = inner.command()
    os.kill(command, signal.SIGTSTP)
    inner.wait_for(f".*{PROMPT}")
    assert wait_until(inner.is_as_before)
    inner.tell("resize-window", "-x", "50", "-y", "15")
    inner.type("fg")
    assert wait_until(inner.is_raw)
    inner.type("stty size")
    inner.wait_for("15 50")
    inner.type("exit 7")
    inner.expect_status(7)


def test_an_error_of_ours_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    try:
        before = termios.tcgetattr(slave)
        terminal = CallersTerminal(slave, typing=True)

        def fail(_rows: int, _columns: int) -> None:
            assert termios.tcgetattr(slave) != before
            raise RuntimeError("while it was taken")

        with pytest.raises(RuntimeError):
            try:
                terminal.take(fail)
            finally:
                terminal.give_back()
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


# Exec ---------------------------------------------------------------------------------------------


def test_exec_has_a_terminal_of_that_container(screen: Screen) -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        screen.clear()
        screen.type(f"{CLI} exec -it {box.pid} -- {SHELL}")
        screen.wait_for("bash-")
        screen.type("tty; stty size; cat /proc/1/comm")
        screen.wait_for("/dev/pts/0\n24 90\nsleep$")
        screen.type("sh -c 'echo fo\"\"re; exec sleep 1002'")
        screen.wait_for("fore")
        screen.press("C-c")
        screen.type("echo status $?")
        screen.wait_for("status 130")
        screen.tell("resize-window", "-x", "60", "-y", "12")
        screen.type("stty size")
        screen.wait_for("12 60")
        screen.type("exit 7")
        screen.expect_status(7)
        screen.clear()
        screen.type(f"{CLI} exec -t {box.pid} -- {SHELL}")
        screen.wait_for("bash-")
        os.kill(screen.command(), signal.SIGKILL)
        screen.expect_status(128 + signal.SIGKILL)
        assert wait_until(lambda: not list(members_of(box)))


def members_of(box: Container) -> Iterator[int]:
    """Who is in the container beside its first process."""
    namespace = os.readlink(f"/proc/{box.pid}/ns/pid")
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if int(name) != box.pid and os.readlink(f"/proc/{name}/ns/pid") == namespace:
                yield int(name)


# Without a terminal -------------------------------------------------------------------------------


def cli(*arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*shlex.split(CLI), *arguments],
        stdin=stdin,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


def test_input_that_is_no_terminal_cannot_be_typed() -> None:
    for command in (["run", "-it", "--", "true"], ["exec", "-t", "-i", "1", "--", "true"]):
        done = cli(*command)
        assert done.returncode == 125
        assert done.stdout == b""
        assert done.stderr.startswith(
            b"container: error: -i with -t: standard input is no terminal"
        )


def test_without_any_terminal_the_command_has_one_all_the_same() -> None:
    done = cli("run", "-t", "--", "sh", "-c", "tty; stty size; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"/dev/pts/0\r\n0 0\r\n", b"")
    done = cli("run", "-t", "--", "cat")  # what reads is at its end at once
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_it_writes_goes_on_to_a_pipe(screen: Screen) -> None:
    screen.clear()
    screen.type(f"{CLI} run -t -- sh -c 'stty size; tty' | od -c | sed s/^/got:/")
    shown = screen.wait_for("got:.*/   p   t   s")
    assert r"\r  \n" in shown
    screen.expect_status(0)


# Attacks ------------------------------------------------------------------------------------------

PUSH = """
import fcntl, termios
for extra in (0, 1 << 32):
    for byte in b"touch /tmp/decoy\\n":
        try:
            fcntl.ioctl(0, termios.TIOCSTI + extra, bytes([byte]))
        except (OSError, OverflowError):
            pass
print("tried", flush=True)
"""
# As the command shows a container, with the filter that it has by default left out.
WITHOUT_FILTER = """
import sys
from container import Config, Container, Process, _cli
from container._terminal import CallersTerminal
terminal = CallersTerminal.find()
with Container(Config(seccomp=None)) as box:
    box.run(Process(sys.argv[1:], tty=True))
    _cli._converse(box, terminal)
    box.wait()
"""


@pytest.mark.parametrize("filtered", [True, False])
def test_nothing_that_is_pushed_into_the_terminal_reaches_the_outer_shell(
    screen: Screen, tmp_path: Path, filtered: bool
) -> None:
    decoy = tmp_path / "decoy"
    push = tmp_path / "push.py"
    push.write_text(PUSH.replace("/tmp/decoy", str(decoy)))
    run = tmp_path / "run.py"
    run.write_text(WITHOUT_FILTER)
    interpreter = shlex.quote(sys.executable)
    attack = f"{interpreter} -I -S -c {shlex.quote(push.read_text())}"
    start = f"{CLI} run -t --" if filtered else f"{interpreter} {run}"
    script = tmp_path / "attack.sh"
    script.write_text(f"{start} {attack}\n")
    screen.clear()
    screen.type(f". {script}")
    screen.wait_for("tried")
    screen.expect_status(0)
    assert screen.waiting() == 0
    assert not decoy.exists()
    if os.geteuid() == 0 and not filtered:
        # The attack is one: without a container what it types is run.
        screen.clear()
        screen.type(f"{interpreter} -I -S {push}")
        assert wait_until(decoy.exists)
