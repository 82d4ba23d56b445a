# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a watch finds a chain not well, and what it takes for unseen; no kernel is asked."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import soak
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import diagnosis


def reading(at: float, **counts: int) -> dict[str, t.Any]:
    return {
        "at": at,
        "frames": 0,
        "invalid": 0,
        "evicted": 0,
        "evicted_assured": 0,
        "insert_failed": 0,
        "flows": 0,
        **counts,
    }


def figures(**more: t.Any) -> dict[str, t.Any]:
    return {**soak.figures_of(None, reading(0), reading(10, frames=1000), 1000, 0), **more}


def test_a_chain_that_is_well() -> None:
    assert soak.judge(figures(), soak.Limits()) == []


@pytest.mark.parametrize(
    ("name", "more", "detail"),
    [
        ("unseen", {"unseen": 3}, "3 of 1000 received frames were not counted, 0 may be"),
        (
            "evicted_assured",
            {"evicted_assured_excess": 2},
            "2 assured flows were pushed out beyond the rate before, 0 may",
        ),
        (
            "insert_failed",
            {"insert_failed_excess": 1.5},
            "1.5 entries could not be made beyond the rate before, 0 may",
        ),
        (
            "invalid_ratio",
            {"invalid_ratio": 0.5},
            "50.00% of 1000 frames were invalid, before 0.00%; 5.00% more may be",
        ),
    ],
)
def test_each_figure_has_its_limit(name: str, more: dict[str, t.Any], detail: str) -> None:
    (trouble,) = soak.judge(figures(**more), soak.Limits())
    assert (trouble.figure, trouble.detail) == (name, detail)


def test_without_a_limit_anything_is_put_up_with() -> None:
    wrong = figures(
        unseen=3,
        evicted_excess=9,
        evicted_assured_excess=2,
        insert_failed_excess=1,
        invalid_ratio=1.0,
    )
    assert soak.judge(wrong, soak.Limits(None, None, None, None, None)) == []
    assert [one.figure for one in soak.judge(wrong, soak.Limits(evicted=8))] == [
        "unseen",
        "evicted",
        "evicted_assured",
        "insert_failed",
        "invalid_ratio",
    ]


def test_a_share_that_was_as_large_before_is_no_trouble() -> None:
    assert soak.judge(figures(invalid_ratio=0.5, invalid_ratio_before=0.47), soak.Limits()) == []


def test_of_few_frames_no_share_is_told() -> None:
    assert soak.ratio(50, soak.ENOUGH_FRAMES - 1) is None and soak.ratio(1, 200) == 0.005


def test_what_is_evicted_at_the_rate_before_does_not_count() -> None:
    before, start, end = (
        reading(0, frames=1, evicted=100),
        reading(10, frames=2, evicted=150),
        reading(30, frames=3, evicted=260),
    )
    assert soak.excess(before, start, end, "evicted") == 10, "5 a second before make 100 of the 110"
    assert soak.excess(None, start, end, "evicted") == 110
    assert soak.excess(reading(0, frames=9, evicted=100), start, end, "evicted") == 110, (
        "those are another chain's counts"
    )


def test_faults_that_were_there_before_are_no_trouble() -> None:
    faults = [
        diagnosis.Fault("path_foreign", "/a", "/a is a directory"),
        diagnosis.Fault("slot_empty", "jt[3]", "slot 3 (ct) is empty"),
    ]
    (trouble,) = soak.judge_faults(
        faults, [{"fault": "path_foreign", "object": "/a", "detail": "as it was"}]
    )
    assert (trouble.figure, trouble.value, trouble.detail) == (
        "faults",
        "slot_empty",
        "slot_empty jt[3]: slot 3 (ct) is empty",
    )


class World:
    """An interface and a chain that count; each wait lets frames come in."""

    def __init__(self, late: float = 0.0, lost: int = 0, before: int = 1000) -> None:
        self.late, self.lost = late, lost
        self.now, self.came, self.history = 0.0, before, [(0.0, before)]
        self.seen = 500

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.came += int(100 * seconds)
        self.seen += int(100 * seconds) - self.lost
        self.history.append((self.now, self.came))

    def received(self) -> int:
        return max(count for at, count in self.history if at <= self.now - self.late or at == 0.0)

    def counted(self) -> int:
        return self.seen


def test_a_frame_that_is_lost_is_seen_to_be() -> None:
    world = World(lost=2)
    frames = soak.Frames(world.received, world.counted, 0.0, world.wait)
    world.wait(5)
    received, unseen = frames.unseen()
    assert received > 500 and unseen > 0


def test_late_counts_are_not_taken_for_lost_frames() -> None:
    world = World(late=1.0)
    world.wait(0.5)
    world.wait(0.5)
    frames = soak.Frames(world.received, world.counted, 1.0, world.wait)
    world.wait(1)
    world.wait(1)
    assert frames.unseen()[1] == 0


def test_an_interface_that_is_gone_has_lost_nothing() -> None:
    counts = iter([1000, 200])
    frames = soak.Frames(lambda: next(counts), lambda: 5, 0.0, lambda seconds: None)
    assert frames.unseen() == (0, 0)


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "echo no; exit 3"], 3, "no"),
        (["/nowhere/probe"], -1, "it can not be run"),
        (["sleep", "9"], -1, "it did not end within"),
    ],
)
def test_probes(argv: list[str], code: int, said: str) -> None:
    found, troubles = soak.run_probe(argv, 0.3)
    assert found is not None and found["rc"] == code and said in found["output"]
    assert [one.figure for one in troubles] == (["probe"] if code else [])


def test_without_a_probe_there_is_none() -> None:
    assert soak.run_probe([], 1) == (None, [])
