# SPDX-License-Identifier: Apache-2.0
"""`Cgroup`: a control group of the v2 hierarchy, its limits, numbers and end."""

import fcntl
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from errno import EBUSY, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ESRCH
from select import POLLERR, POLLPRI, poll
from time import monotonic
from typing import Any, Self

from container._config import Resources, StrPath, parse_duration, validate_id
from container._errors import (
    CgroupError,
    CgroupNotFoundError,
    ConfigError,
    ControllerNotEnabledError,
    publish,
)
from container._hierarchy import (
    SUBTREE,
    available,
    enable,
    find_hierarchy,
    find_place,
    read,
    subtrees,
)
from container._limits import Setting, controllers_of, settings_of

OPTIONAL = ("memory", "pids")  # for the numbers, where they cost nothing
_PATIENCE = 10.0  # seconds: only a stuck process needs more to freeze or to die
_MICRO = 1e6
_TRIES = 8
_MARK = "@"  # begins the names of launchers' places, and no name that `validate_id` lets pass


# Numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CPUStats:
    """Processor time; ``*_usec`` in microseconds, the properties in seconds.

    Of ``nr_periods`` in which there was a quota, ``nr_throttled`` were cut short, by
    ``throttled_usec`` together.
    """

    usage_usec: int = 0
    user_usec: int = 0
    system_usec: int = 0
    nr_periods: int = 0
    nr_throttled: int = 0
    throttled_usec: int = 0

    @property
    def usage(self) -> float:
        return self.usage_usec / _MICRO

    @property
    def user(self) -> float:
        return self.user_usec / _MICRO

    @property
    def system(self) -> float:
        return self.system_usec / _MICRO

    @property
    def throttled(self) -> float:
        return self.throttled_usec / _MICRO


@dataclass(frozen=True, slots=True)
class MemoryEvents:
    """How often a limit was met: memory.events, cgroup-v2.rst. ``oom_kill`` counts processes."""

    low: int = 0
    high: int = 0
    max: int = 0
    oom: int = 0
    oom_kill: int = 0
    oom_group_kill: int = 0


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Bytes. ``max`` is the limit, None without one; ``peak`` and ``swap`` are None where the
    kernel does not tell (before 5.19, without swap). ``own_events`` are those of the cgroup's own
    limits, ``events`` of those below it as well; a process that a limit further up has killed is
    an ``oom_kill`` without an ``oom``.
    """

    current: int
    peak: int | None = None
    swap: int | None = None
    max: int | None = None
    events: MemoryEvents = MemoryEvents()
    own_events: MemoryEvents = MemoryEvents()


@dataclass(frozen=True, slots=True)
class PidsStats:
    """Processes and threads; ``peak`` is None before Linux 6.11, ``max`` None without a limit.
    ``refused`` is how often the limit has refused one.
    """

    current: int
    peak: int | None = None
    max: int | None = None
    refused: int = 0


@dataclass(frozen=True, slots=True)
class IOStats:
    """Bytes and operations of one device, read, written and discarded."""

    rbytes: int = 0
    wbytes: int = 0
    rios: int = 0
    wios: int = 0
    dbytes: int = 0
    dios: int = 0


@dataclass(frozen=True, slots=True)
class Pressure:
    """Percent of the time in which somebody (``some``) or everybody (``full``) waited, over 10, 60
    and 300 seconds, and microseconds in all: Documentation/accounting/psi.rst.
    """

    some: Mapping[str, float] = field(default_factory=dict)
    full: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """What a cgroup uses; None or empty where the controller is not enabled."""

    cpu: CPUStats
    memory: MemoryStats | None = None
    pids: PidsStats | None = None
    io: Mapping[str, IOStats] = field(default_factory=dict)
    pressure: Mapping[str, Pressure] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and those of each, by name."""
        return asdict(self)


def parse_flat(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _only(kind: type, numbers: Mapping[str, int]) -> Any:
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: value for name, value in numbers.items() if name in names})


def parse_events(text: str) -> MemoryEvents:
    """memory.events"""
    events: MemoryEvents = _only(MemoryEvents, parse_flat(text))
    return events


def parse_io(text: str) -> dict[str, IOStats]:
    """io.stat"""
    found = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        numbers = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        counts = {name: int(value) for name, value in numbers.items() if value.isdigit()}
        found[device] = _only(IOStats, counts)
    return found


def parse_pressure(text: str) -> Pressure:
    """cpu.pressure and the like"""
    lines = {}
    for line in text.splitlines():
        name, *pairs = line.split()
        lines[name] = {key: float(value) for key, value in (pair.split("=") for pair in pairs)}
    return Pressure(**{name: lines[name] for name in ("some", "full") if name in lines})


