# SPDX-License-Identifier: Apache-2.0
"""A root that is an overlay: what is below stays as it is, what changed is in the upper one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.conftest import Identity, open_directory
from system.helpers import attempt, lines, mounts_inside, shell, tree

import container
from container import Capabilities, Config, ConfigError, LaunchError, Mount, Namespaces, Overlay

pytestmark = pytest.mark.needs("userns", "overlay", "busybox")

APPLETS = (
    *("cat", "chmod", "chown", "cut", "echo", "grep", "id", "ls", "mkdir", "mknod", "mount", "mv"),
    *("rm", "sh", "stat", "touch", "true", "umount", "wc"),
)
FILES = {"etc/kept": "kept", "etc/changed": "old", "etc/deleted": "gone", "replaced/old": "old"}


def make_lower(directory: Path) -> Path:
    """A root directory with some files to change."""
    program = shutil.which("busybox")
    assert program is not None
    for name in ("bin", "etc", "replaced", "dev", "proc", "sys", "tmp"):
        (directory / name).mkdir(parents=True)
    shutil.copyfile(program, directory / "bin/busybox")
    (directory / "bin/busybox").chmod(0o755)
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    for name, content in FILES.items():
        (directory / name).write_text(content)
    return directory


@pytest.fixture
def lower() -> Iterator[Path]:
    with open_directory() as directory:
        yield make_lower(directory / "lower")


@pytest.fixture
def owned(who: Identity) -> Path:
    """A lower directory `lower` in the home of who calls, and an empty `upper`."""
    make_lower(who.home / "lower")
    (who.home / "upper").mkdir()
    who.own(who.home)
    return who.home


# In memory this needs attributes that tmpfs has since Linux 6.6.
REPLACE = "rm -r /replaced; mkdir /replaced; echo -n new >/replaced/new; ls /replaced"

CHANGE = (
    "echo -n new >/etc/changed; echo -n made >/etc/made; rm /etc/deleted;"
    " cat /etc/kept /etc/changed; ls /etc"
)
CHANGED = "keptnewchanged\nkept\nmade\n"


def test_what_is_written_goes_with_the_container_and_lower_stays(
    who: Identity, owned: Path
) -> None:
    before = tree(owned)
    told = who(
        f"""
        root = Overlay("lower")
        script = {CHANGE!r}
        tell(container.run(["sh", "-c", script], root=root, text=True, check=True).stdout)
        tell(container.run(["cat", "/etc/changed"], root=root, text=True, check=True).stdout)
        """
    )
    assert told == [CHANGED, "old"]
    assert tree(owned) == before


@pytest.mark.needs("kernel>=6.6")
def test_a_directory_may_be_replaced_in_memory_too(who: Identity, owned: Path) -> None:
    before = tree(owned)
    (told,) = who(f"tell(look({REPLACE!r}, root=Overlay('lower')))")
    assert told == [0, "new\n", ""]
    assert tree(owned) == before


def test_the_upper_directory_has_what_changed_and_nothing_else(who: Identity, owned: Path) -> None:
    before = tree(owned / "lower")
    told = who(
        f"""
        root = Overlay("lower", "upper")
        script = {f"{CHANGE}; {REPLACE}"!r}
        tell(container.run(["sh", "-c", script], root=root, text=True, check=True).stdout)
        # And is there again for the next one.
        tell(container.run(["cat", "/etc/changed"], root=root, text=True, check=True).stdout)
        """
    )
    assert told == [CHANGED + "new\n", "new"]
    assert tree(owned / "lower") == before
    found = tree(owned / "upper")
    assert set(found) == {
        *("etc", "etc/changed", "etc/made", "etc/deleted", "replaced", "replaced/new")
    }
    assert {owner for _, owner, _, _ in found.values()} == {who.uid}
    assert (found["etc/changed"][3], found["etc/made"][3]) == (b"new", b"made")
    deleted = (owned / "upper/etc/deleted").lstat()
    assert (stat.S_ISCHR(deleted.st_mode), deleted.st_rdev) == (True, 0)
    assert os.getxattr(owned / "upper/replaced", "user.overlay.opaque") == b"y"
    assert (owned / "upper.work").is_dir()


def test_files_of_the_caller_are_roots_inside_and_may_be_changed(
    who: Identity, owned: Path
) -> None:
    script = "stat -c %u:%g /etc /etc/kept /; chmod 600 /etc/kept; stat -c %u:%g:%a /etc/kept"
    told = who(
        f"""
        root = Overlay("lower", "upper")
        tell(container.run(["sh", "-c", {script!r}], root=root, text=True, check=True).stdout)
        """
    )
    assert told == ["0:0\n0:0\n0:0\n0:0:600\n"]
    status = (owned / "upper/etc/kept").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (who.uid, 0o600)


def test_the_first_of_several_directories_covers_the_others(who: Identity, owned: Path) -> None:
    for name in ("top", "middle"):
        (owned / name / "etc").mkdir(parents=True)
        (owned / name / "etc/changed").write_text(name)
    (owned / "middle/etc/other").write_text("middle")
    who.own(owned)
    told = who(
        """
        args = ["cat", "/etc/changed", "/etc/other", "/etc/kept"]
        for order in (["top", "middle", "lower"], ["middle", "top", "lower"]):
            tell(container.run(args, root=Overlay(order), text=True, check=True).stdout)
        """
    )
    assert told == ["topmiddlekept", "middlemiddlekept"]


# Paths --------------------------------------------------------------------------------------------

ODD_NAMES = {
    "a comma": "a,upperdir=b",
    "a colon": "a:b",
    "a backslash": "a\\:b\\,c\\",
    "a newline": "a\nb",
    "a space": " a b ",
    "a quote": "a\"b'c",
    "a percent": "%s%n",
    "bytes that are no text": os.fsdecode(b"\xff\xfe"),
    "dots": "...",
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_directory_may_have_any_name(lower: Path, name: str) -> None:
    place = lower.parent / ODD_NAMES[name]
    place.mkdir()
    top, upper = place / "top", place / ODD_NAMES[name]
    for path in (top, upper):
        path.mkdir()
    (top / "seen").touch()
    assert lines("echo x >/made; ls /seen", root=Overlay([top, lower], upper)) == ["/seen"]
    assert (upper / "made").read_text() == "x\n"
    assert not (top / "made").exists()


def test_a_path_may_be_as_long_as_the_kernel_takes(lower: Path) -> None:
    step = "d" * 200
    place = lower.parent
    while len(str(place)) + len(step) < 4000:
        place = place / step
    place.mkdir(parents=True)
    lower, upper = lower.rename(place / "lower"), place / "upper"
    upper.mkdir()
    assert len(str(lower)) > 3800
    shell("echo x >/made", root=Overlay(lower, upper))
    assert (upper / "made").read_text() == "x\n"


@pytest.mark.parametrize("count", [100, 499])
def test_a_root_may_have_many_layers(lower: Path, count: int) -> None:
    layers = [lower.parent / ("layer," * 20 + str(number)) for number in range(count)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / f"file{number}").touch()
        (layer / "which").write_text(str(number))
    script = "ls / | grep -c file; cat /which"
    assert shell(script, root=Overlay([*layers, lower])) == f"{count}\n0"


def test_relative_paths_and_links_are_the_callers(
    lower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lower.parent)
    os.mkdir("real")
    os.symlink("real", "upper")
    os.symlink("lower", "link")
    shell("echo x >/made", root=Overlay("link", "upper"))
    assert Path("real/made").read_text() == "x\n"
    assert sorted(os.listdir()) == ["link", "lower", "real", "real.work", "upper"]


# Walls --------------------------------------------------------------------------------------------


def test_no_layer_and_no_path_of_the_host_can_be_seen(lower: Path) -> None:
    upper = lower.parent / "upper"
    upper.mkdir()
    for root in (Overlay(lower), Overlay(lower, upper)):
        mounts = lines("cat /proc/self/mountinfo", root=root)
        points = [line.split(" ")[4] for line in mounts]
        assert points[0] == "/"
        assert points.count("/") == 1, "the old root is there still"
        assert all(point == "/" or point.startswith(("/dev", "/proc", "/sys")) for point in points)
        assert str(lower.parent) not in "".join(mounts)
        assert mounts_inside(root=root)["/"] >= {"rw", "nosuid", "nodev"}


@pytest.mark.needs("root")
def test_with_every_capability_the_layers_cannot_be_had_either(lower: Path) -> None:
    (lower / "mnt").mkdir()
    config = Config(root=Overlay(lower), capabilities=Capabilities.all())
    script = (
        "umount /; umount -l /proc; ls / | grep -c -x -e m -e w;"
        " mount -o remount,bind,suid,dev / && echo done; mount --move / /mnt && echo moved"
    )
    result = attempt(script, config=config)
    assert result.stdout == "0\n"
    assert result.returncode != 0


@pytest.mark.needs("root")
def test_devices_and_set_user_id_programs_of_a_layer_do_not_work(lower: Path) -> None:
    os.mknod(lower / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (lower / "null").chmod(0o666)
    result = attempt("cat /dev/null && echo own; cat /null", root=Overlay(lower))
    assert (result.stdout, result.returncode) == ("own\n", 1)
    assert "Permission denied" in result.stderr


@pytest.mark.needs("root")
def test_without_a_user_namespace_the_change_set_is_as_root_writes_it(lower: Path) -> None:
    upper = lower.parent / "upper"
    upper.mkdir()
    before = tree(lower)
    config = Config(root=Overlay(lower, upper), namespaces=Namespaces(user=False))
    assert shell(f"{CHANGE}; {REPLACE}", config=config) == CHANGED + "new\n"
    assert os.getxattr(upper / "replaced", "trusted.overlay.opaque") == b"y"
    assert tree(lower) == before


def test_a_read_only_root_cannot_be_written_and_has_its_mounts(lower: Path) -> None:
    config = Config(
        root=Overlay(lower), read_only_root=True, mounts=[Mount.tmpfs("/made/for/this")]
    )
    result = attempt("echo x >/made/for/this/x && echo ok; echo x >/x", config=config)
    assert result.stdout == "ok\n"
    assert "Read-only file system" in result.stderr
    assert mounts_inside(config=config)["/"] >= {"ro"}
    assert not (lower / "made").exists()


@pytest.mark.needs("root")
def test_what_is_mounted_below_a_layer_does_not_show(lower: Path) -> None:
    (lower / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(lower / "below")], check=True)
    try:
        (lower / "below/file").touch()
        assert lines("ls /below", root=Overlay(lower)) == []
    finally:
        subprocess.run(["umount", str(lower / "below")], check=True)


# Errors -------------------------------------------------------------------------------------------


def test_a_layer_that_is_none_is_an_error_that_names_it(who: Identity, owned: Path) -> None:
    os.mkfifo(owned / "fifo")
    (owned / "loop").symlink_to("loop")
    (owned / "file").touch()
    who.own(owned)
    before = tree(owned)
    told = who(
        """
        for bad in ("missing", "fifo", "loop", "file"):
            for root in (Overlay(["lower", bad]), Overlay("lower", bad)):
                try:
                    container.run(["true"], root=root)
                except LaunchError as error:
                    name = os.path.basename(error.filename)
                    tell([error.step, errno.errorcode[error.errno], name])
        """
    )
    assert told == [
        *(["sources", "ENOENT", "missing"], ["filesystem", "ENOENT", "missing"]),
        *(["sources", "ENOTDIR", "fifo"], ["filesystem", "ENOTDIR", "fifo"]),
        *(["sources", "ELOOP", "loop"], ["filesystem", "ELOOP", "loop"]),
        *(["sources", "ENOTDIR", "file"], ["filesystem", "ENOTDIR", "file"]),
    ]
    assert tree(owned) == before


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_a_trap_in_a_layer_is_refused_as_in_a_root_directory(lower: Path, name: str) -> None:
    (lower / name).rmdir()
    (lower / name).symlink_to("/tmp")
    before = tree(lower.parent)
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], root=Overlay(lower))
    assert (caught.value.step, caught.value.filename) == ("filesystem", f"/{name}")
    assert tree(lower.parent) == before


def test_a_link_of_a_layer_to_the_root_is_no_place_for_a_mount(lower: Path) -> None:
    (lower / "top").symlink_to("/")
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=Config(Overlay(lower), mounts=[Mount.tmpfs("/top")]))
    assert (caught.value.step, caught.value.errno) == ("filesystem", errno.EBUSY)


def test_directories_that_overlap_are_refused_before_anything_is_made(lower: Path) -> None:
    upper, link = lower.parent / "upper", lower.parent / "link"
    (upper / "work").mkdir(parents=True)
    link.symlink_to(lower)
    before = tree(lower.parent)
    for root, field in (
        (Overlay(lower, lower / "etc"), "root.upper"),
        (Overlay(link, lower / "etc"), "root.upper"),
        (Overlay(lower, link / "etc"), "root.upper"),
        (Overlay([upper, lower], lower), "root.upper"),
        (Overlay([lower, upper / "work"], upper), "root.upper"),
        (Overlay(lower, upper, upper / "work"), "root.work"),
        (Overlay(lower, upper, upper), "root.work"),
        (Overlay(lower, upper, lower / "etc"), "root.work"),
    ):
        with pytest.raises(ConfigError) as caught:
            container.run(["true"], root=root)
        assert caught.value.field == field
    assert tree(lower.parent) == before


@pytest.mark.needs("root")
def test_upper_and_work_on_two_mounts_are_an_error(lower: Path) -> None:
    upper, other = lower.parent / "upper", lower.parent / "other"
    upper.mkdir()
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(other)], check=True)
    try:
        (other / "work").mkdir()
        with pytest.raises(LaunchError) as caught:
            container.run(["true"], root=Overlay(lower, upper, other / "work"))
        assert (caught.value.step, caught.value.filename) == ("filesystem", str(other / "work"))
    finally:
        subprocess.run(["umount", str(other)], check=True)


def test_an_upper_that_becomes_a_link_while_it_is_used_leads_nowhere(lower: Path) -> None:
    upper, outside = lower.parent / "upper", lower.parent / "outside"
    outside.mkdir()
    plan = container._plan
    real = plan._resolve_upper

    def swap(config: Config) -> Config:
        resolved: Config = real(config)
        upper.rmdir()
        upper.symlink_to("outside")
        return resolved

    upper.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_resolve_upper", swap)
        with pytest.raises(LaunchError) as caught:
            container.run(["sh", "-c", "echo x >/x"], root=Overlay(lower, upper))
    assert (caught.value.step, caught.value.filename) == ("filesystem", str(upper))
    assert list(outside.iterdir()) == []


# The command --------------------------------------------------------------------------------------


def test_the_command_has_an_option_for_a_root_that_stays_as_it_is(lower: Path) -> None:
    before = tree(lower)
    program = [sys.executable, "-m", "container", "run", "--overlay", str(lower), "--", "sh", "-c"]
    done = subprocess.run([*program, CHANGE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, CHANGED, "")
    assert tree(lower) == before
    both = [*program[:3], "run", "--root", "/", *program[4:], "true"]
    done = subprocess.run(both, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "--root" in done.stderr


# Users --------------------------------------------------------------------------------------------


@pytest.mark.needs("root", "idmap")
def test_a_user_is_looked_up_in_the_layers_as_they_show(lower: Path) -> None:
    upper = lower.parent / "upper"
    (upper / "etc").mkdir(parents=True)
    (lower / "etc/passwd").write_text("worker:x:1000:1000::/:/bin/sh\n")
    (lower / "etc/group").write_text("worker:x:1000:\n")
    root = Overlay(lower, upper)
    assert lines("id -u", root=root, user="worker") == ["1000"]
    shell("echo worker:x:1001:1001::/:/bin/sh >/etc/passwd", root=root)
    assert lines("id -u", root=root, user="worker") == ["1001"]
    assert lines("id -u", root=Overlay(lower), user="worker") == ["1000"]
    for change in ("rm /etc/passwd", "rm -r /etc; mkdir /etc"):
        shell(change, root=root)
        with pytest.raises(ConfigError) as caught:
            container.run(["true"], root=root, user="worker")
        assert caught.value.field == "user"
        shutil.rmtree(upper)
        (upper / "etc").mkdir(parents=True)
