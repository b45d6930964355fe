# SPDX-License-Identifier: Apache-2.0
"""The wheels under test, built once, and a folder with what they depend on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from vm.debian import Archive

from wheels.machines import NEWEST, TREE, Python, of_this_machine, unpacked


@dataclass(frozen=True)
class Built:
    """What .ci/build_wheels.py made: the machine's own wheel, and those for others."""

    folder: Path

    @property
    def sdist(self) -> Path:
        (path,) = self.folder.glob("*.tar.gz")
        return path

    @property
    def wheels(self) -> list[Path]:
        return sorted(self.folder.glob("*.whl"))

    @property
    def native(self) -> Path:
        """Of the two that run here, that for the older glibc."""
        machine = os.uname().machine
        return next(p for p in self.wheels if "manylinux_2_17" in p.name and machine in p.name)

    def of(self, platform: str) -> Path:
        (path,) = (path for path in self.wheels if platform in path.name)
        return path


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Where an ordinary user can read: pytest keeps its directories closed."""
    with tempfile.TemporaryDirectory(prefix="test-wheels-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)


def make_wheels(output: Path) -> Built:
    done = subprocess.run(
        [sys.executable, TREE / ".ci/build_wheels.py", "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return Built(output)


@pytest.fixture(scope="session")
def built(folder: Path) -> Built:
    return make_wheels(folder / "dist")


@pytest.fixture(scope="session")
def dependencies(folder: Path, pythons: list[Python]) -> Path:
    """A folder with all that a wheel of ours needs at run time, for each interpreter."""
    target = folder / "dependencies"
    for version in sorted({python.tag for python in pythons}):
        download("cffi>=1.17", target, version, [])
    return target


def download(what: str, target: Path, version: str, platforms: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--only-binary", ":all:", "--python-version", version, "--dest", str(target)]
    for platform in platforms:
        command += ["--platform", platform]
    subprocess.run([*command, what], check=True)


@pytest.fixture(scope="session")
def pythons(folder: Path) -> list[Python]:
    """Every CPython of this machine, and the newest that Debian has."""
    apt = Archive("sid", folder / "apt")
    newest = [unpacked(package, apt, folder / "sid") for package in NEWEST]
    return [*of_this_machine(), *newest]


@pytest.fixture
def umask() -> Iterator[None]:
    """What is made here, an ordinary user can read."""
    before = os.umask(0o022)
    yield
    os.umask(before)
