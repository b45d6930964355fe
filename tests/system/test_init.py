# SPDX-License-Identifier: Apache-2.0
"""The tiny init: a PID 1 that reaps, passes signals on, and tells what became of the payload."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system.conftest import OrdinaryUser
from system.helpers import (
    caller,
    is_readable,
    namespaces_of,
    parse_status,
    processes_in,
    python,
    running_caller,
    told,
    wait_until,
    watched,
)

import container
from container import (
    DEVNULL,
    PIPE,
    Capabilities,
    Config,
    ConfigError,
    Container,
    ExecConfig,
    LaunchError,
    Namespaces,
    Process,
    Resources,
    Rlimit,
    State,
    _launcher,
)

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
DEADLY = [number for number in signal.valid_signals() if number not in STOPS | HARMLESS]


def end_of(script: str, config: Config | None = None, **options: Any) -> tuple[int, str]:
    """Exit status and standard output of a script under an init."""
    with Container(config) as box:
        box.run(Process(["sh", "-c", script], init=True, stdout=PIPE, **options))
        assert box.stdout is not None
        output = box.stdout.read().decode()
        return box.wait(timeout=30), output


@contextlib.contextmanager
def running(source: str, config: Config | None = None) -> Iterator[Container]:
    """Python under an init, which has told that it is ready."""
    with Container(config) as box:
        box.run(Process(python(source), init=True, stdin=PIPE, stdout=PIPE))
        assert box.stdout is not None
        assert box.stdout.readline() == b"ready\n"
        yield box


WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"
LISTEN = r"""
import os, signal
got = lambda number, _: os.write(1, b"%d\n" % number)
for number in signal.valid_signals() - {9, 19}:
    signal.signal(number, got)
print("ready", flush=True)
while True:
    signal.pause()
