# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests: programs of somebody else in slots of the chain's jump table, each from a C file or from
a pin on the target.

Those from C files become part of the chain's text (files/bpf/templates/guest.h.j2 says what they
are made of), and everything that is to be known of them is read from it: so a generation's text is
enough to build it again. Of pinned ones the text holds the slot alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import typing as t

from ..core import safe_path
from ..core.errors import ConntrackError, bad_value
from ..kernel import bpf, bpf_constants
from . import counters as chain_counters
from . import maps as chain_maps
from . import programs as chain_programs

_NAME = re.compile(r"[A-Za-z_]\w*")
_NAME_BYTES = bpf_constants.OBJECT_NAME_BYTES
#: What stands between quotes in a #line, and is read by those who look for faults.
_FILE = re.compile(r"[\w.+-]+")
_GUEST = re.compile(r"^GUEST\(\s*(\w+)\s*\)", re.MULTILINE)
_MAP = re.compile(r"^GUEST_MAP\(\s*(\w+)\s*,", re.MULTILINE)
_IN_TEXT = re.compile(r"^#define GUEST_SLOT (\d+)$|" + _GUEST.pattern, re.MULTILINE)
_FREE = "give acl, nat or the number of a free slot, {} to {}".format(
    *(sorted(chain_programs.GUEST_SLOTS.values())[at] for at in (2, -1))
)
_U32 = struct.Struct("=I")
_COUNTS = struct.Struct(f"={len(chain_counters.GUEST_COUNTS)}Q")


