# SPDX-License-Identifier: Apache-2.0
"""Ten identities in three kinds of id maps, and an ordinary user's ranges of subuid(5)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from system.conftest import make_root, open_directory
from system.helpers import PATIENCE

pytestmark = [pytest.mark.needs("userns", "root"), pytest.mark.long]

WORKER = needs.ORDINARY_ID
FIRST, SIZE = 200_000, 65_536
EXTRA_GROUP = 20  # of the caller, which must be dropped

# Root with a user database of the test's own becomes an ordinary user who has ranges.
BECOME = f"""
import os, sys
sys.path.insert(0, {str(Path(needs.__file__).parent)!r})
import needs

directory, mounted, program = sys.argv[1:]
kernel = needs.Kernel()
kernel.unshare(0x20000, "CLONE_NEWNS")
kernel.mount("none", "/", "", (1 << 14) | (1 << 18))
for name in mounted.split():
    kernel.mount(f"{{directory}}/{{name}}", f"/etc/{{name}}", "", 1 << 12)
needs.expose(kernel, needs.python_directories())
os.setgroups([needs.ORDINARY_ID, {EXTRA_GROUP}])
os.setresgid(*[needs.ORDINARY_ID] * 3)
os.setresuid(*[needs.ORDINARY_ID] * 3)
kernel.set_dumpable()
os.chdir(directory)
os.execv(sys.executable, [sys.executable, "-P", "-s", "-W", "error", "-c", program])
"""

PRELUDE = """
import json, os, container
from container import *

def tell(value):
    print(json.dumps(value), flush=True)
"""

PASSWD = "root:x:0:0::/root:\nalice:x:1000:1001::/home/alice:\n"
GROUP = "root:x:0:\nusers:x:1001:\nwheel:x:10:alice\naudio:x:29:alice\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a root and files of many owners, and a user database with the worker."""
    with open_directory() as directory:
        root = make_root(directory / "root")
        (root / "etc/passwd").write_text(PASSWD)
        (root / "etc/group").write_text(GROUP)
        (root / "data").mkdir()
        (directory / "data").mkdir()
        (directory / "data").chmod(0o1777)
        line = f"worker:x:{WORKER}:{WORKER}::/tmp:/bin/sh\n"
        (directory / "passwd").write_text(Path("/etc/passwd").read_text() + line)
        for name in ("subuid", "subgid"):
            (directory / name).write_text(f"other:100000:65536\nworker:{FIRST}:{SIZE}\n")
        yield directory


def as_worker(
    place: Path, source: str, mounted: str = "passwd subuid subgid"
) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": "/tmp", "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    parent = needs.package_parent()
    if parent is not None:
        environment["PYTHONPATH"] = parent
    program = PRELUDE + textwrap.dedent(source)
    return subprocess.run(
        [sys.executable, "-c", BECOME, str(place), mounted, program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment,
    )


def as_root(place: Path, source: str) -> subprocess.CompletedProcess[str]:
    program = PRELUDE + textwrap.dedent(source)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=place,
    )


