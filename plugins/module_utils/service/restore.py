# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring back what the state directory holds: the chain as it was last in use, and on the interfaces
what was attached.

load() builds the chain, attach_again() attaches it; each only does what is missing, so both may run
at any time. unload() takes the chain away and leaves the state directory as it is, so that the next
load() brings it back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ..attach import apply as attach_apply
from ..attach import converge as attach
from ..attach import model as attach_model
from ..attach import observe as attach_observe
from ..attach import plan as attach_plan
from ..attach import record as attach_record
from ..core import lock, plan
from ..core.errors import ConntrackError
from ..generation import converge as generation
from ..generation import diagnosis, manifest, pinned_objects, reload, state_dir
from ..generation.model import KEEP_RANGE, Have, Policy
from ..kernel import bpffs

#: What xdp_program mends.
_MENDED = ("generation", "write", "update")
#: Nothing goes that could be gone back to: how many generations were to be kept is not written
#: down.
_POLICY = Policy(keep=KEEP_RANGE[1])


class NothingKept(ConntrackError):
    """The state directory knows of no chain."""


# ---------------------------------------------------------------- the chain
def load(
    paths: bpffs.Paths, check_mode: bool = False, patience: float = lock.SECONDS
) -> tuple[plan.Plan, Have]:
    """Build the chain again where none is loaded, or mend it: the plan that was needed, and what is
    there now. One that is whole is left as it is.

    :param patience: how long to wait for another run, in seconds.
    :raises NothingKept: where none is loaded, and none was before the reboot.
    :raises ConntrackError: where it can not be told what it is made of, and see reload.load().
    """
    bpffs.check_text(paths)
    bpffs.check(paths.pin_root)
    have = generation.observe(paths)
    broken = [fault for mend in _MENDED for fault in diagnosis.mended_by(have.faults, mend)]
    if have.generation is not None and not broken and not have.source:
        return [], have
    number = state_dir.active(paths)
    if number is None:
        raise NothingKept(
            f"{paths.state_dir}: no chain is written down there for {paths.pin_root}. Run"
            " xdp_program, or give the state_dir that it was given."
        )
    want = reload.last(paths)
    if want is None:
        raise ConntrackError(
            f"{manifest.manifest(paths, number)} is missing or damaged, so the chain can not be"
            " built again. Run xdp_program."
        )
    return reload.load(paths, want, check_mode, _POLICY, patience)


# ---------------------------------------------------------------- the interfaces
@dataclasses.dataclass
class Attached:
    """What came of attaching again.

    :ivar steps: what was done, or in check mode would be.
    :ivar waiting: the interfaces that do not exist yet.
    :ivar refused: why it could not be done, by interface.
    :ivar warnings: what else to know.
    """

    steps: plan.Plan = dataclasses.field(default_factory=list)
    waiting: list[str] = dataclasses.field(default_factory=list)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)


def attach_again(
    paths: bpffs.Paths,
    check_mode: bool = False,
    patience: float = lock.SECONDS,
    only: t.Collection[str] | None = None,
) -> Attached:
    """Attach the chain to those of the interfaces written down that exist and do not run it, each
    on its own; forget the links of those that are gone.

    :param only: the interfaces to care for, as people write them; None for all.
    :raises ConntrackError: where no chain is loaded, and when another run keeps the lock for too
        long.
    """
    done = Attached()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(paths.base, patience))
        except FileNotFoundError:
            raise ConntrackError(
                f"{paths.base}: no chain is loaded there, so there is nothing to attach."
            ) from None
        wants = [
            want
            for want in attach_model.parse("present", attach_record.recorded(paths), "auto")
            if only is None or want.label in only
        ]
        haves = attach_observe.observe(paths, wants)
        done.waiting = [want.label for want, have in zip(wants, haves) if have.missing]
        there = [(want, have) for want, have in zip(wants, haves) if not have.missing]
        for want, have in zip(wants, haves):
            if have.missing and have.pinned is not None and not have.pinned.ifindex:
                done.steps.append(
                    plan.Step(
                        "delete",
                        "link",
                        want.label,
                        "its interface is gone",
                        f"link {have.pinned.id}",
                    )
                )
                if not check_mode:
                    os.unlink(have.pin)
        hooks = attach_observe.open_hooks(paths, [want for want, dummy in there], check_mode)
        applier = stack.enter_context(attach_apply.Applier(paths))
        for want, have in there:
            try:
                steps = attach_plan.make_plan([want], [have], hooks, False, check_mode)
                if not check_mode:
                    plan.apply(steps, applier.do)
                done.steps += steps
            except (ConntrackError, OSError) as exc:
                done.refused[want.label] = str(exc)
        done.warnings = applier.warnings
        if any(step.kind == "xdp" for step in done.steps):
            found = [want for want, dummy in there]
            done.steps = done.steps + attach.converge_ports(
                paths, found, attach_observe.observe(paths, found), check_mode
            )
    return done


# ---------------------------------------------------------------- taking it away
def unload(paths: bpffs.Paths, patience: float = lock.SECONDS) -> list[str]:
    """Detach and unload the chain, and leave in the state directory what brings it back.

    :return: the interfaces that it was detached from.
    :raises ConntrackError: naming the interface that it can not be detached from; then it stays
        loaded.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(paths.base, patience))
        except FileNotFoundError:
            return []
        names: t.Iterable[tuple[str | None, str]] = map(
            bpffs.interface_of, pinned_objects.names(paths.link_dir)
        )
        wants = attach_model.parse(
            "absent", [{"name": name, "netns": namespace} for namespace, name in names], "auto"
        )
        steps = attach_plan.make_plan(wants, attach_observe.observe(paths, wants), {}, False, False)
        with attach_apply.Applier(paths) as applier:
            plan.apply(steps, applier.do)
        generation.remove_symlinks(paths)
        generation.remove_tree(paths.gen)
        for directory in (paths.link_dir, paths.base):  # the mount stays, for the next load()
            with contextlib.suppress(OSError):  # not there, or in use
                os.rmdir(directory)
    return [step.name for step in steps]
