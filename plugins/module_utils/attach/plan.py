# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done about each interface. Pure but for the names of who holds a link."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ..chain import forwarding
from ..chain.programs import TRACKING_HOOKS
from ..core import plan
from ..core.errors import ConntrackError
from . import apply as attach_apply
from . import model as attach_model
from .model import Attached, Change, Have, Program, Want


def make_plan(
    wants: t.Sequence[Want],
    haves: t.Sequence[Have],
    hooks: t.Mapping[str, Program],
    takeover: bool,
    check_mode: bool,
) -> plan.Plan:
    """Return the steps from what is there to what is wanted. Pure.

    :raises ConntrackError: when the wish can not be fulfilled; nothing has been touched then.
    """
    steps = [
        (
            _plan_free(want, have)
            if not want.hook
            else _plan_one(want, have, hooks, takeover, check_mode)
        )
        for want, have in zip(wants, haves)
    ]
    return [step for step in steps if step is not None]


def pins(have: Have) -> tuple[str, ...]:
    """Return the pins of ours that speak of this interface: its own, and that under which it was
    attached before it was renamed or moved.
    """
    pins = [have.pin] if have.pinned is not None else []
    if have.attached is not None and have.attached.pin not in (None, have.pin):
        pins.append(have.attached.pin)
    return tuple(pins)


def _elsewhere(have: Have) -> str:
    """Return where the link that is pinned for an interface is, when it does not hold that
    interface; "" when there is none, or nothing is known of it.
    """
    pinned = have.pinned
    if (
        pinned is None
        or not pinned.ifindex
        or (have.attached is not None and have.attached.pin == have.pin)
    ):
        return ""
    return (
        f"its link {pinned.id} went with the interface of number {pinned.ifindex}, which now has"
        " another name or is in another namespace"
    )


def _by_pin(attached: Attached | None) -> bool:
    """Tell whether a program of ours was attached without a link, by its pin."""
    return attached is not None and not attached.by_link and attached.program.hook is not None


def _plan_free(want: Want, have: Have) -> plan.Step | None:
    attached = have.attached
    by_pin = _by_pin(attached)
    change = Change(want, have, drop_pins=pins(have), drop=attached if by_pin else None)
    if attached is not None and (by_pin or attached.pin is not None):
        reason = "it shall have no program of the chain" + (
            ", and this one was attached by its pin, without a link" if by_pin else ""
        )
        return plan.Step("detach", "xdp", want.label, reason, attached.shown(), None, change)
    if have.pinned is not None:
        reason = _elsewhere(have) or "the link that is pinned for it holds no interface any more"
        return plan.Step(
            "detach", "xdp", want.label, reason, {"link_id": have.pinned.id}, None, change
        )
    return None


def _plan_one(
    want: Want, have: Have, hooks: t.Mapping[str, Program], takeover: bool, check_mode: bool
) -> plan.Step | None:
    if have.missing and not check_mode:
        where = _elsewhere(have)
        raise ConntrackError(
            have.missing
            + (
                f" But {where}: name it as it is now, or detach it (state: absent)."
                if where
                else ""
            )
        )
    _refuse_interface(want, have)
    if have.forwards is not None:
        forwarding.refuse(want.field, want.label, have.forwards)
    program, attached = hooks.get(want.hook), have.attached
    modes, why_generic = _modes(want, have)
    after = {
        "program": want.hook,
        "program_id": program.id if program else None,
        "tag": program.tag if program else None,
        "mode": modes[0] if len(modes) == 1 else "auto",
    }

    def step(action: str, reason: str, **change: t.Any) -> plan.Step:
        before = attached.shown() if attached is not None else None
        whole: dict[str, t.Any] = {
            "drop_pins": pins(have),
            "modes": modes,
            "why_generic": why_generic,
            **change,
        }
        return plan.Step(
            action, "xdp", want.label, reason, before, after, Change(want, have, **whole)
        )

    if have.missing:
        return step("attach", "the interface does not exist yet")
    if attached is None:
        stale = (
            _elsewhere(have)
            or "its link is stale: the interface was made anew, or the link was detached"
        )
        reason = stale if have.pinned else "nothing is attached"
        return step("attach", reason if program else f"{reason}, and the program is not loaded yet")
    if attached.pin is None and not _by_pin(attached):
        _refuse_foreign(want, attached, takeover)
        return step(
            "replace",
            f"takeover of {attached.program.name}, id {attached.program.id}",
            drop=attached,
        )
    if attached.pin is None:
        return step(
            "replace", "the chain's program was attached by its pin, without a link", drop=attached
        )
    if attached.pin != have.pin:
        reason = f"the interface was renamed or moved: its link is pinned at {attached.pin}"
        if want.mode not in ("auto", attached.mode):
            return step("replace", reason)
        after["mode"] = attached.mode
        update = attached if program is not None and attached.program.id != program.id else None
        drop_pins = (have.pin,) if have.pinned is not None else ()
        return step(
            "replace", reason, moved_from=attached.pin, drop_pins=drop_pins, update=update, modes=()
        )
    if want.mode not in ("auto", attached.mode):
        return step("replace", f"mode {want.mode} is wanted")
    if program is not None and attached.program.id != program.id:
        after["mode"] = attached.mode
        reason = (
            "it shall run another hook"
            if attached.program.hook != want.hook
            else "another generation is active"
        )
        return step("replace", reason, update=attached, drop_pins=(), modes=())
    return None


