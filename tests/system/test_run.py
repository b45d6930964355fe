# SPDX-License-Identifier: Apache-2.0
"""run() and popen(): status, streams, limits of time and output."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from system.helpers import (
    PATIENCE,
    attempt,
    caller,
    inside,
    is_readable,
    lines,
    processes_in,
    python,
    shell,
    wait_until,
)

import container
from container import (
    DEVNULL,
    PIPE,
    STDOUT,
    CommandError,
    ConfigError,
    ContainerTimeoutError,
    _container,
)

pytestmark = pytest.mark.needs("userns")

MiB = 1 << 20


# Status and streams -------------------------------------------------------------------------------


def test_a_command_returns_its_status_and_both_streams() -> None:
    result = container.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert result.args == ("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.signal, result.timed_out, result.oom_killed) == (None, False, False)
    assert (result.stdout_dropped, result.stderr_dropped) == (0, 0)


def test_the_first_process_is_pid_1() -> None:
    assert shell("echo $$") == "1\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_command_that_a_signal_ended_has_its_negative_number(number: signal.Signals) -> None:
    # PID 1 is immune to its own SIGKILL, not to a fault of its own nor to what comes from outside.
    if number == signal.SIGKILL:
        with container.popen(["sleep", "1000"]) as process:
            process.send_signal(number)
            assert process.wait(PATIENCE) == -9
        return
    result = container.run(python("import ctypes; ctypes.string_at(0)"))
    assert (result.returncode, result.signal) == (-11, number)


def test_a_pipe_feeds_64_mib_to_a_command_that_returns_them() -> None:
    data = os.urandom(MiB) * 64
    result = container.run(["cat"], input=data, max_output=-1)
    assert result.returncode == 0
    assert result.stdout == data


def test_a_command_that_reads_nothing_of_64_mib_is_no_error() -> None:
    assert container.run(["true"], input=bytes(64 * MiB)).returncode == 0


def test_output_without_input_and_input_without_output_both_end() -> None:
    result = container.run(["sh", "-c", "cat; echo end"])
    assert (result.returncode, result.stdout) == (0, b"end\n")
    assert container.run(["wc", "-c"], input=b"12345").stdout.strip() == b"5"


def test_stdin_is_dev_null_unless_said_otherwise() -> None:
    assert shell("readlink /proc/self/fd/0") == "/dev/null\n"


def test_text_mode_decodes_utf8_and_unifies_line_ends() -> None:
    result = container.run(["cat"], input="ä\r\nö\rü\n", text=True)
    assert result.stdout == "ä\nö\nü\n"
    assert result.stderr == ""


def test_encoding_and_errors_are_as_given() -> None:
    result = container.run(["cat"], input="ä", encoding="latin-1")
    assert result.stdout == "ä"
    result = container.run(["printf", r"a\377b"], text=True, errors="replace")
    assert result.stdout == "a\ufffdb"


def test_stderr_may_go_where_stdout_goes() -> None:
    result = container.run(["sh", "-c", "echo a; echo b >&2; echo c"], stderr=STDOUT)
    assert (result.stdout, result.stderr) == (b"a\nb\nc\n", None)


def test_what_is_not_captured_is_none() -> None:
    result = container.run(["sh", "-c", "echo a; echo b >&2"], stdout=DEVNULL, stderr=DEVNULL)
    assert (result.returncode, result.stdout, result.stderr) == (0, None, None)


def test_streams_may_be_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
        result = container.run(["cat"], stdin=source, stdout=target)
        assert (result.returncode, result.stdout) == (0, None)
        # They are still ours, and at the place to which the command has brought them.
        assert os.lseek(source.fileno(), 0, os.SEEK_CUR) == len(b"from a file")
    assert (tmp_path / "out").read_bytes() == b"from a file"


def test_check_raises_an_error_with_the_result() -> None:
    with pytest.raises(CommandError) as caught:
        container.run(["sh", "-c", "echo out; exit 4"], check=True)
    assert caught.value.result.returncode == 4
    assert caught.value.result.stdout == b"out\n"
    assert pickle.loads(pickle.dumps(caught.value)).result == caught.value.result


def test_a_result_of_a_run_survives_pickle() -> None:
    result = container.run(["sh", "-c", "echo out; exit 5"])
    assert pickle.loads(pickle.dumps(result)) == result


def test_usage_tells_the_memory_and_the_time_of_the_command() -> None:
    result = container.run(python("import time; b = bytes(range(256)) * 262144\n" + BURN))
    assert result.usage is not None
    assert result.usage.max_rss is not None
    assert 64 * MiB <= result.usage.max_rss < 256 * MiB
    assert result.usage.user + result.usage.system >= 0.05
    assert result.usage.wall >= 0.05


BURN = "while time.process_time() < 0.06: pass"


# Output limits ------------------------------------------------------------------------------------

NUMBERS = b"".join(b"%d\n" % number for number in range(1, 100_001))


@pytest.mark.parametrize("keep", ["head", "tail"])
@pytest.mark.parametrize("limit", [0, 1, 70_001, "100K"])
def test_output_beyond_the_limit_is_counted_and_let_go(limit: int | str, keep: Any) -> None:
    result = container.run(["seq", "100000"], max_output=limit, keep=keep)
    size = 100 << 10 if limit == "100K" else int(limit)
    assert result.returncode == 0
    assert result.stdout == (NUMBERS[:size] if keep == "head" else NUMBERS[len(NUMBERS) - size :])
    assert result.stdout_dropped == len(NUMBERS) - size
    assert result.stderr_dropped == 0


def test_the_limit_is_per_stream() -> None:
    result = attempt("seq 100000 >&2; seq 100000", max_output=1000)
    assert (len(result.stdout), len(result.stderr)) == (1000, 1000)
    assert result.stderr_dropped == result.stdout_dropped == len(NUMBERS) - 1000


def test_a_character_that_the_limit_cuts_is_replaced() -> None:
    result = container.run(["printf", "aä"], text=True, max_output=2)
    assert result.stdout == "a\ufffd"


def test_a_flood_of_output_does_not_grow_the_caller() -> None:
    (grown, kept, dropped) = caller(
        """
        import resource
        run(["true"])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = run(["head", "-c", str(100 << 20), "/dev/zero"], max_output="4M", keep="tail")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tell([(after - before) << 10, len(result.stdout), result.stdout_dropped])
        """
    )[0]
    assert kept == 4 * MiB
    assert dropped == 96 * MiB
    assert grown < 32 * MiB


# Ends ---------------------------------------------------------------------------------------------

GRANDCHILD = "(setsid sleep 1000 &) ; echo up; exec sleep 1000"


def test_a_timeout_kills_every_process_of_the_container() -> None:
    process = container.popen(["sh", "-c", GRANDCHILD])
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
    assert len(processes_in(namespace)) == 2
    with pytest.raises(ContainerTimeoutError) as caught:
        process.communicate(timeout=0.01)
    assert processes_in(namespace) == []
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.result is not None
    assert (caught.value.result.timed_out, caught.value.result.returncode) == (True, -9)


def test_a_timeout_of_run_gives_the_output_so_far() -> None:
    with pytest.raises(ContainerTimeoutError) as caught:
        container.run(python("print('up', flush=True)\nwhile True: pass"), timeout=0.5)
    assert caught.value.result is not None
    assert caught.value.result.stdout == b"up\n"
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.result == caught.value.result


def test_a_timeout_of_wait_kills_the_container() -> None:
    process = container.popen(["sh", "-c", GRANDCHILD], stdout=DEVNULL, stderr=DEVNULL)
    namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
    with pytest.raises(ContainerTimeoutError):
        process.wait(timeout=0.01)
    assert processes_in(namespace) == []
    assert process.returncode == -9


def test_a_command_that_is_quick_enough_has_no_timeout() -> None:
    assert container.run(["true"], timeout=PATIENCE).timed_out is False


def test_a_process_left_behind_does_not_hold_up_the_result() -> None:
    began = time.monotonic()
    result = container.run(["sh", "-c", "sleep 1000 & echo ok"])
    assert (result.returncode, result.stdout) == (0, b"ok\n")
    assert time.monotonic() - began < PATIENCE


def test_an_end_of_a_pipe_that_somebody_else_holds_does_not_hold_up_the_result() -> None:
    # A process started meanwhile, by this or another thread, may have inherited a copy.
    process = container.popen(["sh", "-c", "echo up; read line; echo done"], stdin=PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    writer = os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY)
    try:
        assert process.communicate()[0] == b"done\n"
    finally:
        os.close(writer)


def test_an_error_of_ours_after_the_start_leaves_no_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_container, "open_stream", fail)
        with pytest.raises(KeyboardInterrupt):
            container.popen(["sleep", "1000"])
    # Nor a file, nor a process: the guard of every test looks at these.


# popen --------------------------------------------------------------------------------------------


def test_popen_gives_streams_to_talk_over() -> None:
    with container.popen(["cat"], stdin=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"one\n", b"two\n"):
            process.stdin.write(word)
            process.stdin.flush()
            assert process.stdout.readline() == word
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    assert process.returncode == 0


def test_popen_in_text_mode_has_text_streams() -> None:
    with container.popen(["cat"], stdin=PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("ä\n")
        process.stdin.close()
        assert process.stdout.read() == "ä\n"


def test_communicate_sends_and_receives() -> None:
    process = container.popen(["sh", "-c", "cat; echo err >&2"], stdin=PIPE)
    assert process.communicate(b"in") == (b"in", b"err\n")
    assert process.returncode == 0


@pytest.mark.parametrize("see_the_end", ["wait", "poll"])
def test_communicate_after_the_end_returns_what_is_in_the_pipes(see_the_end: str) -> None:
    process = container.popen(["sh", "-c", "echo out; echo err >&2; exit 3"])
    if see_the_end == "wait":
        process.wait()
    else:
        assert wait_until(lambda: process.poll() is not None)
    assert process.communicate() == (b"out\n", b"err\n")
    assert process.returncode == 3


def test_leaving_the_block_by_an_error_kills_the_container() -> None:
    with pytest.raises(ZeroDivisionError), container.popen(["sleep", "1000"]) as process:
        namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
        raise ZeroDivisionError
    assert processes_in(namespace) == []


def test_the_pidfd_of_a_command_is_readable_once_it_has_ended() -> None:
    with container.popen(["cat"], stdin=PIPE) as process:
        assert process.pidfd is not None
        assert process.stdin is not None
        assert not is_readable(process.pidfd)
        process.stdin.close()
        assert is_readable(process.pidfd, PATIENCE)
        assert process.wait() == 0


def test_signals_reach_a_command_that_has_a_handler() -> None:
    script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"
    with container.popen(["sh", "-c", script]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.wait(PATIENCE) == 7
        process.kill()  # it has ended: nothing happens
        process.send_signal(signal.SIGTERM)


# What the command gets ----------------------------------------------------------------------------


def test_the_environment_is_small_and_not_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("LANG", "de_DE")
    assert container.run(["env"]).stdout.splitlines() == [
        b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"HOME=/root",
        b"TERM=xterm",
        b"LANG=C.UTF-8",
    ]


def test_env_adds_to_the_environment_and_replaces() -> None:
    output = container.run(["env"], env={"A": "b=c", "HOME": "/x"}, text=True).stdout.splitlines()
    assert {"A=b=c", "HOME=/x", "LANG=C.UTF-8"} <= set(output)
    assert len(output) == 5


def test_a_program_is_found_in_the_path_of_the_container() -> None:
    assert container.run(["sh", "-c", "exit 6"], env={"PATH": "/nowhere:/usr/bin"}).returncode == 6


def test_arguments_arrive_as_they_were_given() -> None:
    words = ["", " ", "a b", "$HOME", "--bind", "'\"\\\n", "ä", "\udcff"]
    result = container.run(["printf", r"%s\0", *words])
    assert result.stdout == b"\0".join(map(os.fsencode, words)) + b"\0"


def test_cwd_is_where_the_command_starts() -> None:
    assert container.run(["pwd"], cwd="/usr/bin", text=True).stdout == "/usr/bin\n"
    assert container.run(["pwd"], text=True).stdout == "/\n"


def test_environment_and_arguments_beyond_one_message_arrive_whole() -> None:
    # More than a SEQPACKET message takes here: they go by a memfd.
    env = {f"V{number}": f"{number}" * 50_000 for number in range(1, 5)}
    sizes = inside("answer = {k: len(v) for k, v in os.environ.items()}", env=env)
    assert {name: sizes[name] for name in env} == dict.fromkeys(env, 50_000)
    arguments = [f"{number}" * 100_000 for number in range(3)]
    result = container.run(["printf", "%s", *arguments], max_output=-1)
    assert result.stdout == "".join(arguments).encode()


def test_binds_are_mounts_or_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    tmp_path.chmod(0o755)
    assert lines(
        "cat /data/file; grep ' /data ' /proc/mounts | cut -d ' ' -f 4 | cut -c 1-2",
        binds=[f"{tmp_path}:/data:ro"],
    ) == ["contentro"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"network": "bridged"}, "network"),
        ({"input": b"", "stdin": 0}, "stdin"),
        ({"input": "text"}, "input"),
        ({"input": 5}, "input"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_output": -2}, "max_output"),
        ({"max_output": "many"}, "max_output"),
        ({"keep": "middle"}, "keep"),
        ({"encoding": "no-such"}, "encoding"),
        ({"errors": "no-such"}, "errors"),
        ({"binds": "a:/b"}, "binds"),
        ({"binds": ["a"]}, "binds[0]"),
        ({"binds": ["/a:/b:rx"]}, "binds[0]"),
        ({"binds": ["/a:b"]}, "binds[0].target"),
        ({"config": "x"}, "config"),
        ({"root": 5}, "root"),
    ],
)
def test_a_bad_parameter_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        container.run(["true"], **options)
    assert caught.value.field == field


def test_with_the_hosts_network_the_namespace_is_the_callers() -> None:
    assert network_namespace(network="host") == os.readlink("/proc/self/ns/net")
    assert network_namespace() != os.readlink("/proc/self/ns/net")


def network_namespace(**options: Any) -> str:
    command = ["readlink", "/proc/self/ns/net"]
    result = container.run(command, text=True, check=True, **options)
    return str(result.stdout).strip()
