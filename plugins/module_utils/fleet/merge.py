# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One table of the flows of many hosts: the records that each host wrote, joined by connection, in
memory that does not grow with their number.

What is sorted and added up lies in a file without a name beside the result, which sqlite keeps. The
flows are gone over twice: they are read into it host by host, and come out connection by
connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sqlite3
import tempfile
import typing as t

from ..core.errors import ConntrackError, bad_value
from ..core.printable import printable
from ..flows import output as flow_output
from ..flows import record as flow_record
from ..flows.codec import Record
from . import path as flow_path

#: Lines of the top lists, unless it is told otherwise.
LIMIT = 10
#: The memory that sqlite keeps of its file, in KiB.
_CACHE_KIB = 16384
#: Connections that are handed on at once.
_BATCH = 512
_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -%d;
CREATE TABLE seen (connection TEXT, host INTEGER, line TEXT);
CREATE TABLE talk (
    src TEXT, dst TEXT, proto TEXT, port INTEGER, state TEXT, path TEXT, ordered INTEGER,
    packets INTEGER, packets_high INTEGER, bytes INTEGER, bytes_high INTEGER
);
"""
#: sqlite has no unsigned numbers of 64 bits, and a sum that goes beyond its signed ones is an
#: error. So a count is held in two parts, as many bits the lower one; no number of connections that
#: fits on a disk brings a sum of either part over.
_LOW_BITS = 32
_SUMS = "SUM(packets), SUM(packets_high), SUM(bytes), SUM(bytes_high)"
_MOST_BYTES_FIRST = f"SUM(bytes_high) * {float(1 << _LOW_BITS)} + SUM(bytes) DESC"
#: The top lists: what their lines are about. A connection counts once in them, whichever hosts saw
#: it.
TOPS = {
    "src": ("src",),
    "dst": ("dst",),
    "service": ("dst", "proto", "port"),
    "pair": ("src", "dst"),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The flows of one host.

    :ivar path: a file of records, one on each line, as ``ct list -o jsonl`` and ct_flows write
        them.
    :ivar zone: where its addresses hold: the same ones in another zone are somebody else's.
    :ivar networks: those that it is attached to.
    """

    host: str
    path: str
    zone: str = ""
    networks: tuple[flow_path.Network, ...] = ()


@dataclasses.dataclass
class Merged:
    """What came of it.

    :ivar flows: how many each host has, by its name.
    :ivar unread: why a host could not be read, by its name.
    :ivar connections: how many there are; ``joined`` is how many of them more than one host saw.
    :ivar packets: of all connections, each of which counts once, as the host has it that counted
        most; likewise ``bytes``.
    :ivar top: the lines of each of TOPS, those with the most bytes first.
    :ivar paths: hosts in their order, whether it is known, and how much went that way.
    """

    flows: dict[str, int] = dataclasses.field(default_factory=dict)
    unread: dict[str, str] = dataclasses.field(default_factory=dict)
    connections: int = 0
    joined: int = 0
    packets: int = 0
    bytes: int = 0
    top: dict[str, list[dict[str, t.Any]]] = dataclasses.field(default_factory=dict)
    paths: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    path_count: int = 0


class Connection(t.NamedTuple):
    """A connection, as all hosts that saw it have it.

    :ivar path: those hosts, in their order where ``ordered``, else by name.
    :ivar lines: (host, record, the record's text) of each, in that order.
    :ivar whole: the record of the host that has known it longest, with the highest counts of all.
    """

    path: tuple[str, ...]
    ordered: bool
    lines: list[tuple[str, Record, str]]
    whole: Record


class Output(t.Protocol):
    """What makes text of it; see merge_output.py."""

    def begin(self) -> bytes:
        """Return what stands before the first connection."""

    def write(self, connections: t.Sequence[Connection]) -> bytes:
        """Return the text of some connections."""

    def end(self, merged: Merged, store: Store) -> bytes:
        """Return what stands after the last one."""


