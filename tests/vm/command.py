# SPDX-License-Identifier: Apache-2.0
"""The command line of tests/vm/run.py, and one run from end to end."""

import argparse
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from vm import SetupError, debian, etc, kernels, machine, terminal
from vm.outcome import Outcome, Seen, Verdict, closing_line, exit_status, judge
from vm.qemu import Limits, Streams, Watch, machine_folder, running

TREE = Path(__file__).resolve().parents[2]
SELFTEST = "tests/vm/selftest.py"
BREAKS = ("fail", "panic", "hang", "lost")
BOOT_LIMIT = 600.0  # a busy host needs more than a minute
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CONSOLE_LINES = 25  # shown of a machine that did not end well

# pytest's options that take the next argument as their value
SHORT_VALUED = ("-k", "-m", "-c", "-o", "-p", "-W", "-r", "-n")
LONG_VALUED = ("--basetemp", "--confcutdir", "--deselect", "--ignore", "--rootdir")
VALUED = frozenset((*SHORT_VALUED, *LONG_VALUED))


class InterruptError(Exception):
    """A signal asks the harness to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Options:
    """The command line."""

    kernels: tuple[str, ...]
    systemd: bool
    shell: bool
    selftest: bool
    breaking: str
    timeout: float
    report: Path
    install: bool
    pytest: tuple[str, ...]


def parse(arguments: Sequence[str], description: str = "") -> Options:
    """The options of a command line; exits with status 2 where it makes no sense."""
    before, pytest = split_arguments(arguments)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kernel", action="append", choices=kernels.NAMES, help="default: 6.1 and 6.12")
    add("--systemd", action="store_true", help="systemd as PID 1, a lingering user session")
    add(
        "--timeout", type=seconds, default=4 * 3600.0, metavar="S", help="for the tests, per kernel"
    )
    add("--report", type=Path, default=TREE / "build/vm", metavar="DIR", help="results go here")
    add("--no-install", action="store_true", help="install nothing on this host")
    what = parser.add_mutually_exclusive_group()
    shell = "a shell inside, or the commands on stdin"
    what.add_argument("--shell", action="store_true", help=shell)
    what.add_argument("--selftest", action="store_true", help="check the machine itself")
    what.add_argument("--break", choices=BREAKS, default="", dest="breaking", help="on purpose")
    found = parser.parse_args(before)
    default = kernels.DEFAULT[:1] if found.shell else kernels.DEFAULT
    return Options(
        kernels=tuple(dict.fromkeys(found.kernel or default)),
        systemd=found.systemd,
        shell=found.shell,
        selftest=found.selftest,
        breaking=found.breaking,
        timeout=found.timeout,
        report=found.report.absolute(),
        install=not found.no_install,
        pytest=tuple(pytest),
    )


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for the harness, and after the first "--" what is for pytest."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def seconds(word: str) -> float:
    """A time limit above zero."""
    value = float(word)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word}: not a time above 0 seconds")
    return value


def tests_to_run(options: Options, tree: Path) -> list[str]:
    """pytest's arguments: what the machine is for, unless the arguments name files of their own."""
    if options.selftest:
        return [SELFTEST, *options.pytest]
    if options.breaking == "fail":
        return ["tests/vm/failing.py", *options.pytest]
    before = ("", *options.pytest[:-1])
    if any(map(partial(names_file, tree), before, options.pytest)):
        return list(options.pytest)
    # Last the machine itself, which under systemd moves the tests into another cgroup.
    return ["tests/system", SELFTEST, *options.pytest]


def names_file(tree: Path, before: str, word: str) -> bool:
    """Whether the argument `word` is a file or directory to test, given the one before it."""
    path = tree / word.partition("::")[0]
    return before not in VALUED and not word.startswith("-") and path.exists()


def check_host(options: Options) -> None:
    """Make sure that this host can run the machine; SetupError where it cannot."""
    if os.uname().machine != "x86_64":
        raise SetupError(f"the machine is x86_64 only so far, this host is {os.uname().machine}")
    machine.check_places([TREE, Path(sys.prefix), Path(sys.base_prefix)])
    tools = debian.HOST_TOOLS | (debian.SYSTEMD_TOOLS if options.systemd else {})
    if packages := debian.missing(tools, debian.search_path()):
        if not options.install:
            raise SetupError(f"missing and not to be installed: {' '.join(packages)}")
        with kernels.cache_locked(kernels.cache_folder(os.environ)):
            # Another run may have done so while this one waited.
            if packages := debian.missing(tools, debian.search_path()):
                debian.install(packages)
        if packages := debian.missing(tools, debian.search_path()):
            raise SetupError(f"installed, but not where they are expected: {' '.join(packages)}")


