# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many may ask at once, all together and each user of the host.

Whoever makes a server wait has no right to a place. Where one is needed, the connection goes that
waits for its client: first one that waits for a request, the one that has waited longest. So slow
clients keep nobody out, however many they are. What is worked on is never cut for a newcomer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
import typing as t

from . import peer as http_peer

#: What a connection waits for its client for: a request, the rest of one, or that an answer is
#: taken. The first of them goes first.
HEAD, BODY, ANSWER = range(3)
#: Seconds for which an answer has to be left lying before its connection can be cut for another
#: one.
STALLED_SECONDS = 1.0


class Full(Exception):
    """There is no place.

    :ivar alone: whether it is this client's own connections that are too many.
    """

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone = alone


class Guest:
    """A connection that is served.

    :ivar cut: whether it had to go for another one.
    """

    def __init__(self, connection: socket.socket, peer: http_peer.Peer) -> None:
        self.connection, self.peer = connection, peer
        self.cut = False
        #: what it waits for, and since when; it begins with waiting for a request
        self.waits: tuple[int, float] | None = (HEAD, time.monotonic())

    @contextlib.contextmanager
    def waiting(self, what: int) -> t.Iterator[None]:
        """Around what waits for the client."""
        self.waits = (what, time.monotonic())
        try:
            yield
        finally:
            self.waits = None

    def idle(self, now: float) -> tuple[int, float] | None:
        """Return what it waits for and since when, where it may be cut for another one; else None.
        One whose client has left is the first to be cut.
        """
        if http_peer.gone(self.connection):
            return HEAD, 0.0
        waits = self.waits
        if waits is None or (waits[0] == ANSWER and now - waits[1] < STALLED_SECONDS):
            return None
        return waits if waits[0] == ANSWER or not _readable(self.connection) else None


def _readable(connection: socket.socket) -> bool:
    """Whether there is something to read, which a thread is about to do."""
    poll = select.poll()
    try:
        poll.register(connection, select.POLLIN)
        return any(
            found & select.POLLIN and not found & select.POLLHUP for dummy, found in poll.poll(0)
        )
    except (OSError, ValueError):  # it is being closed
        return False


class Places:
    """A bounded number of requests at once. Those whose client has left, and which are about to be
    given up, keep nobody out.

    :param total: for all together.
    :param each: for each user of the host, besides root and whoever runs the server.
    """

    def __init__(self, total: int, each: int) -> None:
        self.total, self.each = total, each
        self._lock = threading.Lock()
        self._guests: list[Guest] = []

    def __len__(self) -> int:
        """How many are taken."""
        return len(self._guests)

    @contextlib.contextmanager
    def taken(self, guest: Guest) -> t.Iterator[None]:
        """Take a place.

        :raises Full: where there is none.
        """
        with self._lock:
            self._check(guest.peer, self._guests)
            self._guests.append(guest)
        try:
            yield
        finally:
            with self._lock:
                self._guests.remove(guest)

    def _check(self, peer: http_peer.Peer, guests: t.Sequence[Guest]) -> None:
        """:raises Full: where these leave no place."""
        everybody = len(guests) >= self.total
        if everybody or (
            not peer.trusted and sum(one.peer.name == peer.name for one in guests) >= self.each
        ):
            there = [one for one in guests if not http_peer.gone(one.connection)]
            if len(there) == len(guests):
                raise Full(not everybody)
            self._check(peer, there)


class Room:
    """The connections that are open.

    :param total: at most this many, besides those that were cut and are about to end.
    :param each: of each user, as Places has it.
    """

    def __init__(self, total: int, each: int) -> None:
        self.total, self.each = total, each
        self._lock = threading.Lock()
        self._guests: set[Guest] = set()

    def admit(self, connection: socket.socket, peer: http_peer.Peer) -> tuple[Guest, Guest | None]:
        """Let a connection in; return it, and the one that has to go for it, if any. The caller
        ends that one.

        :raises Full: where it cannot be let in.
        """
        with self._lock:
            there = [guest for guest in self._guests if not guest.cut]
            mine = [guest for guest in there if guest.peer.name == peer.name]
            alone = len(mine) >= self.each and not peer.trusted
            victim = None
            if alone or len(there) >= self.total:
                now = time.monotonic()
                idle = [
                    (waits, guest)
                    for guest in (mine if alone else there)
                    if (waits := guest.idle(now)) is not None
                ]
                # those that were cut still have their threads for a moment; there is a bound for
                # them, too
                if not idle or len(self._guests) >= 2 * self.total:
                    raise Full(alone)
                victim = min(idle, key=lambda one: one[0])[1]
                victim.cut = True
            guest = Guest(connection, peer)
            self._guests.add(guest)
            return guest, victim

    def leave(self, guest: Guest) -> None:
        """Let a connection out."""
        with self._lock:
            self._guests.discard(guest)
