# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP, ICMP queries and ICMP errors, and frames that are not as they should be."""

from __future__ import annotations

import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import Play, Tune
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4, Step
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk

each_family = pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
OTHER_HOST = frames.address("198.18.7.7")


# ---------------------------------------------------------------- UDP
@each_family
@pytest.mark.parametrize("sides", ["a", "b", "aaa", "ab", "ba", "abab", "aabb"])
def test_udp(play: Play, pair: frames.Pair, sides: str) -> None:
    """Only what comes from the other side is a reply."""
    play([pair.udp(side, 10 * number) for number, side in enumerate(sides)])


@each_family
def test_udp_stream(play: Play, pair: frames.Pair) -> None:
    """120 s and ASSURED only with traffic both ways after two seconds."""
    steps = [
        pair.udp("a"),
        pair.udp("b"),
        pair.udp("a", wait=1.5),
        pair.udp("b", wait=0.8),
        pair.udp("a"),
    ]
    states = [play(steps[:3]), play(steps)]
    assert [flow.state for seen in states for flow in seen.flows.values()] == [
        "REPLIED",
        "ESTABLISHED",
    ]


@each_family
def test_udp_one_way_is_no_stream(play: Play, pair: frames.Pair) -> None:
    """Two seconds of one direction are not enough; the first answer after them is."""
    play([pair.udp("a"), pair.udp("a", wait=2.2), pair.udp("b"), pair.udp("a")])


# ---------------------------------------------------------------- expiry
@each_family
def test_expired_flow_is_a_new_one(play: Play, tune: Tune, pair: frames.Pair) -> None:
    """After its time an entry is gone, and the tuple opens another from whichever side comes
    first.
    """
    tune(timeouts={"udp": 1, "icmp": 1, "icmpv6": 1, "tcp_syn_sent": 1})
    steps = [pair.udp("a"), pair.udp("b"), pair.echo("a", 9), *Talk(pair).send("a", "S").steps]
    late = [
        pair.udp("b", wait=2.2),
        pair.echo("b", 9, reply=True),
        *Talk(pair).send("b", "SA").steps,
    ]
    kernel = play(steps + late)
    assert [(flow.proto, flow.packets) for flow in kernel.flows.values()] == [("udp", (1, 0))]


