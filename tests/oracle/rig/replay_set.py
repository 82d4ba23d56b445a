# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames that are replayed where no capture is given: some of each stage and of each outcome.
Writes files/replay.pcap.

python tests/oracle/rig/replay_set.py
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import struct
import sys
import typing as t

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / ".ansible/collections"))

from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import capture
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import Pair, Step
from ansible_collections.ebpf.conntrack.tests.oracle.rig.moves import STATES
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk

ROOT = pathlib.Path(__file__).resolve().parents[3]
FILE = ROOT / "files/replay.pcap"
#: ns between two frames.
SPACING = 1_000_000
#: Seconds of silence after which UDP with traffic both ways is a stream, and an unfinished SCTP
#: association is over.
SILENCE = 3.2
#: The identifications of its fragments begin here; no other test uses them.
IDENT = frames.FIXED_IDENT + 0x100
PADDING = b"\0\1\4" + bytes(4)

Conversation = t.Callable[[Pair], list[Step]]


def _raw(pair: Pair, side: str, proto: int, payload: bytes, **more: t.Any) -> Step:
    src, dst = pair.ends(side)[:2]
    return Step(side, frames.frame(frames.ip(src, dst, proto, payload, **more)))


def _error(side: str, quoted: Step, keep: int | None = None, dst: bytes | None = None) -> Step:
    """Return an unreachable that quotes a step's packet."""
    packet = quoted.frame[14:]
    if packet[0] >> 4 == 6:
        src, dst = packet[24:40], dst or packet[8:24]
        return Step(
            side,
            frames.frame(
                frames.ipv6(
                    src, dst, frames.ICMPV6, frames.icmpv6(src, dst, 1, 4, payload=packet[:keep])
                )
            ),
        )
    return Step(
        side,
        frames.frame(
            frames.ipv4(
                packet[16:20],
                dst or packet[12:16],
                frames.ICMP,
                frames.icmp(3, 3, payload=packet[:keep]),
            )
        ),
    )


# ---------------------------------------------------------------- TCP
def tcp_lives(pair: Pair) -> list[Step]:
    """Return a whole connection with data, options and both ends closing, and the same tuple used
    again.
    """
    offer = frames.mss() + frames.SACK_PERMITTED + frames.NOP + frames.wscale(7)
    talk = (
        Talk(pair)
        .send("a", "S", options=offer)
        .send("b", "SA", options=offer)
        .send("a", "A")
        .send("a", "PA", 400)
        .send("b", "A")
        .send("b", "PA", 1000)
    )
    talk.send(
        "a", "A", dack=-500, options=frames.NOP * 2 + frames.sack((3_000_000_700, 3_000_001_001))
    ).send("a", "A")
    talk.send("a", "FA").send("b", "A").send("b", "FA").send("a", "A")
    return talk.restart((9_000_000, 70_000_000)).open().steps


def tcp_state(pair: Pair, state: str) -> list[Step]:
    """Return a connection that gets into a state, and there a repeated segment, one out of the
    window, a SYN, a SYN/ACK and a reset.
    """
    talk = Talk(pair).until(state)
    if talk.steps:
        talk.again()
    talk.send("a", "A", 10, dseq=200_000).send("b", "A", dack=-100_000).send("a", "S", dseq=5).send(
        "b", "SA"
    ).send("b", "A").send("a", "R")
    return talk.steps


def tcp_odds(pair: Pair) -> list[Step]:
    """Return what is refused whatever the state, an unanswered SYN that a reset ends, and
    retransmissions.
    """
    steps = [pair.tcp("a", flags, 1) for flags in ("", "SF", "SR", "FR", "SAFPU")]
    ends = pair.ends("a")
    steps += [
        _raw(pair, "a", frames.TCP, frames.tcp(*ends, 1, 0, 2, 8192, doff=words))
        for words in (4, 15)
    ]
    segment = frames.tcp(*ends, 1, 0, 2, 8192)
    steps += [_raw(pair, "a", frames.TCP, segment[:cut]) for cut in (0, 13, 19)]
    steps.append(_raw(pair, "a", frames.TCP, segment[:19] + b"\1"))
    for number, moves in enumerate((("S", "RA"), ("S",), ("A",), ("SA",)), 1):
        talk = Talk(dataclasses.replace(pair, aport=pair.aport + number))
        for side, flags in zip("ab", moves):
            talk.send(side, flags)
        steps += talk.again().steps
    talk = (
        Talk(dataclasses.replace(pair, aport=pair.aport + 5))
        .open()
        .send("a", "PA", 100)
        .again()
        .again()
        .again()
        .again()
    )
    return (
        steps + talk.send("b", "R", dseq=-70_000).send("b", "R", dack=5).send("b", "A", win=0).steps
    )