@dataclasses.dataclass(frozen=True)
class Guest:
    """One guest, as asked for.

    :ivar field: where it was asked for, as messages name it.
    :ivar slot: its slot in ``jt``.
    :ivar src: path of its C file on the controller; None where it is pinned.
    :ivar pinned: path of its pin on the target; None where it comes from a C file.
    :ivar name: of the program, which GUEST() gives it; "" until the file was read.
    :ivar file: the file's bare name, as the compiler's messages have it.
    :ivar text: of the file.
    """

    field: str
    slot: int
    src: str | None = None
    pinned: str | None = None
    name: str = ""
    file: str = ""
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A pinned program that can stand in the jump table.

    :ivar id: of the program; another one behind the same path is another guest.
    """

    slot: int
    path: str
    id: int
    tag: str


def slot_name(slot: int) -> str:
    """Return a guest slot as people name it.

    >>> slot_name(4), slot_name(21)
    ('acl', '21')
    """
    return next(name for name, number in chain_programs.GUEST_SLOTS.items() if number == slot)


def _slot(field: str, value: t.Any) -> int:
    names = {str(number): number for number in chain_programs.GUEST_SLOTS.values()}
    slot = {**names, **chain_programs.GUEST_SLOTS}.get(str(value))
    if slot is not None:
        return slot
    holder = next(
        (
            name
            for name, number in chain_programs.SLOTS.items()
            if str(value) in (name, str(number))
        ),
        None,
    )
    raise bad_value(
        f"{field}.slot",
        value,
        f"it is {holder}'s, a stage of the chain; {_FREE}" if holder else _FREE,
    )


def parse(values: t.Any) -> tuple[Guest, ...]:
    """Return the guests of a task's option ``guests``, in the order in which they run.

    :raises ConntrackError: naming the field, its value and what it may be.
    """
    if not isinstance(values, (list, tuple)):
        raise bad_value("guests", values, "give a list")
    found: dict[int, Guest] = {}
    for number, value in enumerate(values):
        field = f"guests[{number}]"
        if not isinstance(value, t.Mapping):
            raise bad_value(field, value, "give slot, and src or pinned")
        unknown = sorted(set(value) - {"slot", "src", "pinned"})
        if unknown:
            raise bad_value(field, unknown[0], "known are slot, src and pinned")
        given = {name: str(value[name]) for name in ("src", "pinned") if value.get(name)}
        slot = _slot(field, value.get("slot"))
        if slot in found:
            raise bad_value(
                f"{field}.slot",
                value["slot"],
                f"{found[slot].field} has it; give each guest a slot of its own",
            )
        if len(given) != 1:
            raise ConntrackError(
                f"{field}:"
                f" {'src and pinned exclude each other' if given else 'src or pinned is missing'}:"
                " give one of them."
            )
        found[slot] = Guest(field, slot, **given)
    return tuple(found[slot] for slot in sorted(found))


# ---------------------------------------------------------------- on the controller
def read(
    guests: t.Sequence[Guest], find: t.Callable[[str], str], taken: t.Container[str]
) -> tuple[Guest, ...]:
    """Return the guests with their files' text.

    :param find: makes a path of the controller absolute.
    :param taken: bare names of files that are the chain's own.
    :raises ConntrackError: where a file can not be read, is no guest's, or two are called the same.
    """
    done: list[Guest] = []
    for guest in guests:
        done.append(_read(guest, find, taken) if guest.src is not None else guest)
        for other in done[:-1]:
            for what, mine, theirs in (
                ("name", done[-1].name, other.name),
                ("file", done[-1].file, other.file),
            ):
                if mine and mine == theirs:
                    raise bad_value(
                        f"{guest.field}.src",
                        guest.src,
                        f"{other.field} has the {what} {mine} already; give each guest a {what} of"
                        " its own",
                    )
    return tuple(done)


def _read(guest: Guest, find: t.Callable[[str], str], taken: t.Container[str]) -> Guest:
    field, path = f"{guest.field}.src", find(t.cast("str", guest.src))
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConntrackError(
            f"{field}: {path} can not be read: {getattr(exc, 'strerror', None) or exc}."
        ) from exc
    name = os.path.basename(path)
    if name in taken:
        raise bad_value(field, guest.src, "a file of the chain has this name; give it another")
    if not _FILE.fullmatch(name):
        raise bad_value(field, guest.src, "use letters, digits and .+-_ for its name")
    programs = _GUEST.findall(text)
    if len(programs) != 1:
        raise bad_value(
            field,
            guest.src,
            f"it has {len(programs)} programs; a guest's file has one, which begins with"
            " GUEST(name) in a line of its own",
        )
    program = programs[0]
    if (
        program in chain_programs.SLOTS
        or not _NAME.fullmatch(program)
        or len(program) > _NAME_BYTES
    ):
        raise bad_value(
            field,
            program,
            f"a guest's program needs a name of C, of {_NAME_BYTES} characters at most, that no"
            " stage of the chain has",
        )
    hidden = [
        found
        for found in maps_in(text)
        if found in {spec.name for spec in chain_maps.maps(events=True)}
    ]
    if hidden:
        raise bad_value(
            field, hidden[0], "the chain has a map of this name; give the guest's another"
        )
    return dataclasses.replace(
        guest, name=program, file=name, text=text if text.endswith("\n") else f"{text}\n"
    )


# ---------------------------------------------------------------- what a rendered text holds
def programs_in(text: str) -> dict[str, int]:
    """Return slot by name of the guests' programs that a rendered text defines.

    >>> programs_in('#define GUEST_SLOT 4\\n#line 1 "a.c"\\nGUEST(acl)\\n{}\\n')
    {'acl': 4}
    """
    found, slot = {}, 0
    for match in _IN_TEXT.finditer(text):
        if match.group(1):
            slot = int(match.group(1))
        elif slot:
            found[match.group(2)] = slot
    return found


def maps_in(text: str) -> tuple[str, ...]:
    """Return the names of the guests' pinned maps that a rendered text defines."""
    return tuple(_MAP.findall(text))


# ---------------------------------------------------------------- on the target
def pinned_here(guests: t.Sequence[Guest]) -> tuple[Pinned, ...]:
    """Return those of the guests that are pinned, once the kernel has said that each can stand in a
    jump table with the chain.

    :raises ConntrackError: where a pin is missing, no XDP program, or of another kind than the
        chain's programs.
    """
    return tuple(_pinned_here(guest, guest.pinned) for guest in guests if guest.pinned is not None)


