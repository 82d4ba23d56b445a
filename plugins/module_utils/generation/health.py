# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the chain works, and not only whether it is there: each thing that keeps it from working
is a Fault with a stable name.

``look`` reads what stands still: pins, slots, maps, settings, links. ``listen`` reads what should
move: it holds the frames that the interfaces receive against those that the chain counts. Both only
read; what they saw is judged by pure functions. Of guests those are judged that are pinned; which
are wanted the plan knows.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import os
import time
import typing as t

from ..chain import jiffies as chain_jiffies
from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..kernel import bpf, bpf_constants, bpffs
from ..kernel.bpffs import Paths
from . import links as generation_links
from . import pinned_objects
from .diagnosis import Fault

#: Looks, a pause apart, that an interface without traffic costs; and those that a suspicion may
#: take until it is certain. Some drivers read their card's counters once a second only.
LOOKS, LOOKS_TO_BE_SURE = 20, 150
_ALL_SLOTS = {**chain_programs.SLOTS, **chain_programs.GUEST_SLOTS}


# ---------------------------------------------------------------- what was seen
@dataclasses.dataclass(frozen=True)
class Seen:
    """One generation, as the kernel holds it.

    :ivar number: the generation's.
    :ivar programs: the pinned programs by slot.
    :ivar slots: ids of the programs in the jump table by slot; None where the jump table itself is
        not there.
    :ivar pinned: the pinned maps by name.
    :ivar used: the maps that the programs use, by name; more than one where they do not agree, the
        one with the most users first.
    :ivar odd_pins: the pins that are missing (None) or something else (what it is), by their path
        below the generation.
    :ivar meta: see chain.META.
    :ivar settings: bytes.
    :ivar refused: slots of the programs that the kernel refuses in one jump table with a program of
        bpf_constants.ATTACH_XDP.
    """

    number: int
    programs: t.Mapping[int, bpf.ProgInfo] = dataclasses.field(default_factory=dict)
    slots: t.Mapping[int, int] | None = None
    pinned: t.Mapping[str, bpf.MapInfo] = dataclasses.field(default_factory=dict)
    used: t.Mapping[str, t.Sequence[bpf.MapInfo]] = dataclasses.field(default_factory=dict)
    odd_pins: t.Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    meta: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    settings: bytes = b""
    refused: tuple[int, ...] = ()

    @property
    def maps(self) -> dict[str, bpf.MapInfo]:
        """The maps that hold the chain's state, whatever is pinned: those that the programs use,
        else the pinned ones. Those of a wrong shape are none.
        """
        found: dict[str, bpf.MapInfo] = {}
        for spec in chain_maps.maps(events=True):
            used, pinned = self.used.get(spec.name, ()), self.pinned.get(spec.name)
            there = (
                pinned
                if pinned is not None and (not used or pinned in used)
                else next(iter(used), None)
            )
            if there is not None and (not self.ours or not misshapen(there, spec)):
                found[spec.name] = there
        return found

    @property
    def true_meta(self) -> bool:
        """Whether ``meta`` can be believed."""
        return (
            self.meta.get("generation") == self.number
            and self.meta.get("ktime_ns", 0) <= time.monotonic_ns()
        )

    @property
    def ours(self) -> bool:
        """Whether this release made the generation, so that it can be held to this release's
        shapes.
        """
        return not self.true_meta or self.meta.get("layout") == chain_layout.LAYOUT_VERSION

    @property
    def layout(self) -> int:
        """The version of the maps' layout. Where ``meta`` can not be believed the maps' shapes tell
        it.
        """
        if self.true_meta:
            return self.meta["layout"]
        return (
            0
            if any(
                misshapen(self.pinned[spec.name], spec)
                for spec in chain_maps.maps()
                if spec.name in self.pinned
            )
            else chain_layout.LAYOUT_VERSION
        )


def misshapen(there: bpf.MapInfo, spec: chain_maps.MapSpec) -> str:
    """Return what a map has instead of the chain's type and sizes, "" where it is right.

    A map that is handed on may have any number of entries: the size of a table is the user's
    choice, and another release has other counters.
    """
    kinds = {number: kind for kind, number in bpf_constants.MAP_TYPES.items()}
    have = (kinds.get(there.kind, str(there.kind)), there.key_size, there.value_size)
    wrong = have != (spec.kind, spec.key_size, spec.value_size) or (
        not spec.inherited and there.max_entries != spec.entries
    )
    return (
        f"{have[0]}, key {have[1]}, value {have[2]} bytes, {there.max_entries} entries"
        if wrong
        else ""
    )


