# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for what is to come true, in place of a pause that is too long on a quiet machine and too
short on a busy one.
"""

from __future__ import annotations

import collections.abc as c
import time

#: Longer than anything that goes well takes on a busy machine.
SECONDS = 20.0
_PAUSE = 0.005


def within(what: c.Callable[[], object], seconds: float = SECONDS) -> bool:
    """Wait until something is true; return whether it came to that. What is asserted afterwards
    says how it was instead.
    """
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
