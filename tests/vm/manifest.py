# SPDX-License-Identifier: Apache-2.0
"""Whether a folder of the cache is as it was when it was finished."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

NAME = "sha256sums"


def write(folder: Path) -> None:
    """Note every file of `folder`, and see that all of it is on the disk before the note is."""
    lines = [f"{_digest(path)}  {path.relative_to(folder)}\n" for path in _files(folder)]
    os.sync()
    with (folder / NAME).open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> str | None:
    """What is wrong with `folder`; None where it is whole."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return f"no list of its files ({error})"
    wanted = {
        name: digest for digest, _, name in (row.partition("  ") for row in text.splitlines())
    }
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    if not wanted or wanted.keys() != found.keys():
        names = sorted(wanted.keys() ^ found.keys())
        return f"{len(names)} files too many or missing, {names[:1]}"
    for name, path in found.items():
        try:
            if _digest(path) != wanted[name]:
                return f"{name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _files(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder):
        paths = (Path(directory, name) for name in names if name != NAME)
        yield from (path for path in paths if not path.is_symlink())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
