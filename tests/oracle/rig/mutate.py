# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames that nobody meant to send: good ones of every kind, changed at random, and noise."""

from __future__ import annotations

import random
import struct
import typing as t

from . import frames
from .frames import V4, V6
from .talk import Talk

#: Values that lengths, offsets and versions are set to.
EDGES = (
    # fmt: off
    0,
    1,
    3,
    4,
    5,
    6,
    7,
    8,
    15,
    19,
    20,
    21,
    28,
    39,
    40,
    41,
    44,
    58,
    60,
    64,
    127,
    128,
    254,
    255,
    0x0800,
    0x2000,
    0x1FFF,
    0x7FFF,
    0x8000,
    0x8100,
    0x86DD,
    0xFFFF,
    # fmt: on
)
LONGEST = 1600
_PADDING = b"\0" + bytes(6)
_TAGS = (frames.ETH_VLAN.to_bytes(2, "big"), frames.ETH_QINQ.to_bytes(2, "big"))
#: Where the checksum stands in the transport header.
_CHECKSUM_AT = {
    frames.TCP: 16,
    frames.UDP: 6,
    frames.UDPLITE: 6,
    frames.ICMPV6: 2,
    frames.ICMP: 2,
    frames.SCTP: 8,
}


def _bases() -> dict[str, list[bytes]]:
    """Return good frames by the kind of thing that a parser has to know."""
    kinds: dict[str, list[bytes]] = {}
    for pair in (V4, V6):
        talk = (
            Talk(pair)
            .send("a", "S", options=frames.mss() + frames.SACK_PERMITTED + frames.wscale(7))
            .send("b", "SA", options=frames.timestamps())
        )
        talk.send("a", "A").send(
            "a", "PA", 40, options=frames.NOP * 2 + frames.sack((1, 2), (3, 4))
        ).send("b", "FA").send("a", "RA")
        tcp = [step.frame for step in talk.steps]
        udp = [step.frame for step in (pair.udp("a"), pair.udp("b"))]
        echoes = [pair.echo("a", 1).frame, pair.echo("b", 1, reply=True).frame]
        gre = [
            _packet(pair, frames.GRE, bytes.fromhex(header) + b"inner")
            for header in ("00000800", "b0000800" + "00" * 12, "3001880b0005000700000001")
        ]
        here = {
            "tcp": tcp,
            "udp": udp,
            "udplite": [
                step.frame
                for step in (
                    pair.udp("a", proto=frames.UDPLITE),
                    pair.udp("b", proto=frames.UDPLITE),
                )
            ],
            "echo": echoes,
            "gre": gre,
            "sctp": [
                _packet(pair, frames.SCTP, frames.sctp(pair.aport, pair.bport, tag, *chunks))
                for tag, chunks in _CHUNKS
            ],
            "other": [
                _packet(pair, proto, struct.pack(">HHII", 1000, 2000, 1, 2) + b"whatever")
                for proto in (4, 33, 41, 50, 51, 99, 255)
            ],
            "tagged": [
                frames.frame(frame[14:], vlans)
                for frame in (*tcp, *udp)
                for vlans in ((5,), (5, 6), (5, 6, 7))
            ],
            "error": [
                error
                for frame in (*tcp, *udp, *echoes, *gre)
                for error in _errors(pair, frame[14:])
            ],
        }
        for kind, made in here.items():
            kinds.setdefault(kind, []).extend(made)
    whole = frames.udp(V4.a, V4.b, 40000, 80, b"x" * 40)
    six = frames.udp(V6.a, V6.b, 40000, 80, b"x" * 16)
    headers = [(0, _PADDING), (60, _PADDING), (43, _PADDING), (51, b"\1" + bytes(10))]
    kinds["fragment"] = [
        *(
            _packet(V4, frames.UDP, whole, **more)
            for more in ({"offset": 16}, {"more": True}, {"offset": 8, "more": True})
        ),
        *(
            _packet(V6, frames.UDP, six, headers=[frames.ipv6_fragment(7, *part)])
            for part in ((0, True), (64, False), (0, False), (8, True))
        ),
        _packet(V6, frames.UDP, six, headers=[headers[0], frames.ipv6_fragment(7, 0, True)]),
    ]
    kinds["options"] = [
        _packet(V4, frames.TCP, tcp_syn(), options=b"\x94\4\0\0" * words) for words in (1, 5, 10)
    ]
    kinds["extension headers"] = [
        _packet(V6, frames.UDP, six, headers=chain)
        for chain in (headers[:1], headers[1:3], headers[3:], headers)
    ]
    neighbours = [
        frames.icmpv6(V6.a, V6.b, kind, 0, payload=bytes(20))
        for kind in (130, 133, 134, 135, 136, 137, 143)
    ]
    kinds["neighbour"] = [_packet(V6, frames.ICMPV6, message, hops=255) for message in neighbours]
    pppoe = b"\x11\0\0\1\0\x20\0\x21" + kinds["tcp"][0][14:]
    kinds["not ip"] = [
        frames.ethernet(pppoe, frames.ETH_PPPOE),
        frames.ethernet(b"\0\1\x08\0\6\4\0\1" + bytes(20), 0x0806),
    ]
    return kinds


