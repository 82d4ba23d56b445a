# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that passes everything on changes nothing, and is told what the tracker made of each
frame.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import random
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import FORMS
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, mutate, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4, V6
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk
from ansible_collections.ebpf.conntrack.tests.oracle.test_packets import error

#: Keeps what it was told, and passes it on.
WITNESS = """
GUEST_MAP(told, "array", int, struct ct_found, 1, 0);

GUEST(witness)
{
        int i = 0;

        told.update(&i, &f->found);
        return guest_next(ctx);
}
"""
SLOT = 29
#: enum found_bits of files/bpf/lib/flow.h
FLOW, NEW, REPLY, SEEN_REPLY, ASSURED, EGRESS, WAS_ASSURED = (1 << bit for bit in range(7))
FOUND = struct.Struct("=BBBx")
MUTATED = 400


class Watched(ChainRig):
    """A chain with the witness, which has to have seen each frame once, as what it was counted.

    :ivar told: (state, bits) of the last frame.
    """

    def __init__(self, source: pathlib.Path, **form: t.Any) -> None:
        super().__init__(checksum="strict", asked=[{"slot": SLOT, "src": str(source)}], **form)
        self._told, self._guest_stats = (
            bpf.obj_get(self.paths.map(name)) for name in ("told", "guest_stats")
        )
        self._seen = 0
        self.told = (0, 0)

    def close(self) -> None:
        for fd in (self._told, self._guest_stats):
            bpf.close(fd)
        super().close()

    def run(self, side: str, frame: bytes) -> str:
        detail = super().run(side, frame)
        self._seen += 1
        assert guests.counts(self._guest_stats, SLOT) == {
            "seen": self._seen,
            "passed": self._seen,
            "dropped": 0,
        }
        number, *rest = FOUND.unpack(
            t.cast("bytes", bpf.map_lookup(self._told, bytes(4), FOUND.size))
        )
        assert chain_counters.COUNTERS[number] == detail, (
            f"told {chain_counters.COUNTERS[number]}, counted {detail}: {side} {frame.hex()}"
        )
        self.told = (rest[0], rest[1])
        return detail


Watchers = dict[str, Watched]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Watchers]:
    """The chain with a witness, in all its forms."""
    source = tmp_path_factory.mktemp("guests") / "witness.c"
    source.write_text(WITNESS, encoding="utf-8")
    with contextlib.ExitStack() as rigs:
        yield {
            name: t.cast("Watched", rigs.enter_context(Watched(source, **form)))
            for name, form in FORMS.items()
        }


def talks() -> t.Iterator[list[frames.Step]]:
    """TCP in each of its states, and whatever else has one."""
    for pair, state in itertools.product(
        (V4, V6),
        (
            "SYN_SENT",
            "SYN_RECV",
            "ESTABLISHED",
            "FIN_WAIT",
            "CLOSE_WAIT",
            "LAST_ACK",
            "TIME_WAIT",
            "CLOSE",
        ),
    ):
        yield Talk(pair).until(state).steps
        yield Talk(pair).until(state, opener="b").steps
    for pair in (V4, V6):
        yield [pair.udp("a"), pair.udp("b"), pair.udp("a")]
        yield [pair.udp("b"), pair.udp("a")]
        yield [pair.echo("b", 7), pair.echo("a", 7, reply=True)]
        yield [pair.echo("b", 7, reply=True)]
        yield [pair.udp("a"), error("b", pair.udp("a"))]
        yield [*Talk(pair).open("b").steps, error("a", Talk(pair).open("b").steps[-1])]
        yield [error("b", pair.udp("a"))]


def assert_told(seen: view.Seen, told: tuple[int, int], step: frames.Step, before: int) -> None:
    """The guest was told what the readers make of the flow, of which there is one at most."""
    state, bits = told
    if not seen.flows:
        assert told == (0, 0)
        return
    (one,) = seen.flows.values()
    assert bits & FLOW
    assert (bool(bits & SEEN_REPLY), bool(bits & ASSURED)) == (one.seen_reply, one.assured), seen
    assert bool(bits & NEW) == (before == 0), "the first packet of a flow is the one that makes it"
    assert not bits & REPLY or not bits & NEW
    if one.proto == "tcp":
        assert chain_states.TCP_STATES[state] == one.state


def test_it_is_told_what_the_tracker_found(kernel: NfRig, watched: Watchers) -> None:
    told_bits = set()
    for steps in talks():
        compare.play(kernel, watched, steps)
        for rig in watched.values():
            rig.flush()
            flows: dict[t.Any, t.Any] = {}
            for step in steps:
                before = len(flows)
                seen = rig.step(step.side, step.frame)
                assert_told(seen, rig.told, step, before)
                told_bits.add(rig.told[1])
                if seen.flows:  # who began it, and which way this packet goes
                    bits = rig.told[1]
                    assert (
                        bool(bits & WAS_ASSURED) == any(one.assured for one in flows.values())
                        or seen.outcome == "related"
                    )
                    assert bool(bits & EGRESS) == (steps[0].side == "b")
                    assert bool(bits & REPLY) == (
                        step.side != steps[0].side and seen.outcome != "related"
                    )
                flows = seen.flows
    union = 0
    for bits in told_bits:
        union |= bits
    assert union == FLOW | NEW | REPLY | SEEN_REPLY | ASSURED | EGRESS | WAS_ASSURED, (
        "the talks show every bit"
    )


def test_the_tracker_is_the_same_with_a_guest(kernel: NfRig, watched: Watchers) -> None:
    """As in test_fuzz, with fewer frames: all that can come of a frame comes to the guest, too."""
    rng, details = random.Random(20260301), set()
    for dummy in range(MUTATED):
        trackers: dict[str, compare.Tracker] = {"kernel": kernel, **watched}
        for tracker in trackers.values():
            tracker.flush()
        for step in (*Talk(V4).open().steps, V6.udp("a"), V4.echo("a", 1)):
            for tracker in trackers.values():
                tracker.step(step.side, step.frame)
        side, frame = (
            rng.choice("ab"),
            mutate.mutated(rng, start=12, seal=1, without=("udplite",), ident=frames.new_ident()),
        )
        seen = {name: tracker.step(side, frame) for name, tracker in trackers.items()}
        details.add(seen["chain"].detail.partition("_")[0])
        assert seen["chain"].detail == seen["fused"].detail
        skipped = (
            seen["kernel"].outcome in ("ignored", "unseen")
            or seen["chain"].detail == "untracked_vlan_depth"
        )
        if not skipped:
            faults = compare.all_differences(seen)
            assert not faults, (*faults, side, frame.hex())
    assert {"tracked", "fragment", "invalid", "untracked"} <= details
