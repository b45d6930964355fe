# SPDX-License-Identifier: Apache-2.0
"""Users by name: from the files of the container's root, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from system.conftest import OrdinaryUser
from system.helpers import inside, lines, parse_status, shell

import container
from container import Config, ConfigError, Container, HostRoot, Mount, Overlay, Process

pytestmark = pytest.mark.needs("userns")
as_root = pytest.mark.needs("root", "idmap")

PASSWD = "root:x:0:0:::\nalice:x:1000:1001::/home/alice:/bin/sh\n"
GROUP = "root:x:0:\nusers:x:1001:\nwheel:x:10:alice,bob\naudio:x:29:alice\nothers:x:30:bob\n"
WHO = "id -u; id -g; id -G; echo $HOME"


@pytest.fixture
def image(fresh_root: Path) -> Path:
    (fresh_root / "etc/passwd").write_text(PASSWD)
    (fresh_root / "etc/group").write_text(GROUP)
    return fresh_root


# Who it is ----------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, ["0", "0", "0", "/root"]),
        ("root", ["0", "0", "0", "/root"]),
        ("alice", ["1000", "1001", "1001 10 29", "/home/alice"]),
        ("alice:wheel", ["1000", "10", "10", "/home/alice"]),
        ("alice:77", ["1000", "77", "77", "/home/alice"]),
        ("1000:wheel", ["1000", "10", "10", "/home/alice"]),
        ("1000:1001", ["1000", "1001", "1001", "/home/alice"]),
        (1000, ["1000", "0", "0", "/home/alice"]),
        ("77:78", ["77", "78", "78", "/"]),
    ],
)
def test_the_kernel_has_the_ids_of_the_files_of_the_image(
    image: Path, user: Any, expected: list[str]
) -> None:
    assert lines(WHO, root=image, user=user) == expected


@as_root
def test_all_four_ids_and_the_groups_are_set_as_seen_from_outside(image: Path) -> None:
    with Container(Config(root=image)) as box:
        box.run(Process(["sleep", "1000"], user="alice", groups=(50,)))
        status = parse_status(Path(f"/proc/{box.pid}/status").read_text())
        first = int(Path(f"/proc/{box.pid}/uid_map").read_text().split()[1])
    assert status["Uid"].split() == [str(first + 1000)] * 4
    assert status["Gid"].split() == [str(first + 1001)] * 4
    assert {int(word) - first for word in status["Groups"].split()} == {1001, 10, 29, 50}


@as_root
def test_a_file_that_denies_the_primary_group_of_a_name_denies_it(image: Path) -> None:
    for name, group in (("primary", 1001), ("supplementary", 10), ("foreign", 30)):
        (image / name).write_text(name)
        os.chown(image / name, 0, group)
        (image / name).chmod(0o604)
    script = "for f in primary supplementary foreign; do cat /$f 2>/dev/null; done; true"
    assert shell(script, root=image, user="alice") == "foreign"


def test_the_users_of_a_host_root_are_its_own_and_not_the_hosts() -> None:
    for name in ("daemon", "www-data", "nosuchuser"):
        with pytest.raises(ConfigError) as caught:
            container.run(["true"], user=name)
        assert caught.value.field == "user"
    assert lines("id -u; echo $HOME", user="root") == ["0", "/root"]


@as_root
def test_a_host_root_has_nobody() -> None:
    assert lines(WHO, user="nobody") == ["65534", "65534", "65534", "/nonexistent"]


@as_root
@pytest.mark.parametrize("target", ["/etc/passwd", "/etc"])
@pytest.mark.parametrize("of_host", [False, True])
def test_a_bind_over_the_files_is_what_counts(image: Path, target: str, of_host: bool) -> None:
    other = image.parent / "other"
    other.mkdir()
    (other / "passwd").write_text("alice:x:2000:2001::/elsewhere:\n")
    source = other / "passwd" if target == "/etc/passwd" else other
    mount = Mount.bind(source, target, read_only=True)
    root = HostRoot(extra=[mount]) if of_host else image
    config = Config() if of_host else Config(mounts=[mount])
    groups = "2001 10 29" if target == "/etc/passwd" and not of_host else "2001"
    expected = ["2000", "2001", groups, "/elsewhere"]
    assert lines(WHO, root=root, config=config, user="alice") == expected


@as_root
def test_a_tmpfs_over_the_files_leaves_no_name(image: Path) -> None:
    config = Config(root=image, mounts=[Mount.tmpfs("/etc")])
    with pytest.raises(ConfigError, match="write a number"):
        container.run(["true"], config=config, user="alice")


@pytest.mark.needs("overlay")
def test_in_an_overlay_the_first_layer_that_has_or_hides_a_file_counts(image: Path) -> None:
    layers = {name: image.parent / name for name in ("top", "middle", "opaque", "deleted")}
    for layer in layers.values():
        (layer / "etc").mkdir(parents=True)
    (layers["top"] / "etc/passwd").write_text("root:x:0:0::/of/the/top:\n")
    os.setxattr(layers["opaque"] / "etc", "user.overlay.opaque", b"y")

    def home(*names: str) -> list[str]:
        overlay = Overlay([layers[name] for name in names] + [image])
        return lines("echo $HOME", root=overlay, user="root")

    (image / "etc/passwd").write_text("root:x:0:0::/of/the/image:\n")
    assert home("middle") == ["/of/the/image"]
    assert home("top", "middle") == ["/of/the/top"]
    assert home("middle", "top") == ["/of/the/top"]
    with pytest.raises(ConfigError, match="write a number"):
        home("opaque", "top")
    if os.geteuid() == 0:
        os.mknod(layers["deleted"] / "etc/passwd", 0o020000, os.makedev(0, 0))
        with pytest.raises(ConfigError, match="write a number"):
            home("deleted", "top")
        with pytest.raises(ConfigError, match="no regular file"):
            container.run(["true"], root=layers["deleted"], user="root")


# What an image can do to it -----------------------------------------------------------------------


def passwd_fifo(etc: Path) -> None:
    os.mkfifo(etc / "passwd")


def passwd_directory(etc: Path) -> None:
    (etc / "passwd").mkdir()


def passwd_loop(etc: Path) -> None:
    (etc / "passwd").symlink_to("passwd")


def passwd_huge(etc: Path) -> None:
    with open(etc / "passwd", "w") as file:
        file.write("alice:x:1000:1000::/:\n")
        file.truncate(1 << 30)


def passwd_kcore(etc: Path) -> None:
    (etc / "passwd").symlink_to("/proc/kcore")


def passwd_of_the_host(etc: Path) -> None:
    (etc / "passwd").symlink_to("../../../../../../../etc/passwd")


def passwd_magic(etc: Path) -> None:
    (etc / "passwd").symlink_to("/proc/self/root/etc/passwd")


def passwd_socket(etc: Path) -> None:
    os.mknod(etc / "passwd", 0o140644)


def etc_outside(etc: Path) -> None:
    for file in etc.iterdir():
        file.unlink()
    etc.rmdir()
    outside = etc.parent.parent / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("alice:x:4000:4000::/:\n")
    etc.symlink_to(f"../../../../../../../..{outside}")


@pytest.mark.parametrize(
    "spoil",
    [
        passwd_fifo,
        passwd_directory,
        passwd_loop,
        passwd_huge,
        passwd_kcore,
        passwd_of_the_host,
        passwd_magic,
        passwd_socket,
        etc_outside,
    ],
)
def test_a_passwd_that_is_a_trap_is_refused_for_a_name_and_ignored_for_a_number(
    fresh_root: Path, spoil: Any
) -> None:
    spoil(fresh_root / "etc")
    for name in ("alice", "daemon", "alice:0"):
        with pytest.raises(ConfigError) as caught:
            container.run(["true"], root=fresh_root, user=name)
        assert caught.value.field == "user"
    # Not by id(1), which reads the file.
    script = "grep ^Uid: /proc/self/status; echo $HOME"
    assert lines(script, root=fresh_root, user="0:0") == ["Uid:\t0\t0\t0\t0", "/root"]


def test_a_link_inside_the_image_is_followed_as_the_container_would(image: Path) -> None:
    (image / "usr").mkdir()
    (image / "usr/passwd").write_text("root:x:0:0::/from/the/link:\n")
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").symlink_to("/../usr/passwd")
    assert lines("id -u; echo $HOME", root=image, user="root") == ["0", "/from/the/link"]


@as_root
def test_no_device_of_an_image_is_opened(image: Path) -> None:
    # A null would read as empty: no user. What is refused is the kind of file.
    (image / "etc/passwd").unlink()
    os.mknod(image / "etc/passwd", 0o020666, os.makedev(1, 3))
    with pytest.raises(ConfigError, match="no regular file"):
        container.run(["true"], root=image, user="alice")


@pytest.mark.parametrize(
    "user",
    [
        *("4294967295", "4294967296", "18446744073709551616", "-1", "0x0", "1000:", ":0", " 0"),
        *("00", "+0", "0\n", "root:", "root\n", "1e3", "\u0660", "evil", "0:evil", "minus"),
    ],
)
def test_an_odd_user_is_an_error_that_names_the_field(fresh_root: Path, user: str) -> None:
    (fresh_root / "etc/passwd").write_text(
        "4294967296:x:0:0::/:\n-1:x:0:0::/:\n0x0:x:0:0::/:\nevil:x:0:0::/:\nminus:x:-1:0::/:\n"
    )
    (fresh_root / "etc/group").write_text("evil:x:0:\n")
    with pytest.raises(ConfigError) as caught:
        container.run(["true"], root=fresh_root, user=user)
    assert caught.value.field == "user"


@as_root
def test_an_image_that_keeps_changing_its_passwd_can_only_choose_among_its_own_users(
    image: Path,
) -> None:
    # Another container swaps file and link to a file of the host while names are looked up.
    decoy = image.parent / "decoy"
    decoy.write_text("alice:x:0:0::/decoy:\n")
    script = f"""
    ln -s ../../../../../../../..{decoy} /etc/link
    cp /etc/passwd /etc/file
    while :; do cp /etc/file /etc/new; mv /etc/new /etc/passwd; cp -P /etc/link /etc/new; \
        mv /etc/new /etc/passwd; done
    """
    seen = set()
    with Container(Config(root=image)) as attacker:
        attacker.run(Process(["sh", "-c", script]))
        for _ in range(200):
            try:
                answer = container.run(["id", "-u"], root=image, user="alice", text=True)
            except ConfigError:
                seen.add("refused")
            else:
                seen.add(answer.stdout.strip())
    assert seen <= {"1000", "refused"}
    assert "1000" in seen


# An ordinary user ---------------------------------------------------------------------------------


@pytest.mark.needs("rootless", "single_id")
def test_an_ordinary_user_has_root_by_name_and_nobody_else(as_user: OrdinaryUser) -> None:
    done = as_user(
        """
        import container
        print(container.run(["id", "-u"], user="root:root", text=True, check=True).stdout)
        try:
            container.run(["true"], user="nobody")
        except container.ConfigError as error:
            print(error)
        """
    )
    assert done.stderr == ""
    root, _, refused = done.stdout.partition("\n")
    assert root == "0"
    assert "id 65534 is not mapped" in refused


def test_the_environment_may_say_another_home(image: Path) -> None:
    assert inside("answer = os.environ['HOME']", env={"HOME": "/given"}) == "/given"
    assert lines("echo $HOME", root=image, user="root", env={"HOME": "/x"}) == ["/x"]
