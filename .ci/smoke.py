# SPDX-License-Identifier: Apache-2.0
"""Whether an installed package works: run, exec, seccomp, and the same without root.

    python .ci/smoke.py [--must-run]

Where no container can run (an image builder that allows no namespaces), that is said with what
`doctor` found, and is no failure unless --must-run is given.
"""

import importlib.metadata
import os
import platform
import sys

import container

NOBODY = 65534
FIELDS = {"Seccomp": "2", "NoNewPrivs": "1", "CapInh": "0" * 16, "CapAmb": "0" * 16}


def main() -> int:
    assert container.__version__ == importlib.metadata.version("container")
    who = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    where = f"CPython {platform.python_version()}, {platform.machine()}, {who}"
    report = container.doctor()
    if not report.ok:
        print(f"LEFT OUT, no container can run here ({where}):\n{report}")
        return 1 if "--must-run" in sys.argv else 0
    look()
    print(f"works: run, exec, seccomp ({where})")
    if os.geteuid() == 0:
        return as_nobody()
    return 0


def look() -> None:
    result = container.run(["sh", "-c", "echo out; echo err >&2; exit 7"], text=True)
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "err\n"), result

    status = container.run(["cat", "/proc/self/status"], text=True, check=True).stdout
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {name: found[name] for name in FIELDS} == FIELDS, status

    # The default filter refuses a user namespace, whoever asks.
    refused = container.run(["unshare", "-U", "true"], text=True)
    assert refused.returncode != 0 and "not permitted" in refused.stderr, refused

    with container.Container() as box:
        box.run(container.Process(["sleep", "60"]))
        script = "cat; echo /proc/[0-9]*"
        command = container.ExecConfig(["sh", "-c", script], stdin=container.PIPE)
        with box.exec(command, text=True) as process:
            out, _ = process.communicate("typed\n", timeout=30)
        assert process.returncode == 0 and out.startswith("typed\n/proc/1 "), out


def as_nobody() -> int:
    """The same as an ordinary user, who must be able to read this interpreter's files."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.environ["HOME"] = "/"
        readable = os.access(os.__file__, os.R_OK) and os.access(container.__file__, os.R_OK)
        if readable:
            os.execv(sys.executable, [sys.executable, *sys.argv])
        print("LEFT OUT, an ordinary user cannot read this interpreter's files")
        os._exit(1 if "--must-run" in sys.argv else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
