# SPDX-License-Identifier: Apache-2.0
"""The program around: what it does goes on as if we were not there, and its end is ours."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from system.helpers import (
    PATIENCE,
    PROMISED_SECONDS,
    caller,
    caller_argv,
    host_mounts,
    is_readable,
    processes_in,
    running_caller,
    told,
    wait_until,
    watched,
)

import container

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]


# Children of the program's own --------------------------------------------------------------------


def test_the_launcher_is_no_child_of_the_program() -> None:
    told_of = caller(
        """
        run(["true"])
        try:
            os.wait()
        except ChildProcessError:
            tell("no child")
        tell(descendants_of(os.getpid()))
        """
    )
    assert told_of == ["no child", []]


def test_wait_gets_the_programs_own_children_and_no_others() -> None:
    told_of = caller(
        """
        run(["true"])
        own = {os.fork() or os._exit(7) for _ in range(3)}
        run(["true"])
        tell(sorted(own) == sorted(os.wait()[0] for _ in own))
        """
    )
    assert told_of == [True]


def test_a_handler_of_sigchld_hears_nothing_of_containers() -> None:
    told_of = caller(
        """
        heard = []
        signal.signal(signal.SIGCHLD, lambda number, frame: heard.append(number))
        for _ in range(3):
            run(["true"])
        kill_launcher()
        run(["true"])
        tell(len(heard))
        subprocess.run(["true"])
        tell(len(heard))
        """
    )
    assert told_of == [0, 1]


def test_statuses_are_right_where_the_program_ignores_sigchld() -> None:
    told_of = caller(
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        tell(run(["sh", "-c", "(exit 4); exit $?"]).returncode)
        """
    )
    assert told_of == [4]


def test_subprocess_and_containers_do_not_mix_up_their_statuses() -> None:
    told_of = caller(
        """
        from concurrent.futures import ThreadPoolExecutor
        def own(n):
            return subprocess.run(["sh", "-c", f"exit {n}"]).returncode == n
        def contained(n):
            return run(["sh", "-c", f"exit {n}"]).returncode == n
        with ThreadPoolExecutor(4) as pool:
            both = [pool.submit(kind, n) for n in range(40) for kind in (own, contained)]
            tell(all(each.result() for each in both))
        """
    )
    assert told_of == [True]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_runs_containers_in_its_workers(method: str) -> None:
    told_of = caller(
        f"""
        import multiprocessing
        run(["true"])
        context = multiprocessing.get_context({method!r})
        with context.Pool(2) as pool:
            results = pool.map(run, [["echo", str(n)] for n in range(6)])
            pool.close()
            pool.join()
        tell([result.stdout.decode() for result in results])
        tell(run(["echo", "parent"], text=True).stdout)
        """
    )
    assert told_of == [[f"{n}\n" for n in range(6)], "parent\n"]


def test_a_subreaper_keeps_no_zombie_of_a_launcher() -> None:
    # As is every PID 1 of a container that has Python for its program.
    told_of = caller(
        """
        PR_SET_CHILD_SUBREAPER = 36
        check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        run(["true"])
        first = launcher_pid()
        kill_launcher()
        run(["true"])
        # The new one is a child too; its own children are not.
        deadline = time.monotonic() + 5
        def children():
            with open("/proc/self/task/%d/children" % os.getpid()) as file:
                return [int(pid) for pid in file.read().split()]
        while children() != [launcher_pid()] and time.monotonic() < deadline:
            time.sleep(0.005)
        tell([first in children(), children() == [launcher_pid()]])
        """
    )
    assert told_of == [[False, True]]


# fork ---------------------------------------------------------------------------------------------


def test_a_fork_has_a_launcher_of_its_own() -> None:
    told_of = caller(
        """
        run(["true"])
        parents = launcher_pid()
        pid = os.fork()
        if pid == 0:
            tell(run(["echo", "child"], text=True).stdout)
            tell(launcher_pid() == parents)
            sys.exit(0)
        tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        tell(run(["echo", "parent"], text=True).stdout)
        tell(launcher_pid() == parents)
        """
    )
    assert told_of == ["child\n", False, 0, "parent\n", True]


