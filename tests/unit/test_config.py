# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import fcntl
import io
import itertools
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import container
from container import _config
from container._capabilities import Capabilities
from container._config import (
    DEVNULL,
    PIPE,
    STDOUT,
    Config,
    ContainerState,
    HostRoot,
    IDMapping,
    Join,
    Mount,
    MountFlags,
    Namespaces,
    Overlay,
    Process,
    Result,
    Rlimit,
    SignalConfig,
    State,
    Usage,
    parse_duration,
    parse_size,
    parse_user,
    validate_id,
)
from container._errors import CommandError, ConfigError, UnsupportedError

SECRET = "hunter2-secret"
NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, UTC)
CLASSES = [
    *(Namespaces, MountFlags, Mount, IDMapping, HostRoot, Overlay, Config, Rlimit, Process),
    *(SignalConfig, State, ContainerState, Usage, Result),
]
FULL_CONFIG = Config(
    root=HostRoot(["/opt/tools", Mount.bind("/srv", "/data")]),
    namespaces=Namespaces(time=True),
    hostname="box",
    mounts=[Mount.bind("/a", "/b", read_only=True), Mount.tmpfs("/tmp", size="64M", mode=0o1777)],
    uid_mappings=[IDMapping(0, 100000, 65536)],
    gid_mappings=[IDMapping(0, 200000, 65536)],
    use_pivot_root=False,
    capabilities=Capabilities.none(),
    no_new_privileges=False,
    read_only_root=True,
)
FULL_PROCESS = Process(
    ["sh", "-c", "true"],
    env={"B": SECRET, "A": os.fsdecode(b"\xff")},
    cwd="/tmp",
    user="1000:1000",
    groups=[5, 6],
    umask=0o077,
    rlimits=[Rlimit("NOFILE", 64, 128), Rlimit("CORE", 0, -1)],
    stdin=DEVNULL,
    stdout=PIPE,
    stderr=STDOUT,
)
STATE = ContainerState("box", State.STOPPED, None, -9, NOW, NOW, NOW, "/bundle", {"a=b": "c"})


def config_error(make: Callable[..., object], /, *args: Any, **kwargs: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make(*args, **kwargs)
    assert type(caught.value) is ConfigError
    assert str(caught.value).isprintable()
    return caught.value


def unsupported_field(make: Callable[..., object], /, *args: Any, **kwargs: Any) -> str | None:
    with pytest.raises(UnsupportedError) as caught:
        make(*args, **kwargs)
    return caught.value.field


# Values of subprocess and of the kernel ------------------------------------------------------


def test_the_constants_are_those_of_subprocess() -> None:
    assert (PIPE, STDOUT, DEVNULL) == (subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL)


def test_importing_the_configuration_loads_nothing_heavy() -> None:
    heavy = {"subprocess", "json", "asyncio", "attr", "pyroute2"}
    code = "import sys; old = {*sys.modules}; import container._config; print({*sys.modules} - old)"
    root = str(Path(_config.__file__).parent.parent)
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env={"PYTHONPATH": root}, capture_output=True, check=True)
    loaded = eval(run.stdout)
    assert "container._config" in loaded
    assert not heavy & loaded


def test_the_clone_flag_of_each_namespace_is_what_the_kernel_calls_its_type() -> None:
    ns_get_nstype = 0xB703  # ioctl_ns(2)
    none = dict.fromkeys((field.name for field in dataclasses.fields(Namespaces)), False)
    for name in none:
        with open(f"/proc/self/ns/{name}", "rb") as file:
            kind = fcntl.ioctl(file, ns_get_nstype)
        assert Namespaces(**none | {name: True}).clone_flags() == kind
    assert Namespaces(**none).clone_flags() == 0


def test_by_default_all_namespaces_but_time_are_new() -> None:
    assert [f.name for f in dataclasses.fields(Namespaces) if f.default is False] == ["time"]
    assert Namespaces().clone_flags() == 0x7E020000


