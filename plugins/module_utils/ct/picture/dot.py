# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A graph for graphviz."""

from __future__ import annotations

from . import captions, phases


def _dot(*lines: str) -> str:
    """Return a quoted string of dot; it reads character references in them."""
    texts = (
        captions.NOT_XML.sub("\ufffd", line)
        .replace("&", "&amp;")
        .replace("\\", "\\\\")
        .replace('"', '\\"')
        for line in lines
    )
    return '"' + "\\n".join(" ".join(text.split("\n")) for text in texts) + '"'


def draw(graph: captions.Graph) -> str:
    """Return the graph for graphviz."""
    ids = captions.node_ids(graph)
    lines = [
        f"digraph {_dot(graph['title'])} {{",
        (
            '  rankdir=LR; node [shape=box, style=rounded, fontname="sans-serif"]; edge'
            ' [fontname="sans-serif", fontsize=10];'
        ),
    ]
    for place in graph["places"]:
        more = ', style="rounded,dashed"' if place["kind"] == "outside" else ""
        lines.append(
            f"  {ids[place['id']]} [label={_dot(*captions.box_lines(place))},"
            f" tooltip={_dot(*captions.place_in_full(place).splitlines())}{more}];"
        )
    for one, two in graph["links"]:
        lines.append(
            f'  {ids[one[0]]} -> {ids[two[0]]} [dir=none, color="#8c959f",'
            f" taillabel={_dot(one[1])}, headlabel={_dot(two[1])}];"
        )
    most = max((edge["bytes"] for edge in graph["edges"]), default=0)
    for edge in graph["edges"]:
        phase = phases.phase_named(phases.phase_of(edge["state"]))
        lines.append(
            f"  {ids[edge['from']]} -> {ids[edge['to']]} [xlabel={_dot(captions.caption(edge))},"
            " constraint=false, "
            f'color="{phase.light}", fontcolor="{phase.light}", style={phase.dot},'
            f" penwidth={captions.width(edge['bytes'], most)}];"
        )
    return "\n".join([*lines, "}"]) + "\n"
