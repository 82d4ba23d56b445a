# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pin two generations of programs that pass every frame, as stand-ins for the chain; or make one of
them the active one; or remove them.

Usage: stand_in.py COLLECTIONS_PATH PIN_ROOT (create | activate N | remove)
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, sys.argv[1])

from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.programs import HOOKS, SLOTS
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpffs,
    bpffs_mount,
    pins,
)

PATHS = bpffs.Paths(sys.argv[2])


def create() -> None:
    bpffs_mount.ensure_mounted(PATHS.pin_root)
    for generation in (1, 2):
        os.makedirs(f"{PATHS.gen_dir(generation)}/prog")
        for hook in HOOKS:
            with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), hook)) as fd:
                bpf.obj_pin(fd, f"{PATHS.gen_dir(generation)}/prog/xdp_{SLOTS[hook]}")
    activate(1)
    for path, target in PATHS.seed_links().items():
        pins.swap_symlink(target, path)


def activate(generation: int) -> None:
    pins.swap_symlink(f"gen/{generation}", PATHS.active)


def remove() -> None:
    for directory, below, names in os.walk(PATHS.pin_root, topdown=False):
        for name in names + below:
            path = os.path.join(directory, name)
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.unlink(path)
    bpffs_mount.release(PATHS.pin_root)


if __name__ == "__main__":
    {"create": create, "activate": lambda: activate(int(sys.argv[4])), "remove": remove}[
        sys.argv[3]
    ]()
