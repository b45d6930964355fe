# SPDX-License-Identifier: Apache-2.0
"""An error names the cause where that lies in the machine and is sure, and names no other."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.helpers import caller, caller_argv

import container
from container import LaunchError, _hints

if TYPE_CHECKING:
    from system.conftest import OrdinaryUser

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

TELL = """
try:
    container.run(["true"], **OPTIONS)
    tell(None)
except LaunchError as error:
    tell([error.step, errno.errorcode.get(error.errno), error.hint])
"""


def told_behind(
    as_user: OrdinaryUser, script: str, *unshare: str, prepare: str = "", options: str = "{}"
) -> tuple[str, str | None, str]:
    """What the error says as root of a user namespace in which a script has closed something."""
    program = caller_argv(f"OPTIONS = {options}\n{prepare}\n{TELL}")
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        *unshare,
        "sh",
        "-ec",
        f'{script}\nexec "$@"',
    ]
    done = as_user([*command, "sh", *program])
    assert (done.returncode, done.stderr) == (0, "")
    step, number, hint = json.loads(done.stdout)
    return step, number, hint


def test_the_limit_of_user_namespaces_is_named(as_user: OrdinaryUser) -> None:
    step, number, hint = told_behind(as_user, "echo 0 >/proc/sys/user/max_user_namespaces")
    assert (step, number) == ("clone", "ENOSPC")
    assert "user.max_user_namespaces is 0" in hint


@pytest.mark.parametrize("place", ["/proc/irq", "/sys/firmware"])
def test_what_is_masked_outside_is_named(as_user: OrdinaryUser, place: str) -> None:
    step, number, hint = told_behind(as_user, f"mount -t tmpfs none {place}", "--mount")
    assert (step, number) == ("filesystem", "EPERM")
    assert f"({place})" in hint
    assert "unmask=ALL" in hint


def test_a_chroot_is_named(as_user: OrdinaryUser) -> None:
    (as_user.home / "top").mkdir()
    as_user.own(as_user.home)
    # Where the new root is a mount point itself, nothing tells for sure.
    script = f"""
        for each in /*; do
            if [ -L $each ]; then cp -P $each {as_user.home}/top
            elif [ -d $each ]; then
                mkdir {as_user.home}/top$each; mount --rbind $each {as_user.home}/top$each
            fi
        done
        exec chroot {as_user.home}/top "$@"
    """
    step, number, hint = told_behind(as_user, script, "--mount")
    assert (step, number) == ("clone", "EPERM")
    assert "chroot" in hint


# A filter that denies clone3 as Docker's does: load the number, compare, ENOSYS or allow.
FILTER = """
import struct
class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_char_p)]
code = b"".join(struct.pack("HBBI", *each) for each in (
    (0x20, 0, 0, 0), (0x15, 0, 1, 435), (0x06, 0, 0, 0x00050000 | errno.ENOSYS),
    (0x06, 0, 0, 0x7FFF0000)))
check(libc.prctl(38, 1, 0, 0, 0))
check(libc.prctl(22, 2, ctypes.byref(Program(4, code))))
"""


def test_a_filter_of_an_outer_container_is_named(as_user: OrdinaryUser) -> None:
    step, number, hint = told_behind(as_user, ":", prepare=FILTER)
    assert (step, number) == ("launcher", None)  # it makes a process of its own first
    assert "denies clone3" in hint


@pytest.mark.needs("root", "kernel>=6.3")
def test_that_nothing_can_be_executed_from_is_named() -> None:
    # Bound onto themselves: the interpreter that runs the tests, or the tree, may lie below one.
    kept = " ".join({sys.prefix, str(Path(container.__file__).parent)})
    script = f"""
        echo 2 >/proc/sys/vm/memfd_noexec
        for each in /run /dev/shm /tmp /var/tmp; do
            mount --bind $each $each; mount -o remount,bind,noexec $each
        done
        for each in {kept}; do mount --bind $each $each; mount -o remount,bind,exec $each; done
        unset XDG_RUNTIME_DIR; exec "$@"
    """
    unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec", script, "sh"]
    program = caller_argv(f"OPTIONS = {{}}\n{TELL}")
    done = subprocess.run([*unshare, *program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"launcher"' in done.stdout
    assert "without noexec" in done.stdout


@pytest.mark.needs("root", "idmap", "busybox", "overlay")
def test_a_root_where_nothing_can_be_executed_is_named(fresh_root: Path) -> None:
    for command in (["--bind", str(fresh_root)], ["-o", "remount,bind,noexec"]):
        subprocess.run(["mount", *command, str(fresh_root)], check=True)
    try:
        with pytest.raises(LaunchError) as caught:
            container.run(["true"], root=fresh_root)
        assert (caught.value.step, caught.value.errno) == ("exec", errno.EACCES)
        assert "noexec" in str(caught.value.hint)
    finally:
        subprocess.run(["umount", fresh_root], check=True)
    # What is only forbidden has another cause.
    (fresh_root / "bin/busybox").chmod(0o644)
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], root=fresh_root)
    assert (caught.value.step, caught.value.hint) == ("exec", None)


# Judgements that this machine cannot provoke ------------------------------------------------------


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have the machine say this."""

    def say(sysctls: dict[str, str], profile: str | None = None, uid: int = 1000) -> None:
        monkeypatch.setattr(_hints, "read_sysctl", sysctls.get)
        monkeypatch.setattr(_hints, "_apparmor_profile", lambda: profile)
        monkeypatch.setattr(os, "geteuid", lambda: uid)

    yield say


APPARMOR = {"kernel.apparmor_restrict_unprivileged_userns": "1"}


def test_apparmors_restriction_is_named_at_every_step_that_it_can_fail(
    judge: Callable[..., None],
) -> None:
    judge(APPARMOR, "unconfined")
    for step in ("id-maps", "setup-ids", "network", "hostname", "filesystem", "pivot"):
        for number in (errno.EPERM, errno.EACCES):
            assert "rule 'userns,'" in str(_hints.rights_hint(step, number))
    assert "AppArmor" in str(_hints.namespace_hint(errno.EPERM))
    assert _hints.rights_hint("exec", errno.EACCES) is None
    assert _hints.rights_hint("filesystem", errno.EINVAL) is None


@pytest.mark.parametrize(
    "said",
    [
        ({}, "unconfined"),
        ({"kernel.apparmor_restrict_unprivileged_userns": "0"}, "unconfined"),
        (APPARMOR, "bwrap (unconfined)"),
        (APPARMOR, None),
        (APPARMOR, "unconfined", 0),
    ],
)
def test_apparmor_is_not_named_where_it_is_not_the_cause(
    judge: Callable[..., None], said: tuple[object, ...]
) -> None:
    judge(*said)
    assert _hints.rights_hint("filesystem", errno.EACCES) is None


def test_debians_switch_is_named_for_others_than_root(judge: Callable[..., None]) -> None:
    judge({"kernel.unprivileged_userns_clone": "0"})
    assert "kernel.unprivileged_userns_clone is 0" in str(_hints.namespace_hint(errno.EPERM))
    judge({"kernel.unprivileged_userns_clone": "0"}, uid=0)
    assert _hints.namespace_hint(errno.EPERM) is None


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.ENOSYS])
def test_what_has_another_cause_gets_no_hint(judge: Callable[..., None], number: int) -> None:
    judge({"user.max_user_namespaces": "0"})
    assert _hints.namespace_hint(number) is None


def test_nothing_that_works_here_is_said_to_be_masked() -> None:
    container.run(["true"], check=True)
    assert _hints.masked_hint("tmpfs") is None
    assert _hints.noexec_hint("/usr") is None


# A machine of the tests' own ----------------------------------------------------------------------


@pytest.fixture
def no_namespaces_for_users() -> Iterator[None]:
    switch = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if not switch.exists():
        pytest.skip("this kernel has no such switch")
    before = switch.read_text()
    switch.write_text("0\n")
    try:
        yield
    finally:
        switch.write_text(before)


@pytest.mark.needs("vm", "root")
def test_the_switch_against_users_namespaces_is_named_by_error_and_doctor(
    as_user: OrdinaryUser, no_namespaces_for_users: None
) -> None:
    done = as_user(caller_argv(f"OPTIONS = {{}}\n{TELL}"))
    assert '"clone", "EPERM"' in done.stdout
    assert "kernel.unprivileged_userns_clone is 0" in done.stdout
    done = as_user([sys.executable, "-P", "-m", "container", "doctor"])
    assert done.returncode == 1
    assert "sysctl -w kernel.unprivileged_userns_clone=1" in done.stdout
    # Root is not concerned.
    assert caller('tell(container.run(["true"]).returncode)') == [0]
