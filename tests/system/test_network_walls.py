# SPDX-License-Identifier: Apache-2.0
"""What a container at a bridge must not be able to do, and what must not be left of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from system.fakehost import FakeHost, fake_host

pytestmark = pytest.mark.needs("root", "userns", "ip", "nft")


@pytest.fixture(scope="module")
def host() -> Iterator[FakeHost]:
    with fake_host() as there:
        yield there


# Frames as a container with CAP_NET_RAW could send them, one after the other, the last one honest:
# once that is seen, none that is missing is still to come.
FRAMES = """
def mac_of(box):
    return bytes.fromhex(box.networks[0].mac_address.replace(":", ""))

def ethernet(source, target, kind, body):
    return target + source + struct.pack("!H", kind) + body

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def udp4(source, target, port, mark):
    body = struct.pack("!HHHH", 9, port, 8 + len(mark), 0) + mark
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 7, 0, 64, 17, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body

def arp(mac, source, mark):
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, mac, socket.inet_aton(source),
                       bytes(6), socket.inet_aton(source)) + mark.ljust(18, bytes(1))

def icmp6(source, kind, body, mark):
    return udp6(source, 58, struct.pack("!BBH", kind, 0, 0) + body + mark)

def udp6(source, protocol, body):
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 255,
                       socket.inet_pton(socket.AF_INET6, source),
                       socket.inet_pton(socket.AF_INET6, "ff02::1")) + body

def send_frames(frames):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        for frame in frames:
            sock.send(frame)

def sniffer():
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind(("eth0", 3))
    sock.settimeout(10)
    return sock

def arrived(judge, thief, frames):
    # Marks of those that get there; "honest" is the last one.
    with at(judge, sniffer) as sock:
        at(thief, send_frames, frames)
        seen = []
        while "honest" not in seen:
            seen += re.findall("mark-([a-z0-9-]+);", sock.recv(2000).decode("latin-1"))
        return seen
"""


def test_no_frame_of_another_identity_gets_to_a_neighbour(host: FakeHost) -> None:
    answer = host(
        FRAMES
        + """
network = NetworkConfig(bridge="six1", subnet="10.89.7.0/24", subnet6="fd00:7::/64")
with serving(network) as victim, serving(network) as thief, serving(network) as judge:
    me, them, to = mac_of(thief), mac_of(victim), mac_of(judge)
    mine, theirs, theirs6 = address(thief), address(victim), address(victim, 6)
    target = address(judge)
    own6 = address(thief, 6)
    nowhere = struct.pack("!I", 0)
    answer = arrived(judge, thief, [
        ethernet(me, to, 0x0800, udp4(theirs, target, 53, b"mark-ip4;")),
        ethernet(me, to, 0x0800, udp4("10.89.7.250", target, 53, b"mark-free-ip4;")),
        ethernet(them, to, 0x0800, udp4(mine, target, 53, b"mark-mac;")),
        ethernet(me, to, 0x0806, arp(me, theirs, b"mark-arp-ip4;")),
        ethernet(me, to, 0x0806, arp(them, mine, b"mark-arp-mac;")),
        ethernet(me, to, 0x86dd, udp6(theirs6, 17, struct.pack("!HHHH", 9, 53, 18, 0)
                                      + b"mark-ip6;.")),
        ethernet(me, to, 0x86dd, icmp6(own6, 134, bytes(12), b"mark-router;")),
        ethernet(me, to, 0x86dd, icmp6(own6, 137, bytes(36), b"mark-redirect;")),
        ethernet(me, to, 0x86dd, icmp6(own6, 136, nowhere
            + socket.inet_pton(socket.AF_INET6, theirs6), b"mark-neighbour;")),
        ethernet(me, to, 0x8100, struct.pack("!HH", 1, 0x0800)
                 + udp4(theirs, target, 53, b"mark-vlan;")),
        ethernet(me, to, 0x88b5, b"mark-other-kind;".ljust(46)),
        ethernet(me, to, 0x86dd, icmp6(own6, 136, nowhere
            + socket.inet_pton(socket.AF_INET6, own6), b"mark-own-neighbour;")),
        ethernet(me, to, 0x0806, arp(me, mine, b"mark-own-arp;")),
        ethernet(me, to, 0x0800, udp4(mine, target, 53, b"mark-honest;")),
    ])
"""
    )
    assert answer == ["own-neighbour", "own-arp", "honest"]


def test_the_hosts_loopback_is_out_of_reach(host: FakeHost) -> None:
    # The bridge routes 127.0.0.0/8, for the ports that are published there.
    answer = host(
        FRAMES
        + """
def server(name):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.bind((name, 7003))
    return sock
