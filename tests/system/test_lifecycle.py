# SPDX-License-Identifier: Apache-2.0
"""Container: its states, its ends, and what may be asked of it when."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from system.helpers import PATIENCE, is_readable, processes_in, wait_until, watched

from container import (
    DEVNULL,
    PIPE,
    Config,
    ConfigError,
    Container,
    ContainerTimeoutError,
    LaunchError,
    Process,
    SignalConfig,
    State,
    StateError,
)

pytestmark = pytest.mark.needs("userns")

SLEEP = Process(["sleep", "1000"])
TRUE = Process(["true"])
CAT = Process(["cat"], stdin=PIPE, stdout=PIPE)


def echo(box: Container, word: bytes) -> bytes:
    """Send a line through a container that runs CAT."""
    assert box.stdin is not None
    assert box.stdout is not None
    box.stdin.write(word + b"\n")
    box.stdin.flush()
    return box.stdout.readline().strip()


def name_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.fixture
def box() -> Iterator[Container]:
    with Container() as made:
        yield made


# States -------------------------------------------------------------------------------------------


def test_a_container_is_created_started_and_stopped(box: Container) -> None:
    assert (box.state.state, box.pid, box.pidfd) == (State.CREATING, None, None)
    box.create(SLEEP)
    assert (box.state.state, box.exit_code, box.state.started_at) == (State.CREATED, None, None)
    # Everything is set up, and the program is not there yet.
    assert name_of(box.pid) == "container-launcher"[:15]
    box.start()
    assert box.state.state == State.RUNNING
    assert wait_until(lambda: name_of(box.pid) == "sleep")
    box.signal(signal.SIGKILL)
    assert box.wait(PATIENCE) == -9
    state = box.state
    assert (state.state, state.pid, state.exit_code) == (State.STOPPED, None, -9)
    assert state.started_at is not None
    assert state.stopped_at is not None
    assert state.created_at <= state.started_at <= state.stopped_at
    assert pickle.loads(pickle.dumps(state)) == state


def test_run_creates_and_starts(box: Container) -> None:
    box.run(SLEEP)
    assert box.state.state == State.RUNNING
    assert box.pid is not None
    # It returns once the program runs.
    assert name_of(box.pid) == "sleep"


def test_pid_is_that_of_the_callers_pid_namespace(box: Container) -> None:
    box.run(SLEEP)
    status = Path(f"/proc/{box.pid}/status").read_text()
    assert f"NSpid:\t{box.pid}\t1\n" in status


def test_the_streams_of_a_process_with_pipes_belong_to_the_container(box: Container) -> None:
    box.create(CAT)
    box.start()
    assert echo(box, b"hello") == b"hello"
    assert box.stderr is None
    assert box.stdin is not None
    box.stdin.close()
    assert box.wait(PATIENCE) == 0


def test_the_pidfd_is_readable_once_the_first_process_has_ended(box: Container) -> None:
    box.run(CAT)
    assert box.pidfd is not None
    assert not is_readable(box.pidfd)
    assert box.stdin is not None
    box.stdin.close()
    assert is_readable(box.pidfd, PATIENCE)
    assert not os.get_inheritable(box.pidfd)
    assert box.exit_code == 0 or box.wait(PATIENCE) == 0


@pytest.mark.parametrize("status", [0, 1, 255])
def test_wait_returns_the_status_again_and_again(box: Container, status: int) -> None:
    box.run(Process(["sh", "-c", f"exit {status}"]))
    assert [box.wait(), box.wait(timeout=0), box.exit_code] == [status] * 3


def test_wait_gives_up_at_its_timeout_and_the_container_runs_on(box: Container) -> None:
    box.run(CAT)
    with pytest.raises(ContainerTimeoutError) as caught:
        box.wait(timeout=0.01)
    assert caught.value.result is None
    assert box.state.state == State.RUNNING
    assert echo(box, b"still here") == b"still here"


def test_the_end_of_the_first_process_is_the_end_of_all(box: Container) -> None:
    box.run(
        Process(
            ["sh", "-c", "(setsid sleep 1000 &) ; echo up; read x"], None, stdin=PIPE, stdout=PIPE
        )
    )
    assert box.stdin is not None
    assert box.stdout is not None
    assert box.stdout.readline() == b"up\n"
    namespace = os.readlink(f"/proc/{box.pid}/ns/pid")
    assert len(processes_in(namespace)) == 2
    box.stdin.close()
    box.wait(PATIENCE)
    assert processes_in(namespace) == []


# Ends ---------------------------------------------------------------------------------------------


def handles(action: str) -> Process:
    script = f"trap '{action}' TERM INT; echo up; while :; do sleep 0.01; done"
    return Process(["sh", "-c", script], stdout=PIPE)


def run_until_up(box: Container, process: Process) -> None:
    box.run(process)
    assert box.stdout is not None
    assert box.stdout.readline() == b"up\n"


def test_stop_lets_the_program_end_by_itself(box: Container) -> None:
    run_until_up(box, handles("exit 7"))
    assert box.stop() == 7
    assert box.stop() == 7


def test_stop_sends_the_signal_that_is_asked_for(box: Container) -> None:
    run_until_up(box, handles("exit 8"))
    assert box.stop(SignalConfig(stop_signal=signal.SIGINT)) == 8


def test_stop_kills_a_program_that_does_not_end_in_time(box: Container) -> None:
    run_until_up(box, handles(""))
    assert box.stop(SignalConfig(stop_timeout=0.05)) == -9


def test_stopping_a_created_container_is_its_end(box: Container) -> None:
    box.create(SLEEP)
    pid = box.pid
    assert pid is not None
    with watched([pid]) as survivors:
        assert box.stop() in (None, -9)
        assert survivors(0) == []
    assert box.state.state == State.STOPPED
    with pytest.raises(StateError, match="stopped"):
        box.start()


def test_destroy_kills_every_process_and_may_be_said_twice(box: Container) -> None:
    box.run(Process(["sh", "-c", "(setsid sleep 1000 &) ; echo up; sleep 1000"], stdout=PIPE))
    assert box.stdout is not None
    assert box.stdout.readline() == b"up\n"
    namespace = os.readlink(f"/proc/{box.pid}/ns/pid")
    box.destroy()
    assert processes_in(namespace) == []
    assert (box.state.state, box.pid, box.pidfd, box.exit_code) == (State.STOPPED, None, None, -9)
    assert box.stdout.closed
    box.destroy()


def test_destroying_a_created_container_leaves_nothing(box: Container) -> None:
    box.create(CAT)
    assert box.pid is not None
    with watched([box.pid]) as survivors:
        box.destroy()
        assert survivors(0) == []


def test_destroying_what_never_began_is_nothing(box: Container) -> None:
    box.destroy()
    with pytest.raises(StateError):
        box.run(TRUE)


def test_leaving_the_block_destroys_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), Container() as box:
        box.run(SLEEP)
        namespace = os.readlink(f"/proc/{box.pid}/ns/pid")
        raise ZeroDivisionError
    assert processes_in(namespace) == []


def test_a_container_that_is_forgotten_is_killed_with_a_warning() -> None:
    box = Container()
    box.run(SLEEP)
    assert box.pid is not None
    with watched([box.pid]) as survivors, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del box
        gc.collect()
        assert survivors(PATIENCE) == []
    assert [warning.category for warning in caught] == [ResourceWarning]


def test_a_program_that_cannot_be_run_is_told_by_start(box: Container) -> None:
    box.create(Process(["/no/such/program"]))
    assert box.pid is not None
    with watched([box.pid]) as survivors:
        with pytest.raises(FileNotFoundError) as caught:
            box.start()
        assert survivors(0) == []
    assert isinstance(caught.value, LaunchError)
    assert (caught.value.step, caught.value.filename) == ("exec", "/no/such/program")
    assert box.state.state == State.STOPPED


# Misuse -------------------------------------------------------------------------------------------

BEFORE_CREATE: dict[str, Callable[[Container], object]] = {
    "start": Container.start,
    "wait": Container.wait,
    "stop": Container.stop,
    "signal": lambda box: box.signal(15),
}


@pytest.mark.parametrize("name", BEFORE_CREATE)
def test_nothing_can_be_asked_of_a_container_that_is_not_created(box: Container, name: str) -> None:
    with pytest.raises(StateError, match="has not been created"):
        BEFORE_CREATE[name](box)


def test_a_created_container_cannot_be_waited_for(box: Container) -> None:
    box.create(TRUE)
    with pytest.raises(StateError, match="created, not started"):
        box.wait()


@pytest.mark.parametrize("action", [Container.create, Container.run])
def test_a_container_is_for_one_run(
    box: Container, action: Callable[[Container, Process], None]
) -> None:
    box.run(TRUE)
    box.wait(PATIENCE)
    with pytest.raises(StateError, match="used before"):
        action(box, TRUE)


def test_a_container_is_started_once(box: Container) -> None:
    box.create(SLEEP)
    box.start()
    with pytest.raises(StateError, match="running"):
        box.start()


def test_a_container_that_has_ended_takes_no_signal(box: Container) -> None:
    box.run(TRUE)
    box.wait(PATIENCE)
    with pytest.raises(StateError, match="stopped"):
        box.signal(15)


def test_a_failed_start_can_be_tried_again_with_the_same_container(box: Container) -> None:
    with pytest.raises(FileNotFoundError):
        box.run(Process(["/no/such/program"]))
    box.run(TRUE)
    assert box.wait(PATIENCE) == 0


@pytest.mark.parametrize("number", [0, 65, -1])
def test_a_number_that_is_no_signal_is_refused(box: Container, number: int) -> None:
    box.run(SLEEP)
    with pytest.raises(ConfigError):
        box.signal(number)


def test_what_is_of_the_wrong_type_is_named(box: Container) -> None:
    with pytest.raises(ConfigError, match="config: expected Config, got dict"):
        Container({})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="process: expected Process, got list"):
        box.run(["true"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="id"):
        Container(id="../x")
    with pytest.raises(ConfigError, match="timeout"):
        box.run(TRUE)
        box.wait(timeout=-1)


# Threads ------------------------------------------------------------------------------------------


def test_a_container_outlives_the_thread_that_started_it(box: Container) -> None:
    thread = threading.Thread(target=box.run, args=(CAT,))
    thread.start()
    thread.join()
    tid = thread.native_id
    assert wait_until(lambda: not os.path.exists(f"/proc/self/task/{tid}"))
    assert echo(box, b"still here") == b"still here"
    assert box.state.state == State.RUNNING


def test_many_threads_may_wait_for_one_container(box: Container) -> None:
    box.run(SLEEP)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(box.wait, PATIENCE) for _ in range(8)]
        box.signal(signal.SIGKILL)
        assert [each.result() for each in waiting] == [-9] * 8


def test_destroying_from_another_thread_ends_a_wait(box: Container) -> None:
    box.run(SLEEP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.wait)
        box.destroy()
        assert waiting.result(PATIENCE) == -9


def test_threads_may_do_anything_to_one_container_at_once() -> None:
    actions: list[Callable[[Container], object]] = [
        lambda box: box.state,
        lambda box: box.pid,
        lambda box: box.exit_code,
        lambda box: box.signal(signal.SIGCONT),
        lambda box: box.stop(SignalConfig(stop_timeout=0)),
        lambda box: box.wait(PATIENCE),
        Container.destroy,
        Container.start,
    ]

    def act(box: Container, action: Callable[[Container], object], go: threading.Barrier) -> None:
        go.wait()
        # Another may be first, which start() may take for a kill.
        with contextlib.suppress(StateError, LaunchError):
            action(box)

    order = random.Random(20240506)
    with ThreadPoolExecutor(len(actions)) as pool:
        for turn in range(40):
            with Container(Config()) as box:
                (box.create if turn % 2 else box.run)(Process(["sleep", "1000"], stdout=DEVNULL))
                order.shuffle(actions)
                go = threading.Barrier(len(actions))
                done = [pool.submit(act, box, action, go) for action in actions]
                for each in done:
                    each.result(PATIENCE)
                assert box.state.state == State.STOPPED


def test_threads_may_create_and_destroy_containers_at_once() -> None:
    def live(number: int) -> bytes:
        with Container() as box:
            box.create(CAT)
            if number % 3 == 0:
                return b"%d" % number
            box.start()
            answer = echo(box, b"%d" % number)
            if number % 3 == 1:
                box.stop(SignalConfig(stop_timeout=0))
            return answer

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(live, range(64))) == [b"%d" % number for number in range(64)]
