# SPDX-License-Identifier: Apache-2.0
"""Containers in a control group: from their first instruction to the end of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs
import pytest
from system.conftest import OrdinaryUser
from system.helpers import caller, is_readable, python, running_caller, told

import container
from container import (
    Capabilities,
    Cgroup,
    CgroupError,
    Config,
    ConfigError,
    Container,
    ContainerTimeoutError,
    ControllerNotEnabledError,
    CPUResources,
    ExecConfig,
    LaunchError,
    MemoryResources,
    Namespaces,
    PidsResources,
    Process,
    Resources,
    State,
    StateError,
    UnsupportedError,
    _hierarchy,
    _launcher,
)

pytestmark = pytest.mark.needs("root", "userns", "cgroup2")

PLAIN = Config(resources=Resources())
PATIENCE = 60.0
SPIN = ["sh", "-c", "while :; do :; done"]
limited = pytest.mark.needs("cgroup2:memory", "cgroup2:pids", "cgroup2:cpu")


def place() -> Path:
    """The cgroups of this process's launcher."""
    directory = _launcher._get().place
    assert directory is not None
    return Path(directory)


def cgroup_of(pid: int | None) -> Path:
    """By the kernel, not by the library."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line[3:] for line in lines if line.startswith("0::"))
    return Path(_hierarchy.find_hierarchy().top + path)


@pytest.fixture
def spinning() -> Iterator[Container]:
    with Container(PLAIN) as box:
        box.run(Process(SPIN))
        yield box


def state_of(box: Container) -> State:
    return box.state.state


def clock(box: Container) -> int:
    return box.stats().cpu.usage_usec


def await_that(condition: Callable[[], bool]) -> None:
    """Fails where it never holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# A group of its own ---------------------------------------------------------------------------


def test_a_container_has_a_cgroup_of_its_own_and_sees_nothing_above() -> None:
    with Container(PLAIN) as box:
        box.run(Process(["sleep", "1000"]))
        group = cgroup_of(box.pid)
        assert group.parent == place()
        assert group.parent.parent.name == "container"
        assert (group / "cgroup.procs").read_text().split() == [str(box.pid)]
        process = box.exec(["cat", "/proc/self/cgroup"], text=True)
        assert process.communicate()[0].splitlines()[-1] == "0::/"
    assert not group.exists()


def test_without_resources_it_stays_where_its_caller_is() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        assert cgroup_of(box.pid) == cgroup_of(os.getpid())
        for act in (box.pause, box.stats, lambda: box.update(Resources())):
            with pytest.raises(CgroupError, match="no control group"):
                act()


def test_the_first_process_is_born_in_it_made_ahead_or_not() -> None:
    seen = set()
    for _ in range(5):
        with Container(PLAIN) as box:
            box.create(Process(["sleep", "1000"]))
            seen.add(cgroup_of(box.pid))
            assert cgroup_of(box.pid).parent == place()
            box.start()
            assert cgroup_of(box.pid).parent == place()
    assert len(seen) == 5


def test_a_command_is_in_the_cgroup_of_its_container() -> None:
    with Container(PLAIN) as box:
        box.run(Process(["sleep", "1000"]))
        process = box.exec(["sleep", "1000"])
        assert cgroup_of(process.pid) == cgroup_of(box.pid)
        process.kill()
        process.wait()


def test_what_is_forked_at_once_is_inside() -> None:
    source = "sleep 1000 & sleep 1000 & wait"
    with Container(PLAIN) as box:
        box.run(Process(["sh", "-c", source]))
        group = cgroup_of(box.pid)
        await_that(lambda: len((group / "cgroup.procs").read_text().split()) == 3)


def test_no_cgroup_can_be_made_below() -> None:
    with Container(PLAIN) as box:
        box.run(Process(["sleep", "1000"]))
        with pytest.raises(OSError, match="Resource temporarily unavailable"):
            (cgroup_of(box.pid) / "below").mkdir()


def test_every_cgroup_is_gone_when_its_container_is() -> None:
    for _ in range(3):
        container.run(["true"], config=PLAIN, check=True)
    with Container(PLAIN) as box, Container(PLAIN) as other:
        box.run(Process(["sleep", "1000"]))
        other.create(Process(["true"]))
        groups = [cgroup_of(each.pid) for each in (box, other)]
    assert not any(group.exists() for group in groups)
    with pytest.raises(FileNotFoundError):
        container.run(["/no/such/program"], config=PLAIN)
    _launcher.drop_blanks()
    assert [path for path in place().iterdir() if path.is_dir()] == []


