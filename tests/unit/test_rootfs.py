# SPDX-License-Identifier: Apache-2.0
"""From a Config to the rows of a file system: golden lists, and what holds for every list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import (
    Capabilities,
    Config,
    Device,
    HostRoot,
    IDMapping,
    Join,
    Mount,
    MountFlags,
    Namespaces,
    Overlay,
    UnsupportedError,
)
from container._native import ffi
from container._rootfs import (
    Attribute,
    HostLayout,
    Op,
    Row,
    RowFlag,
    Surroundings,
    host_layout,
    needs_locked_mounts,
    place_of,
    plan_rows,
    plan_stage,
)

LAYOUT = HostLayout(
    links=(("bin", "usr/bin"), ("lib64", "usr/lib64")),
    directories=("lib32",),
    etc=("ld.so.cache", "ssl/certs"),
    prefixes=("/opt/python",),
)
LEASED = Surroundings(idmap=True, gid_mappings=(IDMapping(0, 65536 << 4, 65536),))
ONE_ID = Surroundings(idmap=False, gid_mappings=(IDMapping(0, 1000, 1),), by_fd=False)
NO_NAMESPACE = Surroundings(idmap=False, gid_mappings=())


def line_of(row: Row) -> str:
    """A row in words: what, where, from what, how."""
    words = [row.op.name.lower(), f"{row.base}:/{row.target}"]
    if row.source:
        words.append(f"<- {row.source}")
    if row.data:
        words.append(row.data.decode().rstrip("\0").replace("\0", " ").replace("\n", "|"))
    if row.mode:
        words.append(f"{row.mode:o}")
    if row.device != (0, 0):
        words.append("{}:{}".format(*row.device))
    flags = [*RowFlag(row.flags), *Attribute(row.attributes)]
    words += ["+" + "+".join(str(flag.name).lower() for flag in flags)] if flags else []
    return " ".join(words + (["opened"] if row.opened else []))


def plan(config: Config, around: Surroundings) -> list[str]:
    return [line_of(row) for row in plan_rows(config, LAYOUT, around)]


MASKED_IN_PROC = (
    *("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug"),
    *("scsi", "timer_list", "timer_stats"),
)


def covers(proc: int) -> list[str]:
    """What is over everything else, and last: below the procfs of row `proc`, and the sysfs."""
    return [
        *(f"mask {proc}:/{name} +optional" for name in MASKED_IN_PROC),
        f"mask {proc + 1}:/devices/virtual/powercap +optional",
        f"mask {proc + 1}:/firmware +optional",
        *(f"read_only {proc}:/{name} +optional" for name in ("bus", "fs", "irq", "sys")),
        f"read_only {proc}:/sysrq-trigger +optional",
    ]


COVERS = len(covers(0))


def limit(proc: int, *flags: str) -> str:
    """No user namespace below the container's, by the procfs of row `proc`."""
    words = ["write", f"{proc}:/sys/user/max_user_namespaces", "0", *flags]
    return " ".join(words)


def kernel(dev: int, *, tty: bool, user: bool = True) -> list[str]:
    """/proc, /sys and /dev, which is row `dev`; with a group for terminals or without."""
    flags = "+check_device+make_file+new_target+read_only"
    # One that is ours, or in a user namespace, where none would open, the host's.
    node, mode = ("bind", "20000") if user else ("device", "20666")
    return [
        "mount 0:/proc <- proc +make_directory+no_symlinks+nosuid+nodev+noexec",
        "mount 0:/sys <- sysfs +make_directory+no_symlinks+read_only+nosuid+nodev+noexec",
        *([limit(dev - 3)] if user else []),
        "mount 0:/dev <- tmpfs mode 0755 size 65536k +make_directory+no_symlinks+nosuid+noexec",
        f"{node} {dev}:/null <- /dev/null {mode} 1:3 {flags}",
        f"{node} {dev}:/zero <- /dev/zero {mode} 1:5 {flags}",
        f"{node} {dev}:/full <- /dev/full {mode} 1:7 {flags}",
        f"{node} {dev}:/random <- /dev/random {mode} 1:8 {flags}",
        f"{node} {dev}:/urandom <- /dev/urandom {mode} 1:9 {flags}",
        f"{node} {dev}:/tty <- /dev/tty {mode} 5:0 {flags}",
        f"symlink {dev}:/fd <- /proc/self/fd",
        f"symlink {dev}:/stdin <- /proc/self/fd/0",
        f"symlink {dev}:/stdout <- /proc/self/fd/1",
        f"symlink {dev}:/stderr <- /proc/self/fd/2",
        f"symlink {dev}:/ptmx <- pts/ptmx",
        f"mount {dev}:/pts <- devpts ptmxmode 0666 mode 0620{' gid 5' if tty else ''}"
        " +make_directory+new_target+nosuid+noexec",
        f"mount {dev}:/shm <- tmpfs mode 1777 size 65536k"
        " +make_directory+new_target+nosuid+nodev+noexec",
    ]