# ---------------------------------------------------------------- connections
def connection_of(record: Record, zone: str = "") -> str:
    """Return what a connection has in common wherever it is seen, as text.

    >>> orig = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 5, "dport": 53}
    >>> back = {"src": "10.0.0.2", "dst": "10.0.0.1", "sport": 53, "dport": 5}
    >>> one, two = ({"family": "ipv4", "proto": "udp", "orig": way} for way in (orig, back))
    >>> connection_of(one) == connection_of(two) == " udp 10.0.0.1 5 10.0.0.2 53"
    True
    """
    orig, proto = record["orig"], record["proto"]
    one, two = f"{orig['src']} {orig.get('sport', '')}", f"{orig['dst']} {orig.get('dport', '')}"
    if "icmp" in record:  # both sides may ask with the same id
        query = record["icmp"]
        return f"{zone} {proto} {one}{two}{query['type']} {query['code']} {query['id']}"
    if two < one:
        one, two = two, one
    return f"{zone} {proto} {one} {two}" + (
        f" {sorted(record['gre'].values())}" if "gre" in record else ""
    )


def is_turned(record: Record, like: Record) -> bool:
    """Tell whether a record of the same connection has the other side as its initiator."""
    mine, other = record["orig"], like["orig"]
    return (mine["src"], mine.get("sport")) != (other["src"], other.get("sport"))


def _whole(records: t.Sequence[Record]) -> Record:
    """Return what is known of a connection.

    A host that picked it up in the middle may have its sides the wrong way round, so the one counts
    that has known it longest.
    """
    first = max(records, key=lambda record: record["age"])
    if len(records) == 1:
        return first
    sides: dict[str, dict[str, t.Any]] = {}
    for side, other in (("orig", "reply"), ("reply", "orig")):
        seen = [record[other if is_turned(record, first) else side] for record in records]
        sides[side] = {
            **first[side],
            "packets": max(one["packets"] for one in seen),
            "bytes": max(one["bytes"] for one in seen),
        }
    return {**first, **sides}


def total(record: Record, what: str) -> int:
    """Return packets or bytes of both directions."""
    return int(record["orig"][what]) + int(record["reply"][what])


# ---------------------------------------------------------------- the store
@contextlib.contextmanager
def _temporary_in(directory: str) -> t.Iterator[None]:
    """Let sqlite put what it sorts into a directory."""
    before = os.environ.get("SQLITE_TMPDIR")
    os.environ["SQLITE_TMPDIR"] = directory
    try:
        yield
    finally:
        if before is None:
            del os.environ["SQLITE_TMPDIR"]
        else:
            os.environ["SQLITE_TMPDIR"] = before


