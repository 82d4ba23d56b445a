# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a roll-out makes of its hosts' results: who can take the chain, who is in trouble, and the
tables of that. Nothing here asks a host.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..core.printable import printable
from ..ct import text as ct_text

Vars = t.Mapping[str, t.Any]
T = t.TypeVar("T")
#: What the functions below run into where a host answered what no module of the collection answers.
_NONSENSE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def understood(
    make: t.Callable[[str, Vars], T], host: str, found: Vars, otherwise: t.Callable[[str, str], T]
) -> T:
    """Return what is made of a host's variables. One whose answers make no sense, as those of a
    host that was taken over, is told so and stops nobody else.

    :param otherwise: makes it of the host's name and the words that say what is wrong.
    """
    try:
        return make(host, found)
    except _NONSENSE as exc:
        return otherwise(
            host,
            _line(f"what it answered is not understood ({type(exc).__name__}: {str(exc)[:100]})"),
        )


#: Results of the role xdp_ct that can have changed a host, in the order of its tasks.
STEPS = (
    "xdp_ct_missing",
    "xdp_ct_did_install",
    "xdp_ct_did_load",
    "xdp_ct_did_attach",
    "xdp_ct_did_command",
    "xdp_ct_did_service",
)
#: What each of them is about, for people; the packages are seen by the first, and installed by the
#: second.
_ABOUT = dict(zip(STEPS, ("packages", "packages", "chain", "interfaces", "command", "service")))
#: The variables of a host that are looked at.
NAMES = (
    *STEPS,
    "xdp_ct_preflight",
    "rollout_back",
    "rollout_refused",
    "rollout_batch",
    "rollout_ended",
    "rollout_failed",
    "rollout_soaked",
    "rollout_put_back",
)


def table(
    rows: t.Sequence[t.Mapping[str, t.Any]], columns: t.Mapping[str, str], form: str = "table"
) -> str:
    """Return rows as a table with aligned columns, or as one of Markdown.

    :param columns: the columns' keys in the rows, each with its title. Columns that hold nothing
        but numbers stand at the right.
    :param form: ``table`` or ``markdown``.
    """
    cells = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
    if form == "markdown":
        lines = [
            list(columns.values()),
            ["---"] * len(columns),
            *(
                [printable(cell.replace("|", "\\|").replace("\n", " ")) for cell in row]
                for row in cells
            ),
        ]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    numbers = [
        at
        for at, name in enumerate(columns)
        if rows
        and all(row.get(name) is None or isinstance(row[name], (int, float)) for row in rows)
    ]
    return ct_text.columns([list(columns.values()), *cells], numbers)


# ---------------------------------------------------------------- who can take the chain
FITNESS = {
    "host": "HOST",
    "verdict": "VERDICT",
    "kernel": "KERNEL",
    "chain": "CHAIN",
    "flows": "FLOWS",
    "interfaces": "INTERFACES",
    "memory": "NEEDS",
    "available": "HAS",
    "todo": "TO DO",
    "why": "WHY",
}


def fitness_of(host: str, found: Vars) -> dict[str, t.Any]:
    """Return the row of one host.

    Its ``verdict`` is ``ready``, ``as wanted`` where nothing is to be done, ``unhealthy`` where
    nothing can be done about what is wrong with the chain, ``unfit`` or ``unreachable``.
    """
    looked = found.get("xdp_ct_preflight") or {}
    lost = _lost([looked, *(found.get(name) or {} for name in STEPS)])
    if lost:
        return {"host": host, "verdict": "unreachable", "why": lost}
    if "ok" not in looked or found.get("rollout_refused"):
        return {
            "host": host,
            "verdict": "unfit",
            "why": _line(
                found.get("rollout_refused") or looked.get("msg") or "it was not looked at"
            ),
        }
    chain, memory = looked["chain"], looked["memory"]
    # for which nothing is needed that the chain before did not need as well
    back = bool(found.get("rollout_back"))
    why = (
        []
        if back
        else [
            f"{one['field']}: {one['problem']} {one['mend']}".strip() for one in looked["problems"]
        ]
    )
    if looked["would_install"] and not back:
        why.append(f"would install {', '.join(looked['would_install'])}")
    todo = to_do(found)
    verdict = (
        "unfit"
        if not (looked["ok"] or back)
        else "ready"
        if todo or "xdp_ct_did_load" not in found
        else "as wanted"
    )
    if (
        verdict == "as wanted"
        and chain is not None
        and chain["generation"] is not None
        and not chain["healthy"]
    ):
        verdict = "unhealthy"
        why += [
            f"{one['fault']} {one['object']}: {one.get('repair') or one['detail']}"
            for one in chain["faults"]
        ]
    return {
        "host": host,
        "verdict": verdict,
        "kernel": looked["kernel"]["release"],
        "chain": (
            None
            if chain is None
            else (
                "none"
                if chain["generation"] is None
                else f"{chain['generation']}{'' if chain['healthy'] else ', NOT GOOD'}"
            )
        ),
        "flows": looked["flows"],
        "interfaces": " ".join(
            f"{one['name']}:{'/'.join(one['modes']) or 'missing'}" for one in looked["interfaces"]
        ),
        "memory": None if memory is None else f"{memory['needed'] >> 20} MiB",
        "available": None if memory is None else f"{memory['available'] >> 20} MiB",
        "todo": ", ".join(todo),
        "why": "; ".join(why),
    }


