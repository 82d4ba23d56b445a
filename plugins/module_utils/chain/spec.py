# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain is made of, as data: slots, maps, counters, timeouts, settings, layout.

This is the one place where each of them is defined. The C sources get them through the
templates in ``files/bpf``, the loader creates the maps from them, the readers decode with them.
Nothing here touches the kernel or imports a third-party library.
"""

from __future__ import annotations

import dataclasses
import struct
import typing as t

#: Bumped on every change of a map's key or value; kept in ``meta`` and compared before maps are
#: handed on.
LAYOUT_VERSION = 2
#: Every program of the chain is loaded with this expected_attach_type, as kernels since the fix of
#: CVE-2025-40123 demand
#: (include/uapi/linux/bpf.h, enum bpf_attach_type: BPF_XDP).
ATTACH_TYPE_XDP = 37
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
#: What is counted of each guest, in the order of struct guest_count (files/bpf/guest.h.j2).
GUEST_COUNTS = ("seen", "passed", "dropped")
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
#: What each entry of ``meta`` (ARRAY of u64) means.
META = {
    "ktime": 0,  # whole seconds of CLOCK_MONOTONIC when the chain last saw the second change
    "next_tick": 1,  # jiffies64 at which ktime is written next
    "jiffies": 2,  # jiffies64 at one instant ...
    # ... and CLOCK_MONOTONIC in ns at the same instant; written once by each generation
    "ktime_ns": 3,
    "layout": 4,  # LAYOUT_VERSION
    "generation": 5,
    "digest_high": 6,  # the first 128 bits of the source digest
    "digest_low": 7,
    "forward": 8,  # position in FORWARDS; written by the chain's first frame
    "schema": 9,  # the first 64 bits of schema.digest() of what the map ``schema`` says
    "source": 10,  # the generation whose flows are being taken over; 0 when none are
    "counted": 11,  # whether what that one counted was added
}
#: What each entry of ``proof`` (ARRAY of u64) means: a random number that marks this generation's
#: frames of proof, and from ``counts`` on what they were counted as, by position in OUTCOMES. It is
#: not handed on, and has room for outcomes to come.
PROOF = {"mark": 0, "counts": 1}
PROOF_ENTRIES = 128
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
#: What is told of flows, where the chain has events: it begins, its state or standing changes, it
#: ends.
EVENT_KINDS = ("new", "update", "destroy")
#: Why a flow ends, by what the chain counts it as.
EVENT_REASONS = {
    "deleted_reset": "reset",
    "deleted_expired": "expired",
    "deleted_flushed": "flushed",
    "deleted_dropped": "dropped",
    "reopened": "reopened",
}
#: The ring buffer, and its words, which are u64: how many events there were, whether somebody
#: watches, and of which kinds some found no room.
EVENTS_MAP, EVENTS_WORDS_MAP = "events", "events_count"
EVENT_WORDS = ("seq", "watched", *(f"lost_{kind}" for kind in EVENT_KINDS))
#: Bytes of the ring buffer: room for 21,845 events that are not read yet.
EVENTS_BYTES = 1 << 22
#: nf_conntrack's TCP states, by their number in include/uapi/linux/netfilter/nf_conntrack_tcp.h.
TCP_STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
#: nf_conntrack's SCTP states, by their number in include/uapi/linux/netfilter/nf_conntrack_sctp.h.
SCTP_STATES = (
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
)
#: Timeouts in seconds and their kernel defaults (spec: net/netfilter/nf_conntrack_proto_*.c); index
#: in ``settings`` is the position here.
#: The TCP ones stand at the number of their state, the SCTP ones in the order of theirs.
TIMEOUTS = {
    "generic": 600,
    "tcp_syn_sent": 120,
    "tcp_syn_recv": 60,
    "tcp_established": 432000,
    "tcp_fin_wait": 120,
    "tcp_close_wait": 60,
    "tcp_last_ack": 30,
    "tcp_time_wait": 120,
    "tcp_close": 10,
    "tcp_syn_sent2": 120,
    "tcp_max_retrans": 300,
    "tcp_unacknowledged": 300,
    "udp": 30,
    "udp_stream": 120,
    "icmp": 30,
    "icmpv6": 30,
    "gre": 30,
    "gre_stream": 180,
    "sctp_closed": 10,
    "sctp_cookie_wait": 3,
    "sctp_cookie_echoed": 3,
    "sctp_established": 210,
    "sctp_shutdown_sent": 3,
    "sctp_shutdown_recd": 3,
    "sctp_shutdown_ack_sent": 3,
    "sctp_heartbeat_sent": 30,
}
#: The longest timeout that can be set, in seconds: with 1000 jiffies a second it is just less than
#: half of what 32 bits hold.
LONGEST_TIMEOUT = (1 << 31) // 1000 - 1
#: How much later than now an entry may have been seen, in seconds: another CPU read the clock
#: later, or a reader takes long for a large table.
CLOCK_SLACK = 3600
#: Switches and numbers with their defaults, those of the kernel where it has them; index in
#: ``settings`` is the position here.
KNOBS: dict[str, int] = {
    "tcp_loose": True,
    "tcp_be_liberal": False,
    "tcp_ignore_invalid_rst": False,
    "tcp_max_retrans": 3,
    "new_flows_per_second": 0,
}
#: Classes of TCP segments; RST goes before SYN, SYN before FIN, FIN before ACK.
TCP_CLASSES = ("SYN", "SYNACK", "FIN", "ACK", "RST", "NONE")
#: The transition table of Linux 6.12, net/netfilter/nf_conntrack_proto_tcp.c: what a segment of a
#: class does in each state of TCP_STATES.
#: IV: the segment is invalid; IG: it is let pass and changes nothing.
_TCP_TABLE = """
        NO SS SR ES FW CW LA TW CL S2
 SYN    SS SS IG IG IG IG IG SS SS S2
 SYNACK IV IV SR IV IV IV IV IV IV SR
 FIN    IV IV FW FW LA LA LA TW CL IV
 ACK    ES IV ES ES CW CW TW TW CL IV
 RST    IV CL CL CL CL CL CL CL CL CL
 NONE   IV IV IV IV IV IV IV IV IV IV
 SYN    IV S2 IV IV IV IV IV SS IV S2
 SYNACK IV SR IG IG IG IG IG IG IG SR
 FIN    IV IV FW FW LA LA LA TW CL IV
 ACK    IV IG SR ES CW CW TW TW CL IG
 RST    IV CL CL CL CL CL CL CL CL CL
 NONE   IV IV IV IV IV IV IV IV IV IV
