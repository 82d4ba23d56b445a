# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the chain can be attached to the wanted interfaces, and may forward there."""

from __future__ import annotations

import dataclasses
import typing as t

from ...attach import converge as attach
from ...attach import model as attach_model
from ...attach import observe as attach_observe
from ...attach import plan as attach_plan
from ...build import render
from ...chain import forwarding
from ...chain import settings as chain_settings
from ...core.errors import ConntrackError
from ...kernel import bpffs, ethtool, netfilter, netns, xdp_features
from . import problem as preflight_problem
from .problem import Problem


def observe_interfaces(
    paths: bpffs.Paths,
    interfaces: t.Sequence[t.Mapping[str, t.Any]],
    mode: str,
    takeover: bool,
    forward: str = chain_settings.FORWARDS[0],
) -> tuple[list[dict[str, t.Any]], list[Problem]]:
    """Return the wanted interfaces as they are, and what keeps the chain off them.

    :param forward: what the chain is to forward, one of chain.FORWARDS.
    """
    try:
        attach_model.check("present", interfaces, mode)
        chosen = attach.choose("present", interfaces, mode, True)
        haves = attach_observe.observe(paths, chosen.wants, forward)
    except ConntrackError as exc:
        return [], [preflight_problem.problem_of("interfaces", exc.message.partition(":")[0], exc)]
    found: list[dict[str, t.Any]] = []
    problems = [
        Problem(
            "interfaces",
            one.partition(":")[0],
            one,
            "Correct the entry, or make the interface first.",
        )
        for one in chosen.missing
    ]
    for want, have in zip(chosen.wants, haves):
        one, why = _observe_interface(want, have)
        found.append(one)
        if have.missing:
            field = have.missing.partition(":")[0]
            problems.append(
                Problem(
                    field,
                    want.label,
                    have.missing.partition(": ")[2],
                    "Correct the name, or make it first.",
                )
            )
            continue
        if want.mode == "native" and why and have.attached is None:
            problems.append(
                Problem(
                    f"{want.field}.mode",
                    "native",
                    f"{want.label}: {why}.",
                    "Give mode: generic or auto.",
                )
            )
        if have.forwards is not None:
            problems += [
                Problem(
                    "forward",
                    forward,
                    f"{want.label}: {problem}.",
                    f"{mend}, or give forward: off.",
                )
                for problem, mend in forwarding.problems(have.forwards)
            ]
        try:
            attach_plan.make_plan(
                [want], [dataclasses.replace(have, forwards=None)], {}, takeover, True
            )
        except ConntrackError as exc:
            problems.append(preflight_problem.problem_of(want.field, want.label, exc))
    return found, problems


def observe_forwarding(
    forward: str, interfaces: t.Sequence[t.Mapping[str, t.Any]]
) -> dict[str, t.Any] | None:
    """Return which rulesets the chain would pass by; None where it is to forward nothing.

    :param interfaces: those that it is to be attached to; where there are none, it is the namespace
        that the caller is in that is looked at.
    """
    if forward == chain_settings.FORWARDS[0]:
        return None
    rules = {}
    for where in {item.get("netns"): None for item in interfaces} or {None: None}:
        if where is None or netns.exists(where):
            with netns.entered(where):
                rules[where] = netfilter.look()
    return {
        "forward": forward,
        "namespaces": [forwarding.as_dict(where, seen) for where, seen in rules.items()],
        "past": forwarding.shown(rules),
    }


def judge_unfiltered(forward: str, unfiltered: bool) -> t.Iterator[Problem]:
    """Return what is wrong with forwarding that nobody said may pass the firewall by."""
    try:
        render.check_unfiltered(forward, unfiltered)
    except ConntrackError as exc:
        problem, dummy, mend = exc.message.partition(", so it takes ")
        yield Problem("forward", forward, f"{problem.partition(': ')[2]}.", f"It takes {mend}")


def _observe_interface(
    want: attach_model.Want, have: attach_model.Have
) -> tuple[dict[str, t.Any], str]:
    """Return one interface, and why its driver can not run the program; "" where it can, or nobody
    knows.
    """
    driver, native = ethtool.Driver("", ""), None
    if have.ifindex:
        with netns.entered(want.netns):
            driver, native = ethtool.driver(want.name), xdp_features.native(have.ifindex)
    why = (
        f"the driver {driver.name or 'of this interface'} runs no XDP programs"
        if native is False
        else ""
    )
    if have.too_long is not None:
        why = (
            f"the MTU of the veth's other end is {have.too_long}, and native XDP takes"
            f" {attach_model.VETH_MAX_MTU} at most"
        )
    attached = have.attached
    return {
        "name": want.name,
        "netns": want.netns,
        "ifindex": have.ifindex or None,
        "driver": driver.name or None,
        "native": False if why else native,
        "why_not_native": why,
        "big_tcp": have.big,
        "modes": (
            ["generic"]
            if why
            else ["native", "generic"]
            if native
            else ["unknown"]
            if have.ifindex
            else []
        ),
        "program": None if attached is None else attached.program.hook or attached.program.name,
        "mode": None if attached is None else attached.mode,
        "foreign": attached is not None and attached.program.hook is None,
        "vlan_offloads": (
            None
            if have.forwards is None
            else [offload.what or "not known" for offload in have.forwards.offloads]
        ),
    }, why