def test_a_fork_cannot_use_nor_end_the_containers_of_its_parent() -> None:
    told_of = caller(
        """
        box = Container()
        box.run(Process(["cat"], stdin=PIPE, stdout=PIPE))
        pid = os.fork()
        if pid == 0:
            for use in (box.wait, box.stop, box.start, lambda: box.signal(9)):
                try:
                    use()
                except StateError:
                    pass
                else:
                    tell("used")
            box.destroy()
            os._exit(0)
        tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        with box:
            box.stdin.write(b"still here\\n")
            box.stdin.close()
            tell(box.stdout.read().decode())
            tell(box.wait())
        """
    )
    assert told_of == [0, "still here\n", 0]


def test_a_fork_that_polls_a_command_takes_nothing_from_its_parent() -> None:
    told_of = caller(
        """
        process = popen(["sh", "-c", "exit 3"], stdout=1, stderr=2)
        select.select([process.pidfd], [], [])
        pid = os.fork()
        if pid == 0:
            try:
                process.poll()
            except StateError:
                pass
            os._exit(0)
        os.waitpid(pid, 0)
        tell(process.wait())
        """
    )
    assert told_of == [3]


def test_the_end_of_a_container_is_seen_though_a_fork_has_copies_of_its_files() -> None:
    told_of = caller(
        """
        process = popen(["cat"], stdin=PIPE)
        pid = os.fork()
        if pid == 0:
            signal.pause()
        # cat does not see the end of its input, nor communicate() that of the output.
        process.kill()
        tell(process.communicate()[0].decode())
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        """
    )
    assert told_of == [""]


# Odd programs -------------------------------------------------------------------------------------


def test_a_program_without_standard_streams_runs_containers() -> None:
    told_of = caller(
        """
        keep = os.dup(1)
        os.closerange(0, 3)
        result = run(["sh", "-c", "cat; echo out; echo err >&2"], input=b"in ")
        os.dup2(keep, 1)
        os.dup2(keep, 2)
        tell([result.returncode, result.stdout.decode(), result.stderr.decode()])
        """
    )
    assert told_of == [[0, "in out\n", "err\n"]]


CLOSE_EVERYTHING = """
run(["true"])
os.closerange(3, 1024)
"""


def test_a_program_that_closes_every_file_goes_on() -> None:
    told_of = caller(
        CLOSE_EVERYTHING
        + """
tell(run(["echo", "again"], text=True).stdout)
"""
    )
    assert told_of == ["again\n"]


@pytest.mark.parametrize("then", ["fork", "run", "exit"])
def test_files_that_took_the_numbers_of_ours_stay_open(then: str) -> None:
    told_of = caller(
        CLOSE_EVERYTHING
        + f"""
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
def look():
    tell(sum(os.path.exists(f"/proc/self/fd/{{each}}") for each in files))
if {then!r} == "fork":
    pid = os.fork()
    if pid == 0:
        look()
        os._exit(0)
    os.waitpid(pid, 0)
elif {then!r} == "run":
    run(["true"])
    look()
else:
    import atexit
    # What is registered later is called earlier: have ours called before.
    atexit.unregister(_launcher._end_with_interpreter)
    atexit.register(look)
    atexit.register(_launcher._end_with_interpreter)
"""
    )
    assert told_of == [20]


def test_a_fork_after_every_file_was_closed_says_nothing() -> None:
    told_of = caller(
        CLOSE_EVERYTHING
        + """
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
tell("quiet")
"""
    )
    assert told_of == ["quiet"]


def test_a_shared_namespace_is_that_of_the_caller_now() -> None:
    # Whoever leaves the host's network wants no program of its own back in there.
    told_of = caller(
        """
        CLONE_NEWUSER, CLONE_NEWUTS = 0x10000000, 0x04000000
        run(["true"])
        if os.geteuid() == 0:
            check(libc.unshare(CLONE_NEWUTS))
        else:
            check(libc.unshare(CLONE_NEWUSER | CLONE_NEWUTS))
        config = Config(namespaces=Namespaces(uts=False))
        try:
            tell(run(["readlink", "/proc/self/ns/uts"], config=config, text=True).stdout.strip())
        except ContainerError:
            tell(os.readlink("/proc/self/ns/uts"))  # to refuse is as good
        tell(os.readlink("/proc/self/ns/uts"))
        """
    )
    assert told_of[0] == told_of[1]