"""


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


# What it reports ----------------------------------------------------------------------------------


def test_the_payload_is_pid_2_and_its_status_is_the_containers() -> None:
    for status in (0, 1, 7, 126, 137, 255):
        assert end_of(f"echo $$; exit {status}") == (status, "2\n")


@pytest.mark.parametrize("number", DEADLY)
def test_a_payload_that_a_signal_kills_is_reported_as_killed_by_it(number: int) -> None:
    reset = "" if number == signal.SIGKILL else f"signal.signal({number}, signal.SIG_DFL)"
    source = f"import os, signal\n{reset}\nos.kill(os.getpid(), {number})"
    with Container() as box:
        box.run(Process(python(source), init=True))
        assert box.wait(timeout=30) == -number


def test_a_program_that_cannot_be_executed_is_the_error_that_it_is_without_an_init() -> None:
    for program, number in (("/no/such/program", errno.ENOENT), ("/etc", errno.EACCES)):
        with Container() as box:
            with pytest.raises(LaunchError) as caught:
                box.run(Process([program], init=True))
            assert (caught.value.step, caught.value.errno) == ("exec", number)


def test_a_created_container_starts_under_its_init() -> None:
    with Container() as box:
        box.create(Process(["sh", "-c", "exit $$"], init=True))
        assert box.state.state == State.CREATED
        box.start()
        assert box.wait(timeout=30) == 2


def test_an_init_that_is_killed_takes_all_along() -> None:
    with running(WAIT) as box:
        assert box.pid is not None
        with watched([box.pid, child_of(box.pid)]) as survivors:
            os.kill(box.pid, signal.SIGKILL)
            assert box.wait(timeout=30) == -9
            assert survivors(0) == []


def test_usage_counts_the_payload() -> None:
    source = "import time\nwhile time.process_time() < 0.2: pass"
    with Container() as box:
        box.run(Process(python(source), init=True))
        box.wait(timeout=30)
        child = box._child
        assert child is not None and child.exit is not None
        assert child.exit.user + child.exit.system >= 0.2


# Reaping ------------------------------------------------------------------------------------------


def test_a_thousand_orphans_leave_no_zombie() -> None:
    source = """
    import os
    for _ in range(1000):
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    def states():
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat") as file:
                    yield file.read().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                pass
    # A wait of ours ends after those of init were told to it: it has its turn as well.
    import time
    for _ in range(1000):
        found = list(states())
        if len(found) == 2:
            break
        time.sleep(0.01)
    print(len(found), found.count("Z"))
    """
    result = []
    with Container() as box:
        box.run(Process(python(source), init=True, stdout=PIPE))
        assert box.stdout is not None
        result = box.stdout.read().split()
        assert box.wait(timeout=30) == 0
    assert result == [b"2", b"0"]


def test_without_an_init_the_program_itself_would_have_to_reap() -> None:
    # The above is not the kernel's doing.
    source = """
    import os, time
    if os.fork() == 0:
        os._exit(0)
    while True:
        with open(f"/proc/2/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        if state == "Z":
            break
    print(state)
    """
    assert container.run(python(source), text=True, check=True).stdout == "Z\n"


def test_what_the_payload_leaves_behind_ends_with_it() -> None:
    with Container() as box:
        script = (
            "sleep 1000 & setsid sleep 1000 & nohup sleep 1000 >/dev/null 2>&1 & read x; exit 3"
        )
        box.run(Process(["sh", "-c", script], init=True, stdin=PIPE))
        space = os.readlink(f"/proc/{box.pid}/ns/pid")
        assert wait_until(lambda: len(processes_in(space)) >= 5)
        assert box.stdin is not None
        box.stdin.write(b"\n")
        box.stdin.close()
        assert box.wait(timeout=30) == 3
        assert processes_in(space) == []


def test_the_end_of_an_output_that_the_payload_closes_is_seen_while_it_runs() -> None:
    source = "import os, sys; os.close(1); sys.stdin.read()"
    with Container() as box:
        box.run(Process(python(source), init=True, stdin=PIPE, stdout=PIPE))
        assert box.stdout is not None
        assert box.stdout.read() == b""
        assert box.state.state == State.RUNNING


# Signals ------------------------------------------------------------------------------------------

PASSED_ON = sorted(signal.valid_signals() - {9, 17, 19})


def test_every_signal_reaches_the_payload_by_whichever_way_it_comes() -> None:
    with running(LISTEN) as box:
        assert box.pid is not None
        assert box.stdout is not None
        for number in PASSED_ON:
            box.signal(number)
            assert box.stdout.readline() == b"%d\n" % number
            os.kill(box.pid, number)  # to the init, from outside
            assert box.stdout.readline() == b"%d\n" % number


def test_a_signal_to_pid_1_from_inside_reaches_the_payload() -> None:
    script = "trap 'echo got; exit 5' USR1; kill -USR1 1; while :; do sleep 0.01; done"
    assert end_of(script) == (5, "got\n")


def test_a_payload_without_a_handler_ends_by_the_signal_unlike_a_pid_1() -> None:
    with running(WAIT) as box:
        box.signal(signal.SIGTERM)
        assert box.wait(timeout=30) == -signal.SIGTERM
    with running(WAIT) as box:
        assert box.stop() == -signal.SIGTERM


def test_a_stop_stops_the_payload_and_not_its_init() -> None:
    with running(WAIT) as box:
        assert box.pid is not None
        payload = child_of(box.pid)

        def state(pid: int) -> str:
            return parse_status(Path(f"/proc/{pid}/status").read_text())["State"][0]

        box.signal(signal.SIGSTOP)
        assert wait_until(lambda: state(payload) == "T")
        assert state(box.pid) == "S"
        box.signal(signal.SIGCONT)
        assert wait_until(lambda: state(payload) == "S")


def test_a_payload_of_another_user_gets_signals_too() -> None:
    # It gave its ids up: the init, which has no capability, could not pass them on.
    if os.geteuid() != 0:
        pytest.skip("a single id")
    source = f"import os, signal; os.setresuid(5, 5, 5)\n{LISTEN}"
    with running(source) as box:
        assert box.stdout is not None
        box.signal(signal.SIGUSR1)
        assert box.stdout.readline() == b"%d\n" % signal.SIGUSR1


# What it is ---------------------------------------------------------------------------------------


def test_it_has_no_capability_nothing_open_and_nothing_of_the_payloads() -> None:
    config = Config(capabilities=Capabilities.all(), no_new_privileges=False)
    with Container(config) as box:
        process = Process(
            python(WAIT), env={"SECRET": "x"}, cwd="/usr", init=True, stdin=PIPE, stdout=PIPE
        )
        box.run(process)
        assert box.stdout is not None
        assert box.stdout.readline() == b"ready\n"
        status = parse_status(Path(f"/proc/{box.pid}/status").read_text())
        assert status["Name"] == "container-init"
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert Path(f"/proc/{box.pid}/cmdline").read_bytes() == b"container-init\0"
        if os.geteuid() == 0:
            directory = f"/proc/{box.pid}/fd"
            held = {name: os.readlink(f"{directory}/{name}") for name in os.listdir(directory)}
            assert list(held) == ["3"]
            assert held["3"].startswith("pipe:")
            assert Path(f"/proc/{box.pid}/environ").read_bytes() == b""
            assert os.readlink(f"/proc/{box.pid}/cwd") == "/"
            maps = Path(f"/proc/{box.pid}/maps").read_text().splitlines()
            assert (
                sum(
                    int(line.split("-")[1].split()[0], 16) - int(line.split("-")[0], 16)
                    for line in maps
                    if "memfd" in line
                )
                < 1 << 20
            )
        child = child_of(int(box.pid or 0))
        assert parse_status(Path(f"/proc/{child}/status").read_text())["NoNewPrivs"] == "0"


ATTACK = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
answer = {}
for name in ("fd", "map_files", "environ", "mem", "exe", "maps"):
    path = f"/proc/1/{name}"
    try:
        if name in ("fd", "map_files"):
            os.listdir(path)
        else:
            os.close(os.open(path, os.O_RDWR if name == "mem" else os.O_RDONLY))
    except OSError as error:
        answer[name] = errno.errorcode[error.errno]
    else:
        answer[name] = "opened"
libc.ptrace.argtypes = [ctypes.c_long] * 4
answer["ptrace"] = libc.ptrace(0x4206, 1, 0, 0)
"""


@pytest.mark.needs("root", "idmap")
@pytest.mark.parametrize("capabilities", [Capabilities.default(), Capabilities.all()])
def test_nothing_in_the_container_can_look_into_it(capabilities: Capabilities) -> None:
    program = f"import os, json\n{ATTACK}\nprint(json.dumps(answer))"
    with Container(Config(capabilities=capabilities)) as box:
        box.run(Process(python(program), init=True, stdout=PIPE))
        assert box.stdout is not None
        answer = json.loads(box.stdout.read())
    assert answer.pop("ptrace") == -1
    assert set(answer.values()) <= {"EACCES", "EPERM"}, answer


def test_an_image_that_runs_the_exe_of_pid_1_cannot_write_it() -> None:
    # CVE-2019-5736: the payload's program is a script whose interpreter is the init's image.
    script = """
    for i in $(seq 50); do
        ( echo x >/proc/1/exe ) 2>/dev/null && echo written
        ( cat /proc/1/exe >/dev/null ) 2>/dev/null && echo read
    done; true
    """
    assert end_of(script) == (0, "")


@pytest.mark.parametrize("user", [None, "1000:1000"])
def test_limits_and_ids_of_the_payload_are_as_without_an_init(user: str | None) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("a single id")
    show = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|SigBlk|SigIgn)' /proc/self/status; ulimit -n"
    limits = [Rlimit("NOFILE", 20, 20)]
    outputs = []
    for init in (False, True):
        with Container() as box:
            box.run(Process(["sh", "-c", show], user=user, init=init, rlimits=limits, stdout=PIPE))
            assert box.stdout is not None
            outputs.append(box.stdout.read())
            assert box.wait(timeout=30) == 0
    assert outputs[0] == outputs[1]
    assert outputs[0].endswith(b"\n20\n")


