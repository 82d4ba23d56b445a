# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flows as text: json, jsonl, csv, table, and the lines of ``conntrack -L``.

A writer turns flows into bytes piece by piece, so that a table of any size can be written in
bounded memory. The lines of json, jsonl, csv and conntrack come from templates: what
:func:`flow.record` or :func:`conntrack_line` makes of a shape whose values are placeholders. So
each form is described once, and a line costs one formatting operation.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import operator
import re
import typing as t

from ..core.errors import bad_value
from ..core.printable import printable
from . import codec as flow

#: conntrack names this protocol and prints ports for it, although the kernel tracks it by number
#: only.
_DCCP = 33
#: A character of the private use area: no value and no key of a record holds it.
_MARK = "\ue000"
_PLACEHOLDERS = tuple(f"{_MARK}{index}{_MARK}" for index in range(len(flow.VALUES)))
_FOUND = re.compile(f'("?){_MARK}([0-9]+){_MARK}\\1')
_Template = tuple[bytes, t.Optional[t.Callable[[flow.Values], t.Any]]]


def _compiled(text: str) -> _Template:
    """Return the format string for a text with placeholders in it, and what picks its arguments:
    None where it takes all values in their order.
    """
    indexes = [int(index) for dummy, index in _FOUND.findall(text)]
    # a placeholder in quotes is text or a number: only text keeps its quotes
    form = _FOUND.sub(
        lambda found: f"{found[1]}%s{found[1]}" if int(found[2]) in flow.ADDRESSES else "%d",
        text.replace("%", "%%"),
    )
    if indexes == list(range(len(flow.VALUES))):
        return form.encode(), None
    return form.encode(), operator.itemgetter(*indexes) if indexes else lambda dummy: ()


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def dumps(value: object) -> str:
    """Return ``value`` as one line of JSON."""
    return _ENCODER.encode(value)


# ---------------------------------------------------------------- conntrack -L
def conntrack_line(
    shape: flow.Shape, v: flow.Values, extended: bool = False, event: str = ""
) -> str:
    """Return the flow as a line of ``conntrack -L`` (conntrack-tools 1.4.7), without the line's
    end.

    :param extended: as ``-o extended``: the network protocol's name and number in front.
    :param event: as ``conntrack -E`` has it where this became of the flow, one of
        chain.EVENT_KINDS; the counts are told when it ends.
    """
    parts = [f"{f'[{event.upper()}]':>9}"] if event else []
    parts += [f"{shape.family:<8} {2 if shape.family == 'ipv4' else 10}"] if extended else []
    # as libnetfilter_conntrack: it names the protocols that it knows, any other is "unknown"
    name = "dccp" if shape.number == _DCCP else "unknown" if shape.proto.isdigit() else shape.proto
    parts.append(
        f"{name:<8} {shape.number}"
        if event == "destroy"
        else f"{name:<8} {shape.number} {v[flow.TIMEOUT]}"
    )
    if shape.machine:
        parts.append(shape.state)
    counts = event in ("", "destroy")
    parts.append(_tuple(shape, v, False, counts))
    if not shape.seen_reply:
        parts.append("[UNREPLIED]")
    parts.append(_tuple(shape, v, True, counts))
    if shape.assured:
        parts.append("[ASSURED]")
    if not event:
        parts.append("mark=0 use=1")
    return " ".join(parts)


def _tuple(shape: flow.Shape, v: flow.Values, reply: bool, counts: bool) -> str:
    """Return one direction of a conntrack line."""
    first = flow.REPLY_SRC if reply else flow.SRC
    src, dst, sport, dport, packets, octets = v[first : first + 6]
    parts = [f"src={src} dst={dst}"]
    if shape.icmp:
        kind, code = shape.icmp
        answers = flow.ICMP_ANSWERS[shape.number]
        parts.append(
            f"type={answers.get(kind, kind) if reply else kind} code={code} id={v[flow.SPORT]}"
        )
    elif shape.gre:
        srckey, dstkey = reversed(shape.gre) if reply else shape.gre
        parts.append(f"srckey={srckey:#x} dstkey={dstkey:#x}")
    elif shape.number == _DCCP:
        parts.append("sport=0 dport=0")
    elif shape.ported:
        parts.append(f"sport={sport} dport={dport}")
    if counts:
        parts.append(f"packets={packets} bytes={octets}")
    return " ".join(parts)


