# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass over the tables: filtered, sorted, grouped, counted, or written as text."""

from __future__ import annotations

import contextlib
import gc
import itertools
import typing as t

from . import codec as flow
from . import collect as flow_collect
from . import filter as flow_filter
from . import summary as flow_summary
from .collect import Pass, Reading
from .output import Writer
from .table import Source


@contextlib.contextmanager
def no_collector() -> t.Iterator[None]:
    """Let the cyclic garbage collector rest: rows and flows make no cycles, and looking for some
    costs a sixth of the time.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def read(
    source: Source,
    query: flow_filter.Query,
    writer: Writer | None = None,
    put: t.Callable[[bytes], object] = flow_collect.discard,
    summary: bool = True,
    window: bool = False,
    listing: bool = True,
    most_groups: int | None = None,
    most_sorted: int | None = None,
) -> Reading:
    """Read the flows that match.

    Without a sort order, a summary or groups to make, the pass ends as soon as the limit is
    reached.

    :param writer: turns the flows into text for ``put``: all of them, or the query's limit where it
        has one.
    :param summary: whether to make the summary.
    :param window: whether the records of TCP flows show their windows.
    :param listing: whether to return records and groups; False where only the text is wanted,
        however long.
    :param most_groups: groups, and ``most_sorted`` flows to sort, that there is memory for; None
        for any number.
    :raises TooMany: where there are more.
    """
    listed = 0 if not listing else flow_filter.DEFAULT_LIMIT if query.limit is None else query.limit
    written = query.limit if writer else listed
    one_pass = Pass(
        source,
        query,
        bool(writer and writer.as_bytes),
        window,
        written,
        summary,
        most_groups,
        most_sorted,
    )
    may_stop = written is not None and query.sort is None and not summary and not query.group_by
    flows: list[flow.Record] = []
    passed, complete = 0, True
    with no_collector():
        batches = one_pass.batches()
        if query.sort is not None:  # all is read and sorted, or refused, before anything is written
            batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
    if writer:
        put(writer.begin())
    with no_collector():
        for batch in batches:
            for shape, values, row in batch[: listed - len(flows)]:
                flows.append(
                    flow.record_with((shape, flow.with_text(values), row), query.fields, window)
                )
            if writer:
                put(writer.write(batch if written is None else batch[: max(written - passed, 0)]))
            passed += len(batch)
            if may_stop and written is not None and one_pass.count > written:
                complete = False
                break
    if writer:
        put(writer.end())
    groups = sorted(one_pass.groups.items(), key=lambda item: (-item[1][0], str(item[0])))
    return Reading(
        flows=flows,
        count=one_pass.count,
        complete=complete,
        groups=[
            {**dict(zip(query.group_by, key)), "flows": n, "packets": packets, "bytes": octets}
            for key, (n, packets, octets) in groups[:listed]
        ],
        group_count=len(groups),
        summary=flow_summary.summary(one_pass, source) if summary else None,
        shapes=one_pass.shapes,
    )
