# SPDX-License-Identifier: Apache-2.0
"""What one container costs, beside the floor and beside other programs. See README.md.

Every competitor is a resident process that is told to start one container, times that itself
and answers with a line: the microseconds, or "error: ..." with the reason. So all can be
interleaved: each round runs each of them once, in random order.
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAP_BASE = 1879048192 - 2 * 65536
MAP_SIZE = 65536
PAYLOAD = "/bin/true"
TRIGGER = "\n"
CAPABILITY_NAMES = """
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
    SYS_CHROOT KILL AUDIT_WRITE
"""
CAPABILITIES = [f"CAP_{name}" for name in CAPABILITY_NAMES.split()]
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "xterm",
    "LANG": "C.UTF-8",
}
LIBRARY = "container.run"
LIBRARY_COLD = "container.run, nothing made ahead"
LIBRARY_BARE = "container.run, as floor_a"
COUNTED_STARTS = 20  # of the count of system calls: some of the work is done between them
LAUNCHER_NAME = "container-launcher"[:15]  # as the kernel cuts it
FLOOR = "floor_a, resident"
FLOOR_B = "floor_b, resident"
EXPECTED = {LIBRARY: "floor B: <= 1.2", LIBRARY_BARE: "floor: <= 1.5"}


class CompetitorError(Exception):
    """A competitor cannot be timed; the message says why."""


# ---- what is run: programs, root directory, bundle ----


def compile_program(source: str, target: Path, *options: str) -> Path:
    compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
    command = [compiler, "-O2", "-Wall", "-Wextra", *options, "-o", str(target)]
    subprocess.run([*command, str(HERE / source)], check=True)
    return target


def make_root(root: Path) -> None:
    for name in ("bin", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    compile_program("true.c", root / PAYLOAD.lstrip("/"), "-static", "-nostdlib")


def bundle_config(root: Path) -> dict[str, object]:
    """The default container as an OCI config: same namespaces, mounts, rights; no cgroup."""
    mounts = [
        ("/proc", "proc", "nosuid,nodev,noexec"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "nosuid,noexec,mode=755,size=65536k"),
        ("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/dev/shm", "tmpfs", "nosuid,nodev,noexec,mode=1777,size=65536k"),
    ]
    id_map = [{"containerID": 0, "hostID": MAP_BASE, "size": MAP_SIZE}]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root)},
        "hostname": "container",
        "process": {
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": [PAYLOAD],
            "cwd": "/",
            "env": [f"{name}={value}" for name, value in ENVIRONMENT.items()],
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        },
        "mounts": [
            {"destination": target, "type": kind, "source": kind, "options": options.split(",")}
            for target, kind, options in mounts
        ],
        "linux": {
            "namespaces": [
                {"type": kind}
                for kind in ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")
            ],
            "uidMappings": id_map,
            "gidMappings": id_map,
        },
    }


def bwrap_command(root: Path) -> list[str]:
    namespaces = ("user", "ipc", "pid", "net", "uts", "cgroup")
    command = ["bwrap", *(f"--unshare-{name}" for name in namespaces)]
    command += ["--hostname", "container", "--bind", str(root), "/", "--proc", "/proc"]
    command += ["--dev", "/dev", "--perms", "1777", "--size", "67108864", "--tmpfs", "/dev/shm"]
    command += ["--ro-bind", "/sys", "/sys", "--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        command += ["--cap-add", capability]
    command += ["--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    return [*command, "--chdir", "/", "--", PAYLOAD]


def crun_command(directory: Path) -> list[str]:
    state, bundle = str(directory / "state"), str(directory / "bundle")
    command = ["crun", "--root", state, "--cgroup-manager=disabled", "run", "--bundle", bundle]
    return [*command, f"bench-{os.getpid()}"]


# ---- the caller: a Python process of a given size, which starts containers when told ----


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def fill_memory(size: int) -> mmap.mmap | None:
    """Make this process `size` bytes large, in small pages, as a heap of small objects is."""
    missing = size - resident_bytes()
    if missing <= 0:
        return None
    memory = mmap.mmap(-1, missing, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, missing, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def library_starter(root: Path, *, bare: bool = False) -> Callable[[], None]:
    """With every default, or ``bare``: without what floor_a does not do either."""
    try:
        module = importlib.import_module("container")
        run = module.run
    except (ImportError, AttributeError) as error:
        raise CompetitorError(f"absent ({error})") from error

    config = module.Config(seccomp=None, masked_paths=(), readonly_paths=()) if bare else None

    def start() -> None:
        result = run([PAYLOAD], root=root, config=config)
        if result.returncode != 0:
            raise CompetitorError(f"{PAYLOAD} ended with {result.returncode}")

    return start


def program_starter(command: list[str]) -> Callable[[], None]:
    """The command by subprocess, with its output captured as the library does.

    Standard input is an empty pipe, not /dev/null: crun gives its stdio to the container's root
    by fchown, and that would be the host's own device.
    """
    if shutil.which(command[0]) is None:
        raise CompetitorError(f"absent (no {command[0]} in PATH)")

    def start() -> None:
        done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompetitorError(f"fails here, status {done.returncode}: {done.stderr.strip()}")

    return start


UNTIMED: dict[Callable[[], None], Callable[[], None]] = {}
"""What goes before a start and is not timed."""


def cold_library_starter(root: Path) -> Callable[[], None]:
    """As `library_starter`, without the child that the launcher makes in idle moments."""
    start = library_starter(root)
    launcher = importlib.import_module("container._launcher")
    UNTIMED[start] = launcher.drop_blanks
    return start


def starters(directory: Path) -> dict[str, Callable[[], Callable[[], None]]]:
    root = directory / "root"
    return {
        LIBRARY: lambda: library_starter(root),
        LIBRARY_BARE: lambda: library_starter(root, bare=True),
        LIBRARY_COLD: lambda: cold_library_starter(root),
        "bwrap": lambda: program_starter(bwrap_command(root)),
        "crun": lambda: program_starter(crun_command(directory)),
    }


def time_once(start: Callable[[], None]) -> float:
    if start in UNTIMED:
        UNTIMED[start]()
    begin = time.perf_counter_ns()
    start()
    return (time.perf_counter_ns() - begin) / 1000


def serve_caller(starters: dict[str, Callable[[], Callable[[], None]]], mib: int) -> None:
    prepared: dict[str, Callable[[], None] | CompetitorError] = {}
    for name, prepare in starters.items():
        try:
            prepared[name] = prepare()
        except CompetitorError as error:
            prepared[name] = error
    ballast = fill_memory(mib << 20)
    for line in sys.stdin:
        starter = prepared[line.strip()]
        try:
            if isinstance(starter, CompetitorError):
                raise starter
            answer = f"{time_once(starter):.1f}"
        except Exception as error:  # a fault of a competitor must not end the others
            answer = "error: " + " ".join(str(error).split())
        print(answer, flush=True)
    if ballast is not None:
        ballast.close()


# ---- the measuring side ----


@dataclass
class Competitor:
    name: str
    caller: str
    process: subprocess.Popen[str]
    request: str = TRIGGER
    samples: list[float] = field(default_factory=list)
    absent: str | None = None

    def measure(self) -> float:
        """Microseconds of one start; CompetitorError where it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(self.request)
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise CompetitorError(f"ended with {self.process.wait()}, see its message above")
        if answer.startswith("error: "):
            raise CompetitorError(answer.removeprefix("error: "))
        return float(answer)


