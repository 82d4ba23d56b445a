# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The calendar, as it is shown."""

from __future__ import annotations

import datetime


def utc(seconds: float) -> str:
    """Return an instant of the calendar, seconds since 1970, as it is shown.

    >>> utc(0)
    '1970-01-01T00:00:00Z'
    """
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
