# SPDX-License-Identifier: Apache-2.0
"""Containers that share a PID namespace: whose end is not the end of what they leave.

A control group ends that instead, of each container its own: attacked by what wants to get away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from system.conftest import OrdinaryUser
from system.helpers import (
    PATIENCE,
    caller,
    caller_argv,
    namespaces_of,
    parse_status,
    python,
    running_caller,
    told,
    wait_until,
    watched,
)
from system.test_limits import run_in

import container
from container import (
    PIPE,
    Capabilities,
    CgroupError,
    CgroupV2NotMountedError,
    Config,
    ConfigError,
    Container,
    ContainerTimeoutError,
    ExecConfig,
    Join,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    Resources,
    StateError,
    UnsupportedError,
    _hierarchy,
    _launcher,
)

pytestmark = pytest.mark.needs("root", "userns", "idmap", "cgroup2")

IDLE = Process(["sleep", "1000"])
KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")


@contextlib.contextmanager
def idle(config: Config | None = None, process: Process = IDLE) -> Iterator[Container]:
    with Container(config) as box:
        box.run(process)
        yield box


@pytest.fixture
def box() -> Iterator[Container]:
    """Whose processes are nobody else's business; it reaps what becomes an orphan in it."""
    with idle(process=replace(IDLE, init=True)) as box:
        yield box


def of_host(_: Container | None = None) -> Config:
    return Config(namespaces=Namespaces(pid=False))


def with_own_ids(box: Container) -> Config:
    return Config(namespaces=Namespaces(pid=Join(container=box)))


def with_its_ids(box: Container) -> Config:
    return Config(namespaces=Namespaces(pid=Join(container=box), user=Join(container=box)))


def with_ids_of_host(box: Container) -> Config:
    return Config(namespaces=Namespaces(pid=Join(container=box), user=False))


Way = Callable[[Container], Config]
WAYS: list[Way] = [of_host, with_own_ids, with_its_ids, with_ids_of_host]
every_way = pytest.mark.parametrize("way", WAYS)


def group_of(box: Container) -> Path:
    path = box._child.cgroup if box._child is not None else None
    assert path is not None
    return Path(path)


def members_of(box: Container) -> list[int]:
    return [int(pid) for pid in (group_of(box) / "cgroup.procs").read_text().split()]


def inside(box: Container, script: str, **options: Any) -> str:
    process = box.exec(ExecConfig(["sh", "-c", script], **options), text=True)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert isinstance(out, str)
    return out


# What is shared -----------------------------------------------------------------------------------


@every_way
def test_the_pid_namespace_is_shared_and_the_command_in_there_is_one_of_many(
    box: Container, way: Way
) -> None:
    config = way(box)
    with idle(config) as other:
        theirs = namespaces_of(other.pid or 0)
        whose = namespaces_of("self") if way is of_host else namespaces_of(box.pid or 0)
        assert theirs["pid"] == whose["pid"]
        assert (theirs["user"] == whose["user"]) == (way is with_its_ids)
        assert {theirs[name] != whose[name] for name in (*KINDS[3:7], "mnt")} == {True}
        command = other.exec(["sleep", "1000"])
        assert namespaces_of(command.pid or 0) == theirs
        assert members_of(other) == [other.pid, command.pid]
        status = parse_status(Path(f"/proc/{other.pid}/status").read_text())
        number = status["NSpid"].split()[-1]
        assert number != "1"
        # Its /proc is that of the namespace: its own number in there, and the other's processes.
        assert inside(other, f"cat /proc/{number}/comm") == "sleep\n"
        assert "container-init\n" in inside(other, "cat /proc/[0-9]*/comm 2>/dev/null; true")
        for name, value in (("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapInh", "0" * 16)):
            assert status[name] == value
        command.kill()
        command.wait()


@every_way
def test_its_proc_is_covered_and_read_only_as_any(box: Container, way: Way) -> None:
    with idle(way(box)) as other, idle() as plain:
        look = "grep ' /proc' /proc/self/mountinfo | cut -d' ' -f5,6 | sort"
        assert inside(other, look) == inside(plain, look)
        assert inside(other, "cat /proc/keys /proc/timer_list") == ""
        refused = other.exec(["sh", "-c", "echo 1 >/proc/sys/kernel/panic_on_oops"], text=True)
        assert "Read-only file system" in str(refused.communicate()[1])
        # None of its own below it, but where there is no user namespace to limit.
        if way in (of_host, with_own_ids):
            assert inside(other, "cat /proc/sys/user/max_user_namespaces") == "0\n"


