# SPDX-License-Identifier: Apache-2.0
"""From a profile to the filter that seccomp(2) loads. Pure.

Rules say what shall become of calls by name; a filter gets a number. All the numbers of an ABI are
a line of segments with one verdict each, neighbours of one verdict merged; a balanced tree of
comparisons finds the segment. A verdict is a constant, or depends on arguments: then rules are
tried from the strictest action to the mildest, and the default action is the last.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from container._capabilities import Capability
from container._errors import ConfigError, UnsupportedError
from container._seccomp._assembler import (
    JUMP_EQUAL,
    JUMP_GREATER,
    JUMP_GREATER_EQUAL,
    MAX_INSTRUCTIONS,
    Assembler,
    Label,
    Segment,
)
from container._seccomp._profile import (
    SeccompAction,
    SeccompFlag,
    SeccompOperator,
    SeccompProfile,
    SyscallArg,
    SyscallCondition,
    SyscallRule,
)
from container._seccomp._tables import (
    ARCHITECTURES,
    FOREIGN,
    X32_BIT,
    Architecture,
    argument_mask,
    native_architecture,
    numbers_of,
)

_ALL = 2**64 - 1
_WORD = 2**32 - 1
_EPERM, _ENOSYS = 1, 38

# include/uapi/linux/seccomp.h
_RETURNS = {
    SeccompAction.KILL_PROCESS: 0x80000000,
    SeccompAction.KILL_THREAD: 0x00000000,
    SeccompAction.KILL: 0x00000000,
    SeccompAction.TRAP: 0x00030000,
    SeccompAction.ERRNO: 0x00050000,
    SeccompAction.NOTIFY: 0x7FC00000,
    SeccompAction.TRACE: 0x7FF00000,
    SeccompAction.LOG: 0x7FFC0000,
    SeccompAction.ALLOW: 0x7FFF0000,
}
_STRICTNESS = {action: rank for rank, action in enumerate(SeccompAction)}
_WAIT_KILLABLE = 1 << 5
_FLAGS = {
    SeccompFlag.TSYNC: 1 << 0,
    SeccompFlag.LOG: 1 << 1,
    SeccompFlag.SPEC_ALLOW: 1 << 2,
    SeccompFlag.WAIT_KILLABLE_RECV: _WAIT_KILLABLE,
}
NEW_LISTENER = 1 << 3
MOST_CALLS = 1024  # more than any ABI has in a row
_KILL = _RETURNS[SeccompAction.KILL_PROCESS]
# Under these a call may be made after all: one that is not known gets no ENOSYS.
_LENIENT = {SeccompAction.ALLOW, SeccompAction.LOG, SeccompAction.TRACE, SeccompAction.NOTIFY}

# struct seccomp_data
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

# One call that stands for many, by its first argument: include/uapi/linux/net.h and ipc.h. The
# upper half of ipc's is a version.
_SOCKET_CALLS = (
    *("socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername"),
    *("socketpair", "send", "recv", "sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt"),
    *("sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg"),
)
_IPC_CALLS = {
    **{"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4},
    **{"msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14},
    **{"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24},
}
_MULTIPLEXED = {
    **{name: ("socketcall", _WORD, at) for at, name in enumerate(_SOCKET_CALLS, start=1)},
    **{name: ("ipc", 0xFFFF, at) for name, at in _IPC_CALLS.items()},
}

# What a process calls from its wait for a program on until it is that (csrc/exec.c).
_TO_PROGRAM = (
    *("recvmsg", "rt_sigtimedwait", "openat2", "fchdir", "close", "getcwd", "dup3", "close_range"),
    *("rt_sigprocmask", "execve", "faccessat", "write", "exit_group"),
)

# Docker's names of machines, where they are not ours.
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Filter:
    """What seccomp(2) is given."""

    program: bytes  # struct sock_filter[]
    flags: int
    lets_wait: bool = False  # for the program, before which nothing but _TO_PROGRAM is called

    @property
    def instructions(self) -> int:
        return len(self.program) // 8


@dataclass(frozen=True, slots=True)
class _Test:
    """``argument & mask`` compared with ``value`` by ``jump``; ``wanted`` is the result to go on.

    Of the mask either all bits that the kernel looks at are set, or the comparison is for
    equality.
    """

    index: int
    mask: int
    jump: int
    value: int
    wanted: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """A rule as one call sees it."""

    tests: tuple[_Test, ...]
    value: int


_Verdict = tuple[_Step, ...]  # the first whose tests all hold; the last has none


@lru_cache(maxsize=64)
def compile_profile(
    profile: SeccompProfile,
    machine: str,
    capabilities: frozenset[Capability],
    kernel: tuple[int, int],
) -> Filter:
    """The filter for a machine (``os.uname().machine``), a bounding set and a kernel's version."""
    native = native_architecture(machine)
    if native is None:
        raise UnsupportedError(f"there is no table of system calls for {machine}", field="seccomp")
    rules = rules_for(profile, native, capabilities, kernel)
    flags = _flags_of(profile, native, rules)
    program = _assemble(profile, native, [rule for _, rule in rules])
    if len(program) > MAX_INSTRUCTIONS:
        raise _too_large(profile, native, rules)
    return Filter(
        program.encode(little=native.little),
        flags,
        lets_wait=_lets_wait(profile, native, [rule for _, rule in rules]),
    )


