# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``ct top``: who sends most, and who holds most of the table, read again and again."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import typing as t

from ...core import stop
from . import output as top_output
from . import screen as top_screen
from .meter import Batch, Meter
from .view import View


def _batches(open_tables: top_screen.Open, view: View, ending: stop.Stop) -> t.Iterator[Batch]:
    """Return a read each interval, the first one at the end of the first interval.

    :raises Stopped: when the process is told to end; it looks after each part of the table.
    """
    meter = Meter(view)
    start = time.monotonic()
    with open_tables() as source:
        meter.read(source, ending.check)
    while True:
        start = max(start + view.interval, time.monotonic())
        ending.wait(max(start - time.monotonic(), 0))
        with open_tables() as source:  # again each time: another generation may have taken over
            yield meter.read(source, ending.check)


def print_batches(
    open_tables: top_screen.Open,
    view: View,
    put: t.Callable[[bytes], None],
    form: str,
    count: int | None,
    file: t.IO[t.Any] | None = None,
) -> int:
    """Print one read after the other, until there were enough or the process is told to end; return
    the exit status.

    :param form: ``text``, ``json`` or ``jsonl``.
    :param count: so many; None for ever.
    :param file: what ``put`` writes to; None where it never waits.
    """
    number = 0
    with stop.Stop() as ending:
        write = ending.guarded(put, file)
        try:
            for batch in _batches(open_tables, view, ending):
                if form == "text":
                    write(
                        "\n".join(
                            [
                                *([""] if number else []),
                                *top_output.heading(batch, view, keys=False),
                                *top_output.table(batch, view),
                                "",
                            ]
                        ).encode()
                    )
                else:
                    write(
                        ("" if form == "jsonl" else ",\n" if number else "[").encode()
                        + json.dumps(top_output.record(batch, view), ensure_ascii=False).encode()
                    )
                    write(b"\n" if form == "jsonl" else b"")
                number += 1
                if number == count:
                    break
        except stop.Stopped as exc:
            return exc.status
        finally:
            if form == "json" and number:
                with contextlib.suppress(stop.Stopped):  # nobody takes it
                    write(b"]\n")
    return 0


def run(
    open_tables: top_screen.Open,
    view: View,
    put: t.Callable[[bytes], None],
    form: str,
    count: int | None,
) -> int:
    """Show it on a terminal, or print it where there is none or some reads are asked for; return
    the exit status.
    """
    if form == "text" and count is None and sys.stdout.isatty() and sys.stdin.isatty():
        return top_screen.show(open_tables, view)
    return print_batches(open_tables, view, put, form, count, sys.stdout)
