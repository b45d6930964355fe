# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container._capabilities import (
    Capabilities,
    Capability,
    default_capabilities,
    from_mask,
    parse_capabilities,
    parse_capability,
    to_mask,
)
from container._errors import ConfigError

CAPS = st.frozensets(st.sampled_from(list(Capability)))

# What /proc/self/status of any Docker or podman container has as CapBnd.
DOCKER_MASK = 0x00000000A80425FB


def test_there_are_the_41_capabilities_of_the_kernel_in_its_order() -> None:
    assert [cap.number for cap in Capability] == list(range(41))
    # Points along include/uapi/linux/capability.h.
    for name, number in {
        "CAP_CHOWN": 0,
        "CAP_SETUID": 7,
        "CAP_NET_RAW": 13,
        "CAP_SYS_ADMIN": 21,
        "CAP_MKNOD": 27,
        "CAP_SETFCAP": 31,
        "CAP_AUDIT_READ": 37,
        "CAP_BPF": 39,
        "CAP_CHECKPOINT_RESTORE": 40,
    }.items():
        assert Capability(name).number == number
        assert Capability(name).value == name


def test_the_default_set_is_the_mask_that_docker_shows() -> None:
    assert to_mask(default_capabilities()) == DOCKER_MASK
    assert len(default_capabilities()) == 14
    assert isinstance(default_capabilities(), frozenset)


@pytest.mark.parametrize(
    "name", ["CAP_NET_ADMIN", "NET_ADMIN", "cap_net_admin", "net_admin", "Cap_Net_Admin"]
)
def test_names_are_taken_with_or_without_prefix_in_any_case(name: str) -> None:
    assert parse_capability(name) is Capability.CAP_NET_ADMIN
    assert Capability(name) is Capability.CAP_NET_ADMIN
    assert Capability.__members__["NET_ADMIN"] is Capability.CAP_NET_ADMIN
    assert Capabilities(bounding=[name]).bounding == {Capability.CAP_NET_ADMIN}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "CAP_",
        "CAP_CAP_CHOWN",
        "ALL",
        " CHOWN",
        "CHOWN\n",
        "CAP-CHOWN",
        "\u017fetuid",
        0,
        None,
        b"CHOWN",
    ],
)
def test_an_unknown_name_is_a_config_error(name: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_capability(name, "effective")
    assert caught.value.field == "effective"
    with pytest.raises(ConfigError):
        Capability(name)


@pytest.mark.parametrize("names", ["CHOWN", b"CHOWN", None, 5, ["CHOWN", 7]])
def test_a_set_is_made_of_names_and_not_of_letters(names: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_capabilities(names, "bounding")
    assert caught.value.field == "bounding"


def test_the_error_of_a_set_names_the_set() -> None:
    for field in dataclasses.fields(Capabilities):
        with pytest.raises(ConfigError) as caught:
            Capabilities(**{field.name: ["NOPE"]})
        assert caught.value.field == field.name
        assert "'NOPE'" in str(caught.value)


@given(CAPS)
def test_masks_and_sets_are_the_same_thing(caps: frozenset[Capability]) -> None:
    mask = to_mask(caps)
    assert mask == sum(2**cap.number for cap in caps)
    assert from_mask(mask) == caps


@pytest.mark.parametrize("mask", [-1, 1 << 41, 1 << 63, 1 << 64])
def test_a_mask_with_unknown_bits_is_refused(mask: int) -> None:
    with pytest.raises(ConfigError):
        from_mask(mask)


def test_the_presets_leave_inheritable_and_ambient_empty() -> None:
    for caps, size in (
        (Capabilities.default(), 14),
        (Capabilities.all(), 41),
        (Capabilities.none(), 0),
    ):
        assert len(caps.bounding) == size
        assert caps.bounding == caps.effective == caps.permitted
        assert caps.inheritable == caps.ambient == frozenset()
    assert Capabilities.default().bounding == default_capabilities()
    assert Capabilities() == Capabilities.none()


@pytest.mark.parametrize(
    ("sets", "field"),
    [
        ({"bounding": ["CHOWN"], "effective": ["CHOWN"]}, "effective"),
        ({"permitted": ["CHOWN"]}, "permitted"),
        ({"inheritable": ["CHOWN"]}, "inheritable"),
        ({"bounding": ["CHOWN"], "inheritable": ["CHOWN"], "ambient": ["CHOWN"]}, "ambient"),
        ({"bounding": ["CHOWN"], "permitted": ["CHOWN"], "ambient": ["CHOWN"]}, "ambient"),
    ],
)
def test_sets_that_the_kernel_would_refuse_or_drop_are_refused(
    sets: dict[str, list[str]], field: str
) -> None:
    with pytest.raises(ConfigError, match="CAP_CHOWN") as caught:
        Capabilities(**sets)
    assert caught.value.field == field


def test_all_five_sets_may_hold_a_capability() -> None:
    caps = Capabilities(*[["chown"]] * 5)
    assert caps.ambient == {Capability.CAP_CHOWN}


@given(CAPS, CAPS)
def test_equal_sets_are_equal_hash_alike_and_survive_pickle_and_copy(
    bounding: frozenset[Capability], permitted: frozenset[Capability]
) -> None:
    permitted &= bounding
    caps = Capabilities(bounding, (), permitted)
    same = Capabilities(sorted(bounding), [], [cap.lower() for cap in permitted])
    assert caps == same and hash(caps) == hash(same)
    for clone in (pickle.loads(pickle.dumps(caps)), copy.copy(caps), copy.deepcopy(caps)):
        assert clone == caps and hash(clone) == hash(caps)


def test_replace_checks_again() -> None:
    caps = dataclasses.replace(Capabilities.default(), effective=frozenset({Capability.CHOWN}))
    assert caps.effective == {Capability.CAP_CHOWN}
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(caps, bounding=frozenset())
    assert caught.value.field == "permitted"


def test_capabilities_cannot_be_changed() -> None:
    caps = Capabilities.default()
    with pytest.raises(dataclasses.FrozenInstanceError):
        caps.bounding = frozenset()  # type: ignore[misc]


def test_the_repr_can_be_evaluated_and_has_one_order() -> None:
    caps = Capabilities.default()
    assert eval(repr(caps), {"Capabilities": Capabilities}) == caps
    assert repr(caps) == repr(Capabilities(*[sorted(caps.bounding, reverse=True)] * 3))