def _lets_wait(profile: SeccompProfile, native: Architecture, rules: Sequence[SyscallRule]) -> bool:
    numbers, verdicts = numbers_of(native), _verdicts(profile, native, rules)
    allowed = (_Step((), _RETURNS[SeccompAction.ALLOW]),)
    return all(verdicts[numbers[name]] == allowed for name in _TO_PROGRAM)


def rules_for(
    profile: SeccompProfile,
    native: Architecture,
    capabilities: frozenset[Capability],
    kernel: tuple[int, int],
) -> list[tuple[int, SyscallRule]]:
    """The rules whose conditions such a container meets, with their indices."""
    return [
        (index, rule)
        for index, rule in enumerate(profile.syscalls)
        if _meets(rule.includes, native, capabilities, kernel, none=True)
        and not _meets(rule.excludes, native, capabilities, kernel, none=False)
    ]


def _meets(
    condition: SyscallCondition,
    native: Architecture,
    capabilities: frozenset[Capability],
    kernel: tuple[int, int],
    *,
    none: bool,
) -> bool:
    """Whether a container meets a condition of Docker's; for ``includes`` every part of it, for
    ``excludes`` any one; ``none``: what holds where it says nothing.
    """
    parts = []
    if condition.arches:
        parts.append(_GO_NAMES.get(native.name, native.name) in condition.arches)
    if condition.caps:
        has = [capability in capabilities for capability in condition.caps]
        parts.append(all(has) if none else any(has))
    if condition.min_kernel:
        parts.append(kernel >= condition.kernel)
    return (all(parts) if none else any(parts)) if parts else none


def _flags_of(
    profile: SeccompProfile, native: Architecture, rules: Sequence[tuple[int, SyscallRule]]
) -> int:
    flags = sum(_FLAGS[SeccompFlag(flag)] for flag in profile.flags)
    if all(action != SeccompAction.NOTIFY for _, action in _actions(profile, rules)):
        return flags & ~_WAIT_KILLABLE  # the kernel takes it with a listener only
    _refuse_question_of_start(profile, native, rules)
    # There is one thread to filter, and one that must not be: who passes the listener on.
    return flags & ~_FLAGS[SeccompFlag.TSYNC] | NEW_LISTENER


def _actions(
    profile: SeccompProfile, rules: Sequence[tuple[int, SyscallRule]]
) -> list[tuple[str, SeccompAction]]:
    """The actions that a filter may come to, and their fields."""
    found = [("seccomp.default_action", SeccompAction(profile.default_action))]
    for index, rule in rules:
        found.append((f"seccomp.syscalls[{index}].action", SeccompAction(rule.action)))
    return found