def parse_number(text: str | None) -> int | None:
    """One number, None for "max" and for a file that is not there."""
    text = (text or "").strip()
    return int(text) if text.isdigit() else None


# The group ------------------------------------------------------------------------------------


class Cgroup:
    """A control group of cgroup v2. Safe to use from many threads.

    Made by `create` or `open`. It stays until `remove`, whatever becomes of its maker; a `with`
    block kills what is in it and removes it. ``path`` is its directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def create(cls, name: str, resources: Resources | None = None) -> Self:
        """Make a cgroup with these limits in the place for containers' cgroups, see README.

        `ControllerNotEnabledError` says who has a controller that is needed.
        """
        validate_id(name, "name")
        settings = settings_of(_resources(resources))
        group = cls(make_directory(name, controllers_of(settings)))
        try:
            group._write_all(settings)
        except BaseException:
            with suppress(OSError):
                remove_tree(group.path)
            raise
        return group

    @classmethod
    def open(cls, path: StrPath) -> Self:
        """One that is there: by its directory, or by its path in /proc/PID/cgroup."""
        top = find_hierarchy().top
        text = os.fspath(path)
        if not isinstance(text, str):
            raise ConfigError(f"expected str, got {type(text).__name__}", field="path")
        for directory in (text, os.path.join(top, text.lstrip("/"))):
            if _is_cgroup(directory, top):
                return cls(os.path.realpath(directory))
        raise CgroupNotFoundError(f"there is no cgroup {text!r}")

    # What is in it

    def add_process(self, pid: int) -> None:
        """Move a process with its threads into it; what it starts from then on is in it too."""
        if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
            raise ConfigError(f"expected the id of a process, got {pid!r}", field="pid")
        try:
            self._write("cgroup.procs", str(pid))
        except OSError as error:
            detail = f"cannot move process {pid} into {self.path!r}: {error.strerror}"
            if error.errno == ESRCH:
                detail = f"there is no process {pid}"
            elif error.errno in (EBUSY, EOPNOTSUPP):
                detail += " (it gives its children controllers, so it can have no processes)"
            raise self._error(error, detail) from error

    def processes(self) -> list[int]:
        """The pids of what is in it, cgroups below not included; 0 for those of an outer one."""
        return [int(pid) for pid in self._read("cgroup.procs").split()]

    @property
    def populated(self) -> bool:
        """Whether a process lives in it or below."""
        return self._event("populated")

    @property
    def frozen(self) -> bool:
        """Whether every process in it stands still."""
        return self._event("frozen")

    def _event(self, name: str) -> bool:
        return parse_flat(self._read("cgroup.events")).get(name) == 1

    # Numbers and limits

    def stats(self) -> CgroupStats:
        """What it uses now, and has used."""
        cpu = _only(CPUStats, parse_flat(self._read("cpu.stat")))
        return CgroupStats(
            cpu=cpu,
            memory=self._memory(),
            pids=self._pids(),
            io=parse_io(self._peek("io.stat") or ""),
            pressure={
                name: parse_pressure(text)
                for name in ("cpu", "memory", "io")
                if (text := self._peek(f"{name}.pressure"))
            },
        )

    def _memory(self) -> MemoryStats | None:
        current = parse_number(self._peek("memory.current"))
        if current is None:
            return None
        return MemoryStats(
            current=current,
            peak=parse_number(self._peek("memory.peak")),
            swap=parse_number(self._peek("memory.swap.current")),
            max=parse_number(self._peek("memory.max")),
            events=parse_events(self._peek("memory.events") or ""),
            own_events=parse_events(self._peek("memory.events.local") or ""),
        )

    def _pids(self) -> PidsStats | None:
        current = parse_number(self._peek("pids.current"))
        if current is None:
            return None
        return PidsStats(
            current=current,
            peak=parse_number(self._peek("pids.peak")),
            max=parse_number(self._peek("pids.max")),
            refused=parse_flat(self._peek("pids.events") or "").get("max", 0),
        )

    def update(self, resources: Resources) -> None:
        """Change limits, of what runs as well; what is None stays as it is."""
        self._write_all(settings_of(_resources(resources)))

    def _write_all(self, settings: Iterable[Setting]) -> None:
        for setting in settings:
            try:
                self._write(setting.file, setting.value)
            except OSError as error:
                if error.errno != ENOENT or not setting.optional:
                    raise refusal(setting, error, self.path) from error

    # Life

    def freeze(self, timeout: float = _PATIENCE) -> None:
        """Let everything in it stand still; returns once it does.

        `CgroupError` when it does not within ``timeout`` seconds: it is thawed again then.
        """
        limit = parse_duration(timeout)
        try:
            self._set("cgroup.freeze", "1")
            if not self._await("frozen", 1, limit):
                raise CgroupError(f"{self.path!r} is not frozen after {limit:g} seconds")
        except BaseException:
            with suppress(CgroupError):
                self._set("cgroup.freeze", "0")
            raise

    def thaw(self) -> None:
        """Let it go on."""
        self._set("cgroup.freeze", "0")

    def kill(self, timeout: float = _PATIENCE) -> None:
        """SIGKILL everything in it and below, what is forked meanwhile too; returns once all is
        dead. `CgroupError` if something still lives after ``timeout`` seconds.
        """
        limit = parse_duration(timeout)
        self._set("cgroup.kill", "1")
        if not self._await("populated", 0, limit):
            raise CgroupError(f"processes in {self.path!r} still live after {limit:g} seconds")

    def remove(self) -> None:
        """Remove it and the cgroups below it, which must be empty. Nothing happens if it is gone.

        `CgroupError` while a process lives in one: `kill`.
        """
        try:
            remove_tree(self.path)
        except OSError as error:
            raise CgroupError(f"cannot remove {self.path!r}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(CgroupNotFoundError):
            self.kill()
        self.remove()

    def __repr__(self) -> str:
        return f"<Cgroup {self.path}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cgroup) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    # Files

    def _await(self, event: str, value: int, timeout: float) -> bool:
        """Wait for a line of cgroup.events, which the kernel tells of."""
        deadline = monotonic() + timeout
        with self._open("cgroup.events") as file:
            poller = poll()
            poller.register(file, POLLPRI | POLLERR)
            while True:
                try:
                    file.seek(0)
                    numbers = parse_flat(file.read())
                except OSError as error:
                    raise self._error(error, f"cannot read {self.path!r}") from error
                if numbers.get(event) == value:
                    return True
                left = deadline - monotonic()
                if left <= 0:
                    return False
                poller.poll(left * 1000)

    def _open(self, name: str) -> Any:
        try:
            return open(os.path.join(self.path, name), encoding="ascii")
        except OSError as error:
            raise self._error(error, f"cannot read {error.filename!r}") from error

    def _read(self, name: str) -> str:
        try:
            return read(os.path.join(self.path, name))
        except OSError as error:
            raise self._error(error, f"cannot read {name} of {self.path!r}") from error

    def _peek(self, name: str) -> str | None:
        try:
            return read(os.path.join(self.path, name))
        except OSError as error:
            # No such controller; pressure that is not measured; removed meanwhile.
            if error.errno in (ENOENT, EOPNOTSUPP, ENODEV):
                return None
            raise CgroupError(f"cannot read {name} of {self.path!r}: {error.strerror}") from error

    def _write(self, name: str, value: str) -> None:
        fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def _set(self, name: str, value: str) -> None:
        try:
            self._write(name, value)
        except OSError as error:
            detail = f"cannot write {name} of {self.path!r}: {error.strerror}"
            raise self._error(error, detail) from error

    def _error(self, error: OSError, detail: str) -> CgroupError:
        if error.errno in (ENOENT, ENODEV) and not os.path.isdir(self.path):
            return CgroupNotFoundError(f"cgroup {self.path!r} is gone")
        return CgroupError(detail)


def _is_cgroup(path: str, top: str) -> bool:
    """Not anybody's directory with files that have such names, or are links to others."""
    try:
        return os.path.isdir(path) and os.stat(path).st_dev == os.stat(top).st_dev
    except (OSError, ValueError):
        return False


