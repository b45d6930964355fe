# SPDX-License-Identifier: Apache-2.0
"""`Container`: the ordered lifecycle and its undo."""

import os
import secrets
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from signal import SIGCONT
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, Self
from weakref import WeakSet

from container import __version__, _files
from container._cgroup import Cgroup, CgroupStats, is_frozen, name_group
from container._config import (
    Config,
    ContainerState,
    ExecConfig,
    HookType,
    Process,
    Resources,
    Result,
    SignalConfig,
    State,
    StrPath,
    parse_duration,
    parse_signal,
    parse_tty_size,
    validate_id,
)
from container._errors import (
    CgroupError,
    CleanupError,
    ConfigError,
    ContainerError,
    ContainerTimeoutError,
    StateError,
    UnsupportedError,
    launch_error,
    publish,
)
from container._events import ContainerEvent, begin, follow
from container._events import Watch as EventWatch
from container._hooks import HookRunner
from container._join import Host, Manner, parse_exec, parse_namespaces, run_member
from container._launcher import Child, Guest, StartFlag
from container._limits import controllers_of, settings_of
from container._plan import Plan, explain, launch_plan, make_plan
from container._process import (
    Conversation,
    ExecProcess,
    parse_capture,
    parse_text_mode,
)
from container._streams import NAMES, Stdio, open_process_stdio, open_stream

if TYPE_CHECKING:
    from container._detached import Detached
    from container._logs import LogEntry
    from container._network._network import Connection, Network

_containers: "WeakSet[Container]" = WeakSet()


def find_container(pid: int) -> "Container | None":
    """The container of this process whose first process has this pid."""
    return next((box for box in list(_containers) if box.pid == pid), None)


def connect(config: Config, id: str) -> "tuple[Config, Connection | None]":
    """The Config with what its network adds, and its connection, if it asks for one."""
    if config.network is None or not config.bridges:
        return config, None
    from container._network._network import Connection  # noqa: PLC0415  (200 ms, of pyroute2)

    connection = Connection(config.bridges, id, config.hostname)
    try:
        return connection.config_of(config), connection
    except BaseException:
        connection.release()
        raise


def pass_gate(child: Child) -> None:
    """Have a created one start its program; returns once that runs, or has failed."""
    child.start()
    try:
        while not (child.started or child.over):
            child.wait_news(None)
            child.receive()
    except BaseException:
        child.kill()
        raise


