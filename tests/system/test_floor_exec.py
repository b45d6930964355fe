# SPDX-License-Identifier: Apache-2.0
"""The floor of the benchmark of commands (bench/floor_exec.c) ends in the state of `exec`.

As test_floor.py: both run the same probes in one container, and the kernel says what they are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from system.helpers import parse_status
from system.test_floor import SOURCE

from container import DEVNULL, Config, Container, Process
from container._plan import filter_of

pytestmark = pytest.mark.needs("root", "gcc", "busybox", "idmap")

FAILED = 125

# Programs that tell of themselves: a shell would change some of it.
PROBES = {
    "status": ["/bin/cat", "/proc/self/status"],
    "limits": ["/bin/cat", "/proc/self/limits"],
    "id maps": ["/bin/cat", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups"],
    "cgroup": ["/bin/cat", "/proc/self/cgroup"],
    "oom score": ["/bin/cat", "/proc/self/oom_score_adj"],
    "arguments": ["/bin/cat", "/proc/self/cmdline"],
    "environment": ["/bin/cat", "/proc/self/environ"],
    "directory": ["/bin/sh", "-c", "readlink /proc/$$/cwd; readlink /proc/$$/root"],
    "namespaces": ["/bin/sh", "-c", "for n in /proc/$$/ns/*; do readlink $n; done"],
    "fds": ["/bin/sh", "-c", "cd /proc/$$/fd; for f in *; do echo $f $(readlink $f); done"],
    "streams": ["/bin/sh", "-c", "stat -Lc '%F %a %u %g' /proc/$$/fd/0 /proc/$$/fd/1"],
    "session": ["/bin/cut", "-d", " ", "-f", "4-8", "/proc/self/stat"],
    "attributes": ["/bin/attributes"],
}

ATTRIBUTES = r"""
#include <linux/keyctl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    char text[200] = "";
    int reaper = -1, signal = -1;
    /* Refused by the default filter. */
    syscall(SYS_keyctl, KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, text, sizeof text);
    prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    prctl(PR_GET_PDEATHSIG, &signal);
    printf("%s\nsubreaper %d\ndeath signal %d\n", text, reaper, signal);
    printf("securebits %d\n", prctl(PR_GET_SECUREBITS));
    printf("slack %d\n", prctl(PR_GET_TIMERSLACK));
    printf("policy %d\nnice %d\n", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0));
    return 0;
}
"""

# Lines of a status that differ from one process to the next, whoever starts it.
PASSING = re.compile(r"(Vm|Rss|Hugetlb|SigQ|(non)?voluntary_ctxt|Pid|Tgid|NS)")

Runner = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def root(rootdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rootdir` with /bin/attributes."""
    root = tmp_path_factory.mktemp("probe") / "root"
    shutil.copytree(rootdir, root, symlinks=True)
    command = ["gcc", "-static", "-x", "c", "-", "-o", str(root / "bin/attributes")]
    subprocess.run(command, input=ATTRIBUTES, text=True, check=True)
    return root


@contextmanager
def idle(config: Config) -> Iterator[Container]:
    with Container(config) as box:
        box.run(Process(["/bin/sleep", "100000"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL))
        box.exec(["/bin/true"]).wait()  # what stays until the container goes is there
        yield box


@pytest.fixture(scope="module")
def box(root: Path) -> Iterator[Container]:
    """A container of the defaults."""
    with idle(Config(root)) as box:
        yield box


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory, box: Container) -> list[str]:
    """The command, but for what it is to run."""
    directory = tmp_path_factory.mktemp("floor")
    source = str(SOURCE.parent / "floor_exec.c")
    options = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *options, "-o", str(directory / "floor"), source], check=True)
    (directory / "filter").write_bytes(filter_of(box.config).program)
    return [str(directory / "floor"), "--filter", str(directory / "filter"), str(box.pid)]


def run_program(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def run_exec(box: Container, args: list[str]) -> str:
    process = box.exec(args, text=True)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert isinstance(out, str)
    return out


@pytest.fixture(scope="module")
def run_floor(floor: list[str]) -> Runner:
    return lambda args: run_program([*floor, *args])


@pytest.fixture(scope="module")
def run_library(box: Container) -> Runner:
    return lambda args: run_exec(box, args)


def seen(aspect: str, text: str) -> list[str]:
    """What the two must have in common."""
    lines = text.replace("\0", "\n").splitlines()
    if aspect == "status":
        return [line for line in lines if not PASSING.match(line)]
    if aspect == "fds":
        return [re.sub(r"\[\d+\]", "", line) for line in lines]
    if aspect == "session":  # it leads one, its group is its session, and has no terminal
        parent, group, session, terminal, foreground = lines[0].split()
        return [parent, str(int(group) - int(session)), terminal, foreground]
    return lines


@pytest.mark.parametrize("aspect", PROBES)
def test_floor_and_exec_end_in_the_same_state(
    aspect: str, run_floor: Runner, run_library: Runner
) -> None:
    floor = seen(aspect, run_floor(PROBES[aspect]))
    assert floor
    assert floor == seen(aspect, run_library(PROBES[aspect]))


def test_floor_has_a_session_keyring_of_its_own_as_well(floor: list[str], root: Path) -> None:
    with idle(Config(root, seccomp=None)) as box:
        from_floor = run_program([floor[0], str(box.pid), *PROBES["attributes"]])
        assert from_floor == run_exec(box, PROBES["attributes"])
    assert from_floor.startswith("keyring;0;0;3f030000;_ses\n")


def test_floor_has_the_rights_and_the_namespaces_of_the_container(
    run_floor: Runner, box: Container
) -> None:
    status = parse_status(run_floor(PROBES["status"]))
    first = parse_status(Path(f"/proc/{box.pid}/status").read_text())
    for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
        assert status[field] == first[field], field
    assert len(status["NSpid"].split()) == 1  # it is born inside
    namespaces = sorted(Path(f"/proc/{box.pid}/ns").iterdir())
    links = [os.readlink(path) for path in namespaces]
    assert sorted(run_floor(PROBES["namespaces"]).split()) == sorted(links)


def test_floor_ends_with_the_status_of_its_command(floor: list[str]) -> None:
    done = subprocess.run([*floor, "/bin/sh", "-c", "exit 7"], check=False)
    assert done.returncode == 7


def test_floor_names_the_step_that_fails(floor: list[str]) -> None:
    done = subprocess.run([*floor, "/absent"], capture_output=True, text=True, check=False)
    said = "floor_exec: execve: No such file or directory (errno 2)\n"
    assert (done.returncode, done.stderr) == (FAILED, said)
