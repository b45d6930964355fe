# SPDX-License-Identifier: Apache-2.0
"""What a profile says of one call, read off its rules one by one, without a compiler."""

from __future__ import annotations

from collections.abc import Iterable

from container import SeccompProfile, SyscallArg, SyscallRule
from container._seccomp._compiler import _MULTIPLEXED
from container._seccomp._tables import Architecture, argument_mask, numbers_of

# From the strictest on.
ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
ENOSYS = 0x00050000 | 38
LENIENT = {"SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_LOG", "SCMP_ACT_ALLOW"}


def value_of(action: str, data: int | None) -> int:
    value = ACTIONS[action]
    if action in {"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"}:
        value |= 1 if data is None else data
    return value


def holds(arg: SyscallArg, argument: int, width: int) -> bool:
    """Whether the comparison is true of what the kernel takes of the argument."""
    left, right = argument & width, arg.value
    if arg.op == "SCMP_CMP_MASKED_EQ":
        return left & arg.value == arg.value_two & width
    if arg.op in {"SCMP_CMP_EQ", "SCMP_CMP_NE"}:
        return (left == right & width) == (arg.op == "SCMP_CMP_EQ")
    negative = right | width == 2**64 - 1 and bool(right & (width + 1) // 2)
    right = right & width if negative else right
    return {
        "SCMP_CMP_LT": left < right,
        "SCMP_CMP_LE": left <= right,
        "SCMP_CMP_GE": left >= right,
        "SCMP_CMP_GT": left > right,
    }[str(arg.op)]


def verdict(
    profile: SeccompProfile,
    rules: Iterable[SyscallRule],
    architecture: Architecture,
    number: int,
    arguments: tuple[int, ...],
) -> int:
    """Of a call by an ABI that the profile is for; ``rules``: those for this container."""
    names = {name for name, known in numbers_of(architecture).items() if known == number}
    if not names and profile.default_action not in LENIENT:
        return ENOSYS
    met = [
        rule
        for rule in rules
        for name in names & set(rule.names)
        if all(
            holds(arg, arguments[arg.index], argument_mask(name, arg.index, architecture))
            for arg in rule.args
        )
    ]
    if not met:
        return value_of(profile.default_action, profile.default_errno_ret)
    strictest = min(met, key=lambda rule: list(ACTIONS).index(str(rule.action)))
    return value_of(str(strictest.action), strictest.errno_ret)


def multiplexed_names() -> list[str]:
    """Calls that can be made through another, and those others."""
    return [*_MULTIPLEXED, "socketcall", "ipc"]
