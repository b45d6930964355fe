# SPDX-License-Identifier: Apache-2.0
"""The launcher and a caller that sends it nonsense: each gets an answer, and the next is served.

All of this is done by an ordinary user: what a mangled request asks for is carried out if it can
be, and a user can do no more to the machine than the user could anyway. Every mutation comes from
a seed, so that a failure can be had again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import needs
import pytest
from system.helpers import PATIENCE, wait_until

pytestmark = [pytest.mark.needs("userns", "rootless", "busybox"), pytest.mark.long]


class AsUser(Protocol):
    """The fixture as_user."""

    home: Path

    def environment(self) -> dict[str, str]: ...

    def own(self, path: Path) -> Path: ...


# Runs as the user. `valid` is a request as the launcher gets it; `ask` sends one with a channel of
# its own and returns the reports that come: "failed STEP ERRNO", "exited STATUS", "end", "silence".
PRELUDE = """
import array, ctypes, errno, json, os, random, select, signal, socket, sys
import container
from container import _launcher
from container._launcher import STEPS, ffi, launcher_pid, lib

ROOT = sys.argv[1]
LIMIT = 5  # seconds for an answer
null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
STDIO = (null, null, null)

captured = []
real_start = _launcher.Launcher.start
def capture(self, request, sources, stdio):
    captured.append((request, list(sources)))
    return real_start(self, request, sources, stdio)
_launcher.Launcher.start = capture
tmpfs, bind = container.Mount.tmpfs("/data", size="1M"), container.Mount.bind(ROOT, "/tmp/bin")
CONFIG = container.Config(root=ROOT, mounts=[tmpfs, bind])
result = container.run(["true"], config=CONFIG, env={"A": "b"})
assert result.returncode == 0
valid, sources = captured.pop()
assert sources == []
_launcher.Launcher.start = real_start
launcher = _launcher._get()
first_pid = launcher_pid()

