# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on a host with another kernel, the distribution's own, in a virtual machine; make
test-vm runs it.
"""

from __future__ import annotations

import collections.abc as c
import os
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.conftest import Figure
from ansible_collections.ebpf.conntrack.tests.fleet import vm
from ansible_collections.ebpf.conntrack.tests.fleet.conftest import booted
from ansible_collections.ebpf.conntrack.tests.fleet.controller import Controller
from ansible_collections.ebpf.conntrack.tests.fleet.fleet import Fleet
from ansible_collections.ebpf.conntrack.tests.fleet.seen import (
    INTERFACES,
    SIZES,
    status,
    well,
    within,
)

pytestmark = [pytest.mark.timeout(1800)]

#: What the host is to be; tests of upgrades change it.
WANTED: dict[str, t.Any] = {"xdp_ct_interfaces": INTERFACES, **SIZES}
NAME, PEER = "v01", "h01"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[Fleet]:
    """Return a fleet of a virtual machine and a host that sends it something."""

    def up(made: Fleet) -> None:
        made.up(1)
        made.seconds = made.up_vm(NAME)

    with booted(tmp_path_factory, up) as made:
        yield made


def tracked(fleet: Fleet) -> int:
    return int(fleet.ssh(NAME, "ct", "count", "--proto", "icmp", "--src", fleet.address(PEER, 1)))


def all_is_well(fleet: Fleet) -> None:
    """It runs the chain, and that sees what comes in."""
    assert within(120, lambda: well(fleet, NAME)), status(fleet, NAME)
    fleet.ssh(NAME, "ct", "flush", "--all", "--yes")
    fleet.ssh(PEER, "ping", "-qc3", "-i0.2", "-W5", fleet.address(NAME, 1))
    assert tracked(fleet) == 1


def test_the_kernel_is_another_one(fleet: Fleet, figure: Figure) -> None:
    assert fleet.ssh(NAME, "uname", "-r").strip() == vm.version() != os.uname().release
    assert "driver: virtio_net" in fleet.ssh(NAME, "ethtool", "-i", "eth1")
    figure(
        f"fleet: a virtual machine with Linux {vm.version()} answers SSH after",
        f"{fleet.seconds:.1f} s",
    )


def test_install(fleet: Fleet, controller: Controller, figure: Figure) -> None:
    played = controller.role(NAME, **WANTED)
    assert played.changed() == {NAME: 4}, played.text
    all_is_well(fleet)
    again = controller.role(NAME, **WANTED)
    assert again.changed() == {NAME: 0}
    figure(
        "fleet: role on the virtual machine, first and second run",
        f"{played.seconds:.1f} s, {again.seconds:.1f} s",
    )


def test_an_upgrade_and_back(fleet: Fleet, controller: Controller) -> None:
    before = status(fleet, NAME)
    assert controller.role(NAME, **{**WANTED, "xdp_ct_events": True}).changed() == {NAME: 1}
    assert status(fleet, NAME)["digest"] != before["digest"]
    all_is_well(fleet)
    assert controller.role(NAME, xdp_ct_state="rolled_back").changed() == {NAME: 1}
    assert status(fleet, NAME)["digest"] == before["digest"]
    all_is_well(fleet)


def test_the_other_compiler(fleet: Fleet, controller: Controller) -> None:
    """The controller's: what it compiled is loaded by this kernel too, in its largest form."""
    WANTED.update(xdp_ct_build="clang", xdp_ct_fused=True)
    before = status(fleet, NAME)
    assert controller.role(NAME, **WANTED).changed() == {NAME: 1}
    assert status(fleet, NAME)["digest"] != before["digest"]
    all_is_well(fleet)
    assert controller.role(NAME, **WANTED).changed() == {NAME: 0}


def test_a_reboot(fleet: Fleet) -> None:
    """Of a kernel: all that it had is gone, and comes back, from the object that is kept."""
    before = (
        fleet.ssh(NAME, "cat", "/proc/sys/kernel/random/boot_id"),
        status(fleet, NAME)["digest"],
    )
    fleet.reboot(NAME)
    assert fleet.ssh(NAME, "cat", "/proc/sys/kernel/random/boot_id") != before[0]
    all_is_well(fleet)
    assert status(fleet, NAME)["digest"] == before[1]


def test_nothing_is_left(fleet: Fleet, controller: Controller) -> None:
    assert controller.role(NAME, xdp_ct_state="absent").changed() == {NAME: 4}
    assert (
        "xdp" not in fleet.ssh(NAME, "ip", "link")
        and "ct" not in fleet.ssh(NAME, "ls", "/sys/fs/bpf", "/usr/local/bin", "/run").split()
    )