# ---------------------------------------------------------------- writers
class Writer:
    """Turns flows into bytes: ``begin()``, ``write()`` as often as one likes, ``end()``. This one
    does jsonl: a record on each line.

    :param fields: what to show of each flow; empty for everything.
    :param window: whether to show the windows of TCP flows.
    :ivar as_bytes: the writer takes flows whose addresses are bytes, and makes its lines from
        templates.
    """

    def __init__(self, fields: t.Sequence[str] = (), window: bool = False) -> None:
        self.fields = tuple(fields)
        self.window = window
        self.as_bytes = not window and not flow.TOTALS.intersection(fields)
        self._templates: flow.Cache[flow.Shape, _Template] = flow.Cache(
            lambda shape: _compiled(self.line((shape, _PLACEHOLDERS, ())))
        )

    def begin(self) -> bytes:
        """Return what stands before the first flow."""
        return b""

    def end(self) -> bytes:
        """Return what stands after the last flow."""
        return b""

    def write(self, flows: t.Iterable[flow.Flow]) -> bytes:
        """Return the bytes of some flows."""
        if not self.as_bytes:
            return "".join([self.line(item) for item in flows]).encode()
        templates, pieces = self._templates, []
        for shape, values, dummy in flows:
            form, pick = templates[shape]
            pieces.append(form % (pick(values) if pick else values))
        return b"".join(pieces)

    def line(self, item: flow.Flow) -> str:
        """Return the text of one flow."""
        return dumps(flow.record_with(item, self.fields, self.window)) + "\n"


class JsonWriter(Writer):
    """One JSON list, a record on each line."""

    def __init__(self, fields: t.Sequence[str] = (), window: bool = False) -> None:
        super().__init__(fields, window)
        self._empty = True

    def begin(self) -> bytes:
        """Open the list."""
        return b"["

    def write(self, flows: t.Iterable[flow.Flow]) -> bytes:
        """Return the records, parted by commas from each other and from those before."""
        text = super().write(flows)
        if text and self._empty:
            self._empty = False
            return text[1:]
        return text

    def line(self, item: flow.Flow) -> str:
        """Return the record of one flow, with what parts it from the one before."""
        return ",\n" + super().line(item)[:-1]

    def end(self) -> bytes:
        """Close the list."""
        return b"]\n" if self._empty else b"\n]\n"


class ConntrackWriter(Writer):
    """The lines of ``conntrack -L``.

    :param extended: as ``-o extended``.
    """

    def __init__(self, extended: bool = False) -> None:
        super().__init__()
        self._extended = extended

    def line(self, item: flow.Flow) -> str:
        """Return the line of one flow."""
        return conntrack_line(item[0], item[1], self._extended) + "\n"


def cell(value: object) -> str:
    """Return a value as people and spreadsheets read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return " ".join(str(one) for one in value)
    return str(value)


#: What a spreadsheet takes for the beginning of a formula, in the wide forms of East Asian scripts,
#: too (OWASP, CSV injection).
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def csv_text(rows: t.Iterable[t.Sequence[str]]) -> str:
    """Return lines of comma-separated values (RFC 4180, lines ended by a line feed).

    A cell that a spreadsheet would calculate has an apostrophe in front, which makes it text there;
    control characters stand there as JSON escapes them.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [[_csv_cell(one) for one in row] for row in rows]
    )
    return text.getvalue()


def _csv_cell(value: str) -> str:
    value = printable(value)
    return f"'{value}" if value.lstrip().startswith(_FORMULA) else value


