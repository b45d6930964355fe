# SPDX-License-Identifier: Apache-2.0
"""Where cgroups can be made: the v2 mount, this process's place in it, who has which controller.

A cgroup that has processes itself can give its children no controllers ("no internal processes",
cgroup-v2.rst), and processes that are not ours are never moved. So the cgroups of containers lie
in a directory of their own, `SUBTREE`, below the nearest cgroup that has none and that may be
written: as root that is the top of the hierarchy, or what systemd has delegated to a service of
ours; within a container, and for everybody else, the nearest one above this process, but none
above what systemd has delegated, and none that a user's systemd has for itself.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EACCES, EBUSY, ENOENT, EPERM, EROFS
from pathlib import PurePosixPath

from container._errors import (
    CgroupError,
    CgroupV2NotMountedError,
    ControllerNotEnabledError,
)

SUBTREE = "container"
SCOPE = re.compile(r"container-.+\.scope")  # of systemd, see _systemd.py
_USER_MANAGER = re.compile(r"user@\d+\.service")
_V1_NAMES = {"io": "blkio"}
_DENIED = (EACCES, EPERM, EROFS)
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The v2 hierarchy as this process sees it: directories."""

    top: str
    own: str  # of this process's cgroup; the top where it lies outside of what is mounted


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _words(path: str) -> list[str]:
    try:
        return read(path).split()
    except OSError:
        return []


def _mounts(kind: str) -> Iterator[tuple[str, str, list[str]]]:
    """What of the file system shows where, and its own options."""
    for line in read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        tail = fields[fields.index("-") + 1 :]
        if tail[0] == kind:
            root, point = (
                _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) for text in fields[3:5]
            )
            yield root, point, tail[2].split(",")


def find_hierarchy() -> Hierarchy:
    """Where v2 is mounted: at /sys/fs/cgroup, or beside v1 in a place of its own."""
    try:
        mounts = list(_mounts("cgroup2"))
        lines = read("/proc/self/cgroup").splitlines()
    except OSError as error:
        raise CgroupV2NotMountedError(f"cannot read {error.filename}: {error.strerror}") from None
    if not mounts:
        raise CgroupV2NotMountedError(
            "no cgroup v2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup, or give"
            " the outer container one"
        )
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    for root, point, _ in mounts:
        if os.path.isdir(point) and PurePosixPath(own).is_relative_to(root):
            directory = os.path.normpath(os.path.join(point, os.path.relpath(own, root)))
            if os.path.isdir(directory):
                return Hierarchy(point, directory)
    return Hierarchy(mounts[0][1], mounts[0][1])


def is_delegation_boundary(top: str) -> bool:
    """Whether the mount has nsdelegate: a cgroup namespace cannot change its own limits."""
    return any(point == top and "nsdelegate" in options for _, point, options in _mounts("cgroup2"))


def _ancestors(hierarchy: Hierarchy) -> list[str]:
    """From this process's own cgroup up to the top."""
    path = PurePosixPath(hierarchy.own)
    found = [path, *path.parents]
    return [str(each) for each in found if each.is_relative_to(hierarchy.top)]


def _is_delegated(directory: str) -> bool:
    for name in ("trusted.delegate", "user.delegate"):  # systemd.resource-control(5), Delegate=
        with suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _candidates(hierarchy: Hierarchy) -> list[str]:
    ancestors = _ancestors(hierarchy)
    # Only the root of all cgroups lacks this file.
    is_root = not os.path.exists(os.path.join(hierarchy.top, "cgroup.events"))
    delegated = [i for i, directory in enumerate(ancestors) if _is_delegated(directory)]
    if os.geteuid() == 0 and is_root:
        return [*(ancestors[i] for i in delegated[:1]), hierarchy.top]
    if not delegated:  # without systemd: what may be written tells
        return ancestors
    if _USER_MANAGER.fullmatch(os.path.basename(ancestors[delegated[0]])):
        return ancestors[:1]  # the rest is that systemd's own
    return ancestors[: delegated[0] + 1]


def enable(directory: str, wanted: Collection[str]) -> None:
    """Give its children these controllers; OSError where that is not to be."""
    path = os.path.join(directory, "cgroup.subtree_control")
    missing = set(wanted) - set(_words(path))
    for name in sorted(missing):
        with open(path, "w", encoding="ascii") as file:
            file.write(f"+{name}")


def available(directory: str) -> frozenset[str]:
    """The controllers of a cgroup."""
    return frozenset(_words(os.path.join(directory, "cgroup.controllers")))


def subtrees() -> list[str]:
    """Where cgroups of containers can be now, of whoever may be looked at."""
    hierarchy = find_hierarchy()
    number = os.geteuid()
    manager = f"user.slice/user-{number}.slice/user@{number}.service" if number else "system.slice"
    scopes = _scopes(os.path.join(hierarchy.top, manager))
    found = (os.path.join(each, SUBTREE) for each in (*_candidates(hierarchy), *scopes))
    return [path for path in found if os.path.isdir(path)]


