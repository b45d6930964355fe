# SPDX-License-Identifier: Apache-2.0
"""Files of a running container from outside: owners and modes are right, and no path leads out."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from system.conftest import Identity
from system.helpers import caller, python, tree

import container
from container import (
    PIPE,
    Config,
    ConfigError,
    Container,
    IDMapping,
    Mount,
    Namespaces,
    Process,
    StateError,
    UnsupportedError,
)

pytestmark = [pytest.mark.needs("userns"), pytest.mark.long]

as_root = pytest.mark.needs("root", "idmap")


@pytest.fixture
def box() -> Iterator[Container]:
    """A container that does nothing, on the host's programs."""
    with Container() as made:
        made.run(Process(["sleep", "1000"]))
        yield made


class Shell:
    """A container whose program executes lines of Python."""

    def __init__(self, config: Config | None = None) -> None:
        self.box = Container(config)
        program = """
            import os, stat, sys
            print("up", flush=True)
            for line in sys.stdin:
                exec(line.replace("\\0", "\\n"), globals())
                print("done", flush=True)
        """
        self.box.run(Process(python(program), stdin=PIPE, stdout=PIPE))
        assert self.box.stdout is not None
        assert self.box.stdout.readline() == b"up\n"

    def __call__(self, source: str) -> str:
        """What it prints."""
        assert self.box.stdin is not None
        assert self.box.stdout is not None
        self.box.stdin.write(source.replace("\n", "\0").encode() + b"\n")
        self.box.stdin.flush()
        told = []
        while (line := self.box.stdout.readline().decode()) != "done\n":
            assert line, "it has ended"
            told.append(line)
        return "".join(told)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.box.destroy()


# What there is to copy ----------------------------------------------------------------------------


def test_a_tree_goes_in_and_out_again_with_its_modes_and_links(who: Identity) -> None:
    top = who.home / "tree"
    (top / "below/empty").mkdir(parents=True)
    (top / "file").write_text("content")
    (top / "program").write_text("#!/bin/sh\n")
    (top / "program").chmod(0o750)
    (top / "below/sparse").touch()
    os.truncate(top / "below/sparse", 1 << 24)
    (top / "link").symlink_to("/no/such/place")
    (top / "below/empty").chmod(0o500)
    who.own(who.home)
    told = who(
        """
        with Container() as box:
            script = "read x; cd /tmp/tree; stat -c '%n %a %u:%g' * below/*; readlink link"
            box.run(Process(["sh", "-c", script], stdin=PIPE, stdout=PIPE))
            box.copy_in("tree", "/tmp")
            box.copy_out("/tmp/tree", "back")
            box.stdin.write(b"go\\n")
            box.stdin.close()
            tell(box.stdout.read().decode().splitlines())
            tell(box.wait(10))
        """
    )
    assert told == [
        [
            *("below 755 0:0", "file 644 0:0", "link 777 0:0", "program 750 0:0"),
            *("below/empty 500 0:0", "below/sparse 644 0:0", "/no/such/place"),
        ],
        0,
    ]
    assert tree(who.home / "back") == tree(top)
    assert (who.home / "back/below/sparse").stat().st_blocks == 0