HOST = "+recursive+read_only+nosuid+nodev opened"

HOST_ROOT = [
    "mount 0:/ <- tmpfs mode 0755 +nosuid+nodev",
    "directory 0:/etc 755",
    "directory 0:/home 755",
    "directory 0:/run 755",
    "directory 0:/var 755",
    "directory 0:/root 700",
    "directory 0:/tmp 1777",
    "directory 0:/var/tmp 1777",
    "symlink 0:/var/run <- /run",
    f"bind 0:/usr <- /usr {HOST}",
    "symlink 0:/bin <- usr/bin",
    "symlink 0:/lib64 <- usr/lib64",
    f"bind 0:/lib32 <- /lib32 {HOST}",
    "file 0:/etc/passwd root:x:0:0:root:/root:/bin/sh"
    "|nobody:x:65534:65534:nobody:/nonexistent:/bin/false| 644",
    "file 0:/etc/group root:x:0:|tty:x:5:|nogroup:x:65534:| 644",
    "file 0:/etc/nsswitch.conf passwd: files|group: files|shadow: files|hosts: files dns"
    "|services: files| 644",
    "file 0:/etc/hosts 127.0.0.1 localhost|::1 localhost|127.0.1.1 container| 644",
    "symlink 0:/etc/mtab <- ../proc/self/mounts",
    "file 0:/etc/resolv.conf 644",
    f"bind 0:/etc/ld.so.cache <- /etc/ld.so.cache {HOST}",
    f"bind 0:/etc/ssl/certs <- /etc/ssl/certs {HOST}",
    f"bind 0:/opt/python <- /opt/python {HOST}",
]


def test_a_directory_root_of_a_root_caller() -> None:
    assert plan(Config("/srv/root"), LEASED) == [
        "bind 0:/ <- /srv/root +recursive+idmap+nosuid+nodev opened",
        *kernel(4, tty=True),
        *covers(1),
    ]


def test_a_directory_root_of_an_ordinary_user() -> None:
    assert plan(Config("/srv/root"), ONE_ID) == [
        "bind 0:/ <- /srv/root +recursive+nosuid+nodev opened",
        *kernel(4, tty=False),
        *covers(1),
    ]


@pytest.mark.parametrize("root", [None, HostRoot()])
def test_a_host_root_of_a_root_caller(root: HostRoot | None) -> None:
    expected = [*HOST_ROOT, *kernel(len(HOST_ROOT) + 3, tty=True), *covers(len(HOST_ROOT))]
    assert plan(Config(root), LEASED) == expected


def test_a_host_root_of_an_ordinary_user_is_the_same() -> None:
    expected = [*HOST_ROOT, *kernel(len(HOST_ROOT) + 3, tty=False), *covers(len(HOST_ROOT))]
    assert plan(Config(), ONE_ID) == expected


def test_nothing_of_the_host_is_idmapped_in_a_host_root() -> None:
    # With mapped ids what only root of the host may read would be the container's root's.
    config = Config(HostRoot(extra=["/srv/data"]))
    rows = plan_rows(config, LAYOUT, LEASED)
    assert "/srv/data" in [row.source for row in rows]
    assert not [line_of(row) for row in rows if row.flags & RowFlag.IDMAP]


