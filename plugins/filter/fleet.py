# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that make tables, and those with which the roles say what became of hosts."""

from __future__ import annotations

import collections.abc as c
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import chains
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import drift, rollout

Hostvars = t.Mapping[str, t.Mapping[str, t.Any]]


def collect(hostvars: Hostvars, hosts: t.Iterable[str]) -> dict[str, dict[str, t.Any]]:
    """Return what a roll-out looks at of hosts, and no more: the rest may be large."""
    found = {}
    for host in hosts:
        there = hostvars[host]
        found[str(host)] = {name: there[name] for name in rollout.NAMES if name in there}
    return found


def ct_table(rows: t.Any, columns: t.Any = None, form: str = "table") -> str:
    """Return rows as a table."""
    if (
        not isinstance(rows, c.Sequence)
        or isinstance(rows, str)
        or any(not isinstance(row, c.Mapping) for row in rows)
    ):
        raise AnsibleFilterError("ct_table: give a list of dictionaries")
    if form not in ("table", "markdown"):
        raise AnsibleFilterError(f"ct_table: form: {form!r} is not valid: give table or markdown.")
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    titles = (
        dict(columns)
        if isinstance(columns, c.Mapping)
        else {str(name): str(name).upper().replace("_", " ") for name in columns}
    )
    return rollout.table(rows, titles, form)


def ct_fitness(
    hostvars: Hostvars,
    hosts: t.Sequence[str],
    skip_unfit: bool = False,
    skip_unreachable: bool = False,
) -> dict[str, t.Any]:
    """Return who can take the chain."""
    return rollout.fitness(collect(hostvars, hosts), skip_unfit, skip_unreachable)


def ct_batch(
    hostvars: Hostvars, everyone: t.Sequence[str], hosts: t.Sequence[str]
) -> dict[str, t.Any]:
    """Return the number and the hosts of the batch that begins."""
    return rollout.batch(collect(hostvars, everyone), hosts)


def ct_outcome(hostvars: Hostvars, hosts: t.Sequence[str]) -> dict[str, t.Any]:
    """Return what became of the hosts of a batch."""
    return rollout.outcome(collect(hostvars, hosts))


def ct_rollout_summary(hostvars: Hostvars, hosts: t.Sequence[str]) -> dict[str, t.Any]:
    """Return what became of all hosts."""
    return rollout.summary(collect(hostvars, hosts))


def ct_drift(hostvars: Hostvars, hosts: t.Sequence[str], form: str = "table") -> dict[str, t.Any]:
    """Return where hosts drifted."""
    if form not in drift.FORMS:
        raise AnsibleFilterError(
            f"drift_format: {form!r} is not valid: give {', '.join(drift.FORMS)}."
        )
    return drift.report(collect(hostvars, hosts), form)


def ct_left(hostvars: Hostvars, hosts: t.Sequence[str]) -> str:
    """Return as a table what is left of the collection on hosts."""
    return drift.left(collect(hostvars, hosts))


def ct_chains(
    interfaces: t.Any, pin_root: str, per_netns: bool = False, every: bool = False
) -> list[dict[str, t.Any]]:
    """Return the chains that interfaces need."""
    if (
        not isinstance(interfaces, c.Sequence)
        or isinstance(interfaces, str)
        or any(not isinstance(one, c.Mapping) for one in interfaces)
    ):
        raise AnsibleFilterError("ct_chains: give a list of dictionaries, as xdp_ct_interfaces is")
    return chains.chains(interfaces, pin_root, per_netns, every)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return them."""
        return {
            one.__name__: one
            for one in (
                ct_table,
                ct_fitness,
                ct_batch,
                ct_outcome,
                ct_rollout_summary,
                ct_drift,
                ct_left,
                ct_chains,
            )
        }
