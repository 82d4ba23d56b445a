# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of its work an interface leaves to its driver or card, as C(ethtool -k) shows it
(include/uapi/linux/ethtool.h, struct ethtool_gfeatures).
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import functools
import socket
import struct
import typing as t

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_STRINGS_OF_FEATURES, _STRING_BYTES = 4, 32
_HEAD = struct.Struct("=II")  # the command, and how many words of 32 features follow
_GET = struct.Struct("=4I")  # available, requested, active, never changed
_SET = struct.Struct("=2I")  # valid, requested
#: The kernel's names (net/ethtool/common.c, netdev_features_strings) of what ethtool calls rxvlan
#: and txvlan, each with the like for IEEE 802.1ad.
RX_TAG, TX_TAG = "rx-vlan-hw-parse", "tx-vlan-hw-insert"
RX_STAG, TX_STAG = "rx-vlan-stag-hw-parse", "tx-vlan-stag-hw-insert"
VLAN_OFFLOADS = (RX_TAG, TX_TAG, RX_STAG, TX_STAG)


def _ioctl(interface: str, request: bytes) -> bytes:
    """:raises OSError: where there is no such interface, or its driver has no such thing."""
    data = array.array("B", request)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(
            sock, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), data.buffer_info()[0])
        )  # struct ifreq
    return data.tobytes()


@functools.cache
def _names() -> tuple[str, ...]:
    """Return the names of this kernel's features; they are the same for all interfaces, so the
    loopback is asked.
    """
    answer = _ioctl("lo", struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _STRINGS_OF_FEATURES, 0))
    count = struct.unpack_from("=I", answer, 16)[0]
    head = struct.pack("=III", _GSTRINGS, _STRINGS_OF_FEATURES, count)
    answer = _ioctl("lo", head + bytes(count * _STRING_BYTES))[len(head) :]
    return tuple(
        answer[at : at + _STRING_BYTES].split(b"\0", 1)[0].decode()
        for at in range(0, len(answer), _STRING_BYTES)
    )


def features(interface: str) -> dict[str, bool]:
    """Return which features of an interface of the current namespace are on, by their names in the
    kernel.

    :raises OSError: where there is no such interface.
    """
    words = (len(_names()) + 31) // 32
    answer = _ioctl(interface, _HEAD.pack(_GFEATURES, words) + bytes(words * _GET.size))
    active = [_GET.unpack_from(answer, _HEAD.size + word * _GET.size)[2] for word in range(words)]
    return {name: bool(active[at // 32] >> at % 32 & 1) for at, name in enumerate(_names()) if name}


def set_features(interface: str, wanted: t.Mapping[str, bool]) -> None:
    """Switch features of an interface of the current namespace; what its driver cannot switch stays
    as it is, and so does what this kernel lacks.

    :raises OSError: where there is no such interface, or the kernel refuses it.
    """
    words = [[0, 0] for dummy in range((len(_names()) + 31) // 32)]
    for at, name in enumerate(_names()):
        if name in wanted:
            words[at // 32][0] |= 1 << at % 32
            words[at // 32][1] |= int(wanted[name]) << at % 32
    _ioctl(
        interface, _HEAD.pack(_SFEATURES, len(words)) + b"".join(_SET.pack(*word) for word in words)
    )


# linux/sockios.h, linux/ethtool.h: struct ethtool_drvinfo
_SIOCETHTOOL, _ETHTOOL_GDRVINFO, _ETHTOOL_DRVINFO_SIZE = (0x8946, 0x3, 196)


def driver(interface: str) -> str:
    """Return the driver of an interface of the calling thread's namespace, as C(ethtool -i) has it;
    "" where it has none that it tells.
    """
    answer = ctypes.create_string_buffer(
        struct.pack("=I", _ETHTOOL_GDRVINFO), _ETHTOOL_DRVINFO_SIZE
    )
    request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(answer))  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError:  # lo, and whatever else has no driver
            return ""
    return answer.raw[4:36].split(b"\0")[0].decode("utf-8", "replace")
