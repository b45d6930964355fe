# SPDX-License-Identifier: Apache-2.0
"""What is taken from a container or set in its procfs: masked and read-only paths, sysctls,
the limit of user namespaces. Pure; `container._rootfs` makes rows of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from container._config import Config, sysctl_path

# Docker's (moby, daemon/pkg/oci/defaults.go). What they show is of the whole machine: memory,
# keys and timers of everybody, interrupts by which keystrokes can be timed, firmware tables.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


@dataclass(frozen=True, slots=True)
class ProcWrite:
    """A value for a file of the container's procfs."""

    path: str  # below /proc
    value: str
    what: str
    field: str
    late: bool = False  # once the mounts are locked


def masked_paths(config: Config) -> tuple[str, ...]:
    """Those of the Config, or the default ones: none where containers shall nest."""
    return _chosen(config.masked_paths, MASKED_PATHS, config)


def readonly_paths(config: Config) -> tuple[str, ...]:
    """Likewise."""
    return _chosen(config.readonly_paths, READONLY_PATHS, config)


def _chosen(given: object, default: tuple[str, ...], config: Config) -> tuple[str, ...]:
    if given is not None:
        return tuple(map(str, given))  # type: ignore[call-overload]
    # A new procfs or sysfs is refused to whoever sees only a covered one (mount_namespaces(7)).
    return () if config.nested else default


def proc_writes(config: Config, *, locked: bool) -> Iterator[ProcWrite]:
    """In their order; ``locked``: the flags of the mounts will be locked, by a user namespace."""
    for name, value in config.sysctl.items():
        path = "/".join(("sys", *sysctl_path(name)))
        yield ProcWrite(path, value, f"sysctl {name!r}", f"sysctl[{name!r}]")
    # What the process becomes by its execve; whatever happens until then happens without.
    if config.apparmor_profile is not None:
        yield ProcWrite(
            "thread-self/attr/apparmor/exec",
            f"exec {config.apparmor_profile}",
            f"AppArmor profile {config.apparmor_profile!r}",
            "apparmor_profile",
        )
    if config.selinux_label is not None:
        yield ProcWrite(
            "thread-self/attr/exec",
            config.selinux_label,
            f"SELinux label {config.selinux_label!r}",
            "selinux_label",
        )
    if config.namespaces.user is True and not config.nested:  # not one that is another's too
        yield ProcWrite(
            "sys/user/max_user_namespaces",
            "0",
            "the limit of user namespaces",
            "nested",
            late=locked,
        )
