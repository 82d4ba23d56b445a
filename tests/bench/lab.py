# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Building, re-running and removing labs of N namespaces around a router, next to a floor and to
the `ip` command in two ways.

All of them make the same lab, in namespaces of their own: a router and N - 1 hosts, each joined to
it by a veth pair with an address at both ends, everything up, a default route in each host,
forwarding in the router. Afterwards it is pinged across.

- *floor*: raw rtnetlink messages from one process that does nothing else (lab_floor.py).
- *script*: a shell script with one `ip` command a line, as people write it.
- *batch*: `ip -batch`, one call for each namespace.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import functools
import os
import resource
import secrets
import time
import typing as t

import harness
import lab_floor
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import converge as lab_converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology

#: Highest ratio of a build to the floor, and of a second run to the first one.
GOAL_FLOOR, GOAL_AGAIN = 2.0, 0.5
#: Highest seconds of a build, by the number of namespaces.
GOAL_SECONDS = {100: 0.25}
#: A script of `ip` commands is measured up to here: it takes a minute for a thousand namespaces.
SCRIPT_MOST = 100


class Plan:
    """Names and addresses of one lab; a random prefix keeps it off everything else on the host."""

    def __init__(self, count: int) -> None:
        self.prefix = f"eb{secrets.token_hex(2)}"
        self.router = f"{self.prefix}-router"
        self.hosts = [f"{self.prefix}-{i}" for i in range(count - 1)]
        self.namespaces = [self.router, *self.hosts]

    @staticmethod
    def addresses(i: int) -> tuple[str, str]:
        """Return the addresses of the router's end and of the host's end of link ``i``, each a
        /30.
        """
        net = (10 << 24) + (i << 2)
        router, host = (
            ".".join(str(byte) for byte in (net + end).to_bytes(4, "big")) for end in (1, 2)
        )
        return router, host

    def commands(self) -> dict[str, list[str]]:
        """Return the `ip` commands of each namespace, the router's first."""
        router = ["link set lo up"]
        for i, host in enumerate(self.hosts):
            router += [
                f"link add l{i} type veth peer name wan netns {host}",
                f"addr add {self.addresses(i)[0]}/30 dev l{i}",
                f"link set l{i} up",
            ]
        found = {self.router: router}
        for i, host in enumerate(self.hosts):
            gateway, own = self.addresses(i)
            found[host] = [
                "link set lo up",
                f"addr add {own}/30 dev wan",
                "link set wan up",
                f"route add default via {gateway}",
            ]
        return found

    def description(self) -> dict[str, t.Any]:
        """Return the same lab as netns_lab's options."""
        found: dict[str, t.Any] = {
            "name": self.prefix,
            "router": self.router,
            "namespaces": [],
            "links": [],
        }
        for i, host in enumerate(self.hosts):
            gateway, own = self.addresses(i)
            found["namespaces"].append(
                {"name": host, "routes": [{"dst": "default", "via": gateway}]}
            )
            ends = [
                {"name": f"l{i}", "addresses": [f"{gateway}/30"]},
                {"name": "wan", "netns": host, "addresses": [f"{own}/30"]},
            ]
            found["links"].append({"ends": ends})
        return found


