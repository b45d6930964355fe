# SPDX-License-Identifier: Apache-2.0
"""Names of scopes from OCI's cgroupsPath, and which limits are properties of a scope."""

from __future__ import annotations

import pytest

from container import ConfigError, CPUResources, IOResources, MemoryResources, Resources
from container._limits import settings_of
from container._systemd import Unit, parse_cgroups_path, properties_of

MOST = 2**64 - 1


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("machine.slice:libpod:abc", Unit("libpod-abc.scope", "machine.slice")),
        ("kubepods-pod1_a.slice:cri:0f", Unit("cri-0f.scope", "kubepods-pod1_a.slice")),
        (":runc:x", Unit("runc-x.scope", "system.slice")),
        ("a.slice::x", Unit("x.scope", "a.slice")),
        ("-:p:x", Unit("p-x.scope", "-.slice")),
        ("", Unit("container-id1.scope", "system.slice")),
    ],
)
def test_a_cgroups_path_names_slice_and_scope(
    text: str, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert parse_cgroups_path(text, "id1") == unit


def test_without_root_the_slice_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert parse_cgroups_path(":p:x", "id1") == Unit("p-x.scope", "user.slice")


@pytest.mark.parametrize(
    "text",
    [
        *("/a/b", "a.slice:b", "a.slice:b:c:d", "a:b:c", "a.slice:b:", "a.slice:b:c.slice"),
        *("../x.slice:b:c", "a/b.slice:b:c", "a--b.slice:b:c", "-a.slice:b:c", ".slice:b:c"),
        *("a.slice:../b:c", "a.slice:b:c/d", "a.slice:b:c\n", "a.slice:b:\x00", "a.slice:b:é"),
        f"a.slice:b:{'x' * 250}",
    ],
)
def test_a_cgroups_path_leads_nowhere_else(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cgroups_path(text, "id1")
    assert caught.value.field == "linux.cgroupsPath"


def test_what_is_shared_among_neighbours_is_a_property_and_what_only_limits_is_not() -> None:
    resources = Resources(
        MemoryResources(max="64M", high="1M", low="5", min=-1),
        CPUResources(weight=7, quota=5000),
        io=IOResources(weight=50, max={"8:0": {"rbps": 1}}),
    )
    assert dict(properties_of(settings_of(resources))) == {
        "CPUWeight": ("t", 7),
        "MemoryMin": ("t", MOST),
        "MemoryLow": ("t", 5),
        "IOWeight": ("t", 50),
    }


def test_the_last_word_on_a_property_is_that_of_the_raw_files() -> None:
    raw = {"cpu.weight": "9", "io.weight": "8:0 5", "memory.low": " 3 "}
    resources = Resources(cpu=CPUResources(weight=7), unified=raw)
    found = dict(properties_of(settings_of(resources)))
    assert found == {"CPUWeight": ("t", 9), "MemoryLow": ("t", 3)}
    idle = Resources(cpu=CPUResources(idle=True))
    assert dict(properties_of(settings_of(idle))) == {"CPUWeight": ("t", 0)}
    assert properties_of(settings_of(Resources(cpu=CPUResources(idle=False)))) == ()
