# SPDX-License-Identifier: Apache-2.0
"""What doctor() says, beside what then really happens."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import container
from container._doctor import _SYSCTLS, _kernel, _limit
from container._launcher import launcher_pid

if TYPE_CHECKING:
    from system.conftest import OrdinaryUser

DOCTOR = [sys.executable, "-P", "-m", "container", "doctor"]
NAMESPACES = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"]
MANUAL = Path(__file__).resolve().parents[2] / "docs/troubleshooting.md"


def check_of(report: container.Report, name: str) -> container.Check:
    (found,) = (check for check in report.checks if check.name == name)
    return found


class Answer:
    """The report of a command ``container doctor --json``."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode in (0, 1), done.stderr
        self.content: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode == 0) is self.content["ok"]

    def __getitem__(self, name: str) -> dict[str, Any]:
        (found,) = (check for check in self.content["checks"] if check["name"] == name)
        return dict(found)


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def behind(script: str, *options: str) -> list[str]:
    """doctor as root of a fresh user namespace, after a script has closed something in it."""
    unshare = ["unshare", "--user", "--map-root-user", *options]
    return [*unshare, "sh", "-ec", f'{script}\nexec "$@"', "sh", *DOCTOR, "--json"]


# What works ---------------------------------------------------------------------------------------


@pytest.mark.needs("userns")
def test_a_container_runs_where_the_report_says_so() -> None:
    report = container.doctor()
    assert report.ok
    assert check_of(report, "container").ok
    container.run(["true"], check=True)


@pytest.mark.needs("userns")
@pytest.mark.parametrize("name", NAMESPACES)
def test_a_namespace_that_the_report_has_is_another_one_inside(name: str) -> None:
    assert check_of(container.doctor(), f"{name} namespace").ok
    config = container.Config(namespaces=container.Namespaces(time=name == "time"))
    link = f"/proc/self/ns/{name}"
    result = container.run(["readlink", link], config=config, text=True, check=True)
    assert result.stdout.strip() != os.readlink(link)


@pytest.mark.needs("root", "userns")
def test_the_image_that_the_report_names_is_the_one_that_runs() -> None:
    detail = check_of(container.doctor(), "launcher").detail
    image = Path(f"/proc/{launcher_pid()}/exe").read_bytes()
    assert f" {len(image)} bytes, sha256 {hashlib.sha256(image).hexdigest()}, PSS " in detail
    assert ("sealed memfd" in detail) == ("/memfd:" in os.readlink(f"/proc/{launcher_pid()}/exe"))


@pytest.mark.needs("root", "userns")
def test_root_learns_that_containers_have_a_range_of_ids() -> None:
    assert "leases a range" in check_of(container.doctor(), "id maps").detail
    uid_map = container.run(["cat", "/proc/self/uid_map"], text=True, check=True).stdout
    assert uid_map.split()[2] == "65536"


def test_an_ordinary_user_learns_of_the_single_id_and_what_follows(as_user: OrdinaryUser) -> None:
    detail = Answer(as_user([*DOCTOR, "--json"]))["id maps"]["detail"]
    assert f"host uid {as_user.uid} is root inside" in detail
    assert "supplementary groups cannot be dropped" in detail


# What does not work -------------------------------------------------------------------------------


def test_without_user_namespaces_no_container_runs_and_the_sysctl_is_named(
    as_user: OrdinaryUser,
) -> None:
    answer = Answer(as_user(behind("echo 0 >/proc/sys/user/max_user_namespaces")))
    assert not answer.content["ok"]
    assert not answer["container"]["ok"]
    assert not answer["user namespace"]["ok"]
    assert answer["mnt namespace"]["ok"]
    limit = answer["sysctl user.max_user_namespaces"]
    assert not limit["ok"]
    assert "user.max_user_namespaces=" in limit["remedy"]


