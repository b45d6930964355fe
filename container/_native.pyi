# SPDX-License-Identifier: Apache-2.0
# The cffi module is made by build_ffi.py; _launcher.py alone touches it, behind Protocols.
from typing import Any

ffi: Any
lib: Any
