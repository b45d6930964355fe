# SPDX-License-Identifier: Apache-2.0
"""From Config and Process to the launcher's request, and from its answer to an error."""

import fcntl
import os
import re
import resource
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from errno import (
    E2BIG,
    EACCES,
    EDQUOT,
    EINVAL,
    ENOEXEC,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESTALE,
    EXDEV,
)
from functools import lru_cache
from typing import Self, cast

from container import _ids
from container._accounts import look_up
from container._capabilities import Capability, to_mask
from container._config import (
    NAMESPACE_FLAGS,
    RLIMITS,
    Config,
    HostRoot,
    Join,
    Namespaces,
    Overlay,
    Process,
)
from container._device_rules import device_program
from container._devices import find_nodes
from container._errors import (
    CgroupError,
    ConfigError,
    LaunchError,
    UnsupportedError,
    launch_error,
)
from container._hierarchy import find_hierarchy, is_delegation_boundary
from container._hints import masked_hint, namespace_hint, noexec_hint, rights_hint
from container._identity import Identity, groups_of, identify, needs_ranges, shared_identity
from container._labels import require_labels
from container._landlock import ALL_ACCESS, landlock_rules
from container._launcher import (
    MAX_ROWS,
    MAX_SOURCES,
    Base,
    Child,
    Failure,
    Launcher,
    RowTable,
    Source,
    StartFlag,
    StartRequest,
    launch,
)
from container._limits import settings_of
from container._rootfs import (
    Op,
    Row,
    RowFlag,
    Surroundings,
    host_layout,
    lower_of,
    needs_locked_mounts,
    place_of,
    plan_rows,
    plan_stage,
    upper_and_work,
)
from container._seccomp._compiler import NEW_LISTENER, Filter, compile_profile
from container._shared import (
    in_order,
    look_at_user_namespace,
    open_joined,
    owns_pids,
    refuse_own_pids,
    slot_of,
)
from container._users import Account

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INFINITY = 2**64 - 1
_CLONE_NEWTIME = 0x80
_MACHINES_BY_PERSONALITY = {"i686": "x86_64", "armv8l": "aarch64", "armv7l": "aarch64"}


@dataclass(frozen=True, slots=True)
class _Foundation:
    """What a Config and the caller's ids decide, kept for the next start of the like."""

    base: Base
    identity: Identity


@dataclass(slots=True)
class Plan:
    """Everything that a start needs, but the stdio."""

    request: StartRequest
    identity: Identity
    joined: tuple[tuple[str, Join], ...] = ()  # in the order of request.joined

    @property
    def rows(self) -> Sequence[Row]:
        return self.request.base.table.rows


@dataclass(frozen=True, slots=True)
class _Caller:
    """What a plan depends on beside Config and Process."""

    euid: int
    egid: int
    user_namespace: str
    files: tuple[int, int]  # RLIMIT_NOFILE
    cwd: str  # where relative sources begin, "/" without any


def _look_at_caller(config: Config) -> _Caller:
    try:
        user_namespace = os.readlink("/proc/self/ns/user")
    except OSError as error:
        raise launch_error("launcher", error.errno, "needs /proc", error.filename) from error
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _Caller(os.geteuid(), os.getegid(), user_namespace, files, _cwd_for(config))


class Planner:
    """Plans starts of one Process in one Config, and keeps the plan while it holds."""

    def __init__(self, config: Config, process: Process, given: object = None) -> None:
        self.config = config
        self.process = process
        self.given = given  # what `config` was made from
        self._kept: tuple[_Caller, StartFlag, Plan] | None = None

    def plan(self, flags: StartFlag) -> Plan:
        """See `make_plan`."""
        caller = _look_at_caller(self.config)
        kept = self._kept
        if kept is not None and kept[:2] == (caller, flags):
            return kept[2]
        plan = _make_plan(self.config, self.process, flags, caller)
        # Else it depends on files in the root, or on where links lead.
        shares = bool(self.config.namespaces.joined())
        if self.process.user is None and not isinstance(self.config.root, Overlay) and not shares:
            self._kept = (caller, flags, plan)
        return plan


