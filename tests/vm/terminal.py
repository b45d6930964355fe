# SPDX-License-Identifier: Apache-2.0
"""The terminal of `--shell`; where stdin is none, it holds the commands to run."""

import functools
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


def there() -> bool:
    """Whether somebody sits at stdin."""
    return sys.stdin.isatty()


@functools.cache
def script() -> str:
    """All of stdin, the same for every kernel."""
    return sys.stdin.read()


@contextmanager
def raw() -> Iterator[int]:
    """The fd of the terminal, which is raw until the end."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size() -> tuple[int, int]:
    """Rows and columns."""
    found = os.get_terminal_size(sys.stdin.fileno())
    return found.lines, found.columns
