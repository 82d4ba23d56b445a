# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ordinary traffic: the table holds what was sent, and what nf_conntrack says of it."""

from __future__ import annotations

import socket
import time

from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import (
    CLIENT,
    PORT,
    SERVER,
    Tcp,
    Wire,
)

IP_UDP, IP_ICMP, IP_TCP, SYN_EXTRA = 28, 28, 52, 8


def sides(record: dict[str, dict[str, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (packets, bytes) there and back."""
    orig, reply = record["orig"], record["reply"]
    return (orig["packets"], orig["bytes"]), (reply["packets"], reply["bytes"])


def segments(tcp: Tcp) -> tuple[int, int]:
    """Return how many segments the client has sent and got (include/uapi/linux/tcp.h, struct
    tcp_info).
    """
    info = tcp.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[136:140], "little"), int.from_bytes(info[140:144], "little")


def test_ping(wire: Wire) -> None:
    printed = wire.run("client", "ping", "-c", "3", "-i", "0.2", "-s", "100", SERVER)
    assert "3 received" in printed
    record = wire.only("icmp", state="REPLIED", assured=False, dir="ingress")
    assert (record["icmp"]["type"], record["icmp"]["code"]) == (8, 0)
    assert sides(record) == ((3, 3 * (100 + IP_ICMP)), (3, 3 * (100 + IP_ICMP)))


def test_two_pings_are_two_flows(wire: Wire) -> None:
    for dummy in range(2):
        wire.run("client", "ping", "-c", "1", SERVER)
    assert len({record["icmp"]["id"] for record in wire.records("icmp")}) == 2


def test_a_tcp_connection_while_it_is_open(wire: Wire) -> None:
    tcp = wire.connect()
    tcp.exchange(300, 1200)
    record = wire.only("tcp", state="ESTABLISHED", assured=True, seen_reply=True, dir="ingress")
    assert (record["orig"]["src"], record["orig"]["dst"], record["orig"]["dport"]) == (
        CLIENT,
        SERVER,
        PORT,
    )
    assert record["orig"]["sport"] == tcp.client.getsockname()[1]
    out, back = segments(tcp)
    assert sides(record) == (
        (out, 300 + SYN_EXTRA + IP_TCP * out),
        (back, 1200 + SYN_EXTRA + IP_TCP * back),
    )


def test_a_large_transfer_loses_no_count(wire: Wire) -> None:
    tcp = wire.connect()
    for dummy in range(200):
        tcp.exchange(10_000, 10_000)
    record = wire.only("tcp", state="ESTABLISHED")
    out, back = segments(tcp)
    assert (record["orig"]["packets"], record["reply"]["packets"]) == (out, back)
    assert record["orig"]["bytes"] >= 2_000_000 + out * IP_TCP


def test_udp_both_ways_and_then_a_stream(wire: Wire) -> None:
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.connect((SERVER, PORT))

    def exchange() -> None:
        client.send(bytes(50))
        server.sendto(bytes(70), server.recvfrom(100)[1])
        client.recv(100)

    exchange()
    exchange()
    record = wire.only("udp", state="REPLIED", assured=False)
    assert sides(record) == ((2, 2 * (50 + IP_UDP)), (2, 2 * (70 + IP_UDP)))
    time.sleep(2.1)  # beyond two seconds it is a stream
    exchange()
    assert wire.only("udp", state="ESTABLISHED", assured=True)["timeout"] > 100


def test_one_way_udp_stays_new(wire: Wire) -> None:
    client, server = wire.udp("client"), wire.udp("server", PORT)
    for dummy in range(5):
        client.sendto(b"x", (SERVER, PORT))
        server.recv(10)
    record = wire.only("udp", state="NEW", seen_reply=False)
    assert sides(record) == ((5, 5 * (1 + IP_UDP)), (0, 0))


def test_what_the_other_side_begins_has_it_as_the_initiator(wire: Wire) -> None:
    client, server = wire.udp("client", PORT), wire.udp("server")
    server.sendto(b"hello", (CLIENT, PORT))
    client.sendto(b"hi", client.recvfrom(10)[1])
    server.recv(10)
    record = wire.only("udp", state="REPLIED", dir="egress")
    assert (record["orig"]["src"], record["orig"]["dst"], record["orig"]["dport"]) == (
        SERVER,
        CLIENT,
        PORT,
    )
    assert sides(record) == ((1, 5 + IP_UDP), (1, 2 + IP_UDP))
