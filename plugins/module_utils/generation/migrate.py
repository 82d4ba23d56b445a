# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take flows and counters over from the maps of another generation, while packets go on changing
them.

Each flow stands in one table at any time. The new chain knows the tables of the one before (its
maps ``pred`` and ``pred6``): a packet of a flow that it does not have moves the flow over, under
the entry's lock, and then counts in it. While interfaces are switched one after the other the old
chain knows the new tables in the same way. When all are switched, the chain's program ``adopt``
moves the flows that no packet asked for. A run that is killed meanwhile leaves a chain that works,
and the next run goes on where it stopped.

Entries of another form can not be moved by programs that do not know it. They are translated into
tables that stand in for the old ones, with their counts at 0, and what the old chain counted is
added when it counts no more.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import struct
import time
import typing as t

from ..chain import clock
from ..chain import jiffies as chain_jiffies
from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..core.errors import ConntrackError
from ..flows import schema
from ..kernel import bpf, bpf_batch, bpf_constants
from . import health, pinned_objects
from .migrate_plan import Census, Inheritance, Legacy, Maps, cutoff, decide, ranks

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
#: Where each family's other tables are known.
_PRED = {"ipv4": "pred", "ipv6": "pred6"}
#: What packets and bytes are counted in.
_COUNTS = (
    "orig.packets",
    "orig.bytes",
    "reply.packets",
    "reply.bytes",
    "related.packets",
    "related.bytes",
)
#: Times that all is gone over again, for the flows that were just then in a packet's hands.
_ROUNDS = 20
_ROUND_SECONDS = 0.005
#: How long a packet may be in the old chain, where the kernel does not tell.
_GRACE_SECONDS = 0.02


class Failed(ConntrackError):
    """Flows could not be moved."""


# ---------------------------------------------------------------- reading
def read_maps(number: int, directory: str) -> Maps:
    """Read what a generation's maps are: those that its programs use, else those that are pinned.

    :param directory: that of the generation.
    """
    seen = health.look(directory, number)
    infos = dict(seen.maps)
    map_dir = os.path.join(directory, "map")
    for name in pinned_objects.names(map_dir):
        if name not in infos and name not in seen.pinned:  # one that this release does not know
            with pinned_objects.open_pin(os.path.join(map_dir, name)) as (kind, fd):
                if kind == "map":
                    infos[name] = bpf.map_info(fd)
    description = None
    if "schema" in infos and infos["schema"].kind == bpf_constants.MAP_TYPES["array"]:
        with bpf.closing(bpf.map_get_fd_by_id(infos["schema"].id)) as fd:
            description = schema.parse(
                bpf.map_lookup(fd, _U32.pack(0), infos["schema"].value_size) or b""
            )
    here = schema.describe()
    digest = (
        seen.meta.get("schema", 0)
        if seen.true_meta
        else schema.digest(here)
        if seen.layout == chain_layout.LAYOUT_VERSION
        else 0
    )
    if (digest, seen.layout) == (
        schema.digest(here),
        chain_layout.LAYOUT_VERSION,
    ) and description is None:
        description = here
    elif description is not None and schema.digest(description) != digest:
        description = None  # one of the two is damaged
    return Maps(
        number, directory, description or schema.KNOWN.get(seen.layout), seen.layout, digest, infos
    )


def _read_meta(maps: Maps) -> dict[str, int]:
    info = maps.infos.get("meta")
    if info is None or (info.kind, info.key_size, info.value_size) != (
        bpf_constants.MAP_TYPES["array"],
        _U32.size,
        _U64.size,
    ):
        return dict.fromkeys(chain_maps.META, 0)
    with bpf.closing(bpf.map_get_fd_by_id(info.id)) as fd:
        return pinned_objects.read_meta(fd)


