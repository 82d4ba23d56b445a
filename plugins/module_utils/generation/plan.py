# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan what leads from the generation that is there to the wanted one. Nothing here asks the
kernel.
"""

from __future__ import annotations

import typing as t

from ..chain import guests
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..core.errors import ConntrackError
from ..core.plan import Plan, Step
from ..kernel import bpf
from . import diagnosis
from .links import interface
from .migrate_plan import Legacy, Maps
from .model import BCC, OBJECT, Generation, Have, Policy, Want

#: How a chain is built, for people.
_HOW = {BCC: "by bcc", OBJECT: "from its object"}


def _broken(one: Generation | Have) -> list[str]:
    """Return what a generation can not be used with."""
    return [fault.detail for fault in diagnosis.mended_by(one.faults, "generation")]


def why_new(have: Have, want: Want) -> str | None:
    if have.generation is None:
        return "no chain is loaded"
    if _broken(have):
        return "; ".join(_broken(have))
    if have.digest != want.digest:
        return "the sources, what is compiled into them, or the guests changed"
    missing = [guests.slot_name(slot) for slot in want.guest_slots if slot not in have.programs]
    if missing:
        return f"the pin of the guest in slot {' and '.join(missing)} is missing"
    return None


def plan_present(
    have: Have,
    want: Want,
    settings: bytes,
    policy: Policy | None = None,
    legacy: Legacy | None = None,
) -> Plan:
    """Return the steps from what is there to the wanted chain.

    :param settings: the bytes that the map ``settings`` is to hold on this host.
    :param legacy: what the next generation gets of the active one's maps; not asked for where no
        next one is needed.
    """
    policy = policy or Policy()
    why = why_new(have, want)
    if have.generation is not None and why is None:
        steps = _plan_in_place(have, want, settings)
        return (
            steps
            + _plan_links(have, have.generation)
            + _plan_paths(have)
            + _plan_deletions(have, have.generation, policy)
            + _plan_gone(have)
        )
    number = next_number(have)
    before = _shown(have.generation, have.digest) if have.generation is not None else None
    steps = [
        Step(
            "load",
            "generation",
            str(number),
            str(why),
            None,
            f"digest {want.digest}, {len(chain_programs.SLOTS) + len(want.guest_slots)} programs",
            legacy,
        )
    ]
    activation = [
        Step(
            "activate",
            "generation",
            str(number),
            "the pins lead to it from here on",
            before,
            f"generation {number}",
            legacy,
        )
    ]
    return (
        steps
        + _plan_emptied(legacy)
        + _plan_switch(have, number, activation, legacy)
        + _plan_deletions(have, number, policy)
        + _plan_gone(have)
    )


def _plan_gone(have: Have) -> Plan:
    """Return the removal of the pins whose interface is gone.

    What is written down of such an interface stays: it is attached again when it comes back (a
    guest's tap, a card), until it is detached by name.
    """
    return [
        Step(
            "delete",
            "link",
            interface(key),
            "its interface is gone",
            f"link {have.links[key][0].id}",
            None,
            args=key,
        )
        for key in have.gone
    ]


def _plan_switch(have: Have, number: int, activation: Plan, legacy: Legacy | None) -> Plan:
    """Return the steps from a generation that is loaded to one that has the interfaces, and all
    that is to go over to it.
    """
    links, paths = _plan_links(have, number), _plan_paths(have)
    if legacy is None or not legacy.inherited.goes_over:
        return links + activation + paths
    # What goes over is the new generation's from the first packet on, so it is the active one
    # before it gets any: a run that is killed loses nothing.
    return activation + links + paths + _plan_move(legacy)


def plan_finish(have: Have, legacy: Legacy) -> Plan:
    """Return the steps with which the active generation takes over what a run that did not end left
    with the one before.
    """
    return _plan_links(have, have.generation) + _plan_move(legacy)


def _plan_emptied(legacy: Legacy | None) -> Plan:
    """Return the maps that lose what is in them."""
    if legacy is None:
        return []
    inherited, dropped = legacy.inherited, legacy.inherited.dropped(legacy.census)
    if inherited.forgotten:
        return [
            Step(
                "change",
                "map",
                ", ".join(inherited.empty),
                f"{inherited.reason}: the flows are forgotten",
                f"{sum(dropped.values())} flows",
                "0 flows",
            )
        ]
    return [
        Step(
            "change",
            "map",
            name,
            f"{inherited.reason}: it starts empty",
            _size(inherited.old, name),
            _size(inherited.new, name),
        )
        for name in inherited.empty
    ]


def _plan_move(legacy: Legacy) -> Plan:
    """Return the step that takes over what the maps of another generation hold."""
    inherited, dropped = legacy.inherited, legacy.inherited.dropped(legacy.census)
    reason = f"{inherited.reason}: what they hold is taken over"
    if dropped:
        reason += "; " + ", ".join(
            f"{number} flows of {table} can not be kept" for table, number in dropped.items()
        )
    names = (*inherited.moved, *inherited.counters)
    after = dict.fromkeys((*inherited.destinations, *inherited.counters))

    def shown(maps: Maps, chosen: t.Iterable[str]) -> str:
        return ", ".join(f"{name}: {_size(maps, name)}" for name in chosen)

    # where the other generation is gone nothing is left but to forget that it was there
    return [
        Step(
            "move",
            "map",
            ", ".join(names) or "pred",
            reason,
            shown(inherited.old, names),
            shown(inherited.new, after),
            legacy,
        )
    ]


def _size(maps: Maps, name: str) -> str:
    return f"{maps.infos[name].max_entries} entries"


def outlook(plan: Plan) -> tuple[dict[str, int], list[str]]:
    """Return how many flows a plan does not keep, by table, and what somebody should know of it."""
    legacies = {id(step.args): step.args for step in plan if isinstance(step.args, Legacy)}
    dropped: dict[str, int] = {}
    warnings = []
    for legacy in legacies.values():
        dropped.update(legacy.inherited.dropped(legacy.census))
        warnings += legacy.inherited.warnings(legacy.census)
    return dropped, warnings


def plan_rolled_back(have: Have, number: int | None = None, legacy: Legacy | None = None) -> Plan:
    """Return the steps back to an earlier generation.

    Where that is active already, they only put right what a run that did not end left behind. So it
    is after a roll-back: the generation that was rolled back from is still pinned, with a higher
    number.

    :param number: of the generation to go back to; None for the last good one before the active
        one.
    :param legacy: what that one gets of the active one's maps; not asked for where it is active.
    :raises ConntrackError: see target_of().
    """
    target = target_of(have, number)
    if target is None:
        known = (
            []
            if have.state.active == have.generation
            else [_plan_manifest(have, "the state directory calls another generation active")]
        )
        return (
            known + _plan_links(have, have.generation) + _plan_paths(have) + _plan_leftovers(have)
        )
    steps = [
        Step(
            "prove",
            "generation",
            str(target.number),
            "frames have to pass it unchanged before it takes over",
            None,
            None,
            legacy,
        )
    ]
    before, after = (
        _shown(t.cast("int", have.generation), have.digest),
        _shown(target.number, target.digest),
    )
    activation = [
        Step(
            "activate",
            "generation",
            str(target.number),
            f"generation {have.generation} is rolled back from",
            before,
            after,
            legacy,
        )
    ]
    return steps + _plan_switch(have, target.number, activation, legacy) + _plan_leftovers(have)


def target_of(have: Have, number: int | None) -> Generation | None:
    """Return the generation to go back to; None where it is active already.

    :param number: see plan_rolled_back().
    :raises ConntrackError: when there is none, or it can not take over.
    """
    if have.generation is None:
        raise ConntrackError("no chain is loaded, so there is nothing to go back from.")
    if number == have.generation or (number is None and have.rejected):
        return None
    listed = "; ".join(
        f"{_shown(one.number, one.digest)}, active since {one.since}" for one in have.kept
    )
    kept = (
        f"kept are: {listed}"
        if listed
        else "none is kept; the option keep of a run that loads a generation says how many are"
    )
    if number is not None:
        target = next((one for one in have.kept if one.number == number), None)
    else:
        target = next(
            (one for one in have.earlier if not _broken(one)), next(iter(have.earlier), None)
        )
    if target is None:
        wanted = (
            f"generation {number} is not pinned"
            if number is not None
            else f"there is no generation before {have.generation} to go back to"
        )
        raise ConntrackError(f"{wanted}: {kept}.")
    if _broken(target):
        raise ConntrackError(
            f"generation {target.number} can not take over: {'; '.join(_broken(target))}."
            f" {kept[0].upper()}{kept[1:]}."
        )
    return target


def _plan_in_place(have: Have, want: Want, settings: bytes) -> Plan:
    """Return what changes where the active generation is the wanted one: its settings, what is
    written down of it.
    """
    if have.settings != settings:
        damage = "; ".join(
            fault.detail for fault in have.faults if fault.fault == "settings_damaged"
        )
        return [
            Step(
                "change",
                "map",
                "settings",
                damage or "timeouts or switches differ",
                _settings_shown(have.settings),
                _settings_shown(settings),
            )
        ]
    if (have.state.active, have.state.made_of) != (have.generation, want.made_of):
        known = {
            name: value for name, value in (have.state.made_of or {}).items() if name != "build"
        }
        if (have.state.active, {**known, "build": want.build}) == (
            have.generation,
            {"build": BCC, **want.made_of},
        ):
            return [
                _plan_manifest(
                    have, f"it is to be built {_HOW[want.build]}, after a reboot for instance", want
                )
            ]
        return [
            _plan_manifest(
                have, "the state directory does not say what the active generation is made of", want
            )
        ]
    if want.build == OBJECT and not have.state.object:
        return [
            _plan_manifest(
                have,
                "the state directory has not the object that the active generation is made of",
                want,
            )
        ]
    return []


def needs_object(plan: Plan, have: Have, want: Want) -> bool:
    """Return whether a plan can only be applied with the object file that the wanted chain is built
    from: to load it, or to keep it.
    """
    if want.build != OBJECT:
        return False
    kept = have.state.object and (have.state.made_of or {}).get("build") == OBJECT
    written = any(
        step.action == "change" and (step.kind == "manifest" or step.name == "settings")
        for step in plan
    )
    return any(step.action == "load" for step in plan) or (written and not kept)


def _plan_manifest(have: Have, reason: str, want: Want | None = None) -> Step:
    """Return the step that lets the state directory say which generation is active, and what it is
    made of where that is known.
    """
    before = f"generation {have.state.active}" if have.state.active is not None else None
    return Step(
        "change",
        "manifest",
        str(have.generation),
        reason,
        before,
        f"generation {have.generation}",
        args=want,
    )


def next_number(have: Have) -> int:
    """Return a number that no generation has, nor had that left something behind."""
    left = (
        int(name.partition("_")[0]) for name in have.leftovers if name.partition("_")[0].isdigit()
    )
    return (
        max([have.generation or 0, *(one.number for one in have.kept), *have.state.numbers, *left])
        + 1
    )


def _shown(number: int, digest: str) -> str:
    return f"generation {number}, digest {digest}"


def _plan_links(have: Have, number: int | None) -> Plan:
    """Return the hand-over of the interfaces that do not run this generation's programs."""
    programs: dict[int | None, t.Mapping[int, bpf.ProgInfo]] = {
        one.number: one.programs for one in have.kept
    }
    if have.generation is not None:
        programs[have.generation] = have.programs
    current = {info.id for info in programs.get(number, {}).values()}
    after = f"generation {number}"
    return [
        Step(
            "replace",
            "link",
            interface(key),
            f"{hook} of {after} takes the interface over",
            f"program {info.prog_id}",
            after,
            args=(number, key),
        )
        for key, (info, hook) in have.links.items()
        if hook and info.ifindex and info.prog_id not in current
    ]


def _plan_paths(have: Have) -> Plan:
    return [
        Step("create", "path", path, "it leads to the active generation", None, "symbolic link")
        for path in have.no_paths
    ]


def _plan_deletions(have: Have, number: int, policy: Policy) -> Plan:
    """Return what goes once generation ``number`` is active: what is not kept to go back to, and
    what killed runs left behind.
    """
    before = [one for one in have.earlier if one.number != number]
    if have.generation is not None and have.generation != number:
        before.insert(0, Generation(have.generation, have.digest, faults=have.faults))
    whole = [one for one in before if not _broken(one)]
    steps = []
    for one in before:
        if one in whole[: policy.keep]:
            continue
        if one.number == have.generation and (_broken(one) or not policy.keep):
            reason = f"replaced by generation {number}"
        else:
            reason = "; ".join(_broken(one)) or f"not among the last {policy.keep} that are kept"
        steps.append(
            Step(
                "delete",
                "generation",
                str(one.number),
                reason,
                _shown(one.number, one.digest),
                None,
            )
        )
    steps += [
        Step(
            "delete",
            "generation",
            str(one.number),
            "it was rolled back from",
            _shown(one.number, one.digest),
            None,
        )
        for one in have.rejected
    ]
    gone = {step.name for step in steps}
    pinned = {number} | {one.number for one in before if str(one.number) not in gone}
    return steps + _plan_leftovers(have, pinned)


def _plan_leftovers(have: Have, pinned: t.Collection[int] = ()) -> Plan:
    """Return what never was active, and the files in the state directory that belong to no
    generation.

    :param pinned: the generations that are there when all is done.
    """
    steps = [
        Step(
            "delete",
            "generation",
            name,
            "left behind by a run that did not end",
            f"gen/{name}",
            None,
        )
        for name in have.leftovers
    ]
    known = {
        *pinned,
        have.generation,
        *(one.number for one in have.kept),
        *(int(name) for name in have.leftovers if name.isdigit()),
    }
    lost = [f"{number}.json" for number in have.state.numbers if number not in known]
    return steps + [
        Step("delete", "manifest", name, "its generation is not pinned", name, None)
        for name in (*lost, *have.state.strays)
    ]


def plan_absent(have: Have) -> Plan:
    """Return the steps that take the chain away.

    :raises ConntrackError: while interfaces are attached.
    """
    attached = [interface(key) for key, (info, dummy) in have.links.items() if info.ifindex]
    if attached:
        raise ConntrackError(
            f"the chain is attached to {', '.join(attached)}: detach it first (xdp_attach with"
            " state: absent)."
        )
    steps = [
        Step(
            "delete",
            "link",
            interface(key),
            "its interface is gone",
            f"link {info.id}",
            None,
            args=key,
        )
        for key, (info, dummy) in have.links.items()
    ]
    there = [(one.number, one.digest) for one in have.kept]
    if have.generation is not None:
        there.insert(0, (have.generation, have.digest))
    steps += [
        Step(
            "delete",
            "generation",
            str(number),
            "the chain is to be absent",
            _shown(number, digest),
            None,
        )
        for number, digest in there
    ]
    if have.state.interfaces:
        steps.append(
            Step(
                "delete",
                "manifest",
                "interfaces.json",
                "the chain is to be absent",
                "interfaces.json",
                None,
            )
        )
    return steps + _plan_leftovers(have)


def _settings_shown(raw: bytes) -> str:
    if len(raw) != chain_settings.SETTINGS_BYTES:
        return f"{len(raw)} bytes"
    dummy, timeouts, knobs = chain_settings.settings_of(raw)
    return ", ".join(f"{name}={value}" for name, value in {**timeouts, **knobs}.items())
