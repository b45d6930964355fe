# SPDX-License-Identifier: Apache-2.0
"""The wheels, as files."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from wheels.conftest import Built, make_wheels
from wheels.machines import TREE

PLATFORMS = [
    "manylinux_2_17_x86_64",
    "manylinux_2_17_aarch64",
    "musllinux_1_2_x86_64",
    "musllinux_1_2_aarch64",
]


def module_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        assert name == "container/_native.abi3.so"
        return archive.read(name)


def launcher_of(wheel: Path) -> bytes:
    """An ELF file in the data of another one; what follows it does not matter to the kernel."""
    image = module_of(wheel)
    return image[image.index(b"\x7fELF", 4) :]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_there_is_one_wheel_for_each_platform_and_every_cpython(
    built: Built, platform: str
) -> None:
    assert re.fullmatch(r"container-[\d.]+-cp311-abi3-.*\.whl", built.of(platform).name)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.needs("readelf")
def test_it_links_with_nothing_but_its_platforms_c_library(
    built: Built, platform: str, tmp_path: Path
) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(module_of(built.of(platform)))
    done = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout)
    machine = platform.removeprefix("musllinux_1_2_").removeprefix("manylinux_2_17_")
    glibc = {"libc.so.6", "libpthread.so.0", f"ld-linux-{machine}.so.1"}  # one library, in parts
    assert set(needed) <= ({f"libc.musl-{machine}.so.1"} if "musl" in platform else glibc)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_it_holds_the_package_and_says_so(built: Built, platform: str) -> None:
    with zipfile.ZipFile(built.of(platform)) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        info = metadata.removesuffix("METADATA")
        fields = Parser().parsestr(archive.read(metadata).decode())
        commands = archive.read(f"{info}entry_points.txt").decode()
    assert {"container/py.typed", f"{info}licenses/LICENSE", "container/aio.py"} <= names
    assert {str(path.relative_to(TREE)) for path in TREE.glob("container/**/*.py")} <= names
    assert fields["Name"] == "container"
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["Description-Content-Type"] == "text/markdown"
    assert str(fields.get_payload()).startswith("# ")
    assert "container = container._cli:main" in commands


def test_the_sdist_holds_what_a_build_needs_and_nothing_of_this_machine(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {"csrc/launcher.h", "build_ffi.py", "setup.py", "LICENSE", "README.md"} <= names
    assert not [name for name in names if re.search(r"\.(so|o|pyc)$|^(\.|build/|dist/)", name)]
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}


def test_two_builds_give_the_same_bytes(built: Built, tmp_path: Path) -> None:
    again = make_wheels(tmp_path / "a directory of another name")
    assert digests(again.folder) == digests(built.folder)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.needs("x86_64")
def test_the_launcher_of_another_machine_is_a_static_program_for_it(built: Built) -> None:
    wheel = built.of("musllinux_1_2_x86_64")
    # As of a machine with musl: the same bytes need no library at all, so they run here.
    fd = os.memfd_create("launcher")
    os.write(fd, launcher_of(wheel))
    done = subprocess.run([f"/proc/self/fd/{fd}"], pass_fds=[fd], timeout=30, check=False)
    os.close(fd)
    assert done.returncode == EXIT_WITHOUT_FDS


EXIT_WITHOUT_FDS = 1
"""What a launcher says that was started by hand, without the fds it works with."""
