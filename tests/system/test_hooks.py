# SPDX-License-Identifier: Apache-2.0
"""Hooks, as they see it themselves: when, where, with what; and what becomes of bad ones."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from system.helpers import (
    ORDINARY_ID,
    caller,
    namespaces_of,
    parse_status,
    running_caller,
    told,
    wait_until,
    watched,
)

import container
from container import (
    PIPE,
    CleanupError,
    Config,
    Container,
    ContainerState,
    ContainerTimeoutError,
    Hook,
    HookError,
    Hooks,
    HookType,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    State,
    UnsupportedError,
    aio,
)

pytestmark = pytest.mark.needs("userns")

OUTER = ("prestart", "create_runtime", "poststart", "poststop")
INNER = ("create_container", "start_container")
BEFORE = ("prestart", "create_runtime", "create_container", "start_container")
ORDER = (*BEFORE, "poststart", "poststop")

_numbers = count(1)


@pytest.fixture
def out() -> Iterator[Path]:
    """A directory that anybody may write; tmp_path lies below one that only the caller enters."""
    path = Path(tempfile.mkdtemp(prefix="hooks-"))
    path.chmod(0o777)
    for name in ("order", "log"):  # written by several, each with ids of its own
        (path / name).touch()
        (path / name).chmod(0o666)
    yield path
    shutil.rmtree(path)


def sh(script: str, **options: Any) -> Hook:
    return Hook("/bin/sh", ["sh", "-c", script], **options)


def as_field(kind: str) -> str:
    return HookType[kind.upper()].value


def teller(kind: str, place: str) -> Hook:
    """Leaves its stdin, /proc/self/status, namespaces, directory and environment in files."""
    script = f"""
        echo {kind} >> {place}/order
        cat > {place}/{kind}.state
        cat /proc/self/status > {place}/{kind}.status
        for name in user mnt pid net ipc uts cgroup time; do
            readlink /proc/self/ns/$name
        done > {place}/{kind}.namespaces
        stat -L -c %d:%i / . > {place}/{kind}.places
        env > {place}/{kind}.env
        echo "$0 $*" > {place}/{kind}.args
    """
    args = ["a-name", "-c", script, "zero", "one", "two words"]
    return Hook("/bin/sh", args, env={"A": kind, "PATH": "/usr/bin:/bin"})


def tellers(out: Path) -> Hooks:
    places = {kind: "/out" if kind == "start_container" else str(out) for kind in ORDER}
    return Hooks(**{kind: [teller(kind, places[kind])] for kind in ORDER})


def with_out(out: Path, **options: Any) -> Config:
    return Config(mounts=[Mount.bind(out, "/out")], **options)


@pytest.fixture
def marker() -> Iterator[str]:
    """The argument of a sleep; at the end nobody may be left who has it."""
    text = f"1000.{os.getpid()}{next(_numbers)}"
    yield text
    assert wait_until(lambda: not sleepers(text))


def sleepers(marker: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker.encode() in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                found.append(int(name))
        except OSError:
            continue
    return found


# Moments, namespaces, rights --------------------------------------------------------------------


def test_each_kind_runs_at_its_moment_in_its_namespaces(out: Path) -> None:
    own = list(namespaces_of("self").values())
    order = out / "order"
    with Container(with_out(out, hooks=tellers(out))) as box:
        box.create(Process(["sh", "-c", "cat /out/order; read line"], stdin=PIPE, stdout=PIPE))
        assert order.read_text().split() == [*BEFORE[:3]]
        pid = box.pid
        assert pid is not None
        box.start()
        assert box.stdout is not None
        assert [box.stdout.readline().decode().strip() for _ in BEFORE] == list(BEFORE)
        inside = list(namespaces_of(pid).values())
        assert box.state.state == State.RUNNING
        assert order.read_text().split() == [*ORDER[:5]]
        os.stat(f"/proc/{pid}")
    assert order.read_text().split() == list(ORDER)
    statuses = ("creating", "creating", "creating", "created", "running", "stopped")
    for kind, status in zip(ORDER, statuses, strict=True):
        state = json.loads((out / f"{kind}.state").read_text())
        assert state.pop("pid", None) == {"poststop": None}.get(kind, 1 if kind in INNER else pid)
        assert state == {"ociVersion": "1.3.0", "id": box.id, "status": status, "bundle": ""}
        namespaces = (out / f"{kind}.namespaces").read_text().split()
        assert namespaces == (inside if kind in INNER else own)
        assert "A=" + kind in (out / f"{kind}.env").read_text().split()
        assert (out / f"{kind}.args").read_text() == "zero one two words\n"


def test_paths_are_the_hosts_until_the_start_and_the_containers_from_then_on(out: Path) -> None:
    own = os.stat("/")
    container.run(["true"], config=with_out(out, hooks=tellers(out)))
    host = f"{own.st_dev}:{own.st_ino}"
    places = {kind: (out / f"{kind}.places").read_text().split() for kind in ORDER}
    for kind in OUTER:
        assert places[kind] == [host, host]
    # Before the root is entered it is where the hook begins, and / is still the host's.
    root, here = places["create_container"]
    assert root == host
    assert places["start_container"] == [here, here]
    assert here != host


def test_the_environment_is_what_the_hook_says_and_nothing_else(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    container.run(["true"], config=with_out(out, hooks=tellers(out)), env={"OTHER": "2"})
    for kind in ORDER:
        env = dict(line.split("=", 1) for line in (out / f"{kind}.env").read_text().splitlines())
        assert {name: env[name] for name in env if name not in ("PWD", "SHLVL", "_")} == {
            "A": kind,
            "PATH": "/usr/bin:/bin",
        }


def test_rights_are_the_callers_outside_and_the_containers_inside(out: Path) -> None:
    process = Process(["cat", "/proc/self/status"], user="0:0", stdout=PIPE)
    with Container(with_out(out, hooks=tellers(out))) as box:
        box.run(process)
        assert box.stdout is not None
        program = parse_status(box.stdout.read().decode())
    own = parse_status(Path("/proc/self/status").read_text())
    status = {kind: parse_status((out / f"{kind}.status").read_text()) for kind in ORDER}
    for kind in OUTER:
        for field in ("CapEff", "CapPrm", "CapInh", "CapAmb", "Groups", "Seccomp"):
            assert status[kind][field] == own[field], (kind, field)
        assert status[kind]["Uid"].split() == own["Uid"].split()
    walls = ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
    for field in walls:
        assert status["start_container"][field] == program[field]
    assert program["Seccomp"] == "2"
    # All that root can have in its own user namespace, of which a program gets little.
    assert int(status["create_container"]["CapEff"], 16) & 1 << 21  # SYS_ADMIN
    assert status["create_container"]["Seccomp"] == own["Seccomp"]


@pytest.mark.needs("root")
def test_start_container_hooks_have_the_user_and_the_groups_of_the_program(out: Path) -> None:
    config = with_out(out, hooks=Hooks(start_container=[teller("start_container", "/out")]))
    with Container(config) as box:
        box.run(Process(["true"], user="1000:1001", groups=[1002]))
    status = parse_status((out / "start_container.status").read_text())
    # As /proc of the container has it: its own ids.
    assert (status["Uid"].split(), status["Gid"].split()) == (["1000"] * 4, ["1001"] * 4)
    assert status["Groups"].split() == ["1001", "1002"]
    assert status["CapEff"] == "0" * 16


@pytest.mark.needs("root")
def test_without_a_user_namespace_hooks_inside_have_the_callers_ids(out: Path) -> None:
    config = with_out(out, namespaces=Namespaces(user=False), hooks=tellers(out))
    assert container.run(["true"], config=config).returncode == 0
    own = parse_status(Path("/proc/self/status").read_text())
    status = parse_status((out / "create_container.status").read_text())
    assert status["CapEff"] == own["CapEff"]
    assert parse_status((out / "start_container.status").read_text())["CapEff"] != own["CapEff"]


def test_what_a_create_container_hook_mounts_the_container_has(out: Path) -> None:
    script = "mount -t tmpfs none mnt && echo hello > mnt/file"
    config = Config(mounts=[Mount.tmpfs("/mnt")], hooks=Hooks(create_container=[sh(script)]))
    assert container.run(["cat", "/mnt/file"], config=config).stdout == b"hello\n"


# Bad hooks ----------------------------------------------------------------------------------------


def failing(kind: str, hook: Hook, log: Path) -> Hooks:
    """That hook, one of its kind after it, and one of the end."""
    later = sh(f"echo later >> {log}/log")
    last = sh(f"echo last >> {log}/log")
    kinds = {kind: [hook, later], "poststop": [last]}
    if kind in INNER:
        kinds[kind] = [hook, sh("echo later > /out/log 2>/dev/null")]
    return Hooks(**kinds)


@pytest.mark.parametrize("kind", [*BEFORE, "poststart"])
def test_a_hook_that_fails_undoes_the_container_and_says_why(out: Path, kind: str) -> None:
    config = with_out(out, hooks=failing(kind, sh("echo why; echo because >&2; exit 3"), out))
    box = Container(config)
    with pytest.raises(HookError) as caught:
        box.run(Process(["sleep", "1000"]))
    error = caught.value
    assert (error.hook_type, error.hook, error.returncode) == (as_field(kind), "/bin/sh", 3)
    assert (error.output, error.timed_out) == (b"why\nbecause\n", False)
    assert str(error) == (f"{as_field(kind)} hook '/bin/sh' ended with status 3: why\\nbecause")
    assert (box.pid, box.state.state) == (None, State.STOPPED)
    assert (out / "log").read_text() == "last\n"
    box.destroy()
    assert (out / "log").read_text() == "last\n"
    with pytest.raises(HookError):
        container.run(["true"], config=config)


@pytest.mark.parametrize("kind", ORDER)
def test_a_hook_that_takes_too_long_is_killed_with_its_daemons(
    out: Path, kind: str, marker: str
) -> None:
    script = f"setsid sleep {marker} & (sleep {marker} &) ; echo begun; sleep {marker}"
    config = with_out(out, hooks=Hooks(**{kind: [sh(script, timeout=0.3)]}))
    with pytest.raises((HookError, CleanupError)) as caught:
        container.run(["true"], config=config)
    error: Any = caught.value
    if isinstance(error, CleanupError):
        (error,) = error.exceptions
    assert (error.timed_out, error.output, error.returncode) == (True, b"begun\n", None)
    assert "took too long" in str(error)


BAD_PROGRAMS: dict[str, Callable[[Path], object]] = {
    "No such file or directory": lambda path: None,
    "Permission denied": lambda path: path.write_text("#!/bin/sh\n"),
    "Exec format error": lambda path: path.write_bytes(b"\x7fELF"),
}


@pytest.mark.parametrize("reason", BAD_PROGRAMS)
@pytest.mark.parametrize("kind", [*BEFORE, "poststart"])
def test_a_hook_that_cannot_be_run_is_named_with_the_reason(
    out: Path, kind: str, reason: str
) -> None:
    BAD_PROGRAMS[reason](out / "hook")
    if "format" in reason:
        (out / "hook").chmod(0o755)
    path = "/out/hook" if kind == "start_container" else str(out / "hook")
    config = with_out(out, hooks=Hooks(**{kind: [Hook(path)]}))
    with pytest.raises(HookError) as caught:
        container.run(["true"], config=config)
    assert (caught.value.hook, caught.value.returncode) == (path, None)
    assert str(caught.value).endswith(f"cannot be run: {reason}")


@pytest.mark.parametrize("kind", BEFORE)
def test_of_a_hook_that_floods_the_last_64_kib_are_kept(kind: str) -> None:
    script = "head -c 3000000 /dev/zero; echo the end; exit 1"
    with pytest.raises(HookError) as caught:
        container.run(["true"], config=Config(hooks=Hooks(**{kind: [sh(script)]})))
    assert len(caught.value.output) == 1 << 16
    assert caught.value.output.endswith(b"the end\n")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("kind", ORDER)
def test_a_hook_may_close_its_streams_be_a_link_and_leave_a_daemon(
    out: Path, kind: str, marker: str
) -> None:
    (out / "link").symlink_to("/bin/sh")
    path = "/out/link" if kind == "start_container" else str(out / "link")
    hook = Hook(path, ["sh", "-c", f"setsid sleep {marker} & exec 0<&- 1>&- 2>&-"], timeout=20)
    config = with_out(out, hooks=Hooks(**{kind: [hook]}))
    assert container.run(["true"], config=config).returncode == 0
    if kind in INNER:
        return  # it was in there, and is gone: marker
    # Whoever starts a daemon in the caller's namespaces, and says that all is well, keeps it.
    assert wait_until(lambda: sleepers(marker))
    os.kill(sleepers(marker)[0], 9)


@pytest.mark.parametrize("kind", ["create_runtime", *INNER])
def test_a_hook_that_is_killed_is_named_with_the_signal(kind: str) -> None:
    with pytest.raises(HookError, match="was killed by SIGTERM") as caught:
        container.run(["true"], config=Config(hooks=Hooks(**{kind: [sh("kill $$")]})))
    assert caught.value.returncode == -15


def test_the_timeout_of_a_run_counts_for_its_hooks(marker: str) -> None:
    for kind in BEFORE:
        config = Config(hooks=Hooks(**{kind: [sh(f"sleep {marker}")]}))
        with pytest.raises(ContainerTimeoutError, match=as_field(kind)):
            container.run(["true"], config=config, timeout=0.3)


# Functions ----------------------------------------------------------------------------------------


def test_functions_take_the_state_in_their_turn() -> None:
    states: list[ContainerState] = []
    hooks = Hooks(**{kind: [states.append] for kind in OUTER})  # type: ignore[arg-type]
    result = container.run(["true"], config=Config(hooks=hooks))
    assert result.returncode == 0
    assert [state.state.value for state in states] == [
        *("creating", "creating", "running", "stopped")
    ]
    assert states[0].pid == states[1].pid == states[2].pid is not None
    assert (states[3].pid, states[3].exit_code) == (None, 0)


def test_a_function_that_raises_undoes_the_container() -> None:
    def refuse(state: ContainerState) -> None:
        raise KeyError("no")

    ended: list[ContainerState] = []
    hooks = Hooks(prestart=[refuse], create_runtime=[ended.append], poststop=[ended.append])
    with pytest.raises(HookError, match="refuse raised KeyError: 'no'") as caught:
        container.run(["true"], config=Config(hooks=hooks))
    assert isinstance(caught.value.__cause__, KeyError)
    assert [state.state for state in ended] == [State.STOPPED]


def test_a_function_can_use_what_there_is_of_the_container() -> None:
    def look(state: ContainerState) -> None:
        os.stat(f"/proc/{state.pid}/ns/net")
        found.append(os.readlink(f"/proc/{state.pid}/ns/pid"))

    found: list[str] = []
    config = Config(hooks=Hooks(create_runtime=[look]))
    shown = container.run(["readlink", "/proc/self/ns/pid"], config=config, text=True)
    assert shown.stdout.strip() == found[0]


# The end ------------------------------------------------------------------------------------------


def test_what_fails_at_the_end_is_gathered() -> None:
    ended: list[str] = []
    hooks = Hooks(poststop=[sh("exit 1"), Hook("/no/such"), lambda state: ended.append(state.id)])
    box = Container(Config(hooks=hooks))
    box.run(Process(["sleep", "1000"]))
    with pytest.raises(CleanupError) as caught:
        box.destroy()
    assert [type(error) for error in caught.value.exceptions] == [HookError, HookError]
    assert ended == [box.id]
    assert box.pid is None
    box.destroy()
    assert ended == [box.id]


def test_the_hooks_for_the_end_run_for_what_was_never_started() -> None:
    ended: list[State] = []
    failed = sh("exit 1")
    config = Config(hooks=Hooks(poststop=[lambda state: ended.append(state.state), failed]))
    with pytest.raises(LaunchError) as caught:
        Container(config).run(Process(["no-such-program"]))
    assert caught.value.step == "exec"
    assert any("poststop hook" in note for note in caught.value.__notes__)
    with pytest.raises(LaunchError):
        container.run(["true"], config=config, root="/no/such/root")
    assert ended == [State.STOPPED] * 2


def test_the_hooks_for_the_end_of_a_popen_run_once_its_end_is_seen() -> None:
    ended: list[int | None] = []
    config = Config(hooks=Hooks(poststop=[lambda state: ended.append(state.exit_code)]))
    process = container.popen(["cat"], config=config, stdin=PIPE)
    assert ended == []
    assert process.communicate(b"x") == (b"x", b"")
    assert ended == [0]
    process = container.popen(["sh", "-c", "exit 3"], config=config)
    assert (process.wait(), ended) == (3, [0, 3])
    process = container.popen(["sleep", "1000"], config=config)
    with pytest.raises(ContainerTimeoutError):
        process.wait(timeout=0.1)
    assert ended[2:] == [-9]


# The caller ---------------------------------------------------------------------------------------


def test_hooks_are_no_children_of_the_caller() -> None:
    answers = caller(
        """
        seen = []
        signal.signal(signal.SIGCHLD, lambda *args: seen.append(args))
        def look(state):
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                tell("none")
        hooks = Hooks(prestart=[Hook("/bin/true"), look], create_container=[Hook("/bin/true")])
        run(["true"], config=Config(hooks=hooks))
        tell(seen)
        """
    )
    assert answers == ["none", []]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["create_runtime", *INNER])
def test_hooks_end_with_their_caller(kind: str, marker: str) -> None:
    source = f"""
        hook = Hook("/bin/sleep", ["sleep", "{marker}"])
        run(["true"], config=Config(hooks=Hooks({kind}=[hook])))
    """
    with running_caller(source) as process:
        assert wait_until(lambda: sleepers(marker))
        with watched(sleepers(marker)) as survivors:
            process.kill()
            process.wait()
            assert survivors(5) == []


@pytest.mark.needs("root")
def test_a_caller_that_has_given_up_rights_cannot_run_a_hook_with_them() -> None:
    (text,) = caller(
        f"""
        hook = Hook("/bin/true")
        hooks = Hooks(start_container=[hook])
        box = Container(Config(hooks=hooks, namespaces=Namespaces(user=False)))
        box.create(Process(["true"]))
        os.seteuid({ORDINARY_ID})
        try:
            box.start()
        except HookError as error:
            tell(str(error))
        """
    )
    assert text.endswith("cannot be run (step rights): Operation not permitted")


def test_an_interrupt_while_a_hook_runs_undoes_everything(marker: str) -> None:
    source = f"""
        hook = Hook("/bin/sleep", ["sleep", "{marker}"])
        ended = []
        hooks = Hooks(create_container=[hook], poststop=[lambda state: ended.append(state.id)])
        try:
            run(["true"], config=Config(hooks=hooks))
        except KeyboardInterrupt:
            tell(len(ended))
        tell(descendants_of(launcher_pid()))
    """
    with running_caller(source) as process:
        assert wait_until(lambda: sleepers(marker))
        process.send_signal(2)
        assert told(process) == 1
        assert told(process) == []


# By hand, and without threads ---------------------------------------------------------------------


def test_run_hooks_runs_those_of_a_kind_where_the_caller_is(out: Path) -> None:
    with Container() as box:
        box.create(Process(["true"]))
        state = box.state
    container.run_hooks(tellers(out), HookType.PRESTART, state)
    assert (out / "order").read_text() == "prestart\n"
    told_of = json.loads((out / "prestart.state").read_text())
    assert told_of == state.to_oci()
    with pytest.raises(UnsupportedError) as caught:
        container.run_hooks(tellers(out), HookType.CREATE_CONTAINER, state)
    assert caught.value.field == "hook_type"
    with pytest.raises(HookError):
        container.run_hooks(Hooks(poststart=[sh("exit 1")]), HookType.POSTSTART, state)
    with pytest.raises(CleanupError) as gathered:
        container.run_hooks(Hooks(poststop=[sh("exit 1")] * 2), HookType.POSTSTOP, state)
    assert len(gathered.value.exceptions) == 2


@pytest.mark.long
def test_asyncio_runs_them_beside_the_loop(out: Path) -> None:
    ended: list[State] = []

    async def main() -> tuple[bytes, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        hooks = Hooks(
            prestart=[sh("sleep 0.3")],
            create_container=[sh("exit 0")],
            start_container=[sh("exit 0")],
            poststart=[lambda state: ended.append(state.state)],
            poststop=[lambda state: ended.append(state.state)],
        )
        result = await aio.run(["cat"], config=Config(hooks=hooks), input=b"x")
        process = await aio.popen(["true"], config=Config(hooks=hooks))
        await process.wait()
        async with aio.Container(Config(hooks=hooks)) as box:
            await box.create(Process(["true"]))
            await box.start()
        ticking.cancel()
        return result.stdout, ticks

    output, ticks = asyncio.run(main())
    assert output == b"x"
    assert ticks > 10
    assert ended == [State.RUNNING, State.STOPPED] * 3


@pytest.mark.long
@pytest.mark.parametrize("kind", [*BEFORE, "poststart"])
def test_asyncio_undoes_what_is_cancelled_or_fails_in_a_hook(kind: str, marker: str) -> None:
    ended: list[State] = []

    def config(script: str) -> Config:
        kinds: dict[str, Any] = {kind: [sh(script)], "poststop": [ended_with]}
        return Config(hooks=Hooks(**kinds))

    def ended_with(state: ContainerState) -> None:
        ended.append(state.state)

    async def main() -> None:
        with pytest.raises(HookError):
            await aio.run(["true"], config=config("exit 1"))
        task = asyncio.create_task(aio.run(["true"], config=config(f"sleep {marker}")))
        while not sleepers(marker):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sleepers(marker) == []

    asyncio.run(main())
    assert ended == [State.STOPPED] * 2
