# SPDX-License-Identifier: Apache-2.0
"""The ``container`` command: exit status, standard streams, terminals, ends from outside."""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.helpers import processes_in, wait_until

import container

if TYPE_CHECKING:
    from system.conftest import OrdinaryUser

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

CLI = [sys.executable, "-P", "-m", "container"]
SECONDS = 30
EVER = "1000000"

# Becomes the session leader on the terminal that is its standard input, then the command.
ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def cli(
    *arguments: str | os.PathLike[str], stdin: int | None = subprocess.DEVNULL, **options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments],
        stdin=None if "input" in options else stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        input=options.get("input"),
    )


def in_container(*command: str, options: Sequence[str | os.PathLike[str]] = ()) -> str:
    done = cli("run", *options, "--", *command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that an error of ours is."""
    prefix, message, rest = done.stderr.partition("container: error: ")
    assert (prefix, rest.count("\n"), rest[-1:]) == ("", 1, "\n"), done.stderr
    assert (message, done.stdout) == ("container: error: ", "")
    return rest


@dataclass
class Sleeper:
    """A script that says that it is ready and then sleeps, in words that nothing else says."""

    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def command(self) -> list[str]:
        return ["sh", "-c", f"echo ready; sleep {EVER}; : {self.token}"]

    def inside(self) -> list[int]:
        """The pids, seen from here, of its processes in a container."""
        return [
            pid
            for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
            if self._is_inside(pid)
        ]

    def _is_inside(self, pid: int) -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):
            if self.token.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                return any(len(line.split()) > 2 for line in lines if line.startswith("NSpid:"))
        return False


@dataclass
class Terminal:
    """The command on a terminal of its own, of which this is the other end."""

    process: subprocess.Popen[bytes]
    master: int
    seen: bytes = b""

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def type_until_full(self) -> None:
        """Type lines until nobody takes them any more: the pipe behind the terminal is full."""
        os.set_blocking(self.master, False)
        while True:
            readable, writable, _ = select.select([self.master], [self.master], [], 1)
            if readable:
                self._read()
            elif not writable:
                return
            if writable:
                with suppress(BlockingIOError):
                    os.write(self.master, b"x" * 100 + b"\n")

    def without_echo(self) -> None:
        """Show only what is written, not what is typed."""
        settings = termios.tcgetattr(self.master)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(self.master, termios.TCSANOW, settings)

    def wait_for_line(self, text: bytes) -> None:
        # To its end: the terminal takes a line and its end one after the other, and would show
        # what is typed meanwhile between them.
        while text + b"\r\n" not in self.seen:
            assert self._read(), f"the terminal closed after {self.seen!r}"

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def end(self) -> tuple[int, str]:
        """Exit status and all that was shown."""
        while self._read():
            pass
        return self.process.wait(SECONDS), self.seen.decode().replace("\r\n", "\n")

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], SECONDS)
        assert ready, f"nothing more after {self.seen!r}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.seen += data
        return bool(data)


@pytest.fixture
def terminals() -> Iterator[Terminals]:
    opened = Terminals()
    yield opened
    opened.close()


class Terminals:
    """Starts commands on terminals, and ends them."""

    def __init__(self) -> None:
        self._opened: list[Terminal] = []

    def __call__(self, *arguments: str, controlling: bool = True) -> Terminal:
        master, slave = os.openpty()
        become = [sys.executable, "-I", "-S", "-c", ON_TERMINAL] if controlling else []
        command = [*become, *CLI, *arguments]
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self._opened.append(Terminal(process, master))
        return self._opened[-1]

    def close(self) -> None:
        for terminal in self._opened:
            if terminal.master >= 0:
                terminal.hang_up()
            terminal.process.kill()
            terminal.process.wait()


@pytest.fixture
def sleeping() -> Iterator[tuple[subprocess.Popen[bytes], Sleeper]]:
    """A command whose container runs."""
    sleeper = Sleeper()
    process = subprocess.Popen(
        [*CLI, "run", "--", *sleeper.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert sleeper.inside()
        yield process, sleeper
        process.kill()


# Exit status --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 7, 124, 255])
def test_the_exit_status_is_that_of_the_command(status: int) -> None:
    assert cli("run", "--", "sh", "-c", f"exit {status}").returncode == status


def test_a_command_killed_by_a_signal_gives_128_and_its_number(
    sleeping: tuple[subprocess.Popen[bytes], Sleeper],
) -> None:
    process, sleeper = sleeping
    os.kill(sleeper.inside()[0], signal.SIGKILL)
    assert process.wait(SECONDS) == 128 + signal.SIGKILL


def test_a_timeout_gives_124_and_ends_every_process() -> None:
    sleeper = Sleeper()
    background = f"sh -c 'sleep {EVER}; : {sleeper.token}' & "
    for seconds in ("0.5", "5"):  # how long the script takes to begin, the machine knows
        done = cli("run", "--timeout", seconds, "--", "sh", "-c", background + sleeper.command[-1])
        if done.stdout:
            break
    assert (done.returncode, done.stdout) == (124, "ready\n")
    assert done.stderr == "container: error: the command ran longer than its time and was killed\n"
    assert sleeper.inside() == []


def test_a_timeout_of_zero_is_over_at_once() -> None:
    assert cli("run", "--timeout", "0", "--", "sleep", EVER).returncode == 124


def test_an_absent_program_gives_127() -> None:
    done = cli("run", "--", "no-such-program")
    assert done.returncode == 127
    assert "'no-such-program'" in error_of(done)


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc"])
def test_a_file_that_is_no_program_gives_126(path: str) -> None:
    done = cli("run", "--", path)
    assert done.returncode == 126
    assert f"'{path}'" in error_of(done)


def test_a_script_whose_interpreter_is_absent_gives_126(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = cli("run", "-v", f"{script}:/script:ro", "--", "/script")
    assert done.returncode == 126
    assert "interpreter" in error_of(done)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["-p", "8080:80"], "-p"),
        (["--net", "bridge", "-p", "80"], "-p[0]"),
        (["--net", "bridged"], "--net"),
    ],
)
def test_what_is_wrong_with_a_network_is_named(options: list[str], field: str) -> None:
    done = cli("run", *options, "--", "true")
    assert done.returncode == 125
    assert error_of(done).startswith(f"{field}: ")


WRONG = {
    "memory": (["run", "--memory", "12Q", "--", "true"], "--memory"),
    "processors": (["run", "--cpus", "0", "--", "true"], "--cpus"),
    "processes": (["run", "--pids", "0", "--", "true"], "--pids"),
    "no command": (["run"], "args"),
    "no subcommand": ([], "COMMAND"),
    "unknown subcommand": (["rum"], "'rum'"),
    "unknown option": (["run", "--frobnicate", "--", "true"], "--frobnicate"),
    "abbreviated option": (["run", "--host", "x", "--", "true"], "--host"),
    "relative directory": (["run", "-w", "here", "--", "true"], "'here'"),
    "missing root": (["run", "--root", "/no/such/root", "--", "true"], "'/no/such/root'"),
    "missing source": (["run", "-v", "/no/such:/x", "--", "true"], "'/no/such'"),
    "bind without target": (["run", "-v", "/usr", "--", "true"], "-v"),
    "negative timeout": (["run", "--timeout", "-1", "--", "true"], "--timeout"),
    "timeout that is no number": (["run", "--timeout", "soon", "--", "true"], "'soon'"),
    "timeout that is NaN": (["run", "--timeout", "nan", "--", "true"], "--timeout"),
    "long host name": (["run", "--hostname", "x" * 300, "--", "true"], "hostname"),
    "id with a slash": (["run", "--name", "../x", "--", "true"], "'../x'"),
    "unknown user": (["run", "-u", "daemon", "--", "true"], "daemon"),
}


@pytest.mark.parametrize("arguments, named", WRONG.values(), ids=WRONG)
def test_an_error_of_ours_gives_125_and_one_line_that_names_it(
    arguments: list[str], named: str
) -> None:
    done = cli(*arguments)
    assert done.returncode == 125
    assert named in error_of(done)


def test_an_error_shows_no_control_characters_of_its_cause() -> None:
    assert "\\x1b[31m" in error_of(cli("run", "--root", "/no/\x1b[31m", "--", "true"))


def test_an_error_does_not_show_what_may_be_a_secret() -> None:
    for variable in ("hunter2", "=hunter2"):
        done = cli("run", "-e", variable, "--", "true")
        assert done.returncode == 125
        assert "hunter2" not in error_of(done)


# Options ------------------------------------------------------------------------------------------


def test_the_environment_is_the_default_one_and_what_was_given() -> None:
    assert in_container("env", options=["-e", "A=1", "-e", "B=x=y", "-e", "A=2"]).split("\n") == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "TERM=xterm",
        "LANG=C.UTF-8",
        "A=2",
        "B=x=y",
        "",
    ]


def test_working_directory_and_host_name_are_those_given() -> None:
    options = ["-w", "/usr/bin", "--hostname", "worker", "--rm", "--name", "job-1", "--net", "none"]
    assert in_container("sh", "-c", "pwd; uname -n", options=options) == "/usr/bin\nworker\n"


@pytest.mark.needs("root")
def test_user_and_group_are_those_given() -> None:
    assert in_container("id", options=["-u", "1000:1001"]) == "uid=1000 gid=1001 groups=1001\n"


def test_what_follows_the_command_is_its_own_even_if_it_looks_like_ours() -> None:
    for separator in ([], ["--"]):
        done = cli("run", *separator, "sh", "-c", 'echo "$@"', "sh", "--", "-v", "--rm", "-e")
        assert (done.returncode, done.stdout) == (0, "-- -v --rm -e\n")


def test_root_is_the_directory_given_and_binds_are_as_asked(rootdir: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("from outside\n")
    options = ["--root", str(rootdir), "-v", f"{tmp_path}:/rw", "-v", f"{tmp_path}:/ro:ro"]
    script = "cat /ro/there; echo >/rw/made; echo >/ro/refused; grep -c ' /ro ' /proc/mounts"
    done = cli("run", *options, "--", "sh", "-c", script)
    assert done.stdout == "from outside\n1\n"
    assert "Read-only file system" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["made", "there"]


def test_version_and_help_are_printed() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, f"container {container.__version__}\n")
    assert "--timeout" in cli("run", "--help").stdout


def test_an_ordinary_user_is_root_inside_on_the_own_id(as_user: OrdinaryUser) -> None:
    done = as_user([*CLI, "run", "--", "cat", "/proc/self/uid_map"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", str(as_user.uid), "1"]


# Files and pipes on the standard streams ----------------------------------------------------------


def inode_inside(fd: int) -> list[str]:
    return ["stat", "-L", "-c", "%i", f"/proc/self/fd/{fd}"]


def test_standard_input_is_dev_null_unless_asked_for() -> None:
    assert cli("run", "--", "readlink", "/proc/self/fd/0", input="x").stdout == "/dev/null\n"


def test_a_pipe_on_standard_input_is_the_containers_own() -> None:
    read, write = os.pipe()
    try:
        done = cli("run", "-i", "--", *inode_inside(0), stdin=read)
        assert done.stdout == f"{os.fstat(read).st_ino}\n"
    finally:
        os.close(read)
        os.close(write)


def test_what_the_command_does_not_read_of_standard_input_is_left_in_it() -> None:
    read, write = os.pipe()
    os.write(write, b"first\nsecond\n")
    os.close(write)
    try:
        assert cli("run", "-i", "--", "head", "-c", "6", stdin=read).stdout == "first\n"
        assert os.read(read, 100) == b"second\n"
    finally:
        os.close(read)


@pytest.mark.parametrize("fd", [1, 2])
def test_a_file_on_an_output_stream_is_the_containers_own(fd: int, tmp_path: Path) -> None:
    target = tmp_path / "output"
    script = f"stat -L -c %i /proc/self/fd/{fd} >&{fd}"
    with target.open("wb") as file:
        streams = [file.fileno() if number == fd else subprocess.DEVNULL for number in (1, 2)]
        subprocess.run(
            [*CLI, "run", "--", "sh", "-c", script],
            stdout=streams[0],
            stderr=streams[1],
            timeout=SECONDS,
            check=True,
        )
    assert target.read_text() == f"{target.stat().st_ino}\n"


def test_a_reader_that_goes_ends_the_command_without_a_word_of_ours() -> None:
    with subprocess.Popen(
        [*CLI, "run", "--", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        # As PID 1 it does not die of the signal, but sees the error.
        assert process.stderr.read() == b"yes: standard output: Broken pipe\n"
        assert process.wait(SECONDS) == 1


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--help"], ["doctor"]])
def test_a_reader_that_is_gone_before_we_print_gives_no_traceback(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*CLI, *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            # Unbuffered, argparse would meet the error, and passes over it.
            env={name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"},
            timeout=SECONDS,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_closed_standard_streams_are_dev_null_inside(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    script = "for f in 0 1 2; do readlink /proc/self/fd/$f; done >/out/links; exit 7"
    command = [*CLI, "run", "-i", "-v", f"{tmp_path}:/out", "--", "sh", "-c", script]
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    assert subprocess.run([*closing, *command], timeout=SECONDS, check=False).returncode == 7
    assert (tmp_path / "links").read_text().split() == ["/dev/null", "/out/links", "/dev/null"]


# Terminals ----------------------------------------------------------------------------------------


def test_no_stream_of_the_container_is_the_terminal(terminals: Terminals) -> None:
    script = "for f in 0 1 2; do stat -L -c %F /proc/$$/fd/$f; done; ls /proc/$$/fd; exec </dev/tty"
    status, shown = terminals("run", "-i", "--", "sh", "-c", script).end()
    assert shown.splitlines()[:6] == ["fifo"] * 3 + ["0", "1", "2"]
    assert "/dev/tty" in shown.splitlines()[6]  # the shell's complaint: there is none
    assert status != 0


def test_one_terminal_shows_both_outputs_in_their_order(terminals: Terminals) -> None:
    script = "i=0; while [ $i -lt 500 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done; exit 5"
    status, shown = terminals("run", "--", "sh", "-c", script).end()
    assert status == 5
    assert shown.split() == [f"{stream}{i}" for i in range(500) for stream in "oe"]


def test_all_that_was_written_before_the_end_is_shown(terminals: Terminals, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    sleeper = Sleeper()
    # Nobody reads the terminal: dd fills it and the pipe, and ends with both full.
    # One signal, for dd alone: a second one would kill it before it says how much it wrote.
    # Again where it had not written anything when its time was over.
    write = "timeout --foreground --signal INT $time dd if=/dev/zero bs=1000 2>/out/log"
    write = f"for time in 1 4 16; do {write}; grep -q '^[1-9][0-9]* bytes' /out/log && break; done"
    script = f"{write}; : >/out/over; exit 3; : {sleeper.token}"
    terminal = terminals("run", "-v", f"{tmp_path}:/out", "--", "sh", "-c", script)
    assert wait_until(lambda: (tmp_path / "over").exists() and not sleeper.inside())
    status, shown = terminal.end()
    assert status == 3
    (written,) = re.findall(r"(\d+) bytes", (tmp_path / "log").read_text())
    assert shown.count("\0") == int(written) > 0


def test_what_is_typed_arrives_until_the_end_of_input(terminals: Terminals) -> None:
    terminal = terminals("run", "-i", "--", "sh", "-c", "echo ready; cat; echo over")
    terminal.without_echo()
    terminal.wait_for_line(b"ready")
    terminal.type(b"one\ntwo\n\x04")
    assert terminal.end() == (0, "ready\none\ntwo\nover\n")


def test_typing_to_a_command_that_does_not_read_does_not_hold_its_output_up(
    terminals: Terminals, tmp_path: Path
) -> None:
    script = "echo ready; until [ -e /out/go ]; do sleep 0.05; done; seq 20000; echo over"
    terminal = terminals("run", "-i", "-v", f"{tmp_path}:/out", "--", "sh", "-c", script)
    terminal.wait_for_line(b"ready")
    terminal.type_until_full()
    (tmp_path / "go").touch()
    terminal.wait_for_line(b"over")
    assert terminal.end()[0] == 0


def test_ctrl_c_ends_the_container_and_gives_130(terminals: Terminals) -> None:
    sleeper = Sleeper()
    terminal = terminals("run", "-i", "--", *sleeper.command)
    terminal.wait_for_line(b"ready")
    assert sleeper.inside()
    terminal.type(b"\x03")
    status, shown = terminal.end()
    assert (status, shown) == (130, "ready\n^C")
    assert sleeper.inside() == []


def test_a_timeout_ends_even_a_write_to_a_stopped_terminal(terminals: Terminals) -> None:
    terminal = terminals("run", "--timeout", "2", "--", "sh", "-c", "echo ready; yes")
    terminal.wait_for_line(b"ready")
    # Nobody reads the other end from here on: it fills up, and a write to it blocks.
    assert terminal.process.wait(SECONDS) == 124


def test_a_terminal_that_is_hung_up_ends_the_container(terminals: Terminals) -> None:
    sleeper = Sleeper()
    terminal = terminals("run", "--", *sleeper.command)
    terminal.wait_for_line(b"ready")
    terminal.hang_up()
    assert terminal.process.wait(SECONDS) == 128 + signal.SIGHUP
    assert sleeper.inside() == []


def test_a_terminal_that_goes_without_a_signal_is_like_a_reader_that_goes(
    terminals: Terminals,
) -> None:
    terminal = terminals("run", "--", "sh", "-c", "echo ready; yes", controlling=False)
    terminal.wait_for_line(b"ready")
    terminal.hang_up()
    assert terminal.process.wait(SECONDS) == 128 + signal.SIGPIPE


def test_a_terminal_keeps_its_settings(terminals: Terminals) -> None:
    def settings() -> str:
        return subprocess.run(
            ["stty", "-a", "-F", f"/proc/self/fd/{terminal.master}"],
            capture_output=True,
            text=True,
            check=True,
            pass_fds=[terminal.master],
        ).stdout

    terminal = terminals("run", "-i", "--", "sh", "-c", "echo ready; cat")
    before = settings()
    terminal.wait_for_line(b"ready")
    assert settings() == before
    flags = Path(f"/proc/{terminal.process.pid}/fdinfo/0").read_text().split()[3]
    assert not int(flags, 8) & os.O_NONBLOCK  # it would be so for the shell, too
    terminal.type(b"\x04")
    assert terminal.end()[0] == 0


# Ends from outside --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_ends_the_container(
    number: signal.Signals, sleeping: tuple[subprocess.Popen[bytes], Sleeper]
) -> None:
    process, sleeper = sleeping
    process.send_signal(number)
    assert process.wait(SECONDS) == 128 + number
    assert sleeper.inside() == []
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_killed_command_takes_its_container_along_within_a_second(
    sleeping: tuple[subprocess.Popen[bytes], Sleeper],
) -> None:
    process, sleeper = sleeping
    inside = os.pidfd_open(sleeper.inside()[0])
    try:
        process.kill()
        assert select.select([inside], [], [], 1)[0]
    finally:
        os.close(inside)


def test_a_signal_that_was_ignored_at_the_start_stays_so(terminals: Terminals) -> None:
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *CLI, "run", "--", "sh", "-c"]
    script = f"echo ready; sleep {EVER}"
    with subprocess.Popen([*command, script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)  # of two, Python would handle this one first
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM


# exec ---------------------------------------------------------------------------------------------


@pytest.fixture
def pid() -> Iterator[str]:
    """Of the first process of a container; a stranger to the command."""
    with container.Container() as box:
        box.run(container.Process(["sleep", EVER]))
        yield str(box.pid)


def test_exec_runs_a_command_in_the_namespaces_of_a_process(pid: str) -> None:
    script = "readlink /proc/self/ns/mnt; echo $A; pwd; echo err >&2; exit 7"
    done = cli("exec", "-e", "A=b", "-w", "/usr", pid, "--", "sh", "-c", script)
    namespace = os.readlink(f"/proc/{pid}/ns/mnt")
    assert (done.returncode, done.stdout) == (7, f"{namespace}\nb\n/usr\n")
    assert done.stderr == "err\n"


def test_exec_passes_standard_input_on_where_it_is_asked_to(pid: str) -> None:
    assert cli("exec", "-i", pid, "--", "wc", "-c", input="data").stdout == "4\n"
    assert cli("exec", pid, "--", "wc", "-c", input="data").stdout == "0\n"


@pytest.mark.parametrize("status", [0, 1, 124, 127, 255])
def test_the_status_of_exec_is_that_of_the_command(pid: str, status: int) -> None:
    done = cli("exec", pid, "--", "sh", "-c", f"exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, 34])
def test_a_command_of_exec_killed_by_a_signal_gives_128_and_its_number(pid: str, sent: int) -> None:
    done = cli("exec", pid, "--", "sh", "-c", f"kill -{int(sent)} $$")
    assert (done.returncode, done.stdout, done.stderr) == (128 + sent, "", "")


@pytest.mark.parametrize(
    ("command", "status", "word"),
    [
        ("no-such-program", 127, "No such file"),
        ("/no/such/program", 127, "No such file"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/usr", 126, "Permission denied"),
    ],
)
def test_a_program_that_exec_cannot_run_is_told_on_standard_error(
    pid: str, command: str, status: int, word: str
) -> None:
    done = cli("exec", pid, "--", command)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("container: error: exec: ")
    assert command in done.stderr
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["name", "--", "true"], "name"),
        (["{self}", "--", "true"], "namespaces"),
        (["4194303", "--", "true"], "no process"),
        (["-d", "{pid}", "--", "true"], "-d"),
        (["-u", "nobody", "{pid}", "--", "true"], "user"),
        (["-w", "relative", "{pid}", "--", "true"], "cwd"),
        (["--timeout", "-1", "{pid}", "--", "true"], "--timeout"),
        (["--timeout", "soon", "{pid}", "--", "true"], "--timeout"),
        (["{pid}"], "args"),
    ],
)
def test_an_error_of_exec_gives_125_and_one_line_that_names_it(
    pid: str, arguments: list[str], word: str
) -> None:
    own = str(os.getpid())
    done = cli("exec", *(each.format(pid=pid, self=own) for each in arguments))
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("container: error: ")
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_signal_to_exec_ends_the_command_and_not_the_container(pid: str) -> None:
    script = f"echo ready; (setsid sleep {EVER} &); sleep {EVER}"
    command = [*CLI, "exec", pid, "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
        assert process.communicate() == (b"", b"")
    namespace = os.readlink(f"/proc/{pid}/ns/pid")
    assert processes_in(namespace) == [int(pid)]


def test_a_timeout_of_exec_ends_all_that_the_command_started(pid: str) -> None:
    script = "(setsid sleep 1000 &); sleep 1000"
    done = cli("exec", "--timeout", "0.3", pid, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (124, "")
    assert "longer than its time" in done.stderr
    namespace = os.readlink(f"/proc/{pid}/ns/pid")
    assert processes_in(namespace) == [int(pid)]


def test_a_process_left_behind_does_not_hold_up_exec(pid: str) -> None:
    done = cli("exec", pid, "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo ok")
    assert (done.returncode, done.stdout) == (0, "ok\n")


def test_a_shell_completes_commands() -> None:
    script = subprocess.run(
        [*CLI, "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    ask = "COMP_WORDS=(container do); COMP_CWORD=1; _shtab_container; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "doctor\n"


def test_completion_without_its_package_is_an_error_of_one_line() -> None:
    program = (
        "import sys; sys.modules['shtab'] = None; from container import _cli; sys.exit(_cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "completion", "zsh"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "container[completion]" in done.stderr
