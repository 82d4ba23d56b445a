# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: where programs, maps and links are pinned."""

from __future__ import annotations


class ModuleDocFragment:
    """The option C(pin_root)."""

    DOCUMENTATION = r"""
options:
  pin_root:
    description:
      - The directory under which programs, maps and links are pinned.
      - It lies on a BPF file system, which is mounted there when it is not, with mode V(0700),
        C(nosuid), C(nodev) and C(noexec).
      - It is made of letters, digits and V(/._-+@:=,~).
      - What lies there is refused where it is another user's than root, or where others may write
        to it.
      - All that the collection pins is in C(ebpf_conntrack) below it; C(prog) and C(map) beside
        that lead to the active generation.
    type: path
    default: /sys/fs/bpf
"""
