# SPDX-License-Identifier: Apache-2.0
"""Who a container is on the host: no id of the host is in it unless it was asked for."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any, Protocol

import pytest
from system.helpers import (
    PATIENCE,
    attempt,
    caller_argv,
    inside,
    lines,
    parse_status,
    running_caller,
    shell,
    told,
)

import container
from container import (
    Capabilities,
    Config,
    ConfigError,
    Container,
    HostRoot,
    IDMapping,
    Mount,
    Namespaces,
    Process,
    UnsupportedError,
)

pytestmark = [pytest.mark.needs("userns"), pytest.mark.kernel]
as_root = pytest.mark.needs("root", "idmap")

RANGE = 65536
EVERYTHING = Capabilities.all()
MAP = "cat /proc/self/uid_map /proc/self/gid_map"


class AsUser(Protocol):
    """The fixture as_user."""

    uid: int
    gid: int
    home: Path

    def __call__(self, program: Any, **options: Any) -> subprocess.CompletedProcess[str]: ...


# A root caller ------------------------------------------------------------------------------------


def range_of(script_output: str) -> int:
    """The first host id of a leased range, the same for users and groups."""
    rows = [tuple(map(int, line.split())) for line in script_output.splitlines()]
    assert len(rows) == 2
    assert rows[0] == rows[1]
    inside_id, first, count = rows[0]
    assert (inside_id, first % RANGE, count) == (0, 0, RANGE)
    return first


@as_root
def test_roots_container_has_a_range_of_ids_that_nobody_has() -> None:
    first = range_of(shell(MAP))
    # Neither root nor any user of the host.
    assert first >= RANGE
    assert shell("cat /proc/self/setgroups") == "allow\n"


@as_root
def test_the_kernel_shows_the_process_as_another_user_of_the_host() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"], user="1000:2000", groups=(3000,)))
        status = parse_status(Path(f"/proc/{box.pid}/status").read_text())
        first = int(Path(f"/proc/{box.pid}/uid_map").read_text().split()[1])
    assert status["Uid"].split() == [str(first + 1000)] * 4
    assert status["Gid"].split() == [str(first + 2000)] * 4
    assert {int(word) - first for word in status["Groups"].split()} == {2000, 3000}


@as_root
def test_containers_that_live_at_once_have_different_ranges() -> None:
    with Container() as one, Container() as other:
        for box in (one, other):
            box.run(Process(["sleep", "1000"]))
        maps = {Path(f"/proc/{box.pid}/uid_map").read_text() for box in (one, other)}
    assert len(maps) == 2


@as_root
def test_a_range_is_given_back_at_the_end() -> None:
    # Two: while one is in use, the next container is made ready with another.
    assert len({range_of(shell(MAP)) for _ in range(10)}) <= 2


@as_root
def test_containers_of_different_callers_have_different_ranges() -> None:
    # Both are made to begin their search at the same place.
    source = """
    os.urandom = lambda size: bytes(size)
    boxes = [Container() for _ in range(4)]
    for box in boxes:
        box.run(Process(["sleep", "1000"]))
    tell([open(f"/proc/{box.pid}/uid_map").read().split()[1] for box in boxes])
    sys.stdin.readline()
    for box in boxes:
        box.destroy()
    """
    with running_caller(source, strict=False) as one, running_caller(source, strict=False) as other:
        ranges = [*told(one), *told(other)]
    assert len(set(ranges)) == 8
    # Below host id 65536 are the host's own users, from systemd's UIDS-GIDS.md on its containers.
    assert all(RANGE <= int(first) < 2**32 - 2 * RANGE for first in ranges)


@as_root
def test_ids_are_locked_in_a_file_that_only_root_can_reach() -> None:
    shell("true")
    directory = Path("/run/container").lstat()
    assert stat.S_ISDIR(directory.st_mode)
    assert (directory.st_uid, stat.S_IMODE(directory.st_mode)) == (0, 0o700)
    assert stat.S_IMODE(Path("/run/container/ids.lock").lstat().st_mode) == 0o600


# Files --------------------------------------------------------------------------------------------


@as_root
def test_files_of_host_root_show_as_roots_in_a_directory_root(fresh_root: Path) -> None:
    secret = fresh_root / "etc/secret"
    secret.write_text("for root")
    secret.chmod(0o600)
    script = "stat -c '%u:%g' / /bin/busybox /etc/secret; cat /etc/secret"
    assert lines(script, root=fresh_root) == ["0:0"] * 3 + ["for root"]
    result = container.run(["cat", "/etc/secret"], root=fresh_root, user="1000:1000", text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Permission denied" in result.stderr


@as_root
def test_new_files_belong_on_the_host_to_whom_they_belong_in_the_container(
    fresh_root: Path,
) -> None:
    shell("echo x >/tmp/roots", root=fresh_root)
    shell("echo x >/tmp/users", root=fresh_root, user="1000:1001")
    shell("echo x >/tmp/given; chown 5:6 /tmp/given", root=fresh_root)
    owners = {
        path.name: (path.stat().st_uid, path.stat().st_gid)
        for path in (fresh_root / "tmp").iterdir()
    }
    assert owners == {"roots": (0, 0), "users": (1000, 1001), "given": (5, 6)}


@as_root
def test_a_bind_shows_its_owners_as_they_are(fresh_root: Path) -> None:
    for name, owner in (("roots", 0), ("users", 1000)):
        (fresh_root / name).write_text("x")
        os.chown(fresh_root / name, owner, owner)
    script = "stat -c '%u:%g' /data/roots /data/users; echo x >/data/new"
    config = Config(mounts=[Mount.bind(fresh_root, "/data")])
    assert lines(script, config=config) == ["0:0", "1000:1000"]
    assert (fresh_root / "new").stat().st_uid == 0


@pytest.fixture
def decoys(fresh_root: Path) -> Path:
    """A directory that everybody may enter, with files that only root of the host may open."""
    directory = fresh_root.parent / "decoys"
    directory.mkdir()
    directory.chmod(0o755)
    for name, mode in (("secret", 0o600), ("public", 0o644), ("writable", 0o666)):
        (directory / name).write_text(name)
        (directory / name).chmod(mode)
    return directory


OPEN_ALL = """
import errno
answer = {}
for path in PATHS:
    for name, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
        try:
            os.close(os.open(path, flags))
        except OSError as error:
            answer[f"{name} {path}"] = errno.errorcode[error.errno]
        else:
            answer[f"{name} {path}"] = "opened"
