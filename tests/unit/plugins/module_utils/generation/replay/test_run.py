# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a replay that need no kernel: which frame comes in where, what it is called, what of
a text makes its shadow, what differs.
"""

from __future__ import annotations

import pathlib
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import run as replay
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import shadow
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay.capture import Packet
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay.dissect import (
    dissect,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay.shadow import Result

pytest.importorskip("jinja2")

SOURCES = pathlib.Path(__file__).resolve().parents[6] / "files/bpf"
MACS = bytes(range(12))
A, B, C = b"\x0a\0\0\1", b"\x0a\0\0\2", b"\x0a\0\0\3"


def ip(src: bytes, dst: bytes, proto: int = 17, payload: bytes = b"", frag: int = 0) -> bytes:
    return (
        struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, frag, 64, proto, 0, src, dst)
        + payload
    )


def ip6(
    proto: int, payload: bytes, src: bytes = bytes(15) + b"\5", dst: bytes = bytes(15) + b"\6"
) -> bytes:
    return struct.pack(">IHBB16s16s", 6 << 28, len(payload), proto, 64, src, dst) + payload


def frame(packet: bytes, *tags: int) -> bytes:
    marks = b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
    return MACS + marks + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\0") + packet


UDP = struct.pack(">HHHH", 4000, 53, 11, 0) + b"abc"
TCP = struct.pack(">HHIIBBHHH", 4000, 80, 1, 2, 0x60, 0x12, 99, 0, 0) + bytes(4) + b"abcde"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"short", "5 bytes"),
        (MACS + b"\x08\x06" + bytes(28), "ethertype 0x0806, length 42"),
        (MACS + b"\x08\x00" + bytes(19), "ethertype 0x0800, length 33"),
        (frame(ip(A, B, 17, UDP)), "IP 10.0.0.1.4000 > 10.0.0.2.53: UDP, length 3"),
        (
            frame(ip(A, B, 6, TCP), 5),
            "vlan 5, IP 10.0.0.1.4000 > 10.0.0.2.80: Flags [S.], length 5",
        ),
        (
            frame(ip(A, B, 6, TCP[:13] + b"\0" + TCP[14:]), 5, 6),
            "vlan 5, vlan 6, IP 10.0.0.1.4000 > 10.0.0.2.80: Flags [none], length 5",
        ),
        (frame(ip(A, B, 6, TCP[:3])), "IP 10.0.0.1 > 10.0.0.2: Flags [none], length 3"),
        (
            frame(ip(A, B, 1, b"\3\1" + bytes(6))),
            "IP 10.0.0.1 > 10.0.0.2: ICMP type 3 code 1, length 8",
        ),
        (frame(ip(A, B, 99, b"x")), "IP 10.0.0.1 > 10.0.0.2: ip-proto-99, length 1"),
        (
            frame(ip(A, B, 17, UDP[:8], 0x2000)),
            "IP 10.0.0.1.4000 > 10.0.0.2.53: UDP, length 0 (frag 7@0+)",
        ),
        (frame(ip(A, B, 17, b"rest", 2)), "IP 10.0.0.1 > 10.0.0.2: UDP, length 4 (frag 7@16)"),
        (frame(ip6(17, UDP)), "IP6 ::5.4000 > ::6.53: UDP, length 3"),
        (frame(ip6(0, b"\x11\0" + bytes(6) + UDP)), "IP6 ::5.4000 > ::6.53: UDP, length 3"),
        (
            frame(ip6(51, b"\x06\1" + bytes(10) + TCP)),
            "IP6 ::5.4000 > ::6.80: Flags [S.], length 5",
        ),
        (
            frame(ip6(44, b"\x11\0\0\1\0\0\0\x09" + UDP)),
            "IP6 ::5.4000 > ::6.53: UDP, length 3 (frag 9@0+)",
        ),
        (
            frame(ip6(44, b"\x11\0\0\x08\0\0\0\x09" + b"rest")),
            "IP6 ::5 > ::6: UDP, length 4 (frag 9@8)",
        ),
        (frame(ip6(58, b"\x87\0" + bytes(22))), "IP6 ::5 > ::6: ICMP6 type 135 code 0, length 24"),
        (frame(ip6(60, b"\x11\xff" + bytes(6))), "IP6 ::5 > ::6: UDP, length 0"),
    ],
)
def test_the_name_of_a_frame(data: bytes, text: str) -> None:
    assert dissect(data).text == text


def test_every_cut_of_a_frame_has_a_name() -> None:
    for whole in (
        frame(ip(A, B, 6, TCP), 5, 6),
        frame(ip6(0, b"\x2c\0" + bytes(6) + b"\x06\0\0\1\0\0\0\x09" + TCP), 5),
    ):
        for length in range(len(whole)):
            assert dissect(whole[:length]).text


def hooks(*frames: bytes, hook: str = "both") -> list[str]:
    return [one.hook for one in replay.frames_of([Packet(data, 0) for data in frames], hook)]


def test_each_host_has_a_side() -> None:
    """A talks to B, B answers, C is on B's side since A talks to it, and stays there."""
    seen = [ip(A, B), ip(B, A), ip(A, C), ip(C, A), ip(C, b"\x0a\0\0\x09"), ip(b"\x0a\0\0\x09", C)]
    assert hooks(*map(frame, seen)) == [
        "ingress",
        "egress",
        "ingress",
        "egress",
        "egress",
        "ingress",
    ]