def test_the_numbers_of_resource_limits_are_those_of_the_kernel() -> None:
    names = [
        name for name in vars(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
    ]
    assert len(names) >= 15
    for name in names:
        number = getattr(resource, name)
        limits = [Rlimit(kind, 1, 2) for kind in (name, name[7:], name[7:].lower(), number)]
        assert {(limit.type, limit.number) for limit in limits} == {(name, number)}


def test_mount_flags_are_single_bits_without_holes() -> None:
    assert [flag.value for flag in MountFlags] == [1 << n for n in range(9)]


# Defaults and immutability -------------------------------------------------------------------


def test_every_default_of_a_config_is_the_safe_value() -> None:
    config = Config()
    assert config == Config.default()
    assert config.root is None and config.mounts == ()
    assert config.namespaces == Namespaces()
    assert config.hostname == "container"
    assert config.use_pivot_root is True and config.no_new_privileges is True
    assert config.capabilities == Capabilities.default()
    assert config.uid_mappings == config.gid_mappings == ()


def test_the_defaults_of_a_process() -> None:
    process = Process(["true"])
    assert (process.env, process.cwd, process.user) == (None, None, None)
    assert (process.groups, process.umask, process.rlimits) == ((), 0o022, ())
    assert (process.stdin, process.stdout, process.stderr) == (None, None, None)


def test_the_defaults_of_a_signal_config() -> None:
    signals = SignalConfig()
    assert signals.stop_signal is signal.SIGTERM and signals.stop_timeout == 10.0
    assert signals.forward_signals == (
        *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    )
    assert all(isinstance(number, signal.Signals) for number in signals.forward_signals)


@pytest.mark.parametrize(
    "value",
    [FULL_CONFIG, Config(), FULL_PROCESS, SignalConfig(), STATE, Usage(1, 2, 3), Result(["x"], -9)],
    ids=lambda value: type(value).__name__,
)
def test_objects_survive_pickle_copy_and_replace_and_hash_alike(value: Any) -> None:
    pickled = [pickle.loads(pickle.dumps(value, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    copies = [copy.copy(value), copy.deepcopy(value), dataclasses.replace(value)]
    for clone in (*pickled, *copies):
        assert type(clone) is type(value)
        assert clone == value and hash(clone) == hash(value)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_public_class_names_the_package_and_is_found_there(cls: type) -> None:
    assert cls.__module__ == "container"
    assert getattr(container, cls.__name__) is cls


@pytest.mark.parametrize("cls", [c for c in CLASSES if dataclasses.is_dataclass(c)])
def test_the_type_hints_of_a_class_are_plain_types(cls: type) -> None:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(cls)]
    assert fields and all(typing.get_origin(hints[name]) is not typing.Annotated for name in fields)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().hostname = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        object.__setattr__(Config(), "hostnam", "x")


def test_replace_checks_again() -> None:
    assert dataclasses.replace(FULL_CONFIG, hostname="other").mounts == FULL_CONFIG.mounts
    assert config_error(dataclasses.replace, Config(), hostname="").field == "hostname"


def test_lists_become_tuples_and_paths_become_str() -> None:
    config = Config(Path("/srv"), mounts=[Mount.bind(Path("/a"), PurePosixPath("/b"))])
    assert config.root == "/srv" and type(config.root) is str
    assert config.mounts == (Mount.bind("/a", "/b"),) and type(config.mounts) is tuple
    process = Process([Path("/bin/true"), "x"], cwd=Path("/tmp"), groups=[1])
    assert process.args == ("/bin/true", "x") and process.cwd == "/tmp" and process.groups == (1,)


def test_a_later_change_to_what_was_given_does_not_reach_in() -> None:
    args, env, mounts = ["true"], {"A": "1"}, [Mount.tmpfs("/a")]
    process, config = Process(args, env=env), Config(mounts=mounts)
    args.append("x")
    env["B"] = "2"
    mounts.clear()
    assert process.args == ("true",) and process.env == {"A": "1"} and len(config.mounts) == 1


def test_the_environment_is_an_immutable_hashable_mapping() -> None:
    process = Process(["true"], env=MappingProxyType({"B": "1", "A": "2"}))
    assert process.env is not None
    assert list(process.env) == ["B", "A"] and process.env["A"] == "2" and len(process.env) == 2
    with pytest.raises(TypeError):
        process.env["C"] = "3"  # type: ignore[index]
    other = Process(["true"], env={"A": "2", "B": "1"})
    assert process == other and hash(process) == hash(other)
    assert process != Process(["true"], env={"A": "2"})


def test_bytes_that_are_not_utf8_pass_through_paths_and_arguments() -> None:
    odd = os.fsdecode(b"/\xff\xfe")
    mount = Mount.bind(odd, odd)
    assert os.fsencode(mount.source or "") == os.fsencode(mount.target) == b"/\xff\xfe"
    process = Process([odd], env={"A": odd}, cwd=odd)
    assert pickle.loads(pickle.dumps(process)) == process
    assert os.fsencode(process.args[0]) == b"/\xff\xfe"


# Environment values stay secret --------------------------------------------------------------


def test_no_value_of_the_environment_shows_in_a_repr() -> None:
    process = Process(["true"], env={"TOKEN": SECRET})
    for text in (repr(process), str(process), repr(process.env), f"{process.env}"):
        assert "TOKEN" in text and SECRET not in text


@pytest.mark.parametrize(
    ("env", "field"),
    [
        ({"TOKEN": f"{SECRET}\0"}, "env['TOKEN']"),
        ({"TOKEN": f"{SECRET}\ud800"}, "env['TOKEN']"),
        ({"TOKEN": SECRET.encode()}, "env['TOKEN']"),
        ({"TOKEN": None}, "env['TOKEN']"),
        ({"TOKEN": 5}, "env['TOKEN']"),
        ({f"TOKEN={SECRET}": ""}, "env['TOKEN']"),
        ({f"TOKEN\0{SECRET}": ""}, "env['TOKEN']"),
        ({f"={SECRET}": ""}, "env['']"),
        ({"": SECRET}, "env['']"),
        ({"A\ud800": SECRET}, "env['A\\ud800']"),
        ({b"TOKEN": SECRET}, "env"),
        ({5: SECRET}, "env"),
        ([f"TOKEN={SECRET}"], "env"),
        (f"TOKEN={SECRET}", "env"),
        ([("TOKEN", SECRET)], "env"),
    ],
)
def test_an_error_in_the_environment_names_the_name_and_not_the_value(env: Any, field: str) -> None:
    error = config_error(Process, ["true"], env=env)
    assert error.field == field
    assert SECRET not in str(error) and SECRET not in repr(error) + repr(error.__dict__)


# Every wrong value is a ConfigError that names the field -------------------------------------

GOOD_MOUNT = Mount.tmpfs("/a")
LONG = "x" * 4096
BAD_PATHS = ["", "\0", "/a\0b", "/" + LONG, "/\ud800", 5, None, b"/a", True, ["/a"]]
BAD_INTS = [True, False, 1.0, "1", None, -1, 2**64, 10**5000]
BAD_BOOLS = [0, 1, None, "yes", "True"]
BAD_SEQUENCES: list[Any] = ["text", b"bytes", 5, {"a": 1}, {1, 2}, None, iter([])]


@pytest.mark.parametrize("value", BAD_BOOLS)
@pytest.mark.parametrize("field", ["use_pivot_root", "no_new_privileges"])
def test_a_switch_is_a_bool(field: str, value: Any) -> None:
    assert config_error(Config, **{field: value}).field == field


@pytest.mark.parametrize("value", [0, 1, None, 3.5, [], b"/proc/1/ns/net"])
def test_a_namespace_is_a_bool(value: Any) -> None:
    for field in dataclasses.fields(Namespaces):
        error = config_error(Namespaces, **{field.name: value})
        assert error.field == field.name


def test_a_path_is_a_namespace_to_join() -> None:
    for path in ("/proc/1/ns/net", Path("/proc/1/ns/net")):
        namespaces = Namespaces(net=path)
        assert namespaces.net == Join(path="/proc/1/ns/net")
        assert namespaces.joined() == {"net": namespaces.net}
        assert namespaces.clone_flags() == Namespaces(net=False).clone_flags()


def test_a_config_needs_a_mount_namespace() -> None:
    assert config_error(Config, namespaces=Namespaces(mnt=False)).field == "namespaces.mnt"
    assert Config(namespaces=Namespaces(user=False, net=False, ipc=False, uts=False, cgroup=False))


def test_the_type_of_every_config_field_is_checked() -> None:
    for field in dataclasses.fields(Config):
        error = config_error(Config, **{field.name: object()})
        assert error.field == field.name
        assert "got object" in str(error)


def test_an_item_of_a_sequence_is_named_by_its_index() -> None:
    error = config_error(Config, mounts=[GOOD_MOUNT, "/a:/b"])
    assert str(error) == "mounts[1]: expected Mount, got str"
    error = config_error(Config, uid_mappings=[(0, 1, 1)])
    assert error.field == "uid_mappings[0]"
    error = config_error(Process, ["true", 5])
    assert str(error) == "args[1]: expected str or os.PathLike, got int"
    assert config_error(Process, ["true"], groups=[1, True]).field == "groups[1]"
    assert config_error(HostRoot, ["/opt", 5]).field == "extra[1]"
    assert config_error(SignalConfig, forward_signals=[1, 65]).field == "forward_signals[1]"


@pytest.mark.parametrize("value", BAD_SEQUENCES)
def test_a_sequence_is_a_sequence(value: Any) -> None:
    for field in ("mounts", "uid_mappings", "gid_mappings"):
        assert config_error(Config, **{field: value}).field == field
    for field in ("groups", "rlimits"):
        error = config_error(Process, ["a"], **{field: value})
        assert error.field == field
    assert config_error(Process, value).field == "args"
    assert config_error(HostRoot, value).field == "extra"


def test_an_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="hostnam"):
        Config(hostnam="x")  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [path for path in BAD_PATHS if path is not None])
def test_a_root_is_a_path_or_a_host_root(value: Any) -> None:
    error = config_error(Config, root=value)
    assert error.field == "root"
    assert isinstance(value, str) or "HostRoot" in str(error)


def test_a_path_has_room_for_a_nul_in_the_kernels_buffer() -> None:
    for root in (".", "/" * 4095):
        assert Config(root=root).root == root
    assert config_error(Config, root="/" * 4096).field == "root"
    assert config_error(Config, root="/" + "é" * 2048).field == "root"


def test_an_error_shows_no_more_than_80_characters_of_a_value() -> None:
    assert repr("x" * 78) in str(config_error(Mount.tmpfs, "x" * 78))
    assert str(config_error(Mount.tmpfs, "x" * 79)).endswith("x" * 76 + "...")
    assert str(config_error(parse_size, 2**64 - 1)).endswith(str(2**64 - 1))
    assert str(config_error(parse_size, 2**64)).endswith(hex(2**64))


@pytest.mark.parametrize("hostname", ["a", "x" * 64, "é" * 32, "a.b-c_d"])
def test_a_hostname_has_up_to_64_bytes(hostname: str) -> None:
    assert Config(hostname=hostname).hostname == hostname


@pytest.mark.parametrize(
    "hostname",
    [
        "",
        "x" * 65,
        "x" * 300,
        "é" * 33,
        "a/b",
        "a\0",
        "a\nb",
        "a b",
        "\x1b[31m",
        "\udcff",
        5,
        None,
        b"a",
    ],
)
def test_a_bad_hostname_is_refused(hostname: Any) -> None:
    assert config_error(Config, hostname=hostname).field == "hostname"


def test_a_hostname_without_uts_namespace_would_be_the_hosts() -> None:
    shared = Namespaces(uts=False)
    assert config_error(Config, namespaces=shared, hostname="x").field == "hostname"
    assert Config(namespaces=shared).hostname == "container"


# Id mappings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", BAD_INTS, ids=lambda value: "" if isinstance(value, int) else None
)
@pytest.mark.parametrize("field", ["container_id", "host_id", "size"])
def test_an_id_mapping_has_ints_in_range(field: str, value: Any) -> None:
    fields = {"container_id": 0, "host_id": 0, "size": 1} | {field: value}
    assert config_error(IDMapping, **fields).field == field