@every_way
def test_root_says_what_its_proc_shows(box: Container, way: Way) -> None:
    config = replace(
        way(box),
        proc_options="hidepid=invisible,subset=pid",
        mounts=[Mount(None, "/all", "proc")],
    )
    with idle(config) as other:
        seen = inside(other, "cat /proc/[0-9]*/comm; ls /proc/sys 2>&1 || true", user="1000:1000")
        assert "container-init" not in seen
        assert "No such file" in seen
        assert "container-init\n" in inside(other, "cat /all/[0-9]*/comm 2>/dev/null; true")


def test_who_has_other_ids_can_look_and_not_touch(box: Container) -> None:
    with idle(with_own_ids(box)) as other:
        script = """
        exec 2>/dev/null
        for name in environ fd/0 mem root/etc/passwd cwd/etc/passwd exe; do
            cat /proc/1/$name && echo 1/$name; cat /proc/2/$name && echo 2/$name
        done
        kill -0 1 && echo 1; kill -9 2 && echo 2; true
        """
        assert inside(other, script) == ""
    assert inside(box, "cat /proc/2/comm") == "sleep\n"


def test_the_first_process_adopts_its_orphans_and_an_init_reaps_them(box: Container) -> None:
    orphans = "for i in 1 2 3 4 5; do (sleep 0.01 &); done; (sleep 1000 &); sleep 0.1"
    with idle(with_own_ids(box), Process(["sh", "-c", f"{orphans}; exec sleep 1000"])) as other:

        def parents() -> list[str]:
            stats = [Path(f"/proc/{pid}/stat").read_text() for pid in members_of(other)[1:]]
            return [stat.rpartition(")")[2].split()[1] for stat in stats]

        assert wait_until(lambda: parents() == [str(other.pid)])
    with idle(
        with_own_ids(box), Process(["sh", "-c", f"{orphans}; sleep 1000"], init=True)
    ) as tiny:

        def children() -> list[str]:
            path = Path(f"/proc/{tiny.pid}/task/{tiny.pid}/children")
            names = [Path(f"/proc/{pid}/comm").read_text() for pid in path.read_text().split()]
            return sorted(name.strip() for name in names)

        assert wait_until(lambda: children() == ["sh", "sleep"])


def test_an_init_tells_what_became_of_the_command_and_passes_signals_on(box: Container) -> None:
    for config in (of_host(), with_own_ids(box)):
        with idle(config, Process(["sh", "-c", "kill -9 $$"], init=True)) as other:
            assert other.wait() == -signal.SIGKILL
        trap = "trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.01; done"
        with Container(config) as other:
            other.run(Process(["sh", "-c", trap], init=True, stdout=PIPE))
            assert other.stdout is not None
            assert other.stdout.readline() == b"up\n"
            other.signal(signal.SIGUSR1)
            assert other.stdout.read() == b"got\n"
            assert other.wait() == 5


# Ends ---------------------------------------------------------------------------------------------

DAEMON = """
import os, signal, time
if os.fork():
    os.wait()
else:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
"""
DEAF = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, signal.SIG_IGN)
"""
SESSIONS = """
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        os.setpgid(0, 0) if os.getsid(0) != os.getpid() else None
        break