"""


def opened_inside(paths: list[str], **options: Any) -> dict[str, str]:
    answer = inside(f"PATHS = {paths!r}\n{OPEN_ALL}", **options)
    assert isinstance(answer, dict)
    return answer


@as_root
def test_what_only_host_root_may_read_stays_so_in_a_host_root(decoys: Path) -> None:
    # A HostRoot shows the host's own files: nothing of them becomes readable in it.
    paths = [f"{decoys}/{name}" for name in ("secret", "public")]
    options: dict[str, Any] = {
        "root": HostRoot(extra=[decoys]),
        "config": Config(capabilities=EVERYTHING),
    }
    opened = opened_inside(paths, **options)
    assert opened[f"read {decoys}/public"] == "opened"
    assert opened[f"read {decoys}/secret"] == "EACCES"
    assert {opened[f"write {path}"] for path in paths} <= {"EROFS", "EACCES"}
    assert lines(f"stat -c %u {decoys}/secret", **options) == ["65534"]


@as_root
def test_usr_of_the_host_is_nobodys_in_a_host_root() -> None:
    assert lines("stat -c '%u:%g' /usr /usr/bin/env") == ["65534:65534"] * 2


KERNEL_FILES = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sysrq-trigger",
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/kpageflags",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
    "/sys/kernel/uevent_helper",
]


@as_root
def test_no_file_of_the_kernel_opens_for_a_process_with_every_capability_of_its_namespace() -> None:
    paths = [path for path in KERNEL_FILES if os.path.exists(path)]
    # By their permissions alone: nothing is masked nor read-only.
    bare = Config(capabilities=EVERYTHING, masked_paths=(), readonly_paths=())
    opened = opened_inside(paths, config=bare)
    secret = {"/proc/kcore", "/proc/kmsg", "/proc/kpageflags", "/proc/sysrq-trigger"}
    for path in paths:
        assert opened[f"write {path}"] in {"EACCES", "EPERM", "EROFS", "ENOENT"}, path
        if path in secret:
            assert opened[f"read {path}"] in {"EACCES", "EPERM", "ENOENT"}, path
    # What belongs to its own namespaces does open: it is not that nothing does.
    own = "/proc/sys/net/ipv4/ip_forward"
    free = Config(capabilities=EVERYTHING, readonly_paths=())
    assert opened_inside([own], config=free)[f"write {own}"] == "opened"


@as_root
@pytest.mark.needs("cgroup2")
def test_no_cgroup_file_opens_for_writing_though_the_container_may_mount_them() -> None:
    source = """
    import errno, subprocess
    subprocess.run(["mount", "-t", "cgroup2", "none", "/mnt"], check=True)
    answer = {}
    for name in ("cgroup.procs", "cgroup.subtree_control", "memory.max", "cgroup.kill"):
        if not os.path.exists(f"/mnt/{name}"):
            continue
        try:
            os.close(os.open(f"/mnt/{name}", os.O_WRONLY))
        except OSError as error:
            answer[name] = errno.errorcode[error.errno]
        else:
            answer[name] = "opened"
    try:
        os.mkdir("/mnt/new")
        answer["mkdir"] = "made"
    except OSError as error:
        answer["mkdir"] = errno.errorcode[error.errno]
    """
    config = Config(capabilities=EVERYTHING, mounts=[Mount.tmpfs("/mnt")])
    answer = inside(source, config=config)
    assert "cgroup.procs" in answer
    assert set(answer.values()) == {"EACCES"}


@as_root
def test_a_process_with_every_capability_cannot_leave_its_root(decoys: Path) -> None:
    # The classical escapes: a chroot in a chroot, /proc/1/root, a device, the parent of the root.
    source = f"""
    answer = []
    def attempt(path):
        try:
            answer.append(open(path).read())
        except OSError:
            pass
    os.mkdir("/tmp/x")
    root = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/x")
    os.fchdir(root)
    for _ in range(40):
        os.chdir("..")
    os.chroot(".")
    for prefix in ("", "/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/.."):
        attempt(prefix + "{decoys}/secret")
        attempt(prefix + "{decoys}/public")
    """
    assert inside(source, config=Config(capabilities=EVERYTHING)) == []


@as_root
def test_a_container_cannot_touch_the_processes_of_another_or_of_the_host(
    fresh_root: Path,
) -> None:
    # With the host's pids in sight it would be the ids that keep it out: see a bound /proc.
    config = Config(
        capabilities=EVERYTHING, mounts=[Mount.bind("/proc", "/mnt/proc", read_only=True)]
    )
    me = os.getpid()
    script = f"exec 2>&1; cat /mnt/proc/{me}/environ; ls /mnt/proc/{me}/fd; cat /mnt/proc/{me}/mem"
    output = attempt(script, root=fresh_root, config=config).stdout
    assert output.count("Permission denied") == 3


# Ids of the caller's choice -----------------------------------------------------------------------


@as_root
def test_id_maps_may_be_given() -> None:
    maps = [IDMapping(0, 300_000, 1000), IDMapping(1000, 400_000, 10)]
    config = Config(uid_mappings=maps, gid_mappings=maps[:1])
    assert [line.split() for line in lines(MAP, config=config)] == [
        *(["0", "300000", "1000"], ["1000", "400000", "10"]),
        *(["0", "300000", "1000"],),
    ]


@as_root
def test_a_map_to_host_root_is_had_by_asking_for_it() -> None:
    config = Config(uid_mappings=[IDMapping(0, 0, 1)], gid_mappings=[IDMapping(0, 0, 1)])
    assert lines(MAP, config=config) == ["         0          0          1"] * 2


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"user": 1}, "user"),
        ({"user": "0:1"}, "user"),
        ({"groups": (1,)}, "groups[0]"),
    ],
)
@as_root
def test_an_id_without_a_mapping_is_refused(options: dict[str, Any], field: str) -> None:
    one = [IDMapping(0, 300_000, 1)]
    with Container(Config(uid_mappings=one, gid_mappings=one)) as box:
        with pytest.raises(ConfigError) as caught:
            box.run(Process(["true"], **options))
        assert caught.value.field == field


@as_root
def test_a_map_without_id_0_is_refused() -> None:
    maps = [IDMapping(1, 300_000, 1)]
    with pytest.raises(UnsupportedError) as caught:
        container.run(["true"], config=Config(uid_mappings=maps, gid_mappings=maps))
    assert caught.value.field == "uid_mappings"


@as_root
def test_without_a_user_namespace_root_is_root() -> None:
    config = Config(namespaces=Namespaces(user=False))
    assert lines("cat /proc/self/uid_map; id -u", config=config) == [
        "         0          0 4294967295",
        "0",
    ]


@as_root
@pytest.mark.parametrize(
    ("user", "ids"),
    [
        (None, ["0", "0", "0"]),
        (5, ["5", "0", "0"]),
        ("5", ["5", "0", "0"]),
        ("5:6", ["5", "6", "6"]),
        ("65535:65535", ["65535", "65535", "65535"]),
    ],
)
def test_user_and_groups_are_those_asked_for_with_the_primary_group_among_them(
    user: Any, ids: list[str]
) -> None:
    # CVE-2022-2989 and its like: a group that is to be denied must be among them.
    assert lines("id -u; id -g; id -G", user=user) == ids


@as_root
def test_supplementary_groups_come_after_the_primary_one() -> None:
    with Container() as box:
        box.run(Process(["id", "-G"], user="5:6", groups=(7, 6, 8), stdout=container.PIPE))
        assert box.stdout is not None
        assert set(box.stdout.read().split()) == {b"6", b"7", b"8"}


@as_root
def test_a_file_that_denies_a_group_denies_it(fresh_root: Path) -> None:
    path = fresh_root / "denied"
    path.write_text("not for group 6")
    os.chown(path, 0, 6)
    path.chmod(0o604)
    assert attempt("cat /denied", root=fresh_root, user="5:6").returncode != 0
    assert shell("cat /denied", root=fresh_root, user="5:7") == "not for group 6"


@as_root
def test_host_root_is_not_mapped_where_it_is_all_that_there_is() -> None:
    # In a user namespace with host root alone there is no other id to be had.
    source = """
    try:
        run(["true"])
    except UnsupportedError as error:
        tell(error.field)
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *caller_argv(source)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr) == ('"namespaces.user"\n', "")


