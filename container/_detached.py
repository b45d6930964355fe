# SPDX-License-Identifier: Apache-2.0
"""Containers that outlive who started them: made, found again, started again, removed.

Such a container has a launcher of its own, which looks after it (csrc/supervisor.c) and has the
lock of its directory in the state directory. Beside the state there are:

socket      where the launcher listens
ending      how it ended; the launcher writes it
log, log.1  what it wrote, see _logs.py
lock        whose owner is the launcher, however that ends

How it was configured is kept by the launcher alone, in memory (the manual): there are secrets in
it. Its clients get it from there, and so does the program that starts the container once more.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from container import __version__, _codec
from container._cgroup import name_group
from container._config import (
    DEVNULL,
    PIPE,
    Config,
    ContainerState,
    Process,
    State,
    parse_duration,
    parse_size,
)
from container._errors import (
    CgroupError,
    ConfigError,
    ContainerNotFoundError,
    StateError,
    launch_error,
)
from container._launcher import (
    Child,
    Connection,
    DetachFlag,
    Ended,
    Exit,
    Guest,
    Launcher,
    Lifespan,
    Socket,
    StartFlag,
    above_stdio,
    protocol,
    seal,
    wait_readable,
)
from container._plan import Plan, explain, launch_plan, make_plan
from container._state import (
    Entry,
    StateManager,
    is_owned,
    make_ending,
    read_ending,
    read_entry,
    remove_directory,
    write_state,
)
from container._streams import Stdio, open_process_stdio
from container._systemd import Unit, is_in_unit

_RESTART = re.compile(r"no|always|on-failure(?::([0-9]{1,6}))?")
_LEAST_LOG = 1 << 16
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 60.0  # seconds until a restart: twice as long each time
_CALM = 10.0  # seconds that a container has to run for the next restart to be at once
_LARGEST_MANUAL = 1 << 24
_DYING = 1.0  # seconds that the kernel may take to close the files of a launcher that is gone
_END = 60.0  # seconds that a launcher may take to end after its container
_AFTER = "import sys; sys.path.append(sys.argv[1]); from container._after import main; main()"


# Life -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Life:
    """How a detached container lives; see `Container.run`."""

    auto_remove: bool = False
    restart: str = "no"
    lifetime: float | None = None  # seconds
    log_size: int = 16 << 20

    def flags(self, restarts: int, hooks: bool) -> DetachFlag:
        """What its launcher is to do, after so many restarts."""
        flags = DetachFlag(0)
        if self.auto_remove:
            flags |= DetachFlag.REMOVE
        if hooks:
            flags |= DetachFlag.LAST_WORDS
        policy, _, most = self.restart.partition(":")
        if policy == "always":
            flags |= DetachFlag.RESTART_ALWAYS
        elif policy == "on-failure" and (not most or restarts < int(most)):
            flags |= DetachFlag.RESTART_FAILURE
        return flags


def parse_life(
    auto_remove: bool,
    restart: str,
    lifetime: float | timedelta | None,
    log_size: int | str,
) -> Life:
    """`ConfigError` names a bad one."""
    if not isinstance(auto_remove, bool):
        raise ConfigError("expected a bool", field="auto_remove")
    if not isinstance(restart, str) or not _RESTART.fullmatch(restart):
        raise ConfigError(
            f"must be 'no', 'on-failure', 'on-failure:N' or 'always', not {restart!r}",
            field="restart",
        )
    seconds = None if lifetime is None else parse_duration(lifetime, "lifetime")
    size = parse_size(log_size, "log_size")
    if 0 < size < _LEAST_LOG:
        raise ConfigError(f"must be 0 or at least {_LEAST_LOG} bytes", field="log_size")
    return Life(auto_remove, restart, seconds, size)


# The manual -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manual:
    """How a container was made, for others."""

    config: Config
    process: Process
    life: Life

    def encode(self) -> bytes:
        life = self.life
        parts = (life.auto_remove, life.restart, life.lifetime, life.log_size)
        return _codec.encode([self.config, self.process, parts]).encode()

    @classmethod
    def read(cls, fd: int) -> "Manual":
        """What the launcher has given us: to be trusted no more than any other text."""
        try:
            data = os.pread(fd, _LARGEST_MANUAL, 0)
            config, process, parts = _codec.decode(data.decode())
            life = Life(*parts)
        except (OSError, ValueError, TypeError) as error:
            raise StateError(f"its launcher does not tell how it was made: {error}") from None
        if not isinstance(config, Config) or not isinstance(process, Process):
            raise StateError("its launcher does not tell how it was made")
        return cls(config, process, life)


def own_process(process: Process, life: Life) -> Process:
    """One with streams that are not the caller's: nothing to read, and pipes to the log."""
    for name in ("stdin", "stdout", "stderr"):
        value = getattr(process, name)
        if value == PIPE and isinstance(value, int):
            raise ConfigError(
                "a detached container has no pipe to its caller: leave it out",
                field=f"process.{name}",
            )
    if process.tty:
        return process
    output = PIPE if life.log_size else DEVNULL
    return replace(
        process,
        stdin=DEVNULL if process.stdin is None else process.stdin,
        stdout=output if process.stdout is None else process.stdout,
        stderr=output if process.stderr is None else process.stderr,
    )


