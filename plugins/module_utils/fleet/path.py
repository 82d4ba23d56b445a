# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order a connection went through the hosts that saw it, as far as that can be known.
Pure.

A flow record does not tell: it has no TTL and no neighbour, it knows when it began by the second
only, and clocks of hosts differ by more than a packet's way takes. What does tell are the networks
that hosts are attached to. Where exactly one way leads from the network of the one end over
networks that two hosts share to the network of the other end, and has each of the hosts once, that
is the order. Else the order is not known, and not guessed.
"""

from __future__ import annotations

import collections.abc as c
import functools
import ipaddress
import typing as t

from ..core.errors import bad_value

Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
#: Of more hosts than that the order is not looked for: their number of ways grows too fast, and no
#: real path has them.
MOST_HOSTS = 12
#: Addresses whose networks are remembered.
_REMEMBERED = 1 << 16


def parse_networks(field: str, words: c.Iterable[str]) -> tuple[Network, ...]:
    """Return networks written as ``10.0.0.0/24``, or as an address of a host with its prefix,
    ``10.0.0.1/24``.

    Those that tell nothing are left out: loopback, and link-local ones, which are another one on
    each link.

    :raises ConntrackError: for what is none.
    """
    found = []
    for word in words:
        try:
            network = ipaddress.ip_interface(str(word)).network
        except ValueError:
            raise bad_value(
                field, word, "give a network as 10.0.0.0/24, or an address with its prefix"
            ) from None
        if not network.is_loopback and not network.is_link_local and network.prefixlen:
            found.append(network)
    return tuple(dict.fromkeys(found))


class Paths:
    """Orders sets of hosts.

    :param networks: those that each host is attached to.
    """

    def __init__(self, networks: t.Mapping[str, c.Sequence[Network]]) -> None:
        self._networks = {host: set(mine) for host, mine in networks.items()}
        by_prefix: dict[tuple[int, int], dict[int, set[str]]] = {}
        for host, mine in networks.items():
            for network in mine:
                by_prefix.setdefault((network.version, network.prefixlen), {}).setdefault(
                    int(network.network_address), set()
                ).add(host)
        self._narrowest_first = sorted(by_prefix.items(), reverse=True)
        self._at = functools.lru_cache(_REMEMBERED)(self._attached)
        self._order = functools.lru_cache(_REMEMBERED)(self._find)

    def _attached(self, address: str) -> frozenset[str]:
        """Return the hosts that are attached to the network of an address: the narrowest one that
        has it.
        """
        there = ipaddress.ip_address(address)
        for (version, length), hosts in self._narrowest_first:
            if version == there.version:
                spare = there.max_prefixlen - length
                found = hosts.get(int(there) >> spare << spare)
                if found:
                    return frozenset(found)
        return frozenset()

    def ordered(self, hosts: c.Iterable[str], src: str, dst: str) -> tuple[tuple[str, ...], bool]:
        """Return the hosts that saw a connection, and whether they stand in the order of its
        initiator's packets; else they stand by name.

        >>> nets = {"a": ["10.1.0.1/24", "10.2.0.1/24"], "b": ["10.2.0.2/24", "10.3.0.1/24"]}
        >>> paths = Paths({host: parse_networks("networks", words) for host, words in nets.items()})
        >>> paths.ordered(("a", "b"), "10.3.0.9", "10.1.0.9")
        (('b', 'a'), True)
        >>> paths.ordered(("a", "b"), "10.9.0.9", "10.8.0.9")
        (('a', 'b'), False)
        """
        names = tuple(sorted(set(hosts)))
        if len(names) == 1:
            return names, True
        mine = frozenset(names)
        return self._order(names, self._at(src) & mine, self._at(dst) & mine)

    def _find(
        self, names: tuple[str, ...], first: frozenset[str], last: frozenset[str]
    ) -> tuple[tuple[str, ...], bool]:
        if len(names) > MOST_HOSTS or not (first or last):
            return names, False
        near = {
            one: [
                other
                for other in names
                if other != one and self._networks[one] & self._networks[other]
            ]
            for one in names
        }
        found = self._ways(near, first or frozenset(names), last or frozenset(names), ())
        ways = [way for way, dummy in zip(found, range(2))]
        return (ways[0], True) if len(ways) == 1 else (names, False)

    def _ways(
        self,
        near: t.Mapping[str, c.Sequence[str]],
        nexts: c.Iterable[str],
        last: frozenset[str],
        way: tuple[str, ...],
    ) -> t.Iterator[tuple[str, ...]]:
        """Return the ways that have each host once."""
        for host in nexts:
            if host not in way:
                longer = (*way, host)
                if len(longer) < len(near):
                    yield from self._ways(near, near[host], last, longer)
                elif host in last:
                    yield longer
