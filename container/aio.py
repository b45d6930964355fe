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
``exec``, ``stop``, ``destroy``, ``pause``, ``resume``, ``update``, ``copy_in``, ``copy_out`` and
``open_file`` of `Container`; ``wait`` and ``communicate`` of `ExecProcess`. ``events`` is for
``async for``. What is done at once is not awaited: ``signal``, ``send_signal``, ``terminate``,
``kill``, ``resize``, ``poll``, ``stats``, ``close`` and the properties.

There is no thread for a container and no polling: the loop watches a file descriptor for each.
What works on files (``pause`` to ``open_file`` above, and a kill of all that a command has started)
is done, and hooks are run, by a thread of the loop's default executor, for as long as that takes.
Cancelling whoever awaits a `run`, a ``communicate`` or a start kills that container or command
before the cancellation goes on, as do ``asyncio.timeout`` and Ctrl-C; a cancelled ``wait`` lets it
live.

An object belongs to the loop that it was made in. Several loops may be used, each in a thread of
its own, and loops other than asyncio's own that have its ``add_reader``. For anything else, such as
trio, ``pidfd`` of the objects of `container` becomes readable at the end: see docs/asyncio.md.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from secrets import token_hex
from signal import SIGCONT, SIGKILL
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from container import _container, _oneshot
from container._cgroup import CgroupStats
from container._config import (
    DEVNULL,
    PIPE,
    Config,
    ContainerState,
    ExecConfig,
    HasFileno,
    HostRoot,
    NetworkConfig,
    Overlay,
    Process,
    Resources,
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
    CleanupError,
    CommandError,
    ConfigError,
    ContainerTimeoutError,
    StateError,
    UnsupportedError,
)
from container._events import ContainerEvent
from container._events import Watch as EventWatch
from container._join import (
    PATIENCE,
    Manner,
    begin_member,
    deadline_of,
    may_have_died,
    parse_namespaces,
    plan_lately,
    refuse_late,
    settle_member,
)
from container._launcher import TRIES, StartFlag, launcher_lost, replace_launcher
from container._loop import LoopExchange, Streams, Watch
from container._plan import Plan, Planner, explain, launch_plan, make_plan
from container._process import Conversation, parse_capture, parse_text_mode
from container._streams import Capture, Stdio, open_process_stdio

if TYPE_CHECKING:
    from container._network._network import Connection, Network

__all__ = ["Container", "ExecProcess", "popen", "run"]


async def _guarded(watch: Watch, *, started: bool = False, deadline: float | None = None) -> None:
    """Until a child has been created, waits for hooks, has started, or is over, which it is at
    ``deadline``; what cancels that kills it.
    """
    child = watch.child

    def is_there() -> bool:
        waits = bool(child.hooks_at) or (child.created and not started)
        return waits or child.started or child.over

    left = None if deadline is None else deadline - monotonic()
    async with watch:
        if not await watch.until(is_there, left):
            child.late = True
            await watch.kill()


async def _launch(
    plan_of: Callable[[], Plan],
    stdio: Stdio,
    *,
    quiet: bool = False,
    note: Callable[[Watch], object] = id,
) -> tuple[Plan, Watch]:
    """Send a plan off; unless ``quiet``, until it is created or started, or has failed.

    ``note`` is told of each one that is sent.
    """
    for _ in range(TRIES):
        plan = plan_of()
        watch = Watch(launch_plan(plan, stdio.child, stdio.pipes, wait=False))
        note(watch)
        if quiet:
            return plan, watch
        await _guarded(watch)
        if not watch.child.must_retry():
            return plan, watch
        replace_launcher(watch.child)
        watch.close()
    raise launcher_lost()


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
    network: str | NetworkConfig = "none",
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
    if planner.config.hooks is not None:
        ended = await _run_with_hooks(planner, conversation, input, limit)
        if check and ended.returncode != 0:
            raise CommandError(ended)
        return ended
    if planner.config.network is not None and planner.config.bridges:
        connected = await _run_connected(planner, conversation, data, limit)
        if check and connected.returncode != 0:
            raise CommandError(connected)
        return connected
    for _ in range(TRIES):
        stdio = open_process_stdio(process)
        try:
            plan, watch = await _launch(
                lambda: planner.plan(StartFlag(0) if tty else StartFlag.QUIET),
                stdio,
                quiet=not tty,
            )
            async with watch:
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


