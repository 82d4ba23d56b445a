# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The events that the chain tells of flows."""

from __future__ import annotations

#: What is told of flows, where the chain has events: it begins, its state or standing changes, it
#: ends.
EVENT_KINDS = ("new", "update", "destroy")
#: Why a flow ends, by what the chain counts it as.
EVENT_REASONS = {
    "deleted_reset": "reset",
    "deleted_expired": "expired",
    "deleted_flushed": "flushed",
    "deleted_dropped": "dropped",
    "reopened": "reopened",
}
EVENT_WORDS = ("seq", "watched", *(f"lost_{kind}" for kind in EVENT_KINDS))
#: Bytes of the ring buffer: room for 21,845 events that are not read yet.
EVENTS_BYTES = 1 << 22
