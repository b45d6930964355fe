# SPDX-License-Identifier: Apache-2.0
"""Every kind and flag of a mount: as the kernel shows it, and tried."""

from __future__ import annotations

import os
import socket
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system.conftest import Identity
from system.helpers import attempt, caller, host_mounts, inside, lines, mounts_inside, shell, tree

import container
from container import (
    Capabilities,
    Config,
    ConfigError,
    IDMapping,
    LaunchError,
    Mount,
    MountFlags,
    Namespaces,
)

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

as_root = pytest.mark.needs("root", "idmap")

DEFAULTS = {"nosuid", "nodev"}

# How to say it, what the kernel then shows, and a command that fails for it.
RESTRICTIONS: dict[str, tuple[dict[str, Any], set[str], str]] = {
    "read_only": ({"read_only": True}, DEFAULTS | {"ro"}, "echo x >$D/new"),
    "noexec": ({"noexec": True}, DEFAULTS | {"noexec", "rw"}, "$D/program"),
    "nothing": ({}, DEFAULTS | {"rw"}, "false"),
    "suid and dev": ({"nosuid": False, "nodev": False}, {"rw"}, "false"),
}


def options_of(line: str) -> set[str]:
    return set(line.split(" ")[5].split(",")) - {"relatime"}


def laid_on(path: Path) -> set[str]:
    """What the mount of the host that this lies in has already: it stays on a copy."""
    flags = os.statvfs(path).f_flag
    names = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC}
    return {name for name, flag in names.items() if flags & flag}


def mount_lines(text: str, place: str) -> list[str]:
    return [line for line in text.splitlines() if line.split(" ")[4:5] == [place]]


@pytest.fixture
def data(who: Identity) -> Path:
    """A directory of the caller's with a program, which is `data` for it."""
    directory = who.home / "data"
    directory.mkdir()
    (directory / "program").write_text("#!/bin/sh\n")
    (directory / "program").chmod(0o755)
    who.own(directory)
    return directory


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_a_restriction_of_a_bind_shows_and_holds(
    who: Identity, data: Path, restriction: str
) -> None:
    options, shown, refused = RESTRICTIONS[restriction]
    before = tree(data)
    text, (status, output, _) = who(
        f"""
        config = Config(mounts=[Mount("data", "/data", "bind", **{options!r})])
        tell(mountinfo(config))
        tell(look("D=/data; cat /data/program; {refused}", config=config))
        """
    )
    (line,) = mount_lines(text, "/data")
    assert options_of(line) - {"idmapped"} == shown | laid_on(data)
    assert (output, status == 0) == ("#!/bin/sh\n", False)
    assert tree(data) == before


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_a_restriction_of_a_new_file_system_shows_and_holds(
    who: Identity, restriction: str
) -> None:
    options, shown, refused = RESTRICTIONS[restriction]
    script = "cp /bin/true $D/program 2>/dev/null; " + refused
    text, (status, _, _) = who(
        f"""
        config = Config(mounts=[Mount(None, "/data", "tmpfs", **{options!r})])
        tell(mountinfo(config))
        tell(look({"D=/data; " + script!r}, config=config))
        """
    )
    (line,) = mount_lines(text, "/data")
    # A kernel may add nodev to what is mounted in a user namespace; 6.1 does.
    assert options_of(line) in (shown, shown | {"nodev"})
    assert " - tmpfs " in line
    assert status != 0


# Mounts below a source ----------------------------------------------------------------------------


@pytest.fixture
def with_submount(data: Path) -> Iterator[Path]:
    """`data` with another file system at `data/below`; root mounts it."""
    below, other = data / "below", data.parent / "other"
    below.mkdir()
    other.mkdir(mode=0o777)
    other.chmod(0o777)
    # Of the same kind as the rest: not every one can be idmapped.
    subprocess.run(["mount", "--bind", str(other), str(below)], check=True)
    try:
        (below / "program").write_text("#!/bin/sh\n")
        (below / "program").chmod(0o755)
        yield data
    finally:
        subprocess.run(["umount", str(below)], check=True)


