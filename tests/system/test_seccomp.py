# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls, seen from inside: what the kernel answers, and what still works."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from system.conftest import OrdinaryUser, open_directory
from system.helpers import attempt, caller, inside, lines, python, shell, status_inside

import container
from container import (
    PIPE,
    Capabilities,
    Config,
    ConfigError,
    Container,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    SeccompFlag,
    SeccompProfile,
    SyscallArg,
    SyscallRule,
    default_capabilities,
)

pytestmark = pytest.mark.needs("userns")

SOURCE = Path(__file__).with_name("calls.c")
UNFILTERED = Config(seccomp=None)
PRIVILEGED = Config(no_new_privileges=False)


@pytest.fixture(scope="module")
def calls() -> Iterator[Path]:
    """A directory with the static program `calls`: see calls.c."""
    with open_directory() as directory:
        flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", directory / "calls", SOURCE], check=True)
        yield directory


def make_call(
    calls: Path, *words: int | str, config: Config | None = None, **options: Any
) -> int | signal.Signals:
    """What one call returns in a container, or the signal that it died of."""
    result = container.run(
        ["/calls/calls", *map(str, words)],
        binds=[Mount.bind(calls, "/calls", read_only=True)],
        config=config or Config(),
        text=True,
        **options,
    )
    if result.signal is not None:
        return signal.Signals(result.signal)
    assert result.returncode == 0, result
    return int(result.stdout)


USERS: list[Any] = [0, pytest.param(1000, marks=pytest.mark.needs("root", "idmap"))]

# Number on x86_64, arguments → errno. The last column: what the kernel says without a filter
# is something else, so that no test is of the kernel's own refusals.
CALLS: dict[str, tuple[Sequence[int], int]] = {
    "clone3": ((435, 0, 0), errno.ENOSYS),
    "the call after the newest": ((9999,), errno.ENOSYS),
    "call -1": ((-1,), errno.ENOSYS),
    "io_uring_setup": ((425, 1, 0), errno.EPERM),
    "keyctl": ((250, 0, 0), errno.EPERM),
    "add_key": ((248, 0, 0), errno.EPERM),
    "bpf": ((321, 99, 0, 0), errno.EPERM),
    "unshare of a user namespace": ((272, 0x10000000), errno.EPERM),
    "unshare of nothing": ((272, 0), errno.EPERM),
    "setns": ((308, -1, 0), errno.EPERM),
    "mount": ((165, 0, 0, 0, 0, 0), errno.EPERM),
    "clone of a user namespace": ((56, 0x10000011), errno.EPERM),
    "socket AF_VSOCK": ((41, 40, 1, 0), errno.EPERM),
    "socket AF_VSOCK with high bits": ((41, 40 | 1 << 32, 1, 0), errno.EPERM),
    "socket AF_ALG": ((41, 38, 5, 0), errno.EPERM),
    "socketpair AF_VSOCK": ((53, 40, 1, 0, 0), errno.EPERM),
    "TIOCSTI": ((16, 0, 0x5412, 0), errno.EPERM),
    "TIOCSTI with high bits": ((16, 0, 0x5412 | 1 << 32, 0), errno.EPERM),
    "TIOCLINUX with high bits": ((16, 0, 0x541C | 1 << 63, 0), errno.EPERM),
    "personality READ_IMPLIES_EXEC": ((135, 0x0400000), errno.EPERM),
    "userfaultfd": ((323, -1), errno.EPERM),
    "perf_event_open": ((298, 0, 0, 0, 0, -1), errno.EPERM),
    "open_by_handle_at": ((304, -1, 0, 0), errno.EPERM),
}


@pytest.mark.needs("gcc", "x86_64")
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", CALLS)
def test_a_call_is_refused(calls: Path, kind: str, user: int) -> None:
    words, expected = CALLS[kind]
    assert make_call(calls, "own", *words, user=user) == -expected


