# SPDX-License-Identifier: Apache-2.0
"""What is known of a bridge and of a container's interface, and is kept in files. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bridge:
    name: str
    subnet: str
    gateway: str  # without its prefix
    subnet6: str | None = None
    gateway6: str | None = None
    mtu: int | None = None
    peers: tuple[str, ...] = ()
    nat: tuple[str, ...] = ()  # subnets whose addresses are hidden
    adjust_firewall: bool = True
    made: bool = True  # by us, and not there before

    def subnet_of(self, version: int) -> str | None:
        return self.subnet if version == 4 else self.subnet6

    def gateway_of(self, version: int) -> str | None:
        return self.gateway if version == 4 else self.gateway6

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Bridge:
        lists = {name: tuple(content.get(name, ())) for name in ("peers", "nat")}
        return cls(**content | lists)


@dataclass(frozen=True, slots=True)
class Port:
    """A published port, as far as one family of addresses goes."""

    host_ip: str | None
    host_port: int
    address: str
    port: int
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        host = f"[{self.host_ip}]" if ":" in (self.host_ip or "") else self.host_ip or "*"
        return f"{host}:{self.host_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """An interface of a container at a bridge."""

    id: str
    interface: str
    bridge: str
    host_interface: str
    mac: str
    addresses: tuple[str, ...]  # with their prefixes
    egress: str | tuple[str, ...] | None = None
    names: tuple[str, ...] = ()

    def plain_addresses(self) -> list[str]:
        return [address.partition("/")[0] for address in self.addresses]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Attachment:
        egress = content["egress"]
        return cls(
            **content
            | {
                "addresses": tuple(content["addresses"]),
                "names": tuple(content["names"]),
                "egress": tuple(egress) if isinstance(egress, list) else egress,
            }
        )


@dataclass(frozen=True, slots=True)
class Record:
    """All of a container: what is taken away when it is gone."""

    id: str
    attachments: tuple[Attachment, ...] = ()
    ports: tuple[Port, ...] = ()
    uses: tuple[str, ...] = ()  # bridges, from before it has an interface there

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "uses": list(self.uses),
            "attachments": [each.to_dict() for each in self.attachments],
            "ports": [each.to_dict() for each in self.ports],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Record:
        return cls(
            content["id"],
            tuple(Attachment.from_dict(each) for each in content["attachments"]),
            tuple(Port(**each) for each in content["ports"]),
            tuple(content["uses"]),
        )
