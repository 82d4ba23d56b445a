# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a topology promises, as data: the lines of its ``expect``, checked. Pure; expectation_run.py
makes the traffic.

A line is one of three: a flow that reaches a state, a ping that is answered, or how many frames may
stay untracked meanwhile.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ..core.errors import ConntrackError, bad_value, did_you_mean
from ..flows import codec as flow

FLOW, PING, UNTRACKED = "flow", "ping", "untracked"
WITHIN = 5.0  # seconds
_WITHIN_MAX = 3600.0
#: The states into which traffic of our own can bring a flow so that it stays there, by protocol;
#: the usual one first.
MADE: dict[str, tuple[str, ...]] = {
    "tcp": ("ESTABLISHED", "CLOSE_WAIT", "TIME_WAIT", "CLOSE"),
    "udp": ("REPLIED", "NEW", "ESTABLISHED"),
    "icmp": ("REPLIED",),
    "icmpv6": ("REPLIED",),
}
ECHO = {"ipv4": "icmp", "ipv6": "icmpv6"}
#: Frames that belong to no flow: every network has them, so they do not count as untracked.
NO_FLOWS = ("untracked_not_ip", "untracked_nd")
_PING_FIELDS = ("from", "to", "family", "address", "within")
_FIELDS = {FLOW: (*_PING_FIELDS, "proto", "port", "state", "make"), PING: _PING_FIELDS}
_NUMBERS = {name: number for number, name in flow.PROTOCOLS.items()}
_ENDS: dict[str, t.Any] = {
    "from": {"type": "str", "required": True},
    "to": {"type": "str", "required": True},
    "family": {"type": "str"},
    "address": {"type": "str"},
    "within": {"type": "float"},
}
#: The option ``expect`` of modules; see the documentation fragment of that name.
OPTION: dict[str, dict[str, t.Any]] = {
    "expect": {
        "type": "list",
        "elements": "dict",
        "options": {
            FLOW: {
                "type": "dict",
                "options": {
                    **_ENDS,
                    "proto": {"type": "str"},
                    "port": {"type": "int"},
                    "state": {"type": "str"},
                    "make": {"type": "bool"},
                },
            },
            PING: {"type": "dict", "options": _ENDS},
            UNTRACKED: {"type": "int"},
        },
    }
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of ``expect``.

    :ivar field: where it stands in the input, for errors.
    :ivar kind: FLOW, PING or UNTRACKED.
    :ivar source: the namespace that begins; ``target`` the one that answers.
    :ivar family: ``ipv4`` or ``ipv6``; "" until resolved() has chosen.
    :ivar address: the target's that is spoken to; "" until then.
    :ivar port: None where the protocol has none, or any will do.
    :ivar within: seconds.
    :ivar make: whether the traffic is made, or only looked for.
    :ivar most: how many frames may stay untracked.
    """

    field: str
    kind: str
    source: str = ""
    target: str = ""
    family: str = ""
    address: str = ""
    proto: str = ""
    port: int | None = None
    state: str = ""
    within: float = WITHIN
    make: bool = True
    most: int = 0

    @property
    def title(self) -> str:
        """The line as people read it.

        >>> Line("expect[0]", FLOW, "a", "b", proto="tcp", port=80, state="ESTABLISHED").title
        'tcp from a to b, port 80, is ESTABLISHED within 5 s'
        """
        if self.kind == UNTRACKED:
            return (
                f"at most {self.most} frames stay untracked"
                if self.most
                else "nothing stays untracked"
            )
        ends = (
            f"from {self.source} to {self.target}{', over IPv6' if self.family == 'ipv6' else ''}"
        )
        if self.kind == PING:
            return f"ping {ends}, is answered within {self.within:g} s"
        port = "" if self.port is None else f", port {self.port}"
        return (
            f"{self.proto} {ends}{port}, is {self.state} within {self.within:g}"
            f" s{'' if self.make else ' by itself'}"
        )

    def as_dict(self) -> dict[str, t.Any]:
        """Return the line in the form in which it is written, with all that was left out."""
        if self.kind == UNTRACKED:
            return {UNTRACKED: self.most}
        fields: dict[str, t.Any] = {"from": self.source, "to": self.target, "within": self.within}
        fields.update(
            {
                name: value
                for name, value in (("family", self.family), ("address", self.address))
                if value
            }
        )
        if self.kind == FLOW:
            fields.update(proto=self.proto, state=self.state, make=self.make)
            if self.port is not None:
                fields["port"] = self.port
        return {self.kind: fields}


def parse(items: t.Any, field: str = "expect") -> list[Line]:
    """Check the lines of ``expect`` and return them; None is none.

    :raises ConntrackError: naming the field, the value and the mend.
    """
    if items is None:
        return []
    if not isinstance(items, (list, tuple)):
        raise bad_value(field, items, "give a list")
    return [_parse_line(f"{field}[{at}]", item) for at, item in enumerate(items)]


def _parse_line(field: str, item: t.Any) -> Line:
    kinds = (FLOW, PING, UNTRACKED)
    given = (
        {name: value for name, value in item.items() if value is not None}
        if isinstance(item, t.Mapping)
        else {}
    )
    if len(given) != 1 or next(iter(given)) not in kinds:
        error = bad_value(
            field,
            ", ".join(map(str, given)) or item,
            f"give one of {', '.join(kinds)} in each line",
        )
        raise ConntrackError(
            error.message
            + "".join(did_you_mean(str(name), kinds) for name in given if name not in kinds)
        )
    ((kind, value),) = given.items()
    field = f"{field}.{kind}"
    if kind == UNTRACKED:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise bad_value(field, value, "give the number of frames that may stay untracked, as 0")
        return Line(field, kind, most=value)
    if not isinstance(value, t.Mapping):
        raise bad_value(field, value, "give a dictionary with from and to")
    unknown = sorted(str(name) for name in value if name not in _FIELDS[kind])
    if unknown:
        error = bad_value(field, unknown[0], f"the keys are {', '.join(sorted(_FIELDS[kind]))}")
        raise ConntrackError(error.message + did_you_mean(unknown[0], _FIELDS[kind]))
    return _parse_traffic(
        field, kind, {name: one for name, one in value.items() if one is not None}
    )


def _parse_traffic(field: str, kind: str, given: t.Mapping[str, t.Any]) -> Line:
    for name in ("from", "to"):
        if not isinstance(given.get(name), str) or not given[name]:
            raise bad_value(f"{field}.{name}", given.get(name, ""), "give the name of a namespace")
    if given["from"] == given["to"]:
        raise bad_value(
            f"{field}.to", given["to"], "it is where the traffic begins: give another namespace"
        )
    family, address = _parse_family(field, given)
    within = given.get("within", WITHIN)
    if (
        isinstance(within, bool)
        or not isinstance(within, (int, float))
        or not 0 < within <= _WITHIN_MAX
    ):
        raise bad_value(
            f"{field}.within", within, f"give more than 0 and at most {_WITHIN_MAX:g} seconds"
        )
    line = Line(field, kind, given["from"], given["to"], family, address, within=float(within))
    return line if kind == PING else _parse_flow(field, line, given)


def _parse_family(field: str, given: t.Mapping[str, t.Any]) -> tuple[str, str]:
    """Return family and address as far as they are told."""
    family = str(given.get("family", "")).lower()
    if family not in ("", *flow.FAMILIES):
        raise bad_value(f"{field}.family", given["family"], f"give {' or '.join(flow.FAMILIES)}")
    if "address" not in given:
        return family, ""
    try:
        address = ipaddress.ip_address(str(given["address"]))
    except ValueError:
        raise bad_value(
            f"{field}.address", given["address"], f"give an IPv4 or IPv6 address of {given['to']}"
        ) from None
    if family not in ("", f"ipv{address.version}"):
        raise bad_value(
            f"{field}.address",
            given["address"],
            f"family is {family}: give such an address, or leave family out",
        )
    return f"ipv{address.version}", str(address)


def _parse_flow(field: str, line: Line, given: t.Mapping[str, t.Any]) -> Line:
    make = given.get("make", True)
    if not isinstance(make, bool):
        raise bad_value(
            f"{field}.make",
            make,
            "give true to make the traffic, false to look for what others make",
        )
    proto = str(given.get("proto", "tcp")).lower()
    if proto not in _NUMBERS:
        raise bad_value(f"{field}.proto", given["proto"], f"give {', '.join(_NUMBERS)}")
    if make and proto not in MADE:
        raise bad_value(
            f"{field}.proto",
            proto,
            f"traffic can be made of {', '.join(MADE)}: give one of them, or make: false",
        )
    family = line.family
    for name, echo in ECHO.items():
        if proto == echo and family not in ("", name):
            raise bad_value(f"{field}.proto", proto, f"family is {family}: give {ECHO[family]}")
        family = name if proto == echo else family
    port = _parse_port(f"{field}.port", proto, make, given.get("port"))
    return dataclasses.replace(
        line,
        family=family,
        proto=proto,
        port=port,
        state=_parse_state(f"{field}.state", proto, make, given.get("state")),
        make=make,
    )


def _parse_port(field: str, proto: str, make: bool, port: t.Any) -> int | None:
    if _NUMBERS[proto] not in flow.PORTED:
        if port is not None:
            raise bad_value(field, port, f"{proto} has no ports: leave it out")
        return None
    if port is None and not make:
        return None
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise bad_value(field, "" if port is None else port, "give the server's port, 1 to 65535")
    return port


def _parse_state(field: str, proto: str, make: bool, state: t.Any) -> str:
    every = tuple(
        name for name in flow.STATES.get(_NUMBERS[proto], flow.PLAIN_STATES) if name != "NONE"
    )
    usual = (
        MADE[proto][0]
        if proto in MADE
        else "ESTABLISHED"
        if "ESTABLISHED" in flow.STATES.get(_NUMBERS[proto], ())
        else "REPLIED"
    )
    found = usual if state is None else str(state).upper()
    if found not in every:
        raise bad_value(field, state, f"the states of {proto} are {', '.join(every)}")
    if make and found not in MADE[proto]:
        raise bad_value(
            field,
            state,
            f"traffic that is made ends in {', '.join(MADE[proto])}: give one of them, or make:"
            " false",
        )
    return found


def resolved(line: Line, addresses: t.Mapping[str, t.Sequence[str]], where: str) -> Line:
    """Return the line with family and address chosen: the first address of the target in a family
    that the source has too.

    :param addresses: those of each namespace that there is, without link-local ones.
    :param where: where these namespaces are, for errors.
    :raises ConntrackError: no such namespace, no such address, or no family in common.
    """
    if line.kind == UNTRACKED:
        return line
    known = f"give one of {', '.join(addresses)}" if addresses else "there are none"
    for name, place in (("from", line.source), ("to", line.target)):
        if place not in addresses:
            raise bad_value(f"{line.field}.{name}", place, f"it is no namespace {where}: {known}")
    if line.address and line.address not in addresses[line.target]:
        raise bad_value(
            f"{line.field}.address",
            line.address,
            f"{line.target} has {', '.join(addresses[line.target]) or 'no address'}",
        )
    here = {family_of(one) for one in addresses[line.source]}
    wanted = [
        one
        for one in addresses[line.target]
        if family_of(one) in here
        and line.family in ("", family_of(one))
        and line.address in ("", one)
    ]
    if not wanted:
        both = line.family or "one family"
        raise bad_value(
            f"{line.field}.to",
            line.target,
            f"it and {line.source} have no addresses of {both} in common: give both one",
        )
    return dataclasses.replace(line, family=family_of(wanted[0]), address=wanted[0])


def family_of(address: str) -> str:
    """Return an address's family."""
    return "ipv6" if ":" in address else "ipv4"


def untracked(before: t.Mapping[str, int], after: t.Mapping[str, int]) -> dict[str, int]:
    """Return how many frames stayed untracked between two readings of the counters, by reason."""
    grown = {
        name: after[name] - before[name]
        for name in after
        if name.startswith("untracked_") and name not in NO_FLOWS
    }
    return {name[len("untracked_") :]: number for name, number in grown.items() if number}