def judge(seen: Seen) -> tuple[Fault, ...]:
    """Return what is wrong with a generation; one that another release made is not judged, for its
    successor takes over in any case.
    """
    if not seen.ours:
        return ()
    return (*_judge_pins(seen), *_judge_slots(seen), *_judge_maps(seen), *_judge_contents(seen))


def _judge_pins(seen: Seen) -> t.Iterator[Fault]:
    stages = {f"prog/xdp_{slot}": name for name, slot in _ALL_SLOTS.items()}
    for pin, what in seen.odd_pins.items():
        name = stages.get(pin) or f"the map {os.path.basename(pin)}"
        if what is None:
            yield Fault("pin_missing", pin, f"the pin of {name} is missing")
        else:
            yield Fault("pin_foreign", pin, f"the pin of {name} is {what}")


def _judge_slots(seen: Seen) -> t.Iterator[Fault]:
    for name, slot in _ALL_SLOTS.items():
        if slot not in chain_programs.SLOTS.values() and slot not in seen.programs:
            continue
        if seen.slots is not None:
            there = seen.slots.get(slot)
            if there is None:
                yield Fault("slot_empty", f"jt[{slot}]", f"slot {slot} ({name}) is empty")
            elif slot in seen.programs and there != seen.programs[slot].id:
                yield Fault(
                    "slot_foreign",
                    f"jt[{slot}]",
                    f"slot {slot} ({name}) holds program {there}, pinned is"
                    f" {seen.programs[slot].id}",
                )
        if slot in seen.refused:
            yield Fault(
                "attach_type",
                f"prog/xdp_{slot}",
                f"{name} has another attach type than BPF_XDP, so it can not share a jump table"
                " with the others",
            )


def _judge_maps(seen: Seen) -> t.Iterator[Fault]:
    for spec in chain_maps.maps(events=True):
        pinned, used = seen.pinned.get(spec.name), seen.used.get(spec.name, ())
        for there in used:
            if pinned is not None and there.id != pinned.id:
                yield Fault(
                    "map_replaced",
                    f"map/{spec.name}",
                    f"the programs use map {there.id} as {spec.name}, pinned is {pinned.id}",
                )
        wrong = misshapen(pinned, spec) if pinned is not None else ""
        if wrong:
            yield Fault(
                "map_shape",
                f"map/{spec.name}",
                f"the map {spec.name} is none of the chain's: {wrong}",
            )


def _judge_contents(seen: Seen) -> t.Iterator[Fault]:
    if seen.meta and not seen.true_meta:
        said = seen.meta.get("generation")
        why = (
            f"it says generation {said} and this is {seen.number}"
            if said != seen.number
            else "its clock is ahead of this boot's"
        )
        yield Fault("meta_damaged", "map/meta", f"the map meta is damaged: {why}")
    why = _damage(seen.settings) if seen.settings else ""
    if why:
        yield Fault("settings_damaged", "map/settings", f"the map settings is damaged: {why}")


def _damage(raw: bytes) -> str:
    """Return what keeps ``settings`` from being what the loader writes."""
    if len(raw) != chain_settings.SETTINGS_BYTES:
        return ""  # a wrong shape
    rate = chain_jiffies.hz()
    hz, timeouts, knobs = chain_settings.settings_of(raw)
    if hz != rate:
        return f"it has {hz} jiffies a second, this kernel has {rate}"
    short = [name for name, seconds in timeouts.items() if not seconds]
    if short:
        return f"the timeout {short[0]} is less than a second"
    return (
        ""
        if chain_settings.settings_value(hz, timeouts, knobs) == raw
        else "its tables are not the chain's"
    )


