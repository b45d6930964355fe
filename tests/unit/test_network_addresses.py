# SPDX-License-Identifier: Apache-2.0
"""Addresses: which are free, which are public."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container import ConfigError, NetworkError, allocate_ip
from container._network._addresses import allowed, link_local


def test_the_lowest_free_address_is_given() -> None:
    assert allocate_ip("10.88.0.0/16") == "10.88.0.2/16"
    assert allocate_ip("10.88.0.0/16", ["10.88.0.2"]) == "10.88.0.3/16"
    assert allocate_ip("10.88.0.0/16", ["10.88.0.2/16", ip_address("10.88.0.3")]) == "10.88.0.4/16"
    assert allocate_ip(ip_network("fd00::/64"), ["fd00::3"]) == "fd00::2/64"


def test_a_small_subnet_is_given_to_its_end() -> None:
    used: list[str] = []
    for _ in range(5):  # 8 addresses less network, gateway, broadcast
        used.append(allocate_ip("192.0.2.8/29", used))
    assert used[-1] == "192.0.2.14/29"
    with pytest.raises(NetworkError, match=r"192\.0\.2\.8/29"):
        allocate_ip("192.0.2.8/29", used)


@settings(deadline=None)
@given(st.integers(20, 29), st.sets(st.integers(0, 4095)))
def test_what_is_given_is_of_the_subnet_and_free(prefix: int, used: set[int]) -> None:
    network = ip_network(f"10.16.0.0/{prefix}")
    taken = [network.network_address + number for number in used]
    try:
        found = ip_interface(allocate_ip(network, taken))
    except NetworkError:
        assert set(list(network.hosts())[1:]) <= set(taken)
        return
    assert found.network == network
    assert found.ip not in taken
    assert found.ip in list(network.hosts())[1:]


@pytest.mark.parametrize("subnet", ["", "10.0.0.1/8", "10.0.0.0/33", "x", 'x" ; flush', None])
def test_what_is_no_subnet_is_refused(subnet: object) -> None:
    with pytest.raises(ConfigError) as caught:
        allocate_ip(subnet)
    assert caught.value.field == "subnet"


def test_what_is_no_address_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        allocate_ip("10.0.0.0/8", ["10.0.0.1", "ten"])
    assert caught.value.field == "used[1]"


def _is_allowed(address: str, version: int) -> bool:
    packed = ip_address(address).packed
    return any(low <= packed <= high for low, high, *_ in allowed("public", version))


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1"),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.0.192"),
        *("::1", "fe80::1", "fd00:ec2::254", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"),
        *("2002:a00:1::", "2001::1"),
    ],
)
def test_what_is_not_public_is_none_of_the_public_addresses(address: str) -> None:
    assert not _is_allowed(address, ip_address(address).version)


@pytest.mark.parametrize("address", ["1.1.1.1", "9.9.9.9", "172.32.0.1", "2606:4700::1"])
def test_what_is_public_is_one_of_them(address: str) -> None:
    assert _is_allowed(address, ip_address(address).version)


def test_entries_that_overlap_become_one() -> None:
    # The kernel refuses a set with elements that overlap.
    entries = ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8:80", "192.0.2.0/24", "192.0.2.0/25"]
    rows = list(allowed(entries, 4))
    assert len([row for row in rows if row[2] == (0, 255)]) == 2


def test_the_link_local_address_is_that_of_rfc_4291() -> None:
    assert link_local("0a:58:0a:58:00:02") == "fe80::858:aff:fe58:2"
