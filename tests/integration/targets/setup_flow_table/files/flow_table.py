# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pins a flow table with known flows, as a chain of one generation would, and removes it again.

Usage: flow_table.py COLLECTIONS_ROOT PIN_ROOT create|remove
"""

from __future__ import annotations

import os
import struct
import sys
import time
import typing as t

sys.path.insert(0, sys.argv[1])

from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    bpffs,
    bpffs_mount,
    pins,
)
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

#: Any jiffies will do: what counts is the distance to CLOCK_MONOTONIC.
JIFFIES = 1 << 33
CTL = 12  # position of ctl in chain.ENTRY


def flows() -> list[tuple[bytes, bytes]]:
    """Return 5 TCP connections, 2 attempts at one, 3 UDP flows, a ping, and 2 flows whose time is
    over.
    """
    when: dict[str, t.Any] = {"now": JIFFIES, "hz": chain_jiffies.hz()}
    return [
        *(fakes.entry(sport=40000 + at, orig=(at + 1, 100 * (at + 1)), **when) for at in range(5)),
        *(
            fakes.entry(
                src="172.20.56.7",
                sport=50000 + at,
                ctl=1,
                orig=(1, 60),
                reply=(0, 0),
                left=110,
                **when,
            )
            for at in range(2)
        ),
        *(
            fakes.entry(sport=53000 + at, dport=53, proto=17, ctl=0, reply=(0, 0), left=600, **when)
            for at in range(3)
        ),
        fakes.entry(
            sport=77, dport=8 << 8, proto=1, ctl=chain_layout.CTL_SEEN_REPLY, left=600, **when
        ),
        *(
            fakes.entry(sport=1000 + at, proto=17, ctl=0, left=-5, idle=35, **when)
            for at in range(2)
        ),
    ]


def create(paths: bpffs.Paths) -> None:
    """Make the maps, fill and pin them."""
    bpffs_mount.ensure_mounted(paths.pin_root)
    directory = os.path.join(paths.gen_dir(1), "map")
    os.makedirs(directory)
    pins.swap_symlink("gen/1", paths.active)
    pins.swap_symlink(paths.seed_links()[paths.seed_map], paths.seed_map)
    rows = flows()
    for spec in chain_maps.maps(1024, 512, 1024, 512):
        if spec.kind not in ("hash", "lru_hash", "array", "percpu_array"):
            continue  # readers ask nothing of what holds programs or other maps
        with bpf.closing(
            bpf.map_create(
                bpf_constants.MAP_TYPES[spec.kind],
                spec.name,
                spec.key_size,
                spec.value_size,
                spec.entries or 1,
            )
        ) as fd:
            bpf.obj_pin(fd, os.path.join(directory, bpffs.encode(spec.name)))
            if spec.name == "meta":
                for name, value in (
                    ("jiffies", JIFFIES),
                    ("ktime_ns", time.monotonic_ns()),
                    ("layout", chain_layout.LAYOUT_VERSION),
                ):
                    bpf.map_update(
                        fd, struct.pack("=I", chain_maps.META[name]), struct.pack("=Q", value)
                    )
            elif spec.name == "stats":
                # four more than are there: evicted
                per_cpu = [len(rows) + 4] + [0] * (bpf.possible_cpus() - 1)
                bpf.map_update(
                    fd,
                    struct.pack("=I", chain_counters.COUNTERS.index("created")),
                    struct.pack(f"={len(per_cpu)}Q", *per_cpu),
                )
            elif spec.name == "settings":
                bpf.map_update(
                    fd,
                    struct.pack("=I", 0),
                    chain_settings.settings_value(
                        chain_jiffies.hz(), {"udp": 45}, {"tcp_loose": False}
                    ),
                )
            elif spec.name in ("ctt", "ctt_new"):
                for key, flow in rows:
                    if (bool(chain_layout.ENTRY.unpack(flow)[CTL] & chain_layout.CTL_ASSURED)) == (
                        spec.name == "ctt"
                    ):
                        bpf.map_update(fd, key, flow)


def remove(paths: bpffs.Paths) -> None:
    """Remove what create() made."""
    for directory, directories, files in os.walk(paths.pin_root, topdown=False):
        for name in files + [
            name for name in directories if os.path.islink(os.path.join(directory, name))
        ]:
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    bpffs_mount.release(paths.pin_root)


{"create": create, "remove": remove}[sys.argv[3]](bpffs.Paths(sys.argv[2]))
