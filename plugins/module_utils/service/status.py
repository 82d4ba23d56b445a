# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the chain is, put together from what the library observes."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..attach import model as attach_model
from ..attach import observe as attach_observe
from ..attach import record as attach_record
from ..chain import forwarding
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..core.errors import ConntrackError
from ..flows import filter as flow_filter
from ..flows import read as flow_read
from ..flows import table as flow_table
from ..generation import converge as generation
from ..generation import links as generation_links
from ..generation import probe as generation_probe
from ..generation import probe_whole
from ..kernel import bpf, bpffs


def attached(paths: bpffs.Paths) -> list[tuple[attach_model.Want, attach_model.Have]]:
    """Return the interfaces that links are pinned for, or that are written down to be attached,
    each with what is there.
    """
    keys = {bpffs.interface_of(os.path.basename(pin)): None for pin in attach_observe.held(paths)}
    keys.update({(item["netns"], item["name"]): None for item in attach_record.interfaces(paths)})
    wants = attach_model.parse(
        "absent", [{"name": name, "netns": namespace} for namespace, name in keys], "auto"
    )
    return list(zip(wants, attach_observe.observe(paths, wants)))


def interfaces(paths: bpffs.Paths) -> list[dict[str, t.Any]]:
    """Return the interfaces that the chain is to run on, with what runs on them, and whether there
    is no such interface.
    """
    found = []
    for want, have in attached(paths):
        shown = (
            have.attached.shown()
            if have.attached is not None
            else dict.fromkeys(("program", "mode", "program_id", "link_id"))
        )
        named = {name: shown[name] for name in ("program", "mode", "program_id", "link_id")}
        found.append({"interface": want.label, **named, "missing": bool(have.missing)})
    return found


def faults(paths: bpffs.Paths, have: generation.Have) -> list[dict[str, str]]:
    """Return all that keeps the chain from working, what can be heard of traffic included."""
    return [fault.as_dict() for fault in (*have.faults, *generation.listen(paths))]


def health_of(paths: bpffs.Paths) -> dict[str, t.Any]:
    """Return the generation and all that keeps it from working.

    :raises NoChain: where none is loaded.
    """
    have = generation.observe(paths)
    if have.generation is None:
        raise flow_table.NoChain(f"{paths.base}: no chain is loaded there. Run xdp_program.")
    found = faults(paths, have)
    return {
        "healthy": not found,
        "generation": have.generation,
        "digest": have.digest,
        "since": have.since,
        "faults": found,
    }


def forwarded(paths: bpffs.Paths) -> dict[str, t.Any] | None:
    """Return what the chain forwards, and what that passes by; None where it forwards nothing."""
    forward = generation_links.forwards(paths)
    if forward == chain_settings.FORWARDS[0]:
        return None
    seen = generation_links.look_forwarding(paths, generation_links.look_links(paths))
    return {
        "forward": forward,
        "namespaces": [
            forwarding.as_dict(where, rules)
            for where, rules in forwarding.namespaces(seen.values()).items()
        ],
        "vlan_offloads": {
            generation_links.interface(key): [offload.what for offload in one.offloads]
            for key, one in seen.items()
            if one.offloads
        },
        "past": forwarding.shown(forwarding.namespaces(seen.values())),
    }


def status(paths: bpffs.Paths) -> dict[str, t.Any]:
    """Return generation, health, interfaces and fullness."""
    have = generation.observe(paths)
    facts = generation.facts(have, paths)
    wrong = faults(paths, have)
    pressure: dict[str, t.Any] | None = None
    # which the faults tell of
    with contextlib.suppress(ConntrackError), flow_table.FlowTables(paths.pin_root) as tables:
        pressure = t.cast(
            "dict[str, t.Any]",
            flow_read.read(tables, flow_filter.parse_query({"limit": 0})).summary,
        )["pressure"]
    try:
        there = interfaces(paths)
    except ConntrackError:  # something else is pinned among the links, which is a fault
        there = []
    return {
        **{
            name: facts[name]
            for name in ("generation", "digest", "since", "kept", "pin_root", "settings")
        },
        "healthy": facts["generation"] is not None and not wrong,
        "faults": wrong,
        "pressure": pressure,
        "interfaces": there,
        "forwarding": forwarded(paths),
    }


def verify(paths: bpffs.Paths) -> t.Iterator[tuple[str, bool]]:
    """Prove the active generation; return what was tried, each with whether it is well."""
    have = generation.observe(paths)
    wrong = faults(paths, have)
    for fault in wrong:
        yield f"{fault['fault']} {fault['object']}: {fault['detail']}", False
    if not wrong:
        yield f"generation {have.generation}: pins, slots, maps, settings and links are whole", True
    if have.generation is None:
        return
    guests = any(slot in have.programs for slot in chain_programs.GUEST_SLOTS.values())
    for hook in chain_programs.TRACKING_HOOKS:
        for probe in probe_whole.PROBES:
            try:
                with (
                    bpf.closing(bpf.obj_get(paths.prog(chain_programs.SLOTS[hook]))) as entry,
                    bpf.closing(bpf.obj_get(paths.map("stats"))) as stats,
                ):
                    generation_probe.prove(entry, stats, guests, probe)
            except ConntrackError as exc:
                yield f"{hook}: {exc.message}", False
            else:
                yield f"{hook}: {probe.name} passes and is counted as {probe.counter}", True
