# SPDX-License-Identifier: Apache-2.0
"""``container stats``, ``container run`` with limits, and what doctor says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import container
from container import Config, Container, Process, Resources, _hierarchy
from container._cgroup import Cgroup, CgroupStats, CPUStats, MemoryStats, PidsStats
from container._top import Sample, format_table, take_samples

pytestmark = pytest.mark.needs("root", "userns", "cgroup2")

CLI = [sys.executable, "-W", "error", "-m", "container"]
PLAIN = Config(resources=Resources())


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_containers_are_shown_by_their_ids_whoever_started_them() -> None:
    with Container(PLAIN, id="shown-1") as one, Container(PLAIN, id="shown-2") as two:
        one.run(Process(["sleep", "1000"]))
        two.run(Process(["sleep", "1000"]))
        lines = cli("stats").stdout.splitlines()
        assert lines[0].split()[0] == "ID"
        assert {"shown-1", "shown-2"} <= {line.split()[0] for line in lines}
        assert len({len(line) for line in lines}) == 1
        (found,) = json.loads(cli("stats", "--json", "shown-1").stdout)
        assert found["id"] == "shown-1"
        assert 0 < found["cpu"]["usage_usec"] <= one.stats().cpu.usage_usec
        assert found["cgroup"] == one._used_child().cgroup
        assert json.loads(cli("stats", "--json", "shown-3").stdout) == []
    assert not {"shown-1", "shown-2"} & {sample.name for sample in take_samples()}


def test_a_child_that_was_made_ahead_is_no_container() -> None:
    container.run(["true"], config=PLAIN, check=True)
    assert [sample for sample in take_samples() if sample.name.isdigit()] == []


def test_a_cgroup_of_ones_own_is_shown_while_it_has_processes() -> None:
    with Cgroup.create("by-hand") as group, subprocess.Popen(["sleep", "1000"]) as process:
        assert take_samples(["by-hand"]) == []
        group.add_process(process.pid)
        (sample,) = take_samples(["by-hand"])
        assert sample.path == group.path
        process.kill()


def test_a_table_has_what_was_used_since_the_last_one() -> None:
    def sample(usage: int, time: float) -> Sample:
        memory = MemoryStats(3 << 20, max=64 << 20)
        return Sample("a", "/a", CgroupStats(CPUStats(usage), memory, PidsStats(2, max=5)), time)

    first, second = sample(1_000_000, 10.0), sample(1_500_000, 12.0)
    assert format_table([first], {}).splitlines()[1].split() == [
        *("a", "-", "1.00", "3.0M", "64.0M", "2/5", "0B", "0B"),
    ]
    assert format_table([second], {"/a": first}).splitlines()[1].split()[1] == "25.0"
    assert format_table([], {}).count("\n") == 1


@pytest.mark.needs("cgroup2:memory", "cgroup2:pids", "cgroup2:cpu")
def test_limits_of_the_command_line_bind() -> None:
    done = cli("run", "--memory", "32M", "--cpus", "0.5", "--pids", "16", "--", "tail", "/dev/zero")
    assert done.returncode == 128 + 9
    assert cli("run", "--memory", "-1", "--", "true").returncode == 0


def test_doctor_says_which_limits_there_are() -> None:
    (check,) = (each for each in container.doctor().checks if each.name == "limits")
    top = Path(_hierarchy.find_hierarchy().top, "cgroup.controllers").read_text().split()
    assert check.ok == ({"memory", "cpu", "pids"} <= set(top))
    for name in ("memory", "cpu", "pids"):
        assert (f"not of {name}, held by" in check.detail) == (name not in top)
    assert (check.remedy is None) == check.ok
