# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of expect: what is taken, what is refused and how, and what is chosen where something
is left out.
"""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import expectation, topology

PLACES = {
    "a": ["10.0.1.2", "2001:db8:1::2"],
    "b": ["10.0.2.2", "10.0.2.3"],
    "c": ["2001:db8:3::2"],
    "d": [],
}


def flow(**fields: t.Any) -> dict[str, t.Any]:
    """Return a line of a flow from a to b."""
    return {"flow": {"from": "a", "to": "b", "port": 80, **fields}}


def one(item: t.Any) -> expectation.Line:
    """Return a line, checked against PLACES."""
    (line,) = expectation.parse([item])
    return expectation.resolved(line, PLACES, "of the lab")


def test_what_is_left_out_is_chosen() -> None:
    assert one(flow()).as_dict() == {
        "flow": {
            "from": "a",
            "to": "b",
            "proto": "tcp",
            "port": 80,
            "state": "ESTABLISHED",
            "within": 5.0,
            "make": True,
            "family": "ipv4",
            "address": "10.0.2.2",
        }
    }
    assert one({"ping": {"from": "a", "to": "c"}}).as_dict() == {
        "ping": {
            "from": "a",
            "to": "c",
            "within": 5.0,
            "family": "ipv6",
            "address": "2001:db8:3::2",
        }
    }
    assert one({"untracked": 3}).as_dict() == {"untracked": 3}
    assert expectation.parse(None) == expectation.parse([]) == []


@pytest.mark.parametrize(
    "item",
    [
        flow(),
        flow(proto="udp", state="new", address="10.0.2.3"),
        {"ping": {"from": "a", "to": "c", "within": 1}},
        {"untracked": 0},
    ],
)
def test_what_is_returned_can_be_given_again(item: t.Any) -> None:
    line = one(item)
    assert one(line.as_dict()) == line


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (flow(proto="udp"), "udp from a to b, port 80, is REPLIED within 5 s"),
        (flow(port=1), "tcp from a to b, port 1, is ESTABLISHED within 5 s"),
        (flow(port=65535), "tcp from a to b, port 65535, is ESTABLISHED within 5 s"),
        (
            {"flow": {"from": "a", "to": "c", "proto": "icmpv6", "within": 0.5}},
            "icmpv6 from a to c, over IPv6, is REPLIED within 0.5 s",
        ),
        (
            {"flow": {"from": "a", "to": "b", "proto": "sctp", "make": False}},
            "sctp from a to b, is ESTABLISHED within 5 s by itself",
        ),
        (
            flow(make=False, state="syn_sent"),
            "tcp from a to b, port 80, is SYN_SENT within 5 s by itself",
        ),
        ({"untracked": 2}, "at most 2 frames stay untracked"),
    ],
)
def test_lines_in_words(item: t.Any, words: str) -> None:
    assert one(item).title == words


@pytest.mark.parametrize(
    ("item", "field", "mend"),
    [
        ({"flow": {}}, "expect[0].flow.from: ''", "give the name of a namespace"),
        ({"flow": {"from": "a", "to": "a"}}, "expect[0].flow.to: 'a'", "give another namespace"),
        (flow(to="x"), "expect[0].flow.to: 'x'", "give one of a, b, c, d"),
        (flow(**{"from": "x"}), "expect[0].flow.from: 'x'", "it is no namespace of the lab"),
        (flow(proto="tpc"), "expect[0].flow.proto: 'tpc'", "give icmp, tcp, udp"),
        (flow(proto="sctp"), "expect[0].flow.proto: 'sctp'", "make: false"),
        (flow(port=None), "expect[0].flow.port: ''", "give the server's port"),
        (flow(port=0), "expect[0].flow.port: 0", "1 to 65535"),
        (flow(port=65536), "expect[0].flow.port: 65536", "1 to 65535"),
        (flow(proto="icmp"), "expect[0].flow.port: 80", "leave it out"),
        (
            flow(state="REPLIED"),
            "expect[0].flow.state: 'REPLIED'",
            "the states of tcp are SYN_SENT, ",
        ),
        (
            flow(state="FIN_WAIT"),
            "expect[0].flow.state: 'FIN_WAIT'",
            "ends in ESTABLISHED, CLOSE_WAIT, TIME_WAIT, CLOSE",
        ),
        (flow(within=0), "expect[0].flow.within: 0", "more than 0"),
        (flow(within=True), "expect[0].flow.within: True", "seconds"),
        (flow(make="yes"), "expect[0].flow.make: 'yes'", "give true"),
        (flow(family="ipv5"), "expect[0].flow.family: 'ipv5'", "give ipv4 or ipv6"),
        (flow(family="ipv6"), "expect[0].flow.to: 'b'", "no addresses of ipv6 in common"),
        (
            flow(address="10.0.2.9"),
            "expect[0].flow.address: '10.0.2.9'",
            "b has 10.0.2.2, 10.0.2.3",
        ),
        (flow(address="b"), "expect[0].flow.address: 'b'", "address of b"),
        (
            flow(address="10.0.2.2", family="ipv6"),
            "expect[0].flow.address: '10.0.2.2'",
            "family is ipv6",
        ),
        (
            {"flow": {"from": "a", "to": "b", "proto": "icmp", "family": "ipv6"}},
            "expect[0].flow.proto: 'icmp'",
            "give icmpv6",
        ),
        (flow(ports=3), "expect[0].flow: 'ports'", "the keys are address, "),
        (
            {"ping": {"from": "a", "to": "d"}},
            "expect[0].ping.to: 'd'",
            "no addresses of one family in common",
        ),
        (
            {"ping": {"from": "a", "to": "b", "port": 1}},
            "expect[0].ping: 'port'",
            "the keys are address, ",
        ),
        ({"untracked": -1}, "expect[0].untracked: -1", "give the number"),
        (
            {"untracked": 0, "ping": {}},
            "expect[0]: 'untracked, ping'",
            "give one of flow, ping, untracked in each line",
        ),
        ({"pign": {}}, "expect[0]: 'pign'", "give one of"),
        ("ping", "expect[0]: 'ping'", "give one of"),
    ],
)
def test_refused(item: t.Any, field: str, mend: str) -> None:
    with pytest.raises(ConntrackError) as refused:
        one(item)
    assert (
        refused.value.message.startswith(f"{field} is not valid: ")
        and mend in refused.value.message
    )


def test_the_topology_takes_them() -> None:
    default = topology.parse({})
    assert [line.kind for line in default.expect] == [
        "ping",
        "flow",
        "flow",
        "untracked",
    ] and default.expect[0].address == "172.30.56.105"
    assert (
        topology.parse({"expect": []}).expect == ()
        and topology.parse({"namespaces": [{"name": "x"}]}).expect == ()
    )
    assert (
        topology.parse({"router": "rt", "expect": [{"ping": {"from": "rt", "to": "ns1"}}]})
        .expect[0]
        .address
        == "172.20.56.105"
    )
    with pytest.raises(
        ConntrackError,
        match=(
            r"expect\[0\]\.ping\.to: 'rt' is not valid: it is no namespace of the lab: give one of"
            r" ns1, ns2\."
        ),
    ):
        topology.parse({"expect": [{"ping": {"from": "ns1", "to": "rt"}}]})


def test_a_host_without_namespaces_is_told() -> None:
    (line,) = expectation.parse([{"ping": {"from": "a", "to": "b"}}])
    with pytest.raises(
        ConntrackError, match=r"'a' is not valid: it is no namespace on this host: there are none\."
    ):
        expectation.resolved(line, {}, "on this host")


def test_what_belongs_to_no_flow_is_not_untracked() -> None:
    before = dict.fromkeys(
        ("untracked_not_ip", "untracked_nd", "untracked_no_entry", "untracked_no_slot", "tracked"),
        5,
    )
    assert (
        expectation.untracked(
            before, {**before, "untracked_not_ip": 9, "untracked_nd": 9, "tracked": 9}
        )
        == {}
    )
    assert expectation.untracked(before, {**before, "untracked_no_entry": 7}) == {"no_entry": 2}
