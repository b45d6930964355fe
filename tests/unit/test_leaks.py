# SPDX-License-Identifier: Apache-2.0
"""The leak guard reports what it is for, and nothing else."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import leaks
import needs
import pytest

pytest_plugins = ["pytester"]

TESTS = Path(leaks.__file__).parent


def only(left: list[str]) -> str:
    assert len(left) == 1, left
    return left[0]


def test_nothing_is_left_of_nothing() -> None:
    assert leaks.Guard().left() == []


# In this process


def test_an_open_file_is_reported() -> None:
    guard = leaks.Guard()
    descriptor = os.open("/dev/null", os.O_RDONLY)

    left = guard.left(seconds=0)
    os.close(descriptor)

    assert left == [f"open file {descriptor} of this process: /dev/null"]
    assert guard.left() == []


def test_an_open_file_that_became_another_is_reported() -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    guard = leaks.Guard()
    other = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(other, descriptor)
    os.close(other)

    left = guard.left(seconds=0)
    os.close(descriptor)

    assert left == [
        f"gone: open file {descriptor} of this process: /dev/null",
        f"open file {descriptor} of this process: /dev/zero",
    ]


def test_a_thread_is_reported() -> None:
    guard = leaks.Guard()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="lingerer")
    thread.start()

    left = guard.left(seconds=0)
    end.set()
    thread.join()

    assert left == [f"thread {thread.native_id}: lingerer"]
    assert guard.left() == []


def test_a_child_is_reported() -> None:
    guard = leaks.Guard()
    with subprocess.Popen(["sleep", "60"]) as child:
        left = guard.left(seconds=0)
        child.kill()

    assert left == [f"process {child.pid}: sleep, child of {os.getpid()}"]
    assert guard.left() == []


@pytest.mark.parametrize("older", [False, True], ids=["new child", "child of before"])
def test_a_zombie_is_reported(older: bool) -> None:
    with ExitStack() as stack:
        if not older:
            guard = leaks.Guard()
        child = stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        if older:
            guard = leaks.Guard()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        left = guard.left(seconds=0)

    assert [line for line in left if line.startswith("zombie")] == [
        f"zombie {child.pid}: cat, child of {os.getpid()}"
    ]


def test_what_is_about_to_go_is_waited_for() -> None:
    guard = leaks.Guard()
    threading.Timer(0.2, lambda: None).start()

    assert guard.left() == []


def test_the_wait_is_bounded() -> None:
    guard = leaks.Guard()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    start = time.monotonic()

    left = guard.left(seconds=0.1)
    took = time.monotonic() - start
    os.close(descriptor)

    assert len(left) == 1
    assert 0.1 <= took < leaks.SECONDS


def test_what_comes_later_is_not_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = leaks.Guard()
    late: list[int] = []
    descriptor = os.open("/dev/null", os.O_RDONLY)
    sleep = time.sleep

    def open_one_and_sleep(seconds: float) -> None:
        if not late:
            late.append(os.open("/dev/zero", os.O_RDONLY))
        sleep(seconds)

    # The guard sleeps after its first look.
    monkeypatch.setattr(time, "sleep", open_one_and_sleep)
    left = guard.left(seconds=0.1)
    for each in (descriptor, *late):
        os.close(each)

    assert len(late) == 1
    assert left == [f"open file {descriptor} of this process: /dev/null"]


# Processes that are not descendants


ORPHAN = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import needs
if os.fork():
    os._exit(0)
os.setsid()
{becoming}
signal.alarm(120)
print(os.readlink("/proc/self"), flush=True)
os.close(1)
signal.pause()
"""

Orphans = Callable[[str], int]


