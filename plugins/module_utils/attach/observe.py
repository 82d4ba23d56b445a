# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is attached to an interface, and what could be."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import typing as t

from ..chain import forwarding
from ..chain import settings as chain_settings
from ..chain.programs import HOOKS, SLOTS, TRACKING_HOOKS
from ..core.errors import ConntrackError
from ..generation import links as generation_links
from ..kernel import (
    bpf,
    bpf_constants,
    bpffs,
    ethtool,
    link_fitness,
    netdev,
    netfilter,
    netns,
    rtnetlink,
)
from . import model as attach_model
from . import redirect, select
from .model import Attached, Have, Program, Want


def _pinned_link(path: str) -> bpf.LinkInfo | None:
    """Return what the pin holds.

    :raises ConntrackError: when it is no XDP link.
    """
    if not os.path.lexists(path):
        return None
    info: bpf.LinkInfo | None = None
    try:
        with bpf.closing(bpf.obj_get(path)) as fd:
            if bpf.kind_of(fd) == "link":
                info = bpf.link_info(fd)
    except bpf.BpfError as exc:
        # the kernel's answers to a directory and to a file of another kind
        if exc.errno != errno.EACCES:
            raise
    if info is None or info.type != bpf_constants.LINK_TYPE_XDP:
        raise ConntrackError(
            f"{path} is not a pinned XDP link, so it is not ours. Remove it, or give another"
            " pin_root."
        )
    return info


def held(paths: bpffs.Paths) -> dict[str, bpf.LinkInfo]:
    """Return the bpf_links that we have pinned, by path."""
    try:
        names = sorted(os.listdir(paths.link_dir))
    except FileNotFoundError:
        return {}
    found = {
        os.path.join(paths.link_dir, name): _pinned_link(os.path.join(paths.link_dir, name))
        for name in names
    }
    return {path: info for path, info in found.items() if info is not None}


def generation_programs(paths: bpffs.Paths) -> dict[int, str]:
    """Return the programs of all our generations: their ids and the names of their slots."""
    slots = {f"xdp_{slot}": name for name, slot in SLOTS.items()}
    found: dict[int, str] = {}
    for generation in _listdir(paths.gen):
        directory = os.path.join(paths.gen, generation, "prog")
        for name in _listdir(directory):
            with bpf.closing(bpf.obj_get(os.path.join(directory, name))) as fd:
                found[bpf.prog_info(fd).id] = slots.get(name, name)
    return found


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_hooks(paths: bpffs.Paths, wants: t.Sequence[Want], check_mode: bool) -> dict[str, Program]:
    """Return the active generation's program of each hook that is wanted; in check mode those that
    exist.

    :raises ConntrackError: when a pin is missing or holds something else.
    """
    found: dict[str, Program] = {}
    for hook in HOOKS:
        path = paths.prog(SLOTS[hook])
        users = [want for want in wants if want.hook == hook]
        if not users:
            continue
        if not os.path.exists(path):
            if check_mode:
                continue
            raise ConntrackError(
                f"{users[0].field}.program: {hook!r} is not loaded: {path} does not exist. Run"
                " ebpf.conntrack.xdp_program first."
            )
        with bpf.closing(bpf.obj_get(path)) as fd:
            if bpf.kind_of(fd) != "prog" or bpf.prog_info(fd).type != bpf_constants.PROG_TYPE_XDP:
                raise ConntrackError(
                    f"{path} is no XDP program. Run ebpf.conntrack.xdp_program again."
                )
            info = bpf.prog_info(fd)
        found[hook] = Program(info.id, info.name, info.tag, hook)
    return found


def observe(paths: bpffs.Paths, wants: t.Sequence[Want], forward: str | None = None) -> list[Have]:
    """Return what is there for each wanted interface; nothing is changed.

    :param forward: what the chain is to forward, one of chain.FORWARDS; None for what the active
        one does.
    :raises ConntrackError: when something foreign stands at a pin's path.
    """
    pins, programs = held(paths), generation_programs(paths)
    forward = generation_links.forwards(paths) if forward is None else forward
    rules: dict[str | None, netfilter.Seen] = {}
    haves = [
        _observe_one(paths.link(want.netns, want.name), want, pins, programs, forward, rules)
        for want in wants
    ]
    for namespace in {want.netns for want in wants if want.hook in TRACKING_HOOKS}:
        _observe_stacks(namespace, wants, haves, pins, programs)
    return haves