class CsvWriter(Writer):
    """Comma-separated values (RFC 4180, lines end with a line feed), column names first."""

    def __init__(self, fields: t.Sequence[str] = ()) -> None:
        super().__init__(expand(fields) or tuple(flow.COLUMNS))
        self._columns = [flow.ALL_COLUMNS[name] for name in self.fields]

    def begin(self) -> bytes:
        """Return the line of column names."""
        return csv_text([self.fields]).encode()

    def line(self, item: flow.Flow) -> str:
        """Return the line of one flow."""
        return csv_text([[cell(column(item[0], item[1])) for column in self._columns]])


def expand(fields: t.Sequence[str]) -> tuple[str, ...]:
    """Return ``fields`` with each object replaced by the columns that it holds."""
    return tuple(
        itertools.chain.from_iterable(
            (
                [name for name in flow.COLUMNS if name.startswith(f"{field}.")]
                if field in flow.OBJECTS
                else [field]
            )
            for field in fields
        )
    )


def _endpoint(shape: flow.Shape, v: flow.Values, address: int, port: int) -> str:
    return flow.endpoint(v[address], v[port] if shape.ported else None)


def _note(shape: flow.Shape, v: flow.Values) -> str:
    notes = ["assured"] if shape.assured else [] if shape.seen_reply else ["unreplied"]
    if shape.icmp:
        notes.append(f"type {shape.icmp[0]} code {shape.icmp[1]} id {v[flow.SPORT]}")
    if shape.gre and any(shape.gre):
        notes.append(f"call {shape.gre[1]}")
    if shape.vlan:
        notes.append(f"vlan {cell(shape.vlan)}")
    return ", ".join(notes)


#: The columns of the table for people: heading, whether it is a number, text.
_TABLE: tuple[tuple[str, bool, t.Callable[[flow.Shape, flow.Values], str]], ...] = (
    ("PROTO", False, lambda shape, v: shape.proto),
    ("STATE", False, lambda shape, v: shape.state),
    ("FROM", False, lambda shape, v: _endpoint(shape, v, flow.SRC, flow.SPORT)),
    ("TO", False, lambda shape, v: _endpoint(shape, v, flow.DST, flow.DPORT)),
    ("PACKETS", True, lambda shape, v: str(v[flow.ORIG_PACKETS])),
    ("BYTES", True, lambda shape, v: str(v[flow.ORIG_BYTES])),
    ("BACK PACKETS", True, lambda shape, v: str(v[flow.REPLY_PACKETS])),
    ("BACK BYTES", True, lambda shape, v: str(v[flow.REPLY_BYTES])),
    ("RELATED", True, lambda shape, v: str(v[flow.RELATED_PACKETS])),
    ("LEFT", True, lambda shape, v: f"{v[flow.TIMEOUT]}s"),
    ("IDLE", True, lambda shape, v: f"{v[flow.IDLE]}s"),
    ("DIR", False, lambda shape, v: shape.dir),
    ("NOTE", False, _note),
)


def _column_text(name: str) -> t.Callable[[flow.Shape, flow.Values], str]:
    return lambda shape, v: cell(flow.ALL_COLUMNS[name](shape, v))


#: Flows by which the columns of a table are measured.
_MEASURED = 256


class TableWriter(Writer):
    """Columns for people. They are as wide as their heading and the first flows need, which are
    held back until there are enough; later ones may stand out.
    """

    def __init__(self, fields: t.Sequence[str] = ()) -> None:
        super().__init__(fields)
        self.as_bytes = False
        self._columns = (
            tuple((name, False, _column_text(name)) for name in expand(fields)) or _TABLE
        )
        self._widths: list[int] | None = None
        self._held: list[list[str]] = []

    def write(self, flows: t.Iterable[flow.Flow]) -> bytes:
        """Return a line for each flow, after the headings when they are the first ones."""
        rows = [
            [text(shape, values) for dummy, dummy_number, text in self._columns]
            for shape, values, dummy in flows
        ]
        if self._widths is None:
            self._held += rows
            return self._measured() if len(self._held) >= _MEASURED else b""
        return "".join(map(self._line, rows)).encode()

    def _measured(self) -> bytes:
        """Return the headings and the lines of the first flows."""
        rows, self._held = (
            [[heading for heading, dummy, dummy_text in self._columns], *self._held],
            [],
        )
        self._widths = [max(map(len, cells)) for cells in zip(*rows)]
        return "".join(map(self._line, rows)).encode()

    def _line(self, cells: t.Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if column[1] else cell.ljust(width)
            for cell, width, column in zip(cells, self._widths or (), self._columns)
        )
        return "  ".join(aligned).rstrip() + "\n"

    def end(self) -> bytes:
        """Return the headings, and what was held back, where there were few flows."""
        return self._measured() if self._widths is None else b""


