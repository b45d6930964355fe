# SPDX-License-Identifier: Apache-2.0
"""Starts in hostile roots, standing still and while another container swaps what is there."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from hostile import roots
from system.conftest import USER_SECONDS, open_directory
from system.helpers import python

import container
from container import Config, Container, Mount, Namespaces, Process

pytestmark = [pytest.mark.needs("userns", "busybox"), pytest.mark.long]

ROUNDS = 200


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """A busybox of the tests' own, to be linked into every root."""
    found = shutil.which("busybox")
    assert found is not None
    with open_directory() as directory:
        copy = directory / "busybox"
        shutil.copyfile(found, copy)
        copy.chmod(0o755)
        yield copy


# Roots that stand still ---------------------------------------------------------------------------


def test_the_corpus_is_large_and_has_every_place_and_every_trap() -> None:
    assert len(roots.corpus()) > 200
    assert len(roots.PLACES) * len(roots.TRAPS) + len(roots.SPECIAL) == len(roots.corpus())


def test_without_a_trap_every_start_succeeds(program: Path) -> None:
    assert list(roots.attack(lambda _root, _outside: None, program)) == ["started"] * 3


@pytest.mark.parametrize("place", [*roots.PLACES, "special"])
def test_a_start_in_a_hostile_root_stays_within_its_walls(program: Path, place: str) -> None:
    if place == "special":
        traps = roots.SPECIAL
    else:
        traps = {kind: roots.corpus()[f"{place}: {kind}"] for kind in roots.TRAPS}
    ended = {kind: list(roots.attack(trap, program)) for kind, trap in traps.items()}
    assert all(len(each) == 3 for each in ended.values())
    counts = Counter(end for each in ended.values() for end in each)
    launched = ("started", "ended", "LaunchError", "LaunchFileNotFoundError")
    assert set(counts) <= {
        *launched,
        *("LaunchPermissionError", "LaunchNotADirectoryError", "ConfigError"),
    }
    assert counts["ended"] == 0 or place == "special"
    # What is no directory cannot be mounted on, and never is a link of an image followed to one.
    if place in ("dev", "proc", "sys"):
        assert {kind for kind, each in ended.items() if each[0] == "started"} == {
            *("a directory that is closed", "a directory full of links")
        }
    elif place.startswith(("dev/", "proc/", "sys/")):
        assert {each[0] for each in ended.values()} == {"started"}


class AsUser(Protocol):
    """The fixture as_user."""

    home: Path

    def __call__(self, program: Any, **options: Any) -> Any: ...
    def own(self, path: Path) -> Any: ...


@pytest.mark.needs("rootless")
@pytest.mark.timeout(6 * USER_SECONDS)  # for a user with ranges of ids programs run at each start
def test_an_ordinary_user_is_as_safe_in_all_of_them(as_user: AsUser, program: Path) -> None:
    copy = as_user.home / "busybox"
    shutil.copyfile(program, copy)
    copy.chmod(0o755)
    as_user.own(copy)
    source = Path(roots.__file__).read_text()
    source += "import json, sys\nprint(json.dumps(attack_all(Path(sys.stdin.read()))))\n"
    done = as_user(source, input=str(copy), timeout=5 * USER_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    ended = json.loads(done.stdout)
    assert set(ended) == set(roots.corpus())
    counts = Counter(end for each in ended.values() for end in each)
    assert min(counts["started"], counts["LaunchError"]) > 50


@pytest.mark.needs("root")
@pytest.mark.parametrize("place", roots.PLACES)
def test_without_a_user_namespace_the_host_is_as_safe(program: Path, place: str) -> None:
    real_variants = roots.variants

    def variants(root: Path, directory: Path) -> dict[str, tuple[Config, Process]]:
        config, process = real_variants(root, directory)["busy"]
        return {"busy": (replace(config, namespaces=Namespaces(user=False)), process)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roots, "variants", variants)
        for kind in roots.TRAPS:
            assert len(list(roots.attack(roots.corpus()[f"{place}: {kind}"], program))) == 1


# Roots that do not --------------------------------------------------------------------------------

SWAP = """
import ctypes, os, sys
RENAME_EXCHANGE = 2
os.chdir("/vol")
one, other = map(os.fsencode, sys.argv[1:])
swap = ctypes.CDLL(None).renameat2
assert swap(-100, one, -100, other, RENAME_EXCHANGE) == 0
print("up", flush=True)
while True:
    swap(-100, one, -100, other, RENAME_EXCHANGE)
"""

Other = Callable[[Path, Path], None]

OTHERS: dict[str, Other] = {
    "a link out": lambda path, outside: path.symlink_to(outside),
    "a link within": lambda path, outside: path.symlink_to("/tmp"),
    "a directory": lambda path, outside: path.mkdir(),
}


RACES = [
    *(("proc", other) for other in OTHERS),
    *((place, "a link out") for place in ("sys", "dev", "etc", "etc/conf.d", "etc/secret")),
    *((place, "a directory") for place in ("sys", "etc/conf.d")),
]


@pytest.mark.parametrize(("place", "other"), RACES)
def test_while_another_container_swaps_what_is_there_nothing_escapes(
    program: Path, place: str, other: str
) -> None:
    # CVE-2021-30465, CVE-2025-31133 and their like
    with open_directory() as directory:
        local = directory / "busybox"
        shutil.copyfile(program, local)
        local.chmod(0o755)
        root, outside = roots.make_image(directory, local)
        (root / "etc/conf.d").mkdir()
        (root / "etc/secret").write_text("secret")
        OTHERS[other](root / "other", outside / place)
        config, process = roots.variants(root, directory)["busy"]
        before, mounts = roots.snapshot(outside), roots.host_mounts()
        enemy_config = Config(mounts=[Mount.bind(root, "/vol")])
        ended: Counter[str] = Counter()
        with container.popen([*python(SWAP), place, "other"], config=enemy_config) as enemy:
            assert enemy.stdout is not None
            assert enemy.stdout.readline() == b"up\n"
            for _ in range(ROUNDS):
                ended[roots.start(config, process)] += 1
            enemy.kill()
            enemy.wait()
        assert roots.snapshot(outside) == before
        assert roots.host_mounts() == mounts
    assert sum(ended.values()) == ROUNDS
    assert ended["started"] > 0
    # Both happened, or it was no race.
    if place in ("proc", "sys", "dev") and other != "a directory":
        assert ended["LaunchError"] > 0


def test_what_the_checks_look_for_is_missed_where_it_is_missing(program: Path) -> None:
    # The walls are looked at, not taken for granted.
    with open_directory() as directory:
        local = directory / "busybox"
        os.link(program, local) if os.stat(program).st_dev == os.stat(directory).st_dev else (
            shutil.copy(program, local)
        )
        root, _ = roots.make_image(directory, local)
        bare = Config(root, masked_paths=(), readonly_paths=())
        with Container(bare) as box:
            box.run(Process(["/bin/busybox", "sleep", "1000"]))
            assert box.pid is not None
            roots.check_walls(box.pid, bare)
            with pytest.raises(KeyError):
                roots.check_walls(box.pid, Config(root))