# An ordinary user ---------------------------------------------------------------------------------


@pytest.mark.needs("rootless")
def test_an_ordinary_users_container_has_its_one_id_as_root(as_user: AsUser) -> None:
    done = as_user(
        """
        import container
        script = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -g"
        print(container.run(["sh", "-c", script], text=True, check=True).stdout)
        """
    )
    assert done.stderr == ""
    words = done.stdout.split()
    assert words == ["0", str(as_user.uid), "1", "0", str(as_user.gid), "1", "deny", "0", "0"]


@pytest.mark.needs("rootless")
def test_an_ordinary_users_new_files_are_its_own(as_user: AsUser) -> None:
    done = as_user(
        """
        import container, os
        os.mkdir("data")
        container.run(["sh", "-c", "echo x >/data/file"], binds=[f"{os.getcwd()}/data:/data"],
                      check=True)
        """
    )
    assert done.stderr == ""
    status = (as_user.home / "data/file").stat()
    assert (status.st_uid, status.st_gid) == (as_user.uid, as_user.gid)


@pytest.mark.needs("rootless", "single_id")
def test_what_a_single_id_cannot_have_is_refused_and_named(as_user: AsUser) -> None:
    done = as_user(
        """
        import container
        from container import *
        one = [IDMapping(0, 100000, 65536)]
        for make in (
            lambda: container.run(["true"], user=1000),
            lambda: Container().run(Process(["true"], groups=(0,))),
            lambda: container.run(["true"], config=Config(uid_mappings=one, gid_mappings=one)),
            lambda: container.run(["true"], config=Config(namespaces=Namespaces(user=False))),
        ):
            try:
                make()
            except ContainerError as error:
                print(type(error).__name__, getattr(error, "field", getattr(error, "step", None)))
        """
    )
    assert done.stderr == ""
    programs = shutil.which("newuidmap") and shutil.which("newgidmap")
    assert done.stdout.splitlines() == [
        "ConfigError user",
        "UnsupportedError groups",
        "LaunchPermissionError id-maps" if programs else "UnsupportedError uid_mappings",
        "LaunchPermissionError clone",
    ]


