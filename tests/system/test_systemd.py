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
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        env={"XDG_RUNTIME_DIR": f"/run/user/{user.pw_uid}", "PATH": os.environ["PATH"]},
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
