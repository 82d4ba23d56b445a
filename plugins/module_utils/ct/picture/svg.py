# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A graph as one SVG picture. It loads nothing, and what comes from the host is escaped."""

from __future__ import annotations

import typing as t

from . import captions, layout, phases
from .captions import Graph, cut, escaped, size
from .layout import Box, Layout

_CHAR = 6.7  # px a character of the fixed-width font takes at 11 px
_MARGIN = 24


def _fitting(name: str, room: float) -> str:
    """Return a name, cut where it would be wider than so many px in bold letters of 13 px, whatever
    the font.
    """
    taken = 0.0
    for at, letter in enumerate(name):
        taken += (
            15 if letter in "mwMW@%" or not letter.isascii() else 10.5 if letter.isupper() else 8.8
        )
        if taken > room:
            return cut(name, at)
    return name


_COLOURS = {
    "ground": ("#ffffff", "#0d1117"),
    "card": ("#f6f8fa", "#161b22"),
    "line": ("#8c959f", "#6e7681"),
    "text": ("#1f2328", "#e6edf3"),
    "dim": ("#59636e", "#9198a1"),
    "hook": ("#bc4c00", "#f0883e"),
}


def _style() -> str:
    """Return the picture's style: one set of colours for a light ground, one for a dark one."""
    colours = {
        **_COLOURS,
        **{
            name: (phase.light, phase.dark)
            for name, phase in {**phases.PHASES, "other": phases.OTHER}.items()
        },
    }
    light, dark = (
        "".join(f"--{name}:{both[at]};" for name, both in colours.items()) for at in (0, 1)
    )
    rules = [
        f".ct{{{light}color-scheme:light dark;font-family:system-ui,'DejaVu Sans',sans-serif}}",
        f"@media(prefers-color-scheme:dark){{.ct{{{dark}}}}}",
        (
            ".ct .ground{fill:var(--ground)}.ct text{fill:var(--text);font-size:11px}.ct"
            " .name{font-size:13px;font-weight:600}"
        ),
        (
            ".ct .mono,.ct .slot text{font-family:ui-monospace,'DejaVu Sans"
            " Mono',Menlo,Consolas,monospace}.ct .dim{fill:var(--dim)}"
        ),
        (
            ".ct .box{fill:var(--card);stroke:var(--line)}.ct .host .box{stroke-width:2}.ct"
            " .outside .box{fill:none;stroke-dasharray:4 3}"
        ),
        (
            ".ct .link{fill:none;stroke:var(--line);stroke-width:1.5}.ct .port{fill:var(--line)}.ct"
            " .port.hook{fill:var(--hook)}"
        ),
        ".ct .badge{fill:none;stroke:var(--hook)}.ct .badged{fill:var(--hook);font-size:10px}",
        (
            ".ct .flow path{fill:none;opacity:.85}.ct .flow:hover"
            " path{opacity:1;stroke-width:11}.ct .words{font-size:10px}"
        ),
        (
            ".ct .words,.ct .slot text,.ct"
            " .name{paint-order:stroke;stroke:var(--ground);stroke-width:3px;stroke-linejoin:round}"
        ),
        ".ct .slot text,.ct .place .name{stroke:var(--card)}",
    ]
    for name, phase in {**phases.PHASES, "other": phases.OTHER}.items():
        dash = f";stroke-dasharray:{phase.dash}" if phase.dash else ""
        rules.append(
            f".ct .{name} .line{{stroke:var(--{name}){dash}}}.ct .{name}"
            f" .head{{fill:var(--{name})}}"
        )
    return "".join(rules)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    more = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escaped(text)}</text>'


