# SPDX-License-Identifier: Apache-2.0
"""What may be asked for of paths, sysctls and /proc, and what is refused with its field."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from container import Config, ConfigError, Namespaces
from container._config import sysctl_path
from container._walls import MASKED_PATHS, READONLY_PATHS, masked_paths, proc_writes, readonly_paths


def field_of(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Config(**options)
    return str(caught.value.field)


def test_the_default_paths_are_those_of_docker() -> None:
    assert masked_paths(Config()) == MASKED_PATHS
    assert readonly_paths(Config()) == READONLY_PATHS
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(MASKED_PATHS)
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(READONLY_PATHS)


def test_none_are_default_only_where_nothing_is_nested() -> None:
    nested = Config(nested=True, readonly_paths=["/x"])
    assert (masked_paths(nested), readonly_paths(nested)) == ((), ("/x",))
    assert masked_paths(Config(masked_paths=())) == ()


@pytest.mark.parametrize("name", ["masked_paths", "readonly_paths"])
@pytest.mark.parametrize("path", ["relative", "/", "/a/../b", "", "/a\0b", 5])
def test_a_path_to_cover_is_absolute_and_not_the_root(name: str, path: Any) -> None:
    assert field_of(**{name: ["/ok", path]}) == f"{name}[1]"
    assert field_of(**{name: "/proc"}) == name


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net ipv4 ip_forward"),
        ("net.ipv4.conf.eth0/1.forwarding", "net ipv4 conf eth0.1 forwarding"),
        ("net/ipv4/conf/eth0.1/forwarding", "net ipv4 conf eth0.1 forwarding"),
        ("kernel.sem", "kernel sem"),
    ],
)
def test_a_sysctl_is_spelled_as_sysctl_8_does(name: str, path: str) -> None:
    assert sysctl_path(name) == tuple(path.split(" "))


@pytest.mark.parametrize(
    "name",
    [
        # the whole machine's
        *("kernel.core_pattern", "kernel.hostname", "kernel.shm", "kernel.semaphore"),
        *("vm.swappiness", "user.max_user_namespaces", "fs.file-max", "kernel.sem.x", "dev.tty"),
        *("net", "net.core"),
        # no name, or one that leads elsewhere
        *("", ".", "/", "net..x", "net/../kernel/core_pattern", "net.ipv4./x", "net.ipv4."),
        *("/net/ipv4/x", "net/./x", "net.ipv4.a b", "net.ipv4.ä", "net/ipv4/..", "net//ipv4//x"),
    ],
)
def test_a_sysctl_that_is_not_the_containers_own_is_refused(name: str) -> None:
    assert field_of(sysctl={name: "1"}).startswith("sysctl[")


@pytest.mark.parametrize("value", ["", 1, None, "a\0b"])
def test_the_value_of_a_sysctl_is_some_text(value: Any) -> None:
    assert field_of(sysctl={"net.ipv4.ip_forward": value}) == "sysctl['net.ipv4.ip_forward']"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("net.ipv4.ip_forward", "net"), ("kernel.msgmax", "ipc"), ("fs.mqueue.msg_max", "ipc")],
)
def test_a_sysctl_needs_the_namespace_that_it_belongs_to(name: str, kind: str) -> None:
    assert Config(sysctl={name: "1"}).sysctl[name] == "1"
    options = {"sysctl": {name: "1"}, "namespaces": Namespaces(**{kind: False})}
    assert field_of(**options) == f"sysctl[{name!r}]"


@pytest.mark.parametrize("options", ["hidepid=2", "subset=pid", "hidepid=invisible,subset=pid"])
def test_options_of_proc(options: str) -> None:
    assert Config(proc_options=options).proc_options == options


@pytest.mark.parametrize("options", ["", "hidepid", "gid=0", "hidepid=3", "subset=x", "a,,b", 2])
def test_other_options_of_proc_are_refused(options: Any) -> None:
    assert field_of(proc_options=options) == "proc_options"


def test_a_domain_name_needs_a_uts_namespace() -> None:
    assert Config(domainname="example.org").domainname == "example.org"
    assert field_of(domainname="a b") == "domainname"
    shared = Namespaces(uts=False)
    assert field_of(domainname="x", namespaces=shared) == "domainname"


@pytest.mark.parametrize("field", ["apparmor_profile", "selinux_label"])
@pytest.mark.parametrize("value", ["", "a\nb", "a\0b", 5])
def test_a_label_is_some_text(field: str, value: Any) -> None:
    assert field_of(**{field: value}) == field
    options: dict[str, Any] = {field: "a:b_c-d//e s0"}
    assert getattr(Config(**options), field) == options[field]


def test_labels_are_for_the_next_execve_of_the_thread_itself() -> None:
    config = Config(apparmor_profile="a", selinux_label="u:r:t:s0", nested=True)
    assert [(each.path, each.value) for each in proc_writes(config, locked=False)] == [
        ("thread-self/attr/apparmor/exec", "exec a"),
        ("thread-self/attr/exec", "u:r:t:s0"),
    ]


def test_a_config_with_walls_round_trips() -> None:
    config = Config(
        nested=True,
        masked_paths=["/a"],
        readonly_paths=(),
        sysctl={"kernel.sem": "1 2 3 4"},
        proc_options="subset=pid",
        domainname="x",
    )
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))
