# SPDX-License-Identifier: Apache-2.0
"""Netlink over a plain socket: links, addresses, routes, nftables, connection tracking.

The formats are pyroute2's: what a message is made of, and under which numbers, is read off its
message classes. They are filled in here and not by its own encoder, which takes 1000 us for what
takes 20 here (2000 for a veth), and a container needs ten messages. Its sockets are not used: they
raise inside of a running asyncio loop, make one in every other thread, and fork to get into a
namespace. Nothing here waits for anything but the kernel, which answers before ``send`` returns.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENODEV, ENOENT
from functools import cache
from typing import Any, Final, TypeVar, cast

from pyroute2.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES, nftsocket
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    nfct_msg,
)
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_SETLINK,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg, protinfo_bridge
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from container._config import NAMESPACE_FLAGS
from container._launcher import above_stdio, join_namespace

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 1 << 15
_TYPE_MASK = (1 << 14) - 1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_ERROR, _DONE = 2, 3
_HAS_TLVS, _MESSAGE_TLV = 0x200, 1  # NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG
_BATCH_BEGIN, _BATCH_END = 16, 17
_BUFFER = 1 << 16
_SO_SNDBUFFORCE = 32
_RECEIVE = 1 << 22  # for the answers to a large batch; the kernel may give less

Value = bytes | str | int | Sequence[Any]
Attributes = Sequence[tuple[str, Value]]
_T = TypeVar("_T")

NEW: Final = NLM_F_CREATE | NLM_F_EXCL
FAMILIES = {"inet": 1, "ip": 2, "bridge": 7}
IFF_UP = 1
_IFA_F_NODAD = 2


class NetlinkError(OSError):
    """What the kernel answered, in its own words if it had some; ``index``: of the message."""

    def __init__(self, number: int, text: str, index: int) -> None:
        super().__init__(number, f"{os.strerror(number)}: {text}" if text else os.strerror(number))
        self.index = index


# Encoding -----------------------------------------------------------------------------------------


class Nested(bytes):
    """Attributes, encoded."""


@cache
def _table(kind: Any) -> dict[str, tuple[int, str]]:
    """Name → number and kind of each attribute, as pyroute2 has them."""
    rows = kind.nla_map
    if isinstance(rows[0][0], int):
        return {row[1]: (row[0], row[2]) for row in rows}
    return {row[0]: (number, row[1]) for number, row in enumerate(rows)}


def attribute(number: int, payload: bytes) -> bytes:
    padding = -len(payload) & 3
    return _ATTRIBUTE.pack(4 + len(payload), number) + payload + bytes(padding)


def encode(kind: Any, attributes: Attributes) -> bytes:
    """Attributes of a class of pyroute2's. bytes go in as they are, a list is what is nested."""
    table = _table(kind)
    parts = []
    for name, value in attributes:
        number, format_ = table[name]
        nested = isinstance(value, Nested) or not isinstance(value, bytes | str | int)
        parts.append(
            attribute(number | _NESTED if nested else number, _payload(kind, format_, value))
        )
    return b"".join(parts)


