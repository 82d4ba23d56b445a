# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps for namespaces and links."""

from __future__ import annotations

import typing as t

from ..core.plan import Plan, Step
from .model import (
    End,
    Have,
    HaveLink,
    Key,
    Sysctl,
    Topology,
    alias_of,
    is_half_made,
    is_ours,
    show_key,
    show_sysctl,
)


def kept_links(want: Topology, have: Have) -> set[Key]:
    """Return the wanted ends whose link is there as a whole."""
    keep: set[Key] = set()
    for one, two in want.links:
        a, b = have.links.get(one.key), have.links.get(two.key)
        if (
            a
            and b
            and a.kind == b.kind == "veth"
            and (a.peer_index, b.peer_index) == (b.ifindex, a.ifindex)
            and a.alias == alias_of(want.mark, two.key)
            and b.alias == alias_of(want.mark, one.key)
        ):
            keep |= {one.key, two.key}
    return keep


def plan_deletes(want: Topology, have: Have, keep: set[Key], gone: set[str]) -> Plan:
    """Namespaces first: what is in them goes with them at no cost."""
    steps = [
        Step(
            "delete",
            "netns",
            name,
            "the lab has no such namespace any more",
            before=f"inode {have.namespaces[name]}",
            args=name,
        )
        for name in sorted(gone)
    ]
    steps += [
        Step(
            "delete",
            "netns",
            name,
            "a run that was cut short left the name behind",
            before="a bare file",
            args=name,
        )
        for name in sorted(have.claimed - set(want.namespaces))
    ]
    wanted = want.ends
    seen: set[str] = set()
    for key, link in have.links.items():
        if key in keep or not is_ours(want.mark, link):
            continue
        peer = link.alias.partition(" ")[2]
        name = " - ".join(sorted({show_key(key), peer} - {""}))
        if name in seen:
            continue
        seen.add(name)
        alive = [end for end in _both_ends(have, key, peer) if end.key[0] not in gone]
        if is_half_made(want.mark, link):
            reason = "a run that was cut short left it half made"
        elif key in wanted:
            reason = "its other end is missing or another one than wanted"
        else:
            reason = "the lab has no such link any more"
        goes_with = (
            any(end.key[0] in gone for end in _both_ends(have, key, peer))
            or peer.partition("@")[2] in gone
        )
        if goes_with:
            reason += "; it goes with its namespace"
        steps.append(
            Step(
                "delete",
                "link",
                name,
                reason,
                before=_show_have(link),
                args=([(e.key, e.ifindex) for e in alive], goes_with),
            )
        )
    return steps


def _both_ends(have: Have, key: Key, peer: str) -> list[HaveLink]:
    name, dummy, netns = peer.partition("@")
    keys = [key] + ([(netns or None, name)] if peer else [])
    return [have.links[k] for k in keys if k in have.links]


def _show_have(link: HaveLink) -> dict[str, t.Any]:
    return {"mac": link.mac, "mtu": link.mtu}


def plan_netns(want: Topology, have: Have) -> Plan:
    """Return the steps for the wanted namespaces."""
    steps: Plan = []
    for name in want.namespaces:
        if name in have.claimed:
            reason = "a run that was cut short left only the name"
            steps.append(
                Step(
                    "create",
                    "netns",
                    name,
                    reason,
                    before="a bare file",
                    after="namespace, lo up",
                    args=name,
                )
            )
        elif name not in have.namespaces:
            steps.append(
                Step(
                    "create",
                    "netns",
                    name,
                    "it does not exist",
                    after="namespace, lo up",
                    args=name,
                )
            )
        elif name in have.lo_down:
            reason = "it is down"
            args = ((name, "lo"), 1, {"up": True}, {"up": False})
            steps.append(
                Step(
                    "change",
                    "link",
                    show_key((name, "lo")),
                    reason,
                    before={"state": "down"},
                    after={"state": "up"},
                    args=args,
                )
            )
    return steps


def plan_links(want: Topology, have: Have, keep: set[Key], late: t.Iterable[Sysctl]) -> Plan:
    """A new link gets its own sysctls before it goes up."""
    own: dict[Key, list[Sysctl]] = {}
    for sysctl in late:
        own.setdefault((sysctl.netns, sysctl.path.split("/")[3]), []).append(sysctl)
    steps: Plan = []
    for one, two in want.links:
        if one.key in keep:
            steps += [
                step for end in (one, two) for step in _plan_link_change(end, have.links[end.key])
            ]
        else:
            sysctls = [sysctl for end in (one, two) for sysctl in own.get(end.key, ())]
            after: dict[str, t.Any] = {
                show_key(end.key): {"mac": end.mac, "mtu": end.mtu} for end in (one, two)
            }
            if sysctls:
                after["sysctls"] = {show_sysctl(s.key): s.value for s in sysctls}
            name = f"{show_key(one.key)} - {show_key(two.key)}"
            reason = (
                "it does not exist"
                if one.key not in have.links and two.key not in have.links
                else "it is made anew"
            )
            steps.append(
                Step("create", "link", name, reason, after=after, args=(one, two, sysctls))
            )
    return steps


def _plan_link_change(end: End, link: HaveLink) -> Plan:
    want = {
        "mtu": end.mtu,
        "mac": end.mac,
        "up": True,
        "arp": True,
        "multicast": True,
        "vlan_offload": False,
    }
    have = {name: getattr(link, name) for name in want}
    new = {k: v for k, v in want.items() if have[k] != v}
    if not new:
        return []
    old = {k: have[k] for k in new}
    said = {
        "up": "it is down",
        "vlan_offload": (
            "VLAN tags travel beside its frames (rxvlan, txvlan), where no XDP program sees them"
        ),
    }
    reason = "; ".join(
        said.get(k) or (f"{k} is off" if v is True else f"{k} is {old[k]}, wanted {v}")
        for k, v in new.items()
    )
    return [
        Step(
            "change",
            "link",
            show_key(end.key),
            reason,
            before=old,
            after=new,
            args=(end.key, link.ifindex, new, old),
        )
    ]
