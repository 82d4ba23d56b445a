# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps for addresses and routes."""

from __future__ import annotations

import typing as t

from ..core.plan import Plan, Step
from .model import (
    Address,
    End,
    Have,
    HaveAddress,
    HaveLink,
    HaveRoute,
    Key,
    Route,
    Topology,
    broadcast_of,
    is_link_local,
    is_ours,
    link_local_of,
    network_of,
    show_address,
    show_dst,
    show_ip,
    show_key,
    show_place,
)
from .topology import DEFAULT_METRIC, MANAGED_PROTOCOLS, MTU_IPV6


def plan_addresses(want: Topology, have: Have, keep: set[Key]) -> Plan:
    """Return the steps for the addresses of the wanted ends."""
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
    """Return the addresses to delete, and those to add, each with its reason."""
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


def plan_routes(want: Topology, have: Have, keep: set[Key]) -> Plan:
    """Return the steps for the wanted routes."""
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
