# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""IPv6 with its headers, ICMPv6, VLAN tags, fragments, and the transports besides TCP, UDP and
ICMP.
"""

from __future__ import annotations

import itertools
import random
import struct
import typing as t

import hypothesis
import hypothesis.strategies as st
import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows.codec import STATES
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import Chains, Play, Tune
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.examples import examples
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4, V6, Pair, Step
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk
from ansible_collections.ebpf.conntrack.tests.oracle.test_packets import FLOWS, error, icmp

each_family = pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)


# ---------------------------------------------------------------- IPv6
PADDING = b"\0\1\4" + bytes(4)
HEADERS: dict[str, list[tuple[int, bytes]]] = {
    "none": [],
    "hop-by-hop": [(0, PADDING)],
    "hop-by-hop, router alert": [(0, b"\0\5\2\0\0\1\0")],
    "destination": [(60, PADDING)],
    "long destination": [(60, b"\3\1\x1c" + bytes(28))],
    "routing, nothing left": [(43, bytes(7))],
    "routing, one left": [(43, b"\2\0\1" + bytes(4) + bytes(16))],
    "segment routing": [(43, b"\2\4\0\0\0\0\0" + bytes(16))],
    "authentication": [(51, b"\4" + bytes(22))],
    "all of them": [
        (0, PADDING),
        (60, PADDING),
        (43, bytes(7)),
        (51, b"\4" + bytes(22)),
        (60, PADDING),
    ],
    "five": [(60, PADDING)] * 5,
    "whole in one fragment": [frames.ipv6_fragment(frames.FIXED_IDENT, 0, False)],
}


@pytest.mark.parametrize("name", HEADERS)
def test_extension_headers(play: Play, name: str) -> None:
    """The transport is found behind them, and their bytes count."""
    datagram, segment = (
        frames.udp(V6.a, V6.b, 40000, 80, b"12345"),
        frames.tcp(V6.a, V6.b, 40000, 80, 1, 0, 2, 99),
    )
    message = frames.icmpv6(V6.a, V6.b, 128, 0, b"\0\7\0\1")
    for proto, payload in ((frames.UDP, datagram), (frames.TCP, segment), (frames.ICMPV6, message)):
        play(
            [
                Step(
                    "a",
                    frames.frame(frames.ipv6(V6.a, V6.b, proto, payload, HEADERS[name])),
                    f"{name}, then {proto}",
                ),
                V6.udp("b"),
            ]
        )


def test_no_next_header(play: Play) -> None:
    """Nothing follows: there is nothing to track."""
    play([Step("a", frames.frame(frames.ipv6(V6.a, V6.b, 59, b"12345678")))])


@pytest.mark.parametrize("size", [1, 9, 200, 255])
@pytest.mark.parametrize("kind", [0, 43, 51, 60])
def test_extension_header_longer_than_the_packet(play: Play, kind: int, size: int) -> None:
    """The length of an extension header lies."""
    play(
        [
            Step(
                "a",
                frames.frame(
                    frames.ipv6(
                        V6.a,
                        V6.b,
                        frames.UDP,
                        frames.udp(V6.a, V6.b, 1, 2),
                        [(kind, bytes([size]) + PADDING[1:])],
                    )
                ),
            )
        ]
    )


@pytest.mark.parametrize("kind", [43, 51, 60])
def test_extension_header_longer_than_the_packet_before_any_protocol(play: Play, kind: int) -> None:
    """What needs no transport header is tracked all the same, and errors that quote it find it."""
    sent = Step(
        "a",
        frames.frame(frames.ipv6(V6.a, V6.b, 99, b"", [(kind, b"\x80" + PADDING[1:])])),
        f"{kind} leads past the end",
    )
    assert play([sent, error("b", sent)]).outcome == "related"


MARTIANS = [
    ("127.0.0.1", "198.19.0.1"),
    ("198.18.0.1", "127.255.255.254"),
    ("224.0.0.1", "198.19.0.1"),
    ("239.255.255.255", "198.19.0.1"),
]


@pytest.mark.parametrize(
    ("src", "dst"), [*MARTIANS, ("126.255.255.255", "128.0.0.1"), ("223.255.255.255", "240.0.0.1")]
)
def test_addresses_that_no_router_forwards(
    kernel: NfRig, chain: ChainRig, src: str, dst: str
) -> None:
    """nf_conntrack drops the flow with its first packet; here there is none to begin with."""
    frame = Pair(frames.address(src), frames.address(dst)).udp("a").frame
    chain.flush()
    kernel.flush()
    kernel.step("a", frame)
    assert chain.run("a", frame) == ("invalid_ip_header" if (src, dst) in MARTIANS else "tracked")
    assert kernel.flows().keys() == chain.flows().keys()


SCOPES = [
    "ff00::1",
    "ff01::1",
    "ff02::1",
    "ff11::1",
    "ff12::1",
    "ff0e::1",
    "::1",
    "::2",
    "::",
    "::ffff:192.0.2.1",
]


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("name", SCOPES)
def test_addresses_that_no_wire_may_carry(
    kernel: NfRig, chain: ChainRig, name: str, side: str
) -> None:
    """The stack throws them away, and they open no flow; what a router only does not forward is
    tracked here.
    """
    pair = (
        Pair(frames.address(name), V6.b) if side == "source" else Pair(V6.a, frames.address(name))
    )
    chain.flush()
    kernel.flush()
    seen = kernel.step("a", pair.udp("a").frame)
    assert chain.run("a", pair.udp("a").frame) == (
        "invalid_ip_header" if seen.outcome == "unseen" else "tracked"
    )


def test_cut_ipv6(play: Play) -> None:
    """The frame ends early, or the payload length is wrong."""
    packet = frames.ipv6(
        V6.a, V6.b, frames.UDP, frames.udp(V6.a, V6.b, 40000, 80, b"12345"), [(60, PADDING)]
    )
    for length in range(len(packet)):
        play([Step("a", frames.frame(packet)[: 14 + length], f"{length} bytes of {len(packet)}")])
    for length in range(24):
        play(
            [
                Step(
                    "a",
                    frames.frame(packet[:4] + struct.pack(">H", length) + packet[6:]),
                    f"payload length {length}",
                )
            ]
        )


@pytest.mark.parametrize("kind", range(256))
def test_icmpv6_type(play: Play, kind: int) -> None:
    """Queries open flows, neighbour discovery and group membership are left alone, the rest is
    refused.
    """
    play([icmp("a", kind, pair=V6), icmp("a", kind, code=3, pair=V6), icmp("b", kind, pair=V6)])


@pytest.mark.parametrize("query", [(128, 129), (139, 140)])
def test_icmpv6_query(play: Play, query: tuple[int, int]) -> None:
    """Query and answer are one flow."""
    ask, answer = query
    there = [
        icmp("a", ask, pair=V6),
        icmp("b", answer, pair=V6),
        icmp("b", answer, ident=8, pair=V6),
        icmp("a", ask, ident=8, pair=V6),
    ]
    play([*there, icmp("b", ask, pair=V6), icmp("a", answer, pair=V6)])


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize("flow", FLOWS)
def test_icmpv6_error(play: Play, flow: str, kind: int) -> None:
    """An error about a known flow is related to it; others are invalid."""
    known, other = FLOWS[flow](V6), frames.address("2001:db8:a::7")
    for quoted in known:
        side = "b" if quoted.side == "a" else "a"
        for keep in (None, 8):
            for src in (None, other):
                assert (
                    play([*known, error(side, quoted, kind, 0, keep=keep, src=src)]).outcome
                    == "related"
                )
        play([*known, error(side, quoted, kind, 0, dst=other)])
        play([error(side, quoted, kind, 0)])


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 7, 8, 12, 20])
def test_icmpv6_error_quotes_little(play: Play, keep: int) -> None:
    """Eight bytes of the transport are enough, and less is not always."""
    for flow in FLOWS.values():
        known = flow(V6)
        play([*known, error("b", known[0], keep=keep)])


@pytest.mark.parametrize("name", HEADERS)
def test_icmpv6_error_quotes_extension_headers(play: Play, name: str) -> None:
    """The quoted transport is found behind them."""
    known = Step(
        "a",
        frames.frame(
            frames.ipv6(
                V6.a, V6.b, frames.UDP, frames.udp(V6.a, V6.b, 40000, 80, b"12345"), HEADERS[name]
            )
        ),
    )
    play([V6.udp("a"), error("b", known, keep=200)])


# ---------------------------------------------------------------- VLAN
@each_family
@pytest.mark.parametrize("tags", [(5,), (0,), (4095,), (5, 6), (5, 5)])
def test_tags_do_not_matter(play: Play, pair: Pair, tags: tuple[int, ...]) -> None:
    """One or two tags, and bytes that count without them."""
    steps = [
        *Talk(pair).open().send("a", "PA", 33).steps,
        pair.udp("a"),
        pair.udp("b"),
        pair.echo("a", 5),
        pair.echo("b", 5, reply=True),
    ]
    play(
        [
            Step(step.side, frames.frame(step.frame[14:], tags), f"{tags} {step.label}")
            for step in steps
        ]
    )


@pytest.mark.parametrize(
    "tpids",
    [(frames.ETH_VLAN, frames.ETH_VLAN), (frames.ETH_QINQ, frames.ETH_QINQ), (frames.ETH_QINQ,)],
)
def test_tag_types(play: Play, tpids: tuple[int, ...]) -> None:
    """Either tag may stand on either place."""
    packet = V4.udp("a").frame[14:]
    play([Step("a", frames.ethernet(packet, frames.ETH_IPV4, range(1, len(tpids) + 1), tpids))])


# ---------------------------------------------------------------- fragments
def pieces(
    pair: Pair,
    payload: bytes,
    proto: int,
    cuts: tuple[int, ...],
    side: str = "a",
    options: bytes = b"",
    ident: int | None = None,
) -> list[Step]:
    """Return the fragments of one datagram, in order, cut before the given bytes."""
    src, dst = pair.ends(side)[:2]
    ident = frames.new_ident() if ident is None else ident
    found = []
    for start, end in itertools.pairwise([0, *cuts, len(payload)]):
        part, more = payload[start:end], end < len(payload)
        if len(src) == 4:
            packet = frames.ipv4(src, dst, proto, part, ident, start, more, options=options)
        else:
            packet = frames.ipv6(
                src,
                dst,
                proto,
                part,
                [*([(60, PADDING)] if options else []), frames.ipv6_fragment(ident, start, more)],
            )
        found.append(
            Step(
                side,
                frames.frame(packet),
                f"fragment {ident}: bytes {start} to {end}{' more' if more else ''}",
            )
        )
    return found


def datagrams(pair: Pair, side: str = "a") -> dict[str, tuple[int, bytes]]:
    """Return messages to cut up."""
    src, dst, sport, dport = pair.ends(side)
    ping = frames.echo(src, dst, 9, payload=bytes(56))
    return {
        "udp": (frames.UDP, frames.udp(src, dst, sport, dport, bytes(64))),
        "tcp": (
            frames.TCP,
            frames.tcp(
                src, dst, sport, dport, 1, 0, 2, 99, bytes(32), frames.mss() + frames.SACK_PERMITTED
            ),
        ),
        "sctp": (
            frames.SCTP,
            frames.sctp(
                sport,
                dport,
                0,
                frames.chunk(1, struct.pack(">IIHHI", 7, 1000, 1, 1, 1) + bytes(32)),
            ),
        ),
        "echo": (frames.ICMPV6, ping[40:]) if len(src) == 16 else (frames.ICMP, ping[20:]),
    }


@each_family
@pytest.mark.parametrize("name", ["udp", "tcp", "echo", "sctp"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_fragment_orders(play: Play, pair: Pair, name: str, order: tuple[int, ...]) -> None:
    """In whatever order they come: one datagram, all of its bytes."""
    proto, payload = datagrams(pair)[name]
    parts = pieces(pair, payload, proto, (24, 48))
    kernel = play([parts[i] for i in order])
    assert [flow.packets for flow in kernel.flows.values()] == [(1, 0)]


@each_family
def test_fragments_of_both_sides(play: Play, pair: Pair) -> None:
    """A fragmented question and a fragmented answer; the same identification on both sides means
    nothing.
    """
    for order in (
        lambda asked, answered: [*asked, *answered],
        lambda asked, answered: [part for both in zip(asked, answered) for part in both],
    ):
        ident = frames.new_ident()
        play(
            order(
                *(
                    pieces(
                        pair,
                        datagrams(pair, side)["udp"][1],
                        frames.UDP,
                        (24, 48),
                        side,
                        ident=ident,
                    )
                    for side in "ab"
                )
            )
        )


@each_family
def test_fragments_with_options(play: Play, pair: Pair) -> None:
    """Options of the first fragment's header count."""
    play(pieces(pair, datagrams(pair)["udp"][1], frames.UDP, (24,), options=b"\x94\4\0\0"))


