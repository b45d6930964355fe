# SPDX-License-Identifier: Apache-2.0
"""The marker ``needs``: a test says what it needs of the machine, and is skipped where that lacks.

See tests/needs.py for the needs and for the variables that turn a skip into a failure.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator

import hypothesis
import needs
import pytest

MACHINE = pytest.StashKey[needs.Machine]()
POLICY = pytest.StashKey[needs.Policy]()

# How long an example takes says something about what else the machine does.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

# The needs that the machine which runs `.ci/run` does not meet, and its virtual machine does.
ONLY_IN_MACHINES = re.compile(r"cgroup2:|(vm|apparmor)$")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*names): what the test needs of the machine, see tests/needs.py"
    )
    # `.ci/run` runs in its virtual machine what is marked `kernel` and not `long`, in about three
    # minutes; `make test-vm` runs everything. A test that is not marked does not make CI longer.
    config.addinivalue_line(
        "markers",
        "kernel: it is about what a kernel does, so CI runs it on another one than its own; who"
        " needs of the machine what CI's own has not, is marked so without saying it",
    )
    config.addinivalue_line("markers", "long: takes too long for CI where QEMU emulates")
    try:
        config.stash[POLICY] = needs.Policy.from_environment(os.environ)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    # Idmapped mounts and the like depend on the file system on which the tests get their files.
    base = config.getoption("basetemp")
    directory = os.path.dirname(os.path.abspath(base)) if base else None
    config.stash[MACHINE] = needs.Machine(directory) if directory else needs.Machine()


def pytest_itemcollected(item: pytest.Item) -> None:
    if any(map(ONLY_IN_MACHINES.match, needs_of(item))):
        item.add_marker(pytest.mark.kernel)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in needs_of(item):
            try:
                needs.probe_of(name)
            except ValueError as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = item.config.stash[MACHINE].missing_of(needs_of(item))
    if not missing:
        return
    reason = "; ".join(f"needs {need}: {why}" for need, why in missing.items())
    forbidden = [need for need in missing if item.config.stash[POLICY].forbids(need)]
    if forbidden:
        pytest.fail(f"{reason} (must not be skipped: {', '.join(forbidden)})", pytrace=False)
    pytest.skip(reason)


def needs_of(item: pytest.Item) -> Iterator[str]:
    for marker in item.iter_markers("needs"):
        if marker.kwargs or not marker.args:
            raise pytest.UsageError(f"{item.nodeid}: needs() takes one or more names")
        yield from marker.args


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        # (path, line, "Skipped: reason")
        if isinstance(report.longrepr, tuple):
            counts[report.longrepr[2].removeprefix("Skipped: ")] += 1
    surplus = [
        need
        for need in sorted(config.stash[POLICY].may_skip)
        if need in config.stash[MACHINE].answers and config.stash[MACHINE].missing(need) is None
    ]
    if counts or surplus:
        terminalreporter.section("what this machine lacks")
    for reason, count in sorted(counts.items()):
        terminalreporter.line(f"{count} skipped: {reason}")
    for need in surplus:
        terminalreporter.line(f"CONTAINER_MAY_SKIP has {need}, which this machine does not lack")


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> needs.Machine:
    """Answers what this machine has; probes at most once for each need."""
    return pytestconfig.stash[MACHINE]


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """What nohup(1) or a shell has ignored would be ignored by the programs under test as well."""
    old = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        signal.SIGQUIT: signal.signal(signal.SIGQUIT, signal.SIG_DFL),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    yield
    for number, handler in old.items():
        signal.signal(number, handler)
