# SPDX-License-Identifier: Apache-2.0
"""Terminals of a container's own: what is on them, who owns them, what they reach."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import stat
import textwrap
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from system.helpers import (
    PATIENCE,
    caller,
    inside,
    python,
    running_caller,
    told,
    wait_until,
)

import container
from container import (
    PIPE,
    Capabilities,
    Config,
    ConfigError,
    Container,
    ContainerTimeoutError,
    ExecConfig,
    ExecProcess,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    StateError,
    UnsupportedError,
)
from container._terminal import send_terminal

if TYPE_CHECKING:
    from system.conftest import Identity

pytestmark = pytest.mark.needs("userns")

INTERRUPT, SUSPEND = b"\x03", b"\x1a"

# What the kernel says of the process that runs this, and of its terminal.
LOOK = """
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
session, number, foreground = map(int, fields[3:6])
streams = [os.fstat(fd) for fd in (0, 1, 2)]
try:
    console = os.stat("/dev/console")
except FileNotFoundError:
    console = None
answer = {
    "leads": session == os.getpid() == foreground,
    "controlling": (os.major(number), os.minor(number)),
    "streams": sorted({(os.major(s.st_rdev), os.minor(s.st_rdev)) for s in streams}),
    "names": [os.ttyname(fd) for fd in (0, 1, 2)],
    "console": console and [console.st_rdev == streams[0].st_rdev, console.st_ino == streams[0].st_ino],
    "owner": [streams[0].st_uid, oct(streams[0].st_mode)],
    "files": sorted(os.listdir("/proc/self/fd"))[:3],
    "file count": len(os.listdir("/proc/self/fd")) - 1,
}
"""  # noqa: E501 - a program
FIRST_OF_ITS_OWN = {
    "leads": True,
    "controlling": [136, 0],
    "streams": [[136, 0]],
    "names": ["/dev/pts/0"] * 3,
    "console": [True, True],
    "files": ["0", "1", "2"],
    "file count": 3,
}


def look(**options: Any) -> dict[str, Any]:
    """What the first process of a container with a terminal sees of that."""
    found: dict[str, Any] = answer_of(LOOK, **options)
    return found


def program(source: str) -> list[str]:
    return python(f"import json, os\n{textwrap.dedent(source)}\nprint(json.dumps(answer))")


def answer_of(source: str, **options: Any) -> Any:
    result = container.run(program(source), tty=True, **options)
    assert result.returncode == 0, result
    return json.loads(result.stdout)


class Conversation:
    """What is typed on a terminal, and what it shows."""

    def __init__(self, process: ExecProcess | Container) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.master = process.stdout.fileno()
        self.process = process
        self.shown = b""

    def type(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def wait_for(self, text: bytes) -> None:
        while text not in self.shown:
            assert select.select([self.master], [], [], PATIENCE)[0], self.shown
            self.shown += os.read(self.master, 4096)
        self.shown = self.shown.partition(text)[2]


@pytest.fixture
def box() -> Iterator[Container]:
    """A container that runs, without a terminal of its own."""
    with Container() as running:
        running.run(Process(["sleep", "1000"]))
        yield running


# What it is ---------------------------------------------------------------------------------------


def test_a_terminal_is_the_streams_the_session_and_the_console_of_its_program() -> None:
    for _ in range(3):  # the later ones in a child that was made ahead
        found = look()
        assert found.pop("owner") == [0, "0o20620"]
        assert found == FIRST_OF_ITS_OWN


def test_it_is_the_same_where_the_mounts_are_locked() -> None:
    found = look(config=Config(capabilities=Capabilities.all()))
    found.pop("owner")
    assert found == FIRST_OF_ITS_OWN


@pytest.mark.needs("root")
def test_it_is_the_same_without_a_user_namespace() -> None:
    found = look(config=Config(namespaces=Namespaces(user=False)))
    assert found.pop("owner") == [0, "0o20620"]
    assert found == FIRST_OF_ITS_OWN


@pytest.mark.needs("root")
@pytest.mark.parametrize("user", [True, False])
def test_it_belongs_to_the_user_of_its_program(user: bool) -> None:
    config = Config(namespaces=Namespaces(user=user))
    script = "exec 3<>/dev/pts/0 4<>/dev/tty 5<>/dev/console && stat -L -c '%u %a' /dev/console"
    result = container.run(
        ["sh", "-c", script], config=config, user="1234:99", tty=True, text=True, timeout=PATIENCE
    )
    assert (result.returncode, result.stdout) == (0, "1234 620\n")


def test_an_ordinary_user_has_the_same(who: Identity) -> None:
    source = f"""
        argv = {program(LOOK)!r}
        tell(json.loads(run(argv, tty=True).stdout))
        with Container() as box:
            box.run(Process(["sleep", "1000"]))
            for _ in range(2):
                with box.exec(ExecConfig(argv, tty=True)) as process:
                    tell(json.loads(process.stdout.read()))
        """
    first, *execs = who(source)
    assert first.pop("owner")[0] == 0
    assert first == FIRST_OF_ITS_OWN
    for found in execs:
        assert found.pop("owner")[0] == 0
        assert found == FIRST_OF_ITS_OWN | {"console": None}


@pytest.mark.needs("root")
def test_a_command_in_a_container_has_its_own_and_owns_it(box: Container) -> None:
    with (
        box.exec(ExecConfig(["cat"], tty=True)) as other,
        box.exec(ExecConfig(program(LOOK), tty=True)) as process,
    ):
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
        script = "tty; stat -c '%u %a' $(tty); exec 3<>$(tty) 4<>/dev/tty && echo open"
        shown = box.exec(ExecConfig(["sh", "-c", script], tty=True, user=77)).communicate()[0]
        assert shown == b"/dev/pts/2\r\n77 620\r\nopen\r\n"
        other.kill()
        other.wait()
    assert found.pop("owner") == [0, "0o20620"]
    assert found == FIRST_OF_ITS_OWN | {
        **{"controlling": [136, 1], "streams": [[136, 1]], "console": None},
        "names": ["/dev/pts/1"] * 3,
    }


def test_under_an_init_its_session_is_the_payloads_alone() -> None:
    with Container() as box:
        box.run(Process(["bash", "--norc", "--noprofile"], tty=True, init=True))
        terminal = Conversation(box)
        terminal.type(b"stty size; tty; cut -d' ' -f 5-8 /proc/1/stat /proc/$$/stat\n")
        terminal.wait_for(b"/dev/pts/0\r\n1 1 0 -1\r\n2 2 34816 ")
        terminal.type(b"sh -c 'echo fo\"\"re; exec sleep 1002'\n")
        terminal.wait_for(b"fore\r\n")
        terminal.type(INTERRUPT)
        terminal.type(b"exit 7\n")
        assert box.wait(PATIENCE) == 7


def test_the_end_that_commands_it_is_nowhere_inside() -> None:
    with container.popen(["cat"], tty=True) as process:
        assert process.pid is not None
        for number in os.listdir(f"/proc/{process.pid}/fd"):
            link = os.readlink(f"/proc/{process.pid}/fd/{number}")
            assert link == "/dev/pts/0", (number, link)
        process.kill()


def test_no_terminal_is_there_without_being_asked_for() -> None:
    found = inside("answer = [os.listdir('/dev/pts'), os.path.exists('/dev/console')]")
    assert found == [["ptmx"], False]


def test_a_devpts_that_a_mount_brings_serves(rootdir: Path) -> None:
    mounts = [Mount.tmpfs("/dev"), Mount("devpts", "/dev/pts", type="devpts")]
    config = Config(rootdir, mounts=mounts, setup_dev=False)
    result = container.run(["tty"], config=config, tty=True)
    assert result.stdout == b"/dev/pts/0\r\n"
    result = container.run(["stat", "-c", "%t:%T", "/dev/console"], config=config, tty=True)
    assert result.stdout == b"88:0\r\n"  # of this terminal: 136, 0


def test_a_console_that_a_mount_brings_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    config = Config(mounts=[Mount.bind(tmp_path / "mine", "/dev/console", read_only=True)])
    assert container.run(["cat", "/dev/console"], config=config, tty=True).stdout == b"mine"


# What it does -------------------------------------------------------------------------------------


def test_what_is_typed_is_echoed_read_and_ended() -> None:
    command = ["tr", "a-z", "A-Z"]
    result = container.run(command, tty=True, input=b"one\ntwo", timeout=PATIENCE)
    assert result.returncode == 0
    assert bytes(filter(b"ONETW".count, result.stdout)) == b"ONETWO"
    # The echo comes when the kernel has time for it, and perhaps not before the end.
    assert set(result.stdout) <= set(b"ONETWOonetw\r\n")


def test_without_input_a_reader_is_at_its_end_at_once() -> None:
    assert container.run(["cat"], tty=True, timeout=PATIENCE).returncode == 0


def test_the_size_is_the_one_given_and_a_change_is_told() -> None:
    script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
    for start in (_popen, _exec, _run):
        with start(["sh", "-c", script], tty_size=(11, 22)) as process:
            terminal = Conversation(process)
            terminal.wait_for(b"11 22")
            process.resize(33, 44)
            terminal.wait_for(b"33 44")
            process.resize(65535, 0)
            terminal.wait_for(b"65535 0")
            _kill(process)


def _popen(args: list[str], **options: Any) -> Any:
    return container.popen(args, tty=True, **options)


def _run(args: list[str], **options: Any) -> Any:
    box = Container()
    box.run(Process(args, tty=True, **options))
    return box


_shared: list[Container] = []


def _exec(args: list[str], **options: Any) -> Any:
    box = _shared[0]
    return box.exec(ExecConfig(args, tty=True, **options))


@pytest.fixture(autouse=True)
def shared_box(request: pytest.FixtureRequest) -> Iterator[None]:
    """What `_exec` runs in, for the tests that use it."""
    if "_exec" not in request.function.__code__.co_names:
        yield
        return
    with Container() as box:
        box.run(Process(["sleep", "1000"]))
        _shared.append(box)
        yield
        _shared.clear()


def _kill(process: ExecProcess | Container) -> None:
    if isinstance(process, Container):
        process.destroy()
    else:
        process.kill()
        process.wait()


def test_ctrl_c_interrupts_what_is_in_front_and_nothing_else() -> None:
    for start in (_popen, _exec, _run):
        with start(["bash", "--norc", "--noprofile"]) as process:
            terminal = Conversation(process)
            terminal.type(b"sleep 1001 & echo back''ground\n")
            terminal.wait_for(b"background")
            terminal.type(b"sh -c 'echo fo\"\"re; exec sleep 1002'\n")
            terminal.wait_for(b"fore\r\n")
            terminal.type(INTERRUPT)
            terminal.type(b"echo status=$? $(jobs -r)\n")
            terminal.wait_for(b"status=130 [1]+ Running sleep 1001")
            terminal.type(b"sh -c 'echo fo\"\"re; exec sleep 1003'\n")
            terminal.wait_for(b"fore\r\n")
            terminal.type(SUSPEND)
            terminal.wait_for(b"Stopped")
            terminal.type(b"kill %1 %2; fg %2; exit 7\n")
            if isinstance(process, Container):
                assert process.wait(PATIENCE) == 7
            else:
                process.communicate(timeout=PATIENCE)
                assert process.returncode == 7


def test_raw_mode_passes_every_byte_both_ways() -> None:
    every = bytes(range(256)) * 8
    with container.popen(["sh", "-c", "stty raw -echo; echo ready; head -c 2048"], tty=True) as cat:
        terminal = Conversation(cat)
        terminal.wait_for(b"ready\n")
        terminal.type(every)
        assert cat.stdout is not None
        assert terminal.shown + cat.stdout.read() == every
    with container.popen(["sh", "-c", "sleep 1000"], tty=True) as process:
        assert process.stdin is not None
        tty.setraw(process.stdin)  # the mode of one end is that of the other
        terminal = Conversation(process)
        terminal.type(INTERRUPT)
        assert process.poll() is None
        process.kill()


def test_all_that_was_written_before_the_end_is_there() -> None:
    expected = b"".join(b"%d\r\n" % number for number in range(1, 3001))
    for _ in range(20):
        result = container.run(["seq", "3000"], tty=True, timeout=PATIENCE)
        assert result.stdout == expected
        with container.popen(["seq", "3000"], tty=True) as process:
            assert process.stdout is not None
            assert process.stdout.read() == expected


def test_output_is_bounded_and_the_rest_is_counted() -> None:
    result = container.run(["seq", "3000"], tty=True, max_output=10)
    assert (result.stdout, result.stdout_dropped) == (b"1\r\n2\r\n3\r\n4", 16893 - 10)
    result = container.run(["seq", "3000"], tty=True, max_output=6, keep="tail")
    assert result.stdout == b"3000\r\n"


def test_a_process_that_was_left_behind_does_not_hold_up_the_reader(box: Container) -> None:
    script = "sh -c 'trap \"\" HUP; sleep 1000' & echo done"
    with box.exec(ExecConfig(["sh", "-c", script], tty=True)) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"done\r\n"
    process = box.exec(ExecConfig(["sh", "-c", script], tty=True))
    assert process.communicate(timeout=PATIENCE) == (b"done\r\n", None)


def test_one_that_nobody_has_open_any_more_is_at_its_end() -> None:
    script = "exec <&- >&- 2>&-; exec sleep 1000"
    with container.popen(["sh", "-c", script], tty=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.poll() is None
        process.kill()


def test_writing_to_one_ends_with_its_container() -> None:
    with container.popen(["sh", "-c", "stty raw; exec sleep 1000"], tty=True) as process:
        writer = threading.Timer(0.2, process.kill)
        writer.start()
        with pytest.raises(BrokenPipeError):
            Conversation(process).type(b"x" * (1 << 20))  # more than it holds
        writer.join()


def test_a_timeout_ends_all_that_is_on_it() -> None:
    with pytest.raises(ContainerTimeoutError) as caught:
        container.run(["sh", "-c", "sleep 1000 & echo up; sleep 1000"], tty=True, timeout=0.5)
    assert caught.value.result is not None
    assert caught.value.result.timed_out


def test_in_text_mode_its_lines_are_lines() -> None:
    with container.popen(["seq", "3"], tty=True, text=True) as process:
        assert list(process) == ["1\n", "2\n", "3\n"]


def test_it_is_there_from_creation_on_and_what_was_typed_waits() -> None:
    with Container() as box:
        box.create(Process(["cat"], tty=True))
        terminal = Conversation(box)
        terminal.type(b"early\n")
        box.start()
        terminal.wait_for(b"early\r\nearly\r\n")


def test_our_last_end_closed_is_a_hangup() -> None:
    with Container() as box:
        script = "trap 'exit 9' HUP; echo up; while read x; do :; done"
        box.run(Process(["sh", "-c", script], tty=True))
        Conversation(box).wait_for(b"up")
        assert box._child is not None
        fd = box._child.take_terminal()
        assert fd is not None
        os.close(fd)
        for stream in (box.stdin, box.stdout):
            assert stream is not None
            stream.close()
        assert box.wait(PATIENCE) in (0, 9)  # by the signal, or by the end of what it reads


def test_the_end_of_its_caller_ends_what_is_on_it() -> None:
    pid, *_ = caller(
        """
        process = popen(["sleep", "1000"], tty=True)
        tell(process.pid)
        os._exit(0)
        """
    )
    assert wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


# A console socket ---------------------------------------------------------------------------------


def test_it_is_sent_over_a_console_socket_as_oci_tools_expect(tmp_path: Path) -> None:
    path = str(tmp_path / "console.sock")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        Container() as box,
    ):
        listener.bind(path)
        listener.listen()
        box.create(Process(["cat"], tty=True))
        assert box._child is not None
        ours = box._child.take_terminal()
        assert ours is not None
        send_terminal(ours, path)
        os.close(ours)
        with listener.accept()[0] as connection:
            # One name shorter than 4096 bytes and one fd, in one message: go-runc, conmon.
            name, control, flags, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
            assert connection.recv(1) == b""
        assert (name, flags & socket.MSG_CTRUNC) == (b"/dev/ptmx", 0)
        ((level, kind, data),) = control
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        (master,) = array.array("i", data)
        box.start()
        os.write(master, b"over\n")
        shown = b""
        while shown.count(b"over\r\n") < 2:
            shown += os.read(master, 100)
        os.close(master)


def test_a_console_socket_that_nobody_listens_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        send_terminal(0, str(tmp_path / "no.sock"))


# What is refused ----------------------------------------------------------------------------------


def test_without_a_devpts_of_its_own_there_is_no_terminal(rootdir: Path) -> None:
    for mounts in ([], [Mount.bind("/dev", "/dev")], [Mount.tmpfs("/dev/pts")]):
        config = Config(rootdir, setup_dev=False, mounts=mounts)
        with pytest.raises(UnsupportedError) as caught:
            container.run(["true"], config=config, tty=True)
        assert caught.value.field == "tty"


def test_a_stream_of_the_callers_cannot_be_had_with_it() -> None:
    for name in ("stdin", "stdout", "stderr"):
        with pytest.raises(ConfigError) as caught:
            Process(["true"], tty=True, **{name: 0})  # type: ignore[arg-type]
        assert caught.value.field == name
        with pytest.raises(ConfigError):
            ExecConfig(["true"], tty=True, **{name: 0})  # type: ignore[arg-type]
    assert Process(["true"], tty=True, stdin=PIPE, stdout=PIPE).tty


def test_a_size_is_two_small_numbers_and_needs_a_terminal() -> None:
    for size in ((1,), (1, 2, 3), (-1, 1), (1, 65536), "12", (1, "2"), 5):
        with pytest.raises(ConfigError) as caught:
            Process(["true"], tty=True, tty_size=size)  # type: ignore[arg-type]
        assert caught.value.field == "tty_size"
    with pytest.raises(ConfigError, match="tty_size"):
        Process(["true"], tty_size=(1, 2))


def test_what_has_no_terminal_cannot_be_resized(box: Container) -> None:
    with pytest.raises(StateError, match="no terminal"):
        box.resize(1, 2)
    with container.popen(["sleep", "1000"]) as process:
        with pytest.raises(StateError, match="no terminal"):
            process.resize(1, 2)
        with pytest.raises(ConfigError, match="columns"):
            process.resize(1, -2)
        process.kill()
    process.resize(1, 2)  # it has ended: nothing happens, as with a signal


def test_a_terminal_is_one_of_the_mount_namespace_that_is_joined(box: Container) -> None:
    assert box.pid is not None
    with pytest.raises(UnsupportedError) as caught:
        container.exec_in_namespaces(box.pid, ExecConfig(["true"], tty=True), namespaces={"uts"})
    assert caught.value.field == "tty"


@pytest.mark.needs("root")
def test_a_command_in_the_namespaces_of_a_stranger_has_one_too() -> None:
    source = """
        box = Container()
        box.run(Process(["sleep", "1000"]))
        tell(box.pid)
        sys.stdin.read()
        box.destroy()
        """
    with running_caller(source) as owner:
        argv = ExecConfig(["tty"], tty=True)
        process = container.exec_in_namespaces(told(owner), argv, text=True)
        assert process.communicate(timeout=PATIENCE) == ("/dev/pts/0\n", None)
        assert process.returncode == 0
        owner.communicate()


# Attacks ------------------------------------------------------------------------------------------

PUSH = """
import fcntl, os, termios
answer = []
for extra in (0, 1 << 32):
    try:
        for byte in b"id\\n":
            fcntl.ioctl(0, termios.TIOCSTI, bytes([byte]))
        answer.append("pushed")
    except OSError as error:
        answer.append(error.errno)
