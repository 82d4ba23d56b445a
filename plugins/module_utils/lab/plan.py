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
from . import plan_ip, plan_links
from .model import (
    Have,
    Sysctl,
    SysctlKey,
    Topology,
    is_ours,
    record_path,
    show_dst,
    show_key,
    show_sysctl,
)
from .sysctls import siblings
from .topology import split_sysctls


def make(want: Topology, have: Have) -> Plan:
    """Return the steps that turn what is there into what is wanted, in an order in which each finds
    what it needs.

    :raises ConntrackError: objects of wanted names are foreign; ``foreign`` lists them. Or
        namespaces would go, and may not.
    """
    keep = plan_links.kept_links(want, have)
    refuse_foreign(want, have)
    gone = set(have.namespaces) - set(want.namespaces)
    if gone and not want.replace:
        raise ConntrackError(
            f"name: lab {want.lab!r} is there with namespaces that this topology does not have:"
            f" {', '.join(sorted(gone))}. They would be taken away, with all that runs in them."
            " Give the topology a name of its own (role: netns_lab_name), or replace: true"
            " (netns_lab_replace) to have it take the place of that lab."
        )
    deletes = plan_links.plan_deletes(want, have, keep, gone)
    early, late = split_sysctls(want)
    forgotten = [s for s in have.record if s not in {e.key for e in early}]
    return [
        *deletes,
        *plan_links.plan_netns(want, have),
        *_plan_restore(want, have, forgotten),
        *_plan_record(want, have, early),
        *_plan_sysctls(have, early),
        *plan_links.plan_links(want, have, keep, late),
        *_plan_sysctls(have, [s for s in late if (s.netns, s.path.split("/")[3]) in keep]),
        *plan_ip.plan_addresses(want, have, keep),
        *plan_ip.plan_routes(want, have, keep),
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
