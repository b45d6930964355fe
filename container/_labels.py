# SPDX-License-Identifier: Apache-2.0
"""Labels of Linux security modules: whether this kernel has what is asked for."""

from pathlib import Path

from container._config import Config
from container._errors import UnsupportedError


def _has_apparmor() -> bool:
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_bytes().strip() == b"Y"
    except OSError:
        return False


def _has_selinux() -> bool:
    try:
        return b"\tselinuxfs\n" in Path("/proc/filesystems").read_bytes()
    except OSError:
        return False


def require_labels(config: Config) -> None:
    """`UnsupportedError` for a label that this kernel cannot give: it would be no confinement."""
    for field, name, has in (
        ("apparmor_profile", "AppArmor", _has_apparmor),
        ("selinux_label", "SELinux", _has_selinux),
    ):
        if getattr(config, field) is not None and not has():
            raise UnsupportedError(f"this kernel runs without {name}", field=field)