# ---------------------------------------------------------------- conntrack -S
#: Outcomes, besides the ignored ones, of frames that met an entry or made one; and of those that
#: nothing but the chain is to blame for.
_MET = (
    "tracked",
    "related",
    "invalid_tcp_state",
    "invalid_tcp_window",
    "invalid_tcp_rst",
    "invalid_sctp_tag",
    "invalid_sctp_state",
)
#: What guests dropped, beside the names of chain.COUNTERS.
GUEST_DROPPED = "guest_dropped"
_FAILED = ("untracked_no_entry", "untracked_contended", "untracked_no_meta", "untracked_no_slot")


def stats_lines(cpus: t.Iterable[t.Mapping[str, int]], evicted: int) -> str:
    """Return the chain's counters as lines of ``conntrack -S`` (conntrack-tools 1.4.7).

    ``found`` are the frames that met an entry, ``insert`` the entries made, ``drop`` the frames
    that guests dropped, ``error`` those that the chain failed on. What has no meaning here is 0: no
    look-up starts over, and of two CPUs that make the same entry one uses the other's.

    :param cpus: for each CPU, by number, its counters by the names of chain.COUNTERS, and
        GUEST_DROPPED where there are guests.
    :param evicted: entries that made room for others. Nobody knows on which CPU: the first line has
        them all.
    """
    return "".join(
        _stats_line(number, cpu, 0 if number else evicted) for number, cpu in enumerate(cpus)
    )


def _stats_line(number: int, cpu: t.Mapping[str, int], evicted: int) -> str:
    met = sum(value for name, value in cpu.items() if name in _MET or name.startswith("ignored_"))
    values = {
        "found": max(met - cpu["created"], 0),
        "invalid": sum(value for name, value in cpu.items() if name.startswith("invalid_")),
        "insert": cpu["created"],
        "insert_failed": cpu["insert_failed"],
        "drop": cpu.get(GUEST_DROPPED, 0),
        "early_drop": evicted,
        "error": sum(cpu[name] for name in _FAILED),
        "search_restart": 0,
        "clash_resolve": 0,
        "chaintoolong": 0,
    }
    return (
        f"cpu={number:<4}\t" + "".join(f"{name}={value} " for name, value in values.items()) + "\n"
    )


FORMATS = ("json", "jsonl", "table", "csv", "conntrack")
#: The form that shows the counters instead of flows.
STATS = "stats"


def writer(
    form: str, fields: t.Sequence[str] = (), extended: bool = False, window: bool = False
) -> Writer:
    """Return a writer of one of FORMATS.

    :param fields: what to show of each flow; empty for everything.
    :param extended: for ``conntrack``: as ``conntrack -o extended``.
    :param window: for ``json`` and ``jsonl``: whether to show the windows of TCP flows.
    :raises ConntrackError: when the others do not fit the format.
    """
    if form not in FORMATS:
        raise bad_value("format", form, f"give one of {', '.join(FORMATS)}")
    if window and form not in ("json", "jsonl"):
        raise bad_value(
            "window",
            True,
            f"the format {form} has no place for it; leave it out, or use json or jsonl",
        )
    if form == "conntrack":
        if fields:
            raise bad_value(
                "fields", list(fields), "the format conntrack has a fixed form; leave fields out"
            )
        return ConntrackWriter(extended)
    if form in ("json", "jsonl"):
        return (JsonWriter if form == "json" else Writer)(fields, window)
    return (TableWriter if form == "table" else CsvWriter)(fields)
