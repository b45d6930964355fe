# SPDX-License-Identifier: Apache-2.0
"""From `Resources` to what is written to which file of a cgroup, and from OCI's to ours. Pure."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from container._config import (
    CPUResources,
    IOResources,
    MemoryResources,
    PidsResources,
    Resources,
    parse_size,
)
from container._errors import ConfigError, UnsupportedError

PERIOD = 100_000  # microseconds: the kernel's default
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")
_LEAST_CPUS, _MOST_CPUS = 0.01, 16384  # of the kernel: quotas from 1 ms; CONFIG_NR_CPUS
_MAX_SHARES = 1 << 18  # kernel/sched/sched.h, MAX_SHARES
_DEFAULT_BLKIO = (10, 1000)
_DEFAULT_WEIGHT, _MOST_WEIGHT, _MOST_BFQ = 100, 10000, 1000  # block/bfq-cgroup.c


@dataclass(frozen=True, slots=True)
class Setting:
    """One write to a file of a cgroup; ``field`` is what asked for it.

    ``optional``: where the file is missing there is nothing to limit.
    """

    file: str
    value: str
    field: str
    optional: bool = False

    @property
    def controller(self) -> str:
        return self.file.partition(".")[0]


def settings_of(resources: Resources) -> tuple[Setting, ...]:
    """In the order in which they are to be written."""
    return (
        *_cpu(resources.cpu or CPUResources()),
        *_memory(resources.memory or MemoryResources()),
        *_pids(resources.pids or PidsResources()),
        *_io(resources.io or IOResources()),
        *_other(resources),
    )


def controllers_of(settings: tuple[Setting, ...]) -> tuple[str, ...]:
    """Those that the files belong to."""
    return tuple(dict.fromkeys(setting.controller for setting in settings))


def _number(value: int | str) -> str:
    return "max" if value == -1 else str(value)


def _cpu(cpu: CPUResources) -> Iterator[Setting]:
    for name, content in (("cpus", cpu.cpus), ("mems", cpu.mems)):
        if content is not None:
            yield Setting(f"cpuset.{name}", content, f"cpu.{name}")
    if cpu.idle is not None:
        yield Setting("cpu.idle", str(int(cpu.idle)), "cpu.idle")
    if cpu.weight is not None:
        yield Setting("cpu.weight", str(cpu.weight), "cpu.weight")
    if cpu.quota is not None or cpu.period is not None:
        quota = _number(-1 if cpu.quota is None else cpu.quota)
        field = "cpu.quota" if cpu.quota is not None else "cpu.period"
        yield Setting("cpu.max", f"{quota} {cpu.period or PERIOD}", field)
    if cpu.burst is not None:  # the kernel wants it below the quota
        yield Setting("cpu.max.burst", str(cpu.burst), "cpu.burst")


def _memory(memory: MemoryResources) -> Iterator[Setting]:
    limited = memory.max not in (None, -1)
    for name in ("min", "low", "high"):
        value = getattr(memory, name)
        if value is not None:
            yield Setting(f"memory.{name}", _number(value), f"memory.{name}")
    # Before max: what is pushed out by that must find no swap.
    swap = 0 if memory.swap_max is None and limited else memory.swap_max
    if swap is not None:  # no file: a kernel without swap
        field = "memory.max" if memory.swap_max is None else "memory.swap_max"
        yield Setting("memory.swap.max", _number(swap), field, optional=swap in (0, -1))
    group = limited if memory.oom_group is None else memory.oom_group
    if group or memory.oom_group is not None:
        yield Setting("memory.oom.group", str(int(group)), "memory.oom_group")
    if memory.max is not None:
        yield Setting("memory.max", _number(memory.max), "memory.max")


def _pids(pids: PidsResources) -> Iterator[Setting]:
    if pids.max is not None:
        yield Setting("pids.max", _number(pids.max), "pids.max")


def _io(io: IOResources) -> Iterator[Setting]:
    if io.weight is not None:
        yield Setting("io.weight", f"default {io.weight}", "io.weight")
        # BFQ, where that divides a device, has a file of its own, and is there when it is loaded.
        yield Setting("io.bfq.weight", str(_bfq_weight(io.weight)), "io.weight", optional=True)
    for device, limits in io.max.items():  # one write sets one device
        yield Setting("io.max", f"{device} {limits}", f"io.max[{device!r}]")


def _bfq_weight(weight: int) -> int:
    """The same default, and 1000 for the most."""
    if weight <= _DEFAULT_WEIGHT:
        return weight
    share = (weight - _DEFAULT_WEIGHT) / (_MOST_WEIGHT - _DEFAULT_WEIGHT)
    return _DEFAULT_WEIGHT + round(share * (_MOST_BFQ - _DEFAULT_WEIGHT))


def _other(resources: Resources) -> Iterator[Setting]:
    for size, limit in resources.hugetlb.items():
        field = f"hugetlb[{size!r}]"
        yield Setting(f"hugetlb.{size}.max", str(limit), field)
        # Or what is only reserved would not count until it is touched, and end by SIGBUS.
        yield Setting(f"hugetlb.{size}.rsvd.max", str(limit), field, optional=True)
    for device, limits in resources.rdma.items():
        yield Setting("rdma.max", f"{device} {limits}", f"rdma[{device!r}]")
    for file, value in resources.unified.items():
        yield Setting(file, value, f"unified[{file!r}]")


def limit_further(
    resources: Resources | None,
    memory: int | str | None = None,
    cpus: float | None = None,
    pids: int | None = None,
) -> Resources | None:
    """With the short limits of `run` in place of those that there are."""
    if memory is None and cpus is None and pids is None:
        return resources
    found = resources or Resources()
    if memory is not None:
        limit = parse_size(memory, "memory", unlimited=True)
        found = replace(found, memory=replace(found.memory or MemoryResources(), max=limit))
    if cpus is not None:
        quota = _parse_cpus(cpus)
        cpu = replace(found.cpu or CPUResources(), quota=quota, period=PERIOD)
        found = replace(found, cpu=cpu)
    if pids is not None:
        try:
            found = replace(found, pids=PidsResources(max=pids))
        except ConfigError as error:
            raise ConfigError(error.detail, field="pids") from None
    return found


def _parse_cpus(cpus: float) -> int:
    """The quota for so many processors."""
    if isinstance(cpus, bool) or not isinstance(cpus, int | float):
        raise ConfigError(f"expected a number, got {type(cpus).__name__}", field="cpus")
    if not _LEAST_CPUS <= cpus <= _MOST_CPUS:  # refuses NaN too
        detail = f"must be from {_LEAST_CPUS} to {_MOST_CPUS}, not {cpus!r}"
        raise ConfigError(detail, field="cpus")
    return round(cpus * PERIOD)


# OCI ------------------------------------------------------------------------------------------


def weight_of_shares(shares: int) -> int:
    """cpu.shares of v1, 2 to 262144, as a weight of v2, 1 to 10000.

    The curve on which the least, the default (1024, 100) and the most of both lie, as runc and
    crun have it since 2025.
    """
    shares = min(max(shares, 2), _MAX_SHARES)
    if shares in (2, _MAX_SHARES):
        return 1 if shares == 2 else 10000
    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def weight_of_blkio(weight: int) -> int:
    """blkio.weight of v1, 10 to 1000, on a line to io.weight, 1 to 10000."""
    low, high = _DEFAULT_BLKIO
    return 1 + (min(max(weight, low), high) - low) * 9999 // (high - low)


def resources_from_oci(linux: Mapping[str, Any], field: str = "linux.resources") -> Resources:
    """``linux.resources`` of the OCI runtime-spec, with its v1 numbers converted.

    Device rules are not limits, and not looked at here (_device_rules.py). What v2 does not have
    is an error, but where it asks for what is so anyway.
    """
    with _within(field):
        _refuse_network(linux.get("network") or {})
        return Resources(
            memory=_oci_memory(linux.get("memory") or {}),
            cpu=_oci_cpu(linux.get("cpu") or {}),
            pids=_oci_pids(linux.get("pids") or {}),
            io=_oci_io(linux.get("blockIO") or {}),
            hugetlb={
                limit["pageSize"]: limit["limit"] for limit in linux.get("hugepageLimits") or ()
            },
            rdma={
                device: _oci_rdma(limits) for device, limits in (linux.get("rdma") or {}).items()
            },
            unified=linux.get("unified") or {},
        )


@contextmanager
def _within(field: str) -> Iterator[None]:
    """Errors in here are those of a part."""
    try:
        yield
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(error.detail, field=f"{field}.{error.field}") from None


@_within("network")
def _refuse_network(network: Mapping[str, Any]) -> None:
    for name in ("classID", "priorities"):
        if network.get(name):
            raise UnsupportedError("cgroup v2 has no such controller", field=name)


@_within("memory")
def _oci_memory(memory: Mapping[str, Any]) -> MemoryResources:
    for name in ("kernel", "kernelTCP"):
        if memory.get(name) not in (None, 0, -1):
            raise UnsupportedError("cgroup v2 has no such limit", field=name)
    if memory.get("disableOOMKiller"):
        raise UnsupportedError("cgroup v2 cannot", field="disableOOMKiller")
    if memory.get("swappiness") is not None:
        raise UnsupportedError("cgroup v2 has it for the whole machine only", field="swappiness")
    limit, swap = memory.get("limit") or None, memory.get("swap") or None
    return MemoryResources(
        max=limit,
        low=memory.get("reservation") or None,
        swap_max=_oci_swap(limit, swap),
        oom_group=False if limit is not None else None,  # OCI does not say so
    )


def _oci_swap(limit: int | None, swap: int | None) -> int | None:
    """v1's limit is that of memory and swap together."""
    if swap is None:
        return -1 if limit == -1 else None
    if swap == -1:
        return swap
    if limit is None or limit == -1:
        raise ConfigError("needs limit", field="swap")
    if swap < limit:
        raise ConfigError("is memory and swap together, and less than limit", field="swap")
    return swap - limit


