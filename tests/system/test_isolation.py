# SPDX-License-Identifier: Apache-2.0
"""What a program finds in its container: namespaces, mounts, privileges, handles."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.helpers import (
    attempt,
    caller,
    inside,
    lines,
    mounts_inside,
    namespaces_of,
    parse_status,
    python,
    shell,
    status_inside,
    with_namespaces,
)

import container
from container import (
    PIPE,
    Capabilities,
    Config,
    Container,
    HostRoot,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    Rlimit,
    StateError,
)

pytestmark = [pytest.mark.needs("userns"), pytest.mark.kernel]

DOCKER_CAPABILITIES = "00000000a80425fb"
NO_CAPABILITIES = "0" * 16
EVERYTHING = Config(capabilities=Capabilities.all())


def last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


# Namespaces ---------------------------------------------------------------------------------------

KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")


def namespaces_inside(config: Config | None = None) -> dict[str, str]:
    links = lines(f"for n in {' '.join(KINDS)}; do readlink /proc/self/ns/$n; done", config=config)
    return dict(zip(KINDS, links, strict=True))


def shared_with(config: Config | None = None) -> set[str]:
    here = namespaces_of("self")
    return {kind for kind, link in namespaces_inside(config).items() if link == here[kind]}


def test_every_namespace_but_time_is_new() -> None:
    assert shared_with() == {"time"}


@pytest.mark.parametrize("kind", ["net", "ipc", "uts", "cgroup"])
def test_a_namespace_that_is_switched_off_is_the_callers(kind: str) -> None:
    assert shared_with(with_namespaces(**{kind: False})) == {kind, "time"}


def test_a_time_namespace_is_new_where_asked_for() -> None:
    assert shared_with(with_namespaces(time=True)) == set()


@pytest.mark.needs("root")
def test_without_a_user_namespace_the_others_are_new() -> None:
    assert shared_with(with_namespaces(user=False)) == {"user", "time"}


def test_the_hostname_is_that_of_the_config_and_the_hosts_stays() -> None:
    before = os.uname().nodename
    assert shell("hostname") == "container\n"
    assert shell("hostname; cat /etc/hosts", config=Config(hostname="web-1")).split() == [
        *("web-1", "127.0.0.1", "localhost", "::1", "localhost", "127.0.1.1", "web-1")
    ]
    assert os.uname().nodename == before


def test_the_network_is_a_loopback_that_is_up_and_nothing_else() -> None:
    answer = inside(
        """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        server.accept()[0].send(b"x")
        answer = [client.recv(9).decode(), [name for _, name in socket.if_nameindex()]]
        """
    )
    assert answer == ["x", ["lo"]]


def test_a_server_of_the_host_cannot_be_reached_by_an_abstract_socket() -> None:
    name = f"\0container-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        source = f"""
        import errno, socket
        answer = errno.errorcode[socket.socket(socket.AF_UNIX).connect_ex({name!r})]
        """
        assert inside(source) == "ECONNREFUSED"
        # With the host's network it can: this is what a network namespace is for.
        source = source.replace("errno.errorcode[", "[0, ")
        assert inside(source, config=with_namespaces(net=False)) == [0, 0]


def test_the_processes_of_the_host_are_not_there() -> None:
    source = "answer = [os.getppid(), [name for name in os.listdir('/proc') if name.isdigit()]]"
    assert inside(source) == [0, ["1"]]


# Mounts -------------------------------------------------------------------------------------------


def test_the_default_root_is_the_hosts_programs_and_little_else() -> None:
    top = set(lines("ls -A /"))
    links = {name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32") if name in top}
    prefixes = {Path(prefix).parts[1] for prefix in (sys.prefix, sys.base_prefix)}
    own = {"dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var"}
    assert top - links == own | (prefixes - links)
    to_the_interpreter = {
        part for each in (sys.prefix, sys.base_prefix) for part in Path(each).parts
    }
    found = set(lines("ls -A /home /run /var/run | grep -v ':$'"))
    assert found - {""} <= to_the_interpreter
    assert lines("ls -A /etc") == sorted(
        {
            *("group", "hosts", "mtab", "nsswitch.conf", "passwd", "resolv.conf"),
            *(
                name
                for name in ("alternatives", "ld.so.cache", "localtime", "ssl")
                if os.path.exists(f"/etc/{name}")
            ),
            *(["pki"] if os.path.exists("/etc/pki/tls/certs") else []),
        }
    )


def test_of_the_directories_above_the_interpreter_only_the_way_to_it_is_there() -> None:
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    above = {parent for prefix in prefixes for parent in prefix.parents}
    for parent in above - {Path("/")}:
        if parent.is_relative_to("/usr") or any(map(parent.is_relative_to, prefixes)):
            continue
        below = [each.relative_to(parent) for each in prefixes if each.is_relative_to(parent)]
        assert set(lines(f"ls -A '{parent}'")) == {path.parts[0] for path in below}


def test_the_mounts_of_the_default_container_have_their_flags() -> None:
    mounts = mounts_inside()
    host_files = {"ro", "nosuid", "nodev"}
    safe = {"nosuid", "nodev", "noexec"}
    expected = {
        "/": {"rw", "nosuid", "nodev"},
        "/usr": host_files,
        "/proc": safe | {"rw"},
        "/sys": safe | {"ro"},
        "/dev": {"rw", "nosuid", "noexec"},
        "/dev/pts": {"rw", "nosuid", "noexec"},
        "/dev/shm": safe | {"rw"},
    }
    found = {place: options - {"relatime"} for place, options in mounts.items()}
    assert {place: found[place] for place in expected} == expected
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    assert devices <= set(found)
    covers = {place for place in found if place.startswith(("/proc/", "/sys/"))}  # test_walls.py
    for place in set(found) - set(expected) - devices - covers:
        assert found[place] >= host_files, place
        assert place.startswith(("/etc/", sys.prefix, sys.base_prefix)) or place[1:4] == "lib"


def test_the_old_root_is_gone() -> None:
    rows = lines("cat /proc/self/mountinfo")
    assert [row for row in rows if row.split(" ")[4] == "/"] == [
        row for row in rows if " - tmpfs " in row and row.split(" ")[4] == "/"
    ]
    # The root is the top of its namespace: nothing lies below or beside it.
    ids = {row.split(" ")[0] for row in rows}
    (root,) = (row.split(" ") for row in rows if row.split(" ")[4] == "/")
    assert root[1] not in ids


def test_mounts_of_the_container_do_not_show_on_the_host(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with Container(Config(mounts=[Mount.tmpfs("/data")])) as box:
        box.run(Process(["sleep", "1000"]))
        assert Path("/proc/self/mountinfo").read_text() == before


def test_devices_are_those_of_the_kernel_and_no_more() -> None:
    script = """
        import stat
        answer = {}
        for name in os.listdir("/dev"):
            status = os.lstat(f"/dev/{name}")
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFLNK:
                answer[name] = os.readlink(f"/dev/{name}")
            elif kind == stat.S_IFCHR:
                answer[name] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
            else:
                answer[name] = stat.filemode(status.st_mode)
        """
    assert inside(script) == {
        **{"null": [1, 3], "zero": [1, 5], "full": [1, 7], "random": [1, 8], "urandom": [1, 9]},
        **{"tty": [5, 0], "fd": "/proc/self/fd", "ptmx": "pts/ptmx", "stdin": "/proc/self/fd/0"},
        **{"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"},
        **{"pts": "drwxr-xr-x", "shm": "drwxrwxrwt"},
    }


def test_devices_work() -> None:
    answer = inside(
        """
        answer = []
        with open("/dev/zero", "rb") as zero, open("/dev/urandom", "rb") as urandom:
            answer += [zero.read(4) == bytes(4), len(urandom.read(4))]
        with open("/dev/null", "wb") as null:
            answer.append(null.write(b"x"))
        try:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        except OSError as error:
            answer.append(error.errno)
        main, other = os.openpty()
        os.write(main, b"x\\n")
        answer += [os.read(other, 9).decode(), os.ttyname(other)]
        """
    )
    assert answer == [True, 4, 1, 28, "x\n", "/dev/pts/0"]


def test_shared_memory_is_private_to_a_container() -> None:
    with container.popen(["sh", "-c", "echo x >/dev/shm/name; echo up; cat"], stdin=PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        assert shell("ls -A /dev/shm") == ""
        assert not os.path.exists("/dev/shm/name")


def test_a_tmpfs_has_the_size_and_mode_that_were_asked_for() -> None:
    config = Config(mounts=[Mount.tmpfs("/data", size="1M", mode=0o711)])
    assert lines("stat -c %a /data; stat -f -c '%T %b %S' /data", config=config) == [
        "711",
        "tmpfs 256 4096",
    ]
    assert mounts_inside(config=config)["/data"] >= {"rw", "nosuid", "nodev"}
    result = attempt("head -c 2M /dev/zero >/data/file", config=config)
    assert "No space left" in result.stderr


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of the host that everybody can reach, to be bound."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "file").write_text("content")
    return directory


def test_a_bind_is_writable_unless_said_otherwise(shared: Path) -> None:
    shell("echo new >/data/new", binds=[f"{shared}:/data"])
    assert (shared / "new").read_text() == "new\n"
    assert (shared / "new").stat().st_uid == os.geteuid()
    result = attempt("cat /data/file; echo x >/data/newer", binds=[f"{shared}:/data:ro"])
    assert result.stdout == "content"
    assert "Read-only file system" in result.stderr
    assert not (shared / "newer").exists()


def test_a_file_may_be_bound(shared: Path) -> None:
    mounts = [Mount.bind(shared / "file", "/etc/the-file", read_only=True)]
    assert shell("cat /etc/the-file", config=Config(mounts=mounts)) == "content"


def test_a_bound_mount_has_no_set_user_id_programs_and_no_devices(shared: Path) -> None:
    assert mounts_inside(binds=[f"{shared}:/data"])["/data"] >= {"rw", "nosuid", "nodev"}
    free = Config(no_new_privileges=False, mounts=[Mount.bind(shared, "/data")])
    assert mounts_inside(config=free)["/data"] >= {"rw", "nodev"}
    assert "nosuid" not in mounts_inside(config=free)["/data"]


@pytest.fixture
def with_submount(shared: Path) -> Iterator[Path]:
    """A directory with another file system below it."""
    below = shared / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(below)], check=True)
    try:
        (below / "file").write_text("below")
        yield shared
    finally:
        subprocess.run(["umount", str(below)], check=True)


# Everything that could make a read-only mount writable, each on its own.
REMOUNTS = (
    "mount -o remount,bind,rw {0}",
    "mount -o remount,rw {0}",
    "mount -o remount,bind,rw,dev,suid,exec {0}",
    "umount {0}",
    "umount -l {0}",
    "mount --bind {0} /tmp/x && mount -o remount,bind,rw /tmp/x",
    "mount --rbind {0} /tmp/x && mount -o remount,bind,rw /tmp/x",
    "unshare -m mount -o remount,bind,rw {0}",
    "unshare -Urm mount -o remount,bind,rw {0}",
)


@pytest.mark.needs("root")
@pytest.mark.parametrize("remount", REMOUNTS)
def test_read_only_stays_read_only_even_with_every_capability(
    with_submount: Path, remount: str
) -> None:
    config = Config(
        mounts=[Mount.bind(with_submount, "/data", read_only=True)],
        capabilities=Capabilities.all(),
    )
    script = "mkdir /tmp/x; exec 2>&1\n"
    for place in ("/data", "/data/below", "/usr"):
        target = remount.format(place)
        script += f"({target}) && echo done: {place}\n"
        script += f"echo x >>{place}/new && echo written: {place}; :\n"
        script += "[ -d /tmp/x ] && echo x >>/tmp/x/new; umount -l /tmp/x 2>/dev/null\n"
    script += "cat /data/file /data/below/file"
    output = attempt(script, config=config).stdout
    assert "written" not in output
    if "--bind" not in remount and "--rbind" not in remount:
        assert "done" not in output
    assert output.endswith("contentbelow")
    assert sorted(path.name for path in with_submount.iterdir()) == ["below", "file"]
    assert [path.name for path in (with_submount / "below").iterdir()] == ["file"]


@pytest.mark.needs("root")
def test_a_program_with_every_capability_has_them_in_its_own_mounts(shared: Path) -> None:
    # What the test above refuses is refused for the mounts, not for a lack of privilege.
    config = Config(capabilities=Capabilities.all())
    script = (
        "mount -t tmpfs none /mnt && mount -o remount,bind,ro /mnt && grep ' /mnt ' /proc/mounts"
    )
    output = shell("mkdir /mnt; " + script, config=config)
    assert " ro," in output


@pytest.mark.needs("root")
def test_a_device_node_in_the_root_or_a_bind_cannot_be_opened(fresh_root: Path) -> None:
    null = fresh_root / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    null.chmod(0o666)
    options = {
        "root": fresh_root,
        "config": Config(capabilities=Capabilities.all(), mounts=[Mount.bind(fresh_root, "/data")]),
    }
    result = attempt("cat /dev/null && echo own; cat /null; cat /data/null", **options)
    assert result.stdout == "own\n"
    assert result.stderr.count("Permission denied") == 2


# Privileges ---------------------------------------------------------------------------------------


def capability_sets(config: Config | None = None, **options: object) -> dict[str, str]:
    status = status_inside(config=config, **options)
    return {name[3:]: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}


def test_capabilities_are_dockers_and_none_is_inheritable_or_ambient() -> None:
    assert capability_sets() == {
        "Inh": NO_CAPABILITIES,
        "Prm": DOCKER_CAPABILITIES,
        "Eff": DOCKER_CAPABILITIES,
        "Bnd": DOCKER_CAPABILITIES,
        "Amb": NO_CAPABILITIES,
    }


def test_another_user_has_no_capability_but_the_same_bound() -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user's container has a single id")
    sets = capability_sets(user=1000)
    assert sets == dict.fromkeys(("Inh", "Prm", "Eff", "Amb"), NO_CAPABILITIES) | {
        "Bnd": DOCKER_CAPABILITIES
    }


def test_no_capability_at_all_may_be_asked_for() -> None:
    sets = capability_sets(Config(capabilities=Capabilities.none()))
    assert set(sets.values()) == {NO_CAPABILITIES}


def test_every_capability_may_be_asked_for() -> None:
    every = f"{(1 << last_capability() + 1) - 1:016x}"
    sets = capability_sets(EVERYTHING)
    assert sets == {"Inh": NO_CAPABILITIES, "Amb": NO_CAPABILITIES} | dict.fromkeys(
        ("Prm", "Eff", "Bnd"), every
    )


def test_root_has_no_more_than_what_is_permitted_of_the_bounding_set() -> None:
    permitted = ("NET_RAW",)
    sets = capability_sets(Config(capabilities=Capabilities(("NET_RAW", "CHOWN"), (), permitted)))
    assert sets["Bnd"] == f"{1 << 13 | 1:016x}"
    assert sets["Prm"] == f"{1 << 13:016x}"


def test_ambient_capabilities_may_be_asked_for() -> None:
    wanted = ("NET_RAW", "CHOWN")
    capabilities = Capabilities(wanted, wanted, wanted, wanted, wanted)
    options = {"user": 1000} if os.geteuid() == 0 else {}
    sets = capability_sets(Config(capabilities=capabilities), **options)
    assert sets == dict.fromkeys(sets, f"{1 << 13 | 1:016x}")


def sets_from_outside(config: Config, user: str | None) -> dict[str, str]:
    """The five sets of a program that just waits, in the host's /proc."""
    with Container(config) as box:
        box.run(Process(["sleep", "1000"], user=user))
        status = parse_status(Path(f"/proc/{box.pid}/status").read_text())
        return {name: status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}


