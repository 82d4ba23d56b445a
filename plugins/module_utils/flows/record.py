# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow records that come from elsewhere: the one schema that each of them must meet before anything
is made of it.

Whoever wrote a record may be a host that somebody else controls, or a file that was damaged or made
by hand. So every field has its type and its bounds, no field may be missing, and none may be there
that a record does not have. What comes out holds nothing but checked values, in the order of
flow.record(): no text of the file goes on to a file, a terminal or a spreadsheet.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import socket
import typing as t

from ..chain import events as chain_events
from ..chain import layout as chain_layout
from ..chain import settings as chain_settings
from ..core.errors import ConntrackError, is_whole
from . import codec as flow

#: Characters of a line. A record with its windows has less than 1,500; a line is read as a whole,
#: so it needs a bound.
MOST_LINE = 1 << 16
#: The most that times can be, in seconds: twice that still fits into the 32 bits of an entry's
#: clock. Real ones stay below 2**31 jiffies.
MOST_SECONDS = (1 << 30) - 1
_U8, _U16, _U32, _U64 = ((1 << bits) - 1 for bits in (8, 16, 32, 64))
_NUMBERS = {name: number for number, name in flow.PROTOCOLS.items()}
_ICMP = {table.family: table.icmp for table in flow.TABLES}
_COUNTS = {"packets": _U64, "bytes": _U64}
_PORTS = {"sport": _U16, "dport": _U16}
#: What else a record holds where its protocol has it, with the largest number that each may be.
_QUERY = {"type": _U8, "code": _U8, "id": _U16}
_KEYS = {"srckey": _U16, "dstkey": _U16}
_RELATED = {"packets": _U32, "bytes": _U32}
_WINDOW = {
    "td_end": _U32,
    "td_maxend": _U32,
    "td_maxwin": _U32,
    "td_maxack": _U32,
    "td_scale": 15,
    "flags": _U8,
}
_VLAN_ID = 0xFFF
#: Fields of an event in front of the flow's, as events.record() has them.
EVENT_FIELDS = ("event", "seq", "time", "reason")
#: As events.parse() writes it, and what other programs make of it: an instant with its offset.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3}|\.[0-9]{6})?[+-][0-9]{2}:[0-9]{2}",
    re.ASCII,
)


# ---------------------------------------------------------------- JSON
def _no_number(text: str) -> t.NoReturn:
    raise ConntrackError(f"{text}: JSON has no such number (RFC 8259).")


def _object(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # of two with one name each reader may take another
        names = [name for name, dummy in pairs]
        raise ConntrackError(
            f"{quoted(next(name for name in names if names.count(name) > 1))}: it is there twice."
        )
    return found


#: Made once: to make one takes longer than to read a record.
_DECODER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object)


