# SPDX-License-Identifier: Apache-2.0
"""What the files of a cgroup say, and where cgroups can be made, by made-up hierarchies."""

from __future__ import annotations

from errno import EBUSY
from pathlib import Path

import pytest

from container import CgroupError, CgroupV2NotMountedError, ControllerNotEnabledError, _hierarchy
from container._cgroup import (
    IOStats,
    MemoryEvents,
    parse_events,
    parse_flat,
    parse_io,
    parse_number,
    parse_pressure,
)


def test_flat_files_are_names_and_numbers() -> None:
    assert parse_flat("usage_usec 12\nuser_usec 5\n\nodd\nnew_field x\n") == {
        "usage_usec": 12,
        "user_usec": 5,
    }


def test_events_ignore_what_they_do_not_know() -> None:
    text = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n"
    assert parse_events(text) == MemoryEvents(1, 2, 3, 4, 5, 6)
    assert parse_events("") == MemoryEvents()


def test_io_is_by_device() -> None:
    text = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n8:0 \n"
    assert parse_io(text) == {"254:0": IOStats(1, 2, 3, 4, 5, 6), "8:0": IOStats()}


def test_pressure_has_averages_and_a_total() -> None:
    text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n"
    assert parse_pressure(text).some == {"avg10": 1.5, "avg60": 0, "avg300": 0, "total": 12}
    assert parse_pressure(text).full == {}


@pytest.mark.parametrize(("text", "number"), [("5\n", 5), ("max\n", None), (None, None)])
def test_max_is_no_number(text: str | None, number: int | None) -> None:
    assert parse_number(text) == number


# Places ---------------------------------------------------------------------------------------


