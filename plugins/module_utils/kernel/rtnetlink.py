# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rtnetlink codec: requests, dumps and their attributes (include/uapi/linux/rtnetlink.h)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import typing as t

from . import netns

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP_INTERRUPTED, REPLACE, _DUMP, EXCL, CREATE = (
    0x1,
    0x4,
    0x10,
    0x100,
    0x300,
    0x200,
    0x400,
)
_ACK_TLVS = 0x200
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
# family, dst_len, src_len, tos, table, protocol, scope, type, flags
RTMSG = struct.Struct("=BBBBBBBBI")
_ATTR = struct.Struct("=HH")
_U32 = struct.Struct("=I")
IFF_UP, IFF_NOARP, IFF_MULTICAST = 0x1, 0x80, 0x1000
(
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_MTU,
    IFLA_LINK,
    IFLA_OPERSTATE,
    IFLA_LINKINFO,
    IFLA_IFALIAS,
    IFLA_GROUP,
) = 1, 3, 4, 5, 16, 18, 20, 27
OPERSTATE_UP = b"\x06"
# the attribute IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: answers half as long
WITHOUT_STATS = struct.pack("=HHI", 8, 29, 8)
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_PROTO = 1, 2, 4, 8, 11
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_PERMANENT = 0x01, 0x02, 0x08, 0x80
IFAPROT_KERNEL_LL = 3
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, weight, index
TABLE_MAIN, SCOPE_UNIVERSE, SCOPE_LINK, UNICAST = 254, 0, 253, 1
RTM_F_CLONED = 0x200


class NetlinkError(OSError):
    """The kernel refused a request; the text holds its own words where it gave some."""


def attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    """Return a message's attributes by number."""
    found: dict[int, bytes] = {}
    while offset + 4 <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def u32(attributes: t.Mapping[int, bytes], kind: int, default: int = 0) -> int:
    raw = attributes.get(kind)
    return default if raw is None else int(_U32.unpack_from(raw)[0])


def text_of(attributes: t.Mapping[int, bytes], kind: int) -> str:
    return attributes.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace")


class Channel:
    """An rtnetlink socket in the calling thread's namespace, and a descriptor of that namespace."""

    def __init__(self) -> None:
        self.netns_fd = netns.current_fd()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            # kernels before 4.20 lack some: their answers are only wordier or poorer
            with contextlib.suppress(OSError):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 0

    def close(self) -> None:
        """Let go of the namespace."""
        self._socket.close()
        os.close(self.netns_fd)

    def _send(self, message: t.Any, kind: int, flags: int) -> None:
        self._sequence += 1
        header = message["header"]
        header["type"], header["flags"], header["sequence_number"] = (
            kind,
            flags | _REQUEST,
            self._sequence,
        )
        message.encode()
        self._socket.send(message.data)

    def _answers(self) -> t.Iterator[tuple[int, int, bytes, int, int]]:
        """Yield (type, flags, buffer, start of the payload, end) of each message that answers the
        last request.
        """
        while True:
            data = self._socket.recv(1 << 16)
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, dummy = _HEADER.unpack_from(data, offset)
                if sequence == self._sequence:
                    yield kind, flags, data, offset + _HEADER.size, offset + length
                offset += (length + 3) & ~3

    def request(self, message: t.Any, kind: int, flags: int = 0) -> None:
        """Send one change and wait for the kernel's answer.

        :raises NetlinkError: the kernel refused it.
        """
        self._send(message, kind, flags | _ACK)
        for answer, answer_flags, data, start, end in self._answers():
            if answer == _NLMSG_ERROR:
                check_answer(answer_flags, data, start, end)
                return

    def get_link(self, index: int = 0, name: str = "") -> tuple[bytes, int, int] | None:
        """Return one link's message as (buffer, start, end), or None when there is no such link."""
        wanted = attribute(IFLA_IFNAME, name.encode() + b"\0") if name else b""
        self._send_raw(GETLINK, 0, IFINFO.pack(0, 0, index, 0, 0) + WITHOUT_STATS + wanted)
        for kind, flags, data, start, end in self._answers():
            if kind == _NLMSG_ERROR:
                try:
                    check_answer(flags, data, start, end)
                except NetlinkError as exc:
                    if exc.errno == errno.ENODEV:
                        return None
                    raise
            return data, start, end
        return None

    def _send_raw(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        self._socket.send(
            _HEADER.pack(_HEADER.size + len(payload), kind, flags | _REQUEST, self._sequence, 0)
            + payload
        )

    def dump(self, kind: int, payload: bytes) -> list[tuple[bytes, int, int]]:
        """Return all messages of a dump as (buffer, start of the payload, end); begun anew when the
        kernel's tables changed meanwhile.

        :raises NetlinkError: the kernel refused it.
        """
        for attempt in range(5):
            self._send_raw(kind, _DUMP, payload)
            found: list[tuple[bytes, int, int]] = []
            interrupted = False
            for answer, flags, data, start, end in self._answers():
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if answer == _NLMSG_DONE:
                    break
                if answer == _NLMSG_ERROR:
                    check_answer(flags, data, start, end)
                found.append((data, start, end))
            if not interrupted or attempt == 4:
                return found
        return []


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTR.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def check_answer(flags: int, data: bytes, start: int, end: int) -> None:
    """Raise when an error message is not the acknowledgement that it is otherwise."""
    (code,) = struct.unpack_from("=i", data, start)
    if code == 0:
        return
    words = ""
    if flags & _ACK_TLVS:
        words = text_of(attributes(data, start + 4 + _HEADER.size, end), 1)
    raise NetlinkError(-code, f"{os.strerror(-code)}{f' ({words})' if words else ''}")


def default_route_indexes(name: str | None) -> set[int]:
    """Return the ifindexes out of which the default routes of a namespace go: for IPv4 and IPv6
    each that with the lowest metric, all its next hops.

    :raises ConntrackError: there is no such namespace.
    """
    with netns.entered(name):
        channel = Channel()
    try:
        routes = channel.dump(GETROUTE, RTMSG.pack(0, 0, 0, 0, TABLE_MAIN, 0, 0, 0, 0))
    finally:
        channel.close()
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
        found = attributes(data, start + RTMSG.size, end)
        metric, indexes = u32(found, RTA_PRIORITY), _next_hops(found)
        if family not in best or metric < best[family][0]:
            best[family] = (metric, set())
        if metric == best[family][0]:  # of IPv6, each next hop may be a route of its own
            best[family][1].update(indexes)
    return {index for dummy, indexes in best.values() for index in indexes}


def _next_hops(attributes: t.Mapping[int, bytes]) -> t.Iterator[int]:
    """Yield the ifindexes that a route goes out of."""
    if RTA_OIF in attributes:
        yield u32(attributes, RTA_OIF)
    hops, at = attributes.get(_RTA_MULTIPATH, b""), 0
    while at + _RTNEXTHOP.size <= len(hops):
        length, dummy, dummy, index = _RTNEXTHOP.unpack_from(hops, at)
        yield index
        at += max(length + 3 & ~3, _RTNEXTHOP.size)
