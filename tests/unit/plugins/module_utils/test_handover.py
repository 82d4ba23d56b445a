# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An entry that two tables knew for a moment."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import bpf, chain, handover

SPEC = next(spec for spec in chain.maps() if spec.name == "ctt")
NAMES = (
    *(f"{side}_{name}" for side in ("orig", "reply") for name in ("packets", "bytes", "end", "maxend", "maxwin", "maxack")),
    *("ctl", "expires", "last_seen", "created", "last_seq", "last_ack", "last_end", "last_win", "last", "last_flags", "scale", "retrans"),
    *("flags_orig", "flags_reply", "rel_packets", "rel_bytes"),
)


def entry(**fields: int) -> bytes:
    return chain.ENTRY.pack(*(fields.get(name, 0) for name in NAMES))


def read(value: bytes) -> dict[str, int]:
    return dict(zip(NAMES, chain.ENTRY.unpack(value)))


def test_names_are_the_codecs() -> None:
    assert len(NAMES) == len(chain.ENTRY.unpack(bytes(chain.ENTRY.size)))


def test_a_lock_is_not_copied() -> None:
    state = chain.CTL_SEEN_REPLY | 3
    assert handover.unlocked(entry(ctl=chain.CTL_LOCK | state, orig_packets=5)) == entry(ctl=state, orig_packets=5)
    assert handover.unlocked(entry(ctl=state)) == entry(ctl=state)


def test_counts_add_up() -> None:
    old = entry(last_seen=10, orig_packets=9, orig_bytes=900, reply_packets=1, reply_bytes=60)
    new = entry(last_seen=11, orig_packets=7, orig_bytes=700, reply_packets=2, reply_bytes=120)
    both = read(handover.merged(old, new))
    assert (both["orig_packets"], both["orig_bytes"], both["reply_packets"], both["reply_bytes"]) == (16, 1600, 3, 180)


@pytest.mark.parametrize(("low", "high"), [(10, 20), (0xFFFFFFF0, 5)], ids=["plain", "over the end of the number space"])
def test_sequence_numbers_are_the_later_ones(low: int, high: int) -> None:
    old = entry(last_seen=5, orig_end=high, orig_maxend=low, reply_maxack=high, orig_maxwin=100)
    new = entry(last_seen=6, orig_end=low, orig_maxend=high, reply_maxack=low, orig_maxwin=50)
    both = read(handover.merged(old, new))
    assert (both["orig_end"], both["orig_maxend"], both["reply_maxack"], both["orig_maxwin"]) == (high, high, high, 100)


@pytest.mark.parametrize(("old_seen", "new_seen", "state"), [(10, 11, 4), (11, 10, 3), (10, 10, 4), (0xFFFFFFFF, 1, 4), (1, 0xFFFFFFFF, 3)])
def test_the_state_is_that_of_the_one_seen_last(old_seen: int, new_seen: int, state: int) -> None:
    both = read(handover.merged(entry(ctl=3, last_seen=old_seen, expires=1), entry(ctl=4, last_seen=new_seen, expires=2)))
    assert (both["ctl"], both["expires"]) == (state, state - 2)


class Tables:
    """Two tables in memory, in place of the binding's functions."""

    def __init__(self, old: dict[bytes, bytes], new: dict[bytes, bytes]) -> None:
        self.maps = {1: old, 2: new}

    def map_batches(self, fd: int, dummy_key: int, dummy_value: int) -> t.Iterator[tuple[int, memoryview, memoryview]]:
        items = list(self.maps[fd].items())
        for at in range(0, len(items), 2):
            some = items[at : at + 2]
            yield len(some), memoryview(b"".join(key for key, dummy in some)), memoryview(b"".join(value for dummy, value in some))

    def map_lookup(self, fd: int, key: bytes, dummy: int) -> bytes | None:
        return self.maps[fd].get(key)

    def map_update(self, fd: int, key: bytes, value: bytes) -> None:
        self.maps[fd][key] = value


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[dict[bytes, bytes], dict[bytes, bytes]], Tables]:
    def make(old: dict[bytes, bytes], new: dict[bytes, bytes]) -> Tables:
        both = Tables(old, new)
        for name in ("map_batches", "map_lookup", "map_update"):
            monkeypatch.setattr(bpf, name, getattr(both, name))
        return both

    return make


KEYS = [bytes([number]) * SPEC.key_size for number in range(5)]


def test_everything_is_copied_without_locks_and_counts(tables: t.Callable[..., Tables]) -> None:
    counts = {"orig_packets": 1, "orig_bytes": 2, "reply_packets": 3, "reply_bytes": 4, "rel_packets": 5, "rel_bytes": 6}
    both = tables({key: entry(ctl=chain.CTL_LOCK | number, last_seen=number, **counts) for number, key in enumerate(KEYS)}, {})
    handover.copy(1, 2, SPEC)
    assert both.maps[2] == {key: entry(ctl=number, last_seen=number) for number, key in enumerate(KEYS)}


def test_counts_are_added_and_new_entries_brought_after(tables: t.Callable[..., Tables]) -> None:
    since = (7 << 32) + 100  # jiffies64, of which entries hold the low half
    idle, gone, made, both_seen, same = KEYS
    both = tables(
        {
            idle: entry(last_seen=99, orig_packets=5),
            gone: entry(last_seen=98, orig_packets=6),
            made: entry(last_seen=102, orig_packets=1, ctl=chain.CTL_LOCK),
            both_seen: entry(last_seen=103, orig_packets=8, reply_packets=1),
            same: entry(last_seen=100, orig_packets=2),
        },
        {
            idle: entry(last_seen=99),
            both_seen: entry(last_seen=104, orig_packets=4, reply_packets=3, ctl=chain.CTL_LOCK),
            same: entry(last_seen=105, orig_packets=1),
        },
    )
    handover.catch_up(1, 2, SPEC, since)
    assert both.maps[2] == {
        idle: entry(last_seen=99, orig_packets=5),
        made: entry(last_seen=102, orig_packets=1),
        both_seen: entry(last_seen=104, orig_packets=12, reply_packets=4),
        same: entry(last_seen=105, orig_packets=3),
    }, "what was evicted from the smaller table stays away"
