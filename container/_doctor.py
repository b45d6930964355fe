# SPDX-License-Identifier: Apache-2.0
"""What works on this machine for this caller, found out by doing it; what to do about the rest."""

import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from errno import EPERM
from fcntl import F_GET_SEALS, F_SEAL_WRITE, fcntl
from pathlib import Path
from typing import Final

from container import __version__, _ids
from container._config import Config, Namespaces, Overlay, Process, Result
from container._container import Container
from container._errors import (
    CgroupError,
    ContainerError,
    ControllerNotEnabledError,
    LaunchError,
    UnsupportedError,
    printable,
    publish,
)
from container._hierarchy import find_place
from container._hints import has_seccomp_filter, mounts, read_sysctl
from container._launcher import STEPS, launcher_pid, open_program
from container._oneshot import run

_OLDEST_KERNEL: Final = (5, 14)
_TMPFS_ATTRIBUTES: Final = (6, 6)  # user.* ones, in which overlayfs notes a replaced directory
_DECISIVE: Final = "container"
_COLUMN: Final = 24  # of a report's text; the longest names, of sysctls, go beyond
_NAMESPACES: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
_SHAREABLE: Final = ("net", "ipc", "uts", "cgroup")  # a container can do without a new one
# Steps that a missing namespace fails, and those that are only reached with all of them.
_SEPARATING_STEPS: Final = ("clone", "id-maps")
_ALL_STEPS: Final = [STEPS[number] for number in sorted(STEPS)]
_LATER_STEPS: Final = _ALL_STEPS[_ALL_STEPS.index(_SEPARATING_STEPS[-1]) + 1 :]
_Failure = ContainerError | OSError


@dataclass(frozen=True, slots=True)
class Check:
    """One feature, tried: ``detail`` says what was seen, ``remedy`` what to do (None: nothing)."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What `doctor` found for one caller; ``str()`` of it is a text for people.

    ``version`` is this package's, ``kernel`` a release as uname(2) has it, ``machine`` a processor
    architecture, ``python`` a version, ``uid`` the caller's effective user id.
    """

    version: str
    kernel: str
    machine: str
    python: str
    uid: int
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether a default container runs. Checks may still have failed: they limit it."""
        return any(check.ok for check in self.checks if check.name == _DECISIVE)

    def to_json(self) -> str:
        """A JSON object with every field, ``ok`` and the list of checks."""
        import json  # noqa: PLC0415  (8 ms)

        return json.dumps(asdict(self) | {"ok": self.ok}, indent=2)

    def __str__(self) -> str:
        lines = [
            f"container {self.version}, Linux {self.kernel} {self.machine},"
            f" Python {self.python}, uid {self.uid}",
            "",
        ]
        for check in self.checks:
            lines.append(f"{'ok' if check.ok else 'no'}  {check.name:{_COLUMN}}  {check.detail}")
            if check.remedy is not None:
                lines.append(f"{'':{_COLUMN + 6}}-> {check.remedy}")
        verdict = "A container runs here." if self.ok else "No container runs here."
        return "\n".join(printable(line) for line in (*lines, "", verdict))


def doctor() -> Report:
    """Try every feature that this version uses, as the caller, and report.

    Takes about a tenth of a second, starts some containers, leaves nothing behind, raises nothing
    for what does not work.
    """
    return Report(
        version=__version__,
        kernel=os.uname().release,
        machine=os.uname().machine,
        python=platform.python_version(),
        uid=os.geteuid(),
        checks=tuple(_checks()),
    )


def _checks() -> Iterator[Check]:
    yield _kernel(os.uname().release)
    yield _proc()
    yield _launcher()
    failure = _failure_of(Config())
    yield from _namespaces(failure)
    yield _time_namespace(failure)
    yield _id_maps()
    yield _id_ranges()
    yield _idmapped_mounts()
    yield _overlay(os.uname().release)
    yield from _default_container()
    yield from _cgroup()
    for sysctl in _SYSCTLS:
        yield _limit(sysctl, read_sysctl(sysctl.name), os.geteuid() == 0)


def _numbers(release: str) -> tuple[int, ...]:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return tuple(map(int, numbers.groups())) if numbers is not None else ()


def _kernel(release: str) -> Check:
    oldest = ".".join(map(str, _OLDEST_KERNEL))
    if _numbers(release) >= _OLDEST_KERNEL:
        return Check("kernel", True, f"{release}; {oldest} is the oldest promised")
    return Check("kernel", False, f"{release} is too old", f"run Linux {oldest} or newer")


def _proc() -> Check:
    try:
        seen = os.readlink("/proc/self")
    except OSError as error:
        return Check("proc", False, str(error), "mount -t proc proc /proc")
    if seen == str(os.getpid()):
        return Check("proc", True, "shows the processes of this PID namespace")
    detail = f"this is process {os.getpid()} and /proc says {seen}: it is of another PID namespace"
    return Check("proc", False, detail, "mount -t proc proc /proc, in a mount namespace")


# The launcher ------------------------------------------------------------------------------------


def _launcher() -> Check:
    try:
        text = f"runs from {_describe_program()}, {_memory_of(launcher_pid())}"
    except (ContainerError, OSError) as error:
        remedy = "let $XDG_RUNTIME_DIR, /run or /tmp be a file system that is not noexec"
        return Check("launcher", False, str(error), remedy)
    return Check("launcher", True, text)


def _describe_program() -> str:
    import hashlib  # noqa: PLC0415

    fd = open_program()
    try:
        link = os.readlink(f"/proc/self/fd/{fd}")
        image = os.pread(fd, os.fstat(fd).st_size, 0)
        sealed = link.startswith("/memfd:") and bool(fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE)
    finally:
        os.close(fd)
    kind = "a sealed memfd" if sealed else f"a private file in {os.path.dirname(link)}"
    return f"{kind}, {len(image)} bytes, sha256 {hashlib.sha256(image).hexdigest()}"


def _memory_of(pid: int) -> str:
    """Its share of the memory; only root may see that of a process that is not dumpable."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except PermissionError:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    sizes = dict(line.partition(":")[::2] for line in lines)
    name, size = next((key, sizes[key].strip()) for key in ("Pss", "VmRSS") if key in sizes)
    return f"{'PSS' if name == 'Pss' else 'RSS'} {size}"


