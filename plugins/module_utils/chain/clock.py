# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock of the flow table, as its readers see it.

The chain stamps entries with jiffies, which cost it nothing; user space can not read jiffies.
Jiffies advance in step with CLOCK_MONOTONIC, so one pair (jiffies, CLOCK_MONOTONIC) taken at the
same instant and kept in ``meta`` makes one out of the other, whether or not packets arrive.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ..core.errors import ConntrackError
from . import jiffies as chain_jiffies
from . import settings as chain_settings

_MASK32 = 0xFFFFFFFF
_NS = 1_000_000_000


def jiffies_now(
    meta: t.Mapping[str, int], monotonic_ns: int | None = None, rate: int | None = None
) -> int:
    """Return jiffies64 of this instant.

    :param meta: the chain's ``meta`` by name; ``jiffies`` and ``ktime_ns`` are the pair taken at
        one instant.
    :param monotonic_ns: CLOCK_MONOTONIC in ns; None reads it.
    :param rate: jiffies a second; None asks the kernel.
    :raises ConntrackError: when the chain has not stored the pair.
    """
    if not meta.get("jiffies"):
        raise ConntrackError(
            "meta: the chain has not stored its clock (jiffies, ktime_ns). Run xdp_program again."
        )
    elapsed = (time.monotonic_ns() if monotonic_ns is None else monotonic_ns) - meta["ktime_ns"]
    return meta["jiffies"] + elapsed * (chain_jiffies.hz() if rate is None else rate) // _NS


def over(expires: int, last_seen: int, now: int, rate: int) -> bool:
    """Return whether an entry's time is over, as entry_over() in files/bpf/lib/entry.h tells it.

    Its clocks are the low 32 bits of jiffies64. What seems to have more left than any timeout, or
    than its last packet gave it, was over long before, and the clock has gone round since. One that
    was over for a whole round, 2**32 jiffies, is taken for live again for as long as its last
    timeout was: more cannot be told from 32 bits.

    :param expires: the jiffy at which it ends, and ``last_seen`` that of its last packet.
    :param now: jiffies, 32 bits or 64, ``rate`` of them a second.

    >>> over(100, 90, 99, 1), over(100, 90, 100, 1), over(100, 90, 100 + (1 << 31), 1)
    (False, True, True)
    """
    left = (expires - now) & _MASK32
    return (
        not 0 < left <= chain_settings.LONGEST_TIMEOUT * rate
        or left > ((expires - last_seen) & _MASK32) + chain_settings.CLOCK_SLACK * rate
    )


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
        now, rate = time.monotonic_ns(), chain_jiffies.hz()
        return cls(jiffies_now(meta, now, rate), rate, now)

    def over(self, expires: int, last_seen: int) -> bool:
        """Return whether the time of an entry with these clocks is over; see :func:`over`."""
        return over(expires, last_seen, self.jiffies, self.hz)

    def left(self, instant: int) -> int:
        """Return the jiffies until an instant (low 32 bits of jiffies64) less than 2**31 jiffies
        away: zero or less once it has come.
        """
        return ((instant - self.jiffies + 0x80000000) & _MASK32) - 0x80000000

    def idle(self, last_seen: int) -> int:
        """Return the whole seconds since ``last_seen`` (low 32 bits of jiffies64); 0 for a packet
        later than this instant.
        """
        return max(-self.left(last_seen), 0) // self.hz

    def age(self, created: int) -> int:
        """Return the whole seconds since ``created`` (jiffies64 in seconds); 0 for a flow made
        later than this instant.
        """
        return max(self.jiffies // self.hz - created, 0)
