# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow tables from the inside: every entry of one, and filling one with copies of an entry."""

from __future__ import annotations

import array
import collections
import ctypes
import socket
import struct
import typing as t

import harness
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_batch

_BATCH = 1 << 14


def entries(
    fd: int, key: struct.Struct = chain_layout.KEY4
) -> t.Iterator[tuple[tuple[t.Any, ...], tuple[t.Any, ...]]]:
    """Return every (key, entry) of a flow table, unpacked as ``key`` (KEY4 or KEY6) and ENTRY of
    the collection's ``chain`` module.
    """
    for dummy, keys, values in bpf.map_batches(fd, key.size, chain_layout.ENTRY.size):
        yield from zip(key.iter_unpack(keys), chain_layout.ENTRY.iter_unpack(values), strict=True)


def fill(fd: int, count: int, key: bytes, entry: bytes) -> None:
    """Write ``count`` copies of one entry whose keys count up from 10.0.0.0 in the low address.

    :param key: packed as KEY4; its high address must be above 10.255.255.255.
    """
    update = bpf.library().bpf_map_update_batch
    update.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
    )
    first = int.from_bytes(socket.inet_aton("10.0.0.0"), "big")
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        keys = b"".join((first + start + i).to_bytes(4, "big") + key[4:] for i in range(size))
        done = ctypes.c_uint32(size)
        if update(fd, keys, entry * size, ctypes.byref(done), None) < 0:
            raise harness.BenchError(
                f"bpf_map_update_batch stopped after {start + done.value} entries"
            )


def spread(fd: int) -> collections.Counter[int]:
    """Return how many flows have how many packets of the initiator; for tables of millions, hence
    by columns.
    """
    found: collections.Counter[int] = collections.Counter()
    for dummy, dummy_keys, values in bpf.map_batches(
        fd, chain_layout.KEY4.size, chain_layout.ENTRY.size
    ):
        found.update(array.array("Q", values.cast("Q")[:: chain_layout.ENTRY.size // 8].tobytes()))
    return found


def packets(fd: int) -> dict[tuple[t.Any, ...], int]:
    """Return the packets of both directions of each flow."""
    return {key: entry[0] + entry[6] for key, entry in entries(fd)}


def clear(fd: int, key: struct.Struct = chain_layout.KEY4) -> None:
    """Empty a flow table, whose keys are those of ``key``."""
    bpf_batch.map_delete_batch(fd, [key.pack(*found) for found, dummy in entries(fd, key)])
