# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of each IP family that the chain has a table for."""

from __future__ import annotations

from ansible_collections.ebpf.conntrack.plugins.module_utils import chain, flow

from . import frames

_TABLES = {spec.name for spec in chain.maps(16)}
PAIRS = {table.family: {"ipv4": frames.V4, "ipv6": frames.V6}[table.family] for table in flow.TABLES if table.name in _TABLES}
