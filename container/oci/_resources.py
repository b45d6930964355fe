# SPDX-License-Identifier: Apache-2.0
"""``linux.resources`` of a config.json: its types here, what it means in _limits and
_device_rules.
"""

from typing import Any

from container._config import DeviceRule, Resources
from container._device_rules import rules_from_oci
from container._limits import resources_from_oci
from container.oci._reader import Node, refuse, string

_WHOLE: dict[str, tuple[str, ...]] = {
    "memory": ("limit", "reservation", "swap", "kernel", "kernelTCP", "swappiness"),
    "cpu": ("shares", "quota", "burst", "period", "realtimeRuntime", "realtimePeriod", "idle"),
    "pids": ("limit",),
    "blockIO": ("weight", "leafWeight"),
    "network": ("classID",),
}
_TRUTHS = ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate")
_THROTTLES = tuple(
    f"throttle{way}{unit}Device" for way in ("Read", "Write") for unit in ("Bps", "IOPS")
)


def resources_of(linux: Node) -> Resources | None:
    node = linux.node("resources")
    if node is None:
        return None
    _check_numbers(node)
    memory = node.node("memory")
    if memory is not None and memory.get("useHierarchy", bool) is False:
        refuse(memory.at("useHierarchy"), "in cgroup v2 it is always so")
    return resources_from_oci(linux.raw("resources"))


def device_rules_of(linux: Node) -> tuple[DeviceRule, ...]:
    node = linux.node("resources")
    if node is None:
        return ()
    for rule in node.nodes("devices"):
        rule.need("allow", bool)
        for name in ("type", "access"):
            rule.get(name, str)
        for name in ("major", "minor"):
            rule.get(name, int)
    return rules_from_oci(node.raw("devices") or ())


def _check_numbers(node: Node) -> None:
    for part, names in _WHOLE.items():
        inner = node.node(part)
        for name in names if inner is not None else ():
            inner.get(name, int)  # type: ignore[union-attr]
    if (memory := node.node("memory")) is not None:
        for name in _TRUTHS:
            memory.get(name, bool)
    if (cpu := node.node("cpu")) is not None:
        for name in ("cpus", "mems"):
            cpu.get(name, str)
    if (block := node.node("blockIO")) is not None:
        _check_block(block)
    if (network := node.node("network")) is not None:
        network.nodes("priorities")
    for each in node.nodes("hugepageLimits"):
        each.need("pageSize", str)
        each.need("limit", int)
    node.map("rdma", _check_rdma)
    node.map("unified", string)


def _check_block(block: Node) -> None:
    block.nodes("weightDevice")
    for name in _THROTTLES:
        for each in block.nodes(name):
            for number in ("major", "minor", "rate"):
                each.need(number, int)


def _check_rdma(value: Any, path: str) -> None:
    node = Node(value, path)
    for name in ("hcaHandles", "hcaObjects"):
        node.get(name, int)
