# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one packet costs: the chain next to a no-op, to floors that do a part of its work, and to the cost model of its forerunner.

Two ways to measure, each used for all programs alike:

- *repeat*: BPF_PROG_TEST_RUN runs a program again and again on one buffer and returns the mean. The chain stands this, since
  prs_end takes the metadata away again and so every run finds the frame as it was; the packet counts are held to that. It adds
  least of its own and hits nothing but the program.
- *live*: the same call with live frames; the kernel's run-time statistics of the entry program give the time (tail calls do
  not return, so it is that of the whole chain, and of the two clock reads around it). Each frame is another one and goes on
  to the stack afterwards, which gives the caches something to do. The forerunner's model leaves its metadata standing, as
  that one did, and can be measured in this way only.

Whatever is measured is asserted: verdicts, the flow's state, exact packet counts.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import functools

import frames
import harness
import tables
from ansible_collections.ebpf.conntrack.plugins.module_utils import bpf, chain, netns
from baselines import Baselines
from chain_under_test import Chain

XDP_PASS = 2
CLIENT, SERVER, SPORT, DPORT = "10.0.0.1", "172.30.56.105", 40000, 8080
PROTOCOLS = {"TCP": 6, "UDP": 17, "ICMP": 1}
BEFORE_TEN = "10.255.255.255"  # counting up from here within 10.0.0.0/8, the first source is 10.0.0.0

#: So many packets at least in one measurement of random hits: else what is cold at its beginning would show.
RANDOM_PACKETS = 1 << 18

#: Highest ratio to the floor, and to the forerunner's cost model.
GOALS = {"TCP": 2.0, "new": 2.0, "random": 1.25, "cost model": 0.25}
#: Most bytes of kernel memory for a connection.
GOAL_MEMORY = 192

ESTABLISHED = {
    "TCP": frames.tcp(CLIENT, SPORT, SERVER, DPORT, frames.ACK, 1001, 5001),
    "UDP": frames.udp(CLIENT, SPORT, SERVER, DPORT, b"bench"),
    "ICMP": frames.echo(CLIENT, SERVER, 8, SPORT, b"bench"),
}
OPENING = (
    # hook, frame
    ("ingress", frames.tcp(CLIENT, SPORT, SERVER, DPORT, frames.SYN, 1000)),
    ("egress", frames.tcp(SERVER, DPORT, CLIENT, SPORT, frames.SYN | frames.ACK, 5000, 1001)),
    ("ingress", ESTABLISHED["TCP"]),
    ("ingress", ESTABLISHED["UDP"]),
    ("egress", frames.udp(SERVER, DPORT, CLIENT, SPORT, b"bench")),
    ("ingress", ESTABLISHED["ICMP"]),
    ("egress", frames.echo(SERVER, CLIENT, 0, SPORT, b"bench")),
)
NEW = {
    "UDP": frames.udp(BEFORE_TEN, SPORT, SERVER, DPORT, b"a benchmark frame"),
    "TCP": frames.tcp(BEFORE_TEN, SPORT, SERVER, DPORT, frames.SYN, 1000),
}


Method = c.Callable[[int, bytes, int], float]


def once(program: int, frame: bytes, count: int = 1) -> bpf.TestRun:
    """Run a program ``count`` times on one buffer."""
    run = bpf.prog_test_run(program, frame, repeat=count)
    harness.expect("verdict", run.retval, XDP_PASS)
    return run


def repeat(program: int, frame: bytes, count: int) -> float:
    """Run a program ``count`` times on one buffer; return ns a run."""
    return once(program, frame, count).duration_ns


def live(program: int, frame: bytes, count: int) -> float:
    """Send ``count`` live frames through a program; return ns a frame. Wants enable_stats()."""
    before = bpf.prog_info(program)
    bpf.prog_test_run(program, frame, repeat=count, flags=bpf.BPF_F_TEST_XDP_LIVE_FRAMES)
    after = bpf.prog_info(program)
    harness.expect("runs", after.run_cnt - before.run_cnt, count)
    return (after.run_time_ns - before.run_time_ns) / count


def tracked(under_test: Chain, protocol: str, method: Method, count: int) -> float:
    """Measure ``count`` packets of an established flow, and see that the chain counted each of them and kept the state."""
    before, dummy = under_test.flow(PROTOCOLS[protocol])
    value = method(under_test.hooks["ingress"], ESTABLISHED[protocol], count)
    after, ctl = under_test.flow(PROTOCOLS[protocol])
    harness.expect(f"{protocol} packets counted", after - before, count)
    harness.expect(f"{protocol} flow: reply seen", bool(ctl & chain.CTL_SEEN_REPLY), True)
    if protocol == "TCP":
        harness.expect("TCP flow: assured", bool(ctl & chain.CTL_ASSURED), True)
        harness.expect("TCP flow: state", chain.TCP_STATES[ctl & chain.CTL_STATE], "ESTABLISHED")
    return value


def open_flows(under_test: Chain) -> None:
    """Bring the three flows up in the chain; no frame may come out changed."""
    for hook, frame in OPENING:
        harness.expect("frame after the chain", once(under_test.hooks[hook], frame).data_out, frame)


def open_floor(base: Baselines) -> None:
    """Put their like into the floor's table."""
    for protocol in ("TCP", "UDP"):
        once(base.programs["floor_insert"], ESTABLISHED[protocol])


