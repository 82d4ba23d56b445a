# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan what leads from the generation that is there to the wanted one. Nothing here asks the kernel."""

from __future__ import annotations

from . import bpffs, chain
from .errors import ConntrackError
from .generation_model import Have, Want
from .plan import Plan, Step

#: What the maps hold whose entries go along into a map of another size.
COPIED = "struct ct_entry"


def _interface(key: str) -> str:
    """Return a link's interface as people write it, ``name`` or ``name@netns``."""
    netns, ifname = bpffs.interface_of(key)
    return ifname if netns is None else f"{ifname}@{netns}"


def _why_new(have: Have, want: Want) -> str | None:
    if have.generation is None:
        return "no chain is loaded"
    if have.faults:
        return "; ".join(have.faults)
    if have.digest != want.digest:
        return "the sources or what is compiled into them changed"
    return None


def plan_present(have: Have, want: Want, settings: bytes) -> Plan:
    """Return the steps from what is there to the wanted chain.

    :param settings: the bytes that the map ``settings`` is to hold on this host.
    :raises ConntrackError: when the flow table of the active generation has a layout that can not be handed on.
    """
    why = _why_new(have, want)
    steps = []
    if why is None:
        if have.settings != settings:
            steps.append(Step("change", "map", "settings", "timeouts or switches differ", _settings_shown(have.settings), _settings_shown(settings)))
        return steps + _plan_links(have, have.generation) + _plan_paths(have) + _plan_leftovers(have)
    if "meta" in have.maps and have.layout != chain.LAYOUT_VERSION:
        raise ConntrackError(
            f"the flow table of generation {have.generation} has layout {have.layout}, this release has {chain.LAYOUT_VERSION}: "
            "they can not be handed on. Remove the chain (state: absent), which forgets its flows, and load it again."
        )
    number = max([have.generation or 0, *(int(name) for name in have.leftovers if name.isdigit())]) + 1
    before = f"generation {have.generation}, digest {have.digest}" if have.generation is not None else None
    steps.append(Step("load", "generation", str(number), why, None, f"digest {want.digest}, {len(chain.SLOTS)} programs"))
    for spec in chain.maps(want.table_size, want.table_size6):
        there = have.maps.get(spec.name)
        if spec.inherited and there and there.max_entries != spec.entries:
            reason = f"another size: {'the entries are copied' if spec.value == COPIED else 'it starts empty'}"
            steps.append(Step("change", "map", spec.name, reason, f"{there.max_entries} entries", f"{spec.entries} entries", args=(number, spec)))
    steps += _plan_links(have, number)
    steps.append(Step("activate", "generation", str(number), "the pins lead to it from here on", before, f"generation {number}"))
    steps += _plan_paths(have)
    if have.generation is not None:
        steps.append(Step("delete", "generation", str(have.generation), f"replaced by generation {number}", before, None))
    return steps + _plan_leftovers(have)


def _plan_links(have: Have, number: int | None) -> Plan:
    """Return the hand-over of the interfaces that do not run this generation's programs."""
    current = {info.id for info in have.programs.values()} if number == have.generation else set()
    after = f"generation {number}"
    return [
        Step("replace", "link", _interface(key), f"{hook} of {after} takes the interface over", f"program {info.prog_id}", after, args=(number, key))
        for key, (info, hook) in have.links.items()
        if hook and info.ifindex and info.prog_id not in current
    ]


def _plan_paths(have: Have) -> Plan:
    return [Step("create", "path", path, "it leads to the active generation", None, "symbolic link") for path in have.no_paths]


def _plan_leftovers(have: Have) -> Plan:
    return [Step("delete", "generation", name, "left behind by a run that did not end", f"gen/{name}", None) for name in have.leftovers]


def plan_absent(have: Have) -> Plan:
    """Return the steps that take the chain away.

    :raises ConntrackError: while interfaces are attached.
    """
    attached = [_interface(key) for key, (info, dummy) in have.links.items() if info.ifindex]
    if attached:
        raise ConntrackError(f"the chain is attached to {', '.join(attached)}: detach it first (xdp_attach with state: absent).")
    steps = [Step("delete", "link", _interface(key), "its interface is gone", f"link {info.id}", None, args=key) for key, (info, dummy) in have.links.items()]
    if have.generation is not None:
        steps.append(
            Step("delete", "generation", str(have.generation), "the chain is to be absent", f"generation {have.generation}, digest {have.digest}", None)
        )
    return steps + _plan_leftovers(have)


def _settings_shown(raw: bytes) -> str:
    if len(raw) != chain.SETTINGS_BYTES:
        return f"{len(raw)} bytes"
    dummy, timeouts, knobs = chain.settings_of(raw)
    return ", ".join(f"{name}={value}" for name, value in {**timeouts, **knobs}.items())
