# SPDX-License-Identifier: Apache-2.0
"""hosts and resolv.conf, and that nothing outside of a root is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container import ConfigError, NetworkError, write_hosts, write_resolv_conf
from container._network._files import host_nameservers, resolv_conf_text


def test_hosts_has_localhost_and_the_name(tmp_path: Path) -> None:
    write_hosts(tmp_path, "web", "10.88.0.2/16")
    lines = (tmp_path / "etc/hosts").read_text().splitlines()
    assert lines[0] == "127.0.0.1 localhost"
    assert lines[-1] == "10.88.0.2 web"
    assert (tmp_path / "etc/hosts").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path / "etc") == ["hosts"]


def test_resolv_conf_has_the_nameservers(tmp_path: Path) -> None:
    write_resolv_conf(tmp_path, ["192.0.2.1", "2001:db8::1"])
    text = (tmp_path / "etc/resolv.conf").read_text()
    assert text == "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"


@pytest.mark.parametrize("name", ["hosts", "resolv.conf"])
@pytest.mark.parametrize("kind", ["absolute", "relative", "dangling", "etc", "etc_absolute"])
def test_no_link_leads_out_of_the_root(tmp_path: Path, name: str, kind: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    decoy = outside / name
    decoy.write_text("decoy")
    if kind == "etc":
        (root / "etc").symlink_to("../outside")
        (root / "outside").mkdir()
    elif kind == "etc_absolute":
        (root / "etc").symlink_to(outside)
    else:
        (root / "etc").mkdir()
        targets = {"absolute": str(decoy), "relative": f"../../outside/{name}"}
        (root / "etc" / name).symlink_to(targets.get(kind, "/nowhere"))

    def write() -> None:
        if name == "hosts":
            write_hosts(root, "web", "10.0.0.2")
        else:
            write_resolv_conf(root, ["10.0.0.1"])

    if kind == "etc_absolute":  # leads to a place in the root that is not there
        with pytest.raises(NetworkError, match="/etc/"):
            write()
    else:
        write()
        written = root / ("outside" if kind == "etc" else "etc") / name
        assert not written.is_symlink()
        assert "10.0.0." in written.read_text()
    assert decoy.read_text() == "decoy"
    assert os.listdir(outside) == [name]


def test_what_would_be_another_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hostname"):
        write_hosts(tmp_path, "web\n10.0.0.9 bank", "10.0.0.2")
    with pytest.raises(ConfigError, match="ip_address"):
        write_hosts(tmp_path, "web", "10.0.0.2 bank")
    with pytest.raises(ConfigError, match=r"dns\[0\]"):
        write_resolv_conf(tmp_path, ["10.0.0.2\noptions x"])
    with pytest.raises(ConfigError, match="dns"):
        write_resolv_conf(tmp_path, "10.0.0.2")
    assert not os.listdir(tmp_path)


def test_a_root_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NetworkError, match="nowhere"):
        write_hosts("/nowhere/at/all", "web", "10.0.0.2")


def test_nameservers_at_the_hosts_loopback_are_left_out(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\n")
    real.write_text("# nameserver 10.0.0.9\nsearch x\nnameserver 192.0.2.5\nnameserver\n")
    assert host_nameservers([str(real)]) == ["192.0.2.5"]
    assert host_nameservers([str(stub), str(real)]) == ["192.0.2.5"]
    assert host_nameservers([str(stub)]) == []
    assert host_nameservers([str(tmp_path / "absent")]) == []


def test_search_and_options_are_lines_of_their_own() -> None:
    text = resolv_conf_text(["192.0.2.1"], ["a.example", "b.example"], ["ndots:2", "edns0"])
    expected = "nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:2 edns0\n"
    assert text == expected
