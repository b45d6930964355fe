# SPDX-License-Identifier: Apache-2.0
"""`run`, `popen`, `Container` and `ExecProcess` for asyncio: the same names and parameters.

::

    from container import aio

    result = await aio.run(["sh", "-c", "echo hello"])
    async with aio.Container(config) as box:
        await box.run(container.Process(["sleep", "1000"]))
        process = await box.exec(["ps"])
        print(await process.stdout.read())

What waits for a container is awaited: `run`, `popen`; ``create``, ``start``, ``run``, ``wait``,
``exec``, ``stop``, ``destroy`` of `Container`; ``wait``, ``communicate`` of `ExecProcess`. What is
done at once is not: ``signal``, ``send_signal``, ``terminate``, ``kill``, ``resize``, ``poll`` and
the properties. There is no thread and no polling: the loop watches a file descriptor for each
container. Cancelling whoever awaits a `run`, or a start, kills that container or command before
the cancellation goes on, as do ``asyncio.timeout`` and Ctrl-C; a cancelled ``wait`` lets it live.

An object belongs to the loop that it was made in. Several loops may be used, each in a thread of
its own, and loops other than asyncio's own that have its ``add_reader``. For anything else, such as
trio, ``pidfd`` of the objects of `container` becomes readable at the end.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from signal import SIGCONT, SIGKILL
from time import monotonic
from typing import Any, Literal, Self

from container import _container, _oneshot
from container._config import (
    DEVNULL,
    PIPE,
    Config,
    ContainerState,
    ExecConfig,
    HasFileno,
    HostRoot,
    Overlay,
    Process,
    Result,
    SignalConfig,
    State,
    StrPath,
    Usage,
    parse_duration,
    parse_signal,
    parse_tty_size,
)
from container._errors import (
    CommandError,
    ConfigError,
    ContainerTimeoutError,
    StateError,
    UnsupportedError,
)
from container._join import Manner, begin_member, parse_namespaces, plan_lately, settle_member
from container._launcher import TRIES, Child, StartFlag, launcher_lost, replace_launcher
from container._plan import explain, launch_plan, make_plan
from container._process import (
    Conversation,
    parse_capture,
    parse_text_mode,
)
from container._streams import (
    Capture,
    Exchange,
    Sink,
    Stdio,
    most_left_in,
    open_process_stdio,
    read_some,
    typed,
)

__all__ = ["Container", "ExecProcess", "popen", "run"]

_CHUNK = 1 << 16

# Children ----------------------------------------------------------------------------------------


class _Watch:
    """What is reported of a child, taken in by the loop as it comes."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.loop = asyncio.get_running_loop()
        self._fd = child.channel.fileno()
        self._waiters: set[asyncio.Future[None]] = set()
        self._at_end: list[Callable[[], object]] = []
        self._watched = not child.over
        if self._watched:
            self.loop.add_reader(self._fd, self._take)

    def _take(self) -> None:
        while self.child.receive():
            pass
        if self.child.over:
            self.forget()
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.child.over:
            callbacks, self._at_end = self._at_end, []
            for callback in callbacks:
                callback()

    def at_end(self, callback: Callable[[], object]) -> None:
        if self.child.over:
            self.loop.call_soon(callback)
        else:
            self._at_end.append(callback)

    def forget(self) -> None:
        """Before its channel is closed."""
        if self._watched:
            self._watched = False
            if not self.loop.is_closed():
                self.loop.remove_reader(self._fd)

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Until it is so (True), or so many seconds have passed."""
        deadline = None if timeout is None else monotonic() + timeout
        while not condition():
            left = None if deadline is None else max(0.0, deadline - monotonic())
            waiter = self.loop.create_future()
            self._waiters.add(waiter)
            try:
                await (waiter if left is None else asyncio.wait_for(waiter, left))
            except TimeoutError:
                return condition()
            finally:
                self._waiters.discard(waiter)
        return True

    def is_over(self) -> bool:
        return self.child.over

    async def kill(self) -> None:
        """SIGKILL, as `Child.kill`; not cancelled before the child is reaped."""
        child = self.child
        child.receive()
        if child.end_tree and child.pid and child.pidfd is not None and not child.over:
            child.end_tree(child.pid, child.pidfd)
        if not child.over:
            child.signal(SIGKILL)
        cancelled: asyncio.CancelledError | None = None
        while not child.over:
            try:
                await self.until(self.is_over)
            except asyncio.CancelledError as error:
                cancelled = error
        self.close()
        if cancelled is not None:
            raise cancelled

    def close(self) -> None:
        self.forget()
        self._wake()
        self.child.close()


async def _guarded(watch: _Watch, started: bool = False) -> None:
    """Until a child has been created, has started, or is over; what cancels that kills it."""
    child = watch.child
    try:
        await watch.until(lambda: (child.created and not started) or child.started or child.over)
    except GeneratorExit:  # the loop is gone: nothing can be awaited any more
        watch.close()
        raise
    except BaseException:
        await watch.kill()
        raise


async def _launch(plan_of: Callable[[], Any], stdio: Stdio, *, quiet: bool) -> tuple[Any, _Watch]:
    """Send a plan off; unless ``quiet``, until it is created or started, or has failed."""
    for _ in range(TRIES):
        plan = plan_of()
        watch = _Watch(launch_plan(plan, stdio.child, stdio.pipes, wait=False))
        if quiet:
            return plan, watch
        await _guarded(watch)
        if not watch.child.must_retry():
            return plan, watch
        replace_launcher(watch.child)
        watch.close()
    raise launcher_lost()


# Streams -----------------------------------------------------------------------------------------


class _Exchange(Exchange):
    """Feeds and drains on a loop."""

    def __init__(
        self, watch: _Watch, ours: dict[str, int], sinks: Mapping[str, Sink], data: bytes
    ) -> None:
        self._loop = watch.loop
        super().__init__(watch.child, ours, sinks, data)

    def _watch(self, fd: int, name: str) -> None:
        if name == "stdin":
            self._loop.add_writer(fd, self._feed, fd)
        else:
            self._loop.add_reader(fd, self._read, name, fd)

    def _watch_child(self) -> None:
        pass  # somebody else does

    def _unwatch(self, fd: int, name: str) -> None:
        if self._loop.is_closed():
            return
        if name == "stdin":
            self._loop.remove_writer(fd)
        else:
            self._loop.remove_reader(fd)


class _Pump(asyncio.ReadTransport):
    """From our end of an output stream into a StreamReader, which ends with the command."""

    def __init__(self, watch: _Watch, fd: int) -> None:
        super().__init__()
        self._loop = watch.loop
        self._fd = fd
        self._left: int | None = None
        self._reading = False
        self.reader = asyncio.StreamReader(loop=watch.loop)
        self.reader.set_transport(self)
        os.set_blocking(fd, False)
        self.resume_reading()
        watch.at_end(self._expect_the_end)

    def _expect_the_end(self) -> None:
        if self._fd >= 0:
            self._left = most_left_in(self._fd)
            if self._reading:
                self._finish()

    def _finish(self) -> None:
        """What is in there now is all; the loop would not tell of nothing."""
        while self._reading and self._left and self._read():
            pass
        if self._reading:
            self._end()

    def _read(self) -> bool:
        most = _CHUNK if self._left is None else min(self._left, _CHUNK)
        data = read_some(self._fd, most)
        if data:
            if self._left is not None:
                self._left -= len(data)
            self.reader.feed_data(data)
        elif data is not None:
            self._end()
        return bool(data)

    def _end(self) -> None:
        if not self.is_closing():
            self.reader.feed_eof()
            self.close()

    def is_closing(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        self.pause_reading()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and not self.is_closing():
            self._reading = True
            self._loop.add_reader(self._fd, self._read)
            if self._left is not None:
                self._loop.call_soon(self._finish)


async def _open_writer(fd: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    file = os.fdopen(fd, "wb", buffering=0)
    try:
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop), file
        )
    except BaseException:
        file.close()
        raise
    return asyncio.StreamWriter(transport, protocol, None, loop)


class _Streams:
    """The streams of a command that were asked for. Readers are made when they are first used."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        self._fds: dict[str, int] = {}
        self._pumps: dict[str, _Pump] = {}
        self.stdin: asyncio.StreamWriter | None = None

    async def open(self, stdio: Stdio) -> None:
        stdio.add_terminal(self._watch.child)
        for name in ("stdout", "stderr"):
            if name in stdio.ours:
                self._fds[name] = stdio.ours.pop(name)
        if "stdin" in stdio.ours:
            self.stdin = await _open_writer(stdio.ours.pop("stdin"))

    def reader(self, name: str) -> asyncio.StreamReader | None:
        if name in self._fds:
            self._pumps[name] = _Pump(self._watch, self._fds.pop(name))
        pump = self._pumps.get(name)
        return None if pump is None else pump.reader

    def take_fds(self) -> dict[str, int]:
        """Of those that nobody reads yet."""
        fds, self._fds = self._fds, {}
        return fds

    def __del__(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def close(self) -> None:
        for fd in self.take_fds().values():
            os.close(fd)
        for pump in self._pumps.values():
            pump._end()
        self.close_input()

    def close_input(self) -> None:
        if self.stdin is not None and not self._watch.loop.is_closed():
            transport = self.stdin.transport
            if not transport.is_closing():
                transport.abort()


# One command -------------------------------------------------------------------------------------


async def run(
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
    network: str = "none",
    binds: Sequence[_oneshot.Bind] = (),
    timeout: float | timedelta | None = None,
    max_output: int | str | None = "16M",
    keep: Literal["head", "tail"] = "head",
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    check: bool = False,
    tty: bool = False,
) -> Result:
    """Run a command in a fresh container and return what became of it: see `container.run`.

    Awaits its end. Cancelled, it kills every process of the container first.
    """
    planner, conversation, data, limit = _oneshot.prepare_run(
        *(args, root, config, input, (stdin, stdout, stderr), env, cwd, user),
        *((memory, cpus, pids), network, binds, timeout, (max_output, keep)),
        *((text, encoding, errors), tty),
    )
    process = planner.process
    for _ in range(TRIES):
        stdio = open_process_stdio(process)
        try:
            plan, watch = await _launch(
                lambda: planner.plan(StartFlag(0) if tty else StartFlag.QUIET),
                stdio,
                quiet=not tty,
            )
            stdio.close_child_ends()
            stdio.add_terminal(watch.child)
            result = await _hold(watch, conversation, stdio.ours, data, limit)
        finally:
            stdio.close()
        child = watch.child
        if result is not None:
            if check and result.returncode != 0:
                raise CommandError(result)
            return result
        if child.failure is not None and not child.must_retry():
            raise explain(child.failure, plan)
        replace_launcher(child)
    raise launcher_lost()


async def _hold(  # noqa: PLR0917 - as Conversation.hold, and its own
    watch: _Watch,
    conversation: Conversation,
    fds: dict[str, int],
    data: bytes,
    timeout: float | None,
    readers: Mapping[str, asyncio.StreamReader] | None = None,
) -> Result | None:
    """`Conversation.hold` on a loop; ``readers`` are streams that somebody has begun to read."""
    child = watch.child
    captures = {
        name: Capture(conversation.capture.limit, conversation.capture.keep)
        for name in (*fds, *(readers or {}))
        if name != "stdin"
    }
    exchange = _Exchange(watch, fds, {name: each.add for name, each in captures.items()}, data)
    try:
        in_time = await watch.until(watch.is_over, timeout)
        if not in_time:
            await watch.kill()
        exchange.finish()
        for name, reader in (readers or {}).items():
            while rest := await reader.read(_CHUNK):
                captures[name].add(rest)
    except GeneratorExit:
        watch.close()
        raise
    except BaseException:
        await watch.kill()
        raise
    finally:
        exchange.close()
    watch.close()
    return conversation.conclude(child, captures, None if in_time else timeout)


class ExecProcess:
    """A running command. Made by `popen` and `Container.exec`.

    ``args``, ``pid``, ``pidfd``, ``returncode``, ``result`` and ``usage`` are as in
    `container.ExecProcess`; ``stdin`` is a StreamWriter, ``stdout`` and ``stderr`` are
    StreamReaders, of bytes, where PIPE or a terminal was asked for, else None. A stream ends with
    the command. ``async for`` gives the lines of ``stdout``. As an asynchronous context manager
    it waits for the end, and kills when the block raised or was cancelled.
    """

    def __init__(
        self,
        watch: _Watch,
        conversation: Conversation,
        streams: _Streams,
        box: "Container | None" = None,
    ) -> None:
        self.args = conversation.args
        self.pid = watch.child.pid
        self._watch = watch
        self._child = watch.child
        self._conversation = conversation
        self._streams = streams
        self._box = box  # which goes with it, and not before
        self._result: Result | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killing: asyncio.Future[None] | None = None

    @property
    def stdin(self) -> asyncio.StreamWriter | None:
        return self._streams.stdin

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        return self._streams.reader("stdout")

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        return self._streams.reader("stderr")

    @property
    def pidfd(self) -> int | None:
        """Readable once it has ended; closes when the end was noticed here."""
        return self._child.pidfd

    @property
    def returncode(self) -> int | None:
        """The exit status, -N for signal N, None until the end was seen."""
        return self._child.exit.returncode if self._child.exit is not None else None

    @property
    def result(self) -> Result | None:
        """How it ended, once `communicate`, `wait` or `poll` has seen that."""
        return self._result

    @property
    def usage(self) -> Usage | None:
        return None if self._result is None else self._result.usage

    def __aiter__(self) -> AsyncIterator[bytes]:
        reader = self.stdout
        if reader is None:
            raise ValueError("stdout is no pipe")
        return aiter(reader)

    def poll(self) -> int | None:
        """The status if it has ended, else None. At once."""
        self._child.receive()
        return self._finish() if self._child.over else None

    async def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the end; at ``timeout`` seconds everything is killed as by
        `container.ExecProcess.wait`: `ContainerTimeoutError`. Cancelled, it lets the command live.
        """
        limit = None if timeout is None else parse_duration(timeout)
        if not await self._watch.until(self._watch.is_over, limit):
            await self._watch.kill()
            self._conversation.conclude(self._child, {}, limit)
        return self._finish()

    async def communicate(
        self, input: bytes | str | None = None, timeout: float | timedelta | None = None
    ) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their end, wait: see
        `container.ExecProcess.communicate`. Cancelled, it kills the command.
        """
        data = self._to_bytes(input)
        if self._child.terminal is not None:
            data = typed(data)
        limit = None if timeout is None else parse_duration(timeout)
        if self.stdin is not None:
            self.stdin.write(data)
            if self._child.terminal is None:
                self.stdin.close()
        fds = self._streams.take_fds()
        begun = {
            name: reader
            for name in ("stdout", "stderr")
            if name not in fds and (reader := self._streams.reader(name)) is not None
        }
        result = await _hold(self._watch, self._conversation, fds, b"", limit, begun)
        self._close()
        self._note(result)
        assert result is not None
        return result.stdout, result.stderr

    def _to_bytes(self, data: bytes | str | None) -> bytes:
        text = self._conversation.text
        if not isinstance(data, str):
            return data or b""
        if text is None:
            raise TypeError("input must be bytes, not str, unless text=True")
        return text.encode(data)

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command; nothing happens if it has ended."""
        number = parse_signal(sig, "sig")
        self._child.receive()
        if not self._child.over:
            self._child.signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(15)

    def kill(self) -> None:
        """SIGKILL: every process of the container; for an exec, the command alone."""
        self.send_signal(9)

    def resize(self, rows: int, columns: int) -> None:
        """As `container.ExecProcess.resize`."""
        size = parse_tty_size(rows, columns)
        self._child.receive()
        if not self._child.over:
            if self._child.terminal is None:
                raise StateError(f"{self.args[0]!r} has no terminal")
            self._child.resize(*size)

    def _end_after(self, deadline: float, seconds: float) -> None:
        """Have everything killed as by a timeout of `wait`, whoever waits or not."""

        def expire() -> None:
            if not self._child.over:
                self._conversation.expired = seconds
                self._killing = asyncio.ensure_future(self._watch.kill())

        self._timer = self._watch.loop.call_later(max(0.0, deadline - monotonic()), expire)

    def _finish(self) -> int:
        self._close()
        self._note(self._conversation.conclude(self._child, {}, None))
        assert self._result is not None
        return self._result.returncode

    def _note(self, result: Result | None) -> None:
        self._result = self._result or result

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._watch.close()
        self._streams.close_input()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                if self.stdin is not None and self._child.terminal is None:
                    self.stdin.close()
                await self.wait()
        finally:
            await self._watch.kill()
            self._close()
            self._streams.close()

    def __repr__(self) -> str:
        return f"<ExecProcess {list(self.args)!r} returncode={self.returncode}>"


async def popen(
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
    network: str = "none",
    binds: Sequence[_oneshot.Bind] = (),
    max_output: int | str | None = "16M",
    keep: Literal["head", "tail"] = "head",
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    tty: bool = False,
    tty_size: tuple[int, int] | None = None,
) -> ExecProcess:
    """Start a command in a fresh container: see `container.popen`. Returns once it runs."""
    began = monotonic()
    mode = parse_text_mode(text, encoding, errors)
    capture = parse_capture(max_output, keep)
    process = Process(
        args,
        env=env,
        cwd=cwd,
        user=user,
        tty=tty,
        tty_size=tty_size,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )
    box = Container(_oneshot.config_of(config, root, binds, (memory, cpus, pids), network))
    await box.run(process)
    conversation = Conversation(process.args, mode, capture, began)
    return box._as_process(conversation)


class Container:
    """A container for asyncio: see `container.Container`, whose parameters it has.

    An asynchronous context manager; leaving it destroys the container. ``stdin`` is a
    StreamWriter, ``stdout`` and ``stderr`` are StreamReaders, or None.
    """

    def __init__(self, config: Config | None = None, id: str | None = None) -> None:
        self._box = _container.Container(config, id)
        self._watch: _Watch | None = None
        self._streams: _Streams | None = None
        self._members: list[ExecProcess] = []

    # Life: awaited

    async def create(self, process: Process) -> None:
        """Set everything up but do not start the program yet (OCI ``create``)."""
        await self._create(process, StartFlag.GATE)

    async def start(self) -> None:
        """Start the program of a created container; returns once it runs."""
        watch = self._used()
        self._box._check_created(watch.child)
        watch.child.start()
        await _guarded(watch, started=True)
        if watch.child.failure is not None:
            self._close()
        self._box._note_start(watch.child)

    async def run(self, process: Process, *, detach: bool = False) -> None:
        """Create and start; returns once the program runs."""
        if detach:
            raise UnsupportedError("detached containers are not supported yet", field="detach")
        watch = await self._create(process, StartFlag(0))
        self._box._note_start(watch.child)

    async def _create(self, process: Process, flags: StartFlag) -> _Watch:
        box = self._box
        box._check_unused(process)
        if self._watch is not None:
            raise StateError(f"container {box.id} was used before; make a new one")
        stdio = open_process_stdio(process)
        try:
            plan, watch = await _launch(
                lambda: make_plan(box.config, process, flags), stdio, quiet=False
            )
            stdio.close_child_ends()
            box._adopt(process, plan, watch.child)
            self._watch = watch
            self._streams = _Streams(watch)
            try:
                await self._streams.open(stdio)
            except BaseException:
                await watch.kill()
                self._streams.close()
                raise
            return watch
        finally:
            stdio.close()

    async def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the program to end and return its status, -N for signal N.

        ``timeout`` in seconds: `ContainerTimeoutError` when it passes; the container runs on, as
        it does when this is cancelled.
        """
        limit = None if timeout is None else parse_duration(timeout)
        watch = self._used()
        if self.state.state == State.CREATED:
            raise StateError(f"container {self.id} is created, not started: nothing to wait for")
        if not await watch.until(watch.is_over, limit):
            raise ContainerTimeoutError(f"container {self.id} still runs after {limit:g} seconds")
        return self._box._settled(watch.child)

    async def exec(
        self,
        config: ExecConfig | Sequence[StrPath],
        *,
        max_output: int | str | None = "16M",
        keep: Literal["head", "tail"] = "head",
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> ExecProcess:
        """Run another command in the running container; returns once it runs. See
        `container.Container.exec`.
        """
        manner = Manner(
            parse_text_mode(text, encoding, errors), parse_capture(max_output, keep), monotonic()
        )
        host = self._box._host_for(config)
        known = plan_lately(host, config, parse_namespaces(None))
        wanted, plan = known.wanted, known.plan
        stdio = open_process_stdio(wanted)
        try:
            child = begin_member(host, plan, stdio, None, wait=False)
            watch = _Watch(child)
            await _guarded(watch)
            stdio.close_child_ends()
            if child.over and not child.started:
                await self._used().until(self._used().is_over, 0.5)
            settle_member(host, plan, child, wanted, manner)
            streams = _Streams(watch)
            try:
                await streams.open(stdio)
            except BaseException:
                await watch.kill()
                streams.close()
                raise
        finally:
            stdio.close()
        conversation = Conversation(wanted.args, manner.text, manner.capture, manner.began)
        process = ExecProcess(watch, conversation, streams)
        if wanted.timeout is not None:
            seconds = float(wanted.timeout)  # type: ignore[arg-type]
            process._end_after(manner.began + seconds, seconds)
        self._members = [each for each in self._members if not each._child.over]
        self._members.append(process)
        return process

    async def stop(self, signal_config: SignalConfig | None = None) -> int | None:
        """Ask the program to end, kill every process when it does not; return its status."""
        config = signal_config if signal_config is not None else SignalConfig()
        if not isinstance(config, SignalConfig):
            raise ConfigError(
                f"expected SignalConfig, got {type(config).__name__}", field="signal_config"
            )
        watch = self._used()
        if self.state.state == State.PAUSED:  # or it could not end in order
            with suppress(StateError):
                self._box.resume()
        if self.state.state == State.RUNNING:
            watch.child.signal(config.stop_signal)
            watch.child.signal(SIGCONT)  # a stopped process would take no notice
            await watch.until(watch.is_over, parse_duration(config.stop_timeout))
        await self._kill(watch)
        return self.exit_code

    async def _kill(self, watch: _Watch) -> None:
        watch.child.receive()
        if not watch.child.over:
            watch.child.signal(SIGKILL)
        await watch.until(watch.is_over)

    async def destroy(self) -> None:
        """Kill every process of the container and give everything back. Idempotent."""
        self._box._destroyed = True
        if self._watch is not None:
            await self._watch.kill()
            for member in self._members:  # dead, like all in the container
                await member._watch.until(member._watch.is_over)
                member._close()
            self._close()

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        if self._streams is not None:
            self._streams.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.destroy()

    def __del__(self) -> None:
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.forget()

    # At once

    def signal(self, sig: int) -> None:
        """Send a signal to the first process. `StateError` when it has ended."""
        self._box.signal(sig)

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal of the first process another size."""
        self._box.resize(rows, columns)

    @property
    def id(self) -> str:
        return self._box.id

    @property
    def config(self) -> Config:
        return self._box.config

    @property
    def pid(self) -> int | None:
        return self._box.pid

    @property
    def pidfd(self) -> int | None:
        return self._box.pidfd

    @property
    def exit_code(self) -> int | None:
        return self._box.exit_code

    @property
    def state(self) -> ContainerState:
        return self._box.state

    @property
    def stdin(self) -> asyncio.StreamWriter | None:
        return None if self._streams is None else self._streams.stdin

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        return None if self._streams is None else self._streams.reader("stdout")

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        return None if self._streams is None else self._streams.reader("stderr")

    def _used(self) -> _Watch:
        self._box._used_child()
        assert self._watch is not None
        return self._watch

    def _as_process(self, conversation: Conversation) -> ExecProcess:
        assert self._watch is not None
        assert self._streams is not None
        return ExecProcess(self._watch, conversation, self._streams, self)

    def __repr__(self) -> str:
        return repr(self._box)


for _each in (Container, ExecProcess, popen, run):
    _each.__module__ = "container.aio"
