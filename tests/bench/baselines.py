# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of baselines.c, compiled with BCC against the collection's own stub headers."""

from __future__ import annotations

import os
import struct

import chain_under_test
import harness
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_constants

SOURCE = harness.ROOT / "tests/bench/baselines.c"

MODEL = (
    "model_0_entry",
    "model_1_ethernet",
    "model_2_ipv4",
    "model_3_tcp",
    "model_4_track",
    "model_5_end",
)
PROGRAMS = (
    "noop",
    "floor_hit",
    "floor_insert",
    "floor_hit6",
    "floor_insert6",
    "drive_new",
    "drive_new6",
    "drive_random",
    *MODEL,
)


class Baselines:
    """Loaded programs by name, and the floor's flow tables.

    :param entries: size of the floor's IPv4 table.
    :param entries6: size of its IPv6 table.
    :param flows: how many flows ``drive_random`` walks through; a power of two.
    """

    def __init__(self, entries: int, entries6: int, flows: int) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(chain_under_test.STUB)
        import bcc  # maps 110 MB of LLVM: only when this section runs

        self._bcc = bcc.BPF(
            src_file=str(SOURCE),
            cflags=[
                *build_bcc.flags(),
                f"-DENTRIES={entries}",
                f"-DENTRIES6={entries6}",
                f"-DFLOWS={flows}",
            ],
        )
        self.programs: dict[str, int] = {
            name: self._bcc.load_func(name, bcc.BPF.XDP, attach_type=bpf_constants.ATTACH_XDP).fd
            for name in PROGRAMS
        }
        self.flows: int = self._bcc["flows"].map_fd
        self.model: int = self._bcc["model"].map_fd
        for slot, name in enumerate(MODEL):
            self._call_slot("model_jt", slot, self.programs[name])

    def drive(self, target: int) -> None:
        """Let the ``drive_*`` programs call ``target``."""
        self._call_slot("next", 0, target)

    def _call_slot(self, table: str, slot: int, program: int) -> None:
        bpf.map_update(self._bcc[table].map_fd, struct.pack("=I", slot), struct.pack("=i", program))

    def close(self) -> None:
        self._bcc.cleanup()
