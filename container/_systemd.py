# SPDX-License-Identifier: Apache-2.0
"""A delegated cgroup from the user's systemd, over D-Bus: for who has none otherwise.

A scope is made for the launcher and its guard, which are ours to move; the caller stays where it
is. Needs jeepney (``pip install 'container[systemd]'``). The scope goes when the launcher ends.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from container._errors import CgroupError
from container._hierarchy import find_hierarchy

_TIMEOUT = 10.0  # seconds
_BUS, _PATH, _MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)


def user_bus() -> str | None:
    """The socket of the user's own bus; None where there is none."""
    directory = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    path = os.path.join(directory, "bus")
    with suppress(OSError):
        if os.stat(path).st_uid == os.geteuid():
            return path
    return None


def make_scope(pids: Sequence[int]) -> str:
    """Have processes moved into a new scope with delegation; its directory, without processes.

    `CgroupError` says what is missing.
    """
    bus = user_bus()
    if bus is None:
        raise CgroupError("there is no systemd of this user: no bus in XDG_RUNTIME_DIR")
    try:
        with _connection(bus) as connection:
            _start_scope(connection, f"container-{pids[0]}-{os.urandom(4).hex()}.scope", pids)
    except ImportError:
        raise CgroupError("jeepney, which systemd is asked with, is not installed") from None
    except (OSError, TimeoutError) as error:
        raise CgroupError(f"the user's systemd does not answer: {error}") from error
    scope = _cgroup_of(pids[0])
    _make_room(scope, pids)
    return scope


@contextmanager
def _connection(path: str) -> Iterator[Any]:
    from jeepney.io.blocking import open_dbus_connection  # noqa: PLC0415  (an extra)

    connection = open_dbus_connection(f"unix:path={path}")
    try:
        yield connection
    finally:
        connection.close()


def _start_scope(connection: Any, name: str, pids: Sequence[int]) -> None:
    from jeepney import DBusAddress, MatchRule, MessageType, new_method_call  # noqa: PLC0415
    from jeepney.bus_messages import message_bus  # noqa: PLC0415

    manager = DBusAddress(_PATH, bus_name=_BUS, interface=_MANAGER)
    rule = MatchRule(type="signal", interface=_MANAGER, member="JobRemoved", path=_PATH)

    def call(message: Any) -> Any:
        reply = connection.send_and_get_reply(message, timeout=_TIMEOUT)
        if reply.header.message_type == MessageType.error:
            raise CgroupError(f"the user's systemd refuses: {reply.body[0] if reply.body else ''}")
        return reply.body

    call(message_bus.AddMatch(rule))
    call(new_method_call(manager, "Subscribe"))
    with connection.filter(rule) as signals:
        properties = [
            ("Description", ("s", f"containers of process {os.getpid()}")),
            ("Delegate", ("b", True)),
            ("CollectMode", ("s", "inactive-or-failed")),
            ("PIDs", ("au", list(pids))),
        ]
        arguments: tuple[object, ...] = (name, "fail", properties, [])
        call(new_method_call(manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments))
        while True:
            _, _, unit, result = connection.recv_until_filtered(signals, timeout=_TIMEOUT).body
            if unit == name:
                break
    if result != "done":
        raise CgroupError(f"the user's systemd could not make a scope: {result}")


def _cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    path = next(line[3:] for line in lines if line.startswith("0::"))
    return find_hierarchy().top + path


def _make_room(scope: str, pids: Sequence[int]) -> None:
    """A cgroup with processes can give its children no controllers: move ours further down."""
    try:
        leaf = os.path.join(scope, "launcher")
        os.mkdir(leaf)
        for pid in pids:
            Path(leaf, "cgroup.procs").write_text(str(pid), encoding="ascii")
    except OSError as error:
        raise CgroupError(f"cannot use the scope {scope!r}: {error.strerror}") from error
