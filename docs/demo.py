# SPDX-License-Identifier: Apache-2.0
"""Look around in a default container from the inside; exit status 1 where it is not as promised."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import container

LOOK = r"""
echo "hostname $(uname -n)"
echo "pid $$"
read -r first host count </proc/self/uid_map
echo "uid $(id -u), id map: $count from $first inside are those from $host outside"
echo "mounts:"
while read -r _ target type options _; do
    echo "    $target $type ${options%%,relatime*}"
done </proc/mounts
"""


def main() -> int:
    print("From inside a container on the default root, which is the host's /usr and little else:")
    print(inside(LOOK), end="")
    problems = [*look_at_private_directories(), *look_at_processes()]
    print("\n".join(problems) if problems else "All as promised.")
    return 1 if problems else 0


def inside(script: str) -> str:
    result = container.run(["sh", "-c", script], text=True, check=True)
    text: str = result.stdout
    return text


def look_at_private_directories() -> Iterator[str]:
    """Nothing of /home and /root is there but the interpreter that runs this, and the way to it."""
    found = inside("find /home /root -mindepth 1 -xdev").splitlines()
    prefixes = [Path(prefix) for prefix in {sys.prefix, sys.base_prefix}]
    allowed = {str(path) for prefix in prefixes for path in (prefix, *prefix.parents)}
    print(f"all below /home and /root: {' '.join(found) or 'nothing'}")
    for path in found:
        if path not in allowed and not any(path.startswith(f"{prefix}/") for prefix in prefixes):
            yield f"{path} should not be there"


def look_at_processes() -> Iterator[str]:
    """The host's processes do not exist inside."""
    outside = [name for name in os.listdir("/proc") if name.isdecimal()]
    seen = inside("cd /proc && echo [0-9]*").split()
    print(f"processes: {' '.join(seen)} (the host has {len(outside)})")
    if seen != ["1"]:
        yield "there should be one process, 1"


if __name__ == "__main__":
    sys.exit(main())
