# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of ct_graph's graphs: SVG, a page of HTML around it, mermaid and dot. Pure functions of
a graph to text.

The layout is a tree on its side: the place with the most hooks of the chain in the middle, its
neighbours in columns to its left and right, theirs further out. A box has a head with the name, a
strip in which the flows begin and end, and its interfaces, each level with the other end of its
link where it is the middle one's. The pictures load nothing: no font, no script, no style sheet;
what comes from the host is escaped.
"""

from __future__ import annotations

import collections
import dataclasses
import html as escaping
import math
import re
import typing as t

Graph = dict[str, t.Any]
#: A table of the page: title, heads, rows.
Table = tuple[str, t.Sequence[str], t.Sequence[t.Sequence[object]]]


# ---------------------------------------------------------------- what it looks like
class Phase(t.NamedTuple):
    """States that look alike.

    :ivar light: the colour on a light ground; ``dark`` on a dark one.
    :ivar dash: SVG's stroke-dasharray, so that colour is not all that tells them apart.
    """

    light: str
    dark: str
    dash: str
    dot: str
    states: tuple[str, ...]


PHASES = {
    "established": Phase("#1a7f37", "#3fb950", "", "solid", ("ESTABLISHED",)),
    "replied": Phase("#0969da", "#58a6ff", "", "solid", ("REPLIED",)),
    "opening": Phase(
        "#9a6700",
        "#d29922",
        "7 4",
        "dashed",
        (
            "NEW",
            "SYN_SENT",
            "SYN_SENT2",
            "SYN_RECV",
            "COOKIE_WAIT",
            "COOKIE_ECHOED",
            "HEARTBEAT_SENT",
        ),
    ),
    "closing": Phase(
        "#8250df",
        "#bc8cff",
        "2 3",
        "dotted",
        (
            "FIN_WAIT",
            "CLOSE_WAIT",
            "LAST_ACK",
            "TIME_WAIT",
            "SHUTDOWN_SENT",
            "SHUTDOWN_RECD",
            "SHUTDOWN_ACK_SENT",
        ),
    ),
    "closed": Phase("#cf222e", "#ff7b72", "8 3 2 3", "dashed", ("CLOSE", "CLOSED")),
}
_OTHER = Phase("#57606a", "#8b949e", "", "solid", ())
_PHASE_OF = {state: name for name, phase in PHASES.items() for state in phase.states}


def phase_of(state: str) -> str:
    """Return the name of a state's phase; ``other`` for a state that no phase has."""
    return _PHASE_OF.get(state, "other")


def _phase(name: str) -> Phase:
    return PHASES.get(name, _OTHER)


_THIN, _THICK = 1.5, 9.0  # width of an edge, px
_COLUMN, _BOTH_SIDES = 200, 348  # width of a box; of one with interfaces on both sides
_GAP, _BETWEEN = 176, 26  # between columns, between boxes of a column
_HEAD, _LINE, _SLOT_END = 24, 15, 8
_LANE, _NARROW_LANE, _STRIP_MAX = 21, 5, 150
_CHAR = 6.7  # px a character of the fixed-width font takes at 11 px
_MARGIN = 24
#: So many edges, and so many on one side of a box, have words on them; of more, only when pointed
#: at.
_LABELLED, _LABELLED_LANES = 40, 8
_ADDRESSES = 2  # of an interface that are written; all are told when it is pointed at
_BAD = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def width(octets: int, most: int) -> float:
    """Return how wide an edge is: its area is as its bytes.

    >>> width(0, 100), width(100, 100)
    (1.5, 9.0)
    """
    return round(_THIN + (_THICK - _THIN) * math.sqrt(octets / most if most else 0), 2)


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


def _x(text: object) -> str:
    """Return text for XML: escaped, without what XML has no way to write."""
    return escaping.escape(_BAD.sub("\ufffd", str(text)))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


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
            return _cut(name, at)
    return name


