# SPDX-License-Identifier: Apache-2.0
"""From a Config to the rows of the container's file system. Pure but for `host_layout`.

A `Row` is one line of what the child does (``enum row_op`` of csrc/launcher.h), in the order of
the list. Row 0 makes the root; the target of every other row is a path below the mount that its
``base`` row made, so that what we build in our own ``/dev`` can never resolve through the image.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from functools import cache

from container._capabilities import Capability
from container._config import Config, HostRoot, IDMapping, Mount
from container._walls import masked_paths, proc_writes, readonly_paths


class Op(IntEnum):
    """``enum row_op``."""

    BIND = 1
    MOUNT = 2
    DIRECTORY = 3
    FILE = 4
    SYMLINK = 5
    MASK = 6
    READ_ONLY = 7
    WRITE = 8


class RowFlag(IntFlag):
    """``enum row_flag``."""

    RECURSIVE = 1 << 0
    IDMAP = 1 << 1
    CHECK_INODE = 1 << 2
    CHECK_DEVICE = 1 << 3
    MAKE_DIRECTORY = 1 << 4
    MAKE_FILE = 1 << 5
    NO_SYMLINKS = 1 << 6
    IDMAP_OPTIONAL = 1 << 7
    NEW_TARGET = 1 << 8
    OPTIONAL = 1 << 9
    DETACHED = 1 << 10
    LATE = 1 << 11


class Attribute(IntFlag):
    """MOUNT_ATTR_* of mount_setattr(2)."""

    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8


_NO_FLAGS = RowFlag(0)
_NO_ATTRIBUTES = Attribute(0)
_SAFE = Attribute.NOSUID | Attribute.NODEV | Attribute.NOEXEC

# Names of the host's root that are programs and libraries: links into /usr where it is merged.
_PROGRAM_DIRECTORIES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What programs of /usr read below /etc and anybody may read: nothing secret lies in these.
_ETC_SHARED = (
    "alternatives",
    "ld.so.cache",
    "localtime",
    "ssl/certs",
    "ssl/openssl.cnf",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
)
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
HOST_ROOT_USERS = {"/etc/passwd": _PASSWD.decode(), "/etc/group": _GROUP.decode()}
_NSSWITCH = b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n"
_TTY_GROUP = 5

# Linux's own numbers, Documentation/admin-guide/devices.txt.
_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_DEV_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file system; ``what`` is for the error that it may lead to."""

    op: Op
    target: str
    what: str
    source: str = ""
    flags: RowFlag = _NO_FLAGS
    base: int = 0
    data: bytes = b""
    mode: int = 0
    attributes: Attribute = _NO_ATTRIBUTES
    device: tuple[int, int] = (0, 0)
    opened: bool = False  # the caller opens the source, and its kind decides what a target is
    field: str = ""  # where in the Config the row comes from


@dataclass(frozen=True, slots=True)
class HostLayout:
    """What a HostRoot needs to know of the host."""

    links: tuple[tuple[str, str], ...]  # (name, link text) of top-level program links
    directories: tuple[str, ...]  # top-level program directories that are no links
    etc: tuple[str, ...]
    prefixes: tuple[str, ...]  # of the running interpreter, outside /usr


@cache
def host_layout(euid: int) -> HostLayout:
    """Look at the host, once per process and user: not every prefix can be reached by all."""
    names = [name for name in _PROGRAM_DIRECTORIES if os.path.isdir(f"/{name}")]
    links = {name: os.readlink(f"/{name}") for name in names if os.path.islink(f"/{name}")}
    return HostLayout(
        links=tuple(links.items()),
        directories=tuple(name for name in names if name not in links),
        etc=tuple(name for name in _ETC_SHARED if os.path.exists(f"/etc/{name}")),
        prefixes=_interpreter_prefixes(),
    )


def _interpreter_prefixes() -> tuple[str, ...]:
    prefixes: list[str] = []
    for prefix in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix):
        path = os.path.abspath(prefix)
        covered = any(f"{path}/".startswith(f"{other}/") for other in ("/usr", *prefixes))
        if path != "/" and not covered and os.path.isdir(path):
            prefixes.append(path)
    return tuple(prefixes)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What decides about rows beside the Config."""

    idmap: bool  # root caller with a leased range: sources are idmapped
    gid_mappings: Sequence[IDMapping]  # those in force; empty without a user namespace


def plan_rows(config: Config, layout: HostLayout, around: Surroundings) -> list[Row]:
    """The whole file system of a container. Relative paths are the caller's to resolve before."""
    root = config.root if config.root is not None else HostRoot()
    if isinstance(root, HostRoot):
        rows = list(_host_root(config, layout))
        mounts = [(f"root.extra[{i}]", m) for i, m in enumerate(root.extra)]
    else:
        rows = [_directory_root(str(root), config, around)]
        mounts = []
    proc = len(rows)
    rows += _kernel_file_systems(config)
    rows += _proc_writes(proc, len(rows), config)  # before anybody else's mount is in there
    rows += _devices(len(rows), around)
    mounts += [(f"mounts[{i}]", m) for i, m in enumerate(config.mounts)]
    rows += (_mount(mount, field, config, around) for field, mount in mounts)
    rows += _covers(rows, config)  # last of all: over what mounts have brought, too
    return rows