class _Open(contextlib.ExitStack):
    """The maps of both generations, opened when they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._fds: dict[int, int] = {}

    def map(self, maps: Maps, name: str) -> int:
        """Return a map's file descriptor."""
        number = maps.infos[name].id
        if number not in self._fds:
            self._fds[number] = self.keep(bpf.map_get_fd_by_id(number))
        return self._fds[number]

    def keep(self, fd: int) -> int:
        """Close it with the others."""
        self.callback(bpf.close, fd)
        return fd


def _times(description: schema.Description) -> struct.Struct:
    """Return what reads ctl, expires and last_seen of an entry."""
    wanted = {"ctl", "expires", "last_seen"}
    return struct.Struct(
        "="
        + "".join(
            code if name in wanted else f"{struct.calcsize('=' + code)}x"
            for name, code in description["entry"]
        )
    )


def _order(description: schema.Description) -> list[int]:
    """Return at which places of what _times() reads ctl, expires and last_seen stand."""
    there = [
        name for name, dummy in description["entry"] if name in ("ctl", "expires", "last_seen")
    ]
    return [there.index(name) for name in ("ctl", "expires", "last_seen")]


def _batches(fd: int, info: bpf.MapInfo) -> t.Iterator[tuple[int, memoryview, memoryview]]:
    return bpf.map_batches(fd, info.key_size, info.value_size)


def census(inherited: Inheritance) -> Census:
    """Count the live flows that are to go over, or to be forgotten."""
    old, new = inherited.old, t.cast("schema.Description", inherited.new.description)
    was = old.description
    if was is None:
        return Census()
    meta = _read_meta(old)
    if not meta["jiffies"]:
        return Census()  # the chain has not seen a packet yet
    now, rate = clock.jiffies_now(meta), chain_jiffies.hz()
    flows = ranks()
    with _Open() as fds:
        for name in inherited.moved or (was["tables"] if inherited.forgotten else ()):
            family, kind = was["tables"][name]
            if name not in old.infos or (
                old.infos[name].key_size,
                old.infos[name].value_size,
            ) != tuple(was["maps"][name][1:]):
                continue
            for (assured, idle), number in _ranked(
                fds.map(old, name), old.infos[name], was, now, rate
            ).items():
                flows[schema.destination(new, family, assured or kind == "assured")][
                    not assured, idle
                ] += number
    return Census(flows)


def _ranked(
    fd: int, info: bpf.MapInfo, description: schema.Description, now: int, rate: int
) -> dict[tuple[bool, int], int]:
    """Return how many live flows of a table there are by (assured, idle seconds)."""
    view, (ctl, expires, last_seen), assured = (
        _times(description),
        _order(description),
        description["ctl"]["assured"],
    )
    found: dict[tuple[bool, int], int] = {}
    now &= 0xFFFFFFFF
    for dummy_count, dummy_keys, values in _batches(fd, info):
        for fields in view.iter_unpack(values):
            if not clock.over(fields[expires], fields[last_seen], now, rate):
                idle = (now - fields[last_seen]) & 0xFFFFFFFF
                rank = bool(fields[ctl] & assured), idle // rate if idle < 1 << 31 else 0
                found[rank] = found.get(rank, 0) + 1
    return found


def legacy(old: Maps, new: Maps, policy: str) -> Legacy:
    """Return what a generation gets of another one's maps; see decide() for the parameters and
    errors.
    """
    inherited = decide(old, new, policy)
    return Legacy(inherited, census(inherited) if inherited.counts else Census())


# ---------------------------------------------------------------- before the interfaces are switche
def connect(inherited: Inheritance) -> None:
    """Let the new generation take over what the old one has, as soon as packets come. Nothing of
    the old one is changed.

    Flows that the new one's tables have of their own are forgotten: those of a generation that was
    active before are out of date.
    """
    old, new = inherited.old, inherited.new
    with _Open() as fds:
        _clear(fds, inherited)
        _write_meta(fds, new, counted=0)
        for name in inherited.counters:
            if name != "stats":  # user space alone writes it
                for index, number in enumerate(_by_name(fds, inherited, name)):
                    bpf.map_update(fds.map(new, name), _U32.pack(index), _U64.pack(number))
        for name in inherited.moved:
            _connect_table(fds, inherited, name)
        if inherited.goes_over:
            _write_meta(fds, new, source=old.number)


