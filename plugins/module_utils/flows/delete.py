# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which flows go, and how they are deleted."""

from __future__ import annotations

import dataclasses
import typing as t

from ..chain import counters as chain_counters
from ..chain.clock import Clock
from ..core.errors import ConntrackError
from ..core.plan import Step
from . import codec as flow
from . import filter as flow_filter
from .table import OpenTable, Source


# ---------------------------------------------------------------- deleting
@dataclasses.dataclass
class Deletion:
    """What a deleting pass did, or would do.

    :ivar plan: a step for each entry found, at most as many as the limit.
    :ivar count: how many entries were found.
    :ivar deleted: how many of them were deleted; those that a packet revived or that were gone
        before are not among them.
    :ivar expired: how many of those found were no live flows, but had only expired;
        ``deleted_expired`` of those deleted.
    """

    plan: list[Step] = dataclasses.field(default_factory=list)
    count: int = 0
    deleted: int = 0
    expired: int = 0
    deleted_expired: int = 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which entries are to go.

    :ivar reason: why, for the plan.
    :ivar filters: those of the live flows that match.
    :ivar live: flows whose time is not over.
    :ivar expired: entries whose time is over.
    """

    reason: str
    filters: flow_filter.Filters = flow_filter.Filters({})
    live: bool = True
    expired: bool = False

    @property
    def fixed(self) -> bool:
        """Whether an entry that was to go once is to go whatever packets do to it."""
        return self.live and self.filters.fixed


#: What sweep() deletes.
EXPIRED = Choice("its time is over", live=False, expired=True)
#: Everything.
EVERYTHING = Choice("all flows are to go", expired=True)


def _doomed(
    rows: t.Iterable[flow.Row], choice: Choice, table: flow.Table, clock: Clock
) -> t.Iterator[tuple[bool, flow.Row]]:
    """Return (whether its time is over, row) for the rows that are to go."""
    tests = choice.filters.tests(table, clock)
    if tests is None:
        return
    for row in flow_filter.choose(rows, tests):
        over = clock.over(row[1][flow.EXPIRES], row[1][flow.LAST_SEEN])
        if choice.expired if over else choice.live:
            yield over, row


def _never() -> bool:
    return False


def delete(
    source: Source,
    choice: Choice,
    limit: int = flow_filter.DEFAULT_LIMIT,
    dry: bool = False,
    most: int | None = None,
    enough: t.Callable[[], bool] = _never,
) -> Deletion:
    """Delete the entries that are to go, batch by batch; what was deleted is counted by reason.

    The source is open for writing(), unless ``dry``. Each entry is read again just before it is
    deleted, unless no packet can change that it is to go: a flow that was revived since stays.
    There is no undoing: an error ends the pass, and its facts say how many entries are gone.

    :param limit: at most so many steps in the plan.
    :param dry: only find the entries.
    :param most: end after about so many deletions; None for no such bound.
    :param enough: is asked after each batch whether to end.
    """
    done, counted = Deletion(), dict.fromkeys(chain_counters.DELETIONS, 0)
    try:
        for opened in source.tables:
            clock = source.clock()
            decoder = flow.Decoder(opened.table, clock)
            for dummy, keys, values in source.batches(opened):
                rows = (
                    decoder.packed_rows(keys, values)
                    if choice.live
                    else decoder.over_rows(keys, values)
                )
                found = list(_doomed(rows, choice, opened.table, clock))
                done.plan += [
                    _step(flow.record(*item[:2]), choice)
                    for item in decoder.flows(
                        (row for dummy, row in found[: limit - len(done.plan)]), over=True
                    )
                ]
                done.count += len(found)
                done.expired += sum(over for over, dummy in found)
                if enough():
                    return done
                if dry or not found:
                    continue
                for over, keys_of_some in _deletable(source, opened, choice, found):
                    number = source.delete(opened, keys_of_some)
                    counted["deleted_expired" if over else "deleted_flushed"] += number
                    counted["assured_deleted"] += (
                        number if opened.table.flow_class == "assured" else 0
                    )
                    done.deleted += number
                    done.deleted_expired += number if over else 0
                if most is not None and done.deleted >= most:
                    return done
    except ConntrackError as exc:
        exc.facts.setdefault("deleted", done.deleted)
        raise
    finally:
        source.count_deleted(counted)
    return done


def _deletable(
    source: Source, opened: OpenTable, choice: Choice, found: t.Sequence[tuple[bool, flow.Row]]
) -> t.Iterator[tuple[bool, list[bytes]]]:
    """Return (whether their time is over, keys) of what is to be deleted: at once where packets
    change nothing, else each right after it was read again.
    """
    if choice.fixed:
        for over in (True, False):
            yield over, [row[2] for was_over, row in found if was_over is over]
    else:
        for over, row in _still_doomed(source, opened, choice, found):
            yield over, [row[2]]


def _still_doomed(
    source: Source, opened: OpenTable, choice: Choice, found: t.Iterable[tuple[bool, flow.Row]]
) -> t.Iterator[tuple[bool, flow.Row]]:
    clock = source.clock()
    for dummy, row in found:
        value = source.lookup(opened, row[2])
        if value is not None:
            yield from _doomed(
                [(row[0], flow.VIEW.unpack(value), row[2], value)], choice, opened.table, clock
            )


def sweep(source: Source, most: int | None = None, enough: t.Callable[[], bool] = _never) -> int:
    """Delete entries whose time is over; those that a packet revived meanwhile stay.

    :param most: end after about so many deletions, so that one sweep takes a bounded time; None for
        no such bound.
    :param enough: is asked after each batch whether to end.
    :return: how many were deleted.
    """
    return delete(source, EXPIRED, limit=0, most=most, enough=enough).deleted


def _step(record: flow.Record, choice: Choice) -> Step:
    return Step("delete", "flow", title(record), choice.reason, before=record)


def title(record: flow.Record) -> str:
    """Return what people call a flow.

    >>> orig = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 5, "dport": 53}
    >>> title({"proto": "udp", "orig": orig})
    'udp 10.0.0.1:5 -> 10.0.0.2:53'
    """
    ends = [
        flow.endpoint(record["orig"][address], record["orig"].get(port))
        for address, port in (("src", "sport"), ("dst", "dport"))
    ]
    icmp = record.get("icmp")
    return f"{record['proto']} {' -> '.join(ends)}" + (
        f" type {icmp['type']} code {icmp['code']} id {icmp['id']}" if icmp else ""
    )
