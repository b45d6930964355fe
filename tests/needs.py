# SPDX-License-Identifier: Apache-2.0
"""What a test needs of the machine, found out by making the very call that the need is about.

A need is a word in ``@pytest.mark.needs(...)``:

``root``            the tests run as uid 0
``user``            the tests are an ordinary user, or can become one
``user_python``     that user can run this interpreter and read the package
``rootless``        that user can make a user namespace and mount in it
``single_id``       that user has no ranges of ids, subuid(5)
``userns``          the tests can make a user namespace and mount in it
``idmap``           the file system of temporary files can be mounted with mapped ids
``vm``              the machine is one of the tests' own, docs/testing-vm.md
``overlay``         an overlay can be mounted (with ``userxattr`` by an ordinary user)
``cgroup2``         the tests can make a cgroup below their own
``cgroup2:memory``  ... which has this controller
``kernel>=6.1``     the running kernel is at least this one
``apparmor``        the kernel has AppArmor, switched on
``selinux``         the kernel has SELinux, switched on
``landlock``        the kernel has Landlock, of Linux 6.2 or later
``libseccomp``      the library can be loaded
``x86_64``          the machine is one
``gcc``, ...        the program is installed and runs (see `TOOLS`)

Calls that change the process that makes them are made by a fresh interpreter which runs this very
file: a thread of the test run could not make them, and nothing may stay behind.

The environment says which needs must be met (`Policy`):

CONTAINER_MUST_RUN   ``1``: all; or the needs, with commas, that no test may be skipped for
CONTAINER_MAY_SKIP   with ``1``: the needs, with commas, that this machine is known not to meet
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

ORDINARY_ID = 47111
"""Uid and gid of the ordinary user that root becomes: no account, no process, no subuid range."""

MAPPED_ID = ORDINARY_ID << 16
"""Where the probe of idmapped mounts maps root to: an id that no file has."""

PROBE_SECONDS = 60
MISSING_STATUS = 75
"""Exit status of a probe that got its answer; any other failure is a fault of the probe's own."""


class MissingError(Exception):
    """The machine does not meet a need; the text says why."""


# The policy -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """Which needs may be missing without a failure. `must` is None where every need must be met."""

    must: frozenset[str] | None = frozenset()
    may_skip: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Policy:
        """Read the two variables; ValueError for a name that is no need."""
        must = _names(environment, "CONTAINER_MUST_RUN") - {"0"}
        if must == {"1"}:
            return cls(None, _known(environment, "CONTAINER_MAY_SKIP"))
        return cls(_known(environment, "CONTAINER_MUST_RUN") if must else must)

    def forbids(self, need: str) -> bool:
        """Whether a test that is skipped for the lack of `need` is a failure."""
        if self.must is None:
            return need not in self.may_skip
        return need in self.must


def _names(environment: Mapping[str, str], variable: str) -> frozenset[str]:
    names = (name.strip() for name in environment.get(variable, "").split(","))
    return frozenset(name for name in names if name)


def _known(environment: Mapping[str, str], variable: str) -> frozenset[str]:
    names = _names(environment, variable)
    for name in sorted(names):
        try:
            probe_of(name)
        except ValueError as error:
            raise ValueError(f"{variable}: {error}") from None
    return names


@dataclass
class Machine:
    """The answers for one test run: every need is probed at most once, when first asked about."""

    directory: str = field(default_factory=tempfile.gettempdir)
    answers: dict[str, str | None] = field(default_factory=dict)

    def missing(self, need: str) -> str | None:
        """Why the machine does not meet `need`; None where it does.

        ValueError for a name that is no need.
        """
        if need not in self.answers:
            probe = probe_of(need)
            try:
                probe(self.directory)
            except (MissingError, OSError) as error:
                self.answers[need] = str(error)
            else:
                self.answers[need] = None
        return self.answers[need]

    def missing_of(self, needs: Iterable[str]) -> dict[str, str]:
        """The reasons of those needs that are not met."""
        reasons = {need: self.missing(need) for need in dict.fromkeys(needs)}
        return {need: reason for need, reason in reasons.items() if reason is not None}


# The probes: each returns where the need is met and raises MissingError or OSError where not ----

Probe = Callable[[str], None]


def _probe_root(_directory: str) -> None:
    if os.geteuid() != 0:
        raise MissingError(f"the tests run as uid {os.geteuid()}")


