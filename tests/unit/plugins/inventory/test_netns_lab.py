# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory plugin takes for a lab's description."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.inventory import netns_lab
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology

SMALL: dict[str, t.Any] = {"name": "small", "namespaces": [{"name": "client"}]}


def test_descriptions_of_the_module_and_of_the_role() -> None:
    assert netns_lab.description(None) == {} and netns_lab.description(SMALL) is SMALL
    assert netns_lab.description({"netns_lab_name": "x", "netns_lab_router": None, "other": 1}) == {
        "name": "x"
    }
    with pytest.raises(
        ConntrackError, match="topology: 'other' is not valid: the keys are name, router, "
    ):
        netns_lab.description({"other": 1})
    with pytest.raises(ConntrackError, match="topology: 'x' is not valid"):
        netns_lab.description("x")


@pytest.mark.parametrize(
    ("found", "key", "meant"),
    [
        ({**SMALL, "lnks": []}, "lnks", "links"),
        ({**SMALL, "ruoter": "gw"}, "ruoter", "router"),
        (
            {"netns_lab_name": "x", "netns_lab_namspaces": [], "other": 1},
            "netns_lab_namspaces",
            "netns_lab_namespaces",
        ),
        ({"namespaces": [{"nme": "client"}]}, "nme", "name"),
        (
            {
                **SMALL,
                "links": [
                    {"ends": [{"name": "eth0", "netns": "client", "adresses": []}, {"name": "in"}]}
                ],
            },
            "adresses",
            "addresses",
        ),
        ({**SMALL, "expect": [{"png": {"from": "client", "to": "client"}}]}, "png", "ping"),
        (
            {**SMALL, "expect": [{"flow": {"from": "client", "to": "client", "stat": "NEW"}}]},
            "stat",
            "state",
        ),
    ],
)
def test_a_misspelt_key_is_named_with_the_one_that_was_meant(
    found: dict[str, t.Any], key: str, meant: str
) -> None:
    with pytest.raises(ConntrackError) as caught:
        topology.parse(netns_lab.description(found))
    assert f"'{key}' is not valid: " in caught.value.message and caught.value.message.endswith(
        f" Did you mean {meant}?"
    )


def test_variables_of_the_role_that_describe_no_lab_are_left_alone() -> None:
    assert netns_lab.description(
        {"netns_lab_name": "x", "netns_lab_state": "present", "netns_lab_install": False}
    ) == {"name": "x"}
