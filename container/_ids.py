# SPDX-License-Identifier: Apache-2.0
"""Which host ids the root caller's containers get: ranges of 65536, numbered by ``id >> 16``.

Ranges come from root's entries in /etc/subuid and /etc/subgid, else from the range that systemd
sets aside for containers (524288 to 1879048191, systemd's UIDS-GIDS.md), less what others were
given there. Only ids that exist in the caller's own user namespace count.
"""

import os
import stat
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EPERM
from functools import cache, reduce
from operator import attrgetter
from pathlib import Path

from container._config import LAST_ID, MOST_EXTENTS, IDMapping

RANGE_SIZE = 65536
_CONTAINER_FIRST, _CONTAINER_END = 0x80000 >> 16, 0x70000000 >> 16
_END = 1 << 16


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
    owned: list[list[range]] = []
    foreign: list[range] = []
    for text in subids:
        mine: list[range] = []
        for owner, first, end in parse_subids(text):
            if owner in ("root", "0"):
                mine.append(_whole_slots(first, end))
            else:
                foreign.append(range(first // RANGE_SIZE, -(-end // RANGE_SIZE)))
        owned.append(_merged(mine))
    free = _gaps(_merged(foreign))
    slots = reduce(_common, owned, free) if owned else []
    if not slots:
        slots = _common([range(_CONTAINER_FIRST, _CONTAINER_END)], free)
    slots = _common(slots, [range(1, _END)])  # slot 0 has the host's own users
    for text in id_maps:
        maps = parse_id_map(text)
        mapped = [_whole_slots(m.container_id, m.container_id + m.size) for m in maps]
        slots = _common(slots, _merged(mapped))
    return max(slots, key=len, default=range(0))


# There are tens of thousands of slots and a handful of runs: every program pays for this once.


def _merged(runs: Iterable[range]) -> list[range]:
    """The same slots as runs in order that do not touch each other."""
    merged: list[range] = []
    for run in sorted(filter(None, runs), key=attrgetter("start")):
        if merged and run.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, run.stop))
        else:
            merged.append(run)
    return merged


def _gaps(merged: list[range]) -> list[range]:
    """The slots that are in none of these."""
    starts = (0, *(run.stop for run in merged))
    ends = (*(run.start for run in merged), _END)
    return [range(*gap) for gap in zip(starts, ends, strict=True) if range(*gap)]


def _common(some: list[range], others: list[range]) -> list[range]:
    """The slots that are in both, each in order."""
    common: list[range] = []
    left, right = deque(some), deque(others)
    while left and right:
        both = range(max(left[0].start, right[0].start), min(left[0].stop, right[0].stop))
        if both:
            common.append(both)
        (left if left[0].stop < right[0].stop else right).popleft()
    return common


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


@dataclass(frozen=True, slots=True)
class Ranges:
    """The id maps that an ordinary user may have by newuidmap and newgidmap."""

    maps: tuple[tuple[IDMapping, ...], tuple[IDMapping, ...]]
    programs: tuple[str, str] | None  # None: there are no ranges, or nobody to map them
    lacking: str = ""  # why there are none
    remedy: str = ""  # what to do about that


NO_PROGRAMS = "ranges need newuidmap and newgidmap (Debian's package uidmap)"
_NO_RANGES = "/etc/subuid and /etc/subgid have no ranges for this user"
_GIVE_RANGES = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, as root"


def own_ranges() -> Ranges:
    """The own id as 0, and from 1 on the ranges of subuid(5) and subgid(5) in their order."""
    owners = _own_names()
    maps = tuple(
        stack_ranges(_read(path), owners, own)
        for path, own in (("/etc/subuid", os.geteuid()), ("/etc/subgid", os.getegid()))
    )
    programs = find_map_programs()
    if min(map(len, maps)) == 1:
        return Ranges((maps[0], maps[1]), None, _NO_RANGES, _GIVE_RANGES)
    if programs is None:
        return Ranges((maps[0], maps[1]), None, NO_PROGRAMS, "apt-get install uidmap")
    return Ranges((maps[0], maps[1]), programs)


def _own_names() -> frozenset[str]:
    import pwd  # noqa: PLC0415 - only here

    names = {str(os.geteuid())}
    with suppress(KeyError):
        names.add(pwd.getpwuid(os.geteuid()).pw_name)
    return frozenset(names)


def stack_ranges(text: str, owners: Collection[str], own: int) -> tuple[IDMapping, ...]:
    """The map with ``own`` as 0 and the ranges that the text gives to one of ``owners``."""
    mappings = list(own_id_mapping(own))
    at = 1
    for owner, first, end in parse_subids(text):
        taken = any(first < m.host_id + m.size and m.host_id < end for m in mappings)
        size = min(end, LAST_ID + 1) - first
        if owner in owners and not taken and size > 0 and at + size <= LAST_ID + 1:
            mappings.append(IDMapping(at, first, size))
            at += size
    return tuple(mappings[:MOST_EXTENTS])


def find_map_programs() -> tuple[str, str] | None:
    """newuidmap and newgidmap in the PATH of this process, which they run for."""
    found = []
    for name in ("newuidmap", "newgidmap"):
        paths = (os.path.join(each, name) for each in os.get_exec_path() if os.path.isabs(each))
        path = next((each for each in paths if os.access(each, os.X_OK)), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def map_program(path: str, mappings: Iterable[IDMapping]) -> tuple[str, ...]:
    """How to call such a program; the second string is the pid's place."""
    numbers = (str(n) for m in mappings for n in (m.container_id, m.host_id, m.size))
    return (path, "", *numbers)


def map_hint(program: str, mappings: Iterable[IDMapping], *, groups: bool) -> str | None:
    """Why newuidmap, or for ``groups`` newgidmap, refused these, where that is sure."""
    if "NoNewPrivs:\t1" in _read("/proc/self/status"):
        return "no_new_privs is set, so that no set-user-ID program has its rights"
    lacking = _lacking_rights(program)
    if lacking is not None:
        return lacking
    path, own = ("/etc/subgid", os.getegid()) if groups else ("/etc/subuid", os.geteuid())
    owners = _own_names()
    ranges = [(first, end) for owner, first, end in parse_subids(_read(path)) if owner in owners]
    for m in mappings:
        inside = any(first <= m.host_id and m.host_id + m.size <= end for first, end in ranges)
        if not inside and (m.host_id, m.size) != (own, 1):
            return f"ids from {m.host_id} on, {m.size} of them, are not this user's in {path}"
    return None


def _lacking_rights(program: str) -> str | None:
    try:
        if os.statvfs(program).f_flag & os.ST_NOSUID:
            return "its file system is mounted nosuid, so that it has no rights of its own"
        status = os.stat(program)
        if status.st_mode & stat.S_ISUID and status.st_uid == 0:
            return None
        if "security.capability" in os.listxattr(program):
            return None
    except OSError:
        return None
    return "it is neither set-user-ID root nor has file capabilities: install it anew"


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
