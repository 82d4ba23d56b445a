# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of xdp_object: read the sources, render them, and send the text along, with
what clang reads in front of it.
"""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.ebpf.conntrack.plugins.action.xdp_program import (
    RENDERED,
    SOURCES,
    prelude_of,
    rendered,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.build.clang import PRELUDE
from ansible_collections.ebpf.conntrack.plugins.module_utils.build.render import pack, unpack
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError


def packed(args: t.Mapping[str, t.Any], find: t.Callable[[str], str]) -> dict[str, t.Any]:
    """Return the module's arguments for a task's.

    :param find: makes a path of the controller absolute.
    :raises ConntrackError: where the sources or what is compiled into them are no good.
    """
    for name in ("state", "table_size", "table_size6", "half_open_size", "half_open_size6"):
        if name in args:
            raise ConntrackError(
                f"{name}: it is no option of xdp_object: an object is the same for all of its"
                " values."
            )
    whole = rendered(args, find)
    text, headers = unpack(whole[RENDERED])
    prelude = prelude_of(find(str(args["src"])) if args.get("src") else SOURCES)
    return {**whole, RENDERED: pack(text, {**headers, PRELUDE: prelude})}


class ActionModule(ActionBase):
    """Render on the controller, compile on the build host."""

    _requires_connection = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the module with the rendered text in place of the source's path."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            args = packed(self._task.args, self._loader.path_dwim)
        except ConntrackError as exc:
            return {**result, "failed": True, "msg": exc.message, **exc.facts}
        result.update(
            self._execute_module(
                module_name="ebpf.conntrack.xdp_object", module_args=args, task_vars=task_vars
            )
        )
        # nobody wants to read that
        result.get("invocation", {}).get("module_args", {}).pop(RENDERED, None)
        return result
