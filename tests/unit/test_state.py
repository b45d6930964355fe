# SPDX-License-Identifier: Apache-2.0
"""States in files: whose they are, what survives, and what is not trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from container import (
    ConfigError,
    ContainerNotFoundError,
    ContainerState,
    State,
    StateError,
    StateManager,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OTHER_USER = 4711


@pytest.fixture
def manager(tmp_path: Path) -> StateManager:
    return StateManager(tmp_path / "states")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def state_of(id: str = "box", **changes: Any) -> ContainerState:
    made = ContainerState(id, State.STOPPED, None, 3, NOW, NOW, NOW, "/bundle", {"a": "b"})
    return replace(made, **changes)


def running(pid: int, id: str = "box") -> ContainerState:
    return state_of(id, state=State.RUNNING, pid=pid, exit_code=None, stopped_at=None)


def file_of(manager: StateManager, id: str = "box") -> Path:
    return Path(manager.state_dir, id, "state.json")


def change(manager: StateManager, **values: object) -> None:
    path = file_of(manager)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_saved_is_loaded_and_gone_once_deleted(manager: StateManager) -> None:
    assert manager.list_states() == []
    manager.save_state(state_of())
    manager.save_state(state_of("older", created_at=NOW - timedelta(1)))
    assert manager.load_state("box") == state_of()
    assert [state.id for state in manager.list_states()] == ["older", "box"]
    manager.save_state(state_of(exit_code=4))
    assert manager.load_state("box").exit_code == 4
    manager.delete_state("box")
    for action in (manager.load_state, manager.delete_state):
        with pytest.raises(ContainerNotFoundError):
            action("box")
    assert os.listdir(manager.state_dir) == ["older"]


def test_only_the_owner_can_look_at_it(manager: StateManager) -> None:
    manager.save_state(state_of())
    path = file_of(manager)
    for each, mode in ((path, 0o600), (path.parent, 0o700), (path.parent.parent, 0o700)):
        assert each.stat().st_mode & 0o777 == mode
    assert os.listdir(path.parent) == ["state.json"]


def test_the_names_are_the_references(manager: StateManager) -> None:
    manager.save_state(state_of())
    content = json.loads(file_of(manager).read_text())
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert content == json.loads(state_of().to_json()) | {
        "format": 1,
        "boot_id": boot_id,
        "pid_start": None,
    }


# Processes ----------------------------------------------------------------------------------------


def test_a_process_that_has_ended_is_not_running(
    manager: StateManager, sleeper: subprocess.Popen[bytes]
) -> None:
    manager.save_state(running(sleeper.pid))
    assert manager.load_state("box") == running(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    stopped = manager.load_state("box")
    assert (stopped.state, stopped.pid, stopped.exit_code) == (State.STOPPED, None, None)
    sleeper.wait()
    assert manager.list_states() == [stopped]


@pytest.mark.parametrize("changed", [{"pid_start": 1}, {"pid_start": None}, {"boot_id": "other"}])
def test_another_process_with_its_pid_is_not_taken_for_it(
    manager: StateManager, sleeper: subprocess.Popen[bytes], changed: dict[str, object]
) -> None:
    manager.save_state(running(sleeper.pid))
    change(manager, **changed)
    assert manager.load_state("box").state == State.STOPPED


def test_one_in_the_making_is_of_this_boot(manager: StateManager) -> None:
    making = state_of(state=State.CREATING, exit_code=None, started_at=None, stopped_at=None)
    manager.save_state(making)
    assert manager.load_state("box") == making
    change(manager, boot_id="other")
    assert manager.load_state("box").state == State.STOPPED


# What is not trusted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "damaged"),
        (b"[1]", "damaged"),
        (b"\xff", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"1" * ((1 << 20) + 1), "damaged"),
        (b'{"format": 1}', "damaged"),
        (b'{"format": 2, "id": "box"}', "another version"),
        (b"{}", "another version"),
    ],
)
def test_a_damaged_or_foreign_file_is_told_of(
    manager: StateManager, content: bytes, word: str
) -> None:
    manager.save_state(state_of())
    manager.save_state(state_of("other"))
    file_of(manager).write_bytes(content)
    with pytest.raises(StateError, match=word):
        manager.load_state("box")
    with pytest.warns(RuntimeWarning, match=word):
        assert [state.id for state in manager.list_states()] == ["other"]
    manager.save_state(state_of())  # and can be written anew
    assert manager.load_state("box") == state_of()


def test_the_state_of_another_id_is_damaged(manager: StateManager) -> None:
    manager.save_state(state_of())
    change(manager, id="other")
    with pytest.raises(StateError, match="that of other"):
        manager.load_state("box")


def link_top(top: Path, elsewhere: Path) -> None:
    top.rename(elsewhere / "top")
    top.symlink_to(elsewhere / "top")


def link_directory(top: Path, elsewhere: Path) -> None:
    (top / "box").rename(elsewhere / "box")
    (top / "box").symlink_to(elsewhere / "box")


def link_file(top: Path, elsewhere: Path) -> None:
    path = top / "box" / "state.json"
    path.rename(elsewhere / "state.json")
    path.symlink_to(elsewhere / "state.json")


def make_fifo(top: Path, _elsewhere: Path) -> None:
    path = top / "box" / "state.json"
    path.unlink()
    os.mkfifo(path, 0o600)


def let_others_write(part: str) -> Callable[[Path, Path], None]:
    return lambda top, _: (top / part).chmod(0o722)


def give_away(part: str) -> Callable[[Path, Path], None]:
    return lambda top, _: os.chown(top / part, OTHER_USER, OTHER_USER)


TRICKS: dict[str, Callable[[Path, Path], None]] = {
    "top is a link": link_top,
    "a directory is a link": link_directory,
    "a file is a link": link_file,
    "a file is a fifo": make_fifo,
    **{f"others may write {part!r}": let_others_write(part) for part in ("", "box")},
    "others may write the file": let_others_write("box/state.json"),
}
OWNERS = {f"another user's {part!r}": give_away(part) for part in ("", "box", "box/state.json")}
ROOTS = [pytest.param(trick, marks=pytest.mark.needs("root")) for trick in OWNERS]


@pytest.mark.parametrize("trick", [*TRICKS, *ROOTS])
def test_what_others_may_have_made_is_not_read(
    manager: StateManager, tmp_path: Path, trick: str
) -> None:
    manager.save_state(state_of())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (TRICKS | OWNERS)[trick](Path(manager.state_dir), elsewhere)
    with pytest.raises(StateError) as caught:
        manager.load_state("box")
    assert not isinstance(caught.value, ContainerNotFoundError)


@pytest.mark.parametrize("trick", ["top is a link", "a directory is a link", "a file is a link"])
def test_nothing_is_written_or_removed_through_a_link(
    manager: StateManager, tmp_path: Path, trick: str
) -> None:
    manager.save_state(state_of())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    TRICKS[trick](Path(manager.state_dir), elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("state.json")}
    assert len(before) == 1
    actions: list[Callable[[], None]] = [
        lambda: manager.save_state(state_of(exit_code=9)),
        lambda: manager.delete_state("box"),
    ]
    for action in actions:
        if trick == "a file is a link":
            action()  # the link itself is replaced, and removed
        else:
            with pytest.raises(StateError):
                action()
        assert {path: path.read_bytes() for path in elsewhere.rglob("state.json")} == before


@pytest.mark.parametrize("id", ["", ".", "..", "../box", "a/b", ".hidden", "a" * 129, "a\0b", 7])
def test_an_id_is_no_path(manager: StateManager, id: Any) -> None:
    for action in (manager.load_state, manager.delete_state):
        with pytest.raises(ConfigError) as caught:
            action(id)
        assert caught.value.field == "id"


def test_what_is_no_state_is_refused(manager: StateManager) -> None:
    wrong: Any = {"id": "box"}
    with pytest.raises(ConfigError) as caught:
        manager.save_state(wrong)
    assert caught.value.field == "state"
    assert not os.path.exists(manager.state_dir)
    with pytest.raises(ConfigError) as caught:
        StateManager("")
    assert caught.value.field == "state_dir"


def test_the_default_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert StateManager().state_dir == "/run/user/7/container"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        with pytest.raises(ConfigError) as caught:
            StateManager()
        assert caught.value.field == "state_dir"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert StateManager().state_dir == "/run/container"


# What fails ---------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent" / "states", tmp_path / "file" / "states", tmp_path / "file"):
        with pytest.raises(StateError, match=path.name) as caught:
            StateManager(path).save_state(state_of())
        assert not isinstance(caught.value, ContainerNotFoundError)


FULL = """
import resource, signal, sys
from datetime import UTC, datetime
from container import ContainerState, State, StateError, StateManager
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
state = ContainerState("box", State.STOPPED, None, 4, datetime.now(UTC))
try:
    StateManager(sys.argv[1]).save_state(state)
