# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How TCP connections end, and what comes after; states and counts are nf_conntrack's at each
step.
"""

from __future__ import annotations

import socket
import struct

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import (
    CLIENT,
    PORT,
    SERVER,
    Wire,
    read,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames


def test_the_client_closes_first(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.exchange()
    tcp.close(tcp.client, tcp.server)
    assert 100 < wire.only("tcp", state="TIME_WAIT", assured=True)["timeout"] <= 120


def test_the_server_closes_first(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.exchange()
    tcp.close(tcp.server, tcp.client)
    assert wire.only("tcp", state="TIME_WAIT", assured=True)["timeout"] <= 120


def test_a_health_check_that_sends_nothing(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.close()
    assert wire.only("tcp", state="TIME_WAIT")["timeout"] <= 120


def test_half_closed(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.client.shutdown(socket.SHUT_WR)
    wire.only("tcp", state="CLOSE_WAIT")
    tcp.server.sendall(bytes(100))
    read(tcp.client, 100)
    wire.only("tcp", state="CLOSE_WAIT")


def test_a_closed_port_leaves_nothing(wire: Wire) -> None:
    client = wire.open("client", socket.SOCK_STREAM)
    with pytest.raises(ConnectionRefusedError):
        client.connect((SERVER, PORT))
    assert wire.records("tcp") == [] and wire.kernel() == []


def test_an_abort_is_close(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.exchange()
    tcp.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.client.close()
    assert wire.only("tcp", state="CLOSE")["timeout"] <= 10


def test_the_same_ports_again_are_a_new_connection(wire: Wire) -> None:
    before = wire.counters()["reopened"]
    tcp = wire.connect()
    sport = tcp.client.getsockname()[1]
    tcp.exchange(5000, 5000)
    # the server is the one to wait, so the client may use its port again
    tcp.close(tcp.server, tcp.client)
    wire.only("tcp", state="TIME_WAIT")
    again = wire.connect(sport)
    again.exchange(10, 10)
    assert wire.only("tcp", state="ESTABLISHED", assured=True)["orig"]["bytes"] < 1000
    # five minutes until the last segment is acknowledged
    assert within(lambda: wire.only("tcp", state="ESTABLISHED", assured=True)["timeout"] > 400_000)
    assert wire.counters()["reopened"] == before + 1


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_out_of_the_window_changes_nothing(wire: Wire, side: str) -> None:
    tcp = wire.connect()
    tcp.exchange()
    wire.only("tcp", state="ESTABLISHED")
    source, target = ((CLIENT, tcp.client.getsockname()[1]), (SERVER, PORT))[
        :: 1 if side == "client" else -1
    ]
    ends = frames.address(source[0]), frames.address(target[0])
    segment = frames.tcp(*ends, source[1], target[1], 123456789, 0, frames.tcp_flags("R"), 0)
    before = wire.counters()
    wire.raw(side).sendto(frames.ipv4(*ends, frames.TCP, segment), (target[0], 0))

    def refused() -> dict[str, int]:
        return {
            name: number - before[name]
            for name, number in wire.counters().items()
            if name.startswith("invalid_") and number != before[name]
        }

    assert within(refused) and sum(refused().values()) == 1, refused()
    tcp.exchange()
    # five minutes until the last segment is acknowledged
    assert within(lambda: wire.only("tcp", state="ESTABLISHED", assured=True)["timeout"] > 400_000)


def test_a_connection_met_in_the_middle(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.exchange()
    wire.only("tcp", state="ESTABLISHED")
    wire.flush()
    tcp.exchange()
    wire.only("tcp", state="ESTABLISHED", seen_reply=True)
    tcp.close()
    wire.only("tcp", state="TIME_WAIT")


def test_a_chain_attached_in_the_middle_of_a_connection(wire: Wire) -> None:
    wire.attach("absent")
    try:
        tcp = wire.connect()
        tcp.exchange()
        assert wire.records("tcp") == []
    finally:
        wire.attach()
    tcp.exchange()
    (record,) = wire.records("tcp")
    assert (record["state"], record["seen_reply"], record["orig"]["dport"]) == (
        "ESTABLISHED",
        True,
        PORT,
    )
