# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rate of the kernel's clock, which the chain stamps its entries with."""

from __future__ import annotations

import time

#: CLOCK_MONOTONIC_COARSE (include/uapi/linux/time.h); Python's time module does not name it.
_CLOCK_MONOTONIC_COARSE = 6


def hz() -> int:
    """Return the kernel's jiffies a second: the coarse clock's resolution is one jiffy."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))
