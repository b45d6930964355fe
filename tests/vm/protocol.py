# SPDX-License-Identifier: Apache-2.0
"""What guest and host have agreed: frames over one virtio-serial port, and some names.

One ordered stream carries everything, so the exit status can never overtake the output. From
host to guest the port carries plain bytes: what is typed in a shell.
Imported inside the guest too, where every import is slow: no heavy modules here.
"""

import struct
from collections.abc import Iterator

BOOTED = b"B"  # the kernel's release; sent when the tests are about to start
OUTPUT = b"O"  # bytes that the tests wrote
REPORT = b"R"  # the junit XML
STATUS = b"S"  # the tests' exit status in decimal digits, the last frame

SETUP_FAILED = "test-vm: set-up failed: "  # on the console, before the reason
REPORT_FILE = "/run/container-vm/report.xml"  # where pytest writes it inside

KINDS = BOOTED + OUTPUT + REPORT + STATUS
MAX_PAYLOAD = 1 << 26
_HEADER = struct.Struct(">cI")


class FrameError(Exception):
    """The stream is not made of frames."""


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame: a kind, the payload's length, the payload."""
    return _HEADER.pack(kind, len(payload)) + payload


class Parser:
    """Cuts a byte stream, arriving in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield `(kind, payload)` of each frame that `data` completes.

        Raises FrameError for an unknown kind or a length above MAX_PAYLOAD.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            if kind not in KINDS or length > MAX_PAYLOAD:
                raise FrameError(f"not a frame: {bytes(self._buffer[:16])!r}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload
