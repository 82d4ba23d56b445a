# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan what leads from the generation that is there to the wanted one. Nothing here asks the kernel."""

from __future__ import annotations

import dataclasses
import typing as t

from . import bpf, chain, guests, health
from .errors import ConntrackError
from .generation_model import Generation, Have, Policy, Want
from .health import interface
from .plan import Plan, Step

#: What the maps hold whose entries go along into a map of another size.
COPIED = "struct ct_entry"


def _broken(one: Generation | Have) -> list[str]:
    """Return what a generation can not be used with."""
    return [fault.detail for fault in health.mended_by(one.faults, "generation")]


def _why_new(have: Have, want: Want) -> str | None:
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


def plan_present(have: Have, want: Want, settings: bytes, policy: Policy = Policy()) -> Plan:  # noqa: B008  it is frozen
    """Return the steps from what is there to the wanted chain.

    :param settings: the bytes that the map ``settings`` is to hold on this host.
    :raises ConntrackError: when the flow table of the active generation has a layout that can not be handed on.
    """
    why = _why_new(have, want)
    if have.generation is not None and why is None:
        steps = _plan_in_place(have, want, settings)
        return steps + _plan_links(have, have.generation) + _plan_paths(have) + _plan_deletions(have, have.generation, policy)
    if "meta" in have.maps and have.layout != chain.LAYOUT_VERSION:
        raise ConntrackError(
            f"the flow table of generation {have.generation} has layout {have.layout}, this release has {chain.LAYOUT_VERSION}: "
            "they can not be handed on. Remove the chain (state: absent), which forgets its flows, and load it again."
        )
    number = _next_number(have)
    before = _shown(have.generation, have.digest) if have.generation is not None else None
    steps = [Step("load", "generation", str(number), str(why), None, f"digest {want.digest}, {len(chain.SLOTS) + len(want.guest_slots)} programs")]
    for spec in want.maps:
        there = have.maps.get(spec.name)
        if spec.inherited and there and there.max_entries != spec.entries:
            reason = f"another size: {'the entries are copied' if spec.value == COPIED else 'it starts empty'}"
            steps.append(Step("change", "map", spec.name, reason, _entries(there), f"{spec.entries} entries", args=(number, spec)))
    steps += _plan_links(have, number)
    steps.append(Step("activate", "generation", str(number), "the pins lead to it from here on", before, f"generation {number}"))
    return steps + _plan_paths(have) + _plan_deletions(have, number, policy)


def plan_rolled_back(have: Have, number: int | None = None) -> Plan:
    """Return the steps back to an earlier generation.

    Where that is active already, they only put right what a run that did not end left behind. So it is after a roll-back: the generation that
    was rolled back from is still pinned, with a higher number.

    :param number: of the generation to go back to; None for the last good one before the active one.
    :raises ConntrackError: when there is none, or it can not take over.
    """
    target = _target(have, number)
    if target is None:
        known = [] if have.state.active == have.generation else [_plan_manifest(have, "the state directory calls another generation active")]
        return known + _plan_links(have, have.generation) + _plan_paths(have) + _plan_leftovers(have)
    steps = [Step("prove", "generation", str(target.number), "frames have to pass it unchanged before it takes over", None, None)]
    for spec in chain.maps():
        there, own = have.maps.get(spec.name), target.maps[spec.name]
        if spec.value == COPIED and there is not None and there.id != own.id:
            reason = "it has a table of its own: the entries are copied, what it held is out of date"
            spec = dataclasses.replace(spec, entries=own.max_entries)
            steps.append(Step("change", "map", spec.name, reason, _entries(there), _entries(own), args=(target.number, spec)))
    steps += _plan_links(have, target.number)
    before, after = _shown(t.cast("int", have.generation), have.digest), _shown(target.number, target.digest)
    steps.append(Step("activate", "generation", str(target.number), f"generation {have.generation} is rolled back from", before, after))
    return steps + _plan_paths(have) + _plan_leftovers(have)


def _target(have: Have, number: int | None) -> Generation | None:
    """Return the generation to go back to; None where it is active already.

    :raises ConntrackError: see plan_rolled_back().
    """
    if have.generation is None:
        raise ConntrackError("no chain is loaded, so there is nothing to go back from.")
    if number == have.generation or (number is None and have.rejected):
        return None
    listed = "; ".join(f"{_shown(one.number, one.digest)}, active since {one.since}" for one in have.kept)
    kept = f"kept are: {listed}" if listed else "none is kept; the option keep of a run that loads a generation says how many are"
    if number is not None:
        target = next((one for one in have.kept if one.number == number), None)
    else:
        target = next((one for one in have.earlier if not _broken(one)), next(iter(have.earlier), None))
    if target is None:
        wanted = f"generation {number} is not pinned" if number is not None else f"there is no generation before {have.generation} to go back to"
        raise ConntrackError(f"{wanted}: {kept}.")
    if _broken(target):
        raise ConntrackError(f"generation {target.number} can not take over: {'; '.join(_broken(target))}. {kept[0].upper()}{kept[1:]}.")
    if target.layout != have.layout:
        raise ConntrackError(
            f"generation {target.number} has flow tables of layout {target.layout}, the active one of layout {have.layout}: the flows can not be handed back."
        )
    return target


