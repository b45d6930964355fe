# SPDX-License-Identifier: Apache-2.0
"""What is said of networks: modes, addresses, ports, allow-lists, and what is wrong with them."""

from __future__ import annotations

import copy
import pickle
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container import (
    DEFAULT_BRIDGE_GATEWAY,
    DEFAULT_BRIDGE_NAME,
    DEFAULT_BRIDGE_SUBNET,
    Config,
    ConfigError,
    Namespaces,
    NetworkConfig,
    NetworkMode,
    PortMapping,
    UnsupportedError,
    port_mappings_from_strings,
)
from container._config import parse_egress


def test_the_defaults_are_those_of_the_reference() -> None:
    assert DEFAULT_BRIDGE_NAME == "container0"
    assert DEFAULT_BRIDGE_SUBNET == "10.88.0.0/16"
    assert DEFAULT_BRIDGE_GATEWAY == "10.88.0.1/16"
    config = NetworkConfig()
    assert (config.mode, config.bridge) == (NetworkMode.BRIDGE, DEFAULT_BRIDGE_NAME)
    assert config.subnet_of(4) == DEFAULT_BRIDGE_SUBNET
    assert f"{config.gateway_of(4)}/16" == DEFAULT_BRIDGE_GATEWAY


# Ports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("8080:80", PortMapping(None, 8080, 80, "tcp")),
        ("8080:80/udp", PortMapping(None, 8080, 80, "udp")),
        ("127.0.0.1:8080:80/udp", PortMapping("127.0.0.1", 8080, 80, "udp")),
        ("0.0.0.0:1:65535/sctp", PortMapping("0.0.0.0", 1, 65535, "sctp")),
        ("[2001:db8::1]:8080:80", PortMapping("2001:db8::1", 8080, 80, "tcp")),
        ("[::]:8080:80", PortMapping("::", 8080, 80, "tcp")),
        ("7-7:8", PortMapping(None, 7, 8, "tcp")),
    ],
)
def test_a_mapping_is_parsed(text: str, mapping: PortMapping) -> None:
    assert PortMapping.parse(text) == mapping
    if "-" not in text:
        assert PortMapping.parse(str(mapping)) == mapping


@pytest.mark.parametrize(
    "text",
    [
        *("", "80", ":80", "80:", "a:80", "80:80:80:80", "70000:80", "0:80", "80:0", "80:65536"),
        *(
            "80:80/icmp",
            "80:80/",
            "80:80/TCP",
            " 80:80",
            "80:80\n",
            "-1:80",
            "+80:80",
            "\uff180:80",
        ),
        *("1-2:1-3", "2-1:2-1", "1-2:1-2", "1.2.3:80:80", "1.2.3.4.5:80:80", "[::1:80:80"),
        *("::1:80:80", "[1.2.3.4:80:80", "host:80:80", "[fe80::1%eth0]:80:80", "9" * 5000 + ":1"),
    ],
)
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="text"):
        PortMapping.parse(text)


def test_ranges_expand() -> None:
    assert port_mappings_from_strings(["8080-8082:80-82", "127.0.0.1:5-6:7-8/udp"]) == [
        *(PortMapping(None, 8080 + i, 80 + i, "tcp") for i in range(3)),
        *(PortMapping("127.0.0.1", 5 + i, 7 + i, "udp") for i in range(2)),
    ]
    assert port_mappings_from_strings([]) == []


def test_the_string_at_fault_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        port_mappings_from_strings(["80:80", "80"])
    assert caught.value.field == "texts[1]"
    with pytest.raises(ConfigError):
        port_mappings_from_strings("80:80")


def test_loopback_of_ip6_cannot_be_had() -> None:
    with pytest.raises(UnsupportedError, match=r"127\.0\.0\.1"):
        PortMapping.parse("[::1]:8080:80")


@settings(deadline=None)
@given(st.integers(1, 65535), st.integers(1, 65535), st.sampled_from(["tcp", "udp", "sctp"]))
def test_every_mapping_survives_its_text(host: int, inside: int, protocol: str) -> None:
    mapping = PortMapping(None, host, inside, protocol)
    assert PortMapping.parse(str(mapping)) == mapping


