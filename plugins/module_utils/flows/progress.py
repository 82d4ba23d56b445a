# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of work that takes long: a line on standard error that goes when the work ends.

It is shown to people only: where standard error is a terminal, after SECONDS, and where the library
tqdm is installed, which is imported no sooner.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import typing as t

from . import table as flow_table

SECONDS = 1.0
_REDRAW_SECONDS = 0.2
Add = t.Callable[[int], None]


@contextlib.contextmanager
def show(what: str, unit: str = "", printing: bool = False) -> t.Iterator[Add | None]:
    """Show how far the work of a ``with`` block is; gives what it tells that with, None where
    nobody looks.

    :param what: the work, as ``reading``.
    :param unit: what is counted; "" where nothing is but time.
    :param printing: whether the work prints meanwhile: then nothing is shown where that goes to a
        terminal, too.
    """
    if not sys.stderr.isatty() or (printing and sys.stdout.isatty()):
        yield None
        return
    done, ended = [0], threading.Event()

    def add(number: int) -> None:
        done[0] += number

    # a descriptor of its own: what compiles the chain sends the process's standard error elsewhere
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as file:
        drawer = threading.Thread(target=_draw, args=(what, unit, done, ended, file), daemon=True)
        drawer.start()
        try:
            yield add
        finally:
            ended.set()
            drawer.join()


def _draw(
    what: str, unit: str, done: t.Sequence[int], ended: threading.Event, file: t.TextIO
) -> None:
    begun = time.time()
    if ended.wait(SECONDS):
        return
    try:
        from tqdm import tqdm
    except ImportError:
        return
    tqdm.monitor_interval = 0  # it would start another thread
    form = "{desc}: {n_fmt}{unit}, {elapsed}, {rate_fmt}" if unit else "{desc}, {elapsed}"
    with contextlib.suppress(OSError):  # the terminal is gone
        with tqdm(
            desc=what,
            initial=done[0],
            unit=f" {unit}",
            unit_scale=True,
            bar_format=form,
            file=file,
            leave=False,
            dynamic_ncols=True,
        ) as shown:
            shown.initial, shown.start_t = 0, begun
            while not ended.wait(_REDRAW_SECONDS):
                shown.n = done[0]
                shown.refresh()


class Watched:
    """A source of flows that tells how many entries were read."""

    def __init__(self, source: flow_table.Source, add: Add) -> None:
        self._source, self._add = source, add

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._source, name)

    def batches(
        self, opened: flow_table.OpenTable
    ) -> t.Iterator[tuple[int, memoryview, memoryview]]:
        """Return the table's contents as the source does."""
        for batch in self._source.batches(opened):
            yield batch
            self._add(batch[0])
