# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow-table entries made by hand, packed field by field from the layout, and a source of them for
tests without a kernel.
"""

from __future__ import annotations

import ipaddress
import struct
import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.clock import Clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table

HZ = 250
#: jiffies64 beyond 2**32, as on any host whose jiffies wrapped five minutes after boot
NOW = (1 << 32) + 1_000_000
META = {"jiffies": NOW, "ktime_ns": 1_000_000_000_000, "layout": chain_layout.LAYOUT_VERSION}
CLOCK = Clock(NOW, HZ, META["ktime_ns"])
#: ctl of an assured connection that was answered
REAL = chain_layout.CTL_SEEN_REPLY | chain_layout.CTL_ASSURED
TCP, UDP, ICMP = 6, 17, 1
#: The tables of assured flows, that of IPv4 first.
TABLES = tuple(table for table in flow.TABLES if table.flow_class == "assured")
ESTABLISHED = chain_states.TCP_STATES.index("ESTABLISHED")


def packed_key(src: str, dst: str, sport: int, dport: int, proto: int) -> tuple[bytes, bool]:
    """Return the canonical key of a flow, and whether its initiator is the hi side."""
    sides = [(ipaddress.ip_address(src).packed, sport), (ipaddress.ip_address(dst).packed, dport)]
    swap = sides[0] > sides[1]
    (lo, lo_port), (hi, hi_port) = sorted(sides)
    ports = struct.pack(">HH", lo_port, hi_port)
    return lo + hi + ports + struct.pack("=BBH", proto, int(swap and proto in (1, 58)), 0), swap


def entry(
    src: str = "172.20.56.105",
    dst: str = "172.30.56.105",
    sport: int = 41234,
    dport: int = 8080,
    proto: int = TCP,
    ctl: int = REAL | ESTABLISHED,
    orig: tuple[int, int] = (6, 431),
    reply: tuple[int, int] = (4, 1210),
    left: float = 431994,
    idle: float = 0,
    age: int = 6,
    related: tuple[int, int] = (0, 0),
    vlans: tuple[int, ...] = (),
    now: int = NOW,
    hz: int = HZ,
) -> tuple[bytes, bytes]:
    """Return the packed key and value of one flow; times in seconds."""
    key, swap = packed_key(src, dst, sport, dport, proto)
    if swap:
        ctl |= chain_layout.CTL_ORIG_HI
    ctl |= len(vlans) << chain_layout.CTL_VLANS_SHIFT
    for tag, shift in zip(
        vlans, (chain_layout.CTL_VLAN_OUTER_SHIFT, chain_layout.CTL_VLAN_INNER_SHIFT)
    ):
        ctl |= tag << shift
    value = chain_layout.ENTRY.pack(
        *orig, 1001, 1002, 1003, 1004,
        *reply, 2001, 2002, 2003, 2004,
        ctl, (now + round(left * hz)) & 0xFFFFFFFF,
        (now - round(idle * hz)) & 0xFFFFFFFF, now // hz - age,
        1, 2, 3, 4, 5, 6, 0x73, 7, 8, 9, *related,
    )  # fmt: skip
    return key, value


class FakeTables:
    """Tables in memory, with the methods of flow_table.FlowTables.

    :param tables: for each table name the entries.
    :param batch: rows in a batch.
    """

    def __init__(
        self,
        tables: t.Mapping[str, t.Iterable[tuple[bytes, bytes]]],
        batch: int = 3,
        clock: Clock = CLOCK,
        capacity: int = 1024,
    ) -> None:
        self.entries = {name: dict(rows) for name, rows in tables.items()}
        self.tables = tuple(
            flow_table.OpenTable(table, number, capacity)
            for number, table in enumerate(flow.TABLES)
            if table.name in tables
        )
        self.now = clock
        self.batch = batch
        self.stats = dict.fromkeys(chain_counters.COUNTERS, 0)
        self.guests: dict[str, dict[str, int]] = {}
        self.in_force = (dict(chain_settings.TIMEOUTS), dict(chain_settings.KNOBS))
        self.batches_read = 0
        #: called before each look-up: what packets do meanwhile
        self.meanwhile: t.Callable[[], None] = lambda: None

    def clock(self) -> Clock:
        return self.now

    def settings(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.in_force

    def cpu_counters(self) -> list[dict[str, int]]:
        return [dict(self.stats), dict.fromkeys(chain_counters.COUNTERS, 0)]

    def counters(self) -> dict[str, int]:
        return dict(self.stats)

    def guest_counters(self) -> dict[str, dict[str, int]]:
        return self.guests

    def promoted(self) -> int:
        return self.stats["promoted"]

    def batches(
        self, opened: flow_table.OpenTable
    ) -> t.Iterator[tuple[int, memoryview, memoryview]]:
        rows = list(self.entries[opened.table.name].items())
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            self.batches_read += 1
            yield (
                len(part),
                memoryview(b"".join(key for key, dummy in part)),
                memoryview(b"".join(value for dummy, value in part)),
            )

    def lookup(self, opened: flow_table.OpenTable, key: bytes) -> bytes | None:
        self.meanwhile()
        return self.entries[opened.table.name].get(key)

    def delete(self, opened: flow_table.OpenTable, keys: t.Sequence[bytes]) -> int:
        return sum(self.entries[opened.table.name].pop(key, None) is not None for key in keys)

    def create(self, opened: flow_table.OpenTable, key: bytes, value: bytes) -> bool:
        there = self.entries[opened.table.name]
        return there.setdefault(key, value) is value

    def count_made(self, created: int, promoted: int) -> None:
        self.stats["created"] += created
        self.stats["promoted"] += promoted

    def count_deleted(self, numbers: t.Mapping[str, int]) -> None:
        for name, number in numbers.items():
            self.stats[name] += number
