# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shadows: a chain's programs once more, attached nowhere, with maps of their own and a clock that
is set, to try frames on.

A shadow is made of a rendered text alone, so it can be that of another release: slots, counters and
maps are those that the text names. Nothing of it is pinned: it is gone when its last descriptor is
closed, by the end of a killed process too. Its tables are plain hashes, which evict nothing, and
its counters one array, since no two frames are in it at once; the programs can not tell.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import typing as t

from ...build import bcc as build_bcc
from ...build import load as load_object
from ...chain import guests
from ...chain import layout as chain_layout
from ...chain.clock import Clock
from ...core.errors import ConntrackError
from ...flows import codec as flow
from ...kernel import bpf, bpf_batch, bpf_constants
from ...kernel.elf import Map

#: The chain's own maps in a rendered text: kind, key and value and name, size.
_TABLE = re.compile(r'^BPF_TABLE_PINNED\("(\w+)", ([^,]+, [^,]+, \w+), (\d+), ', re.MULTILINE)
#: The ring buffer of a chain with events: nobody watches a shadow.
_RING = '"maps/ringbuf:" pin'
_KINDS = {"percpu_array": "array", "lru_hash": "hash"}
_CLOCK = "replay_clock"
#: Stands in front of the text: no map of it has a pin, and what it takes for jiffies is the one
#: value of a map.
_HEAD = f"""\
#undef BPF_TABLE_PINNED
#define PRIVATE_TABLE(kind, key, value, name, entries, path, flags, ...) \\
        BPF_F_TABLE(kind, key, value, name, entries, flags)
#define BPF_TABLE_PINNED(...) PRIVATE_TABLE(__VA_ARGS__, 0, 0)
BPF_TABLE("array", int, u64, {_CLOCK}, 1);
static __always_inline u64 replay_now(void)
{{
    int i = 0;
    u64 *now = {_CLOCK}.lookup(&i);

    return now ? *now : 0;
}}
#define bpf_jiffies64() replay_now()
#line 1 "templates/chain.c.j2"
"""
#: What a flow's bytes are: where these differ, tables can not be compared.
_STRUCTS = ("ct_key", "ct_key6", "ct_half", "ct_entry")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
#: Seconds on the clock when the first frame comes: late enough that nothing is before the beginning
#: of time.
_FIRST_SECOND = 1000
#: include/uapi/linux/bpf.h, enum bpf_map_type: the kinds that have a value for each CPU.
_PER_CPU = (5, 6, 10, 21)
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_NS = 1_000_000_000
#: include/uapi/linux/bpf.h, enum xdp_action
VERDICTS = ("aborted", "drop", "pass", "tx", "redirect")


def shadow_text(text: str, entries: int) -> str:
    """Return a rendered chain with private maps, tables of ``entries``, and a clock that is set."""

    def alone(match: re.Match[str]) -> str:
        kind, what, size = match.groups()
        return (
            f'BPF_TABLE_PINNED("{_KINDS.get(kind, kind)}", {what},'
            f" {entries if kind.endswith('hash') else size}, "
        )

    return _HEAD + _TABLE.sub(alone, text).replace(_RING, '"maps/ringbuf"')


def private(text: str, entries: int) -> t.Callable[[Map], Map]:
    """Return what makes of the maps of an object what shadow_text() makes of those of a text."""
    kinds = {what.rpartition(" ")[2]: kind for kind, what, dummy in _TABLE.findall(text)}

    def alone(spec: Map) -> Map:
        kind = kinds.get(spec.name[: -len(load_object.MAP_SUFFIX)], "")
        if kind in _KINDS:
            spec = spec._replace(kind=bpf_constants.MAP_TYPES[_KINDS[kind]])
        return spec._replace(max_entries=entries) if kind.endswith("hash") else spec

    return alone


def enum_of(text: str, prefix: str) -> dict[str, int]:
    """Return the names and numbers of one of the enums that a text was rendered with.

    >>> enum_of("enum ct_slot {\\n\\tSLOT_INGRESS = 0,\\n\\tSLOT_CT = 3,\\n};", "SLOT")
    {'ingress': 0, 'ct': 3}
    """
    return {
        name.lower(): int(number)
        for name, number in re.findall(rf"^\t{prefix}_(\w+) = (\d+),$", text, re.MULTILINE)
    }


def layout_of(text: str) -> tuple[str, ...]:
    """Return how the text declares what a flow table holds, without comments and white space."""
    found = (
        re.search(rf"^struct {name} \{{.*?^\}};", text, re.MULTILINE | re.DOTALL)
        for name in _STRUCTS
    )
    return tuple(
        " ".join(_COMMENT.sub("", match.group()).split()) if match else "" for match in found
    )


class Result(t.NamedTuple):
    """What a shadow made of one frame.

    :ivar verdict: one of VERDICTS, or its number.
    :ivar data: the bytes that came out where they are not those that went in; else None, also where
        the frame did not come out.
    :ivar counted: the counters that it raised, in their order, with by how much.
    """

    verdict: str
    data: bytes | None
    counted: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        counted = [name if number == 1 else f"{name} +{number}" for name, number in self.counted]
        changed = [] if self.data is None else ["the bytes are changed"]
        return ", ".join([self.verdict, *(counted or ["not counted"]), *changed])


