# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one pass over the tables finds: records, groups, counts."""

from __future__ import annotations

import array
import bisect
import collections
import dataclasses
import heapq
import itertools
import operator
import typing as t

from ..core.errors import ConntrackError
from . import codec as flow
from . import filter as flow_filter
from . import table as flow_table
from .table import Source


class TooMany(ConntrackError):
    """More would have to be kept in memory at once than the caller has room for."""


# ---------------------------------------------------------------- reading
@dataclasses.dataclass
class Reading:
    """What one pass over the tables gave.

    :ivar flows: records, at most as many as the query's limit (default flow_filter.DEFAULT_LIMIT).
    :ivar count: how many flows match; where the pass stopped early, how many it had met.
    :ivar complete: whether the pass went over everything.
    :ivar groups: one dict a group, the one with the most flows first, at most as many as flows.
    :ivar group_count: how many groups there are.
    :ivar summary: totals, counters and clock; None when they were not asked for.
    :ivar shapes: how many flows there are of each shape, where the summary was asked for.
    """

    flows: list[flow.Record]
    count: int
    complete: bool
    groups: list[dict[str, t.Any]]
    group_count: int
    summary: dict[str, t.Any] | None
    shapes: t.Mapping[flow.Shape, int]

    @property
    def truncated(self) -> bool:
        """Whether there are more flows or groups than are listed."""
        return (
            not self.complete or self.count > len(self.flows) or self.group_count > len(self.groups)
        )


class _Once:
    """Leaves out flows that are met twice: one that becomes assured while the tables are read is
    met in both tables of its family.

    What was met first is remembered by its key's hash, 8 bytes a flow, and only looked at where a
    flow moved meanwhile. What is only counted is not remembered.
    """

    _BUCKETS = 1 << 8

    def __init__(self, source: Source) -> None:
        self._source = source
        self._promoted = source.promoted()
        self._first = array.array("q")
        #: what was taken out of _first to be looked up: each sorted, by the hashes' last bits. A
        #: set would take ten times the memory.
        self._sorted: list[array.array[int]] = []

    def new(self, table: flow.Table, flows: list[flow.Flow]) -> list[flow.Flow]:
        """Return those of a batch, just read, that were not met before."""
        if table.flow_class == "half_open":
            self._first.extend([hash(item[2][0]) for item in flows])
            return flows
        if not (self._first or self._sorted) or self._source.promoted() == self._promoted:
            return flows
        if self._first:
            self._sort()
        return [item for item in flows if not self._met(hash(item[2][0]))]

    def _met(self, number: int) -> bool:
        bucket = self._sorted[number % self._BUCKETS]
        at = bisect.bisect_left(bucket, number)
        return at < len(bucket) and bucket[at] == number

    def _sort(self) -> None:
        self._sorted = self._sorted or [array.array("q") for dummy in range(self._BUCKETS)]
        first, buckets = self._first, self._sorted
        while first:  # from its end, so that it gives back its memory as they grow
            some = first[-flow_table.BATCH :]
            del first[-flow_table.BATCH :]
            for number in some:
                buckets[number % self._BUCKETS].append(number)
        for at, bucket in enumerate(buckets):
            buckets[at] = array.array("q", sorted(bucket))