def test_mounts_come_before_the_covers_and_in_their_order() -> None:
    mounts = [
        Mount.tmpfs("/data", size="1M", mode=0o700),
        Mount.bind("/srv/in", "/data/in", read_only=True),
        Mount.bind("out", "/data/out"),
    ]
    expected = [
        "mount 0:/data <- tmpfs size 1048576 mode 0700 +make_directory+nosuid+nodev",
        "bind 0:/data/in <- /srv/in +recursive+idmap+idmap_optional+read_only+nosuid+nodev opened",
        "bind 0:/data/out <- out +recursive+idmap+nosuid+nodev opened",
    ]
    assert plan(Config("/srv/root", mounts=mounts), LEASED)[-3 - COVERS :] == [
        *expected,
        *covers(1),
    ]
    without = [each.replace("+idmap", "").replace("_optional", "") for each in expected]
    assert plan(Config("/srv/root", mounts=mounts), ONE_ID)[-3 - COVERS :] == [
        *without,
        *covers(1),
    ]


def lines_of_mounts(mounts: Sequence[Mount], around: Surroundings = LEASED) -> list[str]:
    config = Config("/srv/root", mounts=mounts, masked_paths=(), readonly_paths=())
    return plan(config, around)[-len(mounts) :]


def test_file_systems_of_the_kernel_are_mounted_with_their_options() -> None:
    mounts = [
        Mount(None, "/a", "proc", data="hidepid=2,subset=pid", noexec=True),
        Mount(None, "/b", "sysfs", nosuid=False),
        Mount(None, "/c", "devpts"),
        Mount(None, "/d", "devpts", data="ptmxmode=0600"),
        Mount(None, "/e", "mqueue", read_only=True),
    ]
    assert lines_of_mounts(mounts) == [
        "mount 0:/a <- proc hidepid 2 subset pid +make_directory+nosuid+nodev+noexec",
        "mount 0:/b <- sysfs +make_directory+read_only+nodev",
        "mount 0:/c <- devpts ptmxmode 0666 mode 0620 gid 5 +make_directory+nosuid",
        "mount 0:/d <- devpts ptmxmode 0600 +make_directory+nosuid",
        "mount 0:/e <- mqueue +make_directory+read_only+nosuid+nodev",
    ]


def test_what_is_said_of_a_bind_is_in_its_row() -> None:
    mounts = [
        Mount.bind("/srv/a", "/a"),
        Mount("/srv/b", "/b", "bind", MountFlags.SLAVE, recursive=False, noexec=True),
        Mount("/srv/c", "/c", "bind", MountFlags.SHARED, idmap=False, nodev=False, nosuid=False),
        Mount("/srv/d", "/d", "bind", idmap=True, read_only=True),
        Mount(
            *("/srv/e", "/e", "bind"),
            uid_mappings=[IDMapping(0, 5, 1), IDMapping(1, 100, 2)],
            gid_mappings=[IDMapping(0, 6, 1)],
        ),
    ]
    assert lines_of_mounts(mounts) == [
        "bind 0:/a <- /srv/a +recursive+idmap+nosuid+nodev opened",
        "bind 0:/b <- /srv/b +idmap+slave+nosuid+nodev+noexec opened",
        "bind 0:/c <- /srv/c +recursive+shared opened",
        "bind 0:/d <- /srv/d +recursive+idmap+read_only+nosuid+nodev opened",
        "bind 0:/e <- /srv/e 0 5 1|1 100 2| 0 6 1| +recursive+own_maps+nosuid+nodev opened",
    ]