# ---------------------------------------------------------------- other transports
def udp(pair: Pair) -> list[Step]:
    """Return datagrams both ways, and broken ones."""
    whole = frames.udp(*pair.ends("a"), b"0123456789")
    none = whole[:6] + b"\0\0" + whole[8:]
    return [
        *(pair.udp(side, 20) for side in "aabab"),
        *(
            _raw(pair, "a", frames.UDP, broken)
            for broken in (whole[:7], whole[:12], none, whole[:-1] + b"x")
        ),
    ]


def icmp(pair: Pair) -> list[Step]:
    """Return queries, answers nobody asked for, unknown types, and errors about flows that are
    known and that are not.
    """
    steps = [
        pair.echo(side, ident, reply)
        for side, ident, reply in (
            ("a", 7, False),
            ("b", 7, True),
            ("b", 8, True),
            ("b", 7, False),
            ("a", 7, True),
        )
    ]
    if len(pair.a) == 4:
        kinds = [(13, 0), (14, 0), (15, 0), (17, 0), (9, 0), (42, 0), (8, 3)]
        steps += [
            _raw(pair, "a", frames.ICMP, frames.icmp(kind, code, b"\0\7\0\1", bytes(12)))
            for kind, code in kinds
        ]
    else:
        kinds = [(139, 0), (140, 0), (130, 0), (133, 0), (135, 0), (143, 0), (150, 0), (200, 0)]
        steps += [
            _raw(
                pair,
                "a",
                frames.ICMPV6,
                frames.icmpv6(pair.a, pair.b, kind, code, b"\0\7\0\1", bytes(20)),
            )
            for kind, code in kinds
        ]
    known, other = pair.udp("a", 40), dataclasses.replace(pair, aport=pair.aport + 1).udp("a")
    header = 20 if len(pair.a) == 4 else 40
    steps += [
        known,
        _error("b", known),
        _error("b", known, header + 8),
        _error("b", known, header + 3),
        _error("b", other),
        _error("b", known, dst=pair.b),
    ]
    return [
        *steps,
        _error("b", steps[0]),
        *Talk(pair).send("a", "S").steps,
        _error("b", Talk(pair).send("a", "S").steps[0]),
    ]


def gre(pair: Pair) -> list[Step]:
    """Return GRE of both versions both ways, and headers that are wrong."""
    good = ("00000800", "20000800" + "00000001", "3001880b0005000700000001")
    bad = ("0001880b00000000", "3002880b0005000700000001", "0000", "3001080000050007")
    return [
        _raw(pair, side, frames.GRE, bytes.fromhex(header) + b"inner")
        for header in good
        for side in "ab"
    ] + [_raw(pair, "a", frames.GRE, bytes.fromhex(header)) for header in bad]


def _chunks(pair: Pair, side: str, tag: int, *chunks: bytes) -> Step:
    return _raw(pair, side, frames.SCTP, frames.sctp(*pair.ends(side)[2:], tag, *chunks))


def _init(kind: int, tag: int) -> bytes:
    return frames.chunk(kind, struct.pack(">IIHHI", tag, 65536, 1, 1, 1))


def sctp_life(pair: Pair) -> list[Step]:
    """Return an association from INIT to SHUTDOWN COMPLETE, with what is ignored and refused on the
    way.
    """
    a, b = 0xA, 0xB
    init = _chunks(pair, "a", 0, _init(1, a))
    return [
        init,
        init,
        _chunks(pair, "b", a, _init(2, b)),
        _chunks(pair, "a", b, frames.chunk(10, b"cook"), frames.chunk(0, bytes(16))),
        _chunks(pair, "b", a, frames.chunk(11)),
        _chunks(pair, "a", b, frames.chunk(0, bytes(20))),
        _chunks(pair, "b", 0xBAD, frames.chunk(3, bytes(12))),
        _chunks(pair, "b", a, frames.chunk(4, bytes(8))),
        _chunks(pair, "a", b, frames.chunk(5, bytes(8))),
        _chunks(pair, "a", b, frames.chunk(7, bytes(4))),
        _chunks(pair, "b", a, frames.chunk(8)),
        _chunks(pair, "a", b, frames.chunk(14)),
        _chunks(pair, "a", b, frames.chunk(6)),
    ]