def _packet(pair: frames.Pair, proto: int, payload: bytes, **more: t.Any) -> bytes:
    return frames.frame(frames.ip(pair.a, pair.b, proto, payload, **more))


_CHUNKS = [
    (0, [frames.chunk(1, struct.pack(">IIHHI", 0xA, 1000, 1, 1, 1))]),
    (0xA, [frames.chunk(2, struct.pack(">IIHHI", 0xB, 1000, 1, 1, 1))]),
    (0xB, [frames.chunk(10, b"cook"), frames.chunk(0, bytes(16))]),
    (0xB, [frames.chunk(7, bytes(4))]),
    (0xB, [frames.chunk(6)]),
]


def tcp_syn() -> bytes:
    """Return a SYN over IPv4."""
    return frames.tcp(V4.a, V4.b, 40000, 80, 1, 0, 2, 99)


def _errors(pair: frames.Pair, packet: bytes) -> list[bytes]:
    """Return ICMP errors that quote the packet."""
    if len(pair.a) == 4:
        messages = [
            frames.icmp(kind, 1, payload=packet[:keep]) for kind in (3, 5, 11) for keep in (28, 60)
        ]
        return [
            frames.frame(frames.ipv4(pair.b, pair.a, frames.ICMP, message)) for message in messages
        ]
    messages = [
        frames.icmpv6(pair.b, pair.a, kind, 0, payload=packet[:80]) for kind in (1, 2, 3, 4)
    ]
    return [
        frames.frame(frames.ipv6(pair.b, pair.a, frames.ICMPV6, message)) for message in messages
    ]


KINDS = _bases()


def _network(frame: bytes) -> int:
    """Return where the network header begins, behind all tags."""
    at = 14
    while frame[at - 2 : at] in _TAGS:
        at += 4
    return at


def renumbered(frame: bytes, ident: int) -> bytes:
    """Return the frame with another identification, by which fragments find each other."""
    at = _network(frame)
    ethertype = frame[at - 2 : at]
    if ethertype == b"\x08\0":
        return frame[: at + 4] + struct.pack(">H", ident & 0xFFFF) + frame[at + 6 :]
    if ethertype != b"\x86\xdd":
        return frame
    following, header = _behind(frame, at, (0, 43, 60))
    return (
        frame[: header + 4] + struct.pack(">I", ident) + frame[header + 8 :]
        if following == 44
        else frame
    )


def is_hop_by_hop(frame: bytes) -> bool:
    """Whether IPv6 options for every router stand first in the packet: a router throws the packet
    away when they ask for it.
    """
    at = _network(frame)
    return frame[at - 2 : at] == b"\x86\xdd" and frame[at + 6 : at + 7] == b"\0"


