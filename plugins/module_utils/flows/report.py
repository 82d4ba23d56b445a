# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules ct_flows and ct_flush do, from their parameters to their results."""

from __future__ import annotations

import typing as t

from ..core import files, lock, plan
from ..core.errors import ConntrackError, bad_value
from ..kernel import bpffs
from . import collect as flow_collect
from . import delete as flow_delete
from . import filter as flow_filter
from . import output as flow_output
from . import read as flow_read
from . import table as flow_table

Params = t.Mapping[str, t.Any]
Result = dict[str, t.Any]
#: The filters as module options; bad values are refused by flow_filter, which knows what is meant.
FILTER_OPTIONS: dict[str, dict[str, t.Any]] = {
    **{
        word: {"type": "list", "elements": "str"}
        for word in (
            "family",
            "proto",
            "state",
            "src",
            "dst",
            "sport",
            "dport",
            "addr",
            "port",
            "dir",
        )
    },
    "assured": {"type": "bool"},
    **{word: {"type": "int"} for word in ("min_bytes", "min_packets", "older_than", "idle_for")},
}
PIN_ROOT_OPTION: dict[str, dict[str, t.Any]] = {
    "pin_root": {"type": "path", "default": bpffs.STANDARD}
}
FLOWS_OPTIONS: dict[str, dict[str, t.Any]] = {
    **PIN_ROOT_OPTION,
    **FILTER_OPTIONS,
    "sort": {"type": "str"},
    "limit": {"type": "int"},
    "fields": {"type": "list", "elements": "str"},
    "group_by": {"type": "list", "elements": "str"},
    "summary": {"type": "bool", "default": True},
    "window": {"type": "bool", "default": False},
    "format": {
        "type": "str",
        "choices": [*flow_output.FORMATS, flow_output.STATS],
        "aliases": ["output"],
    },
    "extended": {"type": "bool", "default": False},
    "dest": {"type": "path"},
    "mode": {"type": "str", "default": "0640"},
}
FLUSH_OPTIONS: dict[str, dict[str, t.Any]] = {
    **PIN_ROOT_OPTION,
    **lock.OPTION,
    **FILTER_OPTIONS,
    "all": {"type": "bool", "default": False},
    "expired": {"type": "bool", "default": False},
    "limit": {"type": "int", "default": flow_filter.DEFAULT_LIMIT},
}


def _words(params: Params, words: t.Iterable[str]) -> dict[str, t.Any]:
    return {word: params[word] for word in words if params.get(word) is not None}


def report(params: Params, check_mode: bool) -> Result:
    """Read the flow tables; in check mode a chain that is not there yet is an empty table.

    :param params: the options of FLOWS_OPTIONS.
    :return: the module's result.
    :raises ConntrackError: for a bad option, a missing chain, a file that can not be written.
    """
    query = flow_filter.parse_query(_words(params, flow_filter.QUERY_WORDS))
    dest, form = params["dest"], params["format"]
    writer = _writer(params, query) if dest or form else None
    if params["extended"] and form != "conntrack":
        raise bad_value("extended", True, "it belongs to format: conntrack")
    mode = files.file_mode(params["mode"])
    if dest:
        files.check_dest(dest)
    bpffs.check(params["pin_root"])
    pieces: list[bytes] = []
    changed = False
    try:
        with flow_table.FlowTables(params["pin_root"]) as tables:
            if dest:
                with files.replacing(dest, mode, dry=check_mode) as file:
                    reading = _read(tables, params, query, writer, file.write)
                changed = file.changed
            else:
                reading = _read(tables, params, query, writer, pieces.append)
    except flow_table.NoChain as exc:
        if not check_mode:
            raise
        return _no_flows(params, writer, exc.message)
    result: Result = {
        "changed": changed,
        "flows": reading.flows,
        "count": reading.count,
        "truncated": reading.truncated,
    }
    if form and not dest and writer and query.limit is None:
        result["truncated"] = reading.group_count > len(reading.groups)  # the text has every flow
    if result["truncated"]:
        result["msg"] = _cut(reading, bool(dest))
    if reading.summary is not None:
        result["summary"] = reading.summary
    if query.group_by:
        result.update(groups=reading.groups, group_count=reading.group_count)
    if dest:
        result["dest"] = dest
    elif form:
        result["text"] = b"".join(pieces).decode()
    return _once(result, writer is not None, params["limit"] is not None)


def _no_flows(params: Params, writer: flow_output.Writer | None, why: str) -> Result:
    """Return the result of check mode where there is no chain yet."""
    empty: Result = {
        "changed": bool(params["dest"]),
        "flows": [],
        "count": 0,
        "truncated": False,
        "warnings": [f"{why} In check mode: no flows."],
    }
    if params["format"] and not params["dest"]:
        empty["text"] = (writer.begin() + writer.end()).decode() if writer else ""
    return _once(empty, writer is not None, params["limit"] is not None)