# Ctrl-C -------------------------------------------------------------------------------------------

CTRL_C = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have left it ignored
run(["true"])
idle = descendants_of(launcher_pid())
for round in range(3):
    launcher = launcher_pid()
    try:
        run(["sh", "-c", "(setsid sleep 1000 &) ; echo up; sleep 1000"], stdout=1)
    except KeyboardInterrupt:
        deadline = time.monotonic() + 5
        while descendants_of(launcher) != idle and time.monotonic() < deadline:
            time.sleep(0.005)
        tell([launcher_pid() == launcher, descendants_of(launcher) == idle])
tell(run(["echo", "again"], text=True).stdout)
"""


def test_ctrl_c_ends_the_container_and_leaves_the_launcher() -> None:
    with running_caller(CTRL_C) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "up\n"
            process.send_signal(signal.SIGINT)
            assert told(process) == [True, True]
        assert told(process) == "again\n"
        assert process.wait(PATIENCE) == 0


def test_ctrl_c_at_any_moment_of_a_run_leaves_nothing() -> None:
    # As Ctrl-C, but at a chosen moment: run() takes some milliseconds.
    told_of = caller(
        """
        def interrupt(number, frame):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        run(["true"])
        interrupted, launcher = 0, launcher_pid()
        idle = descendants_of(launcher)
        for moment in range(1, 81):
            try:
                signal.setitimer(signal.ITIMER_REAL, moment * 0.00015)
                for _ in range(50):
                    run(["true"])
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        deadline = time.monotonic() + 5
        while descendants_of(launcher) != idle and time.monotonic() < deadline:
            time.sleep(0.005)
        tell([interrupted > 70, descendants_of(launcher) == idle])
        tell([run(["true"]).returncode, launcher_pid() == launcher])
        """,
        strict=False,
        may_complain=True,  # that an exception in a finalizer is ignored
    )
    assert told_of == [[True, True], [0, True]]


# The end of the program ---------------------------------------------------------------------------

THREE_CONTAINERS = """
boxes = [Container(), Container()]
boxes[0].run(Process(["sleep", "1000"]))
boxes[1].create(Process(["sleep", "1000"]))
process = popen(["sh", "-c", "(setsid sleep 1000 &) ; echo up; sleep 1000"])
process.stdout.readline()
tell([boxes[0].pid, boxes[1].pid, process.pid, launcher_pid()])
sys.stdin.readline()
"""

WAYS_TO_END = {
    "its last line": "",
    "sys.exit": "sys.exit(3)",
    "an error": "raise SystemExit('an error')",
    "its last line with a thread in run()": """
go = threading.Event()
threading.Thread(target=lambda: (go.set(), run(["sleep", "1000"])), daemon=True).start()
go.wait()
""",
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_the_end_of_the_interpreter_is_the_end_of_its_containers(way: str) -> None:
    with running_caller(f"{THREE_CONTAINERS}\n{WAYS_TO_END[way]}", strict=False) as process:
        pids = told(process)
        with watched(pids) as survivors:
            output, errors = process.communicate("\n", timeout=PATIENCE)
            # It has waited for them.
            assert survivors(0) == []
    assert output == ""
    # No traceback, nothing: to leave containers to the end is a way to use this.
    assert errors == ("an error\n" if way == "an error" else "")


@pytest.mark.parametrize("turn", range(6))
def test_threads_in_run_do_not_hold_up_the_end_of_the_interpreter(turn: int) -> None:
    source = f"""
    go = threading.Barrier(5)
    def contain():
        go.wait()
        while True:
            run(["sleep", "0.00{turn}"])
    for _ in range(4):
        threading.Thread(target=contain, daemon=True).start()
    go.wait()
    {"run(['true'])" if turn % 2 else ""}
    print(time.monotonic())
    """
    with running_caller(source, strict=False) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    assert time.monotonic() - float(output) < 3


TWENTY_CONTAINERS = """
boxes = [Container() for _ in range(20)]
for number, box in enumerate(boxes):
    if number % 4 == 0:
        box.create(Process(["sleep", "1000"]))
        continue
    box.run(Process(["sh", "-c", "(setsid sleep 1000 &) ; echo up; sleep 1000"], stdout=PIPE))
    box.stdout.readline()