def test_fragment_with_headers_behind_it(play: Play) -> None:
    """Extension headers may stand behind the fragment header: UDP's length is held against what is
    behind them.
    """
    for length in (16, 17, 24, 25):
        body = b"\x11\0" + PADDING[1:] + frames.udp(V6.a, V6.b, 40000, 80, bytes(8))
        body = body[:12] + struct.pack(">H", length) + body[14:16] + body[16:]
        for cuts in ((), (16,)):
            play(pieces(V6, body, 60, cuts))


@pytest.mark.parametrize("more", [False, True])
def test_fragment_that_ends_with_its_headers(play: Play, more: bool) -> None:
    """Too short for any transport: it is taken for a packet of its own."""
    for proto in (frames.TCP, frames.UDP, 99):
        fragment = frames.ipv6_fragment(frames.new_ident(), 0, more)
        play(
            [
                Step(
                    "a",
                    frames.frame(frames.ipv6(V6.a, V6.b, proto, b"", [fragment, (60, PADDING)])),
                )
            ]
        )


@pytest.mark.parametrize("offset", [0, 8, 65528])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 12, 16])
@pytest.mark.parametrize("proto", [frames.UDP, 99])
def test_fragment_of_no_even_length(play: Play, proto: int, size: int, offset: int) -> None:
    """The kernel does not wait for the rest of what can have none, and looks at it as it is."""
    part = frames.udp(V6.a, V6.b, 40000, 80, bytes(8))[:size]
    for more in (False, True):
        fragment = frames.ipv6_fragment(frames.new_ident(), offset, more)
        play(
            [
                Step(
                    "a",
                    frames.frame(frames.ipv6(V6.a, V6.b, proto, part, [fragment])),
                    f"{size} bytes at {offset} {more}",
                )
            ]
        )


