# SPDX-License-Identifier: Apache-2.0
"""What a container sees of others that the same caller starts beside it: nothing.

Not even where it has been given the host's own procfs, which names every process there is: until
its program runs, a newcomer is a copy of the launcher, and shows nothing of it to anybody.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from system.helpers import python

import container
from container import PIPE, Config, Container, Mount, Namespaces, Process
from container._launcher import launcher_pid

pytestmark = [pytest.mark.needs("userns", "root"), pytest.mark.long]

# Attacks the children of a launcher, which /host shows, and counts who is in its own /proc.
SPY = """
import json, os, select, sys

LAUNCHER = sys.argv[1]
FILES = ("environ", "auxv", "maps", "mem", "stack", "syscall", "io", "smaps")
LINKS = ("exe", "cwd", "root", *(f"ns/{kind}" for kind in os.listdir("/proc/self/ns")))

def is_launcher(pid):
    with open(f"/host/{pid}/comm") as file:
        return file.read().startswith("container-launc")

def children():
    with open(f"/host/{LAUNCHER}/task/{LAUNCHER}/children") as file:
        return set(file.read().split())

def read(path):
    with open(path, "rb", buffering=0) as file:
        file.read(1)

def follow(directory):
    for name in os.listdir(directory):
        os.readlink(f"{directory}/{name}")

def is_seen(use, path):
    try:
        use(path)
    except PermissionError:
        return False
    return True

def attack(pid):
    # What could be seen of it before it was a program of a container's.
    found["newcomers"] += is_launcher(pid)
    for use, name in (
        *((read, name) for name in FILES),
        *((os.readlink, name) for name in LINKS),
        *((follow, name) for name in ("fd", "map_files")),
    ):
        seen = is_seen(use, f"/host/{pid}/{name}")
        if not is_launcher(pid):
            return
        found["seen" if seen else "hidden"].add(name)

found = {"seen": set(), "hidden": set(), "newcomers": 0, "own": set()}
known = {LAUNCHER}
attack(LAUNCHER)
print("up", flush=True)
while not select.select([0], [], [], 0)[0]:
    found["own"] |= {name for name in os.listdir("/proc") if name.isdigit()}
    for pid in children() - known:
        known.add(pid)
        try:
            attack(pid)
        except OSError:  # it has ended
            continue
print(json.dumps({name: sorted(v) if isinstance(v, set) else v for name, v in found.items()}))
"""


def spied_on(config: Config, newcomers: Config) -> dict[str, Any]:
    """What a container found that looked at others which are started in these configs."""
    with Container(config) as box:
        box.run(Process([*python(SPY), str(launcher_pid())], stdin=PIPE, stdout=PIPE))
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        for _ in range(300):
            container.run(["true"], config=newcomers, check=True)
        box.stdin.close()
        found: dict[str, Any] = json.loads(box.stdout.readline())
        return found


@pytest.mark.parametrize(
    "namespaces",
    # Without user namespaces of their own all are host root: nothing but that the newcomers are
    # not dumpable stands between them.
    [Namespaces(), Namespaces(user=False)],
    ids=["default", "one user namespace"],
)
def test_a_container_sees_nothing_of_those_that_start_beside_it(namespaces: Namespaces) -> None:
    others = Config(namespaces=namespaces)
    found = spied_on(replace(others, mounts=[Mount.bind("/proc", "/host", read_only=True)]), others)
    assert found["own"] == ["1"]
    assert found["seen"] == []
    assert found["newcomers"] > 30
    assert {"environ", "maps", "mem", "exe", "cwd", "root", "fd", "ns/net"} <= set(found["hidden"])
