# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The map ``ports``: the interfaces between which the chain forwards packets past the stack.

A frame is forwarded only when it came to the address of a port, and leaves only through a port that
is known to take redirected frames: what is redirected to an interface that does not is lost without
a word. A port is an interface's number together with its address, since numbers repeat between
namespaces.
"""

from __future__ import annotations

import dataclasses
import struct
import typing as t

from ..core import plan
from ..kernel import bpf, ethtool, netdev, xdp_features

#: struct port_key of files/bpf/templates/forward.h.j2: ifindex, address.
KEY = struct.Struct("=I6s2x")
VALUE = struct.Struct("=I")
#: enum port_flag
TRANSMITS = 1
_DRIVERS = (
    "bnxt_en ena fsl_dpaa2_eth i40e ice igb ixgbe mlx5_core mvneta mvpp2 qede sfc tun virtio_net"
)
#: Drivers that send redirected frames (ndo_xdp_xmit) in Linux 5.12, the oldest that the chain
#: takes, by the names that ethtool -i has.
KNOWN_TO_TRANSMIT = tuple(_DRIVERS.split())
#: Bytes of an Ethernet address.
_ADDRESS_BYTES = 6


@dataclasses.dataclass(frozen=True)
class Port:
    """One interface.

    :ivar label: what an operator calls it.
    :ivar mac: its address.
    :ivar transmits: whether its driver takes redirected frames.
    :ivar past: the rulesets that are not asked about what is forwarded, for people.
    """

    label: str
    ifindex: int
    mac: bytes
    transmits: bool
    past: str = ""

    @property
    def key(self) -> bytes:
        return KEY.pack(self.ifindex, self.mac)

    @property
    def flags(self) -> int:
        return TRANSMITS if self.transmits else 0


def is_ethernet(facts: netdev.LinkFacts) -> bool:
    """Tell whether an interface's frames begin with an Ethernet header."""
    return len(facts.mac) == _ADDRESS_BYTES


def transmits(facts: netdev.LinkFacts, mode: str | None) -> bool:
    """Tell whether an interface takes redirected frames; call it inside the interface's namespace.

    The kernel is asked. One before Linux 6.3 has no answer; there a driver that is known to
    (KNOWN_TO_TRANSMIT) does, once it runs a program natively, and a veth hands them to its other
    end, which must have a native XDP program (drivers/net/veth.c, veth_xdp_xmit). Of what is not
    known, none does: what is redirected to it would be lost without a word.

    :param mode: how our program is attached to it.
    """
    told = xdp_features.takes_redirected(facts.ifindex)
    if told is not None:
        return told
    if facts.kind != "veth":
        return mode == "native" and ethtool.driver(facts.name).name in KNOWN_TO_TRANSMIT
    try:
        return "native" in netdev.link_facts(facts.peer_ifindex, facts.peer_nsid).xdp
    except bpf.BpfError:  # the peer is being moved or its namespace dies
        return False


def read(fd: int) -> dict[bytes, int]:
    """Return the flags of each port by its key."""
    return {
        bytes(keys[number * KEY.size : (number + 1) * KEY.size]): VALUE.unpack_from(
            values, number * VALUE.size
        )[0]
        for count, keys, values in bpf.map_batches(fd, KEY.size, VALUE.size)
        for number in range(count)
    }


def make_plan(
    have: t.Mapping[bytes, int], wanted: t.Sequence[Port], kept: t.Iterable[bytes]
) -> plan.Plan:
    """Return the steps from the ports that there are to those that are wanted. Pure.

    :param kept: keys of ports besides, which stay as they are; all others go.
    """
    steps = []
    for port in wanted:
        if have.get(port.key) != port.flags:
            before = shown(port.key, have[port.key]) if port.key in have else None
            reason = (
                "packets may be forwarded through it"
                if port.transmits
                else "packets that come in there may be forwarded, but it takes none"
            )
            reason += (
                f"; rulesets of the forward hook that they do not meet: {port.past}"
                if port.past
                else ""
            )
            steps.append(
                plan.Step(
                    "change" if before else "create",
                    "port",
                    port.label,
                    reason,
                    before,
                    shown(port.key, port.flags),
                    (port.key, port.flags),
                )
            )
    stale = have.keys() - {port.key for port in wanted} - set(kept)
    for key in sorted(stale):
        ifindex, mac = KEY.unpack(key)
        steps.append(
            plan.Step(
                "delete",
                "port",
                f"{ifindex} {mac.hex(':')}",
                "the chain is not attached there",
                shown(key, have[key]),
                None,
                (key, None),
            )
        )
    return steps


def shown(key: bytes, flags: int) -> str:
    """Return a port for people."""
    ifindex, mac = KEY.unpack(key)
    return (
        f"ifindex {ifindex}, address {mac.hex(':')},"
        f" {'sends and receives' if flags & TRANSMITS else 'receives'}"
    )


def do(fd: int, step: plan.Step) -> plan.Undo:
    """Apply one step. :return: what undoes it."""
    key, flags = step.args
    before = bpf.map_lookup(fd, key, VALUE.size)
    _set(fd, key, None if flags is None else VALUE.pack(flags))
    return lambda: _set(fd, key, before)


def _set(fd: int, key: bytes, value: bytes | None) -> None:
    if value is None:
        bpf.map_delete(fd, key)
    else:
        bpf.map_update(fd, key, value)
