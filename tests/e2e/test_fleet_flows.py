# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of two routers and a host that is away: one table of their flows, as the playbook writes and sends it."""

from __future__ import annotations

import collections.abc as c
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import build_bcc
from ansible_collections.ebpf.conntrack.tests.e2e import prebuilt
from ansible_collections.ebpf.conntrack.tests.e2e.two_routers import CLIENT, NETWORKS, PORT, ROUTERS, SERVER, TwoRouters
from ansible_collections.ebpf.conntrack.tests.install.commands import changes
from ansible_collections.ebpf.conntrack.tests.tools import tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAMS = pathlib.Path(sys.executable).parent
PLAYBOOKS = tree.ROOT / "playbooks"


@pytest.fixture(scope="module")
def lab() -> c.Iterator[TwoRouters]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_bcc, "build", prebuilt.build)
        with TwoRouters() as made:
            yield made


@pytest.fixture
def inventory(lab: TwoRouters, tmp_path: pathlib.Path) -> pathlib.Path:
    """Both routers as hosts, and one that nobody can reach."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    hosts = {name: {**here, "xdp_ct_pin_root": lab.pin_root(name), "flows_networks": NETWORKS[name]} for name in ROUTERS}
    # it comes first: what is done once for all is not done on it
    gone = {"ansible_host": "127.0.0.1", "ansible_port": 1, "xdp_ct_service_listen": "127.0.0.1:9477"}
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps({"all": {"hosts": {"gone": gone, **hosts}}}), "utf-8")
    return path


def promtool(*words: str) -> str:
    """Return what Prometheus' own reader says."""
    return subprocess.run([PROGRAMS / "promtool", *words], check=True, capture_output=True, text=True).stdout


def play(name: str, inventory: pathlib.Path, **variables: str) -> str:
    """Run a playbook; return what it printed."""
    command = [f"{tree.VENV}/ansible-playbook", str(PLAYBOOKS / f"{name}.yml"), "-i", str(inventory), "-e", json.dumps(variables)]
    done = subprocess.run(command, cwd=tree.ROOT, env=tree.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_table_of_the_fleet(lab: TwoRouters, inventory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lab.along("a")
    lab.connect(4001).exchange()
    lab.along("a", "b")
    lab.connect(4002).exchange()
    with socket.create_server(("127.0.0.1", 0)) as collector:
        got: list[bytes] = []

        def read() -> None:
            with collector.accept()[0] as client:
                while piece := client.recv(65536):
                    got.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        told = play(
            "flows", inventory, flows_file=str(tmp_path / "fleet.jsonl"), flows_collector=f"tcp://127.0.0.1:{collector.getsockname()[1]}", flows_view="paths"
        )
        reader.join(10)
    lines = [json.loads(line) for line in (tmp_path / "fleet.jsonl").read_text("utf-8").splitlines()]
    found = {line["orig"]["sport"]: line for line in lines if line["proto"] == "tcp"}
    assert (found[4001]["path"], found[4002]["path"], found[4002]["ordered"]) == (["a"], ["a", "b"], True)
    assert (found[4002]["orig"]["src"], found[4002]["orig"]["dst"], found[4002]["orig"]["dport"]) == (CLIENT, SERVER, PORT)
    one, two = found[4002]["seen"]
    assert one["orig"] == two["orig"] and one["reply"] == two["reply"] and one["orig"]["packets"] >= 4, "both counted every packet"
    assert [json.loads(line) for line in b"".join(got).splitlines()] == lines, "the collector has the same"
    assert re.search(r"unread: gone: .*Connection refused", " ".join(told.split())), told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet.jsonl", "inventory.json"], "no host's file is left"


def test_prometheus_finds_what_it_is_to_scrape(tmp_path: pathlib.Path) -> None:
    hosts = {
        "r1": {"ansible_host": "192.0.2.1", "xdp_ct_service_listen": "127.0.0.1:9477"},
        "r2": {"xdp_ct_service_listen": "[::1]:9478", "xdp_ct_scrape_address": "proxy.example.net:443", "xdp_ct_scrape_labels": {"site": "north"}},
        "r3": {"ansible_host": "192.0.2.3"},
    }
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}), "utf-8")
    targets = str(tmp_path / "ct.json")
    assert changes(play("targets", inventory, targets_file=targets)) == 1
    assert changes(play("targets", inventory, targets_file=targets)) == 0
    config = tmp_path / "prometheus.yml"
    config.write_text(f'scrape_configs: [{{job_name: ct, file_sd_configs: [{{files: ["{targets}"]}}]}}]\n', "utf-8")
    found = json.loads(promtool("check", "service-discovery", "--timeout=2s", str(config), "ct"))
    assert [(one["labels"]["instance"], one["labels"]["host"], one["labels"].get("site")) for one in found] == [
        ("192.0.2.1:9477", "r1", None),
        ("proxy.example.net:443", "r2", "north"),
    ]
