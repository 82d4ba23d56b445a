# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the pinned flow tables, and deleting from them.

:class:`FlowTables` is the only thing here that talks to the kernel; what is read through it is
    worked on by functions that take
anything with the same methods. A table is read in batches and never held as a whole, unless all of
it is to be sorted.
"""

from __future__ import annotations

import array
import bisect
import collections
import contextlib
import dataclasses
import datetime
import errno
import gc
import heapq
import itertools
import operator
import os
import struct
import typing as t

from ..chain import guests
from ..chain import spec as chain
from ..chain.clock import Clock
from ..core import lock
from ..core.errors import ConntrackError
from ..core.plan import Step
from ..kernel import bpf, bpffs
from . import codec as flow
from . import filter as flow_filter
from .output import GUEST_DROPPED, Writer

#: Rows read at once: enough to make the calls cheap, few enough that what is made of them stays in
#: the CPU's cache.
BATCH = 1024
_U64 = struct.Struct("=Q")
_INDEX = struct.Struct("=I")


class NoChain(ConntrackError):
    """No chain is pinned where it was looked for."""


class TooMany(ConntrackError):
    """More would have to be kept in memory at once than the caller has room for."""


@dataclasses.dataclass(frozen=True)
class OpenTable:
    """A flow table that is open; ``capacity`` is the number of entries that it can hold."""

    table: flow.Table
    fd: int
    capacity: int


class FlowTables:
    """The flow tables that are pinned under ``pin_root``, open; a context manager.

    :raises NoChain: when no chain is pinned there.
    :raises ConntrackError: when what is pinned there is of another layout, or may not be opened.
    """

    def __init__(self, pin_root: str) -> None:
        self._paths = bpffs.Paths(pin_root)
        bpffs.refuse_foreign_names(self._paths)
        with contextlib.ExitStack() as fds:
            self._stats = self._open("stats", fds)
            self._deletions = self._open("deletions", fds)
            self._guest_stats = self._open("guest_stats", fds)
            self._settings = self._open("settings", fds)
            self.meta = self._read_meta(self._open("meta", fds))
            if self.meta["layout"] != chain.LAYOUT_VERSION:
                raise ConntrackError(
                    f"{self._path('meta')}: the tables have layout {self.meta['layout']}, this"
                    f" version reads layout {chain.LAYOUT_VERSION}. Run xdp_program."
                )
            self._events = (
                self._open(chain.EVENTS_WORDS_MAP, fds)
                if os.path.lexists(self._path(chain.EVENTS_WORDS_MAP))
                else None
            )
            self.tables = tuple(
                self._open_table(table, fds)
                for table in flow.TABLES
                if table is flow.TABLES[0] or os.path.lexists(self._path(table.name))
            )
            self._fds = fds.pop_all()

    def __enter__(self) -> FlowTables:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._fds.close()

    def _path(self, name: str) -> str:
        return os.path.join(self._paths.seed_map, name)

    def _open(self, name: str, fds: contextlib.ExitStack) -> int:
        path = self._path(name)
        try:
            return fds.enter_context(bpf.closing(bpf.obj_get(path)))
        except bpf.BpfError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NoChain(
                    f"{path} does not exist: no chain is pinned there. Run xdp_program, or give the"
                    " pin_root that it was given."
                ) from None
            if exc.errno in (errno.EPERM, errno.EACCES):
                raise ConntrackError(
                    f"{path} may not be opened: {os.strerror(exc.errno or 0)}. Run as root (in a"
                    " playbook: become: true)."
                ) from None
            raise

    def _open_table(self, table: flow.Table, fds: contextlib.ExitStack) -> OpenTable:
        fd = self._open(table.name, fds)
        info = bpf.map_info(fd)
        found, wanted = (info.key_size, info.value_size), (table.key.size, flow.VIEW.size)
        if found != wanted:
            raise ConntrackError(
                f"{self._path(table.name)}: key and value have {found} bytes, this version reads"
                f" {wanted}. Run xdp_program."
            )
        return OpenTable(table, fd, info.max_entries)

    def _read_meta(self, fd: int) -> dict[str, int]:
        return {name: self._u64(fd, index) for name, index in chain.META.items()}

    @staticmethod
    def _u64(fd: int, index: int) -> int:
        return int(
            _U64.unpack(bpf.map_lookup(fd, _INDEX.pack(index), _U64.size) or bytes(_U64.size))[0]
        )

    def clock(self) -> Clock:
        """Return this instant in the tables' time."""
        return Clock.read(self.meta)

    def settings(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the timeouts in seconds and the knobs that are in force."""
        value = t.cast(
            "bytes", bpf.map_lookup(self._settings, _INDEX.pack(0), chain.SETTINGS_BYTES)
        )  # an array always has its entries
        return chain.settings_of(value)[1:]

    def cpu_counters(self) -> list[dict[str, int]]:
        """Return what the chain counted on each possible CPU, by name, and as GUEST_DROPPED what
        guests dropped.
        """
        columns = [
            [_U64.unpack(one)[0] for one in bpf.percpu_value(self._stats, index, _U64.size)]
            for index in range(len(chain.COUNTERS))
        ]
        by_slot = [
            guests.counts_by_cpu(self._guest_stats, slot) for slot in chain.GUEST_SLOTS.values()
        ]
        columns.append([sum(cpu["dropped"] for cpu in cpus) for cpus in zip(*by_slot)])
        return [dict(zip((*chain.COUNTERS, GUEST_DROPPED), values)) for values in zip(*columns)]

    def guest_counters(self) -> dict[str, dict[str, int]]:
        """Return what the guests did with frames, by the names of their slots; those to which none
        ever came are left out.
        """
        found = {
            name: guests.counts(self._guest_stats, slot) for name, slot in chain.GUEST_SLOTS.items()
        }
        return {name: counts for name, counts in found.items() if counts["seen"]}

    def counters(self) -> dict[str, int]:
        """Return the chain's counters by name, with what user space deleted added."""
        cpus = self.cpu_counters()
        values = {name: sum(cpu[name] for cpu in cpus) for name in chain.COUNTERS}
        for index, name in enumerate(chain.DELETIONS):
            values[name] += self._u64(self._deletions, index)
        return values

    def promoted(self) -> int:
        """Return how many flows moved to a table of assured ones so far."""
        return sum(
            _U64.unpack(one)[0]
            for one in bpf.percpu_value(self._stats, chain.COUNTERS.index("promoted"), _U64.size)
        )

    def batches(self, opened: OpenTable) -> t.Iterator[tuple[int, memoryview, memoryview]]:
        """Return the table's contents as (count, keys, values); the views last until the next one
        is asked for.
        """
        return bpf.map_batches(opened.fd, opened.table.key.size, flow.VIEW.size, BATCH)

    def lookup(self, opened: OpenTable, key: bytes) -> bytes | None:
        """Return the bytes of one entry, None when there is none."""
        return bpf.map_lookup(opened.fd, key, flow.VIEW.size)

    def delete(self, opened: OpenTable, keys: t.Sequence[bytes]) -> int:
        """Delete entries; where somebody watches what becomes of flows the chain does it, which
        tells it. :return: how many of them were there.
        """
        if self._events is None or not self._u64(self._events, chain.EVENT_WORDS.index("watched")):
            return bpf.map_delete_batch(opened.fd, keys)
        what, assured, deleted = (
            chain.ADOPT_REQUESTS.index(f"erase_{opened.table.family}"),
            opened.table.flow_class == "assured",
            0,
        )
        with bpf.closing(bpf.obj_get(os.path.join(self._paths.seed_prog, chain.ADOPT))) as adopt:
            for at in range(0, len(keys), chain.ADOPT_KEYS):
                some = keys[at : at + chain.ADOPT_KEYS]
                left = bpf.prog_test_run(
                    adopt, chain.ADOPT_REQUEST.pack(what, len(some), assured) + b"".join(some)
                ).retval
                if left > len(some):
                    raise ConntrackError(
                        f"the program {chain.ADOPT} refused to delete {len(some)} flows.",
                        deleted=deleted,
                    )
                deleted += len(some) - left
        return deleted

    def create(self, opened: OpenTable, key: bytes, value: bytes) -> bool:
        """Make an entry; False where there is one of this key."""
        try:
            bpf.map_update(opened.fd, key, value, bpf.BPF_NOEXIST)
        except bpf.BpfError as exc:
            if exc.errno != errno.EEXIST:
                raise
            return False
        return True

    def count_made(self, created: int, promoted: int) -> None:
        """Count entries that create() made, ``promoted`` of them assured; see writing(). The chain
        does it, which counts meanwhile.
        """
        numbers = [
            {"created": created, "promoted": promoted}.get(name, 0) for name in chain.COUNTERS
        ]
        if not any(numbers):
            return
        index = _INDEX.pack(chain.META["counted"])
        with contextlib.ExitStack() as fds:
            meta, adopt = (
                self._open("meta", fds),
                fds.enter_context(
                    bpf.closing(bpf.obj_get(os.path.join(self._paths.seed_prog, chain.ADOPT)))
                ),
            )
            before = _U64.pack(self._u64(meta, chain.META["counted"]))
            bpf.map_update(
                meta,
                index,
                _U64.pack(0),
                # the chain adds such numbers once; these are others than those of the generation
                # before
            )
            request = chain.ADOPT_REQUEST.pack(
                chain.ADOPT_REQUESTS.index("counts"), len(numbers), 0
            )
            bpf.prog_test_run(adopt, request + struct.pack(f"={len(numbers)}Q", *numbers))
            bpf.map_update(meta, index, before)

    def count_deleted(self, numbers: t.Mapping[str, int]) -> None:
        """Add to the counters of chain.DELETIONS, which only user space writes; see writing()."""
        for name, number in numbers.items():
            if number:
                index = chain.DELETIONS.index(name)
                bpf.map_update(
                    self._deletions,
                    _INDEX.pack(index),
                    _U64.pack(self._u64(self._deletions, index) + number),
                )


@contextlib.contextmanager
def writing(pin_root: str, patience: float = lock.SECONDS) -> t.Iterator[FlowTables]:
    """Open the tables to delete from them: one process at a time, and not while the next generation
    takes over what the tables hold.

    :raises ConntrackError: as FlowTables, and when somebody else holds the lock for too long.
    """
    with FlowTables(
        pin_root
    ):  # it says so when there is no chain, and then no directory to lock either
        pass
    with lock.held(bpffs.Paths(pin_root).base, patience), FlowTables(pin_root) as tables:
        yield tables


class Source(t.Protocol):
    """What the functions below need of FlowTables."""

    @property
    def tables(self) -> tuple[OpenTable, ...]: ...

    def clock(self) -> Clock: ...

    def settings(self) -> tuple[dict[str, int], dict[str, int]]: ...

    def cpu_counters(self) -> list[dict[str, int]]: ...

    def counters(self) -> dict[str, int]: ...

    def guest_counters(self) -> dict[str, dict[str, int]]: ...
    def promoted(self) -> int: ...

    def batches(self, opened: OpenTable) -> t.Iterator[tuple[int, memoryview, memoryview]]: ...

    def lookup(self, opened: OpenTable, key: bytes) -> bytes | None: ...

    def delete(self, opened: OpenTable, keys: t.Sequence[bytes]) -> int: ...

    def count_deleted(self, numbers: t.Mapping[str, int]) -> None: ...


# ---------------------------------------------------------------- reading
@dataclasses.dataclass
class Reading:
    """What one pass over the tables gave.

    :ivar flows: records, at most as many as the query's limit (default flow_filter.DEFAULT_LIMIT).
    :ivar count: how many flows match; where the pass stopped early, how many it had met.
    :ivar complete: whether the pass went over everything.
    :ivar groups: one dict a group, the one with the most flows first, at most as many as flows.
    :ivar group_count: how many groups there are.
    :ivar summary: totals, counters and clock; None when they were not asked for.
    :ivar shapes: how many flows there are of each shape, where the summary was asked for.
    """

    flows: list[flow.Record]
    count: int
    complete: bool
    groups: list[dict[str, t.Any]]
    group_count: int
    summary: dict[str, t.Any] | None
    shapes: t.Mapping[flow.Shape, int]

    @property
    def truncated(self) -> bool:
        """Whether there are more flows or groups than are listed."""
        return (
            not self.complete or self.count > len(self.flows) or self.group_count > len(self.groups)
        )


class _Once:
    """Leaves out flows that are met twice: one that becomes assured while the tables are read is
    met in both tables of its family.

    What was met first is remembered by its key's hash, 8 bytes a flow, and only looked at where a
    flow moved meanwhile. What is only counted is not remembered.
    """

    _BUCKETS = 1 << 8

    def __init__(self, source: Source) -> None:
        self._source = source
        self._promoted = source.promoted()
        self._first = array.array("q")
        #: what was taken out of _first to be looked up: each sorted, by the hashes' last bits. A
        #: set would take ten times the memory.
        self._sorted: list[array.array[int]] = []

    def new(self, table: flow.Table, flows: list[flow.Flow]) -> list[flow.Flow]:
        """Return those of a batch, just read, that were not met before."""
        if table.flow_class == "half_open":
            self._first.extend([hash(item[2][0]) for item in flows])
            return flows
        if not (self._first or self._sorted) or self._source.promoted() == self._promoted:
            return flows
        if self._first:
            self._sort()
        return [item for item in flows if not self._met(hash(item[2][0]))]

    def _met(self, number: int) -> bool:
        bucket = self._sorted[number % self._BUCKETS]
        at = bisect.bisect_left(bucket, number)
        return at < len(bucket) and bucket[at] == number

    def _sort(self) -> None:
        self._sorted = self._sorted or [array.array("q") for dummy in range(self._BUCKETS)]
        first, buckets = self._first, self._sorted
        while first:  # from its end, so that it gives back its memory as they grow
            some = first[-BATCH:]
            del first[-BATCH:]
            for number in some:
                buckets[number % self._BUCKETS].append(number)
        for at, bucket in enumerate(buckets):
            buckets[at] = array.array("q", sorted(bucket))


class Pass:
    """One pass over the tables, adding up what goes by.

    :param as_bytes: give addresses as bytes.
    :param packed: give rows with their packed key and value.
    :param keep: so many flows are wanted, the others need only be counted; None for all.
    :param summary: whether to count the flows of each shape.
    :param most_groups: of more, and ``most_sorted``, of more flows to sort, it refuses to make a
        list; None for no such bound.
    """

    def __init__(
        self,
        source: Source,
        query: flow_filter.Query,
        as_bytes: bool,
        packed: bool,
        keep: int | None,
        summary: bool,
        most_groups: int | None = None,
        most_sorted: int | None = None,
    ) -> None:
        self._most_groups, self._most_sorted = most_groups, most_sorted
        self.clock = source.clock()
        self.entries: dict[str, int] = {opened.table.name: 0 for opened in source.tables}
        self.shapes: collections.Counter[flow.Shape] = collections.Counter()
        self.groups: dict[tuple[t.Any, ...], list[int]] = {}
        self.count = 0
        self._source = source
        self._query = query
        self._keep = keep
        self._summary = summary
        self._packed = packed or query.sort is not None
        self._group_columns = [flow.ALL_COLUMNS[name] for name in query.group_by]
        self._decoders = [
            flow.Decoder(opened.table, self.clock, as_bytes) for opened in source.tables
        ]
        self._once = _Once(source)

    def batches(self) -> t.Iterator[list[flow.Flow]]:
        """Return the flows that match, in the query's order."""
        if self._query.sort is None:
            return (flows for dummy, flows in self._matching())
        return self._sorted(self._query.sort)

    def _matching(self) -> t.Iterator[tuple[int, list[flow.Flow]]]:
        """Return (index of the table, flows) as the tables give them."""
        every_one = self._keep is None or bool(self._group_columns) or self._query.sort is not None
        for index, (opened, decoder) in enumerate(zip(self._source.tables, self._decoders)):
            tests = self._query.filters.tests(opened.table, self.clock)
            for number, keys, values in self._source.batches(opened):
                self.entries[opened.table.name] += number
                if tests is None:
                    continue
                if not tests and not every_one and self.count >= (self._keep or 0):
                    counted = decoder.count(keys, values)
                    if counted is not None:
                        self.count += sum(counted.values())
                        self.shapes.update(counted)
                        yield index, []
                        continue
                rows = (
                    decoder.packed_rows(keys, values)
                    if self._packed
                    else decoder.rows(keys, values)
                )
                flows = self._once.new(
                    opened.table, list(decoder.flows(flow_filter.choose(rows, tests)))
                )
                self.count += len(flows)
                if self._summary:
                    self.shapes.update(map(operator.itemgetter(0), flows))
                if self._group_columns:
                    self._group(flows)
                yield index, flows

    def _group(self, flows: t.Iterable[flow.Flow]) -> None:
        for shape, values, dummy in flows:
            values = flow.with_text(values)
            key = tuple(_hashable(column(shape, values)) for column in self._group_columns)
            totals = self.groups.setdefault(key, [0, 0, 0])
            totals[0] += 1
            totals[1] += values[flow.ORIG_PACKETS] + values[flow.REPLY_PACKETS]
            totals[2] += values[flow.ORIG_BYTES] + values[flow.REPLY_BYTES]
        if self._most_groups is not None and len(self.groups) > self._most_groups:
            names = ",".join(self._query.group_by)
            raise TooMany(
                f"group_by: {names} makes more than {self._most_groups} groups: group by fewer"
                " fields, or give a filter, as dst=192.0.2.0/24."
            )

    def _few(self) -> t.Iterator[tuple[int, list[flow.Flow]]]:
        """Return what _matching() does.

        :raises TooMany: when there are more than can be sorted.
        """
        for index, flows in self._matching():
            if self._most_sorted is not None and self.count > self._most_sorted:
                raise TooMany(
                    f"sort: more than {self._most_sorted} flows match, too many to sort: give a"
                    " limit of at most 10000, or a filter."
                )
            yield index, flows

    def _sorted(self, column: str) -> t.Iterator[list[flow.Flow]]:
        """Sort the packed entries, which take little memory, and decode them again afterwards;
        equal ones are in the order of their keys.
        """
        key = flow.sort_key(column)
        items = (
            (key(item), index, item[2][2], item[2][3])
            for index, flows in self._few()
            for item in flows
        )
        if self._keep is None:
            chosen = sorted(items, reverse=self._query.descending)
        else:
            chosen = (heapq.nlargest if self._query.descending else heapq.nsmallest)(
                self._keep, items
            )
        for start in range(0, len(chosen), BATCH):
            for index, run in itertools.groupby(
                chosen[start : start + BATCH], operator.itemgetter(1)
            ):
                decoder, items_of_run = self._decoders[index], list(run)
                keys = b"".join([item[2] for item in items_of_run])
                values = b"".join([item[3] for item in items_of_run])
                yield list(decoder.flows(decoder.packed_rows(keys, values)))


@contextlib.contextmanager
def no_collector() -> t.Iterator[None]:
    """Let the cyclic garbage collector rest: rows and flows make no cycles, and looking for some
    costs a sixth of the time.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _discard(piece: bytes) -> None:
    """Take text that nobody wants."""


def _hashable(value: t.Any) -> t.Any:
    return tuple(value) if isinstance(value, list) else value


def read(
    source: Source,
    query: flow_filter.Query,
    writer: Writer | None = None,
    put: t.Callable[[bytes], object] = _discard,
    summary: bool = True,
    window: bool = False,
    listing: bool = True,
    most_groups: int | None = None,
    most_sorted: int | None = None,
) -> Reading:
    """Read the flows that match.

    Without a sort order, a summary or groups to make, the pass ends as soon as the limit is
    reached.

    :param writer: turns the flows into text for ``put``: all of them, or the query's limit where it
        has one.
    :param summary: whether to make the summary.
    :param window: whether the records of TCP flows show their windows.
    :param listing: whether to return records and groups; False where only the text is wanted,
        however long.
    :param most_groups: groups, and ``most_sorted`` flows to sort, that there is memory for; None
        for any number.
    :raises TooMany: where there are more.
    """
    listed = 0 if not listing else flow_filter.DEFAULT_LIMIT if query.limit is None else query.limit
    written = query.limit if writer else listed
    one_pass = Pass(
        source,
        query,
        bool(writer and writer.as_bytes),
        window,
        written,
        summary,
        most_groups,
        most_sorted,
    )
    may_stop = written is not None and query.sort is None and not summary and not query.group_by
    flows: list[flow.Record] = []
    passed, complete = 0, True
    with no_collector():
        batches = one_pass.batches()
        if query.sort is not None:  # all is read and sorted, or refused, before anything is written
            batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
    if writer:
        put(writer.begin())
    with no_collector():
        for batch in batches:
            for shape, values, row in batch[: listed - len(flows)]:
                flows.append(flow.shown((shape, flow.with_text(values), row), query.fields, window))
            if writer:
                put(writer.write(batch if written is None else batch[: max(written - passed, 0)]))
            passed += len(batch)
            if may_stop and written is not None and one_pass.count > written:
                complete = False
                break
    if writer:
        put(writer.end())
    groups = sorted(one_pass.groups.items(), key=lambda item: (-item[1][0], str(item[0])))
    return Reading(
        flows=flows,
        count=one_pass.count,
        complete=complete,
        groups=[
            {**dict(zip(query.group_by, key)), "flows": n, "packets": packets, "bytes": octets}
            for key, (n, packets, octets) in groups[:listed]
        ],
        group_count=len(groups),
        summary=_summary(one_pass, source) if summary else None,
        shapes=one_pass.shapes,
    )


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


def _summary(done: Pass, source: Source) -> dict[str, t.Any]:
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
        "settings": {name: type(chain.KNOBS[name])(value) for name, value in knobs.items()},
        "clock": {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            "monotonic": round(done.clock.monotonic_ns / 1e9, 3),
            "jiffies": done.clock.jiffies,
            "hz": done.clock.hz,
        },
    }


# ---------------------------------------------------------------- deleting
@dataclasses.dataclass
class Deletion:
    """What a deleting pass did, or would do.

    :ivar plan: a step for each entry found, at most as many as the limit.
    :ivar count: how many entries were found.
    :ivar deleted: how many of them were deleted; those that a packet revived or that were gone
        before are not among them.
    :ivar expired: how many of those found were no live flows, but had only expired;
        ``deleted_expired`` of those deleted.
    """

    plan: list[Step] = dataclasses.field(default_factory=list)
    count: int = 0
    deleted: int = 0
    expired: int = 0
    deleted_expired: int = 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which entries are to go.

    :ivar reason: why, for the plan.
    :ivar filters: those of the live flows that match.
    :ivar live: flows whose time is not over.
    :ivar expired: entries whose time is over.
    """

    reason: str
    filters: flow_filter.Filters = flow_filter.Filters({})
    live: bool = True
    expired: bool = False

    @property
    def fixed(self) -> bool:
        """Whether an entry that was to go once is to go whatever packets do to it."""
        return self.live and self.filters.fixed


#: What sweep() deletes.
EXPIRED = Choice("its time is over", live=False, expired=True)
#: Everything.
EVERYTHING = Choice("all flows are to go", expired=True)


def _doomed(
    rows: t.Iterable[flow.Row], choice: Choice, table: flow.Table, clock: Clock
) -> t.Iterator[tuple[bool, flow.Row]]:
    """Return (whether its time is over, row) for the rows that are to go."""
    tests = choice.filters.tests(table, clock)
    if tests is None:
        return
    for row in flow_filter.choose(rows, tests):
        over = clock.over(row[1][flow.EXPIRES], row[1][flow.LAST_SEEN])
        if choice.expired if over else choice.live:
            yield over, row


def _never() -> bool:
    return False


def delete(
    source: Source,
    choice: Choice,
    limit: int = flow_filter.DEFAULT_LIMIT,
    dry: bool = False,
    most: int | None = None,
    enough: t.Callable[[], bool] = _never,
) -> Deletion:
    """Delete the entries that are to go, batch by batch; what was deleted is counted by reason.

    The source is open for writing(), unless ``dry``. Each entry is read again just before it is
    deleted, unless no packet can change that it is to go: a flow that was revived since stays.
    There is no undoing: an error ends the pass, and its facts say how many entries are gone.

    :param limit: at most so many steps in the plan.
    :param dry: only find the entries.
    :param most: end after about so many deletions; None for no such bound.
    :param enough: is asked after each batch whether to end.
    """
    done, counted = Deletion(), dict.fromkeys(chain.DELETIONS, 0)
    try:
        for opened in source.tables:
            clock = source.clock()
            decoder = flow.Decoder(opened.table, clock)
            for dummy, keys, values in source.batches(opened):
                rows = (
                    decoder.packed_rows(keys, values)
                    if choice.live
                    else decoder.over_rows(keys, values)
                )
                found = list(_doomed(rows, choice, opened.table, clock))
                done.plan += [
                    _step(flow.record(*item[:2]), choice)
                    for item in decoder.flows(
                        (row for dummy, row in found[: limit - len(done.plan)]), over=True
                    )
                ]
                done.count += len(found)
                done.expired += sum(over for over, dummy in found)
                if enough():
                    return done
                if dry or not found:
                    continue
                for over, keys_of_some in _deletable(source, opened, choice, found):
                    number = source.delete(opened, keys_of_some)
                    counted["deleted_expired" if over else "deleted_flushed"] += number
                    counted["assured_deleted"] += (
                        number if opened.table.flow_class == "assured" else 0
                    )
                    done.deleted += number
                    done.deleted_expired += number if over else 0
                if most is not None and done.deleted >= most:
                    return done
    except ConntrackError as exc:
        exc.facts.setdefault("deleted", done.deleted)
        raise
    finally:
        source.count_deleted(counted)
    return done


def _deletable(
    source: Source, opened: OpenTable, choice: Choice, found: t.Sequence[tuple[bool, flow.Row]]
) -> t.Iterator[tuple[bool, list[bytes]]]:
    """Return (whether their time is over, keys) of what is to be deleted: at once where packets
    change nothing, else each right after it was read again.
    """
    if choice.fixed:
        for over in (True, False):
            yield over, [row[2] for was_over, row in found if was_over is over]
    else:
        for over, row in _still_doomed(source, opened, choice, found):
            yield over, [row[2]]


def _still_doomed(
    source: Source, opened: OpenTable, choice: Choice, found: t.Iterable[tuple[bool, flow.Row]]
) -> t.Iterator[tuple[bool, flow.Row]]:
    clock = source.clock()
    for dummy, row in found:
        value = source.lookup(opened, row[2])
        if value is not None:
            yield from _doomed(
                [(row[0], flow.VIEW.unpack(value), row[2], value)], choice, opened.table, clock
            )


def sweep(source: Source, most: int | None = None, enough: t.Callable[[], bool] = _never) -> int:
    """Delete entries whose time is over; those that a packet revived meanwhile stay.

    :param most: end after about so many deletions, so that one sweep takes a bounded time; None for
        no such bound.
    :param enough: is asked after each batch whether to end.
    :return: how many were deleted.
    """
    return delete(source, EXPIRED, limit=0, most=most, enough=enough).deleted


def _step(record: flow.Record, choice: Choice) -> Step:
    return Step("delete", "flow", title(record), choice.reason, before=record)


def title(record: flow.Record) -> str:
    """Return what people call a flow.

    >>> title({"proto": "udp", "orig": {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 5, "dport": 53}})
    'udp 10.0.0.1:5 -> 10.0.0.2:53'
    """
    ends = [
        flow.endpoint(record["orig"][address], record["orig"].get(port))
        for address, port in (("src", "sport"), ("dst", "dport"))
    ]
    icmp = record.get("icmp")
    return f"{record['proto']} {' -> '.join(ends)}" + (
        f" type {icmp['type']} code {icmp['code']} id {icmp['id']}" if icmp else ""
    )
