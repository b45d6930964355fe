# SPDX-License-Identifier: Apache-2.0
"""What limits promise, for a user with a delegated cgroup; in the machine of tests/vm under systemd
for root and for a user's scope too. For root without systemd test_limits.py has the same, and more.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest

from container import _hierarchy

pytestmark = [pytest.mark.needs("root", "userns", "cgroup2"), pytest.mark.long]

PROGRAM = Path(__file__).with_name("limit_lines.py").read_text()
PATIENCE = 280.0
LIMIT = 64 << 20
WHO = ["user", "root", "scope"] if os.environ.get("CONTAINER_VM") == "systemd" else ["user"]
ENTER = 'echo $$ >"$0/cgroup.procs" && exec "$@"'

Run = Callable[[str, str], subprocess.CompletedProcess[str]]
"""A program of Python with an argument, run to its end."""


def execute(argv: list[str], uid: int, home: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "HOME": home,
        "TMPDIR": home,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": needs.package_parent() or "",
    }
    if uid:
        environment["XDG_RUNTIME_DIR"] = f"/run/user/{uid}"
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        timeout=PATIENCE,
        check=False,
    )


def python(program: str, argument: str) -> list[str]:
    return [sys.executable, "-P", "-s", "-W", "error", "-c", program, argument]


@contextlib.contextmanager
def delegated(uid: int) -> Iterator[Path]:
    """A cgroup of a user's own, with one for programs to begin in."""
    top = Path(_hierarchy.find_hierarchy().top)
    _hierarchy.enable(str(top), ["cpu", "io", "memory", "pids"])
    group = top / f"delegated-{os.getpid()}"
    main = group / "main"
    main.mkdir(parents=True)
    try:
        for name in (".", "cgroup.procs", "cgroup.subtree_control", "main", "main/cgroup.procs"):
            os.chown(group / name, uid, uid)
        yield group
    finally:
        deadline = time.monotonic() + PATIENCE
        while (group / "container").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        main.rmdir()
        group.rmdir()


@contextlib.contextmanager
def runner(who: str, home: str) -> Iterator[Run]:
    if who == "root":
        yield lambda program, argument: execute(python(program, argument), 0, home)
    elif who == "user":
        uid = needs.ORDINARY_ID
        with delegated(uid) as group:
            enter = ["sh", "-c", ENTER, str(group / "main")]
            yield lambda program, argument: execute(
                [*enter, *needs.as_user_argv(python(program, argument))], uid, home
            )
    else:
        uid = pwd.getpwnam(os.environ["CONTAINER_VM_USER"]).pw_uid
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        yield lambda program, argument: execute([*become, *python(program, argument)], uid, home)


@pytest.fixture(scope="module", params=WHO)
def run(request: pytest.FixtureRequest) -> Iterator[tuple[Run, str]]:
    """How somebody runs a program, and a directory of theirs on a block device."""
    top = Path(_hierarchy.find_hierarchy().top, "cgroup.controllers")
    missing = {"cpu", "io", "memory", "pids"} - set(top.read_text().split())
    if missing:
        pytest.skip(f"the v2 hierarchy of this machine has no {', '.join(sorted(missing))}")
    directory = tempfile.mkdtemp(prefix="tests-")
    try:
        os.chmod(directory, 0o777)
        with runner(request.param, directory) as found:
            yield found, directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def found(run: tuple[Run, str]) -> dict[str, Any]:
    done = run[0](PROGRAM, run[1])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines: dict[str, Any] = json.loads(done.stdout)
    return lines


def test_a_hog_dies_and_the_result_says_of_what(found: dict[str, Any]) -> None:
    *outcome, peak = found["hog"]
    assert outcome == [-9, True, False]
    assert LIMIT * 0.95 < peak <= LIMIT


def test_shared_memory_counts_and_everything_dies_at_once(found: dict[str, Any]) -> None:
    assert found["shared_memory"] == [-9, True, ""]


def test_a_fork_bomb_ends_with_its_container(found: dict[str, Any]) -> None:
    most, left = found["fork_bomb"]
    assert most <= 64
    assert not left


def test_half_a_cpu_is_half_a_cpu(found: dict[str, Any]) -> None:
    """The tolerance is what a busy host takes away, and one period at either end."""
    used, wall = found["half_a_processor"]
    assert 0.1 < used <= 0.5 * wall + 0.15


def test_weights_share_a_processor(found: dict[str, Any]) -> None:
    """1 to 3; between 1.5 and 6 is right."""
    assert 1.5 < found["weights"] < 6


def test_writes_to_a_device_are_bound(found: dict[str, Any]) -> None:
    """8 MiB at 4 MiB a second take two seconds; at least one and a half is right."""
    assert found["writes_to_a_device"] > 1.5


def test_what_is_forked_at_once_is_inside(found: dict[str, Any]) -> None:
    assert found["first_instruction"] == 3


def test_pause_stops_the_clock_resume_goes_on_and_a_paused_one_ends(found: dict[str, Any]) -> None:
    assert found["pause"] == ["paused", True, False]


def test_limits_change_while_it_runs(found: dict[str, Any]) -> None:
    assert found["update"] == [2 * LIMIT, 7]


SWAPPED = """
import container, json
result = container.run(["tail", "/dev/zero"], memory=64 << 20)
print(json.dumps([result.returncode, result.oom_killed]))
"""


@pytest.mark.needs("vm")
def test_swap_does_not_void_the_limit(run: tuple[Run, str], tmp_path: Path) -> None:
    swap = tmp_path / "swap"
    swap.write_bytes(bytes(128 << 20))
    swap.chmod(0o600)
    subprocess.run(["/sbin/mkswap", swap], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["/sbin/swapon", swap], check=True)
    try:
        done = run[0](SWAPPED, "")
    finally:
        subprocess.run(["/sbin/swapoff", swap], check=True)
    assert (json.loads(done.stdout), done.stderr) == ([-9, True], "")


MANY = """
import os, threading
import container
from container import Config, Container, Process, Resources
from container import _launcher
def many():
    for _ in range(100):
        container.run(["true"], memory="64M", pids=16, check=True)
with Container(Config(resources=Resources())) as box:
    box.run(Process(["sh", "-c", "while :; do :; done"]))
    threads = [threading.Thread(target=many) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    _launcher.drop_blanks()
    place = os.path.dirname(box._child.cgroup)
    names = [entry.name for entry in os.scandir(place) if entry.is_dir()]
    assert names == [os.path.basename(box._child.cgroup)], names
print(place, flush=True)
os.kill(os.getpid(), 9)
"""


def test_three_hundred_under_load_and_a_killed_caller_leave_nothing(run: tuple[Run, str]) -> None:
    done = run[0](MANY, "")
    assert (done.returncode, done.stderr) == (-9, "")
    place = Path(done.stdout.strip())
    assert place.name.startswith("@")
    deadline = time.monotonic() + 60
    while place.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