container.ensure_bridge()
assert pathlib.Path("/proc/sys/net/ipv4/conf/container0/route_localnet").read_text() == "1\\n"
with serving() as box, server("127.0.0.1") as hidden, server("10.88.0.1") as shown:
    bridge = bytes.fromhex(pathlib.Path("/sys/class/net/container0/address").read_text()
                           .strip().replace(":", ""))
    at(box, send_frames, [
        ethernet(mac_of(box), bridge, 0x0800, udp4(address(box), name, 7003, b"hello"))
        for name in ("127.0.0.1", "10.88.0.1")
    ])
    answer = [shown.recv(100).decode()]
    hidden.setblocking(False)
    try:
        answer.append(hidden.recv(100).decode())
    except BlockingIOError:
        answer.append(None)
"""
    )
    assert answer == ["hello", None]


ADVERTISE = """
def advertise():
    # Of the router fe80::.../, for the prefix 2001:db8:bad::/64.
    source = [line.split()[3].partition("/")[0]
              for line in sh("ip", "-o", "-6", "addr", "show", "dev", "eth0",
                             "scope", "link").splitlines()][0]
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.bind((source, 0, 0, socket.if_nametoindex("eth0")))
        prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
        body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
        body += struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 86400, 86400, 0, prefix)
        sock.sendto(body, ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))

