# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events that ct watch --save wrote: as events again, and as the flows that were there at the end."""

from __future__ import annotations

import contextlib
import datetime
import sys
import typing as t

from . import flow_record, saved_flows
from .errors import ConntrackError
from .events import Event


def events(path: str) -> t.Iterator[Event]:
    """Return the events of a file.

    :param path: ``-`` for standard input.
    :raises ConntrackError: naming the file, the line and the mend.
    """
    clock = saved_flows.SavedFlows(()).clock()
    mend = "give a file that ct watch --save or -o jsonl wrote"
    try:
        with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as lines:
            for number, line in flow_record.lines(path, lines):
                if not line.strip():
                    continue
                try:
                    one = flow_record.checked_event(flow_record.loads(line))
                except ConntrackError as exc:
                    why = exc.message.rstrip(".")
                    raise ConntrackError(f"input: {path}:{number}: {flow_record.shown(line.strip())} is no event: {mend} ({why}).") from None
                table, key, value = saved_flows.pack(one)
                yield Event(one["event"], one.get("reason", ""), one["seq"], one["time"], table, clock, key, value)
    except (OSError, UnicodeDecodeError) as exc:
        if isinstance(exc, ConntrackError):
            raise
        said = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConntrackError(f"input: {path!r} can not be read: {said}; {mend}.") from exc


class Ending:
    """The flows that were there when the last event was told: those that were told of, as they were told last, but for those that ended."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, bytes], tuple[float, dict[str, t.Any]]] = {}
        self._now = 0.0

    def add(self, record: dict[str, t.Any]) -> None:
        """Take the next event, one that flow_record.checked_event() has seen."""
        kind, when = record["event"], datetime.datetime.fromisoformat(record["time"]).timestamp()
        table, key, dummy = saved_flows.pack(record)
        self._now = max(self._now, when)
        if kind == "destroy":
            self._flows.pop((table.family, key), None)
        else:
            self._flows[table.family, key] = when, record

    def flows(self) -> t.Iterator[saved_flows.Packed]:
        """Return them, with the time that has gone by since."""
        for when, one in self._flows.values():
            gone = int(self._now - when)
            if one["timeout"] > gone:
                grown = {name: min(one[name] + gone, flow_record.MOST_SECONDS) for name in ("age", "idle")}
                yield saved_flows.pack({**one, **grown, "timeout": one["timeout"] - gone})
