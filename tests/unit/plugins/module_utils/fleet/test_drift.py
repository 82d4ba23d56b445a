# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as drift, made from what the role's tasks returned in check mode."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import drift, rollout

DIGEST = "5d7c8e9f0a1b2c3d4e5f60718293a4b5"
ETH0 = {"name": "eth0", "netns": None, "program": "ingress", "mode": "native"}


def host(**more: t.Any) -> dict[str, t.Any]:
    """A host on which all three agree."""
    looked = {
        "chain": {"generation": 3, "digest": DIGEST, "faults": []},
        "disk": {"generation": 3, "digest": DIGEST, "interfaces": [ETH0]},
        "before": {"interfaces": [ETH0]},
        "interfaces": [ETH0],
        "found": ["/sys/fs/bpf/ebpf_conntrack"],
    }
    return {
        "xdp_ct_preflight": {**looked, **more.pop("looked", {})},
        "xdp_ct_did_load": {"plan": []},
        "xdp_ct_did_attach": {"plan": [], "interfaces": [ETH0]},
        **more,
    }


def step(
    action: str, kind: str, name: str, reason: str, before: t.Any = None, after: t.Any = None
) -> dict[str, t.Any]:
    return {
        "action": action,
        "kind": kind,
        "name": name,
        "reason": reason,
        "before": before,
        "after": after,
    }


def drifted(found: dict[str, t.Any]) -> list[tuple[str, t.Any, t.Any, t.Any, str]]:
    return [
        (one["object"], one["wanted"], one["kernel"], one["disk"], one["why"])
        for one in drift.records_of("a", found)
        if one["drift"]
    ]


def test_where_all_agree_there_is_none() -> None:
    records = drift.records_of("a", host())
    assert [
        (one["object"], one["wanted"], one["kernel"], one["disk"], one["drift"]) for one in records
    ] == [
        ("chain", "5d7c8e9f", "3 5d7c8e9f", "3 5d7c8e9f", False),
        ("eth0", "ingress", "ingress native", "ingress", False),
    ]


def test_another_chain_is_wanted() -> None:
    load = step(
        "load",
        "generation",
        "4",
        "the sources changed",
        None,
        "digest 0b4f1a0b3b5e5d0e, 22 programs",
    )
    assert drifted(host(xdp_ct_did_load={"plan": [load]})) == [
        ("chain", "0b4f1a0b", "3 5d7c8e9f", "3 5d7c8e9f", "the sources changed")
    ]


@pytest.mark.parametrize(
    ("disk", "shown", "why"),
    [
        (
            {"generation": 2, "digest": "00", "interfaces": [ETH0]},
            "2 00",
            "a reboot would bring back another one",
        ),
        (
            {"generation": None, "digest": None, "interfaces": [ETH0]},
            "none",
            "a reboot would bring none back",
        ),
    ],
)
def test_the_disk_says_otherwise(disk: dict[str, t.Any], shown: str, why: str) -> None:
    assert drifted(host(looked={"disk": disk})) == [("chain", "5d7c8e9f", "3 5d7c8e9f", shown, why)]


def test_settings_that_differ_are_named_one_by_one() -> None:
    change = step(
        "change",
        "map",
        "settings",
        "timeouts or switches differ",
        "udp=30, tcp_loose=1",
        "udp=7, tcp_loose=1",
    )
    assert drifted(host(xdp_ct_did_load={"plan": [change]})) == [
        ("setting udp", "7", "30", None, "timeouts or switches differ")
    ]


def test_interfaces() -> None:
    eth1 = {**ETH0, "name": "eth1"}
    attach = step("attach", "xdp", "eth2", "nothing is attached", None, {"program": "egress"})
    found = host(
        looked={
            "before": {"interfaces": [ETH0, eth1]},
            "disk": {"generation": 3, "digest": DIGEST, "interfaces": [eth1]},
        },
        xdp_ct_did_attach={"plan": [attach], "interfaces": [ETH0, {**ETH0, "name": "eth2"}]},
    )
    assert drifted(found) == [
        ("eth0", "ingress", "ingress native", "none", "a reboot would not bring it back"),
        ("eth1", "none", "ingress native", "ingress", "the inventory does not have it"),
        ("eth2", "egress", "none", "none", "nothing is attached"),
    ]


def test_faults_files_and_packages() -> None:
    fault = {"fault": "slot_empty", "object": "jt[3]", "detail": "slot 3 (ct) is empty"}
    found = host(
        looked={"chain": {"generation": 3, "digest": DIGEST, "faults": [fault]}},
        xdp_ct_did_command={
            "plan": [
                step("create", "file", "/usr/local/bin/ct", "it is missing", None, "mode 0755")
            ]
        },
        xdp_ct_missing={"stdout_lines": ["libbpf1"]},
    )
    assert [one[0] for one in drifted(found)] == [
        "file /usr/local/bin/ct",
        "package libbpf1",
        "jt[3]",
    ]


def test_hosts_of_which_nothing_is_known() -> None:
    assert drifted({"xdp_ct_preflight": {"unreachable": True, "msg": "No\nroute"}}) == [
        ("host", "reachable", None, None, "it can not be reached: No route")
    ]
    assert drifted({"rollout_refused": "bad variable"}) == [
        ("host", "a chain", None, None, "bad variable")
    ]


def test_the_report_in_each_form() -> None:
    found = {"a": host(), "b": {"xdp_ct_preflight": {"unreachable": True, "msg": "x"}}}
    table = drift.report(found, "table")
    assert table["hosts"] == ["b"] and table["text"].splitlines()[0].split() == [
        "HOST",
        "OBJECT",
        "WANTED",
        "KERNEL",
        "ON",
        "DISK",
        "DRIFT",
        "WHY",
    ]
    assert drift.report(found, "markdown")["text"].startswith("| HOST | OBJECT |")
    said = json.loads(drift.report(found, "json")["text"])
    assert said["hosts"] == ["b"] and len(said["records"]) == 3


def test_what_is_left() -> None:
    text = drift.left({"a": host(), "b": {"xdp_ct_preflight": {"found": []}}, "c": {}})
    assert text == "HOST  LEFT\na     /sys/fs/bpf/ebpf_conntrack\nb     nothing\nc     unknown\n"


def test_who_goes_back_needs_no_more_than_a_generation_to_go_to() -> None:
    looked = {
        "ok": False,
        "problems": [{"field": "table_size", "value": "", "problem": "no memory.", "mend": ""}],
        "would_install": [],
        "interfaces": [],
    }
    looked |= {
        "kernel": {"release": "6"},
        "chain": {"generation": 3, "healthy": True},
        "flows": 1,
        "memory": None,
    }
    back = {"xdp_ct_preflight": looked, "rollout_back": True}
    assert rollout.fitness_of("a", back)["verdict"] == "ready"
    refused = rollout.fitness_of(
        "a", {**back, "rollout_refused": "there is no generation before 1 to go back to"}
    )
    assert (refused["verdict"], refused["why"]) == (
        "unfit",
        "there is no generation before 1 to go back to",
    )
