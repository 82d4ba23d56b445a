# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of BPF as the kernel has them (include/uapi/linux/bpf.h)."""

from __future__ import annotations

PROG_TYPE_XDP = 6
LINK_TYPE_XDP = 6
#: enum bpf_attach_type: BPF_XDP. Every program of the chain is loaded with it, as kernels since the
#: fix of CVE-2025-40123 demand.
ATTACH_XDP = 37
#: Flags: of map_update(), link_update(), prog_test_run() and programs.
BPF_ANY, BPF_NOEXIST = 0, 1
BPF_F_REPLACE = 4
BPF_F_TEST_XDP_LIVE_FRAMES = 2
BPF_F_XDP_HAS_FRAGS = 1 << 5
BPF_STATS_RUN_TIME = 0
OBJECT_NAME_BYTES = 15
#: enum bpf_map_type.
MAP_TYPES = {
    "hash": 1,
    "array": 2,
    "prog_array": 3,
    "percpu_hash": 5,
    "percpu_array": 6,
    "lru_hash": 9,
    "lru_percpu_hash": 10,
    "lpm_trie": 11,
    "array_of_maps": 12,
    "ringbuf": 27,
}
