# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that have neither compilers nor BCC nor kernel headers, reached by a user who becomes root
there: the controller compiles, or somebody did before.
"""

from __future__ import annotations

import collections.abc as c
import json
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.conftest import Figure
from ansible_collections.ebpf.conntrack.tests.fleet.conftest import booted
from ansible_collections.ebpf.conntrack.tests.fleet.controller import Controller
from ansible_collections.ebpf.conntrack.tests.fleet.fleet import USER, Fleet
from ansible_collections.ebpf.conntrack.tests.fleet.seen import (
    FLOWS,
    INTERFACES,
    PORT,
    SIZES,
    Traffic,
    left_on,
    nobody,
    not_well,
    status,
    well,
    within,
)

pytestmark = [pytest.mark.timeout(900), pytest.mark.only_in_test_fleet]

ROLLOUT = "ebpf.conntrack.rollout"
AS_USER = {"ansible_user": USER}
WANTED: dict[str, t.Any] = {
    **AS_USER,
    "xdp_ct_interfaces": INTERFACES,
    **SIZES,
    "xdp_ct_build": "clang",
    "rollout_soak": 1,
    "rollout_batches": [1, "100%"],
}
OBJECT = {"fused": True, "events": True}
#: Each of these fails on a bare host.
ABSENT = (
    ["python3", "-c", "import bcc"],
    ["clang", "--version"],
    ["gcc", "--version"],
    ["ls", "/usr/include/linux/bpf.h"],
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[Fleet]:
    """Return three bare hosts."""
    with booted(tmp_path_factory, lambda made: made.up(3, bare=True)) as made:
        yield made


def digests(fleet: Fleet) -> dict[str, str]:
    return {name: status(fleet, name)["digest"] for name in fleet.hosts()}


def flows_on(fleet: Fleet, name: str) -> dict[int, tuple[int, str]]:
    """Return packets and state of the flows of Traffic, by the client's port."""
    listed = json.loads(
        fleet.ssh(name, "ct", "list", "--proto", "udp", "--dport", str(PORT), "-o", "json")
    )
    return traffic_in(listed)


def traffic_in(records: list[dict[str, t.Any]]) -> dict[int, tuple[int, str]]:
    """Without the flow of the datagram that ends the traffic."""
    return {
        one["orig"]["sport"]: (one["orig"]["packets"], one["state"])
        for one in records
        if one["orig"]["packets"] > 1
    }


def test_hosts_without_compilers(fleet: Fleet, before: dict[str, dict[str, str]]) -> None:
    for name in before:
        for words in ABSENT:
            assert fleet.ssh(name, *words, check=False) == "", words


