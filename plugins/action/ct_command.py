# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of ct_command: say what the command is made of, and send that where a file
is to be made of it.
"""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from ansible_collections.ebpf.conntrack.plugins.plugin_utils import transfer

#: The module's options that only this action fills in.
FILLED_IN = ("digest", "content")
#: What the module returns where a file is to be made, with the directories as they are on the
#: target.
WANTED = "content_wanted"


class ActionModule(ActionBase):
    """Look on the target; make it there of what is read here."""

    _requires_connection = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the module, and once more where it needs the content."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        try:
            for name in FILLED_IN:
                if name in args:
                    raise ConntrackError(f"{name}: it is filled in and can not be given.")
            content = ct_content.content(
                str(args.get("pin_root") or bpffs.STANDARD),
                str(args.get("state_dir") or bpffs.STATE_DIR),
            )
            answer = self._run({**args, "digest": content.digest}, task_vars)
            wanted = answer.pop(WANTED, None)
            if wanted:
                content = ct_content.content(**wanted)
                path = transfer.send(self, "content", ct_archive.pack(content))
                answer = self._run({**args, "digest": content.digest, "content": path}, task_vars)
        except ConntrackError as exc:
            return {**result, "failed": True, "msg": exc.message, **exc.facts}
        result.update(answer)
        for name in FILLED_IN:
            result.get("invocation", {}).get("module_args", {}).pop(name, None)
        return result

    def _run(self, args: dict[str, t.Any], task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        answer: dict[str, t.Any] = self._execute_module(
            module_name="ebpf.conntrack.ct_command", module_args=args, task_vars=task_vars
        )
        return answer
