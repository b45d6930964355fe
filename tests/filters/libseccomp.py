# SPDX-License-Identifier: Apache-2.0
"""libseccomp as the oracle: the same profile, added to it as runc and crun do."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import tempfile
from collections.abc import Iterable, Sequence

from container import SeccompProfile, SyscallRule
from filters.meaning import value_of

_ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,  # libseccomp's own; the kernel has none
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
}
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_ATTRIBUTE_BAD_ARCHITECTURE = 2
_ATTRIBUTE_OPTIMIZE = 8
_NO_SUCH_NAME = -1


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2")
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    ]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_arch_remove.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    return library


class Libseccomp:
    """Compiles profiles. Raises OSError where there is no libseccomp."""

    def __init__(self) -> None:
        self._library = _load()

    def knows(self, name: str) -> bool:
        """Whether the call is older than this libseccomp."""
        return bool(self._library.seccomp_syscall_resolve_name(name.encode()) != _NO_SUCH_NAME)

    def number(self, name: str, architecture: str) -> int | None:
        """Its number on an architecture; None where it has none, or is not known."""
        token = _ARCHITECTURES[architecture]
        number: int = self._library.seccomp_syscall_resolve_name_arch(token, name.encode())
        return number if number >= 0 else None

    def compile(
        self,
        profile: SeccompProfile,
        rules: Iterable[SyscallRule],
        architectures: Sequence[str],
        *,
        optimize: bool = False,
    ) -> bytes:
        """``struct sock_filter[]``; ``rules``: those for this container, ``optimize``: a binary
        tree. Calls that this libseccomp does not know are left out.
        """
        default = value_of(profile.default_action, profile.default_errno_ret)
        context = self._library.seccomp_init(default)
        assert context
        try:
            # What it calls bad is killed by thread unless one says so.
            self._set(context, _ATTRIBUTE_BAD_ARCHITECTURE, 0x80000000)
            if optimize:
                self._set(context, _ATTRIBUTE_OPTIMIZE, 2)
            self._choose(context, architectures)
            for rule in rules:
                self._add(context, rule, default)
            return self._export(context)
        finally:
            self._library.seccomp_release(context)

    def _set(self, context: int, attribute: int, value: int) -> None:
        assert self._library.seccomp_attr_set(context, attribute, value) == 0

    def _choose(self, context: int, architectures: Sequence[str]) -> None:
        native = self._library.seccomp_arch_native()
        wanted = [_ARCHITECTURES[name] for name in architectures]
        if native not in wanted:  # first: it may have another byte order
            assert self._library.seccomp_arch_remove(context, native) == 0
        for each in wanted:
            if each != native:
                assert self._library.seccomp_arch_add(context, each) == 0

    def _add(self, context: int, rule: SyscallRule, default: int) -> None:
        value = value_of(str(rule.action), rule.errno_ret)
        if value == default:  # refused by it, and left out by runc
            return
        compared = [
            _Comparison(arg.index, _OPERATORS.index(str(arg.op)[9:]) + 1, arg.value, arg.value_two)
            for arg in rule.args
        ]
        array = (_Comparison * len(compared))(*compared)
        for name in rule.names:
            number = self._library.seccomp_syscall_resolve_name(name.encode())
            if number == _NO_SUCH_NAME:
                continue
            status = self._library.seccomp_rule_add_array(
                context, value, number, len(rule.args), array
            )
            assert status == 0, f"libseccomp: {os.strerror(-status)} for {name}"

    def _export(self, context: int) -> bytes:
        with tempfile.TemporaryFile() as file:
            assert self._library.seccomp_export_bpf(context, file.fileno()) == 0
            file.seek(0)
            return file.read()