@_within("cpu")
def _oci_cpu(cpu: Mapping[str, Any]) -> CPUResources:
    for name in ("realtimeRuntime", "realtimePeriod"):
        if cpu.get(name):
            raise UnsupportedError("cgroup v2 has no such limit", field=name)
    shares, quota, idle = cpu.get("shares"), cpu.get("quota") or None, cpu.get("idle")
    if idle not in (None, 0, 1):
        raise ConfigError(f"must be 0 or 1, not {idle!r}", field="idle")
    return CPUResources(
        quota=-1 if quota is not None and quota < 0 else quota,
        period=cpu.get("period") or None,
        weight=weight_of_shares(shares) if shares and not idle else None,
        cpus=cpu.get("cpus") or None,
        mems=cpu.get("mems") or None,
        idle=None if idle is None else bool(idle),
        burst=cpu.get("burst"),
    )


@_within("pids")
def _oci_pids(pids: Mapping[str, Any]) -> PidsResources:
    limit = pids.get("limit")
    return PidsResources(max=-1 if limit is not None and limit <= 0 else limit)


@_within("blockIO")
def _oci_io(block: Mapping[str, Any]) -> IOResources:
    for name in ("leafWeight", "weightDevice"):
        if block.get(name):
            raise UnsupportedError("is not supported", field=name)
    limits: dict[str, dict[str, int]] = {}
    for name, key in (
        ("throttleReadBpsDevice", "rbps"),
        ("throttleWriteBpsDevice", "wbps"),
        ("throttleReadIOPSDevice", "riops"),
        ("throttleWriteIOPSDevice", "wiops"),
    ):
        for device in block.get(name) or ():
            number = f"{device['major']}:{device['minor']}"
            limits.setdefault(number, {})[key] = device["rate"] or -1  # 0: none, as in v1
    weight = block.get("weight")
    return IOResources(weight=weight_of_blkio(weight) if weight else None, max=limits)


def _oci_rdma(limits: Mapping[str, Any]) -> dict[str, int]:
    names = {"hcaHandles": "hca_handle", "hcaObjects": "hca_object"}
    return {names[name]: limits[name] for name in names if limits.get(name) is not None}
