# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flow as people name it on a command line: a protocol and two ends."""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ..core.errors import bad_value
from . import codec as flow
from . import filter as flow_filter


@dataclasses.dataclass(frozen=True)
class End:
    """One end; ``port`` is None where any will do."""

    address: str
    port: int | None

    def is_end(self, side: t.Mapping[str, t.Any], address: str, port: str) -> bool:
        """Tell whether it is the one that a direction of a record has under these names."""
        return self.address == side[address] and self.port in (None, side.get(port))


@dataclasses.dataclass(frozen=True)
class Tuple:
    """A protocol's number and two ends, in whichever order."""

    number: int
    ends: tuple[End, End]

    @property
    def query(self) -> flow_filter.Query:
        """What has to be read to find it."""
        words: dict[str, t.Any] = {"proto": self.number, "addr": self.ends[0].address}
        ports = [end.port for end in self.ends if end.port is not None]
        if ports:
            words["port"] = ports[0]
        return flow_filter.parse_query(words)

    def matches(self, record: flow.Record) -> bool:
        """Tell whether a flow, among those of the query, is meant."""
        one, other = self.ends
        orig = record["orig"]
        return any(
            a.is_end(orig, "src", "sport") and b.is_end(orig, "dst", "dport")
            for a, b in ((one, other), (other, one))
        )


def parse(text: str) -> Tuple:
    """Return the tuple that a text like ``tcp 10.0.0.1:40000 10.0.0.2:80`` stands for; an arrow
    between the ends is let be.

    >>> parse("udp [fe80::1]:5 -> [2001:db8::1]:53").ends[1]
    End(address='2001:db8::1', port=53)

    :raises ConntrackError: for what is none.
    """
    parts = [part for part in text.split() if part != "->"]
    if len(parts) != 3:
        raise bad_value(
            "tuple", text, "give PROTO SRC[:PORT] DST[:PORT], as tcp 10.0.0.1:40000 10.0.0.2:80"
        )
    number = flow_filter.parse_filters({"proto": parts[0]}).values["proto"][0]
    one, other = (_end(part, number in flow.PORTED) for part in parts[1:])
    if (":" in one.address) != (":" in other.address):
        raise bad_value("tuple", text, "both ends of a flow are of one family, IPv4 or IPv6")
    return Tuple(number, (one, other))


def _end(text: str, ported: bool) -> End:
    address, port = text, None
    if text.startswith("["):
        address, dummy, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else None
    elif text.count(":") == 1:
        address, dummy, port = text.partition(":")
    try:
        if "%" in address or "/" in address:  # a zone (Python 3.9 takes it) is no part of a packet
            raise ValueError
        found = str(flow_filter.unmapped(ipaddress.ip_network(address)).network_address)
    except ValueError:
        raise bad_value(
            "tuple", text, "give an address, with a port as 10.0.0.1:80 or [2001:db8::1]:80"
        ) from None
    if port is None:
        return End(found, None)
    if not ported:
        raise bad_value("tuple", text, "flows of this protocol have no ports; leave it out")
    return End(found, flow_filter.parse_filters({"port": port}).values["port"][0])
