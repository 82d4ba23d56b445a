# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ct top is to show: filters, groups, order, interval."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ...core.errors import bad_value
from ...flows import filter as flow_filter

_SHORTEST = 0.1
#: What is counted of a flow or of a group: flows; packets and bytes of both directions; those of
#: each direction since the read before.
Counts = list[int]
FLOWS, PACKETS, BYTES, ORIG_PACKETS, ORIG_BYTES, REPLY_PACKETS, REPLY_BYTES = range(7)
#: (what it is about: a flow, or the values of a group; its counts)
Ranked = tuple[t.Any, Counts]


class Order(t.NamedTuple):
    """One order of the lines, the largest first."""

    key: str
    shown: str
    value: t.Callable[[Counts], int]


ORDERS = {
    "byte-rate": Order("b", "bytes/s", lambda c: c[ORIG_BYTES] + c[REPLY_BYTES]),
    "packet-rate": Order("p", "packets/s", lambda c: c[ORIG_PACKETS] + c[REPLY_PACKETS]),
    "bytes": Order("B", "bytes", lambda c: c[BYTES]),
    "packets": Order("P", "packets", lambda c: c[PACKETS]),
    "flows": Order("f", "flows", lambda c: c[FLOWS]),
}


@dataclasses.dataclass
class View:
    """What is to be shown.

    :ivar query: the filters and groups.
    :ivar sort: of ORDERS.
    :ivar limit: at most so many flows or groups.
    :ivar interval: seconds from one read to the next.
    """

    query: flow_filter.Query
    sort: str = "byte-rate"
    limit: int | None = None
    interval: float = 2.0

    @property
    def orders(self) -> dict[str, Order]:
        """The orders that make sense: single flows are all of the same number."""
        return (
            ORDERS
            if self.query.group_by
            else {name: order for name, order in ORDERS.items() if name != "flows"}
        )


def parse(words: t.Mapping[str, t.Any], sort: str, interval: str) -> View:
    """Return what the words of a command line ask for.

    :param words: filters, ``limit`` and ``group_by``.
    :raises ConntrackError: for a value that is not valid.
    """
    query = flow_filter.parse_query(words)
    seconds = 0.0
    with contextlib.suppress(ValueError):
        seconds = float(interval)
    if not _SHORTEST <= seconds <= 86400:
        raise bad_value("interval", interval, f"give seconds, {_SHORTEST} or more")
    view = View(query, sort, query.limit, seconds)
    if sort not in view.orders:
        raise bad_value("sort", sort, "it belongs to --group-by")
    return view
