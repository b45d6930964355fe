# SPDX-License-Identifier: Apache-2.0
"""Every error that the package raises on its own behalf.

::

    ContainerError
    ├── ConfigError (ValueError)                    .field .detail
    ├── LaunchError (OSError)                       .step .errno .detail .hint .filename
    │   ├── LaunchFileNotFoundError (FileNotFoundError)       ENOENT
    │   ├── LaunchPermissionError (PermissionError)           EACCES, EPERM
    │   └── LaunchNotADirectoryError (NotADirectoryError)     ENOTDIR
    ├── StateError
    │   └── ContainerNotFoundError
    ├── ContainerTimeoutError (TimeoutError)        .result
    ├── CommandError                                .result
    ├── CgroupError
    │   ├── CgroupV2NotMountedError
    │   ├── CgroupNotFoundError
    │   └── ControllerNotEnabledError               .controller .holder .remedy
    ├── NetworkError
    ├── HookError                                   .hook_type .hook .returncode .output .timed_out
    ├── UnsupportedError                            .field .detail
    └── CleanupError (ExceptionGroup)               .exceptions

Each survives ``pickle`` and ``copy`` with its attributes and its text. The text is one printable
line whatever a path or an argument holds; attributes keep the original.
"""

import os
from collections.abc import Sequence
from errno import EACCES, ENOENT, ENOTDIR, EPERM, errorcode
from signal import Signals
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from container._config import Result


def publish(*objects: Any) -> None:
    """Make public classes and functions name the package they are imported from."""
    for item in objects:
        item.__module__ = "container"


def printable(text: str) -> str:
    """Escape, as ``repr`` does, what a terminal could take for a command."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _rebuild(cls: type["ContainerError"], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    # Without __init__: its parameters are not `args`, and the text is made already.
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ContainerError(Exception):
    """The base of every error of this package."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        # OSError keeps these in C slots, where None is not the same as absent: it shows in str().
        slots = ("errno", "strerror", "filename") if isinstance(self, OSError) else ()
        state |= {name: value for name in slots if (value := getattr(self, name)) is not None}
        return _rebuild, (type(self), self.args, state)


class ConfigError(ContainerError, ValueError):
    """A value that cannot be used, found before anything was started.

    ``field`` is the path to the parameter as it was written, such as ``mounts[1].target``;
    ``detail`` says what is wrong with it. Values of environment variables are never shown.
    """

    def __init__(self, detail: str, *, field: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class LaunchError(ContainerError, OSError):
    """The container or its program could not be started. Made by `launch_error`.

    ``step`` names the step of the start that failed, ``errno`` is the kernel's answer (None when
    the process died without one), ``detail`` says what was tried and on what, ``hint`` what to do
    (None unless the cause is sure), ``filename`` is the path concerned or None.
    """

    def __init__(
        self,
        step: str,
        errno: int | None,
        detail: str,
        path: str | os.PathLike[str] | None = None,
        hint: str | None = None,
    ) -> None:
        if errno:
            OSError.__init__(self, errno, os.strerror(errno))
        else:
            OSError.__init__(self, detail)
        if path is not None:
            self.filename = os.fspath(path)
        self.step = step
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.step}: {self.detail}"
        if self.errno:
            text += f": {self.strerror} ({errorcode.get(self.errno, self.errno)})"
        if self.hint:
            text += f"; hint: {self.hint}"
        return printable(text)


class LaunchFileNotFoundError(LaunchError, FileNotFoundError):
    """The program, the root directory, the working directory or a source does not exist."""


class LaunchPermissionError(LaunchError, PermissionError):
    """The kernel refused a step, or the program may not be executed."""


class LaunchNotADirectoryError(LaunchError, NotADirectoryError):
    """A path leads through something that is not a directory."""


_LAUNCH_ERRORS: dict[int, type[LaunchError]] = {
    ENOENT: LaunchFileNotFoundError,
    EACCES: LaunchPermissionError,
    EPERM: LaunchPermissionError,
    ENOTDIR: LaunchNotADirectoryError,
}


def launch_error(
    step: str,
    errno: int | None,
    detail: str,
    path: str | os.PathLike[str] | None = None,
    hint: str | None = None,
) -> LaunchError:
    """Make the `LaunchError` that is also the builtin exception for this ``errno``.

    ``detail`` is the whole wording, path included ("cannot execute '/bin/nope'"); ``path`` only
    becomes ``filename``.
    """
    return _LAUNCH_ERRORS.get(errno or 0, LaunchError)(step, errno, detail, path, hint)


