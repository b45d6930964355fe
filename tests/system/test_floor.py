# SPDX-License-Identifier: Apache-2.0
"""The floor of the benchmark (bench/floor_a.c) ends in the state of `container.run`.

One probe runs in both and the answers of the kernel are compared: a floor that left a step out,
or did one too many, would make the ratio that the benchmark prints a lie.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filters.libseccomp import Libseccomp

import container
from container import Config, SeccompProfile, default_capabilities
from container._seccomp._compiler import rules_for
from container._seccomp._tables import ARCHITECTURES
from container._walls import MASKED_PATHS, READONLY_PATHS

pytestmark = [pytest.mark.needs("root", "gcc", "busybox", "idmap"), pytest.mark.kernel]

SOURCE = Path(__file__).resolve().parents[2] / "bench" / "floor_a.c"
ID_COUNT = 65536
FAILED = 125
DOCKER_CAPABILITIES = 0xA80425FB

# sh is PID 1; an aspect ends where the next begins.
PROBE = r"""
echo '== mounts'; cat /proc/1/mountinfo
echo '== capabilities'; grep ^Cap /proc/1/status
echo '== privileges'; grep -E '^(NoNewPrivs|Seccomp|Seccomp_filters):' /proc/1/status
echo '== ids'; grep -E '^(Uid|Gid|Groups):' /proc/1/status; cat /proc/1/setgroups
echo '== id maps'; cat /proc/1/uid_map /proc/1/gid_map
echo '== namespaces'; for n in /proc/1/ns/*; do echo "${n##*/} $(readlink $n)"; done
echo '== hostname'; hostname
echo '== umask'; umask; grep ^Umask /proc/1/status
echo '== core limit'; grep '^Max core file size' /proc/1/limits
echo '== session'; cut -d ' ' -f 4-8 /proc/1/stat
echo '== fds'; f=0
while [ $f -lt 1024 ]; do
    [ -L /proc/1/fd/$f ] && echo "$f $(readlink /proc/1/fd/$f)"; f=$((f + 1))
