# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``ct top``: who sends most, and who holds most of the table, read again and again.

A rate is what a flow counted since the read before. So the counters of each flow are remembered
from one read to the next, of at most MOST_FLOWS: in a larger table those of the flows that had
packets since the read before, and one that was idle shows its rate one read later. Of what is read
only the first ones of each order are kept, so that a table of any size takes little memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import heapq
import json
import os
import select
import struct
import sys
import time
import typing as t

from ..chain.clock import Clock
from ..core import stop
from ..core.errors import ConntrackError, bad_value
from ..flows import codec as flow
from ..flows import collect as flow_collect
from ..flows import filter as flow_filter
from ..flows import read as flow_read
from ..flows import table as flow_table

#: Flows whose counters are remembered; each takes some 200 bytes.
MOST_FLOWS = 1 << 18
#: Groups that are added up. Where there are more, the smallest by every order are given up, see
#: Batch.given_up.
MOST_GROUPS = 1 << 16
#: Flows that are ranked at once.
_RANKED = 1 << 12
#: Most lines that are kept for a screen, however large it is.
_LINES = 500
#: Seconds between two looks at the size of the terminal.
_PATIENCE = 0.25
_SHORTEST = 0.1
#: What is counted of a flow or of a group: flows; packets and bytes of both directions; those of
#: each direction since the read before.
Counts = list[int]
FLOWS, PACKETS, BYTES, ORIG_PACKETS, ORIG_BYTES, REPLY_PACKETS, REPLY_BYTES = range(7)
#: (what it is about: a flow, or the values of a group; its counts)
Ranked = tuple[t.Any, Counts]
#: The counters at the beginning of flow.VIEW, with what lies between them.
_COUNTERS = struct.Struct("=QQ16xQQ")
_NOTHING = (0, 0, 0, 0)


class Order(t.NamedTuple):
    """One order of the lines, the largest first."""

    key: str
    shown: str
    value: t.Callable[[Counts], int]


ORDERS = {
    "byte-rate": Order("b", "bytes/s", lambda c: c[ORIG_BYTES] + c[REPLY_BYTES]),
    "packet-rate": Order("p", "packets/s", lambda c: c[ORIG_PACKETS] + c[REPLY_PACKETS]),
    "bytes": Order("B", "bytes", lambda c: c[BYTES]),
    "packets": Order("P", "packets", lambda c: c[PACKETS]),
    "flows": Order("f", "flows", lambda c: c[FLOWS]),
}


@dataclasses.dataclass
class View:
    """What is to be shown.

    :ivar query: the filters and groups.
    :ivar sort: of ORDERS.
    :ivar limit: at most so many flows or groups.
    :ivar interval: seconds from one read to the next.
    """

    query: flow_filter.Query
    sort: str = "byte-rate"
    limit: int | None = None
    interval: float = 2.0

    @property
    def orders(self) -> dict[str, Order]:
        """The orders that make sense: single flows are all of the same number."""
        return (
            ORDERS
            if self.query.group_by
            else {name: order for name, order in ORDERS.items() if name != "flows"}
        )


def parse(words: t.Mapping[str, t.Any], sort: str, interval: str) -> View:
    """Return what the words of a command line ask for.

    :param words: filters, ``limit`` and ``group_by``.
    :raises ConntrackError: for a value that is not valid.
    """
    query = flow_filter.parse_query(words)
    seconds = 0.0
    with contextlib.suppress(ValueError):
        seconds = float(interval)
    if not _SHORTEST <= seconds <= 86400:
        raise bad_value("interval", interval, f"give seconds, {_SHORTEST} or more")
    view = View(query, sort, query.limit, seconds)
    if sort not in view.orders:
        raise bad_value("sort", sort, "it belongs to --group-by")
    return view


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
            self.ranked, key=lambda one: (value(one[1]), one[1][BYTES], one[1][FLOWS]), reverse=True
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
        self._keep = max(view.limit if view.limit is not None else _LINES, 1)
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
        # an idle flow below both is not among the first ones by any order
        least_packets = least_bytes = -1
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


