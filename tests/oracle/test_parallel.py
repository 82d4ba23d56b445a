# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several CPUs at once on one connection: nothing is counted twice or lost, there is one entry, and
its state is one that some order of the frames gives.

Each worker is pinned to a CPU of its own; the kernel runs the chain with the interpreter's lock
released, so they truly run at the same time.
"""

from __future__ import annotations

import collections
import mmap
import os
import pathlib
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import (
    OUTCOMES,
    XDP_PASS,
    ChainRig,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import Pair, Step
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import OTHER, Talk

CPUS = sorted(os.sched_getaffinity(0))
each_family = pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)

#: Frames of each worker in one call: enough for the calls to overlap for long.
MANY = 50_000
#: So many fit the rig's tables.
FLOWS = 800

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="nothing runs in parallel on one CPU")


def together(rig: ChainRig, *steps: Step) -> collections.Counter[str]:
    """Send each of the steps MANY times, each from a thread on the next CPU, all at once; return
    what was counted.
    """
    verdicts: list[int] = []
    begin = threading.Barrier(len(steps))

    def work(number: int, step: Step) -> None:
        os.sched_setaffinity(0, {CPUS[number % len(CPUS)]})
        begin.wait()
        verdicts.append(bpf.prog_test_run(rig.entries[step.side], step.frame, repeat=MANY).retval)

    before = rig.counters()
    threads = [threading.Thread(target=work, args=item) for item in enumerate(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = raised(rig, before)
    assert verdicts == [XDP_PASS] * len(steps)
    assert sum(counted[name] for name in OUTCOMES) == len(steps) * MANY, counted
    return counted


def raised(rig: ChainRig, before: t.Sequence[int]) -> collections.Counter[str]:
    """Return which counters went up since."""
    return collections.Counter(
        {
            name: now - was
            for name, was, now in zip(chain_counters.COUNTERS, before, rig.counters())
            if now != was
        }
    )


def in_step(rig: ChainRig, rounds: t.Sequence[t.Sequence[Step]]) -> collections.Counter[str]:
    """Let two processes send a frame each of every round, waiting for each other in a loop; return
    what was counted.

    In most rounds both are in the chain at the same time.
    """
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    reached = memoryview(shared).cast("Q")
    before = rig.counters()

    def work(me: int) -> None:
        os.sched_setaffinity(0, {CPUS[me]})
        for number, steps in enumerate(rounds, 1):
            step = steps[me]
            reached[me] = number
            while reached[1 - me] < number:
                pass
            bpf.prog_test_run(rig.entries[step.side], step.frame)

    child = os.fork()
    if not child:
        try:
            work(1)
        finally:
            reached[1] = 1 << 62
            os._exit(0)
    try:
        work(0)
    finally:
        os.sched_setaffinity(0, CPUS)
        reached[0] = 1 << 62
        os.waitpid(child, 0)
    counted = raised(rig, before)
    assert sum(counted[name] for name in OUTCOMES) == 2 * len(rounds), counted
    return counted


@pytest.fixture(name="rig")
def empty(chain: ChainRig) -> t.Iterator[ChainRig]:
    """One form of the chain, empty. What is counted is read from the map, past the rig."""
    chain.flush()
    yield chain
    chain.recount()


def send(rig: ChainRig, steps: t.Iterable[Step]) -> None:
    """Send steps one after the other."""
    for step in steps:
        bpf.prog_test_run(rig.entries[step.side], step.frame)


def only(rig: ChainRig) -> view.Flow:
    """Return the one flow."""
    (flow,) = rig.flows().values()
    return flow


def conversations(pair: Pair) -> dict[str, tuple[list[Step], Step, Step]]:
    """Return what was before, and a frame of each side that can come again and again."""
    talk = Talk(pair).open().send("a", "PA", 100).send("b", "PA", 1000)
    ack, back = (pair.tcp(side, "A", talk.next[side], talk.next[OTHER[side]]) for side in "ab")
    return {
        "tcp": (talk.steps, ack, back),
        "udp": ([pair.udp("a"), pair.udp("b")], pair.udp("a", 33), pair.udp("b", 44)),
        "echo": ([pair.echo("a", 1)], pair.echo("a", 1), pair.echo("b", 1, reply=True)),
    }


@each_family
@pytest.mark.parametrize("name", ["tcp", "udp", "echo"])
def test_both_directions_at_once(rig: ChainRig, pair: Pair, name: str) -> None:
    """Every frame that was tracked is in the flow's counters, with all of its bytes, on its own
    side.
    """
    before, there, back = conversations(pair)[name]
    send(rig, before)
    was = only(rig)
    counted = together(rig, there, there, back, back)  # each side on two CPUs
    now = only(rig)
    packets = [after - earlier for after, earlier in zip(now.packets, was.packets)]
    assert {name for name in counted if not name.startswith("forward_")} <= {
        "tracked",
        "untracked_contended",
    }, counted
    assert sum(packets) == counted["tracked"]
    assert 4 * MANY - sum(packets) == counted["untracked_contended"]
    assert all(0 < number <= 2 * MANY for number in packets)
    sizes = [len(step.frame) - 14 for step in (there, back)]
    assert [after - earlier for after, earlier in zip(now.bytes, was.bytes)] == [
        number * size for number, size in zip(packets, sizes)
    ]
    assert (now.state, now.orig) == (was.state if name == "tcp" else "REPLIED", was.orig)


@each_family
def test_errors_are_not_lost(rig: ChainRig, pair: Pair) -> None:
    """ICMP errors are counted on the flow without its lock, while its own packets come."""
    before, there, back = conversations(pair)["udp"]
    send(rig, before)
    if len(pair.a) == 4:
        packet = frames.ipv4(
            pair.b, pair.a, frames.ICMP, frames.icmp(3, 1, payload=there.frame[14:])
        )
    else:
        packet = frames.ipv6(
            pair.b,
            pair.a,
            frames.ICMPV6,
            frames.icmpv6(pair.b, pair.a, 1, 0, payload=there.frame[14:]),
        )
    error = Step("b", frames.frame(packet), "error")
    counted = together(rig, error, error, there, back)
    (record,) = rig.records()
    assert record["related"] == {"packets": 2 * MANY, "bytes": 2 * MANY * len(packet)}
    assert counted["related"] == 2 * MANY


CREATORS: dict[str, t.Callable[[Pair], list[Step]]] = {
    "udp": lambda pair: [pair.udp("a"), pair.udp("a")],
    "udp, both ways": lambda pair: [pair.udp("a"), pair.udp("b")],
    "tcp": lambda pair: [pair.tcp("a", "A", 1, 1), pair.tcp("a", "A", 1, 1)],
    "tcp, both ways": lambda pair: [pair.tcp("a", "A", 1, 1), pair.tcp("b", "A", 1, 1)],
}


def pairs(pair: Pair) -> list[Pair]:
    """Return the hosts with other ports, for as many flows."""
    return [Pair(pair.a, pair.b, 20_000 + number, pair.bport) for number in range(FLOWS)]


@each_family
@pytest.mark.parametrize("name", CREATORS)
def test_two_create_one_flow(rig: ChainRig, pair: Pair, name: str) -> None:
    """Whoever comes first makes the entry; the other one finds it."""
    counted = in_step(rig, [CREATORS[name](each) for each in pairs(pair)])
    flows = rig.flows()
    assert counted["created"] == len(flows) == FLOWS
    assert (
        counted["tracked"]
        == sum(sum(flow.packets) for flow in flows.values())
        == 2 * FLOWS - counted["untracked_contended"]
    )


#: What was before, and two frames of which one or both make the flow assured.
PROMOTERS: dict[str, t.Callable[[Pair], tuple[list[Step], list[Step]]]] = {
    "tcp": lambda pair: _last(Talk(pair).until("SYN_RECV").send("a", "A").send("a", "PA", 10)),
    "tcp, both ways": lambda pair: _last(
        Talk(pair).until("SYN_RECV").send("a", "A").send("b", "PA", 10)
    ),
    "udp, both ways": lambda pair: (
        [pair.udp("a"), pair.udp("b")],
        [pair.udp("a", 33), pair.udp("b", 44)],
    ),
}
#: Seconds after which UDP with traffic both ways is a stream.
STREAM_SECONDS = 2.2


def _last(talk: Talk) -> tuple[list[Step], list[Step]]:
    return talk.steps[:-2], talk.steps[-2:]


def in_tables(rig: ChainRig) -> dict[str, int]:
    """Return how many entries there are for each class of flows, where there are any."""
    found = {opened.table.flow_class: 0 for opened in rig.tables.tables}
    for opened in rig.tables.tables:
        found[opened.table.flow_class] += sum(
            count for count, dummy, dummy in rig.tables.batches(opened)
        )
    return {name: number for name, number in found.items() if number}


@each_family
@pytest.mark.parametrize("name", PROMOTERS)
def test_a_flow_becomes_assured_while_both_write_it(rig: ChainRig, pair: Pair, name: str) -> None:
    """It moves to the other table once, and takes along all that was counted; it is never in both,
    and nobody makes it anew.
    """
    rounds = [PROMOTERS[name](each) for each in pairs(pair)]
    for before, dummy in rounds:
        send(rig, before)
    assert in_tables(rig) == {"half_open": FLOWS}
    if name.startswith("udp"):
        time.sleep(STREAM_SECONDS)
    was = sum(sum(flow.packets) for flow in rig.flows().values())
    counted = in_step(rig, [steps for dummy, steps in rounds])
    assert set(counted) <= {"tracked", "untracked_contended", "promoted", "forward_port"}, counted
    there, flows = in_tables(rig), rig.flows()
    assert there["assured"] == counted["promoted"] == sum(flow.assured for flow in flows.values())
    assert sum(there.values()) == len(flows) == FLOWS
    assert there.get("half_open", 0) <= counted["untracked_contended"], (
        "who did not get the lock made nothing assured"
    )
    assert (
        sum(sum(flow.packets) for flow in flows.values()) - was
        == counted["tracked"]
        == 2 * FLOWS - counted["untracked_contended"]
    )


#: What was before, and the frames that come at the same time.
RACES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "two SYNs cross": ("NONE", [("a", "S"), ("b", "S")]),
    "SYN and its repetition": ("NONE", [("a", "S"), ("a", "S")]),
    "SYN+ACK and reset": ("SYN_SENT", [("b", "SA"), ("b", "RA")]),
    "reset and SYN": ("SYN_SENT", [("b", "RA"), ("a", "S")]),
    "ACK and data": ("SYN_RECV", [("a", "A"), ("a", "PA")]),
    "both close": ("ESTABLISHED", [("a", "FA"), ("b", "FA")]),
    "close and reset": ("ESTABLISHED", [("a", "FA"), ("b", "RA")]),
    "last ACK and a new SYN": ("LAST_ACK", [("a", "A"), ("b", "S")]),
    "SYN on a closed connection, twice": ("TIME_WAIT", [("a", "S"), ("a", "S")]),
    "SYN of either side on a closed connection": ("TIME_WAIT", [("a", "S"), ("b", "S")]),
}


def outcome_of(rig: ChainRig, before: t.Iterable[Step], steps: t.Iterable[Step]) -> tuple[int, ...]:
    """Return what is left in the table after steps that came one after the other."""
    rig.flush()
    send(rig, before)
    send(rig, steps)
    return next(iter(rig.entries_now()), ())


@each_family
@pytest.mark.parametrize("name", RACES)
def test_some_order_explains_it(rig: ChainRig, pair: Pair, name: str) -> None:
    """Whatever comes at the same time: an entry is, to its last field, what one order of the frames
    makes.
    """
    state, what = RACES[name]

    def race(each: Pair) -> tuple[list[Step], list[Step]]:
        talk = Talk(each).until(state)
        return Talk(each).until(state).steps, [
            talk.send(side, flags).steps.pop() for side, flags in what
        ]

    before, steps = race(pairs(pair)[0])
    one_way, other_way = (outcome_of(rig, before, order) for order in (steps, steps[::-1]))
    alone = {outcome_of(rig, before, [step]) for step in steps} - {one_way, other_way}
    rig.flush()
    races = [race(each) for each in pairs(pair)]
    for before, dummy in races:
        send(rig, before)
    counted = in_step(rig, [steps for dummy, steps in races])
    left = collections.Counter(rig.entries_now())
    left[()] = FLOWS - left.total()
    assert set(+left) <= {one_way, other_way} | alone
    assert sum(left[entry] for entry in alone) <= counted["untracked_contended"]


#: Drops what a flow begins with.
DROPPER = """
GUEST(dropper)
{
        return f->found.bits & FOUND_NEW ? guest_drop(ctx, f) : guest_next(ctx);
}
"""
DROPPER_SLOT = 29


@each_family
def test_a_guest_drops_one_of_two_that_race(pair: Pair, tmp_path: pathlib.Path) -> None:
    """The flow goes with its first packet, unless the other one was counted in it before; that one
    then stays, and no entry stays locked.
    """
    source = tmp_path / "dropper.c"
    source.write_text(DROPPER, encoding="utf-8")
    with (
        ChainRig(fused=True, asked=[{"slot": DROPPER_SLOT, "src": str(source)}]) as rig,
        bpf.closing(bpf.obj_get(rig.paths.map("guest_stats"))) as stats,
    ):
        each = pairs(pair)
        counted = in_step(rig, [[one.udp("a"), one.udp("b")] for one in each])
        seen, flows = guests.counts(stats, DROPPER_SLOT), rig.flows()
        assert seen["seen"] == seen["passed"] + seen["dropped"] == 2 * len(each)
        untracked = sum(number for name, number in counted.items() if name.startswith("untracked_"))
        assert (
            seen["passed"] - untracked
            == len(flows)
            == counted["created"] - counted["deleted_dropped"]
        ), counted
        assert {flow.packets for flow in flows.values()} <= {(1, 1)}
        before = rig.counters()
        send(rig, [one.udp(side) for one in each for side in "ab" for dummy in range(2)])
        after = raised(rig, before)
        assert after["tracked"] + after["untracked_no_entry"] == 4 * len(each), "no entry is locked"
