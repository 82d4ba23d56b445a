# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module ct_handoff does, from its parameters to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ..core import files, lock
from ..core.errors import bad_value
from ..flows import filter as flow_filter
from ..flows import report as flow_report
from ..flows import table as flow_table
from ..kernel import bpffs
from . import stream as handoff

OPTIONS: dict[str, dict[str, t.Any]] = {
    **flow_report.PIN_ROOT_OPTION,
    **lock.OPTION,
    **flow_report.FILTER_OPTIONS,
    "export_to": {"type": "path"},
    "import_from": {"type": "path"},
    "on_conflict": {
        "type": "str",
        "choices": list(handoff.CONFLICTS),
        "default": handoff.CONFLICTS[0],
    },
    "mode": {"type": "str", "default": "0600"},
}


def run(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Export or import flows.

    :param params: the options of OPTIONS, one of ``export_to`` and ``import_from`` among them.
    :return: the module's result.
    :raises ConntrackError: for a bad option, a missing chain, a file that can not be written, or is
        no good.
    """
    words = {
        word: params[word] for word in flow_filter.FILTER_WORDS if params.get(word) is not None
    }
    filters = flow_filter.parse_filters(words)
    bpffs.check(params["pin_root"])
    if params["export_to"]:
        return _export(params, filters, check_mode)
    if words:
        name, value = next(iter(words.items()))
        raise bad_value(name, value, "flows are chosen when they are exported; leave it out")
    return _import(params, check_mode)


def _export(
    params: t.Mapping[str, t.Any], filters: flow_filter.Filters, check_mode: bool
) -> dict[str, t.Any]:
    mode = files.file_mode(params["mode"])
    files.check_dest(params["export_to"], "export_to")
    with (
        flow_table.FlowTables(params["pin_root"]) as tables,
        files.replacing(params["export_to"], mode, dry=check_mode) as file,
    ):
        count = handoff.export(tables, filters, file.write)
    return {"changed": True, "count": count, "export_to": params["export_to"]}


def _import(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(params["import_from"], "rb"))
        except OSError as exc:
            raise bad_value(
                "import_from",
                params["import_from"],
                f"give a file that was exported: {exc.strerror}",
            ) from None
        reader = stack.enter_context(handoff.Reader(file, params["import_from"]))
        opened = (
            flow_table.FlowTables(params["pin_root"])
            if check_mode
            else flow_table.writing(params["pin_root"], params["lock_timeout"])
        )
        with opened as tables:
            done = handoff.take(tables, reader, params["on_conflict"], dry=check_mode)
    counts = dataclasses.asdict(done)
    result = {
        "changed": bool(done.imported or done.replaced),
        "count": counts.pop("read"),
        **counts,
        "host": reader.header["host"],
    }
    if done.no_room:
        result["warnings"] = [
            f"{done.no_room} flows were left out: the tables have no room for them. Raise"
            " table_size, or export fewer (assured: true)."
        ]
    return result
