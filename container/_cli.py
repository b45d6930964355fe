# SPDX-License-Identifier: Apache-2.0
"""The ``container`` command.

The exit status of ``container run`` is the command's, 128+N after signal N; 124 when its time is
over; 125 for an error of ours, 126 for a program that is there and cannot be executed, 127 for
one that is not there. A signal that ends us ends the container: 128+N.

A file or pipe on a standard stream is handed to the container. A terminal never is: its fd could
be read from and takes ioctls, whichever stream it stands for (CVE-2017-5226). What is written to
it or typed on it is copied, by the main thread: through pipes, or with -t to and from a terminal of
the container's own.
"""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from errno import EIO, ENOENT
from fcntl import ioctl
from functools import partial
from select import select
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from types import FrameType
from typing import IO, Any, NoReturn

from container import __version__
from container._config import (
    DEVNULL,
    PIPE,
    STDOUT,
    Config,
    ExecConfig,
    NetworkConfig,
    Overlay,
    Process,
    Resources,
    parse_duration,
)
from container._container import Container
from container._errors import (
    ConfigError,
    ContainerError,
    LaunchError,
    StateError,
    UnsupportedError,
)
from container._exec import exec_in_namespaces
from container._limits import limit_further
from container._manage import add_commands
from container._oneshot import parse_bind
from container._process import ExecProcess
from container._state import StateManager
from container._streams import typed
from container._terminal import CallersTerminal

_TIMED_OUT = 124
_OWN_ERROR = 125
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127
_SIGNALLED = 128

_OUTPUT_CHUNK = 1 << 14
_LARGEST_PIPE = 1 << 20
_INTERVAL = 1.0  # seconds between tables of stats
_CLEAR = "\x1b[H\x1b[J"
_TIOCGPTPEER = 0x5441
_INPUT_CHUNK = 4096  # PIPE_BUF: a pipe that can be written to takes it whole

# Options that are promised for later: an error that says so beats "unrecognized arguments".
_DETACHED_ONLY = ("restart", "log_size")


_PORT_HELP = "publish a port, or a range, at the host; with --net bridge"
_TERMINAL_HELP = "a terminal of its own, shown on ours; what is typed on ours goes to it"


# The command line --------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ContainerError(f"{message}; see {self.prog} --help")


class _Later(argparse.Action):
    def __call__(
        self, parser: object, namespace: object, values: object, option_string: str | None = None
    ) -> NoReturn:
        raise UnsupportedError("is not supported yet", field=option_string)


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError("expected K=V")  # not the text: it may be a secret
    return name, value


