# SPDX-License-Identifier: Apache-2.0
"""States of containers in files: one directory for each, which only its owner can look into.

Everything is opened below the fd of the directory above it, links are refused at every step from
the state directory on, and what is read must be the caller's own. A state is written to a file of
its own name first, and takes the place of the older one in one step. Writers and who deletes hold a
lock (flock) on the directory of the container, so what lies there beside the state was left by one
who was killed.
"""

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from errno import EEXIST, EISDIR, ELOOP, ENOENT, ENOTDIR
from fcntl import F_OFD_GETLK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_UN, fcntl, flock
from secrets import token_hex
from typing import Any
from warnings import warn

from container._config import ContainerState, State, StrPath, validate_id
from container._errors import (
    ConfigError,
    ContainerError,
    ContainerNotFoundError,
    StateError,
    publish,
)

FORMAT = 1
NAMES = ("socket", "log.1", "log", "ending", "state.json", "lock")
"""Every file in the directory of a container, the lock last."""

_NAME = "state.json"
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid
_ENDING = struct.Struct("@IIQQQQQQQ")  # struct ending of csrc/launcher.h
_LARGEST = 1 << 20  # bytes of a file
_MOST_TRIES = 100  # to find a directory that nobody deletes just then
_START = 19  # field of /proc/PID/stat behind the name: clock ticks since boot
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def default_directory() -> str:
    """``/run/container`` for root, else ``$XDG_RUNTIME_DIR/container``; without that variable
    ``/run/user/UID/container`` where systemd has made that directory.
    """
    if os.geteuid() == 0:
        return "/run/container"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime and os.path.isdir(f"/run/user/{os.geteuid()}"):
        runtime = f"/run/user/{os.geteuid()}"
    if not runtime.startswith("/"):
        raise ConfigError("has no default without XDG_RUNTIME_DIR", field="state_dir")
    return f"{runtime}/container"


@dataclass(frozen=True, slots=True)
class Entry:
    """A state, and what is kept beside it of a detached container."""

    state: ContainerState
    is_owned: bool = False  # a launcher of its own looks after it
    detached: Mapping[str, Any] = field(default_factory=dict)  # see _detached.py; {}: it is not


class StateManager:
    """Keeps `ContainerState` objects in files, for programs that come later. Thread-safe.

    ``state_dir`` (None: ``/run/container``, for others than root ``$XDG_RUNTIME_DIR/container``)
    is made with the first state. `StateError` names a directory or file that is not the caller's
    own, that others can write, that is a link, or that cannot be used for another reason.
    """

    def __init__(self, state_dir: StrPath | None = None) -> None:
        path = os.fspath(state_dir) if state_dir is not None else default_directory()
        if not isinstance(path, str) or not path or "\0" in path:
            raise ConfigError("must be the path of a directory", field="state_dir")
        self.state_dir = os.path.abspath(path)

    def save_state(self, state: ContainerState) -> None:
        """Write a state, in place of an older one of the same id.

        With a pid, it is kept which process that is: another one with the same pid later, or after
        the next boot, is not taken for it.
        """
        if not isinstance(state, ContainerState):
            raise ConfigError(f"expected ContainerState, got {type(state).__name__}", field="state")
        with self.locked(state.id, make=True) as (_, directory):
            write_state(directory, state, {})

    def load_state(self, id: str) -> ContainerState:
        """The state that was saved last; one whose process is gone is stopped.

        `ContainerNotFoundError` where there is none, `StateError` for a file that was damaged or
        that another version wrote.
        """
        return self.load(id).state

    def list_states(self) -> list[ContainerState]:
        """All states, the oldest first. A `RuntimeWarning` tells of each that cannot be read."""
        return [entry.state for entry in self.entries()]

    def delete_state(self, id: str) -> None:
        """Remove a state and its directory. `ContainerNotFoundError` where there is none."""
        with self.locked(id) as (top, directory):
            if is_owned(directory):
                raise StateError(f"container {id} is detached and runs: stop it first")
            remove_directory(top, id, directory)

    # For the package itself

    def load(self, id: str) -> Entry:
        """As `load_state`, with all that is kept."""
        with self.opened(id) as directory:
            return read_entry(id, directory)

    def entries(self) -> list[Entry]:
        """As `list_states`, with all that is kept."""
        found = []
        for name in self.names():
            try:
                found.append(self.load(name))
            except (ContainerNotFoundError, ConfigError):
                continue  # it was deleted meanwhile, or is no container's
            except StateError as error:
                if os.path.isdir(os.path.join(self.state_dir, name)):
                    warn(str(error), RuntimeWarning, stacklevel=3)
        return sorted(found, key=lambda entry: entry.state.created_at)

    def names(self) -> list[str]:
        """What lies in the directory, whatever it is."""
        try:
            with self._told(None), self._top() as top:
                return sorted(os.listdir(top))
        except ContainerNotFoundError:
            return []

    def prepare(self) -> None:
        """Make the directory of all, or tell why that cannot be had."""
        with self._told(None, absent=StateError), self._top(make=True):
            pass

    @contextmanager
    def opened(self, id: str) -> Iterator[int]:
        """The directory of a container, to read in."""
        validate_id(id)
        with self._told(id), self._top() as top, _open(id, _DIRECTORY, top) as directory:
            yield directory

    @contextmanager
    def locked(
        self, id: str, *, make: bool = False, wait: bool = True
    ) -> Iterator[tuple[int, int]]:
        """The directory of all, and that of a container for who changes it; BlockingIOError where
        somebody else does and that is not to be waited for.
        """
        validate_id(id)
        absent = StateError if make else ContainerNotFoundError
        with (
            self._told(id, absent=absent),
            self._top(make=make) as top,
            _locked(top, id, make=make, wait=wait) as directory,
        ):
            yield top, directory

    @contextmanager
    def _top(self, *, make: bool = False) -> Iterator[int]:
        if make:
            with _ignored(EEXIST):
                os.mkdir(self.state_dir, 0o700)
        with _open(self.state_dir, _DIRECTORY) as top:
            yield top

    @contextmanager
    def _told(
        self, id: str | None, absent: type[StateError] = ContainerNotFoundError
    ) -> Iterator[None]:
        """What the operating system says, in words of ours."""
        where = os.path.join(self.state_dir, id or "")
        try:
            yield
        except FileNotFoundError:
            raise absent(f"{where}: there is no such directory or state") from None
        except BlockingIOError:
            raise
        except ContainerError:  # a LaunchError is an OSError too
            raise
        except OSError as error:
            reason = "is a link or no directory" if error.errno in (ELOOP, ENOTDIR) else None
            raise StateError(f"{where}: {reason or error.strerror}") from error