def answers(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


worker_has_ranges = pytest.mark.needs("rootless", "newuidmap", "newgidmap")

# Identities ---------------------------------------------------------------------------------------

# user, groups -> uid, gid, supplementary groups
IDENTITIES: list[tuple[Any, list[int], int, int, set[int]]] = [
    (None, [], 0, 0, {0}),
    (0, [], 0, 0, {0}),
    ("0:7", [], 0, 7, {7}),
    ("root", [5], 0, 0, {0, 5}),
    (1000, [], 1000, 0, {0}),
    ("1000:1000", [], 1000, 1000, {1000}),
    ("1000:1000", [5, 8], 1000, 1000, {1000, 5, 8}),
    ("alice", [], 1000, 1001, {1001, 10, 29}),
    ("alice:wheel", [], 1000, 10, {10}),
    ("65535:65535", [1], 65535, 65535, {65535, 1}),
]

LEASED = "None"
GIVEN = "[IDMapping(0, 300000, 1000), IDMapping(1000, 400000, 64536)]"
RANGES = f"[IDMapping(0, {WORKER}, 1), IDMapping(1, {FIRST}, {SIZE})]"


def outside(kind: str, number: int) -> int:
    """The id of the host for one of the container, where files are not idmapped."""
    if kind == LEASED:
        return number  # they are
    if kind == GIVEN:
        return 300_000 + number if number < 1000 else 400_000 + number - 1000
    return WORKER if number == 0 else FIRST + number - 1


SHOW_ALL = """
maps = MAPS
options = {} if maps is None else {"uid_mappings": maps, "gid_mappings": maps}
config = Config(root="root", mounts=[Mount.bind("data", "/data")], **options)
script = '''
grep -E "^(Uid|Gid|Groups):" /proc/self/status
echo x >/data/made-$1 && stat -c "%u %g" /data/made-$1
stat -c "%u %g" /data/1000
cat /data/not-for-5 2>/dev/null || echo denied
echo x >/dev/stdout
'''
for number, (user, groups) in enumerate(IDENTITIES):
    with Container(config) as box:
        args = ["sh", "-c", script, "sh", str(number)]
        box.run(Process(args, user=user, groups=groups, stdout=PIPE))
        text = box.stdout.read().decode()
        tell([box.wait(), text])
"""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(LEASED, id="leased", marks=pytest.mark.needs("idmap")),
        pytest.param(GIVEN, id="given"),
        pytest.param(RANGES, id="ranges", marks=worker_has_ranges),
    ],
)
def test_ten_identities_are_right_from_both_sides(place: Path, kind: str) -> None:
    data = place / "data"
    for name, owner in (("1000", 1000), ("not-for-5", 5)):
        (data / name).write_text("open\n")
        os.chown(data / name, outside(kind, owner), outside(kind, owner))
    (data / "not-for-5").chmod(0o604)
    identities = [[user, groups] for user, groups, *_ in IDENTITIES]
    source = SHOW_ALL.replace("MAPS", kind).replace("IDENTITIES", repr(identities))
    run = as_worker if kind == RANGES else as_root
    told = answers(run(place, source))
    assert len(told) == len(IDENTITIES)
    for number, (_, _, uid, gid, groups) in enumerate(IDENTITIES):
        status, text = told[number]
        assert status == 0, text
        uids, gids, supplementary, made, given, readable, stdout = text.splitlines()
        assert uids.split()[1:] == [str(uid)] * 4
        assert gids.split()[1:] == [str(gid)] * 4
        assert {int(word) for word in supplementary.split()[1:]} == groups
        assert made == f"{uid} {gid}"
        assert given == "1000 1000"
        # Whoever overrides file modes reads it; of others those who are not in the group.
        assert readable == ("denied" if uid != 0 and 5 in {gid, *groups} else "open")
        assert stdout == "x"
        found = (data / f"made-{number}").stat()
        assert (found.st_uid, found.st_gid) == (outside(kind, uid), outside(kind, gid))


# An ordinary user's ranges ------------------------------------------------------------------------


@worker_has_ranges
def test_an_ordinary_user_keeps_a_single_id_until_more_are_needed(place: Path) -> None:
    source = """
    for user in (None, 0, "0:0", 1, "0:1"):
        result = container.run(["cat", "/proc/self/uid_map"], user=user, text=True, check=True)
        tell(result.stdout.split())
    """
    single = ["0", str(WORKER), "1"]
    ranges = [*single, "1", str(FIRST), str(SIZE)]
    assert answers(as_worker(place, source)) == [single, single, single, ranges, ranges]


@worker_has_ranges
def test_with_ranges_the_callers_groups_are_dropped_and_others_can_be_set(place: Path) -> None:
    denied = place / "data/denied"
    denied.write_text("secret")
    os.chown(denied, 0, EXTRA_GROUP)
    denied.chmod(0o640)
    source = """
    show = ["sh", "-c", "grep Groups: /proc/self/status; cat /proc/self/setgroups /data/denied"]
    for user in (None, "0:1"):
        result = container.run(show, user=user, binds=["data:/data"], text=True)
        tell(result.stdout.split())
    """
    single, ranges = answers(as_worker(place, source))
    # The kernel keeps them with a single id, and they open what they opened before.
    assert single == ["Groups:", "65534", "0", "deny", "secret"]
    assert ranges == ["Groups:", "1", "allow"]


