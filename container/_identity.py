# SPDX-License-Identifier: Apache-2.0
"""Which ids a container has: its id maps, and the user and groups of a process among them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from container import _ids
from container._config import MAX_GROUPS, Config, IDMapping, Process
from container._errors import ConfigError, UnsupportedError
from container._launcher import Maps, StartFlag
from container._shared import Inhabitants, slot_of
from container._users import Account


@dataclass(frozen=True, slots=True)
class Identity:
    """Which ids of the host the container has, and what follows for its set-up."""

    maps: Maps  # none where a range is leased
    flags: StartFlag
    idmap: bool
    known: Maps  # as `maps`; for a lease, with ids that say how many there are
    by_fd: bool  # the launcher, as root, copies the sources
    programs: tuple[Sequence[str], Sequence[str]] = ((), ())  # that write the maps
    lacking: str = ""  # why there are no other ids


_SINGLE = StartFlag.FRESH_USER | StartFlag.DENY_SETGROUPS


def identify(config: Config, ranges: _ids.Ranges | None = None) -> Identity:
    """Choose the id maps by design: a root caller is never mapped unless it says so itself.

    ``ranges`` are those of an ordinary user for a process that needs more than one id.
    """
    root = os.geteuid() == 0
    if not config.namespaces.user:
        flags = StartFlag.SET_GROUPS | StartFlag.PRIVATE
        return Identity(((), ()), flags, False, ((), ()), root)
    if config.uid_mappings:
        return _given_identity(config, root)
    if root and _ids.can_lease():
        any_range = _ids.range_mapping(0)
        flags = StartFlag.FRESH_USER | StartFlag.SET_GROUPS | StartFlag.LEASE
        return Identity(((), ()), flags, True, (any_range, any_range), True)
    if root and _ids.maps_host_root():
        raise UnsupportedError(
            "no 65536 ids are free for a container here, and host root is never mapped by"
            " itself; give uid_mappings and gid_mappings",
            field="namespaces.user",
        )
    if ranges is not None and ranges.programs is not None:
        return _mapped_by_program(ranges.maps, ranges.programs)
    maps = (_ids.own_id_mapping(os.geteuid()), _ids.own_id_mapping(os.getegid()))
    lacking = "" if ranges is None else ranges.lacking
    return Identity(maps, _SINGLE, False, maps, False, lacking=lacking)


def shared_identity(found: Inhabitants) -> Identity:
    """Of a container in the user namespace of another, whose ids are mapped already."""
    root = os.geteuid() == 0
    flags = StartFlag.SET_GROUPS if found.may_set_groups else StartFlag.DENY_SETGROUPS
    # Where root leased the range, files of host root are to show as root's there too.
    idmap = root and slot_of(found.maps) > 0
    return Identity(found.maps, flags | StartFlag.FRESH_USER, idmap, found.maps, root)


def _given_identity(config: Config, root: bool) -> Identity:
    maps = (config.uid_mappings, config.gid_mappings)
    for name, mappings in zip(("uid_mappings", "gid_mappings"), maps, strict=True):
        if not has_id(0, mappings):
            raise UnsupportedError("container id 0 must be mapped", field=name)
    if root:
        return Identity(maps, StartFlag.FRESH_USER | StartFlag.SET_GROUPS, False, maps, True)
    if maps == (_ids.own_id_mapping(os.geteuid()), _ids.own_id_mapping(os.getegid())):
        return Identity(maps, _SINGLE, False, maps, False)
    programs = _ids.find_map_programs()
    if programs is None:
        raise UnsupportedError(
            f"without root only the own id can be mapped by itself; {_ids.NO_PROGRAMS}",
            field="uid_mappings",
        )
    return _mapped_by_program(maps, programs)


def _mapped_by_program(maps: Maps, programs: tuple[str, str]) -> Identity:
    """The own id alone needs no program, but for users one that leaves groups to be set."""
    own_group = tuple(maps[1]) == _ids.own_id_mapping(os.getegid())
    vectors = (
        _ids.map_program(programs[0], maps[0]),
        () if own_group else _ids.map_program(programs[1], maps[1]),
    )
    flags = StartFlag.DENY_SETGROUPS if own_group else StartFlag.SET_GROUPS
    flags |= StartFlag.FRESH_USER | StartFlag.MAP_BY_PROGRAM
    return Identity(maps, flags, False, maps, False, vectors)


def needs_ranges(account: Account, process: Process) -> bool:
    """Whether a container with a single id could not have this process."""
    return bool(account.uid or account.gid or process.groups)


def has_id(container_id: int, mappings: Sequence[IDMapping]) -> bool:
    return any(m.container_id <= container_id < m.container_id + m.size for m in mappings)


def groups_of(process: Process, account: Account, identity: Identity) -> Sequence[int]:
    """The supplementary groups to set; `ConfigError` for an id that the container has not."""
    uids, gids = identity.known
    single = bool(identity.flags & StartFlag.DENY_SETGROUPS)
    given = () if single else account.groups  # with a single id they could mean nothing
    if identity.flags & StartFlag.FRESH_USER:
        wanted = [("user", account.uid, uids), ("user", account.gid, gids)]
        wanted += [(f"groups[{i}]", group, gids) for i, group in enumerate(process.groups)]
        wanted += [("user", group, gids) for group in given]
        for field, number, mappings in wanted:
            if not has_id(number, mappings):
                reason = f": {identity.lacking}" if identity.lacking else ""
                raise ConfigError(
                    f"id {number} is not mapped into this container's user namespace{reason}",
                    field=field,
                )
    if single:
        if process.groups:
            raise UnsupportedError(
                "groups cannot be set in a container with a single group id (setgroups(2) is"
                " denied)",
                field="groups",
            )
        return ()
    # The primary group among them: a file that denies it must deny it however it is checked.
    groups = tuple(dict.fromkeys((account.gid, *given, *process.groups)))
    if len(groups) > MAX_GROUPS:
        raise ConfigError(f"at most {MAX_GROUPS} with those of the user", field="groups")
    return groups
