# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of the chain: names, types, sizes, and which of them a next generation takes over."""

from __future__ import annotations

import dataclasses

from . import counters as chain_counters
from . import events as chain_events
from . import layout as chain_layout
from . import programs as chain_programs
from . import settings as chain_settings

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
#: The ring buffer, and its words, which are u64: how many events there were, whether somebody
#: watches, and of which kinds some found no room.
EVENTS_MAP, EVENTS_WORDS_MAP = "events", "events_count"
#: Most interfaces between which it is.
PORTS = 1024
#: Entries of each of the flow tables when nothing else is asked for.
TABLE_SIZE = 1 << 16
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
    entry = chain_layout.ENTRY.size
    return (
        MapSpec("meta", "array", None, "u64", 4, 8, len(META), False),
        MapSpec("jt", "prog_array", None, "u32", 4, 4, chain_programs.JT_ENTRIES, False),
        MapSpec(
            "settings",
            "array",
            None,
            "struct ct_settings",
            4,
            chain_settings.SETTINGS_BYTES,
            1,
            False,
        ),
        MapSpec("stats", "percpu_array", None, "u64", 4, 8, len(chain_counters.COUNTERS), True),
        MapSpec(
            "guest_stats",
            "percpu_array",
            None,
            "struct guest_count",
            4,
            8 * len(chain_counters.GUEST_COUNTS),
            chain_programs.JT_ENTRIES,
            True,
        ),
        MapSpec("deletions", "array", None, "u64", 4, 8, len(chain_counters.DELETIONS), True),
        *(
            MapSpec(
                name, "lru_hash", f"struct {key}", "struct ct_entry", size, entry, entries, True
            )
            for name, key, size, entries in (
                ("ctt_new", "ct_key", chain_layout.KEY4.size, half_open_size),
                ("ctt", "ct_key", chain_layout.KEY4.size, table_size),
                ("ctt6_new", "ct_key6", chain_layout.KEY6.size, half_open_size6),
                ("ctt6", "ct_key6", chain_layout.KEY6.size, table_size6),
            )
        ),
        MapSpec(
            "frags",
            "lru_hash",
            "struct frag_key",
            "struct frag_queue",
            40,
            chain_layout.FRAG_QUEUE_BYTES,
            FRAG_QUEUES,
            True,
        ),
        MapSpec("ports", "hash", "struct port_key", "u32", 12, 4, PORTS, True),
        MapSpec(
            "scratch",
            "percpu_array",
            None,
            "struct scratch",
            4,
            chain_layout.SCRATCH_BYTES,
            1,
            False,
        ),
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
    MapSpec(EVENTS_WORDS_MAP, "array", None, "u64", 4, 8, len(chain_events.EVENT_WORDS), True),
    MapSpec(EVENTS_MAP, "ringbuf", None, None, 0, 0, chain_events.EVENTS_BYTES, True),
)
#: Bytes of the map ``schema``, which describes the tables (see schema.py) as JSON text, padded with
#: zeros.
SCHEMA_BYTES = 8192
#: Datagrams of which fragments are waited for, at most.
FRAG_QUEUES = 4096
