# SPDX-License-Identifier: Apache-2.0
"""Containers at bridges: reachable, published, named, kept apart; see fakehost.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from system.fakehost import FakeHost, fake_host

if TYPE_CHECKING:
    from system.conftest import OrdinaryUser

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


def test_ip6_is_routed_published_and_hidden_as_ip4_is(host: FakeHost) -> None:
    answer = host(
        """
        network = NetworkConfig(
            bridge="six2", subnet="10.89.20.0/24", subnet6="fd00:20::/64",
            port_mappings=["8086:80", "[2001:db8:1::1]:8087:80"],
        )
        def serve(ready):
            with socket.create_server(("2001:db8:1::2", 7006), family=socket.AF_INET6) as server:
                ready.set()
                peer, source = server.accept()
                peer.sendall(source[0].encode())
                peer.close()
        with serving(network) as box:
            ready = threading.Event()
            thread = threading.Thread(target=at, args=("client", serve, ready))
            thread.start()
            ready.wait()
            answer = [
                at("client", ask, "tcp", "2001:db8:1::1", 8086),
                at("client", ask, "tcp", "192.0.2.1", 8086),
                at("client", ask, "tcp", "2001:db8:1::1", 8087),
                ask("tcp", address(box, 6), 80),
                at(box, ask, "tcp", "2001:db8:1::1", 8086),
                at(box, ask, "tcp", "2001:db8:1::2", 7006),
            ]
            thread.join()
        """
    )
    client = "2001:db8:1::2"
    assert answer == [client, "192.0.2.2", client, "fd00:20::1", "fd00:20::1", "2001:db8:1::1"]


def test_an_address_a_mac_and_an_mtu_are_those_asked_for(host: FakeHost) -> None:
    answer = host(
        """
        network = NetworkConfig(
            ip_address="10.88.7.7", mac_address="02:00:00:00:07:07", mtu=1400, dns=["192.0.2.53"],
            dns_search=["a.example"], dns_options=["ndots:2"],
        )
        script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /etc/resolv.conf"
        result = container.run(["sh", "-c", script + "; ip -o -4 addr show eth0"],
                               network=network, text=True, check=True)
        answer = result.stdout.splitlines()
        """
    )
    assert answer[:5] == [
        *("02:00:00:00:07:07", "1400", "nameserver 192.0.2.53", "search a.example"),
        "options ndots:2",
    ]
    assert " 10.88.7.7/16 " in answer[5]


def test_containers_of_one_bridge_find_each_other_by_name_as_long_as_they_run(
    host: FakeHost,
) -> None:
    answer = host(
        """
        look = ["python3", "-c", "import socket; print(socket.gethostbyname('web'))"]
        look[0] = sys.executable
        with Container(Config(network=NetworkConfig())) as asker:
            asker.run(Process(["sleep", "60"]))
            def lookup():
                process = asker.exec(look, text=True)
                output, _ = process.communicate()
                return output.strip() if process.returncode == 0 else None
            answer = [lookup()]
            for aliases in ((), ("other",)):
                with serving(NetworkConfig(hostname="web", aliases=aliases)) as box:
                    answer.append(lookup() == address(box))
            answer.append(lookup())
        """
    )
    assert answer == [None, True, True, None]


def test_a_container_of_two_networks_has_an_interface_at_each(host: FakeHost) -> None:
    answer = host(
        """
        back = NetworkConfig(bridge="back1", subnet="10.89.30.0/24")
        with serving(back) as database, serving([NetworkConfig(), back]) as web:
            answer = [
                [network.interface for network in web.networks],
                at(web, ask, "tcp", address(database), 80),
                web.networks[1].ip_address.partition("/")[0],
                at("client", ask, "tcp", address(web), 80, timeout=REFUSED),
            ]
        """
    )
    assert answer[0] == ["eth0", "eth1"]
    assert answer[1] == answer[2]
    assert answer[3] == "TimeoutError"


def test_ports_are_published_and_taken_back_while_the_container_runs(host: FakeHost) -> None:
    answer = host(
        """
        with serving() as box, PortForwarder(address(box)) as forwarder:
            forwarder.add_mapping("8088:80")
            forwarder.add_mapping(PortMapping.parse("127.0.0.1:5358:53/udp"))
            answer = [
                at("client", ask, "tcp", "192.0.2.1", 8088),
                ask("udp", "127.0.0.1", 5358),
                refused(NetworkError, forwarder.add_mapping, "8088:81"),
            ]
            forwarder.remove_mapping("8088:80")
            answer += [
                at("client", ask, "tcp", "192.0.2.1", 8088),
                refused(StateError, forwarder.remove_mapping, "8088:80"),
                len(forwarder.mappings),
            ]
        """
    )
    assert answer[:2] == ["192.0.2.2", "10.88.0.1"]
    assert "in use" in answer[2]
    assert answer[3] == "ConnectionRefusedError"
    assert answer[5] == 1


def test_the_namespace_of_any_process_can_be_connected(host: FakeHost) -> None:
    answer = host(
        """
        script = "ip link set lo up; echo up; exec sleep 60"
        args = ["unshare", "--net", "sh", "-c", script]
        with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            with container.setup_container_network(process.pid) as network:
                shown = sh("nsenter", "-t", str(process.pid), "-n", "ip", "-o", "-4", "addr")
                answer = [network.ip_address in shown, network.interface]
            answer.append("eth0" in sh("nsenter", "-t", str(process.pid), "-n", "ip", "link"))
            process.kill()
        answer.append(refused(NetworkError, container.setup_container_network, os.getpid()))
        """
    )
    assert answer[:3] == [True, "eth0", False]
    assert "no network namespace of its own" in answer[3]


def test_a_created_container_is_connected_before_it_starts(host: FakeHost) -> None:
    answer = host(
        """
        with Container(Config(network=NetworkConfig())) as box:
            box.create(Process(["ip", "-o", "-4", "addr", "show", "eth0"], stdout=PIPE))
            answer = [box.networks[0].ip_address]
            box.start()
            answer.append(answer[0] in box.stdout.read().decode())
            box.wait()
        """
    )
    assert answer[1] is True


def test_leases_are_unique_rest_and_end_with_their_holder(host: FakeHost) -> None:
    answer = host(
        """
        subnet = "10.99.0.0/29"
        leases = [container.lease_ip(subnet) for _ in range(5)]
        given = {lease.ip_address for lease in leases}
        answer = [len(given), refused(NetworkError, container.lease_ip, subnet)]
        leases[0].release()
        with container.lease_ip(subnet) as last:
            answer.append(last.ip_address == leases[0].ip_address)  # there is no other
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
        try:
            with container.lease_ip(subnet):  # though a fork of its holder lives
                answer.append("free")
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        leases[1].release()
        others = {leases[0].ip_address, leases[1].ip_address}
        with container.lease_ip(subnet) as lease:
            answer.append(lease.ip_address in others)
        for lease in leases:
            lease.release()
        """
    )
    assert answer == [5, "every address of 10.99.0.0/29 is taken", True, "free", True]


def test_a_bridge_is_refused_to_an_ordinary_user_by_name(as_user: OrdinaryUser) -> None:
    done = as_user(
        """
        import container
        for work in (
            lambda: container.run(["true"], network="bridge"),
            lambda: container.ensure_bridge(),
            lambda: container.PortForwarder("10.88.0.2").add_mapping("80:80"),
        ):
            try:
                work()
            except container.UnsupportedError as error:
                print(error.field)
        """
    )
    assert (done.stdout.split(), done.stderr) == (["network.mode"] * 3, "")


FORWARD = """
sh("nft", "add table ip filter; add chain ip filter FORWARD"
          " {{ type filter hook forward priority 0; policy drop; }}")
{extra}
with serving(NetworkConfig(bridge="fw1", subnet="10.89.40.0/24", port_mappings=["8089:80"])):
    answer = [at("client", ask, "tcp", "192.0.2.1", 8089, timeout=REFUSED),
              sh("nft", "list", "chain", "ip", "filter", "{chain}").count("container bridge fw1")]
