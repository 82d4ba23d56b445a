# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames made to hurt: none is dropped, changed, or counted twice or never; and what they open, nf_conntrack opens too."""

from __future__ import annotations

import random

import hypothesis
import hypothesis.strategies as st
from ansible_collections.ebpf.conntrack.tests.oracle.fuzz import fuzz
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, mutate
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk


def test_every_frame_passes_unchanged_and_is_counted_once(chain: ChainRig) -> None:
    """A short run of what ``make fuzz`` does for a million frames; it must reach more than the first parsers."""
    chain.flush()
    seen = fuzz(chain, 30_000, seed=20260101)
    assert {"tracked", "related"} <= seen.keys()
    assert sum(name.startswith("invalid") for name in seen) > 5


#: What the chain says that it does not track; each goes when it does.
NOT_YET = frozenset(("untracked_ipv6", "untracked_vlan", "untracked_fragment", "untracked_l4_proto"))


@hypothesis.settings(max_examples=3000)
@hypothesis.given(rng=st.randoms(use_true_random=False))
def test_opens_what_the_kernel_opens(kernel: NfRig, chain: ChainRig, rng: random.Random) -> None:
    """One frame after some good ones: what is invalid, related or new here is so there.

    Checksums are right, because the chain does not verify those of transports yet.
    """
    kernel.flush()
    chain.flush()
    for step in (*Talk(V4).open().steps, V4.udp("a"), V4.echo("a", 1)):
        kernel.step(step.side, step.frame)
        chain.step(step.side, step.frame)
    side, frame = rng.choice("ab"), mutate.mutated(rng, start=12, seal=1)
    its, ours = kernel.step(side, frame), chain.step(side, frame)
    # A flow becomes the kernel's only when its first packet leaves the router, and some are thrown away for what has nothing to do with tracking.
    thrown_away = its.detail == "new" and its.outcome == "ignored"
    if ours.detail not in NOT_YET and not thrown_away:
        faults = compare.differences(its, ours)
        assert not faults, (*faults, side, frame.hex())