def _refuse_question_of_start(
    profile: SeccompProfile, native: Architecture, rules: Sequence[tuple[int, SyscallRule]]
) -> None:
    """The program itself is started under the filter, before anybody has the listener."""
    number = numbers_of(native)["execve"]
    verdict = _verdicts(profile, native, [rule for _, rule in rules])[number]
    if all(step.value != _RETURNS[SeccompAction.NOTIFY] for step in verdict):
        return
    fields = [field for field, action in _actions(profile, rules) if action == SeccompAction.NOTIFY]
    asking = (
        f"seccomp.syscalls[{index}].action"
        for index, rule in rules
        if rule.action == SeccompAction.NOTIFY and "execve" in rule.names
    )
    raise ConfigError(
        "execve cannot be asked about: it starts the program before there is anybody to answer",
        field=next(asking, fields[0]),
    )


def _too_large(
    profile: SeccompProfile, native: Architecture, rules: Sequence[tuple[int, SyscallRule]]
) -> ConfigError:
    low, high = 0, len(rules)
    while high - low > 1:  # the first `low` rules fit, the first `high` do not
        middle = (low + high) // 2
        program = _assemble(profile, native, [rule for _, rule in rules[:middle]])
        low, high = (middle, high) if len(program) <= MAX_INSTRUCTIONS else (low, middle)
    return ConfigError(
        f"from here on the filter is longer than the {MAX_INSTRUCTIONS} instructions that the"
        " kernel takes",
        field=f"seccomp.syscalls[{rules[low][0]}]",
    )


# The verdicts -----------------------------------------------------------------------------------


def _return_of(action: SeccompAction | str, data: int | None) -> int:
    action = SeccompAction(action)
    if action in (SeccompAction.ERRNO, SeccompAction.TRACE):
        return _RETURNS[action] | (_EPERM if data is None else data)
    return _RETURNS[action]


def _default_of(profile: SeccompProfile) -> int:
    return _return_of(profile.default_action, profile.default_errno_ret)


def _unknown_of(profile: SeccompProfile) -> int:
    if profile.default_action in _LENIENT:
        return _default_of(profile)
    return _RETURNS[SeccompAction.ERRNO] | _ENOSYS


def _foreign_of(profile: SeccompProfile, native: Architecture) -> list[Architecture]:
    listed = set(profile.architectures)
    for each in profile.arch_map:
        if each.architecture == native.oci:
            listed |= set(each.sub_architectures)
    return [ARCHITECTURES[name] for name in FOREIGN.get(native.oci, ()) if name in listed]


def _verdicts(
    profile: SeccompProfile, architecture: Architecture, rules: Sequence[SyscallRule]
) -> dict[int, _Verdict]:
    """What becomes of each number that the table knows."""
    numbers = numbers_of(architecture)
    steps: dict[int, list[tuple[int, _Step]]] = {}
    for rule in rules:
        rank = _STRICTNESS[SeccompAction(rule.action)]
        value = _return_of(rule.action, rule.errno_ret)
        for name in rule.names:
            for call, tests in _calls_of(name, rule, architecture, numbers):
                if tests is not None:
                    steps.setdefault(numbers[call], []).append((rank, _Step(tests, value)))
    last = _Step((), _default_of(profile))
    verdicts: dict[int, _Verdict] = dict.fromkeys(numbers.values(), (last,))
    for number, found in steps.items():
        ordered = [step for _, step in sorted(found, key=lambda each: each[0])]
        verdicts[number] = _shortened([*ordered, last])
    return verdicts


def _calls_of(
    name: str, rule: SyscallRule, architecture: Architecture, numbers: Mapping[str, int]
) -> Iterator[tuple[str, tuple[_Test, ...] | None]]:
    """The calls of an ABI that a name stands for, with the tests that they have to pass; None where
    those never hold.
    """
    if name in numbers:
        yield name, _tests_of(name, rule.args, architecture)
    one_for_many, mask, value = _MULTIPLEXED.get(name, ("", 0, 0))
    # The arguments of those lie in memory, where no filter sees them. To refuse some of the calls
    # is then to refuse all, and none can be allowed for its arguments.
    if one_for_many in numbers and not (rule.args and rule.action in _LENIENT):
        yield one_for_many, (_Test(0, mask, JUMP_EQUAL, value, wanted=True),)


def _tests_of(
    name: str, args: Sequence[SyscallArg], architecture: Architecture
) -> tuple[_Test, ...] | None:
    tests = [_test_of(arg, argument_mask(name, arg.index, architecture)) for arg in args]
    if False in tests:
        return None
    return tuple(test for test in tests if isinstance(test, _Test))


