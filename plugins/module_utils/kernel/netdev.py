# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces and their XDP programs, as rtnetlink tells and sets them
(include/uapi/linux/if_link.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno as errnos
import socket
import struct
import typing as t

from . import bpf, bpf_constants, netlink, rtnetlink
from .bpf import BpfError, LinkCreateOpts

#: include/uapi/linux/if_link.h
XDP_FLAGS_UPDATE_IF_NOEXIST = 1
XDP_FLAGS = {"generic": 1 << 1, "native": 1 << 2}
XDP_FLAGS_REPLACE = 1 << 4


class LinkFacts(t.NamedTuple):
    """What rtnetlink says about one interface.

    :ivar kind: ``veth``, ``vlan``, ...; "" for hardware and loopback.
    :ivar peer_ifindex: IFLA_LINK; for a veth the ifindex of the other end, in its namespace.
    :ivar peer_nsid: the id that this namespace has for the peer's, None when the peer lives here.
    :ivar xdp: the attached program's id by mode: ``native``, ``generic``, ``offload``.
    :ivar received: frames since the interface was made.
    :ivar mac: its hardware address, b"" where it has none.
    :ivar type: ARPHRD_* of include/uapi/linux/if_arp.h, what its frames begin with; 1 is Ethernet.
    :ivar master: the ifindex of the bridge, bond, team or VRF that it is part of; 0 where there is
        none.
    :ivar altnames: its alternative names (ip link property, Linux 5.5).
    :ivar merges: bytes of the longest packet that the stack makes of what it receives (GRO).
    :ivar leaves: bytes of the longest packet that senders leave to it to cut up (GSO).
    """

    ifindex: int
    name: str
    kind: str
    mtu: int
    peer_ifindex: int
    peer_nsid: int | None
    xdp: dict[str, int]
    received: int
    mac: bytes = b""
    type: int = 1
    master: int = 0
    altnames: tuple[str, ...] = ()
    merges: int = 0
    leaves: int = 0


# ---------------------------------------------------------------- links
def link_create(
    prog_fd: int, ifindex: int, attach_type: int = bpf_constants.ATTACH_XDP, flags: int = 0
) -> int:
    """Attach a program to an interface of the current namespace through a bpf_link. :return: the
    link's fd.

    The link lives as long as its fd or its pin; a process that dies between the two leaves nothing
    attached.

    :param flags: a value of XDP_FLAGS; 0 leaves the mode to the kernel.
    :raises BpfError: with netlink's words where the kernel has any.
    """
    opts = LinkCreateOpts(flags=flags)
    try:
        return bpf.call(
            "bpf_link_create",
            prog_fd,
            ifindex,
            attach_type,
            ctypes.byref(opts),
            about=f"ifindex {ifindex}",
        )
    except BpfError as exc:
        words = _why_not(prog_fd, ifindex, flags) if attach_type == bpf_constants.ATTACH_XDP else ""
        raise BpfError(exc.errno or 0, exc.call, words) from None


def _why_not(prog_fd: int, ifindex: int, flags: int) -> str:
    """Return the kernel's words for a failed bpf_link_create().

    That call has no place for words, but netlink refuses the same attach for the same reason and
    has one. The request can not replace anything; should it succeed, what it attached is taken away
    again.
    """
    try:
        xdp_set(ifindex, prog_fd, flags | XDP_FLAGS_UPDATE_IF_NOEXIST)
    except BpfError as exc:
        return exc.words
    xdp_set(ifindex, -1, flags | XDP_FLAGS_REPLACE, expected_fd=prog_fd)
    return (
        "the kernel attaches this program through netlink only, a bpf_link for XDP needs Linux 5.9"
    )


# ---------------------------------------------------------------- rtnetlink
_INT = struct.Struct("=i")
_NETNSA_NSID, _NETNSA_FD = 1, 3
_XDP_FD, _XDP_ATTACHED, _XDP_FLAGS, _XDP_PROG_ID, _XDP_EXPECTED_FD = 1, 2, 3, 4, 8
#: enum xdp_attached; 4 is "several", each with an attribute of its own
_XDP_MODES = {1: "native", 2: "generic", 3: "offload"}
_XDP_PROG_IDS = {5: "native", 6: "generic", 7: "offload"}
#: Bytes of a name and of an alternative name, with the zero that ends them
#: (include/uapi/linux/if.h).
IFNAMSIZ, ALTIFNAMSIZ = 16, 128


def _ask(call: str, kind: int, payload: bytes) -> bytes:
    """Send one request in the current namespace and return the payload of its one answer."""
    with _refused(call), netlink.Socket() as sock:
        data, start, end = sock.ask(kind, payload)
        return data[start:end]


@contextlib.contextmanager
def _refused(call: str) -> t.Iterator[None]:
    """:raises BpfError: for what netlink refuses, with its words."""
    try:
        yield
    except netlink.NetlinkError as exc:
        raise BpfError(exc.errno or 0, call, exc.words) from None


def _link(ifindex: int) -> dict[int, bytes]:
    """Return the attributes of an interface of the current namespace.

    :raises BpfError: where it is gone.
    """
    request = rtnetlink.IFINFO.pack(0, 0, ifindex, 0, 0)
    body = _ask(f"RTM_GETLINK({ifindex})", rtnetlink.GETLINK, request)
    return netlink.attributes(body, rtnetlink.IFINFO.size)


def link_facts(interface: int | str, nsid: int | None = None) -> LinkFacts:
    """Return what rtnetlink says about an interface, by ifindex or by any of its names; ENODEV when
    there is none.

    :param nsid: the current namespace's id for the interface's; None for the current namespace.
    """
    index, wanted = (interface, b"") if isinstance(interface, int) else (0, _named(interface))
    if nsid is not None:
        wanted += netlink.attribute(rtnetlink.IFLA_TARGET_NETNSID, _INT.pack(nsid))
    request = rtnetlink.IFINFO.pack(0, 0, index, 0, 0) + wanted
    try:
        body = _ask(f"RTM_GETLINK({interface})", rtnetlink.GETLINK, request)
    except BpfError as exc:
        if exc.errno == errnos.EINVAL and not index:  # kernels before 5.5 do not know long names
            raise BpfError(errnos.ENODEV, exc.call, exc.words) from None
        raise
    dummy, arphrd, ifindex, dummy, dummy = rtnetlink.IFINFO.unpack_from(body)
    found = netlink.attributes(body, rtnetlink.IFINFO.size)
    peer_nsid = found.get(rtnetlink.IFLA_LINK_NETNSID)
    names = netlink.values_of(found.get(rtnetlink.IFLA_PROP_LIST, b""), rtnetlink.IFLA_ALT_IFNAME)
    return LinkFacts(
        ifindex=ifindex,
        name=netlink.text_of(found, rtnetlink.IFLA_IFNAME),
        kind=rtnetlink.kind_of(found),
        mtu=netlink.u32(found, rtnetlink.IFLA_MTU),
        peer_ifindex=netlink.u32(found, rtnetlink.IFLA_LINK),
        peer_nsid=_INT.unpack(peer_nsid)[0] if peer_nsid else None,
        xdp=_programs(netlink.attributes(found.get(rtnetlink.IFLA_XDP, b""))),
        # struct rtnl_link_stats64 starts with rx_packets
        received=struct.unpack_from("=Q", found[rtnetlink.IFLA_STATS64])[0],
        mac=found.get(rtnetlink.IFLA_ADDRESS, b""),
        type=arphrd,
        master=netlink.u32(found, rtnetlink.IFLA_MASTER),
        altnames=tuple(map(netlink.text, names)),
        merges=max(netlink.u32(found, number) for number in rtnetlink.IFLA_GRO_SIZES),
        leaves=max(netlink.u32(found, number) for number in rtnetlink.IFLA_GSO_SIZES),
    )


def _programs(xdp: t.Mapping[int, bytes]) -> dict[str, int]:
    """Return the ids of the programs that an interface has, by mode."""
    numbers = {mode: number for number, mode in _XDP_PROG_IDS.items() if number in xdp}
    found = {mode: netlink.u32(xdp, number) for mode, number in numbers.items()}
    attached = xdp.get(_XDP_ATTACHED, b"\0")[0]
    if not found and attached in _XDP_MODES:  # kernels before 4.20 name the one program only
        return {_XDP_MODES[attached]: netlink.u32(xdp, _XDP_PROG_ID)}
    return found


def _named(name: str) -> bytes:
    """Return the attribute that asks for an interface by one of its names; only alternative ones
    are longer than IFNAMSIZ.
    """
    raw = name.encode() + b"\0"
    kind = rtnetlink.IFLA_IFNAME if len(raw) <= IFNAMSIZ else rtnetlink.IFLA_ALT_IFNAME
    return netlink.attribute(kind, raw)


def links() -> list[LinkFacts]:
    """Return what rtnetlink says about every interface of the current namespace."""
    found = []
    for index, dummy in socket.if_nameindex():
        try:
            found.append(link_facts(index))
        except BpfError as exc:
            if exc.errno != errnos.ENODEV:  # gone since
                raise
    return found


def namespace_id(handle: int) -> int:
    """Return the id that the current namespace has for another, -1 where it has none;
    LinkFacts.peer_nsid is such a one.
    """
    family = b"\0" * 4  # struct rtgenmsg
    request = family + netlink.attribute(_NETNSA_FD, _INT.pack(handle))
    body = _ask("RTM_GETNSID", rtnetlink.GETNSID, request)
    found = netlink.attributes(body, len(family)).get(_NETNSA_NSID)
    return int(_INT.unpack(found)[0]) if found else -1


def links_above(ifindex: int, kind: str) -> t.Iterator[dict[int, bytes]]:
    """Return what is peculiar (IFLA_INFO_DATA) to each interface of a kind that stands on another
    one of the current namespace.
    """
    for index, dummy in socket.if_nameindex():
        with contextlib.suppress(BpfError):  # gone since
            found = _link(index)
            if (
                netlink.u32(found, rtnetlink.IFLA_LINK) == ifindex
                and rtnetlink.kind_of(found) == kind
            ):
                info = netlink.attributes(found[rtnetlink.IFLA_LINKINFO])
                yield netlink.attributes(info.get(rtnetlink.IFLA_INFO_DATA, b""))


def uppers(ifindex: int, others: t.Iterable[int]) -> list[int]:
    """Return which of the interfaces of the current namespace stand on top of one: its bridge, bond
    or VRF, and its VLANs, macvlans and the like.
    """
    master, found = 0, []
    with contextlib.suppress(BpfError):  # gone since
        master = netlink.u32(_link(ifindex), rtnetlink.IFLA_MASTER)
    for other in others:
        with contextlib.suppress(BpfError):  # gone since
            link = _link(other) if other != ifindex else {}
            # of a veth it is the other end, and with a number of a namespace it counts there
            stands = (
                rtnetlink.kind_of(link) != "veth"
                and rtnetlink.IFLA_LINK_NETNSID not in link
                and netlink.u32(link, rtnetlink.IFLA_LINK) == ifindex
            )
            if stands or (link and other == master):
                found.append(other)
    return found


def xdp_set(ifindex: int, prog_fd: int, flags: int, expected_fd: int | None = None) -> None:
    """Attach a program through netlink, as ``ip link set dev ... xdp`` does; ``prog_fd`` -1
    detaches.

    :param flags: XDP_FLAGS values and XDP_FLAGS_UPDATE_IF_NOEXIST or XDP_FLAGS_REPLACE (then only
        the program of ``expected_fd`` is replaced).
    :raises BpfError: with the kernel's words; netlink never touches a program that a bpf_link holds
        (EBUSY).
    """
    nest = netlink.attribute(_XDP_FD, _INT.pack(prog_fd))
    nest += netlink.attribute(_XDP_FLAGS, struct.pack("=I", flags))
    if expected_fd is not None:
        nest += netlink.attribute(_XDP_EXPECTED_FD, _INT.pack(expected_fd))
    request = rtnetlink.IFINFO.pack(0, 0, ifindex, 0, 0)
    request += netlink.attribute(rtnetlink.IFLA_XDP | netlink.NESTED, nest)
    with _refused(f"RTM_SETLINK(ifindex {ifindex})"), netlink.Socket() as sock:
        sock.change(rtnetlink.SETLINK, request)


def xdp_link_holds(ifindex: int, mode: str, other_prog_fd: int) -> bool:
    """Tell whether the interface's program of that mode is there through a bpf_link, and not
    through netlink.

    It asks netlink to detach ``other_prog_fd``'s program, which is not there: the kernel refuses in
    any case, and says EBUSY when a bpf_link is in the way before it compares the programs
    (net/core/dev.c, dev_xdp_attach).
    """
    try:
        xdp_set(ifindex, -1, XDP_FLAGS[mode] | XDP_FLAGS_REPLACE, expected_fd=other_prog_fd)
    except BpfError as exc:
        return exc.errno == errnos.EBUSY
    return False
