# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters, as Ansible calls them; what they do is in module_utils."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.ebpf.conntrack.plugins.filter import fleet


def test_the_filter_takes_columns_by_name_by_title_and_none() -> None:
    rows = [{"host": "a", "kernel_release": "6"}]
    assert fleet.ct_table(rows) == "HOST  KERNEL RELEASE\na     6\n"
    assert fleet.ct_table(rows, ["host"]) == "HOST\na\n"
    assert fleet.ct_table(rows, {"host": "Name"}) == "Name\na\n"
    with pytest.raises(AnsibleFilterError, match="list of dictionaries"):
        fleet.ct_table("text")
    with pytest.raises(AnsibleFilterError, match="'html' is not valid: give table or markdown"):
        fleet.ct_table(rows, None, "html")


def test_of_hosts_only_what_is_looked_at_is_taken() -> None:
    assert fleet.collect({"a": {"rollout_failed": "x", "secret": "y"}, "b": {}}, ["a"]) == {
        "a": {"rollout_failed": "x"}
    }


def test_who_is_left_out_is_said_by_its_own_switch() -> None:
    hosts: fleet.Hostvars = {
        "unfit": {"rollout_refused": "no"},
        "cut": {"xdp_ct_preflight": {"unreachable": True, "msg": "no route"}},
    }
    for skips, stops in (
        ((True, False), "cut can not be reached"),
        ((False, True), "unfit can not take the chain"),
    ):
        assert fleet.ct_fitness(hosts, list(hosts), *skips)["stop"].startswith(
            f"Nothing was changed: {stops}"
        )


def test_a_batch_is_numbered_among_everyone() -> None:
    hosts = {name: {"rollout_batch": {"number": 1}} for name in "abc"}
    assert fleet.ct_batch({**hosts, "d": {}}, [*hosts, "d"], ["d"]) == {"number": 2, "hosts": ["d"]}


def test_an_outcome_is_that_of_the_hosts_that_are_named() -> None:
    hosts: fleet.Hostvars = {
        "a": {"rollout_batch": {"number": 1}, "xdp_ct_did_load": {"changed": True}},
        "b": {"rollout_batch": {"number": 1}, "rollout_failed": "x"},
    }
    assert fleet.ct_outcome(hosts, ["a"]) == {"changed": True, "trouble": []}
    assert fleet.ct_outcome(hosts, ["b"]) == {"changed": False, "trouble": ["b: x"]}


def test_the_chains_of_interfaces() -> None:
    routers = [{"name": "eth0", "netns": name, "program": "ingress"} for name in ("r1", "r2")]
    assert [one["pin_root"] for one in fleet.ct_chains(routers, "/sys/fs/bpf")] == ["/sys/fs/bpf"]
    assert [one["pin_root"] for one in fleet.ct_chains(routers, "/sys/fs/bpf", True)] == [
        "/sys/fs/bpf/r1",
        "/sys/fs/bpf/r2",
    ]
    with pytest.raises(AnsibleFilterError, match="list of dictionaries"):
        fleet.ct_chains(["eth0"], "/sys/fs/bpf")