async def _run_with_hooks(
    planner: Planner, conversation: Conversation, data: bytes | str | None, limit: float | None
) -> Result:
    box = Container(planner.config)
    deadline = None if limit is None else conversation.began + limit
    box._box._limit_hooks(deadline)
    try:
        await box.run(planner.process)
        process = box._as_process(conversation)
        left = None if deadline is None else max(0.0, deadline - monotonic())
        await process.communicate(data, left)
    except BaseException as error:
        await box._undo(error)
        raise
    await box.destroy()
    assert process.result is not None, "it had started, so it has ended"
    return process.result


async def _run_connected(
    planner: Planner, conversation: Conversation, data: bytes, limit: float | None
) -> Result:
    """With interfaces, which are made in between: that takes the kernel a moment, not a thread."""
    process = planner.process
    planner.plan(StartFlag.QUIET)  # its errors come before anything is made
    config, connection = _container.connect(planner.config, token_hex(8))
    assert connection is not None
    try:
        stdio = open_process_stdio(process)
        try:
            plan, watch = await _launch(
                lambda: make_plan(config, process, StartFlag.GATE), stdio, quiet=False
            )
            async with watch:
                stdio.close_child_ends()
                stdio.add_terminal(watch.child)
                await _attach(watch, connection, start=True)
                result = await _hold(watch, conversation, stdio.ours, data, limit)
        finally:
            stdio.close()
    finally:
        connection.release()
    if result is not None:
        return result
    if watch.child.failure is not None:
        raise explain(watch.child.failure, plan)
    raise launcher_lost()


async def _attach(watch: Watch, connection: "Connection", *, start: bool) -> None:
    """Give one at the gate its interfaces, and let it pass."""
    child = watch.child
    if child.over or child.pid is None:
        return
    connection.attach(child.pid)
    if start:
        child.start()
        await _guarded(watch, started=True)


