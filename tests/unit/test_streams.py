# SPDX-License-Identifier: Apache-2.0
"""Captures and the opening of standard streams."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import DEVNULL, PIPE, STDOUT, ConfigError
from container._streams import Capture, open_stdio

Keep = Literal["head", "tail"]


def expected(data: bytes, limit: int | None, keep: Keep) -> bytes:
    if limit is None or len(data) <= limit:
        return data
    return data[:limit] if keep == "head" else data[len(data) - limit :]


@given(
    st.lists(st.binary(max_size=40), max_size=30),
    st.none() | st.integers(0, 300),
    st.sampled_from(["head", "tail"]),
)
def test_a_capture_keeps_its_end_of_the_output_and_counts_the_rest(
    chunks: list[bytes], limit: int | None, keep: Keep
) -> None:
    capture = Capture(limit, keep)
    for chunk in chunks:
        capture.add(chunk)
        # At no time does it hold more than the limit: that is what a limit is for.
        assert limit is None or len(capture.content()) <= limit
    data = b"".join(chunks)
    assert capture.content() == expected(data, limit, keep)
    assert capture.dropped == len(data) - len(capture.content())


@pytest.mark.parametrize("keep", ["head", "tail"])
@pytest.mark.parametrize("size", [1, 3, 4096])
def test_the_memory_of_a_capture_is_bounded_however_small_the_pieces(keep: Keep, size: int) -> None:
    limit = 1 << 14
    chunk = bytes(size)
    tracemalloc.start()
    try:
        capture = Capture(limit, keep)
        for _ in range(2 * limit // size):
            capture.add(bytes(bytearray(chunk)))  # a new object, as read(2) makes one
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(capture.content()) == limit
    assert peak < 3 * limit


def open_fds() -> dict[str, str]:
    with os.scandir("/proc/self/fd") as entries:
        # The listing's own is gone by the time that it is looked at.
        found = {entry.name: entry.path for entry in entries}
    return {name: os.readlink(path) for name, path in found.items() if os.path.lexists(path)}


def wanted(**given: Any) -> dict[str, Any]:
    return {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL} | given


def test_what_was_opened_is_closed() -> None:
    before = open_fds()
    stdio = open_stdio(**wanted(stdin=PIPE, stdout=PIPE, stderr=DEVNULL))
    assert len(open_fds()) == len(before) + 5
    stdio.close()
    assert open_fds() == before


class Closed:
    def fileno(self) -> int:
        raise ValueError("I/O operation on closed file")


@pytest.fixture
def closed_fd() -> int:
    fd = os.open("/", os.O_RDONLY)
    os.close(fd)
    return fd


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_not_open_is_named_and_no_fd_stays(name: str, closed_fd: int) -> None:
    given: Mapping[str, Any]
    before = open_fds()
    for bad in (closed_fd, Closed()):
        given = dict.fromkeys(("stdin", "stdout", "stderr"), PIPE) | {name: bad}
        if bad == closed_fd:
            # The pipes would take its number: let one that stays open have the lowest.
            given = wanted(**{name: 1 << 20})
        with pytest.raises(ConfigError) as caught:
            open_stdio(**given)
        assert caught.value.field == name
        assert open_fds() == before


def test_every_fd_that_is_opened_is_close_on_exec() -> None:
    stdio = open_stdio(**wanted(stdin=PIPE, stdout=PIPE, stderr=PIPE))
    try:
        assert not any(map(os.get_inheritable, (*stdio.child, *stdio.ours.values())))
    finally:
        stdio.close()


def test_the_ends_of_a_pipe_are_given_out_the_right_way_round() -> None:
    stdio = open_stdio(**wanted(stdin=PIPE, stdout=PIPE))
    try:
        os.write(stdio.ours["stdin"], b"in")
        os.write(stdio.child[1], b"out")
        assert os.read(stdio.child[0], 9) == b"in"
        assert os.read(stdio.ours["stdout"], 9) == b"out"
    finally:
        stdio.close()


def test_files_and_numbers_are_passed_on_and_stay_open(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w", encoding="utf-8") as file:
        stdio = open_stdio(**wanted(stdin=None, stdout=file, stderr=STDOUT))
        assert stdio.child == [0, file.fileno(), file.fileno()]
        stdio.close()
        os.fstat(file.fileno())
        assert open_stdio(**wanted(stderr=file.fileno())).child[2] == file.fileno()