def sctp_odds(pair: Pair) -> list[Step]:
    """Return associations begun in other ways, broken packets, and one that is left unfinished."""
    ports = itertools.count(pair.aport)
    alone = [
        [frames.chunk(10, b"cook")],
        [frames.chunk(4, bytes(8))],
        [],
        [b"\1\0\0\0"],
        [_init(1, 1), frames.chunk(0, bytes(16))],
        [frames.chunk(6)],
    ]
    steps = [
        _chunks(dataclasses.replace(pair, aport=next(ports)), "a", 5, *chunks) for chunks in alone
    ]
    # to the heartbeat
    steps.append(_chunks(dataclasses.replace(pair, aport=pair.aport + 1), "b", 0, frames.chunk(14)))
    other = dataclasses.replace(pair, aport=next(ports))
    steps += [
        _chunks(other, "a", 0, _init(1, 0xA)),
        _chunks(other, "b", 0xA, _init(2, 0xB)),
        _chunks(other, "b", 0xA, frames.chunk(14)),
    ]
    return [
        *steps,
        _raw(pair, "a", frames.SCTP, bytes(7)),
        _raw(pair, "a", frames.SCTP, frames.sctp(1, 2, 0, _init(1, 1))[:-1] + b"\xee"),
    ]


def silence(pair: Pair) -> list[Step]:
    """Return what shows how time passes: UDP both ways that goes on after a while, and an
    association that nobody finished meanwhile.
    """
    a, b = 0xA, 0xB
    left = [_chunks(pair, "a", 0, _init(1, a)), _chunks(pair, "b", a, _init(2, b))]
    again = [_chunks(pair, "b", a, _init(2, b)), _chunks(pair, "a", 0, _init(1, 0xC))]
    return [pair.udp("a"), pair.udp("b"), *left, pair.udp("a", wait=SILENCE), pair.udp("b"), *again]


def others(pair: Pair) -> list[Step]:
    """Return protocols without a tracker."""
    return [
        _raw(pair, side, proto, struct.pack(">HHII", 1000, 2000, 1, 2))
        for proto in (4, 50, 99)
        for side in "ab"
    ]


# ---------------------------------------------------------------- what carries them
def tags(pair: Pair) -> list[Step]:
    """Return one and two VLAN tags."""
    talk = Talk(pair).open(vlans=(5,)).send("a", "PA", 10, vlans=(5, 6))
    ends = pair.ends("b")
    datagram = frames.ip(*ends[:2], frames.UDP, frames.udp(*ends, b"tagged"))
    return [*talk.steps, *(Step("b", frames.frame(datagram, vlans)) for vlans in ((7,), (7, 8)))]


def fragments4(pair: Pair) -> list[Step]:
    """Return datagrams of IPv4 in pieces: in order, the last one first, one that comes twice,
    overlapping, one that is missing, longer than can be.
    """
    whole = frames.udp(*pair.ends("a"), b"x" * 40)
    segment = frames.tcp(*pair.ends("a"), 1, 0, 2, 8192, b"x" * 28)

    def part(
        ident: int, start: int, end: int, more: bool, data: bytes = whole, proto: int = frames.UDP
    ) -> Step:
        return _raw(pair, "a", proto, data[start:end], ident=IDENT + ident, offset=start, more=more)

    return [
        *(part(1, start, end, end < 48) for start, end in ((0, 16), (16, 32), (32, 48))),
        *(part(2, start, end, end < 48) for start, end in ((32, 48), (16, 32), (16, 32), (0, 16))),
        *(part(3, start, end, end < 48) for start, end in ((0, 24), (16, 48))),
        part(4, 0, 16, True),
        *(part(5, start, end, end < 48, segment, frames.TCP) for start, end in ((0, 24), (24, 48))),
        _raw(pair, "a", frames.UDP, whole[:16], ident=IDENT + 6, offset=65528, more=True),
        _raw(pair, "a", frames.UDP, whole[:13], ident=IDENT + 7, more=True),
    ]


def fragments6(pair: Pair) -> list[Step]:
    """Return datagrams of IPv6 in pieces."""
    whole = frames.udp(*pair.ends("a"), b"x" * 40)

    def part(ident: int, start: int, end: int) -> Step:
        return _raw(
            pair,
            "a",
            frames.UDP,
            whole[start:end],
            headers=[frames.ipv6_fragment(IDENT + ident, start, end < 48)],
        )

    return [
        part(*one)
        for one in (
            (1, 0, 48),
            (2, 0, 24),
            (2, 24, 48),
            (3, 24, 48),
            (3, 0, 24),
            (4, 0, 24),
            (4, 16, 48),
        )
    ]


