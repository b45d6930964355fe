# SPDX-License-Identifier: Apache-2.0
"""The rules of nftables: two tables of our own, the same whatever there is, and their elements.

What differs from container to container, from bridge to bridge is an element of a set or a map, so
that the rules do not grow: a packet meets some twenty of them and a few lookups, be there a
container or ten thousand ports. Pure but for the encoding.

``inet container``, for what is routed:

* nothing from outside goes to 127.0.0.0/8, though the bridges may route it (route_localnet);
* a *guarded* source makes connections only as its list says (egress);
* published ports: `ports_ip` (address, protocol, port) before `ports_any` (protocol, port);
* between bridges that are no peers nothing is forwarded, nor from elsewhere but to published ports;
* what leaves a subnet of ours bears the host's address, and so does what comes back to the bridge
  that it came from, and what comes from the host's 127.0.0.1.

``bridge container``, for what goes from port to port: a container sends from its own addresses only
(Ethernet, ARP, IP), and neither announces itself as a router nor as another's neighbour.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from container._network._addresses import PROTOCOLS, allowed, bounds, link_local, packed, version_of
from container._network._netlink import (
    ETHER,
    IFNAME,
    IP4,
    IP6,
    PROTOCOL,
    SERVICE,
    Element,
    Expression,
    Field,
    Message,
    chain,
    interface,
    join,
    new_set,
    rule,
    table,
)
from container._network._records import Attachment, Bridge, Port, Record

TABLE: Final = "container"
PORT_PREFIX: Final = "ctr-"
"""How the host's ends of our veths begin, and nobody else's interfaces."""
# Hooks and priorities, include/uapi/linux/netfilter.h and netfilter_ipv4.h, netfilter_bridge.h.
_PREROUTING, _FORWARD, _OUTPUT, _POSTROUTING = 0, 2, 3, 4
_RAW, _DNAT, _EGRESS, _FILTER, _SNAT = -300, -100, -150, 0, 100
_REGISTER = 8  # NFT_REG32_00: the first of those of 4 bytes each
_ACCEPT, _DROP, _RETURN, _JUMP = 1, 0, -5, -3
_IPV4, _IPV6 = 2, 10  # NFPROTO_*
_ICMPV6 = 58
_LINK_HEADER, _NETWORK_HEADER, _TRANSPORT_HEADER = 0, 1, 2
_META_PROTOCOL, _META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 1, 6, 7, 15, 16
_CT_STATE, _CT_STATUS = 0, 2
_ESTABLISHED, _RELATED, _DNAT_STATUS = 1 << 1, 1 << 2, 1 << 5
_ROUTER_ADVERTISEMENT, _SOLICITATION, _ADVERTISEMENT, _REDIRECT = 134, 135, 136, 137
_MLD_REPORTS = (131, 143)

Rule = Sequence[Expression]


# Expressions --------------------------------------------------------------------------------------


def _meta(key: int, register: int = _REGISTER) -> Expression:
    return "meta", [("NFTA_META_DREG", register), ("NFTA_META_KEY", key)]


def _payload(base: int, offset: int, size: int, register: int = _REGISTER) -> Expression:
    return "payload", [
        ("NFTA_PAYLOAD_DREG", register),
        ("NFTA_PAYLOAD_BASE", base),
        ("NFTA_PAYLOAD_OFFSET", offset),
        ("NFTA_PAYLOAD_LEN", size),
    ]


def _cmp(value: bytes, *, equal: bool = True, register: int = _REGISTER) -> Expression:
    return "cmp", [
        ("NFTA_CMP_SREG", register),
        ("NFTA_CMP_OP", 0 if equal else 1),
        ("NFTA_CMP_DATA", [("NFTA_DATA_VALUE", value)]),
    ]


def _mask(mask: bytes) -> Expression:
    return "bitwise", [
        ("NFTA_BITWISE_SREG", _REGISTER),
        ("NFTA_BITWISE_DREG", _REGISTER),
        ("NFTA_BITWISE_LEN", len(mask)),
        ("NFTA_BITWISE_MASK", [("NFTA_DATA_VALUE", mask)]),
        ("NFTA_BITWISE_XOR", [("NFTA_DATA_VALUE", bytes(len(mask)))]),
    ]


def _lookup(name: str, *, absent: bool = False, to: int | None = None) -> Expression:
    attributes: list[tuple[str, str | int]] = [
        ("NFTA_LOOKUP_SET", name),
        ("NFTA_LOOKUP_SREG", _REGISTER),
    ]
    if to is not None:
        attributes.append(("NFTA_LOOKUP_DREG", to))
    if absent:
        attributes.append(("NFTA_LOOKUP_FLAGS", 1))
    return "lookup", attributes


def _verdict(code: int, target: str | None = None) -> Expression:
    verdict: list[tuple[str, bytes | str]] = [("NFTA_VERDICT_CODE", struct.pack(">i", code))]
    if target is not None:
        verdict.append(("NFTA_VERDICT_CHAIN", target))
    return "immediate", [
        ("NFTA_IMMEDIATE_DREG", 0),
        ("NFTA_IMMEDIATE_DATA", [("NFTA_DATA_VERDICT", verdict)]),
    ]


def _any_bit(load: Expression, bits: int) -> Rule:
    return load, _mask(struct.pack("=I", bits)), _cmp(bytes(4), equal=False)


def _ct(key: int) -> Expression:
    return "ct", [("NFTA_CT_DREG", _REGISTER), ("NFTA_CT_KEY", key)]


_ACCEPTED, _DROPPED = _verdict(_ACCEPT), _verdict(_DROP)
_KNOWN = _any_bit(_ct(_CT_STATE), _ESTABLISHED | _RELATED)
_WAS_DNAT = _any_bit(_ct(_CT_STATUS), _DNAT_STATUS)
_FROM_BRIDGE = (_meta(_META_IIFNAME), _lookup("bridges"))
_NOT_FROM_BRIDGE = (_meta(_META_IIFNAME), _lookup("bridges", absent=True))
_TO_BRIDGE = (_meta(_META_OIFNAME), _lookup("bridges"))
_NOT_TO_BRIDGE = (_meta(_META_OIFNAME), _lookup("bridges", absent=True))
_PEERS = (_meta(_META_IIFNAME), _meta(_META_OIFNAME, _REGISTER + 4), _lookup("peers"))
_LOCAL_TARGET: Rule = (
    (
        "fib",
        [("NFTA_FIB_DREG", _REGISTER), ("NFTA_FIB_RESULT", 3), ("NFTA_FIB_FLAGS", 2)],
    ),
    _cmp(struct.pack("=I", 2)),  # RTN_LOCAL
)
_MASQUERADE: Expression = ("masq", [])
_TO_PORT = _payload(_TRANSPORT_HEADER, 2, 2)
_IP_FAMILY = {4: _IPV4, 6: _IPV6}
_SOURCE = {4: (12, 4), 6: (8, 16)}
_TARGET = {4: (16, 4), 6: (24, 16)}


def _family(version: int) -> Rule:
    """Of a packet in ``inet``; in ``bridge`` by its Ethernet type, which is there as well."""
    return _meta(_META_NFPROTO), _cmp(bytes((_IP_FAMILY[version],)))


def _ether_type(number: int) -> Rule:
    return _meta(_META_PROTOCOL), _cmp(struct.pack(">H", number))


_ETHER_TYPES = {4: 0x0800, 6: 0x86DD}
_ARP = 0x0806


def _source(version: int, register: int = _REGISTER) -> Expression:
    return _payload(_NETWORK_HEADER, *_SOURCE[version], register)


def _target(version: int, register: int = _REGISTER) -> Expression:
    return _payload(_NETWORK_HEADER, *_TARGET[version], register)


def _words(version: int) -> int:
    return 1 if version == 4 else 4


def _in_range(version: int) -> Rule:
    """Source, destination, protocol and port are in the list."""
    words = _words(version)
    return (
        _source(version),
        _target(version, _REGISTER + words),
        _meta(_META_L4PROTO, _REGISTER + 2 * words),
        _payload(_TRANSPORT_HEADER, 2, 2, _REGISTER + 2 * words + 1),
        _lookup(f"egress{version}"),
    )


def _guarded(version: int) -> Rule:
    return _source(version), _lookup(f"guarded{version}")


def _icmp6(*kinds: int) -> Iterator[Rule]:
    for kind in kinds:
        yield (
            _meta(_META_L4PROTO),
            _cmp(bytes((_ICMPV6,))),
            _payload(_TRANSPORT_HEADER, 0, 1),
            _cmp(bytes((kind,))),
        )


def _dnat(version: int, *, by_address: bool) -> Rule:
    words = _words(version)
    address = (_target(version),) if by_address else ()
    at = _REGISTER + (words if by_address else 0)
    name = f"ports_ip{version}" if by_address else f"ports_any{version}"
    nat: Expression = (
        "nat",
        [
            ("NFTA_NAT_TYPE", 1),
            ("NFTA_NAT_FAMILY", _IP_FAMILY[version]),
            ("NFTA_NAT_REG_ADDR_MIN", _REGISTER),
            ("NFTA_NAT_REG_ADDR_MAX", _REGISTER),
            ("NFTA_NAT_REG_PROTO_MIN", _REGISTER + words),
            ("NFTA_NAT_REG_PROTO_MAX", _REGISTER + words),
            ("NFTA_NAT_FLAGS", 3),  # addresses and ports
        ],
    )
    return (
        *_family(version),
        *_LOCAL_TARGET,
        *address,
        _meta(_META_L4PROTO, at),
        _payload(_TRANSPORT_HEADER, 2, 2, at + 1),
        _lookup(name, to=_REGISTER),
        nat,
    )


# The tables ---------------------------------------------------------------------------------------

_SETS: tuple[tuple[str, str, Sequence[Field], Sequence[Field], bool], ...] = (
    ("inet", "bridges", (IFNAME,), (), False),
    ("inet", "peers", (IFNAME, IFNAME), (), False),
    ("inet", "homes4", (IFNAME, IP4), (), True),
    ("inet", "homes6", (IFNAME, IP6), (), True),
    ("inet", "subnets4", (IP4,), (), True),
    ("inet", "subnets6", (IP6,), (), True),
    ("inet", "ports_ip4", (IP4, PROTOCOL, SERVICE), (IP4, SERVICE), False),
    ("inet", "ports_ip6", (IP6, PROTOCOL, SERVICE), (IP6, SERVICE), False),
    ("inet", "ports_any4", (PROTOCOL, SERVICE), (IP4, SERVICE), False),
    ("inet", "ports_any6", (PROTOCOL, SERVICE), (IP6, SERVICE), False),
    ("inet", "guarded4", (IP4,), (), False),
    ("inet", "guarded6", (IP6,), (), False),
    ("inet", "egress4", (IP4, IP4, PROTOCOL, SERVICE), (), True),
    ("inet", "egress6", (IP6, IP6, PROTOCOL, SERVICE), (), True),
    ("bridge", "macs", (IFNAME, ETHER), (), False),
    ("bridge", "sources4", (IFNAME, IP4), (), False),
    ("bridge", "sources6", (IFNAME, IP6), (), False),
    ("bridge", "guarded4", (IP4,), (), False),
    ("bridge", "guarded6", (IP6,), (), False),
    ("bridge", "egress4", (IP4, IP4, PROTOCOL, SERVICE), (), True),
    ("bridge", "egress6", (IP6, IP6, PROTOCOL, SERVICE), (), True),
)

_CHAINS: tuple[tuple[str, str, tuple[str, int, int] | None], ...] = (
    ("inet", "raw", ("filter", _PREROUTING, _RAW)),
    ("inet", "egress", ("filter", _PREROUTING, _EGRESS)),
    ("inet", "published", ("nat", _PREROUTING, _DNAT)),
    ("inet", "published_here", ("nat", _OUTPUT, _DNAT)),
    ("inet", "strangers", None),
    ("inet", "forward", ("filter", _FORWARD, _FILTER)),
    ("inet", "source", ("nat", _POSTROUTING, _SNAT)),
    ("bridge", "identity", ("filter", _PREROUTING, _RAW)),
    ("bridge", "egress", ("filter", _FORWARD, _FILTER)),
)


def _inet_rules() -> Iterator[tuple[str, Rule]]:
    """``raw`` first: what it drops, no other rule sees."""
    loopback = (_target(4), _mask(b"\xff\0\0\0"), _cmp(b"\x7f\0\0\0"))
    from_loopback = (_source(4), _mask(b"\xff\0\0\0"), _cmp(b"\x7f\0\0\0"))
    not_lo = (_meta(_META_IIFNAME), _cmp(interface("lo"), equal=False))
    yield "raw", (*not_lo, *_family(4), *loopback, _DROPPED)

    yield "egress", (*_NOT_FROM_BRIDGE, _verdict(_RETURN))
    yield "egress", (*_KNOWN, _ACCEPTED)
    for found in _icmp6(_SOLICITATION, _ADVERTISEMENT):  # or it would know no neighbour
        yield "egress", (*_family(6), *found, _ACCEPTED)
    for version in (4, 6):
        yield "egress", (*_family(version), *_in_range(version), _ACCEPTED)
        yield "egress", (*_family(version), *_guarded(version), _DROPPED)

    for name in ("published", "published_here"):
        for version in (4, 6):
            yield name, _dnat(version, by_address=True)
            yield name, _dnat(version, by_address=False)

    yield "forward", (*_KNOWN, _ACCEPTED)
    yield "forward", (*_WAS_DNAT, _ACCEPTED)
    yield "forward", (*_PEERS, _ACCEPTED)
    yield "forward", (*_TO_BRIDGE, _DROPPED)
    yield "forward", (*_NOT_FROM_BRIDGE, _verdict(_JUMP, "strangers"))

    for version in (4, 6):
        # Back to the bridge that it came from, which the kernel does not say of what br_netfilter
        # has kept there.
        to = _meta(_META_OIFNAME)
        home = (to, _source(version, _REGISTER + 4), _lookup(f"homes{version}"))
        yield "source", (*_family(version), *home, *_WAS_DNAT, _MASQUERADE)
    yield "source", (*_TO_BRIDGE, *_family(4), *from_loopback, _MASQUERADE)
    for version in (4, 6):
        subnet = (_source(version), _lookup(f"subnets{version}"))
        yield "source", (*_family(version), *subnet, *_NOT_TO_BRIDGE, _MASQUERADE)


def _bridge_rules() -> Iterator[tuple[str, Rule]]:
    """Of a port of ours what is not known is dropped, also Ethernet types that hide another. Which
    ports are ours is told by the name, so that one which outlives its container is cut off.
    """
    port = _meta(_META_IIFNAME)
    yield "identity", (port, _cmp(PORT_PREFIX.encode(), equal=False), _verdict(_RETURN))
    mac = _payload(_LINK_HEADER, 6, 6, _REGISTER + 4)
    yield "identity", (port, mac, _lookup("macs", absent=True), _DROPPED)
    source = (port, _payload(_NETWORK_HEADER, 12, 4, _REGISTER + 4), _lookup("sources4"))
    yield "identity", (*_ether_type(_ETHER_TYPES[4]), *source, _ACCEPTED)
    arp_mac = (port, _payload(_NETWORK_HEADER, 8, 6, _REGISTER + 4), _lookup("macs", absent=True))
    yield "identity", (*_ether_type(_ARP), *arp_mac, _DROPPED)
    arp_ip = (port, _payload(_NETWORK_HEADER, 14, 4, _REGISTER + 4), _lookup("sources4"))
    yield "identity", (*_ether_type(_ARP), *arp_ip, _ACCEPTED)
    ip6 = _ether_type(_ETHER_TYPES[6])
    for found in _icmp6(_ROUTER_ADVERTISEMENT, _REDIRECT):
        yield "identity", (*ip6, *found, _DROPPED)
    for found in _icmp6(_ADVERTISEMENT):  # of whom: the target of the message
        whose = (port, _payload(_TRANSPORT_HEADER, 8, 16, _REGISTER + 4))
        yield "identity", (*ip6, *found, *whose, _lookup("sources6", absent=True), _DROPPED)
    source = (port, _payload(_NETWORK_HEADER, 8, 16, _REGISTER + 4), _lookup("sources6"))
    yield "identity", (*ip6, *source, _ACCEPTED)
    for found in _icmp6(_SOLICITATION, *_MLD_REPORTS):  # by who has no address yet
        nobody = (_source(6), _cmp(bytes(16)))
        yield "identity", (*ip6, *nobody, *found, _ACCEPTED)
    yield "identity", (_DROPPED,)

    for found in _icmp6(_SOLICITATION, _ADVERTISEMENT):
        yield "egress", (*ip6, *found, _ACCEPTED)
    for version in (4, 6):
        kind = _ether_type(_ETHER_TYPES[version])
        yield "egress", (*kind, *_in_range(version), _ACCEPTED)
        yield "egress", (*kind, *_guarded(version), _DROPPED)


def base() -> list[Message]:
    """Both tables, new, without an element."""
    messages = [table("inet", TABLE), table("bridge", TABLE)]
    messages += [
        new_set(family, TABLE, name, number, key, data, intervals=intervals)
        for number, (family, name, key, data, intervals) in enumerate(_SETS, 1)
    ]
    messages += [chain(family, TABLE, name, hook) for family, name, hook in _CHAINS]
    for family, rules in (("inet", _inet_rules()), ("bridge", _bridge_rules())):
        messages += [rule(family, TABLE, name, expressions) for name, expressions in rules]
    return messages


def drop_strangers(version: int) -> Message:
    """What goes from one foreign interface to another was not forwarded before we came."""
    return rule("inet", TABLE, "strangers", [*_family(version), *_NOT_TO_BRIDGE, _DROPPED])


# Elements -----------------------------------------------------------------------------------------


def _range(name: str, network: str, comment: str) -> Iterator[Element]:
    """Of a set of one field; the end is the first that is no more in it, if there is one."""
    first, last = bounds(network)
    yield Element("inet", name, first, comment=comment)
    behind = int.from_bytes(last, "big") + 1
    if behind >> 8 * len(last) == 0:
        yield Element("inet", name, behind.to_bytes(len(last), "big"), is_end=True)


def of_bridge(bridge: Bridge) -> list[Element]:
    """What there is for a bridge, but its subnets."""
    name = interface(bridge.name)
    found = [Element("inet", "bridges", name), Element("inet", "peers", join(name, name))]
    for subnet in filter(None, (bridge.subnet, bridge.subnet6)):
        first, last = (join(name, address) for address in bounds(subnet))
        found.append(Element("inet", f"homes{version_of(subnet)}", first, end=last))
    return found + [each for peer in bridge.peers for each in of_peers(bridge.name, peer)]


def of_peers(one: str, other: str) -> list[Element]:
    a, b = interface(one), interface(other)
    return [Element("inet", "peers", join(a, b)), Element("inet", "peers", join(b, a))]


def of_subnet(subnet: str, bridge: str) -> list[Element]:
    """That what leaves it gets the host's address."""
    return list(_range(f"subnets{version_of(subnet)}", subnet, bridge))


