# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain does to frames: nothing. They come out as they went in, and none is lost."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import threading
import time

from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, netns
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import (
    CLIENT,
    PORT,
    SERVER,
    Wire,
    read,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames

PACKET_HOST, PACKET_OUTGOING = 0, 4  # include/uapi/linux/if_packet.h
PROG_TYPE_SCHED_CLS = 3
BULK = 32 << 20
SHORTEST_FRAME = 60
IP_OPTIONS_ROUTER_ALERT = bytes([148, 4, 0, 0])
#: A classifier that drops every packet which still has metadata: data_meta (offset 140 of struct
#: __sk_buff) differs from data (76).
NO_METADATA = bytes.fromhex(
    "6112 8c00 00000000 6113 4c00 00000000 b700 0000 02000000 1d32 0100 00000000 9500 0000 00000000"
    " b700 0000 00000000 9500 0000 00000000"
)


def seen(capture: socket.socket, kind: int) -> list[bytes]:
    """Return the IPv4 frames that a capture has of one kind."""
    found: list[bytes] = []
    while True:
        try:
            data, address = capture.recvfrom(1 << 16)
        except BlockingIOError:
            return found
        if address[2] == kind and data[12:14] == b"\x08\x00":
            found.append(data)


def test_frames_come_out_as_they_went_in(wire: Wire) -> None:
    into, out = wire.capture("client", "ns1-wan"), wire.capture("router", "ns1-lan")
    wire.run("client", "ping", "-c", "3", "-i", "0.2", SERVER)
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.sendto(b"odd", (SERVER, PORT))
    server.recv(10)
    wire.connect().close()
    for capture in (into, out):
        capture.setblocking(False)
    sent: list[bytes] = []
    received: list[bytes] = []

    def all_came_out() -> bool:
        sent.extend(seen(into, PACKET_OUTGOING))
        received.extend(seen(out, PACKET_HOST))
        return len(sent) >= 3 + 1 + 4 and len(received) >= len(sent)

    assert within(all_came_out), (len(sent), len(received))
    assert received == sent


def test_no_metadata_is_left_on_the_packets(wire: Wire) -> None:
    pin = os.path.join(wire.chain.paths.pin_root, "no_metadata")
    with bpf.closing(bpf.prog_load(NO_METADATA, "no_metadata", PROG_TYPE_SCHED_CLS, 0)) as program:
        bpf.obj_pin(program, pin)
    with netns.entered(wire.ns("router")):
        subprocess.run(["tc", "qdisc", "add", "dev", "ns1-lan", "clsact"], check=True)
        try:
            subprocess.run(
                [
                    "tc",
                    "filter",
                    "add",
                    "dev",
                    "ns1-lan",
                    "ingress",
                    "bpf",
                    "da",
                    "object-pinned",
                    pin,
                ],
                check=True,
            )
            assert "3 received" in wire.run("client", "ping", "-c", "3", "-i", "0.2", SERVER)
        finally:
            subprocess.run(["tc", "qdisc", "del", "dev", "ns1-lan", "clsact"], check=True)
            os.unlink(pin)


def test_a_burst_arrives_whole(wire: Wire) -> None:
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.connect((SERVER, PORT))
    for dummy in range(50):
        for dummy_too in range(20):
            client.send(bytes(100))
        for dummy_too in range(20):
            server.recv(100)
    assert wire.only("udp", state="NEW")["orig"]["packets"] == 1000


def test_addresses_are_still_resolved(wire: Wire) -> None:
    before = wire.counters()["untracked_not_ip"]
    wire.run("client", "ip", "neigh", "flush", "all")
    wire.run("router", "ip", "neigh", "flush", "all")
    assert "1 received" in wire.run("client", "ping", "-c", "1", SERVER)
    assert wire.counters()["untracked_not_ip"] > before


def test_ip_options_do_not_shift_the_ports(wire: Wire) -> None:
    server = wire.udp("server", PORT)
    ends = frames.address(CLIENT), frames.address(SERVER)
    packet = frames.ipv4(
        *ends, frames.UDP, frames.udp(*ends, 4444, PORT, b"alert"), options=IP_OPTIONS_ROUTER_ALERT
    )
    wire.raw("client").sendto(packet, (SERVER, 0))
    assert server.recv(10) == b"alert"
    record = wire.only("udp", state="NEW")
    assert (record["orig"]["sport"], record["orig"]["dport"], record["orig"]["bytes"]) == (
        4444,
        PORT,
        len(packet),
    )


def test_padding_is_not_counted(wire: Wire) -> None:
    server, link = wire.udp("server", PORT), wire.capture("client", "ns1-wan")
    macs = [
        wire.run(where, "ip", "-br", "link", "show", "dev", name).split()[2]
        for where, name in (("router", "ns1-lan"), ("client", "ns1-wan"))
    ]
    ends = frames.address(CLIENT), frames.address(SERVER)
    packet = frames.ipv4(*ends, frames.UDP, frames.udp(*ends, 4444, PORT))
    frame = bytes.fromhex("".join(macs).replace(":", "")) + b"\x08\x00" + packet
    link.send(frame.ljust(SHORTEST_FRAME, b"\0"))
    assert server.recv(10) == b""
    assert wire.only("udp", state="NEW")["orig"]["bytes"] == len(packet) == 28


def seconds_to_send(wire: Wire, size: int) -> float:
    """Return how long a TCP transfer takes, the median of three."""
    took = []
    for dummy in range(3):
        tcp = wire.connect()
        reader = threading.Thread(target=read, args=(tcp.server, size))
        start = time.monotonic()
        reader.start()
        tcp.client.sendall(bytes(size))
        reader.join()
        took.append(time.monotonic() - start)
    return statistics.median(took)


def test_throughput_does_not_collapse(wire: Wire) -> None:
    """Native XDP on a veth costs its peer GSO, about half the rate; packets that could not be
    merged again would cost far more.
    """
    tracked = seconds_to_send(wire, BULK)
    wire.attach("absent")
    try:
        bare = seconds_to_send(wire, BULK)
    finally:
        wire.attach()
    assert tracked < 10 * bare