def _behind(frame: bytes, at: int, skipped: t.Collection[int]) -> tuple[int, int]:
    """Return the number of the first header behind an IPv6 header and extension headers that is
    none of ``skipped``, and where it begins.
    """
    following, header = frame[at + 6] if len(frame) >= at + 40 else 59, at + 40
    while following in skipped and header + 2 <= len(frame):
        size = (
            8
            if following == 44
            else (frame[header + 1] + 2) * 4
            if following == 51
            else (frame[header + 1] + 1) * 8
        )
        following, header = frame[header], header + size
    return following, header


def sealed(frame: bytes) -> bytes:
    """Return the frame with right IPv4 header and transport checksums, as far as its (changed)
    headers tell where they are.
    """
    at = _network(frame)
    ethertype, packet = frame[at - 2 : at], frame[at:]
    if ethertype == b"\x08\0" and len(packet) >= 20:
        size = max(20, (packet[0] & 15) * 4)
        head = packet[:10] + b"\0\0" + packet[12:size]
        head = head[:10] + struct.pack(">H", frames.checksum(head)) + head[12:]
        end = max(size, int.from_bytes(head[2:4], "big"))
        return (
            frame[:at]
            + head
            + _sealed_transport(head[12:16], head[16:20], head[9], packet[size:end])
            + packet[end:]
        )
    if ethertype == b"\x86\xdd" and len(packet) >= 40:
        proto, start = _behind(frame, at, (0, 43, 44, 51, 60))
        end = max(start, at + 40 + int.from_bytes(packet[4:6], "big"))
        return (
            frame[:start]
            + _sealed_transport(packet[8:24], packet[24:40], proto, frame[start:end])
            + frame[end:]
        )
    return frame


def _sealed_transport(src: bytes, dst: bytes, proto: int, body: bytes) -> bytes:
    at = _CHECKSUM_AT.get(proto)
    if at is None or len(body) < at + 4:
        return body
    if proto == frames.SCTP:
        return (
            body[:at]
            + struct.pack("<I", frames.crc32c(body[:at] + bytes(4) + body[at + 4 :]))
            + body[at + 4 :]
        )
    blank = body[:at] + b"\0\0" + body[at + 2 :]
    if proto == frames.ICMP:
        return blank[:at] + struct.pack(">H", frames.checksum(blank)) + blank[at + 2 :]
    return frames.sealed(src, dst, proto, blank, at)


def mutated(
    rng: random.Random,
    start: int = 0,
    seal: float = 0.7,
    without: t.Collection[str] = (),
    ident: int | None = None,
) -> bytes:
    """Return one frame: a good one with a few changes, or, seldom, noise behind a plausible
    ethertype.

    :param start: the first byte that may change.
    :param seal: how often checksums are put right afterwards, so that the changes are met by the
        parsers behind.
    :param without: kinds of good frames to leave out.
    :param ident: the identification that it gets, if it is a fragment.
    """
    if rng.random() < 0.05:
        ethertype = rng.choice((0x0800, 0x86DD, 0x8100, 0x88A8, 0x8864, rng.randrange(65536)))
        return frames.ethernet(rng.randbytes(rng.randrange(120)), ethertype)
    data = bytearray(rng.choice(KINDS[rng.choice([kind for kind in KINDS if kind not in without])]))
    for dummy in range(rng.randrange(4)):
        at = rng.randrange(min(start, len(data) - 1), len(data))
        change = rng.randrange(8)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.choice(EDGES) & 0xFF
        elif change == 2:
            data[at : at + 2] = struct.pack(">H", rng.choice(EDGES))
        elif change == 3:
            del data[max(at, 14) :]
        elif change == 4:
            data += rng.randbytes(rng.randrange(1, 60))
        elif change == 5:
            del data[at : at + rng.choice((1, 2, 4, 8, 20))]
        elif change == 6:
            data[at:at] = data[at : at + rng.choice((1, 2, 4, 8, 20))]
        else:
            data[at : at + 8] = rng.randbytes(8)
        if len(data) < 14:
            data += bytes(14 - len(data))
    frame = bytes(data[:LONGEST])
    if ident is not None:
        frame = renumbered(frame, ident)
    return sealed(frame) if rng.random() < seal else frame
