# SPDX-License-Identifier: Apache-2.0
"""Containers that outlive who started them."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from system.conftest import Identity, open_directory
from system.helpers import (
    ORDINARY_ID,
    PATIENCE,
    caller,
    wait_until,
    watched,
)

import container
from container import (
    Config,
    ConfigError,
    Container,
    ContainerNotFoundError,
    LaunchError,
    Process,
    SignalConfig,
    State,
    StateError,
    StateManager,
    _detached,
    _launcher,
)
from container._launcher import Child
from container._plan import Plan

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

SLEEP = Process(["sleep", "1000"])
AT_ONCE = SignalConfig(stop_signal=signal.SIGKILL)


@pytest.fixture(autouse=True, scope="module")
def runtime() -> Iterator[None]:
    """A directory for states that is the user's own, where the session has none."""
    if os.geteuid() == 0 or os.environ.get("XDG_RUNTIME_DIR"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", os.environ.get("TMPDIR", "/tmp"))
        yield


@pytest.fixture
def name() -> Iterator[str]:
    """An id that nobody else has; whatever has it in the end is destroyed."""
    id = f"test-{secrets.token_hex(6)}"
    yield id
    with contextlib.suppress(ContainerNotFoundError):
        Container.open(id).destroy()
    gc.collect()  # what a traceback still holds is connected


def detach(id: str, process: Process = SLEEP, config: Config | None = None, **life: Any) -> None:
    with Container(config, id=id) as box:
        box.run(process, detach=True, **life)


def script(text: str, **options: Any) -> Process:
    return Process(["sh", "-c", text], **options)


def directory_of(id: str) -> Path:
    return Path(StateManager().state_dir, id)


def supervisor_of(id: str) -> int:
    """The parent of the first process."""
    pid = StateManager().load_state(id).pid
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


# From one process to another ----------------------------------------------------------------------


def test_another_process_finds_it_after_the_caller_has_ended(who: Identity, name: str) -> None:
    environment = {"XDG_RUNTIME_DIR": str(who.home)} if who.user else {}
    begin = f"""
        box = Container(id={name!r})
        process = Process(["sh", "-c", "echo $A; exec sleep 1000"], env={{"A": "secret"}})
        box.run(process, detach=True)
        tell(box.pid)
    """
    use = f"""
        box = Container.open({name!r})
        tell([box.pid, box.state.state])
        tell(box.exec(["sh", "-c", "echo $A; cat /proc/1/comm"], text=True).communicate()[0])
        box.stop(SignalConfig(stop_signal=9))
        tell(box.wait())
    """
    finish = f"""
        box = Container.open({name!r})
        tell([box.state.state, box.state.exit_code, box.wait(), box.logs().decode()])
        tell([state.id for state in container.list_containers() if state.id == {name!r}])
        box.destroy()
        tell([state.id for state in container.list_containers() if state.id == {name!r}])
    """
    prelude = "from container import *\n"
    options: dict[str, Any] = {"env": environment} if who.user else {}
    (pid,) = who(prelude + textwrap.dedent(begin), **options)
    assert who(prelude + textwrap.dedent(use), **options) == [
        [pid, "running"],
        "secret\nsleep\n",
        -9,
    ]
    assert who(prelude + textwrap.dedent(finish), **options) == [
        ["stopped", -9, -9, "secret\n"],
        [name],
        [],
    ]


def test_no_value_of_its_environment_is_in_a_file(name: str) -> None:
    detach(name, Process(["sleep", "1000"], env={"TOKEN": "do-not-keep"}))
    files = list(directory_of(name).iterdir())
    assert {path.name for path in files} >= {"state.json", "lock", "ending", "socket"}
    for path in files:
        assert path.stat().st_mode & 0o077 == 0
        assert path.is_socket() or b"do-not-keep" not in path.read_bytes()
    assert directory_of(name).stat().st_mode & 0o777 == 0o700


def test_everybody_who_waits_hears_of_its_end(name: str) -> None:
    detach(name, script("while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 7"))
    boxes = [Container.open(name) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        statuses = [pool.submit(box.wait, PATIENCE) for box in boxes]
        boxes[0].exec(["touch", "/tmp/go"])
        assert {status.result() for status in statuses} == {7}
    assert Container.open(name).wait() == 7


def test_the_status_and_the_output_of_a_short_program_are_kept(name: str) -> None:
    detach(name, script("echo out; echo err >&2; exit 5"))
    box = Container.open(name)
    assert box.wait(PATIENCE) == 5
    assert (box.logs(), box.logs(stderr=False), box.logs(stdout=False)) == (
        b"out\nerr\n",
        b"out\n",
        b"err\n",
    )
    entries = list(box.log_entries())
    assert [entry.stream for entry in entries] == ["stdout", "stderr"]
    assert entries[0].time <= entries[1].time


def test_its_caller_can_go_on_with_it(name: str) -> None:
    box = Container(id=name)
    box.run(SLEEP, detach=True)
    assert box.exec(["true"]).wait() == 0
    box.signal(signal.SIGKILL)
    assert box.wait(PATIENCE) == -9
    box.destroy()
    with pytest.raises(ContainerNotFoundError):
        Container.open(name)


def test_only_one_container_has_an_id(name: str) -> None:
    def start(_: int) -> str:
        try:
            detach(name)
        except StateError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(start, range(4)))
    assert results.count("") == 1
    assert sum("already" in result for result in results) == 3


def test_the_id_of_one_that_has_ended_is_taken_until_it_is_removed(name: str) -> None:
    detach(name, Process(["true"]))
    Container.open(name).wait(PATIENCE)
    with pytest.raises(StateError, match="already"):
        detach(name)
    Container.open(name).destroy()
    detach(name)


def test_a_start_that_fails_leaves_nothing(name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        detach(name, Process(["/nope"]), restart="always")
    assert isinstance(caught.value, LaunchError)
    assert not directory_of(name).exists()
    with pytest.raises(LaunchError):
        detach(name, config=Config(root="/nope"))
    assert not directory_of(name).exists()


def test_a_start_that_fails_leaves_alone_who_has_the_id_by_then(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_child = _detached.start_child

    def lose_to_another(child: Child, plan: Plan) -> None:
        monkeypatch.setattr(_detached, "start_child", start_child)
        Container.open(name).destroy()
        detach(name)
        start_child(child, plan)

    monkeypatch.setattr(_detached, "start_child", lose_to_another)
    with pytest.raises(StateError):
        detach(name)
    assert Container.open(name).state.state == State.RUNNING


def test_a_stop_between_the_gate_and_the_program_is_not_forgotten(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_child = _detached.start_child

    def stop_on_the_way(child: Child, plan: Plan) -> None:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)  # it stays where it is
        child.start()
        _detached.find_detached(name).child.close()  # the launcher has read that
        guest = _detached.find_detached(name).child
        guest.stop(signal.SIGKILL)
        start_child(child, plan)
        guest.close()

    monkeypatch.setattr(_detached, "start_child", stop_on_the_way)
    with pytest.raises(StateError):
        detach(name)
    assert not directory_of(name).exists()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"restart": "sometimes"}, "restart"),
        ({"restart": "on-failure:-1"}, "restart"),
        ({"lifetime": -1}, "lifetime"),
        ({"log_size": 100}, "log_size"),
        ({"auto_remove": 1}, "auto_remove"),
    ],
)
def test_a_life_that_cannot_be_is_refused(options: dict[str, Any], field: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        detach(name, **options)
    assert caught.value.field == field
    with pytest.raises(ConfigError) as caught:
        Container(id=name).run(SLEEP, **options)
    assert caught.value.field == "detach"


def test_streams_of_the_caller_are_not_those_of_a_detached_one(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        detach(name, Process(["cat"], stdin=container.PIPE))
    assert caught.value.field == "process.stdin"
    detach(name, script("readlink /proc/self/fd/0; readlink /proc/self/fd/1"))
    box = Container.open(name)
    box.wait(PATIENCE)
    null, pipe = box.logs().decode().splitlines()
    assert null == "/dev/null"
    assert pipe.startswith("pipe:")


def test_a_file_that_is_given_gets_the_output(name: str, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        detach(name, script("echo here", stdout=file))
    box = Container.open(name)
    box.wait(PATIENCE)
    assert (tmp_path / "out").read_bytes() == b"here\n"
    assert box.logs() == b""


def test_what_its_terminal_shows_is_its_log(name: str) -> None:
    detach(name, script("tty; stty size", tty=True, tty_size=(12, 34)))
    box = Container.open(name)
    assert box.wait(PATIENCE) == 0
    assert box.logs() == b"/dev/pts/0\r\n12 34\r\n"


# Life ---------------------------------------------------------------------------------------------


def test_without_a_log_a_terminal_floods_nothing(name: str) -> None:
    flood = Process(["sh", "-c", "head -c 1000000 /dev/zero && exit 3"], tty=True)
    detach(name, flood, log_size=0)
    box = Container.open(name)
    assert box.wait(PATIENCE) == 3
    assert (directory_of(name) / "log").stat().st_size == 0


def test_with_auto_remove_nothing_is_left_of_its_end(name: str) -> None:
    detach(name, auto_remove=True)
    box = Container.open(name)
    box.signal(signal.SIGKILL)
    assert box.wait(PATIENCE) == -9
    assert wait_until(lambda: not directory_of(name).exists())


def test_a_program_that_fails_is_started_again_so_many_times(name: str) -> None:
    detach(name, script("echo run; exit 3"), restart="on-failure:2")
    box = Container.open(name)
    assert b"".join(entry.data for entry in box.log_entries(follow=True)) == b"run\n" * 3
    assert box.wait(PATIENCE) == 3
    assert StateManager().load(name).detached["restarts"] == 2


def test_a_program_that_succeeds_is_started_again_only_always(name: str) -> None:
    detach(name, Process(["true"]), restart="on-failure")
    assert Container.open(name).wait(PATIENCE) == 0
    assert StateManager().load(name).detached["restarts"] == 0
    Container.open(name).destroy()
    detach(name, script("echo run"), restart="always")
    entries = Container.open(name).log_entries(follow=True)
    assert [next(entries).data for _ in range(2)] == [b"run\n"] * 2
    del entries


def test_one_that_is_stopped_is_not_started_again(name: str) -> None:
    detach(name, restart="always")
    box = Container.open(name)
    first = box.pid
    box.signal(signal.SIGKILL)
    assert wait_until(lambda: box.pid not in (None, first))  # reports of it
    assert box.exec(["true"]).wait() == 0  # in the new one
    box.stop(AT_ONCE)
    assert box.wait(PATIENCE) == -9
    assert wait_until(lambda: not StateManager().load(name).is_owned)


def test_a_stop_ends_the_wait_for_another_start(name: str) -> None:
    detach(name, Process(["false"]), restart="always")
    wait_until(lambda: int(StateManager().load(name).detached["restarts"]) >= 2)
    box = Container.open(name)
    box.stop(AT_ONCE)
    box.wait(PATIENCE)
    assert wait_until(lambda: not StateManager().load(name).is_owned)


def test_a_stop_while_it_is_started_again_is_the_end(name: str) -> None:
    detach(name, restart="always")
    supervisor = supervisor_of(name)
    guest = _detached.find_detached(name).child
    guest.signal(signal.SIGKILL)
    starter = None

    def starts() -> bool:
        nonlocal starter
        starter = starter_of(supervisor)
        return starter is not None

    assert wait_until(starts)
    assert starter is not None
    os.kill(starter, signal.SIGSTOP)
    try:
        guest.stop(signal.SIGKILL)
        # An answer to this one means that the launcher has read the other.
        _detached.find_detached(name).child.close()
    finally:
        os.kill(starter, signal.SIGCONT)
    assert wait_until(lambda: not StateManager().load(name).is_owned)
    guest.close()


def starter_of(supervisor: int) -> int | None:
    """The Python that a launcher has started to start its container again."""
    for task in Path(f"/proc/{supervisor}/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"container._after" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    return None


def test_a_start_that_can_not_be_repeated_is_the_end(name: str, fresh_root: Path) -> None:
    config = Config(root=str(fresh_root))
    detach(
        name, script("while [ ! -e /gone ]; do sleep 0.02; done; exit 4"), config, restart="always"
    )
    (fresh_root / "bin/sh").unlink()
    (fresh_root / "gone").touch()
    assert Container.open(name).wait(PATIENCE) == 4


def test_it_is_killed_when_its_lifetime_is_over(name: str) -> None:
    detach(name, lifetime=0.2, restart="always")
    assert Container.open(name).wait(PATIENCE) == -9


# Logs ---------------------------------------------------------------------------------------------


def test_a_flood_is_kept_to_the_size_of_the_log(name: str) -> None:
    size = 1 << 17
    detach(name, script("yes 0123456789 | head -c 3000000"), log_size=size)
    box = Container.open(name)
    assert box.wait(PATIENCE) == 0
    assert sum(path.stat().st_size for path in directory_of(name).glob("log*")) <= size
    log = box.logs()
    assert size // 3 < len(log) <= size
    whole = b"0123456789\n" * (3000000 // 11 + 1)
    assert whole[:3000000].endswith(log)
    first = next(iter(box.log_entries()))
    assert first.dropped + len(log) == 3000000


def test_who_follows_sees_all_of_it_and_the_end(name: str) -> None:
    detach(name, script("for i in 1 2 3 4 5; do echo $i; sleep 0.02; done"))
    found = b"".join(e.data for e in Container.open(name).log_entries(follow=True))
    assert found == b"1\n2\n3\n4\n5\n"


def test_a_full_disk_costs_the_log_and_nothing_else(name: str, tmp_path: Path) -> None:
    root_only()
    with mounted(tmp_path, "size=400k") as state_dir, states_in(state_dir):
        detach(name, script("yes | head -c 2000000; exec sleep 1000"), log_size="16M")
        box = Container.open(name)
        full = state_dir / name / "log"
        assert wait_until(lambda: full.stat().st_size > 300000)
        other = f"{name}-2"
        with pytest.raises((StateError, OSError)):
            detach(other)
        assert not (state_dir / other).exists()
        assert box.exec(["true"]).wait() == 0
        box.stop(AT_ONCE)
        assert Container.open(name).wait() == -9  # there was room for that
        assert len(box.logs()) > 200000
        box.destroy()


def test_a_read_only_state_directory_is_told_and_costs_nothing_that_runs(
    name: str, tmp_path: Path
) -> None:
    root_only()
    with mounted(tmp_path) as state_dir, states_in(state_dir):
        detach(name, script("echo one; exec sleep 1000"))
        box = Container.open(name)
        assert wait_until(lambda: box.logs() == b"one\n")
        with read_only(state_dir) as same, states_in(same):
            with pytest.raises(StateError, match="Read-only file system"):
                detach(f"{name}-2")
            assert Container.open(name).exec(["true"]).wait() == 0
            box.stop(AT_ONCE)
            assert Container.open(name).wait() == -9
            with pytest.raises(StateError, match="Read-only file system"):
                Container.open(name).destroy()
        gc.collect()
        box.destroy()


def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a file system")


@contextlib.contextmanager
def mounted(path: Path, options: str = "size=1m") -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[Path]:
    """The same by a mount that cannot be written."""
    with open_directory() as directory:
        subprocess.run(["mount", "--bind", path, directory], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)


@contextlib.contextmanager
def states_in(path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("container._state.default_directory", lambda: str(path))
        yield


# Who may ------------------------------------------------------------------------------------------


def hello_of(client: socket.socket) -> tuple[int, ...]:
    try:
        data = client.recv(4096)
    except ConnectionResetError:  # what it said was not read; told once, before what is there
        data = client.recv(4096)
    return struct.unpack("@IiiII", data) if data else ()


def connect(id: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(directory_of(id), os.O_PATH)
    client.connect(f"/proc/self/fd/{directory}/socket")
    os.close(directory)
    return client


def test_who_speaks_before_it_was_looked_at_is_refused(name: str) -> None:
    detach(name)
    with connect(name) as client:
        assert hello_of(client)[1] == 0
    os.kill(supervisor_of(name), signal.SIGSTOP)
    try:
        client = connect(name)
        client.send(struct.pack("@Ii", 2, 9))
    finally:
        os.kill(supervisor_of(name), signal.SIGCONT)
    with client:
        assert hello_of(client)[1] == errno.EPERM
        assert client.recv(4096) == b""
    assert Container.open(name).state.state == State.RUNNING


def test_a_message_that_another_process_sends_on_the_socket_of_a_client_does_nothing(
    name: str,
) -> None:
    detach(name)
    with connect(name) as client:
        assert hello_of(client)[1] == 0
        kill = struct.pack("@Ii", 4, 9)
        source = (
            "import socket, sys\n"
            "socket.socket(fileno=int(sys.argv[1])).send(bytes.fromhex(sys.argv[2]))"
        )
        argv = [sys.executable, "-c", source, str(client.fileno()), kill.hex()]
        subprocess.run(argv, pass_fds=[client.fileno()], check=True, stderr=subprocess.DEVNULL)
        assert client.recv(4096) == b""
    assert Container.open(name).state.state == State.RUNNING


LESSER = {
    "capability": "capset(get_caps('self')['CapPrm'] & ~(1 << 25))",
    "user": "os.setresuid(USER, USER, USER)",
    "effective user": "os.seteuid(USER)",
    "group": "os.setresgid(USER, USER, USER)",
    "no_new_privs": "check(libc.prctl(38, 1, 0, 0, 0))",
    "user namespace": "join_user_namespace()",
}


@pytest.mark.needs("root")
@pytest.mark.parametrize("lesser", LESSER.values(), ids=LESSER)
def test_no_rights_are_had_by_a_container_of_one_that_has_more(lesser: str, name: str) -> None:
    detach(name)
    # As if the directory were open to everybody.
    source = f"""
        import socket, struct
        USER = {ORDINARY_ID}

        def get_caps(pid):
            with open(f"/proc/{{pid}}/status") as file:
                pairs = (line.partition(":")[::2] for line in file)
                return {{name: int(value, 16) for name, value in pairs if name == "CapPrm"}}

        def capset(mask):
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            data = (ctypes.c_uint32 * 6)()
            for half in (0, 1):
                data[3 * half] = data[3 * half + 1] = mask >> (32 * half) & 0xffffffff
            check(libc.capset(header, data))

        def join_user_namespace():
            check(libc.unshare(0x10000000))

        directory = os.open({str(directory_of(name))!r}, os.O_PATH)
        os.fchdir(directory)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        {lesser}
        client.connect("socket")
        tell(struct.unpack("@IiiII", client.recv(4096))[1])
        client.close()
    """
    parent, own = directory_of(name).parent, directory_of(name)
    modes = {path: path.stat().st_mode for path in (parent, own)}
    try:
        for path in modes:
            path.chmod(0o755)
        (own / "socket").chmod(0o666)
        assert caller(source.replace(f"\n        {lesser}\n", "\n")) == [0]
        assert caller(source) == [errno.EPERM]
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_one_without_rights_is_told_so(name: str) -> None:
    detach(name)
    told_of = caller(f"""
        check(libc.prctl(38, 1, 0, 0, 0))
        try:
            container.Container.open({name!r})
        except container.StateError as error:
            tell(str(error))
    """)
    assert "rights" in told_of[0]


@pytest.mark.parametrize("file", ["state.json", "ending", "lock", "log", "socket"])
@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "garbage"])
def test_hostile_files_in_its_directory_hold_nobody_up(file: str, kind: str, name: str) -> None:
    detach(name, Process(["true"]))
    Container.open(name).wait(PATIENCE)
    assert wait_until(lambda: not StateManager().load(name).is_owned)
    path = directory_of(name) / file
    path.unlink()
    make_hostile(path, kind)
    try:
        with contextlib.suppress(StateError):
            box = Container.open(name)
            box.logs()
            box.wait(PATIENCE)
        container.prune()
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        container.prune()
        if directory_of(name).exists():
            StateManager().delete_state(name)


def make_hostile(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"\xff" * 100)
        path.chmod(0o600)


@pytest.mark.parametrize("id", ["..", ".hidden", "a/b", "", "a\n", "a" * 129, "\0"])
def test_ids_that_lead_elsewhere_are_refused(id: str) -> None:
    with pytest.raises(ConfigError):
        Container.open(id)


def test_a_directory_whose_path_is_too_long_for_a_socket_will_do(name: str, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with states_in(deep / "states"):
        detach(name)
        box = Container.open(name)
        assert box.exec(["true"]).wait() == 0
        box.destroy()


# Others who die -----------------------------------------------------------------------------------


def test_a_launcher_that_is_killed_takes_its_container_along(name: str) -> None:
    detach(name, auto_remove=True, restart="always")
    box = Container.open(name)
    pid = box.pid
    assert pid is not None
    with watched([pid]) as survivors:
        os.kill(supervisor_of(name), signal.SIGKILL)
        assert survivors(PATIENCE) == []
    with pytest.raises(StateError, match="launcher died"):
        box.wait(PATIENCE)
    assert StateManager().load_state(name).state == State.STOPPED
    with pytest.raises(StateError, match="launcher died"):
        Container.open(name).wait()
    assert name in container.prune().containers
    assert not directory_of(name).exists()


def test_prune_removes_what_has_ended_and_nothing_that_runs(name: str) -> None:
    ended = f"{name}-2"
    detach(name, script("echo kept; exec sleep 1000"))
    detach(ended, Process(["true"]))
    Container.open(ended).wait(PATIENCE)
    assert wait_until(lambda: not StateManager().load(ended).is_owned)
    removed = container.prune().containers
    assert ended in removed
    assert name not in removed
    assert not directory_of(ended).exists()
    assert Container.open(name).exec(["true"]).wait() == 0


def test_a_state_of_another_boot_is_collected(name: str) -> None:
    detach(name)
    path = directory_of(name) / "state.json"
    content = json.loads(path.read_text())
    copy = directory_of(f"{name}-2")
    copy.mkdir(mode=0o700)
    content |= {"boot_id": "another", "id": copy.name, "pid": os.getpid()}
    (copy / "state.json").write_text(json.dumps(content))
    (copy / "state.json").chmod(0o600)
    assert StateManager().load_state(copy.name).state == State.STOPPED
    removed = container.prune().containers
    assert copy.name in removed
    assert name not in removed


def test_prune_leaves_states_alone_that_programs_have_saved(tmp_path: Path) -> None:
    with states_in(tmp_path / "states"):
        manager = StateManager()
        box = Container()
        manager.save_state(box.state)
        foreign = Path(manager.state_dir, "box")
        foreign.mkdir(mode=0o700)
        (foreign / "state.json").write_text("damaged")
        (foreign / "state.json").chmod(0o600)
        (Path(manager.state_dir) / "file").touch()
        assert container.prune().containers == ()
        assert set(manager.names()) == {box.id, "box", "file"}


# Other versions -----------------------------------------------------------------------------------


def test_one_of_another_version_can_be_used_but_for_exec(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detach(name, script("echo log; trap 'exit 9' TERM; while :; do sleep 0.05; done"))
    monkeypatch.setattr(_launcher, "protocol", lambda: 1)
    monkeypatch.setattr(_detached, "protocol", lambda: 1)
    box = Container.open(name)
    assert wait_until(lambda: box.logs() == b"log\n")
    with pytest.raises(StateError, match="version"):
        box.exec(["true"])
    assert box.stop() == 9
    assert box.wait() == 9
    box.destroy()


def test_a_state_of_another_format_is_told_of(name: str) -> None:
    detach(name)
    path = directory_of(name) / "state.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"format": 99}))
    try:
        with pytest.raises(StateError, match="another version"):
            Container.open(name)
        assert name not in container.prune().containers
    finally:
        path.write_text(text)


# Weight -------------------------------------------------------------------------------------------


def test_a_launcher_of_one_container_is_small(name: str) -> None:
    detach(name, script("yes | head -c 1000000; exec sleep 1000"))
    box = Container.open(name)
    assert wait_until(lambda: len(box.logs()) == 1000000)
    for _ in range(3):
        assert box.exec(["true"]).wait() == 0
    rollup = Path(f"/proc/{supervisor_of(name)}/smaps_rollup").read_text()
    (pss,) = (int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss <= 200  # KiB


# The command line ---------------------------------------------------------------------------------


def cli(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "container", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


def said(*arguments: str) -> str:
    done = cli(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_from_the_command_line(name: str) -> None:
    text = "echo out; echo err >&2; exec sleep 1000"
    assert said("run", "-d", "--name", name, "-e", "A=1", "--", "sh", "-c", text) == f"{name}\n"
    assert said("exec", name, "--", "sh", "-c", "echo $A") == "1\n"
    (row,) = (line for line in said("ps").splitlines() if line.startswith(name))
    assert "running" in row
    (content,) = (each for each in json.loads(said("ps", "--json")) if each["id"] == name)
    assert content["command"] == ["sh", "-c", text]
    done = cli("logs", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")
    assert cli("rm", name).returncode == 125
    assert said("kill", name) == f"{name}\n"
    assert cli("wait", name).returncode == 128 + 9
    assert name not in said("ps")
    (row,) = (line for line in said("ps", "--all").splitlines() if line.startswith(name))
    assert "stopped (-9)" in row
    assert json.loads(said("inspect", name))[0]["exit_code"] == -9
    assert said("rm", name) == f"{name}\n"
    assert cli("inspect", name).returncode == 125


def test_escape_sequences_of_a_command_do_not_reach_the_terminal(name: str) -> None:
    detach(name, Process(["sh", "-c", "exec sleep 1000", "\x1b]0;title\x07"]))
    assert "\x1b" not in said("ps")
