# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host as a graph: namespaces, the links between them, the hooks of the chain on these, and the
flows in its tables, as plain data.

observe() looks, build() is pure; picture/ makes pictures of what it returns. Flows are added
up between places, by state, while they are read, so a table of any size gives a graph of a few
edges.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import socket
import time
import typing as t

from ..attach import model as attach_model
from ..attach import observe as attach_observe
from ..core.calendar import utc
from ..core.errors import ConntrackError, bad_value
from ..flows import filter as flow_filter
from ..flows import read as flow_read
from ..flows import table as flow_table
from ..kernel import bpffs, netns
from ..lab import model as lab_model
from ..lab import observe as lab_observe
from ..lab.model import HaveLink, Key

#: Edges to draw; of more, those with the most bytes.
MOST_EDGES = 300
#: Addresses of no namespace to draw by themselves; of more, those with the most bytes.
MOST_OUTSIDE = 12
#: Pairs of addresses that an edge names.
_NAMED = 8
_GROUP_BY = ("src", "dst", "proto", "state")
#: places: id, name, kind (host, netns, outside), interfaces. links: two [place, interface] each.
#: edges: from, to, state, flows, packets, bytes, protos, pairs.
Graph = dict[str, t.Any]
Group = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A host as it was found.

    :ivar interfaces: those of each namespace, lo included; None is the host's own.
    :ivar peers: the other end of each veth, where it is known.
    :ivar programs: what runs on an interface, as attach.Attached.shown() has it, with ``ours``.
    """

    interfaces: t.Mapping[str | None, t.Sequence[HaveLink]]
    peers: t.Mapping[Key, Key]
    programs: t.Mapping[Key, t.Mapping[str, t.Any]]


# ---------------------------------------------------------------- looking
def observe(paths: bpffs.Paths) -> Seen:
    """Look at every named namespace and the current one; nothing is changed.

    :raises ConntrackError: for a user who may not enter namespaces, and for what is pinned by
        somebody else.
    """
    found: dict[str | None, list[HaveLink]] = {None: lab_observe.interfaces(None)}
    for name, inode in netns.names()[0].items():
        if inode == netns.inode(None):
            continue  # the current one has a name
        try:
            found[name] = lab_observe.interfaces(name)
        except ConntrackError:
            if netns.exists(name):
                raise
    keys = [link.key for links in found.values() for link in links if link.ifindex != 1]
    wants = attach_model.parse(
        "absent", [{"name": name, "netns": namespace} for namespace, name in keys], "auto"
    )
    programs = {}
    for key, have in zip(keys, attach_observe.observe(paths, wants)):
        if have.attached is not None:
            programs[key] = {
                **have.attached.shown(),
                "ours": have.attached.program.hook is not None,
            }
    return Seen(found, _peers(found), programs)


def _peers(found: t.Mapping[str | None, t.Sequence[HaveLink]]) -> dict[Key, Key]:
    """Return the ends of veths that name each other's number, and no third one's.

    Numbers are those of a namespace, so two pairs may look alike; the alias that netns_lab gives an
    end then tells them apart.
    """
    ends: dict[tuple[int, int], list[HaveLink]] = collections.defaultdict(list)
    for links in found.values():
        for link in links:
            if link.kind == "veth":
                ends[link.ifindex, link.peer_index].append(link)
    peers = {}
    for (index, peer), mine in ends.items():
        for link in mine:
            others = [one for one in ends.get((peer, index), ()) if one.key != link.key]
            named = [
                one for one in others if link.alias.partition(" ")[2] == lab_model.show_key(one.key)
            ]
            if len(named or others) == 1:
                peers[link.key] = (named or others)[0].key
    return {key: other for key, other in peers.items() if peers.get(other) == key}


def read(paths: bpffs.Paths, filters: t.Mapping[str, t.Any], lab: str | None = None) -> Graph:
    """Return the graph of this host.

    :param filters: the flows to count, see flow_filter.
    :param lab: draw the namespaces and links of this lab only.
    :raises ConntrackError: for a bad filter, a lab that is not there, and what observe() raises.
    """
    query = flow_filter.parse_query({**filters, "group_by": _GROUP_BY, "limit": 1 << 40})
    seen = observe(paths)
    note, groups = "", []
    try:
        with flow_table.FlowTables(paths.pin_root) as tables:
            groups = flow_read.read(tables, query, summary=False).groups
    except flow_table.NoChain:
        note = f"No chain is loaded at {paths.pin_root}, so there are no flows."
    return build(seen, groups, lab, lab or socket.gethostname(), note, utc(time.time()))


# ---------------------------------------------------------------- making
def build(
    seen: Seen,
    groups: t.Iterable[Group],
    lab: str | None = None,
    title: str = "",
    note: str = "",
    read_at: str = "",
) -> Graph:
    """Return the graph.

    :param groups: flows, packets and bytes by source, destination, protocol and state.
    :raises ConntrackError: there is no such lab.
    """
    chosen = _chosen(seen, lab)
    places = _Places(seen, chosen, lab is None)
    edges, left_out = _edges(groups, places)
    return {
        "title": title,
        "note": note,
        "read_at": read_at,
        "places": places.shown(edges),
        "links": [
            [[places.id(one[0]), one[1]], [places.id(two[0]), two[1]]] for one, two in places.links
        ],
        "edges": edges,
        "totals": {
            "flows": sum(edge["flows"] for edge in edges) + left_out["flows"],
            "bytes": sum(edge["bytes"] for edge in edges) + left_out["bytes"],
        },
        "left_out": left_out,
    }


def _chosen(seen: Seen, lab: str | None) -> list[str]:
    """Return the namespaces to draw."""
    marks = {
        name: next((link.alias for link in links if link.ifindex == 1), "")
        for name, links in seen.interfaces.items()
        if name is not None
    }
    if lab is None:
        return sorted(marks, key=_counted)
    chosen = [
        name
        for name, mark in sorted(marks.items(), key=lambda item: _counted(item[0]))
        if mark == lab_model.MARK_PREFIX + lab
    ]
    if not chosen:
        labs = sorted(
            {
                mark[len(lab_model.MARK_PREFIX) :]
                for mark in marks.values()
                if mark.startswith(lab_model.MARK_PREFIX)
            }
        )
        raise bad_value(
            "lab",
            lab,
            f"give one of {', '.join(labs)}"
            if labs
            else "there is no lab: make one with netns_lab, or leave it out",
        )
    return chosen


class _Places:
    """Which places there are, and whose an address is."""

    def __init__(self, seen: Seen, chosen: t.Sequence[str], whole: bool) -> None:
        """Choose the places.

        :param whole: whether interfaces of the host that have to do with none of the namespaces are
            shown, too.
        """
        self._seen, self._whole = seen, whole
        drawn: list[str | None] = [None, *chosen]
        self.links = sorted(
            {
                tuple(sorted((key, peer), key=_order))
                for key, peer in seen.peers.items()
                if key[0] in drawn
                and peer[0] in drawn
                and not (key[0] is peer[0] is None and chosen)
            },
            key=lambda link: (_order(link[0]), _order(link[1])),
        )
        linked = {place for link in self.links for place, dummy in link}
        on_host = any(key[0] is None for key in seen.programs)
        self.drawn = [
            place
            for place in drawn
            if place is not None or place in linked or on_host or not chosen
        ]
        self._owner: dict[str, str | None] = {}
        for place in sorted(
            self.drawn, key=lambda one: (one not in self._near(), one is not None, one or "")
        ):
            for link in seen.interfaces[place]:
                for address in link.addresses:
                    self._owner.setdefault(lab_model.show_ip(address.address[0]), place)
        self.outside: dict[str, str] = {}

    def _near(self) -> set[str | None]:
        """Return the places that the chain's interfaces reach over links: of two that have an
        address, these are meant.
        """
        near = {key[0] for key, program in self._seen.programs.items() if program["ours"]}
        while True:
            more = {
                place
                for link in self.links
                if {link[0][0], link[1][0]} & near
                for place, dummy in link
            }
            if more <= near:
                return near
            near |= more

    @staticmethod
    def id(place: str | None) -> str:
        """Return a place's name in the graph."""
        return "host" if place is None else f"netns:{place}"

    def of(self, address: str) -> str:
        """Return the place of an address."""
        if address in self._owner:
            return self.id(self._owner[address])
        return self.outside.get(address, "outside")

    def name_outside(self, by_bytes: collections.Counter[str]) -> None:
        """Give the addresses of no place that have the most bytes places of their own."""
        others = collections.Counter(
            {address: octets for address, octets in by_bytes.items() if address not in self._owner}
        )
        most = len(others) if len(others) <= MOST_OUTSIDE else MOST_OUTSIDE - 1
        ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
        self.outside = {address: f"outside:{address}" for address, dummy in ranked[:most]}
        self._rest = len(others) - most

    def shown(self, edges: t.Iterable[Graph]) -> list[Graph]:
        used = {edge[end] for edge in edges for end in ("from", "to")}
        ends = {end for link in self.links for end in link}
        found = [self._shown(place, ends) for place in self.drawn]
        found += [
            {"id": name, "name": address, "kind": "outside", "interfaces": []}
            for address, name in sorted(self.outside.items())
            if name in used
        ]
        if "outside" in used:
            found.append(
                {
                    "id": "outside",
                    "name": f"{self._rest} other addresses",
                    "kind": "outside",
                    "interfaces": [],
                }
            )
        return found

    def _shown(self, place: str | None, ends: t.Container[Key]) -> Graph:
        links = [link for link in self._seen.interfaces[place] if link.ifindex != 1]
        if place is None:
            own = [
                link.key
                for link in links
                if self._whole and link.up and link.kind != "veth" and _addresses(link)
            ]
            links = [
                link
                for link in links
                if link.key in ends or link.key in self._seen.programs or link.key in own
            ]
        return {
            "id": self.id(place),
            "name": "host" if place is None else place,
            "kind": "host" if place is None else "netns",
            "interfaces": [self._interface(link) for link in links],
        }

    def _interface(self, link: HaveLink) -> Graph:
        program = self._seen.programs.get(link.key)
        return {
            "name": link.key[1],
            "addresses": _addresses(link),
            "mac": link.mac,
            "mtu": link.mtu,
            "up": link.up,
            "hook": program["program"] if program and program["ours"] else None,
            "foreign": program["program"] if program and not program["ours"] else None,
            "mode": program["mode"] if program else None,
        }


