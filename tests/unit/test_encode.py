# SPDX-License-Identifier: Apache-2.0
"""The bytes of a request, read back by the structs of the contract."""

from __future__ import annotations

import os
from dataclasses import replace
from enum import IntFlag
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import IDMapping, LaunchError, _launcher
from container._launcher import (
    Base,
    RowTable,
    Source,
    StartFlag,
    StartRequest,
    encode_start,
)
from container._native import ffi, lib
from container._rootfs import Attribute, Op, Row, RowFlag, place_of

START = ffi.sizeof("struct start")

# Whatever a path or an argument may be: text of any kind and bytes that are none, but no NUL.
texts = st.binary(max_size=20).map(lambda data: os.fsdecode(data.replace(b"\0", b"x")))
word = st.integers(0, 2**32 - 1)
long = st.integers(0, 2**64 - 1)


def flags_of(flags: type[IntFlag]) -> st.SearchStrategy[IntFlag]:
    return st.sets(st.sampled_from(list(flags))).map(lambda chosen: flags(sum(chosen)))


rows = st.builds(
    Row,
    op=st.sampled_from(Op),
    target=texts,
    what=st.just("a row"),
    source=texts,
    flags=flags_of(RowFlag),
    base=word,
    data=st.binary(max_size=20),
    mode=word,
    attributes=flags_of(Attribute),
    device=st.tuples(word, word),
    owner=st.tuples(word, word),
)
sources = st.none() | st.builds(
    Source,
    fd=st.integers(3, 1000),
    device=st.builds(os.makedev, st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    inode=long,
    is_directory=st.booleans(),
)
tables = st.lists(st.tuples(rows, sources), min_size=1, max_size=6)
mappings = st.lists(
    st.builds(IDMapping, st.integers(0, 2**16), st.integers(0, 2**31), st.integers(1, 2**16)),
    max_size=3,
)
bases = st.builds(
    Base,
    clone_flags=long,
    kept_namespaces=st.just(()),
    flags=st.just(StartFlag(0)),
    table=st.just(RowTable([])),
    hostname=texts,
    domainname=texts,
    bounding=long,
    effective=long,
    permitted=long,
    inheritable=long,
    ambient=long,
    filter=st.lists(st.binary(min_size=8, max_size=8), max_size=3).map(b"".join),
    filter_flags=word,
)
requests = st.builds(
    StartRequest,
    base=bases,
    flags=flags_of(StartFlag),
    programs=st.lists(texts, min_size=1, max_size=4),
    args=st.lists(texts, min_size=1, max_size=6),
    env=st.lists(texts, max_size=6),
    groups=st.lists(word, max_size=4),
    limits=st.lists(st.tuples(word, long, long), max_size=4),
    cwd=texts,
    uid=word,
    gid=word,
    umask=st.integers(0, 0o777),
    map_programs=st.tuples(*[st.just([]) | st.lists(texts, min_size=2, max_size=5)] * 2),
    terminal_size=st.none() | st.tuples(word, word),
)


class Decoded:
    """A request as the launcher would read it. Spans and strings are checked as they are read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._kept: list[Any] = []
        self.start = ffi.from_buffer("struct start *", data[:START])

    def string(self, offset: int) -> str:
        assert START <= offset < len(self.data)
        return os.fsdecode(self.data[offset : self.data.index(b"\0", offset)])

    def bytes_of(self, span: Any, item: int = 1, align: int = 1) -> bytes:
        end = span.offset + item * span.count
        assert START <= span.offset <= end <= len(self.data)
        assert span.offset % align == 0
        return self.data[span.offset : end]

    def array(self, span: Any, kind: str, align: int) -> list[Any]:
        data = self.bytes_of(span, ffi.sizeof(kind), align)
        if not data:
            return []
        # Its structs are views of it, and do not keep it.
        self._kept.append(ffi.from_buffer(f"{kind}[]", data))
        return list(self._kept[-1])

    def vector(self, span: Any) -> list[str]:
        """Strings by 64-bit offsets, behind which stands a 0."""
        offsets = self.array(span, "uint64_t", 8)
        end = span.offset + 8 * span.count
        assert self.data[end : end + 8] == bytes(8)
        return [self.string(offset) for offset in offsets]


def encoded(
    request: StartRequest,
    table: list[tuple[Row, Source | None]],
    maps: tuple[list[IDMapping], list[IDMapping]],
    *,
    by_fd: bool,
) -> tuple[StartRequest, Decoded]:
    whole = replace(request.base, table=RowTable([row for row, _ in table]))
    request = replace(request, base=whole)
    data = encode_start(request, maps, [source for _, source in table], by_fd=by_fd)
    return request, Decoded(data)


@given(requests, tables, mappings, mappings, st.booleans())
def test_a_request_reads_back_as_it_was_made(
    request: StartRequest,
    table: list[tuple[Row, Source | None]],
    uids: list[IDMapping],
    gids: list[IDMapping],
    by_fd: bool,
) -> None:
    request, read = encoded(request, table, (uids, gids), by_fd=by_fd)
    start, base = read.start, request.base
    assert (start.op, start.flags, start.fail_step) == (lib.REQUEST_START, request.flags, 0)
    assert start.size == len(read.data)
    assert read.data[-1] == 0
    assert read.vector(start.args) == request.args
    assert read.vector(start.env) == request.env
    for span, program in zip(
        (start.uid_program, start.gid_program), request.map_programs, strict=True
    ):
        assert (read.vector(span) if span.count else []) == program
    programs = read.array(start.programs, "uint32_t", 4)
    assert [read.string(offset) for offset in programs] == request.programs
    assert read.array(start.groups, "uint32_t", 4) == request.groups
    limits = read.array(start.rlimits, "struct limit", 8)
    assert [(each.resource, each.soft, each.hard) for each in limits] == request.limits
    assert (read.string(start.hostname), read.string(start.cwd)) == (base.hostname, request.cwd)
    assert read.string(start.domainname) == base.domainname
    for name in ("uid", "gid", "umask"):
        assert getattr(start, name) == getattr(request, name)
    for name in ("clone_flags", "bounding", "inheritable", "ambient"):
        assert getattr(start, name) == getattr(base, name)
    # What another user than root is executed with is what is ambient.
    root = request.uid == 0
    assert start.effective == (base.effective if root else base.ambient)
    assert start.permitted == (base.permitted if root else base.ambient)
    assert read.bytes_of(start.filter, 8, 4) == base.filter
    assert start.filter_flags == base.filter_flags
    for span, maps in ((start.uid_map, uids), (start.gid_map, gids)):
        lines = read.bytes_of(span).decode().splitlines()
        assert [tuple(map(int, line.split())) for line in lines] == [
            (each.container_id, each.host_id, each.size) for each in maps
        ]


@given(requests, tables, st.booleans())
def test_the_rows_of_a_request_read_back_as_they_were_made(
    request: StartRequest, table: list[tuple[Row, Source | None]], by_fd: bool
) -> None:
    _, read = encoded(request, table, ([], []), by_fd=by_fd)
    found = read.array(read.start.rows, "struct row", 8)
    next_fd = 0
    for got, (row, source) in zip(found, table, strict=True):
        assert (got.op, got.base, got.mode) == (row.op, row.base, row.mode)
        assert got.attributes == row.attributes
        assert (read.string(got.target), read.string(got.source)) == (row.target, row.source)
        assert read.bytes_of(got.data) == row.data
        flags, device, inode, source_fd = RowFlag(row.flags), row.device, 0, -1
        if source is not None:
            # A missing target is made of the kind that the source is.
            flags |= RowFlag.MAKE_DIRECTORY if source.is_directory else RowFlag.MAKE_FILE
        if source is not None and by_fd:
            source_fd, next_fd = next_fd, next_fd + 1
        elif source is not None:
            flags |= RowFlag.CHECK_INODE
            device = (os.major(source.device), os.minor(source.device))
            inode = source.inode
        assert (got.flags, got.source_fd, got.inode) == (flags, source_fd, inode)
        assert (got.device_major, got.device_minor) == device
        assert (got.uid, got.gid) == row.owner
    assert read.start.source_count == next_fd


@given(tables, st.booleans())
def test_a_table_that_is_used_again_encodes_as_a_fresh_one(
    table: list[tuple[Row, Source | None]], by_fd: bool
) -> None:
    kept = RowTable([row for row, _ in table])
    sources = [source for _, source in table]
    other = [source and replace(source, is_directory=not source.is_directory) for source in sources]
    for each in (sources, other, sources):
        fresh = RowTable(kept.rows).encode(each, by_fd=by_fd)
        assert kept.encode(each, by_fd=by_fd) == fresh


def test_the_rows_of_a_stage_come_first_and_the_bases_of_the_others_move_with_them() -> None:
    stage = [
        Row(Op.MOUNT, "", "stage"),
        Row(Op.BIND, "0", "layer"),
        Row(Op.HANDLE, "x", "", base=1),
    ]
    rows = [Row(Op.OVERLAY, "", "root"), Row(Op.MOUNT, "dev", ""), Row(Op.MOUNT, "pts", "", base=1)]
    table = RowTable(rows, stage)
    assert (table.root, [row.base for row in table.rows]) == (3, [0, 0, 1, 0, 3, 4])
    assert place_of(table.rows, table.rows[-1]) == "/dev/pts"


def request_of(**changes: Any) -> StartRequest:
    base = Base(0, (), StartFlag(0), RowTable([Row(Op.MOUNT, "", "root")]), "", "", 0, 0, 0, 0, 0)
    request = StartRequest(base, StartFlag(0), ["/x"], ["x"], [], [], [], "/", 0, 0, 0)
    return replace(request, **changes)


def test_a_string_that_comes_twice_is_sent_once() -> None:
    once = encode_start(request_of(args=["y" * 100]), ([], []), [None], by_fd=True)
    twice = encode_start(request_of(args=["y" * 100] * 2), ([], []), [None], by_fd=True)
    assert len(twice) - len(once) == 8


def test_a_request_beyond_the_limit_is_refused() -> None:
    with pytest.raises(LaunchError) as caught:
        encode_start(request_of(args=["y" * lib.MAX_REQUEST]), ([], []), [None], by_fd=True)
    assert caught.value.step == "request"


def test_the_step_that_a_test_makes_fail_is_in_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launcher, "fail_step", 7)
    data = encode_start(request_of(), ([], []), [None], by_fd=True)
    assert Decoded(data).start.fail_step == 7
