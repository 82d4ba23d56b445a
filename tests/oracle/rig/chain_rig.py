# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain, loaded for itself and fed one frame at a time by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
import types
import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render, sources
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpffs,
    bpffs_mount,
)

from . import view

SOURCES = pathlib.Path(__file__).resolve().parents[3] / "files/bpf"
HOOKS = {"a": "ingress", "b": "egress"}
TABLE_SIZE = 1024
XDP_PASS = 2
_U32 = struct.Struct("=I")
_EXPIRES = 13  # position of expires, last_seen, created in chain.ENTRY


class Misbehaviour(AssertionError):
    """The chain did to a frame what it must never do."""


#: The control word without the times at which forwarding gave packets to the stack.
_CLOCKLESS = chain_layout.CTL_LOCK | ((1 << 40) - 1)


class ChainRig:
    """One loaded chain under a pin root of its own, attached nowhere. Use as a context manager or
    call ``close``.

    :param fused: whether the entry programs do the common packets themselves.
    :param forward: what is forwarded, see ``render.Settings``; attached nowhere, the chain has no
        port to forward to, and so passes all.
    :param checksum: see ``render.Settings``; ``strict`` is what nf_conntrack does with frames that
        were not made on this host.
    :param events: whether the chain tells what becomes of flows.
    :param asked: the option ``guests`` of xdp_program.
    :param without: a condition of the sources that never holds, to see what stands behind it;
        ``always`` one that holds whatever it says.
    """

    def __init__(
        self,
        fused: bool = False,
        checksum: str = "offload",
        table_size: int = TABLE_SIZE,
        forward: str = "off",
        asked: t.Sequence[t.Mapping[str, t.Any]] = (),
        events: bool = False,
        build: str = "bcc",
        without: str = "",
        always: str = "",
    ) -> None:
        """Compile and load.

        :raises ConntrackError: see ``generation.ensure``.
        """
        self.checksum, self.build = checksum, build
        self.fixed = {
            condition: value for condition, value in ((without, 0), (always, 1)) if condition
        }
        self.compiled = render.Settings(
            checksum=checksum,
            fused=fused,
            forward=forward,
            events=events,
            **dict.fromkeys(render.SIZES, table_size),
        )
        bpffs_mount.ensure_mounted(bpffs.STANDARD)
        self.paths = bpffs.Paths(os.path.join(bpffs.STANDARD, f"oracle_{os.getpid()}_{id(self):x}"))
        os.mkdir(self.paths.pin_root)
        try:
            generation.ensure(self.paths, self.want(asked))
            self.entries = {
                side: bpf.obj_get(self.paths.prog(chain_programs.SLOTS[hook]))
                for side, hook in HOOKS.items()
            }
            self._stats = bpf.obj_get(self.paths.map("stats"))
            self._settings = bpf.obj_get(self.paths.map("settings"))
            self._frags = bpf.obj_get(self.paths.map("frags"))
            self.tables = flow_table.FlowTables(self.paths.pin_root)
        except BaseException:
            self._remove()
            raise
        self._cpus = bpf.possible_cpus()
        self._counted = self.counters()
        self._waiting = False  # for the rest of a datagram

    def want(self, asked: t.Sequence[t.Mapping[str, t.Any]] = ()) -> generation.Want:
        """Return the chain as it is compiled here, with these guests."""
        stub = SOURCES / "stub"
        headers = {
            str(path.relative_to(stub)): path.read_text(encoding="utf-8")
            for path in stub.rglob("*.h")
        }
        parsed = guests.parse(asked)
        text = render.render(
            str(SOURCES),
            self.compiled,
            guests.read(parsed, os.path.abspath, sources.file_names(str(SOURCES))),
        )
        for condition, value in self.fixed.items():
            assert text.count(f"if ({condition})") == 1
            text = text.replace(f"if ({condition})", f"if ({value})")
        want = generation.Want(
            text,
            headers,
            pinned=guests.pinned_here(parsed),
            **{name: getattr(self.compiled, name) for name in render.SIZES},
        )
        return want if self.build == "bcc" else built_by_clang(want, self.compiled)

    def __enter__(self) -> ChainRig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def _remove(self) -> None:
        generation.remove(self.paths)
        generation.remove_tree(self.paths.pin_root)

    def close(self) -> None:
        """Unload the chain and remove its pins."""
        self.tables.__exit__()
        for fd in (*self.entries.values(), self._stats, self._settings, self._frags):
            bpf.close(fd)
        self._remove()

    def settings(
        self, timeouts: t.Mapping[str, int] | None = None, knobs: t.Mapping[str, int] | None = None
    ) -> None:
        """Set timeouts (seconds) and knobs; those not given get the kernel's defaults."""
        bpf.map_update(
            self._settings,
            _U32.pack(0),
            chain_settings.settings_value(chain_jiffies.hz(), timeouts or {}, knobs or {}),
        )

    # ------------------------------------------------------------ the table
    def counters(self) -> tuple[int, ...]:
        """Return the chain's counters in the order of chain.COUNTERS."""
        for count, dummy, values in bpf.map_batches(
            self._stats, 4, 8 * self._cpus, len(chain_counters.COUNTERS)
        ):
            if count == len(chain_counters.COUNTERS):
                numbers = struct.unpack(f"={count * self._cpus}Q", values)
                return tuple(
                    sum(numbers[at : at + self._cpus]) for at in range(0, len(numbers), self._cpus)
                )
        raise AssertionError("the map stats was not read whole")

    def records(self) -> list[flow.Record]:
        """Return the flow records, expired ones left out."""
        now, found = self.tables.clock(), []
        for opened in self.tables.tables:
            decoder = flow.Decoder(opened.table, now)
            for dummy, keys, values in self.tables.batches(opened):
                found += [
                    flow.record(shape, v)
                    for shape, v, row in decoder.flows(decoder.rows(keys, values))
                ]
        return found

    def entries_now(self) -> list[tuple[int, ...]]:
        """Return the fields of all entries as chain.ENTRY has them, but for the clock's: in the
        place of three of them is the timeout in jiffies.
        """
        found = []
        for opened in self.tables.tables:
            for dummy, dummy_keys, values in self.tables.batches(opened):
                for fields in chain_layout.ENTRY.iter_unpack(values):
                    expires, last_seen = fields[_EXPIRES : _EXPIRES + 2]
                    found.append(
                        (
                            *fields[: _EXPIRES - 1],
                            fields[_EXPIRES - 1] & _CLOCKLESS,
                            (expires - last_seen) & 0xFFFFFFFF,
                            *fields[_EXPIRES + 3 :],
                        )
                    )
        return found

    def change(self, changed: t.Callable[[dict[str, int]], t.Mapping[str, int]]) -> int:
        """Write what ``changed`` makes of an entry's fields, by their names in chain.ENTRY_FIELDS,
        into each entry; return how many there are.
        """
        names, done = [name for name, dummy in chain_layout.ENTRY_FIELDS], 0
        for opened in self.tables.tables:
            size = opened.table.key.size
            for count, keys, values in list(self.tables.batches(opened)):
                for at, fields in zip(
                    range(0, count * size, size), list(chain_layout.ENTRY.iter_unpack(values))
                ):
                    entry = dict(zip(names, fields))
                    entry.update(changed(entry))
                    bpf.map_update(
                        opened.fd,
                        bytes(keys[at : at + size]),
                        chain_layout.ENTRY.pack(*entry.values()),
                    )
                    done += 1
        return done

    def recount(self) -> None:
        """Take what was counted besides run() as seen."""
        self._counted = self.counters()

    def flows(self) -> dict[tuple[str, view.Tuple], view.Flow]:
        """Return the table by (proto, orig)."""
        return {(one.proto, one.orig): one for one in map(viewed, self.records())}

    def flush(self) -> None:
        """Empty the tables, and forget fragments."""
        for opened in self.tables.tables:
            size = opened.table.key.size
            for count, keys, dummy in list(self.tables.batches(opened)):
                packed = bytes(keys)
                self.tables.delete(
                    opened, [packed[at : at + size] for at in range(0, count * size, size)]
                )
        if self._waiting:
            self._waiting = False
            bpf_batch.map_delete_batch(self._frags, [key for key, dummy in self._fragments()])

    def _fragments(self) -> list[tuple[bytes, bytes]]:
        """Return keys and values of the datagrams of which fragments are waited for."""
        info = bpf.map_info(self._frags)
        found: list[tuple[bytes, bytes]] = []
        for dummy, keys, values in bpf.map_batches(self._frags, info.key_size, info.value_size):
            sizes = ((keys, info.key_size), (values, info.value_size))
            found += zip(
                *(
                    [whole for (whole,) in struct.iter_unpack(f"{size}s", packed)]
                    for packed, size in sizes
                )
            )
        return found

    def age_fragments(self, late: t.Mapping[int, int]) -> int:
        """Let the datagrams with these identifications be over since so many jiffies; return how
        many there are.
        """
        done = 0
        for key, value in self._fragments():
            # struct frag_key: id, proto, v6
            ident = int.from_bytes(key[32 : 36 if key[37] else 34], "big")
            if ident in late:
                over = (self.tables.clock().jiffies - late[ident]) & 0xFFFFFFFF
                bpf.map_update(self._frags, key, value[:8] + _U32.pack(over) + value[12:])
                done += 1
        return done

    def look(self) -> None:
        """Nothing to note: what was made of a frame is counted by the chain itself."""

    # ------------------------------------------------------------ frames
    def run(self, side: str, frame: bytes) -> str:
        """Send one frame in at ``side`` and return the one outcome that was counted.

        :raises Misbehaviour: when it is not passed, not the same bytes, or not counted exactly
            once.
        """
        ran = bpf.prog_test_run(self.entries[side], frame)
        was, self._counted = self._counted, self.counters()
        raised = {
            name: now - before
            for name, before, now in zip(chain_counters.COUNTERS, was, self._counted)
            if now != before
        }
        outcomes = {name: number for name, number in raised.items() if name in OUTCOMES}
        if ran.retval != XDP_PASS or ran.data_out != frame or list(outcomes.values()) != [1]:
            raise Misbehaviour(
                f"verdict {ran.retval}, counted {raised},"
                f" {'same' if ran.data_out == frame else 'other'} bytes: {side} {frame.hex()}"
            )
        self._waiting |= "fragment" in outcomes
        return next(iter(outcomes))

    def step(self, side: str, frame: bytes) -> view.Seen:
        """Send one frame in at ``side`` and return what the chain made of it."""
        detail = self.run(side, frame)
        return view.Seen(detail.partition("_")[0], self.flows(), detail)


