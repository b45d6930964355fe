# SPDX-License-Identifier: Apache-2.0
"""Runs one QEMU from its start to its end, and never leaves it behind."""

import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vm import SetupError, debian, protocol
from vm.outcome import Seen


@dataclass(frozen=True)
class Limits:
    """Seconds from the start until the tests begin, and until they end (None: no limit)."""

    boot: float
    tests: float | None


@dataclass
class Streams:
    """Where output goes, and the fd that a shell's input comes from."""

    write: Callable[[bytes], None]
    keyboard: int | None = None


@contextmanager
def machine_folder(initramfs: bytes, disk_size: int) -> Iterator[Path]:
    """A temporary folder with the files that QEMU opens at its start."""
    with tempfile.TemporaryDirectory(prefix="testvm-") as name:
        folder = Path(name)
        (folder / "initramfs").write_bytes(initramfs)
        with (folder / "disk").open("wb") as disk:
            disk.truncate(disk_size)
        mke2fs = shutil.which("mke2fs", path=debian.search_path()) or "mke2fs"
        debian.run([mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", str(folder / "disk")])
        yield folder


@contextmanager
def running(command: list[str], channel: int) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU that is dead when this ends, however it ends.

    It has a session of its own, so a Ctrl-C at the terminal reaches the harness alone, and it
    gets SIGKILL from the kernel when the harness dies.
    """
    try:
        qemu = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[channel], start_new_session=True
        )
    except OSError as error:
        raise SetupError(f"{command[0]}: {error}") from error
    try:
        yield qemu
    finally:
        qemu.kill()
        qemu.wait()


class Watch:
    """Follows one machine until it has said its status, is gone, or a limit has passed."""

    def __init__(
        self,
        qemu: subprocess.Popen[bytes],
        channel: socket.socket,
        limits: Limits,
        streams: Streams,
    ) -> None:
        self._qemu, self._channel = qemu, channel
        self._limits, self._streams = limits, streams
        self._parser = protocol.Parser()
        self._started = time.monotonic()
        self._booted: float | None = None
        self._seen = Seen(console="")
        self._selector = selectors.DefaultSelector()

    def run(self, on_boot: Callable[[], None]) -> Seen:
        """What was seen; `console` and `release` of a machine that never spoke stay empty.

        `on_boot` is called when the tests are about to start.
        """
        with self._selector, open(os.pidfd_open(self._qemu.pid), "rb") as gone:
            self._selector.register(gone, selectors.EVENT_READ, self._end)
            self._selector.register(self._channel, selectors.EVENT_READ, self._receive)
            if self._streams.keyboard is not None:
                self._selector.register(self._streams.keyboard, selectors.EVENT_READ, self._type)
            while self._going() and not self._late():
                for key, _ in self._selector.select(self._left()):
                    key.data()
                if self._booted is None and self._seen.release is not None:
                    self._booted = time.monotonic()
                    on_boot()
        now = time.monotonic()
        boot_time = (self._booted or now) - self._started
        return replace(self._seen, boot_time=boot_time, whole_time=now - self._started)

    def _going(self) -> bool:
        seen = self._seen
        return seen.status is None and seen.garbage is None and seen.qemu_status is None

    def _left(self) -> float | None:
        if self._booted is None:
            return max(0.0, self._started + self._limits.boot - time.monotonic())
        if self._limits.tests is None:
            return None
        return max(0.0, self._booted + self._limits.tests - time.monotonic())

    def _late(self) -> bool:
        if self._left() != 0.0:
            return False
        limit = self._limits.boot if self._booted is None else self._limits.tests
        self._seen = replace(self._seen, limit=limit)
        return True

    def _end(self) -> None:
        # What QEMU wrote before it ended is still in the socket.
        while self._receive():
            pass
        self._seen = replace(self._seen, qemu_status=self._qemu.wait())

    def _receive(self) -> bool:
        """Take what the machine sent; False at the end of the stream."""
        try:
            data = self._channel.recv(1 << 16)
        except ConnectionError:
            data = b""
        try:
            for kind, payload in self._parser.feed(data):
                self._take(kind, payload)
        except (protocol.FrameError, ValueError) as error:
            self._seen = replace(self._seen, garbage=f"the machine sent {error}")
        if not data and self._channel in self._selector.get_map():
            self._selector.unregister(self._channel)
        return bool(data)

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == protocol.OUTPUT:
            self._streams.write(payload)
        elif kind == protocol.BOOTED:
            self._seen = replace(self._seen, release=payload.decode())
        elif kind == protocol.REPORT:
            self._seen = replace(self._seen, report=payload)
        else:
            self._seen = replace(self._seen, status=int(payload))

    def _type(self) -> None:
        """Pass on what is typed; the end of input is a Ctrl-D, a Ctrl-] ends the harness."""
        assert self._streams.keyboard is not None
        data = os.read(self._streams.keyboard, 1024)
        if not data:
            self._selector.unregister(self._streams.keyboard)
        if b"\x1d" in data:
            signal.raise_signal(signal.SIGINT)
        self._channel.sendall(data or b"\x04")