# Commands in its container ------------------------------------------------------------------------

SAME = ("Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
SAME_TOO = ("NoNewPrivs", "Seccomp", "Seccomp_filters", "SigBlk", "SigIgn", "SigCgt")


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(capabilities=Capabilities.all()),
        Config(no_new_privileges=False),
        Config(namespaces=Namespaces(time=True, net=False)),
        pytest.param(
            Config(resources=Resources()), marks=pytest.mark.needs("root", "cgroup2"), id="cgroup"
        ),
    ],
)
def test_a_command_is_what_the_payload_is_and_not_what_its_init_is(config: Config) -> None:
    with Container(config) as box:
        box.run(Process(["sleep", "1000"], init=True))
        assert box.pid is not None
        other = box.exec(ExecConfig(["sleep", "1000"], stdout=DEVNULL, stderr=DEVNULL))
        assert other.pid is not None
        payload, command = (
            parse_status(Path(f"/proc/{pid}/status").read_text())
            for pid in (child_of(box.pid), other.pid)
        )
        for name in (*SAME, *SAME_TOO):
            assert command[name] == payload[name], name
        assert namespaces_of(other.pid) == namespaces_of(child_of(box.pid))
        other.kill()
        assert other.wait() == -9
        assert box.state.state == State.RUNNING