@pytest.fixture
def orphan() -> Iterator[Orphans]:
    """Start a process that is nobody's child, has run some source, and waits to be killed.

    Its pid is as seen from here, even where it is the first of a namespace of its own. Should the
    test run be killed, it ends by SIGALRM.
    """
    with ExitStack() as stack:

        def start(becoming: str) -> int:
            source = ORPHAN.format(tests=str(TESTS), becoming=textwrap.dedent(becoming))
            done = subprocess.run(
                [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, check=True
            )
            pid = int(done.stdout)
            assert pid > 1
            stack.callback(end, pid)
            return pid

        yield start


def end(pid: int) -> None:
    """Kill the process, if it is still there, and wait until it has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], leaks.SECONDS)
    os.close(pidfd)


@pytest.mark.needs("userns")
@pytest.mark.parametrize("flags", ["CLONE_NEWUSER", "CLONE_NEWUSER | needs.CLONE_NEWPID"])
def test_an_orphan_in_another_namespace_is_reported(orphan: Orphans, flags: str) -> None:
    guard = leaks.Guard()

    pid = orphan(f"""
import select
needs.Kernel().unshare(needs.{flags}, "")
parent = os.pidfd_open(os.getpid())
if os.fork():
    os._exit(0)
select.select([parent], [], [])
""")

    assert only(guard.left(seconds=0)).startswith(f"process {pid}: python")
    end(pid)
    assert guard.left() == []


def test_an_orphan_in_our_namespaces_is_somebody_elses(orphan: Orphans) -> None:
    guard = leaks.Guard()

    orphan("")

    assert guard.left() == []


LAUNCHER_OF_NOBODY = "open('/proc/self/comm', 'w').write('container-launcher')\n"
LAUNCHER_OF = LAUNCHER_OF_NOBODY + "caller = os.pidfd_open({pid})\n"


def test_a_second_launcher_is_reported(orphan: Orphans) -> None:
    orphan(LAUNCHER_OF.format(pid=os.getpid()))
    guard = leaks.Guard()
    assert guard.left() == []

    second = orphan(LAUNCHER_OF.format(pid=os.getpid()))

    expected = f"process {second}: container-launc, child of "
    assert only(guard.left(seconds=0)).startswith(expected)
    assert expected in "\n".join(guard.left(seconds=0, replaced_launcher=True))


def test_a_child_of_a_launcher_is_no_launcher(orphan: Orphans) -> None:
    pid = orphan(
        LAUNCHER_OF.format(pid=os.getpid())
        + "import select\nlauncher = os.pidfd_open(os.getpid())\n"
        + "if os.fork() == 0:\n    os.close(1)\n    select.select([launcher], [], [])\n"
        + "    os._exit(0)\n"
    )
    table = leaks.processes()
    child = only([str(each.pid) for each in table.values() if each.parent == pid])

    launchers = {each.pid for each in leaks.own_launchers(table)}

    assert table[int(child)].is_launcher
    assert pid in launchers
    assert int(child) not in launchers


def test_a_launcher_whose_caller_is_gone_is_reported(orphan: Orphans) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as caller:
        guard = leaks.Guard()
        pid = orphan(LAUNCHER_OF.format(pid=caller.pid))
        caller.kill()
    left = guard.left(seconds=0)

    assert f"process {pid}: container-launc" in "\n".join(left)


def test_a_launcher_of_our_child_is_reported(orphan: Orphans) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as caller:
        guard = leaks.Guard()
        pid = orphan(LAUNCHER_OF.format(pid=caller.pid))
        left = guard.left(seconds=0)
        caller.kill()

    assert only(left).startswith(f"process {pid}: container-launc")


def test_a_launcher_of_another_program_is_not_ours(orphan: Orphans) -> None:
    stranger = orphan("")
    guard = leaks.Guard()

    orphan(LAUNCHER_OF.format(pid=stranger))

    assert guard.left() == []


def test_a_launcher_that_is_gone_is_reported(orphan: Orphans) -> None:
    pid = orphan(LAUNCHER_OF.format(pid=os.getpid()))
    guard = leaks.Guard()

    end(pid)

    left = guard.left(seconds=0)
    assert f"gone: process {pid}: container-launc" in left
    assert f"gone: process {pid}: container-launc" in guard.left(seconds=0, replaced_launcher=True)


def test_a_replaced_launcher_may_have_other_sockets_but_not_more(orphan: Orphans) -> None:
    first = orphan(LAUNCHER_OF.format(pid=os.getpid()))
    old, new = os.pipe(), os.pipe()
    for descriptor in new:
        os.close(descriptor)
    guard = leaks.Guard()
    end(first)
    new = os.pipe()
    for descriptor in old:
        os.close(descriptor)

    orphan(LAUNCHER_OF.format(pid=os.getpid()))

    assert guard.left(replaced_launcher=True) == []
    assert guard.left(seconds=0) != []
    more = os.pipe()
    assert guard.left(seconds=0, replaced_launcher=True) == [
        "open files of the process: 2 more of pipe"
    ]
    for descriptor in (*new, *more):
        os.close(descriptor)


def test_what_our_launcher_keeps_open_is_reported(orphan: Orphans) -> None:
    """The launcher opens a file when it is told to by SIGUSR1."""
    pid = orphan(
        LAUNCHER_OF.format(pid=os.getpid())
        + "signal.signal(signal.SIGUSR1, lambda *_: os.open('/dev/zero', 0))\n"
        + "signal.pause = lambda pause=signal.pause: [pause() for _ in range(9)]\n"
    )
    guard = leaks.Guard()
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + leaks.SECONDS
    while not guard.left(seconds=0) and time.monotonic() < deadline:
        time.sleep(leaks.INTERVAL)

    left = guard.left(seconds=0)

    assert only(left).startswith("open file ")
    assert only(left).endswith(f" of the launcher {pid}: /dev/zero")


# The machine


PRELUDE = f"""
import ctypes, os, subprocess, sys
sys.path.insert(0, {str(TESTS)!r})
import leaks, needs
kernel = needs.Kernel()
uid, gid = os.geteuid(), os.getegid()
kernel.unshare(needs.CLONE_NEWUSER | needs.CLONE_NEWNS | needs.CLONE_NEWNET, "")
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"0 {{uid}} 1")
open("/proc/self/gid_map", "w").write(f"0 {{gid}} 1")
kernel.mount("none", "/", "", needs.MS_REC | needs.MS_PRIVATE)

def umount(path):
    assert ctypes.CDLL(None).umount2(path.encode(), 0) == 0

