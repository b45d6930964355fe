# SPDX-License-Identifier: Apache-2.0
"""config.json of the OCI runtime-spec to what the library has: docs/oci.md, row by row."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from container._config import (
    Config,
    Device,
    Namespaces,
    Process,
    Resources,
    StrPath,
    default_devices,
)
from container._errors import ConfigError, UnsupportedError
from container._seccomp import SeccompProfile
from container.oci._mounts import mappings_of, mounts_of
from container.oci._process import capabilities_of, hooks_of, process_of
from container.oci._reader import Node, at, refuse, string
from container.oci._resources import device_rules_of, resources_of

_VERSION = re.compile(r"1\.[0-9]+\.[0-9]+([-+].*)?")
NAMESPACES = {
    **{"mount": "mnt", "pid": "pid", "network": "net", "uts": "uts", "ipc": "ipc"},
    **{"user": "user", "cgroup": "cgroup", "time": "time"},
}
# Where the library's own name of a parameter comes from, for what only shows in the whole.
_PLACES = {
    **{"root": "root.path", "mounts": "mounts", "hostname": "hostname", "hooks": "hooks"},
    **{
        "domainname": "domainname",
        "devices": "linux.devices",
        "device_rules": "linux.resources.devices",
    },
    **{"seccomp": "linux.seccomp"},
    **{"uid_mappings": "linux.uidMappings", "gid_mappings": "linux.gidMappings"},
    **{"sysctl": "linux.sysctl", "time_offsets": "linux.timeOffsets"},
    **{"masked_paths": "linux.maskedPaths", "readonly_paths": "linux.readonlyPaths"},
    **{"apparmor_profile": "process.apparmorProfile", "selinux_label": "process.selinuxLabel"},
    **{"namespaces": "linux.namespaces", "resources": "linux.resources"},
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What a config.json says: the container, its program, and notes for others."""

    version: str
    config: Config
    process: Process | None
    annotations: Mapping[str, str]


def parse(content: Mapping[str, Any], bundle: StrPath = ".") -> Spec:
    """Read a config.json, whose relative paths begin at ``bundle``.

    What is not known is ignored, as the specification demands. `ConfigError` has the JSON path of
    what is wrong, `UnsupportedError` that of what is asked for and not there.
    """
    root = Node(content, "")
    version = root.need("ociVersion", str)
    if not _VERSION.fullmatch(version):
        refuse("ociVersion", f"only version 1 is known, not {version!r}")
    process = process_of(root)
    return Spec(
        version,
        _config(root, os.fspath(bundle)),
        process,
        MappingProxyType(root.map("annotations", string)),
    )


def load(bundle: StrPath) -> Spec:
    """Read the config.json of a bundle, a directory."""
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_pairs_hook=_object)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", field=path) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is no JSON: {error}", field=path) from None
    return parse(content, bundle)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r} twice")
    return content


def _config(root: Node, bundle: str) -> Config:
    linux = root.node("linux") or Node({}, "linux")
    process = root.node("process") or Node({}, "process")
    devices = _devices(linux)
    _refuse_what_is_missing(linux)
    arguments: dict[str, Any] = {
        "root": os.path.join(bundle, _root(root).need("path", str)),
        "read_only_root": bool(_root(root).get("readonly", bool)),
        "namespaces": _namespaces(linux),
        "domainname": root.get("domainname", str) or None,
        "mounts": mounts_of(root),
        "uid_mappings": mappings_of(linux, "uidMappings"),
        "gid_mappings": mappings_of(linux, "gidMappings"),
        "capabilities": capabilities_of(root),
        "seccomp": _seccomp(linux),
        "devices": (*default_devices(), *devices),
        "no_new_privileges": bool(process.get("noNewPrivileges", bool)),
        "masked_paths": linux.strings("maskedPaths"),
        "readonly_paths": linux.strings("readonlyPaths"),
        "sysctl": linux.map("sysctl", string),
        "apparmor_profile": process.get("apparmorProfile", str) or None,
        "selinux_label": process.get("selinuxLabel", str) or None,
        "resources": resources_of(linux),
        "device_rules": device_rules_of(linux),
        "time_offsets": linux.map("timeOffsets", _offset),
        "hooks": hooks_of(root),
    }
    if hostname := root.get("hostname", str):
        arguments["hostname"] = hostname
    if any(mount.type == "cgroup2" for mount in arguments["mounts"]):
        arguments["resources"] = arguments["resources"] or Resources()  # the group that it shows
    try:
        return Config(**arguments)
    except (ConfigError, UnsupportedError) as error:
        field, _, rest = (error.field or "").partition("[")
        name, _, below = field.partition(".")
        place = _PLACES.get(name, "linux")
        place += f".{below}" if below else ""
        raise type(error)(error.detail, field=place + (f"[{rest}" if rest else "")) from None


