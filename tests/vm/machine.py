# SPDX-License-Identifier: Apache-2.0
"""One machine: what its initramfs holds and how QEMU is called."""

import json
import os
import shlex
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm import SetupError, debian, etc, protocol
from vm.cpio import Entry, archive, directory
from vm.kernels import Kernel

SCRATCH = "/scratch"  # short: sockets with paths of at most 107 bytes are made below it
SCRATCH_SIZE = 8 << 30  # sparse
MEMORY_MIB = 3072  # the host gives only what is touched
PROCESSORS = 2
# A panic ends the machine at once, an oops is a panic; no cgroup v1 may take a controller away;
# the rest is speed. QEMU translates code for its addresses: programs at random ones are translated
# anew at each start. With a second processor at work everything takes half as long again.
KERNEL_COMMAND_LINE = (
    "console=ttyS0 panic=-1 oops=panic cgroup_no_v1=all psi=1 mitigations=off nokaslr norandmaps"
    " maxcpus=1"
)
PASSED = ("CI", "PYTEST_ADDOPTS", "PYTEST_TIMEOUT")  # from the harness's own environment
HIDDEN = ("/dev", "/proc", "/run", "/sys")  # of the host, by the machine's own
HERE = Path(__file__).resolve().parent

# The needs (tests/needs.py) that the machine meets, so that no test may be skipped for them.
PROVIDES = (
    "root",
    "user",
    "user_python",
    "rootless",
    "single_id",
    "userns",
    "idmap",
    "overlay",
    "vm",
    "apparmor",
    "cgroup2",
    "x86_64",
)
# The host's, where they are as after `make test-deps`.
PROVIDES_OF_HOST = (
    "apparmor_parser",
    "busybox",
    "gcc",
    "ip",
    "libseccomp",
    "musl-gcc",
    "newgidmap",
    "newuidmap",
    "nft",
    "readelf",
    "strace",
    "tmux",
)
PROVIDES_SINCE = {"landlock": (6, 2)}
# A service's cgroup holds the tests themselves, and so can give its children no controller.
PROVIDES_WITHOUT_SYSTEMD = tuple(
    f"cgroup2:{controller}" for controller in ("cpu", "cpuset", "io", "memory", "pids")
)


@dataclass(frozen=True)
class Job:
    """What to run inside, and how."""

    tree: Path
    command: tuple[str, ...]
    systemd: bool = False
    breaking: str = ""  # "", panic, hang, lost: what to do on purpose in place of the command
    shell: tuple[int, int] | None = None  # rows and columns of the terminal