except StateError as error:
    print(error)
"""


def test_a_state_that_does_not_fit_leaves_the_older_one(manager: StateManager) -> None:
    manager.save_state(state_of())
    command = [sys.executable, "-c", FULL, manager.state_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "box: File too large" in done.stdout
    assert manager.load_state("box") == state_of()
    assert os.listdir(file_of(manager).parent) == ["state.json"]


WRITE_ON = """
import sys
from datetime import UTC, datetime
from container import ContainerState, State, StateManager
manager = StateManager(sys.argv[1])
print(flush=True)
for number in range(10**9):
    manager.save_state(ContainerState("box", State.STOPPED, None, number % 256, datetime.now(UTC)))
"""


def test_a_writer_that_is_killed_leaves_a_state_that_can_be_read(manager: StateManager) -> None:
    manager.save_state(state_of())
    writes = 0
    command = [sys.executable, "-c", WRITE_ON, manager.state_dir]
    while writes < 500:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            seen: set[int | None] = set()
            while len(seen) < 50:
                seen.add(manager.load_state("box").exit_code)
            writer.send_signal(signal.SIGKILL)
        writes += len(seen)
        assert manager.load_state("box").state == State.STOPPED
    manager.save_state(state_of())
    assert os.listdir(file_of(manager).parent) == ["state.json"]


def test_threads_that_save_load_and_delete_one_state_see_whole_ones(
    manager: StateManager,
) -> None:
    wrong: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(60):
                manager.save_state(state_of(exit_code=number))
                try:
                    assert manager.load_state("box").annotations == {"a": "b"}
                    if turn % 3 == 0:
                        manager.delete_state("box")
                except ContainerNotFoundError:
                    pass
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    manager.save_state(state_of())
    assert os.listdir(manager.state_dir) == ["box"]
