# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The counters of flows, read again and again, and the largest of what they counted meanwhile.

A rate is what a flow counted since the read before. So the counters of each flow are remembered
from one read to the next, of at most MOST_FLOWS: in a larger table those of the flows that had
packets since the read before, and one that was idle shows its rate one read later. Of what is read
only the first ones of each order are kept, so that a table of any size takes little memory.
"""

from __future__ import annotations

import dataclasses
import datetime
import heapq
import struct
import typing as t

from ...chain.clock import Clock
from ...flows import codec as flow
from ...flows import collect as flow_collect
from ...flows import read as flow_read
from ...flows import table as flow_table
from .view import BYTES, FLOWS, ORDERS, ORIG_PACKETS, PACKETS, Counts, Ranked, View

#: Flows whose counters are remembered; each takes some 200 bytes.
MOST_FLOWS = 1 << 18
#: Groups that are added up. Where there are more, the smallest by every order are given up, see
#: Batch.given_up.
MOST_GROUPS = 1 << 16
#: Most lines that are kept for a screen, however large it is.
MOST_LINES = 500
#: Flows that are ranked at once.
_RANKED = 1 << 12
#: The counters at the beginning of flow.VIEW, with what lies between them.
_COUNTERS = struct.Struct("=QQ16xQQ")
_NOTHING = (0, 0, 0, 0)


# ---------------------------------------------------------------- reading
@dataclasses.dataclass
class Batch:
    """What one read gave.

    :ivar seconds: since the read before; None for the first one, which has no rates.
    :ivar flows: how many match.
    :ivar entries: in the tables, those whose time is over included.
    :ivar capacity: entries that the tables can hold.
    :ivar total: of all that match.
    :ivar ranked: what can come first by any order.
    :ivar given_up: flows of groups that were given up since there were too many.
    """

    seconds: float | None
    flows: int
    entries: int
    capacity: int
    total: Counts
    ranked: list[Ranked]
    given_up: int
    time: datetime.datetime = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc)
    )

    def first(self, sort: str, limit: int | None) -> list[Ranked]:
        """Return the first ones by an order."""
        value = ORDERS[sort].value
        return sorted(
            self.ranked,
            key=lambda one: (value(one[1]), one[1][BYTES], one[1][FLOWS]),
            reverse=True,
        )[:limit]

    def rate(self, number: int) -> float | None:
        """Return what a number of this interval is in a second; None where there is no interval."""
        return None if self.seconds is None else number / self.seconds

    def share(self, counts: Counts) -> float:
        """Return how much of what is in the tables a group's flows are, in percent."""
        return 100 * counts[FLOWS] / self.entries if self.entries else 0.0


def best(ranked: t.Iterable[Ranked], number: int) -> list[Ranked]:
    """Return those that are among the first ``number`` by any order."""
    ranked = list(ranked)
    chosen: dict[int, Ranked] = {}
    for order in ORDERS.values():
        value = order.value
        chosen.update(
            (id(one), one) for one in heapq.nlargest(number, ranked, key=lambda one: value(one[1]))
        )
    return list(chosen.values())


def moved(before: bytes, values: flow.Values) -> tuple[int, int, int, int]:
    """Return what a flow counted since: packets and bytes there, packets and bytes back. Where a
    counter went back the flow began anew.

    :param before: its packed counters of then.
    """
    now = (
        values[flow.ORIG_PACKETS],
        values[flow.ORIG_BYTES],
        values[flow.REPLY_PACKETS],
        values[flow.REPLY_BYTES],
    )
    then = _COUNTERS.unpack(before)
    since = (now[0] - then[0], now[1] - then[1], now[2] - then[2], now[3] - then[3])
    return now if min(since) < 0 else since


