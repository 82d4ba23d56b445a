# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel will refuse of a step that attaches: so that a check run promises nothing that
the run cannot keep.

A run asks the kernel by attaching. A check run may not, for on a card even a program that passes
everything can reset the link; so it reads what the kernel's own checks read. Where that cannot be
read the answer is left open: a driver that is not of the kernel's tree may not say what it can.
"""

from __future__ import annotations

import os
import re
import socket

from ..core import plan
from ..core.errors import ConntrackError
from ..kernel import ethtool, netdev, netns, xdp_features

#: Since Linux 5.15 an interface takes no program while one on top of it has one (net/core/dev.c,
#: dev_xdp_attach).
_UPPERS_SINCE = (5, 15)
_LOOPBACK_IFINDEX = 1
#: Kinds (IFLA_INFO_KIND) without ndo_bpf, for kernels before 6.3, which do not say what a driver
#: can (drivers/net, net).
_KINDS = (
    "bridge dummy erspan geneve gre gretap hsr ifb ip6erspan ip6gre ip6gretap ip6tnl ipip ipvlan"
    " ipvtap macsec macvlan macvtap netkit nlmon sit team vcan vlan vrf vti vti6 vxcan vxlan"
    " wireguard"
)
NEVER_NATIVE = frozenset(_KINDS.split())
#: Their features say nothing while they have no member, and then they take a program
#: (drivers/net/bonding/bond_main.c).
_SILENT = ("bonding",)


def check(step: plan.Step) -> None:
    """Look for what would make the kernel refuse a step of xdp_attach.

    :raises ConntrackError: naming what is in the way, and the mend.
    """
    change = step.args
    if not change.modes or not change.have.ifindex:
        return
    want, index = change.want, change.have.ifindex
    with netns.entered(want.netns):
        above = upper_with_program(index)
        why = "" if change.modes != ("native",) else why_not_native(index)
    if above:
        raise ConntrackError(
            f"{want.field}: {want.label}: the kernel attaches nothing below an interface that has"
            f" an XDP program, and {above} on top of it has one. Detach that first, or name {above}"
            " alone."
        )
    if why:
        raise ConntrackError(f"{want.field}.mode: {want.label}: {why}")


def why_not_native(index: int) -> str:
    """Return why an interface of the current namespace runs no program in its driver, and the mend;
    "" where it may.
    """
    facts = netdev.link_facts(index)
    driver = ethtool.driver(facts.name).name
    able = None if driver in _SILENT else xdp_features.native(index)
    if able is None:
        able = index != _LOOPBACK_IFINDEX and facts.kind not in NEVER_NATIVE
    if able:
        return ""
    # the one thing that its features depend on (drivers/net/veth.c, veth_set_xdp_features)
    if facts.kind == "veth":
        return (
            "native XDP on a veth takes as many rx queues as the other end has tx queues, and there"
            " are fewer. Give it more (ethtool -L), or give mode: generic or auto."
        )
    return (
        f"the driver {driver or 'of this interface'} does not support XDP in native mode. Give"
        " mode: generic or auto."
    )


def upper_with_program(index: int) -> str:
    """Return the name of an interface of the current namespace that stands on top of another and
    has an XDP program; "" where none does.
    """
    if _release() < _UPPERS_SINCE:
        return ""
    for upper in netdev.uppers(index, [number for number, dummy in socket.if_nameindex()]):
        facts = netdev.link_facts(upper)
        if facts.xdp:
            return facts.name
    return ""


def _release() -> tuple[int, ...]:
    """Return the kernel's version and patch level."""
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
