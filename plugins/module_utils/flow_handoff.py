# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry live flows from one host's tables to another's, as a stream of bytes that says what it is made of.

The stream: a line that names the format, a line of JSON (:data:`Header`), frames of entries as the tables have them, and a last frame with their number. Each
frame has the clock at which it was read and a checksum. So a reader knows clock, jiffies a second and layout of the host that wrote it, what is cut off or
damaged is seen, and neither side holds more than a frame. What an entry becomes in the other layout is schema.Translator's to say, as in an upgrade: by
name, and TCP windows begin anew with the next segment of each side, for what passes meanwhile is not in them.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
import sys
import time
import typing as t
import zlib

from . import chain, flow, flow_filter, flow_table, inheritance, schema
from .clock import Clock, utc
from .errors import ConntrackError, bad_value

MAGIC = "ebpf.conntrack flows"
FORMAT = 1
#: What becomes of a flow that is live here as well.
CONFLICTS = ("keep", "newer", "replace")
#: format, byte order, jiffies a second, layout, schema.digest() and schema.describe() of the tables, host, seconds since 1970.
Header = dict[str, t.Any]
_FAMILIES = tuple(flow.FAMILIES)
_ENTRIES, _END = 1, 2
#: kind, family, entries, jiffies64, bytes that follow, their CRC-32. The last frame's entries are those of all frames.
_FRAME = struct.Struct(">BBIQII")
#: More than any frame has; what says so is damaged.
_MOST_BYTES = 1 << 24
#: Of the first two lines.
_MOST_LINE = 1 << 16
_MASK32 = 0xFFFFFFFF
_AT = {name: number for number, (name, dummy) in enumerate(chain.ENTRY_FIELDS)}
#: Protocols in whose entries ``last_end`` is no clock.
_NO_CLOCK = (flow.TCP, 132)


# ---------------------------------------------------------------- writing
def export(source: flow_table.Source, filters: flow_filter.Filters, put: t.Callable[[bytes], object]) -> int:
    """Write the live flows that match; return how many.

    :param put: takes the next piece.
    """
    description = schema.describe()
    header: Header = {
        "byteorder": sys.byteorder,
        "hz": source.clock().hz,
        "layout": chain.LAYOUT_VERSION,
        "schema": f"{schema.digest(description):016x}",
        "description": description,
        "host": socket.gethostname(),
        "time": round(time.time(), 3),
    }
    put(f"{MAGIC} {FORMAT}\n{json.dumps(header, separators=(',', ':'))}\n".encode())
    total = 0
    query = flow_filter.Query(filters)
    for flows in flow_table.Pass(source, query, True, True, None, False).batches():
        if flows:
            # a batch is of one table
            put(_frame(_ENTRIES, flows[0][0].family, len(flows), source.clock().jiffies, b"".join([row[2] + row[3] for dummy, dummy_values, row in flows])))
            total += len(flows)
    put(_frame(_END, _FAMILIES[0], total, source.clock().jiffies, b""))
    return total


def _frame(kind: int, family: str, count: int, jiffies: int, data: bytes) -> bytes:
    return _FRAME.pack(kind, _FAMILIES.index(family), count, jiffies, len(data), zlib.crc32(data)) + data


# ---------------------------------------------------------------- reading
class Frame(t.NamedTuple):
    """Entries of one family, as the tables of whoever wrote them had them at ``jiffies``: ``data`` has keys and values in turn."""

    family: str
    jiffies: int
    data: bytes


