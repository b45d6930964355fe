# SPDX-License-Identifier: Apache-2.0
"""The channels of commands that have ended, on which the next is asked for (csrc/line.c)."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from system.helpers import PATIENCE, caller, is_readable, parse_status, python, wait_until
from system.test_spares import IDLE, spare_of

from container import (
    PIPE,
    Config,
    Container,
    ExecConfig,
    LaunchError,
    Process,
    SeccompAction,
    SeccompProfile,
    StateError,
)
from container._launcher import Socket, launcher_pid
from container._native import ffi, lib

pytestmark = pytest.mark.needs("root", "userns")


@pytest.fixture
def box() -> Iterator[Container]:
    with Container() as box:
        box.run(IDLE)
        yield box


def line_of(box: Container) -> Socket:
    """One that nobody uses any more but the caller of this."""
    assert box.exec(["true"]).wait() == 0
    assert box._host is not None
    line = box._host.lines.take()
    assert line is not None
    return line


def request_of(box: Container) -> bytes:
    """The one of the command that was run last."""
    assert box._host is not None
    (*_, known) = box._host.kept.values()
    assert known.request is not None
    return known.request


def answer_on(line: Socket) -> tuple[int, str]:
    """The error of the failure that is told, and whether that is the end."""
    assert is_readable(line.fileno(), PATIENCE)
    report = ffi.from_buffer("struct report *", line.recv(1024))
    assert report.kind == lib.REPORT_FAILED
    assert is_readable(line.fileno(), PATIENCE)
    return report.error, "end" if line.recv(1024) == b"" else "more"


def test_one_command_after_the_other_is_asked_for_on_the_same_channel(box: Container) -> None:
    assert box.exec(["true"]).wait() == 0
    files = os.listdir(f"/proc/{launcher_pid()}/fd")
    channels = set()
    for number in range(20):
        process = box.exec(["sh", "-c", f"echo {number}; exit {number}"])
        channels.add(os.fstat(process.child.channel.fileno()).st_ino)
        assert process.communicate() == (b"%d\n" % number, b"")
        assert process.returncode == number
    assert len(channels) == 1
    # But for what is made ahead, which may be there or not; of earlier tests some may have gone.
    assert len(os.listdir(f"/proc/{launcher_pid()}/fd")) - len(files) < 16


def test_commands_at_once_have_a_channel_each(box: Container) -> None:
    for _ in range(2):
        processes = [box.exec(["sh", "-c", f"echo {number}; cat"]) for number in range(8)]
        assert len({os.fstat(each.child.channel.fileno()).st_ino for each in processes}) == 8
        for number, process in enumerate(processes):
            assert process.communicate()[0] == b"%d\n" % number
    assert box._host is not None
    assert len(box._host.lines._idle) == 4  # the rest is closed


def test_a_signal_that_comes_too_late_is_for_no_other_command(box: Container) -> None:
    first = box.exec(["true"])
    assert first.wait() == 0
    second = box.exec(["sleep", "1000"])
    first.kill()
    first.child.kill()
    assert second.poll() is None
    second.kill()
    assert second.wait() == -signal.SIGKILL


def test_a_line_ends_with_its_container(box: Container) -> None:
    line = line_of(box)
    box.signal(signal.SIGKILL)
    assert is_readable(line.fileno(), PATIENCE)
    assert line.recv(1) == b""
    line.close()


def test_a_command_in_a_container_that_has_just_ended_is_refused() -> None:
    for _ in range(20):
        with Container() as box:
            box.run(IDLE)
            assert box.exec(["true"]).wait() == 0
            assert box.pidfd is not None
            signal.pidfd_send_signal(box.pidfd, signal.SIGKILL)
            with pytest.raises(StateError):
                for _ in range(1000):
                    box.exec(["true"])


@pytest.mark.parametrize("change", ["os.seteuid(1000)", "os.setgroups([7])"])
def test_who_has_other_rights_by_now_is_not_served(change: str) -> None:
    source = f"""
from container._launcher import ffi, lib
box = Container()
box.run(Process(["sleep", "1000"]))
box.exec(["true"]).wait()
line = box._host.lines.take()
known, = box._host.kept.values()
{change}
line.send(known.request)
report = ffi.from_buffer("struct report *", line.recv(1024))
tell([report.kind == lib.REPORT_FAILED, report.step == lib.STEP_RIGHTS])
tell(len(line.recv(1024)))
os._exit(0)
"""
    assert caller(source) == [[True, True], 0]


def test_a_copy_of_a_line_is_no_use_to_another_process() -> None:
    source = """
from container._launcher import ffi, lib
box = Container()
box.run(Process(["sleep", "1000"]))
box.exec(["true"]).wait()
line = box._host.lines.take()
known, = box._host.kept.values()
if os.fork() == 0:
    line.send(known.request)
    os._exit(0)