@contextlib.contextmanager
def enough_files() -> c.Iterator[None]:
    """Let the process have a socket and a descriptor open for each namespace, as our own library
    does for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def script(plan: Plan) -> None:
    """Build with one `ip` process a command."""
    lines = [f"ip netns add {name}" for name in plan.namespaces]
    lines += [
        f"ip -n {name} {command}"
        for name, commands in plan.commands().items()
        for command in commands
    ]
    harness.command(["sh", "-e"], "\n".join([*lines, forwarding(plan)]))


def batch(plan: Plan) -> None:
    """Build with one `ip -batch` process a namespace."""
    harness.command(
        ["ip", "-batch", "-"], "\n".join(f"netns add {name}" for name in plan.namespaces)
    )
    for name, commands in plan.commands().items():
        harness.command(["ip", "-n", name, "-batch", "-"], "\n".join(commands))
    harness.command(["sh", "-e"], forwarding(plan))


def floor(plan: Plan) -> None:
    """Build with raw messages."""
    with enough_files():
        lab_floor.build(plan.router, {host: plan.addresses(i) for i, host in enumerate(plan.hosts)})


def forwarding(plan: Plan) -> str:
    return f"ip netns exec {plan.router} sysctl -qw net.ipv4.conf.all.forwarding=1"


def settle() -> None:
    """Wait until the kernel has taken apart every namespace removed so far.

    It does that in the background, one after the other: so the near end of a veth pair whose far
    end stands in a namespace removed last goes away last.
    """
    name = f"eb{secrets.token_hex(3)}"
    harness.command(
        ["ip", "-batch", "-"],
        f"netns add {name}\nlink add {name} type veth peer name far netns {name}\nnetns del"
        f" {name}\n",
    )
    while os.path.exists(f"/sys/class/net/{name}"):
        time.sleep(0.005)


def remove(plan: Plan) -> None:
    """Remove what is there of a lab, with one `ip -batch` process, and wait until it is gone."""
    there = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    harness.command(
        ["ip", "-batch", "-"],
        "\n".join(f"netns del {name}" for name in plan.namespaces if name in there),
    )
    settle()


def check(plan: Plan) -> None:
    """Hold a lab to what was ordered: every namespace, and a ping from the first host through the
    router to the last.
    """
    harness.expect(
        "namespaces missing", sorted(set(plan.namespaces) - set(os.listdir("/run/netns"))), []
    )
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
    """Run the library of netns_lab, from the options to the result; return the number of steps that
    it took.
    """
    want = topology.parse(plan.description()) if present else topology.absent(plan.prefix)
    return len(lab_converge.converge(want).plan)


def ours(count: int) -> dict[str, float]:
    """Time our own build, second run and removal."""
    with fresh(count) as plan:
        times = {"build": harness.seconds(lambda: converge(plan, True))}
        check(plan)
        times["again"] = harness.seconds(
            lambda: harness.expect("steps of a second run", converge(plan, True), 0)
        )
        times["remove"] = harness.seconds(lambda: converge(plan, False)) + harness.seconds(settle)
        harness.expect(
            "namespaces left", sorted(set(plan.namespaces) & set(os.listdir("/run/netns"))), []
        )
    return times


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure each size; the ones that take long in fewer rounds."""
    for count, rounds in options.pick(((2, 7), (100, 7), (500, 3), (1000, 3)), ((2, 3), (100, 2))):
        cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
            "ours": functools.partial(ours, count),
            "floor": functools.partial(peer, "floor", floor, count),
            "batch": functools.partial(peer, "batch", batch, count),
        }
        if count <= SCRIPT_MOST:
            cases["script"] = functools.partial(peer, "script", script, count)
        got = harness.interleave(cases, rounds)
        name, large = f"lab of {count} namespaces", count >= min(GOAL_SECONDS)
        yield harness.Row(
            "lab",
            f"{name}: build",
            "s",
            got["build"],
            "raw netlink",
            got["floor build"],
            GOAL_FLOOR if large else None,
        )
        yield harness.Row(
            "lab",
            f"{name}: build",
            "s",
            got["build"],
            "ip -batch",
            got["batch build"],
            GOAL_SECONDS.get(count),
            absolute=True,
        )
        if "script" in cases:
            yield harness.Row(
                "lab", f"{name}: build", "s", got["build"], "script of ip", got["script build"]
            )
        yield harness.Row(
            "lab",
            f"{name}: second run",
            "s",
            got["again"],
            "our build",
            got["build"],
            GOAL_AGAIN if large else None,
        )
        yield harness.Row(
            "lab", f"{name}: remove", "s", got["remove"], "ip -batch", got["batch remove"]
        )