def draw(graph: Graph) -> str:
    """Return the graph as one SVG picture that stands for itself."""
    plan = Layout(graph)
    names = {place["id"]: place["name"] for place in graph["places"]}
    most = max((edge["bytes"] for edge in graph["edges"]), default=0)
    legend, legend_height = _legend(
        graph, plan.height + 3 * _MARGIN / 2, max(plan.width, 560), most
    )
    wide, high = max(plan.width, 560) + 2 * _MARGIN, plan.height + legend_height + 3 * _MARGIN + 20
    about = (
        f"{graph['title']}: {len(graph['places'])} places, {len(graph['links'])} links,"
        f" {graph['totals']['flows']} flows in {len(graph['edges'])} edges"
    )
    parts = [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" class="ct" role="img"'
            f' aria-label="{escaped(about)}" width="{wide:.0f}" height="{high:.0f}"'
            f' viewBox="0 0 {wide:.0f} {high:.0f}">'
        ),
        f"<style>{_style()}</style>",
        f'<rect class="ground" width="{wide:.0f}" height="{high:.0f}"/>',
        _text(_MARGIN, _MARGIN, graph["title"], "name")
        + (
            _text(wide - _MARGIN, _MARGIN, graph["read_at"], "dim", "end")
            if graph["read_at"]
            else ""
        ),
        f'<g transform="translate({_MARGIN + max(0.0, 560 - plan.width) / 2:.1f} {_MARGIN + 20})">',
        *(_box(box) for box in plan.boxes.values()),
        *(_link(*link, names) for link in plan.links),
        *(
            _flow(number, edge, begin, end, names, most)
            for number, (edge, begin, end) in reversed(list(enumerate(plan.flows)))
        ),
        *(_slots(box) for box in plan.boxes.values()),
        *(_words(edge, begin, most) for edge, begin, dummy in plan.flows if plan.labelled),
        "</g>",
        f'<g transform="translate({_MARGIN} {_MARGIN + 20})">{legend}</g>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(box: Box) -> str:
    place = box.place
    name = _fitting(place["name"], box.width - 16)
    return (
        f'<g class="place {place["kind"]}" data-place="{escaped(place["name"])}">'
        f"<title>{escaped(captions.place_in_full(place))}</title>"
        f'<rect class="box" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}"'
        f' height="{box.height:.1f}" rx="6"/>'
        f"{_text(box.x + box.width / 2, box.y + 17, name, 'name', 'middle')}</g>"
    )


def _slots(box: Box) -> str:
    parts = []
    most = int(((box.width - 30) / 2 if all(box.slots.values()) else box.width - 22) / _CHAR)
    for side, slots in box.slots.items():
        for slot in slots:
            one, badge = slot.interface, captions.badge(slot.interface)
            x, y = box.edge_x(side) - side * 11, box.y + slot.y + 12
            anchor = "start" if side < 0 else "end"
            lines = [
                _text(
                    x,
                    y,
                    cut(one["name"] + ("" if one["up"] else " (down)"), most),
                    "",
                    anchor,
                )
            ]
            lines += [
                _text(x, y + layout.LINE * at, cut(line, most), "dim", anchor)
                for at, line in enumerate(slot.lines, 1)
            ]
            if badge:
                badge = cut(badge, most - 1)
                wide, top = 6.1 * len(badge) + 10, y + layout.LINE * len(slot.lines) + 5
                lines.append(
                    f'<rect class="badge" x="{x if side < 0 else x - wide:.1f}" y="{top:.1f}"'
                    f' width="{wide:.1f}" height="14" rx="4"/>'
                )
                lines.append(_text(x - side * 5, top + 10.5, badge, "badged", anchor))
            hook = " hook" if badge else ""
            lines.append(
                f'<circle class="port{hook}" cx="{box.edge_x(side):.1f}"'
                f' cy="{box.y + slot.y + layout.LINE / 2 + 2:.1f}" r="4"/>'
            )
            parts.append(
                f'<g class="slot" data-interface="{escaped(one["name"])}">'
                f"<title>{escaped(captions.interface_in_full(one))}</title>{''.join(lines)}</g>"
            )
    return "".join(parts)


def _curve(one: tuple[float, float, int], two: tuple[float, float, int], back: float = 0) -> str:
    """Return the path from one point on a box's side to another.

    :param back: how far before the second point it ends.
    """
    (x1, y1, side1), (x2, y2, side2) = one, two
    reach = (
        max(50.0, abs(x2 - x1) * 0.4)
        if side1 != side2
        else 40 + min(layout.GAP * 0.7, abs(y2 - y1) * 0.2)
    )
    return (
        f"M{x1:.1f} {y1:.1f}C{x1 + side1 * reach:.1f} {y1:.1f} {x2 + side2 * reach:.1f} {y2:.1f}"
        f" {x2 + side2 * back:.1f} {y2:.1f}"
    )


