# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain needs of the kernel, each need proved by trying it.

Versions prove nothing: distributions carry features back, and configurations leave them out.
"""

from __future__ import annotations

import errno
import struct
import typing as t

from ..core.errors import ConntrackError
from ..kernel import bpf, bpf_constants, netdev, private_netns

# ---------------------------------------------------------------- a few instructions by hand (Docum
_MOV_IMM, _CALL, _EXIT, _STORE_REG, _ATOMIC = 0xB7, 0x85, 0x95, 0x7B, 0xDB
_CMPXCHG = 0xF1
_HELPER_ADJUST_META = 54  # include/uapi/linux/bpf.h, enum bpf_func_id
_HELPER_JIFFIES64 = 118
_FRAME = 10  # the register that points to the end of the stack
_XDP_PASS = 2
_LOOPBACK = 1  # the ifindex of lo in every namespace


def _insn(opcode: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", opcode, dst | src << 4, off, imm)


_PASS = _insn(_MOV_IMM, 0, imm=_XDP_PASS) + _insn(_EXIT)


def _loads(body: bytes) -> t.Callable[[], None]:
    def probe() -> None:
        bpf.close(bpf.prog_load(body + _PASS, "probe"))

    return probe


def _has_lru() -> None:
    bpf.close(bpf.map_create(bpf_constants.MAP_TYPES["lru_hash"], "probe", 4, 4, 1))


def _has_link() -> None:
    """On the loopback of a namespace that nobody else sees and that is gone with the call."""
    with bpf.closing(bpf.prog_load(_PASS, "probe")) as program, private_netns.anonymous():
        bpf.close(netdev.link_create(program, _LOOPBACK, flags=netdev.XDP_FLAGS["generic"]))


#: What is needed, the release that brought it, and the attempt that proves it.
FEATURES: tuple[tuple[str, str, t.Callable[[], None]], ...] = (
    ("XDP programs", "4.8", _loads(b"")),
    (
        "XDP metadata (bpf_xdp_adjust_meta)",
        "4.15",
        _loads(_insn(_MOV_IMM, 2) + _insn(_CALL, imm=_HELPER_ADJUST_META)),
    ),
    ("LRU hash maps", "4.10", _has_lru),
    ("the jiffies clock (bpf_jiffies64)", "5.6", _loads(_insn(_CALL, imm=_HELPER_JIFFIES64))),
    (
        "atomic compare-and-exchange in BPF",
        "5.12",
        _loads(
            _insn(_MOV_IMM, 0)
            + _insn(_STORE_REG, _FRAME, 0, -8)
            + _insn(_MOV_IMM, 1, imm=1)
            + _insn(_ATOMIC, _FRAME, 1, -8, _CMPXCHG)
        ),
    ),
    ("BPF links for XDP", "5.9", _has_link),
)


def missing() -> list[str]:
    """Try every feature that the chain needs; return those that are missing, each with the release
    that brought it and the kernel's own words.

    :raises ConntrackError: where the user is not let.
    """
    found = []
    for name, since, probe in FEATURES:
        try:
            probe()
        except bpf.BpfError as exc:
            if exc.errno == errno.EPERM:
                raise ConntrackError(
                    "the kernel refuses BPF to this user: run as root, or with the capabilities"
                    " CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON."
                ) from exc
            found.append(f"{name} (since Linux {since}; {exc})")
    return found


def check() -> None:
    """Prove every feature that the chain needs.

    :raises ConntrackError: naming each that is missing, the release that brought it and the
        kernel's own words.
    """
    lacking = missing()
    if lacking:
        raise ConntrackError(
            f"this kernel lacks what the chain needs: {'; '.join(lacking)}.",
            missing_features=lacking,
        )
