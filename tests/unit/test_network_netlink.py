# SPDX-License-Identifier: Apache-2.0
"""Messages: what we encode is what pyroute2 encodes, and reads."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pyroute2.netlink.nfnetlink.nftsocket import nft_rule_msg, nft_set_elem_list_msg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from container._network import _netlink, _rules
from container._network._netlink import Element, decode, elements, encode
from container._network._records import Attachment, Bridge, Port, Record

NESTED = 0x8000


def plain(data: bytes) -> bytes:
    """Without the flag of nested attributes, which pyroute2 does not set."""
    found = bytearray()
    while data:
        size, kind = struct.unpack_from("=HH", data)
        inner = data[4:size]
        found += struct.pack("=HH", size, kind & ~NESTED)
        found += plain(inner) if kind & NESTED else inner
        found += bytes(-size & 3)
        data = data[(size + 3) & ~3 :]
    return bytes(found)


def by_pyroute2(kind: type[Any], attributes: Any) -> bytes:
    message = kind()
    message["attrs"] = _with_attrs(attributes)
    message.encode()
    empty = kind()
    empty.encode()
    return bytes(message.data)[len(empty.data) :]


def _with_attrs(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return [[name, _nested(content)] for name, content in value]
    return value


def _nested(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return {"attrs": _with_attrs(value)}
    if isinstance(value, list):
        return [_nested(each) for each in value]
    return value


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (
            ifinfmsg,
            [
                ("IFLA_IFNAME", "eth0"),
                ("IFLA_MTU", 1400),
                ("IFLA_LINKINFO", [("IFLA_INFO_KIND", "bridge")]),
            ],
        ),
        (
            nft_set_elem_list_msg,
            [
                ("NFTA_SET_ELEM_LIST_TABLE", "container"),
                (
                    "NFTA_SET_ELEM_LIST_ELEMENTS",
                    [
                        [("NFTA_SET_ELEM_KEY", [("NFTA_DATA_VALUE", b"abc")])],
                    ],
                ),
            ],
        ),
        (nft_rule_msg, [("NFTA_RULE_TABLE", "t"), ("NFTA_RULE_CHAIN", "c")]),
    ],
)
def test_attributes_are_encoded_as_pyroute2_does(kind: type[Any], attributes: Any) -> None:
    assert plain(encode(kind, attributes)) == by_pyroute2(kind, attributes)


def test_pyroute2_reads_what_we_encode() -> None:
    message = _netlink.new_address(7, bytes((10, 88, 0, 2)), 16)
    read = decode(ifaddrmsg, message.body)
    assert (read["index"], read["prefixlen"]) == (7, 16)
    assert read.get_attr("IFA_LOCAL") == "10.88.0.2"
    veth = decode(ifinfmsg, _netlink.new_veth("ctr-1", 3, 9, "eth0", b"\x0aX\0\0\0\1", 1400).body)
    assert veth.get_attr("IFLA_IFNAME") == "ctr-1"
    assert veth.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "veth"


def test_elements_of_a_set_share_messages_that_fit() -> None:
    rows = [
        Element("inet", "s", number.to_bytes(4, "big"), comment="x" * 128) for number in range(1000)
    ]
    messages = elements("container", rows, new=True)
    assert len(messages) == 5
    assert max(len(message.body) for message in messages) < 2**16


# The ids of what a container has in the rules; lest a name say more than a name.

ATTACHMENT = Attachment(
    "id", "eth0", "container0", "ctr-0", "0a:58:0a:58:00:02", ("10.88.0.2/16", "fd00::2/64")
)


def test_every_element_of_a_container_bears_its_id() -> None:
    record = Record("id", (ATTACHMENT,), (Port(None, 80, "10.88.0.2", 80, "tcp"),))
    rows = _rules.of_record(record)
    assert {row.comment for row in rows} == {"id"}
    assert {row.set for row in rows} == {"macs", "sources4", "sources6", "ports_any4"}


def test_a_name_is_a_value_and_nothing_more() -> None:
    # By netlink there is no text that would be parsed again.
    rows = _rules.of_bridge(Bridge('x" ; flush', "10.88.0.0/16", "10.88.0.1"))
    assert rows[0].key == b'x" ; flush'.ljust(16, b"\0")


def test_records_survive_their_files() -> None:
    record = Record("id", (ATTACHMENT,), (Port("127.0.0.1", 80, "10.88.0.2", 80, "tcp"),))
    assert Record.from_dict(record.to_dict()) == record
    bridge = Bridge("b", "10.0.0.0/24", "10.0.0.1", peers=("a",), nat=("10.0.0.0/24",))
    assert Bridge.from_dict(bridge.to_dict()) == bridge
