# SPDX-License-Identifier: Apache-2.0
"""Landlock: what may be asked for, and the rules that it becomes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from container import Config, ConfigError, Landlock
from container._landlock import ALL_ACCESS, READ_ACCESS, landlock_rules


def test_paths_become_rules_in_their_order() -> None:
    config = Config(landlock=Landlock(read=["/usr", "/"], write=["/tmp/"]))
    assert landlock_rules(config) == (
        *(("/usr", READ_ACCESS), ("/", READ_ACCESS), ("/tmp/", ALL_ACCESS)),
    )
    assert landlock_rules(Config()) == ()
    assert landlock_rules(Config(landlock=Landlock())) == ()


def test_links_at_the_top_of_a_host_root_are_followed_beforehand() -> None:
    links = (("bin", "usr/bin"), ("lib", "/usr/lib"))
    landlock = Landlock(read=["/bin", "//lib/x/", "/library", "/usr/bin"], write=["/bin/"])
    paths = [path for path, _ in landlock_rules(Config(landlock=landlock), links)]
    assert paths == ["/usr/bin", "/usr/lib/x/", "/library", "/usr/bin", "/usr/bin/"]
    image = Config(root="/image", landlock=landlock)
    assert [path for path, _ in landlock_rules(image, links)] == [
        *(str(path) for path in (*landlock.read, *landlock.write))
    ]


def test_reading_is_no_writing() -> None:
    # execute, read_file, read_dir of include/uapi/linux/landlock.h
    assert READ_ACCESS == 0b1101
    assert ALL_ACCESS & READ_ACCESS == READ_ACCESS


@pytest.mark.parametrize("field", ["read", "write"])
@pytest.mark.parametrize("value", [["x"], "/x", ["/a\0"], [""], [5], None, ["/x"] * 1001])
def test_paths_are_absolute(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Landlock(**{field: value})
    assert str(caught.value.field).startswith(field)


def test_it_needs_no_new_privileges() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(landlock=Landlock(), no_new_privileges=False)
    assert caught.value.field == "landlock"


def test_it_round_trips() -> None:
    config = Config(landlock=Landlock(read=["/usr"]))
    assert pickle.loads(pickle.dumps(config)) == config
