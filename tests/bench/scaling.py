# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Curves: how the cost of a packet, the rate of new flows and the memory of a flow change with the
size of the table, the flows in it, and the CPUs.

The programs, the floors and the way to measure are those of packet.py (*repeat*). Each point is
measured next to its floor in the same rounds.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import functools
import os
import threading

import frames
import harness
import packet
import tables
from baselines import Baselines
from chain_under_test import Chain

#: Highest ratio of a random hit to the floor's where the flows are so many at least, and most bytes
#: of kernel memory for a connection.
GOAL_RANDOM, MANY, GOAL_MEMORY = 1.25, 1 << 19, 192
#: Highest ratio of a new flow to a bare insert.
GOAL_NEW = 2.0
#: The table size at which CPUs are measured.
MAIN_SIZE = 1 << 16


def open_tcp(under_test: Chain, client: str) -> None:
    """Bring up a connection of that client."""
    for hook, frame in packet.opening(client, packet.SERVER)[:3]:
        packet.once(under_test.hooks[hook], frame)


def per_packet(hook: int, sent: c.Sequence[bytes], count: int) -> float:
    """Run ``count`` packets on each of as many CPUs as there are frames, at the same time; return
    ns a packet of all of them together.
    """
    cpus = sorted(os.sched_getaffinity(0))
    ready = threading.Barrier(len(sent))
    taken: list[float] = []

    def work(cpu: int, frame: bytes) -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread alone
        ready.wait()
        taken.append(packet.once(hook, frame, count).duration_ns)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(cpus, sent, strict=False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    harness.expect("CPUs that measured", len(taken), len(sent))
    return 1 / sum(1 / ns for ns in taken)


def on_cpus(
    variants: c.Mapping[str, Chain], base: Baselines, count: int, rounds: int
) -> c.Iterator[harness.Row]:
    """Measure an established TCP connection on each CPU, and one that all CPUs share."""
    cpus = len(os.sched_getaffinity(0))
    sources = [f"10.1.0.{1 + number}" for number in range(cpus)]
    acks = [
        frames.tcp(source, packet.SPORT, packet.SERVER, packet.DPORT, frames.ACK, 1001, 5001)
        for source in sources
    ]
    for source, ack in zip(sources, acks, strict=True):
        packet.once(base.programs["floor_insert"], ack)
        for under_test in variants.values():
            open_tcp(under_test, source)

    def tracked(under_test: Chain, sent: c.Sequence[bytes]) -> float:
        before = under_test.counters()
        value = per_packet(under_test.hooks["ingress"], sent, count)
        after = under_test.counters()
        seen = sum(after[name] - before[name] for name in ("tracked", "untracked_contended"))
        harness.expect(
            "packets tracked, or too late for a flow that others hold", seen, count * len(sent)
        )
        return value

    for number in range(1, cpus + 1):
        kinds = {"a flow on each CPU": acks[:number], "one flow on all CPUs": acks[:1] * number}
        cases: dict[str, c.Callable[[], float | dict[str, float]]] = {}
        for kind, sent in kinds.items():
            cases[f"{kind}, floor"] = functools.partial(
                per_packet, base.programs["floor_hit"], sent, count
            )
            for variant, under_test in variants.items():
                cases[f"{kind}, {variant}"] = functools.partial(tracked, under_test, sent)
        got = harness.interleave(cases, rounds)
        for kind in kinds:
            for variant in variants:
                name = f"established TCP, {kind}, {variant}"
                yield harness.Row(
                    "scaling",
                    name,
                    "ns",
                    got[f"{kind}, {variant}"],
                    "floor",
                    got[f"{kind}, floor"],
                    axis="CPUs",
                    at=number,
                )


def random_hits(
    variants: c.Mapping[str, Chain], base: Baselines, flows: int, rounds: int
) -> c.Iterator[harness.Row]:
    """Measure packets of ``flows`` established connections in an order of their own, each in its
    turn.
    """
    turns = max(1, packet.RANDOM_PACKETS // flows)
    fill = packet.Driven(
        base,
        "drive_new",
        base.programs["floor_insert"],
        frames.tcp(packet.BEFORE_TEN, packet.SPORT, packet.SERVER, packet.DPORT, 16, 1001, 5001),
    )
    tables.clear(base.flows)
    fill(flows)
    frame = frames.tcp(
        "10.0.0.0", packet.SPORT, packet.SERVER, packet.DPORT, frames.ACK, 1001, 5001
    )
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        "floor": functools.partial(
            packet.Driven(base, "drive_random", base.programs["floor_hit"], frame), turns * flows
        )
    }
    before = {}
    for variant, under_test in variants.items():
        key, entry = under_test.raw_flow(packet.TCP)
        tables.clear(under_test.table)
        tables.fill(under_test.table, flows, key, entry)
        ((before[variant], number),) = tables.spread(under_test.table).items()
        harness.expect("flows filled in", number, flows)
        cases[variant] = functools.partial(
            packet.Driven(base, "drive_random", under_test.hooks["ingress"], frame), turns * flows
        )
    got = harness.interleave(cases, rounds)
    tables.clear(base.flows)  # a new flow is to find none of its like
    for variant, under_test in variants.items():
        harness.expect(
            "flows by their packets",
            dict(tables.spread(under_test.table)),
            {before[variant] + rounds * turns: flows},
        )
        tables.clear(under_test.table)
        goal = GOAL_RANDOM if flows >= MANY else None
        yield harness.Row(
            "scaling",
            f"random hit, {variant}",
            "ns",
            got[variant],
            "floor",
            got["floor"],
            goal,
            axis="flows",
            at=flows,
        )


def new_flows(
    variants: c.Mapping[str, Chain], base: Baselines, size: int, count: int, rounds: int
) -> c.Iterator[harness.Row]:
    """Measure packets that each open a flow, in tables that are full."""
    new = packet.NEW["TCP"]

    def counted(under_test: Chain, drive: packet.Driven) -> float:
        before = under_test.counters()
        value = drive(count)
        after = under_test.counters()
        harness.expect("flows created", after["created"] - before["created"], count)
        return value

    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        "bare insert": functools.partial(
            packet.Driven(base, new.driver, base.programs[new.insert], new.frame), count
        )
    }
    for variant, under_test in variants.items():
        cases[variant] = functools.partial(
            counted,
            under_test,
            packet.Driven(base, new.driver, under_test.hooks["ingress"], new.frame),
        )
    for case in cases.values():  # from then on each insert evicts
        for dummy in range(-(-size // count)):
            case()
    got = harness.interleave(cases, rounds)
    for variant in variants:
        yield harness.Row(
            "scaling",
            f"new flow, {variant}",
            "ns",
            got[variant],
            "bare insert",
            got["bare insert"],
            GOAL_NEW,
            axis="entries",
            at=size,
        )


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure each size; flows fill half of the table."""
    sizes = options.pick([1 << shift for shift in range(10, 23, 2)], [MAIN_SIZE])
    rounds = options.pick(5, 3)
    for size in sizes:
        with contextlib.ExitStack() as stack:
            base = stack.enter_context(contextlib.closing(Baselines(size, 1 << 10, size // 2)))
            variants = {
                name: stack.enter_context(contextlib.closing(Chain(size, fused=fused)))
                for name, fused in (("chain", False), ("fused", True))
                if not fused or options.fused
            }
            for under_test in variants.values():
                open_tcp(under_test, packet.CLIENT)
            with harness.one_cpu():
                yield from random_hits(variants, base, size // 2, rounds)
                yield from new_flows(variants, base, size, options.pick(500_000, 100_000), rounds)
            memory = harness.Sample((variants["chain"].bytes_per_flow(variants["chain"].table),))
            # what a table has besides its entries shows in a small one
            goal = GOAL_MEMORY if size >= MAIN_SIZE else None
            yield harness.Row(
                "scaling",
                "memory of a flow",
                "B",
                memory,
                goal=goal,
                absolute=True,
                axis="entries",
                at=size,
            )
            if size == MAIN_SIZE:
                yield from on_cpus(variants, base, options.pick(500_000, 100_000), rounds)
