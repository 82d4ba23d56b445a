# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts for the tests of pictures, as ct_graph.observe() and the flow tables would show them."""

from __future__ import annotations

import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import graph as ct_graph
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab.model import (
    HaveAddress,
    HaveLink,
    Key,
    show_key,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab.topology import parse

ROUTER = "rt"
#: Names that the kernel takes and that mean something in one of the forms.
NASTY = ('<b>"x"&y', "a'b#c;d|e`f")


def link(key: Key, index: int, peer: int, address: str, alias: str = "") -> HaveLink:
    """Return an interface with one address."""
    ip = parse(
        {
            "namespaces": [{"name": "a"}, {"name": "b"}],
            "links": [
                {
                    "ends": [
                        {"name": "x", "netns": "a", "addresses": [address]},
                        {"name": "x", "netns": "b"},
                    ]
                }
            ],
        }
    )
    (end,) = [end for end in ip.ends.values() if end.addresses]
    return HaveLink(
        key,
        index,
        "veth",
        alias,
        0,
        1500,
        f"02:00:00:00:{index >> 8:02x}:{index & 255:02x}",
        True,
        True,
        peer,
        (HaveAddress(end.addresses[0]),),
    )


def loopback(place: str | None) -> HaveLink:
    """Return the loopback of a lab's namespace."""
    return HaveLink(
        (place, "lo"), 1, None, "ebpf.conntrack:lab" if place else "", 0, 65536, "", True, True, 1
    )


def host(leaves: t.Sequence[str]) -> ct_graph.Seen:
    """Return a router in the middle of namespaces, the first half of which begin the flows."""
    interfaces: dict[str | None, list[HaveLink]] = {
        None: [loopback(None)],
        ROUTER: [loopback(ROUTER)],
    }
    peers: dict[Key, Key] = {}
    programs: dict[Key, dict[str, t.Any]] = {}
    for number, name in enumerate(leaves):
        one, two = (name, "eth0"), (ROUTER, f"to-{number}")
        interfaces[name] = [
            loopback(name),
            link(
                one,
                2,
                2 + number,
                f"10.{number // 250}.{number % 250}.2/24",
                f"ebpf.conntrack:lab {show_key(two)}",
            ),
        ]
        interfaces[ROUTER].append(
            link(
                two,
                2 + number,
                2,
                f"10.{number // 250}.{number % 250}.1/24",
                f"ebpf.conntrack:lab {show_key(one)}",
            )
        )
        peers.update({one: two, two: one})
        programs[two] = {
            "program": "ingress" if number < (len(leaves) + 1) // 2 else "egress",
            "mode": "native",
            "ours": True,
        }
    return ct_graph.Seen(interfaces, peers, programs)


def group(
    one: int | str,
    two: int | str,
    proto: str = "tcp",
    state: str = "ESTABLISHED",
    flows: int = 1,
    octets: int = 1000,
) -> dict[str, t.Any]:
    """Return flows between two leaves, by their numbers, or addresses."""
    src, dst = (
        end if isinstance(end, str) else f"10.{end // 250}.{end % 250}.2" for end in (one, two)
    )
    return {
        "src": src,
        "dst": dst,
        "proto": proto,
        "state": state,
        "flows": flows,
        "packets": 4 * flows,
        "bytes": octets,
    }


def everyone(leaves: int) -> list[dict[str, t.Any]]:
    """Return flows from each leaf to some others, of all states in turn."""
    states = (
        [("tcp", state) for state in flow.STATES[6][1:]]
        + [("udp", state) for state in flow.PLAIN_STATES]
        + [("icmp", "REPLIED")]
    )
    groups = []
    for one in range(leaves):
        for step in (1, 3, 7):
            two = (one + step) % leaves
            proto, state = states[(one * 3 + step) % len(states)]
            if one != two:
                groups.append(
                    group(one, two, proto, state, 1 + one % 4, 100 * (one + 1) ** 2 * step)
                )
    return groups
