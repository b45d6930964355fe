# SPDX-License-Identifier: Apache-2.0
"""Networks as a person looks at them, and takes them away."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from container._config import check_interface_name
from container._errors import NetworkError
from container._network._host import Host
from container._network._records import Bridge, Record
from container._network._store import Store, try_lock


def list_networks() -> list[dict[str, Any]]:
    """Each with its containers."""
    store = Store()
    records = store.records()
    return [_describe(bridge, records) for bridge in store.bridges()]


def inspect_network(name: str) -> dict[str, Any]:
    """One of them. `NetworkError` if it is not there."""
    check_interface_name(name, "name")
    for network in list_networks():
        if network["name"] == name:
            return network
    raise NetworkError(f"there is no network {name}")


def _describe(bridge: Bridge, records: list[Record]) -> dict[str, Any]:
    mine = [
        (record, attachment)
        for record in records
        for attachment in record.attachments
        if attachment.bridge == bridge.name
    ]
    return bridge.to_dict() | {
        "containers": {
            record.id: {
                "interface": attachment.interface,
                "host_interface": attachment.host_interface,
                "mac_address": attachment.mac,
                "addresses": list(attachment.addresses),
                "names": list(attachment.names),
                "egress": attachment.egress,
                "ports": [
                    f"{port}->{port.port}"
                    for port in record.ports
                    if port.address in attachment.plain_addresses()
                ],
            }
            for record, attachment in mine
        }
    }


def collect() -> list[str]:
    """Take away what is left of processes that were killed; the ids of their containers."""
    with Host() as host:
        return host.collected


def prune_networks() -> list[str]:
    """Take away the bridges that no container uses; their names.

    With the last one go the rules, and forwarding is off again if it was off before.
    """
    with Host() as host:
        used = {name for record in host.store.records() for name in record.uses}
        unused = [bridge for bridge in host.store.bridges() if bridge.name not in used]
        for bridge in unused:
            host.drop_bridge(bridge)
        if not host.store.bridges():
            host.drop_rules()
        _forget_addresses(host.store)
        return [bridge.name for bridge in unused]


def _forget_addresses(store: Store) -> None:
    """Their files, but for those that somebody has."""
    for name in os.listdir(f"{store.path}/addresses"):
        path = f"{store.path}/addresses/{name}"
        fd = try_lock(path, create=False)
        if fd is not None:
            with suppress(FileNotFoundError):
                os.unlink(path)
            os.close(fd)
