# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labs in the kernel: building, drift, foreign objects, and the record of sysctls; see
test_faults.py for broken runs.

Each test lives in a network namespace of its own that plays the host, so nothing here changes the
machine's network. What the library did is asked of ``ip`` and /proc/sys, not of the library.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import json
import os
import pathlib
import re
import secrets
import subprocess
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import netns, private_netns
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import apply as lab_apply
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import converge as lab_converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import kernel as lab_kernel
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import model as lab_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import namespaces, topology

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

FORWARDING = "net.ipv4.conf.all.forwarding"
#: What the lab changes on a host, as Linux comes; accept_redirects last, for forwarding changes it.
FRESH = {
    FORWARDING: "0",
    "net.ipv6.conf.all.forwarding": "0",
    "net.ipv4.conf.all.accept_redirects": "1",
}


def sh(command: str) -> str:
    """Run a command in the calling thread's namespace."""
    done = subprocess.run(
        ["/bin/sh", "-ec", command], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def sysctl(name: str) -> str:
    """Return a sysctl of the calling thread's namespace."""
    return pathlib.Path("/proc/sys", *name.split(".")).read_text(encoding="utf-8").strip()


def set_sysctl(name: str, value: str) -> None:
    """Set a sysctl of the calling thread's namespace."""
    pathlib.Path("/proc/sys", *name.split(".")).write_text(value, encoding="utf-8")


@contextlib.contextmanager
def fresh_host() -> c.Iterator[None]:
    """Enter a namespace that plays a host as it comes: a new namespace takes the machine's present
    IPv4 settings for its own.
    """
    with private_netns.anonymous():
        for name, value in FRESH.items():
            set_sysctl(name, value)
        sh("ip link set lo up")
        yield


@pytest.fixture
def p() -> c.Iterator[str]:
    """Enter a namespace that plays the host; yield a prefix for names, and clean up everything that
    begins with it.
    """
    prefix = f"t{secrets.token_hex(2)}"
    with fresh_host():
        try:
            yield prefix
        finally:
            for lab in (prefix, f"{prefix}b"):
                lab_converge.converge(topology.absent(lab))
            for name in os.listdir(netns.RUN_DIR):
                if name.startswith(prefix):
                    namespaces.remove(name)


def description(p: str, router: str | None = None) -> dict[str, t.Any]:
    """Return two namespaces behind a router, over IPv4 and IPv6."""
    return {
        "name": p,
        "router": router,
        "namespaces": [
            {
                "name": f"{p}{i}",
                "routes": [
                    {"dst": "default", "via": f"10.9.{i}.1"},
                    {"dst": "default", "via": f"2001:db8:{i}::1"},
                ],
            }
            for i in (1, 2)
        ],
        "links": [
            {
                "ends": [
                    {
                        "name": f"{p}w{i}",
                        "netns": f"{p}{i}",
                        "addresses": [f"10.9.{i}.2/24", f"10.9.{i}.3/24", f"2001:db8:{i}::2/64"],
                    },
                    {"name": f"{p}l{i}", "addresses": [f"10.9.{i}.1/24", f"2001:db8:{i}::1/64"]},
                ]
            }
            for i in (1, 2)
        ],
    }


def run(lab: dict[str, t.Any] | lab_model.Topology) -> list[str]:
    """Converge; return the steps as text."""
    want = lab if isinstance(lab, lab_model.Topology) else topology.parse(lab)
    return [f"{s.action} {s.kind} {s.name}" for s in lab_converge.converge(want).plan]


def assert_whole(p: str) -> None:
    """Assert with ping that the lab works, at the first packet, and with ip that it is marked."""
    for family, address in ((4, "10.9.2.2"), (6, "2001:db8:2::2")):
        sh(f"ip netns exec {p}1 ping -{family} -c 1 -W 1 {address}")
    for netns_name in (f"{p}1", f"{p}2"):
        assert (
            json.loads(sh(f"ip -n {netns_name} -j link show lo"))[0]["ifalias"]
            == f"ebpf.conntrack:{p}"
        )
    (link,) = json.loads(sh(f"ip -j link show {p}l1"))
    assert (link["ifalias"], link["group"], link["mtu"]) == (
        f"ebpf.conntrack:{p} {p}w1@{p}1",
        "default",
        1500,
    )


def assert_gone(p: str) -> None:
    """Assert that nothing of the lab is left."""
    assert p not in sh("ip link")
    assert not [name for name in os.listdir(netns.RUN_DIR) if name.startswith(p)]
    assert not pathlib.Path(lab_model.record_path(p)).exists()
    assert {name: sysctl(name) for name in FRESH} == FRESH


def indexes(p: str, *names: str) -> list[int]:
    """Return the ifindexes of links of the host."""
    return [json.loads(sh(f"ip -j link show {p}{name}"))[0]["ifindex"] for name in names]


def test_default_topology_is_the_described_one() -> None:
    """The commands that the lab stands for, held against what ``ip`` shows; in a namespace that
    plays the host.
    """
    with fresh_host():
        if netns.exists("ns1") or netns.exists("ns2"):
            pytest.skip("ns1 or ns2 is in use")
        try:
            run({})
            for i, net in ((1, "172.20.56"), (2, "172.30.56")):
                host = json.loads(sh(f"ip -j addr show dev ns{i}-lan"))[0]
                inside = json.loads(sh(f"ip -n ns{i} -j addr show dev ns{i}-wan"))[0]
                for link, last in ((host, 1), (inside, 105)):
                    (address,) = [a for a in link["addr_info"] if a["family"] == "inet"]
                    assert (address["local"], address["prefixlen"], address["broadcast"]) == (
                        f"{net}.{last}",
                        24,
                        f"{net}.255",
                    )
                    assert link["operstate"] == "UP"
                (route,) = json.loads(sh(f"ip -n ns{i} -j route show default"))
                assert (route["gateway"], route["dev"]) == (f"{net}.1", f"ns{i}-wan")
            assert (sysctl(FORWARDING), sysctl("net.ipv6.conf.all.forwarding")) == ("1", "1")
            assert not run({})
            sh("ip netns exec ns1 ping -c 1 -W 1 172.30.56.105")
        finally:
            run(topology.absent("lab"))
        assert "ns1" not in sh("ip link; ip netns")
        assert sysctl(FORWARDING) == "0"


@pytest.mark.parametrize("router", [None, "r"])
def test_build_rerun_absent(p: str, router: str | None) -> None:
    lab = description(p, router and f"{p}{router}")
    checked = [
        f"{s.action} {s.kind} {s.name}"
        for s in lab_converge.converge(topology.parse(lab), check=True).plan
    ]
    assert_gone(p)
    assert run(lab) == checked
    sh(
        f"ip netns exec {p}1 ping -c 1 -W 1 10.9.2.2; ip netns exec {p}1 ping -6 -c 1 -W 1"
        " 2001:db8:2::2"
    )
    assert run(lab) == []
    if router:
        assert sysctl(FORWARDING) == "0"
        assert p not in sh("ip link")
    assert run(topology.absent(p))
    assert_gone(p)
    assert run(topology.absent(p)) == []


DRIFTS = {
    "mtu": "ip -n {p}1 link set {p}w1 mtu 1400",
    "mtu that takes IPv6 off": "ip -n {p}1 link set {p}w1 mtu 1000",
    "mac": "ip link set {p}l1 address 02:11:11:11:11:11",
    "down inside": "ip -n {p}1 link set {p}w1 down",
    "down on the host": "ip link set {p}l1 down",
    "lo down": "ip -n {p}1 link set lo down",
    "arp off": "ip -n {p}1 link set {p}w1 arp off",
    "multicast off on the host": "ip link set {p}l1 multicast off",
    "address away": "ip -n {p}1 addr del 10.9.1.2/24 dev {p}w1",
    "addresses away": "ip -n {p}1 addr flush dev {p}w1",
    "address too much": (
        "ip -n {p}1 addr add 10.9.1.77/24 dev {p}w1; ip addr add 10.77.0.1/16 dev {p}l1"
    ),
    "address before ours": (
        "ip -n {p}1 addr flush dev {p}w1; ip -n {p}1 addr add 10.9.1.77/24 dev {p}w1; ip -n {p}1"
        " addr add 10.9.1.2/24 brd + dev {p}w1; ip -n {p}1 addr add 2001:db8:1::2/64 dev {p}w1"
    ),
    "broadcast": (
        "ip -n {p}1 addr del 10.9.1.2/24 dev {p}w1; ip -n {p}1 addr add 10.9.1.2/24 brd 10.9.1.254"
        " dev {p}w1"
    ),
    "prefix length": "ip addr del 10.9.1.1/24 dev {p}l1; ip addr add 10.9.1.1/25 brd + dev {p}l1",
    "IPv6 address away": "ip -n {p}1 addr del 2001:db8:1::2/64 dev {p}w1",
    "IPv6 address too much": "ip -n {p}1 addr add 2001:db8:1::77/64 dev {p}w1",
    "route away": "ip -n {p}1 route del default",
    "route elsewhere": "ip -n {p}1 route replace default via 10.9.1.99",
    "route too much": "ip -n {p}1 route add 10.88.0.0/16 via 10.9.1.1",
    "host's route too much": "ip route add 10.88.0.0/16 via 10.9.1.2",
    "IPv6 route away": "ip -n {p}1 -6 route del default",
    "IPv6 route elsewhere": "ip -n {p}1 -6 route replace default via 2001:db8:1::99 metric 1024",
    "IPv4 forwarding": "echo 0 > /proc/sys/net/ipv4/conf/all/forwarding",
    "IPv6 forwarding": "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    "VLAN tags beside the frames": (
        "ethtool -K {p}l1 txvlan on; ip netns exec {p}1 ethtool -K {p}w1 rxvlan on"
        " tx-vlan-stag-hw-insert on"
    ),
}


