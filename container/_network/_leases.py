# SPDX-License-Identifier: Apache-2.0
"""Addresses that nobody else on the machine has: a file lock for each, until its holder ends."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from fcntl import LOCK_UN, flock
from itertools import chain
from typing import Self

from container._config import parse_ip
from container._errors import ConfigError, NetworkError, publish
from container._network._addresses import Network, hosts_of, packed, parse_subnet
from container._network._store import Store, hold, let_go, try_lock

_WINDOW = 1 << 16
"""Where a free one is looked for first, at random: its file stays behind when it is given back."""

_REST = 10.0
"""Seconds in which an address is not given to the next one, unless it is the last one: neighbours
and flows still know who had it."""


class IPLease:
    """An address that is leased until `release`, the end of a ``with``, or that of the process.

    ``ip_address`` has the length of the prefix with it, ``"10.88.0.2/16"``. A fork of the process
    does not have the lease. Thread-safe.
    """

    def __init__(self, ip_address: str, fd: int) -> None:
        self.ip_address = ip_address
        self._fd: int | None = hold(fd)
        self._owner = os.getpid()

    def release(self) -> None:
        """Give it back. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None and self._owner == os.getpid():
            os.utime(fd)
            flock(fd, LOCK_UN)  # a fork may not have closed its copy yet
            let_go(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.release()

    def __str__(self) -> str:
        return self.ip_address

    def __repr__(self) -> str:
        return f"<IPLease {self.ip_address}{'' if self._fd is not None else ', released'}>"


def lease_ip(subnet: object, address: object = None) -> IPLease:
    """An address of ``subnet`` that no other lease on the machine has, or ``address`` of it.

    Not the first one, which is the gateway's. One that was given back is not given to the next at
    once. `NetworkError` when all are taken, or that one is.
    """
    network = parse_subnet(subnet)
    wanted = number_of(network, address)
    store = Store()
    with store.locked():
        return lease_in(store, network, wanted, {1})


def number_of(network: Network, address: object) -> int | None:
    if address is None:
        return None
    plain = parse_ip(str(address).partition("/")[0], "address")
    number = int.from_bytes(packed(plain), "big") - int(network.network_address)
    if number not in hosts_of(network):
        raise ConfigError(f"{plain} is none for a host of {network}", field="address")
    return number


def lease_in(store: Store, network: Network, wanted: int | None, reserved: set[int]) -> IPLease:
    """``reserved`` are numbers that nobody gets who does not ask for them."""
    if wanted is not None:
        fd = _take(store, network, wanted)
        if fd is None:
            raise NetworkError(f"address {network[wanted]} is taken")
        return _lease(network, wanted, fd)
    resting: list[tuple[float, int]] = []
    for number in _candidates(network):
        if number in reserved:
            continue
        fd = _take(store, network, number)
        if fd is None:
            continue
        since = _last_used(fd)
        if since is None or time.time() - since >= _REST:
            return _lease(network, number, fd)
        resting.append((since, number))
        os.close(fd)
    for _, number in sorted(resting):
        fd = _take(store, network, number)
        if fd is not None:
            return _lease(network, number, fd)
    raise NetworkError(f"every address of {network} is taken")


def _lease(network: Network, number: int, fd: int) -> IPLease:
    os.pwrite(fd, b".", 0)
    return IPLease(f"{network[number]}/{network.prefixlen}", fd)


def _candidates(network: Network) -> Iterator[int]:
    hosts = hosts_of(network)
    window = hosts[:_WINDOW]
    start = random.randrange(len(window))
    return chain(window[start:], window[:start], hosts[_WINDOW:])


def _take(store: Store, network: Network, number: int) -> int | None:
    return try_lock(f"{store.path}/addresses/{network[number]}")


def _last_used(fd: int) -> float | None:
    """When it was given or given back last; None if it never was."""
    status = os.fstat(fd)
    return status.st_mtime if status.st_size else None


publish(IPLease, lease_ip)
