# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read generations from the kernel: which is active, whether it is whole, and what else lies around."""

from __future__ import annotations

import contextlib
import os
import struct
import typing as t

from . import bpf, bpffs, chain
from .bpffs import Paths
from .generation_model import Have

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


def _pinned(path: str) -> t.Any:
    """Open a pin for a ``with`` block; nothing where it is not there."""
    try:
        return bpf.closing(bpf.obj_get(path))
    except FileNotFoundError:
        return contextlib.nullcontext(None)
    except bpf.BpfError as exc:
        if exc.errno == 2:  # ENOENT
            return contextlib.nullcontext(None)
        raise


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def read_meta(fd: int) -> dict[str, int]:
    """Return ``meta`` by the names of chain.META."""
    values = {}
    for name, index in chain.META.items():
        raw = bpf.map_lookup(fd, _U32.pack(index), _U64.size)
        values[name] = _U64.unpack(raw)[0] if raw else 0
    return values


def _observe_links(paths: Paths, programs: t.Mapping[int, bpf.ProgInfo]) -> dict[str, tuple[bpf.LinkInfo, str | None]]:
    hooks = {program.id: program.name for program in programs.values() if program.name in chain.HOOKS}
    links = {}
    for name in _names(paths.link_dir):
        with _pinned(os.path.join(paths.link_dir, name)) as fd:
            if fd is None:
                continue
            info = bpf.link_info(fd)
            hook = hooks.get(info.prog_id)
            if hook is None and info.prog_id:
                with bpf.closing(bpf.prog_get_fd_by_id(info.prog_id)) as prog:
                    name_there = bpf.prog_info(prog).name
                hook = name_there if name_there in chain.HOOKS else None
            links[name] = (info, hook)
    return links


def observe(paths: Paths) -> Have:
    """Read the kernel: the active generation, its health, and what else lies around.

    :raises ConntrackError: for a user that may not.
    """
    no_paths = tuple(path for path in paths.seed_links() if not os.path.lexists(path))
    if not bpffs.mounted(paths.pin_root):
        return Have(no_paths=no_paths)
    try:
        generation = int(os.path.basename(os.readlink(paths.active)))
    except (FileNotFoundError, ValueError):
        generation = None
    leftovers = tuple(name for name in _names(paths.gen) if name != str(generation))
    if generation is None or not os.path.isdir(paths.gen_dir(generation)):
        return Have(leftovers=leftovers, links=_observe_links(paths, {}), no_paths=no_paths)
    faults: list[str] = []
    programs: dict[int, bpf.ProgInfo] = {}
    maps: dict[str, bpf.MapInfo] = {}
    meta: dict[str, int] = {}
    settings = b""
    for name, slot in chain.SLOTS.items():
        with _pinned(paths.prog(slot)) as fd:
            if fd is None:
                faults.append(f"the pin of {name} is missing")
            else:
                programs[slot] = bpf.prog_info(fd)
    for spec in chain.maps():
        with _pinned(paths.map(spec.name)) as fd:
            if fd is None:
                faults.append(f"the pin of the map {spec.name} is missing")
                continue
            maps[spec.name] = bpf.map_info(fd)
            if spec.name == "meta":
                meta = read_meta(fd)
            elif spec.name == "settings":
                settings = bpf.map_lookup(fd, _U32.pack(0), maps[spec.name].value_size) or b""
            elif spec.name == "jt":
                faults += _slot_faults(fd, programs)
    digest = f"{meta.get('digest_high', 0):016x}{meta.get('digest_low', 0):016x}"
    links = _observe_links(paths, programs)
    return Have(generation, digest, meta.get("layout", 0), settings, programs, maps, tuple(faults), leftovers, links, no_paths)


def _slot_faults(jt: int, programs: t.Mapping[int, bpf.ProgInfo]) -> list[str]:
    faults = []
    for name, slot in chain.SLOTS.items():
        raw = bpf.map_lookup(jt, _U32.pack(slot), _U32.size)
        found = _U32.unpack(raw)[0] if raw else None
        if found is None:
            faults.append(f"slot {slot} ({name}) is empty")
        elif slot in programs and found != programs[slot].id:
            faults.append(f"slot {slot} ({name}) holds program {found}, pinned is {programs[slot].id}")
    return faults