def picture(p: str) -> str:
    """Return what ``ip`` shows of links, addresses and routes, without what differs each time."""
    lines = []
    for where in ("", f"-n {p}1", f"-n {p}2"):
        lines += [
            sh(f"ip {where} -o link"),
            sh(f"ip {where} -o -br addr"),
            sh(f"ip {where} route; ip {where} -6 route"),
        ]
    lines += [sh(f"ethtool -k {p}l1 | grep vlan; ip netns exec {p}1 ethtool -k {p}w1 | grep vlan")]
    return "".join(lines)


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=list(DRIFTS))
def test_drift_is_repaired_and_nothing_else_touched(p: str, drift: str) -> None:
    lab = description(p)
    run(lab)
    before = sorted(picture(p).split())
    assert not re.search(r"vlan-\S*(offload|insert|parse): on", picture(p)), (
        "no tag travels beside a frame of a lab"
    )
    sh(drift.format(p=p))
    checked = [
        f"{s.action} {s.kind} {s.name}"
        for s in lab_converge.converge(topology.parse(lab), check=True).plan
    ]
    assert checked
    assert run(lab) == checked
    assert sorted(picture(p).split()) == before
    assert_whole(p)
    assert run(lab) == []


def test_adding_and_removing_a_link_leaves_the_others_alone(p: str) -> None:
    lab = description(p)
    run(lab)
    before = indexes(p, "l1", "l2")
    more = description(p)
    more["links"].append(
        {
            "ends": [
                {"name": f"{p}x", "netns": f"{p}1", "addresses": ["10.9.3.2/24"]},
                {"name": f"{p}y", "netns": f"{p}2"},
            ]
        }
    )
    steps = run(more)
    assert steps == [
        f"create link {p}x@{p}1 - {p}y@{p}2",
        f"create address 10.9.3.2/24 on {p}x@{p}1",
    ]
    assert indexes(p, "l1", "l2") == before
    assert run(lab) == [f"delete link {p}x@{p}1 - {p}y@{p}2"]
    assert indexes(p, "l1", "l2") == before
    assert_whole(p)


