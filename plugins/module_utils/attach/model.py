# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wanted of an interface, what is there, and what is to be changed."""

from __future__ import annotations

import dataclasses
import errno
import os
import typing as t

from ..chain import forwarding
from ..chain.programs import HOOKS
from ..core import safe_path
from ..core.errors import ConntrackError, bad_value
from ..kernel import bpf, bpffs, netdev, netns
from . import redirect, select

MODES = ("auto", "native", "generic")
#: Bytes of the longest packet without BIG TCP, as the kernel has it (include/linux/netdevice.h,
#: GSO_LEGACY_MAX_SIZE).
IP_MOST = 65536
#: The modes in which a program runs on the host's CPUs; an interface has at most one such program.
HOST_MODES = ("native", "generic")
#: What veth's native XDP needs of a page beside the frame: headroom, the Ethernet header, struct
#: skb_shared_info (drivers/net/veth.c).
VETH_PAGE_OVERHEAD = 590
VETH_MAX_MTU = os.sysconf("SC_PAGE_SIZE") - VETH_PAGE_OVERHEAD


# ---------------------------------------------------------------- what is wanted
@dataclasses.dataclass(frozen=True)
class Want:
    """One interface as the user asked for it.

    :ivar field: where it stands in the input, for errors.
    :ivar hook: ``ingress`` or ``egress``; "" when the interface shall be free.
    :ivar mode: one of MODES.
    :ivar chosen_by: what it was chosen by, see interface_select.label(); "" where it was named.
    """

    field: str
    name: str
    netns: str | None
    hook: str
    mode: str
    chosen_by: str = ""

    @property
    def label(self) -> str:
        """What an operator calls the interface."""
        return self.name if self.netns is None else f"{self.name}@{self.netns}"


def parse(
    state: str,
    interfaces: t.Sequence[t.Mapping[str, t.Any]],
    mode: str,
    longest: int = netdev.IFNAMSIZ - 1,
) -> list[Want]:
    """Check the module's ``interfaces`` and return those that are named.

    :param interfaces: as the module has them, or as interface_select.resolve() returns them.
    :param longest: the bytes that a name may have; alternative names, of which only looked() knows,
        have up to bpf.ALTIFNAMSIZ - 1.
    :raises ConntrackError: for the first bad value.
    """
    wants: list[Want] = []
    for number, item in enumerate(interfaces):
        field = item.get("field") or f"interfaces[{number}]"
        name, namespace = item.get("name"), item.get("netns")
        select.check(field, item)
        if name is not None:
            _check_name(f"{field}.name", name, longest, "an interface's name")
        if namespace is not None:
            _check_name(f"{field}.netns", namespace, 255, "a namespace's name")
        if (
            name is not None
            and len(os.fsencode(bpffs.interface_key(namespace, name))) > safe_path.NAME_BYTES
        ):
            raise bad_value(
                f"{field}.netns",
                namespace,
                f"it is too long: the name of the pin is made of it and of {name}",
            )
        hook = item.get("program") or ""
        if state == "present" and not hook:
            raise ConntrackError(f"{field}.program: is missing: give {' or '.join(HOOKS)}.")
        if name is None:  # chosen when it is known what there is
            continue
        want = Want(
            field,
            name,
            namespace,
            hook if state == "present" else "",
            item.get("mode") or mode,
            item.get("chosen_by") or "",
        )
        for other in wants:
            if (other.netns, other.name) == (namespace, name):
                which = f"it is {want.label}, which" if "given" in item else "the interface"
                raise bad_value(
                    f"{field}.name",
                    item.get("given", name),
                    f"{which} is already in {other.field}; name each once",
                )
        wants.append(want)
    return wants


def check(state: str, interfaces: t.Sequence[t.Mapping[str, t.Any]], mode: str) -> None:
    """Check the module's ``interfaces`` before anything is looked at, so a name may still be an
    alternative one.

    :raises ConntrackError: for the first bad value.
    """
    parse(state, interfaces, mode, netdev.ALTIFNAMSIZ - 1)


def _check_name(field: str, value: str, limit: int, what: str) -> None:
    """Refuse a name that the kernel refuses (net/core/dev.c, dev_valid_name; a namespace's name is
    a file's).
    """
    signs = (
        value
        and value not in (".", "..")
        and value.isprintable()
        and not any(c == "/" or c.isspace() for c in value)
    )
    if not signs or len(value.encode()) > limit:
        raise bad_value(
            field,
            value,
            f"{what} has 1 to {limit} bytes, no '/', no white space and nothing that cannot be"
            " printed",
        )
    if limit < 255 and ":" in value:
        raise bad_value(field, value, f"{what} has no ':'")


