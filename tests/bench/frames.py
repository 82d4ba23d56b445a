# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames that the benchmark sends through the chain: Ethernet, IPv4 or IPv6 and a transport
header, with right checksums.
"""

from __future__ import annotations

import socket
import struct

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

_MACS = bytes.fromhex("020000000002020000000001")


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071) of ``data``."""
    data += b"\x00" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _ip(src: str, dst: str, proto: int, payload: bytes) -> bytes:
    """Return a frame; the addresses tell which IP."""
    ends = _packed(src) + _packed(dst)
    if ":" in src:
        return (
            _MACS + struct.pack(">HIHBB", 0x86DD, 6 << 28, len(payload), proto, 64) + ends + payload
        )
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, proto, 0) + ends
    return _MACS + b"\x08\x00" + head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def _pseudo(src: str, dst: str, proto: int, length: int) -> bytes:
    """Return what stands for the pseudo header: that of IPv6 has the fields of IPv4's with more
    zeros between, which add nothing.
    """
    return _packed(src) + _packed(dst) + struct.pack(">BBH", 0, proto, length)


def tcp(
    src: str,
    sport: int,
    dst: str,
    dport: int,
    flags: int,
    seq: int,
    ack: int = 0,
    window: int = 65535,
    data: bytes = b"",
) -> bytes:
    """Return a TCP segment without options."""
    segment = struct.pack(">HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, window, 0, 0) + data
    value = checksum(_pseudo(src, dst, 6, len(segment)) + segment)
    return _ip(src, dst, 6, segment[:16] + struct.pack(">H", value) + segment[18:])


def udp(src: str, sport: int, dst: str, dport: int, data: bytes = b"") -> bytes:
    """Return a UDP datagram: over IPv4 without a checksum, so that the source address may be
    counted up on the way.
    """
    datagram = struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data
    value = checksum(_pseudo(src, dst, 17, len(datagram)) + datagram) if ":" in src else 0
    return _ip(src, dst, 17, datagram[:6] + struct.pack(">H", value) + datagram[8:])


def echo(src: str, dst: str, kind: int, ident: int, data: bytes = b"") -> bytes:
    """Return an ICMP echo message: ``kind`` 8 asks, 0 answers."""
    message = struct.pack(">BBHHH", kind, 0, 0, ident, 1) + data
    return _ip(src, dst, 1, message[:2] + struct.pack(">H", checksum(message)) + message[4:])