def of_port(port: Port, id: str) -> Element:
    version = version_of(port.address)
    key = (bytes((PROTOCOLS[port.protocol],)), struct.pack(">H", port.host_port))
    data = join(packed(port.address), struct.pack(">H", port.port))
    if port.host_ip is None:
        return Element("inet", f"ports_any{version}", join(*key), data, comment=id)
    return Element("inet", f"ports_ip{version}", join(packed(port.host_ip), *key), data, comment=id)


def of_record(record: Record) -> list[Element]:
    """All of a container."""
    rows = [row for each in record.attachments for row in of_attachment(each)]
    return rows + [of_port(port, record.id) for port in record.ports]


def of_attachment(attachment: Attachment) -> list[Element]:
    """Who an interface may be, and where it may connect to; without its published ports."""
    id, port = attachment.id, interface(attachment.host_interface)
    mac = bytes.fromhex(attachment.mac.replace(":", ""))
    rows = [
        Element("bridge", "macs", join(port, mac), comment=id),
        Element("bridge", "sources6", join(port, packed(link_local(attachment.mac))), comment=id),
    ]
    for address in attachment.plain_addresses():
        name = f"sources{version_of(address)}"
        rows.append(Element("bridge", name, join(port, packed(address)), comment=id))
        if attachment.egress is not None:
            rows += _egress(address, attachment.egress, id)
    if attachment.egress is not None:
        rows += _guard(link_local(attachment.mac), id)
    return rows


def _guard(address: str, id: str) -> Iterator[Element]:
    for family in ("inet", "bridge"):
        name = f"guarded{version_of(address)}"
        yield Element(family, name, packed(address), comment=id)


def _egress(address: str, egress: str | Iterable[str], id: str) -> Iterator[Element]:
    yield from _guard(address, id)
    version, source = version_of(address), packed(address)
    for family in ("inet", "bridge"):
        for first, last, protocols, ports in allowed(egress, version):
            low, high = (
                join(source, edge, bytes((protocol,)), struct.pack(">H", port))
                for edge, protocol, port in (
                    (first, protocols[0], ports[0]),
                    (last, protocols[1], ports[1]),
                )
            )
            yield Element(family, f"egress{version}", low, end=high, comment=id)


# Firewalls of others ------------------------------------------------------------------------------


def admit(chain_name: str, bridge: str, comment: str) -> list[Message]:
    """Two rules for the head of a chain of ``ip filter``: our rules judge what is ours."""
    found = []
    for key in (_META_IIFNAME, _META_OIFNAME):
        expressions = [_meta(key), _cmp(interface(bridge)), _ACCEPTED]
        found.append(rule("ip", "filter", chain_name, expressions, comment, at_head=True))
    return found