def _observe_stacks(
    namespace: str | None,
    wants: t.Sequence[Want],
    haves: list[Have],
    pins: t.Mapping[str, bpf.LinkInfo],
    programs: t.Mapping[int, str],
) -> None:
    """Say in ``haves`` which interfaces of a namespace get frames that were counted below them, on
    wanted interfaces or on others that we hold.
    """
    wanted = {
        have.ifindex: at
        for at, (want, have) in enumerate(zip(wants, haves))
        if want.netns == namespace and want.hook in TRACKING_HOOKS and have.ifindex
    }
    spoken_of = {have.ifindex for want, have in zip(wants, haves) if want.netns == namespace}
    links = {
        (info.ifindex, info.prog_id)
        for where, info in tracking(pins, programs)
        if where == namespace
    }
    if len(wanted) + len(links) < 2:
        return
    with netns.entered(namespace):
        there = {facts.ifindex: facts for facts in netdev.links()}
    kept = {
        index
        for index, prog_id in links
        if index in there and index not in spoken_of and prog_id in there[index].xdp.values()
    }
    below = link_fitness.below(there.values())
    for index, at in wanted.items():
        lower = sorted(below.get(index, set()) & (wanted.keys() | kept))
        upper = sorted(one for one in kept if index in below[one])
        if lower:
            name = there[lower[0]].name
            haves[at] = dataclasses.replace(
                haves[at],
                counted=(
                    f"all its frames that come by {name} are counted there, where the chain is"
                    " wanted or attached"
                ),
            )
        elif upper:
            name = there[upper[0]].name
            haves[at] = dataclasses.replace(
                haves[at],
                counted=(
                    f"its frames that {name} gets are counted there, where the chain is attached"
                ),
            )


def tracking(
    pins: t.Mapping[str, bpf.LinkInfo], programs: t.Mapping[int, str]
) -> list[tuple[str | None, bpf.LinkInfo]]:
    """Return the links of ours that track on an interface, each with the namespace that its pin
    names.
    """
    found = {
        pin: info
        for pin, info in pins.items()
        if info.ifindex and programs.get(info.prog_id) in TRACKING_HOOKS
    }
    named = {pin: bpffs.interface_of(os.path.basename(pin))[0] for pin in found}
    namespaces = netns.canonical(named.values())
    return [(namespaces[named[pin]], info) for pin, info in found.items()]


def _observe_one(
    pin: str,
    want: Want,
    pins: t.Mapping[str, bpf.LinkInfo],
    programs: t.Mapping[int, str],
    forward: str,
    rules: dict[str | None, netfilter.Seen],
) -> Have:
    have = Have(pin=pin, pinned=pins.get(pin))
    if want.netns is not None and not netns.exists(want.netns):
        there = ", ".join(netns.names()[0]) or "none"
        return dataclasses.replace(
            have,
            missing=(
                f"{want.field}.netns: there is no namespace {want.netns!r}; there are: {there}."
            ),
        )
    with netns.entered(want.netns):
        try:
            facts = netdev.link_facts(want.name)
        except bpf.BpfError as exc:
            if exc.errno != errno.ENODEV:
                raise
            there = ", ".join(sorted(name for dummy, name in socket.if_nameindex()))
            where = "the host's namespace" if want.netns is None else f"namespace {want.netns}"
            return dataclasses.replace(
                have,
                missing=(
                    f"{want.field}.name: there is no interface {want.name!r} in {where}; there are:"
                    f" {there}."
                ),
            )
        attached = _attached(facts, pin, pins, programs)
        mode = attached.mode if attached else None
        here, past = None, ""
        if forward != chain_settings.FORWARDS[0] and want.hook in TRACKING_HOOKS:
            here = forwarding.look(forward, want.netns, facts, rules)
            past = "" if here.rules.rulesets == () else here.rules.shown
        port = (
            redirect.Port(
                want.label, facts.ifindex, facts.mac, redirect.transmits(facts, mode), past
            )
            if redirect.is_ethernet(facts)
            else None
        )
        peer = _peer(facts)
        return dataclasses.replace(
            have,
            ifindex=facts.ifindex,
            attached=attached,
            too_long=peer.mtu if peer and peer.mtu > attach_model.VETH_MAX_MTU else None,
            port=port,
            forwards=here,
            unfit=link_fitness.unfit(facts),
            longest=max(facts.merges, peer.leaves if peer else 0),
        )