@pytest.mark.parametrize("user", [None, "1000:1000"])
@pytest.mark.parametrize("bare", [False, True])
def test_capabilities_are_as_asked_seen_from_outside(user: str | None, bare: bool) -> None:
    if os.geteuid() != 0 and (user or bare):
        pytest.skip("needs root")
    namespaces = Namespaces(user=not bare)
    mask, none = f"{1 << 13 | 1:016x}", NO_CAPABILITIES
    rights = ("NET_RAW", "CHOWN")
    default = Config(namespaces=namespaces)
    explicit = Config(namespaces=namespaces, capabilities=Capabilities(rights, rights, rights))
    inherited = Config(
        namespaces=namespaces, capabilities=Capabilities(rights, rights, rights, rights)
    )
    ambient = Config(namespaces=namespaces, capabilities=Capabilities(*[rights] * 5))
    held = DOCKER_CAPABILITIES if user is None else none
    assert sets_from_outside(default, user) == {
        **{"Inh": none, "Amb": none, "Bnd": DOCKER_CAPABILITIES, "Prm": held, "Eff": held}
    }
    held = mask if user is None else none
    without = {"Inh": none, "Amb": none, "Bnd": mask, "Prm": held, "Eff": held}
    assert sets_from_outside(explicit, user) == without
    assert sets_from_outside(inherited, user) == without | {"Inh": mask}
    assert sets_from_outside(ambient, user) == dict.fromkeys(without, mask)


