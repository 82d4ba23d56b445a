# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove a chain that is loaded but not attached yet."""

from __future__ import annotations

import contextlib
import dataclasses
import struct

from ..chain import counters as chain_counters
from ..chain import maps as chain_maps
from ..core.errors import ConntrackError
from ..kernel import bpf

_XDP_PASS = 2
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


def ethernet(proto: int, payload: bytes) -> bytes:
    return bytes(12) + struct.pack("!H", proto) + payload


@dataclasses.dataclass(frozen=True)
class Probe:
    """A frame that makes no entry, on its way through some of the stages.

    :ivar name: for people.
    :ivar frame: its bytes.
    :ivar counter: what it is counted as.
    """

    name: str
    frame: bytes
    counter: str


NOT_IP = Probe("a frame that is not IP", ethernet(0xFFFF, bytes(46)), "untracked_not_ip")


# ---------------------------------------------------------------- the proof
class Counters:
    """Where a chain counts its frames of proof: in the map ``proof`` that its entry program itself
    uses, whatever is pinned.

    A chain of an earlier release has none and counts them as traffic. Use as a context manager.

    :ivar mark: the number that a frame of proof begins with; 0 where there is none.
    """

    def __init__(self, entry: int, stats: int) -> None:
        self._stats, self._proof, self.mark = stats, -1, 0
        self._open = contextlib.ExitStack()
        for number in bpf.prog_info(entry).map_ids:
            fd = self._open.enter_context(bpf.closing(bpf.map_get_fd_by_id(number)))
            if bpf.map_info(fd).name == chain_maps.PROOF_MAP.name:
                self._proof, self.mark = fd, _word(fd, chain_maps.PROOF["mark"])

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._open.close()

    def read(self, name: str) -> int:
        """Return how many frames were counted as one of chain.OUTCOMES."""
        index = chain_counters.COUNTERS.index(name)
        if self.mark:
            return _word(self._proof, chain_maps.PROOF["counts"] + index)
        return sum(
            _U64.unpack(value)[0] for value in bpf.percpu_value(self._stats, index, _U64.size)
        )


def _word(fd: int, index: int) -> int:
    raw = bpf.map_lookup(fd, _U32.pack(index), _U64.size)
    return _U64.unpack(raw)[0] if raw is not None else 0


def _marked(frame: bytes, mark: int) -> bytes:
    """Return a frame of proof with the mark in place of its addresses; the chain reads it in 16-bit
    words (files/bpf/lib/packet.h, is_proof()).
    """
    words = (
        struct.pack("=4H", *(mark >> shift & 0xFFFF for shift in (0, 16, 32, 48))) if mark else b""
    )
    return words + frame[len(words) :]


def prove(
    entry: int,
    stats: int,
    guests: bool = False,
    probe: Probe = NOT_IP,
    counters: Counters | None = None,
) -> None:
    """Send a frame through the chain: it must come out as it went in and be counted, so every slot
    on its way is filled.

    The chain counts it beside the traffic: no counter that is shown moves, whatever else comes
    meanwhile, and wherever this process is killed.

    :param entry: the entry program's file descriptor, ``stats`` that of the counters of traffic.
    :param guests: whether it has guests. Frames of proof pass them by, but in a chain of an earlier
        release: there the frame must be counted, and what comes out is their affair.
    :param counters: the entry's, where they were looked for already.
    :raises ConntrackError: saying what became of the frame.
    """
    with Counters(entry, stats) if counters is None else contextlib.nullcontext(counters) as found:
        frame, before = _marked(probe.frame, found.mark), found.read(probe.counter)
        run = bpf.prog_test_run(entry, frame)
        counted = found.read(probe.counter) > before
        own_affair = guests and not found.mark
    if (not own_affair and (run.retval != _XDP_PASS or run.data_out != frame)) or not counted:
        raise ConntrackError(
            f"the chain does not pass a frame as it is: {probe.name}: verdict {run.retval}"
            f" (XDP_PASS is {_XDP_PASS}), {'unchanged' if run.data_out == frame else 'changed'},"
            f" {'' if counted else 'not '}counted as {probe.counter}."
        )