def test_what_outlives_the_first_process_is_killed_and_the_cgroup_removed() -> None:
    """A command in the container's network alone: no PID namespace ends it."""
    with Container(PLAIN) as box:
        box.run(Process(["sleep", "1000"]))
        group = cgroup_of(box.pid)
        assert box.pid is not None
        program = "sleep 1000 & echo $!; exec sleep 1000"
        process = container.exec_in_namespaces(
            box.pid, ["sh", "-c", program], namespaces={"net", "user"}, text=True
        )
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert cgroup_of(child) == group
        pidfd = os.pidfd_open(child)
        box.destroy()
        assert is_readable(pidfd, PATIENCE)
        os.close(pidfd)
    await_that(lambda: not group.exists())


@pytest.mark.parametrize("victim", ["caller", "launcher"])
def test_nothing_is_left_by_who_is_killed(victim: str) -> None:
    source = """
        from container import *
        boxes = [Container(Config(resources=Resources())) for _ in range(3)]
        for box in boxes:
            box.run(Process(["sh", "-c", "sleep 1000 & exec sleep 1000"]))
        tell([launcher_pid(), _launcher._get().place, [box.pid for box in boxes]])
        time.sleep(1000)
    """
    with running_caller(source) as process:
        launcher, directory, pids = told(process)
        assert all(cgroup_of(pid).parent == Path(directory) for pid in pids)
        pidfds = [os.pidfd_open(pid) for pid in pids]
        os.kill(process.pid if victim == "caller" else launcher, signal.SIGKILL)
        for pidfd in pidfds:
            assert is_readable(pidfd, PATIENCE)
            os.close(pidfd)
        await_that(lambda: not Path(directory).exists())


def test_what_nobody_could_remove_the_next_launcher_removes() -> None:
    container.run(["true"], config=PLAIN, check=True)
    stale = place().parent / "@1-stale"
    (stale / "5").mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as process:
        (stale / "5/cgroup.procs").write_text(str(process.pid))
        caller("""
            from container import *
            container.run(["true"], config=Config(resources=Resources()), check=True)
            assert _launcher._get().place is not None
        """)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    assert not stale.exists()
    assert place().is_dir()  # of one that is alive


# Life -----------------------------------------------------------------------------------------


def test_pause_stops_the_clock_and_resume_goes_on(spinning: Container) -> None:
    await_that(lambda: clock(spinning) > 0)
    spinning.pause()
    assert state_of(spinning) == State.PAUSED
    before = clock(spinning)
    time.sleep(0.05)  # in which what runs would use some of it
    assert clock(spinning) == before
    with pytest.raises(StateError, match="paused"):
        spinning.pause()
    with pytest.raises(StateError, match="paused"):
        spinning.exec(["true"])
    spinning.resume()
    assert state_of(spinning) == State.RUNNING
    await_that(lambda: clock(spinning) > before)
    with pytest.raises(StateError, match="running"):
        spinning.resume()


