# SPDX-License-Identifier: Apache-2.0
"""From a Config to the rows of the container's file system. Pure but for `host_layout`.

A `Row` is one line of what the child does (``enum row_op`` of csrc/launcher.h), in the order of
the list. Row 0 makes the root; the target of every other row is a path below the mount that its
``base`` row made, so that what we build in our own ``/dev`` can never resolve through the image.
Where the root is an overlay, rows of a stage come before these: see `plan_stage`.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from functools import cache
from typing import cast

from container._capabilities import Capability
from container._config import (
    Config,
    HostRoot,
    IDMapping,
    Join,
    Mount,
    MountFlags,
    Overlay,
    default_devices,
)
from container._devices import devices_of
from container._errors import UnsupportedError
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
    OVERLAY = 9
    HANDLE = 10
    ATTRIBUTES = 11
    DEVICE = 12
    TERMINAL = 13
    CONSOLE = 14


MAKES_MOUNT = frozenset({Op.BIND, Op.MOUNT, Op.OVERLAY})


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
    OWN_MAPS = 1 << 12
    SLAVE = 1 << 13
    SHARED = 1 << 14
    MAY_FAIL = 1 << 15
    PROCFS = 1 << 16


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
    owner: tuple[int, int] = (0, 0)  # DEVICE: uid and gid
    opened: bool = False  # the caller opens the source, and its kind decides what a target is
    directory: bool = False  # and it must be a directory
    field: str = ""  # where in the Config the row comes from
    path: str = ""  # for the error, where it is neither source nor target


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
    by_fd: bool = True  # root caller: the launcher copies the sources, and can idmap them
    nodes: Sequence[tuple[str, str]] = ()  # path of a device, and of the host's for it
    tty: bool = False
    owns_pids: bool = True  # whether the caller may mount a procfs of its own PID namespace


def plan_rows(config: Config, layout: HostLayout, around: Surroundings) -> list[Row]:
    """The whole file system of a container. Relative paths are the caller's to resolve before."""
    root = config.root if config.root is not None else HostRoot()
    mounts: list[tuple[str, Mount]] = []
    if isinstance(root, HostRoot):
        rows = list(_host_root(config, layout))
        mounts = [(f"root.extra[{i}]", m) for i, m in enumerate(root.extra)]
    elif isinstance(root, Overlay):
        rows = [_overlay_root(root, config)]
    else:
        rows = list(_directory_root(str(root), config, around))
    proc = len(rows)
    rows += _kernel_file_systems(config, around)
    rows += _proc_writes(proc, len(rows), config, around)  # before anybody else's mount is in there
    if config.setup_dev:
        rows += _devices(len(rows), config, around)
    mounts += [(f"mounts[{i}]", m) for i, m in enumerate(config.mounts)]
    rows += (_mount(mount, field, config, around) for field, mount in mounts)
    if around.tty:
        rows += _terminal(rows)
    if config.read_only_root:  # until here targets may have to be made
        rows.append(_change_root("the read-only root", set=Attribute.READ_ONLY))
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


def _directory_root(path: str, config: Config, around: Surroundings) -> Iterator[Row]:
    what = f"root directory {path!r}"
    yield Row(
        Op.BIND,
        "",
        what,
        source=path,
        flags=RowFlag.RECURSIVE | (RowFlag.IDMAP if around.idmap else _NO_FLAGS),
        attributes=_user_mount_attributes(config),
        opened=True,
        directory=True,
        field="root",
    )
    if config.read_only_root:
        # What is mounted below it now; itself only once the targets of our mounts are made.
        yield _change_root(what, set=Attribute.READ_ONLY, flags=RowFlag.RECURSIVE)
        # Fails where it is read-only on the host: so it stays then.
        yield _change_root(what, clear=Attribute.READ_ONLY, flags=RowFlag.MAY_FAIL)


def _change_root(
    what: str,
    *,
    set: Attribute = _NO_ATTRIBUTES,
    clear: Attribute = _NO_ATTRIBUTES,
    flags: RowFlag = _NO_FLAGS,
) -> Row:
    return Row(Op.ATTRIBUTES, "", what, flags=flags, attributes=set, mode=clear, path="/")


