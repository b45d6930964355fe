# SPDX-License-Identifier: Apache-2.0
"""What became of a machine: pure functions from what was seen to a verdict and a sentence."""

import enum
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from vm.protocol import SETUP_FAILED

PANIC = "Kernel panic - not syncing"

PYTEST_STATUS = {
    1: "tests failed",
    2: "pytest was interrupted",
    3: "pytest had an internal error",
    4: "pytest was called wrongly",
    5: "pytest collected no tests",
}


class Verdict(enum.IntEnum):
    """How a run ended; the value is the exit status of the harness."""

    PASSED = 0
    FAILED = 1
    PANIC = 10
    HANG = 11
    LOST = 12
    SETUP = 13


WORDS = {
    Verdict.PASSED: "passed",
    Verdict.FAILED: "FAILED",
    Verdict.PANIC: "KERNEL PANIC",
    Verdict.HANG: "HANG",
    Verdict.LOST: "QEMU LOST",
    Verdict.SETUP: "CANNOT RUN HERE",
}


@dataclass(frozen=True)
class Seen:
    """What the host saw of one machine, from its start to the end of QEMU. Times in seconds."""

    console: str
    release: str | None = None
    status: int | None = None
    report: bytes | None = None
    limit: float | None = None  # the time limit that was passed, if one was
    qemu_status: int | None = None  # None where the harness itself ended QEMU
    garbage: str | None = None
    boot_time: float = 0.0
    whole_time: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The verdict on one kernel, and why."""

    kernel: str
    verdict: Verdict
    why: str

    def line(self) -> str:
        """The closing line of this kernel."""
        return f"test-vm: {self.kernel}: {WORDS[self.verdict]}: {self.why}"


def judge(seen: Seen) -> tuple[Verdict, str]:
    """The verdict and its reason. A status decides; what else was seen explains its absence."""
    if seen.status is not None:
        verdict = Verdict.PASSED if seen.status == 0 else Verdict.FAILED
        return verdict, _tests(seen, seen.status)
    if (line := _after(SETUP_FAILED, seen.console)) is not None:
        return Verdict.SETUP, f"inside the machine: {line}"
    if (line := _after(PANIC, seen.console)) is not None:
        return Verdict.PANIC, line.lstrip(": ")
    if seen.limit is not None:
        what = "the machine did not boot" if seen.release is None else "the tests did not end"
        return Verdict.HANG, f"{what} within {seen.limit:g} s"
    return Verdict.LOST, seen.garbage or _lost(seen.qemu_status)


def closing_line(outcomes: Sequence[Outcome]) -> str:
    """One line over several kernels."""
    return "test-vm: " + ", ".join(f"{o.kernel} {WORDS[o.verdict]}" for o in outcomes)


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """The gravest verdict decides."""
    return int(max((outcome.verdict for outcome in outcomes), default=Verdict.SETUP))


def counts(report: bytes) -> str:
    """'3 failed, 40 passed, 2 skipped' from a junit XML report; says so where it is none."""
    try:
        suites = list(ElementTree.fromstring(report).iter("testsuite"))
    except ElementTree.ParseError:
        return "the report is not XML"
    total = {
        key: sum(int(suite.get(key, "0")) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    passed = total["tests"] - total["failures"] - total["errors"] - total["skipped"]
    parts = {
        "failed": total["failures"],
        "errors": total["errors"],
        "passed": passed,
        "skipped": total["skipped"],
    }
    return ", ".join(f"{n} {word}" for word, n in parts.items() if n) or "no tests"


def _tests(seen: Seen, status: int) -> str:
    what = counts(seen.report) if seen.report is not None else "no report of tests"
    times = f"boot {seen.boot_time:.1f} s, whole {seen.whole_time:.1f} s"
    if status == 0:
        return f"{what}; {times}"
    if status < 0:
        return f"the tests were killed by {signal.Signals(-status).name}; {what}; {times}"
    name = f" ({PYTEST_STATUS[status]})" if status in PYTEST_STATUS else ""
    return f"{what}; exit status {status}{name}; {times}"


def _after(mark: str, console: str) -> str | None:
    for line in console.splitlines():
        _, found, rest = line.partition(mark)
        if found:
            return rest.strip()
    return None


def _lost(status: int | None) -> str:
    if status is None:
        return "the machine closed its channel without a status"
    if status < 0:
        return f"QEMU was killed by {signal.Signals(-status).name} before the tests ended"
    return f"QEMU ended with status {status} before the tests did"