class StateError(ContainerError):
    """The container is not in a state that allows this."""


class ContainerNotFoundError(StateError):
    """No container has this id."""


class ContainerTimeoutError(ContainerError, TimeoutError):
    """The time given was over. ``result`` holds what there was until then, or None."""

    def __init__(self, message: str, result: "Result | None" = None) -> None:
        super().__init__(message)
        self.result = result


class CommandError(ContainerError):
    """The command ended with a status other than 0, which ``check=True`` makes an error.

    ``result`` is the whole `Result`. The text names the command and its status only.
    """

    def __init__(self, result: "Result") -> None:
        super().__init__(f"command {list(result.args)!r} {_outcome(result)}")
        self.result = result


def _outcome(result: "Result") -> str:
    if result.returncode >= 0:
        text = f"exited with status {result.returncode}"
    else:
        number = -result.returncode
        name = Signals(number).name if number in Signals._value2member_map_ else "unnamed"
        text = f"was killed by signal {number} ({name})"
    if not result.oom_killed:
        return text
    return f"{text}, out of memory" + (" outside of its own limit" if result.oom_outside else "")


class CgroupError(ContainerError):
    """A control group could not be made, read, limited or removed."""


class CgroupV2NotMountedError(CgroupError):
    """No cgroup v2 hierarchy is mounted."""


class CgroupNotFoundError(CgroupError):
    """The control group does not exist."""


class ControllerNotEnabledError(CgroupError):
    """A limit needs a controller (``memory``, ``cpu``, ``pids``, ``io``) that is not to be had.

    ``holder`` says who has it, ``remedy`` what to do; both may be None.
    """

    def __init__(
        self, controller: str, *, holder: str | None = None, remedy: str | None = None
    ) -> None:
        text = f"cgroup controller {controller!r} is not enabled"
        if holder:
            text += f", it is held by {holder}"
        if remedy:
            text += f"; hint: {remedy}"
        super().__init__(text)
        self.controller = controller
        self.holder = holder
        self.remedy = remedy


class NetworkError(ContainerError):
    """A network could not be set up or taken down."""


class HookError(ContainerError):
    """A hook failed or did not end in time.

    ``hook_type`` is the kind (a `HookType`), ``hook`` the path or the name of the function,
    ``returncode`` the exit status, -N for a signal, None for what was not run or is a function;
    ``output`` is what it wrote at last to stdout and stderr, ``timed_out`` whether it was killed
    for taking too long.
    """

    def __init__(
        self,
        message: str,
        *,
        hook_type: str = "",
        hook: str = "",
        returncode: int | None = None,
        output: bytes = b"",
        timed_out: bool = False,
    ) -> None:
        super().__init__(message)
        self.hook_type = hook_type
        self.hook = hook
        self.returncode = returncode
        self.output = output
        self.timed_out = timed_out


class UnsupportedError(ContainerError):
    """This version, this kernel or this system cannot do what was asked for.

    ``field`` is the path to the parameter that asked, or None; ``detail`` is the reason.
    """

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail if field is None else f"{field}: {detail}")
        self.field = field
        self.detail = detail


class CleanupError(ContainerError, ExceptionGroup[Exception]):
    """A teardown went on to its end; ``exceptions`` are what failed on the way."""

    def __new__(cls, message: str, exceptions: Sequence[Exception]) -> Self:
        return super().__new__(cls, printable(message), exceptions)

    def __init__(self, message: str, exceptions: Sequence[Exception]) -> None:
        # __new__ has set everything; ContainerError.__init__ would drop the exceptions from args.
        pass

    def derive(self, excs: Sequence[Exception]) -> "CleanupError":  # type: ignore[override]
        """Keep the class in ``split`` and ``subgroup``."""
        return CleanupError(self.message, excs)


publish(
    ContainerError,
    ConfigError,
    LaunchError,
    StateError,
    ContainerNotFoundError,
    ContainerTimeoutError,
    CommandError,
    CgroupError,
    CgroupV2NotMountedError,
    CgroupNotFoundError,
    ControllerNotEnabledError,
    NetworkError,
    HookError,
    UnsupportedError,
    CleanupError,
)