def loads(text: str) -> t.Any:
    """Return what a line of JSON holds. Unlike json.loads() it takes nothing that JSON has not: no
    NaN, no Infinity, and no name twice in an object.

    :raises ConntrackError: saying why it is none; for what nests too deeply, too.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ConntrackError("it nests too deeply.") from None
    except ValueError:  # a number of more digits than Python reads (4,300) is one as well
        raise ConntrackError("it is not JSON.") from None


def quoted(value: object) -> str:
    """Return a value from elsewhere as an error may show it: short, and without a character that a
    terminal obeys.
    """
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of many digits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def lines(path: str, file: t.TextIO) -> t.Iterator[tuple[int, str]]:
    """Return the lines of an open file with their numbers.

    :raises ConntrackError: for a line that is too long to be a record.
    """
    number = 0
    while line := file.readline(MOST_LINE + 1):
        number += 1
        if len(line) > MOST_LINE:
            raise ConntrackError(
                f"input: {path}:{number}: the line has more than {MOST_LINE} characters, which no"
                " flow has."
            )
        yield number, line


# ---------------------------------------------------------------- single values
def _bad(field: str, value: object, mend: str) -> ConntrackError:
    return ConntrackError(f"{field}: {quoted(value)} is not valid: {mend}.")


def number(field: str, value: object, most: int) -> int:
    """Return a whole number from 0 to ``most``.

    :raises ConntrackError: for anything else, true and 1.0 among it.
    """
    if not is_whole(value) or not 0 <= value <= most:
        raise _not_a_number(field, value, most)
    return value


def _not_a_number(field: str, value: object, most: int) -> ConntrackError:
    return _bad(field, value, f"give a whole number from 0 to {most}")


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _bad(field, value, "give true or false")
    return value


def _choice(field: str, value: object, names: t.Collection[str]) -> str:
    if not isinstance(value, str) or value not in names:
        raise _bad(field, value, f"give one of {', '.join(names)}")
    return value


@functools.lru_cache(1 << 12)
def _canonical(family: str, text: str) -> str | None:
    """Return an address as the kernel prints it; None for what is none."""
    try:
        return socket.inet_ntop(
            flow.FAMILIES[family], socket.inet_pton(flow.FAMILIES[family], text)
        )
    except (OSError, ValueError):
        return None


def _address(side: str, name: str, value: object, family: str) -> str:
    found = _canonical(family, value) if isinstance(value, str) and len(value) < 64 else None
    if found is None:
        raise _bad(f"{side}.{name}", value, f"give an {family} address")
    return found


def _fields(
    field: str, value: object, names: t.Collection[str], optional: t.Collection[str] = ()
) -> dict[str, t.Any]:
    """Return an object that has these fields and no other but the optional ones."""
    dot = f"{field}." if field else ""
    if not isinstance(value, dict):
        raise _bad(field or "record", value, "give an object")
    for name in names:
        if name not in value:
            raise ConntrackError(f"{dot}{name}: it is missing.")
    if len(value) > len(names):
        for name in value:
            if name not in names and name not in optional:
                raise ConntrackError(f"{dot}{quoted(name)[1:-1]}: a flow has no such field here.")
    return value


class _Numbers:
    """Whole numbers in an object, each up to its bound; compiled, for there are many records.

    :param field: the object's name, and ``most`` the largest number of each field.
    :param besides: other fields of the object.
    """

    def __init__(
        self, field: str, most: t.Mapping[str, int], besides: t.Sequence[str] = ()
    ) -> None:
        self._field, self._names = field, dict.fromkeys((*besides, *most))
        self._bounds = tuple((name, f"{field}.{name}", bound) for name, bound in most.items())

    def fields(self, value: object) -> dict[str, t.Any]:
        """Return the object, which has all of the fields and no other."""
        return (
            value
            if isinstance(value, dict) and value.keys() == self._names.keys()
            else _fields(self._field, value, self._names)
        )

    def take(self, found: t.Mapping[str, t.Any], into: dict[str, t.Any]) -> dict[str, t.Any]:
        """Put the numbers of such an object into another one."""
        for name, field, most in self._bounds:
            one = found[name]
            if not is_whole(one) or not 0 <= one <= most:
                raise _not_a_number(field, one, most)
            into[name] = one
        return into

    def __call__(self, value: object) -> dict[str, t.Any]:
        """Return an object of nothing but these numbers."""
        return self.take(self.fields(value), {})


# ---------------------------------------------------------------- a flow
def _protocol(field: str, value: object) -> int:
    found = _NUMBERS.get(value) if isinstance(value, str) else None
    if found is not None:
        return found
    if (
        not isinstance(value, str)
        or not (value.isascii() and value.isdigit() and len(value) <= 3)
        or str(int(value)) != value
        or int(value) > _U8
    ):
        raise _bad(
            field, value, f"give {', '.join(_NUMBERS)}, or the number of another protocol as text"
        )
    if int(value) in flow.PROTOCOLS:
        raise _bad(field, value, f"give its name, {flow.PROTOCOLS[int(value)]}")
    return int(value)


@functools.lru_cache(None)
def states_of(protocol: int) -> tuple[str, ...]:
    """Return the states that flows of a protocol can be in, by the names that records have for
    them.

    A number that a state machine has no name for is its own name, see flow.state_name().
    """
    names = flow.STATES.get(protocol)
    if names is None:
        return flow.PLAIN_STATES
    others = tuple(str(state) for state in range(len(names), chain_layout.CTL_STATE + 1))
    return (
        (*names, *others)
        if protocol == flow.TCP
        else tuple(dict.fromkeys((*names[1:], *flow.PLAIN_STATES, *others)))
    )


#: Each direction, without ports and with them.
_ENDS = ("src", "dst")
_SIDES = {
    side: tuple(_Numbers(side, {**ports, **_COUNTS}, _ENDS) for ports in ({}, _PORTS))
    for side in ("orig", "reply")
}
_RELATED_NUMBERS, _QUERY_NUMBERS, _KEY_NUMBERS = (
    _Numbers("related", _RELATED),
    _Numbers("icmp", _QUERY),
    _Numbers("gre", _KEYS),
)
_WINDOWS = {side: _Numbers(f"window.{side}", _WINDOW) for side in _SIDES}


def _side(side: str, value: object, family: str, ported: bool) -> dict[str, t.Any]:
    numbers = _SIDES[side][ported]
    found = numbers.fields(value)
    ends = {
        "src": _address(side, "src", found["src"], family),
        "dst": _address(side, "dst", found["dst"], family),
    }
    return numbers.take(found, ends)


_ALWAYS = (
    "family",
    "proto",
    "state",
    "assured",
    "seen_reply",
    "timeout",
    "orig",
    "reply",
    "dir",
    "age",
    "idle",
    "related",
)
_TURNED = (("src", "dst"), ("dst", "src"), ("sport", "dport"), ("dport", "sport"))


def checked(value: object, also: t.Collection[str] = ()) -> flow.Record:
    """Return a record as flow.record() makes them.

    :param value: what came from elsewhere, parsed.
    :param also: fields that may stand there besides; they are left out.
    :raises ConntrackError: naming the field, its value and the mend.
    """
    found = _fields("", value, _ALWAYS, ("icmp", "gre", "vlan", "aggregated", "window", *also))
    family = _choice("family", found["family"], flow.FAMILIES)
    protocol = _protocol("proto", found["proto"])
    ported = protocol in flow.PORTED
    orig, reply = (
        _side("orig", found["orig"], family, ported),
        _side("reply", found["reply"], family, ported),
    )
    for one, other in _TURNED if ported else _TURNED[:2]:
        if orig[one] != reply[other]:
            raise _bad(
                f"reply.{other}",
                reply[other],
                f"give {orig[one]}, as orig.{one} has it: no address is translated here",
            )
    record: flow.Record = {
        "family": family,
        "proto": flow.PROTOCOLS.get(protocol, str(protocol)),
        "state": _choice("state", found["state"], states_of(protocol)),
        "assured": _flag("assured", found["assured"]),
        "seen_reply": _flag("seen_reply", found["seen_reply"]),
        "timeout": number("timeout", found["timeout"], chain_settings.LONGEST_TIMEOUT),
        "orig": orig,
        "reply": reply,
    }
    parts = (
        ("icmp", protocol == _ICMP[family], _QUERY_NUMBERS),
        ("gre", protocol == flow.GRE, _KEY_NUMBERS),
    )
    for name, there, numbers in parts:
        if there != (name in found):
            why = "it is missing" if there else f"a flow of {record['proto']} has no such field"
            raise ConntrackError(f"{name}: {why}.")
        if there:
            record[name] = numbers(found[name])
    record["dir"] = _choice("dir", found["dir"], flow.DIRECTIONS)
    if "vlan" in found:
        tags = found["vlan"]
        if not isinstance(tags, list) or not 1 <= len(tags) <= 2:
            raise _bad("vlan", tags, "give a list of one or two VLAN ids")
        record["vlan"] = [number(f"vlan[{at}]", tag, _VLAN_ID) for at, tag in enumerate(tags)]
    if _flag("aggregated", found.get("aggregated", False)):
        record["aggregated"] = True
    record["age"], record["idle"] = (
        number("age", found["age"], MOST_SECONDS),
        number("idle", found["idle"], MOST_SECONDS),
    )
    record["related"] = _RELATED_NUMBERS(found["related"])
    if "window" in found:
        sides = _fields("window", found["window"], ("orig", "reply"))
        record["window"] = {side: numbers(sides[side]) for side, numbers in _WINDOWS.items()}
    return record


def _is_time(value: object) -> bool:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return False
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def checked_event(value: object) -> flow.Record:
    """Return an event as events.record() makes them; see checked() for the errors."""
    found = _fields("", value, ("event", "seq", "time"), value if isinstance(value, dict) else ())
    event: flow.Record = {
        "event": _choice("event", found["event"], chain_events.EVENT_KINDS),
        "seq": number("seq", found["seq"], _U64),
        "time": found["time"],
    }
    if not _is_time(found["time"]):
        raise _bad("time", found["time"], "give an instant as 2026-01-31T12:00:00.000000+00:00")
    if "reason" in found:
        reasons = tuple(chain_events.EVENT_REASONS.values())
        if event["event"] != "destroy":
            raise ConntrackError("reason: only the event destroy has one.")
        event["reason"] = _choice("reason", found["reason"], ("", *reasons))
    return {**event, **checked(value, EVENT_FIELDS)}
