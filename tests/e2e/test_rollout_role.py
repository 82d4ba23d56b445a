# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role rollout says and does where hosts are left out, lost or put back, with hosts that
are this machine and one that nothing reaches.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.support.sandbox import sandboxed
from ansible_collections.ebpf.conntrack.tests.tools import tree

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

#: A host like this machine, which had nothing before.
HERE: dict[str, t.Any] = {
    "ansible_connection": "local",
    "ansible_python_interpreter": "/usr/bin/python3",
    "xdp_ct_preflight": {
        "ok": True,
        "problems": [],
        "kernel": {"release": "6.1"},
        "chain": {"generation": None, "healthy": True, "faults": []},
        "flows": None,
        "interfaces": [],
        "memory": None,
        "would_install": [],
        "before": {
            "generation": None,
            "timeouts": {},
            "settings": {},
            "interfaces": [],
            "command": False,
            "service": False,
        },
    },
}
#: Nothing listens there, so that it is refused at once.
CUT_OFF: dict[str, t.Any] = {
    **HERE,
    "ansible_connection": "ssh",
    "ansible_host": "127.0.0.1",
    "ansible_port": 1,
}
CHANGED: dict[str, t.Any] = {"xdp_ct_did_load": {"changed": True, "chain": {"generation": 1}}}
GONE: dict[str, t.Any] = {"unreachable": True, "msg": "No route to host"}


def play(
    directory: pathlib.Path, tasks: str, hosts: dict[str, dict[str, t.Any]], **variables: t.Any
) -> tuple[int, str]:
    """Run one file of the role's tasks on hosts that have these variables already; return how it
    ended and what it printed.
    """
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}), "utf-8")
    role = {"ansible.builtin.import_role": {"name": "ebpf.conntrack.rollout", "tasks_from": tasks}}
    variables = {
        "xdp_ct_prefix": str(directory / "host"),
        "xdp_ct_pin_root": "/sys/fs/bpf",
        "xdp_ct_state_dir": str(directory / "state"),
        "xdp_ct_lock_timeout": 5,
        "rollout_fitness": {"hosts": list(hosts), "ready": list(hosts)},
        **variables,
    }
    if tasks == "verdict":
        del variables["rollout_fitness"]
    (directory / "play.json").write_text(
        json.dumps([{"hosts": "all", "gather_facts": False, "vars": variables, "tasks": [role]}]),
        "utf-8",
    )
    argv = [
        str(tree.VENV / "ansible-playbook"),
        "-i",
        str(directory / "hosts.json"),
        str(directory / "play.json"),
    ]
    done = subprocess.run(
        argv,
        cwd=tree.ROOT,
        env=tree.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        ({"rollout_skip_unfit": True}, "b can not be reached"),
        ({"rollout_skip_unreachable": True}, "a can not take the chain"),
        ({"rollout_skip_unfit": True, "rollout_skip_unreachable": True}, ""),
    ],
)
def test_each_switch_leaves_out_its_own_hosts(
    skip: dict[str, bool], said: str, tmp_path: pathlib.Path
) -> None:
    hosts = {
        "a": {**HERE, "xdp_ct_preflight": {}, "rollout_refused": "no"},
        "b": {**HERE, "xdp_ct_preflight": GONE},
        "c": HERE,
    }
    switches = {"rollout_skip_unfit": False, "rollout_skip_unreachable": False, **skip}
    status, text = play(tmp_path, "verdict", hosts, **switches)
    assert (status != 0) == bool(said), text
    reasons = [
        words
        for words in ("a can not take the chain", "b can not be reached")
        if f"Nothing was changed: {words}" in text
    ]
    assert reasons == ([said] if said else []), text


def test_hosts_that_are_lost_are_asked_once_more_and_put_back(tmp_path: pathlib.Path) -> None:
    """One fails its watch, one is lost and answers again, one is lost and stays so."""
    batch = {"rollout_batch": {"number": 1, "hosts": ["a", "b", "c"]}}
    hosts = {
        "a": {**HERE, **batch, **CHANGED, "rollout_failed": "probe: it ended with 1"},
        "b": {**HERE, **batch, **CHANGED, "xdp_ct_did_service": GONE},
        "c": {**CUT_OFF, **batch, **CHANGED, "xdp_ct_did_service": GONE},
        "d": HERE,
    }
    ((status, text),) = sandboxed(lambda: play(tmp_path, "watch", hosts))
    said = {
        line.split()[0]: line
        for line in text.splitlines()
        if line.split()[:1] and line.split()[0] in "abcd" and "none" in line
    }
    assert (
        status != 0
        and said["a"].endswith("failed, nothing to put back")
        and said["b"].endswith("lost, nothing to put back")
    ), text
    assert "lost, NOT PUT BACK: " in said["c"] and said["d"].endswith("not touched"), text
    assert "Put back: none. Not put back: c. 1 host of later batches was not touched." in text, text