# NetworkConfig ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("mode", {"mode": "bridged"}),
        ("bridge", {"bridge": "a" * 16}),
        ("bridge", {"bridge": 'x" ; flush'}),
        ("bridge", {"bridge": ""}),
        ("bridge", {"bridge": "a/b"}),
        ("bridge", {"bridge": "a b"}),
        ("bridge", {"bridge": ".."}),
        ("bridge", {"bridge": "all"}),
        ("bridge", {"bridge": 7}),
        ("subnet", {"subnet": "10.0.0.1/8"}),
        ("subnet", {"subnet": "10.0.0.0/31"}),
        ("subnet", {"subnet": "127.0.0.0/8"}),
        ("subnet", {"subnet": "fd00::/64"}),
        ("subnet6", {"subnet6": "10.0.0.0/8"}),
        ("subnet6", {"subnet6": "fe80::/64"}),
        ("gateway", {"gateway": "10.89.0.1"}),
        ("gateway", {"gateway": "10.88.0.0"}),
        ("gateway", {"gateway": "10.88.255.255"}),
        ("gateway", {"gateway": "10.88.0.1/24", "subnet": "10.88.0.0/16"}),
        ("ip_address", {"ip_address": "10.89.0.2"}),
        ("ip_address", {"ip_address": "10.88.0.1"}),
        ("ip_address", {"ip_address": "10.88.0.2", "gateway": "10.88.0.2"}),
        ("ip_address", {"ip_address": "10.88.0"}),
        ("ip_address", {"ip_address": 7}),
        ("ip6_address", {"ip6_address": "fd01::2", "subnet6": "fd00::/64"}),
        ("dns[1]", {"dns": ["10.0.0.1", "dns.example"]}),
        ("dns[0]", {"dns": ["10.0.0.1\nnameserver 10.0.0.2"]}),
        ("dns_search[0]", {"dns_search": ["a b"]}),
        ("dns_search[0]", {"dns_search": ["a\noptions x"]}),
        ("dns_options[0]", {"dns_options": ["ndots:1\n"]}),
        ("hostname", {"hostname": "web\n10.0.0.1 bank"}),
        ("hostname", {"hostname": "-web"}),
        ("aliases[0]", {"aliases": ["a b"]}),
        ("port_mappings[0]", {"port_mappings": ["80"]}),
        ("port_mappings[1]", {"port_mappings": ["80:80", "80:81"]}),
        ("port_mappings[0]", {"port_mappings": ["[::]:80:80"]}),
        ("mtu", {"mtu": 67}),
        ("mtu", {"mtu": 1279, "subnet6": "fd00::/64"}),
        ("mac_address", {"mac_address": "01:00:00:00:00:01"}),
        ("mac_address", {"mac_address": "00:00:00:00:00:00"}),
        ("mac_address", {"mac_address": "02:00:00:00:01"}),
        ("peers[0]", {"peers": ["a" * 16]}),
        ("egress", {"egress": "private"}),
        ("egress[0]", {"egress": ["example.org"]}),
        ("egress[0]", {"egress": ["10.0.0.0/8:0"]}),
        ("egress[0]", {"egress": ["10.0.0.0/8:80/icmp"]}),
        ("adjust_firewall", {"adjust_firewall": 1}),
        ("port_mappings", {"mode": "host", "port_mappings": ["80:80"]}),
        ("egress", {"mode": "none", "egress": ()}),
    ],
)
def test_what_cannot_be_is_named(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig(**options)
    assert caught.value.field == field


def test_an_address_with_its_prefix_says_the_subnet() -> None:
    config = NetworkConfig(bridge="b", ip_address="10.5.0.9/24")
    assert (config.subnet_of(4), config.gateway_of(4)) == ("10.5.0.0/24", "10.5.0.1")


def test_addresses_may_be_objects() -> None:
    config = NetworkConfig(ip_address=ip_address("10.88.0.9"), subnet=ip_network("10.88.0.0/16"))
    assert (config.ip_address, config.subnet) == ("10.88.0.9", "10.88.0.0/16")


def test_a_config_survives_pickle_and_copy() -> None:
    config = NetworkConfig(port_mappings=["80:80"], egress=["10.0.0.0/8:53/udp"], dns=[])
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))
    whole = Config(network=[config, NetworkConfig(bridge="other")])
    assert pickle.loads(pickle.dumps(whole)) == whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", ("10.0.0.0/8", None, 0, 65535)),
        ("192.0.2.7:443", ("192.0.2.7/32", "tcp", 443, 443)),
        ("192.0.2.0/24:1-9/udp", ("192.0.2.0/24", "udp", 1, 9)),
        ("2001:db8::/32", ("2001:db8::/32", None, 0, 65535)),
        ("[2001:db8::1]:53/udp", ("2001:db8::1/128", "udp", 53, 53)),
    ],
)
def test_an_entry_of_an_allow_list_is_parsed(text: str, expected: tuple[Any, ...]) -> None:
    entry = parse_egress(text, "egress")
    assert (entry.network, entry.protocol, entry.first, entry.last) == expected


# Config -------------------------------------------------------------------------------------------


def test_the_hosts_network_needs_no_namespace() -> None:
    assert Config(network=NetworkConfig("host")).namespaces.net is False
    assert Config(network=NetworkConfig("none")).namespaces.net is True
    assert Config(network=NetworkConfig("none")).bridges == ()


@pytest.mark.parametrize("net", [False, "/proc/1/ns/net"])
def test_a_bridge_needs_a_new_namespace(net: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(network=NetworkConfig(), namespaces=Namespaces(net=net))
    assert caught.value.field == "network"


def test_several_networks_are_bridges_and_differ() -> None:
    two = [NetworkConfig(), NetworkConfig(bridge="other")]
    assert Config(network=two).bridges == tuple(two)
    wrong: Any
    for wrong in ([NetworkConfig(), NetworkConfig()], [NetworkConfig("host")], "bridge"):
        with pytest.raises(ConfigError):
            Config(network=wrong)
