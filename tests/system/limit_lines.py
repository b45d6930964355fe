# SPDX-License-Identifier: Apache-2.0
"""What limits promise, as a program, for those whom the tests cannot be themselves.

Its argument is a directory on a block device. Prints what each line has found, by name, as JSON;
the text of an exception where there was one. test_limit_lines.py runs it.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import container
from container import (
    Config,
    Container,
    CPUResources,
    IOResources,
    MemoryResources,
    Mount,
    PidsResources,
    Process,
    Resources,
)

LIMIT = 64 << 20
PATIENCE = 100.0
HOG = ["tail", "/dev/zero"]
SPIN = ["sh", "-c", "while :; do :; done"]
FOUND: dict[str, Any] = {}
DIRECTORY = sys.argv[1]
DEVICE = os.stat(DIRECTORY).st_dev
NUMBER = f"{os.major(DEVICE)}:{os.minor(DEVICE)}"


def line(function: Callable[[], object]) -> None:
    try:
        FOUND[function.__name__] = function()
    except Exception:
        FOUND[function.__name__] = traceback.format_exc()


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def group_of(box: Container) -> str:
    """By the kernel, not by the library."""
    with open(f"/proc/{box.pid}/cgroup", encoding="ascii") as file:
        path = next(line[3:].strip() for line in file if line.startswith("0::"))
    return f"/sys/fs/cgroup{path}"


def clock(box: Container) -> int:
    return box.stats().cpu.usage_usec


@line
def hog() -> object:
    result = container.run(HOG, memory=LIMIT)
    assert result.usage is not None
    return result.returncode, result.oom_killed, result.oom_outside, result.usage.memory_peak


@line
def shared_memory() -> object:
    program = "sleep 1000 & head -c 80M /dev/zero > /dev/shm/x; echo alive"
    result = container.run(["sh", "-c", program], memory=LIMIT)
    return result.returncode, result.oom_killed, result.stdout.decode()


@line
def fork_bomb() -> object:
    bomb = ["sh", "-c", "b() { b | b & }; b; sleep 1000"]
    with Container(Config(resources=Resources(pids=PidsResources(max=64)))) as box:
        box.run(Process(bomb, stdout=container.DEVNULL, stderr=container.DEVNULL))
        group, most = group_of(box), 0

        def refused() -> int:
            nonlocal most
            pids = box.stats().pids
            assert pids is not None
            most = max(most, pids.current)
            return pids.refused

        await_that(refused)
    return most, os.path.exists(group)


@line
def half_a_processor() -> object:
    with Container(Config(resources=Resources(cpu=CPUResources(quota=50000)))) as box:
        box.run(Process(SPIN))
        began, before = time.monotonic(), box.stats().cpu
        await_that(lambda: box.stats().cpu.nr_throttled >= before.nr_throttled + 10)
        after, wall = box.stats().cpu, time.monotonic() - began
    return after.usage - before.usage, wall


@line
def weights() -> object:
    config = [Config(resources=Resources(cpu=CPUResources(weight=each))) for each in (100, 300)]
    with Container(config[0]) as light, Container(config[1]) as heavy:
        for box in (light, heavy):
            box.run(Process(SPIN, cpu_affinity=[min(os.sched_getaffinity(0))]))
        before = clock(light), clock(heavy)
        await_that(lambda: clock(light) + clock(heavy) > sum(before) + 2_000_000)
        return (clock(heavy) - before[1]) / (clock(light) - before[0])


@line
def writes_to_a_device() -> object:
    limits = Resources(io=IOResources(max={NUMBER: {"wbps": 4 << 20}}))
    config = Config(resources=limits, mounts=[Mount.bind(DIRECTORY, "/data")])
    command = "dd if=/dev/zero of=/data/x bs=1M count=8 oflag=direct 2>&1; rm /data/x"
    result = container.run(["sh", "-c", command], config=config, check=True)
    assert result.usage is not None
    return result.usage.wall


@line
def first_instruction() -> object:
    with Container(Config(resources=Resources())) as box:
        box.run(Process(["sh", "-c", "sleep 1000 & sleep 1000 & wait"]))
        path = f"{group_of(box)}/cgroup.procs"

        def count() -> int:
            with open(path, encoding="ascii") as file:
                return len(file.read().split())

        await_that(lambda: count() == 3)
        return count()


@line
def pause() -> object:
    with Container(Config(resources=Resources())) as box:
        box.run(Process(["sh", "-c", "while :; do :; done & wait"]))
        group = group_of(box)
        await_that(lambda: clock(box) > 0)
        box.pause()
        state, before = box.state.state, clock(box)
        time.sleep(0.1)
        stood = clock(box) == before
        box.resume()
        await_that(lambda: clock(box) > before)
        box.pause()
        box.destroy()
        return state, stood, os.path.exists(group)


@line
def update() -> object:
    with Container(Config(resources=Resources(MemoryResources(max=LIMIT)))) as box:
        box.run(Process(["sleep", "1000"]))
        box.update(Resources(MemoryResources(max=2 * LIMIT), pids=PidsResources(max=7)))
        stats = box.stats()
    assert stats.memory is not None
    assert stats.pids is not None
    return stats.memory.max, stats.pids.max


print(json.dumps(FOUND))
