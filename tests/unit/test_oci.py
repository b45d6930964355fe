# SPDX-License-Identifier: Apache-2.0
"""config.json: every property of docs/oci.md has its effect, or is refused by its name."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import container
from container import (
    Capabilities,
    Config,
    ConfigError,
    Device,
    DeviceRule,
    Hook,
    Hooks,
    IDMapping,
    Mount,
    MountFlags,
    Namespaces,
    Overlay,
    Resources,
    Rlimit,
    SeccompProfile,
    UnsupportedError,
    oci,
)

TREE = Path(__file__).resolve().parents[2]
FIELDS = (TREE / "tests/unit/oci_fields.txt").read_text().split()
"""The properties of the specification for Linux: the checklist."""

HOOK = {"path": "/bin/a", "args": ["a", "b"], "env": ["A=b"], "timeout": 3}
MAPS = [{"containerID": 0, "hostID": 1000, "size": 10}]
FULL: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1, "gid": 2, "umask": 63, "additionalGids": [7, 8]},
        "args": ["sh", "-c", "true"],
        "env": ["A=b", "C=d=e"],
        "cwd": "/tmp",
        "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_CHOWN"],
            "inheritable": ["CAP_CHOWN"],
            "permitted": ["CAP_CHOWN"],
            "ambient": ["CAP_CHOWN"],
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
        "noNewPrivileges": True,
        "apparmorProfile": "profile",
        "selinuxLabel": "a:b:c",
        "oomScoreAdj": 100,
        "scheduler": {"policy": "SCHED_OTHER", "nice": 3},
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "name",
    "domainname": "domain",
    "mounts": [
        {
            "destination": "/data",
            "type": "bind",
            "source": "/srv",
            "options": ["rbind", "ro", "noexec", "rslave", "idmap"],
            "uidMappings": MAPS,
            "gidMappings": MAPS,
        },
        {"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "nosuid"]},
        {"destination": "/proc", "type": "proc", "source": "proc"},
    ],
    "hooks": {
        kind: [HOOK]
        for kind in ("prestart", "createRuntime", "startContainer", "poststart", "poststop")
    },
    "annotations": {"org.example.key": "value"},
    "linux": {
        "uidMappings": MAPS,
        "gidMappings": MAPS,
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
            ],
            "memory": {
                "limit": 1 << 28,
                "reservation": 1 << 27,
                "swap": 1 << 29,
                "checkBeforeUpdate": True,
            },
            "cpu": {"shares": 1024, "quota": 5000, "burst": 100, "period": 10000}
            | {"cpus": "0-1", "mems": "0"},
            "pids": {"limit": 64},
            "blockIO": {
                "weight": 100,
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
                "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2}],
                "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 3}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 4}],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}],
            "network": {},
            "rdma": {"mlx5_0": {"hcaHandles": 2, "hcaObjects": 3}},
            "unified": {"memory.high": "1000000"},
        },
        "namespaces": [
            *({"type": kind} for kind in ("mount", "user", "pid", "uts", "ipc", "cgroup", "time")),
            {"type": "network"},
        ],
        "devices": [
            {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}
            | {"fileMode": 438, "uid": 5, "gid": 6}
        ],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {
                    "names": ["read"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 7,
                    "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}],
                }
            ],
        },
        "rootfsPropagation": "private",
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "personality": {"domain": "LINUX"},
        "timeOffsets": {"monotonic": {"secs": 5, "nanosecs": 500000000}},
    },
}
# Not beside what is in there.
ELSEWHERE: dict[str, tuple[str, Any]] = {
    "hooks.createContainer[]": ("process", {"cwd": "/", "user": {"uid": 0, "gid": 0}}),
    "linux.resources.cpu.idle": ("linux.resources.cpu", {"idle": 1}),
    "linux.namespaces[].path": (
        "linux.namespaces",
        [
            {"type": "ipc", "path": "/proc/1/ns/ipc"},
            *(each for each in FULL["linux"]["namespaces"] if each["type"] != "ipc"),
        ],
    ),
    "mounts[].type": ("mounts", [{"destination": "/x", "type": "tmpfs"}]),
    "linux.resources.devices[].": (
        "linux.resources.devices",
        [{"allow": True, "type": "c", "major": 10, "minor": 200, "access": "r"}],
    ),
}
WITHOUT_EFFECT = {
    *("linux.resources.memory.checkBeforeUpdate", "linux.resources.network"),
    *("linux.rootfsPropagation", "linux.personality"),
}
REFUSED: dict[str, Any] = {
    "process.scheduler.priority": 1,
    "process.scheduler.flags[]": ["SCHED_FLAG_RESET_ON_FORK"],
    "process.scheduler.runtime": 1,
    "process.scheduler.deadline": 1,
    "process.scheduler.period": 1,
    "process.ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1},
    "process.execCPUAffinity": {"initial": "0", "final": "1"},
    "linux.resources.memory.kernel": 1,
    "linux.resources.memory.kernelTCP": 1,
    "linux.resources.memory.swappiness": 1,
    "linux.resources.memory.disableOOMKiller": True,
    "linux.resources.memory.useHierarchy": False,
    "linux.resources.cpu.realtimeRuntime": 1,
    "linux.resources.cpu.realtimePeriod": 1,
    "linux.resources.blockIO.leafWeight": 10,
    "linux.resources.blockIO.weightDevice[]": [{"major": 8, "minor": 0, "weight": 10}],
    "linux.resources.network.classID": 1,
    "linux.resources.network.priorities[]": [{"name": "eth0", "priority": 1}],
    "linux.cgroupsPath": "/a",
    "linux.netDevices{}": {"eth0": {"name": "eth1"}},
    "linux.seccomp.listenerPath": "/run/socket",
    "linux.seccomp.listenerMetadata": "text",
    "linux.mountLabel": "a:b:c",
    "linux.intelRdt": {"closID": "a"},
    "linux.memoryPolicy": {"mode": "MPOL_BIND"},
    "linux.personality.flags[]": ["X"],
}


def rows() -> Iterator[tuple[str, str, str]]:
    text = (TREE / "docs/oci.md").read_text(encoding="utf-8")
    for match in re.finditer(r"^\| `([^`]+)` \| (\w+) \| .* \| `(\w+)` \|$", text, re.MULTILINE):
        yield match[1], match[2], match[3]


STATUS = {name: status for name, status, _ in rows()}
IMPLEMENTED = [name for name in FIELDS if STATUS.get(name) == "implemented"]


def full(name: str = "") -> dict[str, Any]:
    """A config.json that has this property."""
    content: dict[str, Any] = json.loads(json.dumps(FULL))  # nothing in it shared
    for prefix, (place, value) in ELSEWHERE.items():
        if not name.startswith(prefix):
            continue
        put(content, place, copy.deepcopy(value))
        if "createContainer" in name:
            content["hooks"] = {"createContainer": [copy.deepcopy(HOOK)]}
    return content


def steps(name: str) -> list[str | int]:
    """To the first of an array, the only one of a map; an array itself where it ends in one."""
    parts: list[str | int] = []
    for word in name.split("."):
        plain = word.rstrip("[]{}")
        parts.append(plain)
        parts += [0] if word.endswith("[]") else [""] if word.endswith("{}") else []
    while parts[-1] in (0, ""):
        parts.pop()
    return parts


def parent(content: Any, name: str) -> tuple[Any, Any]:
    *way, last = steps(name)
    for step in way:
        key = next(iter(content)) if step == "" else step
        content = content.setdefault(key, {}) if isinstance(content, dict) else content[key]
    return content, last


def put(content: Any, name: str, value: Any) -> None:
    holder, last = parent(content, name)
    holder[last] = value


def leads_to(field: str | None, name: str) -> bool:
    """Whether an error is about this property, or something in it."""
    found = re.sub(r"\[[^]]*\]", "", field or "").split(".")
    wanted = [word for step in steps(name) if (word := "*" if step == "" else step) != 0]
    return all(a in ("*", b) for a, b in zip(wanted, found, strict=False))


# The list -----------------------------------------------------------------------------------------


def test_the_documentation_has_every_property_once_in_their_order() -> None:
    assert [name for name, _, _ in rows()] == FIELDS
    assert {status for _, status, _ in rows()} == {"implemented", "refused"}
    assert len(FIELDS) == 217
    assert all(test in globals() for _, _, test in rows())


@pytest.mark.parametrize("name", IMPLEMENTED)
def test_what_is_implemented_has_its_place(name: str) -> None:
    content = full(name)
    whole = oci.parse(content, "/bundle")
    holder, last = parent(content, name)
    assert last in holder, "the example has it"
    if name in WITHOUT_EFFECT:
        return
    del holder[last]
    try:
        less = oci.parse(content, "/bundle")
    except (ConfigError, UnsupportedError):
        return  # it is required, or something else needs it
    assert less != whole


@pytest.mark.parametrize("name", [name for name in FIELDS if STATUS[name] == "refused"])
def test_what_is_refused_is_named(name: str) -> None:
    known = next(each for each in REFUSED if name.startswith(each))
    content = full()
    put(content, known, copy.deepcopy(REFUSED[known]))
    with pytest.raises(UnsupportedError) as caught:
        oci.parse(content, "/bundle")
    assert leads_to(caught.value.field, known)


@pytest.mark.parametrize("name", IMPLEMENTED)
def test_a_wrong_type_is_named(name: str) -> None:
    content = full(name)
    holder, last = parent(content, name)
    holder[last] = 3.5
    with pytest.raises(ConfigError) as caught:
        oci.parse(content, "/bundle")
    assert leads_to(caught.value.field, name), caught.value


# What becomes of it -------------------------------------------------------------------------------


def test_a_whole_config_is_read_as_it_was_meant() -> None:
    spec = oci.parse(FULL, "/bundle")
    config, process = spec.config, spec.process
    assert (spec.version, dict(spec.annotations)) == ("1.2.0", {"org.example.key": "value"})
    assert process is not None
    assert process.args == ("sh", "-c", "true")
    assert dict(process.env or {}) == {"A": "b", "C": "d=e"}
    assert (process.cwd, process.user, process.groups) == ("/tmp", "1:2", (7, 8))
    assert (process.umask, process.tty, process.tty_size) == (0o77, True, (24, 80))
    assert process.rlimits == (Rlimit("NOFILE", 10, 20),)
    assert (process.oom_score_adj, process.nice) == (100, 3)
    assert (config.root, config.read_only_root) == ("/bundle/rootfs", True)
    assert (config.hostname, config.domainname) == ("name", "domain")
    data, tmpfs = config.mounts
    mapping = (IDMapping(0, 1000, 10),)
    assert data == Mount(
        "/srv",
        "/data",
        "bind",
        MountFlags.SLAVE,
        read_only=True,
        noexec=True,
        uid_mappings=mapping,
        gid_mappings=mapping,
    )
    assert tmpfs == Mount(None, "/x", "tmpfs", data="size=1m", nosuid=True)
    assert config.namespaces == Namespaces(time=True)
    assert config.uid_mappings == config.gid_mappings == mapping
    assert config.no_new_privileges
    assert (config.apparmor_profile, config.selinux_label) == ("profile", "a:b:c")
    assert (config.masked_paths, config.readonly_paths) == (("/proc/kcore",), ("/proc/sys",))
    assert dict(config.time_offsets) == {"monotonic": 5.5}
    assert Device("/dev/net/tun", "c", 10, 200, 0o666, 5, 6) in config.devices
    hook = Hook("/bin/a", ["a", "b"], {"A": "b"}, 3)
    assert config.hooks == Hooks([hook], [hook], (), [hook], [hook], [hook])
    assert sorted(map(str, config.capabilities.bounding)) == ["CAP_CHOWN", "CAP_KILL"]


def test_control_groups_are_shown_read_only_and_only_its_own() -> None:
    content = full()
    group = {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["nosuid", "ro"]}
    content["mounts"] = [group]
    del content["linux"]["resources"]
    config = oci.parse(content).config
    assert config.mounts == (Mount(None, "/sys/fs/cgroup", "cgroup2", nosuid=True),)
    assert config.mounts[0].read_only
    assert config.resources == Resources()
    with pytest.raises(ConfigError) as caught:
        replace(config, resources=None)
    assert caught.value.field == "mounts[0].type"
    with pytest.raises(UnsupportedError) as refused:
        replace(config, mounts=[replace(config.mounts[0], read_only=False)])
    assert refused.value.field == "mounts[0].read_only"


def test_resources_are_those_of_cgroup_v2() -> None:
    resources = oci.parse(FULL, "/bundle").config.resources
    assert resources is not None
    assert resources.memory is not None
    assert resources.memory.swap_max == 1 << 28  # less than what is said: that is with memory
    assert resources.memory.low == 1 << 27
    assert resources.cpu is not None
    assert resources.cpu.weight == 100
    assert resources.io is not None
    rules = oci.parse(FULL, "/bundle").config.device_rules
    assert rules == (DeviceRule(False), DeviceRule(True, "c", 10, 200))
    assert dict(resources.io.max) == {"8:0": "rbps=1 wbps=2 riops=3 wiops=4"}


def test_what_is_left_out_is_what_the_specification_has_for_it() -> None:
    least = {"ociVersion": "1.0.0", "root": {"path": "/r"}}
    spec = oci.parse(least | {"linux": {"namespaces": [{"type": "mount"}]}})
    assert spec.process is None
    config = spec.config
    only = Namespaces(**dict.fromkeys(("user", "pid", "net", "ipc", "uts", "cgroup"), False))
    assert config.namespaces == only
    assert (config.seccomp, config.resources, config.hooks) == (None, None, None)
    assert config.capabilities == Capabilities.none()
    assert (config.masked_paths, config.readonly_paths) == ((), ())
    assert not config.no_new_privileges


def test_what_nobody_knows_is_ignored() -> None:
    content = full()
    content["x"] = content["linux"]["y"] = content["process"]["z"] = {"a": [1]}
    content["mounts"][0]["w"] = 1
    assert oci.parse(content, "/bundle") == oci.parse(FULL, "/bundle")


BAD: dict[str, tuple[str, Any, str]] = {
    "another version": ("ociVersion", "2.0.0", "ociVersion"),
    "no version": ("ociVersion", "x", "ociVersion"),
    "an unknown namespace": ("linux.namespaces", [{"type": "net"}], "linux.namespaces[0].type"),
    "a namespace twice": (
        "linux.namespaces",
        [{"type": "mount"}, {"type": "pid"}, {"type": "pid", "path": "/x"}],
        "linux.namespaces[2]",
    ),
    "no mount namespace": ("linux.namespaces", [{"type": "pid"}], "linux.namespaces"),
    "the path of a namespace that is relative": (
        "linux.namespaces",
        [{"type": "mount"}, {"type": "pid", "path": "x"}],
        "linux.namespaces[1].path",
    ),
    "a relative destination": ("mounts", [{"destination": "x"}], "mounts[0].destination"),
    "a destination twice": (
        "mounts",
        [{"destination": "/x", "type": "tmpfs"}] * 2,
        "mounts[1].destination",
    ),
    "a file system that there is not": (
        "mounts",
        [{"destination": "/x", "type": "ext4"}],
        "mounts[0]",
    ),
    "control groups that could be written": (
        "mounts",
        [{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["nosuid"]}],
        "mounts[0].options",
    ),
    "an option": (
        "mounts",
        [{"destination": "/x", "type": "tmpfs", "options": ["tmpcopyup"]}],
        "mounts[0].options[0]",
    ),
    "a bind of nothing": ("mounts", [{"destination": "/x", "type": "bind"}], "mounts[0].source"),
    "a line of env": ("process.env", ["A=b", "C"], "process.env[1]"),
    "a limit twice": (
        "process.rlimits",
        [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}] * 2,
        "process.rlimits[1].type",
    ),
    "an unknown capability": (
        "process.capabilities.bounding",
        ["CAP_X"],
        "process.capabilities",
    ),
    "a negative id": ("process.user.uid", -1, "process.user.uid"),
    "an id too large": ("process.user.uid", 2**32 - 1, "process.user.uid"),
    "no uid": ("process.user", {"gid": 0}, "process.user.uid"),
    "a policy": ("process.scheduler.policy", "SCHED_FIFO", "process.scheduler.policy"),
    "no root": ("root", None, "root"),
    "a sysctl of the host": (
        "linux.sysctl",
        {"kernel.panic": "1"},
        "linux.sysctl['kernel.panic']",
    ),
    "swap below memory": ("linux.resources.memory.swap", 1, "linux.resources.memory.swap"),
    "no such call": (
        "linux.seccomp.syscalls",
        [{"names": [1], "action": "SCMP_ACT_ALLOW"}],
        "linux.seccomp.syscalls[0].names[0]",
    ),
    "another propagation": ("linux.rootfsPropagation", "shared", "linux.rootfsPropagation"),
    "another personality": ("linux.personality.domain", "LINUX32", "linux.personality.domain"),
    "a clock": (
        "linux.timeOffsets",
        {"realtime": {"secs": 1}},
        "linux.timeOffsets['realtime']",
    ),
    "an annotation": ("annotations", {"a": 1}, "annotations.a"),
    "a relative hook": ("hooks.prestart", [{"path": "a"}], "hooks.prestart[0]"),
    "a hook without a path": ("hooks.poststop", [{}], "hooks.poststop[0].path"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_named_by_its_path(what: str) -> None:
    place, value, field = BAD[what]
    content = full()
    put(content, place, value)
    with pytest.raises((ConfigError, UnsupportedError)) as caught:
        oci.parse(content, "/bundle")
    error: Any = caught.value
    assert error.field == field
    assert "\n" not in str(error)


def test_a_bundle_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(FULL))
    assert oci.load(tmp_path) == oci.parse(FULL, tmp_path)
    for text in ("", "[", "{" * 100000, '{"a": 1, "a": 2}', "[]", "\x00"):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            oci.load(tmp_path)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        oci.load(tmp_path)


# There and back -----------------------------------------------------------------------------------

CONFIGS = {
    "the least": Config("/srv"),
    "much": Config(
        "/srv",
        Namespaces(net=False, ipc="/proc/1/ns/ipc", time=True),
        mounts=[Mount.bind("/usr", "/usr", True), Mount.tmpfs("/x", size="1M", mode=0o700)],
        uid_mappings=[IDMapping(0, 1000, 10)],
        gid_mappings=[IDMapping(0, 1000, 10)],
        capabilities=Capabilities.all(),
        devices=[Device("/dev/fuse", "c", 10, 229, 0o600)],
        resources=Resources.default(),
        device_rules=[DeviceRule(True, "c", 10, None, "r"), DeviceRule(False)],
        domainname="domain",
        read_only_root=True,
        time_offsets={"boottime": 1.5},
        hooks=Hooks(prestart=[Hook("/a", ["a"], {"B": "c"}, 3)], poststop=[Hook("/b")]),
        masked_paths=["/proc/kcore"],
        readonly_paths=(),
    ),
    "without a filter": replace(Config("/srv"), seccomp=None, no_new_privileges=False),
}


@pytest.mark.parametrize("which", CONFIGS)
def test_a_config_comes_back_as_it_went(which: str) -> None:
    config = CONFIGS[which]
    written = json.loads(json.dumps(config.to_oci()))
    again = Config.from_oci(written)
    same = {field.name for field in fields(Config)} - {"resources", "seccomp", "devices", "hooks"}
    if which == "much":
        assert dict(again.resources.unified)["memory.max"] == str(512 << 20)  # type: ignore[union-attr]
        assert again.hooks is not None
        assert again.hooks.prestart == config.hooks.prestart  # type: ignore[union-attr]
    else:
        same -= {"masked_paths", "readonly_paths"}  # the usual ones, which are written out
    for name in same:
        assert getattr(again, name) == getattr(config, name), name
    assert set(config.devices) <= set(again.devices)
    assert again.to_oci() == written


def test_a_filter_is_written_without_conditions() -> None:
    written = Config("/srv", capabilities=Capabilities.none()).to_oci()["linux"]["seccomp"]
    names = {name for rule in written["syscalls"] for name in rule["names"]}
    assert not any("includes" in rule or "excludes" in rule for rule in written["syscalls"])
    allowed = {
        name
        for rule in written["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
        for name in rule["names"]
    }
    assert "read" in names
    assert "mount" not in allowed
    assert SeccompProfile.from_json(json.dumps(written))


def test_what_has_no_words_is_refused() -> None:
    for config, field in (
        (Config(), "root"),
        (Config(Overlay("/a")), "root"),
        (Config("/srv", nested=True), "nested"),
        (Config("/srv", proc_options="subset=pid"), "proc_options"),
        (Config("/srv", use_pivot_root=False), "use_pivot_root"),
        (Config("/srv", hooks=Hooks(prestart=[print])), "hooks.prestart[0]"),
    ):
        with pytest.raises(UnsupportedError) as caught:
            config.to_oci()
        assert caught.value.field == field


def test_the_module_is_public() -> None:
    assert container.oci.parse is oci.parse
    assert oci.Spec.__module__ == "container.oci"