def _payload(kind: Any, format_: str, value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode() + b"\0"
    inner = getattr(kind, format_.removeprefix("*"))
    if isinstance(value, int):
        return struct.pack(_struct_of(inner), value)
    if format_.startswith("*"):  # of the like: each is an attribute of one number
        number = (inner.header_type or 1) | _NESTED
        return b"".join(attribute(number, encode(inner, cast(Attributes, each))) for each in value)
    return encode(inner, cast(Attributes, value))


@cache
def _struct_of(kind: Any) -> str:
    form: str = kind.fields[0][1]
    return form if form[0] in "<>=!" else f"={form}"


@dataclass(frozen=True, slots=True)
class Message:
    type: int
    flags: int
    body: bytes

    def encode(self, sequence: int) -> bytes:
        size = _HEADER.size + len(self.body)
        return _HEADER.pack(size, self.type, self.flags, sequence, 0) + self.body


def decode(kind: Any, body: bytes) -> Any:
    """A message of this class, as pyroute2 reads it; ``body``: behind the header."""
    message = kind(_HEADER.pack(_HEADER.size + len(body), 0, 0, 0, 0) + body)
    message.decode()
    return message


# Sockets ------------------------------------------------------------------------------------------


class Netlink:
    """A socket, in the network namespace in which the thread is that makes it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        try:
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE)
            self._socket.bind((0, 0))
            self._room = 1 << 16  # bytes that can surely be sent
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def send(self, messages: Sequence[Message], first: int = 0) -> None:
        """Have these done, in order; `NetlinkError` of the first that was not.

        Each of them was tried: it is a transaction as a batch of nftables only, see `commit`.
        ``first`` numbers the messages in errors.
        """
        if not messages:
            return
        data = [message.encode(number) for number, message in enumerate(messages, 1)]
        size = sum(map(len, data))
        if size > self._room:  # a batch is sent at once, or it would be several
            self._room = 2 * size
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, self._room)
        self._socket.sendmsg(data)
        errors = sorted((number, code, text) for number, code, text in self._answers() if code)
        if errors:
            number, code, text = errors[0]
            raise NetlinkError(-code, text, number - 1 - first)

    def _answers(self) -> Iterator[tuple[int, int, str]]:
        """Sequence number, code, text: of all that there are, since the kernel has answered."""
        while True:
            try:
                data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for kind, flags, sequence, body in _split(data):
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    yield sequence, code, _text_of(body) if flags & _HAS_TLVS else ""

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of all answers."""
        self._socket.send(message.encode(1))
        found: list[bytes] = []
        while True:
            for kind, _, _, body in _split(self._socket.recv(_BUFFER)):
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise NetlinkError(-code, "", 0)
                    return found
                if kind == _DONE:
                    return found
                found.append(body)

    def get(self, message: Message) -> bytes | None:
        """The one answer; None where there is no such thing."""
        plain = Message(message.type, message.flags & ~NLM_F_ACK, message.body)
        self._socket.send(plain.encode(1))
        for kind, flags, _, body in _split(self._socket.recv(_BUFFER)):
            if kind != _ERROR:
                return body
            (code,) = struct.unpack_from("=i", body)
            if -code not in (ENOENT, ENODEV):
                raise NetlinkError(-code, _text_of(body) if flags & _HAS_TLVS else "", 0)
        return None


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + size]
        offset += (size + 3) & ~3


def _text_of(body: bytes) -> str:
    """Of an answer: code, header of the request, attributes."""
    for number, payload in _attributes(body[4 + _HEADER.size :]):
        if number == _MESSAGE_TLV:
            return payload.rstrip(b"\0").decode(errors="replace")
    return ""


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        size, number = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4:
            return
        yield number & _TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def open_route() -> Netlink:
    return Netlink(NETLINK_ROUTE)


_netfilter: dict[int, Netlink] = {}


@contextmanager
def open_netfilter() -> Iterator[Netlink]:
    """One at a time, for who has the lock of the network namespace.

    That of the process's own namespace stays open: the kernel lets nobody close one before what was
    deleted by any is freed, which takes it a grace period, 10 ms and more.
    """
    here, own = (os.stat(f"/proc/{each}/ns/net").st_ino for each in ("thread-self", "self"))
    if here != own:
        with Netlink(NETLINK_NETFILTER) as netlink:
            yield netlink
        return
    kept = _netfilter.get(own)
    if kept is None:
        while _netfilter:  # the process was elsewhere
            _netfilter.popitem()[1].close()
        kept = _netfilter[own] = Netlink(NETLINK_NETFILTER)
    try:
        yield kept
    except BaseException:
        _netfilter.pop(own, None)  # there may be answers left
        kept.close()
        raise


def _forget_in_fork() -> None:
    while _netfilter:
        _netfilter.popitem()[1].close()


os.register_at_fork(after_in_child=_forget_in_fork)


def inside(namespace: int, work: Callable[[], _T]) -> _T:
    """What ``work`` returns in a network namespace: in a thread that lives as long as that.

    The thread of the caller must not be elsewhere when a signal handler of the program runs.
    """
    result: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            join_namespace(namespace, NAMESPACE_FLAGS["net"])
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="container-network", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def open_namespace(pid: int) -> int:
    return above_stdio(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))


