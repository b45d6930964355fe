# SPDX-License-Identifier: Apache-2.0
"""Resources: what is refused, what is written where, and what OCI's numbers become."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from container import (
    ConfigError,
    CPUResources,
    IOResources,
    MemoryResources,
    PidsResources,
    Resources,
    UnsupportedError,
)
from container._limits import (
    controllers_of,
    resources_from_oci,
    settings_of,
    weight_of_blkio,
    weight_of_shares,
)

# So that the type checker lets wrong types pass.
Memory: Any = MemoryResources
Pids: Any = PidsResources
IO: Any = IOResources
All: Any = Resources


def written(resources: Resources) -> list[tuple[str, str]]:
    return [(setting.file, setting.value) for setting in settings_of(resources)]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Memory(max="12Q"), "max"),
        (lambda: Memory(max=-2), "max"),
        (lambda: Memory(high=1.5), "high"),
        (lambda: Memory(swap_max=True), "swap_max"),
        (lambda: Memory(oom_group=1), "oom_group"),
        (lambda: CPUResources(quota=-2), "quota"),
        (lambda: CPUResources(quota=0), "quota"),
        (lambda: CPUResources(quota=999), "quota"),
        (lambda: CPUResources(period=999), "period"),
        (lambda: CPUResources(period=1000001), "period"),
        (lambda: CPUResources(weight=0), "weight"),
        (lambda: CPUResources(weight=10001), "weight"),
        (lambda: CPUResources(weight=5, idle=True), "weight"),
        (lambda: CPUResources(cpus="9-"), "cpus"),
        (lambda: CPUResources(cpus="3-1"), "cpus"),
        (lambda: CPUResources(cpus=""), "cpus"),
        (lambda: CPUResources(cpus="0\n1"), "cpus"),
        (lambda: CPUResources(cpus="٣"), "cpus"),
        (lambda: CPUResources(mems="a"), "mems"),
        (lambda: CPUResources(burst=-1), "burst"),
        (lambda: Pids(max=0), "max"),
        (lambda: Pids(max="5"), "max"),
        (lambda: IO(weight=0), "weight"),
        (lambda: IO(max={"sda": {"rbps": 1}}), "max['sda']"),
        (lambda: IO(max={"8:0": {"rbsp": 1}}), "max['8:0']['rbsp']"),
        (lambda: IO(max={"8:0": {"rbps": "1Q"}}), "max['8:0']['rbps']"),
        (lambda: IO(max={"8:0": "rbps"}), "max['8:0']['rbps']"),
        (lambda: IO(max={"8:0": "rbps=1 rbps=2"}), "max['8:0']"),
        (lambda: IO(max={"8:0": {}}), "max['8:0']"),
        (lambda: IO(max={"8:0": 5}), "max['8:0']"),
        (lambda: IO(max={8: {}}), "max"),
        (lambda: IO(max=["8:0"]), "max"),
        (lambda: All(memory="64M"), "memory"),
        (lambda: All(hugetlb={"2M": 1}), "hugetlb['2M']"),
        (lambda: All(hugetlb={"2MB": "x"}), "hugetlb['2MB']"),
        (lambda: All(rdma={"a b": {"hca_handle": 1}}), "rdma['a b']"),
        (lambda: All(rdma={"mlx": {"handles": 1}}), "rdma['mlx']['handles']"),
        (lambda: All(unified={"../memory.max": "1"}), "unified['../memory.max']"),
        (lambda: All(unified={"cgroup.procs": "1"}), "unified['cgroup.procs']"),
        (lambda: All(unified={"memory.max": "1\n2"}), "unified['memory.max']"),
        (lambda: All(unified={"memory.max": ""}), "unified['memory.max']"),
        (lambda: All(unified={"memory.max": 1}), "unified['memory.max']"),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field


def test_nothing_said_is_nothing_written() -> None:
    empty = Resources(MemoryResources(), CPUResources(), PidsResources(), IOResources())
    assert written(empty) == written(Resources()) == []


def test_each_limit_goes_to_its_file() -> None:
    resources = Resources(
        memory=MemoryResources(max="64M", high="48M", swap_max="1M", low=5, min=4),
        cpu=CPUResources(quota=50000, period=20000, weight=7, cpus="0-3,5", mems="0", burst=100),
        pids=PidsResources(max=64),
        io=IOResources(weight=50, max={"8:0": {"rbps": "1M", "wiops": -1}, "8:16": "wbps=max"}),
        hugetlb={"2MB": "4M", "1GB": -1},
        rdma={"mlx4_0": {"hca_handle": 2, "hca_object": -1}},
        unified={"memory.zswap.max": "0"},
    )
    assert written(resources) == [
        ("cpuset.cpus", "0-3,5"),
        ("cpuset.mems", "0"),
        ("cpu.weight", "7"),
        ("cpu.max", "50000 20000"),
        ("cpu.max.burst", "100"),
        ("memory.min", "4"),
        ("memory.low", "5"),
        ("memory.high", str(48 << 20)),
        ("memory.swap.max", str(1 << 20)),
        ("memory.oom.group", "1"),
        ("memory.max", str(64 << 20)),
        ("pids.max", "64"),
        ("io.weight", "default 50"),
        ("io.bfq.weight", "50"),
        ("io.max", "8:0 rbps=1048576 wiops=max"),
        ("io.max", "8:16 wbps=max"),
        ("hugetlb.2MB.max", str(4 << 20)),
        ("hugetlb.2MB.rsvd.max", str(4 << 20)),
        ("hugetlb.1GB.max", "max"),
        ("hugetlb.1GB.rsvd.max", "max"),
        ("rdma.max", "mlx4_0 hca_handle=2 hca_object=max"),
        ("memory.zswap.max", "0"),
    ]
    assert controllers_of(settings_of(resources)) == (
        *("cpuset", "cpu", "memory", "pids", "io", "hugetlb", "rdma"),
    )


def test_a_memory_limit_takes_swap_away_unless_that_is_said_otherwise() -> None:
    # And before it: memory that max pushes out must find no swap.
    assert written(Resources(MemoryResources(max=1 << 20))) == [
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("memory.max", "1048576"),
    ]
    unlimited = Resources(MemoryResources(max=1 << 20, swap_max=-1, oom_group=False))
    assert ("memory.swap.max", "max") in written(unlimited)
    assert ("memory.oom.group", "0") in written(unlimited)
    assert written(Resources(MemoryResources(max=-1))) == [("memory.max", "max")]


@pytest.mark.parametrize(
    ("weight", "bfq"), [(1, 1), (100, 100), (101, 100), (200, 109), (10000, 1000)]
)
def test_bfq_has_a_scale_of_its_own(weight: int, bfq: int) -> None:
    assert ("io.bfq.weight", str(bfq)) in written(Resources(io=IOResources(weight=weight)))


def test_a_quota_has_the_kernels_period_and_a_period_no_quota() -> None:
    assert written(Resources(cpu=CPUResources(quota=5000))) == [("cpu.max", "5000 100000")]
    assert written(Resources(cpu=CPUResources(quota=-1))) == [("cpu.max", "max 100000")]
    assert written(Resources(cpu=CPUResources(period=5000))) == [("cpu.max", "max 5000")]
    assert written(Resources(cpu=CPUResources(idle=True))) == [("cpu.idle", "1")]


def test_resources_survive_pickle_and_copy_and_are_hashable() -> None:
    resources = Resources(
        io=IOResources(max={"8:0": {"rbps": -1}}),
        hugetlb={"2MB": -1},
        rdma={"a": "hca_handle=max"},
        unified={"memory.high": "max"},
    )
    for twin in (
        pickle.loads(pickle.dumps(resources)),
        copy.deepcopy(resources),
        replace(resources),
    ):
        assert twin == resources
        assert hash(twin) == hash(resources)
        assert written(twin) == written(resources)
    assert "rbps=max" in repr(resources)


def test_the_default_limits_memory_and_processes() -> None:
    files = dict(written(Resources.default()))
    assert files["memory.max"] == str(512 << 20)
    assert files["pids.max"] == "1024"


# OCI ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "weight"),
    # runc 1.3.2 and crun 1.23 say the same.
    [(2, 1), (3, 2), (1024, 100), (512, 59), (2048, 174), (262144, 10000), (1, 1), (10**9, 10000)],
)
def test_shares_become_weights_as_in_other_runtimes(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


def test_the_line_that_runtimes_had_before_gave_the_default_too_little() -> None:
    """It went straight from the least to the most: the ends are the same, what lies between has
    more now (kubernetes/kubernetes 131216), so that 1024 is the kernel's default."""
    for shares in (2, 1024, 2048, 262144):
        straight = 1 + (shares - 2) * 9999 // 262142
        assert weight_of_shares(shares) >= straight
        assert (weight_of_shares(shares) == straight) == (shares in (2, 262144))


