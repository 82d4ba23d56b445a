# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry live flows from one host's tables to another's, as a stream of bytes that says what it is
made of.

The stream: a line that names the format, a line of JSON (:data:`Header`), frames of entries as the
tables have them, and a last frame with their number. Each frame has the clock at which it was read
and a checksum. So a reader knows clock, jiffies a second and layout of the host that wrote it. It
reads all of the stream before it does anything: what is cut off, damaged or can not be is refused
as a whole. Neither side holds more than a few megabytes in memory. What an entry becomes in the
other layout is schema.Translator's to say, as in an upgrade: by name, and TCP windows begin again
with the next segment of each side, for what passes meanwhile is not in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
import sys
import tempfile
import time
import typing as t
import zlib

from ..chain import counters as chain_counters
from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import settings as chain_settings
from ..chain.clock import Clock
from ..core.calendar import utc
from ..core.errors import ConntrackError, bad_value, is_whole
from ..core.printable import printable
from ..flows import codec as flow
from ..flows import collect as flow_collect
from ..flows import filter as flow_filter
from ..flows import record as flow_record
from ..flows import schema
from ..flows import table as flow_table
from ..generation import migrate_plan

MAGIC = "ebpf.conntrack flows"
FORMAT = 1
#: What becomes of a flow that is live here as well.
CONFLICTS = ("keep", "newer", "replace")
#: format, byte order, jiffies a second, layout, schema.digest() and schema.describe() of the
#: tables, host, seconds since 1970.
Header = dict[str, t.Any]
_FAMILIES = tuple(flow.FAMILIES)
_ENTRIES, _END = 1, 2
#: kind, family, entries, jiffies64, bytes that follow, their CRC-32. The last frame's entries are
#: those of all frames.
_FRAME = struct.Struct(">BBIQII")
#: More than any frame has; what says so is damaged.
_MOST_BYTES = 1 << 24
#: Of the first two lines.
_MOST_LINE = 1 << 16
_MASK32 = 0xFFFFFFFF
_AT = {name: number for number, (name, dummy) in enumerate(chain_layout.ENTRY_FIELDS)}
_SCTP = 132
#: Protocols in whose entries ``last_end`` is no clock.
_NO_CLOCK = (flow.TCP, _SCTP)
#: Protocols whose flows live longer once they were answered, by the name of their timeout.
_STREAMS = {17: "udp", 136: "udp", flow.GRE: "gre"}
#: After so many seconds two-way traffic is a stream (entry_begin() in files/bpf/lib/track.h).
_STREAM_SECONDS = 2
_KEYS = {"ipv4": chain_layout.KEY4, "ipv6": chain_layout.KEY6}
_ICMP = {table.family: table.icmp for table in flow.TABLES}
#: The window scale (RFC 7323, 2.3), differences of jiffies, jiffies a second
#: (include/asm-generic/param.h; 1200 on alpha is the most), seconds since 1970 to the year 10000,
#: letters of a host's name (RFC 1035), and entries of all tables together.
_MOST_SCALE, _MOST_JIFFIES, _MOST_HZ, _MOST_TIME, _MOST_HOST, _MOST_ENTRIES = (
    14,
    0x7FFFFFFF,
    10_000,
    253_402_300_800,
    255,
    4 << 26,
)


# ---------------------------------------------------------------- writing
def export(
    source: flow_table.Source, filters: flow_filter.Filters, put: t.Callable[[bytes], object]
) -> int:
    """Write the live flows that match; return how many.

    :param put: takes the next piece.
    """
    description = schema.describe()
    header: Header = {
        "byteorder": sys.byteorder,
        "hz": source.clock().hz,
        "layout": chain_layout.LAYOUT_VERSION,
        "schema": f"{schema.digest(description):016x}",
        "description": description,
        "host": socket.gethostname(),
        "time": round(time.time(), 3),
    }
    put(f"{MAGIC} {FORMAT}\n{json.dumps(header, separators=(',', ':'))}\n".encode())
    total = 0
    query = flow_filter.Query(filters)
    for flows in flow_collect.Pass(source, query, True, True, None, False).batches():
        if flows:
            # a batch is of one table
            put(
                _frame(
                    _ENTRIES,
                    flows[0][0].family,
                    len(flows),
                    source.clock().jiffies,
                    b"".join([row[2] + row[3] for dummy, dummy_values, row in flows]),
                )
            )
            total += len(flows)
    put(_frame(_END, _FAMILIES[0], total, source.clock().jiffies, b""))
    return total


