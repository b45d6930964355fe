# SPDX-License-Identifier: Apache-2.0
"""Detached containers whose caller or launcher is killed at any of the steps of their making."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from system.helpers import caller

from container import StateManager

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

# What is interrupted: a function of a start, the how manieth call of it, before it or after it.
STEPS = [
    ("Launcher.__init__", 1, "after"),
    ("Launcher.claim", 1, "before"),
    ("Launcher.claim", 1, "after"),
    ("_Maker._enter_scope", 1, "before"),
    ("write_state", 1, "before"),
    ("write_state", 1, "after"),
    ("open_process_stdio", 1, "after"),
    ("launch_plan", 1, "before"),
    ("launch_plan", 1, "after"),
    ("write_state", 2, "before"),
    ("write_state", 2, "after"),
    ("listen_in", 1, "after"),
    ("make_ending", 1, "after"),
    ("seal_manual", 1, "after"),
    ("Launcher.detach", 1, "before"),
    ("Launcher.detach", 1, "after"),
    ("Child.start", 1, "before"),
    ("Child.start", 1, "after"),
    ("start_child", 1, "after"),
    ("find_detached", 1, "before"),
    ("find_detached", 1, "after"),
    ("Launcher.release", 1, "after"),
]

PROGRAM = """
    from container import ContainerError, Process, StateManager
    from container import _detached, _launcher

    launchers = []

    def kill_launcher_of_it():
        pidfd = os.pidfd_open(launchers[-1])
        signal.pidfd_send_signal(pidfd, 9)
        select.select([pidfd], [], [])

    def interrupt(step, victim):
        path, number, when = step
        owner, _, name = path.rpartition(".")
        place = getattr(_detached, owner) if owner else _detached
        original, calls = getattr(place, name), []

        def wrapped(*args, **kwargs):
            calls.append(1)
            mine = len(calls) == number
            if mine and when == "before":
                strike()
            result = original(*args, **kwargs)
            if mine and when == "after":
                strike()
            return result

        def strike():
            if victim == "caller":
                os.kill(os.getpid(), 9)
            if launchers:
                kill_launcher_of_it()

        setattr(place, name, wrapped)

    original_spawn = _launcher.Launcher._spawn
    def spawn(self, theirs):
        launchers.append(original_spawn(self, theirs))
        return launchers[-1]
    _launcher.Launcher._spawn = spawn

    def attempt(id, step, victim):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                interrupt(step, victim)
                container.Container(id=id).run(Process(["sleep", "1000"]), detach=True)
                status = 0
            except (ContainerError, OSError):
                status = 2  # told, in words of ours
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def outcome(id):
        # What is left once everybody who was killed is gone.
        try:
            manager = StateManager()
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                entry = manager.load(id)
                if not entry.is_owned or entry.state.pid is not None:
                    break
                time.sleep(0.005)
            # A container at the gate goes with its caller, a moment later.
            while entry.is_owned and time.monotonic() < deadline:
                try:
                    with container.Container.open(id) as box:
                        box.exec(["true"]).wait()
                    return "runs"
                except ContainerError:
                    time.sleep(0.005)
                    entry = manager.load(id)
            return "ended"
        except container.ContainerNotFoundError:
            return "nothing"

    def check_gone(id):
        deadline = time.monotonic() + PATIENCE
        while os.path.exists(f"{StateManager().state_dir}/{id}") and time.monotonic() < deadline:
            container.prune()
            time.sleep(0.005)
        assert not os.path.exists(f"{StateManager().state_dir}/{id}"), id

    for number, step in enumerate(STEPS):
        id = f"{NAME}-{number}"
        status = attempt(id, step, VICTIM)
        left = outcome(id)
        if left == "runs":
            container.Container.open(id).destroy()
        check_gone(id)
        again = container.Container(id=id)
        again.run(Process(["true"]), detach=True)
        assert again.wait(PATIENCE) == 0
        again.destroy()
        tell([status, left])
"""


@pytest.mark.parametrize("victim", ["caller", "launcher"])
def test_whoever_is_killed_nothing_is_left_and_the_id_can_be_used(victim: str) -> None:
    name = f"test-{secrets.token_hex(6)}"
    prelude = f"STEPS, NAME, VICTIM, PATIENCE = {STEPS!r}, {name!r}, {victim!r}, 20\n"
    outcomes = caller(prelude + _dedented(PROGRAM), strict=False, may_complain=True)
    assert len(outcomes) == len(STEPS)
    at = dict(zip(STEPS, outcomes, strict=True))
    runs = [left for _, left in outcomes].count("runs")
    assert runs in ((4, 5) if victim == "caller" else (0,))  # the launcher may be faster
    if victim == "caller":
        assert {status for status, _ in outcomes} == {-9}
        # Until it is let go it is its caller's, and then its own.
        assert at["Child.start", 1, "before"][1] in ("nothing", "ended")
        assert at["start_child", 1, "after"][1] == "runs"
    else:
        assert {status for status, _ in outcomes} <= {0, 2}
        assert at["launch_plan", 1, "before"] == [2, "nothing"]
        assert at["Launcher.detach", 1, "before"] == [2, "nothing"]
    assert not list(Path(StateManager().state_dir).glob(f"{name}*"))


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines())


@pytest.mark.parametrize("restart", ["no", "always"])
def test_many_who_create_destroy_and_list_get_only_expected_errors(restart: str) -> None:
    name = f"test-{secrets.token_hex(6)}"
    source = f"""
        import random
        import warnings
        from container import *

        def work(seed):
            end = time.monotonic() + 2
            own = random.Random(seed)
            while time.monotonic() < end:
                id = f"{name}-{{own.randrange(4)}}"
                try:
                    match own.randrange(3):
                        case 0:
                            Container(id=id).run(
                                Process(["sleep", "1000"]), detach=True, restart={restart!r}
                            )
                        case 1:
                            Container.open(id).destroy()
                        case 2:
                            with warnings.catch_warnings():
                                warnings.simplefilter("ignore")
                                list_containers()
                except StateError:
                    pass

        pids = []
        for seed in range(16):
            pids.append(os.fork())
            if pids[-1] == 0:
                status = 1
                try:
                    work(seed)
                    status = 0
                except BaseException as error:
                    os.write(2, repr(error).encode())
                finally:
                    os._exit(status)
        tell([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
        for state in list_containers():
            if state.id.startswith({name!r}):
                try:
                    Container.open(state.id).destroy()
                except ContainerNotFoundError:
                    pass
    """
    assert caller(source, strict=False) == [[0] * 16]
    assert not list(Path(StateManager().state_dir).glob(f"{name}*"))