def test_an_id_mapping_ends_before_the_id_that_means_none() -> None:
    assert IDMapping(0, 0, 2**32 - 1).size == 2**32 - 1
    assert IDMapping(2**32 - 2, 0, 1).size == 1
    for bad in ((0, 0, 2**32), (1, 0, 2**32 - 1), (0, 1, 2**32 - 1), (0, 0, 0)):
        assert config_error(IDMapping, *bad).field == "size"
    assert config_error(IDMapping, 2**32 - 1, 0, 1).field == "container_id"


def test_id_mappings_come_in_pairs_and_with_a_user_namespace() -> None:
    one = [IDMapping(0, 1000, 1)]
    assert config_error(Config, uid_mappings=one).field == "gid_mappings"
    assert config_error(Config, gid_mappings=one).field == "uid_mappings"
    without = Namespaces(user=False)
    error = config_error(Config, namespaces=without, uid_mappings=one, gid_mappings=one)
    assert error.field == "uid_mappings"


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2, st.integers(1, 4)), min_size=1, max_size=4))
def test_overlapping_id_mappings_are_refused(extents: list[tuple[int, int, int]]) -> None:
    mappings = [IDMapping(*extent) for extent in extents]
    inside = [i for first, _, size in extents for i in range(first, first + size)]
    outside = [i for _, first, size in extents for i in range(first, first + size)]
    fine = [IDMapping(0, 0, 1)]
    if len(inside) == len(set(inside)) and len(outside) == len(set(outside)):
        assert Config(uid_mappings=fine, gid_mappings=mappings).gid_mappings == tuple(mappings)
    else:
        error = config_error(Config, uid_mappings=fine, gid_mappings=mappings)
        assert error.field.startswith("gid_mappings[")


