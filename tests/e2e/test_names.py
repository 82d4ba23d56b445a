# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible makes of misspelt names, of defaults for a group of modules, and of async: each is
named before anything is done.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.tests.tools import leftovers, tree

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]


def ansible(tool: str, *argv: str) -> tuple[int, str]:
    """Run one of Ansible's commands; return its exit status and what it printed, in one line."""
    done = subprocess.run(
        [f"{tree.VENV}/{tool}", *argv],
        cwd=tree.ROOT,
        env=tree.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split()).replace("''", "'")


def caught(role: str, tasks_from: str = "main", **variables: t.Any) -> dict[str, t.Any]:
    """Return a task that has a role with these variables, and goes on after its error."""
    return {
        "block": [
            {
                "ansible.builtin.import_role": {
                    "name": f"ebpf.conntrack.{role}",
                    "tasks_from": tasks_from,
                },
                "vars": variables,
            }
        ],
        "rescue": [
            {
                "ansible.builtin.debug": {
                    "msg": "{{ ansible_failed_task.name }} said: {{ ansible_failed_result.msg }}"
                }
            }
        ],
    }


def test_a_misspelt_variable_of_a_role_is_named_before_anything_is_done(
    tmp_path: pathlib.Path,
) -> None:
    before = leftovers.snapshot()
    link = {"ends": [{"name": "one", "netns": "nowhere"}, {"name": "two"}]}
    tasks = [
        caught("xdp_ct", xdp_ct_interface=[{"name": "lo", "program": "ingress"}]),
        caught("xdp_ct", xdp_ct_state="absent", xdp_ct_pin_rot="/sys/fs/bpf/other"),
        caught("netns_lab", netns_lab_namespace=[{"name": "a"}]),
        caught("rollout", "preflight", rollout_max_evictd=5),
        # what is wrong otherwise is told once, by the task that it happened in
        caught(
            "netns_lab",
            netns_lab_name="named",
            netns_lab_namespaces=[],
            netns_lab_links=[link],
            netns_lab_install=True,
        ),
    ]
    play = tmp_path / "play.json"
    play.write_text(
        json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]), "utf-8"
    )
    code, said = ansible("ansible-playbook", str(play))
    assert code == 0, said
    for owner, name, meant in (
        ("xdp_ct", "xdp_ct_interface", "xdp_ct_interfaces"),
        ("xdp_ct", "xdp_ct_pin_rot", "xdp_ct_pin_root"),
        ("netns_lab", "netns_lab_namespace", "netns_lab_namespaces"),
        ("rollout", "rollout_max_evictd", "rollout_max_evicted"),
    ):
        assert (
            f"Check the names of the variables said: {name}: there is no such variable of {owner}."
            f" Did you mean {meant}?" in said
        ), said
    assert (
        "Bring the lab to the wanted state said: links[0].ends[0].netns: 'nowhere' is not valid"
        in said
    ), said
    assert said.count("fatal: [localhost]") == len(tasks), "each error once"
    assert leftovers.snapshot() == before


def test_a_misspelt_key_of_an_inventory_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.netns_lab.yml"
    path.write_text("plugin: ebpf.conntrack.netns_lab\ntopolgy: {name: small}\n", "utf-8")
    code, said = ansible("ansible-inventory", "-i", str(path), "--list")
    assert code == 0 and re.search(
        "file: 'topolgy' is not valid: the keys are .*topology.*Did you mean topology[?]", said
    ), said


def test_defaults_of_a_group_break_no_module_and_async_is_refused_where_it_is_said_so(
    tmp_path: pathlib.Path,
) -> None:
    flows = tmp_path / "flows"
    flows.touch()
    merge = {
        "ebpf.conntrack.ct_merge": {
            "sources": [{"host": "r1", "path": str(flows)}],
            "dest": str(tmp_path / "fleet.csv"),
        }
    }
    tasks = [
        {**merge, "async": 60, "poll": 1, "register": "merged"},
        {
            "ebpf.conntrack.ct_fetch": {"dest": str(tmp_path / "new/x")},
            "async": 60,
            "register": "refused",
            "ignore_errors": True,
        },
        {
            "ansible.builtin.debug": {
                "msg": "{{ merged.connections }} connections; {{ refused.msg }}"
            }
        },
    ]
    defaults = {"group/ebpf.conntrack.all": {"pin_root": "/sys/fs/bpf/named"}}
    play = tmp_path / "play.json"
    play.write_text(
        json.dumps(
            [
                {
                    "hosts": "localhost",
                    "gather_facts": False,
                    "module_defaults": defaults,
                    "tasks": tasks,
                }
            ]
        ),
        "utf-8",
    )
    code, said = ansible("ansible-playbook", str(play))
    assert code == 0 and "async" in said.partition("0 connections; ")[2], said
    assert not (tmp_path / "new").exists()
