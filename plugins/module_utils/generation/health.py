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
import struct
import time
import typing as t

from ..chain import clock, forwarding
from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..kernel import bpf, bpffs, netdev, netns
from ..kernel.bpffs import Paths
from .diagnosis import Fault

_U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")
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
        chain.ATTACH_TYPE_XDP.
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
    kinds = {number: kind for kind, number in chain_maps.MAP_TYPES.items()}
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
    rate = clock.hz()
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


# ---------------------------------------------------------------- look
@contextlib.contextmanager
def open_pin(path: str) -> t.Iterator[tuple[str | None, int]]:
    """Give (kind, fd) of what is pinned to a ``with`` block: kind is ``map``, ``prog`` or ``link``,
    None where nothing is there, else what it is.
    """
    if not os.path.lexists(path):
        yield None, -1
        return
    try:
        fd = bpf.obj_get(path)
    except bpf.BpfError as exc:
        # the kernel's answers to what is no BPF object
        if exc.errno not in (errno.EACCES, errno.ENOENT, errno.ELOOP):
            raise
        yield ("a directory" if os.path.isdir(path) else "no BPF object"), -1
        return
    with bpf.closing(fd):
        yield bpf.kind_of(fd), fd


def names(directory: str) -> list[str]:
    """Return what is in a directory; nothing where there is none."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_meta(fd: int) -> dict[str, int]:
    """Return ``meta`` by the names of chain.META."""
    values = {}
    for name, index in chain_maps.META.items():
        raw = bpf.map_lookup(fd, _U32.pack(index), U64.size)
        values[name] = U64.unpack(raw)[0] if raw else 0
    return values


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
            kind, fd = stack.enter_context(open_pin(os.path.join(directory, pin)))
            info = bpf.prog_info(fd) if kind == "prog" else None
            if kind is None and slot not in chain_programs.SLOTS.values():
                continue
            if info is None or info.type != bpf.PROG_TYPE_XDP:
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
            kind, fd = stack.enter_context(open_pin(os.path.join(directory, pin)))
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
            used = _used([*programs.values(), *filter(None, map(program, lost))])
        # most chains have no events, those of earlier releases no proof
        for spec in (*chain_maps.EVENT_MAPS, chain_maps.PROOF_MAP):
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


def program(number: int) -> bpf.ProgInfo | None:
    """Return what the kernel knows of a program, None where it is gone."""
    try:
        with bpf.closing(bpf.prog_get_fd_by_id(number)) as fd:
            return bpf.prog_info(fd)
    except bpf.BpfError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise


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
    if there is None or there.kind != chain_maps.MAP_TYPES["prog_array"]:
        return None
    found = {}
    with bpf.closing(bpf.map_get_fd_by_id(there.id)) as fd:
        for slot in _ALL_SLOTS.values():
            raw = (
                bpf.map_lookup(fd, _U32.pack(slot), _U32.size) if slot < there.max_entries else None
            )
            if raw is not None:
                found[slot] = _U32.unpack(raw)[0]
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
            or there.kind != chain_maps.MAP_TYPES["array"]
            or there.key_size != _U32.size
        ):
            continue
        with bpf.closing(bpf.map_get_fd_by_id(there.id)) as fd:
            if spec.name == "settings":
                contents["settings"] = bpf.map_lookup(fd, _U32.pack(0), there.value_size) or b""
            elif there.value_size == spec.value_size:
                contents["meta"] = read_meta(fd)
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
        bpf.closing(bpf.map_create(chain_maps.MAP_TYPES["prog_array"], "probe", 4, 4, 1)) as jt,
        bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "probe")) as owner,
    ):
        bpf.map_update(jt, _U32.pack(0), _U32.pack(owner))
        jited = bool(bpf.prog_info(owner).jited_len)
        for same in filter(None, (together, *([slot] for slot in alone))):
            if bool(programs[same[0]].jited_len) == jited and not _takes(jt, fds[same[0]]):
                refused += same
    return tuple(refused)


def _takes(jt: int, program_fd: int) -> bool:
    try:
        bpf.map_update(jt, _U32.pack(0), _U32.pack(program_fd))
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
        for name in names(paths.gen)
        if name.isdigit() and os.path.isdir(os.path.join(paths.gen, name))
    ]
    if not whole or not any(os.path.lexists(path) for path in (paths.active, *paths.seed_links())):
        return None  # a first run that was killed before it made its generation the active one
    running = {info.prog_id for info in _links(paths).values() if info is not None}
    return max(whole, key=lambda one: (bool(running & _program_ids(paths.gen_dir(one))), one))


def _program_ids(directory: str) -> set[int]:
    found = set()
    for name in names(os.path.join(directory, "prog")):
        with open_pin(os.path.join(directory, "prog", name)) as (kind, fd):
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


# ---------------------------------------------------------------- links
@dataclasses.dataclass(frozen=True)
class Link:
    """One of the pinned links.

    :ivar info: None for what is no XDP link.
    :ivar here: whether the interface that it is named for is the one that it holds.
    :ivar there: whether there is an interface of the name that it is named for.
    :ivar hook: which hook of the chain its program is, "" where it is none.
    """

    info: bpf.LinkInfo | None
    here: bool = False
    there: bool = False
    hook: str = ""


def _links(paths: Paths) -> dict[str, bpf.LinkInfo | None]:
    found: dict[str, bpf.LinkInfo | None] = {}
    for name in names(paths.link_dir):
        with open_pin(os.path.join(paths.link_dir, name)) as (kind, fd):
            info = bpf.link_info(fd) if kind == "link" else None
            found[name] = info if info is not None and info.type == bpf.LINK_TYPE_XDP else None
    return found


def look_links(paths: Paths) -> dict[str, Link]:
    """Read the pinned links, by the name of their pin."""
    return {
        key: Link(None) if info is None else _look_link(key, info)
        for key, info in _links(paths).items()
    }


def _look_link(key: str, info: bpf.LinkInfo) -> Link:
    facts = link_facts(key)
    here = (
        facts is not None and facts.ifindex == info.ifindex and info.prog_id in facts.xdp.values()
    )
    running = program(info.prog_id)
    hook = running.name if running is not None and running.name in chain_programs.HOOKS else ""
    return Link(info, here, facts is not None, hook)


def link_facts(key: str) -> netdev.LinkFacts | None:
    """Return what rtnetlink says of the interface that a pin is named for, None where there is
    none.
    """
    namespace, name = bpffs.interface_of(key)
    if namespace is not None and not netns.exists(namespace):
        return None
    with netns.entered(namespace):
        try:
            return netdev.link_facts(name)
        except bpf.BpfError as exc:
            if exc.errno != errno.ENODEV:
                raise
            return None


def interface(key: str) -> str:
    """Return a link's interface as people write it, ``name`` or ``name@netns``."""
    namespace, name = bpffs.interface_of(key)
    return name if namespace is None else f"{name}@{namespace}"


