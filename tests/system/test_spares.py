# SPDX-License-Identifier: Apache-2.0
"""Children made ahead for the next command in a container (csrc/spare.c)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.helpers import (
    PATIENCE,
    is_readable,
    namespaces_of,
    parse_status,
    running_caller,
    told,
    wait_until,
)
from system.test_blanks import children_of

from container import (
    PIPE,
    Capabilities,
    Capability,
    Container,
    ExecConfig,
    Process,
    exec_in_namespaces,
)
from container._launcher import launcher_pid

# An ordinary user cannot look at its own: nothing of a process that is not dumpable is for it.
pytestmark = pytest.mark.needs("root", "userns")

IDLE = Process(["sleep", "1000"])
RIGHTS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
TRIES = 20
"""On a busy machine one may be let go before the command comes that it is meant for."""


def is_spare(pid: int, box: Container) -> bool:
    """Whether it waits: asleep, under the launcher's name, in the container."""
    try:
        status = parse_status(Path(f"/proc/{pid}/status").read_text())
        inside = os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{box.pid}/ns/pid")
        where = Path(f"/proc/{pid}/syscall").read_text().split()
    except OSError:
        return False
    named = status["Name"] == "container-launcher"[:15]
    # In recvmsg, and past the last step before it.
    return inside and named and status["NoNewPrivs"] == "1" and where[0] in ("47", "212")


def spares(box: Container) -> list[int]:
    return [pid for pid in children_of(launcher_pid()) if is_spare(pid, box)]


def spare_of(box: Container) -> int:
    """Of a command that has just ended."""
    assert box.exec(["true"]).wait() == 0
    assert wait_until(lambda: spares(box))
    return spares(box)[0]


@pytest.fixture
def box() -> Iterator[Container]:
    with Container() as box:
        box.run(IDLE)
        yield box


def uses_spare(box: Container) -> bool:
    spare = spare_of(box)
    process = box.exec(["sleep", "1000"])
    other = box.exec(["sleep", "1000"])
    pids = (process.pid, other.pid)
    for each in (process, other):
        each.kill()
        assert each.wait() == -signal.SIGKILL
    assert other.pid != spare  # it serves once
    return pids[0] == spare


def test_the_next_command_uses_it_and_no_other(box: Container) -> None:
    assert any(uses_spare(box) for _ in range(TRIES))


