# SPDX-License-Identifier: Apache-2.0
"""Root directories made by an enemy; see roots.py."""