@pytest.mark.needs("root")
@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_a_restriction_holds_for_the_mounts_below_too(
    who: Identity, with_submount: Path, restriction: str
) -> None:
    options, shown, refused = RESTRICTIONS[restriction]
    if restriction == "suid and dev":
        shown = shown | {"rw"}
    text, (status, _, _) = who(
        f"""
        config = Config(mounts=[Mount("data", "/data", "bind", **{options!r})])
        tell(mountinfo(config))
        tell(look("D=/data/below; {refused}", config=config))
        """
    )
    (line,) = mount_lines(text, "/data/below")
    assert options_of(line) - {"idmapped"} == shown | laid_on(with_submount / "below")
    assert status != 0
    assert sorted(os.listdir(with_submount / "below")) == ["program"]


@pytest.mark.needs("root")
def test_a_bind_that_is_not_recursive_leaves_the_mounts_below_out(
    who: Identity, with_submount: Path
) -> None:
    told = who(
        """
        config = Config(mounts=[Mount("data", "/data", "bind", recursive=False)])
        try:
            tell(look("ls -A /data/below", config=config))
        except LaunchError as error:
            tell([error.step, errno.errorcode[error.errno], error.hint])
        """
    )
    if who.uid == 0:
        assert told == [[0, "", ""]]
    else:  # what they hide must stay hidden from somebody who could not unmount them
        step, number, hint = told[0]
        assert (step, number) == ("filesystem", "EINVAL")
        assert "mounts below" in hint


@pytest.mark.needs("root", "busybox")
def test_a_read_only_root_is_so_with_what_is_mounted_in_it(fresh_root: Path) -> None:
    below = fresh_root / "tmp/below"
    below.mkdir()
    subprocess.run(["mount", "--bind", str(fresh_root / "etc"), str(below)], check=True)
    try:
        config = Config(root=fresh_root, read_only_root=True, mounts=[Mount.tmpfs("/new/place")])
        script = "echo x >/new/place/x && echo ok; echo x >/x; echo x >/tmp/below/x; >/dev/shm/x"
        result = attempt(script, config=config)
        assert result.stdout == "ok\n"
        assert result.stderr.count("Read-only file system") == 2
        mounts = mounts_inside(config=config)
        assert "ro" in mounts["/"]
        assert "ro" in mounts["/tmp/below"]
        assert not (below / "x").exists()
    finally:
        subprocess.run(["umount", str(below)], check=True)


def test_a_read_only_root_of_the_hosts_programs_has_no_place_to_write() -> None:
    result = attempt("echo x >/x; echo x >/tmp/x", config=Config(read_only_root=True))
    assert result.stderr.count("Read-only file system") == 2


# File systems of the kernel -----------------------------------------------------------------------


def test_each_kind_of_file_system_can_be_mounted(who: Identity) -> None:
    kinds = ("proc", "sysfs", "devpts", "mqueue", "tmpfs")
    (text,) = who(
        f"""
        tell(mountinfo(Config(mounts=[Mount(None, f"/mnt/{{kind}}", kind) for kind in {kinds}])))
        """
    )
    for kind in kinds:
        (line,) = mount_lines(text, f"/mnt/{kind}")
        assert f" - {kind} " in line
        shown = {"nosuid", "rw"} if kind == "devpts" else DEFAULTS | {"rw"}
        assert options_of(line) == (DEFAULTS | {"ro"} if kind == "sysfs" else shown)


def test_a_flag_names_a_kind_as_its_type_does() -> None:
    for flag, kind in (
        *((MountFlags.PROC, "proc"), (MountFlags.SYSFS, "sysfs")),
        *((MountFlags.TMPFS, "tmpfs"), (MountFlags.DEVPTS, "devpts")),
    ):
        config = Config(mounts=[Mount(None, "/mnt", flags=flag)])
        (line,) = mount_lines(shell("cat /proc/self/mountinfo", config=config), "/mnt")
        assert f" - {kind} " in line


def test_another_proc_shows_the_processes_of_the_container_as_its_options_say() -> None:
    config = Config(mounts=[Mount(None, "/mnt", "proc", data="subset=pid")])
    assert lines("cat /mnt/1/comm; test -e /mnt/sys || echo none", config=config) == ["sh", "none"]


def test_another_devpts_is_an_instance_of_its_own() -> None:
    config = Config(mounts=[Mount(None, "/mnt/pts", "devpts", nosuid=True)])
    found = inside(
        """
        import fcntl, termios
        fd = os.open("/mnt/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        answer = [sorted(os.listdir("/mnt/pts")), sorted(os.listdir("/dev/pts"))]
        """,
        config=config,
    )
    assert found == [["0", "ptmx"], ["ptmx"]]