@pytest.mark.parametrize("second", [(0, False), (0, True), (8, False)])
@pytest.mark.parametrize("first", [(0, False), (0, True), (8, False)])
def test_fragment_of_a_fragment(
    play: Play, first: tuple[int, bool], second: tuple[int, bool]
) -> None:
    """What is put together may have a fragment header again; the kernel does not do it twice."""
    headers = [frames.ipv6_fragment(frames.new_ident(), *part) for part in (first, second)]
    play(
        [
            Step(
                "a",
                frames.frame(
                    frames.ipv6(
                        V6.a, V6.b, frames.UDP, frames.udp(V6.a, V6.b, 40000, 80, bytes(8)), headers
                    )
                ),
            )
        ]
    )


HOPS = [(0, PADDING)]
PARTS = [
    frames.ipv6_fragment(frames.FIXED_IDENT + 1, 0, True),
    frames.ipv6_fragment(frames.FIXED_IDENT + 2, 8, False),
]


@pytest.mark.parametrize("headers", [HOPS, *([*HOPS, part] for part in PARTS)])
def test_no_payload_length(play: Play, headers: list[tuple[int, bytes]]) -> None:
    """Behind hop-by-hop options it means a jumbogram: everything counts, and nothing is a
    fragment.
    """
    datagram = frames.udp(V6.a, V6.b, 40000, 80, bytes(8))
    for tail in (b"", b"padding"):
        play(
            [
                Step(
                    "a",
                    frames.frame(frames.ipv6(V6.a, V6.b, frames.UDP, datagram, headers, length=0))
                    + tail,
                )
            ]
        )
    play(
        [
            Step(
                "a",
                frames.frame(
                    frames.ipv6(V6.a, V6.b, frames.UDP, datagram, [(60, PADDING)], length=0)
                ),
            )
        ]
    )


