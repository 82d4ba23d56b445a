# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan is a list of steps; check mode, diff and apply all read the same list."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from .errors import ConntrackError


@dataclasses.dataclass(frozen=True)
class Step:
    """One change to one kernel object.

    :ivar action: ``create``, ``change``, ``delete``, ``attach``, ``detach``, ``replace``, ``load``,
        ``pin``, ...
    :ivar kind: the kind of object, in the field's words (``netns``, ``link``, ``address``,
        ``route``, ``sysctl``, ``map``, ``program``, ...).
    :ivar name: what an operator would call the object, unique within its kind.
    :ivar reason: why the step is needed, for people.
    :ivar before: what is there now; None where nothing is.
    :ivar after: what will be there; None where nothing will be.
    :ivar args: what the apply function needs besides; never shown.
    """

    action: str
    kind: str
    name: str
    reason: str
    before: t.Any = None
    after: t.Any = None
    args: t.Any = dataclasses.field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, t.Any]:
        """Return the public form of the step, as modules return it in ``plan``."""
        return {
            k: getattr(self, k) for k in ("action", "kind", "name", "reason", "before", "after")
        }


Plan = list[Step]
Undo = t.Optional[t.Callable[[], None]]


def as_dicts(plan: Plan) -> list[dict[str, t.Any]]:
    """Return the plan in the form in which modules return it."""
    return [step.as_dict() for step in plan]


def as_diff(plan: Plan) -> dict[str, str]:
    """Return the plan as an Ansible diff: what goes away against what comes, one line an object."""

    def lines(which: str) -> str:
        return "".join(
            f"{s.kind} {s.name}: {getattr(s, which)}\n"
            for s in plan
            if getattr(s, which) is not None
        )

    return {"before": lines("before"), "after": lines("after")}


def irrevocable() -> None:
    """Undo a step that can not be undone, such as a deletion: ``do`` of apply() returns this for
    one.

    :raises ConntrackError: always.
    """
    raise ConntrackError("it can not be undone")


def apply(plan: Plan, do: t.Callable[[Step], Undo]) -> None:
    """Apply each step in order; when one fails, undo those before it in reverse and raise.

    :param do: applies one step and returns the function that undoes it, irrevocable where none can,
        or None where it changed nothing that stays.
    :raises ConntrackError: naming the failed step, with the step lists ``applied``, ``rolled_back``
        and ``not_rolled_back``: those whose undoing failed too, each with ``error``.
    """
    done: list[tuple[Step, Undo]] = []
    for step in plan:
        try:
            done.append((step, do(step)))
        except Exception as exc:  # whatever went wrong, what was applied must be undone
            rolled_back, stuck = [], []
            for earlier, undo in reversed(done):
                try:
                    if undo is not None:
                        undo()
                    rolled_back.append(earlier.as_dict())
                except Exception as undo_exc:
                    # keep going: each object that can be put back is put back
                    stuck.append({**earlier.as_dict(), "error": str(undo_exc)})
            facts = dict(exc.facts) if isinstance(exc, ConntrackError) else {}
            facts.update(
                applied=[s.as_dict() for s, dummy in done],
                rolled_back=rolled_back,
                not_rolled_back=stuck,
            )
            raise ConntrackError(f"{step.action} {step.kind} {step.name}: {exc}", **facts) from exc


@contextlib.contextmanager
def applied(plan: Plan) -> t.Iterator[None]:
    """Around what comes after the last step, such as reading what is there now.

    :raises ConntrackError: for an error there; it says that all steps were taken, and ``applied``
        holds them.
    """
    try:
        yield
    except (ConntrackError, OSError) as exc:
        facts = exc.facts if isinstance(exc, ConntrackError) else {}
        facts = {**facts, "applied": as_dicts(plan), "rolled_back": [], "not_rolled_back": []}
        raise ConntrackError(
            f"Everything was done, but what is there now can not be read: {exc}", **facts
        ) from exc