# What the kernel itself would say of these is something else, whatever its configuration.
TELLING = [
    *("clone3", "keyctl", "add_key", "unshare of nothing", "setns", "clone of a user namespace"),
    *("socket AF_VSOCK", "socket AF_VSOCK with high bits", "socket AF_ALG", "socketpair AF_VSOCK"),
    *("TIOCSTI", "TIOCSTI with high bits", "TIOCLINUX with high bits"),
    "personality READ_IMPLIES_EXEC",
]


@pytest.mark.needs("gcc", "x86_64")
@pytest.mark.parametrize("kind", TELLING)
def test_it_is_the_filter_that_refuses_a_call(calls: Path, kind: str) -> None:
    words, expected = CALLS[kind]
    assert make_call(calls, "own", *words, config=UNFILTERED) != -expected


@pytest.mark.needs("gcc", "x86_64")
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("words", [("x86", 20), ("x32", 39), ("x32", 9999)], ids=str)
def test_a_call_by_another_abi_kills(calls: Path, words: tuple[str, int], user: int) -> None:
    assert make_call(calls, *words, user=user) == signal.SIGSYS
    assert make_call(calls, *words, user=user, config=UNFILTERED) != signal.SIGSYS


@pytest.mark.needs("gcc", "x86_64")
def test_an_abi_that_the_profile_lists_may_be_used_under_the_same_rules(calls: Path) -> None:
    default = SeccompProfile.default()
    listed = SeccompProfile("ERRNO", default.syscalls, ["SCMP_ARCH_X86"])
    config = Config(seccomp=listed)
    assert make_call(calls, "x86", 435, 0, 0, config=config) == -errno.ENOSYS
    assert make_call(calls, "x86", 288, 0, config=config) == -errno.EPERM  # keyctl
    unfiltered = make_call(calls, "x86", 20, config=UNFILTERED)  # getpid, where the kernel has it
    assert make_call(calls, "x86", 20, config=config) == unfiltered
    assert make_call(calls, "x32", 39, config=config) == signal.SIGSYS


@pytest.mark.needs("rootless", "gcc", "x86_64")
def test_an_ordinary_user_s_container_has_the_same_filter(
    calls: Path, as_user: OrdinaryUser
) -> None:
    words_of = {kind: words for kind, (words, _) in CALLS.items()}
    program = f"""
        import container, json
        found = {{}}
        for kind, words in {words_of}.items():
            args = ["/calls/calls", "own", *map(str, words)]
            result = container.run(args, binds=["{calls}:/calls:ro"], text=True, check=True)
            found[kind] = -int(result.stdout)
        for abi, number in (("x86", "20"), ("x32", "39")):
            result = container.run(["/calls/calls", abi, number], binds=["{calls}:/calls:ro"])
            found[abi] = result.signal
        found["status"] = container.run(["cat", "/proc/1/status"], text=True).stdout
        print(json.dumps(found))
        """
    done = as_user(program)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "\nSeccomp:\t2\n" in found.pop("status")
    assert found.pop("x86") == found.pop("x32") == signal.SIGSYS
    assert found == {kind: number for kind, (_, number) in CALLS.items()}


# State --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("config", [Config(), PRIVILEGED], ids=["no_new_privs", "privileged"])
def test_a_container_has_one_filter(config: Config, user: int) -> None:
    status = status_inside(config=config, user=user)
    assert (status["Seccomp"], status["Seccomp_filters"]) == ("2", "1")
    assert status["NoNewPrivs"] == str(int(config.no_new_privileges))


def test_what_a_program_starts_has_the_filter_too() -> None:
    assert lines("grep Seccomp: /proc/1/status; sh -c 'grep Seccomp: /proc/self/status'") == (
        ["Seccomp:\t2"] * 2
    )


def test_none_is_no_filter() -> None:
    assert status_inside(config=UNFILTERED)["Seccomp"] == "0"