def _resources(value: Resources | None) -> Resources:
    if value is not None and not isinstance(value, Resources):
        raise ConfigError(f"expected Resources, got {type(value).__name__}", field="resources")
    return value if value is not None else Resources()


def refusal(setting: Setting, error: OSError, path: str) -> Exception:
    """Why a limit cannot be set in the cgroup ``path``."""
    if error.errno in (ENOENT, ENODEV) and not os.path.isdir(path):
        return CgroupNotFoundError(f"cgroup {path!r} is gone")
    if error.errno == ENOENT and setting.controller not in available(path):
        return ControllerNotEnabledError(
            setting.controller,
            holder=os.path.dirname(path),
            remedy=f"make the cgroup with a limit of {setting.controller} from the beginning",
        )
    why = error.strerror
    if error.errno == ENOENT:
        why = f"this kernel has no {setting.file}"
    elif error.errno == ENODEV:
        why = "there is no such device"
    elif error.errno == EINVAL:
        why = "the kernel does not take it"
    return ConfigError(f"{setting.value!r}: {why}", field=f"resources.{setting.field}")


_NAME = "user.container.id"


def name_group(path: str, name: str) -> None:
    """Note whose it is, for who looks from outside; a kernel without such notes has none."""
    with suppress(OSError):
        os.setxattr(path, _NAME, name.encode())


