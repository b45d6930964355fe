# SPDX-License-Identifier: Apache-2.0
"""What cannot be run is a typed error that names the field or the step, and nothing is left."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Protocol

import pytest

import container
from container import (
    PIPE,
    Capabilities,
    Config,
    ConfigError,
    Container,
    ContainerError,
    HostRoot,
    LaunchError,
    Mount,
    Namespaces,
    Process,
    Rlimit,
    UnsupportedError,
)

pytestmark = pytest.mark.needs("userns")


class AsUser(Protocol):
    """The fixture as_user."""

    def __call__(self, program: Any, **options: Any) -> subprocess.CompletedProcess[str]: ...


def error_of(args: list[str] | None = None, **options: Any) -> LaunchError:
    """The error of a run that fails to start; it survives pickle as it is."""
    with pytest.raises(LaunchError) as caught:
        container.run(args or ["true"], **options)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), vars(again)) == (
        type(caught.value),
        str(caught.value),
        vars(caught.value),
    )
    return caught.value


def told_by_create_start_and_popen(process: Process, config: Config) -> set[tuple[Any, ...]]:
    """What the other ways to start say of it."""
    errors: list[ContainerError] = []
    for start in (
        lambda box: box.run(process),
        lambda box: (box.create(process), box.start()),
        lambda box: container.popen(process.args, config=config, cwd=process.cwd),
    ):
        with Container(config) as box, pytest.raises(LaunchError) as caught:
            start(box)
        errors.append(caught.value)
    return {(type(error), str(error)) for error in errors}


# Root directories ---------------------------------------------------------------------------------


def test_a_root_that_is_missing(tmp_path: Path) -> None:
    error = error_of(root=tmp_path / "missing")
    assert isinstance(error, FileNotFoundError)
    assert (error.step, error.errno) == ("sources", errno.ENOENT)
    assert error.filename == str(tmp_path / "missing")
    assert str(tmp_path / "missing") in str(error)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = error_of(root=tmp_path / "file")
    assert isinstance(error, NotADirectoryError)
    assert (error.step, error.filename) == ("sources", str(tmp_path / "file"))


def test_a_root_behind_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(error_of(root=tmp_path / "file/root"), NotADirectoryError)


def test_a_root_that_is_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    error = error_of(root=tmp_path / "loop")
    assert (error.step, error.errno) == ("sources", errno.ELOOP)


def test_a_source_of_a_bind_that_is_missing(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for options in (
        {"binds": [f"{missing}:/data"]},
        {"config": Config(mounts=[Mount.bind(missing, "/data", read_only=True)])},
        {"root": HostRoot(extra=[missing])},
    ):
        error = error_of(**options)
        assert isinstance(error, FileNotFoundError)
        assert (error.step, error.filename) == ("sources", str(missing))


# Programs -----------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Files that cannot be executed, each for another reason."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    elf = bytearray(Path("/bin/true").resolve().read_bytes())
    # e_machine of the ELF header: EM_S390 is none that this can be
    elf[18:20] = (22).to_bytes(2, "little")
    contents = {
        "plain": b"#!/bin/sh\n",
        "foreign": bytes(elf),
        "no-interpreter": b"#!/no/such/interpreter\n",
        "not-a-program": b"just text\n",
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o644 if name == "plain" else 0o755)
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("missing")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "number", "builtin", "hint"),
    [
        ("missing", errno.ENOENT, FileNotFoundError, None),
        ("dangling", errno.ENOENT, FileNotFoundError, None),
        ("plain", errno.EACCES, PermissionError, None),
        ("directory", errno.EACCES, PermissionError, None),
        ("plain/below", errno.ENOTDIR, NotADirectoryError, None),
        ("loop", errno.ELOOP, OSError, None),
        ("foreign", errno.ENOEXEC, OSError, "architecture"),
        ("not-a-program", errno.ENOEXEC, OSError, "#!"),
        ("empty", errno.ENOEXEC, OSError, "#!"),
        ("no-interpreter", errno.ENOENT, FileNotFoundError, "interpreter"),
    ],
)
def test_a_program_that_cannot_be_executed(
    programs: Path, name: str, number: int, builtin: type[OSError], hint: str | None
) -> None:
    config = Config(mounts=[Mount.bind(programs, "/programs")])
    program = f"/programs/{name}"
    error = error_of([program], config=config)
    assert isinstance(error, builtin)
    assert (error.step, error.filename) == ("exec", program)
    assert error.errno == number
    assert (error.hint is None) if hint is None else (hint in (error.hint or ""))
    same = told_by_create_start_and_popen(Process([program], stdout=PIPE), config)
    assert same == {(type(error), str(error))}


def test_a_program_that_is_in_no_directory_of_the_path() -> None:
    error = error_of(["no-such-program"])
    assert isinstance(error, FileNotFoundError)
    assert (error.step, error.filename) == ("exec", "no-such-program")
    assert isinstance(error_of(["true"], env={"PATH": "/nowhere:/home"}), FileNotFoundError)


def test_a_program_in_the_path_that_may_not_be_executed_is_no_missing_one(programs: Path) -> None:
    config = Config(mounts=[Mount.bind(programs, "/programs")])
    error = error_of(["plain"], env={"PATH": "/nowhere:/programs:/home"}, config=config)
    assert isinstance(error, PermissionError)
    assert error.filename == "/programs/plain"


def test_a_later_directory_of_the_path_is_tried_after_one_that_forbids(programs: Path) -> None:
    (programs / "sh").write_bytes(b"")
    config = Config(mounts=[Mount.bind(programs, "/programs")])
    path = "/programs/plain:/programs:/usr/bin"
    (programs / "sh").chmod(0o644)
    result = container.run(["sh", "-c", "exit 9"], env={"PATH": path}, config=config)
    assert result.returncode == 9


@pytest.mark.parametrize("kind", ["env", "args", "one word"])
def test_more_than_execve_takes(kind: str) -> None:
    words = ["x" * 100_000] * 30
    if kind == "env":
        error = error_of(env={f"V{number}": word for number, word in enumerate(words)})
    elif kind == "args":
        error = error_of(["true", *words, *words, *words])
    else:
        error = error_of(["true", "x" * 200_000])
    assert (error.step, error.errno) == ("exec", errno.E2BIG)
    assert "larger" in (error.hint or "")
    assert len(str(error)) < 500


def test_more_than_the_launcher_takes() -> None:
    error = error_of(["true", *(["x" * 100_000] * 200)])
    assert error.step in {"request", "exec"}
    assert len(str(error)) < 500


# Working directories ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cwd", "builtin"),
    [
        ("/missing", FileNotFoundError),
        ("/etc/passwd", NotADirectoryError),
        ("/etc/passwd/below", NotADirectoryError),
    ],
)
def test_a_working_directory_that_cannot_be_entered(cwd: str, builtin: type[OSError]) -> None:
    error = error_of(cwd=cwd)
    assert isinstance(error, builtin)
    assert (error.step, error.filename) == ("cwd", cwd)
    same = told_by_create_start_and_popen(Process(["true"], cwd=cwd, stdout=PIPE), Config())
    assert same == {(type(error), str(error))}


@pytest.mark.needs("root")
def test_a_working_directory_that_the_user_may_not_enter() -> None:
    error = error_of(cwd="/root", user="1000:1000")
    assert isinstance(error, PermissionError)
    assert error.step == "cwd"


# What the kernel refuses --------------------------------------------------------------------------


def test_a_limit_beyond_what_the_kernel_grants() -> None:
    with Container() as box, pytest.raises(LaunchError) as caught:
        box.run(Process(["true"], rlimits=[Rlimit("NOFILE", 2**40, 2**40)]))
    assert isinstance(caught.value, PermissionError)
    assert caught.value.step == "rlimits"


@pytest.mark.needs("root", "idmap")
def test_a_root_whose_file_systems_cannot_be_mapped() -> None:
    # The host's own root: there are a procfs and a sysfs in it.
    error = error_of(root="/")
    assert (error.step, error.errno, error.filename) == ("sources", errno.EINVAL, "/")
    assert "id-mapped" in (error.hint or "")


@pytest.mark.needs("rootless", "user", "user_python")
def test_where_no_user_namespace_may_be_made_the_hint_says_which_knob_it_is(
    as_user: AsUser,
) -> None:
    source = textwrap.dedent(
        """
        import container
        try:
            container.run(["true"])
        except container.LaunchError as error:
            print(error.step, error.errno, error.hint)
        """
    )
    # The limit is that of a user namespace, so it can be set in one of the test's own.
    limit = "echo 0 >/proc/sys/user/max_user_namespaces"
    command = ["sh", "-c", f'{limit} && exec "$@"', "sh", sys.executable, "-c", source]
    done = as_user(["unshare", "--user", "--map-root-user", *command])
    assert done.stderr == ""
    assert done.stdout.startswith(f"clone {errno.ENOSPC} user.max_user_namespaces is 0")


# What is refused before anything is started -------------------------------------------------------

BAD = "must not contain a NUL byte"

VALUES: dict[str, tuple[Any, str]] = {
    "empty args": (lambda: container.run([]), "args"),
    "args of a str": (lambda: container.run("true"), "args"),
    "an empty program": (lambda: container.run([""]), "args[0]"),
    "a number in args": (lambda: container.run(["true", 1]), "args[1]"),  # type: ignore[list-item]
    "NUL in args": (lambda: container.run(["true", "a\0b"]), "args[1]"),
    "NUL in env": (lambda: container.run(["true"], env={"A": "a\0b"}), "env['A']"),
    "= in a name of env": (lambda: container.run(["true"], env={"A=": "b"}), "env['A']"),
    "NUL in cwd": (lambda: container.run(["true"], cwd="/a\0b"), "cwd"),
    "a relative cwd": (lambda: container.run(["true"], cwd="a"), "cwd"),
    "NUL in root": (lambda: container.run(["true"], root="/a\0b"), "root"),
    "an empty root": (lambda: container.run(["true"], root=""), "root"),
    "300 bytes of hostname": (lambda: Config(hostname="x" * 300), "hostname"),
    "an empty hostname": (lambda: Config(hostname=""), "hostname"),
    "a negative timeout": (lambda: container.run(["true"], timeout=-1), "timeout"),
    "a text as timeout": (lambda: container.run(["true"], timeout="5"), "timeout"),  # type: ignore[arg-type]
    "namespaces of a dict": (lambda: Config(namespaces={}), "namespaces"),  # type: ignore[arg-type]
    "a namespace of an int": (lambda: Namespaces(net=1), "net"),  # type: ignore[arg-type]
    "a mount of a str": (lambda: Config(mounts=["/a"]), "mounts[0]"),  # type: ignore[list-item]
    "the second mount": (
        lambda: Config(mounts=[Mount.tmpfs("/a"), ("/b",)]),  # type: ignore[list-item]
        "mounts[1]",
    ),
    "a target of an int": (lambda: Mount.bind("/a", 5), "target"),  # type: ignore[arg-type]
    "a target with ..": (lambda: Mount.bind("/a", "/b/../c"), "target"),
    "the root as target": (lambda: Mount.tmpfs("/"), "target"),
    "the same target twice": (
        lambda: Config(mounts=[Mount.tmpfs("/a"), Mount.tmpfs("/a/")]),
        "mounts[1].target",
    ),
    "an unknown capability": (lambda: Capabilities(["CAP_NOTHING"]), "bounding"),
    "an effective one beyond the permitted": (
        lambda: Capabilities(effective=["CHOWN"]),
        "effective",
    ),
    "an unknown limit": (lambda: Rlimit("NOTHING", 1, 1), "type"),
    "a closed stdin": (lambda: container.run(["true"], stdin=987654), "stdin"),
    "a user of nonsense": (lambda: container.run(["true"], user="0x0"), "user"),
    "a user beyond the last": (lambda: container.run(["true"], user=2**32 - 1), "user"),
    "a user that is not mapped": (lambda: container.run(["true"], user=70_000), "user"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_bad_value_is_named(name: str) -> None:
    make, field = VALUES[name]
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.field) == (str(caught.value), field)


def test_what_is_not_supported_yet_is_named() -> None:
    with pytest.raises(UnsupportedError) as caught:
        Mount("/dev/sda1", "/mnt", "ext4")
    assert caught.value.field == "type"


def test_a_secret_in_the_environment_is_in_no_error() -> None:
    secret = "hunter2-secret"
    texts = [str(error_of(["/no/such/program"], env={"PASSWORD": secret}))]
    for env in ({"PASSWORD": f"{secret}\0"}, {f"A={secret}": "b"}):
        with pytest.raises(ConfigError) as caught:
            container.run(["true"], env=env)
        texts.append(f"{caught.value} {caught.value!r}")
    error = error_of(env={"PASSWORD": secret * 300_000})
    texts.append(f"{error} {error!r} {vars(error)}")
    assert all("hunter2" not in text for text in texts)


def test_an_error_is_one_printable_line_whatever_the_path_holds(tmp_path: Path) -> None:
    error = error_of(root=tmp_path / "a\nb\x1b[31m\u202e")
    assert str(error).isprintable()
    assert error.filename == str(tmp_path / "a\nb\x1b[31m\u202e")


# Limits of the machine ----------------------------------------------------------------------------


def test_without_an_fd_left_a_run_is_an_error_and_the_next_one_is_right() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    for spare in range(1, 24):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, hard))
        try:
            container.run(["true"], check=True)
        except OSError as error:
            assert error.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert container.run(["true"]).returncode == 0
