# SPDX-License-Identifier: Apache-2.0
"""Which devices a container without a user namespace may open: an eBPF program for its cgroup.

There its root can make any node (CAP_MKNOD), and what it has made in its /dev it could open: the
disks of the host. cgroup v2 has no files for this, but asks a program (cgroup-v2.rst, "Device
controller"). With a user namespace no node can be opened that was not given anyway.
"""

import os
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from container._config import Config, DeviceRule
from container._devices import devices_of
from container._errors import ConfigError, UnsupportedError

# include/uapi/linux/bpf.h and bpf_common.h
_LOAD_WORD, _MOVE, _MOVE_NUMBER = 0x61, 0xBF, 0xB7
_AND, _SHIFT_RIGHT, _EXIT = 0x57, 0x77, 0x95
_UNLESS_EQUAL, _IF_EQUAL = 0x55, 0x15
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_RESULT, _CONTEXT, _TYPE, _WANTED, _MAJOR, _MINOR, _SCRATCH = 0, 1, 2, 3, 4, 5, 6


# As in other runtimes: a node that cannot be opened may be made.
_COMMON = (
    DeviceRule(True, access="m"),
    DeviceRule(True, "c", 5, 1),  # /dev/console
    DeviceRule(True, "c", 5, 2),  # /dev/ptmx
    DeviceRule(True, "c", 136),  # terminals, devices.txt
)


def device_program(config: Config, euid: int) -> bytes:
    """What decides in its cgroup, empty where nothing has to. `UnsupportedError` for who may attach
    none.
    """
    if config.namespaces.user and not config.device_rules:
        return b""
    if euid == 0:
        return compile_rules(rules_of(config))
    for index, rule in enumerate(config.device_rules):
        if not rule.allow and rule != DeviceRule(False):
            raise UnsupportedError("only root can refuse some", field=f"device_rules[{index}]")
    return b""


def rules_of(config: Config) -> tuple[DeviceRule, ...]:
    """What is bound without nodev opens unless one that is given refuses it; `devices` and
    terminals do, and nothing else does.
    """
    own = [
        DeviceRule(True, str(device.type), device.major, device.minor)
        for device in devices_of(config).values()
    ]
    given = _joined(config.device_rules)
    return (DeviceRule(False), *_bound(config), *given, *_COMMON, *own)


def _joined(rules: Iterable[DeviceRule]) -> list[DeviceRule]:
    """One rule for reading and one for writing let the same node be opened for both."""
    found: list[DeviceRule] = []
    since = 0  # the last one that refuses
    for each in rules:
        rule = each
        twins = [
            i for i in range(since, len(found)) if rule == replace(found[i], access=rule.access)
        ]
        if rule.allow and twins:
            other = found.pop(twins[0])
            rule = replace(rule, access=rule.access + other.access)
        found.append(rule)
        since = since if rule.allow else len(found)
    return found


def rules_from_oci(
    devices: Iterable[Mapping[str, Any]], field: str = "linux.resources.devices"
) -> tuple[DeviceRule, ...]:
    """``linux.resources.devices`` of the OCI runtime-spec. No number, or -1, is any."""
    found = []
    for index, device in enumerate(devices):
        kind = device.get("type") or None
        numbers = (device.get(name) for name in ("major", "minor"))
        major, minor = (None if number == -1 else number for number in numbers)
        try:
            found.append(
                DeviceRule(
                    device.get("allow", False),
                    None if kind == "a" else kind,
                    major,
                    minor,
                    device.get("access") or "rwm",
                )
            )
        except ConfigError as error:
            where = f"{field}[{index}].{error.field}"
            raise ConfigError(error.detail, field=where) from None
    return tuple(found)


def _bound(config: Config) -> Iterable[DeviceRule]:
    for mount in config.mounts:
        if mount.type != "bind" or mount.nodev:
            continue
        with suppress(OSError):
            status = os.stat(str(mount.source))
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
                numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
                yield DeviceRule(True, kind, *numbers)


def _code(op: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return struct.pack("=BBhi", op, source << 4 | target, offset, number)


def compile_rules(rules: Sequence[DeviceRule]) -> bytes:
    """``struct bpf_insn[]``: the last rule that matches decides, without one it is refused."""
    begin = (
        _code(_LOAD_WORD, _TYPE, _CONTEXT, 0),
        _code(_MOVE, _WANTED, _TYPE),
        _code(_AND, _TYPE, number=0xFFFF),
        _code(_SHIFT_RIGHT, _WANTED, number=16),
        _code(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _code(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    )
    found = []
    for rule in reversed(rules):
        found += _compile(rule)
        if rule == DeviceRule(rule.allow):  # it always matches: nothing before it can decide
            return b"".join((*begin, *found))
    return b"".join((*begin, *found, *_answer(False)))


def _answer(allow: bool) -> tuple[bytes, bytes]:
    return _code(_MOVE_NUMBER, _RESULT, number=int(allow)), _code(_EXIT)


def _compile(rule: DeviceRule) -> list[bytes]:
    """Tests that jump behind the answer where the rule does not match."""
    tests: list[tuple[int, int, int]] = []  # jump, register, number
    if rule.type is not None:
        tests.append((_UNLESS_EQUAL, _TYPE, _TYPES[rule.type]))
    if rule.major is not None:
        tests.append((_UNLESS_EQUAL, _MAJOR, rule.major))
    if rule.minor is not None:
        tests.append((_UNLESS_EQUAL, _MINOR, rule.minor))
    mask = sum(_ACCESS[letter] for letter in set(rule.access))
    before: list[bytes] = []
    if mask != 7:
        # Allowed if no more is wanted than the rule has, refused if any of what it has.
        other = ~mask & 7 if rule.allow else mask
        before = [_code(_MOVE, _SCRATCH, _WANTED), _code(_AND, _SCRATCH, number=other)]
        tests.append((_UNLESS_EQUAL if rule.allow else _IF_EQUAL, _SCRATCH, 0))
    code = list(before)
    for i, (jump, register, number) in enumerate(tests):
        code.append(_code(jump, register, 0, len(tests) - i - 1 + 2, number))
    return [*code, *_answer(rule.allow)]
