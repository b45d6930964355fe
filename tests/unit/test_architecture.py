# SPDX-License-Identifier: Apache-2.0
"""The arrows between the modules of the package, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest

import container

PACKAGE = Path(container.__file__).parent

WORDS = {"_errors", "_capabilities", "_seccomp", "_config"}
"""The vocabulary: what everything else may speak of."""

LEAVES = {"_devices", "_hints", "_ids", "_labels", "_landlock", "_rootfs", "_tree"} | {
    "_cgroup",
    "_hierarchy",
    "_limits",
    "_systemd",
    "_device_rules",
    "_users",
    "_walls",
}
"""Each knows one thing, and none of them another, but for what is taken out of it."""

DOOR = WORDS | LEAVES | {"_launcher"}

MIDDLE = DOOR | {"_accounts", "_identity", "_plan", "_shared", "_streams", "_process"}

ARROWS = {
    "_errors": set[str](),
    "_capabilities": {"_errors"},
    "_seccomp": {"_errors", "_capabilities"},
    # It hands on to oci, and that to it: Config.from_oci, when it is called.
    "_config": {"_errors", "_capabilities", "_seccomp", "oci"},
    "oci": WORDS | {"_device_rules", "_limits", "_walls"},
    **{leaf: WORDS for leaf in LEAVES},
    "_cgroup": WORDS | {"_hierarchy", "_limits"},
    "_device_rules": WORDS | {"_devices"},
    "_systemd": WORDS | {"_hierarchy", "_limits"},
    "_rootfs": WORDS | {"_devices", "_walls"},
    "_launcher": WORDS | LEAVES | {"_native"},
    "_accounts": DOOR,
    "_shared": DOOR,
    "_identity": DOOR | {"_shared"},
    "_plan": DOOR | {"_accounts", "_identity", "_shared"},
    "_streams": DOOR,
    "_process": DOOR | {"_streams"},
    "_join": MIDDLE,
    "_stranger": MIDDLE | {"_join"},
    "_files": DOOR,
    "_events": DOOR,
    "_hooks": MIDDLE,
    "_codec": WORDS,
    "_logs": DOOR | {"_state"},
    "_detached": MIDDLE | {"_codec", "_state"},
    "_after": MIDDLE | {"_detached", "_state"},
    "_prune": WORDS | {"_cgroup", "_network", "_state"},
    "_container": MIDDLE
    | {"_join", "_files", "_events", "_hooks"}
    | {"_detached", "_logs", "_network", "_state"},
    "_exec": MIDDLE | {"_container", "_join", "_stranger"},
    "_signals": MIDDLE | {"_container"},
    "_oneshot": MIDDLE | {"_container", "_network"},
    "_network": DOOR | {"_state"},
    "_state": WORDS,
    "_doctor": MIDDLE | {"_container", "_oneshot"},
    "_top": WORDS | {"_cgroup", "_hierarchy"},
    "_loop": DOOR | {"_streams"},
    "aio": MIDDLE | {"_container", "_events", "_join", "_loop", "_network", "_oneshot"},
    "_terminal": set[str](),
    "_manage": WORDS | {"_container", "_logs", "_prune", "_state"},
    "_cli": MIDDLE
    | {"_top", "_terminal"}
    | {"_container", "_oneshot", "_doctor", "_exec", "_manage", "_network", "_state"},
    "__main__": {"_cli"},
    "__init__": WORDS
    | {"_cgroup", "_container", "_doctor", "_oneshot", "_process"}
    | {"_events", "_exec", "_hooks", "_network", "_signals", "_state"}
    | {"_logs", "_prune"},
}

HEAVY = {"subprocess", "json", "asyncio", "pyroute2", "logging", "argparse"}


def imports_of(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere, but for annotations alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports of the package are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def arrows_of(path: Path) -> set[str]:
    names = (name.split(".") for name in imports_of(path))
    used = {name[1] for name in names if name[0] == "container" and len(name) > 1}
    # container.run, container.Config and the like are names of the package, not modules.
    return used & ({module_of(each) for each in FILES} | {"_native"}) - {module_of(path)}


def module_of(path: Path) -> str:
    """A package within the package is one module to the others."""
    return path.stem if path.parent == PACKAGE else path.parent.name


FILES = sorted(PACKAGE.glob("**/*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    assert arrows_of(path) <= ARROWS[module_of(path)]


def test_only_the_launcher_module_imports_the_extension() -> None:
    users = {module_of(path) for path in FILES if "_native" in arrows_of(path)}
    assert users == {"_launcher"}


def loaded_by(statements: str) -> set[str]:
    """What a fresh interpreter has loaded after these, that it had not before."""
    paths = [str(PACKAGE.parent), *map(sysconfig.get_path, ("purelib", "platlib"))]
    script = (
        f"import sys; sys.path[:0] = {paths!r}; before = set(sys.modules)\n{statements}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy_and_not_the_extension() -> None:
    loaded = loaded_by("import container")
    assert [name for name in loaded if name.startswith("container.")] == []
    loaded = loaded_by("import container; container.Config")
    assert "container._config" in loaded
    assert not loaded & (HEAVY | {"container._native", "container._launcher", "_cffi_backend"})


def test_the_first_use_of_run_loads_nothing_heavy() -> None:
    loaded = loaded_by("import container; container.run")
    assert "container._native" in loaded
    assert not loaded & HEAVY


def test_pyroute2_is_loaded_for_a_network_only() -> None:
    said = "import container; container.Config(network=container.NetworkConfig()); container.run"
    assert "pyroute2" not in loaded_by(said)
    pure = "import container; container.allocate_ip('10.0.0.0/8'); container.lease_ip"
    assert "pyroute2" not in loaded_by(f"{pure}; container.write_hosts")
    assert "pyroute2" in loaded_by("import container; container.ensure_bridge")


@pytest.mark.parametrize("name", container.__all__)
def test_a_public_name_is_there_and_says_that_it_is_of_the_package(name: str) -> None:
    value = getattr(container, name)
    if isinstance(value, type) or callable(value):
        assert value.__module__ == "container"
    else:
        assert isinstance(value, int | str)
        assert not isinstance(value, Enum)


def test_public_names_are_sorted_constants_then_classes_then_the_rest() -> None:
    def key(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert container.__all__ == sorted(container.__all__, key=key)
    assert len(set(container.__all__)) == len(container.__all__)
    assert set(container.__all__) <= set(dir(container))


def test_nothing_public_is_missing_from_all() -> None:
    loaded_by_tests = {*map(module_of, FILES), "_native"}
    public = {name for name in vars(container) if not name.startswith("_")} - loaded_by_tests
    assert public - set(container.__all__) <= {"Any", "TYPE_CHECKING"}


def test_off_linux_the_first_use_says_that_containers_need_linux(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delitem(vars(container), "run", raising=False)
    with pytest.raises(container.UnsupportedError, match="Linux"):
        container.run(["true"])
