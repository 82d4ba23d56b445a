# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a flow: keys, entries and events as the programs write them."""

from __future__ import annotations

import struct
import typing as t

#: Bumped on every change of a map's key or value; kept in ``meta`` and compared before maps are
#: handed on.
LAYOUT_VERSION = 2
# ---------------------------------------------------------------- the layout of a flow (files/bpf/f
#: Fields with their codes in Python's struct: of either key, of one direction, of an entry.
KEY_FIELDS = {
    family: (
        ("lo_ip", address),
        ("hi_ip", address),
        ("lo_port", "H"),
        ("hi_port", "H"),
        ("proto", "B"),
        ("role", "B"),
        ("zone", "H"),
    )
    for family, address in (("ipv4", "4s"), ("ipv6", "16s"))
}
HALF_FIELDS = (
    ("packets", "Q"),
    ("bytes", "Q"),
    ("td_end", "I"),
    ("td_maxend", "I"),
    ("td_maxwin", "I"),
    ("td_maxack", "I"),
)
ENTRY_FIELDS = (
    *(
        (f"{direction}.{name}", code)
        for direction in ("orig", "reply")
        for name, code in HALF_FIELDS
    ),
    ("ctl", "Q"),
    ("expires", "I"),  # jiffies
    ("last_seen", "I"),  # jiffies
    ("created", "I"),  # seconds
    ("last_seq", "I"),
    ("last_ack", "I"),
    ("last_end", "I"),
    ("last_win", "H"),
    ("last", "B"),  # bit-fields: last_index, last_dir, last_wscale
    ("last_flags", "B"),
    ("scale", "B"),
    ("retrans", "B"),
    ("orig.td_flags", "B"),
    ("reply.td_flags", "B"),
    ("related.packets", "I"),
    ("related.bytes", "I"),
)


def codec(fields: t.Iterable[tuple[str, str]]) -> struct.Struct:
    """Return what packs and unpacks these fields, without padding."""
    return struct.Struct("=" + "".join(code for dummy, code in fields))


#: struct ct_key: lo address, hi address (network order), lo port, hi port (network order),
#: protocol, role, zone.
#: The side with the smaller (address, port), compared as big-endian numbers, is "lo". For ICMP
#: queries the port of the asking side is the id, that of the answering side is type << 8 | code of
#: the request, and role is 1 when the asking side is "hi".
KEY4 = codec(KEY_FIELDS["ipv4"])
#: struct ct_key6: the same with IPv6 addresses.
KEY6 = codec(KEY_FIELDS["ipv6"])
#: sizeof(struct frag_queue) and sizeof(struct scratch) in files/bpf.
FRAG_QUEUE_BYTES = 152
SCRATCH_BYTES = 56
#: One direction of struct ct_entry, 32 bytes.
HALF = codec(HALF_FIELDS)
#: struct ct_entry, 112 bytes.
ENTRY = codec(ENTRY_FIELDS)
#: struct ct_event, 184 bytes: seq, jiffies, CLOCK_MONOTONIC in ns, kind, reason, whether it is
#: IPv6, key, entry.
EVENT = struct.Struct(f"=QQQBBB5x{KEY6.size}s{ENTRY.size}s")
#: Bits of ``ctl``, the one word of an entry that changes atomically.
CTL_LOCK = 1 << 63
CTL_STATE = 0xF  # TCP and SCTP state
CTL_SEEN_REPLY = 1 << 4
CTL_ASSURED = 1 << 5
CTL_ORIG_HI = 1 << 6  # the initiator is the "hi" side of the key
CTL_EGRESS = 1 << 7  # the initiator's first packet came in on the egress hook
CTL_VLANS_SHIFT = 8  # two bits: how many VLAN tags the initiator's first packet had
#: A packet that was counted in the flow was several segments on the wire. It is no part of the
#: description of the tables (CTL_PARTS): releases that do not know it write it back as they read
#: it, and so flows go on between them and this one in both directions.
CTL_AGGREGATED = 1 << 10
CTL_VLAN_OUTER_SHIFT = 16  # twelve bits each
CTL_VLAN_INNER_SHIFT = 28
#: All of them by name, with their masks.
CTL_PARTS = {
    "lock": CTL_LOCK,
    "state": CTL_STATE,
    "seen_reply": CTL_SEEN_REPLY,
    "assured": CTL_ASSURED,
    "orig_hi": CTL_ORIG_HI,
    "egress": CTL_EGRESS,
    "vlans": 3 << CTL_VLANS_SHIFT,
    "vlan_outer": 0xFFF << CTL_VLAN_OUTER_SHIFT,
    "vlan_inner": 0xFFF << CTL_VLAN_INNER_SHIFT,
}
