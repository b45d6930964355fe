# SPDX-License-Identifier: Apache-2.0
"""What a container and its program shall be: frozen dataclasses, checked once, when made.

Each field's annotation carries its checker. A checker takes the value and the path of the field
and returns the value in its stored form (paths as ``str``, sequences as tuples, mappings as an
immutable mapping) or raises `ConfigError` with that path. An instance that exists is valid and
hashable, may be shared between threads, and is copied by reference.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import STRICT, IntFlag, StrEnum
from functools import partial
from posixpath import normpath
from signal import SIGTERM, Signals
from stat import S_IFBLK, S_IFCHR
from typing import Annotated, Any, ClassVar, NoReturn, Protocol, Self, TypeVar, cast

from container._capabilities import Capabilities
from container._errors import CommandError, ConfigError, UnsupportedError, publish
from container._seccomp import SeccompProfile

# The values of subprocess, which takes 13 ms to import.
PIPE, STDOUT, DEVNULL = -1, -2, -3

OCI_VERSION = "1.3.0"

LAST_ID = 2**32 - 2  # (uid_t)-1 means "leave as it is" to the kernel
_MAX_INT = 2**31 - 1
_MAX_TTY_SIZE = 2**16 - 1  # struct winsize
_MAX_SIZE = 2**63 - 1  # loff_t
_RLIM_INFINITY = 2**64 - 1
_PATH_MAX = 4096  # include/uapi/linux/limits.h, with the final NUL
MAX_GROUPS = 65536  # NGROUPS_MAX, include/uapi/linux/limits.h
_HOST_NAME_MAX = 64
_MAX_SIGNAL = 64
_MAX_RULES = 1000
MOST_EXTENTS = 340  # lines of a uid_map, user_namespaces(7)

StrPath = str | os.PathLike[str]
Check = Callable[[Any, str], Any]
_T = TypeVar("_T")


class HasFileno(Protocol):
    """A file object that stands for a file descriptor."""

    def fileno(self) -> int: ...


# Checkers -------------------------------------------------------------------------------------


def _fail(field: str, detail: str) -> NoReturn:
    raise ConfigError(detail, field=field) from None


def _expected(what: str, value: object, field: str) -> NoReturn:
    _fail(field, f"expected {what}, got {type(value).__name__}")


def _show(value: object) -> str:
    text = hex(value) if isinstance(value, int) and value.bit_length() > 64 else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _int(low: int, high: int, show: Callable[[int], str] = _show) -> Check:
    def check(value: int, field: str) -> int:
        if not _is_int(value):
            _expected("int", value, field)
        if not low <= value <= high:
            _fail(field, f"must be from {show(low)} to {show(high)}, not {show(value)}")
        return int(value)

    return check


def _instance(kind: type) -> Check:
    def check(value: object, field: str) -> object:
        return value if isinstance(value, kind) else _expected(kind.__name__, value, field)

    return check


def _optional(check: Check) -> Check:
    return lambda value, field: None if value is None else check(value, field)


def _sequence(check: Check, most: int = _MAX_INT) -> Check:
    def check_all(value: Sequence[object], field: str) -> tuple[Any, ...]:
        if isinstance(value, str | bytes | bytearray) or not isinstance(value, Sequence):
            _expected("a sequence such as a list", value, field)
        if len(value) > most:
            _fail(field, f"at most {most} are possible, not {len(value)}")
        return tuple(check(item, f"{field}[{index}]") for index, item in enumerate(value))

    return check_all


def _text(value: str, field: str) -> str:
    # Never shows the value: it may be that of an environment variable.
    if not isinstance(value, str):
        _expected("str", value, field)
    if "\0" in value:
        _fail(field, "must not contain a NUL byte")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        _fail(field, "has characters that the file system encoding cannot express")
    return value


def _argument(value: StrPath, field: str) -> str:
    if not isinstance(value, str | os.PathLike):
        _expected("str or os.PathLike", value, field)
    return _text(os.fspath(value), field)


def _path(value: StrPath, field: str) -> str:
    path = _argument(value, field)
    if not 1 <= len(os.fsencode(path)) < _PATH_MAX:
        _fail(field, f"must have 1 to {_PATH_MAX - 1} bytes: {_show(path)}")
    return path


def _absolute(value: StrPath, field: str) -> str:
    path = _path(value, field)
    if not path.startswith("/"):
        _fail(field, f"must be absolute: {_show(path)}")
    return path


def _target(value: StrPath, field: str) -> str:
    path = _absolute(value, field)
    if ".." in path.split("/"):
        _fail(field, f"must not contain '..': {_show(path)}")
    path = "/" + normpath(path).lstrip("/")  # POSIX lets normpath keep two leading slashes
    return path if path != "/" else _fail(field, "must not be '/': that is the root itself")


def _args(value: Sequence[StrPath], field: str) -> tuple[str, ...]:
    if isinstance(value, str | bytes):
        kind = type(value).__name__
        _fail(field, f"expected a sequence, got {kind}; write ['prog', 'arg'] or shlex.split(...)")
    args: tuple[str, ...] = _sequence(_argument)(value, field)
    if not args:
        _fail(field, "must not be empty: args[0] is the program")
    return args if args[0] else _fail(f"{field}[0]", "must not be empty: it is the program")


def _mapping(separators: str) -> Check:
    def check(value: Mapping[str, str], field: str) -> "_FrozenMapping":
        if not isinstance(value, Mapping):
            _expected("a mapping of names to values", value, field)
        for name, content in value.items():
            if not isinstance(name, str):
                _expected("str for a name", name, field)
            # What stands behind a separator may be a value that strayed into the name.
            stem = re.split(f"[{separators}]", name)[0]
            if not stem or stem != name:
                _fail(f"{field}[{stem!r}]", f"a name must have none of {separators!r}, nor be ''")
            _text(name, f"{field}[{name!r}]")
            _text(content, f"{field}[{name!r}]")
        return _FrozenMapping(value)

    return check


def parse_host_name(value: str, field: str) -> str:
    """A host name, as sethostname(2) takes it, and a line of a file can hold it."""
    length = len(os.fsencode(_text(value, field)))
    if not 1 <= length <= _HOST_NAME_MAX:
        _fail(field, f"must have 1 to {_HOST_NAME_MAX} bytes, not {length}")
    # It becomes part of a line of /etc/hosts.
    if "/" in value or " " in value or not value.isprintable():
        _fail(field, f"must not contain '/', blanks or control characters: {_show(value)}")
    return value


def _stdio(value: Any, field: str) -> Any:
    if value is None:
        return None
    if _is_int(value):
        constants = (PIPE, DEVNULL, STDOUT) if field == "stderr" else (PIPE, DEVNULL)
        if not 0 <= value <= _MAX_INT and value not in constants:
            _fail(field, f"{_show(value)} is no file descriptor and no constant for {field}")
        return int(value)
    if not callable(getattr(value, "fileno", None)):
        _expected("None, int, PIPE, DEVNULL or an object with fileno()", value, field)
    try:
        fd = value.fileno()
    except (OSError, TypeError, ValueError):  # io.UnsupportedOperation; a class; closed
        fd = -1
    if not _is_int(fd) or fd < 0:
        _fail(field, f"{type(value).__name__} has no open file descriptor")
    return value


def parse_signal(value: int, field: str) -> int:
    number: int = _int(1, _MAX_SIGNAL)(value, field)
    return Signals(number) if number in Signals._value2member_map_ else number


def _catchable(value: int, field: str) -> int:
    if value in (9, 19):
        _fail(field, "SIGKILL and SIGSTOP cannot be caught to forward them")
    return parse_signal(value, field)


def _time(value: datetime, field: str) -> datetime:
    if not isinstance(value, datetime):
        _expected("datetime", value, field)
    if value.utcoffset() is None:
        _fail(field, "must have a time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        _fail(field, f"{_show(value)} is out of range")


# Those of a namespace that a container can have of its own; all of net. is one, too.
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in (
        *("msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni"),
    )
)
_SYSCTL_COMPONENT = re.compile(r"[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]*")


def sysctl_path(name: str) -> tuple[str, ...]:
    """The components below /proc/sys, by sysctl(8): whichever of '.' and '/' comes first divides,
    and the other one stands for it within a component.
    """
    dot, slash = (position if position >= 0 else len(name) for position in map(name.find, "./"))
    if dot < slash:
        name = name.translate({ord("."): "/", ord("/"): "."})
    return tuple(name.split("/"))


def _sysctl(value: Mapping[str, str], field: str) -> "_FrozenMapping":
    frozen: _FrozenMapping = _mapping("=\0")(value, field)
    for name, content in frozen.items():
        path = sysctl_path(name)
        if not all(map(_SYSCTL_COMPONENT.fullmatch, path)):
            _fail(f"{field}[{name!r}]", "is no name such as 'net.ipv4.ip_forward'")
        if sysctl_namespace(path) is None:
            _fail(f"{field}[{name!r}]", "is the whole machine's, it has no value of a container's")
        if not content:
            _fail(f"{field}[{name!r}]", "must not be empty")
    return frozen


def sysctl_namespace(path: Sequence[str]) -> str | None:
    """The namespace that this sysctl belongs to, as the kernel spells it; None: to none."""
    if len(path) > 2 and path[0] == "net":
        return "net"
    if ".".join(path) in _IPC_SYSCTLS or (len(path) > 2 and list(path[:2]) == ["fs", "mqueue"]):
        return "ipc"
    return None


_PROC_OPTION = re.compile(
    "hidepid=(?:0|1|2|4|off|noaccess|invisible|ptraceable)|subset=pid", re.ASCII
)


def _proc_options(value: str, field: str) -> str:
    options = _text(value, field).split(",")
    if not all(map(_PROC_OPTION.fullmatch, options)):
        _fail(field, f"{_show(value)} is not made of 'hidepid=...' and 'subset=pid', see proc(5)")
    return value


def _label(value: str, field: str) -> str:
    if not _text(value, field) or not value.isprintable():
        _fail(field, f"must be some printable text: {_show(value)}")
    return value


_bool = _instance(bool)
_id = _int(0, LAST_ID)


def _unique(items: Sequence[Any], attribute: str, field: str) -> None:
    seen: dict[object, int] = {}
    for index, item in enumerate(items):
        key = getattr(item, attribute)
        if seen.setdefault(key, index) != index:
            _fail(
                f"{field}[{index}].{attribute}", f"{_show(key)} again, as in {field}[{seen[key]}]"
            )


# Parsers --------------------------------------------------------------------------------------

_SIZE = re.compile(r"([0-9]{1,20})(?:([KMGTPE])(?:I(?:B)?)?|B)?", re.ASCII | re.IGNORECASE)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,9}")
_USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}\$?")
_CONTAINER_ID = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_+.-]{0,127}")


def parse_size(value: int | str, field: str = "size", *, unlimited: bool = False) -> int:
    """Bytes of an ``int`` or of a text such as ``"256M"``.

    K, M, G, T, P, E in either case, also as ``Mi`` or ``MiB``, are powers of 1024. ``-1`` means
    unlimited where ``unlimited`` allows it. At most 2**63 - 1; else `ConfigError`.
    """
    size = value
    if isinstance(size, str) and size != "-1":
        match = _SIZE.fullmatch(size)
        if match is None:
            _fail(field, f"{_show(value)} is no size; write bytes or a text such as '256M'")
        size = int(match[1]) << 10 * ("KMGTPE".find((match[2] or "B").upper()) + 1)
    elif not isinstance(size, str) and not _is_int(size):
        _expected("int bytes or a text such as '256M'", value, field)
    if not (-1 if unlimited else 0) <= int(size) <= _MAX_SIZE:
        _fail(field, f"must be from {-1 if unlimited else 0} to 2**63 - 1, not {_show(value)}")
    return int(size)


def parse_duration(value: float | timedelta, field: str = "timeout") -> float:
    """Seconds of a number or a ``timedelta``, finite and not negative; else `ConfigError`."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not _is_int(seconds) and not isinstance(seconds, float):
        _expected("seconds or a timedelta", value, field)
    if not 0 <= seconds <= _MAX_SIZE:  # refuses NaN and infinity too
        _fail(field, f"must be a finite number of seconds from 0, not {_show(value)}")
    return float(seconds)


