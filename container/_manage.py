# SPDX-License-Identifier: Apache-2.0
"""The commands of ``container`` that are about detached containers."""

import argparse
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from container._config import SignalConfig, State, parse_duration, parse_signal
from container._container import Container
from container._errors import ContainerError, StateError
from container._logs import LogEntry
from container._prune import prune
from container._state import Entry, StateManager

_HEADINGS = ("ID", "STATE", "PID", "CREATED", "COMMAND")
_WIDEST = 40  # characters of a command in a table
_AGES = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SIGNALLED = 128

Write = Callable[[int, bytes], None]


def add_commands(commands: Any) -> None:
    """To the parsers of the command line."""
    _add(commands, _ps, "list detached containers", ("--all", "--json", "--quiet"))
    _add(commands, _inspect, "print what is known of containers, as JSON", ids="+")
    logs = _add(commands, _logs, "print what a detached container has written", ids=1)
    logs.add_argument("-f", "--follow", action="store_true", help="and what it writes, to its end")
    logs.add_argument("--timestamps", action="store_true", help="with a time before each piece")
    stop = _add(commands, _stop, "ask containers to end, then kill them", ids="+")
    stop.add_argument("--timeout", metavar="S", type=float, help="seconds between (default: 10)")
    kill = _add(commands, _kill, "send containers a signal", ids="+")
    kill.add_argument("-s", "--signal", metavar="SIGNAL", default="KILL", help="(default: KILL)")
    remove = _add(commands, _rm, "remove containers that have ended", ids="+")
    remove.add_argument("-f", "--force", action="store_true", help="running ones too")
    _add(commands, _wait, "wait for a container to end; its status", ids=1)
    _add(commands, _prune, "remove what no container needs any more", ("--json",))


_FLAGS = {
    "--all": "those that have ended too",
    "--json": "print JSON",
    "--quiet": "print ids only",
}


def _add(
    commands: Any,
    call: Callable[[argparse.Namespace], int],
    what: str,
    flags: Sequence[str] = (),
    ids: int | str | None = None,
) -> Any:
    """The command that is called as its function."""
    name = call.__name__[1:]
    sentence = f"{what[0].upper()}{what[1:]}."
    parser = commands.add_parser(name, help=what, description=sentence, allow_abbrev=False)
    parser.set_defaults(call=call)
    for flag in flags:
        parser.add_argument(flag, action="store_true", help=_FLAGS[flag])
    if ids is not None:
        parser.add_argument("id", nargs=ids, metavar="ID")
    return parser


# Looking ----------------------------------------------------------------------------------------


def _ps(options: argparse.Namespace) -> int:
    import json  # noqa: PLC0415  (8 ms)

    entries = [entry for entry in StateManager().entries() if entry.detached]
    if not options.all:
        entries = [each for each in entries if each.is_owned]
    if options.json:
        print(json.dumps([describe(entry) for entry in entries], indent=2))
    elif options.quiet:
        print("".join(f"{entry.state.id}\n" for entry in entries), end="")
    else:
        print(format_table(entries, datetime.now(UTC)), end="")
    return 0


def describe(entry: Entry) -> dict[str, Any]:
    """All that is known, for JSON."""
    import json  # noqa: PLC0415  (8 ms)

    kept = {name: value for name, value in entry.detached.items() if name != "place"}
    return {**json.loads(entry.state.to_json()), **kept, "state": _state(entry)}


def _state(entry: Entry) -> str:
    """As people call it: one that waits to be started again is alive without a process."""
    restarts = entry.state.state == State.STOPPED and entry.state.exit_code is None
    return "restarting" if restarts and entry.is_owned else str(entry.state.state)


def format_table(entries: Sequence[Entry], now: datetime) -> str:
    """Lines of columns, each as wide as it has to be."""
    rows = [_HEADINGS, *(_row(entry, now) for entry in entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _row(entry: Entry, now: datetime) -> tuple[str, ...]:
    state, command = entry.state, entry.detached.get("command")
    words = command if isinstance(command, list) else []
    text = ascii(" ".join(map(str, words)))[1:-1]
    text = text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
    shown = _state(entry)
    if state.exit_code is not None:
        shown += f" ({state.exit_code})"
    return (state.id, shown, str(state.pid or "-"), _age(now, state.created_at), text)


def _age(now: datetime, then: datetime) -> str:
    seconds = max(0, int((now - then).total_seconds()))
    for unit, size in _AGES:
        if seconds >= 2 * size or unit == "s":
            return f"{seconds // size}{unit} ago"
    return ""


def _inspect(options: argparse.Namespace) -> int:
    import json  # noqa: PLC0415  (8 ms)

    manager = StateManager()
    print(json.dumps([describe(manager.load(id)) for id in options.id], indent=2))
    return 0


def _logs(options: argparse.Namespace) -> int:
    # Not the terminal's to interpret: bytes are what they were.
    with Container.open(options.id[0]) as box:
        for entry in box.log_entries(follow=options.follow):
            _show(entry, options.timestamps)
    return 0


def _show(entry: LogEntry, timestamps: bool) -> None:
    number = 1 if entry.stream == "stdout" else 2
    data = entry.data
    if entry.dropped:
        note = f"container: {entry.dropped} bytes are not in the log\n"
        _write(2, note.encode())
    if timestamps:
        data = entry.time.isoformat(timespec="milliseconds").encode() + b" " + data
    _write(number, data)


def _write(number: int, data: bytes) -> None:
    while data:
        data = data[os.write(number, data) :]


# Ending -----------------------------------------------------------------------------------------


def _for_each(ids: Sequence[str], act: Callable[[Container], object]) -> int:
    """All of them, whatever becomes of one; the first error is the one to tell."""
    errors = []
    for id in ids:
        try:
            with Container.open(id) as box:
                act(box)
            print(id)
        except ContainerError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return 0


def _stop(options: argparse.Namespace) -> int:
    config = SignalConfig()
    if options.timeout is not None:
        config = SignalConfig(stop_timeout=parse_duration(options.timeout, "--timeout"))
    return _for_each(options.id, lambda box: box.stop(config))


def _kill(options: argparse.Namespace) -> int:
    number = _signal(options.signal)

    def act(box: Container) -> None:
        if number == signal.SIGKILL:
            box.stop(SignalConfig(stop_signal=number))
        else:
            box.signal(number)

    return _for_each(options.id, act)


def _signal(text: str) -> int:
    name = f"SIG{text.upper().removeprefix('SIG')}"
    if name in signal.Signals.__members__:
        return signal.Signals[name]
    return parse_signal(int(text) if text.isdecimal() else text, "--signal")  # type: ignore[arg-type]


def _rm(options: argparse.Namespace) -> int:
    def act(box: Container) -> None:
        if not options.force and box.state.state != State.STOPPED:
            raise StateError(f"container {box.id} is {box.state.state}: stop it first, or rm -f")
        box.destroy()

    return _for_each(options.id, act)


def _wait(options: argparse.Namespace) -> int:
    with Container.open(options.id[0]) as box:
        status = box.wait()
    return status if status >= 0 else _SIGNALLED - status


def _prune(options: argparse.Namespace) -> int:
    import json  # noqa: PLC0415  (8 ms)

    pruned = prune()
    if options.json:
        print(json.dumps(asdict(pruned)))
    else:
        removed = dict.fromkeys((*pruned.containers, *pruned.cgroups, *pruned.networks))
        print("".join(f"{each}\n" for each in removed), end="")
    return 0