def needs_locked_mounts(config: Config) -> bool:
    """With CAP_SYS_ADMIN a container could take flags off its mounts: they must be locked."""
    if not config.namespaces.user:
        return False
    held = config.capabilities.permitted
    if not config.no_new_privileges:  # exec as root brings back what the bounding set allows
        held |= config.capabilities.bounding
    return Capability("SYS_ADMIN") in held


def _user_mount_attributes(config: Config) -> Attribute:
    # A set-user-ID program may work only where new privileges are allowed.
    suid = Attribute.NOSUID if config.no_new_privileges else _NO_ATTRIBUTES
    return suid | Attribute.NODEV


def _directory_root(path: str, config: Config, around: Surroundings) -> Row:
    return Row(
        Op.BIND,
        "",
        f"root directory {path!r}",
        source=path,
        flags=RowFlag.RECURSIVE | (RowFlag.IDMAP if around.idmap else _NO_FLAGS),
        attributes=_user_mount_attributes(config),
        opened=True,
        field="root",
    )


def _host_bind(path: str, target: str | None = None) -> Row:
    # Never idmapped: what only the host's root may read must not become the container's.
    return Row(
        Op.BIND,
        (target or path).lstrip("/"),
        f"{path!r} of the host",
        source=path,
        flags=RowFlag.RECURSIVE,
        attributes=Attribute.READ_ONLY | Attribute.NOSUID | Attribute.NODEV,
        opened=True,
        field="root",
    )


def _directory(path: str, mode: int = 0o755) -> Row:
    return Row(Op.DIRECTORY, path, f"directory '/{path}'", mode=mode)


def _file(path: str, content: bytes) -> Row:
    return Row(Op.FILE, path, f"file '/{path}'", data=content, mode=0o644)


def _link(path: str, text: str, base: int = 0) -> Row:
    return Row(Op.SYMLINK, path, f"link {path!r}", source=text, base=base)


def _host_root(config: Config, layout: HostLayout) -> Iterator[Row]:
    yield Row(
        Op.MOUNT,
        "",
        "the root file system",
        source="tmpfs",
        data=_options({"mode": "0755"}),
        attributes=Attribute.NOSUID | Attribute.NODEV,
    )
    for path in ("etc", "home", "run", "var"):
        yield _directory(path)
    yield _directory("root", 0o700)
    for path in ("tmp", "var/tmp"):
        yield _directory(path, 0o1777)
    yield _link("var/run", "/run")
    yield _host_bind("/usr")
    for name, text in layout.links:
        yield _link(name, text)
    for name in layout.directories:
        yield _host_bind(f"/{name}")
    yield from _etc(config, layout)
    for prefix in layout.prefixes:
        yield _host_bind(prefix)


def _etc(config: Config, layout: HostLayout) -> Iterator[Row]:
    hosts = f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {config.hostname}\n"
    yield _file("etc/passwd", _PASSWD)
    yield _file("etc/group", _GROUP)
    yield _file("etc/nsswitch.conf", _NSSWITCH)
    yield _file("etc/hosts", hosts.encode())
    yield _link("etc/mtab", "../proc/self/mounts")
    if config.namespaces.net:
        yield _file("etc/resolv.conf", b"")  # nothing but loopback is there to ask
    else:
        yield _host_bind("/etc/resolv.conf")
    for name in layout.etc:
        yield _host_bind(f"/etc/{name}")


def _kernel_file_systems(config: Config) -> Iterator[Row]:
    yield Row(
        Op.MOUNT,
        "proc",
        "proc at '/proc'",
        source="proc",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NO_SYMLINKS,
        data=_mount_options(config.proc_options),
        attributes=_SAFE,
    )
    sysfs = Row(
        Op.MOUNT,
        "sys",
        "sysfs at '/sys'",
        source="sysfs",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NO_SYMLINKS,
        attributes=_SAFE | Attribute.READ_ONLY,
    )
    if config.namespaces.user and not config.namespaces.net:
        # sysfs belongs to the owner of the network namespace: only a bind can be had.
        sysfs = replace(
            sysfs, op=Op.BIND, source="/sys", flags=sysfs.flags | RowFlag.RECURSIVE, opened=True
        )
    yield sysfs


def _proc_writes(proc: int, count: int, config: Config) -> Iterator[Row]:
    """Values for the procfs of row ``proc``, or of one like it that has everything."""
    writes = list(proc_writes(config, locked=needs_locked_mounts(config)))
    if writes and "subset=" in (config.proc_options or ""):
        proc = count
        yield Row(
            Op.MOUNT,
            "",
            "a procfs to write to",
            source="proc",
            flags=RowFlag.DETACHED,
            attributes=_SAFE,
        )
    for write in writes:
        yield Row(
            Op.WRITE,
            write.path,
            write.what,
            flags=RowFlag.LATE if write.late else _NO_FLAGS,
            base=proc,
            data=os.fsencode(write.value),
            field=write.field,
        )


