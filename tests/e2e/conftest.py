# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab, built once; each test that asks for ``wire`` finds both trackers empty."""

from __future__ import annotations

import collections.abc as c
import os

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.wire import Wire


@pytest.fixture(scope="session")
def lab_on_the_wire() -> c.Iterator[Wire]:
    """Return the lab; it goes whatever the tests do."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Wire() as made:
        yield made


@pytest.fixture
def wire(lab_on_the_wire: Wire) -> c.Iterator[Wire]:
    """Return the lab with both trackers empty."""
    lab_on_the_wire.reset()
    yield lab_on_the_wire
    lab_on_the_wire.reset()
