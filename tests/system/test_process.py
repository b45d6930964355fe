# SPDX-License-Identifier: Apache-2.0
"""What a process inherits of its caller, which is little, and what it may ask for."""

from __future__ import annotations

import json
import os
import pickle
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from system.conftest import OrdinaryUser
from system.helpers import caller, parse_status, python

from container import PIPE, ConfigError, Container, LaunchError, Process, Rlimit

pytestmark = pytest.mark.needs("userns")

CAP_SYS_RESOURCE = 24
MAY_RAISE = int(parse_status(Path("/proc/self/status").read_text())["CapEff"], 16)
MAY_RAISE = bool(MAY_RAISE >> CAP_SYS_RESOURCE & 1)

# x86-64 and aarch64
IOPRIO_SET, IOPRIO_GET = {"x86_64": (251, 252), "aarch64": (30, 31)}[os.uname().machine]

SHOW = f"""
import ctypes, json, os, resource
def read(name):
    with open(f"/proc/self/{{name}}") as file:
        return file.read().strip()
status = dict(line.split(":", 1) for line in read("status").splitlines())
print(json.dumps({{
    "affinity": sorted(os.sched_getaffinity(0)),
    "nice": os.nice(0),
    "policy": os.sched_getscheduler(0),
    "ioprio": ctypes.CDLL(None).syscall({IOPRIO_GET}, 1, 0),
    "oom": int(read("oom_score_adj")),
    "personality": read("personality"),
    "slack": int(read("timerslack_ns")),
    "ignored": status["SigIgn"].strip(),
    "blocked": status["SigBlk"].strip(),
    "umask": status["Umask"].strip(),
    "limits": {{name: resource.getrlimit(getattr(resource, name)) for name in dir(resource)
               if name.startswith("RLIMIT_")}},
}}))
"""


def show(**options: Any) -> dict[str, Any]:
    with Container() as box:
        box.run(Process(python(SHOW), stdout=PIPE, **options))
        assert box.stdout is not None
        output = box.stdout.read()
        assert box.wait(timeout=30) == 0
    answer = json.loads(output)
    assert isinstance(answer, dict)
    return answer


# What is not inherited ----------------------------------------------------------------------------

ODD = f"""
import ctypes, json, os, resource, signal, sys
libc = ctypes.CDLL(None)
first = min(os.sched_getaffinity(0))
hard = {{name: resource.getrlimit(getattr(resource, name))[1] for name in dir(resource)
        if name.startswith("RLIMIT_")}}
os.sched_setaffinity(0, {{first}})
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.nice(5)
libc.syscall({IOPRIO_SET}, 1, 0, 3 << 13)
libc.prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK
libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
for name, value in (("FSIZE", 1 << 20), ("CPU", 1000), ("STACK", 1 << 20), ("NPROC", 500)):
    resource.setrlimit(getattr(resource, f"RLIMIT_{{name}}"), (value, hard[f"RLIMIT_{{name}}"]))
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
os.umask(0)
import container
program = {SHOW!r}
result = container.run([sys.executable, "-I", "-S", "-c", program], text=True)
assert result.returncode == 0, result
print(json.dumps([json.loads(result.stdout), hard]))
"""


def check_defaults(text: str, *, root: bool) -> None:
    found, hard = json.loads(text)
    assert found["affinity"] == sorted(os.sched_getaffinity(0))
    assert len(found["affinity"]) > 1 or os.cpu_count() == 1
    # Whoever is not root may not take a nice value back.
    assert found["nice"] == (0 if root else min(os.nice(0) + 5, 19))
    assert (found["policy"], found["ioprio"], found["slack"]) == (0, 0, 50_000)
    assert found["personality"] == "00000000"
    # SIGPIPE and SIGXFSZ, by the Python that tells.
    assert int(found["ignored"], 16) == 1 << 12 | 1 << 24
    assert (int(found["blocked"], 16), found["umask"]) == (0, "0022")
    most = {"RLIMIT_STACK": 8 << 20, "RLIMIT_MEMLOCK": 8 << 20, "RLIMIT_MSGQUEUE": 819_200}
    fixed = {"RLIMIT_CORE": [0, 0], "RLIMIT_NICE": [0, 0], "RLIMIT_RTPRIO": [0, 0]}
    for name, limits in found["limits"].items():
        if name in {"RLIMIT_NOFILE", "RLIMIT_OFILE"}:
            continue  # the caller's own
        top = hard[name]
        soft = min(most.get(name, top) % 2**64, top % 2**64)
        expected = fixed.get(name, [soft if soft != 2**64 - 1 else -1, top])
        assert limits == expected, name


