# SPDX-License-Identifier: Apache-2.0
"""One more program in a container that runs: the plan and the start."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from errno import ENOMEM, EPERM, ESRCH
from resource import RLIMIT_NOFILE, getrlimit
from time import monotonic

from container._capabilities import to_mask
from container._cgroup import is_frozen
from container._config import (
    DEVNULL,
    NAMESPACE_FLAGS,
    PIPE,
    Config,
    ExecConfig,
    Process,
    StrPath,
    parse_user,
)
from container._errors import ConfigError, LaunchError, StateError, UnsupportedError, launch_error
from container._identity import Identity
from container._launcher import (
    MAX_INLINE,
    Base,
    Child,
    EndTree,
    Failure,
    Join,
    Lines,
    RowTable,
    StartFlag,
    ask_process,
    failing_step,
    join_process,
)
from container._plan import Plan, attribute_flags, explain, plan_process
from container._process import CaptureLimits, Conversation, ExecProcess, TextMode
from container._seccomp._compiler import NEW_LISTENER
from container._streams import Stdio, open_process_stdio
from container._tree import end_tree

NO_ROWS = RowTable(())
GONE = (None, ESRCH, ENOMEM)  # what a namespace says that is being taken down
ALL_NAMESPACES = frozenset(NAMESPACE_FLAGS)
PATIENCE = 5.0  # seconds until a container that dies is dead
_MOST_KEPT = 64  # plans of a container
_MOST_TEXT = 4096  # characters of arguments of one that is kept
_OUTPUT = 1 << 1 | 1 << 2


@dataclass(slots=True)
class Manner:
    """How the output of a command is taken: as for `popen`."""

    text: TextMode | None
    capture: CaptureLimits
    began: float


def parse_exec(config: ExecConfig | Sequence[StrPath]) -> ExecConfig:
    """Itself, or the arguments of one."""
    if isinstance(config, ExecConfig):
        return config
    try:
        return ExecConfig(config)
    except ConfigError as error:
        raise ConfigError(error.detail, field=f"config.{error.field}") from None


def parse_namespaces(names: Collection[str] | None, field: str = "namespaces") -> frozenset[str]:
    """The namespaces to join: None for all; `ConfigError` for one that there is not, or none."""
    if names is None:
        return ALL_NAMESPACES
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ConfigError(f"expected a set of names, got {type(names).__name__}", field=field)
    for name in names:
        if name not in NAMESPACE_FLAGS:
            known = ", ".join(NAMESPACE_FLAGS)
            raise ConfigError(f"{name!r} is no namespace; there are {known}", field=field)
    if not names:
        raise ConfigError("must name at least one namespace to join", field=field)
    return frozenset(names)


@dataclass(frozen=True, slots=True)
class Host:
    """The container that a command is to run in, and how it was started."""

    config: Config
    process: Process
    plan: Plan
    child: Child
    serial: int  # of the child: one that is detached may be started again
    kept: dict[object, "Known"] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)


@dataclass(frozen=True, slots=True)
class Known:
    """The plan of a command, kept where it was run lately, as most are run again.

    Not of one with an environment, whose values are secrets, nor with a user, whose name may be
    another's by now.
    """

    given: object
    wanted: ExecConfig
    plan: Plan
    request: bytes | None  # of a command with streams that the launcher makes


def plan_lately(host: Host, config: ExecConfig | Sequence[StrPath], names: frozenset[str]) -> Known:
    """What is wanted, and `plan_member` of it, as it was kept where it still holds."""
    key: object = None
    if isinstance(config, ExecConfig):
        key = (id(config), names, getrlimit(RLIMIT_NOFILE), failing_step())
    elif isinstance(config, list | tuple) and all(type(arg) is str for arg in config):
        key = (tuple(config), names, getrlimit(RLIMIT_NOFILE), failing_step())
    kept = host.kept.get(key)
    if kept is not None and (kept.given is None or kept.given is config):
        return kept
    wanted = parse_exec(config)
    plan = plan_member(host, wanted, names)
    given = config if isinstance(config, ExecConfig) else None
    known = Known(given, wanted, plan, _encode_with_streams(wanted, plan))
    if key is not None and _may_be_kept(host, wanted):
        if len(host.kept) >= _MOST_KEPT:
            host.kept.clear()
        host.kept[key] = known
    return known


def _encode_with_streams(wanted: ExecConfig, plan: Plan) -> bytes | None:
    """For a command whose output is captured and that has no input; None for any other."""
    streams = (wanted.stdin, wanted.stdout, wanted.stderr)
    if wanted.tty or wanted.timeout is not None or streams != (DEVNULL, PIPE, PIPE):
        return None
    request = replace(plan.request, flags=plan.request.flags | StartFlag.STREAMS)
    pipes = _OUTPUT if _owns_pipes(plan) else 0
    data = request.encode(plan.identity.maps, (), by_fd=True, pipes=pipes)
    return data if len(data) <= MAX_INLINE else None


def _may_be_kept(host: Host, wanted: ExecConfig) -> bool:
    named = wanted.user is not None or host.process.user is not None
    short = sum(len(str(arg)) for arg in wanted.args) <= _MOST_TEXT
    return short and not named and not wanted.env


def plan_member(host: Host, wanted: ExecConfig, names: frozenset[str]) -> Plan:
    """Plan an exec in a container as its first process was planned."""
    refuse_labels(host.config)
    first = host.process
    process = Process(
        wanted.args,
        env={**(first.env or {}), **(wanted.env or {})},
        cwd=wanted.cwd or (None if wanted.root else first.cwd),
        user=wanted.user if wanted.user is not None else first.user,
        groups=first.groups if wanted.user is None else (),
        umask=first.umask,
        rlimits=first.rlimits,
        nice=first.nice,
        cpu_affinity=first.cpu_affinity,
        oom_score_adj=first.oom_score_adj,
        tty=wanted.tty,
        tty_size=wanted.tty_size,
    )
    if wanted.root is not None and process.user is not None:
        refuse_names(process.user)
    base = host.plan.request.base
    joined = flags_of(names) & (base.clone_flags | sum(host.plan.request.joined))
    if not joined:
        raise ConfigError("the container shares all of these with its caller", field="namespaces")
    refuse_foreign_terminal(wanted, joined)
    identity = replace(host.plan.identity, programs=((), ()))  # the maps are written
    if not joined & NAMESPACE_FLAGS["user"]:
        identity = _outside(identity)
    base = replace(base, clone_flags=joined, table=NO_ROWS, hostname="", domainname="")
    flags = _member_flags(base, joined) | attribute_flags(process)
    request = plan_process(host.config, process, identity, with_capabilities(base, wanted), flags)
    return Plan(replace(request, join=Join(host.child.serial, str(wanted.root or ""))), identity)


def refuse_labels(config: Config) -> None:
    """They are written by rows, of which an exec has none: it would run without that wall."""
    for name in ("apparmor_profile", "selinux_label"):
        if getattr(config, name) is not None:
            raise UnsupportedError(
                "commands cannot be given the label of their container yet", field=name
            )


def refuse_names(user: int | str) -> None:
    if any(isinstance(part, str) for part in parse_user(user)):
        raise UnsupportedError("write numbers: another root may have other names", field="user")


def refuse_foreign_terminal(wanted: ExecConfig, joined: int) -> None:
    """A terminal is one of the mount namespace that is joined, else it were the host's."""
    if wanted.tty and not joined & NAMESPACE_FLAGS["mnt"]:
        raise UnsupportedError("needs mnt among the namespaces", field="tty")