def test_message_queues_are_those_of_the_container() -> None:
    config = Config(mounts=[Mount(None, "/mnt", "mqueue")])
    script = "ls -A /mnt; >/mnt/queue; cat /mnt/queue"
    assert "QSIZE:0" in shell(script, config=config)
    assert shell("ls -A /mnt", config=config) == ""


def test_sysfs_is_the_callers_where_the_network_is() -> None:
    config = Config(namespaces=Namespaces(net=False), mounts=[Mount(None, "/mnt", "sysfs")])
    assert mounts_inside(config=config)["/mnt"] >= {"ro"}
    assert lines("ls /mnt/class/net", config=config) == sorted(os.listdir("/sys/class/net"))


@pytest.mark.parametrize("kind", ["tmpfs", "proc", "devpts", "mqueue"])
def test_options_that_a_file_system_does_not_have_are_an_error(kind: str) -> None:
    mounts = host_mounts()
    config = Config(mounts=[Mount(None, "/mnt", kind, data="no-such-option=5")])
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=config)
    assert (caught.value.step, caught.value.filename) == ("filesystem", "/mnt")
    assert host_mounts() == mounts


# Propagation --------------------------------------------------------------------------------------

# A mount namespace of the test's own, in which `top` is shared.
OWN_NAMESPACE = """
def sh(script):
    subprocess.run(["sh", "-ec", script], check=True)
os.makedirs("top")
check(libc.unshare(0x20000))
sh("mount --make-rprivate / && mount -t tmpfs top top && mount --make-shared top && mkdir top/a")

def host_mounts():
    with open("/proc/self/mountinfo") as file:
        return file.read()

def inside_while(mount, script):
    # What a container sees after `script` was run outside.
    box = container.popen(["sh", "-c", "echo up; read x; ls /data/a; cat /proc/self/mountinfo"],
        config=Config(mounts=[mount]), stdin=PIPE, encoding="utf-8")
    with box:
        box.stdout.readline()
        sh(script)
        output, _ = box.communicate("go\\n")
    sh("umount top/a || :")
    return output
"""


@as_root
@pytest.mark.parametrize(("flag", "seen"), [("PRIVATE", False), ("SLAVE", True), ("SHARED", False)])
def test_what_the_host_mounts_later_shows_where_that_was_asked_for(
    tmp_path: Path, flag: str, seen: bool
) -> None:
    (output,) = caller(
        OWN_NAMESPACE
        + textwrap.dedent(f"""
        mount = Mount("top", "/data", "bind", MountFlags.{flag}, idmap=False)
        tell(inside_while(mount, "mount -t tmpfs later top/a && touch top/a/later"))
        """),
        cwd=tmp_path,
    )
    assert output.startswith("later\n") is seen
    (line,) = mount_lines(output, "/data")
    tags = line.split(" - ")[0].split(" ")[6:]
    expected = {"PRIVATE": [], "SLAVE": ["master"], "SHARED": ["shared"]}
    assert [tag.split(":")[0] for tag in tags] == expected[flag]


@as_root
@pytest.mark.parametrize("flag", ["PRIVATE", "SLAVE", "SHARED"])
def test_what_a_container_mounts_never_shows_on_the_host(tmp_path: Path, flag: str) -> None:
    before, after, output = caller(
        OWN_NAMESPACE
        + textwrap.dedent(f"""
        config = Config(
            mounts=[Mount("top", "/data", "bind", MountFlags.{flag})],
            namespaces=Namespaces(user=False),
            capabilities=Capabilities(["SYS_ADMIN"], ["SYS_ADMIN"], ["SYS_ADMIN"]),
        )
        tell(host_mounts())
        script = "mount -t tmpfs inner /data/a; echo up; read x; grep -c inner /proc/mounts"
        with container.popen(["sh", "-c", script], config=config, stdin=PIPE) as box:
            assert box.stdout.readline() == b"up\\n"
            tell(host_mounts())
            tell(box.communicate(b"go\\n")[0].decode())
        """),
        cwd=tmp_path,
    )
    assert before == after
    assert output == "1\n"


# Ids ----------------------------------------------------------------------------------------------


