# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned flow tables and counters, opened to be read or to be deleted from.

:class:`FlowTables` is the only thing of this package that talks to the kernel; what reads through
it takes anything with the same methods (:class:`Source`). A table is read in batches and never held
as a whole, unless all of it is to be sorted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import struct
import typing as t

from ..chain import counters as chain_counters
from ..chain import events as chain_events
from ..chain import guests
from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..chain.clock import Clock
from ..core import lock
from ..core.errors import ConntrackError
from ..kernel import bpf, bpf_batch, bpf_constants, bpffs
from . import codec as flow
from .output import GUEST_DROPPED

#: Rows read at once: enough to make the calls cheap, few enough that what is made of them stays in
#: the CPU's cache.
BATCH = 1024
_U64 = struct.Struct("=Q")
_INDEX = struct.Struct("=I")


class NoChain(ConntrackError):
    """No chain is pinned where it was looked for."""


@dataclasses.dataclass(frozen=True)
class OpenTable:
    """A flow table that is open; ``capacity`` is the number of entries that it can hold."""

    table: flow.Table
    fd: int
    capacity: int


class FlowTables:
    """The flow tables that are pinned under ``pin_root``, open; a context manager.

    :raises NoChain: when no chain is pinned there.
    :raises ConntrackError: when what is pinned there is of another layout, or may not be opened.
    """

    def __init__(self, pin_root: str) -> None:
        self._paths = bpffs.Paths(pin_root)
        bpffs.refuse_foreign_names(self._paths)
        with contextlib.ExitStack() as fds:
            self._stats = self._open("stats", fds)
            self._deletions = self._open("deletions", fds)
            self._guest_stats = self._open("guest_stats", fds)
            self._settings = self._open("settings", fds)
            self.meta = self._read_meta(self._open("meta", fds))
            if self.meta["layout"] != chain_layout.LAYOUT_VERSION:
                raise ConntrackError(
                    f"{self._path('meta')}: the tables have layout {self.meta['layout']}, this"
                    f" version reads layout {chain_layout.LAYOUT_VERSION}. Run xdp_program."
                )
            self._events = (
                self._open(chain_maps.EVENTS_WORDS_MAP, fds)
                if os.path.lexists(self._path(chain_maps.EVENTS_WORDS_MAP))
                else None
            )
            self.tables = tuple(
                self._open_table(table, fds)
                for table in flow.TABLES
                if table is flow.TABLES[0] or os.path.lexists(self._path(table.name))
            )
            self._fds = fds.pop_all()

    def __enter__(self) -> FlowTables:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._fds.close()

    def _path(self, name: str) -> str:
        return os.path.join(self._paths.seed_map, name)

    def _open(self, name: str, fds: contextlib.ExitStack) -> int:
        path = self._path(name)
        try:
            return fds.enter_context(bpf.closing(bpf.obj_get(path)))
        except bpf.BpfError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NoChain(
                    f"{path} does not exist: no chain is pinned there. Run xdp_program, or give the"
                    " pin_root that it was given."
                ) from None
            if exc.errno in (errno.EPERM, errno.EACCES):
                raise ConntrackError(
                    f"{path} may not be opened: {os.strerror(exc.errno or 0)}. Run as root (in a"
                    " playbook: become: true)."
                ) from None
            raise

    def _open_table(self, table: flow.Table, fds: contextlib.ExitStack) -> OpenTable:
        fd = self._open(table.name, fds)
        info = bpf.map_info(fd)
        found, wanted = (info.key_size, info.value_size), (table.key.size, flow.VIEW.size)
        if found != wanted:
            raise ConntrackError(
                f"{self._path(table.name)}: key and value have {found} bytes, this version reads"
                f" {wanted}. Run xdp_program."
            )
        return OpenTable(table, fd, info.max_entries)

    def _read_meta(self, fd: int) -> dict[str, int]:
        return {name: self._u64(fd, index) for name, index in chain_maps.META.items()}

    @staticmethod
    def _u64(fd: int, index: int) -> int:
        return int(
            _U64.unpack(bpf.map_lookup(fd, _INDEX.pack(index), _U64.size) or bytes(_U64.size))[0]
        )

    def clock(self) -> Clock:
        """Return this instant in the tables' time."""
        return Clock.read(self.meta)

    def settings(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the timeouts in seconds and the knobs that are in force."""
        value = t.cast(
            "bytes", bpf.map_lookup(self._settings, _INDEX.pack(0), chain_settings.SETTINGS_BYTES)
        )  # an array always has its entries
        return chain_settings.settings_of(value)[1:]

    def cpu_counters(self) -> list[dict[str, int]]:
        """Return what the chain counted on each possible CPU, by name, and as GUEST_DROPPED what
        guests dropped.
        """
        columns = [
            [_U64.unpack(one)[0] for one in bpf.percpu_value(self._stats, index, _U64.size)]
            for index in range(len(chain_counters.COUNTERS))
        ]
        by_slot = [
            guests.counts_by_cpu(self._guest_stats, slot)
            for slot in chain_programs.GUEST_SLOTS.values()
        ]
        columns.append([sum(cpu["dropped"] for cpu in cpus) for cpus in zip(*by_slot)])
        return [
            dict(zip((*chain_counters.COUNTERS, GUEST_DROPPED), values)) for values in zip(*columns)
        ]

    def guest_counters(self) -> dict[str, dict[str, int]]:
        """Return what the guests did with frames, by the names of their slots; those to which none
        ever came are left out.
        """
        found = {
            name: guests.counts(self._guest_stats, slot)
            for name, slot in chain_programs.GUEST_SLOTS.items()
        }
        return {name: counts for name, counts in found.items() if counts["seen"]}

    def counters(self) -> dict[str, int]:
        """Return the chain's counters by name, with what user space deleted added."""
        cpus = self.cpu_counters()
        values = {name: sum(cpu[name] for cpu in cpus) for name in chain_counters.COUNTERS}
        for index, name in enumerate(chain_counters.DELETIONS):
            values[name] += self._u64(self._deletions, index)
        return values

    def promoted(self) -> int:
        """Return how many flows moved to a table of assured ones so far."""
        return sum(
            _U64.unpack(one)[0]
            for one in bpf.percpu_value(
                self._stats, chain_counters.COUNTERS.index("promoted"), _U64.size
            )
        )

    def batches(self, opened: OpenTable) -> t.Iterator[tuple[int, memoryview, memoryview]]:
        """Return the table's contents as (count, keys, values); the views last until the next one
        is asked for.
        """
        return bpf.map_batches(opened.fd, opened.table.key.size, flow.VIEW.size, BATCH)

    def lookup(self, opened: OpenTable, key: bytes) -> bytes | None:
        """Return the bytes of one entry, None when there is none."""
        return bpf.map_lookup(opened.fd, key, flow.VIEW.size)

    def delete(self, opened: OpenTable, keys: t.Sequence[bytes]) -> int:
        """Delete entries; where somebody watches what becomes of flows the chain does it, which
        tells it. :return: how many of them were there.
        """
        if self._events is None or not self._u64(
            self._events, chain_events.EVENT_WORDS.index("watched")
        ):
            return bpf_batch.map_delete_batch(opened.fd, keys)
        what, assured, deleted = (
            chain_programs.ADOPT_REQUESTS.index(f"erase_{opened.table.family}"),
            opened.table.flow_class == "assured",
            0,
        )
        with bpf.closing(
            bpf.obj_get(os.path.join(self._paths.seed_prog, chain_programs.ADOPT))
        ) as adopt:
            for at in range(0, len(keys), chain_programs.ADOPT_KEYS):
                some = keys[at : at + chain_programs.ADOPT_KEYS]
                left = bpf.prog_test_run(
                    adopt,
                    chain_programs.ADOPT_REQUEST.pack(what, len(some), assured) + b"".join(some),
                ).retval
                if left > len(some):
                    raise ConntrackError(
                        f"the program {chain_programs.ADOPT} refused to delete {len(some)} flows.",
                        deleted=deleted,
                    )
                deleted += len(some) - left
        return deleted

    def create(self, opened: OpenTable, key: bytes, value: bytes) -> bool:
        """Make an entry; False where there is one of this key."""
        try:
            bpf.map_update(opened.fd, key, value, bpf_constants.BPF_NOEXIST)
        except bpf.BpfError as exc:
            if exc.errno != errno.EEXIST:
                raise
            return False
        return True

    def count_made(self, created: int, promoted: int) -> None:
        """Count entries that create() made, ``promoted`` of them assured; see writing(). The chain
        does it, which counts meanwhile.
        """
        numbers = [
            {"created": created, "promoted": promoted}.get(name, 0)
            for name in chain_counters.COUNTERS
        ]
        if not any(numbers):
            return
        index = _INDEX.pack(chain_maps.META["counted"])
        with contextlib.ExitStack() as fds:
            meta, adopt = (
                self._open("meta", fds),
                fds.enter_context(
                    bpf.closing(
                        bpf.obj_get(os.path.join(self._paths.seed_prog, chain_programs.ADOPT))
                    )
                ),
            )
            before = _U64.pack(self._u64(meta, chain_maps.META["counted"]))
            bpf.map_update(
                meta,
                index,
                _U64.pack(0),
                # the chain adds such numbers once; these are others than those of the generation
                # before
            )
            request = chain_programs.ADOPT_REQUEST.pack(
                chain_programs.ADOPT_REQUESTS.index("counts"), len(numbers), 0
            )
            bpf.prog_test_run(adopt, request + struct.pack(f"={len(numbers)}Q", *numbers))
            bpf.map_update(meta, index, before)

    def count_deleted(self, numbers: t.Mapping[str, int]) -> None:
        """Add to the counters of chain.DELETIONS, which only user space writes; see writing()."""
        for name, number in numbers.items():
            if number:
                index = chain_counters.DELETIONS.index(name)
                bpf.map_update(
                    self._deletions,
                    _INDEX.pack(index),
                    _U64.pack(self._u64(self._deletions, index) + number),
                )


@contextlib.contextmanager
def writing(pin_root: str, patience: float = lock.SECONDS) -> t.Iterator[FlowTables]:
    """Open the tables to delete from them: one process at a time, and not while the next generation
    takes over what the tables hold.

    :raises ConntrackError: as FlowTables, and when somebody else holds the lock for too long.
    """
    # it says so when there is no chain, and then no directory to lock either
    with FlowTables(pin_root):
        pass
    with lock.held(bpffs.Paths(pin_root).base, patience), FlowTables(pin_root) as tables:
        yield tables


class Source(t.Protocol):
    """What the functions below need of FlowTables."""

    @property
    def tables(self) -> tuple[OpenTable, ...]: ...

    def clock(self) -> Clock: ...

    def settings(self) -> tuple[dict[str, int], dict[str, int]]: ...

    def cpu_counters(self) -> list[dict[str, int]]: ...

    def counters(self) -> dict[str, int]: ...

    def guest_counters(self) -> dict[str, dict[str, int]]: ...
    def promoted(self) -> int: ...

    def batches(self, opened: OpenTable) -> t.Iterator[tuple[int, memoryview, memoryview]]: ...

    def lookup(self, opened: OpenTable, key: bytes) -> bytes | None: ...

    def delete(self, opened: OpenTable, keys: t.Sequence[bytes]) -> int: ...

    def count_deleted(self, numbers: t.Mapping[str, int]) -> None: ...
