# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A chain's life on a fleet, over SSH: installed, upgraded under traffic, through reboots, lost
hosts and full disks, back, and away again.
"""

from __future__ import annotations

import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.conftest import Figure
from ansible_collections.ebpf.conntrack.tests.fleet.controller import Controller, Played
from ansible_collections.ebpf.conntrack.tests.fleet.fleet import Fleet
from ansible_collections.ebpf.conntrack.tests.fleet.seen import (
    CUT_SECONDS,
    FLOWS,
    INTERFACES,
    SIZES,
    Traffic,
    left_on,
    nobody,
    not_well,
    status,
    well,
    within,
)

pytestmark = pytest.mark.timeout(900)

#: What the fleet is to be; tests of upgrades change it.
WANTED: dict[str, t.Any] = {"xdp_ct_interfaces": INTERFACES, **SIZES}


def test_install(
    fleet: Fleet, controller: Controller, before: dict[str, dict[str, str]], figure: Figure
) -> None:
    figure(f"fleet: {len(before)} hosts answer SSH after", f"{fleet.seconds:.1f} s")
    played = controller.role(**WANTED)
    assert set(played.changed().values()) == {4}, played.text
    assert "[WARNING]" not in played.text, played.text
    assert not_well(fleet) == []
    figure(
        f"fleet: role on {len(before)} hosts, first run",
        f"{played.seconds:.1f} s, {played.memory:.0f} MiB in the largest process of the controller",
    )


def test_a_second_run_changes_nothing(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    played = controller.role(**WANTED)
    assert played.changed() == nobody(fleet)
    tasks = max(told["ok"] for told in played.recap.values())
    bare = controller.play(
        [
            {
                "hosts": "fleet",
                "gather_facts": False,
                "tasks": [{"ansible.builtin.ping": None}] * tasks,
            }
        ]
    )
    assert bare.changed() == nobody(fleet)
    figure(
        f"fleet: role on {len(fleet.hosts())} hosts, second run",
        f"{played.seconds:.1f} s for {tasks} tasks, {played.seconds / bare.seconds:.2f} of as many"
        f" pings, {played.memory:.0f} MiB",
    )


def test_an_upgrade_under_traffic(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    """Tables of another size: the flows move, no frame goes unseen on the host that gets them."""
    WANTED.update(xdp_ct_table_size=8192, xdp_ct_half_open_size=8192)
    generations = {name: status(fleet, name)["generation"] for name in fleet.hosts()}
    with Traffic(fleet, "h01", "h02") as traffic:
        played = controller.role(**WANTED)
        assert set(played.changed().values()) == {1}, played.text
    assert {name: status(fleet, name)["generation"] for name in fleet.hosts()} == {
        name: number + 1 for name, number in generations.items()
    }
    assert traffic.sent > 1000 and traffic.flows == FLOWS
    assert (traffic.lost, traffic.unseen, traffic.kept) == (0, 0, FLOWS)
    figure(
        f"fleet: upgrade of {len(generations)} hosts under traffic",
        f"{played.seconds:.1f} s, {traffic.sent} packets sent, {traffic.lost} lost,"
        f" {traffic.unseen} unseen, {traffic.kept} of {traffic.flows} flows kept",
    )


def test_reboots(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    """One in order, one by a power cut: the chain comes back by itself, as it was."""
    boots = {
        name: fleet.ssh(name, "cat", "/proc/sys/kernel/random/boot_id") for name in ("h01", "h02")
    }
    digests = {name: status(fleet, name)["digest"] for name in boots}
    started = time.monotonic()
    fleet.reboot("h01")
    fleet.reset("h02")
    assert within(60, lambda: well(fleet, "h01") and well(fleet, "h02"))
    figure(
        "fleet: one host rebooted, one without power, until both run their chain",
        f"{time.monotonic() - started:.1f} s",
    )
    for name, boot in boots.items():
        assert fleet.ssh(name, "cat", "/proc/sys/kernel/random/boot_id") != boot
        assert status(fleet, name)["digest"] == digests[name]
        assert fleet.ssh(name, "systemctl", "is-active", "ct") == "active\n"
    assert controller.role(**WANTED).changed() == nobody(fleet)


def unreachable(played: Played) -> list[str]:
    return [name for name, told in played.recap.items() if told["unreachable"]]


def test_a_host_that_is_lost_half_way(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    """It is told as unreachable, the others are upgraded, and the next run upgrades it as well."""
    lost = fleet.hosts()[-1]
    WANTED.update(xdp_ct_events=True)
    playing = controller.start(ROLE_SLOWLY, **WANTED)
    playing.until("TASK [Now]")
    fleet.partition(lost)
    cut = time.monotonic()
    try:
        playing.until("UNREACHABLE!")
        seconds = time.monotonic() - cut
        played = playing.wait()
    finally:
        fleet.heal(lost)
    assert unreachable(played) == [lost], played.text
    assert {name for name, told in played.recap.items() if told["changed"]} == set(
        fleet.hosts()
    ) - {lost}
    assert seconds < CUT_SECONDS
    assert not_well(fleet) == []
    assert controller.role(**WANTED).changed() == {**nobody(fleet), lost: 1}
    figure(
        "fleet: a host that is cut off while a connection to it persists is told after",
        f"{seconds:.1f} s",
    )


#: With a moment in it at which connections persist and nothing has changed yet.
ROLE_SLOWLY = [
    {
        "hosts": "fleet",
        "gather_facts": False,
        "tasks": [
            {"name": "Before", "ansible.builtin.ping": None},
            {"name": "Now", "ansible.builtin.command": "sleep 2", "changed_when": False},
            {"ansible.builtin.include_role": {"name": "ebpf.conntrack.xdp_ct"}},
        ],
    }
]


def test_a_full_disk(fleet: Fleet, controller: Controller) -> None:
    """The host says so and keeps the chain that it has; with room again it takes the new one."""
    full, WANTED["xdp_ct_events"] = "h01", False
    before = status(fleet, full)
    fleet.fill(full)
    try:
        played = controller.role(**WANTED)
        assert (
            played.recap[full]["failed"] == 1
            and "No space left on device" in played.text
            and "Traceback" not in played.text
        ), played.text
        assert {name for name, told in played.recap.items() if told["changed"]} == set(
            fleet.hosts()
        ) - {full}
    finally:
        fleet.empty(full)
    assert not_well(fleet) == [] and status(fleet, full)["generation"] == before["generation"]
    assert controller.role(**WANTED).changed() == {**nobody(fleet), full: 1}


def test_back_and_forth(fleet: Fleet, controller: Controller) -> None:
    digests = {name: status(fleet, name)["digest"] for name in fleet.hosts()}
    assert set(controller.role(xdp_ct_state="rolled_back").changed().values()) == {1}
    assert not_well(fleet) == [] and all(
        status(fleet, name)["digest"] != digest for name, digest in digests.items()
    )
    assert controller.role(xdp_ct_state="rolled_back").changed() == nobody(fleet)
    assert set(controller.role(**WANTED).changed().values()) == {1}
    assert {name: status(fleet, name)["digest"] for name in fleet.hosts()} == digests


def test_nothing_is_left(
    fleet: Fleet, controller: Controller, before: dict[str, dict[str, str]]
) -> None:
    assert set(controller.role(xdp_ct_state="absent").changed().values()) == {4}
    assert {name: left_on(fleet, name) for name in fleet.hosts()} == before
    assert controller.role(xdp_ct_state="absent").changed() == nobody(fleet)