@pytest.mark.needs("root")
def test_odd_values_of_a_root_caller_are_not_inherited() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ODD],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    check_defaults(done.stdout, root=True)


@pytest.mark.needs("rootless")
def test_odd_values_of_an_ordinary_caller_are_not_inherited(as_user: OrdinaryUser) -> None:
    done = as_user(ODD)
    assert done.stderr == ""
    check_defaults(done.stdout, root=False)


@pytest.mark.needs("root")
@pytest.mark.skipif(not MAY_RAISE, reason="without CAP_SYS_RESOURCE nobody can be spared")
def test_a_caller_that_is_spared_when_memory_runs_out_has_no_containers_that_are() -> None:
    source = """
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-500")
    tell(run(["cat", "/proc/self/oom_score_adj"], text=True).stdout)
    """
    assert caller(source) == ["0\n"]


# What may be asked for ----------------------------------------------------------------------------


def test_nice_value_processors_and_oom_score_are_those_asked_for() -> None:
    cpu = max(os.sched_getaffinity(0))
    found = show(nice=7, cpu_affinity=[cpu], oom_score_adj=300)
    assert (found["nice"], found["affinity"], found["oom"]) == (7, [cpu], 300)
    found = show(init=True, nice=19, oom_score_adj=1000)
    assert (found["nice"], found["oom"]) == (19, 1000)


def test_a_created_container_has_them_too() -> None:
    with Container() as box:
        box.create(Process(["sleep", "1000"], nice=3, oom_score_adj=200, cpu_affinity=[0]))
        for _ in range(2):
            assert os.getpriority(os.PRIO_PROCESS, box.pid or 0) == 3
            assert os.sched_getaffinity(box.pid or 0) == {0}
            if _ == 0:
                assert Path(f"/proc/{box.pid}/oom_score_adj").read_text() == "200\n"
                box.start()


@pytest.mark.needs("rootless")
def test_an_ordinary_user_has_what_the_kernel_allows_and_an_error_for_the_rest(
    as_user: OrdinaryUser,
) -> None:
    done = as_user(
        """
        from container import *
        show = "cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat; "
        show += "grep Cpus_allowed_list /proc/self/status"
        for options in (
            {"nice": 7, "oom_score_adj": 300, "cpu_affinity": [0]},
            {"nice": -1},
            {"oom_score_adj": -1},
            {"cpu_affinity": [8191]},
            {"rlimits": [Rlimit("MSGQUEUE", -1, -1)]},
        ):
            try:
                with Container() as box:
                    box.run(Process(["sh", "-c", show], stdout=PIPE, **options))
                    print(*box.stdout.read().decode().split())
            except LaunchError as error:
                print(type(error).__name__, error.step, error.detail)
        """
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "300 7 Cpus_allowed_list: 0",
        "LaunchPermissionError scheduling cannot set the nice value -1",
        "LaunchPermissionError oom-score cannot set oom_score_adj",
        "LaunchError scheduling cannot set the processors that may be used",
        "LaunchPermissionError rlimits cannot set RLIMIT_MSGQUEUE to unlimited",
    ]


@pytest.mark.needs("root")
def test_root_raises_what_its_capabilities_allow() -> None:
    assert show(nice=-5)["nice"] == -5
    hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1]
    limits = [Rlimit("MSGQUEUE", hard + 1, hard + 2), Rlimit("NPROC", 100, 100)]
    if MAY_RAISE:
        found = show(rlimits=limits, oom_score_adj=-300)
        assert found["limits"]["RLIMIT_MSGQUEUE"] == [hard + 1, hard + 2]
        assert found["limits"]["RLIMIT_NPROC"] == [100, 100]
        assert found["oom"] == -300
        return
    with pytest.raises(LaunchError) as caught:
        show(rlimits=limits)
    assert caught.value.step == "rlimits"
    assert f"RLIMIT_MSGQUEUE to {hard + 2}" in caught.value.detail
    with pytest.raises(LaunchError) as caught:
        show(oom_score_adj=-300)
    assert caught.value.step == "oom-score"