def test_each_command_is_its_own_whoever_it_was_made_for(box: Container, tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / str(number)
        with path.open("wb") as file:
            wanted = ExecConfig(
                ["sh", "-c", f"echo {number}; pwd; echo $NUMBER; cat >&2", "x" * number],
                env={"NUMBER": str(number * 2)},
                cwd=("/", "/tmp", "/usr")[number % 3],
                stdin=PIPE,
                stdout=file,
            )
            process = box.exec(wanted)
        assert process.communicate(b"in %d" % number) == (None, b"in %d" % number)
        told_of = f"{number}\n{('/', '/tmp', '/usr')[number % 3]}\n{number * 2}\n"
        assert path.read_text() == told_of


KINDS = {
    "user": (ExecConfig(["cat", "/proc/self/status"], user=1000), "Uid", "1000\t1000\t1000\t1000"),
    "group": (ExecConfig(["cat", "/proc/self/status"], user="0:7"), "Gid", "7\t7\t7\t7"),
    "capabilities": (
        ExecConfig(
            ["cat", "/proc/self/status"],
            capabilities=Capabilities(**dict.fromkeys(("bounding", "effective", "permitted"), ())),
        ),
        "CapBnd",
        f"{0:016x}",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_with_other_rights_gets_those(box: Container, kind: str) -> None:
    wanted, field, value = KINDS[kind]
    for _ in range(5):
        spare_of(box)
        process = box.exec(wanted, text=True)
        out, _ = process.communicate()
        assert parse_status(out)[field] == value


def test_a_command_on_a_terminal_has_one_of_its_own(box: Container) -> None:
    for _ in range(3):
        spare_of(box)
        for _ in range(2):
            with box.exec(ExecConfig(["sh", "-c", "tty <&1"], tty=True)) as process:
                assert process.stdout is not None
                assert process.stdout.read(9) == b"/dev/pts/"
            assert process.returncode == 0


def test_a_command_of_another_container_does_not_use_it(box: Container) -> None:
    with Container() as other:
        other.run(IDLE)
        spare_of(other)
        for each in (box, other) * 5:
            process = each.exec(["readlink", "/proc/self/ns/pid"], text=True)
            out, _ = process.communicate()
            assert out.strip() == namespaces_of(each.pid or 0)["pid"]


def test_it_has_the_rights_of_a_command_and_the_namespaces_of_the_container(
    box: Container,
) -> None:
    spare = spare_of(box)
    assert namespaces_of(spare) == namespaces_of(box.pid or 0)
    first = parse_status(Path(f"/proc/{box.pid}/status").read_text())
    status = parse_status(Path(f"/proc/{spare}/status").read_text())
    assert {name: status[name] for name in RIGHTS} == {name: first[name] for name in RIGHTS}
    mounts = Path(f"/proc/{box.pid}/mountinfo").read_text()
    assert Path(f"/proc/{spare}/mountinfo").read_text() == mounts


def test_it_is_not_dumpable_and_holds_no_file_but_its_socket_and_streams(box: Container) -> None:
    spare = spare_of(box)
    assert os.stat(f"/proc/{spare}/environ").st_uid == 0  # root's outside, whoever it is inside
    links = [os.readlink(f"/proc/{spare}/fd/{fd}") for fd in os.listdir(f"/proc/{spare}/fd")]
    kinds = sorted(link.split(":")[0] for link in links)
    assert kinds == [*["/dev/null"] * 4, *["pipe"] * 3, "socket"]


def test_none_is_made_where_it_would_not_end_with_the_container(box: Container) -> None:
    own = namespaces_of("self")["pid"]

    def outside() -> set[int]:
        return {pid for pid in children_of(launcher_pid()) if namespaces_of(pid)["pid"] == own}

    before = outside()
    for _ in range(3):
        process = exec_in_namespaces(box.pid or 0, ["true"], namespaces={"user", "mnt"})
        assert process.wait() == 0
    assert not wait_until(lambda: outside() - before, 0.1)  # much longer than one takes


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, 34])
def test_a_signal_that_it_was_sent_is_not_for_the_program(box: Container, sent: int) -> None:
    for _ in range(5):
        spare = spare_of(box)
        fd = os.pidfd_open(spare)
        try:
            for _ in range(3):  # a real-time signal is queued
                signal.pidfd_send_signal(fd, sent)
        finally:
            os.close(fd)
        process = box.exec(["grep", "-E", "^(SigPnd|ShdPnd|SigBlk|SigIgn)", "/proc/self/status"])
        out, _ = process.communicate()
        assert process.returncode == 0
        assert {line.split()[1] for line in out.splitlines()} == {b"0" * 16}


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL])
def test_one_that_was_stopped_or_killed_holds_nobody_up(box: Container, sent: int) -> None:
    for _ in range(5):
        fd = os.pidfd_open(spare_of(box))
        try:
            signal.pidfd_send_signal(fd, sent)
            if sent == signal.SIGKILL:
                assert is_readable(fd, PATIENCE)
        finally:
            os.close(fd)
        process = box.exec(["echo", "fine"], text=True)
        assert process.communicate(timeout=PATIENCE) == ("fine\n", "")


def test_it_is_let_go_when_nothing_is_run(box: Container) -> None:
    fd = os.pidfd_open(spare_of(box))
    try:
        assert is_readable(fd, PATIENCE)
    finally:
        os.close(fd)
    assert wait_until(lambda: not spares(box))


def test_it_ends_with_its_container(box: Container) -> None:
    fd = os.pidfd_open(spare_of(box))
    try:
        box.destroy()
        assert is_readable(fd, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("end", ["launcher", "caller"])
def test_it_goes_with_launcher_and_caller(end: str) -> None:
    source = f"""
box = Container()
box.run(Process(["sleep", "1000"]))
def made_ahead():
    launcher = launcher_pid()
    with open(f"/proc/{{launcher}}/task/{{launcher}}/children") as file:
        for pid in map(int, file.read().split()):
            try:
                spaces = {{os.readlink(f"/proc/{{each}}/ns/pid") for each in (pid, box.pid)}}
                with open(f"/proc/{{pid}}/comm") as file:
                    if len(spaces) == 1 and file.read().startswith("container-launc"):
                        return pid
            except OSError:
                pass
box.exec(["true"]).wait()
while (pid := made_ahead()) is None:
    pass
tell(pid)
sys.stdin.readline()
if {end!r} == "launcher":
    kill_launcher()
sys.stdin.read()
"""
    with running_caller(source) as process:
        fd = os.pidfd_open(told(process))
        try:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
            if end == "caller":
                process.kill()
            assert is_readable(fd, PATIENCE)
        finally:
            os.close(fd)


def test_it_is_made_with_the_capabilities_of_the_command_not_of_the_container(
    box: Container,
) -> None:
    one = frozenset({Capability.CHOWN})
    wanted = ExecConfig(["true"], capabilities=Capabilities(one, one, one))
    assert box.exec(wanted).wait() == 0
    assert wait_until(lambda: spares(box))
    status = parse_status(Path(f"/proc/{spares(box)[0]}/status").read_text())
    assert {status[name] for name in ("CapBnd", "CapPrm", "CapEff")} == {f"{1:016x}"}
