# SPDX-License-Identifier: Apache-2.0
"""Namespaces that a container shares with others, and clocks of its own."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import signal
import time
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from system.conftest import OrdinaryUser
from system.helpers import namespaces_of, parse_status, python

import container
from container import (
    DEVNULL,
    PIPE,
    Config,
    ConfigError,
    Container,
    ExecConfig,
    IDMapping,
    Join,
    LaunchError,
    Namespaces,
    Process,
    Resources,
    StateError,
    UnsupportedError,
    _launcher,
    _plan,
)

pytestmark = pytest.mark.needs("userns")
as_root = pytest.mark.needs("root", "idmap")

KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
SHAREABLE = ("user", "net", "ipc", "uts", "cgroup", "time")
IDLE = Process(["sleep", "1000"])


@contextlib.contextmanager
def idle(config: Config | None = None, process: Process = IDLE) -> Iterator[Container]:
    with Container(config) as box:
        box.run(process)
        yield box


@pytest.fixture
def box() -> Iterator[Container]:
    """With every namespace that can be shared of its own."""
    with idle(Config(namespaces=Namespaces(time=True))) as box:
        yield box


def sharing(box: Container, *names: str) -> Config:
    return Config(namespaces=Namespaces(**{name: Join(container=box) for name in names}))


def spaces(box: Container) -> dict[str, str]:
    return namespaces_of(box.pid or 0)


def check_shared(box: Container, other: Container, names: set[str]) -> None:
    ours, theirs = spaces(box), spaces(other)
    assert {name for name in SHAREABLE if ours[name] == theirs[name]} == names
    assert ours["mnt"] != theirs["mnt"]
    assert ours["pid"] != theirs["pid"]


# What is shared -----------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("name", SHAREABLE)
def test_a_namespace_of_a_container_can_be_shared_and_nothing_else_is(
    box: Container, name: str
) -> None:
    own = namespaces_of("self")
    with idle(sharing(box, name)) as other:
        ours, theirs = spaces(box), spaces(other)
        same = {each for each in KINDS if ours[each] == theirs[each]}
        assert same == {name}
        # The rest is new, but for the time, which is not by default.
        callers = {each for each in KINDS if theirs[each] == own[each]}
        assert callers == {"time"} - {name}


def test_all_that_can_be_shared_at_once_is(box: Container) -> None:
    with idle(sharing(box, *SHAREABLE)) as other:
        check_shared(box, other, set(SHAREABLE))


@as_root
def test_a_path_and_an_fd_stand_for_a_namespace(box: Container) -> None:
    path = Path(f"/proc/{box.pid}/ns/net")
    fd = os.open(f"/proc/{box.pid}/ns/ipc", os.O_RDONLY)
    try:
        kinds = Namespaces(net=str(path), ipc=Join(fd=fd), uts=Join(path=f"/proc/{box.pid}/ns/uts"))
        assert kinds.net == Join(path=path)
        with idle(Config(namespaces=kinds)) as other:
            check_shared(box, other, {"net", "ipc", "uts"})
        with idle(Config(namespaces=Namespaces(user=f"/proc/{box.pid}/ns/user"))) as other:
            check_shared(box, other, {"user"})
    finally:
        os.close(fd)


@as_root
def test_a_namespace_that_nobody_lives_in_can_be_joined_by_its_fd() -> None:
    with idle() as box:
        fd = os.open(f"/proc/{box.pid}/ns/net", os.O_RDONLY)
        user = os.open(f"/proc/{box.pid}/ns/user", os.O_RDONLY)
        link = os.readlink(f"/proc/{box.pid}/ns/net")
    try:
        with idle(Config(namespaces=Namespaces(net=Join(fd=fd)))) as other:
            assert spaces(other)["net"] == link
        with pytest.raises(UnsupportedError, match="no process") as caught:
            container.run(["true"], config=Config(namespaces=Namespaces(user=Join(fd=user))))
        assert caught.value.field == "namespaces.user.fd"
    finally:
        os.close(fd)
        os.close(user)


SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 7000))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"from the other")
    connection.close()
"""
CLIENT = """
import socket
with socket.create_connection(("127.0.0.1", 7000)) as connection:
    print(connection.recv(100).decode())
"""


