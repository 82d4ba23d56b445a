# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the bytes of the flow tables to flows.

A flow is decoded in two halves, so that a million of them cost little: what many flows share
(protocol, state, flags, tags) is a :class:`Shape`, made once and cached; what differs is a plain
tuple of *values* in the order of :data:`VALUES`. Records, lines and columns are made of the two.
Nothing here touches the kernel.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import socket
import struct
import sys
import typing as t

from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import settings as chain_settings
from ..chain import states as chain_states
from ..chain.clock import Clock

_MASK32 = 0xFFFFFFFF
TCP = socket.IPPROTO_TCP
GRE = socket.IPPROTO_GRE
#: Names of IP protocols in flow records; any other protocol is its number as text.
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 58: "icmpv6", 132: "sctp", 136: "udplite"}
#: Protocols whose flows have ports.
PORTED = frozenset((6, 17, 132, 136))
#: The answer to each ICMP query (net/netfilter/nf_conntrack_proto_icmp.c and
#: nf_conntrack_proto_icmpv6.c, invmap).
ICMP_ANSWERS = {1: {8: 0, 13: 14, 15: 16, 17: 18}, 58: {128: 129, 139: 140}}
#: State names by the number in ``ctl``, for the protocols that have a state machine.
STATES: dict[int, tuple[str, ...]] = {
    6: chain_states.TCP_STATES,
    132: chain_states.SCTP_STATES,
}
#: States of all the other protocols.
PLAIN_STATES = ("NEW", "REPLIED", "ESTABLISHED")
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
DIRECTIONS = ("ingress", "egress")


@dataclasses.dataclass(frozen=True)
class Table:
    """One flow table.

    :ivar name: the map's name.
    :ivar family: address family of its flows.
    :ivar flow_class: which of them it is for, one of CLASSES.
    :ivar key: reads lo address, hi address, lo port, hi port, protocol, role. It is big-endian, so
        that ports are numbers.
    :ivar address: reads one packed address as ``key`` does: IPv4 addresses as numbers, IPv6 ones as
        bytes. Both order as addresses do.
    :ivar icmp: protocol number of ICMP in this family.
    """

    name: str
    family: str
    flow_class: str
    key: struct.Struct
    address: struct.Struct
    icmp: int