def _connect_table(fds: _Open, inherited: Inheritance, name: str) -> None:
    old, new = inherited.old, inherited.new
    was, here = (
        t.cast("schema.Description", old.description),
        t.cast("schema.Description", new.description),
    )
    family, kind = was["tables"][name]
    translator = schema.Translator(was, here) if inherited.translated else None
    source, info = fds.map(old, name), old.infos[name]
    if (
        _PRED[family] not in new.infos
        # a generation of layout 1: what comes until the switch is not in these windows, which begin
        # anew
    ):
        translator = schema.Translator(was, here)
        for count, keys, values in _batches(source, info):
            for number in range(count):
                key, value = (
                    bytes(raw[number * size : (number + 1) * size])
                    for raw, size in ((keys, info.key_size), (values, info.value_size))
                )
                _place_entry(fds, inherited, name, key, value, translator)
        return
    if translator:
        stand_in = fds.keep(_stand_in(inherited, name))
        for count, new_keys, new_values, dummy, dummy in _stand_in_entries(
            source, info, family, translator, here, counted=False
        ):
            bpf_batch.map_update_batch(stand_in, new_keys, new_values, count)
        source = stand_in
    bpf.map_update(fds.map(new, _PRED[family]), _U32.pack(_place(kind)), _U32.pack(source))


def connect_back(inherited: Inheritance) -> None:
    """Let the old generation, while it still has interfaces, take flows over from the new one,
    where it can.
    """
    back = Inheritance(inherited.new, inherited.old, moved=inherited.destinations)
    if (
        inherited.translated
        or not inherited.moved
        or not set(_PRED.values()) <= set(inherited.old.infos)
    ):
        return
    with _Open() as fds:
        for name in back.moved:
            family, kind = t.cast("schema.Description", back.old.description)["tables"][name]
            bpf.map_update(
                fds.map(back.new, _PRED[family]),
                _U32.pack(_place(kind)),
                _U32.pack(fds.map(back.old, name)),
            )
        _write_meta(fds, back.new, source=back.old.number, counted=0)


def disconnect(maps: Maps) -> None:
    """Let a generation take nothing over any more; when this returns, no packet is on its way that
    still does.
    """
    with _Open() as fds:
        for name in _PRED.values():
            if name in maps.infos:
                for index in range(len(chain_maps.FLOW_CLASSES)):
                    bpf.map_delete(fds.map(maps, name), _U32.pack(index))
        _write_meta(fds, maps, source=0)


def _place(kind: str) -> int:
    return chain_maps.FLOW_CLASSES.index("half_open" if kind == schema.ALL else kind)


def _write_meta(fds: _Open, maps: Maps, **values: int) -> None:
    for name, value in values.items():
        if "meta" in maps.infos and maps.infos["meta"].max_entries > chain_maps.META[name]:
            bpf.map_update(
                fds.map(maps, "meta"), _U32.pack(chain_maps.META[name]), _U64.pack(value)
            )


def _clear(fds: _Open, inherited: Inheritance) -> None:
    """Empty the new generation's own tables, and set its counters to 0."""
    new = inherited.new
    for name in t.cast("schema.Description", new.description)["tables"]:
        if name not in inherited.shared:
            info = new.infos[name]
            for count, keys, dummy in _batches(fds.map(new, name), info):
                packed = bytes(keys)
                bpf_batch.map_delete_batch(
                    fds.map(new, name),
                    [
                        packed[at : at + info.key_size]
                        for at in range(0, count * info.key_size, info.key_size)
                    ],
                )
    if "stats" in inherited.counters:
        for index in range(new.infos["stats"].max_entries):
            bpf.map_update(fds.map(new, "stats"), _U32.pack(index), bytes(8 * bpf.possible_cpus()))