@worker_has_ranges
def test_one_command_after_the_other_owns_its_streams(place: Path) -> None:
    # The second of a kind may be one that was made ahead, before there were any.
    source = """
    import time
    show = ["sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat /proc/self/fd/0"]
    with Container() as box:
        box.run(Process(["sleep", "1000"], user="1000:1001"))
        for streams in ({}, {"stdin": PIPE}, {"stdout": DEVNULL}):
            wanted = ExecConfig(show, **{"stdout": PIPE, "stderr": PIPE} | streams)
            answers = []
            for _ in range(4):
                answers.append(box.exec(wanted, text=True).communicate())
                time.sleep(0.03)  # in which it may be made; nothing goes wrong without
            tell(answers)
    """
    plain, given, without = answers(as_worker(place, source))
    assert plain == given == [["out\n", "err\n"]] * 4
    assert without == [[None, "err\n"]] * 4


@worker_has_ranges
def test_a_command_in_a_container_with_ranges_has_the_ids_that_it_asks_for(place: Path) -> None:
    source = """
    show = ["sh", "-c", '''
        grep -E "^(Uid|Gid|Groups):" /proc/self/status >/dev/stdout
        echo x >/data/by-$(id -u) && stat -c "%u %g" /data/by-$(id -u) >/dev/stderr''']
    config = Config(mounts=[Mount.bind("data", "/data")])
    with Container(config) as box:
        box.run(Process(["sleep", "1000"], user="1000:1001", groups=[5]))
        for user in (None, 0, "1:7"):
            wanted = ExecConfig(show, user=user, stdout=PIPE, stderr=PIPE)
            out, err = box.exec(wanted, text=True).communicate()
            tell([" ".join(line.split()[1:]) for line in out.splitlines()] + [err.strip()])
    with Container(config) as box:
        box.run(Process(["sleep", "1000"]))
        try:
            box.exec(ExecConfig(["true"], user=1000))
        except ConfigError as error:
            tell([error.field, error.detail])
    """
    first, zero, other, refused = answers(as_worker(place, source))
    assert first == ["1000 1000 1000 1000", "1001 1001 1001 1001", "5 1001", "1000 1001"]
    assert zero == ["0 0 0 0", "0 0 0 0", "0", "0 0"]
    assert other == ["1 1 1 1", "7 7 7 7", "7", "1 7"]
    assert refused == ["user", "id 1000 is not mapped into this container's user namespace"]
    for uid, gid in ((1000, 1001), (0, 0), (1, 7)):
        made = (place / f"data/by-{uid}").stat()
        assert (made.st_uid, made.st_gid) == (outside(RANGES, uid), outside(RANGES, gid))


@worker_has_ranges
def test_with_ranges_there_may_be_an_init_and_commands_beside_its_payload(place: Path) -> None:
    source = f"""
    maps = {{"own": {RANGES}, "foreign": [IDMapping(0, {FIRST}, 2000)]}}
    for mappings in maps.values():
        with Container(Config(uid_mappings=mappings, gid_mappings=mappings)) as box:
            box.run(Process(["sleep", "1000"], init=True, user="1000:1001"))
            command = box.exec(["sh", "-c", "cat /proc/1/comm /proc/2/comm; id"], text=True)
            tell([*command.communicate(), box.stop()])
    """
    who = "uid=1000 gid=1001 groups=1001"
    for told in answers(as_worker(place, source)):
        assert told == [f"container-init\nsleep\n{who}\n", "", -15]


@worker_has_ranges
def test_maps_of_users_and_of_groups_may_be_of_different_kinds(place: Path) -> None:
    source = f"""
    uids = {RANGES}
    own = [IDMapping(0, {WORKER}, 1)]
    show = ["cat", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups"]
    for options in (
        {{"uid_mappings": uids, "gid_mappings": own}},
        {{"uid_mappings": own, "gid_mappings": uids}},
        {{"uid_mappings": uids[:1] + [IDMapping(1, {FIRST + 100}, 10)], "gid_mappings": uids}},
        {{"uid_mappings": [IDMapping(0, {FIRST}, 10)], "gid_mappings": uids}},
    ):
        tell(container.run(show, config=Config(**options), text=True, check=True).stdout.split())
    """
    single = ["0", str(WORKER), "1"]
    ranges = [*single, "1", str(FIRST), str(SIZE)]
    assert answers(as_worker(place, source)) == [
        [*ranges, *single, "deny"],
        [*single, *ranges, "allow"],
        [*single, "1", str(FIRST + 100), "10", *ranges, "allow"],
        ["0", str(FIRST), "10", *ranges, "allow"],
    ]


