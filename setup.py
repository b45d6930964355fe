# SPDX-License-Identifier: Apache-2.0
"""Build the launcher, then the extension module that carries it. Metadata: pyproject.toml."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LAUNCHER_SOURCES = [
    f"csrc/{name}.c"
    for name in (
        "attributes",
        "blank",
        "cgroup",
        "child",
        "clients",
        "containers",
        "exec",
        "filesystem",
        "hooks",
        "idmap",
        "init",
        "landlock",
        "launcher",
        "layers",
        "lease",
        "line",
        "listener",
        "log",
        "mapper",
        "memfd",
        "message",
        "names",
        "prepare",
        "proc",
        "procfs",
        "request",
        "rights",
        "runtime",
        "spare",
        "start",
        "supervisor",
        "terminal",
        "walls",
    )
]
# The launcher's own flags: nothing of the interpreter's (its -fPIC, -g, LTO) fits a program
# without libc. Not position-independent, so that it needs no relocation of itself.
LAUNCHER_FLAGS = shlex.split(
    "-std=gnu11 -Os -ffreestanding -nostdlib -static -fno-pic -fno-stack-protector"
    " -fno-asynchronous-unwind-tables -fno-unwind-tables -fno-strict-aliasing"
    " -Wall -Wextra -Wshadow -Wvla -Werror=implicit-function-declaration"
    " -Wl,-z,noexecstack -Wl,-z,separate-code -Wl,--build-id=none -Wl,--gc-sections -s"
)


def c_compiler() -> list[str]:
    """The C compiler: as CC says, or the interpreter's without the flags that it comes with."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    command = shlex.split(sysconfig.get_config_var("CC") or "cc")
    return [word for word in command if not word.startswith("-")]


def check_compiler() -> None:
    """Before a traceback of distutils does: say what is missing, and how to do without."""
    command = c_compiler()
    if shutil.which(command[0]) is None:
        sys.exit(
            f"container: building from source needs a C compiler, and {command[0]!r} is not in"
            " PATH. On Debian: apt-get install gcc libc6-dev python3-dev. CC names another one."
            " A wheel needs none: pip install --only-binary container container"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        sys.exit(
            f"container: building from source needs the headers of Python, and {header} is not"
            " there. On Debian: apt-get install python3-dev"
        )


class BuildLauncher(build_ext):
    def run(self) -> None:
        check_compiler()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        build_dir = Path(self.build_temp)
        build_dir.mkdir(parents=True, exist_ok=True)
        image = build_dir / "launcher"
        self.spawn([*c_compiler(), *LAUNCHER_FLAGS, "-o", str(image), *LAUNCHER_SOURCES])
        array = build_dir / "launcher_image.c"
        array.write_text(as_array(image.read_bytes()), encoding="ascii")
        ext.sources.append(str(array))
        super().build_extension(ext)


def as_array(data: bytes) -> str:
    rows = (data[i : i + 24] for i in range(0, len(data), 24))
    numbers = ",\n".join(",".join(map(str, row)) for row in rows)
    return (
        f"const unsigned char container_launcher_image[] = {{\n{numbers}\n}};\n"
        f"const unsigned long container_launcher_image_size = {len(data)};\n"
    )


# A free-threaded CPython has no limited API: its wheel is for that one version.
LIMITED = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildLauncher},
    options={"bdist_wheel": LIMITED},
)
