# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read generations from the kernel: which is active, whether it is whole, and what else lies
around.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..core import calendar
from ..kernel import bpf, bpffs
from ..kernel.bpffs import Paths
from . import health, manifest, pinned_objects
from . import links as generation_links
from .model import Generation, Have


def _hooks(
    links: t.Mapping[str, generation_links.Link], programs: t.Mapping[int, bpf.ProgInfo]
) -> dict[str, tuple[bpf.LinkInfo, str | None]]:
    """Return the pinned links with the hook that each one's program serves; one of an earlier
    generation is known by its name.
    """
    names = {program.id: program.name for program in programs.values()}
    found = {}
    for key, link in links.items():
        if link.info is not None:
            number = link.info.prog_id
            there = None if number in names or not number else pinned_objects.program(number)
            name = names.get(number) or (there.name if there is not None else "")
            found[key] = (link.info, name if name in chain_programs.HOOKS else None)
    return found


def _since(paths: Paths, number: int) -> str | None:
    """Return when a generation that another one took over from became active; None for one that
    never was, or still is.
    """
    try:
        return os.readlink(paths.since(number))
    except OSError:
        return None


def active_since(paths: Paths, number: int) -> str:
    """Return when the active generation became so: its symlink was made then. Where that is lost it
    is the time when it was built.
    """
    try:
        return calendar.utc(os.lstat(paths.active).st_mtime)
    except FileNotFoundError:
        return calendar.utc(os.lstat(paths.gen_dir(number)).st_mtime)


def observe_generation(paths: Paths, number: int, since: str = "") -> Generation:
    """Read one generation that is pinned, and what is not whole in it."""
    seen = health.look(paths.gen_dir(number), number)
    digest = f"{seen.meta.get('digest_high', 0):016x}{seen.meta.get('digest_low', 0):016x}"
    return Generation(
        number,
        digest,
        seen.layout,
        seen.settings,
        seen.programs,
        seen.maps,
        health.judge(seen),
        since,
        seen.meta.get("source", 0) if seen.ours else 0,
    )


def observe(paths: Paths) -> Have:
    """Read the kernel: the active generation, its health, those before it, and what else lies
    around.

    :raises ConntrackError: for a user that may not.
    """
    have = Have(
        no_paths=tuple(path for path in paths.seed_links() if not os.path.lexists(path)),
        state=manifest.look(paths),
    )
    bpffs.refuse_foreign_names(paths)
    if not bpffs.mounted(paths.pin_root):
        return have
    number, links = health.active(paths), generation_links.look_links(paths)
    names = [
        name
        for name in pinned_objects.names(paths.gen)
        if name != str(number) and os.path.isdir(os.path.join(paths.gen, name))
    ]
    since = {int(name): _since(paths, int(name)) for name in names if name.isdigit()}
    kept = tuple(
        observe_generation(paths, one, when)
        for one, when in sorted(since.items(), reverse=True)
        if when is not None
    )
    gone = tuple(
        key
        for key, link in links.items()
        if link.info is not None and not link.info.ifindex and not link.there
    )
    have = dataclasses.replace(
        have,
        gone=gone,
        kept=kept,
        leftovers=tuple(name for name in names if name not in {str(one.number) for one in kept}),
    )
    if number is None:
        return dataclasses.replace(have, links=_hooks(links, {}))
    active = observe_generation(paths, number, active_since(paths, number))
    fields = {
        field.name: getattr(active, field.name)
        for field in dataclasses.fields(active)
        if field.name != "number"
    }
    fields["faults"] = (
        *active.faults,
        *health.judge_paths(paths, number),
        *generation_links.judge_links(links, active.programs),
    )
    fields["faults"] += generation_links.judge_forwarding(
        generation_links.look_forwarding(paths, links)
    )
    fields["guest_maps"] = _guest_maps(os.path.join(paths.gen_dir(number), "map"))
    return dataclasses.replace(
        have, generation=number, links=_hooks(links, active.programs), **fields
    )


def _guest_maps(directory: str) -> dict[str, bpf.MapInfo]:
    """Return the maps that are pinned beside the chain's own."""
    found = {}
    for name in sorted(
        set(pinned_objects.names(directory))
        - {bpffs.encode(spec.name) for spec in chain_maps.maps(events=True)}
    ):
        with pinned_objects.open_pin(os.path.join(directory, name)) as (kind, fd):
            if kind == "map":
                found[name] = bpf.map_info(fd)
    return found
