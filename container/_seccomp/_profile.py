# SPDX-License-Identifier: Apache-2.0
"""What a seccomp profile says: frozen, checked when made, hashable. Pure."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from typing import Any, NoReturn, Self, TypeVar

from container._capabilities import Capability, parse_capabilities
from container._errors import ConfigError, publish
from container._seccomp._tables import known_names

MAX_ERRNO = 4095  # include/linux/err.h; the kernel cuts higher ones down to it
MAX_RULES = 4096  # BPF_MAXINSNS: more cannot have an effect each
MAX_ARGUMENT = 2**64 - 1
_MAX_DATA = 2**16 - 1  # SECCOMP_RET_DATA

_Word = TypeVar("_Word", bound="_Vocabulary")


class _Vocabulary(StrEnum):
    """Words of the OCI runtime-spec, parsed with or without their prefix, in any case."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return _parse_word(cls, value, cls.__name__)


def _fail(field: str, detail: str) -> NoReturn:
    raise ConfigError(detail, field=field) from None


def _show(value: object) -> str:
    text = hex(value) if isinstance(value, int) and value.bit_length() > 64 else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _expected(what: str, value: object, field: str) -> NoReturn:
    _fail(field, f"expected {what}, got {type(value).__name__}")


def _parse_word(kind: type[_Word], value: object, field: str) -> _Word:
    if isinstance(value, kind):
        return value
    if not isinstance(value, str):
        _expected("str", value, field)
    if value.isascii():
        # SCMP_ACT_ALLOW and ALLOW are one; so are their other spellings.
        stem = value.upper().removeprefix(_prefix_of(kind))
        for member in kind:
            if member.value.removeprefix(_prefix_of(kind)) == stem:
                return member
    _fail(field, f"unknown: {_show(value)}; there are {', '.join(kind)}")


@cache
def _prefix_of(kind: type[_Vocabulary]) -> str:
    first, *rest = (member.value for member in kind)
    while not all(value.startswith(first) for value in rest):
        first = first[: first.rindex("_", 0, -1) + 1]
    return first


class SeccompAction(_Vocabulary):
    """What becomes of a call; the value is the name in the OCI runtime-spec.

    From the strictest to the mildest. Where rules overlap, the strictest one that a call meets
    decides.
    """

    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"
    KILL_THREAD = "SCMP_ACT_KILL_THREAD"
    KILL = "SCMP_ACT_KILL"
    """As KILL_THREAD."""
    TRAP = "SCMP_ACT_TRAP"
    """SIGSYS."""
    ERRNO = "SCMP_ACT_ERRNO"
    NOTIFY = "SCMP_ACT_NOTIFY"
    """Who started the container answers: `Container.seccomp_listener`."""
    TRACE = "SCMP_ACT_TRACE"
    LOG = "SCMP_ACT_LOG"
    """Allowed, and logged."""
    ALLOW = "SCMP_ACT_ALLOW"


