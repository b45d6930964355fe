# SPDX-License-Identifier: Apache-2.0
"""Scopes of systemd, over D-Bus: a cgroup that is delegated to a launcher which it holds.

The user's own systemd is asked, or for root the machine's. A scope is made for a launcher and its
guard, which are ours to move; the caller stays where it is. Below it everything is ours, above it
and of its own files everything is systemd's: so the limits of a container lie in a cgroup of its
own in there, which no daemon-reload touches, and only what divides something among neighbours is
asked for as properties of the scope, see `properties_of`. The scope goes with its last process.

Needs jeepney (``pip install 'container[systemd]'``).
"""

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from container._errors import CgroupError, ConfigError
from container._hierarchy import find_hierarchy
from container._limits import Setting

_TIMEOUT = 10.0  # seconds
_STOP_USEC = 10_000_000  # then SIGKILL: a launcher takes no other signal
_REMOVAL = 3.0  # seconds, for the end of a scope with the same name
_BUS, _PATH, _MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_BOOTED = "/run/systemd/system"  # sd_booted(3)
_INFINITY = 2**64 - 1
_MAX_UNIT = 255  # UNIT_NAME_MAX - 1
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+")
_SLICE = re.compile(r"[A-Za-z0-9:_.\\@]+(-[A-Za-z0-9:_.\\@]+)*\.slice")

Property = tuple[str, tuple[str, object]]
"""A name, and a D-Bus signature with a value of it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A scope, and the slice that it lies in; "" is for systemd to choose."""

    name: str
    slice: str = ""


def parse_cgroups_path(text: str, id: str, field: str = "linux.cgroupsPath") -> Unit:
    """OCI's ``linux.cgroupsPath`` as runtimes take it for systemd, ``slice:prefix:name``.

    The scope is ``prefix-name.scope``, without a prefix ``name.scope``; the slice ``system.slice``
    where none is named, of a user's systemd ``user.slice``; ``-`` is the root's. An empty text is
    for ``:container:id``.
    """
    parts = (text or f":container:{id}").split(":")
    if len(parts) != 3:
        raise ConfigError(f"expected 'slice:prefix:name', got {text!r}", field=field)
    above, prefix, name = parts
    if name.endswith(".slice"):
        raise ConfigError(f"{name!r} is a slice, which has no processes", field=field)
    if above == "-":
        above = "-.slice"
    above = above or ("system.slice" if os.geteuid() == 0 else "user.slice")
    if above != "-.slice" and not (_SLICE.fullmatch(above) and len(above) <= _MAX_UNIT):
        raise ConfigError(f"no slice can be called {above!r}", field=field)
    scope = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    if not name or not _UNIT.fullmatch(scope) or len(scope) > _MAX_UNIT:
        raise ConfigError(f"no scope can be called {scope!r}", field=field)
    return Unit(scope, above)


_PROPERTIES = {
    "cpu.weight": "CPUWeight",
    "cpu.idle": "CPUWeight",
    "io.weight": "IOWeight",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
}


def properties_of(settings: Iterable[Setting]) -> tuple[Property, ...]:
    """What is to hold against the neighbours of a scope as well as within it: weights, and memory
    that is not taken for others. What only limits is left to the cgroup below, where the launcher
    is not counted.
    """
    found: dict[str, Property] = {}
    for setting in settings:
        name, value = _PROPERTIES.get(setting.file), setting.value.removeprefix("default ").strip()
        if name is None or (setting.file == "cpu.idle" and value != "1"):
            continue
        if setting.file == "cpu.idle":
            value = "0"  # systemd.resource-control(5), "idle"
        if value == "max" or value.isdecimal():
            found[name] = (name, ("t", _INFINITY if value == "max" else int(value)))
    return tuple(found.values())


# Whom to ask ----------------------------------------------------------------------------------


