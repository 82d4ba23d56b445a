# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures: the frames in the files that tcpdump and Wireshark write.

Read are pcap in both byte orders with micro- or nanoseconds (draft-ietf-opsawg-pcap) and pcapng
(draft-ietf-opsawg-pcapng), written is pcap.
"""

from __future__ import annotations

import struct
import typing as t

from ...core.errors import ConntrackError

#: LINKTYPE_ETHERNET (https://www.tcpdump.org/linktypes.html), the one that XDP sees.
ETHERNET = 1
#: No capture holds longer frames: tcpdump's largest snapshot length.
LONGEST_FRAME = 262144
#: Bytes of frames that are taken from one capture, at most: they all are in memory at once.
LONGEST_CAPTURE = 64 << 20
#: The first four bytes of a pcap file, with the byte order that they tell, and ns in a unit of the
#: second half of its timestamps.
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_PCAP_VERSION = (2, 4)
#: pcapng: types of blocks, the byte-order magic in the section header, the option that tells the
#: timestamps' unit.
_SECTION, _INTERFACE, _SIMPLE_PACKET, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 3, 6
_BYTE_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_LONGEST_BLOCK = LONGEST_FRAME + 65536  # a frame and its options
_IF_TSRESOL = 9
_NS = 1_000_000_000


class Packet(t.NamedTuple):
    """One frame of a capture.

    :ivar data: its bytes.
    :ivar at_ns: when it was seen, in ns of the capture's clock.
    :ivar cut: whether the capture holds less of it than was on the wire (tcpdump -s).
    """

    data: bytes
    at_ns: int
    cut: bool = False


class _Reader:
    """Reads a file piece by piece, and knows where it stands."""

    def __init__(self, source: t.BinaryIO, name: str) -> None:
        self._source, self._name = source, name
        self.offset = 0

    def fault(self, what: str, offset: int | None = None) -> ConntrackError:
        """Return the error that says what is wrong with the file, and where."""
        return ConntrackError(
            f"replay.frames: {self._name}: at byte {self.offset if offset is None else offset}:"
            f" {what}."
        )

    def take(self, size: int, what: str) -> bytes:
        """Return the next ``size`` bytes.

        :raises ConntrackError: where the file ends before.
        """
        data = self._source.read(size)
        if len(data) < size:
            raise self.fault(f"the file ends within {what}, after {len(data)} of {size} bytes")
        self.offset += size
        return data

    def start(self) -> bytes:
        """Return the next four bytes, fewer at the end of the file."""
        data = self._source.read(4)
        self.offset += len(data)
        return data


def read(source: t.BinaryIO, name: str, limit: int) -> list[Packet]:
    """Return the first ``limit`` frames of a capture.

    :param name: of the file, for messages.
    :raises ConntrackError: with file, offset and fault, where it is no capture, one of something
        else than Ethernet, damaged, or too large.
    """
    reader = _Reader(source, name)
    magic = reader.start()
    if magic in _PCAP:
        packets = _pcap(reader, *_PCAP[magic])
    elif magic == _SECTION.to_bytes(4, "big"):  # the same in both byte orders
        packets = _pcapng(reader)
    else:
        raise reader.fault(
            f"{magic.hex() or 'nothing'} is not the start of a pcap or pcapng file", 0
        )
    found: list[Packet] = []
    total = 0
    for packet in packets:
        total += len(packet.data)
        if total > LONGEST_CAPTURE:
            raise reader.fault(
                f"the first {len(found) + 1} frames are more than {LONGEST_CAPTURE >> 20} MiB: give"
                f" a replay.limit of at most {len(found)}"
            )
        found.append(packet)
        if len(found) == limit:
            break
    if not found:
        raise reader.fault("the capture holds no frame")
    return found


def _check_link_type(reader: _Reader, number: int) -> None:
    if number != ETHERNET:
        raise reader.fault(
            f"the link type is {number}, only Ethernet ({ETHERNET}) can be replayed: capture on one"
            " Ethernet interface, not on any"
        )


def _pcap(reader: _Reader, order: str, unit: int) -> t.Iterator[Packet]:
    major, minor, dummy, dummy, dummy, network = struct.unpack(
        f"{order}HHIIII", reader.take(20, "the file header")
    )
    if (major, minor) != _PCAP_VERSION:
        raise reader.fault(
            f"the file format is version {major}.{minor}, known is"
            f" {'.'.join(map(str, _PCAP_VERSION))}",
            4,
        )
    _check_link_type(reader, network & 0xFFFF)  # above are bits about the frames' check sequences
    record = struct.Struct(f"{order}IIII")
    while True:
        start = reader.start()
        if not start:
            return
        at = reader.offset - len(start)
        if len(start) < 4:
            raise reader.fault(
                f"the file ends within a record's header, after {len(start)} of {record.size}"
                " bytes",
                at,
            )
        seconds, fraction, captured, length = record.unpack(
            start + reader.take(record.size - 4, "a record's header")
        )
        if captured > LONGEST_FRAME:
            raise reader.fault(
                f"a frame of {captured} bytes, the longest possible has {LONGEST_FRAME}: the file"
                " is damaged",
                at,
            )
        yield Packet(
            reader.take(captured, "a frame"), seconds * _NS + fraction * unit, captured < length
        )


def _pcapng(reader: _Reader) -> t.Iterator[Packet]:
    order = "<"
    interfaces: list[tuple[int, int]] = []  # snapshot length, units of its timestamps in a second
    start = _SECTION.to_bytes(4, "big")
    while start:
        at = reader.offset - len(start)
        if len(start) < 4:
            raise reader.fault(
                f"the file ends within a block's header, after {len(start)} of 8 bytes", at
            )
        length = reader.take(4, "a block's header")
        begun = 8
        if start == _SECTION.to_bytes(4, "big"):
            magic = reader.take(4, "a section's header")
            begun += 4
            if magic not in _BYTE_ORDERS:
                raise reader.fault(f"{magic.hex()} is no byte order", at + 8)
            order, interfaces = _BYTE_ORDERS[magic], []
        (kind,), (size,) = struct.unpack(f"{order}I", start), struct.unpack(f"{order}I", length)
        if size % 4 or not begun + 4 <= size <= _LONGEST_BLOCK:
            raise reader.fault(f"a block of {size} bytes: the file is damaged", at + 4)
        body = reader.take(size - begun, "a block")[:-4]  # the length stands behind it once more
        try:
            if kind == _INTERFACE:
                number, dummy, snapped = struct.unpack_from(f"{order}HHI", body)
                _check_link_type(reader, number)
                interfaces.append((snapped or LONGEST_FRAME, _resolution(order, body[8:])))
            elif kind == _ENHANCED_PACKET:
                interface, high, low, captured, original = struct.unpack_from(f"{order}IIIII", body)
                yield Packet(
                    _whole(body[20:], captured),
                    (high << 32 | low) * _NS // interfaces[interface][1],
                    captured < original,
                )
            elif kind == _SIMPLE_PACKET:
                (original,) = struct.unpack_from(f"{order}I", body)
                captured = min(original, interfaces[0][0])
                yield Packet(_whole(body[4:], captured), 0, captured < original)
        except (struct.error, IndexError, ValueError):
            raise reader.fault(
                f"a block of type {kind} that is cut short, or of an interface that was not"
                " described: the file is damaged",
                at,
            ) from None
        start = reader.start()


def _whole(data: bytes, size: int) -> bytes:
    if not size <= min(len(data), LONGEST_FRAME):
        raise ValueError(size)
    return data[:size]


def _resolution(order: str, options: bytes) -> int:
    """Return how many units of an interface's timestamps are a second: its option if_tsresol, or a
    million.
    """
    at = 0
    while at + 4 <= len(options):
        code, length = struct.unpack_from(f"{order}HH", options, at)
        if code == _IF_TSRESOL and length == 1 and at + 4 < len(options):
            power = options[at + 4]
            return 2 ** (power & 0x7F) if power & 0x80 else 10**power
        if not code:
            break
        at += 4 + (length + 3) // 4 * 4
    return 1_000_000


def write(packets: t.Iterable[Packet]) -> bytes:
    """Return a pcap file of whole frames, with nanoseconds."""
    head = struct.pack(
        "<4sHHIIII", b"\x4d\x3c\xb2\xa1", *_PCAP_VERSION, 0, 0, LONGEST_FRAME, ETHERNET
    )
    records = (
        struct.pack("<IIII", *divmod(at_ns, _NS), len(data), len(data) + cut) + data
        for data, at_ns, cut in packets
    )
    return head + b"".join(records)
