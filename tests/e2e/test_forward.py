# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is forwarded in XDP arrives as the stack would have sent it, is counted exactly, and all that is unusual still goes through the stack."""

from __future__ import annotations

import collections.abc as c
import contextlib
import os
import random
import socket
import struct
import time

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import attach, bpf, chain, clock, netlink, netns
from ansible_collections.ebpf.conntrack.tests.e2e.wire import CLIENT, PORT, SECONDS, SERVER, Wire, read
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CLIENT6, SERVER6 = "2001:db8:56::105", "2001:db8:57::105"
ROUTER6 = ("2001:db8:56::1", "2001:db8:57::1")
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14  # include/uapi/linux/in.h
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
#: Places in chain.ENTRY.
CTL, LAST_END = (next(at for at, (field, dummy) in enumerate(chain.ENTRY_FIELDS) if field == name) for name in ("ctl", "last_end"))
#: The passes through the stack in the control word: bits, unit in jiffies (files/bpf/forward.h.j2).
PASS_SHIFTS, PASS_CLOCK, PASS_LATELY, PASS_UNIT = (40, 51), 0x3FF, 0x400, 64
IP_TTL_AT, PROTO_AT = 8, 9
FORMS = {"chain": False, "fused": True}


def lab(forward: str, fused: bool) -> c.Iterator[Wire]:
    with Wire(forward=forward, fused=fused) as made:
        for where, name, address in (
            ("client", "ns1-wan", CLIENT6),
            ("router", "ns1-lan", ROUTER6[0]),
            ("router", "ns2-lan", ROUTER6[1]),
            ("server", "ns2-wan", SERVER6),
        ):
            made.run(where, "ip", "addr", "add", f"{address}/64", "dev", name, "nodad")
        for where, gateway in zip(("client", "server"), ROUTER6, strict=True):
            made.run(where, "ip", "route", "add", "default", "via", gateway)
        with netns.entered(made.ns("router")):
            netlink.write_sysctl("net/ipv6/conf/all/forwarding", "1")
        made.attach(far_ends=True)
        for where, name in (("client", "ns1-wan"), ("server", "ns2-wan")):
            made.run(where, "ethtool", "-K", name, "gro", "off")  # else what arrives is merged before anybody can count it
        yield made
        made.attach("absent", far_ends=True)


@pytest.fixture(scope="module", params=FORMS)
def labs(request: pytest.FixtureRequest) -> c.Iterator[Wire]:
    """The lab, with what is established forwarded in XDP by either form of the chain."""
    yield from lab("established", FORMS[request.param])


@pytest.fixture
def wire(labs: Wire) -> c.Iterator[Wire]:
    """The lab with empty trackers."""
    labs.reset()
    yield labs
    labs.reset()


@contextlib.contextmanager
def counted(wire: Wire) -> c.Iterator[dict[str, int]]:
    """Give the counters that grew while the block ran, by name, once it has ended."""
    before = wire.counters()
    grown: dict[str, int] = {}
    yield grown
    grown.update({name: value - before[name] for name, value in wire.counters().items() if value != before[name]})


def arrived(capture: socket.socket, proto: int) -> list[bytes]:
    """Return the IPv4 frames of a protocol that a socket saw come in."""
    capture.setblocking(False)
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, origin = capture.recvfrom(1 << 16)
            if origin[2] == socket.PACKET_HOST and frame[12:14] == b"\x08\x00" and frame[14 + PROTO_AT] == proto:
                frames.append(frame)
    return frames


def mac(wire: Wire, where: str, name: str) -> bytes:
    with netns.entered(wire.ns(where)):
        return bpf.link_facts(name).mac


def ask(client: socket.socket, server: socket.socket, payload: bytes = b"ask") -> None:
    """Send a datagram of a connected socket there and back."""
    client.send(payload)
    got, peer = server.recvfrom(1 << 16)
    assert got == payload
    server.sendto(got, peer)
    assert client.recv(1 << 16) == payload