def caption(edge: Graph) -> str:
    """Return an edge in a few words.

    >>> caption({"state": "REPLIED", "flows": 3, "bytes": 1200, "protos": {"udp": 2, "icmp": 1}})
    'udp, icmp REPLIED ×3 · 1.2 kB'
    """
    names = list(edge["protos"])
    shown = ", ".join(names) if len(names) <= 2 else f"{names[0]} …"
    count = f" ×{edge['flows']}" if edge["flows"] > 1 else ""
    return f"{shown} {edge['state']}{count} · {size(edge['bytes'])}"


def _story(edge: Graph, names: t.Mapping[str, str]) -> str:
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


def _about(place: Graph) -> str:
    kind = {
        "host": "the host's own namespace",
        "netns": "network namespace",
        "machine": "a host of the fleet",
        "outside": "outside of what is drawn",
    }[place["kind"]]
    lines = [f"{place['name']}: {kind}"]
    return "\n".join(lines + [_about_interface(one) for one in place["interfaces"]])


def _about_interface(one: Graph) -> str:
    runs = f", runs {_badge(one)}" if _badge(one) else ""
    return (
        f"{one['name']}{'' if one['up'] else ' (down)'}:"
        f" {', '.join(one['addresses']) or 'no address'}, {one['mac']}, MTU {one['mtu']}{runs}"
    )


def _badge(one: Graph) -> str:
    """Return what runs on an interface, "" for nothing."""
    if one["hook"]:
        return f"{one['hook']} · {one['mode']}"
    return f"other XDP: {one['foreign']} · {one['mode']}" if one["foreign"] else ""


# ---------------------------------------------------------------- layout
@dataclasses.dataclass
class _Slot:
    """An interface in its box; y is from the box's top."""

    interface: Graph
    lines: list[str]
    y: float = 0

    @property
    def height(self) -> float:
        return _LINE * (1 + len(self.lines) + bool(_badge(self.interface))) + _SLOT_END


@dataclasses.dataclass
class _Box:
    """A place in the picture.

    :ivar column: 0 is the middle, less is left of it.
    :ivar slots: interfaces by the side on which their link leaves, -1 left and 1 right.
    :ivar lanes: the flows that end on each side, as (y of the other end, edge number, whether it
        begins here).
    """

    place: Graph
    column: int = 0
    children: list[str] = dataclasses.field(default_factory=list)
    slots: dict[int, list[_Slot]] = dataclasses.field(default_factory=lambda: {-1: [], 1: []})
    lanes: dict[int, list[tuple[float, int, bool]]] = dataclasses.field(
        default_factory=lambda: {-1: [], 1: []}
    )
    x: float = 0
    y: float = 0
    width: float = _COLUMN
    height: float = 0
    strip: float = 0

    @property
    def middle(self) -> float:
        return self.y + self.height / 2

    def edge_x(self, side: int) -> float:
        return self.x if side < 0 else self.x + self.width