def parse_id(text: str, field: str) -> int:
    """A user's or group's id: a plain decimal number from 0 to 2**32 - 2; else `ConfigError`."""
    if not _DECIMAL.fullmatch(text):
        _fail(field, f"{_show(text)} is no plain decimal number")
    number: int = _id(int(text), field)
    return number


def parse_user(value: int | str, field: str = "user") -> tuple[int | str, int | str | None]:
    """User and group of ``uid``, ``"user"`` or ``"user:group"``; no group: None.

    Each is an id (``int``) or a name (``str``). Ids are strictly decimal, from 0 to 2**32 - 2, and
    nothing that begins like a number is a name: neither may end up as the other (CVE-2024-40635).
    """
    if not isinstance(value, str):
        number: int = _id(value, field)
        return number, None
    parts = value.split(":")
    if len(parts) > 2 or not all(_DECIMAL.fullmatch(p) or _USER_NAME.fullmatch(p) for p in parts):
        _fail(field, f"{_show(value)} is not 'user' or 'user:group', each a plain number or name")
    ids = [parse_id(part, field) if part[0].isdigit() else part for part in parts]
    return ids[0], ids[1] if len(ids) > 1 else None


def _user(value: int | str, field: str) -> int | str:
    parse_user(value, field)
    return value


def validate_id(value: str, field: str = "id") -> str:
    """A container id: 1 to 128 of ``A-Za-z0-9_+.-``, no leading dot; else `ConfigError`.

    It becomes the name of files and of cgroups.
    """
    if not isinstance(value, str):
        _expected("str", value, field)
    if not _CONTAINER_ID.fullmatch(value):
        _fail(field, f"must be 1 to 128 of A-Za-z0-9_+.- without a leading dot: {_show(value)}")
    return value


# Building blocks ------------------------------------------------------------------------------


class _FrozenMapping(Mapping[str, str]):
    """Immutable, hashable and picklable; the repr has the names only, for values are secrets."""

    __slots__ = ("_content",)

    def __init__(self, content: Mapping[str, str]) -> None:
        self._content = dict(content)

    def __getitem__(self, key: str) -> str:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __hash__(self) -> int:
        return hash(frozenset(self._content.items()))

    def __repr__(self) -> str:
        return f"<names {list(self._content)}>"


class _Checked:
    """Runs each field through the checker in its annotation, which is then stripped of it.

    Pickles by constructing, so that what comes out of a pickle has been checked again.
    """

    __slots__ = ()
    _checks: ClassVar[dict[str, Check]]
    _defaults: ClassVar[dict[str, object]]

    def __init_subclass__(cls) -> None:
        if "_checks" in cls.__dict__:  # slots=True makes each class twice
            return
        hints = {name: hint for name, hint in cls.__annotations__.items() if hint is not KW_ONLY}
        cls._checks = {name: hint.__metadata__[0] for name, hint in hints.items()}
        # A default that is in its stored form already needs no check: most fields, most times.
        plain = (None, True, False, "", ())
        cls._defaults = {
            name: value
            for name in hints
            if any((value := cls.__dict__.get(name, cls)) is default for default in plain)
        }
        cls.__annotations__ |= {name: hint.__origin__ for name, hint in hints.items()}

    def __post_init__(self) -> None:
        defaults = self._defaults
        for name, check in self._checks.items():
            value = getattr(self, name)
            if value is not defaults.get(name, _Checked):
                self._set(name, check(value, name))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **{name: getattr(self, name) for name in self._checks}), ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable to the bottom, like a str


# Parts of a Config ----------------------------------------------------------------------------

NAMESPACE_FLAGS = {  # include/uapi/linux/sched.h
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}


class Running(Protocol):
    """A `Container`, as far as it can be joined."""

    @property
    def pid(self) -> int | None: ...

    @property
    def pidfd(self) -> int | None: ...


def _running(value: Running, field: str) -> Running:
    # The class itself is above this module.
    if isinstance(value, type) or not all(hasattr(value, name) for name in ("pid", "pidfd", "run")):
        _expected("a Container", value, field)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(_Checked):
    """A namespace that is there: of a ``container`` that runs, at a ``path`` such as
    ``/proc/PID/ns/net`` or ``/run/netns/NAME``, or what ``fd`` is open on; one of them.

    It is looked up when a container is started. With ``container`` or ``fd`` it cannot be pickled.
    """

    container: Annotated[Running | None, _optional(_running)] = None
    path: Annotated[StrPath | None, _optional(_path)] = None
    fd: Annotated[int | None, _optional(_int(0, _MAX_INT))] = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        given = [name for name in ("container", "path", "fd") if getattr(self, name) is not None]
        if len(given) != 1:
            _fail("path", f"give one of container, path and fd, not {len(given)} of them")

    def __reduce__(self) -> tuple[Any, ...]:
        for name in ("container", "fd"):
            if getattr(self, name) is not None:
                _fail(name, "cannot be pickled")
        return _Checked.__reduce__(self)


def _namespace(value: object, field: str) -> object:
    if isinstance(value, str | os.PathLike):
        return Join(path=_path(value, field))
    if isinstance(value, Join):
        return value
    return _bool(value, field)


_Which = Annotated[bool | StrPath | Join, _namespace]


@dataclass(frozen=True, slots=True)
class Namespaces(_Checked):
    """Which namespaces are new (True), which stay the caller's (False), and which are somebody
    else's (a path, or `Join`); namespaces(7).

    ``mnt`` is always new. A namespace can be joined by root, and by an ordinary user
    who joins the user namespace that it belongs to along with it: both of one container of theirs.
    With another user namespace than that one's the container has no rights over it, and nothing is
    to be seen in its ``/sys`` where that would be another network's. The range of host ids of a
    container of this program stays leased as long as one that shares its user namespace lives.

    Where ``pid`` is not new there is no PID namespace whose end ends all that a container leaves.
    So it has a control group for that, as with ``Config(resources=Resources())``, and an
    `UnsupportedError` says why it cannot have one. Its first process adopts its orphans, and its
    ``/proc`` shows everybody's processes. The end of PID 1 of a shared namespace is everybody's.
    A container with ids that are others' too may signal their processes: with ``user=False`` those
    of the host's root, with a single id those of its caller, its own launcher among them.
    """

    user: _Which = True
    mnt: _Which = True
    pid: _Which = True
    net: _Which = True
    ipc: _Which = True
    uts: _Which = True
    cgroup: _Which = True
    time: _Which = False

    def clone_flags(self) -> int:
        """The CLONE_NEW* bits of the new namespaces, for clone3(2) and unshare(2)."""
        return sum(flag for name, flag in NAMESPACE_FLAGS.items() if getattr(self, name) is True)

    def joined(self) -> dict[str, Join]:
        """Those that are somebody else's, by name."""
        found = {name: getattr(self, name) for name in NAMESPACE_FLAGS}
        return {name: each for name, each in found.items() if isinstance(each, Join)}


_CLOCKS = re.compile("monotonic|boottime")
_MOST_SHIFT = 2**62 // 10**9  # seconds; KTIME_MAX / 2, which is as far as the kernel goes


def _shift(value: float | timedelta, field: str) -> int | float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not _is_int(seconds) and not isinstance(seconds, float):
        _expected("seconds or a timedelta", value, field)
    if not -_MOST_SHIFT <= seconds <= _MOST_SHIFT:  # refuses NaN too
        _fail(field, f"must be from -{_MOST_SHIFT} to {_MOST_SHIFT} seconds, not {_show(value)}")
    return seconds


class MountFlags(IntFlag, boundary=STRICT):
    """What a `Mount` is and how it propagates; numbers of our own, not the kernel's MS_*."""

    BIND = 1 << 0
    BIND_READ_ONLY = 1 << 1
    PROC = 1 << 2
    SYSFS = 1 << 3
    TMPFS = 1 << 4
    DEVPTS = 1 << 5
    PRIVATE = 1 << 6
    SLAVE = 1 << 7
    SHARED = 1 << 8


_NO_FLAGS = MountFlags(0)
_PROPAGATION = (MountFlags.PRIVATE, MountFlags.SLAVE, MountFlags.SHARED)
_MOUNT_TYPES = {
    "bind": MountFlags.BIND | MountFlags.BIND_READ_ONLY,
    "tmpfs": MountFlags.TMPFS,
    "proc": MountFlags.PROC,
    "sysfs": MountFlags.SYSFS,
    "devpts": MountFlags.DEVPTS,
    "mqueue": _NO_FLAGS,
    "cgroup2": _NO_FLAGS,
}


def _mount_type(given: str | None, flags: MountFlags) -> str:
    """The one type that ``type`` and ``flags`` agree on."""
    types = {name for name, bits in _MOUNT_TYPES.items() if flags & bits}
    types |= {given} if given is not None else set()
    if not types:
        _fail("type", "say what to mount: 'bind', 'tmpfs' and so on, here or by a flag")
    if len(types) > 1:
        _fail("flags", f"contradictory: {', '.join(map(_show, sorted(types)))}")
    (kind,) = types
    if kind not in _MOUNT_TYPES:
        raise UnsupportedError(f"{_show(kind)} mounts are not supported", field="type")
    return kind


@dataclass(frozen=True, slots=True)
class IDMapping(_Checked):
    """``size`` ids from ``container_id`` inside are those from ``host_id`` outside.

    One line of uid_map or gid_map, user_namespaces(7).
    """

    container_id: Annotated[int, _id]
    host_id: Annotated[int, _id]
    size: Annotated[int, _int(1, LAST_ID + 1)]

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        first = max(self.container_id, self.host_id)
        if first + self.size > LAST_ID + 1:
            _fail("size", f"{self.size} ids from {first} go beyond the last id, {LAST_ID}")

    def _overlaps(self, other: "IDMapping") -> bool:
        pairs = (self.container_id, other.container_id), (self.host_id, other.host_id)
        return any(a < b + other.size and b < a + self.size for a, b in pairs)


_IDMappings = Annotated[Sequence[IDMapping], _sequence(_instance(IDMapping), most=MOST_EXTENTS)]


def _check_mappings(holder: Any) -> None:
    for name, other in (("uid_mappings", "gid_mappings"), ("gid_mappings", "uid_mappings")):
        mappings = getattr(holder, name)
        if mappings and not getattr(holder, other):
            _fail(other, f"must be given together with {name}")
        for index, mapping in enumerate(mappings):
            if any(map(mapping._overlaps, mappings[:index])):
                _fail(f"{name}[{index}]", "overlaps one before it")


@dataclass(frozen=True, slots=True)
class Mount(_Checked):
    """A mount inside the container, best made by `bind` or `tmpfs`.

    ``source`` is a path of the host; ``target`` is absolute, below the container's root, and made
    where it is missing. ``type`` (``"bind"``, ``"tmpfs"``, ``"proc"``, ``"sysfs"``, ``"devpts"``,
    ``"mqueue"``, ``"cgroup2"``) and ``flags`` may each be left out where the other says it;
    ``data`` are the options of the file system, such as ``"size=64m,mode=1777"`` (tmpfs(5)).

    A bind includes the mounts below its source unless ``recursive`` is False; what is said of a
    mount holds for those too. ``read_only``, ``nosuid``, ``nodev`` and ``noexec`` are those of
    mount(8). Left out, ``read_only`` is that of the flags, and True for sysfs and cgroup2, which
    shows the control group that a Config with ``resources`` has; ``nosuid`` is False
    only in a Config with ``no_new_privileges=False``, ``nodev`` only for devpts.

    Flags of propagation (mount_namespaces(7)): PRIVATE, which all are by default; SLAVE shows what
    the host mounts below the source later; SHARED heads a group of its own, in which namespaces
    made inside take part. Nothing that is mounted inside ever shows on the host.

    ``idmap`` True shows the owners of files as ids of the container (host's root as its root),
    False as they are, None leaves that to the defaults. ``uid_mappings`` and ``gid_mappings``
    map from ids of the file system (``container_id``) to those of the host, as OCI has it. For
    binds of a root caller only.
    """

    source: Annotated[StrPath | None, _optional(_path)]
    target: Annotated[StrPath, _target]
    type: Annotated[str | None, _optional(_text)] = None
    flags: Annotated[MountFlags, _instance(MountFlags)] = _NO_FLAGS
    data: Annotated[str | None, _optional(_text)] = None
    _: KW_ONLY
    read_only: Annotated[bool | None, _optional(_bool)] = None
    nosuid: Annotated[bool | None, _optional(_bool)] = None
    nodev: Annotated[bool | None, _optional(_bool)] = None
    noexec: Annotated[bool, _bool] = False
    recursive: Annotated[bool, _bool] = True
    idmap: Annotated[bool | None, _optional(_bool)] = None
    uid_mappings: _IDMappings = ()
    gid_mappings: _IDMappings = ()

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        kind = _mount_type(self.type, self.flags)
        if kind == "bind":
            self._check_bind()
        else:
            self._check_new(kind)
        # One spelling of each mount, so that equal mounts compare equal.
        said = bool(self.flags & MountFlags.BIND_READ_ONLY) or kind in ("sysfs", "cgroup2")
        read_only = said if self.read_only is None else self.read_only
        flags = next(iter(_MOUNT_TYPES[kind]), _NO_FLAGS)
        flags = MountFlags.BIND_READ_ONLY if kind == "bind" and read_only else flags
        self._set("read_only", read_only)
        self._set("nodev", kind != "devpts" if self.nodev is None else self.nodev)
        self._set("type", kind)
        self._set("flags", flags | self._propagation())
        self._set("data", self.data or None)

    def _propagation(self) -> MountFlags:
        said = [flag for flag in _PROPAGATION if self.flags & flag]
        if len(said) > 1:
            _fail("flags", f"contradictory: {', '.join(str(flag.name) for flag in said)}")
        return _NO_FLAGS if said in ([], [MountFlags.PRIVATE]) else said[0]

    def _check_bind(self) -> None:
        if self.source is None:
            _fail("source", "a bind mount needs a source")
        if self.data:
            _fail("data", "a bind mount takes no options, the kernel would ignore them")
        if self.flags & MountFlags.BIND_READ_ONLY and self.read_only is False:
            _fail("read_only", "contradicts BIND_READ_ONLY")
        _check_mappings(self)
        if self.uid_mappings and self.idmap is not None:
            _fail("idmap", "is said by uid_mappings already")

    def _check_new(self, kind: str) -> None:
        if self.flags & MountFlags.SLAVE:
            _fail("flags", f"SLAVE needs a bind: nothing is mounted below a new {kind} yet")
        for name, default in (("idmap", None), ("uid_mappings", ()), ("gid_mappings", ())):
            if getattr(self, name) != default:
                _fail(name, "needs a bind mount")

    @classmethod
    def bind(cls, source: StrPath, target: StrPath, read_only: bool = False) -> Self:
        """Show a directory or file of the host at ``target``."""
        _bool(read_only, "read_only")
        flags = MountFlags.BIND_READ_ONLY if read_only else MountFlags.BIND
        return cls(source, target, "bind", flags)

    @classmethod
    def tmpfs(cls, target: StrPath, size: int | str | None = None, mode: int | None = None) -> Self:
        """An empty file system in memory.

        ``size`` in bytes or as ``"64M"``, -1 for no limit, None for the kernel's default (half of
        the memory); ``mode`` are the permission bits of its top directory (None: 0o1777).
        """
        options = []
        if size is not None:
            limit = parse_size(size, "size", unlimited=True)
            if limit == 0:
                _fail("size", "tmpfs takes 0 for no limit; write -1 for that")
            options.append(f"size={max(limit, 0)}")
        if mode is not None:
            options.append(f"mode={_int(0, 0o7777, oct)(mode, 'mode'):04o}")
        return cls(None, target, "tmpfs", MountFlags.TMPFS, ",".join(options) or None)


def _host_mount(value: Mount | StrPath, field: str) -> Mount:
    if isinstance(value, Mount):
        return value
    path = _target(value, field)
    return Mount.bind(path, path, read_only=True)


@dataclass(frozen=True, slots=True, init=False)
class HostRoot(_Checked):
    """A root made of the host's programs: its ``/usr`` read-only, a small ``/etc``, else tmpfs.

    ``extra`` adds mounts; a path alone is a directory of the host, read-only, in its own place.
    """

    extra: Annotated[Sequence[Mount], _sequence(_host_mount)]

    def __init__(self, extra: Sequence[Mount | StrPath] = ()) -> None:
        self._set("extra", extra)
        self.__post_init__()
        _unique(self.extra, "target", "extra")


_MAX_LAYERS = 500  # fs/overlayfs/params.h: OVL_MAX_STACK


def _layers(value: StrPath | Sequence[StrPath], field: str) -> tuple[str, ...]:
    if isinstance(value, str | os.PathLike):
        value = (value,)
    layers: tuple[str, ...] = _sequence(_path, most=_MAX_LAYERS)(value, field)
    return layers or _fail(field, "needs at least one directory")


@dataclass(frozen=True, slots=True)
class Overlay(_Checked):
    """A root made of directories that stay as they are: what is changed goes into another one.

    ``lower`` is a directory or several, of which the first covers the others (overlayfs, "lower
    layers"); mounts below them do not show. ``upper`` is the directory that takes the changes and
    keeps them: a deleted file is a character device 0:0 there, a replaced directory has the
    attribute ``user.overlay.opaque`` (``trusted.overlay.opaque`` without a user namespace). None:
    a tmpfs that goes with the container. ``work`` is an empty directory on the same mount as
    ``upper``, None the path of ``upper`` with ``.work`` behind it, which is made if need be and
    stays. Neither may be used by two containers at a time.
    """

    lower: Annotated[StrPath | Sequence[StrPath], _layers]
    upper: Annotated[StrPath | None, _optional(_path)] = None
    work: Annotated[StrPath | None, _optional(_path)] = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.work is not None and self.upper is None:
            _fail("work", "needs upper: without it both are in a tmpfs")


def _root(value: StrPath | HostRoot | Overlay, field: str) -> str | HostRoot | Overlay:
    if isinstance(value, HostRoot | Overlay):
        return value
    if not isinstance(value, str | os.PathLike):
        _expected("str, os.PathLike, HostRoot or Overlay", value, field)
    return _path(value, field)


def _device_path(value: StrPath, field: str) -> str:
    path = _target(value, field)
    name = path.removeprefix("/dev/")
    if name == path:
        _fail(field, f"must lie below /dev, the only place where devices work: {_show(path)}")
    if name.split("/")[0] in _OWN_OF_DEV:
        _fail(field, f"{_show(path)} is made anyway, and is no device node")
    return path


def _device_type(value: str | int, field: str) -> str:
    kinds = {"c": "c", "u": "c", "b": "b", S_IFCHR: "c", S_IFBLK: "b"}
    if not isinstance(value, str) and not _is_int(value):
        _expected("'c', 'b', stat.S_IFCHR or stat.S_IFBLK", value, field)
    return kinds[value] if value in kinds else _fail(field, f"unknown: {_show(value)}")


_OWN_OF_DEV = frozenset(("fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm"))


@dataclass(frozen=True, slots=True)
class Device(_Checked):
    """A device node below ``/dev`` of the container, mknod(2).

    ``type`` is "c" (character) or "b" (block), also as `stat.S_IFCHR` and `stat.S_IFBLK`; ``mode``
    are its permission bits, None for 0o666. With a user namespace no node can be made that opens:
    the host's is bound, which the caller must be allowed to open, with the owner and the mode that
    it has; ``mode`` must be None or that one, ``uid`` and ``gid`` 0 (`UnsupportedError`).
    """

    path: Annotated[StrPath, _device_path]
    type: Annotated[str | int, _device_type]
    major: Annotated[int, _int(0, 4095)]
    minor: Annotated[int, _int(0, 2**20 - 1)]
    mode: Annotated[int | None, _optional(_int(0, 0o777, oct))] = None
    uid: Annotated[int, _id] = 0
    gid: Annotated[int, _id] = 0


def _access(value: str, field: str) -> str:
    if not isinstance(value, str):
        _expected("str", value, field)
    if not value or set(value) - set("rwm"):
        _fail(field, f"must be some of the letters 'rwm', not {_show(value)}")
    return "".join(letter for letter in "rwm" if letter in value)


@dataclass(frozen=True, slots=True)
class DeviceRule(_Checked):
    """Whether device nodes may be opened for reading and writing, or made: ``access`` is some of
    "rwm" (OCI runtime-spec, config-linux, "Allowed Device list").

    ``type`` is "c" or "b"; None is any type, any number.
    """

    allow: Annotated[bool, _bool]
    type: Annotated[str | None, _optional(_device_type)] = None
    major: Annotated[int | None, _optional(_int(0, 4095))] = None
    minor: Annotated[int | None, _optional(_int(0, 2**20 - 1))] = None
    access: Annotated[str, _access] = "rwm"