def test_a_command_that_meets_a_pause_keeps_nobody_else_waiting(
    spinning: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    spinning.pause()
    # As for one that has looked a moment before.
    monkeypatch.setattr(Container, "_state", lambda *_: State.RUNNING)
    thrown: list[BaseException] = []

    def meet() -> None:
        try:
            spinning.exec(ExecConfig(["true"], timeout=1))
        except BaseException as error:
            thrown.append(error)

    thread = threading.Thread(target=meet)
    thread.start()
    while thread.is_alive():
        assert container.run(["true"]).returncode == 0
    assert isinstance(thrown[0], ContainerTimeoutError)
    group = cgroup_of(spinning.pid)
    await_that(lambda: (group / "cgroup.procs").read_text().split() == [str(spinning.pid)])
    monkeypatch.undo()
    spinning.resume()
    process = spinning.exec(["sh", "-c", "grep ^0:: /proc/self/cgroup; sleep 1000"], text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0::/\n"
    assert cgroup_of(process.pid) == group
    process.kill()
    with process:
        pass


@pytest.mark.parametrize("end", ["destroy", "stop", "signal"])
def test_a_paused_container_ends(spinning: Container, end: str) -> None:
    spinning.pause()
    group = cgroup_of(spinning.pid)
    if end == "signal":
        spinning.signal(signal.SIGKILL)
        assert spinning.wait(PATIENCE) == -9
    elif end == "stop":
        assert spinning.stop(container.SignalConfig(stop_timeout=0.01)) == -9
    spinning.destroy()
    assert not group.exists()
    assert state_of(spinning) == State.STOPPED


def test_a_freeze_that_fails_leaves_it_running(
    spinning: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroup, "_await", lambda *_: False)
    with pytest.raises(CgroupError, match="not frozen"):
        spinning.pause()
    assert state_of(spinning) == State.RUNNING
    before = clock(spinning)
    await_that(lambda: clock(spinning) > before)


def test_one_that_has_ended_has_no_numbers(spinning: Container) -> None:
    spinning.signal(signal.SIGKILL)
    spinning.wait(PATIENCE)
    for act in (spinning.stats, spinning.pause, spinning.events):
        with pytest.raises(StateError, match="stopped"):
            act()


def test_the_last_event_is_the_exit() -> None:
    with Container(PLAIN) as box:
        box.run(Process(["sh", "-c", "read x; exit 3"], stdin=container.PIPE))
        assert list(box.events(timeout=0)) == []
        threading.Timer(0.05, box.stdin.close).start()  # type: ignore[union-attr]
        (event,) = box.events()
        assert (event.kind, event.count) == (container.EventKind.EXIT, 3)


def test_a_container_that_could_lift_its_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(
        namespaces=container.Namespaces(user=False),
        capabilities=Capabilities.all(),
        resources=Resources(),
    )
    if _hierarchy.is_delegation_boundary(_hierarchy.find_hierarchy().top):
        container.run(["true"], config=config, check=True)
    monkeypatch.setattr("container._plan.is_delegation_boundary", lambda _: False)
    with pytest.raises(UnsupportedError, match="lift"):
        container.run(["true"], config=replace(config, hostname="unseen"))


def test_root_inside_can_neither_divide_its_cgroup_nor_lift_its_limits() -> None:
    """With every capability and cgroup2 mounted, and without a user namespace."""
    if not _hierarchy.is_delegation_boundary(_hierarchy.find_hierarchy().top):
        pytest.skip("this machine has cgroup2 without nsdelegate")
    program = """
        mkdir /tmp/c && mount -t cgroup2 none /tmp/c && cd /tmp/c || exit 9
        mkdir below && echo made
        for file in cgroup.max.descendants cgroup.freeze memory.max pids.max; do
            [ -e $file ] && echo 1 >$file && echo wrote $file
        done
        echo +memory >cgroup.subtree_control && echo enabled
        cat /proc/self/cgroup
    """
    config = Config(
        namespaces=Namespaces(user=False),
        capabilities=Capabilities.all(),
        seccomp=None,
        resources=Resources(),
    )
    result = container.run(["sh", "-c", program], config=config, text=True)
    assert result.stdout.splitlines()[-1] == "0::/"
    assert not {"made", "wrote", "enabled"} & set(result.stdout.split())


def test_a_pause_that_meets_the_end_leaves_nothing_and_says_so() -> None:
    """At every moment of a short life; the end shows as such, whatever came first."""
    for delay in range(12):
        with Container(PLAIN) as box:
            box.run(
                Process(["sh", "-c", f"i=0; while [ $i -lt {delay * 100} ]; do i=$((i+1)); done"])
            )
            group = None
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended already
                group = cgroup_of(box.pid) if box.pid else None
            try:
                box.pause()
                # What is empty counts as frozen, until the launcher has told of the end.
                assert state_of(box) in (State.PAUSED, State.STOPPED)
                box.resume()
            except StateError:
                pass
            assert box.wait(PATIENCE) == 0
        assert group is None or not group.exists()


# Limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"memory": "12Q"}, "memory"),
        ({"memory": -2}, "memory"),
        ({"cpus": -1}, "cpus"),
        ({"cpus": 0}, "cpus"),
        ({"cpus": float("nan")}, "cpus"),
        ({"cpus": "1"}, "cpus"),
        ({"cpus": True}, "cpus"),
        ({"pids": 0}, "pids"),
        ({"pids": 1.5}, "pids"),
        ({"pids": True}, "pids"),
    ],
)
def test_a_wrong_limit_is_refused_by_its_name(options: dict[str, Any], field: str) -> None:
    for start in (container.run, container.popen):
        with pytest.raises(ConfigError) as caught:
            start(["true"], **options)
        assert caught.value.field == field