def _order(key: Key) -> tuple[list[t.Any], list[t.Any]]:
    return _counted(key[0] or ""), _counted(key[1])


def _counted(name: str) -> list[t.Any]:
    """Return what sorts names as people count.

    >>> sorted(["ns10", "ns2", "a"], key=_counted)
    ['a', 'ns2', 'ns10']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _addresses(link: HaveLink) -> list[str]:
    return [
        lab_model.show_address(one.address)
        for one in link.addresses
        if not lab_model.is_link_local(one.address[0])
    ]


def _edges(groups: t.Iterable[Group], places: _Places) -> tuple[list[Graph], Graph]:
    """Return the flows between places by state, those with the most bytes first, and how much was
    left out.
    """
    groups = list(groups)
    by_bytes: collections.Counter[str] = collections.Counter()
    for group in groups:
        for end in ("src", "dst"):
            by_bytes[group[end]] += group["bytes"]
    places.name_outside(by_bytes)
    found: dict[tuple[str, str, str], Graph] = {}
    for group in sorted(
        groups,
        key=lambda one: (-one["bytes"], -one["flows"], str([one[name] for name in _GROUP_BY])),
    ):
        key = places.of(group["src"]), places.of(group["dst"]), group["state"]
        edge = found.setdefault(
            key,
            {
                "from": key[0],
                "to": key[1],
                "state": key[2],
                "flows": 0,
                "packets": 0,
                "bytes": 0,
                "protos": collections.Counter(),
                "pairs": [],
            },
        )
        for name in ("flows", "packets", "bytes"):
            edge[name] += group[name]
        edge["protos"][group["proto"]] += group["flows"]
        if len(edge["pairs"]) < _NAMED:
            edge["pairs"].append(
                {name: group[name] for name in ("proto", "src", "dst", "flows", "bytes")}
            )
    edges = sorted(
        found.values(), key=lambda edge: (-edge["bytes"], edge["from"], edge["to"], edge["state"])
    )
    for edge in edges:
        edge["protos"] = dict(sorted(edge["protos"].items(), key=lambda item: (-item[1], item[0])))
    gone = edges[MOST_EDGES:]
    return edges[:MOST_EDGES], {
        "edges": len(gone),
        "flows": sum(edge["flows"] for edge in gone),
        "bytes": sum(edge["bytes"] for edge in gone),
    }
