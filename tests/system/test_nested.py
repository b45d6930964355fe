# SPDX-License-Identifier: Apache-2.0
"""Containers in containers, as docs/nested.md says how, and what stands against them otherwise."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from system.conftest import Identity

MANUAL = Path(__file__).resolve().parents[2] / "docs/nested.md"

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

# What the innermost one tells, and every one around it passes on.
NEST = """
import json, os, sys
import container
from container import Config, HostRoot

package = os.path.dirname(os.path.dirname(container.__file__))
config = {config}

def enter(depth):
    if depth == 0:
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(json.dumps([
            os.getpid(), os.listdir("/home"), os.stat("/proc/sys/kernel").st_uid,
            int(status["Seccomp"]), int(status["NoNewPrivs"]),
        ]))
        return
    source = "\\n".join(sys.orig_argv[-2:-1])
    command = [sys.executable, "-P", "-c", source, str(depth - 1)]
    env = dict(PYTHONPATH=package)
    result = container.run(command, config=config, env=env, text=True, timeout=50)
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    sys.exit(result.returncode)

enter(int(sys.argv[1]))
"""


def manual_config() -> str:
    """The Config that the manual names."""
    (found,) = re.findall(r"^config = (Config\(.*\))$", MANUAL.read_text(), re.MULTILINE)
    return str(found)


def nest(who: Identity, depth: int, config: str) -> tuple[int, str, str]:
    """Exit status, what the innermost container told, and what was complained of."""
    source = NEST.replace("{config}", config)
    (told,) = who(
        f"""
        done = subprocess.run([sys.executable, "-P", "-c", {source!r}, "{depth}"],
            capture_output=True, text=True)
        tell([done.returncode, done.stdout, done.stderr])
        """,
        timeout=100,
    )
    status, output, complaint = told
    return status, output, complaint


def test_three_containers_in_one_another_have_their_walls(who: Identity) -> None:
    status, output, complaint = nest(who, 3, manual_config())
    assert (status, complaint) == (0, "")
    # PID 1, no home of the host, the machine's root is nobody, a filter, no new privileges.
    pid, homes, *rest = json.loads(output)
    assert (pid, rest) == (1, [65534, 2, 1])
    # But for what the interpreter that runs this lies in.
    assert set(homes) <= {part for part in (*Path(sys.prefix).parts, *MANUAL.parts)}
    assert homes == [] or Path(sys.prefix).is_relative_to("/home")


def test_a_container_that_is_not_said_to_be_nested_has_none_inside(who: Identity) -> None:
    status, output, complaint = nest(who, 2, "Config(HostRoot(extra=[package]))")
    assert (status, output) == (1, "")
    assert "container.LaunchError: launcher: " in complaint
    assert "denies clone3" in complaint
    assert "Config(nested=True)" in complaint
