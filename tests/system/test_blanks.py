# SPDX-License-Identifier: Apache-2.0
"""Children that the launcher makes ahead (csrc/blank.c): used once, of the right kind, let go."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from system.helpers import caller, is_readable, running_caller, told

import container
from container import Config, Container, Join, Mount, Namespaces, Process, Rlimit, _launcher

pytestmark = pytest.mark.needs("userns")

KINDS = ("user", "pid", "net", "ipc", "uts", "cgroup")
PATIENCE = 10.0  # seconds; only a stuck machine needs more


# For the program of a `caller`.
AWAIT_BLANK = """
def await_blank():
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        launcher = launcher_pid()
        with open(f"/proc/{launcher}/task/{launcher}/children") as file:
            for pid in map(int, file.read().split()):
                if _launcher._is_blank(pid):
                    return pid
"""


def children_of(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def blanks() -> set[int]:
    """Children of the launcher in a PID namespace of their own that are nobody's container."""
    launcher = _launcher.launcher_pid()
    found = set()
    for pid in children_of(launcher):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if _launcher._is_blank(pid):
                found.add(pid)
    return found


def await_blank() -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for pid in blanks():
            status = Path(f"/proc/{pid}/status").read_text()
            # Waiting for its request: asleep, and root of its namespace by then.
            if "State:\tS" in status:
                return pid
        time.sleep(0.001)
    raise AssertionError("no child was made ahead")


@pytest.fixture
def blank() -> Iterator[int]:
    container.run(["true"], check=True)
    yield await_blank()


def uses_blank() -> bool:
    blank = await_blank()
    with Container() as box, Container() as other:
        box.run(Process(["sleep", "1000"]))
        # And only that one: another is made for the next.
        other.run(Process(["sleep", "1000"]))
        assert other.pid not in (blank, None)
        return box.pid == blank


def test_the_next_start_of_the_kind_uses_it(blank: int) -> None:
    # More than once: on a busy machine it may have been let go before the start came.
    assert any(uses_blank() for _ in range(20))


def test_a_start_of_another_kind_does_not(blank: int) -> None:
    for namespaces in (Namespaces(net=False), Namespaces(ipc=False), Namespaces(uts=False)):
        with Container(Config(namespaces=namespaces)) as box:
            box.run(Process(["sleep", "1000"]))
            assert box.pid != blank
            kept = {kind for kind in KINDS if not getattr(namespaces, kind)}
            for kind in KINDS:
                ours = os.stat(f"/proc/self/ns/{kind}").st_ino
                theirs = os.stat(f"/proc/{box.pid}/ns/{kind}").st_ino
                assert (ours == theirs) == (kind in kept), kind


ASKED_FOR = Process(
    ["sleep", "1000"], init=True, nice=7, cpu_affinity=[0], rlimits=[Rlimit("NPROC", 77, 78)]
)


def uses_blank_for_much() -> bool:
    blank = await_blank()
    with Container() as box, Container() as spared:
        box.run(ASKED_FOR)
        assert box.pid is not None
        (payload,) = children_of(box.pid)
        for pid in (box.pid, payload):
            assert os.getpriority(os.PRIO_PROCESS, pid) == 7
            assert os.sched_getaffinity(pid) == {0}
        assert Path(f"/proc/{box.pid}/comm").read_text() == "container-init\n"
        limits = Path(f"/proc/{payload}/limits").read_text()
        assert ["77", "78"] in [line.split()[2:4] for line in limits.splitlines()]
        # Its file is its user's for as long as its maps are to be written: too late for a blank.
        other = await_blank()
        spared.run(Process(["sleep", "1000"], oom_score_adj=500))
        assert spared.pid != other
        assert Path(f"/proc/{spared.pid}/oom_score_adj").read_text() == "500\n"
        return box.pid == blank


def test_what_a_process_asks_for_is_done_to_it_too(blank: int) -> None:
    assert any(uses_blank_for_much() for _ in range(20))


@pytest.mark.needs("root")
def test_a_start_that_joins_a_namespace_does_not() -> None:
    with Container() as other:
        other.run(Process(["sleep", "1000"]))
        for _ in range(20):
            # Of the kind that a start is which makes no network namespace of its own.
            container.run(["true"], config=Config(namespaces=Namespaces(net=False)), check=True)
            await_blank()
            with Container(Config(namespaces=Namespaces(net=Join(container=other)))) as box:
                box.run(Process(["sleep", "1000"]))
                assert os.stat(f"/proc/{box.pid}/ns/net") == os.stat(f"/proc/{other.pid}/ns/net")


@pytest.mark.needs("root")
def test_none_is_made_for_containers_without_a_user_namespace(blank: int) -> None:
    config = Config(namespaces=Namespaces(user=False))
    own = ["0", "0", "4294967295"]
    for _ in range(3):
        with Container(config) as box:
            box.run(Process(["sleep", "1000"]))
            assert box.pid != blank
            assert Path(f"/proc/{box.pid}/uid_map").read_text().split() == own
        assert await_blank() == blank
        assert len(blanks()) == 1