class Tree:
    """A made-up hierarchy in ordinary directories, and the /proc that goes with it."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.files: dict[str, str] = {}
        self.enabled: list[tuple[str, str]] = []
        self.refused: dict[str, OSError] = {}
        real = _hierarchy.read
        monkeypatch.setattr(_hierarchy, "read", lambda path: self.files.get(path) or real(path))
        monkeypatch.setattr(_hierarchy, "enable", self.enable)
        self.say_mounts(f"1 2 0:1 / {top} rw - cgroup2 none rw")
        self.say_own("/")

    def enable(self, directory: str, wanted: set[str]) -> None:
        if directory in self.refused:
            raise self.refused[directory]
        self.enabled += [(directory, name) for name in sorted(wanted)]

    def say_mounts(self, *lines: str) -> None:
        self.files["/proc/self/mountinfo"] = "\n".join(lines)

    def say_own(self, path: str) -> None:
        self.files["/proc/self/cgroup"] = f"1:cpu:/elsewhere\n0::{path}\n"

    def make(self, path: str, controllers: str, *, is_root: bool = False) -> str:
        directory = self.top / path
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text(controllers)
        if not is_root:
            (directory / "cgroup.events").write_text("populated 1\n")
        return str(directory)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_without_a_v2_mount_there_is_no_cgroup(tree: Tree) -> None:
    tree.say_mounts("1 2 0:1 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu")
    with pytest.raises(CgroupV2NotMountedError, match="mount -t cgroup2"):
        _hierarchy.find_hierarchy()


def test_the_own_cgroup_is_looked_for_below_what_is_mounted(tree: Tree) -> None:
    tree.make("b", "memory")
    tree.say_mounts(
        "1 2 0:1 /other /nowhere rw - cgroup2 none rw",
        f"1 2 0:1 /a {tree.top} rw - cgroup2 none rw",
    )
    tree.say_own("/a/b")
    assert _hierarchy.find_hierarchy() == _hierarchy.Hierarchy(str(tree.top), f"{tree.top}/b")
    tree.say_own("/../elsewhere")
    assert _hierarchy.find_hierarchy().own.startswith(("/nowhere", str(tree.top)))


def test_a_mount_point_with_a_blank_is_found(tree: Tree) -> None:
    directory = tree.make("with blank", "memory")
    tree.say_mounts(f"1 2 0:1 / {directory.replace(' ', chr(92) + '040')} rw - cgroup2 none rw")
    assert _hierarchy.find_hierarchy().top == directory


def test_root_uses_the_top_though_it_is_deep_below(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    top = tree.make(".", "memory pids", is_root=True)
    tree.make("service", "memory pids")
    tree.say_own("/service")
    assert _hierarchy.find_place({"memory"}) == f"{top}/container"
    assert tree.enabled == [(top, "memory"), (f"{top}/container", "memory")]


def test_others_use_the_nearest_cgroup_without_processes(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    tree.make(".", "memory")
    slice_ = tree.make("slice", "memory")
    scope = tree.make("slice/scope", "memory")
    tree.say_own("/slice/scope")
    tree.refused[scope] = OSError(16, "busy")
    assert _hierarchy.find_place({"memory"}) == f"{slice_}/container"
    assert not (Path(scope) / "container").exists()


def test_a_place_with_what_is_optional_goes_before_a_nearer_one(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    slice_ = tree.make(".", "memory")
    scope = tree.make("scope", "memory")
    tree.say_own("/scope")
    tree.refused[scope] = OSError(16, "busy")
    assert _hierarchy.find_place((), ("memory",)) == f"{slice_}/container"


def test_what_is_optional_does_not_stand_in_the_way(tree: Tree) -> None:
    top = tree.make(".", "memory")
    assert _hierarchy.find_place((), ("memory", "pids")) == f"{top}/container"
    assert (top, "memory") in tree.enabled


def refusal(wanted: str) -> ControllerNotEnabledError:
    with pytest.raises(ControllerNotEnabledError) as caught:
        _hierarchy.find_place({wanted})
    assert caught.value.controller == wanted
    assert caught.value.remedy
    assert caught.value.holder
    return caught.value


def test_a_controller_that_v1_has_is_told_with_its_mount(tree: Tree) -> None:
    tree.make(".", "pids", is_root=True)
    tree.say_mounts(
        f"1 2 0:1 / {tree.top} rw - cgroup2 none rw",
        "1 2 0:1 / /v1/memory rw - cgroup none rw,memory",
        "1 2 0:1 / /v1/blkio rw - cgroup none rw,blkio",
    )
    assert "/v1/memory" in str(refusal("memory").holder)
    assert "cgroup_no_v1=memory" in str(refusal("memory").remedy)
    assert "/v1/blkio" in str(refusal("io").holder)


def test_a_controller_that_the_kernel_has_switched_off_is_told(tree: Tree) -> None:
    tree.make(".", "pids", is_root=True)
    tree.files["/proc/cgroups"] = "#name hierarchy num enabled\nmemory\t0\t1\t0\n"
    assert "switched off" in str(refusal("memory").holder)
    tree.files["/proc/cgroups"] = "#name hierarchy num enabled\nmemory\t7\t1\t1\n"
    assert "number 7" in str(refusal("memory").holder)
    tree.files["/proc/cgroups"] = "#name hierarchy num enabled\ncpu\t0\t1\t1\n"
    assert "this kernel does not have it" in str(refusal("memory").holder)


def test_a_controller_that_a_parent_keeps_is_told_with_the_parent(tree: Tree) -> None:
    top = tree.make(".", "memory")
    tree.make("user", "")
    tree.say_own("/user")
    tree.refused[top] = PermissionError(13, "denied")
    error = refusal("memory")
    assert f"{top}, whose cgroup.subtree_control" in str(error.holder)
    assert "Delegate=yes" in str(error.remedy)


def test_processes_in_the_way_are_told_with_their_cgroup(tree: Tree) -> None:
    top = tree.make(".", "memory")
    tree.refused[top] = OSError(16, "busy")
    error = refusal("memory")
    assert f"the processes in {top}" in str(error.holder)
    assert "DelegateSubgroup" in str(error.remedy)


@pytest.mark.parametrize(
    ("delegated", "place"),
    [("manager/app/unit", "manager/app/unit"), ("manager/app", "manager/app"), ("manager", None)],
)
def test_what_systemd_has_for_itself_is_no_place(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, delegated: str, place: str | None
) -> None:
    """The program is below its unit; `None`: there is nothing but its own cgroup to try."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    manager = "user@1000.service"
    for path in (".", manager, f"{manager}/app", f"{manager}/app/unit", f"{manager}/app/unit/main"):
        tree.make(path, "memory")
    marked = str(tree.top / delegated.replace("manager", manager))
    monkeypatch.setattr(_hierarchy, "_is_delegated", lambda directory: directory == marked)
    tree.say_own(f"/{manager}/app/unit/main")
    for path in ("app/unit/main", "app/unit"):
        if not (place or "").endswith(path):
            tree.refused[str(tree.top / manager / path)] = OSError(EBUSY, "busy")
    if place is None:
        with pytest.raises(ControllerNotEnabledError, match="app/unit/main"):
            _hierarchy.find_place({"memory"})
    else:
        expected = tree.top / place.replace("manager", manager) / "container"
        assert _hierarchy.find_place({"memory"}) == str(expected)


def test_nothing_delegated_is_told_with_a_way_to_get_it(tree: Tree) -> None:
    top = tree.make(".", "memory")
    tree.refused[top] = PermissionError(13, "denied")
    assert "may not write" in str(refusal("memory").holder)
    with pytest.raises(CgroupError, match="Delegate=yes"):
        tree.refused[f"{top}/container"] = PermissionError(13, "denied")
        _hierarchy.find_place(())
