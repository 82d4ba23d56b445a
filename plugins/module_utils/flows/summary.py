# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The totals, the counters and how full the tables are."""

from __future__ import annotations

import collections
import datetime
import typing as t

from ..chain import settings as chain_settings
from . import codec as flow
from .collect import Pass
from .table import Source


# ---------------------------------------------------------------- the summary
def _grouped(counters: t.Mapping[str, int], prefix: str) -> dict[str, int]:
    return {
        name[len(prefix) :]: value for name, value in counters.items() if name.startswith(prefix)
    }


def counter_summary(
    counters: t.Mapping[str, int], entries: t.Mapping[str, int]
) -> dict[str, t.Any]:
    """Return the counters by what they are about.

    :param entries: how many entries the tables of each class hold, expired ones included. An LRU
        table makes room without a word; what was made, was not deleted and is not there was
        evicted.
    """
    deleted = _grouped(counters, "deleted_")
    return {
        "created": counters["created"],
        "reopened": counters["reopened"],
        "promoted": counters["promoted"],
        "promote_failed": counters["promote_failed"],
        "deleted": deleted,
        "assured_deleted": counters["assured_deleted"],
        "evicted": max(counters["created"] - sum(deleted.values()) - sum(entries.values()), 0),
        "evicted_assured": max(
            counters["promoted"] - counters["assured_deleted"] - entries["assured"], 0
        ),
        "insert_failed": counters["insert_failed"],
        "forwarded": counters["forwarded"],
        "forward": _grouped(counters, "forward_"),
        "tracked": counters["tracked"],
        "related": counters["related"],
        "fragment": counters["fragment"],
        "invalid": _grouped(counters, "invalid_"),
        "ignored": _grouped(counters, "ignored_"),
        "untracked": _grouped(counters, "untracked_"),
    }


def _pressure(entries: int, capacity: int) -> dict[str, t.Any]:
    return {
        "entries": entries,
        "capacity": capacity,
        "percent": round(100 * entries / capacity, 1) if capacity else 0.0,
    }


def summary(done: Pass, source: Source) -> dict[str, t.Any]:
    """Return the summary of a pass: totals of the flows that match, of the tables as a whole, the
    counters, the settings in force and the clock.
    """
    timeouts, knobs = source.settings()
    entries = dict.fromkeys(flow.CLASSES, 0)
    capacity = dict.fromkeys(flow.CLASSES, 0)
    for opened in source.tables:
        entries[opened.table.flow_class] += done.entries[opened.table.name]
        capacity[opened.table.flow_class] += opened.capacity

    def totals(name: str) -> dict[str, int]:
        result: collections.Counter[str] = collections.Counter()
        for shape, number in done.shapes.items():
            result[getattr(shape, name)] += number
        return dict(sorted(result.items()))

    return {
        "flows": done.count,
        "capacity": sum(opened.capacity for opened in source.tables),
        "by_family": totals("family"),
        "by_proto": totals("proto"),
        "by_state": totals("state"),
        "assured": sum(number for shape, number in done.shapes.items() if shape.assured),
        "pressure": {
            name: _pressure(entries[name], capacity[name]) for name in reversed(flow.CLASSES)
        },
        "tables": {
            opened.table.name: {
                "class": opened.table.flow_class,
                **_pressure(done.entries[opened.table.name], opened.capacity),
            }
            for opened in source.tables
        },
        "counters": {
            **counter_summary(source.counters(), entries),
            "guests": source.guest_counters(),
        },
        "timeouts": timeouts,
        "settings": {
            name: type(chain_settings.KNOBS[name])(value) for name, value in knobs.items()
        },
        "clock": {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            "monotonic": round(done.clock.monotonic_ns / 1e9, 3),
            "jiffies": done.clock.jiffies,
            "hz": done.clock.hz,
        },
    }
