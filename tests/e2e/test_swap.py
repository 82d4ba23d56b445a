# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations take over from each other under load: no frame goes unseen, no flow is lost, and each
has counted what was sent.

``python tests/bench/run.py swap`` does the same for longer.
"""

from __future__ import annotations

import collections.abc as c
import os
import pathlib

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.support import swap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FLOWS = 500
ONE = (swap.Way("ipv4", "ingress"),)
ALL = tuple(swap.Way(family, hook) for family in ("ipv4", "ipv6") for hook in ("ingress", "egress"))
SIZES = (1024, 2048)
SWAP = ["load", "replace", "replace", "activate", "delete"]
#: Packets of a flow that a merge of two tables may miss, because they came at that moment; per flow
#: and resize.
MISSED = 2


@pytest.fixture
def load(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> c.Iterator[swap.Load]:
    """Return a lab in which what the test's parameter names is sent; both sources of its
    generations were compiled.
    """
    with swap.Load(request.param, FLOWS, str(tmp_path)) as made:
        for mark in "ab":
            made.take_over(mark)
        yield made


def assert_seen(result: swap.Result) -> None:
    """Each frame that came in was seen. On a busy machine the interface's queue can be full: such
    frames it never had, and it counts them.
    """
    assert result.unseen == 0
    assert result.sent - result.received == result.dropped < result.sent // 4


def told(result: swap.Result, figure: c.Callable[[str, object], None], what: str) -> None:
    figure(f"{what}: swaps", result.swaps)
    figure(f"{what}: packets received meanwhile", result.received)
    figure(f"{what}: packets unseen", result.unseen)
    figure(f"{what}: flows kept", f"{result.flows - result.lost_flows} of {result.flows}")


@pytest.mark.parametrize(
    ("load", "swaps"),
    [(ONE, 8), (ALL, 4)],
    indirect=["load"],
    ids=["one hook", "both hooks and families"],
)
def test_no_frame_goes_unseen(
    load: swap.Load,
    swaps: int,
    figure: c.Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> None:
    def turn(number: int) -> None:
        assert load.take_over("ab"[number % 2]) == SWAP

    result = load.run(swaps, turn)
    told(result, figure, f"generations under load, {request.node.callspec.id}")
    assert result.sent > 1000 * swaps
    assert_seen(result)
    assert result.counted == {"tracked": result.received}
    assert (result.lost_flows, result.missing) == (0, result.dropped)
    assert result.dropped or result.wrong_flows == 0
    assert result.flows == FLOWS * len({way.family for way in load.ways})


@pytest.mark.parametrize("load", [ALL], indirect=True)
def test_no_frame_goes_unseen_while_tables_are_copied(
    load: swap.Load, figure: c.Callable[[str, object], None]
) -> None:
    """Every second generation has tables of another size."""
    swaps = 4
    resized = 0

    def turn(number: int) -> None:
        nonlocal resized
        resized += "move" in load.take_over("ab"[number % 2], SIZES[(number // 2 + 1) % 2])

    result = load.run(swaps, turn)
    told(result, figure, "generations under load, every second with tables of another size")
    assert resized == swaps // 2
    assert_seen(result)
    assert result.counted == {"tracked": result.received}
    assert result.lost_flows == 0
    assert 0 <= result.missing - result.dropped <= MISSED * result.flows * resized


@pytest.mark.parametrize("load", [ONE], indirect=True)
def test_what_the_others_would_see_if_it_were_not_so(
    load: swap.Load, figure: c.Callable[[str, object], None]
) -> None:
    """An interface that is detached and attached again, as without links, has frames that nobody
    sees.
    """
    result = load.run(3, lambda dummy: load.attach_anew())
    figure("detached and attached 3 times under load instead: packets unseen", result.unseen)
    assert (
        result.unseen > 0
        and result.sent - result.received == result.dropped
        and result.missing == result.unseen + result.dropped
    )
