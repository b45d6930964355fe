#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Many detached sleepers: what their launchers weigh, how long it takes to look and to end them.

    sudo .venv/bin/python bench/detached.py [COUNT]

Only containers of its own are touched, and none is left.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from container import (
    Container,
    Process,
    SignalConfig,
    StateManager,
    list_containers,
    prune,
)

AT_ONCE = SignalConfig(stop_signal=9)


def weight(pid: int) -> int:
    """Of the parent of a container's first process, in KiB."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    rollup = Path(f"/proc/{fields[1]}/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def start(name: str) -> None:
    with Container(id=name) as box:
        box.run(Process(["sleep", "100000"]), detach=True)


def stop(name: str) -> None:
    with Container.open(name) as box:
        box.stop(AT_ONCE)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    names = [f"bench-{secrets.token_hex(4)}-{i}" for i in range(count)]
    try:
        began = time.monotonic()
        for name in names:
            start(name)
        print(f"{count} started one after the other: {time.monotonic() - began:.2f} s")
        pids = [state.pid for state in list_containers() if state.id in set(names)]
        weights = sorted(weight(pid) for pid in pids if pid)
        print(f"launcher, PSS: median {weights[len(weights) // 2]} KiB, most {weights[-1]} KiB")
        began = time.monotonic()
        list_containers()
        print(f"list_containers(): {time.monotonic() - began:.3f} s")
        began = time.monotonic()
        command = [sys.executable, "-m", "container", "ps", "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"container ps: {time.monotonic() - began:.3f} s")
        began = time.monotonic()
        prune()
        print(f"prune() beside them: {time.monotonic() - began:.3f} s")
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(stop, names))
        print(f"all stopped, by 8 threads: {time.monotonic() - began:.2f} s")
        began = time.monotonic()
        while any(entry.is_owned for entry in StateManager().entries()):
            time.sleep(0.01)
        print(f"prune() of all: {len(prune().containers)}, {time.monotonic() - began:.2f} s")
    finally:
        for state in list_containers():
            if state.id in set(names):
                Container.open(state.id).destroy()


if __name__ == "__main__":
    main()
