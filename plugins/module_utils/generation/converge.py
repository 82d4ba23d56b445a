# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations: one loaded instance of the chain each, observed, planned and put in place of the one
before.

A generation is pinned whole under ``gen/<N>``. It is built beside the active one, takes over the
flow tables, is proved with a frame, takes the interfaces over one by one (bpf_link_update leaves no
packet unseen), and only then becomes active by one rename. What a killed run left behind has no
``active`` link to it and goes with the next run.

The parts: generation_model (what is wanted, what is there), generation_observe, generation_plan,
generation_apply.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import typing as t

from ..build import bcc as build_bcc
from ..chain import forwarding
from ..chain import jiffies as chain_jiffies
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..core import lock
from ..core.errors import ConntrackError
from ..core.plan import Plan, applied
from ..kernel import bpf_constants, bpffs, bpffs_mount, pins
from ..kernel.bpffs import Paths
from . import diagnosis, manifest, migrate, state_dir, traffic
from . import links as generation_links
from . import probe as generation_probe
from .apply import apply, remove_symlinks, remove_tree
from .migrate_plan import Legacy, wanted
from .model import BCC, OBJECT, Generation, Have, Policy, State, Want, check
from .observe import observe as _observe
from .pinned_objects import read_meta
from .plan import (
    needs_object,
    next_number,
    outlook,
    plan_absent,
    plan_finish,
    plan_present,
    plan_rolled_back,
    target_of,
    why_new,
)

__all__ = [
    "BCC",
    "Generation",
    "Have",
    "OBJECT",
    "Policy",
    "State",
    "Want",
    "check",
    "ensure",
    "facts",
    "listen",
    "needs_object",
    "observe",
    "outlook",
    "plan_absent",
    "plan_present",
    "plan_rolled_back",
    "read_meta",
    "remove",
    "remove_symlinks",
    "remove_tree",
    "roll_back",
    "settings_here",
]
#: How often to look again, when what was seen is gone before it was read.
_LOOKS = 10
T = t.TypeVar("T")


@contextlib.contextmanager
def _as_root() -> t.Iterator[None]:
    """Around what only root can do.

    :raises ConntrackError: where the user is not let.
    """
    try:
        yield
    except PermissionError as exc:
        raise ConntrackError(
            f"{exc.filename}: permission denied: run as root, with become for instance."
        ) from exc


def _again(look: t.Callable[[], T]) -> T:
    """Return what ``look`` returns, which is done anew where another run takes away what it has
    just seen.
    """
    for dummy in range(_LOOKS - 1):
        try:
            return look()
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
    return look()


@_as_root()
def observe(paths: Paths) -> Have:
    """Read the kernel: the active generation, its health, and what else lies around.

    :raises ConntrackError: for a user that may not.
    """
    return _again(lambda: _observe(paths))


@_as_root()
def listen(paths: Paths) -> tuple[diagnosis.Fault, ...]:
    """Return whether the interfaces receive what the active chain does not count; see
    health.listen().
    """
    return (
        _again(lambda: traffic.listen(paths, generation_probe.prove))
        if bpffs.mounted(paths.pin_root)
        else ()
    )


def _with(have: Have, heard: tuple[diagnosis.Fault, ...]) -> Have:
    return (
        dataclasses.replace(have, faults=have.faults + heard)
        if have.generation is not None
        else have
    )


