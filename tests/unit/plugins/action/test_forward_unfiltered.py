# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is forwarded passes the firewall by, so it has to be asked for twice, wherever it is asked
for.
"""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.action import xdp_object, xdp_program
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import (
    interfaces as preflight_interfaces,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import reload


def refused(call: t.Callable[[], object]) -> str:
    with pytest.raises(ConntrackError) as caught:
        call()
    return caught.value.message


@pytest.mark.parametrize("forward", ["established", "all"])
@pytest.mark.parametrize("more", [{}, {"forward_unfiltered": False}, {"forward_unfiltered": "no"}])
def test_forwarding_takes_a_second_word(forward: str, more: dict[str, t.Any]) -> None:
    args = {"forward": forward, **more}
    words = [
        f"forward={forward}",
        *(f"{name}={str(value).lower()}" for name, value in more.items()),
    ]
    (message,) = {
        refused(lambda: xdp_program.rendered(args, str)),
        refused(lambda: xdp_object.packed(args, str)),
        refused(lambda: reload.parse(words)),
    }
    assert (
        message.startswith(f"forward: {forward!r} is not valid: ")
        and "forward_unfiltered: true" in message
        and "firewall" in message
    )
    (problem,) = preflight_interfaces.judge_unfiltered(forward, False)
    assert (
        (problem.field, problem.value) == ("forward", forward)
        and "firewall" in problem.problem
        and "forward_unfiltered: true" in problem.mend
    )


def test_with_it_or_without_forwarding_nothing_is_refused() -> None:
    for args in (
        {"forward": "off"},
        {"forward": False},
        {},
        {"forward_unfiltered": True},
        {"forward": "all", "forward_unfiltered": "yes"},
    ):
        assert xdp_program.settings_of(args).forward == (args.get("forward") or "off")
    assert reload.parse(["forward_unfiltered=yes", "forward=established"]).compiled == {
        "forward": "established"
    }
    assert not list(preflight_interfaces.judge_unfiltered("all", True)) + list(
        preflight_interfaces.judge_unfiltered("off", False)
    )


def test_a_second_word_that_is_none() -> None:
    assert (
        refused(
            lambda: xdp_program.settings_of({"forward": "all", "forward_unfiltered": "perhaps"})
        )
        == "forward_unfiltered: 'perhaps' is not valid: give true or false."
    )
    assert (
        refused(lambda: reload.parse(["forward_unfiltered=2"]))
        == "forward_unfiltered: 2 is not valid: give true or false."
    )