# Files ------------------------------------------------------------------------------------------


@contextmanager
def _ignored(number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise


@contextmanager
def _open(name: str, flags: int, directory: int | None = None) -> Iterator[int]:
    """An fd of what is the caller's own, and nobody else's to write."""
    fd = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise StateError(f"{name}: must belong to the caller, and only the caller may write it")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(top: int, id: str, *, make: bool = False, wait: bool = True) -> Iterator[int]:
    """The directory of a container, for the one who changes it."""
    for _ in range(_MOST_TRIES):
        if make:
            with _ignored(EEXIST):
                os.mkdir(id, 0o700, dir_fd=top)
        try:
            with _open(id, _DIRECTORY, top) as directory:
                flock(directory, LOCK_EX if wait else LOCK_EX | LOCK_NB)
                if _is_there(top, id, directory):
                    yield directory
                    return
        except FileNotFoundError:
            if not make:
                raise
    raise StateError(f"{id}: somebody else deletes it again and again")


def _is_there(top: int, id: str, directory: int) -> bool:
    """Whether it still is what the name stands for: it may have been deleted while we waited."""
    try:
        return os.path.samestat(os.stat(id, dir_fd=top, follow_symlinks=False), os.fstat(directory))
    except FileNotFoundError:
        return False


@contextmanager
def lock_directory(directory: int) -> Iterator[None]:
    """For who has it open already, and is its owner."""
    flock(directory, LOCK_EX)
    try:
        yield
    finally:
        flock(directory, LOCK_UN)


def remove_directory(top: int, id: str, directory: int) -> None:
    """With all that is in it; the one who holds it locked."""
    for name in os.listdir(directory):
        with _ignored(ENOENT):
            os.unlink(name, dir_fd=directory)
    with _ignored(ENOENT):
        os.rmdir(id, dir_fd=top)


def remove_known(top: int, id: str, directory: int) -> bool:
    """Likewise, but only what may lie there; False where there is more."""
    for name in os.listdir(directory):
        if name in NAMES or name.startswith(f".{_NAME}."):
            with _ignored(ENOENT):
                os.unlink(name, dir_fd=directory)
    try:
        os.rmdir(id, dir_fd=top)
    except OSError:
        return False
    return True


def is_dead(id: str, directory: int) -> bool:
    """Whether what lies in a directory, that is locked, is nobody's any more: of a detached
    container without a launcher, or of another boot, or of a start that was broken off.
    """
    if is_owned(directory):
        return False
    names = os.listdir(directory)
    if "lock" in names or _NAME not in names:
        return True
    try:
        content = _load(id, _read(directory))[1]
    except StateError:
        return False  # a program's own, which may want to look at it
    return content.get("boot_id") != _boot_id()


def open_file(directory: int, name: str) -> int | None:
    """A regular file that is the caller's own, to read; None where there is none."""
    try:
        with _open(name, _FILE, directory) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StateError(f"{name}: is no regular file")
            return os.dup(fd)
    except FileNotFoundError:
        return None


def is_owned(directory: int) -> bool:
    """Whether a launcher has the lock of a detached container. Nothing is locked to find out."""
    try:
        with _open("lock", _FILE, directory) as fd:
            question = _FLOCK.pack(F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer: bytes = fcntl(fd, F_OFD_GETLK, question)
    except OSError as error:
        if error.errno not in (ENOENT, ELOOP, EISDIR):  # what is no file is no lock either
            raise
        return False
    return int(_FLOCK.unpack(answer)[0]) != F_UNLCK


@dataclass(frozen=True, slots=True)
class Ending:
    """How a detached container ended; see ``struct ending``."""

    wait_status: int
    ended_at: datetime
    user: float
    system: float
    max_rss: int
    memory_peak: int
    pids_peak: int
    oom_kills: int

    @property
    def returncode(self) -> int:
        return os.waitstatus_to_exitcode(self.wait_status)


def make_ending(directory: int) -> int:
    """The file for it, with room for all that will be written; its fd."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open("ending", flags, 0o600, dir_fd=directory)
    try:
        os.write(fd, bytes(_ENDING.size))
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_ending(directory: int) -> Ending | None:
    """None while it has not ended, and where nobody was left to write it."""
    try:
        with _open("ending", _FILE, directory) as fd:
            data = os.read(fd, _ENDING.size)
        over, status, ended_at, user, system, *rest = _ENDING.unpack(data)
        if not over:
            return None
        os.waitstatus_to_exitcode(status)
        at = datetime.fromtimestamp(ended_at / 1e6, UTC)
    except (FileNotFoundError, struct.error):
        return None
    except (ValueError, OverflowError, OSError) as error:
        raise StateError(f"ending: is damaged: {error}") from None
    return Ending(status, at, user / 1e6, system / 1e6, *rest)


def write_state(directory: int, state: ContainerState, detached: Mapping[str, object]) -> None:
    """In place of an older one; the one who holds the directory locked."""
    _write(directory, _encode(state, detached))


def read_entry(id: str, directory: int) -> Entry:
    """What is kept, and how it is now."""
    owned = is_owned(directory)
    entry = _decode(id, _read(directory), owned=owned)
    ending = read_ending(directory) if entry.detached else None
    if ending is None:
        return entry
    code, at = ending.returncode, ending.ended_at
    state = replace(entry.state, state=State.STOPPED, pid=None, exit_code=code, stopped_at=at)
    return replace(entry, state=state)


def _write(directory: int, data: bytes) -> None:
    for name in os.listdir(directory):
        if name.startswith(f".{_NAME}."):  # of one that was killed: we hold the lock
            os.unlink(name, dir_fd=directory)
    new = f".{_NAME}.{token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(new, flags, 0o600, dir_fd=directory)
    try:
        try:
            written = 0
            while written < len(data):
                written += os.write(fd, data[written:])
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with _ignored(ENOENT):
            os.unlink(new, dir_fd=directory)
        raise
    os.fsync(directory)


def _read(directory: int) -> bytes:
    with _open(_NAME, _FILE, directory) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StateError(f"{_NAME}: is no regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(_LARGEST + 1)


# Contents ---------------------------------------------------------------------------------------


def _encode(state: ContainerState, detached: Mapping[str, object]) -> bytes:
    import json  # noqa: PLC0415  (8 ms)

    content = json.loads(state.to_json())
    if detached:
        content["detached"] = dict(detached)
    content |= {"format": FORMAT, "boot_id": _boot_id(), "pid_start": None}
    if state.pid is not None:
        content["pid_start"] = start_of(state.pid)
    return json.dumps(content).encode() + b"\n"


def _load(id: str, data: bytes) -> tuple[ContainerState, dict[str, Any]]:
    import json  # noqa: PLC0415  (8 ms)

    try:
        if len(data) > _LARGEST:
            raise ValueError(f"is larger than {_LARGEST} bytes")
        text = data.decode()
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("is no JSON object")
        _check_format(id, content.get("format"))
        state = ContainerState.from_json(text)
        if state.id != id:
            raise ValueError(f"is that of {state.id}")
        if not isinstance(content.get("detached", {}), dict):
            raise TypeError("detached is no JSON object")
    except (ValueError, TypeError, RecursionError, ConfigError) as error:
        raise StateError(f"the state of {id} is damaged: {error}") from None
    return state, content


def _decode(id: str, data: bytes, *, owned: bool) -> Entry:
    state, content = _load(id, data)
    detached = content.get("detached", {})
    alive = _is_alive(state.pid, content) and (owned or not detached)
    if state.state != State.STOPPED and not alive:
        state = replace(state, state=State.STOPPED, pid=None)
    return Entry(state, owned and content.get("boot_id") == _boot_id(), detached)


def _check_format(id: str, number: object) -> None:
    if number != FORMAT:
        raise StateError(
            f"the state of {id} was written by another version: it has format {number!r}, not"
            f" {FORMAT}"
        )


def _is_alive(pid: int | None, content: dict[str, object]) -> bool:
    if content.get("boot_id") != _boot_id():
        return False
    if pid is None:  # in the making
        return True
    start = content.get("pid_start")
    return start is not None and start == start_of(pid)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None for one that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[_START])


publish(StateManager)