def find_bus() -> str | None:
    """The socket of the bus with the systemd that is ours to ask; None where there is none."""
    return _system_bus() if os.geteuid() == 0 else user_bus()


def _system_bus() -> str | None:
    with suppress(OSError):
        if os.path.isdir(_BOOTED) and os.stat(_SYSTEM_BUS).st_uid == 0:
            return _SYSTEM_BUS
    return None


def user_bus() -> str | None:
    """The socket of the user's own bus; None where there is none."""
    directory = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    path = os.path.join(directory, "bus")
    with suppress(OSError):
        if os.stat(path).st_uid == os.geteuid():
            return path
    return None


def _whose() -> str:
    return "systemd" if os.geteuid() == 0 else "the user's systemd"


# Scopes ---------------------------------------------------------------------------------------


def make_scope(pids: Sequence[int]) -> str:
    """As `start_scope`, with a name of its own, beside the caller if it is in a unit of ours."""
    return start_scope(pids, Unit(f"container-{pids[0]}-{os.urandom(4).hex()}.scope", _own_slice()))


def start_scope(pids: Sequence[int], unit: Unit, properties: Iterable[Property] = ()) -> str:
    """Have processes moved into a new scope with delegation; its directory, in which no process is:
    they are in a cgroup ``launcher`` below it.

    `CgroupError` says what is missing.
    """
    with _asking() as manager:
        manager.start(unit, (*_scope_properties(unit, pids), *properties))
    scope = _cgroup_of(pids[0])
    _make_room(scope, pids)
    return scope


def update_scope(name: str, properties: Sequence[Property]) -> None:
    """Change properties of a scope, until it ends."""
    if properties:
        with _asking() as manager:
            manager.call("SetUnitProperties", "sba(sv)", (name, True, list(properties)))


def stop_scope(name: str) -> None:
    """Have what is left in a scope ended, and the scope with it; one that is gone is as well."""
    with _asking() as manager:
        manager.stop(name)


def _scope_properties(unit: Unit, pids: Sequence[int]) -> tuple[Property, ...]:
    where: tuple[Property, ...] = (("Slice", ("s", unit.slice)),) if unit.slice else ()
    return (
        *where,
        ("Description", ("s", f"containers of process {os.getpid()}")),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("TasksMax", ("t", _INFINITY)),  # or it would have the manager's default
        ("TimeoutStopUSec", ("t", _STOP_USEC)),
        ("PIDs", ("au", list(pids))),
    )


@contextmanager
def _asking() -> Iterator["_Manager"]:
    bus = find_bus()
    if bus is None:
        where = "no bus in XDG_RUNTIME_DIR" if os.geteuid() else f"no {_SYSTEM_BUS}"
        raise CgroupError(f"{_whose()} cannot be asked: {where}")
    try:
        with _connection(bus) as connection:
            yield _Manager(connection)
    except ImportError:
        raise CgroupError("jeepney, which systemd is asked with, is not installed") from None
    except (OSError, TimeoutError) as error:
        raise CgroupError(f"{_whose()} does not answer: {error}") from error


@contextmanager
def _connection(path: str) -> Iterator[Any]:
    from jeepney.io.blocking import open_dbus_connection  # noqa: PLC0415  (an extra)

    # A bus that starts because somebody asks for it takes longer than jeepney's one second.
    connection = open_dbus_connection(f"unix:path={path}", auth_timeout=_TIMEOUT)
    try:
        yield connection
    finally:
        connection.close()


class _Refused(CgroupError):
    """What systemd has answered, with the name of the error in D-Bus."""

    def __init__(self, detail: str, name: str) -> None:
        super().__init__(detail)
        self.name = name