def test_a_copy_goes_below_a_directory_and_over_a_file(box: Container, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("new")
    box.copy_in(tmp_path / "file", "/tmp/other")
    box.copy_in(tmp_path / "file", "/tmp")
    box.copy_in(str(tmp_path / "file"), "run/file/")  # relative to the root
    box.copy_out("/tmp/file", tmp_path / "copy")
    (tmp_path / "copy").write_text("much longer than it was")
    box.copy_out("/run/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "new"
    (tmp_path / "below").mkdir()
    box.copy_out("/tmp/other", tmp_path / "below")
    assert (tmp_path / "below/other").read_text() == "new"


def test_directories_that_are_there_are_added_to(box: Container, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "tree/below").mkdir(parents=True)
        (tmp_path / name / "tree/below" / name).touch()
        box.copy_in(tmp_path / name / "tree", "/tmp")
    box.copy_out("/tmp/tree/", tmp_path)
    assert sorted(os.listdir(tmp_path / "tree/below")) == ["first", "second"]


def test_set_user_id_bits_are_not_copied(box: Container, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o6755)
    box.copy_in(tmp_path / "file", "/tmp/file")
    box.copy_out("/tmp/file", tmp_path / "back")
    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o755
    with Shell() as run:
        run("open('/tmp/own', 'w').close(); os.chmod('/tmp/own', 0o6755)")
        run.box.copy_out("/tmp/own", tmp_path / "own")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o755


@as_root
@pytest.mark.parametrize("kind", ["leased", "given", "none"])
def test_what_is_made_belongs_to_the_containers_root(tmp_path: Path, kind: str) -> None:
    maps = (IDMapping(0, 3000000, 1000),)
    config = {
        "leased": Config(),
        "given": Config(uid_mappings=maps, gid_mappings=maps),
        "none": Config(namespaces=Namespaces(user=False)),
    }[kind]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").touch()
    os.chown(tmp_path / "data/file", 4711, 4711)
    with Shell(config) as run:
        run.box.copy_in(tmp_path / "data", "/tmp/data")
        with run.box.open_file("/tmp/data/new", "w") as file:
            file.write("x")
        told = run(
            "for n in ('', 'file', 'new'): s = os.lstat('/tmp/data/' + n);"
            " print(s.st_uid, s.st_gid, oct(s.st_mode))"
        )
        assert told == "0 0 0o40755\n0 0 0o100644\n0 0 0o100644\n"
        run("os.chown('/tmp/data/new', 5, 6); os.chmod('/tmp/data/new', 0)")
        run.box.copy_out("/tmp/data/new", tmp_path / "new")
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 0, 0)


@as_root
def test_a_bind_keeps_the_owners_that_the_container_writes(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("x")
    with Shell(Config(mounts=[Mount.bind(tmp_path / "data", "/data")])) as run:
        run.box.copy_in(tmp_path / "file", "/data/file")
    status = (tmp_path / "data/file").stat()
    assert (status.st_uid, status.st_gid) == (0, 0)


# One file -----------------------------------------------------------------------------------------


def test_a_file_is_opened_with_the_modes_of_open(who: Identity) -> None:
    told = who(
        """
        with Container() as box:
            box.run(Process(["sleep", "1000"]))
            def at(mode, data=None):
                with box.open_file("/tmp/file", mode) as file:
                    return file.read() if data is None else file.write(data)
            at("x", "one")
            at("a", "two")
            tell(at("r"))
            at("wb", b"three")
            tell(at("rb").decode())
            with box.open_file("tmp/file", "r+") as file:
                file.seek(2)
                file.write("XX")
            tell(at("rt"))
            at("w+", "ä")
            tell(at("r"))
            for path, mode in (("/tmp/file", "x"), ("/no/file", "r"), ("/no/file", "w"),
                ("/tmp", "r"), ("/tmp", "w"), ("/etc/passwd/x", "w"), ("/usr/new", "w")):
                try:
                    box.open_file(path, mode)
                except OSError as error:
                    tell(errno.errorcode[error.errno])
        """
    )
    assert told == [
        *("onetwo", "three", "thXXe", "ä"),
        *("EEXIST", "ENOENT", "ENOENT", "EISDIR", "EISDIR", "ENOTDIR", "EACCES"),
    ]


@pytest.mark.parametrize("mode", ["", "rw", "q", "rbt", "r++", "U", 5, None])
def test_a_mode_that_is_none_is_refused(box: Container, mode: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        box.open_file("/tmp/file", mode)
    assert caught.value.field == "mode"


@pytest.mark.parametrize("path", ["", "a\0b", b"/tmp", 5, None])
def test_a_path_that_is_none_is_refused(box: Container, path: Any) -> None:
    for call, field in (
        (lambda: box.open_file(path), "path"),
        (lambda: box.copy_in(path, "/tmp"), "source"),
        (lambda: box.copy_in("/etc", path), "target"),
        (lambda: box.copy_out(path, "/tmp"), "source"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.field == field


# Walls --------------------------------------------------------------------------------------------


def test_links_lead_where_they_lead_in_the_container(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("of the host")
    with Shell() as run:
        run(f"os.makedirs({str(tmp_path)!r}); open({str(canary)!r}, 'w').write('inside')")
        for name, text in {
            "absolute": str(canary),
            "relative": f"../../../../../..{canary}",
            "up": "/..",
            "magic": "/proc/1/root",
            "cwd": "/proc/1/cwd",
            "fd": "/proc/1/fd/0",
        }.items():
            run(f"os.symlink({text!r}, '/tmp/{name}')")
        box = run.box
        for name in ("absolute", "relative", f"up{canary}"):
            with box.open_file(f"/tmp/{name}") as file:
                assert file.read() == "inside"
            with box.open_file(f"/tmp/{name}", "a") as file:
                file.write("!")
            box.copy_in(canary, f"/tmp/{name}")
            box.copy_out(f"/tmp/{name}", tmp_path / "out")
            assert (tmp_path / "out").read_text() == "of the host"
            run(f"open({str(canary)!r}, 'w').write('inside')")
        for name in (f"magic{canary}", f"cwd{canary}", "fd"):
            for use in (
                lambda name=name: box.open_file(f"/tmp/{name}"),
                lambda name=name: box.open_file(f"/tmp/{name}", "w"),
                lambda name=name: box.copy_in(canary, f"/tmp/{name}"),
                lambda name=name: box.copy_out(f"/tmp/{name}", tmp_path / "out"),
            ):
                with pytest.raises(OSError) as caught:
                    use()
                assert caught.value.errno == errno.ELOOP
    assert canary.read_text() == "of the host"


def test_a_link_is_no_way_for_a_copy_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_text("new")
    outside = tmp_path / "outside"
    outside.mkdir()
    with Shell() as run:
        run(
            "os.makedirs('/tmp/tree'); os.makedirs('/tmp/x');"
            " os.symlink('/tmp/x', '/tmp/tree/below')"
        )
        with pytest.raises(NotADirectoryError):
            run.box.copy_in(tmp_path / "tree", "/tmp")
        assert run("print(os.listdir('/tmp/x'))") == "[]\n"
        # And out: the caller's own link, where the container has a directory.
        run("os.makedirs('/tmp/out/below'); open('/tmp/out/below/file', 'w').close()")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/below").symlink_to(outside)
        with pytest.raises(NotADirectoryError):
            run.box.copy_out("/tmp/out", tmp_path)
    assert list(outside.iterdir()) == []


SPECIAL = {
    "a fifo": "os.mkfifo('/tmp/special')",
    "a socket": "import socket; socket.socket(socket.AF_UNIX).bind('/tmp/special')",
    "a device": "os.symlink('/dev/zero', '/tmp/special')",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_file_is_named_and_not_touched(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    with Shell() as run:
        run(SPECIAL[kind])
        for use in (
            lambda: run.box.open_file("/tmp/special"),
            lambda: run.box.open_file("/tmp/special", "w"),
            lambda: run.box.copy_out("/tmp/special", tmp_path / "out"),
        ):
            with pytest.raises(UnsupportedError, match=kind):
                use()
        with pytest.raises((UnsupportedError, FileExistsError)):
            run.box.copy_in(tmp_path / "file", "/tmp/special")
    assert not (tmp_path / "out").exists()
    os.mkfifo(tmp_path / "fifo")
    with Shell() as run, pytest.raises(UnsupportedError, match="a fifo"):
        run.box.copy_in(tmp_path / "fifo", "/tmp")


KERNEL_FILES = ("/proc/sys/kernel/domainname", "/proc/1/environ", "/sys/kernel/mm")


@pytest.mark.parametrize("path", KERNEL_FILES)
def test_the_kernels_own_files_are_neither_read_nor_written(tmp_path: Path, path: str) -> None:
    # With the rights of a root caller, whom a container could lead there by a link.
    (tmp_path / "file").write_text("x")
    config = Config(masked_paths=(), readonly_paths=())
    with Shell(config) as run:
        run(f"os.symlink({path!r}, '/tmp/link')")
        for use in (
            lambda: run.box.open_file("/tmp/link" if path[1] == "p" else "/tmp/link/x", "w"),
            lambda: run.box.copy_out("/tmp/link", tmp_path / "out"),
            lambda: run.box.copy_in(tmp_path / "file", "/tmp/link"),
        ):
            with pytest.raises(UnsupportedError, match="kernel"):
                use()


@as_root
def test_what_only_the_hosts_root_may_read_is_not_read_for_the_container(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "data").mkdir()
    for name, mode in (("secret", 0o600), ("open", 0o644)):
        (tmp_path / "data" / name).write_text(name)
        (tmp_path / "data" / name).chmod(mode)
    mount = Mount(tmp_path / "data", "/data", "bind", idmap=False)
    with Shell(Config(mounts=[mount])) as run:
        with run.box.open_file("/data/open") as file:
            assert file.read() == "open"
        for use in (
            lambda: run.box.open_file("/data/secret"),
            lambda: run.box.open_file("/data/open", "a"),
            lambda: run.box.open_file("/data/new", "w"),
            lambda: run.box.copy_in(tmp_path / "data/open", "/data/new"),
            lambda: run.box.copy_in(tmp_path / "data", "/"),
            lambda: run.box.copy_out("/data", tmp_path / "out"),
        ):
            with pytest.raises(PermissionError):
                use()
    assert sorted(os.listdir(tmp_path / "data")) == ["open", "secret"]
    assert (tmp_path / "data/open").read_text() == "open"


def test_a_read_only_mount_stays_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("old")
    config = Config(mounts=[Mount.bind(tmp_path, "/data", read_only=True)])
    with Shell(config) as run:
        for path in ("/data/file", "/data/new"):
            with pytest.raises(OSError) as caught:
                run.box.open_file(path, "w")
            assert caught.value.errno == errno.EROFS
    assert (tmp_path / "file").read_text() == "old"


SWAP = """
import ctypes, threading
swap = ctypes.CDLL(None).renameat2
os.makedirs("/data/dir"); open("/data/dir/x", "w").write("inside")
os.makedirs(OUTSIDE); open(OUTSIDE + "/x", "w").write("inside")
os.symlink(OUTSIDE, "/data/link")
os.symlink("/proc/1/root" + OUTSIDE, "/data/magic")
def loop():
    while True:
        swap(-100, b"/data/dir", -100, b"/data/link", 2)
        swap(-100, b"/data/link", -100, b"/data/magic", 2)
threading.Thread(target=loop, daemon=True).start()
"""


def test_no_file_outside_is_read_or_written_while_the_container_swaps_paths(
    tmp_path: Path,
) -> None:
    # CVE-2018-15664 and its kin, 200 rounds of each call.
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("of the host")
    (tmp_path / "file").write_text("written")
    before = tree(outside)
    seen: dict[str, int] = {}
    with Shell(Config(mounts=[Mount.tmpfs("/data")])) as run:
        run(f"OUTSIDE = {str(outside)!r}\n{SWAP}")

        def count(use: Any) -> None:
            try:
                word = str(use())
            except OSError as error:
                word = errno.errorcode[error.errno or 0]
            seen[word] = seen.get(word, 0) + 1

        def read() -> str:
            with run.box.open_file("/data/dir/x") as file:
                return str(file.read())

        def write() -> str:
            with run.box.open_file("/data/dir/x", "w") as file:
                file.write("inside")
            return "wrote"

        for _ in range(200):
            count(read)
            count(write)
            count(lambda: run.box.copy_in(tmp_path / "file", "/data/dir/y"))
            count(lambda: run.box.copy_out("/data/dir", tmp_path / "copy"))
    assert tree(outside) == before
    assert "of the host" not in seen
    assert seen.get("ELOOP", 0) > 0, seen
    assert seen.get("wrote", 0) > 0, seen
    for path in (tmp_path / "copy").rglob("*"):
        assert path.is_symlink() or path.is_dir() or path.read_text() in ("", "inside", "written")


def test_a_tree_without_end_is_an_error(tmp_path: Path) -> None:
    with Shell() as run:
        run("os.chdir('/tmp')\nfor _ in range(400):\n os.mkdir('d')\n os.chdir('d')\n")
        with pytest.raises(UnsupportedError, match="deep"):
            run.box.copy_out("/tmp", tmp_path / "copy")


# The caller ---------------------------------------------------------------------------------------


@as_root
def test_the_caller_keeps_its_rights_and_is_as_dumpable_as_before(
    box: Container, tmp_path: Path
) -> None:
    import ctypes  # noqa: PLC0415

    def state() -> list[object]:
        names = ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapInh", "CapBnd")
        status = Path("/proc/thread-self/status").read_text().splitlines()
        signal = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)
        dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
        return [*(line for line in status if line.split(":")[0] in names), signal.value, dumpable]

    (tmp_path / "file").touch()
    libc = ctypes.CDLL(None)
    libc.prctl(1, 10, 0, 0, 0)
    try:
        before = state()
        assert before[-2:] == [10, 1]
        box.copy_in(tmp_path / "file", "/tmp/file")
        assert state() == before
        with pytest.raises(PermissionError):
            box.copy_in(tmp_path / "file", "/usr/file")
        assert state() == before
    finally:
        libc.prctl(1, 0, 0, 0, 0)


@as_root
def test_no_link_leads_where_the_containers_root_may_not_go(tmp_path: Path) -> None:
    # A directory of the host's that is bound as it is: everybody may read the file, if only
    # everybody could get there.
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "decoy").write_text("of the host")
    (private / "decoy").chmod(0o666)
    (tmp_path / "open").write_text("for all")
    tmp_path.chmod(0o755)
    with Shell(Config(mounts=[Mount(str(tmp_path), "/data", type="bind", idmap=False)])) as run:
        run("os.symlink('/data/private/decoy', '/tmp/link')\nos.symlink('/data', '/tmp/data')")
        for path in ("/tmp/link", "/data/private/decoy", "/tmp/data/private/../private/decoy"):
            uses: tuple[Callable[[str], object], ...] = (
                run.box.open_file,
                lambda path: run.box.open_file(path, "w"),
                lambda path: run.box.copy_out(path, tmp_path / "copy"),
                lambda path: run.box.copy_in("/etc/passwd", path),
            )
            for use in uses:
                with pytest.raises(PermissionError) as caught:
                    use(path)
                assert caught.value.filename == path
        with pytest.raises(PermissionError):
            run.box.open_file("/data/private/new", "x")
        with run.box.open_file("/tmp/data/../tmp/./data//open") as file:
            assert file.read() == "for all"
    assert (private / "decoy").read_text() == "of the host"
    assert not (tmp_path / "copy").exists()


def test_links_in_a_circle_and_names_below_a_file_are_errors() -> None:
    with Shell() as run:
        run("os.symlink('b', '/tmp/a')\nos.symlink('a', '/tmp/b')\nopen('/tmp/file', 'w')")
        run("for i in range(30):\n os.symlink(f'l{i + 1}', f'/tmp/l{i}')")
        run("os.symlink('../../../tmp/file', '/tmp/l30')")
        for path, number in (
            ("/tmp/a", errno.ELOOP),
            ("/tmp/file/x", errno.ENOTDIR),
            ("/tmp/file/", errno.ENOTDIR),
            ("/tmp/file/..", errno.ENOTDIR),
            ("/tmp/" + "x" * 256, errno.ENAMETOOLONG),
        ):
            with pytest.raises(OSError) as caught:
                run.box.open_file(path)
            assert (caught.value.errno, caught.value.filename) == (number, path)
        run.box.open_file("/tmp/l0").close()


WATCHER = """
import os
fd, seen = os.open(f"/proc/{os.getppid()}/status", os.O_RDONLY), set()
for _ in range(20000):
    lines = os.pread(fd, 4096, 0).decode().splitlines()
    seen.add("; ".join(line for line in lines if line.startswith(("Uid:", "CapEff:"))))
print(*seen, sep="\\n")
"""


@as_root
def test_the_main_thread_keeps_its_ids_while_it_copies(box: Container) -> None:
    # The launcher looks at them, and with others would never trust this process again.
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER], stdout=subprocess.PIPE, text=True)
    number = 0
    while watcher.poll() is None:
        box.open_file(f"/tmp/{number}", "x").close()
        number += 1
    seen, _ = watcher.communicate()
    assert len(seen.splitlines()) == 1, seen
    with box.exec(["true"]):
        pass


def test_who_holds_a_lease_of_a_file_does_not_hold_us_up(tmp_path: Path) -> None:
    with Shell() as run:
        run("import fcntl, signal\nsignal.signal(signal.SIGIO, signal.SIG_IGN)")
        run("open('/tmp/leased', 'w').close()\nfd = os.open('/tmp/leased', os.O_RDWR)")
        run("fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)")
        for use in (
            lambda: run.box.open_file("/tmp/leased"),
            lambda: run.box.copy_out("/tmp/leased", tmp_path),
            lambda: run.box.copy_in("/etc/passwd", "/tmp/leased"),
        ):
            with pytest.raises(BlockingIOError):
                use()


@as_root
def test_nothing_is_made_for_a_first_process_that_left_its_ids(tmp_path: Path) -> None:
    # A user namespace without a map: what belongs to nobody there would belong to host root.
    tmp_path.chmod(0o777)
    config = Config(nested=True, mounts=[Mount(str(tmp_path), "/data", type="bind", idmap=False)])
    with Shell(config) as run:
        run("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0")
        with pytest.raises(StateError, match="no ids"):
            run.box.open_file("/data/file", "w")
        assert os.listdir(tmp_path) == []


def test_no_file_takes_the_place_of_a_standard_stream_that_is_closed() -> None:
    told = caller(
        """
        box = Container()
        box.run(Process(["sleep", "1000"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL))
        errors = os.dup(2)
        os.close(0)
        os.close(2)
        made = box.open_file("/tmp/file", "x")
        read = box.open_file("/tmp/file")
        numbers = [made.fileno(), read.fileno()]
        made.close()
        read.close()
        os.dup2(errors, 2)
        os.open("/dev/null", os.O_RDONLY)
        box.destroy()
        tell(min(numbers) > 2)
        """
    )
    assert told == [True]


def test_many_threads_may_copy_at_once(box: Container, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / str(number)).write_text(str(number) * 1000)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                box.copy_in(tmp_path / str(number), f"/tmp/{number}")
                box.copy_out(f"/tmp/{number}", tmp_path / f"out{number}")
                assert (tmp_path / f"out{number}").read_text() == str(number) * 1000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_container_that_has_ended_has_no_files(tmp_path: Path) -> None:
    with Container() as box:
        with pytest.raises(StateError):
            box.open_file("/etc/passwd")
        box.run(Process(["true"]))
        box.wait()
        for use in (
            lambda: box.open_file("/etc/passwd"),
            lambda: box.copy_in("/etc/passwd", "/tmp"),
            lambda: box.copy_out("/etc/passwd", tmp_path),
        ):
            with pytest.raises(StateError):
                use()


@as_root
def test_files_of_a_container_that_waits_to_be_started_can_be_prepared(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("prepared")
    with Container() as box:
        box.create(Process(["cat", "/tmp/file"], stdout=PIPE))
        box.copy_in(tmp_path / "file", "/tmp/file")
        box.start()
        assert box.stdout is not None
        assert box.stdout.read() == b"prepared"


def test_no_fd_is_left_whatever_fails(box: Container, tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    os.mkfifo(tmp_path / "tree/below/fifo")
    before = sorted(os.listdir("/proc/self/fd"))
    for use in (
        lambda: box.copy_in(tmp_path / "tree", "/tmp"),
        lambda: box.copy_in(tmp_path / "missing", "/tmp"),
        lambda: box.copy_in("/etc/passwd", "/missing/x"),
        lambda: box.copy_out("/missing", tmp_path),
        lambda: box.copy_out("/proc", tmp_path),
        lambda: box.open_file("/tmp/x", "w", encoding="no-such-encoding"),
    ):
        with pytest.raises((OSError, UnsupportedError, LookupError)):
            use()
        assert sorted(os.listdir("/proc/self/fd")) == before
    assert container.run(["true"]).returncode == 0