def shown_by_a_command(process: Process) -> dict[str, Any]:
    with Container() as box:
        box.run(process)
        output, _ = box.exec(python(SHOW), text=True).communicate()
    answer = json.loads(output or "")
    assert isinstance(answer, dict)
    return answer


IDLE = ("sleep", "1000")


@pytest.mark.parametrize("init", [False, True])
def test_a_command_in_the_container_has_them_as_its_first_process_has(init: bool) -> None:
    limits = [Rlimit("FSIZE", 1000, 2000)]
    found = shown_by_a_command(
        Process(
            IDLE, init=init, nice=7, cpu_affinity=[0], oom_score_adj=300, umask=0o77, rlimits=limits
        )
    )
    assert (found["nice"], found["affinity"], found["oom"]) == (7, [0], 300)
    assert (found["umask"], found["limits"]["RLIMIT_FSIZE"]) == ("0077", [1000, 2000])
    plain = shown_by_a_command(Process(IDLE, init=init))
    assert plain == show() | {"ignored": plain["ignored"]}


@pytest.mark.needs("root")
@pytest.mark.skipif(not MAY_RAISE, reason="without CAP_SYS_RESOURCE nobody can be spared")
def test_a_command_of_roots_container_has_what_was_raised() -> None:
    hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1]
    limits = [Rlimit("MSGQUEUE", hard + 1, hard + 2)]
    found = shown_by_a_command(Process(IDLE, nice=-5, oom_score_adj=-300, rlimits=limits))
    assert (found["nice"], found["oom"]) == (-5, -300)
    assert found["limits"]["RLIMIT_MSGQUEUE"] == [hard + 1, hard + 2]


@pytest.mark.needs("rootless")
def test_a_command_in_an_ordinary_users_container_has_them_too(as_user: OrdinaryUser) -> None:
    done = as_user(
        """
        from container import *
        show = "cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat; "
        show += "grep Cpus_allowed_list /proc/self/status; ls -l /proc/self/oom_score_adj"
        with Container() as box:
            box.run(Process(["sleep", "1000"], nice=7, oom_score_adj=300, cpu_affinity=[0]))
            print(*box.exec(["sh", "-c", show], text=True).communicate()[0].split())
        """
    )
    assert done.stderr == ""
    assert done.stdout.startswith("300 7 Cpus_allowed_list: 0 ")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("nice", value) for value in (-21, 20, 1.0, "1", True)),
        *(("oom_score_adj", value) for value in (-1001, 1001, "0", 0.5)),
        *(("cpu_affinity", value) for value in ((), [-1], [8192], "0", 3)),
        *(("pass_fds", value) for value in ([2], [0], [-1], "3", 3, [5, 5], range(3, 200))),
    ],
)
def test_values_of_nonsense_are_refused_by_name(field: str, wrong: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Process(["true"], **{field: wrong})
    assert caught.value.field.partition("[")[0] == field


# Files that are passed on -------------------------------------------------------------------------

LIST = """
import json, os
names = {int(name) for name in os.listdir("/proc/self/fd")}
found = {}
for fd in names:
    try:
        found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
print(json.dumps(found))
"""


def fds_inside(**options: Any) -> dict[int, str]:
    with Container() as box:
        box.run(Process(python(LIST), stdout=PIPE, **options))
        assert box.stdout is not None
        found = json.loads(box.stdout.read())
        assert box.wait(timeout=30) == 0
    return {int(fd): where for fd, where in found.items() if int(fd) > 2}


@pytest.mark.parametrize("init", [False, True])
def test_fds_that_are_passed_have_the_numbers_that_they_have_outside(init: bool) -> None:
    ends = [*os.pipe(), *(each.detach() for each in socket.socketpair())]
    # Numbers that the launcher and its child use themselves, in another order, and high ones.
    copies = {
        number: os.dup2(fd, number) for number, fd in zip((250, 63, 211, 77), ends, strict=True)
    }
    try:
        fds = [*ends, *copies][::-1]
        expected = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds}
        assert fds_inside(pass_fds=fds, init=init) == expected
        assert fds_inside(pass_fds=fds[:3], init=init) == {fd: expected[fd] for fd in fds[:3]}
    finally:
        for fd in (*ends, *copies):
            os.close(fd)


