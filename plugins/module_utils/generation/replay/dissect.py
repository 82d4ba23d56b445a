# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a frame is, in one line for people, about as tcpdump names it. Nothing is verified: lengths
and checksums may lie.
"""

from __future__ import annotations

import socket
import struct
import typing as t

_VLANS = (0x8100, 0x88A8)
_IPV4, _IPV6 = 0x0800, 0x86DD
_ICMP, _TCP, _UDP, _GRE, _ICMPV6, _SCTP, _UDPLITE = 1, 6, 17, 47, 58, 132, 136
_NAMES = {
    _ICMP: "ICMP",
    _UDP: "UDP",
    _GRE: "GRE",
    _ICMPV6: "ICMP6",
    _SCTP: "sctp",
    _UDPLITE: "UDP-Lite",
}
_PORTED = (_TCP, _UDP, _SCTP, _UDPLITE)
#: IPv6 extension headers that are stepped over, and bytes in a unit of their length (RFC 8200; RFC
#: 4302 for the authentication header).
_EXTENSIONS = {0: 8, 43: 8, 60: 8, 51: 4}
_FRAGMENT = 44
#: TCP's flags from the lowest bit, as tcpdump writes them.
_FLAGS = "FSRP.UEW"


class Dissected(t.NamedTuple):
    """What is known of a frame.

    :ivar src: source address, packed; empty where the frame is no IP packet.
    :ivar dst: destination address.
    :ivar text: the frame for people.
    """

    src: bytes
    dst: bytes
    text: str


def dissect(frame: bytes) -> Dissected:
    """Return what a frame is, as far as it can be told."""
    if len(frame) < 14:
        return Dissected(b"", b"", f"{len(frame)} bytes")
    at, tags = 14, ""
    (kind,) = struct.unpack_from(">H", frame, 12)
    while kind in _VLANS and len(frame) >= at + 4:
        tag, kind = struct.unpack_from(">HH", frame, at)
        tags += f"vlan {tag & 0xFFF}, "
        at += 4
    packet = frame[at:]
    if kind == _IPV4 and len(packet) >= 20:
        return _ipv4(packet, tags)
    if kind == _IPV6 and len(packet) >= 40:
        return _ipv6(packet, tags)
    return Dissected(b"", b"", f"{tags}ethertype 0x{kind:04x}, length {len(frame)}")


def _ipv4(packet: bytes, tags: str) -> Dissected:
    total, ident, fragment = struct.unpack_from(">HHH", packet, 2)
    header = (packet[0] & 15) * 4
    offset = (fragment & 0x1FFF) * 8
    part = (
        f" (frag {ident}@{offset}{'+' if fragment & 0x2000 else ''})" if fragment & 0x3FFF else ""
    )
    payload = b"" if offset else packet[header:]
    return _named(
        f"{tags}IP", packet[12:16], packet[16:20], packet[9], payload, total - header, part
    )


def _ipv6(packet: bytes, tags: str) -> Dissected:
    (total,) = struct.unpack_from(">H", packet, 4)
    proto, at, part, offset = packet[6], 40, "", 0
    while len(packet) >= at + 8 and not offset and (proto in _EXTENSIONS or proto == _FRAGMENT):
        following, size = packet[at : at + 2]
        if proto == _FRAGMENT:
            fragment, ident = struct.unpack_from(">HI", packet, at + 2)
            offset = fragment & 0xFFF8
            part = f" (frag {ident}@{offset}{'+' if fragment & 1 else ''})"
            at += 8
        else:
            at += (size + (2 if proto == 51 else 1)) * _EXTENSIONS[proto]
        proto = following
    payload = b"" if offset else packet[at:]
    return _named(f"{tags}IP6", packet[8:24], packet[24:40], proto, payload, 40 + total - at, part)


def _named(
    family: str, src: bytes, dst: bytes, proto: int, payload: bytes, length: int, part: str
) -> Dissected:
    ends = [
        socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
        for address in (src, dst)
    ]
    if proto in _PORTED and len(payload) >= 4:
        ends = [
            f"{address}.{port}" for address, port in zip(ends, struct.unpack_from(">HH", payload))
        ]
    said = _NAMES.get(proto, f"ip-proto-{proto}")
    if proto == _TCP:
        flags = "".join(
            letter
            for bit, letter in enumerate(_FLAGS)
            if len(payload) > 13 and payload[13] >> bit & 1
        )
        said = f"Flags [{flags or 'none'}]" if payload else "tcp"
        length -= (payload[12] >> 4) * 4 if len(payload) > 12 else 0
    elif proto in (_ICMP, _ICMPV6) and len(payload) >= 2:
        said += f" type {payload[0]} code {payload[1]}"
    elif proto in (_UDP, _UDPLITE) and payload:
        length -= 8
    return Dissected(
        src, dst, f"{family} {ends[0]} > {ends[1]}: {said}, length {max(length, 0)}{part}"
    )
