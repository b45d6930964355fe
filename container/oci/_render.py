# SPDX-License-Identifier: Apache-2.0
"""A `Config` as config.json has it; what that has no words for is refused."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from container._config import (
    OCI_VERSION,
    Config,
    Device,
    DeviceRule,
    Hook,
    HookType,
    IDMapping,
    Join,
    Mount,
    MountFlags,
    default_devices,
)
from container._errors import UnsupportedError
from container._limits import settings_of
from container._seccomp import SeccompProfile, SyscallCondition
from container._seccomp._compiler import rules_for
from container._seccomp._tables import native_architecture
from container._walls import masked_paths, readonly_paths
from container.oci._parse import NAMESPACES

_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_PROPAGATION = {MountFlags.SLAVE: "slave", MountFlags.SHARED: "shared"}
_OWN_MOUNTS: tuple[dict[str, Any], ...] = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"],
    },
)


def render(config: Config) -> dict[str, Any]:
    """Without a program: ``process`` has what a Config says of one."""
    _refuse_what_has_no_words(config)
    content: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "root": {"path": config.root, "readonly": config.read_only_root},
        "process": _process(config),
        "mounts": [*_OWN_MOUNTS, *map(_mount, config.mounts)],
        "linux": _linux(config),
    }
    if config.namespaces.uts is True:
        content["hostname"] = config.hostname
    if config.domainname is not None:
        content["domainname"] = config.domainname
    if config.hooks is not None:
        content["hooks"] = {
            str(kind): [_hook(kind, index, each) for index, each in enumerate(hooks)]
            for kind in HookType
            if (hooks := config.hooks.of(kind))
        }
    return content


def _refuse_what_has_no_words(config: Config) -> None:
    if not isinstance(config.root, str):
        raise UnsupportedError("only a directory can be written down", field="root")
    for name, usual in (
        *(("use_pivot_root", True), ("setup_dev", True), ("nested", False)),
        *(("proc_options", None), ("landlock", None), ("network", None)),
    ):
        if getattr(config, name) != usual:
            raise UnsupportedError("a config.json has no word for it", field=name)


def _process(config: Config) -> dict[str, Any]:
    capabilities = {name: sorted(map(str, getattr(config.capabilities, name))) for name in _SETS}
    content: dict[str, Any] = {
        "capabilities": capabilities,
        "noNewPrivileges": config.no_new_privileges,
    }
    if config.apparmor_profile is not None:
        content["apparmorProfile"] = config.apparmor_profile
    if config.selinux_label is not None:
        content["selinuxLabel"] = config.selinux_label
    return content


def _linux(config: Config) -> dict[str, Any]:
    content: dict[str, Any] = {
        "namespaces": _namespaces(config),
        "maskedPaths": list(masked_paths(config)),
        "readonlyPaths": list(readonly_paths(config)),
    }
    devices = [_device(each) for each in config.devices if each not in default_devices()]
    parts: dict[str, Any] = {
        "uidMappings": _mappings(config.uid_mappings),
        "gidMappings": _mappings(config.gid_mappings),
        "sysctl": dict(config.sysctl),
        "devices": devices,
        "timeOffsets": {name: _offset(value) for name, value in config.time_offsets.items()},
    }
    content |= {name: value for name, value in parts.items() if value}
    if config.resources is not None:
        settings = settings_of(config.resources)
        content["resources"] = {"unified": {each.file: each.value for each in settings}}
        if config.device_rules:
            content["resources"]["devices"] = [_rule(each) for each in config.device_rules]
    if config.seccomp is not None:
        content["seccomp"] = json.loads(_plain(config.seccomp, config).to_json())
    return content


def _plain(profile: SeccompProfile, config: Config) -> SeccompProfile:
    """As it is for this container on this machine: OCI knows no conditions, and who reads it would
    take a rule that has some for one that always holds.
    """
    native = native_architecture(os.uname().machine)
    if native is None:
        raise UnsupportedError(
            "there is no table of system calls for this machine", field="seccomp"
        )
    major, minor = map(int, re.findall(r"[0-9]+", os.uname().release)[:2])
    rules = rules_for(profile, native, config.capabilities.bounding, (major, minor))
    listed = [each for each in profile.arch_map if each.architecture == native.oci]
    return replace(
        profile,
        syscalls=[
            replace(rule, includes=SyscallCondition(), excludes=SyscallCondition())
            for _, rule in rules
        ],
        arch_map=(),
        architectures=(
            *profile.architectures,
            *(name for each in listed for name in (each.architecture, *each.sub_architectures)),
        ),
    )


def _namespaces(config: Config) -> list[dict[str, str]]:
    found = []
    for kind, name in NAMESPACES.items():
        value = getattr(config.namespaces, name)
        if isinstance(value, Join):
            if value.path is None:
                raise UnsupportedError(
                    "only a path can be written down", field=f"namespaces.{name}"
                )
            found.append({"type": kind, "path": str(value.path)})
        elif value:
            found.append({"type": kind})
    return found


def _mappings(mappings: Sequence[IDMapping]) -> list[dict[str, int]]:
    return [
        {"containerID": each.container_id, "hostID": each.host_id, "size": each.size}
        for each in mappings
    ]


def _offset(value: Any) -> dict[str, int]:
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else value
    whole, part = divmod(seconds, 1)
    return {"secs": int(whole), "nanosecs": int(part * 10**9)}


def _device(device: Device) -> dict[str, Any]:
    content: dict[str, Any] = {"path": device.path, "type": device.type}
    content |= {"major": device.major, "minor": device.minor}
    content |= {"uid": device.uid, "gid": device.gid}
    if device.mode is not None:
        content["fileMode"] = device.mode
    return content


def _rule(rule: DeviceRule) -> dict[str, Any]:
    content: dict[str, Any] = {"allow": rule.allow, "access": rule.access}
    numbers = {"type": rule.type, "major": rule.major, "minor": rule.minor}
    return content | {name: value for name, value in numbers.items() if value is not None}


def _mount(mount: Mount) -> dict[str, Any]:
    options = [] if mount.type != "bind" else ["rbind" if mount.recursive else "bind"]
    options.append("ro" if mount.read_only else "rw")
    for name in ("nosuid", "nodev", "noexec"):
        if (said := getattr(mount, name)) is not None:
            options.append(name if said else name.removeprefix("no"))
    options += [text for flag, text in _PROPAGATION.items() if mount.flags & flag]
    options += mount.data.split(",") if mount.data else []
    content: dict[str, Any] = {"destination": mount.target, "type": mount.type}
    content |= {"source": mount.source or mount.type, "options": options}
    if mount.idmap is not None:
        raise UnsupportedError("give uid_mappings and gid_mappings", field="mounts.idmap")
    for name, mappings in (
        ("uidMappings", mount.uid_mappings),
        ("gidMappings", mount.gid_mappings),
    ):
        if mappings:
            content[name] = _mappings(mappings)
    return content


def _hook(kind: HookType, index: int, hook: Any) -> dict[str, Any]:
    if not isinstance(hook, Hook):
        name = kind.name.lower()
        raise UnsupportedError("a function cannot be written down", field=f"hooks.{name}[{index}]")
    content: dict[str, Any] = {"path": hook.path}
    if hook.args is not None:
        content["args"] = list(hook.args)
    if hook.env:
        content["env"] = [f"{name}={value}" for name, value in hook.env.items()]
    if hook.timeout is not None:
        seconds = float(hook.timeout)  # type: ignore[arg-type]
        content["timeout"] = max(1, round(seconds))  # whole ones only
    return content
