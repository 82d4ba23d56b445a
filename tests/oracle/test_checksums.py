# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain's modes of checking transport checksums; the other suites use the strict one, which is
the kernel's.
"""

from __future__ import annotations

import pathlib
import re
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "files/bpf"


@pytest.fixture(scope="module", params=render.CHECKSUMS)
def rig(request: pytest.FixtureRequest) -> t.Iterator[ChainRig]:
    """A chain of each mode."""
    with ChainRig(checksum=request.param) as chain:
        yield chain


def segment(pair: frames.Pair, proto: int, field: str) -> bytes:
    """Return a frame whose checksum field is right, or only begun (a local sender leaves the rest
    to the card), or wrong.
    """
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
    return frames.frame(
        frames.ip(src, dst, proto, whole[:at] + struct.pack(">H", number) + whole[at + 2 :])
    )


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
@pytest.mark.parametrize("proto", [frames.TCP, frames.UDP])
def test_modes(rig: ChainRig, pair: frames.Pair, proto: int) -> None:
    """Off takes all; offload takes what is right and what is begun; strict only what is right."""
    taken = {
        "off": {"right", "begun", "wrong"},
        "offload": {"right", "begun"},
        "strict": {"right"},
    }[rig.checksum]
    for field in ("right", "begun", "wrong"):
        rig.flush()
        assert rig.run("a", segment(pair, proto, field)) == (
            "tracked" if field in taken else "invalid_checksum"
        ), field


def test_nobody_leaves_icmpv6_to_the_card(rig: ChainRig) -> None:
    """Its checksum is made by the host, so one that is only begun is wrong."""
    rig.flush()
    assert rig.run("a", segment(frames.V6, frames.ICMPV6, "right")) == "tracked"
    assert rig.run("a", segment(frames.V6, frames.ICMPV6, "begun")) == (
        "tracked" if rig.checksum == "off" else "invalid_checksum"
    )


# ---------------------------------------------------------------- the IPv4 header's, of a packet th
HEADERS = 100
#: Runs a function of the chain's over many headers.
PROGRAM = """
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#ifndef bpf_htons
#define bpf_htons(x) __builtin_bswap16(x)
#endif
%s
int decrease(struct xdp_md *ctx)
{
        void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
        int i;

        if (data + sizeof(struct ethhdr) + %d * sizeof(struct iphdr) > end)
                return XDP_DROP;
#pragma unroll
        for (i = 0; i < %d; i++)
                ipv4_decrease_ttl(data + sizeof(struct ethhdr) + i * sizeof(struct iphdr));
        return XDP_PASS;
}
"""


def header(ttl: int, check: int) -> bytes:
    """Return an IPv4 header that is right with this checksum: what makes it so is its
    identification.
    """
    words = [0x4500, 1500, 0, 0x4000, ttl << 8 | 6, check, 0xAC14, 0x3869, 0xAC1E, 0x3869]
    words[2] = -sum(words) % 0xFFFF
    return struct.pack(">10H", *words)


def test_a_smaller_ttl_keeps_each_checksum_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 65,536 of them, and each is the one that the kernel writes (include/net/ip.h,
    ip_decrease_ttl).
    """
    import bcc

    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(SOURCES / "stub"))
    found = re.search(
        r"^static __always_inline void ipv4_decrease_ttl\(.*?^}$",
        (SOURCES / "templates/forward.h.j2").read_text("utf-8"),
        re.M | re.S,
    )
    assert found
    module = bcc.BPF(
        text=(PROGRAM % (found[0], HEADERS, HEADERS)).encode(), cflags=build_bcc.flags()
    )
    fd = module.load_func(b"decrease", bcc.BPF.XDP).fd
    for first in range(0, 1 << 16, HEADERS):
        checks = [number & 0xFFFF for number in range(first, first + HEADERS)]
        headers = b"".join(header(2 + check % 254, check) for check in checks)
        done = bpf.prog_test_run(fd, bytes(14) + headers)
        assert done.retval == 2
        for at, check in enumerate(checks):
            words = struct.unpack_from(">10H", done.data_out, 14 + 20 * at)
            swapped = int.from_bytes(check.to_bytes(2, "little"), "big") + 1
            kernel = int.from_bytes(
                ((swapped + (swapped >= 0xFFFF)) & 0xFFFF).to_bytes(2, "little"), "big"
            )
            assert words[4] >> 8 == 1 + check % 254 and words[5] == kernel
            assert sum(words) % 0xFFFF == 0
    module.cleanup()
