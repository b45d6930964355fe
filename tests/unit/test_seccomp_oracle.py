# SPDX-License-Identifier: Apache-2.0
"""Filters of ours beside those of libseccomp, run by an emulator that is itself held to the kernel.

Where the two differ, and why ours is as it is:

- Numbers that the table does not have get ENOSYS from a profile that refuses by default;
  libseccomp knows no numbers but those of rules, and gives the default action.
- Arguments are compared as the kernel takes them. So libseccomp is asked about the call with the
  bits above an int cut off: those do not change the call, but change what libseccomp says of it.
- Names that this libseccomp is too old for have no rule in its filter.
- Where rules of one call overlap, ours lets the strictest decide. libseccomp takes one without
  conditions alone, whatever the others refuse; of rules with several comparisons its tree loses
  some (2.5.4: ``arg0 != 0`` beside ``arg1 != 0 and arg0 != 1``; ``arg0 < 0`` beside
  ``arg0 < 2**32``). So it is asked about one rule for a call, or several for one argument's values.
- For two ABIs at once it is asked about names that both have: for others 2.5.4 may forget to load
  the number before it compares it. And always about names that this machine has, whose numbers it
  can translate; for the rest its numbers are compared with the table.
- An argument of x32 has 64 bits for the kernel, for libseccomp 32: it is asked about small ones.
- Calls through socketcall(2) and ipc(2), whose arguments no filter sees, are left out here.
"""

from __future__ import annotations

import random
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from filters import meaning, profiles
from filters.emulator import Call, Instruction, decode, run
from filters.libseccomp import Libseccomp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from container import (
    SeccompOperator,
    SeccompProfile,
    SyscallArg,
    SyscallRule,
    default_capabilities,
)
from container._capabilities import Capability
from container._seccomp._compiler import _MULTIPLEXED, compile_profile
from container._seccomp._compiler import rules_for as compiler_rules_for
from container._seccomp._tables import (
    ARCHITECTURES,
    Architecture,
    known_names,
    numbers_of,
)

KERNEL = (6, 18)
ENOSYS = 0x00050000 | 38
KILL = 0x80000000
X86_64 = ARCHITECTURES["SCMP_ARCH_X86_64"]
Capabilities = frozenset[Capability]
CALLS_C = Path(__file__).parent.parent / "filters/calls.c"

MACHINES = {
    "x86_64": ["X86_64"],
    "x86_64 and x86": ["X86_64", "X86"],
    "x86_64 and x32": ["X86_64", "X32"],
    "x86_64, x86 and x32": ["X86_64", "X86", "X32"],
    "aarch64": ["AARCH64"],
    "aarch64 and arm": ["AARCH64", "ARM"],
    "riscv64": ["RISCV64"],
    "ppc64le": ["PPC64LE"],
    "s390x": ["S390X"],
}


def architectures_of(machine: str) -> list[Architecture]:
    return [ARCHITECTURES[f"SCMP_ARCH_{name}"] for name in MACHINES[machine]]


@pytest.fixture(scope="module")
def oracle() -> Libseccomp:
    return Libseccomp()


def ours(
    profile: SeccompProfile,
    machine: str,
    capabilities: Capabilities = frozenset(),
) -> list[Instruction]:
    native, *foreign = architectures_of(machine)
    listed = SeccompProfile(
        profile.default_action,
        profile.syscalls,
        [each.oci for each in foreign],
        profile.default_errno_ret,
    )
    program = compile_profile(listed, native.name, capabilities, KERNEL).program
    return decode(program, little=native.little)