def _parser() -> _Parser:
    parser = _Parser(prog="container", description="Run Linux containers.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"container {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_exec(commands)
    _add_stats(commands)
    add_commands(commands)
    _add_completion(commands)
    _add_network(commands)
    doctor = commands.add_parser(
        "doctor", help="try what this machine allows", description="Try what this machine allows."
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(call=_doctor)
    return parser


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run a command in a fresh container",
        usage="container run [OPTION]... -- CMD [ARG]...",
        description="Run a command in a fresh container, which goes when the command ends. With -d"
        " it stays in `container ps --all`, with its status and log, until it is removed.",
        epilog="The exit status is the command's; 128+N: signal N; 124: timeout; 125: our own"
        " error; 126: cannot be executed; 127: not found.",
        allow_abbrev=False,
    )
    parser.set_defaults(call=_run)
    add = parser.add_argument
    root = parser.add_mutually_exclusive_group().add_argument
    root("--root", metavar="DIR", help="directory that becomes / (default: the host's /usr)")
    root("--overlay", metavar="DIR", help="the same, but what is changed goes with the container")
    add("-v", action="append", default=[], metavar="SRC:DST[:ro]", help="bind a host path")
    add("-e", action="append", default=[], metavar="K=V", type=_variable, help="set a variable")
    add("-w", metavar="DIR", help="working directory (default: /)")
    add("-u", metavar="USER[:GROUP]", help="names or numbers inside the container (default: 0)")
    add("--init", action="store_true", help="run the command under a tiny init as PID 1")
    add("-i", action="store_true", help="pass standard input on (default: /dev/null)")
    add("-t", action="store_true", help=_TERMINAL_HELP)
    add("--memory", metavar="SIZE", help="limit of memory, such as 256M; -1: none")
    add("--cpus", type=float, metavar="N", help="limit of processors, such as 1.5")
    add("--pids", type=int, metavar="N", help="limit of processes and threads; -1: none")
    add("--timeout", type=float, metavar="S", help="seconds after which everything is killed")
    add("--hostname", metavar="NAME", help="host name inside (default: container)")
    add("--name", metavar="ID", help="id of the container (default: a random one)")
    add("-d", action="store_true", help="detached: print the id, and leave it running")
    add("--rm", action="store_true", help="with -d: its state and log go when it ends")
    add("--restart", metavar="POLICY", help="with -d: no, on-failure[:N] or always")
    add("--log-size", metavar="SIZE", help="with -d: how much of its output is kept (16M)")
    add("--net", default="none", metavar="none|host|bridge", help="network (default: none)")
    add("-p", action="append", default=[], metavar="[IP:]HOST:PORT[/PROTO]", help=_PORT_HELP)
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _add_exec(commands: Any) -> None:
    parser = commands.add_parser(
        "exec",
        help="run a command in a detached container, or in the namespaces of a process",
        usage="container exec [OPTION]... ID|PID -- CMD [ARG]...",
        description="Run a command in a detached container, with the environment, the rights and"
        " the filter of its first process; or in the namespaces of any process: as that process's"
        " root, with no more capabilities than it has.",
        epilog="The exit status is as that of container run. The filter of system calls of a"
        " process that is given by its PID cannot be copied: where it has one, the command gets"
        " the default one.",
        allow_abbrev=False,
    )
    parser.set_defaults(call=_exec)
    add = parser.add_argument
    add("-e", action="append", default=[], metavar="K=V", type=_variable, help="set a variable")
    add("-w", metavar="DIR", help="working directory (default: /)")
    add("-u", metavar="USER[:GROUP]", help="with PID numbers (default: as the first process)")
    add("-i", action="store_true", help="pass standard input on (default: /dev/null)")
    add("-t", action="store_true", help=_TERMINAL_HELP)
    add("--timeout", type=float, metavar="S", help="seconds after which all it started is killed")
    add("-d", action=_Later, nargs=0, help=argparse.SUPPRESS)
    add("target", metavar="ID|PID")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _add_stats(commands: Any) -> None:
    parser = commands.add_parser(
        "stats",
        help="show what containers use",
        usage="container stats [--once | --json] [ID]...",
        description="Show what containers with limits use, or those with these ids: a table that"
        " goes on, on a terminal. CPU % is of one processor. A container has a control group, and"
        " so numbers, when it has limits or Config(resources=...).",
        allow_abbrev=False,
    )
    parser.set_defaults(call=_stats)
    how = parser.add_mutually_exclusive_group().add_argument
    how("--once", action="store_true", help="one table, as when standard output is no terminal")
    how("--json", action="store_true", help="print JSON, once")
    parser.add_argument("id", nargs="*", metavar="ID")


def _add_network(commands: Any) -> None:
    parser = commands.add_parser(
        "network",
        help="look at networks, or take unused ones away",
        description="Networks are made when a container is first connected to one, and stay.",
        allow_abbrev=False,
    )
    parser.set_defaults(call=_network)
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    listing = actions.add_parser("ls", help="list them")
    listing.add_argument("--json", action="store_true", help="print JSON")
    inspect = actions.add_parser("inspect", help="print JSON about some")
    inspect.add_argument("name", nargs="+", metavar="NAME")
    actions.add_parser("prune", help="take away those that no container uses")


def _add_completion(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what a shell needs to complete these commands",
        description="To be read by the shell at its start: source <(container completion bash).",
        allow_abbrev=False,
    )
    parser.set_defaults(call=_completion)
    parser.add_argument("shell", choices=("bash", "zsh"))


# The commands ------------------------------------------------------------------------------------


def _completion(options: argparse.Namespace) -> int:
    try:
        import shtab  # noqa: PLC0415  (of the extra "completion")
    except ImportError:
        raise UnsupportedError(
            "completion needs shtab: pip install 'container[completion]'"
        ) from None
    print(shtab.complete(_parser(), options.shell))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from container._doctor import doctor  # noqa: PLC0415

    report = doctor()
    print(report.to_json() if options.json else report)
    return 0 if report.ok else 1


def _run(options: argparse.Namespace) -> int:
    root = options.root if options.overlay is None else Overlay(options.overlay)
    config = Config(root=root, mounts=[parse_bind(bind, "-v") for bind in options.v])
    if options.hostname is not None:
        config = replace(config, hostname=options.hostname)
    config = replace(config, resources=_limits(options), network=_network_of(options))
    if options.d:
        return _run_detached(options, config)
    for name in _DETACHED_ONLY:
        if getattr(options, name) is not None:
            raise ConfigError("needs -d", field=f"--{name.replace('_', '-')}")
    terminal = _terminal(options)
    process = Process(
        options.command[options.command[:1] == ["--"] :],
        env=dict(options.e),
        cwd=options.w,
        user=options.u,
        init=options.init,
        **_stdio(options, terminal),
    )
    with Container(config, id=options.name) as box:
        if options.timeout is not None:
            _end_after(parse_duration(options.timeout, "--timeout"))
        box.run(process)
        _converse(box, terminal)
        status = box.wait()
    return status if status >= 0 else _SIGNALLED - status


def _run_detached(options: argparse.Namespace, config: Config) -> int:
    if options.i:
        raise ConfigError("a detached container has no standard input", field="-i")
    process = Process(
        options.command[options.command[:1] == ["--"] :],
        env=dict(options.e),
        cwd=options.w,
        user=options.u,
        init=options.init,
        tty=options.t,
    )
    box = Container(config, id=options.name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        box.run(
            process,
            detach=True,
            auto_remove=options.rm,
            restart=options.restart or "no",
            lifetime=options.timeout,
            log_size=options.log_size or "16M",
        )
    for warning in caught:
        _say(str(warning.message), "warning")
    print(box.id)
    return 0


def _network_of(options: argparse.Namespace) -> NetworkConfig | None:
    if options.net == "none" and not options.p:
        return None
    try:
        return NetworkConfig(options.net, port_mappings=options.p)
    except ConfigError as error:
        field = error.field.replace("port_mappings", "-p").replace("mode", "--net")
        raise ConfigError(error.detail, field=field) from None


def _network(options: argparse.Namespace) -> int:
    import json  # noqa: PLC0415  (8 ms)

    from container._network import _admin  # noqa: PLC0415  (200 ms, of pyroute2)

    if options.action == "prune":
        for name in _admin.prune_networks():
            print(name)
    elif options.action == "inspect":
        print(json.dumps([_admin.inspect_network(name) for name in options.name], indent=2))
    elif options.json:
        print(json.dumps(_admin.list_networks(), indent=2))
    else:
        print(f"{'NAME':15}  {'SUBNET':18}  {'SUBNET6':24}  CONTAINERS")
        for each in _admin.list_networks():
            subnets = f"{each['subnet']:18}  {each['subnet6'] or '-':24}"
            print(f"{each['name']:15}  {subnets}  {len(each['containers'])}")
    return 0


def _limits(options: argparse.Namespace) -> Resources | None:
    try:
        return limit_further(None, options.memory, options.cpus, options.pids)
    except ConfigError as error:
        raise ConfigError(error.detail, field=f"--{error.field}") from None


def _stats(options: argparse.Namespace) -> int:
    from container._top import as_dicts, format_table, tables, take_samples  # noqa: PLC0415

    if options.json:
        import json  # noqa: PLC0415  (8 ms)

        print(json.dumps(as_dicts(take_samples(options.id)), indent=2))
    elif options.once or not os.isatty(1):
        print(format_table(take_samples(options.id), {}), end="")
    else:
        for table in tables(options.id, _INTERVAL):
            _write(1, (_CLEAR + table).encode(errors="backslashreplace"))
    return 0


def _exec(options: argparse.Namespace) -> int:
    terminal = _terminal(options)
    config = ExecConfig(
        options.command[options.command[:1] == ["--"] :],
        env=dict(options.e),
        cwd=options.w,
        user=options.u,
        **_stdio(options, terminal),
    )
    if options.timeout is not None:
        _end_after(parse_duration(options.timeout, "--timeout"))
    process = _start_exec(options.target, config)
    try:
        _converse(process, terminal)
        status = process.wait()
    except BaseException:
        process.child.kill()
        raise
    finally:
        process.close()
    return status if status >= 0 else _SIGNALLED - status


def _start_exec(target: str, config: ExecConfig) -> ExecProcess:
    """By name first: a detached container may have a number for its name."""
    try:
        return Container.open(target).exec(config)
    except (ConfigError, StateError):
        if not target.isdecimal() or _is_container(target):
            raise
    return exec_in_namespaces(int(target), config)


def _is_container(id: str) -> bool:
    try:
        with StateManager().opened(id):
            return True
    except ContainerError:
        return False


# Ends that come from outside ---------------------------------------------------------------------


class _End(BaseException):
    """A signal, or the time that is over, ends the command; ``status`` is ours then."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _end_by_signal(number: int, _frame: FrameType | None) -> NoReturn:
    raise _End(_TIMED_OUT if number == signal.SIGALRM else _SIGNALLED + number)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def _catch_signals() -> None:
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and `cmd &` want it
            signal.signal(number, _end_by_signal)


def _ignore_signals() -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def _end_after(seconds: float) -> None:
    # A timer, not a poll with a timeout: it also ends a write to a terminal that was stopped. It
    # repeats because an exception raised while Python runs a finalizer is lost.
    signal.signal(signal.SIGALRM, _end_by_signal)
    signal.setitimer(signal.ITIMER_REAL, min(max(seconds, 1e-6), 1e9), 1.0)


# Standard streams --------------------------------------------------------------------------------


def _terminal(options: argparse.Namespace) -> CallersTerminal | None:
    """The terminal to show another one on; None without -t, and where there is none."""
    if not options.t:
        return None
    if options.i and not os.isatty(0):
        raise ContainerError(
            "-i with -t: standard input is no terminal; leave out -t, or -i to run without input"
        )
    return CallersTerminal.find()


def _stdio(options: argparse.Namespace, terminal: CallersTerminal | None) -> dict[str, Any]:
    """What `Process` and `ExecConfig` are told of streams."""
    if options.t:
        return {"tty": True, "tty_size": None if terminal is None else terminal.size}
    return dict(zip(("stdin", "stdout", "stderr"), _streams(options.i), strict=True))


def _converse(box: Container | ExecProcess, terminal: CallersTerminal | None) -> None:
    """Copy between us and a command that runs, until its end."""
    if box.stdin is not None and not os.isatty(0):  # it has a terminal, on which nobody types
        box.stdin.write(typed(b""))
        box.stdin.flush()
    if terminal is None:
        _Copy(box).run()
        return
    try:
        terminal.take(box.resize)
        _Copy(box, on_terminal=True).run()
    finally:
        terminal.give_back()


def _streams(interactive: bool) -> tuple[int, int, int]:
    """What `Process` gets for stdin, stdout and stderr."""
    stdin = DEVNULL if not interactive else PIPE if os.isatty(0) else 0
    stdout = PIPE if os.isatty(1) else 1
    if not os.isatty(2):
        return stdin, stdout, 2
    # One pipe for one terminal keeps the order of what is shown on it.
    same = os.path.samestat(os.fstat(1), os.fstat(2))
    return stdin, stdout, STDOUT if same else PIPE


class _Copy:
    """Copies between our terminals and those streams of a container that are pipes."""

    def __init__(self, box: Container | ExecProcess, *, on_terminal: bool = False) -> None:
        self._box = box
        self._on_terminal = on_terminal
        self._selector = DefaultSelector()
        self._typed = b""
        self._outputs: list[Callable[[], bool]] = []
        self._peer: int | None = None  # the other end of the container's terminal

    def run(self) -> None:
        """Copy until the command has ended and everything that it wrote is out."""
        try:
            self._run()
        finally:
            if self._peer is not None:
                os.close(self._peer)

    def _run(self) -> None:
        with self._selector:
            for stream, terminal in ((self._box.stdout, 1), (self._box.stderr, 2)):
                if stream is not None:
                    os.set_blocking(stream.fileno(), False)
                    self._outputs.append(partial(self._show, stream.fileno(), terminal))
                    self._selector.register(stream, EVENT_READ, self._outputs[-1])
            if self._box.stdin is not None and os.isatty(0):
                os.set_blocking(self._box.stdin.fileno(), False)
                self._selector.register(0, EVENT_READ, self._take)
            if self._selector.get_map():
                self._until_end()

    def _until_end(self) -> None:
        pidfd = self._box.pidfd
        assert pidfd is not None
        self._selector.register(pidfd, EVENT_READ)
        over = False
        while not over:
            for key, _ in self._selector.select():
                if key.data is None:
                    over = True
                else:
                    key.data()
        for show in self._outputs:
            # What is in the pipe now: a process that was left behind may write for ever.
            for _ in range(_LARGEST_PIPE // _OUTPUT_CHUNK):
                if not show():
                    break

    def _show(self, source: int, terminal: int) -> bool:
        """Show some of what was written; False when there is nothing now or nothing ever."""
        try:
            data = os.read(source, _OUTPUT_CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != EIO:
                raise
            if self._peer is None:
                # Nobody in the container has the terminal open; somebody may open it again.
                self._peer = ioctl(source, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                return False
            data = b""  # it was hung up
        if not data:
            with suppress(KeyError):
                self._selector.unregister(source)
            return False
        _write(terminal, data)
        return True

    def _take(self) -> None:
        """Take what was typed, and no more until it is passed on."""
        with suppress(BlockingIOError):
            self._typed = _read_terminal()
            self._selector.unregister(0)
            if self._typed:
                self._selector.register(self._stdin, EVENT_WRITE, self._pass_on)
            elif self._on_terminal:
                raise _End(_SIGNALLED + signal.SIGHUP)
            else:
                self._stdin.close()

    def _pass_on(self) -> None:
        self._selector.unregister(self._stdin)
        try:
            self._typed = self._typed[os.write(self._stdin.fileno(), self._typed) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # nobody in the container reads it any more
            self._stdin.close()
            return
        if self._typed:
            self._selector.register(self._stdin, EVENT_WRITE, self._pass_on)
        else:
            self._selector.register(0, EVENT_READ, self._take)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._box.stdin is not None
        return self._box.stdin


def _read_terminal() -> bytes:
    try:
        return os.read(0, _INPUT_CHUNK)
    except OSError as error:
        if error.errno != EIO:
            raise
        return b""  # it was hung up


def _write(terminal: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(terminal, data) :]
        except BlockingIOError:  # another program that shares the terminal made it so
            select([], [terminal], [])
        except OSError as error:
            if error.errno != EIO:
                raise
            raise BrokenPipeError from error  # it was hung up


def _hold_standard_fds() -> None:
    """Open those of 0, 1, 2 that are closed, or a socket of ours would take their places."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


# Everything --------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (None: that of the process); the exit status."""
    _hold_standard_fds()
    try:
        _catch_signals()
        try:
            options = _parser().parse_args(arguments)
            status: int = options.call(options)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except _End as end:
        if end.status == _TIMED_OUT:
            with suppress(_End):  # the timer runs on: a stopped terminal does not stop us
                _say("the command ran longer than its time and was killed")
        _ignore_signals()
        return end.status
    except BrokenPipeError:
        # Nobody reads: end as the signal would have ended us, and let nothing be flushed again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _SIGNALLED + signal.SIGPIPE
    except (ContainerError, OSError) as error:
        _say(str(error))
        return _status_of(error)
    except Exception:
        sys.excepthook(*sys.exc_info())  # a fault of ours, which must not look like a status
        return _OWN_ERROR
    return status


def _say(message: str, kind: str = "error") -> None:
    with suppress(OSError):
        os.write(2, f"container: {kind}: {message}\n".encode(errors="backslashreplace"))


def _status_of(error: Exception) -> int:
    if not isinstance(error, LaunchError) or error.step != "exec":
        return _OWN_ERROR
    # With a hint the file is there: what it names as its interpreter is not.
    absent = error.errno == ENOENT and error.hint is None
    return _NOT_FOUND if absent else _NOT_EXECUTABLE