def _peer(facts: netdev.LinkFacts) -> netdev.LinkFacts | None:
    """Return the other end of a veth: its MTU may keep this end from native XDP, and what its
    senders leave uncut comes here whole.
    """
    if facts.kind != "veth":
        return None
    try:
        return netdev.link_facts(facts.peer_ifindex, facts.peer_nsid)
    except bpf.BpfError:  # the peer is being moved or its namespace dies: the kernel will say
        return None


def _attached(
    facts: netdev.LinkFacts,
    pin: str,
    pins: t.Mapping[str, bpf.LinkInfo],
    programs: t.Mapping[int, str],
) -> Attached | None:
    """Return the program that sees the interface's frames, and who holds it; call it inside the
    interface's namespace.

    :param pins: see held().
    :param programs: see _generation_programs().
    """
    mode = next((mode for mode in attach_model.HOST_MODES if mode in facts.xdp), None)
    if mode is None:
        return None
    try:
        with bpf.closing(bpf.prog_get_fd_by_id(facts.xdp[mode])) as fd:
            info = bpf.prog_info(fd)
    except bpf.BpfError as exc:
        if exc.errno == errno.ENOENT:  # detached since
            return None
        raise
    program = Program(info.id, info.name, info.tag, programs.get(info.id))
    ours = sorted(
        (
            path
            for path, link in pins.items()
            if (link.ifindex, link.prog_id) == (facts.ifindex, info.id)
        ),
        key=lambda path: path != pin,
    )
    if ours and ours[0] == pin:
        return Attached(program, mode, True, (pins[pin].id,), pin)
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "probe")) as other:
        by_link = netdev.xdp_link_holds(facts.ifindex, mode, other)
    if not by_link:
        return Attached(program, mode, False)
    links = tuple(_links_of(facts.ifindex, info.id))
    # the interface was renamed or moved since we attached
    ours = [path for path in ours if (pins[path].id,) == links]
    return Attached(program, mode, True, links, ours[0] if ours else None)


def _links_of(ifindex: int, prog_id: int) -> t.Iterator[int]:
    for number in list(bpf.link_ids()):
        try:
            with bpf.closing(bpf.link_get_fd_by_id(number)) as fd:
                info = bpf.link_info(fd)
        except bpf.BpfError as exc:
            if exc.errno == errno.ENOENT:  # gone since
                continue
            raise
        if (info.ifindex, info.prog_id) == (ifindex, prog_id):
            yield number


def candidates(namespace: str | None) -> list[select.Candidate]:
    """Return the interfaces of a namespace that can be chosen by what they are; lo is never one.

    :raises ConntrackError: there is no such namespace.
    """
    if namespace is not None and not netns.exists(namespace):
        there = ", ".join(netns.names()[0]) or "none"
        raise ConntrackError(f"netns: there is no namespace {namespace!r}; there are: {there}.")
    routed = rtnetlink.default_route_indexes(namespace)
    with netns.entered(namespace):
        links = {facts.ifindex: facts for facts in netdev.links()}
        drivers = {index: ethtool.driver(facts.name).name for index, facts in links.items()}
    below = link_fitness.below(links.values())
    return [
        select.Candidate(
            facts.name,
            drivers[index] or facts.kind,
            index in routed,
            facts.altnames,
            link_fitness.unfit(facts),
            frozenset(links[one].name for one in below[index]),
        )
        for index, facts in links.items()
        if index != 1
    ]