# Namespaces and ids ------------------------------------------------------------------------------


def _failure_of(config: Config) -> _Failure | None:
    """What keeps a container from being set up; its program is not started."""
    try:
        with Container(config) as box:
            box.create(Process(["/"]))
    except (ContainerError, OSError) as error:
        return error
    return None


def _namespaces(failure: _Failure | None) -> Iterator[Check]:
    """What the failure of a container with all of them says of each."""
    bad: dict[str, Check] = {}
    verdict = "a container gets one of its own"
    step = failure.step if isinstance(failure, LaunchError) else None
    if isinstance(failure, LaunchError) and step in _SEPARATING_STEPS:
        bad = _bad_namespaces(failure)
        verdict = "nothing is known to stand against it"
    elif failure is not None and step not in _LATER_STEPS:
        verdict = "not tried: no container can be asked for"
        bad = {name: Check(_title(name), False, verdict) for name in _NAMESPACES}
    for name in _NAMESPACES:
        yield bad.get(name) or Check(_title(name), True, verdict)


def _title(name: str) -> str:
    return f"{name} namespace"


def _bad_namespaces(failure: LaunchError) -> dict[str, Check]:
    found = {name: _missing_namespace(name) or _culprit(name, failure) for name in _NAMESPACES}
    bad = {name: check for name, check in found.items() if check is not None}
    # It comes first, and there are reasons against it that nothing shows.
    user = Check(_title("user"), False, str(failure), _user_namespace_remedy(failure))
    return bad or {"user": user}


def _missing_namespace(name: str) -> Check | None:
    if not os.path.exists(f"/proc/self/ns/{name}"):
        return Check(_title(name), False, "this kernel was built without it", "use another kernel")
    limit = f"user.max_{name}_namespaces"
    if read_sysctl(limit) == "0":
        return Check(_title(name), False, f"{limit} is 0", f"sysctl -w {limit}=10000")
    return None


def _culprit(name: str, failure: LaunchError) -> Check | None:
    """Whether a container that shares the host's could be set up."""
    if name not in _SHAREABLE:
        return None
    if _failure_of(Config(namespaces=replace(Namespaces(), **{name: False}))) is not None:
        return None
    remedy = f"Namespaces({name}=False) shares the host's, which is one wall less"
    return Check(_title(name), False, str(failure), remedy)


def _user_namespace_remedy(failure: LaunchError) -> str:
    if failure.hint is not None:
        return "a sysctl below tells what to set"
    if failure.errno == EPERM and has_seccomp_filter():
        return (
            "a seccomp filter around this process forbids it: in Docker or podman give"
            " --security-opt seccomp=unconfined to the outer container"
        )
    return "see whether the process is in a chroot, or a security module forbids it (dmesg)"