@pytest.mark.needs("root")
def test_it_waits_without_the_rights_that_it_started_with(blank: int) -> None:
    status = Path(f"/proc/{blank}/status").read_text()
    uid_map = Path(f"/proc/{blank}/uid_map").read_text().split()
    uid = status.split("Uid:\t")[1].split("\t")[0]
    assert uid == uid_map[1]  # root of its namespace, nobody outside
    assert int(uid) >= 65536
    # Not dumpable: its files in /proc are root's.
    assert os.stat(f"/proc/{blank}/environ").st_uid == 0
    for kind in KINDS:
        assert os.stat(f"/proc/{blank}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino


@pytest.mark.needs("root")
def test_it_holds_no_file_but_its_socket(blank: int) -> None:
    links = [os.readlink(f"/proc/{blank}/fd/{fd}") for fd in os.listdir(f"/proc/{blank}/fd")]
    assert sorted(link.split(":")[0] for link in links) == [*["/dev/null"] * 3, "socket"]


@pytest.mark.needs("root")
def test_mounts_are_those_of_the_start_not_of_the_making(blank: int, tmp_path: Path) -> None:
    # What the caller mounts after the child was made is there for a bind, which needs a copy of
    # the caller's mounts in the mount namespace of the container.
    told_of = caller(
        AWAIT_BLANK
        + f"""
check(libc.unshare(0x20000))
check(libc.mount(None, b"/", None, 1 << 14 | 1 << 18, None))
for _ in range(20):
    run(["true"])
    pid = await_blank()
    check(libc.mount(b"new", {os.fsencode(tmp_path)!r}, b"tmpfs", 0, None))
    with open({str(tmp_path / "file")!r}, "w") as file:
        file.write("late")
    with Container(Config(mounts=[Mount.bind({str(tmp_path)!r}, "/in", read_only=True)])) as box:
        box.run(Process(["cat", "/in/file"], stdout=PIPE))
        tell([box.pid == pid, box.stdout.read().decode()])
    check(libc.umount2({os.fsencode(tmp_path)!r}, 2))
"""
    )
    assert {text for _, text in told_of} == {"late"}
    assert any(used for used, _ in told_of)


def test_one_that_was_killed_is_not_used(blank: int) -> None:
    fd = os.pidfd_open(blank)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        assert is_readable(fd, PATIENCE)
    finally:
        os.close(fd)
    for _ in range(5):
        assert container.run(["echo", "fine"], text=True).stdout == "fine\n"


def test_a_busy_caller_never_gets_anything_but_its_own(blank: int, tmp_path: Path) -> None:
    # Each start has other streams, arguments, mounts: all of them must be those of its request.
    for number in range(40):
        config = Config(hostname=f"box-{number}", mounts=[Mount.tmpfs(f"/data-{number}")])
        done = container.run(
            ["sh", "-c", f"uname -n; ls -d /data-*; cat; echo {number} >&2"],
            config=config,
            input=f"input {number}\n",
            text=True,
        )
        assert done.stdout == f"box-{number}\n/data-{number}\ninput {number}\n"
        assert done.stderr == f"{number}\n"


def test_it_is_let_go_when_nothing_happens(blank: int) -> None:
    fd = os.pidfd_open(blank)
    try:
        assert is_readable(fd, PATIENCE)
    finally:
        os.close(fd)
    # A moment later it is reaped, and no other one comes.
    deadline = time.monotonic() + PATIENCE
    while blanks() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert blanks() == set()


@pytest.mark.parametrize("end", ["launcher", "caller"])
def test_it_goes_with_launcher_and_caller(end: str) -> None:
    source = f"""{AWAIT_BLANK}
run(["true"])
tell(await_blank())
sys.stdin.readline()
if {end!r} == "launcher":
    kill_launcher()
sys.stdin.read()
"""
    with running_caller(source) as process:
        fd = os.pidfd_open(told(process))
        try:
            if end == "caller":
                process.kill()
            else:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            assert is_readable(fd, PATIENCE)
        finally:
            os.close(fd)


@pytest.mark.needs("root")
def test_a_caller_with_lesser_rights_does_not_get_it() -> None:
    told_of = caller(
        AWAIT_BLANK
        + """
run(["true"])
first, blank = launcher_pid(), await_blank()
pidfd = os.pidfd_open(blank)
os.setresgid(1234, 1234, 1234)
os.setresuid(1234, 1234, 1234)
result = run(["cat", "/proc/self/uid_map"], text=True)
select.select([pidfd], [], [])
tell([result.stdout.split(), launcher_pid() != first])
"""
    )
    assert told_of == [[["0", "1234", "1"], True]]