class Container:
    """A container: namespaces, a file system and a first process, for one run.

    A context manager; leaving it destroys the container. Safe to use from many threads. A process
    forked from the caller (`os.fork`) cannot use it: `StateError`. The container lives as long as
    its caller's process, not the thread that started it.

    ``config`` is a `Config` (None: ``Config()``), ``id`` a name of ``[A-Za-z0-9_+.-]`` (None: a
    random one).
    """

    def __init__(self, config: Config | None = None, id: str | None = None) -> None:
        if config is not None and not isinstance(config, Config):
            raise ConfigError(f"expected Config, got {type(config).__name__}", field="config")
        self.config = config if config is not None else Config()
        self.id = validate_id(id) if id is not None else secrets.token_hex(8)
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self._owner = os.getpid()
        _containers.add(self)
        # Held while the state changes by our own doing; a signal handler may destroy() meanwhile.
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._host: Host | None = None  # for `exec`
        self._members: list[Child] = []  # what `exec` has started
        self._members_lock = threading.Lock()
        self._destroyed = False
        self._connection: Connection | None = None
        self._hooks = (
            HookRunner(self.config.hooks, self._state_for_hooks) if self.config.hooks else None
        )
        self._owes_poststop = False
        self._detached: Detached | None = None
        self._planned_anew: Plan | None = None
        self._created_at = datetime.now(UTC)
        self._started_at: datetime | None = None
        self._stopped_at: datetime | None = None

    # Life

    def create(self, process: Process) -> None:
        """Set everything up but do not start the program yet (OCI ``create``)."""
        with self._lock:
            self._create(process, StartFlag.GATE)

    def start(self) -> None:
        """Start the program of a created container; returns once it runs.

        Raises `LaunchError` when it cannot be run; the container is then gone.
        """
        with self._lock:
            child = self._used_child()
            self._check_created(child)
            child.start()
            with self._undone(child):
                self._go_on(child, created=False)
                if child.failure is not None:
                    self._close_streams()
                self._note_start(child)
                self._run_poststart(child)

    def _go_on(self, child: Child, *, created: bool) -> None:
        """Until its program runs, or, if that is wanted, it is ``created``: with its hooks."""
        while not (child.started or child.over or (created and child.created)):
            if child.hooks_at and self._hooks is not None:
                self._hooks.run_at_step(child, self._plan)
                self._check_alive()
                child.start()
            child.wait_news(None)
            child.receive()

    def _check_alive(self) -> None:
        if self._destroyed:  # by a signal handler, meanwhile
            raise StateError(f"container {self.id} was destroyed while it started")

    @contextmanager
    def _undone(self, child: Child) -> Iterator[None]:
        """Whatever is raised in here undoes the container, with the hooks for its end."""
        try:
            yield
        except BaseException as error:
            child.kill()
            self._close_streams()
            self._disconnect()
            self._note_poststop(error)
            raise

    def _check_created(self, child: Child) -> None:
        if self._state(child) != State.CREATED:
            self._refuse("start", child)

    def _note_start(self, child: Child) -> None:
        if child.failure is not None:
            child.close()
            raise explain(child.failure, self._plan)
        self._started_at = datetime.now(UTC)

    def _run_poststart(self, child: Child) -> None:
        if self._hooks is not None:
            self._hooks.run(HookType.POSTSTART, State.RUNNING, child.pid)

    def run(
        self,
        process: Process,
        *,
        detach: bool = False,
        auto_remove: bool = False,
        restart: str = "no",
        lifetime: float | timedelta | None = None,
        log_size: int | str = "16M",
    ) -> None:
        """Create and start; returns once the program runs.

        Raises `LaunchError` naming the step that failed, `HookError` for a hook that did; nothing
        is left behind then.

        With ``detach`` it lives on by itself, whatever becomes of the caller, until its program
        ends or somebody ends it: `open` finds it by its id, which nobody else may have. Streams
        that are None are then not the caller's: there is nothing to read, and what is written goes
        to a log of ``log_size`` bytes (0: to nowhere), of which the oldest half is let go when it
        is full. Its state and log stay until `destroy`; with ``auto_remove`` they go with its end.
        After ``lifetime`` seconds it is killed. ``restart`` is ``"no"``, ``"on-failure"``,
        ``"on-failure:N"`` (N times at most) or ``"always"``: whether the program is started again
        after it ended by itself, in a fresh container, each time after a longer while. A
        `RuntimeWarning` says that it will not outlive the unit of systemd's that the caller is in.
        """
        given = (auto_remove, restart, lifetime, log_size)
        if not detach and given != (False, "no", None, "16M"):
            raise ConfigError("auto_remove, restart, lifetime and log_size need it", field="detach")
        with self._lock:
            if detach:
                self._run_detached(process, given)
                return
            child = self._create(process, StartFlag(0))
            with self._undone(child):
                self._note_start(child)
                self._run_poststart(child)

    def _run_detached(self, process: Process, given: tuple[Any, ...]) -> None:
        from container._detached import launch_detached, parse_life  # noqa: PLC0415

        life = parse_life(*given)
        self._check_unused(process)
        if self.config.bridges:
            raise UnsupportedError(
                "a detached container cannot be at a bridge yet: its addresses end with its caller",
                field="config.network",
            )
        if self.config.hooks is not None:
            raise UnsupportedError("a detached container runs none yet", field="config.hooks")
        config, _ = connect(self.config, self.id)
        found = launch_detached(config, process, self.id, life)
        self._take_detached(found)
        self._process = process
        reason = found.entry.detached.get("ends_with_unit")
        if reason:
            warnings.warn(
                f"container {self.id} ends with the systemd unit that it is started in: {reason}",
                RuntimeWarning,
                stacklevel=3,
            )

    @classmethod
    def open(cls, id: str) -> Self:
        """A detached container, of whichever process: one that runs, or has ended.

        `ContainerNotFoundError` when there is none; `StateError` where it is just being made, or
        was started with rights that the caller does not have, such as by another user or with more
        capabilities. Of one that another version has started, everything but `exec` can be used;
        its ``config`` is not known then, nor once it has ended.
        """
        from container._detached import find_detached  # noqa: PLC0415

        box = cls(id=id)
        box._take_detached(find_detached(box.id))
        return box

    def _take_detached(self, found: "Detached") -> None:
        state = found.entry.state
        self._child = found.child
        self._detached = found
        self._created_at = state.created_at
        self._started_at = state.started_at
        self._stopped_at = state.stopped_at
        if found.manual is not None:
            self.config, self._process = found.manual.config, found.manual.process

    def logs(self, *, stdout: bool = True, stderr: bool = True) -> bytes:
        """What a detached container has written to these streams, as far as the log goes back."""
        wanted = {name for name, flag in (("stdout", stdout), ("stderr", stderr)) if flag}
        return b"".join(entry.data for entry in self.log_entries() if entry.stream in wanted)

    def log_entries(self, *, follow: bool = False) -> Iterator["LogEntry"]:
        """The same piece by piece; with ``follow`` what comes as well, until it ends for good."""
        from container._logs import follow_log, read_log  # noqa: PLC0415
        from container._state import StateManager  # noqa: PLC0415

        child = self._used_child()
        if self._detached is None:
            raise StateError(f"container {self.id} is not detached: its streams are its log")
        with StateManager().opened(self.id) as directory:
            if follow and isinstance(child, Guest):
                yield from follow_log(directory, child)
            else:
                yield from read_log(directory)

    def _check_unused(self, process: Process) -> None:
        self._check_owner()
        if not isinstance(process, Process):
            raise ConfigError(f"expected Process, got {type(process).__name__}", field="process")
        if self._destroyed or self._child is not None:
            raise StateError(f"container {self.id} was used before; make a new one")

    def _create(self, process: Process, flags: StartFlag) -> Child:
        self._check_unused(process)
        stdio = open_process_stdio(process)
        try:
            config = self._connect(process)
            gate = StartFlag.GATE if self._connection is not None else flags
            plan = make_plan(config, process, gate)
            child = self._launch(plan, stdio)
            stdio.close_child_ends()
            with self._undone(child):
                self._adopt(process, plan, child)
                self._go_on(child, created=bool(gate & StartFlag.GATE))
                self._refuse_failure(child, plan)
                self._open_streams(stdio, child)
                if self._connection is not None:
                    self._attach(child, self._connection, flags)
                self._check_alive()
            return child
        except BaseException:
            self._disconnect()
            raise
        finally:
            stdio.close()

    def _connect(self, process: Process) -> Config:
        config = self.config
        if config.network is not None and config.bridges:
            make_plan(config, process, StartFlag.GATE)  # its errors come before anything is made
        config, self._connection = connect(config, self.id)
        return config

    def _attach(self, child: Child, connection: "Connection", flags: StartFlag) -> None:
        """Its interfaces, before its program runs."""
        if child.pid is not None:
            connection.attach(child.pid)
        if flags & StartFlag.GATE:
            return
        child.start()
        self._go_on(child, created=False)
        self._refuse_failure(child, self._plan)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def _launch(self, plan: Plan, stdio: Stdio) -> Child:
        self._owes_poststop = self._hooks is not None
        try:
            return launch_plan(plan, stdio.child, stdio.pipes)
        except BaseException as error:
            self._note_poststop(error)
            raise

    def _adopt(self, process: Process, plan: Plan, child: Child) -> None:
        """From here on it is this one's, or an error says why it is none."""
        self._refuse_failure(child, plan)
        if child.cgroup is not None:
            name_group(child.cgroup, self.id)
        self._process, self._plan, self._child = process, plan, child

    def _refuse_failure(self, child: Child, plan: Plan) -> None:
        if child.failure is not None:
            child.close()
            raise explain(child.failure, plan)
        if child.exit is not None and child.exit.lost:
            child.close()
            raise launch_error("launcher", None, "the launcher died while it started the container")

    # Hooks

    def _state_for_hooks(self, status: State, pid: int | None) -> ContainerState:
        """As it is told to a hook: what it will be is not known to its own state yet."""
        return ContainerState(
            id=self.id,
            state=status,
            pid=pid,
            exit_code=self.exit_code if status == State.STOPPED else None,
            created_at=self._created_at,
            started_at=self._started_at,
            stopped_at=self._stopped_at,
        )

    def _limit_hooks(self, deadline: float | None) -> None:
        """How long those before the start may take, all in all (of `time.monotonic`)."""
        if self._hooks is not None:
            self._hooks.deadline = deadline

    def _undo(self, error: BaseException) -> None:
        """Destroy it for this reason, which stays the one that is told."""
        try:
            self.destroy()
        except CleanupError as late:
            for each in late.exceptions:
                error.add_note(str(each))

    def _run_poststop(self) -> list[Exception]:
        """The hooks for its end, once; what failed."""
        owed, self._owes_poststop = self._owes_poststop, False
        return self._hooks.run_last() if owed and self._hooks is not None else []

    def _finish_hooks(self) -> None:
        if errors := self._run_poststop():
            raise CleanupError(f"hooks of container {self.id} failed", errors)

    def _note_poststop(self, error: BaseException) -> None:
        for each in self._run_poststop():
            error.add_note(str(each))

    def _open_streams(self, stdio: Stdio, child: Child) -> None:
        stdio.add_terminal(child)
        for name in NAMES:
            if name in stdio.ours:
                setattr(self, name, open_stream(name, stdio.ours[name], child))
                del stdio.ours[name]  # the file object's now

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(OSError):  # what was buffered for a dead process is lost
                    stream.close()

    def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the program to end and return its status, -N for signal N.

        ``timeout`` in seconds: `ContainerTimeoutError` when it passes; the container runs on.
        """
        limit = None if timeout is None else parse_duration(timeout)
        child = self._used_child()
        if self._state(child) == State.CREATED:
            raise StateError(f"container {self.id} is created, not started: nothing to wait for")
        deadline = None if limit is None else monotonic() + limit
        while not child.over:
            left = None if deadline is None else deadline - monotonic()
            if not child.wait_news(left) and left is not None and left <= 0:
                raise ContainerTimeoutError(
                    f"container {self.id} still runs after {limit:g} seconds"
                )
            child.receive()
        return self._settled(child)

    def _settled(self, child: Child) -> int:
        self._note_stop(child)
        if child.exit is None:
            raise StateError(f"container {self.id} was destroyed before it was started")
        if child.exit.lost:
            raise StateError(f"container {self.id} was killed: its launcher died")
        return child.exit.returncode

    def _note_stop(self, child: Child) -> None:
        if child.over and self._stopped_at is None:
            self._stopped_at = datetime.now(UTC)

    def exec(
        self,
        config: ExecConfig | Sequence[StrPath],
        *,
        max_output: int | str | None = "16M",
        keep: Literal["head", "tail"] = "head",
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> ExecProcess:
        """Run another command in the running container; returns once it runs.

        ``config`` is an `ExecConfig` or the arguments of one. The other parameters are those of
        `popen`, for ``communicate``. `StateError` when the container does not run, or ends before
        the command does; `LaunchError` with the step for what is wrong with the command.
        """
        return self._exec(config, None, (max_output, keep), (text, encoding, errors))

    def _exec(
        self,
        config: ExecConfig | Sequence[StrPath],
        names: Collection[str] | None,
        capture: tuple[int | str | None, str],
        text: tuple[bool, str | None, str | None],
    ) -> ExecProcess:
        manner = Manner(parse_text_mode(*text), parse_capture(*capture), monotonic())
        host = self._host_for(config)
        try:
            process = run_member(host, config, manner, parse_namespaces(names))
        except StateError:
            self._host_for(config, look=True)  # it says more of why
            raise
        with self._members_lock:  # it lives on when nobody holds on to it here
            self._members = [member for member in self._members if not member.over]
            self._members.append(process.child)
        return process

    def _host_for(self, config: ExecConfig | Sequence[StrPath], *, look: bool = False) -> Host:
        """Where a command is to run. What is wrong with it is told before that nothing runs.

        Without ``look`` an end that we have not noticed is left for the launcher to tell of.
        """
        child = self._used_child()
        if not look and self._host is not None and not child.over and not child.in_cgroup:
            return self._host
        if self._state(child) != State.RUNNING:
            parse_exec(config)
            self._refuse("exec in", child)
        if self._host is None or self._host.serial != child.serial:  # it was started again
            plan = self._planned()
            self._host = Host(self.config, self._process, plan, child, child.serial)
        return self._host

    def _planned(self) -> Plan:
        """How it was started; a detached one as it would be now."""
        if self._detached is None:
            return self._plan
        if self._detached.manual is None:
            raise StateError(
                f"container {self.id} was started by version"
                f" {self._detached.entry.detached.get('version')}, which this one,"
                f" {__version__}, cannot ask to run a command"
            )
        if self._planned_anew is None:
            self._planned_anew = make_plan(self.config, self._process, StartFlag(0))
        return self._planned_anew

    def _forget_members(self) -> None:
        with self._members_lock:
            members, self._members = self._members, []
        for member in members:  # dead, like all in the container: their end is on its way
            while not member.over:
                member.wait_news(None)
                member.receive()
            member.close()

    def signal(self, sig: int) -> None:
        """Send a signal to the first process. `StateError` when it has ended.

        PID 1 of a PID namespace ignores signals for which it has no handler (pid_namespaces(7)),
        but for SIGKILL and SIGSTOP from outside.
        """
        number = parse_signal(sig, "sig")
        child = self._used_child()
        child.receive()
        if child.over:
            self._refuse("signal", child)
        child.signal(number)

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal of the first process another size, as `ExecProcess.resize` does."""
        size = parse_tty_size(rows, columns)
        child = self._used_child()
        if not self._process.tty:
            raise StateError(f"container {self.id} has no terminal")
        child.resize(*size)

    def stop(self, signal_config: SignalConfig | None = None) -> int | None:
        """Ask the program to end, kill every process when it does not; return its status.

        It is continued should it be stopped. A container that has ended stays as it is.
        """
        config = signal_config if signal_config is not None else SignalConfig()
        if not isinstance(config, SignalConfig):
            raise ConfigError(
                f"expected SignalConfig, got {type(config).__name__}", field="signal_config"
            )
        child = self._used_child()
        deadline = monotonic() + parse_duration(config.stop_timeout)
        child.receive()
        if self._state(child) == State.PAUSED:  # or it could not end in order
            with suppress(StateError):
                self.resume()
        if self._state(child) == State.RUNNING:
            child.stop(config.stop_signal)
            child.signal(SIGCONT)  # a stopped process would take no notice
            while not child.over and (left := deadline - monotonic()) > 0:
                child.wait_news(left)
                child.receive()
        self._kill(child)
        return self.exit_code

    def _kill(self, child: Child) -> None:
        child.receive()
        if not child.over:
            child.stop(9)
        while not child.over:
            child.wait_news(None)
            child.receive()
        self._note_stop(child)

    # Its control group

    def pause(self) -> None:
        """Let every process stand still; returns once they do. They can still be killed.

        This and the following need ``Config(resources=...)``: `CgroupError` without.
        """
        with self._lock:
            child = self._used_child()
            if self._state(child) != State.RUNNING:
                self._refuse("pause", child)
            with self._group("pause", child) as group:
                group.freeze()

    def resume(self) -> None:
        """Let them go on."""
        with self._lock:
            child = self._used_child()
            if self._state(child) != State.PAUSED:
                self._refuse("resume", child)
            with self._group("resume", child) as group:
                group.thaw()

    def update(self, resources: Resources) -> None:
        """Change limits while it runs; what is None stays as it is."""
        if not isinstance(resources, Resources):
            raise ConfigError(
                f"expected Resources, got {type(resources).__name__}", field="resources"
            )
        child = self._used_child()
        with self._group("update", child) as group:
            child.launcher.find_cgroups(controllers_of(settings_of(resources)))
            group.update(resources)

    def stats(self) -> CgroupStats:
        """What it uses now, and has used: processor time, memory, processes, devices."""
        child = self._used_child()
        with self._group("read the numbers of", child) as group:
            return group.stats()

    def events(self, timeout: float | timedelta | None = None) -> Iterator[ContainerEvent]:
        """What happens to it from now on, until its end, which is the last one; or until
        ``timeout`` seconds have passed. The kernel tells of it, nothing is polled.
        """
        watch, deadline = self._begin_events(timeout)
        return follow(watch, self._used_child(), deadline)

    def _begin_events(self, timeout: float | timedelta | None) -> tuple[EventWatch, float | None]:
        limit = None if timeout is None else parse_duration(timeout)
        child = self._used_child()
        with self._group("follow", child) as group:
            watch = begin(group.path, child)
        return watch, None if limit is None else monotonic() + limit

    @contextmanager
    def _group(self, action: str, child: Child) -> Iterator[Cgroup]:
        """The cgroup of a container that has not ended; `StateError` once it has."""
        child.receive()
        if child.over:
            self._refuse(action, child)
        path = child.cgroup
        if path is None:
            raise CgroupError(
                f"cannot {action} container {self.id}: it has no control group; give it"
                " Config(resources=Resources()) or limits"
            )
        try:
            yield Cgroup(path)
        except CgroupError:
            # It went with the end of the container, of which we hear in a moment.
            if os.path.isdir(path):
                raise
            while not child.over:
                child.wait_news(None)
                child.receive()
            self._refuse(action, child)

    # Files

    def copy_in(self, source: StrPath, target: StrPath) -> None:
        """Copy a file or directory of the caller's to ``target`` in the container.

        Where ``target`` is a directory the copy goes into it, under its own name, as with cp(1);
        directories that are there already are added to, files overwritten. What is made belongs to
        the container's root and has the permissions of the source, set-user-ID bits aside. Links
        are copied as links, ``source`` itself is followed. `UnsupportedError` names a fifo, socket
        or device, when it comes to it. No path leads out of the container, whatever it does
        meanwhile, and nothing of its proc or sysfs is written.

        Other errors are those of the operating system, such as FileNotFoundError, BlockingIOError
        for a file that a program holds a lease of (fcntl(2)); `StateError` when the container
        has ended.
        """
        with self._files() as inside:
            _files.copy_in(
                inside, _files.path_of(source, "source"), _files.path_of(target, "target")
            )

    def copy_out(self, source: StrPath, target: StrPath) -> None:
        """Copy a file or directory of the container to ``target``; see `copy_in`.

        What is made belongs to the caller. What only other ids than the container's own may read
        is not read for it. A link that is copied may point anywhere: look at it before you follow
        it.
        """
        with self._files() as inside:
            _files.copy_out(
                inside, _files.path_of(source, "source"), _files.path_of(target, "target")
            )

    def open_file(
        self, path: StrPath, mode: str = "r", *, encoding: str | None = "utf-8"
    ) -> IO[Any]:
        """Open a regular file of the container, with the modes of ``open()``; see `copy_in`.

        A new one belongs to the container's root. Close it: it outlives the container.
        """
        _files.parse_mode(mode)
        with self._files() as inside:
            fd = _files.open_file(inside, _files.path_of(path, "path"), mode)
        return _files.as_file(fd, mode, encoding)

    def _files(self) -> AbstractContextManager[_files.Inside]:
        child = self._used_child()
        child.receive()
        return _files.enter(child, self.id)

    def destroy(self) -> None:
        """Kill every process of the container and give everything back. Idempotent.

        `CleanupError` when hooks for its end failed; it is gone all the same.
        Of a detached one, state and log go as well. Leaving a ``with`` block does not destroy it.
        """
        if os.getpid() != self._owner:
            return  # a fork's copy: the container is the parent's
        with self._lock:
            self._destroyed = True
            child = self._child
            if child is not None:
                try:
                    self._kill(child)
                    self._forget_members()
                    if self._detached is not None:
                        self._remove_detached(child)
                finally:
                    child.close()
                    self._close_streams()
                    if self._host is not None:
                        self._host.lines.close()
                    self._disconnect()
                self._finish_hooks()

    def _remove_detached(self, child: Child) -> None:
        from container._detached import await_end, remove_detached  # noqa: PLC0415

        await_end(child)
        remove_detached(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._detached is None:
            self.destroy()
        elif self._child is not None:
            self._child.close()

    def __del__(self) -> None:
        child: Child | None = getattr(self, "_child", None)
        if child is None or self._owner != os.getpid():
            return
        if self._detached is None and not child.over and not self._destroyed:
            warnings.warn(f"container {self.id} was never destroyed", ResourceWarning, stacklevel=2)
            child.signal(9)
        child.close()
        if self._connection is not None:
            with suppress(ContainerError):
                self._disconnect()

    # What it is

    @property
    def networks(self) -> "tuple[Network, ...]":
        """Its interfaces at bridges, with their addresses, in their order."""
        return self._connection.networks if self._connection is not None else ()

    @property
    def pid(self) -> int | None:
        """Of the first process, in the caller's PID namespace; None before and after its life."""
        child = self._child
        if child is None:
            return None
        child.receive()
        return None if child.over else child.pid

    @property
    def pidfd(self) -> int | None:
        """A pidfd of the first process, readable once it has ended (pidfd_open(2)).

        It belongs to the container and closes with it; None without a process.
        """
        return None if self._child is None else self._child.pidfd

    @property
    def seccomp_listener(self) -> int | None:
        """The fd by which calls are answered that the profile says NOTIFY of: seccomp_unotify(2).

        Of the first process and what that starts; a command of `exec` has one of its own. It
        belongs to the container and closes with it; None without such a rule.
        """
        return None if self._child is None else self._child.listener

    @property
    def exit_code(self) -> int | None:
        """None while it has not ended, then as ``subprocess.Popen.returncode``."""
        child = self._child
        if child is None:
            return None
        child.receive()
        self._note_stop(child)
        return None if child.exit is None else child.exit.returncode

    @property
    def state(self) -> ContainerState:
        """A snapshot. `StateError` if nothing was created yet."""
        child = self._child
        exit_code = self.exit_code
        return ContainerState(
            id=self.id,
            state=State.CREATING if child is None else self._state(child),
            pid=self.pid,
            exit_code=exit_code,
            created_at=self._created_at,
            started_at=self._started_at,
            stopped_at=self._stopped_at,
        )

    def _as_process(self, conversation: Conversation) -> ExecProcess:
        """The command of a running container, as `popen` hands it out with its streams."""
        streams = {name: stream for name in NAMES if (stream := getattr(self, name)) is not None}
        self.stdin = self.stdout = self.stderr = None
        at_end = self.destroy if self._owes_poststop else None
        return ExecProcess(
            self._used_child(), conversation, Stdio(), self.destroy, streams, at_end=at_end
        )

    def _take_output(
        self, conversation: Conversation, data: bytes, deadline: float | None
    ) -> Result | None:
        """Hold the command of a running container to its end."""
        fds = {}
        for name in NAMES:
            if (stream := getattr(self, name)) is not None:
                fds[name] = os.dup(stream.fileno())
        self._close_streams()
        left = None if deadline is None else max(0.0, deadline - monotonic())
        return conversation.hold(self._used_child(), fds, data, left)

    def _state(self, child: Child) -> State:
        child.receive()
        if child.over:
            return State.STOPPED
        if not child.started:
            return State.CREATED
        return State.PAUSED if is_frozen(child.cgroup) else State.RUNNING

    def _used_child(self) -> Child:
        self._check_owner()
        if self._child is None:
            raise StateError(f"container {self.id} has not been created")
        return self._child

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise StateError(
                f"container {self.id} belongs to process {self._owner}, not to its fork"
            )

    def _refuse(self, action: str, child: Child) -> NoReturn:
        raise StateError(f"cannot {action} container {self.id}: it is {self._state(child)}")

    def __repr__(self) -> str:
        child = self._child
        state = State.CREATING if child is None else self._state(child)
        return f"<Container {self.id} {state}>"


publish(Container)