# ---------------------------------------------------------------- for programs
def _rate_record(batch: Batch, c: Counts) -> dict[str, t.Any] | None:
    if batch.seconds is None:
        return None
    sides = {
        side: {
            what: round(c[at] / batch.seconds, 1)
            for what, at in (("packets", first), ("bytes", first + 1))
        }
        for side, first in (("orig", ORIG_PACKETS), ("reply", REPLY_PACKETS))
    }
    whole = {
        what: round((c[at] + c[at + 2]) / batch.seconds, 1)
        for what, at in (("packets", ORIG_PACKETS), ("bytes", ORIG_BYTES))
    }
    return {**whole, **sides}


def record(batch: Batch, view: View) -> dict[str, t.Any]:
    """Return a read as an object of JSON: the records of flows, or of groups, each with its rates
    in a second.
    """

    def shown(what: t.Any, counts: Counts) -> dict[str, t.Any]:
        if not view.query.group_by:
            return {**flow.record(*what), "rate": _rate_record(batch, counts)}
        group = {
            "flows": counts[FLOWS],
            "share": round(batch.share(counts), 2),
            "packets": counts[PACKETS],
            "bytes": counts[BYTES],
        }
        return {
            **dict(zip(view.query.group_by, what)),
            **group,
            "rate": _rate_record(batch, counts),
        }

    return {
        "time": batch.time.isoformat(timespec="milliseconds"),
        "seconds": None if batch.seconds is None else round(batch.seconds, 3),
        "flows": batch.flows,
        "entries": batch.entries,
        "capacity": batch.capacity,
        "rate": _rate_record(batch, batch.total),
        "given_up": batch.given_up,
        "sort": view.sort,
        "group_by": list(view.query.group_by),
        "top": [shown(*one) for one in batch.first(view.sort, view.limit)],
    }


# ---------------------------------------------------------------- for people
def short(number: float | None) -> str:
    """Return a number in at most five characters.

    >>> [short(number) for number in (None, 0, 0.25, 7, 999.6, 12345, 999950, 1.5e9)]
    ['-', '0', '0.2', '7', '1.0k', '12.3k', '1.0M', '1.5G']
    """
    if number is None:
        return "-"
    if number < 999.5:
        return f"{number:.1f}" if number < 9.95 and number != int(number) else f"{number:.0f}"
    for unit in "kMGTP":
        number /= 1000
        if number < 99.95:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return f"{number / 1000:.0f}E"


def cut(text: str, width: int) -> str:
    """Return a text of at most that width: the ends of addresses tell more than their middles.

    >>> cut("[2001:db8::1234:5678:9abc]:443", 20)
    '[2001:db8..9abc]:443'
    """
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 2 - tail] + ".." + text[len(text) - tail :] if width > 4 else text[:width]


def _texts(batch: Batch, view: View, ranked: t.Iterable[Ranked]) -> tuple[list[list[str]], int]:
    """Return headings and cells, and how many columns at the left are texts."""
    rates = ["PKTS/S", "OUT/S", "BACK/S"]

    def rate(c: Counts) -> list[str]:
        return [
            short(batch.rate(number))
            for number in (c[ORIG_PACKETS] + c[REPLY_PACKETS], c[ORIG_BYTES], c[REPLY_BYTES])
        ]

    if view.query.group_by:
        rows = [
            [
                *(name.upper() for name in view.query.group_by),
                "FLOWS",
                "SHARE",
                *rates,
                "PACKETS",
                "BYTES",
            ]
        ]
        for what, c in ranked:
            keys = [
                (
                    "-"
                    if value is None
                    else " ".join(map(str, value))
                    if isinstance(value, tuple)
                    else str(value)
                )
                for value in what
            ]
            rows.append(
                [
                    *keys,
                    short(c[FLOWS]),
                    f"{batch.share(c):.1f}%",
                    *rate(c),
                    short(c[PACKETS]),
                    short(c[BYTES]),
                ]
            )
        return rows, len(view.query.group_by)
    rows = [["PROTO", "FROM", "TO", *rates, "BYTES"]]
    for (shape, values), c in ranked:
        ports = (flow.SPORT, flow.DPORT) if shape.ported else ()
        ends = [
            flow.endpoint(values[at], values[port] if ports else None)
            for at, port in ((flow.SRC, flow.SPORT), (flow.DST, flow.DPORT))
        ]
        rows.append([shape.proto, *ends, *rate(c), short(c[BYTES])])
    return rows, 3


