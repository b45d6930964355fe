# SPDX-License-Identifier: Apache-2.0
"""Landlock: from paths to rules. Pure."""

from collections.abc import Iterable, Mapping

from container._config import Config, HostRoot

# LANDLOCK_ACCESS_FS_*, include/uapi/linux/landlock.h
_EXECUTE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 2, 1 << 3
READ_ACCESS = _EXECUTE | _READ_FILE | _READ_DIRECTORY
ALL_ACCESS = (1 << 16) - 1  # up to IOCTL_DEV


def landlock_rules(
    config: Config, links: Iterable[tuple[str, str]] = ()
) -> tuple[tuple[str, int], ...]:
    """Path and access of each rule, in the order of the fields.

    ``links`` are those at the top of a `HostRoot`, name and text: unlike an image's these are ours,
    and may lead into another mount.
    """
    if config.landlock is None:
        return ()
    led = dict(links) if config.root is None or isinstance(config.root, HostRoot) else {}
    read = ((_lead(str(path), led), READ_ACCESS) for path in config.landlock.read)
    write = ((_lead(str(path), led), ALL_ACCESS) for path in config.landlock.write)
    return (*read, *write)


def _lead(path: str, links: Mapping[str, str]) -> str:
    name, slash, rest = path.lstrip("/").partition("/")
    return f"/{links[name].lstrip('/')}{slash}{rest}" if name in links else path
