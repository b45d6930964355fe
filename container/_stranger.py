# SPDX-License-Identifier: Apache-2.0
"""A program in the namespaces of a process that no container of ours has.

Nobody says how that process was set up, so what its new neighbour gets is what /proc tells: no
capability that the process has not, and its no_new_privs. A seccomp filter cannot be copied; where
the process has one, its new neighbour gets the default one.
"""

import os
from dataclasses import dataclass

from container._capabilities import Capabilities, from_mask
from container._config import NAMESPACE_FLAGS, Config, ExecConfig, Process
from container._errors import ConfigError, StateError, launch_error
from container._identity import Identity
from container._join import (
    GONE,
    NO_ROWS,
    Manner,
    as_process,
    deadline_of,
    explain_join,
    refuse_foreign_terminal,
    refuse_late,
    refuse_names,
    with_capabilities,
)
from container._launcher import Base, Join, StartFlag, above_stdio, join_foreign, wait_readable
from container._plan import Plan, filter_of, plan_process
from container._process import ExecProcess
from container._seccomp._compiler import Filter
from container._streams import open_process_stdio
from container._tree import end_tree

_SETS = {"bounding": "CapBnd", "effective": "CapEff", "permitted": "CapPrm"}
# Those that a launcher is asked about: see `Launcher.is_where`.
_CALLERS = ("user", "mnt", "net", "ipc", "uts", "cgroup")


@dataclass(frozen=True, slots=True)
class _Stranger:
    namespaces: dict[str, str]
    capabilities: dict[str, int]
    no_new_privileges: bool
    is_filtered: bool
    may_set_groups: bool


def run_stranger(
    pid: int, wanted: ExecConfig, manner: Manner, names: frozenset[str]
) -> ExecProcess:
    """Run a command in the namespaces of a process; returns once it runs."""
    try:
        pidfd = above_stdio(os.pidfd_open(pid))
    except ProcessLookupError:
        raise StateError(f"there is no process {pid}") from None
    except OSError as error:  # EINVAL: a thread
        raise StateError(f"{pid} is no process: {error.strerror}") from None
    try:
        return _run(pid, pidfd, _plan(_look_at(pid, pidfd), wanted, names), wanted, manner)
    finally:
        os.close(pidfd)


def _run(pid: int, pidfd: int, plan: Plan, wanted: ExecConfig, manner: Manner) -> ExecProcess:
    stdio = open_process_stdio(wanted)
    try:
        child = join_foreign(
            plan.request,
            stdio.child,
            pidfd=pidfd,
            namespaces=plan.request.base.kept_namespaces,
            end_tree=end_tree,  # what it cannot end is no container's
            deadline=deadline_of(wanted, manner),
        )
        stdio.close_child_ends()
        refuse_late(child, wanted, manner)
        if child.failure is None:
            return as_process(child, stdio.take(), wanted, manner)
        child.close()
        if (child.failure.errno or None) in GONE and wait_readable(pidfd, 0):
            raise StateError(f"process {pid} ended before the command ran")
        raise explain_join(child.failure, plan)
    finally:
        stdio.close()


def _look_at(pid: int, pidfd: int) -> _Stranger:
    try:
        stranger = _read(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise StateError(f"process {pid} has ended") from None
    except PermissionError as error:
        detail = f"may not look at process {pid}"
        raise launch_error("target", error.errno, detail, error.filename) from None
    if wait_readable(pidfd, 0):  # what was read may be of a later process with this number
        raise StateError(f"process {pid} has ended")
    return stranger


def _read(pid: int) -> _Stranger:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    with open(f"/proc/{pid}/setgroups", encoding="ascii") as file:
        may_set_groups = file.read().strip() == "allow"
    return _Stranger(
        {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACE_FLAGS},
        {name: int(status[key], 16) for name, key in _SETS.items()},
        status.get("NoNewPrivs") == "1",
        status.get("Seccomp") == "2",
        may_set_groups,
    )


def _plan(stranger: _Stranger, wanted: ExecConfig, names: frozenset[str]) -> Plan:
    joined = [
        name for name in names if stranger.namespaces[name] != os.readlink(f"/proc/self/ns/{name}")
    ]
    if not joined:
        raise ConfigError("the process shares all of these with its caller", field="namespaces")
    refuse_foreign_terminal(wanted, sum(NAMESPACE_FLAGS[name] for name in joined))
    user = wanted.user
    if user is None:
        user = "0:0" if "user" in joined else f"{os.geteuid()}:{os.getegid()}"
    refuse_names(user)
    process = Process(
        wanted.args,
        env=wanted.env,
        cwd=wanted.cwd,
        user=user,
        tty=wanted.tty,
        tty_size=wanted.tty_size,
    )
    flags = _flags(stranger, "user" in joined)
    seccomp = _filter_for(stranger)
    base = Base(
        clone_flags=sum(NAMESPACE_FLAGS[name] for name in joined),
        kept_namespaces=tuple(name for name in _CALLERS if name not in joined),
        flags=flags,
        table=NO_ROWS,
        hostname="",
        domainname="",
        bounding=stranger.capabilities["bounding"],
        effective=stranger.capabilities["effective"],
        permitted=stranger.capabilities["permitted"],
        inheritable=0,
        ambient=0,
        filter=seccomp.program,
        filter_flags=seccomp.flags,
    )
    denied = StartFlag(0) if flags & StartFlag.SET_GROUPS else StartFlag.DENY_SETGROUPS
    identity = Identity(((), ()), denied, False, ((), ()), True)
    request = plan_process(Config(), process, identity, with_capabilities(base, wanted), flags)
    request.join = Join(0, str(wanted.root or ""))
    return Plan(request, identity)


def _filter_for(stranger: _Stranger) -> Filter:
    if not stranger.is_filtered:
        return Filter(b"", 0)
    bounding = from_mask(stranger.capabilities["bounding"])
    return filter_of(Config(capabilities=Capabilities(bounding=bounding)))


def _flags(stranger: _Stranger, user_joined: bool) -> StartFlag:
    flags = StartFlag.FRESH_USER if user_joined else StartFlag(0)
    if stranger.may_set_groups if user_joined else os.geteuid() == 0:
        flags |= StartFlag.SET_GROUPS
    if stranger.no_new_privileges:
        flags |= StartFlag.NO_NEW_PRIVS
    return flags
