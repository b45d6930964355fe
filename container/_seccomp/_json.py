# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles as JSON: OCI's ``linux.seccomp`` and what Docker and podman made of it. Pure."""

import errno
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from container._errors import ConfigError
from container._seccomp._profile import (
    ArchitectureMap,
    SeccompProfile,
    SyscallArg,
    SyscallCondition,
    SyscallRule,
    check_count,
)

_Object = dict[str, Any]
_T = TypeVar("_T")

# Docker reads these as well as OCI's: an absent key and null are the same to Go.
_CONDITION = {"caps": "caps", "arches": "arches", "minKernel": "min_kernel"}
_ARGUMENT = {"index": "index", "value": "value", "valueTwo": "value_two", "op": "op"}
_PROFILE = {
    "defaultAction": "default_action",
    "defaultErrnoRet": "default_errno_ret",
    "architectures": "architectures",
    "flags": "flags",
    "listenerPath": "listener_path",
    "listenerMetadata": "listener_metadata",
}


def _object(value: object, field: str) -> _Object:
    if isinstance(value, dict):
        return value
    raise ConfigError(f"expected a JSON object, got {type(value).__name__}", field=field)


def _list(value: object, field: str) -> list[Any]:
    if value is None or isinstance(value, list):
        return value or []
    raise ConfigError(f"expected a JSON array, got {type(value).__name__}", field=field)


def _camel(path: str) -> str:
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), path)


def _at(path: str, make: Callable[..., _T], **values: object) -> _T:
    """Make it; what is wrong with it is told by its path in the JSON."""
    try:
        return make(**values)
    except ConfigError as error:
        field = f"{path}.{_camel(error.field)}" if path else _camel(error.field)
        raise ConfigError(error.detail, field=field) from None


def _fields(content: _Object, names: dict[str, str]) -> dict[str, Any]:
    return {name: content[key] for key, name in names.items() if content.get(key) is not None}


def _errno_of(content: _Object, number: str, name: str, path: str) -> int | None:
    """``errnoRet``, or podman's ``errno``, by name."""
    value = content.get(number)
    if value is None and content.get(name) is not None:
        value = getattr(errno, str(content[name]), None)
        if not isinstance(value, int):
            field = f"{path}.{name}" if path else name
            raise ConfigError(f"unknown errno {str(content[name])[:80]!r}", field=field)
    return value


def _condition(content: _Object, key: str, path: str) -> SyscallCondition:
    path = f"{path}.{key}"
    given = _object(content.get(key) or {}, path)
    return _at(path, SyscallCondition, **_fields(given, _CONDITION))


def _argument(value: object, path: str) -> SyscallArg:
    content = _object(value, path)
    for key in ("index", "value", "op"):
        if content.get(key) is None:
            raise ConfigError("is missing", field=f"{path}.{key}")
    return _at(path, SyscallArg, **_fields(content, _ARGUMENT))


def _rules(value: object, path: str) -> list[SyscallRule]:
    content = _object(value, path)
    names = content.get("names") or ([content["name"]] if content.get("name") else [])
    args = [
        _argument(each, f"{path}.args[{index}]")
        for index, each in enumerate(_list(content.get("args"), f"{path}.args"))
    ]
    if content.get("action") is None:
        raise ConfigError("is missing", field=f"{path}.action")
    distinct = len({arg.index for arg in args}) == len(args)
    return [
        _at(
            path,
            SyscallRule,
            names=names,
            action=content["action"],
            args=conditions,
            errno_ret=_errno_of(content, "errnoRet", "errno", path),
            includes=_condition(content, "includes", path),
            excludes=_condition(content, "excludes", path),
        )
        for conditions in ([args] if distinct else [[arg] for arg in args])
    ]


def _arch_map(value: object, path: str) -> ArchitectureMap:
    content = _object(value, path)
    return _at(
        path,
        ArchitectureMap,
        architecture=content.get("architecture"),
        sub_architectures=_list(content.get("subArchitectures"), f"{path}.subArchitectures"),
    )


def parse(text: str) -> SeccompProfile:
    """See `SeccompProfile.from_json`."""
    try:
        content = _object(json.loads(text), "text")
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"is no JSON: {error}", field="text") from None
    if content.get("defaultAction") is None:
        raise ConfigError("is missing", field="defaultAction")
    rules = _list(content.get("syscalls"), "syscalls")
    check_count(rules, "syscalls")
    values = _fields(content, _PROFILE)
    values["default_errno_ret"] = _errno_of(content, "defaultErrnoRet", "defaultErrno", "")
    values["arch_map"] = [
        _arch_map(each, f"archMap[{index}]")
        for index, each in enumerate(_list(content.get("archMap"), "archMap"))
    ]
    values["syscalls"] = [
        rule for index, each in enumerate(rules) for rule in _rules(each, f"syscalls[{index}]")
    ]
    return _at("", SeccompProfile, **values)


def _condition_object(condition: SyscallCondition) -> _Object:
    content = {key: getattr(condition, name) for key, name in _CONDITION.items()}
    return {key: value for key, value in content.items() if value}


def _argument_object(arg: SyscallArg) -> _Object:
    content = {key: getattr(arg, name) for key, name in _ARGUMENT.items()}
    return {key: value for key, value in content.items() if key != "valueTwo" or value}


def _rule_object(rule: SyscallRule) -> _Object:
    content: _Object = {"names": rule.names, "action": rule.action}
    if rule.errno_ret is not None:
        content["errnoRet"] = rule.errno_ret
    if rule.args:
        content["args"] = [_argument_object(arg) for arg in rule.args]
    for name in ("includes", "excludes"):
        if getattr(rule, name):
            content[name] = _condition_object(getattr(rule, name))
    return content


def dump(profile: SeccompProfile) -> str:
    """See `SeccompProfile.to_json`."""
    content = {key: getattr(profile, name) for key, name in _PROFILE.items()}
    content = {key: value for key, value in content.items() if value not in (None, "", ())}
    if profile.arch_map:
        content["archMap"] = [
            {"architecture": each.architecture, "subArchitectures": each.sub_architectures}
            for each in profile.arch_map
        ]
    content["syscalls"] = [_rule_object(rule) for rule in profile.syscalls]
    return json.dumps(content, indent=2)