def test_a_limit_without_its_controller_is_an_error() -> None:
    top = Path(_hierarchy.find_hierarchy().top, "cgroup.controllers")
    if "memory" in top.read_text().split():
        pytest.skip("this machine has it")
    with pytest.raises(ControllerNotEnabledError) as caught:
        container.run(["true"], memory="64M")
    assert caught.value.controller == "memory"
    with Container(PLAIN) as box:
        box.run(Process(["sleep", "1000"]))
        with pytest.raises(ControllerNotEnabledError):
            box.update(Resources(MemoryResources(max="64M")))


HOG = ["tail", "/dev/zero"]
LIMIT = 64 << 20


@limited
def test_a_hog_dies_and_the_result_says_of_what() -> None:
    result = container.run(HOG, memory=LIMIT)
    assert (result.returncode, result.oom_killed) == (-9, True)
    assert result.usage is not None
    assert result.usage.memory_peak is not None
    assert LIMIT * 0.95 < result.usage.memory_peak <= LIMIT
    assert not container.run(["true"], memory=LIMIT).oom_killed


@limited
def test_a_limit_further_up_is_not_ones_own() -> None:
    """Of the cgroup in which the launcher has all of its containers."""
    container.run(["true"], config=PLAIN, check=True)
    (place() / "memory.max").write_text(str(LIMIT))
    try:
        result = container.run(HOG, memory=4 * LIMIT)
    finally:
        (place() / "memory.max").write_text("max")
    assert (result.returncode, result.oom_killed, result.oom_outside) == (-9, True, True)
    own = container.run(HOG, memory=LIMIT)
    assert (own.oom_killed, own.oom_outside) == (True, False)


@limited
def test_a_command_answers_for_what_happened_while_it_ran() -> None:
    """One process at a time is killed here, and the container goes on."""
    resources = Resources(MemoryResources(max=LIMIT, oom_group=False))
    with Container(Config(resources=resources)) as box:
        box.run(Process(["sleep", "1000"]))
        events = box.events()
        for argv, killed in ((["true"], False), (HOG, True), (["true"], False)):
            process = box.exec(argv)
            process.communicate()
            assert process.result is not None
            assert process.result.oom_killed == killed, argv
        box.destroy()
        kind = container.EventKind
        found = [event.kind for event in events]
        assert sorted(found) == sorted([kind.OOM, kind.OOM_KILL, kind.EXIT])
        assert found[-1] == kind.EXIT


@limited
def test_shared_memory_counts_and_everything_dies_at_once() -> None:
    program = "sleep 1000 & head -c 80M /dev/zero > /dev/shm/x; echo alive"
    result = container.run(["sh", "-c", program], memory=LIMIT)
    assert (result.returncode, result.oom_killed, result.stdout) == (-9, True, b"")


@limited
@pytest.mark.needs("vm")
def test_swap_does_not_void_the_limit(tmp_path: Path) -> None:
    swap = tmp_path / "swap"
    swap.write_bytes(bytes(256 << 20))
    swap.chmod(0o600)
    subprocess.run(["/sbin/mkswap", swap], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["/sbin/swapon", swap], check=True)
    try:
        result = container.run(HOG, memory=LIMIT)
    finally:
        subprocess.run(["/sbin/swapoff", swap], check=True)
    assert result.oom_killed


@limited
def test_a_command_that_is_killed_with_its_container_says_so() -> None:
    with Container(Config(resources=Resources(MemoryResources(max=LIMIT)))) as box:
        box.run(Process(["sleep", "1000"]))
        assert box.exec(HOG).wait(PATIENCE) == -9
        assert box.wait(PATIENCE) == -9


@limited
def test_the_launcher_outlives_a_container_without_memory_for_its_start() -> None:
    container.run(["true"], config=PLAIN, check=True)
    launcher = _launcher.launcher_pid()
    with pytest.raises(LaunchError, match="out of memory"):
        container.run(["true"], memory=8192)
    assert _launcher.launcher_pid() == launcher
    container.run(["true"], check=True)


@limited
def test_a_fork_bomb_ends_with_its_container() -> None:
    bomb = "b() { b | b & }; b; sleep 1000"
    with Container(Config(resources=Resources(pids=PidsResources(max=64)))) as box:
        box.run(Process(["sh", "-c", bomb], stdout=container.DEVNULL, stderr=container.DEVNULL))
        group = cgroup_of(box.pid)

        def refused() -> int:
            pids = box.stats().pids
            assert pids is not None
            assert pids.current <= 64
            return pids.refused

        await_that(lambda: refused() > 0)
        box.destroy()
        assert not group.exists()


