# SPDX-License-Identifier: Apache-2.0
"""A corpus of hostile root directories, and what must hold when a container is started in one.

Every root is made by code, beside a directory of decoys that stand for the host's files. Wherever
its traps lead, the start succeeds inside its walls or fails with an error of ours; the decoys stay
as they are, and so do the host's mounts. Needs nothing but the standard library and the package,
so that its source can be run by another user.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from container import Config, Container, ContainerError, Mount, Process
from container._walls import masked_paths, readonly_paths

Trap = Callable[[Path, Path], None]
"""Makes the path (first argument) a trap that would lead to a decoy (the second)."""

HUGE = 1 << 40
MANY = 300

PLACES = (
    *("dev", "proc", "sys", "etc"),
    *("dev/null", "dev/pts", "dev/shm", "dev/ptmx", "dev/console", "dev/fd"),
    *("proc/self", "proc/sys", "proc/kcore", "sys/firmware"),
    *("etc/passwd", "etc/resolv.conf", "etc/secret"),
)
"""What a start makes, mounts on, covers, reads or writes."""


def _sparse(path: Path, _decoy: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(HUGE)


def _socket(path: Path, _decoy: Path) -> None:
    name = f"/proc/self/fd/{(fd := os.open(path.parent, os.O_PATH))}/{path.name}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)  # the path itself may be longer than an address
    os.close(fd)


def _crowd(path: Path, decoy: Path) -> None:
    path.mkdir()
    for number in range(MANY):
        (path / f"{number}").symlink_to(decoy)


def _node(path: Path, _decoy: Path) -> None:
    # A whiteout of overlayfs: the one device that everybody may make.
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(0, 0))


def _two_links(path: Path, _decoy: Path) -> None:
    other = path.with_name(path.name + "-back")
    path.symlink_to(other.name)
    other.symlink_to(path.name)


TRAPS: dict[str, Trap] = {
    "an absolute link out": lambda path, decoy: path.symlink_to(decoy),
    "a relative link out": lambda path, decoy: path.symlink_to(os.path.relpath(decoy, path.parent)),
    "a long way up": lambda path, decoy: path.symlink_to("../" * 50 + str(decoy)[1:]),
    "a link within": lambda path, _: path.symlink_to("/tmp"),
    "a link to the root": lambda path, _: path.symlink_to("/"),
    "a link to itself": lambda path, _: path.symlink_to(path.name),
    "two links in a circle": _two_links,
    "a dangling link out": lambda path, decoy: path.symlink_to(decoy / "missing"),
    "a dangling link within": lambda path, _: path.symlink_to("/no/such/place"),
    "a magic link": lambda path, _: path.symlink_to("/proc/self/root"),
    "a fifo": lambda path, _: os.mkfifo(path),
    "a socket": _socket,
    "a huge file": _sparse,
    "an empty file": lambda path, _: path.touch(),
    "a device": _node,
    "a directory that is closed": lambda path, _: path.mkdir(mode=0),
    "a directory full of links": _crowd,
}


def _set(place: str, trap: Trap) -> Trap:
    def make(root: Path, outside: Path) -> None:
        path = root / place
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        trap(path, outside / place)

    return make


def _program(content: str, mode: int = 0o755) -> Trap:
    def make(root: Path, _outside: Path) -> None:
        (root / "bin/busybox").unlink()
        (root / "bin/busybox").write_text(content)
        (root / "bin/busybox").chmod(mode)

    return make


def _deep(root: Path, _outside: Path) -> None:
    shutil.rmtree(root / "dev")
    (root / "dev").symlink_to("/".join(["d"] * 1000))


def _swap_bin(root: Path, outside: Path) -> None:
    shutil.rmtree(root / "bin")
    (root / "bin").symlink_to(outside)


SPECIAL: dict[str, Trap] = {
    "a program that is the launcher's": _program("#!/proc/self/exe\n"),
    "a program whose interpreter is itself": _program("#!/bin/busybox\n"),
    "a program whose interpreter is a directory": _program("#!/proc\n"),
    "a program that is an fd": _program("#!/proc/self/fd/3\n"),
    "a program that is empty": _program(""),
    "a program that nobody may run": _program("#!/bin/sh\n", 0),
    "programs outside": _swap_bin,
    "a very long link for dev": _deep,
    "a root that is closed": lambda root, _: root.chmod(0o111),
    "a root that others may write": lambda root, _: root.chmod(0o1777),
    "names that are no names": lambda root, _: (root / "dev\n/\\x2f").mkdir(parents=True),
}


def corpus() -> dict[str, Trap]:
    """Every hostile root by its name."""
    roots = {
        f"{place}: {kind}": _set(place, trap) for place in PLACES for kind, trap in TRAPS.items()
    }
    return roots | SPECIAL


# A start in one -----------------------------------------------------------------------------------

PASSWD = "root:x:0:0::/:/bin/sh\n"


def make_image(directory: Path, program: Path) -> tuple[Path, Path]:
    """A small root, and beside it decoys for all that a start makes or opens."""
    root, outside = directory / "root", directory / "outside"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    os.link(program, root / "bin/busybox")
    (root / "etc/passwd").write_text(PASSWD)
    for place in PLACES:
        decoy = outside / place
        if decoy.name in ("dev", "proc", "sys", "etc", "pts", "shm", "self", "fd", "firmware"):
            decoy.mkdir(parents=True, exist_ok=True)
        else:
            decoy.parent.mkdir(parents=True, exist_ok=True)
            decoy.write_text("decoy")
    for name in ("kernel/core_pattern", "net/ipv4/ip_default_ttl", "user/max_user_namespaces"):
        decoy = outside / "proc/self" / name
        decoy.parent.mkdir(parents=True, exist_ok=True)
        decoy.write_text("decoy")
    return root, outside


def variants(root: Path, directory: Path) -> dict[str, tuple[Config, Process]]:
    """Starts that touch more and more of an image."""
    source = directory / "source"
    source.write_text("bound")
    process = Process(["/bin/busybox", "sleep", "1000"])
    busy = Config(
        root,
        mounts=[
            Mount.tmpfs("/etc/conf.d"),
            Mount.bind(source, "/etc/resolv.conf", read_only=True),
            Mount.tmpfs("/dev/shm/below"),
        ],
        masked_paths=[*masked_paths(Config()), "/etc/secret"],
        readonly_paths=[*readonly_paths(Config()), "/etc/passwd"],
        sysctl={"net.ipv4.ip_default_ttl": "77"},
    )
    by_name = Process(["/bin/busybox", "sleep", "1000"], user="root", cwd="/etc")
    return {"plain": (Config(root), process), "busy": (busy, process), "named": (busy, by_name)}


@dataclass(frozen=True)
class Line:
    """A mount of a process, as /proc/PID/mountinfo tells it (proc(5))."""

    number: int
    parent: int
    root: str
    target: str
    options: frozenset[str]
    kind: str


def mounts_of(pid: int) -> list[Line]:
    found = []
    for text in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, right = (part.split(" ") for part in text.split(" - "))
        options = frozenset(left[5].split(","))
        found.append(Line(int(left[0]), int(left[1]), left[3], left[4], options, right[0]))
    return found


def check_walls(pid: int, config: Config) -> None:
    """By the kernel's account: what shall be mounted is, and covered where it shall be."""
    mounts = mounts_of(pid)
    kinds = [line.kind for line in mounts if line.root == "/"]
    for kind, count in (("proc", 1), ("sysfs", 1), ("devpts", 1)):
        assert kinds.count(kind) == count, (kind, mounts)
    assert not [line for line in mounts if "/outside" in line.root], mounts
    (proc,) = (line for line in mounts if line.kind == "proc" and line.root == "/")
    (sysfs,) = (line for line in mounts if line.kind == "sysfs" and line.root == "/")
    assert "ro" in sysfs.options
    for top, whole in (("/proc/", proc), ("/sys/", sysfs)):
        # By parent and last name: what is above may be renamed while it is read.
        below = {
            os.path.basename(line.target): line for line in mounts if line.parent == whole.number
        }
        for path in (*masked_paths(config), *readonly_paths(config)):
            if path.startswith(top) and os.path.exists(path):
                assert "ro" in below[os.path.basename(path)].options, path
        for path in masked_paths(config):
            if path.startswith(top) and os.path.exists(path):
                assert below[os.path.basename(path)].kind == "tmpfs", path