class Store:
    """The file that holds the flows meanwhile; a context manager. It has no name, so nothing is
    left of it whatever happens.

    :param directory: where it is; it takes about two and a half times the room of the records.
    :raises ConntrackError: when there is no room for it.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Store:
        try:
            self._exit.enter_context(_temporary_in(self._directory))
            file, path = tempfile.mkstemp(prefix=".ct_merge.", dir=self._directory)
            os.close(file)
            try:
                self._db = sqlite3.connect(path, isolation_level=None)
                self._exit.callback(self._db.close)
                self._db.executescript(_TABLES % _CACHE_KIB)
            finally:
                os.unlink(path)
            self._db.execute("BEGIN")
        except (OSError, sqlite3.Error) as exc:
            self._exit.close()
            raise ConntrackError(
                f"{self._directory}: flows can not be sorted there: {exc}. Give a directory that"
                " can be written to, with room."
            ) from exc
        return self

    def __exit__(self, *dummy: object) -> None:
        self._exit.close()

    def add(self, number: int, source: Source) -> int:
        """Read the flows of one host; return how many it has.

        :raises ConntrackError: for a file that can not be read, or holds something else; nothing of
            it is taken then.
        """
        last = self._one("SELECT COALESCE(MAX(rowid), 0) FROM seen")[0]
        try:
            self._db.executemany("INSERT INTO seen VALUES (?, ?, ?)", _read(number, source))
        except ConntrackError:
            self._db.execute("DELETE FROM seen WHERE rowid > ?", (last,))
            raise
        return int(self._one("SELECT COUNT(*) FROM seen WHERE rowid > ?", last)[0])

    def connections(
        self, sources: t.Sequence[Source], paths: flow_path.Paths
    ) -> t.Iterator[Connection]:
        """Return all connections that were added."""
        rows = self._db.execute("SELECT connection, host, line FROM seen ORDER BY connection, host")
        for dummy, group in itertools.groupby(rows, key=lambda row: row[0]):
            lines = [
                (sources[host].host, json.loads(line), line) for dummy_key, host, line in group
            ]
            whole = _whole([record for dummy_host, record, dummy_line in lines])
            path, ordered = paths.ordered(
                [host for host, dummy_record, dummy_line in lines],
                whole["orig"]["src"],
                whole["orig"]["dst"],
            )
            if len(path) > 1:
                lines.sort(key=lambda line: path.index(line[0]))
            yield Connection(path, ordered, lines, whole)

    def count(self, connections: t.Iterable[Connection]) -> None:
        """Add connections to what the lists are made of."""
        self._db.executemany(
            "INSERT INTO talk VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_talk, connections)
        )

    def tops(self, limit: int) -> dict[str, list[dict[str, t.Any]]]:
        """Return the lines of each of TOPS."""
        found = {}
        for name, columns in TOPS.items():
            listed = ", ".join(columns)
            rows = self._db.execute(
                f"SELECT {listed}, COUNT(*), {_SUMS} FROM talk GROUP BY {listed} ORDER BY"
                f" {_MOST_BYTES_FIRST}, {listed} LIMIT {limit}"
            )
            heads = (*columns, "connections", "packets", "bytes")
            found[name] = [
                {
                    head: value
                    for head, value in zip(heads, (*row[:-4], *_summed(row)))
                    if value is not None
                }
                for row in rows
            ]
        return found

    def paths(self, limit: int) -> tuple[list[dict[str, t.Any]], int]:
        """Return the paths with the most bytes, and how many there are."""
        rows = self._db.execute(
            f"SELECT path, ordered, COUNT(*), {_SUMS} FROM talk GROUP BY path, ordered ORDER BY"
            f" {_MOST_BYTES_FIRST}, path LIMIT {limit}"
        )
        found = [
            {
                "path": json.loads(row[0]),
                "ordered": bool(row[1]),
                "connections": row[2],
                **dict(zip(("packets", "bytes"), _summed(row))),
            }
            for row in rows
        ]
        return found, int(
            self._one("SELECT COUNT(*) FROM (SELECT DISTINCT path, ordered FROM talk)")[0]
        )

    def addresses(self, most: int) -> list[str]:
        """Return the addresses with the most bytes."""
        both = (
            "SELECT src AS a, bytes, bytes_high FROM talk UNION ALL SELECT dst, bytes, bytes_high"
            " FROM talk"
        )
        return [
            row[0]
            for row in self._db.execute(
                f"SELECT a FROM ({both}) GROUP BY a ORDER BY {_MOST_BYTES_FIRST}, a LIMIT {most}"
            )
        ]

    def between(
        self, addresses: t.Collection[str]
    ) -> t.Iterator[tuple[str, str, tuple[str, ...], bool, str, str, int, int, int]]:
        """Return what went between these addresses, "" standing for any other: src, dst, path,
        ordered, state, proto, connections, packets, bytes.
        """
        marks = ", ".join("?" * len(addresses))
        ends = ", ".join(
            f"CASE WHEN {end} IN ({marks}) THEN {end} ELSE '' END" for end in ("src", "dst")
        )
        rows = self._db.execute(
            f"SELECT {ends}, path, ordered, state, proto, COUNT(*), {_SUMS} FROM talk GROUP BY 1,"
            " 2, 3, 4, 5, 6",
            (*addresses, *addresses),
        )
        for row in rows:
            src, dst, path, ordered, state, proto, count = row[:7]
            yield (
                src,
                dst,
                tuple(json.loads(path)),
                bool(ordered),
                state,
                proto,
                count,
                *_summed(row),
            )

    def _one(self, query: str, *words: t.Any) -> tuple[t.Any, ...]:
        return t.cast("tuple[t.Any, ...]", self._db.execute(query, words).fetchone())


@functools.lru_cache(1024)
def _dumped(path: tuple[str, ...]) -> str:
    return json.dumps(path)


def _talk(connection: Connection) -> tuple[t.Any, ...]:
    record = connection.whole
    orig = record["orig"]
    packets, octets = total(record, "packets"), total(record, "bytes")
    low = (1 << _LOW_BITS) - 1
    counts = packets & low, packets >> _LOW_BITS, octets & low, octets >> _LOW_BITS
    return (
        orig["src"],
        orig["dst"],
        record["proto"],
        orig.get("dport"),
        record["state"],
        _dumped(connection.path),
        connection.ordered,
        *counts,
    )


def _summed(row: t.Sequence[t.Any]) -> tuple[int, int]:
    """Return packets and bytes of a row that ends with _SUMS."""
    packets, packets_high, octets, octets_high = row[-4:]
    return packets + (packets_high << _LOW_BITS), octets + (octets_high << _LOW_BITS)


def _read(number: int, source: Source) -> t.Iterator[tuple[str, int, str]]:
    """Return the rows of a host's flows. What is kept of a line is what its record was read as, and
    not its text.

    :raises ConntrackError: naming the line that is no record, and the field.
    """
    try:
        with open(source.path, encoding="utf-8") as lines:
            for at, line in flow_record.lines(source.path, lines):
                try:
                    record = flow_record.checked(flow_record.loads(line))
                except ConntrackError as exc:
                    why = exc.message.rstrip(".")
                    raise ConntrackError(
                        f"{source.path}:{at}: that is no whole flow, as ct list -o jsonl writes it"
                        f" ({why})."
                    ) from None
                yield connection_of(record, source.zone), number, flow_output.dumps(record)
    except (OSError, UnicodeDecodeError) as exc:
        said = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConntrackError(f"{source.path} can not be read: {said}.") from exc


# ---------------------------------------------------------------- merging
def merge(
    sources: t.Sequence[Source],
    directory: str,
    output: Output | None = None,
    put: t.Callable[[bytes], object] | None = None,
    limit: int = LIMIT,
    also: t.Callable[[t.Sequence[Connection]], object] | None = None,
    unread: t.Mapping[str, str] | None = None,
) -> Merged:
    """Merge the flows of hosts.

    :param directory: where the flows are sorted.
    :param output: makes text of them, which is ``put``.
    :param limit: lines of the lists.
    :param also: gets the connections besides, some at a time.
    :param unread: why other hosts have no file, by name.
    :raises ConntrackError: when no host can be read at all, and when there is no room.
    """
    names = [source.host for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise bad_value("sources", name, "it is there twice; give each host once")
    merged = Merged(
        unread={printable(host): printable(why) for host, why in (unread or {}).items()}
    )
    put = put or (lambda dummy: None)
    try:
        with Store(directory) as store:
            for number, source in enumerate(sources):
                try:
                    merged.flows[source.host] = store.add(number, source)
                except ConntrackError as exc:
                    merged.unread[source.host] = exc.message
            if not merged.flows:
                told = "; ".join(
                    f"{host}: {why.rstrip('.')}" for host, why in merged.unread.items()
                )
                raise ConntrackError(
                    f"sources: none of the hosts could be read: {told or 'none is given'}.",
                    unread=merged.unread,
                )
            paths = flow_path.Paths({source.host: source.networks for source in sources})
            found = store.connections(sources, paths)
            if output:
                put(output.begin())
            while some := list(itertools.islice(found, _BATCH)):
                _count(merged, some)
                store.count(some)
                if output:
                    put(output.write(some))
                if also:
                    also(some)
            merged.top = store.tops(limit)
            merged.paths, merged.path_count = store.paths(limit)
            if output:
                put(output.end(merged, store))
    except sqlite3.Error as exc:
        raise ConntrackError(
            f"{directory}: flows can not be sorted there: {exc}. Give a directory with room."
        ) from exc
    return merged


def _count(merged: Merged, connections: t.Iterable[Connection]) -> None:
    for connection in connections:
        merged.connections += 1
        merged.joined += len(connection.path) > 1
        merged.packets += total(connection.whole, "packets")
        merged.bytes += total(connection.whole, "bytes")


def parse_source(number: int, given: t.Mapping[str, t.Any]) -> Source:
    """Return a source as the module ct_merge gets it.

    :raises ConntrackError: for a network that is none, and a name that may not be printed.
    """
    for name in ("host", "zone"):
        text = str(given.get(name) or "")
        if printable(text) != text:
            raise bad_value(
                f"sources[{number}].{name}", text, "give a name without control characters"
            )
    networks = flow_path.parse_networks(f"sources[{number}].networks", given.get("networks") or ())
    return Source(str(given["host"]), str(given["path"]), str(given.get("zone") or ""), networks)