def send(to, data, fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return to.sendmsg([data], rights, socket.MSG_NOSIGNAL)

def pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

def reports(channel):
    while True:
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        if not poll.poll(LIMIT * 1000):
            yield "silence"
            return
        data, fds, _, _ = socket.recv_fds(channel, 4096, 4)
        for fd in fds:
            os.close(fd)
        if not data:
            yield "end"
            return
        assert len(data) == ffi.sizeof("struct report"), len(data)
        report = ffi.from_buffer("struct report *", data)
        if report.kind == lib.REPORT_FAILED:
            assert report.step in STEPS, report.step
            # 0: killed before it could say why
            assert 0 <= report.error < 4096, report.error
            yield f"failed {STEPS[report.step]} {report.error}"
        elif report.kind == lib.REPORT_EXITED:
            yield f"exited {report.wait_status}"
        elif report.kind == lib.REPORT_LEASED:
            yield "leased"
        elif report.kind == lib.REPORT_CREATED:
            yield "created"
            return  # nobody will start it: the end of the channel is its end
        else:
            assert report.kind in (lib.REPORT_CLONED, lib.REPORT_STARTED), report.kind

def ask(data, fds=None, more=()):
    ours, theirs = pair()
    with ours:
        with theirs:
            for each in more:
                send(ours, b"x", each)
            try:
                send(launcher.socket, data, [theirs.fileno(), *(STDIO if fds is None else fds)])
            except OSError as error:
                # Too large for a message: it does not even get there.
                assert error.errno in (errno.EMSGSIZE, errno.EINVAL, errno.ETOOMANYREFS), error
                return ["unsent"]
        return list(reports(ours))

def verdict(answers):
    if answers and answers[0].startswith(("failed", "exited", "created", "unsent")):
        return answers[0]
    raise AssertionError(f"an answer was due, not {answers}")

def tell(value):
    print(json.dumps(value), flush=True)

def still_good():
    result = container.run(["echo", "good"], config=CONFIG, text=True)
    launcher.drop_blanks()
    return [result.stdout, launcher_pid() == first_pid]

assert verdict(ask(valid)) == "exited 0"
assert ask(valid)[-1] == "end"
launcher.drop_blanks()
tell(first_pid)
sys.stdin.readline()
"""

Run = Callable[[str], list[Any]]


def open_files(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        return None  # only root may look: it is not dumpable


@pytest.fixture
def nonsense(as_user: AsUser, rootdir: Path) -> Iterator[Run]:
    """Run a program after PRELUDE; its launcher must have no more files afterwards."""
    root = as_user.home / "root"
    for name in ("bin", "dev", "proc", "sys", "tmp/bin"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes((rootdir / "bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in ("true", "echo"):
        (root / "bin" / applet).symlink_to("busybox")
    as_user.own(root)

    def run(source: str) -> list[Any]:
        program = PRELUDE + textwrap.dedent(source) + "\ntell(still_good())\nsys.stdin.readline()\n"
        with subprocess.Popen(
            needs.as_user_argv([sys.executable, "-P", "-s", "-c", program, str(root)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=as_user.home,
            env=as_user.environment(),
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                launcher = json.loads(line)
                before = open_files(launcher)
                process.stdin.write("\n")
                process.stdin.flush()
                told: list[Any] = []
                while not told or told[-1] != ["good\n", True]:
                    line = process.stdout.readline()
                    assert line, (told, process.stderr.read())
                    told.append(json.loads(line))
                    assert told[-1] != ["good\n", False], "the launcher was replaced"
                assert wait_until(lambda: open_files(launcher) == before), (
                    before,
                    open_files(launcher),
                )
                process.stdin.write("\n")
                process.stdin.close()
                assert process.wait(PATIENCE) == 0, process.stderr.read()
            finally:
                process.kill()
        return told[:-1]

    yield run


# Requests -----------------------------------------------------------------------------------------


def test_a_request_cut_anywhere_is_refused(nonsense: Run) -> None:
    (answers,) = nonsense(
        """
        head = ffi.sizeof("struct start")
        sizes = sorted({*range(1, head, 3), *range(head, len(valid), 37), len(valid) - 1})
        tell(sorted({verdict(ask(valid[:size])) for size in sizes}))
        """
    )
    assert answers == ["failed request 22"]


def test_a_request_of_nothing_but_fds_is_refused(nonsense: Run) -> None:
    (answers,) = nonsense("tell([verdict(ask(b''))])")
    assert answers == ["failed request 22"]


def test_a_value_is_written_to_a_procfs_and_to_nothing_else(nonsense: Run) -> None:
    # CVE-2019-16884: a /proc that is none.
    (answer,) = nonsense(
        """
        data = bytearray(valid + b".\\0")
        start = ffi.from_buffer("struct start *", data)
        start.size = len(data)
        size = ffi.sizeof("struct row")
        for index in range(start.rows.count):
            at = start.rows.offset + index * size
            row = ffi.from_buffer("struct row *", memoryview(data)[at : at + size])
            if row.op == lib.ROW_WRITE:  # what is there, and in that very mount
                row.base, row.target = start.root, len(valid)
        tell(verdict(ask(bytes(data))))
        """
    )
    assert answer == "failed filesystem 18"


def test_a_request_with_more_behind_it_is_refused(nonsense: Run) -> None:
    (answers,) = nonsense(
        """
        tell(sorted({verdict(ask(valid + bytes(size))) for size in (1, 7, 8, 4096, 100_000)}))
        """
    )
    assert answers == ["failed request 22"]


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_refused(nonsense: Run, seed: int) -> None:
    answers, _ = nonsense(
        f"""
        order = random.Random({seed})
        found = set()
        for _ in range(200):
            size = order.choice((1, 4, 8, 200, 1000, len(valid), 60_000))
            data = bytearray(order.randbytes(size))
            if order.random() < 0.7:
                op = order.choice((lib.REQUEST_START, lib.REQUEST_LEASE))
                data[:4] = op.to_bytes(4, "little")
            if order.random() < 0.5 and len(data) > 12:
                data[8:12] = len(data).to_bytes(4, "little")
                data[-1] = 0
            found.add(verdict(ask(bytes(data))))
        tell(sorted(found))
        tell(len(found))
        """
    )
    assert {answer.split(" ")[1] for answer in answers} <= {"request", "lease"}


@pytest.mark.parametrize("seed", range(8))
def test_every_flipped_bit_has_an_answer(nonsense: Run, seed: int) -> None:
    answers, count = nonsense(
        f"""
        order = random.Random({seed})
        head = ffi.sizeof("struct start")
        rows = head + ffi.from_buffer("struct start *", valid).rows.count * ffi.sizeof("struct row")
        found = {{}}
        count = 0
        for turn in range(250):
            data = bytearray(valid)
            end = order.choice((head, rows, rows, len(valid)))
            for _ in range(order.choice((1, 1, 1, 2, 5))):
                at = order.randrange(4, end)
                data[at] ^= 1 << order.randrange(8)
            answer = verdict(ask(bytes(data))).rsplit(" ", 1)[0]
            found[answer] = found.get(answer, 0) + 1
            count += 1
        tell(found)
        tell(count)
        """
    )
    assert count == 250
    # Some are seen through at once; some are as good as the valid one.
    assert answers["failed request"] > 20
    assert answers["exited"] > 5


@pytest.mark.parametrize("seed", range(4))
def test_every_number_set_to_an_extreme_has_an_answer(nonsense: Run, seed: int) -> None:
    answers, _ = nonsense(
        f"""
        order = random.Random({seed})
        head = ffi.sizeof("struct start")
        rows = head + ffi.from_buffer("struct start *", valid).rows.count * ffi.sizeof("struct row")
        size = len(valid)
        extremes = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, size, size - 1, size + 1, 2048)
        found = set()
        for at in order.sample(range(4, rows, 4), 200):
            data = bytearray(valid)
            data[at : at + 4] = order.choice(extremes).to_bytes(4, "little")
            found.add(verdict(ask(bytes(data))))
        tell(sorted(found))
        tell(len(found))
        """
    )
    assert "failed request 22" in answers


FLAGS = {
    "CLONE_VM": 0x100,
    "CLONE_FS": 0x200,
    "CLONE_FILES": 0x400,
    "CLONE_SIGHAND": 0x800,
    "CLONE_PTRACE": 0x2000,
    "CLONE_VFORK": 0x4000,
    "CLONE_PARENT": 0x8000,
    "CLONE_THREAD": 0x10000,
    "CLONE_SETTLS": 0x80000,
    "CLONE_UNTRACED": 0x800000,
    "CLONE_INTO_CGROUP": 0x200000000,
}


def test_flags_of_clone_that_make_no_namespace_are_refused(nonsense: Run) -> None:
    (answers,) = nonsense(
        f"""
        answers = {{}}
        for name, flag in {FLAGS!r}.items():
            data = bytearray(valid)
            ffi.from_buffer("struct start *", data).clone_flags |= flag
            answers[name] = verdict(ask(bytes(data)))
        tell(answers)
        """
    )
    assert answers == dict.fromkeys(FLAGS, "failed request 22")


def test_a_start_that_stops_at_the_gate_and_tells_nobody_is_refused(nonsense: Run) -> None:
    (answer,) = nonsense(
        """
        data = bytearray(valid)
        ffi.from_buffer("struct start *", data).flags |= lib.START_GATE | lib.START_QUIET
        tell(verdict(ask(bytes(data))))
        """
    )
    assert answer == "failed request 22"


def test_a_request_without_a_mount_namespace_is_refused(nonsense: Run) -> None:
    # As root it would mount over the root of the host.
    (answer,) = nonsense(
        """
        data = bytearray(valid)
        ffi.from_buffer("struct start *", data).clone_flags &= ~0x20000
        tell(verdict(ask(bytes(data))))
        """
    )
    assert answer == "failed request 22"


def test_a_request_that_nothing_would_be_the_end_of_is_refused(nonsense: Run) -> None:
    (answer,) = nonsense(
        """
        data = bytearray(valid)
        ffi.from_buffer("struct start *", data).clone_flags &= ~0x20000000
        tell(verdict(ask(bytes(data))))
        """
    )
    assert answer == "failed request 22"


def test_a_gate_that_nobody_would_hear_of_is_refused(nonsense: Run) -> None:
    (answer,) = nonsense(
        """
        data = bytearray(valid)
        ffi.from_buffer("struct start *", data).flags |= lib.START_GATE | lib.START_QUIET
        tell(verdict(ask(bytes(data))))
        """
    )
    assert answer == "failed request 22"


def test_rows_that_make_no_sense_together_are_refused(nonsense: Run) -> None:
    answers = nonsense(
        """
        def tell_verdict(change):
            data = bytearray(valid)
            start = ffi.from_buffer("struct start *", data)
            rows = ffi.cast("struct row *", ffi.from_buffer(data) + start.rows.offset)
            change(start, rows)
            tell(verdict(ask(bytes(data))))

        def root_beyond(start, rows): start.root = start.rows.count
        def root_in_the_middle(start, rows): start.root = 1  # the rows behind it lie in row 0
        def root_detached(start, rows): rows[0].flags |= lib.ROW_DETACHED
        def overlay_without_options(start, rows): rows[0].op = lib.ROW_OVERLAY
        def overlay_elsewhere(start, rows):
            rows[1].op, rows[1].data = lib.ROW_OVERLAY, (start.size - 1, 1)
        def handle_without_a_stage(start, rows): rows[1].op = lib.ROW_HANDLE
        def maps_without_a_source(start, rows):
            rows[0].flags |= lib.ROW_OWN_MAPS
            rows[0].data = (start.size - 1, 1)
        for change in (root_beyond, root_in_the_middle, root_detached, overlay_without_options,
            overlay_elsewhere, handle_without_a_stage, maps_without_a_source):
            tell_verdict(change)
        """
    )
    assert answers == ["failed request 22"] * 7


def test_a_flag_for_root_callers_is_no_use_to_another(nonsense: Run) -> None:
    answers = nonsense(
        """
        for flag in (lib.START_SHARE_MEMORY, lib.START_SHARE_MEMORY | lib.START_GATE, 0xffff0000):
            data = bytearray(valid)
            ffi.from_buffer("struct start *", data).flags |= flag
            tell(verdict(ask(bytes(data))))
        """
    )
    assert len(answers) == 3


# File descriptors ---------------------------------------------------------------------------------


def test_any_number_of_fds_has_an_answer(nonsense: Run) -> None:
    (answers,) = nonsense(
        """
        answers = {}
        # 253 is the most that the kernel passes in one message; the first is the channel.
        for count in (0, 1, 2, 4, 5, 100, *range(246, 253)):
            answers.setdefault(verdict(ask(valid, [null] * count)), []).append(count)
        tell(answers)
        """
    )
    refused = {answer: counts for answer, counts in answers.items() if answer.startswith("failed")}
    assert set(refused) == set(answers)
    assert {answer.split(" ")[1] for answer in refused} == {"request"}
    assert sum(map(len, answers.values())) == 13


def test_a_message_without_a_channel_is_let_go(nonsense: Run) -> None:
    nonsense(
        """
        for data in (valid, b"x", bytes(100)):
            send(launcher.socket, data, [])
        """
    )


def test_a_channel_that_is_no_socket_is_let_go(nonsense: Run) -> None:
    nonsense(
        """
        read, write = os.pipe()
        memory = os.memfd_create("x")
        top, itself = os.open("/", os.O_RDONLY), launcher.socket.fileno()
        for channel in (null, read, write, memory, top, itself):
            send(launcher.socket, valid, [channel, null, null, null])
            send(launcher.socket, b"nonsense", [channel, null])
        """
    )


def test_a_channel_whose_other_end_is_closed_is_no_container(nonsense: Run) -> None:
    nonsense(
        """
        for _ in range(20):
            ours, theirs = pair()
            ours.close()
            send(launcher.socket, valid, [theirs.fileno(), null, null, null])
            theirs.close()
        """
    )


def test_sources_that_do_not_come_are_not_waited_for(nonsense: Run) -> None:
    (answers,) = nonsense(
        """
        answers = set()
        some, many = [null] * 9, [null] * 200
        for count, more in ((1, ()), (1000, ()), (300, (many,)), (5, (some,)), (3, ([],))):
            data = bytearray(valid)
            ffi.from_buffer("struct start *", data).source_count = count
            answers.add(verdict(ask(bytes(data), more=more)))
        tell(sorted(answers))
        """
    )
    assert answers == ["failed request 22"]


# Large requests -----------------------------------------------------------------------------------

MEMFD = """
import fcntl
def in_memfd(data, seals=_launcher._SEALS, head=None):
    memfd = os.memfd_create("request", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memfd, data)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
    start = bytearray((valid if head is None else head)[: ffi.sizeof("struct start")])
    ffi.from_buffer("struct start *", start).flags |= lib.START_IN_MEMFD
    try:
        return verdict(ask(bytes(start), [memfd, null, null, null]))
    finally:
        os.close(memfd)