def test_no_more_id_mappings_than_the_kernel_takes() -> None:
    mappings = [IDMapping(n, n, 1) for n in range(341)]
    assert len(Config(uid_mappings=mappings[1:], gid_mappings=mappings[1:]).uid_mappings) == 340
    error = config_error(Config, uid_mappings=mappings, gid_mappings=mappings)
    assert error.field == "uid_mappings"


# Mounts --------------------------------------------------------------------------------------


def test_a_bind_says_whether_it_can_be_written() -> None:
    assert Mount.bind("/a", "/b") == Mount("/a", "/b", "bind", MountFlags.BIND)
    assert Mount.bind("/a", "/b", True) == Mount("/a", "/b", "bind", MountFlags.BIND_READ_ONLY)
    assert not Mount.bind("/a", "/b").read_only
    assert Mount.bind("/a", "/b", read_only=True).read_only
    assert Mount.bind("relative", "/b").source == "relative"
    assert config_error(Mount.bind, "/a", "/b", read_only=1).field == "read_only"


def test_all_spellings_of_a_mount_are_equal() -> None:
    both = MountFlags.BIND | MountFlags.BIND_READ_ONLY
    assert len({Mount("/a", "/b", "bind"), Mount("/a", "/b", flags=MountFlags.BIND)}) == 1
    assert Mount("/a", "/b", flags=both) == Mount.bind("/a", "/b", read_only=True)
    assert Mount(None, "/b", "tmpfs") == Mount(None, "/b", flags=MountFlags.TMPFS)
    assert Mount(None, "/b", "tmpfs", data="") == Mount.tmpfs("/b")


def test_tmpfs_options_are_those_of_the_kernel() -> None:
    assert Mount.tmpfs("/t").data is None
    assert Mount.tmpfs("/t", size="1K").data == "size=1024"
    assert Mount.tmpfs("/t", size=4096, mode=0o700).data == "size=4096,mode=0700"
    assert Mount.tmpfs("/t", mode=0).data == "mode=0000"
    assert Mount.tmpfs("/t", mode=0o7777).data == "mode=7777"
    assert Mount.tmpfs("/t", size=-1).data == "size=0"  # shmem: no limit
    assert config_error(Mount.tmpfs, "/t", size=0).field == "size"
    assert config_error(Mount.tmpfs, "/t", size="50%").field == "size"
    for mode in (0o10000, -1, True, "700"):
        assert config_error(Mount.tmpfs, "/t", mode=mode).field == "mode"


@pytest.mark.parametrize(
    "target", ["/a/b", "/a/b/", "//a/b", "///a//b", "/./a/./b", "/a/b/.", "//a/b//"]
)
def test_a_target_is_stored_normalised(target: str) -> None:
    assert Mount.tmpfs(target).target == "/a/b"


@pytest.mark.parametrize(
    "target", [*BAD_PATHS, "a", "./a", "/", "//", "/.", "/..", "/a/..", "/a/../b", "/../a", ".."]
)
def test_a_bad_target_is_refused(target: Any) -> None:
    assert config_error(Mount.tmpfs, target).field == "target"
    assert config_error(Mount.bind, "/a", target).field == "target"


def test_dots_in_a_name_are_no_parent_directory() -> None:
    assert Mount.tmpfs("/a..b/...").target == "/a..b/..."


