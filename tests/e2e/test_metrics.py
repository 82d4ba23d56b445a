# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics: held against the tables and the chain's counters, checked by promtool, scraped by a real
Prometheus, and shown by rules and dashboard.
"""

from __future__ import annotations
