# SPDX-License-Identifier: Apache-2.0
"""The wheel for aarch64, on a Debian for arm64 whose programs run under qemu-user.

Its system calls are those of this kernel, less what qemu-user does not pass on; no container can
run there. The handler for its programs is known in a user namespace of the test's only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from vm.debian import Archive

from wheels.conftest import Built, download
from wheels.machines import TREE
from wheels.test_build import EXIT_WITHOUT_FDS, launcher_of

PLATFORMS = ["manylinux2014_aarch64", "manylinux_2_28_aarch64"]
ELF = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
SET_UP = """
set -eu
read -r go
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf %s "$HANDLER" >/proc/sys/fs/binfmt_misc/register
for name in proc dev sys; do
    mkdir -p "$ROOT/$name"
    mount --rbind "/$name" "$ROOT/$name"
done
exec chroot "$ROOT" "$@"
"""
# qemu-user does not know the ioctl(2) that tells a namespace's kind.
NOT_PASSED_ON = "not clone_flag_of_each_namespace"

pytestmark = [
    pytest.mark.needs("root", "qemu-aarch64-static", "kernel>=6.7", "busybox"),
    pytest.mark.timeout(1500),
]


@pytest.fixture(scope="module")
def root(folder: Path, built: Built) -> Path:
    """A directory with Debian's Python for arm64, the wheel, what the tests want, and the tests."""
    root = folder / "arm64"
    root.mkdir()
    apt = Archive("bookworm", folder / "apt-arm64", "arm64")
    apt.unpack(apt.closure("python3.11", ""), root)
    for name in ("tmp", "bin"):
        (root / name).mkdir(exist_ok=True)
    for tool in ("sh", "sleep", "cat", "true"):  # this machine's own kind: the kernel takes both
        shutil.copy(str(shutil.which("busybox")), root / "bin" / tool)
    shutil.copytree(TREE, root / "tree", ignore=shutil.ignore_patterns(".*", "container"))
    shutil.copytree(TREE / ".ci", root / "tree/.ci")
    wheels = folder / "arm64-wheels"
    for what in ("cffi>=1.17", "pytest", "pytest-timeout", "hypothesis", "numpy"):
        download(what, wheels, "3.11", PLATFORMS)
    for wheel in (*wheels.glob("*.whl"), built.of("manylinux_2_17_aarch64")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "site")
    return root


def run_inside(root: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    qemu = shutil.which("qemu-aarch64-static")
    apart = ["unshare", "--user", "--mount", "--fork", "--pid", "--kill-child"]
    with subprocess.Popen(
        [*apart, "sh", "-c", SET_UP, "sh", *words],
        env={
            "HANDLER": f":aarch64:M::{ELF}:{MASK}:{qemu}:F",
            "ROOT": str(root),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": "/site",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        # With all ids: some of the tests give files to others.
        while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
            assert process.poll() is None
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536")
        output, _ = process.communicate("go\n")
    return subprocess.CompletedProcess(words, process.returncode, output)


def test_the_package_imports_and_its_unit_tests_pass(root: Path) -> None:
    command = ["/usr/bin/python3.11", "-m", "pytest", "--rootdir", "/tree", "-k", NOT_PASSED_ON]
    command += ["-c", "/tree/pyproject.toml", "-q", "-p", "no:cacheprovider", "--timeout", "900"]
    done = run_inside(root, [*command, "/tree/tests/unit"])
    assert done.returncode == 0, done.stdout[-20_000:]
    assert " passed" in done.stdout


def test_it_is_the_wheel_that_is_imported_there(root: Path) -> None:
    look = "import os, container._native as it; print(os.uname().machine, it.__file__)"
    done = run_inside(root, ["/usr/bin/python3.11", "-c", look])
    assert (done.returncode, done.stdout) == (0, "aarch64 /site/container/_native.abi3.so\n")


@pytest.mark.parametrize("libc", ["manylinux_2_17_aarch64", "musllinux_1_2_aarch64"])
def test_the_launcher_is_a_static_program_that_runs(
    built: Built, tmp_path: Path, libc: str
) -> None:
    launcher = tmp_path / "launcher"
    launcher.write_bytes(launcher_of(built.of(libc)))
    launcher.chmod(0o755)
    done = subprocess.run(["qemu-aarch64-static", launcher], timeout=60, check=False)
    assert done.returncode == EXIT_WITHOUT_FDS
