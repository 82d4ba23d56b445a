# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ct top on a terminal: it draws again each interval, and takes keys."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
import typing as t

from ...core import stop
from ...core.errors import ConntrackError, bad_value
from ...flows import table as flow_table
from . import output as top_output
from .meter import Batch, Meter
from .view import View

#: Seconds between two looks at the size of the terminal.
_PATIENCE = 0.25
# ---------------------------------------------------------------- running
Open = t.Callable[[], t.ContextManager[flow_table.Source]]


class _Ended(Exception):
    """The user has seen enough."""


class Screen:
    """The terminal, drawn on through curses.

    :param ending: tells when the process is to end.
    :param keys: the file that keys come from.
    """

    def __init__(self, window: t.Any, view: View, ending: stop.Stop, keys: int) -> None:
        self._window, self._view, self._ending, self._keys = window, view, ending, keys
        self._batch: Batch | None = None

    def draw(self, batch: Batch | None = None) -> None:
        """Draw a read, or the same one anew."""
        import curses

        self._batch = batch or self._batch
        if self._batch is None:
            return
        height, width = self._window.getmaxyx()
        top = top_output.heading(self._batch, self._view, keys=True)
        lines = [
            *top,
            *top_output.table(
                self._batch, self._view, max(width - 1, 1), max(height - len(top) - 1, 0)
            ),
        ][:height]
        self._window.erase()
        for at, line in enumerate(lines):
            with contextlib.suppress(curses.error):  # the terminal has just become smaller
                # the last cell of a line is left free: a terminal may scroll when it is written
                self._window.addnstr(
                    at,
                    0,
                    line.ljust(width - 1) if at == len(top) else line,
                    width - 1,
                    curses.A_REVERSE if at == len(top) else 0,
                )
        self._window.refresh()

    def take_keys(self, seconds: float = 0.0) -> None:
        """Do what keys ask for: those that were pressed, or will be within that time.

        :raises _Ended: for the key that ends it, and where the terminal is gone.
        :raises Stopped: when the process is told to end.
        """
        import curses

        end = time.monotonic() + seconds
        self._window.timeout(
            0
        )  # what is waited for is waited for here, where a signal counts as well
        while True:
            self._ending.check()
            key = self._window.getch()
            left = end - time.monotonic()
            if key == -1:
                if left <= 0:
                    return
                # no longer than that: that the terminal has another size is heard of by getch()
                # only
                found = self._ending.wait(min(left, _PATIENCE), {self._keys: select.POLLIN})
                if stop.gone(found.get(self._keys, 0)):
                    raise _Ended
            if key == ord("q"):
                raise _Ended
            chosen = next(
                (name for name, order in self._view.orders.items() if key == ord(order.key)), None
            )
            if chosen is not None:
                self._view.sort = chosen
            if chosen is not None or key == curses.KEY_RESIZE:
                self.draw()


def show(open_tables: Open, view: View) -> int:
    """Show one read after the other on the terminal, until the user ends it; return the exit
    status. The terminal is as it was afterwards, whatever ends it.

    :raises ConntrackError: where the terminal can not be drawn on.
    """
    try:
        import curses
    except ImportError:
        raise ConntrackError(
            "curses is missing in this Python: install it, or give --count to print."
        ) from None
    kind = os.environ.get("TERM", "")
    try:
        curses.setupterm()
        able = curses.tigetstr("cup") is not None
    except curses.error:
        able = False
    if not able:
        raise bad_value(
            "TERM",
            kind,
            "it names no terminal that can be drawn on; set it to what yours is, as xterm, or give"
            " --count to print",
        )

    def loop(window: t.Any, ending: stop.Stop) -> None:
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        screen, meter = Screen(window, view, ending, sys.stdin.fileno()), Meter(view)
        start = time.monotonic()
        while True:
            with open_tables() as source:
                screen.draw(meter.read(source, screen.take_keys))
            start = max(start + view.interval, time.monotonic())
            screen.take_keys(start - time.monotonic())

    with stop.Stop() as ending:
        try:
            curses.wrapper(loop, ending)
        except stop.Stopped as exc:
            return exc.status
        except _Ended:
            pass
    return 0
