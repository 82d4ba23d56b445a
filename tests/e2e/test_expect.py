# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of expect in a lab with both families, held against a chain that works, one that does
not see, and traffic that does not arrive.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, netns
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import expectation, expectation_run
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import observe as lab_observe
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import CLIENT, PORT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_playbooks import Playbooks, playbooks

__all__ = ["playbooks"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NETS = {"client": "2001:db8:1", "server": "2001:db8:2"}
SERVER6 = f"{NETS['server']}::2"


@pytest.fixture
def both(wire: Wire) -> c.Iterator[Wire]:
    """The lab with IPv6 besides."""
    ends = [
        (where, f"ns{number}-wan", f"ns{number}-lan", net)
        for number, (where, net) in enumerate(NETS.items(), 1)
    ]
    for where, wan, lan, net in ends:
        for command in (
            f"-n {wire.ns(where)} addr add {net}::2/64 dev {wan} nodad",
            f"-n {wire.ns('router')} addr add {net}::1/64 dev {lan} nodad",
            f"-n {wire.ns(where)} -6 route replace default via {net}::1",
        ):
            subprocess.run(["ip", *command.split()], check=True)
    yield wire
    for where, wan, lan, net in ends:
        subprocess.run(
            ["ip", "-n", wire.ns(where), "addr", "del", f"{net}::2/64", "dev", wan], check=True
        )
        subprocess.run(
            ["ip", "-n", wire.ns("router"), "addr", "del", f"{net}::1/64", "dev", lan], check=True
        )


def check(wire: Wire, *items: dict[str, t.Any]) -> list[expectation_run.Outcome]:
    """Check lines, whose namespaces are the lab's by their short names."""
    lines = expectation.parse(
        [
            {
                kind: value if kind == "untracked" else {"within": 2, **value, **ends(wire, value)}
                for kind, value in i.items()
            }
            for i in items
        ]
    )
    return expectation_run.check(lines, wire.chain.paths.pin_root)


def ends(wire: Wire, fields: dict[str, t.Any]) -> dict[str, str]:
    return {
        "from": wire.ns(fields.get("from", "client")),
        "to": wire.ns(fields.get("to", "server")),
    }


def flow(proto: str, state: str, port: int | None = PORT, **more: t.Any) -> dict[str, t.Any]:
    return {
        "flow": {"proto": proto, "state": state, **({} if port is None else {"port": port}), **more}
    }


MADE = [
    (proto, state)
    for proto, states in expectation.MADE.items()
    for state in states
    if (proto, state) != ("udp", "ESTABLISHED")
]


def test_every_state_that_is_made_is_reached_over_both_families(
    both: Wire, figure: c.Callable[[str, object], None]
) -> None:
    items = [
        *(
            flow(proto, state, family=family)
            for proto, state in MADE
            if not proto.startswith("icmp")
            for family in ("ipv4", "ipv6")
        ),
        *(flow(proto, "REPLIED", None) for proto in expectation.ECHO.values()),
        flow("udp", "ESTABLISHED", within=30),
        *({"ping": {"family": family}} for family in ("ipv4", "ipv6")),
        {"untracked": 0},
    ]
    outcomes = check(both, *items)
    assert all(one.passed for one in outcomes), "\n".join(
        f"{one.line.title}: {one.seen}" for one in outcomes
    )
    flows = [
        (record["family"], record["proto"], record["orig"]["dst"])
        for record in both.chain.records()
    ]
    assert len(flows) == len(outcomes) - 1 and {dst for family, dummy, dst in flows} == {
        SERVER,
        SERVER6,
    }
    assert sorted(one for one in flows if one[0] == "ipv4") == sorted(
        (one.family, one.proto, one.orig[1]) for one in both.kernel()
    )
    figure("lines of expect that hold over IPv4 and IPv6", f"{len(outcomes)} of {len(items)}")


def test_what_does_not_hold_is_told(both: Wire) -> None:
    both.attach("absent")
    try:
        unseen, ping = check(both, flow("udp", "REPLIED", within=0.2), {"ping": {}})
    finally:
        both.attach()
    assert (unseen.passed, ping.passed) == (False, True) and unseen.seen.startswith(
        "no such flow in the table after "
    )

    both.chain.flush()
    both.run(
        "server",
        "nft",
        "table inet wall { chain in { type filter hook input priority 0; meta l4proto { tcp, udp,"
        " icmp, icmpv6 } drop; }; }",
    )
    try:
        lines = [
            flow("tcp", "ESTABLISHED", within=0.3),
            flow("udp", "REPLIED", within=0.3),
            {"ping": {"family": "ipv6", "within": 0.3}},
        ]
        tcp, udp, ping = check(both, *lines)
    finally:
        both.run("server", "nft", "delete table inet wall")
    assert [one.passed for one in (tcp, udp, ping)] == [False] * 3
    assert tcp.seen.startswith("SYN_SENT with ") and tcp.seen.endswith(
        f"; no answer from {SERVER} within 0.3 s"
    )
    assert (
        udp.seen.startswith("NEW with ") and f"nothing arrived in {both.ns('server')}" in udp.seen
    )
    assert ping.seen == f"no answer from {SERVER6} within 0.3 s"
    assert "3 of 3 lines do not hold" in expectation_run.failures([tcp, udp, ping])

    both.udp("server", PORT)
    (taken,) = check(both, flow("udp", "REPLIED", within=0.2))
    assert (
        not taken.passed
        and f"port {PORT} of {both.ns('server')} is taken by another program" in taken.seen
    )


@contextlib.contextmanager
def translating(wire: Wire, chain_of_nat: str) -> c.Iterator[None]:
    """The router translates addresses."""
    wire.run("router", "nft", f"table ip nat {{ chain one {{ type nat hook {chain_of_nat}; }}; }}")
    assert "type nat" in wire.run("router", "nft", "list", "table", "ip", "nat")
    try:
        yield
    finally:
        wire.run("router", "nft", "delete table ip nat")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_server_behind_nat_is_said_to_have_answered(wire: Wire, proto: str) -> None:
    """The replies that the chain sees go to the router, so the flow never gets one; but the server
    was reached.
    """
    state = {"tcp": "ESTABLISHED", "udp": "REPLIED"}[proto]
    with translating(wire, "postrouting priority 100; oifname ns2-lan masquerade"):
        (one,) = check(wire, flow(proto, state, within=0.5))
    assert not one.passed and "no answer" not in one.seen and "nothing arrived" not in one.seen, (
        one.seen
    )
    assert (
        one.seen.startswith(("SYN_SENT with ", "NEW with "))
        and f"the server in {wire.ns('server')} was reached, by 172.30.56.1:" in one.seen
    ), one.seen
    assert f"and not by {CLIENT}:" in one.seen and "NAT" in one.seen


def test_one_that_answers_in_place_of_the_server_is_told(wire: Wire) -> None:
    other = PORT + 7
    redirect = f"prerouting priority -100; iifname ns1-lan tcp dport {PORT} redirect to :{other}"
    with (
        translating(wire, redirect),
        contextlib.closing(wire.open("router", socket.SOCK_STREAM)) as stranger,
    ):
        stranger.bind(("0.0.0.0", other))
        stranger.listen(1)
        (one,) = check(wire, flow("tcp", "ESTABLISHED", within=0.5))
    where = wire.ns("server")
    said = f"{SERVER} port {PORT} answered, but the connection did not arrive in {where}"
    assert not one.passed and said in one.seen, one.seen


def test_frames_that_stay_untracked_are_told(both: Wire) -> None:
    """A slot is emptied, so that what comes to it is not tracked."""
    with (
        bpf.closing(bpf.obj_get(both.chain.paths.map("jt"))) as jump,
        bpf.closing(bpf.obj_get(both.chain.paths.prog(chain_programs.SLOTS["prs_udp"]))) as stage,
        contextlib.ExitStack() as undo,
    ):
        slot = chain_programs.SLOTS["prs_udp"].to_bytes(4, "little")
        undo.callback(bpf.map_update, jump, slot, stage.to_bytes(4, "little"))
        bpf.map_delete(jump, slot)
        first, udp, second = check(
            both, {"untracked": 0}, flow("udp", "REPLIED", within=0.2), {"untracked": 1000}
        )
    assert (
        not first.passed
        and first.seen.startswith(f"{first.seen.split()[0]} untracked: no_slot ")
        and not udp.passed
        and second.passed
    )
    assert "; the chain counted meanwhile: untracked_no_slot " in udp.seen, udp.seen


def test_a_flow_that_others_make_is_waited_for(both: Wire) -> None:
    def later() -> None:
        time.sleep(0.3)
        both.connect().exchange()

    with contextlib.closing(both.open("client", socket.SOCK_DGRAM)):
        other = threading.Thread(target=later)
        other.start()
        waited, never = check(
            both,
            flow("tcp", "ESTABLISHED", None, make=False, within=20),
            flow("tcp", "SYN_SENT", PORT + 1, make=False, within=0.1),
        )
        other.join()
    assert waited.passed and never.seen.startswith("no such flow in the table")
    (state,) = check(both, flow("tcp", "CLOSE", make=False, within=0.1))
    assert not state.passed and state.seen.startswith("ESTABLISHED with ")


def test_nothing_is_sent_where_a_line_can_not_be_checked(both: Wire) -> None:
    good = flow("udp", "REPLIED")
    with pytest.raises(
        ConntrackError,
        match=(
            r"expect\[1\]\.flow\.to: .* is not valid: it is no namespace on this host: give one of "
        ),
    ):
        check(both, good, flow("udp", "REPLIED", to="nowhere"))
    with pytest.raises(ConntrackError, match="have no addresses of ipv6 in common"):
        check(both, good, flow("udp", "REPLIED", to="far", family="ipv6"))
    lines = expectation.parse([{"ping": ends(both, {})}, {"untracked": 0}])
    with pytest.raises(ConntrackError, match="no chain is pinned there"):
        expectation_run.check(lines, f"{both.chain.paths.pin_root}/none")
    assert both.chain.records() == []
    with netns.entered(both.ns("client")):
        assert CLIENT in lab_observe.unicast_addresses(None)


def test_the_playbook_checks_the_lines_of_a_topology(
    playbooks: Playbooks, tmp_path: pathlib.Path
) -> None:
    """Of both families; and it fails when a line does not hold, after all were checked."""
    tag = playbooks.tag
    given = json.loads(playbooks.variables.read_text("utf-8"))
    for number, link in enumerate(given["netns_lab_links"], 1):
        for end, host in zip(link["ends"], (2, 1)):
            end["addresses"].append(f"2001:db8:{number}::{host}/64")
        given["netns_lab_namespaces"][number - 1]["routes"].append(
            {"dst": "default", "via": f"2001:db8:{number}::1"}
        )
    del given["lab_client"], given["lab_server"]
    here = {"from": f"{tag}1", "to": f"{tag}2"}
    good: list[dict[str, t.Any]] = [
        {"ping": here},
        {"flow": {**here, "port": 80}},
        {"flow": {**here, "proto": "udp", "port": 53, "family": "ipv6"}},
        {"untracked": 0},
    ]

    def run(lines: list[dict[str, t.Any]], *argv: str, fails: bool = False) -> str:
        playbooks.variables.write_text(json.dumps({**given, "netns_lab_expect": lines}))
        return playbooks.run("lab", *argv, fails=fails)

    text = run(good, "--check")
    assert text.count("not checked in check mode") == 4 and playbooks.here() == set()
    text = run(good)
    assert (
        f"(item=ping from {tag}1 to {tag}2, is answered within 5 s: an answer from 172.30.56.105"
        " after " in text
    )
    assert (
        f"(item=udp from {tag}1 to {tag}2, over IPv6, port 53, is REPLIED within 5 s: REPLIED with"
        " 1 packet there and 1 back" in text
    )
    assert "Send traffic through it" in text and "skipping: [localhost]" in text, (
        "the default lab's traffic is left out"
    )
    bad = {"flow": {**here, "port": 80, "make": False, "state": "SYN_RECV", "within": 0.1}}
    text = run([bad, *good], fails=True)
    assert (
        text.count("failed: [localhost] (item=") == 1
        and text.count("ok: [localhost] => (item=") == 4
    ), text
    assert "is SYN_RECV within 0.1 s by itself: TIME_WAIT with " in text and "changed=0" in text, (
        text
    )
