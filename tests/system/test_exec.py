# SPDX-License-Identifier: Apache-2.0
"""Container.exec: where a command runs, as whom, what becomes of it, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from system.helpers import (
    PATIENCE,
    caller,
    is_readable,
    namespaces_of,
    parse_status,
    processes_in,
    python,
    wait_until,
    watched,
)

import container
from container import (
    DEVNULL,
    PIPE,
    STDOUT,
    Capabilities,
    Capability,
    Config,
    ConfigError,
    Container,
    ContainerTimeoutError,
    ExecConfig,
    Landlock,
    LaunchError,
    Namespaces,
    Process,
    Rlimit,
    State,
    StateError,
    _join,
)
from container._launcher import drop_blanks

pytestmark = pytest.mark.needs("userns")

AsUser = Callable[..., Any]
IDLE = Process(["sleep", "1000"])


@pytest.fixture
def box() -> Iterator[Container]:
    """A container in which nothing happens."""
    with Container() as box:
        box.run(IDLE)
        yield box


def said(box: Container, script: str, **options: Any) -> str:
    """What a script writes in a container that runs; it must end well."""
    process = box.exec(ExecConfig(["sh", "-c", script], **options), text=True)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert isinstance(out, str)
    return out


def inhabitants(box: Container) -> list[int]:
    drop_blanks()  # one that waits for the next command is no command
    return processes_in(os.readlink(f"/proc/{box.pid}/ns/pid"))


# Where, and as whom -------------------------------------------------------------------------------

KINDS: dict[str, tuple[Config, Process]] = {
    "default": (Config(), IDLE),
    "a time namespace": (Config(namespaces=Namespaces(time=True)), IDLE),
    "the caller's network": (Config(namespaces=Namespaces(net=False)), IDLE),
    "no capabilities": (Config(capabilities=Capabilities.none()), IDLE),
    "all capabilities": (Config(capabilities=Capabilities.all()), IDLE),
    "new privileges": (Config(no_new_privileges=False), IDLE),
    "a limit": (Config(), Process(["sleep", "1000"], rlimits=[Rlimit("NOFILE", 64, 64)])),
    "a umask": (Config(), Process(["sleep", "1000"], umask=0o077)),
}
KINDS_OF_ROOT = {
    "no user namespace": (Config(namespaces=Namespaces(user=False)), IDLE),
    "another user": (Config(), Process(["sleep", "1000"], user="1000:100", groups=(7, 8))),
    "a user by name": (Config(), Process(["sleep", "1000"], user="nobody")),
    "a chroot": (Config(use_pivot_root=False), IDLE),
}
SAME = ("Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
SAME_TOO = ("NoNewPrivs", "Seccomp", "Seccomp_filters", "SigBlk", "SigIgn", "SigCgt")


def check_same(config: Config, process: Process) -> None:
    with Container(config) as box:
        box.run(process)
        other = box.exec(ExecConfig(process.args, stdout=DEVNULL, stderr=DEVNULL))
        first, second = (
            parse_status(Path(f"/proc/{pid}/status").read_text()) for pid in (box.pid, other.pid)
        )
        assert [second[name] for name in SAME + SAME_TOO] == [
            first[name] for name in SAME + SAME_TOO
        ]
        assert namespaces_of(other.pid or 0) == namespaces_of(box.pid or 0)
        for name in ("limits", "uid_map", "gid_map", "mountinfo", "cgroup", "environ", "cmdline"):
            one, two = (Path(f"/proc/{pid}/{name}").read_text() for pid in (box.pid, other.pid))
            assert one == two, name
        for name in ("root", "cwd"):
            places = [os.stat(f"/proc/{pid}/{name}") for pid in (box.pid, other.pid)]
            assert os.path.samestat(*places)
        # A dynamic loader may have a library open for a moment.
        files = f"/proc/{other.pid}/fd"
        assert wait_until(lambda: sorted(os.listdir(files)) == ["0", "1", "2"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_is_in_the_container_what_its_first_process_is(kind: str) -> None:
    check_same(*KINDS[kind])


@pytest.mark.needs("landlock")
def test_a_command_is_under_the_rules_of_the_container() -> None:
    rules = Landlock(read=["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"], write=["/dev"])
    with Container(Config(landlock=rules)) as box:
        box.run(IDLE)
        process = box.exec(["sh", "-c", "cat /etc/passwd; cat /usr/bin/env > /dev/null"], text=True)
        out, err = process.communicate()
        assert (process.returncode, out) == (0, "")
        assert "Permission denied" in err


@pytest.mark.needs("root", "idmap")
@pytest.mark.parametrize("kind", KINDS_OF_ROOT)
def test_a_command_is_what_the_first_process_of_a_root_caller_is(kind: str) -> None:
    check_same(*KINDS_OF_ROOT[kind])


def test_a_command_has_the_environment_and_the_directory_of_the_container() -> None:
    with Container() as box:
        box.run(Process(["sleep", "1000"], env={"A": "first", "B": "first"}, cwd="/usr"))
        assert said(box, "echo $A $B $C; pwd") == "first first\n/usr\n"
        asked = said(box, "echo $A $B $C; pwd", env={"B": "second", "C": "third"}, cwd="/tmp")
        assert asked == "first second third\n/tmp\n"


@pytest.mark.needs("root", "idmap")
def test_a_command_may_have_another_user(box: Container) -> None:
    ids = "id -u; id -g; id -G; echo $HOME; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status"
    none = "".join(f"{name}:\t{0:016x}\n" for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
    assert said(box, ids, user=1000) == f"1000\n0\n0\n/\n{none}"
    assert said(box, ids, user="1000:100") == f"1000\n100\n100\n/\n{none}"
    assert said(box, ids, user="nobody").startswith("65534\n65534\n")


def test_a_command_may_have_other_capabilities(box: Container) -> None:
    script = "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | sort -u"
    few = Capabilities([Capability.KILL], [Capability.KILL], [Capability.KILL])
    assert said(box, script, capabilities=Capabilities.none()) == f"{0:016x}\n"
    assert said(box, script, capabilities=few) == f"{1 << Capability.KILL.number:016x}\n"


def test_a_directory_inside_may_become_the_root(box: Container) -> None:
    said(box, "mkdir -p /tmp/root && touch /tmp/root/only")
    with pytest.raises(FileNotFoundError) as caught:
        box.exec(ExecConfig(["/only"], root="/tmp/root/absent"))
    assert (caught.value.step, caught.value.filename) == ("pivot", "/tmp/root/absent")  # type: ignore[attr-defined]
    with pytest.raises(PermissionError) as refused:
        box.exec(ExecConfig(["/only"], root="/tmp/root"))
    assert refused.value.step == "exec"  # type: ignore[attr-defined]


def test_the_root_of_a_command_is_that_directory(rootdir: Path) -> None:
    with Container(Config(root=str(rootdir))) as box:
        box.run(Process(["sleep", "1000"]))
        said(box, "mkdir -p /tmp/r/bin && cp /bin/busybox /tmp/r/bin/ls")
        try:
            process = box.exec(ExecConfig(["/bin/ls", "/"], root="/tmp/r"), text=True)
            assert process.communicate() == ("bin\n", "")
        finally:
            said(box, "rm -r /tmp/r")


def test_a_command_leads_a_session_and_has_no_terminal(box: Container) -> None:
    pid, _, _, session, terminal = said(box, "cut -d' ' -f1,4,5,6,7 /proc/self/stat").split()[:5]
    assert terminal == "0"
    assert session != pid  # cut is a child of the shell, which leads


def test_a_first_process_may_end_while_a_command_has_not_been_waited_for(box: Container) -> None:
    process = box.exec(["true"])
    assert process.pidfd is not None
    assert is_readable(process.pidfd, PATIENCE)
    box.signal(signal.SIGKILL)
    assert box.wait(PATIENCE) == -9
    assert process.wait() == 0


# What becomes of it -------------------------------------------------------------------------------


def test_the_status_of_a_command_is_its_own(box: Container) -> None:
    assert box.exec(["sh", "-c", "exit 7"]).wait() == 7
    assert box.exec(["sh", "-c", "kill -TERM $$"]).wait() == -15
    process = box.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert process.communicate() == (b"out\n", b"err\n")
    assert process.result is not None
    assert (process.result.returncode, process.result.stdout) == (3, b"out\n")
    assert process.usage is not None
    assert box.state.state == State.RUNNING


def test_a_command_takes_input_and_merges_its_output(box: Container) -> None:
    process = box.exec(ExecConfig(["cat"], stdin=PIPE))
    assert process.communicate(b"x" * 1_000_000) == (b"x" * 1_000_000, b"")
    merged = box.exec(ExecConfig(["sh", "-c", "echo a; echo b >&2"], stderr=STDOUT))
    assert merged.communicate() == (b"a\nb\n", None)


def test_streams_may_be_files(box: Container, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"data")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        process = box.exec(ExecConfig(["cat"], stdin=source, stdout=target, stderr=DEVNULL))
        assert process.wait() == 0
    assert (tmp_path / "out").read_bytes() == b"data"


def test_a_command_can_open_its_own_streams(box: Container) -> None:
    assert said(box, "echo through > /dev/stdout") == "through\n"


def test_a_command_gives_its_lines_as_they_come(box: Container) -> None:
    script = "echo one; read x; echo $x; echo three"
    process = box.exec(ExecConfig(["sh", "-c", script], stdin=PIPE), text=True)
    lines = iter(process)
    assert next(lines) == "one\n"
    assert process.stdin is not None
    process.stdin.write("two\n")
    process.stdin.close()
    assert list(lines) == ["two\n", "three\n"]
    with process:
        pass
    assert process.returncode == 0


def test_output_beyond_the_limit_is_counted(box: Container) -> None:
    script = ["sh", "-c", "yes | head -c 3000000"]
    for keep, limit in (("head", "1M"), ("tail", 10)):
        process = box.exec(script, max_output=limit, keep=keep)  # type: ignore[arg-type]
        out, _ = process.communicate()
        assert process.result is not None
        kept = (1 << 20) if limit == "1M" else 10
        assert (len(out), process.result.stdout_dropped) == (kept, 3_000_000 - kept)


def test_what_a_command_leaves_behind_lives_on_and_holds_nobody_up(box: Container) -> None:
    script = ["sh", "-c", "sleep 1000 & echo ok"]
    assert box.exec(script).communicate() == (b"ok\n", b"")
    for read in (
        lambda stream: stream.read(),
        b"".join,
        lambda stream: stream.read1() + stream.read1(),
    ):
        process = box.exec(script)
        assert process.stdout is not None
        assert read(process.stdout) == b"ok\n"
        with process:
            pass
    assert len(inhabitants(box)) == 1 + 4


def test_a_process_left_behind_that_goes_on_writing_does_not_hold_up_the_reader(
    box: Container,
) -> None:
    process = box.exec(["sh", "-c", "yes & exit 0"])
    assert process.wait() == 0
    assert process.stdout is not None
    assert set(process.stdout.read()) <= set(b"y\n")
    process = box.exec(["sh", "-c", "yes & exit 0"])
    out, _ = process.communicate()
    assert len(out) <= 1 << 20
    with process:
        pass


def test_a_command_lives_on_when_nobody_holds_on_to_it(box: Container) -> None:
    pid = box.exec(ExecConfig(["sleep", "1000"], stdout=DEVNULL, stderr=DEVNULL)).pid
    assert pid is not None
    box.exec(["true"]).wait()
    assert pid in inhabitants(box)
    with watched([pid]) as survivors:
        box.destroy()
        assert survivors(0) == []


def test_signals_reach_a_command_and_nothing_else(box: Container) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    process = box.exec(["sh", "-c", script], text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait() == 5
    idle = box.exec(["sleep", "1000"])
    idle.kill()
    assert idle.wait() == -9
    idle.send_signal(9)  # it has ended: nothing
    with pytest.raises(ConfigError):
        idle.send_signal(0)
    assert box.state.state == State.RUNNING


def test_leaving_the_block_by_an_error_ends_the_command_and_what_it_started(
    box: Container,
) -> None:
    with pytest.raises(ZeroDivisionError), box.exec(["sh", "-c", "sleep 1000 & wait"]) as process:
        assert wait_until(lambda: len(inhabitants(box)) == 3)
        raise ZeroDivisionError
    assert process.returncode == -9
    assert inhabitants(box) == [box.pid]


def test_an_error_of_ours_after_the_start_leaves_no_command(
    box: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    # Often: a shell that has just begun to fork is stopped only after that.
    for _ in range(100):
        with monkeypatch.context() as patch:
            patch.setattr(_join, "Conversation", fail)
            with pytest.raises(KeyboardInterrupt):
                box.exec(["sh", "-c", "(setsid sleep 1000 &); sleep 1000"])
        # One that was killed may still be on its way out.
        assert wait_until(lambda: inhabitants(box) == [box.pid])


# Timeouts -----------------------------------------------------------------------------------------

# Its child takes the orphans, each of which begins a session, up to the third generation.
OWN_REAPER = """
import ctypes, os, time
PR_SET_CHILD_SUBREAPER = 36
if os.fork() == 0:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    for _ in range(3):
        if os.fork() > 0:
            break
        os.setsid()