def _probe_in_child(name: str) -> Probe:
    def probe(directory: str) -> None:
        with tempfile.TemporaryDirectory(prefix="needs-", dir=directory) as scratch:
            done = _run_quietly([*_fresh_python(), "probe", name, scratch])
        # A signal is an answer too: some sandboxes kill for a call that they do not allow.
        if done.returncode == MISSING_STATUS or done.returncode < 0:
            raise MissingError(_reason(done))
        if done.returncode != 0:
            raise RuntimeError(f"the probe of {name!r} is broken:\n{done.stderr}")

    return probe


def _probe_user_python(_directory: str) -> None:
    script = "import ctypes, os, sys; [os.listdir(path) for path in sys.argv[1:]]"
    with tempfile.TemporaryDirectory(prefix="needs-") as scratch:
        os.chmod(scratch, 0o755)
        command = [sys.executable, "-c", script, scratch, *python_directories()]
        done = _run_quietly(as_user_argv(command), cwd=scratch)
    if done.returncode != 0:
        raise MissingError(_reason(done))


def _probe_single_id(_directory: str) -> None:
    uid = os.geteuid() or ORDINARY_ID
    owners = {str(uid)}
    with contextlib.suppress(KeyError):
        owners.add(pwd.getpwuid(uid).pw_name)
    for path in map(Path, ("/etc/subuid", "/etc/subgid")):
        lines = path.read_text().splitlines() if path.exists() else []
        if any(line.split(":")[0] in owners for line in lines):
            raise MissingError(f"{path} has a range of the user's")


def _probe_cgroup(controller: str | None) -> Probe:
    def probe(_directory: str) -> None:
        parent = own_cgroup()
        child = parent / f"needs-{os.getpid()}"
        child.mkdir()
        try:
            if controller is not None:
                _probe_controller(parent, child, controller)
        finally:
            child.rmdir()

    return probe


def _probe_controller(parent: Path, child: Path, controller: str) -> None:
    """Switch the controller on for the children of `parent`, and off again where it was off."""
    available = (parent / "cgroup.controllers").read_text().split()
    if controller not in available:
        raise MissingError(f"{parent}/cgroup.controllers has {' '.join(available) or 'nothing'}")
    if controller in (child / "cgroup.controllers").read_text().split():
        return
    switch = parent / "cgroup.subtree_control"
    switch.write_text(f"+{controller}")
    switch.write_text(f"-{controller}")


def _probe_kernel(least: str) -> Probe:
    def probe(_directory: str) -> None:
        release = os.uname().release
        if _version(release) < _version(least):
            raise MissingError(f"the kernel is {release}")

    return probe


def _probe_apparmor(_directory: str) -> None:
    switch = Path("/sys/module/apparmor/parameters/enabled")
    if not switch.exists() or switch.read_text() != "Y\n":
        raise MissingError("the kernel runs without AppArmor")


def _probe_selinux(_directory: str) -> None:
    if "\tselinuxfs\n" not in Path("/proc/filesystems").read_text():
        raise MissingError("the kernel runs without SELinux")


def _probe_landlock(_directory: str) -> None:
    create_ruleset, ask_version, wanted = 444, 1, 3
    version = ctypes.CDLL(None).syscall(create_ruleset, None, 0, ask_version)
    if version < wanted:
        raise MissingError(f"landlock_create_ruleset(2) tells version {version}")


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _probe_tool(name: str) -> Probe:
    def probe(_directory: str) -> None:
        path = shutil.which(name)
        if path is None:
            raise MissingError(f"no {name} in PATH")
        tool = TOOLS[name]
        status = _run_quietly([path, *tool.args]).returncode
        if status != tool.status:
            raise MissingError(f"{path} {' '.join(tool.args)}: exit status {status}")
        if tool.check is not None:
            tool.check(path)

    return probe


def _probe_libseccomp(_directory: str) -> None:
    ctypes.CDLL("libseccomp.so.2")


def _probe_x86_64(_directory: str) -> None:
    if os.uname().machine != "x86_64":
        raise MissingError(f"the machine is {os.uname().machine}")


def _check_static(path: str) -> None:
    """A root directory holds nothing but this program, so it must run without a loader."""
    interpreter = _program_interpreter(Path(path).read_bytes())
    if interpreter:
        raise MissingError(f"{path} is not static: it wants {interpreter}")