"""


def transition_rows(table: str) -> tuple[int, ...]:
    """Return each row of a transition table as one number, four bits a state, the first state
    lowest.

    The first line names the states; after them come IV and IG. The rows of the initiator's
    direction come first.

    >>> [hex(row) for row in transition_rows("A B\\n X B IV\\n Y IG A")]
    ['0x21', '0x3']
    """
    states, *rows = (line.split() for line in table.strip().splitlines())
    numbers = {name: number for number, name in enumerate([*states, "IV", "IG"])}
    return tuple(
        sum(numbers[cell] << 4 * position for position, cell in enumerate(cells))
        for dummy, *cells in rows
    )


TCP_ROWS = transition_rows(_TCP_TABLE)
#: Kinds of SCTP chunks (RFC 9260, 3.2): those that do not matter, those with a row in the
#: transition table, and data.
SCTP_CHUNKS = (
    "OTHER",
    "INIT",
    "INIT_ACK",
    "ABORT",
    "SHUTDOWN",
    "SHUTDOWN_ACK",
    "ERROR",
    "COOKIE_ECHO",
    "COOKIE_ACK",
    "SHUTDOWN_COMPLETE",
    "HEARTBEAT",
    "HEARTBEAT_ACK",
    "DATA",
)
#: The transition table of Linux 6.18, net/netfilter/nf_conntrack_proto_sctp.c: what a chunk does in
#: each state of SCTP_STATES.
_SCTP_TABLE = """
                   NO CL CW CE ES SS SR SA HS
 INIT              CL CL CW CE ES CL CL SA CW
 INIT_ACK          CL CL CW CE ES SS SR SA CL
 ABORT             CL CL CL CL CL CL CL CL CL
 SHUTDOWN          CL CL CW CE SS SS SR SA CL
 SHUTDOWN_ACK      SA CL CW CE ES SA SA SA SA
 ERROR             CL CL CW CE ES SS SR SA CL
 COOKIE_ECHO       CL CL CE CE ES SS SR SA CL
 COOKIE_ACK        CL CL CW ES ES SS SR SA CL
 SHUTDOWN_COMPLETE CL CL CW CE ES SS SR CL CL
 HEARTBEAT         HS CL CW CE ES SS SR SA HS
 HEARTBEAT_ACK     CL CL CW CE ES SS SR SA HS
 INIT              IV CL CW CE ES SS SR SA IV
 INIT_ACK          IV CW CW CE ES SS SR SA IV
 ABORT             IV CL CL CL CL CL CL CL IV
 SHUTDOWN          IV CL CW CE SR SS SR SA IV
 SHUTDOWN_ACK      IV CL CW CE ES SA SA SA IV
 ERROR             IV CL CW CL ES SS SR SA IV
 COOKIE_ECHO       IV CL CE CE ES SS SR SA IV
 COOKIE_ACK        IV CL CW ES ES SS SR SA IV
 SHUTDOWN_COMPLETE IV CL CW CE ES SS SR CL IV
 HEARTBEAT         IV CL CW CE ES SS SR SA HS
 HEARTBEAT_ACK     IV CL CW CE ES SS SR SA ES
