# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of flows: from the bytes of the ring buffer to records and lines. Nothing here
touches the kernel.
"""

from __future__ import annotations

import datetime
import itertools
import typing as t

from ..chain import counters as chain_counters
from ..chain import events as chain_events
from ..chain import layout as chain_layout
from ..chain.clock import Clock
from . import codec as flow
from . import filter as flow_filter
from . import output as flow_output
from .delete import title

_NS = 1_000_000_000
#: A flow's table tells only how its key is read; which of its family's it is does not matter here.
_TABLES = {
    family: next(table for table in flow.TABLES if table.family == family)
    for family in flow.FAMILIES
}
_REASONS = {
    chain_counters.COUNTERS.index(name): reason
    for name, reason in chain_events.EVENT_REASONS.items()
}


class Event(t.NamedTuple):
    """One event.

    :ivar kind: one of chain.EVENT_KINDS.
    :ivar reason: why the flow ended, one of chain.EVENT_REASONS; "" where it did not.
    :ivar seq: each event of a chain has one more than the one before, those that were lost as well.
    :ivar time: when, as people and programs read it.
    :ivar table: how the key is read.
    :ivar clock: the instant, in the entry's time.
    :ivar key: packed.
    :ivar value: the packed entry.
    """

    kind: str
    reason: str
    seq: int
    time: str
    table: flow.Table
    clock: Clock
    key: bytes
    value: bytes


def parse(raw: bytes, hz: int, offset_ns: int) -> Event:
    """Return the event that a record of the ring buffer holds.

    :param hz: jiffies a second.
    :param offset_ns: what CLOCK_REALTIME is ahead of CLOCK_MONOTONIC.
    :raises struct.error: for bytes that are none.
    """
    seq, jiffies, ktime, what, reason, v6, key, value = chain_layout.EVENT.unpack(raw)
    table = _TABLES["ipv6" if v6 else "ipv4"]
    when = datetime.datetime.fromtimestamp(
        (ktime + offset_ns) / _NS, datetime.timezone.utc
    ).isoformat(timespec="microseconds")
    return Event(
        chain_events.EVENT_KINDS[what],
        _REASONS.get(reason, ""),
        seq,
        when,
        table,
        Clock(jiffies, hz, ktime),
        key[: table.key.size],
        value,
    )


Matched = tuple[Event, flow.Shape, flow.Values]


class Matcher:
    """Chooses events by what became of flows, and by the filters that choose flows; keeps the
    decoders between batches.

    :param kinds: of chain.EVENT_KINDS; empty for all.
    """

    def __init__(self, filters: flow_filter.Filters, kinds: t.Collection[str] = ()) -> None:
        self._filters = filters
        self._kinds = frozenset(kinds or chain_events.EVENT_KINDS)
        self._decoders = {
            family: flow.Decoder(table, Clock(0, 1, 0)) for family, table in _TABLES.items()
        }

    def matching(self, events: t.Iterable[Event]) -> t.Iterator[Matched]:
        """Return the events that match, decoded, in their order."""
        wanted = (event for event in events if event.kind in self._kinds)
        for (family, clock), run in itertools.groupby(
            wanted, lambda event: (event.table.family, event.clock)
        ):
            table, decoder = _TABLES[family], self._decoders[family]
            tests = self._filters.tests(table, clock)
            if tests is None:
                continue
            decoder.clock = clock
            rows = (
                (table.key.unpack(event.key), flow.VIEW.unpack(event.value), event) for event in run
            )
            for shape, values, row in decoder.flows(flow_filter.choose(rows, tests), over=True):
                yield row[2], shape, values


# ---------------------------------------------------------------- text
def record(item: Matched) -> flow.Record:
    """Return an event in the form in which files and programs have it: the flow's record, with what
    became of it in front.
    """
    event, shape, values = item
    reason = {"reason": event.reason} if event.kind == "destroy" else {}
    return {
        "event": event.kind,
        "seq": event.seq,
        "time": event.time,
        **reason,
        **flow.record(shape, values),
    }


def _jsonl(item: Matched) -> str:
    return flow_output.dumps(record(item))


def _conntrack(item: Matched) -> str:
    event, shape, values = item
    return flow_output.conntrack_line(shape, values, event=event.kind)


def _text(item: Matched) -> str:
    """Return a line for people: time of day (UTC), number, what happened to the flow, the flow."""
    event, shape, values = item
    standing = [shape.state] + (
        ["assured"] if shape.assured else [] if shape.seen_reply else ["unreplied"]
    )
    if event.kind == "destroy":
        packets, octets = (
            values[flow.ORIG_PACKETS] + values[flow.REPLY_PACKETS],
            values[flow.ORIG_BYTES] + values[flow.REPLY_BYTES],
        )
        standing += [event.reason, f"{packets} packets", f"{octets} bytes", f"{values[flow.AGE]} s"]
    return (
        f"{event.time[11:26]} {event.seq:>6} {event.kind:<7} {title(flow.record(shape, values))} "
        f" {', '.join(filter(None, standing))}"
    )


#: The forms of an event, by name; the first one is for people.
FORMS: dict[str, t.Callable[[Matched], str]] = {
    "text": _text,
    "jsonl": _jsonl,
    "conntrack": _conntrack,
}
