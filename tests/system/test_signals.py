# SPDX-License-Identifier: Apache-2.0
"""Signals to containers: stopping them, also when they do not want to, and passing signals on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest
from system.helpers import PATIENCE, caller, processes_in, wait_until

from container import (
    PIPE,
    ConfigError,
    Container,
    Process,
    SignalConfig,
    SignalForwarder,
    StateError,
)

pytestmark = pytest.mark.needs("userns")

TELLS = 'for s in TERM INT HUP USR1 USR2; do trap "echo $s" $s; done; echo up;'
TELLER = ["sh", "-c", TELLS + " while read x; do :; done; while :; do sleep 0.01; done"]


@pytest.fixture
def teller() -> Iterator[Container]:
    """A container that tells of every signal."""
    with Container() as box:
        box.run(Process(TELLER, stdout=PIPE, stdin=None))
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        yield box


def line(box: Container) -> bytes:
    assert box.stdout is not None
    return box.stdout.readline()


# Stopping -----------------------------------------------------------------------------------------

STUBBORN = {
    "ignores TERM": "trap '' TERM; echo up; while :; do sleep 0.01; done",
    "has no handler": "echo up; exec sleep 1000",
    "has a daemon": "(setsid sleep 1000 &); trap '' TERM; echo up; while :; do sleep 0.01; done",
}


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("kind", STUBBORN)
def test_stop_kills_what_does_not_end_in_time(kind: str, stopped: bool) -> None:
    with Container() as box:
        box.run(Process(["sh", "-c", STUBBORN[kind]], stdout=PIPE))
        assert line(box) == b"up\n"
        namespace = os.readlink(f"/proc/{box.pid}/ns/pid")
        if stopped:
            box.signal(signal.SIGSTOP)
        assert box.stop(SignalConfig(stop_timeout=0.05)) == -9
        assert processes_in(namespace) == []


def test_a_stopped_program_ends_by_itself_when_it_is_told_to() -> None:
    with Container() as box:
        script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"
        box.run(Process(["sh", "-c", script], stdout=PIPE))
        assert line(box) == b"up\n"
        box.signal(signal.SIGSTOP)
        assert wait_until(lambda: state_of(box.pid) == "T")
        assert box.stop(SignalConfig(stop_timeout=PATIENCE)) == 7


def state_of(pid: int | None) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_stopped_command_in_a_container_ends_with_it() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        process = box.exec(["sleep", "1000"])
        process.send_signal(signal.SIGSTOP)
        assert box.stop(SignalConfig(stop_timeout=0)) == -9
        assert process.wait(PATIENCE) == -9
        with process:
            pass


# Passing on ---------------------------------------------------------------------------------------


def test_signals_of_this_process_reach_the_container(teller: Container) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalForwarder(teller):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            assert line(teller) == number.name.removeprefix("SIG").encode() + b"\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_forwarder_is_entered_off_the_main_thread_while_that_waits_in_c() -> None:
    told = caller(
        f"""
        box = Container()
        box.run(Process({TELLER!r}, stdout=PIPE))
        box.stdout.readline()
        def forward():
            with SignalForwarder(box, [signal.SIGTERM]):
                os.kill(os.getpid(), signal.SIGTERM)
                tell(box.stdout.readline().decode())
        thread = threading.Thread(target=forward)
        thread.start()
        # Without the interpreter's lock, and without a look at signals: in C for good.
        ctypes.PyDLL(None)
        libc.pthread_join(ctypes.c_ulong(thread.ident), None)
        thread.join()
        box.destroy()
        """
    )
    assert told == ["TERM\n"]


def test_after_the_block_a_signal_does_what_it_did_before() -> None:
    told = caller(
        """
        got = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
        box = Container()
        box.run(Process(["sleep", "1000"]))
        with SignalForwarder(box, [signal.SIGUSR1]) as outer:
            with SignalForwarder(box, [signal.SIGUSR1]):
                os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        tell(got)
        os.kill(os.getpid(), signal.SIGUSR1)
        tell(got)
        with SignalForwarder(box, [signal.SIGUSR2]):
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGUSR2)
        tell(threading.active_count())
        try:
            with SignalForwarder(box):
                raise ValueError
        except ValueError:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except KeyboardInterrupt:
                tell("interrupted")
        box.destroy()
        """
    )
    # A handler of Python's runs for the signal that C had got only when the block is over.
    assert told == [[], [1], 1, "interrupted"]


def test_a_fork_of_the_caller_passes_nothing_on() -> None:
    told = caller(
        """
        box = Container()
        box.run(Process(["sleep", "1000"]))
        with SignalForwarder(box, [signal.SIGTERM]):
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
                os._exit(0)
            tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        box.destroy()
        """
    )
    assert told == [-signal.SIGTERM]


def test_a_pid_and_a_command_may_be_targets(teller: Container) -> None:
    assert teller.pid is not None
    forwarder = SignalForwarder(teller.pid, [signal.SIGUSR1])
    forwarder.forward_signal(signal.SIGUSR2)
    assert line(teller) == b"USR2\n"
    with forwarder:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert line(teller) == b"USR1\n"
    process = teller.exec(["sleep", "1000"])
    with SignalForwarder(process, [signal.SIGTERM]):
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.wait(PATIENCE) == -15
        os.kill(os.getpid(), signal.SIGTERM)  # it has ended: nothing
    with process:
        pass
    teller.destroy()
    with pytest.raises(StateError):
        forwarder.forward_signal(signal.SIGUSR1)


def test_what_cannot_be_passed_on_is_refused() -> None:
    box = Container()
    for wrong in ([9], [signal.SIGSTOP], [0], [99], 15):
        with pytest.raises(ConfigError) as caught:
            SignalForwarder(box, wrong)  # type: ignore[arg-type]
        assert caught.value.field.startswith("signals")
    for target in ("1", None, True, 0, -5):
        with pytest.raises(ConfigError) as caught:
            SignalForwarder(target)  # type: ignore[arg-type]
        assert caught.value.field == "target"
    with subprocess.Popen(["true"]) as process:
        pass
    with pytest.raises(StateError):
        SignalForwarder(process.pid)
    with pytest.raises(ConfigError):
        SignalForwarder(os.getpid()).forward_signal(0)


def test_a_signal_that_comes_in_a_hundred_threads_at_once_is_passed_on(teller: Container) -> None:
    with SignalForwarder(teller, [signal.SIGUSR1]):
        threads = [
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1)) for _ in range(100)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert line(teller) == b"USR1\n"