def make_plan(config: Config, process: Process, flags: StartFlag) -> Plan:
    """Plan a start; ``flags``: GATE to stop before the program, QUIET."""
    return _make_plan(config, process, flags, _look_at_caller(config))


def _make_plan(config: Config, process: Process, flags: StartFlag, caller: _Caller) -> Plan:
    config = _resolve_upper(config)
    if config.hooks is not None:
        flags |= StartFlag.HOOKS if config.hooks.before_start else StartFlag(0)
        config = replace(config, hooks=None)  # functions are not remembered
    account = look_up(process.user, config)
    ranges = None
    own = caller.euid != 0 and config.namespaces.user is True and not config.uid_mappings
    if own and needs_ranges(account, process):
        ranges = _ids.own_ranges()
    # Whom it shares namespaces with is not remembered: that would keep it.
    lay = _lay_foundation.__wrapped__ if config.namespaces.joined() else _lay_foundation
    foundation = lay(config, caller, ranges, tty=process.tty)
    if flags & StartFlag.QUIET and foundation.base.filter_flags & NEW_LISTENER:
        raise ConfigError(
            "with NOTIFY, run() has nobody to answer: popen()", field="config.seccomp"
        )
    flags |= foundation.base.flags
    flags |= attribute_flags(process)
    if process.init:
        flags |= StartFlag.INIT
    alone = flags & StartFlag.LEASE and not config.namespaces.joined()
    if alone and _may_share_memory(flags, foundation.base.clone_flags):
        flags |= StartFlag.SHARE_MEMORY
    request = _plan_process(process, account, foundation, flags, caller.files)
    request.clocks = _clocks(config)
    joined = in_order(config.namespaces.joined())
    request.joined = [NAMESPACE_FLAGS[name] for name, _ in joined]
    if isinstance(config.namespaces.user, Join):
        request.shared_slot = slot_of(foundation.identity.known)
    return Plan(request, foundation.identity, joined)


def _clocks(config: Config) -> bytes:
    if config.time_offsets and _kernel() < (6, 3):  # execve leaves the program where it was
        raise UnsupportedError(
            "shifted clocks need Linux 6.3",
            field="config.time_offsets",
        )
    lines = []
    for name, value in config.time_offsets.items():
        # Exact for what is a whole number of seconds.
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        whole, part = divmod(seconds, 1)
        lines.append(f"{name} {int(whole)} {int(part * 10**9)}\n")
    return "".join(lines).encode()


def attribute_flags(process: Process) -> StartFlag:
    """Which of the attributes that have no value for "as it is" are asked for."""
    flags = StartFlag(0)
    if process.nice is not None:
        flags |= StartFlag.NICE
    if process.oom_score_adj is not None:
        flags |= StartFlag.OOM_SCORE
    return flags


