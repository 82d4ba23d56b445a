# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one packet costs: the chain next to a no-op, to floors that do a part of its work, and to
the cost model of its forerunner.

Two ways to measure, each used for all programs alike:

- *repeat*: BPF_PROG_TEST_RUN runs a program again and again on one buffer and returns the mean. The
  chain stands this, since prs_end takes the metadata away again and so every run finds the frame as
  it was; the packet counts are held to that. It adds least of its own and hits nothing but the
  program.
- *live*: the same call with live frames; the kernel's run-time statistics of the entry program give
  the time (tail calls do not return, so it is that of the whole chain, and of the two clock reads
  around it). Each frame is another one and goes on to the stack afterwards, which gives the caches
  something to do. The forerunner's model leaves its metadata standing, as that one did, and can be
  measured in this way only.

Two variants are measured, as xdp_program's option ``fused`` has them: the *chain*, each stage a
program of its own, and *fused*, the same stages in the entry programs. Each is held against the
floor of its address family and against the other.

Whatever is measured is asserted: verdicts, the flow's state, exact packet counts.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import functools
import time

import frames
import harness
import tables
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpf_constants,
    private_netns,
)
from baselines import Baselines
from chain_under_test import Chain

XDP_PASS = 2
CLIENT, SERVER, SPORT, DPORT = "10.0.0.1", "172.30.56.105", 40000, 8080
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8:1::105"
TCP, UDP, ICMP = 6, 17, 1
# counting up from here within 10.0.0.0/8, the first source is 10.0.0.0
BEFORE_TEN = "10.255.255.255"

#: So many packets at least in one measurement of random hits: else what is cold at its beginning
#: would show.
RANDOM_PACKETS = 1 << 18
#: The table size at which all is measured; at the others, what the size matters for.
MAIN_SIZE = 1 << 17
#: Bytes of the long segments whose checksum is verified.
LONG = 1400

#: Highest ratios to the floor, to a bare insert and to the forerunner's cost model, by variant and
#: what is measured. A packet over IPv6 has a floor of its own, with a key of 40 bytes.
GOALS = {
    ("chain", "TCP"): 2.0,
    ("fused", "TCP"): 1.5,
    ("chain", "TCP over IPv6"): 2.0,
    ("fused", "TCP over IPv6"): 1.7,
    ("chain", "new"): 2.0,
    ("fused", "new"): 2.0,
    ("chain", "random"): 1.25,
    ("fused", "random"): 1.25,
    ("fused", "cost model"): 0.25,
}
#: Most bytes of kernel memory for an IPv4 connection.
GOAL_MEMORY = 192


@dataclasses.dataclass(frozen=True)
class Packet:
    """A packet of an established flow.

    :ivar protocol: its number.
    :ivar floor: the floor's program for it.
    :ivar fused: whether the fused variant treats it otherwise than the chain.
    """

    frame: bytes
    protocol: int
    v6: bool = False
    fused: bool = True

    @property
    def floor(self) -> str:
        return "floor over IPv6" if self.v6 else "floor"


