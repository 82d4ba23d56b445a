# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an interface's driver is, whether it runs XDP programs itself, and what stands on top of it:
asked of the kernel, and nothing is attached for it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
import typing as t

# ---------------------------------------------------------------- the driver (include/uapi/linux/et
_SIOCETHTOOL, _ETHTOOL_GDRVINFO = 0x8946, 3
_DRVINFO = struct.Struct("=I32s32s32s32s32s12sIIIII")


class Driver(t.NamedTuple):
    """An interface's driver.

    :ivar name: as C(ethtool -i) shows it, "" where it has none.
    :ivar bus: where the card is plugged in, "" for what is no card.
    """

    name: str
    bus: str

    @property
    def counts_late(self) -> bool:
        """Whether its counts of frames may lag behind: many cards are asked for theirs once a
        second.
        """
        return bool(self.bus) and self.name != "virtio_net"


def driver(interface: str) -> Driver:
    """Return the driver of an interface of the current namespace."""
    info = ctypes.create_string_buffer(
        _DRVINFO.pack(_ETHTOOL_GDRVINFO, *(b"",) * 6, *(0,) * 5), _DRVINFO.size
    )
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(info))  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError:  # loopback has no such thing; a missing interface is told elsewhere
            return Driver("", "")
    fields = _DRVINFO.unpack(info.raw)
    name, bus = (fields[at].split(b"\0", 1)[0].decode(errors="replace") for at in (1, 4))
    return Driver(name, bus)


# ---------------------------------------------------------------- what XDP the driver can do (Docum
_NETLINK_GENERIC, _CTRL, _CTRL_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 16, 16, 3, 1, 2
_DEV_GET, _DEV_IFINDEX, _DEV_XDP_FEATURES = 1, 1, 3
_NLMSG_ERROR, _NLM_F_REQUEST = 2, 1
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
#: enum netdev_xdp_act: runs programs itself; takes frames that other interfaces' programs redirect
#: to it (NETDEV_XDP_ACT_NDO_XMIT).
_BASIC, _NDO_XMIT = 1, 4


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(payload: bytes) -> dict[int, bytes]:
    """Return the attributes of a netlink message by their number."""
    found, at = {}, 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = payload[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def attribute_list(payload: bytes, wanted: int) -> list[bytes]:
    """Return the payloads of all attributes of one number, which a list repeats."""
    found, at = [], 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            break
        if kind & 0x3FFF == wanted:
            found.append(payload[at + 4 : at + length])
        at += (length + 3) & ~3
    return found


def _ask(sock: socket.socket, family: int, command: int, payload: bytes) -> dict[int, bytes]:
    """:raises OSError: with the kernel's number where it refuses."""
    body = _GENERIC.pack(command, 1, 0) + payload
    sock.send(_HEADER.pack(_HEADER.size + len(body), family, _NLM_F_REQUEST, 1, 0) + body)
    answer = sock.recv(1 << 16)
    length, kind, dummy, dummy, dummy = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-number, "netlink refuses it")
    return attributes(answer[_HEADER.size + _GENERIC.size : length])


def _features(ifindex: int) -> int | None:
    """Return what of enum netdev_xdp_act an interface of the current namespace can do; None where
    this kernel does not tell.
    """
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
    ) as sock:
        try:
            family = _ask(sock, _CTRL, _CTRL_GETFAMILY, _attribute(_CTRL_FAMILY_NAME, b"netdev\0"))[
                _CTRL_FAMILY_ID
            ]
            found = _ask(
                sock,
                struct.unpack("=H", family)[0],
                _DEV_GET,
                _attribute(_DEV_IFINDEX, struct.pack("=I", ifindex)),
            )
        except OSError as exc:
            # older kernels have no such family
            if exc.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise
    features = found.get(_DEV_XDP_FEATURES)
    return (
        None
        if features is None
        else int.from_bytes(features[:8], "little" if struct.pack("=H", 1)[0] else "big")
    )


def native(ifindex: int) -> bool | None:
    """Return whether the driver of an interface of the current namespace runs XDP programs itself;
    None where this kernel does not tell.
    """
    features = _features(ifindex)
    return None if features is None else bool(features & _BASIC)


def takes_redirected(ifindex: int) -> bool | None:
    """Return whether an interface of the current namespace takes redirected frames as it is now;
    None where this kernel does not tell.

    Some drivers do so only as long as they have a program, and a veth as long as its other end has
    one, or collects frames itself (GRO).
    """
    features = _features(ifindex)
    return None if features is None else bool(features & _NDO_XMIT)


# ---------------------------------------------------------------- what stands on an interface (rtne
_NETLINK_ROUTE, _RTM_GETLINK = 0, 18
_IFINFO = struct.Struct("=BBHiII")
_IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_LINK_NETNSID, _IFLA_INFO_KIND = 5, 10, 18, 37, 1


def uppers(ifindex: int, others: t.Iterable[int]) -> list[int]:
    """Return which of the interfaces of the current namespace stand on top of one: its bridge, bond
    or VRF, and its VLANs, macvlans and the like.
    """
    found = []
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE
    ) as sock:
        own = _link(sock, ifindex)
        for other in others:
            link = _link(sock, other) if other != ifindex else {}
            kind = attributes(link.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"").rstrip(b"\0")
            # of a veth it is the other end, and with a number of a namespace it counts there
            stands = (
                kind != b"veth"
                and _IFLA_LINK_NETNSID not in link
                and _number(link, _IFLA_LINK) == ifindex
            )
            if stands or (link and other == _number(own, _IFLA_MASTER)):
                found.append(other)
    return found


def _number(link: t.Mapping[int, bytes], name: int) -> int:
    return int(struct.unpack("=I", link[name])[0]) if name in link else 0


def _link(sock: socket.socket, ifindex: int) -> dict[int, bytes]:
    """Return an interface's attributes; none where it is gone."""
    body = _IFINFO.pack(0, 0, 0, ifindex, 0, 0)
    sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST, 1, 0) + body)
    answer = sock.recv(1 << 16)
    length, kind, dummy, dummy, dummy = _HEADER.unpack_from(answer)
    return {} if kind == _NLMSG_ERROR else attributes(answer[_HEADER.size + _IFINFO.size : length])
