# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain's modes of checking transport checksums; the other suites use the strict one, which is the kernel's."""

from __future__ import annotations

import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import render
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig


@pytest.fixture(scope="module", params=render.CHECKSUMS)
def rig(request: pytest.FixtureRequest) -> t.Iterator[ChainRig]:
    """A chain of each mode."""
    with ChainRig(checksum=request.param) as chain:
        yield chain


def segment(pair: frames.Pair, proto: int, field: str) -> bytes:
    """Return a frame whose checksum field is right, or only begun (a local sender leaves the rest to the card), or wrong."""
    src, dst, sport, dport = pair.ends("a")
    if proto == frames.TCP:
        whole, at = frames.tcp(src, dst, sport, dport, 1, 0, frames.tcp_flags("S"), 99), 16
    elif proto == frames.UDP:
        whole, at = frames.udp(src, dst, sport, dport, b"payload"), 6
    else:
        whole, at = frames.icmpv6(src, dst, 128, 0, payload=b"payload"), 2
    begun = 0xFFFF - frames.checksum(frames.pseudo(src, dst, proto, len(whole)))
    right = int.from_bytes(whole[at : at + 2], "big")
    number = {"right": right, "begun": begun, "wrong": right ^ 0x10}[field]
    return frames.frame(frames.ip(src, dst, proto, whole[:at] + struct.pack(">H", number) + whole[at + 2 :]))


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
@pytest.mark.parametrize("proto", [frames.TCP, frames.UDP])
def test_modes(rig: ChainRig, pair: frames.Pair, proto: int) -> None:
    """Off takes all; offload takes what is right and what is begun; strict only what is right."""
    taken = {"off": {"right", "begun", "wrong"}, "offload": {"right", "begun"}, "strict": {"right"}}[rig.checksum]
    for field in ("right", "begun", "wrong"):
        rig.flush()
        assert rig.run("a", segment(pair, proto, field)) == ("tracked" if field in taken else "invalid_checksum"), field


def test_nobody_leaves_icmpv6_to_the_card(rig: ChainRig) -> None:
    """Its checksum is made by the host, so one that is only begun is wrong."""
    rig.flush()
    assert rig.run("a", segment(frames.V6, frames.ICMPV6, "right")) == "tracked"
    assert rig.run("a", segment(frames.V6, frames.ICMPV6, "begun")) == ("tracked" if rig.checksum == "off" else "invalid_checksum")