def _time_namespace(failure: _Failure | None) -> Check:
    title = _title("time")
    if failure is not None:
        return Check(title, False, "not tried: no container can be set up")
    failure = _failure_of(Config(namespaces=Namespaces(time=True)))
    if failure is None:
        return Check(title, True, "a container gets one of its own where it asks for it")
    missing = _missing_namespace("time")
    return missing or Check(title, False, str(failure), "leave Namespaces(time=False)")


def _id_maps() -> Check:
    title = "id maps"
    try:
        with Container() as box:
            box.create(Process(["/"]))
            lines = Path(f"/proc/{box.pid}/uid_map").read_text(encoding="ascii").splitlines()
            first, host, size = map(int, lines[0].split())
    except UnsupportedError as error:
        remedy = "give root 65536 ids or more in /etc/subuid and /etc/subgid"
        return Check(title, False, str(error), remedy)
    except (ContainerError, OSError) as error:
        return Check(title, False, f"not tried: {error}")
    if size > 1:
        count = len(_ids.available_slots())
        return Check(
            title,
            True,
            f"each container leases a range of its own, such as {first} to {first + size - 1} ="
            f" host {host} to {host + size - 1}; there are {count}",
        )
    return Check(
        title,
        True,
        f"a single id: host uid {host} is root inside, every other id shows as nobody;"
        " supplementary groups cannot be dropped",
    )


def _id_ranges() -> Check:
    """Of an ordinary user, by a container whose process needs more than the single id."""
    title = "id ranges"
    if os.geteuid() == 0:
        return Check(title, True, "not needed: root maps ids without newuidmap and newgidmap")
    ranges = _ids.own_ranges()
    if ranges.programs is None:
        return Check(title, False, f"no user but 0 inside: {ranges.lacking}", ranges.remedy)
    try:
        with Container() as box:
            box.create(Process(["/"], user="1:1"))
            lines = Path(f"/proc/{box.pid}/uid_map").read_text(encoding="ascii").splitlines()
    except (ContainerError, OSError) as error:
        remedy = error.hint if isinstance(error, LaunchError) else None
        return Check(title, False, str(error), remedy or "see what newuidmap says: id maps")
    count = sum(int(line.split()[2]) for line in lines)
    names = " and ".join(ranges.programs)
    return Check(title, True, f"{count} ids where a process needs another user, by {names}")


def _idmapped_mounts() -> Check:
    title = "idmapped mounts"
    if os.geteuid() != 0 or not _ids.can_lease():
        return Check(title, True, "not needed: root of a container is the caller's own id")
    place = tempfile.gettempdir()
    # No rmtree: what the container's mount points left are empty directories.
    with tempfile.TemporaryDirectory(prefix="container-doctor-") as directory:
        failure = _failure_of(Config(root=directory))
    where = f"the file system of {place} ({_file_system_of(place)})"
    if failure is None:
        return Check(title, True, f"{where} can be id-mapped")
    return Check(
        title,
        False,
        f"{where} cannot be a root directory or a writable bind: {failure}",
        "use ext4, xfs, btrfs, or tmpfs of Linux 6.3; or give uid_mappings and gid_mappings."
        " Bind read-only otherwise: files of host root then show as nobody's",
    )


def _overlay(release: str) -> Check:
    title = "overlay"
    with tempfile.TemporaryDirectory(prefix="container-doctor-") as directory:
        os.mkdir(lower := f"{directory}/lower")
        failure = _failure_of(Config(root=Overlay(lower)))
    if failure is not None:
        return Check(title, False, str(failure), "use a root directory, or a copy of one")
    if _numbers(release) < _TMPFS_ATTRIBUTES:
        return Check(
            title,
            True,
            f"works over {tempfile.gettempdir()}; in memory, without upper=, a directory of a lower"
            " layer cannot be removed on this kernel (EIO)",
            "give Overlay an upper directory, or run Linux 6.6",
        )
    return Check(title, True, f"works over {tempfile.gettempdir()}")


def _file_system_of(path: str) -> str:
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts():
        if line[2] == number:
            return line[line.index("-") + 1]
    return "unknown"


# A whole container -------------------------------------------------------------------------------