@worker_has_ranges
def test_ids_of_others_are_refused_and_the_error_says_where_they_would_be(place: Path) -> None:
    source = f"""
    good = {RANGES}
    for uids, gids in (
        ([*good[:1], IDMapping(1, 100000, 10)], good),
        (good, [*good[:1], IDMapping(1, 0, 1)]),
        ([IDMapping(0, 0, 1)], good),
    ):
        try:
            container.run(["true"], config=Config(uid_mappings=uids, gid_mappings=gids))
        except LaunchError as error:
            tell([error.step, error.filename, error.hint])
    """
    told = answers(as_worker(place, source))
    assert [(step, os.path.basename(path)) for step, path, _ in told] == [
        ("id-maps", "newuidmap"),
        ("id-maps", "newgidmap"),
        ("id-maps", "newuidmap"),
    ]
    hints = [hint for *_, hint in told]
    assert "from 100000 on, 10 of them, are not this user's in /etc/subuid" in hints[0]
    assert "from 0 on, 1 of them, are not this user's in /etc/subgid" in hints[1]
    assert "/etc/subuid" in hints[2]


@worker_has_ranges
def test_without_ranges_the_error_says_what_is_missing(place: Path) -> None:
    source = """
    try:
        container.run(["true"], user=1000)
    except ConfigError as error:
        tell([error.field, error.detail])
    """
    for name in ("subuid", "subgid"):
        (place / name).write_text("other:100000:65536\n")
    ((field, detail),) = answers(as_worker(place, source))
    assert field == "user"
    assert "no ranges for this user" in detail


@worker_has_ranges
def test_without_the_programs_the_error_says_so(place: Path) -> None:
    source = f"""
    os.environ["PATH"] = "/nowhere"
    config = Config(uid_mappings={RANGES}, gid_mappings={RANGES})
    for make in (
        lambda: container.run(["true"], user=1000),
        lambda: container.run(["true"], config=config),
    ):
        try:
            make()
        except ContainerError as error:
            tell([type(error).__name__, error.field, "newuidmap" in str(error)])
    """
    assert answers(as_worker(place, source)) == [
        ["ConfigError", "user", True],
        ["UnsupportedError", "uid_mappings", True],
    ]


DOCTOR = """
def compare():
    (check,) = (check for check in container.doctor().checks if check.name == "id ranges")
    try:
        found = container.run(["id", "-u"], user=1000, text=True, check=True).stdout.strip()
    except ContainerError as error:
        found = [type(error).__name__, getattr(error, "hint", None) or error.detail]
    tell([check.ok, check.detail, check.remedy, found])
"""


@worker_has_ranges
def test_doctor_says_of_ranges_what_a_container_finds(place: Path) -> None:
    powerless = place / "bin"
    powerless.mkdir()
    for name in ("newuidmap", "newgidmap"):
        shutil.copyfile(f"/usr/bin/{name}", powerless / name)
        (powerless / name).chmod(0o755)
    source = f"""
    compare()
    for path in ("/nowhere", "{powerless}"):
        os.environ["PATH"] = path
        compare()
    os.environ["PATH"] = "/usr/bin:/bin"
    import ctypes
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    compare()
    """
    good, none, weak, bound = answers(as_worker(place, DOCTOR + textwrap.dedent(source)))
    assert (good[0], good[2:]) == (True, [None, "1000"])
    assert f"{SIZE + 1} ids" in good[1]
    assert none[0] is weak[0] is bound[0] is False
    assert none[2] == "apt-get install uidmap"
    assert "newuidmap" in none[1]
    assert none[3][0] == "ConfigError"
    assert "newuidmap" in none[3][1]
    assert weak[3] == ["LaunchPermissionError", weak[2]]
    assert "neither set-user-ID root" in weak[2]
    assert bound[3] == ["LaunchPermissionError", bound[2]]
    assert "no_new_privs" in bound[2]


