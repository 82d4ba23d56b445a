# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module ct_merge does, from its parameters to its result."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import typing as t

from ..core import files
from ..core.errors import bad_value
from . import collector
from . import merge as flow_merge
from . import merge_output as flow_merge_output

OPTIONS: dict[str, dict[str, t.Any]] = {
    "sources": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "host": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "zone": {"type": "str", "default": ""},
            "networks": {"type": "list", "elements": "str", "default": []},
        },
    },
    "unread": {"type": "dict", "default": {}},
    "dest": {"type": "path"},
    "format": {"type": "str", "choices": list(flow_merge_output.FORMS)},
    "view": {"type": "str", "choices": list(flow_merge_output.VIEWS), "default": "flows"},
    "limit": {"type": "int", "default": flow_merge.LIMIT},
    "collector": {"type": "str"},
    "mode": {"type": "str", "default": "0640"},
}


def report(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Merge the flows of hosts.

    :param params: the options of OPTIONS.
    :return: the module's result.
    :raises ConntrackError: for a bad option, when no host can be read, when the file can not be
        written, when the collector does not take it.
    """
    sources = [
        flow_merge.parse_source(number, given) for number, given in enumerate(params["sources"])
    ]
    dest, mode, limit = params["dest"], files.file_mode(params["mode"]), params["limit"]
    if limit < 0:
        raise bad_value("limit", limit, "give 0 or more")
    address = collector.parse(params["collector"]) if params["collector"] else None
    output = (
        flow_merge_output.output(
            flow_merge_output.form_of(dest, params["format"]), params["view"], time.time()
        )
        if dest
        else None
    )
    if dest:
        files.check_dest(dest)
    lines = flow_merge_output.JsonLines(params["view"])
    with contextlib.ExitStack() as stack:
        sender = (
            stack.enter_context(collector.connected(address))
            if address and not check_mode
            else None
        )
        file = stack.enter_context(files.replacing(dest, mode, dry=check_mode)) if dest else None
        merged = flow_merge.merge(
            sources,
            os.path.dirname(dest) if dest else tempfile.gettempdir(),
            output,
            file.write if file else None,
            limit,
            (lambda some: sender.send(list(lines.lines(some)))) if sender else None,
            {str(host): str(why) for host, why in params["unread"].items()},
        )
    result: dict[str, t.Any] = {
        "changed": bool(file and file.changed),
        "hosts": merged.flows,
        "unread": merged.unread,
        "flows": sum(merged.flows.values()),
        **{
            name: getattr(merged, name)
            for name in ("connections", "joined", "packets", "bytes", "top", "paths", "path_count")
        },
    }
    if dest:
        result["dest"] = dest
    if address:
        result["sent"] = sender.sent if sender else 0
    return result
