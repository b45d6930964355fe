# SPDX-License-Identifier: Apache-2.0
"""Containers in asyncio: results, streams, ends of every kind, many at once, other loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import os
import resource
import select
import signal
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from system.helpers import (
    PATIENCE,
    caller,
    parse_status,
    processes_in,
    running_caller,
    told,
    wait_until,
)

import container
from container import (
    PIPE,
    STDOUT,
    CommandError,
    ConfigError,
    ContainerTimeoutError,
    ExecConfig,
    LaunchError,
    Process,
    SignalConfig,
    State,
    StateError,
    aio,
)
from container._launcher import launcher_pid

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

FOREVER = ["sleep", "1000"]
BACKGROUND = "sleep 1000 & echo ok"


def uvloop_run(main: Any) -> Any:
    # Not on top: a loop of the machine's own is enough for most of these.
    uvloop = pytest.importorskip("uvloop")
    return uvloop.run(within_patience(main))


async def within_patience(main: Awaitable[Any]) -> Any:
    """The signal of pytest-timeout does not end a loop of libuv."""
    async with asyncio.timeout(PATIENCE * 2.5):
        return await main


@pytest.fixture(scope="module", autouse=True)
def library_pipes() -> None:
    """libuv makes itself a pipe once and for ever: no leak of the first test's."""

    async def nothing() -> None:
        pass

    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop").run(nothing())


