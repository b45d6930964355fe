# SPDX-License-Identifier: Apache-2.0
"""Which addresses there are. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any

from container._config import PUBLIC, parse_egress
from container._errors import ConfigError, NetworkError, publish

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What is not of the public Internet: the registries of RFC 6890 and its updates, and multicast.
_PRIVATE = {
    4: (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
    ),
}
# Of IPv6 it is one block alone that has public addresses, less what stands for IPv4 in it.
_PUBLIC6 = "2000::/3"
_PRIVATE6 = ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
_ANY_PORT = (0, 2**16 - 1)
_ANY_PROTOCOL = (0, 2**8 - 1)
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

Interval = tuple[int, int]
"""The first and the last."""


def parse_subnet(subnet: object, field: str = "subnet") -> Network:
    try:
        return ipaddress.ip_network(str(subnet))
    except ValueError as error:
        raise ConfigError(str(error), field=field) from None


def hosts_of(network: Network) -> range:
    """The numbers of the addresses that a host may have, as distances from that of the network."""
    last = network.num_addresses
    if network.version == 4 and network.prefixlen < 31:
        last -= 1  # that of the broadcast
    return range(0 if network.num_addresses <= 2 else 1, last)


def allocate_ip(subnet: object, used: Iterable[object] = ()) -> str:
    """The lowest address of ``subnet`` that is not among the ``used`` ones, such as
    ``"10.88.0.2/16"``. Pure: see `lease_ip` for one that nobody else on the machine takes.

    The first of the subnet is the gateway's, and the last of IPv4 the broadcast's. `NetworkError`
    when all are taken. The used ones may have a prefix.
    """
    network = parse_subnet(subnet)
    taken = {_parse_used(address, index) for index, address in enumerate(used)}
    for number in hosts_of(network)[1:]:
        address = network[number]
        if address not in taken:
            return f"{address}/{network.prefixlen}"
    raise NetworkError(f"every address of {network} is taken")


def _parse_used(address: object, index: int) -> Any:
    try:
        return ipaddress.ip_interface(str(address)).ip
    except ValueError as error:
        raise ConfigError(str(error), field=f"used[{index}]") from None


def overlaps(one: str, other: str) -> bool:
    a, b = ipaddress.ip_network(one), ipaddress.ip_network(other)
    return a.version == b.version and a.overlaps(b)


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def version_of(address: str) -> int:
    return ipaddress.ip_address(address.partition("/")[0]).version


def link_local(mac: str) -> str:
    """The address that IPv6 makes of it by itself: RFC 4291, appendix A."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def bounds(network: str) -> tuple[bytes, bytes]:
    """The first address and the last one."""
    parsed = ipaddress.ip_network(network)
    return parsed[0].packed, parsed[-1].packed


def allowed(
    egress: str | Iterable[str], version: int
) -> Iterator[tuple[bytes, bytes, Interval, Interval]]:
    """An allow-list of one family: first and last address, protocols, ports; none overlap."""
    found: dict[tuple[Interval, Interval], list[Network]] = {}
    if egress == PUBLIC:
        found[_ANY_PROTOCOL, _ANY_PORT] = list(_public(version))
    else:
        for index, text in enumerate(egress):
            entry = parse_egress(text, f"egress[{index}]")
            network = ipaddress.ip_network(entry.network)
            if network.version == version:
                number = PROTOCOLS[entry.protocol] if entry.protocol else None
                protocols = _ANY_PROTOCOL if number is None else (number, number)
                found.setdefault((protocols, (entry.first, entry.last)), []).append(network)
    for (protocols, ports), networks in found.items():
        for network in ipaddress.collapse_addresses(networks):  # type: ignore[type-var]
            yield network[0].packed, network[-1].packed, protocols, ports


def _public(version: int) -> Iterator[Network]:
    whole = ipaddress.ip_network("0.0.0.0/0" if version == 4 else _PUBLIC6)
    left: list[Any] = [whole]
    for text in _PRIVATE[4] if version == 4 else _PRIVATE6:
        hole: Any = ipaddress.ip_network(text)
        left = [
            part
            for network in left
            for part in (
                network.address_exclude(hole)
                if hole.subnet_of(network)
                else ()
                if network.subnet_of(hole)
                else (network,)
            )
        ]
    yield from left


publish(allocate_ip)
