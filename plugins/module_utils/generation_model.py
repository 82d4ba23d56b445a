# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What generations are described by: what is wanted, what is there."""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from . import bpf, chain
from .errors import bad_value

#: Seconds. A jiffies count must fit 31 bits at the highest tick rate, 1000 Hz.
_TIMEOUT_RANGE = (1, (1 << 31) // 1000 - 1)
_KNOB_RANGES = {"tcp_loose": (0, 1), "tcp_be_liberal": (0, 1), "tcp_ignore_invalid_rst": (0, 1), "tcp_max_retrans": (1, 255)}


@dataclasses.dataclass(frozen=True)
class Want:
    """The wanted chain.

    :ivar text: the rendered C, with MAP_DIR for the directory of the maps' pins.
    :ivar headers: the stub tree that it is compiled with.
    :ivar table_size: entries of the IPv4 flow table.
    :ivar table_size6: entries of the IPv6 flow table.
    :ivar timeouts: seconds by name of chain.TIMEOUTS; what is missing has the kernel's default.
    :ivar knobs: values by name of chain.KNOBS; likewise.
    """

    text: str
    headers: t.Mapping[str, str]
    table_size: int
    timeouts: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    knobs: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    table_size6: int = chain.TABLE_SIZE

    @property
    def digest(self) -> str:
        """128 bits, in hex, of what is compiled."""
        source = hashlib.sha256(self.text.encode())
        for name in sorted(self.headers):
            source.update(f"\0{name}\0{self.headers[name]}".encode())
        return source.hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Have:
    """What is there.

    :ivar generation: number of the active generation; None where none is.
    :ivar digest: of the active generation's source.
    :ivar layout: version of its maps' layout.
    :ivar settings: bytes of its settings.
    :ivar programs: by slot, those that are pinned.
    :ivar maps: by name.
    :ivar faults: what keeps the active generation from working, for people.
    :ivar leftovers: names below ``gen`` that are not the active generation.
    :ivar links: the pinned bpf_links by pin name, with the hook each one's program serves (None where it can not be told).
    :ivar no_paths: those of the seed's paths that are missing.
    """

    generation: int | None = None
    digest: str = ""
    layout: int = 0
    settings: bytes = b""
    programs: t.Mapping[int, bpf.ProgInfo] = dataclasses.field(default_factory=dict)
    maps: t.Mapping[str, bpf.MapInfo] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    links: t.Mapping[str, tuple[bpf.LinkInfo, str | None]] = dataclasses.field(default_factory=dict)
    no_paths: tuple[str, ...] = ()


def check(want: Want) -> None:
    """:raises ConntrackError: naming the first setting that is unknown or out of range."""
    low, high = _TIMEOUT_RANGE
    for name, value in want.timeouts.items():
        if name not in chain.TIMEOUTS:
            raise bad_value("timeouts", name, f"known are {', '.join(chain.TIMEOUTS)}")
        if not low <= value <= high:
            raise bad_value(f"timeouts.{name}", value, f"give {low} to {high} seconds")
    for name, value in want.knobs.items():
        if name not in chain.KNOBS:
            raise bad_value("settings", name, f"known are {', '.join(chain.KNOBS)}")
        low, high = _KNOB_RANGES[name]
        if not low <= value <= high:
            raise bad_value(f"settings.{name}", value, f"give {low} to {high}")
