# SPDX-License-Identifier: Apache-2.0
"""``mounts`` of a config.json."""

from dataclasses import dataclass, field
from typing import Any

from container._config import IDMapping, Mount, MountFlags
from container._errors import ConfigError
from container.oci._reader import Node, at, refuse

# What it says, and whether that is so. Those with an r are for the mounts below as well, which here
# goes without saying: what is said of a mount holds for those too.
_FLAGS = {
    **{"ro": ("read_only", True), "rw": ("read_only", False)},
    **{"nosuid": ("nosuid", True), "suid": ("nosuid", False)},
    **{"nodev": ("nodev", True), "dev": ("nodev", False)},
    **{"noexec": ("noexec", True), "exec": ("noexec", False)},
}
_PROPAGATION = {
    "private": MountFlags.PRIVATE,
    "slave": MountFlags.SLAVE,
    "shared": MountFlags.SHARED,
}
_AS_IT_IS = {"defaults", "relatime", "rrelatime", "atime", "diratime", "async", "nomand", "loud"}
_REFUSED = {
    *("noatime", "strictatime", "nodiratime", "norelatime", "nostrictatime", "lazytime"),
    *("sync", "dirsync", "mand", "iversion", "noiversion", "nolazytime", "remount", "silent"),
    *("nosymfollow", "symfollow", "rnosymfollow", "rsymfollow", "copy-symlink", "tmpcopyup"),
    *("rnoatime", "rstrictatime", "rnodiratime", "rnorelatime", "unbindable", "runbindable"),
}
# Made by the library in these places, with these options at most.
_OWN = {
    "/proc": ("proc", {"nosuid", "noexec", "nodev"}),
    "/dev": ("tmpfs", {"nosuid", "noexec", "strictatime", "mode=755", "size=65536k"}),
    "/dev/pts": (
        "devpts",
        {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
    ),
    "/sys": ("sysfs", {"nosuid", "noexec", "nodev", "ro"}),
}
MOUNT_OPTIONS = sorted(
    {*_FLAGS, *(f"r{name}" for name in _FLAGS), *_PROPAGATION, *_AS_IT_IS, "bind", "rbind"}
    | {f"r{name}" for name in _PROPAGATION}
    | {"idmap", "ridmap"}
)


def mappings_of(node: Node, name: str) -> list[IDMapping]:
    found = []
    for each in node.nodes(name):
        ids = (each.need("containerID", int), each.need("hostID", int), each.need("size", int))
        with at(each.path):
            found.append(IDMapping(*ids))
    return found


def mounts_of(root: Node) -> list[Mount]:
    found: list[Mount] = []
    for node in root.nodes("mounts"):
        mount = _mount(node)
        if mount is None:
            continue
        if any(mount.target == each.target for each in found):
            raise ConfigError("something is mounted there before", field=node.at("destination"))
        found.append(mount)
    return found


@dataclass(slots=True)
class _Options:
    said: dict[str, Any] = field(default_factory=dict)
    flags: MountFlags = field(default_factory=lambda: MountFlags(0))
    bind: str = ""
    idmap: bool = False
    data: list[str] = field(default_factory=list)


def _options(node: Node) -> _Options:
    found = _Options()
    for index, option in enumerate(node.strings("options")):
        plain = option.removeprefix("r") if option[1:] in {*_FLAGS, *_PROPAGATION} else option
        if plain in _FLAGS:
            name, value = _FLAGS[plain]
            found.said[name] = value
        elif plain in _PROPAGATION:
            found.flags = _PROPAGATION[plain]
        elif option in ("bind", "rbind"):
            found.bind = option
        elif option in ("idmap", "ridmap"):
            found.idmap = True
        elif option in _REFUSED:
            refuse(f"{node.at('options')}[{index}]", f"{option!r} is not supported")
        elif option not in _AS_IT_IS:
            found.data.append(option)
    return found


def _mount(node: Node) -> Mount | None:
    target = node.need("destination", str)
    if not target.startswith("/"):
        raise ConfigError(f"must be absolute: {target!r}", field=node.at("destination"))
    kind = node.get("type", str) or ""
    if _is_own(target, kind, set(node.strings("options"))):
        return None  # it is there without being asked for
    if target == "/dev":
        refuse(node.path, "/dev is a tmpfs of the container's own, with devices as they are listed")
    options = _options(node)
    if options.bind or kind == "bind":
        return _bind(node, target, options)
    if kind in ("cgroup", "cgroup2"):
        return _groups(node, target, options)
    if options.idmap or node.raw("uidMappings") or node.raw("gidMappings"):
        refuse(node.at("uidMappings"), "is for bind mounts")
    with at(node.path):
        data = ",".join(options.data) or None
        return Mount(None, target, kind or None, options.flags, data, **options.said)


def _groups(node: Node, target: str, options: _Options) -> Mount:
    if not options.said.get("read_only"):
        refuse(node.at("options"), "control groups are shown read-only: 'ro'")
    with at(node.path):
        return Mount(None, target, "cgroup2", options.flags, None, **options.said)


def _is_own(target: str, kind: str, options: set[str]) -> bool:
    own, known = _OWN.get(target, ("", set()))
    return kind == own != "" and options <= known and (target != "/sys" or "ro" in options)


def _bind(node: Node, target: str, options: _Options) -> Mount:
    source = node.need("source", str)
    if options.data:
        refuse(node.at("options"), f"{options.data[0]!r} is not supported with a bind mount")
    maps = mappings_of(node, "uidMappings"), mappings_of(node, "gidMappings")
    if options.idmap and not maps[0]:
        refuse(node.at("options"), "'idmap' needs uidMappings and gidMappings")
    with at(node.path):
        return Mount(
            source,
            target,
            "bind",
            options.flags,
            recursive=options.bind == "rbind",
            uid_mappings=maps[0],
            gid_mappings=maps[1],
            **options.said,
        )