os.wait()
report = ffi.from_buffer("struct report *", line.recv(1024))
tell([report.kind == lib.REPORT_FAILED, report.step == lib.STEP_RIGHTS])
tell(len(line.recv(1024)))
os._exit(0)
"""
    assert caller(source) == [[True, True], 0]


def mangled(request: bytes, **fields: int) -> bytes:
    data = bytearray(request)
    start = ffi.from_buffer("struct start *", data)
    for name, value in fields.items():
        setattr(start, name, value)
    return bytes(data)


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda request: request[:3],
        lambda request: request[:-1],
        lambda request: mangled(request, op=lib.REQUEST_START),
        lambda request: mangled(request, op=lib.REQUEST_DROP_BLANKS),
        lambda request: mangled(request, target=0),
        lambda request: mangled(request, flags=lib.START_STREAMS | lib.START_TERMINAL),
        lambda request: mangled(request, flags=lib.START_FRESH_USER),  # where are its streams?
        lambda request: mangled(request, flags=lib.START_STREAMS | lib.START_IN_MEMFD),
    ],
)
def test_nonsense_on_a_line_is_answered_and_ends_it(box: Container, nonsense: Any) -> None:
    line = line_of(box)
    line.send(nonsense(request_of(box)))
    assert answer_on(line) == (22, "end")
    line.close()
    assert box.exec(["echo", "fine"]).communicate() == (b"fine\n", b"")


def test_fds_on_a_line_are_refused_and_given_back(box: Container) -> None:
    line = line_of(box)
    read, write = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, write.to_bytes(4, "little"))]
    line.sendmsg([request_of(box)], rights)
    os.close(write)
    assert answer_on(line) == (22, "end")
    assert is_readable(read, PATIENCE)
    assert os.read(read, 1) == b""
    os.close(read)
    line.close()


def filters_of(pid: int) -> str:
    return parse_status(Path(f"/proc/{pid}/status").read_text())["Seccomp_filters"]


def test_a_spare_waits_under_the_filter_and_a_command_has_it_once(box: Container) -> None:
    assert wait_until(lambda: filters_of(spare_of(box)) == "1")
    process = box.exec(["sleep", "1000"])
    assert filters_of(process.pid or 0) == "1"
    process.kill()
    process.wait()


@pytest.mark.parametrize("refused", ["openat2", "rt_sigtimedwait", "recvmsg", "dup3"])
def test_a_filter_that_lets_nobody_wait_is_loaded_last(refused: str) -> None:
    default = SeccompProfile.default()
    rule = replace(default.syscalls[0], names=[refused], action=SeccompAction.KILL_PROCESS, args=())
    profile = replace(default, syscalls=[*default.syscalls, rule])
    with Container(Config(seccomp=profile)) as box:
        box.run(IDLE)
        for _ in range(3):
            assert filters_of(spare_of(box)) == "0"
            process = box.exec(["sleep", "1000"])
            assert filters_of(process.pid or 0) == "1"
            process.kill()
            process.wait()


def files_of_launcher() -> int:
    return len(os.listdir(f"/proc/{launcher_pid()}/fd"))


def test_of_a_command_that_runs_the_launcher_holds_a_pidfd_and_its_channel(box: Container) -> None:
    spare = os.pidfd_open(spare_of(box))
    try:
        assert is_readable(spare, PATIENCE)  # it was let go
    finally:
        os.close(spare)
    before = files_of_launcher()  # the channel is there
    process = box.exec(["sleep", "1000"])
    assert wait_until(lambda: files_of_launcher() == before + 1)
    process.kill()
    process.wait()
    assert wait_until(lambda: files_of_launcher() == before)


def test_a_command_that_cannot_be_run_is_told_of_whoever_was_made_for_it(box: Container) -> None:
    for command, error in ((["absent"], FileNotFoundError), (["/usr"], PermissionError)) * 3:
        spare_of(box)
        with pytest.raises(error):
            box.exec(command)
        with pytest.raises(error):  # none was made ahead
            box.exec(command)
    with pytest.raises(LaunchError, match="working directory"):
        box.exec(ExecConfig(["true"], cwd="/absent"))


KILLER = """
import os, signal
print("up", flush=True)
last = os.getpid()
while True:
    for pid in range(last + 1, last + 8):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # not there yet
            continue
        last = pid
        break
"""


def test_commands_that_are_killed_before_or_after_they_run_end_by_that() -> None:
    with Container() as box:
        box.run(Process(python(KILLER), stdout=PIPE))
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        statuses = set()
        for _ in range(100):
            try:
                statuses.add(box.exec(["true"]).wait())
            except LaunchError as error:
                assert error.errno is None  # killed where it was made
        assert statuses <= {0, -signal.SIGKILL}
        assert statuses
