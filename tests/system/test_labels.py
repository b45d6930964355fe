# SPDX-License-Identifier: Apache-2.0
"""Labels of Linux security modules hold: a profile and a policy that forbid something, loaded.

AppArmor is what Debian's kernels boot with, and so what the virtual machine of docs/testing-vm.md
has. SELinux has to be asked for on the kernel's command line, for a machine of its own.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system.conftest import OrdinaryUser

import container
from container import PIPE, Config, Container, LaunchError, Namespaces, Process

pytestmark = pytest.mark.needs("vm", "root", "userns")  # it would be the whole machine's

SECURITY = Path("/sys/kernel/security")
NAME = "container-test-wall"
# Everything, but for two things that are allowed without it.
PROFILE = f"""
profile {NAME} flags=(attach_disconnected) {{
  file, network, capability, signal, ptrace, mount, umount, unix,
  deny /etc/group r,
  deny /tmp/** w,
}}
"""
TRY = """
cat /proc/self/attr/apparmor/current
cat /etc/group >/dev/null && echo read
echo x >/tmp/x && echo written
echo x >/root/x && echo elsewhere
"""


def parse(*options: str) -> None:
    command = ["apparmor_parser", "--skip-cache", *options]
    done = subprocess.run(command, input=PROFILE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def profile() -> Iterator[str]:
    """Of AppArmor, loaded."""
    mounted = os.path.ismount(SECURITY)
    if not mounted:
        subprocess.run(["mount", "-t", "securityfs", "none", str(SECURITY)], check=True)
    try:
        parse("--replace")
        yield NAME
        parse("--remove")
    finally:
        if not mounted:
            subprocess.run(["umount", str(SECURITY)], check=True)


def tried(**options: Any) -> list[str]:
    result = container.run(["sh", "-c", TRY], config=Config(**options), text=True)
    return str(result.stdout).splitlines()


@pytest.mark.needs("apparmor", "apparmor_parser")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_new_privileges": False},
        pytest.param({"namespaces": Namespaces(user=False)}, marks=pytest.mark.long),
        pytest.param({"namespaces": Namespaces(pid=False)}, marks=pytest.mark.long),
        pytest.param({"proc_options": "subset=pid"}, marks=pytest.mark.long),
        pytest.param({"nested": True}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_what_the_profile_forbids_is_forbidden(profile: str, options: dict[str, Any]) -> None:
    assert tried(**options) == ["unconfined", "read", "written", "elsewhere"]
    assert tried(apparmor_profile=profile, **options) == [f"{profile} (enforce)", "elsewhere"]


@pytest.mark.needs("apparmor", "apparmor_parser")
@pytest.mark.parametrize("init", [False, True])
def test_the_profile_is_that_of_all_that_runs_in_it_seen_from_outside(
    profile: str, init: bool
) -> None:
    with Container(Config(apparmor_profile=profile)) as box:
        script = "sleep 1000 & echo up; wait"
        box.run(Process(["sh", "-c", script], init=init, stdout=PIPE))
        assert box.stdout is not None
        assert box.stdout.readline() == b"up\n"
        children = Path(f"/proc/{box.pid}/task/{box.pid}/children").read_text().split()
        for pid in (str(box.pid), *children):
            label = Path(f"/proc/{pid}/attr/apparmor/current").read_text()
            assert label == f"{profile} (enforce)\n"


@pytest.mark.needs("apparmor", "apparmor_parser", "rootless")
def test_an_ordinary_users_container_has_it_too(profile: str, as_user: OrdinaryUser) -> None:
    done = as_user(
        f"""
        from container import *
        for options in ({{}}, {{"apparmor_profile": "{profile}"}}):
            result = run(["sh", "-c", {TRY!r}], config=Config(**options), text=True)
            print(result.stdout.split())
        """
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['unconfined', 'read', 'written', 'elsewhere']",
        f"['{profile}', '(enforce)', 'elsewhere']",
    ]


# SELinux ------------------------------------------------------------------------------------------

# The least that a kernel takes for a policy: programs that nobody has confined may do all of this,
# and those in the box may not write files. Bounded by them, the box may be entered in spite of
# no_new_privs and from a mount that is nosuid.
FILES = "read execute entrypoint open getattr execute_no_trans map ioctl lock"
WRITES = "write append create unlink setattr"
STARTS = "transition siginh noatsecure rlimitinh"
POLICY = f"""
(handleunknown allow)
(class file ({FILES} {WRITES}))
(class process ({STARTS} setexec fork sigchld dyntransition))
(classorder (unordered file process))
(sid kernel) (sid security) (sid unlabeled) (sidorder (kernel security unlabeled))
(user u) (role r) (type free_t) (type box_t) (type file_t) (roletype r free_t)
(roletype r box_t) (roletype r file_t) (roletype object_r file_t) (role object_r)
(userrole u r) (userrole u object_r)
(sensitivity s0) (sensitivityorder (s0)) (userlevel u (s0)) (userrange u ((s0) (s0)))
(sidcontext kernel (u r free_t ((s0) (s0))))
(sidcontext security (u r file_t ((s0) (s0))))
(sidcontext unlabeled (u r file_t ((s0) (s0))))
(typebounds free_t box_t)
(allow free_t free_t (process ({STARTS} setexec fork sigchld dyntransition)))
(allow free_t box_t (process ({STARTS})))
(allow box_t box_t (process (fork sigchld)))
(allow box_t free_t (process (sigchld)))
(allow free_t file_t (file ({FILES} {WRITES})))
(allow free_t free_t (file ({FILES} {WRITES})))
(allow free_t box_t (file (read write open getattr)))
(allow box_t box_t (file (read open getattr)))
(allow box_t file_t (file ({FILES})))
"""
SELINUX = Path("/sys/fs/selinux")
TRY_SELINUX = """
cat /proc/self/attr/current && echo
cat /etc/passwd >/dev/null && echo read
: >>/tmp/x && echo written
"""


@pytest.fixture(scope="module")
def enforced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The policy, which stays as long as the machine runs; and that it is enforced."""
    directory = tmp_path_factory.mktemp("selinux")
    source, policy = directory / "policy.cil", directory / "policy"
    source.write_text(POLICY)
    compile_it = ["secilc", "--mls", "false", "--policyvers", "33", "--output", str(policy)]
    subprocess.run([*compile_it, "--filecontext", "/dev/null", str(source)], check=True)
    mounted = os.path.ismount(SELINUX)
    if not mounted:
        subprocess.run(["mount", "-t", "selinuxfs", "none", str(SELINUX)], check=True)
    try:
        (SELINUX / "load").write_bytes(policy.read_bytes())
        (SELINUX / "enforce").write_text("1")
        yield
        (SELINUX / "enforce").write_text("0")
    finally:
        if not mounted:
            subprocess.run(["umount", str(SELINUX)], check=True)


@pytest.mark.needs("selinux", "secilc")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_new_privileges": False},
        {"namespaces": Namespaces(user=False)},
        {"proc_options": "subset=pid"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("enforced")
def test_what_the_policy_forbids_is_forbidden(options: dict[str, Any]) -> None:
    def lines_of(**more: Any) -> list[str]:
        config = Config(**options, **more)
        result = container.run(["sh", "-c", TRY_SELINUX], config=config, text=True)
        return str(result.stdout).replace("\0", "").split()

    assert lines_of() == ["u:r:free_t", "read", "written"]
    assert lines_of(selinux_label="u:r:box_t") == ["u:r:box_t", "read"]
    with pytest.raises(LaunchError) as caught:
        lines_of(selinux_label="u:r:absent_t")
    assert (caught.value.step, caught.value.errno) == ("filesystem", errno.EINVAL)
    assert "SELinux label 'u:r:absent_t'" in str(caught.value)
