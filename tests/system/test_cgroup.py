# SPDX-License-Identifier: Apache-2.0
"""`Cgroup`, as the kernel shows it. What needs a controller runs in the machine of tests/vm."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from container import (
    Cgroup,
    CgroupError,
    CgroupNotFoundError,
    ConfigError,
    ControllerNotEnabledError,
    CPUResources,
    MemoryResources,
    PidsResources,
    Resources,
    _hierarchy,
)

pytestmark = pytest.mark.needs("root", "cgroup2")

SPIN = "while True: pass"
PATIENCE = 60


@contextlib.contextmanager
def running(source: str, group: Cgroup) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program in a cgroup from before its first line on."""
    argv = [sys.executable, "-S", "-E", "-c", f"input()\n{source}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            group.add_process(process.pid)
            process.stdin.write(b"\n")
            process.stdin.flush()
            yield process
        finally:
            process.kill()


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def test_a_cgroup_is_made_in_a_place_of_its_own_and_leaves_nothing() -> None:
    with Cgroup.create("plain") as group:
        directory = Path(group.path)
        assert directory.is_dir()
        assert directory.parent.name == "container"
        assert not group.populated
        assert Cgroup.open(group.path) == group
        top = _hierarchy.find_hierarchy().top
        assert Cgroup.open("/" + os.path.relpath(group.path, top)) == group
        with pytest.raises(CgroupError, match="already"):
            Cgroup.create("plain")
        assert directory.is_dir()
    assert not directory.exists()
    group.remove()  # again: nothing to do


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\n", "x" * 129, ".launcher"])
def test_a_name_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cgroup.create(name)
    assert caught.value.field == "name"


def test_what_is_not_there_is_not_found() -> None:
    with pytest.raises(CgroupNotFoundError):
        Cgroup.open("/no/such/cgroup")
    with pytest.raises(CgroupNotFoundError):
        Cgroup.open("/proc")
    group = Cgroup.create("gone")
    group.remove()
    for act in (group.stats, group.freeze, group.thaw, group.kill, group.processes):
        with pytest.raises(CgroupNotFoundError):
            act()


def test_a_directory_with_such_files_is_no_cgroup(tmp_path: Path) -> None:
    """What is written to the files of a cgroup would go wherever its maker wants."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("cgroup.controllers", "cgroup.events", "cgroup.kill", "cgroup.freeze"):
        (tmp_path / name).symlink_to(victim)
    for path in (str(tmp_path), f"../../..{tmp_path}", "\0", "..", "../.."):
        with pytest.raises(CgroupNotFoundError):
            Cgroup.open(path)
    with Cgroup.create("real") as group:
        (tmp_path / "link").symlink_to(group.path)
        assert Cgroup.open(tmp_path / "link").path == group.path
    assert victim.read_text() == "precious"


FORKER = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(flush=True)
while True:
    if os.fork() == 0: os._exit(0)
"""


def test_what_forks_all_the_time_is_frozen_and_killed_whole() -> None:
    for _ in range(3):
        with Cgroup.create("forks") as group, running(FORKER, group) as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(5):
                group.freeze()
                before = group.processes()
                assert group.frozen
                assert group.processes() == before
                group.thaw()
            group.freeze()
            group.kill()
            assert group.processes() == []


def test_a_process_is_moved_into_it_and_its_children_are_born_there() -> None:
    source = "import subprocess; subprocess.run(['cat', '/proc/self/cgroup']); print(flush=True)"
    source += "; input()"
    with Cgroup.create("moved") as group, running(source, group) as process:
        assert group.processes() == [process.pid]
        assert cgroup_of(process.pid).endswith("/container/moved")
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"\n")
        assert f"0::{cgroup_of(process.pid)}\n".encode() in list(lines)
        assert group.populated
        with pytest.raises(CgroupError, match="cannot remove"):
            group.remove()
        assert Path(group.path).is_dir()


