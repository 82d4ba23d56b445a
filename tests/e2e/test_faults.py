# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module is killed, and refused, at each of its system calls; the next run ends well, and nothing stays behind."""

from __future__ import annotations

import collections.abc as c
import os
import socket
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import netns
from ansible_collections.ebpf.conntrack.tests.e2e import faults
from ansible_collections.ebpf.conntrack.tests.e2e.faults import Call, Ending, Scenario
from ansible_collections.ebpf.conntrack.tests.e2e.sandbox import shell

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SERVER, ROUTER6 = "172.30.56.105", "2001:db8:1::1"


def lab(*more: str) -> dict[str, t.Any]:
    """Return the lab's options: two namespaces behind the router, which is the host, over IPv6 only the first; ``more`` ones have no links."""
    nets = {"1": ("172.20.56", "2001:db8:1::"), "2": ("172.30.56", "")}

    def end(name: str, netns: str | None, number: int, nets: tuple[str, str]) -> dict[str, t.Any]:
        addresses = [f"{nets[0]}.{number}/24"] + ([f"{nets[1]}{number}/64"] if nets[1] else [])
        return {"name": name, "netns": netns, "addresses": addresses}

    return {
        "namespaces": [
            *({"name": f"ns{n}", "routes": [{"dst": "default", "via": f"{net}.1"}]} for n, (net, dummy) in nets.items()),
            *({"name": name, "sysctls": {"net.ipv4.tcp_syncookies": 0}} for name in more),
        ],
        "links": [{"ends": [end(f"ns{n}-wan", f"ns{n}", 105, both), end(f"ns{n}-lan", None, 1, both)]} for n, both in nets.items()],
    }


def traffic_passes() -> None:
    """A datagram goes from ns1 to ns2 and is answered, and one over IPv6 to the router."""
    for family, namespace, address in ((socket.AF_INET, "ns2", SERVER), (socket.AF_INET6, None, ROUTER6)):
        with netns.entered("ns1"):
            client = socket.socket(family, socket.SOCK_DGRAM)
        with netns.entered(namespace):
            server = socket.socket(family, socket.SOCK_DGRAM)
        with client, server:
            server.bind((address, 5300))
            for one in (client, server):
                one.settimeout(2)
            client.sendto(b"ping", (address, 5300))
            question, sender = server.recvfrom(64)
            server.sendto(b"pong", sender)
            assert (question, client.recv(64)) == (b"ping", b"pong")


def nothing_there() -> None:
    """Nothing of the lab is there."""
    assert os.listdir("/run/netns") == [] and not os.path.exists("/run/ebpf_conntrack")
    assert "lan" not in shell("ip link")


LAB, NO_LAB = Call("netns_lab", lab()), Call("netns_lab", {"state": "absent"})
WIDE_LAB, OTHER_LAB = Call("netns_lab", lab("ns3")), Call("netns_lab", lab("ns4"))


def lab_drifts() -> None:
    """Bring the lab up and let it drift."""
    WIDE_LAB.run()
    shell(
        "ip -n ns1 link set ns1-wan mtu 1400; ip link set ns1-lan address 02:11:11:11:11:11; ip -n ns1 addr add 172.20.56.77/24 dev ns1-wan;"
        "ip -n ns2 route replace default via 172.30.56.99; ip route add 10.88.0.0/16 via 172.20.56.105; echo 0 > /proc/sys/net/ipv4/conf/all/forwarding"
    )


def lab_is_up() -> None:
    LAB.run()


LAB_SCENARIOS = {
    "build": Scenario(lambda: None, LAB, (Ending(LAB, traffic_passes), Ending(NO_LAB, nothing_there)), (NO_LAB,)),
    "change": Scenario(lab_drifts, OTHER_LAB, (Ending(OTHER_LAB, traffic_passes), Ending(NO_LAB, nothing_there)), (NO_LAB,)),
    "remove": Scenario(lab_is_up, NO_LAB, (Ending(NO_LAB, nothing_there), Ending(LAB, traffic_passes)), (NO_LAB,)),
}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    faults.warm()


Figure = c.Callable[[str, object], None]


@pytest.mark.parametrize("name", LAB_SCENARIOS)
def test_netns_lab(name: str, figure: Figure) -> None:
    figure(f"faults survived by netns_lab, {name}", survived(LAB_SCENARIOS[name]))


def survived(scenario: Scenario) -> str:
    """Break the scenario everywhere in both ways; return how often, for people."""
    return f"{faults.killed_everywhere(scenario)} kills, {faults.refused_everywhere(scenario)} refused calls"
