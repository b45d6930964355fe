# SPDX-License-Identifier: Apache-2.0
"""``/etc/hosts`` and ``/etc/resolv.conf``: what is in them, and how they get into a root."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from container._config import StrPath, parse_host_name, parse_ip
from container._errors import ConfigError, NetworkError, publish
from container._launcher import open_below

LOCAL_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_HOST_RESOLV_CONF = "/etc/resolv.conf"
# What systemd-resolved knows, where its own resolv.conf names a server at loopback alone.
_RESOLVED = "/run/systemd/resolve/resolv.conf"
_LARGEST = 1 << 16


def hosts_text(names: Sequence[str], addresses: Iterable[str]) -> str:
    return "".join(f"{address} {' '.join(names)}\n" for address in addresses)


def resolv_conf_text(
    dns: Sequence[str], search: Sequence[str] = (), options: Sequence[str] = ()
) -> str:
    lines = [f"nameserver {address}" for address in dns]
    if search:
        lines.append(f"search {' '.join(search)}")
    if options:
        lines.append(f"options {' '.join(options)}")
    return "".join(f"{line}\n" for line in lines)


def host_nameservers(paths: Sequence[str] = (_HOST_RESOLV_CONF, _RESOLVED)) -> list[str]:
    """Those of the host less the ones at its loopback, which are out of a container's reach."""
    for path in paths:
        found = [address for address in _nameservers(path) if not _is_loopback(address)]
        if found:
            return found
    return []


def _nameservers(path: str) -> list[str]:
    try:
        text = Path(path).read_bytes()[:_LARGEST].decode(errors="replace")
    except OSError:
        return []
    words = [line.split() for line in text.splitlines()]
    return [line[1] for line in words if line[:1] == ["nameserver"] and len(line) > 1]


def _is_loopback(address: str) -> bool:
    try:
        return parse_ip(address, "nameserver").startswith("127.") or address == "::1"
    except ConfigError:  # with a scope, or none at all
        return True


def write_hosts(rootfs: StrPath, hostname: str, ip_address: object) -> None:
    """Write ``/etc/hosts`` of a root directory: localhost, and the host name with its address.

    What is there is replaced, a link itself and not what it leads to; nothing outside of ``rootfs``
    is written, wherever links in it lead. ``/etc`` is made if it is missing.
    """
    name = parse_host_name(hostname, "hostname")
    address = parse_ip(str(ip_address).partition("/")[0], "ip_address")
    _write(rootfs, "hosts", LOCAL_HOSTS + hosts_text([name], [address]))


def write_resolv_conf(rootfs: StrPath, dns: Sequence[object] = ()) -> None:
    """Write ``/etc/resolv.conf`` of a root directory, as `write_hosts` does.

    ``dns`` are nameservers; none: the host's, less those at its loopback.
    """
    if isinstance(dns, str | bytes):
        raise ConfigError(f"expected a sequence, got {type(dns).__name__}", field="dns")
    servers = [parse_ip(address, f"dns[{index}]") for index, address in enumerate(dns)]
    _write(rootfs, "resolv.conf", resolv_conf_text(servers or host_nameservers()))


def _write(rootfs: StrPath, name: str, text: str) -> None:
    try:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        with _opened(os.open(rootfs, flags)) as root, _opened(_open_etc(root)) as etc:
            _replace(etc, name, text.encode())
    except OSError as error:
        raise NetworkError(
            f"cannot write /etc/{name} of {os.fspath(rootfs)!r}: {error.strerror}"
        ) from error


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _open_etc(root: int) -> int:
    """As a process in there finds it: a link in the image leads to a place in the image."""
    try:
        etc = open_below(root, "etc")
    except FileNotFoundError:
        with suppress(FileExistsError):  # a link that leads nowhere is one
            os.mkdir("etc", 0o755, dir_fd=root)
        etc = open_below(root, "etc")
    if not stat.S_ISDIR(os.fstat(etc).st_mode):
        os.close(etc)
        raise NotADirectoryError(20, os.strerror(20))
    return etc


def _replace(directory: int, name: str, data: bytes) -> None:
    new = f".{name}.{token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(new, flags, 0o644, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            owner = os.fstat(directory)
            with suppress(PermissionError):  # of an image that is another's, or by an ordinary user
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.write(data)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)
        raise


publish(write_hosts, write_resolv_conf)
