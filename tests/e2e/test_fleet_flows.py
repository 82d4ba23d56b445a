# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of two routers and a host that is away: one table of their flows, as the playbook writes
and sends it, and flows that go from one to the other.
"""

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
from ansible_collections.ebpf.conntrack.tests.e2e.support.two_routers import (
    CLIENT,
    NETWORKS,
    PORT,
    ROUTERS,
    SERVER,
    TwoRouters,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import read
from ansible_collections.ebpf.conntrack.tests.install.commands import changes
from ansible_collections.ebpf.conntrack.tests.tools import tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAMS = pathlib.Path(sys.executable).parent
PLAYBOOKS = tree.ROOT / "playbooks"


@pytest.fixture(scope="module")
def lab() -> c.Iterator[TwoRouters]:
    with TwoRouters() as made:
        yield made


@pytest.fixture
def inventory(lab: TwoRouters, tmp_path: pathlib.Path) -> pathlib.Path:
    """Both routers as hosts, and one that nobody can reach."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    hosts = {
        name: {**here, "xdp_ct_pin_root": lab.pin_root(name), "flows_networks": NETWORKS[name]}
        for name in ROUTERS
    }
    # it comes first: what is done once for all is not done on it
    gone = {
        "ansible_host": "127.0.0.1",
        "ansible_port": 1,
        "xdp_ct_service_listen": "127.0.0.1:9477",
    }
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps({"all": {"hosts": {"gone": gone, **hosts}}}), "utf-8")
    return path


def promtool(*words: str) -> str:
    """Return what Prometheus' own reader says."""
    return subprocess.run(
        [PROGRAMS / "promtool", *words], check=True, capture_output=True, text=True
    ).stdout


def play(name: str, inventory: pathlib.Path, **variables: str) -> str:
    """Run a playbook; return what it printed."""
    command = [
        f"{tree.VENV}/ansible-playbook",
        str(PLAYBOOKS / f"{name}.yml"),
        "-i",
        str(inventory),
        "-e",
        json.dumps(variables),
    ]
    done = subprocess.run(
        command,
        cwd=tree.ROOT,
        env=tree.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_table_of_the_fleet(
    lab: TwoRouters, inventory: pathlib.Path, tmp_path: pathlib.Path
) -> None:
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
            "flows",
            inventory,
            flows_file=str(tmp_path / "fleet.jsonl"),
            flows_collector=f"tcp://127.0.0.1:{collector.getsockname()[1]}",
            flows_view="paths",
        )
        reader.join(10)
    lines = [
        json.loads(line) for line in (tmp_path / "fleet.jsonl").read_text("utf-8").splitlines()
    ]
    found = {line["orig"]["sport"]: line for line in lines if line["proto"] == "tcp"}
    assert (found[4001]["path"], found[4002]["path"], found[4002]["ordered"]) == (
        ["a"],
        ["a", "b"],
        True,
    )
    assert (
        found[4002]["orig"]["src"],
        found[4002]["orig"]["dst"],
        found[4002]["orig"]["dport"],
    ) == (CLIENT, SERVER, PORT)
    one, two = found[4002]["seen"]
    assert (
        one["orig"] == two["orig"] and one["reply"] == two["reply"] and one["orig"]["packets"] >= 4
    ), "both counted every packet"
    assert [json.loads(line) for line in b"".join(got).splitlines()] == lines, (
        "the collector has the same"
    )
    assert re.search(r"unread: gone: .*Connection refused", " ".join(told.split())), told
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fleet.jsonl",
        "inventory.json",
    ], "no host's file is left"


def test_prometheus_finds_what_it_is_to_scrape(tmp_path: pathlib.Path) -> None:
    hosts = {
        "r1": {"ansible_host": "192.0.2.1", "xdp_ct_service_listen": "127.0.0.1:9477"},
        "r2": {
            "xdp_ct_service_listen": "[::1]:9478",
            "xdp_ct_scrape_address": "proxy.example.net:443",
            "xdp_ct_scrape_labels": {"site": "north"},
        },
        "r3": {"ansible_host": "192.0.2.3"},
    }
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}), "utf-8")
    targets = str(tmp_path / "ct.json")
    assert changes(play("targets", inventory, targets_file=targets)) == 1
    assert changes(play("targets", inventory, targets_file=targets)) == 0
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f'scrape_configs: [{{job_name: ct, file_sd_configs: [{{files: ["{targets}"]}}]}}]\n',
        "utf-8",
    )
    found = json.loads(promtool("check", "service-discovery", "--timeout=2s", str(config), "ct"))
    assert sorted(
        (one["labels"]["instance"], one["labels"]["host"], one["labels"].get("site"))
        for one in found
    ) == [
        ("192.0.2.1:9477", "r1", None),
        ("proxy.example.net:443", "r2", "north"),
    ]