def to_do(found: Vars) -> list[str]:
    """Return what the look before found to be done on a host, in the order of the role's tasks:
    packages that are missing, and plans that are not empty.
    """
    results = {name: found.get(name) or {} for name in STEPS}
    return list(
        dict.fromkeys(
            _ABOUT[name]
            for name, one in results.items()
            if one.get("stdout_lines") or one.get("plan")
        )
    )


def _lost(results: t.Sequence[Vars]) -> str:
    """Return what was said when a host could not be reached, "" where it could."""
    return next(
        (_line(one.get("msg") or "unreachable") for one in results if one.get("unreachable")), ""
    )


def _line(text: object) -> str:
    return printable(" ".join(str(text).split()))


def _not_fit(host: str, why: str) -> dict[str, t.Any]:
    return {"host": host, "verdict": "unfit", "why": why}


def fitness(
    found: t.Mapping[str, Vars], skip_unfit: bool, skip_unreachable: bool
) -> dict[str, t.Any]:
    """Return who is ``ready`` and needs it, all ``hosts``, the ``table``, and why nothing may be
    changed (``stop``), "" where it may.

    :param found: the variables of NAMES by host.
    """
    rows = [understood(fitness_of, host, one, _not_fit) for host, one in found.items()]
    by = {
        verdict: [row["host"] for row in rows if row["verdict"] == verdict]
        for verdict in ("ready", "as wanted", "unhealthy", "unfit", "unreachable")
    }
    what = "go back" if any(one.get("rollout_back") for one in found.values()) else "take the chain"
    reasons = []
    if by["unfit"] and not skip_unfit:
        whys = "; ".join(
            f"{row['host']}: {row['why']}" for row in rows if row["verdict"] == "unfit"
        )
        reasons.append(
            f"{_hosts(by['unfit'])} can not {what} ({whys}). Mend that, or give rollout_skip_unfit:"
            " true to leave such hosts out."
        )
    if by["unreachable"] and not skip_unreachable:
        reasons.append(
            f"{_hosts(by['unreachable'])} can not be reached. Mend that, or give"
            " rollout_skip_unreachable: true to leave such hosts out."
        )
    if not by["ready"] and not by["as wanted"] and not by["unhealthy"] and not reasons:
        reasons.append(f"no host can {what}.")
    stop = printable(" ".join(reasons))
    return {
        "ready": by["ready"],
        "hosts": list(found),
        "table": table(rows, FITNESS),
        "stop": f"Nothing was changed: {stop}" if stop else "",
    }


def _hosts(names: t.Sequence[str]) -> str:
    return ", ".join(names)


# ---------------------------------------------------------------- what became of hosts
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one host.

    :ivar batch: the number of its batch, None where that did not begin.
    :ivar lost: whether it was lost in its batch, with what was said then.
    :ivar failed: what went wrong on it, "" where nothing did.
    :ivar changed: whether anything was changed on it.
    """

    host: str
    batch: int | None = None
    lost: str = ""
    failed: str = ""
    changed: bool = False

    @property
    def trouble(self) -> str:
        """What is wrong with it, "" where all is well."""
        return (
            f"{self.host}: it was lost ({self.lost})"
            if self.lost
            else f"{self.host}: {self.failed}"
            if self.failed
            else ""
        )


def outcome_of(host: str, found: Vars) -> Outcome:
    """Return what became of one host, by its variables of NAMES."""
    batch = _batch_of(found)
    if batch is None:
        return Outcome(host)  # its results are those of the look before
    return understood(
        _outcome_in, host, found, lambda name, why: Outcome(name, batch, "", why, True)
    )


def _batch_of(found: Vars) -> int | None:
    """Return the number of a host's batch, None where it was in none."""
    batch = found.get("rollout_batch")
    number = batch.get("number") if isinstance(batch, t.Mapping) else None
    return number if isinstance(number, int) else None


def _outcome_in(host: str, found: Vars) -> Outcome:
    """Return what became of a host that is in a batch."""
    batch = _batch_of(found)
    results = [found.get(name) or {} for name in (*STEPS, "rollout_soaked")]
    return Outcome(
        host,
        batch,
        _lost(results),
        _line(found.get("rollout_failed") or ""),
        any(one.get("changed") for one in results),
    )