@pytest.mark.parametrize("left", range(9))
@pytest.mark.parametrize("kind", [43, 51, 60])
def test_cut_extension_header(play: Play, kind: int, left: int) -> None:
    """Two bytes are enough to step over it."""
    play(
        [
            Step(
                "a",
                frames.frame(
                    frames.ipv6(
                        V6.a, V6.b, 99, b"", [(60, PADDING), (kind, PADDING)], length=8 + left
                    )
                ),
            )
        ]
    )


@each_family
@pytest.mark.parametrize("extra", [0, 1])
def test_fragments_of_the_longest_datagram(play: Play, pair: Pair, extra: int) -> None:
    """One byte more, headers counted, and it is nothing."""
    # with options, so that each fragment could be right
    longest = 65535 - (20 + 4 if len(pair.a) == 4 else 8)
    payload = struct.pack(">HHHH", *pair.ends("a")[2:], longest + extra, 0) + bytes(
        longest + extra - 8
    )
    cuts = tuple(range(3200, longest, 3200))
    kernel = play(pieces(pair, payload, frames.UDP, cuts, options=b"\x94\4\0\0"))
    assert len(kernel.flows) == 1 - extra


@each_family
def test_two_datagrams_interleaved(play: Play, pair: Pair) -> None:
    """Told apart by identification."""
    other = Pair(pair.a, pair.b, 41000, 81)
    one = pieces(pair, datagrams(pair)["udp"][1], frames.UDP, (24, 48))
    two = pieces(other, datagrams(other)["udp"][1], frames.UDP, (16, 32))
    play([part for both in zip(one, two) for part in both])


