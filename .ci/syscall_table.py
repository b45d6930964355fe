#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make container/_seccomp/syscalls.tsv from the kernel's own headers.

Two packages of Debian have them, for all architectures at once (trixie and newer)::

    apt-get download linux-libc-dev linux-headers-VERSION-common
    .ci/syscall_table.py linux-libc-dev_*.deb linux-headers-*-common_*.deb

The first says the numbers (what user space includes), the second how wide the kernel takes each
argument (include/linux/syscalls.h). A package may be given as the directory it is unpacked in.
Every run with the same packages writes the same bytes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "container/_seccomp/syscalls.tsv"

# Column of the table → header with the numbers.
TABLES = {
    "x86_64": "x86/asm/unistd_64.h",
    "x86": "x86/asm/unistd_32.h",
    "x32": "x86/asm/unistd_x32.h",
    "aarch64": "arm64/asm/unistd_64.h",
    "arm": "arm/asm/unistd-eabi.h",
    "riscv64": "riscv/asm/unistd_64.h",
    "ppc64le": "powerpc/asm/unistd_64.h",
    "s390x": "s390/asm/unistd_64.h",
}
# ARM's own calls, above all others; sync_file_range2 is another name there.
MORE = {"arm": "arm/asm/unistd.h"}
BASES = {"__X32_SYSCALL_BIT": 0x40000000, "__NR_SYSCALL_BASE": 0, "__ARM_NR_BASE": 0xF0000}

# Types that the kernel cuts an argument down to. Everything else is as wide as a register.
WIDTHS = {
    "h": {"umode_t", "old_uid_t", "old_gid_t"},
    "w": {
        *("int", "unsigned", "unsigned int", "u32", "__u32", "s32", "__s32", "uint32_t"),
        *("uid_t", "gid_t", "pid_t", "qid_t", "key_t", "mqd_t", "clockid_t", "timer_t"),
        *("key_serial_t", "rwf_t", "const clockid_t"),
    },
}
# clone: kernel/fork.c keeps the lower 32 bits of the flags, whatever the prototype says. Its order
# of arguments differs on s390x.
CORRECTIONS = {"clone": "ww..."}

DEFINE = re.compile(r"#define\s+__(?:ARM_)?NR_(\w+)\s+\(?\s*(?:(__\w+)\s*\+\s*)?(\w+)\s*\)?\s*$")
PROTOTYPE = re.compile(r"asmlinkage\s+long\s+sys_(\w+)\s*\(([^;]*?)\)\s*;", re.DOTALL)
INTERNAL = {"OABI_SYSCALL_BASE", "SYSCALL_BASE", "SYSCALL_MASK", "BASE", "syscalls"}


def numbers_in(header: Path, known: dict[str, int] | None = None) -> dict[str, int]:
    """Name → number of a header; a name may refer to one before it or to one of ``known``."""
    found = dict(known or {})
    for line in header.read_text(encoding="utf-8").splitlines():
        match = DEFINE.match(line)
        if match is None or match[1] in INTERNAL:
            continue
        name, base, value = match.groups()
        if value.startswith(("__NR_", "__ARM_NR_")):
            found[name] = found[value.removeprefix("__NR_")]
        else:
            found[name] = (BASES[base] if base else 0) + int(value, 0)
    return found


def width_of(parameter: str) -> str:
    if "*" in parameter:
        return "."
    words = [word for word in parameter.split() if word not in {"__user", "const", "struct"}]
    for code, types in WIDTHS.items():
        for end in (len(words), len(words) - 1):  # without a name, with one
            if " ".join(words[:end]) in types:
                return code
    return "w" if words and words[0] == "enum" else "."


def widths_in(header: Path) -> dict[str, str]:
    """Name → one letter for each argument: (h)alf 16 bits, (w)ord 32, (.) as a register."""
    text = re.sub(r"/\*.*?\*/", " ", header.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict[str, str] = {}
    for name, parameters in PROTOTYPE.findall(text):
        words = " ".join(parameters.split())
        codes = "" if words == "void" else "".join(map(width_of, words.split(",")))
        # Declared once for each order of arguments: be sure of what they agree on.
        old = found.get(name, codes)
        found[name] = "".join(a if a == b else "." for a, b in zip(old, codes, strict=False))
    return found | CORRECTIONS


def elsewhere(uapi: Path) -> set[str]:
    """Names on architectures that have no column: a profile for many machines may have them."""
    headers = [path for path in uapi.glob("*/asm/unistd*.h") if "oabi" not in path.name]
    names: set[str] = set()
    for header in sorted(headers):
        for line in header.read_text(encoding="utf-8").splitlines():
            match = re.match(r"#define\s+__NR_([a-z_]\w*)\s", line)
            if match and match[1] not in INTERNAL and not match[1].startswith(("O32", "N32", "64")):
                names.add(match[1])
    return {name for name in names if name.islower() and not name.endswith("_linux_syscalls")}


def version_of(package: Path) -> str:
    text = (package / "usr/include/linux/version.h").read_text(encoding="ascii")
    parts = (re.search(rf"LINUX_VERSION_{part} (\d+)", text) for part in ("MAJOR", "PATCHLEVEL"))
    return ".".join(part[1] for part in parts if part)


def rows(libc: Path, common: Path) -> Iterator[str]:
    uapi = libc / "usr/lib/linux/uapi"
    (prototypes,) = common.glob("usr/src/*/include/linux/syscalls.h")
    tables = {column: numbers_in(uapi / path) for column, path in TABLES.items()}
    for column, path in MORE.items():
        tables[column] = numbers_in(uapi / path, tables[column])
    widths = widths_in(prototypes)
    names = elsewhere(uapi).union(*tables.values())
    yield f"# Made by .ci/syscall_table.py from the headers of Linux {version_of(libc)}."
    yield "# Of the arguments the kernel takes 16 (h), 32 (w) or all bits (.)."
    yield "\t".join(("name", "arguments", *tables))
    for name in sorted(names):
        cells = (str(table.get(name, "")) for table in tables.values())
        yield "\t".join((name, widths.get(name, ""), *cells)).rstrip("\t")


def unpacked(package: str, directory: str) -> Path:
    if Path(package).is_dir():
        return Path(package)
    target = Path(directory, Path(package).name)
    subprocess.run(["dpkg-deb", "-x", package, target], check=True)
    return target


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        libc, common = (unpacked(package, directory) for package in sys.argv[1:])
        OUTPUT.write_text("\n".join(rows(libc, common)) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
