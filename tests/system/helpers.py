# SPDX-License-Identifier: Apache-2.0
"""What the system tests share: programs inside containers, callers of their own, waiting."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import container
from container import Config, Result

PROMISED_SECONDS = 1.0
"""Within this, everything of a caller or a launcher that was killed is gone."""

PATIENCE = float(os.environ.get("PYTEST_TIMEOUT", "60")) / 3  # longer on a slow machine
"""What an event may take before a test gives it up: it has happened by then, or never will."""

INTERVAL = 0.005

ORDINARY_ID = 47111


# Programs in containers ---------------------------------------------------------------------------


def shell(script: str, **options: Any) -> str:
    """What a script writes to stdout in a fresh container; it must end with status 0."""
    result = container.run(["sh", "-c", script], text=True, **options)
    assert (result.returncode, result.stderr) == (0, ""), result
    assert isinstance(result.stdout, str)
    return result.stdout


def lines(script: str, **options: Any) -> list[str]:
    return shell(script, **options).splitlines()


def attempt(script: str, **options: Any) -> Result:
    """A script that may fail."""
    return container.run(["sh", "-c", script], text=True, **options)


def python(source: str) -> list[str]:
    """The arguments of this interpreter with this program: a HostRoot has it, site-less."""
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(source)]


def inside(source: str, **options: Any) -> Any:
    """Run Python in a fresh container on a HostRoot; returns what it left in `answer`."""
    program = f"import json, os\n{textwrap.dedent(source)}\nprint(json.dumps(answer))"
    result = container.run(python(program), text=True, **options)
    assert (result.returncode, result.stderr) == (0, ""), result
    return json.loads(result.stdout)


def parse_status(text: str) -> dict[str, str]:
    """/proc/PID/status by name."""
    fields = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in fields}


def status_inside(**options: Any) -> dict[str, str]:
    """/proc/1/status of a program that does nothing else but show it."""
    result = container.run(["cat", "/proc/self/status"], text=True, check=True, **options)
    return parse_status(result.stdout)


def mounts_inside(**options: Any) -> dict[str, set[str]]:
    """Mount point → options of the mount; the later of two on one place."""
    result = container.run(["cat", "/proc/self/mountinfo"], text=True, check=True, **options)
    rows = (line.split(" ") for line in result.stdout.splitlines())
    return {row[4]: set(row[5].split(",")) for row in rows}


# Callers ------------------------------------------------------------------------------------------

_PRELUDE = """
import ctypes, errno, json, os, select, signal, subprocess, sys, threading, time
import container
from container import *
from container import _launcher
from container._launcher import launcher_pid

libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result

def tell(value):
    print(json.dumps(value), flush=True)

def look(script, **options):
    result = container.run(["sh", "-c", script], text=True, **options)
    return [result.returncode, result.stdout, result.stderr]

def mountinfo(config):
    return container.run(["cat", "/proc/self/mountinfo"], text=True, config=config).stdout

def kill_launcher():
    # SIGKILL, and wait for its end
    try:
        pidfd = os.pidfd_open(launcher_pid())
    except OSError as error:  # EINVAL before Linux 6.13: it has ended, and is not reaped yet
        raise ProcessLookupError from error
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)

def is_guard(pid):
    # The launcher's own second process, which lives as long as it does.
    with open(f"/proc/{pid}/comm") as file:
        return file.read() == "container-guard\\n"

def descendants_of(pid):
    _launcher.drop_blanks()
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(word) for word in file.read().split()]
    found = []
    for child in children:
        try:
            if not is_guard(child):
                found += [child, *descendants_of(child)]
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            pass
    return found

"""


def caller_argv(source: str, *, strict: bool = True) -> list[str]:
    """A fresh Python with the package; see _PRELUDE for the names that it has.

    `strict` makes every warning an error, else warnings are shown as they are by default.
    """
    options = ["-W", "error"] if strict else []
    return [sys.executable, *options, "-c", _PRELUDE + textwrap.dedent(source)]


def caller(
    source: str, *, strict: bool = True, may_complain: bool = False, **options: Any
) -> list[Any]:
    """Run such a program to its end; returns what it told.

    It must have nothing to complain of, unless it `may_complain`.
    """
    done = subprocess.run(
        caller_argv(source, strict=strict),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=options.pop("timeout", PATIENCE),
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    assert may_complain or done.stderr == "", done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextlib.contextmanager
def running_caller(source: str, *, strict: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Such a program, with pipes; it is killed at the end unless it has ended by itself."""
    with subprocess.Popen(
        caller_argv(source, strict=strict),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> Any:
    """The next line that a running caller tells."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


# Waiting ------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Look until it is so (True), or the time is up (False)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(INTERVAL)
    return True


def is_readable(fd: int, seconds: float = 0) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


@contextlib.contextmanager
def watched(pids: Iterable[int]) -> Iterator[Callable[[float], list[int]]]:
    """Pidfds of these; what is yielded returns those that still live after so many seconds."""
    with contextlib.ExitStack() as stack:
        pidfds = {}
        for pid in pids:
            pidfds[pid] = fd = os.pidfd_open(pid)
            stack.callback(os.close, fd)

        def survivors(seconds: float) -> list[int]:
            deadline = time.monotonic() + seconds
            return [
                pid
                for pid, fd in pidfds.items()
                if not is_readable(fd, max(0.0, deadline - time.monotonic()))
            ]

        yield survivors


# The machine --------------------------------------------------------------------------------------


def namespaces_of(pid: int | str) -> dict[str, str]:
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


def processes_in(pid_namespace: str) -> list[int]:
    """Who lives in a pid namespace. A zombie does not: an orphan is its new parent's to reap."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            lives = b") Z " not in Path(f"/proc/{name}/stat").read_bytes()
            if os.readlink(f"/proc/{name}/ns/pid") == pid_namespace and lives:
                found.append(int(name))
    return found


def host_mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def tree(top: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything below a directory: mode, owner, group, and content or link text."""
    found = {}
    for directory, directories, names in os.walk(top):
        for name in (*directories, *names):
            path = Path(directory, name)
            status = path.lstat()
            content = b""
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif path.is_file():
                content = path.read_bytes()
            key = str(path.relative_to(top))
            found[key] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def with_namespaces(**kinds: bool) -> Config:
    return Config(namespaces=container.Namespaces(**kinds))
