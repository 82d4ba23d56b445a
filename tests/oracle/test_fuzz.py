# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames made to hurt: none is dropped, changed, or counted twice or never; and what they open,
nf_conntrack opens too.
"""

from __future__ import annotations

import random
import typing as t

import hypothesis
import hypothesis.strategies as st
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import RANDOM, Chains
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, mutate, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.examples import examples
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4, V6
from ansible_collections.ebpf.conntrack.tests.oracle.rig.fuzz import fuzz
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk


def test_every_frame_passes_unchanged_and_is_counted_once(random_chains: Chains) -> None:
    """A short run of what ``make fuzz`` does for a million frames; it must reach the far ends of
    all parsers.
    """
    seen = fuzz(random_chains, 30_000, seed=20260101)
    assert {"tracked", "related", "fragment"} <= seen.keys()
    assert sum(name.startswith("invalid") for name in seen) > 10


@hypothesis.settings(max_examples=examples(3000))
@hypothesis.given(rng=st.randoms(use_true_random=False))
def test_opens_what_the_kernel_opens(
    kernel: NfRig, random_chains: Chains, rng: random.Random
) -> None:
    """One frame after some good ones: what is invalid, related or new here is so there.

    UDP-Lite is left out for its checksums.
    """
    trackers: dict[str, compare.Tracker] = {"kernel": kernel, **random_chains}
    for tracker in trackers.values():
        tracker.flush()
    lag = 0.0
    for step in (
        *Talk(V4).open().steps,
        *Talk(V6).open().steps,
        V4.udp("a"),
        V6.udp("a"),
        V4.echo("a", 1),
        V6.echo("a", 1),
    ):
        lag = max(lag, compare.step_all(trackers, step.side, step.frame)[1])
    side, frame = (
        rng.choice("ab"),
        mutate.mutated(rng, start=12, seal=1, without=("udplite",), ident=frames.new_ident()),
    )
    seen, took = compare.step_all(trackers, side, frame)
    if not left_out(seen, frame):
        faults = compare.all_differences(seen, lag=max(lag, took))
        assert not faults, (*faults, side, frame.hex())


def left_out(seen: t.Mapping[str, view.Seen], frame: bytes) -> bool:
    """Whether the frame met something else than tracking, on one side or the other; each is told in
    docs/design/differences.md.
    """
    kernel, chain = seen["kernel"], seen[RANDOM]
    not_forwarded = kernel.detail == "new" and kernel.outcome == "ignored"
    hop_by_hop = kernel.outcome == "unseen" and mutate.is_hop_by_hop(frame)
    return not_forwarded or hop_by_hop or chain.detail == "untracked_vlan_depth"