#: All others, and assured flows. A flow moves from the one table of its family to the other, so
#: they are read in this order: none is missed.
CLASSES = chain_maps.FLOW_CLASSES
_KEY4, _KEY6 = struct.Struct(">IIHHBB2x"), struct.Struct(">16s16sHHBB2x")
TABLES = (
    Table("ctt_new", "ipv4", "half_open", _KEY4, struct.Struct(">I"), 1),
    Table("ctt", "ipv4", "assured", _KEY4, struct.Struct(">I"), 1),
    Table("ctt6_new", "ipv6", "half_open", _KEY6, struct.Struct(">16s"), 58),
    Table("ctt6", "ipv6", "assured", _KEY6, struct.Struct(">16s"), 58),
)
#: What flows are read from: chain.ENTRY without the TCP windows. orig packets, orig bytes, reply
#: packets, reply bytes, ctl, expires, last_seen, created, related packets, related bytes.
VIEW = struct.Struct("=QQ16xQQ16xQIII20xII")
CTL = 4  # position of ctl, expires, last_seen, created in VIEW
EXPIRES = 5
LAST_SEEN = 6
CREATED = 7
#: Where in an entry the lowest byte of ``ctl`` lies, with all that a summary tells flows apart by,
#: the highest, with the lock, ``expires`` and ``last_seen``.
_CTL_AT, _CTL_TOP_AT = sorted(
    (struct.calcsize("=QQ16xQQ16x"), struct.calcsize("=QQ16xQQ16xQ") - 1),
    reverse=sys.byteorder == "big",
)
_EXPIRES_AT = struct.calcsize("=QQ16xQQ16xQ")
_LAST_SEEN_AT = _EXPIRES_AT + 4
#: What the values of a flow are, in their order: that of a record, so that most lines are made of
#: them as they stand. ``timeout``, ``age`` and
#: ``idle`` are whole seconds; addresses are text. For ICMP ``orig.sport`` is the id. ``related``
#: are the ICMP errors that quote the flow.
VALUES = (
    "timeout",
    "orig.src",
    "orig.dst",
    "orig.sport",
    "orig.dport",
    "orig.packets",
    "orig.bytes",
    "reply.src",
    "reply.dst",
    "reply.sport",
    "reply.dport",
    "reply.packets",
    "reply.bytes",
    "age",
    "idle",
    "related.packets",
    "related.bytes",
)
TIMEOUT, SRC, DST, SPORT, DPORT, ORIG_PACKETS, ORIG_BYTES = range(7)
REPLY_SRC, REPLY_DST, REPLY_SPORT, REPLY_DPORT, REPLY_PACKETS, REPLY_BYTES = range(7, 13)
AGE, IDLE, RELATED_PACKETS, RELATED_BYTES = range(13, 17)
ADDRESSES = (SRC, DST, REPLY_SRC, REPLY_DST)
Values = tuple[t.Any, ...]
#: (key fields, value fields) as the table's key struct and VIEW give them, or with the packed key
#: and value behind them.
Row = tuple[t.Any, ...]
Record = dict[str, t.Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """What many flows have in common. Compared and hashed by identity, which is what makes it a
    cheap key.

    :ivar number: IP protocol number; ``proto`` is its name.
    :ivar machine: whether ``state`` is that of a protocol's state machine.
    :ivar vlan: tag ids, the outer one first; empty when untagged.
    :ivar aggregated: whether some of its packets were several segments on the wire, which nobody
        can count any more.
    :ivar icmp: type and code of an ICMP query, else None.
    :ivar gre: keys of a GRE flow, the initiator's first, else None: those of version 1 (PPTP) are 0
        and the call id, others have none and show zeros.
    """

    family: str
    number: int
    proto: str
    state: str
    machine: bool
    assured: bool
    seen_reply: bool
    dir: str
    vlan: tuple[int, ...]
    aggregated: bool
    icmp: tuple[int, int] | None
    gre: tuple[int, int] | None

    @property
    def ported(self) -> bool:
        """Whether the flow has ports."""
        return self.number in PORTED


Flow = tuple[Shape, Values, Row]


def state_name(number: int, ctl: int) -> str:
    """Return the name of a flow's state.

    :param number: IP protocol number.
    :param ctl: the entry's control word.
    """
    names = STATES.get(number)
    state = ctl & chain_layout.CTL_STATE
    if names and state < len(names) and (state or number == TCP):
        return names[state]
    if names and state:
        return str(state)
    return PLAIN_STATES[
        2 if ctl & chain_layout.CTL_ASSURED else 1 if ctl & chain_layout.CTL_SEEN_REPLY else 0
    ]


def make_shape(table: Table, number: int, ctl: int, dport: int) -> Shape:
    """Return the shape of a flow.

    :param number: IP protocol number.
    :param ctl: the entry's control word.
    :param dport: port of the answering side: for ICMP type << 8 | code of the query, for GRE the
        call id.
    """
    tags = (
        ctl >> chain_layout.CTL_VLAN_OUTER_SHIFT & 0xFFF,
        ctl >> chain_layout.CTL_VLAN_INNER_SHIFT & 0xFFF,
    )
    return Shape(
        family=table.family,
        number=number,
        proto=PROTOCOLS.get(number, str(number)),
        state=state_name(number, ctl),
        machine=number in STATES,
        assured=bool(ctl & chain_layout.CTL_ASSURED),
        seen_reply=bool(ctl & chain_layout.CTL_SEEN_REPLY),
        dir=DIRECTIONS[bool(ctl & chain_layout.CTL_EGRESS)],
        vlan=tags[: min(ctl >> chain_layout.CTL_VLANS_SHIFT & 3, 2)],
        aggregated=bool(ctl & chain_layout.CTL_AGGREGATED),
        icmp=(dport >> 8, dport & 0xFF) if number == table.icmp else None,
        gre=(0, dport) if number == GRE else None,
    )


K = t.TypeVar("K")
V = t.TypeVar("V")
Text = t.Union[str, bytes]


class Cache(dict[K, V]):
    """A dict that makes what is missing in it.

    It holds at most 2**16 of them, then it starts anew: enough addresses, shapes and templates for
    most tables, little memory. In a loop over a large table it takes a third of the time of
    functools.lru_cache.
    """

    MOST = 1 << 16

    def __init__(self, make: t.Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        if len(self) >= self.MOST:
            self.clear()
        value = self[key] = self._make(key)
        return value


@functools.lru_cache(None)
def _halves(as_bytes: bool) -> t.Any:
    """Return the text of each half of an IPv4 address, by its number: joining two of them is the
    cheapest way to an address.

    As bytes they are for whole tables, and 3 ms make all of them at once; as text mostly for a few
    records, and made when they are needed.
    """
    if not as_bytes:
        return Cache(lambda half: f"{half >> 8}.{half & 0xFF}")
    octets = [b"%d" % number for number in range(256)]
    return [one + other for one in [b"%b." % octet for octet in octets] for other in octets]


class Decoder:
    """Decodes the rows of one table at one instant; keeps the caches between batches.

    :param table: the flow table.
    :param clock: the instant; flows that are over then are left out.
    :param as_bytes: give addresses as ASCII bytes, for writers of bytes.
    """

    def __init__(self, table: Table, clock: Clock, as_bytes: bool = False) -> None:
        self.table = table
        self.clock = clock
        self._as_bytes = as_bytes

        def ipv6(packed: bytes) -> Text:
            name = socket.inet_ntop(socket.AF_INET6, packed)
            return name.encode() if as_bytes else name

        self._ipv6 = Cache(ipv6)
        #: protocols whose answering side's port is part of the shape
        self._port_shapes = frozenset((table.icmp, GRE))
        self._shapes: Cache[int, Shape] = Cache(
            lambda key: make_shape(table, key & 0xFF, key >> 24, key >> 8 & 0xFFFF)
        )

    def rows(self, keys: memoryview | bytes, values: memoryview | bytes) -> t.Iterator[Row]:
        """Return the rows of one batch, without their bytes."""
        return zip(self.table.key.iter_unpack(keys), VIEW.iter_unpack(values))

    def packed_rows(self, keys: memoryview | bytes, values: memoryview | bytes) -> t.Iterator[Row]:
        """Return the rows of one batch, each with its packed key and value behind it."""
        raw_key, raw_value = (
            struct.Struct(f"{self.table.key.size}s"),
            struct.Struct(f"{VIEW.size}s"),
        )
        return (
            (key, value, raw[0], packed[0])
            for key, value, raw, packed in zip(
                self.table.key.iter_unpack(keys),
                VIEW.iter_unpack(values),
                raw_key.iter_unpack(keys),
                raw_value.iter_unpack(values),
            )
        )

    def over_rows(self, keys: memoryview | bytes, values: memoryview | bytes) -> t.Iterator[Row]:
        """Return packed_rows() without the flows that are live; those cost little, for of them only
        that is looked at.
        """
        over = self._over(values)
        if not any(over):
            return iter(())
        return (row for row, wanted in zip(self.packed_rows(keys, values), over) if wanted)

    def _over(self, values: memoryview | bytes) -> list[bool]:
        """Return for each entry of a batch whether its time is over: clock.over(), written out for
        whole columns.
        """
        next_jiffy, longest = self.clock.jiffies + 1, chain_settings.LONGEST_TIMEOUT * self.clock.hz
        slack = chain_settings.CLOCK_SLACK * self.clock.hz - 1
        return [
            (at - next_jiffy) & 0xFFFFFFFF >= longest
            or (at - next_jiffy) & 0xFFFFFFFF > (at - seen & 0xFFFFFFFF) + slack
            for at, seen in zip(_column(values, _EXPIRES_AT), _column(values, _LAST_SEEN_AT))
        ]

    def flows(self, rows: t.Iterable[Row], over: bool = False) -> t.Iterator[Flow]:
        """Return shape, values and row of each row whose time is not over, and of the others, too,
        if ``over``.

        An entry that is being made right now (locked, nothing counted yet) is left out. This is the
        loop that a large table spends its time in, hence the arithmetic of Clock is written out
        here.
        """
        now, rate = self.clock.jiffies, self.clock.hz
        seconds = now // rate
        now &= _MASK32
        longest, slack = chain_settings.LONGEST_TIMEOUT * rate, chain_settings.CLOCK_SLACK * rate
        shapes, port_shapes = self._shapes, self._port_shapes
        ipv4, ipv6 = self.table.family == "ipv4", self._ipv6
        halves = _halves(self._as_bytes) if ipv4 else ()
        joined: t.Any = b"%b.%b" if self._as_bytes else "%s.%s"
        orig_hi, lock = chain_layout.CTL_ORIG_HI, chain_layout.CTL_LOCK
        for row in rows:
            lo, hi, sport, dport, number, dummy = row[0]
            (
                orig_packets,
                orig_bytes,
                reply_packets,
                reply_bytes,
                ctl,
                expires,
                last_seen,
                created,
                rel_packets,
                rel_bytes,
            ) = row[1]
            left = (expires - now) & 0xFFFFFFFF
            if not 0 < left <= longest or left > ((expires - last_seen) & 0xFFFFFFFF) + slack:
                if not over:
                    continue
                left = 0
            if not orig_packets and ctl & lock:
                continue
            if ctl & orig_hi:
                lo, hi, sport, dport = hi, lo, dport, sport
            shape = shapes[
                ctl << 24 | dport << 8 | number if number in port_shapes else ctl << 24 | number
            ]
            if ipv4:
                src, dst = (
                    joined % (halves[lo >> 16], halves[lo & 0xFFFF]),
                    joined % (halves[hi >> 16], halves[hi & 0xFFFF]),
                )
            else:
                src, dst = ipv6[lo], ipv6[hi]
            idle = (now - last_seen) & 0xFFFFFFFF
            age = seconds - created
            yield (
                shape,
                (
                    left // rate,
                    src,
                    dst,
                    sport,
                    dport,
                    orig_packets,
                    orig_bytes,
                    dst,
                    src,
                    dport,
                    sport,
                    reply_packets,
                    reply_bytes,
                    age if age > 0 else 0,
                    idle // rate if idle < 0x80000000 else 0,
                    rel_packets,
                    rel_bytes,
                ),
                row,
            )

    def count(
        self, keys: memoryview | bytes, values: memoryview | bytes
    ) -> collections.Counter[Shape] | None:
        """Return how many flows of one batch there are of each shape, as far as a summary tells
        shapes apart.

        They are the flows that flows() returns, at a tenth of its time: only the columns that
        matter are looked at, no row is made. None when an entry is locked: whether it is just being
        made is for flows() to see.
        """
        now, rate = self.clock.jiffies & _MASK32, self.clock.hz
        expires, last_seen = _column(values, _EXPIRES_AT), _column(values, _LAST_SEEN_AT)
        columns = bytearray(4 * len(expires))
        # none is over, which is cheap to see where the clock is not about to go round
        if (
            expires
            and now < min(expires)
            and max(expires) - now <= chain_settings.LONGEST_TIMEOUT * rate
            and max(last_seen) <= now + chain_settings.CLOCK_SLACK * rate
        ):
            columns[0::4] = b"\1" * len(expires)
        else:
            columns[0::4] = bytes(not over for over in self._over(values))
        columns[1::4] = values[_CTL_TOP_AT :: VIEW.size]
        columns[2::4] = values[_CTL_AT :: VIEW.size]
        columns[3::4] = keys[2 * self.table.address.size + 4 :: self.table.key.size]
        found: collections.Counter[Shape] = collections.Counter()
        for packed, number in collections.Counter(array.array("I", bytes(columns))).items():
            live, ctl_top, ctl, protocol = packed.to_bytes(4, sys.byteorder)
            if live and ctl_top:
                return None
            if live:
                found[self._shapes[ctl << 24 | protocol]] += number
        return found


def _column(values: memoryview | bytes, at: int) -> array.array[int]:
    """Return the 32-bit numbers of a batch that stand at this place of each entry."""
    return array.array("I", memoryview(values).cast("I")[at // 4 :: VIEW.size // 4].tobytes())


def _side(shape: Shape, v: Values, first: int) -> Record:
    """Return one direction, whose values begin at ``first``."""
    src, dst, sport, dport, packets, octets = v[first : first + 6]
    ports = {"sport": sport, "dport": dport} if shape.ported else {}
    return {"src": src, "dst": dst, **ports, "packets": packets, "bytes": octets}


def record(shape: Shape, v: Values) -> Record:
    """Return the flow in the form in which modules, files and services show it."""
    result: Record = {
        "family": shape.family,
        "proto": shape.proto,
        "state": shape.state,
        "assured": shape.assured,
        "seen_reply": shape.seen_reply,
        "timeout": v[TIMEOUT],
        "orig": _side(shape, v, SRC),
        "reply": _side(shape, v, REPLY_SRC),
    }
    if shape.icmp:
        result["icmp"] = {"type": shape.icmp[0], "code": shape.icmp[1], "id": v[SPORT]}
    if shape.gre:
        result["gre"] = {"srckey": shape.gre[0], "dstkey": shape.gre[1]}
    result["dir"] = shape.dir
    if shape.vlan:
        result["vlan"] = list(shape.vlan)
    if shape.aggregated:
        result["aggregated"] = True
    result.update(
        age=v[AGE], idle=v[IDLE], related={"packets": v[RELATED_PACKETS], "bytes": v[RELATED_BYTES]}
    )
    return result


def _value(index: int) -> t.Callable[[Shape, Values], t.Any]:
    return lambda shape, v: v[index]


def _port(index: int) -> t.Callable[[Shape, Values], t.Any]:
    return lambda shape, v: v[index] if shape.ported else None


def _shared(name: str) -> t.Callable[[Shape, Values], t.Any]:
    return lambda shape, v: getattr(shape, name)


#: The columns of a flow: every single value of a record under its dotted name. None where a flow
#: has no such value.
COLUMNS: dict[str, t.Callable[[Shape, Values], t.Any]] = {
    **{name: _shared(name) for name in ("family", "proto", "state", "assured", "seen_reply")},
    **{
        name: (_port if name.endswith("port") else _value)(VALUES.index(name))
        for name in VALUES[:AGE]
    },
    "icmp.type": lambda shape, v: shape.icmp[0] if shape.icmp else None,
    "icmp.code": lambda shape, v: shape.icmp[1] if shape.icmp else None,
    "icmp.id": lambda shape, v: v[SPORT] if shape.icmp else None,
    "gre.srckey": lambda shape, v: shape.gre[0] if shape.gre else None,
    "gre.dstkey": lambda shape, v: shape.gre[1] if shape.gre else None,
    "dir": _shared("dir"),
    "vlan": lambda shape, v: list(shape.vlan) or None,
    "aggregated": lambda shape, v: shape.aggregated or None,
    **{name: _value(VALUES.index(name)) for name in VALUES[AGE:]},
}
#: Short words besides: the filters' words for the initiator's side, and the totals of both
#: directions.
SHORT_COLUMNS: dict[str, t.Callable[[Shape, Values], t.Any]] = {
    **{word: COLUMNS[f"orig.{word}"] for word in ("src", "dst", "sport", "dport")},
    "packets": lambda shape, v: v[ORIG_PACKETS] + v[REPLY_PACKETS],
    "bytes": lambda shape, v: v[ORIG_BYTES] + v[REPLY_BYTES],
}
#: Those of them that are more than one value.
TOTALS = frozenset(("packets", "bytes"))
ALL_COLUMNS = {**COLUMNS, **SHORT_COLUMNS}
#: Parts of a record that hold several values.
OBJECTS = ("orig", "reply", "icmp", "gre", "related")


def select(fields: t.Sequence[str], shape: Shape, v: Values) -> Record:
    """Return a record of the given fields only: objects whole, dotted names inside their object,
    short words by their own name.

    Fields that a flow does not have are absent.
    """
    whole = record(shape, v)
    result: Record = {}
    for name in fields:
        if name in OBJECTS:
            if name in whole:
                result[name] = whole[name]
            continue
        value = ALL_COLUMNS[name](shape, v)
        if value is None:
            continue
        head, dot, tail = name.partition(".")
        if dot:
            result.setdefault(head, {})[tail] = value
        else:
            result[name] = value
    return result


def record_with(item: Flow, fields: t.Sequence[str] = (), window: bool = False) -> Record:
    """Return the record of a flow as it is asked for.

    :param fields: what it shall hold; empty for everything.
    :param window: whether the records of TCP flows hold their windows; the row has its packed value
        then.
    """
    shape, values, row = item
    result = select(fields, shape, values) if fields else record(shape, values)
    if window and shape.number == TCP:
        result["window"] = windows(row[3])
    return result


def sort_key(name: str) -> t.Callable[[Flow], t.Any]:
    """Return the function that orders flows by one column: flows without the value first, addresses
    by number.
    """
    side, dot, tail = name.rpartition(".")
    if tail in ("src", "dst"):
        # the packed address: that of the hi side, where the initiator is the hi side or the other
        # one is asked for, but not both
        other = (tail == "dst") != (side == "reply")

        def by_address(item: Flow) -> tuple[str, int | bytes]:
            key, value = item[2][:2]
            return item[0].family, key[bool(value[CTL] & chain_layout.CTL_ORIG_HI) != other]

        return by_address
    column = ALL_COLUMNS[name]

    def by_value(item: Flow) -> tuple[bool, t.Any]:
        value = column(item[0], item[1])
        return value is not None, 0 if value is None else value

    return by_value


def with_text(v: Values) -> Values:
    """Return values whose addresses are text, whichever they were."""
    return (
        v
        if isinstance(v[SRC], str)
        else tuple(one.decode() if isinstance(one, bytes) else one for one in v)
    )


def endpoint(address: str, port: int | None) -> str:
    """Return an address with its port as people write it."""
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def windows(packed: bytes) -> dict[str, dict[str, t.Any]]:
    """Return the TCP windows of both directions of a packed entry, under the kernel's names (struct
    ip_ct_tcp_state).
    """
    entry = chain_layout.ENTRY.unpack(packed)
    scale, flags = entry[22], entry[24:26]
    return {
        side: {
            **dict(zip(("td_end", "td_maxend", "td_maxwin", "td_maxack"), entry[at : at + 4])),
            "td_scale": shift,
            "flags": flag,
        }
        for side, at, shift, flag in (
            ("orig", 2, scale & 0xF, flags[0]),
            ("reply", 8, scale >> 4, flags[1]),
        )
    }