def headers4(pair: Pair) -> list[Step]:
    """Return IPv4 with options, and headers that are wrong."""
    datagram = frames.udp(*pair.ends("a"), b"12345")
    good = _raw(pair, "a", frames.UDP, datagram).frame
    lies: list[dict[str, t.Any]] = [{"csum": 1}, {"length": 19}, {"length": 1000}]
    return [
        _raw(pair, "a", frames.UDP, datagram, options=b"\x94\4\0\0"),
        _raw(pair, "b", frames.ICMP, frames.icmp(8, 0, b"\0\1\0\1", bytes(8)), options=b"\1" * 40),
        Step("a", good + bytes(18)),
        *(_raw(pair, "a", frames.UDP, datagram, **lie) for lie in lies),
        *(Step("a", good[:length]) for length in (14, 30, len(good) - 1)),
    ]


def headers6(pair: Pair) -> list[Step]:
    """Return IPv6 with extension headers, and some that lead nowhere."""
    datagram = frames.udp(*pair.ends("a"), b"12345")
    chains: list[list[tuple[int, bytes]]] = [
        [(0, PADDING)],
        [(60, PADDING)],
        [(43, bytes(7))],
        [(51, b"\4" + bytes(22))],
        [(0, PADDING), (60, PADDING), (43, bytes(7)), (51, b"\4" + bytes(22)), (60, PADDING)],
        [(60, b"\xc8" + PADDING[1:])],
    ]
    good = _raw(pair, "a", frames.UDP, datagram).frame
    return [
        *(_raw(pair, "a", frames.UDP, datagram, headers=chain) for chain in chains),
        _raw(pair, "a", 59, b"12345678"),
        Step("a", good[:40]),
        Step("a", good[:-1]),
        Pair(frames.address("::1"), pair.b).udp("a"),
    ]


def different(pair: Pair) -> list[Step]:
    """Return what nf_conntrack makes something else of, as docs/design/differences.md has it:
    UDP-Lite, three VLAN tags, many extension headers.
    """
    datagram = frames.udp(*pair.ends("a"), b"12345")
    steps = [
        *(pair.udp(side, proto=frames.UDPLITE) for side in "ab"),
        Step("a", frames.frame(frames.ip(*pair.ends("a")[:2], frames.UDP, datagram), (7, 8, 9))),
    ]
    return (
        steps
        if len(pair.a) == 4
        else [*steps, _raw(pair, "a", frames.UDP, datagram, headers=[(60, PADDING)] * 9)]
    )


def not_ip(dummy: Pair) -> list[Step]:
    """Return what is not IP."""
    arp, lldp, pppoe = (
        b"\0\1\x08\0\6\4\0\1" + bytes(20),
        b"\2\7\4abcdef",
        b"\x11\0\0\1\0\x20\0\x21" + bytes(30),
    )
    kinds = {0x0806: arp, 0x88CC: lldp, frames.ETH_PPPOE: pppoe, frames.ETH_VLAN: b"\0"}
    return [Step("a", frames.ethernet(payload, ethertype)) for ethertype, payload in kinds.items()]


EVERYWHERE: dict[str, Conversation] = {
    "tcp lives": tcp_lives,
    **{f"tcp {state}": functools.partial(tcp_state, state=state) for state in STATES},
    "tcp odds": tcp_odds,
    "udp": udp,
    "icmp": icmp,
    "gre": gre,
    "sctp life": sctp_life,
    "sctp odds": sctp_odds,
    "silence": silence,
    "others": others,
    "tags": tags,
    "different": different,
}
ONLY: dict[str, dict[str, Conversation]] = {
    "ipv4": {"fragments": fragments4, "headers": headers4, "not ip": not_ip},
    "ipv6": {"fragments": fragments6, "headers": headers6},
}


def conversations() -> dict[str, list[Step]]:
    """Return all conversations, each with ports of its own."""
    found, ports = {}, itertools.count(20000, 10)
    for family, pair in frames.PAIRS.items():
        for name, conversation in (EVERYWHERE | ONLY[family]).items():
            found[f"{family} {name}"] = conversation(dataclasses.replace(pair, aport=next(ports)))
    return found


def steps() -> list[Step]:
    """Return all of them, in order."""
    return [step for conversation in conversations().values() for step in conversation]


def packets() -> list[capture.Packet]:
    """Return them as they stand in the file."""
    found, now = [], 0
    for step in steps():
        now += SPACING + round(step.wait * 1e9)
        found.append(capture.Packet(step.frame, now))
    return found


if __name__ == "__main__":
    FILE.write_bytes(capture.write(packets()))
    print(f"{FILE.relative_to(ROOT)}: {len(packets())} frames, {FILE.stat().st_size} bytes")