"""


def test_typing_into_a_terminal_is_refused_by_the_default_filter() -> None:
    assert answer_of(PUSH) == [1, 1]  # EPERM


def test_what_is_pushed_into_its_own_terminal_stays_there() -> None:
    result = container.run(program(PUSH), config=Config(seccomp=None), tty=True)
    assert b"pushed" in result.stdout or b"[5, 5]" in result.stdout  # EIO: the sysctl forbids it
    with container.popen(["cat"], tty=True) as other:
        assert other.stdout is not None
        assert not select.select([other.stdout], [], [], 0)[0]
        other.kill()


EVIL = {
    "nothing": ("rm -rf /dev/pts", "ENOENT"),
    "a link": ("ln -s /tmp /dev/pts", "ELOOP"),
    "a link to another devpts": ("ln -s /tmp/pts /dev/pts", "ELOOP"),
    "a directory with a file": ("mkdir /dev/pts; echo > /dev/pts/ptmx", "ENODEV"),
    "a directory with a fifo": ("mkdir /dev/pts; mkfifo /dev/pts/ptmx", "ENODEV"),
    "a file": ("echo > /dev/pts", "ENOTDIR"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_command_gets_no_terminal_of_what_the_image_calls_devpts(
    kind: str, fresh_root: Path
) -> None:
    script, error = EVIL[kind]
    for name in ("proc", "sys"):
        (fresh_root / name).chmod(0o755)
    mounts = [Mount("devpts", "/tmp/pts", type="devpts")]
    config = Config(fresh_root, setup_dev=False, mounts=mounts)
    with Container(config) as box:
        box.run(Process(["sleep", "1000"]))
        assert box.exec(["sh", "-c", script]).wait() == 0
        with pytest.raises(LaunchError) as caught:
            box.exec(ExecConfig(["true"], tty=True))
        assert (caught.value.step, error in str(caught.value)) == ("terminal", True)


def test_a_console_of_the_image_is_not_followed_and_not_touched(fresh_root: Path) -> None:
    decoy = fresh_root.parent / "decoy"
    decoy.write_text("decoy")
    (fresh_root / "dev/console").symlink_to(decoy)
    (fresh_root / "dev/pts").symlink_to(fresh_root.parent)
    result = container.run(["stat", "-c", "%t:%T", "/dev/console"], root=fresh_root, tty=True)
    assert result.stdout == b"88:0\r\n"
    assert decoy.read_text() == "decoy"
    assert stat.S_ISLNK((fresh_root / "dev/console").lstat().st_mode)
    # A tmpfs of the user's over the image's /dev, and in it no link can be.
    mounts = [Mount.tmpfs("/console"), Mount("devpts", "/console/pts", type="devpts")]
    (fresh_root / "link").symlink_to("/console")
    config = Config(fresh_root, setup_dev=False, mounts=mounts)
    with pytest.raises(UnsupportedError):
        container.run(["true"], config=config, tty=True)
