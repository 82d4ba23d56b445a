# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a BPF ring buffer, by libbpf. It has one reader: two of them would take records from each
other.
"""

from __future__ import annotations

import ctypes
import errno
import typing as t

from . import bpf

#: What the callback ends a reading with that has enough records.
_ENOUGH = errno.ENOBUFS
_Sample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _functions() -> dict[str, t.Any]:
    """Return libbpf's functions by the last word of their names."""
    signatures: dict[str, tuple[t.Any, tuple[t.Any, ...]]] = {
        "new": (ctypes.c_void_p, (ctypes.c_int, _Sample, ctypes.c_void_p, ctypes.c_void_p)),
        "poll": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
        "free": (None, (ctypes.c_void_p,)),
    }
    found = {}
    for name, (result, arguments) in signatures.items():
        found[name] = getattr(bpf.library(), f"ring_buffer__{name}")
        found[name].restype, found[name].argtypes = result, arguments
    return found


class RingBuffer:
    """A ring buffer that is read; a context manager.

    :raises BpfError: where the map is none, or can not be mapped into memory.
    :raises ConntrackError: where there is no libbpf.
    """

    def __init__(self, fd: int) -> None:
        self._call = _functions()
        self._records: list[bytes] = []
        self._most = 0
        self._sample = _Sample(self._take)  # libbpf keeps no reference
        ctypes.set_errno(0)
        self._ring = self._call["new"](fd, self._sample, None, None)
        if not self._ring:
            raise bpf.BpfError(ctypes.get_errno() or errno.EINVAL, f"ring_buffer__new(fd {fd})")

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._call["free"](self._ring)

    def _take(self, dummy: object, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return -_ENOUGH if len(self._records) >= self._most else 0

    def read(self, seconds: float, most: int = 4096) -> list[bytes]:
        """Return the records that are there, at most so many; where there are none, wait for so
        long, or for a signal.
        """
        self._records, self._most = [], most
        result = self._call["poll"](self._ring, round(seconds * 1000))
        if result < 0 and -result not in (_ENOUGH, errno.EINTR):
            raise bpf.BpfError(-result, "ring_buffer__poll")
        return self._records