@pytest.mark.parametrize("asked", [True, False])
def test_no_new_privs_is_set_unless_it_is_switched_off(asked: bool) -> None:
    assert status_inside(config=Config(no_new_privileges=asked))["NoNewPrivs"] == str(int(asked))


@pytest.mark.needs("root")
@pytest.mark.parametrize("allowed", [False, True])
def test_a_set_user_id_program_changes_the_user_only_where_new_privileges_are_allowed(
    fresh_root: Path, allowed: bool
) -> None:
    shutil.copyfile("/usr/bin/id", fresh_root / "id")
    (fresh_root / "id").chmod(0o4755)
    # The programs of the host, and this one in a directory that shows as the container's root's.
    config = Config(mounts=[Mount.bind(fresh_root, "/data")], no_new_privileges=not allowed)
    result = container.run(["/data/id", "-u"], config=config, user="1000:1000", text=True)
    assert result.stdout == ("0\n" if allowed else "1000\n")


@pytest.mark.needs("root")
def test_file_capabilities_give_nothing_where_new_privileges_are_not_allowed(
    fresh_root: Path,
) -> None:
    program = fresh_root / "bin/busybox"
    # VFS_CAP_REVISION_2, effective: every capability permitted and inheritable
    data = (0x02000001).to_bytes(4, "little") + b"\xff\xff\xff\xff" * 4
    os.setxattr(program, "security.capability", data)
    status = status_inside(root=fresh_root, user="1000:1000")
    assert [status[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [
        NO_CAPABILITIES
    ] * 4


def test_the_first_process_leads_a_session_of_its_own_without_a_terminal() -> None:
    fields = container.run(["cut", "-d", " ", "-f", "4-8", "/proc/self/stat"], text=True).stdout
    parent, group, session, terminal, foreground = fields.split()
    assert (parent, group, session, terminal, foreground) == ("0", "1", "1", "0", "-1")


def test_it_cannot_be_traced_nor_its_memory_read_before_it_executes() -> None:
    with Container() as box:
        box.create(Process(["sleep", "1000"]))
        owner = os.stat(f"/proc/{box.pid}/mem").st_uid
        # The files of a process that is not dumpable are root's of the host.
        assert owner == 0
        box.start()


# What comes along from the caller -----------------------------------------------------------------


def test_only_the_three_standard_streams_are_open(tmp_path: Path) -> None:
    told_of = caller(
        f"""
        import socket
        files = [open({str(tmp_path / "file")!r}, "w"), open("/proc/self/status"), socket.socket()]
        directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        many = [os.dup2(directory, number) for number in range(20, 60)]
        for number in [*(file.fileno() for file in files), directory, *many]:
            os.set_inheritable(number, True)
        def inside(**options):
            result = run(["sh", "-c", "ls /proc/1/fd; :"], text=True, check=True, **options)
            return result.stdout.split()
        tell([inside(), inside(config=Config(capabilities=Capabilities.all()))])
        with Container() as box:
            box.create(Process(["sh", "-c", "ls /proc/1/fd; :"], stdout=PIPE))
            box.start()
            tell(box.stdout.read().decode().split())
        for file in files:
            file.close()
        """
    )
    assert told_of == [[["0", "1", "2"], ["0", "1", "2"]], ["0", "1", "2"]]


def test_more_files_than_a_message_holds_do_not_leak_in() -> None:
    with Container() as box:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        count = min(limit - 100, 300)
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
        try:
            for number in opened:
                os.set_inheritable(number, True)
            box.run(Process(["sh", "-c", "ls /proc/1/fd; :"], stdout=PIPE))
            assert box.stdout is not None
            assert box.stdout.read().split() == [b"0", b"1", b"2"]
        finally:
            for number in opened:
                os.close(number)


ODD_CALLER = """
os.umask(0)
for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
os.chdir("/tmp")
import resource
"""


@pytest.mark.parametrize("when", ["before the launcher is there", "after"])
def test_umask_and_signals_are_reset_whatever_the_callers_are(when: str) -> None:
    first = "run(['true'])\n" if when == "after" else ""
    (status, umask, cwd) = caller(
        first
        + ODD_CALLER
        + """
result = run(["cat", "/proc/self/status"], text=True, check=True)
tell(dict(line.split(":\\t", 1) for line in result.stdout.splitlines() if ":\\t" in line))
tell(run(["sh", "-c", "umask"], text=True).stdout)
tell(run(["pwd"], text=True).stdout)
"""
    )
    for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
        assert int(status[name], 16) == 0, name
    assert (umask, cwd) == ("0022\n", "/\n")


def test_the_umask_that_is_asked_for_is_set() -> None:
    with Container() as box:
        box.run(Process(["sh", "-c", "umask"], umask=0o077, stdout=PIPE))
        assert box.stdout is not None
        assert box.stdout.read() == b"0077\n"


def test_a_segfault_leaves_no_core_though_the_callers_limit_allows_one() -> None:
    source = """
        import resource, signal
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        status = os.waitpid(pid, 0)[1]
        answer = [os.WTERMSIG(status), os.WCOREDUMP(status),
                  resource.getrlimit(resource.RLIMIT_CORE), os.listdir(".")]
        """
    old = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (old[1], old[1]))
    try:
        assert inside(source, cwd="/var/tmp") == [signal.SIGSEGV, False, [0, 0], []]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, old)