def _entries(there: bpf.MapInfo) -> str:
    return f"{there.max_entries} entries"


def _plan_in_place(have: Have, want: Want, settings: bytes) -> Plan:
    """Return what changes where the active generation is the wanted one: its settings, what is written down of it."""
    if have.settings != settings:
        damage = "; ".join(fault.detail for fault in have.faults if fault.fault == "settings_damaged")
        return [Step("change", "map", "settings", damage or "timeouts or switches differ", _settings_shown(have.settings), _settings_shown(settings))]
    if (have.state.active, have.state.made_of) != (have.generation, want.made_of):
        return [_plan_manifest(have, "the state directory does not say what the active generation is made of", want)]
    return []


def _plan_manifest(have: Have, reason: str, want: Want | None = None) -> Step:
    """Return the step that lets the state directory say which generation is active, and what it is made of where that is known."""
    before = f"generation {have.state.active}" if have.state.active is not None else None
    return Step("change", "manifest", str(have.generation), reason, before, f"generation {have.generation}", args=want)


def _next_number(have: Have) -> int:
    """Return a number that no generation has, nor had that left something behind."""
    left = (int(name.partition("_")[0]) for name in have.leftovers if name.partition("_")[0].isdigit())
    return max([have.generation or 0, *(one.number for one in have.kept), *have.state.numbers, *left]) + 1


def _shown(number: int, digest: str) -> str:
    return f"generation {number}, digest {digest}"


def _plan_links(have: Have, number: int | None) -> Plan:
    """Return the hand-over of the interfaces that do not run this generation's programs."""
    programs: dict[int | None, t.Mapping[int, bpf.ProgInfo]] = {one.number: one.programs for one in have.kept}
    if have.generation is not None:
        programs[have.generation] = have.programs
    current = {info.id for info in programs.get(number, {}).values()}
    after = f"generation {number}"
    return [
        Step("replace", "link", interface(key), f"{hook} of {after} takes the interface over", f"program {info.prog_id}", after, args=(number, key))
        for key, (info, hook) in have.links.items()
        if hook and info.ifindex and info.prog_id not in current
    ]


def _plan_paths(have: Have) -> Plan:
    return [Step("create", "path", path, "it leads to the active generation", None, "symbolic link") for path in have.no_paths]


def _plan_deletions(have: Have, number: int, policy: Policy) -> Plan:
    """Return what goes once generation ``number`` is active: what is not kept to go back to, and what killed runs left behind."""
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
        steps.append(Step("delete", "generation", str(one.number), reason, _shown(one.number, one.digest), None))
    steps += [Step("delete", "generation", str(one.number), "it was rolled back from", _shown(one.number, one.digest), None) for one in have.rejected]
    gone = {step.name for step in steps}
    pinned = {number} | {one.number for one in before if str(one.number) not in gone}
    return steps + _plan_leftovers(have, pinned)


def _plan_leftovers(have: Have, pinned: t.Collection[int] = ()) -> Plan:
    """Return what never was active, and the files in the state directory that belong to no generation.

    :param pinned: the generations that are there when all is done.
    """
    steps = [Step("delete", "generation", name, "left behind by a run that did not end", f"gen/{name}", None) for name in have.leftovers]
    known = {*pinned, have.generation, *(one.number for one in have.kept), *(int(name) for name in have.leftovers if name.isdigit())}
    lost = [f"{number}.json" for number in have.state.numbers if number not in known]
    return steps + [Step("delete", "manifest", name, "its generation is not pinned", name, None) for name in (*lost, *have.state.strays)]


def plan_absent(have: Have) -> Plan:
    """Return the steps that take the chain away.

    :raises ConntrackError: while interfaces are attached.
    """
    attached = [interface(key) for key, (info, dummy) in have.links.items() if info.ifindex]
    if attached:
        raise ConntrackError(f"the chain is attached to {', '.join(attached)}: detach it first (xdp_attach with state: absent).")
    steps = [Step("delete", "link", interface(key), "its interface is gone", f"link {info.id}", None, args=key) for key, (info, dummy) in have.links.items()]
    there = [(one.number, one.digest) for one in have.kept]
    if have.generation is not None:
        there.insert(0, (have.generation, have.digest))
    steps += [Step("delete", "generation", str(number), "the chain is to be absent", _shown(number, digest), None) for number, digest in there]
    return steps + _plan_leftovers(have)


def _settings_shown(raw: bytes) -> str:
    if len(raw) != chain.SETTINGS_BYTES:
        return f"{len(raw)} bytes"
    dummy, timeouts, knobs = chain.settings_of(raw)
    return ", ".join(f"{name}={value}" for name, value in {**timeouts, **knobs}.items())