@contextlib.contextmanager
def _at_rest(paths: Paths, patience: float) -> t.Iterator[bool]:
    """Keep other runs out while what is there is read; nothing is made. It says whether there is
    anything that they could be at.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(paths.base, patience))
            there = True
        except (FileNotFoundError, NotADirectoryError):
            there = False
        yield there


@contextlib.contextmanager
def _at_home(paths: Paths, patience: float) -> t.Iterator[None]:
    """Hold the lock of a pin root, which is made and mounted where it is not there."""
    with contextlib.ExitStack() as stack:
        for turn in range(_LOOKS):
            bpffs_mount.ensure_mounted(paths.pin_root)
            try:
                stack.enter_context(lock.held(paths.base, patience, make=0o700))
                break
            except OSError:
                if turn + 1 == _LOOKS or bpffs.mounted(paths.pin_root):
                    raise  # else another run has just taken the mount away
        yield


@_as_root()
def ensure(
    paths: Paths,
    want: Want,
    check_mode: bool = False,
    policy: Policy | None = None,
    heard: tuple[diagnosis.Fault, ...] = (),
    patience: float = lock.SECONDS,
) -> tuple[Plan, Have]:
    """Bring the wanted chain into place: the plan that was needed, and what is there now.

    :param heard: what listen() found, which is mended as well.
    :raises ConntrackError: see check(), plan_present() and apply().
    """
    policy = policy or Policy()
    check(want, policy)
    settings = settings_here(want)
    pins.check_places(paths)
    state_dir.check(paths)
    if check_mode:
        with _at_rest(paths, patience):
            have = _with(observe(paths), heard)
            finish = _unfinished(paths, have)
            return finish + _plan(paths, _finished(have), want, settings, policy), have
    try:
        with _at_home(paths, patience):
            have = _with(observe(paths), heard)
            finish = _unfinished(paths, have)
            if finish:
                apply(finish, paths, have, want, settings)
                have = _with(observe(paths), heard)
            plan = _plan(paths, have, want, settings, policy)
            apply(plan, paths, have, want, settings)
            plan = finish + plan
            with applied(plan):
                return plan, observe(paths) if plan else have
    except BaseException:
        _tidy(paths)
        raise


def _plan(paths: Paths, have: Have, want: Want, settings: bytes, policy: Policy) -> Plan:
    plan = plan_present(have, want, settings, policy, _legacy(paths, have, want, policy))
    plan = _plan_forwarding(plan, have, forwarding.of_text(want.text), "load")
    return policy.proof(plan, have, want, settings) if policy.proof else plan


def _plan_forwarding(plan: Plan, have: Have, forward: str, action: str) -> Plan:
    """Return the plan with the rulesets that a generation which takes over passes by, where it
    forwards.

    :param forward: what it forwards, one of chain.FORWARDS.
    :param action: that of the step which brings it in.
    :raises ConntrackError: where it would take over an interface through which it must not forward.
    """
    if forward == chain_settings.FORWARDS[0] or not any(step.action == action for step in plan):
        return plan
    seen = forwarding.attached(
        forward,
        [
            key
            for key, (info, hook) in have.links.items()
            if info.ifindex and hook in chain_programs.TRACKING_HOOKS
        ],
    )
    for key, one in seen.items():
        forwarding.refuse("forward", generation_links.interface(key), one)
    past = forwarding.shown(forwarding.namespaces(seen.values()))
    said = (
        f"; rulesets of the forward hook that what it forwards does not meet: {past}"
        if past
        else ""
    )
    return [
        dataclasses.replace(step, reason=step.reason + said) if step.action == action else step
        for step in plan
    ]


def _plan_back(paths: Paths, have: Have, number: int | None) -> Plan:
    """Return the steps back to an earlier generation; see plan_rolled_back() and
    _plan_forwarding().
    """
    target, plan = (
        target_of(have, number),
        plan_rolled_back(have, number, _legacy_of_target(paths, have, number)),
    )
    return (
        _plan_forwarding(plan, have, generation_links.forwards(paths, target.number), "activate")
        if target is not None
        else plan
    )


def _legacy(paths: Paths, have: Have, want: Want, policy: Policy) -> Legacy | None:
    """Return what the next generation, where one is needed, gets of the active one's maps.

    :raises ConntrackError: when it can not have them as the policy wants.
    """
    if have.generation is None or why_new(have, want) is None:
        return None
    number = next_number(have)
    old = migrate.read_maps(have.generation, paths.gen_dir(have.generation))
    return migrate.legacy(
        old, wanted(number, paths.gen_dir(number), want.maps), policy.on_schema_change
    )


def _legacy_of_target(paths: Paths, have: Have, number: int | None) -> Legacy | None:
    """Return what the generation to go back to gets of the active one's maps."""
    target = target_of(have, number)
    if target is None or have.generation is None:
        return None
    old, new = (
        migrate.read_maps(one, paths.gen_dir(one)) for one in (have.generation, target.number)
    )
    return migrate.legacy(old, new, "migrate")


def _unfinished(paths: Paths, have: Have) -> Plan:
    """Return the steps that a run which did not end left to do between the active generation and
    the one before.
    """
    if have.generation is None or not have.source:
        return []
    old, new = (
        migrate.read_maps(number, paths.gen_dir(number))
        for number in (have.source, have.generation)
    )
    return plan_finish(have, migrate.legacy(old, new, "migrate"))


def _finished(have: Have) -> Have:
    """Return what there will be when those steps are done."""
    if not have.source:
        return have
    by_hook = {info.name: info.id for info in have.programs.values()}
    links = {
        key: (info._replace(prog_id=by_hook.get(hook or "", info.prog_id)), hook)
        for key, (info, hook) in have.links.items()
    }
    return dataclasses.replace(have, source=0, links=links)