@limited
def test_one_process_is_enough_for_a_program_that_starts_no_other() -> None:
    result = container.run(["sh", "-c", "(true) 2>&1; echo $?"], pids=1)
    assert b"fork" in result.stderr
    assert result.returncode != 0


@limited
def test_half_a_cpu_is_half_a_cpu() -> None:
    """Of the CPU time of a second and a half; the tolerance is what a busy host takes away, and
    one period at either end."""
    with Container(Config(resources=Resources(cpu=CPUResources(quota=50000)))) as box:
        box.run(Process(SPIN))
        began, before = time.monotonic(), box.stats().cpu
        await_that(lambda: box.stats().cpu.nr_throttled >= before.nr_throttled + 10)
        after, wall = box.stats().cpu, time.monotonic() - began
        assert after.usage - before.usage <= 0.5 * wall + 0.15
        assert after.throttled > before.throttled


@limited
def test_weights_share_a_processor() -> None:
    """1 to 3 of one processor; between 1.5 and 6 is right."""
    cpu = str(min(os.sched_getaffinity(0)))
    boxes = [
        Container(Config(resources=Resources(cpu=CPUResources(weight=weight, cpus=cpu))))
        for weight in (100, 300)
    ]
    with boxes[0], boxes[1]:
        for box in boxes:
            box.run(Process(SPIN))
        before = [clock(box) for box in boxes]
        await_that(lambda: sum(map(clock, boxes)) > sum(before) + 3_000_000)
        light, heavy = (clock(box) - old for box, old in zip(boxes, before, strict=True))
    assert 1.5 < heavy / light < 6


@limited
@pytest.mark.needs("vm", "cgroup2:io")
def test_writes_to_a_device_are_bound(tmp_path: Path) -> None:
    """8 MiB at 4 MiB a second take two seconds; at least one and a half is right."""
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    limits = Resources(io=container.IOResources(max={number: {"wbps": 4 << 20}}))
    command = "dd if=/dev/zero of=/data/x bs=1M count=8 oflag=direct 2>&1"
    tmp_path.chmod(0o777)
    config = Config(resources=limits, mounts=[container.Mount.bind(tmp_path, "/data")])
    result = container.run(["sh", "-c", command], config=config, check=True)
    assert result.usage is not None
    assert result.usage.wall > 1.5


