# SPDX-License-Identifier: Apache-2.0
"""Many processes with many containers at one bridge, and the end of some of the processes."""

from __future__ import annotations

import pytest
from system.fakehost import fake_host

pytestmark = [pytest.mark.needs("root", "userns", "ip", "nft"), pytest.mark.long]

CROWD = """
PROCESSES, EACH, KILLED = 8, 25, 5
script = '''
import container, json, sys
from contextlib import ExitStack
with ExitStack() as stack:
    boxes = [stack.enter_context(container.Container(container.Config(
        network=container.NetworkConfig()))) for _ in range(int(sys.argv[1]))]
    for box in boxes:
        box.run(container.Process(["sleep", "600"]))
    print(json.dumps([box.networks[0].ip_address for box in boxes]), flush=True)
    sys.stdin.read()
'''

def answers(address):
    # To an ICMP echo request, by the kernel of the container's namespace.
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(20)
        body = struct.pack("!BBHHH", 8, 0, 0, 7, 7)
        total = sum(struct.unpack("!4H", body))
        sock.connect((address, 0))
        sock.send(body[:2] + struct.pack("!H", ~total & 0xffff) + body[4:])
        return sock.recv(100)[20] == 0

args = [sys.executable, "-c", script, str(EACH)]
owners = [subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
          for _ in range(PROCESSES)]
given = [json.loads(owner.stdout.readline()) for owner in owners]
addresses = [address.partition("/")[0] for each in given for address in each]
answer = [len(set(addresses)), sum(map(answers, addresses)),
          len([line for line in elements() if "sources4" not in line]) >= len(addresses)]
for owner in owners[:KILLED]:
    owner.kill()
    owner.wait()
container.run(["true"], network="bridge", check=True)
text = ruleset()
answer += [sum(f" {address} " in text for address in addresses),
           sum(answers(address.partition("/")[0]) for each in given[KILLED:] for address in each)]
for owner in owners[KILLED:]:
    owner.stdin.close()
    owner.wait()
for owner in owners:
    owner.stdout.close()
"""


def test_addresses_are_unique_all_are_reached_and_nothing_is_left() -> None:
    with fake_host() as host:
        answer = host(CROWD)
    assert answer == [200, 200, True, 75, 75]