@pytest.fixture(params=[asyncio.run, uvloop_run], ids=["asyncio", "uvloop"])
def go(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine to its end on a loop of its own."""
    run: Callable[[Awaitable[Any]], Any] = request.param
    return run


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as this process may have: four for each container."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (old[1], old[1]))
    if old[1] < 5000:
        pytest.skip("RLIMIT_NOFILE")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, old)


def is_gone(pid: int | None) -> bool:
    return not os.path.exists(f"/proc/{pid}")


Go = Callable[[Any], Any]


# One command --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "popen"])
def test_the_parameters_are_those_of_the_twin(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(each, name)) for each in (aio, container))
    assert list(ours.parameters) == list(theirs.parameters)
    for each in ours.parameters.values():
        assert each.default == theirs.parameters[each.name].default
        assert each.kind == theirs.parameters[each.name].kind
    assert inspect.iscoroutinefunction(getattr(aio, name))


LIFE = {"create", "start", "run", "wait", "exec", "stop", "destroy"}
FILES = {"pause", "resume", "update", "copy_in", "copy_out", "open_file"}
AWAITED = {"Container": LIFE | FILES, "ExecProcess": {"wait", "communicate"}}
INTERNAL = {"child", "end_after"}  # of ExecProcess
DETACHED = {"open", "logs", "log_entries"}  # and run(detach=True): without a twin, which it says


@pytest.mark.parametrize("name", ["Container", "ExecProcess"])
def test_a_class_has_what_its_twin_has_and_says_what_is_awaited(name: str) -> None:
    ours, theirs = getattr(aio, name), getattr(container, name)
    names = {each for each in vars(theirs) if not each.startswith("_")} - INTERNAL - DETACHED
    assert names <= set(dir(ours))
    assert aio.__doc__
    for each in names:
        left, right = getattr(ours, each), getattr(theirs, each)
        awaited = each in AWAITED[name]
        assert inspect.iscoroutinefunction(left) == awaited
        assert not awaited or f"``{each}``" in aio.__doc__.partition("is done at once")[0]
        if callable(left):
            parameters = [list(inspect.signature(one).parameters) for one in (left, right)]
            if each == "run":
                del parameters[1][len(parameters[0]) :]
            assert parameters[0] == parameters[1]
            assert left.__doc__


def test_a_result_is_that_of_run(go: Go) -> None:
    async def main() -> None:
        result = await aio.run(["sh", "-c", "cat; echo error >&2; exit 3"], input=b"x" * 300_000)
        assert (result.returncode, len(result.stdout), result.stderr) == (3, 300_000, b"error\n")
        text = await aio.run(["sh", "-c", "echo grün"], text=True, stderr=STDOUT)
        assert (text.stdout, text.stderr) == ("grün\n", None)
        cut = await aio.run(["seq", "100000"], max_output=10)
        assert (cut.stdout, cut.stdout_dropped) == (b"1\n2\n3\n4\n5\n", 588895 - 10)
        shown = await aio.run(["sh", "-c", "tty; exit 7"], tty=True)
        assert (shown.returncode, shown.stdout) == (7, b"/dev/pts/0\r\n")

    go(main())


def test_errors_are_those_of_run(go: Go) -> None:
    async def main() -> None:
        with pytest.raises(CommandError) as caught:
            await aio.run(["sh", "-c", "echo x; exit 3"], check=True)
        assert caught.value.result.stdout == b"x\n"
        for start in (aio.run, aio.popen):
            with pytest.raises(FileNotFoundError) as absent:
                await start(["no-such-program"])
            assert isinstance(absent.value, LaunchError)
        with pytest.raises(ConfigError, match="args"):
            await aio.run([])
        with pytest.raises(ContainerTimeoutError) as late:
            await aio.run(["sh", "-c", f"{BACKGROUND}; exec sleep 1000"], timeout=0.5)
        assert late.value.result is not None
        assert (late.value.result.stdout, late.value.result.timed_out) == (b"ok\n", True)

    go(main())


def test_a_process_left_behind_does_not_hold_up_its_reader(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            process = await box.exec(["sh", "-c", BACKGROUND])
            assert await process.communicate() == (b"ok\n", b"")
            process = await box.exec(["sh", "-c", BACKGROUND])
            assert process.stdout is not None
            assert await process.stdout.read() == b"ok\n"
            assert await process.wait() == 0

    go(main())


# Streams ------------------------------------------------------------------------------------------


def test_streams_are_readers_and_writers(go: Go) -> None:
    async def main() -> None:
        async with await aio.popen(["cat"], stdin=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(3):
                process.stdin.write(b"%d\n" % number)
                await process.stdin.drain()
                assert await process.stdout.readline() == b"%d\n" % number
            process.stdin.close()
            assert await process.stdout.read() == b""
        assert process.returncode == 0
        async with await aio.popen(["seq", "3"]) as process:
            lines = [line async for line in process]
        assert lines == [b"1\n", b"2\n", b"3\n"]

    go(main())


def test_output_that_nobody_reads_yet_is_not_taken_in_and_not_lost(go: Go) -> None:
    async def main() -> None:
        process = await aio.popen(["head", "-c", "3000000", "/dev/zero"])
        assert process.stdout is not None
        assert len(await process.stdout.readexactly(1)) == 1
        assert not await process._watch.until(process._watch.is_over, 0.1)  # the pipe is full
        assert len(process.stdout._buffer) < 500_000  # type: ignore[attr-defined]
        assert len(await process.stdout.read()) == 2_999_999
        assert await process.wait() == 0
        done = await aio.popen(["head", "-c", "60000", "/dev/zero"])
        assert await done.wait() == 0
        assert done.stdout is not None
        assert len(await done.stdout.read()) == 60000

    go(main())


def test_a_terminal_is_resized_and_read(go: Go) -> None:
    async def main() -> None:
        script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
        async with await aio.popen(["sh", "-c", script], tty=True, tty_size=(11, 22)) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"11 22\r\n"
            process.resize(33, 44)
            assert await process.stdout.readline() == b"33 44\r\n"
            process.kill()
        process = await aio.popen(["tr", "a-z", "A-Z"], tty=True)
        shown, _ = await process.communicate(b"typed\n")
        assert bytes(filter(b"TYPED".count, shown)) == b"TYPED"  # beside its echo

    go(main())


def test_what_was_read_before_is_part_of_the_whole_and_holds_nothing_up(go: Go) -> None:
    async def main() -> None:
        process = await aio.popen(["sh", "-c", "echo first; exec head -c 3000000 /dev/zero"])
        assert process.stdout is not None
        assert await process.stdout.readline() == b"first\n"
        output, errors = await process.communicate()
        assert (len(output), errors) == (3_000_000, b"")
        assert await process.stdout.read() == b""

    go(main())


def test_a_writer_waits_for_a_slow_reader_and_not_for_one_that_is_gone(go: Go) -> None:
    async def main() -> None:
        script = "read line; head -c 2000000 | wc -c"
        async with await aio.popen(["sh", "-c", script], stdin=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(bytes(1_000_000))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.stdin.drain(), 0.05)
            assert process.stdin.transport.get_write_buffer_size() > 0
            for _ in range(3):
                process.stdin.write(b"\n" + bytes(500_000))
            await process.stdin.drain()
            process.stdin.close()
            assert int(await process.stdout.read()) == 1_500_002
            await process.stdin.wait_closed()
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            # Nobody reads, but the end for reading is held by what outlives the command.
            process = await box.exec(
                ExecConfig(["sh", "-c", "exec 3<&0; sleep 1000 & sleep 0.2"], stdin=PIPE)
            )
            async with process:
                assert process.stdin is not None
                process.stdin.write(bytes(1_000_000))
                with pytest.raises(ConnectionError):
                    await process.stdin.drain()
            assert process.returncode == 0

    go(main())


# The long form ------------------------------------------------------------------------------------


def test_a_container_lives_as_its_twin(go: Go) -> None:
    async def main() -> None:
        box = aio.Container(id="job-7")
        with pytest.raises(StateError):
            await box.wait()
        async with box:
            await box.create(
                Process(
                    ["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"],
                    stdout=PIPE,
                )
            )
            assert (box.id, box.state.state, box.exit_code) == ("job-7", State.CREATED, None)
            with pytest.raises(StateError):
                await box.wait()
            await box.start()
            assert box.stdout is not None
            assert await box.stdout.readline() == b"up\n"
            assert box.state.state == State.RUNNING
            with pytest.raises(ContainerTimeoutError):
                await box.wait(timeout=0.05)
            with pytest.raises(StateError):
                await box.run(Process(["true"]))
            assert await box.stop() == 5
            assert await box.wait() == 5
            with pytest.raises(StateError):
                await box.exec(["true"])
        async with aio.Container() as other:
            await other.run(Process(FOREVER))
            pid = other.pid
            assert await other.stop(SignalConfig(stop_timeout=0)) == -9
        assert is_gone(pid)

    go(main())  # fmt: skip


def test_a_start_that_fails_is_told_and_leaves_nothing(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            with pytest.raises(FileNotFoundError):
                await box.run(Process(["no-such-program"]))
        async with aio.Container() as box:
            await box.create(Process(["no-such-program"]))
            with pytest.raises(FileNotFoundError):
                await box.start()
            assert box.state.state == State.STOPPED
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            with pytest.raises(FileNotFoundError):
                await box.exec(["no-such-program"])
            with pytest.raises(ContainerTimeoutError):
                await (await box.exec(ExecConfig(FOREVER, timeout=0.2))).wait()
            assert box.state.state == State.RUNNING

    go(main())


def test_a_report_that_something_else_takes_in_is_not_lost(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            await box.create(Process(FOREVER))
            start = asyncio.ensure_future(box.start())
            await asyncio.sleep(0)
            assert box._watch is not None
            assert select.select([box._watch.child.channel], [], [], PATIENCE)[0]
            assert box.state.state == State.RUNNING  # it took it in, not the loop
            await asyncio.wait_for(start, PATIENCE)

    go(main())


def test_one_that_is_being_started_is_neither_started_again_nor_outlives_its_end(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            start = asyncio.ensure_future(box.run(Process(FOREVER)))
            await asyncio.sleep(0)
            with pytest.raises(StateError, match="is being started"):
                await box.run(Process(FOREVER))
        assert children() <= before  # left, so destroyed, while it started
        with pytest.raises(StateError, match="destroyed"):
            await start
        async with aio.Container() as again:
            with pytest.raises(FileNotFoundError):
                await again.run(Process(["no-such-program"]))
            await again.run(Process(FOREVER))  # as with its twin, nothing has become of the first

    before = children()
    go(main())


@pytest.mark.needs("cgroup2", "root")
def test_its_control_group_is_that_of_its_twin(go: Go) -> None:
    async def main() -> None:
        config = container.Config(resources=container.Resources())
        async with aio.Container(config) as box:
            await box.run(Process(FOREVER))
            await box.pause()
            assert box.state.state == State.PAUSED
            await box.resume()
            await box.update(container.Resources())
            assert box.stats().cpu.usage_usec > 0
            events = box.events()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(events), 0.05)
            events, last = box.events(), box.events(timeout=0.01)
            assert [event.kind async for event in last] == []
            box.signal(signal.SIGKILL)
            assert [(event.kind, event.count) async for event in events] == [("exit", -9)]
            with pytest.raises(StateError):
                await box.pause()

    go(main())


@pytest.mark.needs("cgroup2:pids", "root")
def test_events_come_as_they_happen(go: Go) -> None:
    async def main() -> None:
        config = container.Config(resources=container.Resources(pids=container.PidsResources(2)))
        script = "read line; sleep 1000 & sleep 1000 & sleep 1000 & read line"
        async with aio.Container(config) as box:
            await box.run(Process(["sh", "-c", script], stdin=PIPE))
            events = box.events()
            assert box.stdin is not None
            box.stdin.write(b"\n")
            event = await asyncio.wait_for(anext(events), PATIENCE)
            assert (event.kind, event.count) == ("pids_max", 1)

    go(main())


def test_its_files_are_those_of_its_twin(go: Go, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "in").write_text("content")
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            await box.copy_in(tmp_path / "in", "/tmp/there")
            await box.copy_out("/tmp/there", tmp_path / "out")
            with await box.open_file("/tmp/there") as file:
                assert file.read() == "content"
            with pytest.raises(FileNotFoundError):
                await box.open_file("/tmp/absent")
        assert (tmp_path / "out").read_text() == "content"

    go(main())


# Ends ---------------------------------------------------------------------------------------------


def test_cancelling_kills_the_container_before_it_goes_on(go: Go) -> None:
    async def main() -> None:
        process = await aio.popen(["sh", "-c", f"{BACKGROUND}; exec sleep 1000"])
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ok\n"
        task = asyncio.ensure_future(process.communicate())
        await asyncio.sleep(0)
        pid = process.pid
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_gone(pid)
        for patience in (0, 0.001, 0.01, 0.2):
            started: asyncio.Task[Any] = asyncio.ensure_future(aio.run(FOREVER))
            await asyncio.sleep(patience)
            started.cancel()
            with pytest.raises(asyncio.CancelledError):
                await started
            assert children() <= before  # not a moment later

    before = children()
    go(main())
    assert children() <= before


def children() -> set[int]:
    """Who the launcher has started, beside its guard and what it makes ahead."""
    container._launcher.drop_blanks()
    pid = launcher_pid()
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.parametrize("seconds", [0, 0.002, 0.01, 0.3])
def test_asyncio_timeout_kills_it_whenever_it_strikes(go: Go, seconds: float) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await aio.run(FOREVER)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), aio.Container() as box:
                await box.run(Process(FOREVER))
                await box.wait()

    before = children()
    go(main())
    assert children() <= before


def test_a_cancelled_wait_lets_it_live(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            for wait in (box.wait, (await box.exec(FOREVER)).wait):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(wait(), 0.05)
            assert box.state.state == State.RUNNING

    go(main())


def test_a_cancellation_is_not_lost_in_an_end_at_the_same_time(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            wait = asyncio.ensure_future(box.wait(timeout=PATIENCE))
            await asyncio.sleep(0)
            box.signal(signal.SIGKILL)
            assert box.pidfd is not None
            assert select.select([box.pidfd], [], [], PATIENCE)[0]
            assert wait_until(lambda: box.exit_code is not None)  # the loop hears of it first
            wait.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait

    go(main())


def test_a_group_that_fails_takes_the_containers_of_its_tasks_along(go: Go) -> None:
    async def main() -> None:
        async def fail() -> None:
            await asyncio.sleep(0.1)
            raise ValueError

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(aio.run(FOREVER))
                group.create_task(fail())
        assert [type(each) for each in caught.value.exceptions] == [ValueError]
        assert children() <= before

    before = children()
    go(main())


def test_an_error_of_ours_ends_what_was_started(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(24, "Too many open files")

    async def main() -> None:
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            pid = box.pid
            inside = {pid, *children()}
            monkeypatch.setattr(container._streams.Stdio, "add_terminal", fail)
            for start in (aio.run(FOREVER), aio.popen(FOREVER), box.exec(FOREVER)):
                with pytest.raises(OSError, match="Too many"):
                    await start
            assert children() <= inside
            assert not is_gone(pid)

    go(main())


def test_what_a_command_has_started_is_ended_without_holding_up_the_loop(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            process = await box.exec(["sh", "-c", "(sleep 1000; :) & echo $!; wait"])
            assert process.stdout is not None
            assert await process.stdout.readline()
            end, threads = process._child.end_tree, []
            assert end is not None

            def spy(pid: int, pidfd: int) -> None:
                threads.append(threading.get_ident())
                end(pid, pidfd)

            process._child.end_tree = spy
            inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert inside
            with pytest.raises(ContainerTimeoutError):
                await process.wait(timeout=0.05)
            assert threads
            assert threading.get_ident() not in threads
            assert is_gone(process.pid)
            assert not {*map(int, inside)} & {*processes_in(os.readlink(f"/proc/{box.pid}/ns/pid"))}

    go(main())


@pytest.mark.needs("cgroup2", "root")
def test_a_command_that_is_stopped_before_it_runs_ends_with_its_time(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with aio.Container(container.Config(resources=container.Resources())) as box:
            await box.run(Process(FOREVER))
            host = box._box._host_for(["true"])
            await box.pause()  # just after the look at its state
            monkeypatch.setattr(box._box, "_host_for", lambda _config, **_options: host)
            with pytest.raises(ContainerTimeoutError) as late:
                await box.exec(ExecConfig(["true"], timeout=0.2))
            assert late.value.result is not None
            assert (late.value.result.timed_out, late.value.result.returncode) == (True, -9)
            assert box.state.state == State.PAUSED  # it is not ended along with the command
            await box.resume()
            assert await (await box.exec(["true"])).wait() == 0

    go(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_ends_it_and_is_a_keyboard_interrupt(loop: str) -> None:
    pytest.importorskip(loop)
    source = f"""
        import asyncio, {loop}
        from container import aio
        async def main():
            process = await aio.popen(["sleep", "1000"])
            tell(process.pid)
            await process.communicate()
        try:
            {loop}.run(main())
        except KeyboardInterrupt:
            tell("interrupted")
        tell(run(["echo", "on"], text=True).stdout)
        """
    with running_caller(source) as process:
        pid = told(process)
        assert not is_gone(pid)
        process.send_signal(signal.SIGINT)
        assert told(process) == "interrupted"
        assert is_gone(pid)
        assert told(process) == "on\n"
        assert process.wait(PATIENCE) == 0


@pytest.mark.filterwarnings("ignore")
def test_what_runs_when_its_loop_is_closed_is_ended() -> None:
    before = children()
    loop = asyncio.new_event_loop()
    process = loop.run_until_complete(aio.popen(FOREVER))
    pid = process.pid
    task = loop.create_task(aio.run(FOREVER))
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del process, task
        gc.collect()
    assert wait_until(lambda: is_gone(pid))
    assert wait_until(lambda: children() <= before)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.filterwarnings("ignore:container .* was never destroyed")
def test_what_nobody_holds_any_more_is_ended(go: Go, elsewhere: bool) -> None:
    async def main() -> None:
        kept = [await aio.popen(FOREVER)]
        pid = kept[0].pid
        assert kept[0].stdout is not None
        if elsewhere:  # a collection may run in any thread
            thread = threading.Thread(target=kept.clear)
            thread.start()
            thread.join()
        kept.clear()
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if is_gone(pid):
                break
        assert is_gone(pid)
        assert (await aio.run(["true"])).returncode == 0

    go(main())


def test_a_fork_does_not_disturb_the_loop_of_its_parent() -> None:
    source = """
        import asyncio, gc, warnings
        from container import aio
        warnings.simplefilter("ignore", DeprecationWarning)
        async def main():
            process, box = await aio.popen(["cat"], stdin=PIPE), aio.Container()
            await box.run(Process(["sleep", "1000"]))
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    process.kill()
                except StateError:
                    try:
                        box.signal(9)
                    except StateError:
                        code = 0
                del process, box
                gc.collect()
                os._exit(code)
            tell(os.waitpid(pid, 0)[1])
            tell((await process.communicate(b"mine"))[0].decode())
            box.signal(9)
            tell(await asyncio.wait_for(box.wait(), 20))
            await box.destroy()
        asyncio.run(main())
        """
    assert caller(source) == [0, "mine", -9]


def test_the_launchers_death_is_told(go: Go) -> None:
    source = """
        import asyncio
        from container import aio
        async def main():
            async with aio.Container() as box:
                await box.run(Process(["sleep", "1000"]))
                process = await box.exec(["sleep", "1000"])
                kill_launcher()
                for wait in (box.wait, process.wait):
                    try:
                        await wait()
                    except StateError:
                        tell("lost")
            tell((await aio.run(["true"])).returncode)
        asyncio.run(main())
        """
    with running_caller(source) as process:
        assert [told(process) for _ in range(3)] == ["lost", "lost", 0]


# Many ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_files")
def test_200_containers_at_once_are_all_right_and_take_no_thread(go: Go) -> None:
    async def main() -> None:
        seen = 0

        async def one(number: int) -> bool:
            nonlocal seen
            result = await aio.run(["sh", "-c", f"echo {number}; exit {number % 256}"])
            seen = max(seen, threading.active_count())
            return (result.stdout, result.returncode) == (b"%d\n" % number, number % 256)

        assert all(await asyncio.gather(*map(one, range(200))))
        assert seen == threads

    threads = threading.active_count()
    go(main())


@pytest.mark.usefixtures("many_files")
def test_1000_execs_in_one_task_group_are_all_right(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            await box.run(Process(FOREVER))

            async def one(number: int) -> bool:
                process = await box.exec(["echo", str(number)])
                output, errors = await process.communicate()
                return (output, errors, process.returncode) == (b"%d\n" % number, b"", 0)

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(1000)]
            assert all(task.result() for task in tasks)

    go(main())


def guards_of(launcher: int) -> list[int]:
    """Its second process."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    comms = {int(pid): Path(f"/proc/{pid}/comm").read_text() for pid in children}
    return [pid for pid, comm in comms.items() if comm == "container-guard\n"]


def switches_of(pid: int) -> int:
    """How often it was woken up, or rather went to sleep again after that."""
    status = parse_status(Path(f"/proc/{pid}/status").read_text())
    return int(status["voluntary_ctxt_switches"])


@pytest.mark.usefixtures("many_files")
def test_nothing_wakes_up_a_loop_or_launcher_with_500_sleeping_containers() -> None:
    async def main() -> None:
        boxes = [aio.Container() for _ in range(500)]
        async with contextlib.AsyncExitStack() as stack:
            for box in boxes:
                await stack.enter_async_context(box)
            await asyncio.gather(*(box.run(Process(FOREVER)) for box in boxes))
            waits = [asyncio.ensure_future(box.wait()) for box in boxes]
            launcher = launcher_pid()
            container._launcher.drop_blanks()  # which a timer of the launcher's would do later
            await asyncio.sleep(0.2)
            pids = (os.getpid(), launcher, *guards_of(launcher))
            before = [switches_of(pid) for pid in pids]
            await asyncio.sleep(2)
            ours, *others = (switches_of(pid) - old for pid, old in zip(pids, before, strict=True))
            assert ours <= 2  # the sleep itself
            assert others == [0, 0]
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            await asyncio.gather(*(box.destroy() for box in boxes))

    asyncio.run(main())


def test_two_loops_in_two_threads_do_not_mind_each_other(go: Go) -> None:
    async def main(name: str) -> None:
        async def one(number: int) -> None:
            result = await aio.run(["echo", f"{name} {number}"], text=True)
            assert result.stdout == f"{name} {number}\n"

        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            await asyncio.gather(*map(one, range(30)))
            assert await (await box.exec(["true"])).wait() == 0

    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            go(main(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Loops of others ----------------------------------------------------------------------------------


def test_trio_drives_a_container_by_public_file_descriptors() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        with container.popen(["sh", "-c", "read line; echo got $line"], stdin=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"it\n")
            process.stdin.flush()
            await trio.lowlevel.wait_readable(process.stdout.fileno())
            assert process.stdout.readline() == b"got it\n"
            await trio.lowlevel.wait_readable(process.pidfd)
            assert process.wait() == 0
        with container.Container() as box:
            box.run(Process(FOREVER))
            with trio.move_on_after(0.05) as scope:
                await trio.lowlevel.wait_readable(box.pidfd)
            assert scope.cancelled_caught
            box.signal(signal.SIGKILL)
            with trio.fail_after(PATIENCE):
                await trio.lowlevel.wait_readable(box.pidfd)
            assert box.wait() == -9

    trio.run(main)


def test_a_pidfd_is_readable_at_the_end_and_not_before(go: Go) -> None:
    async def main() -> None:
        async with aio.Container() as box:
            await box.run(Process(FOREVER))
            assert box.pidfd is not None
            assert select.select([box.pidfd], [], [], 0)[0] == []
            box.signal(signal.SIGKILL)
            assert select.select([box.pidfd], [], [], PATIENCE)[0] == [box.pidfd]
            assert await box.wait() == -9

    go(main())
