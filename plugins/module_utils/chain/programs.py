# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of the chain: their slots in the jump table, the hooks, and what adopt is asked."""

from __future__ import annotations

import struct

#: Slot of each program in ``jt``; the seed's numbers are kept.
SLOTS = {
    "ingress": 0,
    "egress": 1,
    "prs_end": 2,
    "ct": 3,
    "forward": 6,
    "pass": 7,
    "prs_eth": 10,
    "prs_ipv4": 11,
    "prs_icmp": 12,
    "prs_tcp": 13,
    "prs_udp": 14,
    "prs_ipv6": 15,
    "prs_icmp6": 16,
    "prs_gre": 17,
    "frag": 18,
    "ct6": 19,
    "prs_sctp": 20,
}
JT_ENTRIES = 30
#: Slots left to programs of somebody else, which run in this order between the tracker and prs_end;
#: 4 and 5 carry the seed's names.
#: 8 and 9 are kept for stages to come.
GUEST_SLOTS = {"acl": 4, "nat": 5, **{str(slot): slot for slot in range(21, JT_ENTRIES)}}
#: The hooks: the programs that may be attached to an interface. ``pass`` tracks nothing: a veth
#: whose other end is redirected to needs a program.
HOOKS = ("ingress", "egress", "pass")
TRACKING_HOOKS = ("ingress", "egress")
#: The program that user space runs to change what packets change at the same time; it stands in no
#: slot.
ADOPT = "adopt"
#: What it is asked for: to move flows of a family here, to add what another generation counted, or,
#: where the chain has events, to delete flows.
ADOPT_REQUESTS = ("ipv4", "ipv6", "counts", "erase_ipv4", "erase_ipv6")
#: The request: a number of ADOPT_REQUESTS, how many items follow, whether flows that are to be
#: deleted stand in the table of assured ones.
ADOPT_REQUEST = struct.Struct("=IIQ")
#: Keys in one request: few enough that no packet waits long on that CPU.
ADOPT_KEYS = 32
