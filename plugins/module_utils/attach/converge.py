# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach the active generation's programs to interfaces through pinned bpf_links: observe -> plan
-> apply.

Ours is what stands under ``link/`` (a bpf_link each), and a program of one of our generations that
somebody attached by its pin (``ip link set dev ns1-lan xdp pinned .../prog/xdp_0``): such a one is
taken over into a bpf_link, or detached, without asking. Every other program on an interface is
foreign.

A run that is killed leaves either the old state or the new one, or nothing attached: a bpf_link
that has no pin yet dies with its process. The next run sees which, and goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..chain import settings as chain_settings
from ..chain.programs import TRACKING_HOOKS
from ..core import lock, plan
from ..core.errors import ConntrackError
from ..generation import diagnosis, health, traffic
from ..generation import links as generation_links
from ..generation import probe as generation_probe
from ..kernel import bpf, bpffs, netdev, netns
from . import apply as attach_apply
from . import model as attach_model
from . import observe as attach_observe
from . import plan as attach_plan
from . import record as attach_record
from . import redirect, refusals, select
from .apply import Applier
from .model import Have, Want


# ---------------------------------------------------------------- forwarding
def converge_ports(
    paths: bpffs.Paths, wants: t.Sequence[Want], haves: t.Sequence[Have], check_mode: bool
) -> plan.Plan:
    """Let the chain know the interfaces between which it forwards, where it does: the plan that was
    needed.

    Whether an interface takes redirected frames depends on what is attached, so this is planned
    when all is.
    """
    if (
        not os.path.exists(paths.map("ports"))
        or generation_links.forwards(paths) == chain_settings.FORWARDS[0]
    ):
        return []
    with bpf.closing(bpf.obj_get(paths.map("ports"))) as fd:
        wanted = [
            have.port
            for want, have in zip(wants, haves)
            if want.hook in TRACKING_HOOKS and have.port is not None
        ]
        steps = redirect.make_plan(redirect.read(fd), wanted, _other_ports(paths, wants))
        if not check_mode:
            plan.apply(steps, lambda step: redirect.do(fd, step))
        return steps


def _other_ports(paths: bpffs.Paths, wants: t.Sequence[Want]) -> t.Iterator[bytes]:
    """Return the keys of the ports that are attached, and that this run is not about."""
    spoken_of = {paths.link(want.netns, want.name) for want in wants}
    for pin in attach_observe.held(paths).keys() - spoken_of:
        namespace, name = bpffs.interface_of(os.path.basename(pin))
        # gone, or renamed: no port until it is attached again
        with contextlib.suppress(ConntrackError), netns.entered(namespace):
            facts = netdev.link_facts(name)
            yield redirect.Port(name, facts.ifindex, facts.mac, False).key


class Chosen(t.NamedTuple):
    """What is wanted of which interfaces.

    :ivar steps: in check mode, for the entries that nothing fits yet.
    :ivar missing: why there is nothing for those.
    :ivar left_out: why interfaces that fit were left out.
    """

    wants: list[Want]
    steps: plan.Plan
    missing: list[str]
    left_out: list[str]


def choose(
    state: str, interfaces: t.Sequence[t.Mapping[str, t.Any]], mode: str, check_mode: bool
) -> Chosen:
    """Find out which interfaces are meant, where some are chosen by what they are or called by
    another name.

    :raises ConntrackError: nothing fits, and it is no check run.
    """
    there = attach_model.looked(interfaces)
    if state == "absent":  # an interface is detached whatever it is
        there = [{**item, "program": None} for item in there]
    items, missing, left_out = select.resolve(there, attach_observe.candidates)
    steps: plan.Plan = []
    if state == "present":
        if missing and not check_mode:
            raise ConntrackError(missing[0].message)
        for one in missing:
            after = {
                "program": one.item.get("program"),
                "program_id": None,
                "tag": None,
                "mode": one.item.get("mode") or mode,
            }
            steps.append(
                plan.Step(
                    "attach", "xdp", one.label, "no interface that fits exists yet", None, after
                )
            )
    return Chosen(
        attach_model.parse(state, items, mode),
        steps,
        [one.message for one in missing] if state == "present" else [],
        left_out,
    )


