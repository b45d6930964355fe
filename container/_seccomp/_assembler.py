# SPDX-License-Identifier: Apache-2.0
"""Classic BPF as seccomp(2) takes it, put together from its end. Pure.

What a jump leads to is there before the jump is: every target is known, every distance final.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

# include/uapi/linux/bpf_common.h
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_RETURN = 0x06  # BPF_RET | BPF_K
JUMP_EQUAL = 0x15
JUMP_GREATER = 0x25
JUMP_GREATER_EQUAL = 0x35
JUMP_ANY_BIT = 0x45

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_FAR = 250  # a jump has 8 bits, and another instruction may come between
# Loading a filter, the kernel goes through it once for every call that it has, and compiles it: an
# instruction costs as much as some hundred steps of that.
_STEPS_PER_INSTRUCTION = 112
_MOST_EXCEPTIONS = 6

Label = int


@dataclass(frozen=True, slots=True)
class Segment:
    """Numbers from ``start`` up to the next one's lead to ``label``; ``weight`` of them are asked
    for.
    """

    start: int
    label: Label
    weight: int = 1


class Assembler:
    """A label is the number of instructions from its own to the end."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._returns: dict[int, Label] = {}

    def __len__(self) -> int:
        return len(self._code)

    def encode(self, *, little: bool) -> bytes:
        """``struct sock_filter[]`` in the byte order of the machine that runs it."""
        pack = struct.Struct("<HBBI" if little else ">HBBI").pack
        return b"".join(pack(*instruction) for instruction in reversed(self._code))

    def _put(self, code: int, constant: int, yes: int = 0, no: int = 0) -> Label:
        self._code.append((code, yes, no, constant))
        return len(self._code)

    def ret(self, value: int) -> Label:
        """End with this verdict; one instruction serves all that can reach it."""
        label = self._returns.get(value)
        if label is None:
            label = self._returns[value] = self._put(_RETURN, value)
        return label

    def load(self, offset: int) -> Label:
        """The 32-bit word at this offset of ``struct seccomp_data``, for what is next."""
        return self._put(_LOAD, offset)

    def mask(self, bits: int) -> Label:
        """Keep only these bits of what was loaded."""
        return self._put(_AND, bits)

    def jump(self, code: int, constant: int, yes: Label, no: Label) -> Label:
        """Compare what was loaded; both targets may be anywhere behind."""
        if yes == no:  # there, whatever it is: what is put before this falls through to it
            return self._near(yes, 0)
        yes = self._near(yes)
        no = self._near(no)
        at = len(self._code)
        return self._put(code, constant, at - yes, at - no)

    def _near(self, label: Label, far: int = _FAR) -> Label:
        if len(self._code) - label <= far:
            return label
        code, _, _, value = self._code[label - 1]
        if code == _RETURN:  # a copy is as long as a jump, and quicker
            self._returns[value] = self._put(_RETURN, value)
            return self._returns[value]
        return self._put(_JUMP, len(self._code) - label)

    def tree(self, segments: Sequence[Segment]) -> Label:
        """Find the segment that what was loaded lies in; the first begins at 0."""
        return self._near(self._subtree(_grouped(segments)), 0)

    def _subtree(self, groups: Sequence[Sequence[Segment]]) -> Label:
        if len(groups) > 1:
            middle = _middle(groups)
            upper = self._subtree(groups[middle:])
            lower = self._subtree(groups[:middle])
            return self.jump(JUMP_GREATER_EQUAL, groups[middle][0].start, upper, lower)
        (group,) = groups
        label = group[0].label
        for single in group[-2::-2]:
            label = self.jump(JUMP_EQUAL, single.start, single.label, label)
        return label


def _grouped(segments: Sequence[Segment]) -> list[Sequence[Segment]]:
    """Cut them into runs that lead to one label but for single numbers.

    A single number costs one comparison within a run, which all of the run go through, and two
    between runs; found are the runs that cost least in all.
    """
    costs = [0]
    cuts = [0]
    for end in range(1, len(segments) + 1):
        best = (costs[end - 1] + _STEPS_PER_INSTRUCTION, end - 1)
        begin, weight = end - 3, segments[end - 1].weight
        while begin >= max(0, end - 1 - 2 * _MOST_EXCEPTIONS) and _continues(segments, begin):
            weight += segments[begin].weight + segments[begin + 1].weight
            exceptions = (end - begin) // 2
            cost = (1 + exceptions) * _STEPS_PER_INSTRUCTION + exceptions * weight * 3 // 4
            best = min(best, (costs[begin] + cost, begin))
            begin -= 2
        costs.append(best[0])
        cuts.append(best[1])
    groups: list[Sequence[Segment]] = []
    end = len(segments)
    while end > 0:
        groups.append(segments[cuts[end] : end])
        end = cuts[end]
    return groups[::-1]


def _middle(groups: Sequence[Sequence[Segment]]) -> int:
    """Where to cut them so that both sides are asked for as often as the other."""
    weights = [sum(segment.weight for segment in group) for group in groups]
    total, before = sum(weights), accumulate(weights[:-1])
    return min((abs(total - 2 * weight), at) for at, weight in enumerate(before, start=1))[1]


def _continues(segments: Sequence[Segment], at: int) -> bool:
    """Whether the run that begins two segments on could begin here."""
    first, single, second = segments[at : at + 3]
    return first.label == second.label and single.start + 1 == second.start
