# SPDX-License-Identifier: Apache-2.0
"""Runs inside the machine (`run.py --selftest`) and proves that it is complete."""

import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import needs
import pytest

CGROUP = Path("/sys/fs/cgroup")
SYSTEMD = os.environ["CONTAINER_VM"] == "systemd"
USER = os.environ["CONTAINER_VM_USER"]
PLAIN_USER = os.environ["CONTAINER_VM_PLAIN_USER"]

pytestmark = pytest.mark.kernel

HOG = "import os; os.write(1, b'x'); data = bytearray(os.urandom(1) * (96 << 20)); print(len(data))"

NAT = """
table ip vmcheck {
    map ports {
        type inet_service : ipv4_addr . inet_service
        elements = { 8080 : 10.9.0.2 . 80 }
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        dnat ip to tcp dport map @ports
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.9.0.0/24 masquerade
    }
}
"""


def as_user(name: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` as an ordinary user with its session's environment."""
    entry = pwd.getpwnam(name)
    env = {
        "HOME": entry.pw_dir,
        "PATH": os.environ["PATH"],
        "XDG_RUNTIME_DIR": f"/run/user/{entry.pw_uid}",
    }
    return subprocess.run(
        command,
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        env=env,
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
    )


def in_cgroup(cgroup: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` in `cgroup`."""
    enter = f'echo $$ >"{cgroup}/cgroup.procs" && exec "$@"'
    return subprocess.run(
        ["sh", "-c", enter, "sh", *command], text=True, capture_output=True, check=False
    )


def own_cgroup() -> Path:
    """Where root may make cgroups: the top, or the delegated cgroup of the service."""
    (line,) = Path("/proc/self/cgroup").read_text().splitlines()
    return CGROUP / line.removeprefix("0::/")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup with every controller; a service must first empty its own cgroup."""
    top = own_cgroup()
    if top.name != "leaf" and SYSTEMD:
        (top / "leaf").mkdir(exist_ok=True)
        for pid in (top / "cgroup.procs").read_text().split():
            (top / "leaf/cgroup.procs").write_text(pid)
    top = top.parent if top.name == "leaf" else top
    if SYSTEMD:
        (top / "cgroup.subtree_control").write_text("+cpu +io +memory +pids")
    made = Path(tempfile.mkdtemp(prefix="vmcheck-", dir=top))
    yield made
    made.rmdir()


def test_init_is_the_one_asked_for() -> None:
    assert (Path("/proc/1/comm").read_text() == "systemd\n") is SYSTEMD


def test_cgroup_v2_has_every_controller() -> None:
    controllers = set((CGROUP / "cgroup.controllers").read_text().split())
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= controllers


@pytest.mark.skipif(SYSTEMD, reason="systemd enables what its units need")
def test_children_of_the_top_cgroup_have_every_controller() -> None:
    enabled = (CGROUP / "cgroup.subtree_control").read_text().split()
    assert enabled == (CGROUP / "cgroup.controllers").read_text().split()


def test_no_cgroup_v1_is_mounted() -> None:
    kinds = {line.split(" - ")[1].split()[0] for line in mountinfo()}
    assert "cgroup2" in kinds
    assert "cgroup" not in kinds


def test_memory_limit_kills_a_hog(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text(str(32 << 20))
    done = in_cgroup(cgroup, sys.executable, "-S", "-E", "-c", HOG)
    assert done.stdout == "x"
    assert done.returncode == -signal.SIGKILL
    events = dict(line.split() for line in (cgroup / "memory.events").read_text().splitlines())
    assert int(events["oom_kill"]) == 1


def test_without_a_limit_the_hog_lives(cgroup: Path) -> None:
    done = in_cgroup(cgroup, sys.executable, "-S", "-E", "-c", HOG)
    assert done.stdout == f"x{96 << 20}\n"


def test_nft_map_with_masquerade_loads() -> None:
    subprocess.run(["nft", "-f", "-"], input=NAT, text=True, check=True)
    try:
        shown = subprocess.run(
            ["nft", "list", "table", "ip", "vmcheck"], text=True, check=True, capture_output=True
        ).stdout
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "vmcheck"], check=True)
    assert "8080 : 10.9.0.2 . 80" in shown
    assert "masquerade" in shown


def test_tun_and_loop_devices_are_there() -> None:
    for path in ("/dev/net/tun", "/dev/loop-control"):
        assert stat.S_ISCHR(os.stat(path).st_mode)
        os.close(os.open(path, os.O_RDWR))


def test_scratch_is_ext4_and_holds_the_temporary_files() -> None:
    (line,) = [line for line in mountinfo() if line.split()[4] == os.environ["TMPDIR"]]
    assert line.split(" - ")[1].split()[:2] == ["ext4", "/dev/vda"]
    assert os.stat(tempfile.gettempdir()).st_dev == os.stat(os.environ["TMPDIR"]).st_dev


@pytest.mark.parametrize("need", os.environ["CONTAINER_MUST_RUN"].split(","))
def test_what_must_not_be_skipped_is_there(machine: needs.Machine, need: str) -> None:
    assert machine.missing(need) is None


@pytest.mark.parametrize("name", [USER, PLAIN_USER])
def test_user_has_user_namespaces_and_overlay_in_them(name: str) -> None:
    script = (
        'cd "$HOME" && mkdir -p o/lower o/upper o/work o/merged && echo low >o/lower/file'
        " && mount -t overlay -o userxattr,lowerdir=o/lower,upperdir=o/upper,workdir=o/work"
        " overlay o/merged && echo up >o/merged/file && cat o/lower/file o/upper/file"
    )
    done = as_user(name, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script)
    assert (done.stdout, done.stderr) == ("low\nup\n", "")


def test_user_with_ranges_gets_them_by_newuidmap() -> None:
    entry = pwd.getpwnam(USER)
    done = as_user(
        USER, "unshare", "--map-root-user", "--map-auto", "cat", "/proc/self/uid_map", "/etc/subuid"
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    (subuid,) = [line[0] for line in lines if line[0].startswith(f"{USER}:")]
    start = subuid.split(":")[1]
    assert ["0", str(entry.pw_uid), "1"] in lines
    assert any(line[1:2] == [start] and int(line[2]) >= 65535 for line in lines), done


def test_user_without_ranges_gets_none() -> None:
    done = as_user(PLAIN_USER, "unshare", "--map-root-user", "--map-auto", "true")
    assert done.returncode != 0


def test_users_reach_the_interpreter_and_the_tree() -> None:
    done = as_user(PLAIN_USER, sys.executable, "-c", f"open({__file__!r}).close(); import pytest")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not SYSTEMD, reason="the machine has no systemd this time")
def test_user_scope_delegates_memory_and_pids() -> None:
    script = (
        'c=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) && mkdir "$c/leaf" && cat'
        ' "$c/cgroup.controllers" && echo $$ >"$c/leaf/cgroup.procs" && echo +memory +pids'
        ' >"$c/cgroup.subtree_control" && mkdir "$c/box" && echo 33554432 >"$c/box/memory.max"'
        ' && cat "$c/box/memory.max"'
    )
    done = as_user(
        USER, "systemd-run", "--user", "--scope", "-q", "-p", "Delegate=yes", "sh", "-c", script
    )
    assert done.returncode == 0, done
    controllers, limit = done.stdout.splitlines()
    assert {"memory", "pids"} <= set(controllers.split())
    assert limit == "33554432"


def mountinfo() -> list[str]:
    """The lines of /proc/self/mountinfo."""
    return Path("/proc/self/mountinfo").read_text().splitlines()
