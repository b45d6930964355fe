# SPDX-License-Identifier: Apache-2.0
"""Devices: what may be asked for, and which node of the host stands for one."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

import container
from container import Config, ConfigError, Device, LaunchError, UnsupportedError, default_devices
from container._devices import devices_of, find_nodes


def test_the_default_devices_are_those_of_every_container() -> None:
    assert [device.path for device in default_devices()] == [
        *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
    ]
    assert {device.mode for device in default_devices()} == {0o666}
    for device in default_devices():
        assert os.stat(device.path).st_rdev == os.makedev(device.major, device.minor)
    assert Config().devices == default_devices()


def test_they_are_there_whatever_is_asked_for_unless_it_replaces_one() -> None:
    mine = Device("/dev/zero", "c", 1, 3)
    found = devices_of(Config(devices=[mine]))
    assert [device.path for device in found.values()].count("/dev/zero") == 1
    assert found["devices[0]"] == mine
    assert len(devices_of(Config(devices=()))) == len(default_devices())


@pytest.mark.parametrize("kind", ["c", "u", stat.S_IFCHR])
def test_a_type_is_a_letter_or_a_constant_of_stat(kind: Any) -> None:
    assert Device("/dev/x", kind, 1, 2).type == "c"
    assert Device("/dev/x", stat.S_IFBLK, 1, 2) == Device("/dev/x", "b", 1, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("path", each) for each in ("x", "/x", "/dev", "/dev/", "/dev/../x", "/device", 5)),
        *(("path", f"/dev/{each}") for each in ("pts", "pts/0", "shm/x", "ptmx", "fd")),
        *(("type", each) for each in ("p", "", "cc", None, stat.S_IFREG)),
        *(("major", each) for each in (-1, 4096, True)),
        *(("minor", each) for each in (-1, 2**20, "1")),
        *(("mode", each) for each in (-1, 0o1000, "666")),
        *((each, -1) for each in ("uid", "gid")),
    ],
)
def test_a_device_that_cannot_be_is_refused_by_its_field(field: str, value: Any) -> None:
    valid: dict[str, Any] = {"path": "/dev/x", "type": "c", "major": 1, "minor": 2}
    with pytest.raises(ConfigError) as caught:
        Device(**valid | {field: value})
    assert caught.value.field == field


def test_two_devices_have_two_paths_and_a_dev_to_be_in() -> None:
    one = Device("/dev/x", "c", 1, 2)
    for options in ({"devices": [one, one]}, {"devices": [one], "setup_dev": False}):
        with pytest.raises(ConfigError) as caught:
            Config(**options)
        assert str(caught.value.field).startswith("devices")
    assert Config(setup_dev=False).setup_dev is False


def node(device: Device, *, any_id: bool = False) -> str:
    return find_nodes(Config(devices=[device]), any_id=any_id)[str(device.path)]


def test_the_hosts_node_is_that_of_the_same_name_or_the_kernels_own() -> None:
    assert node(Device("/dev/zero", "c", 1, 5)) == "/dev/zero"
    assert node(Device("/dev/x/y", "c", 1, 5), any_id=True) == "/dev/zero"
    # A name that is another device's is not that one.
    assert node(Device("/dev/null", "c", 1, 5)) == "/dev/zero"
    assert find_nodes(Config(), any_id=True) == {}


@pytest.mark.parametrize("device", [("c", 4095, 7), ("b", 1, 5)])
def test_a_device_that_the_host_has_not_cannot_be_bound(device: tuple[str, int, int]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        node(Device("/dev/x", *device))
    assert isinstance(caught.value, LaunchError)
    assert caught.value.filename == "/dev/x"


@pytest.mark.parametrize(("field", "value"), [("mode", 0o600), ("mode", 0), ("uid", 1), ("gid", 5)])
def test_a_bound_node_keeps_its_mode_and_owner(field: str, value: int) -> None:
    options: dict[str, Any] = {field: value}
    with pytest.raises(UnsupportedError) as caught:
        node(Device("/dev/x", "c", 1, 5, **options))
    assert caught.value.field == f"devices[0].{field}"


def test_names_are_public() -> None:
    for each in (Device, default_devices):
        assert each.__module__ == "container"
        assert getattr(container, each.__name__) is each