# ---------------------------------------------------------------- from one router to the other
def hand_over(lab: TwoRouters, *filters: str) -> str:
    """ct export of the first router, through a pipe, into ct import of the second; return what that
    said.
    """
    code = (
        "import sys; from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.cli import"
        " main; sys.exit(main())"
    )
    one, two = (
        [sys.executable, "-c", code, *words, "--pin-root", lab.pin_root(name)]
        for name, words in (("a", ("export", *filters)), ("b", ("import", "-o", "json")))
    )
    environment = {**os.environ, "PYTHONPATH": str(tree.ROOT / ".ansible/collections")}
    with subprocess.Popen(one, stdout=subprocess.PIPE, env=environment) as writer:
        done = subprocess.run(
            two, stdin=writer.stdout, stdout=subprocess.PIPE, env=environment, check=True, text=True
        )
    assert writer.returncode == 0
    return done.stdout


def invalid(lab: TwoRouters) -> dict[str, int]:
    """Return what the second router counted as invalid."""
    return {
        name: number
        for name, number in lab.counters("b").items()
        if name.startswith("invalid_") and number
    }


def test_a_connection_goes_on_in_the_table_of_the_router_that_takes_over(
    lab: TwoRouters,
    inventory: pathlib.Path,
    tmp_path: pathlib.Path,
    figure: c.Callable[[str, object], None],
) -> None:
    lab.along("a")
    moved, lost, stranger, played = (lab.connect(sport) for sport in (4003, 4004, 4005, 4006))
    for one in (moved, lost, stranger, played):
        one.exchange()
    (before,) = lab.records("a", 4003)
    created = lab.counters("b")["created"]

    told = json.loads(hand_over(lab, "--sport", "4003"))
    assert (told["read"], told["imported"], told["kept"]) == (1, 1, 0)
    assert json.loads(hand_over(lab, "--sport", "4003"))["kept"] == 1, "again changes nothing"
    assert lab.counters("b")["created"] == created + 1
    (there,) = lab.records("b", 4003)
    moving = ("timeout", "age", "idle")
    assert {name: value for name, value in there.items() if name not in moving} == {
        name: value for name, value in before.items() if name not in moving
    }
    assert all(abs(there[name] - before[name]) < 30 for name in moving)

    # the way moves to the second router
    was = invalid(lab)
    lab.along("b")
    moved.exchange()
    (after,) = lab.records("b", 4003)
    assert (after["state"], after["assured"], after["orig"]["src"]) == ("ESTABLISHED", True, CLIENT)
    assert (
        after["orig"]["packets"] > before["orig"]["packets"]
        and after["orig"]["bytes"] >= before["orig"]["bytes"] + 300
    )
    assert (
        after["reply"]["packets"] > before["reply"]["packets"]
        and after["reply"]["bytes"] >= before["reply"]["bytes"] + 1200
    )
    assert invalid(lab) == was, "no segment was invalid"

    # what was not handed over is picked up in the middle: nobody knows how it began, and who sends
    # first is taken for the one who began it
    assert lab.records("b", 4004) == []
    lost.server.sendall(bytes(1200))
    read(lost.client, 1200)
    (picked,) = lab.records("b", 4004)
    assert (picked["orig"]["src"], lab.records("a", 4004)[0]["orig"]["src"]) == (SERVER, CLIENT)
    # and where the tracker is told not to pick up, it is lost, while the one that was handed over
    # goes on
    lab.chains["b"].settings(knobs={"tcp_loose": 0})
    stranger.exchange()
    moved.exchange()
    assert lab.records("b", 4005) == [] and invalid(lab).get("invalid_tcp_new", 0) > was.get(
        "invalid_tcp_new", 0
    )
    assert lab.records("b", 4003)[0]["orig"]["packets"] > after["orig"]["packets"]

    # the playbook does the same, with two hosts of an inventory
    said = play(
        "handoff", inventory, handoff_from="a", handoff_to="b", handoff_directory=str(tmp_path)
    )
    assert "imported:" in said and [path.name for path in tmp_path.iterdir()] == ["inventory.json"]
    tracked = lab.counters("b")["tracked"]
    played.exchange()
    (found,) = lab.records("b", 4006)
    assert (found["state"], found["assured"]) == ("ESTABLISHED", True) and lab.counters("b")[
        "tracked"
    ] > tracked
    moved.close()
    assert lab.records("b", 4003)[0]["state"] == "TIME_WAIT", "and ends as it should"
    figure(
        "a TCP connection handed to another router",
        f"{after['state']}, assured, {after['orig']['packets']} packets counted, 0 invalid",
    )