def group_name(path: str) -> str | None:
    """What was noted, else the name of the directory; None for what only waits to be used."""
    try:
        return os.getxattr(path, _NAME).decode(errors="replace")
    except OSError:
        name = os.path.basename(path)
        return name if not name.isdigit() else None


def is_frozen(path: str | None) -> bool:
    """Whether the cgroup ``path`` is to stand still; not if it is gone, or there is none."""
    if path is None:
        return False
    try:
        return read(os.path.join(path, "cgroup.freeze")).strip() == "1"
    except OSError:
        return False


def make_directory(name: str, controllers: Iterable[str], within: str | None = None) -> str:
    """A new cgroup in the place for those of containers, see `find_place`."""
    wanted = tuple(controllers)
    for _ in range(_TRIES):
        place = find_place(wanted, OPTIONAL, within)
        path = os.path.join(place, name)
        try:
            os.mkdir(path, 0o755)
        except FileNotFoundError:  # somebody has removed the last one, and the place with it
            continue
        except FileExistsError:
            raise CgroupError(f"cgroup {path!r} is there already") from None
        except OSError as error:
            raise CgroupError(f"cannot make {path!r}: {error.strerror}") from error
        return path
    raise CgroupError(f"cannot make {path!r}: its place is removed again and again")


# The place of a launcher ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """The cgroup of one launcher's containers; whoever has its lock (``fd``) is alive."""

    path: str
    above: str
    fd: int
    controllers: frozenset[str]

    def remove(self) -> None:
        with suppress(OSError):
            remove_tree(self.path)


def claim_place(name: str, wanted: Collection[str], within: str | None = None) -> Place:
    """Make and lock one; what dead launchers have left beside it is removed."""
    for _ in range(_TRIES):
        path = make_directory(f"{_MARK}{name}", wanted, within)
        fd = _lock(path)
        if fd is None:  # taken for a dead one's in between
            continue
        try:
            controllers = available(path) & {*wanted, *OPTIONAL}
            enable(path, controllers)
        except OSError as error:
            os.close(fd)
            remove_tree(path)
            raise CgroupError(f"cannot enable controllers in {path!r}: {error.strerror}") from error
        _prune(os.path.dirname(path))
        return Place(path, os.path.dirname(path), fd, controllers)
    raise CgroupError(f"cannot make {path!r}: it is removed again and again")


def extend_place(path: str, wanted: Collection[str]) -> None:
    """Give what will be in there more controllers; `ControllerNotEnabledError` names one that is
    not to be had.
    """
    find_place(wanted, OPTIONAL, os.path.dirname(os.path.dirname(path)))
    try:
        enable(path, wanted)
    except OSError as error:
        raise CgroupError(f"cannot enable controllers in {path!r}: {error.strerror}") from error


def _lock(path: str) -> int | None:
    """An fd with the lock of a place that is there; None where somebody else has it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(fd).st_ino:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def prune_places() -> list[str]:
    """End and remove what dead launchers have left; the directories that went."""
    return [path for directory in subtrees() for path in _prune(directory)]


def _prune(directory: str) -> list[str]:
    removed = []
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        fd = _lock(path) if name.startswith(_MARK) else None
        if fd is None:
            continue
        try:
            # Somebody else's, or something in it will not die: not for us to tell.
            with suppress(CgroupError, OSError):
                Cgroup(path).kill()
                remove_tree(path)
                removed.append(path)
        finally:
            os.close(fd)
    return removed


def remove_tree(path: str) -> None:
    """rmdir, from the leaves up; a missing one is as good as removed. The place of containers'
    cgroups goes with the last one in it.
    """
    _remove(path)
    place = os.path.dirname(path)
    if os.path.basename(place) == SUBTREE:
        with suppress(OSError):  # there are others
            os.rmdir(place)


def _remove(path: str) -> None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != EBUSY:
            raise
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
        with suppress(FileNotFoundError):
            os.rmdir(path)


publish(CPUStats, MemoryEvents, MemoryStats, PidsStats, IOStats, Pressure, CgroupStats, Cgroup)
