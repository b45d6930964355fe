# SPDX-License-Identifier: Apache-2.0
"""Landlock: from paths to rules. Pure."""

from container._config import Config

# LANDLOCK_ACCESS_FS_*, include/uapi/linux/landlock.h
_EXECUTE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 2, 1 << 3
READ_ACCESS = _EXECUTE | _READ_FILE | _READ_DIRECTORY
ALL_ACCESS = (1 << 16) - 1  # up to IOCTL_DEV


def landlock_rules(config: Config) -> tuple[tuple[str, int], ...]:
    """Path and access of each rule, in the order of the fields."""
    if config.landlock is None:
        return ()
    read = ((str(path), READ_ACCESS) for path in config.landlock.read)
    write = ((str(path), ALL_ACCESS) for path in config.landlock.write)
    return (*read, *write)