def _stand_in(inherited: Inheritance, name: str) -> int:
    """Create the table that stands in for an old one, in the new form. :return: fd."""
    family = t.cast("schema.Description", inherited.old.description)["tables"][name][0]
    like = inherited.new.infos[
        schema.destination(t.cast("schema.Description", inherited.new.description), family, True)
    ]
    return bpf.map_create(
        like.kind,
        f"{name}_old",
        like.key_size,
        like.value_size,
        inherited.old.infos[name].max_entries + bpf_batch.lru_spare(),
    )


def _stand_in_entries(
    fd: int,
    info: bpf.MapInfo,
    family: str,
    translator: schema.Translator,
    description: schema.Description,
    counted: bool,
) -> t.Iterator[tuple[int, bytes, bytes, memoryview, memoryview]]:
    """Return an old table in batches: their number, new keys and new values, old keys and old
    values.

    :param counted: whether the new values have their counts.
    """
    codec, zeros = (
        chain_layout.codec(description["entry"]),
        [number for number, (name, dummy) in enumerate(description["entry"]) if name in _COUNTS],
    )
    for count, keys, values in _batches(fd, info):
        new_keys, new_values = [], []
        for number in range(count):
            key = bytes(keys[number * info.key_size : (number + 1) * info.key_size])
            value = translator.entry(
                family,
                key,
                bytes(values[number * info.value_size : (number + 1) * info.value_size]),
            )
            if not counted:
                fields = list(codec.unpack(value))
                for at in zeros:
                    fields[at] = 0
                value = codec.pack(*fields)
            new_keys.append(translator.key(family, key))
            new_values.append(value)
        yield count, b"".join(new_keys), b"".join(new_values), keys, values


def _by_name(fds: _Open, inherited: Inheritance, name: str) -> list[int]:
    """Return the old generation's counters in the order of the new one's, 0 for those that it did
    not have.
    """
    old, new = inherited.old, inherited.new
    names = t.cast("schema.Description", old.description)["counters"][name]
    fd, numbers = fds.map(old, name), {}
    for index, counter in enumerate(names):
        if old.infos[name].kind == bpf_constants.MAP_TYPES["percpu_array"]:
            numbers[counter] = sum(
                _U64.unpack(value)[0] for value in bpf.percpu_value(fd, index, _U64.size)
            )
        else:
            numbers[counter] = _U64.unpack(
                bpf.map_lookup(fd, _U32.pack(index), _U64.size) or bytes(8)
            )[0]
    return [
        numbers.get(counter, 0)
        for counter in t.cast("schema.Description", new.description)["counters"][name]
    ]


# ---------------------------------------------------------------- when all interfaces are switched
def finish(new: Maps, old: Maps) -> dict[str, int]:
    """Take over what is left, and let the old generation go: how many flows of each new table had
    no room.

    It can be done again after a run that was killed meanwhile.

    :raises ConntrackError: when flows can not be moved; they stay where they are, and the new chain
        finds them there.
    """
    inherited = decide(old, new, "migrate")
    disconnect(old)
    with _Open() as fds:
        _wait_for_packets(fds, inherited)
        adopt = _adopt_program(fds, new)
        if "stats" in inherited.counters:
            _add_counters(fds, inherited, adopt)
        move = _Move(fds, inherited, adopt)
        for name in inherited.moved:
            move.table(name)
    disconnect(new)
    return dict(move.dropped)


def _wait_for_packets(fds: _Open, inherited: Inheritance) -> None:
    """Wait until no packet is in the old chain any more: the kernel does so when it changes an
    array of maps.
    """
    for name in _PRED.values():
        if name not in inherited.new.infos:
            continue
        fd = fds.map(inherited.new, name)
        for index in range(len(chain_maps.FLOW_CLASSES)):
            raw = bpf.map_lookup(fd, _U32.pack(index), _U32.size)
            if raw and _U32.unpack(raw)[0]:
                with bpf.closing(bpf.map_get_fd_by_id(_U32.unpack(raw)[0])) as there:
                    bpf.map_update(fd, _U32.pack(index), _U32.pack(there))
                return
    time.sleep(_GRACE_SECONDS)