def test_a_namespace_deleted_by_hand_comes_back(p: str) -> None:
    lab = description(p)
    run(lab)
    (other,) = indexes(p, "l2")
    sh(f"ip netns del {p}1")
    run(lab)
    assert_whole(p)
    assert indexes(p, "l2") == [other]
    assert run(lab) == []


def test_a_link_with_another_other_end_is_made_anew(p: str) -> None:
    lab = description(p)
    run(lab)
    sh(f"ip -n {p}1 link set {p}w1 down; ip -n {p}1 link set {p}w1 name {p}z")
    run(lab)
    assert_whole(p)
    assert run(lab) == []


def test_absent_while_a_process_lives_in_a_namespace(
    p: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_kernel, "VANISH_SECONDS", 0.3)
    run(description(p))
    inside = netns.inode(f"{p}1")
    with subprocess.Popen(["ip", "netns", "exec", f"{p}1", "sleep", "60"]) as sleeper:
        try:
            deadline = time.monotonic() + 20
            # or it would not live there yet
            while os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != inside:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            run(topology.absent(p))
            assert_gone(p)
        finally:
            sleeper.kill()


# ---------------------------------------------------------------- what goes between the plan and it
def meanwhile(
    monkeypatch: pytest.MonkeyPatch, command: str, turn: int = 1, fail: bool = False
) -> None:
    """Run a command right before the ``turn``-th step of the next run; with ``fail`` the step after
    that one is refused.
    """
    real, seen = lab_apply.Apply.__call__, [0]

    def step(self: lab_apply.Apply, one: t.Any) -> t.Any:
        seen[0] += 1
        if seen[0] == turn:
            sh(command)
        if fail and seen[0] == turn + 1:
            raise ConntrackError("as the test wants it")
        return real(self, one)

    monkeypatch.setattr(lab_apply.Apply, "__call__", step)