def test_the_filter_is_there_in_a_container_that_waited_at_the_gate() -> None:
    with Container() as box:
        box.create(Process(["cat", "/proc/1/status"], stdout=PIPE))
        assert "\nSeccomp:\t0\n" in Path(f"/proc/{box.pid}/status").read_text()
        box.start()
        assert box.stdout is not None
        assert b"\nSeccomp:\t2\n" in box.stdout.read()
        assert box.wait() == 0


@pytest.mark.needs("root")
def test_without_a_user_namespace_there_is_the_filter_as_well() -> None:
    for privileged in (False, True):
        config = Config(namespaces=Namespaces(user=False), no_new_privileges=not privileged)
        assert status_inside(config=config)["Seccomp"] == "2"


def test_no_listener_nor_anything_else_is_left_open() -> None:
    assert inside("answer = sorted(map(int, os.listdir('/proc/self/fd')))") == [0, 1, 2, 3]


# Terminals ----------------------------------------------------------------------------------------


def test_nothing_is_typed_into_a_terminal_on_standard_input() -> None:
    leader, follower = os.openpty()
    try:
        result = container.run(
            python(
                """
                import fcntl
                for command in (0x5412, 0x541C):
                    try:
                        fcntl.ioctl(0, command, b"i")
                    except OSError as error:
                        print(error.errno)
                """
            ),
            stdin=follower,
            text=True,
        )
        assert result.stdout.split() == [str(errno.EPERM)] * 2, result
        os.set_blocking(leader, False)
        with pytest.raises(BlockingIOError):
            os.read(leader, 100)  # not even an echo
    finally:
        os.close(leader)
        os.close(follower)


# Capabilities -------------------------------------------------------------------------------------


def test_what_a_capability_is_for_works_with_it() -> None:
    admin = Capabilities(*[default_capabilities() | {"SYS_ADMIN"}] * 3)
    assert attempt("unshare -u true").returncode != 0
    assert shell("unshare -u hostname inner && echo yes", config=Config(capabilities=admin))
    none = Config(capabilities=Capabilities.none())
    assert inside(
        """
        try:
            answer = os.chroot("/")
        except OSError as error:
            answer = error.errno
        """,
        config=none,
    ) == (errno.EPERM)


# Profiles of one's own ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seven() -> Iterator[Path]:
    """A directory with a program that makes one system call: exit_group(7)."""
    with open_directory() as directory:
        source = 'void _start(void){__asm__("syscall"::"a"(231),"D"(7));__builtin_trap();}'
        command = ["gcc", "-static", "-nostdlib", "-x", "c", "-", "-o", str(directory / "seven")]
        subprocess.run(command, input=source, text=True, check=True)
        yield directory


def run_seven(seven: Path, profile: SeccompProfile, program: str = "/seven/seven") -> Any:
    binds = [Mount.bind(seven, "/seven", read_only=True)]
    return container.run([program], binds=binds, config=Config(seccomp=profile)).returncode


def allowing(*names: str, default: str = "ERRNO") -> SeccompProfile:
    return SeccompProfile(default, [SyscallRule(names, "ALLOW")])


@pytest.mark.needs("gcc", "x86_64")
def test_a_profile_need_not_allow_more_than_execve_and_what_the_program_calls(seven: Path) -> None:
    assert run_seven(seven, allowing("execve", "exit_group")) == 7
    assert run_seven(seven, allowing("execve", "exit_group", default="KILL_PROCESS")) == 7
    assert run_seven(seven, allowing("execve")) == -signal.SIGILL
    assert run_seven(seven, allowing("execve", default="KILL_PROCESS")) == -signal.SIGSYS
    assert run_seven(seven, allowing("execve", default="TRAP")) == -signal.SIGSYS


@pytest.mark.needs("gcc", "x86_64")
def test_a_profile_without_execve_is_told_as_the_start_that_failed(seven: Path) -> None:
    with pytest.raises(LaunchError) as caught:
        run_seven(seven, allowing("exit_group", default="ERRNO"))
    assert (caught.value.step, caught.value.errno) == ("exec", errno.EPERM)
    # Killed in the middle of execve: nothing tells that from killed after it.
    for default in ("KILL_PROCESS", "KILL_THREAD", "TRAP"):
        assert run_seven(seven, allowing("exit_group", default=default)) == -signal.SIGSYS


