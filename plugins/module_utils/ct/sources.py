# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a command of ``ct`` reads flows: the tables of the chain, or a file of flows."""

from __future__ import annotations

import contextlib
import typing as t

from ..flows import table as flow_table
from ..kernel import bpffs
from .arguments import Arguments


@contextlib.contextmanager
def open_source(args: Arguments) -> t.Iterator[flow_table.Source]:
    """Open what is to be read: the tables, or a file of flows."""
    if getattr(args, "input", None) is not None:
        from ..flows.saved import SavedFlows

        yield SavedFlows.load(args.input)
        return
    with open_tables(args) as tables:
        yield tables


def open_tables(args: Arguments) -> flow_table.FlowTables:
    """Open the tables of the chain that is pinned where the arguments say."""
    bpffs.check(args.pin_root)
    return flow_table.FlowTables(args.pin_root)


@contextlib.contextmanager
def show_progress(
    source: flow_table.Source, what: str, printing: bool = False
) -> t.Iterator[flow_table.Source]:
    """Give a source whose reading is shown to whoever waits for it; see flows.progress.show()."""
    from ..flows import progress

    with progress.show(what, "entries", printing) as add:
        yield source if add is None else t.cast("flow_table.Source", progress.Watched(source, add))
