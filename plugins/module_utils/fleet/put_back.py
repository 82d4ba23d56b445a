# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a host back to what it had before a roll-out that went wrong: an earlier generation, other
settings, other interfaces, or nothing at all.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ..attach import converge as attach
from ..chain import settings as chain_settings
from ..core.errors import ConntrackError, bad_value
from ..core.plan import Plan, Step
from ..generation import converge as generation
from ..generation import manifest
from ..kernel import bpffs
from ..service import archive as ct_archive
from ..service import options as service_options
from ..service import unit as ct_unit
from .preflight import present

#: No generation is taken away by putting another one back.
_KEEP_ALL = 16


def check(before: t.Mapping[str, t.Any]) -> None:
    """Check the module's ``before``.

    :raises ConntrackError: where it is none that ct_preflight returns.
    """
    missing = [
        name
        for name in ("generation", "timeouts", "settings", "interfaces", "command", "service")
        if name not in before
    ]
    if missing:
        raise bad_value(
            "before",
            sorted(before),
            f"give what ct_preflight returned as before, which has {' and '.join(missing)} too",
        )


def surplus(
    before: t.Sequence[t.Mapping[str, t.Any]], now: t.Sequence[t.Mapping[str, t.Any]]
) -> tuple[list[t.Mapping[str, t.Any]], list[t.Mapping[str, t.Any]]]:
    """Return (the interfaces that are attached now and were not before, those that were otherwise
    attached or are not any more, as they were). Pure.
    """

    def key(one: t.Mapping[str, t.Any]) -> tuple[t.Any, t.Any]:
        return one["netns"], one["name"]

    were, are = {key(one): one for one in before}, {key(one): one for one in now}
    other = [
        one
        for where, one in were.items()
        if where not in are or any(are[where][name] != one[name] for name in ("program", "mode"))
    ]
    return [one for where, one in are.items() if where not in were], other


def put_back(
    paths: bpffs.Paths,
    before: t.Mapping[str, t.Any],
    prefix: str,
    check_mode: bool,
    patience: float,
) -> tuple[Plan, list[str], dict[str, t.Any]]:
    """Do it; return the plan that was needed, warnings, and the chain as it is now.

    :param before: see preflight.before().
    :raises ConntrackError: where it can not be done, the generation being gone for one.
    """
    check(before)
    bpffs.check_text(paths)
    bpffs.check(paths.pin_root)
    plan: Plan = []
    warnings: list[str] = []
    if not before["service"]:
        plan += _without_service(paths, prefix, check_mode, patience)
    if before["generation"] is None:
        plan += _take_away(paths, check_mode, patience)
    else:
        plan += _chain(paths, before, check_mode, patience)
        more, warnings = _interfaces(paths, before, check_mode, patience)
        plan += more
    if not before["command"]:
        plan += ct_archive.converge(prefix, None, check_mode, patience)
    return plan, warnings, generation.facts(generation.observe(paths), paths)


def _without_service(paths: bpffs.Paths, prefix: str, check_mode: bool, patience: float) -> Plan:
    if not ct_unit.booted() or not present.is_ours(os.path.join(ct_unit.DIRECTORY, ct_unit.NAME)):
        return []
    return ct_unit.converge(
        "absent", ct_unit.Want(prefix, service_options.Options(paths)), check_mode, patience
    )


def _converge(
    paths: bpffs.Paths, what: str, interfaces: t.Any, check_mode: bool, patience: float
) -> tuple[Plan, list[str]]:
    """Attach or detach interfaces; return the plan that was needed, and warnings."""
    result, warnings = attach.converge(
        what, interfaces, "auto", False, paths.pin_root, check_mode, patience, paths.state_dir
    )
    return [Step(**step) for step in result["plan"]], warnings


def _take_away(paths: bpffs.Paths, check_mode: bool, patience: float) -> Plan:
    detached, dummy = _converge(paths, "absent", None, check_mode, patience)
    # it would not be unloaded while it is attached, which it would not be
    if check_mode and detached:
        return detached
    return detached + generation.remove(paths, check_mode, patience)


def _chain(
    paths: bpffs.Paths, before: t.Mapping[str, t.Any], check_mode: bool, patience: float
) -> Plan:
    have = generation.observe(paths)
    number = before["generation"]
    if have.generation is None:
        raise ConntrackError(
            f"no chain is loaded, so generation {number} can not take over again. Run the role"
            " xdp_ct."
        )
    if have.generation != number:
        plan, have = generation.roll_back(paths, number, check_mode, patience)
        return plan
    dummy, timeouts, knobs = (
        chain_settings.settings_of(have.settings)
        if len(have.settings) == chain_settings.SETTINGS_BYTES
        else (0, {}, {})
    )
    if (timeouts, knobs) == (dict(before["timeouts"]), dict(before["settings"])):
        return []
    want = manifest.read(paths, number)
    if want is None:
        raise ConntrackError(
            f"{manifest.manifest(paths, number)} is missing or damaged, so the settings of before"
            " can not be put back. Run the role xdp_ct."
        )
    want = dataclasses.replace(
        want, timeouts=dict(before["timeouts"]), knobs=dict(before["settings"])
    )
    plan, have = generation.ensure(
        paths, want, check_mode, generation.Policy(keep=_KEEP_ALL), (), patience
    )
    return plan


def _interfaces(
    paths: bpffs.Paths, before: t.Mapping[str, t.Any], check_mode: bool, patience: float
) -> tuple[Plan, list[str]]:
    now = present.attached(paths)
    new, other = surplus(before["interfaces"], now)
    plan: Plan = []
    warnings: list[str] = []
    for what, some in (("absent", new), ("present", other)):
        if some:
            steps, said = _converge(paths, what, some, check_mode, patience)
            plan, warnings = plan + steps, warnings + said
    return plan, warnings
