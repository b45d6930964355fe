# SPDX-License-Identifier: Apache-2.0
"""The test machine's harness, as far as no machine needs to boot for it."""

import fcntl
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vm import SetupError, command, cpio, debian, etc, kernels, machine, manifest, protocol

RUN = Path(__file__).with_name("run.py")


# Arguments ------------------------------------------------------------------------------------


BOTH = ["tests/system", "tests/vm/selftest.py"]


def test_default_is_both_kernels_with_the_system_tests_and_the_self_tests(tmp_path: Path) -> None:
    options = command.parse([])
    assert options.kernels == ("6.1", "6.12")
    assert command.tests_to_run(options, tmp_path) == BOTH


def test_arguments_after_two_dashes_are_for_pytest() -> None:
    options = command.parse(["--kernel", "6.12", "--", "-k", "a b", "--", "--shell"])
    assert options.kernels == ("6.12",)
    assert options.pytest == ("-k", "a b", "--", "--shell")
    assert not options.shell


def test_kernel_named_twice_runs_once() -> None:
    assert command.parse(["--kernel", "newer", "--kernel", "newer"]).kernels == ("newer",)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kernel", "5.4"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "soon"],
        ["--break", "glass"],
        ["--shell", "--selftest"],
        ["tests/system"],
    ],
)
def test_senseless_arguments_end_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.parse(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["-x", "one.py"], ["-x", "one.py"]),
        (["one.py::test_a", "-v"], ["one.py::test_a", "-v"]),
        (["-k", "one.py"], [*BOTH, "-k", "one.py"]),
        (["--ignore", "one.py"], [*BOTH, "--ignore", "one.py"]),
        (["--ignore=one.py"], [*BOTH, "--ignore=one.py"]),
        (["two.py"], [*BOTH, "two.py"]),
    ],
)
def test_files_among_the_arguments_replace_the_system_tests(
    tmp_path: Path, arguments: list[str], found: list[str]
) -> None:
    (tmp_path / "one.py").touch()
    options = command.parse(["--", *arguments])
    assert command.tests_to_run(options, tmp_path) == found


