# SPDX-License-Identifier: Apache-2.0
"""Devices in containers: whose node it is, its mode and owner, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Protocol

import pytest
from system.helpers import attempt, caller, inside, lines, mounts_inside, tree

import container
from container import Config, Device, IDMapping, LaunchError, Namespaces, UnsupportedError

pytestmark = [pytest.mark.needs("userns"), pytest.mark.kernel]

BARE = Namespaces(user=False)
SHOW = "stat -c '%F %a %u %g %t:%T' "


class AsUser(Protocol):
    """The fixture as_user."""

    def __call__(self, program: Any, **options: Any) -> Any: ...


def closed_device() -> Device:
    """One of this host that only root may open."""
    for name in sorted(os.listdir("/dev")):
        status = os.lstat(f"/dev/{name}")
        if stat.S_ISCHR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600:
            number = status.st_rdev
            return Device(f"/dev/{name}", "c", os.major(number), os.minor(number))
    pytest.skip("every device of this host is open to others than root")


def test_in_a_user_namespace_the_hosts_node_is_bound_and_works() -> None:
    devices = [Device("/dev/more/zero", "c", 1, 5), Device("/dev/alias", "c", 1, 3, 0o666)]
    config = Config(devices=devices)
    source = """
        names = ("/dev/more/zero", "/dev/alias")
        answer = [open(name, "rb").read(3).hex() for name in names]
        answer += [os.path.exists(f"/dev/{name}") for name in ("null", "tty")]
        """
    assert inside(source, config=config) == ["000000", "", True, True]
    assert {"/dev/more/zero", "/dev/alias"} <= set(mounts_inside(config=config))


def test_a_device_in_the_place_of_a_default_one_replaces_it() -> None:
    config = Config(devices=[Device("/dev/zero", "c", 1, 3)])
    assert lines("stat -c %t:%T /dev/zero /dev/null", config=config) == ["1:3", "1:3"]


@pytest.mark.needs("root")
def test_a_device_that_nobody_in_the_container_could_open_is_refused() -> None:
    with pytest.raises(UnsupportedError) as caught:
        container.run(["true"], config=Config(devices=[closed_device()]))
    assert caught.value.field == "devices[0]"


def test_an_ordinary_user_gets_no_device_that_it_may_not_open(as_user: AsUser) -> None:
    device = closed_device()
    done = as_user(
        f"""
        import container
        from container import Config, Device
        device = {device!r}
        try:
            container.run(["true"], config=Config(devices=[device]))
        except PermissionError as error:
            print(isinstance(error, container.LaunchError), error.filename)
        """
    )
    assert (done.stdout, done.stderr) == (f"True {device.path}\n", "")


@pytest.mark.needs("root")
def test_the_hosts_nodes_keep_mode_and_owner_also_where_its_root_is_mapped() -> None:
    ids = [IDMapping(0, 0, 65536)]
    config = Config(uid_mappings=ids, gid_mappings=ids, devices=[Device("/dev/more", "c", 1, 7)])
    # To what they have: nothing changes on the host should it be let through.
    for command in ("chmod 666", "chown 0:0", "touch -c -r /dev/full"):
        for path in ("/dev/full", "/dev/more"):
            result = attempt(f"{command} {path}; cat /etc/passwd > {path}", config=config)
            assert "Read-only file system" in result.stderr, (command, path)
            assert "No space left" in result.stderr  # it is written to as ever


@pytest.mark.needs("root")
def test_without_a_user_namespace_nodes_are_made_with_mode_and_owner() -> None:
    before = set(os.listdir("/dev"))
    devices = [
        Device("/dev/mine", "c", 1, 5, 0o640, 1000, 5),
        Device("/dev/disks/one", "b", 7, 0x12345, 0o600),
        Device("/dev/plain", "c", 0x123, 2),
    ]
    config = Config(namespaces=BARE, devices=devices)
    assert lines(SHOW + "/dev/mine /dev/disks/one /dev/plain /dev/null", config=config) == [
        "character special file 640 1000 5 1:5",
        "block special file 600 0 0 7:12345",
        "character special file 666 0 0 123:2",
        "character special file 666 0 0 1:3",
    ]
    assert lines("head -c 2 /dev/mine | od -An -tx1", config=config) == [" 00 00"]
    assert set(os.listdir("/dev")) == before


@pytest.mark.needs("root")
def test_without_a_user_namespace_no_node_is_the_hosts_own() -> None:
    # Its root could change mode and owner of it.
    config = Config(namespaces=BARE)
    names = [str(device.path) for device in container.default_devices()]
    found = lines(f"stat -c %d:%i {' '.join(names)}", config=config)
    host = {f"{os.stat(name).st_dev}:{os.stat(name).st_ino}" for name in names}
    assert len(found) == len(names)
    assert not set(found) & host
    places = set(mounts_inside(config=config))
    assert not places & set(names)


@pytest.mark.needs("root")
def test_a_node_that_may_not_be_made_is_an_error_and_a_default_one_is_bound() -> None:
    # The launcher's rights are the caller's: without CAP_MKNOD.
    told = caller(
        """
        class Header(ctypes.Structure):
            _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
        class Data(ctypes.Structure):
            _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "rest")]
        header, data = Header(0x20080522, 0), (Data * 2)()
        check(libc.capget(ctypes.byref(header), data))
        data[0].effective &= ~(1 << 27)
        data[0].permitted &= ~(1 << 27)
        check(libc.capset(ctypes.byref(header), data))
        bare = Namespaces(user=False)
        less = Capabilities(*[default_capabilities() - {Capability.MKNOD}] * 3)
        config = Config(namespaces=bare, capabilities=less)
        tell(run(["stat", "-c", "%t:%T", "/dev/null"], config=config, text=True).stdout)
        import dataclasses
        more = dataclasses.replace(config, devices=[Device("/dev/x", "c", 1, 5)])
        try:
            run(["true"], config=more)
        except PermissionError as error:
            tell([error.step, error.errno, error.filename])
        """
    )
    assert told == ["1:3\n", ["filesystem", 1, "/dev/x"]]


@pytest.mark.needs("busybox")
@pytest.mark.parametrize("bare", [False, True])
def test_without_a_dev_of_ours_the_image_has_its_own(fresh_root: Path, bare: bool) -> None:
    if bare and os.geteuid() != 0:
        pytest.skip("needs root")
    (fresh_root / "dev/thing").write_text("thing")
    before = tree(fresh_root)
    namespaces = Namespaces(user=not bare)
    config = Config(fresh_root, setup_dev=False, namespaces=namespaces)
    assert lines("ls /dev; cat /dev/thing", config=config) == ["thing", "thing"]
    assert [place for place in mounts_inside(config=config) if place.startswith("/dev")] == []
    assert tree(fresh_root) == before


@pytest.mark.needs("root", "busybox")
def test_no_node_of_the_image_opens_where_dev_is_its_own(fresh_root: Path) -> None:
    null = fresh_root / "dev/null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    config = Config(fresh_root, setup_dev=False, namespaces=BARE)
    result = attempt("cat /dev/null", config=config)
    assert "Permission denied" in result.stderr


@pytest.mark.needs("busybox")
def test_what_the_image_has_in_the_place_of_a_device_does_not_matter(fresh_root: Path) -> None:
    (fresh_root / "decoy").write_text("decoy")
    (fresh_root / "dev/more").symlink_to("/")
    (fresh_root / "dev/alias").symlink_to("/decoy")
    before = tree(fresh_root)
    devices = [Device("/dev/more/decoy", "c", 1, 5), Device("/dev/alias", "c", 1, 3)]
    config = Config(fresh_root, devices=devices)
    assert lines("stat -c %t:%T /dev/more/decoy /dev/alias", config=config) == ["1:5", "1:3"]
    assert tree(fresh_root) == before


def test_a_device_that_is_gone_is_named() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        container.run(["true"], config=Config(devices=[Device("/dev/x", "b", 4095, 1)]))
    assert isinstance(caught.value, LaunchError)
    assert "4095:1" in str(caught.value)
