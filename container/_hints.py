# SPDX-License-Identifier: Apache-2.0
"""Causes outside this package that are sure when they are found: what errors hint at, and what
`doctor` says. Everything is read from /proc at the time of the failure.
"""

import os
from errno import EACCES, ENOSPC, ENOSYS, EPERM
from pathlib import Path
from typing import Final

# Where a failure is one of rights that a user namespace was to give.
_RIGHTS: Final = frozenset(
    ("id-maps", "setup-ids", "network", "mount-namespace", "hostname", "filesystem", "pivot")
)
_APPARMOR: Final = "kernel.apparmor_restrict_unprivileged_userns"
_CLONE3: Final = 435  # on every architecture
_HARMLESS: Final = "/proc/sys/fs/binfmt_misc"  # is mounted on a directory that is always empty


def read_sysctl(name: str) -> str | None:
    """The value, None where this kernel does not have it."""
    try:
        return Path("/proc/sys", name.replace(".", "/")).read_text(encoding="ascii").strip()
    except OSError:
        return None


def mounts() -> list[list[str]]:
    """The fields of /proc/self/mountinfo, line by line."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return [line.split(" ") for line in text.splitlines()]


def mount_points() -> list[str]:
    try:
        return [line[4] for line in mounts()]
    except OSError:
        return []


def has_seccomp_filter() -> bool:
    try:
        return "\nSeccomp:\t2" in Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return False


_FILTERED: Final = (
    "a seccomp filter around this process denies clone3: start the outer container with"
    " --security-opt seccomp=unconfined or a profile that allows user namespaces, or with"
    " Config(nested=True) if it is one of ours"
)


def launcher_hint() -> str | None:
    """Why every launcher ends at once: before it can say so, it has made a process by clone3."""
    return _FILTERED if has_seccomp_filter() and _is_clone3_denied() else None


def _is_clone3_denied() -> bool:
    """By calling it without arguments: EINVAL where it gets through, and nothing is made."""
    import ctypes  # noqa: PLC0415  (for an error only)

    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_CLONE3, None, 0) < 0 and ctypes.get_errno() in (ENOSYS, EPERM))


def namespace_hint(number: int) -> str | None:
    """Why clone3(2) makes no namespaces."""
    if number == ENOSYS and has_seccomp_filter():
        return _FILTERED
    if number not in (EPERM, ENOSPC):
        return None
    for name in ("user.max_user_namespaces", "kernel.unprivileged_userns_clone"):
        concerned = name.startswith("user.") or os.geteuid() != 0
        if concerned and read_sysctl(name) == "0":
            return f"{name} is 0, which forbids user namespaces: sysctl -w {name}=..., see doctor"
    points = mount_points()
    if number == EPERM and points and "/" not in points:
        return "this process is in a chroot, where no user namespace can be made: use pivot_root"
    return rights_hint("id-maps", number)


def rights_hint(step: str, number: int) -> str | None:
    """Why the first process of a fresh user namespace lacks the rights that it has there."""
    if step not in _RIGHTS or number not in (EPERM, EACCES) or os.geteuid() == 0:
        return None
    if read_sysctl(_APPARMOR) != "1" or _apparmor_profile() != "unconfined":
        return None
    return (
        f"AppArmor takes the rights of ordinary users in user namespaces away ({_APPARMOR} is 1):"
        " give the Python interpreter a profile with the rule 'userns,', see doctor"
    )


def _apparmor_profile() -> str | None:
    for name in ("apparmor/current", "current"):
        try:
            return Path("/proc/self/attr", name).read_text(encoding="utf-8").strip("\0\n")
        except OSError:
            continue
    return None


def masked_hint(kind: str) -> str | None:
    """Why a new ``"proc"`` or ``"sysfs"`` is refused: it would show what is covered in ours."""
    top = {"proc": "/proc", "sysfs": "/sys"}.get(kind)
    if top is None:
        return None
    points = mount_points()
    covers = [
        point
        for point in points
        if point.startswith(f"{top}/")
        and point != _HARMLESS
        and not point.startswith(("/sys/fs/", "/sys/kernel/"))
    ]
    if covers:
        shown = ", ".join(covers[:3]) + (", ..." if len(covers) > 3 else "")
        return (
            f"parts of {top} are masked here, as inside another container ({shown}): give that one"
            " --security-opt systempaths=unconfined (Docker), unmask=ALL (podman), or"
            " Config(nested=True) if it is one of ours"
        )
    if points and top not in points:
        return (
            f"no {kind} is mounted on {top} here, and so none may be: mount -t {kind} {kind} {top}"
        )
    return None


def noexec_hint(root: str) -> str | None:
    """Why nothing can be executed in a root directory."""
    try:
        noexec = bool(os.statvfs(root).f_flag & os.ST_NOEXEC)
    except OSError:
        return None
    return (
        f"the file system of {root!r} is mounted noexec: mount -o remount,exec" if noexec else None
    )


LAUNCHER_HINT: Final = (
    "vm.memfd_noexec is 2, and none of $XDG_RUNTIME_DIR, /run, /dev/shm, /tmp, /var/tmp can be"
    " written and executed from: mount one of them without noexec"
)
