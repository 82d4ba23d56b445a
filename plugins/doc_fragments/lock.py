# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: how long a run waits for another one."""

from __future__ import annotations


class ModuleDocFragment:
    """The option C(lock_timeout)."""

    DOCUMENTATION = r"""
options:
  lock_timeout:
    description:
      - How many seconds to wait while another run changes the same objects. With V(0) there is no
        waiting.
      - Only a process of root can hold the lock, so nobody else keeps the module waiting.
      - When it is over, the module fails and names the process that holds the lock, its command
        line, and since when it runs.
    type: int
    default: 60
"""