def _program_interpreter(elf: bytes) -> str:
    """The PT_INTERP of a 64-bit program; empty for a static one (gABI, chapter 5)."""
    if elf[:5] != b"\x7fELF\x02":
        raise MissingError("not a 64-bit ELF program")
    number = int.from_bytes(elf[56:58], sys.byteorder)
    start = int.from_bytes(elf[32:40], sys.byteorder)
    for header in range(start, start + number * 56, 56):
        if int.from_bytes(elf[header : header + 4], sys.byteorder) == PT_INTERP:
            offset = int.from_bytes(elf[header + 8 : header + 16], sys.byteorder)
            return elf[offset : elf.index(b"\0", offset)].decode()
    return ""


def _check_privileged(path: str) -> None:
    """newuidmap writes a map for somebody else only with rights of its own."""
    if os.stat(path).st_mode & stat.S_ISUID:
        return
    if "security.capability" not in os.listxattr(path):
        raise MissingError(f"{path} is neither setuid nor has file capabilities")


@dataclass(frozen=True)
class Tool:
    """How to see that a program runs: its arguments, their exit status, a look at the file."""

    args: tuple[str, ...] = ("--version",)
    status: int = 0
    check: Callable[[str], None] | None = None


PT_INTERP = 3

TOOLS = {
    "apparmor_parser": Tool(),
    "busybox": Tool(("true",), check=_check_static),
    "clang": Tool(),
    "debootstrap": Tool(),
    "gcc": Tool(),
    "ip": Tool(("-V",)),
    "musl-gcc": Tool(),
    "node": Tool(),
    "newgidmap": Tool((), status=1, check=_check_privileged),
    "newuidmap": Tool((), status=1, check=_check_privileged),
    "nft": Tool(),
    "podman": Tool(),
    "qemu-aarch64-static": Tool(),
    "qemu-system-x86_64": Tool(),
    "readelf": Tool(),
    "secilc": Tool(("--help",), status=1),
    "strace": Tool(),
    "tmux": Tool(("-V",)),
}


def _probe_vm(_directory: str) -> None:
    if not os.environ.get("CONTAINER_VM"):
        raise MissingError("the whole machine would be changed, and it is not the tests' own")


PROBES: dict[str, Probe] = {
    "apparmor": _probe_apparmor,
    "selinux": _probe_selinux,
    "landlock": _probe_landlock,
    "vm": _probe_vm,
    "libseccomp": _probe_libseccomp,
    "x86_64": _probe_x86_64,
    "root": _probe_root,
    "user": _probe_in_child("user"),
    "user_python": _probe_user_python,
    "rootless": _probe_in_child("rootless"),
    "single_id": _probe_single_id,
    "userns": _probe_in_child("userns"),
    "idmap": _probe_in_child("idmap"),
    "overlay": _probe_in_child("overlay"),
    "cgroup2": _probe_cgroup(None),
}

CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma")


def probe_of(need: str) -> Probe:
    """The probe for the name of a need; ValueError for any other name."""
    if need in PROBES:
        return PROBES[need]
    if need in TOOLS:
        return _probe_tool(need)
    family, colon, controller = need.partition(":")
    if family == "cgroup2" and colon and controller in CONTROLLERS:
        return _probe_cgroup(controller)
    if re.fullmatch(r"kernel>=\d+(\.\d+)*", need):
        return _probe_kernel(need.removeprefix("kernel>="))
    raise ValueError(f"{need!r} is no need that tests/needs.py knows")


