# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ct top prints: the lines of its table, and records for programs."""

from __future__ import annotations

import typing as t

from ...flows import codec as flow
from .meter import Batch
from .view import (
    BYTES,
    FLOWS,
    ORDERS,
    ORIG_BYTES,
    ORIG_PACKETS,
    PACKETS,
    REPLY_BYTES,
    REPLY_PACKETS,
    Counts,
    Ranked,
    View,
)


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
            for number in (
                c[ORIG_PACKETS] + c[REPLY_PACKETS],
                c[ORIG_BYTES],
                c[REPLY_BYTES],
            )
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
        for number in (
            c[ORIG_BYTES],
            c[REPLY_BYTES],
            c[ORIG_PACKETS] + c[REPLY_PACKETS],
        )
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
