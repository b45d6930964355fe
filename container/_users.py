# SPDX-License-Identifier: Apache-2.0
"""Names of users and groups, from the text of an image's own files. Pure.

The files are an image's, which may be hostile: passwd(5) and group(5) are read strictly, the NSS
of the host is never asked. A number stays that number whatever the files say; a name that they
give no plain id to is refused, and so is one other than root that they make root.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from container._config import MAX_GROUPS, parse_id, parse_user
from container._errors import ConfigError

Read = Callable[[str], str | None]
"""The text of ``/etc/passwd`` or ``/etc/group``, None where there is none; or `ConfigError`."""

PASSWD, GROUP = "/etc/passwd", "/etc/group"


@dataclass(frozen=True, slots=True)
class Account:
    """Who a process is inside: ``groups`` are the supplementary ones that the files give."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str | None


def find_account(user: int | str, read: Read, field: str = "user") -> Account:
    """What ``user`` stands for in an image.

    A name without a group gets its primary and its supplementary groups from the files; a number
    without a group gets group 0. `ConfigError` with ``field`` where a name leads to no plain id.
    """
    who, group = parse_user(user, field)
    if isinstance(who, str):
        uid, gid, home = _find_user(who, read, field)
    else:
        uid, gid, home = who, 0, _home_of(who, read)
    groups: tuple[int, ...] = ()
    if isinstance(group, str):
        gid = _find_group(group, read, field)
    elif group is not None:
        gid = group
    elif isinstance(who, str):
        groups = _groups_with(who, read, field)
    return Account(uid, gid, groups, home)


def _entries(text: str, size: int) -> Iterator[list[str]]:
    """The fields of each line; ``[name]`` where their number is wrong."""
    for line in text.split("\n"):
        fields = line.split(":")
        yield fields if len(fields) == size else fields[:1]


def _find_user(name: str, read: Read, field: str) -> tuple[int, int, str | None]:
    # The first entry counts, as for getpwnam(3), be it good or not.
    for entry in _entries(_text(name, PASSWD, read, field), 7):
        if entry[0] != name:
            continue
        if len(entry) != 7:
            raise ConfigError(f"the line of {name!r} in {PASSWD} has not 7 fields", field=field)
        uid = _number(entry[2], f"user {name!r}", PASSWD, field)
        if uid == 0 and name != "root":
            raise ConfigError(
                f"{PASSWD} makes {name!r} root; write 0 where that is meant", field=field
            )
        return uid, _number(entry[3], f"user {name!r}", PASSWD, field), _home(entry[5])
    raise ConfigError(f"no user {name!r} in {PASSWD} of the container's root", field=field)


def _find_group(name: str, read: Read, field: str) -> int:
    for entry in _entries(_text(name, GROUP, read, field), 4):
        if entry[0] != name:
            continue
        if len(entry) != 4:
            raise ConfigError(f"the line of {name!r} in {GROUP} has not 4 fields", field=field)
        gid = _number(entry[2], f"group {name!r}", GROUP, field)
        if gid == 0 and name != "root":
            raise ConfigError(
                f"{GROUP} makes {name!r} group 0; write 0 where that is meant", field=field
            )
        return gid
    raise ConfigError(f"no group {name!r} in {GROUP} of the container's root", field=field)


def _groups_with(name: str, read: Read, field: str) -> tuple[int, ...]:
    """Of the groups that have this member, in the order of the file."""
    found: dict[int, None] = {}
    for entry in _entries(read(GROUP) or "", 4):
        if len(entry) == 4 and name in entry[3].split(","):
            found[_number(entry[2], f"group {entry[0][:32]!r}", GROUP, field)] = None
    if len(found) >= MAX_GROUPS:
        raise ConfigError(f"{GROUP} has {name!r} in more groups than are possible", field=field)
    return tuple(found)


def _home_of(uid: int, read: Read) -> str | None:
    """Of the first user with this id. A number needs no file: a bad one only gives no home."""
    try:
        text = read(PASSWD) or ""
    except ConfigError:
        return None
    for entry in _entries(text, 7):
        if len(entry) == 7 and entry[2] == str(uid):
            return _home(entry[5])
    return None


def _home(text: str) -> str | None:
    return text if text.startswith("/") and "\0" not in text else None


def _text(name: str, path: str, read: Read, field: str) -> str:
    text = read(path)
    if text is None:
        raise ConfigError(
            f"{name!r} is a name, and the container's root has no {path}; write a number",
            field=field,
        )
    return text


def _number(text: str, whose: str, path: str, field: str) -> int:
    try:
        return parse_id(text, field)
    except ConfigError:
        raise ConfigError(
            f"{whose} has {text[:32]!r} in {path}, which is no id from 0 to 4294967294",
            field=field,
        ) from None
