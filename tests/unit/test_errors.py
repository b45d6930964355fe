# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import errno
import os
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import container
from container import _errors
from container._config import Result, Usage
from container._errors import (
    CgroupError,
    CgroupNotFoundError,
    CgroupV2NotMountedError,
    CleanupError,
    CommandError,
    ConfigError,
    ContainerError,
    ContainerNotFoundError,
    ContainerTimeoutError,
    ControllerNotEnabledError,
    HookError,
    LaunchError,
    NetworkError,
    StateError,
    UnsupportedError,
    launch_error,
    printable,
)

RESULT = Result(("sh", "-c", "exit 3"), 3, b"out", b"err", usage=Usage(1.0, 0.5, 0.25, 4096))
EVIL = "a\x1b[31mb\nc\u202ed"

ERRORS = [
    ContainerError("something"),
    ConfigError("expected str, got int", field="mounts[1].target"),
    launch_error("exec", errno.ENOENT, "cannot execute '/x'", "/x", "install it"),
    launch_error("mount", errno.EPERM, "cannot mount '/a'", Path("/a")),
    launch_error("cwd", errno.ENOTDIR, "cannot enter '/etc/passwd'", "/etc/passwd"),
    launch_error("clone", errno.ENOSPC, "cannot make the namespaces"),
    launch_error("exec", None, "the process was killed"),
    StateError("is stopped"),
    ContainerNotFoundError("no container 'x'"),
    ContainerTimeoutError("after 5 s", RESULT),
    ContainerTimeoutError("after 5 s"),
    CommandError(RESULT),
    CgroupError("cannot remove"),
    CgroupV2NotMountedError("not mounted"),
    CgroupNotFoundError("no such cgroup"),
    ControllerNotEnabledError("memory", holder="'/a.slice'", remedy="delegate it"),
    NetworkError("no bridge"),
    HookError("hook failed"),
    UnsupportedError("not supported yet", field="seccomp"),
    UnsupportedError("only Linux"),
    CleanupError("teardown failed", [OSError(errno.EBUSY, "busy"), StateError("x")]),
]


def attributes(error: BaseException) -> dict[str, object]:
    names = {name for name in dir(error) if not name.startswith("_")} - {"characters_written"}
    values = {name: getattr(error, name) for name in names} | {"__notes__": error.__notes__}
    # Exceptions inside compare by identity, their reprs do not.
    return {name: repr(value) for name, value in values.items() if not callable(value)}


