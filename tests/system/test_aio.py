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
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from system.helpers import PATIENCE, running_caller, told, wait_until

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
    return uvloop.run(main)


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


@pytest.mark.parametrize("name", ["Container", "ExecProcess"])
def test_the_methods_of_a_class_have_the_parameters_of_their_twins(name: str) -> None:
    ours, theirs = getattr(aio, name), getattr(container, name)
    methods = [each for each in vars(ours) if not each.startswith("_") and each in vars(theirs)]
    assert {"wait", "resize"} <= set(methods)
    for method in methods:
        left, right = getattr(ours, method), getattr(theirs, method)
        if not isinstance(left, property):
            assert list(inspect.signature(left).parameters) == list(
                inspect.signature(right).parameters
            )
        assert left.__doc__ or right.__doc__


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


def test_ctrl_c_ends_it_and_is_a_keyboard_interrupt() -> None:
    source = """
        import asyncio
        from container import aio
        async def main():
            process = await aio.popen(["sleep", "1000"])
            tell(process.pid)
            await process.communicate()
        try:
            asyncio.run(main())
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


def cpu_of(pid: int) -> int:
    """User and system time, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.usefixtures("many_files")
def test_a_loop_with_500_sleeping_containers_uses_no_cpu() -> None:
    async def main() -> None:
        boxes = [aio.Container() for _ in range(500)]
        async with contextlib.AsyncExitStack() as stack:
            for box in boxes:
                await stack.enter_async_context(box)
            await asyncio.gather(*(box.run(Process(FOREVER)) for box in boxes))
            waits = [asyncio.ensure_future(box.wait()) for box in boxes]
            await asyncio.sleep(1)  # what is made ahead has gone
            ours, launchers = time.process_time(), cpu_of(launcher_pid())
            switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            await asyncio.sleep(2)
            assert time.process_time() - ours < 0.02
            assert cpu_of(launcher_pid()) == launchers
            assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - switches < 10
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
