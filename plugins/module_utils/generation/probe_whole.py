# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove every stage of a chain with a frame of each kind."""

from __future__ import annotations

import struct
import typing as t

from ..core.errors import ConntrackError
from . import probe as generation_probe
from .probe import Counters, Probe

# ---------------------------------------------------------------- frames that leave nothing behind
_ETH_IPV4, _ETH_IPV6 = 0x0800, 0x86DD
_ICMP, _TCP, _UDP, _GRE, _ICMPV6, _SCTP = 1, 6, 17, 47, 58, 132
#: Addresses that only documents use (RFC 5737, RFC 3849).
_V4 = (bytes((192, 0, 2, 1)), bytes((198, 51, 100, 1)))
_V6 = (
    bytes.fromhex("20010db8000000000000000000000001"),
    bytes.fromhex("20010db8000000000000000000000002"),
)
#: A router does not forward what has no life left, so it stays in the chain whatever that may
#: forward.
_TTL = 1
#: The largest offset of a fragment, in units of 8 bytes: of a datagram whose last fragment it could
#: be none is expected.
_LAST_UNIT = 8191


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    return 0xFFFF - (sum(struct.unpack(f"!{len(data) // 2}H", data)) % 0xFFFF or 0xFFFF)


def _ipv4(proto: int, payload: bytes, fragment: int = 0) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, fragment, _TTL, proto, 0, *_V4
    )
    return generation_probe.ethernet(
        _ETH_IPV4, head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload
    )


def _ipv6(proto: int, payload: bytes) -> bytes:
    return generation_probe.ethernet(
        _ETH_IPV6, struct.pack("!IHBB16s16s", 6 << 28, len(payload), proto, _TTL, *_V6) + payload
    )


def _reset(addresses: tuple[bytes, bytes]) -> bytes:
    """Return a TCP reset between two ports 0: it can not open a connection, and there is none that
    it could close.
    """
    head = struct.pack("!HHIIBBHHH", 0, 0, 0, 0, 5 << 4, 0x04, 0, 0, 0)
    sum_of = _checksum(b"".join(addresses) + struct.pack("!II", len(head), _TCP) + head)
    return head[:16] + struct.pack("!H", sum_of) + head[18:]


#: Together they go through every stage.
PROBES = (
    generation_probe.NOT_IP,
    Probe("a TCP header that is cut off", _ipv4(_TCP, bytes(8)), "invalid_l4_short"),
    Probe("a UDP header that is cut off", _ipv4(_UDP, bytes(4)), "invalid_l4_short"),
    Probe("an ICMP header that is cut off", _ipv4(_ICMP, bytes(4)), "invalid_l4_short"),
    Probe("an SCTP header that is cut off", _ipv4(_SCTP, bytes(4)), "invalid_l4_short"),
    Probe(
        "a GRE header of version 1 that is not PPTP's",
        _ipv4(_GRE, struct.pack("!HHI", 1, _ETH_IPV4, 0)),
        "invalid_gre",
    ),
    Probe("a fragment that holds nothing", _ipv4(_UDP, b"", _LAST_UNIT), "untracked_fragment"),
    Probe("a TCP reset of no connection", _ipv4(_TCP, _reset(_V4)), "invalid_tcp_new"),
    Probe("an ICMPv6 header that is cut off", _ipv6(_ICMPV6, bytes(4)), "invalid_l4_short"),
    Probe("a TCP reset of no connection over IPv6", _ipv6(_TCP, _reset(_V6)), "invalid_tcp_new"),
)


def prove_whole(entries: t.Mapping[str, int], stats: int, guests: bool = False) -> None:
    """Send a frame of each kind through each hook; see prove().

    :param entries: the file descriptors of the entry programs by hook.
    :raises ConntrackError: naming the hook, the frame and what became of it.
    """
    for hook, entry in entries.items():
        with Counters(entry, stats) as counters:
            for probe in PROBES:
                try:
                    generation_probe.prove(entry, stats, guests, probe, counters)
                except ConntrackError as exc:
                    raise ConntrackError(f"{hook}: {exc.message}") from exc