@worker_has_ranges
def test_doctor_says_that_a_user_has_no_ranges(place: Path) -> None:
    for name in ("subuid", "subgid"):
        (place / name).write_text("other:100000:65536\n")
    ((ok, detail, remedy, found),) = answers(as_worker(place, DOCTOR + "compare()\n"))
    assert not ok
    assert "have no ranges for this user" in detail
    assert "usermod --add-subuids" in remedy
    assert found[0] == "ConfigError"
    assert "have no ranges for this user" in found[1]


@worker_has_ranges
def test_no_new_privs_of_the_caller_is_named_as_the_cause(place: Path) -> None:
    source = """
    import ctypes
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    try:
        container.run(["true"], user=1000)
    except LaunchError as error:
        tell([error.step, error.hint])
    """
    ((step, hint),) = answers(as_worker(place, source))
    assert step == "id-maps"
    assert "no_new_privs" in hint


@worker_has_ranges
def test_programs_that_map_are_neither_seen_by_the_caller_nor_hold_others_up(place: Path) -> None:
    # A program that takes its time: others start meanwhile, by the same launcher.
    slow = place / "bin"
    slow.mkdir()
    for name in ("newuidmap", "newgidmap"):
        (slow / name).write_text(
            f"#!/bin/sh\nls -l /proc/$$/fd >>{place}/data/fds\n"
            f'while [ ! -e {place}/data/go ]; do sleep 0.02; done\nexec /usr/bin/{name} "$@"\n'
        )
        (slow / name).chmod(0o755)
    source = f"""
    import signal, threading
    heard = []
    signal.signal(signal.SIGCHLD, lambda *_: heard.append("SIGCHLD"))
    path = os.environ["PATH"]
    os.environ["PATH"] = "{slow}:" + path
    told = []
    thread = threading.Thread(
        target=lambda: told.append(container.run(["id", "-u"], user=1000, text=True).stdout)
    )
    thread.start()
    while not os.path.exists("data/fds"):
        pass
    tell([container.run(["echo", str(n)], text=True).stdout.strip() for n in range(3)])
    try:
        tell(os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        tell("no child")
    open("data/go", "w").close()
    thread.join()
    tell([told, heard])
    """
    assert answers(as_worker(place, source)) == [["0", "1", "2"], "no child", [["1000\n"], []]]
    # Nothing of the launcher's: the script has streams that lead nowhere, and itself.
    held = (place / "data/fds").read_text()
    assert held.count("/dev/null") == 6
    assert not any(word in held for word in ("socket:", "anon_inode:", "pipe:", "memfd", "/proc"))


@worker_has_ranges
def test_a_container_that_is_given_up_while_it_is_mapped_leaves_nothing(place: Path) -> None:
    slow = place / "bin"
    slow.mkdir()
    for name in ("newuidmap", "newgidmap"):
        (slow / name).write_text(
            f"#!/bin/sh\ncd {place}/data && echo $$ >new && mv new pid\nexec sleep 1000\n"
        )
        (slow / name).chmod(0o755)
    source = f"""
    import select, signal, threading, time
    os.environ["PATH"] = "{slow}:" + os.environ["PATH"]
    class Enough(BaseException):
        pass
    def stop(*_):
        raise Enough
    signal.signal(signal.SIGALRM, stop)
    def stop_it_when_it_is_mapped():
        while not os.path.exists("data/pid"):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
    threading.Thread(target=stop_it_when_it_is_mapped, daemon=True).start()
    try:
        Container().run(Process(["true"], user=1000))
    except Enough:
        tell("given up")
    with open("data/pid") as file:
        pid = int(file.read())
    try:
        fd = os.pidfd_open(pid)
        tell(bool(select.select([fd], [], [], {PATIENCE})[0]))
    except ProcessLookupError:
        tell(True)
    os.environ["PATH"] = "/usr/bin:/bin"
    tell(container.run(["id", "-u"], user=1000, text=True).stdout)
    """
    assert answers(as_worker(place, source)) == ["given up", True, "1000\n"]