def test_resource_limits_are_the_callers_or_those_asked_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = "ulimit -Sn; ulimit -Hn"
    with Container() as box:
        box.run(Process(["sh", "-c", limits], stdout=PIPE, rlimits=[Rlimit("NOFILE", 64, 128)]))
        assert box.stdout is not None
        assert box.stdout.read() == b"64\n128\n"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert shell(limits) == f"{soft - 1}\n{hard}\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


READ_KEY = """
import ctypes, platform, sys
KEYCTL_READ = 11
keyctl = 250 if platform.machine() == "x86_64" else 219
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(16)
size = libc.syscall(keyctl, KEYCTL_READ, int(sys.argv[1]), buffer, 16)
print(buffer.value.decode() if size >= 0 else ctypes.get_errno())
"""


def test_the_callers_session_keyring_is_not_there() -> None:
    # Whoever possesses it may read what is in it, whoever that is.
    told_of = caller(
        f"""
        import platform
        add_key, keyctl = (248, 250) if platform.machine() == "x86_64" else (217, 219)
        KEYCTL_JOIN_SESSION_KEYRING, SESSION = 1, -3
        check(libc.syscall(keyctl, KEYCTL_JOIN_SESSION_KEYRING, b"the-callers-ring"))
        key = check(libc.syscall(add_key, b"user", b"the-callers-key", b"secret", 6, SESSION))
        program = [*{python(READ_KEY)!r}, str(key)]
        tell(subprocess.run(program, stdout=subprocess.PIPE, text=True).stdout.strip())
        for capabilities in (Capabilities.default(), Capabilities.all()):
            config = Config(capabilities=capabilities, seccomp=None)  # which refuses keyctl
            answer = run(program, config=config, text=True, check=True).stdout.strip()
            tell(errno.errorcode.get(int(answer)) if answer.isdigit() else answer)
        """
    )
    assert told_of == ["secret", "EACCES", "EACCES"]