time.sleep(1000)
"""

STUBBORN = {
    "a program that sleeps": "exec sleep 1000",
    "one that ignores TERM": "trap '' TERM HUP INT; echo up; while :; do sleep 0.01; done",
    "a child": "sleep 1000 & sleep 1000",
    "an orphan": "(sleep 1000 &); sleep 1000",
    "a daemon": "(setsid sh -c 'sleep 1000 & exec sleep 1000' &); exec sleep 1000",
    "a daemon of a daemon": "(setsid sh -c '(setsid sleep 1000 &)' &); sleep 1000",
    "one whose child reaps for itself": f"exec {shlex.join(python(OWN_REAPER))}",
    "one that is stopped": "sleep 1000 & kill -STOP $! $$; sleep 1000",
    "one that starts others all the time": "while :; do setsid sleep 1000 & sleep 0.002; done",
}


@pytest.mark.parametrize("how", ["wait", "communicate", "config", "config, and nobody waits"])
@pytest.mark.parametrize("kind", STUBBORN)
def test_a_timeout_ends_a_command_with_all_that_it_started_and_nothing_else(
    box: Container, kind: str, how: str
) -> None:
    limit = 0.2 if how.startswith("config") else None
    process = box.exec(ExecConfig(["sh", "-c", "echo up;" + STUBBORN[kind]], timeout=limit))
    if how == "config, and nobody waits":
        assert process.pidfd is not None
        assert is_readable(process.pidfd, PATIENCE)
    with pytest.raises(ContainerTimeoutError) as caught:
        if how == "wait":
            process.wait(timeout=0.2)
        elif how == "communicate":
            process.communicate(timeout=0.2)
        elif how == "config":
            process.communicate()
        else:
            process.wait()
    result = caught.value.result
    assert result is not None
    assert (result.timed_out, result.returncode) == (True, -9)
    if how in ("communicate", "config"):
        assert result.stdout.startswith(b"up\n")
    # The first process reaps nothing: the dead are still there, and nobody else.
    assert inhabitants(box) == [box.pid]
    assert box.state.state == State.RUNNING
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_a_command_that_is_quick_enough_has_no_timeout(box: Container) -> None:
    before = threading.active_count()
    process = box.exec(ExecConfig(["echo", "ok"], timeout=PATIENCE))
    assert process.communicate() == (b"ok\n", b"")
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", STUBBORN)
def test_a_timeout_of_run_empties_the_container(kind: str) -> None:
    process = container.popen(["sh", "-c", STUBBORN[kind]], stdout=DEVNULL, stderr=DEVNULL)
    namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
    with pytest.raises(ContainerTimeoutError):
        process.wait(0.2)
    assert processes_in(namespace) == []


# Refusals -----------------------------------------------------------------------------------------


def test_a_container_that_does_not_run_takes_no_command() -> None:
    box = Container()
    with pytest.raises(StateError, match="has not been created"):
        box.exec(["true"])
    box.create(IDLE)
    with pytest.raises(StateError, match="created"):
        box.exec(["true"])
    box.start()
    box.stop(container.SignalConfig(stop_timeout=0))
    with pytest.raises(StateError, match="stopped"):
        box.exec(["true"])
    box.destroy()
    with pytest.raises(StateError):
        box.exec(["true"])


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an unknown user": ({"user": "nobody-there"}, ConfigError, "user"),
    "a user that is no number": ({"user": "0x0"}, ConfigError, "user"),
    "a user beyond all": ({"user": 2**32 - 1}, ConfigError, "user"),
    "a relative directory": ({"cwd": "tmp"}, ConfigError, "cwd"),
    "a relative root": ({"root": "tmp"}, ConfigError, "root"),
    "no capabilities at all": ({"capabilities": ["KILL"]}, ConfigError, "capabilities"),
    "a time before now": ({"timeout": -1}, ConfigError, "timeout"),
    "a variable without a name": ({"env": {"": "x"}}, ConfigError, "env"),
    "a file that is none": ({"stdout": 1 << 20}, ConfigError, "stdout"),
    "STDOUT on its own": ({"stdout": STDOUT}, ConfigError, "stdout"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_is_refused_with_the_field(box: Container, kind: str) -> None:
    options, error, field = REFUSED[kind]
    with pytest.raises(error) as caught:
        box.exec(ExecConfig(["true"], **options))
    assert str(caught.value).startswith(field)
    assert inhabitants(box) == [box.pid]


def test_arguments_that_are_none_are_refused_with_the_field(box: Container) -> None:
    for wrong in ([], "true", [1], None, 3):
        with pytest.raises(ConfigError) as caught:
            box.exec(wrong)  # type: ignore[arg-type]
        assert caught.value.field.startswith("config.args")


def test_a_closed_stdin_is_refused(box: Container, tmp_path: Path) -> None:
    file = (tmp_path / "file").open("w")
    file.close()
    with pytest.raises(ConfigError, match="stdin"):
        box.exec(ExecConfig(["true"], stdin=file))
    told = caller(
        """
        with Container() as box:
            box.run(Process(["sleep", "1000"], stdin=DEVNULL))
            os.close(0)
            try:
                box.exec(ExecConfig(["cat"], stdin=None))
            except ConfigError as error:
                tell(error.field)
            tell(box.exec(["true"]).wait())
        """
    )
    assert told == ["stdin", 0]


def test_a_program_that_is_not_there_or_cannot_be_run_is_told(box: Container) -> None:
    with pytest.raises(FileNotFoundError) as absent:
        box.exec(["no-such-program"])
    assert isinstance(absent.value, LaunchError)
    assert absent.value.step == "exec"
    with pytest.raises(PermissionError):
        box.exec(["/etc/passwd"])
    with pytest.raises(NotADirectoryError):
        box.exec(["/etc/passwd/program"])
    with pytest.raises(LaunchError) as large:
        box.exec(["true", "x" * 200_000])
    assert large.value.step == "exec"
    assert inhabitants(box) == [box.pid]


@pytest.mark.parametrize("number", range(3, 31))
def test_a_directory_that_leads_out_by_a_link_is_refused(box: Container, number: int) -> None:
    for cwd in (f"/proc/self/fd/{number}", f"/dev/fd/{number}", f"/proc/1/fd/{number}/.."):
        with pytest.raises(LaunchError) as caught:
            box.exec(ExecConfig(["true"], cwd=cwd))
        assert caught.value.step == "cwd"


def test_output_that_is_no_text_is_an_error_and_the_command_is_over(box: Container) -> None:
    process = box.exec(["printf", r"\377"], text=True)
    with pytest.raises(UnicodeDecodeError):
        process.communicate()
    assert process.returncode == 0
    assert box.exec(["printf", r"\377"], errors="replace").communicate()[0] == "\ufffd"
    with pytest.raises(ConfigError, match="encoding"):
        box.exec(["true"], encoding="no-such-encoding")


@pytest.mark.parametrize("sig", [0, 65, 99, -1])
def test_a_number_that_is_no_signal_is_refused(box: Container, sig: int) -> None:
    process = box.exec(["sleep", "1000"])
    for send in (box.signal, process.send_signal):
        with pytest.raises(ConfigError) as caught:
            send(sig)
        assert caught.value.field == "sig"
    process.kill()
    with process:
        pass


def test_the_fork_of_a_caller_cannot_use_a_container_or_a_command() -> None:
    told = caller(
        """
        box = Container()
        box.run(Process(["sleep", "1000"]))
        process = box.exec(["sleep", "1000"])
        pid = os.fork()
        if pid == 0:
            for call in (lambda: box.exec(["true"]), process.poll, process.communicate):
                try:
                    call()
                except StateError as error:
                    tell("its fork" in str(error))
            os._exit(0)
        os.waitpid(pid, 0)
        tell(process.poll())
        process.kill()
        tell(process.wait())
        for stream in (process.stdout, process.stderr):
            stream.close()
        box.destroy()
        """
    )
    assert told == [True, True, True, None, -9]


def test_when_the_launcher_has_died_the_container_says_so() -> None:
    told = caller(
        """
        box = Container()
        box.run(Process(["sleep", "1000"]))
        kill_launcher()
        try:
            box.exec(["true"])
        except StateError as error:
            tell("StateError")
        box.destroy()
        """
    )
    assert told == ["StateError"]


def test_an_exec_config_is_a_value() -> None:
    config = ExecConfig(["a"], env={"SECRET": "hunter2"}, cwd="/tmp", timeout=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    assert "hunter2" not in repr(config)
    assert hash(config) == hash(ExecConfig(["a"], env={"SECRET": "hunter2"}, cwd="/tmp", timeout=3))
    with pytest.raises(ConfigError, match="pickled"):
        pickle.dumps(ExecConfig(["a"], stdin=0))
