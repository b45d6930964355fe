# SPDX-License-Identifier: Apache-2.0
"""Limits for an ordinary user by a scope of the own systemd, in the machine of tests/vm."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from container import _hierarchy

pytestmark = [
    pytest.mark.needs("root", "vm"),
    pytest.mark.skipif(os.environ.get("CONTAINER_VM") != "systemd", reason="PID 1 is no systemd"),
]

PATIENCE = 60

CONNECT = """
from container._systemd import _connection, user_bus
with _connection(user_bus()): pass
"""


@pytest.fixture(scope="module", autouse=True)
def bus() -> None:
    """It is started by the first who asks for it, and stays."""
    assert as_vm_user(CONNECT).stderr == ""


PROGRAM = """
import container, json, pathlib
import container._top
from container import *
own = pathlib.Path("/proc/self/cgroup").read_text()
result = container.run(["tail", "/dev/zero"], memory="32M", pids=16)
with Container(Config(resources=Resources()), id="scoped") as box:
    box.run(Process(["sleep", "1000"]))
    box.pause()
    launcher = container._launcher.launcher_pid()
    print(json.dumps({
        "result": [result.returncode, result.oom_killed, result.usage.memory_peak],
        "state": box.state.state,
        "cgroup": pathlib.Path(f"/proc/{box.pid}/cgroup").read_text().strip(),
        "launcher": pathlib.Path(f"/proc/{launcher}/cgroup").read_text().strip(),
        "moved": own != pathlib.Path("/proc/self/cgroup").read_text(),
        "seen": [sample.name for sample in container._top.take_samples()],
    }))
"""


def as_vm_user(program: str) -> subprocess.CompletedProcess[str]:
    user = pwd.getpwnam(os.environ["CONTAINER_VM_USER"])
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{user.pw_uid}", "PATH": os.environ["PATH"]}
    return run_as(user.pw_uid, environment, program)


def as_root(program: str) -> subprocess.CompletedProcess[str]:
    return run_as(0, {"PATH": os.environ["PATH"]}, program)


def run_as(uid: int, environment: dict[str, str], program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        env=environment,
        timeout=PATIENCE,
        check=False,
    )


def scopes() -> list[str]:
    found = Path(_hierarchy.find_hierarchy().top, "user.slice").rglob("container-*.scope")
    return [str(path) for path in found]


def test_a_user_gets_limits_by_a_scope_and_nothing_is_left_of_it() -> None:
    done = as_vm_user(PROGRAM)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["result"][:2] == [-9, True]
    assert 30 << 20 < found["result"][2] <= 32 << 20
    assert found["state"] == "paused"
    scope = found["launcher"].removesuffix("/launcher")
    assert scope.endswith(".scope")
    assert found["cgroup"].startswith(f"{scope}/container/@")
    assert not found["moved"]
    assert found["seen"] == ["scoped"]
    deadline = time.monotonic() + PATIENCE
    while scopes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_the_library_that_asks_it_the_error_says_how_to_get_it() -> None:
    program = "import sys; sys.modules['jeepney'] = None; import container; "
    done = as_vm_user(program + "container.run(['true'], memory='32M')")
    assert "ControllerNotEnabledError" in done.stderr
    assert "pip install 'container[systemd]'" in done.stderr
    assert "jeepney, which systemd is asked with, is not installed" in done.stderr


SCOPE = """
import json, os, pathlib, signal, subprocess
from container import CPUResources, MemoryResources, Resources
from container._cgroup import Cgroup, make_directory
from container._limits import settings_of
from container._systemd import *

def read(path):
    return pathlib.Path(path).read_text().strip()

def reload():
    manager = [] if os.geteuid() == 0 else ["--user"]
    subprocess.run(["systemctl", *manager, "daemon-reload"], check=True)

unit = parse_cgroups_path("test-deep.slice:made:one", "unused")
shared = Resources(MemoryResources(max="64M", low="8M"))
found = {}
for round in range(2):
    sleeper = subprocess.Popen(["sleep", "1000"])
    scope = start_scope([sleeper.pid], unit, properties_of(settings_of(shared)))
    found["path"] = read(f"/proc/{sleeper.pid}/cgroup")
    inner = Cgroup(make_directory("one", ["memory", "pids"], scope))
    inner.update(shared)
    reload()
    found["low"] = read(f"{scope}/memory.low"), read(f"{inner.path}/memory.low")
    found["max"] = read(f"{scope}/memory.max"), read(f"{inner.path}/memory.max")
    found["tasks"] = read(f"{scope}/pids.max")
    update_scope(unit.name, properties_of(settings_of(Resources(MemoryResources(low="9M")))))
    found["updated"] = read(f"{scope}/memory.low")
    inner.remove()
    if round == 0:
        sleeper.kill()
    else:
        stop_scope(unit.name)
    found[f"end {round}"] = -sleeper.wait()
stop_scope(unit.name)
found["left"] = os.path.exists(scope)
try:
    start_scope([os.getpid()], Unit("made-one.scope", "no/slice"))
except Exception as error:
    found["refused"] = f"{type(error).__name__}: {error}"
stop_scope("test.slice")  # else systemd keeps it
print(json.dumps(found))
"""


@pytest.mark.parametrize("run", [as_root, as_vm_user], ids=["root", "user"])
def test_a_scope_is_made_in_its_slice_and_a_reload_lifts_no_limit_in_it(run: Any) -> None:
    """Twice with one name, at once: the second finds the first on its way out."""
    done = run(SCOPE)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["path"].endswith("/test.slice/test-deep.slice/made-one.scope/launcher")
    assert found["low"] == [str(8 << 20)] * 2
    assert found["max"] == ["max", str(64 << 20)]
    assert found["tasks"] == "max"
    assert found["updated"] == str(9 << 20)
    assert (found["end 0"], found["end 1"]) == (9, 15)
    assert not found["left"]
    assert found["refused"].startswith("_Refused: ")


LAUNCHER = """
import json, pathlib
from container import *
from container import _launcher
from container._systemd import parse_cgroups_path
launcher = _launcher._get()
scope = launcher.enter_scope(parse_cgroups_path(":test:launched", "unused"))
with Container(Config(resources=Resources(MemoryResources(max="64M")))) as box:
    box.run(Process(["sleep", "1000"]))
    group = pathlib.Path(f"/proc/{box.pid}/cgroup").read_text().strip()
    limit = box.stats().memory.max
print(json.dumps([scope, group, limit]))
"""


@pytest.mark.parametrize(
    ("run", "above"), [(as_root, "system.slice"), (as_vm_user, "user.slice")], ids=["root", "user"]
)
def test_a_launcher_in_a_scope_has_its_containers_in_there(run: Any, above: str) -> None:
    done = run(LAUNCHER)
    assert (done.returncode, done.stderr) == (0, "")
    scope, group, limit = json.loads(done.stdout)
    assert scope.endswith(f"/{above}/test-launched.scope")
    assert group.startswith(f"0::{scope.removeprefix('/sys/fs/cgroup')}/container/@")
    assert limit == 64 << 20
    deadline = time.monotonic() + PATIENCE
    while Path(scope).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if run is as_vm_user:  # systemd keeps slices that it has made
        assert run("from container._systemd import *; stop_scope('user.slice')").stderr == ""
