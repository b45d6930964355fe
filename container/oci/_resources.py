# SPDX-License-Identifier: Apache-2.0
"""``linux.resources`` of a config.json, as cgroup v2 has it."""

from collections.abc import Sequence
from typing import Any

from container._config import (
    CPUResources,
    Device,
    IOResources,
    MemoryResources,
    PidsResources,
    Resources,
    default_devices,
)
from container.oci._reader import Node, at, refuse, string

_MAX = 2**63 - 1
_V1 = "cgroup v2 has nothing like it"
_THROTTLES = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}


def resources_of(linux: Node | None, devices: Sequence[Device]) -> Resources | None:
    node = linux.node("resources") if linux is not None else None
    if node is None:
        return None
    _check_devices(node, devices)
    _refuse_network(node)
    with at(node.path):
        return Resources(
            memory=_memory(node.node("memory")),
            cpu=_cpu(node.node("cpu")),
            pids=_pids(node.node("pids")),
            io=_io(node.node("blockIO")),
            hugetlb={
                each.need("pageSize", str): each.need("limit", int)
                for each in node.nodes("hugepageLimits")
            },
            rdma=node.map("rdma", _rdma),
            unified=node.map("unified", string),
        )


def _memory(node: Node | None) -> MemoryResources | None:
    if node is None:
        return None
    for name in ("kernel", "kernelTCP", "swappiness"):
        if node.number(name, -1, _MAX) is not None:
            refuse(node.at(name), _V1)
    if node.get("disableOOMKiller", bool):
        refuse(node.at("disableOOMKiller"), _V1)
    if node.get("useHierarchy", bool) is False:
        refuse(node.at("useHierarchy"), "in cgroup v2 it is always so")
    node.get("checkBeforeUpdate", bool)  # nothing is used yet
    limit = node.number("limit", -1, _MAX)
    total = node.number("swap", -1, _MAX)
    swap = total
    if total is not None and total >= 0:  # memory and swap together
        if limit is None or not 0 <= limit <= total:
            refuse(node.at("swap"), "needs a limit of memory that is no larger")
        swap = total - limit
    with at(node.path):
        return MemoryResources(max=limit, low=node.number("reservation", -1, _MAX), swap_max=swap)


def _cpu(node: Node | None) -> CPUResources | None:
    if node is None:
        return None
    for name in ("realtimeRuntime", "realtimePeriod"):
        if node.number(name, -1, _MAX):
            refuse(node.at(name), _V1)
    shares = node.number("shares", 0, _MAX)
    idle = node.number("idle", 0, 1)
    with at(node.path):
        return CPUResources(
            quota=node.number("quota", -1, _MAX) or None,
            period=node.number("period", 0, _MAX) or None,
            weight=None if not shares else _weight(shares, 2, 262144),
            cpus=node.get("cpus", str) or None,
            mems=node.get("mems", str) or None,
            idle=None if idle is None else bool(idle),
            burst=node.number("burst", 0, _MAX),
        )


def _weight(value: int, low: int, high: int) -> int:
    """On the scale of cgroup v2, from 1 to 10000."""
    value = max(low, min(value, high))
    return 1 + (value - low) * 9999 // (high - low)


def _pids(node: Node | None) -> PidsResources | None:
    if node is None:
        return None
    with at(node.at("limit")):
        return PidsResources(node.number("limit", -1, _MAX))


def _io(node: Node | None) -> IOResources | None:
    if node is None:
        return None
    for name in ("leafWeight", "weightDevice"):
        if node.raw(name):
            refuse(node.at(name), _V1 if name == "leafWeight" else "is not supported")
    limits: dict[str, dict[str, int | str]] = {}
    for name, key in _THROTTLES.items():
        for each in node.nodes(name):
            device = f"{each.need('major', int)}:{each.need('minor', int)}"
            limits.setdefault(device, {})[key] = each.need("rate", int)
    weight = node.number("weight", 0, 1000)
    with at(node.path):
        return IOResources(weight=_weight(weight, 10, 1000) if weight else None, max=limits)


def _rdma(value: Any, path: str) -> dict[str, int]:
    node = Node(value, path)
    names = {"hca_handle": "hcaHandles", "hca_object": "hcaObjects"}
    found = {key: node.number(name, 0, 2**32 - 1) for key, name in names.items()}
    return {key: number for key, number in found.items() if number is not None}


def _refuse_network(node: Node) -> None:
    network = node.node("network")
    if network is None:
        return
    if network.number("classID", 0, 2**32 - 1):
        refuse(network.at("classID"), _V1)
    network.refuse("priorities", _V1)


def _check_devices(node: Node, devices: Sequence[Device]) -> None:
    """What is listed may be opened and nothing else, as ever: rules can only say that again."""
    listed = {(each.type, each.major, each.minor) for each in (*devices, *default_devices())}
    allowed = False
    for rule in node.nodes("devices"):
        kind = rule.get("type", str) or "a"
        number = tuple(rule.number(name, -1, 2**32) for name in ("major", "minor"))
        whole = kind == "a" and not {*number} - {None, -1}
        rule.get("access", str)
        if rule.need("allow", bool):
            allowed = True
            if (kind, *number) not in listed:
                refuse(rule.path, "only devices that linux.devices lists can be allowed")
        elif allowed or not whole:
            refuse(rule.path, "a single device cannot be denied: leave it out of linux.devices")
