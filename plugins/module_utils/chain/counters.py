# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain counts: the outcome of each packet, and what happens besides."""

from __future__ import annotations

#: What is counted of each guest, in the order of struct guest_count (files/bpf/lib/flow.h).
GUEST_COUNTS = ("seen", "passed", "dropped")
#: Counters: index in the per-CPU array ``stats`` is the position here. Every frame that enters the
#: chain adds one to exactly one of the outcomes; events happen besides.
OUTCOMES = (
    # name, what happened to the frame
    ("tracked", "counted in a flow"),
    ("related", "ICMP error matched to the flow that it quotes"),
    ("fragment", "a fragment; its datagram counts in the flow with the fragment that completes it"),
    (
        "invalid_ip_header",
        (
            "IP version, header length, total length or header checksum is wrong, or an address is"
            " one that no wire may carry"
        ),
    ),
    ("invalid_ext_headers", "IPv6 extension headers that lead nowhere"),
    ("invalid_l4_short", "the transport header is cut off"),
    ("invalid_checksum", "the transport checksum is wrong"),
    ("invalid_tcp_header", "the TCP data offset is wrong"),
    ("invalid_tcp_flags", "a combination of TCP flags that no stack sends"),
    ("invalid_tcp_state", "the TCP segment fits no transition of the connection's state"),
    ("invalid_tcp_new", "the TCP segment can not open a connection"),
    ("invalid_tcp_window", "the TCP sequence or acknowledgement number is out of the window"),
    ("invalid_tcp_rst", "a TCP reset that the window checks refuse"),
    (
        "invalid_icmp_type",
        "an ICMP message that is neither a query, nor a reply to one seen, nor an error",
    ),
    (
        "invalid_icmp_error",
        (
            "an ICMP error that quotes no known flow, or goes to somebody else than the sender of"
            " what it quotes"
        ),
    ),
    ("invalid_gre", "a GRE header of version 1 that is not PPTP's"),
    (
        "invalid_sctp_chunks",
        "no SCTP chunk, one without a length, or one that may not stand where it does",
    ),
    ("invalid_sctp_new", "the SCTP chunks can not open an association"),
    ("invalid_sctp_tag", "the SCTP verification tag is wrong"),
    ("invalid_sctp_state", "the SCTP chunk fits no transition of the association's state"),
    ("ignored_tcp_syn", "a repeated SYN that nobody answered yet: let pass, not counted"),
    ("ignored_tcp_state", "the TCP segment is let pass without changing the connection's state"),
    ("ignored_tcp_window", "an old TCP segment or acknowledgement: let pass, not counted"),
    (
        "ignored_sctp",
        "an SCTP INIT that came again, or a heartbeat with a new tag: let pass, not counted",
    ),
    ("untracked_not_ip", "not an IP packet (ARP, LLDP, ...)"),
    ("untracked_eth_short", "shorter than an Ethernet header"),
    ("untracked_vlan_depth", "more than two VLAN tags"),
    ("untracked_pppoe", "PPPoE"),
    ("untracked_nd", "neighbour discovery or multicast listener discovery (as in the kernel)"),
    (
        "untracked_fragment",
        (
            "a fragment that fits no datagram: overlapping, too long together, or no room to"
            " remember it"
        ),
    ),
    (
        "untracked_limit",
        "more or longer headers than are followed: what is behind them was not looked at",
    ),
    ("untracked_no_entry", "no entry could be made: the table is full or being resized"),
    (
        "untracked_rate",
        "it would begin a flow, and more began lately than new_flows_per_second allows",
    ),
    ("untracked_contended", "the entry stayed locked by another CPU"),
    ("untracked_no_meta", "the driver offers no XDP metadata"),
    ("untracked_no_slot", "a slot of the jump table is empty"),
)
EVENTS = (
    ("created", "entries made"),
    ("reopened", "entries that became a new connection of the same tuple"),
    ("deleted_reset", "unanswered connections that a TCP reset ended at once"),
    ("deleted_expired", "entries whose time was over"),
    ("deleted_flushed", "entries that an operator deleted"),
    ("deleted_dropped", "entries that began with a packet which a guest dropped"),
    ("deleted_untracked", "entries that began with a packet which was then not tracked"),
    ("insert_failed", "entries that could not be made"),
    ("promoted", "entries that moved to the table of assured flows"),
    (
        "promote_failed",
        (
            "packets of assured flows that the table of assured flows had no room for: the flow"
            " stayed where it was"
        ),
    ),
    ("assured_deleted", "those of the deleted entries that stood in a table of assured flows"),
    ("forwarded", "packets forwarded past the stack"),
    (
        "forward_unusual",
        (
            "left to the stack: tagged, with IP options or extension headers, or longer than the IP"
            " packet in it"
        ),
    ),
    ("forward_ttl", "left to the stack: the TTL is used up"),
    ("forward_mtu", "left to the stack: longer than the route's MTU"),
    (
        "forward_route",
        (
            "left to the stack: no route leads on, forwarding is off, it is for this host, or it"
            " would go back where it came from"
        ),
    ),
    ("forward_neighbour", "left to the stack: the next hop's address is not known yet"),
    (
        "forward_port",
        (
            "left to the stack: not addressed to an attached interface, or routed to one that takes"
            " no redirected frames"
        ),
    ),
    (
        "forward_refresh",
        (
            "left to the stack, which sees one packet of a flow and direction every five seconds,"
            " so that neighbours and nf_conntrack stay alive"
        ),
    ),
    (
        "forward_martian",
        (
            "left to the stack: an address that no router forwards, such as one of this host's own"
            " as the sender's"
        ),
    ),
)
COUNTERS = tuple(name for name, dummy in OUTCOMES + EVENTS)
#: What user space counts in the array ``deletions``, index is the position here. Writing a per-CPU
#: array from user space would overwrite what the chain counts meanwhile, so these have a map of
#: their own, which the chain never touches; readers add both up.
DELETIONS = ("deleted_expired", "deleted_flushed", "assured_deleted")
