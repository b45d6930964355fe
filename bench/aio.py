# SPDX-License-Identifier: Apache-2.0
"""Containers per second: `aio.run` beside threads that call `run`. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import container
from container import aio

COMMAND = ["/bin/true"]


def by_threads(count: int, workers: int) -> float:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: None, range(workers)))  # the threads are there
        began = time.perf_counter()
        list(pool.map(lambda _: container.run(COMMAND), range(count)))
        return count / (time.perf_counter() - began)


def by_loop(count: int, workers: int) -> float:
    async def main() -> float:
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                await aio.run(COMMAND)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(workers)))
        return count / (time.perf_counter() - began)

    return asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=400, help="containers per round")
    parser.add_argument("--workers", type=int, default=8, help="threads, or tasks, at once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    container.run(COMMAND, check=True)
    rates: dict[str, list[float]] = {"threads": [], "asyncio": []}
    for _ in range(options.rounds):  # interleaved: what disturbs one disturbs the other
        rates["threads"].append(by_threads(options.count, options.workers))
        rates["asyncio"].append(by_loop(options.count, options.workers))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    if options.json:
        print(json.dumps(rates))
        return
    for name, rate in medians.items():
        print(f"{name:8} {rate:7.0f} containers/s  ({options.workers} at once)")
    print(f"asyncio / threads: {medians['asyncio'] / medians['threads']:.2f}")


if __name__ == "__main__":
    main()