def judge_links(
    links: t.Mapping[str, Link], programs: t.Mapping[int, bpf.ProgInfo]
) -> tuple[Fault, ...]:
    """Return what is wrong with the pinned links.

    :param programs: the active generation's, by slot.
    """
    hooks = {
        programs[chain_programs.SLOTS[hook]].id
        for hook in chain_programs.HOOKS
        if chain_programs.SLOTS[hook] in programs
    }
    faults = []
    for key, link in links.items():
        name, info = interface(key), link.info
        if info is None:
            faults.append(
                Fault(
                    "link_foreign",
                    name,
                    f"what is pinned for {name} among the links is no XDP link",
                )
            )
        elif not info.ifindex:
            faults.append(_stale(name, link, info.id))
        else:
            if not link.here:
                where = (
                    f"it holds interface number {info.ifindex} under another name or in another"
                    " namespace"
                )
                faults.append(
                    Fault(
                        "link_moved",
                        name,
                        f"{name}: the interface was renamed or moved, and its link {info.id} with"
                        f" it: {where}",
                    )
                )
            if info.prog_id not in hooks:
                why = (
                    f"{name}: its link {info.id} runs program {info.prog_id}, which is none of the"
                    " active generation's"
                )
                # of a program that is no hook nobody can tell which one it stands for
                faults.append(
                    Fault(
                        "link_program",
                        name,
                        why,
                        "" if link.hook else f"ct attach {name} --program PROGRAM",
                    )
                )
    return tuple(faults)


def forwards(paths: Paths, number: int | None = None) -> str:
    """Return what a generation forwards, one of chain.FORWARDS; the first where there is none.

    :param number: the generation's; None for the active one.
    """
    with open_pin(
        paths.map("meta") if number is None else os.path.join(paths.gen_dir(number), "map", "meta")
    ) as (kind, fd):
        number = read_meta(fd)["forward"] if kind == "map" else 0
    return (
        chain_settings.FORWARDS[number]
        if number < len(chain_settings.FORWARDS)
        else chain_settings.FORWARDS[0]
    )


def look_forwarding(paths: Paths, links: t.Mapping[str, Link]) -> dict[str, forwarding.Seen]:
    """Return what there is to know of the interfaces through which the active generation forwards,
    by the names of their pins.
    """
    return forwarding.attached(
        forwards(paths),
        [
            key
            for key, link in links.items()
            if link.info is not None and link.here and tracks(link.info)
        ],
    )


def judge_forwarding(seen: t.Mapping[str, forwarding.Seen]) -> tuple[Fault, ...]:
    """Return where the chain forwards, and must not."""
    return tuple(
        Fault(
            "forward_unsafe",
            interface(key),
            f"{interface(key)}: {problem}. {mend}, or load the chain with forward: off",
        )
        for key, one in seen.items()
        for problem, mend in forwarding.problems(one)
    )


def _stale(name: str, link: Link, number: int) -> Fault:
    """Return the fault of a link that holds nothing; what repairs it depends on whether there is an
    interface to attach to.
    """
    why = (
        "the interface was made again, or the link was detached"
        if link.there
        else "the interface is gone"
    )
    repair = f"ct attach {name} --program {link.hook or 'PROGRAM'}" if link.there else ""
    return Fault(
        "link_stale", name, f"{name}: its link {number} holds no interface any more: {why}", repair
    )


def examine(paths: Paths) -> tuple[Fault, ...]:
    """Return all that can be seen to be wrong, without waiting for traffic."""
    if not bpffs.mounted(paths.pin_root):
        return ()
    links, number = look_links(paths), active(paths)
    if number is None:
        return judge_links(links, {})
    seen = look(paths.gen_dir(number), number)
    return (
        *judge(seen),
        *judge_paths(paths, number),
        *judge_links(links, seen.programs),
        *judge_forwarding(look_forwarding(paths, links)),
    )


def tracks(info: bpf.LinkInfo) -> bool:
    """Tell whether a link's program is to count frames."""
    there = program(info.prog_id)
    return (
        there is None
        or there.name not in chain_programs.HOOKS
        or there.name in chain_programs.TRACKING_HOOKS
    )