ESTABLISHED = {
    "TCP": Packet(frames.tcp(CLIENT, SPORT, SERVER, DPORT, frames.ACK, 1001, 5001), TCP),
    "UDP": Packet(frames.udp(CLIENT, SPORT, SERVER, DPORT, b"bench"), UDP),
    "ICMP": Packet(frames.echo(CLIENT, SERVER, 8, SPORT, b"bench"), ICMP, fused=False),
    "TCP over IPv6": Packet(
        frames.tcp(CLIENT6, SPORT, SERVER6, DPORT, frames.ACK, 1001, 5001), TCP, v6=True
    ),
    "UDP over IPv6": Packet(frames.udp(CLIENT6, SPORT, SERVER6, DPORT, b"bench"), UDP, v6=True),
}
LONG_TCP = Packet(
    frames.tcp(
        CLIENT, SPORT, SERVER, DPORT, frames.ACK, 1001, 5001, data=bytes(range(200)) * (LONG // 200)
    ),
    TCP,
)


def opening(client: str, server: str) -> tuple[tuple[str, bytes], ...]:
    """Return (hook, frame) of what opens a TCP connection and a UDP flow."""
    return (
        ("ingress", frames.tcp(client, SPORT, server, DPORT, frames.SYN, 1000)),
        ("egress", frames.tcp(server, DPORT, client, SPORT, frames.SYN | frames.ACK, 5000, 1001)),
        ("ingress", frames.tcp(client, SPORT, server, DPORT, frames.ACK, 1001, 5001)),
        ("ingress", frames.udp(client, SPORT, server, DPORT, b"bench")),
        ("egress", frames.udp(server, DPORT, client, SPORT, b"bench")),
    )


OPENING = (
    *opening(CLIENT, SERVER),
    *opening(CLIENT6, SERVER6),
    ("ingress", ESTABLISHED["ICMP"].frame),
    ("egress", frames.echo(SERVER, CLIENT, 0, SPORT, b"bench")),
)
#: What makes streams of the UDP flows, sent so many seconds later.
STREAMING = tuple(("ingress", ESTABLISHED[kind].frame) for kind in ("UDP", "UDP over IPv6"))
STREAM_SECONDS = 2.2


@dataclasses.dataclass(frozen=True)
class New:
    """A packet that opens a flow, and what counts its source up.

    :ivar insert: the program that does no more than a bare insert.
    """

    frame: bytes
    driver: str = "drive_new"
    insert: str = "floor_insert"

    @property
    def peer(self) -> str:
        return "bare insert over IPv6" if self.insert == "floor_insert6" else "bare insert"


NEW = {
    "UDP": New(frames.udp(BEFORE_TEN, SPORT, SERVER, DPORT, b"a benchmark frame")),
    "TCP": New(frames.tcp(BEFORE_TEN, SPORT, SERVER, DPORT, frames.SYN, 1000)),
    "TCP over IPv6": New(
        frames.tcp(CLIENT6, SPORT, SERVER6, DPORT, frames.SYN, 1000), "drive_new6", "floor_insert6"
    ),
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
    bpf.prog_test_run(program, frame, repeat=count, flags=bpf_constants.BPF_F_TEST_XDP_LIVE_FRAMES)
    after = bpf.prog_info(program)
    harness.expect("runs", after.run_cnt - before.run_cnt, count)
    return (after.run_time_ns - before.run_time_ns) / count


def tracked(under_test: Chain, packet: Packet, method: Method, count: int) -> float:
    """Measure ``count`` packets of an established flow, and see that the chain counted each of them
    and kept the state.
    """
    before, dummy = under_test.flow(packet.protocol, packet.v6)
    value = method(under_test.hooks["ingress"], packet.frame, count)
    after, ctl = under_test.flow(packet.protocol, packet.v6)
    harness.expect("packets counted", after - before, count)
    harness.expect("reply seen", bool(ctl & chain_layout.CTL_SEEN_REPLY), True)
    harness.expect("assured", bool(ctl & chain_layout.CTL_ASSURED), packet.protocol != ICMP)
    if packet.protocol == TCP:
        harness.expect(
            "TCP flow: state", chain_states.TCP_STATES[ctl & chain_layout.CTL_STATE], "ESTABLISHED"
        )
    return value


def open_flows(chains: c.Collection[Chain]) -> None:
    """Bring the flows up in the chains, those of UDP until they are streams; no frame may come out
    changed.
    """
    for frames_of_one in (OPENING, STREAMING):
        for under_test in chains:
            for hook, frame in frames_of_one:
                harness.expect(
                    "frame after the chain", once(under_test.hooks[hook], frame).data_out, frame
                )
        if frames_of_one is OPENING:
            time.sleep(STREAM_SECONDS)


def open_floor(base: Baselines) -> None:
    """Put their like into the floor's tables."""
    for packet in ESTABLISHED.values():
        if packet.protocol != ICMP:
            once(base.programs["floor_insert6" if packet.v6 else "floor_insert"], packet.frame)


def established(
    variants: c.Mapping[str, Chain],
    base: Baselines,
    name: str,
    method: Method,
    count: int,
    rounds: int,
) -> list[harness.Row]:
    """Measure one packet of a flow that is there."""
    frame, frame6 = ESTABLISHED["TCP"].frame, ESTABLISHED["TCP over IPv6"].frame
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        "no-op": lambda: method(base.programs["noop"], frame, count),
        "floor": lambda: method(base.programs["floor_hit"], frame, count),
        "floor over IPv6": lambda: method(base.programs["floor_hit6"], frame6, count),
    }
    ours = [
        (kind, variant)
        for kind, packet in ESTABLISHED.items()
        for variant in variants
        if variant == "chain" or packet.fused
    ]
    for kind, variant in ours:
        cases[f"{kind}, {variant}"] = functools.partial(
            tracked, variants[variant], ESTABLISHED[kind], method, count
        )
    if method is live:
        cases["cost model"] = lambda: method(base.programs["model_0_entry"], frame, count)
    got = harness.interleave(cases, rounds)
    rows = [
        harness.Row("packet", f"{floor} ({name})", "ns", got[floor], "no-op", got["no-op"])
        for floor in ("floor", "floor over IPv6")
    ]
    for kind, variant in ours:
        case, floor = f"{kind}, {variant}", ESTABLISHED[kind].floor
        rows.append(
            harness.Row(
                "packet",
                f"established {case} ({name})",
                "ns",
                got[case],
                floor,
                got[floor],
                GOALS.get((variant, kind)),
            )
        )
        if variant == "fused":
            rows.append(
                harness.Row(
                    "packet",
                    f"established {case} ({name})",
                    "ns",
                    got[case],
                    "chain",
                    got[f"{kind}, chain"],
                )
            )
    if method is live:
        for variant in variants:
            goal = GOALS.get((variant, "cost model"))
            rows.append(
                harness.Row(
                    "packet",
                    f"established TCP, {variant} ({name})",
                    "ns",
                    got[f"TCP, {variant}"],
                    "cost model",
                    got["cost model"],
                    goal,
                )
            )
    return rows


def checksums(modes: c.Mapping[str, Chain], count: int, rounds: int) -> list[harness.Row]:
    """Measure what verifying the checksum of a long segment costs; the modes are chains by what
    they take for right.
    """
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        mode: functools.partial(tracked, under_test, LONG_TCP, repeat, count)
        for mode, under_test in modes.items()
    }
    got = harness.interleave(cases, rounds)
    return [
        harness.Row(
            "packet",
            f"established TCP with {LONG} B, chain, checksum {mode} (repeat)",
            "ns",
            got[mode],
            "checksum off",
            got["off"],
        )
        for mode in modes
        if mode != "off"
    ]


