# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels: which there are, and one made ready under the cache."""

import fcntl
import gzip
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vm import SetupError, debian, manifest

# A new kernel is a new row: the name that --kernel takes, the suite whose linux-image-amd64 it
# is, and what its release must begin with ("" takes what comes).
ROWS = (
    ("6.1", "bookworm", "6.1."),
    ("6.12", "trixie", "6.12."),
    ("newer", "sid", ""),
)
NAMES = tuple(row[0] for row in ROWS)
DEFAULT = ("6.1", "6.12")

# Enough to reach the host's files and the harness; the rest is loaded from the real root.
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_blk")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel in the cache."""

    folder: Path

    @property
    def release(self) -> str:
        """What `uname -r` says under it."""
        return self.modules.name

    @property
    def modules(self) -> Path:
        """Its folder of modules, with the index of depmod."""
        (found,) = (self.folder / "lib/modules").iterdir()
        return found

    @property
    def vmlinux(self) -> Path:
        """The plain ELF file."""
        return self.folder / "vmlinux"

    @property
    def busybox(self) -> Path:
        """A static busybox for the initramfs."""
        return self.folder / "busybox"

    def boot_modules(self) -> list[tuple[str, bytes]]:
        """`(name, object)` of the modules that the initramfs loads, in order."""
        index = (self.modules / "modules.dep").read_text()
        built_in = (self.modules / "modules.builtin").read_text()
        return [
            (module_name(path), decompress((self.modules / path).read_bytes()))
            for path in load_order(index, built_in, BOOT_MODULES)
        ]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where kernels are kept between runs."""
    base = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base).absolute() / "container-vm"


def prepare(name: str, cache: Path) -> Kernel:
    """The kernel `name`, fetched from Debian when the cache has none, or a damaged one.

    What the cache has stays as it is: a kernel is renewed by deleting its folder.
    Raises SetupError.
    """
    ready = cache / name
    with cache_locked(cache):
        if not ready.exists():
            _fetch(name, ready)
        elif why := manifest.damage(ready):
            debian.say(f"the kernel in {ready} is damaged: {why}")
            _fetch(name, ready)
    return Kernel(ready)


@contextmanager
def cache_locked(cache: Path) -> Iterator[None]:
    """Hold the cache, which is made if need be, against other runs; SetupError for what fails."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):
            yield
    except OSError as error:
        raise SetupError(f"the cache {cache}: {error}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` against other runs; the kernel gives it back if we die."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            debian.say(f"waiting for another run that holds {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(name: str, ready: Path) -> None:
    (suite, begins) = next(row[1:] for row in ROWS if row[0] == name)
    debian.say(f"fetching Debian's kernel {name} ({suite}) into {ready}")
    work = ready.with_name(f"{name}.new")
    shutil.rmtree(work, ignore_errors=True)
    archive = debian.Archive(suite, work / "apt")
    packages = archive.closure("linux-image-amd64", "linux-")
    archive.unpack([*packages, "busybox-static"], work / "files")
    kernel = _arrange(work / "files", work / "kernel")
    if not kernel.release.startswith(begins):
        raise SetupError(f"{suite} has kernel {kernel.release} now, not {begins}*")
    manifest.write(kernel.folder)
    if ready.exists():
        shutil.rmtree(ready)
    kernel.folder.rename(ready)
    shutil.rmtree(work)


def _arrange(files: Path, folder: Path) -> Kernel:
    """Bring what the packages hold into the one shape that `Kernel` expects."""
    (folder / "lib").mkdir(parents=True)
    _only(files, "{,usr/}lib/modules").rename(folder / "lib/modules")
    _only(files, "{,usr/}bin/busybox").rename(folder / "busybox")
    image = next((folder / "lib/modules").glob("*/vmlinuz"), None) or _only(files, "boot/vmlinuz-*")
    (folder / "vmlinux").write_bytes(vmlinux(image.read_bytes()))
    kernel = Kernel(folder)
    debian.run([_tool("depmod"), "-b", str(folder), kernel.release])
    return kernel


def _only(files: Path, pattern: str) -> Path:
    patterns = [pattern.replace("{,usr/}", usr) for usr in ("", "usr/")]
    found = {path for each in patterns for path in files.glob(each)}
    if len(found) != 1:
        raise SetupError(f"the kernel packages hold {len(found)} of {pattern}, not one")
    return found.pop()


def vmlinux(image: bytes) -> bytes:
    """The plain ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset).

    QEMU starts it directly (PVH): unpacking itself under emulation costs a kernel seconds.
    Raises SetupError for anything else.
    """
    if image[0x202:0x206] != b"HdrS":
        raise SetupError("the kernel image is no bzImage")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    plain = decompress(image[start : start + length - 4])  # the last four bytes are a size
    if plain[:4] != b"\x7fELF":
        raise SetupError("the kernel image holds no ELF file")
    return plain


def decompress(data: bytes) -> bytes:
    """`data` unpacked by what its first bytes say, or as it is."""
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        done = subprocess.run(
            [_tool("zstd"), "-dcq"], input=data, stdout=subprocess.PIPE, check=True
        )
        return done.stdout
    return data


def module_name(path: str) -> str:
    """The kernel's name of the module in the file `path`."""
    return PurePosixPath(path).name.split(".ko")[0].replace("-", "_")


def load_order(index: str, built_in: str, wanted: Sequence[str]) -> list[str]:
    """The files to insert for `wanted`, dependencies first, from the text of modules.dep.

    Modules that are built into the kernel need none. Raises SetupError for an unknown one.
    """
    lines = dict(line.split(":", 1) for line in index.splitlines())
    by_name = {module_name(path): path for path in lines}
    inside = {module_name(path) for path in built_in.split()}
    order: list[str] = []
    for name in wanted:
        if name in inside:
            continue
        if name not in by_name:
            raise SetupError(f"the kernel has no module {name}")
        path = by_name[name]
        # modules.dep names all dependencies, the deepest last
        order += [p for p in [*reversed(lines[path].split()), path] if p not in order]
    return order


def _tool(name: str) -> str:
    found = shutil.which(name, path=debian.search_path())
    if found is None:
        raise SetupError(f"{name} is not installed")
    return found