def show(*, seconds=0):
    print("|".join(guard.left(seconds=seconds)))
"""


def apart(source: str) -> list[list[str]]:
    """Run source in user, mount and network namespaces of its own; one list for each show()."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("|") if line else [] for line in done.stdout.split("\n")[:-1]]


@pytest.mark.needs("userns")
def test_a_mount_is_reported(tmp_path: Path) -> None:
    one, two, gone, none = apart(f"""
        where = {str(tmp_path)!r}
        guard = leaks.Guard()
        kernel.mount("tmpfs", where, "tmpfs")
        show()
        kernel.mount("tmpfs", where, "tmpfs")
        show()
        with_mounts, guard = guard, leaks.Guard()
        umount(where)
        show()
        guard = with_mounts
        umount(where)
        show(seconds=5)
    """)

    assert f" {tmp_path} " in only(one)
    assert [f" {tmp_path} " in line for line in two] == [True, True]
    assert only(gone).startswith("gone: mount: ")
    assert none == []


@pytest.mark.needs("userns", "ip")
def test_a_network_link_is_reported() -> None:
    one, none = apart("""
        kernel.mount("sysfs", "/sys", "sysfs")
        guard = leaks.Guard()
        subprocess.run(["ip", "link", "add", "leak0", "type", "bridge"], check=True)
        show()
        subprocess.run(["ip", "link", "delete", "leak0"], check=True)
        show(seconds=5)
    """)

    assert only(one).startswith("network link: leak0 (index ")
    assert none == []


@pytest.mark.needs("userns", "nft")
def test_an_nft_table_is_reported() -> None:
    one, chain, none = apart("""
        guard = leaks.Guard()
        subprocess.run(["nft", "add", "table", "inet", "leak"], check=True)
        show()
        with_table, guard = guard, leaks.Guard()
        subprocess.run(["nft", "add", "chain", "inet", "leak", "more"], check=True)
        show()
        guard = with_table
        subprocess.run(["nft", "delete", "table", "inet", "leak"], check=True)
        show(seconds=5)
    """)

    assert only(one) == "nft table: leak (family 1) with 0 objects"
    assert "nft table: leak (family 1) with 1 objects" in chain
    assert none == []


@pytest.mark.needs("cgroup2")
def test_a_cgroup_is_reported() -> None:
    directory = needs.own_cgroup() / f"leak-{os.getpid()}"
    guard = leaks.Guard()
    directory.mkdir()

    left = guard.left(seconds=0)
    directory.rmdir()

    assert left == [f"cgroup: {directory}"]
    assert guard.left() == []


def test_files_of_the_package_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run/container").mkdir(parents=True)
    guard = leaks.Guard()

    (tmp_path / "container-abc").mkdir()
    (tmp_path / "run/container/id").mkdir()
    (tmp_path / "run/container/id/state.json").touch()
    (tmp_path / "another").touch()

    assert guard.left(seconds=0) == [
        f"file: {tmp_path}/container-abc",
        f"file: {tmp_path}/run/container/id",
        f"file: {tmp_path}/run/container/id/state.json",
    ]


# The fixture


STAND_IN = '''
import os, select, subprocess, sys

SOURCE = """
import os, select
caller = os.pidfd_open(os.getppid())
if os.fork():
    os._exit(0)
os.setsid()
open("/proc/self/comm", "w").write("container-launcher")
print(os.getpid(), flush=True)
os.close(1)
select.select([caller], [], [])
"""

launcher = None

def run(args, check):
    global launcher
    if launcher is None:
        command = [sys.executable, "-c", SOURCE]
        launcher = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

def kill():
    global launcher
    pidfd = os.pidfd_open(launcher)
    os.kill(launcher, 9)
    select.select([pidfd], [], [])
    os.close(pidfd)
    launcher = None
'''

INNER = """
import os

import container
import pytest

def test_clean():
    os.close(os.open("/dev/null", os.O_RDONLY))

def test_leaks():
    os.open("/dev/null", os.O_RDONLY)

def test_after():
    pass

@pytest.mark.new_launcher
def test_replaces_the_launcher():
    container.kill()

def test_after_the_new_launcher():
    container.run([], True)

def test_kills_the_launcher():
    container.kill()
"""


@pytest.mark.needs("userns")
def test_the_fixture_fails_the_test_that_leaks(pytester: pytest.Pytester) -> None:
    (pytester.path / "container.py").write_text(STAND_IN)
    pytester.makeconftest(
        (TESTS / "conftest.py").read_text() + "\nimport leaks\nleaks.SECONDS = 0.5\n"
    )
    system = pytester.mkdir("system")
    (system / "conftest.py").write_text((TESTS / "system/conftest.py").read_text())
    (system / "test_inner.py").write_text(INNER)

    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--strict-markers", "-o", f"pythonpath={TESTS} {pytester.path}"
    )

    result.assert_outcomes(passed=6, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaks*",
            "the test left behind:",
            "  open file *: /dev/null",
            "*ERROR at teardown of test_kills_the_launcher*",
            "the test left behind:",
            "  gone: process *: container-launc",
        ]
    )
