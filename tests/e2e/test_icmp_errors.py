# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ICMP errors belong to the flow that they quote, make none, and always get through."""

from __future__ import annotations

import socket
import time

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import (
    CLIENT,
    FAR,
    NARROW,
    NOBODY,
    PORT,
    SERVER,
    Wire,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames

IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # include/uapi/linux/in.h
UNREACHABLE, PORT_UNREACHABLE = 3, 3


def related(wire: Wire, proto: str = "udp", **fields: object) -> int:
    """Return how many errors the one flow of the protocol has; both trackers agree on all else."""
    return int(wire.only(proto, **fields)["related"]["packets"])


def test_port_unreachable(wire: Wire) -> None:
    client = wire.udp("client")
    client.connect((SERVER, PORT))
    client.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        client.recv(10)
    assert related(wire, state="NEW", seen_reply=False) == 1


def test_time_exceeded_behind_the_server(wire: Wire) -> None:
    client, errors = wire.udp("client"), wire.open("client", socket.SOCK_RAW, socket.IPPROTO_ICMP)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
    client.sendto(b"traceroute", (FAR, 33434))
    packet, (hop, dummy) = errors.recvfrom(1500)
    assert hop == SERVER and packet[20] == 11
    assert related(wire, state="NEW") == 1


def test_time_exceeded_at_the_router_itself(wire: Wire) -> None:
    client, errors = wire.udp("client"), wire.open("client", socket.SOCK_RAW, socket.IPPROTO_ICMP)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    client.sendto(b"traceroute", (FAR, 33434))
    assert errors.recvfrom(1500)[0][20] == 11
    # XDP sees what comes in; what the router sends by itself it does not
    (record,) = wire.records("udp")
    assert record["related"]["packets"] == 0


def test_fragmentation_needed(wire: Wire) -> None:
    client = wire.udp("client")
    client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    client.connect((FAR, PORT))
    client.send(bytes(1400))
    deadline = time.monotonic() + 5
    # IP_MTU: path MTU discovery gets its answer
    while client.getsockopt(socket.IPPROTO_IP, 14) != NARROW:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert related(wire, state="NEW") == 1


def test_host_unreachable_for_a_ping(wire: Wire) -> None:
    printed = wire.run("client", "ping", "-c", "1", "-W", "4", NOBODY)
    assert "Unreachable" in printed
    assert related(wire, "icmp", state="NEW") == 1


def test_an_error_that_quotes_eight_bytes_of_tcp(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.exchange()
    before = wire.only("tcp", state="ESTABLISHED")
    errors = wire.open("client", socket.SOCK_RAW, socket.IPPROTO_ICMP)
    quoted_ends = frames.address(CLIENT), frames.address(SERVER)
    segment = frames.tcp(
        *quoted_ends, tcp.client.getsockname()[1], PORT, 1, 1, frames.tcp_flags("A"), 100
    )
    quote = frames.ipv4(*quoted_ends, frames.TCP, segment)[: 20 + 8]
    error = frames.ipv4(
        *quoted_ends[::-1], frames.ICMP, frames.icmp(UNREACHABLE, PORT_UNREACHABLE, payload=quote)
    )
    wire.raw("server").sendto(error, (CLIENT, 0))
    assert errors.recv(1500)[20] == UNREACHABLE  # it gets through
    after = wire.only("tcp", state="ESTABLISHED")
    assert after["related"] == {"packets": 1, "bytes": len(error)}
    assert (after["orig"], after["reply"]) == (before["orig"], before["reply"])


def test_an_error_that_nobody_asked_for_makes_no_flow(wire: Wire) -> None:
    errors = wire.open("client", socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ends = frames.address(CLIENT), frames.address(SERVER)
    quote = frames.ipv4(*ends, frames.UDP, frames.udp(*ends, 4444, 5555, b"x" * 10))
    before = wire.counters()["invalid_icmp_error"]
    wire.raw("server").sendto(
        frames.ipv4(
            *ends[::-1], frames.ICMP, frames.icmp(UNREACHABLE, PORT_UNREACHABLE, payload=quote)
        ),
        (CLIENT, 0),
    )
    assert errors.recv(1500)[20] == UNREACHABLE
    assert wire.chain.records() == [] and wire.kernel() == []
    assert wire.counters()["invalid_icmp_error"] == before + 1