# ---------------------------------------------------------------- other transports
def packet(pair: Pair, side: str, proto: int, payload: bytes, label: str = "") -> Step:
    """Return the step of one packet of any protocol."""
    src, dst = pair.ends(side)[:2]
    return Step(
        side,
        frames.frame(frames.ip(src, dst, proto, payload)),
        label or f"proto {proto} {payload.hex()}",
    )


@each_family
@pytest.mark.parametrize("proto", [2, 4, 33, 41, 50, 89, 99, 103, 137, 253, 255])
def test_any_protocol(play: Play, pair: Pair, proto: int) -> None:
    """One flow between two hosts for each protocol number."""
    play([packet(pair, side, proto, b"\0\1\0\2payload") for side in "aaba"])


GRE_HEADERS = [
    "",
    "00",
    "00000800",
    "2000080000000005",
    "20000800" + "00000006",
    "b0000800" + "00" * 12,
    "2001880b00000005",
    "3001880b0000000500000001",
]


@each_family
@pytest.mark.parametrize("header", [*GRE_HEADERS, "2001080000000005", "00020800"])
def test_gre(play: Play, pair: Pair, header: str) -> None:
    """Keys tell flows apart in version 1 only."""
    play([packet(pair, side, frames.GRE, bytes.fromhex(header)) for side in "aaba"])


def udplite(pair: Pair, side: str, coverage: int, flip: int | None = None) -> Step:
    """Return the step of one UDP-Lite datagram of 18 bytes whose checksum covers ``coverage`` of
    them (RFC 3828); one bit of byte ``flip`` is wrong.
    """
    src, dst, sport, dport = pair.ends(side)
    whole = bytearray(struct.pack(">HHHH", sport, dport, coverage, 0) + b"0123456789")
    covered = bytes(whole[: coverage or None])
    whole[6:8] = struct.pack(
        ">H",
        frames.checksum(frames.pseudo(src, dst, frames.UDPLITE, len(whole)) + covered) or 0xFFFF,
    )
    if flip is not None:
        whole[flip] ^= 0x10
    return packet(
        pair,
        side,
        frames.UDPLITE,
        bytes(whole),
        f"UDP-Lite, {coverage} bytes covered, byte {flip} is wrong",
    )


@pytest.fixture
def kernel_trusts(kernel: NfRig) -> t.Iterator[None]:
    """nf_conntrack does not look at checksums: it takes that of UDP-Lite with UDP's protocol
    number; see docs/design/differences.md.
    """
    was = kernel.sysctl("checksum", 0)
    yield
    kernel.sysctl("checksum", was)


@pytest.mark.usefixtures("kernel_trusts")
@each_family
@pytest.mark.parametrize("coverage", [0, 8, 12, 18, 1, 7, 19, 65535])
def test_udplite(play: Play, pair: Pair, coverage: int) -> None:
    """Ports, timeouts and states are UDP's; a coverage that can not be is refused."""
    play([udplite(pair, side, coverage) for side in "aab"])


