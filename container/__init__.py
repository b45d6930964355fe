# SPDX-License-Identifier: Apache-2.0
"""Run Linux containers from Python: no daemon, no runc, nsenter, ip or nft binary.

::

    import container

    result = container.run(["sh", "-c", "echo hello; id -u"], text=True)
    print(result.stdout)

`run` and `popen` run one command in a fresh container, `Container` is the long form, `Config`
says what a container is made of. Module functions and `Container` may be used from any thread.
"""

import sys as _sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from container._capabilities import Capabilities, Capability, default_capabilities
    from container._cgroup import (
        Cgroup,
        CgroupStats,
        CPUStats,
        IOStats,
        MemoryEvents,
        MemoryStats,
        PidsStats,
        Pressure,
    )
    from container._config import (
        DEFAULT_BRIDGE_GATEWAY,
        DEFAULT_BRIDGE_NAME,
        DEFAULT_BRIDGE_SUBNET,
        DEVNULL,
        PIPE,
        STDOUT,
        Config,
        ContainerState,
        CPUResources,
        Device,
        DeviceRule,
        ExecConfig,
        Hook,
        Hooks,
        HookType,
        HostRoot,
        IDMapping,
        IOResources,
        Join,
        Landlock,
        MemoryResources,
        Mount,
        MountFlags,
        Namespaces,
        NetworkConfig,
        NetworkMode,
        Overlay,
        PidsResources,
        PortMapping,
        Process,
        Resources,
        Result,
        Rlimit,
        SignalConfig,
        State,
        Usage,
        default_devices,
        port_mappings_from_strings,
    )
    from container._container import Container
    from container._doctor import Check, Report, doctor
    from container._errors import (
        CgroupError,
        CgroupNotFoundError,
        CgroupV2NotMountedError,
        CleanupError,
        CommandError,
        ConfigError,
        ContainerError,
        ContainerNotFoundError,
        ContainerTimeoutError,
        ControllerNotEnabledError,
        HookError,
        LaunchError,
        NetworkError,
        StateError,
        UnsupportedError,
    )
    from container._events import ContainerEvent, EventKind
    from container._exec import exec_in_namespaces, get_namespace_paths, join_network_namespace
    from container._hooks import run_hooks
    from container._logs import LogEntry
    from container._network._addresses import allocate_ip
    from container._network._files import write_hosts, write_resolv_conf
    from container._network._host import (
        ensure_bridge,
        ensure_forwarding_enabled,
        setup_nat_for_bridge,
    )
    from container._network._leases import IPLease, lease_ip
    from container._network._network import Network, setup_container_network
    from container._network._ports import PortForwarder
    from container._oneshot import popen, run
    from container._process import ExecProcess
    from container._prune import Pruned, list_containers, prune
    from container._seccomp import (
        SeccompAction,
        SeccompFlag,
        SeccompOperator,
        SeccompProfile,
        SyscallArg,
        SyscallCondition,
        SyscallRule,
    )
    from container._signals import SignalForwarder
    from container._state import StateManager

__version__ = "0.1.0"