"""


def test_a_request_in_a_memfd_is_as_good_as_one_in_a_message(nonsense: Run) -> None:
    (answer,) = nonsense(MEMFD + "tell(in_memfd(valid))")
    assert answer == "exited 0"


def test_a_memfd_that_can_still_be_changed_or_is_too_short_is_refused(nonsense: Run) -> None:
    (answers,) = nonsense(
        MEMFD
        + """
write, grow, shrink = fcntl.F_SEAL_WRITE, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK
too_few = (0, write, write | grow, shrink | grow, write | shrink)
answers = [in_memfd(valid, seals) for seals in too_few]
answers += [in_memfd(valid[:-1]), in_memfd(b""), in_memfd(bytes(len(valid)))]
for size in (0, 1, 2**24 + 1, 2**32 - 1):
    head = bytearray(valid)
    ffi.from_buffer("struct start *", head).size = size
    answers.append(in_memfd(valid, head=head))
tell(answers)
tell(verdict(ask(valid, [null, null, null, null])))
"""
    )[:1]
    assert set(answers) == {"failed request 22"}


def test_a_memfd_that_is_none_is_refused(nonsense: Run) -> None:
    (answers,) = nonsense(
        """
        start = bytearray(valid)
        ffi.from_buffer("struct start *", start).flags |= lib.START_IN_MEMFD
        read, write = os.pipe()
        top, path = os.open("/", os.O_RDONLY), os.open("/", os.O_PATH)
        files = (null, read, top, path, launcher.socket.fileno())
        tell(sorted({verdict(ask(bytes(start), [each, null, null, null])) for each in files}))
        """
    )
    assert answers == ["failed request 22"]


# Leases and commands ------------------------------------------------------------------------------


def test_a_lease_that_makes_no_sense_is_refused(nonsense: Run) -> None:
    (answers,) = nonsense(
        """
        def lease(path, first, count, start, size=None, fds=()):
            whole = ffi.sizeof("struct lease") + len(path)
            at = ffi.sizeof("struct lease")
            fields = (lib.REQUEST_LEASE, whole if size is None else size, at, first, count, start)
            lease = ffi.new("struct lease *", fields)
            return verdict(ask(bytes(ffi.buffer(lease)) + path, list(fds)))
        good = b"/tmp/none\\0"
        tell(sorted({
            lease(good, 8, 0, 8),
            lease(good, 8, 70_000, 8),
            lease(good, 8, 2**32 - 1, 8),
            lease(good, 65_535, 2, 65_535),
            lease(good, 2**32 - 1, 1, 2**32 - 1),
            lease(good, 8, 10, 7),
            lease(good, 8, 10, 18),
            lease(b"no end", 8, 10, 8),
            lease(b"", 8, 10, 8),
            lease(good, 8, 10, 8, size=8),
        }))
        """
    )
    assert {answer.rsplit(" ", 1)[1] for answer in answers} <= {"22", "13"}
    assert all(answer.startswith("failed") for answer in answers)


TALK = """
process = container.popen(["busybox", "cat"], root=ROOT, stdin=container.PIPE)
channel = process._child.channel
order = random.Random(7)
"""


def test_a_command_that_is_none_does_not_matter_to_the_container(nonsense: Run) -> None:
    (status,) = nonsense(
        TALK
        + """
for _ in range(300):
    data = order.randbytes(order.choice((1, 3, 4, 7, 8)))
    if int.from_bytes(data[:4], "little") not in (lib.COMMAND_START, lib.COMMAND_SIGNAL):
        # An ordinary user's fds in flight are limited.
        send(channel, data, [null] * order.choice((0, 1, 200 if os.geteuid() == 0 else 2)))
for number in (0, -1, 65, 9999, 2**31 - 1):
    process._child.command(lib.COMMAND_SIGNAL, number)
process._child.command(lib.COMMAND_START)
# It ran on until the end of its input.
process.stdin.close()
tell(process.wait())
"""
    )
    assert status == 0


def test_a_command_that_is_too_long_ends_at_most_the_container_that_it_is_for(
    nonsense: Run,
) -> None:
    (statuses,) = nonsense(
        """
        statuses = set()
        for size in (9, 64, 4096, 100_000):
            process = container.popen(["busybox", "cat"], root=ROOT, stdin=container.PIPE)
            send(process._child.channel, bytes(size), [null] * 3)
            process.stdin.close()
            try:
                statuses.add(process.wait())
            except container.StateError:
                statuses.add("lost")
        tell(list(statuses))
        """
    )
    assert set(statuses) <= {0, -9, "lost"}
