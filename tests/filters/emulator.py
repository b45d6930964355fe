# SPDX-License-Identifier: Apache-2.0
"""Classic BPF as the kernel runs it for seccomp; test_seccomp_oracle.py holds it to the kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

NO_ARGUMENTS = (0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Call:
    """``struct seccomp_data``, less the instruction pointer."""

    number: int
    architecture: int
    arguments: tuple[int, ...] = NO_ARGUMENTS

    def words(self, *, little: bool) -> list[int]:
        order = "<" if little else ">"
        data = struct.pack(f"{order}II7Q", self.number, self.architecture, 0, *self.arguments)
        return list(struct.unpack(f"{order}16I", data))


Instruction = tuple[int, int, int, int]  # code, jt, jf, k


def decode(program: bytes, *, little: bool = True) -> list[Instruction]:
    return list(struct.iter_unpack("<HBBI" if little else ">HBBI", program))


def run(program: Sequence[Instruction], call: Call, *, little: bool = True) -> int:
    """The value that the filter returns. Jumps only lead on, so it ends."""
    words = call.words(little=little)
    accumulator = at = 0
    while True:
        code, yes, no, constant = program[at]
        at += 1
        if code == 0x20:  # load a word
            accumulator = words[constant // 4]
        elif code == 0x54:  # and
            accumulator &= constant
        elif code == 0x05:  # jump
            at += constant
        elif code == 0x06:  # return
            return constant
        else:
            at += yes if _compare(code, accumulator, constant) else no


def _compare(code: int, left: int, right: int) -> bool:
    if code == 0x15:
        return left == right
    if code == 0x25:
        return left > right
    if code == 0x35:
        return left >= right
    if code == 0x45:
        return left & right != 0
    raise AssertionError(f"no instruction of a filter of ours or of libseccomp: {code:#x}")