def looked(interfaces: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Return entries in which every interface and namespace that exists has the one name that the
    kernel lists it by.

    An interface may have alternative names, and a namespace several names: all that comes after
    compares names, so this comes first. An entry whose name was another one has it in ``given``.
    """
    found = []
    namespaces = netns.canonical(item.get("netns") for item in interfaces)
    for item in interfaces:
        namespace, name = namespaces[item.get("netns")], item.get("name")
        real = _real_name(namespace, name) if name is not None else None
        found.append({**item, "netns": namespace})
        if (real, namespace) != (name, item.get("netns")):
            found[-1].update(
                name=real, given=name if item.get("netns") is None else f"{name}@{item['netns']}"
            )
        if real != name:
            found[-1]["chosen_by"] = f"alternative name {name}"
    return found


def _real_name(namespace: str | None, name: str) -> str:
    """Return the name that the kernel lists an interface by; ``name`` where there is none."""
    try:
        with netns.entered(namespace):
            return netdev.link_facts(name).name
    except ConntrackError as exc:
        if isinstance(exc, bpf.BpfError) and exc.errno != errno.ENODEV:
            raise
        return name  # which observe() says, and what there is


# ---------------------------------------------------------------- what is there
@dataclasses.dataclass(frozen=True)
class Program:
    """One loaded XDP program; ``hook`` tells what it is for us, None when it is foreign."""

    id: int
    name: str
    tag: str
    hook: str | None = None


@dataclasses.dataclass(frozen=True)
class Attached:
    """The program that an interface has.

    :ivar mode: ``native`` or ``generic``.
    :ivar link_ids: the bpf_links that may hold it (several only when ids coincide between
        namespaces); empty when it came through netlink.
    :ivar by_link: whether a bpf_link holds it.
    :ivar pin: the pin of ours that holds it, None when it is none of ours.
    """

    program: Program
    mode: str
    by_link: bool
    link_ids: tuple[int, ...] = ()
    pin: str | None = None

    def shown(self) -> dict[str, t.Any]:
        """Return the form for plans and diffs."""
        link_id = self.link_ids[0] if len(self.link_ids) == 1 else None
        name = self.program.hook or self.program.name
        return {
            "program": name,
            "program_id": self.program.id,
            "tag": self.program.tag,
            "mode": self.mode,
            "link_id": link_id,
        }


@dataclasses.dataclass(frozen=True)
class Have:
    """One interface as it is.

    :ivar pin: path of the pin that our bpf_link has or would have.
    :ivar pinned: what the pin holds, None when there is none.
    :ivar ifindex: 0 when there is no such interface.
    :ivar missing: why there is no such interface, "" when there is one.
    :ivar too_long: the MTU that keeps this veth from native XDP, None when nothing does.
    :ivar port: what the chain has to know to forward through it; None where its frames are not
        Ethernet.
    :ivar unfit: why nothing could be tracked on it, see link_fitness.unfit().
    :ivar counted: why packets would be counted twice if the chain tracked on it.
    :ivar longest: bytes of the longest packet that generic mode shows here; 0 where it is not
        known.
    :ivar forwards: what the chain would pass by here; None where it forwards nothing, or is not to
        be attached here.
    """

    pin: str
    pinned: bpf.LinkInfo | None = None
    ifindex: int = 0
    missing: str = ""
    attached: Attached | None = None
    too_long: int | None = None
    port: redirect.Port | None = None
    unfit: str = ""
    counted: str = ""
    longest: int = 0
    forwards: forwarding.Seen | None = None

    @property
    def big(self) -> bool:
        """Whether generic mode shows packets here that no IPv4 header can tell the length of (BIG
        TCP).
        """
        return self.longest > IP_MOST


# ---------------------------------------------------------------- plan
@dataclasses.dataclass(frozen=True)
class Change:
    """What one step does to one interface: take away, then attach or replace.

    :ivar drop_pins: detach and unpin these links of ours first.
    :ivar moved_from: the pin of our link that holds this interface under another name: it gets this
        interface's, and the link goes on without a gap.
    :ivar drop: detach this program first, which no pin of ours holds.
    :ivar update: this program is in our pinned link: put the other into the same link.
    :ivar modes: the modes to try, in order; empty when nothing is attached.
    :ivar why_generic: why auto does not even try native.
    """

    want: Want
    have: Have
    drop_pins: tuple[str, ...] = ()
    moved_from: str = ""
    drop: Attached | None = None
    update: Attached | None = None
    modes: tuple[str, ...] = ()
    why_generic: str = ""
