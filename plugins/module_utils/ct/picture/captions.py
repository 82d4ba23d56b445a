# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written in a picture, whatever its form: of places, interfaces and edges."""

from __future__ import annotations

import html as escaping
import math
import re
import typing as t

#: What ct.graph.build() returns, or a part of it.
Graph = dict[str, t.Any]
THIN, _THICK = 1.5, 9.0  # width of an edge, px
ADDRESSES = 2  # of an interface that are written; all are told when it is pointed at
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def width(octets: int, most: int) -> float:
    """Return how wide an edge is: its area is as its bytes.

    >>> width(0, 100), width(100, 100)
    (1.5, 9.0)
    """
    return round(THIN + (_THICK - THIN) * math.sqrt(octets / most if most else 0), 2)


def size(octets: float) -> str:
    """Return a number of bytes for people.

    >>> size(999), size(1940), size(2_000_000)
    ('999 B', '1.9 kB', '2.0 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:.1f} TB"


def escaped(text: object) -> str:
    """Return text for XML: escaped, without what XML has no way to write."""
    return escaping.escape(NOT_XML.sub("\ufffd", str(text)))


def cut(text: str, most: int) -> str:
    """Return text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def caption(edge: Graph) -> str:
    """Return an edge in a few words.

    >>> caption({"state": "REPLIED", "flows": 3, "bytes": 1200, "protos": {"udp": 2, "icmp": 1}})
    'udp, icmp REPLIED ×3 · 1.2 kB'
    """
    names = list(edge["protos"])
    shown = ", ".join(names) if len(names) <= 2 else f"{names[0]} …"
    count = f" ×{edge['flows']}" if edge["flows"] > 1 else ""
    return f"{shown} {edge['state']}{count} · {size(edge['bytes'])}"


def edge_in_full(edge: Graph, names: t.Mapping[str, str]) -> str:
    """Return all of an edge, a line each."""
    flows = edge["flows"]
    lines = [
        f"{names[edge['from']]} → {names[edge['to']]}: {flows} flow{'s' if flows != 1 else ''},"
        f" {edge['state']}"
    ]
    lines.append(f"{edge['packets']} packets, {edge['bytes']} bytes in both directions")
    for pair in edge["pairs"]:
        lines.append(
            f"{pair['proto']} {pair['src']} → {pair['dst']}: {pair['flows']}, {size(pair['bytes'])}"
        )
    told = sum(pair["flows"] for pair in edge["pairs"])
    return "\n".join(lines + ([f"… and {flows - told} more"] if flows > told > 0 else []))


def place_in_full(place: Graph) -> str:
    """Return all of a place, a line for each of its interfaces."""
    kind = {
        "host": "the host's own namespace",
        "netns": "network namespace",
        "machine": "a host of the fleet",
        "outside": "outside of what is drawn",
    }[place["kind"]]
    lines = [f"{place['name']}: {kind}"]
    return "\n".join(lines + [interface_in_full(one) for one in place["interfaces"]])


def interface_in_full(one: Graph) -> str:
    """Return all of an interface in one line."""
    runs = f", runs {badge(one)}" if badge(one) else ""
    return (
        f"{one['name']}{'' if one['up'] else ' (down)'}:"
        f" {', '.join(one['addresses']) or 'no address'}, {one['mac']}, MTU {one['mtu']}{runs}"
    )


def badge(one: Graph) -> str:
    """Return what runs on an interface, "" for nothing."""
    if one["hook"]:
        return f"{one['hook']} · {one['mode']}"
    return f"other XDP: {one['foreign']} · {one['mode']}" if one["foreign"] else ""


def node_ids(graph: Graph) -> dict[str, str]:
    """Return a plain word for each place, by its id."""
    return {place["id"]: f"n{number}" for number, place in enumerate(graph["places"])}


def box_lines(place: Graph) -> list[str]:
    """Return what a box has inside, a line each."""
    lines = [place["name"]]
    for one in place["interfaces"]:
        lines.append(
            " ".join(
                filter(
                    None,
                    (
                        one["name"],
                        *one["addresses"][:ADDRESSES],
                        f"({badge(one)})" if badge(one) else "",
                    ),
                )
            )
        )
    return lines
