# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP conversation as the two hosts would have it, so that segments can be told relative to where
it stands.
"""

from __future__ import annotations

import typing as t

from . import frames

OTHER = {"a": "b", "b": "a"}


class Talk:
    """Two endpoints: what each has sent, what a segment's numbers are by default, what was sent
    before.

    :ivar steps: all steps so far, in order.
    :ivar next: by side, the sequence number that it sends next; the other side acknowledges up to
        it.
    """

    def __init__(
        self,
        pair: frames.Pair = frames.V4,
        starts: tuple[int, int] = (1_000_000, 3_000_000_000),
        win: int = 8192,
    ) -> None:
        self.pair = pair
        self.win = win
        self.steps: list[frames.Step] = []
        self.next = {"a": starts[0], "b": starts[1]}

    def send(
        self,
        side: str,
        flags: str,
        length: int = 0,
        dseq: int = 0,
        dack: int = 0,
        win: int | None = None,
        options: bytes = b"",
        lost: bool = False,
        **more: t.Any,
    ) -> Talk:
        """Let ``side`` send one segment.

        :param dseq: how far its sequence number is off; what is off does not move the conversation
            on.
        :param dack: how far its acknowledgement is off from all that the other side sent.
        :param lost: it is sent and never seen: the conversation moves on without a step.
        """
        ack = self.next[OTHER[side]] + dack if "A" in flags else 0
        step = self.pair.tcp(
            side,
            flags,
            self.next[side] + dseq,
            ack,
            self.win if win is None else win,
            length,
            options,
            **more,
        )
        if not lost:
            self.steps.append(step)
        if not dseq:
            self.next[side] += length + flags.count("S") + flags.count("F")
        return self

    def again(self, back: int = 1) -> Talk:
        """Send the step ``back`` steps ago once more."""
        self.steps.append(self.steps[-back])
        return self

    def restart(self, starts: tuple[int, int]) -> Talk:
        """Both sides forget the connection; the next one has these initial sequence numbers."""
        self.next = {"a": starts[0], "b": starts[1]}
        return self

    def open(self, opener: str = "a", **more: t.Any) -> Talk:
        """Add a whole handshake."""
        return self.send(opener, "S", **more).send(OTHER[opener], "SA", **more).send(opener, "A")

    def until(self, state: str, opener: str = "a", closer: str = "a") -> Talk:
        """Add the shortest conversation that brings the connection into ``state``."""
        peer, answerer = OTHER[opener], OTHER[closer]
        if state == "SYN_SENT2":
            return self.send(opener, "S").send(peer, "S")
        if state == "NONE":
            return self
        for reached, side, flags in (
            ("SYN_SENT", opener, "S"),
            ("SYN_RECV", peer, "SA"),
            ("ESTABLISHED", opener, "A"),
            ("CLOSE", closer if state == "CLOSE" else "", "RA"),
            ("FIN_WAIT", closer, "FA"),
            ("CLOSE_WAIT", answerer, "A"),
            ("LAST_ACK", answerer, "FA"),
            ("TIME_WAIT", closer, "A"),
        ):
            if side:
                self.send(side, flags)
            if reached == state:
                return self
        raise ValueError(state)
