# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many examples of random traffic are tried: all in make test-long, fewer in make test."""

from __future__ import annotations

import os


def examples(number: int) -> int:
    """Return how many of so many examples are tried in this run."""
    return number if os.environ.get("RANDOM_TRAFFIC") == "all" else number // 3