@pytest.mark.usefixtures("kernel_trusts")
def test_udplite_stream(play: Play) -> None:
    """It becomes a stream as UDP does."""
    last = udplite(V4, "a", 8)
    play([udplite(V4, "a", 8), udplite(V4, "b", 8), Step(last.side, last.frame, last.label, 2.2)])


@each_family
@pytest.mark.parametrize("coverage", [0, 8, 12, 18])
def test_udplite_checksum(chain: ChainRig, pair: Pair, coverage: int) -> None:
    """What the checksum covers must be right, the rest need not be, and there is no datagram
    without one.
    """
    chain.flush()
    assert chain.run("a", udplite(pair, "a", coverage).frame) == "tracked"
    for flip in range(18):
        broken = udplite(pair, "a", coverage, flip).frame
        if flip not in (4, 5):  # these change what is covered
            assert chain.run("a", broken) == (
                "invalid_checksum" if flip < (coverage or 18) else "tracked"
            ), flip
    without = bytearray(udplite(pair, "a", coverage).frame)
    without[-12:-10] = bytes(2)
    assert chain.run("a", bytes(without)) == "invalid_checksum"


(
    DATA,
    INIT,
    INIT_ACK,
    SACK,
    HEARTBEAT,
    HEARTBEAT_ACK,
    ABORT,
    SHUTDOWN,
    SHUTDOWN_ACK,
    ERROR,
    COOKIE_ECHO,
    COOKIE_ACK,
    SHUTDOWN_COMPLETE,
) = (
    *range(12),
    14,
)
TAGS = {"a": 0xA, "b": 0xB}


def association(
    pair: Pair, side: str, kind: int, tag: int | None = None, flags: int = 0, also: bytes = b""
) -> Step:
    """Return the step of one SCTP chunk with the right verification tag, that of the receiver, or
    with another.
    """
    src, dst, sport, dport = pair.ends(side)
    value = {
        INIT: struct.pack(">IIHHI", TAGS[side], 1000, 1, 1, 1),
        DATA: bytes(16),
        SHUTDOWN: bytes(4),
    }
    value[INIT_ACK] = value[INIT] + b"\0\7\0\x08cook"
    if tag is None:
        tag = 0 if kind == INIT else TAGS["b" if side == "a" else "a"]
    body = frames.sctp(
        sport,
        dport,
        tag,
        frames.chunk(kind, value.get(kind, b""), flags),
        *([also] if also else []),
    )
    return packet(pair, side, frames.SCTP, body, f"sctp chunk {kind} tag {tag} flags {flags}")


ASSOCIATION = [
    ("a", INIT),
    ("b", INIT_ACK),
    ("a", COOKIE_ECHO),
    ("b", COOKIE_ACK),
    ("a", DATA),
    ("b", SACK),
    ("a", SHUTDOWN),
    ("b", SHUTDOWN_ACK),
]
CHUNKS = [*range(12), 14, 15, 64]


@each_family
@pytest.mark.parametrize("steps", range(len(ASSOCIATION) + 1))
@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("side", "ab")
def test_sctp_cell(play: Play, pair: Pair, side: str, kind: int, steps: int) -> None:
    """Every kind of chunk at every step of an association's life."""
    play(
        [*(association(pair, *step) for step in ASSOCIATION[:steps]), association(pair, side, kind)]
    )


chunks = st.tuples(
    st.sampled_from("ab"),
    st.sampled_from(CHUNKS),
    st.sampled_from([None, None, None, 0, 0xA, 0xB, 9]),
    st.sampled_from([0, 1]),
)


@hypothesis.settings(max_examples=examples(1000))
@hypothesis.given(steps=st.integers(0, len(ASSOCIATION)), more=st.lists(chunks, max_size=6))
def test_sctp_any(
    play_random: Play, steps: int, more: list[tuple[str, int, int | None, int]]
) -> None:
    """Associations that nobody thought of."""
    play_random(
        [
            *(association(V4, *step) for step in ASSOCIATION[:steps]),
            *(association(V4, *step) for step in more),
        ]
    )


