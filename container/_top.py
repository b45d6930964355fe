# SPDX-License-Identifier: Apache-2.0
"""``container stats``: the cgroups that this user's containers have now, whoever started them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from select import select
from time import monotonic
from typing import Any

from container._cgroup import Cgroup, CgroupStats, group_name
from container._errors import CgroupError
from container._hierarchy import subtrees

_COLUMNS = ("ID", "CPU %", "CPU s", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")
_UNITS = "BKMGTPE"


@dataclass(frozen=True, slots=True)
class Sample:
    """The numbers of one container at one time, in seconds of a clock that only goes on."""

    name: str
    path: str
    stats: CgroupStats
    time: float


def _groups() -> Iterator[str]:
    for subtree in subtrees():
        for entry in _directories(subtree):
            # A launcher's, with those of its containers; or one that `Cgroup.create` has made.
            yield from _directories(entry) if os.path.basename(entry)[0] == "@" else (entry,)


def _directories(path: str) -> list[str]:
    try:
        return sorted(entry.path for entry in os.scandir(path) if entry.is_dir())
    except OSError:  # gone meanwhile
        return []


def take_samples(names: Sequence[str] = ()) -> list[Sample]:
    """Of every container that has processes, or of those that are named."""
    samples = []
    for path in _groups():
        with suppress(CgroupError):  # it ended meanwhile
            group, name = Cgroup(path), group_name(path)
            if (name in names or not names) and name is not None and group.populated:
                samples.append(Sample(name, path, group.stats(), monotonic()))
    return samples


def as_dicts(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """For JSON."""
    return [
        {"id": sample.name, "cgroup": sample.path, **sample.stats.to_dict()} for sample in samples
    ]


def _size(number: int | None) -> str:
    if number is None:
        return "-"
    unit = 0
    value = float(number)
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}{_UNITS[unit]}" if unit else f"{number}B"


def _row(sample: Sample, before: Sample | None) -> tuple[str, ...]:
    stats = sample.stats
    percent = "-"
    if before is not None and sample.time > before.time:
        used = stats.cpu.usage - before.stats.cpu.usage
        percent = f"{100 * used / (sample.time - before.time):.1f}"
    memory, pids = stats.memory, stats.pids
    return (
        *(sample.name, percent, f"{stats.cpu.usage:.2f}"),
        *((_size(memory.current), _size(memory.max)) if memory is not None else ("-", "-")),
        "-" if pids is None else f"{pids.current}/{pids.max or '-'}",
        _size(sum(each.rbytes for each in stats.io.values())),
        _size(sum(each.wbytes for each in stats.io.values())),
    )


def format_table(samples: Sequence[Sample], before: Mapping[str, Sample]) -> str:
    """A line for each; how much of a processor since the sample ``before``, by path."""
    rows = [_COLUMNS, *(_row(sample, before.get(sample.path)) for sample in samples)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def tables(names: Sequence[str], interval: float) -> Iterator[str]:
    """One after the other, for ever."""
    before: dict[str, Sample] = {}
    while True:
        samples = take_samples(names)
        yield format_table(samples, before)
        before = {sample.path: sample for sample in samples}
        select([], [], [], interval)
