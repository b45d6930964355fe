# SPDX-License-Identifier: Apache-2.0
"""Containers at bridges: reachable, published, named, kept apart; see fakehost.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.fakehost import FakeHost, fake_host

pytestmark = pytest.mark.needs("root", "userns", "ip", "nft")


@pytest.fixture(scope="module")
def host() -> Iterator[FakeHost]:
    with fake_host() as there:
        yield there


def test_a_container_at_a_bridge_has_an_address_and_a_default_route(host: FakeHost) -> None:
    answer = host(
        """
        result = container.run(
            ["sh", "-c", "ip -o -4 addr show eth0; ip route; ip -o link show eth0"],
            network="bridge", text=True, check=True,
        )
        answer = result.stdout
        """
    )
    assert "scope global eth0" in answer
    assert "/16" in answer
    assert "default via 10.88.0.1 dev eth0" in answer
    assert "UP" in answer


def test_published_ports_are_reached_from_outside_with_the_clients_address(host: FakeHost) -> None:
    answer = host(
        """
        ports = ["8080:80", "5353:53/udp"]
        with serving(NetworkConfig(port_mappings=ports)) as box:
            answer = [
                at("client", ask, "tcp", "192.0.2.1", 8080),
                at("client", ask, "udp", "192.0.2.1", 5353),
            ]
        """
    )
    assert answer == ["192.0.2.2", "192.0.2.2"]


def test_ports_that_are_not_published_are_not_reached_from_outside(host: FakeHost) -> None:
    answer = host(
        """
        with serving(NetworkConfig(port_mappings=["8080:80"]), [["tcp", 80], ["tcp", 81]]) as box:
            inside = address(box)
            answer = [
                ask("tcp", inside, 81),
                at("client", ask, "tcp", inside, 81, timeout=REFUSED),
                at("client", ask, "tcp", inside, 80, timeout=REFUSED),
                at("client", ask, "tcp", "192.0.2.1", 81, timeout=REFUSED),
            ]
        """
    )
    assert answer == ["10.88.0.1", "TimeoutError", "TimeoutError", "ConnectionRefusedError"]


def test_a_published_port_is_reached_from_the_host_by_every_address_of_it(host: FakeHost) -> None:
    answer = host(
        """
        with serving(NetworkConfig(port_mappings=["8080:80", "5353:53/udp"])) as box:
            answer = [
                ask("tcp", "192.0.2.1", 8080),
                ask("tcp", "127.0.0.1", 8080),
                ask("udp", "127.0.0.1", 5353),
                ask("tcp", "10.88.0.1", 8080),
            ]
        """
    )
    assert answer == ["192.0.2.1", "10.88.0.1", "10.88.0.1", "10.88.0.1"]


@pytest.mark.parametrize("filtered", [0, 1])
def test_a_container_reaches_itself_and_its_neighbour_by_a_published_port(
    host: FakeHost, filtered: int
) -> None:
    # Where br_netfilter is loaded, what stays on a bridge meets the rules for what is routed.
    answer = host(
        f"""
        switch = pathlib.Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        if switch.exists():
            switch.write_text("{filtered}")
        with serving(NetworkConfig(port_mappings=["8080:80"])) as box, serving() as neighbour:
            answer = [
                at(box, ask, "tcp", "192.0.2.1", 8080),
                at(neighbour, ask, "tcp", "192.0.2.1", 8080),
            ]
        """
    )
    assert answer == ["10.88.0.1", "10.88.0.1"]


def test_a_port_published_at_loopback_is_for_the_host_alone(host: FakeHost) -> None:
    answer = host(
        """
        with serving(NetworkConfig(port_mappings=["127.0.0.1:8080:80"])) as box:
            answer = [
                ask("tcp", "127.0.0.1", 8080),
                at("client", ask, "tcp", "192.0.2.1", 8080, timeout=REFUSED),
            ]
        """
    )
    assert answer == ["10.88.0.1", "ConnectionRefusedError"]


def test_containers_of_one_bridge_reach_each_other_and_those_of_another_do_not(
    host: FakeHost,
) -> None:
    answer = host(
        """
        other = NetworkConfig(bridge="other1", subnet="10.89.0.0/24")
        with serving() as a, serving() as b, serving(other) as c:
            answer = [
                at(a, ask, "tcp", address(b), 80) == address(a),
                at(a, ask, "tcp", address(c), 80, timeout=REFUSED),
                at(c, ask, "udp", address(a), 53, timeout=REFUSED),
            ]
        """
    )
    assert answer == [True, "TimeoutError", "TimeoutError"]


def test_bridges_that_are_peers_reach_each_other(host: FakeHost) -> None:
    answer = host(
        """
        one = NetworkConfig(bridge="peer1", subnet="10.89.1.0/24")
        two = NetworkConfig(bridge="peer2", subnet="10.89.2.0/24", peers=["peer1"])
        with serving(one) as a, serving(two) as b:
            answer = [at(a, ask, "tcp", address(b), 80) == address(a),
                      at(b, ask, "tcp", address(a), 80) == address(b)]
        """
    )
    assert answer == [True, True]


def test_what_a_container_sends_out_bears_the_hosts_address(host: FakeHost) -> None:
    answer = host(
        """
        def serve(ready):
            with socket.create_server(("192.0.2.2", 7000)) as server:
                ready.set()
                peer, source = server.accept()
                peer.sendall(source[0].encode())
                peer.close()
        ready = threading.Event()
        thread = threading.Thread(target=at, args=("client", serve, ready))
        thread.start()
        ready.wait()
        with serving() as box:
            answer = at(box, ask, "tcp", "192.0.2.2", 7000)
        thread.join()
        """
    )
    assert answer == "192.0.2.1"


def test_the_hosts_loopback_is_out_of_reach(host: FakeHost) -> None:
    # With route_localnet on the bridge the kernel alone would let it pass.
    answer = host(
        """
        with socket.create_server(("127.0.0.1", 7001)), serving() as box:
            sh("nsenter", "-t", str(box.pid), "-n", "ip", "route", "add", "127.0.0.0/8", "via",
               "10.88.0.1", "dev", "eth0", "table", "7")
            sh("nsenter", "-t", str(box.pid), "-n", "ip", "rule", "add", "pref", "0", "to",
               "127.0.0.0/8", "lookup", "7")
            sh("nsenter", "-t", str(box.pid), "-n", "ip", "rule", "add", "pref", "1", "lookup",
               "local")
            sh("nsenter", "-t", str(box.pid), "-n", "ip", "rule", "del", "pref", "0", "lookup",
               "local")
            sh("nsenter", "-t", str(box.pid), "-n", "sh", "-c",
               "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet")
            before = ask("tcp", "127.0.0.1", 7001, timeout=REFUSED)
            answer = at(box, ask, "tcp", "127.0.0.1", 7001,
                        source=(address(box), 0), timeout=REFUSED)
        """
    )
    assert answer == "TimeoutError"


def test_a_running_loop_threads_and_forks_have_networks_of_their_own(host: FakeHost) -> None:
    answer = host(
        """
        import asyncio
        from concurrent.futures import ThreadPoolExecutor
        from container import aio

        command = ["sh", "-c", "ip -o -4 addr show eth0 | wc -l"]

        async def main():
            result = await aio.run(command, network="bridge", check=True, text=True)
            async with aio.Container(Config(network=NetworkConfig())) as box:
                await box.run(Process(["sleep", "60"]))
                process = await aio.popen(command, network="bridge")
                output, _ = await process.communicate()
                inside = container.run(command, network="bridge", text=True)
            return [result.stdout, output.decode(), inside.stdout]

        answer = asyncio.run(main())
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(container.run, command, network="bridge", text=True)
                    for _ in range(8)]
            answer += [run.result().stdout for run in runs]
        with serving() as box:
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    inside = container.run(command, network="bridge", text=True)
                    os.write(write, inside.stdout.encode())
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            answer.append(os.read(read, 100).decode())
            answer.append(ask("tcp", address(box), 80))
            os.close(read)
            os.close(write)
        """
    )
    assert answer == [*["1\n"] * 12, "10.88.0.1"]


GOLDEN = Path(__file__).with_name("networks.nft")


def test_the_rules_are_those_of_the_golden_file() -> None:
    with fake_host() as fresh:
        answer = fresh(
            """
            network = NetworkConfig(
                ip_address="10.88.0.9",
                subnet6="fd00:88::/64",
                ip6_address="fd00:88::9",
                port_mappings=["8080:80", "127.0.0.1:5353:53/udp", "[2001:db8:1::1]:9:90/sctp"],
                egress=["192.0.2.0/24:443", "[2001:db8::1]:53/udp"],
                peers=["other1"],
            )
            with Container(Config(network=network), id="golden") as box:
                box.run(Process(["sleep", "60"]))
                port = box.networks[0].host_interface
                # Sets have no order of their own.
                def in_order(match):
                    return "{ " + ", ".join(sorted(re.split(r",\\s+", match[1]))) + " }"
                text = ruleset().replace(port, "ctr-0")
                answer = re.sub(r"(?<=elements = )\\{ ([^}]*) \\}", in_order, text)
            """
        )
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(answer)
    assert answer == GOLDEN.read_text()
