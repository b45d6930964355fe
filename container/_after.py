# SPDX-License-Identifier: Apache-2.0
"""What a detached container's launcher starts after an end: starts it again, or has last words.

It is a client with the right to do so, on fd 3, and gets the manual and the directories: see
``struct detach``. It may be of another version than the one that made the container.
"""

import os
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from container._config import State
from container._detached import (
    Manual,
    extra_of,
    has_last_hooks,
    lifespan,
    own_process,
    refuse_failed,
    sources_of,
    start_child,
)
from container._errors import StateError
from container._launcher import Connection, Socket, StartFlag, protocol
from container._plan import launch_plan, make_plan
from container._state import lock_directory, read_entry, write_state
from container._streams import open_process_stdio

_SOCKET, _MANUAL, _DIRECTORY, _TOP = 3, 4, 5, 6


def main() -> None:
    """Whatever goes wrong ends us, and that ends the container for good."""
    for fd in (_SOCKET, _MANUAL, _DIRECTORY, _TOP):
        os.set_inheritable(fd, False)
    # The name is where the directory lies: nothing that a file in it says.
    id = os.path.basename(os.readlink(f"/proc/self/fd/{_DIRECTORY}"))
    connection = Connection(Socket(fileno=_SOCKET), None)
    if connection.protocol != protocol():
        raise StateError("the launcher is of another version")
    manual = Manual.read(_MANUAL)
    if connection.over:
        _say_last_words(manual, id)
    else:
        _start_again(connection, manual, id)


def _start_again(connection: Connection, manual: Manual, id: str) -> None:
    entry = read_entry(id, _DIRECTORY)
    place = entry.detached.get("place")
    connection.place = place if isinstance(place, str) else None
    before = entry.detached.get("restarts")
    restarts = before + 1 if isinstance(before, int) else 1
    process = own_process(manual.process, manual.life)
    plan = make_plan(manual.config, process, StartFlag.GATE)
    stdio = open_process_stdio(process)
    child = launch_plan(plan, stdio.child, stdio.pipes, by=connection)
    stdio.close_child_ends()
    refuse_failed(child, plan)
    now = datetime.now(UTC)
    state = replace(entry.state, state=State.RUNNING, pid=child.pid, started_at=now)
    extra = extra_of(manual, connection.place) | {"restarts": restarts}
    with lock_directory(_DIRECTORY):
        write_state(_DIRECTORY, state, extra)
    sources = sources_of(stdio, child)
    life = lifespan(manual, restarts, sources)
    connection.detach(life, child.serial, id, list(sources.values()))
    start_child(child, plan)


def _say_last_words(manual: Manual, id: str) -> None:
    """The place for hooks that run after the last end."""
    with suppress(StateError):
        if has_last_hooks(manual.config):
            read_entry(id, _DIRECTORY)