def plan_process(
    config: Config, process: Process, identity: Identity, base: Base, flags: StartFlag
) -> StartRequest:
    """The part of a plan that is about the process."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    account = look_up(process.user, config)
    return _plan_process(process, account, _Foundation(base, identity), flags, files)


def _plan_process(
    process: Process,
    account: Account,
    foundation: _Foundation,
    flags: StartFlag,
    files: tuple[int, int],
) -> StartRequest:
    if process.tty:
        flags |= StartFlag.TERMINAL
    groups = groups_of(process, account, foundation.identity)
    env = _environment(process, account)
    return StartRequest(
        base=foundation.base,
        flags=flags,
        programs=_programs(str(process.args[0]), env["PATH"]),
        args=cast(Sequence[str], process.args),
        env=[f"{name}={value}" for name, value in env.items()],
        groups=groups,
        limits=_limits(process, files),
        cwd=str(process.cwd or "/"),
        uid=account.uid,
        gid=account.gid,
        umask=process.umask,
        cpus=_cpu_mask(process.cpu_affinity),
        nice=process.nice or 0,
        oom_score=process.oom_score_adj or 0,
        passed=process.pass_fds,
        map_programs=foundation.identity.programs,
        terminal_size=process.tty_size,
    )


@lru_cache(maxsize=64)
def _lay_foundation(
    config: Config, caller: _Caller, ranges: _ids.Ranges | None, *, tty: bool
) -> _Foundation:
    namespaces = config.namespaces
    if isinstance(namespaces.user, Join):
        identity = shared_identity(look_at_user_namespace(config))
    else:
        identity = identify(config, ranges)
    flags = identity.flags
    if isinstance(namespaces.user, Join):
        flags &= ~StartFlag.DENY_SETGROUPS  # it was denied when the maps were written
    for wanted, flag in (
        (namespaces.net is True, StartFlag.LOOPBACK),
        (needs_locked_mounts(config), StartFlag.LOCK_MOUNTS),
        (not config.use_pivot_root, StartFlag.CHROOT),
        (config.no_new_privileges, StartFlag.NO_NEW_PRIVS),
        (_needs_cgroup(config), StartFlag.CGROUP),
    ):
        if wanted:
            flags |= flag
    require_labels(config)
    if _needs_cgroup(config):
        _require_binding_cgroup(config, identity)
    if isinstance(namespaces.user, Join) and namespaces.pid is not True:
        _require_no_locks(config)
    nodes = find_nodes(config, any_id=identity.idmap) if namespaces.user else {}
    around = Surroundings(
        identity.idmap,
        identity.known[1],
        identity.by_fd,
        tuple(nodes.items()),
        tty,
        namespaces.pid is not False or owns_pids(),
    )
    stage = [_absolute(row, caller.cwd) for row in plan_stage(config, around)]
    rows = [
        _absolute(row, caller.cwd) for row in plan_rows(config, host_layout(caller.euid), around)
    ]
    table = RowTable(rows, stage)
    rows = list(table.rows)
    for count, most in ((len(rows), MAX_ROWS), (sum(row.opened for row in rows), MAX_SOURCES)):
        if count > most:
            raise ConfigError(f"too many: {count} mounts and files, at most {most}", field="mounts")
    capabilities = config.capabilities
    seccomp = filter_of(config)
    base = Base(
        clone_flags=namespaces.clone_flags(),
        kept_namespaces=("mnt", "user", *_kept(namespaces)),
        flags=flags,
        table=table,
        hostname=config.hostname if namespaces.uts is True else "",
        domainname=config.domainname or "",
        bounding=to_mask(capabilities.bounding),
        effective=to_mask(capabilities.effective),
        permitted=to_mask(capabilities.permitted),
        inheritable=to_mask(capabilities.inheritable),
        ambient=to_mask(capabilities.ambient),
        filter=seccomp.program,
        filter_flags=seccomp.flags,
        filter_lets_wait=seccomp.lets_wait,
        rules=landlock_rules(config, host_layout(caller.euid).links),
        handled_access=ALL_ACCESS if config.landlock is not None else 0,
        settings=settings_of(config.resources) if config.resources is not None else (),
        devices=device_program(config, caller.euid) if _needs_cgroup(config) else b"",
    )
    return _Foundation(base, identity)


def _needs_cgroup(config: Config) -> bool:
    """Also for what would be left where no PID namespace ends with the first process."""
    return config.resources is not None or config.namespaces.pid is not True


def _require_no_locks(config: Config) -> None:
    """While its mounts are locked (csrc/child.c) it can be traced by its like."""
    if needs_locked_mounts(config):
        raise UnsupportedError(
            "with CAP_SYS_ADMIN it cannot be shared along with namespaces.user: whoever is in both"
            " could get hold of it while its mounts are locked",
            field="namespaces.pid",
        )


def _require_binding_cgroup(config: Config, identity: Identity) -> None:
    """Whoever may mount cgroup2 inside and has the ids of its files could leave it and lift its
    limits; but where the mount has nsdelegate not those of the top of its own namespace.
    """
    mounts = config.nested or Capability.SYS_ADMIN in config.capabilities.bounding
    if not mounts or identity.flags & StartFlag.LEASE or slot_of(identity.known):
        return
    if not config.namespaces.cgroup or not is_delegation_boundary(find_hierarchy().top):
        raise UnsupportedError(
            "with CAP_SYS_ADMIN or nested and ids that own its cgroup it could get out of that and"
            " lift its limits, unless namespaces.cgroup is new and cgroup2 is mounted with"
            " nsdelegate",
            field="resources" if config.resources is not None else "namespaces.pid",
        )


def _absolute(row: Row, cwd: str) -> Row:
    return replace(row, source=os.path.join(cwd, row.source)) if row.opened else row


def _resolve_upper(config: Config) -> Config:
    """With the real paths of upper and work: they are walked below what they have in common."""
    root = config.root
    if not isinstance(root, Overlay) or root.upper is None:
        return config
    upper = os.path.realpath(root.upper)
    work = root.work if root.work is None else os.path.realpath(root.work)
    resolved = replace(root, upper=upper, work=work)
    _check_overlap(resolved)
    return replace(config, root=resolved)


def _check_overlap(root: Overlay) -> None:
    """The kernel lets most of these pass, and what is below would be changed by what is above."""
    upper, work = upper_and_work(root)
    lower = [(f"root.lower[{i}]", os.path.realpath(path)) for i, path in enumerate(lower_of(root))]
    for field, path in (("root.upper", upper), ("root.work", work)):
        for other, directory in [*lower, ("root.upper", upper)]:
            if field != other and _overlap(path, directory):
                raise ConfigError(f"{path!r} and {other}, {directory!r}, overlap", field=field)


def _overlap(a: str, b: str) -> bool:
    return os.path.commonpath((a, b)) in (a, b)


def filter_of(config: Config) -> Filter:
    """What the profile of a Config comes to here."""
    if config.seccomp is None:
        return Filter(b"", 0, lets_wait=True)
    capabilities = config.capabilities.bounding
    if config.nested:  # where the first process makes a namespace it has every capability
        capabilities |= {Capability.SYS_ADMIN}
    system = os.uname()
    # A caller with another personality is told of a 32-bit machine; the launcher is of 64 bits.
    machine = _MACHINES_BY_PERSONALITY.get(system.machine, system.machine)
    major, minor = [*map(int, re.findall(r"\d+", system.release)), 0, 0][:2]
    return compile_profile(config.seccomp, machine, capabilities, (major, minor))


def _kept(namespaces: Namespaces) -> list[str]:
    kept = ("net", "ipc", "uts", "cgroup")
    return [name for name in kept if getattr(namespaces, name) is False]


def _may_share_memory(flags: StartFlag, clone_flags: int) -> bool:
    # Worth 200 us of a start. For leased ids only: with fs.suid_dumpable=1 a change of ids makes
    # the memory dumpable for a moment, and others might have ids that were given. Not where the
    # child waits long, nor where it has to be dumpable itself, nor with a time namespace, which a
    # process that shares memory cannot enter before Linux 6.3.
    # Nor in a control group: out of memory would end all that share it.
    unfit = StartFlag.OOM_SCORE | StartFlag.GATE | StartFlag.LOCK_MOUNTS | StartFlag.DENY_SETGROUPS
    unfit |= StartFlag.CGROUP | StartFlag.HOOKS
    return not (flags & unfit or clone_flags & _CLONE_NEWTIME)


def _environment(process: Process, account: Account) -> dict[str, str]:
    home = account.home or ("/root" if account.uid == 0 else "/")
    env = {"PATH": _DEFAULT_PATH, "HOME": home, "TERM": "xterm", "LANG": "C.UTF-8"}
    return env | dict(process.env or {})


def _programs(program: str, path: str) -> list[str]:
    if "/" in program:
        return [program]
    return [os.path.join(directory or ".", program) for directory in path.split(":")]


def _limits(process: Process, files: tuple[int, int]) -> list[tuple[int, int, int]]:
    limits = {
        # The launcher's own limit of files is raised; the container gets the caller's.
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTPRIO: (0, 0),
        resource.RLIMIT_CORE: (0, 0),  # a core_pattern helper of the host would get the memory
    }
    limits |= {limit.number: (int(limit.soft), int(limit.hard)) for limit in process.rlimits}
    return [
        (number, soft % (_INFINITY + 1), hard % (_INFINITY + 1))
        for number, (soft, hard) in limits.items()
    ]


def _cpu_mask(cpus: Sequence[int] | None) -> bytes:
    if cpus is None:
        return b""
    mask = sum(1 << cpu for cpu in cpus)
    words = -(-mask.bit_length() // 64)  # what the kernel counts in
    return mask.to_bytes(8 * words, "little")


def _cwd_for(config: Config) -> str:
    """Where relative sources begin; looked up only for those."""
    sources = [mount.source or "/" for mount in config.mounts]
    if isinstance(config.root, HostRoot):
        sources += [mount.source or "/" for mount in config.root.extra]
    elif isinstance(config.root, Overlay):
        sources += lower_of(config.root)
    elif config.root is not None:
        sources.append(config.root)
    return "/" if all(map(os.path.isabs, sources)) else os.getcwd()


class Sources(list[Source | None]):
    """What rows bind, opened with the caller's rights and in its mount namespace."""

    def __init__(self, table: RowTable) -> None:
        super().__init__([None] * len(table.rows))
        try:
            for index in table.opened:
                self[index] = _open_source(table.rows[index])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        opened = [source.fd for source in self if source is not None]
        self.clear()
        for fd in opened:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _open_source(row: Row) -> Source:
    flags = os.O_PATH | os.O_CLOEXEC | (os.O_DIRECTORY if row.directory else 0)
    try:
        fd = os.open(row.source, flags)
    except OSError as error:
        raise launch_error("sources", error.errno, f"cannot open {row.what}", row.source) from None
    status = os.fstat(fd)
    return Source(fd, status.st_dev, status.st_ino, stat.S_ISDIR(status.st_mode))