def _make_manual(config: Config, process: Process, life: Life) -> Manual:
    """`ConfigError` for what no other process can be told."""
    streams = (process.stdin, process.stdout, process.stderr)
    kept = [each if _is_named(each) else DEVNULL for each in streams]
    if (kept != list(streams) or process.pass_fds) and life.restart != "no":
        raise ConfigError("files of the caller are open only once", field="restart")
    plain = replace(process, stdin=kept[0], stdout=kept[1], stderr=kept[2], pass_fds=())
    return Manual(config, plain, life)


def _is_named(stream: object) -> bool:
    """None, PIPE, STDOUT, DEVNULL"""
    return stream is None or (isinstance(stream, int) and stream < 0)


# Making -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Detached:
    """A detached container as it was found or made."""

    child: Child
    entry: Entry
    manual: Manual | None = None  # None once it has ended


def launch_detached(config: Config, process: Process, id: str, life: Life) -> Detached:
    """Start a container that lives on by itself; nothing is left where that fails."""
    manual = _make_manual(config, process, life)
    process = own_process(process, life)
    plan = make_plan(config, process, StartFlag.GATE)
    manager = StateManager()
    manager.prepare()
    launcher = Launcher()
    try:
        maker = _Maker(manager, launcher, id, manual)
        with ExitStack() as undo:
            maker.claim(undo)
            child = maker.launch(plan, process, undo)
            found = maker.settle(child)
            undo.pop_all()
    except BaseException:
        launcher.close()
        raise
    launcher.release()
    return found


