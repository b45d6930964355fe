# SPDX-License-Identifier: Apache-2.0
"""The marker `needs` and its probes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import leaks
import needs
import pytest

pytest_plugins = ["pytester"]

TESTS = Path(needs.__file__).parent

RunInner = Callable[[str], pytest.RunResult]


def _absent(_directory: str) -> None:
    raise needs.MissingError("there is none")


def _absent_too(_directory: str) -> None:
    raise OSError(1, "Operation not permitted")


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> RunInner:
    """Run tests under tests/conftest.py, with needs `present`, `absent` and `refused`."""
    monkeypatch.delenv("CONTAINER_MUST_RUN", raising=False)
    monkeypatch.delenv("CONTAINER_MAY_SKIP", raising=False)
    monkeypatch.setitem(needs.PROBES, "present", lambda _directory: None)
    monkeypatch.setitem(needs.PROBES, "absent", _absent)
    monkeypatch.setitem(needs.PROBES, "refused", _absent_too)
    pytester.makeconftest((TESTS / "conftest.py").read_text())

    def run(source: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers")

    return run


ONE_OF_EACH = """
    import pytest

    @pytest.mark.needs("present")
    def test_present():
        pass

    @pytest.mark.needs("absent")
    @pytest.mark.parametrize("number", [1, 2])
    def test_absent(number):
        assert False

    @pytest.mark.needs("present", "refused")
    def test_refused():
        assert False
"""


def test_a_missing_need_skips_and_is_counted_with_its_reason(inner: RunInner) -> None:
    result = inner(ONE_OF_EACH)

    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(
        [
            "*what this machine lacks*",
            "2 skipped: needs absent: there is none",
            "1 skipped: needs refused: [[]Errno 1[]] Operation not permitted",
        ]
    )


def test_nothing_missing_prints_nothing(inner: RunInner) -> None:
    result = inner("import pytest\n@pytest.mark.needs('present')\ndef test(): pass")

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*what this machine lacks*")


def test_must_run_makes_every_skip_an_error(
    inner: RunInner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER_MUST_RUN", "1")

    result = inner(ONE_OF_EACH)

    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines(["*needs absent: there is none (must not be skipped: absent)*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_may_skip_excepts_what_the_machine_is_known_to_lack(
    inner: RunInner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER_MUST_RUN", "1")
    monkeypatch.setenv("CONTAINER_MAY_SKIP", "absent, present")

    result = inner(ONE_OF_EACH)

    result.assert_outcomes(passed=1, skipped=2, errors=1)
    result.stdout.fnmatch_lines(
        ["CONTAINER_MAY_SKIP has present, which this machine does not lack"]
    )


def test_must_run_may_name_the_needs(inner: RunInner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_MUST_RUN", "refused,present")

    inner(ONE_OF_EACH).assert_outcomes(passed=1, skipped=2, errors=1)


def test_a_forbidden_skip_is_not_hidden_by_an_allowed_one(
    inner: RunInner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER_MUST_RUN", "refused")

    result = inner("import pytest\n@pytest.mark.needs('absent', 'refused')\ndef test(): pass")

    result.assert_outcomes(errors=1)


@pytest.mark.parametrize("variable", ["CONTAINER_MUST_RUN", "CONTAINER_MAY_SKIP"])
def test_an_unknown_need_in_the_environment_stops_the_run(
    inner: RunInner, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("CONTAINER_MUST_RUN", "1")
    monkeypatch.setenv(variable, "idmapp")

    result = inner(ONE_OF_EACH)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{variable}: 'idmapp' is no need*"])


@pytest.mark.parametrize("marker", ["needs('idmapp')", "needs()", "needs(name='root')"])
def test_a_wrong_marker_stops_the_run(inner: RunInner, marker: str) -> None:
    result = inner(f"import pytest\n@pytest.mark.{marker}\ndef test(): pass")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test: *need*"])


def test_a_skipped_test_sets_no_fixture_up(inner: RunInner) -> None:
    result = inner("""
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def broken():
            raise RuntimeError

        @pytest.mark.needs("absent")
        def test():
            pass
    """)

    result.assert_outcomes(skipped=1)


def test_needs_of_the_module_the_class_and_the_parameter_add_up(inner: RunInner) -> None:
    result = inner("""
        import pytest

        pytestmark = pytest.mark.needs("present")

        class Test:
            pytestmark = pytest.mark.needs("refused")

            @pytest.mark.parametrize("one", [pytest.param(1, marks=pytest.mark.needs("absent"))])
            def test(self, one):
                pass
    """)

    result.stdout.fnmatch_lines(["1 skipped: needs absent: *; needs refused: *"])


# The policy


@pytest.mark.parametrize(
    ("must_run", "may_skip", "forbidden", "allowed"),
    [
        ("", "", "", "root,idmap"),
        ("0", "", "", "root,idmap"),
        ("1", "", "root,idmap,cgroup2:memory", ""),
        ("1", "idmap,cgroup2:memory", "root,cgroup2:pids", "idmap,cgroup2:memory"),
        ("root,kernel>=6.1", "root", "root,kernel>=6.1", "kernel>=6.2,idmap"),
    ],
)
def test_policy(must_run: str, may_skip: str, forbidden: str, allowed: str) -> None:
    policy = needs.Policy.from_environment(
        {"CONTAINER_MUST_RUN": must_run, "CONTAINER_MAY_SKIP": may_skip}
    )

    assert [need for need in forbidden.split(",") if need and not policy.forbids(need)] == []
    assert [need for need in allowed.split(",") if need and policy.forbids(need)] == []


# The probes


def test_a_need_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setitem(needs.PROBES, "root", asked.append)
    machine = needs.Machine("/somewhere")

    assert machine.missing_of(["root", "root"]) == {}
    assert machine.missing("root") is None
    assert asked == ["/somewhere"]


@pytest.mark.parametrize(
    "name", ["", "Root", "cgroup2:", "cgroup2:memry", "kernel", "kernel>6.1", "kernel>=", "gcc "]
)
def test_other_names_are_no_needs(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        needs.probe_of(name)


def test_kernel_compares_numbers_and_not_text(monkeypatch: pytest.MonkeyPatch) -> None:
    release = os.uname_result(("Linux", "host", "6.10.0-rc1+deb", "", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: release)
    machine = needs.Machine()

    assert machine.missing_of(["kernel>=6.9", "kernel>=6.10", "kernel>=5"]) == {}
    assert machine.missing("kernel>=6.11") == "the kernel is 6.10.0-rc1+deb"


def test_root_is_the_effective_user() -> None:
    assert (needs.Machine().missing("root") is None) == (os.geteuid() == 0)


def test_a_program_that_is_not_in_path_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert needs.Machine().missing("gcc") == "no gcc in PATH"


def test_a_program_that_does_not_run_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gcc").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "gcc").chmod(0o755)

    assert needs.Machine().missing("gcc") == f"{tmp_path}/gcc --version: exit status 3"


def test_a_busybox_that_wants_a_loader_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "busybox").symlink_to("/bin/sh")
    (tmp_path / "true").write_text("")
    monkeypatch.chdir(tmp_path)

    assert "is not static: it wants /" in (needs.Machine().missing("busybox") or "")


def test_newuidmap_without_rights_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "newuidmap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "newuidmap").chmod(0o755)

    assert "is neither setuid nor has" in (needs.Machine().missing("newuidmap") or "")


@pytest.mark.needs("userns")
@pytest.mark.parametrize(("limit", "call"), [("user", "CLONE_NEWUSER"), ("mnt", "CLONE_NEWNS")])
def test_userns_is_missing_where_the_kernel_allows_no_more(limit: str, call: str) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import needs
needs._child_userns(needs.Kernel(), "")
open("/proc/sys/user/max_{limit}_namespaces", "w").write("0")
print(needs.Machine().missing("userns"))
"""

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert f"unshare({call}): No space left on device" in done.stdout, done.stderr


