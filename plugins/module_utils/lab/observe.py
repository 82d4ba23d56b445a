# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is there of a lab: links, addresses and routes, as rtnetlink tells them."""

from __future__ import annotations

import dataclasses
import socket
import typing as t

from ..kernel import netlink, netns, rtnetlink
from . import model as lab_model
from .channel import Channel
from .model import HaveAddress, HaveLink, HaveRoute


def parse_link(netns_name: str | None, data: bytes, start: int, end: int) -> HaveLink:
    dummy, dummy, index, flags, dummy = rtnetlink.IFINFO.unpack_from(data, start)
    found = netlink.attributes(data, start + rtnetlink.IFINFO.size, end)
    return HaveLink(
        key=(netns_name, netlink.text_of(found, rtnetlink.IFLA_IFNAME)),
        ifindex=index,
        kind=rtnetlink.kind_of(found) or None,
        alias=netlink.text_of(found, rtnetlink.IFLA_IFALIAS),
        group=netlink.u32(found, rtnetlink.IFLA_GROUP),
        mtu=netlink.u32(found, rtnetlink.IFLA_MTU),
        mac=found.get(rtnetlink.IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & rtnetlink.IFF_UP),
        running=found.get(rtnetlink.IFLA_OPERSTATE) == rtnetlink.OPERSTATE_UP,
        peer_index=netlink.u32(found, rtnetlink.IFLA_LINK, index),
        arp=not flags & rtnetlink.IFF_NOARP,
        multicast=bool(flags & rtnetlink.IFF_MULTICAST),
    )


def parse_address(data: bytes, start: int, end: int) -> tuple[int, HaveAddress]:
    family, prefix, flags, dummy, index = rtnetlink.IFADDR.unpack_from(data, start)
    found = netlink.attributes(data, start + rtnetlink.IFADDR.size, end)
    packed = found.get(rtnetlink.IFA_LOCAL) or found.get(rtnetlink.IFA_ADDRESS) or b""
    flags = netlink.u32(found, rtnetlink.IFA_FLAGS, flags)
    # Kernels before 5.18 do not say who made an address: their link-local ones are taken for the
    # kernel's.
    made_by = found.get(rtnetlink.IFA_PROTO, b"\3" if packed[:1] == b"\xfe" else b"\0")[0]
    return index, HaveAddress(
        (packed, prefix),
        broadcast=found.get(rtnetlink.IFA_BROADCAST),
        permanent=bool(flags & rtnetlink.IFA_F_PERMANENT),
        secondary=family == socket.AF_INET and bool(flags & rtnetlink.IFA_F_SECONDARY),
        automatic=family == socket.AF_INET6 and made_by == rtnetlink.IFAPROT_KERNEL_LL,
        failed=bool(flags & rtnetlink.IFA_F_DADFAILED) and family == socket.AF_INET6,
    )


def parse_route(
    netns_name: str | None, names: t.Mapping[int, str], data: bytes, start: int, end: int
) -> HaveRoute | None:
    family, prefix, dummy, dummy, table, protocol, dummy, kind, flags = rtnetlink.RTMSG.unpack_from(
        data, start
    )
    if (
        family not in (socket.AF_INET, socket.AF_INET6)
        or table != rtnetlink.TABLE_MAIN
        or kind != rtnetlink.UNICAST
        or flags & rtnetlink.RTM_F_CLONED
    ):
        return None
    found = netlink.attributes(data, start + rtnetlink.RTMSG.size, end)
    packed = found.get(rtnetlink.RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    dev = names.get(netlink.u32(found, rtnetlink.RTA_OIF)) if rtnetlink.RTA_OIF in found else None
    return HaveRoute(
        netns_name,
        (packed, prefix),
        found.get(rtnetlink.RTA_GATEWAY),
        dev,
        netlink.u32(found, rtnetlink.RTA_PRIORITY),
        protocol,
    )


def interfaces(name: str | None) -> list[HaveLink]:
    """Return the interfaces of a namespace with their addresses, lo included; None is where the
    thread is. It needs no pyroute2.

    :raises ConntrackError: there is no such namespace.
    """
    with netns.entered(name):
        channel = Channel()
    try:
        links = [
            parse_link(name, *message)
            for message in channel.dump(
                rtnetlink.GETLINK, rtnetlink.IFINFO.pack(0, 0, 0, 0, 0) + rtnetlink.WITHOUT_STATS
            )
        ]
        addresses: dict[int, list[HaveAddress]] = {}
        for message in channel.dump(rtnetlink.GETADDR, rtnetlink.IFADDR.pack(0, 0, 0, 0, 0)):
            index, address = parse_address(*message)
            addresses.setdefault(index, []).append(address)
    finally:
        channel.close()
    return [
        dataclasses.replace(link, addresses=tuple(addresses.get(link.ifindex, ())))
        for link in links
    ]


def unicast_addresses(name: str | None) -> list[str]:
    """Return the addresses under which others reach a namespace: those of its interfaces but lo,
    without link-local ones.
    """
    found = [
        address
        for link in interfaces(name)
        if link.ifindex != 1 and link.up
        for address in link.addresses
    ]
    return [
        lab_model.show_ip(one.address[0])
        for one in found
        if not lab_model.is_link_local(one.address[0]) and not one.failed
    ]
