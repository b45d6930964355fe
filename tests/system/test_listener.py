# SPDX-License-Identifier: Apache-2.0
"""NOTIFY: calls of a container that its caller answers, seccomp_unotify(2)."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from select import POLLIN, poll
from typing import TYPE_CHECKING

import pytest
from system.helpers import PATIENCE, caller_argv, wait_until

import container
from container import (
    PIPE,
    Config,
    ConfigError,
    Container,
    ExecConfig,
    LaunchError,
    Namespaces,
    Process,
    SeccompProfile,
    SyscallRule,
    UnsupportedError,
)
from container._seccomp._tables import ARCHITECTURES, native_architecture, numbers_of

if TYPE_CHECKING:
    from system.conftest import OrdinaryUser

pytestmark = pytest.mark.needs("userns")

# include/uapi/linux/seccomp.h
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
Answer = tuple[int, int, int]  # value, errno, flags
GO_ON: Answer = (0, 0, CONTINUE)
NATIVE = native_architecture(os.uname().machine) or ARCHITECTURES["SCMP_ARCH_X86_64"]
NUMBERS = numbers_of(NATIVE)

ASK_UNAME = SeccompProfile("ALLOW", [SyscallRule(["uname"], "NOTIFY")])
ASKING = Config(seccomp=ASK_UNAME)
# Everything but what starts the program.
CURIOUS = Config(seccomp=SeccompProfile("NOTIFY", [SyscallRule(["execve"], "ALLOW")]))
MACHINE = ["uname", "-r"]


@contextmanager
def answering(listener: int | None, answer: Callable[[int], Answer]) -> Iterator[list[int]]:
    """Answers in a thread of its own; the numbers of the calls that were asked about."""
    assert listener is not None
    asked: list[int] = []
    end, stop = os.pipe()

    def serve() -> None:
        waiting = poll()
        waiting.register(listener, POLLIN)
        waiting.register(end, POLLIN)
        while all(fd == listener and event & POLLIN for fd, event in waiting.poll()):
            question = bytearray(80)
            try:
                ioctl(listener, RECEIVE, question)
                identity, number = struct.unpack_from("Q8xi", question)
                asked.append(number)
                value, error, flags = answer(number)
                ioctl(
                    listener, SEND, bytearray(struct.pack("QqiI", identity, value, -error, flags))
                )
            except FileNotFoundError:  # it was killed meanwhile
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        os.close(stop)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        os.close(end)


KINDS = {
    "default": Namespaces(),
    "a time namespace": Namespaces(time=True),
    "the caller's ids": Namespaces(user=False),
}


@pytest.mark.parametrize(
    "kind",
    [
        "default",
        "a time namespace",
        pytest.param("the caller's ids", marks=pytest.mark.needs("root")),
    ],
)
def test_a_call_is_answered_by_the_caller(kind: str) -> None:
    config = Config(seccomp=ASK_UNAME, namespaces=KINDS[kind])
    process = container.popen(MACHINE, config=config, text=True)
    with answering(process.seccomp_listener, lambda _: (0, errno.EXDEV, 0)) as asked:
        _, err = process.communicate()
    assert process.returncode == 1
    assert os.strerror(errno.EXDEV) in str(err)
    assert set(asked) == {NUMBERS["uname"]}
    assert process.seccomp_listener is None


def test_a_call_that_may_go_on_is_made() -> None:
    process = container.popen(MACHINE, config=ASKING, text=True)
    with answering(process.seccomp_listener, lambda _: GO_ON) as asked:
        out, _ = process.communicate()
    assert (out, process.returncode) == (os.uname().release + "\n", 0)
    assert asked


def test_a_command_has_a_listener_of_its_own() -> None:
    with Container(ASKING) as box:
        box.run(Process(["sleep", "1000"]))
        first = box.seccomp_listener
        process = box.exec(ExecConfig(MACHINE), text=True)
        assert process.seccomp_listener not in (None, first)
        with answering(process.seccomp_listener, lambda _: GO_ON) as asked:
            out, _ = process.communicate()
        assert out == os.uname().release + "\n"
        assert asked
    assert box.seccomp_listener is None


def test_a_created_container_has_it_once_it_is_started() -> None:
    with Container(ASKING) as box:
        box.create(Process(["sh", "-c", "uname -r; sleep 1000"]))
        assert box.seccomp_listener is None
        box.start()
        with answering(box.seccomp_listener, lambda _: GO_ON) as asked:
            assert wait_until(lambda: bool(asked))


def test_the_payload_of_an_init_is_asked_about_and_the_init_is_not() -> None:
    with Container(CURIOUS) as box:
        box.run(Process(["sh", "-c", "cat /proc/1/comm; exit 3"], init=True, stdout=PIPE))
        with answering(box.seccomp_listener, lambda _: GO_ON) as asked:
            assert box.stdout is not None
            assert box.stdout.read() == b"container-init\n"
            assert box.wait(PATIENCE) == 3
        # What an init does when its payload has ended, and no shell does.
        assert asked[0] in {NUMBERS[name] for name in ("brk", "mmap", "access") if name in NUMBERS}
        assert NUMBERS["rt_sigtimedwait"] not in asked


def test_without_a_question_there_is_no_listener() -> None:
    process = container.popen(["true"])
    assert process.seccomp_listener is None
    process.wait()


def test_nothing_of_ours_is_asked_about_nor_seen_inside() -> None:
    """With a filter that asks about everything, each call is the program's own."""
    script = "ls /proc/self/fd; ls /proc/self/task | wc -l; grep -h Threads /proc/1/status"
    process = container.popen(["sh", "-c", script], config=CURIOUS, text=True)
    with answering(process.seccomp_listener, lambda _: GO_ON) as asked:
        out, err = process.communicate()
    # The fourth is the directory that ls reads.
    assert (out, err) == ("0\n1\n2\n3\n1\nThreads:\t1\n", "")
    assert len(asked) > 100
    # The first thing that the loader or libc of a program asks for; none of the launcher's calls.
    assert asked[0] in {NUMBERS[name] for name in ("brk", "mmap", "access") if name in NUMBERS}