@pytest.mark.parametrize("source", BAD_PATHS)
def test_a_bad_source_is_refused(source: Any) -> None:
    assert config_error(Mount.bind, source, "/b").field == "source"


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (("/a", "/b"), "type"),
        (("/a", "/b", "bind", MountFlags.TMPFS), "flags"),
        (("/a", "/b", "tmpfs", MountFlags.BIND), "flags"),
        (("/a", "/b", None, MountFlags.BIND | MountFlags.TMPFS), "flags"),
        (("/a", "/b", "bind", 1), "flags"),
        (("/a", "/b", "bind", MountFlags.BIND, "size=1"), "data"),
        ((None, "/b", "tmpfs", MountFlags.TMPFS, "size=1\0"), "data"),
        ((None, "/b", "tmpfs", MountFlags.TMPFS, b"size=1"), "data"),
        ((None, "/b", "bind"), "source"),
        (("/a", "/b", 5), "type"),
    ],
)
def test_a_mount_that_contradicts_itself_is_refused(args: tuple[Any, ...], field: str) -> None:
    assert config_error(Mount, *args).field == field


@pytest.mark.parametrize("kind", ["ext4", "overlay", ""])
def test_other_types_of_mount_are_unsupported_by_name(kind: str) -> None:
    assert unsupported_field(Mount, "none", "/b", kind) == "type"


@pytest.mark.parametrize("kind", ["proc", "sysfs", "devpts", "tmpfs"])
def test_a_file_system_of_the_kernel_is_named_by_type_or_flag(kind: str) -> None:
    assert Mount(None, "/b", kind) == Mount(None, "/b", flags=MountFlags[kind.upper()])
    # Written to by mistake sysfs changes the machine.
    assert Mount(None, "/b", kind).read_only is (kind == "sysfs")
    assert Mount(None, "/b", kind, read_only=False).read_only is False


def test_propagation_is_private_unless_said_otherwise() -> None:
    bind = Mount.bind("/a", "/b")
    assert Mount("/a", "/b", flags=MountFlags.BIND | MountFlags.PRIVATE) == bind
    for flag in (MountFlags.SLAVE, MountFlags.SHARED):
        assert Mount("/a", "/b", "bind", flag).flags == MountFlags.BIND | flag
    both = MountFlags.SLAVE | MountFlags.SHARED
    assert config_error(Mount, "/a", "/b", "bind", both).field == "flags"
    assert config_error(Mount, None, "/b", "tmpfs", MountFlags.SLAVE).field == "flags"


def test_read_only_has_one_meaning_in_flags_and_field() -> None:
    bind = Mount.bind("/a", "/b", read_only=True)
    assert Mount("/a", "/b", "bind", read_only=True) == bind
    assert bind.flags == MountFlags.BIND_READ_ONLY
    contradiction = config_error(
        Mount, "/a", "/b", flags=MountFlags.BIND_READ_ONLY, read_only=False
    )
    assert contradiction.field == "read_only"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"uid_mappings": [IDMapping(0, 5, 1)]}, "gid_mappings"),
        ({"gid_mappings": [IDMapping(0, 5, 1)]}, "uid_mappings"),
        (
            {"uid_mappings": [IDMapping(0, 5, 1)], "gid_mappings": [IDMapping(0, 5, 2)] * 2},
            "gid_mappings[1]",
        ),
        (
            {
                "uid_mappings": [IDMapping(0, 5, 1)],
                "gid_mappings": [IDMapping(0, 5, 1)],
                "idmap": True,
            },
            "idmap",
        ),
        ({"idmap": 1}, "idmap"),
        ({"noexec": None}, "noexec"),
        ({"recursive": 0}, "recursive"),
    ],
)
def test_options_of_a_bind_that_make_no_sense_are_refused(
    options: dict[str, Any], field: str
) -> None:
    assert config_error(Mount, "/a", "/b", "bind", **options).field == field


def test_only_a_bind_maps_ids() -> None:
    assert config_error(Mount, None, "/b", "tmpfs", idmap=True).field == "idmap"
    maps = [IDMapping(0, 5, 1)]
    wrong = config_error(Mount, None, "/b", "proc", uid_mappings=maps, gid_mappings=maps)
    assert wrong.field == "uid_mappings"


# Overlays -------------------------------------------------------------------------------------


def test_an_overlay_has_one_or_several_lower_directories() -> None:
    assert Overlay("/a") == Overlay(["/a"]) == Overlay((Path("/a"),))
    assert Overlay(["/a", "b"], Path("/u"), "/w").lower == ("/a", "b")
    assert Overlay("/a", "/u").work is None


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (([],), "lower"),
        ((["/a"] * 501,), "lower"),
        ((["/a", ""],), "lower[1]"),
        ((["/a", b"/b"],), "lower[1]"),
        ((5,), "lower"),
        (("/a", ""), "upper"),
        (("/a", None, "/w"), "work"),
    ],
)
def test_a_bad_overlay_is_refused(args: tuple[Any, ...], field: str) -> None:
    assert config_error(Overlay, *args).field == field


def test_two_mounts_on_one_target_are_refused() -> None:
    mounts = [Mount.tmpfs("/a"), Mount.bind("/x", "/b"), Mount.bind("/y", "/a/")]
    assert config_error(Config, mounts=mounts).field == "mounts[2].target"
    assert config_error(HostRoot, ["/opt", "/opt/"]).field == "extra[1].target"