# Links, addresses, routes -------------------------------------------------------------------------

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_AF_BRIDGE = 7
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1
_HAIRPIN = [("IFLA_BRPORT_MODE", 1)]


def family_of(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _link(
    type_: int,
    flags: int,
    attributes: Attributes,
    *,
    index: int = 0,
    up: bool = False,
    family: int = socket.AF_UNSPEC,
) -> Message:
    head = _LINK.pack(family, 0, index, IFF_UP if up else 0, IFF_UP if up else 0)
    request = flags | NLM_F_REQUEST | NLM_F_ACK
    return Message(type_, request, head + encode(ifinfmsg, attributes))


def new_veth(  # noqa: PLR0917 - a row of its message each
    name: str, master: int, namespace: int, peer: str, mac: bytes, mtu: int | None
) -> Message:
    """Both ends at once: ours up and at the bridge, the peer in the namespace, and down."""
    size: list[tuple[str, Value]] = [] if mtu is None else [("IFLA_MTU", mtu)]
    inner: Attributes = [
        ("IFLA_IFNAME", peer),
        ("IFLA_ADDRESS", mac),
        *size,
        ("IFLA_NET_NS_FD", namespace),
    ]
    other = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + encode(ifinfmsg, inner)
    data = Nested(attribute(1 | _NESTED, other))  # VETH_INFO_PEER
    info: Attributes = [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]
    attributes: Attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_MASTER", master),
        *size,
        ("IFLA_LINKINFO", info),
    ]
    return _link(RTM_NEWLINK, NEW, attributes, up=True)


def set_hairpin(index_of_port: int) -> Message:
    """What comes from a port may go out there again: to oneself by a published port."""
    data = Nested(encode(protinfo_bridge, _HAIRPIN))
    return _link(RTM_SETLINK, 0, [("IFLA_PROTINFO", data)], index=index_of_port, family=_AF_BRIDGE)


def new_bridge(name: str, mac: bytes, mtu: int | None) -> Message:
    size: list[tuple[str, Value]] = [] if mtu is None else [("IFLA_MTU", mtu)]
    info: Attributes = [("IFLA_INFO_KIND", "bridge")]
    attributes: Attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        *size,
        ("IFLA_LINKINFO", info),
    ]
    return _link(RTM_NEWLINK, NEW, attributes, up=True)


def set_up(index: int) -> Message:
    return _link(RTM_NEWLINK, 0, [], index=index, up=True)


def delete_link(name: str) -> Message:
    return _link(RTM_DELLINK, 0, [("IFLA_IFNAME", name)])


def new_address(index: int, address: bytes, prefix: int) -> Message:
    """At once to be used: nobody else has it (no duplicate address detection)."""
    family = family_of(address)
    head = _ADDRESS.pack(family, prefix, _IFA_F_NODAD if len(address) == 16 else 0, 0, index)
    attributes: Attributes = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_REQUEST | NLM_F_ACK
    return Message(RTM_NEWADDR, flags, head + encode(ifaddrmsg, attributes))


