# SPDX-License-Identifier: Apache-2.0
"""Bundles of the OCI runtime-spec, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from system.helpers import parse_status

from container import PIPE, Container, LaunchError, oci

pytestmark = pytest.mark.needs("userns", "busybox")


def usual(root: Path, *args: str) -> dict[str, Any]:
    """What runtimes write for a start, but for the control groups."""
    capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")
    return {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "bundle",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            },
            {
                "destination": "/dev/mqueue",
                "type": "mqueue",
                "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "maskedPaths": ["/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys"],
        },
    }


def output_of(bundle: Path, content: dict[str, Any]) -> str:
    bundle.joinpath("config.json").write_text(json.dumps(content))
    spec = oci.load(bundle)
    assert spec.process is not None
    process = type(spec.process)(
        **{name: getattr(spec.process, name) for name in spec.process._checks} | {"stdout": PIPE}
    )
    with Container(spec.config) as box:
        box.run(process)
        assert box.stdout is not None
        output = box.stdout.read().decode()
        assert box.wait() == 0
    return output


def test_a_bundle_runs_as_its_config_says(rootdir: Path, tmp_path: Path) -> None:
    status = parse_status(output_of(tmp_path, usual(rootdir, "cat", "/proc/self/status")))
    assert int(status["CapEff"], 16) == 1 << 29 | 1 << 5 | 1 << 10
    assert (status["CapBnd"], status["CapInh"]) == (status["CapEff"], "0" * 16)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "0")
    script = "hostname; touch /x 2>/dev/null || echo read-only; ulimit -n; echo $A"
    content = usual(rootdir, "sh", "-c", script)
    content["process"]["env"].append("A=b")
    assert output_of(tmp_path, content).split() == ["bundle", "read-only", "1024", "b"]


def test_hooks_of_a_bundle_run(rootdir: Path, tmp_path: Path) -> None:
    content = usual(rootdir, "true")
    script = f"cat > {tmp_path}/state"
    content["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    output_of(tmp_path, content)
    assert json.loads((tmp_path / "state").read_text())["status"] == "creating"


@pytest.mark.needs("root", "cgroup2")
def test_a_bundle_that_shows_control_groups_shows_its_own(rootdir: Path, tmp_path: Path) -> None:
    content = usual(rootdir, "cat", "/sys/fs/cgroup/cgroup.procs")
    group = {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["nosuid", "ro"]}
    content["mounts"].append(group)
    assert output_of(tmp_path, content) == "1\n"
    content["process"]["args"] = ["sh", "-c", "echo 1 > /sys/fs/cgroup/cgroup.procs || echo no"]
    assert output_of(tmp_path, content) == "no\n"


def test_a_root_that_is_not_there_is_a_launch_error(tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as caught:
        output_of(tmp_path, usual(tmp_path / "none", "true"))
    assert caught.value.filename == str(tmp_path / "none")