def test_weights_grow_with_shares() -> None:
    weights = [weight_of_shares(1 << power) for power in range(1, 19)]
    assert weights == sorted(set(weights))


@pytest.mark.parametrize(("blkio", "io"), [(10, 1), (500, 4950), (1000, 10000)])
def test_blkio_weights_become_io_weights(blkio: int, io: int) -> None:
    assert weight_of_blkio(blkio) == io


def test_oci_resources_become_ours() -> None:
    device = {"major": 8, "minor": 0}
    found = resources_from_oci(
        {
            "devices": [{"allow": False}],
            "memory": {"limit": 3000, "reservation": 1000, "swap": 5000, "kernel": -1},
            "cpu": {"shares": 1024, "quota": -1, "period": 50000, "cpus": "0", "burst": 0},
            "pids": {"limit": -1},
            "blockIO": {
                "weight": 10,
                "throttleReadBpsDevice": [{**device, "rate": 7}],
                "throttleWriteIOPSDevice": [{**device, "rate": 9}],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "rdma": {"mlx": {"hcaHandles": 3, "hcaObjects": 4}},
            "unified": {"memory.high": "2000"},
        }
    )
    assert written(found) == [
        ("cpuset.cpus", "0"),
        ("cpu.weight", "100"),
        ("cpu.max", "max 50000"),
        ("cpu.max.burst", "0"),
        ("memory.low", "1000"),
        ("memory.swap.max", "2000"),
        ("memory.oom.group", "0"),
        ("memory.max", "3000"),
        ("pids.max", "max"),
        ("io.weight", "default 1"),
        ("io.bfq.weight", "1"),
        ("io.max", "8:0 rbps=7 wiops=9"),
        ("hugetlb.2MB.max", "0"),
        ("hugetlb.2MB.rsvd.max", "0"),
        ("rdma.max", "mlx hca_handle=3 hca_object=4"),
        ("memory.high", "2000"),
    ]


@pytest.mark.parametrize(
    ("memory", "swap"),
    [
        ({"limit": 5, "swap": -1}, "max"),
        ({"limit": -1}, "max"),
        ({"limit": -1, "swap": -1}, "max"),
        ({"limit": 5, "swap": 5}, "0"),
        ({"limit": 5}, "0"),
    ],
)
def test_swap_of_oci_is_memory_and_swap(memory: dict[str, int], swap: str) -> None:
    assert dict(written(resources_from_oci({"memory": memory})))["memory.swap.max"] == swap


@pytest.mark.parametrize(
    ("linux", "error", "field"),
    [
        ({"memory": {"swap": 5}}, ConfigError, "memory.swap"),
        ({"memory": {"swap": 5, "limit": 6}}, ConfigError, "memory.swap"),
        ({"memory": {"swap": 7, "limit": -1}}, ConfigError, "memory.swap"),
        ({"memory": {"swappiness": 60}}, UnsupportedError, "memory.swappiness"),
        ({"cpu": {"idle": 2}}, ConfigError, "cpu.idle"),
        ({"network": {"classID": 5}}, UnsupportedError, "network.classID"),
        ({"network": {"priorities": [{}]}}, UnsupportedError, "network.priorities"),
        ({"memory": {"kernel": 5}}, UnsupportedError, "memory.kernel"),
        ({"memory": {"disableOOMKiller": True}}, UnsupportedError, "memory.disableOOMKiller"),
        ({"cpu": {"realtimeRuntime": 5}}, UnsupportedError, "cpu.realtimeRuntime"),
        ({"blockIO": {"leafWeight": 5}}, UnsupportedError, "blockIO.leafWeight"),
        ({"memory": {"limit": -5}}, ConfigError, "memory.max"),
        ({"cpu": {"cpus": "9-"}}, ConfigError, "cpu.cpus"),
    ],
)
def test_what_v2_does_not_have_is_an_error(
    linux: dict[str, Any], error: type[ConfigError] | type[UnsupportedError], field: str
) -> None:
    with pytest.raises(error, match=f"^linux.resources.{field}: "):
        resources_from_oci(linux)
