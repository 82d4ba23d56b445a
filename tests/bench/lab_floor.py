# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The least that building a lab can take: one process, raw rtnetlink messages packed by hand, no
look at what is there, no marks, no way back.

Interfaces get numbers that are known beforehand, so that everything for a namespace goes to the
kernel in one write, and its answers come in one read.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import typing as t

import harness
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import netns
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import namespaces

_NEWLINK, _NEWADDR, _NEWROUTE, _ERROR = 16, 20, 24, 2
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NESTED = 0x8000
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5
_ANSWER = struct.Struct("=IH10xi")  # length, type; in an answer: error
_UP = 1
_CLONE_NEWNET, _MS_BIND = 0x40000000, 0x1000
#: Messages in one write at most: what their answers fit into.
_MOST = 64
_LO = 1
_WAN = 2  # the index of a host's link: the first after lo

Message = tuple[int, int, bytes]  # type, flags, payload


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _link(index: int, up: bool) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, _UP if up else 0, _UP)


def link_up(index: int) -> Message:
    """Return what brings a link up."""
    return _NEWLINK, 0, _link(index, up=True)


def veth(name: str, index: int, peer: str, peer_index: int, peer_netns: int) -> Message:
    """Return what makes a veth whose peer stands in another namespace, given by a descriptor; only
    the near end goes up at once.
    """
    other = (
        _link(peer_index, up=False)
        + _attribute(_IFLA_IFNAME, peer.encode() + b"\0")
        + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_netns))
    )
    data = _attribute(_INFO_DATA | _NESTED, _attribute(_VETH_INFO_PEER | _NESTED, other))
    info = _attribute(_IFLA_LINKINFO | _NESTED, _attribute(_INFO_KIND, b"veth") + data)
    return (
        _NEWLINK,
        _CREATE | _EXCL,
        _link(index, up=True) + _attribute(_IFLA_IFNAME, name.encode() + b"\0") + info,
    )


def address(index: int, ip: str, prefix: int) -> Message:
    """Return what gives a link an IPv4 address."""
    packed = socket.inet_aton(ip)
    return (
        _NEWADDR,
        _CREATE | _EXCL,
        struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, index)
        + _attribute(_IFA_LOCAL, packed)
        + _attribute(_IFA_ADDRESS, packed),
    )


def default_route(index: int, gateway: str) -> Message:
    """Return what adds the IPv4 default route."""
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0)
    return (
        _NEWROUTE,
        _CREATE | _EXCL,
        head
        + _attribute(_RTA_GATEWAY, socket.inet_aton(gateway))
        + _attribute(_RTA_OIF, struct.pack("=I", index)),
    )


def send(handle: socket.socket, messages: t.Sequence[Message]) -> None:
    """Have the kernel do them all."""
    for start in range(0, len(messages), _MOST):
        part = messages[start : start + _MOST]
        handle.send(
            b"".join(
                struct.pack("=IHHII", 16 + len(payload), kind, flags | _REQUEST | _ACK, 0, 0)
                + payload
                for kind, flags, payload in part
            )
        )
        answers = 0
        while answers < len(part):
            data, offset = handle.recv(1 << 16), 0
            while offset < len(data):
                length, kind, code = _ANSWER.unpack_from(data, offset)
                if kind != _ERROR or code:
                    raise harness.BenchError(f"rtnetlink: {os.strerror(-code)}")
                answers, offset = answers + 1, offset + (length + 3 & ~3)


class Namespace:
    """A new named namespace: a descriptor of it, and an rtnetlink socket inside it. The calling
    thread is left in it.
    """

    def __init__(self, libc: ctypes.CDLL, name: str) -> None:
        path = netns.path(name)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
        if libc.unshare(_CLONE_NEWNET) or libc.mount(
            b"/proc/thread-self/ns/net", path.encode(), b"none", _MS_BIND, None
        ):
            raise harness.BenchError(f"{name}: {os.strerror(ctypes.get_errno())}")
        self.fd = netns.current_fd()
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)

    def close(self) -> None:
        self.socket.close()
        os.close(self.fd)


def build(router: str, hosts: t.Mapping[str, tuple[str, str]]) -> None:
    """Build a lab of a router and hosts.

    :param hosts: for each host the router's address and its own, in a network of 30 bits.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    namespaces.prepare_run_dir()
    home = netns.current_fd()
    made: list[Namespace] = []
    try:
        hub = Namespace(libc, router)
        made.append(hub)
        with open("/proc/sys/net/ipv4/conf/all/forwarding", "w", encoding="ascii") as forwarding:
            forwarding.write("1")
        send(hub.socket, [link_up(_LO)])
        for number, (name, (gateway, own)) in enumerate(hosts.items()):
            host = Namespace(libc, name)
            made.append(host)
            index = _WAN + number
            send(
                hub.socket,
                [veth(f"l{number}", index, "wan", _WAN, host.fd), address(index, gateway, 30)],
            )
            send(
                host.socket,
                [link_up(_LO), link_up(_WAN), address(_WAN, own, 30), default_route(_WAN, gateway)],
            )
    finally:
        netns.enter(home)
        os.close(home)
        for namespace in made:
            namespace.close()
