# SPDX-License-Identifier: Apache-2.0
"""Hooks: programs and functions that run at moments in the life of a container.

Those in the caller's namespaces are started by the launcher, like a command of `Container.exec`
that joins nothing: no child of the program's own, and ended with all that descends from it. Those
inside are started by the container's first process while it waits for them (csrc/hooks.c), and
ended with the container, which they have undone by then.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from resource import RLIMIT_NOFILE, getrlimit
from select import POLLIN
from signal import SIGKILL, Signals
from time import monotonic
from typing import Any

from container._capabilities import Capability, to_mask
from container._config import (
    PIPE,
    STDOUT,
    ContainerState,
    Hook,
    HookCall,
    Hooks,
    HookType,
    State,
)
from container._errors import (
    CleanupError,
    ConfigError,
    ContainerTimeoutError,
    HookError,
    StateError,
    UnsupportedError,
    publish,
)
from container._launcher import (
    OWN_NAMESPACES,
    Base,
    Child,
    Failure,
    RowTable,
    StartFlag,
    StartRequest,
    above_stdio,
    encode_start,
    join_foreign,
)
from container._plan import Plan
from container._process import CaptureLimits, Conversation
from container._streams import Capture, Exchange, Sink, open_stdio
from container._tree import end_tree

_INSIDE = (HookType.CREATE_CONTAINER, HookType.START_CONTAINER)
_MOST_OUTPUT = CaptureLimits(1 << 16, "tail")
_MOST_SHOWN = 300  # characters of it in an error's text
_NO_ROWS = RowTable(())
_ANYBODY = 0o666  # a pipe: who can get at it has an fd of it anyway, or may trace who has


def run_hooks(hooks: Hooks, hook_type: HookType, state: ContainerState) -> None:
    """Run the hooks of one kind, in their order and in the namespaces of the caller.

    `HookError` for the first that fails; of ``POSTSTOP`` all run, and what failed is the
    ``exceptions`` of a `CleanupError`. Hooks that run in a container can be run only while it is
    made, by `Container`: `UnsupportedError`.
    """
    if not isinstance(hooks, Hooks):
        raise ConfigError(f"expected Hooks, got {type(hooks).__name__}", field="hooks")
    if not isinstance(state, ContainerState):
        raise ConfigError(f"expected ContainerState, got {type(state).__name__}", field="state")
    try:
        kind = HookType(hook_type)
    except ValueError:
        raise ConfigError(f"{hook_type!r} is no kind of hook", field="hook_type") from None
    if kind in _INSIDE:
        raise UnsupportedError("these run inside a container that is being made", field="hook_type")
    runner = HookRunner(hooks, lambda status, pid: state)
    if kind != HookType.POSTSTOP:
        runner.run(kind, state.state, state.pid)
    elif errors := runner.run_last():
        raise CleanupError(f"hooks of container {state.id} failed", errors)


@dataclass(frozen=True, slots=True)
class _End:
    """What became of a hook; ``returncode`` None: it was not run."""

    returncode: int | None
    output: bytes
    failure: Failure | None = None
    timed_out: bool = False


class _Inside:
    """A hook that a container's first process runs, to an `Exchange`."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.channel = child.channel
        # Another thread may take the report of its end in: nothing could be read here then.
        self.news = above_stdio(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        with child.lock:
            self._told, child.on_report = child.on_report, self._tell

    def _tell(self) -> None:
        os.eventfd_write(self.news, 1)
        if self._told is not None:
            self._told()

    def close(self) -> None:
        with self.child.lock:
            if self.child.on_report == self._tell:
                self.child.on_report = self._told
        os.close(self.news)

    @property
    def over(self) -> bool:
        return self.child.hook_end is not None or self.child.over

    def receive(self) -> bool:
        with suppress(BlockingIOError):
            os.eventfd_read(self.news)
        return self.child.receive()


class _InsideExchange(Exchange):
    def __init__(
        self, hook: _Inside, ours: dict[str, int], sinks: Mapping[str, Sink], data: bytes
    ) -> None:
        self._news = hook.news
        super().__init__(hook, ours, sinks, data)

    def _watch_child(self) -> None:
        super()._watch_child()
        self._poll.register(self._news, POLLIN)


class HookRunner:
    """Runs the hooks of one container."""

    def __init__(
        self, hooks: Hooks, state_of: Callable[[State, int | None], ContainerState]
    ) -> None:
        self._hooks = hooks
        self._state_of = state_of
        self._running: Child | None = None
        self._inside: Child | None = None  # the container, while it runs one
        self._cancelled = False
        self.deadline: float | None = None  # of `time.monotonic`, for all before the start

    def run(self, kind: HookType, status: State, pid: int | None) -> None:
        """Those of one kind in the caller's namespaces; `HookError` for the first that fails."""
        for hook in self._hooks.of(kind):
            self._run_one(kind, hook, self._state_of(status, pid))

    def run_last(self) -> list[Exception]:
        """Those after the end; what failed."""
        errors: list[Exception] = []
        self.deadline, self._cancelled = None, False
        for hook in self._hooks.poststop:
            try:
                self._run_one(HookType.POSTSTOP, hook, self._state_of(State.STOPPED, None))
            except (HookError, StateError) as error:
                errors.append(error)
        return errors

    def run_at_step(self, child: Child, plan: Plan) -> None:
        """Those for which the container waits."""
        if child.hooks_at == "start-hooks":
            self._run_inside(HookType.START_CONTAINER, State.CREATED, child, plan)
            return
        self.run(HookType.PRESTART, State.CREATING, child.pid)
        self.run(HookType.CREATE_RUNTIME, State.CREATING, child.pid)
        self._run_inside(HookType.CREATE_CONTAINER, State.CREATING, child, plan)

    def cancel(self) -> None:
        """From another thread: kill the hook that runs, with the container if it runs inside; no
        further one is started.
        """
        self._cancelled = True
        if self._inside is not None:
            self._inside.signal(SIGKILL)
        child = self._running
        if child is not None:
            child.end_descendants()
            child.signal(SIGKILL)

    def _run_one(self, kind: HookType, hook: Hook | HookCall, state: ContainerState) -> None:
        self._refuse_cancelled(state)
        if not isinstance(hook, Hook):
            _call(kind, hook, state)
            return
        self._check(kind, hook, self._run_outside(hook, state, self._limit(hook)))

    def _refuse_cancelled(self, state: ContainerState) -> None:
        if self._cancelled:
            raise StateError(f"hooks of container {state.id} were cancelled")

    def _limit(self, hook: Hook) -> float | None:
        """For how many seconds it may run."""
        own = None if hook.timeout is None else float(hook.timeout)  # type: ignore[arg-type]
        if self.deadline is None:
            return own
        left = max(0.0, self.deadline - monotonic())
        return left if own is None else min(own, left)

    def _check(self, kind: HookType, hook: Hook, end: _End) -> None:
        if end.timed_out and self.deadline is not None and monotonic() >= self.deadline:
            raise ContainerTimeoutError(f"the {kind} hook {hook.path!r} took all of the time")
        _check_end(kind, hook, end)

    def _run_outside(self, hook: Hook, state: ContainerState, limit: float | None) -> _End:
        began = monotonic()
        request = _outside_request(hook, state.bundle or "/")
        stdio = open_stdio(PIPE, PIPE, STDOUT)
        try:
            deadline = None if limit is None else began + limit
            child = join_foreign(
                request,
                stdio.child,
                pidfd=None,
                namespaces=OWN_NAMESPACES,
                end_tree=end_tree,
                deadline=deadline,
            )
            stdio.close_child_ends()
            self._running = child
            if self._cancelled:  # just before that was known
                self.cancel()
            if child.failure is not None:
                child.close()
                timed_out = not child.failure.errno and deadline is not None
                return _End(None, b"", child.failure, timed_out)
            talk = Conversation(request.args, None, _MOST_OUTPUT, began)
            talk.expired = limit if child.late else None
            result = talk.hold(child, stdio.ours, _stdin_of(state), limit)
        except ContainerTimeoutError as error:
            return _End(None, error.result.stdout if error.result else b"", timed_out=True)
        finally:
            self._running = None
            stdio.close()
        assert result is not None, "it had started, so it has ended"
        return _End(result.returncode, result.stdout)

    def _run_inside(self, kind: HookType, status: State, child: Child, plan: Plan) -> None:
        for hook in self._hooks.of(kind):
            assert isinstance(hook, Hook)  # as Hooks checks
            state = self._state_of(status, _pid_inside(child))
            self._inside = child
            try:
                self._refuse_cancelled(state)
                request = _inside_request(kind, hook, plan.request)
                self._check(kind, hook, _hold_inside(request, child, state, self._limit(hook)))
            finally:
                self._inside = None


def _pid_inside(child: Child) -> int | None:
    """Of a container's first process, in its own PID namespace."""
    try:
        with open(f"/proc/{child.pid}/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[-1]) for line in file if line.startswith("NSpid:"))
    except (OSError, StopIteration):
        return None  # it has ended, as will be told


def _hold_inside(
    request: StartRequest, child: Child, state: ContainerState, limit: float | None
) -> _End:
    deadline = None if limit is None else monotonic() + limit
    capture = Capture(_MOST_OUTPUT.limit, _MOST_OUTPUT.keep)
    stdio = open_stdio(PIPE, PIPE, STDOUT)
    hook = _Inside(child)
    try:
        for fd in stdio.child:  # that it can open its /dev/stdin, whoever it is in there
            os.fchmod(fd, _ANYBODY)
        child.run_hook(encode_start(request, ((), ()), (), by_fd=True), stdio.child)
        stdio.close_child_ends()
        exchange = _InsideExchange(hook, stdio.ours, {"stdout": capture.add}, _stdin_of(state))
        in_time = exchange.run(deadline)
        if not in_time:
            child.kill()
        exchange.finish()
    finally:
        hook.close()
        stdio.close()
    if not in_time:
        return _End(None, capture.content(), timed_out=True)
    end = child.hook_end
    if end is None:
        raise StateError(f"container {state.id} ended while its hooks ran")
    return _End(None if end.failure else end.returncode, capture.content(), end.failure)


# Requests ---------------------------------------------------------------------------------------


def _outside_request(hook: Hook, cwd: str) -> StartRequest:
    """A program with the rights of the caller, as they are now: the launcher has the same."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    sets = {name: int(status[name], 16) for name in ("CapEff", "CapInh", "CapAmb")}
    base = Base(
        clone_flags=0,
        kept_namespaces=OWN_NAMESPACES,
        flags=StartFlag(0),
        table=_NO_ROWS,
        hostname="",
        domainname="",
        bounding=2**64 - 1,  # as it is: to drop some takes rights
        effective=sets["CapEff"],
        permitted=sets["CapEff"],
        inheritable=sets["CapInh"] & (sets["CapEff"] | sets["CapAmb"]),
        ambient=sets["CapAmb"],
    )
    return StartRequest(
        base=base,
        flags=StartFlag(0),
        groups=(),
        limits=((RLIMIT_NOFILE, *getrlimit(RLIMIT_NOFILE)),),
        cwd=cwd,
        uid=os.geteuid(),
        gid=os.getegid(),
        umask=0o022,
        is_hook=True,
        **_program_of(hook),
    )


def _program_of(hook: Hook) -> dict[str, Any]:
    args = hook.args if hook.args is not None else (hook.path,)
    env = [f"{name}={value}" for name, value in (hook.env or {}).items()]
    return {"programs": (hook.path,), "args": args, "env": env}


def _inside_request(kind: HookType, hook: Hook, first: StartRequest) -> StartRequest:
    """A program inside: with all that the container's first process has by now, or as that will
    run, under the same filter and rules.
    """
    base = replace(
        first.base,
        clone_flags=0,
        table=_NO_ROWS,
        hostname="",
        domainname="",
        settings=(),
        devices=b"",
    )
    kept = StartFlag.SET_GROUPS | StartFlag.NO_NEW_PRIVS
    request = replace(
        first,
        base=base,
        flags=first.flags & kept,
        cwd="/",
        cpus=b"",
        passed=(),
        joined=(),
        shared_slot=0,
        clocks=b"",
        map_programs=((), ()),
        terminal_size=None,
        is_hook=True,
        _kept=None,
        **_program_of(hook),
    )
    return _as_root(request, first) if kind == HookType.CREATE_CONTAINER else request


def _as_root(request: StartRequest, first: StartRequest) -> StartRequest:
    # In its user namespace root has them all; without one the launcher's are what the caller has.
    rights = 2**64 - 1 if first.flags & StartFlag.FRESH_USER else _own_capabilities()
    every = to_mask(frozenset(Capability)) & rights
    base = replace(
        request.base,
        bounding=2**64 - 1,
        effective=every,
        permitted=every,
        inheritable=0,
        ambient=0,
        filter=b"",
        filter_flags=0,
        rules=(),
        handled_access=0,
    )
    files = tuple(limit for limit in request.limits if limit[0] == RLIMIT_NOFILE)
    user = {"uid": 0, "gid": 0} if first.flags & StartFlag.FRESH_USER else _own_ids()
    return replace(
        request,
        base=base,
        flags=StartFlag(0),
        cwd=".",  # csrc/hooks.c: the container's root
        groups=(),
        limits=files,
        umask=0o022,
        **user,  # type: ignore[arg-type]
    )


def _own_ids() -> dict[str, int]:
    return {"uid": os.geteuid(), "gid": os.getegid()}


def _own_capabilities() -> int:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def _stdin_of(state: ContainerState) -> bytes:
    import json  # noqa: PLC0415  (8 ms)

    return json.dumps(state.to_oci()).encode()


# Errors -----------------------------------------------------------------------------------------


def _call(kind: HookType, hook: HookCall, state: ContainerState) -> None:
    try:
        hook(state)
    except Exception as error:
        name = getattr(hook, "__qualname__", type(hook).__name__)
        text = f"{kind} hook {name} raised {type(error).__name__}: {error}"
        raise HookError(text, hook_type=kind, hook=name) from error


def _check_end(kind: HookType, hook: Hook, end: _End) -> None:
    """`HookError` unless it went well."""
    if end.returncode == 0 and end.failure is None and not end.timed_out:
        return
    text = f"{kind} hook {hook.path!r} {_fault(end)}"
    if shown := end.output.decode(errors="replace")[-_MOST_SHOWN:].strip():
        text += f": {shown}"
    raise HookError(
        text,
        hook_type=kind,
        hook=str(hook.path),
        returncode=end.returncode,
        output=end.output,
        timed_out=end.timed_out,
    )


def _fault(end: _End) -> str:
    if end.timed_out:
        return "took too long and was killed"
    if end.failure is not None:
        reason = os.strerror(end.failure.errno) if end.failure.errno else "it was killed"
        step = "" if end.failure.step == "exec" else f" (step {end.failure.step})"
        return f"cannot be run{step}: {reason}"
    assert end.returncode is not None
    if end.returncode >= 0:
        return f"ended with status {end.returncode}"
    number = -end.returncode
    return f"was killed by {Signals(number).name if number in set(Signals) else number}"


publish(run_hooks)