class _Maker:
    """The steps from an id to a container that runs by itself."""

    def __init__(self, manager: StateManager, launcher: Launcher, id: str, manual: Manual) -> None:
        self.manager = manager
        self.launcher = launcher
        self.id = id
        self.manual = manual
        self.created_at = datetime.now(UTC)
        self.extra: dict[str, object] = {}

    def claim(self, undo: ExitStack) -> None:
        """Become the owner of the directory, or tell who is."""
        with self.manager.locked(self.id, make=True) as (top, directory):
            _refuse_taken(self.id, directory)
            # Opened anew: the lock that we have here must not be the launcher's as well.
            own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                self.launcher.claim(top, own)
            except BlockingIOError:
                raise StateError(f"there is a container {self.id} already") from None
            finally:
                os.close(own)
            undo.callback(self._forget)
            remove_files(directory, keep=("lock",))
            self._enter_scope()
            self.save(directory, State.CREATING, None)

    def _forget(self) -> None:
        self.launcher.end()
        with suppress(ContainerNotFoundError), self.manager.locked(self.id) as (top, directory):
            # Who ended ours may have removed it too, and somebody else have taken the id since.
            if not is_owned(directory):
                remove_directory(top, self.id, directory)

    def _enter_scope(self) -> None:
        """Out of the unit of the caller, which takes all that is in it along."""
        self.extra = extra_of(self.manual, None)
        if not is_in_unit():
            return
        name = f"container-{self.launcher.pid}-{os.urandom(4).hex()}.scope"
        try:
            self.launcher.enter_scope(Unit(name))
        except CgroupError as error:
            self.extra["ends_with_unit"] = str(error)

    def save(self, directory: int, state: State, pid: int | None) -> None:
        started = datetime.now(UTC) if state == State.RUNNING else None
        value = ContainerState(self.id, state, pid, None, self.created_at, started)
        write_state(directory, value, self.extra)

    def launch(self, plan: Plan, process: Process, undo: ExitStack) -> Child:
        """As far as the gate, and detached from us."""
        stdio = open_process_stdio(process)
        undo.callback(stdio.close)
        child = launch_plan(plan, stdio.child, stdio.pipes, by=self.launcher)
        stdio.close_child_ends()
        undo.callback(child.kill)
        refuse_failed(child, plan)
        if child.cgroup is not None:
            name_group(child.cgroup, self.id)
        self.extra = self.extra | {"place": self.launcher.place if child.in_cgroup else None}
        with self.manager.locked(self.id) as (_, directory), ExitStack() as files:
            self.save(directory, State.RUNNING, child.pid)
            fds = [listen_in(directory), make_ending(directory), seal_manual(self.manual)]
            for fd in fds:
                files.callback(os.close, fd)
            sources = sources_of(stdio, child)
            life = lifespan(self.manual, 0, sources)
            self.launcher.detach(life, child.serial, self.id, [*fds, *sources.values()])
        start_child(child, plan)
        stdio.close()
        return child

    def settle(self, child: Child) -> Detached:
        """It runs; now as anybody else would find it."""
        try:
            found = find_detached(self.id, self.manager)
        except StateError:  # it has ended, and is gone or going: we were told how
            found = None
        if found is None or (found.manual is None and not found.child.over):
            while not child.over:
                child.wait_news(None)
                child.receive()
        if found is not None and (found.manual is not None or found.child.over):
            child.close()
            return found
        state = ContainerState(self.id, State.STOPPED, None, None, self.created_at)
        return Detached(child, Entry(state, detached=self.extra))


def _refuse_taken(id: str, directory: int) -> None:
    if is_owned(directory):
        raise StateError(f"there is a container {id} already")
    with suppress(FileNotFoundError):
        os.stat("state.json", dir_fd=directory, follow_symlinks=False)
        raise StateError(
            f"there is a container {id} already, which has ended: remove it first, or prune()"
        )


def remove_files(directory: int, keep: Sequence[str] = ()) -> None:
    """What a dead launcher left in a directory that is locked."""
    for name in os.listdir(directory):
        if name not in keep:
            os.unlink(name, dir_fd=directory)


def extra_of(manual: Manual, place: str | None) -> dict[str, object]:
    """What is kept beside the state; no values of the environment."""
    return {
        "version": __version__,
        "protocol": protocol(),
        "command": [os.fspath(arg) for arg in manual.process.args],
        "restart": manual.life.restart,
        "auto_remove": manual.life.auto_remove,
        "place": place,
        "restarts": 0,
    }


def refuse_failed(child: Child, plan: Plan) -> None:
    """An error for one that is not at the gate."""
    if child.failure is not None:
        raise explain(child.failure, plan)
    if child.exit is not None:
        raise launch_error("launcher", None, "the launcher died while it started the container")


def start_child(child: Child, plan: Plan) -> None:
    """Through the gate; returns once its program runs."""
    child.start()
    while not (child.started or child.over):
        child.wait_news(None)
        child.receive()
    if child.failure is not None and child.failure.errno:
        raise explain(child.failure, plan)
    if child.failure is not None or (child.exit is not None and child.exit.lost):
        raise StateError("the container was ended by somebody else before its program ran")