def test_a_path_given_to_a_host_root_is_a_read_only_bind_in_its_place() -> None:
    root = HostRoot(["/opt/tools/", Path("/srv"), Mount.bind("/a", "/b")])
    assert root.extra == (
        Mount.bind("/opt/tools", "/opt/tools", read_only=True),
        Mount.bind("/srv", "/srv", read_only=True),
        Mount.bind("/a", "/b"),
    )
    assert HostRoot() == HostRoot([]) and hash(HostRoot()) == hash(HostRoot([]))
    assert config_error(HostRoot, ["opt"]).field == "extra[0]"


# Processes -----------------------------------------------------------------------------------


def test_a_command_line_in_one_string_is_refused_with_advice() -> None:
    error = config_error(Process, "echo hi")
    assert error.field == "args"
    assert "['prog', 'arg']" in str(error) and "shlex.split" in str(error)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ([], "args"),
        ((), "args"),
        ([""], "args[0]"),
        (["a", "b\0c"], "args[1]"),
        (["a", None], "args[1]"),
        (["a", b"b"], "args[1]"),
        (["a", "\ud800"], "args[1]"),
    ],
)
def test_bad_arguments_are_refused(args: Any, field: str) -> None:
    assert config_error(Process, args).field == field


def test_an_argument_but_the_first_may_be_empty() -> None:
    assert Process(["echo", ""]).args == ("echo", "")


@pytest.mark.parametrize("cwd", [*[p for p in BAD_PATHS if p is not None], "tmp", "./tmp", "~"])
def test_a_bad_working_directory_is_refused(cwd: Any) -> None:
    assert config_error(Process, ["a"], cwd=cwd).field == "cwd"


@pytest.mark.parametrize("umask", [-1, 0o1000, True, "022", None, 2.0])
def test_a_bad_umask_is_refused(umask: Any) -> None:
    assert config_error(Process, ["a"], umask=umask).field == "umask"
    assert Process(["a"], umask=0).umask == 0 and Process(["a"], umask=0o777).umask == 0o777


@pytest.mark.parametrize("group", [-1, 2**32 - 1, True, "0", None])
def test_a_bad_group_is_refused(group: Any) -> None:
    assert config_error(Process, ["a"], groups=[group]).field == "groups[0]"
    assert Process(["a"], groups=[2**32 - 2]).groups == (2**32 - 2,)


def test_no_more_groups_than_the_kernel_takes() -> None:
    assert len(Process(["a"], groups=range(65536)).groups) == 65536
    assert config_error(Process, ["a"], groups=range(65537)).field == "groups"


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        (0, (0, None)),
        (1000, (1000, None)),
        (2**32 - 2, (2**32 - 2, None)),
        ("0", (0, None)),
        ("1000:5", (1000, 5)),
        ("4294967294:4294967294", (4294967294, 4294967294)),
    ],
)
def test_a_numeric_user_is_parsed(user: int | str, ids: tuple[int, int | None]) -> None:
    assert parse_user(user) == ids
    assert Process(["a"], user=user).user == user


@pytest.mark.parametrize(
    "user",
    [
        *(
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "-1",
            "0x0",
            "1000:",
            ":0",
            " 0",
            "0 ",
        ),
        *(
            "",
            ":",
            "0:0:0",
            "00",
            "01",
            "+1",
            "1_0",
            "1e3",
            "0\n",
            "\u0660",
            "0\0",
            "1000:-1",
            "0:0x0",
        ),
        *("1000:4294967295", "root:", ":root", "ro ot", "-root", "9" * 5000),
        *(-1, 2**32 - 1, 2**32, True, 1.0, b"0", [0]),
    ],
)
def test_a_user_that_is_no_plain_number_is_refused(user: Any) -> None:
    assert config_error(Process, ["a"], user=user).field == "user"


@pytest.mark.parametrize(
    ("user", "parts"),
    [
        ("root", ("root", None)),
        ("nobody:nogroup", ("nobody", "nogroup")),
        ("0:root", (0, "root")),
        ("root:0", ("root", 0)),
        ("_apt", ("_apt", None)),
        ("pc$", ("pc$", None)),
    ],
)
def test_a_name_stays_a_name_until_there_is_a_root(user: str, parts: tuple[object, object]) -> None:
    assert parse_user(user) == parts
    assert Process(["a"], user=user).user == user


@given(st.text(max_size=12) | st.from_regex(r"[0-9a-z: +-]{1,12}"))
def test_only_canonical_decimals_become_ids_and_what_begins_like_one_is_no_name(user: str) -> None:
    try:
        parts = parse_user(user)
    except ConfigError:
        return
    assert user == ":".join(str(part) for part in parts if part is not None)
    for part in parts:
        if isinstance(part, int):
            assert 0 <= part <= 2**32 - 2
        elif part is not None:
            assert part[0].isalpha() or part[0] == "_"


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_stream_is_a_descriptor_a_file_or_a_constant(stream: str) -> None:
    with open(os.devnull, "rb") as file:
        good: list[Any] = [None, 0, 7, PIPE, DEVNULL, file]
        for value in good:
            assert getattr(Process(["a"], **{stream: value}), stream) is value
    closed: Any = file
    for bad in (-4, True, 2**31, "file", 1.0, io.BytesIO(), io.FileIO, object(), closed):
        error = config_error(Process, ["a"], **{stream: bad})
        assert error.field == stream


