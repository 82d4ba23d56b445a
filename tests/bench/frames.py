# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames that the benchmark sends through the chain: Ethernet, IPv4 and a transport header, with right checksums."""

from __future__ import annotations

import socket
import struct

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

_ETHERNET = bytes.fromhex("02000000000202000000000108") + b"\x00"


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071) of ``data``."""
    data += b"\x00" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ipv4(src: str, dst: str, proto: int, payload: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, proto, 0, socket.inet_aton(src), socket.inet_aton(dst))
    return _ETHERNET + head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def _pseudo(src: str, dst: str, proto: int, length: int) -> bytes:
    return socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack(">BBH", 0, proto, length)


def tcp(src: str, sport: int, dst: str, dport: int, flags: int, seq: int, ack: int = 0, window: int = 65535, data: bytes = b"") -> bytes:
    """Return a TCP segment without options."""
    segment = struct.pack(">HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, window, 0, 0) + data
    value = checksum(_pseudo(src, dst, 6, len(segment)) + segment)
    return _ipv4(src, dst, 6, segment[:16] + struct.pack(">H", value) + segment[18:])


def udp(src: str, sport: int, dst: str, dport: int, data: bytes = b"") -> bytes:
    """Return a UDP datagram without a checksum, so that the source address may be counted up on the way."""
    return _ipv4(src, dst, 17, struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data)


def echo(src: str, dst: str, kind: int, ident: int, data: bytes = b"") -> bytes:
    """Return an ICMP echo message: ``kind`` 8 asks, 0 answers."""
    message = struct.pack(">BBHHH", kind, 0, 0, ident, 1) + data
    return _ipv4(src, dst, 1, message[:2] + struct.pack(">H", checksum(message)) + message[4:])