@pytest.mark.parametrize("args", [["/absent"], ["absent"], ["/etc"]])
def test_a_program_that_cannot_be_run_is_told_of_and_nobody_asked(args: list[str]) -> None:
    with pytest.raises(LaunchError) as caught:
        container.popen(args, config=CURIOUS)
    assert caught.value.step == "exec"
    assert isinstance(caught.value, FileNotFoundError | PermissionError)


def test_a_question_that_nobody_answers_ends_with_the_container() -> None:
    process = container.popen(MACHINE, config=ASKING)
    process.kill()
    assert process.wait() == -9


def test_an_ordinary_user_is_asked_too(as_user: OrdinaryUser) -> None:
    program = f"""
        import errno, struct
        from fcntl import ioctl
        from container import *
        profile = SeccompProfile("ALLOW", [SyscallRule(["uname"], "NOTIFY")])
        process = popen(["uname", "-r"], config=Config(seccomp=profile), text=True)
        question = bytearray(80)
        ioctl(process.seccomp_listener, {RECEIVE}, question)
        identity, = struct.unpack_from("Q", question)
        answer = struct.pack("QqiI", identity, 0, -errno.EXDEV, 0)
        ioctl(process.seccomp_listener, {SEND}, bytearray(answer))
        tell(process.communicate()[1])
    """
    done = as_user(caller_argv(program))
    assert (done.returncode, done.stderr) == (0, "")
    assert os.strerror(errno.EXDEV) in done.stdout


def test_who_cannot_answer_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        container.run(["true"], config=ASKING)
    assert caught.value.field == "config.seccomp"
    with pytest.raises(ConfigError) as caught:
        Config(seccomp=ASK_UNAME, no_new_privileges=False)
    assert caught.value.field == "seccomp"
    profile = SeccompProfile("NOTIFY", listener_path="/run/listener")
    with pytest.raises(UnsupportedError) as refused:
        Config(seccomp=profile)
    assert refused.value.field == "seccomp.listener_path"