def look(directory: str, number: int) -> Seen:
    """Read one generation, whatever became of it.

    :param directory: that of the generation, or a link to it.
    """
    odd: dict[str, str | None] = {}
    programs: dict[int, bpf.ProgInfo] = {}
    pinned: dict[str, bpf.MapInfo] = {}
    with contextlib.ExitStack() as stack:
        fds: dict[int, int] = {}
        for slot in _ALL_SLOTS.values():
            pin = f"prog/xdp_{slot}"
            kind, fd = stack.enter_context(pinned_objects.open_pin(os.path.join(directory, pin)))
            info = bpf.prog_info(fd) if kind == "prog" else None
            if kind is None and slot not in chain_programs.SLOTS.values():
                continue
            if info is None or info.type != bpf_constants.PROG_TYPE_XDP:
                odd[pin] = (
                    None
                    if kind is None
                    else "a program of another type"
                    if kind == "prog"
                    else _said(kind)
                )
            else:
                programs[slot], fds[slot] = info, fd
        for spec in chain_maps.maps(events=True):
            pin = f"map/{bpffs.encode(spec.name)}"
            kind, fd = stack.enter_context(pinned_objects.open_pin(os.path.join(directory, pin)))
            if kind == "map":
                pinned[spec.name] = bpf.map_info(fd)
            else:
                odd[pin] = None if kind is None else _said(kind)
        used = _used(programs.values())
        slots = _slots(used.get("jt", ()), pinned.get("jt"))
        if (
            slots is not None
            # a program that lost its pin is still in its slot, and says as well which maps are in
            # use
        ):
            lost = set(slots.values()) - {info.id for info in programs.values()}
            used = _used([*programs.values(), *filter(None, map(pinned_objects.program, lost))])
        for spec in (
            *chain_maps.EVENT_MAPS,
            chain_maps.PROOF_MAP,
        ):  # most chains have no events, those of earlier releases no proof
            pin = f"map/{bpffs.encode(spec.name)}"
            if spec.name not in used and odd.get(pin, "") is None:
                del odd[pin]
        seen = Seen(
            number, programs, slots, pinned, used, odd, refused=_refused(fds, programs, slots or {})
        )
        return dataclasses.replace(seen, **_contents(seen))


def _said(kind: str) -> str:
    return {"map": "a map", "prog": "a program", "link": "a link"}.get(
        kind, kind or "no BPF object"
    )


def _used(programs: t.Iterable[bpf.ProgInfo]) -> dict[str, list[bpf.MapInfo]]:
    """Return the chain's maps that programs use, by name, those with the most users first."""
    users = collections.Counter(number for info in programs for number in info.map_ids)
    ours = {spec.name for spec in chain_maps.maps(events=True)}
    found: dict[str, list[bpf.MapInfo]] = {}
    for number, dummy in users.most_common():
        with bpf.closing(bpf.map_get_fd_by_id(number)) as fd:
            info = bpf.map_info(fd)
        if info.name in ours:
            found.setdefault(info.name, []).append(info)
    return found


def _slots(used: t.Sequence[bpf.MapInfo], pinned: bpf.MapInfo | None) -> dict[int, int] | None:
    """Return the ids of the programs in the jump table that is in use."""
    there = next(iter(used), pinned)
    if there is None or there.kind != bpf_constants.MAP_TYPES["prog_array"]:
        return None
    found = {}
    with bpf.closing(bpf.map_get_fd_by_id(there.id)) as fd:
        for slot in _ALL_SLOTS.values():
            raw = (
                bpf.map_lookup(fd, pinned_objects.U32.pack(slot), pinned_objects.U32.size)
                if slot < there.max_entries
                else None
            )
            if raw is not None:
                found[slot] = pinned_objects.U32.unpack(raw)[0]
    return found


def _contents(seen: Seen) -> dict[str, t.Any]:
    """Return what ``meta`` and ``settings`` say, of those in use; nothing of what has not their
    shape.
    """
    contents: dict[str, t.Any] = {}
    for spec in chain_maps.maps():
        there = next(iter(seen.used.get(spec.name, ())), seen.pinned.get(spec.name))
        if (
            spec.name not in ("meta", "settings")
            or there is None
            or there.kind != bpf_constants.MAP_TYPES["array"]
            or there.key_size != pinned_objects.U32.size
        ):
            continue
        with bpf.closing(bpf.map_get_fd_by_id(there.id)) as fd:
            if spec.name == "settings":
                contents["settings"] = (
                    bpf.map_lookup(fd, pinned_objects.U32.pack(0), there.value_size) or b""
                )
            elif there.value_size == spec.value_size:
                contents["meta"] = pinned_objects.read_meta(fd)
    return contents


