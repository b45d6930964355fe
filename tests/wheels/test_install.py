# SPDX-License-Identifier: Apache-2.0
"""The package, installed as its users install it, works; and goes again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import needs
import pytest

from wheels.conftest import Built
from wheels.machines import NEWEST, TREE, Python, of_this_machine

SMOKE = TREE / ".ci/smoke.py"
NAMES = [*(python.name for python in of_this_machine()), *NEWEST]

pytestmark = pytest.mark.usefixtures("umask")


class Environment:
    """A virtual environment without pip: that of these tests installs into it."""

    def __init__(self, python: Python, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin/python"
        self.base = str(Path(python.executable).parents[1])
        command = [python.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True)

    def pip(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "--no-cache-dir"]
        return run(*command, "--disable-pip-version-check", *words)

    def install(self, wheel: Path, dependencies: Path) -> None:
        """From files only."""
        done = self.pip("install", "--no-index", "--find-links", dependencies, wheel)
        assert done.returncode == 0, done.stderr

    def files(self) -> set[Path]:
        """All but caches of bytecode that the interpreter itself makes."""
        found = (path for path in self.folder.rglob("*") if "__pycache__" not in path.parts)
        return {path.relative_to(self.folder) for path in found}


def run(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd="/", env=env, capture_output=True, text=True, check=False)


@pytest.fixture(params=NAMES)
def python(request: pytest.FixtureRequest, pythons: list[Python]) -> Python:
    """Each CPython that there is."""
    (found,) = (p for p in pythons if request.param in (p.name, Path(p.executable).name))
    return found


@pytest.fixture
def system_python() -> Python:
    return of_this_machine()[0]


@pytest.fixture
def area(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own that everybody can read, with a space in its name."""
    path = folder / f"of {abs(hash(request.node.name))}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.needs("userns")
def test_a_wheel_installed_from_a_local_folder_works(
    built: Built, dependencies: Path, python: Python, area: Path
) -> None:
    environment = Environment(python, area / "venv")
    environment.install(built.native, dependencies)
    done = run(environment.python, "-W", "error", SMOKE, "--must-run")
    # As an ordinary user: below, as its files need not be readable to everybody.
    assert f"works: run, exec, seccomp (CPython {'.'.join(map(str, python.version))}" in done.stdout
    assert "LEFT OUT, no container" not in done.stdout and done.stderr == "", done.stderr


@pytest.mark.needs("root", "rootless")
def test_it_works_for_an_ordinary_user(
    built: Built, dependencies: Path, python: Python, area: Path
) -> None:
    environment = Environment(python, area / "venv")
    environment.install(built.native, dependencies)
    script = area / "smoke.py"
    shutil.copy(SMOKE, script)
    command = [str(environment.python), str(script), "--must-run"]
    done = run(*needs.as_user_argv(command, [environment.base]))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f", uid {needs.ORDINARY_ID})" in done.stdout


def test_its_commands_are_there_and_nothing_is_left_of_it(
    built: Built, dependencies: Path, system_python: Python, area: Path
) -> None:
    environment = Environment(system_python, area / "venv")
    environment.install(Path("cffi"), dependencies)
    before = environment.files()
    environment.install(built.native, dependencies)
    done = run(environment.folder / "bin/container", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "container"), done
    assert environment.pip("uninstall", "--yes", "container").returncode == 0
    assert environment.files() == before


@pytest.mark.needs("gcc", "userns")
@pytest.mark.parametrize("editable", [False, True], ids=["plain", "editable"])
@pytest.mark.parametrize("user", [False, True], ids=["by the caller", "by an ordinary user"])
def test_a_source_archive_builds_where_paths_have_spaces(
    built: Built, system_python: Python, area: Path, editable: bool, user: bool
) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(area, filter="data")
    (source,) = area.glob("container-*")
    environment = Environment(system_python, area / "a venv")
    if user:
        for path in (area, *area.rglob("*")):
            os.chown(path, needs.ORDINARY_ID, needs.ORDINARY_ID, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "--python", str(environment.python), "install"]
    command += ["--quiet", "--no-cache-dir", "--disable-pip-version-check"]
    command += [*(["--editable"] if editable else []), str(source)]
    smoke = area / "smoke.py"
    shutil.copy(SMOKE, smoke)
    check = [str(environment.python), str(smoke), "--must-run"]
    variables = os.environ | {"HOME": str(area), "TMPDIR": str(area)}
    if user:
        command, check = needs.as_user_argv(command), needs.as_user_argv(check)
    done = run(*command, env=variables)
    assert done.returncode == 0, done.stderr
    done = run(*check, env=variables)
    assert "works: run, exec, seccomp" in done.stdout, done.stderr


def test_without_a_compiler_it_is_said_what_is_missing(
    built: Built, system_python: Python, area: Path
) -> None:
    environment = Environment(system_python, area / "venv")
    variables = os.environ | {"CC": "no-such-compiler"}
    command = [sys.executable, "-m", "pip", "--python", str(environment.python), "install"]
    done = run(*command, "--no-cache-dir", built.sdist, env=variables)
    assert done.returncode != 0
    assert "needs a C compiler, and 'no-such-compiler' is not in PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(environment.folder.rglob("container*"))