class Layout:
    """Where everything is.

    :ivar boxes: by place.
    :ivar links: (x, y) of both ends of each link, with its interfaces' names.
    :ivar flows: (edge, x and side of both ends) of each edge.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.boxes = {place["id"]: _Box(place) for place in graph["places"]}
        self._peers = {
            tuple(end): tuple(other)
            for one, two in graph["links"]
            for end, other in ((one, two), (two, one))
        }
        self._near: dict[str, list[str]] = {name: [] for name in self.boxes}
        for (one, dummy), (two, dummy2) in graph["links"]:
            for place, other in ((one, two), (two, one)):
                if other != place and other not in self._near[place]:
                    self._near[place].append(other)
        self._tree()
        self._fill_slots()
        self._sides = [self._sides_of(edge) for edge in graph["edges"]]
        self._count_lanes()
        self._set_out()

    # -- which column --
    def _tree(self) -> None:
        """Give each place its column, breadth first from the middle; what nothing leads to is hung
        there, too.
        """
        places = list(self.boxes)

        def rank(name: str) -> tuple[int, int, int]:
            box = self.boxes[name]
            return (
                -sum(bool(one["hook"]) for one in box.place["interfaces"]),
                -len(self._near[name]),
                places.index(name),
            )

        self.root = min(places, key=rank)
        seen = {self.root}
        children = self._unseen(self.root, seen)
        loose = sorted((name for name in places if name not in self._reached(self.root)), key=rank)
        for name in loose:
            if name not in seen:
                seen.add(name)
                children.append(name)
                seen |= self._reached(name) - {name}
        seen = {self.root, *children}
        queue = collections.deque((name, side) for name, side in self._parted(children))
        for name, side in queue:
            self.boxes[name].column = side
            self.boxes[self.root].children.append(name)
        while queue:
            name, side = queue.popleft()
            for child in self._unseen(name, seen):
                self.boxes[child].column = self.boxes[name].column + side
                self.boxes[name].children.append(child)
                queue.append((child, side))

    def _unseen(self, name: str, seen: set[str]) -> list[str]:
        found = [one for one in self._near[name] if one not in seen]
        seen.update(found)
        return found

    def _reached(self, name: str) -> set[str]:
        found, todo = {name}, [name]
        while todo:
            todo += self._unseen(todo.pop(), found)
        return found

    def _parted(self, children: t.Sequence[str]) -> list[tuple[str, int]]:
        """Return the side of each neighbour of the middle: a few by their hook, initiators left,
        many evenly.
        """
        hooks = {
            self._peers[place, one["name"]][0]: one["hook"]
            for place, one in self._interfaces()
            if place == self.root and (place, one["name"]) in self._peers
        }
        parted, balance = [], 0
        for name in children:
            wanted = (
                {"ingress": -1, "egress": 1}.get(hooks.get(name) or "", 0)
                if len(children) <= 6
                else 0
            )
            side = wanted or (-1 if balance <= 0 else 1)
            balance -= side
            parted.append((name, side))
        return parted

    def _interfaces(self) -> t.Iterator[tuple[str, Graph]]:
        return ((name, one) for name, box in self.boxes.items() for one in box.place["interfaces"])

    # -- how large --
    def _side(self, name: str, other: str) -> int:
        """Return the side of a box that looks to another one; to one above or below it that is the
        side that looks to the middle.
        """
        one, two = self.boxes[name].column, self.boxes[other].column
        return 1 if two > one or (two == one and one < 0) else -1

    def _fill_slots(self) -> None:
        for name, one in self._interfaces():
            box = self.boxes[name]
            peer = self._peers.get((name, one["name"]))
            if peer is not None:
                side = self._side(name, peer[0])
            elif box.column:
                side = -1 if box.column < 0 else 1
            else:
                side = min(
                    (-1, 1),
                    key=lambda one: sum(slot.height for slot in self.boxes[self.root].slots[one]),
                )
            lines = one["addresses"][:_ADDRESSES]
            more = len(one["addresses"]) - len(lines)
            box.slots[side].append(_Slot(one, lines + ([f"+{more} more"] if more else [])))
        for box in self.boxes.values():
            box.width = _BOTH_SIDES if all(box.slots.values()) else _COLUMN

    def _sides_of(self, edge: Graph) -> tuple[int, int]:
        return self._side(edge["from"], edge["to"]), self._side(edge["to"], edge["from"])

    def _count_lanes(self) -> None:
        counts: collections.Counter[tuple[str, int]] = collections.Counter()
        for edge, sides in zip(self.graph["edges"], self._sides):
            counts.update(zip((edge["from"], edge["to"]), sides))
        self.labelled = (
            len(self.graph["edges"]) <= _LABELLED
            and max(counts.values(), default=0) <= _LABELLED_LANES
        )
        lane = _LANE if self.labelled else _NARROW_LANE
        for name, box in self.boxes.items():
            box.strip = min(
                max(counts[name, -1], counts[name, 1]) * lane,
                _LANE * _LABELLED_LANES if self.labelled else _STRIP_MAX,
            )

    def _own_height(self, box: _Box) -> float:
        return (
            _HEAD
            + box.strip
            + max(sum(slot.height for slot in slots) for slots in box.slots.values())
            + (_SLOT_END if any(box.slots.values()) else 0)
        )

    # -- where --
    def _set_out(self) -> None:
        root = self.boxes[self.root]
        heights = {
            side: self._stack(
                [name for name in root.children if self.boxes[name].column == side], 0
            )
            for side in (-1, 1)
        }
        root.height = max(self._own_height(root), *heights.values())
        for side, height in heights.items():
            for name in root.children:
                if self.boxes[name].column == side:
                    self._shift(name, (root.height - height) / 2 if height else 0)
        widths: dict[int, float] = collections.defaultdict(float)
        for box in self.boxes.values():
            widths[box.column] = max(widths[box.column], box.width)
        x, at = 0.0, {}
        for column in sorted(widths):
            at[column] = x
            x += widths[column] + _GAP
        for box in self.boxes.values():
            spare = widths[box.column] - box.width
            box.x = at[box.column] + (spare if box.column < 0 else 0)
        for name, box in self.boxes.items():
            self._place_slots(name, box)
        for name in sorted(self.boxes, key=lambda one: one != self.root):
            self.boxes[name].height = max(
                self.boxes[name].height, self._own_height(self.boxes[name])
            )
        self._place_lanes()
        self.links = [
            (self._port(one), self._port(two), one, two) for one, two in self.graph["links"]
        ]
        self.width = max(box.x + box.width for box in self.boxes.values())
        self.height = max(box.y + box.height for box in self.boxes.values())

    def _stack(self, names: t.Sequence[str], top: float) -> float:
        """Put boxes with their children one below the other; return the height of it all."""
        y = top
        for name in names:
            box = self.boxes[name]
            box.height = self._own_height(box)
            inner = self._stack(box.children, y)
            whole = max(box.height, inner)
            box.y = y + (whole - box.height) / 2
            for child in box.children:
                self._shift(child, (whole - inner) / 2)
            y += whole + _BETWEEN
        return y - top - _BETWEEN if names else 0

    def _shift(self, name: str, by: float) -> None:
        self.boxes[name].y += by
        for child in self.boxes[name].children:
            self._shift(child, by)

    def _place_slots(self, name: str, box: _Box) -> None:
        """Put interfaces below the strip; those of the middle level with the boxes that they lead
        to, where these leave room.
        """
        for slots in box.slots.values():
            y = _HEAD + box.strip
            if name == self.root:
                slots.sort(key=lambda slot: self._peer_y(name, slot))
            for slot in slots:
                if name == self.root:
                    y = max(y, self._peer_y(name, slot) - box.y)
                slot.y = y
                y += slot.height
            box.height = max(box.height, y + _SLOT_END if slots else 0)

    def _peer_y(self, name: str, slot: _Slot) -> float:
        """Return how far down the other end of a middle one's interface is."""
        peer = self._peers.get((name, slot.interface["name"]))
        if peer is None:
            return float("-inf")
        box = self.boxes[peer[0]]
        above = 0.0
        for one in box.slots[self._side(peer[0], name)]:
            if one.interface["name"] == peer[1]:
                break
            above += one.height
        return box.y + _HEAD + box.strip + above

    def _port(self, end: t.Sequence[str]) -> tuple[float, float, int]:
        """Return where a link ends, and on which side of its box."""
        box = self.boxes[end[0]]
        for side, slots in box.slots.items():
            for slot in slots:
                if slot.interface["name"] == end[1]:
                    return box.edge_x(side), box.y + slot.y + _LINE / 2 + 2, side
        return box.edge_x(1), box.middle, 1

    def _place_lanes(self) -> None:
        for number, (edge, (begins, ends)) in enumerate(zip(self.graph["edges"], self._sides)):
            one, two = self.boxes[edge["from"]], self.boxes[edge["to"]]
            one.lanes[begins].append((two.y, number, True))
            two.lanes[ends].append((one.y, number, False))
        points: dict[tuple[int, bool], tuple[float, float, int]] = {}
        for box in self.boxes.values():
            for side, lanes in box.lanes.items():
                step = box.strip / len(lanes) if lanes else 0
                for at, (dummy, number, begins) in enumerate(sorted(lanes)):
                    points[number, begins] = (
                        box.edge_x(side),
                        box.y + _HEAD + step * (at + 0.6),
                        side,
                    )
        self.flows = [
            (edge, points[number, True], points[number, False])
            for number, edge in enumerate(self.graph["edges"])
        ]


