# SPDX-License-Identifier: Apache-2.0
"""How the end of a machine is seen and judged, with an ordinary program in QEMU's place."""

import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from vm import outcome, protocol
from vm.outcome import Outcome, Seen, Verdict
from vm.qemu import Limits, Streams, Watch, running

TESTS = Path(__file__).resolve().parents[1]


# Verdicts -------------------------------------------------------------------------------------

REPORT = b"""<testsuites><testsuite tests="7" failures="2" errors="1" skipped="1"/></testsuites>"""


@pytest.mark.parametrize(
    ("seen", "verdict", "why"),
    [
        (Seen("", status=0, report=REPORT), Verdict.PASSED, "2 failed, 1 errors, 3 passed, 1 sk"),
        (Seen("", status=1), Verdict.FAILED, "exit status 1 (tests failed)"),
        (Seen("", status=5), Verdict.FAILED, "collected no tests"),
        (Seen("", status=-9), Verdict.FAILED, "killed by SIGKILL"),
        (
            Seen("[1.0] Kernel panic - not syncing: Attempted to kill init!\n", qemu_status=0),
            Verdict.PANIC,
            "Attempted to kill init!",
        ),
        (Seen("", limit=180), Verdict.HANG, "did not boot within 180 s"),
        (Seen("", release="6.1", limit=9), Verdict.HANG, "tests did not end within 9 s"),
        (Seen("", release="6.1", qemu_status=-9), Verdict.LOST, "killed by SIGKILL"),
        (Seen("", qemu_status=1), Verdict.LOST, "QEMU ended with status 1"),
        (Seen("", garbage="the machine sent x"), Verdict.LOST, "the machine sent x"),
        (
            Seen(f"a\n{protocol.SETUP_FAILED}mount /proc\n", qemu_status=0),
            Verdict.SETUP,
            "inside the machine: mount /proc",
        ),
    ],
)
def test_verdict_follows_what_was_seen(seen: Seen, verdict: Verdict, why: str) -> None:
    found, sentence = outcome.judge(seen)
    assert found is verdict
    assert why in sentence


def test_each_verdict_has_its_own_word_and_status() -> None:
    assert len(set(outcome.WORDS.values())) == len(Verdict) == len({int(v) for v in Verdict})


def test_gravest_verdict_is_the_exit_status() -> None:
    outcomes = [
        Outcome("a", Verdict.FAILED, ""),
        Outcome("b", Verdict.HANG, ""),
        Outcome("c", Verdict.PASSED, ""),
    ]
    assert outcome.exit_status(outcomes) == 11
    assert outcome.closing_line(outcomes) == "test-vm: a FAILED, b HANG, c passed"


def test_report_that_is_none_is_said() -> None:
    assert outcome.counts(b"<testsuites>") == "the report is not XML"


# The watch, with a program in QEMU's place ----------------------------------------------------

FAKE = """
import socket, sys, time
sys.path.insert(0, {path!r})
from vm import protocol
channel = socket.socket(fileno={fd})
def say(kind, payload):
    channel.sendall(protocol.frame(kind, payload))
{script}
"""


def watch(script: str, limits: Limits) -> tuple[Seen, bytes, int]:
    """What is seen of a fake QEMU, its output, and how often it was said to have booted."""
    output, boots = bytearray(), list[int]()
    ours, theirs = socket.socketpair()
    with ExitStack() as stack:
        stack.enter_context(ours)
        code = FAKE.format(path=str(TESTS), fd=theirs.fileno(), script=script)
        with theirs:
            qemu = stack.enter_context(running([sys.executable, "-c", code], theirs.fileno()))
        seen = Watch(qemu, ours, limits, Streams(output.extend)).run(lambda: boots.append(0))
    assert not Path(f"/proc/{qemu.pid}").exists()
    return seen, bytes(output), len(boots)


TALK = """
say(protocol.BOOTED, b"6.1.0")
say(protocol.OUTPUT, b"one ")
say(protocol.OUTPUT, b"two")
say(protocol.REPORT, b"<xml/>")
say(protocol.STATUS, b"3")
time.sleep(600)
"""
LONG = Limits(boot=60, tests=60)


def test_watch_ends_with_the_status_and_kills_the_machine() -> None:
    seen, output, boots = watch(TALK, LONG)
    assert (seen.status, seen.release, seen.report) == (3, "6.1.0", b"<xml/>")
    assert (output, boots) == (b"one two", 1)


def test_watch_takes_all_that_a_dead_machine_had_said() -> None:
    seen, output, _ = watch('say(protocol.OUTPUT, b"x" * 100000); sys.exit(7)', LONG)
    assert (seen.status, seen.qemu_status) == (None, 7)
    assert output == b"x" * 100000


def test_watch_ends_a_machine_that_does_not_boot() -> None:
    seen, _, boots = watch("time.sleep(600)", Limits(boot=0.2, tests=60))
    assert (seen.limit, seen.release, boots) == (0.2, None, 0)


def test_watch_ends_tests_that_flood_and_never_end() -> None:
    script = 'say(protocol.BOOTED, b"6")\nwhile True: say(protocol.OUTPUT, b"x" * 1000)'
    started = time.monotonic()
    seen, _, _ = watch(script, Limits(boot=60, tests=0.5))
    assert (seen.limit, seen.release) == (0.5, "6")
    assert time.monotonic() - started < 30


def test_watch_ends_a_machine_that_sends_garbage() -> None:
    seen, _, _ = watch('channel.sendall(b"login: "); time.sleep(600)', LONG)
    assert "not a frame" in str(seen.garbage)


def test_machine_is_dead_when_the_harness_fails() -> None:
    ours, theirs = socket.socketpair()
    pids = []

    def fail() -> None:
        with ours, theirs, running(["sleep", "600"], theirs.fileno()) as qemu:
            pids.append(qemu.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not Path(f"/proc/{pids[0]}").exists()