# Linux's own numbers, Documentation/admin-guide/devices.txt.
_DEFAULT_DEVICES = tuple(
    Device(f"/dev/{name}", "c", major, minor, 0o666)
    for name, major, minor in (
        *(("null", 1, 3), ("zero", 1, 5), ("full", 1, 7)),
        *(("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)),
    )
)


def default_devices() -> tuple[Device, ...]:
    """Those that every container has (OCI runtime-spec, config-linux): null, zero, full, random,
    urandom, tty.
    """
    return _DEFAULT_DEVICES


@dataclass(frozen=True, slots=True)
class Landlock(_Checked):
    """What the program and its children may do with files, beside all that their ids allow.

    Below the paths of ``read``, absolute and inside the container, they may read and execute,
    below those of ``write`` also change and make files, and elsewhere nothing; landlock(7). Links
    in these are followed, but not into another mount than the path names. Needs Linux 6.2. What
    only shows that a file exists (stat(2), say) is not restricted, nor is an open file or
    directory.
    """

    read: Annotated[Sequence[StrPath], _sequence(_absolute, most=_MAX_RULES)] = ()
    write: Annotated[Sequence[StrPath], _sequence(_absolute, most=_MAX_RULES)] = ()


# Resources ------------------------------------------------------------------------------------

_MIN_QUOTA = 1000  # microseconds, as for periods: kernel/sched/core.c
_MAX_PERIOD = 10**6
_CPUSET = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_DEVICE_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,3}):(?:0|[1-9][0-9]{0,6})", re.ASCII)
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,3}[KMG]B", re.ASCII)
_RDMA_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_CGROUP_FILE = re.compile(r"(?!cgroup\.)[a-z_]+(?:\.[A-Za-z0-9_]+)+", re.ASCII)


class _Limits(_FrozenMapping):
    """No secrets here: the repr has the values too."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self._content)


_NO_LIMITS = _Limits({})


def _limit(value: int | str, field: str) -> int:
    return parse_size(value, field, unlimited=True)


def _cpu_list(value: str, field: str) -> str:
    for part in _text(value, field).split(","):
        match = _CPUSET.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            _fail(field, f"{_show(value)} is no list such as '0-3,5' (cpuset(7), list format)")
    return value


def _mapping_of(pattern: re.Pattern[str], what: str, check: Check) -> Check:
    """Names in a format, each with a value that becomes a text."""

    def check_all(value: Mapping[str, Any], field: str) -> _Limits:
        if not isinstance(value, Mapping):
            _expected("a mapping", value, field)
        for name in value:
            if not isinstance(name, str):
                _expected("str for a name", name, field)
            if not pattern.fullmatch(name):
                _fail(f"{field}[{_show(name)}]", f"is no {what}")
        return _Limits(
            {name: check(content, f"{field}[{_show(name)}]") for name, content in value.items()}
        )

    return check_all


def _pairs(checks: Mapping[str, Check]) -> Check:
    """``{"rbps": 1000}`` or the kernel's ``"rbps=1000"``, kept as the latter."""

    def check(value: Mapping[str, Any] | str, field: str) -> str:
        if isinstance(value, str):
            words = [word.partition("=")[::2] for word in value.split()]
            if len(words) != len(dict(words)):
                _fail(field, f"names one twice: {_show(value)}")
            value = {name: -1 if text == "max" else text for name, text in words}
        if not isinstance(value, Mapping):
            _expected("a mapping or a text such as 'rbps=1000'", value, field)
        parts = []
        for name, content in value.items():
            if name not in checks:
                _fail(f"{field}[{_show(name)}]", f"there are {', '.join(checks)}")
            number = checks[name](content, f"{field}[{_show(name)}]")
            parts.append(f"{name}={'max' if number == -1 else number}")
        return " ".join(parts) or _fail(field, f"must have one of {', '.join(checks)}")

    return check


def _count(value: int | str, field: str) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value, re.ASCII):
        value = int(value)
    number: int = _int(-1, _MAX_SIZE)(value, field)
    return number


_IO_MAX = {"rbps": _limit, "wbps": _limit, "riops": _count, "wiops": _count}
_RDMA_MAX = {"hca_handle": _count, "hca_object": _count}


def _hugetlb_limit(value: int | str, field: str) -> str:
    if value == "max":
        return "max"
    limit = _limit(value, field)
    return "max" if limit == -1 else str(limit)


def _raw_value(value: str, field: str) -> str:
    if not _text(value, field) or not value.isprintable():
        _fail(field, f"must be some printable text: {_show(value)}")
    return value


@dataclass(frozen=True, slots=True)
class CPUResources(_Checked):
    """Limits of processor time; cgroup-v2.rst, "CPU" and "Cpuset".

    ``quota`` microseconds of all CPUs together in each ``period`` (100000 where None), -1 for no
    limit. ``weight``, 1 to 10000 (the kernel's default is 100), divides what several cgroups
    want at once; ``idle`` gives only what nobody else wants, and has no weight. ``burst`` are
    microseconds beyond the quota that unused ones of before allow. ``cpus`` and ``mems`` are the
    processors and memory nodes that may be used, such as ``"0-3,5"``.
    """

    quota: Annotated[int | None, _optional(_int(-1, _MAX_INT))] = None
    period: Annotated[int | None, _optional(_int(_MIN_QUOTA, _MAX_PERIOD))] = None
    weight: Annotated[int | None, _optional(_int(1, 10000))] = None
    cpus: Annotated[str | None, _optional(_cpu_list)] = None
    mems: Annotated[str | None, _optional(_cpu_list)] = None
    idle: Annotated[bool | None, _optional(_bool)] = None
    burst: Annotated[int | None, _optional(_int(0, _MAX_INT))] = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.quota is not None and 0 <= self.quota < _MIN_QUOTA:
            _fail("quota", f"must be -1 or at least {_MIN_QUOTA} microseconds, not {self.quota}")
        if self.idle and self.weight is not None:
            _fail("weight", "contradicts idle")


@dataclass(frozen=True, slots=True)
class MemoryResources(_Checked):
    """Limits of memory in bytes or as ``"256M"``, -1 for none; cgroup-v2.rst, "Memory".

    What needs more than ``max`` is killed. Above ``high`` it is slowed down and its memory taken
    back. ``min`` is never taken for others, ``low`` not while there is another way. ``swap_max``
    limits swap alone; None is 0 where ``max`` is set, or that would limit nothing, else
    untouched. With ``oom_group`` everything in the cgroup is killed at once, not one process;
    None is True where ``max`` is set.
    """

    max: Annotated[int | str | None, _optional(_limit)] = None
    high: Annotated[int | str | None, _optional(_limit)] = None
    swap_max: Annotated[int | str | None, _optional(_limit)] = None
    low: Annotated[int | str | None, _optional(_limit)] = None
    min: Annotated[int | str | None, _optional(_limit)] = None
    oom_group: Annotated[bool | None, _optional(_bool)] = None


@dataclass(frozen=True, slots=True)
class PidsResources(_Checked):
    """``max`` processes and threads, -1 for no limit; cgroup-v2.rst, "PID"."""

    max: Annotated[int | None, _optional(_int(-1, 2**22))] = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.max == 0:
            _fail("max", "must be -1 or at least 1: nothing could be started")


@dataclass(frozen=True, slots=True)
class IOResources(_Checked):
    """Limits of block devices; cgroup-v2.rst, "IO".

    ``weight``, 1 to 10000, is the share of devices whose scheduler knows weights. ``max`` has for
    devices, named by their numbers as in ``"8:0"``, limits per second: ``rbps`` and ``wbps`` in
    bytes, ``riops`` and ``wiops`` in operations, -1 for none, as a mapping or as the kernel
    writes it (``"wbps=1048576 wiops=120"``).
    """

    weight: Annotated[int | None, _optional(_int(1, 10000))] = None
    max: Annotated[
        Mapping[str, Mapping[str, int | str] | str],
        _mapping_of(_DEVICE_NUMBER, "device number such as '8:0'", _pairs(_IO_MAX)),
    ] = _NO_LIMITS


@dataclass(frozen=True, slots=True)
class Resources(_Checked):
    """What a cgroup may use. None is untouched: what is not said has no limit.

    ``hugetlb`` has bytes by page size (``{"2MB": "64M"}``), ``rdma`` ``hca_handle`` and
    ``hca_object`` by device. ``unified`` has texts for files of controllers, by name, which are
    written as they are, last (OCI runtime-spec, config-linux, "Unified").
    """

    memory: Annotated[MemoryResources | None, _optional(_instance(MemoryResources))] = None
    cpu: Annotated[CPUResources | None, _optional(_instance(CPUResources))] = None
    pids: Annotated[PidsResources | None, _optional(_instance(PidsResources))] = None
    io: Annotated[IOResources | None, _optional(_instance(IOResources))] = None
    hugetlb: Annotated[
        Mapping[str, int | str], _mapping_of(_PAGE_SIZE, "page size such as '2MB'", _hugetlb_limit)
    ] = _NO_LIMITS
    rdma: Annotated[
        Mapping[str, Mapping[str, int] | str],
        _mapping_of(_RDMA_DEVICE, "name of a device", _pairs(_RDMA_MAX)),
    ] = _NO_LIMITS
    unified: Annotated[
        Mapping[str, str], _mapping_of(_CGROUP_FILE, "file such as 'memory.high'", _raw_value)
    ] = _NO_LIMITS

    @classmethod
    def default(cls) -> Self:
        """512 MiB of memory without swap, 1024 processes, an ordinary share of the CPUs."""
        return cls(
            memory=MemoryResources(max=512 << 20),
            cpu=CPUResources(weight=100),
            pids=PidsResources(max=1024),
        )


# Hooks ----------------------------------------------------------------------------------------


class HookType(StrEnum):
    """When a hook runs, by its name in the OCI runtime-spec: see `Hooks`."""

    PRESTART = "prestart"
    CREATE_RUNTIME = "createRuntime"
    CREATE_CONTAINER = "createContainer"
    START_CONTAINER = "startContainer"
    POSTSTART = "poststart"
    POSTSTOP = "poststop"


def _hook_timeout(value: float | timedelta, field: str) -> float:
    return parse_duration(value, field) or _fail(field, "must be more than 0; None is no limit")


@dataclass(frozen=True, slots=True)
class Hook(_Checked):
    """A program to run at a moment in the life of a container, with its state on stdin.

    ``path`` is absolute; ``args`` are all of its arguments, the first one its own name, None is
    the path alone. Its environment is ``env`` and nothing else. After ``timeout`` seconds (None:
    never) it is killed with all that it has started, and has failed. So it has when it ends with
    another status than 0. The repr has the names in ``env`` only.
    """

    path: Annotated[StrPath, _absolute]
    args: Annotated[Sequence[StrPath] | None, _optional(_args)] = None
    env: Annotated[Mapping[str, str] | None, _optional(_mapping("=\0"))] = None
    timeout: Annotated[float | timedelta | None, _optional(_hook_timeout)] = None