@pytest.mark.parametrize("init", [True, False])
def test_what_a_command_leaves_behind_is_reaped_by_the_init(init: bool) -> None:
    leave = "for i in $(seq 50); do (read x </tmp/go; exit 0) & done; echo left"
    # Whoever opens the fifo now ends; a later one does so at the next look.
    go = "exec 3<>/tmp/go 3>&-"
    count = "for f in /proc/[0-9]*/stat; do read -r a b c d <$f && echo $c; done 2>/dev/null"
    with Container() as box:
        box.run(Process(["sleep", "1000"], init=init))
        assert box.exec(["mkfifo", "/tmp/go"]).wait() == 0
        assert box.exec(["sh", "-c", leave], text=True).communicate() == ("left\n", "")

        def states() -> str:
            out, _ = box.exec(["sh", "-c", f"{go}; {count}"], text=True).communicate()
            return str(out)

        if init:  # itself, the payload, who looks
            assert wait_until(lambda: sorted(states().split()) == ["R", "S", "S"])
        else:
            assert wait_until(lambda: states().split().count("Z") == 50)


@pytest.mark.needs("rootless")
def test_an_ordinary_users_command_joins_a_container_with_an_init(as_user: OrdinaryUser) -> None:
    done = as_user(
        """
        from container import *
        with Container() as box:
            box.run(Process(["sleep", "1000"], init=True))
            show = ["sh", "-c", "cat /proc/1/comm /proc/2/comm; id -u; exit 3"]
            command = box.exec(show, text=True)
            print(command.communicate(), command.returncode)
            box.signal(15)
            print(box.wait())
        """
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "('container-init\\nsleep\\n0\\n', '') 3",
        "-15",
    ]


def test_commands_end_with_the_payload() -> None:
    with running(WAIT) as box:
        command = box.exec(ExecConfig(["sleep", "1000"], stdout=DEVNULL, stderr=DEVNULL))
        assert box.stdin is not None
        box.stdin.close()
        assert box.wait(timeout=30) == 0
        assert command.wait() == -9


# Ends ---------------------------------------------------------------------------------------------


def test_it_ends_with_its_caller_and_with_its_launcher() -> None:
    source = """
    box = Container()
    box.run(Process(["sleep", "1000"], init=True))
    payload = descendants_of(box.pid)
    tell([launcher_pid(), box.pid, *payload])
    sys.stdin.readline()
    """
    for whom in ("caller", "launcher"):
        with running_caller(source, strict=False) as process:
            launcher, *pids = told(process)
            assert len(pids) == 2
            with watched(pids) as survivors:
                if whom == "caller":
                    process.kill()
                else:
                    os.kill(launcher, signal.SIGKILL)
                assert survivors(10) == []


def test_a_hundred_of_them_leave_no_fd_of_the_launchers() -> None:
    source = """
    def fds():
        return len(os.listdir(f"/proc/{launcher_pid()}/fd"))
    run(["true"])
    def once(number):
        with Container() as box:
            box.run(Process(["sh", "-c", f"exit {number}"], init=True))
            assert box.wait() == number
    once(0)
    _launcher.drop_blanks()
    before = fds()
    for number in range(100):
        once(number)
    try:
        with Container() as box:
            box.run(Process(["/no/such"], init=True))
    except FileNotFoundError:
        pass
    _launcher.drop_blanks()
    tell(fds() - before)
    """
    if os.geteuid() == 0:
        assert caller(source) == [0]


def test_it_needs_a_pid_namespace_and_a_bool() -> None:
    for wrong in (1, None, "yes"):
        with pytest.raises(ConfigError) as caught:
            Process(["true"], init=wrong)  # type: ignore[arg-type]
        assert caught.value.field == "init"


def test_the_command_line_has_it() -> None:
    command = [sys.executable, "-m", "container", "run", "--init", "--", "sh", "-c"]
    done = subprocess.run(
        [*command, "cat /proc/1/comm; kill -TERM $$"], capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + 15, b"container-init\n", b"")


@pytest.mark.needs("rootless")
def test_an_ordinary_user_has_it_too(as_user: OrdinaryUser) -> None:
    done = as_user(
        """
        from container import *
        for script in (
            "cat /proc/1/comm; exit $$",
            "kill -SEGV $$",
            "for name in exe fd/3 cwd; do readlink /proc/1/$name; done; ls /proc/1/map_files 2>&1",
        ):
            with Container() as box:
                box.run(Process(["sh", "-c", script], init=True, stdout=PIPE))
                print(box.stdout.read().decode().strip(), box.wait())
        """
    )
    assert done.stderr == ""
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("container-init 2", " -11")
    assert "Permission denied" in third
    assert "pipe:" not in third


def test_selectors_see_its_end() -> None:
    with running(WAIT) as box:
        assert box.pidfd is not None
        assert not is_readable(box.pidfd)
        assert box.stdin is not None
        box.stdin.close()
        assert select.select([box.pidfd], [], [], 30)[0]
        assert box.wait() == 0
        assert _launcher.launcher_pid() > 0
