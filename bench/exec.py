# SPDX-License-Identifier: Apache-2.0
"""What one more command in a running container costs, beside the floor. See README.md.

As run.py does it: each round runs every competitor once, in random order. A Python process, the
caller, has the container.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

from run import (
    PAYLOAD,
    Competitor,
    CompetitorError,
    bundle_config,
    compile_program,
    make_root,
    make_rows,
    print_report,
    program_starter,
    resident,
    run_rounds,
    serve_caller,
    write_json,
)

HERE = Path(__file__).resolve().parent
PAUSE = "/bin/pause"
FLOOR = "floor_exec, resident"
FLOOR_B = "floor_exec, libseccomp's filter"
LIBRARY = "Container.exec, wait"
EXPECTED = {LIBRARY: "floor: <= 1.1", "crun exec": "Container.exec: >= 10"}


# ---- the caller: a Python process of a given size, which has the containers ----


def library_starter(box: object) -> Callable[[], None]:
    def start() -> None:
        status = box.exec([PAYLOAD]).wait()  # type: ignore[attr-defined]
        if status != 0:
            raise CompetitorError(f"{PAYLOAD} ended with {status}")

    return start


@contextmanager
def crun_container(directory: Path) -> Iterator[Callable[[], None]]:
    """A container of crun's that waits, and what runs the payload in it."""
    config = bundle_config(directory / "root")
    config["process"]["args"] = [PAUSE]  # type: ignore[index]
    bundle = directory / f"bundle-{os.getpid()}"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(config))
    crun = ["crun", "--root", str(directory / "state"), "--cgroup-manager=disabled"]
    name = f"bench-exec-{os.getpid()}"
    # What is left open of its output would be waited for.
    run = ["sh", "-c", 'exec "$@" >"$0" 2>&1', str(bundle / "output"), *crun]
    try:
        try:
            program_starter([*run, "run", "--detach", "--bundle", str(bundle), name])()
        except CompetitorError:
            raise CompetitorError(f"fails here: {(bundle / 'output').read_text()}") from None
        yield program_starter([*crun, "exec", name, PAYLOAD])
    finally:
        delete = [*crun, "delete", "--force", name]
        subprocess.run(delete, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def serve(directory: Path, mib: int) -> None:
    from container import DEVNULL, Config, Container, Process  # noqa: PLC0415
    from container._plan import filter_of  # noqa: PLC0415

    box = Container(Config(root=directory / "root"))
    with ExitStack() as stack:
        stack.enter_context(box)
        box.run(Process([PAUSE], stdin=DEVNULL))
        (directory / "filter").write_bytes(filter_of(box.config).program)
        print(box.pid, flush=True)
        nsenter = ["nsenter", "--target", str(box.pid), "--all", "--", PAYLOAD]
        starters = {
            LIBRARY: lambda: library_starter(box),
            "nsenter": lambda: program_starter(nsenter),
            "crun exec": lambda: stack.enter_context(crun_container(directory)),
        }
        serve_caller(starters, mib)


# ---- the measuring side ----


def floors(stack: ExitStack, directory: Path, pid: str) -> list[Competitor]:
    """floor_exec with the container's own filter, and with what libseccomp makes of the profile."""
    program = str(compile_program("floor_exec.c", directory / "floor_exec"))
    filters = {FLOOR: directory / "filter"}
    try:
        content = import_module("seccomp").make_filters()["libseccomp's tree"]
    except (ImportError, OSError) as error:
        print(f"{FLOOR_B}: absent ({error})", file=sys.stderr)
    else:
        filters[FLOOR_B] = directory / "filter-b"
        filters[FLOOR_B].write_bytes(content)
    competitors = []
    for name, path in filters.items():
        process = resident([program, "--filter", str(path), "--serve", pid, PAYLOAD])
        competitors.append(Competitor(name, "C", stack.enter_context(process)))
    return competitors


def make_competitors(stack: ExitStack, directory: Path, callers_mib: list[int]) -> list[Competitor]:
    competitors: list[Competitor] = []
    for mib in callers_mib:
        command = [sys.executable, str(Path(__file__).resolve())]
        command += ["--caller", str(directory), "--caller-mib", str(mib)]
        process = stack.enter_context(resident(command))
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        if not pid:
            raise SystemExit("no container, see its message above")
        if not competitors:
            competitors += floors(stack, directory, pid)
        competitors += [
            Competitor(name, f"Python, {mib} MiB", process, f"{name}\n")
            for name in (LIBRARY, "nsenter", "crun exec")
        ]
    return competitors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What one more command in a container costs.")
    parser.add_argument("--rounds", type=int, default=200, help="default 200")
    parser.add_argument("--burst", type=int, default=1, help="as for run.py")
    parser.add_argument("--caller-mib", type=int, action="append", help="as for run.py")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--caller", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.caller is not None:
        serve(arguments.caller, arguments.caller_mib[0])
        return
    if os.geteuid() != 0:
        raise SystemExit("run as root, as whom the floor joins a container")
    with tempfile.TemporaryDirectory(prefix="container-bench-") as scratch, ExitStack() as stack:
        directory = Path(scratch)
        directory.chmod(0o755)  # crun walks to the root with the container's ids
        make_root(directory / "root")
        compile_program("pause.c", directory / "root" / PAUSE[1:], "-static", "-nostdlib")
        competitors = make_competitors(stack, directory, arguments.caller_mib or [20, 1024])
        run_rounds(competitors, arguments.rounds, arguments.burst)
        rows = make_rows(competitors, FLOOR, FLOOR_B)
    print_report(rows, {}, arguments.rounds, EXPECTED)
    if arguments.json is not None:
        write_json(arguments.json, rows, {}, arguments.rounds)


if __name__ == "__main__":
    main()
