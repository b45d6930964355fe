# SPDX-License-Identifier: Apache-2.0
"""What `make wheels` builds, looked at, installed and run: `make test-wheels`."""
