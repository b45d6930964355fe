# SPDX-License-Identifier: Apache-2.0
"""The host's side: the rules, the bridges, what is switched on; and their repair.

`Host` is entered for every change. It takes the lock, collects what is left of processes that were
killed, and builds the rules anew from the files where somebody has flushed them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from errno import EEXIST, ENOENT, EPERM
from typing import Self

from container._config import (
    DEFAULT_BRIDGE_NAME,
    DEFAULT_BRIDGE_SUBNET,
    NetworkConfig,
    check_interface_name,
)
from container._errors import ConfigError, NetworkError, UnsupportedError, publish
from container._network import _netlink, _rules, _sysctl
from container._network._addresses import overlaps, packed, parse_subnet, version_of
from container._network._files import LOCAL_HOSTS, hosts_text
from container._network._netlink import Element, Netlink, NetlinkError
from container._network._records import Attachment, Bridge, Record
from container._network._rules import TABLE
from container._network._store import Store

# A test of the undo sets this to the name of a step, which then fails.
fail_at: str | None = None

_DOCKER_CHAIN = "DOCKER-USER"
_MOST_WASTE = 4096  # bytes of lines that are no more in a file of hosts
_BRIDGE_MAC_KIND = 0x0A  # locally administered


def step(name: str) -> None:
    if name == fail_at:
        raise NetworkError(f"{name}: failed for a test")


@contextmanager
def told(what: str) -> Iterator[None]:
    """What the kernel says, in words of ours."""
    try:
        yield
    except NetlinkError as error:
        reason = "it takes root" if error.errno == EPERM else error.strerror
        raise NetworkError(f"cannot {what}: {reason}") from error
    except OSError as error:
        raise NetworkError(f"cannot {what}: {error.strerror}") from error


class Host:
    """The network namespace of the calling thread, for who changes something in it."""

    def __init__(self) -> None:
        require_root()
        self.store = Store()
        self.collected: list[str] = []  # ids of containers whose owners were killed
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.store.locked())
            with told("open a netlink socket"):
                self.filter: Netlink = stack.enter_context(_netlink.open_netfilter())
                self.route: Netlink = stack.enter_context(_netlink.open_route())
            self._collect()
            if not self._has_rules() and self.store.bridges():
                self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    # Rules

    def _has_rules(self) -> bool:
        with told("look for the rules of nftables"):
            return all(_netlink.has_table(self.filter, kind, TABLE) for kind in ("inet", "bridge"))

    def _build(self) -> None:
        """All rules, from what the files say."""
        bridges = self.store.bridges()
        rows = [row for bridge in bridges for row in _rows_of(bridge)]
        rows += [row for record in self.store.records() for row in _rules.of_record(record)]
        messages = [
            _netlink.table(family, TABLE, new=new)
            for family in ("inet", "bridge")
            for new in (True, False)  # what is there of it, in one transaction
        ]
        messages += _rules.base()
        messages += _netlink.elements(TABLE, _unique(rows), new=True)
        messages += [_rules.drop_strangers(int(name)) for name in self.store.forwarding()]
        with told("make the rules of nftables"):
            _netlink.commit(self.filter, messages)
        for bridge in bridges:
            self._admit(bridge)

    def add(self, rows: Iterable[Element]) -> None:
        """All or none. `FileExistsError` where one is there."""
        try:
            _netlink.commit(self.filter, _netlink.elements(TABLE, rows, new=True))
        except NetlinkError as error:
            if error.errno == EEXIST:
                raise FileExistsError(EEXIST, os.strerror(EEXIST)) from error
            raise NetworkError(f"cannot add to the rules of nftables: {error.strerror}") from error

    def take(self, rows: Iterable[Element]) -> None:
        """Delete these; some may be gone."""
        rows = list(rows)
        with told("delete from the rules of nftables"):
            try:
                _netlink.commit(self.filter, _netlink.elements(TABLE, rows, new=False))
            except NetlinkError as error:
                if error.errno != ENOENT:
                    raise
                self._take_each(rows)

    def _take_each(self, rows: list[Element]) -> None:
        """One by one, but for intervals, whose end has no meaning without their beginning."""
        groups: list[list[Element]] = []
        for row in rows:
            if row.is_end:
                groups[-1].append(row)
            else:
                groups.append([row])
        for group in groups:
            try:
                _netlink.commit(self.filter, _netlink.elements(TABLE, group, new=False))
            except NetlinkError as error:
                if error.errno != ENOENT:
                    raise

    # What is left of others

    def _collect(self) -> None:
        with self.store.dead_owners() as tokens:
            for token in tokens:
                for record in self.store.records(token):
                    self.remove(record)
                    self.collected.append(record.id)

    def remove(self, record: Record) -> None:
        """All that bears its id but the files of its owner. The veth goes with its namespace."""
        if self._has_rules():
            self.take(_rules.of_record(record))
        for attachment in record.attachments:
            self.forget_names(attachment)
        self.forget_flows(record)

    def forget_flows(self, record: Record) -> None:
        for port in record.ports:
            if port.protocol == "udp":
                with told("forget flows"), suppress(FileNotFoundError):
                    version = version_of(port.address)
                    _netlink.forget_flows(self.filter, version, socket.IPPROTO_UDP, port.host_port)

    # Names

    def note_names(self, attachment: Attachment) -> None:
        path = self.store.hosts_path(attachment.bridge)
        with told("note the names of a container"), open(path, "ab") as file:
            file.write(_lines_of(attachment))

    def forget_names(self, attachment: Attachment) -> None:
        """In place: the file is bound into containers."""
        line = _lines_of(attachment)
        with (
            suppress(FileNotFoundError),
            open(self.store.hosts_path(attachment.bridge), "r+b") as file,
        ):
            data = file.read()
            at = data.find(b"\n" + line) + 1
            if not line or at == 0:
                return
            file.seek(at)
            file.write(b"#" + b" " * (len(line) - 2) + b"\n")
            kept = [each for each in data.splitlines(True) if not each.startswith(b"#")]
            if len(data) - sum(map(len, kept)) > _MOST_WASTE:
                text = b"".join(kept).replace(line, b"")
                file.seek(0)
                file.write(text)
                file.truncate()

    # Bridges

    def ensure(self, wanted: Bridge, said: Collection[str] = ()) -> tuple[Bridge, int]:
        """The bridge as it is, and its index; made if it is not there.

        One that is there must be as ``wanted`` in what was ``said``; the rest is its default.
        """
        known = self.store.bridge(wanted.name)
        index = _index_of(wanted.name)
        if known is not None and index is not None:
            return self._update(known, wanted, said), index
        bridge = known or wanted
        if known is None:
            self._check_free(bridge)
        with ExitStack() as undo:
            index, made = self._make_link(bridge, undo)
            step("bridge")
            bridge = replace(bridge, made=made if known is None else known.made)
            self._prepare(bridge, index)
            bridge = replace(bridge, nat=(*_subnets(bridge),))
            if known is None:
                undo.callback(self.store.forget_bridge, bridge.name)
                self._fill_hosts(bridge)
                self.store.save_bridge(bridge)
                self._publish(bridge, undo)
            step("forwarding")
            self.switch_on(bridge)
            undo.pop_all()
        return bridge, index

    def _update(self, known: Bridge, wanted: Bridge, said: Collection[str]) -> Bridge:
        for name in said:
            ours, theirs = getattr(wanted, name), getattr(known, name)
            if ours != theirs:
                raise NetworkError(f"bridge {known.name} is there with {name} {theirs}, not {ours}")
        peers = [peer for peer in wanted.peers if peer not in known.peers]
        if peers:
            rows = [row for peer in peers for row in _rules.of_peers(known.name, peer)]
            known = replace(known, peers=(*known.peers, *peers))
            for row in rows:
                with suppress(FileExistsError):  # it names us, too
                    self.add([row])
            self.store.save_bridge(known)
        return known

    def _check_free(self, bridge: Bridge) -> None:
        """That nobody else has these addresses."""
        if not bridge.subnet:
            raise NetworkError(f"there is no bridge {bridge.name}: it takes a subnet to make one")
        for subnet in _subnets(bridge):
            for other in self.store.bridges():
                for taken in _subnets(other):
                    if other.name != bridge.name and overlaps(subnet, taken):
                        raise NetworkError(
                            f"subnet {subnet} overlaps {taken} of bridge {other.name}"
                        )
            own = _index_of(bridge.name)
            for taken, index in _netlink.routes(self.route, version_of(subnet)):
                if index != own and overlaps(subnet, taken):
                    raise NetworkError(f"subnet {subnet} overlaps {taken}, which the host routes")

    def _make_link(self, bridge: Bridge, undo: ExitStack) -> tuple[int, bool]:
        """Its index, and whether it was not there."""
        link = _netlink.find_link(self.route, bridge.name)
        made = link is None
        if made:
            mac = bytes((_BRIDGE_MAC_KIND, *os.urandom(5)))
            with told(f"make the bridge {bridge.name}"):
                self.route.send([_netlink.new_bridge(bridge.name, mac, bridge.mtu)])
            undo.callback(self._delete_link, bridge.name)
            link = _netlink.find_link(self.route, bridge.name)
        if link is None or link.kind != "bridge":
            raise NetworkError(f"the interface {bridge.name} is no bridge")
        return link.index, made

    def _delete_link(self, name: str) -> None:
        with suppress(NetlinkError):
            self.route.send([_netlink.delete_link(name)])

    def _prepare(self, bridge: Bridge, index: int) -> None:
        name = bridge.name
        _sysctl.write(f"ipv6/conf/{name}/accept_ra", "0")
        if bridge.made or bridge.subnet6:
            _sysctl.write(f"ipv6/conf/{name}/disable_ipv6", "0" if bridge.subnet6 else "1")
        # For published ports at 127.0.0.1; the chain `raw` keeps everybody else from there.
        _sysctl.write(f"ipv4/conf/{name}/route_localnet", "1")
        messages = [_netlink.set_up(index)]
        for version in (4, 6):
            subnet, gateway = bridge.subnet_of(version), bridge.gateway_of(version)
            if subnet is not None and gateway is not None:
                prefix = parse_subnet(subnet).prefixlen
                messages.append(_netlink.new_address(index, packed(gateway), prefix))
        with told(f"give addresses to the bridge {name}"):
            self.route.send(messages)

    def _fill_hosts(self, bridge: Bridge) -> None:
        with open(self.store.hosts_path(bridge.name), "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(LOCAL_HOSTS)

    def _publish(self, bridge: Bridge, undo: ExitStack) -> None:
        """Into the rules, which are made if these are the first."""
        step("rules")
        rows = _rows_of(bridge)
        if not self._has_rules():
            self._build()
        else:
            for row in rows[: len(_rules.of_bridge(bridge))]:
                with suppress(FileExistsError):  # a peer has named it
                    self.add([row])
            self.add(rows[len(_rules.of_bridge(bridge)) :])
            self._admit(bridge)
        undo.callback(self.withdraw, bridge)
        undo.callback(self.take, rows)

    def drop_bridge(self, bridge: Bridge) -> None:
        """Nobody uses it any more."""
        self.take(_rows_of(bridge))
        self.withdraw(bridge)
        if bridge.made:
            self._delete_link(bridge.name)
        self.store.forget_bridge(bridge.name)
        if not self.store.bridges():
            self.drop_rules()

    def drop_rules(self) -> None:
        """The last bridge is gone: so are the rules, and what was switched on is off again."""
        for version in map(int, self.store.forwarding()):
            _sysctl.write(_FORWARDING[version], "0")
        self.store.save_forwarding({})
        messages = [_netlink.table(family, TABLE, new=False) for family in ("inet", "bridge")]
        if self._has_rules():
            with told("delete the rules of nftables"):
                _netlink.commit(self.filter, messages)

    # Forwarding

    def switch_on(self, bridge: Bridge) -> list[str]:
        """Forwarding for the families of a bridge: what had to be."""
        return [
            name
            for version in (4, 6)
            if bridge.subnet_of(version) is not None
            for name in self.switch_on_family(version)
        ]

    def switch_on_family(self, version: int) -> list[str]:
        name = _FORWARDING[version]
        if _sysctl.read(name) != "0":
            return []
        changed = [name]
        if version == 6:  # or the host would forget its own router
            for each in _sysctl.interfaces(6):
                key = f"ipv6/conf/{each}/accept_ra"
                if _sysctl.read(key) == "1" and _sysctl.write(key, "2"):
                    changed.append(key)
        noted = self.store.forwarding()
        if self._has_rules() and str(version) not in noted:
            with told("make the rules of nftables"):
                _netlink.commit(self.filter, [_rules.drop_strangers(version)])
        self.store.save_forwarding(noted | {str(version): True})
        _sysctl.write(name, "1")
        return changed

    # Firewalls of others

    def _admit(self, bridge: Bridge) -> None:
        """Where a FORWARD chain of others drops what it does not know, have it know the bridge."""
        if not bridge.adjust_firewall:
            return
        with told("look at the firewall"):
            policy = _netlink.chain_policy(self.filter, "ip", "filter", "FORWARD")
            if policy != 0:
                return
            docker = _netlink.has_chain(self.filter, "ip", "filter", _DOCKER_CHAIN)
        self.withdraw(bridge)
        with told("put rules into the firewall"):
            chain = _DOCKER_CHAIN if docker else "FORWARD"
            _netlink.commit(self.filter, _rules.admit(chain, bridge.name, _tag(bridge)))

    def withdraw(self, bridge: Bridge) -> None:
        with told("take rules out of the firewall"):
            for chain in ("FORWARD", _DOCKER_CHAIN):
                handles = _netlink.handles_of(self.filter, "ip", "filter", chain, _tag(bridge))
                _netlink.commit(
                    self.filter,
                    [_netlink.delete_rule("ip", "filter", chain, each) for each in handles],
                )


_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def require_root() -> None:
    if os.geteuid() != 0:
        raise UnsupportedError(
            "a bridge is for root: an ordinary user has no rights over the host's network, and has"
            " 'none' or 'host'",
            field="network.mode",
        )


def _tag(bridge: Bridge) -> str:
    return f"container bridge {bridge.name}"


def _subnets(bridge: Bridge) -> list[str]:
    return [subnet for subnet in (bridge.subnet, bridge.subnet6) if subnet is not None]


def _rows_of(bridge: Bridge) -> list[Element]:
    rows = _rules.of_bridge(bridge)
    return rows + [row for subnet in bridge.nat for row in _rules.of_subnet(subnet, bridge.name)]


def _unique(rows: Iterable[Element]) -> list[Element]:
    """Two bridges may each name the other as its peer."""
    return list(dict.fromkeys(rows))


def _index_of(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _lines_of(attachment: Attachment) -> bytes:
    return hosts_text(attachment.names, attachment.plain_addresses()).encode()


def bridge_of(config: NetworkConfig) -> tuple[Bridge, list[str]]:
    """What a config asks for, defaults filled in, and what of it was said; a subnet of "" is that
    of a bridge which is there.
    """
    subnet, subnet6 = config.subnet_of(4), config.subnet_of(6)
    said = [name for name in ("gateway", "gateway6") if getattr(config, name) is not None]
    if config.subnet is not None or subnet != DEFAULT_BRIDGE_SUBNET:
        said += ["subnet"] if subnet is not None else []
    said += ["subnet6"] if subnet6 is not None else []
    bridge = Bridge(
        name=config.bridge,
        subnet=subnet or "",
        gateway=config.gateway_of(4) or "",
        subnet6=subnet6,
        gateway6=config.gateway_of(6),
        mtu=None,
        peers=tuple(config.peers),
        adjust_firewall=config.adjust_firewall,
    )
    return bridge, said


# Public ------------------------------------------------------------------------------------------


def ensure_bridge(
    name: str = DEFAULT_BRIDGE_NAME,
    *,
    subnet: object = None,
    gateway: object = None,
    subnet6: object = None,
    gateway6: object = None,
    peers: Iterable[str] = (),
) -> None:
    """Make the bridge unless it is there, with its rules, and switch forwarding on.

    ``subnet`` None: the default one, of the bridge that has it by default, else that of the bridge
    which is there. Idempotent, for many processes at once. A bridge that was there before, of
    somebody else's, is used as it is. `NetworkError` for a subnet that overlaps another one or a
    route of the host, for an interface that is no bridge, or other addresses than it has.
    """
    config = NetworkConfig(
        bridge=name,
        subnet=subnet,
        gateway=gateway,
        subnet6=subnet6,
        gateway6=gateway6,
        peers=tuple(peers),
    )
    with Host() as host:
        host.ensure(*bridge_of(config))


def ensure_forwarding_enabled() -> list[str]:
    """Have the host forward IPv4; returns what had to be switched on, of ``/proc/sys/net``.

    Only what comes from or goes to our bridges is forwarded where it was off before. `prune` of the
    last network switches it off again.
    """
    with Host() as host:
        return host.switch_on_family(4)


def setup_nat_for_bridge(bridge: str = DEFAULT_BRIDGE_NAME, subnet: object = None) -> None:
    """Have what leaves ``subnet`` by another interface than a bridge bear the host's address.

    The bridge is one of `ensure_bridge`; of its own subnet that is so already. Idempotent.
    """
    name = check_interface_name(bridge, "bridge")
    network = str(parse_subnet(subnet if subnet is not None else DEFAULT_BRIDGE_SUBNET))
    with Host() as host:
        known = host.store.bridge(name)
        if known is None:
            raise NetworkError(f"there is no bridge {name} of ours; see ensure_bridge")
        if network in known.nat:
            return
        for other in host.store.bridges():
            if any(overlaps(network, taken) for taken in other.nat):
                raise ConfigError(f"{network} overlaps one of bridge {other.name}", field="subnet")
        host.add(_rules.of_subnet(network, name))
        host.store.save_bridge(replace(known, nat=(*known.nat, network)))


publish(ensure_bridge, ensure_forwarding_enabled, setup_nat_for_bridge)