def _writer(params: Params, query: flow_filter.Query) -> flow_output.Writer | None:
    """Return what makes the flows' text; None for the form that shows no flows.

    :raises ConntrackError: when another option does not fit the format.
    """
    if params["format"] != flow_output.STATS:
        return flow_output.writer(
            params["format"] or "json", query.fields, params["extended"], params["window"]
        )
    if not params["summary"]:
        raise bad_value("summary", False, "the format stats is made of it; leave it out")
    return None


def _read(
    tables: flow_table.FlowTables,
    params: Params,
    query: flow_filter.Query,
    writer: flow_output.Writer | None,
    put: t.Callable[[bytes], object],
) -> flow_collect.Reading:
    """Read the tables and ``put`` their text, if any is wanted."""
    if writer or params["format"] != flow_output.STATS:
        return flow_read.read(tables, query, writer, put, params["summary"], params["window"])
    reading = flow_read.read(tables, query, window=params["window"])
    evicted = t.cast("dict[str, t.Any]", reading.summary)["counters"]["evicted"]
    put(flow_output.stats_lines(tables.cpu_counters(), evicted).encode())
    return reading


def _once(result: Result, as_text: bool, limited: bool) -> Result:
    """Return the result with each flow in it once, and with the facts: what it says about the
    table, under the module's name.

    Facts stay with the host for the rest of the play, so they hold flows only where ``limit`` says
    how many there may be.

    :param as_text: whether the text of the result, where it has one, is that of the flows, which
        need not be listed then.
    """
    facts = {
        name: result[name]
        for name in ("flows", "count", "truncated", "summary", "groups")
        if name in result and (name != "flows" or limited)
    }
    if as_text and "text" in result:
        result = {name: value for name, value in result.items() if name != "flows"}
    return {**result, "ansible_facts": {"ct_flows": facts}}


def _cut(reading: flow_collect.Reading, written: bool) -> str:
    """Return the words that say what is missing from the result."""
    if reading.group_count > len(reading.groups):
        what = f"{len(reading.groups)} of {reading.group_count} groups"
    elif reading.complete:
        what = f"{len(reading.flows)} of {reading.count} flows"
    else:
        what = f"{len(reading.flows)} flows of more"
    return f"The result lists {what}: raise limit or narrow the filters" + (
        "." if written else ", or have them written to dest."
    )


def _choice(params: Params) -> flow_delete.Choice:
    """Return what ct_flush is to delete; exactly one of filters, all and expired says it."""
    filters = flow_filter.parse_filters(_words(params, flow_filter.FILTER_WORDS))
    given = [
        name
        for name, there in (
            ("filters", bool(filters)),
            ("all", params["all"]),
            ("expired", params["expired"]),
        )
        if there
    ]
    if not given:
        raise ConntrackError(
            "Nothing says which flows are to go. Give a filter, or all: true for every flow, or"
            " expired: true for those whose time is over."
        )
    if len(given) > 1:
        raise ConntrackError(f"{' and '.join(given)} exclude each other. Give one of them.")
    if params["all"]:
        return flow_delete.EVERYTHING
    return (
        flow_delete.EXPIRED
        if params["expired"]
        else flow_delete.Choice("the flow matches the filters", filters)
    )


def flush(params: Params, check_mode: bool) -> Result:
    """Delete flows; in check mode a chain that is not there yet is an empty table.

    :param params: the options of FLUSH_OPTIONS.
    :return: the module's result.
    :raises ConntrackError: for a bad option or a missing chain.
    """
    choice = _choice(params)
    limit = flow_filter.parse_query({"limit": params["limit"]}).limit or 0
    bpffs.check(params["pin_root"])
    warnings = []
    try:
        opened = (
            flow_table.FlowTables(params["pin_root"])
            if check_mode
            else flow_table.writing(params["pin_root"], params["lock_timeout"])
        )
        with opened as tables:
            done = flow_delete.delete(tables, choice, limit, dry=check_mode)
    except flow_table.NoChain as exc:
        if not check_mode:
            raise
        done = flow_delete.Deletion()
        warnings.append(f"{exc.message} In check mode: no flows.")
    result: Result = {
        "changed": bool(done.count if check_mode else done.deleted),
        "count": done.count,
        "deleted": done.deleted,
        "live": done.count - done.expired if check_mode else done.deleted - done.deleted_expired,
        "expired": done.expired if check_mode else done.deleted_expired,
        "plan": plan.as_dicts(done.plan),
        "diff": plan.as_diff(done.plan),
        "truncated": done.count > len(done.plan),
    }
    if result["truncated"]:
        result["msg"] = (
            f"The plan lists {len(done.plan)} of {done.count} flows: raise limit to see more."
        )
    return {**result, "warnings": warnings} if warnings else result