@pytest.mark.parametrize("user", [pytest.param(False, marks=as_root), True])
def test_containers_that_share_a_network_reach_each_other_by_loopback(user: bool) -> None:
    with Container() as box:
        box.run(Process(python(SERVER), stdout=PIPE))
        assert box.stdout is not None
        assert box.stdout.readline() == b"ready\n"
        config = sharing(box, "net", *(["user"] if user else []))
        result = container.run(python(CLIENT), config=config, text=True)
        assert (result.stdout, result.returncode) == ("from the other\n", 0), result
        alone = container.run(python(CLIENT), text=True)
        assert alone.returncode == 1
        assert "refused" in str(alone.stderr)


def test_containers_that_share_ipc_have_the_same_queues(box: Container) -> None:
    make = "import ctypes; assert ctypes.CDLL(None).msgget(4711, 0o1666) >= 0"
    config = sharing(box, "ipc", "user")
    container.run(python(make), config=config, check=True)
    look = "grep -c '^ *4711 ' /proc/sysvipc/msg"
    assert container.run(["sh", "-c", look], config=config, text=True).stdout == "1\n"
    assert box.exec(["sh", "-c", look], text=True).communicate()[0] == "1\n"
    assert container.run(["sh", "-c", look], text=True).stdout == "0\n"


def test_the_host_name_is_the_others(box: Container) -> None:
    with idle(Config(hostname="elsewhere")) as named:
        config = sharing(named, "uts", "user")
        assert container.run(["uname", "-n"], config=config, text=True).stdout == "elsewhere\n"
    for options in ({"hostname": "mine"}, {"domainname": "mine"}):
        with pytest.raises(ConfigError, match=r"namespaces\.uts"):
            Config(namespaces=Namespaces(uts=Join(container=box)), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"namespaces\.net"):
        Config(namespaces=Namespaces(net=Join(container=box)), sysctl={"net.ipv4.ip_forward": "1"})


# Rights -------------------------------------------------------------------------------------------


@as_root
def test_who_shares_a_network_has_no_rights_over_it(box: Container) -> None:
    capabilities = container.Capabilities(["NET_ADMIN"], ["NET_ADMIN"], ["NET_ADMIN"])
    down = """
    import fcntl, socket, struct
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 0))  # SIOCSIFFLAGS
        except PermissionError:
            print("refused")
        else:
            print("done")
    """
    told = {}
    for names in (("net",), ("net", "user")):
        config = Config(namespaces=sharing(box, *names).namespaces, capabilities=capabilities)
        told[names] = container.run(python(down), config=config, text=True, check=True).stdout
    # With the user namespace that it belongs to, it is as the other's own.
    assert told == {("net",): "refused\n", ("net", "user"): "done\n"}


@as_root
def test_with_cap_sys_admin_and_shared_ids_the_mounts_are_locked_or_it_is_an_error(
    box: Container, tmp_path: Path
) -> None:
    def with_all(other: Container) -> Config:
        return Config(
            namespaces=sharing(other, "user", "ipc").namespaces,
            capabilities=container.Capabilities.all(),
            mounts=[container.Mount.bind(tmp_path, "/data", read_only=True)],
        )

    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=with_all(box))
    assert (caught.value.step, caught.value.errno) == ("lock-mounts", errno.ENOSPC)
    assert "nested=True" in str(caught.value.hint)
    script = """
    exec 2>/dev/null
    mount -o remount,bind,rw /data && echo remounted
    umount /proc/keys && echo uncovered
    touch /data/made && echo made
    grep CapEff /proc/self/status
    """
    with idle(Config(nested=True)) as outer:
        result = container.run(["sh", "-c", script], config=with_all(outer), text=True)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert str(result.stdout).split() == ["CapEff:", f"{(2 << last) - 1:016x}"]
    assert list(tmp_path.iterdir()) == []


