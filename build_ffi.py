# SPDX-License-Identifier: Apache-2.0
"""cffi builder of ``container._native``: cdef and compiler read the same headers.

setup.py names this file in ``cffi_modules`` and compiles the launcher (csrc/, freestanding)
into the C array that ``csrc/spawn.c`` refers to.
"""

from pathlib import Path

import cffi

CSRC = Path(__file__).resolve().parent / "csrc"
HEADERS = ("launcher.h", "signals.h", "spawn.h")


def declarations(header: str) -> str:
    """A header as ``cdef`` wants it: less its preprocessor lines."""
    lines = (CSRC / header).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = cffi.FFI()
for _header in HEADERS:
    ffibuilder.cdef(declarations(_header))
ffibuilder.set_source(
    "container._native",
    "\n".join(f'#include "{header}"' for header in HEADERS),
    sources=["csrc/ask.c", "csrc/create.c", "csrc/signals.c", "csrc/spawn.c"],
    include_dirs=["csrc"],
    depends=[f"csrc/{path.name}" for path in sorted(CSRC.iterdir())],
    py_limited_api=True,
)