@pytest.mark.parametrize("name", ["net", "ipc", "uts", "cgroup"])
def test_the_one_namespace_that_cannot_be_made_is_named(name: str, as_user: OrdinaryUser) -> None:
    answer = Answer(as_user(behind(f"echo 0 >/proc/sys/user/max_{name}_namespaces")))
    assert not answer.content["ok"]
    bad = [each for each in NAMESPACES if not answer[f"{each} namespace"]["ok"]]
    assert bad == [name, "time"]  # time is not tried then
    assert f"user.max_{name}_namespaces is 0" in answer[f"{name} namespace"]["detail"]


@pytest.mark.parametrize("name", ["net", "ipc", "uts", "cgroup"])
def test_the_one_namespace_of_which_there_are_too_many_is_named(
    name: str, as_user: OrdinaryUser
) -> None:
    script = f"echo 1 >/proc/sys/user/max_{name}_namespaces"
    answer = Answer(as_user(behind(script, f"--{name}")))  # here is the one
    assert not answer.content["ok"]
    bad = [each for each in NAMESPACES if not answer[f"{each} namespace"]["ok"]]
    assert bad == [name, "time"]
    assert f"Namespaces({name}=False)" in answer[f"{name} namespace"]["remedy"]


def test_a_container_runs_without_time_namespaces_and_their_lack_is_named(
    as_user: OrdinaryUser,
) -> None:
    answer = Answer(as_user(behind("echo 0 >/proc/sys/user/max_time_namespaces")))
    assert answer.content["ok"]
    assert [each for each in NAMESPACES if not answer[f"{each} namespace"]["ok"]] == ["time"]


def test_a_chroot_is_a_cause_against_the_user_namespace(as_user: OrdinaryUser) -> None:
    (as_user.home / "top").mkdir()
    as_user.own(as_user.home)
    command = behind(f"mount --rbind / {as_user.home}/top", "--mount")
    # Not to the real root: that would be none.
    command[-len(DOCTOR) - 1 : -len(DOCTOR) - 1] = ["chroot", f"{as_user.home}/top"]
    answer = Answer(as_user(command))
    assert not answer.content["ok"]
    bad = [each for each in NAMESPACES if not answer[f"{each} namespace"]["ok"]]
    assert bad == ["user", "time"]
    assert "chroot" in answer["user namespace"]["remedy"]


def test_a_proc_of_another_pid_namespace_is_recognised(as_user: OrdinaryUser) -> None:
    answer = Answer(as_user(behind("true", "--pid", "--fork")))
    assert not answer["proc"]["ok"]


def test_a_masked_proc_is_recognised(as_user: OrdinaryUser) -> None:
    answer = Answer(as_user(behind("mount --types tmpfs none /proc/irq", "--mount")))
    assert not answer.content["ok"]
    assert answer["user namespace"]["ok"]
    assert "masked" in answer["container"]["remedy"]


@pytest.mark.needs("root", "userns", "kernel>=6.3")
def test_where_memfds_cannot_be_executed_the_launcher_is_a_private_file() -> None:
    # The setting is the PID namespace's.
    script = 'echo 2 >/proc/sys/vm/memfd_noexec; exec "$@"'
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-ec", script, "sh"]
    answer = Answer(run([*unshare, *DOCTOR, "--json"]))
    assert answer.content["ok"]
    assert "a private file in /" in answer["launcher"]["detail"]
    assert not answer["sysctl vm.memfd_noexec"]["ok"]


@pytest.mark.needs("root", "userns", "overlay")
def test_a_file_system_that_cannot_be_id_mapped_is_named(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    script = 'mount -t tmpfs none "$1"; mkdir "$1/u" "$1/w" "$1/m"; ' + (
        'mount -t overlay -o lowerdir=/usr,upperdir="$1/u",workdir="$1/w" none "$1/m"; '
        'export TMPDIR="$1/m"; shift; exec "$@"'
    )
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(tmp_path), *DOCTOR, "--json"]
    answer = Answer(run(command))
    mapped = answer["idmapped mounts"]
    assert not mapped["ok"]
    assert "(overlay) cannot be a root directory" in mapped["detail"]
    assert answer.content["ok"]


