# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What readers and loaders need of BPF maps and programs besides bpf.py: batches that change, the
spare entries of LRU tables, and statistics.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import typing as t

from . import bpf, bpf_constants
from .bpf import BpfError

#: Free nodes of an LRU table that the kernel gives to a CPU at a time (kernel/bpf/bpf_lru_list.c,
#: LOCAL_FREE_TARGET).
LRU_BATCH = 128


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Write ``count`` elements whose keys and values stand one behind the other; what is there is
    overwritten.
    """
    done = ctypes.c_uint32(count)
    bpf.call(
        "bpf_map_update_batch", fd, keys, values, ctypes.byref(done), None, about=f"{count} entries"
    )


def map_delete_batch(fd: int, keys: t.Sequence[bytes]) -> int:
    """Delete the elements of these keys, in few calls. :return: how many were there."""
    deleted, start = 0, 0
    while start < len(keys):
        count = ctypes.c_uint32(len(keys) - start)
        try:
            bpf.call(
                "bpf_map_delete_batch",
                fd,
                b"".join(keys[start:]),
                ctypes.byref(count),
                None,
                about=f"{len(keys) - start} keys",
            )
        except BpfError as exc:
            if exc.errno != errnos.ENOENT:
                raise
            start += 1  # the kernel stops at a key that is gone: step over it
        deleted += count.value
        start += count.value
    return deleted


def lru_spare() -> int:
    """Return how many entries an LRU table has to have beyond those that it is to hold for certain:
    what a CPU has taken is not given to others.
    """
    return bpf.possible_cpus() * LRU_BATCH


def enable_stats() -> int:
    """Have the kernel count each program's runs and their time while the returned fd is open."""
    return bpf.call("bpf_enable_stats", bpf_constants.BPF_STATS_RUN_TIME)