def _root(root: Node) -> Node:
    node = root.node("root")
    if node is None:
        raise ConfigError("is required", field="root")
    return node


def _namespaces(linux: Node) -> Namespaces:
    found: dict[str, Any] = dict.fromkeys(NAMESPACES.values(), False)
    for node in linux.nodes("namespaces"):
        kind = node.need("type", str)
        if kind not in NAMESPACES:
            raise ConfigError(f"there is no {kind!r} namespace", field=node.at("type"))
        if found[NAMESPACES[kind]] is not False:
            raise ConfigError(f"{kind!r} again", field=node.path)
        path = node.get("path", str)
        if path and not path.startswith("/"):
            raise ConfigError(f"must be absolute: {path!r}", field=node.at("path"))
        found[NAMESPACES[kind]] = path or True
    if found["mnt"] is not True:
        refuse("linux.namespaces", "needs a new mount namespace")
    return Namespaces(**found)


def _devices(linux: Node) -> list[Device]:
    found = []
    known = {each.path for each in default_devices()}
    for node in linux.nodes("devices"):
        kind, path = node.need("type", str), node.need("path", str)
        if kind == "p":
            refuse(node.at("type"), "a fifo is no device: make it in the root")
        values = (node.need("major", int), node.need("minor", int))
        mode = node.number("fileMode", 0, 2**32 - 1)
        ids = [node.number(name, 0, 2**32 - 2) or 0 for name in ("uid", "gid")]
        if path in known:  # it is there already
            continue
        with at(node.path):
            found.append(Device(path, kind, *values, None if mode is None else mode & 0o777, *ids))
    return found


def _seccomp(linux: Node) -> SeccompProfile | None:
    content = linux.raw("seccomp")
    if content is None:
        return None
    node = Node(content, "linux.seccomp")
    node.refuse("listenerPath", "the listener is handed out: Container.seccomp_listener")
    node.refuse("listenerMetadata", "there is no listenerPath to send it to")
    try:
        return SeccompProfile.from_json(json.dumps(content))
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(error.detail, field=f"linux.seccomp.{error.field}") from None


def _offset(value: Any, path: str) -> float:
    node = Node(value, path)
    seconds = node.number("secs", -(2**62), 2**62) or 0
    return seconds + (node.number("nanosecs", 0, 999999999) or 0) / 10**9


def _refuse_what_is_missing(linux: Node) -> None:
    for name, reason in (
        ("cgroupsPath", "control groups are made where the library may: see Cgroup"),
        ("netDevices", "interfaces of the host are not moved"),
        ("mountLabel", "mounts get no label of SELinux"),
        ("intelRdt", "is not supported"),
        ("memoryPolicy", "is not supported"),
    ):
        linux.refuse(name, reason)
    propagation = linux.get("rootfsPropagation", str) or "private"
    if propagation not in ("private", "rprivate"):
        refuse(linux.at("rootfsPropagation"), "nothing of the container's mounts shows outside")
    personality = linux.node("personality")
    if personality is not None:
        if personality.need("domain", str) != "LINUX":
            refuse(personality.at("domain"), "only LINUX is supported")
        personality.refuse("flags", "none is known")


for _each in (Spec, parse, load):
    _each.__module__ = "container.oci"