def flags_of(names: frozenset[str]) -> int:
    return sum(NAMESPACE_FLAGS[name] for name in names)


def _outside(identity: Identity) -> Identity:
    """Of a process with the ids of the caller's user namespace."""
    flags = identity.flags & ~(StartFlag.FRESH_USER | StartFlag.LEASE | StartFlag.MAP_BY_PROGRAM)
    return replace(identity, maps=((), ()), known=((), ()), flags=flags)


def _member_flags(base: Base, joined: int) -> StartFlag:
    flags = base.flags & (StartFlag.SET_GROUPS | StartFlag.CHROOT | StartFlag.NO_NEW_PRIVS)
    if joined & NAMESPACE_FLAGS["user"]:
        flags |= StartFlag.FRESH_USER | (base.flags & StartFlag.MAP_BY_PROGRAM)
    # As for a start: only with leased ids, where the launcher never is dumpable. It looks once
    # more (csrc/exec.c).
    if base.flags & StartFlag.LEASE and not joined & NAMESPACE_FLAGS["time"]:
        flags |= StartFlag.SHARE_MEMORY
    asks = base.filter_flags & NEW_LISTENER  # and gives its listener away at the end
    if base.filter_lets_wait and flags & StartFlag.NO_NEW_PRIVS and not base.handled_access | asks:
        flags |= StartFlag.FILTER_AHEAD
    return flags


def with_capabilities(base: Base, wanted: ExecConfig) -> Base:
    """The capabilities that are asked for, else those of ``base``."""
    sets = wanted.capabilities
    if sets is None:
        return base
    return replace(
        base,
        bounding=to_mask(sets.bounding),
        effective=to_mask(sets.effective),
        permitted=to_mask(sets.permitted),
        inheritable=to_mask(sets.inheritable),
        ambient=to_mask(sets.ambient),
    )


def run_member(
    host: Host,
    config: ExecConfig | Sequence[StrPath],
    manner: Manner,
    names: frozenset[str],
) -> ExecProcess:
    """Run a command in a container; returns once it runs."""
    known = plan_lately(host, config, names)
    wanted, plan = known.wanted, known.plan
    if known.request is not None:
        child = ask_process(known.request, host.child, host.lines, _end_by_tree(host))
        settle_member(host, plan, child, wanted, manner)
        return as_process(child, Stdio(ours=child.take_streams()), wanted, manner)
    stdio = open_process_stdio(wanted)
    try:
        child = begin_member(host, plan, stdio, deadline_of(wanted, manner), wait=True)
        stdio.close_child_ends()
        settle_member(host, plan, child, wanted, manner)
        return as_process(child, stdio.take(), wanted, manner)
    finally:
        stdio.close()


