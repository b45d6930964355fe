# SPDX-License-Identifier: Apache-2.0
"""Capabilities: names, sets and 64-bit masks. Pure; nothing here makes a system call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum, auto

from container._errors import ConfigError, publish


class Capability(StrEnum):
    """A Linux capability; the value is the kernel's name, ``number`` its bit.

    Members are named with and without ``CAP_``. Calling the class parses a name of either kind in
    any case: ``Capability("net_admin")``. Order is that of ``include/uapi/linux/capability.h``.
    """

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    CAP_CHOWN = CHOWN = auto()
    CAP_DAC_OVERRIDE = DAC_OVERRIDE = auto()
    CAP_DAC_READ_SEARCH = DAC_READ_SEARCH = auto()
    CAP_FOWNER = FOWNER = auto()
    CAP_FSETID = FSETID = auto()
    CAP_KILL = KILL = auto()
    CAP_SETGID = SETGID = auto()
    CAP_SETUID = SETUID = auto()
    CAP_SETPCAP = SETPCAP = auto()
    CAP_LINUX_IMMUTABLE = LINUX_IMMUTABLE = auto()
    CAP_NET_BIND_SERVICE = NET_BIND_SERVICE = auto()
    CAP_NET_BROADCAST = NET_BROADCAST = auto()
    CAP_NET_ADMIN = NET_ADMIN = auto()
    CAP_NET_RAW = NET_RAW = auto()
    CAP_IPC_LOCK = IPC_LOCK = auto()
    CAP_IPC_OWNER = IPC_OWNER = auto()
    CAP_SYS_MODULE = SYS_MODULE = auto()
    CAP_SYS_RAWIO = SYS_RAWIO = auto()
    CAP_SYS_CHROOT = SYS_CHROOT = auto()
    CAP_SYS_PTRACE = SYS_PTRACE = auto()
    CAP_SYS_PACCT = SYS_PACCT = auto()
    CAP_SYS_ADMIN = SYS_ADMIN = auto()
    CAP_SYS_BOOT = SYS_BOOT = auto()
    CAP_SYS_NICE = SYS_NICE = auto()
    CAP_SYS_RESOURCE = SYS_RESOURCE = auto()
    CAP_SYS_TIME = SYS_TIME = auto()
    CAP_SYS_TTY_CONFIG = SYS_TTY_CONFIG = auto()
    CAP_MKNOD = MKNOD = auto()
    CAP_LEASE = LEASE = auto()
    CAP_AUDIT_WRITE = AUDIT_WRITE = auto()
    CAP_AUDIT_CONTROL = AUDIT_CONTROL = auto()
    CAP_SETFCAP = SETFCAP = auto()
    CAP_MAC_OVERRIDE = MAC_OVERRIDE = auto()
    CAP_MAC_ADMIN = MAC_ADMIN = auto()
    CAP_SYSLOG = SYSLOG = auto()
    CAP_WAKE_ALARM = WAKE_ALARM = auto()
    CAP_BLOCK_SUSPEND = BLOCK_SUSPEND = auto()
    CAP_AUDIT_READ = AUDIT_READ = auto()
    CAP_PERFMON = PERFMON = auto()
    CAP_BPF = BPF = auto()
    CAP_CHECKPOINT_RESTORE = CHECKPOINT_RESTORE = auto()

    @property
    def number(self) -> int:
        """The bit of this capability in a mask, 0 to 40."""
        return _NUMBERS[self]

    @classmethod
    def _missing_(cls, value: object) -> "Capability":
        return parse_capability(value)


_NUMBERS: Mapping[Capability, int] = {cap: number for number, cap in enumerate(Capability)}
_ALL = frozenset(Capability)

# What Docker and podman leave to a container (moby, oci/caps/defaults.go).
_DEFAULT = frozenset(
    {
        Capability.CAP_CHOWN,
        Capability.CAP_DAC_OVERRIDE,
        Capability.CAP_FOWNER,
        Capability.CAP_FSETID,
        Capability.CAP_KILL,
        Capability.CAP_SETGID,
        Capability.CAP_SETUID,
        Capability.CAP_SETPCAP,
        Capability.CAP_NET_BIND_SERVICE,
        Capability.CAP_NET_RAW,
        Capability.CAP_SYS_CHROOT,
        Capability.CAP_MKNOD,
        Capability.CAP_AUDIT_WRITE,
        Capability.CAP_SETFCAP,
    }
)


def default_capabilities() -> frozenset[Capability]:
    """The 14 capabilities that Docker leaves to a container."""
    return _DEFAULT


def parse_capability(name: object, field: str = "capability") -> Capability:
    """The capability of this name, with or without ``CAP_``, in any case; else `ConfigError`."""
    if isinstance(name, Capability):
        return name
    if not isinstance(name, str):
        kind = type(name).__name__
        raise ConfigError(f"expected the name of a capability, got {kind}", field=field)
    member = Capability.__members__.get(name.upper()) if name.isascii() else None
    if member is None:
        raise ConfigError(f"unknown capability {name[:80]!r}", field=field)
    return member


def parse_capabilities(names: object, field: str = "capabilities") -> frozenset[Capability]:
    """The set of these names; a lone ``str`` is refused, its letters are not names."""
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        kind = type(names).__name__
        raise ConfigError(f"expected an iterable of capability names, got {kind}", field=field)
    return frozenset(parse_capability(name, field) for name in names)


def to_mask(capabilities: Iterable[Capability]) -> int:
    """The kernel's 64-bit mask of a set: bit ``number`` for each member."""
    mask = 0
    for capability in capabilities:
        mask |= 1 << capability.number
    return mask


