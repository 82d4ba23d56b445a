# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What both trackers are asked for after each frame, in one form."""

from __future__ import annotations

import dataclasses
import typing as t

#: (src, dst, sport, dport) or, for ICMP queries, (src, dst, type, code, id), or (src, dst).
Tuple = tuple[t.Any, ...]


@dataclasses.dataclass(frozen=True)
class Flow:
    """One connection as a tracker shows it; packets and bytes are (orig, reply); ``timeout`` is in
    whole seconds left.
    """

    family: str
    proto: str
    orig: Tuple
    reply: Tuple
    state: str
    assured: bool
    seen_reply: bool
    packets: tuple[int, int]
    bytes: tuple[int, int]
    timeout: int

    def __str__(self) -> str:
        marks = ("" if self.seen_reply else " [UNREPLIED]") + (" [ASSURED]" if self.assured else "")
        ends = " ".join(map(str, self.orig))
        return (
            f"{self.family} {self.proto} {self.timeout}s {self.state}{marks} orig ({ends}) packets"
            f" {self.packets} bytes {self.bytes}"
        )


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a tracker made of one frame, and its table after it.

    :ivar outcome: ``tracked``, ``related``, ``invalid``, ``ignored``, ``untracked``, or ``unseen``
        where the frame never reached the tracker.
    :ivar flows: the table, by (proto, orig).
    :ivar detail: the tracker's own word for the outcome.
    """

    outcome: str
    flows: dict[tuple[str, Tuple], Flow]
    detail: str = ""
