# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures as text: each place and edge is in each form, names stay names, nothing is loaded, no
box stands on another. tests/picture looks at them.
"""

from __future__ import annotations

import itertools
import re
import typing as t
import xml.etree.ElementTree

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import draw as graph_draw
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import graph as ct_graph
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.tests.unit.graph_fakes import NASTY, everyone, group, host

SVG = "{http://www.w3.org/2000/svg}"


def graph(
    names: t.Sequence[str], groups: t.Sequence[dict[str, t.Any]] | None = None, title: str = "lab"
) -> ct_graph.Graph:
    """Return a router's graph."""
    return ct_graph.build(
        host(names), everyone(len(names)) if groups is None else groups, title=title
    )


def parsed(text: str) -> xml.etree.ElementTree.Element:
    """Return a picture's elements; it is well-formed."""
    return xml.etree.ElementTree.fromstring(text)


def of_class(root: xml.etree.ElementTree.Element, name: str) -> list[xml.etree.ElementTree.Element]:
    return [one for one in root.iter() if name in one.get("class", "").split()]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 50])
def test_every_place_and_edge_is_drawn_and_no_box_stands_on_another(number: int) -> None:
    names = [f"ns{n}" for n in range(number)]
    made = graph(names, [*everyone(number), group(0, "192.0.2.1")])
    root = parsed(graph_draw.svg(made))
    assert {one.get("data-place") for one in of_class(root, "place")} == {*names, "rt", "192.0.2.1"}
    assert (
        len(of_class(root, "flow")) == len(made["edges"])
        and len([one for one in of_class(root, "link") if one.find(f"{SVG}title") is not None])
        == number
    )
    boxes = [
        [float(one.get(name, "")) for name in ("x", "y", "width", "height")]
        for one in of_class(root, "box")
    ]
    for (x1, y1, w1, h1), (x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        assert x1 + w1 <= x2 or x2 + w2 <= x1 or y1 + h1 <= y2 or y2 + h2 <= y1
    high, wide = float(root.get("height", "")), float(root.get("width", ""))
    assert all(x >= 0 and y >= 0 and x + w <= wide and y + h <= high for x, y, w, h in boxes)


def test_two_with_a_router_between_them_stand_left_and_right() -> None:
    plan = graph_draw.Layout(graph(["ns1", "ns2"], [group(0, 1), group(1, 0, "udp", "NEW")]))
    assert {name: box.column for name, box in plan.boxes.items()} == {
        "netns:ns1": -1,
        "netns:rt": 0,
        "netns:ns2": 1,
    }
    assert all(one[1] == two[1] for one, two, dummy, dummy2 in plan.links), "links are level"
    assert all(begin[1] == end[1] for dummy, begin, end in plan.flows), "and so are flows"


def test_places_in_a_row_and_in_a_ring() -> None:
    """What is further from the chain is further out; a link that closes a ring is drawn, too."""
    made = graph(["a", "b"], [])
    made["places"] += [
        {
            "id": name,
            "name": name,
            "kind": "netns",
            "interfaces": [dict(made["places"][0]["interfaces"][0], name="x")],
        }
        for name in ("c", "d")
    ]
    made["places"][0]["interfaces"].append(dict(made["places"][0]["interfaces"][0], name="up"))
    made["links"] += [[["netns:a", "up"], ["c", "x"]]]
    plan = graph_draw.Layout(made)
    assert {name: box.column for name, box in plan.boxes.items()} == {
        "netns:rt": 0,
        "netns:a": -1,
        "netns:b": 1,
        "c": -2,
        "d": -1,
    }
    made["places"][1]["interfaces"].append(dict(made["places"][0]["interfaces"][0], name="ring"))
    made["places"][2]["interfaces"].append(dict(made["places"][0]["interfaces"][0], name="ring"))
    made["links"] += [[["netns:b", "ring"], ["c", "ring"]]]
    assert len(of_class(parsed(graph_draw.svg(made)), "link")) == 4 + 1


def test_an_edge_is_as_wide_as_its_bytes_and_coloured_by_its_state() -> None:
    root = parsed(
        graph_draw.svg(
            graph(
                ["a", "b"],
                [
                    group(0, 1, octets=100),
                    group(0, 1, "udp", "NEW", octets=25),
                    group(1, 0, "tcp", "CLOSE", octets=0),
                ],
            )
        )
    )
    lines = {one.get("data-state"): one for one in of_class(root, "flow")}
    widths = {
        state: next(one.iterfind(f"{SVG}path")).get("stroke-width") for state, one in lines.items()
    }
    assert widths == {"ESTABLISHED": "9.0", "NEW": "5.25", "CLOSE": "1.5"}
    assert {state: one.get("class") for state, one in lines.items()} == {
        "ESTABLISHED": "flow established",
        "NEW": "flow opening",
        "CLOSE": "flow closed",
    }


def test_every_state_has_a_colour() -> None:
    states = {name for names in flow.STATES.values() for name in names if name != "NONE"} | set(
        flow.PLAIN_STATES
    )
    assert {
        state for state in states if graph_draw.phase_of(state) == "other"
    } == set() and graph_draw.phase_of("77") == "other"


def test_names_stay_names() -> None:
    made = graph([*NASTY, "bad\x07\udcff"], title="<t>&\"'")
    root = parsed(graph_draw.svg(made))
    assert {one.get("data-place") for one in of_class(root, "place")} == {
        *NASTY,
        "bad\ufffd\ufffd",
        "rt",
    }
    assert {one.text for one in root.iter(f"{SVG}text")} >= {*NASTY, "<t>&\"'"}
    page = graph_draw.html(made)
    assert "<b>" not in page and "&lt;b&gt;" in page
    for line in graph_draw.mermaid(made).splitlines()[1:]:
        assert re.fullmatch(
            r'  (n\d+(\["[^"|\[\]{}<>`]*"\]|( ---| -->)\|"[^"|\[\]{}<>`]*"\| n\d+)|linkStyle \d+'
            r" [\w#:,. -]+)",
            line.replace("<br/>", " "),
        ), line
    assert r"\"x\"&amp;y" in graph_draw.dot(made)


def test_nothing_is_loaded() -> None:
    page = graph_draw.html(graph(["a", "b"]))
    assert set(re.findall(r"https?://[^\"' )]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"<script|@import|<img|<iframe|url\((?!#)|\bon[a-z]+=", page
    ) and re.findall(r'(?:href|src)="([^"]*)"', page) == ["data:,"]


def test_what_is_missing_is_told() -> None:
    made = {
        **graph(["a", "b"]),
        "note": "No chain & no flows.",
        "left_out": {"edges": 7, "flows": 9, "bytes": 1500},
    }
    texts = [one.text for one in parsed(graph_draw.svg(made)).iter(f"{SVG}text")]
    assert (
        "Not drawn: 7 edges with the fewest bytes, 9 flows, 1.5 kB." in texts
        and "No chain & no flows." in texts
    )


def test_a_host_without_anything() -> None:
    made = ct_graph.build(ct_graph.Seen({None: []}, {}, {}), [])
    for draw in graph_draw.FORMS.values():
        assert "host" in draw(made)
