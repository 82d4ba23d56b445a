# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations that take over from each other while frames come in as fast as the kernel makes them,
next to programs detached and attached again.

Every frame that comes in has to be counted, every flow has to be there afterwards, and where the
tables keep their size each has to have counted exactly what was sent. The programs are compiled
beforehand; they are verified and loaded anew for each generation.
"""

from __future__ import annotations

import collections.abc as c
import functools
import tempfile

import harness
from ansible_collections.ebpf.conntrack.tests.e2e.support import swap
from ansible_collections.ebpf.conntrack.tests.support import compiled

FLOWS = 1000
ONE = (swap.Way("ipv4", "ingress"),)
ALL = tuple(swap.Way(family, hook) for family in ("ipv4", "ipv6") for hook in ("ingress", "egress"))
#: What is sent, and the sizes of the tables, of which every second generation has the next.
VARIANTS = {
    "one hook": (ONE, (2048,)),
    "both hooks and families": (ALL, (2048,)),
    "every second of another size": (ALL, (2048, 4096)),
}


def take_over(load: swap.Load, turns: list[tuple[str, int]], number: int) -> None:
    """Let the next of the generations take over, in turn."""
    load.take_over(*turns[number % len(turns)])


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Swap so many times under each kind of load."""
    swaps = options.pick(100, 2)
    compiled.install()
    for name in options.pick(tuple(VARIANTS), ("both hooks and families",)):
        ways, sizes = VARIANTS[name]
        with tempfile.TemporaryDirectory() as directory, swap.Load(ways, FLOWS, directory) as load:
            turns = [(mark, size) for size in sizes for mark in "ab"]
            for mark, size in turns:
                load.take_over(mark, size)

            result = load.run(swaps, functools.partial(take_over, load, turns))
            bare = load.run(options.pick(10, 2), lambda dummy: load.attach_anew())
        harness.expect("frames sent but not received", result.sent - result.received, 0)
        harness.expect(
            "frames counted otherwise than tracked", set(result.counted) - {"tracked"}, set()
        )
        if len(sizes) == 1:
            harness.expect("flows with other counts than what was sent", result.wrong_flows, 0)
        what = f"{swaps} swaps, {name}"
        detached = f"{bare.swaps} x detach, attach"
        yield harness.Row("swap", f"{what}: received", "frames", one(result.received))
        yield harness.Row(
            "swap", f"{what}: received", "frames/s", one(result.received / result.seconds)
        )
        yield harness.Row(
            "swap",
            f"{what}: unseen",
            "frames",
            one(result.unseen),
            detached,
            one(bare.unseen),
            0,
            absolute=True,
        )
        yield harness.Row(
            "swap",
            f"{what}: lost of {result.flows}",
            "flows",
            one(result.lost_flows),
            goal=0,
            absolute=True,
        )
        yield harness.Row(
            "swap",
            f"{what}: not in the flows' counts",
            "packets",
            one(result.missing),
            goal=0 if len(sizes) == 1 else None,
            absolute=True,
        )


def one(value: float) -> harness.Sample:
    """Return a measurement that is made once."""
    return harness.Sample((value,))