# The emulator and the kernel -----------------------------------------------------------------


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("calls") / "calls"
    flags = ["-O2", "-mno-red-zone", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", program, CALLS_C], check=True)
    return program


def refuse_all(program: Sequence[Instruction]) -> tuple[list[Instruction], dict[int, int]]:
    """The program with an errno of its own in the place of each of its verdicts."""
    errnos: dict[int, int] = {}
    changed = []
    for code, yes, no, constant in program:
        value = constant
        if code == 0x06:
            value = 0x00050000 | errnos.setdefault(constant, 1000 + len(errnos))
        changed.append((code, yes, no, value))
    return changed, errnos


def ask_kernel(
    caller: Path, file: Path, program: Sequence[Instruction], calls: Sequence[Call]
) -> list[int]:
    """What the kernel returns to each call under the filter."""
    native = X86_64.audit
    head = struct.pack("=II", len(program), len(calls))
    filters = b"".join(struct.pack("=HBBI", *each) for each in program)
    bodies = b"".join(
        struct.pack("=8Q", call.number, call.architecture != native, *call.arguments)
        for call in calls
    )
    file.write_bytes(head + filters + bodies)
    done = subprocess.run([caller, file], check=False)
    # It could not even end.
    assert done.returncode in (-signal.SIGILL, -signal.SIGTRAP), done.returncode
    results = file.read_bytes()[len(head) + len(filters) :]
    return [each[0] for each in struct.iter_unpack("=q56x", results)]


def random_programs(oracle: Libseccomp) -> Iterator[tuple[list[Instruction], list[Call]]]:
    """Filters of ours and of libseccomp, with calls for each."""
    chance = random.Random(5)
    machine = "x86_64, x86 and x32"
    native, x86, x32 = architectures_of(machine)
    names = [name for name in sorted(numbers_of(native)) if oracle.knows(name)]
    for _ in range(12):
        rules = []
        for name in chance.sample(names, 12):
            index = chance.randrange(6)
            op = chance.choice(list(SeccompOperator))
            value = chance.choice(profiles.WIDE_EDGES)
            args = [SyscallArg(index, value, value & chance.getrandbits(64), op)]
            rules.append(SyscallRule([name], chance.choice(["ALLOW", "TRAP", "LOG"]), args))
        profile = SeccompProfile("ERRNO", rules)
        calls = [
            call
            for architecture in (native, x32, x86)
            for call in profiles.calls(rules, architecture, chance, 3, more=[0, 39, 9999])
        ]
        names_of = [each.oci for each in (native, x86, x32)]
        yield ours(profile, machine), calls
        yield decode(oracle.compile(profile, rules, names_of)), calls


@pytest.mark.needs("gcc", "libseccomp", "x86_64")
def test_the_emulator_says_what_the_kernel_says(
    oracle: Libseccomp, caller: Path, tmp_path: Path
) -> None:
    count = 0
    seen = set()
    for program, calls in random_programs(oracle):
        refusing, errnos = refuse_all(program)
        found = ask_kernel(caller, tmp_path / "calls", refusing, calls)
        for call, result in zip(calls, found, strict=True):
            assert result == -errnos[run(program, call)], call
            seen.add((call.architecture, run(program, call)))
            count += 1
    assert count >= 300
    assert len(seen) >= 6


# libseccomp ----------------------------------------------------------------------------------


@pytest.mark.needs("libseccomp")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_numbers_of_calls_are_those_of_libseccomp(oracle: Libseccomp, name: str) -> None:
    table = numbers_of(ARCHITECTURES[name])
    theirs = {call: number for call in known_names() if (number := oracle.number(call, name))}
    assert len(theirs) > 280
    assert {call: table.get(call) for call in theirs} == theirs


def compare(
    oracle: Libseccomp,
    profile: SeccompProfile,
    machine: str,
    seed: int,
    more: Sequence[int] = (0, 1, 333, 9999),
) -> None:
    """Every number, and every named call at the edges of its arguments."""
    chance = random.Random(seed)
    architectures = architectures_of(machine)
    little = architectures[0].little
    program = ours(profile, machine)
    other = decode(
        oracle.compile(profile, profile.syscalls, [each.oci for each in architectures]),
        little=little,
    )
    refuses = profile.default_action not in meaning.LENIENT
    for architecture in architectures:
        known = {
            number: name
            for each in architectures
            if each.audit == architecture.audit
            for name, number in numbers_of(each).items()
        }
        for call in profiles.calls(profile.syscalls, architecture, chance, more=more):
            name = known.get(call.number)
            got = run(program, call, little=little)
            if name is None:
                foreign = call.number >> 30 == 1 and architecture.audit == X86_64.audit
                killed = foreign and len(architectures) < 2
                assert got == (KILL if killed else ENOSYS) or not refuses
                continue
            seen = profiles.as_seen(call, name, architecture)
            assert got == run(other, seen, little=little), (name, call, seen)


def shared_names(oracle: Libseccomp, architectures: Sequence[Architecture]) -> list[str]:
    tables = [numbers_of(each) for each in architectures]
    several = {"socketcall", "ipc", *_MULTIPLEXED}
    return sorted(
        name
        for name in set(tables[0]).intersection(*tables)
        if can_ask(oracle, name, architectures)
        and (name not in several or "socketcall" not in set().union(*tables))
    )


def can_ask(oracle: Libseccomp, name: str, architectures: Sequence[Architecture]) -> bool:
    where = [X86_64, *(each for each in architectures if name in numbers_of(each))]
    return all(oracle.number(name, each.oci) is not None for each in where)


@pytest.mark.needs("libseccomp", "x86_64")
@pytest.mark.parametrize("machine", MACHINES)
def test_random_profiles_mean_the_same_to_libseccomp(oracle: Libseccomp, machine: str) -> None:
    architectures = architectures_of(machine)
    names = shared_names(oracle, architectures)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(profiles.plain_profiles(names, architectures), st.integers(0, 2**32))
    def check(profile: SeccompProfile, seed: int) -> None:
        compare(oracle, profile, machine, seed)

    check()


def rules_for(
    profile: SeccompProfile, machine: str, capabilities: Capabilities
) -> list[SyscallRule]:
    native = architectures_of(machine)[0]
    return [rule for _, rule in compiler_rules_for(profile, native, capabilities, KERNEL)]


@pytest.mark.needs("libseccomp", "x86_64")
@pytest.mark.parametrize(
    "capabilities", [frozenset(), default_capabilities(), frozenset(Capability)]
)
@pytest.mark.parametrize("machine", ["x86_64", "x86_64 and x32", "aarch64", "riscv64"])
def test_the_default_profile_means_the_same_to_libseccomp(
    oracle: Libseccomp, machine: str, capabilities: Capabilities
) -> None:
    architectures = architectures_of(machine)
    rules = [
        SyscallRule(names, rule.action, rule.args, rule.errno_ret)
        for rule in rules_for(SeccompProfile.default(), machine, capabilities)
        if (names := [name for name in rule.names if can_ask(oracle, name, architectures)])
    ]
    profile = SeccompProfile("ERRNO", rules)
    every = [number for each in architectures for number in every_number(each)]
    compare(oracle, profile, machine, seed=1, more=every)
    # That was without the names that libseccomp does not know: their verdicts, by the rules.
    whole = ours(SeccompProfile.default(), machine, capabilities)
    chance = random.Random(2)
    for architecture in architectures:
        rules = rules_for(SeccompProfile.default(), machine, capabilities)
        for call in profiles.calls(
            rules, architecture, chance, 200, more=every_number(architecture)
        ):
            if call.number >> 30 == (architecture.name == "x32"):
                expected = meaning.verdict(
                    SeccompProfile.default(), rules, architecture, call.number, call.arguments
                )
                assert run(whole, call) == expected, call


def every_number(architecture: Architecture) -> list[int]:
    base = 0x40000000 if architecture.name == "x32" else 0
    return [base + number for number in range(1024)]


@pytest.mark.needs("libseccomp", "x86_64")
@pytest.mark.parametrize("architecture", [0, 0x40000003, 0xC00000B7, 0x8000003E])
def test_a_call_by_another_abi_kills_as_libseccomp_does(
    oracle: Libseccomp, architecture: int
) -> None:
    profile = SeccompProfile.default()
    rules = rules_for(profile, "x86_64", default_capabilities())
    program = ours(profile, "x86_64", default_capabilities())
    other = decode(oracle.compile(profile, rules, [X86_64.oci]))
    for number in range(1024):
        call = Call(number, architecture)
        assert run(program, call) == run(other, call) == KILL
    for number in (0x40000000, 0x40000027, 0x400003FF, 0x7FFFFFFF, 0xFFFFFFFE):
        call = Call(number, X86_64.audit)
        assert run(program, call) == run(other, call) == KILL