def plan_stage(config: Config, around: Surroundings) -> list[Row]:
    """What an overlay is made of, each under a short name in a file system that goes with the old
    root (csrc/layers.c). These rows come before those of `plan_rows`, with bases of their own.
    `Overlay.upper` and ``work`` must be real paths.
    """
    root = config.root
    if not isinstance(root, Overlay):
        return []
    safe = Attribute.NOSUID | Attribute.NODEV
    rows = [
        Row(
            Op.MOUNT, "", "the stage of the overlay", source="tmpfs", data=_options({"mode": "700"})
        ),
        *(
            _layer(str(index), path, f"root.lower[{index}]", around, safe | Attribute.READ_ONLY)
            for index, path in enumerate(lower_of(root))
        ),
        _directory(_MERGED),
    ]
    if root.upper is None:
        return [*rows, _directory(_UPPER), _directory(_WORK)]
    upper, work = upper_and_work(root)
    parent = os.path.commonpath((os.path.dirname(upper), os.path.dirname(work)))
    base = len(rows)
    return [
        *rows,
        _layer("p", parent, "root.upper", around, safe),
        _handle(_UPPER, upper, parent, base, "root.upper"),
        _handle(_WORK, work, parent, base, "root.work", make=root.work is None),
    ]


# Names in the stage.
_MERGED, _UPPER, _WORK = "m", "u", "w"


def lower_of(root: Overlay) -> tuple[str, ...]:
    return cast(tuple[str, ...], root.lower)


def upper_and_work(root: Overlay) -> tuple[str, str]:
    upper = str(root.upper)
    return upper, str(root.work) if root.work is not None else f"{upper}.work"


def _layer(name: str, path: str, field: str, around: Surroundings, attributes: Attribute) -> Row:
    return Row(
        Op.BIND,
        name,
        f"directory {path!r} of the overlay",
        source=path,
        flags=RowFlag.NEW_TARGET | (RowFlag.IDMAP if around.idmap else _NO_FLAGS),
        attributes=attributes,
        opened=True,
        directory=True,
        field=field,
    )


def _handle(name: str, path: str, parent: str, base: int, field: str, *, make: bool = False) -> Row:
    return Row(
        Op.HANDLE,
        os.path.relpath(path, parent),
        f"directory {path!r} of the overlay",
        source=name,
        flags=RowFlag.MAKE_DIRECTORY if make else _NO_FLAGS,
        base=base,
        mode=0o700 if make else 0,
        field=field,
        path=path,
    )