def _default_container() -> Iterator[Check]:
    groups, seccomp = "supplementary groups", "seccomp"
    try:
        result = run(["cat", "/proc/self/status"], text=True, check=True, timeout=60)
    except (ContainerError, OSError) as error:
        yield Check(_DECISIVE, False, str(error), _container_remedy(error))
        yield Check(seccomp, False, "not tried: no container runs")
        yield Check(groups, False, "not tried: no container runs")
        return
    yield Check(_DECISIVE, True, f"one on the default root ran in {_milliseconds(result)} ms")
    yield _seccomp(seccomp, result.stdout)
    yield _groups(groups, result.stdout)


def _milliseconds(result: Result) -> str:
    return "?" if result.usage is None else f"{result.usage.wall * 1000:.0f}"


def _container_remedy(error: _Failure) -> str | None:
    if not isinstance(error, LaunchError):
        return None
    if error.step == "exec":
        return "the host's /usr has no usable programs: give a root directory"
    if error.step == "filesystem" and error.errno == EPERM and error.filename == "/proc":
        return (
            "parts of /proc are masked here, as inside another container: give that one"
            " --security-opt systempaths=unconfined (Docker), unmask=ALL (podman)"
        )
    return "the first check that failed above, or a sysctl below, tells the cause"


def _seccomp(title: str, status: str) -> Check:
    """``Seccomp_filters:`` counts those around this process, too."""
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    if fields["Seccomp"].strip() != "2":
        return Check(title, False, "a container runs without a filter", "report this as a bug")
    outer = int(fields["Seccomp_filters"]) - 1
    around = f", below {outer} around this process" if outer else ""
    return Check(title, True, f"a container has a filter of system calls{around}")


def _groups(title: str, status: str) -> Check:
    """``Groups:`` as the command in the container had it; unmapped ids show as 65534."""
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    kept = [group for group in fields["Groups"].split() if group != "0"]
    if not kept:
        return Check(title, True, "a container has none of the caller's")
    names = ", ".join(str(group) for group in sorted({*os.getgroups()} - {os.getegid()}))
    return Check(
        title,
        False,
        f"the caller's groups {names} cannot be dropped: what they open, a container opens too",
        "start from an account without them, or as root",
    )


# What limits and what may help -------------------------------------------------------------------


def _cgroup() -> Iterator[Check]:
    """Where cgroups of containers can be made, and with which limits: by asking for both."""
    try:
        detail, ok = f"containers have theirs in {_probe_place()}", True
    except CgroupError as error:
        detail, ok = str(error), False
    yield Check("cgroup v2", ok, detail)
    yield _limits() if ok else Check("limits", False, "there is no cgroup for them")


def _probe_place(*controllers: str) -> str:
    place = find_place(controllers)
    with suppress(OSError):  # somebody uses it
        os.rmdir(place)
    return place


def _limits() -> Check:
    refused: list[ControllerNotEnabledError] = []
    have = []
    for name in ("memory", "cpu", "pids"):
        try:
            _probe_place(name)
        except ControllerNotEnabledError as error:
            refused.append(error)
        else:
            have.append(name)
    if not refused:
        return Check("limits", True, f"of {', '.join(have)}")
    lacking = "; ".join(f"not of {each.controller}, held by {each.holder}" for each in refused)
    detail = f"of {', '.join(have)}; {lacking}" if have else lacking
    return Check("limits", False, detail, refused[0].remedy)


@dataclass(frozen=True, slots=True)
class _Sysctl:
    """One that stands against containers with one value; ``for_root``: against root's too."""

    name: str
    bad: str
    follows: str
    remedy: str | None
    for_root: bool = False


_SYSCTLS: Final = (
    _Sysctl(
        "user.max_user_namespaces",
        "0",
        "no user namespace can be made",
        "sysctl -w user.max_user_namespaces=10000",
        for_root=True,
    ),
    _Sysctl(
        "kernel.unprivileged_userns_clone",
        "0",
        "only root can make a user namespace",
        "sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    _Sysctl(
        "kernel.apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor takes the rights of an ordinary user in a user namespace away",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with"
        " the rule 'userns,' for the Python interpreter",
    ),
    _Sysctl("vm.memfd_noexec", "2", "the launcher has to run from a private file", None, True),
)


def _limit(sysctl: _Sysctl, value: str | None, root: bool) -> Check:
    title = f"sysctl {sysctl.name}"
    if value is None:
        return Check(title, True, "this kernel does not have it")
    if value != sysctl.bad:
        return Check(title, True, f"{value}: no limit")
    if root and not sysctl.for_root:
        return Check(title, True, f"{value}: {sysctl.follows}; root is not concerned")
    return Check(title, False, f"{value}: {sysctl.follows}", sysctl.remedy)


publish(Check, Report, doctor)
