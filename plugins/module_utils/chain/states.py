# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of TCP and SCTP, and how packets move a flow from one to another."""

from __future__ import annotations

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
