# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events that ct watch --save wrote: as events again, and as the flows at the end."""

from __future__ import annotations

import collections.abc as c
import contextlib
import datetime
import ipaddress
import sys
import typing as t

from ..chain import counters as chain_counters
from ..chain import layout as chain_layout
from ..chain.clock import Clock
from ..core.errors import ConntrackError
from . import codec as flow
from . import record as flow_record
from .events import Event
from .table import BATCH, OpenTable

#: Two ticks a second, so that a flow with less than a second left has time left; all differences
#: fit into 32 bits.
_HZ = 2
_NOW = 1 << 31
_NUMBERS = {name: number for number, name in flow.PROTOCOLS.items()}
#: One table a family holds its flows in the order of the file.
_TABLES = {table.family: table for table in flow.TABLES if table.flow_class == "assured"}
#: What ct_merge puts in front of a record.
_ALSO = ("host", "path", "ordered")
Packed = tuple[flow.Table, bytes, bytes]


def pack(record: t.Mapping[str, t.Any]) -> Packed:
    """Return the entry that gives this record again.

    :param record: one that flow_record.checked() has seen.
    """
    table = _TABLES[record["family"]]
    number = _NUMBERS.get(record["proto"])
    number = int(record["proto"]) if number is None else number
    orig, reply, related = record["orig"], record["reply"], record["related"]
    sport, dport = orig.get("sport", 0), orig.get("dport", 0)
    if "icmp" in record:
        sport, dport = record["icmp"]["id"], record["icmp"]["type"] << 8 | record["icmp"]["code"]
    elif "gre" in record:
        dport = record["gre"]["dstkey"]
    ends = [
        (ipaddress.ip_address(orig["src"]).packed, sport),
        (ipaddress.ip_address(orig["dst"]).packed, dport),
    ]
    swapped = ends[0] > ends[1]
    (low, low_port), (high, high_port) = sorted(ends)
    ctl = _state(number, record["state"])
    ctl |= chain_layout.CTL_SEEN_REPLY if record["seen_reply"] else 0
    ctl |= chain_layout.CTL_ASSURED if record["assured"] else 0
    ctl |= chain_layout.CTL_EGRESS if flow.DIRECTIONS.index(record["dir"]) else 0
    ctl |= chain_layout.CTL_ORIG_HI if swapped else 0
    tags = record.get("vlan", ())
    ctl |= len(tags) << chain_layout.CTL_VLANS_SHIFT
    for tag, shift in zip(
        tags, (chain_layout.CTL_VLAN_OUTER_SHIFT, chain_layout.CTL_VLAN_INNER_SHIFT)
    ):
        ctl |= tag << shift
    ctl |= chain_layout.CTL_AGGREGATED if record.get("aggregated") else 0
    key = table.key.pack(
        table.address.unpack(low)[0], table.address.unpack(high)[0], low_port, high_port, number, 0
    )
    value = flow.VIEW.pack(
        *(orig["packets"], orig["bytes"], reply["packets"], reply["bytes"], ctl),
        (_NOW + _HZ * record["timeout"] + 1) & 0xFFFFFFFF,
        (_NOW - _HZ * record["idle"]) & 0xFFFFFFFF,
        _NOW // _HZ - record["age"],
        *(related["packets"], related["bytes"]),
    )
    return table, key, value


def _state(number: int, name: str) -> int:
    """Return the bits of a state; those of protocols without a state machine follow from the
    others.
    """
    names = flow.STATES.get(number, ())
    if name in names:
        return names.index(name)
    return 0 if name in flow.PLAIN_STATES else int(name)


