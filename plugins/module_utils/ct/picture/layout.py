# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everything is in a picture: columns, boxes, slots, and the lanes in which flows end.

The layout is a tree on its side: the place with the most hooks of the chain in the middle, its
neighbours in columns to its left and right, theirs further out. A box has a head with the name, a
strip in which the flows begin and end, and its interfaces, each level with the other end of its
link where it is the middle one's.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from . import captions

_COLUMN, _BOTH_SIDES = 200, 348  # width of a box; of one with interfaces on both sides
GAP, _BETWEEN = 176, 26  # between columns, between boxes of a column
_HEAD, LINE, _SLOT_END = 24, 15, 8
_LANE, _NARROW_LANE, _STRIP_MAX = 21, 5, 150
#: So many edges, and so many on one side of a box, have words on them; of more, only when pointed
#: at.
_LABELLED, _LABELLED_LANES = 40, 8


# ---------------------------------------------------------------- layout
@dataclasses.dataclass
class _Slot:
    """An interface in its box; y is from the box's top."""

    interface: captions.Graph
    lines: list[str]
    y: float = 0

    @property
    def height(self) -> float:
        return LINE * (1 + len(self.lines) + bool(captions.badge(self.interface))) + _SLOT_END


@dataclasses.dataclass
class Box:
    """A place in the picture.

    :ivar column: 0 is the middle, less is left of it.
    :ivar slots: interfaces by the side on which their link leaves, -1 left and 1 right.
    :ivar lanes: the flows that end on each side, as (y of the other end, edge number, whether it
        begins here).
    """

    place: captions.Graph
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

    def __init__(self, graph: captions.Graph) -> None:
        self.graph = graph
        self.boxes = {place["id"]: Box(place) for place in graph["places"]}
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

    def _interfaces(self) -> t.Iterator[tuple[str, captions.Graph]]:
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
            lines = one["addresses"][: captions.ADDRESSES]
            more = len(one["addresses"]) - len(lines)
            box.slots[side].append(_Slot(one, lines + ([f"+{more} more"] if more else [])))
        for box in self.boxes.values():
            box.width = _BOTH_SIDES if all(box.slots.values()) else _COLUMN

    def _sides_of(self, edge: captions.Graph) -> tuple[int, int]:
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

    def _own_height(self, box: Box) -> float:
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
            x += widths[column] + GAP
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

    def _place_slots(self, name: str, box: Box) -> None:
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
                    return box.edge_x(side), box.y + slot.y + LINE / 2 + 2, side
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