@as_root
def test_the_network_of_the_host_does_not_show_in_the_sys_of_who_shares_another(
    box: Container,
) -> None:
    show = ["sh", "-c", "ls /sys; ls /sys/class/net 2>/dev/null; true"]
    assert container.run(show, config=sharing(box, "net"), text=True, check=True).stdout == ""
    both = container.run(show, config=sharing(box, "net", "user"), text=True, check=True).stdout
    assert str(both).splitlines()[-1] == "lo"


@pytest.mark.parametrize("names", [pytest.param(("net", "ipc"), marks=as_root), SHAREABLE])
def test_a_container_that_shares_is_as_confined_as_any(
    box: Container, names: tuple[str, ...]
) -> None:
    fields = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
    fields = [*fields[0 if "user" in names else 3 :], "NoNewPrivs", "Seccomp"]
    with idle(sharing(box, *names)) as other:
        one, two = (
            parse_status(Path(f"/proc/{each.pid}/status").read_text()) for each in (box, other)
        )
        assert [two[name] for name in fields] == [one[name] for name in fields]
        assert two["NSpid"].split()[1:] == ["1"]
        # Neither sees the other.
        seen = other.exec(["sh", "-c", "cat /proc/[0-9]*/comm"], text=True).communicate()[0]
        assert str(seen).split().count("sleep") == 1


@as_root
@pytest.mark.parametrize("names", [("net", "ipc", "uts"), ("user",), SHAREABLE])
def test_a_command_joins_what_its_container_shares(box: Container, names: tuple[str, ...]) -> None:
    with idle(sharing(box, *names)) as other:
        command = other.exec(
            ExecConfig(["sh", "-c", "echo >/dev/stdout; sleep 1000"], user="5:6"), text=True
        )
        assert command.stdout is not None
        assert command.stdout.readline() == "\n"
        assert namespaces_of(command.pid or 0) == spaces(other)
        uid_map = Path(f"/proc/{other.pid}/uid_map").read_text().split()
        status = parse_status(Path(f"/proc/{command.pid}/status").read_text())
        assert status["Uid"].split()[0] == str(int(uid_map[1]) + 5)
        command.kill()
        command.wait()