def test_low_numbers_crossed_with_each_other_are_right() -> None:
    source = """
    # All low numbers are ours, and each is passed as the number of another one.
    ends = [end for _ in range(5) for end in os.pipe()]
    for fd in ends:
        os.set_inheritable(fd, True)
    fds = sorted(ends)[::-1]
    expected = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds}
    program = "ls -l /proc/self/fd | sed -n 's/.* \\\\([0-9]*\\\\) -> /\\\\1 /p'"
    for init in (False, True):
        with Container() as box:
            box.run(Process(["sh", "-c", program], pass_fds=fds, init=init, stdout=PIPE))
            lines = [line.split(" ", 1) for line in box.stdout.read().decode().splitlines()]
        found = {int(fd): where for fd, where in lines}
        tell(all(found[fd] == expected[fd] for fd in fds))
    """
    assert caller(source, strict=False) == [True, True]


def test_what_is_passed_works_both_ways_and_ends_with_the_payload() -> None:
    ours, theirs = socket.socketpair()
    source = f"""
    import socket
    end = socket.socket(fileno={theirs.fileno()})
    end.sendall(end.recv(100).upper())
    """
    for init in (False, True):
        with Container() as box:
            box.run(Process(python(source), pass_fds=[theirs.fileno()], init=init))
            ours.sendall(b"hello")
            assert ours.recv(100) == b"HELLO"
            assert box.wait(timeout=30) == 0
    theirs.close()
    assert ours.recv(100) == b""
    ours.close()


def test_nothing_is_passed_that_was_not_asked_for() -> None:
    ends = os.pipe()
    for fd in ends:
        os.set_inheritable(fd, True)
    try:
        assert fds_inside() == {}
        assert list(fds_inside(pass_fds=[ends[1]])) == [ends[1]]
    finally:
        for fd in ends:
            os.close(fd)


def test_as_many_as_there_may_be_are_passed() -> None:
    ends = [end for _ in range(64) for end in os.pipe()]
    try:
        assert set(fds_inside(pass_fds=ends)) == set(ends)
    finally:
        for fd in ends:
            os.close(fd)


def test_directories_and_path_fds_are_never_passed_nor_what_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    closed = os.dup(0)
    os.close(closed)
    fds = [
        os.open(tmp_path, os.O_RDONLY),
        os.open(tmp_path, os.O_PATH),
        os.open(file, os.O_PATH),
    ]
    good = os.open(file, os.O_RDONLY)
    try:
        for fd in (*fds, closed):
            with Container() as box:
                with pytest.raises(ConfigError) as caught:
                    box.run(Process(["true"], pass_fds=[good, fd]))
                assert caught.value.field == "pass_fds[1]"
    finally:
        for fd in (*fds, good):
            os.close(fd)


def test_a_process_with_fds_cannot_be_pickled() -> None:
    with pytest.raises(ConfigError, match="pass_fds"):
        pickle.dumps(Process(["true"], pass_fds=[5]))
    assert pickle.loads(pickle.dumps(Process(["true"], nice=1, cpu_affinity=[0]))).nice == 1


@pytest.mark.needs("rootless")
def test_an_ordinary_user_passes_fds_too(as_user: OrdinaryUser) -> None:
    done = as_user(
        """
        import os
        from container import *
        reader, writer = os.pipe()
        with Container() as box:
            box.run(Process(["sh", "-c", f"echo through >&{writer}"], pass_fds=[writer]))
            box.wait()
        os.close(writer)
        print(os.read(reader, 100))
        os.close(reader)
        """
    )
    assert (done.stdout, done.stderr) == ("b'through\\n'\n", "")
