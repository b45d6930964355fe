# SPDX-License-Identifier: Apache-2.0
"""A host of the tests' own to make networks on: a process in network and mount namespaces of its
own, which runs the package and what tests send it. The machine's network is never touched.

::

    client 192.0.2.2/24 ---- wan 192.0.2.1/24 fake host container0 10.88.0.1/16 ---- containers
    2001:db8:1::2/64         2001:db8:1::1/64           (…)
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from system.helpers import PATIENCE, caller_argv

_SETUP = r"""
import contextlib, pathlib, re, socket, struct, threading, traceback
from container import _launcher

def sh(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    assert not check or done.returncode == 0, (words, done.stderr)
    return done.stdout if check else done.stderr

sh("mount", "-t", "tmpfs", "run", "/run")
sh("mount", "-t", "sysfs", "sys", "/sys")
sh("ip", "link", "set", "lo", "up")
sh("ip", "netns", "add", "client")
for words in (
    "link add wan type veth peer name wan netns client",
    "addr add 192.0.2.1/24 dev wan",
    "addr add 2001:db8:1::1/64 dev wan nodad",
    "link set wan up",
    "-n client link set lo up",
    "-n client addr add 192.0.2.2/24 dev wan",
    "-n client addr add 2001:db8:1::2/64 dev wan nodad",
    "-n client link set wan up",
    "-n client route add 10.88.0.0/15 via 192.0.2.1",
):
    sh("ip", *words.split())

SERVER = '''
import json, selectors, socket, sys
wanted = json.loads(sys.argv[1])
selector = selectors.DefaultSelector()
for protocol, port in wanted:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    if protocol == "tcp":
        sock.listen(64)
    selector.register(sock, selectors.EVENT_READ, protocol)
print("ready", flush=True)
def name(address):
    return address[0].removeprefix("::ffff:").encode()
while True:
    for key, _ in selector.select():
        if key.data == "tcp":
            peer, address = key.fileobj.accept()
            peer.sendall(name(address))
            peer.close()
        else:
            _, address = key.fileobj.recvfrom(100)
            key.fileobj.sendto(name(address), address)
'''

@contextlib.contextmanager
def serving(network=None, ports=(("tcp", 80), ("udp", 53)), **options):
    # A container whose server answers with the address that it was asked from.
    network = NetworkConfig() if network is None else network
    box = Container(Config(network=network, **options))
    with box:
        args = [sys.executable, "-I", "-S", "-c", SERVER, json.dumps(ports)]
        box.run(Process(args, stdout=PIPE))
        line = box.stdout.readline()
        assert line == b"ready\n", line
        yield box

def address(box, version=4):
    network = box.networks[0]
    return (network.ip_address if version == 4 else network.ip6_address).partition("/")[0]

def ask(protocol, host, port, source=None, timeout=5.0):
    # The answer, or the name of the error.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(timeout)
        try:
            if source is not None:
                sock.bind(source)
            sock.connect((host, port))
            if protocol == "udp":
                sock.send(b"?")
            return sock.recv(100).decode()
        except OSError as error:
            return type(error).__name__

REFUSED = 0.3  # seconds to wait for an answer that must not come

def at(where, work, *args, **options):
    # `work` in the namespace of a container, or of the client.
    result = []
    def run():
        fd = os.open(f"/proc/{where.pid}/ns/net" if where != "client" else "/run/netns/client", 0)
        check(libc.setns(fd, 0x40000000))
        os.close(fd)
        result.append(work(*args, **options))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]

def ruleset():
    return sh("nft", "list", "ruleset")

def rules():
    # Their words: sets have no order of their own.
    return sorted(re.split(r"[\s,]+", ruleset()))

def links():
    # Names, but for what goes with a namespace when the kernel comes to it.
    names = [line.split()[0] for line in sh("ip", "-br", "link").splitlines()]
    return [name for name in names if not name.startswith("ctr-")]

def elements(text=None):
    # Those of containers and ports, a line each.
    return re.findall(r"\S[^\n]* comment [^\n]*", ruleset() if text is None else text)

def ports_left():
    return [line for line in sh("ip", "-br", "link").splitlines() if line.startswith("ctr-")]

def left():
    # What a test must not leave: but for bridges everything.
    top = pathlib.Path("/run/container/.network")
    files = [str(path) for path in top.glob("*/owners/*/*") if path.name != "lock"]
    named = [line for line in elements() if not re.search(r'comment "[a-z]+0?[0-9]"', line)]
    deadline = time.monotonic() + 5
    while ports_left() and time.monotonic() < deadline:
        time.sleep(0.005)
    return files + named + ports_left()

def refused(error, work, *args, **options):
    # The words of the error that it must be.
    try:
        work(*args, **options)
    except error as found:
        return str(found)
    raise AssertionError(f"no {error}")

container.run(["true"])
_launcher.drop_blanks()
print("ready", flush=True)
for line in sys.stdin:
    scope = dict(globals())
    try:
        exec(json.loads(line), scope)
        _launcher.drop_blanks()
        tell({"answer": scope.get("answer"), "left": left()})
    except BaseException:
        tell({"error": traceback.format_exc()})
"""


class FakeHost:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, source: str, *, may_leave: bool = False) -> Any:
        """Run Python there, with what `_SETUP` and the prelude of callers have; its `answer`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(textwrap.dedent(source)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the fake host has ended"
        told = json.loads(line)
        assert "error" not in told, told["error"]
        assert may_leave or told["left"] == [], told["left"]
        return told["answer"]


@contextlib.contextmanager
def fake_host() -> Iterator[FakeHost]:
    """One that is gone afterwards, with all that was made there."""
    argv = ["unshare", "--net", "--mount", "--propagation", "private", *caller_argv(_SETUP)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=sys.stderr
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield FakeHost(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
