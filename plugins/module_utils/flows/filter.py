# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one grammar by which flows are chosen, ordered, cut and grouped: modules, command and service
take the same words.

Words are parsed once, before anything is read. The filters become tests on rows as they come out of
the table, so that flows nobody wants are never decoded. Different filters are AND, several values
of one filter are OR.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ..chain import layout as chain_layout
from ..chain.clock import Clock
from ..core.errors import ConntrackError, bad_value, did_you_mean
from . import codec as flow

Test = t.Callable[[flow.Row], bool]
#: Returns the test of one filter for the rows of one table at one instant; None when no row of the
#: table can match.
_Builder = t.Callable[[tuple[t.Any, ...], flow.Table, Clock], t.Optional[Test]]
_STATE_NAMES = tuple(
    dict.fromkeys(
        [name for names in flow.STATES.values() for name in names if name != "NONE"]
        + list(flow.PLAIN_STATES)
    )
)
_NUMBERS = {name: number for number, name in flow.PROTOCOLS.items()}


# ---------------------------------------------------------------- one value of each filter
def _one_of(field: str, value: object, names: t.Sequence[str]) -> str:
    """Return the one of ``names`` that ``value`` spells, in whatever case."""
    found = {name.lower(): name for name in names}.get(str(value).strip().lower())
    if found is None:
        raise bad_value(field, value, f"give one of {', '.join(names)}", names)
    return found


def _number(
    field: str, value: object, low: int, high: int | None, mend: str, known: t.Iterable[str] = ()
) -> int:
    """Return a whole number within its bounds; text of digits is taken too, a bool or a fraction is
    not.
    """
    text = str(value).strip()
    if (
        isinstance(value, (bool, float))
        or not text.isascii()
        or not text.isdigit()
        or len(text) > 20
    ):
        raise bad_value(field, value, mend, known)
    number = int(text)
    if number < low or (high is not None and number > high):
        raise bad_value(field, value, mend)
    return number


def _family(field: str, value: object) -> str:
    return _one_of(field, value, tuple(flow.FAMILIES))


def _proto(field: str, value: object) -> int:
    number = _NUMBERS.get(str(value).strip().lower())
    mend = f"give {', '.join(_NUMBERS)}, or a protocol number from 0 to 255"
    return _number(field, value, 0, 255, mend, _NUMBERS) if number is None else number


def _state(field: str, value: object) -> str:
    return _one_of(field, value, _STATE_NAMES)


def _dir(field: str, value: object) -> str:
    return _one_of(field, value, flow.DIRECTIONS)


def _port(field: str, value: object) -> int:
    return _number(field, value, 0, 65535, "give a port from 0 to 65535")


def _count(field: str, value: object) -> int:
    return _number(field, value, 0, None, "give a whole number, 0 or more")


def _seconds(field: str, value: object) -> int:
    return _number(field, value, 0, None, "give whole seconds, 0 or more")


def flag(field: str, value: object) -> bool:
    """Return what a word for yes or no means."""
    flags = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = flags.get(str(value).strip().lower())
    if found is None:
        raise bad_value(field, value, "give true or false")
    return found


