# SPDX-License-Identifier: Apache-2.0
"""Device rules as eBPF, run by an emulator of the few instructions that they take."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container import (
    Config,
    ConfigError,
    Device,
    DeviceRule,
    Mount,
    Namespaces,
    Resources,
    UnsupportedError,
)
from container._device_rules import compile_rules, device_program, rules_from_oci, rules_of

TYPES = {"b": 1, "c": 2}
NO_USER = Namespaces(user=False)
ACCESS = {"m": 1, "r": 2, "w": 4}


def run(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """What the kernel would do; the context is struct bpf_cgroup_dev_ctx."""
    wanted = sum(ACCESS[letter] for letter in access)
    context = struct.pack("=III", wanted << 16 | TYPES[kind], major, minor)
    registers = [0] * 11
    at = 0
    while True:
        op, pair, offset, number = struct.unpack_from("=BBhi", program, 8 * at)
        target, source = pair & 15, pair >> 4
        at += 1
        if op == 0x61:
            assert source == 1
            (registers[target],) = struct.unpack_from("=I", context, offset)
        elif op == 0xBF:
            registers[target] = registers[source]
        elif op == 0xB7:
            registers[target] = number
        elif op == 0x57:
            registers[target] &= number
        elif op == 0x77:
            registers[target] >>= number
        elif op in (0x15, 0x55):
            at += offset if (registers[target] == number) == (op == 0x15) else 0
        else:
            assert op == 0x95
            return bool(registers[0])


def decide(
    rules: list[DeviceRule] | tuple[DeviceRule, ...], kind: str, major: int, minor: int, access: str
) -> bool:
    """The last rule that matches; one that allows must cover all, one that refuses any of it."""
    for rule in reversed(rules):
        if rule.type not in (None, kind) or rule.major not in (None, major):
            continue
        if rule.minor not in (None, minor):
            continue
        if rule.allow and set(access) <= set(rule.access):
            return True
        if not rule.allow and set(access) & set(rule.access):
            return False
    return False


NUMBERS = st.one_of(st.none(), st.integers(0, 2))
RULES = st.builds(
    DeviceRule,
    st.booleans(),
    st.sampled_from([None, "b", "c"]),
    NUMBERS,
    NUMBERS,
    st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
)


@settings(deadline=None)
@given(st.lists(RULES, max_size=6))
def test_a_program_decides_as_its_rules_say(rules: list[DeviceRule]) -> None:
    program = compile_rules(rules)
    for kind, major, minor, access in itertools.product("bc", range(3), range(3), ("r", "wm", "m")):
        assert run(program, kind, major, minor, access) == decide(rules, kind, major, minor, access)


@pytest.mark.parametrize(
    ("device", "allowed"),
    [
        (("c", 1, 3, "rw"), True),
        (("c", 5, 0, "rw"), True),
        (("c", 5, 2, "rw"), True),
        (("c", 136, 7, "rw"), True),
        (("c", 10, 200, "r"), True),
        (("c", 10, 201, "r"), False),
        (("b", 8, 0, "r"), False),
        (("b", 8, 0, "m"), True),
        (("b", 8, 0, "rm"), False),
        (("c", 1, 1, "r"), False),
        (("c", 1, 9, "r"), True),
    ],
)
def test_a_config_allows_its_devices_and_no_other(
    device: tuple[str, int, int, str], allowed: bool
) -> None:
    config = Config(
        namespaces=Namespaces(user=False),
        devices=[Device("/dev/tun", "c", 10, 200)],
        mounts=[Mount("/dev/urandom", "/x", "bind", nodev=False), Mount.bind("/dev/mem", "/y")],
    )
    assert run(compile_rules(rules_of(config)), *device) == allowed


# OCI ------------------------------------------------------------------------------------------

DENY_ALL = {"allow": False, "access": "rwm"}


def opens(rules: list[dict[str, object]], *device: str | int) -> bool:
    config = Config(device_rules=rules_from_oci(rules), resources=Resources())
    kind, major, minor, access = device
    return run(compile_rules(rules_of(config)), str(kind), int(major), int(minor), str(access))


def test_rules_of_oci_are_added_to_what_every_container_may_open() -> None:
    rules = [DENY_ALL, {"allow": True, "type": "b", "major": 8, "minor": -1, "access": "r"}]
    assert opens(rules, "b", 8, 3, "r")
    assert not opens(rules, "b", 8, 3, "rw")
    assert not opens(rules, "b", 9, 3, "r")
    assert opens(rules, "b", 9, 3, "m")
    assert opens(rules, "c", 1, 3, "rw")
    assert opens([], "c", 1, 3, "rw")
    assert not opens([], "b", 8, 3, "r")


def test_the_last_rule_that_fits_decides() -> None:
    everything: dict[str, object] = {"allow": True, "type": "a", "access": "rwm"}
    disk: dict[str, object] = {"allow": False, "type": "b", "major": 8}
    assert opens([everything], "b", 8, 0, "rw")
    assert not opens([everything, disk], "b", 8, 0, "r")
    assert opens([everything, disk], "b", 9, 0, "rw")
    assert opens([disk, everything], "b", 8, 0, "rw")


def test_rights_to_the_same_node_add_up_until_they_are_taken() -> None:
    node: dict[str, object] = {"allow": True, "type": "c", "major": 10, "minor": 1}
    read, write = {**node, "access": "r"}, {**node, "access": "w"}
    assert opens([read, write], "c", 10, 1, "rw")
    assert opens([read, {**node, "minor": 2}, write], "c", 10, 1, "rw")
    assert not opens([read, {**node, "allow": False}, write], "c", 10, 1, "rw")


@pytest.mark.parametrize(
    ("device", "field"),
    [
        ({"allow": 1}, "allow"),
        ({"allow": True, "type": "x"}, "type"),
        ({"allow": True, "type": "c", "major": -2}, "major"),
        ({"allow": True, "type": "c", "minor": "3"}, "minor"),
        ({"allow": True, "access": "rx"}, "access"),
    ],
)
def test_a_wrong_rule_is_refused_by_its_place(device: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rules_from_oci([DENY_ALL, device])
    assert caught.value.field == f"linux.resources.devices[1].{field}"


def test_rules_need_a_cgroup_and_root() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(device_rules=[DeviceRule(False)])
    assert caught.value.field == "device_rules"
    refused = [DeviceRule(False), DeviceRule(False, "c", 1, 3)]
    config = Config(device_rules=refused, resources=Resources())
    assert device_program(config, 0)
    with pytest.raises(UnsupportedError) as unsupported:
        device_program(config, 1000)
    assert unsupported.value.field == "device_rules[1]"
    allowed = [DeviceRule(False), DeviceRule(True, "c", 1, 3)]
    assert device_program(Config(device_rules=allowed, resources=Resources()), 1000) == b""


def test_with_a_user_namespace_rules_are_a_program_only_where_they_are_given() -> None:
    config = Config(resources=Resources())
    assert device_program(config, 0) == b""
    assert device_program(Config(resources=Resources(), namespaces=NO_USER), 0)