"""
SCTP_ROWS = transition_rows(_SCTP_TABLE)
#: Bytes that SCTP's checksum takes at a time, each with a table of its own.
CRC32C_SLICES = 4


def crc32c_tables() -> tuple[int, ...]:
    """Return what each byte does to SCTP's checksum (RFC 9260, appendix A), whose polynomial is
    0x1edc6f41, the lowest bit first.

    The first table is for a byte at the end, the next ones for a byte that one, two and three bytes
    follow.

    >>> [hex(number) for number in crc32c_tables()[1::256]]
    ['0xf26b8303', '0x13a29877', '0xa541927e', '0xdd45aab8']
    """
    single = []
    for byte in range(256):
        for dummy in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        single.append(byte)
    tables = [single]
    for dummy in range(1, CRC32C_SLICES):
        tables.append([crc >> 8 ^ single[crc & 0xFF] for crc in tables[-1]])
    return tuple(crc for table in tables for crc in table)


CRC32C_TABLES = crc32c_tables()
#: Layout of the one value of ``settings``: the transition tables of TCP and SCTP, jiffies a second,
#: the timeouts in jiffies, the knobs, and the tables of SCTP's checksum, which are no settings but
#: have their place here.
SETTINGS_STRUCT = struct.Struct(
    f"={len(TCP_ROWS)}Q{len(SCTP_ROWS)}QI{len(TIMEOUTS)}I{len(KNOBS)}I{len(CRC32C_TABLES)}I"
)
SETTINGS_BYTES = (SETTINGS_STRUCT.size + 7) // 8 * 8
#: What is forwarded past the stack.
FORWARDS = ("off", "established", "all")
#: Most interfaces between which it is.
PORTS = 1024
#: Entries of each of the flow tables when nothing else is asked for.
TABLE_SIZE = 1 << 16
#: Kernel numbers of the map types (include/uapi/linux/bpf.h, enum bpf_map_type).
MAP_TYPES = {
    "hash": 1,
    "array": 2,
    "prog_array": 3,
    "percpu_hash": 5,
    "percpu_array": 6,
    "lru_hash": 9,
    "lru_percpu_hash": 10,
    "lpm_trie": 11,
    "array_of_maps": 12,
    "ringbuf": 27,
}
#: What each family's flow tables are for: all other flows, and assured ones. ``pred`` holds another
#: generation's tables in this order.
FLOW_CLASSES = ("half_open", "assured")


@dataclasses.dataclass(frozen=True)
class MapSpec:
    """One map of the chain.

    :ivar name: its name in the kernel and under ``<pin_root>/map``.
    :ivar kind: a key of MAP_TYPES.
    :ivar key: C type of the key; None where it is the index of an array.
    :ivar value: C type of the value; None where no program reads the map.
    :ivar key_size: bytes.
    :ivar value_size: bytes.
    :ivar entries: max_entries; None where the host's settings tell.
    :ivar inherited: whether the next generation takes the map over with its contents.
    :ivar inner: the map whose like an array of maps holds; None in other maps.
    """

    name: str
    kind: str
    key: str | None
    value: str | None
    key_size: int
    value_size: int
    entries: int | None
    inherited: bool
    inner: str | None = None


def maps(
    table_size: int = TABLE_SIZE,
    table_size6: int = TABLE_SIZE,
    half_open_size: int = TABLE_SIZE,
    half_open_size6: int = TABLE_SIZE,
    *,
    events: bool = False,
) -> tuple[MapSpec, ...]:
    """Return the chain's maps.

    :param table_size: entries of the table of assured IPv4 flows, ``table_size6`` of that of IPv6.
    :param half_open_size: entries of the table of all other IPv4 flows, ``half_open_size6`` of that
        of IPv6.
    :param events: whether it has those of the events.
    """
    return (
        MapSpec("meta", "array", None, "u64", 4, 8, len(META), False),
        MapSpec("jt", "prog_array", None, "u32", 4, 4, JT_ENTRIES, False),
        MapSpec("settings", "array", None, "struct ct_settings", 4, SETTINGS_BYTES, 1, False),
        MapSpec("stats", "percpu_array", None, "u64", 4, 8, len(COUNTERS), True),
        MapSpec(
            "guest_stats",
            "percpu_array",
            None,
            "struct guest_count",
            4,
            8 * len(GUEST_COUNTS),
            JT_ENTRIES,
            True,
        ),
        MapSpec("deletions", "array", None, "u64", 4, 8, len(DELETIONS), True),
        MapSpec(
            "ctt_new",
            "lru_hash",
            "struct ct_key",
            "struct ct_entry",
            KEY4.size,
            ENTRY.size,
            half_open_size,
            True,
        ),
        MapSpec(
            "ctt",
            "lru_hash",
            "struct ct_key",
            "struct ct_entry",
            KEY4.size,
            ENTRY.size,
            table_size,
            True,
        ),
        MapSpec(
            "ctt6_new",
            "lru_hash",
            "struct ct_key6",
            "struct ct_entry",
            KEY6.size,
            ENTRY.size,
            half_open_size6,
            True,
        ),
        MapSpec(
            "ctt6",
            "lru_hash",
            "struct ct_key6",
            "struct ct_entry",
            KEY6.size,
            ENTRY.size,
            table_size6,
            True,
        ),
        MapSpec(
            "frags",
            "lru_hash",
            "struct frag_key",
            "struct frag_queue",
            40,
            FRAG_QUEUE_BYTES,
            FRAG_QUEUES,
            True,
        ),
        MapSpec("ports", "hash", "struct port_key", "u32", 12, 4, PORTS, True),
        MapSpec("scratch", "percpu_array", None, "struct scratch", 4, SCRATCH_BYTES, 1, False),
        MapSpec("guard", "array", None, "u64", 4, 8, 1, False),
        MapSpec("pred", "array_of_maps", None, "u32", 4, 4, len(FLOW_CLASSES), False, "ctt"),
        MapSpec("pred6", "array_of_maps", None, "u32", 4, 4, len(FLOW_CLASSES), False, "ctt6"),
        PROOF_MAP,
        MapSpec("schema", "array", None, None, 4, SCHEMA_BYTES, 1, False),
        *(EVENT_MAPS if events else ()),
    )


#: The map of the frames of proof. Chains of earlier releases have none: there such frames count as
#: traffic.
PROOF_MAP = MapSpec("proof", "array", None, "u64", 4, 8, PROOF_ENTRIES, False)
#: The maps of a chain with events. The next generation goes on with them, so that whoever reads
#: them misses nothing.
EVENT_MAPS = (
    MapSpec(EVENTS_WORDS_MAP, "array", None, "u64", 4, 8, len(EVENT_WORDS), True),
    MapSpec(EVENTS_MAP, "ringbuf", None, None, 0, 0, EVENTS_BYTES, True),
)
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
#: Bytes of the map ``schema``, which describes the tables (see schema.py) as JSON text, padded with
#: zeros.
SCHEMA_BYTES = 8192
#: Datagrams of which fragments are waited for, at most.
FRAG_QUEUES = 4096
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


def settings_value(hz: int, timeouts: t.Mapping[str, int], knobs: t.Mapping[str, int]) -> bytes:
    """Return the bytes of ``settings`` for the given timeouts (seconds) and knobs; what is not
    given has the kernel's default.

    :param hz: jiffies a second on the host.
    """
    seconds = [timeouts.get(name, default) for name, default in TIMEOUTS.items()]
    values = (knobs.get(name, default) for name, default in KNOBS.items())
    return SETTINGS_STRUCT.pack(
        *TCP_ROWS, *SCTP_ROWS, hz, *(s * hz for s in seconds), *values, *CRC32C_TABLES
    ).ljust(SETTINGS_BYTES, b"\0")


def settings_of(raw: bytes) -> tuple[int, dict[str, int], dict[str, int]]:
    """Return jiffies a second, the timeouts in seconds and the knobs of a value of ``settings``."""
    hz, *values = SETTINGS_STRUCT.unpack(raw[: SETTINGS_STRUCT.size])[
        len(TCP_ROWS) + len(SCTP_ROWS) :
    ]
    timeouts = {name: value // hz if hz else 0 for name, value in zip(TIMEOUTS, values)}
    return hz, timeouts, dict(zip(KNOBS, values[len(TIMEOUTS) :]))
