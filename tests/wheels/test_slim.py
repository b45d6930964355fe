# SPDX-License-Identifier: Apache-2.0
"""In a small Debian root, which is a container of ours: what a CI job does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from vm.debian import archive_uri

import container
from wheels.conftest import Built, download
from wheels.machines import TREE

pytestmark = [pytest.mark.needs("root", "userns", "debootstrap"), pytest.mark.timeout(900)]

INSTALL = """
set -eu
python3 -m venv /opt/venv
/opt/venv/bin/pip --quiet install --no-index --find-links /wheels container
exec /opt/venv/bin/python /wheels/smoke.py --must-run
"""


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    """As debootstrap makes it."""
    root = folder / "slim"
    command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm"]
    subprocess.run([*command, str(root), archive_uri()], check=True)
    return root


def test_a_wheel_is_installed_and_runs_a_container_in_a_container(root: Path, built: Built) -> None:
    wheels = root / "wheels"
    wheels.mkdir()
    download("cffi>=1.17", wheels, "3.11", [])
    shutil.copy(built.native, wheels)
    shutil.copy(TREE / ".ci/smoke.py", wheels)
    config = container.Config(root, nested=True)
    result = container.run(["sh", "-c", INSTALL], config=config, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("works: run, exec, seccomp (CPython 3.11."), result.stdout