def _sharing(paths: bpffs.Paths, wants: t.Sequence[Want], haves: t.Sequence[Have]) -> list[str]:
    """Return a warning where the chain tracks in several namespaces at once: a packet is counted
    once in each that it goes through.
    """
    wanted = [(want, have) for want, have in zip(wants, haves) if want.hook in TRACKING_HOOKS]
    if not wanted:
        return []
    spoken_of = {
        pin for want, have in zip(wants, haves) for pin in (have.pin, *attach_plan.pins(have))
    }
    others = attach_observe.tracking(
        {pin: info for pin, info in attach_observe.held(paths).items() if pin not in spoken_of},
        attach_observe.generation_programs(paths),
    )
    namespaces = {want.netns for want, dummy in wanted} | {namespace for namespace, dummy in others}
    if len(namespaces) < 2 or (
        len(wanted) == 2 and not others and _one_link(*wanted[0], *wanted[1])
    ):
        return []
    where = [name or "the host's" for name in sorted(namespaces, key=lambda name: name or "")]
    return [
        f"The chain of pin_root {paths.pin_root} tracks in several namespaces ({', '.join(where)}),"
        " which share its tables: a packet that goes through more than one of them is counted in"
        " each, as of one flow. Give each namespace a pin_root of its own, as"
        f" {bpffs.own_root(where[-1])} to {where[-1]}."
    ]


def _one_link(want: Want, have: Have, other: Want, other_have: Have) -> bool:
    """Tell whether two interfaces are the two ends of a link: each sees one direction, so nothing
    is counted twice.
    """
    try:
        with netns.entered(other.netns):
            far = netdev.link_facts(other.name)
        with netns.entered(want.netns):
            near = netdev.link_facts(want.name)
            peer = netdev.link_facts(near.peer_ifindex, near.peer_nsid)
    except ConntrackError:  # one is not there, or has no other end
        return False
    # numbers repeat between namespaces, and so may names: the address makes it certain
    return near.kind == "veth" and (peer.ifindex, peer.name, peer.mac) == (
        far.ifindex,
        far.name,
        far.mac,
    )


def converge(
    state: str,
    interfaces: t.Sequence[t.Mapping[str, t.Any]] | None,
    mode: str,
    takeover: bool,
    pin_root: str,
    check_mode: bool,
    lock_timeout: float = lock.SECONDS,
    state_dir: str = bpffs.STATE_DIR,
) -> tuple[dict[str, t.Any], list[str]]:
    """Do what the module ``xdp_attach`` does.

    :param interfaces: the module's option; None, with ``absent``, stands for every interface that
        we hold.
    :param lock_timeout: how long to wait for another run, in seconds.
    :param state_dir: where it is written down what is attached.
    :return: (the module's result, warnings).
    :raises ConntrackError: for everything a user can mend.
    """
    paths = bpffs.Paths(pin_root, state_dir)
    attach_model.check(state, interfaces or (), mode)  # before anything is looked at
    if os.geteuid() != 0:
        raise ConntrackError(
            "Reading and changing what is attached needs root: run the task with become: true."
        )
    bpffs.check_text(paths)
    bpffs.check(pin_root)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # nothing is loaded, which is said below
            stack.enter_context(lock.held(paths.base, lock_timeout))
            if not check_mode:
                attach_record.end_write_interfaces(paths)
                # when the last link is gone: by this run, or by one that was killed then
                stack.callback(attach_apply.rmdir, paths.link_dir)
        wants, to_come, missing, left_out = choose(state, interfaces or (), mode, check_mode)
        warnings = missing + left_out
        if state == "absent" and interfaces is None:
            names = [
                bpffs.interface_of(os.path.basename(path)) for path in attach_observe.held(paths)
            ]
            wants = attach_model.parse(
                state, [{"name": name, "netns": namespace} for namespace, name in names], mode
            )
        hooks = attach_observe.open_hooks(paths, wants, check_mode)
        heard = traffic.listen(paths, generation_probe.prove) if state == "present" else ()
        found = faults = health.examine(paths) + heard
        haves = attach_observe.observe(paths, wants)
        steps = attach_plan.make_plan(wants, haves, hooks, takeover, check_mode)
        for step in steps if check_mode else ():
            refusals.check(step)
        warnings += _sharing(paths, wants, haves)
        record = attach_record.plan_record(paths, wants, state == "absent" and interfaces is None)
        applier = stack.enter_context(Applier(paths))
        if not check_mode and (steps or record):
            plan.apply(
                record + steps,
                lambda step: (
                    attach_record.do_record(paths, step) if step in record else applier.do(step)
                ),
            )
            with plan.applied(record + steps):
                haves, faults = attach_observe.observe(paths, wants), health.examine(paths)
        todo = {step.args.want: step for step in steps} if check_mode else {}
        # what changes on an interface is written down without a word; that it had not been is told
        steps = (steps or record) + to_come + converge_ports(paths, wants, haves, check_mode)
        result = {
            "changed": bool(steps),
            "plan": plan.as_dicts(steps),
            "diff": plan.as_diff(steps),
            "interfaces": [
                attach_record.record(want, have, todo.get(want)) for want, have in zip(wants, haves)
            ],
            "faults": [fault.as_dict() for fault in faults],
            "mended": diagnosis.mended(found, faults),
        }
        return result, warnings + applier.warnings