class Meter:
    """Reads the tables, and remembers what the next read needs.

    :param most_flows: see MOST_FLOWS; likewise the next one.
    """

    def __init__(
        self, view: View, most_flows: int = MOST_FLOWS, most_groups: int = MOST_GROUPS
    ) -> None:
        self._query = dataclasses.replace(view.query, sort=None, limit=None, group_by=())
        self._columns = [
            _vlan if name == "vlan" else flow.ALL_COLUMNS[name] for name in view.query.group_by
        ]
        self._keep = max(view.limit if view.limit is not None else MOST_LINES, 1)
        self._most_flows, self._most_groups = most_flows, most_groups
        self._before: dict[bytes, bytes] = {}
        self._clock: Clock | None = None
        self._few = True

    def read(
        self, source: flow_table.Source, between: t.Callable[[], object] = lambda: None
    ) -> Batch:
        """Read all flows once.

        :param between: is called after each part of the table.
        """
        one_pass = flow_collect.Pass(
            source, self._query, as_bytes=False, packed=True, keep=None, summary=False
        )
        clock, last, before = one_pass.clock, self._clock, self._before
        seconds = (
            None if last is None else max((clock.monotonic_ns - last.monotonic_ns) / 1e9, 1e-3)
        )
        new_age = -1 if last is None else clock.jiffies // clock.hz - last.jiffies // last.hz
        since = 0 if last is None else last.jiffies & 0xFFFFFFFF
        few, most, size = self._few, self._most_flows, _COUNTERS.size
        after: dict[bytes, bytes] = {}
        total = [0] * 7
        ranked: list[Ranked] = []
        groups: dict[tuple[t.Any, ...], Counts] = {}
        columns, given_up = self._columns, 0
        least_packets = (
            least_bytes
        ) = -1  # an idle flow below both is not among the first ones by any order
        with flow_read.no_collector():
            for flows in one_pass.batches():
                total[FLOWS] += len(flows)
                for shape, values, row in flows:
                    key, now = row[2], row[3][:size]
                    then = before.pop(key, None)
                    if then is None:
                        counted = (
                            values[5:7] + values[11:13] if values[flow.AGE] <= new_age else _NOTHING
                        )
                    else:
                        counted = _NOTHING if then == now else moved(then, values)
                    if (few or (row[1][flow.LAST_SEEN] - since) & 0xFFFFFFFF < 0x80000000) and len(
                        after
                    ) < most:
                        after[key] = now
                    packets, octets = values[5] + values[11], values[6] + values[12]
                    total[PACKETS] += packets
                    total[BYTES] += octets
                    if counted is not _NOTHING:
                        _add(total, counted)
                    if columns:
                        name = tuple([column(shape, values) for column in columns])
                        counts = groups.get(name)
                        if counts is None:
                            groups[name] = [1, packets, octets, *counted]
                        else:
                            counts[FLOWS] += 1
                            counts[PACKETS] += packets
                            counts[BYTES] += octets
                            if counted is not _NOTHING:
                                _add(counts, counted)
                    elif packets > least_packets or octets > least_bytes or counted is not _NOTHING:
                        ranked.append(((shape, values), [1, packets, octets, *counted]))
                if len(ranked) > _RANKED + len(ORDERS) * self._keep:
                    ranked = best(ranked, self._keep)
                    least_packets, least_bytes = (
                        sorted((c[at] for dummy, c in ranked), reverse=True)[self._keep - 1]
                        for at in (PACKETS, BYTES)
                    )
                if len(groups) > 2 * self._most_groups:
                    had = sum(counts[FLOWS] for counts in groups.values())
                    groups = dict(best(groups.items(), self._most_groups // len(ORDERS)))
                    given_up += had - sum(counts[FLOWS] for counts in groups.values())
                between()
        self._before, self._clock, self._few = after, clock, total[FLOWS] <= most
        return Batch(
            seconds=seconds,
            flows=total[FLOWS],
            entries=sum(one_pass.entries.values()),
            capacity=sum(opened.capacity for opened in source.tables),
            total=total,
            ranked=list(groups.items()) if columns else best(ranked, self._keep),
            given_up=given_up,
        )


def _add(counts: Counts, moved_by: t.Sequence[int]) -> None:
    for at, number in enumerate(moved_by, ORIG_PACKETS):
        counts[at] += number


def _vlan(shape: flow.Shape, dummy: flow.Values) -> tuple[int, ...] | None:
    """Return the tags in a form that can be a group's key."""
    return shape.vlan or None
