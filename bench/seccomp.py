# SPDX-License-Identifier: Apache-2.0
"""What the default filter costs beside libseccomp's for the same profile; see bench/README.md."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from filters.libseccomp import Libseccomp  # noqa: E402

from container import SeccompProfile, SyscallCondition, default_capabilities  # noqa: E402
from container._seccomp import _compiler  # noqa: E402
from container._seccomp._tables import ARCHITECTURES  # noqa: E402

KERNEL = (6, 18)
CAPABILITIES = default_capabilities()
NATIVE = "SCMP_ARCH_X86_64"
FOREIGN = ("SCMP_ARCH_X86", "SCMP_ARCH_X32")
COLUMNS = ("load us", "cold us", "by number ns", "by argument ns", "refused ns")


def make_filters() -> dict[str, bytes]:
    """Name of a row → struct sock_filter[]."""
    oracle = Libseccomp()
    found = _compiler.rules_for(
        SeccompProfile.default(), ARCHITECTURES[NATIVE], CAPABILITIES, KERNEL
    )
    always = SyscallCondition()
    rules = [replace(rule, includes=always, excludes=always) for _, rule in found]
    filters = {"no filter": b""}
    for words, foreign in (("", ()), (", three ABIs", FOREIGN)):
        profile = SeccompProfile("ERRNO", rules, foreign)
        compiled = _compiler.compile_profile(profile, "x86_64", CAPABILITIES, KERNEL)
        filters[f"container{words}"] = compiled.program
        for kind, optimize in (("libseccomp", False), ("libseccomp's tree", True)):
            filters[f"{kind}{words}"] = oracle.compile(
                profile, rules, (NATIVE, *foreign), optimize=optimize
            )
    return filters


def compile_times(rounds: int = 20) -> dict[str, float]:
    """Milliseconds to make the default filter, of a profile that is there."""
    profile = SeccompProfile.default()
    found = _compiler.rules_for(profile, ARCHITECTURES[NATIVE], CAPABILITIES, KERNEL)
    rules = [rule for _, rule in found]
    oracle = Libseccomp()

    def ours() -> None:
        _compiler.compile_profile.cache_clear()
        _compiler.compile_profile(profile, "x86_64", CAPABILITIES, KERNEL)

    def theirs() -> None:
        oracle.compile(profile, rules, (NATIVE,), optimize=True)

    return {
        name: statistics.median(timed(make) for _ in range(rounds))
        for name, make in (("container", ours), ("libseccomp's tree", theirs))
    }


def timed(make: object) -> float:
    assert callable(make)
    start = time.perf_counter()
    make()
    return 1000 * (time.perf_counter() - start)


def run(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(filters: dict[str, bytes], rounds: int, most: int) -> dict[str, list[float]]:
    """Name of a row → medians in the order of COLUMNS."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "filter")
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "filter.c"], check=True)
        for index, content in enumerate(filters.values()):
            Path(directory, str(index)).write_bytes(content)
        files = [os.path.join(directory, str(index)) for index in range(len(filters))]
        warm, cold = (
            medians(run([str(program), str(rounds), str(count), *files]), len(files))
            for count in (0, most)
        )
    return {
        name: [loads[0] / 1000, calls[0] / 1000, *calls[1:]]
        for name, loads, calls in zip(filters, warm, cold, strict=True)
    }


def medians(output: str, count: int) -> list[list[float]]:
    """Of what `filter` printed, by the index of the file."""
    samples: list[list[list[float]]] = [[] for _ in range(count)]
    for line in output.splitlines():
        index, *values = line.split()
        samples[int(index)].append(list(map(float, values)))
    return [[statistics.median(column) for column in zip(*rows, strict=True)] for rows in samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=20_000, help="of each kind in a round")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if os.uname().machine != "x86_64":
        sys.exit("for x86_64, where the three ABIs are")
    filters = make_filters()
    rows = measure(filters, arguments.rounds, arguments.calls)
    print(f"{'filter':32} {'instructions':>12}", *(f"{name:>15}" for name in COLUMNS))
    for name, values in rows.items():
        numbers = (f"{value:15.1f}" for value in values)
        print(f"{name:32} {len(filters[name]) // 8:12}", *numbers)
    for words in ("", ", three ABIs"):
        for other in (f"libseccomp{words}", f"libseccomp's tree{words}"):
            warm, cold = (rows[f"container{words}"][i] / rows[other][i] for i in (0, 1))
            print(f"container{words} loads in {warm:.2f} x (cold {cold:.2f}) the time of {other}")
    times = compile_times()
    print(*(f"{name} compiles it in {value:.1f} ms" for name, value in times.items()), sep="\n")
    if arguments.json:
        content = {"columns": COLUMNS, "rows": rows, "compile_ms": times}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