def clones(error: ContainerError) -> list[ContainerError]:
    pickled = [pickle.loads(pickle.dumps(error, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    return [*pickled, copy.copy(error), copy.deepcopy(error)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: f"{type(e).__name__}: {e}")
def test_every_error_survives_pickle_and_copy(error: ContainerError) -> None:
    error.add_note("a note")
    for clone in clones(error):
        assert type(clone) is type(error)
        assert str(clone) == str(error)
        assert attributes(clone) == attributes(error)


def test_the_list_above_has_every_class_of_the_module() -> None:
    declared = {cls for cls in vars(_errors).values() if isinstance(cls, type)}
    assert {cls for cls in declared if issubclass(cls, ContainerError)} == {*map(type, ERRORS)}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, tuple[str, str | None]] = {}
    stack: list[str] = []
    for line in (_errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ([│├└─ ]*)(\w+)(?: \((\w+)\))?(?: .*)?", line)
        if match and match[2].endswith("Error"):
            depth = len(match[1]) // 4
            stack[depth:] = [match[2]]
            drawn[match[2]] = (stack[depth - 1] if depth else "Exception", match[3])
    real = {}
    for cls in {*map(type, ERRORS)}:
        bases = [base.__name__ for base in cls.__bases__]
        real[cls.__name__] = (bases[0], bases[1] if len(bases) > 1 else None)
    assert drawn == real


@pytest.mark.parametrize(
    ("number", "builtin"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.ENOSPC, OSError),
        (errno.ENOEXEC, OSError),
    ],
)
@pytest.mark.parametrize("step", ["exec", "root", "cwd", "mount"])
def test_a_launch_error_is_the_builtin_error_of_its_errno(
    step: str, number: int, builtin: type[OSError]
) -> None:
    error = launch_error(step, number, "cannot")
    assert isinstance(error, LaunchError) and isinstance(error, OSError)
    assert isinstance(error, type(OSError(number, ""))) and isinstance(error, builtin)
    others = {FileNotFoundError, PermissionError, NotADirectoryError} - {builtin}
    assert not isinstance(error, tuple(others))


def test_a_launch_error_tells_step_object_reason_and_hint_on_one_line() -> None:
    error = launch_error("exec", errno.ENOENT, "cannot execute '/bin/nope'", "/bin/nope")
    assert str(error) == "exec: cannot execute '/bin/nope': No such file or directory (ENOENT)"
    assert (error.step, error.errno, error.detail) == ("exec", 2, "cannot execute '/bin/nope'")
    assert (error.filename, error.hint) == ("/bin/nope", None)
    assert error.strerror == os.strerror(errno.ENOENT)
    hinted = launch_error("clone", errno.EPERM, "cannot make a user namespace", hint="do this")
    assert str(hinted) == (
        "clone: cannot make a user namespace: Operation not permitted (EPERM); hint: do this"
    )
    assert (hinted.filename, hinted.hint) == (None, "do this")


def test_a_launch_error_takes_a_path_object_and_keeps_odd_bytes() -> None:
    odd = os.fsdecode(b"/tmp/\xff")
    error = launch_error("root", errno.ENOENT, f"no {odd!r}", Path(odd))
    assert error.filename == odd
    assert "\\udcff" in str(error)


def test_a_launch_error_without_errno_has_none() -> None:
    error = launch_error("exec", None, "the process was killed by signal 9")
    assert error.errno is None
    assert str(error) == "exec: the process was killed by signal 9"


@pytest.mark.parametrize(
    "error",
    [
        ContainerError(EVIL),
        ConfigError(EVIL, field=f"env[{EVIL}]"),
        launch_error(EVIL, errno.ENOENT, EVIL, EVIL, EVIL),
        launch_error("exec", None, EVIL),
        ContainerTimeoutError(EVIL),
        CommandError(Result((EVIL,), -9)),
        ControllerNotEnabledError(EVIL, holder=EVIL, remedy=EVIL),
        UnsupportedError(EVIL, field=EVIL),
        CleanupError(EVIL, [ConfigError(EVIL, field="x")]),
    ],
    ids=lambda e: type(e).__name__,
)
def test_no_control_character_reaches_the_text(error: ContainerError) -> None:
    assert str(error).isprintable() and repr(error).isprintable()
    assert "\\x1b[31m" in str(error)


@given(st.text())
def test_printable_keeps_what_is_printable_and_is_stable(text: str) -> None:
    shown = printable(text)
    assert len(shown) == sum(1 if char.isprintable() else len(repr(char)) - 2 for char in text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert shown == text or not text.isprintable()


def test_a_config_error_names_the_field() -> None:
    error = ConfigError("expected str, got int", field="mounts[1].target")
    assert str(error) == "mounts[1].target: expected str, got int"
    assert (error.field, error.detail) == ("mounts[1].target", "expected str, got int")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("returncode", "oom_killed", "text"),
    [
        (3, False, "command ['sh', '-c', 'exit 3'] exited with status 3"),
        (-9, False, "command ['sh', '-c', 'exit 3'] was killed by signal 9 (SIGKILL)"),
        (-40, False, "command ['sh', '-c', 'exit 3'] was killed by signal 40 (unnamed)"),
        (
            -9,
            True,
            "command ['sh', '-c', 'exit 3'] was killed by signal 9 (SIGKILL), out of memory",
        ),
    ],
)
def test_a_command_error_names_command_and_status(
    returncode: int, oom_killed: bool, text: str
) -> None:
    error = CommandError(Result(RESULT.args, returncode, b"output", oom_killed=oom_killed))
    assert str(error) == text
    assert error.result.stdout == b"output"


def test_a_command_error_tells_whose_memory_ran_out() -> None:
    result = Result(RESULT.args, -9, oom_killed=True, oom_outside=True)
    assert str(CommandError(result)).endswith("(SIGKILL), out of memory outside of its own limit")


def test_a_timeout_is_the_builtin_one_and_carries_the_result() -> None:
    error = ContainerTimeoutError("after 5 s", RESULT)
    assert isinstance(error, TimeoutError)
    assert error.result is RESULT
    assert ContainerTimeoutError("after 5 s").result is None


def test_a_missing_controller_is_named_with_its_holder_and_the_remedy() -> None:
    error = ControllerNotEnabledError("memory", holder="'/a.slice'", remedy="delegate it")
    assert str(error) == (
        "cgroup controller 'memory' is not enabled, it is held by '/a.slice'; hint: delegate it"
    )
    assert (error.controller, error.holder, error.remedy) == ("memory", "'/a.slice'", "delegate it")


def test_a_missing_controller_may_have_no_holder_and_no_remedy() -> None:
    text = str(ControllerNotEnabledError("memory"))
    assert text == "cgroup controller 'memory' is not enabled"


def test_an_unsupported_error_names_the_field_where_there_is_one() -> None:
    error = UnsupportedError("is not supported yet", field="seccomp")
    assert (str(error), error.field) == ("seccomp: is not supported yet", "seccomp")
    error = UnsupportedError("only Linux has containers")
    assert (str(error), error.field) == ("only Linux has containers", None)


def test_a_cleanup_error_stays_one_when_split() -> None:
    error = CleanupError("teardown failed", [OSError(errno.EBUSY, "busy"), StateError("x")])
    match, rest = error.split(OSError)
    assert isinstance(match, CleanupError) and isinstance(rest, CleanupError)
    assert [type(e) for e in match.exceptions] == [OSError]
    assert [type(e) for e in rest.exceptions] == [StateError]
    assert isinstance(error, ExceptionGroup)


def test_an_except_star_catches_what_is_in_a_cleanup_error() -> None:
    caught: list[Exception] = []
    try:
        raise CleanupError("teardown failed", [StateError("x")])
    except* StateError as group:
        caught += group.exceptions
    assert [str(e) for e in caught] == ["x"]


@pytest.mark.parametrize(
    "cls", sorted({cls for cls in map(type, ERRORS) if LaunchError not in cls.__bases__}, key=repr)
)
def test_a_public_error_names_the_package_and_is_found_there(cls: type) -> None:
    assert cls.__module__ == "container"
    assert getattr(container, cls.__name__) is cls
