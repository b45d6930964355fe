# SPDX-License-Identifier: Apache-2.0
"""The end of a tree of processes, where some end by themselves meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace

from container import _tree


def test_who_has_ended_meanwhile_is_no_sign_that_nobody_can_be_killed() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        entry = _tree._look_at(process.pid)
        assert entry is not None
        process.kill()
    assert _tree._look_at(process.pid) is None
    assert _tree._kill([entry]) == 1


def test_another_process_with_the_pid_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        entry = _tree._look_at(process.pid)
        assert entry is not None
        assert _tree._kill([replace(entry, start=entry.start - 1)]) == 1
        assert process.poll() is None
        assert _tree._kill([entry]) == 1
        assert process.wait() == -signal.SIGKILL
    assert not os.path.exists(f"/proc/{process.pid}")
