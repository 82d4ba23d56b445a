# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In generic mode XDP sees the stack's packets: up to 512 KiB, whose length no IPv4 header can
tell, and many segments in one.
"""

from __future__ import annotations

import concurrent.futures
import socket
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import (
    interfaces as preflight_interfaces,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import netns
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import Wire, read

RTM_NEWLINK, NLM_REQUEST, NLM_ACK = 16, 1, 4
#: include/uapi/linux/if_link.h: IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE,
#: IFLA_GRO_IPV4_MAX_SIZE.
SIZES = (41, 58, 63, 64)
LINKS = (("client", "ns1-wan"), ("router", "ns1-lan"), ("router", "ns2-lan"), ("server", "ns2-wan"))
MEGABYTES = 8
#: Bytes of the largest packet: IPv4's own limit, and beyond it (BIG TCP).
PLAIN, BIG = 65536, 180_000


@pytest.fixture(
    scope="module", params=[{}, {"fused": True, "build": "clang"}], ids=["chain", "fused"]
)
def wire(request: pytest.FixtureRequest) -> t.Iterator[Wire]:
    """The lab, with the chain in generic mode."""
    with Wire(mode="generic", **request.param) as made:
        yield made


def largest(wire: Wire, size: int) -> None:
    """Let all links merge, or leave to be cut up, packets of up to so many bytes."""
    for where, name in LINKS:
        with (
            netns.entered(wire.ns(where)),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route,
        ):
            body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0)
            body += b"".join(struct.pack("=HHI", 8, kind, size) for kind in SIZES)
            route.send(
                struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, NLM_REQUEST | NLM_ACK, 1, 0)
                + body
            )
            error = struct.unpack_from("=i", route.recv(4096), 16)[0]
            assert not error, (name, size, error)


@pytest.mark.parametrize("size", [PLAIN, BIG])
def test_transfer(wire: Wire, size: int) -> None:
    """What nf_conntrack makes of these packets, with its counts; no packet is refused for its
    length, and the record says that they were merged.
    """
    wire.reset()
    largest(wire, size)
    before = wire.counters()
    tcp = wire.connect()
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        done = reader.submit(read, tcp.server, MEGABYTES << 20)
        tcp.client.sendall(bytes(MEGABYTES << 20))
        done.result()
    record = wire.only("tcp", state="ESTABLISHED", assured=True)
    assert record["aggregated"] is True
    if size == BIG:
        assert record["orig"]["bytes"] / record["orig"]["packets"] > PLAIN
    tcp.close()
    wire.only("tcp", state="TIME_WAIT")
    after = wire.counters()
    assert {
        name
        for name in after
        if name.startswith(("invalid", "untracked")) and after[name] != before[name]
    } <= {"untracked_not_ip", "untracked_nd"}


def test_attaching_in_generic_mode_says_what_may_be_dropped(wire: Wire) -> None:
    """Where packets come that the kernel has to copy into one piece, and only there; preflight
    knows it, too.
    """
    interfaces = [
        {"name": name, "netns": wire.ns("router"), "program": hook}
        for name, hook in (("ns1-lan", "ingress"), ("ns2-lan", "egress"))
    ]
    for size, told in ((BIG, 2), (PLAIN, 0)):
        largest(wire, size)
        wire.attach("absent")
        warnings = attach.converge(
            "present", interfaces, "generic", False, wire.chain.paths.pin_root, check_mode=False
        )[1]
        assert len(warnings) == told
        assert all(
            f"packets of up to {BIG} bytes come here (BIG TCP)" in one
            and "gso_ipv4_max_size" in one
            for one in warnings
        )
        found, problems = preflight_interfaces.observe_interfaces(
            wire.chain.paths, interfaces, "generic", False
        )
        assert ([one["big_tcp"] for one in found], problems) == ([bool(told)] * 2, [])