def test_processes_that_are_none_cannot_be_moved() -> None:
    with Cgroup.create("none") as group:
        with pytest.raises(CgroupError, match="no process"):
            group.add_process(2**22 - 1)
        for pid in (0, -1, True, "5"):
            with pytest.raises(ConfigError):
                group.add_process(pid)  # type: ignore[arg-type]


def test_freeze_stops_the_clock_of_a_spinning_process_and_thaw_goes_on() -> None:
    with Cgroup.create("frozen") as group, running(SPIN, group):
        group.freeze()
        assert group.frozen
        before = group.stats().cpu.usage_usec
        # A tenth of a second, by our own clock: what runs would have used some of it.
        subprocess.run(["sleep", "0.1"], check=True)
        assert group.stats().cpu.usage_usec == before
        group.thaw()
        assert not group.frozen
        while group.stats().cpu.usage_usec == before:  # ends, or the test's time does
            pass


def test_a_freeze_that_fails_leaves_nothing_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    with Cgroup.create("half") as group, running(SPIN, group):
        with monkeypatch.context() as patch:
            patch.setattr(group, "_await", lambda *_: False)
            with pytest.raises(CgroupError, match=r"not frozen after 0\.5 seconds"):
                group.freeze(timeout=0.5)
        assert Path(group.path, "cgroup.freeze").read_text() == "0\n"
        with monkeypatch.context() as patch:
            patch.setattr(group, "_await", interrupt)
            with pytest.raises(KeyboardInterrupt):
                group.freeze()
        assert Path(group.path, "cgroup.freeze").read_text() == "0\n"


def test_kill_ends_everything_in_it_frozen_or_not() -> None:
    source = "import os\nfor _ in range(3): os.fork()\nprint(flush=True)\nwhile True: pass"
    with Cgroup.create("killed") as group, running(source, group) as process:
        assert process.stdout is not None
        for _ in range(8):
            process.stdout.readline()
        assert len(group.processes()) == 8
        group.freeze()
        group.kill()
        assert not group.populated
        assert process.wait(PATIENCE) == -signal.SIGKILL


def test_cgroups_below_go_with_it() -> None:
    group = Cgroup.create("nested")
    for name in ("a", "a/b", "a/c", "d"):
        Path(group.path, name).mkdir()
    group.remove()
    assert not Path(group.path).exists()


def test_stats_are_the_kernels() -> None:
    source = "sum(range(10**6)); print(flush=True); input()"
    with Cgroup.create("stats") as group, running(source, group) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stats = group.stats()
        assert 0 < stats.cpu.usage_usec <= group.stats().cpu.usage_usec
        assert stats.cpu.user_usec + stats.cpu.system_usec <= stats.cpu.usage_usec + 2
        assert stats.cpu.usage == stats.cpu.usage_usec / 1e6
        has = Path(group.path, "cgroup.controllers").read_text().split()
        assert (stats.memory is None) == ("memory" not in has)
        assert (stats.pids is None) == ("pids" not in has)
        assert stats.to_dict()["cpu"]["usage_usec"] == stats.cpu.usage_usec


