# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What XDP on a router's veth links costs a TCP connection between two hosts of the same machine.

Without XDP such a connection is carried in segments of 64 KiB (GSO), which nobody ever cuts. A
native program on one end of a veth takes that from the other end (drivers/net/veth.c,
veth_xdp_set), so each packet is of the MTU's size: a cost of veth, which no network card has.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import socket
import threading

import harness
import lab
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    netdev,
    netns,
)
from chain_under_test import Chain

PORT = 5201
CHUNK = 1 << 20


@contextlib.contextmanager
def attached(
    ends: c.Iterable[tuple[str, str, int, str]],
) -> c.Iterator[dict[str, netdev.LinkFacts]]:
    """Attach programs while the block runs; give what is known of the interfaces, by namespace and
    name.

    :param ends: namespace, interface, program and mode of each.
    """
    with contextlib.ExitStack() as stack:
        found = {}
        for where, name, program, mode in ends:
            with netns.entered(where):
                found[f"{where}/{name}"] = facts = netdev.link_facts(name)
                stack.callback(
                    bpf.close,
                    netdev.link_create(program, facts.ifindex, flags=netdev.XDP_FLAGS[mode]),
                )
        yield found


def transfer(plan: lab.Plan, octets: int) -> float:
    """Send so many bytes over one connection from the first host to the second; return milliseconds
    a gigabit.
    """
    address = plan.addresses(1)[1]
    with contextlib.ExitStack() as stack:
        with netns.entered(plan.hosts[1]):
            listener = stack.enter_context(socket.create_server((address, PORT)))
        with netns.entered(plan.hosts[0]):
            client = stack.enter_context(socket.create_connection((address, PORT), 5))
        server = stack.enter_context(listener.accept()[0])
        got = 0

        def receive() -> None:
            nonlocal got
            buffer = bytearray(CHUNK)
            while count := server.recv_into(buffer):
                got += count

        reader = threading.Thread(target=receive)

        def work() -> None:
            reader.start()
            data = bytes(CHUNK)
            for dummy in range(octets // CHUNK):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            reader.join()

        taken = harness.seconds(work)
        harness.expect("bytes received", got, octets)
    return taken * 1e3 / (octets * 8 / 1e9)


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure one connection with each kind of program on the router's links."""
    octets, rounds = options.pick(1 << 29, 1 << 26), options.pick(5, 3)
    with lab.fresh(3) as plan, contextlib.ExitStack() as stack:
        lab.converge(plan, present=True)
        passing = stack.enter_context(bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "pass")))
        frags = stack.enter_context(
            bpf.closing(
                bpf.prog_load(
                    bpf.xdp_pass_insns(), "pass_frags", flags=bpf_constants.BPF_F_XDP_HAS_FRAGS
                )
            )
        )
        chains = {
            mode: stack.enter_context(
                contextlib.closing(Chain(1 << 10, fused=options.fused, forward=mode))
            )
            for mode in ("off", "established")
        }

        def router(program: int, other: int, mode: str) -> list[tuple[str, str, int, str]]:
            return [(plan.router, "l0", program, mode), (plan.router, "l1", other, mode)]

        def run(ends: list[tuple[str, str, int, str]]) -> float:
            with attached(ends):
                return transfer(plan, octets)

        def tracked(under_test: Chain, mode: str) -> float:
            before = under_test.counters()
            far = (
                [(host, "wan", passing, "native") for host in plan.hosts]
                if under_test is chains["established"]
                else []
            )
            with attached(
                router(under_test.hooks["ingress"], under_test.hooks["egress"], mode) + far
            ) as found:
                under_test.allow(
                    facts for name, facts in found.items() if name.startswith(plan.router)
                )
                value = transfer(plan, octets)
            after = under_test.counters()
            bad = {
                name: after[name] - before[name]
                for name in after
                if name.startswith(("invalid_", "untracked_no")) and name != "untracked_not_ip"
            }
            harness.expect("packets that were not tracked", sum(bad.values()), 0)
            if far:
                harness.expect(
                    "forwarded in XDP",
                    after["forwarded"] - before["forwarded"] > octets // 2000,
                    True,
                )
            return value

        cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
            "no XDP": lambda: run([]),
            "a native program that passes": lambda: run(router(passing, passing, "native")),
            "a native program that passes and takes fragments": lambda: run(
                router(frags, frags, "native")
            ),
            "a generic program that passes": lambda: run(router(passing, passing, "generic")),
            "the chain, native": lambda: tracked(chains["off"], "native"),
            "the chain, generic": lambda: tracked(chains["off"], "generic"),
            "the chain, forwarding": lambda: tracked(chains["established"], "native"),
        }
        got = harness.interleave(cases, rounds)
    for name, sample in got.items():
        if name != "no XDP":
            yield harness.Row(
                "stream", f"TCP over veth: {name}", "ms/Gb", sample, "no XDP", got["no XDP"]
            )
