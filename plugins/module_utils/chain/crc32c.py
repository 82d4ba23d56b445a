# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of CRC32c (RFC 9260, appendix A), which SCTP sums its packets with."""

from __future__ import annotations

#: Bytes that SCTP's checksum takes at a time, each with a table of its own.
CRC32C_SLICES = 4


def crc32c_tables() -> tuple[int, ...]:
    """Return what each byte does to SCTP's checksum (RFC 9260, appendix A), whose polynomial is
    0x1edc6f41, the lowest bit first.

    The first table is for a byte at the end, the next ones for a byte that one, two and three bytes
    follow.

    >>> [hex(number) for number in crc32c_tables()[1::256]]
    ['0xf26b8303', '0x13a29877', '0xa541927e', '0xdd45aab8']
    """
    single = []
    for byte in range(256):
        for dummy in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        single.append(byte)
    tables = [single]
    for dummy in range(1, CRC32C_SLICES):
        tables.append([crc >> 8 ^ single[crc & 0xFF] for crc in tables[-1]])
    return tuple(crc for table in tables for crc in table)


CRC32C_TABLES = crc32c_tables()
