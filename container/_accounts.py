# SPDX-License-Identifier: Apache-2.0
"""Who the user of a process is in the root that its container will have, before there is one.

What is found is an id of that image's own choosing, whoever changes the image meanwhile. Its files
are opened below its root, without magic links, and only where they are regular and small.
"""

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress

from container._config import Config, HostRoot, Mount, Overlay
from container._errors import ConfigError
from container._launcher import open_below
from container._rootfs import HOST_ROOT_USERS, lower_of
from container._users import Account, find_account

_LARGEST = 1 << 20  # bytes of a passwd or group file


class _DeletedError(Exception):
    """A layer of an overlay says that there is no such file in those below it."""


def look_up(user: int | str | None, config: Config) -> Account:
    """The account of a ``Process.user``; `ConfigError` for a name that leads to no plain id."""
    if user is None:
        return Account(0, 0, (), "/root")
    return find_account(user, lambda path: _read(path, config))


def _read(path: str, config: Config) -> str | None:
    """The text of a file as the container will see it; None where there is none.

    A mount counts where its target leads to the path as it is written, links aside.
    """
    mount = next((each for each in _mounts(config) if _covers(each, path)), None)
    if mount is not None:
        rest = path[len(str(mount.target)) :]
        return _read_below(str(mount.source), rest, path) if mount.type == "bind" else None
    if config.root is None or isinstance(config.root, HostRoot):
        return HOST_ROOT_USERS[path]
    if isinstance(config.root, Overlay):
        return _read_layers(config.root, path)
    return _read_below(str(config.root), path, path)


def _read_layers(root: Overlay, path: str) -> str | None:
    """As overlayfs shows it, but that a link is followed within its own layer."""
    for layer in (*((str(root.upper),) if root.upper else ()), *lower_of(root)):
        if _is_at(layer, path, _is_whiteout):
            return None
        text = _read_below(layer, path, path)
        if text is not None or _is_at(layer, os.path.dirname(path), _is_opaque):
            return text
    return None


def _is_at(layer: str, path: str, check: Callable[[int], bool]) -> bool:
    try:
        with ExitStack() as stack:
            top = os.open(layer, os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, top)
            found = open_below(top, path)
            stack.callback(os.close, found)
            return check(found)
    except OSError:  # nothing is there, or no such attribute
        return False


def _is_whiteout(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    for kind in ("user", "trusted"):
        with suppress(OSError):
            return os.getxattr(f"/proc/self/fd/{fd}", f"{kind}.overlay.opaque") == b"y"
    return False


def _mounts(config: Config) -> list[Mount]:
    """The last of them first: it is on top."""
    extra = config.root.extra if isinstance(config.root, HostRoot) else ()
    return [*extra, *config.mounts][::-1]


def _covers(mount: Mount, path: str) -> bool:
    return f"{path}/".startswith(f"{mount.target}/")


def _read_below(top: str, rest: str, path: str, *, in_layer: bool = False) -> str | None:
    try:
        fd = os.open(top, os.O_PATH | os.O_CLOEXEC)
        try:
            if not rest:
                return _text_of(fd, path, in_layer=in_layer)
            found = open_below(fd, rest)
            try:
                return _text_of(found, path, in_layer=in_layer)
            finally:
                os.close(found)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except NotADirectoryError:  # its directory is something else, or deleted
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} of the container's root: {error.strerror}", field="user"
        ) from None


def _text_of(fd: int, path: str, *, in_layer: bool) -> str:
    # Looked at before it is opened: to open a fifo or a device is to do something with it.
    status = os.fstat(fd)
    if in_layer and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        raise _DeletedError
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} of the container's root is no regular file", field="user")
    if status.st_size > _LARGEST:
        raise ConfigError(f"{path} of the container's root is larger than 1 MiB", field="user")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(f"/proc/self/fd/{fd}", flags), "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ConfigError(f"{path} of the container's root is larger than 1 MiB", field="user")
    return data.decode("utf-8", "surrogateescape")
