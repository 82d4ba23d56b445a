# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ct graph of a real lab, held against ip and the flow table. What it looks like is for
tests/picture to see.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import xml.etree.ElementTree

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import CLIENT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_ct import Ct, ct, installed

__all__ = ["ct", "installed"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_the_graph_is_what_ip_and_the_table_say(ct: Ct, wire: Wire) -> None:
    graph = ct.json("graph", "--lab", wire.tag)
    places = {place["name"]: place for place in graph["places"]}
    assert (
        set(places) == {wire.ns(where) for where in ("client", "router", "server", "far")}
        and graph["title"] == wire.tag
    )
    for name, place in places.items():
        shown = json.loads(
            subprocess.run(
                ["ip", "-n", name, "-j", "-d", "addr"], check=True, capture_output=True, text=True
            ).stdout
        )
        theirs = {one["ifname"]: one for one in shown if one["ifname"] != "lo"}
        assert {
            one["name"]: (one["mac"], one["mtu"], "xdp" in theirs[one["name"]])
            for one in place["interfaces"]
        } == {
            label: (one["address"], one["mtu"], bool(one.get("xdp")))
            for label, one in theirs.items()
        }
        for one in place["interfaces"]:
            assert one["addresses"] == [
                f"{a['local']}/{a['prefixlen']}"
                for a in theirs[one["name"]]["addr_info"]
                if a["scope"] == "global"
            ]
            assert (one["hook"], one["mode"]) == {
                "ns1-lan": ("ingress", "native"),
                "ns2-lan": ("egress", "native"),
            }.get(one["name"], (None, None))
    client, router, server, far = (
        f"netns:{wire.ns(where)}" for where in ("client", "router", "server", "far")
    )
    assert sorted(graph["links"]) == sorted(
        [
            [[client, "ns1-wan"], [router, "ns1-lan"]],
            [[router, "ns2-lan"], [server, "ns2-wan"]],
            [[far, "ns3-wan"], [server, "ns3-lan"]],
        ]
    )

    by_state: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for record in ct.json("list"):
        assert (record["orig"]["src"], record["orig"]["dst"]) == (CLIENT, SERVER)
        by_state[record["state"]][0] += 1
        by_state[record["state"]][1] += record["orig"]["bytes"] + record["reply"]["bytes"]
    assert {
        edge["state"]: [edge["flows"], edge["bytes"]] for edge in graph["edges"]
    } == by_state and set(by_state) == {"ESTABLISHED", "REPLIED"}
    assert {(edge["from"], edge["to"]) for edge in graph["edges"]} == {(client, server)}
    assert [edge["protos"] for edge in ct.json("graph", "--proto", "udp")["edges"]] == [
        {"udp": 1}
    ], "the filters are those of ct list"


def test_each_form(ct: Ct, wire: Wire) -> None:
    picture = xml.etree.ElementTree.fromstring(ct("graph", "-o", "svg"))
    assert {one.get("data-state") for one in picture.iter() if one.get("data-state")} == {
        "ESTABLISHED",
        "REPLIED",
    }
    assert ct("graph").startswith("<!doctype html>") and ct("graph", "-o", "dot").startswith(
        "digraph "
    )
    assert ct("graph", "-o", "mermaid").splitlines()[0] == "flowchart LR"


def test_without_a_chain_and_what_is_refused(ct: Ct, wire: Wire) -> None:
    elsewhere = Ct(ct.path, f"{ct.pin_root}/none")
    graph = elsewhere.json("graph", "--lab", wire.tag)
    assert (
        len(graph["links"]) == 3
        and graph["edges"] == []
        and graph["note"].startswith("No chain is loaded at ")
    )
    assert f"lab: 'nolab' is not valid: give one of {wire.tag}" in ct.refuses(
        "graph", "--lab", "nolab", status=1
    )
    assert "proto: 'tpc' is not valid" in ct.refuses("graph", "--proto", "tpc", status=2)