def established(under_test: Chain, base: Baselines, name: str, method: Method, count: int, rounds: int) -> list[harness.Row]:
    """Measure one packet of a flow that is there."""
    frame = ESTABLISHED["TCP"]
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        "no-op": lambda: method(base.programs["noop"], frame, count),
        "floor": lambda: method(base.programs["floor_hit"], frame, count),
        **{protocol: functools.partial(tracked, under_test, protocol, method, count) for protocol in ESTABLISHED},
    }
    if method is live:
        cases["cost model"] = lambda: method(base.programs["model_0_entry"], frame, count)
    got = harness.interleave(cases, rounds)
    rows = [harness.Row("packet", f"floor ({name})", "ns", got["floor"], "no-op", got["no-op"])]
    for protocol in ESTABLISHED:
        rows.append(harness.Row("packet", f"established {protocol} ({name})", "ns", got[protocol], "floor", got["floor"], GOALS.get(protocol)))
    if method is live:
        rows.append(harness.Row("packet", f"established TCP ({name})", "ns", got["TCP"], "cost model", got["cost model"], GOALS["cost model"]))
    return rows


class Driven:
    """A ``drive_*`` program in front of a target; the frame that it steps on is kept from one measurement to the next."""

    def __init__(self, base: Baselines, driver: str, target: int, frame: bytes) -> None:
        self._base, self._driver, self._target, self._frame = base, base.programs[driver], target, frame

    def __call__(self, count: int) -> float:
        self._base.drive(self._target)
        run = once(self._driver, self._frame, count)
        self._frame = run.data_out
        return run.duration_ns


def new_flows(under_test: Chain, base: Baselines, size: int, count: int, rounds: int) -> list[harness.Row]:
    """Measure packets that each open a flow, in a table that is full after the first ``size`` of them."""
    drive = {protocol: Driven(base, "drive_new", under_test.hooks["ingress"], frame) for protocol, frame in NEW.items()}

    def counted(protocol: str) -> float:
        before = under_test.counters()
        value = drive[protocol](count)
        after = under_test.counters()
        for counter in ("created", "tracked"):
            harness.expect(f"new {protocol} flows: {counter}", after[counter] - before[counter], count)
        return value

    floor = Driven(base, "drive_new", base.programs["floor_insert"], NEW["UDP"])
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        "bare insert": lambda: floor(count),
        **{protocol: functools.partial(counted, protocol) for protocol in NEW},
    }
    for case in cases.values():  # fill the tables first: from then on each insert evicts
        for dummy in range(-(-size // count)):
            case()
    got = harness.interleave(cases, rounds)
    return [
        harness.Row("packet", f"new {protocol} flow, table {amount(size)}", "ns", got[protocol], "bare insert", got["bare insert"], GOALS["new"])
        for protocol in NEW
    ]


def random_hits(under_test: Chain, base: Baselines, flows: int, rounds: int) -> list[harness.Row]:
    """Measure packets of ``flows`` established flows in an order of their own, each flow in its turn."""
    turns = max(1, RANDOM_PACKETS // flows)
    key, entry = under_test.raw_flow(PROTOCOLS["TCP"])
    tables.clear(under_test.table)
    tables.fill(under_test.table, flows, key, entry)
    before = tables.packets(under_test.table)
    fill = Driven(base, "drive_new", base.programs["floor_insert"], frames.tcp(BEFORE_TEN, SPORT, SERVER, DPORT, frames.ACK, 1001, 5001))
    tables.clear(base.flows)
    fill(flows)
    frame = frames.tcp("10.0.0.0", SPORT, SERVER, DPORT, frames.ACK, 1001, 5001)
    floor = Driven(base, "drive_random", base.programs["floor_hit"], frame)
    ours = Driven(base, "drive_random", under_test.hooks["ingress"], frame)
    got = harness.interleave({"floor": lambda: floor(turns * flows), "chain": lambda: ours(turns * flows)}, rounds)
    after = tables.packets(under_test.table)
    harness.expect("flows in the table", len(after), flows)
    harness.expect("packets of each flow", {after[k] - before[k] for k in after}, {rounds * turns})
    return [harness.Row("packet", f"random hit in {amount(flows)} TCP flows", "ns", got["chain"], "floor", got["floor"], GOALS["random"])]


def amount(number: int) -> str:
    """Return a power of two for people."""
    return f"{number >> 20}M" if number >= 1 << 20 else f"{number >> 10}k"


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure everything; one table size after the other."""
    with harness.one_cpu():
        for size in options.pick((1 << 17, 1 << 11, 1 << 21), (1 << 17,)):
            flows = size // 2
            with contextlib.closing(Baselines(size, flows)) as base, contextlib.closing(Chain(size)) as under_test:
                open_flows(under_test)
                open_floor(base)
                if size == 1 << 17:
                    yield from established(under_test, base, "repeat", repeat, options.pick(500_000, 100_000), options.pick(15, 5))
                    with netns.anonymous(), bpf.closing(bpf.enable_stats()):
                        yield from established(under_test, base, "live", live, options.pick(100_000, 30_000), options.pick(15, 5))
                yield from random_hits(under_test, base, flows, options.pick(7, 3))
                memory = harness.Sample((under_test.bytes_per_flow(),))
                yield harness.Row("packet", f"memory of a flow, table {amount(size)}", "B", memory, goal=GOAL_MEMORY, absolute=True)
                yield from new_flows(under_test, base, size, options.pick(1_000_000, 200_000), options.pick(7, 3))