from container._network import _admin
_admin.prune_networks()
answer.append(ruleset().count("container bridge fw1"))
sh("nft", "delete", "table", "ip", "filter")
"""


@pytest.mark.parametrize("chain", ["FORWARD", "DOCKER-USER"])
def test_a_firewall_that_drops_lets_published_ports_pass_until_the_bridge_goes(
    host: FakeHost, chain: str
) -> None:
    extra = (
        'sh("nft", "add chain ip filter DOCKER-USER; add rule ip filter FORWARD jump DOCKER-USER")'
    )
    source = FORWARD.format(chain=chain, extra=extra if chain == "DOCKER-USER" else "")
    assert host(source) == ["192.0.2.2", 2, 0]


def test_the_command_publishes_lists_and_prunes() -> None:
    with fake_host() as fresh:
        answer = fresh(
            """
            from container import _cli
            import io
            def cli(*words):
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    status = _cli.main(words)
                return status, out.getvalue()
            forwarding = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
            before = [forwarding.read_text(), rules(), links()]
            args = [sys.executable, "-m", "container", "run", "--net", "bridge", "-p", "8080:80",
                    "--name", "shown", "--", sys.executable, "-I", "-S", "-c", SERVER,
                    json.dumps([["tcp", 80]])]
            with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
                assert process.stdout.readline() == b"ready\\n"
                answer = [at("client", ask, "tcp", "192.0.2.1", 8080)]
                listed = json.loads(cli("network", "ls", "--json")[1])
                answer.append(listed[0]["containers"]["shown"]["ports"])
                answer.append(cli("network", "inspect", "container0")[0])
                answer.append(cli("network", "prune")[1])
                process.terminate()
            answer.append(cli("network", "prune")[1])
            answer.append(cli("network", "ls")[1].split())
            answer.append(before == [forwarding.read_text(), rules(), links()])
            """
        )
    assert answer == [
        *("192.0.2.2", ["*:8080/tcp->80"], 0, "", "container0\n"),
        *(["NAME", "SUBNET", "SUBNET6", "CONTAINERS"], True),
    ]