class SavedFlows:
    """The flows of a file, with the methods of flow_table.FlowTables that readers need."""

    def __init__(self, packed: c.Iterable[Packed]) -> None:
        self._keys = {family: bytearray() for family in _TABLES}
        self._values = {family: bytearray() for family in _TABLES}
        for table, key, value in packed:
            self._keys[table.family] += key
            self._values[table.family] += value
        self.tables = tuple(
            OpenTable(table, -1, len(self._keys[family]) // table.key.size)
            for family, table in _TABLES.items()
        )

    @classmethod
    def load(cls, path: str) -> SavedFlows:
        """Read what ``ct list -o json`` or ``-o jsonl`` wrote: a record on each line.

        :param path: ``-`` for standard input.
        :raises ConntrackError: naming the file, the line and the mend.
        """
        try:
            with (
                contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8")
            ) as lines:
                return cls(_packed(path, lines))
        except (OSError, UnicodeDecodeError) as exc:
            if isinstance(exc, ConntrackError):
                raise
            said = exc.strerror if isinstance(exc, OSError) else "it is no text"
            raise ConntrackError(
                f"input: {path!r} can not be read: {said}. Give a file that ct list -o json or -o"
                " jsonl wrote."
            ) from exc

    def clock(self) -> Clock:
        """Return the instant at which the file was written."""
        return Clock(_NOW, _HZ, 0)

    def settings(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return none: a file has no settings."""
        return {}, {}

    def cpu_counters(self) -> list[dict[str, int]]:
        """Return none: a file has no counters."""
        return []

    def counters(self) -> dict[str, int]:
        """Return zeros: a file has no counters."""
        return dict.fromkeys(chain_counters.COUNTERS, 0)

    def guest_counters(self) -> dict[str, dict[str, int]]:
        """Return none: a file has no guests."""
        return {}

    def promoted(self) -> int:
        """Return 0: nothing moves in a file."""
        return 0

    def batches(self, opened: OpenTable) -> t.Iterator[tuple[int, memoryview, memoryview]]:
        """Return the flows of a family in batches; see flow_table.FlowTables.batches()."""
        size, other = opened.table.key.size, flow.VIEW.size
        keys, values = (
            memoryview(self._keys[opened.table.family]),
            memoryview(self._values[opened.table.family]),
        )
        for start in range(0, opened.capacity, BATCH):
            stop = min(start + BATCH, opened.capacity)
            yield (
                stop - start,
                keys[start * size : stop * size],
                values[start * other : stop * other],
            )

    def lookup(self, opened: OpenTable, key: bytes) -> bytes | None:
        """Return nothing: entries of a file are not looked up."""
        return None

    def delete(self, opened: OpenTable, keys: t.Sequence[bytes]) -> int:
        """Delete nothing: a file is only read."""
        return 0

    def count_deleted(self, numbers: t.Mapping[str, int]) -> None:
        """Count nothing: a file is only read."""


def _texts(path: str, file: t.TextIO) -> t.Iterator[tuple[int, str]]:
    """Return the records of a file with their lines: a record on each line, or a list of which each
    line has one.

    :raises ConntrackError: for a list that does not end, which was cut off, and for what follows
        its end.
    """
    opened = closed = begun = False
    for number, line in flow_record.lines(path, file):
        text = line.strip()
        if not text:
            continue
        if closed:
            raise ConntrackError(
                f"input: {path}:{number}: something follows the end of the list. Give one file at a"
                " time."
            )
        if not begun and text.startswith("["):
            opened, text = True, text[1:]
        begun = True
        if text.endswith("]"):
            closed, text = True, text[:-1]
        text = text.strip().strip(",").strip()
        if text:
            yield number, text
    if opened and not closed:
        raise ConntrackError(
            f"input: {path}: it ends too early: the list is not closed. It was cut off: write it"
            " again."
        )


def _packed(path: str, file: t.TextIO) -> t.Iterator[Packed]:
    """Return the flows of a file. Of events they are those that were there at the end."""
    ending = None
    for number, text in _texts(path, file):
        try:
            record = flow_record.loads(text)
            if not isinstance(record, dict) or "event" not in record:
                yield pack(flow_record.checked(record, _ALSO))
                continue
            if ending is None:
                ending = Ending()
            ending.add(flow_record.checked_event(record))
        except ConntrackError as exc:
            why = exc.message.rstrip(".")
            raise ConntrackError(
                f"input: {path}:{number}: {flow_record.shown(text)} is no whole flow: "
                f"give a file that ct list -o json or -o jsonl wrote, without --fields ({why})."
            ) from None
    if ending is not None:
        yield from ending.flows()


def events(path: str) -> t.Iterator[Event]:
    """Return the events of a file.

    :param path: ``-`` for standard input.
    :raises ConntrackError: naming the file, the line and the mend.
    """
    clock = SavedFlows(()).clock()
    mend = "give a file that ct watch --save or -o jsonl wrote"
    try:
        with (
            contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8")
        ) as lines:
            for number, line in flow_record.lines(path, lines):
                if not line.strip():
                    continue
                try:
                    one = flow_record.checked_event(flow_record.loads(line))
                except ConntrackError as exc:
                    why = exc.message.rstrip(".")
                    raise ConntrackError(
                        f"input: {path}:{number}: {flow_record.shown(line.strip())} is no event:"
                        f" {mend} ({why})."
                    ) from None
                table, key, value = pack(one)
                yield Event(
                    one["event"],
                    one.get("reason", ""),
                    one["seq"],
                    one["time"],
                    table,
                    clock,
                    key,
                    value,
                )
    except (OSError, UnicodeDecodeError) as exc:
        if isinstance(exc, ConntrackError):
            raise
        said = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConntrackError(f"input: {path!r} can not be read: {said}; {mend}.") from exc


class Ending:
    """The flows that were there when the last event was told: those that were told of, as they were
    told last, but for those that ended.
    """

    def __init__(self) -> None:
        self._flows: dict[tuple[str, bytes], tuple[float, dict[str, t.Any]]] = {}
        self._now = 0.0

    def add(self, record: dict[str, t.Any]) -> None:
        """Take the next event, one that flow_record.checked_event() has seen."""
        kind, when = record["event"], datetime.datetime.fromisoformat(record["time"]).timestamp()
        table, key, dummy = pack(record)
        self._now = max(self._now, when)
        if kind == "destroy":
            self._flows.pop((table.family, key), None)
        else:
            self._flows[table.family, key] = when, record

    def flows(self) -> t.Iterator[Packed]:
        """Return them, with the time that has gone by since."""
        for when, one in self._flows.values():
            gone = int(self._now - when)
            if one["timeout"] > gone:
                grown = {
                    name: min(one[name] + gone, flow_record.MOST_SECONDS)
                    for name in ("age", "idle")
                }
                yield pack({**one, **grown, "timeout": one["timeout"] - gone})
