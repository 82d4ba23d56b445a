# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load a chain from the object file that build_clang made of it: what build_bcc does, without a
compiler.

Its maps are there, pinned; what a guest has of its own is made here. So the object file says
nothing of sizes or pins, and one is good for tables of all sizes.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ..chain import guests
from ..chain import programs as chain_programs
from ..core.errors import ConntrackError
from ..kernel import bpf, bpf_constants, elf
from ..kernel.elf import Map
from . import bcc as build_bcc

#: What the file's maps are called, behind the names that they have in the text
#: (files/bpf/clang/bcc.h).
MAP_SUFFIX = "_ct_map"
#: libbpf's map of the constant that says which clock the programs have.
_SHADOW = ".rodata.shadow"
_NAME = "chain"
_INNER = re.compile(r'BPF_TABLE_PINNED\("\w+_of_maps\$(\w+)", [^,]+, [^,]+, (\w+),')
_PERF_EVENT_ARRAY = 4  # include/uapi/linux/bpf.h, enum bpf_map_type
_REFUSED = re.compile(
    r"^libbpf: prog '(\w+)': (?:BPF program load failed: |failed to load: )(.*)$", re.MULTILINE
)
_LOG = re.compile(
    r"^libbpf: prog '\w+': -- BEGIN PROG LOAD LOG --\n(.*?)^-- END PROG LOAD LOG --",
    re.MULTILINE | re.DOTALL,
)
#: What a map is to be made as.
Shape = t.Callable[[Map], Map]


def _line_itself(dummy: t.Sequence[str], number: int) -> int:
    """clang compiles the text as it stands."""
    return number


def failure(text: str, output: str, exc: Exception) -> ConntrackError:
    """Return the error that tells in the verifier's words why an object was not loaded, and with
    the line of C that they speak of.
    """
    refused = _REFUSED.search(output)
    what, why = (
        (f"loading {refused[1]}", refused[2]) if refused else ("loading the object", str(exc))
    )
    logs = _LOG.findall(output)
    return ConntrackError(
        f"{what} failed:"
        f" {why}\n{build_bcc.explain(text, logs[-1] if logs else output, _line_itself)}",
        compiler_output=output,
    )


def _make(spec: Map, name: str, inner: int | None) -> int:
    entries = (
        bpf.possible_cpus()
        if spec.kind == _PERF_EVENT_ARRAY and not spec.max_entries
        else spec.max_entries
    )
    return bpf.map_create(
        spec.kind, name, spec.key_size, spec.value_size, entries, spec.flags, inner
    )


def _name(spec: Map) -> str:
    return spec.name[: -len(MAP_SUFFIX)] if spec.name.endswith(MAP_SUFFIX) else spec.name


def _as_it_is(spec: Map) -> Map:
    return spec


def load(
    data: bytes,
    text: str,
    map_dir: str | None,
    stages: t.Iterable[str] = (*chain_programs.SLOTS, chain_programs.ADOPT),
    maps: dict[str, int] | None = None,
    shape: Shape = _as_it_is,
) -> dict[str, int]:
    """Load every program of the chain and of its guests; return a file descriptor by name.

    :param data: the object file.
    :param text: the rendered chain that it was made of.
    :param map_dir: the directory of the maps' pins; None for a shadow, which has maps of its own
        and a clock that is set.
    :param stages: names of the chain's own programs.
    :param maps: where to put a file descriptor of each map of a shadow, by name.
    :param shape: what becomes of a map's kind and size where it is made here.
    :raises ConntrackError: with the verifier's own words and the lines of C that they speak of;
        nothing stays loaded.
    """
    with contextlib.ExitStack() as made, build_bcc.scratch() as directory:
        log = os.path.join(directory, "log")
        try:
            with build_bcc.stderr_to(log), elf.Object(data, _NAME) as opened:
                found = _give_maps(opened, made, text, map_dir, shape)
                loaded = opened.load((*stages, *guests.programs_in(text)), bpf_constants.ATTACH_XDP)
        except bpf.BpfError as exc:
            raise failure(text, build_bcc.read_log(log), exc) from exc
        if maps is not None:
            maps.update({name: os.dup(fd) for name, fd in found.items()})
        return loaded


def _give_maps(
    opened: elf.Object, made: contextlib.ExitStack, text: str, map_dir: str | None, shape: Shape
) -> dict[str, int]:
    """Give every map of an object file its place; return a file descriptor of each, which ``made``
    closes.
    """
    inner = {name: held for held, name in _INNER.findall(text)}
    mine = guests.maps_in(text)
    found: dict[str, int] = {}
    # those that others hold the like of come first
    for spec in sorted(opened.maps(), key=lambda one: _name(one) in inner):
        if spec.internal:
            if spec.name.endswith(_SHADOW):
                spec.fill((map_dir is None).to_bytes(spec.value_size, "little"))
            continue
        name = _name(spec)
        path = os.path.join(map_dir or "", name)
        pinned = map_dir is not None and os.path.lexists(path)
        if pinned:
            fd = bpf.obj_get(path)
        else:
            fd = _make(shape(spec), name, found[inner[name]] if name in inner else None)
        made.callback(bpf.close, fd)
        if name in mine and pinned:
            guests.check_shape(
                name,
                bpf.map_info(fd),
                spec.kind,
                spec.key_size,
                spec.value_size,
                spec.max_entries,
                spec.flags,
            )
        elif name in mine and map_dir is not None:
            bpf.obj_pin(fd, path)
        found[name] = fd
        spec.use(fd)
    return found
