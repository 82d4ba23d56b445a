# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What XDP an interface's driver can do: asked of the kernel, and nothing is attached for it
(Documentation/netlink/specs/netdev.yaml).
"""

from __future__ import annotations

import errno
import struct
import sys

from . import netlink

_CTRL, _CTRL_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 16, 3, 1, 2
_DEV_GET, _DEV_IFINDEX, _DEV_XDP_FEATURES = 1, 1, 3
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
#: enum netdev_xdp_act: runs programs itself; takes frames that other interfaces' programs redirect
#: to it (NETDEV_XDP_ACT_NDO_XMIT).
_BASIC, _NDO_XMIT = 1, 4
#: What kernels without the family answer.
_UNKNOWN = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)


def _ask(sock: netlink.Socket, family: int, command: int, payload: bytes) -> dict[int, bytes]:
    """:raises NetlinkError: where the kernel refuses it."""
    data, start, end = sock.ask(family, _GENERIC.pack(command, 1, 0) + payload)
    return netlink.attributes(data, start + _GENERIC.size, end)


def _features(ifindex: int) -> int | None:
    """Return what of enum netdev_xdp_act an interface of the current namespace can do; None where
    this kernel does not tell.
    """
    name = netlink.attribute(_CTRL_FAMILY_NAME, b"netdev\0")
    device = netlink.attribute(_DEV_IFINDEX, struct.pack("=I", ifindex))
    with netlink.Socket(netlink.GENERIC) as sock:
        try:
            family = _ask(sock, _CTRL, _CTRL_GETFAMILY, name)[_CTRL_FAMILY_ID]
            found = _ask(sock, struct.unpack("=H", family)[0], _DEV_GET, device)
        except netlink.NetlinkError as exc:
            if exc.errno in _UNKNOWN:
                return None
            raise
    features = found.get(_DEV_XDP_FEATURES)
    return None if features is None else int.from_bytes(features[:8], sys.byteorder)


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