def _test_of(arg: SyscallArg, width: int) -> _Test | bool:
    """A comparison on the bits that the kernel looks at; True or False where it is always so."""
    op = arg.op
    if op in (SeccompOperator.EQ, SeccompOperator.NE):
        return _Test(arg.index, width, JUMP_EQUAL, arg.value & width, op == SeccompOperator.EQ)
    if op != SeccompOperator.MASKED_EQ:
        return _order_of(arg, width)
    mask, value = arg.value & width, arg.value_two & width
    if value & ~mask:
        return False
    return _Test(arg.index, mask, JUMP_EQUAL, value, wanted=True) if mask else True


def _order_of(arg: SyscallArg, width: int) -> _Test | bool:
    op, value = arg.op, arg.value
    if value > width:
        # An int below zero, as a register has it; or a number that is above all of them.
        if value | width != _ALL or not value & (width ^ width >> 1):
            return op in (SeccompOperator.LT, SeccompOperator.LE)
        value &= width
    jump = JUMP_GREATER
    if op in (SeccompOperator.GE, SeccompOperator.LT):
        jump = JUMP_GREATER_EQUAL
        if value == 0:
            return op == SeccompOperator.GE
    elif value == width:
        return op == SeccompOperator.LE
    return _Test(arg.index, width, jump, value, op in (SeccompOperator.GE, SeccompOperator.GT))


def _shortened(steps: Sequence[_Step]) -> _Verdict:
    """Without what is never reached, nor makes a difference."""
    end = next(index for index, step in enumerate(steps) if not step.tests)
    kept = list(dict.fromkeys(steps[:end]))
    while kept and kept[-1].value == steps[end].value:
        kept.pop()
    return (*kept, steps[end])


# The program ------------------------------------------------------------------------------------


def _assemble(
    profile: SeccompProfile, native: Architecture, rules: Sequence[SyscallRule]
) -> Assembler:
    program = Assembler()
    foreign = _foreign_of(profile, native)
    spaces: dict[int, list[tuple[int, _Verdict]]] = {}
    for architecture in (*foreign[::-1], native):
        verdicts = sorted(_verdicts(profile, architecture, rules).items())
        spaces.setdefault(architecture.audit, []).extend(verdicts)
    # The machine's own comes first in the program, so last here.
    other = program.ret(_KILL)
    for audit in sorted(spaces, key=lambda audit: audit == native.audit):
        space = _line(profile, audit, spaces[audit], foreign)
        labels = {verdict: _verdict(program, verdict, native) for _, verdict in space}
        program.tree(_segments(space, labels))
        other = program.jump(JUMP_EQUAL, audit, program.load(_NUMBER_AT), other)
    program.load(_ARCHITECTURE_AT)
    return program


def _line(
    profile: SeccompProfile,
    audit: int,
    verdicts: Sequence[tuple[int, _Verdict]],
    foreign: Sequence[Architecture],
) -> list[tuple[int, _Verdict]]:
    """All numbers, from 0: where each verdict begins."""
    unknown = (_Step((), _unknown_of(profile)),)
    points: dict[int, _Verdict] = {0: unknown}
    x86_64 = ARCHITECTURES["SCMP_ARCH_X86_64"].audit
    if audit == x86_64 and ARCHITECTURES["SCMP_ARCH_X32"] not in foreign:
        points[X32_BIT] = (_Step((), _KILL),)
        points[_WORD] = unknown  # -1 is of no ABI: who makes that call asks whether it is there
    known = dict(verdicts)
    for number in sorted(known):
        if number + 1 not in known:
            points.setdefault(number + 1, unknown)
    points |= known
    line: list[tuple[int, _Verdict]] = []
    for start in sorted(points):
        if not line or line[-1][1] != points[start]:
            line.append((start, points[start]))
    return line


def _segments(
    line: Sequence[tuple[int, _Verdict]], labels: Mapping[_Verdict, Label]
) -> list[Segment]:
    ends = [start for start, _ in line[1:]]
    sizes = (end - start for (start, _), end in zip(line, ends, strict=False))
    # What is larger than any table is a gap that no kernel has calls in.
    weights = [*(size if size < MOST_CALLS else 1 for size in sizes), 1]
    return [
        Segment(start, labels[verdict], weight)
        for (start, verdict), weight in zip(line, weights, strict=True)
    ]


