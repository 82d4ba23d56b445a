# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flows of a fleet as text: JSON lines, CSV, and a page with a picture.

There are two views: ``flows`` has a record for each host that saw a connection, ``paths`` one for
each connection, with all hosts in it.
"""

from __future__ import annotations

import functools
import typing as t

from ..core.calendar import utc
from ..core.errors import bad_value
from ..ct.picture import captions, html
from ..flows import codec as flow
from ..flows import output as flow_output
from . import merge as flow_merge

FORMS = ("jsonl", "csv", "html")
VIEWS = ("flows", "paths")
#: Addresses to draw by themselves; all others share a box.
_DRAWN = 12
#: Arrows to draw; of more, those with the most bytes.
_MOST_EDGES = 300
_SEEN = ("state", "assured", "seen_reply", "timeout", "age", "idle", "dir", "vlan")
_COUNTS = ("packets", "bytes")
OTHERS = "other addresses"


# ---------------------------------------------------------------- records
def flow_lines(connection: flow_merge.Connection) -> t.Iterator[str]:
    """Return a line of JSON for each host that saw a connection: its record, with the host and the
    path in front.
    """
    path = _dumped(connection.path, connection.ordered)
    for host, dummy, line in connection.lines:
        yield f'{{"host": {_dumped(host)}, {path}, {line.lstrip()[1:]}\n'


@functools.lru_cache(1024)
def _dumped(value: str | tuple[str, ...], ordered: bool = False) -> str:
    """Return the JSON of a host's name, or the members that tell a path."""
    text = flow_output.dumps(value)
    return (
        text
        if isinstance(value, str)
        else f'"path": {text}, "ordered": {flow_output.dumps(ordered)}'
    )


def path_record(connection: flow_merge.Connection) -> flow.Record:
    """Return a connection as one record: the highest counts, and what each host has seen.

    Counts are those of the connection's initiator and answerer, also where a host has them the
    wrong way round, which is ``turned`` then.
    """
    whole, seen = connection.whole, []
    for host, record, dummy in connection.lines:
        turned = flow_merge.is_turned(record, whole)
        sides = ("reply", "orig") if turned else ("orig", "reply")
        mine: flow.Record = {
            "host": host,
            **{name: record[name] for name in _SEEN if name in record},
        }
        mine.update(
            {
                name: {count: record[side][count] for count in _COUNTS}
                for name, side in zip(("orig", "reply"), sides)
            }
        )
        seen.append({**mine, "turned": True} if turned else mine)
    shared: flow.Record = {
        name: whole[name]
        for name in ("family", "proto", "state", "orig", "reply", "icmp", "gre", "age")
        if name in whole
    }
    return {"path": list(connection.path), "ordered": connection.ordered, **shared, "seen": seen}


class JsonLines:
    """A record on each line.

    :param view: one of VIEWS.
    """

    def __init__(self, view: str) -> None:
        self._view = view

    def begin(self) -> bytes:
        """Return nothing."""
        return b""

    def lines(self, connections: t.Iterable[flow_merge.Connection]) -> t.Iterator[bytes]:
        """Return the lines of some connections."""
        for connection in connections:
            if self._view == "paths":
                yield (flow_output.dumps(path_record(connection)) + "\n").encode()
            else:
                for line in flow_lines(connection):
                    yield line.encode()

    def write(self, connections: t.Sequence[flow_merge.Connection]) -> bytes:
        """Return the lines of some connections."""
        return b"".join(self.lines(connections))

    def end(self, merged: flow_merge.Merged, store: flow_merge.Store) -> bytes:
        """Return nothing."""
        return b""


# ---------------------------------------------------------------- CSV
_PATH_COLUMNS = (
    *("family", "proto", "state"),
    *(
        f"{side}.{name}"
        for side in ("orig", "reply")
        for name in ("src", "dst", "sport", "dport", "packets", "bytes")
    ),
    *("icmp.type", "icmp.code", "icmp.id", "gre.srckey", "gre.dstkey", "age"),
)


class Csv:
    """Comma-separated values with a line of column names, as flow_output has them, the host and the
    path in front.

    A path is its hosts with spaces between them. In the view ``paths``, ``counts`` has the packets
    of each host, there and back, as ``r1=10/9 r2=10/8``.
    """

    def __init__(self, view: str) -> None:
        self._view = view
        self._columns = _PATH_COLUMNS if view == "paths" else tuple(flow.COLUMNS)

    def begin(self) -> bytes:
        """Return the line of column names."""
        return self._text(
            [
                (
                    *(
                        ("path", "ordered", "counts")
                        if self._view == "paths"
                        else ("host", "path", "ordered")
                    ),
                    *self._columns,
                )
            ]
        )

    def write(self, connections: t.Sequence[flow_merge.Connection]) -> bytes:
        """Return the lines of some connections."""
        return self._text(row for connection in connections for row in self._rows(connection))

    def end(self, merged: flow_merge.Merged, store: flow_merge.Store) -> bytes:
        """Return nothing."""
        return b""

    def _rows(self, connection: flow_merge.Connection) -> t.Iterator[list[str]]:
        path = [" ".join(connection.path), "true" if connection.ordered else "false"]
        if self._view == "paths":
            record = path_record(connection)
            counts = " ".join(
                f"{one['host']}={one['orig']['packets']}/{one['reply']['packets']}"
                for one in record["seen"]
            )
            yield [*path, counts, *self._cells(record)]
        else:
            for host, record, dummy in connection.lines:
                yield [host, *path, *self._cells(record)]

    def _cells(self, record: flow.Record) -> t.Iterator[str]:
        for name in self._columns:
            head, dot, tail = name.partition(".")
            value = record.get(head)
            yield flow_output.cell(value.get(tail) if dot and value is not None else value)

    @staticmethod
    def _text(rows: t.Iterable[t.Sequence[str]]) -> bytes:
        return flow_output.csv_text(rows).encode()


