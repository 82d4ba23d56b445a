# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of one generation's maps in the next: handed on, moved entry by entry, translated,
or left behind. Nothing here asks the kernel.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..core.errors import ConntrackError
from ..flows import schema
from ..kernel import bpf, bpf_batch, bpf_constants

#: What ``on_schema_change`` may be.
POLICIES = ("fail", "migrate", "drop")
#: A table that will hold more than this share of what it has room for is worth a warning.
_FULL = 0.9


@dataclasses.dataclass(frozen=True)
class Maps:
    """The maps of a generation.

    :ivar number: the generation's.
    :ivar directory: the generation's, where its maps and programs are pinned.
    :ivar description: what their entries are; None where nothing known tells.
    :ivar layout: version of their layout.
    :ivar digest: schema.digest() of the description, as ``meta`` has it; 0 where it has none.
    :ivar infos: by name.
    """

    number: int
    directory: str
    description: schema.Description | None
    layout: int
    digest: int
    infos: t.Mapping[str, bpf.MapInfo]


@dataclasses.dataclass(frozen=True)
class Census:
    """The live flows of tables that are not handed on as they are.

    :ivar flows: for each table that they go to, how many there are by (not assured, idle seconds),
        which is the order in which they are kept.
    """

    flows: t.Mapping[str, t.Mapping[tuple[bool, int], int]] = dataclasses.field(
        default_factory=dict
    )

    def total(self, table: str) -> int:
        """Return how many flows are to go to this table."""
        return sum(self.flows.get(table, {}).values())


@dataclasses.dataclass(frozen=True)
class Inheritance:
    """What the maps of ``new`` get from those of ``old``.

    :ivar shared: names of the maps that are the same ones.
    :ivar moved: names of the old flow tables whose flows go over.
    :ivar counters: names of the maps of counters that are added by name.
    :ivar empty: names of the maps that start empty although old ones are there.
    :ivar translated: whether entries change their form on the way.
    :ivar forgotten: whether flows are left behind, as on_schema_change: drop has it.
    :ivar reason: why not all is shared, for people.
    """

    old: Maps
    new: Maps
    shared: frozenset[str] = frozenset()
    moved: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    translated: bool = False
    forgotten: bool = False
    reason: str = ""

    @property
    def goes_over(self) -> bool:
        """Whether there is something to be taken over when the new generation runs."""
        return bool(self.moved or self.counters)

    @property
    def destinations(self) -> tuple[str, ...]:
        """The new flow tables that get flows of others."""
        new = t.cast("schema.Description", self.new.description)
        families = {
            t.cast("schema.Description", self.old.description)["tables"][name][0]
            for name in self.moved
        }
        return tuple(
            name
            for name, (family, dummy) in new["tables"].items()
            if family in families and name not in self.shared
        )

    def room(self, table: str) -> int:
        """Return how many flows a new table surely holds."""
        return room_of(self.new.infos[table].max_entries)

    @property
    def counts(self) -> bool:
        """Whether the live flows have to be counted to say what becomes of them: there may not be
        room for all of them, or none is taken along.
        """
        if self.forgotten:
            return True
        return any(
            sum(self.old.infos[name].max_entries for name in self._sources(table))
            > self.room(table)
            for table in self.destinations
        )

    def _sources(self, table: str) -> list[str]:
        """Return the old tables whose flows may go to a new one."""
        old, new = (
            t.cast("schema.Description", self.old.description)["tables"],
            t.cast("schema.Description", self.new.description)["tables"],
        )
        return [
            name
            for name in self.moved
            if old[name][0] == new[table][0]
            and schema.ALL in (old[name][1], new[table][1])
            or old[name] == new[table]
        ]

    def dropped(self, census: Census) -> dict[str, int]:
        """Return by new table how many flows can not be kept."""
        if self.forgotten:
            return {table: number for table in census.flows if (number := census.total(table))}
        return {
            table: number
            for table in self.destinations
            if (number := census.total(table) - self.room(table)) > 0
        }

    def warnings(self, census: Census) -> list[str]:
        """Return what somebody should know before it is done."""
        if self.forgotten:
            number = sum(self.dropped(census).values())
            return (
                [
                    f"{number} flows are forgotten: the tables' layout changes and on_schema_change"
                    " is drop."
                ]
                if number
                else []
            )
        found = []
        for table in self.destinations:
            number, room = census.total(table), self.room(table)
            if number > room:
                found.append(
                    f"{table}: {number - room} of {number} flows can not be kept, there is room for"
                    f" {room}: the assured and latest ones are kept."
                )
            elif number > _FULL * room:
                found.append(
                    f"{table}: {number} flows will fill {number / room:.0%} of the room that"
                    " there is."
                )
        return found