@pytest.mark.needs("root", "user_python")
def test_idmap_is_missing_for_an_ordinary_user(tmp_path: Path) -> None:
    probe = [sys.executable, str(TESTS / "needs.py"), "probe", "idmap", "/"]

    done = subprocess.run(
        needs.as_user_argv(probe), capture_output=True, text=True, check=False, cwd="/"
    )

    assert done.returncode == needs.MISSING_STATUS, done.stderr
    assert "Operation not permitted" in done.stderr


def test_a_broken_probe_is_an_error_and_no_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(needs.PROBES, "root", needs._probe_in_child("no such probe"))

    with pytest.raises(RuntimeError, match="broken"):
        needs.Machine().missing("root")


def test_probing_leaves_nothing_behind() -> None:
    guard = leaks.Guard()
    machine = needs.Machine()

    machine.missing_of([*needs.PROBES, *(f"cgroup2:{name}" for name in needs.CONTROLLERS)])

    assert guard.left() == []


# The ordinary user


@pytest.mark.needs("root", "user_python")
def test_root_becomes_a_user_without_groups_and_capabilities() -> None:
    script = "print(open('/proc/self/status').read())"

    done = subprocess.run(
        needs.as_user_argv([sys.executable, "-c", script]),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        extra_groups=[4],
    )

    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    ids = [str(needs.ORDINARY_ID)] * 4
    assert status["Uid"].split() == ids
    assert status["Gid"].split() == ids
    assert status["Groups"].split() == []
    assert {status[name].strip("\t0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}


@pytest.mark.needs("root", "user")
def test_the_user_reaches_just_what_it_needs_of_a_closed_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    wanted = closed / "deep" / "wanted"
    wanted.mkdir(parents=True)
    (wanted / "file").write_text("seen\n")
    (closed / "secret").write_text("not seen")
    closed.chmod(0o700)
    command = ["/bin/sh", "-c", f"cat {wanted}/file; ls {closed} {closed}/deep"]
    become = [*needs._fresh_python(), "become", os.pathsep.join(map(str, (wanted, tmp_path)))]

    done = subprocess.run([*become, *command], capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["seen", f"{closed}:", "deep", f"{closed}/deep:", "wanted"]
    assert closed.stat().st_mode & 0o777 == 0o700
