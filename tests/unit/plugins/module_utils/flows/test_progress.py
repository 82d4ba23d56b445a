# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress: on a terminal, late, and gone afterwards; nothing anywhere else."""

from __future__ import annotations

import collections.abc as c
import contextlib
import os
import select
import sys
import time

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import progress
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes


@contextlib.contextmanager
def terminal(both: bool = False) -> c.Iterator[int]:
    """Standard error is a terminal; standard output is another file, or the terminal as well.
    (pytest sets both before each test.)
    """
    here, there = os.openpty()
    with os.fdopen(there, "w") as error, open(os.devnull, "w", encoding="ascii") as out:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error if both else out):
            yield here
    os.close(here)


def written(here: int) -> str:
    return os.read(here, 1 << 16).decode() if select.select([here], [], [], 0)[0] else ""


def work(add: progress.Add | None) -> None:
    """Read a table, as the command does."""
    assert add is not None
    source = fakes.FakeTables(
        {"ctt": [fakes.entry(sport=sport) for sport in range(1, 1501)]}, batch=500
    )
    assert flow_read.read(progress.Watched(source, add), flow_filter.parse_query({})).count == 1500


def test_on_a_terminal_it_counts_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with terminal() as here:
        text = ""
        with progress.show("reading", "entries", printing=True) as add:
            work(add)
            deadline = time.monotonic() + 30
            while "1.50k entries" not in text and time.monotonic() < deadline:
                time.sleep(0.05)
                text += written(here)
        text += written(here)
    assert "reading: 1.50k entries, 00:" in text and "\n" not in text
    assert text.rpartition("\r")[0].rpartition("\r")[2].strip() == "", "the line goes"


def test_short_work_shows_nothing_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 30.0)
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    with terminal() as here:
        with progress.show("reading", "entries") as add:
            work(add)
        assert written(here) == "" and "tqdm" not in sys.modules


def test_without_the_library_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with terminal() as here:
        with progress.show("reading", "entries") as add:
            work(add)
            time.sleep(0.1)
        assert written(here) == ""


def test_nobody_is_told_where_nobody_looks() -> None:
    with terminal(both=True), progress.show("reading", printing=True) as add:
        assert add is None
    with (
        open(os.devnull, "w", encoding="ascii") as nowhere,
        contextlib.redirect_stderr(nowhere),
        progress.show("reading") as add,
    ):
        assert add is None