@pytest.mark.needs("root", "rootless")
def test_an_ordinary_user_gets_no_file_that_it_could_not_read(
    as_user: AsUser, decoys: Path
) -> None:
    done = as_user(
        f"""
        import container
        from container import *
        config = Config(capabilities=Capabilities.all(), mounts=[Mount.bind("{decoys}", "/data")])
        script = "cat /data/public; cat /data/secret; echo x >/data/new"
        result = container.run(["sh", "-c", script], config=config, text=True)
        print(result.stdout)
        print(result.stderr.count("Permission denied"))
        """
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["public", "2"]


@pytest.mark.needs("rootless")
def test_an_ordinary_user_with_every_capability_cannot_unlock_a_read_only_mount(
    as_user: AsUser,
) -> None:
    done = as_user(
        """
        import container, os
        from container import *
        os.mkdir("data")
        config = Config(
            capabilities=Capabilities.all(),
            mounts=[Mount.bind(os.path.abspath("data"), "/data", read_only=True)],
        )
        script = "mount -o remount,bind,rw /data && echo done; echo x >/data/x && echo written"
        print(container.run(["sh", "-c", script], config=config, text=True).stdout)
        print(os.listdir("data"))
        """
    )
    assert (done.stdout.split(), done.stderr) == (["[]"], "")
