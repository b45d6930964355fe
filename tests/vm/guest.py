# SPDX-License-Identifier: Apache-2.0
"""Inside the machine: make it complete, run the tests, send what they say and how they end.

Runs as PID 1, or as a systemd service. The kernel's own calls instead of programs, because
starting a process is what the emulated machine is slowest at; few imports for the same reason.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any, NoReturn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from vm import protocol

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_SHARED = 2, 4, 8, 1 << 14, 1 << 20
HARDENED = MS_NOSUID | MS_NODEV | MS_NOEXEC
RB_POWER_OFF = 0x4321FEDC
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
TIOCSWINSZ = 0x5414

# (target, type, flags, data): what systemd would mount; /proc and /dev are there already
MOUNTS = (
    ("/sys", "sysfs", HARDENED, ""),
    ("/sys/kernel/security", "securityfs", HARDENED, ""),
    ("/sys/fs/bpf", "bpf", HARDENED, "mode=700"),
    ("/sys/fs/cgroup", "cgroup2", HARDENED, "nsdelegate,memory_recursiveprot"),
    ("/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620"),
    ("/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
    ("/dev/mqueue", "mqueue", HARDENED, ""),
    ("/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"),
)
LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)
MODULES = ("tun", "loop", "fuse")
OPEN_DEVICES = ("/dev/net/tun", "/dev/fuse")  # 0666 by udev's rules on a real machine

MORE, NOTHING, END = range(3)  # what pump() says

libc = ctypes.CDLL(None, use_errno=True)
Config = dict[str, Any]


def main() -> NoReturn:
    """Never returns: the machine ends with the tests."""
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            config: Config = json.load(file)
        os.environ["PATH"] = config["env"]["PATH"]
        port = open_port()
        if os.getpid() == 1:
            become_init()
        complete(config)
    except Exception as error:
        with open("/dev/console", "w", encoding="utf-8") as console:
            console.write(f"{traceback.format_exc()}{protocol.SETUP_FAILED}{error!r}\n")
        power_off()
    send(port, protocol.BOOTED, os.uname().release.encode())
    status = run(port, config)
    if os.path.exists(protocol.REPORT_FILE):
        with open(protocol.REPORT_FILE, "rb") as report:
            send(port, protocol.REPORT, report.read())
    send(port, protocol.STATUS, str(status).encode())
    power_off()


def open_port() -> int:
    """The virtio-serial port that leads to the harness; the kernel adds it when QEMU says so."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for name in os.listdir("/dev"):
            if name.startswith("vport"):
                return os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.02)
    raise OSError("no virtio-serial port")


def become_init() -> None:
    """What systemd does where it is PID 1."""
    for target, fstype, flags, data in MOUNTS:
        if not os.path.isdir(target):
            os.mkdir(target)
        mount(fstype, target, fstype, flags, data)
    mount(None, "/", None, MS_REC | MS_SHARED, None)
    for target, name in LINKS:
        os.symlink(target, name)
    enable_controllers("/sys/fs/cgroup")
    with open("/etc/hostname", encoding="utf-8") as name_file:
        socket.sethostname(name_file.read().strip())
    loopback_up()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1 << 20))


def complete(config: Config) -> None:
    """What systemd does not do either."""
    os.umask(0o022)
    load(MODULES)
    for device in OPEN_DEVICES:
        os.chmod(device, 0o666)
    mount("/dev/vda", config["scratch"], "ext4", MS_NODEV, "noinit_itable")
    os.chmod(config["scratch"], 0o1777)
    os.makedirs(os.path.dirname(protocol.REPORT_FILE), exist_ok=True)
    for user in config["users"]:
        own_directory(user["home"], user["uid"])
        if os.getpid() == 1:
            os.makedirs("/run/user", exist_ok=True)
            own_directory(f"/run/user/{user['uid']}", user["uid"])
    for path in config["passages"]:
        # the ordinary users reach the tree and the interpreter below /root
        os.chmod(path, os.stat(path).st_mode | 0o011)


