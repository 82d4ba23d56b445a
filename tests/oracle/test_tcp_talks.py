# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP conversations: those that happen, those that attack, and those that hypothesis finds."""

from __future__ import annotations

import typing as t

import hypothesis
import hypothesis.strategies as st
import pytest
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import Play, Tune
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames, moves
from ansible_collections.ebpf.conntrack.tests.oracle.rig.examples import examples
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk

SCALE = frames.NOP + frames.wscale(7)
SACK_OK = frames.NOP * 2 + frames.SACK_PERMITTED

#: name -> (state at the end, the conversation); None for no entry.
TALKS: dict[str, tuple[str | None, t.Callable[[Talk], Talk]]] = {
    "whole, the client closes first": (
        "TIME_WAIT",
        lambda x: (
            x.open()
            .send("a", "PA", 100)
            .send("b", "PA", 1000)
            .send("a", "FA")
            .send("b", "FA")
            .send("a", "A")
        ),
    ),
    "whole, the server closes first": (
        "TIME_WAIT",
        lambda x: (
            x.open()
            .send("b", "PA", 1000)
            .send("b", "FA")
            .send("a", "A")
            .send("a", "FA")
            .send("b", "A")
        ),
    ),
    "both close at once": (
        "TIME_WAIT",
        lambda x: (
            x.open().send("a", "FA", dack=0).send("b", "FA", dack=-1).send("a", "A").send("b", "A")
        ),
    ),
    "half-close, then data": (
        "CLOSE_WAIT",
        lambda x: (
            x.open()
            .send("a", "FA")
            .send("b", "A")
            .send("b", "PA", 1000)
            .send("a", "A")
            .send("b", "PA", 500)
        ),
    ),
    "closed before the server said anything": (
        "TIME_WAIT",
        lambda x: x.open().send("a", "FA").send("b", "FA").send("a", "A"),
    ),
    "data in the FIN": ("LAST_ACK", lambda x: x.open().send("a", "FPA", 500).send("b", "FPA", 300)),
    "data in the SYN": (
        "ESTABLISHED",
        lambda x: x.send("a", "S", 200).send("b", "SA").send("a", "A").send("b", "PA", 50),
    ),
    "refused": (None, lambda x: x.send("a", "S").send("b", "RA")),
    "refused with sequence number 0": (
        None,
        lambda x: x.send("a", "S").send("b", "RA", dseq=-3_000_000_000),
    ),
    "given up": (None, lambda x: x.send("a", "S").again().send("a", "R")),
    "reset by the client": (
        "CLOSE",
        lambda x: x.open().send("a", "PA", 10).send("b", "A").send("a", "RA"),
    ),
    "reset by the server": ("CLOSE", lambda x: x.open().send("a", "PA", 10).send("b", "RA")),
    "reset after data, a train": (
        "CLOSE",
        lambda x: x.open().send("a", "PA", 10).send("b", "A").send("b", "A", 100).send("b", "R"),
    ),
    "reset out of the window": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "PA", 10).send("b", "A").send("b", "R", dseq=100_000),
    ),
    "reset in the window, not exact": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "PA", 10).send("b", "A").send("b", "R", dseq=100),
    ),
    "reset from the past": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "PA", 10).send("b", "A").send("b", "R", dseq=-1),
    ),
    "two resets": ("CLOSE", lambda x: x.open().send("b", "RA").again()),
    "reset, then data goes on": ("CLOSE", lambda x: x.open().send("b", "RA").send("a", "PA", 10)),
    "reset, then SYN from the same side": (
        "SYN_SENT",
        lambda x: x.open().send("a", "RA").restart((7_000_000, 9_000)).send("a", "S"),
    ),
    "SYN again and again": ("SYN_SENT", lambda x: x.send("a", "S").again().again()),
    "SYN with another sequence number": (
        "ESTABLISHED",
        lambda x: x.send("a", "S").restart((2_000_000, 5_000)).open(),
    ),
    "SYN+ACK again": (
        "ESTABLISHED",
        lambda x: x.send("a", "S").send("b", "SA").again().send("a", "A"),
    ),
    "SYN+ACK with another sequence number": (
        "SYN_RECV",
        lambda x: x.send("a", "S").send("b", "SA").send("b", "SA", dseq=1000),
    ),
    "SYN+ACK alone": (None, lambda x: x.send("b", "SA")),
    "simultaneous open": (
        "ESTABLISHED",
        lambda x: (
            x.send("a", "S")
            .send("b", "S")
            .send("a", "SA", dseq=-1)
            .send("b", "SA", dseq=-1)
            .send("a", "A")
        ),
    ),
    "simultaneous open, one SYN+ACK": (
        "ESTABLISHED",
        lambda x: x.send("a", "S").send("b", "S").send("b", "SA", dseq=-1).send("a", "A"),
    ),
    "simultaneous open, ended by an ACK": (
        "ESTABLISHED",
        lambda x: x.send("a", "S").send("b", "S").send("a", "SA", dseq=-1).send("b", "A"),
    ),
    "half-open: the server's challenge ACK, then reset": (
        "CLOSE",
        lambda x: x.send("a", "S").send("b", "A", dack=-5000).send("a", "R", dseq=-5000),
    ),
    "SYN into an open connection, answered by a challenge ACK": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "S", dseq=50_000).send("b", "A"),
    ),
    "SYN into an open connection, which the server forgot": (
        "ESTABLISHED",
        lambda x: x.open().restart((90_000, 70_000)).open(),
    ),
    "SYN into an open connection, answered by a reset": (
        "CLOSE",
        lambda x: x.open().restart((90_000, 70_000)).send("a", "S").send("b", "RA"),
    ),
    "SYN in LAST_ACK, a challenge ACK is not the last one": (
        "LAST_ACK",
        lambda x: x.until("LAST_ACK").send("a", "S", dseq=9).send("b", "A"),
    ),
    "reuse in TIME_WAIT": (
        "ESTABLISHED",
        lambda x: x.until("TIME_WAIT").restart((90_000, 70_000)).open(),
    ),
    "reuse in TIME_WAIT by the other side": (
        "ESTABLISHED",
        lambda x: x.until("TIME_WAIT").restart((90_000, 70_000)).open("b"),
    ),
    "reuse in CLOSE_WAIT is ignored": (
        "CLOSE_WAIT",
        lambda x: x.until("CLOSE_WAIT").restart((90_000, 70_000)).send("a", "S"),
    ),
    "the last ACK comes again": ("TIME_WAIT", lambda x: x.until("TIME_WAIT").again().again(2)),
    "FIN comes again": ("LAST_ACK", lambda x: x.until("LAST_ACK").again().again(4)),
    "picked up": (
        "ESTABLISHED",
        lambda x: x.send("a", "PA", 100).send("b", "A").send("b", "PA", 1000).send("a", "A"),
    ),
    "picked up from one side only": (
        "ESTABLISHED",
        lambda x: x.send("a", "PA", 100).send("a", "PA", 100).send("a", "PA", 100),
    ),
    "picked up at the answer": (
        "ESTABLISHED",
        lambda x: (
            x.send("a", "PA", 100, lost=True).send("b", "PA", 1000).send("a", "A").send("b", "A")
        ),
    ),
    "picked up at the FIN": (None, lambda x: x.send("a", "FA")),
    "picked up, then reset": (None, lambda x: x.send("a", "PA", 100).send("a", "RA")),
    "picked up, then reset by the other": (None, lambda x: x.send("a", "PA", 100).send("b", "RA")),
    "one-sided": (
        "SYN_SENT",
        lambda x: x.send("a", "S").send("b", "SA", lost=True).send("a", "A").send("a", "PA", 50),
    ),
    "retransmission": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "PA", 500).again().send("b", "A").again(2),
    ),
    "retransmission after the acknowledgement, beyond the window": (
        "ESTABLISHED",
        lambda x: (
            x.open(win=100)
            .send("a", "PA", 100)
            .send("b", "A", win=100)
            .send("a", "PA", 100)
            .send("b", "A", win=100)
            .again(4)
        ),
    ),
    "reordering": (
        "ESTABLISHED",
        lambda x: (
            x.open()
            .send("a", "A", 100, lost=True)
            .send("a", "A", 100)
            .send("a", "A", 100, dseq=-200)
            .send("b", "A")
        ),
    ),
    "overlapping": (
        "ESTABLISHED",
        lambda x: (
            x.open().send("a", "A", 100).send("a", "A", 150, dseq=-50).send("b", "A", dack=100)
        ),
    ),
    "a segment is lost and comes later": (
        "ESTABLISHED",
        lambda x: (
            x.open()
            .send("a", "A", 100, lost=True)
            .send("a", "A", 100)
            .send("b", "A", dack=-200)
            .send("b", "A")
        ),
    ),
    "acknowledges what was never seen": (
        "ESTABLISHED",
        lambda x: x.open().send("b", "A", dack=5000),
    ),
    "acknowledges long ago": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "PA", 1000).send("b", "A").send("b", "A", dack=-70_000),
    ),
    "keep-alive": (
        "ESTABLISHED",
        lambda x: (
            x.open()
            .send("a", "A", dseq=-1)
            .send("b", "A")
            .send("a", "A", 1, dseq=-1)
            .send("b", "A")
        ),
    ),
    "zero window": (
        "ESTABLISHED",
        lambda x: (
            x.open()
            .send("a", "PA", 1000)
            .send("b", "A", win=0)
            .send("a", "A", 1)
            .send("b", "A", win=0)
            .send("b", "A", win=500)
        ),
    ),
    "beyond the window by a little": (
        "ESTABLISHED",
        lambda x: x.open(win=500).send("a", "PA", 400).send("a", "PA", 400).send("b", "A"),
    ),
    "beyond the window by far": (
        "ESTABLISHED",
        lambda x: x.open(win=500).send("a", "PA", 400, dseq=9000).send("b", "A"),
    ),
    "scaled windows": (
        "ESTABLISHED",
        lambda x: (
            x.open(options=SCALE).send("b", "A", win=8000).send("a", "PA", 1000, dseq=900_000)
        ),
    ),
    "scaled windows, only one side offers": (
        "ESTABLISHED",
        lambda x: (
            x.send("a", "S", options=SCALE)
            .send("b", "SA")
            .send("a", "A")
            .send("b", "PA", 10, dseq=900_000)
        ),
    ),
    "scaled windows, 15 is taken for 14": (
        "ESTABLISHED",
        lambda x: (
            x.open(options=frames.NOP + frames.wscale(15))
            .send("b", "A", win=4)
            .send("a", "PA", 10, dseq=65_000)
        ),
    ),
    "selective acknowledgement": (
        "ESTABLISHED",
        lambda x: (
            x.open(options=SACK_OK)
            .send("a", "A", 100)
            .send("a", "A", 100)
            .send("b", "A", dack=-200, options=frames.NOP * 2 + frames.sack((1_000_101, 1_000_201)))
        ),
    ),
    "selective acknowledgement of what was never seen": (
        "ESTABLISHED",
        lambda x: (
            x.open(options=SACK_OK)
            .send("a", "A", 100)
            .send("b", "A", options=frames.NOP * 2 + frames.sack((1_000_101, 1_000_999)))
        ),
    ),
    "timestamps": (
        "ESTABLISHED",
        lambda x: (
            x.open(options=frames.timestamps())
            .send("a", "PA", 100, options=frames.timestamps(5, 6))
            .send("b", "A")
        ),
    ),
    "the same ACK three times and more": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "PA", 10).send("b", "A").again().again().again().again(),
    ),
    "data is never acknowledged": (
        "ESTABLISHED",
        lambda x: x.open().send("a", "PA", 10).send("a", "PA", 10),
    ),
    "urgent": ("ESTABLISHED", lambda x: x.open().send("a", "UPA", 10).send("b", "A")),
    "ECN": (
        "ESTABLISHED",
        lambda x: (
            x.send("a", "SEC").send("b", "SAE").send("a", "A").send("a", "PAC", 10).send("b", "AE")
        ),
    ),
    "Xmas": (None, lambda x: x.send("a", "FPU")),
    "null": (None, lambda x: x.send("a", "")),
    "SYN+FIN": (None, lambda x: x.send("a", "SF")),
    "SYN+RST": (None, lambda x: x.send("a", "SR")),
    "the FIN is out of the window, then the answer": (
        "ESTABLISHED",
        lambda x: (
            x.open()
            .send("a", "FA", dseq=99_999)
            .send("b", "FA", dseq=99_999)
            .send("a", "FA", dseq=99_999)
        ),
    ),
    "sequence numbers wrap": (
        "ESTABLISHED",
        lambda x: (
            x.restart((0xFFFFFFFE, 0xFFFFFFFF))
            .open()
            .send("a", "PA", 100)
            .send("b", "PA", 100)
            .send("a", "A")
        ),
    ),
}


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
@pytest.mark.parametrize("name", TALKS)
def test_talk(play: Play, pair: frames.Pair, name: str) -> None:
    """A conversation with a name."""
    state, talk = TALKS[name]
    kernel = play(talk(Talk(pair)).steps)
    assert [flow.state for flow in kernel.flows.values()] == ([] if state is None else [state])


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
@hypothesis.settings(max_examples=examples(1500))
@hypothesis.given(beginning=moves.beginnings, moved=st.lists(moves.moves, min_size=1, max_size=12))
def test_any_talk(
    play_random: Play, pair: frames.Pair, beginning: moves.Beginning, moved: list[moves.Move]
) -> None:
    """Conversations that nobody thought of."""
    play_random(moves.conversation(pair, beginning, moved))