class SeccompOperator(_Vocabulary):
    """How an argument is compared, unsigned."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"
    """``argument & value == value_two``."""


class SeccompFlag(_Vocabulary):
    """Flags of seccomp(2)."""

    TSYNC = "SECCOMP_FILTER_FLAG_TSYNC"
    LOG = "SECCOMP_FILTER_FLAG_LOG"
    SPEC_ALLOW = "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
    WAIT_KILLABLE_RECV = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"


_OCI_ARCHITECTURES = (
    *("X86", "X86_64", "X32", "ARM", "AARCH64", "LOONGARCH64", "M68K", "MIPS", "MIPS64"),
    *("MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "S390"),
    *("S390X", "SH", "SHEB", "PARISC", "PARISC64", "RISCV64"),
)
# What Docker and podman write into "arches": Go's names, where these have one.
_GO_ARCHITECTURES = (
    *("386", "amd64", "x86", "x32", "arm", "arm64", "loong64", "mips", "mips64", "mips64n32"),
    *("mipsel", "mipsel64", "mipsel64n32", "mipsle", "mips64le", "ppc", "ppc64", "ppc64le"),
    *("s390", "s390x", "riscv64", "parisc", "parisc64", "m68k", "sh", "sheb"),
)


def parse_architecture(value: object, field: str) -> str:
    if not isinstance(value, str):
        _expected("str", value, field)
    name = f"SCMP_ARCH_{value.upper().removeprefix('SCMP_ARCH_')}" if value.isascii() else ""
    if name.removeprefix("SCMP_ARCH_") in _OCI_ARCHITECTURES and name:
        return name
    _fail(field, f"unknown architecture {_show(value)}")


def _go_architecture(value: object, field: str) -> str:
    if not isinstance(value, str):
        _expected("str", value, field)
    return value if value in _GO_ARCHITECTURES else _fail(field, f"unknown: {_show(value)}")


def _sequence(check: Callable[[Any, str], Any], value: Any, field: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        _expected("a sequence such as a list", value, field)
    items = tuple(value)
    check_count(items, field)
    return tuple(check(item, f"{field}[{index}]") for index, item in enumerate(items))


def check_count(items: Sequence[object], field: str) -> None:
    """Refuse more than could have an effect."""
    if len(items) > MAX_RULES:
        _fail(f"{field}[{MAX_RULES}]", f"at most {MAX_RULES} are possible, not {len(items)}")


def _instance(kind: type) -> Callable[[object, str], object]:
    def check(value: object, field: str) -> object:
        return value if isinstance(value, kind) else _expected(kind.__name__, value, field)

    return check


def _number(value: object, most: int, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        _expected("int", value, field)
    if not 0 <= value <= most:
        _fail(field, f"must be from 0 to {most:#x}, not {_show(value)}")
    return int(value)


def _unique(items: Sequence[object], field: str) -> None:
    seen: dict[object, int] = {}
    for index, item in enumerate(items):
        if seen.setdefault(item, index) != index:
            _fail(f"{field}[{index}]", f"{_show(str(item))} again, as in {field}[{seen[item]}]")


def _check_errno(action: SeccompAction, value: int | None, field: str) -> int | None:
    if value is None:
        return None
    if action is SeccompAction.ERRNO:
        return _number(value, MAX_ERRNO, field)
    if action is SeccompAction.TRACE:  # what the tracer gets by PTRACE_GETEVENTMSG
        return _number(value, _MAX_DATA, field)
    _fail(field, f"{action} takes none")


class _Frozen:
    """Pickles by constructing, so that what comes out of a pickle has been checked again."""

    __slots__ = ()
    __match_args__: tuple[str, ...]

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {name: getattr(self, name) for name in self.__match_args__}
        return partial(type(self), **values), ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable to the bottom, like a str


@dataclass(frozen=True, slots=True)
class SyscallArg(_Frozen):
    """A comparison of argument ``index`` (0 to 5) with ``value``; see `SeccompOperator`.

    Made on the bits that the kernel takes of that argument: 32 where it is an int, so that bits
    above those change nothing. ``value_two`` is for MASKED_EQ only, whose mask is ``value``.
    """

    index: int
    value: int
    value_two: int = 0
    op: SeccompOperator | str = SeccompOperator.EQ

    def __post_init__(self) -> None:
        self._set("index", _number(self.index, 5, "index"))
        self._set("value", _number(self.value, MAX_ARGUMENT, "value"))
        self._set("value_two", _number(self.value_two, MAX_ARGUMENT, "value_two"))
        self._set("op", _parse_word(SeccompOperator, self.op, "op"))


_KERNEL = re.compile(r"([0-9]{1,5})\.([0-9]{1,5})(?:\.[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class SyscallCondition(_Frozen):
    """Which containers a rule is for; Docker's ``includes`` and ``excludes``.

    ``caps`` are looked up in the bounding set; ``arches`` are Go's names of the machine
    (``amd64``, ``arm64``); ``min_kernel`` is a version such as ``"5.14"``.
    """

    caps: Iterable[Capability | str] = ()
    arches: Sequence[str] = ()
    min_kernel: str | None = None

    def __post_init__(self) -> None:
        self._set("caps", tuple(sorted(parse_capabilities(self.caps, "caps"))))
        self._set("arches", _sequence(_go_architecture, self.arches, "arches"))
        if self.min_kernel is not None:
            if not isinstance(self.min_kernel, str):
                _expected("str", self.min_kernel, "min_kernel")
            if not _KERNEL.fullmatch(self.min_kernel):
                _fail("min_kernel", f"{_show(self.min_kernel)} is no version such as '5.14'")

    @property
    def kernel(self) -> tuple[int, int]:
        """``min_kernel`` as numbers."""
        match = _KERNEL.match(self.min_kernel or "0.0")
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def __bool__(self) -> bool:
        return bool(self.caps or self.arches or self.min_kernel)


_NO_CONDITION = SyscallCondition()


def _syscall_name(value: object, field: str) -> str:
    if not isinstance(value, str):
        _expected("str", value, field)
    if value in known_names():
        return value
    _fail(field, f"no system call of any architecture: {_show(value)}")


@dataclass(frozen=True, slots=True)
class SyscallRule(_Frozen):
    """What becomes of the calls of these names whose arguments fulfil all of ``args``.

    A name that only other architectures have has no effect. ``errno_ret`` is the errno of an
    ERRNO action (None: EPERM) or the message of a TRACE. The rule is for containers that meet
    all of ``includes`` and none of ``excludes``.
    """

    names: Sequence[str]
    action: SeccompAction | str
    args: Sequence[SyscallArg] = ()
    errno_ret: int | None = None
    includes: SyscallCondition = _NO_CONDITION
    excludes: SyscallCondition = _NO_CONDITION

    def __post_init__(self) -> None:
        self._set("names", _sequence(_syscall_name, self.names, "names"))
        if not self.names:
            _fail("names", "must not be empty")
        action = _parse_word(SeccompAction, self.action, "action")
        self._set("action", action)
        self._set("args", _sequence(_instance(SyscallArg), self.args, "args"))
        seen: dict[int, int] = {}
        for position, arg in enumerate(self.args):
            if seen.setdefault(arg.index, position) != position:
                # Other runtimes take it for "one or the other": nobody shall rely on either.
                _fail(f"args[{position}].index", f"{arg.index} again; write a rule for each")
        self._set("errno_ret", _check_errno(action, self.errno_ret, "errno_ret"))
        for name in ("includes", "excludes"):
            _instance(SyscallCondition)(getattr(self, name), name)


@dataclass(frozen=True, slots=True)
class ArchitectureMap(_Frozen):
    """One entry of Docker's ``archMap``: on this machine also the ABIs of these."""

    architecture: str
    sub_architectures: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._set("architecture", parse_architecture(self.architecture, "architecture"))
        subs = _sequence(parse_architecture, self.sub_architectures, "sub_architectures")
        _unique(subs, "sub_architectures")
        self._set("sub_architectures", subs)