def test_what_the_controller_compiles(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    played = controller.play(ROLLOUT, **WANTED)
    assert min(played.changed().values()) > 0 and not_well(fleet) == [], played.text
    again = controller.play(ROLLOUT, **WANTED)
    assert again.changed() == nobody(fleet)
    figure(
        f"fleet: rollout to {len(fleet.hosts())} hosts without compilers, first and second",
        f"{played.seconds:.1f} s, {again.seconds:.1f} s",
    )


def test_reboots(fleet: Fleet) -> None:
    """In order, and by a power cut: the chain comes back from the object that is kept."""
    old = digests(fleet)
    fleet.reboot("h01")
    fleet.reset("h02")
    assert within(60, lambda: well(fleet, "h01") and well(fleet, "h02"))
    assert digests(fleet) == old


@pytest.fixture(scope="module")
def objects(fleet: Fleet, controller: Controller) -> dict[str, t.Any]:
    """Return the variables for an object that was prepared and signed."""
    directory = controller.home / "objects"
    made = controller.play(
        "ebpf.conntrack.build", limit=None, build_directory=str(directory), build_objects=[OBJECT]
    )
    assert made.changed() == {"localhost": 1}, made.text
    (manifest,) = directory.glob("*.json")
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", fleet.key, "-n", "ebpf-conntrack", manifest],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    signers = controller.home / "signers"
    signers.write_text(
        f"ops@example.com {fleet.key.with_suffix('.pub').read_text('ascii')}", "ascii"
    )
    form = {f"xdp_ct_{name}": value for name, value in OBJECT.items()}
    # the flows have to last until the tests that read them
    return {
        **WANTED,
        **form,
        "xdp_ct_timeouts": {"udp": 600},
        "xdp_ct_build": "object",
        "xdp_ct_objects": str(directory),
        "xdp_ct_signers": str(signers),
    }


def test_an_object_that_is_not_whole(
    fleet: Fleet, controller: Controller, objects: dict[str, t.Any]
) -> None:
    """It is refused here, before anything is sent."""
    old = digests(fleet)
    (path,) = pathlib.Path(objects["xdp_ct_objects"]).glob("*.o")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        played = controller.play(ROLLOUT, **objects)
    finally:
        path.write_bytes(whole)
    assert (
        played.status != 0 and "its sha256 is" in played.text and "Traceback" not in played.text
    ), played.text
    assert digests(fleet) == old and not_well(fleet) == []


def test_an_object_that_was_made_before(
    fleet: Fleet, controller: Controller, objects: dict[str, t.Any], figure: Figure
) -> None:
    old = digests(fleet)
    with Traffic(fleet, "h01", "h02") as traffic:
        played = controller.play(ROLLOUT, **objects)
        assert min(played.changed().values()) > 0, played.text
    assert not_well(fleet) == [] and all(
        digest != old[name] for name, digest in digests(fleet).items()
    )
    assert (traffic.lost, traffic.unseen, traffic.kept) == (0, 0, FLOWS)
    assert controller.play(ROLLOUT, **objects).changed() == nobody(fleet)
    figure(
        "fleet: upgrade of hosts without compilers under traffic",
        f"{played.seconds:.1f} s, {traffic.sent} packets, {traffic.lost} lost, {traffic.unseen}"
        f" unseen, {traffic.kept} of {traffic.flows} flows kept",
    )


def test_one_table_of_all_hosts(fleet: Fleet, controller: Controller) -> None:
    """With the flows of the traffic before, which h02 answered."""
    wanted = flows_on(fleet, "h02")
    table = controller.home / "flows.jsonl"
    played = controller.play(
        "ebpf.conntrack.flows",
        **AS_USER,
        flows_file=str(table),
        flows_options={"proto": ["udp"], "dport": [PORT]},
    )
    assert played.status == 0, played.text
    records = [json.loads(line) for line in table.read_text("utf-8").splitlines()]
    assert (
        traffic_in([one for one in records if one["host"] == "h02"]) == wanted
        and len(wanted) == FLOWS
    )
    assert not list(controller.home.glob(".flows.*"))


def test_flows_are_handed_to_another_host(fleet: Fleet, controller: Controller) -> None:
    wanted = flows_on(fleet, "h02")
    assert flows_on(fleet, "h03") == {} and len(wanted) == FLOWS
    played = controller.play(
        "ebpf.conntrack.handoff",
        **AS_USER,
        handoff_from="h02",
        handoff_to="h03",
        handoff_directory=str(controller.home),
        handoff_flows={"proto": ["udp"], "dport": [PORT]},
    )
    assert played.changed()["h03"] == 1, played.text
    assert flows_on(fleet, "h03") == wanted
    for name in ("h02", "h03"):
        assert fleet.ssh(name, "find", "/tmp", "-name", ".handoff.*") == ""
    assert not list(controller.home.glob("*.flows"))


def test_nothing_is_left(
    fleet: Fleet, controller: Controller, before: dict[str, dict[str, str]]
) -> None:
    assert min(controller.play("ebpf.conntrack.uninstall", **AS_USER).changed().values()) > 0
    assert {name: left_on(fleet, name) for name in fleet.hosts()} == before
