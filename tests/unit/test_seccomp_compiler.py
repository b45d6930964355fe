# SPDX-License-Identifier: Apache-2.0
"""From profiles to filters: every filter says what its profile does, and no more than it must."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from filters import meaning, profiles
from filters.emulator import NO_ARGUMENTS, Call, decode, run
from hypothesis import given, settings
from hypothesis import strategies as st

from container import (
    Capability,
    ConfigError,
    SeccompProfile,
    SyscallArg,
    SyscallCondition,
    SyscallRule,
    UnsupportedError,
    default_capabilities,
)
from container._seccomp._assembler import MAX_INSTRUCTIONS, Assembler, Segment
from container._seccomp._compiler import Filter, compile_profile
from container._seccomp._profile import ArchitectureMap
from container._seccomp._tables import ARCHITECTURES, FOREIGN, known_names, numbers_of

KERNEL = (6, 18)
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
KILL = 0x80000000
NONE: frozenset[Capability] = frozenset()
X86_64 = ARCHITECTURES["SCMP_ARCH_X86_64"]
NATIVE = {"x86_64", "aarch64", "riscv64", "ppc64le", "s390x"}


def compiled(
    profile: SeccompProfile,
    machine: str = "x86_64",
    capabilities: frozenset[Capability] = NONE,
    kernel: tuple[int, int] = KERNEL,
) -> Filter:
    return compile_profile(profile, machine, capabilities, kernel)


def verdict(
    profile: SeccompProfile,
    name: str,
    *arguments: int,
    capabilities: frozenset[Capability] = NONE,
    machine: str = "x86_64",
    architecture: str | None = None,
) -> int:
    """What a filter says of a call by name."""
    native = ARCHITECTURES[f"SCMP_ARCH_{machine.upper()}"]
    caller = ARCHITECTURES[architecture] if architecture else native
    filled = (*arguments, *NO_ARGUMENTS)[:6]
    call = Call(numbers_of(caller)[name], caller.audit, filled)
    program = decode(compiled(profile, machine, capabilities).program, little=native.little)
    return run(program, call, little=native.little)


# Meaning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", sorted(NATIVE))
def test_any_profile_is_compiled_to_what_it_says(machine: str) -> None:
    native = ARCHITECTURES[f"SCMP_ARCH_{machine.upper()}"]
    abis = [native, *(ARCHITECTURES[name] for name in FOREIGN.get(native.oci, ()))]
    names = sorted(
        {name for abi in abis for name in numbers_of(abi)} - set(meaning.multiplexed_names())
    )

    @settings(max_examples=40, deadline=None)
    @given(profiles.any_profiles(names), st.integers(0, 2**32))
    def check(made: SeccompProfile, seed: int) -> None:
        listed = SeccompProfile(
            made.default_action,
            made.syscalls,
            [abi.oci for abi in abis],
            made.default_errno_ret,
        )
        chance = random.Random(seed)
        program = decode(compiled(listed, machine).program, little=native.little)
        for abi in abis:
            for call in profiles.calls(made.syscalls, abi, chance):
                expected = meaning.verdict(made, made.syscalls, abi, call.number, call.arguments)
                assert run(program, call, little=native.little) == expected, (abi.name, call)

    check()


OVERLAPS = {
    "a refusal within what is allowed": [
        SyscallRule(["socket"], "ALLOW"),
        SyscallRule(["socket"], "ERRNO", [SyscallArg(0, 40)], errno_ret=97),
    ],
    "the same the other way round": [
        SyscallRule(["socket"], "ERRNO", [SyscallArg(0, 40)], errno_ret=97),
        SyscallRule(["socket"], "ALLOW"),
    ],
}


@pytest.mark.parametrize("kind", OVERLAPS)
def test_where_rules_overlap_the_strictest_decides(kind: str) -> None:
    profile = SeccompProfile("KILL", OVERLAPS[kind])
    assert verdict(profile, "socket", 40) == 0x00050000 | 97
    assert verdict(profile, "socket", 1) == ALLOW


def test_a_refusal_like_the_default_counts_within_what_is_allowed() -> None:
    profile = SeccompProfile(
        "ERRNO",
        [SyscallRule(["socket"], "ALLOW"), SyscallRule(["socket"], "ERRNO", [SyscallArg(0, 40)])],
    )
    assert (verdict(profile, "socket", 40), verdict(profile, "socket", 1)) == (EPERM, ALLOW)


def test_bits_that_the_kernel_does_not_take_change_nothing() -> None:
    command = SyscallArg(1, 0x5412)
    refuse = SeccompProfile("ALLOW", [SyscallRule(["ioctl"], "ERRNO", [command])])
    allow = SeccompProfile("ERRNO", [SyscallRule(["ioctl"], "ALLOW", [command])])
    other = SeccompProfile(
        "ERRNO", [SyscallRule(["ioctl"], "ALLOW", [SyscallArg(1, 0x5412, op="NE")])]
    )
    for bits in (0, 1 << 32, 0xFFFFFFFF << 32, 1 << 63):
        assert verdict(refuse, "ioctl", 0, 0x5412 | bits) == EPERM
        assert verdict(allow, "ioctl", 0, 0x5412 | bits) == ALLOW
        assert verdict(other, "ioctl", 0, 0x5412 | bits) == EPERM
    # The third argument of ioctl has all bits.
    wide = SeccompProfile("ALLOW", [SyscallRule(["ioctl"], "ERRNO", [SyscallArg(2, 7)])])
    assert verdict(wide, "ioctl", 0, 0, 7 | 1 << 32) == ALLOW


def test_an_int_below_zero_is_compared_as_the_kernel_takes_it() -> None:
    minus_one = SyscallArg(0, 2**64 - 1)
    profile = SeccompProfile("ALLOW", [SyscallRule(["personality"], "ERRNO", [minus_one])])
    assert verdict(profile, "personality", 2**32 - 1) == EPERM
    assert verdict(profile, "personality", 2**64 - 1) == EPERM
    assert verdict(profile, "personality", 0) == ALLOW


def test_a_name_of_other_machines_only_has_no_effect() -> None:
    profile = SeccompProfile("ERRNO", [SyscallRule(["riscv_flush_icache", "read"], "ALLOW")])
    assert verdict(profile, "read") == ALLOW
    assert "riscv_flush_icache" not in numbers_of(X86_64)


# Calls that stand for many ----------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["ppc64le", "s390x"])
def test_what_is_refused_is_refused_through_socketcall_and_ipc_as_well(machine: str) -> None:
    rules = [
        SyscallRule(["socket"], "ERRNO", [SyscallArg(0, 40)], errno_ret=97),
        SyscallRule(["shmget"], "ERRNO", errno_ret=98),
    ]
    profile = SeccompProfile("ALLOW", rules)
    assert verdict(profile, "socketcall", 1, machine=machine) == 0x00050000 | 97
    assert verdict(profile, "socketcall", 2, machine=machine) == ALLOW
    for version in (0, 1 << 16):
        assert verdict(profile, "ipc", 23 | version, machine=machine) == 0x00050000 | 98
    assert verdict(profile, "ipc", 1, machine=machine) == ALLOW


def test_what_is_allowed_for_its_arguments_is_not_allowed_through_socketcall() -> None:
    rules = [
        SyscallRule(["socket"], "ALLOW", [SyscallArg(0, 1)]),
        SyscallRule(["connect"], "ALLOW"),
    ]
    profile = SeccompProfile("ERRNO", rules)
    assert verdict(profile, "socketcall", 1, machine="s390x") == EPERM
    assert verdict(profile, "socketcall", 3, machine="s390x") == ALLOW


# ABIs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", ["ALLOW", "ERRNO", "LOG", "KILL"])
def test_other_abis_kill_unless_they_are_listed(default: str) -> None:
    profile = SeccompProfile(default, [SyscallRule(["getpid"], "ALLOW")])
    program = decode(compiled(profile).program)
    for architecture in (0, 0x40000003, 0xC00000B7):
        assert run(program, Call(20, architecture)) == KILL
    assert run(program, Call(0x40000000 + 39, X86_64.audit)) == KILL
    x32, x86 = "SCMP_ARCH_X32", "SCMP_ARCH_X86"
    both = SeccompProfile(default, profile.syscalls, [x32, x86])
    assert verdict(both, "getpid", architecture=x32) == ALLOW
    assert verdict(both, "getpid", architecture=x86) == ALLOW
    assert run(decode(compiled(both).program), Call(20, 0xC00000B7)) == KILL


def test_docker_s_map_of_architectures_is_for_the_machine_that_it_names() -> None:
    profile = SeccompProfile(
        "ERRNO",
        [SyscallRule(["getpid"], "ALLOW")],
        arch_map=[ArchitectureMap("X86_64", ["X86"]), ArchitectureMap("AARCH64", ["ARM"])],
    )
    arm = Call(20, ARCHITECTURES["SCMP_ARCH_ARM"].audit)
    x86 = Call(20, ARCHITECTURES["SCMP_ARCH_X86"].audit)
    on_x86, on_arm = (decode(compiled(profile, each).program) for each in ("x86_64", "aarch64"))
    assert (run(on_x86, x86), run(on_x86, arm)) == (ALLOW, KILL)
    assert (run(on_arm, x86), run(on_arm, arm)) == (KILL, ALLOW)


def test_an_architecture_that_the_machine_does_not_have_adds_nothing() -> None:
    profile = SeccompProfile("ERRNO", architectures=["MIPS", "ARM", "X86_64"])
    assert compiled(profile) == compiled(SeccompProfile("ERRNO"))


@pytest.mark.parametrize("default", ["ERRNO", "KILL_PROCESS", "TRAP"])
def test_unknown_numbers_get_enosys_where_the_default_refuses(default: str) -> None:
    program = decode(compiled(SeccompProfile(default, [SyscallRule(["read"], "ALLOW")])).program)
    newest = max(numbers_of(X86_64).values())
    for number in (newest + 1, 9999, 0x3FFFFFFF, 0xFFFFFFFF, 400):
        assert run(program, Call(number, X86_64.audit)) == ENOSYS
    assert run(program, Call(newest, X86_64.audit)) != ENOSYS


def test_unknown_numbers_get_the_default_where_it_does_not_refuse() -> None:
    program = decode(compiled(SeccompProfile("LOG")).program)
    assert run(program, Call(9999, X86_64.audit)) == 0x7FFC0000


def test_a_machine_without_a_table_is_named() -> None:
    with pytest.raises(UnsupportedError, match="pdp11"):
        compiled(SeccompProfile.default(), "pdp11")


# Conditions of rules ----------------------------------------------------------------------------


def test_rules_are_for_containers_that_meet_their_conditions() -> None:
    def allowed(
        condition: dict[str, SyscallCondition],
        capabilities: frozenset[Capability] = NONE,
        kernel: tuple[int, int] = KERNEL,
    ) -> bool:
        profile = SeccompProfile("ERRNO", [SyscallRule(["read"], "ALLOW", **condition)])  # type: ignore[arg-type]
        program = decode(compiled(profile, "x86_64", capabilities, kernel).program)
        return run(program, Call(0, X86_64.audit)) == ALLOW

    two = SyscallCondition(["SYS_ADMIN", "BPF"])
    one, both = frozenset({Capability.BPF}), frozenset({Capability.BPF, Capability.SYS_ADMIN})
    # All for includes, any for excludes.
    assert [allowed({"includes": two}, each) for each in (NONE, one, both)] == [False, False, True]
    assert [allowed({"excludes": two}, each) for each in (NONE, one, both)] == [True, False, False]
    machine = SyscallCondition(arches=["amd64"])
    assert (allowed({"includes": machine}), allowed({"excludes": machine})) == (True, False)
    other = SyscallCondition(arches=["arm64"])
    assert (allowed({"includes": other}), allowed({"excludes": other})) == (False, True)
    version = SyscallCondition(min_kernel="6.2")
    assert [allowed({"includes": version}, kernel=each) for each in ((6, 1), (6, 2), (7, 0))] == [
        False,
        True,
        True,
    ]


# Size -------------------------------------------------------------------------------------------


def test_the_default_filter_is_small() -> None:
    assert compiled(SeccompProfile.default(), capabilities=default_capabilities()).instructions < 80


def test_a_filter_is_compiled_once_for_the_same_profile() -> None:
    again = SeccompProfile.from_json(SeccompProfile.default().to_json())
    assert compiled(again) is compiled(SeccompProfile.default())


def wide_rules(count: int) -> list[SyscallRule]:
    return [
        SyscallRule(["mmap"], "ALLOW", [SyscallArg(0, value << 33 | 1), SyscallArg(1, value)])
        for value in range(count)
    ]


def test_a_filter_beyond_what_the_kernel_takes_is_refused_by_the_rule_that_is_too_much() -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(SeccompProfile("ERRNO", wide_rules(2000)))
    field = caught.value.field
    assert field.startswith("seccomp.syscalls[")
    index = int(field.removeprefix("seccomp.syscalls[").removesuffix("]"))
    largest = compiled(SeccompProfile("ERRNO", wide_rules(index)))
    assert MAX_INSTRUCTIONS - 10 < largest.instructions <= MAX_INSTRUCTIONS
    with pytest.raises(ConfigError):
        compiled(SeccompProfile("ERRNO", wide_rules(index + 1)))


def test_a_large_filter_says_what_its_profile_does() -> None:
    rules = [*wide_rules(400), SyscallRule(["read", "listns"], "LOG")]
    profile = SeccompProfile("ERRNO", rules)
    assert compiled(profile).instructions > 2000  # jumps of more than 255
    for value in (0, 1, 200, 399):
        assert verdict(profile, "mmap", value << 33 | 1, value) == ALLOW
        assert verdict(profile, "mmap", value << 33 | 1, value + 1) == EPERM
    assert verdict(profile, "read") == verdict(profile, "listns") == 0x7FFC0000
    assert verdict(profile, "write") == EPERM


# A tree finds the segment of every number, whatever the segments.
@given(
    st.lists(st.integers(1, 2**32 - 1), unique=True, max_size=60),
    st.lists(st.integers(0, 2), min_size=61, max_size=61),
)
def test_a_tree_finds_the_segment_of_every_number(points: list[int], values: list[int]) -> None:
    check_tree([0, *sorted(points)], values)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=400))
def test_a_tree_finds_the_segment_of_numbers_side_by_side(values: list[int]) -> None:
    check_tree(list(range(len(values))), values)


def check_tree(starts: list[int], values: list[int]) -> None:
    program = Assembler()
    segments = [
        Segment(start, program.ret(value)) for start, value in zip(starts, values, strict=False)
    ]
    program.tree(segments)
    program.load(0)
    code = decode(program.encode(little=True))
    for at, start in enumerate(starts):
        end = starts[at + 1] - 1 if at + 1 < len(starts) else 2**32 - 1
        for number in {start, end}:
            assert run(code, Call(number, 0)) == values[at]


def test_a_single_number_within_others_costs_one_comparison() -> None:
    program = Assembler()
    allow, refuse = program.ret(ALLOW), program.ret(EPERM)
    program.tree([Segment(0, allow), Segment(7, refuse), Segment(8, allow)])
    assert len(program) == 3


# The default profile ----------------------------------------------------------------------------

REFUSED = """
    unshare setns mount umount2 pivot_root chroot_ fsopen fsconfig fsmount move_mount open_tree
    mount_setattr io_uring_setup io_uring_enter io_uring_register keyctl add_key
    request_key bpf perf_event_open userfaultfd open_by_handle_at kexec_load kexec_file_load
    init_module finit_module delete_module reboot swapon swapoff acct quotactl quotactl_fd syslog
    iopl ioperm modify_ldt set_mempolicy mbind move_pages migrate_pages kcmp pidfd_getfd
    process_madvise clock_settime settimeofday sethostname setdomainname vhangup nfsservctl
    lookup_dcookie uselib ustat sysfs _sysctl fanotify_init lsm_list_modules
