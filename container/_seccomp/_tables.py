# SPDX-License-Identifier: Apache-2.0
"""System calls by name: their numbers, and how wide the kernel takes their arguments.

The data is syscalls.tsv, which .ci/syscall_table.py makes from the kernel's headers.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

X32_BIT = 0x40000000  # arch/x86/include/uapi/asm/unistd.h

_WIDTHS = {"h": 2**16 - 1, "w": 2**32 - 1, ".": 2**64 - 1}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An ABI that a process can call the kernel by."""

    name: str  # its column of the table
    oci: str  # its name in a profile
    audit: int  # AUDIT_ARCH_*, include/uapi/linux/audit.h
    bits: int = 64
    little: bool = True


ARCHITECTURES = {
    each.oci: each
    for each in (
        Architecture("x86_64", "SCMP_ARCH_X86_64", 0xC000003E),
        Architecture("x86", "SCMP_ARCH_X86", 0x40000003, bits=32),
        Architecture("x32", "SCMP_ARCH_X32", 0xC000003E),  # told apart by a bit of the number
        Architecture("aarch64", "SCMP_ARCH_AARCH64", 0xC00000B7),
        Architecture("arm", "SCMP_ARCH_ARM", 0x40000028, bits=32),
        Architecture("riscv64", "SCMP_ARCH_RISCV64", 0xC00000F3),
        Architecture("ppc64le", "SCMP_ARCH_PPC64LE", 0xC0000015),
        Architecture("s390x", "SCMP_ARCH_S390X", 0x80000016, little=False),
    )
}

# What a kernel of the first can also be called by.
FOREIGN = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
}

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def native_architecture(machine: str) -> Architecture | None:
    """Of ``os.uname().machine``; None where there is no table."""
    return ARCHITECTURES.get(f"SCMP_ARCH_{_MACHINES.get(machine, machine).upper()}")


@cache
def _rows() -> tuple[Mapping[str, str], Mapping[str, Mapping[str, int]]]:
    path = os.path.join(os.path.dirname(__file__), "syscalls.tsv")
    with open(path, encoding="ascii") as file:
        lines = [line for line in file.read().splitlines() if not line.startswith("#")]
    head, *rows = (line.split("\t") for line in lines)
    arguments = {row[0]: row[1] if len(row) > 1 else "" for row in rows}
    numbers = {
        column: {row[0]: int(row[index]) for row in rows if len(row) > index and row[index]}
        for index, column in enumerate(head[2:], start=2)
    }
    return arguments, numbers


def known_names() -> Mapping[str, object]:
    """Every call that some architecture has."""
    return _rows()[0]


def numbers_of(architecture: Architecture) -> Mapping[str, int]:
    """Name → number; two names may have one number."""
    return _rows()[1][architecture.name]


def argument_mask(name: str, index: int, architecture: Architecture) -> int:
    """The bits of an argument that the kernel looks at."""
    codes = _rows()[0][name]
    mask = _WIDTHS[codes[index]] if index < len(codes) else 2**64 - 1
    return mask if architecture.bits == 64 else mask & (2**32 - 1)
