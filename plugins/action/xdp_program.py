# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of xdp_program: read the sources, render them, send the text along."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.ebpf.conntrack.plugins.module_utils.errors import ConntrackError, bad_value
from ansible_collections.ebpf.conntrack.plugins.module_utils.render import Settings, read_headers, render

#: The chain that comes with the collection.
SOURCES = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "files", "bpf")


def whole_number(field: str, value: t.Any) -> int:
    """Return an option as an int, as the module's own argument spec would.

    :raises ConntrackError: where it is none.
    """
    try:
        return int(str(value))
    except ValueError:
        raise bad_value(field, value, "give a whole number") from None


def settings_of(args: t.Mapping[str, t.Any]) -> Settings:
    """Return what is compiled in, of a task's arguments.

    :raises ConntrackError: where one has not its type.
    """
    given: dict[str, t.Any] = {name: whole_number(name, args[name]) for name in ("table_size", "table_size6") if args.get(name) is not None}
    if args.get("fused") is not None:
        try:
            given["fused"] = boolean(args["fused"])
        except TypeError:
            raise bad_value("fused", args["fused"], "give true or false") from None
    if args.get("checksum") is not None:
        given["checksum"] = "off" if args["checksum"] is False else str(args["checksum"])  # YAML takes a bare off for false
    return Settings(**given)


class ActionModule(ActionBase):
    """Render on the controller, load on the target."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run the module with the rendered text in place of the source's path."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        for internal in ("text", "headers"):
            if internal in args:
                raise AnsibleActionFail(f"{internal}: is filled in from src and can not be given.")
        if args.get("state", "present") == "present":
            try:
                settings = settings_of(args)
                source = self._loader.path_dwim(args["src"]) if args.get("src") else SOURCES
                args["text"] = render(source, settings)
                args["headers"] = read_headers(source if os.path.isdir(os.path.join(source, "stub")) else SOURCES)
            except ConntrackError as exc:
                raise AnsibleActionFail(exc.message) from exc
        result.update(self._execute_module(module_name="ebpf.conntrack.xdp_program", module_args=args, task_vars=task_vars))
        return result