done
echo '== environment'; tr '\0' '\n' < /proc/1/environ
echo '== directory'; pwd
echo '== oom score'; cat /proc/1/oom_score_adj
echo '== interfaces'; cut -d : -f 1 /proc/net/dev
for i in /sys/class/net/*; do echo "$i $(cat $i/flags) $(cat $i/operstate)"; done
echo '== devices'
stat -c '%n %F %a %u %g %t:%T' / /proc /sys /dev /dev/* /dev/pts/* /dev/shm/.
for l in /dev/*; do [ -L $l ] && echo "$l -> $(readlink $l)"; done
echo '== end'
"""

# What a shell changes or cannot ask, from programs that are PID 1 themselves.
SIGNAL_PROBE = ["/bin/grep", "-E", "^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):", "/proc/self/status"]

KEYRING_PROBE = r"""
#include <linux/keyctl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    char text[200];
    long length = syscall(SYS_keyctl, KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, text, sizeof text);
    return length <= 0 || puts(text) < 0;
}
"""

ASPECTS = [*re.findall(r"== ([a-z ]+)'", PROBE)[:-1], "signals", "session keyring"]

State = dict[str, list[str]]
Runner = Callable[[Path, list[str]], str]


def parse_probe(text: str) -> State:
    state: State = {}
    for line in text.splitlines():
        if line.startswith("== "):
            lines = state[line.removeprefix("== ")] = []
        else:
            lines.append(line)
    assert "end" in state, "the probe did not run to its end"
    base = int(state["id maps"][0].split()[1])
    state["mounts"] = sorted(normal_mount(line, base) for line in state["mounts"])
    state["id maps"] = [re.sub(f" +{base} +", " BASE ", line) for line in state["id maps"]]
    state["namespaces"] = [new_or_shared(line) for line in state["namespaces"]]
    state["fds"] = [re.sub(r"\[\d+\]", "", line) for line in state["fds"]]
    state["environment"].sort()
    return state


def normal_mount(line: str, base: int) -> str:
    """A line of mountinfo (proc(5)) without ids of mounts, devices, peers; host ids as inside."""
    left, right = (part.split(" ") for part in line.split(" - "))
    root, target, options, *propagation = left[3:]
    fs_type, source, super_options = right
    peers = [re.sub(r":\d+", "", tag) for tag in propagation]
    # mount(2) makes a whole file system read-only, fsmount(2) a mount of it; "options" has either.
    shown = [inside_id(option, base) for option in super_options.split(",")[1:]]
    return " ".join([target, root, fs_type, source, options, *peers, ",".join(shown)])


def inside_id(option: str, base: int) -> str:
    """uid=N and gid=N of a mount are the host's ids, whoever reads them."""
    name, _, value = option.partition("=")
    if name not in {"uid", "gid"} or not base <= int(value) < base + ID_COUNT:
        return option
    return f"{name}={int(value) - base}"


def new_or_shared(line: str) -> str:
    name, link = line.split(" ")
    return f"{name} {'shared' if link == os.readlink(f'/proc/self/ns/{name}') else 'new'}"


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("floor") / "floor_a"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(SOURCE)], check=True
    )
    return program


@pytest.fixture(scope="module")
def run_floor(floor: Path) -> Runner:
    def run(root: Path, args: list[str]) -> str:
        command = [str(floor), str(root), *args]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def run_library(root: Path, args: list[str]) -> str:
    # The floor covers nothing of /proc and /sys, and has no filter.
    config = Config(root, seccomp=None, masked_paths=(), readonly_paths=())
    result = container.run(args, config=config, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert isinstance(result.stdout, str)
    return result.stdout


def observe(run: Runner, root: Path) -> State:
    return parse_probe(run(root, ["/bin/sh", "-c", PROBE]))


def observe_all(run: Runner, root: Path) -> State:
    return observe(run, root) | {
        "signals": run(root, SIGNAL_PROBE).splitlines(),
        "session keyring": run(root, ["/bin/keyring"]).splitlines(),
    }


@pytest.fixture(scope="module")
def probe_root(rootdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rootdir` and /bin/keyring."""
    root = tmp_path_factory.mktemp("probe") / "root"
    shutil.copytree(rootdir, root, symlinks=True)
    command = ["gcc", "-static", "-x", "c", "-", "-o", str(root / "bin/keyring")]
    subprocess.run(command, input=KEYRING_PROBE, text=True, check=True)
    return root


@pytest.fixture(scope="module")
def floor_state(run_floor: Runner, probe_root: Path) -> State:
    return observe_all(run_floor, probe_root)


@pytest.fixture(scope="module")
def library_state(probe_root: Path) -> State:
    return observe_all(run_library, probe_root)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_floor_and_library_end_in_the_same_state(
    aspect: str, floor_state: State, library_state: State
) -> None:
    assert floor_state[aspect]
    assert floor_state[aspect] == library_state[aspect]


def test_floor_has_the_rights_of_the_default_container(floor_state: State) -> None:
    kept = f"{DOCKER_CAPABILITIES:016x}"
    none = f"{0:016x}"
    sets = dict(line.split(":\t") for line in floor_state["capabilities"])
    assert sets == {"CapInh": none, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": none}
    assert "NoNewPrivs:\t1" in floor_state["privileges"]
    assert floor_state["ids"] == ["Uid:\t0\t0\t0\t0", "Gid:\t0\t0\t0\t0", "Groups:\t0 ", "allow"]
    assert [line.split(" ")[0] for line in floor_state["fds"]] == ["0", "1", "2"]
    assert {line.split("\t")[1] for line in floor_state["signals"]} == {none}
    assert floor_state["session keyring"] == ["keyring;0;0;3f030000;_ses"]


def test_floor_shares_no_namespace_but_time_with_the_host(floor_state: State) -> None:
    shared = {line.split(" ")[0] for line in floor_state["namespaces"] if line.endswith("shared")}
    assert shared == {"time", "time_for_children"}


COVERED = """
grep Seccomp: /proc/self/status
for path in /proc/keys /proc/timer_list; do wc -c <$path; done
(echo x >/proc/sys/kernel/domainname) 2>&1 | grep -o 'Read-only file system'
"""


@pytest.mark.needs("libseccomp", "x86_64")
def test_floor_b_covers_and_filters_what_the_library_does_by_default(
    floor: Path, rootdir: Path, tmp_path: Path
) -> None:
    profile = SeccompProfile.default()
    native = ARCHITECTURES["SCMP_ARCH_X86_64"]
    found = rules_for(profile, native, default_capabilities(), (6, 1))
    rules = [rule for _, rule in found]
    (tmp_path / "filter").write_bytes(Libseccomp().compile(profile, rules, [native.oci]))
    options = [word for path in MASKED_PATHS for word in ("--mask", path)]
    options += [word for path in READONLY_PATHS for word in ("--read-only", path)]
    options += ["--filter", str(tmp_path / "filter")]
    command = [str(floor), *options, str(rootdir), "/bin/sh", "-c", COVERED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "Seccomp:\t2\n0\n0\nRead-only file system\n"
    result = container.run(["/bin/sh", "-c", COVERED], root=rootdir, text=True)
    assert result.stdout == done.stdout


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


@pytest.fixture
def shared_root(fresh_root: Path) -> Iterator[Path]:
    """A root directory on a mount of the kind that systemd makes of all: with peers."""
    mount("--bind", str(fresh_root), str(fresh_root))
    try:
        mount("--make-shared", str(fresh_root))
        yield fresh_root
    finally:
        subprocess.run(["umount", "--recursive", str(fresh_root)], check=True)


def mounts_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split(" ")[4] for line in lines]
    return [target for target in targets if Path(target).is_relative_to(path)]


def test_on_a_shared_mount_both_end_in_the_same_state_and_the_host_keeps_its_own(
    run_floor: Runner, shared_root: Path
) -> None:
    floor_state = observe(run_floor, shared_root)
    assert mounts_below(shared_root) == [str(shared_root)]
    library_state = observe(run_library, shared_root)
    assert mounts_below(shared_root) == [str(shared_root)]
    assert floor_state["mounts"] == library_state["mounts"]


def test_floor_ends_with_the_status_of_its_command(floor: Path, rootdir: Path) -> None:
    done = subprocess.run([floor, rootdir, "/bin/sh", "-c", "exit 7"], check=False)
    assert done.returncode == 7


@pytest.mark.parametrize(
    ("missing", "step"), [("dev", "dev"), ("proc", "proc"), ("bin/busybox", "execve")]
)
def test_floor_names_the_step_that_fails(
    floor: Path, fresh_root: Path, missing: str, step: str
) -> None:
    gone = fresh_root / missing
    gone.rmdir() if gone.is_dir() else gone.unlink()
    done = subprocess.run(
        [floor, fresh_root, "/bin/busybox", "true"], capture_output=True, text=True, check=False
    )
    said = f"floor_a: {step}: No such file or directory (errno 2)\n"
    assert (done.returncode, done.stderr) == (FAILED, said)


def test_floor_takes_its_container_along_when_it_is_killed(floor: Path, rootdir: Path) -> None:
    command = [str(floor), str(rootdir), "/bin/sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGKILL)
        # The container holds the other end of the pipe as long as it lives.
        assert select.select([process.stdout], [], [], 10)[0]
        assert process.stdout.read() == b""