def listen_in(directory: int) -> int:
    """A socket in the directory, not listening yet. By a path that is never too long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"/proc/self/fd/{directory}/socket")
        os.chmod("socket", 0o600, dir_fd=directory)
        return above_stdio(listener.detach())


def seal_manual(manual: Manual) -> int:
    """In memory, so that nothing of it is on a disk."""
    return seal("container-manual", manual.encode())


def sources_of(stdio: Stdio, child: Child) -> dict[DetachFlag, int]:
    """Our ends of what is logged."""
    if child.terminal is not None:
        os.set_blocking(child.terminal, False)
        return {DetachFlag.STDOUT: child.terminal}
    names = {"stdout": DetachFlag.STDOUT, "stderr": DetachFlag.STDERR}
    found = {flag: stdio.ours[name] for name, flag in names.items() if name in stdio.ours}
    for fd in found.values():
        os.set_blocking(fd, False)
    return found


def lifespan(manual: Manual, restarts: int, sources: Mapping[DetachFlag, int]) -> Lifespan:
    """For the launcher."""
    flags = manual.life.flags(restarts, hooks=has_last_hooks(manual.config))
    for flag in sources:
        flags |= flag
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = ("PATH", "XDG_RUNTIME_DIR", "LANG")
    return Lifespan(
        flags=flags,
        args=[sys.executable, "-I", "-c", _AFTER, package],
        env=[f"{name}={os.environ[name]}" for name in environment if name in os.environ],
        lifetime=manual.life.lifetime or 0.0,
        delay=min(_FIRST_DELAY * 2 ** min(restarts, 20), _LONGEST_DELAY),
        calm=_CALM,
        log_size=manual.life.log_size,
    )


def has_last_hooks(config: Config) -> bool:
    """Whether there is something to be run after the end of a container."""
    hooks = getattr(config, "hooks", None)
    return bool(hooks is not None and getattr(hooks, "poststop", ()))


# Finding ----------------------------------------------------------------------------------------


def find_detached(id: str, manager: StateManager | None = None) -> Detached:
    """One that runs, or has ended. `ContainerNotFoundError`; `StateError` where it is in the making
    or we are not let in.
    """
    manager = manager or StateManager()
    with manager.opened(id) as directory:
        entry = read_entry(id, directory)
        if not entry.detached:
            raise StateError(f"container {id} is not a detached one: only its caller has it")
        client = _connect(directory) if entry.is_owned else None
        if client is None and entry.is_owned:
            entry = read_entry(id, directory)  # it may have ended since: its lock goes first
        if client is not None:
            try:
                return _meet(client, entry)
            except ConnectionResetError:
                entry = read_entry(id, directory)  # it ended this moment
            except StateError as error:
                raise StateError(f"container {id}: {error}") from None
        elif entry.is_owned and entry.state.state != State.STOPPED:
            raise StateError(f"container {id} is in the making")
        ending = read_ending(directory)
    if ending is None:
        return Detached(Ended(Exit(-9, lost=True)), entry)
    numbers = (ending.memory_peak, ending.pids_peak, ending.oom_kills)
    peak, pids, kills = (None if n == 2**64 - 1 else n for n in numbers)
    end = Exit(
        ending.returncode,
        ending.user,
        ending.system,
        ending.max_rss,
        memory_peak=peak,
        pids_peak=pids,
        oom_kills=kills,
    )
    return Detached(Ended(end), entry)


def _connect(directory: int) -> Socket | None:
    """None where nobody listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        client.connect(f"/proc/self/fd/{directory}/socket")
    except (ConnectionRefusedError, FileNotFoundError):
        client.close()
        return None
    except OSError as error:
        client.close()
        raise StateError(f"its launcher cannot be reached: {error.strerror}") from None
    return Socket(fileno=above_stdio(client.detach()))


def _meet(client: Socket, entry: Entry) -> Detached:
    place = entry.detached.get("place")
    connection = Connection(client, place if isinstance(place, str) else None)
    try:
        manual = None
        fd = connection.take_manual()
        try:
            if connection.protocol == protocol():
                manual = Manual.read(fd)
        finally:
            os.close(fd)
        return Detached(Guest(connection), entry, manual)
    except BaseException:
        connection.close()
        raise


def await_end(child: Child) -> None:
    """Wait until the launcher of a container that has ended is gone too."""
    if not isinstance(child, Guest):
        return
    while wait_readable(child.channel.fileno(), _END):
        try:
            if not child.channel.recv(1 << 12):
                return
        except ConnectionError:
            return
    raise StateError("the container has ended, but its launcher has not")


def remove_detached(id: str) -> None:
    """Remove what is left of one that has ended. Who has the id by now is another."""
    with suppress(ContainerNotFoundError), StateManager().locked(id) as (top, directory):
        deadline = time.monotonic() + _DYING
        while is_owned(directory):  # a killed launcher's files are closed in no order
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)
        remove_directory(top, id, directory)