def test_timeouts_change_while_running(play: Play, tune: Tune) -> None:
    """The next packet has the new timeout."""
    tune(timeouts={"udp": 77})
    steps = [V4.udp("a"), V4.udp("b")]
    assert [flow.timeout // 10 for flow in play(steps).flows.values()] == [7]


# ---------------------------------------------------------------- ICMP queries
QUERIES = {"echo": (8, 0), "timestamp": (13, 14), "information": (15, 16), "address mask": (17, 18)}


def icmp(
    side: str,
    kind: int,
    code: int = 0,
    ident: int = 7,
    rest: bytes | None = None,
    payload: bytes = b"12345678",
    pair: frames.Pair = V4,
) -> Step:
    """Return the step of one ICMP message."""
    src, dst = pair.ends(side)[:2]
    rest = struct.pack(">HH", ident, 1) if rest is None else rest
    if len(src) == 16:
        message = frames.icmpv6(src, dst, kind, code, rest, payload)
        return Step(
            side,
            frames.frame(frames.ipv6(src, dst, frames.ICMPV6, message)),
            f"icmpv6 type {kind} code {code} id {ident}",
        )
    return Step(
        side,
        frames.frame(frames.ipv4(src, dst, frames.ICMP, frames.icmp(kind, code, rest, payload))),
        f"icmp type {kind} code {code} id {ident}",
    )


@pytest.mark.parametrize("query", QUERIES)
def test_icmp_query(play: Play, query: str) -> None:
    """Query and answer are one flow, told apart by id, type and code."""
    ask, answer = QUERIES[query]
    play(
        [
            icmp("a", ask),
            icmp("a", ask),
            icmp("b", answer),
            icmp("b", answer, ident=8),
            icmp("a", ask, ident=8),
            icmp("b", ask),
            icmp("a", answer),
            icmp("a", ask),
        ]
    )


@pytest.mark.parametrize("kind", range(45))
def test_icmp_type(play: Play, kind: int) -> None:
    """Which types open a flow, and which are refused."""
    play([icmp("a", kind), icmp("a", kind, code=3), icmp("b", kind)])


def test_icmp_code_is_part_of_the_tuple(play: Play) -> None:
    """An answer with another code is no answer."""
    play([icmp("a", 8, code=5), icmp("b", 0, code=0), icmp("b", 0, code=5), icmp("a", 8, code=0)])


@each_family
def test_echo_both_ways_with_one_id(play: Play, pair: frames.Pair) -> None:
    """Two hosts that ping each other with the same id have two flows."""
    play(
        [
            pair.echo("a", 5),
            pair.echo("b", 5),
            pair.echo("a", 5, reply=True),
            pair.echo("b", 5, reply=True),
            pair.echo("b", 5, reply=True),
        ]
    )


# ---------------------------------------------------------------- ICMP errors
ERRORS = {
    "unreachable": (3, 1),
    "fragmentation needed": (3, 4),
    "source quench": (4, 0),
    "redirect": (5, 1),
    "time exceeded": (11, 0),
    "parameter problem": (12, 0),
}
FLOWS: dict[str, t.Callable[[frames.Pair], list[Step]]] = {
    "tcp": lambda pair: Talk(pair).open().send("a", "PA", 100).steps,
    "tcp, half-open": lambda pair: Talk(pair).send("a", "S").steps,
    "udp": lambda pair: [pair.udp("a", 100)],
    "udp, answered": lambda pair: [pair.udp("a"), pair.udp("b", 100)],
    "echo": lambda pair: [pair.echo("a", 3)],
    "echo, answered": lambda pair: [pair.echo("a", 3), pair.echo("b", 3, reply=True)],
}


def error(
    side: str,
    quoted: Step,
    kind: int = 3,
    code: int = 1,
    keep: int | None = None,
    src: bytes | None = None,
    dst: bytes | None = None,
) -> Step:
    """Return an ICMP error, sent in at ``side``, that quotes the packet of a step.

    :param keep: bytes of the quoted transport; None for all.
    :param src: who sends it; by default the quoted packet's destination.
    :param dst: who gets it; by default the quoted packet's source.
    """
    packet = quoted.frame[14:]
    if packet[0] >> 4 == 6:
        src, dst = src or packet[24:40], dst or packet[8:24]
        message = frames.icmpv6(
            src, dst, kind, code, payload=packet[: None if keep is None else 40 + keep]
        )
        return Step(
            side,
            frames.frame(frames.ipv6(src, dst, frames.ICMPV6, message)),
            f"icmpv6 error {kind}/{code} quotes {quoted}",
        )
    src, dst, head = src or packet[16:20], dst or packet[12:16], (packet[0] & 15) * 4
    message = frames.icmp(kind, code, payload=packet[: None if keep is None else head + keep])
    return Step(
        side,
        frames.frame(frames.ipv4(src, dst, frames.ICMP, message)),
        f"icmp error {kind}/{code} from {frames.text(src)} quotes {quoted}",
    )


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("flow", FLOWS)
def test_icmp_error(play: Play, flow: str, kind: str) -> None:
    """An error about a known flow is related to it and changes nothing in it, whichever packet it
    quotes and whoever sends it.
    """
    known = FLOWS[flow](V4)
    for quoted in known:
        side = "b" if quoted.side == "a" else "a"
        for keep in (None, 8):
            for src in (None, OTHER_HOST):
                kernel = play([*known, error(side, quoted, *ERRORS[kind], keep=keep, src=src)])
                assert kernel.outcome == "related"


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("keep", [0, 1, 3, 4, 6, 7, 8, 12, 19, 20])
def test_icmp_error_quotes_little(play: Play, flow: str, keep: int) -> None:
    """Eight bytes of the transport are enough, and less is not always."""
    known = FLOWS[flow](V4)
    play([*known, error("b", known[0], keep=keep)])


@pytest.mark.parametrize("flow", FLOWS)
def test_icmp_error_is_refused(play: Play, flow: str) -> None:
    """An error that quotes no flow, or that goes to somebody else than the quoted packet's sender,
    is invalid and opens nothing.
    """
    known = FLOWS[flow](V4)
    assert play([error("b", known[0])]).outcome == "invalid"
    assert play([*known, error("b", known[0], dst=OTHER_HOST)]).outcome == "invalid"
    assert play([*known, error("b", known[0], dst=frames.V4.b)]).outcome == "invalid"


def test_icmp_error_about_an_error(play: Play) -> None:
    """Errors are not quoted by errors."""
    known = [V4.udp("a")]
    first = error("b", known[0])
    play([*known, first, error("a", first)])


def test_icmp_error_quotes_a_fragment(play: Play) -> None:
    """A later fragment has no transport header to go by."""
    known = V4.udp("a", 100)
    packet = known.frame[14:]
    later = Step("a", frames.frame(frames.ipv4(V4.a, V4.b, frames.UDP, packet[20:], offset=1480)))
    first = Step("a", frames.frame(frames.ipv4(V4.a, V4.b, frames.UDP, packet[20:], more=True)))
    play([known, error("b", later), error("b", first)])


@pytest.mark.parametrize("tail", range(0, 29, 3))
def test_icmp_error_is_cut(play: Play, tail: int) -> None:
    """An error too short for the IP header that it should quote."""
    known = V4.udp("a")
    message = frames.icmp(3, 1, payload=known.frame[14 : 14 + tail])
    play(
        [
            known,
            Step(
                "b",
                frames.frame(frames.ipv4(V4.b, V4.a, frames.ICMP, message)),
                f"error with {tail} bytes quoted",
            ),
        ]
    )


def test_icmp_error_quotes_options(play: Play) -> None:
    """The quoted header's length counts."""
    segment = frames.udp(V4.a, V4.b, 40000, 80, b"x" * 20)
    known = Step(
        "a",
        frames.frame(frames.ipv4(V4.a, V4.b, frames.UDP, segment, options=b"\x94\x04\0\0")),
        "udp, router alert",
    )
    assert play([known, error("b", known, keep=8)]).outcome == "related"


# ---------------------------------------------------------------- what is wrong with a frame
def ip(
    side: str, proto: int, payload: bytes, label: str = "", tail: bytes = b"", **more: t.Any
) -> Step:
    """Return the step of one IPv4 packet with the given payload."""
    src, dst = V4.ends(side)[:2]
    return Step(
        side,
        frames.frame(frames.ipv4(src, dst, proto, payload, **more)) + tail,
        label or f"proto {proto} {payload.hex()} {more}",
    )


UDP_DATAGRAM = frames.udp(V4.a, V4.b, 40000, 80, b"0123456789")
TCP_SYN = frames.tcp(V4.a, V4.b, 40000, 80, 1000, 0, 2, 8192, options=frames.mss())
ECHO = frames.icmp(8, 0, b"\0\1\0\1", b"payload")
TRANSPORTS = {
    "udp": (frames.UDP, UDP_DATAGRAM),
    "tcp": (frames.TCP, TCP_SYN),
    "icmp": (frames.ICMP, ECHO),
}
each_transport = pytest.mark.parametrize(("proto", "message"), TRANSPORTS.values(), ids=TRANSPORTS)


@each_transport
def test_cut_transport(play: Play, proto: int, message: bytes) -> None:
    """The IP packet ends within the transport header, or the UDP datagram before its length."""
    for length in range(len(message)):
        cut = message[:length]
        if proto == frames.ICMP and length >= 4:
            cut = (
                cut[:2] + struct.pack(">H", frames.checksum(cut[:2] + b"\0\0" + cut[4:])) + cut[4:]
            )
        elif proto == frames.TCP and length >= 20:
            cut = frames.sealed(V4.a, V4.b, proto, cut[:16] + b"\0\0" + cut[18:], 16)
        play([ip("a", proto, cut)])


@each_transport
def test_cut_frame(play: Play, proto: int, message: bytes) -> None:
    """The frame ends before the IP packet does."""
    whole = ip("a", proto, message).frame
    for length in range(14, len(whole)):
        play([Step("a", whole[:length], f"{length} bytes of {len(whole)}")])


@each_transport
def test_padding_does_not_count(play: Play, proto: int, message: bytes) -> None:
    """Ethernet fills short frames up."""
    play([ip("a", proto, message, tail=b"\xff" * 40), ip("a", proto, message)])


@each_transport
def test_bad_checksum(play: Play, proto: int, message: bytes) -> None:
    """A broken transport checksum is invalid, wherever the bit fell."""
    for at in range(len(message)):
        play([ip("a", proto, message[:at] + bytes([message[at] ^ 0x10]) + message[at + 1 :])])


@each_transport
def test_ip_header(play: Play, proto: int, message: bytes) -> None:
    """What the stack would throw away is no flow."""
    for more in (
        {"csum": 1},
        {"length": 19},
        {"length": 20},
        {"length": 1000},
        {"tos": 255},
        {"dont": True},
        {"ttl": 2},
        {"options": b"\1" * 40},
        {"options": b"\x94\4\0\0"},
    ):
        play([ip("a", proto, message, **more)])
    good = ip("a", proto, message).frame
    for version in (0x35, 0x44, 0x40, 0x4F, 0x65):
        head = bytes([version]) + good[15:24] + b"\0\0" + good[26:34]
        play(
            [
                Step(
                    "a",
                    good[:14]
                    + head[:10]
                    + struct.pack(">H", frames.checksum(head))
                    + head[12:]
                    + good[34:],
                    f"first byte {version:#x}",
                )
            ]
        )


def test_udp_without_checksum(play: Play) -> None:
    """Zero means that there is none."""
    assert (
        play([ip("a", frames.UDP, UDP_DATAGRAM[:6] + b"\0\0" + UDP_DATAGRAM[8:])]).outcome
        == "tracked"
    )


@pytest.mark.parametrize("length", [0, 7, 8, 10, 17, 18, 19, 100])
def test_udp_length(play: Play, length: int) -> None:
    """The length in the UDP header lies."""
    play([ip("a", frames.UDP, struct.pack(">HHHH", 40000, 80, length, 0) + b"0123456789")])


@pytest.mark.parametrize("length", [8, 17, 18])
def test_udp_checksum_covers_the_packet(play: Play, length: int) -> None:
    """It is taken over the whole IP payload, whatever the UDP length."""
    head, payload = struct.pack(">HHHH", 40000, 80, length, 0), b"0123456789"
    for covered in (payload, payload[: length - 8]):
        csum = frames.checksum(frames.pseudo(V4.a, V4.b, frames.UDP, 18) + head + covered)
        play([ip("a", frames.UDP, head[:6] + struct.pack(">H", csum) + payload)])


@pytest.mark.parametrize("doff", range(16))
def test_tcp_data_offset(play: Play, doff: int) -> None:
    """The TCP header is shorter than possible, or longer than the packet."""
    for options in (b"", frames.mss() + frames.SACK_PERMITTED):
        play(
            [
                ip(
                    "a",
                    frames.TCP,
                    frames.tcp(V4.a, V4.b, 40000, 80, 1000, 0, 2, 8192, b"xx", options, doff),
                )
            ]
        )


@pytest.mark.parametrize("flags", range(256))
def test_tcp_flags(play: Play, flags: int) -> None:
    """Every combination of flags, as a first segment and in an open connection."""
    segment = frames.tcp(V4.a, V4.b, 40000, 80, 1_000_001, 3_000_000_001, flags, 8192)
    play([ip("a", frames.TCP, segment)])
    play([*Talk(V4).open().steps, ip("a", frames.TCP, segment)])


TCP_OPTIONS = [
    b"",
    b"\0\0\0\0",
    b"\1\1\1\0",
    b"\3\3\7",
    b"\3\2\7\1",
    b"\3\4\7\1",
    b"\3\0\7\1",
    b"\3\1\7\1",
    b"\3\3",
    b"\4\2\3\3",
    b"\4\3\1\3\3\7",
    b"\1\1\1\3",
    b"\1\1\4\2\3\3\7\0",
    b"\x08\x0a12345678\1\1\3\3\7",
    b"\x1e\x0c1234567890\3\3\7",
    b"\x02\x04\x05\xb4\x04\x02\x08\x0a12345678\x01\x03\x03\x07",
    b"\3\3\7\3\3\2",
    b"\4\2\0\3\3\7",
    b"\xfd\x28" + b"x" * 38,
    b"\1" * 37 + b"\3\3\7",
    b"\1" * 38 + b"\3\3",
    b"\1" * 39 + b"\3",
]


@pytest.mark.parametrize("options", TCP_OPTIONS, ids=[o.hex() or "none" for o in TCP_OPTIONS])
def test_tcp_options(play: Play, options: bytes) -> None:
    """Options in any order and shape: scaling shows in what is in the window later."""
    for answer in (frames.NOP + frames.wscale(7), options):
        talk = (
            Talk(V4)
            .send("a", "S", options=options)
            .send("b", "SA", options=answer)
            .send("a", "A", win=100)
            .send("b", "A", win=100)
        )
        play(
            [
                *talk.steps,
                *Talk(V4, (1_000_001, 3_000_000_001))
                .send("a", "A", 10, dseq=9000)
                .send("b", "A", 10, dseq=9000)
                .steps,
            ]
        )


SACKS = [
    frames.NOP * 2 + frames.sack((1_000_101, 1_000_201)),
    frames.NOP * 2 + frames.sack((1_000_001, 1_000_051), (1_000_101, 1_000_202)),
    frames.NOP * 2 + frames.sack((1_000_301, 1_000_401), (1_000_101, 1_000_151), (0, 1)),
    frames.sack((1, 2), (3, 4), (5, 6), (1_000_101, 1_001_900)),
    frames.timestamps(),
    frames.timestamps() + frames.NOP * 2 + frames.sack((1_000_101, 1_001_900)),
    frames.NOP * 2 + b"\5\x09" + b"x" * 8,
    frames.NOP * 2 + b"\5\x0b" + b"x" * 10,
    frames.NOP * 2 + b"\5\x02" + frames.sack((1_000_101, 1_001_900)),
    frames.NOP * 2 + b"\5\x0a" + b"xxxx",
    frames.END + frames.NOP + frames.sack((1_000_101, 1_001_900)),
]


@pytest.mark.parametrize("options", SACKS, ids=[o.hex() for o in SACKS])
@pytest.mark.parametrize("allowed", [True, False])
def test_tcp_sack(play: Play, options: bytes, allowed: bool) -> None:
    """The highest selectively acknowledged byte counts as acknowledged, where the other side had
    said that it may.
    """
    offer = frames.NOP * 2 + frames.SACK_PERMITTED if allowed else b""
    talk = (
        Talk(V4, win=1000)
        .open(options=offer)
        .send("a", "A", 100)
        .send("a", "A", 100)
        .send("b", "A", dack=-200, options=options)
        .send("a", "A", 900)
    )
    play(talk.send("b", "A").steps)


def test_not_ip(play: Play) -> None:
    """ARP and whatever else has an Ethernet header passes by."""
    for ethertype, payload in (
        (0x0806, b"\0\1\x08\0\6\4\0\1" + b"x" * 20),
        (0x88CC, b"\2\7\4abcdef"),
        (100, b"llc"),
        (0x0800, b""),
        (0x86DD, b""),
    ):
        play([Step("a", frames.ethernet(payload, ethertype), f"ethertype {ethertype:#x}")])