def _adopt_program(fds: _Open, maps: Maps) -> int | None:
    """Open the program that moves flows; None where a generation has none."""
    path = os.path.join(maps.directory, "prog", chain_programs.ADOPT)
    return fds.keep(bpf.obj_get(path)) if os.path.lexists(path) else None


def _request(adopt: int, what: str, items: int, data: bytes) -> int:
    """Have the chain do something with its maps. :return: how many items it could not do."""
    left = bpf.prog_test_run(
        adopt,
        chain_programs.ADOPT_REQUEST.pack(chain_programs.ADOPT_REQUESTS.index(what), items, 0)
        + data,
    ).retval
    if left > items:
        raise Failed(f"the program {chain_programs.ADOPT} refused a request for {items} {what}.")
    return left


def _add_counters(fds: _Open, inherited: Inheritance, adopt: int | None) -> None:
    numbers = _by_name(fds, inherited, "stats")
    if adopt is not None:
        _request(adopt, "counts", len(numbers), struct.pack(f"={len(numbers)}Q", *numbers))
        return
    for index, number in enumerate(numbers):
        values = bpf.percpu_value(fds.map(inherited.new, "stats"), index, _U64.size)
        values[0] = _U64.pack(_U64.unpack(values[0])[0] + number)
        bpf.map_update(fds.map(inherited.new, "stats"), _U32.pack(index), b"".join(values))


