# SPDX-License-Identifier: Apache-2.0
"""What `--break fail` runs inside the machine."""


def test_that_fails_on_purpose() -> None:
    """The harness must report this as a failed test and as nothing else."""
    assert not "failing on purpose"
