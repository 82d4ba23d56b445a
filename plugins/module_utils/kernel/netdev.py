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

from . import bpf
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
    prog_fd: int, ifindex: int, attach_type: int = bpf.ATTACH_XDP, flags: int = 0
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
        words = _why_not(prog_fd, ifindex, flags) if attach_type == bpf.ATTACH_XDP else ""
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
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_RTM_NEWLINK, _RTM_GETLINK, _RTM_SETLINK, _RTM_GETNSID = 16, 18, 19, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_NLMSG_ERROR, _NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_ACK_TLVS, _NLA_F_NESTED, _NLA_TYPE_MASK = (
    2,
    1,
    4,
    0x200,
    1 << 15,
    0x3FFF,
)
_NLMSGERR_ATTR_MSG = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = (
    1,
    3,
    4,
    5,
    10,
    18,
)
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53
# IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE; IFLA_GRO_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE
_IFLA_GSO_SIZES, _IFLA_GRO_SIZES = ((41, 63), (58, 64))
_IFLA_STATS64, _IFLA_LINK_NETNSID, _IFLA_XDP, _IFLA_TARGET_NETNSID = 23, 37, 43, 46
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_XDP_FD, _IFLA_XDP_ATTACHED, _IFLA_XDP_FLAGS, _IFLA_XDP_PROG_ID, _IFLA_XDP_EXPECTED_FD = (
    1,
    2,
    3,
    4,
    8,
)
# enum xdp_attached; 4 is "several", each with an attribute of its own
_XDP_MODES = {1: "native", 2: "generic", 3: "offload"}
_IFLA_XDP_PROG_IDS = {5: "native", 6: "generic", 7: "offload"}
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BBHiII")  # family, padding, type, index, flags, change
#: Bytes of a name and of an alternative name, with the zero that ends them
#: (include/uapi/linux/if.h).
IFNAMSIZ, ALTIFNAMSIZ = 16, 128


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _each_attribute(payload: bytes) -> t.Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, payload[at + 4 : at + length]
        at += (length + 3) & ~3


def _attributes(payload: bytes) -> dict[int, bytes]:
    return dict(_each_attribute(payload))


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _u32(raw: bytes | None) -> int:
    return struct.unpack("=I", raw)[0] if raw else 0


def _rtnetlink(call: str, kind: int, flags: int, payload: bytes) -> bytes:
    """Send one request in the current namespace and return the payload of its one answer (b"" for
    an acknowledgement).
    """
    if bpf.fault is not None:
        bpf.fault(call.partition("(")[0])
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            with contextlib.suppress(OSError):  # kernels before 4.12 have no words to give
                sock.setsockopt(_SOL_NETLINK, option, 1)
        sock.send(
            _HEADER.pack(_HEADER.size + len(payload), kind, _NLM_F_REQUEST | flags, 1, 0) + payload
        )
        answer = sock.recv(1 << 16)
    length, got, got_flags, dummy, dummy = _HEADER.unpack_from(answer)
    body = answer[_HEADER.size : length]
    if got != _NLMSG_ERROR:
        return body
    (error,) = struct.unpack_from("=i", body)
    if error == 0:
        return b""
    # struct nlmsgerr is the number and the request's header (cut there by CAP_ACK); the words
    # follow
    words = (
        _attributes(body[4 + _HEADER.size :]).get(_NLMSGERR_ATTR_MSG, b"")
        if got_flags & _NLM_F_ACK_TLVS
        else b""
    )
    raise BpfError(-error, call, _text(words))