def _pinned_here(guest: Guest, path: str) -> Pinned:
    field = f"{guest.field}.pinned"
    safe_path.check_text(
        field, path, "give the absolute path of a program that is pinned on the target"
    )
    safe_path.refuse_foreign_way(path)
    safe_path.refuse_foreign(path)
    try:
        fd = bpf.obj_get(path)
    except bpf.BpfError as exc:
        raise bad_value(
            field,
            path,
            f"{exc.words or os.strerror(exc.errno or 0)}; give the path of a program that is pinned"
            " on the target",
        ) from exc
    with bpf.closing(fd):
        kind = bpf.kind_of(fd)
        info = bpf.prog_info(fd) if kind == "prog" else None
        if info is None or info.type != bpf_constants.PROG_TYPE_XDP:
            raise bad_value(
                field,
                path,
                f"it is a {kind if info is None else f'program of type {info.type}'}; give an XDP"
                f" program (type {bpf_constants.PROG_TYPE_XDP})",
            )
        try:
            _fits(fd)
        except bpf.BpfError as exc:
            raise bad_value(
                field,
                path,
                "the kernel does not let it stand in one jump table with the chain"
                f" ({os.strerror(exc.errno or 0)}): it has to be loaded with expected_attach_type"
                f" BPF_XDP ({bpf_constants.ATTACH_XDP}), without BPF_F_XDP_HAS_FRAGS, and"
                " compiled by the JIT as the chain is",
            ) from exc
    return Pinned(guest.slot, path, info.id, info.tag)


def open_pinned(guest: Pinned) -> int:
    """Return the program's file descriptor.

    :raises ConntrackError: where another one stands at its path by now.
    """
    fd = bpf.obj_get(guest.path)
    if bpf.kind_of(fd) != "prog" or bpf.prog_info(fd).tag != guest.tag:
        bpf.close(fd)
        raise ConntrackError(
            f"{guest.path}: another program was pinned there meanwhile. Run it again."
        )
    return fd


def _fits(fd: int) -> None:
    """Put a program into a jump table that has one of the chain's kind already.

    :raises BpfError: where the kernel refuses it (kernel/bpf/core.c, __bpf_prog_map_compatible).
    """
    with bpf.closing(
        bpf.map_create(bpf_constants.MAP_TYPES["prog_array"], "fits", _U32.size, _U32.size, 2)
    ) as table:
        with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "fits")) as plain:
            for index, program in enumerate((plain, fd)):
                bpf.map_update(table, _U32.pack(index), _U32.pack(program))


def check_shape(
    name: str,
    found: bpf.MapInfo,
    kind: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int,
) -> None:
    """Compare a map that was pinned before with what the text says of it.

    :raises ConntrackError: where it has another shape.
    """
    wanted = {
        "type": (found.kind, kind),
        "key_size": (found.key_size, key_size),
        "value_size": (found.value_size, value_size),
        "max_entries": (found.max_entries, max_entries),
        "flags": (found.flags, flags),
    }
    other = [
        f"{what} {there}, now {here}" for what, (there, here) in wanted.items() if there != here
    ]
    if other:
        raise ConntrackError(
            f"guests: the map {name} has another shape in the running generation:"
            f" {', '.join(other)}. Give it another name; it begins empty then."
        )


def hand_maps_on(text: str, before: str, after: str) -> None:
    """Pin those maps of the guests in a rendered text that the generation before has, for the next
    one; the others are made by what compiles it.

    :param before: directory of the active generation's maps; it may be missing.
    :param after: likewise of the next generation's.
    """
    for name in maps_in(text):
        path = os.path.join(before, name)
        if os.path.lexists(path):
            with bpf.closing(bpf.obj_get(path)) as fd:
                bpf.obj_pin(fd, os.path.join(after, name))


# ---------------------------------------------------------------- what was counted
def counts_by_cpu(guest_stats: int, slot: int) -> list[dict[str, int]]:
    """Return what one guest did with frames on each possible CPU, by the names of
    chain.GUEST_COUNTS.

    :param guest_stats: file descriptor of the map of that name.
    """
    return [
        dict(zip(chain_counters.GUEST_COUNTS, _COUNTS.unpack(value)))
        for value in bpf.percpu_value(guest_stats, slot, _COUNTS.size)
    ]


def counts(guest_stats: int, slot: int) -> dict[str, int]:
    """Return the same of all CPUs together."""
    cpus = counts_by_cpu(guest_stats, slot)
    return {name: sum(cpu[name] for cpu in cpus) for name in chain_counters.GUEST_COUNTS}
