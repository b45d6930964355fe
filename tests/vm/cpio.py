# SPDX-License-Identifier: Apache-2.0
"""Writes an initramfs: a cpio archive of the "newc" kind (kernel: early-userspace/buffer-format).

Pure: the same entries give the same bytes.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Entry:
    """One file (or symbolic link, by its mode) of the archive, owned by root.

    `path` is relative; missing parent directories are added with mode 0755.
    """

    path: str
    data: bytes
    mode: int = stat.S_IFREG | 0o644


def link(path: str, target: str) -> Entry:
    """A symbolic link at `path` that points to `target`."""
    return Entry(path, target.encode(), stat.S_IFLNK | 0o777)


def directory(path: str) -> Entry:
    """An empty directory."""
    return Entry(path, b"", stat.S_IFDIR | 0o755)


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive that holds `entries`, parents before their children."""
    out = bytearray()
    for number, entry in enumerate(_with_parents(entries), start=1):
        out += _record(entry, number)
    return bytes(out + _record(Entry("TRAILER!!!", b"", 0), 0))


def _with_parents(entries: Iterable[Entry]) -> list[Entry]:
    found: dict[str, Entry] = {}
    for entry in entries:
        for parent in reversed(PurePosixPath(entry.path).parents[:-1]):
            found.setdefault(str(parent), directory(str(parent)))
        found[entry.path] = entry
    return list(found.values())


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    owner, devices, checksum = (0, 0), (0, 0, 0, 0), 0
    fields = (inode, entry.mode, *owner, 1, 0, len(entry.data), *devices, len(name), checksum)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
