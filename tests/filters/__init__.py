# SPDX-License-Identifier: Apache-2.0
"""What the tests of seccomp filters share: who says what a filter, or a profile, means."""
