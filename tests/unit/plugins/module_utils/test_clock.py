# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables' clock."""

from __future__ import annotations

import time

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.errors import ConntrackError
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes


def test_hz_is_one_that_kernels_are_built_with() -> None:
    assert clock.hz() in (100, 250, 300, 1000)


def test_now_moves_without_any_packet() -> None:
    """Nothing in meta moves here, as when traffic has stopped; the clock does all the same."""
    later = fakes.META["ktime_ns"] + 4_000_000_000
    assert clock.jiffies_now(fakes.META, later, 250) - fakes.META["jiffies"] == 1000


def test_now_is_read_from_the_monotonic_clock() -> None:
    meta = {"jiffies": 1 << 33, "ktime_ns": time.monotonic_ns()}
    assert 0 <= clock.jiffies_now(meta) - (1 << 33) < 10 * clock.hz()


@pytest.mark.parametrize("meta", [{}, {"jiffies": 0, "ktime_ns": 0}])
def test_a_chain_without_a_clock_is_an_error(meta: dict[str, int]) -> None:
    with pytest.raises(ConntrackError, match="Run xdp_program"):
        clock.jiffies_now(meta)


@pytest.mark.parametrize("jiffies", [1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 5])
@pytest.mark.parametrize("distance", [-432000 * 1000, -1, 0, 1, 432000 * 1000])
def test_distances_survive_the_wrap_of_32_bits(jiffies: int, distance: int) -> None:
    now = clock.Clock(jiffies, 1000, 0)
    assert now.left((jiffies + distance) & 0xFFFFFFFF) == distance


def test_idle_and_age_are_whole_seconds_and_never_negative() -> None:
    now = clock.Clock(10_000, 100, 0)
    assert now.idle(10_000 - 250) == 2
    assert now.idle(10_001) == 0
    assert now.age(97) == 3
    assert now.age(101) == 0