def _copy(path: str, fd: int | None) -> None:
    """Fill a guest's map with what a pinned one holds, unless that is missing, of another shape, or
    a CPU each: those count.
    """
    if fd is None or not os.path.lexists(path):
        return
    with bpf.closing(bpf.obj_get(path)) as source:
        info, mine = bpf.map_info(source), bpf.map_info(fd)
        if info.kind in _PER_CPU or info[1:] != mine[1:]:
            return
        for count, keys, values in bpf.map_batches(source, info.key_size, info.value_size):
            for at in range(count):
                key, value = (
                    keys[at * info.key_size : (at + 1) * info.key_size],
                    values[at * info.value_size : (at + 1) * info.value_size],
                )
                bpf.map_update(fd, bytes(key), bytes(value))


class Shadow:
    """One chain to try frames on. Use as a context manager.

    :ivar layout: see layout_of().
    """

    def __init__(
        self,
        text: str,
        headers: t.Mapping[str, str],
        settings: bytes,
        hz: int,
        frames: int,
        maps: str = "",
        built: bytes | None = None,
    ) -> None:
        """Compile and load it.

        :param text: the chain as it was rendered.
        :param settings: the one value of its map ``settings``.
        :param hz: jiffies a second, as the settings have them.
        :param frames: so many will be sent at most: each can make one entry.
        :param maps: directory of the pinned maps that the guests' own begin as copies of; it may be
            missing.
        :param built: the object file that was made of the text; None to have bcc compile it.
        :raises ConntrackError: see build_bcc.build() and load_object.load(); also where the
            settings are not of the text's layout.
        """
        self.layout = layout_of(text)
        self._hz, self._now = hz, 0
        self._slots, counters = enum_of(text, "SLOT"), enum_of(text, "COUNT")
        self._names = sorted(counters, key=lambda name: counters[name])
        with contextlib.ExitStack() as made:
            self._maps: dict[str, int] = {}
            entries = frames + 1 + bpf_batch.lru_spare()
            if built is None:
                self._programs = build_bcc.build(
                    shadow_text(text, entries), headers, self._slots, self._maps
                )
            else:
                self._programs = load_object.load(
                    built, text, None, self._slots, self._maps, private(text, entries)
                )
            for fd in (*self._programs.values(), *self._maps.values()):
                made.callback(bpf.close, fd)
            if bpf.map_info(self._maps["settings"]).value_size != len(settings):
                raise ConntrackError(
                    f"the chain's settings have {len(settings)} bytes, its sources have"
                    f" {bpf.map_info(self._maps['settings']).value_size}"
                )
            bpf.map_update(self._maps["settings"], _U32.pack(0), settings)
            for name in guests.maps_in(text):
                _copy(os.path.join(maps, name), self._maps.get(name))
            for name, slot in {**self._slots, **guests.programs_in(text)}.items():
                bpf.map_update(self._maps["jt"], _U32.pack(slot), _U32.pack(self._programs[name]))
            self._counted = self._read_counters()
            self._open = made.pop_all()

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._open.close()

    def _read_counters(self) -> tuple[int, ...]:
        size = bpf.map_info(self._maps["stats"]).max_entries
        for count, dummy, values in bpf.map_batches(
            self._maps["stats"], _U32.size, _U64.size, size
        ):
            return struct.unpack(f"={count}Q", values)
        return ()

    def run(self, hook: str, data: bytes, at_ns: int) -> Result:
        """Send one frame in.

        :param at_ns: time since the first frame; the clock never goes back.
        """
        now = _FIRST_SECOND * self._hz + at_ns * self._hz // _NS
        if now > self._now:
            self._now = now
            bpf.map_update(self._maps[_CLOCK], _U32.pack(0), _U64.pack(now))
        ran = bpf.prog_test_run(self._programs[hook], data)
        was, self._counted = self._counted, self._read_counters()
        counted = tuple(
            (name, after - before)
            for name, before, after in zip(self._names, was, self._counted)
            if after != before
        )
        verdict = VERDICTS[ran.retval] if ran.retval < len(VERDICTS) else str(ran.retval)
        lost = verdict in ("aborted", "drop")
        return Result(verdict, None if lost or ran.data_out == data else ran.data_out, counted)

    @property
    def totals(self) -> dict[str, int]:
        """The counters that are not 0."""
        return {name: number for name, number in zip(self._names, self._counted) if number}

    def flows(self) -> dict[tuple[str, bytes], flow.Record]:
        """Return every flow by family and packed key, in the form in which modules show it, with
        TCP's windows, those whose time is over too.
        """
        found = {}
        now = Clock(self._now, self._hz, 0)
        for table in flow.TABLES:
            fd = self._maps.get(table.name)
            if fd is None:
                continue
            info = bpf.map_info(fd)
            if (info.key_size, info.value_size) != (table.key.size, chain_layout.ENTRY.size):
                raise ConntrackError(
                    f"the table {table.name} holds something else than this release's flows"
                )
            decoder = flow.Decoder(table, now)
            for dummy, keys, values in bpf.map_batches(fd, info.key_size, info.value_size):
                for item in decoder.flows(decoder.packed_rows(keys, values), over=True):
                    found[table.family, item[2][2]] = flow.record_with(item, window=True)
        return found