def _refused(
    fds: t.Mapping[int, int], programs: t.Mapping[int, bpf.ProgInfo], slots: t.Mapping[int, int]
) -> tuple[int, ...]:
    """Return the slots of the programs that the kernel refuses beside a program of type XDP and
    attach type BPF_XDP.

    A throw-away jump table is owned by the first program that is put into it, and takes only its
    like. Of those that are together in the chain's jump table one is tried for all. Kernels before
    the fix of CVE-2025-40123 do not compare attach types: they refuse only other types of program,
    and let programs of mixed attach types call each other as well. Whether a program is compiled by
    the JIT is compared, too; that is no fault of the program, so one that is not like the owner in
    this is let be.
    """
    together = [slot for slot in fds if slots.get(slot) == programs[slot].id]
    alone = [slot for slot in fds if slot not in together]
    refused: list[int] = []
    with (
        bpf.closing(bpf.map_create(bpf_constants.MAP_TYPES["prog_array"], "probe", 4, 4, 1)) as jt,
        bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "probe")) as owner,
    ):
        bpf.map_update(jt, pinned_objects.U32.pack(0), pinned_objects.U32.pack(owner))
        jited = bool(bpf.prog_info(owner).jited_len)
        for same in filter(None, (together, *([slot] for slot in alone))):
            if bool(programs[same[0]].jited_len) == jited and not _takes(jt, fds[same[0]]):
                refused += same
    return tuple(refused)


def _takes(jt: int, program_fd: int) -> bool:
    try:
        bpf.map_update(jt, pinned_objects.U32.pack(0), pinned_objects.U32.pack(program_fd))
    except bpf.BpfError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return False
    return True


# ---------------------------------------------------------------- the active generation, the seed's
def active(paths: Paths) -> int | None:
    """Return the number of the active generation.

    Where the link to it is lost, but the seed's paths tell that there was one, it is the one that
    the interfaces run, else the newest.
    """
    try:
        number = int(os.path.basename(os.readlink(paths.active)))
    except (OSError, ValueError):
        number = -1
    if os.path.isdir(paths.gen_dir(number)):
        return number
    whole = [
        int(name)
        for name in pinned_objects.names(paths.gen)
        if name.isdigit() and os.path.isdir(os.path.join(paths.gen, name))
    ]
    if not whole or not any(os.path.lexists(path) for path in (paths.active, *paths.seed_links())):
        return None  # a first run that was killed before it made its generation the active one
    running = {info.prog_id for info in generation_links.links(paths).values() if info is not None}
    return max(whole, key=lambda one: (bool(running & _program_ids(paths.gen_dir(one))), one))


def _program_ids(directory: str) -> set[int]:
    found = set()
    for name in pinned_objects.names(os.path.join(directory, "prog")):
        with pinned_objects.open_pin(os.path.join(directory, "prog", name)) as (kind, fd):
            if kind == "prog":
                found.add(bpf.prog_info(fd).id)
    return found


def judge_paths(paths: Paths, number: int) -> tuple[Fault, ...]:
    """Return which of the symbolic links to the active generation are not what they should be."""
    faults = []
    if _target(paths.active) != f"gen/{number}":
        what = _target(paths.active)
        said = (
            "is missing"
            if what is None
            else (
                f"is {what}"
                if not what.startswith("gen/")
                else f"leads to {what}, which is not there"
            )
        )
        faults.append(
            Fault(
                "active_missing",
                paths.active,
                f"{paths.active} {said}; generation {number} is there",
            )
        )
    for path, target in paths.seed_links().items():
        there = _target(path)
        if there is None:
            faults.append(Fault("path_missing", path, f"{path} is missing"))
        elif there != target:
            faults.append(
                Fault(
                    "path_foreign",
                    path,
                    (
                        f"{path} leads to {there}, and not to {target}"
                        if os.path.islink(path)
                        else f"{path} is {there}"
                    ),
                )
            )
    return tuple(faults)


def _target(path: str) -> str | None:
    """Return where a symbolic link leads to, None where nothing is, and in words what else is
    there.
    """
    if os.path.islink(path):
        return os.readlink(path)
    return (
        None
        if not os.path.lexists(path)
        else "a directory of somebody else"
        if os.path.isdir(path)
        else "a pin of somebody else"
    )


def examine(paths: Paths) -> tuple[Fault, ...]:
    """Return all that can be seen to be wrong, without waiting for traffic."""
    if not bpffs.mounted(paths.pin_root):
        return ()
    links, number = generation_links.look_links(paths), active(paths)
    if number is None:
        return generation_links.judge_links(links, {})
    seen = look(paths.gen_dir(number), number)
    return (
        *judge(seen),
        *judge_paths(paths, number),
        *generation_links.judge_links(links, seen.programs),
        *generation_links.judge_forwarding(generation_links.look_forwarding(paths, links)),
    )