def _link(
    one: tuple[float, float, int],
    two: tuple[float, float, int],
    from_: t.Sequence[str],
    to: t.Sequence[str],
    names: t.Mapping[str, str],
) -> str:
    title = f"{from_[1]}@{names[from_[0]]} — {to[1]}@{names[to[0]]}"
    return f'<path class="link" d="{_curve(one, two)}"><title>{escaped(title)}</title></path>'


def _flow(
    number: int,
    edge: Graph,
    one: tuple[float, float, int],
    two: tuple[float, float, int],
    names: t.Mapping[str, str],
    most: int,
) -> str:
    x, y, side = two
    wide = captions.width(edge["bytes"], most)
    half = wide / 2 + 3
    head = f"M{x:.1f} {y:.1f}l{side * 9} {-half:.1f}v{2 * half:.1f}z"
    return (
        f'<g class="flow {phases.phase_of(edge["state"])}" id="flow{number}"'
        f' data-from="{escaped(names[edge["from"]])}" data-to="{escaped(names[edge["to"]])}"'
        f' data-state="{escaped(edge["state"])}" data-flows="{edge["flows"]}">'
        f"<title>{escaped(captions.edge_in_full(edge, names))}</title>"
        f'<path class="line" stroke-width="{wide}" d="{_curve(one, two, 8)}"/>'
        f'<path class="head" d="{head}"/></g>'
    )


def _words(edge: Graph, begin: tuple[float, float, int], most: int) -> str:
    """Return an edge's caption, beside the box where it begins: there each edge has a lane of its
    own.
    """
    x, y, side = begin
    return _text(
        x + side * 7,
        y - captions.width(edge["bytes"], most) / 2 - 3,
        captions.caption(edge),
        "words",
        "start" if side > 0 else "end",
    )


def _legend(graph: Graph, top: float, wide: float, most: int) -> tuple[str, float]:
    """Return what the colours and widths mean, and how high that is."""
    used: dict[str, list[str]] = {}
    for edge in graph["edges"]:
        states = used.setdefault(phases.phase_of(edge["state"]), [])
        if edge["state"] not in states:
            states.append(edge["state"])
    items = [
        (
            f'<g class="{name}"><path class="line" fill="none" stroke-width="4" d="M0 -4h30"/></g>',
            ", ".join(sorted(states)),
        )
        for name, states in sorted(
            used.items(), key=lambda item: [*phases.PHASES, "other"].index(item[0])
        )
    ]
    if items:
        least = min(edge["bytes"] for edge in graph["edges"])
        items.append(
            (
                (
                    '<path fill="var(--dim)"'
                    f' d="M0 -3.2l30 -3v{captions.width(most, most) / 2 + 2:.1f}l-30 -3z"/>'
                ),
                f"wider: more bytes, {size(least)} to {size(most)}",
            )
        )
    if any(
        place["kind"] != "machine" for place in graph["places"] if place["kind"] != "outside"
    ):  # of a fleet's hosts only the flows are known
        items.append(
            (
                '<circle class="port hook" cx="15" cy="-4" r="4"/>',
                "interface on which the chain runs: its hook, and the mode",
            )
        )
        items.append(('<path class="link" d="M0 -4h30"/>', "veth link"))
    parts, x, y = [], 0.0, top
    for sample, text in items:
        long = 38 + 6.2 * len(text) + 24
        if x and x + long > wide:
            x, y = 0.0, y + 20
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{sample}{_text(38, 0, text)}</g>')
        x += long
    for text in _remarks(graph):
        y += 20
        parts.append(_text(0, y, text, "dim"))
    return f'<g class="legend">{"".join(parts)}</g>', y - top + 20


def _remarks(graph: Graph) -> list[str]:
    totals, gone = graph["totals"], graph["left_out"]
    lines = [
        f"{totals['flows']} flows, {size(totals['bytes'])}. An arrow leads from who began to who"
        " answers, with all flows of a state in it."
    ]
    if gone["edges"]:
        lines.append(
            f"Not drawn: {gone['edges']} edges with the fewest bytes, {gone['flows']} flows,"
            f" {size(gone['bytes'])}."
        )
    return lines + ([graph["note"]] if graph["note"] else [])
