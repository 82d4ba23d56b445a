# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures in every form that is read, and what is said of those that are not."""

from __future__ import annotations

import io
import struct

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import capture
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay.capture import Packet

FRAMES = [b"\x02" * 60, b"\x04" * 61]
SECOND = 1_000_000_000


def pcap(
    order: str = "<",
    magic: int = 0xA1B2C3D4,
    link: int = 1,
    version: tuple[int, int] = (2, 4),
    length: int | None = None,
) -> bytes:
    """Two frames, a second and 5 units after 1970, and two seconds and 5 units."""
    head = struct.pack(f"{order}IHHIIII", magic, *version, 0, 0, 262144, link)
    return head + b"".join(
        struct.pack(f"{order}IIII", at, 5, len(frame), len(frame) if length is None else length)
        + frame
        for at, frame in enumerate(FRAMES, 1)
    )


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", 12 + len(body))
    return struct.pack(f"{order}I", kind) + size + body + size


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int = 1, snap: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(f"{order}HHI", link, 0, snap) + options)


def enhanced(order: str, number: int, at: int, frame: bytes, length: int | None = None) -> bytes:
    fixed = struct.pack(
        f"{order}IIIII", number, at >> 32, at & 0xFFFFFFFF, len(frame), length or len(frame)
    )
    return block(
        order, 6, fixed + frame + bytes(-len(frame) % 4) + struct.pack(f"{order}HHI", 2, 4, 7)
    )


def simple(order: str, frame: bytes, length: int | None = None) -> bytes:
    return block(order, 3, struct.pack(f"{order}I", length or len(frame)) + frame)


def read(data: bytes, limit: int = 100) -> list[Packet]:
    return capture.read(io.BytesIO(data), "x.pcap", limit)


def refusal(data: bytes) -> str:
    with pytest.raises(ConntrackError) as raised:
        read(data)
    return raised.value.message


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap(order: str, magic: int, unit: int) -> None:
    assert read(pcap(order, magic)) == [
        Packet(FRAMES[0], SECOND + 5 * unit),
        Packet(FRAMES[1], 2 * SECOND + 5 * unit),
    ]


def test_a_frame_that_the_capture_cut() -> None:
    assert [packet.cut for packet in read(pcap(length=1500))] == [True, True]


def test_bits_beside_the_link_type_do_not_matter() -> None:
    assert len(read(pcap(link=1 | 0x24000000))) == 2


def test_no_more_is_read_than_is_wanted() -> None:
    assert read(pcap() + b"damaged", 2) == read(pcap())
    assert read(pcap(), 1) == read(pcap())[:1]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(order: str) -> None:
    nanoseconds = struct.pack(f"{order}HHBxxxHH", 9, 1, 9, 0, 0)
    halves = struct.pack(f"{order}HH4sHHBxxx", 2, 4, b"eth0", 9, 1, 0x81)
    data = (
        section(order)
        + block(order, 5, b"statistics")
        + interface(order)
        + interface(order, options=nanoseconds)
        + enhanced(order, 0, 3_000_000, FRAMES[0])
        + enhanced(order, 1, 5 * SECOND + 1, FRAMES[1], 1500)
        + simple(order, FRAMES[0])
    )
    first = [
        Packet(FRAMES[0], 3 * SECOND),
        Packet(FRAMES[1], 5 * SECOND + 1, True),
        Packet(FRAMES[0], 0),
    ]
    assert read(data) == first
    again = section("<") + interface("<", snap=32, options=b"") + simple("<", FRAMES[0][:32], 60)
    assert read(data + again) == [
        *first,
        Packet(FRAMES[0][:32], 0, True),
    ], "a new section has interfaces of its own"
    assert read(
        section(order) + interface(order, options=halves) + enhanced(order, 0, 3, FRAMES[0])
    ) == [Packet(FRAMES[0], 3 * SECOND // 2)]


GOOD = section("<") + interface("<")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at byte 0: nothing is not the start of a pcap or pcapng file"),
        (b"\x1f\x8b\x08\x00gzip", "at byte 0: 1f8b0800 is not the start"),
        (pcap()[:24], "at byte 24: the capture holds no frame"),
        (pcap()[:20], "at byte 4: the file ends within the file header, after 16 of 20 bytes"),
        (pcap()[:27], "at byte 24: the file ends within a record's header, after 3 of 16 bytes"),
        (pcap()[:30], "at byte 28: the file ends within a record's header, after 2 of 12 bytes"),
        (pcap()[:50], "at byte 40: the file ends within a frame, after 10 of 60 bytes"),
        (pcap(version=(1, 2)), "at byte 4: the file format is version 1.2, known is 2.4"),
        (
            pcap(link=113),
            (
                "the link type is 113, only Ethernet (1) can be replayed: capture on one Ethernet"
                " interface, not on any"
            ),
        ),
        (
            pcap()[:32] + struct.pack("<II", 1 << 30, 1 << 30),
            "at byte 24: a frame of 1073741824 bytes, the longest possible has 262144",
        ),
        (GOOD, "the capture holds no frame"),
        (section("<") + interface("<", 276), "the link type is 276, only Ethernet (1)"),
        (GOOD[:20], "at byte 12: the file ends within a block, after 8 of 16 bytes"),
        (GOOD + b"\1\0", "at byte 48: the file ends within a block's header, after 2 of 8 bytes"),
        (GOOD[:8] + b"abcd" + GOOD[12:], "at byte 8: 61626364 is no byte order"),
        (
            GOOD + enhanced("<", 3, 0, FRAMES[0]),
            (
                "at byte 48: a block of type 6 that is cut short, or of an interface that was not"
                " described"
            ),
        ),
        (section("<") + simple("<", FRAMES[0]), "at byte 28: a block of type 3 that is cut short"),
        (
            GOOD + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 100, 100)),
            "at byte 48: a block of type 6",
        ),
        (GOOD + block("<", 6, b"1234"), "at byte 48: a block of type 6"),
        (GOOD + b"\6\0\0\0\x07\0\0\0", "at byte 52: a block of 7 bytes: the file is damaged"),
        (
            GOOD + b"\6\0\0\0\0\0\0\x7f",
            "at byte 52: a block of 2130706432 bytes: the file is damaged",
        ),
    ],
)
def test_what_can_not_be_read(data: bytes, message: str) -> None:
    told = refusal(data)
    assert told.startswith("replay.frames: x.pcap: at byte "), told
    assert message in told


def test_a_capture_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "LONGEST_CAPTURE", 100)
    assert "the first 2 frames are more than 0 MiB: give a replay.limit of at most 1" in refusal(
        pcap()
    )
    assert read(pcap(), 1) == read(pcap(), 1)


def test_what_is_written_can_be_read() -> None:
    packets = [Packet(FRAMES[0], 5 * SECOND + 7), Packet(FRAMES[1], 6 * SECOND, True)]
    assert read(capture.write(packets)) == packets
