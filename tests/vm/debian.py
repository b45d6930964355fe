# SPDX-License-Identifier: Apache-2.0
"""What comes from Debian: programs of this host, and packages that are only unpacked.

Packages are fetched by this host's apt from the archive that its sources already name, with
package lists of its own, so that nothing of the host's apt state changes. apt verifies them by
the archive's signature; nothing is taken by another way.
"""

import glob
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vm import SetupError

WHY = "apt-get says above why (is there no network?)"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# What runs on the host, or inside from the host's own files: program → Debian package.
HOST_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "depmod": "kmod",  # the guest's modprobe too
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "dpkg-deb": "dpkg",
    "zstd": "zstd",
    "nft": "nftables",
    "newuidmap": "uidmap",
    "ip": "iproute2",
}
SYSTEMD_TOOLS = {
    "/lib/systemd/systemd": "systemd",
    "/lib/systemd/systemd-logind": "systemd",
    "dbus-daemon": "dbus-daemon",
    "/usr/lib/systemd/user/dbus.socket": "dbus-user-session",
    "/lib/*/security/pam_systemd.so": "libpam-systemd",
}


def search_path() -> str:
    """PATH with the directories that an ordinary user's PATH leaves out."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing(tools: dict[str, str], path: str) -> list[str]:
    """The packages of those `tools` (program or absolute pattern → package) that are not there."""
    found = {tool for tool in tools if shutil.which(tool, path=path) or _matches(tool)}
    return sorted({package for tool, package in tools.items() if tool not in found})


def install(packages: Sequence[str]) -> None:
    """Install `packages` on this host, where it may; SetupError where not."""
    command = "apt-get install --no-install-recommends " + " ".join(packages)
    if not shutil.which("apt-get"):
        raise SetupError(f"not a Debian host and these are missing: {' '.join(packages)}")
    if os.geteuid() != 0:
        raise SetupError(f"only root may install what is missing: {command}")
    say(command)
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    flags = ["--yes", "--no-install-recommends", "--no-upgrade"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run([*apt, "update"], env=env)
        run([*apt, "install", *flags, "--download-only", *packages], env=env)
    except SetupError as error:
        raise SetupError(f"cannot fetch {' '.join(packages)} of Debian: {WHY}") from error
    # dpkg must not be killed half-way: an interruption waits until it is done.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        run([*apt, "install", *flags, *packages], env=env)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class Archive:
    """The packages of one Debian suite, fetched with apt state under `folder`.

    Those for `architecture`, in Debian's words; None: for this host's.
    """

    def __init__(self, suite: str, folder: Path, architecture: str | None = None) -> None:
        self._folder = folder
        self._suite, self._uri = suite, archive_uri()
        self._architecture = architecture
        for name in ("lists/partial", "archives/partial", "packages"):
            (folder / name).mkdir(parents=True)
        # With no package "installed", apt names everything that a kernel is made of.
        (folder / "status").touch()
        (folder / "sources").write_text(f"deb [signed-by={KEYRING}] {self._uri} {suite} main\n")
        self._fetch(f"the package lists of {suite}", ["update"])

    def closure(self, package: str, prefix: str) -> list[str]:
        """`package` and what it depends on, as far as the names begin with `prefix`."""
        flags = ["-q", "--simulate", "--no-install-recommends"]
        try:
            out = text(["apt-get", *self._options(), *flags, "install", package])
        except SetupError as error:
            raise SetupError(f"{self._suite} has no {package} that is whole: {error}") from error
        words = [line.split() for line in out.splitlines() if line.startswith("Inst ")]
        return [word[1] for word in words if word[1].startswith(prefix)]

    def unpack(self, packages: Iterable[str], to: Path) -> None:
        """Fetch `packages` and unpack their files under `to`; no script of theirs runs."""
        downloads = self._folder / "packages"
        self._fetch("the packages", ["download", *packages], downloads)
        for package in sorted(downloads.glob("*.deb")):
            run(["dpkg-deb", "--extract", str(package), str(to)])
            package.unlink()

    def _fetch(self, what: str, arguments: Sequence[str], cwd: Path | None = None) -> None:
        try:
            run(["apt-get", *self._options(), "-q", *arguments], cwd=cwd)
        except SetupError as error:
            raise SetupError(f"cannot fetch {what} from {self._uri}: {WHY}") from error

    def _options(self) -> list[str]:
        settings: dict[str, str | Path] = {
            "Dir::Etc::sourcelist": self._folder / "sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self._folder / "lists",
            "Dir::State::status": self._folder / "status",
            "Dir::Cache": self._folder,
            "APT::Sandbox::User": "",  # the folder may lie where _apt cannot go
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Update::Error-Mode": "any",  # lists that cannot be fetched are no success
        }
        if self._architecture is not None:
            settings["APT::Architecture"] = self._architecture
            settings["APT::Architectures"] = self._architecture
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def archive_uri() -> str:
    """The address of the Debian archive among this host's apt sources; apt itself reads them."""
    if not shutil.which("apt-get"):
        raise SetupError("kernels come from Debian, and this host has no apt-get")
    form = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    out = text(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    for line in out.splitlines():
        origin, label, uri = line.split("|", 2)
        if (origin, label) == ("Debian", "Debian"):
            return uri
    raise SetupError("no Debian archive in this host's apt sources (is `apt-get update` missing?)")


def say(message: str) -> None:
    """One line about the preparation, on stderr."""
    print(f"test-vm: {message}", file=sys.stderr, flush=True)


def run(command: Sequence[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run `command`, its output on our stderr; SetupError where it fails."""
    try:
        subprocess.run(
            command, cwd=cwd, env=env, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(_failed(error, command)) from error


def text(command: Sequence[str]) -> str:
    """The output of `command`; SetupError where it fails."""
    try:
        done = subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(_failed(error, command)) from error
    return done.stdout


def _failed(error: OSError | subprocess.CalledProcessError, command: Sequence[str]) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{command[0]} ended with status {error.returncode}"
    return f"{command[0]}: {error.strerror}"


def _matches(tool: str) -> bool:
    return tool.startswith("/") and bool(glob.glob(tool))
