# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks for fleets, over SSH: from nothing to the chain, and what becomes of batches that
fail, of lost hosts, of a run that is killed, and back.
"""

from __future__ import annotations

import os
import signal
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
WANTED: dict[str, t.Any] = {
    "xdp_ct_interfaces": INTERFACES,
    **SIZES,
    "rollout_soak": 1,
    "rollout_batches": [1, "100%"],
}
#: In make test only the others are run, for time is short there; make test-fleet runs all.
only_in_test_fleet = pytest.mark.only_in_test_fleet
ROLLOUT = "ebpf.conntrack.rollout"
#: Tasks of a run that finds nothing to do which need the host.
TASKS = 6


def chains(fleet: Fleet) -> dict[str, tuple[int, str]]:
    """Return the generation and the digest of each host's chain."""
    found = {name: status(fleet, name) for name in fleet.hosts()}
    return {name: (told["generation"], told["digest"]) for name, told in found.items()}


def worked(fleet: Fleet, what: t.Callable[[], Played]) -> tuple[Played, float]:
    """Return what was played, and how much CPU time that took on the last host, in seconds."""
    before = fleet.work(fleet.hosts()[-1])
    played = what()
    return played, fleet.work(fleet.hosts()[-1]) - before


def but_the_first(fleet: Fleet, found: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    return {name: found[name] for name in fleet.hosts()[1:]}


def converges(fleet: Fleet, controller: Controller) -> None:
    """The next run brings all hosts to the same chain."""
    controller.play(ROLLOUT, **WANTED).changed()
    assert not_well(fleet) == [] and len({digest for dummy, digest in chains(fleet).values()}) == 1


def test_from_nothing(
    fleet: Fleet, controller: Controller, before: dict[str, dict[str, str]], figure: Figure
) -> None:
    figure(f"fleet: {len(before)} hosts answer SSH after", f"{fleet.seconds:.1f} s")
    played = controller.play(ROLLOUT, **WANTED)
    assert min(played.changed().values()) > 0 and not_well(fleet) == []
    figure(
        f"fleet: rollout to {len(before)} hosts in 2 batches",
        f"{played.seconds:.1f} s, {played.memory:.0f} MiB on the controller",
    )


def test_a_second_run_changes_nothing(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    again, work = worked(fleet, lambda: controller.play(ROLLOUT, **WANTED))
    assert again.changed() == nobody(fleet)
    assert (
        max(told["ok"] for name, told in again.recap.items() if name != fleet.hosts()[0])
        == TASKS + 3
    ), "and the settings of two roles and the names of variables, which are looked at here"
    bare, of_pings = worked(
        fleet,
        lambda: controller.play(
            [
                {
                    "hosts": "fleet",
                    "gather_facts": False,
                    "tasks": [{"ansible.builtin.ping": None}] * TASKS,
                }
            ]
        ),
    )
    ratio = f"{again.seconds / bare.seconds:.2f} of {TASKS} pings"
    figure(
        f"fleet: second rollout to {len(fleet.hosts())} hosts",
        f"{again.seconds:.1f} s, {ratio}, {again.memory:.0f} MiB on the controller",
    )
    figure(
        "fleet: second rollout, processor time on a host",
        f"{work:.2f} s, {of_pings:.2f} s for the pings",
    )
    # what is done once a run, such as making the modules' archives, shows the more the fewer hosts
    # there are
    assert again.seconds < (2 if len(fleet.hosts()) >= 20 else 4) * bare.seconds, ratio


@only_in_test_fleet
def test_an_upgrade_under_traffic(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    """Tables of another size: the flows move, no frame goes unseen on the host that gets them."""
    WANTED.update(xdp_ct_table_size=8192, xdp_ct_half_open_size=8192)
    generations = {name: number for name, (number, dummy) in chains(fleet).items()}
    with Traffic(fleet, "h01", "h02") as traffic:
        played, work = worked(fleet, lambda: controller.play(ROLLOUT, **WANTED))
        assert min(played.changed().values()) > 0, played.text
    assert {name: number for name, (number, dummy) in chains(fleet).items()} == {
        name: number + 1 for name, number in generations.items()
    }
    assert (traffic.lost, traffic.unseen, traffic.kept) == (0, 0, FLOWS)
    figure(
        f"fleet: upgrade of {len(generations)} hosts in 2 batches under traffic",
        f"{played.seconds:.1f} s, {traffic.sent} packets sent, {traffic.lost} lost,"
        f" {traffic.unseen} unseen, {traffic.kept} of {traffic.flows} flows kept",
    )
    figure("fleet: upgrade, processor time on a host", f"{work:.2f} s")


def test_a_canary_that_fails_its_probe(
    fleet: Fleet, controller: Controller, figure: Figure
) -> None:
    """It gets back what it had, with its flows, and no later batch is touched."""
    old = chains(fleet)
    with Traffic(fleet, "h02", "h01") as traffic:
        played = controller.play(
            ROLLOUT,
            **{**WANTED, "xdp_ct_events": True, "rollout_probe": ["test", "-e", "/var/tmp/well"]},
        )
    assert played.status != 0 and "Put back: h01." in played.text, played.text
    new = chains(fleet)
    assert (
        new["h01"][1] == old["h01"][1]
        and but_the_first(fleet, new) == but_the_first(fleet, old)
        and not_well(fleet) == []
    )
    assert (traffic.lost, traffic.unseen, traffic.kept) == (0, 0, FLOWS)
    figure(
        "fleet: a canary that fails its probe under traffic",
        f"1 roll-back, {len(new) - 1} hosts not touched, {played.seconds:.1f} s, {traffic.sent}"
        f" packets, {traffic.lost} lost, {traffic.unseen} unseen, {traffic.kept} of {traffic.flows}"
        " flows kept",
    )


@only_in_test_fleet
def test_a_canary_that_is_lost(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    """It is cut off silently while it is watched: the others are not touched, and the next run
    converges.
    """
    old = chains(fleet)
    WANTED["xdp_ct_events"] = True
    playing = controller.start(ROLLOUT, **{**WANTED, "rollout_soak": 2})
    playing.until("TASK [ebpf.conntrack.rollout : Watch the chain")
    fleet.partition("h01")
    cut = time.monotonic()
    try:
        playing.until("UNREACHABLE!")
        seconds = time.monotonic() - cut
        played = playing.wait()
    finally:
        fleet.heal("h01")
    assert played.status != 0 and "Batch 1 is not well: h01" in played.text, played.text
    assert but_the_first(fleet, chains(fleet)) == but_the_first(fleet, old)
    assert seconds < CUT_SECONDS
    converges(fleet, controller)
    figure("fleet: a canary that is cut off while it is watched is told after", f"{seconds:.1f} s")


def test_a_controller_that_is_killed(fleet: Fleet, controller: Controller) -> None:
    """While it changes the canary, which runs a chain whatever it had come to; the next run does
    the rest.
    """
    WANTED["xdp_ct_events"] = False
    playing = controller.start(ROLLOUT, **WANTED)
    playing.until("TASK [ebpf.conntrack.rollout : Begin the batch]")
    playing.until(
        "TASK [ebpf.conntrack.xdp_ct : Load the chain]",
        after="TASK [ebpf.conntrack.rollout : Begin the batch]",
    )
    time.sleep(1)
    os.killpg(playing.process.pid, signal.SIGKILL)
    assert playing.wait().status == -signal.SIGKILL
    assert not_well(fleet) == []
    converges(fleet, controller)


@only_in_test_fleet
def test_drift_and_a_power_cut(fleet: Fleet, controller: Controller) -> None:
    """A host that lost its power has its chain again, by itself; one that somebody changed is told,
    and nothing is done about it.
    """
    fleet.reset("h02")
    assert within(90, lambda: well(fleet, "h02"))
    fleet.ssh("h01", "ct", "detach", "eth1")
    told = controller.play("ebpf.conntrack.drift", **WANTED)
    assert [
        line.split()[0]
        for line in told.text.splitlines()
        if "eth1" in line and "h02" not in line and "h01" in line
    ], told.text
    fleet.ssh("h01", "ct", "attach", "eth1", "--program", "ingress")
    assert controller.play(ROLLOUT, **WANTED).changed() == nobody(fleet)


@only_in_test_fleet
def test_back(fleet: Fleet, controller: Controller) -> None:
    """To the chain before; a host that was rebooted has none until it is upgraded."""
    old = {name: digest for name, (dummy, digest) in chains(fleet).items()}
    assert min(controller.role(**{**WANTED, "xdp_ct_events": True}).changed().values()) == 1
    assert not set(old.values()) & {digest for dummy, digest in chains(fleet).values()}
    assert (
        min(controller.play("ebpf.conntrack.rollback", **WANTED).changed().values()) > 0
        and not_well(fleet) == []
    )
    assert {name: digest for name, (dummy, digest) in chains(fleet).items()} == old


def test_nothing_is_left(
    fleet: Fleet, controller: Controller, before: dict[str, dict[str, str]]
) -> None:
    assert min(controller.play("ebpf.conntrack.uninstall", **WANTED).changed().values()) > 0
    assert {name: left_on(fleet, name) for name in fleet.hosts()} == before
