# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames that nobody meant to send: good ones of every kind, changed at random, and noise."""

from __future__ import annotations

import random
import struct

from . import frames
from .frames import V4, V6
from .talk import Talk

#: Values that lengths, offsets and versions are set to.
EDGES = (
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
)
LONGEST = 1600
_MORE = b"\0\0\0\0\0\0\0"


def _bases() -> list[list[bytes]]:
    """Return good frames of each kind that a parser knows, kind by kind."""
    kinds: list[list[bytes]] = []
    for pair in (V4, V6):
        talk = Talk(pair).send("a", "S", options=frames.mss() + frames.SACK_PERMITTED + frames.wscale(7)).send("b", "SA", options=frames.timestamps())
        talk.send("a", "A").send("a", "PA", 40, options=frames.NOP * 2 + frames.sack((1, 2), (3, 4))).send("b", "FA").send("a", "RA")
        tcp = [step.frame for step in talk.steps]
        datagrams = [step.frame for step in (pair.udp("a"), pair.udp("b"), pair.udp("a", proto=frames.UDPLITE))]
        echoes = [pair.echo("a", 1).frame, pair.echo("b", 1, reply=True).frame]
        others = [
            frames.frame(frames.ip(pair.a, pair.b, proto, struct.pack(">HHII", 1000, 2000, 1, 2) + b"chunk and whatever"))
            for proto in (frames.GRE, frames.SCTP, 50, 51, 4, 41, 99, 255)
        ]
        tagged = [frames.frame(frame[14:], vlans) for frame in (*tcp, *datagrams) for vlans in ((5,), (5, 6), (5, 6, 7))]
        errors = [error for frame in (*tcp, *datagrams, *echoes) for error in _errors(pair, frame[14:])]
        kinds += [tcp, datagrams, echoes, others, tagged, errors]
    whole, part = frames.udp(V4.a, V4.b, 40000, 80, b"x" * 40), [(0, _MORE), (60, _MORE), (43, _MORE), (0, b"\1" + bytes(14))]
    kinds.append([frames.frame(frames.ipv4(V4.a, V4.b, frames.UDP, whole, **more)) for more in ({"offset": 16}, {"more": True}, {"offset": 8, "more": True})])
    kinds.append([frames.frame(frames.ipv4(V4.a, V4.b, frames.TCP, tcp_syn(), options=b"\x94\4\0\0" * words)) for words in (1, 5, 10)])
    whole = frames.udp(V6.a, V6.b, 40000, 80, b"x" * 16)
    chains = [
        part[:1],
        part[1:3],
        part[3:],
        part,
        [frames.ipv6_fragment(7, 0, True)],
        [frames.ipv6_fragment(7, 64, False)],
        [frames.ipv6_fragment(7, 0, False)],
    ]
    kinds.append([frames.frame(frames.ipv6(V6.a, V6.b, frames.UDP, whole, headers)) for headers in chains])
    neighbours = [frames.icmpv6(V6.a, V6.b, kind, 0, payload=bytes(20)) for kind in (130, 133, 134, 135, 136, 137, 143)]
    kinds.append([frames.frame(frames.ipv6(V6.a, V6.b, frames.ICMPV6, message, hops=255)) for message in neighbours])
    kinds.append([frames.ethernet(b"\x11\0\0\1\0\x20\0\x21" + kinds[0][0][14:], frames.ETH_PPPOE), frames.ethernet(b"\0\1\x08\0\6\4\0\1" + bytes(20), 0x0806)])
    return kinds


def tcp_syn() -> bytes:
    """Return a SYN over IPv4."""
    return frames.tcp(V4.a, V4.b, 40000, 80, 1, 0, 2, 99)


def _errors(pair: frames.Pair, packet: bytes) -> list[bytes]:
    """Return ICMP errors that quote the packet."""
    if len(pair.a) == 4:
        messages = [frames.icmp(kind, 1, payload=packet[:keep]) for kind in (3, 5, 11) for keep in (28, 60)]
        return [frames.frame(frames.ipv4(pair.b, pair.a, frames.ICMP, message)) for message in messages]
    messages = [frames.icmpv6(pair.b, pair.a, kind, 0, payload=packet[:80]) for kind in (1, 2, 3, 4)]
    return [frames.frame(frames.ipv6(pair.b, pair.a, frames.ICMPV6, message)) for message in messages]


KINDS = _bases()


def sealed(frame: bytes) -> bytes:
    """Return the frame with right IPv4 header and transport checksums, as far as its (changed) headers tell where they are."""
    ethertype, packet = frame[12:14], frame[14:]
    if ethertype == b"\x08\0" and len(packet) >= 20:
        size = max(20, (packet[0] & 15) * 4)
        head = packet[:10] + b"\0\0" + packet[12:size]
        head = head[:10] + struct.pack(">H", frames.checksum(head)) + head[12:]
        total = int.from_bytes(head[2:4], "big")
        body, tail = packet[size:total], packet[max(size, total) :]
        body = _sealed_transport(head[12:16], head[16:20], head[9], body)
        return frame[:14] + head + body + tail
    if ethertype == b"\x86\xdd" and len(packet) >= 40:
        total = 40 + int.from_bytes(packet[4:6], "big")
        body = _sealed_transport(packet[8:24], packet[24:40], packet[6], packet[40:total])
        return frame[:14] + packet[:40] + body + packet[max(40, total) :]
    return frame


def _sealed_transport(src: bytes, dst: bytes, proto: int, body: bytes) -> bytes:
    at = {frames.TCP: 16, frames.UDP: 6, frames.ICMPV6: 2, frames.ICMP: 2}.get(proto)
    if at is None or len(body) < at + 2:
        return body
    blank = body[:at] + b"\0\0" + body[at + 2 :]
    return frames.sealed(src, dst, proto, blank, at) if proto != frames.ICMP else blank[:at] + struct.pack(">H", frames.checksum(blank)) + blank[at + 2 :]


def mutated(rng: random.Random, start: int = 0, seal: float = 0.7) -> bytes:
    """Return one frame: a good one with a few changes, or, seldom, noise behind a plausible ethertype.

    :param start: the first byte that may change.
    :param seal: how often checksums are put right afterwards, so that the changes are met by the parsers behind.
    """
    if rng.random() < 0.05:
        ethertype = rng.choice((0x0800, 0x86DD, 0x8100, 0x88A8, 0x8864, rng.randrange(65536)))
        return frames.ethernet(rng.randbytes(rng.randrange(120)), ethertype)
    data = bytearray(rng.choice(rng.choice(KINDS)))
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
    return sealed(frame) if rng.random() < seal else frame
