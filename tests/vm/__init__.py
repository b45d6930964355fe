# SPDX-License-Identifier: Apache-2.0
"""The project's test machine: Debian kernels under QEMU that run the system tests."""


class SetupError(Exception):
    """This host cannot give the machine; the text says what is missing and what to do."""