@dataclasses.dataclass(frozen=True)
class Legacy:
    """An inheritance, and the flows that were counted to tell what becomes of them."""

    inherited: Inheritance
    census: Census = dataclasses.field(default_factory=Census)


def room_of(entries: int) -> int:
    """Return how many flows a table of so many entries surely holds: a full LRU table pushes some
    out while other CPUs still have free nodes.
    """
    cpus = bpf.possible_cpus()
    return entries - cpus * min(max(entries // cpus // 2, 1), bpf_batch.LRU_BATCH)


def wanted(number: int, directory: str, specs: t.Iterable[chain_maps.MapSpec]) -> Maps:
    """Return the maps of a generation that is to be built."""
    infos = {
        spec.name: bpf.MapInfo(
            0,
            bpf_constants.MAP_TYPES[spec.kind],
            spec.name,
            spec.key_size,
            spec.value_size,
            t.cast("int", spec.entries),
            0,
        )
        for spec in specs
    }
    description = schema.describe()
    return Maps(
        number,
        directory,
        description,
        chain_layout.LAYOUT_VERSION,
        schema.digest(description),
        infos,
    )


def foreign(maps: Maps) -> list[str]:
    """Return what of the maps that are handed on is not what their description says, for people."""
    found = []
    for name, (kind, key_size, value_size) in (maps.description or {}).get("maps", {}).items():
        info = maps.infos.get(name)
        if info and (info.kind, info.key_size, info.value_size) != (
            bpf_constants.MAP_TYPES[kind],
            key_size,
            value_size,
        ):
            there = next(
                (known for known, number in bpf_constants.MAP_TYPES.items() if number == info.kind),
                f"map of type {info.kind}",
            )
            found.append(
                f"{maps.directory}/map/{name} (map {info.id}, {info.name}) is a {there} with keys"
                f" of {info.key_size} and values of {info.value_size} bytes, not a {kind} with"
                f" {key_size} and {value_size}"
            )
    return found


def decide(old: Maps, new: Maps, policy: str = "fail") -> Inheritance:
    """Return what the new generation gets of the old one.

    :param policy: one of POLICIES.
    :raises ConntrackError: when the old tables can not be taken over as the policy has it, naming
        what differs and the ways on.
    """
    same = old.digest == new.digest and old.layout == new.layout
    known = old.layout in schema.KNOWN and not old.digest
    if policy == "drop" and not same:
        return _forgotten(old, new)
    strangers = foreign(old)
    if strangers:
        if policy == "drop":
            return _forgotten(old, new)
        raise ConntrackError(
            f"generation {old.number}: {'; '.join(strangers)}: it is not of this collection's"
            " making, or damaged. Nothing was changed. Put the right pin back, or give"
            " on_schema_change: drop, which starts with empty tables and forgets the flows."
        )
    if not old.infos:
        return Inheritance(old, new)
    here = t.cast("schema.Description", new.description)
    if not same and not known and policy == "fail":
        raise ConntrackError(_refusal(old, new))
    if old.description is None:
        raise ConntrackError(
            f"the tables of generation {old.number} have layout {old.layout} and no description, so"
            f" they can not be translated into layout {new.layout}. Nothing was changed. Give"
            " on_schema_change: drop to start with empty tables, or go on with the release that"
            " made them."
        )
    translated = not schema.alike(old.description, here)
    if translated:
        schema.Translator(old.description, here)
    return _parted(
        old,
        new,
        translated,
        (
            "another layout"
            if not same
            else "other tables"
            if any(info.id for info in new.infos.values())
            else "another size"
        ),
    )


def _forgotten(old: Maps, new: Maps) -> Inheritance:
    names = tuple(
        name for name in t.cast("schema.Description", new.description)["maps"] if name in old.infos
    )
    return Inheritance(old, new, empty=names, forgotten=True, reason="on_schema_change: drop")


def _refusal(old: Maps, new: Maps) -> str:
    here = t.cast("schema.Description", new.description)
    apart = schema.differences(old.description, here) if old.description else []
    told = (
        "; ".join(apart[:8]) + ("; ..." if len(apart) > 8 else "")
        if apart
        else "it does not tell what they are made of"
    )
    return (
        f"the tables of generation {old.number} have layout {old.layout} (schema"
        f" {old.digest:016x}), this release's have layout {new.layout} (schema {new.digest:016x}):"
        f" {told}. Nothing was changed. There are three ways on, by on_schema_change: migrate takes"
        " the flows over field by field, by name; drop starts with empty tables and forgets the"
        " flows; fail, the default, leaves all as it is: go on with the release that made them."
    )


def _parted(old: Maps, new: Maps, translated: bool, reason: str) -> Inheritance:
    """Part the maps by what becomes of them."""
    was, here = (
        t.cast("schema.Description", old.description),
        t.cast("schema.Description", new.description),
    )
    shared, counters, empty = set(), [], []
    for name in here["maps"]:
        one, other = old.infos.get(name), new.infos[name]
        fits = (
            one is not None
            and was["maps"].get(name) == here["maps"][name]
            and one.max_entries == other.max_entries
            and other.id in (0, one.id)
        )
        if name in here["counters"]:
            named = was["counters"].get(name)
            if fits and named == here["counters"][name]:
                shared.add(name)
            elif one is not None and named is not None and len(named) == one.max_entries:
                counters.append(name)
            elif one is not None:
                empty.append(name)
        elif name in here["tables"]:
            if fits and not translated and was["tables"].get(name) == here["tables"][name]:
                shared.add(name)
        elif fits:
            shared.add(name)
        elif one is not None:
            empty.append(name)
    if not translated:
        shared |= _events_shared(old, new)
    moved = tuple(name for name in was["tables"] if name in old.infos and name not in shared)
    return Inheritance(
        old, new, frozenset(shared), moved, tuple(counters), tuple(empty), translated, False, reason
    )


def _events_shared(old: Maps, new: Maps) -> set[str]:
    """Return the maps of the events, where both have the like of them. They are no part of the
    description, since a chain can be without.
    """
    pairs = [(old.infos.get(spec.name), new.infos.get(spec.name)) for spec in chain_maps.EVENT_MAPS]
    alike = all(
        one and other and one[3:6] == other[3:6] and other.id in (0, one.id) for one, other in pairs
    )
    return {spec.name for spec in chain_maps.EVENT_MAPS} if alike else set()


def cutoff(
    flows: t.Mapping[tuple[bool, int], int], room: int
) -> tuple[tuple[bool, int], int] | None:
    """Return up to which rank flows are kept, and how many of that rank; None where all are.

    >>> cutoff({(False, 9): 5, (True, 0): 4, (False, 0): 1}, 8)
    ((True, 0), 2)
    >>> cutoff({(False, 9): 5}, 5)
    """
    if sum(flows.values()) <= room:
        return None
    for rank, number in sorted(flows.items()):
        if number >= room:
            return rank, max(room, 0)
        room -= number
    return None


def ranks() -> collections.defaultdict[str, t.Counter[tuple[bool, int]]]:
    """Return an empty census, to be filled."""
    return collections.defaultdict(collections.Counter)
