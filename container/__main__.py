# SPDX-License-Identifier: Apache-2.0
"""``python -m container``: the ``container`` command."""

import sys

from container._cli import main

if __name__ == "__main__":
    sys.exit(main())