def _frame(kind: int, family: str, count: int, jiffies: int, data: bytes) -> bytes:
    return (
        _FRAME.pack(kind, _FAMILIES.index(family), count, jiffies, len(data), zlib.crc32(data))
        + data
    )


# ---------------------------------------------------------------- reading
class Reader:
    """What export() wrote, read to its end and checked: every entry is one that the tracker could
    have made. Nothing is taken of what is not whole.

    It lies in a file without a name meanwhile, in this release's layout, where it is more than a
    few megabytes. A context manager, which lets go of that.

    :ivar header: what it says of itself; of it ``host`` is fit to be printed, and ``time`` and
        ``hz`` are numbers.
    :raises ConntrackError: for what is none, is of a later release, can not be read on this
        machine, is cut off, damaged or not possible.
    """

    def __init__(self, file: t.BinaryIO, name: str) -> None:
        self._file, self._name = file, printable(name)
        first = file.readline(_MOST_LINE).decode("ascii", "replace").split()
        if " ".join(first[:-1]) != MAGIC:
            raise self._refuse("it is not what ct export wrote")
        if first[-1] != str(FORMAT):
            raise self._refuse(
                f"it has format {printable(first[-1][:20])}, this release reads format {FORMAT}:"
                " use the release that wrote it on both hosts"
            )
        self.header = self._header(file.readline(_MOST_LINE))
        description = self.header["description"]
        try:
            self._translator = schema.Translator(description, schema.describe())
        except (
            ConntrackError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            struct.error,
        ) as exc:
            why = (
                exc.message.rstrip(".")
                if isinstance(exc, ConntrackError)
                else "its tables are of a kind that is not known here"
            )
            raise self._refuse(
                f"it was written with layout {self.header['layout']}, this release has layout"
                f" {chain_layout.LAYOUT_VERSION}: {why}"
            ) from None
        entry_size = chain_layout.codec(description["entry"]).size
        self._sizes = {
            family: (chain_layout.codec(fields).size, entry_size)
            for family, fields in description["keys"].items()
            if family in _FAMILIES
        }
        self._frames: list[tuple[str, int, int]] = []
        try:
            with contextlib.ExitStack() as stack:
                self._kept = t.cast(
                    "t.BinaryIO", stack.enter_context(tempfile.SpooledTemporaryFile(_MOST_BYTES))
                )
                self._keep()
                self._exit = stack.pop_all()
        except OSError as exc:
            raise ConntrackError(
                f"input: {self._name}: it can not be read, or kept in {tempfile.gettempdir()}:"
                f" {exc.strerror}. Give the variable TMPDIR a directory with room."
            ) from exc

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *dummy: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was kept."""
        self._exit.close()

    def _refuse(self, why: str) -> ConntrackError:
        return ConntrackError(f"input: {self._name}: {why}. Nothing was imported.")

    def _header(self, line: bytes) -> Header:
        """Return the header, each field of it checked."""
        try:
            found = flow_record.loads(line.decode("utf-8"))
        except (ConntrackError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict):
            raise self._refuse("its header is damaged")
        checks: dict[str, bool] = {
            "byteorder": found.get("byteorder") in ("little", "big"),
            "hz": is_whole(found.get("hz")) and 0 < found["hz"] <= _MOST_HZ,
            "layout": is_whole(found.get("layout")) and 0 < found["layout"] < 1 << 32,
            "time": (
                (is_whole(found.get("time")) or isinstance(found.get("time"), float))
                and 0 <= found["time"] < _MOST_TIME
            ),
            "host": isinstance(found.get("host"), str) and len(found["host"]) <= _MOST_HOST,
            "description": schema.whole(found.get("description")),
        }
        for name, good in checks.items():
            if not good:
                raise self._refuse(
                    f"its header is damaged: {name}: {flow_record.quoted(found.get(name))}"
                )
        try:
            digest = f"{schema.digest(found['description']):016x}"
        except RecursionError:
            digest = ""
        if digest != found.get("schema"):
            raise self._refuse(
                "its header is damaged: schema: it is not the digest of the description"
            )
        if found["byteorder"] != sys.byteorder:
            raise self._refuse(
                f"it comes from a {found['byteorder']}-endian machine, and this one is"
                f" {sys.byteorder}-endian"
            )
        return {**found, "host": printable(found["host"])}

    def _keep(self) -> None:
        """Read the frames, check and translate their entries, and keep them."""
        done = 0
        while True:
            raw = self._file.read(_FRAME.size)
            if len(raw) < _FRAME.size:
                raise self._refuse(f"it ends too early, after {done} flows. Export it again")
            kind, number, count, jiffies, size, check = _FRAME.unpack(raw)
            if kind not in (_ENTRIES, _END) or number >= len(_FAMILIES) or size > _MOST_BYTES:
                raise self._refuse(f"it is damaged after {done} flows. Export it again")
            data = self._file.read(size)
            if len(data) < size:
                raise self._refuse(f"it ends too early, after {done} flows. Export it again")
            if kind == _END:
                if count != done or size or check != zlib.crc32(b""):
                    raise self._refuse(
                        f"it is damaged: {count} flows were written, and {done} are there. Export"
                        " it again"
                    )
                if self._file.read(1):
                    raise self._refuse("something follows its end. Give one stream at a time")
                return
            family = _FAMILIES[number]
            sizes = self._sizes.get(family, (0, 0))
            if zlib.crc32(data) != check or not size or size != count * sum(sizes):
                raise self._refuse(f"it is damaged after {done} flows. Export it again")
            if done + count > _MOST_ENTRIES:
                raise self._refuse(f"it has more than {_MOST_ENTRIES} flows, which no tables hold")
            pieces: list[bytes] = []
            for at, (key, value) in enumerate(
                struct.iter_unpack(f"{sizes[0]}s{sizes[1]}s", data), done + 1
            ):
                here = self._translator.key(family, key), self._translator.entry(family, key, value)
                why = impossible(family, *here)
                if why:
                    raise self._refuse(f"flow {at} can not be: {why}")
                pieces.extend(here)
            self._kept.write(b"".join(pieces))
            self._frames.append((family, jiffies, count))
            done += count

    def entries(self) -> t.Iterator[tuple[str, int, t.Iterator[tuple[bytes, bytes]]]]:
        """Return of each frame the family, the jiffies at which the other host read it, and its
        keys and entries, in this release's layout.
        """
        self._kept.seek(0)
        for family, jiffies, count in self._frames:
            sizes = _KEYS[family].size, chain_layout.ENTRY.size
            yield (
                family,
                jiffies,
                struct.iter_unpack(f"{sizes[0]}s{sizes[1]}s", self._kept.read(count * sum(sizes))),
            )


# ---------------------------------------------------------------- what an entry can be
def _ends(family: str, key: bytes) -> tuple[tuple[bytes, int], tuple[bytes, int], int, int, int]:
    """Return the two sides of a key as (address, port), protocol, role and zone."""
    lo, hi, lo_port, hi_port, proto, role, zone = _KEYS[family].unpack(key)
    return (lo, socket.ntohs(lo_port)), (hi, socket.ntohs(hi_port)), proto, role, zone


def impossible(family: str, key: bytes, value: bytes) -> str:
    """Return why the tracker can not have made an entry, "" where it can. No packet would find such
    an entry, or programs would read it as something else.

    :param key: in this release's layout, as ``value``. The rules are those of ct_key_of() in
        files/bpf/lib/entry.h.
    """
    low, high, proto, role, zone = _ends(family, key)
    fields = chain_layout.ENTRY.unpack(value)
    ctl = fields[_AT["ctl"]]
    turned, query = bool(ctl & chain_layout.CTL_ORIG_HI), proto == _ICMP[family]
    if low > high:
        return "the sides of its key are not in order"
    if zone or role != (query and turned):
        return f"its key has role {role} and zone {zone}"
    if query:
        kind = (low if turned else high)[1] >> 8
        if kind not in flow.ICMP_ANSWERS[proto]:
            return f"ICMP type {kind} asks for nothing"
    elif proto not in flow.PORTED and proto != flow.GRE and (low[1] or high[1]):
        return f"protocol {proto} has no ports"
    state, names = ctl & chain_layout.CTL_STATE, flow.STATES.get(proto, ())
    if state >= max(len(names), 1):
        return f"protocol {proto} has no state {state}"
    if ctl >> chain_layout.CTL_VLANS_SHIFT & 3 > 2:
        return "it has more than two VLAN tags"
    scale = fields[_AT["scale"]]
    if proto == flow.TCP and max(scale & 0xF, scale >> 4) > _MOST_SCALE:
        return f"its window scale is above {_MOST_SCALE} (RFC 7323)"
    return ""


def longest(family: str, proto: int, ctl: int, timeouts: t.Mapping[str, int]) -> int:
    """Return the most seconds that a flow can have left in its state, as the chain sets them after
    a packet (files/bpf/lib/track.h).

    :param timeouts: those in force, by the names of chain.TIMEOUTS.
    """
    state = ctl & chain_layout.CTL_STATE
    if proto in flow.STATES and state:
        names = [f"{flow.PROTOCOLS[proto]}_{flow.STATES[proto][state].lower()}"]
    elif proto in _STREAMS:
        name = _STREAMS[proto]
        names = (
            [name, f"{name}_stream"]
            if ctl & (chain_layout.CTL_SEEN_REPLY | chain_layout.CTL_ASSURED)
            else [name]
        )
    else:
        names = [
            (
                flow.PROTOCOLS[proto]
                if proto == _ICMP[family]
                else "sctp_closed"
                if proto == _SCTP
                else "generic"
            )
        ]
    return max(timeouts.get(name) or chain_settings.TIMEOUTS[name] for name in names)


def _signed(number: int) -> int:
    """Return the difference of two low halves of jiffies64."""
    return ((number + 0x80000000) & _MASK32) - 0x80000000


def _clocks(value: bytes) -> tuple[int, int]:
    """Return when an entry ends and when it was last seen."""
    fields = chain_layout.ENTRY.unpack(value)
    return fields[_AT["expires"]], fields[_AT["last_seen"]]


def rebased(
    key: bytes,
    value: bytes,
    jiffies: int,
    rate: int,
    here: Clock,
    timeouts: t.Mapping[str, int] = chain_settings.TIMEOUTS,
) -> tuple[bytes, int]:
    """Return an entry in this host's time, and the jiffies that it has left: zero or less once it
    is over.

    No time is one that can not be: none has more left than its state has here, was seen or began
    later than now, or becomes a stream later than a new flow.

    :param jiffies: the other host's clock when it was read, with ``rate`` jiffies a second.
    :param timeouts: those in force here, in seconds.
    """
    fields = list(chain_layout.ENTRY.unpack(value))
    family = "ipv4" if len(key) == chain_layout.KEY4.size else "ipv6"
    proto = _KEYS[family].unpack(key)[4]

    def moved(at: str, most: int) -> int:
        """Return the jiffies from now to one of the entry's clocks."""
        return min(max(_signed(fields[_AT[at]] - jiffies) * here.hz // rate, -_MOST_JIFFIES), most)

    left = moved(
        "expires",
        min(longest(family, proto, fields[_AT["ctl"]], timeouts) * here.hz, _MOST_JIFFIES),
    )
    if Clock(jiffies, rate, 0).over(*_clocks(value)):
        # it may be so long ago that the difference of the two clocks says otherwise
        left = min(left, 0)
    ends = {"expires": left, "last_seen": moved("last_seen", 0)}
    if proto not in _NO_CLOCK:
        ends["last_end"] = moved("last_end", _STREAM_SECONDS * here.hz)
    for name, away in ends.items():
        # never seen is 0
        fields[_AT[name]] = (here.jiffies + away) & _MASK32 or int(name != "last_end")
    age = max(jiffies // rate - fields[_AT["created"]], 0)
    fields[_AT["created"]] = max(here.jiffies // here.hz - age, 0) & _MASK32
    return chain_layout.ENTRY.pack(*fields), left


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
        self.deleted = dict.fromkeys(chain_counters.DELETIONS, 0)
        self._tables, self._on_conflict, self._dry = tables, on_conflict, dry
        self._opened = {(one.table.family, one.table.flow_class): one for one in tables.tables}
        self._room = {
            one.table.name: (
                migrate_plan.room_of(one.capacity)
                - sum(count for count, dummy_keys, dummy_values in tables.batches(one))
            )
            for one in tables.tables
        }

    def entry(self, family: str, key: bytes, value: bytes, left: int, here: Clock) -> None:
        """Take in one entry."""
        self.done.read += 1
        if left <= 0:
            self.done.expired += 1
            return
        assured = bool(chain_layout.ENTRY.unpack(value)[_AT["ctl"]] & chain_layout.CTL_ASSURED)
        opened = self._opened[family, chain_maps.FLOW_CLASSES[assured]]
        others = [
            (one, found)
            for one in self._both(family)
            if (found := self._tables.lookup(one, key)) is not None
        ]
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
                # here, too: a flow stands in one table, and this one knows more
                if one is not opened and self._tables.lookup(one, key) is not None:
                    self._delete(one, key, over=False)
        self._room[opened.table.name] -= 1
        self.promoted += assured
        if live:
            self.done.replaced += 1
        else:
            self.done.imported += 1

    def _both(self, family: str) -> list[flow_table.OpenTable]:
        return [self._opened[family, kind] for kind in chain_maps.FLOW_CLASSES]

    def _wins(self, value: bytes, live: t.Sequence[bytes], here: Clock) -> bool:
        if self._on_conflict != "newer":
            return self._on_conflict == "replace"
        mine = here.left(chain_layout.ENTRY.unpack(value)[_AT["last_seen"]])
        return all(
            mine > here.left(chain_layout.ENTRY.unpack(one)[_AT["last_seen"]]) for one in live
        )

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
    :param on_conflict: ``keep`` leaves a flow that is live here as it is, ``newer`` lets the one
        win that had the later packet, ``replace`` the stream's.
    :raises ConntrackError: for a policy that is none.
    """
    check_conflict(on_conflict)
    rate, timeouts = int(reader.header["hz"]), tables.settings()[0]
    work = _Take(tables, on_conflict, dry)
    try:
        for family, jiffies, entries in reader.entries():
            here = tables.clock()
            for key, value in entries:
                work.entry(family, key, *rebased(key, value, jiffies, rate, here, timeouts), here)
    finally:
        if not dry:
            tables.count_deleted(work.deleted)
            tables.count_made(work.done.imported + work.done.replaced, work.promoted)
    return work.done


def describe(done: Imported, header: Header, dry: bool = False) -> str:
    """Return what came of it, for people."""
    parts = [f"{done.imported} {'would be ' if dry else ''}imported"]
    more = (
        ("replaced", "in the place of flows that were here"),
        ("kept", "stayed as they were here"),
        ("expired", "over"),
        ("no_room", "without room"),
    )
    parts += [f"{getattr(done, name)} {what}" for name, what in more if getattr(done, name)]
    return f"{done.read} flows of {header['host']}, {utc(header['time'])}: {', '.join(parts)}"
