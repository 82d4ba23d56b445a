# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Building, re-running and removing labs of N namespaces around a router, next to the `ip` command in two ways.

All three make the same lab, in namespaces of their own: a router and N - 1 hosts, each joined to it by a veth pair with an
address at both ends, everything up, a default route in each host, forwarding in the router. Afterwards it is pinged across.

- *script*: a shell script with one `ip` command a line, as people write it.
- *batch*: `ip -batch`, one call for each namespace.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import os
import secrets
import time
import typing as t

import harness
from ansible_collections.ebpf.conntrack.plugins.module_utils import netlink, topology

#: Highest ratio to the time that `ip -batch` takes to build.
GOAL_BUILD, GOAL_AGAIN = 1.0, 0.3


class Plan:
    """Names and addresses of one lab; a random prefix keeps it off everything else on the host."""

    def __init__(self, count: int) -> None:
        self.prefix = f"eb{secrets.token_hex(2)}"
        self.router = f"{self.prefix}-router"
        self.hosts = [f"{self.prefix}-{i}" for i in range(count - 1)]
        self.namespaces = [self.router, *self.hosts]

    @staticmethod
    def addresses(i: int) -> tuple[str, str]:
        """Return the addresses of the router's end and of the host's end of link ``i``, each a /30."""
        net = (10 << 24) + (i << 2)
        router, host = (".".join(str(byte) for byte in (net + end).to_bytes(4, "big")) for end in (1, 2))
        return router, host

    def commands(self) -> dict[str, list[str]]:
        """Return the `ip` commands of each namespace, the router's first."""
        router = ["link set lo up"]
        for i, host in enumerate(self.hosts):
            router += [f"link add l{i} type veth peer name wan netns {host}", f"addr add {self.addresses(i)[0]}/30 dev l{i}", f"link set l{i} up"]
        found = {self.router: router}
        for i, host in enumerate(self.hosts):
            gateway, own = self.addresses(i)
            found[host] = ["link set lo up", f"addr add {own}/30 dev wan", "link set wan up", f"route add default via {gateway}"]
        return found

    def description(self) -> dict[str, t.Any]:
        """Return the same lab as netns_lab's options."""
        found: dict[str, t.Any] = {"name": self.prefix, "router": self.router, "namespaces": [], "links": []}
        for i, host in enumerate(self.hosts):
            gateway, own = self.addresses(i)
            found["namespaces"].append({"name": host, "routes": [{"dst": "default", "via": gateway}]})
            ends = [{"name": f"l{i}", "addresses": [f"{gateway}/30"]}, {"name": "wan", "netns": host, "addresses": [f"{own}/30"]}]
            found["links"].append({"ends": ends})
        return found


def script(plan: Plan) -> None:
    """Build with one `ip` process a command."""
    lines = [f"ip netns add {name}" for name in plan.namespaces]
    lines += [f"ip -n {name} {command}" for name, commands in plan.commands().items() for command in commands]
    harness.command(["sh", "-e"], "\n".join([*lines, forwarding(plan)]))


def batch(plan: Plan) -> None:
    """Build with one `ip -batch` process a namespace."""
    harness.command(["ip", "-batch", "-"], "\n".join(f"netns add {name}" for name in plan.namespaces))
    for name, commands in plan.commands().items():
        harness.command(["ip", "-n", name, "-batch", "-"], "\n".join(commands))
    harness.command(["sh", "-e"], forwarding(plan))


def forwarding(plan: Plan) -> str:
    return f"ip netns exec {plan.router} sysctl -qw net.ipv4.conf.all.forwarding=1"


def settle() -> None:
    """Wait until the kernel has taken apart every namespace removed so far.

    It does that in the background, one after the other: so the near end of a veth pair whose far end stands in a namespace
    removed last goes away last.
    """
    name = f"eb{secrets.token_hex(3)}"
    harness.command(["ip", "-batch", "-"], f"netns add {name}\nlink add {name} type veth peer name far netns {name}\nnetns del {name}\n")
    while os.path.exists(f"/sys/class/net/{name}"):
        time.sleep(0.005)


def remove(plan: Plan) -> None:
    """Remove what is there of a lab, with one `ip -batch` process, and wait until it is gone."""
    there = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    harness.command(["ip", "-batch", "-"], "\n".join(f"netns del {name}" for name in plan.namespaces if name in there))
    settle()


def check(plan: Plan) -> None:
    """Hold a lab to what was ordered: every namespace, and a ping from the first host through the router to the last."""
    harness.expect("namespaces missing", sorted(set(plan.namespaces) - set(os.listdir("/run/netns"))), [])
    last = len(plan.hosts) - 1
    target = plan.addresses(last)[1 if last else 0]
    harness.command(["ip", "netns", "exec", plan.hosts[0], "ping", "-qc1", "-W2", target])


@contextlib.contextmanager
def fresh(count: int) -> c.Iterator[Plan]:
    """Give a plan, and leave nothing of it behind."""
    plan = Plan(count)
    try:
        yield plan
    finally:
        remove(plan)


def peer(name: str, build: c.Callable[[Plan], None], count: int) -> dict[str, float]:
    """Time a peer's build and removal."""
    with fresh(count) as plan:
        times = {f"{name} build": harness.seconds(lambda: build(plan))}
        check(plan)
        times[f"{name} remove"] = harness.seconds(lambda: remove(plan))
    return times


def converge(plan: Plan, present: bool) -> int:
    """Run the library of netns_lab, from the options to the result; return the number of steps that it took."""
    want = topology.parse(plan.description()) if present else topology.absent(plan.prefix)
    return len(netlink.converge(want).plan)


def ours(count: int) -> dict[str, float]:
    """Time our own build, second run and removal."""
    with fresh(count) as plan:
        times = {"build": harness.seconds(lambda: converge(plan, True))}
        check(plan)
        times["again"] = harness.seconds(lambda: harness.expect("steps of a second run", converge(plan, True), 0))
        times["remove"] = harness.seconds(lambda: converge(plan, False)) + harness.seconds(settle)
        harness.expect("namespaces left", sorted(set(plan.namespaces) & set(os.listdir("/run/netns"))), [])
    return times


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure each size; the ones that take long in fewer rounds."""
    for count, rounds in options.pick(((2, 7), (100, 5), (500, 3)), ((2, 3), (100, 2))):
        got = harness.interleave(
            {
                "ours": lambda n=count: ours(n),  # type: ignore[misc]
                "batch": lambda n=count: peer("batch", batch, n),  # type: ignore[misc]
                "script": lambda n=count: peer("script", script, n),  # type: ignore[misc]
            },
            rounds,
        )
        first, again = (GOAL_BUILD, GOAL_AGAIN) if count == 100 else (None, None)
        name = f"lab of {count} namespaces"
        yield harness.Row("lab", f"{name}: build", "s", got["build"], "ip -batch", got["batch build"], first)
        yield harness.Row("lab", f"{name}: build", "s", got["build"], "script of ip", got["script build"])
        yield harness.Row("lab", f"{name}: second run", "s", got["again"], "ip -batch, first", got["batch build"], again)
        yield harness.Row("lab", f"{name}: remove", "s", got["remove"], "ip -batch", got["batch remove"])