KNOBS: list[dict[str, int]] = [
    {"tcp_loose": 0},
    {"tcp_be_liberal": 1},
    {"tcp_ignore_invalid_rst": 1},
    {"tcp_max_retrans": 1},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=[next(iter(knobs)) for knobs in KNOBS])
@hypothesis.settings(max_examples=examples(300))
@hypothesis.given(beginning=moves.beginnings, moved=st.lists(moves.moves, min_size=1, max_size=12))
def test_any_talk_tuned(
    play_random: Play,
    tune: Tune,
    knobs: dict[str, int],
    beginning: moves.Beginning,
    moved: list[moves.Move],
) -> None:
    """The kernel's switches mean the same here."""
    tune(knobs=knobs)
    play_random(moves.conversation(frames.V4, beginning, moved))


TIMEOUTS = {
    "tcp_syn_sent": 1100,
    "tcp_syn_recv": 1200,
    "tcp_established": 5000,
    "tcp_fin_wait": 1300,
    "tcp_close_wait": 1400,
    "tcp_last_ack": 1500,
    "tcp_time_wait": 1600,
    "tcp_close": 1700,
    "tcp_unacknowledged": 1800,
}


@hypothesis.settings(max_examples=examples(300))
@hypothesis.given(beginning=moves.beginnings, moved=st.lists(moves.moves, min_size=1, max_size=12))
def test_any_talk_with_other_timeouts(
    play_random: Play, tune: Tune, beginning: moves.Beginning, moved: list[moves.Move]
) -> None:
    """Each timeout is another, so that a wrong one shows; the kernel offers no way to set that of
    SYN_SENT2.
    """
    tune(timeouts=TIMEOUTS)
    play_random(moves.conversation(frames.V4, beginning, moved))