async def _hold(  # noqa: PLR0917 - as Conversation.hold, and its own
    watch: Watch,
    conversation: Conversation,
    fds: dict[str, int],
    data: bytes,
    timeout: float | None,
    begun: Mapping[str, bytes] | None = None,
) -> Result | None:
    """`Conversation.hold` on a loop; ``begun`` is what was read before from outputs."""
    names = dict.fromkeys((*(begun or {}), *fds))
    limits = conversation.capture
    captures = {name: Capture(limits.limit, limits.keep) for name in names if name != "stdin"}
    for name, rest in (begun or {}).items():
        captures[name].add(rest)
    exchange = None
    try:
        sinks = {name: capture.add for name, capture in captures.items()}
        exchange = LoopExchange(watch, fds, sinks, data)
        in_time = await watch.until(watch.is_over, timeout)
        if not in_time:
            await watch.kill()
        exchange.finish()
    finally:
        if exchange is not None:
            exchange.close()
        while fds:
            os.close(fds.popitem()[1])
    watch.close()
    return conversation.conclude(watch.child, captures, None if in_time else timeout)


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
        watch: Watch,
        conversation: Conversation,
        streams: Streams,
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
    def seccomp_listener(self) -> int | None:
        """As `container.ExecProcess.seccomp_listener`."""
        return self._child.listener

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
        return self._finish() if self._watch.look().over else None

    async def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the end; at ``timeout`` seconds everything is killed as by
        `container.ExecProcess.wait`: `ContainerTimeoutError`. Cancelled, it lets the command live.
        """
        limit = None if timeout is None else parse_duration(timeout)
        self._watch.look()
        if not await self._watch.until(self._watch.is_over, limit):
            await self._watch.kill()
            self._close()
            await self._end_box()
            self._conversation.conclude(self._child, {}, limit)
        await self._end_box()
        return self._finish()

    async def _end_box(self) -> None:
        """The container, where hooks have to run at its end."""
        if self._box is not None and self._box._box._owes_poststop:
            await self._box.destroy()

    async def communicate(
        self, input: bytes | str | None = None, timeout: float | timedelta | None = None
    ) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their end, wait: see
        `container.ExecProcess.communicate`. Cancelled, it kills the command.
        """
        data = self._conversation.input_bytes(input, self._child)
        limit = None if timeout is None else parse_duration(timeout)
        self._watch.look()
        try:
            async with self._watch:
                if self.stdin is not None:
                    self.stdin.write(data)
                    if self._child.terminal is None:
                        self.stdin.close()
                fds, begun = await self._streams.take_outputs()
                result = await _hold(self._watch, self._conversation, fds, b"", limit, begun)
        finally:
            self._close()
            await self._end_box()
        assert result is not None, "it had started, so it has ended"
        self._note(result)
        return result.stdout, result.stderr

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command; nothing happens if it has ended."""
        number = parse_signal(sig, "sig")
        if not self._watch.look().over:
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
        if not self._watch.look().over:
            if self._child.terminal is None:
                raise StateError(f"{self.args[0]!r} has no terminal")
            self._child.resize(*size)

    def _end_after(self, began: float, seconds: float) -> None:
        """Have everything killed as by a timeout of `wait`, whoever waits or not."""

        def expire() -> None:
            if not self._child.over:
                self._conversation.expired = seconds
                self._killing = asyncio.ensure_future(self._watch.kill())

        left = max(0.0, began + seconds - monotonic())
        self._timer = self._watch.loop.call_later(left, expire)

    def _finish(self) -> int:
        self._close()
        self._note(self._conversation.conclude(self._child, {}, None))
        assert self._result is not None
        return self._result.returncode

    def _note(self, result: Result | None) -> None:
        self._result = self._result or result

    def close(self) -> None:
        """Give the streams back. The command goes on, and is not waited for."""
        self._streams.close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._watch.close()
        self._streams.close_input()
        if self._box is not None:
            self._box._box._disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                if self.stdin is not None and self._child.terminal is None:
                    self.stdin.close()
                await self.wait()
        finally:
            try:
                await self._watch.kill()
            finally:
                self._close()
                self._streams.close()
                await self._end_box()

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
    network: str | NetworkConfig = "none",
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
    box_config, process, conversation = _oneshot.prepare_popen(
        *(args, root, config, (stdin, stdout, stderr), env, cwd, user, (memory, cpus, pids)),
        *(network, binds, (max_output, keep), (text, encoding, errors), tty, tty_size),
    )
    box = Container(box_config)
    await box.run(process)
    return box._as_process(conversation)


class Container:
    """A container for asyncio: see `container.Container`, whose parameters it has.

    An asynchronous context manager; leaving it destroys the container. ``stdin`` is a
    StreamWriter, ``stdout`` and ``stderr`` are StreamReaders, or None.
    """

    def __init__(self, config: Config | None = None, id: str | None = None) -> None:
        self._box = _container.Container(config, id)
        self._watch: Watch | None = None
        self._streams: Streams | None = None
        self._members: list[Watch] = []  # of what `exec` has started
        self._starting = False

    # Life: awaited

    async def create(self, process: Process) -> None:
        """Set everything up but do not start the program yet (OCI ``create``)."""
        await self._create(process, StartFlag.GATE)

    async def start(self) -> None:
        """Start the program of a created container; returns once it runs."""
        watch = self._used()
        self._box._check_created(watch.child)
        watch.child.start()
        try:
            await _guarded(watch, started=True)
            await self._go_on(watch, created=False)
            if watch.child.failure is not None:
                self._close()
            self._box._note_start(watch.child)
            await self._run_poststart(watch)
        except BaseException as error:
            await self._undo_start(watch, error)
            raise

    # Hooks: by a thread, for functions among them would hold the loop up

    async def _go_on(self, watch: Watch, *, created: bool) -> None:
        """Until its program runs, or, if that is wanted, it is ``created``: with its hooks."""
        child, box = watch.child, self._box
        while child.hooks_at and box._hooks is not None:
            await self._in_thread(partial(box._hooks.run_at_step, child, box._plan))
            box._check_alive()
            child.start()
            await _guarded(watch, started=not created)

    async def _run_poststart(self, watch: Watch) -> None:
        if self.config.hooks is not None and self.config.hooks.poststart:
            await self._in_thread(partial(self._box._run_poststart, watch.child))

    async def _in_thread(self, run: Callable[[], None], *, to_the_end: bool = False) -> None:
        """Cancelled, kill the hook that runs, or let it and the others run ``to_the_end``."""
        future = asyncio.get_running_loop().run_in_executor(None, run)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
                if self._box._hooks is not None and not to_the_end:
                    self._box._hooks.cancel()
        if cancelled is not None:
            future.exception()  # it was asked for, so nobody is told
            raise cancelled
        future.result()

    async def _undo_start(self, watch: Watch, error: BaseException) -> None:
        if isinstance(error, GeneratorExit):  # the loop is gone: nothing can be awaited any more
            watch.close()
            return
        await watch.kill()
        self._close()
        await self._note_poststop(error)

    async def _note_poststop(self, error: BaseException) -> None:
        if self._box._owes_poststop and not isinstance(error, GeneratorExit):
            await self._in_thread(partial(self._box._note_poststop, error), to_the_end=True)

    async def _undo(self, error: BaseException) -> None:
        """Destroy it for this reason, which stays the one that is told."""
        try:
            await self.destroy()
        except CleanupError as late:
            for each in late.exceptions:
                error.add_note(str(each))

    async def run(self, process: Process, *, detach: bool = False) -> None:
        """Create and start; returns once the program runs."""
        if detach:
            raise UnsupportedError(
                "not with asyncio: asyncio.to_thread(container.Container().run, process,"
                " detach=True)",
                field="detach",
            )
        watch = await self._create(process, StartFlag(0))
        try:
            self._box._note_start(watch.child)
            await self._run_poststart(watch)
        except BaseException as error:
            await self._undo_start(watch, error)
            raise

    async def _create(self, process: Process, flags: StartFlag) -> Watch:
        self._box._check_unused(process)
        if self._starting:
            raise StateError(f"container {self.id} is being started")
        self._starting = True
        stdio = open_process_stdio(process)
        try:
            return await self._create_with(stdio, process, flags)
        except BaseException as error:
            self._box._disconnect()
            if self._box._destroyed and isinstance(error, Exception):
                raise StateError(f"container {self.id} was destroyed while it started") from error
            raise
        finally:
            self._starting = False
            stdio.close()

    async def _create_with(self, stdio: Stdio, process: Process, flags: StartFlag) -> Watch:
        box = self._box
        config = box._connect(process)
        gate = StartFlag.GATE if box._connection is not None else flags

        def plan() -> Plan:
            box._check_unused(process)
            return make_plan(config, process, gate)

        def note(watch: Watch) -> None:
            self._watch = watch  # for destroy()

        box._owes_poststop = box._hooks is not None
        try:
            made, watch = await _launch(plan, stdio, note=note)
        except BaseException as error:
            await self._note_poststop(error)
            raise
        try:
            async with watch:
                box._check_unused(process)
                stdio.close_child_ends()
                box._adopt(process, made, watch.child)
                await self._go_on(watch, created=bool(gate & StartFlag.GATE))
                box._refuse_failure(watch.child, made)
                self._streams = Streams(watch, stdio)
                if box._connection is not None:
                    await _attach(watch, box._connection, start=not flags & StartFlag.GATE)
                    await self._go_on(watch, created=False)
                    box._refuse_failure(watch.child, made)
        except BaseException as error:
            await self._note_poststop(error)
            raise
        return watch

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
        host = self._box._host_for(config, look=True)
        known = plan_lately(host, config, parse_namespaces(None))
        wanted, plan = known.wanted, known.plan
        stdio = open_process_stdio(wanted)
        try:
            watch = Watch(begin_member(host, plan, stdio, None, wait=False))
            await _guarded(watch, deadline=deadline_of(wanted, manner))
            async with watch:
                stdio.close_child_ends()
                refuse_late(watch.child, wanted, manner)
                if may_have_died(watch.child):
                    await self._used().until(self._used().is_over, PATIENCE)
                settle_member(host, plan, watch.child, wanted, manner, patience=0)
                streams = Streams(watch, stdio)
        finally:
            stdio.close()
        conversation = Conversation(wanted.args, manner.text, manner.capture, manner.began)
        process = ExecProcess(watch, conversation, streams)
        if wanted.timeout is not None:
            process._end_after(manner.began, float(wanted.timeout))  # type: ignore[arg-type]
        self._members = [each for each in self._members if not each.child.over]
        self._members.append(watch)
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
                await self.resume()
        if self.state.state == State.RUNNING:
            watch.child.signal(config.stop_signal)
            watch.child.signal(SIGCONT)  # a stopped process would take no notice
            await watch.until(watch.is_over, parse_duration(config.stop_timeout))
        if not watch.look().over:
            watch.child.signal(SIGKILL)
        await watch.until(watch.is_over)
        return self.exit_code

    async def destroy(self) -> None:
        """Kill every process of the container and give everything back. Idempotent."""
        if os.getpid() != self._box._owner:
            return  # a fork's copy: the container is the parent's
        self._box._destroyed = True
        if self._watch is None:
            return
        await self._end(self._watch)
        if self._box._owes_poststop and not self._starting:  # else who starts it does that
            await self._in_thread(self._box._finish_hooks, to_the_end=True)

    async def _end(self, watch: Watch) -> None:
        members = self._members
        try:
            await watch.kill()
            # Dead, like all in the container: their end is on its way.
            await watch.surely(lambda: all(member.child.over for member in members))
        finally:
            for member in members:
                member.close()
            self._close()
            if self._box._host is not None:  # for `exec_in_namespaces`
                self._box._host.lines.close()

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        if self._streams is not None:
            self._streams.close()
        self._box._disconnect()

    # Its control group and its files: by a thread

    async def pause(self) -> None:
        """Let every process stand still; returns once they do. See `container.Container.pause`."""
        await asyncio.to_thread(self._box.pause)

    async def resume(self) -> None:
        """Let them go on."""
        await asyncio.to_thread(self._box.resume)

    async def update(self, resources: Resources) -> None:
        """Change limits while it runs; what is None stays as it is."""
        await asyncio.to_thread(self._box.update, resources)

    async def copy_in(self, source: StrPath, target: StrPath) -> None:
        """Copy to ``target`` in the container: see `container.Container.copy_in`. What is cancelled
        is not waited for any more, but goes on.
        """
        await asyncio.to_thread(self._box.copy_in, source, target)

    async def copy_out(self, source: StrPath, target: StrPath) -> None:
        """Copy from the container: see `copy_in`."""
        await asyncio.to_thread(self._box.copy_out, source, target)

    async def open_file(
        self, path: StrPath, mode: str = "r", *, encoding: str | None = "utf-8"
    ) -> IO[Any]:
        """Open a regular file of the container: see `container.Container.open_file`. What is
        returned is an ordinary file object, whose methods are not awaited.
        """
        return await asyncio.to_thread(self._box.open_file, path, mode, encoding=encoding)

    def events(self, timeout: float | timedelta | None = None) -> AsyncIterator[ContainerEvent]:
        """What happens to it from now on, for ``async for``: see `container.Container.events`."""
        return self._follow(*self._box._begin_events(timeout))

    async def _follow(
        self, events: EventWatch, deadline: float | None
    ) -> AsyncIterator[ContainerEvent]:
        watch = self._used()
        news: list[ContainerEvent] = []

        def look() -> None:
            news.extend(events.news())
            watch.wake()

        fd = events.fileno()
        watch.loop.add_reader(fd, look)
        try:
            while not watch.child.over:
                left = None if deadline is None else deadline - monotonic()
                in_time = await watch.until(lambda: bool(news) or watch.child.over, left)
                while news:
                    yield news.pop(0)
                if not in_time:
                    return
            for event in events.last():
                yield event
        finally:
            if not watch.loop.is_closed():
                watch.loop.remove_reader(fd)
            events.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.destroy()

    def __del__(self) -> None:
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.abandon(self._box)

    # At once

    def signal(self, sig: int) -> None:
        """Send a signal to the first process. `StateError` when it has ended."""
        self._box.signal(sig)

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal of the first process another size."""
        self._box.resize(rows, columns)

    def stats(self) -> CgroupStats:
        """What it uses now, and has used: processor time, memory, processes, devices."""
        return self._box.stats()

    @property
    def id(self) -> str:
        return self._box.id

    @property
    def config(self) -> Config:
        return self._box.config

    @property
    def networks(self) -> "tuple[Network, ...]":
        return self._box.networks

    @property
    def pid(self) -> int | None:
        return self._box.pid

    @property
    def pidfd(self) -> int | None:
        return self._box.pidfd

    @property
    def seccomp_listener(self) -> int | None:
        return self._box.seccomp_listener

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

    def _used(self) -> Watch:
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