def from_mask(mask: int, field: str = "mask") -> frozenset[Capability]:
    """The set of a 64-bit mask; `ConfigError` for a bit that has no name here."""
    if mask < 0 or mask & ~to_mask(_ALL):
        raise ConfigError(f"{mask:#x} has bits that are no known capability", field=field)
    return frozenset(cap for cap, number in _NUMBERS.items() if mask >> number & 1)


@dataclass(frozen=True, slots=True, init=False)
class Capabilities:
    """The five capability sets that the program is executed with; ``Capabilities()`` has none.

    Each takes any iterable of names or `Capability`. Refused, because the kernel would refuse it
    or drop it without a word (capabilities(7), security/commoncap.c):

    - effective outside permitted: EPERM from capset(2);
    - inheritable outside bounding: EPERM from capset(2);
    - ambient outside permitted or inheritable: EPERM from PR_CAP_AMBIENT_RAISE;
    - permitted outside bounding: capset(2) takes it, but execve(2) masks what a program gets by
      the bounding set, so that the program would run without it.

    The sets hold up to execve(2), which then computes anew: for uid 0 permitted and effective
    become bounding plus inheritable (no more than permitted under ``no_new_privileges``), for
    any other uid both become ambient.
    """

    bounding: frozenset[Capability]
    effective: frozenset[Capability]
    permitted: frozenset[Capability]
    inheritable: frozenset[Capability]
    ambient: frozenset[Capability]

    def __init__(
        self,
        bounding: Iterable[Capability | str] = (),
        effective: Iterable[Capability | str] = (),
        permitted: Iterable[Capability | str] = (),
        inheritable: Iterable[Capability | str] = (),
        ambient: Iterable[Capability | str] = (),
    ) -> None:
        given = (bounding, effective, permitted, inheritable, ambient)
        for name, names in zip(self.__slots__, given, strict=True):
            object.__setattr__(self, name, parse_capabilities(names, name))
        for inner, outer in _CONTAINED:
            surplus = getattr(self, inner) - getattr(self, outer)
            if surplus:
                raise ConfigError(f"not in {outer}: {', '.join(sorted(surplus))}", field=inner)

    def __repr__(self) -> str:
        sets = (f"{name}={sorted(map(str, getattr(self, name)))}" for name in self.__slots__)
        return f"Capabilities({', '.join(sets)})"

    @classmethod
    def default(cls) -> "Capabilities":
        """Docker's 14 bounding, permitted and effective; nothing inheritable or ambient.

        Inheritable stays empty so that no file capability of an image can turn it into permitted
        ones (CVE-2022-24769).
        """
        return cls(_DEFAULT, _DEFAULT, _DEFAULT)

    @classmethod
    def all(cls) -> "Capabilities":
        """All 41 bounding, permitted and effective; nothing inheritable or ambient."""
        return cls(_ALL, _ALL, _ALL)

    @classmethod
    def none(cls) -> "Capabilities":
        """No capability in any set."""
        return cls()


_CONTAINED = (
    ("effective", "permitted"),
    ("permitted", "bounding"),
    ("inheritable", "bounding"),
    ("ambient", "permitted"),
    ("ambient", "inheritable"),
)

publish(Capability, Capabilities, default_capabilities)
