# SPDX-License-Identifier: Apache-2.0
"""``process`` and ``hooks`` of a config.json."""

from typing import Any

from container._capabilities import Capabilities
from container._config import Hook, Hooks, HookType, Process, Rlimit
from container._errors import ConfigError
from container.oci._reader import Node, at, refuse

_LAST_ID = 2**32 - 1
_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_KERNEL_ONLY = "is set for no program yet"


def process_of(root: Node) -> Process | None:
    node = root.node("process")
    if node is None:
        return None
    _refuse_scheduling(node)
    if not node.has("args"):  # what `Config.to_oci` has written
        return None
    user = node.node("user") or Node({}, node.at("user"))
    uid = _id(user, "uid")
    gid = _id(user, "gid")
    terminal = bool(node.get("terminal", bool))
    arguments: dict[str, Any] = {
        "args": node.strings("args"),
        "env": environment_of(node),
        "cwd": node.need("cwd", str),
        "user": f"{uid}:{gid}",
        "groups": user.numbers("additionalGids"),
        "tty": terminal,
        "tty_size": _console_size(node) if terminal else None,
        "rlimits": _rlimits(node),
        "oom_score_adj": node.number("oomScoreAdj", -1000, 1000),
        "nice": _nice(node.node("scheduler")),
    }
    umask = user.number("umask", 0, 0o777)
    if umask is not None:
        arguments["umask"] = umask
    with at(node.path):
        return Process(**arguments)


def _id(user: Node, name: str) -> int:
    user.need(name, int)
    number = user.number(name, 0, _LAST_ID - 1)
    assert number is not None
    return number


def environment_of(node: Node) -> dict[str, str]:
    found = {}
    for index, line in enumerate(node.strings("env")):
        name, separator, value = line.partition("=")
        if not separator or not name:
            raise ConfigError("expected NAME=value", field=f"{node.at('env')}[{index}]")
        found[name] = value
    return found


def _console_size(node: Node) -> tuple[int, int] | None:
    size = node.node("consoleSize")
    if size is None:
        return None
    for name in ("height", "width"):
        size.need(name, int)
    return size.number("height", 0, 2**16 - 1) or 0, size.number("width", 0, 2**16 - 1) or 0


def _rlimits(node: Node) -> list[Rlimit]:
    found: list[Rlimit] = []
    for each in node.nodes("rlimits"):
        values = (each.need("type", str), each.need("soft", int), each.need("hard", int))
        with at(each.path):
            limit = Rlimit(*values)
        if any(limit.type == other.type for other in found):
            raise ConfigError(f"{limit.type} again", field=each.at("type"))
        found.append(limit)
    return found


def _nice(scheduler: Node | None) -> int | None:
    """Of the one policy that is implemented: the usual one."""
    if scheduler is None:
        return None
    if scheduler.need("policy", str) != "SCHED_OTHER":
        refuse(scheduler.at("policy"), "only SCHED_OTHER is supported")
    for name in ("priority", "runtime", "deadline", "period"):
        if scheduler.get(name, int):
            refuse(scheduler.at(name), "is for other policies than SCHED_OTHER")
    scheduler.refuse("flags", "is not supported")
    return scheduler.number("nice", -20, 19)


def _refuse_scheduling(node: Node) -> None:
    node.refuse("ioPriority", _KERNEL_ONLY)
    node.refuse("execCPUAffinity", "is for commands of exec, which take all processors")


def capabilities_of(root: Node) -> Capabilities:
    process = root.node("process")
    node = process.node("capabilities") if process is not None else None
    if node is None:
        return Capabilities.none()
    with at(node.path):
        return Capabilities(**{name: node.strings(name) for name in _SETS})


def hooks_of(root: Node) -> Hooks | None:
    node = root.node("hooks")
    if node is None:
        return None
    kinds = {kind.name.lower(): [_hook(each) for each in node.nodes(kind)] for kind in HookType}
    with at(node.path):
        return Hooks(**kinds) if any(kinds.values()) else None


def _hook(node: Node) -> Hook:
    path, env = node.need("path", str), environment_of(node)
    args = node.strings("args") or None
    timeout = node.get("timeout", int)
    with at(node.path):
        return Hook(path, args, env, timeout)