class Pass:
    """One pass over the tables, adding up what goes by.

    :param as_bytes: give addresses as bytes.
    :param packed: give rows with their packed key and value.
    :param keep: so many flows are wanted, the others need only be counted; None for all.
    :param summary: whether to count the flows of each shape.
    :param most_groups: of more, and ``most_sorted``, of more flows to sort, it refuses to make a
        list; None for no such bound.
    """

    def __init__(
        self,
        source: Source,
        query: flow_filter.Query,
        as_bytes: bool,
        packed: bool,
        keep: int | None,
        summary: bool,
        most_groups: int | None = None,
        most_sorted: int | None = None,
    ) -> None:
        self._most_groups, self._most_sorted = most_groups, most_sorted
        self.clock = source.clock()
        self.entries: dict[str, int] = {opened.table.name: 0 for opened in source.tables}
        self.shapes: collections.Counter[flow.Shape] = collections.Counter()
        self.groups: dict[tuple[t.Any, ...], list[int]] = {}
        self.count = 0
        self._source = source
        self._query = query
        self._keep = keep
        self._summary = summary
        self._packed = packed or query.sort is not None
        self._group_columns = [flow.ALL_COLUMNS[name] for name in query.group_by]
        self._decoders = [
            flow.Decoder(opened.table, self.clock, as_bytes) for opened in source.tables
        ]
        self._once = _Once(source)

    def batches(self) -> t.Iterator[list[flow.Flow]]:
        """Return the flows that match, in the query's order."""
        if self._query.sort is None:
            return (flows for dummy, flows in self._matching())
        return self._sorted(self._query.sort)

    def _matching(self) -> t.Iterator[tuple[int, list[flow.Flow]]]:
        """Return (index of the table, flows) as the tables give them."""
        every_one = self._keep is None or bool(self._group_columns) or self._query.sort is not None
        for index, (opened, decoder) in enumerate(zip(self._source.tables, self._decoders)):
            tests = self._query.filters.tests(opened.table, self.clock)
            for number, keys, values in self._source.batches(opened):
                self.entries[opened.table.name] += number
                if tests is None:
                    continue
                if not tests and not every_one and self.count >= (self._keep or 0):
                    counted = decoder.count(keys, values)
                    if counted is not None:
                        self.count += sum(counted.values())
                        self.shapes.update(counted)
                        yield index, []
                        continue
                rows = (
                    decoder.packed_rows(keys, values)
                    if self._packed
                    else decoder.rows(keys, values)
                )
                flows = self._once.new(
                    opened.table, list(decoder.flows(flow_filter.choose(rows, tests)))
                )
                self.count += len(flows)
                if self._summary:
                    self.shapes.update(map(operator.itemgetter(0), flows))
                if self._group_columns:
                    self._group(flows)
                yield index, flows

    def _group(self, flows: t.Iterable[flow.Flow]) -> None:
        for shape, values, dummy in flows:
            values = flow.with_text(values)
            key = tuple(_hashable(column(shape, values)) for column in self._group_columns)
            totals = self.groups.setdefault(key, [0, 0, 0])
            totals[0] += 1
            totals[1] += values[flow.ORIG_PACKETS] + values[flow.REPLY_PACKETS]
            totals[2] += values[flow.ORIG_BYTES] + values[flow.REPLY_BYTES]
        if self._most_groups is not None and len(self.groups) > self._most_groups:
            names = ",".join(self._query.group_by)
            raise TooMany(
                f"group_by: {names} makes more than {self._most_groups} groups: group by fewer"
                " fields, or give a filter, as dst=192.0.2.0/24."
            )

    def _few(self) -> t.Iterator[tuple[int, list[flow.Flow]]]:
        """Return what _matching() does.

        :raises TooMany: when there are more than can be sorted.
        """
        for index, flows in self._matching():
            if self._most_sorted is not None and self.count > self._most_sorted:
                raise TooMany(
                    f"sort: more than {self._most_sorted} flows match, too many to sort: give a"
                    " limit of at most 10000, or a filter."
                )
            yield index, flows

    def _sorted(self, column: str) -> t.Iterator[list[flow.Flow]]:
        """Sort the packed entries, which take little memory, and decode them again afterwards;
        equal ones are in the order of their keys.
        """
        key = flow.sort_key(column)
        items = (
            (key(item), index, item[2][2], item[2][3])
            for index, flows in self._few()
            for item in flows
        )
        if self._keep is None:
            chosen = sorted(items, reverse=self._query.descending)
        else:
            chosen = (heapq.nlargest if self._query.descending else heapq.nsmallest)(
                self._keep, items
            )
        for start in range(0, len(chosen), flow_table.BATCH):
            for index, run in itertools.groupby(
                chosen[start : start + flow_table.BATCH], operator.itemgetter(1)
            ):
                decoder, items_of_run = self._decoders[index], list(run)
                keys = b"".join([item[2] for item in items_of_run])
                values = b"".join([item[3] for item in items_of_run])
                yield list(decoder.flows(decoder.packed_rows(keys, values)))


def discard(piece: bytes) -> None:
    """Take text that nobody wants."""


def _hashable(value: t.Any) -> t.Any:
    return tuple(value) if isinstance(value, list) else value
