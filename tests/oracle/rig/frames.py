# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames as bytes, built with struct only: the suites send hundreds of thousands of them.

Addresses are packed bytes everywhere; their length tells the IP family.
"""

from __future__ import annotations

import dataclasses
import itertools
import socket
import struct
import typing as t

#: The router's MAC address on both sides, and that of the hosts behind it.
ROUTER_MAC = bytes.fromhex("020000000001")
HOST_MAC = bytes.fromhex("020000000002")

ETH_IPV4, ETH_IPV6, ETH_VLAN, ETH_QINQ, ETH_PPPOE = 0x0800, 0x86DD, 0x8100, 0x88A8, 0x8864
ICMP, TCP, UDP, GRE, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 47, 58, 132, 136

#: TCP flags by their letter, as tcpdump and the tests write them.
FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, "A": 0x10, "U": 0x20, "E": 0x40, "C": 0x80}


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of ``data``.

    The one's complement sum of 16-bit words is the number modulo 65535, with 0xffff for multiples.
    """
    if len(data) % 2:
        data += b"\0"
    return 0xFFFF - (int.from_bytes(data, "big") % 0xFFFF or (0xFFFF if any(data) else 0))


def address(text: str) -> bytes:
    """Return the packed form of an IPv4 or IPv6 address."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def text(packed: bytes) -> str:
    """Return an address for people; the opposite of ``address``."""
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def ethernet(
    payload: bytes,
    ethertype: int,
    vlans: t.Sequence[int] = (),
    tpids: t.Sequence[int] | None = None,
) -> bytes:
    """Return an Ethernet frame to the router.

    :param vlans: tag ids, outermost first.
    :param tpids: the ethertype of each tag; by default 0x8100 for one tag, 0x88a8 outside 0x8100
        for more.
    """
    if tpids is None:
        tpids = [ETH_QINQ] * (len(vlans) - 1) + [ETH_VLAN] if vlans else []
    tags = b"".join(struct.pack(">HH", tpid, vid) for tpid, vid in zip(tpids, vlans))
    return ROUTER_MAC + HOST_MAC + tags + struct.pack(">H", ethertype) + payload


def ipv4(
    src: bytes,
    dst: bytes,
    proto: int,
    payload: bytes,
    ident: int = 1,
    offset: int = 0,
    more: bool = False,
    dont: bool = False,
    ttl: int = 64,
    tos: int = 0,
    options: bytes = b"",
    length: int | None = None,
    csum: int | None = None,
) -> bytes:
    """Return an IPv4 packet. ``offset`` is the fragment's, in bytes; ``length`` and ``csum`` lie on
    purpose.
    """
    options += b"\0" * (-len(options) % 4)
    ihl = 5 + len(options) // 4
    total = ihl * 4 + len(payload) if length is None else length
    frag = (offset // 8) | (0x2000 if more else 0) | (0x4000 if dont else 0)
    head = (
        struct.pack(">BBHHHBBH4s4s", 0x40 | ihl, tos, total, ident, frag, ttl, proto, 0, src, dst)
        + options
    )
    csum = checksum(head) if csum is None else csum
    return head[:10] + struct.pack(">H", csum) + head[12:] + payload


def ipv6(
    src: bytes,
    dst: bytes,
    proto: int,
    payload: bytes,
    headers: t.Sequence[tuple[int, bytes]] = (),
    hops: int = 64,
    length: int | None = None,
) -> bytes:
    """Return an IPv6 packet.

    :param headers: the extension headers in order, each as its protocol number and its bytes
        without the next-header byte.
    """
    kinds = [number for number, dummy in headers] + [proto]
    chain = b"".join(
        bytes([following]) + body for following, (dummy, body) in zip(kinds[1:], headers)
    )
    total = len(chain) + len(payload) if length is None else length
    return struct.pack(">IHBB16s16s", 6 << 28, total, kinds[0], hops, src, dst) + chain + payload


def ipv6_fragment(ident: int, offset: int, more: bool) -> tuple[int, bytes]:
    """Return an IPv6 fragment header for ``ipv6(headers=...)``; ``offset`` is in bytes."""
    return 44, struct.pack(">BHI", 0, (offset & 0xFFF8) | int(more), ident)


def ip(src: bytes, dst: bytes, proto: int, payload: bytes, **more: t.Any) -> bytes:
    """Return a packet of the family of the addresses."""
    return (ipv6 if len(src) == 16 else ipv4)(src, dst, proto, payload, **more)


def frame(packet: bytes, vlans: t.Sequence[int] = ()) -> bytes:
    """Return the IP packet in an Ethernet frame to the router."""
    return ethernet(packet, ETH_IPV6 if packet[0] >> 4 == 6 else ETH_IPV4, vlans)


def pseudo(src: bytes, dst: bytes, proto: int, length: int) -> bytes:
    """Return the pseudo header that transport checksums cover."""
    if len(src) == 16:
        return src + dst + struct.pack(">II", length, proto)
    return src + dst + struct.pack(">HH", proto, length)


def sealed(src: bytes, dst: bytes, proto: int, segment: bytes, at: int) -> bytes:
    """Return ``segment`` with its checksum, over the pseudo header too, filled in at offset ``at``
    (zero before).
    """
    csum = checksum(pseudo(src, dst, proto, len(segment)) + segment)
    if proto in (UDP, UDPLITE) and csum == 0:
        csum = 0xFFFF
    return segment[:at] + struct.pack(">H", csum) + segment[at + 2 :]


def tcp_flags(letters: str) -> int:
    """Return the flag byte for letters such as ``SA``."""
    return sum(FLAGS[c] for c in letters)


def tcp(
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    win: int,
    payload: bytes = b"",
    options: bytes = b"",
    doff: int | None = None,
) -> bytes:
    """Return a TCP segment; ``doff`` (in words) lies on purpose."""
    options += b"\1" * (-len(options) % 4)
    words = 5 + len(options) // 4 if doff is None else doff
    head = struct.pack(
        ">HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, flags, win, 0, 0
    )
    return sealed(src, dst, TCP, head + options + payload, 16)


def udp(
    src: bytes, dst: bytes, sport: int, dport: int, payload: bytes = b"", proto: int = UDP
) -> bytes:
    """Return a UDP datagram, or a UDP-Lite one that is covered whole."""
    return sealed(
        src, dst, proto, struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload, 6
    )


def icmp(kind: int, code: int, rest: bytes = b"\0\0\0\0", payload: bytes = b"") -> bytes:
    """Return an ICMP message; ``rest`` are the four bytes after the checksum."""
    message = struct.pack(">BBH", kind, code, 0) + rest + payload
    return message[:2] + struct.pack(">H", checksum(message)) + message[4:]


def icmpv6(
    src: bytes, dst: bytes, kind: int, code: int, rest: bytes = b"\0\0\0\0", payload: bytes = b""
) -> bytes:
    """Return an ICMPv6 message; ``rest`` are the four bytes after the checksum."""
    return sealed(src, dst, ICMPV6, struct.pack(">BBH", kind, code, 0) + rest + payload, 2)


def echo(
    src: bytes,
    dst: bytes,
    ident: int,
    number: int = 1,
    reply: bool = False,
    payload: bytes = b"ping",
) -> bytes:
    """Return an echo request or reply of the family of the addresses."""
    rest = struct.pack(">HH", ident, number)
    if len(src) == 16:
        return ipv6(src, dst, ICMPV6, icmpv6(src, dst, 129 if reply else 128, 0, rest, payload))
    return ipv4(src, dst, ICMP, icmp(0 if reply else 8, 0, rest, payload))


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for dummy in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Return the checksum of SCTP (RFC 9260, appendix A).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def chunk(kind: int, value: bytes = b"", flags: int = 0) -> bytes:
    """Return one SCTP chunk, padded."""
    return struct.pack(">BBH", kind, flags, 4 + len(value)) + value + b"\0" * (-len(value) % 4)


def sctp(sport: int, dport: int, tag: int, *chunks: bytes) -> bytes:
    """Return an SCTP packet."""
    head, body = struct.pack(">HHI", sport, dport, tag), b"".join(chunks)
    return head + struct.pack("<I", crc32c(head + b"\0\0\0\0" + body)) + body


# ---------------------------------------------------------------- identifications
#: From here on they are those of the frames that stand in a file, and so are the same in each run;
#: see replay_set.py.
FIXED_IDENT = 0xF000
_IDENTS = itertools.count(1)


def new_ident() -> int:
    """Return the identification of a datagram that may come in fragments: none is given out twice.

    The kernel remembers a datagram that lacks a fragment for up to a minute, longer than the test
    that sent it takes, and nothing takes it away. All tests have their identifications from here,
    so what one leaves behind is not met by another, in whatever order they run.
    """
    ident = next(_IDENTS)
    if ident >= FIXED_IDENT:
        raise AssertionError("all identifications that IPv4 has are used up")
    return ident


# ---------------------------------------------------------------- TCP options
NOP, END = b"\1", b"\0"
SACK_PERMITTED = b"\4\2"


def mss(value: int = 1460) -> bytes:
    """Return the maximum-segment-size option."""
    return struct.pack(">BBH", 2, 4, value)


def wscale(shift: int) -> bytes:
    """Return the window-scale option."""
    return bytes([3, 3, shift])


def sack(*blocks: tuple[int, int]) -> bytes:
    """Return a selective-acknowledgement option of (left, right) edges."""
    return bytes([5, 2 + 8 * len(blocks)]) + b"".join(
        struct.pack(">II", left & 0xFFFFFFFF, right & 0xFFFFFFFF) for left, right in blocks
    )


def timestamps(value: int = 1, echoed: int = 0) -> bytes:
    """Return the timestamps option in its usual alignment."""
    return struct.pack(">BBBBII", 1, 1, 8, 10, value, echoed)


# ---------------------------------------------------------------- what the suites speak of
@dataclasses.dataclass(frozen=True)
class Step:
    """One frame and the side that it comes from.

    :ivar side: ``a`` (behind the ingress hook) or ``b`` (behind the egress hook).
    :ivar frame: the bytes on the wire.
    :ivar label: the frame for people.
    :ivar wait: seconds that pass before it.
    """

    side: str
    frame: bytes
    label: str = ""
    wait: float = 0

    def __str__(self) -> str:
        wait = f"(after {self.wait} s) " if self.wait else ""
        return f"{wait}{'->' if self.side == 'a' else '<-'} {self.label or self.frame.hex()}"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two hosts, one on each side of the router, and their ports."""

    a: bytes
    b: bytes
    aport: int = 40000
    bport: int = 80

    def ends(self, side: str) -> tuple[bytes, bytes, int, int]:
        """Return source, destination, source port and destination port of what ``side`` sends."""
        return (
            (self.a, self.b, self.aport, self.bport)
            if side == "a"
            else (self.b, self.a, self.bport, self.aport)
        )

    def tcp(
        self,
        side: str,
        flags: str,
        seq: int,
        ack: int = 0,
        win: int = 8192,
        length: int = 0,
        options: bytes = b"",
        vlans: t.Sequence[int] = (),
        wait: float = 0,
        label: str = "",
    ) -> Step:
        """Return the step of one TCP segment with ``length`` bytes of payload."""
        src, dst, sport, dport = self.ends(side)
        segment = tcp(
            src, dst, sport, dport, seq, ack, tcp_flags(flags), win, b"x" * length, options
        )
        shown = label or (
            f"[{flags or '.'}] seq {seq & 0xFFFFFFFF} ack {ack & 0xFFFFFFFF} win {win}"
            f" len {length}{f' opt {options.hex()}' if options else ''}"
        )
        return Step(side, frame(ip(src, dst, TCP, segment), vlans), shown, wait)

    def udp(self, side: str, length: int = 10, wait: float = 0, proto: int = UDP) -> Step:
        """Return the step of one UDP datagram."""
        src, dst, sport, dport = self.ends(side)
        return Step(
            side,
            frame(ip(src, dst, proto, udp(src, dst, sport, dport, b"x" * length, proto))),
            f"udp {sport}>{dport} len {length}",
            wait,
        )

    def echo(
        self, side: str, ident: int, reply: bool = False, number: int = 1, wait: float = 0
    ) -> Step:
        """Return the step of one echo request or reply."""
        src, dst = self.ends(side)[:2]
        return Step(
            side,
            frame(echo(src, dst, ident, number, reply)),
            f"echo {'reply' if reply else 'request'} id {ident}",
            wait,
        )


V4 = Pair(address("198.18.0.1"), address("198.19.0.1"))
V6 = Pair(address("2001:db8:a::1"), address("2001:db8:b::1"))

#: The hosts of each IP family.
PAIRS = {"ipv4": V4, "ipv6": V6}