# Becomes an ordinary user with one more group, in a process that root has prepared, for a group
# can only be had so; then asks doctor, and a container for a file of that group.
WITH_A_GROUP = """
import os, sys
sys.path.insert(0, sys.argv[1])
import container, needs
container.doctor()  # loads everything that the ordinary user may not reach
os.setgroups([int(sys.argv[3])])
os.setresgid(*[needs.ORDINARY_ID] * 3)
os.setresuid(*[needs.ORDINARY_ID] * 3)
needs.Kernel().set_dumpable()
print(container.run(["cat", "/file"], binds=[sys.argv[2] + ":/file"], text=True).stdout, end="")
(check,) = (c for c in container.doctor().checks if c.name == "supplementary groups")
print(check.ok, check.detail)
"""


@pytest.mark.needs("root", "rootless")
def test_a_group_that_the_report_names_opens_its_files_to_a_container() -> None:
    group = 47112
    tests = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory(prefix="tests-") as directory:
        os.chmod(directory, 0o755)
        file = Path(directory, "file")
        file.write_text("of the group\n")
        file.chmod(0o640)
        os.chown(file, 0, group)
        command = [sys.executable, "-P", "-c", WITH_A_GROUP, tests, str(file), str(group)]
        done = run(command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "of the group"
    assert re.match(rf"False .*\b{group}\b", done.stdout.splitlines()[1])


# The report ---------------------------------------------------------------------------------------


@pytest.mark.needs("userns")
def test_the_report_survives_pickle_and_becomes_json_and_text() -> None:
    report = container.doctor()
    assert pickle.loads(pickle.dumps(report)) == report
    content = json.loads(report.to_json())
    assert content["ok"] is report.ok
    assert (content["kernel"], content["uid"]) == (os.uname().release, os.geteuid())
    assert [container.Check(**check) for check in content["checks"]] == list(report.checks)
    text = str(report)
    assert text.startswith(f"container {container.__version__}, Linux {os.uname().release} ")
    assert all(check.name in text and check.detail in text for check in report.checks)
    assert text.endswith("\nA container runs here.")


@pytest.mark.needs("userns")
def test_the_command_prints_the_report_and_says_by_its_status_that_a_container_runs() -> None:
    done = run(DOCTOR)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nA container runs here.\n")


@pytest.mark.needs("userns")
def test_the_manual_has_a_section_for_every_check_and_for_nothing_else() -> None:
    sections = re.findall(r"^## (.*)$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert sections == [check.name for check in container.doctor().checks]


# Judgements that this machine cannot provoke ------------------------------------------------------


@pytest.mark.parametrize(
    "release, ok",
    [("5.13.19", False), ("5.14.0", True), ("5.14-rc1", True), ("6.1.0-44-amd64", True)],
)
def test_a_kernel_is_judged_by_its_release(release: str, ok: bool) -> None:
    assert _kernel(release).ok is ok


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("sysctl", _SYSCTLS, ids=lambda sysctl: sysctl.name)
def test_a_sysctl_is_no_good_with_its_bad_value_and_for_those_whom_it_concerns(
    sysctl: Any, root: bool
) -> None:
    assert _limit(sysctl, None, root).ok
    assert _limit(sysctl, {"0": "1", "1": "0", "2": "1"}[sysctl.bad], root).ok
    bad = _limit(sysctl, sysctl.bad, root)
    assert bad.ok is (root and not sysctl.for_root)
    assert (bad.remedy is None) is (bad.ok or sysctl.remedy is None)


def test_a_text_for_people_has_no_control_characters() -> None:
    check = container.Check("container", True, "\x1b[31mred")
    text = str(container.Report("1", "6.1", "x86_64", "3.11", 0, (check,)))
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text


def test_every_remedy_that_sets_a_sysctl_sets_the_one_that_is_bad() -> None:
    for sysctl in _SYSCTLS:
        if (sysctl.remedy or "").startswith("sysctl"):
            assert f"sysctl -w {sysctl.name}=" in (sysctl.remedy or "")
