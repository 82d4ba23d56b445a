# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy a flow table into one of another size while packets go on changing it.

First every entry is copied, with its counts at 0, while the old chain still runs. After the interfaces are handed over nothing changes the old
table any more, and its counts are added to what the new one has counted by then: no packet is lost from the counts, however long it all took. In
between, the new table shows only what came since. Flows that the old table learnt after it was copied are brought after.
"""

from __future__ import annotations

import typing as t

from . import bpf
from .chain import CTL_LOCK, CTL_ORIG_HI, ENTRY, MapSpec

#: Fields of chain.ENTRY, by position: the two halves, then ctl, expires, last_seen, created.
_HALF_FIELDS = 6
_CTL, _LAST_SEEN, _CREATED = 12, 14, 15
#: Packets and bytes of both halves, and of related packets.
_COUNTS = (0, 1, 6, 7, 26, 27)


def entries(fd: int, spec: MapSpec) -> t.Iterator[tuple[bytes, bytes]]:
    """Return every (key, value) of a flow table, no value locked: a packet that is in it now will unlock another copy."""
    for count, keys, values in bpf.map_batches(fd, spec.key_size, spec.value_size):
        for number in range(count):
            key = bytes(keys[number * spec.key_size : (number + 1) * spec.key_size])
            yield key, unlocked(bytes(values[number * spec.value_size : (number + 1) * spec.value_size]))


def unlocked(value: bytes) -> bytes:
    """Return an entry without CTL_LOCK."""
    fields = list(ENTRY.unpack(value))
    if not fields[_CTL] & CTL_LOCK:
        return value
    fields[_CTL] &= ~CTL_LOCK
    return ENTRY.pack(*fields)


def copy(old: int, new: int, spec: MapSpec) -> None:
    """Copy every entry, with its counts at 0."""
    for key, value in entries(old, spec):
        bpf.map_update(new, key, uncounted(value))


def clear(fd: int, spec: MapSpec) -> None:
    """Delete every entry."""
    for count, keys, dummy in bpf.map_batches(fd, spec.key_size, spec.value_size):
        packed = bytes(keys)
        bpf.map_delete_batch(fd, [packed[at : at + spec.key_size] for at in range(0, count * spec.key_size, spec.key_size)])


def uncounted(value: bytes) -> bytes:
    """Return an entry with its counts at 0."""
    fields = list(ENTRY.unpack(value))
    for field in _COUNTS:
        fields[field] = 0
    return ENTRY.pack(*fields)


def catch_up(old: int, new: int, spec: MapSpec, since: int, assured: int | None = None) -> None:
    """Add the old table's counts, and bring the entries after that a packet made since ``since`` (jiffies64, taken before the copy).

    What is missing in the new table and was not touched since was deleted there, or had no room, and stays away.

    :param assured: the table to which a flow of the new one moves when it becomes assured; it may stand there by now.
    """
    for key, value in entries(old, spec):
        for table in (new, assured):
            there = None if table is None else bpf.map_lookup(table, key, spec.value_size)
            if table is not None and there is not None:
                bpf.map_update(table, key, merged(value, unlocked(there)))
                break
        else:
            if not _later(since & 0xFFFFFFFF, ENTRY.unpack(value)[_LAST_SEEN]):
                bpf.map_update(new, key, value)


def settle(half_open: int, assured: int, spec: MapSpec) -> None:
    """Leave each flow in one of its family's two tables: the old chain may have moved one that was copied, and the new one begun one that moved.

    Which it is tells the chain, which looks among the assured ones first: the other's counts are added to that one.
    """
    for key, value in entries(half_open, spec):
        there = bpf.map_lookup(assured, key, spec.value_size)
        if there is not None:
            bpf.map_update(assured, key, joined(value, unlocked(there)))
            bpf.map_delete_batch(half_open, [key])


def joined(half_open: bytes, assured: bytes) -> bytes:
    """Return an assured flow with what was counted in another entry of it, which may have begun from the other side."""
    one, other = list(ENTRY.unpack(half_open)), ENTRY.unpack(assured)
    if (one[_CTL] ^ other[_CTL]) & CTL_ORIG_HI:
        one[:_HALF_FIELDS], one[_HALF_FIELDS:_CTL] = one[_HALF_FIELDS:_CTL], one[:_HALF_FIELDS]
    fields = list(ENTRY.unpack(merged(ENTRY.pack(*one), assured)))
    fields[_CTL], fields[_CREATED] = other[_CTL], other[_CREATED]
    return ENTRY.pack(*fields)


def merged(old: bytes, new: bytes) -> bytes:
    """Return one entry of two that were the same, but for the counts, until each went on by itself.

    Counts add up. What a direction has sent only grows, so of each half the larger window and the later sequence numbers hold; the rest is that
    of the one seen last.
    """
    one, other = ENTRY.unpack(old), ENTRY.unpack(new)
    fields = list(one if _later(one[_LAST_SEEN], other[_LAST_SEEN]) else other)
    for field in _COUNTS:
        fields[field] = one[field] + other[field]
    for half in (0, _HALF_FIELDS):
        dummy, dummy, end, maxend, maxwin, maxack = range(half, half + _HALF_FIELDS)
        fields[maxwin] = max(one[maxwin], other[maxwin])
        for field in (end, maxend, maxack):
            fields[field] = one[field] if _later(one[field], other[field]) else other[field]
    return ENTRY.pack(*fields)


def _later(one: int, other: int) -> bool:
    """Return whether a 32-bit clock or sequence number is after another."""
    return 0 < (one - other) & 0xFFFFFFFF < 1 << 31