def test_a_file_may_have_any_descriptor_from_zero() -> None:
    class File:
        def __init__(self, fd: Any) -> None:
            self.fd = fd

        def fileno(self) -> Any:
            return self.fd

    for fd in (0, 1, 2**31 - 1):
        assert Process(["a"], stdin=File(fd)).stdin is not None
        assert Process(["a"], stdin=fd).stdin == fd
    for bad in (-1, True, None, "0"):
        assert config_error(Process, ["a"], stdin=File(bad)).field == "stdin"


def test_only_stderr_can_follow_stdout() -> None:
    assert Process(["a"], stderr=STDOUT).stderr == STDOUT
    assert config_error(Process, ["a"], stdin=STDOUT).field == "stdin"
    assert config_error(Process, ["a"], stdout=STDOUT).field == "stdout"


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_process_with_a_descriptor_is_copied_but_not_pickled(stream: str) -> None:
    with open(os.devnull, "rb") as file:
        streams: list[Any] = [0, 7, file]
        for value in streams:
            process = Process(["a"], **{stream: value})
            assert config_error(pickle.dumps, process).field == stream
            assert copy.copy(process) == copy.deepcopy(process) == process


# Limits, signals, parsers --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["NOPE", "", "RLIMIT_", "NOFILE ", "RLIMIT_RLIMIT_CPU", "\u017ftack", 16, -1, True, None],
)
def test_an_unknown_resource_limit_is_refused(kind: Any) -> None:
    assert config_error(Rlimit, kind, 1, 1).field == "type"


def test_a_soft_limit_is_not_above_the_hard_one() -> None:
    for soft, hard in ((0, 0), (1, 2), (5, -1), (-1, -1)):
        limit = Rlimit("CPU", soft, hard)
        assert (limit.soft, limit.hard) == (soft, hard)
    for soft, hard in ((3, 2), (-1, 2)):
        assert config_error(Rlimit, "CPU", soft, hard).field == "soft"


def test_a_limit_may_be_a_size_and_the_kernels_infinity_is_minus_one() -> None:
    assert Rlimit("AS", "64M", 2**64 - 1) == Rlimit("AS", 64 << 20, resource.RLIM_INFINITY)
    for bad in (-2, 2**64, True, None, 1.5, "x"):
        assert config_error(Rlimit, "AS", bad, -1).field == "soft"


def test_a_resource_is_limited_once() -> None:
    limits = [Rlimit("CPU", 1, 1), Rlimit("AS", 1, 1), Rlimit("RLIMIT_CPU", 2, 2)]
    assert config_error(Process, ["a"], rlimits=limits).field == "rlimits[2].type"


@pytest.mark.parametrize("number", [0, -1, 65, True, "SIGTERM", None])
def test_a_bad_signal_is_refused(number: Any) -> None:
    assert config_error(SignalConfig, stop_signal=number).field == "stop_signal"


def test_a_signal_is_kept_as_what_it_is_called() -> None:
    assert SignalConfig(stop_signal=9).stop_signal is signal.SIGKILL
    assert SignalConfig(stop_signal=40).stop_signal == 40
    for number in (signal.SIGKILL, signal.SIGSTOP):
        error = config_error(SignalConfig, forward_signals=[number])
        assert error.field == "forward_signals[0]"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("1", 1), ("12B", 12), ("1k", 1024), ("1K", 1024), ("1Ki", 1024)),
        *(("1kib", 1024), ("256M", 256 << 20), ("2g", 2 << 30), ("3T", 3 << 40), ("1P", 1 << 50)),
        *(("7E", 7 << 60), ("9223372036854775807", 2**63 - 1)),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_power_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == parse_size(size) == size


@pytest.mark.parametrize(
    "size",
    [
        *(
            "",
            "M",
            "-1",
            "-5M",
            "+5",
            " 5",
            "5 M",
            "5\n",
            "5MB",
            "5mb",
            "5X",
            "1.5G",
            "0x10",
            "1e3",
        ),
        *("\u0665M", "5\0", "8E", "9" * 5000, "9223372036854775808", "max"),
        *(-1, 2**63, 10**5000, True, 1.0, None, b"5M"),
    ],
    ids=lambda size: "" if isinstance(size, int) else None,
)
def test_a_bad_size_is_refused(size: Any) -> None:
    assert config_error(parse_size, size, "memory").field == "memory"


@given(
    st.integers(0, 2**63 - 1), st.sampled_from(["", *"KMGTPEkmgtpe"]), st.sampled_from(["", "i"])
)
def test_every_size_in_range_is_exact(number: int, unit: str, binary: str) -> None:
    size = number * 1024 ** ("KMGTPE".find(unit.upper()) + 1 if unit else 0)
    text = f"{number}{unit}{binary if unit else ''}"
    if size < 2**63:
        assert parse_size(text) == size
    else:
        assert config_error(parse_size, text).field == "size"


def test_minus_one_is_unlimited_only_where_that_means_something() -> None:
    assert parse_size(-1, unlimited=True) == parse_size("-1", unlimited=True) == -1
    assert config_error(parse_size, -2, unlimited=True).field == "size"
    assert config_error(parse_size, "-2", unlimited=True).field == "size"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0.0), (5, 5.0), (0.25, 0.25), (timedelta(minutes=1), 60.0), (timedelta(), 0.0)],
)
def test_a_duration_is_seconds_or_a_timedelta(value: Any, seconds: float) -> None:
    assert parse_duration(value) == seconds and type(parse_duration(value)) is float
    assert SignalConfig(stop_timeout=value).stop_timeout == seconds