def test_sctp_broken(play: Play) -> None:
    """Checksum, chunk length and what may not stand together."""
    whole = association(V4, "a", INIT).frame[34:]
    for body in (
        whole[:11],
        whole[:12],
        whole[:14],
        whole[:16],
        whole[:20],
        whole[:8] + b"1234" + whole[12:],
    ):
        play([packet(V4, "a", frames.SCTP, body)])
    for length in (0, 3, 4, 19, 20, 21, 200):
        broken = struct.pack(">BBH", INIT, 0, length) + whole[16:]
        play(
            [
                packet(
                    V4,
                    "a",
                    frames.SCTP,
                    frames.sctp(40000, 80, 0, broken),
                    f"chunk length {length}",
                )
            ]
        )
    for kind in (INIT, INIT_ACK, SHUTDOWN_COMPLETE, COOKIE_ECHO, DATA):
        steps = [association(V4, *step) for step in ASSOCIATION[:4]]
        play([*steps, association(V4, "a", kind, also=frames.chunk(DATA, bytes(16)))])
        play([*steps, association(V4, "a", DATA, also=frames.chunk(kind, bytes(16)))])


def bundle(rng: random.Random, pair: Pair, side: str) -> Step:
    """Return the step of one SCTP packet of a few chunks, mostly such as may stand together, some
    of them broken.
    """
    kinds = [rng.choice(CHUNKS) for dummy in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 4, 6)))]
    if len(kinds) > 1 and rng.random() < 0.8:
        kinds = [kind for kind in kinds if kind not in (INIT, INIT_ACK, SHUTDOWN_COMPLETE)]
        kinds = [
            kind
            for at, kind in enumerate(kinds)
            if at == 0 or kind not in (COOKIE_ECHO, COOKIE_ACK)
        ]
    body = b""
    for kind in kinds or [DATA]:
        value = {
            INIT: struct.pack(">IIHHI", rng.choice((TAGS[side], TAGS[side], 0, 9)), 1000, 1, 1, 1),
            SHUTDOWN: bytes(4),
        }
        value |= {
            INIT_ACK: value[INIT] + b"\0\7\0\x08cook",
            DATA: bytes(rng.choice((12, 13, 16, 100, 1000))),
        }
        whole = frames.chunk(kind, value.get(kind, b""), rng.choice((0, 0, 0, 1)))
        if rng.random() < 0.02:
            whole = (
                whole[:2] + struct.pack(">H", rng.choice((0, 1, 3, 5, 8, 30, 0xFFFF))) + whole[4:]
            )
        body += whole
    if rng.random() < 0.03:
        body = body[: rng.randrange(len(body) + 1)]
    body = body[:1400]
    src, dst, sport, dport = pair.ends(side)
    right = 0 if kinds[:1] == [INIT] else TAGS["b" if side == "a" else "a"]
    tag = rng.choice([right] * 5 + [0, 0xA, 0xB, 9])
    return packet(
        pair,
        side,
        frames.SCTP,
        frames.sctp(sport, dport, tag, body),
        f"sctp chunks {kinds} tag {tag}, {len(body)} bytes",
    )


@each_family
@pytest.mark.parametrize("seed", range(8))
def test_sctp_bundles(play: Play, pair: Pair, seed: int) -> None:
    """Several chunks in a packet, repeated, out of place and with any tag."""
    rng = random.Random(seed)
    for dummy in range(60):
        begun = [
            association(pair, *step) for step in ASSOCIATION[: rng.choice((0, rng.randrange(9)))]
        ]
        play(
            [
                *begun,
                *(bundle(rng, pair, rng.choice("aab")) for other in range(rng.randrange(1, 9))),
            ]
        )


@each_family
@pytest.mark.parametrize("keep", [None, 8])
def test_sctp_error(play: Play, pair: Pair, keep: int | None) -> None:
    """An ICMP error about an association is related to it."""
    begun = [association(pair, *step) for step in ASSOCIATION[:5]]
    assert (
        play(
            [*begun, error("b", begun[-1], *((3, 3) if pair is V4 else (1, 4)), keep=keep)]
        ).outcome
        == "related"
    )


def test_sctp_timeouts(play: Play, tune: Tune) -> None:
    """Each state has its own, and each can be set."""
    tune(
        {
            f"sctp_{state.lower()}": 100 + 10 * at
            for at, state in enumerate(STATES[frames.SCTP])
            if state != "NONE"
        }
    )
    for steps in range(1, len(ASSOCIATION) + 1):
        play([association(V4, *step) for step in ASSOCIATION[:steps]])
    play([association(V4, *step) for step in [*ASSOCIATION[:6], ("b", SHUTDOWN)]])
    play([association(V4, "a", HEARTBEAT), association(V4, "b", HEARTBEAT_ACK)])