def _covers(rows: Sequence[Row], config: Config) -> Iterator[Row]:
    """Masks first: what is made read-only is a copy of all that lies there, masks included."""
    places = [
        f"{place_of(rows, row)}/".lstrip("/") if row.op in (Op.BIND, Op.MOUNT) else None
        for row in rows
    ]
    for op, name, paths in (
        (Op.MASK, "masked_paths", masked_paths(config)),
        (Op.READ_ONLY, "readonly_paths", readonly_paths(config)),
    ):
        for index, path in enumerate(paths):
            base, target = _below_last_mount(path.lstrip("/"), places)
            yield Row(
                op,
                target,
                repr(path),
                flags=RowFlag.OPTIONAL,
                base=base,
                field=f"{name}[{index}]",
            )


def place_of(rows: Sequence[Row], row: Row) -> str:
    """Where a row is in the container, as an absolute path."""
    if row.flags & RowFlag.DETACHED:
        return "/proc"
    parts = [row.target]
    while row.base:
        row = rows[row.base]
        parts.append(row.target)
    return "/" + "/".join(part for part in reversed(parts) if part not in ("", "."))


def _below_last_mount(path: str, places: Sequence[str | None]) -> tuple[int, str]:
    """The row of the mount that a path lies in, and the rest of the path.

    What is covered of our own /proc is found below that mount's fd, never through the image:
    whoever can rename in the image at the same time (another container with the same root) could
    have us look for it elsewhere.
    """
    for base in range(len(places) - 1, -1, -1):
        place = places[base]
        if place is not None and f"{path}/".startswith(place):
            return base, path[len(place) :] or "."
    raise AssertionError("row 0 holds every path")


def _devices(dev: int, around: Surroundings) -> Iterator[Row]:
    """``/dev``, which is row ``dev``, and everything below it."""
    yield Row(
        Op.MOUNT,
        "dev",
        "tmpfs at '/dev'",
        source="tmpfs",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NO_SYMLINKS,
        data=_options({"mode": "0755", "size": "65536k"}),
        attributes=Attribute.NOSUID | Attribute.NOEXEC,
    )
    for name, major, minor in _DEVICES:
        yield Row(
            Op.BIND,
            name,
            f"device '/dev/{name}'",
            source=f"/dev/{name}",
            flags=RowFlag.CHECK_DEVICE | RowFlag.MAKE_FILE | RowFlag.NEW_TARGET,
            base=dev,
            device=(major, minor),
        )
    for name, text in _DEV_LINKS:
        yield _link(name, text, dev)
    pts = {"ptmxmode": "0666", "mode": "0620"}
    if _is_mapped(_TTY_GROUP, around.gid_mappings):
        pts["gid"] = str(_TTY_GROUP)
    yield Row(
        Op.MOUNT,
        "pts",
        "devpts at '/dev/pts'",
        source="devpts",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NEW_TARGET,
        base=dev,
        data=_options(pts),
        attributes=Attribute.NOSUID | Attribute.NOEXEC,
    )
    yield Row(
        Op.MOUNT,
        "shm",
        "tmpfs at '/dev/shm'",
        source="tmpfs",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NEW_TARGET,
        base=dev,
        data=_options({"mode": "1777", "size": "65536k"}),
        attributes=_SAFE,
    )


def _is_mapped(container_id: int, mappings: Sequence[IDMapping]) -> bool:
    if not mappings:
        return True  # the caller's own user namespace
    return any(m.container_id <= container_id < m.container_id + m.size for m in mappings)


def _options(options: dict[str, str]) -> bytes:
    return b"".join(f"{key}\0{value}\0".encode() for key, value in options.items())


def _mount_options(data: str | None) -> bytes:
    pairs = (option.partition("=") for option in (data or "").split(",") if option)
    return b"".join(os.fsencode(f"{key}\0{value}\0") for key, _, value in pairs)


def _mount(mount: Mount, field: str, config: Config, around: Surroundings) -> Row:
    target = str(mount.target).lstrip("/")
    attributes = _user_mount_attributes(config)
    if mount.type == "tmpfs":
        return Row(
            Op.MOUNT,
            target,
            f"tmpfs at {mount.target!r}",
            source="tmpfs",
            flags=RowFlag.MAKE_DIRECTORY,
            data=_mount_options(mount.data),
            attributes=attributes,
            field=field,
        )
    flags = RowFlag.RECURSIVE
    # What a HostRoot shows read-only stays the host's, as its /usr does.
    if around.idmap and not (mount.read_only and field.startswith("root.")):
        flags |= RowFlag.IDMAP
    if mount.read_only:
        # Less is readable without the mapping, never more; written it must not be either way.
        flags |= RowFlag.IDMAP_OPTIONAL
        attributes |= Attribute.READ_ONLY
    return Row(
        Op.BIND,
        target,
        f"{mount.source!r} at {mount.target!r}",
        source=str(mount.source),
        flags=flags,
        attributes=attributes,
        opened=True,
        field=field,
    )