class _Manager:
    """The manager of systemd, org.freedesktop.systemd1(5)."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.call("Subscribe")

    def call(self, method: str, signature: str = "", arguments: tuple[object, ...] = ()) -> Any:
        from jeepney import DBusAddress, new_method_call  # noqa: PLC0415

        manager = DBusAddress(_PATH, bus_name=_BUS, interface=_MANAGER)
        message = new_method_call(manager, method, signature or None, arguments)
        return self._send(message)

    def _send(self, message: Any) -> Any:
        from jeepney import HeaderFields, MessageType  # noqa: PLC0415

        reply = self._connection.send_and_get_reply(message, timeout=_TIMEOUT)
        if reply.header.message_type == MessageType.error:
            name = reply.header.fields.get(HeaderFields.error_name, "")
            detail = f"{_whose()} refuses: {reply.body[0] if reply.body else name}"
            raise _Refused(detail, name.rpartition(".")[2])
        return reply.body

    @contextmanager
    def _signals(self, member: str, argument: int, unit: str) -> Iterator["deque[Any]"]:
        """Those about one unit; all of them from here on are kept."""
        from jeepney import MatchRule  # noqa: PLC0415
        from jeepney.bus_messages import message_bus  # noqa: PLC0415

        rule = MatchRule(type="signal", interface=_MANAGER, member=member, path=_PATH)
        rule.add_arg_condition(argument, unit)
        self._send(message_bus.AddMatch(rule))
        with self._connection.filter(rule, queue=deque()) as signals:
            yield signals

    def _next(self, signals: "deque[Any]", timeout: float = _TIMEOUT) -> Any:
        return self._connection.recv_until_filtered(signals, timeout=timeout).body

    def start(self, unit: Unit, properties: Sequence[Property]) -> None:
        arguments: tuple[object, ...] = (unit.name, "fail", list(properties), [])
        with (
            self._signals("UnitRemoved", 0, unit.name) as removals,
            self._signals("JobRemoved", 2, unit.name) as jobs,
        ):
            try:
                self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
            except _Refused as error:
                if error.name != "UnitExists" or not self._ends(removals):
                    raise
                self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
            result = self._next(jobs)[3]
        if result != "done":
            raise CgroupError(f"{_whose()} could not make {unit.name}: {result}")

    def _ends(self, removals: "deque[Any]") -> bool:
        """Whether one with this name, of a container that has ended, is on its way out."""
        with suppress(TimeoutError):
            self._next(removals, _REMOVAL)
            return True
        return False

    def stop(self, name: str) -> None:
        with self._signals("JobRemoved", 2, name) as jobs:
            try:
                self.call("StopUnit", "ss", (name, "replace"))
            except _Refused as error:
                if error.name == "NoSuchUnit":
                    return
                raise
            self._next(jobs, _TIMEOUT + _STOP_USEC / 1e6)


# Directories ----------------------------------------------------------------------------------


def _cgroup_path(pid: int | str) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    return next((line[3:] for line in lines if line.startswith("0::")), "/")


def _cgroup_of(pid: int) -> str:
    return find_hierarchy().top + _cgroup_path(pid)


def is_in_unit() -> bool:
    """Whether we are in a unit of systemd's, which ends what is in it when it ends itself."""
    if not os.path.isdir(_BOOTED):
        return False
    names = _cgroup_path("self").split("/")
    return any(name.endswith((".service", ".scope")) for name in names)


def _own_slice() -> str:
    """The slice of the caller, within its user's systemd; what limits that limits us too."""
    _, manager, below = _cgroup_path("self").partition(f"/user@{os.geteuid()}.service/")
    slices = [part for part in below.split("/") if part.endswith(".slice")]
    return slices[-1] if manager and slices else "app.slice"


def _make_room(scope: str, pids: Sequence[int]) -> None:
    """A cgroup with processes can give its children no controllers: move ours further down."""
    try:
        leaf = os.path.join(scope, "launcher")
        os.mkdir(leaf)
        for pid in pids:
            Path(leaf, "cgroup.procs").write_text(str(pid), encoding="ascii")
    except OSError as error:
        raise CgroupError(f"cannot use the scope {scope!r}: {error.strerror}") from error
