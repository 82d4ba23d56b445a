# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a router does with a packet, from its interface to the next host's: the stack, the stack
with nf_conntrack, and the chain in each way.

A router in a namespace of its own, two veth pairs, static neighbours. UDP datagrams of 60 bytes are
made in place: BPF_PROG_TEST_RUN with live frames writes each one anew as if it had just come in,
and hands it to what is measured; XDP_PASS goes up the stack, which routes it, XDP_REDIRECT to the
other interface. The far end counts what arrives, in XDP, and drops it: every frame that was made
must have come there. All of it happens on one CPU, so the figure is the cost of the whole way, the
making and the counting included, which is the same for all.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import functools
import os
import struct
import time

import chain_under_test
import frames
import harness
import tables
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    netdev,
    private_netns,
)
from chain_under_test import Chain

SOURCE = harness.ROOT / "tests/bench/forward.c"
CLIENT, SERVER, SPORT, DPORT = "10.0.0.1", "172.30.56.105", 40000, 8080
FIRST = 10 << 24  # the clients are 10.0.0.0 and those after it
RULES = (
    "table ip tracked { chain every { type filter hook forward priority 0; ct state invalid drop;"
    " }; }"
)
#: Highest ratio of time to nf_conntrack's, of what is forwarded: 1.5 times its packets a second.
#: The first packet of a flow is the stack's.
GOAL = 1 / 1.5
NATIVE = netdev.XDP_FLAGS["native"]


class Router:
    """The namespace that the caller is in, made a router; close() lets go of the programs."""

    def __init__(self) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(chain_under_test.STUB)
        import bcc

        self._fds = contextlib.ExitStack()
        self._bcc = bcc.BPF(src_file=str(SOURCE), cflags=build_bcc.flags())
        self._fds.callback(self._bcc.cleanup)
        self.programs: dict[str, int] = {
            name: self._bcc.load_func(name, bcc.BPF.XDP, attach_type=bpf_constants.ATTACH_XDP).fd
            for name in ("drive", "sink", "pass", "redirect")
        }
        for name in (
            "net.ipv4.ip_forward=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
        ):
            harness.command(["sysctl", "-qw", name])
        for side, address in (("in", "10.255.255.1/8"), ("out", "172.30.56.1/24")):
            harness.command(
                ["ip", "link", "add", f"r-{side}", "type", "veth", "peer", "name", f"p-{side}"]
            )
            harness.command(["ip", "addr", "add", address, "dev", f"r-{side}"])
            for end in ("r", "p"):
                harness.command(["ip", "link", "set", f"{end}-{side}", "up"])
        self.links = {name: netdev.link_facts(name) for name in ("r-in", "r-out", "p-in", "p-out")}
        for name, program in (
            ("r-in", "pass"),
            ("r-out", "pass"),
            ("p-in", "pass"),
            ("p-out", "sink"),
        ):
            self._fds.callback(
                bpf.close,
                netdev.link_create(self.programs[program], self.links[name].ifindex, flags=NATIVE),
            )
        for side, host in (("out", SERVER), ("in", CLIENT)):
            harness.command(
                [
                    "ip",
                    "neigh",
                    "replace",
                    host,
                    "lladdr",
                    self.mac(f"p-{side}").hex(":"),
                    "dev",
                    f"r-{side}",
                    "nud",
                    "permanent",
                ]
            )

    def close(self) -> None:
        self._fds.close()

    def mac(self, name: str) -> bytes:
        """Return an interface's address."""
        return self.links[name].mac

    def received(self) -> int:
        """Return how many frames came to the far end."""
        return sum(
            int.from_bytes(one, "little")
            for one in bpf.percpu_value(self._bcc["received"].map_fd, 0, 8)
        )

    def send(self, target: int, count: int, clients: int, first: int = 0) -> float:
        """Send frames of so many clients, the one after the other, through a program; return ns a
        frame.
        """
        wanted = (
            self.mac("r-in") + self.mac("p-in") + struct.pack("=IIQ", FIRST + first, clients - 1, 0)
        )
        bpf.map_update(self._bcc["wanted"].map_fd, struct.pack("=I", 0), wanted)
        bpf.map_update(self._bcc["next"].map_fd, struct.pack("=I", 0), struct.pack("=i", target))
        frame = frames.udp(CLIENT, SPORT, SERVER, DPORT, b"a benchmark frame.")
        context = struct.pack("=6I", 0, len(frame), 0, self.links["r-in"].ifindex, 0, 0)
        before = self.received()
        start = time.perf_counter_ns()
        bpf.prog_test_run(
            self.programs["drive"],
            frame,
            repeat=count,
            ctx=context,
            flags=bpf_constants.BPF_F_TEST_XDP_LIVE_FRAMES,
        )
        taken = (time.perf_counter_ns() - start) / count
        deadline = time.monotonic() + 1
        while self.received() - before < count and time.monotonic() < deadline:
            time.sleep(0.001)
        harness.expect(
            "frames at the far end", count <= self.received() - before < count + 10, True
        )  # the kernel's own, such as router solicitations, besides
        return taken


def empty(under_test: Chain) -> None:
    """Empty the chain's tables: flows that are answered for two seconds are assured."""
    for table in (under_test.table, under_test.half_open):
        tables.clear(table)