def go_on():
    while True:
        run(["true"])

# And some that are just being started.
for _ in range(4):
    threading.Thread(target=go_on, daemon=True).start()
tell([launcher_pid(), *(box.pid for box in boxes)])
"""


@pytest.fixture
def twenty_containers() -> Iterator[tuple[int, int, list[int], list[str]]]:
    """A caller, its launcher, the first processes, and the pid namespaces of those that run."""
    before = host_mounts()
    with running_caller(TWENTY_CONTAINERS + "sys.stdin.readline()") as process:
        launcher, *pids = told(process)
        # Of those that are only created, the kernel does not tell an ordinary user.
        running = [pid for number, pid in enumerate(pids) if number % 4]
        namespaces = [os.readlink(f"/proc/{pid}/ns/pid") for pid in running]
        assert sum(len(processes_in(namespace)) for namespace in namespaces) >= 15 * 3
        yield process.pid, launcher, pids, namespaces
    assert host_mounts() == before


def test_nothing_outlives_a_caller_that_was_killed(
    twenty_containers: tuple[int, int, list[int], list[str]],
) -> None:
    caller_pid, launcher, pids, namespaces = twenty_containers
    with watched([launcher, *pids]) as survivors:
        os.kill(caller_pid, signal.SIGKILL)
        assert survivors(PROMISED_SECONDS) == []
    assert [processes_in(namespace) for namespace in namespaces] == [[]] * 15


def test_nothing_outlives_a_launcher_that_was_killed(
    twenty_containers: tuple[int, int, list[int], list[str]],
) -> None:
    _, launcher, pids, namespaces = twenty_containers
    with watched([launcher, *pids]) as survivors:
        os.kill(launcher, signal.SIGKILL)
        assert survivors(PROMISED_SECONDS) == []
    assert [processes_in(namespace) for namespace in namespaces] == [[]] * 15


FIRST_PROCESSES = {
    "as it was started": 'Process(["sleep", "1000"])',
    "as another user": 'Process(["sleep", "1000"], user=1000)',
    "that changed its user": (
        'Process(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sleep", "1000"])'
    ),
    "that gave up its death signal": (
        'Process(["setpriv", "--pdeathsig", "clear", "sleep", "1000"])'
    ),
}


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", FIRST_PROCESSES)
@pytest.mark.parametrize("victim", ["caller", "launcher"])
def test_no_first_process_outlives(victim: str, kind: str) -> None:
    source = f"""
    box = Container()
    box.run({FIRST_PROCESSES[kind]})
    tell([os.getpid(), launcher_pid(), box.pid])
    sys.stdin.readline()
    """
    with running_caller(source) as process:
        caller_pid, launcher, pid = told(process)
        name = Path(f"/proc/{pid}/comm")
        assert wait_until(lambda: name.read_text() == "sleep\n")
        with watched([pid]) as survivors:
            os.kill(caller_pid if victim == "caller" else launcher, signal.SIGKILL)
            try:
                assert survivors(PROMISED_SECONDS) == []
            finally:
                for each in survivors(0):
                    os.kill(each, signal.SIGKILL)


def test_the_death_of_the_launcher_is_told_and_another_takes_over() -> None:
    told_of = caller(
        """
        box = Container()
        box.run(Process(["sleep", "1000"]))
        process = popen(["sleep", "1000"])
        first = launcher_pid()
        kill_launcher()
        for wait in (box.wait, process.wait, process.communicate):
            try:
                wait()
            except StateError as error:
                tell("launcher died" in str(error))
        tell(str(box.state.state))
        tell(run(["echo", "again"], text=True).stdout)
        tell(launcher_pid() != first)
        box.destroy()
        """
    )
    assert told_of == [True, True, True, "stopped", "again\n", True]


def test_starts_go_on_while_launchers_are_killed() -> None:
    results, kills = caller(
        """
        from concurrent.futures import ThreadPoolExecutor
        def once(number):
            try:
                return run(["echo", str(number)]).stdout == b"%d\\n" % number
            except (StateError, LaunchError) as error:
                return "launcher" in str(error) or str(error)
        with ThreadPoolExecutor(5) as pool:
            runs = [pool.submit(once, number) for number in range(100)]
            kills = 0
            while kills < 15 and not all(each.done() for each in runs):
                try:
                    kill_launcher()
                    kills += 1
                except ProcessLookupError:  # the last one still: no start has found it dead yet
                    time.sleep(0.001)
            tell([each.result() for each in runs])
        tell(kills)
        """
    )
    assert set(results) == {True}
    assert kills > 1


# A big program ------------------------------------------------------------------------------------

BIG_PROGRAM = """
import gc
import numpy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