# ---------------------------------------------------------------- the page
class Page:
    """A page that loads nothing: a picture, hosts, paths and who sends most.

    :param now: seconds since 1970, for the heading.
    """

    def __init__(self, now: float) -> None:
        self._now = now

    def begin(self) -> bytes:
        """Return nothing yet."""
        return b""

    def write(self, connections: t.Sequence[flow_merge.Connection]) -> bytes:
        """Return nothing yet."""
        return b""

    def end(self, merged: flow_merge.Merged, store: flow_merge.Store) -> bytes:
        """Return the page."""
        tables: list[html.Table] = [
            (
                "Hosts",
                ("host", "flows", "trouble"),
                [
                    *((host, number, "") for host, number in merged.flows.items()),
                    *((host, "", why) for host, why in merged.unread.items()),
                ],
            ),
            (
                "Paths",
                ("hosts", "order", "connections", "packets", "bytes"),
                [
                    (_way(one["path"], one["ordered"]), _order(one), *_numbers(one))
                    for one in merged.paths
                ],
            ),
        ]
        heads = {
            "src": "Who begins",
            "dst": "Who answers",
            "service": "Services",
            "pair": "Who talks with whom",
        }
        for name, lines in merged.top.items():
            columns = flow_merge.TOPS[name]
            tables.append(
                (
                    heads[name],
                    (*columns, "connections", "packets", "bytes"),
                    [
                        (*(one.get(column, "") for column in columns), *_numbers(one))
                        for one in lines
                    ],
                )
            )
        return html.page(graph(merged, store, utc(self._now)), tables).encode()


def _numbers(line: t.Mapping[str, t.Any]) -> tuple[int, int, int]:
    return line["connections"], line["packets"], line["bytes"]


def _way(path: t.Sequence[str], ordered: bool) -> str:
    return (" → " if ordered else ", ").join(path)


def _order(line: t.Mapping[str, t.Any]) -> str:
    return "" if len(line["path"]) == 1 else "known" if line["ordered"] else "not known"


def graph(merged: flow_merge.Merged, store: flow_merge.Store, read_at: str = "") -> captions.Graph:
    """Return the fleet as ct.picture draws it: hosts, the addresses with the most bytes, and what
    goes from where to where.

    Along a path whose order is known, an arrow leads to each next host; else one leads to each host
    and on from it.
    """
    drawn = store.addresses(_DRAWN)
    found: dict[tuple[str, str, str], dict[str, t.Any]] = {}
    for src, dst, path, ordered, state, proto, count, packets, octets in store.between(drawn):
        ends = f"address:{src}", f"address:{dst}"
        hosts = [f"host:{host}" for host in path]
        ways = (
            [[ends[0], *hosts, ends[1]]]
            if ordered
            else [[ends[0], host, ends[1]] for host in hosts]
        )
        for one, two in {pair for way in ways for pair in zip(way, way[1:])}:
            edge = found.setdefault(
                (one, two, state),
                {
                    "from": one,
                    "to": two,
                    "state": state,
                    "flows": 0,
                    "packets": 0,
                    "bytes": 0,
                    "protos": {},
                    "pairs": [],
                },
            )
            edge["flows"] += count
            edge["packets"] += packets
            edge["bytes"] += octets
            edge["protos"][proto] = edge["protos"].get(proto, 0) + count
    edges = sorted(
        found.values(), key=lambda edge: (-edge["bytes"], edge["from"], edge["to"], edge["state"])
    )
    gone = edges[_MOST_EDGES:]
    used = {edge[end] for edge in edges[:_MOST_EDGES] for end in ("from", "to")}
    places = [
        {"id": f"host:{host}", "name": host, "kind": "machine", "interfaces": []}
        for host in merged.flows
    ]
    places += [
        {"id": f"address:{address}", "name": address or OTHERS, "kind": "outside", "interfaces": []}
        for address in (*drawn, "")
        if f"address:{address}" in used
    ]
    notes = [f"Not read: {', '.join(merged.unread)}."] if merged.unread else []
    if any(len(one["path"]) > 1 and not one["ordered"] for one in merged.paths):
        notes.append("Where the order of the hosts is not known, an arrow leads to each of them.")
    return {
        "title": f"{merged.connections} connections on {len(merged.flows)} hosts",
        "note": " ".join(notes),
        "read_at": read_at,
        "places": places,
        "links": [],
        "edges": edges[:_MOST_EDGES],
        "totals": {"flows": merged.connections, "bytes": merged.bytes},
        "left_out": {
            "edges": len(gone),
            "flows": sum(edge["flows"] for edge in gone),
            "bytes": sum(edge["bytes"] for edge in gone),
        },
    }


# ---------------------------------------------------------------- which one
def form_of(dest: str, form: str | None) -> str:
    """Return the form that is asked for, or that the file's name tells.

    >>> form_of("/tmp/fleet.csv", None), form_of("/tmp/fleet", "html")
    ('csv', 'html')

    :raises ConntrackError: when neither tells.
    """
    if form is not None:
        return form
    ending = dest.rpartition(".")[2]
    if ending not in FORMS:
        raise bad_value(
            "dest", dest, f"let its name end in one of {', '.join(FORMS)}, or give format"
        )
    return ending


def output(form: str, view: str, now: float) -> flow_merge.Output:
    """Return what writes one of FORMS."""
    if form == "html":
        return Page(now)
    return JsonLines(view) if form == "jsonl" else Csv(view)
