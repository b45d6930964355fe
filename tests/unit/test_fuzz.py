# SPDX-License-Identifier: Apache-2.0
"""What the launcher reads from outside, under the sanitizers: tests/fuzz/harness.c.

Run on valid inputs, on what a fuzzer found worth keeping, and on both with some bits changed.
With clang: ``tests/fuzz/README.md`` says how to go on from there.
"""

from __future__ import annotations

import random
import struct
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fuzz import seeds

from container._native import ffi

pytestmark = pytest.mark.needs("gcc")

DIRECTORY = Path(seeds.__file__).parent
CORPUS = DIRECTORY / "corpus.tar.xz"
CHANGED = 4000
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness with a main of its own, built with gcc's sanitizers."""
    program = tmp_path_factory.mktemp("fuzz") / "replay"
    sources = [str(DIRECTORY / name) for name in ("harness.c", "replay.c")]
    flags = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror")
    command = ["gcc", *flags, *SANITIZE, "-o", str(program), *sources]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


def corpus() -> list[bytes]:
    with tarfile.open(CORPUS) as archive:
        files = (archive.extractfile(member) for member in archive)
        return [file.read() for file in files if file is not None]


def run(program: Path, inputs: Sequence[bytes], path: Path) -> None:
    """Every input goes through, and nothing is said but their number."""
    path.write_bytes(b"".join(len(each).to_bytes(4, "little") + each for each in inputs))
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-4000:]
    assert int(done.stdout) == len(inputs)


def changed(inputs: Sequence[bytes]) -> Iterator[bytes]:
    order = random.Random(5)
    for _ in range(CHANGED):
        data = bytearray(order.choice(inputs))
        for _ in range(order.choice((1, 1, 2, 5, 20))):
            at = order.randrange(1, len(data))
            data[at] = order.choice((0, 1, 0xFF, 0x80, order.randrange(256)))
        if order.random() < 0.2:
            del data[order.randrange(1, len(data)) :]
        yield bytes(data)


def test_valid_inputs_go_through(replay: Path, tmp_path: Path) -> None:
    run(replay, seeds.seeds(), tmp_path / "inputs")


def test_what_a_fuzzer_kept_goes_through(replay: Path, tmp_path: Path) -> None:
    kept = corpus()
    assert len(kept) > 50
    run(replay, kept, tmp_path / "inputs")


def test_changed_inputs_go_through(replay: Path, tmp_path: Path) -> None:
    inputs = [each for each in (*seeds.seeds(), *corpus()) if len(each) > 1]
    run(replay, list(changed(inputs)), tmp_path / "inputs")


def test_a_promise_that_is_not_kept_is_seen(tmp_path: Path) -> None:
    # The same harness on a decoder that looks away at one thing: it has to fail.
    (tmp_path / "csrc").mkdir()
    (tmp_path / "tests/fuzz").mkdir(parents=True)
    for source in (DIRECTORY.parents[1] / "csrc").glob("*.[ch]"):
        text = source.read_text()
        if source.name == "request.c":
            text = text.replace("    return offset < size;", "    return offset < size + 4096;")
        (tmp_path / "csrc" / source.name).write_text(text)
    for name in ("harness.c", "replay.c"):
        (tmp_path / "tests/fuzz" / name).write_text((DIRECTORY / name).read_text())
    program = tmp_path / "replay"
    sources = [str(tmp_path / "tests/fuzz" / name) for name in ("harness.c", "replay.c")]
    command = ["gcc", "-std=gnu11", "-O1", *SANITIZE, "-o", str(program), *sources]
    subprocess.run(command, check=True, capture_output=True)
    seed = bytearray(next(seeds.starts()))
    struct.pack_into("I", seed, 1 + ffi.offsetof("struct start", "cwd"), len(seed) - 1)
    with pytest.raises(AssertionError, match="AddressSanitizer"):
        run(program, [bytes(seed)], tmp_path / "inputs")