""".replace("chroot_", "").split()


@pytest.mark.parametrize("name", REFUSED)
def test_the_default_profile_refuses(name: str) -> None:
    default = SeccompProfile.default()
    assert verdict(default, name, capabilities=default_capabilities()) == EPERM


def test_the_default_profile_has_clone3_and_the_youngest_missing() -> None:
    default = SeccompProfile.default()
    for name in ("clone3", "file_getattr", "listns", "fchroot", "open_tree_attr"):
        assert verdict(default, name, capabilities=default_capabilities()) == ENOSYS


REFUSED_ARGUMENTS: dict[str, list[tuple[int, ...]]] = {
    "clone": [(1 << bit | 17,) for bit in (17, 25, 26, 27, 28, 29, 30)],
    "socket": [(family,) for family in (3, 17, 29, 31, 38, 40, 44)],
    "socketpair": [(2,), (40,)],
    "ioctl": [(0, command) for command in (0x5412, 0x541C, 0x5423)],
    "personality": [(1,), (0x0040000,), (0x0080000,), (0x0400000,)],
}
ALLOWED_ARGUMENTS: dict[str, list[tuple[int, ...]]] = {
    "clone": [(17,), (0x4111,), (0x3D0F00,), (0x100011,)],
    "socket": [(family,) for family in (1, 2, 10, 16)],
    "socketpair": [(1,)],
    "ioctl": [(0, each) for each in (0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x5424, 0x8910)],
    "personality": [(0,), (8,), (0x20000,), (0x20008,), (0xFFFFFFFF,)],
}


@pytest.mark.parametrize("bits", [0, 1 << 32, 1 << 63])
@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_the_default_profile_looks_at_arguments(name: str, bits: int) -> None:
    for expected, calls in ((EPERM, REFUSED_ARGUMENTS), (ALLOW, ALLOWED_ARGUMENTS)):
        for arguments in calls[name]:
            changed = [argument | bits for argument in arguments]
            found = verdict(
                SeccompProfile.default(), name, *changed, capabilities=default_capabilities()
            )
            assert found == expected, arguments


BY_CAPABILITY = {
    "SYS_ADMIN": ["mount", "unshare", "setns", "clone3", "bpf", "perf_event_open", "syslog"],
    "BPF": ["bpf"],
    "PERFMON": ["perf_event_open"],
    "SYSLOG": ["syslog"],
    "SYS_CHROOT": ["chroot"],
    "SYS_PTRACE": ["kcmp", "pidfd_getfd"],
    "SYS_TIME": ["clock_settime"],
    "DAC_READ_SEARCH": ["open_by_handle_at"],
    "SYS_NICE": ["mbind"],
}


@pytest.mark.parametrize("capability", BY_CAPABILITY)
def test_the_default_profile_allows_what_a_capability_is_for(capability: str) -> None:
    default = SeccompProfile.default()
    for name in BY_CAPABILITY[capability]:
        assert verdict(default, name) in (EPERM, ENOSYS)
        given_one = frozenset({Capability(capability)})
        assert verdict(default, name, capabilities=given_one) == ALLOW
    if capability == "SYS_ADMIN":
        assert verdict(default, "clone", 1 << 28, capabilities=given_one) == ALLOW


def test_the_default_profile_never_allows_some_whatever_the_capabilities() -> None:
    every = frozenset(Capability)
    for name in ("io_uring_setup", "keyctl", "add_key", "userfaultfd", "kexec_load", "modify_ldt"):
        assert verdict(SeccompProfile.default(), name, capabilities=every) == EPERM
    assert verdict(SeccompProfile.default(), "socket", 40, capabilities=every) == EPERM
    assert verdict(SeccompProfile.default(), "ioctl", 0, 0x5412, capabilities=every) == EPERM


def test_notify_asks_by_a_listener() -> None:
    profile = SeccompProfile("ALLOW", [SyscallRule(["mkdir"], "NOTIFY")], flags=["TSYNC", "LOG"])
    assert verdict(profile, "mkdir") == 0x7FC00000
    # Not the thread that passes the listener on.
    assert compiled(profile).flags == 2 | 8
    profile = replace(profile, flags=["WAIT_KILLABLE_RECV"])
    assert compiled(profile).flags == 8 | 32


def test_a_question_about_the_start_itself_is_refused_by_its_name() -> None:
    exactly = SyscallArg(0, 7)
    for rules, default, field in (
        ([SyscallRule(["read"], "ALLOW")], "NOTIFY", "seccomp.default_action"),
        ([SyscallRule(["read", "execve"], "NOTIFY")], "ALLOW", "seccomp.syscalls[0].action"),
        ([SyscallRule(["execve"], "NOTIFY", [exactly])], "ALLOW", "seccomp.syscalls[0].action"),
    ):
        with pytest.raises(ConfigError) as caught:
            compiled(SeccompProfile(default, rules))
        assert caught.value.field == field
    strict = [SyscallRule(["execve"], "ERRNO"), SyscallRule(["execve"], "NOTIFY")]
    assert compiled(SeccompProfile("ALLOW", strict)).flags == 8


def test_flags_are_those_of_the_kernel() -> None:
    flags = ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"]
    assert compiled(SeccompProfile("ERRNO", flags=flags)).flags == 1 | 2 | 4
    assert compiled(SeccompProfile.default()).flags == 0


# The table --------------------------------------------------------------------------------------


def test_the_table_has_the_calls_of_every_abi() -> None:
    some = {
        "x86_64": {"read": 0, "clone3": 435, "uretprobe": 335},
        "x86": {"read": 3, "socketcall": 102, "clock_gettime64": 403},
        "x32": {"read": 0x40000000, "ioctl": 0x40000000 + 514},
        "aarch64": {"read": 63, "clone": 220},
        "arm": {"read": 3, "set_tls": 0xF0005, "sync_file_range2": 341},
        "riscv64": {"riscv_flush_icache": 259},
        "ppc64le": {"swapcontext": 249},
        "s390x": {"s390_pci_mmio_read": 353},
    }
    for architecture in ARCHITECTURES.values():
        table = numbers_of(architecture)
        assert len(table) > 300
        assert {name: table[name] for name in some[architecture.name]} == some[architecture.name]
    assert "mips" not in {each.name for each in ARCHITECTURES.values()}
    assert "cachectl" in known_names()  # of MIPS