def link_facts(interface: int | str, nsid: int | None = None) -> LinkFacts:
    """Return what rtnetlink says about an interface, by ifindex or by any of its names; ENODEV when
    there is none.

    :param nsid: the current namespace's id for the interface's; None for the current namespace.
    """
    index, wanted = (interface, b"") if isinstance(interface, int) else (0, _named(interface))
    if nsid is not None:
        wanted += _attribute(_IFLA_TARGET_NETNSID, struct.pack("=i", nsid))
    try:
        body = _rtnetlink(
            f"RTM_GETLINK({interface})",
            _RTM_GETLINK,
            0,
            _IFINFO.pack(0, 0, 0, index, 0, 0) + wanted,
        )
    except BpfError as exc:
        if exc.errno == errnos.EINVAL and not index:  # kernels before 5.5 do not know long names
            raise BpfError(errnos.ENODEV, exc.call, exc.words) from None
        raise
    dummy, dummy, arphrd, ifindex, dummy, dummy = _IFINFO.unpack_from(body)
    found = _attributes(body[_IFINFO.size :])
    xdp = _attributes(found.get(_IFLA_XDP, b""))
    programs = {
        mode: _u32(xdp[number]) for number, mode in _IFLA_XDP_PROG_IDS.items() if number in xdp
    }
    attached = xdp.get(_IFLA_XDP_ATTACHED, b"\0")[0]
    if not programs and attached in _XDP_MODES:  # kernels before 4.20 name the one program only
        programs = {_XDP_MODES[attached]: _u32(xdp.get(_IFLA_XDP_PROG_ID))}
    peer_nsid = found.get(_IFLA_LINK_NETNSID)
    return LinkFacts(
        ifindex=ifindex,
        name=_text(found[_IFLA_IFNAME]),
        kind=_text(_attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")),
        mtu=_u32(found.get(_IFLA_MTU)),
        peer_ifindex=_u32(found.get(_IFLA_LINK)),
        peer_nsid=struct.unpack("=i", peer_nsid)[0] if peer_nsid else None,
        xdp=programs,
        received=struct.unpack_from("=Q", found[_IFLA_STATS64])[
            0
        ],  # struct rtnl_link_stats64 starts with rx_packets
        mac=found.get(_IFLA_ADDRESS, b""),
        type=arphrd,
        master=_u32(found.get(_IFLA_MASTER)),
        altnames=tuple(
            _text(raw)
            for kind, raw in _each_attribute(found.get(_IFLA_PROP_LIST, b""))
            if kind == _IFLA_ALT_IFNAME
        ),
        merges=max(_u32(found.get(number)) for number in _IFLA_GRO_SIZES),
        leaves=max(_u32(found.get(number)) for number in _IFLA_GSO_SIZES),
    )


def _named(name: str) -> bytes:
    """Return the attribute that asks for an interface by one of its names; only alternative ones
    are longer than IFNAMSIZ.
    """
    raw = name.encode() + b"\0"
    return _attribute(_IFLA_IFNAME if len(raw) <= IFNAMSIZ else _IFLA_ALT_IFNAME, raw)


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
    body = _rtnetlink(
        "RTM_GETNSID",
        _RTM_GETNSID,
        0,
        b"\0" * 4 + _attribute(_NETNSA_FD, struct.pack("=I", handle)),
    )  # struct rtgenmsg
    found = _attributes(body[4:]).get(_NETNSA_NSID)
    return struct.unpack("=i", found)[0] if found else -1


def links_above(ifindex: int, kind: str) -> t.Iterator[dict[int, bytes]]:
    """Return what is peculiar (IFLA_INFO_DATA) to each interface of a kind that stands on another
    one of the current namespace.
    """
    for index, dummy in socket.if_nameindex():
        with contextlib.suppress(BpfError):  # gone since
            body = _rtnetlink(
                f"RTM_GETLINK({index})", _RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, index, 0, 0)
            )
            found = _attributes(body[_IFINFO.size :])
            info = _attributes(found.get(_IFLA_LINKINFO, b""))
            if (
                _u32(found.get(_IFLA_LINK)) == ifindex
                and _text(info.get(_IFLA_INFO_KIND, b"")) == kind
            ):
                yield _attributes(info.get(_IFLA_INFO_DATA, b""))


def xdp_query(ifindex: int) -> dict[str, t.Any]:
    """Return ``{"prog_id", "mode"}`` of the program that sees the interface's frames on the host's
    CPUs; both None when there is none.

    A program on the network card itself counts only when it is the only one.
    """
    programs = link_facts(ifindex).xdp
    for mode in ("native", "generic", "offload"):
        if mode in programs:
            return {"prog_id": programs[mode], "mode": mode}
    return {"prog_id": None, "mode": None}


def xdp_set(ifindex: int, prog_fd: int, flags: int, expected_fd: int | None = None) -> None:
    """Attach a program through netlink, as ``ip link set dev ... xdp`` does; ``prog_fd`` -1
    detaches.

    :param flags: XDP_FLAGS values and XDP_FLAGS_UPDATE_IF_NOEXIST or XDP_FLAGS_REPLACE (then only
        the program of ``expected_fd`` is replaced).
    :raises BpfError: with the kernel's words; netlink never touches a program that a bpf_link holds
        (EBUSY).
    """
    nest = _attribute(_IFLA_XDP_FD, struct.pack("=i", prog_fd)) + _attribute(
        _IFLA_XDP_FLAGS, struct.pack("=I", flags)
    )
    if expected_fd is not None:
        nest += _attribute(_IFLA_XDP_EXPECTED_FD, struct.pack("=i", expected_fd))
    payload = _IFINFO.pack(0, 0, 0, ifindex, 0, 0) + _attribute(_IFLA_XDP | _NLA_F_NESTED, nest)
    _rtnetlink(f"RTM_SETLINK(ifindex {ifindex})", _RTM_SETLINK, _NLM_F_ACK, payload)


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
