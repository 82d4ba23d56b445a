# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock of the flow table, as its readers see it.

The chain stamps entries with jiffies, which cost it nothing; user space can not read jiffies. Jiffies advance in step with
CLOCK_MONOTONIC, so one pair (jiffies, CLOCK_MONOTONIC) taken at the same instant and kept in ``meta`` makes one out of the other,
whether or not packets arrive.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
import typing as t

from .errors import ConntrackError

_MASK32 = 0xFFFFFFFF
#: CLOCK_MONOTONIC_COARSE (include/uapi/linux/time.h); Python's time module does not name it.
_CLOCK_MONOTONIC_COARSE = 6
_NS = 1_000_000_000


def hz() -> int:
    """Return the kernel's jiffies a second: the coarse clock's resolution is one jiffy."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def jiffies_now(meta: t.Mapping[str, int], monotonic_ns: int | None = None, rate: int | None = None) -> int:
    """Return jiffies64 of this instant.

    :param meta: the chain's ``meta`` by name; ``jiffies`` and ``ktime_ns`` are the pair taken at one instant.
    :param monotonic_ns: CLOCK_MONOTONIC in ns; None reads it.
    :param rate: jiffies a second; None asks the kernel.
    :raises ConntrackError: when the chain has not stored the pair.
    """
    if not meta.get("jiffies"):
        raise ConntrackError("meta: the chain has not stored its clock (jiffies, ktime_ns). Run xdp_program again.")
    elapsed = (time.monotonic_ns() if monotonic_ns is None else monotonic_ns) - meta["ktime_ns"]
    return meta["jiffies"] + elapsed * (hz() if rate is None else rate) // _NS


def utc(seconds: float) -> str:
    """Return an instant of the calendar, seconds since 1970, as it is shown.

    >>> utc(0)
    '1970-01-01T00:00:00Z'
    """
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclasses.dataclass(frozen=True)
class Clock:
    """One instant at which a table is read.

    :ivar jiffies: jiffies64.
    :ivar hz: jiffies a second.
    :ivar monotonic_ns: CLOCK_MONOTONIC in ns.
    """

    jiffies: int
    hz: int
    monotonic_ns: int

    @classmethod
    def read(cls, meta: t.Mapping[str, int]) -> Clock:
        """Return this instant; see :func:`jiffies_now` for the errors."""
        now, rate = time.monotonic_ns(), hz()
        return cls(jiffies_now(meta, now, rate), rate, now)

    def left(self, expires: int) -> int:
        """Return the jiffies until ``expires`` (low 32 bits of jiffies64): zero or less once it is over."""
        return ((expires - self.jiffies + 0x80000000) & _MASK32) - 0x80000000

    def idle(self, last_seen: int) -> int:
        """Return the whole seconds since ``last_seen`` (low 32 bits of jiffies64); 0 for a packet later than this instant."""
        return max(-self.left(last_seen), 0) // self.hz

    def age(self, created: int) -> int:
        """Return the whole seconds since ``created`` (jiffies64 in seconds); 0 for a flow made later than this instant."""
        return max(self.jiffies // self.hz - created, 0)
