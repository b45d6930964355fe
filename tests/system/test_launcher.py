# SPDX-License-Identifier: Apache-2.0
"""The launcher process: what it is, what it holds, how much it takes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from system.helpers import (
    PATIENCE,
    caller,
    caller_argv,
    is_readable,
    lines,
    parse_status,
    running_caller,
    shell,
    told,
    watched,
)

import container
from container import Config, ConfigError, Mount
from container._launcher import launcher_pid

pytestmark = pytest.mark.needs("userns")

KiB = 1 << 10


class AsUser(Protocol):
    """The fixture as_user."""

    home: Path

    def __call__(self, program: Any, **options: Any) -> subprocess.CompletedProcess[str]: ...


STARTS = 150

# Not to be looked into ----------------------------------------------------------------------------


@pytest.mark.needs("rootless")
def test_its_own_user_can_neither_read_nor_trace_the_launcher(as_user: AsUser) -> None:
    done = as_user(
        """
        import container, ctypes, os
        from container import _launcher
        from container._launcher import launcher_pid
        libc = ctypes.CDLL(None, use_errno=True)
        container.run(["true"])
        pid = launcher_pid()
        _launcher.drop_blanks()  # one that is being made is dumpable until its ids are mapped
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            pids = [pid, *map(int, file.read().split())]
        for each in pids:
            for name in ("mem", "environ", "maps", "auxv", "stack", "syscall"):
                try:
                    open(f"/proc/{each}/{name}", "rb").close()
                except PermissionError:
                    continue
                print("opened", name)
            for name in ("fd", "map_files"):
                try:
                    os.listdir(f"/proc/{each}/{name}")
                except PermissionError:
                    continue
                print("listed", name)
            for name in ("exe", "cwd", "root", "ns/mnt"):
                try:
                    os.readlink(f"/proc/{each}/{name}")
                except PermissionError:
                    continue
                print("read", name)
            PTRACE_SEIZE = 0x4206
            if libc.ptrace(PTRACE_SEIZE, each, 0, 0) != -1 or ctypes.get_errno() != 1:
                print("traced")
        """
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.needs("root")
def test_its_program_is_sealed_and_opens_for_writing_for_nobody() -> None:
    # CVE-2019-5736: whoever gets at /proc/PID/exe could change what the next start runs.
    path = f"/proc/{launcher_pid()}/exe"
    assert os.readlink(path).startswith("/memfd:container-launcher")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with pytest.raises(OSError) as caught:
            os.open(path, flags)
        assert caught.value.errno in {errno.ETXTBSY, errno.EPERM, errno.EACCES}
    program = os.open(path, os.O_RDONLY)
    try:
        seals = fcntl.fcntl(program, fcntl.F_GET_SEALS)
        wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        assert seals & wanted == wanted
    finally:
        os.close(program)


@pytest.mark.needs("root")
def test_its_program_cannot_be_written_even_when_it_does_not_run_any_more() -> None:
    with running_caller("run(['true']); tell(launcher_pid()); sys.stdin.readline()") as process:
        pid = told(process)
        program = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
        with watched([pid]) as survivors:
            process.kill()
            assert survivors(PATIENCE) == []
    try:
        # Its name in /proc leads to a fresh description, which could be writable.
        again = os.open(f"/proc/self/fd/{program}", os.O_RDWR)
        try:
            for write in (
                lambda: os.write(again, b"x"),
                lambda: os.ftruncate(again, 0),
                lambda: os.ftruncate(again, 1 << 20),
            ):
                with pytest.raises(PermissionError):
                    write()
        finally:
            os.close(again)
    finally:
        os.close(program)


@pytest.mark.needs("root", "busybox")
def test_a_program_that_makes_the_launcher_its_interpreter_gets_nothing_of_it(
    fresh_root: Path,
) -> None:
    # CVE-2019-5736: at the moment of execve /proc/self/exe is what the child was cloned from.
    script = fresh_root / "bin/evil"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    (fresh_root / "bin/evil-link").symlink_to("/proc/self/exe")

    def image() -> tuple[int, bytes]:
        return launcher_pid(), Path(f"/proc/{launcher_pid()}/exe").read_bytes()

    container.run(["true"])
    before = image()
    for _ in range(STARTS):
        for name in ("evil", "evil-link"):
            # It runs, finds no caller, and goes.
            assert container.run([f"/bin/{name}"], root=fresh_root).returncode == 1
    assert image() == before


@pytest.mark.needs("root")
def test_it_holds_nothing_of_its_callers() -> None:
    with running_caller(
        """
        import socket
        os.environ["SECRET"] = "hunter2"
        os.chdir("/tmp")
        files = [open("/etc/passwd"), socket.socket(), *(open("/dev/zero") for _ in range(20))]
        for file in files:
            os.set_inheritable(file.fileno(), True)
        os.dup2(files[0].fileno(), 900)  # above all that the launcher is given
        os.set_inheritable(0, True)
        run(["true"], check=True)
        tell(launcher_pid())
        sys.stdin.readline()
        os._exit(0)
        """
    ) as process:
        pid = told(process)
        links = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # it works on, making blank children
                links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"container-launcher\0"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        status = parse_status(Path(f"/proc/{pid}/status").read_text())
        caller_status = Path(f"/proc/{process.pid}/status")
        kinds = sorted(link.split("[")[0].rstrip(":").split("/")[-1] for link in links)
        image = "memfd:container-launcher (deleted)"  # its own, for an init
        own = {"null", "socket", "status", "anon_inode", "ids.lock", "suid_dumpable", image}
        assert set(kinds) <= own
        assert kinds.count("null") == 3
        assert kinds.count("status") == 1
        assert caller_status.exists()
    assert (status["Threads"], status["NSpid"]) == ("1", str(pid))


def test_it_is_one_thread_and_small() -> None:
    status, size = caller(
        """
        for _ in range(20):
            run(["true"], check=True)
        with open(f"/proc/{launcher_pid()}/status") as file:
            status = {name: value.split() for name, _, value in (l.partition(":") for l in file)}
        tell(status["Threads"])
        tell(int(status["VmRSS"][0]))
        """
    )
    assert status == ["1"]
    assert size <= KiB


# Large requests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand() -> Iterator[Path]:
    """A directory with files to bind that everybody can reach."""
    with tempfile.TemporaryDirectory(prefix="tests-") as directory:
        os.chmod(directory, 0o755)
        for number in range(1010):
            Path(directory, f"{number}").write_text(f"{number}\n")
        yield Path(directory)


def binds(directory: Path, count: int) -> Config:
    return Config(
        mounts=[
            Mount.tmpfs("/data"),
            *(Mount.bind(directory / f"{n}", f"/data/{n}", True) for n in range(count)),
        ]
    )


# A message takes 250 fds: with the channel and stdio 246 are left, 245 with a memfd.
@pytest.mark.needs("busybox")
@pytest.mark.parametrize("count", [244, 245, 246, 249, 250, 251, 495, 500, 900])
def test_more_sources_than_a_message_takes_come_over_in_their_order(
    rootdir: Path, thousand: Path, count: int
) -> None:
    script = f"cd /data; cat $(seq 0 {count - 1})"
    output = lines(script, root=rootdir, config=binds(thousand, count))
    assert output == [str(number) for number in range(count)]


@pytest.mark.needs("busybox")
def test_sources_and_a_request_that_needs_a_memfd_come_over_together(
    rootdir: Path, thousand: Path
) -> None:
    env = {f"V{number}": "x" * 60_000 for number in range(4)}
    script = "cat /data/0 /data/299; echo $(( ${#V0} + ${#V3} ))"
    output = lines(script, root=rootdir, config=binds(thousand, 300), env=env)
    assert output == ["0", "299", "120000"]


@pytest.mark.needs("root", "busybox")
def test_more_sources_than_the_launcher_takes_are_an_error(rootdir: Path, thousand: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        container.run(["true"], root=rootdir, config=binds(thousand, 1005))
    assert caught.value.field == "mounts"
    assert shell("echo good", root=rootdir) == "good\n"


# How it comes to run ------------------------------------------------------------------------------


@pytest.fixture
def without_executable_memfds() -> Iterator[list[str]]:
    """A command prefix: a pid namespace in which no memfd can be executed (vm.memfd_noexec)."""
    if not os.path.exists("/proc/sys/vm/memfd_noexec"):
        pytest.skip("this kernel has no vm.memfd_noexec")
    script = 'echo 2 >/proc/sys/vm/memfd_noexec && exec "$@"'
    yield [
        *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"),
        *("sh", "-c", script, "sh"),
    ]


@pytest.mark.needs("root")
def test_where_no_memfd_can_be_executed_it_runs_from_a_nameless_file(
    without_executable_memfds: list[str],
) -> None:
    before = {name for name in os.listdir("/run") if "container" in name}
    source = """
    try:
        os.memfd_create("x", 0x10)  # MFD_EXEC
    except PermissionError:
        tell("refused")
    tell(run(["echo", "hello"], text=True).stdout)
    tell(os.readlink(f"/proc/{launcher_pid()}/exe"))
    try:
        os.open(f"/proc/{launcher_pid()}/exe", os.O_WRONLY)
    except OSError as error:
        tell(errno.errorcode[error.errno])
    """
    done = subprocess.run(
        [*without_executable_memfds, *caller_argv(source)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    refused, hello, program, write = done.stdout.splitlines()
    assert (refused, hello) == ('"refused"', '"hello\\n"')
    assert program.endswith(' (deleted)"')
    assert "memfd" not in program
    assert write == '"ETXTBSY"'
    assert {name for name in os.listdir("/run") if "container" in name} == before


@pytest.mark.needs("root")
def test_a_directory_where_nothing_can_be_executed_is_passed_over(
    without_executable_memfds: list[str],
) -> None:
    source = """
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", "/mnt"], check=True)
    os.environ["XDG_RUNTIME_DIR"] = "/mnt"
    tell(run(["echo", "hello"], text=True).stdout)
    tell(os.readlink(f"/proc/{launcher_pid()}/exe").startswith("/mnt"))
    """
    done = subprocess.run(
        [*without_executable_memfds, *caller_argv(source)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (['"hello\\n"', "false"], "")


@pytest.mark.needs("root")
def test_pid_1_of_a_pid_namespace_runs_containers_and_has_no_zombies() -> None:
    source = """
    tell(os.getpid())
    for _ in range(3):
        run(["sh", "-c", "(setsid sleep 1000 &) ; true"], check=True)
        kill_launcher()
    run(["true"], check=True)
    deadline = time.monotonic() + 5
    def zombies():
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat") as file:
                    found += [name] if ") Z " in file.read() else []
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found
    while zombies() and time.monotonic() < deadline:
        time.sleep(0.005)
    tell(zombies())
    """
    prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    done = subprocess.run(
        [*prefix, *caller_argv(source)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["1", "[]"], "")


@pytest.mark.new_launcher
def test_one_that_died_is_replaced_and_its_files_are_given_back() -> None:
    pid = launcher_pid()
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert is_readable(pidfd, PATIENCE)
    finally:
        os.close(pidfd)
    assert container.run(["true"]).returncode == 0
    assert launcher_pid() != pid
    # The guard of every test sees to it that nothing more is open than before.