class Driven:
    """A ``drive_*`` program in front of a target; the frame that it steps on is kept from one
    measurement to the next.
    """

    def __init__(self, base: Baselines, driver: str, target: int, frame: bytes) -> None:
        self._base, self._driver, self._target, self._frame = (
            base,
            base.programs[driver],
            target,
            frame,
        )

    def __call__(self, count: int) -> float:
        self._base.drive(self._target)
        run = once(self._driver, self._frame, count)
        self._frame = run.data_out
        return run.duration_ns


def new_flows(
    variants: c.Mapping[str, Chain], base: Baselines, size: int, count: int, rounds: int
) -> list[harness.Row]:
    """Measure packets that each open a flow, in tables that are full after the first ``size`` of
    them.
    """

    def counted(under_test: Chain, drive: Driven) -> float:
        before = under_test.counters()
        value = drive(count)
        after = under_test.counters()
        for counter in ("created", "tracked"):
            harness.expect(f"new flows: {counter}", after[counter] - before[counter], count)
        return value

    kinds = {
        kind: new for kind, new in NEW.items() if size == MAIN_SIZE or new.driver == "drive_new"
    }
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {}
    for kind, new in kinds.items():
        cases.setdefault(
            new.peer,
            functools.partial(
                Driven(base, new.driver, base.programs[new.insert], new.frame), count
            ),
        )
        for variant, under_test in variants.items():
            drive = Driven(base, new.driver, under_test.hooks["ingress"], new.frame)
            cases[f"{kind}, {variant}"] = functools.partial(counted, under_test, drive)
    for case in cases.values():  # fill the tables first: from then on each insert evicts
        for dummy in range(-(-size // count)):
            case()
    got = harness.interleave(cases, rounds)
    rows = []
    for kind, new in kinds.items():
        for variant in variants:
            name = f"new {kind} flow, {variant}, table {harness.amount(size)}"
            rows.append(
                harness.Row(
                    "packet",
                    name,
                    "ns",
                    got[f"{kind}, {variant}"],
                    new.peer,
                    got[new.peer],
                    GOALS[variant, "new"],
                )
            )
    return rows


def random_hits(
    variants: c.Mapping[str, Chain], base: Baselines, flows: int, rounds: int
) -> list[harness.Row]:
    """Measure packets of ``flows`` established flows in an order of their own, each flow in its
    turn.
    """
    turns = max(1, RANDOM_PACKETS // flows)
    fill = Driven(
        base,
        "drive_new",
        base.programs["floor_insert"],
        frames.tcp(BEFORE_TEN, SPORT, SERVER, DPORT, frames.ACK, 1001, 5001),
    )
    tables.clear(base.flows)
    fill(flows)
    frame = frames.tcp("10.0.0.0", SPORT, SERVER, DPORT, frames.ACK, 1001, 5001)
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        "floor": functools.partial(
            Driven(base, "drive_random", base.programs["floor_hit"], frame), turns * flows
        )
    }
    before = {}
    for variant, under_test in variants.items():
        key, entry = under_test.raw_flow(TCP)
        tables.clear(under_test.table)
        tables.fill(under_test.table, flows, key, entry)
        before[variant] = tables.packets(under_test.table)
        cases[variant] = functools.partial(
            Driven(base, "drive_random", under_test.hooks["ingress"], frame), turns * flows
        )
    got = harness.interleave(cases, rounds)
    tables.clear(base.flows)  # a new flow is to find none of its like
    for variant, under_test in variants.items():
        after = tables.packets(under_test.table)
        harness.expect("flows in the table", len(after), flows)
        harness.expect(
            "packets of each flow", {after[k] - before[variant][k] for k in after}, {rounds * turns}
        )
        tables.clear(under_test.table)
    return [
        harness.Row(
            "packet",
            f"random hit in {harness.amount(flows)} TCP flows, {variant}",
            "ns",
            got[variant],
            "floor",
            got["floor"],
            GOALS[variant, "random"],
        )
        for variant in variants
    ]


def memory(under_test: Chain, size: int) -> c.Iterator[harness.Row]:
    """Tell what a flow takes in either table."""
    for table, name, goal in (
        (under_test.table, "a flow", GOAL_MEMORY),
        (under_test.table6, "an IPv6 flow", None),
    ):
        sample = harness.Sample((under_test.bytes_per_flow(table),))
        yield harness.Row(
            "packet",
            f"memory of {name}, table {harness.amount(size)}",
            "B",
            sample,
            goal=goal,
            absolute=True,
        )


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure everything; one table size after the other."""
    counts, rounds = options.pick((500_000, 100_000), (100_000, 30_000)), options.pick(15, 3)
    with harness.one_cpu():
        for size in options.pick((MAIN_SIZE, 1 << 11, 1 << 21), (MAIN_SIZE,)):
            flows, size6 = size // 2, min(size, MAIN_SIZE)
            with contextlib.ExitStack() as stack:
                base = stack.enter_context(contextlib.closing(Baselines(size, size6, flows)))
                variants = {
                    name: stack.enter_context(contextlib.closing(Chain(size, size6, fused=fused)))
                    for name, fused in (("chain", False), ("fused", True))
                }
                open_flows(variants.values())
                open_floor(base)
                if size == MAIN_SIZE:
                    yield from established(variants, base, "repeat", repeat, counts[0], rounds)
                if size == MAIN_SIZE and not options.quick:
                    with contextlib.closing(Chain(1 << 10, checksum="off")) as unverified:
                        open_flows([unverified])
                        yield from checksums(
                            {"offload": variants["chain"], "off": unverified}, counts[0], rounds
                        )
                if size == MAIN_SIZE:
                    with private_netns.anonymous(), bpf.closing(bpf_batch.enable_stats()):
                        yield from established(variants, base, "live", live, counts[1], rounds)
                yield from random_hits(variants, base, flows, options.pick(7, 3))
                yield from memory(variants["chain"], size)
                yield from new_flows(
                    variants, base, size, options.pick(1_000_000, 100_000), options.pick(7, 3)
                )