def unmapped(
    net: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the IPv4 network that an IPv4-mapped IPv6 one (RFC 4291, 2.5.5.2) stands for.

    Sockets of both families show the addresses of IPv4 so (ss, logs of servers). On the wire there
    are none: Linux drops packets from one (net/ipv6/ip6_input.c).

    >>> unmapped(ipaddress.ip_network("::ffff:10.0.0.0/104"))
    IPv4Network('10.0.0.0/8')
    """
    mapped = net.network_address.ipv4_mapped if net.version == 6 and net.prefixlen >= 96 else None
    return net if mapped is None else ipaddress.IPv4Network((mapped, net.prefixlen - 96))


def _network(field: str, value: object) -> tuple[str, bytes, bytes]:
    """Return (family, first packed address, last packed address) of an address or network."""
    try:
        if isinstance(value, (int, float)) or "%" in str(value):
            raise ValueError
        net = unmapped(ipaddress.ip_network(str(value).strip(), strict=False))
    except ValueError:
        raise bad_value(
            field,
            value,
            "give an IPv4 or IPv6 address, or a network as 10.0.0.0/8 or 2001:db8::/32",
        ) from None
    return f"ipv{net.version}", net.network_address.packed, net.broadcast_address.packed


# ---------------------------------------------------------------- tests on rows: row[0] is the key'
def _ctl_bit(values: t.Collection[bool], bit: int) -> Test | None:
    """Return the test for a bit of ``ctl``; None when both values are wanted."""
    if len(set(values)) > 1:
        return None
    want = bool(next(iter(values)))
    return lambda row: bool(row[1][flow.CTL] & bit) is want


def _anything(row: flow.Row) -> bool:
    return True


def _test_family(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    return _anything if table.family in values else None


def _test_proto(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    wanted = frozenset(values)
    return lambda row: row[0][4] in wanted


def _test_dir(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    return _ctl_bit([value == "egress" for value in values], chain_layout.CTL_EGRESS) or _anything


def _test_assured(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    return _ctl_bit(values, chain_layout.CTL_ASSURED) or _anything


def _test_state(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    wanted = frozenset(values)
    return lambda row: flow.state_name(row[0][4], row[1][flow.CTL]) in wanted


def _test_port(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    wanted, ported = frozenset(values), flow.PORTED
    return lambda row: (row[0][2] in wanted or row[0][3] in wanted) and row[0][4] in ported


def _test_side_port(reverse: bool) -> _Builder:
    """Return the builder for the initiator's port, or for the other side's."""

    def build(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
        wanted, ported, bit = frozenset(values), flow.PORTED, chain_layout.CTL_ORIG_HI
        plain, swapped = (3, 2) if reverse else (2, 3)
        return lambda row: (
            row[0][swapped if row[1][flow.CTL] & bit else plain] in wanted and row[0][4] in ported
        )

    return build


def _address_test(values: tuple[t.Any, ...], table: flow.Table) -> t.Callable[[t.Any], bool] | None:
    """Return the test on one address, as the table's key has it; None when no value is of the
    table's family.
    """
    own = [
        (table.address.unpack(low)[0], table.address.unpack(high)[0])
        for family, low, high in values
        if family == table.family
    ]
    if not own:
        return None
    single = frozenset(low for low, high in own if low == high)
    wide = [(low, high) for low, high in own if low != high]
    if not wide:
        return single.__contains__
    return lambda address: address in single or any(low <= address <= high for low, high in wide)


def _test_addr(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    test = _address_test(values, table)
    if test is None:
        return None
    matches = test
    return lambda row: matches(row[0][0]) or matches(row[0][1])


def _test_side(reverse: bool) -> _Builder:
    """Return the builder for the initiator's address, or for the other side's."""

    def build(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
        test = _address_test(values, table)
        if test is None:
            return None
        matches, bit = test, chain_layout.CTL_ORIG_HI
        plain, swapped = (1, 0) if reverse else (0, 1)
        return lambda row: matches(row[0][swapped if row[1][flow.CTL] & bit else plain])

    return build


def _test_total(first: int, second: int) -> _Builder:
    """Return the builder for a least total of both directions."""

    def build(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
        least = min(values)
        return lambda row: row[1][first] + row[1][second] >= least

    return build


def _test_older(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    least = min(values)
    return lambda row: clock.age(row[1][flow.CREATED]) > least


def _test_idle(values: tuple[t.Any, ...], table: flow.Table, clock: Clock) -> Test | None:
    least = min(values)
    return lambda row: clock.idle(row[1][flow.LAST_SEEN]) >= least


@dataclasses.dataclass(frozen=True)
class _Word:
    """One filter.

    :ivar parse: checks one value and returns it in the form that ``build`` takes.
    :ivar build: makes the test.
    :ivar fixed: whether the answer can never change for an entry under the same key.
    """

    parse: t.Callable[[str, object], t.Any]
    build: _Builder
    fixed: bool = False


#: The filters, the cheapest test first.
_WORDS: dict[str, _Word] = {
    "family": _Word(_family, _test_family, True),
    "proto": _Word(_proto, _test_proto, True),
    "port": _Word(_port, _test_port, True),
    "dir": _Word(_dir, _test_dir),
    "assured": _Word(flag, _test_assured),
    "sport": _Word(_port, _test_side_port(False)),
    "dport": _Word(_port, _test_side_port(True)),
    "min_bytes": _Word(_count, _test_total(1, 3)),
    "min_packets": _Word(_count, _test_total(0, 2)),
    "src": _Word(_network, _test_side(False)),
    "dst": _Word(_network, _test_side(True)),
    "addr": _Word(_network, _test_addr, True),
    "state": _Word(_state, _test_state),
    "older_than": _Word(_seconds, _test_older),
    "idle_for": _Word(_seconds, _test_idle),
}
FILTER_WORDS = tuple(_WORDS)


@dataclasses.dataclass(frozen=True)
class Filters:
    """Parsed filters.

    :ivar values: the values by word; words that were not given are absent.
    """

    values: t.Mapping[str, tuple[t.Any, ...]]

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def fixed(self) -> bool:
        """Whether an entry that matched once matches as long as it exists."""
        return all(_WORDS[word].fixed for word in self.values)

    def tests(self, table: flow.Table, clock: Clock) -> list[Test] | None:
        """Return the tests that a row of ``table`` has to pass; None when no row can."""
        tests = [
            _WORDS[word].build(self.values[word], table, clock)
            for word in _WORDS
            if word in self.values
        ]
        if any(test is None for test in tests):
            return None
        return [test for test in tests if test is not None and test is not _anything]


def choose(rows: t.Iterable[flow.Row], tests: t.Iterable[Test]) -> t.Iterable[flow.Row]:
    """Return the rows that pass all ``tests``."""
    for test in tests:
        rows = filter(test, rows)
    return rows


def _listed(value: object) -> list[object]:
    """Return what was given once or several times as a list."""
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _refuse_unknown(words: t.Mapping[str, object], known: t.Collection[str], what: str) -> None:
    for word in words:
        if word not in known:
            raise ConntrackError(
                f"{word} is no {what}. Give one of {', '.join(known)}.{did_you_mean(word, known)}"
            )


def parse_filters(words: t.Mapping[str, object]) -> Filters:
    """Return the filters that the given words make; a word whose value is None was not given.

    An empty value is no filter that was left out: what it was to be made of is missing, and
    without it a deletion would take more than it was told to.

    :param words: each value a scalar or a list.
    :raises ConntrackError: for a word or a value that is not valid.
    """
    _refuse_unknown(words, FILTER_WORDS, "filter")
    parsed: dict[str, tuple[t.Any, ...]] = {}
    for word, value in words.items():
        if value is None:
            continue
        values = _listed(value)
        if not values:
            raise bad_value(word, "", "the list is empty; give a value")
        parsed[word] = tuple(
            _WORDS[word].parse(word if len(values) == 1 else f"{word}[{at}]", one)
            for at, one in enumerate(values)
        )
    _refuse_two_families(words, parsed)
    return Filters(parsed)


def _refuse_two_families(
    words: t.Mapping[str, object], parsed: t.Mapping[str, tuple[t.Any, ...]]
) -> None:
    """:raises ConntrackError: no flow can match, since each has addresses of one family."""
    common, earlier = set(flow.FAMILIES), list[str]()
    for word in [word for word in ("family", "src", "dst", "addr") if word in parsed]:
        own = {one if word == "family" else one[0] for one in parsed[word]}
        if not common & own:
            mend = f"both ends of a flow are of one family, and {' and '.join(earlier)} leave"
            mend += f"{'s' if len(earlier) == 1 else ''} only {', '.join(sorted(common))}"
            raise bad_value(word, ",".join(map(str, _listed(words[word]))), mend)
        common &= own
        earlier.append(word)


# ---------------------------------------------------------------- everything that a reader can ask
DEFAULT_LIMIT = 100
QUERY_WORDS = (*FILTER_WORDS, "limit", "sort", "fields", "group_by")


@dataclasses.dataclass(frozen=True)
class Query:
    """What to read.

    :ivar sort: column to sort by, None for the table's own order.
    :ivar descending: the largest first.
    :ivar limit: at most so many flows; None where nothing was said.
    :ivar fields: what each record holds; empty for everything.
    :ivar group_by: columns by which flows are added up; empty for none.
    """

    filters: Filters
    sort: str | None = None
    descending: bool = False
    limit: int | None = None
    fields: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()


def _columns(field: str, value: object, known: t.Collection[str]) -> tuple[str, ...]:
    names = [] if value is None else [str(name).strip() for name in _listed(value)]
    for name in names:
        if name not in known:
            raise bad_value(field, name, f"give some of {', '.join(known)}", known)
    return tuple(dict.fromkeys(names))


def parse_query(words: t.Mapping[str, object]) -> Query:
    """Return the query that the given words make; see parse_filters().

    :raises ConntrackError: for a word or a value that is not valid.
    """
    _refuse_unknown(words, QUERY_WORDS, "word of a query")
    sort = None if words.get("sort") is None else str(words["sort"]).strip()
    descending = sort is not None and sort.startswith("-")
    name = None if sort is None else sort[1:] if descending else sort
    sortable = [column for column in flow.ALL_COLUMNS if column != "vlan"]
    if name is not None and name not in sortable:
        mend = f"give one of {', '.join(sortable)}, with '-' before it for the largest first"
        raise bad_value("sort", words["sort"], mend, sortable)
    limit = words.get("limit")
    return Query(
        filters=parse_filters({word: words[word] for word in FILTER_WORDS if word in words}),
        sort=name,
        descending=descending,
        limit=None
        if limit is None
        else _number("limit", limit, 0, None, "give a whole number, 0 or more"),
        fields=_columns("fields", words.get("fields"), (*flow.ALL_COLUMNS, *flow.OBJECTS)),
        group_by=_columns("group_by", words.get("group_by"), flow.ALL_COLUMNS),
    )