class Reader:
    """What export() wrote, from an open file.

    :ivar header: what it says of itself.
    :raises ConntrackError: for what is none, is of a later release, or can not be read on this machine.
    """

    def __init__(self, file: t.BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        first = file.readline(_MOST_LINE).decode("ascii", "replace").split()
        if " ".join(first[:-1]) != MAGIC:
            raise self._refuse("it is not what ct export wrote")
        if first[-1] != str(FORMAT):
            raise self._refuse(f"it has format {first[-1]}, this release reads format {FORMAT}: use the release that wrote it on both hosts")
        try:
            self.header: Header = json.loads(file.readline(_MOST_LINE))
            description = self.header["description"]
            damaged = f"{schema.digest(description):016x}" != self.header["schema"] or int(self.header["hz"]) <= 0
        except (ValueError, LookupError, TypeError):
            damaged = True
        if damaged:
            raise self._refuse("its header is damaged")
        if self.header["byteorder"] != sys.byteorder:
            raise self._refuse(f"it comes from a {self.header['byteorder']}-endian machine, and this one is {sys.byteorder}-endian")
        try:
            self.translator = schema.Translator(description, schema.describe())
        except (ConntrackError, LookupError, TypeError, ValueError, AttributeError, struct.error) as exc:
            why = exc.message.rstrip(".") if isinstance(exc, ConntrackError) else "its tables are of a kind that is not known here"
            raise self._refuse(f"it was written with layout {self.header['layout']}, this release has layout {chain.LAYOUT_VERSION}: {why}") from None
        entry_size = chain.codec(description["entry"]).size
        self._sizes = {family: (chain.codec(fields).size, entry_size) for family, fields in description["keys"].items() if family in _FAMILIES}

    def _refuse(self, why: str) -> ConntrackError:
        return ConntrackError(f"input: {self._name}: {why}. Nothing was imported.")

    def _cut(self, why: str, done: int) -> ConntrackError:
        return ConntrackError(f"input: {self._name}: {why}; {done} entries were read before. Export and import again.", read=done)

    def frames(self) -> t.Iterator[Frame]:
        """Return the frames.

        :raises ConntrackError: where the stream is cut off or damaged.
        """
        done = 0
        while True:
            raw = self._file.read(_FRAME.size)
            if len(raw) < _FRAME.size:
                raise self._cut("it ends too early", done)
            kind, number, count, jiffies, size, check = _FRAME.unpack(raw)
            if kind not in (_ENTRIES, _END) or number >= len(_FAMILIES) or size > _MOST_BYTES:
                raise self._cut("it is damaged", done)
            data = self._file.read(size)
            if len(data) < size:
                raise self._cut("it ends too early", done)
            if kind == _END:
                if count != done:
                    raise self._cut(f"it is damaged: {count} entries were written", done)
                return
            family = _FAMILIES[number]
            if zlib.crc32(data) != check or size != count * sum(self._sizes.get(family, (0, 0))):
                raise self._cut("it is damaged", done)
            yield Frame(family, jiffies, data)
            done += count

    def entries(self, frame: Frame) -> t.Iterator[tuple[bytes, bytes]]:
        """Return key and entry of each flow, in this release's layout, with the other host's clock."""
        key_size, value_size = self._sizes[frame.family]
        for key, value in struct.iter_unpack(f"{key_size}s{value_size}s", frame.data):
            yield self.translator.key(frame.family, key), self.translator.entry(frame.family, key, value)


def _signed(number: int) -> int:
    """Return the difference of two low halves of jiffies64."""
    return ((number + 0x80000000) & _MASK32) - 0x80000000


def _clocks(value: bytes) -> tuple[int, int]:
    """Return when an entry ends and when it was last seen."""
    fields = chain.ENTRY.unpack(value)
    return fields[_AT["expires"]], fields[_AT["last_seen"]]


def rebased(key: bytes, value: bytes, jiffies: int, rate: int, here: Clock) -> tuple[bytes, int]:
    """Return an entry in this host's time, and the jiffies that it has left: zero or less once it is over.

    :param jiffies: the other host's clock when it was read, with ``rate`` jiffies a second.
    """
    fields = list(chain.ENTRY.unpack(value))

    def moved(at: int) -> int:
        return here.jiffies + _signed(fields[at] - jiffies) * here.hz // rate

    left = 0 if Clock(jiffies, rate, 0).over(*_clocks(value)) else moved(_AT["expires"]) - here.jiffies
    age = max(jiffies // rate - fields[_AT["created"]], 0)
    for name in ("expires", "last_seen"):
        fields[_AT[name]] = moved(_AT[name]) & _MASK32 or 1  # never seen is 0
    if (chain.KEY4 if len(key) == chain.KEY4.size else chain.KEY6).unpack(key)[4] not in _NO_CLOCK:
        fields[_AT["last_end"]] = moved(_AT["last_end"]) & _MASK32
    fields[_AT["created"]] = max(here.jiffies // here.hz - age, 0) & _MASK32
    return chain.ENTRY.pack(*fields), left


# ---------------------------------------------------------------- taking them in
@dataclasses.dataclass
class Imported:
    """What came of a stream.

    :ivar read: entries in it.
    :ivar imported: those that are here now and were not before.
    :ivar replaced: those that are here now in the place of others.
    :ivar kept: those that were live here, and stayed as they were.
    :ivar expired: those whose time was over.
    :ivar no_room: those for which the table has no room.
    """

    read: int = 0
    imported: int = 0
    replaced: int = 0
    kept: int = 0
    expired: int = 0
    no_room: int = 0


class Target(flow_table.Source, t.Protocol):
    """What take() needs of flow_table.FlowTables."""

    def create(self, opened: flow_table.OpenTable, key: bytes, value: bytes) -> bool: ...

    def count_made(self, created: int, promoted: int) -> None: ...


class _Take:
    """Puts entries into the tables."""

    def __init__(self, tables: Target, on_conflict: str, dry: bool) -> None:
        self.done = Imported()
        self.promoted = 0
        self.deleted = dict.fromkeys(chain.DELETIONS, 0)
        self._tables, self._on_conflict, self._dry = tables, on_conflict, dry
        self._opened = {(one.table.family, one.table.flow_class): one for one in tables.tables}
        self._room = {
            one.table.name: inheritance.room_of(one.capacity) - sum(count for count, dummy_keys, dummy_values in tables.batches(one)) for one in tables.tables
        }

    def entry(self, family: str, key: bytes, value: bytes, left: int, here: Clock) -> None:
        """Take in one entry."""
        self.done.read += 1
        if left <= 0:
            self.done.expired += 1
            return
        assured = bool(chain.ENTRY.unpack(value)[_AT["ctl"]] & chain.CTL_ASSURED)
        opened = self._opened[family, chain.FLOW_CLASSES[assured]]
        others = [(one, found) for one in self._both(family) if (found := self._tables.lookup(one, key)) is not None]
        live = [found for dummy, found in others if not here.over(*_clocks(found))]
        if live and not self._wins(value, live, here):
            self.done.kept += 1
            return
        if not others and self._room[opened.table.name] <= 0:
            self.done.no_room += 1
            return
        if not self._dry:
            for one, found in others:
                self._delete(one, key, over=found not in live)
            if not self._tables.create(opened, key, value):  # a packet was first
                self.done.kept += 1
                return
            for one in self._both(family):
                if one is not opened and self._tables.lookup(one, key) is not None:  # here, too: a flow stands in one table, and this one knows more
                    self._delete(one, key, over=False)
        self._room[opened.table.name] -= 1
        self.promoted += assured
        if live:
            self.done.replaced += 1
        else:
            self.done.imported += 1

    def _both(self, family: str) -> list[flow_table.OpenTable]:
        return [self._opened[family, kind] for kind in chain.FLOW_CLASSES]

    def _wins(self, value: bytes, live: t.Sequence[bytes], here: Clock) -> bool:
        if self._on_conflict != "newer":
            return self._on_conflict == "replace"
        mine = here.left(chain.ENTRY.unpack(value)[_AT["last_seen"]])
        return all(mine > here.left(chain.ENTRY.unpack(one)[_AT["last_seen"]]) for one in live)

    def _delete(self, opened: flow_table.OpenTable, key: bytes, over: bool) -> None:
        number = self._tables.delete(opened, [key])
        self._room[opened.table.name] += number
        self.deleted["deleted_expired" if over else "deleted_flushed"] += number
        self.deleted["assured_deleted"] += number if opened.table.flow_class == "assured" else 0


def check_conflict(on_conflict: str) -> None:
    """:raises ConntrackError: for what is none of CONFLICTS."""
    if on_conflict not in CONFLICTS:
        raise bad_value("on_conflict", on_conflict, f"give one of {', '.join(CONFLICTS)}")


def take(tables: Target, reader: Reader, on_conflict: str = "keep", dry: bool = False) -> Imported:
    """Put the flows of a stream into the tables, where they go on.

    :param tables: open for writing, see flow_table.writing(), unless ``dry``.
    :param on_conflict: ``keep`` leaves a flow that is live here as it is, ``newer`` lets the one win that had the later packet, ``replace`` the stream's.
    :raises ConntrackError: where the stream is cut off or damaged; what came before is imported, and its ``facts`` say how much that is.
    """
    check_conflict(on_conflict)
    rate = int(reader.header["hz"])
    work = _Take(tables, on_conflict, dry)
    try:
        for frame in reader.frames():
            here = tables.clock()
            for key, value in reader.entries(frame):
                work.entry(frame.family, key, *rebased(key, value, frame.jiffies, rate, here), here)
    except ConntrackError as exc:
        exc.facts.update(dataclasses.asdict(work.done))
        raise
    finally:
        if not dry:
            tables.count_deleted(work.deleted)
            tables.count_made(work.done.imported + work.done.replaced, work.promoted)
    return work.done


def told(done: Imported, header: Header, dry: bool = False) -> str:
    """Return what came of it, for people."""
    parts = [f"{done.imported} {'would be ' if dry else ''}imported"]
    more = (("replaced", "in the place of flows that were here"), ("kept", "stayed as they were here"), ("expired", "over"), ("no_room", "without room"))
    parts += [f"{getattr(done, name)} {what}" for name, what in more if getattr(done, name)]
    return f"{done.read} flows of {header.get('host')}, {utc(float(header.get('time') or 0))}: {', '.join(parts)}"