@pytest.mark.needs("root")
def test_the_supplementary_groups_of_the_caller_are_gone() -> None:
    told_of = caller(
        """
        os.setgroups([0, 5, 4242])
        def groups(**options):
            result = run(["cat", "/proc/self/status"], text=True, check=True, **options)
            (line,) = (line for line in result.stdout.splitlines() if line.startswith("Groups:"))
            return line.split()[1:]
        tell([groups(), groups(user="1000:1000")])
        """
    )
    assert told_of == [[["0"], ["1000"]]]


def test_it_dies_with_its_launcher_and_knows_no_other_parent() -> None:
    status = status_inside()
    assert (status["PPid"], status["Pid"], status["TracerPid"]) == ("0", "1", "0")


# The working directory ----------------------------------------------------------------------------

MAGIC = [f"/proc/self/fd/{number}" for number in range(3, 12)] + [
    "/proc/self/cwd",
    "/proc/self/root",
    "/proc/1/root",
    "/proc/1/cwd",
    "/proc/self/root/usr",
    "/proc/thread-self/fd/3/../..",
]


@pytest.mark.parametrize("cwd", MAGIC)
def test_a_working_directory_behind_a_magic_link_is_refused(cwd: str) -> None:
    # CVE-2024-21626: an fd that leaked would lead out of the container.
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(directory, True)
    try:
        with pytest.raises(LaunchError) as caught:
            container.run(["pwd"], cwd=cwd)
    finally:
        os.close(directory)
    assert (caught.value.step, caught.value.filename) == ("cwd", cwd)