# Where each public name is. A module is loaded when one of its names is first used: programs that
# only might run a container pay nothing for that.
_LAZY = {
    "CPUResources": "_config",
    "CPUStats": "_cgroup",
    "Capabilities": "_capabilities",
    "Capability": "_capabilities",
    "Cgroup": "_cgroup",
    "CgroupError": "_errors",
    "CgroupNotFoundError": "_errors",
    "CgroupStats": "_cgroup",
    "CgroupV2NotMountedError": "_errors",
    "Check": "_doctor",
    "CleanupError": "_errors",
    "CommandError": "_errors",
    "Config": "_config",
    "ConfigError": "_errors",
    "Container": "_container",
    "ContainerError": "_errors",
    "ContainerEvent": "_events",
    "ContainerNotFoundError": "_errors",
    "ContainerState": "_config",
    "ContainerTimeoutError": "_errors",
    "ControllerNotEnabledError": "_errors",
    "DEFAULT_BRIDGE_GATEWAY": "_config",
    "DEFAULT_BRIDGE_NAME": "_config",
    "DEFAULT_BRIDGE_SUBNET": "_config",
    "DEVNULL": "_config",
    "Device": "_config",
    "DeviceRule": "_config",
    "EventKind": "_events",
    "ExecConfig": "_config",
    "ExecProcess": "_process",
    "Hook": "_config",
    "HookError": "_errors",
    "HookType": "_config",
    "Hooks": "_config",
    "HostRoot": "_config",
    "IDMapping": "_config",
    "IOResources": "_config",
    "IOStats": "_cgroup",
    "IPLease": "_network._leases",
    "Join": "_config",
    "Landlock": "_config",
    "LaunchError": "_errors",
    "LogEntry": "_logs",
    "MemoryEvents": "_cgroup",
    "MemoryResources": "_config",
    "MemoryStats": "_cgroup",
    "Mount": "_config",
    "MountFlags": "_config",
    "Namespaces": "_config",
    "Network": "_network._network",
    "NetworkConfig": "_config",
    "NetworkError": "_errors",
    "NetworkMode": "_config",
    "Overlay": "_config",
    "PIPE": "_config",
    "PidsResources": "_config",
    "PidsStats": "_cgroup",
    "PortForwarder": "_network._ports",
    "PortMapping": "_config",
    "Pressure": "_cgroup",
    "Process": "_config",
    "Pruned": "_prune",
    "Report": "_doctor",
    "Resources": "_config",
    "Result": "_config",
    "Rlimit": "_config",
    "STDOUT": "_config",
    "SeccompAction": "_seccomp",
    "SeccompFlag": "_seccomp",
    "SeccompOperator": "_seccomp",
    "SeccompProfile": "_seccomp",
    "SignalConfig": "_config",
    "SignalForwarder": "_signals",
    "State": "_config",
    "StateError": "_errors",
    "StateManager": "_state",
    "SyscallArg": "_seccomp",
    "SyscallCondition": "_seccomp",
    "SyscallRule": "_seccomp",
    "UnsupportedError": "_errors",
    "Usage": "_config",
    "allocate_ip": "_network._addresses",
    "default_capabilities": "_capabilities",
    "default_devices": "_config",
    "doctor": "_doctor",
    "ensure_bridge": "_network._host",
    "ensure_forwarding_enabled": "_network._host",
    "exec_in_namespaces": "_exec",
    "get_namespace_paths": "_exec",
    "join_network_namespace": "_exec",
    "lease_ip": "_network._leases",
    "list_containers": "_prune",
    "popen": "_oneshot",
    "port_mappings_from_strings": "_config",
    "prune": "_prune",
    "run": "_oneshot",
    "run_hooks": "_hooks",
    "setup_container_network": "_network._network",
    "setup_nat_for_bridge": "_network._host",
    "write_hosts": "_network._files",
    "write_resolv_conf": "_network._files",
}
# Plain data, on any system: to write a Config, or to catch an error.
_PURE = {"_capabilities", "_config", "_errors", "_seccomp"}

__all__ = [
    "DEFAULT_BRIDGE_GATEWAY",
    "DEFAULT_BRIDGE_NAME",
    "DEFAULT_BRIDGE_SUBNET",
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CPUResources",
    "CPUStats",
    "Capabilities",
    "Capability",
    "Cgroup",
    "CgroupError",
    "CgroupNotFoundError",
    "CgroupStats",
    "CgroupV2NotMountedError",
    "Check",
    "CleanupError",
    "CommandError",
    "Config",
    "ConfigError",
    "Container",
    "ContainerError",
    "ContainerEvent",
    "ContainerNotFoundError",
    "ContainerState",
    "ContainerTimeoutError",
    "ControllerNotEnabledError",
    "Device",
    "DeviceRule",
    "EventKind",
    "ExecConfig",
    "ExecProcess",
    "Hook",
    "HookError",
    "HookType",
    "Hooks",
    "HostRoot",
    "IDMapping",
    "IOResources",
    "IOStats",
    "IPLease",
    "Join",
    "Landlock",
    "LaunchError",
    "LogEntry",
    "MemoryEvents",
    "MemoryResources",
    "MemoryStats",
    "Mount",
    "MountFlags",
    "Namespaces",
    "Network",
    "NetworkConfig",
    "NetworkError",
    "NetworkMode",
    "Overlay",
    "PidsResources",
    "PidsStats",
    "PortForwarder",
    "PortMapping",
    "Pressure",
    "Process",
    "Pruned",
    "Report",
    "Resources",
    "Result",
    "Rlimit",
    "SeccompAction",
    "SeccompFlag",
    "SeccompOperator",
    "SeccompProfile",
    "SignalConfig",
    "SignalForwarder",
    "State",
    "StateError",
    "StateManager",
    "SyscallArg",
    "SyscallCondition",
    "SyscallRule",
    "UnsupportedError",
    "Usage",
    "__version__",
    "allocate_ip",
    "default_capabilities",
    "default_devices",
    "doctor",
    "ensure_bridge",
    "ensure_forwarding_enabled",
    "exec_in_namespaces",
    "get_namespace_paths",
    "join_network_namespace",
    "lease_ip",
    "list_containers",
    "popen",
    "port_mappings_from_strings",
    "prune",
    "run",
    "run_hooks",
    "setup_container_network",
    "setup_nat_for_bridge",
    "write_hosts",
    "write_resolv_conf",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _LAZY[name]
    if module not in _PURE and not _sys.platform.startswith("linux"):
        raise __getattr__("UnsupportedError")(f"containers need Linux; this is {_sys.platform}")
    value = getattr(_import_module(f"container.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
