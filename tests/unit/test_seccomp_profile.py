# SPDX-License-Identifier: Apache-2.0
"""Profiles: what they accept, how they say no, and their JSON."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from filters import profiles
from hypothesis import given

from container import (
    ConfigError,
    SeccompAction,
    SeccompFlag,
    SeccompOperator,
    SeccompProfile,
    SyscallArg,
    SyscallCondition,
    SyscallRule,
)
from container._seccomp._profile import ArchitectureMap

NAMES = ["read", "write", "ioctl", "socket", "clone", "personality", "fchmodat", "mmap"]


def rule(**changes: Any) -> SyscallRule:
    return SyscallRule(**({"names": ["read"], "action": "ALLOW"} | changes))


def profile(**changes: Any) -> SeccompProfile:
    return SeccompProfile(**({"default_action": "ERRNO"} | changes))


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SCMP_ACT_ALLOW", "ALLOW", "allow", "scmp_act_allow"])
def test_an_action_is_named_with_or_without_its_prefix_in_any_case(name: str) -> None:
    assert SeccompAction(name) is SeccompAction.ALLOW
    assert rule(action=name).action is SeccompAction.ALLOW


def test_operators_and_flags_are_parsed_like_actions() -> None:
    assert SeccompOperator("masked_eq") is SeccompOperator.MASKED_EQ
    assert SeccompFlag("spec_allow") is SeccompFlag.SPEC_ALLOW
    assert SyscallArg(0, 1, op="ne").op is SeccompOperator.NE
    assert profile(flags=["LOG"]).flags == (SeccompFlag.LOG,)


def test_architectures_are_stored_as_oci_has_them() -> None:
    assert profile(architectures=["x86", "scmp_arch_x32"]).architectures == (
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
    )


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "an unknown call": (lambda: rule(names=["read", "raed"]), "names[1]"),
    "a call that is no text": (lambda: rule(names=[0]), "names[0]"),
    "no call": (lambda: rule(names=[]), "names"),
    "a lone text of calls": (lambda: rule(names="read"), "names"),
    "an unknown action": (lambda: rule(action="PERMIT"), "action"),
    "an action of no text": (lambda: rule(action=None), "action"),
    "an action in other letters": (lambda: rule(action="ALLoW\u017f"), "action"),
    "a bad operator": (lambda: SyscallArg(0, 0, op="SCMP_CMP_EQUALS"), "op"),
    "a seventh argument": (lambda: SyscallArg(6, 0), "index"),
    "a value below zero": (lambda: SyscallArg(0, -1), "value"),
    "a value of 65 bits": (lambda: SyscallArg(0, 2**64), "value"),
    "a value of a bool": (lambda: SyscallArg(0, True), "value"),
    "a second value of 65 bits": (lambda: SyscallArg(0, 0, 2**64), "value_two"),
    "an argument that is none": (lambda: rule(args=[(0, 1)]), "args[0]"),
    "an argument twice": (lambda: rule(args=[SyscallArg(1, 1), SyscallArg(1, 2)]), "args[1].index"),
    "an errno that is none": (lambda: rule(action="ERRNO", errno_ret=4096), "errno_ret"),
    "an errno below zero": (lambda: rule(action="ERRNO", errno_ret=-1), "errno_ret"),
    "an errno of ALLOW": (lambda: rule(errno_ret=1), "errno_ret"),
    "a condition that is none": (lambda: rule(includes={"caps": []}), "includes"),
    "an unknown capability": (lambda: SyscallCondition(caps=["FLY"]), "caps"),
    "an unknown machine": (lambda: SyscallCondition(arches=["pdp11"]), "arches[0]"),
    "a kernel that is no version": (lambda: SyscallCondition(min_kernel="5"), "min_kernel"),
    "a kernel of a number": (lambda: SyscallCondition(min_kernel=5.4), "min_kernel"),  # type: ignore[arg-type]
    "an unknown default": (lambda: profile(default_action="NOTHING"), "default_action"),
    "a rule that is none": (lambda: profile(syscalls=[rule(), "read"]), "syscalls[1]"),
    "an unknown architecture": (lambda: profile(architectures=["Z80"]), "architectures[0]"),
    "an architecture twice": (
        lambda: profile(architectures=["X86", "SCMP_ARCH_X86"]),
        "architectures[1]",
    ),
    "an unknown flag": (lambda: profile(flags=["FAST"]), "flags[0]"),
    "a flag twice": (lambda: profile(flags=["LOG", "LOG"]), "flags[1]"),
    "a default errno of ALLOW": (
        lambda: profile(default_action="ALLOW", default_errno_ret=1),
        "default_errno_ret",
    ),
    "a listener that is no text": (lambda: profile(listener_path=1), "listener_path"),
    "both kinds of architectures": (
        lambda: profile(architectures=["X86"], arch_map=[ArchitectureMap("X86_64", ["X32"])]),
        "arch_map",
    ),
    "100 000 rules": (lambda: profile(syscalls=[rule()] * 100_000), "syscalls[4096]"),
    "100 000 names": (lambda: rule(names=["read"] * 100_000), "names[4096]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_is_refused_by_its_name(kind: str) -> None:
    make, field = BAD[kind]
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.field) == (str(caught.value), field)
    assert str(caught.value).isprintable()


def test_a_profile_is_immutable_hashable_and_survives_pickle_and_copy() -> None:
    for each in (SeccompProfile.default(), profile(syscalls=[rule()], flags=["LOG"])):
        assert hash(each) == hash(replace(each))
        assert each == replace(each)
        assert pickle.loads(pickle.dumps(each)) == each
        assert hash(pickle.loads(pickle.dumps(each))) == hash(each)
        assert copy.deepcopy(each) is each
        with pytest.raises(FrozenInstanceError):
            each.default_action = "ALLOW"  # type: ignore[misc]
    assert profile() != profile(flags=["LOG"])


def test_the_default_profile_is_made_once() -> None:
    assert SeccompProfile.default() is SeccompProfile.default()


# JSON -------------------------------------------------------------------------------------------

DOCKER = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "defaultErrno": "ENOSYS",
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
    ],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "comment": "of course"},
        {"name": "exit", "action": "SCMP_ACT_ALLOW", "args": None, "includes": {}},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}],
            "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"]},
        },
        {"names": ["bdflush"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS"},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
    ],
}

OCI = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "listenerPath": "/run/agent.sock",
    "listenerMetadata": "of ours",
    "syscalls": [
        {
            "names": ["socket"],
            "action": "SCMP_ACT_TRACE",
            "errnoRet": 7,
            "args": [
                {"index": 1, "value": 7, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"},
                {"index": 0, "value": 0, "op": "SCMP_CMP_NE"},
            ],
        }
    ],
}


def test_docker_s_format_is_read() -> None:
    read = SeccompProfile.from_json(json.dumps(DOCKER))
    assert read == SeccompProfile(
        "ERRNO",
        [
            SyscallRule(["read", "write"], "ALLOW"),
            SyscallRule(["exit"], "ALLOW"),
            SyscallRule(
                ["clone"],
                "ALLOW",
                [SyscallArg(0, 0x7E020000, 0, "MASKED_EQ")],
                excludes=SyscallCondition(["SYS_ADMIN"], ["s390", "s390x"]),
            ),
            SyscallRule(["bdflush"], "ERRNO", errno_ret=38),
            SyscallRule(["ptrace"], "ALLOW", includes=SyscallCondition(min_kernel="4.8")),
        ],
        default_errno_ret=38,
        arch_map=[ArchitectureMap("X86_64", ["X86"]), ArchitectureMap("RISCV64")],
    )


def test_oci_s_format_is_read_and_written_as_it_was() -> None:
    read = SeccompProfile.from_json(json.dumps(OCI))
    assert json.loads(read.to_json()) == OCI
    assert read.syscalls[0].args[0] == SyscallArg(1, 7, 3, "MASKED_EQ")


@given(profiles.any_profiles(NAMES))
def test_any_profile_comes_back_from_its_json(made: SeccompProfile) -> None:
    assert SeccompProfile.from_json(made.to_json()) == made


def test_the_default_profile_comes_back_from_its_json() -> None:
    assert SeccompProfile.from_json(SeccompProfile.default().to_json()) == SeccompProfile.default()


def test_conditions_on_one_argument_are_rules_each_as_for_other_runtimes() -> None:
    args = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    args.append({"index": 1, "value": 3, "op": "SCMP_CMP_EQ"})
    content = {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args}
    read = SeccompProfile.from_json(
        json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [content]})
    )
    assert [each.args for each in read.syscalls] == [
        (SyscallArg(0, 1),),
        (SyscallArg(0, 2),),
        (SyscallArg(1, 3),),
    ]


def test_unknown_keys_are_ignored() -> None:
    read = SeccompProfile.from_json('{"defaultAction": "SCMP_ACT_KILL", "newer": [1]}')
    assert read == SeccompProfile("KILL")


BAD_JSON: dict[str, tuple[Any, str]] = {
    "no object": ([], "text"),
    "no default": ({"syscalls": []}, "defaultAction"),
    "a bad default": ({"defaultAction": "SCMP_ACT_MAYBE"}, "defaultAction"),
    "a bad default errno": (
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 99999},
        "defaultErrnoRet",
    ),
    "a default errno of nobody": (
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOTHING"},
        "defaultErrno",
    ),
    "an architecture twice": (
        {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"] * 2},
        "architectures[1]",
    ),
    "a bad architecture in the map": (
        {"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "Z80"}]},
        "archMap[0].architecture",
    ),
    "rules that are no array": ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": {}}, "syscalls"),
}
BAD_RULES: dict[str, tuple[Any, str]] = {
    "no object": (7, ""),
    "no action": ({"names": ["read"]}, ".action"),
    "an unknown action": ({"names": ["read"], "action": "SCMP_ACT_PERMIT"}, ".action"),
    "an unknown call": ({"names": ["read", "x"], "action": "SCMP_ACT_ALLOW"}, ".names[1]"),
    "no name": ({"action": "SCMP_ACT_ALLOW"}, ".names"),
    "an errno of ALLOW": (
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1},
        ".errnoRet",
    ),
    "an errno of nobody": (
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "E"},
        ".errno",
    ),
    "a bad operator": (
        {
            "names": ["read"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_IS"}],
        },
        ".args[0].op",
    ),
    "a bad second value": (
        {
            "names": ["read"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 0, "valueTwo": 1.5, "op": "SCMP_CMP_EQ"}],
        },
        ".args[0].valueTwo",
    ),
    "an argument without a value": (
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "op": "EQ"}]},
        ".args[0].value",
    ),
    "a bad kernel": (
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "x"}},
        ".includes.minKernel",
    ),
    "a capability of nobody": (
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_FLY"]}},
        ".excludes.caps",
    ),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_says_no_profile_is_refused_by_its_path(kind: str) -> None:
    content, field = BAD_JSON[kind]
    with pytest.raises(ConfigError) as caught:
        SeccompProfile.from_json(json.dumps(content))
    assert caught.value.field == field


@pytest.mark.parametrize("kind", BAD_RULES)
def test_json_with_a_bad_rule_is_refused_by_the_path_of_the_rule(kind: str) -> None:
    bad, path = BAD_RULES[kind]
    good = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    content = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [good, good, bad]}
    with pytest.raises(ConfigError) as caught:
        SeccompProfile.from_json(json.dumps(content))
    assert caught.value.field == f"syscalls[2]{path}"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nul", '{"defaultAction": "\\ud800"}'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SeccompProfile.from_json(text)
    assert caught.value.field in ("text", "defaultAction")
    with pytest.raises(ConfigError):
        SeccompProfile.from_json(None)  # type: ignore[arg-type]


def test_100_000_rules_of_json_are_refused_by_the_path_of_the_first_too_many() -> None:
    good = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    with pytest.raises(ConfigError) as caught:
        SeccompProfile.from_json(
            json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [good] * 100_000})
        )
    assert caught.value.field == "syscalls[4096]"