@pytest.fixture
def shell() -> Iterator[Callable[..., None]]:
    """Runs a command of root's, and another one at the end."""
    undo: list[str] = []

    def run(command: str, back: str = "true") -> None:
        subprocess.run(["sh", "-ec", command], check=True, stdout=subprocess.DEVNULL)
        undo.append(back)

    yield run
    for back in reversed(undo):
        subprocess.run(["sh", "-ec", back], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.needs("vm", "cgroup2:hugetlb")
def test_huge_pages_are_bound(shell: Any) -> None:
    """Refused where they are reserved; or the program would die of SIGBUS where it touches them."""
    shell("echo 8 >/proc/sys/vm/nr_hugepages", "echo 0 >/proc/sys/vm/nr_hugepages")
    source = """
        import mmap
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
        for size in (4 << 20, 6 << 20):
            try:
                with mmap.mmap(-1, size, flags=flags) as memory:
                    memory[size - 1] = 1
                    print("ok")
            except OSError as error:
                print(error.errno)
    """
    config = Config(resources=Resources(hugetlb={"2MB": "4M"}))
    assert container.run(python(source), config=config).stdout == b"ok\n12\n"


@pytest.mark.needs("vm", "cgroup2:rdma", "ip")
def test_a_limit_of_an_rdma_device_is_set(shell: Any) -> None:
    """Of one made of software, which stays: its removal is an oops of Linux 6.12. What a program
    gets of it is not tried."""
    shell("modprobe rdma_rxe && rdma link add rxe0 type rxe netdev lo")
    resources = Resources(rdma={"rxe0": {"hca_handle": 2}})
    with Container(Config(resources=resources)) as box:
        box.run(Process(["sleep", "1000"]))
        limit = (cgroup_of(box.pid) / "rdma.max").read_text()
        assert limit == "rxe0 hca_handle=2 hca_object=max \n"
        box.update(Resources(rdma={"rxe0": "hca_handle=max hca_object=5"}))
        limit = (cgroup_of(box.pid) / "rdma.max").read_text()
        assert limit == "rxe0 hca_handle=max hca_object=5 \n"
    with pytest.raises(LaunchError, match=r"resources.rdma\['none0'\]"):
        container.run(["true"], config=Config(resources=Resources(rdma={"none0": "hca_handle=1"})))


@limited
def test_an_idle_container_gets_what_nobody_wants() -> None:
    """As 3 to 1024 by the kernel; a third is plenty, and without it they have the same."""
    idle, other = CPUResources(idle=True), CPUResources(weight=100)
    cpu = min(os.sched_getaffinity(0))
    boxes = [Container(Config(resources=Resources(cpu=each))) for each in (idle, other)]
    with boxes[0], boxes[1]:
        for box in boxes:
            box.run(Process(SPIN, cpu_affinity=[cpu]))
        before = [clock(box) for box in boxes]
        await_that(lambda: clock(boxes[1]) > before[1] + 1_000_000)
        assert clock(boxes[0]) - before[0] < 330_000


@limited
def test_what_was_not_used_of_a_quota_can_be_used_in_a_burst() -> None:
    """The kernel counts them: a short pause, and more than the quota at once."""
    program = "while :; do i=0; while [ $i -lt 9999 ]; do i=$((i+1)); done; sleep 0.3; done"
    resources = Resources(cpu=CPUResources(quota=20000, burst=20000))
    with Container(Config(resources=resources)) as box:
        box.run(Process(["sh", "-c", program]))
        stat = cgroup_of(box.pid) / "cpu.stat"
        await_that(lambda: "nr_bursts 0\n" not in stat.read_text())
        box.update(Resources(cpu=CPUResources(burst=0)))
        assert (cgroup_of(box.pid) / "cpu.max.burst").read_text() == "0\n"
    with pytest.raises(LaunchError, match=r"resources\.cpu\.burst"):
        more = CPUResources(quota=20000, burst=30000)
        container.run(["true"], config=Config(resources=Resources(cpu=more)))


@pytest.mark.long
@pytest.mark.needs("vm", "cgroup2:io")
def test_weights_share_a_device(shell: Any) -> None:
    """100 to 1000 of one that takes 10 ms for each request, one at a time, and of BFQ; where they
    do not hold it is as many for both."""
    slow = "queue_mode=2 irqmode=2 completion_nsec=10000000 hw_queue_depth=1 submit_queues=1 gb=1"
    shell("modprobe bfq")
    shell(f"modprobe null_blk nr_devices=1 {slow} && chmod 666 /dev/nullb0", "rmmod null_blk")
    shell("echo bfq >/sys/block/nullb0/queue/scheduler")
    status = os.stat("/dev/nullb0")
    number = os.major(status.st_rdev), os.minor(status.st_rdev)
    node = container.Device("/dev/nullb0", "b", *number)
    boxes = [
        Container(
            Config(devices=[node], resources=Resources(io=container.IOResources(weight=each)))
        )
        for each in (100, 10000)
    ]
    read = "while :; do dd if=/dev/nullb0 of=/dev/null bs=4k iflag=direct 2>/dev/null; done"

    def count(box: Container) -> int:
        found = box.stats().io.get(f"{number[0]}:{number[1]}")
        return 0 if found is None else found.rios

    with boxes[0], boxes[1]:
        for box in boxes:
            box.run(Process(["sh", "-c", read]))
        await_that(lambda: min(map(count, boxes)) > 10)
        before = [count(box) for box in boxes]
        await_that(lambda: sum(map(count, boxes)) > sum(before) + 400)
        light, heavy = (count(box) - old for box, old in zip(boxes, before, strict=True))
        assert heavy > 1.5 * light
        assert (cgroup_of(boxes[1].pid) / "io.bfq.weight").read_text() == "default 1000\n"


@limited
@pytest.mark.needs("cgroup2:io")
def test_a_limit_of_a_device_that_is_not_there_is_told_by_its_number() -> None:
    limits = {"250:250": {"wbps": 1 << 20}}
    with pytest.raises(LaunchError, match=r"resources\.io\.max\['250:250'\]") as caught:
        container.run(
            ["true"], config=Config(resources=Resources(io=container.IOResources(max=limits)))
        )
    assert (caught.value.step, caught.value.errno) == ("cgroup", 19)
    with Container(PLAIN) as box:
        box.run(Process(["sleep", "1000"]))
        with pytest.raises(ConfigError, match="no such device"):
            box.update(Resources(io=container.IOResources(max=limits)))


@limited
def test_limits_are_there_before_the_program_and_change_while_it_runs() -> None:
    resources = Resources(
        MemoryResources(max=LIMIT), CPUResources(quota=50000), PidsResources(max=9)
    )
    with Container(Config(resources=resources)) as box:
        box.create(Process(["sleep", "1000"]))
        group = cgroup_of(box.pid)

        def content(name: str) -> str:
            return (group / name).read_text().strip()

        assert content("memory.max") == str(LIMIT)
        assert content("memory.swap.max") == "0"
        assert content("memory.oom.group") == "1"
        assert content("pids.max") == "9"
        assert content("cpu.max") == "50000 100000"
        box.start()
        box.update(Resources(MemoryResources(max=2 * LIMIT), CPUResources(weight=7)))
        assert content("memory.max") == str(2 * LIMIT)
        assert content("pids.max") == "9"
        assert content("cpu.weight") == "7"


@limited
def test_a_value_that_the_kernel_refuses_is_told_with_its_field() -> None:
    resources = Resources(unified={"memory.high": "much"})
    with pytest.raises(LaunchError, match=r"resources\.unified\['memory\.high'\]") as caught:
        container.run(["true"], config=Config(resources=resources))
    assert caught.value.step == "cgroup"


@limited
def test_events_tell_of_memory_and_of_processes() -> None:
    resources = Resources(MemoryResources(max=LIMIT, oom_group=False), pids=PidsResources(max=2))
    program = "read x; (true & true &) 2>&1; tail /dev/zero; read x"
    with Container(Config(resources=resources)) as box:
        box.run(Process(["sh", "-c", program], stdin=container.PIPE, stderr=container.DEVNULL))
        events = box.events()
        kinds: list[container.EventKind] = []
        watcher = threading.Thread(target=lambda: kinds.extend(event.kind for event in events))
        watcher.start()
        assert box.stdin is not None
        box.stdin.write(b"\n")
        box.stdin.flush()
        kind = container.EventKind
        await_that(lambda: {kind.PIDS_MAX, kind.OOM, kind.OOM_KILL} <= set(kinds))
        box.destroy()
        watcher.join(PATIENCE / 2)
        assert not watcher.is_alive()
        assert kinds[-1] == kind.EXIT


@limited
def test_events_are_those_since_they_were_asked_for_not_since_the_first_is_taken() -> None:
    program = "read x; (true & wait); read x"
    with Container(Config(resources=Resources(pids=PidsResources(max=2)))) as box:
        box.run(Process(["sh", "-c", program], stdin=container.PIPE, stderr=container.DEVNULL))
        events = box.events(timeout=0)
        box.events()  # nobody takes any: the leak guard sees that it holds no file
        assert box.stdin is not None
        box.stdin.write(b"\n")
        box.stdin.flush()
        await_that(lambda: (pids := box.stats().pids) is not None and pids.refused == 1)
        (event,) = events
        assert (event.kind, event.count) == (container.EventKind.PIDS_MAX, 1)


@limited
def test_events_tell_of_throttling() -> None:
    with Container(Config(resources=Resources(cpu=CPUResources(quota=10000)))) as box:
        box.run(Process(SPIN))
        for event in box.events(timeout=PATIENCE):
            assert event.kind == container.EventKind.THROTTLED
            break
        else:
            pytest.fail("no event of a container that is throttled")


@limited
@pytest.mark.long
def test_three_hundred_under_load_leave_nothing() -> None:
    with Container(PLAIN) as box:
        box.run(Process(SPIN))
        threads = [threading.Thread(target=many, args=(100,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _launcher.drop_blanks()
        await_that(
            lambda: [path for path in place().iterdir() if path.is_dir()] == [cgroup_of(box.pid)]
        )


def many(count: int) -> None:
    for _ in range(count):
        container.run(["true"], memory="64M", pids=16, check=True)


# Devices --------------------------------------------------------------------------------------

OPEN = "mknod /dev/loop b 7 0 && head -c 1 /dev/loop"
NO_USER = Namespaces(user=False)


def test_no_device_opens_but_those_of_the_container() -> None:
    """Where its root is the host's it can make any node."""
    bare = container.run(["sh", "-c", OPEN], config=Config(namespaces=NO_USER))
    assert b"not permitted" not in bare.stderr
    config = Config(namespaces=NO_USER, resources=Resources())
    result = container.run(["sh", "-c", OPEN], config=config)
    assert result.returncode != 0
    assert b"Operation not permitted" in result.stderr
    program = "for n in null zero full random urandom; do : <> /dev/$n || exit 1; done"
    container.run(["sh", "-c", program], config=config, check=True)


def test_a_device_that_is_given_opens() -> None:
    device = container.Device("/dev/loop", "b", 7, 0)
    config = Config(namespaces=NO_USER, resources=Resources(), devices=[device])
    result = container.run(["head", "-c", "1", "/dev/loop"], config=config)
    assert b"not permitted" not in result.stderr


@pytest.mark.needs("vm")
def test_rules_for_devices_hold_in_a_user_namespace_too(shell: Any) -> None:
    """What is bound opens, until a rule refuses it."""
    shell("chmod 666 /dev/fuse")
    mounts = [container.Mount("/dev/fuse", "/bound", "bind", nodev=False, read_only=True)]
    config = Config(mounts=mounts, resources=Resources())
    program = ["sh", "-c", "echo >/dev/null && : </bound"]
    container.run(program, config=config, check=True)
    rules = [container.DeviceRule(True), container.DeviceRule(False, "c", 10, 229)]
    result = container.run(program, config=replace(config, device_rules=rules))
    assert result.returncode != 0
    assert b"Operation not permitted" in result.stderr


# Without root ---------------------------------------------------------------------------------

USER = """
import container
from container import *
result = container.run(["tail", "/dev/zero"], memory=32 << 20)
print(result.returncode, result.oom_killed)
with Container(Config(resources=Resources(pids=PidsResources(max=5)))) as box:
    box.run(Process(["sleep", "1000"]))
    print([l for l in open(f"/proc/{box.pid}/cgroup") if l.startswith("0::")][0].strip())
    process = box.exec(["cat", "/proc/self/cgroup"], text=True)
    print(process.communicate()[0].splitlines()[-1])
    box.pause(); print(box.state.state); box.resume()
    print(box.stats().pids.max)
"""


POPULATED = """
from container import *
with Container(Config(resources=Resources())) as box:
    box.run(Process(["sleep", "1000"]))
    box.pause()
    print(box.state.state)
"""


@limited
def test_a_delegated_user_has_limits_too(as_user: OrdinaryUser) -> None:
    delegated = Path(_hierarchy.find_hierarchy().top, "delegated")
    main = delegated / "main"
    main.mkdir(parents=True)
    try:
        for name in (".", "cgroup.procs", "cgroup.subtree_control", "main", "main/cgroup.procs"):
            os.chown(delegated / name, as_user.uid, as_user.gid)
        done = run_in(main, as_user, USER)
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert lines[0] == "-9 True"
        assert lines[1].startswith("0::/delegated/container/@")
        assert lines[2:] == ["0::/", "paused", "5"]
    finally:
        await_that(lambda: not (delegated / "container").exists())
        main.rmdir()
        delegated.rmdir()


@limited
def test_a_user_whose_cgroup_has_processes_is_told_to_move_them(as_user: OrdinaryUser) -> None:
    """No internal processes: it can have cgroups below, but give them no controllers."""
    group = Path(_hierarchy.find_hierarchy().top, "populated")
    group.mkdir()
    try:
        for name in (".", "cgroup.procs", "cgroup.subtree_control"):
            os.chown(group / name, as_user.uid, as_user.gid)
        done = run_in(group, as_user, "import container; container.run(['true'], memory='64M')")
        assert "ControllerNotEnabledError" in done.stderr
        assert f"the processes in {group}" in done.stderr
        assert f"mkdir {group}/main" in done.stderr
        done = run_in(group, as_user, POPULATED)
        assert (done.stdout, done.stderr) == ("paused\n", "")
    finally:
        await_that(lambda: not (group / "container").exists())
        group.rmdir()


@limited
def test_a_user_to_whom_nothing_is_delegated_is_told_how_to_get_it(as_user: OrdinaryUser) -> None:
    done = as_user("import container; container.run(['true'], memory='64M')")
    assert "ControllerNotEnabledError" in done.stderr
    assert "systemd-run --user --scope -p Delegate=yes" in done.stderr


def run_in(group: Path, user: OrdinaryUser, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a user in a cgroup, from its beginning."""
    enter = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
    argv = needs.as_user_argv([sys.executable, "-P", "-s", "-c", program])
    return subprocess.run(
        ["sh", "-c", enter, str(group), *argv],
        capture_output=True,
        text=True,
        cwd=user.home,
        env=user.environment(),
        timeout=PATIENCE,
        check=False,
    )
