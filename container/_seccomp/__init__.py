# SPDX-License-Identifier: Apache-2.0
"""Seccomp: profiles as dataclasses and JSON, and a compiler of its own. Pure.

A profile (_profile.py, _json.py, _default.py) becomes for one machine and one set of capabilities a
filter (_compiler.py), by the numbers of syscalls.tsv (_tables.py).
"""

from container._seccomp._profile import (
    SeccompAction,
    SeccompFlag,
    SeccompOperator,
    SeccompProfile,
    SyscallArg,
    SyscallCondition,
    SyscallRule,
)

__all__ = [
    "SeccompAction",
    "SeccompFlag",
    "SeccompOperator",
    "SeccompProfile",
    "SyscallArg",
    "SyscallCondition",
    "SyscallRule",
]
