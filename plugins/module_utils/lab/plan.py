# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan that leads from the lab that is there to the one that is wanted. Pure: nothing here
touches the kernel.
"""

from __future__ import annotations

import typing as t

from ..core.errors import ConntrackError
from ..core.plan import Plan, Step
from ..kernel.sysctls import siblings
from .model import (
    Address,
    End,
    Have,
    HaveAddress,
    HaveLink,
    HaveRoute,
    Key,
    Route,
    Sysctl,
    SysctlKey,
    Topology,
    alias_of,
    broadcast_of,
    is_half_made,
    is_link_local,
    is_ours,
    link_local_of,
    network_of,
    record_path,
    show_address,
    show_dst,
    show_ip,
    show_key,
    show_place,
    show_sysctl,
)
from .topology import DEFAULT_METRIC, MANAGED_PROTOCOLS, MTU_IPV6, split_sysctls


def make(want: Topology, have: Have) -> Plan:
    """Return the steps that turn what is there into what is wanted, in an order in which each finds
    what it needs.

    :raises ConntrackError: objects of wanted names are foreign; ``foreign`` lists them. Or
        namespaces would go, and may not.
    """
    keep = _kept_links(want, have)
    refuse_foreign(want, have)
    gone = set(have.namespaces) - set(want.namespaces)
    if gone and not want.replace:
        raise ConntrackError(
            f"name: lab {want.lab!r} is there with namespaces that this topology does not have:"
            f" {', '.join(sorted(gone))}. They would be taken away, with all that runs in them."
            " Give the topology a name of its own (role: netns_lab_name), or replace: true"
            " (netns_lab_replace) to have it take the place of that lab."
        )
    deletes = _plan_deletes(want, have, keep, gone)
    early, late = split_sysctls(want)
    forgotten = [s for s in have.record if s not in {e.key for e in early}]
    return [
        *deletes,
        *_plan_netns(want, have),
        *_plan_restore(want, have, forgotten),
        *_plan_record(want, have, early),
        *_plan_sysctls(have, early),
        *_plan_links(want, have, keep, late),
        *_plan_sysctls(have, [s for s in late if (s.netns, s.path.split("/")[3]) in keep]),
        *_plan_addresses(want, have, keep),
        *_plan_routes(want, have, keep),
    ]


def refuse_foreign(want: Topology, have: Have) -> None:
    """Raise when wanted names are taken by objects that are not the lab's.

    :raises ConntrackError: with the list ``foreign``.
    """
    ends = want.ends
    foreign = [_show_foreign(name, have) for name in want.namespaces if name in have.foreign]
    foreign += [
        f"link {show_key(key)}"
        for key in ends
        if key in have.links and not is_ours(want.mark, have.links[key])
    ]
    routes = {route.key: route for route in have.routes if route.netns is None}
    for wanted in want.routes:
        there = routes.get(wanted.key)
        if there and (there.dev is None or (None, there.dev) not in ends):
            foreign.append(f"route {show_dst(there.dst)} through {there.dev} on the host")
    if foreign:
        what = ", ".join(foreign)
        raise ConntrackError(
            f"Lab {want.lab!r} did not make what is already there: {what}. Remove it, or choose"
            " other names.",
            foreign=foreign,
        )


def _show_foreign(name: str, have: Have) -> str:
    kind = have.bare.get(name)
    return (
        f"network namespace {name}"
        if kind is None
        else f"the {kind} /run/netns/{name}, which is no network namespace"
    )


def _kept_links(want: Topology, have: Have) -> set[Key]:
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


def _plan_deletes(want: Topology, have: Have, keep: set[Key], gone: set[str]) -> Plan:
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


def _plan_netns(want: Topology, have: Have) -> Plan:
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


def _plan_links(want: Topology, have: Have, keep: set[Key], late: t.Iterable[Sysctl]) -> Plan:
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


def _plan_addresses(want: Topology, have: Have, keep: set[Key]) -> Plan:
    steps: Plan = []
    for key, end in want.ends.items():
        there = have.links[key].addresses if key in keep else ()
        too_much, missing = _compare_addresses(end, there)
        if key in keep and _lacks_link_local(end, have.links[key]):
            missing.append(
                (link_local_of(end.mac), "IPv6 finds no neighbours without a link-local address")
            )
        for address, reason in too_much:
            text = show_address(address)
            steps.append(
                Step(
                    "delete",
                    "address",
                    f"{text} on {show_key(key)}",
                    reason,
                    before=text,
                    args=(key, address),
                )
            )
        for address, reason in missing:
            text = show_address(address)
            steps.append(
                Step(
                    "create",
                    "address",
                    f"{text} on {show_key(key)}",
                    reason,
                    after=text,
                    args=(key, address),
                )
            )
    return steps


def _compare_addresses(
    end: End, there: t.Iterable[HaveAddress]
) -> tuple[list[tuple[Address, str]], list[tuple[Address, str]]]:
    """Return the addresses to delete and those to add, each with its reason; delete first."""
    too_much: list[tuple[Address, str]] = []
    good: dict[Address, HaveAddress] = {}
    for have in there:
        if have.address in end.addresses:
            if have.broadcast not in (None, broadcast_of(have.address)) or (
                have.broadcast is None and broadcast_of(have.address)
            ):
                too_much.append((have.address, "its broadcast address is another"))
            elif have.failed:
                too_much.append((have.address, "duplicate address detection failed for it"))
            elif have.permanent:
                good[have.address] = have
        elif have.permanent and not have.automatic and have.address != link_local_of(end.mac):
            too_much.append((have.address, "the lab has no such address on this link"))
    networks = {network_of(address) for address, dummy in too_much}
    missing = []
    for address in end.addresses:
        found = good.get(address)
        if found is None:
            missing.append((address, "it is not there"))
        elif found.secondary and network_of(address) in networks:
            missing.append((address, "it may go with the first address of its network"))
    return too_much, missing


def _lacks_link_local(end: End, link: HaveLink) -> bool:
    """Say whether IPv6 is wanted on a link that has lost the link-local address that the kernel
    gives each interface that goes up.
    """
    wanted = any(len(packed) == 16 for packed, dummy in end.addresses)
    addresses = [*end.addresses, *(have.address for have in link.addresses)]
    return (
        wanted
        and link.up
        and link.mtu >= MTU_IPV6
        and not any(is_link_local(packed) for packed, dummy in addresses)
    )


def _loses_routes(end: End, link: HaveLink) -> set[int]:
    """Return the families (as address lengths) whose routes go when the addresses on the link are
    mended.

    The kernel forgets an interface's IPv4 routes together with its last IPv4 address.
    """
    too_much, missing = _compare_addresses(end, link.addresses)
    lost = {address for address, dummy in too_much} | {address for address, dummy in missing}
    left = [
        have for have in link.addresses if len(have.address[0]) == 4 and have.address not in lost
    ]
    return (
        {4} if not left and any(len(packed) == 4 for (packed, dummy), reason in too_much) else set()
    )


def _plan_routes(want: Topology, have: Have, keep: set[Key]) -> Plan:
    wanted = {route.key: route for route in want.routes}
    ends = want.ends
    lost = {key: _loses_routes(ends[key], have.links[key]) for key in keep}
    there: dict[tuple[str | None, Address, int], HaveRoute] = {}
    for found in have.routes:
        there.setdefault(found.key, found)
    steps: Plan = []
    for found in have.routes:
        if (
            found.dev is not None
            and (found.netns, found.dev) in keep
            and found.protocol in MANAGED_PROTOCOLS
            and found.key not in wanted
        ):
            name = f"{show_dst(found.dst)} in {show_place(found.netns)}"
            steps.append(
                Step(
                    "delete",
                    "route",
                    name,
                    "the lab has no such route",
                    before=_show_route(found),
                    args=found,
                )
            )
    for key, route in wanted.items():
        now = there.get(key)
        if (
            now is not None
            and now.dev is not None
            and _goes(want.mark, have, keep, (now.netns, now.dev))
        ):
            now = None
        if now is not None and (now.via, now.dev) == (route.via, route.dev):
            if len(route.dst[0]) not in lost.get((route.netns, route.dev), ()):
                continue
            reason, now = "it goes with the last address of its link", None
        else:
            reason = "it is not there" if now is None else f"it goes {_show_route(now)}"
        name = f"{show_dst(route.dst)} in {show_place(route.netns)}"
        before = None if now is None else _show_route(now)
        steps.append(
            Step(
                "create" if now is None else "change",
                "route",
                name,
                reason,
                before=before,
                after=_show_route(route),
                args=(route, now),
            )
        )
    return steps


def _goes(mark: str, have: Have, keep: set[Key], key: Key) -> bool:
    """Say whether the plan deletes the link, and with it the routes over it."""
    return key not in keep and key in have.links and is_ours(mark, have.links[key])


def _show_route(route: Route | HaveRoute) -> str:
    via = f"via {show_ip(route.via)} " if route.via else ""
    metric = "" if route.metric == DEFAULT_METRIC[len(route.dst[0])] else f" metric {route.metric}"
    return f"{via}dev {route.dev}{metric}"


def _plan_sysctls(have: Have, sysctls: t.Iterable[Sysctl]) -> Plan:
    steps: Plan = []
    # namespace, net/ipvN, name of a value whose ``all`` changes
    touched: set[tuple[str | None, str, str]] = set()
    for wanted in sysctls:
        parts = wanted.path.split("/")
        new_namespace = wanted.netns is not None and wanted.netns not in have.namespaces
        now = None if new_namespace else have.sysctls.get(wanted.key)
        family = (wanted.netns, "/".join(parts[:2]), parts[-1])
        if now == wanted.value and family not in touched:
            continue
        if siblings(wanted.path):
            touched.add(family)
        if now is None:
            reason = "the namespace is new"
        else:
            reason = (
                f"it is {now}"
                if now != wanted.value
                else "setting it for all interfaces changes this one"
            )
        steps.append(
            Step(
                "change",
                "sysctl",
                show_sysctl(wanted.key),
                reason,
                before=now,
                after=wanted.value,
                args=wanted,
            )
        )
    return steps


def _inode(have: Have, netns: str | None) -> int:
    return have.host_inode if netns is None else have.namespaces.get(netns, 0)


def _plan_record(want: Topology, have: Have, wanted: list[Sysctl]) -> Plan:
    """The previous values are written down before any value changes; values known from an earlier
    run stay as they are.
    """
    kept = {
        s.key: have.record[s.key]
        for s in wanted
        if s.key in have.record and have.record[s.key].inode == _inode(have, s.netns)
    }
    if len(kept) == len(wanted) == len(have.record) and all(
        kept[s.key].wanted == s.value for s in wanted
    ):
        return []
    before = [show_sysctl(key) for key in have.record] or None
    after = [show_sysctl(s.key) for s in wanted] or None
    action = "create" if before is None else "delete" if after is None else "change"
    reason = (
        "the lab sets nothing any more"
        if after is None
        else "the values from before come back when the lab goes"
    )
    args = [(s, kept[s.key].previous if s.key in kept else None) for s in wanted]
    return [
        Step(action, "record", record_path(want.lab), reason, before=before, after=after, args=args)
    ]


def _plan_restore(want: Topology, have: Have, forgotten: t.Iterable[SysctlKey]) -> Plan:
    steps: Plan = []
    for key in forgotten:
        recorded, netns = have.record[key], key[0]
        if recorded.inode != _inode(have, netns) or (
            netns is not None and netns not in want.namespaces
        ):
            continue  # the namespace is gone, or goes
        heir = have.other_claims.get(key)
        if heir is not None:
            reason = (
                f"lab {heir!r} needs {show_sysctl(key)} too: it puts the value from before back"
                " when it goes"
            )
            steps.append(
                Step(
                    "change",
                    "record",
                    record_path(heir),
                    reason,
                    args=(heir, key, recorded.previous),
                )
            )
            continue
        differing = {
            p: v for p, v in recorded.previous.items() if have.sysctls.get((netns, p), v) != v
        }
        if differing:
            path = key[1] if key[1] in differing else next(iter(differing))
            reason = "the value from before the lab comes back"
            shown = show_sysctl((netns, path))
            steps.append(
                Step(
                    "change",
                    "sysctl",
                    shown,
                    reason,
                    before=have.sysctls.get((netns, path)),
                    after=differing[path],
                    args=(netns, recorded.previous),
                )
            )
    return steps


def facts(want: Topology, have: Have) -> dict[str, t.Any]:
    """Return the lab as it is, for the module's result: only objects that carry the lab's mark."""
    ours = [link for link in have.links.values() if is_ours(want.mark, link)]
    return {
        "name": want.lab,
        "router": want.router,
        "namespaces": [
            {"name": name, "inode": inode} for name, inode in sorted(have.namespaces.items())
        ],
        "links": [
            {
                "name": link.key[1],
                "netns": link.key[0],
                "peer": link.alias.partition(" ")[2],
                "ifindex": link.ifindex,
                "mac": link.mac,
                "mtu": link.mtu,
                "state": "up" if link.up else "down",
            }
            for link in sorted(ours, key=lambda link: (link.key[0] or "", link.key[1]))
        ],
    }
