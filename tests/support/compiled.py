# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bcc front end, with each text compiled once: later runs, of other processes too, load the
instructions that the compiler made then.

What is loaded are the chain's real programs: the same instructions, verified by the kernel for the
maps of each generation. Only the compiler, which takes seconds, is left out. The instructions lie
in build/programs, by a digest of all that goes into them. An error of the compiler is never kept.

Suites install() it in their own process, and name this directory in PYTHONPATH for those that they
start: there sitecustomize.py installs it once the front end is imported.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import hashlib
import importlib
import json
import os
import pathlib
import re
import struct
import sys
import typing as t

SUPPORT = pathlib.Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
#: Where the instructions lie; "make clean" takes them away.
PROGRAMS = ROOT / "build/programs"
LIBRARY = "ansible_collections.ebpf.conntrack.plugins.module_utils"
_LOAD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1  # the instruction's source register: its immediate is a map's file descriptor
_INSN = struct.Struct("=BBhi")
#: A map's size; the maps are pinned already, so what the text says of their sizes plays no part.
_SIZE = re.compile(r", \d+(?=, \")")
_MAP_PIN = re.compile(r'"([^"]+/map)/(\w+)"')


class Program(t.NamedTuple):
    """The instructions of one program, and the name of the map that each of some of them, by its
    offset, is about.
    """

    insns: bytes
    maps: dict[int, str]


Programs = dict[str, Program]
Build = t.Callable[..., dict[str, int]]
_known: dict[str, Programs] = {}


def install() -> None:
    """Let the bcc front end of this process compile each text once."""
    name = f"{LIBRARY}.build.bcc"
    module = sys.modules.get(name) or importlib.import_module(name)
    whole = getattr(module, "compiles", module.build)  # what it is without this
    once = functools.partial(build, whole)
    vars(module).update(compiles=whole, build=once)


def uninstall() -> None:
    """Let the bcc front end of this process compile each time, where that is the point."""
    module = sys.modules[f"{LIBRARY}.build.bcc"]
    vars(module).update(build=getattr(module, "compiles", module.build))


def install_everywhere() -> None:
    """Let this process and those that it starts compile each text once."""
    install()
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(SUPPORT) not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), *known]))


def build(
    compiles: Build,
    text: str,
    headers: t.Mapping[str, str],
    stages: t.Iterable[str] | None = None,
    maps: dict[str, int] | None = None,
) -> dict[str, int]:
    """Do what the front end's build() does; see there.

    :param compiles: that build() itself.
    """
    args = () if stages is None else (tuple(stages),)
    directories = {directory for directory, dummy in _MAP_PIN.findall(text)}
    if maps is not None or len(directories) != 1:  # maps that are not pinned are new each time
        return compiles(text, headers, *args, *(() if maps is None else (maps,)))
    (directory,) = directories
    same = text.replace(directory, "")
    own = _guests().maps_in(
        text
    )  # maps of guests, whose shape the front end compares with the text
    made_of = [
        same if own else _SIZE.sub("", same),
        sorted(headers.items()),
        args,
        _compiler(),
    ]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    programs = _known.get(key) or _read(key)
    if programs is None:
        programs = {}
        loaded = _captured(compiles, (text, headers, *args), programs)
        _write(key, programs)
        _known[key] = programs
        return loaded
    _known[key] = programs
    names = {name for program in programs.values() for name in program.maps.values()}
    if own and not all(os.path.exists(f"{directory}/{name}") for name in (*names, *own)):
        return compiles(text, headers, *args)  # which makes and pins the maps of guests
    with contextlib.ExitStack() as stack:
        bpf = _bpf()
        fds = {
            name: stack.enter_context(bpf.closing(bpf.obj_get(f"{directory}/{name}")))
            for name in names
        }
        done: dict[str, int] = {}
        try:
            for name, program in programs.items():
                done[name] = _load(name, program, fds)
        except BaseException:
            for fd in done.values():
                os.close(fd)
            raise
        return done


def _bpf() -> t.Any:
    return sys.modules[f"{LIBRARY}.kernel.bpf"]


def _guests() -> t.Any:
    return sys.modules[f"{LIBRARY}.chain.guests"]


def _compiler() -> str:
    import bcc

    return f"{bcc.__version__} {os.uname().release}"


def _read(key: str) -> Programs | None:
    try:
        found = json.loads((PROGRAMS / key).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return {
        name: Program(base64.b64decode(insns), {int(at): one for at, one in maps.items()})
        for name, (insns, maps) in found.items()
    }


def _write(key: str, programs: Programs) -> None:
    """As a whole or not at all: processes that compile the same text do so at once."""
    content = {
        name: (base64.b64encode(one.insns).decode(), one.maps) for name, one in programs.items()
    }
    with contextlib.suppress(OSError):  # read-only here, in a sandbox: then it is compiled again
        PROGRAMS.mkdir(parents=True, exist_ok=True)
        unfinished = PROGRAMS / f"{key}.{os.getpid()}"
        unfinished.write_text(json.dumps(content), "utf-8")
        unfinished.rename(PROGRAMS / key)


def _captured(compiles: Build, args: tuple[t.Any, ...], into: Programs) -> dict[str, int]:
    """Compile, and keep what the kernel is given."""
    import bcc

    whole = bcc.BPF.load_func

    def load_func(self: t.Any, name: bytes, *more: t.Any, **options: t.Any) -> t.Any:
        insns = bytes(self.dump_func(name))
        maps = {}
        for at in range(0, len(insns), _INSN.size):
            code, registers, dummy, immediate = _INSN.unpack_from(insns, at)
            if code == _LOAD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
                maps[at] = _bpf().map_info(immediate).name
        into[name.decode()] = Program(insns, maps)
        return whole(self, name, *more, **options)

    bcc.BPF.load_func = load_func
    try:
        return compiles(*args)
    finally:
        bcc.BPF.load_func = whole


def _load(name: str, program: Program, fds: t.Mapping[str, int]) -> int:
    """Load a program without the verifier's log, which is too long for a buffer."""
    insns = bytearray(program.insns)
    for at, map_name in program.maps.items():
        struct.pack_into("=i", insns, at + 4, fds[map_name])
    bpf, constants = _bpf(), sys.modules[f"{LIBRARY}.kernel.bpf_constants"]
    opts = bpf._ProgLoadOpts(expected_attach_type=constants.ATTACH_XDP)
    count = len(insns) // _INSN.size
    return int(
        bpf.call(
            "bpf_prog_load",
            constants.PROG_TYPE_XDP,
            name.encode(),
            b"GPL",
            bytes(insns),
            count,
            ctypes.byref(opts),
            about=name,
        )
    )
