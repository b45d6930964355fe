# SPDX-License-Identifier: Apache-2.0
"""Root directories made by an enemy: nothing outside is made, changed or shown."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from system.helpers import attempt, host_mounts, lines, python, shell, tree

import container
from container import Config, LaunchError, Mount

pytestmark = pytest.mark.needs("userns", "busybox")

OWN = ("dev", "proc", "sys")
"""What is mounted in every container."""


APPLETS = ("cat", "cut", "echo", "ls", "sh", "stat", "true")


@pytest.fixture
def image() -> Iterator[Path]:
    """A small root directory of this test's own, in a directory that everybody may enter.

    A link to busybox for every applet, as fresh_root has, would take most of the time of these.
    """
    program = shutil.which("busybox")
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="tests-") as directory:
        os.chmod(directory, 0o755)
        root = Path(directory, "root")
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(program, root / "bin/busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        yield root


@pytest.fixture
def outside(image: Path) -> Path:
    """A directory beside the root, with decoys for whatever a container's set-up makes."""
    directory = image.parent / "outside"
    for name in ("pts", "shm", "sys"):
        (directory / name).mkdir(parents=True)
    for name in ("null", "ptmx", "fd", "file"):
        (directory / name).write_text("decoy")
    return directory


# /dev, /proc and /sys -----------------------------------------------------------------------------

Trap = Callable[[Path, Path], None]

TRAPS: dict[str, Trap] = {
    "an absolute link": lambda path, outside: path.symlink_to(outside),
    "an absolute link within": lambda path, outside: path.symlink_to("/tmp"),
    "a relative link": lambda path, outside: path.symlink_to("../outside"),
    "a relative link within": lambda path, outside: path.symlink_to("tmp"),
    "a long way up": lambda path, outside: path.symlink_to("../" * 40 + str(outside)[1:]),
    "a dangling link": lambda path, outside: path.symlink_to(outside / "missing"),
    "a loop": lambda path, outside: path.symlink_to(path.name),
    "a file": lambda path, outside: path.touch(),
    "a fifo": lambda path, outside: os.mkfifo(path),
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", OWN)
def test_a_root_with_a_trap_for_a_directory_of_ours_is_refused(
    image: Path, outside: Path, name: str, trap: str
) -> None:
    (image / name).rmdir()
    TRAPS[trap](image / name, outside)
    before = tree(image.parent)
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], root=image)
    assert (caught.value.step, caught.value.filename) == ("filesystem", f"/{name}")
    assert tree(image.parent) == before


@pytest.mark.parametrize("name", OWN)
def test_a_root_without_a_directory_of_ours_gets_it(image: Path, name: str) -> None:
    (image / name).rmdir()
    mounts = lines("cut -d ' ' -f 5 /proc/self/mountinfo", root=image)
    assert f"/{name}" in mounts
    status = (image / name).stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o755, os.geteuid())
    assert list((image / name).iterdir()) == []


def test_what_the_image_has_in_its_own_dev_does_not_matter(image: Path, outside: Path) -> None:
    # CVE-2025-31133, CVE-2025-52565: links in the place of devices.
    for name in ("null", "zero", "tty", "ptmx", "fd", "console"):
        (image / "dev" / name).symlink_to(outside / "file")
    (image / "dev/pts").symlink_to(outside)
    (image / "dev/shm").symlink_to("../../outside")
    before = tree(image.parent)
    names = set(lines("ls /dev; stat -c %t:%T /dev/null", root=image))
    assert names >= {"null", "pts", "shm", "ptmx", "1:3"}
    assert "console" not in names
    assert tree(image.parent) == before


def test_a_root_may_itself_be_behind_a_link(image: Path) -> None:
    # The caller's own path: links in it are the caller's.
    link = image.parent / "link"
    link.symlink_to("root")
    assert shell("ls -d /bin", root=link) == "/bin\n"


def test_a_relative_root_is_the_callers(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image.parent)
    assert shell("ls -d /bin", root="root") == "/bin\n"
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError):
        container.run(["true"], root=f"no-such-directory-{os.getpid()}")


# Targets of mounts --------------------------------------------------------------------------------


def run_with(root: Path, *targets: str, source: Path | None = None) -> str:
    """Mount on these in a container, and list the mounts."""
    made = [Mount.bind(source, each) if source else Mount.tmpfs(each) for each in targets]
    script = "cut -d ' ' -f 5 /proc/self/mountinfo"
    return shell(script, root=root, config=Config(mounts=made), errors="surrogateescape")


@pytest.mark.parametrize(
    ("link", "place"),
    [
        ("/tmp", "/tmp"),
        ("tmp", "/tmp"),
        ("../../../../tmp", "/tmp"),
        ("/", None),
        ("/etc/../tmp", "/tmp"),
    ],
)
def test_a_link_in_a_target_leads_where_it_leads_in_the_container(
    image: Path, link: str, place: str | None
) -> None:
    (image / "link").symlink_to(link)
    before = set(os.listdir("/tmp"))
    mounts = run_with(image, "/link/data").splitlines()
    assert (f"{place}/data" if place else "/data") in mounts
    inside = image / (place or "/")[1:] / "data"
    assert inside.is_dir()
    assert "data" not in set(os.listdir("/tmp")) - before