#: What drifts, and what takes the object away before the step that is planned for it.
VANISHED = {
    "an address": ("ip address add 10.9.7.1/24 dev {p}l1", "ip address del 10.9.7.1/24 dev {p}l1"),
    "an address of IPv6": (
        "ip address add 2001:db8:7::1/64 dev {p}l1 nodad",
        "ip address del 2001:db8:7::1/64 dev {p}l1",
    ),
    "a route": (
        "ip -n {p}1 route add 10.55.0.0/16 via 10.9.1.1",
        "ip -n {p}1 route del 10.55.0.0/16",
    ),
    "a route of IPv6": (
        "ip -n {p}1 route add 2001:db8:55::/48 via 2001:db8:1::1",
        "ip -n {p}1 route del 2001:db8:55::/48",
    ),
    "a link": ("ip link set {p}l1 down; ip link set {p}l1 name {p}q", "ip link del {p}q"),
}


@pytest.mark.parametrize(("drift", "goes"), VANISHED.values(), ids=list(VANISHED))
def test_what_is_to_go_and_went_already(
    p: str, monkeypatch: pytest.MonkeyPatch, drift: str, goes: str
) -> None:
    run(description(p))
    sh(drift.format(p=p))
    plan = [
        f"{s.action} {s.kind} {s.name}"
        for s in lab_converge.converge(topology.parse(description(p)), check=True).plan
    ]
    assert plan[0].startswith("delete ")
    meanwhile(monkeypatch, goes.format(p=p))
    assert run(description(p)) == plan
    monkeypatch.undo()
    assert run(description(p)) == []
    assert_whole(p)


