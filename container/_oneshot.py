# SPDX-License-Identifier: Apache-2.0
"""`run` and `popen`: one command in a fresh container."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from container._config import (
    DEVNULL,
    PIPE,
    Config,
    HasFileno,
    HostRoot,
    Mount,
    NetworkConfig,
    Overlay,
    Process,
    Result,
    StrPath,
    parse_duration,
)
from container._container import Container, connect, pass_gate
from container._errors import CommandError, ConfigError, publish
from container._launcher import TRIES, Child, StartFlag, launcher_lost, replace_launcher
from container._limits import limit_further
from container._plan import Planner, explain, launch_plan, make_plan
from container._process import (
    Conversation,
    ExecProcess,
    TextMode,
    parse_capture,
    parse_text_mode,
)
from container._streams import open_process_stdio, typed

if TYPE_CHECKING:
    from container._network._network import Connection

Bind = Mount | str


def parse_bind(value: Bind, field: str) -> Mount:
    """``"SRC:DST[:ro]"`` or a `Mount`."""
    if isinstance(value, Mount):
        return value
    if not isinstance(value, str):
        raise ConfigError(
            f"expected a Mount or 'SRC:DST[:ro]', got {type(value).__name__}", field=field
        )
    parts = value.split(":")
    if len(parts) not in (2, 3) or parts[2:] not in ([], ["ro"], ["rw"]):
        raise ConfigError(f"expected 'SRC:DST[:ro]', got {value!r}", field=field)
    try:
        return Mount.bind(parts[0], parts[1], read_only=parts[2:] == ["ro"])
    except ConfigError as error:
        raise ConfigError(error.detail, field=f"{field}.{error.field}") from None


_DEFAULT_CONFIG = Config()


Limits = tuple[int | str | None, float | None, int | None]
"""memory, cpus, pids"""


def _config(
    config: Config | None,
    root: StrPath | HostRoot | Overlay | None,
    binds: Sequence[Bind],
    limits: Limits,
) -> Config:
    if config is None:
        config = _DEFAULT_CONFIG
    elif not isinstance(config, Config):
        raise ConfigError(f"expected Config, got {type(config).__name__}", field="config")
    if isinstance(binds, str) or not isinstance(binds, Sequence):
        raise ConfigError(f"expected a sequence, got {type(binds).__name__}", field="binds")
    resources = limit_further(config.resources, *limits)
    if resources is not config.resources:
        config = replace(config, resources=resources)
    if root is None and not binds:
        return config
    if isinstance(root, os.PathLike):
        root = os.fspath(root)
    if isinstance(root, str) and not binds and not config.namespaces.joined():
        return _with_root(config, root)
    mounts = [parse_bind(bind, f"binds[{i}]") for i, bind in enumerate(binds)]
    return replace(
        config,
        root=root if root is not None else config.root,
        mounts=(*config.mounts, *mounts),
    )


@lru_cache(maxsize=64)
def _with_root(config: Config, root: str) -> Config:
    return replace(config, root=root)


def _networked(config: Config | None, network: str | NetworkConfig) -> Config | None:
    if isinstance(network, str) and network == "none":
        return config
    if isinstance(network, str):
        network = _network_of(network)
    elif not isinstance(network, NetworkConfig):
        raise ConfigError(
            f"expected str or NetworkConfig, got {type(network).__name__}", field="network"
        )
    if config is not None and not isinstance(config, Config):
        return config  # what is wrong with it is told later
    return _with_network(config if config is not None else _DEFAULT_CONFIG, network)


def _network_of(mode: str) -> NetworkConfig:
    try:
        return NetworkConfig(mode)
    except ConfigError as error:
        raise ConfigError(error.detail, field="network") from None


@lru_cache(maxsize=64)
def _with_network(config: Config, network: NetworkConfig) -> Config:
    return replace(config, network=network)


def run(
    args: Sequence[StrPath],
    *,
    root: StrPath | HostRoot | Overlay | None = None,
    config: Config | None = None,
    input: bytes | str | None = None,
    stdin: int | HasFileno | None = DEVNULL,
    stdout: int | HasFileno | None = PIPE,
    stderr: int | HasFileno | None = PIPE,
    env: Mapping[str, str] | None = None,
    cwd: StrPath | None = None,
    user: int | str | None = None,
    memory: int | str | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    network: str | NetworkConfig = "none",
    binds: Sequence[Bind] = (),
    timeout: float | timedelta | None = None,
    max_output: int | str | None = "16M",
    keep: Literal["head", "tail"] = "head",
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    check: bool = False,
    tty: bool = False,
) -> Result:
    """Run a command in a fresh container and return what became of it.

    ``args[0]`` is looked up in the container's PATH. ``root`` is a directory that becomes ``/``
    (None: the host's ``/usr`` and little else, `HostRoot`); ``config`` says the rest. ``input``
    is sent to stdin, else stdin is ``/dev/null``. Output is captured, ``max_output`` bytes of
    each stream (-1: all), of which ``keep`` says the end that stays; ``stdout_dropped`` counts
    the rest. ``env`` is added to PATH, HOME, TERM and LANG. ``binds`` are `Mount` or
    ``"SRC:DST[:ro]"``. ``text``, ``encoding`` and ``errors`` as in ``subprocess.run``, but UTF-8.

    ``memory`` in bytes or as ``"64M"``, ``cpus`` (0.5: half of one) and ``pids`` limit what all of
    the container may use, by a cgroup of its own, in place of what ``config`` says; -1 is no limit
    of memory or pids. Out of memory everything in it is killed, and ``oom_killed`` is True.
    With ``tty`` the command has a terminal instead, see `Process`: ``input`` is typed, with an end
    of file (^D) after it, and all that is shown is ``stdout``.

    ``network`` is ``"none"`` (loopback alone, or what ``config`` says), ``"host"``, ``"bridge"``,
    or a `NetworkConfig`, with published ports and more.

    At ``timeout`` seconds every process of the container is killed: `ContainerTimeoutError`.
    ``check=True`` raises `CommandError` for a status other than 0. Both have ``.result``. Other
    errors: `ConfigError` names a bad parameter, `LaunchError` the step that failed,
    `UnsupportedError` what this version does not do. Whatever happens, nothing stays behind.
    """
    planner, conversation, data, limit = prepare_run(
        *(args, root, config, input, (stdin, stdout, stderr), env, cwd, user),
        *((memory, cpus, pids), network, binds, timeout, (max_output, keep)),
        *((text, encoding, errors), tty),
    )
    result = _run(planner, conversation, data, limit)
    if check and result.returncode != 0:
        raise CommandError(result)
    return result


def prepare_run(  # noqa: PLR0917 - those of run
    args: Sequence[StrPath],
    root: StrPath | HostRoot | Overlay | None,
    config: Config | None,
    input: bytes | str | None,
    stdio: tuple[Any, Any, Any],
    env: Mapping[str, str] | None,
    cwd: StrPath | None,
    user: int | str | None,
    limits: Limits,
    network: str | NetworkConfig,
    binds: Sequence[Bind],
    timeout: float | timedelta | None,
    output: tuple[int | str | None, str],
    text: tuple[bool, str | None, str | None],
    tty: bool,
) -> tuple[Planner, Conversation, bytes, float | None]:
    """The plan, how it is held, what is sent, and for how many seconds at most."""
    began = monotonic()
    config = _networked(config, network)
    limit = None if timeout is None else parse_duration(timeout)
    mode = parse_text_mode(*text)
    capture = parse_capture(*output)
    data = _input_bytes(input, mode)
    if tty:
        data = typed(data)
    if input is not None:
        if stdio[0] not in (DEVNULL, PIPE, None):
            raise ConfigError("cannot be given together with input", field="stdin")
        stdio = (PIPE, *stdio[1:])
    elif stdio[0] == PIPE:
        raise ConfigError("PIPE needs input, or nobody would write to it", field="stdin")
    planner = _planner(args, root, config, env, cwd, user, stdio, binds, limits, tty)
    return planner, Conversation(planner.process.args, mode, capture, began), data, limit


# Planners of commands that were run lately, most of which are run again: what a Process and a plan
# cost is a tenth of a start. Not those with an environment, whose values are secrets.
_planners: dict[object, Planner] = {}
_MOST_PLANNERS = 64
_MOST_TEXT = 4096  # characters of arguments


def _planner(  # noqa: PLR0917 - those of run
    args: Sequence[StrPath],
    root: StrPath | HostRoot | Overlay | None,
    config: Config | None,
    env: Mapping[str, str] | None,
    cwd: StrPath | None,
    user: int | str | None,
    stdio: tuple[Any, Any, Any],
    binds: Sequence[Bind],
    limits: Limits,
    tty: bool,
) -> Planner:
    key: object = None
    if isinstance(root, os.PathLike):
        root = os.fspath(root)
    lists = isinstance(args, list | tuple) and isinstance(binds, list | tuple)
    plain = (*args, *binds, cwd) if lists else ()
    if (
        plain
        and not tty
        and env is None
        and all(map(_is_plain, (*plain, root, user, *stdio, *limits)))
    ):
        # Types too: 1 and True are equal, and only one of them is a user.
        key = (tuple(args), root, id(config), cwd, user, type(user), stdio, tuple(binds), limits)
        planner = _planners.get(key)
        if planner is not None and planner.given is config:
            return planner
    process = Process(
        args, env=env, cwd=cwd, user=user, tty=tty, stdin=stdio[0], stdout=stdio[1], stderr=stdio[2]
    )
    planner = Planner(_config(config, root, binds, limits), process, given=config)
    # One that shares namespaces would keep the container whose they are.
    kept = key is not None and not planner.config.namespaces.joined()
    if kept and sum(len(str(arg)) for arg in process.args) <= _MOST_TEXT:
        if len(_planners) >= _MOST_PLANNERS:
            _planners.clear()
        _planners[key] = planner
    return planner


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN


_PLAIN = frozenset((str, int, float, type(None)))


def _run(
    planner: Planner,
    conversation: Conversation,
    data: bytes,
    limit: float | None,
) -> Result:
    """One container without the objects of one: its end is all that is waited for."""
    process = planner.process
    if planner.config.hooks is not None:
        return _run_with_hooks(planner, conversation, data, limit)
    if planner.config.network is not None and planner.config.bridges:
        return _run_connected(planner, conversation, data, limit)
    for _ in range(TRIES):
        plan = planner.plan(StartFlag(0) if process.tty else StartFlag.QUIET)
        stdio = open_process_stdio(process)
        try:
            child = launch_plan(plan, stdio.child, stdio.pipes)
            stdio.close_child_ends()
            stdio.add_terminal(child)
            result = conversation.hold(child, stdio.ours, data, limit)
        finally:
            stdio.close()
        if result is not None:
            return result
        if child.failure is not None and not child.must_retry():
            raise explain(child.failure, plan)
        replace_launcher(child)
    raise launcher_lost()


def _run_with_hooks(
    planner: Planner, conversation: Conversation, data: bytes, limit: float | None
) -> Result:
    box = Container(planner.config)
    deadline = None if limit is None else conversation.began + limit
    box._limit_hooks(deadline)
    try:
        box.run(planner.process)
        result = box._take_output(conversation, data, deadline)
    except BaseException as error:
        box._undo(error)
        raise
    box.destroy()
    assert result is not None, "it had started, so it has ended"
    return result


def _run_connected(
    planner: Planner, conversation: Conversation, data: bytes, limit: float | None
) -> Result:
    """As above, with interfaces that are made while it waits at the gate."""
    process = planner.process
    planner.plan(StartFlag.QUIET)  # its errors come before anything is made
    config, connection = connect(planner.config, token_hex(8))
    assert connection is not None
    try:
        plan = make_plan(config, process, StartFlag.GATE)
        stdio = open_process_stdio(process)
        try:
            child = launch_plan(plan, stdio.child, stdio.pipes)
            stdio.close_child_ends()
            stdio.add_terminal(child)
            _attach(child, connection)
            result = conversation.hold(child, stdio.ours, data, limit)
        finally:
            stdio.close()
    finally:
        connection.release()
    if result is not None:
        return result
    if child.failure is not None:
        raise explain(child.failure, plan)
    raise launcher_lost()


def _attach(child: Child, connection: "Connection") -> None:
    if child.over or child.pid is None:
        return
    try:
        connection.attach(child.pid)
        pass_gate(child)
    except BaseException:
        child.kill()
        raise


def _input_bytes(data: bytes | str | None, text: TextMode | None) -> bytes:
    if data is None:
        return b""
    if isinstance(data, str):
        if text is None:
            raise ConfigError("must be bytes unless text=True", field="input")
        return text.encode(data)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ConfigError(f"expected bytes or str, got {type(data).__name__}", field="input")
    return data


def popen(
    args: Sequence[StrPath],
    *,
    root: StrPath | HostRoot | Overlay | None = None,
    config: Config | None = None,
    stdin: int | HasFileno | None = DEVNULL,
    stdout: int | HasFileno | None = PIPE,
    stderr: int | HasFileno | None = PIPE,
    env: Mapping[str, str] | None = None,
    cwd: StrPath | None = None,
    user: int | str | None = None,
    memory: int | str | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    network: str | NetworkConfig = "none",
    binds: Sequence[Bind] = (),
    max_output: int | str | None = "16M",
    keep: Literal["head", "tail"] = "head",
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    tty: bool = False,
    tty_size: tuple[int, int] | None = None,
) -> ExecProcess:
    """Start a command in a fresh container and return at once; parameters as in `run`.

    The container goes when the command ends, however many processes it started. ``tty`` and
    ``tty_size`` are those of `Process`.
    """
    box_config, process, conversation = prepare_popen(
        *(args, root, config, (stdin, stdout, stderr), env, cwd, user, (memory, cpus, pids)),
        *(network, binds, (max_output, keep), (text, encoding, errors), tty, tty_size),
    )
    box = Container(box_config)
    box.run(process)
    try:
        return box._as_process(conversation)
    except BaseException:
        box.destroy()
        raise


def prepare_popen(  # noqa: PLR0917 - those of popen
    args: Sequence[StrPath],
    root: StrPath | HostRoot | Overlay | None,
    config: Config | None,
    stdio: tuple[Any, Any, Any],
    env: Mapping[str, str] | None,
    cwd: StrPath | None,
    user: int | str | None,
    limits: Limits,
    network: str | NetworkConfig,
    binds: Sequence[Bind],
    output: tuple[int | str | None, str],
    text: tuple[bool, str | None, str | None],
    tty: bool,
    tty_size: tuple[int, int] | None,
) -> tuple[Config, Process, Conversation]:
    """The container, its program, and how that is held."""
    began = monotonic()
    mode = parse_text_mode(*text)
    capture = parse_capture(*output)
    process = Process(
        args,
        env=env,
        cwd=cwd,
        user=user,
        tty=tty,
        tty_size=tty_size,
        stdin=stdio[0],
        stdout=stdio[1],
        stderr=stdio[2],
    )
    conversation = Conversation(process.args, mode, capture, began)
    box_config = _config(_networked(config, network), root, binds, limits)
    return box_config, process, conversation


publish(run, popen)