def run_kernel(name: str, options: Options) -> Outcome:
    """Boot one kernel, run the tests, and say what became of it."""
    try:
        check_host(options)
        kernel = kernels.prepare(name, kernels.cache_folder(os.environ))
        options.report.mkdir(parents=True, exist_ok=True)
        debian.say(f"booting {kernel.release}{' with systemd' if options.systemd else ''}")
        seen, results = boot(kernel, name, options)
    except BrokenPipeError:
        raise
    except (SetupError, OSError) as error:
        return Outcome(name, Verdict.SETUP, str(error))
    verdict, why = judge(seen)
    if options.shell and seen.status is not None:
        why = f"the shell ended with status {seen.status}"
    if verdict not in (Verdict.PASSED, Verdict.FAILED):
        debian.say("the end of the console:")
        print(*seen.console.splitlines()[-CONSOLE_LINES:], sep="\n", file=sys.stderr)
    return Outcome(f"{name} ({kernel.release})", verdict, f"{why}; {results}")


def boot(kernel: kernels.Kernel, name: str, options: Options) -> tuple[Seen, str]:
    """Run the machine to its end; what was seen, and where the results lie."""
    stem = name + ("-systemd" if options.systemd else "")
    console = options.report / f"{stem}.console"
    report = options.report / f"{stem}.xml"
    report.unlink(missing_ok=True)
    console.write_bytes(b"")  # an earlier run's must not speak for this one
    with ExitStack() as stack:
        job = make_job(options)
        content = machine.initramfs(kernel, job, read_accounts())
        folder = stack.enter_context(machine_folder(content, machine.SCRATCH_SIZE))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs:
            command = machine.qemu_command(kernel, folder, console, theirs.fileno())
            qemu = stack.enter_context(running(command, theirs.fileno()))
        limits = Limits(BOOT_LIMIT, None if options.shell else options.timeout)

        def on_boot() -> None:
            # QEMU has the files open; should we be killed, nothing of them is left.
            shutil.rmtree(folder, ignore_errors=True)
            if options.breaking == "lost":
                qemu.kill()

        keyboard = stack.enter_context(terminal.raw()) if job.shell else None
        streams = Streams(write_output, keyboard)
        seen = Watch(qemu, ours, limits, streams).run(on_boot)
    if seen.report is not None:
        report.write_bytes(seen.report)
    results = f"report {report}" if seen.report is not None else f"console log {console}"
    return replace(seen, console=console.read_text(errors="replace")), results


def make_job(options: Options) -> machine.Job:
    """What the machine has to do."""
    if options.shell and terminal.there():
        return machine.Job(TREE, ("bash", "--norc"), options.systemd, shell=terminal.size())
    if options.shell:
        return machine.Job(TREE, ("bash", "-c", terminal.script()), options.systemd)
    command = machine.pytest_command(tests_to_run(options, TREE))
    breaking = "" if options.breaking == "fail" else options.breaking
    return machine.Job(TREE, command, options.systemd, breaking)


def read_accounts() -> etc.Accounts:
    """The host's account files; one that is not there is empty."""
    texts = {}
    for name in ("passwd", "group", "subuid", "subgid"):
        path = Path("/etc", name)
        texts[name] = path.read_text() if path.exists() else ""
    return etc.Accounts(**texts)


def write_output(data: bytes) -> None:
    """Pass on at once what the machine wrote."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def interrupt(number: int, _: FrameType | None) -> None:
    """A signal handler."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # the end is under way, nothing may cut it short
    raise InterruptError(number)


def main(arguments: Sequence[str], description: str) -> int:
    """Run everything; the exit status."""
    options = parse(arguments, description)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    outcomes: list[Outcome] = []
    try:
        for name in options.kernels:
            outcomes.append(run_kernel(name, options))
            print(outcomes[-1].line(), flush=True)
    except InterruptError as error:
        print(f"test-vm: interrupted by {error}; the machine is ended", flush=True)
        return 128 + error.number
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if len(outcomes) > 1:
        print(closing_line(outcomes), flush=True)
    return exit_status(outcomes)