def test_a_link_in_the_image_to_a_magic_link_is_refused_too(fresh_root: Path) -> None:
    (fresh_root / "out").symlink_to("/proc/self/fd/3")
    (fresh_root / "up").symlink_to("../../../../..")
    with pytest.raises(LaunchError) as caught:
        container.run(["pwd"], root=fresh_root, cwd="/out")
    assert caught.value.step == "cwd"
    assert container.run(["pwd"], root=fresh_root, cwd="/up", text=True).stdout == "/\n"


# Two at a time ------------------------------------------------------------------------------------


def test_one_container_sees_and_reaches_nothing_of_another() -> None:
    with container.popen(["sh", "-c", "echo up; cat"], stdin=PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        attempt(f"kill -9 {other.pid}; kill -9 -1")
        shell(f"! [ -e /proc/{other.pid} ]")
        assert other.poll() is None


def test_the_thread_that_asks_need_not_be_the_main_one() -> None:
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(shell("id -u")))
    thread.start()
    thread.join()
    assert results == ["0\n"]


def test_without_pivot_root_the_root_is_the_same() -> None:
    config = Config(use_pivot_root=False)
    assert shell("ls /run; pwd", config=config) == "/\n"
    assert "/usr" in mounts_inside(config=config)


def test_an_extra_directory_of_a_host_root_is_read_only_and_in_its_own_place(shared: Path) -> None:
    root = HostRoot(extra=[shared])
    assert shell(f"cat {shared}/file", root=root) == "content"
    assert mounts_inside(root=root)[str(shared)] >= {"ro", "nosuid", "nodev"}


def test_the_program_of_a_container_is_not_the_interpreters_business_any_more() -> None:
    # PID 1 is the program itself: nothing of ours stays in the container.
    with Container() as box:
        box.run(
            Process(python("import time; print('up', flush=True); time.sleep(1000)"), stdout=PIPE)
        )
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        executable = os.readlink(f"/proc/{box.pid}/exe")
        assert os.path.realpath(sys.executable) == executable
        with pytest.raises(StateError):
            box.run(Process(["true"]))
