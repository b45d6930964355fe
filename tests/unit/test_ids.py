# SPDX-License-Identifier: Apache-2.0
"""Which host ids may be leased, from the texts of the files that say so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import IDMapping
from container._ids import (
    RANGE_SIZE,
    find_slots,
    map_program,
    own_id_mapping,
    parse_id_map,
    parse_subids,
    range_mapping,
    stack_ranges,
)

EVERYTHING = "         0          0 4294967295\n"
SYSTEMD = range(8, 28672)
"""524288 to 1879048191, as slots."""


def slots_of(subuid: str, subgid: str | None = None, *maps: str) -> range:
    """The slots for these texts; subgid like subuid and all ids mapped, unless given."""
    return find_slots((subuid, subuid if subgid is None else subgid), maps or (EVERYTHING,) * 2)


def test_without_an_entry_the_range_is_that_of_systemd_for_containers() -> None:
    assert slots_of("") == SYSTEMD


@pytest.mark.parametrize("owner", ["root", "0"])
def test_the_range_is_that_of_root_by_name_or_number(owner: str) -> None:
    assert slots_of(f"{owner}:1048576:131072\n") == range(16, 18)


def test_only_whole_ranges_of_an_entry_count() -> None:
    assert slots_of("root:1048575:131074\n") == range(16, 18)
    assert slots_of("root:1048577:131072\n") == range(17, 18)


def test_ids_must_be_given_as_uids_and_as_gids() -> None:
    assert slots_of("root:1048576:262144\n", "root:1114112:262144\n") == range(17, 20)


def test_an_entry_in_one_file_alone_is_as_none() -> None:
    assert slots_of("root:1048576:131072\n", "") == SYSTEMD


def test_several_entries_add_up_and_the_longest_run_wins() -> None:
    text = "root:1048576:65536\nroot:2097152:65536\nroot:2162688:65536\n"
    assert slots_of(text) == range(32, 34)


def test_what_other_users_have_is_left_out_of_systemds_range() -> None:
    # 28672 slots up to the one that bob has a single id of.
    assert slots_of("alice:100000:65536\n", f"bob:{1000 << 16}:1\n") == range(1001, 28672)


def test_a_range_that_another_user_has_a_part_of_is_left_out_whole() -> None:
    text = f"alice:{(20000 << 16) + 65535}:2\n"
    assert slots_of(text) == range(8, 20000)


def test_users_that_overlap_are_left_out_once() -> None:
    text = f"alice:{8 << 16}:{28000 << 16}\nbob:{4000 << 16}:{24700 << 16}\n"
    assert slots_of(text) == range(0)


def test_the_ids_of_the_host_itself_are_never_leased() -> None:
    # Range 0 has host root in it.
    assert slots_of("root:0:131072\n") == range(1, 2)


@pytest.mark.parametrize(
    "line",
    ["", "# root:1048576:131072", "root:1048576", "root:x:131072", "root:-1:131072", "root:1:2:3"],
)
def test_a_line_that_is_no_entry_is_left_out(line: str) -> None:
    assert list(parse_subids(line)) == []
    assert slots_of(f"{line}\n") == SYSTEMD


def test_in_a_user_namespace_only_ids_that_exist_there_count() -> None:
    mapped = "0 3000000000 1310720\n"
    assert slots_of("", None, mapped, mapped) == range(8, 20)


def test_an_id_must_exist_both_as_uid_and_as_gid() -> None:
    assert slots_of("", None, "0 0 1310720\n", "0 0 1048576\n") == range(8, 16)


def test_in_the_namespace_of_an_ordinary_user_no_range_is_free() -> None:
    assert not slots_of("", None, "0 1000 1\n1 100000 65536\n", "0 1000 1\n1 100000 65536\n")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["root", "alice", "bob"]),
            st.integers(0, 2**32 - 2),
            st.integers(0, 2**28),
        ),
        max_size=6,
    )
)
def test_no_range_is_both_leased_and_without_right(entries: list[tuple[str, int, int]]) -> None:
    text = "".join(f"{owner}:{first}:{count}\n" for owner, first, count in entries)
    slots = slots_of(text)
    given_to_root = [(first, first + count) for owner, first, count in entries if owner == "root"]
    for slot in {*slots[:1], *slots[-1:]}:
        first, end = slot * RANGE_SIZE, (slot + 1) * RANGE_SIZE
        touched = [
            owner
            for owner, start, count in entries
            if owner != "root" and start < end and first < start + count
        ]
        inside = any(low <= first for low, _ in given_to_root) and any(
            end <= high for _, high in given_to_root
        )
        assert inside or (slot in SYSTEMD and not touched)


def test_a_range_is_mapped_from_the_containers_root_on() -> None:
    assert range_mapping(16) == (IDMapping(0, 1048576, 65536),)
    assert own_id_mapping(1000) == (IDMapping(0, 1000, 1),)


def test_a_map_of_the_kernel_is_read_line_by_line() -> None:
    text = "         0       1000          1\n         1     100000      65536\n"
    assert parse_id_map(text) == [IDMapping(0, 1000, 1), IDMapping(1, 100000, 65536)]


# An ordinary user's ranges ------------------------------------------------------------------------


def test_own_ranges_are_stacked_on_the_own_id_in_the_order_of_the_file() -> None:
    text = "me:100000:10\nother:200000:5\n1000:300000:20\nme:nonsense\n# me:1:1\n"
    assert stack_ranges(text, {"me", "1000"}, 1000) == (
        IDMapping(0, 1000, 1),
        IDMapping(1, 100000, 10),
        IDMapping(11, 300000, 20),
    )
    assert stack_ranges(text, {"nobody"}, 1000) == own_id_mapping(1000)


@given(
    st.lists(
        st.tuples(st.sampled_from(["me", "other"]), st.integers(0, 2**33), st.integers(0, 2**33)),
        max_size=500,
    )
)
def test_stacked_ranges_are_maps_that_the_kernel_takes(entries: list[tuple[str, int, int]]) -> None:
    text = "".join(f"{owner}:{first}:{count}\n" for owner, first, count in entries)
    maps = stack_ranges(text, {"me"}, 1000)
    assert maps[0] == IDMapping(0, 1000, 1)
    assert len(maps) <= 340
    for index, one in enumerate(maps):
        for other in maps[:index]:
            assert other.container_id + other.size <= one.container_id
            assert one.host_id + one.size <= other.host_id or (
                other.host_id + other.size <= one.host_id
            )
        mine = ((first, count) for owner, first, count in entries if owner == "me")
        assert index == 0 or any(
            first <= one.host_id and one.host_id + one.size <= first + count
            for first, count in mine
        )


def test_a_map_is_written_out_for_the_program_with_room_for_the_pid() -> None:
    maps = [IDMapping(0, 1000, 1), IDMapping(1, 100000, 65536)]
    numbers = ("0", "1000", "1", "1", "100000", "65536")
    assert map_program("/bin/newuidmap", maps) == ("/bin/newuidmap", "", *numbers)
