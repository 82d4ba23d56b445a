# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab as hosts of an inventory: from its description, or from what is there. Pure: nothing here
touches the kernel.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..kernel import bpffs
from . import model as lab_model
from . import sysctls as lab_sysctls
from . import topology
from .model import Have, Topology

#: The value of FORWARDING that lets a namespace forward.
_FORWARDS = "1"
#: Where the command ct of a namespace's host is installed; the files of one machine are those of
#: all its namespaces.
PREFIX = "/usr/local/lib/ebpf_conntrack-"


@dataclasses.dataclass(frozen=True)
class Node:
    """A host of the lab.

    :ivar netns: its namespace; None for the machine itself, where links of the lab end.
    :ivar forwards: it is a router.
    :ivar interfaces: each with ``name``, ``addresses``, ``mac``, ``mtu``, ``peer`` and
        ``peer_netns``, without ``lo``.
    """

    netns: str | None
    forwards: bool
    interfaces: tuple[dict[str, t.Any], ...]

    @property
    def addresses(self) -> list[str]:
        """Return the addresses under which others reach it, without prefix lengths and without
        link-local ones.
        """
        texts = [text.partition("/")[0] for one in self.interfaces for text in one["addresses"]]
        return [text for text in texts if not text.lower().startswith("fe80:")]

    def variables(self) -> dict[str, t.Any]:
        """Return the host's variables."""
        role = "router" if self.forwards else "endpoint"
        found: dict[str, t.Any] = {
            "netns_role": role,
            "netns_interfaces": list(self.interfaces),
            "netns_addresses": self.addresses,
        }
        if self.addresses:
            found["ansible_host"] = self.addresses[0]
        if self.netns is not None:
            found["ansible_netns"] = self.netns
            # Namespaces of one machine share its pins and files: each chain gets a place of its
            # own. What is kept of it lies apart by the pin root.
            found["xdp_ct_pin_root"] = bpffs.own_root(self.netns)
            found["xdp_ct_prefix"] = PREFIX + self.netns
        return found


def _interface(
    name: str,
    addresses: t.Iterable[lab_model.Address],
    mac: str,
    mtu: int,
    peer: str | None,
    peer_netns: str | None,
) -> dict[str, t.Any]:
    return {
        "name": name,
        "addresses": [lab_model.show_address(one) for one in addresses],
        "mac": mac,
        "mtu": mtu,
        "peer": peer,
        "peer_netns": peer_netns,
    }


def of_topology(want: Topology) -> list[Node]:
    """Return the hosts that a description promises."""
    forwards = {
        sysctl.netns
        for sysctl in want.sysctls
        if sysctl.path in lab_sysctls.FORWARDING and sysctl.value == _FORWARDS
    }
    interfaces: dict[str | None, list[dict[str, t.Any]]] = {name: [] for name in want.namespaces}
    for link in want.links:
        for end, other in (link, link[::-1]):
            record = _interface(end.name, end.addresses, end.mac, end.mtu, other.name, other.netns)
            interfaces.setdefault(end.netns, []).append(record)
    return [Node(name, name in forwards, tuple(found)) for name, found in interfaces.items()]


def of_lab(lab: str, have: Have) -> list[Node]:
    """Return the hosts of a lab that is there. Its routers are those that its record says it lets
    forward: a new namespace may take that from the machine.
    """
    mark = topology.absent(lab).mark
    forwards = {
        netns
        for (netns, path), recorded in have.record.items()
        if path in lab_sysctls.FORWARDING
        and recorded.wanted == _FORWARDS
        and recorded.inode == (have.host_inode if netns is None else have.namespaces.get(netns))
    }
    interfaces: dict[str | None, list[dict[str, t.Any]]] = {
        name: [] for name in sorted(have.namespaces)
    }
    for key, link in sorted(have.links.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        ours = lab_model.is_ours(mark, link)
        if key[0] is None and not ours:
            continue
        peer, dummy, netns = link.alias.partition(" ")[2].partition("@") if ours else ("", "", "")
        record = _interface(
            key[1],
            (one.address for one in link.addresses if not one.failed and not one.automatic),
            link.mac,
            link.mtu,
            peer or None,
            netns or None,
        )
        interfaces.setdefault(key[0], []).append(record)
    return [Node(name, name in forwards, tuple(found)) for name, found in interfaces.items()]