def _verdict(program: Assembler, verdict: _Verdict, machine: Architecture) -> Label:
    *steps, last = verdict
    label = program.ret(last.value)
    while steps:
        index, run = _switch(steps)
        if len(run) > 1:
            del steps[len(steps) - len(run) :]
            label = _cases(program, index, run, label, machine)
            continue
        step = steps.pop()
        goal = program.ret(step.value)
        *later, first = reversed(step.tests)
        for test in later:
            goal = _compare(program, test, goal, label, machine)
        loaded = bool(steps) and _leaves_word(steps[-1], first.index)
        label = _compare(program, first, goal, label, machine, loaded=loaded)
    return label


def _word_at(index: int, machine: Architecture, *, high: bool) -> int:
    return _ARGUMENTS_AT + 8 * index + 4 * (high == machine.little)


def _leaves_word(step: _Step, index: int) -> bool:
    """Whether a call that does not pass a step leaves the 32 bits of an argument loaded by it."""
    return len(step.tests) == 1 and step.tests[0].index == index and step.tests[0].mask == _WORD


def _compare(
    program: Assembler,
    test: _Test,
    yes: Label,
    no: Label,
    machine: Architecture,
    *,
    loaded: bool = False,
) -> Label:
    """Go to ``yes`` where the test comes out as wanted; ``loaded``: the lower half is already."""
    if not test.wanted:
        yes, no = no, yes
    high, low = test.value >> 32, test.value & _WORD
    label = yes
    if test.mask & _WORD:
        program.jump(test.jump, low, yes, no)
        if test.mask & _WORD != _WORD:
            program.mask(test.mask & _WORD)
        if loaded and test.mask >> 32 == 0:
            return len(program)
        label = program.load(_word_at(test.index, machine, high=False))
    if test.mask >> 32 == 0:
        return label
    equal = program.jump(JUMP_EQUAL, high, label, no)
    if test.jump != JUMP_EQUAL:
        program.jump(JUMP_GREATER, high, yes, equal)
    elif test.mask >> 32 != _WORD:
        program.mask(test.mask >> 32)
    return program.load(_word_at(test.index, machine, high=True))


# Cases of one argument --------------------------------------------------------------------------


def _interval(test: _Test) -> tuple[int, int] | None:
    """The values of a 32-bit argument that pass, where they are all from one to another."""
    if test.mask >> 32 or (test.jump == JUMP_EQUAL and not test.wanted):
        return None
    if test.jump == JUMP_EQUAL:
        free = _WORD ^ test.mask
        return (test.value, test.value | free) if free & (free + 1) == 0 else None
    if test.mask != _WORD:
        return None
    first = test.value + (test.jump == JUMP_GREATER)
    return (first, _WORD) if test.wanted else (0, first - 1)


def _switch(steps: Sequence[_Step]) -> tuple[int, list[_Step]]:
    """The argument, and the last of the steps that do nothing but sort its values."""
    run: list[_Step] = []
    for step in reversed(steps):
        fits = len(step.tests) == 1 and _interval(step.tests[0]) is not None
        if not fits or (run and step.tests[0].index != run[0].tests[0].index):
            break
        run.insert(0, step)
    return (run[0].tests[0].index if run else 0), run


def _cases(
    program: Assembler, index: int, steps: Sequence[_Step], other: Label, machine: Architecture
) -> Label:
    """A tree over the values of one argument, as over the numbers of calls."""
    cases = [(interval, step.value) for step in steps if (interval := _interval(step.tests[0]))]
    starts = {0}
    for (first, last), _ in cases:
        starts |= {first, last + 1} - {_WORD + 1}
    segments: list[Segment] = []
    for start in sorted(starts):
        values = (value for (first, last), value in cases if first <= start <= last)
        value = next(values, None)
        label = other if value is None else program.ret(value)
        if not segments or segments[-1].label != label:
            segments.append(Segment(start, label))
    program.tree(segments)
    return program.load(_word_at(index, machine, high=False))