@pytest.mark.parametrize(
    "value",
    [
        -1,
        -0.001,
        float("nan"),
        float("inf"),
        -float("inf"),
        timedelta(-1),
        True,
        "5",
        None,
        10**400,
    ],
    ids=lambda value: "" if isinstance(value, int) else None,
)
def test_a_bad_duration_is_refused(value: Any) -> None:
    assert config_error(parse_duration, value, "timeout").field == "timeout"
    assert config_error(SignalConfig, stop_timeout=value).field == "stop_timeout"


@pytest.mark.parametrize("value", ["a", "A-Z_0.9+x", "-a", "_", "x" * 128, "a..b"])
def test_a_good_container_id_is_kept(value: str) -> None:
    assert validate_id(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        ".a",
        "../../x",
        "a/b",
        "a b",
        "a\n",
        "a\0",
        "\x1b",
        "é",
        "x" * 129,
        "x" * 300,
        5,
        None,
        b"a",
    ],
)
def test_a_bad_container_id_is_refused(value: Any) -> None:
    assert config_error(validate_id, value).field == "id"


# Reports -------------------------------------------------------------------------------------


def test_states_are_those_of_the_oci_specification_and_paused() -> None:
    assert [str(state) for state in State] == [
        "creating",
        "created",
        "running",
        "paused",
        "stopped",
    ]


def test_a_state_has_the_json_names_of_the_reference() -> None:
    state = ContainerState("box", State.STOPPED, None, 3, NOW, NOW, NOW)
    assert json.loads(state.to_json()) == {
        "id": "box",
        "state": "stopped",
        "pid": None,
        "exit_code": 3,
        "created_at": "2024-05-06T07:08:09.123456Z",
        "started_at": "2024-05-06T07:08:09.123456Z",
        "stopped_at": "2024-05-06T07:08:09.123456Z",
    }


def states() -> Iterator[ContainerState]:
    times = (None, NOW, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5))))
    for state, pid, time in itertools.product(State, (None, 1), times):
        exit_code = -9 if state is State.STOPPED else None
        yield ContainerState("box", state, pid, exit_code, NOW, time, time, "/b", {"a=b": "\udcff"})


def test_every_state_survives_json() -> None:
    for state in states():
        assert ContainerState.from_json(state.to_json()) == state
        assert json.loads(state.to_json())["id"] == "box"


def test_the_json_of_a_go_program_is_understood() -> None:
    text = (
        '{"id": "x", "state": "running", "pid": 0, "exit_code": 0, "annotations": null, "new": 1,'
        '"created_at": "2024-05-06T09:08:09.123456789+02:00", "stopped_at": "0001-01-01T00:00:00Z"}'
    )
    state = ContainerState.from_json(text)
    assert state == ContainerState("x", State.RUNNING, None, None, NOW)
    stopped = ContainerState.from_json(text.replace("running", "stopped"))
    assert stopped.exit_code == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": None}, "id"),
        ({"id": "../x"}, "id"),
        ({"state": "dead"}, "state"),
        ({"state": ["running"]}, "state"),
        ({"state": None}, "state"),
        ({"pid": "5"}, "pid"),
        ({"pid": -1}, "pid"),
        ({"exit_code": "0"}, "exit_code"),
        ({"exit_code": 256}, "exit_code"),
        ({"created_at": None}, "created_at"),
        ({"created_at": 5}, "created_at"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": "2024-05-06T07:08:09"}, "created_at"),
        ({"started_at": "9999-12-31T23:59:59-05:00"}, "started_at"),
        ({"annotations": ["a"]}, "annotations"),
        ({"annotations": {"a": 1}}, "annotations['a']"),
        ({"bundle": 5}, "bundle"),
    ],
)
def test_a_malformed_state_is_a_config_error(change: dict[str, object], field: str) -> None:
    content = json.loads(STATE.to_json()) | change
    assert config_error(ContainerState.from_json, json.dumps(content)).field == field


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 100_000, "\udcff"])
def test_what_is_no_json_object_is_a_config_error(text: str) -> None:
    assert config_error(ContainerState.from_json, text).field == "text"


def test_a_state_in_the_form_of_the_oci_specification() -> None:
    running = ContainerState(
        "box", State.RUNNING, 42, None, NOW, bundle="/b", annotations={"k": "v"}
    )
    assert running.to_oci() == {
        "ociVersion": "1.3.0",
        "id": "box",
        "status": "running",
        "pid": 42,
        "bundle": "/b",
        "annotations": {"k": "v"},
    }
    stopped = ContainerState("box", State.STOPPED, None, 0, NOW)
    assert stopped.to_oci().keys() == {"ociVersion", "id", "status", "bundle"}
    assert type(stopped.to_oci()["status"]) is str


def test_a_result_derives_the_signal_from_the_status() -> None:
    assert Result(["a"], -9).signal is signal.SIGKILL
    assert Result(["a"], -40).signal == 40
    assert Result(["a"], 137).signal is None and Result(["a"], 0).signal is None


def test_check_returncode_raises_unless_the_status_is_zero() -> None:
    Result(["a"], 0).check_returncode()
    for returncode in (1, -9):
        result = Result(["a"], returncode)
        with pytest.raises(CommandError) as caught:
            result.check_returncode()
        assert caught.value.result is result
