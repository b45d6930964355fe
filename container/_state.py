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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import EEXIST, ELOOP, ENOENT, ENOTDIR
from fcntl import LOCK_EX, flock
from secrets import token_hex
from warnings import warn

from container._config import ContainerState, State, StrPath, validate_id
from container._errors import ConfigError, ContainerNotFoundError, StateError, publish

FORMAT = 1
_NAME = "state.json"
_LARGEST = 1 << 20  # bytes of a file
_MOST_TRIES = 100  # to find a directory that nobody deletes just then
_START = 19  # field of /proc/PID/stat behind the name: clock ticks since boot
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def default_directory() -> str:
    """``/run/container`` for root, else ``$XDG_RUNTIME_DIR/container``."""
    if os.geteuid() == 0:
        return "/run/container"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise ConfigError("has no default without XDG_RUNTIME_DIR", field="state_dir")
    return f"{runtime}/container"


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
        data = _encode(state)
        with (
            self._told(state.id, absent=StateError),
            self._top(make=True) as top,
            _locked(top, state.id, make=True) as directory,
        ):
            _write(directory, data)

    def load_state(self, id: str) -> ContainerState:
        """The state that was saved last; one whose process is gone is stopped.

        `ContainerNotFoundError` where there is none, `StateError` for a file that was damaged or
        that another version wrote.
        """
        validate_id(id)
        with self._told(id), self._top() as top, _open(id, _DIRECTORY, top) as directory:
            data = _read(directory)
        return _decode(id, data)

    def list_states(self) -> list[ContainerState]:
        """All states, the oldest first. A `RuntimeWarning` tells of each that cannot be read."""
        try:
            with self._told(None), self._top() as top:
                names = sorted(os.listdir(top))
        except ContainerNotFoundError:
            return []
        states = []
        for name in names:
            try:
                states.append(self.load_state(name))
            except (ContainerNotFoundError, ConfigError):
                continue  # it was deleted meanwhile, or is no container's
            except StateError as error:
                if os.path.isdir(os.path.join(self.state_dir, name)):
                    warn(str(error), RuntimeWarning, stacklevel=2)
        return sorted(states, key=lambda state: state.created_at)

    def delete_state(self, id: str) -> None:
        """Remove a state and its directory. `ContainerNotFoundError` where there is none."""
        validate_id(id)
        with self._told(id), self._top() as top, _locked(top, id) as directory:
            for name in os.listdir(directory):
                os.unlink(name, dir_fd=directory)
            os.rmdir(id, dir_fd=top)

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
def _locked(top: int, id: str, *, make: bool = False) -> Iterator[int]:
    """The directory of a container, for the one who changes it."""
    for _ in range(_MOST_TRIES):
        if make:
            with _ignored(EEXIST):
                os.mkdir(id, 0o700, dir_fd=top)
        try:
            with _open(id, _DIRECTORY, top) as directory:
                flock(directory, LOCK_EX)
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


def _encode(state: ContainerState) -> bytes:
    import json  # noqa: PLC0415  (8 ms)

    content = json.loads(state.to_json())
    content |= {"format": FORMAT, "boot_id": _boot_id(), "pid_start": None}
    if state.pid is not None:
        content["pid_start"] = start_of(state.pid)
    return json.dumps(content).encode() + b"\n"


def _decode(id: str, data: bytes) -> ContainerState:
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
    except (ValueError, TypeError, RecursionError, ConfigError) as error:
        raise StateError(f"the state of {id} is damaged: {error}") from None
    if state.state == State.STOPPED or _is_alive(state.pid, content):
        return state
    return replace(state, state=State.STOPPED, pid=None)


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