def _string(value: object, field: str) -> str:
    return value if isinstance(value, str) else _expected("str", value, field)


@dataclass(frozen=True, slots=True)
class SeccompProfile(_Frozen):
    """Which system calls a container may make: ``linux.seccomp`` of the OCI runtime-spec.

    A call that no rule of ``syscalls`` speaks of gets ``default_action``, with
    ``default_errno_ret`` as its errno (None: EPERM); where that refuses, calls that this version
    does not know, younger ones most likely, get ENOSYS. The machine's own ABI is always meant;
    calls by another one (32-bit, x32) kill the process, unless ``architectures`` lists it, by
    names such as ``"SCMP_ARCH_X86"``, or ``arch_map`` does for this machine. ``listener_path`` and
    ``listener_metadata`` are for OCI runtimes: `Container.seccomp_listener` is the listener here.
    """

    default_action: SeccompAction | str
    syscalls: Sequence[SyscallRule] = ()
    architectures: Sequence[str] = ()
    default_errno_ret: int | None = None
    flags: Sequence[SeccompFlag | str] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    arch_map: Sequence[ArchitectureMap] = ()
    _hash: int = dataclasses.field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        action = _parse_word(SeccompAction, self.default_action, "default_action")
        self._set("default_action", action)
        self._set("syscalls", _sequence(_instance(SyscallRule), self.syscalls, "syscalls"))
        for name, check in (
            ("architectures", parse_architecture),
            ("flags", partial(_parse_word, SeccompFlag)),
            ("arch_map", _instance(ArchitectureMap)),
        ):
            self._set(name, _sequence(check, getattr(self, name), name))
            _unique(getattr(self, name), name)
        errno_ret = _check_errno(action, self.default_errno_ret, "default_errno_ret")
        self._set("default_errno_ret", errno_ret)
        for name in ("listener_path", "listener_metadata"):
            _string(getattr(self, name), name)
        if self.architectures and self.arch_map:
            _fail("arch_map", "architectures are listed as well: give one of the two")
        values = tuple(getattr(self, name) for name in self.__match_args__)
        self._set("_hash", hash(values))  # of some hundred strings, and wanted at every start

    def __hash__(self) -> int:
        return self._hash

    @property
    def asks(self) -> bool:
        """Whether there is a NOTIFY in it."""
        actions = (self.default_action, *(rule.action for rule in self.syscalls))
        return SeccompAction.NOTIFY in actions

    @classmethod
    @cache
    def default(cls) -> "SeccompProfile":
        """An allow-list for any program that needs no power over the machine; see _default.py."""
        from container._seccomp._default import make_default  # noqa: PLC0415 - which needs this

        return make_default()

    def to_json(self) -> str:
        """A profile as Docker and podman read it; OCI's ``linux.seccomp``, where it has no
        ``arch_map``, ``includes`` or ``excludes``.
        """
        from container._seccomp._json import dump  # noqa: PLC0415 - json takes 8 ms

        return dump(self)

    @classmethod
    def from_json(cls, text: str) -> "SeccompProfile":
        """The profile of OCI's ``linux.seccomp``, or of a file as Docker and podman have it.

        `ConfigError` with the path of what cannot be used, such as ``syscalls[3].names[0]``. A rule
        with several conditions on one argument becomes one rule for each of its conditions, as
        other runtimes read it. Keys that are not known are ignored, as OCI demands.
        """
        from container._seccomp._json import parse  # noqa: PLC0415

        return parse(text)


publish(SeccompAction, SeccompOperator, SeccompFlag, SyscallArg, SyscallCondition, SyscallRule)
publish(SeccompProfile)
