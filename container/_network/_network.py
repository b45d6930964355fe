# SPDX-License-Identifier: Apache-2.0
"""A container's connection: made in two parts, undone in one.

What has to be known before the container is made, its addresses and its files, comes first
(`Connection`); then, while its first process waits at the gate, its interfaces (`attach`). Who it
may be is in the rules before its interface is there, and the program starts after all of it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_network
from secrets import token_hex
from typing import Any, Self, cast

from container._config import (
    Config,
    Mount,
    NetworkConfig,
    NetworkMode,
    PortMapping,
    plain_address,
)
from container._errors import ConfigError, NetworkError, StateError, publish
from container._network import _netlink, _rules
from container._network._addresses import packed, version_of
from container._network._files import host_nameservers, resolv_conf_text
from container._network._host import Host, bridge_of, step, told
from container._network._leases import IPLease, lease_in, number_of
from container._network._ports import Ports, ports_of, publish_ports
from container._network._records import Attachment, Bridge, Port, Record

_DEFAULT_HOSTNAME = "container"


@dataclass(frozen=True, slots=True)
class _Plug:
    """An interface to be made."""

    attachment: Attachment
    config: NetworkConfig
    bridge: Bridge
    index: int  # of the bridge


class Connection:
    """What a container has of the network, from before its start until after its end."""

    def __init__(self, configs: Sequence[NetworkConfig], id: str, hostname: str = "") -> None:
        self.id = id
        self.record = Record(id)
        self.mounts: tuple[tuple[str, str], ...] = ()  # source and target
        self._ports = Ports()
        self._leases: list[IPLease] = []
        self._plugs: list[_Plug] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._noted = False
        try:
            with Host() as host:
                for number, config in enumerate(configs):
                    self._plan(host, config, f"eth{number}", hostname)
                self._write_files(host, configs)
        except BaseException:
            self.release()
            raise

    def _plan(self, host: Host, config: NetworkConfig, interface: str, hostname: str) -> None:
        bridge, index = host.ensure(*bridge_of(config))
        addresses = [
            self._lease(host, bridge, version, config)
            for version in (4, 6)
            if bridge.subnet_of(version) is not None
        ]
        own = config.hostname or (hostname if hostname != _DEFAULT_HOSTNAME else None)
        names = dict.fromkeys(name for name in (own, *config.aliases, self.id) if name)
        attachment = Attachment(
            id=self.id,
            interface=interface,
            bridge=bridge.name,
            host_interface=f"{_rules.PORT_PREFIX}{token_hex(5)}",
            mac=config.mac_address or _mac_of(addresses[0]),
            addresses=tuple(addresses),
            egress=cast(Any, config.egress),
            names=tuple(names),
        )
        self._plugs.append(_Plug(attachment, config, bridge, index))

    def _lease(self, host: Host, bridge: Bridge, version: int, config: NetworkConfig) -> str:
        network = ip_network(str(bridge.subnet_of(version)))
        wanted = config.ip_address if version == 4 else config.ip6_address
        gateway = number_of(network, bridge.gateway_of(version))
        number = number_of(network, None if wanted is None else plain_address(wanted))
        if number is not None and number == gateway:
            raise ConfigError(f"is that of the gateway: {wanted}", field="ip_address")
        lease = lease_in(host.store, network, number, {gateway or 0})
        self._leases.append(lease)
        step("address")
        return lease.ip_address

    def _write_files(self, host: Host, configs: Sequence[NetworkConfig]) -> None:
        first = configs[0]
        servers = first.dns if first.dns is not None else host_nameservers()
        text = resolv_conf_text(cast(Sequence[str], servers), first.dns_search, first.dns_options)
        self._noted = True
        self.record = Record(self.id, uses=tuple(plug.bridge.name for plug in self._plugs))
        host.store.save(self.record)
        resolv = host.store.write_resolv_conf(self.id, text)
        step("files")
        hosts = host.store.hosts_path(first.bridge)
        self.mounts = ((hosts, "/etc/hosts"), (resolv, "/etc/resolv.conf"))

    def config_of(self, config: Config) -> Config:
        """With the files bound, but for what is mounted there by itself."""
        taken = {str(mount.target) for mount in config.mounts}
        mounts = tuple(
            Mount.bind(source, target, read_only=True)
            for source, target in self.mounts
            if target not in taken
        )
        return replace(config, mounts=(*config.mounts, *mounts))

    def attach(self, pid: int) -> None:
        """Give the process's network namespace its interfaces. All of them, or none."""
        with told("open the network namespace of the container"):
            namespace = _netlink.open_namespace(pid)
        try:
            try:
                self._attach(namespace)
            except BaseException:
                self.release(links=True)
                raise
        finally:
            os.close(namespace)

    def _attach(self, namespace: int) -> None:
        ports = [
            port
            for plug in self._plugs
            for port in ports_of(
                cast(tuple[PortMapping, ...], plug.config.port_mappings),
                plug.attachment.plain_addresses(),
            )
        ]
        self._ports.reserve(ports)
        with Host() as host:
            attachments = tuple(plug.attachment for plug in self._plugs)
            self.record = replace(self.record, attachments=attachments, ports=tuple(ports))
            host.store.save(self.record)
            for plug in self._plugs:
                host.add(_rules.of_attachment(plug.attachment))
            publish_ports(host, self.record, ports)
            step("elements")
            for plug in self._plugs:
                self._make_veth(host, plug, namespace)
                host.note_names(plug.attachment)
            step("veth")
        with told("set up the interfaces of the container"):
            _netlink.inside(namespace, self._set_up)
        step("inside")

    def _make_veth(self, host: Host, plug: _Plug, namespace: int) -> None:
        attachment = plug.attachment
        with told(f"make the interface {attachment.interface} of the container"):
            host.route.send(
                [
                    _netlink.new_veth(
                        attachment.host_interface,
                        plug.index,
                        namespace,
                        attachment.interface,
                        bytes.fromhex(attachment.mac.replace(":", "")),
                        plug.config.mtu,
                    )
                ]
            )
            port = socket.if_nametoindex(attachment.host_interface)
            host.route.send([_netlink.set_hairpin(port)])

    def _set_up(self) -> None:
        """In the container's namespace."""
        messages = []
        for number, plug in enumerate(self._plugs):
            index = socket.if_nametoindex(plug.attachment.interface)
            messages.append(_netlink.set_up(index))
            for text in plug.attachment.addresses:
                address, _, prefix = text.partition("/")
                messages.append(_netlink.new_address(index, packed(address), int(prefix)))
            if number == 0:
                gateways = (plug.bridge.gateway_of(version) for version in (4, 6))
                messages += [
                    _netlink.new_default_route(index, packed(gateway))
                    for gateway in gateways
                    if gateway
                ]
        with _netlink.open_route() as route:
            route.send(messages)

    def release(self, *, links: bool = False) -> None:
        """Give everything back. Idempotent; ``links``: also what the end of the namespace would.

        An interface whose namespace lives on, as another container has joined it, is cut off.
        """
        if self._owner != os.getpid():
            return
        with self._lock, ExitStack() as stack:
            leases, self._leases = self._leases, []
            for lease in leases:
                stack.callback(lease.release)
            stack.callback(self._ports.let_go)
            if self._noted:
                with Host() as host:
                    if links:
                        for plug in self._plugs:
                            host._delete_link(plug.attachment.host_interface)
                    host.remove(self.record)
                    host.store.forget(self.id)
                self._noted = False

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(
            Network(self, plug.attachment, plug.bridge, self.record.ports) for plug in self._plugs
        )


