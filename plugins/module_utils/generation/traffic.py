# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what comes in is counted: interfaces next to the counters of the chain."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ..chain import counters as chain_counters
from ..chain import programs as chain_programs
from ..core.errors import ConntrackError
from ..kernel import bpf, bpffs, ethtool, netns
from ..kernel.bpffs import Paths
from . import health, pinned_objects
from . import links as generation_links
from .diagnosis import Fault

_PAUSE = 0.01


# ---------------------------------------------------------------- listen
def stands_still(
    counted: t.Callable[[], int],
    received: t.Callable[[], int],
    wait: t.Callable[[float], None] = time.sleep,
) -> int:
    """Return how many frames came in while none was counted; 0 where all is well, or nothing can be
    told.

    It returns as soon as something is counted, and after some 0.2 s without traffic. A suspicion is
    made certain first, within some 1.5 s more: the interfaces' count has to grow twice, because a
    card's counters can be late, and tell of frames that were counted before.

    :param counted: the sum of the chain's outcomes.
    :param received: the sum of the interfaces' received frames.
    """
    start, first = counted(), received()
    for dummy in range(health.LOOKS):
        wait(_PAUSE)
        if counted() != start:
            return 0
    before = received()
    if before == first:
        return 0
    for dummy in range(health.LOOKS_TO_BE_SURE):
        now = received()
        wait(_PAUSE)  # a driver may count a frame before its program has run
        if counted() != start:
            return 0
        if now > before:
            return now - first
    return 0


def tracking(paths: Paths) -> list[str]:
    """Return the pins of the links whose interfaces' frames are to be counted."""
    return [
        key
        for key, link in generation_links.look_links(paths).items()
        if link.info is not None and link.here and generation_links.tracks(link.info)
    ]


def received(keys: t.Iterable[str]) -> int:
    """Return how many frames the interfaces that pins are named for received; one that is gone has
    none.
    """
    return sum(
        facts.received for facts in map(generation_links.link_facts, keys) if facts is not None
    )


def lateness(keys: t.Iterable[str], seconds: float) -> float:
    """Return ``seconds`` where the driver of one of these interfaces may count frames late, else
    0.
    """
    for key in keys:
        namespace, name = bpffs.interface_of(key)
        if namespace is not None and not netns.exists(namespace):
            continue
        with netns.entered(namespace):
            if ethtool.driver(name).counts_late:
                return seconds
    return 0.0


def listen(paths: Paths, prove: t.Callable[[int, int, bool], None]) -> tuple[Fault, ...]:
    """Return whether the interfaces that the chain is attached to receive frames that it does not
    count.

    :param prove: sends a frame of proof through an entry program and raises ConntrackError where it
        is not passed and counted; called only when nothing is counted, with the entry's and the
        counters' file descriptors, and whether there are guests.
    """
    keys = tracking(paths)
    number = health.active(paths)
    if not keys or number is None:
        return ()
    with contextlib.ExitStack() as stack:
        kind, stats = stack.enter_context(
            pinned_objects.open_pin(os.path.join(paths.gen_dir(number), "map", "stats"))
        )
        entries = [
            stack.enter_context(
                pinned_objects.open_pin(
                    os.path.join(paths.gen_dir(number), "prog", f"xdp_{chain_programs.SLOTS[hook]}")
                )
            )
            for hook in chain_programs.TRACKING_HOOKS
        ]
        if kind != "map" or any(kind != "prog" for kind, dummy in entries):
            return ()  # which look() tells
        frames = stands_still(lambda: _counted(stats), lambda: received(keys))
        if not frames:
            return ()
        where = ", ".join(map(generation_links.interface, keys))
        guests = any(
            os.path.lexists(os.path.join(paths.gen_dir(number), "prog", f"xdp_{slot}"))
            for slot in chain_programs.GUEST_SLOTS.values()
        )
        try:
            for dummy, entry in entries:
                prove(entry, stats, guests)
        except ConntrackError:
            return (
                Fault(
                    "chain_dead",
                    where,
                    f"{where} received {frames} frames, none was counted, nor is a frame that the"
                    " chain is handed",
                ),
            )
        return (
            Fault(
                "frames_unseen",
                where,
                f"{where} received {frames} frames, none was counted, although the chain counts a"
                " frame that it is handed",
            ),
        )


def _counted(stats: int) -> int:
    """Return how many frames the chain has counted, each once."""
    return sum(
        sum(
            pinned_objects.U64.unpack(one)[0]
            for one in bpf.percpu_value(stats, index, pinned_objects.U64.size)
        )
        for index in range(len(chain_counters.OUTCOMES))
    )
