# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rtnetlink: its messages and attributes (include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h),
and where the default routes go.
"""

from __future__ import annotations

import socket
import struct
import typing as t

from . import netlink, netns

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
GETNSID = 90
IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
#: family, dst_len, src_len, tos, table, protocol, scope, type, flags
RTMSG = struct.Struct("=BBBBBBBBI")
IFF_UP, IFF_NOARP, IFF_MULTICAST = 0x1, 0x80, 0x1000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_STATS64, IFLA_GROUP = 16, 18, 20, 23, 27
IFLA_LINK_NETNSID, IFLA_XDP, IFLA_TARGET_NETNSID = 37, 43, 46
IFLA_PROP_LIST, IFLA_ALT_IFNAME = 52, 53
#: IFLA_GSO_MAX_SIZE and IFLA_GSO_IPV4_MAX_SIZE; IFLA_GRO_MAX_SIZE and IFLA_GRO_IPV4_MAX_SIZE.
IFLA_GSO_SIZES, IFLA_GRO_SIZES = (41, 63), (58, 64)
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
OPERSTATE_UP = b"\x06"
#: The attribute IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: answers half as long.
WITHOUT_STATS = struct.pack("=HHI", 8, 29, 8)
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_PROTO = 1, 2, 4, 8, 11
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_PERMANENT = 0x01, 0x02, 0x08, 0x80
IFAPROT_KERNEL_LL = 3
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, weight, index
TABLE_MAIN, SCOPE_UNIVERSE, SCOPE_LINK, UNICAST = 254, 0, 253, 1
RTM_F_CLONED = 0x200


def kind_of(link: t.Mapping[int, bytes]) -> str:
    """Return the kind of a link by its attributes; "" for hardware and loopback."""
    info = netlink.attributes(link.get(IFLA_LINKINFO, b""))
    return netlink.text_of(info, IFLA_INFO_KIND)


def default_route_indexes(name: str | None) -> set[int]:
    """Return the ifindexes out of which the default routes of a namespace go: for IPv4 and IPv6
    each that with the lowest metric, all its next hops.

    :raises ConntrackError: there is no such namespace.
    """
    with netns.entered(name):
        sock = netlink.Socket(strict=True)
    with sock:
        routes = sock.dump(GETROUTE, RTMSG.pack(0, 0, 0, 0, TABLE_MAIN, 0, 0, 0, 0))
    best: dict[int, tuple[int, set[int]]] = {}
    for data, start, end in routes:
        family, prefix, dummy, dummy, table, dummy, dummy, kind, flags = RTMSG.unpack_from(
            data, start
        )
        if (
            family not in (socket.AF_INET, socket.AF_INET6)
            or prefix
            or table != TABLE_MAIN
            or kind != UNICAST
            or flags & RTM_F_CLONED
        ):
            continue
        found = netlink.attributes(data, start + RTMSG.size, end)
        metric, indexes = netlink.u32(found, RTA_PRIORITY), _next_hops(found)
        if family not in best or metric < best[family][0]:
            best[family] = (metric, set())
        if metric == best[family][0]:  # of IPv6, each next hop may be a route of its own
            best[family][1].update(indexes)
    return {index for dummy, indexes in best.values() for index in indexes}


def _next_hops(attributes: t.Mapping[int, bytes]) -> t.Iterator[int]:
    """Yield the ifindexes that a route goes out of."""
    if RTA_OIF in attributes:
        yield netlink.u32(attributes, RTA_OIF)
    hops, at = attributes.get(_RTA_MULTIPATH, b""), 0
    while at + _RTNEXTHOP.size <= len(hops):
        length, dummy, dummy, index = _RTNEXTHOP.unpack_from(hops, at)
        yield index
        at += max(length + 3 & ~3, _RTNEXTHOP.size)
