# SPDX-License-Identifier: Apache-2.0
"""The files that the machine has in place of the host's: users, systemd's units. Pure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from vm.cpio import Entry, directory, link

RANGE = 65536
FIRST_RANGE = 100000  # where Debian's adduser begins too
CONFIG = "etc/container-vm.json"
TARGET = "container-vm.target"


@dataclass(frozen=True)
class User:
    """An ordinary user of the machine; `subid` is the start of its range, or None."""

    name: str
    uid: int
    subid: int | None
    home: str

    def plain(self) -> dict[str, object]:
        """For the machine's configuration."""
        return asdict(self)


@dataclass(frozen=True)
class Accounts:
    """The texts of the host's account files."""

    passwd: str
    group: str
    subuid: str
    subgid: str


def choose_users(accounts: Accounts, scratch: str) -> tuple[User, User]:
    """One user with a subuid range and one without, with ids that the host does not use."""
    first = _free_id(accounts, 2000)
    second = _free_id(accounts, first + 1)
    return (
        User("vmuser", first, _free_range(accounts), f"{scratch}/vmuser"),
        User("vmplain", second, None, f"{scratch}/vmplain"),
    )


def account_files(accounts: Accounts, users: Iterable[User]) -> list[Entry]:
    """The account files with `users` added to what the host has."""
    passwd, group, subids = "", "", ""
    for user in users:
        # "*" and not "x": with "x" PAM wants a line in /etc/shadow
        passwd += f"{user.name}:*:{user.uid}:{user.uid}::{user.home}:/bin/sh\n"
        group += f"{user.name}:*:{user.uid}:\n"
        if user.subid is not None:
            subids += f"{user.name}:{user.subid}:{RANGE}\n"
    return [
        Entry("etc/passwd", (accounts.passwd + passwd).encode()),
        Entry("etc/group", (accounts.group + group).encode()),
        Entry("etc/subuid", (accounts.subuid + subids).encode()),
        Entry("etc/subgid", (accounts.subgid + subids).encode()),
    ]


def machine_files() -> list[Entry]:
    """What every machine has of its own."""
    return [
        Entry("etc/hostname", b"vm\n"),
        Entry("etc/hosts", b"127.0.0.1 localhost vm\n::1 localhost\n"),
        Entry("etc/fstab", b""),  # the host's disks are not here, systemd would wait for them
        Entry("etc/machine-id", b"6d616368696e6520666f722074657374\n"),
    ]


# Slow on a 9p root and of no use on a machine that lives for one run.
MASKED = (
    "systemd-tmpfiles-setup.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-hwdb-update.service",
    "systemd-journal-flush.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-utmp.service",
    "systemd-timesyncd.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysusers.service",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "ldconfig.service",
    "apparmor.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "timers.target",
    "tmp.mount",
)

UNIT = """\
[Unit]
Description=The system tests
Requires=user@{uid}.service dbus.socket
After=user@{uid}.service dbus.socket systemd-logind.service

[Service]
Type=exec
ExecStart={command}
# The tests make cgroups below their own; an OOM kill in one of them is not the service's end.
Delegate=yes
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=1024:1048576
"""

# By default a user's systemd gets memory and pids alone.
DELEGATION = """\
[Service]
Delegate=cpu cpuset io memory pids
"""

TARGET_UNIT = """\
[Unit]
Description=The test machine
Requires=basic.target container-vm.service
Wants=systemd-logind.service
After=basic.target
AllowIsolate=yes
"""


def systemd_files(user: User, command: str) -> list[Entry]:
    """systemd's own: a small target that runs `command`, and a lingering session of `user`."""
    units = "etc/systemd/system"
    return [
        *(link(f"{units}/{name}", "/dev/null") for name in MASKED),
        Entry(f"{units}/{TARGET}", TARGET_UNIT.encode()),
        Entry(f"{units}/user@.service.d/delegation.conf", DELEGATION.encode()),
        Entry(f"{units}/container-vm.service", UNIT.format(uid=user.uid, command=command).encode()),
        Entry(f"var/lib/systemd/linger/{user.name}", b""),
        directory("var/tmp"),
    ]


def _ids(*texts: str) -> set[int]:
    return {int(line.split(":")[2]) for text in texts for line in _rows(text, 3)}


def _rows(text: str, fields: int) -> list[str]:
    return [line for line in text.splitlines() if line.count(":") >= fields - 1]


def _free_id(accounts: Accounts, start: int) -> int:
    taken = _ids(accounts.passwd, accounts.group)
    return next(number for number in range(start, 60000) if number not in taken)


def _free_range(accounts: Accounts) -> int:
    ends = [FIRST_RANGE]
    for line in _rows(accounts.subuid, 3) + _rows(accounts.subgid, 3):
        _, start, count = line.split(":")
        ends.append(int(start) + int(count))
    return max(ends)