def lived(wire: Wire, seconds: float, passes: bool = False) -> None:
    """Let all flows have begun so much earlier, by the clock that UDP is assured by.

    :param passes: shift the last passes through the stack as well.
    """
    jiffies = round(seconds * clock.hz())
    for opened in wire.chain.tables.tables:
        size = opened.table.key.size
        for count, keys, values in list(wire.chain.tables.batches(opened)):
            for at in range(count):
                fields = list(chain.ENTRY.unpack_from(values, at * chain.ENTRY.size))
                fields[LAST_END] = (fields[LAST_END] - jiffies) & 0xFFFFFFFF
                for shift in PASS_SHIFTS if passes else ():
                    fields[CTL] -= (old := fields[CTL] & PASS_CLOCK << shift)
                    fields[CTL] |= ((old >> shift) - jiffies // PASS_UNIT & PASS_CLOCK) << shift
                bpf.map_update(opened.fd, bytes(keys[at * size : (at + 1) * size]), chain.ENTRY.pack(*fields))


def assured_udp(wire: Wire, addresses: tuple[str, str] = (CLIENT, SERVER), port: int = PORT) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a flow that is assured, and of which the stack has just seen a packet each way."""
    family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    client, server = (wire.open(where, socket.SOCK_DGRAM, family=family) for where in ("client", "server"))
    client.bind((addresses[0], 0))
    server.bind((addresses[1], port))
    client.connect((addresses[1], port))
    ask(client, server)
    lived(wire, 3)
    ask(client, server)
    return client, server


def test_an_established_connection_is_forwarded_and_counted_exactly(wire: Wire, figure: c.Callable[[str, object], None]) -> None:
    at_client, at_server = wire.capture("client", "ns1-wan"), wire.capture("server", "ns2-wan")
    for capture in (at_client, at_server):
        capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
    tcp = wire.connect()
    with counted(wire) as grown:
        for size in (1, 300, 1448, 20_000, 300_000):
            sent = random.Random(size).randbytes(size)
            for sender, receiver in ((tcp.client, tcp.server), (tcp.server, tcp.client)):
                sender.sendall(sent)
                got = bytearray()
                while len(got) < size:
                    got += receiver.recv(1 << 16)
                assert got == sent
        time.sleep(0.1)  # delayed acknowledgements
    (record,) = wire.records("tcp")
    frames = arrived(at_server, socket.IPPROTO_TCP), arrived(at_client, socket.IPPROTO_TCP)
    assert record["state"] == "ESTABLISHED" and record["assured"]
    assert (record["orig"]["packets"], record["reply"]["packets"]) == tuple(map(len, frames))
    assert (record["orig"]["bytes"], record["reply"]["bytes"]) == tuple(sum(int.from_bytes(one[16:18], "big") for one in some) for some in frames)
    seen_by_stack = grown.get("forward_refresh", 0)  # one each way every five seconds
    assert grown["tracked"] - seen_by_stack == grown["forwarded"] > 400, grown
    assert not [name for name in grown if name.startswith(("invalid", "untracked_c"))], grown
    # what the stack of the router saw: the handshake alone
    (theirs,) = wire.kernel()
    assert sum(theirs.packets) == 3 + seen_by_stack
    last = frames[0][-1]
    assert last[:12] == mac(wire, "server", "ns2-wan") + mac(wire, "router", "ns2-lan")
    assert last[14 + IP_TTL_AT] == 63
    tcp.close()
    deadline = time.monotonic() + SECONDS
    while wire.records("tcp")[0]["state"] != "TIME_WAIT":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    by_flow = record["orig"]["packets"] + record["reply"]["packets"]
    figure("packets of a connection forwarded in XDP: counted by its ends, and by its flow", f"{sum(map(len, frames))}, {by_flow}")


def test_a_connection_over_ipv6(wire: Wire) -> None:
    listener = wire.open("server", socket.SOCK_STREAM, family=socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((SERVER6, PORT))
    listener.listen(1)
    client = wire.open("client", socket.SOCK_STREAM, family=socket.AF_INET6)
    client.connect((SERVER6, PORT))
    server, dummy = listener.accept()
    with server, counted(wire) as grown:
        client.sendall(bytes(100_000))
        read(server, 100_000)
        server.sendall(bytes(100_000))
        read(client, 100_000)
    forwarded = grown["forwarded"] + grown.get("forward_refresh", 0)
    assert grown["forwarded"] > 130 and forwarded >= grown["tracked"] - 1, grown  # the server's FIN is the stack's
    server.close()


def test_datagrams_once_they_are_assured_and_echoes_as_long_after_an_answer(wire: Wire) -> None:
    client, server = assured_udp(wire)
    with counted(wire) as grown:
        for size in (1, 2, 33, 1400):
            ask(client, server, bytes(size))
    assert grown["forwarded"] == grown["tracked"] == 8, grown
    ping = ("ping", "-i", "0.1", "-e", "77")  # the identifier, by which the echoes are one flow
    with counted(wire) as grown:
        assert "2 received" in wire.run("client", *ping, "-c", "2", SERVER)
    assert grown["tracked"] == 4 and "forwarded" not in grown, grown  # an answer alone, which anybody can send, is not enough
    lived(wire, 3)
    with counted(wire) as grown:
        assert "3 received" in wire.run("client", *ping, "-c", "3", SERVER)
    assert grown["forwarded"] == grown["tracked"] == 6, grown


def test_time_to_live(wire: Wire) -> None:
    client, dummy = assured_udp(wire)
    errors = wire.open("client", socket.SOCK_RAW, socket.IPPROTO_ICMP)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    with counted(wire) as grown:
        client.send(b"traceroute")
        packet, (hop, port) = errors.recvfrom(1500)
    assert packet[20] == 11 and hop == "172.20.56.1"
    assert grown["forward_ttl"] == grown["tracked"] == 1 and "forwarded" not in grown


def test_path_mtu(wire: Wire) -> None:
    client, dummy = assured_udp(wire)
    client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    wire.run("router", "ip", "route", "add", f"{SERVER}/32", "dev", "ns2-lan", "mtu", "lock", "1300")
    try:
        with counted(wire) as grown:
            client.send(bytes(1400))
            deadline = time.monotonic() + SECONDS
            while client.getsockopt(socket.IPPROTO_IP, IP_MTU) != 1300:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        wire.run("router", "ip", "route", "del", f"{SERVER}/32", "dev", "ns2-lan")
    assert grown["forward_mtu"] == 1 and "forwarded" not in grown


def test_a_route_that_changes(wire: Wire) -> None:
    client, server = assured_udp(wire)
    ask(client, server)
    wire.run("router", "ip", "route", "add", "prohibit", f"{SERVER}/32")
    try:
        with counted(wire) as grown, pytest.raises(OSError):  # the router's answer: administratively prohibited
            client.send(b"nobody forwards this")
            client.recv(10)
        assert grown["forward_route"] == 1 and "forwarded" not in grown
    finally:
        wire.run("router", "ip", "route", "del", "prohibit", f"{SERVER}/32")
    with counted(wire) as grown:
        ask(client, server)
    assert grown["forwarded"] == 2


def test_a_neighbour_that_changes(wire: Wire) -> None:
    client, server = assured_udp(wire)
    old = mac(wire, "server", "ns2-wan")
    new = bytes([old[0]]) + bytes(byte ^ 1 for byte in old[1:])
    with counted(wire) as grown:
        wire.run("server", "ip", "link", "set", "ns2-wan", "address", new.hex(":"))
        wire.run("router", "ip", "neigh", "flush", "dev", "ns2-lan")
        ask(client, server)
        ask(client, server)
    assert grown["forward_neighbour"] >= 1 and grown["forwarded"] >= 2, grown


def test_a_frame_for_somebody_else_stays_here(wire: Wire) -> None:
    client, server = assured_udp(wire)
    sport = client.getsockname()[1]
    out = wire.capture("client", "ns1-wan")
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 17, 0, socket.inet_aton(CLIENT), socket.inet_aton(SERVER))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    packet = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + struct.pack("!HHHH", sport, PORT, 12, 0) + b"lost"
    with counted(wire) as grown:
        out.send(b"\x02\x00\x00\x00\x00\x99" + mac(wire, "client", "ns1-wan") + b"\x08\x00" + packet)
        deadline = time.monotonic() + SECONDS
        while wire.counters()["forward_port"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert grown["forward_port"] == 1 and "forwarded" not in grown
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.recv(10)


def test_attaching_again_changes_nothing_and_a_far_end_without_a_program_gets_no_frame(wire: Wire) -> None:
    assert wire.attach(far_ends=True)["plan"] == []
    client, server = assured_udp(wire)
    far = [{"name": "ns2-wan", "netns": wire.ns("server")}]
    attach.converge("absent", far, "native", False, wire.chain.paths.pin_root, check_mode=False)
    try:
        (step,) = wire.attach()["plan"]
        assert (step["action"], step["kind"], step["after"].rpartition(" ")[2]) == ("change", "port", "receives")
        with counted(wire) as grown:
            ask(client, server)
        assert grown["forward_port"] == grown["forwarded"] == 1, grown
    finally:
        assert [step["kind"] for step in wire.attach(far_ends=True)["plan"]] == ["xdp", "port"]


@pytest.mark.parametrize(("fused", "forward"), [(False, "all"), (True, "off"), (True, "established")])
def test_the_chain_loads_when_no_checksum_is_looked_at(fused: bool, forward: str) -> None:
    with ChainRig(fused=fused, checksum="off", forward=forward) as rig:
        assert rig.run("a", bytes(60)) == "untracked_not_ip"


@pytest.fixture(scope="module", params=FORMS)
def everything(request: pytest.FixtureRequest) -> c.Iterator[Wire]:
    """The lab in which all is forwarded."""
    yield from lab("all", FORMS[request.param])


def test_everything_is_forwarded_but_for_the_first_packet_each_way(everything: Wire) -> None:
    everything.reset()
    everything.run("client", "ping", "-c", "1", SERVER)  # so that all neighbours are known
    everything.flush()
    with counted(everything) as grown:
        tcp = everything.connect()
        tcp.exchange()
        tcp.close()
    assert grown["forwarded"] == grown["tracked"] - 2 >= 5 and grown["forward_refresh"] == 2, grown
    (theirs,) = everything.kernel()
    assert sum(theirs.packets) == 2  # the SYN and its answer
    (record,) = everything.records("tcp")
    assert record["state"] == "TIME_WAIT" and record["orig"]["packets"] + record["reply"]["packets"] == grown["tracked"]
    everything.reset()