def own_cgroup() -> Path:
    """Directory of this process's cgroup in the v2 hierarchy; MissingError where there is none."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[fields.index("-") + 1] == "cgroup2":
            break
    else:
        raise MissingError("no cgroup2 file system is mounted")
    root, mount_point = fields[3], fields[4]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return Path(mount_point, os.path.relpath(line.removeprefix("0::"), root))
    raise MissingError("the tests are in no cgroup of the v2 hierarchy")


# Running as the ordinary user -------------------------------------------------------------------


def as_user_argv(argv: Iterable[str], directories: Iterable[str] = ()) -> list[str]:
    """What to execute so that the ordinary user runs `argv`, in a fresh process.

    An ordinary user stays who it is. Root becomes `ORDINARY_ID` without any group. Where the
    interpreter or the package lies below a directory that only root may enter, the process gets
    a mount namespace of its own, in which an empty file system with just those directories, at
    the paths they always have, covers the closed one: the interpreter's paths are built into it,
    so a copy elsewhere would not do, and opening up the host's directory is not ours to do.
    The same is done for `directories`.
    """
    if os.geteuid() != 0:
        return list(argv)
    readable = os.pathsep.join([*python_directories(), *directories])
    return [*_fresh_python(), "become", readable, *argv]


def python_directories() -> list[str]:
    """What must be readable to run this interpreter with the `container` package."""
    paths = [sys.prefix, sys.base_prefix, *(path for path in sys.path if os.path.isdir(path))]
    directory = package_parent()
    if directory is not None:
        paths.append(directory)
    paths += [os.path.realpath(path) for path in paths]
    return sorted({os.path.abspath(path) for path in paths})


def package_parent() -> str | None:
    """The directory that `import container` finds the package in; None where it finds none."""
    spec = importlib.util.find_spec("container")
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent.parent)


def _fresh_python() -> list[str]:
    return [sys.executable, "-I", "-S", os.path.abspath(__file__)]


def _run_quietly(argv: list[str], cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        timeout=PROBE_SECONDS,
        check=False,
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the probe ended with {done.returncode}"


# What runs in the fresh interpreter: no threads, nothing to keep ---------------------------------

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
PR_SET_DUMPABLE = 4
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_IDMAP = 0x00100000
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_MOUNT_SETATTR = 442


class MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class Kernel:
    """The system calls that Python has no name for; OSError names the one that failed."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _checked(self, what: str, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")
        return result

    def unshare(self, flags: int, what: str) -> None:
        self._checked(f"unshare({what})", self._libc.unshare(flags))

    def set_dumpable(self) -> None:
        self._checked("prctl(PR_SET_DUMPABLE)", self._libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))

    def mount(self, source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
        result = self._libc.mount(
            *(os.fsencode(text) for text in (source, target, kind)),
            ctypes.c_ulong(flags),
            data.encode(),
        )
        self._checked(f"mount({kind or 'propagation'})", result)

    def open_tree(self, path: str) -> int:
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
        arguments = (ctypes.c_int(AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags))
        return self._checked(
            f"open_tree({path})", self._libc.syscall(ctypes.c_long(SYS_OPEN_TREE), *arguments)
        )

    def move_mount(self, tree: int, target: str) -> None:
        result = self._libc.syscall(
            ctypes.c_long(SYS_MOVE_MOUNT),
            ctypes.c_int(tree),
            b"",
            ctypes.c_int(AT_FDCWD),
            os.fsencode(target),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
        )
        self._checked(f"move_mount({target})", result)

    def map_ids(self, tree: int, user_namespace: int) -> None:
        attributes = MountAttr(attr_set=MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
        result = self._libc.syscall(
            ctypes.c_long(SYS_MOUNT_SETATTR),
            ctypes.c_int(tree),
            b"",
            ctypes.c_uint(AT_EMPTY_PATH),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
        self._checked("mount_setattr(MOUNT_ATTR_IDMAP)", result)


def become_user(kernel: Kernel) -> None:
    """Root becomes the ordinary user for good; an ordinary user stays who it is."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    os.setresgid(ORDINARY_ID, ORDINARY_ID, ORDINARY_ID)
    os.setresuid(ORDINARY_ID, ORDINARY_ID, ORDINARY_ID)
    # A change of ids clears it, and /proc/self would belong to root: no id map could be written.
    kernel.set_dumpable()


def _own_mounts(kernel: Kernel) -> None:
    kernel.unshare(CLONE_NEWNS, "CLONE_NEWNS")
    kernel.mount("none", "/", "", MS_REC | MS_PRIVATE)


def _child_user(kernel: Kernel, _directory: str) -> None:
    become_user(kernel)
    uid = os.getuid()
    ids = (*os.getresuid(), *os.getresgid())
    if uid == 0 or (uid == ORDINARY_ID and (set(ids) != {uid} or os.getgroups())):
        raise MissingError(f"the child has ids {ids} and groups {os.getgroups()}")


def _child_userns(kernel: Kernel, _directory: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(CLONE_NEWUSER, "CLONE_NEWUSER")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    # Some systems grant the namespace and withhold its capabilities: see that they are there.
    _own_mounts(kernel)


def _child_rootless(kernel: Kernel, directory: str) -> None:
    become_user(kernel)
    _child_userns(kernel, directory)


def _child_overlay(kernel: Kernel, directory: str) -> None:
    options = ""
    if os.geteuid() == 0:
        _own_mounts(kernel)
    else:
        _child_userns(kernel, directory)
        options = ",userxattr"
    kernel.mount("tmpfs", directory, "tmpfs")
    lower, upper, work, merged = (
        Path(directory, name) for name in ("lower", "upper", "work", "merged")
    )
    for path in (lower, upper, work, merged):
        path.mkdir()
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}{options}"
    kernel.mount("overlay", str(merged), "overlay", data=layers)
    (merged / "file").touch()
    if not (upper / "file").exists():
        raise MissingError("a file made in the overlay is not in its upper layer")


def _child_idmap(kernel: Kernel, directory: str) -> None:
    with _mapped_user_namespace(kernel) as user_namespace:
        _own_mounts(kernel)
        tree = kernel.open_tree(directory)
        kernel.map_ids(tree, user_namespace)
    owner = os.fstat(tree).st_uid
    if owner != MAPPED_ID + os.geteuid():
        raise MissingError(f"the owner of {directory} shows as {owner} and not as mapped")


@contextlib.contextmanager
def _mapped_user_namespace(kernel: Kernel) -> Iterator[int]:
    """A user namespace whose ids 0 to 65535 are those from MAPPED_ID on, as a file descriptor."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _hold_user_namespace(kernel, ready[1], go)
    try:
        os.close(ready[1])
        error = os.read(ready[0], 4096).decode()
        if error != "ok":
            raise MissingError(error)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {MAPPED_ID} 65536")
        user_namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield user_namespace
        finally:
            os.close(user_namespace)
    finally:
        for descriptor in (ready[0], *go):
            os.close(descriptor)
        os.waitpid(pid, 0)


def _hold_user_namespace(kernel: Kernel, ready: int, go: tuple[int, int]) -> NoReturn:
    """The forked child: be in a new user namespace until the parent closes its end, or ends."""
    os.close(go[1])
    try:
        kernel.unshare(CLONE_NEWUSER, "CLONE_NEWUSER")
        os.write(ready, b"ok")
        os.read(go[0], 1)
    except OSError as error:
        os.write(ready, str(error).encode())
    finally:
        os._exit(0)


CHILD_PROBES: dict[str, Callable[[Kernel, str], None]] = {
    "user": _child_user,
    "userns": _child_userns,
    "rootless": _child_rootless,
    "overlay": _child_overlay,
    "idmap": _child_idmap,
}


def expose(kernel: Kernel, paths: Iterable[str]) -> None:
    """Let everybody reach `paths` in a mount namespace of this process's own; see as_user_argv."""
    paths = sorted(paths)
    if any(map(_closed_directory, paths)):
        _own_mounts(kernel)
    while closed := next(filter(None, map(_closed_directory, paths)), None):
        _cover(kernel, closed, [path for path in paths if _closed_directory(path) == closed])


def _closed_directory(path: str) -> str | None:
    """The first directory on the way to `path`, or itself, that others may not enter."""
    for directory in (*reversed(Path(path).parents), Path(path)):
        if os.path.isdir(directory) and not os.stat(directory).st_mode & stat.S_IXOTH:
            return str(directory)
    return None


def _cover(kernel: Kernel, closed: str, wanted: Iterable[str]) -> None:
    """Mount an open directory over `closed`, with what is wanted of it in its place."""
    trees: dict[str, tuple[int, bool]] = {}
    for path in wanted:
        # Of the directory itself, its entries. What lies in one already taken comes with it.
        for each in sorted(entry.path for entry in os.scandir(path)) if path == closed else [path]:
            if os.path.exists(each) and not any(each.startswith(f"{top}/") for top in trees):
                trees[each] = (kernel.open_tree(each), os.path.isdir(each))
    kernel.mount("tmpfs", closed, "tmpfs", data="mode=755")
    for path, (tree, is_directory) in trees.items():
        os.makedirs(path if is_directory else os.path.dirname(path), exist_ok=True)
        if not is_directory:
            Path(path).touch()
        kernel.move_mount(tree, path)


def main(arguments: list[str]) -> None:
    """``probe NAME DIRECTORY``, or ``become PATHS COMMAND...`` for as_user_argv."""
    kernel = Kernel()
    verb, first, *rest = arguments
    if verb == "probe":
        CHILD_PROBES[first](kernel, rest[0])
        return
    os.umask(0o022)
    expose(kernel, first.split(os.pathsep))
    become_user(kernel)
    try:
        os.execvp(rest[0], rest)
    except OSError as error:
        raise OSError(error.errno, error.strerror, rest[0]) from None


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (MissingError, OSError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(MISSING_STATUS)
