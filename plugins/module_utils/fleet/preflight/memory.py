# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host has the memory that the tables and the compiler take."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import typing as t

from ...chain import maps as chain_maps
from ...core import libraries
from ...kernel import bpf, bpf_constants
from .problem import Problem

#: What compiling takes for a moment beside the tables, most of it LLVM's.
COMPILER_BYTES = 160 << 20
#: What the kernel keeps of each entry beside key and value: struct htab_elem with its list, and its
#: share of the buckets.
_ENTRY_OVERHEAD = 64
#: Before this release what BPF takes counts against RLIMIT_MEMLOCK.
_NO_MEMLOCK = (5, 11)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of memory.

    :ivar needed: what the new tables take that are not handed on, and the compiler.
    :ivar held: what the tables of now take.
    :ivar available: what can be had without swapping, by the machine's or the control group's
        account, whichever is less.
    :ivar memlock: the limit that kernels before 5.11 hold BPF to; None where there is none, or the
        kernel does not look at it.
    """

    needed: int
    held: int
    available: int
    memlock: int | None = None


def table_bytes(kind: str, key_size: int, value_size: int, entries: int, cpus: int) -> int:
    """Return what the kernel sets aside for a map, within a few percent."""
    if kind == "ringbuf":
        return entries
    value = (value_size + 7) // 8 * 8
    if kind in ("lru_hash", "hash"):
        return entries * ((key_size + 7) // 8 * 8 + value + _ENTRY_OVERHEAD)
    return entries * value * (cpus if kind.startswith("percpu") else 1)


def needed_bytes(
    wanted: t.Iterable[chain_maps.MapSpec], there: t.Mapping[str, bpf.MapInfo], cpus: int
) -> int:
    """Return what the wanted maps take beside those that are there: one of the same size is handed
    on.
    """
    total = 0
    for spec in wanted:
        have = there.get(spec.name)
        if not (spec.inherited and have is not None and have.max_entries == spec.entries):
            total += table_bytes(spec.kind, spec.key_size, spec.value_size, spec.entries or 0, cpus)
    return total


def judge_memory(memory: Memory) -> t.Iterator[Problem]:
    """Return what is wrong with the memory."""
    if memory.needed > memory.available:
        yield Problem(
            "table_size",
            mebibytes(memory.available),
            f"the new tables and what loads them take {mebibytes(memory.needed)} of memory,"
            f" available are {mebibytes(memory.available)}.",
            "Give smaller tables (table_size, table_size6, half_open_size, half_open_size6), or"
            " free memory.",
        )
    if memory.memlock is not None and memory.needed > memory.memlock:
        yield Problem(
            "memlock",
            mebibytes(memory.memlock),
            f"this kernel holds BPF to RLIMIT_MEMLOCK, which is {mebibytes(memory.memlock)}, and"
            f" {mebibytes(memory.needed)} are needed.",
            "Raise the limit (LimitMEMLOCK=, limits.conf), or boot Linux 5.11 or later.",
        )


def mebibytes(number: int) -> str:
    """Return bytes for people."""
    return f"{number / (1 << 20):.0f} MiB"


def group_room(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """Return how many bytes the control group of this process, and those above it, still let it
    have; None where they set no limit.
    """
    try:
        with open(own, encoding="ascii") as lines:
            where = next(line.strip()[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    room = None
    directory = os.path.normpath(root + where)
    while directory.startswith(root) and directory != root:
        with contextlib.suppress(OSError, ValueError):  # no limit there
            with (
                open(os.path.join(directory, "memory.max"), encoding="ascii") as most,
                open(os.path.join(directory, "memory.current"), encoding="ascii") as now,
            ):
                left = max(int(most.read()) - int(now.read()), 0)
            room = left if room is None else min(room, left)
        directory = os.path.dirname(directory)
    return room


def available() -> int:
    """Return the bytes that can be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = next(
            int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")
        )
    room = group_room()
    return free if room is None else min(free, room)


def kind_of(info: bpf.MapInfo) -> str:
    """Return the kind of a map by the name that chain.maps has for it."""
    return next(
        (kind for kind, number in bpf_constants.MAP_TYPES.items() if number == info.kind), ""
    )


def memlock(release: str) -> int | None:
    """Return the limit that this kernel holds BPF to; None where it does not, or there is none."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return (
        None
        if limit == resource.RLIM_INFINITY or libraries.release(release) >= _NO_MEMLOCK
        else limit
    )
