# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet that the tests of this directory share: FLEET_HOSTS hosts of it, 3 where nothing else
is said.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import os
import pathlib

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.conftest import figure, pytest_terminal_summary
from ansible_collections.ebpf.conntrack.tests.fleet.controller import Controller
from ansible_collections.ebpf.conntrack.tests.fleet.fleet import Fleet
from ansible_collections.ebpf.conntrack.tests.fleet.seen import left_on, status

__all__ = ["before", "booted", "controller", "figure", "fleet", "pytest_terminal_summary"]

HOSTS = int(os.environ.get("FLEET_HOSTS", "3"))


@contextlib.contextmanager
def booted(
    tmp_path_factory: pytest.TempPathFactory, up: c.Callable[[Fleet], object]
) -> c.Iterator[Fleet]:
    """A fleet of which nothing is left behind, whatever the tests do.

    :param up: boots its hosts.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Fleet(tmp_path_factory.mktemp("fleet") / "fleet")
    try:
        up(made)
        yield made
    finally:
        made.down()
    assert made.leaks() == []


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[Fleet]:
    """Return the fleet."""
    with booted(tmp_path_factory, lambda made: made.up(HOSTS)) as made:
        yield made


@pytest.fixture(scope="module")
def controller(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Controller:
    """Return somebody who has installed the collection."""
    home: pathlib.Path = tmp_path_factory.mktemp("home")
    return Controller(fleet, home)


@pytest.fixture(scope="module")
def before(fleet: Fleet, controller: Controller) -> dict[str, dict[str, str]]:
    """Return what each host was like before the collection's first run, or after another module's
    tests ended half-way.
    """
    if any(status(fleet, name) for name in fleet.hosts()):
        controller.role(xdp_ct_state="absent").changed()
    return {name: left_on(fleet, name) for name in fleet.hosts()}
