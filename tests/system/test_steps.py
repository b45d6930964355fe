# SPDX-License-Identifier: Apache-2.0
"""Every step of a start, made to fail: the error has its name, and nothing is left."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from system.helpers import caller, watched

import container
from container import (
    PIPE,
    Capabilities,
    Config,
    Container,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    Rlimit,
    State,
    _launcher,
)

pytestmark = pytest.mark.needs("userns")

# With everything that a step can have to do: copies, a loopback, locks, limits, ambient ones.
BUSY = Config(
    hostname="busy",
    mounts=[Mount.tmpfs("/data"), Mount.bind("/usr/share", "/data/share", read_only=True)],
    capabilities=Capabilities.all(),
)
BUSY_PROCESS = Process(
    ["cat"], cwd="/data", env={"A": "b"}, rlimits=[Rlimit("NOFILE", 64, 64)], stdin=PIPE
)

EXEC_ONLY = ("target", "join", "pid-namespace")
EVERY_STEP = {name: number for number, name in sorted(_launcher.STEPS.items())}
STEPS = {name: number for name, number in EVERY_STEP.items() if name not in EXEC_ONLY}
BEFORE_THE_GATE = [name for name in STEPS if STEPS[name] <= STEPS["gate"]]
AFTER_THE_GATE = [name for name in STEPS if STEPS[name] > STEPS["gate"]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, step: str) -> Iterator[None]:
    """The step fails with EIO, in the very code that else does it."""
    monkeypatch.setattr(_launcher, "fail_step", STEPS[step])
    yield
    monkeypatch.undo()
    # What went wrong once does not go wrong again.
    assert container.run(["true"]).returncode == 0


def check(error: LaunchError, step: str) -> None:
    assert (error.step, error.errno) == (step, errno.EIO)
    assert str(error).startswith(f"{step}: ")
    assert len(error.detail) > 10


def test_the_steps_are_those_of_the_contract_in_their_order() -> None:
    assert list(EVERY_STEP.values()) == list(range(1, len(EVERY_STEP) + 1))
    order = [
        *("rights", "request", "target", "lease", "cgroup", "clone", "id-maps", "oom-score"),
        *("sources", "scheduling", "sync", "join", "pid-namespace", "time", "setup-ids"),
        *(
            "session",
            "network",
            "handover",
            "mount-namespace",
            "hostname",
            "filesystem",
            "terminal",
            "create-hooks",
            "pivot",
        ),
        *(
            "lock-mounts",
            "gate",
            "start-hooks",
            "rlimits",
            "seccomp-early",
            "bounding",
            "ids",
            "capabilities",
        ),
        *("no-new-privs", "cwd", "init", "fds", "landlock", "seccomp", "exec"),
    ]
    assert list(EVERY_STEP) == order


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("config", [Config(), BUSY], ids=["default", "busy"])
@pytest.mark.usefixtures("failing")
def test_run_names_the_step_that_fails(step: str, config: Config) -> None:
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=config)
    check(caught.value, step)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.usefixtures("failing")
def test_popen_and_container_run_name_the_step_that_fails(step: str) -> None:
    with pytest.raises(LaunchError) as caught:
        container.popen(["cat"], stdin=PIPE)
    check(caught.value, step)
    with Container(BUSY) as box:
        with pytest.raises(LaunchError) as caught:
            box.run(BUSY_PROCESS)
        check(caught.value, step)


@pytest.mark.parametrize("step", BEFORE_THE_GATE)
@pytest.mark.usefixtures("failing")
def test_create_names_a_step_up_to_the_gate(step: str) -> None:
    with Container(BUSY) as box:
        with pytest.raises(LaunchError) as caught:
            box.create(BUSY_PROCESS)
        check(caught.value, step)
        assert box.state.state == State.CREATING


@pytest.mark.parametrize("step", AFTER_THE_GATE)
@pytest.mark.usefixtures("failing")
def test_start_names_a_step_after_the_gate(step: str) -> None:
    with Container(BUSY) as box:
        box.create(BUSY_PROCESS)
        assert box.pid is not None
        with watched([box.pid]) as survivors:
            with pytest.raises(LaunchError) as caught:
                box.start()
            assert survivors(0) == []
        check(caught.value, step)
        assert box.state.state == State.STOPPED


@pytest.mark.needs("root")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.usefixtures("failing")
def test_a_start_without_a_user_namespace_names_the_step_that_fails(step: str) -> None:
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=Config(namespaces=Namespaces(user=False)))
    check(caught.value, step)


EXEC_STEPS = [
    *("rights", "request", "target", "clone", "sync", "oom-score", "scheduling", "join"),
    *(
        "pid-namespace",
        "setup-ids",
        "session",
        "terminal",
        "pivot",
        "rlimits",
        "seccomp-early",
        "bounding",
        "ids",
        "capabilities",
    ),
    *("no-new-privs", "cwd", "fds", "landlock", "seccomp", "exec"),
]


def check_exec(monkeypatch: pytest.MonkeyPatch, box: Container, step: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_launcher, "fail_step", EVERY_STEP[step])
        with pytest.raises(LaunchError) as caught:
            box.exec(["true"])
    check(caught.value, step)
    assert box.exec(["true"]).wait() == 0
    assert box.state.state == State.RUNNING


@pytest.mark.parametrize("config", [Config(), BUSY], ids=["default", "busy"])
def test_exec_names_the_step_that_fails(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    with Container(config) as box:
        box.run(Process(["sleep", "1000"]))
        for step in EXEC_STEPS:
            check_exec(monkeypatch, box, step)


@pytest.mark.needs("root")
def test_an_exec_without_a_user_namespace_names_the_step_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Container(Config(namespaces=Namespaces(user=False))) as box:
        box.run(Process(["sleep", "1000"]))
        for step in EXEC_STEPS:
            check_exec(monkeypatch, box, step)


LEASES_THAT_FAIL = {
    "a lock file that is a directory": ("/run", "lease", errno.EISDIR),
    "a lock file that is a link": ("/dev/stdin", "lease", errno.ELOOP),
    "a lock file in no directory": ("/no/such/file", "lease", errno.ENOENT),
}


@pytest.mark.needs("root", "idmap")
@pytest.mark.parametrize("kind", LEASES_THAT_FAIL)
def test_a_lease_that_cannot_be_had_is_named_with_its_file(kind: str) -> None:
    # In a caller of its own: a launcher that has a lease keeps its lock file open.
    path, step, number = LEASES_THAT_FAIL[kind]
    told_of = caller(
        f"""
        from container import _ids
        right, _ids.lock_file = _ids.lock_file, lambda: {path!r}
        for start in (run, popen, lambda args: Container().run(Process(args))):
            try:
                start(["true"])
            except LaunchError as error:
                tell([error.step, error.errno, error.filename])
        tell(descendants_of(launcher_pid()))
        _ids.lock_file = right
        tell(run(["true"]).returncode)
        """
    )
    assert told_of[:3] == [[step, number, path]] * 3
    assert told_of[4] == 0


@pytest.mark.needs("root", "idmap")
def test_a_directory_for_leases_that_others_could_write_is_refused() -> None:
    told_of = caller(
        """
        import os
        real = os.lstat
        class Open:
            def __init__(self, status):
                self.st_mode, self.st_uid = status.st_mode | 0o002, status.st_uid
        os.lstat = lambda path: Open(real(path)) if path == "/run/container" else real(path)
        try:
            run(["true"])
        except LaunchError as error:
            tell([error.step, error.errno, error.filename])
        """
    )
    assert told_of == [["lease", errno.EPERM, "/run/container"]]


def test_when_every_range_is_leased_the_start_says_so() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root leases ranges")
    told_of = caller(
        """
        from container import _ids
        slots = _ids.available_slots()
        _ids._slots_in = lambda namespace: slots[:3]
        boxes = [Container() for _ in range(4)]
        for box in boxes[:3]:
            box.run(Process(["sleep", "1000"]))
        try:
            boxes[3].run(Process(["true"]))
        except LaunchError as error:
            tell([error.step, error.errno])
        boxes[0].destroy()
        boxes[3].run(Process(["true"]))
        tell(boxes[3].wait())
        for box in boxes:
            box.destroy()
        """
    )
    assert told_of == [["lease", errno.EAGAIN], 0]