def test_what_is_not_ip_comes_in_where_the_frame_before_did() -> None:
    arp = MACS + b"\x08\x06" + bytes(28)
    assert hooks(arp, frame(ip(A, B)), arp, frame(ip(B, A)), arp) == [
        "ingress",
        "ingress",
        "ingress",
        "egress",
        "egress",
    ]


def test_one_hook_for_all() -> None:
    assert hooks(frame(ip(A, B)), frame(ip(B, A)), hook="egress") == ["egress", "egress"]


def test_frames_keep_their_numbers_and_their_time() -> None:
    packets = [
        Packet(bytes(13), 5),
        Packet(bytes(14), 7),
        Packet(bytes(3521), 8),
        Packet(bytes(3520), 9),
    ]
    assert [
        (one.number, len(one.data), one.at_ns) for one in replay.frames_of(packets, "ingress")
    ] == [(2, 14, 2), (4, 3520, 4)]


@pytest.mark.parametrize("limit", [0, -1, 100001])
def test_a_limit_out_of_range(limit: int) -> None:
    with pytest.raises(
        ConntrackError, match=f"replay.limit: {limit} is not valid: give 1 to 100000 frames."
    ):
        replay.check_limit(limit)


# ---------------------------------------------------------------- shadows
@pytest.mark.parametrize(("fused", "events"), [(False, False), (True, False), (False, True)])
def test_a_shadow_has_nothing_of_what_runs(fused: bool, events: bool) -> None:
    text = render.render(str(SOURCES), render.Settings(fused=fused, events=events))
    made = shadow.shadow_text(text, 77)
    lines = [line for line in made.split("\n") if line.startswith("BPF_TABLE")]
    assert len(lines) == len([spec for spec in chain_maps.maps(events=events) if spec.value]) + 1
    assert "ringbuf:" not in made
    assert not [line for line in lines if "lru" in line or "percpu" in line]
    assert any(
        line.startswith('BPF_TABLE_PINNED("hash", struct ct_key, struct ct_entry, ctt, 77, ')
        for line in lines
    )
    assert made.index("#undef BPF_TABLE_PINNED") < made.index(
        "BPF_TABLE_PINNED(", made.index("#line")
    )


def test_a_text_tells_its_slots_and_counters() -> None:
    text = render.render(str(SOURCES), render.Settings())
    assert shadow.enum_of(text, "SLOT") == chain_programs.SLOTS
    assert list(shadow.enum_of(text, "COUNT")) == list(chain_counters.COUNTERS)


def test_comments_are_no_part_of_the_layout() -> None:
    text = render.render(str(SOURCES), render.Settings())
    layout = shadow.layout_of(text)
    assert all(layout)
    assert (
        shadow.layout_of(text.replace("u32 created;", "u32   created; /* new words */\n")) == layout
    )
    assert shadow.layout_of(text.replace("u32 created;", "u32 made;")) != layout


def test_a_result_for_people() -> None:
    assert (
        str(Result("pass", None, (("tracked", 1), ("created", 2)))) == "pass, tracked, created +2"
    )
    assert str(Result("drop", b"x", ())) == "drop, not counted, the bytes are changed"


# ---------------------------------------------------------------- differences
def record(**fields: t.Any) -> dict[str, t.Any]:
    sides = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 1, "dport": 2, "packets": 3, "bytes": 4}
    return {
        "proto": "udp",
        "state": "NEW",
        "timeout": 30,
        "age": 1,
        "idle": 2,
        "orig": sides,
        "reply": {**sides, "packets": 0},
        **fields,
    }


def test_flows_that_differ() -> None:
    same, state, old, new = ("a", b"1"), ("a", b"2"), ("a", b"3"), ("a", b"4")
    left = {same: record(), state: record(), old: record()}
    right = {
        same: record(age=9, idle=9),
        state: record(state="REPLIED", timeout=7),
        new: record(icmp={"type": 8, "code": 0, "id": 5}),
    }
    assert [one[1:4] for one in replay.flow_differences(left, right, True)] == [
        ("udp 10.0.0.1:1 > 10.0.0.2:2", "NEW, 3 and 0 packets", "no such flow"),
        ("udp 10.0.0.1:1 > 10.0.0.2:2", "state NEW, timeout 30", "state REPLIED, timeout 7"),
        ("udp 10.0.0.1:1 > 10.0.0.2:2 type 8 code 0 id 5", "no such flow", "NEW, 3 and 0 packets"),
    ]
    assert replay.flow_differences(left, right, False)[1][2:4] == ("state NEW", "state REPLIED")