class _Move:
    """Moves flows from the old tables to the new ones; the assured and the latest ones where there
    is not room for all.

    :ivar dropped: flows that stay behind, by the table that they would have gone to.
    """

    def __init__(self, fds: _Open, inherited: Inheritance, adopt: int | None) -> None:
        self.fds, self.inherited, self.adopt = fds, inherited, adopt
        self.was = t.cast("schema.Description", inherited.old.description)
        self.here = t.cast("schema.Description", inherited.new.description)
        self.translator = schema.Translator(self.was, self.here) if inherited.translated else None
        self.dropped: collections.Counter[str] = collections.Counter()
        self._now, self._rate = (
            clock.jiffies_now(_read_meta(inherited.old)) if inherited.counts else 0,
            chain_jiffies.hz(),
        )
        self._left = self._allowed() if inherited.counts else {}

    def _allowed(self) -> dict[str, tuple[tuple[bool, int], list[int]]]:
        """Return for each new table that has not room for all up to which rank flows go there, and
        how many of that rank.
        """
        found = {}
        counted = census(self.inherited)
        for table in self.inherited.destinations:
            there = sum(
                count
                for count, dummy, dummy in _batches(
                    self.fds.map(self.inherited.new, table), self.inherited.new.infos[table]
                )
            )
            limit = cutoff(counted.flows.get(table, {}), self.inherited.room(table) - there)
            if limit:
                found[table] = (limit[0], [limit[1]])
        return found

    def table(self, name: str) -> None:
        """Move the flows of one old table."""
        family, kind = self.was["tables"][name]
        info = self.inherited.old.infos[name]
        old = self.fds.map(self.inherited.old, name)
        size = info.key_size
        if self.translator and self.adopt is not None:
            pred = self.fds.map(self.inherited.new, _PRED[family])
            number = _U32.unpack(
                bpf.map_lookup(pred, _U32.pack(_place(kind)), _U32.size) or bytes(4)
            )[0]
            source = self.fds.keep(bpf.map_get_fd_by_id(number))
            like = bpf.map_info(source)
            size = like.key_size
            batches = self._renewed(old, info, family, source)
        else:
            source, batches = (
                old,
                ((keys, keys, values) for dummy, keys, values in _batches(old, info)),
            )
        stuck: list[bytes] = []
        for keys, dummy, values in batches:
            chosen = self._chosen(family, kind, keys, size, values) if self._left else bytes(keys)
            if self.adopt is None:
                self._put(source, name, chosen, size)
            else:
                stuck += self._take(family, chosen, size)
        for _turn in range(_ROUNDS):
            if not stuck:
                return
            time.sleep(_ROUND_SECONDS)
            again, stuck = stuck, []
            for keys in again:
                stuck += self._take(family, keys, size)
        for keys in stuck:
            self._put(source, name, keys, size)

    def _renewed(
        self, old: int, info: bpf.MapInfo, family: str, source: int
    ) -> t.Iterator[tuple[t.Any, t.Any, t.Any]]:
        """Bring the table that stands in for an old one up to date, counts and all, and return it
        in batches.
        """
        for count, keys, values, old_keys, old_values in _stand_in_entries(
            old, info, family, t.cast("schema.Translator", self.translator), self.here, counted=True
        ):
            bpf_batch.map_update_batch(source, keys, values, count)
            yield keys, old_keys, old_values

    def _chosen(self, family: str, kind: str, keys: t.Any, size: int, values: t.Any) -> bytes:
        """Return the keys of a batch that there is room for."""
        view, (ctl, expires, last_seen), assured = (
            _times(self.was),
            _order(self.was),
            self.was["ctl"]["assured"],
        )
        chosen = []
        for number, fields in enumerate(view.iter_unpack(values)):
            key = bytes(keys[number * size : (number + 1) * size])
            mine = bool(fields[ctl] & assured)
            table = schema.destination(self.here, family, mine or kind == "assured")
            limit = self._left.get(table)
            if limit and not clock.over(fields[expires], fields[last_seen], self._now, self._rate):
                idle = (self._now - fields[last_seen]) & 0xFFFFFFFF
                rank = (not mine, idle // self._rate if idle < 1 << 31 else 0)
                if rank > limit[0] or (rank == limit[0] and not limit[1][0]):
                    self.dropped[table] += 1
                    continue
                limit[1][0] -= rank == limit[0]
            chosen.append(key)
        return b"".join(chosen)

    def _take(self, family: str, keys: bytes, size: int) -> list[bytes]:
        """Move the flows with these keys. :return: requests of which something was in a packet's
        hands.
        """
        step = size * chain_programs.ADOPT_KEYS
        requests = (keys[at : at + step] for at in range(0, len(keys), step))
        return [
            one
            for one in requests
            if _request(t.cast("int", self.adopt), family, len(one) // size, one)
        ]

    def _put(self, source: int, name: str, keys: bytes, size: int) -> None:
        """Move flows that the chain can not: because it has no program for it, or because somebody
        left them locked.
        """
        value_size = bpf.map_info(source).value_size
        # what stands in for the old table has the new form
        translator = self.translator if self.adopt is None else None
        for at in range(0, len(keys), size):
            key = keys[at : at + size]
            value = bpf.map_lookup(source, key, value_size)
            if value is not None:
                _place_entry(self.fds, self.inherited, name, key, value, translator)
                bpf.map_delete(source, key)


def _place_entry(
    fds: _Open,
    inherited: Inheritance,
    name: str,
    key: bytes,
    value: bytes,
    translator: schema.Translator | None,
) -> None:
    """Write an entry of an old table into the new one where it belongs, unless the flow is there;
    nobody holds its lock then.
    """
    here = t.cast("schema.Description", inherited.new.description)
    family, kind = t.cast("schema.Description", inherited.old.description)["tables"][name]
    if translator:
        key, value = translator.key(family, key), translator.entry(family, key, value)
    codec, at = (
        chain_layout.codec(here["entry"]),
        [field for field, dummy in here["entry"]].index("ctl"),
    )
    fields = list(codec.unpack(value))
    fields[at] &= ~here["ctl"]["lock"]
    table = schema.destination(
        here, family, bool(fields[at] & here["ctl"]["assured"]) or kind == "assured"
    )
    try:
        bpf.map_update(
            fds.map(inherited.new, table), key, codec.pack(*fields), bpf_constants.BPF_NOEXIST
        )
    except bpf.BpfError as exc:
        if exc.errno != errno.EEXIST:
            raise