def _overlay_root(root: Overlay, config: Config) -> Row:
    options = [
        f"lowerdir={':'.join(map(str, range(len(lower_of(root)))))}",
        f"upperdir={_UPPER}",
        f"workdir={_WORK}",
    ]
    if config.namespaces.user:  # attributes of trusted.* are the host's root's
        options.append("userxattr")
    shown = ", ".join(repr(path) for path in lower_of(root)[:3])
    return Row(
        Op.OVERLAY,
        "",
        f"the overlay of {shown}{', ...' if len(lower_of(root)) > 3 else ''}",
        source=_MERGED,
        data=f"{','.join(options)}\0".encode(),
        attributes=_user_mount_attributes(config),
        field="root",
        path=str(root.upper or lower_of(root)[0]),
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
    if config.namespaces.net is True:
        yield _file("etc/resolv.conf", b"")  # nothing but loopback is there to ask
    else:
        yield _host_bind("/etc/resolv.conf")
    for name in layout.etc:
        yield _host_bind(f"/etc/{name}")


def _kernel_file_systems(config: Config, around: Surroundings) -> Iterator[Row]:
    proc = Row(
        Op.MOUNT,
        "proc",
        "proc at '/proc'",
        source="proc",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NO_SYMLINKS,
        data=_mount_options(config.proc_options),
        attributes=_SAFE,
    )
    yield _with_procfs_of(proc, config, around, "proc_options")
    sysfs = Row(
        Op.MOUNT,
        "sys",
        "sysfs at '/sys'",
        source="sysfs",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NO_SYMLINKS,
        attributes=_SAFE | Attribute.READ_ONLY,
    )
    yield _with_sysfs_of(sysfs, config)


def _with_procfs_of(row: Row, config: Config, around: Surroundings, field: str) -> Row:
    user, pid = config.namespaces.user, config.namespaces.pid
    # It belongs to the owner of the PID namespace. Without root, whoever could join that is it.
    if not user or pid is True or (isinstance(pid, Join) and not around.by_fd):
        return row
    flags = row.flags & ~RowFlag.MAKE_DIRECTORY  # as the source is
    bind = replace(row, op=Op.BIND, source="/proc", opened=True, directory=True)
    if around.by_fd and (isinstance(pid, Join) or around.owns_pids):
        return replace(bind, flags=flags | RowFlag.PROCFS)  # the launcher mounts one instead
    if row.data:
        raise UnsupportedError("needs a new namespaces.pid, or root", field=field)
    return replace(bind, flags=flags | RowFlag.RECURSIVE)


def _with_sysfs_of(row: Row, config: Config) -> Row:
    user, net = config.namespaces.user, config.namespaces.net
    if not user or net is True or (isinstance(user, Join) and isinstance(net, Join)):
        return row
    if isinstance(net, Join):  # neither may it be mounted, nor is another's to be shown
        return replace(row, source="tmpfs", what="an empty '/sys'")
    # sysfs belongs to the owner of the network namespace: only a bind can be had.
    return replace(row, op=Op.BIND, source="/sys", flags=row.flags | RowFlag.RECURSIVE, opened=True)


def _proc_writes(proc: int, count: int, config: Config, around: Surroundings) -> Iterator[Row]:
    """Values for the procfs of row ``proc``, or of one like it that has everything."""
    writes = list(proc_writes(config, locked=needs_locked_mounts(config)))
    if writes and "subset=" in (config.proc_options or ""):
        proc = count
        whole = Row(
            Op.MOUNT,
            "",
            "a procfs to write to",
            source="proc",
            flags=RowFlag.DETACHED,
            attributes=_SAFE,
        )
        yield _with_procfs_of(whole, config, around, "proc_options")
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


def _terminal(rows: Sequence[Row]) -> Iterator[Row]:
    """A terminal of the container's own devpts, and ``/dev/console`` if that is not the image's."""
    places = _places(rows)
    devpts, name = _below_last_mount("dev/pts/ptmx", places)
    if name != "ptmx" or (rows[devpts].op, rows[devpts].source) != (Op.MOUNT, "devpts"):
        raise UnsupportedError(
            "needs a devpts at /dev/pts: setup_dev=True, or a Mount of one there", field="tty"
        )
    yield Row(Op.TERMINAL, "", "a terminal", base=devpts, field="tty", path="/dev/pts/ptmx")
    dev, name = _below_last_mount("dev/console", places)
    if dev and name == "console":
        yield Row(
            Op.CONSOLE,
            name,
            "the terminal at '/dev/console'",
            flags=RowFlag.MAKE_FILE | RowFlag.NO_SYMLINKS,
            base=dev,
            field="tty",
        )


def _places(rows: Sequence[Row]) -> list[str | None]:
    """Where the rows' mounts are, without the first slash and with one at the end."""
    return [
        f"{place_of(rows, row)}/".lstrip("/")
        if row.op in MAKES_MOUNT and not row.flags & RowFlag.DETACHED
        else None
        for row in rows
    ]


def _covers(rows: Sequence[Row], config: Config) -> Iterator[Row]:
    """Masks first: what is made read-only is a copy of all that lies there, masks included."""
    places = _places(rows)
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


def _nodes(dev: int, config: Config, around: Surroundings) -> Iterator[Row]:
    """Device nodes of our own, or in a user namespace, where none would open, binds of the host's.

    Of the host's nodes a container without a user namespace could change mode and owner.
    """
    made: set[str] = set()
    nodes = dict(around.nodes)
    for field, device in devices_of(config).items():
        name = str(device.path).removeprefix("/dev/")
        for end in (index for index, letter in enumerate(name) if letter == "/"):
            if name[:end] not in made:
                made.add(name[:end])
                yield replace(
                    _directory(name[:end]), base=dev, what=f"directory '/dev/{name[:end]}'"
                )
        kind = stat.S_IFCHR if device.type == "c" else stat.S_IFBLK
        is_default = device in default_devices()
        node = Row(
            Op.BIND,
            name,
            f"device {device.path!r}",
            source=nodes.get(str(device.path), str(device.path)),
            flags=RowFlag.CHECK_DEVICE | RowFlag.MAKE_FILE,
            base=dev,
            mode=kind,
            # Nobody writes less to a device for that, but its mode and owner are safe from
            # a container that has the ids of its owner on the host.
            attributes=Attribute.READ_ONLY,
            device=(device.major, device.minor),
            field=field,
        )
        if "/" not in name:
            node = replace(node, flags=node.flags | RowFlag.NEW_TARGET)
        if not config.namespaces.user:
            node = replace(
                node,
                op=Op.DEVICE,
                source=node.source if is_default else "",
                mode=kind | (0o666 if device.mode is None else device.mode),
                owner=(device.uid, device.gid),
            )
        yield node


def _devices(dev: int, config: Config, around: Surroundings) -> Iterator[Row]:
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
    yield from _nodes(dev, config, around)
    for name, text in _DEV_LINKS:
        yield _link(name, text, dev)
    yield Row(
        Op.MOUNT,
        "pts",
        "devpts at '/dev/pts'",
        source="devpts",
        flags=RowFlag.MAKE_DIRECTORY | RowFlag.NEW_TARGET,
        base=dev,
        data=_terminal_options(around),
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


def _terminal_options(around: Surroundings) -> bytes:
    options = {"ptmxmode": "0666", "mode": "0620"}
    if _is_mapped(_TTY_GROUP, around.gid_mappings):
        options["gid"] = str(_TTY_GROUP)
    return _options(options)


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
    row = Row(
        Op.MOUNT,
        str(mount.target).lstrip("/"),
        f"{mount.type} at {mount.target!r}",
        source=str(mount.type),
        flags=RowFlag.MAKE_DIRECTORY | _propagation(mount, field, config),
        data=_mount_options(mount.data),
        attributes=_mount_attributes(mount, config),
        field=field,
    )
    if mount.type == "bind":
        return _bind(row, mount, around)
    if mount.type == "sysfs":
        return _with_sysfs_of(row, config)
    if mount.type == "proc":
        return _with_procfs_of(row, config, around, f"{field}.data")
    if mount.type == "devpts" and mount.data is None:
        return replace(row, data=_terminal_options(around))
    return row


def _mount_attributes(mount: Mount, config: Config) -> Attribute:
    attributes = _user_mount_attributes(config) & ~Attribute.NODEV
    if mount.nosuid is not None:
        attributes = Attribute.NOSUID if mount.nosuid else _NO_ATTRIBUTES
    for wanted, attribute in (
        (mount.nodev, Attribute.NODEV),
        (mount.noexec, Attribute.NOEXEC),
        (mount.read_only, Attribute.READ_ONLY),
    ):
        attributes |= attribute if wanted else _NO_ATTRIBUTES
    return attributes


def _propagation(mount: Mount, field: str, config: Config) -> RowFlag:
    if mount.flags & MountFlags.SLAVE:
        return RowFlag.SLAVE
    if not mount.flags & MountFlags.SHARED:
        return _NO_FLAGS
    if needs_locked_mounts(config):
        raise UnsupportedError(
            "SHARED cannot be had together with CAP_SYS_ADMIN: what locks the mounts ends it",
            field=f"{field}.flags",
        )
    return RowFlag.SHARED


def _bind(row: Row, mount: Mount, around: Surroundings) -> Row:
    flags = row.flags & ~RowFlag.MAKE_DIRECTORY  # as the source is
    flags |= RowFlag.RECURSIVE if mount.recursive else _NO_FLAGS
    data = b""
    if mount.uid_mappings:
        _needs_by_fd(around, f"{row.field}.uid_mappings")
        flags |= RowFlag.OWN_MAPS
        data = b"\0".join((map_text(mount.uid_mappings), map_text(mount.gid_mappings), b""))
    elif mount.idmap:
        _needs_by_fd(around, f"{row.field}.idmap")
        flags |= RowFlag.IDMAP
    elif mount.idmap is None and around.idmap:
        flags |= _default_idmap(row, mount)
    return replace(
        row,
        op=Op.BIND,
        what=f"{mount.source!r} at {mount.target!r}",
        source=str(mount.source),
        flags=flags,
        data=data,
        opened=True,
    )


def _needs_by_fd(around: Surroundings, field: str) -> None:
    if not around.by_fd:
        raise UnsupportedError("only root can map the ids of a mount", field=field)
    if field.endswith("idmap") and not around.gid_mappings:
        raise UnsupportedError("needs namespaces.user", field=field)


def _default_idmap(row: Row, mount: Mount) -> RowFlag:
    if not mount.read_only:
        return RowFlag.IDMAP
    # What a HostRoot shows read-only stays the host's, as its /usr does.
    if row.field.startswith("root."):
        return _NO_FLAGS
    # Less is readable without the mapping, never more; written it must not be either way.
    return RowFlag.IDMAP | RowFlag.IDMAP_OPTIONAL


def map_text(mappings: Iterable[IDMapping]) -> bytes:
    """As it is written to uid_map, user_namespaces(7)."""
    return b"".join(b"%d %d %d\n" % (m.container_id, m.host_id, m.size) for m in mappings)