"""
# A sibling of the first process: a child of the launcher's. And nobody adopts for it any more.
SIBLING = """
import ctypes
libc = ctypes.CDLL(None)
libc.prctl(36, 0)
if libc.syscall(56, 0x8000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    if os.fork() == 0:
        os.setsid()
"""
STOPPED = """
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
"""
# As fast as it can, up to some: as one dies another is born.
STORM = """
for _ in range(6):
    if os.fork() == 0:
        break
while True:
    for _ in range(5):
        if os.fork() == 0:
            if os.fork() == 0:
                time.sleep(0.002)
            os._exit(0)
    for _ in range(5):
        os.wait()
"""
LAST = """
if os.getpid() == first:
    print("up", flush=True)
while True:
    time.sleep(1000)
"""
ESCAPES = {
    "daemon": DAEMON + DEAF,
    "sessions": DEAF + SESSIONS,
    "sibling": SIBLING,
    "stopped": STOPPED,
    "storm": 'print("up", flush=True)\n' + DEAF + STORM,
}


def escape(name: str, end: str = LAST) -> list[str]:
    return python(f"import os, signal, time\nfirst = os.getpid()\n{ESCAPES[name]}{end}")


def begin(other: Container, name: str) -> None:
    other.run(Process(escape(name), stdout=PIPE))
    assert other.stdout is not None
    assert other.stdout.readline() == b"up\n"
    least = {"daemon": 2, "sessions": 21, "sibling": 3, "stopped": 2, "storm": 7}[name]
    assert wait_until(lambda: len(members_of(other)) >= least)


def kill(other: Container) -> None:
    other.signal(signal.SIGKILL)
    other.wait()


ENDS: dict[str, Callable[[Container], object]] = {
    "destroy": Container.destroy,
    "stop": lambda other: other.stop(container.SignalConfig(stop_timeout=0.05)),
    "kill": kill,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_of_a_container_outlives_it_and_nobody_else_is_ended(
    box: Container, name: str, end: str
) -> None:
    for way in WAYS if end == "destroy" else WAYS[:2]:
        if way is with_ids_of_host and name == "sibling":
            continue  # one like any other, and once is enough
        with Container(way(box)) as other, idle(way(box)) as third:
            begin(other, name)
            group = group_of(other)
            bystanders = [box.pid or 0, third.pid or 0]
            # In a storm they come and go; that nobody is left says the end of the group.
            members = [other.pid or 0] if name == "storm" else members_of(other)
            with watched(members) as left, watched(bystanders) as standing:
                ENDS[end](other)
                assert left(0) == []
                assert not group.exists()
                assert standing(0) == bystanders
        assert inside(box, "cat /proc/2/comm") == "sleep\n"


def left_of_run(config: Config, arguments: list[str], **options: Any) -> list[str]:
    """Who lives with the name that a script gave it, once it has been run."""
    with contextlib.suppress(ContainerTimeoutError):
        container.run(arguments, config=config, **options)
    names = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            names += [stat] if "(escaped) " in stat and ") Z " not in stat else []
    return names


NAMED = """
if os.getpid() != first:
    with open("/proc/self/comm", "w") as file:
        file.write("escaped")
    time.sleep(1000)
"""


@pytest.mark.parametrize("way", [of_host, with_its_ids])
@pytest.mark.parametrize("timeout", [None, 0.2])
def test_a_run_is_over_when_nothing_of_it_lives(
    box: Container, way: Way, timeout: float | None
) -> None:
    end = NAMED + ("time.sleep(0.05)" if timeout is None else "time.sleep(1000)")
    for name in ("daemon", "sessions", "sibling"):
        assert left_of_run(way(box), escape(name, end), timeout=timeout) == []


def test_the_end_of_the_first_process_of_the_namespace_is_everybodys() -> None:
    with idle() as box, Container(with_own_ids(box)) as other, idle(of_host()) as third:
        begin(other, "daemon")
        with watched(members_of(other)) as left:
            box.destroy()
            assert left(PATIENCE) == []
        assert other.wait() == -signal.SIGKILL
        assert not group_of(other).exists()
        assert third.state.state == container.State.RUNNING


def test_a_command_and_what_it_leaves_end_with_the_container_or_in_time(box: Container) -> None:
    for config in (of_host(), with_own_ids(box)):
        with idle(config) as other:
            command = other.exec(["sh", "-c", "(setsid sleep 1000 &); sleep 0.05"])
            assert command.wait() == 0
            assert len(members_of(other)) == 2
            timed = ExecConfig(["sh", "-c", "(setsid sleep 1000 &); sleep 1000"], timeout=0.1)
            with pytest.raises(ContainerTimeoutError):
                other.exec(timed).communicate()
            assert len(members_of(other)) == 2
            running = other.exec(["sleep", "1000"])
            with watched(members_of(other)) as left:
                other.destroy()
                assert left(0) == []
            assert running.poll() == -9


def test_a_paused_container_ends_as_well(box: Container) -> None:
    with Container(with_own_ids(box)) as other:
        begin(other, "sessions")
        other.pause()
        with watched(members_of(other)) as left:
            other.destroy()
            assert left(0) == []


@pytest.mark.parametrize("victim", ["caller", "launcher", "launcher and guard"])
def test_nothing_outlives_who_would_have_ended_it(victim: str) -> None:
    source = f"""
    boxes = []
    for _ in range(2):
        box = Container(Config(namespaces=Namespaces(pid=False)))
        box.run(Process({escape("daemon")!r}, stdout=PIPE))
        box.stdout.readline()
        boxes.append(box)
    groups = [box._child.cgroup for box in boxes]
    members = []
    for group in groups:
        while len(lines := open(group + "/cgroup.procs").read().split()) < 2:
            pass
        members += map(int, lines)
    launcher = launcher_pid()
    children = open(f"/proc/{{launcher}}/task/{{launcher}}/children").read().split()
    tell([members, groups, launcher, [int(pid) for pid in children if is_guard(pid)]])
    sys.stdin.readline()
    for box in boxes:
        try:
            box.wait()
        except StateError as error:
            tell(str(error))
    """
    with running_caller(source) as process:
        members, groups, launcher, guards = told(process)
        with watched([*members, launcher, *guards]) as left:
            if "guard" in victim:
                os.kill(guards[0], signal.SIGSTOP)  # or there would be another at once
            os.kill(process.pid if victim == "caller" else launcher, signal.SIGKILL)
            if "guard" in victim:
                os.kill(guards[0], signal.SIGKILL)
            if victim != "caller":
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                for _ in groups:
                    assert "launcher died" in told(process)
            assert left(PATIENCE) == []
        for group in groups:
            if "guard" in victim:  # a launcher to come removes it
                assert (Path(group) / "cgroup.procs").read_text() == ""
            else:
                assert wait_until(lambda path=group: not os.path.exists(path))  # type: ignore[misc]
    caller("container.run(['true'], config=Config(resources=Resources()), check=True)")
    assert not any(os.path.exists(group) for group in groups)


def test_no_zombie_of_a_container_is_left(box: Container) -> None:
    # In the caller's namespace not even to a caller to whom orphans come.
    (left,) = caller(
        f"""
        check(libc.prctl(36, 1, 0, 0, 0))
        with Container(Config(namespaces=Namespaces(pid=False))) as box:
            box.run(Process({escape("sessions")!r}, stdout=PIPE))
            box.stdout.readline()
            while len(open(box._child.cgroup + "/cgroup.procs").read().split()) < 21:
                pass
        children = open("/proc/self/task/%d/children" % os.getpid()).read().split()
        tell([pid for pid in children if int(pid) != launcher_pid()])
        """,
        strict=False,
    )
    assert left == []
    # In another's it is for its PID 1 to reap them.
    with Container(with_own_ids(box)) as other:
        begin(other, "sessions")
        members = members_of(other)
        other.destroy()
        assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in members))


def test_ids_are_leased_again_where_a_control_group_has_ended_whoever_had_them() -> None:
    with idle(of_host()) as other:
        assert other.exec(["sh", "-c", "(setsid sleep 1000 &)"]).wait() == 0
        ids = Path(f"/proc/{other.pid}/uid_map").read_text()
    _launcher.drop_blanks()
    with contextlib.ExitStack() as stack:
        boxes = [stack.enter_context(idle()) for _ in range(8)]
        assert ids in {Path(f"/proc/{each.pid}/uid_map").read_text() for each in boxes}


# Set-up among others ------------------------------------------------------------------------------

SPY = """
import os, select

def use(path, how):
    try:
        how(path)
        return True
    except OSError:
        return False

def read(path):
    with open(path, "rb", buffering=0) as file:
        file.read(1)

def is_newcomer(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            if not file.read().startswith("container-launc"):
                return False
    except OSError:
        return False
    try:  # in the middle of execve it is the program already, but for its name
        return "memfd:" in os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return True

WAYS = {"mem": read, "environ": read, "maps": read, "auxv": read}
WAYS |= dict.fromkeys(("root", "cwd", "exe", "ns/mnt"), os.readlink)
known, found, count = set(os.listdir("/proc")), set(), 0
print("up", flush=True)
while not select.select([0], [], [], 0)[0]:
    for pid in set(filter(str.isdigit, os.listdir("/proc"))) - known:
        known.add(pid)
        count += is_newcomer(pid)
        for name, how in WAYS.items():
            if use(f"/proc/{pid}/{name}", how) and is_newcomer(pid):
                found.add(name)
print(count, *sorted(found), flush=True)
"""


def test_nobody_is_made_ahead_where_others_see_it() -> None:
    launcher = _launcher.launcher_pid()
    children = Path(f"/proc/{launcher}/task/{launcher}/children")

    def waiting() -> set[bool]:
        """For each child made ahead, whether it is in a PID namespace of its own."""
        found = set()
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() != "container-guard\n":
                    found.add(namespaces_of(pid)["pid"] != namespaces_of("self")["pid"])
        return found

    container.run(["true"], config=of_host(), check=True)
    # One after the other is made, as they were asked for: then this one, which may be.
    container.run(["true"], config=Config(hostname="other"), check=True)
    assert wait_until(lambda: waiting() != set())
    assert waiting() == {True}


def test_who_shares_all_with_a_newcomer_gets_no_hold_of_it_while_it_is_made() -> None:
    # The same ids, every right to trace, and in the same PID namespace.
    spy = Config(capabilities=Capabilities(*[["SYS_PTRACE", "KILL"]] * 3))
    with idle(spy, Process(python(SPY), stdin=PIPE, stdout=PIPE)) as box:
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        config = with_its_ids(box)
        for _ in range(60):
            container.run(["true"], config=config, check=True)
        box.stdin.close()
        count, *found = box.stdout.readline().decode().split()
    assert found == []
    assert int(count) > 5


# What is refused ----------------------------------------------------------------------------------


def refused(config: Config, kind: type[Exception], text: str) -> str | None:
    with pytest.raises(kind, match=text) as caught:
        container.run(["true"], config=config)
    field: str | None = getattr(caught.value, "field", None)
    return field


@pytest.mark.new_launcher
def test_without_a_control_group_it_is_refused(
    box: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(*_: object) -> None:
        raise CgroupV2NotMountedError("no cgroup v2 file system is mounted")

    _launcher._drop(_launcher._get())  # another one has no place yet
    monkeypatch.setattr("container._hierarchy.find_hierarchy", find)
    monkeypatch.setattr("container._cgroup.find_place", find)
    for config in (of_host(), with_own_ids(box)):
        assert refused(config, UnsupportedError, "control group.*is mounted") == "namespaces.pid"
    with pytest.raises(CgroupError):
        container.run(["true"], config=Config(resources=Resources()))
    container.run(["true"], check=True)


def test_what_could_get_out_of_its_control_group_is_refused(
    box: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container._plan.is_delegation_boundary", lambda _: False)
    sys_admin = Capabilities(*[["SYS_ADMIN"]] * 3)
    for config in (replace(of_host(), nested=True), replace(of_host(), capabilities=sys_admin)):
        hosts = replace(config, namespaces=replace(config.namespaces, user=False))
        assert refused(hosts, UnsupportedError, "out of") == "namespaces.pid"
    # With ids of its own it owns no file of that.
    with idle(replace(with_own_ids(box), capabilities=sys_admin)) as other:
        assert other.exec(["true"]).wait() == 0


def test_who_could_be_traced_while_its_mounts_are_locked_is_refused(box: Container) -> None:
    config = replace(with_its_ids(box), capabilities=Capabilities(*[["SYS_ADMIN"]] * 3))
    assert refused(config, UnsupportedError, "hold of it") == "namespaces.pid"


def test_a_pid_namespace_of_the_callers_own_user_namespace_takes_that(box: Container) -> None:
    own = Config(namespaces=Namespaces(pid="/proc/self/ns/pid"))
    assert refused(own, ConfigError, "caller's own: False") == "namespaces.pid.path"
    with idle(Config(namespaces=Namespaces(user=False))) as plain:
        config = with_own_ids(plain)
        assert refused(config, UnsupportedError, "user=False") == "namespaces.pid.container"
        with idle(with_ids_of_host(plain)) as other:
            assert inside(other, "cat /proc/1/comm") == "sleep\n"
    wrong = Config(namespaces=Namespaces(pid=f"/proc/{box.pid}/ns/net"))
    assert refused(wrong, ConfigError, "of kind net, not pid") == "namespaces.pid.path"


def test_nobody_is_born_where_the_first_process_has_ended() -> None:
    with idle() as box:
        fd = os.open(f"/proc/{box.pid}/ns/pid", os.O_RDONLY)
    try:
        with pytest.raises(LaunchError, match="PID 1 of the PID namespace has ended") as caught:
            container.run(["true"], config=Config(namespaces=Namespaces(pid=Join(fd=fd))))
        assert caught.value.step == "clone"
    finally:
        os.close(fd)
    with Container() as box, pytest.raises(StateError):
        container.run(["true"], config=with_own_ids(box))


def test_a_namespace_that_is_not_below_the_callers_cannot_be_joined() -> None:
    source = """
    pid = Join(fd=int(sys.argv[1]))
    try:
        container.run(["true"], config=Config(namespaces=Namespaces(pid=pid, user=False)))
    except LaunchError as error:
        tell([error.step, error.errno == errno.EINVAL, error.hint])
    """
    fd = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        done = subprocess.run(
            [*unshare, *caller_argv(source), str(fd)],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(fd)
    assert done.stdout.startswith('["join", true, "a PID namespace can be joined'), done


# Without root -------------------------------------------------------------------------------------

USER = """
import os
from container import *

def link(pid, name):
    return os.readlink(f"/proc/{pid}/ns/{name}")

def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return ") Z" not in file.read()
    except OSError:
        return False

def members(group):
    with open(group + "/cgroup.procs") as file:
        return file.read().split()

def look(whose, namespaces):
    other = Container(Config(namespaces=namespaces))
    other.run(Process(["sh", "-c", "(setsid sleep 1000 &); sleep 1000"]))
    group = other._child.cgroup
    while len(members(group)) < 3:
        pass
    same = [name for name in ("pid", "user") if link(whose, name) == link(other.pid, name)]
    show = ["sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null; true"]
    names = other.exec(show, text=True).communicate()[0]
    left = members(group)
    other.destroy()
    alive = [pid for pid in left if lives(pid)]
    print(*same, names.count("sleep"), "python" in names, alive, os.path.exists(group))

with Container() as box:
    box.run(Process(["sleep", "1000"], init=True))
    join = Join(container=box)
    hosts = Namespaces(pid=False)
    look(box.pid, Namespaces(pid=join, user=join))
    look("self", hosts)
    for options in ({"namespaces": Namespaces(pid=join)}, {"proc_options": "subset=pid"}):
        try:
            run(["true"], config=Config(**{"namespaces": hosts, **options}))
        except ContainerError as error:
            print(type(error).__name__, error)
"""


@pytest.mark.needs("rootless")
def test_a_user_with_a_delegated_cgroup_shares_as_well(as_user: OrdinaryUser) -> None:
    delegated = Path(_hierarchy.find_hierarchy().top, "delegated-pids")
    main = delegated / "main"
    main.mkdir(parents=True)
    try:
        for name in (".", "cgroup.procs", "cgroup.subtree_control", "main", "main/cgroup.procs"):
            os.chown(delegated / name, as_user.uid, as_user.gid)
        done = run_in(main, as_user, USER)
        assert done.stderr == ""
        joined, hosts, foreign, options = done.stdout.splitlines()
        assert joined == "pid user 3 False [] False"
        assert hosts.startswith("pid ")
        assert hosts.endswith(" True [] False")
        assert foreign.startswith("LaunchPermissionError join")
        assert options.startswith("UnsupportedError proc_options: ")
    finally:
        assert wait_until(lambda: not (delegated / "container").exists())
        main.rmdir()
        delegated.rmdir()


@pytest.mark.needs("rootless")
def test_a_user_without_one_is_told(as_user: OrdinaryUser) -> None:
    if _hierarchy.find_hierarchy().own != _hierarchy.find_hierarchy().top:
        pytest.skip("the user may have inherited a cgroup")
    done = as_user(
        """
        from container import *
        try:
            run(["true"], config=Config(namespaces=Namespaces(pid=False)))
        except UnsupportedError as error:
            print(error.field, error)
        """
    )
    assert done.stderr == ""
    assert done.stdout.startswith("namespaces.pid namespaces.pid: sharing it takes a control group")