# ---------------------------------------------------------------- SVG
_COLOURS = {
    "ground": ("#ffffff", "#0d1117"),
    "card": ("#f6f8fa", "#161b22"),
    "line": ("#8c959f", "#6e7681"),
    "text": ("#1f2328", "#e6edf3"),
}
_COLOURS.update(dim=("#59636e", "#9198a1"), hook=("#bc4c00", "#f0883e"))


def _style() -> str:
    """Return the picture's style: one set of colours for a light ground, one for a dark one."""
    colours = {
        **_COLOURS,
        **{name: (phase.light, phase.dark) for name, phase in {**PHASES, "other": _OTHER}.items()},
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
    for name, phase in {**PHASES, "other": _OTHER}.items():
        dash = f";stroke-dasharray:{phase.dash}" if phase.dash else ""
        rules.append(
            f".ct .{name} .line{{stroke:var(--{name}){dash}}}.ct .{name}"
            f" .head{{fill:var(--{name})}}"
        )
    return "".join(rules)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    more = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{_x(text)}</text>'


def svg(graph: Graph) -> str:
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
            f' aria-label="{_x(about)}" width="{wide:.0f}" height="{high:.0f}" viewBox="0 0'
            f' {wide:.0f} {high:.0f}">'
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


def _box(box: _Box) -> str:
    place = box.place
    title = _fitting(place["name"], box.width - 16)
    return (
        f'<g class="place {place["kind"]}"'
        f' data-place="{_x(place["name"])}"><title>{_x(_about(place))}</title>'
        f'<rect class="box" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}"'
        f' height="{box.height:.1f}" rx="6"/>'
        f"{_text(box.x + box.width / 2, box.y + 17, title, 'name', 'middle')}</g>"
    )


def _slots(box: _Box) -> str:
    parts = []
    most = int(((box.width - 30) / 2 if all(box.slots.values()) else box.width - 22) / _CHAR)
    for side, slots in box.slots.items():
        for slot in slots:
            one, badge = slot.interface, _badge(slot.interface)
            x, y = box.edge_x(side) - side * 11, box.y + slot.y + 12
            anchor = "start" if side < 0 else "end"
            lines = [
                _text(x, y, _cut(one["name"] + ("" if one["up"] else " (down)"), most), "", anchor)
            ]
            lines += [
                _text(x, y + _LINE * at, _cut(line, most), "dim", anchor)
                for at, line in enumerate(slot.lines, 1)
            ]
            if badge:
                badge = _cut(badge, most - 1)
                wide, top = 6.1 * len(badge) + 10, y + _LINE * len(slot.lines) + 5
                lines.append(
                    f'<rect class="badge" x="{x if side < 0 else x - wide:.1f}" y="{top:.1f}"'
                    f' width="{wide:.1f}" height="14" rx="4"/>'
                )
                lines.append(_text(x - side * 5, top + 10.5, badge, "badged", anchor))
            hook = " hook" if badge else ""
            lines.append(
                f'<circle class="port{hook}" cx="{box.edge_x(side):.1f}"'
                f' cy="{box.y + slot.y + _LINE / 2 + 2:.1f}" r="4"/>'
            )
            parts.append(
                f'<g class="slot" data-interface="{_x(one["name"])}">'
                f"<title>{_x(_about_interface(one))}</title>{''.join(lines)}</g>"
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
        else 40 + min(_GAP * 0.7, abs(y2 - y1) * 0.2)
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
    return f'<path class="link" d="{_curve(one, two)}"><title>{_x(title)}</title></path>'


def _flow(
    number: int,
    edge: Graph,
    one: tuple[float, float, int],
    two: tuple[float, float, int],
    names: t.Mapping[str, str],
    most: int,
) -> str:
    x, y, side = two
    wide = width(edge["bytes"], most)
    half = wide / 2 + 3
    head = f"M{x:.1f} {y:.1f}l{side * 9} {-half:.1f}v{2 * half:.1f}z"
    return (
        f'<g class="flow {phase_of(edge["state"])}" id="flow{number}"'
        f' data-from="{_x(names[edge["from"]])}" data-to="{_x(names[edge["to"]])}"'
        f' data-state="{_x(edge["state"])}"'
        f' data-flows="{edge["flows"]}"><title>{_x(_story(edge, names))}</title><path class="line"'
        f' stroke-width="{wide}" d="{_curve(one, two, 8)}"/><path class="head" d="{head}"/></g>'
    )


def _words(edge: Graph, begin: tuple[float, float, int], most: int) -> str:
    """Return an edge's caption, beside the box where it begins: there each edge has a lane of its
    own.
    """
    x, y, side = begin
    return _text(
        x + side * 7,
        y - width(edge["bytes"], most) / 2 - 3,
        caption(edge),
        "words",
        "start" if side > 0 else "end",
    )


def _legend(graph: Graph, top: float, wide: float, most: int) -> tuple[str, float]:
    """Return what the colours and widths mean, and how high that is."""
    used: dict[str, list[str]] = {}
    for edge in graph["edges"]:
        states = used.setdefault(phase_of(edge["state"]), [])
        if edge["state"] not in states:
            states.append(edge["state"])
    items = [
        (
            f'<g class="{name}"><path class="line" fill="none" stroke-width="4" d="M0 -4h30"/></g>',
            ", ".join(sorted(states)),
        )
        for name, states in sorted(used.items(), key=lambda item: [*PHASES, "other"].index(item[0]))
    ]
    if items:
        least = min(edge["bytes"] for edge in graph["edges"])
        items.append(
            (
                (
                    f'<path fill="var(--dim)" d="M0 -3.2l30 -3v{width(most, most) / 2 + 2:.1f}l-30'
                    ' -3z"/>'
                ),
                f"wider: more bytes, {size(least)} to {size(most)}",
            )
        )
    # of a fleet's hosts only the flows are known
    if any(place["kind"] != "machine" for place in graph["places"] if place["kind"] != "outside"):
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


# ---------------------------------------------------------------- HTML
_PAGE = (
    "<!doctype html>\n"
    '<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport"'
    ' content="width=device-width">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src'
    " 'unsafe-inline'; img-src data:\">\n"
    '<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>'
    ":root{{color-scheme:light dark}}body{{margin:1rem;font:14px system-ui,'DejaVu"
    " Sans',sans-serif;background:#fff;color:#1f2328}}"
    "svg{{max-width:100%;height:auto;display:block;margin:0"
    " auto}}table{{border-collapse:collapse;margin:1rem 0}}"
    "caption{{text-align:left;font-weight:600;padding:.3rem 0}}th,td{{border:1px solid"
    " #8c959f;padding:.2rem .5rem;text-align:left}}"
    "td{{max-width:24rem;overflow-wrap:anywhere}}td.n{{text-align:right}}"
    "@media(prefers-color-scheme:dark){{body{{background:#0d1117;color:#e6edf3}}}}"
    "</style>\n</head>\n<body>\n{svg}{tables}</body>\n</html>\n"
)


def html(graph: Graph) -> str:
    """Return a page with the picture, and the same in tables."""
    names = {place["id"]: place["name"] for place in graph["places"]}
    flows = [
        (
            names[edge["from"]],
            names[edge["to"]],
            edge["state"],
            ", ".join(edge["protos"]),
            edge["flows"],
            edge["packets"],
            edge["bytes"],
        )
        for edge in graph["edges"]
    ]
    interfaces = [
        (
            place["name"],
            one["name"],
            ", ".join(one["addresses"]),
            one["mac"],
            one["mtu"],
            "up" if one["up"] else "down",
            _badge(one),
        )
        for place in graph["places"]
        for one in place["interfaces"]
    ]
    tables: list[Table] = [
        ("Flows", ("from", "to", "state", "protocols", "flows", "packets", "bytes"), flows),
        (
            "Interfaces",
            ("namespace", "interface", "addresses", "MAC", "MTU", "state", "XDP"),
            interfaces,
        ),
    ]
    return page(graph, tables)


def page(graph: Graph, tables: t.Iterable[Table]) -> str:
    """Return a page with the picture and these tables."""
    return _PAGE.format(
        title=_x(graph["title"]), svg=svg(graph), tables="".join(_table(*one) for one in tables)
    )


_NUMBER = ' class="n"'


def _table(title: str, heads: t.Sequence[str], rows: t.Sequence[t.Sequence[object]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_NUMBER if isinstance(one, int) else ''}>{_x(one)}</td>" for one in row)
        + "</tr>\n"
        for row in rows
    )
    return (
        f"<table>\n<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n"
    )


# ---------------------------------------------------------------- mermaid and dot
_PLAIN = re.compile(r"[^A-Za-z0-9 .,:/@×·_()+-]")


def _mermaid(text: str) -> str:
    """Return text for a quoted string of mermaid, with all that could mean something there as the
    number of the character.
    """
    return _PLAIN.sub(lambda found: f"#{ord(found.group())};", _BAD.sub("\ufffd", text))


def _numbered(graph: Graph) -> dict[str, str]:
    return {place["id"]: f"n{number}" for number, place in enumerate(graph["places"])}


def _lines(place: Graph) -> list[str]:
    """Return what a box has inside, a line each."""
    lines = [place["name"]]
    for one in place["interfaces"]:
        lines.append(
            " ".join(
                filter(
                    None,
                    (
                        one["name"],
                        *one["addresses"][:_ADDRESSES],
                        f"({_badge(one)})" if _badge(one) else "",
                    ),
                )
            )
        )
    return lines


def mermaid(graph: Graph) -> str:
    """Return the graph for mermaid."""
    ids, lines, styles = _numbered(graph), ["flowchart LR"], []
    for place in graph["places"]:
        text = "<br/>".join(map(_mermaid, _lines(place)))
        lines.append(
            f'  {ids[place["id"]]}(["{text}"])'
            if place["kind"] == "outside"
            else f'  {ids[place["id"]]}["{text}"]'
        )
    for one, two in graph["links"]:
        lines.append(f'  {ids[one[0]]} ---|"{_mermaid(f"{one[1]} - {two[1]}")}"| {ids[two[0]]}')
    most = max((edge["bytes"] for edge in graph["edges"]), default=0)
    for number, edge in enumerate(graph["edges"], len(graph["links"])):
        phase = _phase(phase_of(edge["state"]))
        dash = f",stroke-dasharray:{phase.dash}" if phase.dash else ""
        lines.append(f'  {ids[edge["from"]]} -->|"{_mermaid(caption(edge))}"| {ids[edge["to"]]}')
        styles.append(
            f"  linkStyle {number}"
            f" stroke:{phase.light},stroke-width:{width(edge['bytes'], most)}px{dash}"
        )
    return "\n".join([*lines, *styles]) + "\n"


def _dot(*lines: str) -> str:
    """Return a quoted string of dot; it reads character references in them."""
    texts = (
        _BAD.sub("\ufffd", line).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
        for line in lines
    )
    return '"' + "\\n".join(" ".join(text.split("\n")) for text in texts) + '"'


def dot(graph: Graph) -> str:
    """Return the graph for graphviz."""
    ids = _numbered(graph)
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
            f"  {ids[place['id']]} [label={_dot(*_lines(place))},"
            f" tooltip={_dot(*_about(place).splitlines())}{more}];"
        )
    for one, two in graph["links"]:
        lines.append(
            f'  {ids[one[0]]} -> {ids[two[0]]} [dir=none, color="#8c959f",'
            f" taillabel={_dot(one[1])}, headlabel={_dot(two[1])}];"
        )
    most = max((edge["bytes"] for edge in graph["edges"]), default=0)
    for edge in graph["edges"]:
        phase = _phase(phase_of(edge["state"]))
        lines.append(
            f"  {ids[edge['from']]} -> {ids[edge['to']]} [xlabel={_dot(caption(edge))},"
            " constraint=false, "
            f'color="{phase.light}", fontcolor="{phase.light}", style={phase.dot},'
            f" penwidth={width(edge['bytes'], most)}];"
        )
    return "\n".join([*lines, "}"]) + "\n"


FORMS: dict[str, t.Callable[[Graph], str]] = {
    "html": html,
    "svg": svg,
    "mermaid": mermaid,
    "dot": dot,
}
