# SPDX-License-Identifier: Apache-2.0
"""Containers per second: `aio.run` beside threads that call `run`; and what sleeping ones cost.

See README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import container
from container import Process, aio
from container._launcher import drop_blanks, launcher_pid

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


def spent(pid: int) -> tuple[float, int]:
    """Seconds of processor time, and how often it went to sleep."""
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (switches,) = (line.split()[1] for line in lines if line.startswith("voluntary"))
    return int(fields[0]) / 1e9, int(switches)


async def sleep_beside(count: int, seconds: float) -> None:
    """What one loop with so many sleeping containers costs: this process and the launcher."""
    async with AsyncExitStack() as stack:
        boxes = [await stack.enter_async_context(aio.Container()) for _ in range(count)]
        await asyncio.gather(*(box.run(Process(["sleep", "100000"])) for box in boxes))
        waits = [asyncio.ensure_future(box.wait()) for box in boxes]
        drop_blanks()  # or a timer of the launcher's would do that in a moment
        await asyncio.sleep(1)
        pids = {"loop": os.getpid(), "launcher": launcher_pid()}
        before = {name: spent(pid) for name, pid in pids.items()}
        await asyncio.sleep(seconds)
        for name, pid in pids.items():
            time_spent, switches = spent(pid)
            time_spent, switches = time_spent - before[name][0], switches - before[name][1]
            print(f"{name:8} {time_spent * 1e6:7.0f} us in {seconds:g} s, woken {switches} times")
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await asyncio.gather(*(box.destroy() for box in boxes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=400, help="containers per round")
    parser.add_argument("--workers", type=int, default=8, help="threads, or tasks, at once")
    parser.add_argument("--sleeping", type=int, metavar="N", help="N sleeping containers instead")
    parser.add_argument("--seconds", type=float, default=10, help="that they sleep")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.sleeping:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        asyncio.run(sleep_beside(options.sleeping, options.seconds))
        return
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