def _refuse_interface(want: Want, have: Have) -> None:
    """:raises ConntrackError: when the chain would track nothing on the interface, or count packets
    twice.
    """
    if want.hook not in TRACKING_HOOKS:
        return
    if have.unfit:
        raise ConntrackError(
            f"{want.field}.name: {want.label}: the chain cannot track on this interface:"
            f" {have.unfit}. Name the Ethernet interfaces by which the same traffic comes in"
            " instead."
        )
    if have.counted:
        raise ConntrackError(
            f"{want.field}.name: {want.label}: each packet would be counted twice: {have.counted}."
            " Name one of the two, and detach the other (state: absent)."
        )


def _modes(want: Want, have: Have) -> tuple[tuple[str, ...], str]:
    """Return the modes to try, and why native is not among them when auto leaves it out.

    :raises ConntrackError: when native is wanted and the MTU is in the way.
    """
    if want.mode == "generic" or have.too_long is None:
        return (attach_model.HOST_MODES if want.mode == "auto" else (want.mode,)), ""
    already = (
        have.attached is not None
        and have.attached.pin == have.pin
        and have.attached.mode == "native"
    )
    why = (
        f"native XDP on a veth takes an MTU of at most {attach_model.VETH_MAX_MTU}, and the MTU of"
        f" its other end is {have.too_long}"
    )
    if want.mode == "native" and not already:
        raise ConntrackError(
            f"{want.field}.mode: {want.name}: {why}. {attach_apply.MEND_NATIVE[errno.ERANGE]}"
        )
    return ("native",) if want.mode == "native" else ("generic",), why


def _refuse_foreign(want: Want, attached: Attached, takeover: bool) -> None:
    """:raises ConntrackError: when the foreign program may not be, or can not be, taken away."""
    program = attached.program
    if not attached.by_link:
        how = "attached through netlink (as by ip link)"
    elif attached.link_ids:
        how = f"held by bpf_link {' or '.join(map(str, attached.link_ids))}"
        how += "".join(
            f" of process {pid} ({name})"
            for number in attached.link_ids
            for pid, name in _holders(number)
        )
    else:
        how = "held by a bpf_link that is already gone"
    what = (
        f"an XDP program that is not ours: id {program.id}, name {program.name}, tag {program.tag},"
        f" mode {attached.mode}, {how}"
    )
    if program.name == "xdp_dispatcher":
        what += "; it is libxdp's dispatcher, xdp-loader unload frees the interface"
    if not takeover:
        raise ConntrackError(
            f"{want.field}: {want.label} has {what}. Detach it, or give takeover: true to have it"
            " replaced."
        )
    if attached.by_link and len(attached.link_ids) != 1:
        raise ConntrackError(
            f"{want.field}: {want.label} has {what}. Which link it is can not be told, so detach it"
            " yourself (bpftool link detach)."
        )


def _holders(link_id: int) -> list[tuple[int, str]]:
    """Return (pid, name) of the processes that hold an open file descriptor of a bpf_link."""
    found: list[tuple[int, str]] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # ended since
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") not in (
                    "anon_inode:bpf_link",
                    "anon_inode:bpf-link",
                ):
                    continue
                with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as lines:
                    if f"link_id:\t{link_id}\n" not in lines:
                        continue
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as name:
                    found.append((int(pid), name.read().strip()))
                break
    return found
