# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interfaces the chain can work on, alone and together. Pure: what rtnetlink says comes in as
netdev.LinkFacts.

The chain reads frames from an Ethernet header on. Where there is none it would take the first
bytes of an IP header for addresses, and an address for an ethertype: nothing would be tracked.

XDP runs once for each interface that a frame comes in by, from the lowest to the highest
(net/core/dev.c, __netif_receive_skb_core, another_round): a bridge, a bond or a VLAN gets the
frames of the interfaces below it once more. On two such interfaces the chain counts each packet
twice, and takes TCP's for retransmissions.
"""

from __future__ import annotations

import collections
import typing as t

from .netdev import LinkFacts

#: ARPHRD_ETHER and ARPHRD_LOOPBACK: their frames begin with an Ethernet header.
_ETHERNET = (1, 772)
#: Others that people may want to track on, by ARPHRD_* (include/uapi/linux/if_arp.h).
_TYPES = {
    32: "InfiniBand",
    280: "CAN",
    512: "PPP",
    519: "raw IP",
    768: "IP tunnel",
    769: "IPv6 tunnel",
    776: "SIT tunnel",
    778: "GRE tunnel",
    783: "multicast routing",
    801: "802.11",
    802: "802.11 monitor",
    803: "802.11 monitor",
    804: "802.15.4",
    805: "802.15.4 monitor",
    820: "phonet",
    823: "GRE tunnel over IPv6",
    824: "netlink monitor",
    825: "6LoWPAN",
    826: "vsock monitor",
    65534: "no link layer, as of tun and WireGuard",
}
#: Kinds with Ethernet headers by which no frame comes in: XDP sees those of others, or none.
_BLIND = {
    "vrf": "a VRF's frames come in by its members (drivers/net/vrf.c, vrf_ip_rcv)",
    "ifb": "an ifb gives its frames back to the interface that they came in by (drivers/net/ifb.c)",
}
#: Kinds that get frames of the interface that they are made on (IFLA_LINK), unwrapped by no more
#: than a VLAN tag.
_ON_TOP = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap")
#: Masters whose members' frames are no IP: what they hand up was wrapped.
_WRAPPED = ("batadv",)


def unfit(facts: LinkFacts) -> str:
    """Return why nothing could be tracked on an interface; "" where it can.

    >>> from types import SimpleNamespace as Facts
    >>> unfit(Facts(type=512, kind="ppp"))
    'its frames have no Ethernet header (hardware type 512, PPP)'
    """
    if facts.type not in _ETHERNET:
        name = _TYPES.get(facts.type, "")
        return (
            "its frames have no Ethernet header (hardware type"
            f" {facts.type}{f', {name}' if name else ''})"
        )
    return _BLIND.get(facts.kind, "")


def below(links: t.Iterable[LinkFacts]) -> dict[int, set[int]]:
    """Return for each interface of a namespace those whose frames it gets once more, by ifindex,
    through any number of others.

    Interfaces of other namespaces are not looked at: a number means nothing there.
    """
    direct: dict[int, set[int]] = collections.defaultdict(set)
    there = {one.ifindex: one for one in links}
    for one in there.values():
        master = there.get(one.master)
        if master is not None and master.kind not in _WRAPPED:
            direct[master.ifindex].add(one.ifindex)
        if one.kind in _ON_TOP and one.peer_nsid is None and one.peer_ifindex in there:
            direct[one.ifindex].add(one.peer_ifindex)
    found: dict[int, set[int]] = {}
    for index in there:
        seen: set[int] = set()
        todo = [index]
        while todo:
            more = direct[todo.pop()] - seen
            seen |= more
            todo += more
        found[index] = seen - {index}
    return found
