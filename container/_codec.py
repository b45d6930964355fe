# SPDX-License-Identifier: Apache-2.0
"""Configurations as text, for a process that comes later: perhaps of another version.

What is read is data whoever wrote it: only classes of the list below are made, by their names and
through their own checks. What is as by default is left out, so a default that a later version
changes is that version's. Secrets are in there (``env``): it is for memory, never for a file.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from datetime import timedelta
from enum import Enum
from typing import Any

from container import _capabilities, _config, _seccomp
from container._errors import ConfigError, ContainerError, StateError

_CLASSES = {
    name: getattr(module, name)
    for module, names in (
        (_capabilities, ("Capabilities", "Capability")),
        (
            _config,
            (
                *("Config", "CPUResources", "Device", "HostRoot", "IDMapping", "IOResources"),
                *("Join", "Landlock", "MemoryResources", "Mount", "MountFlags", "Namespaces"),
                *("NetworkConfig", "NetworkMode", "PortMapping"),
                *("Overlay", "PidsResources", "Process", "Resources", "Rlimit"),
            ),
        ),
        (
            _seccomp,
            (
                *("SeccompAction", "SeccompFlag", "SeccompOperator", "SeccompProfile"),
                *("SyscallArg", "SyscallCondition", "SyscallRule"),
            ),
        ),
    )
    for name in names
}
_PLAIN = (str, int, float, bool, type(None))


def encode(value: object) -> str:
    """`ConfigError` for what cannot be told another process, such as a file descriptor."""
    import json  # noqa: PLC0415  (8 ms)

    return json.dumps(_encode(value, ""))


def decode(text: str) -> Any:
    """What `encode` was given; `StateError` where this version cannot make it."""
    import json  # noqa: PLC0415  (8 ms)

    try:
        return _decode(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ContainerError) as why:
        raise StateError(f"it was configured by another version: {why}") from None


def _encode(value: object, field: str) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple | list):
        return [_encode(item, f"{field}[{i}]") for i, item in enumerate(value)]
    return _encode_tagged(value, field)


def _encode_tagged(value: object, field: str) -> dict[str, Any]:
    """What JSON has no way of its own to say."""
    found: dict[str, Any]
    if isinstance(value, bytes):
        found = {"bytes": value.hex()}
    elif isinstance(value, timedelta):
        found = {"seconds": value.total_seconds()}
    elif isinstance(value, Mapping):
        found = {"map": [[_encode(each, field) for each in pair] for pair in value.items()]}
    elif isinstance(value, set | frozenset):
        found = {"set": [_encode(item, field) for item in sorted(value)]}
    elif isinstance(value, Enum):
        _known(type(value), field)
        found = {"enum": [type(value).__name__, value.value]}
    else:
        _known(type(value), field)
        found = {"class": [type(value).__name__, _encode_fields(value, field)]}
    return found


def _known(kind: type, field: str) -> None:
    if _CLASSES.get(kind.__name__) is not kind:
        raise ConfigError(f"a {kind.__name__} belongs to this process", field=field or "value")


def _encode_fields(value: Any, path: str) -> dict[str, Any]:
    found = {}
    for each in fields(value):
        content = getattr(value, each.name)
        if each.init and content != _default(each):
            inner = f"{path}.{each.name}".removeprefix(".")
            found[each.name] = _encode(content, inner)
    return found


def _default(each: "Field[Any]") -> object:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_decode, value))
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    return _DECODERS[tag](content)


def _decode_class(content: Any) -> Any:
    name, parts = content
    return _CLASSES[name](**{name: _decode(each) for name, each in parts.items()})


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "seconds": lambda content: timedelta(seconds=content),
    "map": lambda content: {_decode(key): _decode(value) for key, value in content},
    "set": lambda content: frozenset(map(_decode, content)),
    "enum": lambda content: _CLASSES[content[0]](content[1]),
    "class": _decode_class,
}