HookCall = Callable[["ContainerState"], object]


def _outer_hook(value: "Hook | HookCall", field: str) -> "Hook | HookCall":
    if isinstance(value, Hook) or (callable(value) and not isinstance(value, type)):
        return value
    _expected("Hook or a function", value, field)


_OuterHooks = Annotated["Sequence[Hook | HookCall]", _sequence(_outer_hook)]
_InnerHooks = Annotated[Sequence[Hook], _sequence(_instance(Hook))]


@dataclass(frozen=True, slots=True)
class Hooks(_Checked):
    """What runs at which moment, each kind in its order (OCI runtime-spec, "Lifecycle").

    ``prestart``, then ``create_runtime``: the namespaces are there, and what is mounted, but the
    root is not entered yet; in the caller's namespaces. Then ``create_container``: at the same
    moment, but in the container's namespaces, with all the rights of its root; paths are the
    host's, and the working directory is the container's root. ``start_container``: after
    `Container.start`, just before the program runs, in the container as that program, with its
    user, limits, capabilities and filter; ``path`` is the container's. ``poststart``: when the
    program runs, ``poststop``: when the container is gone; both in the caller's namespaces.

    In the caller's namespaces a hook has the caller's rights, and may be a function that takes the
    `ContainerState`. When one fails, those after it are left out, the container is undone and
    `HookError` says why. All of ``poststop`` run whatever happened; what fails there is told at
    last, by the `CleanupError` of `Container.destroy` or in the notes of an earlier error.
    """

    prestart: _OuterHooks = ()
    create_runtime: _OuterHooks = ()
    create_container: _InnerHooks = ()
    start_container: _InnerHooks = ()
    poststart: _OuterHooks = ()
    poststop: _OuterHooks = ()

    def of(self, hook_type: HookType) -> "Sequence[Hook | HookCall]":
        """Those of one kind."""
        hooks: Sequence[Hook | HookCall] = getattr(self, HookType(hook_type).name.lower())
        return hooks

    @property
    def before_start(self) -> bool:
        """Whether the container has to wait for any of them before its program runs."""
        return bool(
            self.prestart or self.create_runtime or self.create_container or self.start_container
        )


_DEFAULT_CAPABILITIES = Capabilities.default()
_NO_NAMES = _FrozenMapping({})
_NO_SHIFTS: Mapping[str, Any] = _Limits({})


# A network -------------------------------------------------------------------------------------

DEFAULT_BRIDGE_NAME = "container0"
DEFAULT_BRIDGE_SUBNET = "10.88.0.0/16"
DEFAULT_BRIDGE_GATEWAY = "10.88.0.1/16"

_MAX_PORT = 2**16 - 1
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ, with its final NUL
_PROTOCOLS = ("tcp", "udp", "sctp")
_MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_MAX_NAME = 253  # characters of a domain name
_DNS_OPTION = re.compile(r"[a-z0-9-]+(:[0-9]+)?")
_MIN_MTU, _MIN_MTU6 = 68, 1280  # RFC 791, RFC 8200
PUBLIC = "public"
"""As ``egress``: everywhere but to addresses that are not of the public Internet."""


def _address_of(kind: str, value: Any, field: str) -> Any:
    """What ``ipaddress`` makes of a str or one of its own objects; ``kind``: a function of it."""
    import ipaddress  # noqa: PLC0415  (3 ms)

    if not isinstance(value, str) and type(value).__module__ != "ipaddress":
        _expected("str or an object of ipaddress", value, field)
    try:
        found = getattr(ipaddress, kind)(str(value))
    except ValueError as error:
        _fail(field, str(error))
    return _fail(field, "a scope has no place here") if "%" in str(found) else found


def parse_ip(value: Any, field: str) -> str:
    """An address, without a prefix or a scope."""
    return str(_address_of("ip_address", value, field))


def _host_ip(value: Any, field: str) -> str | None:
    return None if value == "" else parse_ip(value, field)


def _interface(value: Any, field: str) -> str:
    """An address, with or without the length of its network's prefix behind a slash."""
    found = _address_of("ip_interface", value, field)
    return str(found) if "/" in str(value) else str(found.ip)


def _subnet(value: Any, field: str) -> str:
    return str(_address_of("ip_network", value, field))


def check_interface_name(value: str, field: str) -> str:
    """The name of a network interface."""
    if not isinstance(value, str):
        _expected("str", value, field)
    if not _INTERFACE.fullmatch(value) or value in (".", "..", "all", "default"):
        _fail(field, f"must be 1 to 15 of A-Za-z0-9_.-: {_show(value)}")
    return value


def _domain(value: str, field: str) -> str:
    if not isinstance(value, str):
        _expected("str", value, field)
    if len(value) > _MAX_NAME or not all(map(_LABEL.fullmatch, value.split("."))):
        _fail(field, f"is no domain name: {_show(value)}")
    return value


def _dns_option(value: str, field: str) -> str:
    if not isinstance(value, str) or not _DNS_OPTION.fullmatch(value):
        _fail(field, f"is no option of resolv.conf(5): {_show(value)}")
    return value


def _mac_address(value: str, field: str) -> str:
    if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
        _fail(field, f"must be like '02:00:5e:10:00:01': {_show(value)}")
    if int(value[:2], 16) & 1 or not int(value.replace(":", ""), 16):
        _fail(field, f"is that of a group, or no address: {value!r}")
    return value.lower()


class NetworkMode(StrEnum):
    """NONE: nothing but loopback. HOST: the caller's network. BRIDGE: an interface at a bridge."""

    NONE = "none"
    HOST = "host"
    BRIDGE = "bridge"


def _network_mode(value: str, field: str) -> NetworkMode:
    if value not in NetworkMode._value2member_map_:
        _fail(field, f"must be one of {', '.join(NetworkMode)}, not {_show(value)}")
    return NetworkMode(value)


def _protocol(value: str, field: str) -> str:
    if value not in _PROTOCOLS:
        _fail(field, f"must be one of {', '.join(_PROTOCOLS)}, not {_show(value)}")
    return value


