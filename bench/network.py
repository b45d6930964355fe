# SPDX-License-Identifier: Apache-2.0
"""What a network costs: an interface at a bridge, a published port, a new flow through one.

    python bench/network.py [--most CONTAINERS] [--runs N]     as root

Everything happens in a network namespace of its own. Beside the package: the same messages,
prepared beforehand and sent on a plain socket (the floor), and `ip -batch` with `nft -f`.
Times are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

if os.environ.get("CONTAINER_BENCH") != "inside":
    os.environ["CONTAINER_BENCH"] = "inside"
    os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv])

from container import NetworkConfig, PortForwarder
from container._network import _netlink, _rules
from container._network._host import Host, ensure_bridge
from container._network._network import Connection
from container._network._records import Attachment, Port

_numbers = count(1)


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def run(*words: str, text: str | None = None) -> None:
    subprocess.run(words, input=text, text=True, check=True, capture_output=True)


@contextmanager
def namespace() -> Iterator[int]:
    """The pid of a process in a network namespace of its own."""
    args = ["unshare", "--net", "sh", "-c", "echo; exec sleep 10000"]
    with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def config() -> NetworkConfig:
    number = next(_numbers)
    return NetworkConfig(
        port_mappings=[f"{20000 + number % 20000}:80", f"{40000 + number % 20000}:81"]
    )


# Ways ---------------------------------------------------------------------------------------------


def by_package(pid: int) -> tuple[float, float]:
    wanted = config()
    held: list[Connection] = []

    def begin() -> None:
        held.append(Connection([wanted], f"bench-{next(_numbers)}"))
        held[0].attach(pid)

    return milliseconds(begin), milliseconds(held[0].release)


def by_messages(pid: int) -> tuple[float, float]:
    """The same rows and messages, encoded beforehand."""
    number = next(_numbers)
    address = f"10.88.{200 + number // 250 % 50}.{number % 250 + 2}"
    mac = bytes((10, 88, *socket.inet_aton(address)))
    name = f"ctr-bench{number}"
    attachment = Attachment("bench", "eth0", "container0", name, mac.hex(":"), (f"{address}/16",))
    rows = _rules.of_attachment(attachment)
    for port, inside in ((60000, 80), (60001, 81)):
        rows.append(_rules.of_port(Port(None, port, address, inside, "tcp"), "bench"))
    there = _netlink.open_namespace(pid)
    bridge = socket.if_nametoindex("container0")
    veth = [_netlink.new_veth(name, bridge, there, "eth0", mac, None)]
    add, take = (_netlink.elements("container", rows, new=new) for new in (True, False))
    packed, gateway = socket.inet_aton(address), socket.inet_aton("10.88.0.1")
    inside_messages = [
        _netlink.set_up(2),
        _netlink.new_address(2, packed, 16),
        _netlink.new_default_route(2, gateway),
    ]

    def begin() -> None:
        with _netlink.open_netfilter() as netfilter, _netlink.open_route() as route:
            _netlink.commit(netfilter, add)
            route.send(veth)
            route.send([_netlink.set_hairpin(socket.if_nametoindex(name))])

        def work() -> None:
            with _netlink.open_route() as route:
                route.send(inside_messages)

        _netlink.inside(there, work)

    def end() -> None:
        with _netlink.open_netfilter() as netfilter:
            _netlink.commit(netfilter, take)

    try:
        return milliseconds(begin), milliseconds(end)
    finally:
        os.close(there)


def by_programs(pid: int) -> tuple[float, float]:
    number = next(_numbers)
    address = f"10.88.{200 + number // 250 % 50}.{number % 250 + 2}"
    mac = bytes((10, 88, *socket.inet_aton(address))).hex(":")
    name = f"ctr-bench{number}"
    link = f"link add {name} master container0 up type veth peer eth0 address {mac} netns {pid}\n"
    link += f"link set {name} type bridge_slave hairpin on\n"
    within = f"link set eth0 up\naddr add {address}/16 dev eth0\nroute add default via 10.88.0.1\n"
    ports = "".join(
        f"element inet container ports_any4 {{ tcp . {port} : {address} . {inside} }}\n"
        for port, inside in ((60000, 80), (60001, 81))
    )
    own = f"element bridge container macs {{ {name} . {mac} }}\n"
    own += f"element bridge container sources4 {{ {name} . {address} }}\n"
    lines = (ports + own).splitlines()

    def begin() -> None:
        run("nft", "-f", "-", text="".join(f"add {line}\n" for line in lines))
        run("ip", "-batch", "-", text=link)
        run("nsenter", "-t", str(pid), "-n", "ip", "-batch", "-", text=within)

    return milliseconds(begin), milliseconds(
        lambda: run("nft", "-f", "-", text="".join(f"delete {line}\n" for line in lines))
    )


WAYS = {"package": by_package, "messages": by_messages, "ip + nft": by_programs}


def measure(way: Callable[[int], tuple[float, float]], runs: int) -> tuple[float, float]:
    begins, ends = [], []
    for _ in range(runs):
        with namespace() as pid:
            begin, end = way(pid)
        begins.append(begin)
        ends.append(end)
    return statistics.median(begins), statistics.median(ends)


def interfaces(most: int, runs: int) -> None:
    print(f"{'existing':>9}  {'way':10}  {'set-up':>7}  {'teardown':>8}")
    with ExitStack() as stack:
        there = 0
        for wanted in (each for each in (0, 100, 1000) if each <= most):
            for _ in range(wanted - there):
                pid = stack.enter_context(namespace())
                connection = Connection([NetworkConfig()], f"bench-{next(_numbers)}")
                connection.attach(pid)
                stack.callback(connection.release)
            there = wanted
            for name, way in WAYS.items():
                begin, end = measure(way, runs)
                print(f"{wanted:9}  {name:10}  {begin:7.2f}  {end:8.2f}", flush=True)


# Ports --------------------------------------------------------------------------------------------


def by_nft(address: str) -> float:
    key = "element inet container ports_any4 { tcp . 8"
    took = milliseconds(lambda: run("nft", "-f", "-", text=f"add {key} : {address} . 80 }}\n"))
    run("nft", "-f", "-", text=f"delete {key} }}\n")
    return took


def flow(server: socket.socket) -> float:
    def answer() -> None:
        peer, _ = server.accept()
        peer.close()

    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", 9)):
        answer()
    return (time.perf_counter() - began) * 1000


def ports(runs: int) -> None:
    print(f"\n{'mappings':>9}  {'add':>7}  {'remove':>7}  {'by nft':>7}  {'new flow':>8}")
    with namespace() as pid:
        connection = Connection([NetworkConfig(port_mappings=["9:80"])], "bench-ports")
        connection.attach(pid)
        there = _netlink.open_namespace(pid)
        server = _netlink.inside(there, lambda: socket.create_server(("", 80)))
        address = str(connection.networks[0].ip_address).partition("/")[0]
        have = 0
        rows = [
            _rules.of_port(Port("192.0.2.9", number % 50000 + 1, address, 80, protocol), "bench")
            for protocol in ("tcp", "udp")
            for number in range(5000)
        ]
        for wanted in (10, 1000, 10000):
            with Host() as host:
                host.add(rows[have:wanted])
            have = wanted
            with PortForwarder(address) as forwarder:
                adds, removes, programs, flows = [], [], [], []
                for _ in range(runs):
                    adds.append(milliseconds(lambda: forwarder.add_mapping("7:80")))
                    removes.append(milliseconds(lambda: forwarder.remove_mapping("7:80")))
                    programs.append(by_nft(address))
                    flows.append(flow(server))
            medians = map(statistics.median, (adds, removes, programs, flows))
            print(f"{wanted:9}  " + "  ".join(f"{each:7.2f}" for each in medians), flush=True)
        with Host() as host:
            host.take(rows[:have])
        connection.release()
        server.close()
        os.close(there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1000, help="existing containers (1000)")
    parser.add_argument("--runs", type=int, default=25, help="of which the median is shown (25)")
    options = parser.parse_args()
    run("mount", "-t", "tmpfs", "run", "/run")
    run("ip", "link", "set", "lo", "up")
    ensure_bridge()
    interfaces(options.most, options.runs)
    ports(options.runs)


if __name__ == "__main__":
    main()
