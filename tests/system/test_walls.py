# SPDX-License-Identifier: Apache-2.0
"""What is masked, read-only, set or forbidden in a container: asked of the kernel."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from system.helpers import attempt, host_mounts, lines, mounts_inside, shell, status_inside, tree

import container
from container import (
    DEVNULL,
    PIPE,
    Capabilities,
    Config,
    Container,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    SeccompProfile,
    SyscallRule,
    UnsupportedError,
    _labels,
)
from container._launcher import RowTable, StartFlag
from container._plan import launch_plan, make_plan
from container._rootfs import Op, Row
from container._streams import open_stdio
from container._walls import MASKED_PATHS, READONLY_PATHS

pytestmark = [pytest.mark.needs("userns"), pytest.mark.kernel]

COVER = {"ro", "nosuid", "nodev", "noexec"}
THERE = [path for path in MASKED_PATHS if os.path.exists(path)]
READONLY_THERE = [path for path in READONLY_PATHS if os.path.exists(path)]
WITH_ADMIN = Capabilities(*[[*container.default_capabilities(), "SYS_ADMIN"]] * 3)


# Masks --------------------------------------------------------------------------------------------


def test_this_kernel_has_something_to_mask() -> None:
    assert len(THERE) > 2
    assert "/proc/sys" in READONLY_THERE


@pytest.mark.parametrize("user", [None, "1000:1000"])
def test_masked_paths_are_empty_and_cannot_be_written(user: str | None) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("an ordinary user's container has a single id")
    script = "exec 2>&1\n"
    for path in THERE:
        new, words = (f"{path}/new", "ls -A") if os.path.isdir(path) else (path, "cat")
        script += f"echo == {path}; {words} {path}; echo -- ; (: >{new}); chmod 777 {path}\n"
    sections = attempt(script, user=user).stdout.split("== ")[1:]
    assert [section.splitlines()[0] for section in sections] == THERE
    refusals = ("Read-only file system", "Permission denied", "Operation not permitted")
    for section in sections:
        path, *content, wrote, changed = section.splitlines()
        assert content == ["--"], path
        assert wrote.endswith(refusals)
        assert changed.endswith(refusals)
        if user is None:
            assert "Read-only file system" in wrote
            assert "Read-only file system" in changed


def test_the_mounts_of_masked_and_read_only_paths_have_their_flags() -> None:
    mounts = mounts_inside()
    assert {path for path in mounts if path.startswith(("/proc/", "/sys/"))} == {
        *THERE,
        *READONLY_THERE,
    }
    for path in (*THERE, *READONLY_THERE):
        assert mounts[path] >= COVER, path


def test_all_masks_are_one_file_system() -> None:
    rows = [line.split(" ") for line in lines("cat /proc/self/mountinfo")]
    assert len({row[2] for row in rows if row[4] in THERE}) == 1


def test_read_only_paths_can_be_read_and_not_written() -> None:
    result = attempt("cat /proc/sys/kernel/ostype; echo 1 >/proc/sys/net/ipv4/ip_forward")
    assert result.stdout == "Linux\n"
    assert "Read-only file system" in result.stderr
    # It is the mount that refuses: the file is that of the network's owner.
    rights = [*container.default_capabilities(), "NET_ADMIN"]
    free = Config(readonly_paths=(), capabilities=Capabilities(rights, rights, rights))
    shell("echo 1 >/proc/sys/net/ipv4/ip_forward", config=free)


def test_no_path_is_covered_where_none_is_asked_for() -> None:
    mounts = mounts_inside(config=Config(masked_paths=(), readonly_paths=()))
    assert [path for path in mounts if path.startswith(("/proc/", "/sys/"))] == []


@pytest.fixture
def image(fresh_root: Path) -> Path:
    """A root directory with something to hide, and traps for whoever hides it."""
    for name in ("secret", "decoy"):
        (fresh_root / "etc" / name).write_text(name)
    (fresh_root / "data/below").mkdir(parents=True)
    (fresh_root / "data/file").write_text("file")
    (fresh_root / "etc/link").symlink_to("secret")
    (fresh_root / "etc/dangling").symlink_to("/nowhere/at/all")
    (fresh_root / "etc/loop").symlink_to("loop")
    # CVE-2025-31133: what would be bound over a file, were it the image's.
    (fresh_root / "dev/null").symlink_to("/etc/decoy")
    return fresh_root


def test_paths_of_the_image_are_masked_too_and_its_null_is_not_used(image: Path) -> None:
    before = tree(image)
    config = Config(masked_paths=["/etc/secret", "/data", "/etc/missing", "/etc/secret/below"])
    script = "cat /etc/secret; ls -A /data; echo x >/etc/secret; echo x >/data/new; cat /etc/decoy"
    result = attempt(script, root=image, config=config)
    assert result.stdout == "decoy"
    assert result.stderr.count("Read-only file system") == 2
    assert tree(image) == before


def test_a_link_to_be_masked_leads_where_it_leads_in_the_container(image: Path) -> None:
    (image / "etc/up").symlink_to("../../../../etc/decoy")
    config = Config(masked_paths=["/etc/link", "/etc/dangling", "/etc/up"])
    script = "cat /etc/secret /etc/link /etc/up /etc/decoy; echo end"
    assert shell(script, root=image, config=config) == "end\n"


@pytest.mark.parametrize("name", ["masked_paths", "readonly_paths"])
@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/etc/loop", errno.ELOOP),
        ("/etc/root", errno.EBUSY),
        ("/proc/self/root", errno.ELOOP),
        ("/proc/self/fd/0", errno.ELOOP),
        ("/" + "x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_a_path_that_cannot_be_covered_is_an_error(
    image: Path, name: str, path: str, number: int
) -> None:
    options: dict[str, Any] = {name: [path]}
    (image / "etc/root").symlink_to("../..")
    config = Config(image, **options)
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=config)
    assert (caught.value.step, caught.value.errno) == ("filesystem", number)
    assert caught.value.filename == path
    verb = "mask" if name == "masked_paths" else "make read-only:"
    assert caught.value.detail == f"cannot {verb} {path!r}"


def test_paths_are_covered_after_the_mounts_and_with_what_lies_below(image: Path) -> None:
    config = Config(
        mounts=[Mount.tmpfs("/data/below"), Mount.bind(image / "etc", "/data/below/etc")],
        readonly_paths=["/data"],
        masked_paths=["/data/below/etc/secret"],
    )
    script = "for d in /data /data/below /data/below/etc; do echo x >$d/new; done;"
    result = attempt(script + "cat /data/below/etc/secret /data/file", root=image, config=config)
    assert result.stdout == "file"
    assert result.stderr.count("Read-only file system") == 3
    assert not (image / "etc/new").exists()


# Each on its own could uncover a path, had its mount not been locked.
UNCOVER = (
    "umount /proc/sys",
    "umount -l /sys/firmware",
    "mount -o remount,bind,rw /proc/sys",
    "mkdir /tmp/p && mount -t proc proc /tmp/p && ls /tmp/p/sys",
    "mkdir /tmp/s && mount --bind /proc /tmp/s && ls /tmp/s/sys/kernel",
    "unshare -m umount /proc/sys",
    "mount --move /proc/sys /tmp",
)


@pytest.mark.needs("root")
@pytest.mark.parametrize("way", UNCOVER)
def test_not_even_with_every_capability_a_covered_path_is_uncovered(way: str) -> None:
    config = Config(capabilities=Capabilities.all())
    script = f"({way}) && echo done; echo 1 >/proc/sys/net/ipv4/ip_forward && echo written; :"
    output = attempt(script, config=config).stdout
    assert "done" not in output
    assert "written" not in output


# Sysctls ------------------------------------------------------------------------------------------


def in_network_of(pid: int, *command: str) -> str:
    """What a program of the host sees in that network namespace."""
    argv = ["nsenter", "-t", str(pid), "-n", *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.mark.needs("root")
def test_sysctls_are_those_of_the_containers_namespaces_seen_from_outside() -> None:
    path = "/proc/sys/net/ipv4/ip_default_ttl"
    before = Path(path).read_text()
    # Whatever is mounted there, it is the kernel's own that is written.
    for mounts in ([], [Mount.tmpfs("/proc/sys/net")]):
        config = Config(sysctl={"net.ipv4.ip_default_ttl": "77"}, mounts=mounts)
        with Container(config) as box:
            box.run(Process(["sleep", "1000"]))
            assert box.pid is not None
            assert in_network_of(box.pid, "cat", path) == "77\n"
        assert Path(path).read_text() == before


@pytest.mark.needs("kernel>=6.10")
def test_sysctls_of_ipc_are_set() -> None:
    config = Config(sysctl={"kernel.msgmax": "4321", "fs/mqueue/msg_max": "7"})
    script = "cat /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max"
    assert lines(script, config=config) == ["4321", "7"]


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("net.ipv4.no_such_thing", "1", errno.ENOENT),
        ("net.ipv4.conf", "1", errno.EISDIR),
        ("net.ipv4.ip_default_ttl", "none", errno.EINVAL),
    ],
)
def test_a_sysctl_that_cannot_be_set_is_named(name: str, value: str, number: int) -> None:
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=Config(sysctl={name: value}))
    assert (caught.value.step, caught.value.errno) == ("filesystem", number)
    assert caught.value.filename == f"/proc/sys/{name.replace('.', '/')}"
    assert repr(name) in caught.value.detail


def test_the_domain_name_is_set_and_the_hosts_stays() -> None:
    path = "/proc/sys/kernel/domainname"
    before = Path(path).read_text()
    assert shell(f"cat {path}", config=Config(domainname="example.org")) == "example.org\n"
    assert Path(path).read_text() == before
    assert shell(f"cat {path}") == before


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["apparmor_profile", "selinux_label"])
def test_a_label_that_the_kernel_cannot_give_is_refused(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = {"apparmor_profile": "_has_apparmor", "selinux_label": "_has_selinux"}[field]
    if getattr(_labels, has)():  # to this kernel it would be an unknown label
        monkeypatch.setattr(_labels, has, lambda: False)
    options: dict[str, Any] = {field: "some"}
    with pytest.raises(UnsupportedError) as caught:
        container.run(["true"], config=Config(**options))
    assert caught.value.field == field


@pytest.mark.needs("apparmor")
def test_a_profile_of_apparmor_is_that_of_the_program() -> None:
    config = Config(apparmor_profile="unconfined", proc_options="subset=pid")
    assert lines("cat /proc/self/attr/apparmor/current", config=config) == ["unconfined"]
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=Config(apparmor_profile="no-such-profile"))
    assert (caught.value.step, caught.value.errno) == ("filesystem", errno.ENOENT)
    assert "no-such-profile" in caught.value.detail


# /proc --------------------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_processes_of_others_are_hidden_where_asked_for() -> None:
    script = "sh -c 'ls -d /proc/1; echo $?' 2>/dev/null; ls -d /proc/self >/dev/null && echo self"
    setuid = f"setpriv --reuid 1000 --clear-groups --bounding-set=-all {script}"
    with_all = shell(setuid)
    hidden = shell(setuid, config=Config(proc_options="hidepid=invisible"))
    assert (with_all, hidden) == ("/proc/1\n0\nself\n", "2\nself\n")


def test_a_proc_may_have_processes_only_and_the_limit_holds_all_the_same() -> None:
    options = {"net.ipv4.ip_default_ttl": "77"}
    config = Config(proc_options="subset=pid", sysctl=options, seccomp=None)
    result = attempt(
        "ls -d /proc/meminfo /proc/sys; ls -d /proc/self; unshare -U true", config=config
    )
    assert result.stdout == "/proc/self\n"
    assert result.stderr.count("No such file") == 2
    assert "No space left on device" in result.stderr


# User namespaces ----------------------------------------------------------------------------------

CONFIGS = {
    "default": Config(seccomp=None),  # whose filter refuses it as well
    "CAP_SYS_ADMIN": Config(capabilities=WITH_ADMIN),
    "every capability": Config(capabilities=Capabilities.all()),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_user_namespace_can_be_made_inside(kind: str) -> None:
    result = attempt("unshare -U true; unshare -Ur true", config=CONFIGS[kind])
    assert result.returncode == 1
    assert result.stderr.count("No space left on device") == 2


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", CONFIGS)
def test_no_user_namespace_can_be_made_by_another_user(kind: str) -> None:
    # The kernel counts them per user: the limit must be none, not one that is used up.
    result = attempt("unshare -U true", config=CONFIGS[kind], user="1000:1000")
    assert result.returncode == 1
    assert "No space left on device" in result.stderr


@pytest.mark.needs("root")
def test_with_cap_sys_admin_the_limit_cannot_be_lifted() -> None:
    # Of the procfs that shows: it is read-only, and not even its owner has it without
    # CAP_SYS_RESOURCE; another one cannot be mounted beside it.
    for config in (
        Config(capabilities=WITH_ADMIN),
        Config(capabilities=WITH_ADMIN, readonly_paths=()),
        Config(capabilities=WITH_ADMIN, readonly_paths=(), masked_paths=()),
    ):
        script = """
            for p in /proc /tmp/p; do echo 9 >$p/sys/user/max_user_namespaces; done
            unshare -U true && echo made
            """
        mount = "mkdir /tmp/p; mount -t proc proc /tmp/p;"
        result = attempt(mount + script, config=config)
        assert result.stdout == ""
        assert "No space left on device" in result.stderr


def test_user_namespaces_may_be_asked_for() -> None:
    config = Config(nested=True)
    script = "unshare -Ur sh -c 'cat /proc/self/uid_map; unshare -Ur echo deeper'"
    first, second = lines(script, config=config)
    assert first.split()[0] == "0"
    assert second == "deeper"


def test_a_nested_container_has_a_proc_of_its_own() -> None:
    script = "unshare -Urpmf --mount-proc sh -c 'ls -d /proc/[0-9]*; cat /proc/sys/kernel/ostype'"
    assert lines(script, config=Config(nested=True)) == ["/proc/1", "Linux"]


@pytest.mark.needs("root")
def test_without_a_user_namespace_the_hosts_limit_stays() -> None:
    path = Path("/proc/sys/user/max_user_namespaces")
    before = path.read_text()
    assert before != "0\n"
    config = Config(namespaces=Namespaces(user=False))
    assert shell(f"cat {path}", config=config) == before
    assert path.read_text() == before


# All of it at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("user", [None, "1000:1000"])
def test_the_walls_of_a_default_container_as_its_programs_see_them(user: str | None) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("an ordinary user's container has a single id")
    status = status_inside(user=user)
    assert (status["CapInh"], status["CapAmb"]) == ("0" * 16, "0" * 16)
    assert status["CapBnd"] == "00000000a80425fb"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert lines("ls /proc/1/fd", user=user) == ["0", "1", "2"]
    refused = attempt("unshare -U true || mount -t tmpfs t /tmp", user=user)
    assert refused.returncode != 0
    assert "unshare failed: Operation not permitted" in refused.stderr
    assert "mount: /tmp: " in refused.stderr


# What stays as it was -----------------------------------------------------------------------------


@pytest.fixture
def at_the_gate() -> Iterator[Container]:
    with Container(Config(capabilities=Capabilities.all())) as box:
        box.create(Process(["sh", "-c", "ls /proc/1/fd"], stdout=PIPE))
        yield box


def test_nothing_of_covers_and_writes_stays_open(at_the_gate: Container) -> None:
    at_the_gate.start()
    assert at_the_gate.stdout is not None
    assert at_the_gate.stdout.read().split() == [b"0", b"1", b"2"]


@pytest.mark.needs("root")
def test_every_fd_of_a_created_container_but_its_streams_is_closed_by_execve(
    at_the_gate: Container,
) -> None:
    fdinfo = Path(f"/proc/{at_the_gate.pid}/fdinfo")
    for path in fdinfo.iterdir():
        flags = next(line for line in path.read_text().splitlines() if line.startswith("flags:"))
        assert int(path.name) < 3 or int(flags.split()[1], 8) & os.O_CLOEXEC, (path.name, flags)
    assert len(list(fdinfo.iterdir())) > 3


def test_the_sweep_of_fds_before_execve_is_made_and_not_ignored() -> None:
    # It finds nothing, as shown above. So it is seen by a filter that refuses it.
    default = SeccompProfile.default()
    refused = SyscallRule(["close_range"], "ERRNO", errno_ret=errno.EREMOTEIO)
    profile = replace(default, syscalls=[*default.syscalls, refused])
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=Config(no_new_privileges=False, seccomp=profile))
    assert (caught.value.step, caught.value.errno) == ("fds", errno.EREMOTEIO)


def test_no_value_is_written_through_a_mount_in_the_procfs() -> None:
    # Nobody can put one there before the values are written. So rows that do stand in for who could
    # (CVE-2019-19921): a file of theirs must not be taken for the sysctl.
    config = Config(
        sysctl={"net.ipv4.ip_default_ttl": "65"}, masked_paths=(), readonly_paths=(), nested=True
    )
    plan = make_plan(config, Process(["true"]), StartFlag(0))
    rows = list(plan.rows)
    (write,) = (row for row in rows if row.op == Op.WRITE)
    cover = Row(Op.MOUNT, "sys/net/ipv4", "a cover", source="tmpfs", base=write.base)
    fake = Row(Op.FILE, "ip_default_ttl", "a fake", base=len(rows), mode=0o666)
    rows += [cover, fake, write]
    plan.request.base = replace(plan.request.base, table=RowTable(rows))
    stdio = open_stdio(DEVNULL, DEVNULL, DEVNULL)
    child = launch_plan(plan, stdio.child, stdio.pipes)
    stdio.close()
    child.kill()
    assert child.failure is not None
    assert child.failure.step == "filesystem"
    assert (child.failure.errno, child.failure.row) == (errno.EXDEV, len(rows) - 1)


def test_the_mounts_of_the_host_are_what_they_were() -> None:
    before = host_mounts()
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        assert host_mounts() == before
    assert host_mounts() == before