def pytest_command(arguments: Sequence[str]) -> tuple[str, ...]:
    """The tests' command, with the interpreter (and so the virtual environment) of this one."""
    report = f"--junit-xml={protocol.REPORT_FILE}"
    # Its plugin imports hypothesis at every start, seconds in here; the tests still can.
    return (sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", report, *arguments)


def initramfs(kernel: Kernel, job: Job, accounts: etc.Accounts) -> bytes:
    """The archive that makes the machine."""
    users = etc.choose_users(accounts, SCRATCH)
    modules = kernel.boot_modules()
    agent = [sys.executable, "-S", "-E", str(HERE / "guest.py"), "/" + etc.CONFIG]
    files = etc.account_files(accounts, users) + etc.machine_files()
    files.append(Entry(etc.CONFIG, json.dumps(_config(kernel, job, users)).encode()))
    init = agent
    if job.systemd:
        files += etc.systemd_files(users[0], " ".join(systemd_word(word) for word in agent))
        init = ["/lib/systemd/systemd", f"--unit={etc.TARGET}"]
    conf = {
        "modules": " ".join(name for name, _ in modules),
        "lib_modules": str(kernel.modules),
        "release": kernel.release,
        "scratch": SCRATCH,
        "set_up_failed": protocol.SETUP_FAILED,
    }
    return archive(
        [
            _program("bin/busybox", kernel.busybox.read_bytes()),
            _program("init", (HERE / "init.sh").read_bytes()),
            Entry("conf", shell_settings(conf, init).encode()),
            *(Entry(f"modules/{name}.ko", data) for name, data in modules),
            directory("files"),
            *(Entry(f"files/{file.path}", file.data, file.mode) for file in files),
        ]
    )


def shell_settings(settings: Mapping[str, str], arguments: Sequence[str]) -> str:
    """A shell script that sets variables and its caller's arguments."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return "\n".join([*lines, f"set -- {shlex.join(arguments)}", ""])


def systemd_word(word: str) -> str:
    """One word of an ExecStart line (systemd.service(5), COMMAND LINES)."""
    quoted = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{quoted}"'


def provided(release: str, systemd: bool) -> list[str]:
    """The needs that are met under this kernel."""
    version = tuple(int(part) for part in release.split(".")[:2])
    return [
        *PROVIDES,
        *PROVIDES_OF_HOST,
        *(() if systemd else PROVIDES_WITHOUT_SYSTEMD),
        *(need for need, since in PROVIDES_SINCE.items() if version >= since),
        "kernel>={}.{}".format(*version),
    ]


def environment(
    kernel: Kernel, users: Sequence[etc.User], systemd: bool, host: Mapping[str, str], path: str
) -> dict[str, str]:
    """The environment of the tests inside."""
    own = {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": host.get("TERM", "dumb"),
        "PATH": path,
        "TMPDIR": SCRATCH,
        "CONTAINER_VM": "systemd" if systemd else "own-init",
        "CONTAINER_VM_USER": users[0].name,
        "CONTAINER_VM_PLAIN_USER": users[1].name,
        # Starting a process takes 10 to 50 times as long as outside.
        "PYTEST_TIMEOUT": "300",
        "CONTAINER_MUST_RUN": ",".join(provided(kernel.release, systemd)),
    }
    passed = {name: host[name] for name in PASSED if name in host}
    return own | passed


def passages(paths: Sequence[Path]) -> list[str]:
    """The directories on the way to `paths` that an ordinary user may not walk through."""
    ways = {parent for path in paths for parent in [path, *path.parents]}
    return sorted(str(way) for way in ways if way.is_dir() and not way.stat().st_mode & 0o001)


def check_places(paths: Sequence[Path]) -> None:
    """Raise SetupError where the machine would not see one of `paths` at the same place."""
    for path in paths:
        for hidden in HIDDEN:
            if path.is_relative_to(hidden):
                raise SetupError(f"{path}: the machine has a {hidden} of its own and cannot see it")


def qemu_command(kernel: Kernel, folder: Path, console: Path, channel: int) -> list[str]:
    """QEMU's arguments; `folder` holds initramfs and disk, `channel` is a socket's fd."""
    security = "passthrough" if os.geteuid() == 0 else "none"
    machine = "-M pc -accel tcg,thread=multi -cpu max -nodefaults -no-user-config -no-reboot"
    return [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *machine.split()),
        *("-display", "none", "-smp", str(PROCESSORS), "-m", str(MEMORY_MIB)),
        *("-kernel", str(kernel.vmlinux), "-initrd", str(folder / "initramfs")),
        *("-append", KERNEL_COMMAND_LINE),
        *("-serial", f"file:{console}"),
        *("-fsdev", f"local,id=root,path=/,readonly=on,multidevs=remap,security_model={security}"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-drive", f"if=virtio,format=raw,cache=unsafe,file={folder / 'disk'}"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=channel,fd={channel}"),
        *("-device", "virtserialport,chardev=channel"),
    ]


def _config(kernel: Kernel, job: Job, users: Sequence[etc.User]) -> dict[str, object]:
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    return {
        "tree": str(job.tree),
        "command": job.command,
        "env": environment(kernel, users, job.systemd, os.environ, debian.search_path()),
        "users": [user.plain() for user in users],
        "scratch": SCRATCH,
        "passages": passages([job.tree, *prefixes]),
        "break": job.breaking,
        "shell": job.shell,
    }


def _program(path: str, data: bytes) -> Entry:
    return Entry(path, data, stat.S_IFREG | 0o755)