def test_an_address_that_went_with_its_link(p: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(description(p))
    sh(f"ip address add 10.9.7.1/24 dev {p}l1")
    meanwhile(monkeypatch, f"ip link del {p}l1")
    assert len(run(description(p))) == 1, "that was all that was to be done"
    monkeypatch.undo()
    assert any(step.startswith("create link ") for step in run(description(p)))
    assert_whole(p)


def routes_of(p: str) -> list[str]:
    """Return the routes of the first namespace that are no link's own."""
    shown = sh(f"ip -n {p}1 -4 route; ip -n {p}1 -6 route").splitlines()
    return sorted(line.strip() for line in shown if " via " in line)


def broken(p: str) -> None:
    with pytest.raises(ConntrackError, match="as the test wants it"):
        run(description(p))


def test_a_route_that_was_there_before_comes_back(p: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(description(p))
    for prefix, via in (("-4", "10.9.1.9"), ("-6", "2001:db8:1::9")):
        sh(f"ip -n {p}1 {prefix} route replace default via {via}")
    before = routes_of(p)
    meanwhile(monkeypatch, ":", fail=True)
    broken(p)
    assert routes_of(p) == before, "the first was set, and put back"
    monkeypatch.undo()
    assert [step.partition(" route")[0] for step in run(description(p))] == [
        "change",
        "change",
    ] and run(description(p)) == []


@pytest.mark.parametrize("kind", ["delete", "change"])
def test_a_route_that_went_by_itself_does_not_come_back(
    p: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run(description(p))
    whole = routes_of(p)
    if kind == "delete":
        for dst, via in (("10.55.0.0/16", "10.9.1.1"), ("10.56.0.0/16", "10.9.1.1")):
            sh(f"ip -n {p}1 route add {dst} via {via}")
        meanwhile(monkeypatch, f"ip -n {p}1 route del 10.55.0.0/16", fail=True)
    else:
        for prefix, via in (("-4", "10.9.1.9"), ("-6", "2001:db8:1::9")):
            sh(f"ip -n {p}1 {prefix} route replace default via {via}")
        meanwhile(monkeypatch, f"ip -n {p}1 -4 route del default", fail=True)
    broken(p)
    monkeypatch.undo()
    left = routes_of(p)
    assert not [line for line in left if "10.55.0.0" in line or "10.9.1.9" in line], left
    assert run(description(p)) and routes_of(p) == whole


FOREIGN = {
    "a namespace": ("ip netns add {p}1", "network namespace {p}1"),
    "a file": (
        "mkdir -p /run/netns; touch /run/netns/{p}1",
        "the file /run/netns/{p}1, which is no network namespace",
    ),
    "a directory": (
        "mkdir -p /run/netns/{p}1",
        "the directory /run/netns/{p}1, which is no network namespace",
    ),
    "a link": ("ip link add {p}l1 type veth peer name {p}q", "link {p}l1"),
}


@pytest.mark.parametrize(("make", "named"), FOREIGN.values(), ids=list(FOREIGN))
def test_foreign_objects_are_refused_by_name_and_left_alone(p: str, make: str, named: str) -> None:
    sh(make.format(p=p))
    for check in (True, False):
        with pytest.raises(ConntrackError) as caught:
            lab_converge.converge(topology.parse(description(p)), check=check)
        assert caught.value.facts["foreign"] == [named.format(p=p)]
        assert named.format(p=p) in caught.value.message
    assert not [
        name for name in os.listdir(netns.RUN_DIR) if name.startswith(p) and name != f"{p}1"
    ]
    assert sysctl(FORWARDING) == "0"
    assert run(topology.absent(p)) == []
    sh(
        f"test -e /run/netns/{p}1 || ip link show {p}l1; ! rmdir /run/netns/{p}1 2> /dev/null ||"
        " true"
    )


def test_another_labs_objects_are_foreign(p: str) -> None:
    run(description(p))
    other = {**description(p), "name": f"{p}b"}
    with pytest.raises(ConntrackError) as caught:
        lab_converge.converge(topology.parse(other))
    assert len(caught.value.facts["foreign"]) == 4
    assert run(topology.absent(f"{p}b")) == []
    assert_whole(p)


def test_a_foreign_route_of_the_host_is_refused(p: str) -> None:
    sh(
        f"ip link add {p}q type veth peer name {p}v; ip link set {p}q up; ip link set {p}v up; ip"
        f" route add 10.55.0.0/16 dev {p}q"
    )
    lab = {**description(p), "routes": [{"dst": "10.55.0.0/16", "via": "10.9.1.2"}]}
    with pytest.raises(ConntrackError, match=rf"route 10\.55\.0\.0/16 through {p}q on the host"):
        lab_converge.converge(topology.parse(lab))


def test_sysctls_come_back_as_they_were(p: str) -> None:
    sh(f"ip link add {p}q type veth peer name {p}v")
    names = [
        f"net.ipv4.conf.{p}q.forwarding",
        f"net.ipv6.conf.{p}q.forwarding",
        "net.ipv4.conf.all.accept_redirects",
        "net.ipv4.conf.all.log_martians",
    ]
    before = ["1", "1", "0", "0"]
    for name, value in zip(names, before, strict=True):
        set_sysctl(name, value)
    lab = {**description(p), "sysctls": {"net.ipv4.conf.all.log_martians": 1}}
    run(lab)
    assert (sysctl(FORWARDING), sysctl(names[3])) == ("1", "1")
    assert run(description(p)) == [
        f"change sysctl {names[3]}",
        f"change record {lab_model.record_path(p)}",
    ]
    assert sysctl(names[3]) == "0"
    run(topology.absent(p))
    assert [sysctl(name) for name in names] == before
    assert (sysctl(FORWARDING), sysctl("net.ipv4.conf.default.forwarding")) == ("0", "0")


def test_two_labs_share_a_sysctl_and_the_last_puts_it_back(p: str) -> None:
    run(description(p))
    other = {
        "name": f"{p}b",
        "namespaces": [{"name": f"{p}b1"}],
        "links": [{"ends": [{"name": f"{p}b1", "netns": f"{p}b1"}, {"name": f"{p}b2"}]}],
    }
    run(other)
    run(topology.absent(p))
    assert sysctl(FORWARDING) == "1"
    assert run(other) == []
    run(topology.absent(f"{p}b"))
    assert_gone(p)


def test_runs_of_one_lab_at_once(p: str) -> None:
    """Each waits for the one before, and plans from what that left."""

    def together(*wants: lab_model.Topology) -> list[int]:
        children = []
        for want in wants:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    lab_converge.converge(want)
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
        return [os.waitpid(pid, 0)[1] for pid in children]

    build, remove = topology.parse(description(p)), topology.absent(p)
    assert together(build, build, build) == [0, 0, 0]
    assert_whole(p)
    assert run(build) == []
    for _turn in range(5):
        assert together(build, remove, build, remove) == [0, 0, 0, 0]
    run(build)
    assert_whole(p)


def test_another_run_that_does_not_end_is_named(p: str) -> None:
    with lock.held(lab_model.RECORD_DIR, 0, make=0o755):
        want = topology.parse(description(p))
        with pytest.raises(
            ConntrackError, match=rf"another run has the lock: process {os.getpid()} "
        ):
            lab_converge.converge(want, patience=0)
        assert len(lab_converge.converge(want, check=True).plan) > 1, "looking needs no lock"
    assert_gone(p)


def test_sysctls_of_a_namespace(p: str) -> None:
    lab = description(p)
    wanted = {
        f"net.ipv4.conf.{p}w1.rp_filter": 2,
        "net.ipv4.tcp_rmem": "4096 131072 6291456",
        "net.ipv4.tcp_syncookies": False,
    }
    lab["namespaces"][0]["sysctls"] = wanted
    run(lab)
    with netns.entered(f"{p}1"):
        assert [sysctl(name).split() for name in wanted] == [
            ["2"],
            ["4096", "131072", "6291456"],
            ["0"],
        ]
    assert run(lab) == []
    del wanted["net.ipv4.tcp_syncookies"]
    assert run(lab) == [
        f"change sysctl net.ipv4.tcp_syncookies@{p}1",
        f"change record {lab_model.record_path(p)}",
    ]
    with netns.entered(f"{p}1"):
        assert sysctl("net.ipv4.tcp_syncookies") == "1"


def inside(p: str, **sysctls: t.Any) -> dict[str, t.Any]:
    """Return the lab with sysctls in the first namespace."""
    lab = description(p)
    lab["namespaces"][0]["sysctls"] = {name.format(p=p): value for name, value in sysctls.items()}
    return lab


#: Sysctls in the first namespace, what is done before the run, and what ``sysctl`` shows afterwards
#: where that is not what was written.
SETTLING: dict[str, tuple[dict[str, t.Any], str, dict[str, str]]] = {
    "hexadecimal": (
        {"net.ipv4.conf.{p}w1.rp_filter": "0x1", "net.ipv4.tcp_syncookies": "0x2"},
        "",
        {"net.ipv4.tcp_syncookies": "2"},
    ),
    "octal": ({"net.ipv4.ip_default_ttl": "0100"}, "", {"net.ipv4.ip_default_ttl": "64"}),
    "a list in another order": (
        {"net.ipv4.ip_local_reserved_ports": "8081,8080,7"},
        "",
        {"net.ipv4.ip_local_reserved_ports": "7,8080-8081"},
    ),
    "numbers of several words": (
        {"net.ipv4.ping_group_range": "0x0 0x7fffffff"},
        "",
        {"net.ipv4.ping_group_range": "0\t2147483647"},
    ),
    "no link-local address is made": ({"net.ipv6.conf.{p}w1.addr_gen_mode": 1}, "", {}),
    "nor on any link": (
        {"net.ipv6.conf.all.addr_gen_mode": 1, "net.ipv6.conf.{p}w1.addr_gen_mode": 0},
        "",
        {},
    ),
    "addresses went with IPv6": (
        {"net.ipv6.conf.all.disable_ipv6": 0},
        "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
        {},
    ),
    "one link lost IPv6": (
        {"net.ipv6.conf.{p}w1.disable_ipv6": 0},
        "echo 1 > /proc/sys/net/ipv6/conf/{p}w1/disable_ipv6",
        {},
    ),
    "a default that links take up": (
        {"net.ipv4.conf.{p}w1.arp_ignore": 0, "net.ipv4.conf.default.arp_ignore": 2},
        "",
        {},
    ),
    "redirects that forwarding turns round": (
        {"net.ipv4.conf.all.accept_redirects": 1, "net.ipv4.ip_forward": 1},
        "",
        {},
    ),
}


@pytest.mark.parametrize(("sysctls", "before", "shown"), SETTLING.values(), ids=list(SETTLING))
@pytest.mark.parametrize("first", [True, False], ids=["with the lab", "in a lab that is there"])
def test_one_run_is_enough_whatever_a_sysctl_changes_elsewhere(
    p: str, first: bool, sysctls: dict[str, t.Any], before: str, shown: dict[str, str]
) -> None:
    lab = inside(p, **sysctls)
    if not first or before:
        run(description(p))
    if before:
        sh(f"ip netns exec {p}1 sh -c '{before.format(p=p)}'")
    run(lab)
    assert run(lab) == []
    with netns.entered(f"{p}1"):
        for name, value in lab["namespaces"][0]["sysctls"].items():
            assert sysctl(name) == shown.get(
                name, str(int(value, 0) if isinstance(value, str) and name not in shown else value)
            ), name
    assert_whole(p)


def test_two_names_of_one_sysctl_are_refused(p: str) -> None:
    with pytest.raises(ConntrackError, match=r"the sysctl is there twice"):
        topology.parse(inside(p, **{"net.ipv4.ip_forward": 1, FORWARDING: 0}))


def test_settings_that_never_come_to_rest_are_named(
    p: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another one undid each write."""
    run(description(p))
    monkeypatch.setattr(lab_apply.Apply, "_set_sysctl", lambda self, args: None)
    with pytest.raises(
        ConntrackError,
        match=rf"does not come to rest: net\.ipv4\.tcp_syncookies@{p}1 had to be set 4 times",
    ) as caught:
        run(inside(p, **{"net.ipv4.tcp_syncookies": 0}))
    assert any("tcp_syncookies" in step["name"] for step in caught.value.facts["applied"])


@pytest.mark.parametrize(
    ("sysctls", "words"),
    [
        ({"net.ipv4.conf.all.nothing": 1}, "there is no such sysctl"),
        ({"net.ipv4.tcp_syncookies": "banana"}, "Invalid argument"),
        ({"net.core.bpf_jit_enable": 1}, "in a network namespace"),
    ],
)
def test_bad_sysctls_are_found_before_anything_is_changed(
    p: str, sysctls: dict[str, t.Any], words: str
) -> None:
    lab = description(p)
    lab["namespaces"][0]["sysctls"] = sysctls
    with pytest.raises(ConntrackError, match=words):
        lab_converge.converge(topology.parse(lab))
    assert_gone(p)