def _check_passed(fd: int, field: str) -> None:
    try:
        flags, mode = fcntl.fcntl(fd, fcntl.F_GETFL), os.fstat(fd).st_mode
    except OSError as error:
        raise ConfigError(
            f"{fd} is no open file descriptor: {error.strerror}", field=field
        ) from None
    if flags & os.O_PATH or stat.S_ISDIR(mode):
        raise ConfigError(
            f"{fd} is a directory or O_PATH: it would lead out of the container; bind that path",
            field=field,
        )


def launch_plan(
    plan: Plan,
    stdio: Sequence[int],
    pipes: int,
    *,
    wait: bool = True,
    by: Launcher | None = None,
) -> Child:
    """Send a plan off, with the child's fds 0 to 2; ``pipes`` has a bit for those that we made.

    ``by`` is a launcher for this container alone.
    """
    identity = plan.identity
    for index, fd in enumerate(plan.request.passed):
        _check_passed(fd, f"pass_fds[{index}]")
    with Sources(plan.request.base.table) as sources, _open_joined(plan) as joined:
        if joined and any(row.flags & RowFlag.PROCFS for row in plan.rows):
            refuse_own_pids(plan.joined, joined)
        try:
            return launch(
                plan.request,
                identity.maps,
                sources,
                stdio,
                joined=joined,
                pipes=pipes,
                by_fd=identity.by_fd,
                wait=wait,
                by=by,
            )
        except CgroupError as error:
            if plan.request.base.clone_flags & NAMESPACE_FLAGS["pid"]:
                raise
            raise UnsupportedError(
                f"sharing it takes a control group, which ends all of the container: {error}",
                field="namespaces.pid",
            ) from error


