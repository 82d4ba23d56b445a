# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is forwarded in XDP arrives as the stack would have sent it, is counted exactly, and all
that is unusual still goes through the stack.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import os
import random
import socket
import struct
import time

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import text as ct_text
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    ethtool,
    netdev,
    netfilter,
    netns,
    sysctls,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import status as ct_status
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import (
    CLIENT,
    PORT,
    SECONDS,
    SERVER,
    Wire,
    read,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CLIENT6, SERVER6 = "2001:db8:56::105", "2001:db8:57::105"
ROUTER6 = ("2001:db8:56::1", "2001:db8:57::1")
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14  # include/uapi/linux/in.h
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
#: Places in chain.ENTRY.
CTL, LAST_SEEN, LAST_END = (
    [field for field, dummy in chain_layout.ENTRY_FIELDS].index(name)
    for name in ("ctl", "last_seen", "last_end")
)
#: The passes through the stack in the control word: bits, unit in jiffies
#: (files/bpf/templates/forward.h.j2).
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
            sysctls.write_sysctl("net/ipv6/conf/all/forwarding", "1")
        made.attach(far_ends=True)
        for where, name in (("client", "ns1-wan"), ("server", "ns2-wan")):
            # else what arrives is merged before anybody can count it
            made.run(where, "ethtool", "-K", name, "gro", "off")
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
    grown.update(
        {
            name: value - before[name]
            for name, value in wire.counters().items()
            if value != before[name]
        }
    )


def arrived(capture: socket.socket, proto: int) -> list[bytes]:
    """Return the IPv4 frames of a protocol that a socket saw come in."""
    capture.setblocking(False)
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, origin = capture.recvfrom(1 << 16)
            if (
                origin[2] == socket.PACKET_HOST
                and frame[12:14] == b"\x08\x00"
                and frame[14 + PROTO_AT] == proto
            ):
                frames.append(frame)
    return frames


def mac(wire: Wire, where: str, name: str) -> bytes:
    with netns.entered(wire.ns(where)):
        return netdev.link_facts(name).mac


def ask(client: socket.socket, server: socket.socket, payload: bytes = b"ask") -> None:
    """Send a datagram of a connected socket there and back."""
    client.send(payload)
    got, peer = server.recvfrom(1 << 16)
    assert got == payload
    server.sendto(got, peer)
    assert client.recv(1 << 16) == payload


def lived(wire: Wire, seconds: float, passes: bool = False, silent: bool = False) -> None:
    """Let all flows have begun so much earlier, by the clock that UDP is assured by.

    :param passes: shift the last passes through the stack as well.
    :param silent: and the last packet.
    """
    jiffies = round(seconds * chain_jiffies.hz())
    for opened in wire.chain.tables.tables:
        size = opened.table.key.size
        for count, keys, values in list(wire.chain.tables.batches(opened)):
            for at in range(count):
                fields = list(chain_layout.ENTRY.unpack_from(values, at * chain_layout.ENTRY.size))
                for place in (LAST_END, LAST_SEEN) if silent else (LAST_END,):
                    fields[place] = (fields[place] - jiffies) & 0xFFFFFFFF
                for shift in PASS_SHIFTS if passes else ():
                    fields[CTL] -= (old := fields[CTL] & PASS_CLOCK << shift)
                    fields[CTL] |= ((old >> shift) - jiffies // PASS_UNIT & PASS_CLOCK) << shift
                bpf.map_update(
                    opened.fd,
                    bytes(keys[at * size : (at + 1) * size]),
                    chain_layout.ENTRY.pack(*fields),
                )


def assured_udp(
    wire: Wire, addresses: tuple[str, str] = (CLIENT, SERVER), port: int = PORT
) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a flow that is assured, and of which the stack has just seen a packet
    each way.
    """
    family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    client, server = (
        wire.open(where, socket.SOCK_DGRAM, family=family) for where in ("client", "server")
    )
    client.bind((addresses[0], 0))
    server.bind((addresses[1], port))
    client.connect((addresses[1], port))
    ask(client, server)
    lived(wire, 3)
    ask(client, server)
    return client, server


def test_an_established_connection_is_forwarded_and_counted_exactly(
    wire: Wire, figure: c.Callable[[str, object], None]
) -> None:
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
    assert (record["orig"]["bytes"], record["reply"]["bytes"]) == tuple(
        sum(int.from_bytes(one[16:18], "big") for one in some) for some in frames
    )
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
    figure(
        "packets of a connection forwarded in XDP: counted by its ends, and by its flow",
        f"{sum(map(len, frames))}, {by_flow}",
    )


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
    # the server's FIN is the stack's
    assert grown["forwarded"] > 130 and forwarded >= grown["tracked"] - 1, grown
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
    # an answer alone, which anybody can send, is not enough
    assert grown["tracked"] == 4 and "forwarded" not in grown, grown
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
    wire.run(
        "router", "ip", "route", "add", f"{SERVER}/32", "dev", "ns2-lan", "mtu", "lock", "1300"
    )
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
        # the router's answer: administratively prohibited
        with counted(wire) as grown, pytest.raises(OSError):
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
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        32,
        0,
        0,
        64,
        17,
        0,
        socket.inet_aton(CLIENT),
        socket.inet_aton(SERVER),
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    packet = (
        head[:10]
        + struct.pack("!H", ~total & 0xFFFF)
        + head[12:]
        + struct.pack("!HHHH", sport, PORT, 12, 0)
        + b"lost"
    )
    with counted(wire) as grown:
        out.send(
            b"\x02\x00\x00\x00\x00\x99" + mac(wire, "client", "ns1-wan") + b"\x08\x00" + packet
        )
        deadline = time.monotonic() + SECONDS
        while wire.counters()["forward_port"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert grown["forward_port"] == 1 and "forwarded" not in grown
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.recv(10)


def test_attaching_again_changes_nothing_and_a_far_end_without_a_program_gets_no_frame(
    wire: Wire,
) -> None:
    assert wire.attach(far_ends=True)["plan"] == []
    client, server = assured_udp(wire)
    far = [{"name": "ns2-wan", "netns": wire.ns("server")}]
    attach.converge("absent", far, "native", False, wire.chain.paths.pin_root, check_mode=False)
    try:
        (step,) = wire.attach()["plan"]
        assert (step["action"], step["kind"], step["after"].rpartition(" ")[2]) == (
            "change",
            "port",
            "receives",
        )
        with counted(wire) as grown:
            ask(client, server)
        assert grown["forward_port"] == grown["forwarded"] == 1, grown
    finally:
        assert [step["kind"] for step in wire.attach(far_ends=True)["plan"]] == ["xdp", "port"]


@pytest.mark.parametrize(
    ("fused", "forward"), [(False, "all"), (True, "off"), (True, "established")]
)
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
    assert (
        record["state"] == "TIME_WAIT"
        and record["orig"]["packets"] + record["reply"]["packets"] == grown["tracked"]
    )
    everything.reset()


# ---------------------------------------------------------------- what stays the stack's
def wait(true: c.Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def put(wire: Wire, packet: bytes, where: str = "client") -> dict[str, int]:
    """Send an IP packet into the router, as another host than the client or the server would;
    return what was counted of it.
    """
    name, port = ("ns1-wan", "ns1-lan") if where == "client" else ("ns2-wan", "ns2-lan")
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    before = wire.counters()

    def outcomes() -> int:
        now = wire.counters()
        return sum(
            now[outcome] - before[outcome]
            for outcome, dummy in chain_counters.OUTCOMES
            if not outcome.startswith(("untracked_not_ip", "untracked_nd"))
        )

    wire.capture(where, name).send(
        mac(wire, "router", port) + mac(wire, where, name) + kind + packet
    )
    wait(outcomes)
    return {
        counter: value - before[counter]
        for counter, value in wire.counters().items()
        if value != before[counter]
    }


def segment(src: str, dst: str, number: int) -> bytes:
    """Return a bare acknowledgement, as of a connection whose start was not seen."""
    ends = frames.address(src), frames.address(dst)
    return frames.ip(
        *ends, frames.TCP, frames.tcp(*ends, 4000, PORT, number, 1, frames.tcp_flags("A"), 8192)
    )


OTHER, FAR_AWAY = ("172.20.56.77", "2001:db8:56::77"), ("203.0.113.9", "2001:db8:99::9")
OWN = ("172.20.56.1", "172.30.56.1", *ROUTER6)
#: From and to what no router forwards; the other end of each is a host that it forwards for.
NEVER_FROM = (
    *OWN,
    "0.0.0.0",
    "0.1.2.3",
    "255.255.255.255",
    "172.20.56.255",
    "224.0.0.9",
    "127.0.0.1",
    "::",
    "ff0e::9",
    "::1",
    "fe80::9",
)
NEVER_TO = (
    *OWN,
    "0.0.0.0",
    "0.1.2.3",
    "255.255.255.255",
    "172.30.56.255",
    "224.0.0.9",
    "239.1.2.3",
    "127.0.0.1",
    "::",
    "ff0e::9",
    "::1",
    "fe80::9",
)


def test_martians_are_left_to_the_stack(everything: Wire) -> None:
    everything.reset()
    everything.run("client", "ping", "-c", "1", SERVER)  # so that all neighbours are known
    everything.run("client", "ping", "-c", "1", SERVER6)
    routes = [
        ("ip", "route", "add", "default", "via", SERVER),
        ("ip", "-6", "route", "add", "default", "via", SERVER6),
    ]
    for route in routes:
        everything.run("router", *route)
    with netns.entered(everything.ns("server")):
        sysctls.write_sysctl("net/ipv4/ip_forward", "0")  # else it sends back what it is no end of
    sent = everything.capture("server", "ns2-wan")
    try:
        for src, dst in zip(OTHER, FAR_AWAY):  # they would arrive
            assert put(everything, segment(src, dst, 1)).get("forward_refresh") == 1
            assert put(everything, segment(src, dst, 2)).get("forwarded") == 1
        pairs = [(one, FAR_AWAY[":" in one]) for one in NEVER_FROM] + [
            (OTHER[":" in one], one) for one in NEVER_TO
        ]
        went = {
            pair
            for pair in pairs
            for number in range(3)
            if "forwarded" in put(everything, segment(*pair, number))
        }
        assert went == set()
        sent.setblocking(False)
        here = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = sent.recv(1 << 16)
                here.add(
                    (frame[26:30], frame[30:34])
                    if frame[12:14] == b"\x08\0"
                    else (frame[22:38], frame[38:54])
                )
        arrived_from = {
            src
            for src, dst in pairs
            if (frames.address(src), frames.address(dst)) in here and src not in OTHER
        }
        # the stack refuses less of them
        assert arrived_from <= {"0.1.2.3", "172.20.56.255", *ROUTER6}
    finally:
        for route in routes:
            everything.run("router", *(word if word != "add" else "del" for word in route))
        with netns.entered(everything.ns("server")):
            sysctls.write_sysctl("net/ipv4/ip_forward", "1")
        everything.reset()


def test_what_would_go_back_where_it_came_from_is_the_stack_s(everything: Wire) -> None:
    """The sender has a shorter way, of which the stack tells it (ICMP redirect)."""
    there = ("198.51.100.9", "2001:db8:77::9")
    everything.reset()
    everything.run("client", "ping", "-c", "1", SERVER)  # so that all neighbours are known
    everything.run("client", "ping", "-c", "1", SERVER6)
    routes = [
        ("ip", "route", "add", f"{there[0]}/32", "via", CLIENT),
        ("ip", "-6", "route", "add", f"{there[1]}/128", "via", CLIENT6),
    ]
    for route in routes:
        everything.run("router", *route)
    try:
        for src, dst in zip(OTHER, there):
            assert put(everything, segment(src, dst, 1)).get("forward_refresh") == 1
            grown = put(everything, segment(src, dst, 2))
            assert grown.get("forward_route") == 1 and "forwarded" not in grown, grown
    finally:
        for route in routes:
            everything.run("router", *(word if word != "add" else "del" for word in route))
        everything.reset()


FIREWALL = (
    "table inet fw { chain every { type filter hook forward priority 0; policy drop; counter; }; }"
)


def dropped(wire: Wire) -> int:
    return int(
        wire.run("router", "nft", "list", "table", "inet", "fw").partition("packets ")[2].split()[0]
    )


def test_what_the_firewall_drops_from_both_sides_does_not_open_a_way_past_it(wire: Wire) -> None:
    client, server = wire.udp("client", 7000), wire.udp("server", PORT)
    at_client, at_server = wire.capture("client", "ns1-wan"), wire.capture("server", "ns2-wan")
    wire.run("client", "ping", "-c", "1", SERVER)  # so that all neighbours are known
    wire.flush()
    wire.run("router", "nft", FIREWALL)
    try:
        with counted(wire) as grown:
            for dummy in range(4):
                client.sendto(b"let me in", (SERVER, PORT))
                server.sendto(b"let me in", (CLIENT, 7000))
            echo = frames.address(CLIENT), frames.address(SERVER)
            for number in range(4):  # and an answer to an echo that nobody saw
                put(wire, frames.ip(*echo, frames.ICMP, frames.echo(*echo, 9, number)))
                put(
                    wire,
                    frames.ip(
                        *echo[::-1], frames.ICMP, frames.echo(*echo[::-1], 9, number, reply=True)
                    ),
                    "server",
                )
            wait(lambda: dropped(wire) == 16)
        assert "forwarded" not in grown, grown
        assert not arrived(at_server, socket.IPPROTO_UDP) + arrived(at_client, socket.IPPROTO_UDP)
        assert not arrived(at_server, socket.IPPROTO_ICMP)[1:]  # the one ping
    finally:
        wire.run("router", "nft", "delete", "table", "inet", "fw")


# ---------------------------------------------------------------- what the stack sees now and then
def turn(wire: Wire, side: str, frame: bytes) -> str:
    """Send a frame through the program alone, which no port forwards; return whether it would have
    been, or it is the stack's turn to see one.
    """
    before = wire.counters()
    assert bpf.prog_test_run(wire.chain.entries[side], frame).data_out == frame
    grown = {name for name, value in wire.counters().items() if value != before[name]}
    return "stack" if "forward_refresh" in grown else "forwarded" if "forward_port" in grown else ""


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
def test_a_packet_of_each_direction_is_the_stack_s_every_five_seconds(
    wire: Wire, pair: frames.Pair
) -> None:
    out, back = (pair.udp(side).frame for side in "ab")

    def both() -> tuple[str, str]:
        return turn(wire, "a", out), turn(wire, "b", back)

    assert both() == ("", "")  # they begin the flow
    lived(wire, 3)
    # the first one makes it assured
    assert both() == ("", "forwarded") and both() == ("forwarded", "forwarded")
    lived(wire, 4, passes=True)
    assert both() == ("forwarded", "forwarded")
    lived(wire, 2, passes=True)
    assert both() == ("stack", "stack") and both() == ("forwarded", "forwarded")
    # each direction has a clock of its own, and one that goes round is not taken for one that
    # stands still
    step = 4 * chain_jiffies.hz() // PASS_UNIT
    for dummy in range(-(-(PASS_CLOCK + 1) // step)):
        lived(wire, 4, passes=True)
        assert turn(wire, "a", out) in ("stack", "forwarded")
    assert turn(wire, "b", back) == "stack"
    lived(wire, (PASS_CLOCK + 1) * PASS_UNIT / chain_jiffies.hz(), passes=True, silent=True)
    assert both() == ("stack", "stack") and both() == ("forwarded", "forwarded")


#: How fast the router is done with a neighbour that is silent, once a packet went there; as the
#: kernel comes it takes 7 s more.
NEIGHBOURS = {"delay_first_probe_time": 1, "retrans_time_ms": 100, "ucast_solicit": 1}


def connected(wire: Wire, dst: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a TCP connection: the client's and the server's end."""
    family = socket.AF_INET6 if ":" in dst else socket.AF_INET
    listener, client = (
        wire.open("server", socket.SOCK_STREAM, family=family),
        wire.open("client", socket.SOCK_STREAM, family=family),
    )
    listener.bind((dst, port))
    listener.listen(1)
    client.connect((dst, port))
    server, dummy = listener.accept()
    server.settimeout(SECONDS)
    return client, server


def send_until_all_arrive(waiting: dict[socket.socket, socket.socket]) -> None:
    """Send by each client, again and again, until its server, the key, got something."""
    deadline = time.monotonic() + 4 * SECONDS
    while waiting:
        assert time.monotonic() < deadline, (
            f"{len(waiting)} of 4 flows get nothing through to the new address"
        )
        for server, client in list(waiting.items()):
            with contextlib.suppress(BlockingIOError):
                client.send(b"are you there?")
            with contextlib.suppress(BlockingIOError):
                if server.recv(1 << 16):
                    del waiting[server]
        time.sleep(0.2)


def test_a_next_hop_that_changes_its_address_without_anybody_flushing_it(wire: Wire) -> None:
    pairs = ((CLIENT, SERVER), (CLIENT6, SERVER6))
    with netns.entered(wire.ns("router")):
        before = {
            path: sysctls.read_sysctl(path)
            for family in ("ipv4", "ipv6")
            for path in (f"net/{family}/neigh/ns2-lan/{name}" for name in NEIGHBOURS)
        }
        for path in before:
            sysctls.write_sysctl(path, str(NEIGHBOURS[path.rpartition("/")[2]]))
    flows = [assured_udp(wire, pair, 5000) for pair in pairs]
    connections = [connected(wire, dst, 5001) for dummy, dst in pairs]
    for client, server in connections:
        client.sendall(b"x")
        read(server, 1)
    old = mac(wire, "server", "ns2-wan")
    new = bytes([old[0]]) + bytes(byte ^ 3 for byte in old[1:])
    # so that it asks for nobody, which would tell the new address
    for gateway in ("172.30.56.1", ROUTER6[1]):
        neighbour = (
            "ip",
            "neigh",
            "replace",
            gateway,
            "lladdr",
            mac(wire, "router", "ns2-lan").hex(":"),
            "dev",
            "ns2-wan",
        )
        wire.run("server", *neighbour, "nud", "permanent")
    for host in (SERVER, SERVER6):  # as it is half a minute after it was last heard
        wire.run(
            "router",
            "ip",
            "neigh",
            "replace",
            host,
            "lladdr",
            old.hex(":"),
            "dev",
            "ns2-lan",
            "nud",
            "stale",
        )
    wire.run("server", "ip", "link", "set", "ns2-wan", "address", new.hex(":"))
    try:
        waiting = {server: client for client, server in (*flows, *connections)}
        for server, client in waiting.items():
            server.setblocking(False)
            client.setblocking(False)
        with counted(wire) as grown:
            send_until_all_arrive(waiting)
        assert grown["forward_refresh"] >= 2 and grown["forward_neighbour"] >= 2, grown
        with counted(wire) as grown:
            for client, server in flows:
                for one in (client, server):
                    one.settimeout(SECONDS)
                with contextlib.suppress(BlockingIOError):
                    server.setblocking(False)
                    while True:
                        server.recv(100)
                server.settimeout(SECONDS)
                ask(client, server)
        assert grown["forwarded"] >= 2, grown
    finally:
        wire.run("server", "ip", "link", "set", "ns2-wan", "address", old.hex(":"))
        wire.run("server", "ip", "neigh", "flush", "all", "nud", "permanent")
        wire.run("router", "ip", "neigh", "flush", "all")
        with netns.entered(wire.ns("router")):
            for path, value in before.items():
                sysctls.write_sysctl(path, str(value))


# ---------------------------------------------------------------- where it must not be done
def attach_refused(wire: Wire) -> str:
    before = wire.counters()
    with pytest.raises(ConntrackError) as caught:
        wire.attach(far_ends=True)
    assert len(before) == len(wire.counters())
    return caught.value.message


def faults(wire: Wire) -> list[str]:
    """Return what ct status calls unsafe; the text of ct status says it, too."""
    found = ct_status.status(wire.chain.paths)
    told = [fault["detail"] for fault in found["faults"] if fault["fault"] == "forward_unsafe"]
    assert all(line in ct_text.status(found) for line in told) and found["healthy"] == (
        not found["faults"]
    )
    return told


def test_no_forwarding_where_vlan_tags_travel_beside_the_frame(wire: Wire) -> None:
    with netns.entered(wire.ns("client")):
        assert not any(ethtool.features("ns1-wan")[feature] for feature in ethtool.VLAN_OFFLOADS), (
            "a lab has them off"
        )
    assert faults(wire) == []
    wire.run("client", "ethtool", "-K", "ns1-wan", "txvlan", "on")
    try:
        (told,) = faults(wire)
        refused = attach_refused(wire)
        for words in (told, refused):
            assert (
                "txvlan of the veth's other end ns1-wan is on" in words
                and "Run ethtool -K ns1-wan txvlan off in the namespace of that end" in words
            )
        assert refused.startswith("interfaces[0]: ns1-lan@")
    finally:
        wire.run("client", "ethtool", "-K", "ns1-wan", "txvlan", "off")
    assert wire.attach(far_ends=True)["plan"] == [] and faults(wire) == []


def test_no_forwarding_of_tcp_where_nf_conntrack_would_call_it_invalid(wire: Wire) -> None:
    want = wire.chain.want()
    new = dataclasses.replace(want, text=f"{want.text}\n/* another one */\n")
    with netns.entered(wire.ns("router")):
        sysctls.write_sysctl(netfilter.LIBERAL, "0")
    try:
        (first, second), refused = faults(wire), attach_refused(wire)
        # and a new generation does not take the interfaces over
        with pytest.raises(ConntrackError) as caught:
            generation.ensure(wire.chain.paths, new, check_mode=True)
        for words in (first, second, refused, caught.value.message):
            assert (
                f"Set net.netfilter.nf_conntrack_tcp_be_liberal=1 in namespace {wire.ns('router')}"
                in words
            )
        assert caught.value.message.startswith("forward: ns")
    finally:
        with netns.entered(wire.ns("router")):
            sysctls.write_sysctl(netfilter.LIBERAL, "1")
    assert wire.attach(far_ends=True)["plan"] == [] and faults(wire) == []


def test_plan_and_status_name_the_rulesets_that_are_passed_by(wire: Wire) -> None:
    namespace = wire.ns("router")
    named = f"inet fw every (policy drop) in namespace {namespace}"
    want = wire.chain.want()
    new = dataclasses.replace(want, text=f"{want.text}\n/* another one */\n")
    assert ct_status.status(wire.chain.paths)["forwarding"]["namespaces"] == [
        {"netns": namespace, "bypassed": [], "nf_conntrack": True, "tcp_be_liberal": True}
    ]
    wire.run("router", "nft", FIREWALL)
    try:
        found = ct_status.status(wire.chain.paths)
        assert found["forwarding"]["namespaces"][0]["bypassed"] == [
            {"family": "inet", "table": "fw", "chain": "every", "policy": "drop"}
        ]
        assert named in ct_text.status(found)
        plan, dummy = generation.ensure(wire.chain.paths, new, check_mode=True)
        assert named in next(step.reason for step in plan if step.action == "load")
        wire.attach("absent", far_ends=True)
        steps = [step for step in wire.attach(far_ends=True)["plan"] if step["kind"] == "port"]
        assert len(steps) == 2 and all(
            "inet fw every (policy drop)" in step["reason"] for step in steps
        )
        assert wire.attach(far_ends=True)["plan"] == []
    finally:
        wire.run("router", "nft", "delete", "table", "inet", "fw")
        wire.attach(far_ends=True)


def test_the_kernel_says_which_port_takes_redirected_frames(wire: Wire) -> None:
    far = [{"name": "ns2-wan", "netns": wire.ns("server")}]
    attach.converge("absent", far, "native", False, wire.chain.paths.pin_root, check_mode=False)
    try:
        # a veth takes them as well where its other end collects frames
        wire.run("server", "ethtool", "-K", "ns2-wan", "gro", "on")
        assert [step["after"].rpartition(" ")[2] for step in wire.attach()["plan"]] in (
            [],
            ["receives"],
        )
        client, server = assured_udp(wire)
        with counted(wire) as grown:
            ask(client, server)
        assert grown["forwarded"] == 2, grown
    finally:
        wire.run("server", "ethtool", "-K", "ns2-wan", "gro", "off")
        wire.attach(far_ends=True)