def outcome(found: t.Mapping[str, Vars]) -> dict[str, t.Any]:
    """Return what became of a batch: whether anything ``changed``, and all ``trouble``."""
    outcomes = [outcome_of(host, one) for host, one in found.items()]
    return {
        "changed": any(one.changed for one in outcomes),
        "trouble": [one.trouble for one in outcomes if one.trouble],
    }


SUMMARY = {
    "host": "HOST",
    "batch": "BATCH",
    "before": "FROM",
    "after": "TO",
    "seconds": "SECONDS",
    "unseen": "UNSEEN",
    "flows_before": "FLOWS BEFORE",
    "flows_after": "AFTER",
    "result": "RESULT",
}


def summary_of(host: str, found: Vars) -> dict[str, t.Any]:
    """Return the row of one host."""
    one = outcome_of(host, found)
    looked, soaked, back = (
        found.get(name) or {} for name in ("xdp_ct_preflight", "rollout_soaked", "rollout_put_back")
    )
    before, figures = (looked.get("chain") or {}).get("generation"), soaked.get("figures") or {}
    row: dict[str, t.Any] = {
        "host": host,
        "batch": one.batch,
        "before": "none" if looked.get("chain") and before is None else before,
        "flows_before": looked.get("flows"),
    }
    if one.batch is None:
        fit = fitness_of(host, found)
        verdict = fit["verdict"]
        return {
            **row,
            "result": (
                {
                    "ready": "not touched",
                    "as wanted": "unchanged",
                    "unhealthy": "unchanged, NOT GOOD",
                }.get(verdict, f"left out, {verdict}")
            ),
        }
    now = back if back.get("chain") else found.get("xdp_ct_did_load") or {}
    after = (now.get("chain") or {}).get("generation")
    row.update(
        after="none" if now.get("chain") and after is None else after,
        seconds=figures.get("seconds"),
        unseen=figures.get("unseen"),
        flows_after=figures.get("flows"),
    )
    return {**row, "result": _result(one, back)}


def _stuck(back: Vars) -> bool:
    """Return whether a host was to be put back and could not be."""
    return bool(back.get("failed") or back.get("unreachable"))


def _result(one: Outcome, back: Vars) -> str:
    """Return in words how a host of a batch ended, and whether it was put back."""
    what = (
        "lost"
        if one.lost
        else "failed"
        if one.failed
        else "changed"
        if one.changed
        else "unchanged"
    )
    if _stuck(back):
        return f"{what}, NOT PUT BACK: {_line(back.get('msg', ''))}"
    if back.get("changed"):
        return f"{what}, put back"
    return f"{what}, nothing to put back" if "changed" in back and not back.get("skipped") else what


def summary(found: t.Mapping[str, Vars]) -> dict[str, t.Any]:
    """Return the ``table`` of all hosts, and a ``message`` that says what is wrong and who was put
    back.
    """
    rows = [
        understood(
            summary_of, host, one, lambda name, why: {"host": name, "batch": None, "result": why}
        )
        for host, one in found.items()
    ]
    rows.sort(key=lambda row: (row["batch"] is None, row["batch"] or 0))
    outcomes = [outcome_of(host, one) for host, one in found.items()]
    troubles = [one.trouble.rstrip(".") for one in outcomes if one.trouble]
    tried = {
        row["host"]: found[row["host"]].get("rollout_put_back") or {}
        for row in rows
        if row["batch"] is not None
    }
    stuck = [host for host, one in tried.items() if _stuck(one)]
    back = [host for host, one in tried.items() if one.get("changed") and host not in stuck]
    rest = sum(row["result"] == "not touched" for row in rows)
    batch = max((one.batch for one in outcomes if one.batch is not None and one.trouble), default=0)
    message = f"Batch {batch} is not well: {'; '.join(troubles)}."
    message += f" Put back: {', '.join(back) or 'none'}."
    if stuck:
        message += f" Not put back: {', '.join(stuck)}."
    if rest:
        message += (
            f" {rest} {'host of later batches was' if rest == 1 else 'hosts of later batches were'}"
            " not touched."
        )
    return {"table": table(rows, SUMMARY), "message": printable(message)}


def batch(found: t.Mapping[str, Vars], hosts: t.Sequence[str]) -> dict[str, t.Any]:
    """Return the next batch: its ``number``, from 1, and its ``hosts``.

    :param found: the variables of NAMES of all hosts.
    """
    numbers = [_batch_of(one) or 0 for one in found.values()]
    return {"number": max(numbers, default=0) + 1, "hosts": list(hosts)}