@pytest.mark.parametrize(
    ("options", "around", "field"),
    [
        ({"idmap": True}, ONE_ID, "mounts[0].idmap"),
        ({"idmap": True}, NO_NAMESPACE, "mounts[0].idmap"),
        (
            {"uid_mappings": [IDMapping(0, 5, 1)], "gid_mappings": [IDMapping(0, 5, 1)]},
            ONE_ID,
            "mounts[0].uid_mappings",
        ),
    ],
)
def test_ids_that_cannot_be_mapped_are_not_left_unmapped(
    options: dict[str, Any], around: Surroundings, field: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        lines_of_mounts([Mount("/srv", "/a", "bind", **options)], around)
    assert caught.value.field == field


def test_a_shared_mount_is_refused_where_locking_the_mounts_would_end_that() -> None:
    mounts = [Mount("/srv/b", "/b", "bind", MountFlags.SHARED)]
    with pytest.raises(UnsupportedError) as caught:
        plan(Config("/srv/root", mounts=mounts, capabilities=Capabilities.all()), LEASED)
    assert caught.value.field == "mounts[0].flags"


def test_a_read_only_root_is_made_so_last_and_what_lies_in_it_first() -> None:
    config = Config("/srv/root", read_only_root=True, mounts=[Mount.tmpfs("/data")])
    lines = plan(config, LEASED)
    assert lines[1:3] == ["attributes 0:/ +recursive+read_only", "attributes 0:/ 1 +may_fail"]
    assert lines[-2 - COVERS : -COVERS] == [
        "mount 0:/data <- tmpfs +make_directory+nosuid+nodev",
        "attributes 0:/ +read_only",
    ]
    for root in (None, Overlay("/srv/root")):
        lines = plan(Config(root, read_only_root=True), LEASED)
        changes = [line for line in lines if line.startswith("attributes")]
        assert changes == lines[-1 - COVERS : -COVERS] == ["attributes 0:/ +read_only"]


# Overlays -------------------------------------------------------------------------------------


def stage(root: Overlay, around: Surroundings) -> list[str]:
    return [line_of(row) for row in plan_stage(Config(root), around)]


STAGE = "mount 0:/ <- tmpfs mode 700"


def test_an_overlay_is_made_of_short_names_in_a_stage_of_its_own() -> None:
    rows = plan_stage(Config(Overlay(["/srv/a,b:c", "d"])), LEASED)
    assert [line_of(row).split(" +")[0].removesuffix(" opened") for row in rows] == [
        STAGE,
        "bind 0:/0 <- /srv/a,b:c",
        "bind 0:/1 <- d",
        *("directory 0:/m 755", "directory 0:/u 755", "directory 0:/w 755"),
    ]
    layer = RowFlag.NEW_TARGET | RowFlag.IDMAP
    safe = Attribute.READ_ONLY | Attribute.NOSUID | Attribute.NODEV
    assert [(row.flags, row.attributes) for row in rows[1:3]] == [(layer, safe)] * 2
    assert all(row.opened and row.directory for row in rows[1:3])
    root, *_ = plan(Config(Overlay(["/srv/a,b:c", "d"])), LEASED)
    assert root == ("overlay 0:/ <- m lowerdir=0:1,upperdir=u,workdir=w,userxattr +nosuid+nodev")


def test_an_overlay_without_a_user_namespace_has_the_attributes_of_root() -> None:
    root, *_ = plan(Config(Overlay("/srv"), Namespaces(user=False)), NO_NAMESPACE)
    assert root == "overlay 0:/ <- m lowerdir=0,upperdir=u,workdir=w +nosuid+nodev"


@pytest.mark.parametrize(
    ("work", "rows"),
    [
        (None, ["bind 0:/p <- /k", "handle 3:/up <- u", "handle 3:/up.work <- w 700"]),
        ("/k/a/b", ["bind 0:/p <- /k", "handle 3:/up <- u", "handle 3:/a/b <- w"]),
        ("/w", ["bind 0:/p <- /", "handle 3:/k/up <- u", "handle 3:/w <- w"]),
    ],
)
def test_upper_and_work_are_looked_up_below_what_they_have_in_common(
    work: str | None, rows: list[str]
) -> None:
    made = [line.split(" +")[0] for line in stage(Overlay("/srv", "/k/up", work), ONE_ID)]
    assert [line.removesuffix(" opened") for line in made[3:]] == rows


def test_a_directory_of_an_overlay_is_idmapped_for_a_root_caller_only() -> None:
    overlay = Overlay("/srv", "/k/up")
    for around, wanted in ((LEASED, 2), (ONE_ID, 0)):
        rows = plan_stage(Config(overlay), around)
        assert sum(bool(row.flags & RowFlag.IDMAP) for row in rows) == wanted
        assert not any(row.flags & RowFlag.IDMAP_OPTIONAL for row in rows)


def test_the_field_of_a_mount_is_where_it_was_written() -> None:
    config = Config(
        HostRoot(extra=["/srv/a", Mount.tmpfs("/b")]), mounts=[Mount.tmpfs("/c"), Mount.tmpfs("/d")]
    )
    fields = [row.field for row in plan_rows(config, LAYOUT, LEASED)]
    assert fields[-4 - COVERS : -COVERS] == [
        *("root.extra[0]", "root.extra[1]", "mounts[0]", "mounts[1]")
    ]
    assert fields[-1] == "readonly_paths[4]"


def test_with_new_privileges_set_user_id_programs_of_the_image_may_work() -> None:
    config = Config(
        "/srv/root",
        no_new_privileges=False,
        mounts=[Mount.bind("/srv/in", "/data")],
        masked_paths=(),
        readonly_paths=(),
    )
    lines = plan(config, LEASED)
    assert "nosuid" not in lines[0]
    assert "nosuid" not in lines[-1]
    # The rest is nobody's image.
    assert [line for line in lines[1:-1] if line.startswith("mount") and "nosuid" not in line] == []


def test_sysfs_is_the_hosts_where_the_network_is() -> None:
    # It belongs to the owner of the network namespace: a new one cannot be mounted.
    shared = Config("/srv/root", Namespaces(net=False))
    assert plan(shared, LEASED)[2] == (
        "bind 0:/sys <- /sys +recursive+make_directory+no_symlinks"
        "+read_only+nosuid+nodev+noexec opened"
    )
    assert plan(Config("/srv/root", Namespaces(net=False, user=False)), NO_NAMESPACE)[2] == (
        "mount 0:/sys <- sysfs +make_directory+no_symlinks+read_only+nosuid+nodev+noexec"
    )


def test_a_proc_of_shared_pids_is_made_by_who_may() -> None:
    flags = "+no_symlinks+nosuid+nodev+noexec opened"
    path = Join(path="/proc/7/ns/pid")
    by_launcher = f"bind 0:/proc <- /proc{{}} {flags.replace('nosuid', 'procfs+nosuid')}"
    for pid, user, around, line in (
        (False, True, LEASED, by_launcher.format("")),
        (path, True, LEASED, by_launcher.format("")),
        (path, path, LEASED, by_launcher.format("")),
        # Who has the rights for it mounts one as ever.
        (path, False, LEASED, kernel(4, tty=True)[0]),
        (path, path, ONE_ID, kernel(4, tty=True)[0]),
        # The caller's own for want of a new one.
        (False, True, ONE_ID, f"bind 0:/proc <- /proc +recursive{flags}"),
        (False, True, replace(LEASED, owns_pids=False), f"bind 0:/proc <- /proc +recursive{flags}"),
    ):
        config = Config("/srv/root", Namespaces(user=user, pid=pid))
        assert plan(config, around)[1] == line
    hidden = Config("/srv/root", Namespaces(pid=False), proc_options="hidepid=2,subset=pid")
    lines = plan(hidden, LEASED)
    assert lines[1] == by_launcher.format(" hidepid 2 subset pid")
    assert lines[3] == "bind 0:/ <- /proc +detached+procfs+nosuid+nodev+noexec opened"
    with pytest.raises(UnsupportedError) as caught:
        plan(hidden, ONE_ID)
    assert caught.value.field == "proc_options"
    mount = Mount(None, "/other", "proc", data="subset=pid")
    with pytest.raises(UnsupportedError) as caught:
        plan(Config("/srv/root", Namespaces(pid=False), mounts=[mount]), ONE_ID)
    assert caught.value.field == "mounts[0].data"


def test_names_are_resolved_as_the_host_does_where_the_network_is_the_hosts() -> None:
    lines = plan(Config(namespaces=Namespaces(net=False)), LEASED)
    assert f"bind 0:/etc/resolv.conf <- /etc/resolv.conf {HOST}" in lines


def test_terminals_have_their_group_where_there_are_all_ids() -> None:
    config = Config("/srv/root", Namespaces(user=False))
    assert plan(config, NO_NAMESPACE)[1:] == [*kernel(3, tty=True, user=False), *covers(1)]


def test_devices_come_with_those_that_are_always_there_and_in_directories_of_their_own() -> None:
    config = Config(
        "/srv/root",
        devices=[
            Device("/dev/net/tun", "c", 10, 200),
            Device("/dev/net/b/x", "b", 7, 1),
            Device("/dev/zero", "c", 1, 3),
        ],
    )
    around = replace(LEASED, nodes=(("/dev/net/tun", "/dev/tun0"),))
    lines = [line_of(row) for row in plan_rows(config, LAYOUT, around)][5:15]
    assert [line.split(" ")[1] for line in lines[:5]] == [
        *("4:/null", "4:/full", "4:/random", "4:/urandom", "4:/tty")
    ]
    assert lines[5:] == [
        "directory 4:/net 755",
        "bind 4:/net/tun <- /dev/tun0 20000 10:200 +check_device+make_file+read_only",
        "directory 4:/net/b 755",
        "bind 4:/net/b/x <- /dev/net/b/x 60000 7:1 +check_device+make_file+read_only",
        "bind 4:/zero <- /dev/zero 20000 1:3 +check_device+make_file+new_target+read_only",
    ]


def test_devices_are_made_where_the_ids_are_the_hosts() -> None:
    config = Config(
        "/srv/root",
        Namespaces(user=False),
        devices=[Device("/dev/x", "b", 7, 300, 0o640, 5, 6)],
    )
    rows = plan_rows(config, LAYOUT, NO_NAMESPACE)
    (row,) = (row for row in rows if row.target == "x")
    assert (row.op, row.source, row.mode, row.device, row.owner, row.field) == (
        *(Op.DEVICE, "", 0o60640, (7, 300), (5, 6), "devices[0]"),
    )


def test_without_a_dev_of_ours_there_is_nothing_of_it() -> None:
    lines = plan(Config("/srv/root", setup_dev=False), LEASED)
    assert [line for line in lines if "/dev" in line and "devices" not in line] == []


TERMINAL = replace(LEASED, tty=True)


def rows_of_terminal(config: Config) -> list[tuple[str, str, str]]:
    """What each is, the mount that it lies in, and its name there."""
    rows = plan_rows(config, LAYOUT, TERMINAL)
    found = [row for row in rows if row.op in (Op.TERMINAL, Op.CONSOLE)]
    assert all(row.field == "tty" for row in found)
    return [(row.op.name, place_of(rows, rows[row.base]), row.target) for row in found]


def test_a_terminal_is_opened_in_our_own_devpts_and_bound_in_our_own_dev() -> None:
    assert rows_of_terminal(Config()) == [
        ("TERMINAL", "/dev/pts", ""),
        ("CONSOLE", "/dev", "console"),
    ]
    assert not [line for line in plan(Config(), LEASED) if "console" in line]


def test_the_devpts_of_a_terminal_is_the_last_one_and_never_the_images() -> None:
    devpts = Mount("devpts", "/dev/pts", type="devpts")
    mounts = [Mount.tmpfs("/dev"), devpts]
    config = Config("/srv/root", setup_dev=False, mounts=mounts)
    assert rows_of_terminal(config) == [
        ("TERMINAL", "/dev/pts", ""),
        ("CONSOLE", "/dev", "console"),
    ]
    # Where /dev is the image's, what is in there is not touched.
    config = Config("/srv/root", setup_dev=False, mounts=[devpts])
    assert rows_of_terminal(config) == [("TERMINAL", "/dev/pts", "")]
    console = Config(mounts=[Mount.bind("/x", "/dev/console")])
    assert rows_of_terminal(console) == [("TERMINAL", "/dev/pts", "")]
    for mounts in ([], [Mount.tmpfs("/dev/pts")], [devpts, Mount.bind("/dev", "/dev")]):
        with pytest.raises(UnsupportedError) as caught:
            rows_of_terminal(Config("/srv/root", setup_dev=False, mounts=mounts))
        assert caught.value.field == "tty"


def test_the_hostname_is_in_etc_hosts() -> None:
    lines = plan(Config(hostname="web-1"), LEASED)
    assert "file 0:/etc/hosts 127.0.0.1 localhost|::1 localhost|127.0.1.1 web-1| 644" in lines


# What is covered and written ----------------------------------------------------------------------


def walls(config: Config) -> list[str]:
    """The rows that take something away or write, of a container with a directory as root."""
    words = ("mask", "read_only", "write")
    return [line for line in plan(config, LEASED) if line.split()[0] in words]


def test_paths_that_are_given_replace_the_default_ones() -> None:
    config = Config("/srv/root", masked_paths=["/etc/secret", "/a//b/"], readonly_paths=["/data"])
    assert walls(config) == [
        limit(1),
        "mask 0:/etc/secret +optional",
        "mask 0:/a/b +optional",
        "read_only 0:/data +optional",
    ]
    assert walls(Config("/srv/root", masked_paths=[], readonly_paths=[])) == [limit(1)]


def test_a_path_is_covered_below_the_last_mount_that_it_lies_in() -> None:
    config = Config(
        "/srv/root",
        nested=True,
        mounts=[Mount.tmpfs("/data/below"), Mount.tmpfs("/data"), Mount.tmpfs("/database")],
        masked_paths=["/data/below/x", "/data", "/dataset", "/database/y", "/dev/shm/z", "/dev/x"],
    )
    rows = plan_rows(config, LAYOUT, LEASED)
    masks = [row for row in rows if row.op == Op.MASK]
    found = [(rows[row.base].target, row.target) for row in masks]
    assert found == [
        *(("data", "below/x"), ("data", "."), ("", "dataset"), ("database", "y")),
        *(("shm", "z"), ("dev", "x")),
    ]
    assert [place_of(rows, row) for row in masks] == list(config.masked_paths or ())


def test_where_containers_shall_nest_nothing_is_covered_but_what_is_asked_for() -> None:
    assert walls(Config("/srv/root", nested=True)) == []
    config = Config("/srv/root", nested=True, masked_paths=["/etc/secret"])
    assert walls(config) == ["mask 0:/etc/secret +optional"]


def test_the_limit_of_user_namespaces_waits_for_the_one_that_locks_the_mounts() -> None:
    config = Config("/srv/root", capabilities=Capabilities.all())
    assert walls(config)[0] == limit(1, "+late")


def test_sysctls_come_in_their_order_and_before_any_mount_that_was_asked_for() -> None:
    config = Config(
        "/srv/root",
        sysctl={
            "net.ipv4.conf.eth0/1.forwarding": "1",
            "net/ipv4/conf/eth0.1/proxy_arp": "0",
            "kernel.sem": "1 2 3 4",
            "fs.mqueue.msg_max": "5",
        },
        mounts=[Mount.tmpfs("/proc/sys/net")],
    )
    lines = plan(config, LEASED)
    assert lines[3:8] == [
        "write 1:/sys/net/ipv4/conf/eth0.1/forwarding 1",
        "write 1:/sys/net/ipv4/conf/eth0.1/proxy_arp 0",
        "write 1:/sys/kernel/sem 1 2 3 4",
        "write 1:/sys/fs/mqueue/msg_max 5",
        limit(1),
    ]


def test_a_proc_with_pids_only_is_not_the_one_that_is_written_to() -> None:
    config = Config("/srv/root", proc_options="hidepid=2,subset=pid")
    lines = plan(config, LEASED)
    assert lines[1].startswith("mount 0:/proc <- proc hidepid 2 subset pid +")
    assert lines[3:5] == ["mount 0:/ <- proc +detached+nosuid+nodev+noexec", limit(3)]
    assert lines[-COVERS:] == covers(1)


# What holds for every list ------------------------------------------------------------------------

targets = st.text("abc/. ", min_size=1, max_size=12).map(lambda text: f"/{text}")


def is_target(path: str) -> bool:
    return path.strip("/.") != "" and ".." not in path.split("/")


mounts = st.lists(
    st.tuples(targets.filter(is_target), st.sampled_from(["tmpfs", "bind", "read-only"])),
    max_size=5,
)


def make(given_mounts: Sequence[tuple[str, str]]) -> list[Mount]:
    made = {
        Mount.tmpfs(target).target: Mount.tmpfs(target)
        if kind == "tmpfs"
        else Mount.bind("/srv", target, read_only=kind == "read-only")
        for target, kind in given_mounts
    }
    return list(made.values())


@given(
    st.sampled_from(["/srv/root", None, HostRoot(extra=["/opt/x"]), Overlay("/srv", "/up")]),
    mounts,
    st.booleans(),
    st.booleans(),
    st.sampled_from([LEASED, ONE_ID]),
)
def test_every_list_is_one_that_the_launcher_can_carry_out(
    root: str | HostRoot | Overlay | None,
    given_mounts: list[tuple[str, str]],
    net: bool,
    no_new_privileges: bool,
    around: Surroundings,
) -> None:
    config = Config(
        root, Namespaces(net=net), mounts=make(given_mounts), no_new_privileges=no_new_privileges
    )
    rows = plan_rows(config, LAYOUT, around)
    assert rows[0].target == ""
    for index, row in enumerate(rows):
        # What lies in a mount comes after it.
        assert row.base < max(index, 1)
        assert rows[row.base].op in {Op.BIND, Op.MOUNT, Op.OVERLAY}
        assert not row.target.startswith("/")
        assert row.target or index == 0 or row.op == Op.ATTRIBUTES or row.flags & RowFlag.DETACHED
        # A source is opened by the caller, or is a device that the child checks.
        if row.op == Op.BIND:
            assert row.opened or row.flags & RowFlag.CHECK_DEVICE
        if row.op == Op.MOUNT:
            assert row.data == b"" or (row.data.endswith(b"\0") and row.data.count(b"\0") % 2 == 0)
        # Where an image could have put a link, none is followed for what we mount ourselves.
        if row.base == 0 and row.target in {"proc", "sys", "dev"}:
            assert row.flags & RowFlag.NO_SYMLINKS
    host = [row for row in rows if row.opened and row.source in {"/usr", "/opt/x", "/lib32"}]
    assert all(row.attributes & Attribute.READ_ONLY for row in host)


def test_every_flag_of_a_row_and_every_kind_has_its_number_in_the_contract() -> None:
    for enum, prefix, members in (
        ("enum row_op", "ROW_", Op),
        ("enum row_flag", "ROW_", RowFlag),
    ):
        numbers = ffi.typeof(enum).relements
        assert numbers == {f"{prefix}{name}": m.value for name, m in members.__members__.items()}


@pytest.mark.parametrize(
    ("config", "locked"),
    [
        (Config(), False),
        (Config(capabilities=Capabilities.all()), True),
        (Config(capabilities=Capabilities(["SYS_ADMIN"], (), ["SYS_ADMIN"])), True),
        # The bounding set is what an exec as root brings back, unless there are no new privileges.
        (Config(capabilities=Capabilities(["SYS_ADMIN"])), False),
        (Config(capabilities=Capabilities(["SYS_ADMIN"]), no_new_privileges=False), True),
        (Config(namespaces=Namespaces(user=False), capabilities=Capabilities.all()), False),
    ],
)
def test_mounts_are_locked_where_the_container_could_change_them(
    config: Config, locked: bool
) -> None:
    assert needs_locked_mounts(config) is locked


def test_the_layout_of_this_host_has_what_is_there_and_nothing_twice() -> None:
    layout = host_layout(0)
    names = [name for name, _ in layout.links] + list(layout.directories)
    assert len(set(names)) == len(names)
    assert {"bin", "lib"} <= set(names)
    for prefix in layout.prefixes:
        assert prefix.startswith("/")
        assert not prefix.startswith("/usr/")
        assert not any(prefix.startswith(f"{other}/") for other in layout.prefixes)