@pytest.mark.needs("gcc", "x86_64")
def test_a_start_that_fails_under_a_filter_without_exit_ends_and_tells_why(seven: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_seven(seven, allowing("execve"), "/seven/eight")


def test_a_program_that_is_missing_is_told_under_any_filter() -> None:
    for default in ("ERRNO", "TRAP", "KILL_PROCESS", "ALLOW"):
        config = Config(seccomp=allowing("execve", "exit_group", default=default))
        for program in ("/no/such/program", "no-such-program"):
            with pytest.raises(FileNotFoundError):
                container.run([program], config=config)


@pytest.mark.needs("gcc", "x86_64")
def test_a_program_in_a_later_directory_of_path_is_found_under_a_filter_that_kills(
    seven: Path,
) -> None:
    result = container.run(
        ["seven"],
        env={"PATH": "/bin:/nowhere:/seven"},
        binds=[Mount.bind(seven, "/seven", read_only=True)],
        config=Config(seccomp=allowing("execve", "exit_group", default="KILL_PROCESS")),
    )
    assert result.returncode == 7


def test_without_no_new_privs_the_profile_holds_for_the_change_of_ids() -> None:
    rules = SeccompProfile.default().syscalls
    refusing = SeccompProfile(
        "ERRNO", [*rules, SyscallRule(["setresuid"], "ERRNO", errno_ret=errno.EXDEV)]
    )
    with pytest.raises(LaunchError) as caught:
        container.run(["true"], config=Config(seccomp=refusing, no_new_privileges=False))
    assert (caught.value.step, caught.value.errno) == ("ids", errno.EXDEV)
    assert container.run(["true"], config=Config(seccomp=refusing)).returncode == 0


def test_errnos_arguments_and_the_log_flag_of_a_profile_hold() -> None:
    rule = SyscallRule(["mkdir", "mkdirat"], "ERRNO", errno_ret=errno.EXDEV)
    number = SyscallRule(["dup"], "ERRNO", [SyscallArg(0, 77)], errno_ret=errno.ENOLINK)
    profile = SeccompProfile("ALLOW", [rule, number], flags=list(SeccompFlag))
    answer = inside(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        answer = []
        for call, *arguments in ((libc.mkdir, b"/tmp/x", 0o755), (libc.dup, 77), (libc.dup, 78)):
            answer += [call(*arguments), ctypes.get_errno()]
        """,
        config=Config(seccomp=profile),
    )
    assert answer == [-1, errno.EXDEV, -1, errno.ENOLINK, -1, errno.EBADF]


def test_a_profile_that_no_filter_can_hold_is_refused_by_its_rule() -> None:
    rules = [
        SyscallRule(["mmap"], "ALLOW", [SyscallArg(0, value << 33 | 1), SyscallArg(1, value)])
        for value in range(2000)
    ]
    for start in (container.run, container.popen):
        with pytest.raises(ConfigError) as caught:
            start(["true"], config=Config(seccomp=SeccompProfile("ERRNO", rules)))
        assert caught.value.field.startswith("seccomp.syscalls[")


def test_the_largest_filter_that_the_kernel_takes_is_loaded() -> None:
    rules = [
        SyscallRule(["mremap"], "TRAP", [SyscallArg(0, value << 33 | 1), SyscallArg(1, value)])
        for value in range(505)
    ]
    config = Config(seccomp=SeccompProfile("ALLOW", rules))
    assert status_inside(config=config)["Seccomp"] == "2"


def test_a_caller_with_the_personality_of_a_32_bit_machine_starts_containers() -> None:
    told = caller(
        """
        check(libc.personality(8))  # PER_LINUX32
        tell(os.uname().machine)
        tell(run(["grep", "Seccomp:", "/proc/1/status"], text=True).stdout)
        """
    )
    assert told[1] == "Seccomp:\t2\n"
    assert told[0] in ("i686", "armv8l")


# Programs -----------------------------------------------------------------------------------------

THREADS = """
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static void *run(void *argument) { *(int *)argument = 1; return 0; }
int main(void)
{
    pthread_t thread; int ran = 0, status = 1; struct addrinfo *found;
    if (pthread_create(&thread, 0, run, &ran) || pthread_join(thread, 0)) return 1;
    if (fork() == 0) _exit(getaddrinfo("localhost", "80", 0, &found) != 0);
    if (wait(&status) < 0) return 2;
    printf("%d %d\\n", ran, status);
    return 0;
}
"""


@pytest.mark.parametrize(
    "compiler",
    [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("gcc", "musl-gcc")],
)
def test_threads_processes_and_names_work_with_every_c_library(
    compiler: str, tmp_path: Path
) -> None:
    with open_directory() as directory:
        static = ["-static"] if compiler == "musl-gcc" else []
        command = [compiler, *static, "-pthread", "-x", "c", "-", "-o", str(directory / "threads")]
        subprocess.run(command, input=THREADS, text=True, check=True)
        result = container.run(
            ["/threads/threads"],
            binds=[Mount.bind(directory, "/threads", read_only=True)],
            text=True,
        )
    assert (result.returncode, result.stdout) == (0, "1 0\n"), result


@pytest.mark.parametrize("config", [Config(), PRIVILEGED], ids=["no_new_privs", "privileged"])
def test_python_works_with_threads_processes_sockets_and_files(config: Config) -> None:
    answer = inside(
        """
        import asyncio, multiprocessing, socket, sqlite3, subprocess, tempfile, threading, time
        answer = []
        thread = threading.Thread(target=answer.append, args=("thread",))
        thread.start(); thread.join()
        answer.append(subprocess.run(["echo", "process"], capture_output=True, text=True).stdout)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            answer.append(pool.map(abs, [-1, -2]))
        async def serve():
            async def reply(reader, writer):
                writer.write(await reader.readline())
                writer.close()
            server = await asyncio.start_server(reply, "localhost", 0)
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("localhost", port)
            writer.write(b"socket\\n")
            answer.append((await reader.readline()).decode())
            writer.close()
            server.close()
        asyncio.run(serve())
        with tempfile.NamedTemporaryFile() as file:
            database = sqlite3.connect(file.name)
            database.execute("create table t (a)")
            database.execute("insert into t values (7)")
            answer.append(database.execute("select a from t").fetchone())
        answer.append(len(os.listxattr("/tmp")))
        answer.append(os.sched_getaffinity(0) != set())
        """,
        config=config,
    )
    assert answer == ["thread", "process\n", [1, 2], "socket\n", [7], 0, True]


def test_numpy_works() -> None:
    source = "import numpy; a = numpy.ones((200, 200)); print(int((a @ a).sum()))"
    result = container.run([sys.executable, "-c", source], text=True)
    assert (result.returncode, result.stdout) == (0, "8000000\n"), result


@pytest.mark.needs("gcc")
def test_a_compiler_and_what_it_made_work() -> None:
    script = """
        cd /tmp && echo 'int main(void) { return 7; }' > seven.c && gcc -o seven seven.c
        ./seven; echo $?
        """
    assert shell(script) == "7\n"


@pytest.mark.needs("node")
def test_node_works() -> None:
    source = (
        "const w = require('worker_threads');"
        "require('dns').lookup('localhost', (e) => {"
        "new w.Worker('1', {eval: true}).on('exit', (c) => console.log(!e, c));});"
    )
    result = container.run(["node", "-e", source], text=True)
    assert (result.returncode, result.stdout) == (0, "true 0\n"), result


@pytest.mark.needs("strace")
def test_a_debugger_of_its_own_children_works() -> None:
    result = attempt("strace -f -e trace=execve true 2>&1 | grep -c execve")
    assert (result.returncode, result.stdout) == (0, "1\n"), result