def _scopes(directory: str) -> Iterator[str]:
    """Those of ours in a slice, and in the slices below it."""
    for name in _names(directory):
        if SCOPE.fullmatch(name):
            yield f"{directory}/{name}"
        elif name.endswith(".slice"):
            yield from _scopes(f"{directory}/{name}")


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why there is no place below a candidate."""

    directory: str
    errno: int
    missing: tuple[str, ...] = ()


def _try(directory: str, wanted: Collection[str]) -> str | _Refusal:
    missing = tuple(sorted(set(wanted) - available(directory)))
    if missing:
        return _Refusal(directory, ENOENT, missing)
    subtree = os.path.join(directory, SUBTREE)
    made = False
    try:
        enable(directory, wanted)
        with suppress(FileExistsError):
            os.mkdir(subtree, 0o755)
            made = True
        enable(subtree, wanted)
        # Another user's is no place for ours, though it may be there.
        if not os.access(subtree, os.W_OK, effective_ids=True):
            return _Refusal(directory, EACCES, tuple(wanted))
    except OSError as error:
        if made:
            with suppress(OSError):
                os.rmdir(subtree)
        return _Refusal(directory, error.errno or EACCES, tuple(wanted))
    return subtree


def find_place(
    wanted: Collection[str], optional: Collection[str] = (), within: str | None = None
) -> str:
    """A directory, which is there, whose children have these controllers.

    ``within`` is a cgroup that is delegated to us, else one is looked for.

    ``optional`` ones too where there is such a place. `ControllerNotEnabledError`
    names who has the controller that is missing.
    """
    hierarchy = find_hierarchy()
    candidates = _candidates(hierarchy) if within is None else [within]
    # First where what is optional can be had as well: the next one may not do without it.
    refusals: list[_Refusal] = []
    for extra in (set(optional), set[str]()) if optional else (set[str](),):
        refusals = []
        for directory in candidates:
            place = _try(directory, {*wanted, *(extra & available(directory))})
            if isinstance(place, str):
                return place
            refusals.append(place)
    raise _explain(hierarchy, refusals)


def _explain(hierarchy: Hierarchy, refusals: list[_Refusal]) -> CgroupError:
    # What stands in the way where we may write is nearer to a remedy than where we may not.
    best = next((each for each in refusals if each.errno not in _DENIED), refusals[0])
    if not best.missing:
        return CgroupError(
            f"no cgroup can be made in {best.directory!r}: {os.strerror(best.errno)};"
            f" hint: {_delegation()}"
        )
    name = best.missing[0]
    if name not in available(hierarchy.top):
        holder, remedy = _find_holder(name, hierarchy.top)
    elif best.errno == EBUSY:
        holder = f"the processes in {best.directory}, which keep it from its children"
        remedy = (
            f"move them into a cgroup of their own (mkdir {best.directory}/main), or start the"
            " service with DelegateSubgroup=main"
        )
    elif best.errno == ENOENT:
        above = _last_with(name, _ancestors(hierarchy))
        holder = f"{above}, whose cgroup.subtree_control does not give it to its children"
        remedy = f"as root: echo +{name} > {above}/cgroup.subtree_control, or {_delegation()}"
    else:
        holder = f"{best.directory}, which user {os.geteuid()} may not write"
        remedy = _delegation()
    return ControllerNotEnabledError(name, holder=holder, remedy=remedy)


def _delegation() -> str:
    return (
        "systemd-run --user --scope -p Delegate=yes PROGRAM starts one with a delegated cgroup;"
        " with pip install 'container[systemd]' the user's systemd is asked for one"
    )


def _last_with(name: str, ancestors: list[str]) -> str:
    return next((each for each in ancestors if name in available(each)), ancestors[-1])


def _find_holder(name: str, top: str) -> tuple[str, str]:
    """Of a controller that the v2 mount does not have at all."""
    v1 = _V1_NAMES.get(name, name)
    for _, point, options in _mounts("cgroup"):
        if v1 in options:
            return (
                f"the cgroup v1 mount at {point}",
                f"boot with cgroup_no_v1={name}, or with systemd.unified_cgroup_hierarchy=1",
            )
    states = {}
    with suppress(OSError):
        states = {line.split()[0]: line.split() for line in read("/proc/cgroups").splitlines()[1:]}
    if v1 in states and states[v1][3] == "0":
        return "the kernel, which has it switched off", f"boot without cgroup_disable={v1}"
    if v1 in states and states[v1][1] != "0":
        return (
            f"a cgroup v1 hierarchy (number {states[v1][1]}), mounted elsewhere",
            f"boot with cgroup_no_v1={name}",
        )
    if os.path.exists(os.path.join(top, "cgroup.events")):
        return f"a cgroup above {top}, which is outside of this container", "delegate it there"
    return "nobody: this kernel does not have it", "use a kernel that has"
