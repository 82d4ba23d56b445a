# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator can set while the chain runs: timeouts and knobs, with their defaults."""

from __future__ import annotations

import struct
import typing as t

from . import crc32c
from . import states as chain_states

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
#: Layout of the one value of ``settings``: the transition tables of TCP and SCTP, jiffies a second,
#: the timeouts in jiffies, the knobs, and the tables of SCTP's checksum, which are no settings but
#: have their place here.
SETTINGS_STRUCT = struct.Struct(
    f"={len(chain_states.TCP_ROWS)}Q{len(chain_states.SCTP_ROWS)}QI{len(TIMEOUTS)}I{len(KNOBS)}I{len(crc32c.CRC32C_TABLES)}I"
)
SETTINGS_BYTES = (SETTINGS_STRUCT.size + 7) // 8 * 8
#: What is forwarded past the stack.
FORWARDS = ("off", "established", "all")


def settings_value(hz: int, timeouts: t.Mapping[str, int], knobs: t.Mapping[str, int]) -> bytes:
    """Return the bytes of ``settings`` for the given timeouts (seconds) and knobs; what is not
    given has the kernel's default.

    :param hz: jiffies a second on the host.
    """
    seconds = [timeouts.get(name, default) for name, default in TIMEOUTS.items()]
    values = (knobs.get(name, default) for name, default in KNOBS.items())
    return SETTINGS_STRUCT.pack(
        *chain_states.TCP_ROWS,
        *chain_states.SCTP_ROWS,
        hz,
        *(s * hz for s in seconds),
        *values,
        *crc32c.CRC32C_TABLES,
    ).ljust(SETTINGS_BYTES, b"\0")


def settings_of(raw: bytes) -> tuple[int, dict[str, int], dict[str, int]]:
    """Return jiffies a second, the timeouts in seconds and the knobs of a value of ``settings``."""
    hz, *values = SETTINGS_STRUCT.unpack(raw[: SETTINGS_STRUCT.size])[
        len(chain_states.TCP_ROWS) + len(chain_states.SCTP_ROWS) :
    ]
    timeouts = {name: value // hz if hz else 0 for name, value in zip(TIMEOUTS, values)}
    return hz, timeouts, dict(zip(KNOBS, values[len(TIMEOUTS) :]))
