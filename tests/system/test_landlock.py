# SPDX-License-Identifier: Apache-2.0
"""Landlock: what the kernel lets a program do that is confined to some paths."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from system.helpers import attempt, lines

import container
from container import Capabilities, Config, Landlock, LaunchError, Mount

pytestmark = [pytest.mark.needs("userns", "landlock"), pytest.mark.kernel]

PROGRAMS = ("/usr", "/bin", "/lib", "/lib64", "/etc", "/proc")


def there(*paths: str) -> list[str]:
    return [path for path in paths if os.path.exists(path)]


def confined(**options: object) -> Config:
    rules = Landlock(read=there(*PROGRAMS), write=["/tmp", "/dev/null"])
    return Config(landlock=rules, **options)  # type: ignore[arg-type]


SCRIPT = """
echo x >/tmp/new && cat /tmp/new
echo x >/var/tmp/new; ls /home; echo x >>/etc/passwd
mkdir /tmp/d && mv /tmp/new /tmp/d && cat /tmp/d/new
head -1 /etc/passwd >/dev/null && echo read
exec 2>&1; : >/run/x
"""


@pytest.mark.parametrize("user", [None, "1000:1000"])
def test_files_open_below_the_paths_and_nowhere_else(user: str | None) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("an ordinary user's container has a single id")
    result = attempt(SCRIPT, config=confined(), user=user)
    output = result.stdout.splitlines()
    assert output[:3] == ["x", "x", "read"]
    assert (result.stdout + result.stderr).count("Permission denied") == 4
    # Without it root may do most of that.
    free = attempt("echo x >/var/tmp/new; ls /home; : >/run/x")
    assert "denied" not in free.stderr


def test_a_file_that_may_only_be_read_cannot_be_cut_nor_renamed() -> None:
    config = Config(
        mounts=[Mount.tmpfs("/data")],
        landlock=Landlock(read=[*there(*PROGRAMS), "/data"], write=["/dev"]),
    )
    script = (
        "truncate -s 0 /data/f; (: >/data/x); mkdir /data/d; ln -s a /data/l; ls /data; echo end"
    )
    result = attempt(script, config=config)
    assert result.stdout == "end\n"
    assert result.stderr.count("Permission denied") >= 3


def test_not_even_every_capability_opens_more() -> None:
    everything = confined(capabilities=Capabilities.all())
    result = attempt("cat /run/x; ls /home; mount -t tmpfs t /tmp", config=everything)
    # Nor may anything be mounted: that is the kernel's rule for whoever is confined.
    assert result.stdout == ""
    assert result.stderr.lower().count("denied") + result.stderr.count("permitted") >= 2


def test_a_program_that_it_may_not_execute_is_an_error() -> None:
    with pytest.raises(PermissionError) as caught:
        container.run(["true"], config=Config(landlock=Landlock(read=["/proc"])))
    assert isinstance(caught.value, LaunchError)
    assert caught.value.step == "exec"


@pytest.mark.parametrize(
    ("path", "number"), [("/no/such", errno.ENOENT), ("/proc/self/root", errno.ELOOP)]
)
def test_a_path_that_is_not_there_is_named(path: str, number: int) -> None:
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=Config(landlock=Landlock(write=["/tmp", path])))
    assert (caught.value.step, caught.value.errno) == ("landlock", number)
    assert caught.value.filename == path


@pytest.mark.parametrize("link", ["/data", "../data", "to", "../proc/../data/"])
def test_no_link_of_an_image_opens_what_is_mounted_beside_it(
    fresh_root: Path, tmp_path: Path, link: str
) -> None:
    (tmp_path / "decoy").mkdir()
    (fresh_root / "tmp").rmdir()
    (fresh_root / "tmp").symlink_to(link)
    (fresh_root / "to").symlink_to("data")
    mounts = [Mount.bind(tmp_path, "/data")]
    for rules in (Landlock(write=["/tmp"]), Landlock(read=["/tmp/decoy"])):
        with pytest.raises(LaunchError) as caught:
            container.run(["true"], config=Config(root=fresh_root, mounts=mounts, landlock=rules))
        assert (caught.value.step, caught.value.errno) == ("landlock", errno.EXDEV)


def test_links_within_a_mount_are_followed(fresh_root: Path, tmp_path: Path) -> None:
    (fresh_root / "usr").mkdir()
    (fresh_root / "bin").rename(fresh_root / "usr/bin")
    (fresh_root / "bin").symlink_to("usr/bin")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    config = Config(
        root=fresh_root,
        mounts=[Mount.bind(tmp_path, "/data")],
        landlock=Landlock(read=["/bin"], write=["/data/link/"]),
    )
    script = "echo x > /data/dir/new && cat /data/link/new; echo x > /data/beside"
    result = attempt(script, config=config)
    assert result.stdout == "x\n"
    assert result.stderr.lower().count("denied") == 1


def test_nothing_of_it_stays_open() -> None:
    assert lines("ls /proc/1/fd", config=confined()) == ["0", "1", "2"]