@dataclass(frozen=True, slots=True)
class PortMapping(_Checked):
    """A port of the host that leads to one of the container.

    ``host_ip`` is the address of the host that it is published at: None for all of them,
    ``"0.0.0.0"`` for all of IPv4, ``"::"`` for all of IPv6. At ``"127.0.0.1"`` it is for programs
    of the host only; at ``"::1"`` it cannot be (`UnsupportedError`): the kernel drops what comes
    from there at any other interface. ``protocol`` is ``"tcp"``, ``"udp"`` or ``"sctp"``.
    """

    host_ip: Annotated[str | None, _optional(_host_ip)]
    host_port: Annotated[int, _int(1, _MAX_PORT)]
    container_port: Annotated[int, _int(1, _MAX_PORT)]
    protocol: Annotated[str, _protocol] = "tcp"

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.host_ip is None:
            return
        address = _address_of("ip_address", self.host_ip, "host_ip")
        if address.version == 6 and address.is_loopback:
            raise UnsupportedError(
                "IPv6 has no way from loopback to another interface; use 127.0.0.1",
                field="host_ip",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """``"[IP:]HOST_PORT:CONTAINER_PORT[/PROTOCOL]"``, an IPv6 address in brackets."""
        mappings = parse_ports(text, "text")
        if len(mappings) != 1:
            _fail("text", f"is a range: {_show(text)}; see port_mappings_from_strings")
        mapping = mappings[0]
        return cls(mapping.host_ip, mapping.host_port, mapping.container_port, mapping.protocol)

    def __str__(self) -> str:
        host = ""
        if self.host_ip is not None:
            host = f"[{self.host_ip}]:" if ":" in str(self.host_ip) else f"{self.host_ip}:"
        return f"{host}{self.host_port}:{self.container_port}/{self.protocol}"


_PORTS = re.compile(
    r"(?:(?:\[(?P<ip6>[^][]*)\]|(?P<ip4>[^][:/]*)):)?"
    r"(?P<host>[0-9]+(?:-[0-9]+)?):(?P<inside>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>[a-z]+))?"
)


def parse_ports(text: str, field: str) -> list[PortMapping]:
    """The mappings of ``"[IP:]HOST[-LAST]:CONTAINER[-LAST][/PROTOCOL]"``."""
    if not isinstance(text, str):
        _expected("str", text, field)
    match = _PORTS.fullmatch(text) if text.isascii() else None
    if match is None:
        _fail(field, f"expected '[IP:]HOST_PORT:CONTAINER_PORT[/PROTOCOL]': {_show(text)}")
    host, inside = (_port_range(match[name], field, text) for name in ("host", "inside"))
    if len(host) != len(inside):
        _fail(field, f"{len(host)} ports of the host for {len(inside)}: {_show(text)}")
    try:
        return [
            PortMapping(match["ip6"] or match["ip4"], outer, inner, match["protocol"] or "tcp")
            for outer, inner in zip(host, inside, strict=True)
        ]
    except ConfigError as error:
        _fail(field, f"{error.detail}: {_show(text)}")


def _port_range(text: str, field: str, whole: str) -> range:
    first, _, last = text.partition("-")
    if len(text) > len("65535-65535"):
        _fail(field, f"ports are from 1 to {_MAX_PORT}: {_show(whole)}")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > _MAX_PORT:
        _fail(field, f"ports are from 1 to {_MAX_PORT}, the lower first: {_show(whole)}")
    return ports


def port_mappings_from_strings(texts: Sequence[str]) -> list[PortMapping]:
    """The mappings of ``["8080:80", "127.0.0.1:5000-5002:5000-5002/udp"]``, ranges expanded."""
    strings = _sequence(parse_ports)(texts, "texts")
    return [mapping for mappings in strings for mapping in mappings]


def _port_mapping(value: PortMapping | str, field: str) -> tuple[PortMapping, ...]:
    if isinstance(value, PortMapping):
        return (value,)
    return tuple(parse_ports(value, field))


def _port_mappings(value: Sequence[PortMapping | str], field: str) -> tuple[PortMapping, ...]:
    groups = _sequence(_port_mapping)(value, field)
    return tuple(mapping for group in groups for mapping in group)


@dataclass(frozen=True, slots=True)
class _Egress:
    """An entry of an allow-list, taken apart."""

    network: str
    protocol: str | None  # None: any
    first: int
    last: int


_EGRESS = re.compile(
    r"(?:\[(?P<ip6>[^][]*)\]|(?P<ip4>[^][:]*?))"
    r"(?::(?P<ports>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>[a-z]+))?)?"
)


def parse_egress(text: str, field: str) -> _Egress:
    """``"NETWORK"`` or ``"NETWORK:PORT[-LAST][/PROTOCOL]"``, IPv6 in brackets when with a port."""
    if not isinstance(text, str):
        _expected("str", text, field)
    if text.count(":") > 1 and "[" not in text:
        return _Egress(_subnet(text, field), None, 0, _MAX_PORT)
    match = _EGRESS.fullmatch(text) if text.isascii() else None
    if match is None:
        _fail(field, f"expected 'NETWORK[:PORT[/PROTOCOL]]': {_show(text)}")
    network = _subnet(match["ip6"] or match["ip4"], field)
    if match["ports"] is None:
        return _Egress(network, None, 0, _MAX_PORT)
    ports = _port_range(match["ports"], field, text)
    return _Egress(network, _protocol(match["protocol"] or "tcp", field), ports[0], ports[-1])


def _egress(value: Sequence[str] | str, field: str) -> str | tuple[str, ...]:
    if value == PUBLIC:
        return PUBLIC
    if isinstance(value, str):
        _fail(field, f"expected None, 'public' or a sequence, not {_show(value)}")

    def check(text: str, name: str) -> str:
        parse_egress(text, name)
        return text

    entries: tuple[str, ...] = _sequence(check, _MAX_RULES)(value, field)
    return entries


@dataclass(frozen=True, slots=True)
class NetworkConfig(_Checked):
    """How a container is connected.

    With ``mode`` BRIDGE it gets an interface (``eth0``, the next one ``eth1``) at the bridge
    ``bridge``, which is made with ``subnet`` (and ``subnet6``, for IPv6) if it is not there. A name
    other than the default needs a subnet when it is new. ``ip_address`` (``ip6_address``) None: a
    free one is leased; ``gateway`` None: the first of the subnet. ``mtu``, ``mac_address`` are
    those of the interface. Containers of one bridge reach each other, and find each other by
    ``hostname`` (None: the container's id) and ``aliases``; those of others do not, unless
    ``peers`` names their bridge.

    ``port_mappings`` are published ports, `PortMapping` or ``"8080:80"``. ``dns`` are nameservers
    (None: the host's, less those at its loopback), with ``dns_search`` and ``dns_options`` as in
    resolv.conf(5). ``egress`` says where connections may be made to: None is everywhere,
    ``"public"`` the public Internet alone (no private, link-local and metadata addresses), else
    entries ``"10.1.0.0/16"``, ``"192.0.2.7:443"``, ``"[2001:db8::1]:53/udp"``, ports of tcp unless
    said otherwise; ``()`` is nowhere. That holds for neighbours and the host too, which then may
    ask the container by a published port only. Nameservers have to be named: who may ask any can
    send out anything. ``adjust_firewall=False`` leaves a FORWARD chain of others that drops as it
    is; else two rules for the bridge are put into it.
    """

    mode: Annotated[NetworkMode | str, _network_mode] = NetworkMode.BRIDGE
    bridge: Annotated[str, check_interface_name] = DEFAULT_BRIDGE_NAME
    ip_address: Annotated[Any, _optional(_interface)] = None
    gateway: Annotated[Any, _optional(_interface)] = None
    dns: Annotated[Sequence[Any] | None, _optional(_sequence(parse_ip))] = None
    hostname: Annotated[str | None, _optional(_domain)] = None
    port_mappings: Annotated[Sequence[PortMapping | str], _port_mappings] = ()
    _: KW_ONLY
    subnet: Annotated[Any, _optional(_subnet)] = None
    subnet6: Annotated[Any, _optional(_subnet)] = None
    ip6_address: Annotated[Any, _optional(_interface)] = None
    gateway6: Annotated[Any, _optional(_interface)] = None
    mtu: Annotated[int | None, _optional(_int(_MIN_MTU, 65535))] = None
    mac_address: Annotated[str | None, _optional(_mac_address)] = None
    aliases: Annotated[Sequence[str], _sequence(_domain)] = ()
    dns_search: Annotated[Sequence[str], _sequence(_domain)] = ()
    dns_options: Annotated[Sequence[str], _sequence(_dns_option)] = ()
    peers: Annotated[Sequence[str], _sequence(check_interface_name)] = ()
    egress: Annotated[Sequence[str] | str | None, _optional(_egress)] = None
    adjust_firewall: Annotated[bool, _bool] = True

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.mode != NetworkMode.BRIDGE:
            for name in self._checks:
                default = type(self).__dataclass_fields__[name].default
                if name != "mode" and getattr(self, name) != default:
                    _fail(name, f"has no meaning with mode {str(self.mode)!r}")
            return
        self._check_addresses("", 4)
        self._check_addresses("6", 6)
        if self.subnet6 and self.mtu is not None and self.mtu < _MIN_MTU6:
            _fail("mtu", f"must be {_MIN_MTU6} at least with IPv6")
        self._check_ports()

    def _check_addresses(self, suffix: str, version: int) -> None:
        """That the addresses of one family lie in the subnet and differ."""
        subnet_field, gateway_field = f"subnet{suffix}", f"gateway{suffix}"
        address_field = f"ip{suffix}_address"
        address, gateway = getattr(self, address_field), getattr(self, gateway_field)
        subnet = self.subnet_of(version)
        if subnet is None:  # that of a bridge which is there
            return
        network = _address_of("ip_network", subnet, subnet_field)
        if network.version != version:
            _fail(subnet_field, f"must be of IPv{version}: {subnet!r}")
        if network.num_addresses < 4:
            _fail(subnet_field, f"has no room for a gateway and a container: {subnet!r}")
        if network.is_loopback or network.is_multicast or network.is_link_local:
            _fail(subnet_field, f"cannot be of loopback, multicast or link-local: {subnet!r}")
        for name, value in ((gateway_field, gateway), (address_field, address)):
            if value is not None:
                _check_inside(network, value, name)
        if address is not None and plain_address(address) == self.gateway_of(version):
            _fail(address_field, f"is that of the gateway: {address!r}")

    def _check_ports(self) -> None:
        seen: dict[tuple[object, ...], int] = {}
        for index, mapping in enumerate(cast(tuple[PortMapping, ...], self.port_mappings)):
            field = f"port_mappings[{index}]"
            if ":" in (mapping.host_ip or "") and self.subnet6 is None:
                _fail(field, "an IPv6 address needs subnet6")
            key = (mapping.host_ip, mapping.host_port, mapping.protocol)
            if key in seen:
                _fail(field, f"is published twice, see port_mappings[{seen[key]}]: {mapping}")
            seen[key] = index

    def subnet_of(self, version: int) -> str | None:
        """The subnet as given, by an address with its prefix, or of the default bridge."""
        suffix = "6" if version == 6 else ""
        given = getattr(self, f"subnet{suffix}")
        if given is not None:
            return cast(str, given)
        for value in (getattr(self, f"ip{suffix}_address"), getattr(self, f"gateway{suffix}")):
            if value is not None and "/" in value:
                return str(_address_of("ip_interface", value, f"subnet{suffix}").network)
        default = version == 4 and self.bridge == DEFAULT_BRIDGE_NAME
        return DEFAULT_BRIDGE_SUBNET if default else None

    def gateway_of(self, version: int) -> str | None:
        """The address of the bridge, without its prefix; None for a bridge that is to be there."""
        given = self.gateway6 if version == 6 else self.gateway
        if given is not None:
            return plain_address(given)
        subnet = self.subnet_of(version)
        return None if subnet is None else str(_address_of("ip_network", subnet, "subnet")[1])


def plain_address(text: str) -> str:
    """Without the length of a prefix."""
    return text.partition("/")[0]


def _check_inside(network: Any, value: str, field: str) -> None:
    interface = _address_of("ip_interface", value, field)
    if interface.ip not in network:
        _fail(field, f"{interface.ip} is not in {network}")
    if "/" in value and interface.network != network:
        _fail(field, f"{value} is not of {network}")
    if interface.ip == network[0] or (network.version == 4 and interface.ip == network[-1]):
        _fail(field, f"{interface.ip} is that of the network itself, or its broadcast address")


def _networks(
    value: NetworkConfig | Sequence[NetworkConfig], field: str
) -> NetworkConfig | tuple[NetworkConfig, ...]:
    if isinstance(value, NetworkConfig):
        return value
    if isinstance(value, str):
        _expected("NetworkConfig or a sequence of them", value, field)
    networks: tuple[NetworkConfig, ...] = _sequence(_instance(NetworkConfig), _MOST_NETWORKS)(
        value, field
    )
    for index, network in enumerate(networks):
        if network.mode != NetworkMode.BRIDGE:
            _fail(f"{field}[{index}].mode", "must be 'bridge' among several")
    _unique(networks, "bridge", field)
    return networks


_MOST_NETWORKS = 16


# A container ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Config(_Checked):
    """What a container is made of; every default is the safe value.

    ``root`` is a directory of the host that becomes ``/``, writable, or an `Overlay`, or a
    `HostRoot`, which None stands for too. With ``read_only_root`` it cannot be written, nor can
    mounts that lie in such a directory already; those that the Config makes stay as they are.
    ``hostname`` is set where ``namespaces.uts`` is new. ``mounts`` are made in their order.
    ``uid_mappings`` and ``gid_mappings``, given both or neither, replace the ranges that are
    chosen otherwise. ``use_pivot_root=False`` is a downgrade: the host's mounts stay reachable
    for whoever breaks out of a chroot. Change one with ``dataclasses.replace``.

    ``devices`` are nodes of the container's own ``/dev``, in addition to those of
    `default_devices`, which are always there; one with the path of those replaces it.
    ``setup_dev=False`` leaves ``/dev`` as the root has it, where no node can be opened.

    ``device_rules``, of which the last that fits decides, say which other nodes may be opened,
    however they come in, and whether those that are bound may; ``devices`` always may. They need
    ``resources`` and root. For everybody else those that allow are void, since no node is there
    but what is given, and so is one that refuses all. Without any, no other node opens in a
    container without a user namespace that has ``resources``; with a user namespace none does
    anyway, but what is bound.

    ``seccomp`` is the filter of system calls, by default ``SeccompProfile.default()``; its rules
    for capabilities go by the bounding set, and those for CAP_SYS_ADMIN hold with ``nested`` too.
    ``None`` is a downgrade: no filter, and all of the kernel's interface to attack. With
    ``no_new_privileges=False`` the profile must allow what changes ids and capabilities as well,
    because only before that may a filter be loaded. Calls with the action NOTIFY wait for an answer
    by the fd `Container.seccomp_listener`: seccomp_unotify(2) tells what is safe to do for them,
    and that it is no wall. It needs no_new_privileges, `popen` or a `Container`, and allows execve.

    ``masked_paths`` show as empty and ``readonly_paths`` cannot be written, submounts included;
    one that is not there is left out (OCI runtime-spec, config-linux). None means Docker's: of
    ``/proc`` and ``/sys`` what tells of the machine, and ``/proc/sys`` and the like read-only.
    ``nested`` opens a wall on purpose: user namespaces may be made inside, so that containers can
    be, and ``None`` for paths means none, for a new ``/proc`` is refused beside a covered one.
    Else the container's user namespace allows none below it. (Whoever has CAP_SYS_ADMIN and
    CAP_SYS_RESOURCE in there can allow them again. With ``namespaces.user=False`` there is no
    such limit.)

    ``sysctl`` are values for the container's own namespaces: ``net.*``, ``fs.mqueue.*`` and the
    IPC ones of ``kernel.*``. ``proc_options`` are ``"hidepid=invisible"`` and ``"subset=pid"``,
    with a comma between, for its ``/proc``, proc(5). ``domainname`` is the NIS domain, uname(2).
    ``apparmor_profile`` (one that is loaded) and ``selinux_label`` are those of the program, from
    its execve on; `UnsupportedError` where the kernel runs without that module. ``landlock``
    confines it further, by path. ``time_offsets`` are seconds or timedeltas by which the clocks
    ``"monotonic"`` and ``"boottime"`` of a new time namespace differ from the caller's; they
    take Linux 6.3.
    confines it further, by path.

    ``resources`` are limits, by a control group of the container's own, which ``Resources()``
    gives without any: it can then be paused, and has stats. None: it is where the caller is.

    ``network`` connects it: a `NetworkConfig`, or several for an interface each. None: nothing but
    loopback in a new ``namespaces.net``.

    ``hooks`` are programs and functions that run at moments of its life.
    """

    root: Annotated[StrPath | HostRoot | Overlay | None, _optional(_root)] = None
    namespaces: Annotated[Namespaces, _instance(Namespaces)] = Namespaces()
    hostname: Annotated[str, parse_host_name] = "container"
    mounts: Annotated[Sequence[Mount], _sequence(_instance(Mount))] = ()
    uid_mappings: _IDMappings = ()
    gid_mappings: _IDMappings = ()
    use_pivot_root: Annotated[bool, _bool] = True
    capabilities: Annotated[Capabilities, _instance(Capabilities)] = _DEFAULT_CAPABILITIES
    seccomp: Annotated[SeccompProfile | None, _optional(_instance(SeccompProfile))] = field(
        default_factory=SeccompProfile.default
    )
    _: KW_ONLY  # the API has parameters to come before these
    devices: Annotated[Sequence[Device], _sequence(_instance(Device))] = _DEFAULT_DEVICES
    setup_dev: Annotated[bool, _bool] = True
    device_rules: Annotated[Sequence[DeviceRule], _sequence(_instance(DeviceRule), most=256)] = ()
    no_new_privileges: Annotated[bool, _bool] = True
    nested: Annotated[bool, _bool] = False
    masked_paths: Annotated[Sequence[StrPath] | None, _optional(_sequence(_target))] = None
    readonly_paths: Annotated[Sequence[StrPath] | None, _optional(_sequence(_target))] = None
    sysctl: Annotated[Mapping[str, str], _sysctl] = _NO_NAMES
    proc_options: Annotated[str | None, _optional(_proc_options)] = None
    domainname: Annotated[str | None, _optional(parse_host_name)] = None
    apparmor_profile: Annotated[str | None, _optional(_label)] = None
    selinux_label: Annotated[str | None, _optional(_label)] = None
    landlock: Annotated[Landlock | None, _optional(_instance(Landlock))] = None
    read_only_root: Annotated[bool, _bool] = False
    resources: Annotated[Resources | None, _optional(_instance(Resources))] = None
    network: Annotated[NetworkConfig | Sequence[NetworkConfig] | None, _optional(_networks)] = None
    time_offsets: Annotated[
        Mapping[str, float | timedelta], _mapping_of(_CLOCKS, "clock that can be shifted", _shift)
    ] = _NO_SHIFTS
    hooks: Annotated[Hooks | None, _optional(_instance(Hooks))] = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        self._check_namespaces()
        self._check_hooks()
        for name in self.sysctl:
            kind = sysctl_namespace(sysctl_path(name))
            if getattr(self.namespaces, str(kind)) is not True:
                _fail(f"sysctl[{name!r}]", f"needs a new namespaces.{kind}: it would be another's")
        _unique(self.mounts, "target", "mounts")
        self._check_shown_groups()
        if self.landlock is not None and not self.no_new_privileges:
            _fail("landlock", "needs no_new_privileges")
        if self.seccomp is not None and self.seccomp.asks and not self.no_new_privileges:
            _fail("seccomp", "NOTIFY needs no_new_privileges")
        if self.seccomp is not None and self.seccomp.asks and self.seccomp.listener_path:
            raise UnsupportedError("the listener is handed out", field="seccomp.listener_path")
        _unique(self.devices, "path", "devices")
        if not self.setup_dev and set(self.devices) - set(_DEFAULT_DEVICES):
            _fail("devices", "needs setup_dev: there is no /dev of our own to make them in")
        if self.device_rules and self.resources is None:
            _fail("device_rules", "needs resources: they hold for a control group")
        for name in ("uid_mappings", "gid_mappings"):
            if getattr(self, name) and self.namespaces.user is not True:
                _fail(name, "needs a new namespaces.user")
        _check_mappings(self)

    def _check_namespaces(self) -> None:
        if self.namespaces.mnt is not True:
            _fail("namespaces.mnt", "must be True: the container's mounts would be another's")
        if self.namespaces.uts is not True and self.hostname != "container":
            _fail("hostname", "needs a new namespaces.uts: it would become another's name")
        if self.namespaces.uts is not True and self.domainname is not None:
            _fail("domainname", "needs a new namespaces.uts: it would become another's")
        if self.time_offsets and self.namespaces.time is not True:
            _fail("time_offsets", "needs a new namespaces.time")
        self._check_network()

    def _check_network(self) -> None:
        network = self.network
        if isinstance(network, NetworkConfig) and network.mode == NetworkMode.HOST:
            if isinstance(self.namespaces.net, Join):
                _fail("network.mode", "'host' and a namespaces.net to join exclude each other")
            self._set("namespaces", replace(self.namespaces, net=False))
        elif network is not None and self.namespaces.net is not True:
            _fail("network", "needs a new namespaces.net: it would be another's")

    @property
    def bridges(self) -> tuple[NetworkConfig, ...]:
        """The networks that it gets an interface for, in the order of these."""
        several = isinstance(self.network, Sequence)
        networks = cast(Any, self.network if several else (self.network,))
        return tuple(each for each in networks if each and each.mode == NetworkMode.BRIDGE)

    def _check_shown_groups(self) -> None:
        for index, mount in enumerate(self.mounts):
            if mount.type != "cgroup2":
                continue
            if self.resources is None or self.namespaces.cgroup is not True:
                field = f"mounts[{index}].type"
                _fail(field, "needs resources and a new namespaces.cgroup: it would show another's")
            if not mount.read_only:
                field = f"mounts[{index}].read_only"
                raise UnsupportedError("must be True: limits could be lifted", field=field)

    def _check_hooks(self) -> None:
        if self.hooks is None:
            return
        if self.hooks.start_container and self.seccomp is not None and self.seccomp.asks:
            _fail("hooks.start_container", "cannot run under a filter with NOTIFY: nobody answers")
        for name in ("apparmor_profile", "selinux_label"):
            if self.hooks.create_container and getattr(self, name) is not None:
                raise UnsupportedError(
                    f"would run with the {name} of the container", field="hooks.create_container"
                )

    @classmethod
    def from_oci(cls, content: Mapping[str, Any], bundle: StrPath = ".") -> "Config":
        """What a config.json (OCI runtime-spec) says of the container; relative paths begin at
        ``bundle``. `container.oci.parse` has its program too. `ConfigError` and `UnsupportedError`
        have the JSON path of what is wrong, or is not there: docs/oci.md has a list.
        """
        from container.oci import parse  # noqa: PLC0415  (it knows this module)

        return parse(content, bundle).config

    def to_oci(self) -> dict[str, Any]:
        """A config.json without a program. `UnsupportedError` for what that has no words for."""
        from container.oci._render import render  # noqa: PLC0415

        return render(self)

    @classmethod
    def default(cls) -> Self:
        """``Config()``."""
        return cls()


# A process ------------------------------------------------------------------------------------

# In the order of their numbers, include/uapi/asm-generic/resource.h.
RLIMITS = (
    *("RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS"),
    *("RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS"),
    *("RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME"),
)


def _rlimit_type(value: int | str, field: str) -> str:
    if isinstance(value, str):
        # Outside ASCII there are letters that become these by upper().
        name = f"RLIMIT_{value.upper().removeprefix('RLIMIT_')}" if value.isascii() else ""
    elif _is_int(value):
        name = RLIMITS[value] if value in range(len(RLIMITS)) else ""
    else:
        _expected("a name such as 'NOFILE' or a constant of resource", value, field)
    return name if name in RLIMITS else _fail(field, f"unknown resource limit {_show(value)}")


def _rlimit(value: int | str, field: str) -> int:
    if isinstance(value, str):
        return parse_size(value, field, unlimited=True)
    limit: int = _int(-1, _RLIM_INFINITY)(value, field)
    return -1 if limit == _RLIM_INFINITY else limit


@dataclass(frozen=True, slots=True)
class Rlimit(_Checked):
    """A resource limit, getrlimit(2).

    ``type`` is a name with or without ``RLIMIT_`` or a constant of `resource`, stored as
    ``"RLIMIT_NOFILE"``; ``soft`` and ``hard`` are in the limit's own unit, sizes also as
    ``"64M"``, -1 for unlimited.
    """

    type: Annotated[int | str, _rlimit_type]
    soft: Annotated[int | str, _rlimit]
    hard: Annotated[int | str, _rlimit]

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.hard != -1 and (self.soft == -1 or int(self.soft) > int(self.hard)):
            _fail("soft", f"{self.soft} is above hard, {self.hard}")

    @property
    def number(self) -> int:
        """The kernel's number of the resource."""
        return RLIMITS.index(str(self.type))


_MAX_PASSED = 128  # of csrc/launcher.h


def _passed(value: Sequence[int], field: str) -> tuple[int, ...]:
    fds: tuple[int, ...] = _sequence(_int(3, _MAX_INT - 1), most=_MAX_PASSED)(value, field)
    for index, fd in enumerate(fds):
        if fd in fds[:index]:
            _fail(f"{field}[{index}]", f"{fd} again")
    return fds


_MOST_CPUS = 8192  # CONFIG_NR_CPUS of any kernel


def _cpus(value: Sequence[int], field: str) -> tuple[int, ...]:
    cpus: tuple[int, ...] = _sequence(_int(0, _MOST_CPUS - 1))(value, field)
    return tuple(sorted(set(cpus))) or _fail(field, "must not be empty; None is for all of them")


_Stdio = Annotated[int | HasFileno | None, _stdio]


def _refuse_to_pickle_streams(config: "Process | ExecConfig") -> None:
    for name in ("stdin", "stdout", "stderr"):
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int) and value < 0):
            _fail(name, "a file descriptor cannot be pickled")


