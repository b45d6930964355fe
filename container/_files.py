# SPDX-License-Identifier: Apache-2.0
"""Files of a running container, read and written from outside.

Whatever a container renames or links meanwhile, no path leads out of it: paths are walked downwards
from the container's root, name by name (`_Walk`), and what was found is kept open, looked at and
used by its fd. The rights are those of the container's root, not of the caller:
what belongs to ids that the container does not have is used as anybody may, what is made belongs
to its root. Only regular files, directories and links are touched, and nothing of the file systems
by which the kernel is asked and told (`_KERNEL`): a link there would make a write of a root caller
one to its own kernel.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from container import _ids
from container._config import IDMapping, StrPath
from container._errors import ConfigError, StateError, UnsupportedError
from container._launcher import (
    Child,
    above_stdio,
    create_below,
    file_system_type,
    make_directory,
    wait_readable,
)

# linux/magic.h, and the file systems' own sources.
_PROC = 0x9FA0
_KERNEL = frozenset(
    (
        *(_PROC, 0x62656572, 0x63677270, 0x27E0EB, 0x64626720, 0x74726163),  # proc sysfs cgroups
        *(0x73636673, 0xCAFE4A11, 0x6165676C, 0xDE5E81E4, 0x62656570, 0xF97CFF8C),
        *(0x19800202, 0x6E736673, 0x42494E4D, 0x1CD1, 0x19830326),  # mqueue nsfs binfmt_misc pts
    )
)
_Place = tuple[int, str]  # a directory and a name in it
_DEEPEST = 200  # directories in one another: each takes an fd or two while it is copied
_MOST_LINKS = 40  # MAXSYMLINKS, include/linux/namei.h
_CHUNK = 1 << 20
_TRIES = 16
_READ, _WRITE, _SEARCH = 4, 2, 1  # permission bits
# O_NONBLOCK: a program that holds a lease of a file (fcntl(2)) would hold us up for 45 seconds.
_FD_FLAGS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Side(Protocol):
    """Where files are copied from or to. Directories are fds, open as O_PATH or for reading."""

    def find(self, path: str) -> int:
        """An O_PATH fd of what a path leads to."""

    def empty(self, fd: int, path: str) -> int:
        """A regular file that `find` or `look` found, emptied and open for writing."""

    def look(self, directory: int, name: str) -> int:
        """An O_PATH fd of what has this name, a link itself."""

    def read(self, fd: int, path: str) -> int:
        """A file or directory that `look` found, open for reading."""

    def create(self, directory: int, name: str, mode: int) -> int:
        """A file open for writing: a new one, or a regular one that was there, now empty."""

    def make_directory(self, directory: int, name: str) -> bool:
        """Whether it is new, not there before."""

    def make_link(self, directory: int, name: str, text: str) -> None: ...

    def set_mode(self, directory: int, mode: int) -> None:
        """Of one that was made."""


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _open(path: str, flags: int, mode: int = 0o777, *, directory: int | None = None) -> int:
    """Not as one of the fds 0 to 2, which a container may be given, should they be closed here."""
    return above_stdio(os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=directory))


def _reopen(fd: int, flags: int) -> int:
    """An O_PATH fd's file, opened: the very same one."""
    return _open(f"/proc/self/fd/{fd}", flags | _FD_FLAGS)


def _check_kind(status: os.stat_result, path: str) -> None:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise UnsupportedError(f"{path!r} is {kind}: only files, directories and links are used")


# The sides ----------------------------------------------------------------------------------------


class Host:
    """The caller's files, with the caller's rights."""

    def find(self, path: str) -> int:
        return _open(path, os.O_PATH)

    def empty(self, fd: int, path: str) -> int:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _error(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EEXIST, path)
        return _reopen(fd, os.O_WRONLY | os.O_TRUNC)

    def look(self, directory: int, name: str) -> int:
        return _open(name, os.O_PATH | os.O_NOFOLLOW, directory=directory)

    def read(self, fd: int, path: str) -> int:
        return _reopen(fd, os.O_RDONLY)

    def create(self, directory: int, name: str, mode: int) -> int:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL | _FD_FLAGS
        for _ in range(_TRIES):
            with suppress(FileExistsError):
                return _open(name, flags, mode, directory=directory)
            with suppress(FileNotFoundError), _closing(self.look(directory, name)) as found:
                return self.empty(found, name)
        raise _error(errno.EEXIST, name)

    def make_directory(self, directory: int, name: str) -> bool:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=directory)
            return True
        return False

    def make_link(self, directory: int, name: str, text: str) -> None:
        os.symlink(text, name, dir_fd=directory)

    def set_mode(self, directory: int, mode: int) -> None:
        os.chmod(f"/proc/self/fd/{directory}", mode)


