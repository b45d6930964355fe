# SPDX-License-Identifier: Apache-2.0
"""Device rules as eBPF, run by an emulator of the few instructions that they take."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container import Config, Device, Mount, Namespaces
from container._device_rules import DeviceRule, compile_rules, rules_of

TYPES = {"b": 1, "c": 2}
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
