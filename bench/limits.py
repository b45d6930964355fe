# SPDX-License-Identifier: Apache-2.0
"""What limits cost: a start with them against one without, a cgroup's making, numbers, end.

Needs cgroup v2 with memory, cpu and pids, as in the machine of tests/vm; README.md says how. The
kinds of start take turns, so that what disturbs one disturbs all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import container
from container import Cgroup, Config, Container, Process, Resources

EXPECTED = 1.25
PAUSE = 0.005
LIMITS: dict[str, Any] = {"memory": "256M", "cpus": 1.5, "pids": 64}
COMMAND = ["/bin/true"]


def start(**options: Any) -> None:
    container.run(COMMAND, check=True, **options)


def start_in_cgroup() -> None:
    start(config=Config(resources=Resources()))


def start_with_limits() -> None:
    start(**LIMITS)


def make_and_remove() -> None:
    Cgroup.create("bench", Resources.default()).remove()


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e6


def measure(calls: dict[str, Callable[[], object]], rounds: int, pause: float) -> dict[str, float]:
    """Medians in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause)
            times[name].append(timed(call))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What limits cost.")
    parser.add_argument("--rounds", type=int, default=200, help="default 200")
    parser.add_argument(
        "--pause", type=float, default=PAUSE, help="seconds between, in which things are made ahead"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    starts = measure(
        {"without": start, "with a cgroup": start_in_cgroup, "with limits": start_with_limits},
        arguments.rounds,
        arguments.pause,
    )
    with Container(Config(resources=Resources.default())) as box:
        box.run(Process(["sleep", "1000"]))
        others = measure(
            {"create and remove": make_and_remove, "stats": box.stats}, arguments.rounds, 0
        )
    ratio = starts["with limits"] / starts["without"]
    for name, value in (starts | others).items():
        print(f"{name:20} {value:9.0f} us  {value / starts['without']:6.2f} x a start")
    print(f"limits: {ratio:.2f} x, expected <= {EXPECTED}", os.uname().release)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"us": starts | others, "ratio": ratio}))


if __name__ == "__main__":
    main()
