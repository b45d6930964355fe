# SPDX-License-Identifier: Apache-2.0
"""What `import container` costs beside the modules that most programs have loaded anyway.

    python bench/imports.py [--rounds 40]

Each round starts fresh interpreters (-I), one per statement in turn, and each of these measures its
own statement. Prints medians and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STATEMENTS = {
    "subprocess, json, dataclasses": "import subprocess, json, dataclasses",
    "container": "import container",
    "container, its run()": "import container; container.run",
}
MEASURE = """
import time
start = time.perf_counter_ns()
{statement}
print(time.perf_counter_ns() - start)
"""


def measure(statement: str) -> float:
    """Milliseconds of one statement in an interpreter of its own."""
    program = MEASURE.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the import.")
    parser.add_argument("--rounds", type=int, default=40, help="default: 40")
    rounds: int = parser.parse_args().rounds
    for statement in STATEMENTS.values():
        measure(statement)  # with bytecode written
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name, statement in STATEMENTS.items():
            times[name].append(measure(statement))
    medians = {name: statistics.median(each) for name, each in times.items()}
    base = next(iter(medians.values()))
    print(f"{'import':32} {'ms':>8} {'ratio':>6}")
    for name, median in medians.items():
        print(f"{name:32} {median:8.1f} {median / base:6.2f}")


if __name__ == "__main__":
    main()
