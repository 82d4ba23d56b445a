# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which places and edges a graph has, and what becomes of many."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import graph as ct_graph
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab.model import HaveLink
from ansible_collections.ebpf.conntrack.tests.unit.graph_fakes import (
    everyone,
    group,
    host,
    link,
    loopback,
)


def edges(graph: ct_graph.Graph) -> list[tuple[t.Any, ...]]:
    """Return what tells edges apart, with their flows."""
    return [(edge["from"], edge["to"], edge["state"], edge["flows"]) for edge in graph["edges"]]


def test_flows_are_added_up_by_places_and_state() -> None:
    groups = [
        group(0, 1, "udp", "REPLIED", 2, 50),
        group(0, 1, "icmp", "REPLIED", 1, 7),
        group(0, 1, "tcp"),
        group(1, 0, "tcp", octets=10),
    ]
    graph = ct_graph.build(host(["a", "b"]), groups)
    assert edges(graph) == [
        ("netns:a", "netns:b", "ESTABLISHED", 1),
        ("netns:a", "netns:b", "REPLIED", 3),
        ("netns:b", "netns:a", "ESTABLISHED", 1),
    ]
    replied = graph["edges"][1]
    assert (replied["bytes"], replied["packets"], replied["protos"]) == (
        57,
        12,
        {"udp": 2, "icmp": 1},
    )
    assert replied["pairs"][0] == {
        "proto": "udp",
        "src": "10.0.0.2",
        "dst": "10.0.1.2",
        "flows": 2,
        "bytes": 50,
    }
    assert graph["totals"] == {"flows": 5, "bytes": 1067}


def test_links_and_hooks() -> None:
    graph = ct_graph.build(host(["ns10", "ns2"]), [])
    assert [place["id"] for place in graph["places"]] == [
        "netns:ns2",
        "netns:ns10",
        "netns:rt",
    ], "the host has nothing to do with it"
    assert graph["links"] == [
        [["netns:ns2", "eth0"], ["netns:rt", "to-1"]],
        [["netns:ns10", "eth0"], ["netns:rt", "to-0"]],
    ]
    router = graph["places"][-1]
    assert [
        (one["name"], one["hook"], one["mode"], one["addresses"]) for one in router["interfaces"]
    ] == [
        ("to-0", "ingress", "native", ["10.0.0.1/24"]),
        ("to-1", "egress", "native", ["10.0.1.1/24"]),
    ]


def test_the_host_is_drawn_where_it_has_a_part() -> None:
    seen = host(["a", "b"])
    uplink = dataclasses.replace(link((None, "eth9"), 9, 9, "192.0.2.1/24"), kind="")
    apart = dataclasses.replace(
        seen, interfaces={**seen.interfaces, None: [loopback(None), uplink]}
    )
    assert "host" not in {place["id"] for place in ct_graph.build(apart, [])["places"]}
    running = dataclasses.replace(
        apart,
        programs={
            **seen.programs,
            (None, "eth9"): {"program": "other", "mode": "generic", "ours": False},
        },
    )
    (mine,) = [place for place in ct_graph.build(running, [])["places"] if place["id"] == "host"]
    assert [(one["name"], one["hook"], one["foreign"]) for one in mine["interfaces"]] == [
        ("eth9", None, "other")
    ]
    alone = ct_graph.Seen({None: [loopback(None), uplink]}, {}, {})
    assert [place["id"] for place in ct_graph.build(alone, [])["places"]] == ["host"]


def test_a_lab_by_its_name() -> None:
    seen = host(["a", "b"])
    other: dict[str | None, list[HaveLink]] = {
        "x": [dataclasses.replace(loopback("x"), alias="ebpf.conntrack:two")],
        "y": [dataclasses.replace(loopback("y"), alias="")],
    }
    both = dataclasses.replace(seen, interfaces={**seen.interfaces, **other})
    assert {place["name"] for place in ct_graph.build(both, [])["places"]} == {
        "a",
        "b",
        "rt",
        "x",
        "y",
    }
    assert {place["name"] for place in ct_graph.build(both, [], "lab")["places"]} == {
        "a",
        "b",
        "rt",
    }
    with pytest.raises(ConntrackError, match=r"lab: 'office' is not valid: give one of lab, two\."):
        ct_graph.build(both, [], "office")


def test_of_two_with_an_address_the_one_near_the_chain_is_meant() -> None:
    seen = host(["b", "c"])
    twin = [loopback("a"), link(("a", "eth0"), 7, 8, "10.0.0.2/24")]
    graph = ct_graph.build(
        dataclasses.replace(seen, interfaces={"a": twin, **seen.interfaces}), [group(0, 1)]
    )
    assert edges(graph) == [("netns:b", "netns:c", "ESTABLISHED", 1)]


def test_addresses_of_no_namespace() -> None:
    few = ct_graph.build(host(["a"]), [group(f"192.0.2.{n}", 0, octets=n) for n in range(1, 13)])
    assert (
        sum(place["kind"] == "outside" for place in few["places"]) == 12 and len(few["edges"]) == 12
    )
    many = ct_graph.build(host(["a"]), [group(f"192.0.2.{n}", 0, octets=n) for n in range(1, 101)])
    names = [place["name"] for place in many["places"] if place["kind"] == "outside"]
    assert len(names) == 12 and "192.0.2.100" in names and names[-1] == "89 other addresses"
    assert ("outside", "netns:a", "ESTABLISHED", 89) in edges(many) and many["totals"][
        "flows"
    ] == 100


def test_of_many_edges_the_largest_are_kept_and_the_rest_is_told() -> None:
    groups = everyone(50) + [
        group(one, two, "udp", "NEW", octets=1)
        for one in range(50)
        for two in range(50)
        if one != two
    ]
    graph = ct_graph.build(host([f"ns{n}" for n in range(50)]), groups)
    assert len(graph["edges"]) == ct_graph.MOST_EDGES and graph["left_out"]["edges"] > 1000
    assert graph["totals"] == {
        name: sum(one[name] for one in groups) for name in ("flows", "bytes")
    }
    assert graph["left_out"]["bytes"] <= graph["totals"]["bytes"] // 10


def test_the_ends_of_a_veth_find_each_other() -> None:
    """Two pairs with the same numbers: their aliases tell them apart; without them neither is
    drawn.
    """
    seen = host(["a", "b"])
    found: dict[str | None, list[HaveLink]] = {
        None: [],
        **{
            name: [one for one in links if one.ifindex != 1]
            for name, links in seen.interfaces.items()
            if name
        },
    }
    assert ct_graph._peers(found) == seen.peers
    alike: dict[str | None, list[HaveLink]] = {
        place: [link((place, "v"), 2, 2, f"10.0.{n}.1/24", alias)]
        for n, (place, alias) in enumerate(
            {"a": "m v@b", "b": "m v@a", "c": "m v@d", "d": "m v@c"}.items()
        )
    }
    assert ct_graph._peers(alike) == {
        ("a", "v"): ("b", "v"),
        ("b", "v"): ("a", "v"),
        ("c", "v"): ("d", "v"),
        ("d", "v"): ("c", "v"),
    }
    assert (
        ct_graph._peers(
            {
                place: [dataclasses.replace(one, alias="") for one in links]
                for place, links in alike.items()
            }
        )
        == {}
    )