def begin_member(
    host: Host, plan: Plan, stdio: Stdio, deadline: float | None, *, wait: bool
) -> Child:
    """Ask for a command in a container; without ``wait`` return before it is known to run."""
    return join_process(
        plan.request,
        plan.identity.maps,
        stdio.child,
        pipes=stdio.pipes if _owns_pipes(plan) else 0,
        owner=host.child,
        end_tree=_end_by_tree(host),
        deadline=deadline,
        wait=wait,
    )


def _end_by_tree(host: Host) -> EndTree:
    def end(pid: int, pidfd: int) -> None:
        if not end_tree(pid, pidfd, lambda: is_frozen(host.child.cgroup)):
            # A fork bomb: nothing less is sure to end it.
            host.child.signal(9)

    return end


def settle_member(  # noqa: PLR0917 - those of a start
    host: Host,
    plan: Plan,
    child: Child,
    wanted: ExecConfig,
    manner: Manner,
    patience: float = PATIENCE,
) -> None:
    """An error where the command does not run; ``patience``: seconds to wait where `may_have_died`
    says so.
    """
    refuse_late(child, wanted, manner)
    if child.started:
        return
    child.close()
    raise _explain_member(child, plan, host.child, patience)


def may_have_died(child: Child) -> bool:
    """Whether a start has failed as it does where the container is about to end."""
    failure = child.failure
    return failure is not None and (failure.errno or None) in GONE and failure.step != "target"


def _owns_pipes(plan: Plan) -> bool:
    """Whether a pipe has to be given to it: else those that we make are its own as they are."""
    flags = plan.request.flags
    inside = flags & StartFlag.FRESH_USER and plan.identity.by_fd
    return bool(inside or flags & StartFlag.MAP_BY_PROGRAM)


def deadline_of(wanted: ExecConfig, manner: Manner) -> float | None:
    return None if wanted.timeout is None else manner.began + float(wanted.timeout)  # type: ignore[arg-type]


def refuse_late(child: Child, wanted: ExecConfig, manner: Manner) -> None:
    """`ContainerTimeoutError` where a command was killed at its deadline, before it ran, or was
    known to: it may have begun to while it was killed.
    """
    deadline = deadline_of(wanted, manner)
    if deadline is None or (child.failure is not None and child.failure.errno):
        return
    if not child.late and (child.failure is None or monotonic() < deadline):
        return
    conversation = Conversation(wanted.args, manner.text, manner.capture, manner.began)
    conversation.conclude(child, {}, float(wanted.timeout))  # type: ignore[arg-type]


def _explain_member(child: Child, plan: Plan, owner: Child, patience: float) -> Exception:
    """A start that failed because the container ended is no fault of the command's."""
    failure = child.failure
    ended = StateError("the container ended before the command ran")
    if failure is None or ((failure.errno or None) in GONE and failure.step == "target"):
        return ended
    if may_have_died(child) and _dies(owner, patience):
        return ended
    return explain_join(failure, plan)


def _dies(owner: Child, patience: float) -> bool:
    """Whether a container is over, or is so in a moment."""
    owner.receive()
    if not owner.over and patience:
        owner.wait_news(patience)
        owner.receive()
    return owner.over


_JOIN_DETAILS = {
    "target": "cannot find the process whose namespaces are to be joined",
    "clone": "cannot make a process",
    "join": "cannot join the namespaces",
    "pid-namespace": "cannot enter the PID namespace",
    "setup-ids": "cannot become root of the user namespace",
    "sync": "the launcher ended meanwhile",
    "terminal": "cannot open a terminal of the devpts at /dev/pts",
}


def explain_join(failure: Failure, plan: Plan) -> LaunchError:
    """Word what the launcher reported in numbers."""
    if failure.step == "pivot":
        path = plan.request.join.root if plan.request.join is not None else None
        detail = f"cannot make {path!r} the root"
        return launch_error(failure.step, failure.errno, detail, path or None)
    if failure.step in _JOIN_DETAILS and failure.errno:
        hint = None
        if failure.errno == EPERM and failure.step in ("join", "pid-namespace"):
            hint = "only root, or who owns the user namespace that is joined as well, may do that"
        return launch_error(failure.step, failure.errno, _JOIN_DETAILS[failure.step], hint=hint)
    return explain(failure, plan)


def as_process(child: Child, stdio: Stdio, wanted: ExecConfig, manner: Manner) -> ExecProcess:
    """Hand a command out that runs; an error of ours ends it."""
    try:
        stdio.add_terminal(child)
        return _as_process(child, stdio, wanted, manner)
    except BaseException:
        child.kill()
        raise


def _as_process(child: Child, stdio: Stdio, wanted: ExecConfig, manner: Manner) -> ExecProcess:
    conversation = Conversation(wanted.args, manner.text, manner.capture, manner.began)
    process = ExecProcess(child, conversation, stdio, child.kill)
    if wanted.timeout is not None:
        process.end_after(float(wanted.timeout))  # type: ignore[arg-type]
    return process