def open_flows(under_test: Chain, clients: int) -> None:
    """Fill the chain's table with assured UDP flows of all clients."""
    empty(under_test)
    for hook, frame in (
        ("ingress", frames.udp(CLIENT, SPORT, SERVER, DPORT, b"a benchmark frame.")),
        ("egress", frames.udp(SERVER, DPORT, CLIENT, SPORT, b"a benchmark frame.")),
    ):
        harness.expect("verdict", bpf.prog_test_run(under_test.hooks[hook], frame).retval, 2)
    key, entry = under_test.raw_flow(17)
    fields = list(chain_layout.ENTRY.unpack(entry))
    fields[[name for name, dummy in chain_layout.ENTRY_FIELDS].index("ctl")] |= (
        chain_layout.CTL_ASSURED
    )
    empty(under_test)
    tables.fill(under_test.table, clients, key, chain_layout.ENTRY.pack(*fields))


def forwarded(under_test: Chain, router: Router, count: int, clients: int, first: int = 0) -> float:
    """Send frames through the chain; each must have been tracked, and forwarded here, but for one
    of a flow in five seconds, which is the stack's.
    """
    before = under_test.counters()
    value = router.send(under_test.hooks["ingress"], count, clients, first)
    after = under_test.counters()
    grown = {
        name: after[name] - before[name] for name in ("tracked", "forwarded", "forward_refresh")
    }
    harness.expect("tracked", grown["tracked"], count)
    harness.expect(
        "forwarded, or the stack's turn", grown["forwarded"] + grown["forward_refresh"], count
    )
    return value


class New:
    """Sends frames of clients that were never seen before; what is to track them has room for all,
    as nf_conntrack has, which refuses them when it is full.
    """

    def __init__(self, count: int) -> None:
        self._count, self._next = count, 0

    def __call__(self, send: c.Callable[[int, int, int], float]) -> float:
        self._next = (self._next + self._count) % (1 << 23)
        return send(self._count, 1 << 24, self._next)


def flush() -> None:
    """Empty nf_conntrack's table, whose size a namespace can not change."""
    harness.command(["conntrack", "-F"])


def compare(
    router: Router, passing: Chain, ours: Chain, count: int, clients: int, rounds: int
) -> dict[str, harness.Sample]:
    """Measure flows that are there already."""
    cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
        "ip_forward": lambda: router.send(router.programs["pass"], count, clients),
        "chain, then ip_forward": lambda: router.send(passing.hooks["ingress"], count, clients),
        "route and redirect alone": lambda: router.send(
            router.programs["redirect"], count, clients
        ),
        "forward": lambda: forwarded(ours, router, count, clients),
    }
    return harness.interleave(cases, rounds)


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure one flow, many, and one a packet; the peers that track are measured after the others,
    since a rule can not be switched off between runs.
    """
    count, rounds, many = (
        options.pick(200_000, 60_000),
        options.pick(7, 3),
        options.pick(1 << 17, 1 << 14),
    )
    with private_netns.anonymous(), harness.one_cpu(), contextlib.ExitStack() as stack:
        router = stack.enter_context(contextlib.closing(Router()))
        variants = {
            name: stack.enter_context(
                contextlib.closing(Chain(1 << 18, fused=options.fused, forward=mode))
            )
            for name, mode in (("off", "off"), ("established", "established"))
        }
        for under_test in variants.values():
            under_test.allow(router.links.values())
        sizes = {"1 flow": 1, "many flows": many}
        got: dict[str, dict[str, harness.Sample]] = {}
        for name, clients in sizes.items():
            for mode in variants:
                open_flows(variants[mode], clients)
            got[name] = compare(
                router, variants["off"], variants["established"], count, clients, rounds
            )
        fresh = New(count // 2)

        def new_for_the_chain() -> float:
            empty(variants["off"])
            return fresh(functools.partial(router.send, variants["off"].hooks["ingress"]))

        new = {
            "ip_forward": lambda: router.send(router.programs["pass"], count // 2, 1 << 23),
            "chain, then ip_forward": new_for_the_chain,
        }
        got["new flows"] = harness.interleave(new, rounds)
        harness.command(["nft", "-f", "-"], text=RULES)
        for name, clients in sizes.items():
            flush()
            router.send(router.programs["pass"], max(clients, 1), clients)
            got[name] |= harness.interleave(
                {
                    "nf_conntrack": functools.partial(
                        router.send, router.programs["pass"], count, clients
                    ),
                    "forward": functools.partial(
                        forwarded, variants["established"], router, count, clients
                    ),
                },
                rounds,
            )
        stale = New(count // 2)

        def new_for_the_kernel() -> float:
            flush()
            return stale(functools.partial(router.send, router.programs["pass"]))

        got["new flows"] |= harness.interleave({"nf_conntrack": new_for_the_kernel}, rounds)
    for name, samples in got.items():
        label = name if name != "many flows" else f"{many} flows"
        for peer in (
            "nf_conntrack",
            "ip_forward",
            "chain, then ip_forward",
            "route and redirect alone",
        ):
            if peer in samples and "forward" in samples:
                goal = GOAL if peer == "nf_conntrack" else None
                yield harness.Row(
                    "forward",
                    f"{label}, forwarded in XDP",
                    "ns",
                    samples["forward"],
                    peer,
                    samples[peer],
                    goal,
                )
        passing = samples["chain, then ip_forward"]
        yield harness.Row(
            "forward",
            f"{label}, tracked in XDP, then ip_forward",
            "ns",
            passing,
            "nf_conntrack",
            samples["nf_conntrack"],
        )