@as_root
def test_owners_are_mapped_as_the_mount_says(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    source = tmp_path / "source"
    source.mkdir()
    for name, owner in (("root", 0), ("ten", 10), ("other", 4711)):
        (source / name).touch()
        os.chown(source / name, owner, owner)
    maps = (IDMapping(0, 1000000, 1000),)
    ours = {"uid_mappings": maps, "gid_mappings": maps}
    script = "cd /data; stat -c %u:%g root ten other"

    def owners(mount: Mount, **options: Any) -> list[str]:
        return lines(script, config=Config(mounts=[mount], **options))

    bind = ("source", "/data", "bind")
    nobody = "65534:65534"
    os.chdir(tmp_path)
    try:
        assert owners(Mount(*bind)) == ["0:0", "10:10", "4711:4711"]
        assert owners(Mount(*bind, idmap=True)) == ["0:0", "10:10", "4711:4711"]
        assert owners(Mount(*bind, idmap=False)) == [nobody] * 3
        assert owners(Mount(*bind), **ours) == [nobody] * 3
        assert owners(Mount(*bind, idmap=True), **ours) == ["0:0", "10:10", nobody]
        # Ids of the file system to ids of the host, where the container has its own for those.
        to_host = [IDMapping(10, 1000005, 1)]
        mapped = Mount(*bind, uid_mappings=to_host, gid_mappings=to_host)
        assert owners(mapped, **ours) == [nobody, "5:5", nobody]
        plain = {"namespaces": Namespaces(user=False)}
        assert owners(mapped, **plain) == [nobody, "1000005:1000005", nobody]
    finally:
        os.chdir("/")


@as_root
def test_what_is_written_through_a_mapped_mount_is_owned_as_the_map_says(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "source").mkdir(mode=0o777)
    os.chown(tmp_path / "source", 10, 10)
    maps = [IDMapping(0, 1000000, 1000)]
    mount = Mount(
        *(tmp_path / "source", "/data", "bind"),
        uid_mappings=[IDMapping(10, 1000000, 1)],
        gid_mappings=[IDMapping(10, 1000000, 1)],
    )
    shell("echo x >/data/x", config=Config(uid_mappings=maps, gid_mappings=maps, mounts=[mount]))
    status = (tmp_path / "source/x").stat()
    assert (status.st_uid, status.st_gid) == (10, 10)


# Sources ------------------------------------------------------------------------------------------


def test_files_sockets_and_fifos_can_be_bound(who: Identity, data: Path) -> None:
    os.mkfifo(data / "fifo")
    (data / "link").symlink_to("program")
    who.own(data)
    told = who(
        """
        import socket
        names = ("program", "fifo", "socket", "link")
        config = Config(mounts=[Mount.bind(f"data/{name}", f"/mnt/{name}") for name in names])
        program = "import socket; c = socket.socket(socket.AF_UNIX); c.connect('/mnt/socket')"
        run = [sys.executable, "-I", "-S", "-c", program + "; c.sendall(b'hello')"]
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("data/socket")
            server.listen()
            tell(look("stat -c '%F %n' /mnt/*", config=config)[1].splitlines())
            container.run(run, config=config, check=True)
            with server.accept()[0] as client:
                tell(client.recv(10).decode())
        """
    )
    assert told == [
        [
            *("fifo /mnt/fifo", "regular file /mnt/link"),
            *("regular file /mnt/program", "socket /mnt/socket"),
        ],
        "hello",
    ]


@as_root
def test_a_device_can_be_bound_where_the_mount_is_not_nodev() -> None:
    device = Mount("/dev/zero", "/mnt/zero", "bind", nodev=False, idmap=False)
    assert lines("head -c 3 /mnt/zero | wc -c", config=Config(mounts=[device])) == ["3"]
    device = Mount("/dev/zero", "/mnt/zero", "bind", idmap=False)
    result = attempt("head -c 3 /mnt/zero", config=Config(mounts=[device]))
    assert "Permission denied" in result.stderr


ODD_NAMES = ("a,b", "a:b", "a\nb", "a b", "a\\b", "%s", "...", "\udcff", "-x", "d" * 255)


def test_paths_may_have_any_name_on_both_sides(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    mounts = []
    for number, name in enumerate(ODD_NAMES):
        (tmp_path / name).mkdir()
        (tmp_path / name / str(number)).touch()
        mounts.append(Mount.bind(tmp_path / name, f"/mnt/{name}"))
    found = inside(
        "answer = {os.fsencode(n).hex(): os.listdir(f'/mnt/{n}') for n in os.listdir('/mnt')}",
        config=Config(mounts=mounts),
    )
    assert {os.fsdecode(bytes.fromhex(name)): files for name, files in found.items()} == {
        name: [str(number)] for number, name in enumerate(ODD_NAMES)
    }


def test_paths_may_be_as_long_as_the_kernel_takes(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    below = "/".join(["d" * 200] * 19)
    below += "/" + "d" * (4000 - len(f"{tmp_path}/{below}/"))
    (tmp_path / below).mkdir(parents=True)
    (tmp_path / below / "file").touch()
    source = str(tmp_path / below)
    assert len(source) == 4000
    target = "/mnt/" + "/".join(["e" * 200] * 20)
    mount = Mount.bind(source, target)
    found = inside(f"answer = os.listdir({target!r})", config=Config(mounts=[mount]))
    assert found == ["file"]


def test_two_hundred_binds_are_no_trouble(who: Identity) -> None:
    for number in range(200):
        (who.home / f"source{number}").mkdir()
        (who.home / f"source{number}/file").write_text(str(number))
    who.own(who.home)
    told = who(
        """
        binds = [f"source{n}:/mnt/{n}" + ":ro" * (n % 2) for n in range(200)]
        script = "cd /mnt; for each in *; do test $each = $(cat $each/file) && echo ok; done"
        result = container.run(["sh", "-c", script], binds=binds, text=True, check=True)
        tell(result.stdout.count("ok"))
        text = container.run(["cat", "/proc/self/mountinfo"], binds=binds, text=True).stdout
        rows = [line.split(" ") for line in text.splitlines()]
        tell(sorted(int(row[4][5:]) for row in rows if row[4].startswith("/mnt/") and
            "ro" in row[5].split(",")))
        """
    )
    assert told == [200, list(range(1, 200, 2))]


@pytest.mark.parametrize("text", ["/a:b:/c:d", "/a:/b:/c", "/a", "/a:/b:rw:ro", ":/b", "/a:"])
def test_a_colon_in_a_path_wants_a_mount(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        container.run(["true"], binds=[text])
    assert caught.value.field.startswith("binds[0]")


def test_a_source_that_is_swapped_while_it_is_bound_is_not_the_new_one(who: Identity) -> None:
    for name in ("right", "wrong"):
        (who.home / name).mkdir()
        (who.home / name / name).touch()
    who.own(who.home)
    (told,) = who(
        """
        from container import _plan
        real = _plan._open_source
        def swap(row, *args):
            source = real(row, *args)
            if row.source.endswith("/right"):
                os.rename("right", "moved")
                os.rename("wrong", "right")
            return source
        _plan._open_source = swap
        try:
            tell(look("ls /data", binds=["right:/data"]))
        except LaunchError as error:
            tell([error.step, errno.errorcode[error.errno]])
        """
    )
    assert told == ([0, "right\n", ""] if who.uid == 0 else ["filesystem", "ESTALE"])


# Targets ------------------------------------------------------------------------------------------


@pytest.mark.needs("busybox")
def test_a_target_that_is_there_is_covered_whatever_it_is(fresh_root: Path, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    source = tmp_path / "source"
    source.write_text("content")
    etc = fresh_root / "etc"
    os.mkfifo(etc / "fifo")
    (etc / "link").symlink_to("target")
    (etc / "target").write_text("covered")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(etc / "socket"))
    before = tree(etc)
    names = ("fifo", "socket", "link")
    mounts = [Mount.bind(source, f"/etc/{name}") for name in names]
    script = "cd /etc; cat fifo socket link target"
    assert shell(script, root=fresh_root, config=Config(mounts=mounts)) == "content" * 4
    assert tree(etc) == before


@pytest.mark.needs("root")
def test_a_shared_mount_together_with_every_capability_is_refused() -> None:
    mount = Mount("/usr", "/mnt", "bind", MountFlags.SHARED)
    with pytest.raises(container.UnsupportedError) as caught:
        container.run(["true"], config=Config(mounts=[mount], capabilities=Capabilities.all()))
    assert caught.value.field == "mounts[0].flags"
