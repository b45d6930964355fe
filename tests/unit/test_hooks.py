# SPDX-License-Identifier: Apache-2.0
"""What a hook may be, and what the launcher is asked to run for it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from container import (
    Config,
    ConfigError,
    ContainerState,
    Hook,
    HookError,
    Hooks,
    HookType,
    SeccompProfile,
    State,
    UnsupportedError,
    run_hooks,
)

STATE = ContainerState("a", State.RUNNING, 7, None, datetime.now(UTC))

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a relative path": (lambda: Hook("true"), "path"),
    "no path": (lambda: Hook(""), "path"),
    "a NUL in the path": (lambda: Hook("/a\0b"), "path"),
    "a string for arguments": (lambda: Hook("/a", "a b"), "args"),
    "no arguments": (lambda: Hook("/a", []), "args"),
    "a number among the arguments": (lambda: Hook("/a", ["a", 1]), "args[1]"),  # type: ignore[list-item]
    "a list for the environment": (lambda: Hook("/a", env=["A=b"]), "env"),  # type: ignore[arg-type]
    "a name with '='": (lambda: Hook("/a", env={"A=": "b"}), "env"),
    "no time at all": (lambda: Hook("/a", timeout=0), "timeout"),
    "negative time": (lambda: Hook("/a", timeout=-1), "timeout"),
    "no number of seconds": (lambda: Hook("/a", timeout=float("nan")), "timeout"),
    "text for a hook": (lambda: Hooks(prestart=["/a"]), "prestart[0]"),  # type: ignore[list-item]
    "a class for a hook": (lambda: Hooks(poststop=[dict]), "poststop[0]"),  # type: ignore[list-item]
    "one hook, no list": (lambda: Hooks(poststart=Hook("/a")), "poststart"),  # type: ignore[arg-type]
    "a function inside": (lambda: Hooks(create_container=[print]), "create_container[0]"),  # type: ignore[list-item]
    "a function in there": (lambda: Hooks(start_container=[print]), "start_container[0]"),  # type: ignore[list-item]
    "a list for all": (lambda: Config(hooks=[Hook("/a")]), "hooks"),  # type: ignore[arg-type]
    "no hooks to run": (lambda: run_hooks([], HookType.PRESTART, STATE), "hooks"),  # type: ignore[arg-type]
    "no kind": (lambda: run_hooks(Hooks(), "prestop", STATE), "hook_type"),  # type: ignore[arg-type]
    "no state": (lambda: run_hooks(Hooks(), HookType.PRESTART, {}), "state"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_hook_is_named(what: str) -> None:
    make, field = BAD[what]
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field.partition("[repr")[0].startswith(field)


def test_what_cannot_run_under_the_walls_of_the_container_is_refused() -> None:
    profile = SeccompProfile.from_json(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":'
        ' [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}'
    )
    hooks = Hooks(start_container=[Hook("/a")])
    with pytest.raises(ConfigError) as caught:
        Config(seccomp=profile, hooks=hooks)
    assert caught.value.field == "hooks.start_container"
    Config(seccomp=profile, hooks=Hooks(create_container=[Hook("/a")]))
    with pytest.raises(UnsupportedError) as refused:
        Config(apparmor_profile="x", hooks=Hooks(create_container=[Hook("/a")]))
    assert refused.value.field == "hooks.create_container"


def test_hooks_are_values() -> None:
    hooks = Hooks(prestart=[Hook("/a", ["a", "b"], {"SECRET": "value"}, 2)])
    for again in (copy.deepcopy(hooks), pickle.loads(pickle.dumps(hooks))):
        assert again == hooks
        assert hash(again) == hash(hooks)
    assert "value" not in repr(hooks)
    assert "SECRET" in repr(hooks)
    assert hooks.of(HookType.PRESTART) == hooks.prestart
    assert hooks.before_start
    assert not Hooks(poststart=[Hook("/a")], poststop=[Hook("/a")]).before_start


def test_the_kinds_are_named_as_oci_names_them() -> None:
    names = ["prestart", "createRuntime", "createContainer", "startContainer"]
    assert [kind.value for kind in HookType] == [*names, "poststart", "poststop"]


def test_a_hook_error_keeps_what_it_knows() -> None:
    error = HookError("text", hook_type="prestart", hook="/a", returncode=3, output=b"x")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == ("text", vars(error))


def test_run_hooks_runs_functions_in_their_order() -> None:
    seen: list[tuple[int, ContainerState]] = []
    hooks = Hooks(poststop=[lambda state, i=i: seen.append((i, state)) for i in range(3)])  # type: ignore[misc]
    run_hooks(hooks, HookType.POSTSTOP, STATE)
    assert seen == [(i, STATE) for i in range(3)]