def start(config: Config, process: Process) -> str:
    """Start it and look at it: "started", "ended" before that, or the kind of the error."""
    with Container(config) as box:
        try:
            box.run(process)
        except ContainerError as error:
            return type(error).__name__
        pid = box.pid
        try:
            if pid is None:
                return "ended"
            check_walls(pid, config)
        except OSError:
            box.wait()  # for ever, if that was not the reason
            return "ended"
        return "started"


def snapshot(top: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    """Everything below: mode, owner, group, time of change and content."""
    found = {}
    for directory, directories, names in os.walk(top):
        for name in (".", *directories, *names):
            path = Path(directory, name)
            status = path.lstat()
            content = b""
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif path.is_file():
                content = path.read_bytes()
            key = os.path.join(directory, name)
            found[key] = (
                *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns),
                content,
            )
    return found


def host_mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def attack(trap: Trap, program: Path) -> Iterator[str]:
    """Every variant of a start in one hostile root; yields how it ended."""
    with tempfile.TemporaryDirectory(prefix="tests-", dir=program.parent) as name:
        directory = Path(name)
        directory.chmod(0o755)
        root, outside = make_image(directory, program)
        trap(root, outside)
        starts = variants(root, directory)
        before, mounts, beside = snapshot(outside), host_mounts(), set(os.listdir(directory))
        for config, process in starts.values():
            yield start(config, process)
            assert snapshot(outside) == before
            assert host_mounts() == mounts
            assert set(os.listdir(directory)) == beside
        root.chmod(0o755)  # or it could not be removed


def attack_all(program: Path) -> dict[str, list[str]]:
    """The whole corpus: how each start of each root ended."""
    return {name: list(attack(trap, program)) for name, trap in corpus().items()}