KINDS = sorted(os.listdir("/proc/self/ns"))
memory = numpy.ones(500 << 20, dtype=numpy.uint8)
numpy.ones((200, 200)) @ numpy.ones((200, 200))  # its threads

def kinds(pid):
    found = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[os.readlink(f"/proc/{pid}/fd/{name}").split(":")[0]] += 1
        except FileNotFoundError:
            pass  # the listing's own
    return found

def stock():
    launcher = launcher_pid()
    mine = os.geteuid() == 0  # a launcher's files are nobody else's business
    with open("/proc/self/mountinfo") as file:
        mounts = sorted(file)
    return {
        "files": kinds("self"),
        "launcher": kinds(launcher) if mine else None,
        "processes": [descendants_of(os.getpid()), descendants_of(launcher)],
        "threads": len(os.listdir("/proc/self/task")),
        "mounts": mounts,
        "namespaces": [os.readlink(f"/proc/self/ns/{name}") for name in KINDS],
    }

def once(number):
    data = b"%d" % number
    result = run(["sh", "-c", "cat; echo err >&2; exit $1", "sh", str(number)], input=data)
    return (result.returncode, result.stdout, result.stderr) == (number, data, b"err\\n")

together = threading.Barrier(8)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: together.wait(), range(8)))  # or it would have fewer threads yet
    list(pool.map(once, range(8)))
    # The launcher closes its files of a container just after it has told the end of it.
    deadline = time.monotonic() + 5
    while os.geteuid() == 0 and kinds(launcher_pid())["socket"] > 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    before = stock()
    tell(sum(pool.map(once, range(200))))
    deadline = time.monotonic() + 5
    while (after := stock()) != before and time.monotonic() < deadline:
        time.sleep(0.005)
    tell({name: repr(after[name]) for name in before if after[name] != before[name]})
"""


def test_200_runs_of_8_threads_of_a_big_program_are_right_and_leave_nothing() -> None:
    if find_spec("numpy") is None:  # an import would leave its threads here
        pytest.skip("numpy is not installed")
    assert caller(BIG_PROGRAM, timeout=50) == [200, {}]


def test_the_first_start_may_come_from_many_threads_at_once() -> None:
    told_of = caller(
        """
        from concurrent.futures import ThreadPoolExecutor
        go = threading.Barrier(8)
        def first(n):
            go.wait()
            return run(["echo", str(n)], text=True).stdout, launcher_pid()
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(first, range(8)))
        tell([[out for out, _ in results], len({pid for _, pid in results})])
        """
    )
    assert told_of == [[[f"{n}\n" for n in range(8)], 1]]


def test_runs_of_one_thread_do_not_wait_for_those_of_another() -> None:
    with container.popen(["cat"], stdin=-1) as slow, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slow.wait, PATIENCE)
        assert container.run(["echo", "quick"]).stdout == b"quick\n"
        assert not waiting.done()
        assert slow.stdin is not None
        slow.stdin.close()
        assert waiting.result(PATIENCE) == 0


def test_the_helpers_complain_of_a_caller_that_fails() -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        caller("1 / 0")
    assert caller_argv("")[0] == sys.executable
    assert json.loads(json.dumps(caller("tell(1); tell([2])"))) == [1, [2]]
    read, write = os.pipe()
    with open(read), open(write, "w") as file:
        assert not is_readable(read)
        threading.Thread(target=file.close).start()
        assert is_readable(read, PATIENCE)