def test_a_file_is_bound_where_a_link_leads_in_the_container(image: Path, outside: Path) -> None:
    (image / "etc/resolv.conf").symlink_to("../../../outside/file")
    (outside / "source").write_text("bound")
    config = Config(mounts=[Mount.bind(outside / "source", "/etc/resolv.conf")])
    # What the link names in the container is missing, and is not made: the link is covered.
    assert shell("cat /etc/resolv.conf", root=image, config=config) == "bound"
    assert not (image / "outside").exists()
    (image / "outside").mkdir()
    (image / "outside/file").write_text("within")
    assert shell("cat /etc/resolv.conf", root=image, config=config) == "bound"
    assert (outside / "file").read_text() == "decoy"
    assert (image / "outside/file").read_text() == "within"


@pytest.mark.parametrize(
    "target",
    [
        "/dangling",
        "/dangling/below",
        "/loop",
        "/loop/below",
        "/to-the-root",
        "/etc/file/below",
        "/proc/self/cwd/below",
        "/proc/self/root/below",
        "/proc/1/root",
        "/proc/self/fd/0",
        "/proc/self/exe",
        "/sys/below",
        "/proc/below",
    ],
)
def test_a_target_that_cannot_be_had_is_refused_and_nothing_is_made(
    image: Path, outside: Path, target: str
) -> None:
    (image / "dangling").symlink_to(outside / "missing")
    (image / "loop").symlink_to("loop")
    (image / "to-the-root").symlink_to("/")
    (image / "etc/file").write_text("a file")
    before = tree(image.parent)
    for mount in (Mount.tmpfs(target), Mount.bind(outside, target)):
        with pytest.raises(LaunchError) as caught:
            container.run(["true"], root=image, config=Config(mounts=[mount]))
        assert caught.value.step == "filesystem"
        assert repr(target) in str(caught.value)
    assert tree(image.parent) == before


def test_a_directory_is_not_bound_on_a_file_nor_a_file_on_a_directory(
    image: Path, outside: Path
) -> None:
    (image / "etc/file").write_text("a file")
    for source, target in ((outside, "/etc/file"), (outside / "file", "/etc")):
        with pytest.raises(LaunchError) as caught:
            run_with(image, target, source=source)
        assert caught.value.step == "filesystem"


@pytest.mark.parametrize(
    "target", ["/a", "/a/b/c", "/tmp/" + "d" * 255, "/a b/\n/\\/'\"", "/ä/\udcff", "/.a/..b"]
)
def test_a_missing_target_is_made_whatever_its_name(image: Path, target: str) -> None:
    run_with(image, target)
    path = Path(str(image) + target)
    assert path.is_dir()
    owner = path.stat()
    assert (owner.st_uid, owner.st_gid, owner.st_mode & 0o777) == (
        os.geteuid(),
        os.getegid(),
        0o755,
    )


def test_a_missing_target_of_a_file_is_made_an_empty_file(image: Path, outside: Path) -> None:
    run_with(image, "/new/dir/file", source=outside / "file")
    assert (image / "new/dir/file").read_bytes() == b""
    assert (outside / "file").read_text() == "decoy"


@pytest.mark.parametrize("target", ["/" + "d" * 256, "/d" * 3000])
def test_a_target_that_is_too_long_is_an_error(image: Path, target: str) -> None:
    with pytest.raises((LaunchError, container.ConfigError)) as caught:
        run_with(image, target)
    if isinstance(caught.value, LaunchError):
        assert caught.value.step == "filesystem"


def test_mounts_are_made_in_their_order_and_may_lie_in_one_another(
    image: Path, outside: Path
) -> None:
    mounts = [
        Mount.tmpfs("/data"),
        Mount.bind(outside, "/data/within"),
        Mount.tmpfs("/data/within/pts"),
    ]
    script = "echo x >/data/within/pts/x; ls /data /data/within/pts"
    output = shell(script, root=image, config=Config(mounts=mounts))
    assert output == "/data:\nwithin\n\n/data/within/pts:\nx\n"
    assert list((outside / "pts").iterdir()) == []


def test_the_later_of_two_mounts_covers_ours(image: Path, outside: Path) -> None:
    # To cover /dev is a wish like any other.
    config = Config(mounts=[Mount.bind(outside, "/dev", read_only=True)])
    assert "file" in lines("ls /dev", root=image, config=config)


# A race -------------------------------------------------------------------------------------------

SWAP = """
import ctypes, os, sys
RENAME_EXCHANGE = 2
os.symlink(sys.argv[1], "/vol/link")
os.chdir("/vol")
swap = ctypes.CDLL(None).renameat2
assert swap(-100, b"dir", -100, b"link", RENAME_EXCHANGE) == 0
print("up", flush=True)
while True:
    swap(-100, b"dir", -100, b"link", RENAME_EXCHANGE)
"""


def test_no_mount_lands_outside_while_another_container_swaps_its_target(
    image: Path, outside: Path
) -> None:
    # CVE-2021-30465
    volume = image.parent / "volume"
    (volume / "dir").mkdir(parents=True)
    config = Config(mounts=[Mount.bind(volume, "/vol")])
    ours = Config(mounts=[Mount.bind(volume, "/vol"), Mount.tmpfs("/vol/dir/below")])
    before, mounts = tree(outside), host_mounts()
    counts = {"mounted": 0, "refused": 0}
    with container.popen([*python(SWAP), str(outside)], config=config) as enemy:
        assert enemy.stdout is not None
        assert enemy.stdout.readline() == b"up\n"
        for _ in range(200):
            try:
                attempt("true", root=image, config=ours)
                counts["mounted"] += 1
            except LaunchError as error:
                assert error.step == "filesystem"
                counts["refused"] += 1
        enemy.kill()
        enemy.wait()
    assert tree(outside) == before
    assert host_mounts() == mounts
    # Both happened, or it was no race.
    assert min(counts.values()) > 0, counts