def _mac_of(address: str) -> str:
    """By the address, so that no neighbour remembers another one for it."""
    octets = packed(plain_address(address))[-4:]
    return "0a:58:" + ":".join(f"{octet:02x}" for octet in octets)


class Network:
    """An interface of a container at a bridge, until `cleanup` or the end of this process."""

    def __init__(
        self, connection: Connection, attachment: Attachment, bridge: Bridge, ports: Sequence[Port]
    ) -> None:
        self._connection = connection
        self.interface = attachment.interface
        self.host_interface = attachment.host_interface
        self.bridge = attachment.bridge
        self.mac_address = attachment.mac
        by_version = {version_of(each): each for each in attachment.addresses}
        self.ip_address = by_version.get(4)
        self.ip6_address = by_version.get(6)
        self.gateway = bridge.gateway_of(4)
        self.gateway6 = bridge.gateway_of(6)
        self.ports = tuple(port for port in ports if port.address in attachment.plain_addresses())

    def cleanup(self) -> None:
        """Take the interface, its address and its ports back. Idempotent."""
        self._connection.release(links=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cleanup()

    def __repr__(self) -> str:
        return f"<Network {self.interface} {self.ip_address} at {self.bridge}>"


def setup_container_network(pid: int, config: NetworkConfig | None = None) -> Network | None:
    """Connect the network namespace of a process, as ``config`` says, and return the `Network`.

    None with mode NONE or HOST: there is nothing to be set up. The process must have a network
    namespace of its own, with loopback up, and no interface ``eth0``.
    """
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        raise ConfigError(f"expected the id of a process, got {pid!r}", field="pid")
    if config is None:
        config = NetworkConfig()
    if not isinstance(config, NetworkConfig):
        raise ConfigError(f"expected NetworkConfig, got {type(config).__name__}", field="config")
    if config.mode != NetworkMode.BRIDGE:
        return None
    try:
        same = os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/thread-self/ns/net"))
    except OSError as error:
        raise StateError(f"there is no process {pid} to connect: {error.strerror}") from None
    if same:
        raise NetworkError(f"process {pid} has no network namespace of its own")
    connection = Connection([config], f"process-{pid}-{token_hex(4)}")
    connection.attach(pid)
    return connection.networks[0]


publish(Network, setup_container_network)