_NONE_JOINED = nullcontext[Sequence[int]](())


def _open_joined(plan: Plan) -> AbstractContextManager[Sequence[int]]:
    return open_joined(plan.joined) if plan.joined else _NONE_JOINED


# Errors ----------------------------------------------------------------------------------------

_VERBS = {
    Op.BIND: "bind",
    Op.MOUNT: "mount",
    Op.MASK: "mask",
    Op.READ_ONLY: "make read-only:",
    Op.OVERLAY: "mount",
    Op.HANDLE: "use",
    Op.ATTRIBUTES: "make",
    Op.WRITE: "set",
    Op.TERMINAL: "open",
    Op.CONSOLE: "bind",
}

_DETAILS = {
    "request": "the launcher cannot use the request",
    "rights": "the rights of the caller changed",
    "lease": "every range of 65536 host ids is taken",
    "cgroup": "cannot make a control group",
    "clone": "cannot create the namespaces",
    "join": "cannot join the namespaces",
    "time": "cannot shift the clocks",
    "oom-score": "cannot set oom_score_adj",
    "scheduling": "cannot set the processors that may be used",
    "id-maps": "cannot write the id maps of the user namespace",
    "sources": "cannot copy the mounts that are bound",
    "filesystem": "cannot build the file system",
    "terminal": "cannot make the terminal that of its session",
    "rlimits": "cannot set the resource limits",
    "sync": "the launcher ended while it set the container up",
    "handover": "the launcher ended while it set the container up",
    "mount-namespace": "cannot make a mount namespace",
    "session": "cannot start a session with a keyring of its own",
    "setup-ids": "cannot become root of the user namespace",
    "network": "cannot raise the loopback interface",
    "create-hooks": "cannot run hooks before it enters its root",
    "pivot": "cannot make the new root the root",
    "lock-mounts": "cannot lock the flags of the mounts",
    "gate": "the container ended before it was started",
    "start-hooks": "cannot run hooks before the program",
    "bounding": "cannot drop capabilities from the bounding set",
    "capabilities": "cannot set the capabilities",
    "landlock": "cannot confine it by Landlock",
    "no-new-privs": "cannot set no_new_privs",
    "init": "cannot start the tiny init",
    "fds": "cannot lay out the standard streams",
    "seccomp-early": "cannot load the seccomp filter",
    "seccomp": "cannot load the seccomp filter",
}