def holders() -> dict[str, str]:
    """Controllers that a v1 mount has."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup "):
            for option in after.split()[2].split(","):
                found[option] = before.split()[4]
    return found


def test_a_limit_without_its_controller_names_who_has_that() -> None:
    with Cgroup.create("probe") as group:
        has = Path(group.path).parent.parent.joinpath("cgroup.controllers").read_text().split()
    if "memory" in has:
        pytest.skip("this machine has it")
    for resources in (Resources(MemoryResources(max="64M")), Resources.default()):
        with pytest.raises(ControllerNotEnabledError) as caught:
            Cgroup.create("limited", resources)
        name = caught.value.controller
        assert holders()[name] in str(caught.value.holder)
        assert f"cgroup_no_v1={name}" in str(caught.value.remedy)


def test_a_limit_that_came_too_late_names_its_controller() -> None:
    with Cgroup.create("late") as group:
        with pytest.raises(ControllerNotEnabledError) as caught:
            group.update(Resources(unified={"rdma.max": "mlx hca_handle=1"}))
        assert caught.value.controller == "rdma"


# With controllers -----------------------------------------------------------------------------


@pytest.mark.needs("cgroup2:memory", "cgroup2:pids", "cgroup2:cpu")
def test_limits_are_in_the_files_and_an_update_changes_them() -> None:
    resources = Resources(
        MemoryResources(max="64M", high="60M"),
        CPUResources(quota=50000, weight=50),
        PidsResources(max=10),
    )
    with Cgroup.create("limited", resources) as group:

        def content(name: str) -> str:
            return Path(group.path, name).read_text().strip()

        assert content("memory.max") == str(64 << 20)
        assert content("memory.swap.max") == "0"
        assert content("memory.oom.group") == "1"
        assert content("cpu.max") == "50000 100000"
        assert content("cpu.weight") == "50"
        assert content("pids.max") == "10"
        group.update(Resources(MemoryResources(max="32M"), pids=PidsResources(max=-1)))
        assert content("memory.max") == str(32 << 20)
        assert content("memory.high") == str(60 << 20)
        assert content("pids.max") == "max"
        stats = group.stats()
        assert stats.memory is not None
        assert stats.memory.max == 32 << 20
        assert stats.pids is not None
        assert (stats.pids.current, stats.pids.max) == (0, None)


@pytest.mark.needs("cgroup2:memory")
def test_a_refused_value_names_its_field_and_leaves_no_cgroup() -> None:
    with pytest.raises(ConfigError) as caught:
        Cgroup.create("bad", Resources(unified={"memory.max": "much"}))
    assert caught.value.field == "resources.unified['memory.max']"
    with pytest.raises(CgroupNotFoundError):
        Cgroup.open("/container/bad")


HOG = """
import os
blocks = []
print(flush=True)
while True: blocks.append(b"x" * (1 << 20))
"""


@pytest.mark.needs("cgroup2:memory")
def test_what_needs_more_memory_is_killed_and_counted() -> None:
    limit = 32 << 20
    with Cgroup.create("hog", Resources(MemoryResources(max=limit))) as group:
        with running(HOG, group) as process:
            assert process.wait(PATIENCE) == -signal.SIGKILL
        memory = group.stats().memory
        assert memory is not None
        assert memory.events.oom_kill >= 1
        assert memory.own_events.oom >= 1
        if memory.peak is not None:
            assert limit * 0.9 < memory.peak <= limit


@pytest.mark.needs("cgroup2:memory")
def test_a_kill_by_a_limit_further_up_is_told_from_ones_own() -> None:
    with Cgroup.create("outer", Resources(MemoryResources(max="32M", oom_group=False))) as outer:
        _hierarchy.enable(outer.path, ["memory"])
        Path(outer.path, "inner").mkdir()
        inner = Cgroup.open(os.path.join(outer.path, "inner"))
        with running(HOG, inner) as process:
            assert process.wait(PATIENCE) == -signal.SIGKILL
        memory = inner.stats().memory
        assert memory is not None
        assert memory.events.oom_kill == 1
        assert memory.events.oom == 0
        above = outer.stats().memory
        assert above is not None
        assert above.own_events.oom >= 1


@pytest.mark.needs("cgroup2:pids")
def test_more_processes_than_allowed_are_refused_and_counted() -> None:
    source = "import os\ntry:\n os.fork()\nexcept BlockingIOError: print('no', flush=True)"
    with Cgroup.create("few", Resources(pids=PidsResources(max=1))) as group:
        with running(source, group) as process:
            assert process.stdout is not None
            assert process.stdout.read() == b"no\n"
        pids = group.stats().pids
        assert pids is not None
        assert pids.refused == 1