@dataclass(frozen=True, slots=True)
class Inside:
    """A container's files, with the rights of its root."""

    root: int
    uid_map: tuple[IDMapping, ...]
    gid_map: tuple[IDMapping, ...]

    def find(self, path: str) -> int:
        """An O_PATH fd of what a path leads to, links followed as the container would."""
        walk = _Walk(self, path, [above_stdio(os.dup(self.root))], path.split("/")[::-1])
        try:
            return walk.run()
        except OSError as error:
            raise _error(error.errno or errno.EIO, path) from None
        finally:
            for fd in walk.way:
                os.close(fd)

    def enter(self, fd: int, path: str) -> None:
        """`OSError` unless it is a directory that its root may look names up in."""
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            raise _error(errno.ENOTDIR, path)
        self._allow(status, _SEARCH, path)

    def look(self, directory: int, name: str) -> int:
        self._check(directory, _SEARCH, name)
        return _open(name, os.O_PATH | os.O_NOFOLLOW, directory=directory)

    def empty(self, fd: int, path: str) -> int:
        self._check(fd, _WRITE, path)
        return Host().empty(fd, path)

    def read(self, fd: int, path: str) -> int:
        return self.open(fd, os.O_RDONLY, _READ, path)

    def open(self, fd: int, flags: int, wanted: int, path: str) -> int:
        """What was found, opened, if it is a regular file or a directory to read."""
        status = self._check(fd, wanted, path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise _error(errno.ELOOP, path)
        return _reopen(fd, flags)

    def _check(self, fd: int, wanted: int, path: str) -> os.stat_result:
        """As the kernel would for the container's root, which has its capabilities over files of
        its own ids only.
        """
        status = os.fstat(fd)
        _check_kind(status, path)
        if file_system_type(fd) in _KERNEL:
            raise UnsupportedError(f"{path!r} lies in a file system of the kernel's own")
        self._allow(status, wanted, path)
        return status

    def _allow(self, status: os.stat_result, wanted: int, path: str) -> None:
        if not self._owns(status) and status.st_mode & wanted != wanted:
            raise _error(errno.EACCES, path)

    def _owns(self, status: os.stat_result) -> bool:
        return _maps(self.uid_map, status.st_uid) and _maps(self.gid_map, status.st_gid)

    @property
    def _ids(self) -> tuple[int, int]:
        return _ids.to_host(0, self.uid_map), _ids.to_host(0, self.gid_map)

    def create(self, directory: int, name: str, mode: int) -> int:
        for _ in range(_TRIES):
            with suppress(FileExistsError):
                return self.create_new(directory, name, mode)
            with suppress(FileNotFoundError), _closing(self.look(directory, name)) as found:
                return self.empty(found, name)
        raise _error(errno.EEXIST, name)

    def create_new(self, directory: int, name: str, mode: int) -> int:
        self._check(directory, _WRITE | _SEARCH, name)
        fd = create_below(directory, name, self._ids)
        os.fchmod(fd, mode)
        return fd

    def make_directory(self, directory: int, name: str) -> bool:
        self._check(directory, _WRITE | _SEARCH, name)
        with suppress(FileExistsError):
            make_directory(directory, name, self._ids)
            return True
        return False

    def make_link(self, directory: int, name: str, text: str) -> None:
        self._check(directory, _WRITE | _SEARCH, name)
        create_below(directory, name, self._ids, text)

    def set_mode(self, directory: int, mode: int) -> None:
        # By its name it may be another one by now: one that its root could not change either.
        if self._owns(os.fstat(directory)):
            os.chmod(f"/proc/self/fd/{directory}", mode)


@dataclass(slots=True)
class _Walk:
    """A path, walked one name after the other and only downwards, so that nothing leads out.

    Not by the kernel at once (openat2): that goes by the rights of a root caller, who may enter any
    directory, also such of the host's, bound there, as the container's root may not.
    """

    inside: Inside
    path: str
    way: list[int]  # the directories from the root to here
    names: list[str]  # what is left of the path, the next one last
    links: int = 0

    def run(self) -> int:
        while self.names:
            name = self.names.pop()
            self.inside.enter(self.way[-1], self.path)
            if name == "..":
                if len(self.way) > 1:
                    os.close(self.way.pop())
            elif name not in ("", "."):
                self._step(name)
        return self.way.pop()

    def _step(self, name: str) -> None:
        if len(self.way) > _DEEPEST:
            raise UnsupportedError(f"{self.path!r} is more than {_DEEPEST} directories deep")
        fd = _open(name, os.O_PATH | os.O_NOFOLLOW, directory=self.way[-1])
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            self.way.append(fd)
            return
        with _closing(fd):
            self._follow(os.readlink("", dir_fd=fd), file_system_type(fd) == _PROC)

    def _follow(self, text: str, magic: bool) -> None:
        self.links += 1
        if magic or self.links > _MOST_LINKS:  # of those in a procfs the text is not the target
            raise _error(errno.ELOOP, self.path)
        while text.startswith("/") and len(self.way) > 1:
            os.close(self.way.pop())
        self.names += text.split("/")[::-1]


def _maps(mappings: tuple[IDMapping, ...], host_id: int) -> bool:
    return any(m.host_id <= host_id < m.host_id + m.size for m in mappings)


@contextmanager
def enter(child: Child, name: str) -> Iterator[Inside]:
    """The files of a container whose first process lives."""
    pid, pidfd = child.pid, child.pidfd
    if pid is None or pidfd is None or child.over:
        raise StateError(f"container {name} has ended: its files are gone")
    try:
        root = _open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
    except PermissionError:
        raise StateError(
            f"the files of container {name} cannot be reached: it has not been started, or runs a"
            " program that it may not read"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise StateError(f"container {name} has ended: its files are gone") from None
    with _closing(root):
        try:
            maps = [
                tuple(_ids.parse_id_map(Path(f"/proc/{pid}/{kind}_map").read_text("ascii")))
                for kind in ("uid", "gid")
            ]
        except OSError:
            maps = []
        # It lives still, so all this was of that process and not of one with its number.
        if not maps or wait_readable(pidfd, 0):
            raise StateError(f"container {name} has ended: its files are gone")
        if not all(maps):  # what its root made would be the caller's
            raise StateError(f"the first process of container {name} has no ids: it left them")
        yield Inside(root, *maps)


# Copies -------------------------------------------------------------------------------------------


def copy_in(inside: Inside, source: str, target: str) -> None:
    with _closing(_open(source, os.O_PATH)) as found:
        name = os.path.basename(os.path.abspath(source))
        _Copy(Host(), inside).to_path(found, source, name, target)


def copy_out(inside: Inside, source: str, target: str) -> None:
    with _closing(inside.find(source)) as found:
        name = os.path.basename(source.rstrip("/"))
        _Copy(inside, Host()).to_path(found, source, name, target)


@dataclass(frozen=True, slots=True)
class _Copy:
    source: Side
    target: Side

    def to_path(self, fd: int, path: str, name: str, target: str) -> None:
        """Below ``target`` if that is a directory, else over it, or new."""
        try:
            found = self.target.find(target)
        except FileNotFoundError:
            parent, name = os.path.split(target.rstrip("/"))
            if name in ("", ".", ".."):
                raise
            with _closing(self.target.find(parent or ".")) as directory:
                self.copy(fd, path, (directory, name))
            return
        with _closing(found):
            if stat.S_ISDIR(os.fstat(found).st_mode):
                if name in ("", ".", ".."):
                    raise ConfigError("needs a name for the copy of a root", field="target")
                self.copy(fd, path, (found, name))
            elif stat.S_ISDIR(os.fstat(fd).st_mode):
                raise _error(errno.ENOTDIR, target)
            else:
                _check_kind(os.fstat(fd), path)
                self._fill(fd, path, lambda: self.target.empty(found, target))

    def copy(self, fd: int, path: str, to: _Place, depth: int = 0) -> None:
        """What an O_PATH fd is of; ``path`` is for errors."""
        status = os.fstat(fd)
        _check_kind(status, path)
        if stat.S_ISLNK(status.st_mode):
            self.target.make_link(*to, os.readlink("", dir_fd=fd))
        elif stat.S_ISDIR(status.st_mode):
            self._directory(fd, path, to, depth)
        else:
            mode = status.st_mode & 0o777
            self._fill(fd, path, lambda: self.target.create(*to, mode))

    def _fill(self, fd: int, path: str, make: Callable[[], int]) -> None:
        # Read first: nothing is made or emptied for what may not be read.
        with _closing(self.source.read(fd, path)) as read, _closing(make()) as written:
            _copy_data(read, written)

    def _directory(self, fd: int, path: str, to: _Place, depth: int) -> None:
        if depth >= _DEEPEST:
            raise UnsupportedError(f"{path!r} lies {_DEEPEST} directories deep: that is too deep")
        with ExitStack() as stack:
            listed = stack.enter_context(_closing(self.source.read(fd, path)))
            new = self.target.make_directory(*to)
            made = stack.enter_context(_closing(self.target.look(*to)))
            if not stat.S_ISDIR(os.fstat(made).st_mode):
                raise _error(errno.ENOTDIR, to[1])
            for name in os.listdir(listed):
                try:
                    found = self.source.look(listed, name)
                except FileNotFoundError:
                    continue  # removed meanwhile
                with _closing(found):
                    self.copy(found, os.path.join(path, name), (made, name), depth + 1)
            if new:
                self.target.set_mode(made, os.fstat(fd).st_mode & 0o777)


def _copy_data(read: int, written: int) -> None:
    """As much as there was at the beginning, holes left out: what a container sees as an exabyte
    must not become one.
    """
    size = os.fstat(read).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(read, at, os.SEEK_DATA)
            end = min(os.lseek(read, at, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole is left
                raise
            break
        os.lseek(read, at, os.SEEK_SET)
        os.lseek(written, at, os.SEEK_SET)
        while at < end and (data := os.read(read, min(_CHUNK, end - at))):
            at += len(data)
            _write_all(written, data)
        if at < end:
            break  # cut meanwhile
    os.ftruncate(written, size)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# One file -----------------------------------------------------------------------------------------

_OPENING = {
    "r": (os.O_RDONLY, _READ),
    "w": (os.O_WRONLY | os.O_TRUNC, _WRITE),
    "a": (os.O_WRONLY | os.O_APPEND, _WRITE),
    "x": (os.O_WRONLY, _WRITE),
}


def open_file(inside: Inside, path: str, mode: str) -> int:
    """An fd for the mode of a file object, as open() has it."""
    kind = parse_mode(mode)
    flags, wanted = _OPENING[kind]
    if "+" in mode:
        flags, wanted = flags & ~os.O_ACCMODE | os.O_RDWR, _READ | _WRITE
    for _ in range(_TRIES):
        try:
            with _closing(inside.find(path)) as found:
                if kind == "x":
                    raise _error(errno.EEXIST, path)
                if stat.S_ISDIR(os.fstat(found).st_mode):
                    raise _error(errno.EISDIR, path)
                return inside.open(found, flags, wanted, path)
        except FileNotFoundError:
            if kind == "r":
                raise
        try:
            return _create(inside, path, flags)
        except FileExistsError:
            continue  # made meanwhile, or a link that leads nowhere
    raise _error(errno.EEXIST, path)


def parse_mode(mode: str) -> str:
    """The one of r, w, a, x that a mode has; `ConfigError` for what open() would refuse."""
    kinds = [char for char in mode if char in "rwax"] if isinstance(mode, str) else []
    if len(kinds) != 1 or sorted(mode.replace("+", "", 1)) not in (
        sorted(kinds[0]),
        sorted(kinds[0] + "b"),
        sorted(kinds[0] + "t"),
    ):
        raise ConfigError(f"{mode!r} is no mode of a file, such as 'r', 'wb', 'a+'", field="mode")
    return kinds[0]


def _create(inside: Inside, path: str, flags: int) -> int:
    parent, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise _error(errno.EISDIR, path)
    with _closing(inside.find(parent or "/")) as directory:
        made = inside.create_new(directory, name, 0o644)
    with _closing(made):
        return _reopen(made, flags & ~os.O_TRUNC)


def as_file(fd: int, mode: str, encoding: str | None) -> IO[Any]:
    """A file object that has taken the fd over."""
    try:
        return open(fd, mode.replace("x", "w"), encoding=None if "b" in mode else encoding)
    except BaseException:
        os.close(fd)
        raise


def path_of(value: StrPath, field: str) -> str:
    """A path that is text and not empty."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        kind = type(value).__name__
        raise ConfigError(f"expected str or os.PathLike, got {kind}", field=field)
    if not path or "\0" in path:
        raise ConfigError(f"is no path: {path!r}", field=field)
    return path
