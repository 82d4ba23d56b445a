# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is pinned at a path, whatever it is."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import typing as t

from ..chain import maps as chain_maps
from ..kernel import bpf

U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")


# ---------------------------------------------------------------- look
@contextlib.contextmanager
def open_pin(path: str) -> t.Iterator[tuple[str | None, int]]:
    """Give (kind, fd) of what is pinned to a ``with`` block: kind is ``map``, ``prog`` or ``link``,
    None where nothing is there, else what it is.
    """
    if not os.path.lexists(path):
        yield None, -1
        return
    try:
        fd = bpf.obj_get(path)
    except bpf.BpfError as exc:
        if exc.errno not in (
            errno.EACCES,
            errno.ENOENT,
            errno.ELOOP,
        ):  # the kernel's answers to what is no BPF object
            raise
        yield ("a directory" if os.path.isdir(path) else "no BPF object"), -1
        return
    with bpf.closing(fd):
        yield bpf.kind_of(fd), fd


def names(directory: str) -> list[str]:
    """Return what is in a directory; nothing where there is none."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_meta(fd: int) -> dict[str, int]:
    """Return ``meta`` by the names of chain.META."""
    values = {}
    for name, index in chain_maps.META.items():
        raw = bpf.map_lookup(fd, U32.pack(index), U64.size)
        values[name] = U64.unpack(raw)[0] if raw else 0
    return values


def program(number: int) -> bpf.ProgInfo | None:
    """Return what the kernel knows of a program, None where it is gone."""
    try:
        with bpf.closing(bpf.prog_get_fd_by_id(number)) as fd:
            return bpf.prog_info(fd)
    except bpf.BpfError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise
