# SPDX-License-Identifier: Apache-2.0
"""Published ports. Each is an element of a map, and a socket that keeps the host's port for it."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from typing import Self

from container._config import (
    DEFAULT_BRIDGE_NAME,
    PortMapping,
    check_interface_name,
    parse_ip,
)
from container._errors import ConfigError, NetworkError, StateError, publish
from container._launcher import above_stdio
from container._network import _rules
from container._network._addresses import version_of
from container._network._host import Host, step
from container._network._records import Port, Record
from container._network._store import hold, let_go

_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_WILDCARD = {4: "0.0.0.0", 6: "::"}


def ports_of(mappings: Iterable[PortMapping], addresses: Sequence[str]) -> list[Port]:
    """For each mapping those of the families that it is for, and the container has."""
    found = []
    for mapping in mappings:
        host_ip = mapping.host_ip
        for address in addresses:
            version = version_of(address)
            if host_ip is not None and version_of(host_ip) != version:
                continue
            wildcard = host_ip is None or host_ip == _WILDCARD[version]
            found.append(
                Port(
                    None if wildcard else host_ip,
                    mapping.host_port,
                    address,
                    mapping.container_port,
                    mapping.protocol,
                )
            )
    return found


def reserve(port: Port) -> int | None:
    """A socket that has the host's port: a rule for it would hide another's from the world.

    None where the kernel has no sockets of that kind, and so nobody has the port.
    """
    version = version_of(port.address)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    kind, number = _KINDS[port.protocol]
    try:
        with socket.socket(family, kind | socket.SOCK_CLOEXEC, number) as sock:
            if version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((port.host_ip or _WILDCARD[version], port.host_port))
            return hold(above_stdio(sock.detach()))
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(f"port {port} of the host is in use") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise NetworkError(f"{port.host_ip} is no address of the host: port {port}") from error
        raise NetworkError(f"cannot have port {port} of the host: {error.strerror}") from error


class Ports:
    """Those of one record, in this process."""

    def __init__(self) -> None:
        self._reserved: dict[Port, int | None] = {}

    def reserve(self, ports: Iterable[Port]) -> None:
        for port in ports:
            if port in self._reserved:
                raise NetworkError(f"port {port} of the host is in use")
            self._reserved[port] = reserve(port)
        step("reserve")

    def let_go(self, ports: Iterable[Port] | None = None) -> None:
        for port in list(self._reserved) if ports is None else ports:
            fd = self._reserved.pop(port, None)
            if fd is not None:
                let_go(fd)


def publish_ports(host: Host, record: Record, ports: Sequence[Port]) -> None:
    """Into the rules; from then on they lead to the container."""
    try:
        host.add(_rules.of_port(port, record.id) for port in ports)
    except FileExistsError:
        shown = ", ".join(map(str, ports))
        raise NetworkError(f"a port of the host is published already, of {shown}") from None
    host.forget_flows(replace(record, ports=tuple(ports)))


class PortForwarder:
    """Publishes ports of a container that runs, and takes them back: each change at once.

    ``container_ip`` is its address at ``bridge``, a bridge of ours. A context manager. The ports
    last until `cleanup` or the end of the process. Thread-safe; not for a fork of the process.
    """

    def __init__(self, container_ip: object, bridge: str = DEFAULT_BRIDGE_NAME) -> None:
        self.container_ip = parse_ip(str(container_ip).partition("/")[0], "container_ip")
        self.bridge = check_interface_name(bridge, "bridge")
        self._record = Record(f"ports-{token_hex(8)}", uses=(self.bridge,))
        self._ports = Ports()
        self._mappings: dict[PortMapping, list[Port]] = {}
        self._lock = threading.Lock()
        self._owner = os.getpid()

    @property
    def mappings(self) -> tuple[PortMapping, ...]:
        return tuple(self._mappings)

    def add_mapping(self, mapping: PortMapping | str) -> None:
        """Publish a port. `NetworkError` where it is in use, of the host or of a container."""
        mapping = _parse(mapping)
        self._check_owner()
        with self._lock:
            if mapping in self._mappings:
                raise NetworkError(f"{mapping} is published already")
            ports = ports_of([mapping], [self.container_ip])
            if not ports:
                raise ConfigError(
                    f"{mapping} is of another family than {self.container_ip}", field="mapping"
                )
            with Host() as host:
                self._add(host, ports)
            self._mappings[mapping] = ports

    def _add(self, host: Host, ports: list[Port]) -> None:
        if host.store.bridge(self.bridge) is None:
            raise NetworkError(f"there is no bridge {self.bridge} of ours; see ensure_bridge")
        self._ports.reserve(ports)
        record = replace(self._record, ports=(*self._record.ports, *ports))
        try:
            host.store.save(record)
            publish_ports(host, record, ports)
        except BaseException:
            self._ports.let_go(ports)
            host.store.save(self._record)
            raise
        self._record = record

    def remove_mapping(self, mapping: PortMapping | str) -> None:
        """Take it back; flows of udp to it are forgotten. `StateError` if it is not there."""
        mapping = _parse(mapping)
        self._check_owner()
        with self._lock:
            if mapping not in self._mappings:
                raise StateError(f"{mapping} is not published by this one")
            self._remove(self._mappings[mapping])
            del self._mappings[mapping]

    def _remove(self, ports: Sequence[Port]) -> None:
        left = tuple(port for port in self._record.ports if port not in ports)
        with Host() as host:
            gone = replace(self._record, ports=tuple(ports))
            host.remove(gone)
            self._record = replace(self._record, ports=left)
            if left:
                host.store.save(self._record)
            else:
                host.store.forget(self._record.id)
        self._ports.let_go(ports)

    def cleanup(self) -> None:
        """Take all of them back. Idempotent."""
        if self._owner != os.getpid():
            return
        with self._lock:
            if self._mappings:
                self._remove(self._record.ports)
                self._mappings.clear()

    def _check_owner(self) -> None:
        if self._owner != os.getpid():
            raise StateError(
                f"this PortForwarder belongs to process {self._owner}, not to its fork"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cleanup()

    def __del__(self) -> None:
        if getattr(self, "_mappings", None):
            with suppress(Exception):
                self.cleanup()


def _parse(mapping: PortMapping | str) -> PortMapping:
    if isinstance(mapping, PortMapping):
        return mapping
    return PortMapping.parse(mapping)


publish(PortForwarder)
