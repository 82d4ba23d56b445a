# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random TCP conversations for hypothesis: lists of small moves, so that a failing one shrinks to
the moves that matter.
"""

from __future__ import annotations

import dataclasses
import typing as t

import hypothesis.strategies as st

from . import frames
from .talk import OTHER, Talk

STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)

#: Where the rules have their edges: around zero, the default window, the widest unscaled one,
#: nf_conntrack's own 66000, half the number space.
EDGES = [
    base + off
    for base in (0, 8192, -8192, 65535, -65535, 66000, -66000, 1 << 31)
    for off in (-1, 0, 1)
] + [10, -10, 1460, -1460]


@dataclasses.dataclass(frozen=True)
class Move:
    """One thing that happens in a conversation; ``make`` adds its steps."""

    side: str = "a"

    def make(self, talk: Talk) -> None:
        """Add the steps of the move."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Send(Move):
    """One segment, on the mark by default; see ``Talk.send``."""

    flags: str = "A"
    length: int = 0
    dseq: int = 0
    dack: int = 0
    win: int | None = None
    options: bytes = b""
    lost: bool = False

    def make(self, talk: Talk) -> None:
        talk.send(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Sack(Move):
    """An acknowledgement that leaves a hole: everything but the last ``hole`` + ``block`` bytes,
    and the ``block`` selectively.
    """

    hole: int = 100
    block: int = 100

    def make(self, talk: Talk) -> None:
        end = talk.next[OTHER[self.side]]
        talk.send(
            self.side,
            "A",
            dack=-self.hole - self.block,
            options=frames.NOP * 2 + frames.sack((end - self.block, end)),
        )


@dataclasses.dataclass(frozen=True)
class Again(Move):
    """A frame of before comes once more."""

    back: int = 1

    def make(self, talk: Talk) -> None:
        if self.back <= len(talk.steps):
            talk.again(self.back)


@dataclasses.dataclass(frozen=True)
class Restart(Move):
    """Both hosts forget the connection and take other sequence numbers, this far from the old
    ones.
    """

    by: int = 100_000

    def make(self, talk: Talk) -> None:
        talk.restart((talk.next["a"] + self.by, talk.next["b"] + self.by))


@dataclasses.dataclass(frozen=True)
class Open(Move):
    """A handshake."""

    options: bytes = b""
    answer: bytes = b""

    def make(self, talk: Talk) -> None:
        other = OTHER[self.side]
        talk.send(self.side, "S", options=self.options).send(other, "SA", options=self.answer).send(
            self.side, "A"
        )


@dataclasses.dataclass(frozen=True)
class Close(Move):
    """A connection's end, all four segments of it."""

    def make(self, talk: Talk) -> None:
        other = OTHER[self.side]
        talk.send(self.side, "FA").send(other, "A").send(other, "FA").send(self.side, "A")


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where a conversation starts: in which state, who opened and closed, with which sequence
    numbers and options.
    """

    state: str = "NONE"
    opener: str = "a"
    closer: str = "a"
    starts: tuple[int, int] = (1_000_000, 3_000_000_000)

    def talk(self, pair: frames.Pair) -> Talk:
        """Return the conversation up to here."""
        return Talk(pair, self.starts).until(self.state, self.opener, self.closer)


sides = st.sampled_from("ab")
deltas = st.one_of(st.just(0), st.sampled_from(EDGES), st.integers(-70_000, 70_000))
lengths = st.sampled_from([0, 0, 0, 1, 10, 100, 1000])
windows = st.one_of(st.none(), st.sampled_from([0, 1, 100, 8191, 65535]))
usual_flags = st.sampled_from(["A", "A", "PA", "S", "SA", "FA", "RA", "R", "FPA"])
any_flags = st.one_of(usual_flags, st.lists(st.sampled_from("FSRPAUEC"), unique=True).map("".join))
scales = st.integers(0, 16).map(lambda shift: frames.NOP + frames.wscale(shift))
syn_options = st.lists(
    st.one_of(
        scales,
        st.sampled_from(
            [frames.mss(), frames.NOP * 2 + frames.SACK_PERMITTED, frames.timestamps()]
        ),
    ),
    max_size=3,
).map(b"".join)
raw_options = st.binary(max_size=24)

moves = st.one_of(
    st.builds(Send, sides, usual_flags, lengths),
    st.builds(Send, sides, usual_flags, lengths, lost=st.just(True)),
    st.builds(
        Send,
        sides,
        st.sampled_from(["A", "PA", "RA", "R", "FA", "S", "SA"]),
        lengths,
        deltas,
        st.just(0),
        windows,
    ),
    st.builds(
        Send,
        sides,
        st.sampled_from(["A", "PA", "RA", "FA", "SA"]),
        lengths,
        st.just(0),
        deltas,
        windows,
    ),
    st.builds(Send, sides, any_flags, lengths, deltas, deltas, windows),
    st.builds(
        Send,
        sides,
        st.sampled_from(["S", "SA"]),
        st.just(0),
        deltas,
        st.just(0),
        windows,
        syn_options,
    ),
    st.builds(Send, sides, usual_flags, lengths, st.just(0), st.just(0), windows, raw_options),
    st.builds(Sack, sides, st.integers(0, 300), st.integers(-100, 70_000)),
    st.builds(Again, sides, st.integers(1, 6)),
    st.builds(Restart, sides, st.sampled_from([100_000, -100_000, 1 << 31, 7])),
    st.builds(Open, sides, syn_options, syn_options),
    st.builds(Close, sides),
)
beginnings = st.builds(
    Beginning,
    st.sampled_from(STATES),
    sides,
    sides,
    st.sampled_from(
        [(1_000_000, 3_000_000_000), (0xFFFFFFF0, 0xFFFFFF00), (0, 0), (0x7FFFFFF0, 0x80000000)]
    ),
)


def conversation(
    pair: frames.Pair, beginning: Beginning, moved: t.Sequence[Move]
) -> list[frames.Step]:
    """Return the steps of one conversation."""
    talk = beginning.talk(pair)
    for move in moved:
        move.make(talk)
    return talk.steps