def _tty_size(value: object, field: str) -> tuple[int, int]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        _expected("(rows, columns)", value, field)
    rows, columns = (_int(0, _MAX_TTY_SIZE)(each, field) for each in value)
    return rows, columns


def parse_tty_size(rows: int, columns: int) -> tuple[int, int]:
    """What `ExecProcess.resize` gets: characters."""
    check = _int(0, _MAX_TTY_SIZE)
    return check(rows, "rows"), check(columns, "columns")


def _check_terminal(config: "Process | ExecConfig") -> None:
    if not config.tty and config.tty_size is not None:
        _fail("tty_size", "needs tty=True")
    for name in ("stdin", "stdout", "stderr") if config.tty else ():
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int) and value < 0):
            _fail(name, "with tty=True all three streams are the terminal; leave it out")


@dataclass(frozen=True, slots=True)
class Process(_Checked):
    """A program to run in a container.

    ``args[0]`` is the program, looked up in the PATH of ``env`` where it has no slash. ``env`` is
    added to PATH, HOME, TERM and LANG, the caller's is never inherited. ``cwd`` is absolute and
    inside the container. ``user`` is ``"user"`` or ``"user:group"`` of the container, each a
    number or a name, or a uid; None is its root. Names are looked up in ``/etc/passwd`` and
    ``/etc/group`` of the container's root, nowhere else; a name without a group gets its primary
    and its supplementary groups from there, a number gets group 0. ``groups`` are added to them.
    With ``init`` a tiny PID 1 of ours reaps what the program leaves behind, passes signals
    on to it and ends with it; without, the program is PID 1 itself. ``pass_fds`` are fds of
    the caller that it shall have, at the same numbers, from 3 on; of directories and O_PATH ones
    never, because they lead out of the container: bind those. ``nice`` is its nice value,
    ``cpu_affinity`` the numbers of the processors that it may use (sched_setaffinity(2)),
    ``oom_score_adj`` from -1000 (never killed for want of memory) to 1000; None are 0, all, and
    the caller's but no less than 0. What is better than the caller's needs its capabilities.
    ``stdin``, ``stdout`` and ``stderr`` are None (the caller's), a file descriptor, an
    object with ``fileno()``, PIPE or DEVNULL; ``stderr`` also STDOUT. With a file descriptor a
    Process cannot be pickled (`ConfigError`). The repr has the names in ``env`` only.

    With ``tty`` it gets a terminal of the container's own, pty(7): its standard streams, its
    controlling terminal and ``/dev/console``, owned by its user. ``stdin`` and ``stdout`` of the
    `Container` or `ExecProcess` are then the other end of that, ``stderr`` is None, and no stream
    of the caller's may be given. ``tty_size`` is (rows, columns) in characters; None leaves the
    kernel's, 0 and 0. Raw mode is ``tty.setraw(process.stdin)``.
    """

    args: Annotated[Sequence[StrPath], _args]
    env: Annotated[Mapping[str, str] | None, _optional(_mapping("=\0"))] = None
    cwd: Annotated[StrPath | None, _optional(_absolute)] = None
    user: Annotated[int | str | None, _optional(_user)] = None
    groups: Annotated[Sequence[int], _sequence(_id, most=MAX_GROUPS)] = ()
    umask: Annotated[int, _int(0, 0o777, oct)] = 0o022
    tty: Annotated[bool, _bool] = False
    _: KW_ONLY  # the API has parameters to come before these
    tty_size: Annotated[tuple[int, int] | None, _optional(_tty_size)] = None
    rlimits: Annotated[Sequence[Rlimit], _sequence(_instance(Rlimit))] = ()
    init: Annotated[bool, _bool] = False
    pass_fds: Annotated[Sequence[int], _passed] = ()
    nice: Annotated[int | None, _optional(_int(-20, 19))] = None
    cpu_affinity: Annotated[Sequence[int] | None, _optional(_cpus)] = None
    oom_score_adj: Annotated[int | None, _optional(_int(-1000, 1000))] = None
    stdin: _Stdio = None
    stdout: _Stdio = None
    stderr: _Stdio = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        _unique(self.rlimits, "type", "rlimits")
        _check_terminal(self)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.pass_fds:
            _fail("pass_fds", "file descriptors cannot be pickled")
        _refuse_to_pickle_streams(self)
        return _Checked.__reduce__(self)


