# SPDX-License-Identifier: Apache-2.0
"""Run the system tests on Debian's kernels, each in one boot of a machine under QEMU.

    python tests/vm/run.py [--kernel NAME]... [--systemd] [--shell] [-- PYTEST-ARGUMENT...]

Exit status: 0 all passed; 1 tests failed; 2 wrong usage; 10 kernel panic; 11 hang (a time limit
passed); 12 QEMU lost; 13 the machine cannot be set up here; 128+N interrupted by signal N.
docs/testing-vm.md has the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__))
