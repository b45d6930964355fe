# SPDX-License-Identifier: Apache-2.0
"""Namespaces that a container shares with others: found, opened, and of the kind that was asked.

What is opened is an fd of the namespace itself: it is the same one from here to the start, whoever
ends meanwhile. That of a container is opened by the pid of a process that lives before and after.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from container._config import NAMESPACE_FLAGS, Config, IDMapping, Join
from container._errors import ConfigError, StateError, UnsupportedError, launch_error
from container._ids import RANGE_SIZE, parse_id_map
from container._launcher import above_stdio, wait_readable

_NS_GET_USERNS, _NS_GET_NSTYPE = 0xB701, 0xB703  # include/uapi/linux/nsfs.h
_ENDED = "the container whose namespaces are to be shared has ended"
_PATIENCE = 1.0  # seconds, in which who is dying dies
_NAMES = {flag: name for name, flag in NAMESPACE_FLAGS.items()}


def _field(name: str, join: Join) -> str:
    source = "container" if join.container is not None else "fd" if join.fd is not None else "path"
    return f"namespaces.{name}.{source}"


@contextmanager
def open_joined(joined: Iterable[tuple[str, Join]]) -> Iterator[list[int]]:
    """Fds of the namespaces, in their order."""
    with ExitStack() as stack:
        fds = []
        for name, join in joined:
            fd = _open(name, join)
            stack.callback(os.close, fd)
            fds.append(fd)
        yield fds


def in_order(joined: Mapping[str, Join]) -> tuple[tuple[str, Join], ...]:
    """As they can be joined. Who has joined a user namespace has rights in that one only: root had
    them in all before, anybody else in none.
    """
    names = sorted(joined, key=lambda name: (name == "user") == (os.geteuid() == 0))
    return tuple((name, joined[name]) for name in names)


def _open(name: str, join: Join) -> int:
    if join.container is not None:
        fd = _open_of_container(name, join)
    else:
        where = join.fd if join.fd is not None else str(join.path)
        try:
            fd = os.dup(where) if isinstance(where, int) else _open_path(where)
        except OSError as error:
            raise launch_error(
                "join", error.errno, f"cannot open the {name} namespace", error.filename
            ) from None
    try:
        fd = above_stdio(fd)
        _check_kind(fd, name, join)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_path(path: str) -> int:
    # Not what a fifo or a device would take for an open.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _open_of_container(name: str, join: Join) -> int:
    box = join.container
    pid, pidfd = (box.pid, box.pidfd) if box is not None else (None, None)
    if pid is None or pidfd is None:
        raise StateError("the container whose namespaces are to be shared does not run")
    try:
        fd = _open_path(f"/proc/{pid}/ns/{name}")
    except OSError as error:
        # One that dies may refuse it before it is dead.
        if isinstance(error, FileNotFoundError) or wait_readable(pidfd, _PATIENCE):
            raise StateError(_ENDED) from None
        detail = f"cannot open the {name} namespace of the container"
        raise launch_error("join", error.errno, detail, error.filename) from None
    if wait_readable(pidfd, 0):  # it may be that of a later process with this number
        os.close(fd)
        raise StateError(_ENDED)
    return fd


def _check_kind(fd: int, name: str, join: Join) -> None:
    try:
        kind = ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EBADF):
            raise
        raise ConfigError("is no namespace", field=_field(name, join)) from None
    if kind != NAMESPACE_FLAGS[name]:
        found = _NAMES.get(kind, "another")
        raise ConfigError(f"is a namespace of kind {found}, not {name}", field=_field(name, join))


def owns_pids() -> bool:
    """Whether the caller's PID namespace belongs to its user namespace, or one that it is above."""
    fd = _open_path("/proc/self/ns/pid")
    try:
        os.close(ioctl(fd, _NS_GET_USERNS))
    except PermissionError:
        return False
    finally:
        os.close(fd)
    return True


def refuse_own_pids(joined: Sequence[tuple[str, Join]], fds: Sequence[int]) -> None:
    """A PID namespace of the caller's own user namespace cannot be entered to mount its procfs:
    who is in there may have the ids of the launcher, and could stop it there (csrc/procfs.c).
    """
    for (name, join), fd in zip(joined, fds, strict=True):
        if name != "pid":
            continue
        if os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/pid")):
            raise ConfigError("is the caller's own: False", field=_field(name, join))
        owner = ioctl(fd, _NS_GET_USERNS)
        try:
            own = os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        finally:
            os.close(owner)
        if own:
            raise UnsupportedError(
                "belongs to the caller's own user namespace: namespaces.user=False can share it",
                field=_field(name, join),
            )


# A user namespace --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inhabitants:
    """What a user namespace that is shared says of ids."""

    maps: tuple[tuple[IDMapping, ...], tuple[IDMapping, ...]]
    may_set_groups: bool


def look_at_user_namespace(config: Config) -> Inhabitants:
    """By a process that lives in there; `UnsupportedError` where none does."""
    join = config.namespaces.joined()["user"]
    with open_joined([("user", join)]) as (fd,):
        status = os.fstat(fd)
        link = os.readlink("/proc/self/ns/user")
        if os.path.samestat(status, os.stat("/proc/self/ns/user")):
            raise ConfigError(f"{link} is the caller's own: False", field=_field("user", join))
        known = join.container.pid if join.container is not None else None
        for pid in [known] if known is not None else _pids():
            try:
                found = _read(pid)
                if os.path.samestat(status, os.stat(f"/proc/{pid}/ns/user")):
                    return found
            except OSError:
                continue
    if join.container is not None:
        raise StateError(_ENDED)
    raise UnsupportedError(
        "no process that can be seen lives in it, to tell its ids", field=_field("user", join)
    )


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(pid: int) -> Inhabitants:
    """Of a process that is there before and after: else what is read is of nobody's."""
    uids, gids, setgroups = (
        Path(f"/proc/{pid}/{name}").read_text(encoding="ascii")
        for name in ("uid_map", "gid_map", "setgroups")
    )
    maps = (tuple(parse_id_map(uids)), tuple(parse_id_map(gids)))
    return Inhabitants(maps, setgroups.strip() == "allow")


def slot_of(maps: Sequence[Sequence[IDMapping]]) -> int:
    """The slot of a range that root leased, 0 for other maps; see `container._ids`."""
    first = maps[0][0] if maps[0] else None
    whole = first is not None and (first.container_id, first.size) == (0, RANGE_SIZE)
    if first is None or not whole or first.host_id % RANGE_SIZE or tuple(maps[0]) != tuple(maps[1]):
        return 0
    return first.host_id // RANGE_SIZE if len(maps[0]) == 1 else 0
