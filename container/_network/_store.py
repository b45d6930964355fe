# SPDX-License-Identifier: Apache-2.0
"""Files that processes share about the networks of one network namespace.

::

    /run/container/.network/NAMESPACE/
        lock                    held (flock) by who changes rules or files
        bridges/NAME.json       what a bridge was made with
        bridges/NAME.hosts      /etc/hosts of its containers
        addresses/ADDRESS       held as long as somebody has it
        forwarding.json         what was switched on
        owners/TOKEN/lock       held as long as the process lives that has these containers
        owners/TOKEN/ID.json    their interfaces

A lock is let go by the kernel when its holder ends, however that happens: what then is left of its
containers is collected by the next one to change anything (`_network.collect`). Files of another
user's, that others may write, or links are refused.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EWOULDBLOCK
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from secrets import token_hex
from typing import Any

from container._errors import NetworkError
from container._launcher import above_stdio
from container._network._records import Bridge, Record
from container._state import default_directory

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_TRIES = 100

# Locks and reserved ports of this process. A fork must not keep them: they are its parent's.
_held: set[int] = set()


def hold(fd: int) -> int:
    _held.add(fd)
    return fd


def let_go(fd: int) -> None:
    if fd in _held:
        _held.discard(fd)
        os.close(fd)


def _forget_in_fork() -> None:
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()
    _owners.clear()


os.register_at_fork(after_in_child=_forget_in_fork)


def try_lock(path: str, *, create: bool = True) -> int | None:
    """An fd that has the lock of a file; None where another one has it, or there is no file."""
    flags = _FILE if create else _FILE & ~os.O_CREAT
    for _ in range(_TRIES):
        try:
            fd = above_stdio(os.open(path, flags, 0o600))
        except FileNotFoundError:
            if not create:
                return None
            raise
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno == EWOULDBLOCK:
                return None
            raise
        if _is_there(path, fd):
            return fd
        os.close(fd)  # it was removed between the two
    raise NetworkError(f"{path} is removed again and again")


def _is_there(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def make_directory(path: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = os.open(path, _DIRECTORY)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise NetworkError(f"{path} must belong to the caller, and only the caller may write it")


def network_namespace() -> int:
    """The number of the one that the thread is in, which no other has as long as it is there."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def has_owners() -> bool:
    """Whether any process has, or had, containers in networks here. Makes nothing."""
    try:
        return bool(os.listdir(f"{default_directory()}/.network/{network_namespace()}/owners"))
    except OSError:
        return False


class Store:
    """The files for the network namespace of the calling thread."""

    def __init__(self) -> None:
        top = default_directory()
        self.path = f"{top}/.network/{network_namespace()}"
        if not os.path.isdir(f"{self.path}/owners"):
            self._make(top)

    def _make(self, top: str) -> None:
        try:
            for path in (top, f"{top}/.network", self.path):
                make_directory(path)
            for name in ("bridges", "addresses", "owners"):
                make_directory(f"{self.path}/{name}")
        except OSError as error:
            raise NetworkError(f"cannot make {error.filename}: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For the one who changes rules, bridges or files of containers."""
        fd = above_stdio(os.open(f"{self.path}/lock", _FILE, 0o600))
        hold(fd)
        try:
            flock(fd, LOCK_EX)
            yield
        finally:
            with suppress(OSError):  # in a fork that was made in here it is closed
                flock(fd, LOCK_UN)  # whatever copies a fork may have
            let_go(fd)

    # Bridges

    def bridges(self) -> list[Bridge]:
        names = sorted(os.listdir(f"{self.path}/bridges"))
        found = (self.bridge(name[:-5]) for name in names if name.endswith(".json"))
        return [bridge for bridge in found if bridge is not None]

    def bridge(self, name: str) -> Bridge | None:
        content = self._read(f"bridges/{name}.json")
        return None if content is None else Bridge.from_dict(content)

    def save_bridge(self, bridge: Bridge) -> None:
        self._write(f"bridges/{bridge.name}.json", bridge.to_dict())

    def forget_bridge(self, name: str) -> None:
        for suffix in ("json", "hosts"):
            self._remove(f"bridges/{name}.{suffix}")

    def hosts_path(self, bridge: str) -> str:
        return f"{self.path}/bridges/{bridge}.hosts"

    # What was switched on

    def forwarding(self) -> dict[str, Any]:
        return self._read("forwarding.json") or {}

    def save_forwarding(self, content: dict[str, Any]) -> None:
        if content:
            self._write("forwarding.json", content)
        else:
            self._remove("forwarding.json")

    # Containers

    def owner(self) -> str:
        """The token of this process, under which its containers are noted."""
        with _owners_lock:
            token = _owners.get(self.path)
            if token is None or not os.path.isdir(f"{self.path}/owners/{token}"):
                token = token_hex(8)
                os.mkdir(f"{self.path}/owners/{token}", 0o700)
                fd = try_lock(f"{self.path}/owners/{token}/lock")
                assert fd is not None  # nobody knows of it
                hold(fd)
                _owners[self.path] = token
            return token

    def save(self, record: Record) -> None:
        self._write(f"owners/{self.owner()}/{record.id}.json", record.to_dict())

    def forget(self, id: str) -> None:
        for suffix in ("json", "resolv"):
            self._remove(f"owners/{self.owner()}/{id}.{suffix}")

    def write_resolv_conf(self, id: str, text: str) -> str:
        """The path of a file that goes with the container."""
        path = f"{self.path}/owners/{self.owner()}/{id}.resolv"
        _fill(path, text, 0o644)
        return path

    def records(self, token: str | None = None) -> list[Record]:
        """Those of one owner, or all."""
        tokens = [token] if token else _list(f"{self.path}/owners")
        names = [
            f"owners/{each}/{name}"
            for each in tokens
            for name in sorted(_list(f"{self.path}/owners/{each}"))
            if name.endswith(".json")
        ]
        found = (self._read(name) for name in names)
        return [Record.from_dict(content) for content in found if content is not None]

    @contextmanager
    def dead_owners(self) -> Iterator[list[str]]:
        """Tokens of processes that have ended; removed behind it, if nothing was raised."""
        own = _owners.get(self.path)
        dead: dict[str, int] = {}
        try:
            for token in os.listdir(f"{self.path}/owners"):
                if token != own:
                    fd = try_lock(f"{self.path}/owners/{token}/lock")
                    if fd is not None:
                        dead[token] = fd
            yield list(dead)
            for token in dead:
                for name in _list(f"{self.path}/owners/{token}"):
                    self._remove(f"owners/{token}/{name}")
                os.rmdir(f"{self.path}/owners/{token}")
        finally:
            for fd in dead.values():
                os.close(fd)

    # Files

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            text = Path(self.path, name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            content = json.loads(text)
        except ValueError:
            raise NetworkError(f"{self.path}/{name} is damaged; remove it") from None
        if not isinstance(content, dict):
            raise NetworkError(f"{self.path}/{name} is damaged; remove it")
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """In one step. Whoever writes has the lock, or it is of a container of its own."""
        path = f"{self.path}/{name}"
        new = f"{path}.new"
        _fill(new, json.dumps(content), 0o600)
        os.rename(new, path)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self.path}/{name}")


def _fill(path: str, text: str, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, mode)
    try:
        os.fchmod(fd, mode)
        os.write(fd, text.encode())
    finally:
        os.close(fd)


_owners: dict[str, str] = {}
_owners_lock = threading.Lock()


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