def explain(failure: Failure, plan: Plan) -> LaunchError:
    """Word what the launcher reported in numbers."""
    request = plan.request
    detail, path = _DETAILS.get(failure.step, f"step {failure.step} failed"), None
    if failure.step in ("sources", "filesystem") and 0 <= failure.row < len(plan.rows):
        row = plan.rows[failure.row]
        verb = _VERBS.get(row.op, "make")
        verb = "copy the mount of" if failure.step == "sources" else verb
        detail = f"cannot {verb} {row.what}"
        path = row.path or (row.source if row.opened else place_of(plan.rows, row))
    elif failure.step == "id-maps" and failure.row >= 0:
        path = request.map_programs[failure.row][0]
        detail = f"{path!r} refused to map the ids"
    elif failure.step == "hostname":
        detail = f"cannot set the hostname {request.base.hostname!r}"
        if request.base.domainname:
            detail += f" or the domain name {request.base.domainname!r}"
    elif failure.step == "scheduling" and failure.row == 0:
        detail = f"cannot set the nice value {request.nice}"
    elif failure.step == "rlimits" and 0 <= failure.row < len(request.limits):
        number, _, hard = request.limits[failure.row]
        shown = "unlimited" if hard == _INFINITY else hard
        detail = f"cannot set {RLIMITS[number]} to {shown}"
    elif failure.step == "ids":
        detail = f"cannot become user {request.uid}, group {request.gid}"
    elif failure.step == "landlock" and 0 <= failure.row < len(request.base.rules):
        path = request.base.rules[failure.row][0]
        detail = f"cannot make a rule for {path!r}"
    elif failure.step == "cgroup" and failure.row == len(request.base.settings):
        detail = "cannot limit the devices of the control group by an eBPF program"
    elif failure.step == "cgroup" and 0 <= failure.row < len(request.base.settings):
        setting = request.base.settings[failure.row]
        detail = f"cannot limit resources.{setting.field}: {setting.file} = {setting.value!r}"
    elif failure.step == "cwd":
        detail, path = f"cannot enter the working directory {request.cwd!r}", request.cwd
    elif failure.step == "exec":
        path = _program(failure, request)
        detail = f"cannot execute {path!r}"
    return launch_error(failure.step, failure.errno or None, detail, path, _hint(failure, plan))


def _program(failure: Failure, request: StartRequest) -> str:
    # With several candidates and none found, what was asked for says more than the last one.
    if 0 <= failure.row < len(request.programs):
        return request.programs[failure.row]
    return request.args[0]