@contextmanager
def resident(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that answers lines on its standard output until its standard input ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def floor_b_options(directory: Path) -> list[str]:
    """What makes a floor_b of floor_a: the library's lists of paths, and its default profile as
    libseccomp compiles it, with the tree that runc asks it for.
    """
    try:
        filters = importlib.import_module("seccomp").make_filters()
        walls = importlib.import_module("container._walls")
    except (ImportError, OSError) as error:
        raise CompetitorError(f"absent ({error})") from error
    (directory / "filter").write_bytes(filters["libseccomp's tree"])
    options = [word for path in walls.MASKED_PATHS for word in ("--mask", path)]
    options += [word for path in walls.READONLY_PATHS for word in ("--read-only", path)]
    return [*options, "--filter", str(directory / "filter")]


def make_competitors(stack: ExitStack, directory: Path, callers_mib: list[int]) -> list[Competitor]:
    root = directory / "root"
    floor = str(compile_program("floor_a.c", directory / "floor_a"))
    timer = str(compile_program("timer.c", directory / "timer"))
    map_base = ["--map-base", str(MAP_BASE)]

    def native(name: str, command: list[str]) -> Competitor:
        return Competitor(name, "C", stack.enter_context(resident(command)))

    competitors = [
        native(FLOOR, [floor, *map_base, "--serve", str(root), PAYLOAD]),
        native("floor_a, spawned", [timer, floor, *map_base, str(root), PAYLOAD]),
        native("no container: true, spawned", [timer, str(root / PAYLOAD.lstrip("/"))]),
    ]
    try:
        defaults = floor_b_options(directory)
    except CompetitorError as error:
        print(f"{FLOOR_B}: {error}", file=sys.stderr)
    else:
        command = [floor, *map_base, *defaults, "--serve", str(root), PAYLOAD]
        competitors.insert(1, native(FLOOR_B, command))
    for mib in callers_mib:
        command = [sys.executable, str(Path(__file__).resolve())]
        command += ["--caller", str(directory), "--caller-mib", str(mib)]
        process = stack.enter_context(resident(command))
        competitors += [
            Competitor(name, f"Python, {mib} MiB", process, f"{name}\n")
            for name in starters(directory)
        ]
    return competitors


def run_rounds(competitors: list[Competitor], rounds: int, burst: int, warm_up: int = 3) -> None:
    for competitor in competitors:
        try:
            for _ in range(warm_up):
                competitor.measure()
        except CompetitorError as error:
            competitor.absent = str(error)
    present = [competitor for competitor in competitors if competitor.absent is None]
    for _ in range(rounds):
        random.shuffle(present)
        for competitor in present:
            competitor.samples += [competitor.measure() for _ in range(burst)]


# ---- system calls of one start ----


def fd_targets(pid: int) -> Iterator[str]:
    """The pid that each pidfd of a process stands for."""
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        for line in info.read_text().splitlines():
            if line.startswith("Pid:"):
                yield line.split()[1]


def find_launcher(caller: int) -> int:
    """The launcher that watches the caller by a pidfd."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        pid = int(comm.parent.name)
        try:
            named = comm.read_text().strip() == LAUNCHER_NAME
            if named and str(caller) in fd_targets(pid):
                return pid
        except OSError:  # ended meanwhile
            continue
    raise CompetitorError("its launcher was not found")


def count_system_calls(pid: int, start: Callable[[], object], scratch: Path) -> int:
    """System calls of a resident process and its children per start, by strace -c -f."""
    command = ["strace", "-f", "-c", "-o", str(scratch), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        if "attached" not in (said := tracer.stderr.readline()):
            raise CompetitorError(f"strace: {said.strip()}")
        for _ in range(COUNTED_STARTS):
            start()
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
    for line in scratch.read_text().splitlines():
        fields = line.split()
        if fields and fields[-1] == "total":  # % time, seconds, usecs/call, calls, [errors]
            return round(int(fields[3]) / COUNTED_STARTS)
    raise CompetitorError("strace counted nothing")


def system_calls(competitors: list[Competitor], directory: Path) -> dict[str, int | str]:
    counts: dict[str, int | str] = {}
    for competitor in competitors:
        name = competitor.name
        if name not in (FLOOR, LIBRARY) or name in counts:
            continue
        try:
            if shutil.which("strace") is None:
                raise CompetitorError("strace absent")
            if competitor.absent is not None:
                raise CompetitorError(competitor.absent)
            pid = competitor.process.pid
            pid = find_launcher(pid) if name == LIBRARY else pid
            counts[name] = count_system_calls(pid, competitor.measure, directory / "strace")
        except CompetitorError as error:
            counts[name] = str(error)
    return counts


# ---- the report ----


@dataclass(frozen=True)
class Figures:
    """Microseconds, and the median as a multiple of the floor's."""

    median: float
    p10: float
    p99: float
    ratio: float
    ratio_b: float | None  # to floor B, where there is one


@dataclass(frozen=True)
class Row:
    name: str
    caller: str
    figures: Figures | None
    absent: str | None = None


def percentile(ordered: list[float], percent: int) -> float:
    """Nearest rank."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def make_rows(
    competitors: list[Competitor], floor_name: str = FLOOR, floor_b_name: str = FLOOR_B
) -> list[Row]:
    floor = next(one for one in competitors if one.name == floor_name)
    if floor.absent is not None:
        raise SystemExit(f"no floor, no ratios: {floor.absent}")
    unit = statistics.median(floor.samples)
    samples_b = next((one.samples for one in competitors if one.name == floor_b_name), [])
    unit_b = statistics.median(samples_b) if samples_b else None
    rows = []
    for one in competitors:
        figures = None
        if one.samples:
            ordered = sorted(one.samples)
            median = statistics.median(ordered)
            p10, p99 = percentile(ordered, 10), percentile(ordered, 99)
            ratio_b = median / unit_b if unit_b else None
            figures = Figures(median, p10, p99, median / unit, ratio_b)
        rows.append(Row(one.name, one.caller, figures, one.absent))
    return rows


def table_line(row: Row, expected: str) -> str:
    begin = f"| {row.name} | {row.caller} |"
    if row.figures is None:
        return f"{begin} {row.absent} | | | | | {expected} |"
    us = row.figures
    ratio_b = "" if us.ratio_b is None else f"{us.ratio_b:.2f}"
    figures = f"{us.median:.0f} | {us.p10:.0f} | {us.p99:.0f} | {us.ratio:.2f} | {ratio_b}"
    return f"{begin} {figures} | {expected} |"


def print_report(
    rows: list[Row], counts: dict[str, int | str], rounds: int, expected: dict[str, str]
) -> None:
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{rounds} rounds, Linux {platform.release()}, {os.cpu_count()} CPUs, load {load}\n")
    print("| what | caller | median µs | p10 | p99 | x floor | x floor B | expected |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(table_line(row, expected.get(row.name, "")))
    if counts:
        print("\nSystem calls of one start, payload included:")
    for name, count in counts.items():
        print(f"- {name}: {count}")


def write_json(path: Path, rows: list[Row], counts: dict[str, int | str], rounds: int) -> None:
    report = {
        "rounds": rounds,
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "rows": [asdict(row) for row in rows],
        "system_calls": counts,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What one container costs.")
    parser.add_argument("--rounds", type=int, default=200, help="default 200")
    parser.add_argument(
        "--burst",
        type=int,
        default=1,
        help="starts in a row before the next competitor's turn (1: each finds cold caches)",
    )
    parser.add_argument(
        "--caller-mib", type=int, action="append", help="caller's size, repeatable (20, 1024)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--caller", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.caller is not None:
        serve_caller(starters(arguments.caller), arguments.caller_mib[0])
        return
    if os.geteuid() != 0:
        raise SystemExit("run as root: the default container of a root caller is what is timed")
    with tempfile.TemporaryDirectory(prefix="container-bench-") as scratch, ExitStack() as stack:
        directory = Path(scratch)
        directory.chmod(0o755)  # crun walks to the root with the container's ids
        make_root(directory / "root")
        (directory / "bundle").mkdir()
        config = json.dumps(bundle_config(directory / "root"))
        (directory / "bundle" / "config.json").write_text(config)
        competitors = make_competitors(stack, directory, arguments.caller_mib or [20, 1024])
        run_rounds(competitors, arguments.rounds, arguments.burst)
        rows = make_rows(competitors)
        counts = system_calls(competitors, directory)
    print_report(rows, counts, arguments.rounds, EXPECTED)
    if arguments.json is not None:
        write_json(arguments.json, rows, counts, arguments.rounds)


if __name__ == "__main__":
    main()
