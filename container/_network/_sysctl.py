# SPDX-License-Identifier: Apache-2.0
"""Values of ``/proc/sys/net`` in the network namespace of the calling thread."""

from __future__ import annotations

import os
from pathlib import Path

from container._errors import NetworkError

_TOP = "/proc/sys/net"


def read(name: str) -> str | None:
    """None where the kernel has no such thing: no IPv6, or no such interface."""
    try:
        return Path(_TOP, name).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> bool:
    """Whether it was another one before. What the kernel does not have is left out."""
    if read(name) in (value, None):
        return False
    try:
        Path(_TOP, name).write_text(value, encoding="ascii")
    except OSError as error:
        raise NetworkError(f"cannot set net/{name} to {value}: {error.strerror}") from error
    return True


def interfaces(version: int) -> list[str]:
    """Those that have values of their own."""
    try:
        names = os.listdir(f"{_TOP}/ipv{version}/conf")
    except FileNotFoundError:
        return []
    return [name for name in names if name not in ("all", "default")]