def mount(
    source: str | None, target: str, fstype: str | None, flags: int, data: str | None
) -> None:
    """mount(2); OSError with the target where it fails."""
    words = [None if w is None else w.encode() for w in (source, target, fstype, data)]
    if libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {fstype}: {os.strerror(error)}", target)


def enable_controllers(cgroup: str) -> None:
    """Give every controller to the children of `cgroup`."""
    with open(f"{cgroup}/cgroup.controllers", encoding="ascii") as file:
        controllers = file.read().split()
    for controller in controllers:
        with open(f"{cgroup}/cgroup.subtree_control", "w", encoding="ascii") as file:
            file.write(f"+{controller}")


def loopback_up() -> None:
    """lo takes its address by itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


def load(modules: tuple[str, ...]) -> None:
    """modprobe; OSError where it fails."""
    pid = os.posix_spawnp("modprobe", ["modprobe", "-a", *modules], os.environ)
    if os.waitpid(pid, 0)[1]:
        raise OSError(f"modprobe -a {' '.join(modules)} failed")


def own_directory(path: str, uid: int) -> None:
    """A 0700 directory of `uid`."""
    os.mkdir(path, 0o700)
    os.chown(path, uid, uid)


def send(port: int, kind: bytes, payload: bytes) -> None:
    """One frame to the harness, whole; the port takes 32 KiB at a time."""
    rest = memoryview(protocol.frame(kind, payload))
    while rest:
        rest = rest[os.write(port, rest) :]


def run(port: int, config: Config) -> int:
    """Run the command and pass its output on; its exit status, -N for a signal.

    Children that others left behind are reaped on the way, as an init does.
    """
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child, stream = spawn(config)
    poll = select.poll()
    for source in (wake_read, stream, port) if config["shell"] else (wake_read, stream):
        poll.register(source, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 512)
                if (status := reap(child)) is not None:
                    while pump(port, stream) == MORE:
                        pass
                    return status
            elif fd == port:
                type_in(stream, os.read(port, 1024))
            elif pump(port, stream) == END:
                poll.unregister(stream)


def spawn(config: Config) -> tuple[int, int]:
    """Start the command; its pid and a non-blocking fd of its output (and terminal)."""
    if config["shell"]:
        ours, theirs = os.openpty()
        fcntl.ioctl(ours, TIOCSWINSZ, struct.pack("HHHH", *config["shell"], 0, 0))
        os.set_inheritable(ours, False)
    else:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    pid = os.fork()
    if pid == 0:
        try:
            become_command(config, theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(127)
    os.close(theirs)
    return pid, ours


def become_command(config: Config, output: int) -> NoReturn:
    """In the child: session, stdio, directory, exec."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # as Python found them
        signal.signal(number, signal.SIG_DFL)
    if config["shell"]:
        os.login_tty(output)
    else:
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
    os.chdir(config["tree"])
    command = break_command(config["break"]) or config["command"]
    os.execvpe(command[0], command, config["env"])


def break_command(kind: str) -> list[str] | None:
    """What to run in place of the tests to see the harness notice it."""
    if kind == "panic":
        return ["sh", "-c", "echo c >/proc/sysrq-trigger"]
    if kind in ("hang", "lost"):
        return ["sleep", "infinity"]
    return None


def reap(child: int) -> int | None:
    """Reap whoever ended; the status of `child` if it did."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)


def pump(port: int, stream: int) -> int:
    """Pass on what is there now: MORE may follow, NOTHING was there, or this is the END."""
    try:
        data = os.read(stream, 1 << 16)
    except BlockingIOError:
        return NOTHING
    except OSError as error:
        if error.errno != errno.EIO:  # a terminal whose last user is gone
            raise
        data = b""
    if not data:
        return END
    send(port, protocol.OUTPUT, data)
    return MORE


def type_in(terminal: int, keys: bytes) -> None:
    """Pass `keys` to the shell; what a full terminal does not take is lost, as at a real one."""
    with contextlib.suppress(BlockingIOError):
        os.write(terminal, keys)


def power_off() -> NoReturn:
    """End the machine at once; nothing on its disks is kept."""
    libc.reboot(ctypes.c_uint(RB_POWER_OFF))
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
