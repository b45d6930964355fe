# SPDX-License-Identifier: Apache-2.0
"""What README.md and the Python of docs/ show works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

TREE = Path(__file__).resolve().parents[2]
SECONDS = 50


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    language: str
    line: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.language}-line-{self.line}"


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(path.stem, match[1], text.count("\n", 0, match.start()) + 2, match[2])
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def made(block: Block) -> list[str]:
    """The lines that call make."""
    return [line for line in block.text.splitlines() if re.match(r"make\b", line)]


def parameters(blocks: list[Block]) -> list[object]:
    def needs(block: Block) -> tuple[str, ...]:
        words = {"busybox": "busybox", "Overlay": "overlay"}
        return ("userns", *(need for word, need in words.items() if word in block.text))

    return [pytest.param(b, id=b.name, marks=pytest.mark.needs(*needs(b))) for b in blocks]


README = blocks_of(TREE / "README.md")
DOCS = [block for path in sorted((TREE / "docs").glob("*.md")) for block in blocks_of(path)]
PYTHON = [block for block in (*README, *DOCS) if block.language == "python"]
SHELL = [block for block in README if block.language == "sh" and not made(block)]
MAKE = [line for block in README if block.language == "sh" for line in made(block)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the command `container`, whether the package is installed or only in the path."""
    command = tmp_path / "bin" / "container"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m container "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}


def test_every_block_is_checked_by_one_of_these_tests() -> None:
    assert {block.language for block in README} == {"python", "sh", ""}
    assert len(PYTHON) >= 10
    assert len(SHELL) >= 2
    for block in README:
        if block.language == "sh" and made(block):
            assert made(block) == block.text.splitlines()


@pytest.mark.parametrize("block", parameters(PYTHON))
def test_a_python_example_runs(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("userns")
def test_the_first_example_prints_what_its_comment_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[0].text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    (comment,) = re.findall(r"print\(.*# (.*)", PYTHON[0].text)
    assert done.stdout.split("\n")[:2] == comment.split(", ")


@pytest.mark.long
@pytest.mark.parametrize("block", parameters(SHELL))
def test_a_shell_example_runs(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-eu", "-c", block.text],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # What a line is shown to fail with, it says with ||.
    assert done.stderr.count("container: error:") <= block.text.count(" || ")


@pytest.mark.parametrize("line", MAKE)
def test_a_make_example_names_a_target_that_make_lists(line: str) -> None:
    words = line.partition("#")[0].split()
    done = subprocess.run(["make", "-C", TREE], capture_output=True, text=True, check=True)
    targets = re.findall(r"^([a-z-]+) ", done.stdout, re.MULTILINE)
    assert set(words[1:]) <= set(targets)


def test_every_link_leads_to_a_file_of_the_tree_or_a_heading() -> None:
    text = (TREE / "README.md").read_text(encoding="utf-8")
    headings = {heading.lower() for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]*)\)", text):
        assert (TREE / target).is_file() or target.removeprefix("#") in headings, target
