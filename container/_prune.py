# SPDX-License-Identifier: Apache-2.0
"""Detached containers as a whole: list them, and remove what nobody looks after any more.

Whether somebody does is told by locks alone, which the kernel drops with their owner, never by a
pid. So a container of any version is safe: the lock of its directory is held by its launcher, that
of the cgroups of a launcher likewise (_cgroup.py). Ranges of host ids are locks and nothing else;
mounts, namespaces and links go with the last process in them.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from container._cgroup import prune_places
from container._config import ContainerState
from container._errors import CgroupError, ConfigError, ContainerNotFoundError, StateError, publish
from container._network._store import has_owners
from container._state import StateManager, is_dead, remove_known


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` has removed: ids of containers, and directories of control groups.

    ``networks`` are ids of containers of which there were ports, names or addresses on bridges.
    """

    containers: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


def list_containers() -> list[ContainerState]:
    """The detached containers of this user, those that have ended too, the oldest first.

    A `RuntimeWarning` tells of each whose state cannot be read.
    """
    return [entry.state for entry in StateManager().entries() if entry.detached]


def prune() -> Pruned:
    """Remove whatever has no live owner: detached containers that have ended, with their states
    and logs, and what was left by launchers that were killed. Nothing of a container that runs, or
    is being made, is touched. Safe at any time, from many processes at once.
    """
    return Pruned(
        tuple(_prune_states(StateManager())), tuple(_prune_cgroups()), tuple(_prune_networks())
    )


def _prune_states(manager: StateManager) -> Iterator[str]:
    for name in manager.names():
        # Somebody else's, changed just now, or no container's: not ours to remove.
        with suppress(BlockingIOError, ContainerNotFoundError, ConfigError, StateError):
            if _prune_state(manager, name):
                yield name


def _prune_state(manager: StateManager, name: str) -> bool:
    with manager.locked(name, wait=False) as (top, directory):
        return is_dead(name, directory) and remove_known(top, name, directory)


def _prune_cgroups() -> Iterator[str]:
    with suppress(CgroupError):  # there are none here
        yield from prune_places()


def _prune_networks() -> list[str]:
    if os.geteuid() != 0 or not has_owners():
        return []
    from container._network._admin import collect  # noqa: PLC0415  (pyroute2)

    return collect()


publish(Pruned, list_containers, prune)
