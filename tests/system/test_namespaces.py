# SPDX-License-Identifier: Apache-2.0
"""Namespaces by pid: exec_in_namespaces, get_namespace_paths, join_network_namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from system.helpers import PATIENCE, namespaces_of, parse_status, told

import container
from container import (
    Capabilities,
    Config,
    ConfigError,
    Container,
    ExecConfig,
    Process,
    StateError,
    exec_in_namespaces,
    get_namespace_paths,
    join_network_namespace,
)
from container._launcher import Child

pytestmark = [pytest.mark.needs("userns"), pytest.mark.kernel]

KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")

# A process in namespaces of its own, made by nobody that we know of.
STRANGER = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
flags, limited = int(sys.argv[1]), int(sys.argv[2])
uid, gid = os.getuid(), os.getgid()
assert libc.unshare(flags) == 0, os.strerror(ctypes.get_errno())
if flags & 0x10000000:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
pid = os.fork()
if pid == 0:
    libc.prctl(1, 9, 0, 0, 0)
    if limited:
        for capability in range(64):
            if capability != 5:
                libc.prctl(24, capability, 0, 0, 0)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
    os.write(1, b"up\\n")
    signal.pause()
os.write(1, b"%d\\n" % pid)  # whole, beside the child's
os.waitpid(pid, 0)
"""
NEW_ALL = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000 | 0x20000


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[int]:
    flags, limited = getattr(request, "param", (NEW_ALL, 0))
    with subprocess.Popen(
        [sys.executable, "-c", STRANGER, str(flags), str(limited)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline().strip() for _ in range(2)]
            yield next(int(line) for line in lines if line != "up")
        finally:
            with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
                for child in file.read().split():
                    os.kill(int(child), signal.SIGKILL)
            process.wait(PATIENCE)


def said(pid: int, script: str, **options: Any) -> str:
    process = exec_in_namespaces(pid, ["sh", "-c", script], text=True, **options)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert isinstance(out, str)
    return out


LINKS = "readlink " + " ".join(f"/proc/thread-self/ns/{kind}" for kind in KINDS)


def test_a_command_joins_every_namespace_of_a_strange_process(stranger: int) -> None:
    # Its /proc is still that of before: so the shell tells its own number in both.
    process = exec_in_namespaces(stranger, ["sleep", "1000"])
    assert process.pid is not None
    assert namespaces_of(process.pid) == namespaces_of(stranger)
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        status = parse_status(file.read())
    assert len(status["NSpid"].split()) == 2
    assert status["Uid"].split()[0] == str(os.geteuid())
    process.kill()
    with process:
        pass


@pytest.mark.parametrize("stranger", [(NEW_ALL, 1)], indirect=True)
def test_a_command_has_no_more_rights_than_the_strange_process(stranger: int) -> None:
    process = exec_in_namespaces(stranger, ["sleep", "1000"])
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        status = parse_status(file.read())
    assert (status["NoNewPrivs"], int(status["CapBnd"], 16)) == ("1", 1 << 5)
    assert int(status["CapEff"], 16) & ~(1 << 5) == 0
    process.kill()
    with process:
        pass


@pytest.mark.needs("root")
@pytest.mark.parametrize("stranger", [(0x40000000 | 0x04000000, 0)], indirect=True)
def test_only_the_namespaces_that_are_named_are_joined(stranger: int) -> None:
    own, other = namespaces_of("self"), namespaces_of(stranger)
    lines = said(stranger, LINKS, namespaces={"net"}).split()
    assert lines == [other["net"] if kind == "net" else own[kind] for kind in KINDS]
    lines = said(stranger, LINKS).split()
    assert lines == [other[kind] for kind in KINDS]


@pytest.mark.needs("root")
def test_of_a_container_all_but_the_user_namespace_can_be_joined() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        assert box.pid is not None
        own, other = namespaces_of("self"), namespaces_of(box.pid)
        lines = said(box.pid, LINKS, namespaces=set(KINDS) - {"user"}).split()
        assert lines == [(own if kind == "user" else other)[kind] for kind in KINDS]


def test_the_pid_of_a_container_stands_for_it() -> None:
    with Container(Config(capabilities=Capabilities.none())) as box:
        box.run(Process(["sleep", "1000"], env={"A": "b"}))
        assert box.pid is not None
        assert said(box.pid, "echo $A") == "b\n"
        script = "grep -E '^(Seccomp|CapBnd)' /proc/self/status; " + LINKS
        assert said(box.pid, script) == said(box.pid, script)
        process = box.exec(["sh", "-c", script], text=True)
        assert said(box.pid, script) == process.communicate()[0]


def test_a_strange_container_is_entered_under_a_filter() -> None:
    # Another program's container is a stranger here.
    from system.helpers import running_caller  # noqa: PLC0415 - beside its one test

    with running_caller(
        """
        box = Container()
        box.run(Process(["sleep", "1000"]))
        tell(box.pid)
        sys.stdin.readline()
        box.destroy()
        """
    ) as process:
        pid = told(process)
        script = "grep -E '^(Seccomp|NoNewPrivs|Cap)' /proc/self/status; id -u; " + LINKS
        lines = said(pid, script).splitlines()
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            status = parse_status(file.read())
        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
        assert lines[:7] == [f"{name}:\t{status[name]}" for name in names]
        assert lines[8] == "0"
        assert lines[9:] == list(namespaces_of(pid).values())
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_a_timeout_ends_a_command_among_strangers(stranger: int) -> None:
    script = ["sh", "-c", "(setsid sleep 1000 &); sleep 1000"]
    process = exec_in_namespaces(stranger, ExecConfig(script, timeout=0.2))
    with pytest.raises(container.ContainerTimeoutError):
        process.communicate()


def test_a_command_that_begins_while_it_is_killed_at_its_deadline_has_timed_out(
    stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = Child.kill
    begun = []

    def begin_and_kill(child: Child) -> None:
        while not (child.started or child.over):
            child.wait_news(None)
            child.receive()
        begun.append(child.started)
        kill(child)

    late = ExecConfig(["sleep", "1000"], timeout=1e-6)
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        with monkeypatch.context() as patch:
            patch.setattr(Child, "kill", begin_and_kill)
            with pytest.raises(container.ContainerTimeoutError) as caught:
                exec_in_namespaces(stranger, late)
            assert caught.value.result is not None
            assert caught.value.result.timed_out
            with pytest.raises(container.ContainerTimeoutError):
                box.exec(late).communicate()
    assert begun and all(begun)


def test_a_process_that_is_not_there_is_an_error() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    for call in (
        lambda pid: exec_in_namespaces(pid, ["true"]),
        get_namespace_paths,
        lambda pid: join_network_namespace(pid).__enter__(),
    ):
        with pytest.raises(StateError):
            call(process.pid)


def test_what_cannot_be_joined_is_refused(stranger: int) -> None:
    for wrong in (0, -1, True, "1", 1 << 30):
        for call in (lambda pid: exec_in_namespaces(pid, ["true"]), get_namespace_paths):
            with pytest.raises(ConfigError):
                call(wrong)  # type: ignore[arg-type]
    for names in ({"nets"}, set(), "net"):
        with pytest.raises(ConfigError) as caught:
            exec_in_namespaces(stranger, ["true"], namespaces=names)
        assert caught.value.field == "namespaces"
    with pytest.raises(ConfigError, match="shares"):
        exec_in_namespaces(os.getpid(), ["true"])


@pytest.mark.needs("root", "rootless")
def test_an_ordinary_user_cannot_join_what_is_roots(as_user: Any) -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        done = as_user(
            f"""
from container import *
for call in (
    lambda: exec_in_namespaces({box.pid}, ["true"]),
    lambda: join_network_namespace({box.pid}).__enter__(),
):
    try:
        call()
    except PermissionError as error:
        print(type(error).__name__, error.step)
"""
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "LaunchPermissionError target",
        "LaunchPermissionError join",
    ]


def test_the_paths_of_namespaces_are_those_of_proc() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        assert box.pid is not None
        paths = get_namespace_paths(box.pid)
        assert {name: os.readlink(path) for name, path in paths.items()} == namespaces_of(box.pid)


@pytest.mark.needs("root")
def test_a_thread_visits_a_network_and_comes_back() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        here = os.readlink("/proc/thread-self/ns/net")
        there = namespaces_of(box.pid or 0)["net"]
        seen: list[str] = []
        go = threading.Event()

        def look() -> None:
            go.wait()
            seen.append(os.readlink("/proc/thread-self/ns/net"))

        other = threading.Thread(target=look)  # one that is there already: others inherit
        other.start()
        for target in (box, box.pid):
            with pytest.raises(ZeroDivisionError), join_network_namespace(target):  # type: ignore[arg-type]
                seen.append(os.readlink("/proc/thread-self/ns/net"))
                go.set()
                other.join()
                raise ZeroDivisionError
            assert os.readlink("/proc/thread-self/ns/net") == here
        assert seen == [there, here, there]


@pytest.mark.needs("root")
def test_a_network_outlives_its_container_for_a_visitor() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        here = os.readlink("/proc/thread-self/ns/net")
        with join_network_namespace(box):
            box.destroy()
            assert os.readlink("/proc/thread-self/ns/net") != here
        assert os.readlink("/proc/thread-self/ns/net") == here
        with pytest.raises(StateError), join_network_namespace(box):
            pass
