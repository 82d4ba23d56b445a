# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces chosen by what they are instead of by their name: a pattern, a driver, the default
route. Pure: nothing here touches the kernel.

An interface belongs to one entry. One that is named belongs to the entry that names it, wherever
that stands; of the entries that choose, the first that fits has it. So C(default_route: true) and
after it C(pattern: "*") is the uplink, and everything else.

An entry that chooses leaves out what the chain cannot work on, and what would count a packet
once more than an interface that is already taken. Within one entry the lower interface is taken:
all frames come through it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import typing as t

from ..chain.programs import TRACKING_HOOKS
from ..core.errors import ConntrackError, bad_value

#: What an entry can choose by, besides ``name``; all that are given have to fit.
CRITERIA = ("pattern", "driver", "default_route")
Item = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An interface that can be chosen.

    :ivar driver: as C(ethtool -i) has it (``virtio_net``, ``veth``); "" where the kernel does not
        say.
    :ivar default_route: a default route goes out of it, of those of its family that with the lowest
        metric.
    :ivar altnames: its alternative names; a pattern may fit any of its names.
    :ivar unfit: why the chain cannot work on it, see link_fitness.unfit().
    :ivar below: the names of the interfaces whose frames it gets once more, see
        link_fitness.below().
    """

    name: str
    driver: str = ""
    default_route: bool = False
    altnames: tuple[str, ...] = ()
    unfit: str = ""
    below: frozenset[str] = frozenset()

    def fits(self, item: Item) -> bool:
        """Tell whether it is all that an entry asks for."""
        pattern, driver = item.get("pattern"), item.get("driver")
        return (
            (
                not pattern
                or any(fnmatch.fnmatchcase(name, pattern) for name in (self.name, *self.altnames))
            )
            and (not driver or self.driver == driver)
            and (not item.get("default_route") or self.default_route)
        )

    def __str__(self) -> str:
        facts = [f"driver {self.driver}"] if self.driver else []
        facts += ["default route"] if self.default_route else []
        return f"{self.name} ({', '.join(facts)})" if facts else self.name


@dataclasses.dataclass(frozen=True)
class Nothing:
    """An entry for which no interface is there.

    :ivar label: what it asks for.
    :ivar message: why there is none, and what there is.
    """

    item: Item
    label: str
    message: str


def check(field: str, item: Item) -> None:
    """Check what an entry names its interface by.

    :raises ConntrackError: it says nothing, or two things that exclude each other.
    """
    given = [name for name in CRITERIA if item.get(name)]
    for name in ("pattern", "driver"):
        if item.get(name) == "":
            raise bad_value(f"{field}.{name}", "", "give a text, or leave it out")
    if item.get("name") is None and not given:
        raise ConntrackError(
            f"{field}: it says no interface: give its name, or {', '.join(CRITERIA[:-1])} or"
            f" {CRITERIA[-1]}: true to choose by."
        )
    if item.get("name") is not None and given:
        raise bad_value(
            f"{field}.{given[0]}",
            item[given[0]],
            f"the entry names the interface {item['name']!r} already; give either that or"
            f" {given[0]}",
        )


def label(item: Item) -> str:
    """Return what an entry chooses by, for people; "" for one that names its interface.

    >>> label({"pattern": "ens*", "driver": "virtio_net"})
    'pattern ens*, driver virtio_net'
    >>> label({"default_route": True}), label({"name": "eth0"})
    ('default route', '')
    """
    words = [f"{name} {item[name]}" for name in ("pattern", "driver") if item.get(name)]
    return ", ".join(words + (["default route"] if item.get("default_route") else []))


class Choice(t.NamedTuple):
    """What the entries of ``interfaces`` come to.

    :ivar found: entries that name their interface, each with ``field``, where it stands in the
        input, and ``chosen_by``, see label().
    :ivar missing: the entries for which there is none.
    :ivar left_out: why interfaces that fit an entry were left out, a sentence for each entry.
    """

    found: list[dict[str, t.Any]]
    missing: list[Nothing]
    left_out: list[str]


def resolve(
    items: t.Sequence[Item], look: t.Callable[[str | None], t.Sequence[Candidate]]
) -> Choice:
    """Return the entries with one for each interface that was chosen, and those for which there is
    none.

    :param items: checked entries of ``interfaces``.
    :param look: returns what there is in a namespace; it may raise ConntrackError where there is no
        such namespace.
    """
    owners = {
        (item.get("netns"), item["name"]): f"interfaces[{number}]"
        for number, item in enumerate(items)
        if item.get("name") is not None
    }
    tracked = {
        (item.get("netns"), item["name"])
        for item in items
        if item.get("name") is not None and item.get("program") in TRACKING_HOOKS
    }
    seen: dict[str | None, t.Sequence[Candidate]] = {}
    choice = Choice([], [], [])
    for number, item in enumerate(items):
        field, netns = f"interfaces[{number}]", item.get("netns")
        if item.get("name") is not None:
            choice.found.append({"field": field, **item})
            continue
        try:
            if netns not in seen:
                seen[netns] = look(netns)
        except ConntrackError as exc:
            choice.missing.append(Nothing(item, label(item), f"{field}.{exc.message}"))
            continue
        fitting = sorted(
            (one for one in seen[netns] if one.fits(item)),
            key=lambda one: (len(one.below), one.name),
        )
        reasons: dict[str, str] = {}
        names = []
        for one in fitting:
            if (netns, one.name) in owners:
                continue
            if item.get("program") in TRACKING_HOOKS:
                why = one.unfit or _counted(one, netns, seen[netns], tracked, owners)
                if why:
                    reasons[one.name] = why
                    continue
                tracked.add((netns, one.name))
            owners[netns, one.name] = field
            names.append(one.name)
        if not names:
            taken = {
                one.name: owners[netns, one.name] for one in fitting if (netns, one.name) in owners
            }
            choice.missing.append(
                Nothing(item, label(item), _why(field, item, seen[netns], taken, reasons))
            )
        elif reasons:
            choice.left_out.append(f"{field}: {label(item)}: left out: {_listed(reasons)}.")
        for name in sorted(names):
            choice.found.append(
                {
                    **dict.fromkeys(CRITERIA),
                    **{key: item[key] for key in item if key not in CRITERIA},
                    "name": name,
                }
            )
            choice.found[-1].update(field=field, chosen_by=label(item))
    return choice


def _listed(reasons: t.Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in sorted(reasons.items()))


def _counted(
    one: Candidate,
    netns: str | None,
    there: t.Sequence[Candidate],
    tracked: t.Collection[tuple[str | None, str]],
    owners: t.Mapping[tuple[str | None, str], str],
) -> str:
    """Return why an interface would count packets that another one of this run counts; "" where it
    would not.
    """
    for other in there:
        if (netns, other.name) in tracked and (other.name in one.below or one.name in other.below):
            return f"its packets are counted on {other.name} of {owners[netns, other.name]} already"
    return ""


def _why(
    field: str,
    item: Item,
    there: t.Sequence[Candidate],
    taken: t.Mapping[str, str],
    left_out: t.Mapping[str, str],
) -> str:
    where = "the host's namespace" if item.get("netns") is None else f"namespace {item['netns']}"
    if left_out:
        return (
            f"{field}: {label(item)}: no interface in {where} is left; left out:"
            f" {_listed(left_out)}. Remove the entry, or let it ask for others."
        )
    if taken:
        owned = ", ".join(f"{name} to {owner}" for name, owner in taken.items())
        return (
            f"{field}: {label(item)}: every interface in {where} that fits belongs to another"
            f" entry: {owned}. Remove one of them, or let it ask for others."
        )
    shown = ", ".join(str(one) for one in sorted(there, key=lambda one: one.name)) or "none"
    return (
        f"{field}: {label(item)}: no interface in {where} fits; there are: {shown}. Correct the"
        " entry, or make the interface first."
    )
