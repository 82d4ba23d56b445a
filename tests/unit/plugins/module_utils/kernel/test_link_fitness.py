# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interfaces the chain can work on, by what rtnetlink says of them; pure, kinds that this
kernel lacks included.
"""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import link_fitness
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel.netdev import LinkFacts


def link(ifindex: int, name: str, kind: str = "", **facts: t.Any) -> LinkFacts:
    return LinkFacts(
        ifindex, name, kind, 1500, facts.pop("on", 0), facts.pop("nsid", None), {}, 0, **facts
    )


def below(*links: LinkFacts) -> dict[str, set[str]]:
    names = {one.ifindex: one.name for one in links}
    return {
        names[index]: {names[one] for one in lower}
        for index, lower in link_fitness.below(links).items()
        if lower
    }


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (1, ""),
        (1, "veth"),
        (1, "bridge"),
        (1, "tun"),
        (1, "gretap"),
        (1, "vxlan"),
        (1, "macsec"),
        (772, ""),
    ],
)
def test_ethernet_headers(number: int, kind: str) -> None:
    assert link_fitness.unfit(link(2, "x", kind, type=number)) == "", (
        "a tap, whose kind is tun as well, has them"
    )


@pytest.mark.parametrize(
    ("number", "kind", "word"),
    [
        (65534, "tun", "tun"),
        (65534, "wireguard", "WireGuard"),
        (65534, "xfrm", "no link layer"),
        (65534, "netkit", "no link layer"),
        (512, "ppp", "PPP"),
        (519, "wwan", "raw IP"),
        (768, "ipip", "IP tunnel"),
        (768, "vti", "IP tunnel"),
        (769, "ip6tnl", "IPv6 tunnel"),
        (776, "sit", "SIT"),
        (778, "gre", "GRE"),
        (823, "ip6gre", "GRE tunnel over IPv6"),
        (32, "ipoib", "InfiniBand"),
        (803, "", "802.11 monitor"),
        (804, "wpan", "802.15.4"),
        (805, "", "802.15.4 monitor"),
        (825, "lowpan", "6LoWPAN"),
        (824, "nlmon", "netlink monitor"),
        (280, "vcan", "CAN"),
    ],
)
def test_other_headers(number: int, kind: str, word: str) -> None:
    why = link_fitness.unfit(link(2, "x", kind, type=number))
    assert "no Ethernet header" in why and f"hardware type {number}" in why and word in why


def test_a_type_without_a_name_is_refused_by_its_number() -> None:
    assert (
        link_fitness.unfit(link(2, "x", type=999))
        == "its frames have no Ethernet header (hardware type 999)"
    )


@pytest.mark.parametrize("kind", ["vrf", "ifb"])
def test_no_frame_comes_in_by_it(kind: str) -> None:
    assert kind in link_fitness.unfit(link(2, "x", kind)).lower()


@pytest.mark.parametrize("kind", ["bridge", "bond", "team", "openvswitch", ""])
def test_what_has_members_gets_their_frames(kind: str) -> None:
    assert below(
        link(2, "eth0", master=9), link(3, "eth1", master=9), link(4, "eth2"), link(9, "up", kind)
    ) == {"up": {"eth0", "eth1"}}


@pytest.mark.parametrize("kind", ["vlan", "macvlan", "macvtap", "ipvlan"])
def test_what_is_made_on_another_gets_its_frames(kind: str) -> None:
    assert below(link(2, "eth0"), link(3, "one", kind, on=2), link(4, "two", kind, on=2)) == {
        "one": {"eth0"},
        "two": {"eth0"},
    }


@pytest.mark.parametrize("kind", ["veth", "vxlan", "gretap", "macsec"])
def test_what_is_wrapped_or_the_other_end_is_not_below(kind: str) -> None:
    assert below(link(2, "eth0", "veth", on=3), link(3, "x", kind, on=2)) == {}


def test_through_any_number_of_others() -> None:
    found = below(
        link(2, "eth0", master=4),
        link(3, "eth1", master=4),
        link(4, "bond0", "bond"),
        link(5, "bond0.7", "vlan", on=4, master=6),
        link(6, "br7", "bridge"),
        link(7, "mv", "macvlan", on=6),
    )
    assert found["bond0.7"] == {"bond0", "eth0", "eth1"} and found["br7"] == {
        "bond0.7",
        "bond0",
        "eth0",
        "eth1",
    }
    assert found["mv"] == {"br7", "bond0.7", "bond0", "eth0", "eth1"} and "eth0" not in found


def test_numbers_of_other_namespaces_mean_nothing_here() -> None:
    assert (
        below(
            link(2, "eth0"),
            link(3, "eth1", "macvlan", on=2, nsid=0),
            link(4, "x", "vlan", on=77),
            link(5, "y", master=88),
        )
        == {}
    )


def test_frames_that_a_mesh_wraps_are_other_packets() -> None:
    assert below(link(2, "eth0", master=3), link(3, "bat0", "batadv")) == {}