_HINTS = {
    ("landlock", ENOSYS): "this kernel has no Landlock",
    ("landlock", EXDEV): "a link leads into another mount: name the place that it leads to",
    ("landlock", EOPNOTSUPP): "Landlock is off, or older than Linux 6.2, which lets files be cut",
    ("exec", ENOEXEC): "made for another architecture, or a script without '#!'",
    ("exec", E2BIG): "arguments and environment are larger than execve(2) takes",
    ("lock-mounts", ENOSPC): "it takes a user namespace below the one that is shared, and there may"
    " be none: Config(nested=True) where that comes from, or no CAP_SYS_ADMIN",
    ("session", EDQUOT): "too many keyrings of this user: kernel.keys.maxkeys (keyrings(7))",
    ("sources", ESTALE): "the path was replaced while the container was started",
    ("filesystem", ESTALE): "the path was replaced while the container was started",
}


def _hint(failure: Failure, plan: Plan) -> str | None:
    """What to do, where the cause is sure."""
    if failure.errno == 0:
        killed = "it was killed before the program ran, perhaps for lack of memory"
        if failure.oom_kills:
            whose = "its limit" if failure.ooms else "a limit of a cgroup above, or the machine's,"
            return f"out of memory: {whose} was reached before the program ran"
        return None if failure.step == "gate" else killed
    known = _HINTS.get((failure.step, failure.errno))
    find = _FINDERS.get(failure.step)
    if known is None and find is not None:
        known = find(failure, plan)
    if failure.step == "clone":
        known = namespace_hint(failure.errno) or _clone_hint(failure, plan)
    return known or rights_hint(failure.step, failure.errno)


def _exec_hint(failure: Failure, plan: Plan) -> str | None:
    if failure.value:
        return "the file is there, but not the interpreter or dynamic loader that it names"
    if failure.errno != EACCES or not plan.rows:  # none: it joined a container
        return None
    root = plan.rows[plan.request.base.table.root]
    return noexec_hint(root.source) if root.opened else None


def _map_hint(failure: Failure, plan: Plan) -> str | None:
    if failure.row < 0:  # written without a program
        return None
    program = plan.request.map_programs[failure.row][0]
    return _ids.map_hint(program, plan.identity.maps[failure.row], groups=failure.row == 1)


def _clone_hint(failure: Failure, plan: Plan) -> str | None:
    own = plan.request.flags & StartFlag.FRESH_USER
    if failure.errno == ENOMEM and "pid" in dict(plan.joined):
        return "PID 1 of the PID namespace has ended, and nobody can be born in there any more"
    if failure.errno != EPERM or own or os.geteuid() == 0:
        return None
    return "namespaces.user=False is for root: nobody else may make the other namespaces"


def _join_hint(failure: Failure, plan: Plan) -> str | None:
    if failure.errno == EINVAL and "pid" in dict(plan.joined):
        return "a PID namespace can be joined that is the caller's or one below it"
    if failure.errno != EPERM or os.geteuid() == 0:
        return None
    if "user" not in dict(plan.joined):
        return "only root may: else the user namespace that it belongs to has to be joined as well"
    return "it belongs to another user namespace than the one that is joined"


def _source_hint(failure: Failure, plan: Plan) -> str | None:
    if failure.errno != EINVAL or not _is_idmapped(failure, plan):
        return None
    return (
        "its file system cannot be id-mapped: bind it read-only, use another file system"
        " or give uid_mappings and gid_mappings"
    )


def _row_hint(failure: Failure, plan: Plan) -> str | None:
    if not 0 <= failure.row < len(plan.rows):
        return None
    row = plan.rows[failure.row]
    if row.op == Op.MOUNT and failure.errno == EPERM:
        return masked_hint(row.source)
    if failure.errno != EINVAL:
        return None
    alone = row.op == Op.BIND and row.opened and not row.flags & RowFlag.RECURSIVE
    if alone and not plan.identity.by_fd:
        return "there are mounts below it, which only root can leave out"
    if row.op == Op.OVERLAY and plan.identity.idmap and _kernel() < (5, 19):
        return "an overlay of id-mapped directories needs Linux 5.19"
    return None


_FINDERS = {
    "exec": _exec_hint,
    "id-maps": _map_hint,
    "join": _join_hint,
    "sources": _source_hint,
    "filesystem": _row_hint,
}


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


def _is_idmapped(failure: Failure, plan: Plan) -> bool:
    rows = plan.rows
    return 0 <= failure.row < len(rows) and bool(rows[failure.row].flags & RowFlag.IDMAP)
