# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: what every module of the collection promises."""

from __future__ import annotations


class ModuleDocFragment:
    """The attributes; a module adds C(details) where it differs."""

    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description:
      - Each group is called by the option that all of its modules have. In C(module_defaults),
        C(group/ebpf.conntrack.pin_root) sets O(ignore:pin_root) for all of them, and so on.
      - C(ebpf.conntrack.chain_form) has the options from O(ignore:checksum) to O(ignore:guests).
        C(ebpf.conntrack.all) is the same as C(ebpf.conntrack.pin_root).
    support: full
  async:
    description:
      - Supports being used with the C(async) keyword.
    support: full
  check_mode:
    description:
      - Can run in C(check_mode) and return the changes it would make, without making them.
    support: full
  diff_mode:
    description:
      - Returns details on what has changed, or would change in C(check_mode), when in diff mode.
    support: full
  idempotent:
    description:
      - When run twice in a row with the same arguments, the second run changes nothing.
    support: full
  platform:
    description:
      - Target operating systems this module works on.
    support: full
    platforms: linux
"""
