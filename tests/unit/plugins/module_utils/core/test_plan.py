# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: what is shown of them, and that a failing one is undone in reverse."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    bad_value,
)

CREATE = plan.Step("create", "link", "a", "it is not there", None, "mtu 1500", args=object())
CHANGE = plan.Step("change", "address", "b", "it differs", "10.0.0.1/24", "10.0.0.2/24")
DELETE = plan.Step("delete", "route", "c", "it is not wanted", "via 10.0.0.1", None)


def test_what_is_shown_leaves_the_arguments_out() -> None:
    assert plan.as_dicts([CREATE]) == [
        {
            "action": "create",
            "kind": "link",
            "name": "a",
            "reason": "it is not there",
            "before": None,
            "after": "mtu 1500",
        }
    ]
    assert "args" not in repr(CREATE)
    assert plan.Step("create", "link", "a", "it is not there", None, "mtu 1500") == CREATE


def test_a_diff_has_a_line_for_what_goes_and_for_what_comes() -> None:
    assert plan.as_diff([CREATE, CHANGE, DELETE]) == {
        "before": "address b: 10.0.0.1/24\nroute c: via 10.0.0.1\n",
        "after": "link a: mtu 1500\naddress b: 10.0.0.2/24\n",
    }
    assert plan.as_diff([]) == {"before": "", "after": ""}


class Doer:
    """Notes what is done and undone; fails where it is told to."""

    def __init__(
        self, fails_at: str = "", undo_fails_at: str = "", error: Exception | None = None
    ) -> None:
        self.notes: list[str] = []
        self.fails_at, self.undo_fails_at, self.error = (
            fails_at,
            undo_fails_at,
            error or OSError(5, "broken"),
        )

    def __call__(self, step: plan.Step) -> plan.Undo:
        if step.name == self.fails_at:
            raise self.error
        self.notes.append(step.name)
        return None if step.name == "b" else lambda: self._undo(step.name)

    def _undo(self, name: str) -> None:
        if name == self.undo_fails_at:
            raise OSError(16, "stuck")
        self.notes.append(f"-{name}")


def test_steps_are_done_in_order() -> None:
    do = Doer()
    plan.apply([CREATE, CHANGE, DELETE], do)
    assert do.notes == ["a", "b", "c"]


def test_what_was_done_is_undone_in_reverse() -> None:
    do = Doer(fails_at="c")
    with pytest.raises(ConntrackError, match=r"^delete route c: .*broken") as raised:
        plan.apply([CREATE, CHANGE, DELETE], do)
    assert do.notes == ["a", "b", "-a"]
    names = {key: [step["name"] for step in steps] for key, steps in raised.value.facts.items()}
    assert names == {"applied": ["a", "b"], "rolled_back": ["b", "a"], "not_rolled_back": []}


def test_undoing_goes_on_where_one_can_not_be_undone() -> None:
    do = Doer(fails_at="d", undo_fails_at="c")
    with pytest.raises(ConntrackError) as raised:
        plan.apply([CREATE, DELETE, plan.Step("create", "link", "d", "")], do)
    assert do.notes == ["a", "c", "-a"]
    (stuck,) = raised.value.facts["not_rolled_back"]
    assert stuck["name"] == "c" and "stuck" in stuck["error"]


def test_what_can_not_be_undone_is_said_to_stand() -> None:
    def do(step: plan.Step) -> plan.Undo:
        if step is CREATE:
            raise OSError(5, "broken")
        return plan.irrevocable if step is DELETE else None

    with pytest.raises(ConntrackError) as raised:
        plan.apply([CHANGE, DELETE, CREATE], do)
    assert raised.value.facts["rolled_back"] == [CHANGE.as_dict()]
    assert raised.value.facts["not_rolled_back"] == [
        {**DELETE.as_dict(), "error": "it can not be undone"}
    ]


def test_the_facts_of_the_error_are_kept() -> None:
    with pytest.raises(ConntrackError) as raised:
        plan.apply([CREATE], Doer("a", error=ConntrackError("no", compiler_output="all of it")))
    assert raised.value.message == "create link a: no"
    assert raised.value.facts == {
        "compiler_output": "all of it",
        "applied": [],
        "rolled_back": [],
        "not_rolled_back": [],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [(20, "20"), (1.5, "1.5"), (True, "True"), ("x", "'x'"), (None, "None"), (["a"], "['a']")],
)
def test_a_bad_value_is_named(value: t.Any, shown: str) -> None:
    assert (
        bad_value("links[0].mtu", value, "give 68 to 65535.").message
        == f"links[0].mtu: {shown} is not valid: give 68 to 65535."
    )
