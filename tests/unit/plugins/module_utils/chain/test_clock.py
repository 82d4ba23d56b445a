# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables' clock."""

from __future__ import annotations

import time

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes


def test_hz_is_one_that_kernels_are_built_with() -> None:
    assert chain_jiffies.hz() in (100, 250, 300, 1000)


def test_now_moves_without_any_packet() -> None:
    """Nothing in meta moves here, as when traffic has stopped; the clock does all the same."""
    later = fakes.META["ktime_ns"] + 4_000_000_000
    assert clock.jiffies_now(fakes.META, later, 250) - fakes.META["jiffies"] == 1000


def test_now_is_read_from_the_monotonic_clock() -> None:
    meta = {"jiffies": 1 << 33, "ktime_ns": time.monotonic_ns()}
    assert 0 <= clock.jiffies_now(meta) - (1 << 33) < 10 * chain_jiffies.hz()


@pytest.mark.parametrize("meta", [{}, {"jiffies": 0, "ktime_ns": 0}])
def test_a_chain_without_a_clock_is_an_error(meta: dict[str, int]) -> None:
    with pytest.raises(ConntrackError, match="Run xdp_program"):
        clock.jiffies_now(meta)


@pytest.mark.parametrize(
    "jiffies", [1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 5]
)
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


#: Jiffies since the last packet and the timeout that it gave, for each rate: what the kernel's own
#: clock, which does not go round, makes of them.
SPANS = [(idle, whole) for idle in (0, 1, 29, 30, 31, 1 << 30) for whole in (1, 30, 1 << 29)]
ROUNDS = [
    (over, whole)
    for over in ((1 << 31) - 1, 1 << 31, (1 << 31) + 5, 3 << 30)
    for whole in (1, 30, 120 * 1000, 1 << 28)
]


@pytest.mark.parametrize("now", [1 << 32, (1 << 32) + 7, (1 << 33) - 1, 1 << 35, (3 << 31) + 99])
@pytest.mark.parametrize("rate", [100, 250, 1000])
def test_what_is_over_is_told_as_by_a_clock_that_does_not_go_round(now: int, rate: int) -> None:
    for idle, whole in [*SPANS, *((late + whole, whole) for late, whole in ROUNDS)]:
        if (
            whole > chain_settings.LONGEST_TIMEOUT * rate
            or idle >= (1 << 32) - chain_settings.CLOCK_SLACK * rate
        ):
            continue
        seen = now - idle
        assert clock.over((seen + whole) & 0xFFFFFFFF, seen & 0xFFFFFFFF, now, rate) is (
            idle >= whole
        ), (idle, whole)
        assert clock.Clock(now, rate, 0).over((seen + whole) & 0xFFFFFFFF, seen & 0xFFFFFFFF) is (
            idle >= whole
        )


@pytest.mark.parametrize("later", [1, 250, 3600 * 250])
def test_a_packet_later_than_this_instant_is_no_old_one(later: int) -> None:
    assert not clock.over(
        fakes.NOW + later + 30 & 0xFFFFFFFF, fakes.NOW + later & 0xFFFFFFFF, fakes.NOW, 250
    )


def test_more_than_any_timeout_can_not_be_left() -> None:
    longest = chain_settings.LONGEST_TIMEOUT * 250
    assert not clock.over(
        (fakes.NOW + longest) & 0xFFFFFFFF, fakes.NOW & 0xFFFFFFFF, fakes.NOW, 250
    )
    assert clock.over(
        (fakes.NOW + longest + 1) & 0xFFFFFFFF, fakes.NOW & 0xFFFFFFFF, fakes.NOW, 250
    )
