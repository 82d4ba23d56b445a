# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift: what the inventory wants of a host, what its kernel runs, and what is pinned and written
down there, held against each other. Pure.
"""

from __future__ import annotations

import json
import typing as t

from ..core.printable import printable
from . import rollout

Vars = t.Mapping[str, t.Any]
Record = dict[str, t.Any]
#: The forms of a report.
FORMS = ("table", "json", "markdown")
COLUMNS = {
    "host": "HOST",
    "object": "OBJECT",
    "wanted": "WANTED",
    "kernel": "KERNEL",
    "disk": "ON DISK",
    "drift": "DRIFT",
    "why": "WHY",
}


def _record(
    host: str, what: str, wanted: t.Any, kernel: t.Any, disk: t.Any, why: t.Sequence[str] = ()
) -> Record:
    return {
        "host": host,
        "object": what,
        "wanted": wanted,
        "kernel": kernel,
        "disk": disk,
        "drift": bool(why),
        "why": "; ".join(why),
    }


def records_of(host: str, found: Vars) -> list[Record]:
    """Return what there is of one host, each with whether it drifted.

    :param found: its variables of rollout.NAMES, where the role xdp_ct ran in check mode.
    """
    looked = found.get("xdp_ct_preflight") or {}
    if looked.get("unreachable"):
        return [
            _record(
                host,
                "host",
                "reachable",
                None,
                None,
                [f"it can not be reached: {_line(looked.get('msg'))}"],
            )
        ]
    if not looked.get("chain"):
        why = (
            found.get("rollout_refused")
            or looked.get("msg")
            or "nothing can be asked of BPF, libbpf is missing"
        )
        return [_record(host, "host", "a chain", None, None, [_line(why)])]
    records = [
        _chain(host, found, looked),
        *_interfaces(host, found, looked),
        *_others(host, found),
    ]
    for one in looked["chain"]["faults"]:
        why = [one["detail"], *([f"repair: {one['repair']}"] if one.get("repair") else [])]
        records.append(_record(host, one["object"], "whole", one["fault"], None, why))
    if found.get("rollout_refused"):
        records.append(
            _record(host, "role", "to be possible", None, None, [_line(found["rollout_refused"])])
        )
    return records


def _not_understood(host: str, why: str) -> list[Record]:
    return [_record(host, "host", "an answer", None, None, [why])]


def _line(text: object) -> str:
    return printable(" ".join(str(text or "").split()))


def _steps(found: Vars, name: str) -> list[Vars]:
    return list((found.get(name) or {}).get("plan") or ())


def _describe_generation(number: int | None, digest: str | None) -> str:
    return "none" if number is None else f"{number} {(digest or '')[:8]}".strip()


def _chain(host: str, found: Vars, looked: Vars) -> Record:
    """Return the record of the generation: what would be loaded, what is, and what a reboot would
    bring back.
    """
    chain, disk = looked["chain"], looked["disk"]
    load = next(
        (step for step in _steps(found, "xdp_ct_did_load") if step["action"] == "load"), None
    )
    why = [str(load["reason"])] if load else []
    if (disk.get("generation"), disk.get("digest")) != (chain["generation"], chain["digest"]):
        why.append(
            "a reboot would bring back another one"
            if disk.get("generation") is not None
            else "a reboot would bring none back"
        )
    wanted = str(load["after"]).removeprefix("digest ")[:8] if load else (chain["digest"] or "")[:8]
    return _record(
        host,
        "chain",
        wanted or "a chain",
        _describe_generation(chain["generation"], chain["digest"]),
        _describe_generation(disk.get("generation"), disk.get("digest")),
        why,
    )


def _interfaces(host: str, found: Vars, looked: Vars) -> t.Iterator[Record]:
    def label(one: Vars) -> str:
        return one["name"] if one.get("netns") is None else f"{one['name']}@{one['netns']}"

    steps = {
        step["name"]: step for step in _steps(found, "xdp_ct_did_attach") if step["kind"] == "xdp"
    }
    wanted = {
        label(one): one for one in (found.get("xdp_ct_did_attach") or {}).get("interfaces") or ()
    }
    attached = {label(one): one for one in (looked.get("before") or {}).get("interfaces") or ()}
    seen = {label(one): one for one in looked["interfaces"]}
    disk = {label(one): one for one in looked["disk"].get("interfaces") or ()}
    for name in sorted({*wanted, *steps, *attached, *disk}):
        step, there = steps.get(name), attached.get(name)
        why = [str(step["reason"])] if step else []
        if name not in wanted and name not in steps:
            why.append("the inventory does not have it")
        if name in wanted and not step and name not in disk:
            why.append("a reboot would not bring it back")
        program = (
            (step["after"] or {}).get("program") if step else wanted.get(name, {}).get("program")
        )
        kernel = (
            f"{there['program']} {there['mode']}"
            if there
            else (seen.get(name) or {}).get("program") or "none"
        )
        kept = disk.get(name)
        yield _record(
            host, name, program or "none", kernel, kept["program"] if kept else "none", why
        )


def _settings(text: object) -> dict[str, str]:
    return dict(item.split("=", 1) for item in str(text or "").split(", ") if "=" in item)


def _others(host: str, found: Vars) -> t.Iterator[Record]:
    """Return the records of all else that the role would change; what comes and goes with a new
    generation goes without saying.
    """
    steps = _steps(found, "xdp_ct_did_load")
    new = any(step["action"] == "load" for step in steps)
    for step in () if new else steps:
        if step["kind"] == "map" and step["name"] == "settings":
            have, want = _settings(step["before"]), _settings(step["after"])
            for name in (name for name in want if want[name] != have.get(name)):
                yield _record(
                    host, f"setting {name}", want[name], have.get(name), None, [str(step["reason"])]
                )
        elif step["action"] not in ("load", "activate", "verify") and step["kind"] != "link":
            yield _record(
                host,
                f"{step['kind']} {step['name']}",
                step["after"],
                step["before"],
                None,
                [str(step["reason"])],
            )
    for name in ("xdp_ct_did_command", "xdp_ct_did_service"):
        for step in _steps(found, name):
            yield _record(
                host,
                f"{step['kind']} {step['name']}",
                step["after"],
                None,
                step["before"],
                [str(step["reason"])],
            )
    missing = (found.get("xdp_ct_missing") or {}).get("stdout_lines") or ()
    for package in missing:
        yield _record(host, f"package {package}", "installed", None, None, ["it is missing"])


def report(found: t.Mapping[str, Vars], form: str) -> dict[str, t.Any]:
    """Return the ``records`` of all hosts, the ``hosts`` that drifted, and the ``text`` in a form
    of FORMS.
    """
    records = [
        record
        for host, one in found.items()
        for record in rollout.understood(records_of, host, one, _not_understood)
    ]
    drifted = list(dict.fromkeys(record["host"] for record in records if record["drift"]))
    if form == "json":
        text = json.dumps({"hosts": drifted, "records": records}, indent=1) + "\n"
    else:
        shown = [{**record, "drift": "DRIFT" if record["drift"] else ""} for record in records]
        text = rollout.table(shown, COLUMNS, form)
    return {"records": records, "hosts": drifted, "text": text}


LEFT = {"host": "HOST", "left": "LEFT"}


def left(found: t.Mapping[str, Vars]) -> str:
    """Return as a table what is left of the collection on each host."""
    rows = [
        {"host": host, "left": rollout.understood(_left_on, host, one, lambda dummy, why: why)}
        for host, one in found.items()
    ]
    return rollout.table(rows, LEFT)


def _left_on(dummy_host: str, found: Vars) -> str:
    there = (found.get("xdp_ct_preflight") or {}).get("found")
    return "unknown" if there is None else ", ".join(there) or "nothing"
