# SPDX-License-Identifier: Apache-2.0
"""For the tests that start containers: the leak guard, root directories, the ordinary user."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import shutil
import site
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import leaks
import needs
import pytest

import container

FIXTURE_NEEDS = {
    "fresh_root": ("busybox",),
    "rootdir": ("busybox",),
    "as_user": ("user", "user_python"),
}

USER_SECONDS = float(os.environ.get("PYTEST_TIMEOUT", "60")) / 2  # longer on a slow machine


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "new_launcher: the test ends this process's launcher; afterwards there is another one",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, names in FIXTURE_NEEDS.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.needs(*names))


# The leak guard -----------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def start_launcher(machine: needs.Machine) -> Callable[[], None]:
    """Start the launcher, which then stays: what it takes is no leak of the first test's."""

    def start() -> None:
        if machine.missing("userns") is None:
            container.run(["true"], check=True)

    start()
    return start


@pytest.fixture(autouse=True)
def nothing_left(
    request: pytest.FixtureRequest, start_launcher: Callable[[], None]
) -> Iterator[None]:
    """Fail the test that leaves the machine or this process other than it was; see leaks.py."""
    replaced = request.node.get_closest_marker("new_launcher") is not None
    guard = leaks.Guard()
    yield
    if replaced:
        start_launcher()
    left = guard.left(replaced_launcher=replaced)
    if left:
        pytest.fail(leaks.report(left), pytrace=False)


# Root directories ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rootdir() -> Iterator[Path]:
    """A root directory with busybox and nothing else. Shared: see fresh_root for one to change."""
    with open_directory() as directory:
        yield make_root(directory / "root")


@pytest.fixture
def fresh_root() -> Iterator[Path]:
    """A root directory like rootdir, of this test's own down to the bytes of busybox."""
    with open_directory() as directory:
        yield make_root(directory / "root")


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary directory that everybody may enter, as pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="tests-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def make_root(root: Path) -> Path:
    for name in (".", "bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(0o1777 if name == "tmp" else 0o755)
    program, applets = busybox()
    shutil.copyfile(program, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for applet in applets:
        os.symlink("busybox", root / "bin" / applet)
    return root


@functools.cache
def busybox() -> tuple[str, frozenset[str]]:
    """Where the program is, and the names of its applets."""
    program = shutil.which("busybox")
    assert program is not None
    listing = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    return program, frozenset(listing.stdout.split()) - {"busybox"}


# The ordinary user --------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrdinaryUser:
    """Runs things as an ordinary user, each in a fresh process with a small environment.

    That user is needs.ORDINARY_ID where root runs the tests, and else who runs them. `home` is
    its home, its directory for temporary files and where its processes start.
    """

    uid: int
    gid: int
    home: Path

    def __call__(
        self,
        program: str | Callable[[], object] | Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        input: str = "",
        timeout: float = USER_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run Python source, a function (its source: it sees no name but its own) or a command.

        `env` adds to the environment. What comes back tells its exit status; nothing is raised.
        """
        return subprocess.run(
            needs.as_user_argv(_argv(program)),
            input=input,
            capture_output=True,
            text=True,
            cwd=self.home,
            env=self.environment() | dict(env or {}),
            timeout=timeout,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        environment = {
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
        }
        directory = needs.package_parent()
        if directory is None or directory in site.getsitepackages():
            return environment
        return environment | {"PYTHONPATH": directory}

    def own(self, path: Path) -> Path:
        """Give a file, or a directory with all that is in it, to the user."""
        for directory, directories, names in os.walk(path):
            for name in (*directories, *names):
                os.chown(os.path.join(directory, name), self.uid, self.gid, follow_symlinks=False)
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        return path


def _argv(program: str | Callable[[], object] | Sequence[str | os.PathLike[str]]) -> list[str]:
    if callable(program):
        program = f"{textwrap.dedent(inspect.getsource(program))}\n{program.__name__}()\n"
    if isinstance(program, str):
        return [sys.executable, "-P", "-s", "-W", "error", "-c", textwrap.dedent(program)]
    return [os.fspath(argument) for argument in program]


@pytest.fixture
def as_user() -> Iterator[OrdinaryUser]:
    """Run Python or a command as an ordinary user: see OrdinaryUser."""
    root = os.geteuid() == 0
    uid = needs.ORDINARY_ID if root else os.geteuid()
    gid = needs.ORDINARY_ID if root else os.getegid()
    with tempfile.TemporaryDirectory(prefix="tests-") as directory:
        os.chmod(directory, stat.S_IRWXU)
        user = OrdinaryUser(uid, gid, Path(directory))
        user.own(user.home)
        yield user


# Who calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """Somebody who runs programs as `helpers.caller` does; ``home`` is a directory of theirs."""

    home: Path
    uid: int
    user: OrdinaryUser | None

    def __call__(self, source: str, **options: Any) -> list[Any]:
        # Not on top: the tests of the leak guard use this file beside a stand-in for the package.
        from system.helpers import caller, caller_argv  # noqa: PLC0415

        if self.user is None:
            return caller(source, cwd=self.home, **options)
        done = self.user(caller_argv(source), **options)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def own(self, path: Path) -> Path:
        return path if self.user is None else self.user.own(path)


@pytest.fixture(params=["caller", "user"])
def who(request: pytest.FixtureRequest) -> Iterator[Identity]:
    """Who runs the tests, which is root or not, and an ordinary user."""
    if request.param == "user":
        user: OrdinaryUser = request.getfixturevalue("as_user")
        yield Identity(user.home, user.uid, user)
        return
    with open_directory() as directory:
        yield Identity(directory, os.geteuid(), None)
