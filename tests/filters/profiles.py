# SPDX-License-Identifier: Apache-2.0
"""Random profiles, and the calls that tell their filters apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from hypothesis import strategies as st

from container import (
    SeccompAction,
    SeccompOperator,
    SeccompProfile,
    SyscallArg,
    SyscallRule,
)
from container._seccomp._tables import Architecture, argument_mask, numbers_of
from filters.emulator import Call

ALL = 2**64 - 1
EDGES = (0, 1, 2, 0x5412, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
WIDE_EDGES = (*EDGES, 2**32, 2**32 + 1, 2**63 - 1, 2**63, ALL - 1, ALL)

actions = st.sampled_from([each for each in SeccompAction if each is not SeccompAction.NOTIFY])
errnos = st.sampled_from([None, 0, 1, 38, 4094])  # libseccomp takes no 4095


def with_errno(action: SeccompAction, errno_ret: int | None) -> int | None:
    return errno_ret if action in (SeccompAction.ERRNO, SeccompAction.TRACE) else None


def width_asked(architecture: Architecture) -> int:
    """libseccomp takes an argument of x32 for one of 32 bits; see test_seccomp_oracle.py."""
    return 2**32 - 1 if architecture.name == "x32" else 2**architecture.bits - 1


def values(width: int) -> st.SearchStrategy[int]:
    edges = [edge for edge in WIDE_EDGES if edge <= width]
    return st.sampled_from(edges) | st.integers(0, width)


@st.composite
def conditions(
    draw: st.DrawFn, width_of: Callable[[int], int], *, masks_hold: bool
) -> list[SyscallArg]:
    """One to three comparisons; ``masks_hold``: what a mask cuts off is not asked for."""
    found = []
    for index in draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)):
        width = width_of(index)
        op = draw(st.sampled_from(SeccompOperator))
        value, second = draw(values(width)), 0
        if op is SeccompOperator.MASKED_EQ:
            second = draw(values(width)) & (value if masks_hold else ALL)
        found.append(SyscallArg(index, value, second, op))
    return found


@st.composite
def any_profiles(draw: st.DrawFn, names: Sequence[str]) -> SeccompProfile:
    """Rules of all kinds, that overlap and contradict each other."""

    def rule() -> SyscallRule:
        action = draw(actions)
        wide = draw(st.booleans())
        some = conditions(lambda _: ALL if wide else 2**32 - 1, masks_hold=False)
        return SyscallRule(
            draw(st.lists(st.sampled_from(names), min_size=1, max_size=4)),
            action,
            draw(st.just([]) | some),
            with_errno(action, draw(errnos)),
        )

    default = draw(actions)
    rules = [rule() for _ in range(draw(st.integers(0, 8)))]
    return SeccompProfile(default, rules, default_errno_ret=with_errno(default, draw(errnos)))


@st.composite
def plain_profiles(
    draw: st.DrawFn, names: Sequence[str], architectures: Sequence[Architecture]
) -> SeccompProfile:
    """Where libseccomp's word is clear: a name has one rule, or several for values of one argument,
    that are those that the kernel can see.
    """
    default = draw(actions)
    errno_ret = with_errno(default, draw(errnos))
    rules = []
    for name in draw(st.lists(st.sampled_from(names), max_size=8, unique=True)):
        action = draw(actions)
        errno = with_errno(action, draw(errnos))

        def width_of(index: int, name: str = name) -> int:
            masks = (argument_mask(name, index, each) for each in architectures)
            return min(*masks, *map(width_asked, architectures))

        one: st.SearchStrategy[list[SyscallArg]] = st.just([]) | conditions(
            width_of, masks_hold=True
        )
        index = draw(st.integers(0, 5))
        several = st.lists(values(width_of(index)), min_size=2, max_size=4, unique=True)
        some = [draw(one)]
        if draw(st.booleans()):
            some = [[SyscallArg(index, value)] for value in draw(several)]
        rules += [SyscallRule([name], action, args, errno) for args in some]
    return SeccompProfile(default, rules, default_errno_ret=errno_ret)


def calls(
    rules: Sequence[SyscallRule],
    architecture: Architecture,
    chance: random.Random,
    count: int = 24,
    more: Sequence[int] = (),
) -> Iterator[Call]:
    """Calls of every number that a rule names, at the edges of every value compared with, and calls
    of ``more`` numbers.
    """
    numbers = numbers_of(architecture)
    width = width_asked(architecture)
    for name in dict.fromkeys(name for rule in rules for name in rule.names):
        if name in numbers:
            compared = [arg for rule in rules if name in rule.names for arg in rule.args]
            for _ in range(count if compared else 1):
                arguments = tuple(value & width for value in _arguments(compared, chance))
                yield Call(numbers[name], architecture.audit, arguments)
    for number in more:
        yield Call(number, architecture.audit)


def _arguments(compared: Sequence[SyscallArg], chance: random.Random) -> list[int]:
    found = [chance.choice(WIDE_EDGES) for _ in range(6)]
    for arg in compared:
        if chance.random() < 0.9:
            nearby = (arg.value - 1, arg.value, arg.value + 1, arg.value_two, arg.value | 1 << 32)
            other = (arg.value_two | ~arg.value, arg.value ^ 1 << chance.randrange(64))
            found[arg.index] = chance.choice((*nearby, *other)) & ALL
    return found


def as_seen(call: Call, name: str, architecture: Architecture) -> Call:
    """The call with the arguments that the kernel takes."""
    arguments = tuple(
        argument & argument_mask(name, index, architecture)
        for index, argument in enumerate(call.arguments)
    )
    return Call(call.number, call.architecture, arguments)