def test_host_without_qemu_is_one_clear_line_and_status_13(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--no-install", "--kernel", "6.1", "--report", str(tmp_path)],
        env={"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 13
    (line,) = done.stdout.splitlines()
    assert line.startswith("test-vm: 6.1: CANNOT RUN HERE: missing and not to be installed:")
    assert "qemu-system-x86" in line


# Frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5, 1000])
def test_frames_survive_any_cutting(size: int) -> None:
    sent = [(protocol.OUTPUT, b"x" * 300), (protocol.REPORT, b""), (protocol.STATUS, b"0")]
    stream = b"".join(protocol.frame(kind, payload) for kind, payload in sent)
    parser = protocol.Parser()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [frame for piece in pieces for frame in parser.feed(piece)] == sent


@pytest.mark.parametrize("data", [b"login: ", b"O\xff\xff\xff\xff", b"\0\0\0\0\0"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(protocol.FrameError, match="not a frame"):
        list(protocol.Parser().feed(data))


# The initramfs --------------------------------------------------------------------------------


GOLDEN = (
    b"070701"  # magic
    b"00000001" b"000081A4" b"00000000" b"00000000"  # inode, mode, uid, gid
    b"00000001" b"00000000" b"00000005"  # links, mtime, size
    b"00000000" b"00000000" b"00000000" b"00000000"  # devices
    b"00000003" b"00000000"  # length of the name, checksum
    b"ab\0" b"\0\0\0" b"hello" b"\0\0\0"
    b"070701"
    b"00000000" b"00000000" b"00000000" b"00000000"
    b"00000001" b"00000000" b"00000000"
    b"00000000" b"00000000" b"00000000" b"00000000"
    b"0000000B" b"00000000"
    b"TRAILER!!!\0" b"\0\0\0"
)  # fmt: skip


def test_archive_has_the_kernels_format() -> None:
    assert cpio.archive([cpio.Entry("ab", b"hello")]) == GOLDEN


def test_archive_puts_parents_first_and_each_once() -> None:
    entries = [cpio.Entry("a/b/c", b""), cpio.link("a/b/d", "/dev/null"), cpio.directory("a/b")]
    names = [name for name, _, _ in unpack(cpio.archive(entries))]
    assert names == ["a", "a/b", "a/b/c", "a/b/d"]


def test_archive_keeps_kinds_and_modes() -> None:
    program = cpio.Entry("sh", b"#!", stat.S_IFREG | 0o755)
    found = unpack(cpio.archive([program, cpio.link("link", "/to"), cpio.directory("dir")]))
    assert found == [
        ("sh", stat.S_IFREG | 0o755, b"#!"),
        ("link", stat.S_IFLNK | 0o777, b"/to"),
        ("dir", stat.S_IFDIR | 0o755, b""),
    ]


def unpack(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and data of each entry, read as the kernel does."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        if name == "TRAILER!!!":
            return found
        data = (at + 110 + fields[11] + 3) & ~3
        found.append((name, fields[1], archive[data : data + fields[6]]))
        at = (data + fields[6] + 3) & ~3


def test_shell_settings_survive_the_shell() -> None:
    values = {"modules": "a b", "release": "6.1 $(false) 'x' \"y\" \\"}
    script = machine.shell_settings(values, ["/init file", "it's", "$HOME"])
    script += 'printf "%s\\0" "$modules" "$release" "$@"'
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split("\0")[:-1] == [*values.values(), "/init file", "it's", "$HOME"]


def test_systemd_word_takes_no_specifier_and_no_variable() -> None:
    assert machine.systemd_word('a "b" %n $HOME \\') == '"a \\"b\\" %%n $$HOME \\\\"'


# Accounts and units ---------------------------------------------------------------------------

ACCOUNTS = etc.Accounts(
    passwd="root:x:0:0:root:/root:/bin/bash\nsomebody:x:2000:2000::/:/bin/sh\n",
    group="root:x:0:\nothers:x:2001:\n",
    subuid="somebody:100000:65536\n",
    subgid="somebody:300000:65536\n",
)


def test_users_take_ids_and_ranges_that_are_free() -> None:
    with_range, without = etc.choose_users(ACCOUNTS, "/scratch")
    assert (with_range.uid, with_range.subid) == (2002, 365536)
    assert (without.uid, without.subid) == (2003, None)


def test_users_are_added_to_what_the_host_has() -> None:
    users = etc.choose_users(ACCOUNTS, "/scratch")
    files = {entry.path: entry.data.decode() for entry in etc.account_files(ACCOUNTS, users)}
    assert files["etc/passwd"] == (
        f"{ACCOUNTS.passwd}vmuser:*:2002:2002::/scratch/vmuser:/bin/sh\n"
        "vmplain:*:2003:2003::/scratch/vmplain:/bin/sh\n"
    )
    assert files["etc/subuid"] == f"{ACCOUNTS.subuid}vmuser:365536:65536\n"
    assert files["etc/subgid"] == f"{ACCOUNTS.subgid}vmuser:365536:65536\n"


def test_systemd_waits_for_the_lingering_user_before_the_tests() -> None:
    user, _ = etc.choose_users(ACCOUNTS, "/scratch")
    files = {entry.path: entry for entry in etc.systemd_files(user, '"agent"')}
    unit = files["etc/systemd/system/container-vm.service"].data.decode()
    assert "Requires=user@2002.service" in unit
    assert 'ExecStart="agent"\n' in unit
    assert "var/lib/systemd/linger/vmuser" in files
    assert files["etc/systemd/system/tmp.mount"] == cpio.link(
        "etc/systemd/system/tmp.mount", "/dev/null"
    )


def test_only_closed_directories_on_the_way_are_opened(tmp_path: Path) -> None:
    inside = tmp_path / "open/closed/tree"
    inside.mkdir(parents=True)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "open/closed").chmod(0o700)
    inside.chmod(0o755)
    found = machine.passages([inside])
    assert str(tmp_path / "open/closed") in found
    assert str(tmp_path / "open") not in found
    assert str(inside) not in found


@pytest.mark.parametrize("place", ["/run/user/0/tree", "/dev/shm/tree", "/proc/self/cwd"])
def test_tree_that_the_machine_would_not_see_is_refused(place: str) -> None:
    with pytest.raises(SetupError, match="cannot see it"):
        machine.check_places([Path(place)])


# Kernels and packages -------------------------------------------------------------------------

MODULES_DEP = """\
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/virtio/virtio_ring.ko.xz:
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz \
kernel/drivers/virtio/virtio.ko.xz
kernel/net/9p/9pnet-virtio.ko.xz: kernel/drivers/virtio/virtio.ko.xz
"""


def test_modules_are_loaded_after_what_they_need_and_once() -> None:
    order = kernels.load_order(MODULES_DEP, "", ["virtio_pci", "9pnet_virtio"])
    names = [kernels.module_name(path) for path in order]
    assert names == ["virtio", "virtio_ring", "virtio_pci", "9pnet_virtio"]


def test_built_in_modules_are_not_loaded() -> None:
    built_in = "kernel/drivers/virtio/virtio_pci.ko\n"
    assert kernels.load_order(MODULES_DEP, built_in, ["virtio_pci"]) == []


def test_missing_module_is_named() -> None:
    with pytest.raises(SetupError, match="no module overlay"):
        kernels.load_order(MODULES_DEP, "", ["overlay"])


def bz_image(payload: bytes) -> bytes:
    """A kernel image of one setup sector with `payload` and its size behind it."""
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 64, len(payload) + 4)
    return bytes(image) + b"\0" * 64 + payload + struct.pack("<I", 0) + b"behind"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_plain_kernel_is_taken_out_of_its_image(
    pack: Callable[[bytes], bytes],
) -> None:
    plain = b"\x7fELF" + bytes(1000)
    assert kernels.vmlinux(bz_image(pack(plain))) == plain


@pytest.mark.parametrize("image", [b"MZ", bz_image(b"no ELF"), bytes(2048)])
def test_other_kernel_images_are_refused(image: bytes) -> None:
    with pytest.raises(SetupError, match="the kernel image"):
        kernels.vmlinux(image)


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    assert kernels.cache_folder({}) == Path("/home/x/.cache/container-vm")
    assert kernels.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/container-vm")


def test_lock_keeps_another_run_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with kernels.locked(path), path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished folder of the cache."""
    made = tmp_path / "6.1"
    (made / "lib").mkdir(parents=True)
    for name in ("vmlinux", "lib/one", "lib/two"):
        (made / name).write_text(f"{name}\n")
    (made / "lib/link").symlink_to("/nowhere")
    manifest.write(made)
    return made


def test_finished_folder_is_whole(folder: Path) -> None:
    assert manifest.damage(folder) is None


def _same_size(folder: Path) -> None:
    (folder / "lib/one").write_text("lib/0ne\n")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda folder: os.truncate(folder / "vmlinux", 3), "vmlinux has changed"),
    "other bytes": (_same_size, "lib/one has changed"),
    "missing": (lambda folder: (folder / "lib/two").unlink(), "missing.*lib/two"),
    "too many": (lambda folder: (folder / "new").touch(), "too many.*new"),
    "not finished": (lambda folder: (folder / manifest.NAME).unlink(), "no list of its files"),
    "empty list": (lambda folder: os.truncate(folder / manifest.NAME, 0), "too many"),
    "half a list": (lambda folder: os.truncate(folder / manifest.NAME, 100), "too many|changed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_told_and_fetched_anew(
    folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, told = DAMAGES[damage]
    fetched: list[tuple[str, Path]] = []
    monkeypatch.setattr(kernels, "_fetch", lambda *what: fetched.append(what))
    kernels.prepare("6.1", folder.parent)
    assert fetched == []
    make(folder)
    assert re.search(told, manifest.damage(folder) or "")
    kernels.prepare("6.1", folder.parent)
    assert fetched == [("6.1", folder)]


def test_archive_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'case "$*" in *indextargets*) echo "Debian|Debian|http://c/";; *) exit 100;; esac'
    fake_program(tmp_path, "apt-get", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = "cannot fetch the package lists of trixie from http://c/: apt-get says above why"
    with pytest.raises(SetupError, match=told):
        debian.Archive("trixie", tmp_path / "apt")


def fake_program(folder: Path, name: str, script: str) -> None:
    """An executable shell script."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_missing_programs_are_named_by_their_packages(tmp_path: Path) -> None:
    fake_program(tmp_path, "nft", "")
    (tmp_path / "plain").touch()
    tools = {"nft": "nftables", "plain": "p", f"{tmp_path}/pl*": "q", "/nowhere/*": "r"}
    assert debian.missing(tools, str(tmp_path)) == ["p", "r"]


def test_suite_without_such_a_kernel_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'case "$*" in *indextargets*) echo "Debian|Debian|http://c/";; *simulate*) exit 100; esac'
    )
    fake_program(tmp_path, "apt-get", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    archive = debian.Archive("backports", tmp_path / "apt")
    told = "backports has no linux-image that is whole: apt-get ended with status 100"
    with pytest.raises(SetupError, match=told):
        archive.closure("linux-image", "linux-")


def test_what_another_run_has_installed_meanwhile_is_not_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "check_places", lambda _: None)
    monkeypatch.setattr(debian, "install", lambda packages: pytest.fail(f"installs {packages}"))
    answers = [["qemu-system-x86"], [], []]  # before the lock, with it, at last
    monkeypatch.setattr(debian, "missing", lambda *_: answers.pop(0))
    command.check_host(command.parse([]))
    assert answers == []
    assert (tmp_path / "container-vm/lock").exists()


def test_ordinary_user_is_told_what_root_must_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SetupError, match=r"only root .* apt-get install .* kmod qemu"):
        debian.install(["kmod", "qemu"])


def test_archive_is_debians_and_not_its_security_or_a_foreign_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = (
        "Google|Google|http://a/",
        "Debian|Debian-Security|http://b/",
        "Debian|Debian|http://c/",
    )
    fake_program(tmp_path, "apt-get", "printf '%s\\n' " + " ".join(f"'{t}'" for t in targets))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert debian.archive_uri() == "http://c/"


def test_host_without_debian_sources_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program(tmp_path, "apt-get", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no Debian archive"):
        debian.archive_uri()
