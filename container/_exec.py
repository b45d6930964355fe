# SPDX-License-Identifier: Apache-2.0
"""The namespaces of processes by their pid: run a command in them, name them, visit one."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Literal

from container._config import NAMESPACE_FLAGS, ExecConfig, StrPath
from container._container import Container, find_container
from container._errors import ConfigError, StateError, launch_error, publish
from container._join import Manner, parse_exec, parse_namespaces
from container._launcher import above_stdio, join_namespace, open_pidfd
from container._process import ExecProcess, parse_capture, parse_text_mode
from container._stranger import run_stranger


def _parse_pid(pid: int, field: str = "pid") -> int:
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise ConfigError(f"expected int, got {type(pid).__name__}", field=field)
    if not 0 < pid < 1 << 22:
        raise ConfigError(f"{pid} is no process id", field=field)
    return pid


def exec_in_namespaces(
    pid: int,
    config: ExecConfig | Sequence[StrPath],
    *,
    namespaces: Collection[str] | None = None,
    max_output: int | str | None = "16M",
    keep: Literal["head", "tail"] = "head",
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
) -> ExecProcess:
    """Run a command in the namespaces of a process; returns once it runs.

    ``namespaces`` are those to join (None: all) of ``user mnt pid net ipc uts cgroup time``; those
    that the process shares with the caller are left as they are. The first process of a container
    of this program stands for that: `Container.exec`. Of any other process the command gets no
    more capabilities than it has, its no_new_privs, and the default seccomp filter where it has
    one; it becomes root of the user namespace that it joins, else it stays who the caller is. That
    is for root, and for the owner of the user namespace when it is among those to join.

    `StateError` when the process has ended, `LaunchError` with the step for everything else.
    """
    number = _parse_pid(pid)
    wanted = parse_exec(config)
    names = parse_namespaces(namespaces)
    box = find_container(number)
    if box is not None:
        return box._exec(wanted, names, (max_output, keep), (text, encoding, errors))
    manner = Manner(
        parse_text_mode(text, encoding, errors), parse_capture(max_output, keep), monotonic()
    )
    return run_stranger(number, wanted, manner, names)


def get_namespace_paths(pid: int) -> dict[str, str]:
    """The files that stand for the namespaces of a process, by name: namespaces(7).

    They are good for as long as the process lives; an open one holds the namespace itself.
    """
    number = _parse_pid(pid)
    paths = {name: f"/proc/{number}/ns/{name}" for name in NAMESPACE_FLAGS}
    if not os.path.isdir(f"/proc/{number}"):
        raise StateError(f"there is no process {number}")
    return {name: path for name, path in paths.items() if os.path.lexists(path)}


@contextmanager
def join_network_namespace(target: int | Container) -> Iterator[None]:
    """Have the calling thread in the network namespace of a process or container for a while.

    Other threads stay where they are, but those that it starts meanwhile begin there; on exit the
    thread is back where it was. For root, and for a
    network namespace that belongs to the caller's own user namespace or one below it.
    """
    there = _open_target(target)
    try:
        here = above_stdio(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)
    finally:
        os.close(there)


def _open_target(target: int | Container) -> int:
    """A pidfd: it is never that of a later process."""
    if isinstance(target, Container):
        if target.pid is None or target.pidfd is None:
            raise StateError(f"container {target.id} does not run")
        return above_stdio(os.dup(target.pidfd))
    number = _parse_pid(target, "target")
    try:
        return open_pidfd(number)
    except ProcessLookupError:
        raise StateError(f"there is no process {number}") from None


def _enter(fd: int) -> None:
    try:
        join_namespace(fd, NAMESPACE_FLAGS["net"])
    except ProcessLookupError:
        raise StateError("the process has ended") from None
    except OSError as error:
        raise launch_error("join", error.errno, "cannot join the network namespace") from None


publish(exec_in_namespaces, get_namespace_paths, join_network_namespace)