@_as_root()
def roll_back(
    paths: Paths,
    number: int | None = None,
    check_mode: bool = False,
    patience: float = lock.SECONDS,
) -> tuple[Plan, Have]:
    """Go back to an earlier generation: the plan that was needed, and what is there now.

    :param number: of that generation; None for the last good one.
    :raises ConntrackError: see plan_rolled_back() and apply().
    """
    pins.check_places(paths)
    with _at_rest(paths, patience) as there:
        have = observe(paths)
        finish = _unfinished(paths, have)
        plan = finish + _plan_back(paths, _finished(have), number)
        if check_mode or not there:
            return plan, have
        if plan:
            state_dir.check(paths)
        if finish:
            apply(finish, paths, have, Want("", {}, 1), b"")
            have = observe(paths)
        plan = _plan_back(paths, have, number)
        apply(plan, paths, have, Want("", {}, 1), b"")
        plan = finish + plan
        return plan, observe(paths) if plan else have


@_as_root()
def remove(paths: Paths, check_mode: bool = False, patience: float = lock.SECONDS) -> Plan:
    """Take the chain away: the plan that was needed.

    :raises ConntrackError: see plan_absent().
    """
    with _at_rest(paths, patience) as there:
        plan, have = _plan_removal(paths)
        if check_mode:
            return plan
        if there:
            _take_away(paths, plan, have)
    if not there and (plan or have.state != State() or state_dir.leaves_a_directory(paths)):
        # After a reboot there is no more than what was written down; or another run has just begun,
        # whose work is not to be taken from under it.
        with (
            _at_home(paths, patience)
            if bpffs_mount.can_be_mounted(paths.pin_root)
            else contextlib.nullcontext()
        ):
            plan, have = _plan_removal(paths)
            _take_away(paths, plan, have)
    _tidy(paths)
    return plan


def _take_away(paths: Paths, plan: Plan, have: Have) -> None:
    if os.path.isdir(paths.base):
        remove_symlinks(paths)
    manifest.activate(paths, None)
    apply(plan, paths, have, Want("", {}, 1), b"")


def _plan_removal(paths: Paths) -> tuple[Plan, Have]:
    have = observe(paths)
    plan = plan_absent(have)
    if have.state != State():
        state_dir.check(paths)
    return plan, have


def _tidy(paths: Paths) -> None:
    """Take away the directories that are empty, and what a killed run left of its build."""
    build_bcc.tidy()
    bpffs_mount.release(paths.pin_root)


def settings_here(want: Want) -> bytes:
    """Return the bytes of ``settings`` on this host."""
    return chain_settings.settings_value(chain_jiffies.hz(), want.timeouts, want.knobs)


def facts(have: Have, paths: Paths) -> dict[str, t.Any]:
    """Return the chain as modules report it."""
    names = {
        **{slot: info.name for slot, info in have.programs.items()},
        **{slot: name for name, slot in chain_programs.SLOTS.items()},
    }
    return {
        "generation": have.generation,
        "digest": have.digest if have.generation is not None else None,
        "healthy": have.generation is not None and not have.faults,
        "faults": [fault.as_dict() for fault in have.faults],
        "pin_root": paths.pin_root,
        "programs": [
            {
                "slot": slot,
                "name": names[slot],
                "id": info.id,
                "tag": info.tag,
                "pin": os.path.join(paths.seed_prog, f"xdp_{slot}"),
            }
            for slot, info in sorted(have.programs.items())
        ],
        "maps": [
            {
                "name": name,
                "id": info.id,
                "type": next(
                    (
                        kind
                        for kind, number in bpf_constants.MAP_TYPES.items()
                        if number == info.kind
                    ),
                    str(info.kind),
                ),
                "key_size": info.key_size,
                "value_size": info.value_size,
                "max_entries": info.max_entries,
                "pin": os.path.join(paths.seed_map, name),
            }
            for name, info in {**have.maps, **have.guest_maps}.items()
        ],
        "settings": _settings_facts(have.settings),
        "since": have.since or None,
        "kept": [
            {
                "generation": one.number,
                "digest": one.digest,
                "since": one.since,
                "rejected": one in have.rejected,
                "faults": [fault.as_dict() for fault in one.faults],
            }
            for one in have.kept
        ],
    }


def _settings_facts(raw: bytes) -> dict[str, t.Any]:
    if len(raw) != chain_settings.SETTINGS_BYTES:
        return {}
    hz, timeouts, knobs = chain_settings.settings_of(raw)
    return {"hz": hz, "timeouts": timeouts, **knobs}
