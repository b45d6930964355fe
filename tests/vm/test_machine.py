# SPDX-License-Identifier: Apache-2.0
"""The whole harness with real machines: `python -m pytest tests/vm -m slow`.

Each way to end has its own exit status and its own closing line, and none leaves a QEMU behind.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vm import kernels

RUN = str(Path(__file__).with_name("run.py"))
LAST_BREATH = 10_000  # milliseconds for a killed QEMU to be gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def harness(*arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run the harness without a terminal; its exit status and output."""
    done = subprocess.run(
        [sys.executable, RUN, *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def processor_time(pid: int) -> float:
    """Seconds of a process, its children and those it has reaped.

    One emulated processor is what a boot waits for: on a host that is not busy it takes as long.
    """
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for each in (pid, *children):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return total / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("systemd", [False, True])
@pytest.mark.parametrize("kernel", kernels.NAMES)
def test_machine_is_complete_and_quick(tmp_path: Path, kernel: str, systemd: bool) -> None:
    arguments = ["--kernel", kernel, *(["--systemd"] if systemd else []), "--selftest"]
    with subprocess.Popen(
        [sys.executable, RUN, *arguments, "--report", str(tmp_path), "--", "-v"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        out = b""
        while b"::test_" not in out:  # pytest -v names a test before it runs it
            piece = os.read(process.stdout.fileno(), 1 << 16)
            assert piece, out.decode()
            out += piece
        until_first_test = processor_time(process.pid)
        out += process.stdout.read()
    assert process.returncode == 0, out.decode()
    cases = list(ElementTree.parse(next(tmp_path.glob("*.xml"))).iter("testcase"))
    # one is skipped, which is about the other init
    assert f"): passed: {len(cases) - 1} passed, 1 skipped; " in out.decode()
    print(
        f"{kernel}{' systemd' * systemd}: first test after {until_first_test:.1f} s of a processor"
    )
    assert until_first_test < 30


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--break", "fail"], 1, "FAILED: 1 failed; exit status 1 (tests failed)"),
        (["--break", "panic"], 10, "KERNEL PANIC: sysrq triggered crash"),
        (["--break", "hang", "--timeout", "5"], 11, "HANG: the tests did not end within 5 s"),
        (["--break", "lost"], 12, "QEMU LOST: QEMU was killed by SIGKILL before the tests ended"),
    ],
)
def test_each_bad_end_has_its_own_status_and_line(
    tmp_path: Path, arguments: list[str], status: int, line: str
) -> None:
    found, out = harness("--kernel", "6.1", *arguments, "--report", str(tmp_path))
    closing = out.splitlines()[-1]
    assert found == status
    assert closing.startswith("test-vm: 6.1 (6.1.")
    assert f"): {line}; " in closing


def test_commands_on_stdin_run_inside(tmp_path: Path) -> None:
    script = "cat /proc/1/comm; touch /usr/inside; echo done"
    status, out = harness("--shell", "--report", str(tmp_path), stdin=script)
    assert status == 0
    assert "\ndone\n" in f"\n{out}"
    assert not Path("/usr/inside").exists()


@contextmanager
def booted(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A harness whose machine has booted and hangs, and a pidfd of its QEMU."""
    process = subprocess.Popen(
        [sys.executable, RUN, "--shell", "--report", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write("echo booted; sleep infinity")
        process.stdin.close()
        assert process.stdout.readline() == "booted\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        pidfd = os.pidfd_open(int(children))
        try:
            yield process, pidfd
        finally:
            os.close(pidfd)
            process.kill()


def gone(pidfd: int) -> bool:
    """Whether the process ends soon."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(LAST_BREATH))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_harness_ends_its_machine_and_says_so(
    tmp_path: Path, number: signal.Signals
) -> None:
    with booted(tmp_path) as (process, qemu):
        process.send_signal(number)
        assert gone(qemu)
        assert process.stdout is not None
        closing = f"test-vm: interrupted by {number.name}; the machine is ended\n"
        assert process.stdout.read() == closing
        assert process.wait() == 128 + number


def test_killed_harness_takes_its_machine_along(tmp_path: Path) -> None:
    with booted(tmp_path) as (process, qemu):
        process.kill()
        assert gone(qemu)


def test_lost_reader_ends_the_machine(tmp_path: Path) -> None:
    """As in `make test-vm | head`."""
    process = subprocess.Popen(
        [sys.executable, RUN, "--shell", "--report", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(b"while :; do echo more || exit; done")
        process.stdin.close()
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 128 + signal.SIGPIPE
