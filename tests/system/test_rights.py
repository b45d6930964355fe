# SPDX-License-Identifier: Apache-2.0
"""The launcher never has more rights than its caller has now."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from system.helpers import ORDINARY_ID, caller

pytestmark = [pytest.mark.needs("root", "userns", "idmap"), pytest.mark.long]

# The root directory is one that everybody can reach, as the interpreter's may not be.
COMMON = f"""
USER = {ORDINARY_ID}
LEASED = "leased"

def identity(**options):
    # The id map that a container of ours is made with, seen in the container itself.
    result = run(["cat", "/proc/self/uid_map"], root=ROOT, text=True, check=True, **options)
    inside, host, count = map(int, result.stdout.split())
    return LEASED if host >= 1 << 16 and count == 1 << 16 else [inside, host, count]

def status(pid):
    with open(f"/proc/{{pid}}/status") as file:
        return {{name: value for name, _, value in (line.partition(":") for line in file)}}

def get_caps(pid):
    return {{name: int(status(pid)[name], 16) for name in ("CapPrm", "CapEff", "CapInh")}}

def ids_of(pid):
    return [status(pid)["Uid"].split(), status(pid)["Gid"].split()]

def capset(mask):
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    for half in (0, 1):
        data[3 * half] = data[3 * half + 1] = mask >> (32 * half) & 0xffffffff
    check(libc.capset(header, data))

def lives(pid):
    try:
        with open(f"/proc/{{pid}}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False

def ends(pid):
    deadline = time.monotonic() + 5
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not lives(pid)

assert identity() == LEASED
first = launcher_pid()
"""


def tell_of(root: Path, source: str, **options: Any) -> list[Any]:
    """What a caller tells that begins as root and has run a container as such."""
    return caller(f"ROOT = {str(root)!r}\n{COMMON}\n{textwrap.dedent(source)}", **options)


def test_after_setuid_containers_are_those_of_the_new_user(rootdir: Path) -> None:
    told_of = tell_of(
        rootdir,
        """
        os.setgid(USER)
        os.setuid(USER)
        tell(identity())
        tell([launcher_pid() != first, ends(first)])
        tell(ids_of(launcher_pid()))
        tell(set(get_caps(launcher_pid()).values()) == {0})
        """,
    )
    ids = [str(ORDINARY_ID)] * 4
    assert told_of == [[0, ORDINARY_ID, 1], [True, True], [ids, ids], True]


def test_after_seteuid_containers_are_those_of_the_new_user_and_of_root_again_after_it(
    rootdir: Path,
) -> None:
    # The real id, which SCM_CREDENTIALS tells of, stays root's.
    told_of = tell_of(
        rootdir,
        """
        os.seteuid(USER)
        tell(identity())
        tell([launcher_pid() != first, ends(first)])
        tell(ids_of(launcher_pid())[0])
        tell(set(get_caps(launcher_pid()).values()) == {0})
        os.seteuid(0)
        tell(identity())
        """,
    )
    ids = [str(ORDINARY_ID)] * 4
    assert told_of == [[0, ORDINARY_ID, 1], [True, True], ids, True, "leased"]


@pytest.mark.parametrize(
    "change",
    [
        "os.setgroups([USER])",
        "os.setegid(USER)",
        "os.setresgid(USER, USER, 0)",
        "check(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS",
        "check(libc.prctl(24, 25, 0, 0, 0))  # PR_CAPBSET_DROP of CAP_SYS_TIME",
        "capset(get_caps('self')['CapPrm'] & ~(1 << 25))",
    ],
)
def test_any_change_of_rights_is_noticed(rootdir: Path, change: str) -> None:
    told_of = tell_of(
        rootdir,
        f"""
        {change}
        tell(identity())
        tell([launcher_pid() != first, ends(first)])
        mine, its = get_caps("self"), get_caps(launcher_pid())
        tell(its["CapPrm"] & ~mine["CapPrm"] == 0)
        """,
    )
    assert told_of == ["leased", [True, True], True]


def test_a_caller_that_dropped_its_capabilities_starts_nothing_with_them(rootdir: Path) -> None:
    # It is uid 0 still, but may neither map ids nor copy mounts.
    told_of = tell_of(
        rootdir,
        """
        capset(0)
        try:
            tell(identity())
        except LaunchError as error:
            tell([error.step, error.errno == errno.EPERM])
        tell([launcher_pid() != first, ends(first)])
        tell(set(get_caps(launcher_pid()).values()) == {0})
        """,
    )
    assert told_of[0] in (["id-maps", True], ["sources", True], ["clone", True])
    assert told_of[1:] == [[True, True], True]


def test_containers_that_run_go_on_when_the_rights_change(rootdir: Path) -> None:
    told_of = tell_of(
        rootdir,
        """
        process = popen(["cat"], root=ROOT, stdin=PIPE)
        os.seteuid(USER)
        tell(identity())
        tell(lives(first))
        process.stdin.write(b"still here\\n")
        process.stdin.flush()
        tell(process.stdout.readline().decode())
        process.stdin.close()
        tell(process.wait())
        process.stdout.close()
        process.stderr.close()
        tell(ends(first))
        """,
    )
    assert told_of == [[0, ORDINARY_ID, 1], True, "still here\n", 0, True]


@pytest.mark.parametrize("change", ["setuid", "seteuid"])
def test_no_start_that_begins_after_the_change_has_the_old_rights(
    rootdir: Path, change: str
) -> None:
    told_of = tell_of(
        rootdir,
        f"""
        changed = threading.Event()
        results = []

        def contain():
            for _ in range(12):
                before = changed.is_set()
                try:
                    results.append((before, identity()))
                except (LaunchError, StateError):
                    # Planned by root, started by the user: refused.
                    results.append((before, None))

        threads = [threading.Thread(target=contain) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(results) < 8:
            time.sleep(0.001)
        os.{change}(USER)
        changed.set()
        for thread in threads:
            thread.join()
        tell(len(results))
        tell(sorted({{str(given) for before, given in results if before}}))
        tell(any(given == LEASED for before, given in results if not before))
        """,
    )
    count, after, leased_before = told_of
    assert count == 48
    assert after == [f"[0, {ORDINARY_ID}, 1]"]
    assert leased_before


def test_a_start_that_the_change_overtakes_is_refused(rootdir: Path) -> None:
    # Planned and encoded as root's; then the rights go, before the launcher has read it.
    told_of = tell_of(
        rootdir,
        """
        ask = _launcher.Launcher.start
        def overtaken(*arguments):
            if os.geteuid() == 0:
                os.seteuid(USER)
            return ask(*arguments)
        _launcher.Launcher.start = overtaken
        try:
            tell(identity())
        except LaunchError as error:
            tell(error.step)
        except UnsupportedError:
            tell("unsupported")
        tell([os.geteuid() == USER, ends(first)])
        """,
    )
    # Whatever it is, it is no container with root's range.
    assert told_of[0] != "leased"
    assert told_of[1] == [True, True]