def _fit(widths: list[int], room: int) -> list[int]:
    """Return the widths of columns that have to share some room: those that need little have what
    they need, the others the same of what is left.
    """
    fitted = dict.fromkeys(range(len(widths)), 0)
    left = sorted(fitted, key=lambda at: widths[at])
    while left:
        at = left.pop(0)
        fitted[at] = max(min(widths[at], room // (len(left) + 1)), 1)
        room -= fitted[at]
    return [fitted[at] for at in range(len(widths))]


def heading(batch: Batch, view: View, keys: bool) -> list[str]:
    """Return the lines above the table.

    :param keys: whether there are keys to tell of.
    """
    percent = 100 * batch.entries / batch.capacity if batch.capacity else 0
    c = batch.total
    out, back, packets = (
        short(batch.rate(number))
        for number in (c[ORIG_BYTES], c[REPLY_BYTES], c[ORIG_PACKETS] + c[REPLY_PACKETS])
    )
    over = "measuring" if batch.seconds is None else f"over {batch.seconds:.1f} s"
    lines = [
        (
            f"ct top  {batch.time:%H:%M:%S} UTC  {batch.flows} flows  {batch.entries} of"
            f" {batch.capacity} entries ({percent:.1f} %)"
        ),
        (
            f"{over}: {packets} packets/s, {out} bytes/s out, {back} back; by"
            f" {ORDERS[view.sort].shown}"
        ),
    ]
    if batch.given_up:
        lines.append(
            f"{batch.given_up} flows of small groups are left out: there are too many groups"
        )
    if keys:
        lines.append(
            "  ".join(f"{order.key} {order.shown}" for order in view.orders.values()) + "  q end"
        )
    return lines


def table(
    batch: Batch, view: View, width: int | None = None, limit: int | None = None
) -> list[str]:
    """Return the lines of the table, the headings first.

    :param width: no line is longer; None where it does not matter.
    """
    rows, texts = _texts(
        batch, view, batch.first(view.sort, view.limit if limit is None else limit)
    )
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    widths[texts:] = [max(6, number) for number in widths[texts:]]
    if width is not None:
        widths[:texts] = _fit(widths[:texts], width - sum(widths[texts:]) - len(widths) + 1)
    lines = []
    for row in rows:
        cells = [
            cut(cell, size).ljust(size) if at < texts else cell.rjust(size)
            for at, (cell, size) in enumerate(zip(row, widths))
        ]
        lines.append(" ".join(cells).rstrip()[:width])
    return lines


# ---------------------------------------------------------------- running
Open = t.Callable[[], t.ContextManager[flow_table.Source]]


def _batches(open_tables: Open, view: View, ending: stop.Stop) -> t.Iterator[Batch]:
    """Return a read each interval, the first one at the end of the first interval.

    :raises Stopped: when the process is told to end; it looks after each part of the table.
    """
    meter = Meter(view)
    start = time.monotonic()
    with open_tables() as source:
        meter.read(source, ending.check)
    while True:
        start = max(start + view.interval, time.monotonic())
        ending.wait(max(start - time.monotonic(), 0))
        with open_tables() as source:  # again each time: another generation may have taken over
            yield meter.read(source, ending.check)


def print_batches(
    open_tables: Open,
    view: View,
    put: t.Callable[[bytes], None],
    form: str,
    count: int | None,
    file: t.IO[t.Any] | None = None,
) -> int:
    """Print one read after the other, until there were enough or the process is told to end; return
    the exit status.

    :param form: ``text``, ``json`` or ``jsonl``.
    :param count: so many; None for ever.
    :param file: what ``put`` writes to; None where it never waits.
    """
    number = 0
    with stop.Stop() as ending:
        write = ending.guarded(put, file)
        try:
            for batch in _batches(open_tables, view, ending):
                if form == "text":
                    write(
                        "\n".join(
                            [
                                *([""] if number else []),
                                *heading(batch, view, keys=False),
                                *table(batch, view),
                                "",
                            ]
                        ).encode()
                    )
                else:
                    write(
                        ("" if form == "jsonl" else ",\n" if number else "[").encode()
                        + json.dumps(record(batch, view), ensure_ascii=False).encode()
                    )
                    write(b"\n" if form == "jsonl" else b"")
                number += 1
                if number == count:
                    break
        except stop.Stopped as exc:
            return exc.status
        finally:
            if form == "json" and number:
                with contextlib.suppress(stop.Stopped):  # nobody takes it
                    write(b"]\n")
    return 0


class _Ended(Exception):
    """The user has seen enough."""


class Screen:
    """The terminal, drawn on through curses.

    :param ending: tells when the process is to end.
    :param keys: the file that keys come from.
    """

    def __init__(self, window: t.Any, view: View, ending: stop.Stop, keys: int) -> None:
        self._window, self._view, self._ending, self._keys = window, view, ending, keys
        self._batch: Batch | None = None

    def draw(self, batch: Batch | None = None) -> None:
        """Draw a read, or the same one anew."""
        import curses

        self._batch = batch or self._batch
        if self._batch is None:
            return
        height, width = self._window.getmaxyx()
        top = heading(self._batch, self._view, keys=True)
        lines = [
            *top,
            *table(self._batch, self._view, max(width - 1, 1), max(height - len(top) - 1, 0)),
        ][:height]
        self._window.erase()
        for at, line in enumerate(lines):
            with contextlib.suppress(curses.error):  # the terminal has just become smaller
                # the last cell of a line is left free: a terminal may scroll when it is written
                self._window.addnstr(
                    at,
                    0,
                    line.ljust(width - 1) if at == len(top) else line,
                    width - 1,
                    curses.A_REVERSE if at == len(top) else 0,
                )
        self._window.refresh()

    def take_keys(self, seconds: float = 0.0) -> None:
        """Do what keys ask for: those that were pressed, or will be within that time.

        :raises _Ended: for the key that ends it, and where the terminal is gone.
        :raises Stopped: when the process is told to end.
        """
        import curses

        end = time.monotonic() + seconds
        # what is waited for is waited for here, where a signal counts as well
        self._window.timeout(0)
        while True:
            self._ending.check()
            key = self._window.getch()
            left = end - time.monotonic()
            if key == -1:
                if left <= 0:
                    return
                # no longer than that: that the terminal has another size is heard of by getch()
                # only
                found = self._ending.wait(min(left, _PATIENCE), {self._keys: select.POLLIN})
                if stop.gone(found.get(self._keys, 0)):
                    raise _Ended
            if key == ord("q"):
                raise _Ended
            chosen = next(
                (name for name, order in self._view.orders.items() if key == ord(order.key)), None
            )
            if chosen is not None:
                self._view.sort = chosen
            if chosen is not None or key == curses.KEY_RESIZE:
                self.draw()


def show(open_tables: Open, view: View) -> int:
    """Show one read after the other on the terminal, until the user ends it; return the exit
    status. The terminal is as it was afterwards, whatever ends it.

    :raises ConntrackError: where the terminal can not be drawn on.
    """
    try:
        import curses
    except ImportError:
        raise ConntrackError(
            "curses is missing in this Python: install it, or give --count to print."
        ) from None
    kind = os.environ.get("TERM", "")
    try:
        curses.setupterm()
        able = curses.tigetstr("cup") is not None
    except curses.error:
        able = False
    if not able:
        raise bad_value(
            "TERM",
            kind,
            "it names no terminal that can be drawn on; set it to what yours is, as xterm, or give"
            " --count to print",
        )

    def loop(window: t.Any, ending: stop.Stop) -> None:
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        screen, meter = Screen(window, view, ending, sys.stdin.fileno()), Meter(view)
        start = time.monotonic()
        while True:
            with open_tables() as source:
                screen.draw(meter.read(source, screen.take_keys))
            start = max(start + view.interval, time.monotonic())
            screen.take_keys(start - time.monotonic())

    with stop.Stop() as ending:
        try:
            curses.wrapper(loop, ending)
        except stop.Stopped as exc:
            return exc.status
        except _Ended:
            pass
    return 0


def run(
    open_tables: Open, view: View, put: t.Callable[[bytes], None], form: str, count: int | None
) -> int:
    """Show it on a terminal, or print it where there is none or some reads are asked for; return
    the exit status.
    """
    if form == "text" and count is None and sys.stdout.isatty() and sys.stdin.isatty():
        return show(open_tables, view)
    return print_batches(open_tables, view, put, form, count, sys.stdout)
