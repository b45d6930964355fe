# SPDX-License-Identifier: Apache-2.0
"""Users and groups in the files of an image, which may be anybody's work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import ConfigError
from container._users import Account, find_account

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1001:Alice:/home/alice:/bin/sh
homeless:x:1002:1002:::
relative:x:1003:1003::home/relative:
twice:x:1004:1004::/first:
twice:x:0:0::/second:
"""
GROUP = """\
root:x:0:root
users:x:1001:
wheel:x:10:alice,bob
audio:x:29:bob,alice
almost:x:30:alicex,xalice
"""
EVIL_PASSWD = """\
minus:x:-1:1::/:
past:x:4294967296:1::/:
last:x:4294967295:1::/:
hex:x:0x0:1::/:
octal:x:00:1::/:
blank:x: 0:1::/:
none:x::1::/:
unicode:x:\u0660:1::/:
group:x:1:-1::/:
short:x:5:5
long:x:5:5::/:/bin/sh:more
toor:x:0:1::/:
carriage:x:5\r:5::/:
"""
EVIL_GROUP = "minus:x:-1:\npast:x:4294967296:\nzero:x:0:\nshort:x:5\nodd:x:0x5:alice\n"


def account(user: int | str, passwd: str | None = PASSWD, group: str | None = GROUP) -> Account:
    return find_account(user, {"/etc/passwd": passwd, "/etc/group": group}.__getitem__)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("root", Account(0, 0, (0,), "/root")),
        ("alice", Account(1000, 1001, (10, 29), "/home/alice")),
        ("alice:wheel", Account(1000, 10, (), "/home/alice")),
        ("alice:7", Account(1000, 7, (), "/home/alice")),
        ("1000:wheel", Account(1000, 10, (), "/home/alice")),
        ("1000:7", Account(1000, 7, (), "/home/alice")),
        (1000, Account(1000, 0, (), "/home/alice")),
        (7, Account(7, 0, (), None)),
        ("homeless", Account(1002, 1002, (), None)),
        ("relative", Account(1003, 1003, (), None)),
        ("twice", Account(1004, 1004, (), "/first")),
    ],
)
def test_who_a_user_is(user: int | str, expected: Account) -> None:
    assert account(user) == expected


@pytest.mark.parametrize("line", EVIL_PASSWD.splitlines())
def test_a_name_that_leads_to_no_plain_id_or_to_root_is_refused(line: str) -> None:
    name = line.partition(":")[0]
    with pytest.raises(ConfigError) as caught:
        account(name, EVIL_PASSWD)
    assert caught.value.field == "user"
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["minus", "past", "zero", "short", "absent"])
def test_a_group_that_leads_to_no_plain_id_or_to_group_0_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        account(f"7:{name}", PASSWD, EVIL_GROUP)
    assert caught.value.field == "user"


def test_a_group_with_this_member_and_an_odd_id_is_refused_not_left_out() -> None:
    with pytest.raises(ConfigError, match="odd"):
        account("alice", PASSWD, EVIL_GROUP)


@pytest.mark.parametrize("user", ["nobody", "nobody:users", "0:nogroup", "Alice", "alic", "alice_"])
def test_an_unknown_name_is_refused(user: str) -> None:
    with pytest.raises(ConfigError, match=r"no (user|group) '"):
        account(user)


def test_a_name_in_an_image_without_files_is_refused_and_a_number_is_not() -> None:
    for user in ("alice", "alice:7", "7:users"):
        with pytest.raises(ConfigError, match="write a number"):
            account(user, None, None)
    assert account("7:8", None, None) == Account(7, 8, (), None)
    assert account("alice", PASSWD, None).groups == ()


def test_a_number_needs_no_file_that_can_be_read() -> None:
    def read(path: str) -> str:
        raise ConfigError(f"{path} is no regular file", field="user")

    assert find_account("7:8", read) == Account(7, 8, (), None)
    with pytest.raises(ConfigError):
        find_account("alice", read)


def test_a_number_is_never_looked_up_as_a_name() -> None:
    passwd = "1000:x:0:0::/evil:\n1001:x:0:0::/evil:\n"
    assert account("1000", passwd) == Account(1000, 0, (), None)
    assert account("7:1001", passwd, "1001:x:0:\n") == Account(7, 1001, (), None)


def test_more_groups_than_the_kernel_takes_are_refused() -> None:
    group = "".join(f"g:x:{number}:alice\n" for number in range(65536))
    with pytest.raises(ConfigError, match="more groups"):
        account("alice", PASSWD, group)


@given(st.text(alphabet="a:0123456789\n,x-+ \r\0", max_size=60))
def test_whatever_the_files_hold_a_name_becomes_a_plain_id_that_is_not_root_or_an_error(
    text: str,
) -> None:
    for user in ("a", "7:a"):
        try:
            found = account(user, text, text)
        except ConfigError:
            continue
        assert 0 < found.uid <= 2**32 - 2
        assert 0 <= found.gid <= 2**32 - 2
        assert all(0 <= group <= 2**32 - 2 for group in found.groups)
