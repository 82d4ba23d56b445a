# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What action plugins send to a target besides their module's arguments."""

from __future__ import annotations

from ansible.plugins.action import ActionBase


def send(action: ActionBase, name: str, data: bytes) -> str:
    """Put a file into the task's directory on the target, which goes with the task; return its
    path.

    For what is too long for a module's arguments, see render.pack().
    """
    directory = action._connection._shell.tmpdir or action._make_tmp_path()
    path: str = action._connection._shell.join_path(directory, name)
    action._transfer_data(path, data)
    action._fixup_perms2((directory, path))
    return path