def settled():
    # Whatever it sent before has been looked at: the link-local address is to be used, too.
    deadline = time.monotonic() + 10
    while "tentative" in sh("ip", "-6", "addr", "show", "dev", "eth0"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""


def test_a_router_advertisement_of_a_container_is_believed_by_nobody(host: FakeHost) -> None:
    answer = host(
        ADVERTISE
        + """
network = NetworkConfig(bridge="six1", subnet="10.89.7.0/24", subnet6="fd00:7::/64")
with serving(network) as rogue, serving(network) as victim:
    at(rogue, settled)
    at(rogue, advertise)
    asked = at(rogue, ask, "udp", address(victim, 6), 53)  # behind it
    routes = sh("ip", "-6", "route", "show", "table", "all")
    inside = sh("nsenter", "-t", str(victim.pid), "-n", "ip", "-6", "route", "show")
    answer = [asked == address(rogue, 6), "2001:db8:bad" in routes, "2001:db8:bad" in inside,
              pathlib.Path("/proc/sys/net/ipv6/conf/six1/accept_ra").read_text()]
"""
    )
    assert answer == [True, False, False, "0\n"]


# Egress -------------------------------------------------------------------------------------------

LISTEN = """
@contextlib.contextmanager
def listening(addresses):
    # Servers of the client's, at these addresses and ports.
    ready, stop = threading.Barrier(2), threading.Event()
    def run():
        servers = [socket.create_server(each) for each in addresses]
        ready.wait()
        stop.wait()
        for server in servers:
            server.close()
    thread = threading.Thread(target=at, args=("client", run))
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()

def reach(host, port):
    with socket.socket() as sock:
        sock.settimeout(REFUSED)
        try:
            sock.connect((host, port))
        except OSError as error:
            return type(error).__name__
        return "connected"
"""


def test_an_allow_list_is_for_routed_traffic_the_host_and_neighbours(host: FakeHost) -> None:
    answer = host(
        LISTEN
        + """
egress = ["192.0.2.2:7001", "10.88.0.77:80"]
with (
    listening([("192.0.2.2", 7001), ("192.0.2.2", 7002)]),
    socket.create_server(("10.88.0.1", 7001)),
    serving(NetworkConfig(ip_address="10.88.0.77"), [["tcp", 80], ["tcp", 81]]) as neighbour,
    serving(NetworkConfig(egress=egress, port_mappings=["8080:80"])) as box,
):
    answer = [
        at(box, reach, "192.0.2.2", 7001),
        at(box, reach, "192.0.2.2", 7002),
        at(box, reach, "10.88.0.1", 7001),
        at(box, reach, "10.88.0.77", 80),
        at(box, reach, "10.88.0.77", 81),
        at("client", ask, "tcp", "192.0.2.1", 8080),
    ]
"""
    )
    refused = "TimeoutError"
    assert answer == ["connected", refused, refused, "connected", refused, "192.0.2.2"]


def test_with_public_no_private_or_metadata_address_is_reached(host: FakeHost) -> None:
    # 9.9.9.9 and 169.254.169.254 are the client here.
    answer = host(
        LISTEN
        + """
for address_of_client in ("9.9.9.9/32", "169.254.169.254/32", "10.200.0.1/32"):
    sh("ip", "-n", "client", "addr", "add", address_of_client, "dev", "lo")
    sh("ip", "route", "add", address_of_client, "via", "192.0.2.2")
names = ("9.9.9.9", "169.254.169.254", "10.200.0.1")
with listening([(name, 80) for name in names]):
    with serving(NetworkConfig(egress="public")) as box:
        answer = [at(box, reach, name, 80) for name in names]
    with serving(NetworkConfig()) as box:
        answer += [at(box, reach, name, 80) for name in names]
for name in names:
    sh("ip", "route", "del", name)
"""
    )
    assert answer == ["connected", "TimeoutError", "TimeoutError", *["connected"] * 3]


# Conflicts, and what fails half-way ---------------------------------------------------------------


def test_a_port_that_is_in_use_is_refused_and_nothing_is_left(host: FakeHost) -> None:
    answer = host(
        """
        def publish(text):
            container.run(["true"], network=NetworkConfig(port_mappings=[text]))
        with serving(NetworkConfig(port_mappings=["8080:80"])):
            answer = [refused(NetworkError, publish, "8080:81"),
                      refused(NetworkError, publish, "127.0.0.1:8080:81")]
        with socket.create_server(("127.0.0.1", 8081)):
            answer.append(refused(NetworkError, publish, "8081:80"))
        answer.append(refused(NetworkError, publish, "198.51.100.1:8082:80"))
        publish("8080:80")
        """
    )
    assert all("in use" in text and "808" in text for text in answer[:3])
    assert "no address of the host" in answer[3]


def test_an_address_that_is_taken_is_refused(host: FakeHost) -> None:
    answer = host(
        """
        network = NetworkConfig(ip_address="10.88.3.3")
        with serving(network) as box:
            answer = [address(box), refused(NetworkError, container.run, ["true"], network=network)]
        with serving(network) as box:
            answer.append(address(box))
        """
    )
    assert answer == ["10.88.3.3", "address 10.88.3.3 is taken", "10.88.3.3"]


def test_bridges_that_cannot_be_are_refused_and_not_made(host: FakeHost) -> None:
    answer = host(
        """
        container.ensure_bridge()
        sh("ip", "link", "add", "dummy0", "type", "veth", "peer", "name", "dummy1")
        before = links(), rules()
        answer = [
            refused(NetworkError, container.ensure_bridge, "over1", subnet="10.88.5.0/24"),
            refused(NetworkError, container.ensure_bridge, "over1", subnet="192.0.0.0/16"),
            refused(NetworkError, container.ensure_bridge, "dummy0", subnet="10.89.8.0/24"),
            refused(NetworkError, container.ensure_bridge, "nosubnet"),
            refused(NetworkError, container.ensure_bridge, subnet="10.90.0.0/16"),
            refused(ConfigError, container.ensure_bridge, 'x" ; flush'),
            refused(ConfigError, container.ensure_bridge, "a" * 16),
            refused(NetworkError, container.setup_nat_for_bridge, "absent", "10.9.0.0/16"),
        ]
        assert before == (links(), rules())
        sh("ip", "link", "del", "dummy0")
        """
    )
    words = ["container0", "192.0.2.0/24", "no bridge", "subnet", "10.88"]
    words += ["bridge", "bridge", "absent"]
    assert [word for word, text in zip(words, answer, strict=True) if word not in text] == []


def test_a_bridge_of_somebody_elses_is_used_and_stays(host: FakeHost) -> None:
    answer = host(
        """
        from container._network import _admin
        sh("ip", "link", "add", "theirs1", "type", "bridge")
        sh("ip", "addr", "add", "10.89.50.1/24", "dev", "theirs1")
        with serving(NetworkConfig(bridge="theirs1", subnet="10.89.50.0/24")) as box:
            answer = [ask("tcp", address(box), 80)]
        pruned = _admin.prune_networks()
        answer += ["theirs1" in pruned, "theirs1" in links()]
        sh("ip", "link", "del", "theirs1")
        """
    )
    assert answer == ["10.89.50.1", True, True]


def test_what_was_not_said_is_as_the_bridge_has_it(host: FakeHost) -> None:
    answer = host(
        """
        container.ensure_bridge("said1", subnet="10.89.60.0/24", gateway="10.89.60.254")
        with serving(NetworkConfig(bridge="said1")) as box:
            answer = [address(box).startswith("10.89.60."), box.networks[0].gateway]
        said = NetworkConfig(bridge="said1", subnet="10.89.61.0/24")
        answer.append(refused(NetworkError, container.run, ["true"], network=said))
        """
    )
    assert answer[:2] == [True, "10.89.60.254"]
    assert "10.89.60.0/24" in answer[2]


STEPS = ["address", "files", "reserve", "elements", "veth", "inside"]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_leaves_nothing(host: FakeHost, step: str) -> None:
    answer = host(
        f"""
        from container._network import _host
        network = NetworkConfig(ip_address="10.88.4.4", port_mappings=["8090:80"])
        _host.fail_at = "{step}"
        try:
            answer = [
                refused(NetworkError, container.run, ["true"], network=network),
                refused(NetworkError, Container(Config(network=network)).run, Process(["true"])),
            ]
            args = ["unshare", "--net", "sh", "-c", "echo up; exec sleep 60"]
            with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
                process.stdout.readline()
                connect = container.setup_container_network
                answer.append(refused(NetworkError, connect, process.pid, network))
                assert "eth0" not in sh("nsenter", "-t", str(process.pid), "-n", "ip", "link")
                process.kill()
        finally:
            _host.fail_at = None
        files = pathlib.Path("/run/container").rglob("*.hosts")
        hosts = "".join(path.read_text() for path in files)
        assert "10.88.4.4" not in hosts, hosts
        container.run(["true"], network=network, check=True)  # address and port are free
        """
    )
    assert all(text.startswith(step) for text in answer)


@pytest.mark.parametrize("step", ["bridge", "rules", "forwarding"])
def test_a_bridge_that_fails_is_not_left(host: FakeHost, step: str) -> None:
    answer = host(
        f"""
        from container._network import _host
        container.ensure_bridge()
        before = links(), rules()
        _host.fail_at = "{step}"
        try:
            answer = refused(NetworkError, container.ensure_bridge, "half1", subnet="10.89.9.0/24")
        finally:
            _host.fail_at = None
        assert before == (links(), rules())
        assert not list(pathlib.Path("/run/container/.network").glob("*/bridges/half1*"))
        """
    )
    assert answer.startswith(step)


# What is left of whom -----------------------------------------------------------------------------


def test_the_ports_of_what_runs_come_back_after_a_flush(host: FakeHost) -> None:
    answer = host(
        """
        with serving(NetworkConfig(port_mappings=["8080:80"])) as box:
            before = rules()
            sh("nft", "flush", "ruleset")
            answer = [at("client", ask, "tcp", "192.0.2.1", 8080, timeout=REFUSED)]
            container.run(["true"], network="bridge", check=True)
            answer += [at("client", ask, "tcp", "192.0.2.1", 8080),
                       before == rules()]
        """
    )
    assert answer == ["ConnectionRefusedError", "192.0.2.2", True]


def test_what_a_killed_owner_leaves_is_collected_by_the_next_operation(host: FakeHost) -> None:
    answer = host(
        """
        script = (
            "import container, time\\n"
            "network = container.NetworkConfig(\\n"
            "    ip_address='10.88.6.6', port_mappings=['8085:80'])\\n"
            "box = container.Container(container.Config(network=network))\\n"
            "box.run(container.Process(['sleep', '60']))\\n"
            "print('up', flush=True)\\n"
            "time.sleep(60)\\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"up\\n"
        found = [line for line in elements() if "10.88.6.6" in line]
        process.kill()
        process.wait()
        process.stdout.close()
        network = NetworkConfig(ip_address="10.88.6.6", port_mappings=["8085:80"])
        deadline = time.monotonic() + 10
        while True:  # its launcher ends its containers, and lets go of their ports
            try:
                container.run(["true"], network=network, check=True)
                break
            except NetworkError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        answer = [len(found), [line for line in elements() if "10.88.6.6" in line]]
        """
    )
    assert answer == [2, []]


def test_what_a_killed_owner_leaves_is_pruned(host: FakeHost) -> None:
    answer = host(
        """
        script = (
            "import container, time\\n"
            "network = container.NetworkConfig(\\n"
            "    ip_address='10.88.6.7', port_mappings=['8086:80'])\\n"
            "box = container.Container(container.Config(network=network), id='left')\\n"
            "box.run(container.Process(['sleep', '60']))\\n"
            "print('up', flush=True)\\n"
            "time.sleep(60)\\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"up\\n"
        before = container.prune().networks
        process.kill()
        process.wait()
        process.stdout.close()
        deadline = time.monotonic() + 10
        while not (removed := container.prune().networks):  # once its launcher has ended, too
            assert time.monotonic() < deadline
            time.sleep(0.01)
        answer = [before, removed, [line for line in elements() if "10.88.6.7" in line]]
        """
    )
    assert answer == [[], ["left"], []]


def test_datagrams_go_to_the_new_container_after_the_old_one(host: FakeHost) -> None:
    # A flow that is still known would lead them to where nobody is.
    answer = host(
        """
        def talk(sock):
            sock.send(b"?")
            try:
                return sock.recv(100).decode()
            except OSError as error:
                return type(error).__name__

        def open_socket():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(5)
            sock.connect(("192.0.2.1", 5355))
            return sock

        network = NetworkConfig(port_mappings=["5355:53/udp"])
        container.ensure_bridge()  # from here on flows are known
        sock = at("client", open_socket)
        answer = [talk(sock)]
        with serving(network) as box:
            answer.append(talk(sock))
        answer.append(talk(sock))
        with serving(network) as box:
            answer.append(talk(sock))
        sock.close()
        """
    )
    refused = "ConnectionRefusedError"
    assert answer == [refused, "192.0.2.2", refused, "192.0.2.2"]
