# SPDX-License-Identifier: Apache-2.0
"""A harness of what the launcher reads from outside; see harness.c."""