@as_root
def test_files_of_root_are_roots_for_who_shares_its_ids(box: Container, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = Config(
        namespaces=sharing(box, "user").namespaces,
        mounts=[container.Mount.bind(tmp_path, "/data")],
    )
    script = "stat -c %u:%g /data/file; touch /data/made; echo x >/dev/stdout; id -u"
    for user, uid in ((None, 0), ("0:7", 0)):
        result = container.run(
            ["sh", "-c", script], config=config, user=user, text=True, check=True
        )
        assert result.stdout.split() == ["0:0", "x", str(uid)]
    assert (tmp_path / "made").stat().st_uid == 0
    assert container.run(["id", "-u"], config=config, user=1000, text=True).stdout == "1000\n"
    with pytest.raises(ConfigError, match="not mapped"):
        container.run(["true"], config=config, user=70_000)


@as_root
def test_a_range_of_ids_stays_leased_while_anybody_has_it() -> None:
    with contextlib.ExitStack() as stack:
        with idle() as box:
            ids = Path(f"/proc/{box.pid}/uid_map").read_text()
            heir = stack.enter_context(idle(sharing(box, "user")))
            assert Path(f"/proc/{heir.pid}/uid_map").read_text() == ids
        _launcher.drop_blanks()
        others = [stack.enter_context(idle()) for _ in range(5)]
        maps = {Path(f"/proc/{other.pid}/uid_map").read_text() for other in others}
        assert len(maps) == 5
        assert ids not in maps
    # And is given back by the last of them.
    _launcher.drop_blanks()
    with contextlib.ExitStack() as stack:
        boxes = [stack.enter_context(idle()) for _ in range(8)]
        assert ids in {Path(f"/proc/{each.pid}/uid_map").read_text() for each in boxes}


@pytest.mark.needs("rootless")
def test_an_ordinary_user_shares_with_the_user_namespace_and_learns_so(
    as_user: OrdinaryUser,
) -> None:
    done = as_user(
        """
        import os
        from container import *
        def spaces(box):
            kinds = ("user", "net", "ipc", "uts", "cgroup", "time")
            return {kind: os.readlink(f"/proc/{box.pid}/ns/{kind}") for kind in kinds}
        idle = Process(["sleep", "1000"])
        with Container(Config(namespaces=Namespaces(time=True))) as box:
            box.run(idle)
            join = Join(container=box)
            try:
                run(["true"], config=Config(namespaces=Namespaces(net=join)))
            except LaunchError as error:
                print(error.step, error.hint)
            both = Config(namespaces=Namespaces(user=join, net=join, ipc=join, uts=join, time=join))
            with Container(both) as other:
                other.run(idle)
                print(*[kind for kind, link in spaces(other).items() if link == spaces(box)[kind]])
                print(other.exec(["id", "-u"], text=True).communicate())
            with Container() as third:
                third.run(idle)
                mixed = Namespaces(user=join, net=Join(container=third))
                try:
                    run(["true"], config=Config(namespaces=mixed))
                except LaunchError as error:
                    print(error.step, error.hint)
            try:
                Container(Config(namespaces=Namespaces(user=False))).run(idle)
            except ContainerError as error:
                print(type(error).__name__, error)
        """
    )
    assert done.stderr == ""
    first, shared, command, mixed, hosts = done.stdout.splitlines()
    assert first.startswith("join only root may")
    assert shared == "user net ipc uts time"
    assert command == "('0\\n', '')"
    assert mixed == "join it belongs to another user namespace than the one that is joined"
    assert hosts.startswith("LaunchPermissionError clone: ")
    assert "namespaces.user=False is for root" in hosts


# What goes wrong ----------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("name", SHAREABLE)
def test_a_namespace_of_another_kind_is_refused_by_name(box: Container, name: str) -> None:
    wrong = "uts" if name == "net" else "net"
    with pytest.raises(ConfigError, match=f"of kind {wrong}, not {name}") as caught:
        path = f"/proc/{box.pid}/ns/{wrong}"
        container.run(["true"], config=Config(namespaces=Namespaces(**{name: path})))
    assert caught.value.field == f"namespaces.{name}.path"


def test_what_is_no_namespace_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for path in (tmp_path / "fifo", tmp_path / "file", "/dev/null", tmp_path):
        with pytest.raises(ConfigError, match="no namespace"):
            container.run(["true"], config=Config(namespaces=Namespaces(net=path)))
    for each in (Join(path=tmp_path / "absent"), Join(fd=1_000_000)):
        with pytest.raises(LaunchError) as caught:
            container.run(["true"], config=Config(namespaces=Namespaces(net=each)))
        assert caught.value.step == "join"


def test_nonsense_is_refused(box: Container) -> None:
    for wrong in (
        Join,
        lambda: Join(path="/x", fd=3),
        lambda: Join(fd=-1),
        lambda: Join(container="box"),  # type: ignore[arg-type]
        lambda: Join(container=Container),  # type: ignore[arg-type]
        lambda: Namespaces(net=1),  # type: ignore[arg-type]
        lambda: Namespaces(net=None),  # type: ignore[arg-type]
        lambda: Namespaces(net=""),
        lambda: Config(namespaces=Namespaces(mnt="/proc/1/ns/mnt")),
        lambda: Config(
            namespaces=Namespaces(user=Join(container=box)),
            uid_mappings=[IDMapping(0, 1, 1)],
            gid_mappings=[IDMapping(0, 1, 1)],
        ),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_the_callers_own_user_namespace_is_named_false() -> None:
    with pytest.raises(ConfigError, match="caller's own"):
        container.run(["true"], config=Config(namespaces=Namespaces(user="/proc/self/ns/user")))


def test_a_container_that_does_not_run_cannot_be_joined() -> None:
    with Container() as box:
        config = sharing(box, "user", "net")
        with pytest.raises(StateError):
            container.run(["true"], config=config)
        box.run(Process(["true"]))
        box.wait()
        with pytest.raises(StateError):
            container.run(["true"], config=config)


def test_a_container_that_ends_while_it_is_joined_is_an_error_or_lives_on_in_the_other() -> None:
    # Whenever it is killed: there is a whole container in its namespaces, or none and an error.
    answers = set()
    for _ in range(40):
        with Container() as box:
            box.run(IDLE)
            link = spaces(box)["net"]
            config = sharing(box, "user", "net")
            box.signal(signal.SIGKILL)
            try:
                show = ["readlink", "/proc/self/ns/net"]
                result = container.run(show, config=config, text=True)
            except StateError:
                answers.add("ended")
            else:
                assert (result.returncode, result.stdout) == (0, f"{link}\n")
                answers.add("joined")
    assert answers


def test_a_shared_namespace_outlives_the_container_that_brought_it() -> None:
    with idle() as box, Container(sharing(box, "user", "net")) as heir:
        link = spaces(box)["net"]
        heir.run(IDLE)
        box.destroy()
        assert spaces(heir)["net"] == link
        assert heir.exec(["true"]).wait() == 0


def test_a_config_keeps_no_container_that_it_shares_with() -> None:
    with idle() as box:
        container.run(["true"], config=sharing(box, "user", "ipc"), check=True)
        known = weakref.ref(box)
    del box
    gc.collect()
    assert known() is None


def test_a_join_can_be_pickled_by_path_only(box: Container) -> None:
    path = Join(path="/run/netns/x")
    assert (
        pickle.loads(pickle.dumps(Config(namespaces=Namespaces(net=path)))).namespaces.net == path
    )
    for each in (Join(container=box), Join(fd=3)):
        with pytest.raises(ConfigError):
            pickle.dumps(Config(namespaces=Namespaces(net=each)))


# Clocks -------------------------------------------------------------------------------------------

CLOCKS = "import time; print(time.clock_gettime(1), time.clock_gettime(7))"  # monotonic, boottime


def clocks_inside(offsets: dict[str, Any], **options: Any) -> tuple[float, float]:
    config = Config(namespaces=Namespaces(time=True), time_offsets=offsets)
    with Container(config) as box:
        box.run(Process(python(CLOCKS), stdout=PIPE, **options))
        assert box.stdout is not None
        monotonic, boottime = map(float, box.stdout.read().split())
        assert box.wait() == 0
    return monotonic - time.clock_gettime(1), boottime - time.clock_gettime(7)


@pytest.mark.needs("kernel>=6.3")
@pytest.mark.parametrize("init", [False, True])
def test_clocks_are_shifted_by_what_was_asked_for(init: bool) -> None:
    offsets = {"monotonic": 86_400, "boottime": timedelta(days=10, seconds=0.5)}
    monotonic, boottime = clocks_inside(offsets, init=init)
    # Less what passes between the looks: both are an hour apart from anything else.
    assert abs(monotonic - 86_400) < 3600
    assert abs(boottime - 864_000) < 3600
    assert clocks_inside({"monotonic": 5e8}, init=init)[0] > 4e8


@pytest.mark.needs("kernel>=6.3")
def test_a_command_has_the_shifted_clocks_too() -> None:
    config = Config(namespaces=Namespaces(time=True), time_offsets={"boottime": 1e6})
    with idle(config) as box:
        out, _ = box.exec(python(CLOCKS), text=True).communicate()
        assert float(str(out).split()[1]) - time.clock_gettime(7) > 9e5
        assert Path(f"/proc/{box.pid}/timens_offsets").read_text().split()[-2:] == ["1000000", "0"]


def test_clocks_that_cannot_be_are_errors() -> None:
    for offsets in (
        {"realtime": 1},
        {"monotonic": "1"},
        {"monotonic": float("nan")},
        {"monotonic": 2**63},
        {"monotonic": True},
        [("monotonic", 1)],
    ):
        with pytest.raises(ConfigError) as caught:
            Config(namespaces=Namespaces(time=True), time_offsets=offsets)  # type: ignore[arg-type]
        assert caught.value.field.startswith("time_offsets")
    with pytest.raises(ConfigError, match=r"namespaces\.time"):
        Config(time_offsets={"monotonic": 1})


@pytest.mark.needs("kernel>=6.3")
def test_a_clock_that_would_begin_before_zero_is_an_error() -> None:
    with pytest.raises(LaunchError) as failed:
        clocks_inside({"monotonic": -1e9})
    assert failed.value.step == "time"


def test_clocks_are_refused_where_a_program_would_not_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_plan, "_kernel", lambda: (6, 2))
    for init in (False, True):
        with pytest.raises(UnsupportedError) as caught:
            clocks_inside({"monotonic": 1}, init=init)
        assert caught.value.field == "config.time_offsets"


@pytest.mark.needs("rootless", "kernel>=6.3")
def test_an_ordinary_user_shifts_clocks_too(as_user: OrdinaryUser) -> None:
    done = as_user(
        f"""
        import time
        from container import *
        config = Config(namespaces=Namespaces(time=True), time_offsets={{"boottime": 1e6}})
        program = {CLOCKS!r}
        import sys
        out = run([sys.executable, "-I", "-S", "-c", program], config=config, text=True).stdout
        print(float(out.split()[1]) - time.clock_gettime(7) > 9e5)
        """
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.needs("root", "idmap", "kernel>=6.3")
def test_who_joins_a_time_namespace_has_its_clocks() -> None:
    config = Config(namespaces=Namespaces(time=True), time_offsets={"boottime": 1e6})
    with idle(config) as box:
        result = container.run(python(CLOCKS), config=sharing(box, "time"), text=True, check=True)
        assert float(str(result.stdout).split()[1]) - time.clock_gettime(7) > 9e5


# Nothing is left ----------------------------------------------------------------------------------


def test_a_hundred_that_share_leave_nothing_in_the_launcher(box: Container) -> None:
    if os.geteuid() != 0:
        pytest.skip("its fds are root's to see")
    launcher = _launcher.launcher_pid()

    def fds() -> int:
        _launcher.drop_blanks()
        return len(os.listdir(f"/proc/{launcher}/fd"))

    config = sharing(box, *SHAREABLE)
    container.run(["true"], config=config, check=True)
    before = fds()
    show = ["readlink", "/proc/self/ns/net"]
    for _ in range(100):
        assert container.run(show, config=config, text=True).stdout == f"{spaces(box)['net']}\n"
    with pytest.raises(FileNotFoundError):
        container.run(["/absent"], config=config)
    assert fds() == before


@pytest.mark.parametrize("step", ["join", "time"])
def test_the_step_that_fails_is_named(
    box: Container, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    config = sharing(box, "user", "net")
    with monkeypatch.context() as patch:
        launcher = _launcher
        number = {name: number for number, name in launcher.STEPS.items()}[step]
        patch.setattr(launcher, "fail_step", number)
        with pytest.raises(LaunchError) as caught:
            container.run(["true"], config=config)
        assert caught.value.step == step
    container.run(["true"], config=config, check=True)


@pytest.mark.needs("root", "cgroup2", "idmap")
def test_who_shares_has_limits_of_its_own_and_commands_are_under_them(box: Container) -> None:
    config = Config(namespaces=sharing(box, "user", "net").namespaces, resources=Resources())
    with idle(config) as other:
        place = Path(f"/proc/{other.pid}/cgroup").read_text().splitlines()[-1]
        assert place != Path(f"/proc/{box.pid}/cgroup").read_text().splitlines()[-1]
        command = other.exec(ExecConfig(["sleep", "1000"], stdout=DEVNULL, stderr=DEVNULL))
        assert Path(f"/proc/{command.pid}/cgroup").read_text().splitlines()[-1] == place
        assert namespaces_of(command.pid or 0) == spaces(other)
        command.kill()
        command.wait()
