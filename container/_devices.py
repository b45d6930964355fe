# SPDX-License-Identifier: Apache-2.0
"""Device nodes of the host that stand for those of a container with a user namespace.

There the kernel makes no node that could be opened, whoever asks: the host's is bound instead,
with the owner and mode that it has.
"""

import os
import stat

from container._config import Config, Device, default_devices
from container._errors import UnsupportedError, launch_error


def devices_of(config: Config) -> dict[str, Device]:
    """Every device by where in the Config it comes from; the default ones are always there."""
    given = {f"devices[{i}]": device for i, device in enumerate(config.devices)}
    paths = {device.path for device in config.devices}
    missing = [device for device in default_devices() if device.path not in paths]
    return {f"devices ({device.path})": device for device in missing} | given


def find_nodes(config: Config, *, any_id: bool) -> dict[str, str]:
    """Container path → path on the host of each device but the default ones, which all may open.

    ``any_id``: the container's ids are nobody's on the host. `LaunchError` where there is no such
    device, or the caller may not open it; `UnsupportedError` where a node cannot be as asked for.
    """
    return {
        str(device.path): _find_node(device, field, any_id)
        for field, device in devices_of(config).items()
        if device not in default_devices()
    }


def _find_node(device: Device, field: str, any_id: bool) -> str:
    path, status = _look_up(device)
    name = f"{path!r} of the host"
    if not os.access(path, os.R_OK, effective_ids=True) and not os.access(
        path, os.W_OK, effective_ids=True
    ):
        raise launch_error("sources", 13, f"this user may not open {name}", path)
    mode = stat.S_IMODE(status.st_mode)
    if device.mode not in (None, mode):
        raise UnsupportedError(
            f"in a user namespace {name} is bound, and its mode is {mode:#o}", field=f"{field}.mode"
        )
    for kind, number in (("uid", device.uid), ("gid", device.gid)):
        if number:
            raise UnsupportedError(
                f"in a user namespace {name} is bound, with the owner that it has",
                field=f"{field}.{kind}",
            )
    if any_id and not mode & 0o006:
        raise UnsupportedError(
            f"nobody in this container could open {name}: its mode is {mode:#o}, and the"
            " container's ids own nothing of the host",
            field=field,
        )
    return path


def _look_up(device: Device) -> tuple[str, os.stat_result]:
    for path in (str(device.path), _name_in_sysfs(device)):
        try:
            status = os.stat(path)
        except OSError:
            continue
        if _is_device(status, device):
            return path, status
    kind = "character" if device.type == "c" else "block"
    detail = f"the host has no {kind} device {device.major}:{device.minor} to bind"
    raise launch_error("sources", 2, detail, str(device.path))


def _is_device(status: os.stat_result, device: Device) -> bool:
    number = os.makedev(device.major, device.minor)
    kind = stat.S_IFCHR if device.type == "c" else stat.S_IFBLK
    return stat.S_IFMT(status.st_mode) == kind and status.st_rdev == number


def _name_in_sysfs(device: Device) -> str:
    kind = "char" if device.type == "c" else "block"
    path = f"/sys/dev/{kind}/{device.major}:{device.minor}/uevent"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = dict(line.strip().partition("=")[::2] for line in file)
    except OSError:
        return str(device.path)
    return f"/dev/{lines.get('DEVNAME', '')}"
