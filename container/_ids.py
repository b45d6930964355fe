# SPDX-License-Identifier: Apache-2.0
"""Which host ids the root caller's containers get: ranges of 65536, numbered by ``id >> 16``.

Ranges come from root's entries in /etc/subuid and /etc/subgid, else from the range that systemd
sets aside for containers (524288 to 1879048191, systemd's UIDS-GIDS.md), less what others were
given there. Only ids that exist in the caller's own user namespace count.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from errno import EPERM
from functools import cache
from pathlib import Path

from container._config import IDMapping

RANGE_SIZE = 65536
_CONTAINER_FIRST, _CONTAINER_END = 0x80000 >> 16, 0x70000000 >> 16


def parse_subids(text: str) -> Iterator[tuple[str, int, int]]:
    """(owner, first, end) for each line of subuid(5); lines that are none are left out."""
    for line in text.splitlines():
        fields = line.split(":")
        if (
            len(fields) == 3
            and not fields[0].startswith("#")
            and fields[1].isdecimal()
            and fields[2].isdecimal()
        ):
            yield fields[0], int(fields[1]), int(fields[1]) + int(fields[2])


def parse_id_map(text: str) -> list[IDMapping]:
    """/proc/PID/uid_map, user_namespaces(7)."""
    return [IDMapping(*map(int, line.split())) for line in text.splitlines()]


def _whole_slots(first: int, end: int) -> range:
    return range(-(-first // RANGE_SIZE), end // RANGE_SIZE)


def find_slots(subids: Iterable[str], id_maps: Iterable[str]) -> range:
    """The longest run of slots that may be leased, given the texts of the files; may be empty."""
    owned: list[set[int]] = []
    foreign: set[int] = set()
    for text in subids:
        mine: set[int] = set()
        for owner, first, end in parse_subids(text):
            if owner in ("root", "0"):
                mine.update(_whole_slots(first, end))
            else:
                foreign.update(range(first // RANGE_SIZE, -(-end // RANGE_SIZE)))
        owned.append(mine)
    slots = set.intersection(*owned) - foreign if owned else set()
    if not slots:
        slots = set(range(_CONTAINER_FIRST, _CONTAINER_END)) - foreign
    slots.discard(0)  # the host's own users
    for text in id_maps:
        mapped = [_whole_slots(m.container_id, m.container_id + m.size) for m in parse_id_map(text)]
        slots = {slot for slot in slots if any(slot in run for run in mapped)}
    return _longest_run(sorted(slots))


def _longest_run(slots: list[int]) -> range:
    best = current = range(0)
    for slot in slots:
        current = range(current.start, slot + 1) if slot == current.stop else range(slot, slot + 1)
        best = max(best, current, key=len)
    return best


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def available_slots() -> range:
    """The slots of this process, from the files of the host."""
    return _slots_in(os.readlink("/proc/self/ns/user"))


@cache
def _slots_in(user_namespace: str) -> range:
    return find_slots(
        (_read("/etc/subuid"), _read("/etc/subgid")),
        (_read("/proc/self/uid_map"), _read("/proc/self/gid_map")),
    )


def can_lease() -> bool:
    return len(available_slots()) > 0


def range_mapping(slot: int) -> tuple[IDMapping, ...]:
    """The container's ids 0 to 65535 on the host ids of a slot."""
    return (IDMapping(0, slot * RANGE_SIZE, RANGE_SIZE),)


def own_id_mapping(host_id: int) -> tuple[IDMapping, ...]:
    """The one mapping that needs no privilege: the caller's own id is root inside."""
    return (IDMapping(0, host_id, 1),)


def to_host(container_id: int, mappings: Iterable[IDMapping]) -> int:
    """The caller's id for one of the container; the same without mappings."""
    for m in mappings:
        if m.container_id <= container_id < m.container_id + m.size:
            return m.host_id + container_id - m.container_id
    return container_id


def maps_host_root() -> bool:
    """Whether id 0 of this process may be the machine's root.

    The maps tell of the parent user namespace only, and that may be a container's. But the files of
    /proc/sys/kernel are the machine's root's, whoever looks: its own where its id shows as 0.
    """
    maps = (parse_id_map(_read(f"/proc/self/{kind}_map")) for kind in ("uid", "gid"))
    if not any(m.container_id == 0 and m.host_id == 0 for each in maps for m in each):
        return False
    try:
        status = os.stat("/proc/sys/kernel")
    except OSError:
        return True
    return 0 in (status.st_uid, status.st_gid)


def lock_file() -> str:
    """Where leases are locked, one byte per slot; the directory is made, for root only."""
    directory = "/run/container"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise PermissionError(EPERM, "must be a directory that only root can write", directory)
    return f"{directory}/ids.lock"
