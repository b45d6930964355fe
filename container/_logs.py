# SPDX-License-Identifier: Apache-2.0
"""Logs of detached containers: two files of pieces with a head each, see ``struct log_record``.

The launcher writes them (csrc/log.c). The full file becomes ``log.1``, and a new ``log`` begins.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from container._errors import StateError, publish
from container._launcher import Guest
from container._state import open_file

_HEAD = struct.Struct("@IIQQ")
_LARGEST = 1 << 20  # bytes of a piece
_STREAMS: dict[int, Literal["stdout", "stderr"]] = {1: "stdout", 2: "stderr"}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What a detached container wrote at once: ``time``, ``stream`` (``"stdout"`` or ``"stderr"``)
    and ``data``. ``dropped`` bytes before it could not be kept.
    """

    time: datetime
    stream: Literal["stdout", "stderr"]
    data: bytes
    dropped: int = 0


class Reader:
    """Reads on through both files, and those that come after them."""

    def __init__(self, directory: int) -> None:
        self._directory = os.dup(directory)
        self._fd: int | None = None
        self._at = 0
        self._offset: int | None = None
        self._names = ["log.1", "log"]

    def close(self) -> None:
        for fd in filter(None, (self._fd, self._directory)):
            os.close(fd)
        self._fd = None

    def entries(self) -> Iterator[LogEntry]:
        """All that is there now, and was not read before."""
        while True:
            if self._fd is None and not self._open_next():
                return
            superseded = not self._is_last()  # before what may be its last piece is looked for
            while (entry := self._next()) is not None:
                yield entry
            if not superseded:
                return
            if self._fd is not None:
                os.close(self._fd)
            self._fd, self._names = None, self._names[1:] or ["log"]

    def _open_next(self) -> bool:
        while self._names:
            fd = open_file(self._directory, self._names[0])
            if fd is not None:
                self._fd, self._at = fd, 0
                return True
            if len(self._names) == 1:
                return False
            self._names.pop(0)
        return False

    def _is_last(self) -> bool:
        """Whether nothing comes after this file now."""
        try:
            latest = os.stat("log", dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return self._fd is None or os.path.samestat(latest, os.fstat(self._fd))

    def _next(self) -> LogEntry | None:
        if self._fd is None:
            return None
        head = os.pread(self._fd, _HEAD.size, self._at)
        if len(head) < _HEAD.size:
            return None
        stream, size, time, offset = _HEAD.unpack(head)
        if stream not in _STREAMS or size > _LARGEST:
            raise StateError("the log is damaged")
        data = os.pread(self._fd, size, self._at + _HEAD.size)
        if len(data) < size:  # not written to its end yet
            return None
        self._at += _HEAD.size + size
        dropped = max(0, offset - self._offset) if self._offset is not None else offset
        self._offset = offset + size
        return LogEntry(_time(time), _STREAMS[stream], data, dropped)


def _time(microseconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(microseconds / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        raise StateError("the log is damaged") from None


def read_log(directory: int) -> Iterator[LogEntry]:
    """What is there now."""
    reader = Reader(directory)
    try:
        yield from reader.entries()
    finally:
        reader.close()


def follow_log(directory: int, guest: Guest) -> Iterator[LogEntry]:
    """What is there, and what comes until the container has ended for good."""
    reader = Reader(directory)
    try:
        while True:
            over = guest.over
            if not over:
                guest.follow()
            yield from reader.entries()
            if over:
                return
            while not (guest.logged or guest.over):
                guest.wait_news(None)
                guest.receive()
            guest.receive()
    finally:
        reader.close()


publish(LogEntry)
