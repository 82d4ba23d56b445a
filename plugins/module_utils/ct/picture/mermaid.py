# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A graph for mermaid."""

from __future__ import annotations

import re

from . import captions, phases

# ---------------------------------------------------------------- mermaid and dot
_PLAIN = re.compile(r"[^A-Za-z0-9 .,:/@×·_()+-]")


def _mermaid(text: str) -> str:
    """Return text for a quoted string of mermaid, with all that could mean something there as the
    number of the character.
    """
    return _PLAIN.sub(lambda found: f"#{ord(found.group())};", captions.NOT_XML.sub("\ufffd", text))


def draw(graph: captions.Graph) -> str:
    """Return the graph for mermaid."""
    ids, lines, styles = captions.node_ids(graph), ["flowchart LR"], []
    for place in graph["places"]:
        text = "<br/>".join(map(_mermaid, captions.box_lines(place)))
        lines.append(
            f'  {ids[place["id"]]}(["{text}"])'
            if place["kind"] == "outside"
            else f'  {ids[place["id"]]}["{text}"]'
        )
    for one, two in graph["links"]:
        lines.append(f'  {ids[one[0]]} ---|"{_mermaid(f"{one[1]} - {two[1]}")}"| {ids[two[0]]}')
    most = max((edge["bytes"] for edge in graph["edges"]), default=0)
    for number, edge in enumerate(graph["edges"], len(graph["links"])):
        phase = phases.phase_named(phases.phase_of(edge["state"]))
        dash = f",stroke-dasharray:{phase.dash}" if phase.dash else ""
        lines.append(
            f'  {ids[edge["from"]]} -->|"{_mermaid(captions.caption(edge))}"| {ids[edge["to"]]}'
        )
        styles.append(
            f"  linkStyle {number}"
            f" stroke:{phase.light},stroke-width:{captions.width(edge['bytes'], most)}px{dash}"
        )
    return "\n".join([*lines, *styles]) + "\n"
