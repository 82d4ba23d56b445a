# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for build_bcc.build that compiles each text once.

What comes of it are the chain's real programs: the same instructions, verified and loaded for the
maps of each generation. Only the compiler, which takes seconds, is left out from the second time
on.
"""

from __future__ import annotations

import ctypes
import re
import struct
import typing as t

import bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    model as generation_model,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf

_LOAD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1  # the instruction's source register: its immediate is a map's file descriptor
_INSN = struct.Struct("=BBhi")
_SIZE = re.compile(r", \d+(?=, \")")
_MAP_PIN = re.compile(r'"([^"]+/map)/(\w+)"')


class Program(t.NamedTuple):
    """The instructions of one program, and the maps that some of them, by offset, are about."""

    insns: bytes
    maps: dict[int, str]


_programs: dict[str, dict[str, Program]] = {}
_compile = build_bcc.build


def build(
    text: str,
    headers: t.Mapping[str, str],
    stages: t.Iterable[str] = (*chain_programs.SLOTS, chain_programs.ADOPT),
    maps: dict[str, int] | None = None,
) -> dict[str, int]:
    """Do what build_bcc.build does; see there."""
    if maps is not None:  # those that are not pinned are new each time
        return _compile(text, headers, stages, maps)
    directories = {found[0] for found in _MAP_PIN.findall(text)}
    (directory,) = directories
    # the maps are there: what the text says of their sizes plays no part
    same = _SIZE.sub("", text.replace(directory, ""))
    if same not in _programs:
        _programs[same] = {}
        return _captured(text, headers, stages, _programs[same])
    fds = {
        spec.name: bpf.obj_get(f"{directory}/{spec.name}")
        for spec in chain_maps.maps(events=generation_model.EVENTS_ON in text)
    }
    try:
        return {name: _load(name, program, fds) for name, program in _programs[same].items()}
    finally:
        for fd in fds.values():
            bpf.close(fd)


def _captured(
    text: str, headers: t.Mapping[str, str], stages: t.Iterable[str], into: dict[str, Program]
) -> dict[str, int]:
    """Compile, and keep what the kernel is given."""
    whole = bcc.BPF.load_func

    def load_func(self: t.Any, name: bytes, *args: t.Any, **options: t.Any) -> t.Any:
        insns = bytes(self.dump_func(name))
        maps = {}
        for at in range(0, len(insns), _INSN.size):
            code, registers, dummy, immediate = _INSN.unpack_from(insns, at)
            if code == _LOAD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
                maps[at] = bpf.map_info(immediate).name
        into[name.decode()] = Program(insns, maps)
        return whole(self, name, *args, **options)

    bcc.BPF.load_func = load_func
    try:
        return _compile(text, headers, stages)
    finally:
        bcc.BPF.load_func = whole


def _load(name: str, program: Program, fds: t.Mapping[str, int]) -> int:
    insns = bytearray(program.insns)
    for at, map_name in program.maps.items():
        struct.pack_into("=i", insns, at + 4, fds[map_name])
    opts = bpf._ProgLoadOpts(expected_attach_type=chain_programs.ATTACH_TYPE_XDP)
    raw = bytes(insns)
    return bpf.call(
        "bpf_prog_load",
        bpf.PROG_TYPE_XDP,
        name.encode(),
        b"GPL",
        raw,
        len(raw) // _INSN.size,
        ctypes.byref(opts),
        about=name,
    )