@dataclass(frozen=True, slots=True)
class ExecConfig(_Checked):
    """A program to run in a container that runs already.

    What is None is as for the process that the container was started with: ``cwd``, ``user`` (and
    its ``groups``), ``capabilities``; ``env`` is added to that process's. So are its rlimits,
    umask, no_new_privs, nice value, processors and oom_score_adj, always. ``root`` is a directory
    inside that becomes ``/``; ``cwd`` is then below it. ``user`` is as in `Process`. The streams
    are as in `Process` too, but by default as in `popen`: nothing to read, and pipes for what is
    written. After ``timeout`` seconds every process that it has started is killed. ``tty`` and
    ``tty_size`` are as in `Process`, but ``/dev/console`` stays what it is. With a file
    descriptor it cannot be pickled (`ConfigError`). The repr has the names in ``env`` only.
    """

    args: Annotated[Sequence[StrPath], _args]
    env: Annotated[Mapping[str, str] | None, _optional(_mapping("=\0"))] = None
    cwd: Annotated[StrPath | None, _optional(_absolute)] = None
    root: Annotated[StrPath | None, _optional(_absolute)] = None
    user: Annotated[int | str | None, _optional(_user)] = None
    tty: Annotated[bool, _bool] = False
    stdin: _Stdio = DEVNULL
    stdout: _Stdio = PIPE
    stderr: _Stdio = PIPE
    capabilities: Annotated[Capabilities | None, _optional(_instance(Capabilities))] = None
    timeout: Annotated[float | timedelta | None, _optional(parse_duration)] = None
    _: KW_ONLY
    tty_size: Annotated[tuple[int, int] | None, _optional(_tty_size)] = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        _check_terminal(self)

    def __reduce__(self) -> tuple[Any, ...]:
        _refuse_to_pickle_streams(self)
        return _Checked.__reduce__(self)


@dataclass(frozen=True, slots=True)
class SignalConfig(_Checked):
    """How a container is stopped: ``stop_signal``, then SIGKILL after ``stop_timeout`` seconds.

    ``forward_signals`` are those that a `SignalForwarder` passes on; by default TERM, INT, HUP,
    USR1 and USR2.
    """

    stop_signal: Annotated[int, parse_signal] = SIGTERM
    stop_timeout: Annotated[float | timedelta, parse_duration] = 10.0
    # Linux's numbers: not every system that can import this has these names.
    forward_signals: Annotated[Sequence[int], _sequence(_catchable)] = (15, 2, 1, 10, 12)


# What is reported -----------------------------------------------------------------------------


class State(StrEnum):
    """Where in its life a container is: OCI runtime-spec, and paused."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


def _state(value: str, field: str) -> State:
    try:
        return State(value)
    except ValueError:
        _fail(field, f"must be one of {', '.join(State)}, not {_show(value)}")


def _json_time(value: object, field: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        _fail(field, f"{_show(value)} is no RFC 3339 time")
    return None if time.year == 1 else time  # Go writes its zero time for "never"


_TIMES = ("created_at", "started_at", "stopped_at")


@dataclass(frozen=True, slots=True)
class ContainerState(_Checked):
    """A container at one moment.

    ``pid`` is that of its first process in the caller's pid namespace, None without one;
    ``exit_code`` is None until it stopped, then as ``returncode`` (-N for a signal). Times have a
    time zone and are kept in UTC.
    """

    id: Annotated[str, validate_id]
    state: Annotated[State, _state]
    pid: Annotated[int | None, _optional(_int(1, _MAX_INT))]
    exit_code: Annotated[int | None, _optional(_int(-_MAX_SIGNAL, 255))]
    created_at: Annotated[datetime, _time]
    started_at: Annotated[datetime | None, _optional(_time)] = None
    stopped_at: Annotated[datetime | None, _optional(_time)] = None
    bundle: Annotated[str, _text] = ""
    annotations: Annotated[Mapping[str, str], _mapping("\0")] = _FrozenMapping({})

    def to_json(self) -> str:
        """A JSON object; times are RFC 3339 in UTC, what is not known is null or left out."""
        import json  # noqa: PLC0415  (8 ms)

        content = {name: getattr(self, name) for name in self._checks}
        content["annotations"] = dict(self.annotations)
        for name in _TIMES:
            content[name] = content[name] and content[name].isoformat().replace("+00:00", "Z")
        for name in ("started_at", "stopped_at", "bundle", "annotations"):
            if not content[name]:
                del content[name]
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The state that `to_json` wrote; unknown names are ignored. `ConfigError` if malformed."""
        import json  # noqa: PLC0415  (8 ms)

        try:
            content = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            _fail("text", f"is no JSON: {error}")
        if not isinstance(content, dict):
            _expected("a JSON object", content, "text")
        fields: dict[str, Any] = dict.fromkeys(("id", "state", "pid", "exit_code", "created_at"))
        fields |= {name: content[name] for name in cls._checks if content.get(name) is not None}
        fields |= {name: _json_time(fields.get(name), name) for name in _TIMES}
        # A Go program writes 0 where there is no pid or no exit code yet.
        fields["pid"] = None if fields["pid"] == 0 else fields["pid"]
        if fields["state"] != State.STOPPED:
            fields["exit_code"] = None
        return cls(**fields)

    def to_oci(self) -> dict[str, object]:
        """The state of the OCI runtime-spec (runtime.md), as hooks get it on stdin."""
        state: dict[str, object] = {"ociVersion": OCI_VERSION, "id": self.id}
        state |= {"status": str(self.state), "bundle": self.bundle}
        if self.pid is not None:
            state["pid"] = self.pid
        if self.annotations:
            state["annotations"] = dict(self.annotations)
        return state


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program used: seconds of wall clock and of CPU; bytes; None where not known."""

    wall: float
    user: float
    system: float
    max_rss: int | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended and what it wrote.

    ``returncode`` is the exit status, -N after signal N, which is ``signal`` then. ``stdout`` and
    ``stderr`` are bytes, ``str`` in text mode, None where not captured; ``stdout_dropped`` and
    ``stderr_dropped`` count the bytes beyond ``max_output``. ``oom_killed``: the kernel has killed
    something in the container for want of memory (``oom_kill`` of memory.events, cgroup-v2.rst),
    of a command in one while that ran. With ``oom_outside`` the container's own limit was not met:
    that of a cgroup above was, or the machine had no more.
    """

    args: Sequence[str]
    returncode: int
    stdout: Any = None
    stderr: Any = None
    signal: int | None = None
    oom_killed: bool = False
    stdout_dropped: int = 0
    stderr_dropped: int = 0
    timed_out: bool = False
    usage: Usage | None = None
    oom_outside: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", tuple(self.args))
        if self.signal is None and self.returncode < 0:
            object.__setattr__(self, "signal", parse_signal(-self.returncode, "returncode"))

    def check_returncode(self) -> None:
        """Raise `CommandError` unless the status is 0."""
        if self.returncode:
            raise CommandError(self)


publish(CPUResources, MemoryResources, PidsResources, IOResources, Resources)
publish(Join, Namespaces, MountFlags, Mount, IDMapping, HostRoot, Overlay, Landlock, Config)
publish(Device, DeviceRule)
publish(Hook, HookType, Hooks)
publish(default_devices, Rlimit, Process, ExecConfig, SignalConfig, State, ContainerState)
publish(NetworkMode, NetworkConfig, PortMapping, port_mappings_from_strings)
publish(Usage, Result)