# ---------------------------------------------------------------- a host that talks to itself
def alike(pair: Pair) -> Pair:
    """Return a pair whose ends are one address and one port."""
    return Pair(pair.a, pair.a, 7, 7)


@each_family
@pytest.mark.parametrize("proto", [frames.UDP, 99, 253])
def test_equal_ends(play: Play, pair: Pair, proto: int) -> None:
    """Whatever comes after the first packet is a reply to it."""
    payload = frames.udp(*alike(pair).ends("a"), b"12345")
    steps = [packet(alike(pair), side, proto, payload) for side in "aaab"]
    assert [flow.packets for flow in play(steps).flows.values()] == [(1, 3)]
    play([*steps[:3], error("b", steps[0], *((3, 3) if pair is V4 else (1, 4)))])
    # one of both is not enough
    for near in (Pair(pair.a, pair.a, 7, 8), Pair(pair.a, pair.b, 7, 7)):
        datagram = frames.udp(*near.ends("a"), b"12345")
        play([packet(near, "a", frames.UDP, datagram)] * 2)


@each_family
def test_equal_ends_of_other_protocols(play: Play, pair: Pair) -> None:
    """Queries tell by their type who asks; GRE and SCTP are like the rest."""
    same = alike(pair)
    play(
        [
            same.echo("a", 7),
            same.echo("a", 7),
            same.echo("a", 7, reply=True),
            same.echo("b", 0x0800),
            same.echo("b", 0x0800),
        ]
    )
    for header in ("00000800", "3001880b0000000000000001", "3001880b0000000500000001"):
        play([packet(same, "a", frames.GRE, bytes.fromhex(header))] * 3)
    play([association(same, "a", INIT)] * 3)
    play([association(same, "a", kind, tag=0xA) for kind in (HEARTBEAT, HEARTBEAT, HEARTBEAT_ACK)])


land = st.tuples(
    st.sampled_from(["S", "SA", "A", "FA", "R", "RA"]),
    st.sampled_from([0, 1, 2, 11, -1, 100_000]),
    st.sampled_from([0, 1, 2, 11, 100_000]),
)


@hypothesis.settings(max_examples=150)
@hypothesis.given(family=st.sampled_from([V4, V6]), more=st.lists(land, min_size=1, max_size=7))
def test_equal_ends_over_tcp(
    play_random: Play, family: Pair, more: list[tuple[str, int, int]]
) -> None:
    """The attack by the name of LAND, and whatever may follow: a SYN that comes again is a
    simultaneous opening.
    """
    same = alike(family)
    play_random(
        [
            same.tcp("a", flags, seq, ack if "A" in flags else 0)
            for flags, seq, ack in [("S", 0, 0), *more]
        ]
    )


# ---------------------------------------------------------------- everything at once
def test_a_crowd(kernel: NfRig, chains: Chains) -> None:
    """Hundreds of flows of all kinds, mixed: the two tables are the same."""
    rng = random.Random(7)
    queues: list[list[Step]] = []
    for number in range(150):
        family = rng.choice((V4, V6))
        pair = Pair(family.a, family.b, 20000 + number, rng.choice((80, 443, 53)))
        state, closer = (
            rng.choice(
                ("SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "LAST_ACK", "TIME_WAIT")
            ),
            rng.choice("ab"),
        )
        queues.append(Talk(pair).until(state, closer=closer).steps)
        queues.append([pair.udp(side, rng.randrange(50)) for side in rng.choice(("a", "ab", "ba"))])
        queues.append([pair.echo("a", number), pair.echo("b", number, reply=True)])
    kernel.flush()
    for chain in chains.values():
        chain.flush()
    while queues:
        queue = rng.choice(queues)
        step = queue.pop(0)
        kernel.send(step.side, step.frame)
        for chain in chains.values():
            chain.run(step.side, step.frame)
        queues = [queue for queue in queues if queue]
    theirs = view.Seen("", kernel.flows())
    assert len(theirs.flows) == 450
    for name, chain in chains.items():
        assert compare.differences(theirs, view.Seen("", chain.flows()), name=name) == []
    kernel.flush()
