# SPDX-License-Identifier: Apache-2.0
"""Commands in containers that are hostile, that die meanwhile, or that many threads ask at once."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from system.helpers import (
    PATIENCE,
    caller,
    namespaces_of,
    python,
)

from container import (
    PIPE,
    Capabilities,
    Config,
    Container,
    ContainerTimeoutError,
    ExecConfig,
    ExecProcess,
    Process,
    StateError,
    UnsupportedError,
)
from container._config import NAMESPACE_FLAGS
from container._join import Host, Manner, run_member
from container._launcher import drop_blanks, launcher_pid
from container._process import CaptureLimits

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

AsUser = Callable[..., Any]
IDLE = Process(["sleep", "1000"])


def children_of_launcher() -> list[str]:
    """The names of the launcher's children, all but its guard."""
    drop_blanks()
    pid = launcher_pid()
    names = []
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        for child in file.read().split():
            with open(f"/proc/{child}/comm", encoding="utf-8") as comm:
                names.append(comm.read().strip())
    return [name for name in names if name != "container-guard"]


def finish(process: ExecProcess) -> tuple[int, bytes]:
    out, _ = process.communicate()
    assert process.returncode is not None
    return process.returncode, out


# Many threads -------------------------------------------------------------------------------------


def test_sixteen_threads_run_a_thousand_commands_in_one_container() -> None:
    wrong: list[object] = []

    def work(box: Container, thread: int) -> None:
        try:
            for turn in range(63):
                words = f"{thread} {turn}"
                command = ["sh", "-c", f"echo {words}; exit {turn % 7}"]
                told = finish(box.exec(command))
                if told != (turn % 7, words.encode() + b"\n"):
                    wrong.append(told)
        except BaseException as error:
            wrong.append(error)

    with Container() as box:
        box.run(IDLE)
        threads = [threading.Thread(target=work, args=(box, number)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert children_of_launcher() == ["sleep"]


# Death --------------------------------------------------------------------------------------------


def race(turn: int) -> str:
    """One command against the end of its container; how it went."""
    with Container() as box:
        box.run(IDLE)
        own = namespaces_of(box.pid or 0)
        start = threading.Barrier(2)

        def kill() -> None:
            start.wait()
            for _ in range(turn % 50):
                os.getppid()  # a little later each time
            box.signal(signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        start.wait()
        for _ in range(turn % 4 * 500):
            os.getppid()  # or a little later than that
        try:
            command = ["sh", "-c", "readlink /proc/self/ns/mnt /proc/self/ns/pid /proc/self/ns/net"]
            status, out = finish(box.exec(command))
        except StateError:
            return "refused"
        finally:
            killer.join()
        assert status in (0, -9), status
        whole = [own[name] for name in ("mnt", "pid", "net")]
        lines = out.decode().splitlines()
        assert lines == whole[: len(lines)]
        return "killed" if status else "ended"


def test_a_command_that_races_with_the_end_of_its_container_never_runs_elsewhere() -> None:
    went = [race(turn) for turn in range(500)]
    assert set(went) <= {"refused", "killed", "ended"}
    # One that is killed at the last moment before it runs is as good as one that has run.
    assert went.count("refused") + went.count("killed") > 10
    assert went.count("killed") + went.count("ended") > 10
    assert children_of_launcher() == []


def test_a_container_that_is_gone_is_not_mistaken_for_another() -> None:
    with Container() as first, Container() as second:
        first.run(IDLE)
        second.run(IDLE)
        assert first._child is not None
        host = Host(first.config, first._process, first._plan, first._child, first._child.serial)
        first.signal(signal.SIGKILL)
        assert first.wait(PATIENCE) == -9
        manner = Manner(None, CaptureLimits(None, "head"), 0.0)
        with pytest.raises(StateError, match="ended before"):
            run_member(host, ExecConfig(["true"]), manner, frozenset(NAMESPACE_FLAGS))
        assert second.exec(["true"]).wait() == 0


@pytest.mark.needs("root")
def test_a_command_that_joined_only_some_namespaces_ends_with_the_container() -> None:
    from container import exec_in_namespaces  # noqa: PLC0415 - beside its one test

    with Container() as box:
        box.run(IDLE)
        assert box.pid is not None
        process = exec_in_namespaces(box.pid, ["sleep", "1000"], namespaces={"net"})
        box.signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -9
        with process:
            pass


@pytest.mark.needs("root", "idmap")
def test_ids_of_processes_that_may_be_left_on_the_host_are_not_leased_again() -> None:
    told = caller(
        """
        def first_id(box):
            with open(f"/proc/{box.pid}/uid_map") as file:
                return int(file.read().split()[1])

        def run_some(names):
            box = Container()
            box.run(Process(["sleep", "1000"]))
            number = first_id(box)
            with exec_in_namespaces(box.pid, ["true"], namespaces=names):
                pass
            box.destroy()
            _launcher.drop_blanks()
            boxes = [Container() for _ in range(4)]
            for each in boxes:
                each.run(Process(["sleep", "1000"]))
            again = [first_id(each) for each in boxes]
            for each in boxes:
                each.destroy()
            return number in again

        tell([run_some({"user", "mnt", "pid"}), run_some({"user", "mnt"})])
        """
    )
    assert told == [[True, False]]


# A hostile first process --------------------------------------------------------------------------

# Looks at every newcomer from its first moment on, by all that /proc and ptrace offer, until it is
# told to stop. What it may see is the program that was asked for; the launcher is a memfd.
SPY = """
import ctypes, json, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
found = {"breaches": [], "hidden": 0, "seen": 0, "traced": 0}

def is_outside(text):
    return "memfd" in text or "container-launch" in text

def look(pid):
    # True when there was something to be seen.
    exe = os.readlink(f"/proc/{pid}/exe")
    if is_outside(exe):
        found["breaches"].append(exe)
    with open(f"/proc/{pid}/maps") as file:
        if is_outside(text := file.read()):
            found["breaches"].append(text)
    for name in os.listdir(f"/proc/{pid}/fd"):
        link = os.readlink(f"/proc/{pid}/fd/{name}")
        if link.startswith(("socket:", "anon_inode:")) or "memfd" in link:
            found["breaches"].append(link)

def trace(pid):
    if libc.ptrace(SEIZE, pid, 0, 0):
        return
    with open(f"/proc/{pid}/comm") as file:
        if is_outside(comm := file.read()):
            found["breaches"].append("seized " + comm)
    libc.ptrace(INTERRUPT, pid, 0, 0)
    os.waitpid(pid, 0x40000000)
    found["traced"] += 1
    exe = os.readlink(f"/proc/{pid}/exe")
    if is_outside(exe):
        found["breaches"].append("traced " + exe)
    libc.ptrace(DETACH, pid, 0, 0)

def let_go(pid):
    # What dies while it is traced stays until its tracer has taken note.
    try:
        return os.waitpid(pid, os.WNOHANG | 0x40000000)[0] == pid
    except ChildProcessError:
        return False

def attack(pid):
    # From its birth to its end.
    while True:
        try:
            with open(f"/proc/{pid}/comm") as file:
                before = file.read()
            trace(pid)
            look(pid)
            found["seen"] += 1
        except PermissionError:
            found["hidden"] += before.startswith("container-launc")
            if let_go(pid):
                return
        except (FileNotFoundError, ProcessLookupError, ChildProcessError):
            return

print("up", flush=True)
last = os.getpid()
while not select.select([0], [], [], 0)[0]:
    for pid in range(last + 1, last + 8):
        if os.path.exists(f"/proc/{pid}"):
            attack(pid)
            last = pid
            break
print(json.dumps(found), flush=True)
"""


def spied_on(config: Config, execs: int = 300, program: str = SPY) -> dict[str, Any]:
    with Container(config) as box:
        box.run(Process(python(program), stdin=PIPE, stdout=PIPE))
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        for _ in range(execs):
            process = box.exec(["sleep", "0.001"])
            assert process.wait() == 0
            with process:
                pass
        box.stdin.close()
        found: dict[str, Any] = json.loads(box.stdout.readline())
        return found


@pytest.mark.parametrize(
    "config", [Config(), Config(capabilities=Capabilities.all())], ids=["default", "all"]
)
def test_a_first_process_that_traces_every_newcomer_sees_nothing_from_outside(
    config: Config,
) -> None:
    found = spied_on(config)
    assert found["breaches"] == []
    # It was there in time, again and again, and could trace the commands themselves.
    assert found["hidden"] > 30
    assert found["seen"] > 30
    assert found["traced"] > 30


# Tables that /proc shows of a process to everybody, and not only to who may trace it.
READER = """
import json, os, select

def read(pid, name):
    with open(f"/proc/{pid}/{name}") as file:
        return file.read()

def tables(pid):
    mounts = [line.split(" - ")[1] for line in read(pid, "mountinfo").splitlines()]
    return mounts, [line.split(":")[0] for line in read(pid, "net/dev").splitlines()]

own = tables("self")
found = {"launcher": 0, "foreign": []}
print("up", flush=True)
last = os.getpid()
while not select.select([0], [], [], 0)[0]:
    for pid in range(last + 1, last + 8):
        try:
            seen = tables(pid)
            found["launcher"] += read(pid, "comm").startswith("container-launc")
        except OSError:  # not there yet, or not any more
            continue
        if seen != own:
            found["foreign"].append(seen)
        last = pid
        break
print(json.dumps(found), flush=True)
"""


def test_a_newcomer_never_shows_the_mounts_and_the_network_of_the_host() -> None:
    found = spied_on(Config(), program=READER)
    assert found["foreign"] == []
    assert found["launcher"] > 5  # it looked before the commands ran


# Looks for a newcomer's executable and opens it for writing, as CVE-2019-5736 did.
OVERWRITER = """
import os, select
print("up", flush=True)
opened, last = 0, os.getpid()
while not select.select([0], [], [], 0)[0]:
    for pid in range(last + 1, last + 8):
        if not os.path.exists(f"/proc/{pid}"):
            continue
        last = pid
        while os.path.exists(f"/proc/{pid}/exe"):
            try:
                exe = os.readlink(f"/proc/{pid}/exe")
                fd = os.open(f"/proc/{pid}/exe", os.O_WRONLY)
            except OSError:
                if not os.path.exists(f"/proc/{pid}"):
                    break
                continue
            opened += "memfd" in exe
            os.write(fd, b"overwritten")
            os.close(fd)
        break
print(opened, flush=True)
"""


@pytest.mark.needs("root")
def test_a_first_process_cannot_overwrite_the_launcher() -> None:
    path = f"/proc/{launcher_pid()}/exe"
    with open(path, "rb") as file:
        before = file.read()
    with Container(Config(capabilities=Capabilities.all())) as box:
        box.run(Process(python(OVERWRITER), stdin=PIPE, stdout=PIPE))
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        # Its interpreter is what the process is at that moment: the launcher, without a caller.
        write = "echo '#!/proc/self/exe' > /tmp/evil; chmod 755 /tmp/evil"
        assert finish(box.exec(["sh", "-c", write])) == (0, b"")
        for command, status in ((["true"], 0), (["/tmp/evil"], 1)) * 100:
            assert finish(box.exec(command)) == (status, b"")
        box.stdin.close()
        assert box.stdout.readline() == b"0\n"
    with open(path, "rb") as file:
        assert file.read() == before


# Stops every newcomer that it sees before its program runs.
STOPPER = """
import os, select, signal
print("up", flush=True)
last = os.getpid()
while not select.select([0], [], [], 0)[0]:
    for pid in range(last + 1, last + 8):
        try:
            os.kill(pid, signal.SIGSTOP)
        except OSError:  # not there yet, not to be stopped yet
            continue
        last = pid
        break
"""


def is_stopped_before_it_runs(box: Container, user: int) -> bool:
    try:
        # None is made ahead for a user who is the first of its kind.
        process = box.exec(ExecConfig(["true"], timeout=0.3, user=user))
    except ContainerTimeoutError as error:
        assert error.result is not None
        assert (error.result.timed_out, error.result.returncode) == (True, -9)
        return True
    with suppress(ContainerTimeoutError), process:  # stopped later, or not at all
        pass
    return False


def test_a_command_that_is_stopped_before_it_runs_ends_with_its_time() -> None:
    with Container() as box:
        box.run(Process(python(STOPPER), stdin=PIPE, stdout=PIPE))
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        assert any(is_stopped_before_it_runs(box, user) for user in range(50))
        assert len(children_of_launcher()) == 1
        box.stdin.close()
        assert box.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("apparmor_profile", Config(apparmor_profile="some")),
        ("selinux_label", Config(selinux_label="some")),
    ],
)
def test_no_command_goes_without_the_label_of_its_container(field: str, config: Config) -> None:
    with Container() as box:
        box.run(IDLE)
        assert box._child is not None
        host = Host(config, box._process, box._plan, box._child, box._child.serial)
        manner = Manner(None, CaptureLimits(None, "head"), 0.0)
        with pytest.raises(UnsupportedError) as caught:
            run_member(host, ExecConfig(["true"]), manner, frozenset(NAMESPACE_FLAGS))
        assert caught.value.field == field


# A flood ------------------------------------------------------------------------------------------


FLOOD = 200_000_000  # bytes, 190 times what is kept


@pytest.mark.parametrize("keep", ["head", "tail"])
def test_a_flood_of_output_does_not_grow_the_caller(keep: str) -> None:
    told = caller(
        f"""
        def peak():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

        box = Container()
        box.run(Process(["sleep", "1000"]))
        box.exec(["true"]).communicate()
        run(["true"])
        small = dict(max_output="1M", keep={keep!r})
        before = peak()
        process = box.exec(["sh", "-c", "yes | head -c {FLOOD}"], **small)
        process.communicate()
        dropped = [process.result.stdout_dropped]
        grown = [peak() - before]
        del process  # and the megabyte of its result
        before = peak()
        result = run(["sh", "-c", "yes | head -c {FLOOD}"], **small)
        grown.append(peak() - before)
        box.destroy()
        tell([grown, [*dropped, result.stdout_dropped]])
        """,
        timeout=2 * PATIENCE,
    )
    grown, dropped = told[0]
    assert dropped == [FLOOD - (1 << 20)] * 2
    assert max(grown) < 3 * 1024  # KiB: what is kept, its copy, and some room


# An ordinary user ---------------------------------------------------------------------------------


def as_ordinary() -> None:
    import json  # noqa: PLC0415 - runs in a process of its own
    import os  # noqa: PLC0415
    import threading  # noqa: PLC0415

    from container import Container, ExecConfig, Process  # noqa: PLC0415

    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        script = "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/*; ls /proc/self/fd"
        process = box.exec(["sh", "-c", script], text=True)
        out, err = process.communicate()
        kinds = ("cgroup", "ipc", "mnt", "net", "pid", "pid", "time", "time", "user", "uts")
        first = [os.readlink(f"/proc/{box.pid}/ns/{kind}") for kind in kinds]
        statuses = []
        for pid in (box.pid, box.exec(ExecConfig(["sleep", "1000"])).pid):
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                wanted = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp")
                statuses.append([line for line in file if line.startswith(wanted)])
        codes: list[int] = []

        def work() -> None:
            for _ in range(25):
                process = box.exec(["sh", "-c", "exit 3"])
                process.communicate()
                codes.append(process.returncode or 0)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = [out.splitlines(), first, statuses[0] == statuses[1], err, codes]
        print(json.dumps([os.getuid(), told]))


@pytest.mark.needs("rootless")
def test_an_ordinary_user_runs_commands_as_well(as_user: AsUser) -> None:
    done = as_user(as_ordinary)
    assert (done.returncode, done.stderr) == (0, "")
    uid, (out, namespaces, same, err, codes) = json.loads(done.stdout)
    assert out[0] == "0"
    assert out[1].split() == ["0", str(uid), "1"]
    assert out[2:12] == namespaces
    assert out[12:] == ["0", "1", "2", "3"]  # the last is of ls itself
    assert (same, err, codes) == (True, "", [3] * 100)


@pytest.mark.needs("rootless")
def test_the_container_of_an_ordinary_user_sees_nothing_of_its_launcher(as_user: AsUser) -> None:
    done = as_user(
        f"""
import json
from container import Capabilities, Config, Container, PIPE, Process, StateError
import sys
SPY = {SPY!r}
with Container(Config(capabilities=Capabilities.all())) as box:
    command = [sys.executable, "-I", "-S", "-c", SPY]
    box.run(Process(command, stdin=PIPE, stdout=PIPE))
    assert box.stdout.readline() == b"up\\n"
    for _ in range(300):
        process = box.exec(["sleep", "0.001"])
        assert process.wait() == 0
        process.stdout.close()
        process.stderr.close()
    # And while others start, for whom a launcher without root is dumpable for a moment.
    box.stdin.close()
    print(box.stdout.readline().decode())
""",
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["breaches"] == []
    assert min(found["hidden"], found["seen"], found["traced"]) > 30


@pytest.mark.needs("rootless")
def test_an_ordinary_users_commands_race_with_the_end_of_the_container(as_user: AsUser) -> None:
    done = as_user(
        """
import os, signal, threading
from container import Container, Process, StateError
went = []
for turn in range(100):
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        own = os.readlink(f"/proc/{box.pid}/ns/pid")
        killer = threading.Thread(target=box.signal, args=(9,))
        killer.start()
        try:
            process = box.exec(["readlink", "/proc/self/ns/pid"], text=True)
            out, _ = process.communicate()
            assert process.returncode in (0, -9), process.returncode
            assert out in ("", own + "\\n"), out
            went.append("ran")
        except StateError:
            went.append("refused")
        killer.join()
assert len(went) == 100
""",
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
