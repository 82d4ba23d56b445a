# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned links: whether each holds its interface with the right program, and whether the chain
may forward there.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import typing as t

from ..chain import forwarding
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..kernel import bpf, bpf_constants, bpffs, netdev, netns
from ..kernel.bpffs import Paths
from . import pinned_objects
from .diagnosis import Fault


# ---------------------------------------------------------------- links
@dataclasses.dataclass(frozen=True)
class Link:
    """One of the pinned links.

    :ivar info: None for what is no XDP link.
    :ivar here: whether the interface that it is named for is the one that it holds.
    :ivar there: whether there is an interface of the name that it is named for.
    :ivar hook: which hook of the chain its program is, "" where it is none.
    """

    info: bpf.LinkInfo | None
    here: bool = False
    there: bool = False
    hook: str = ""


def links(paths: Paths) -> dict[str, bpf.LinkInfo | None]:
    found: dict[str, bpf.LinkInfo | None] = {}
    for name in pinned_objects.names(paths.link_dir):
        with pinned_objects.open_pin(os.path.join(paths.link_dir, name)) as (kind, fd):
            info = bpf.link_info(fd) if kind == "link" else None
            found[name] = (
                info if info is not None and info.type == bpf_constants.LINK_TYPE_XDP else None
            )
    return found


def look_links(paths: Paths) -> dict[str, Link]:
    """Read the pinned links, by the name of their pin."""
    return {
        key: Link(None) if info is None else _look_link(key, info)
        for key, info in links(paths).items()
    }


def _look_link(key: str, info: bpf.LinkInfo) -> Link:
    facts = link_facts(key)
    here = (
        facts is not None and facts.ifindex == info.ifindex and info.prog_id in facts.xdp.values()
    )
    running = pinned_objects.program(info.prog_id)
    hook = running.name if running is not None and running.name in chain_programs.HOOKS else ""
    return Link(info, here, facts is not None, hook)


def link_facts(key: str) -> netdev.LinkFacts | None:
    """Return what rtnetlink says of the interface that a pin is named for, None where there is
    none.
    """
    namespace, name = bpffs.interface_of(key)
    if namespace is not None and not netns.exists(namespace):
        return None
    with netns.entered(namespace):
        try:
            return netdev.link_facts(name)
        except bpf.BpfError as exc:
            if exc.errno != errno.ENODEV:
                raise
            return None


def interface(key: str) -> str:
    """Return a link's interface as people write it, ``name`` or ``name@netns``."""
    namespace, name = bpffs.interface_of(key)
    return name if namespace is None else f"{name}@{namespace}"


def judge_links(
    links: t.Mapping[str, Link], programs: t.Mapping[int, bpf.ProgInfo]
) -> tuple[Fault, ...]:
    """Return what is wrong with the pinned links.

    :param programs: the active generation's, by slot.
    """
    hooks = {
        programs[chain_programs.SLOTS[hook]].id
        for hook in chain_programs.HOOKS
        if chain_programs.SLOTS[hook] in programs
    }
    faults = []
    for key, link in links.items():
        name, info = interface(key), link.info
        if info is None:
            faults.append(
                Fault(
                    "link_foreign",
                    name,
                    f"what is pinned for {name} among the links is no XDP link",
                )
            )
        elif not info.ifindex:
            faults.append(_stale(name, link, info.id))
        else:
            if not link.here:
                where = (
                    f"it holds interface number {info.ifindex} under another name or in another"
                    " namespace"
                )
                faults.append(
                    Fault(
                        "link_moved",
                        name,
                        f"{name}: the interface was renamed or moved, and its link {info.id} with"
                        f" it: {where}",
                    )
                )
            if info.prog_id not in hooks:
                why = (
                    f"{name}: its link {info.id} runs program {info.prog_id}, which is none of the"
                    " active generation's"
                )
                # of a program that is no hook nobody can tell which one it stands for
                faults.append(
                    Fault(
                        "link_program",
                        name,
                        why,
                        "" if link.hook else f"ct attach {name} --program PROGRAM",
                    )
                )
    return tuple(faults)


def forwards(paths: Paths, number: int | None = None) -> str:
    """Return what a generation forwards, one of chain.FORWARDS; the first where there is none.

    :param number: the generation's; None for the active one.
    """
    with pinned_objects.open_pin(
        paths.map("meta") if number is None else os.path.join(paths.gen_dir(number), "map", "meta")
    ) as (kind, fd):
        number = pinned_objects.read_meta(fd)["forward"] if kind == "map" else 0
    return (
        chain_settings.FORWARDS[number]
        if number < len(chain_settings.FORWARDS)
        else chain_settings.FORWARDS[0]
    )


def look_forwarding(paths: Paths, links: t.Mapping[str, Link]) -> dict[str, forwarding.Seen]:
    """Return what there is to know of the interfaces through which the active generation forwards,
    by the names of their pins.
    """
    return forwarding.attached(
        forwards(paths),
        [
            key
            for key, link in links.items()
            if link.info is not None and link.here and tracks(link.info)
        ],
    )


def judge_forwarding(seen: t.Mapping[str, forwarding.Seen]) -> tuple[Fault, ...]:
    """Return where the chain forwards, and must not."""
    return tuple(
        Fault(
            "forward_unsafe",
            interface(key),
            f"{interface(key)}: {problem}. {mend}, or load the chain with forward: off",
        )
        for key, one in seen.items()
        for problem, mend in forwarding.problems(one)
    )


def _stale(name: str, link: Link, number: int) -> Fault:
    """Return the fault of a link that holds nothing; what repairs it depends on whether there is an
    interface to attach to.
    """
    why = (
        "the interface was made again, or the link was detached"
        if link.there
        else "the interface is gone"
    )
    repair = f"ct attach {name} --program {link.hook or 'PROGRAM'}" if link.there else ""
    return Fault(
        "link_stale", name, f"{name}: its link {number} holds no interface any more: {why}", repair
    )


def tracks(info: bpf.LinkInfo) -> bool:
    """Tell whether a link's program is to count frames."""
    there = pinned_objects.program(info.prog_id)
    return (
        there is None
        or there.name not in chain_programs.HOOKS
        or there.name in chain_programs.TRACKING_HOOKS
    )
