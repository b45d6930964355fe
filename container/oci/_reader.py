# SPDX-License-Identifier: Apache-2.0
"""JSON as it was written, with the path of what is wrong in the error."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from container._errors import ConfigError, UnsupportedError

_T = TypeVar("_T")
_NAMES = {str: "a string", bool: "true or false", int: "a whole number", dict: "an object"}
_PLAIN = re.compile(r"[A-Za-z0-9_]+")


def join(path: str, name: str) -> str:
    """The path of a property: keys that are no plain names in brackets."""
    if not _PLAIN.fullmatch(name):
        return f"{path}[{name!r}]"
    return f"{path}.{name}" if path else name


@contextmanager
def at(path: str) -> Iterator[None]:
    """What is wrong with a value of the library's, by its place in the JSON."""
    try:
        yield
    except (ConfigError, UnsupportedError) as error:
        if error.field and error.field.startswith(path):  # it is one already
            raise
        raise type(error)(f"{error.field}: {error.detail}", field=path) from None


def refuse(path: str, reason: str) -> NoReturn:
    raise UnsupportedError(reason, field=path)


class Node:
    """An object and where it stands. null is as if it were not there."""

    def __init__(self, value: Any, path: str) -> None:
        self.path = path
        self._content: Mapping[str, Any] = _check(value, dict, path or "config.json")

    def at(self, name: str) -> str:
        return join(self.path, name)

    def get(self, name: str, kind: type[_T]) -> _T | None:
        value = self._content.get(name)
        return None if value is None else _check(value, kind, self.at(name))

    def need(self, name: str, kind: type[_T]) -> _T:
        value = self.get(name, kind)
        if value is None:
            raise ConfigError("is required", field=self.at(name))
        return value

    def number(self, name: str, low: int, high: int) -> int | None:
        value = self.get(name, int)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"must be from {low} to {high}, not {value}", field=self.at(name))
        return value

    def node(self, name: str) -> "Node | None":
        value = self._content.get(name)
        return None if value is None else Node(value, self.at(name))

    def nodes(self, name: str) -> list["Node"]:
        return [Node(value, path) for path, value in self._items(name)]

    def strings(self, name: str) -> list[str]:
        return [_check(value, str, path) for path, value in self._items(name)]

    def numbers(self, name: str) -> list[int]:
        return [_check(value, int, path) for path, value in self._items(name)]

    def map(self, name: str, read: Callable[[Any, str], _T]) -> dict[str, _T]:
        """By key, each value read with its path."""
        node = self.node(name)
        if node is None:
            return {}
        return {key: read(value, node.at(key)) for key, value in node._content.items()}

    def has(self, name: str) -> bool:
        return self._content.get(name) is not None

    def refuse(self, name: str, reason: str) -> None:
        """Unless it is not there, or empty."""
        if self._content.get(name) not in (None, "", [], {}):
            refuse(self.at(name), reason)

    def raw(self, name: str) -> Any:
        return self._content.get(name)

    def _items(self, name: str) -> list[tuple[str, Any]]:
        value = self._content.get(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise ConfigError(f"expected an array, got {_kind(value)}", field=self.at(name))
        return [(f"{self.at(name)}[{index}]", item) for index, item in enumerate(value)]


def string(value: Any, path: str) -> str:
    return _check(value, str, path)


def _check(value: Any, kind: type[_T], path: str) -> _T:
    wrong = isinstance(value, bool) and kind is not bool
    if kind is dict and isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return value  # type: ignore[return-value]
        raise ConfigError("has a key that is no string", field=path)
    if wrong or not isinstance(value, kind):
        raise ConfigError(f"expected {_NAMES[kind]}, got {_kind(value)}", field=path)
    return value


def _kind(value: Any) -> str:
    for kind, name in _NAMES.items():
        if isinstance(value, kind) and (kind is not int or not isinstance(value, bool)):
            return name
    return "an array" if isinstance(value, list | tuple) else type(value).__name__
