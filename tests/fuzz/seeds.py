# SPDX-License-Identifier: Apache-2.0
"""Valid inputs of harness.c to begin from: whatever the library sends, and what the kernel writes.

python tests/fuzz/seeds.py DIRECTORY    writes them there, a file each
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from container import (
    Capabilities,
    Config,
    Device,
    ExecConfig,
    Hook,
    HookType,
    IDMapping,
    Landlock,
    Mount,
    Namespaces,
    Process,
    Rlimit,
)
from container._hooks import _inside_request, _outside_request
from container._join import ALL_NAMESPACES, Host, plan_member
from container._launcher import Join, Source, StartFlag, encode_start
from container._native import ffi, lib
from container._plan import make_plan

START, LEASE, MESSAGE, RIGHTS, EXEC, HOOK = (bytes([part]) for part in range(6))

CONFIGS = (
    Config(),
    Config("/srv", nested=True, landlock=Landlock(read=["/"], write=["/tmp", "/dev/null"])),
    Config("/srv", masked_paths=(), readonly_paths=()),
    Config("/srv", Namespaces(pid=False), mounts=[Mount(None, "/a", "proc")]),
    Config("/srv", Namespaces(user=False, net=False), devices=[Device("/dev/x", "c", 1, 3)]),
    Config(
        mounts=[Mount.tmpfs("/a", size="1M"), Mount.bind("/usr", "/b", read_only=True)],
        sysctl={"net.ipv4.ip_forward": "1"},
        capabilities=Capabilities.all(),
        domainname="x",
        proc_options="hidepid=2",
    ),
)
PROCESSES = (
    Process(["true"]),
    Process(["/bin/sh", "-c", "x" * 100], env={"A": "b"}, rlimits=[Rlimit("NOFILE", 1, 2)]),
    Process(["true"], tty=True, tty_size=(24, 80)),
)


def starts() -> Iterator[bytes]:
    mappings = (IDMapping(0, 65536, 65536),)
    for config in CONFIGS:
        for process in PROCESSES:
            plan = make_plan(config, process, StartFlag(0) if process.tty else StartFlag.QUIET)
            for by_fd in (False, True):
                sources = [Source(0, 1, 2, True) if row.opened else None for row in plan.rows]
                yield START + encode_start(plan.request, (mappings, mappings), sources, by_fd=by_fd)


OTHER = "1:2" if os.geteuid() == 0 else "0:0"  # whom the caller's containers have
EXECS = (
    ExecConfig(["true"]),
    ExecConfig(["/bin/sh", "-c", "x" * 100], env={"A": "b"}, cwd="/tmp", user=OTHER),
    ExecConfig(["true"], root="/srv", capabilities=Capabilities.all()),
)


def execs() -> Iterator[bytes]:
    """In a container of the library's, and in the namespaces of somebody else's process."""
    child = SimpleNamespace(serial=7)
    for config in CONFIGS:
        for process in PROCESSES:
            plan = make_plan(config, process, StartFlag(0))
            host = Host(config, process, plan, child, 7)  # type: ignore[arg-type]
            for wanted in EXECS:
                request = plan_member(host, wanted, ALL_NAMESPACES).request
                for join in (request.join, Join(0, str(wanted.root or ""))):
                    request = replace(request, join=join)
                    yield EXEC + encode_start(request, ((), ()), (), by_fd=True, pipes=6)


def hooks() -> Iterator[bytes]:
    """In the caller's namespaces, and inside at both moments."""
    hook = Hook("/bin/sh", ["sh", "-c", "x" * 100], {"A": "b"})
    outside = _outside_request(hook, "/")
    yield HOOK + encode_start(outside, ((), ()), (), by_fd=True)
    for config in CONFIGS:
        first = make_plan(config, PROCESSES[0], StartFlag(0)).request
        for kind in (HookType.CREATE_CONTAINER, HookType.START_CONTAINER):
            request = _inside_request(kind, hook, first)
            yield HOOK + encode_start(request, ((), ()), (), by_fd=True)


def leases() -> Iterator[bytes]:
    path = b"/run/container/ids.lock\0"
    size = ffi.sizeof("struct lease")
    fields = (lib.REQUEST_LEASE, size + len(path), size, 8, 100, 9)
    yield LEASE + bytes(ffi.buffer(ffi.new("struct lease *", fields))) + path


def messages() -> Iterator[bytes]:
    """Control data: cmsg(3) with fds, with credentials."""
    for count in (0, 1, 4, 253):
        fds = struct.pack(f"QII{count}i", 16 + 4 * count, 1, 1, *range(count))
        fds += bytes(-len(fds) % 8)
        credentials = struct.pack("QIIiII", 28, 1, 2, 7, 0, 0) + bytes(4)
        yield from (MESSAGE + fds, MESSAGE + fds + credentials, MESSAGE + credentials + fds)


def rights() -> Iterator[bytes]:
    yield RIGHTS + Path("/proc/self/status").read_bytes()
    yield RIGHTS + b"Name:\tx\nUid:\t0\t0\t0\t0\nGroups:\t0 \nCapInh:\t0\nSeccomp:\t0\n\n\nUid"


def seeds() -> list[bytes]:
    return [*starts(), *execs(), *hooks(), *leases(), *messages(), *rights()]


if __name__ == "__main__":
    for number, seed in enumerate(seeds()):
        Path(sys.argv[1], f"seed-{number}").write_bytes(seed)