def new_default_route(index: int, gateway: bytes) -> Message:
    head = _ROUTE.pack(
        *(family_of(gateway), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
    )
    attributes: Attributes = [("RTA_GATEWAY", gateway), ("RTA_OIF", index)]
    flags = NEW | NLM_F_REQUEST | NLM_F_ACK
    return Message(RTM_NEWROUTE, flags, head + encode(rtmsg, attributes))


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    kind: str | None


def find_link(netlink: Netlink, name: str) -> Link | None:
    body = netlink.get(_link(RTM_GETLINK, 0, [("IFLA_IFNAME", name)]))
    if body is None:
        return None
    message = decode(ifinfmsg, body)
    return Link(message["index"], message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND"))


def routes(netlink: Netlink, version: int) -> Iterator[tuple[str, int]]:
    """Destination with its prefix, and the interface, of all routes but default ones."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    head = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    for body in netlink.dump(Message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, head)):
        message = decode(rtmsg, body)
        target = message.get_attr("RTA_DST")
        if target is not None and message["table"] == _RT_TABLE_MAIN:
            yield f"{target}/{message['dst_len']}", message.get_attr("RTA_OIF") or 0


# nftables -----------------------------------------------------------------------------------------

_GENERIC = struct.Struct("=BBH")


def _nft(number: int, flags: int, family: str, kind: Any, attributes: Attributes) -> Message:
    head = _GENERIC.pack(FAMILIES[family], 0, 0)
    return Message(
        NFNL_SUBSYS_NFTABLES << 8 | number,
        flags | NLM_F_REQUEST | NLM_F_ACK,
        head + encode(kind, attributes),
    )


def _batch(number: int) -> Message:
    return Message(number, NLM_F_REQUEST, _GENERIC.pack(0, 0, socket.htons(NFNL_SUBSYS_NFTABLES)))


def commit(netlink: Netlink, messages: Sequence[Message]) -> None:
    """All of these, or none. The index of an error is that in ``messages``."""
    if messages:
        netlink.send([_batch(_BATCH_BEGIN), *messages, _batch(_BATCH_END)], first=1)


def has_table(netlink: Netlink, family: str, name: str) -> bool:
    message = _nft(
        nftsocket.NFT_MSG_GETTABLE, 0, family, nftsocket.nft_table_msg, [("NFTA_TABLE_NAME", name)]
    )
    return netlink.get(message) is not None


def _chain_attributes(table: str, name: str) -> Attributes:
    return [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]


def _find_chain(netlink: Netlink, family: str, table: str, name: str) -> bytes | None:
    attributes = _chain_attributes(table, name)
    kind = nftsocket.nft_chain_msg
    return netlink.get(_nft(nftsocket.NFT_MSG_GETCHAIN, 0, family, kind, attributes))


def has_chain(netlink: Netlink, family: str, table: str, name: str) -> bool:
    return _find_chain(netlink, family, table, name) is not None


def chain_policy(netlink: Netlink, family: str, table: str, name: str) -> int | None:
    """0: it drops. None where there is no such chain."""
    body = _find_chain(netlink, family, table, name)
    if body is None:
        return None
    policy = decode(nftsocket.nft_chain_msg, body).get_attr("NFTA_CHAIN_POLICY")
    return None if policy is None else int(policy)


def handles_of(netlink: Netlink, family: str, table: str, chain: str, comment: str) -> list[int]:
    """Of the rules with this comment."""
    number, kind = nftsocket.NFT_MSG_GETRULE, nftsocket.nft_rule_msg
    wanted: Attributes = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", chain)]
    plain = _nft(number, 0, family, kind, wanted)
    request = Message(plain.type, NLM_F_REQUEST | NLM_F_DUMP, plain.body)
    numbers = _table(kind)
    handles = []
    for body in netlink.dump(request):
        found = dict(_attributes(body[_GENERIC.size :]))
        if found.get(numbers["NFTA_RULE_USERDATA"][0]) == _comment(comment):
            handles.append(int.from_bytes(found[numbers["NFTA_RULE_HANDLE"][0]], "big"))
    return handles


def delete_rule(family: str, table: str, chain: str, handle: int) -> Message:
    attributes: Attributes = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_HANDLE", struct.pack(">Q", handle)),
    ]
    return _nft(nftsocket.NFT_MSG_DELRULE, 0, family, nftsocket.nft_rule_msg, attributes)


def table(family: str, name: str, *, new: bool = True) -> Message:
    number = nftsocket.NFT_MSG_NEWTABLE if new else nftsocket.NFT_MSG_DELTABLE
    flags = NLM_F_CREATE if new else 0
    return _nft(number, flags, family, nftsocket.nft_table_msg, [("NFTA_TABLE_NAME", name)])


def chain(
    family: str, table: str, name: str, hook: tuple[str, int, int] | None, policy: int = 1
) -> Message:
    """``hook``: the type, the hook's number and the priority; None: to be jumped to."""
    attributes = list(_chain_attributes(table, name))
    if hook is not None:
        kind, number, priority = hook
        place: Attributes = [("NFTA_HOOK_HOOKNUM", number), ("NFTA_HOOK_PRIORITY", priority)]
        attributes += [
            ("NFTA_CHAIN_HOOK", place),
            ("NFTA_CHAIN_POLICY", policy),
            ("NFTA_CHAIN_TYPE", kind),
        ]
    message = nftsocket.nft_chain_msg
    return _nft(nftsocket.NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, message, attributes)


def _comment(text: str) -> bytes:
    """NFTNL_UDATA_*_COMMENT, which is what `nft` shows."""
    data = text.encode() + b"\0"
    return bytes((0, len(data))) + data


Expression = tuple[str, Attributes]


def rule(
    family: str,
    table: str,
    chain: str,
    expressions: Iterable[Expression],
    comment: str | None = None,
    *,
    at_head: bool = False,
) -> Message:
    kind = nftsocket.nft_rule_msg
    rows = [
        [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", _expression(name, attributes))]
        for name, attributes in expressions
    ]
    attributes: list[tuple[str, Value]] = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", rows),
    ]
    if comment is not None:
        attributes.append(("NFTA_RULE_USERDATA", _comment(comment)))
    flags = NLM_F_CREATE if at_head else NLM_F_CREATE | 0x800  # NLM_F_APPEND
    return _nft(nftsocket.NFT_MSG_NEWRULE, flags, family, kind, attributes)


def _expression(name: str, attributes: Attributes) -> bytes:
    return encode(getattr(nftsocket.nft_rule_msg.nft_expr, f"nft_{name}"), attributes)


@dataclass(frozen=True, slots=True)
class Field:
    """A part of the key of a set, or of what a map leads to."""

    type: int  # datatype.h of nft
    size: int
    big_endian: bool = True


IFNAME = Field(nftsocket.DATA_TYPE_IFNAME, 16, big_endian=False)
ETHER = Field(nftsocket.DATA_TYPE_ETHERADDR, 6)
IP4 = Field(nftsocket.DATA_TYPE_IPADDR, 4)
IP6 = Field(nftsocket.DATA_TYPE_IP6ADDR, 16)
PROTOCOL = Field(nftsocket.DATA_TYPE_INET_PROTOCOL, 1)
SERVICE = Field(nftsocket.DATA_TYPE_INET_SERVICE, 2)


def _type_of(fields: Sequence[Field]) -> int:
    number = 0
    for field in fields:
        number = number << 6 | field.type
    return number


def _size_of(fields: Sequence[Field]) -> int:
    return sum((field.size + 3) & ~3 for field in fields) if len(fields) > 1 else fields[0].size


def new_set(  # noqa: PLR0917
    family: str,
    table: str,
    name: str,
    number: int,
    key: Sequence[Field],
    data: Sequence[Field] = (),
    *,
    intervals: bool = False,
) -> Message:
    several = len(key) > 1
    flags = (4 if intervals else 0) | (8 if data else 0) | (0x80 if several else 0)
    attributes: list[tuple[str, Value]] = [
        ("NFTA_SET_TABLE", table),
        ("NFTA_SET_NAME", name),
        ("NFTA_SET_FLAGS", flags),
        ("NFTA_SET_KEY_TYPE", _type_of(key)),
        ("NFTA_SET_KEY_LEN", _size_of(key)),
        ("NFTA_SET_ID", number),
    ]
    if data:
        attributes += [
            ("NFTA_SET_DATA_TYPE", _type_of(data)),
            ("NFTA_SET_DATA_LEN", _size_of(data)),
        ]
    if several:
        sizes = (attribute(1, struct.pack(">I", field.size)) for field in key)
        fields = b"".join(attribute(1 | _NESTED, size) for size in sizes)
        attributes.append(("NFTA_SET_DESC", attribute(2 | _NESTED, fields)))
    orders = [(0, key), *([(1, data)] if data else [])]  # NFTNL_UDATA_SET_*BYTEORDER
    attributes.append(
        (
            "NFTA_SET_USERDATA",
            b"".join(
                struct.pack("=BBI", which, 4, _byte_order(fields)) for which, fields in orders
            ),
        )
    )
    return _nft(nftsocket.NFT_MSG_NEWSET, NLM_F_CREATE, family, nftsocket.nft_set_msg, attributes)


def _byte_order(fields: Sequence[Field]) -> int:
    """For `nft` to show it: invalid for several, of the host, big."""
    return 0 if len(fields) > 1 else 2 if fields[0].big_endian else 1


def join(*parts: bytes) -> bytes:
    """The value of several fields."""
    if len(parts) == 1:
        return parts[0]
    return b"".join(part + bytes(-len(part) & 3) for part in parts)


def interface(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


@dataclass(frozen=True, slots=True)
class Element:
    """Of a set or map."""

    family: str
    set: str
    key: bytes
    data: bytes | None = None
    end: bytes | None = None  # the last one, of a set of several fields with intervals
    is_end: bool = False  # what is no more in it, of a set of one field with intervals
    comment: str = ""


_MOST_ELEMENTS = 200  # in a message: an attribute has 64 KiB at most


def elements(table: str, rows: Iterable[Element], *, new: bool) -> list[Message]:
    """Messages to add these or to delete them, in the order of the sets' first mention."""
    groups: dict[tuple[str, str], list[Element]] = {}
    for row in rows:
        groups.setdefault((row.family, row.set), []).append(row)
    kind = nftsocket.nft_set_elem_list_msg
    number = nftsocket.NFT_MSG_NEWSETELEM if new else nftsocket.NFT_MSG_DELSETELEM
    found = []
    for (family, name), group in groups.items():
        for first in range(0, len(group), _MOST_ELEMENTS):
            some = group[first : first + _MOST_ELEMENTS]
            attributes: Attributes = [
                ("NFTA_SET_ELEM_LIST_TABLE", table),
                ("NFTA_SET_ELEM_LIST_SET", name),
                ("NFTA_SET_ELEM_LIST_ELEMENTS", [_element(row, new) for row in some]),
            ]
            found.append(_nft(number, NEW if new else 0, family, kind, attributes))
    return found


def _element(row: Element, new: bool) -> Attributes:
    attributes: list[tuple[str, Value]] = [("NFTA_SET_ELEM_KEY", [("NFTA_DATA_VALUE", row.key)])]
    if row.end is not None:
        attributes.append(("NFTA_SET_ELEM_KEY_END", [("NFTA_DATA_VALUE", row.end)]))
    if row.is_end:
        attributes.append(("NFTA_SET_ELEM_FLAGS", 1))
    if new and row.data is not None:
        attributes.append(("NFTA_SET_ELEM_DATA", [("NFTA_DATA_VALUE", row.data)]))
    if new and row.comment and not row.is_end:
        attributes.append(("NFTA_SET_ELEM_USERDATA", _comment(row.comment)))
    return attributes


# Connection tracking ------------------------------------------------------------------------------

_FILTER_PROTOCOL, _FILTER_TO_PORT = 1 << 3, 1 << 5  # CTA_FILTER_F_*


def forget_flows(netlink: Netlink, version: int, protocol: int, port: int) -> None:
    """Forget what was sent to this port of any address before, and where it went.

    Whoever goes on sending datagrams would else be sent there, whatever the rules say now.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    head = _GENERIC.pack(family, 0, 0)
    wanted: Attributes = [
        (
            "CTA_TUPLE_ORIG",
            [("CTA_TUPLE_PROTO", [("CTA_PROTO_NUM", protocol), ("CTA_PROTO_DST_PORT", port)])],
        ),
        (
            "CTA_FILTER",
            Nested(
                attribute(1, struct.pack("=I", _FILTER_PROTOCOL | _FILTER_TO_PORT))
                + attribute(2, struct.pack("=I", 0))
            ),
        ),
    ]
    request = Message(
        NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
        NLM_F_REQUEST | NLM_F_DUMP,
        head + encode(nfct_msg, wanted),
    )
    for body in netlink.dump(request):
        flow = next(data for number, data in _attributes(body[_GENERIC.size :]) if number == 1)
        with suppress(NetlinkError):  # it has ended meanwhile
            netlink.send(
                [
                    Message(
                        NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE,
                        NLM_F_REQUEST | NLM_F_ACK,
                        head + attribute(1 | _NESTED, flow),
                    )
                ]
            )