def built_by_clang(want: generation.Want, compiled: render.Settings) -> generation.Want:
    """Return the same chain as an object that clang made of it."""
    prelude = (SOURCES / build_clang.PRELUDE).read_text(encoding="utf-8")
    built = build_clang.build(want.text, want.headers, prelude, compiled, build_clang.here())
    return dataclasses.replace(want, build=generation.OBJECT, object=built)


OUTCOMES = frozenset(name for name, dummy in chain_counters.OUTCOMES)


def viewed(record: flow.Record) -> view.Flow:
    """Return a flow record in the form in which it is compared."""
    orig, reply = record["orig"], record["reply"]
    ends = [[side["src"], side["dst"]] for side in (orig, reply)]
    if "icmp" in record:
        kind, code, ident = (record["icmp"][key] for key in ("type", "code", "id"))
        ends[0] += [kind, code, ident]
        ends[1] += [
            flow.ICMP_ANSWERS[1 if record["proto"] == "icmp" else 58].get(kind, kind),
            code,
            ident,
        ]
    elif any(record.get("gre", {}).values()):  # other versions than PPTP's have no keys
        keys = [record["gre"]["srckey"], record["gre"]["dstkey"]]
        ends = [ends[0] + keys, ends[1] + keys[::-1]]
    elif "sport" in orig:
        ends = [[*end, side["sport"], side["dport"]] for end, side in zip(ends, (orig, reply))]
    return view.Flow(
        family=record["family"],
        proto=record["proto"],
        orig=tuple(ends[0]),
        reply=tuple(ends[1]),
        state=record["state"],
        assured=record["assured"],
        seen_reply=record["seen_reply"],
        packets=(orig["packets"], reply["packets"]),
        bytes=(orig["bytes"], reply["bytes"]),
        timeout=record["timeout"],
    )
