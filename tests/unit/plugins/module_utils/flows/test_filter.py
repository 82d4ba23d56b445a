# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words by which flows are chosen."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

ROWS: dict[str, tuple[bytes, bytes]] = {
    "web": fakes.entry(),
    "syn": fakes.entry(
        src="172.20.56.7", sport=50000, ctl=1, orig=(1, 60), reply=(0, 0), age=100, idle=100
    ),
    "dns": fakes.entry(
        src="172.30.56.105",
        dst="10.1.2.3",
        sport=5353,
        dport=53,
        proto=17,
        ctl=chain_layout.CTL_EGRESS | chain_layout.CTL_SEEN_REPLY,
        idle=20.5,
    ),
    "ping": fakes.entry(sport=8080, dport=8 << 8, proto=1, ctl=0),
    "gre": fakes.entry(sport=0, dport=0, proto=47, ctl=0),
}
ROWS6 = {"six": fakes.entry(src="2001:db8::2", dst="2001:db8::1", ctl=7)}


def chosen(**words: t.Any) -> set[str]:
    filters = flow_filter.parse_filters(words)
    found = set()
    for table, rows in zip(fakes.TABLES, (ROWS, ROWS6)):
        tests = filters.tests(table, fakes.CLOCK)
        for name, (key, value) in rows.items():
            row = (table.key.unpack(key), flow.VIEW.unpack(value))
            if tests is not None and list(flow_filter.choose([row], tests)):
                found.add(name)
    return found


EVERY = {"web", "syn", "dns", "ping", "gre", "six"}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ({}, EVERY),
        ({"family": "ipv4"}, EVERY - {"six"}),
        ({"family": ["IPv4", "ipv6"]}, EVERY),
        ({"family": "ipv6"}, {"six"}),
        ({"proto": "TCP"}, {"web", "syn", "six"}),
        ({"proto": ["udp", 47]}, {"dns", "gre"}),
        ({"proto": "1"}, {"ping"}),
        ({"state": "syn_sent"}, {"syn"}),
        ({"state": ["Established", "time_wait"]}, {"web", "six"}),
        ({"state": "new"}, {"ping", "gre"}),
        ({"state": "replied"}, {"dns"}),
        ({"src": "172.20.56.105"}, {"web", "ping", "gre"}),
        ({"src": "172.20.56.0/24"}, {"web", "syn", "ping", "gre"}),
        ({"src": "172.20.56.9/24"}, {"web", "syn", "ping", "gre"}),
        ({"src": ["172.20.56.7", "10.0.0.0/8", "2001:db8::/64"]}, {"syn", "six"}),
        ({"src": "0.0.0.0/0"}, EVERY - {"six"}),
        ({"src": "::/0"}, {"six"}),
        ({"dst": "10.1.0.0/16"}, {"dns"}),
        ({"dst": "172.30.56.105"}, {"web", "syn", "ping", "gre"}),
        ({"dst": "2001:db8::1"}, {"six"}),
        ({"addr": "172.30.56.105"}, EVERY - {"six"}),
        ({"addr": "10.1.2.3/32"}, {"dns"}),
        ({"sport": 41234}, {"web", "six"}),
        ({"sport": [50000, "5353"]}, {"syn", "dns"}),
        ({"sport": 8080}, set()),
        ({"dport": 8080}, {"web", "syn", "six"}),
        ({"dport": 53}, {"dns"}),
        ({"port": 8080}, {"web", "syn", "six"}),
        ({"port": [53, 50000]}, {"syn", "dns"}),
        ({"port": 0}, set()),
        ({"assured": True}, {"web"}),
        ({"assured": "no"}, EVERY - {"web"}),
        ({"assured": [True, False]}, EVERY),
        ({"min_bytes": 1641}, EVERY - {"syn"}),
        ({"min_bytes": 1642}, set()),
        ({"min_packets": [100, 10]}, EVERY - {"syn"}),
        ({"older_than": 6}, {"syn"}),
        ({"older_than": 5}, EVERY),
        ({"idle_for": 20}, {"syn", "dns"}),
        ({"idle_for": 21}, {"syn"}),
        ({"dir": "EGRESS"}, {"dns"}),
        ({"dir": ["ingress", "egress"]}, EVERY),
        ({"proto": "tcp", "dport": 8080, "src": "172.20.0.0/16", "assured": False}, {"syn"}),
        ({"proto": "tcp", "port": 53}, set()),
        ({"proto": None}, EVERY),
        ({"src": "::ffff:172.20.56.7"}, {"syn"}),
        ({"addr": ["::FFFF:10.1.2.3", "2001:db8::2"]}, {"dns", "six"}),
        ({"src": "::ffff:172.20.56.0/120"}, {"web", "syn", "ping", "gre"}),
        ({"src": "::ffff:0:0/95"}, set()),
        ({"src": ["172.20.56.7", "2001:db8::2"], "dst": "2001:db8::1"}, {"six"}),
        ({"family": ["ipv4", "ipv6"], "src": "2001:db8::2"}, {"six"}),
    ],
)
def test_filters(words: dict[str, t.Any], names: set[str]) -> None:
    assert chosen(**words) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"family": "inet"}, "family: 'inet' is not valid: give one of ipv4, ipv6."),
        (
            {"proto": "tpc"},
            (
                "proto: 'tpc' is not valid: give icmp, tcp, udp, gre, icmpv6, sctp, udplite, or a"
                " protocol number from 0 to 255."
            ),
        ),
        ({"proto": ["tcp", 256]}, "proto[1]: 256 is not valid:"),
        (
            {"state": "OPEN"},
            "state: 'OPEN' is not valid: give one of SYN_SENT, SYN_RECV, ESTABLISHED,",
        ),
        (
            {"src": "172.20.56.300"},
            (
                "src: '172.20.56.300' is not valid: give an IPv4 or IPv6 address, or a network as"
                " 10.0.0.0/8 or 2001:db8::/32."
            ),
        ),
        ({"dst": "10.0.0.0/33"}, "dst: '10.0.0.0/33' is not valid:"),
        ({"addr": 167772161}, "addr: 167772161 is not valid:"),
        ({"addr": "fe80::1%eth0"}, "addr: 'fe80::1%eth0' is not valid:"),
        ({"addr": ""}, "addr: '' is not valid:"),
        ({"proto": "tcp", "src": []}, "src: '' is not valid: the list is empty; give a value."),
        ({"state": ()}, "state: '' is not valid:"),
        ({"dport": ["80", ""]}, "dport[1]: '' is not valid:"),
        (
            {"src": "10.0.0.1", "dst": "2001:db8::1"},
            (
                "dst: '2001:db8::1' is not valid: both ends of a flow are of one family, and src"
                " leaves only ipv4."
            ),
        ),
        (
            {"family": "ipv6", "src": "10.0.0.0/8"},
            (
                "src: '10.0.0.0/8' is not valid: both ends of a flow are of one family, and family"
                " leaves only ipv6."
            ),
        ),
        ({"src": "::ffff:10.0.0.1", "addr": "::1"}, "addr: '::1' is not valid:"),
        ({"dst": "::1", "family": ["ipv4"]}, "dst: '::1' is not valid:"),
        ({"sport": 65536}, "sport: 65536 is not valid: give a port from 0 to 65535."),
        ({"dport": -1}, "dport: -1 is not valid:"),
        ({"port": "http"}, "port: 'http' is not valid:"),
        ({"port": True}, "port: True is not valid:"),
        ({"port": 80.5}, "port: 80.5 is not valid:"),
        ({"assured": "maybe"}, "assured: 'maybe' is not valid: give true or false."),
        ({"min_bytes": -1}, "min_bytes: -1 is not valid: give a whole number, 0 or more."),
        ({"min_packets": "1k"}, "min_packets: '1k' is not valid:"),
        ({"older_than": "1h"}, "older_than: '1h' is not valid: give whole seconds, 0 or more."),
        ({"idle_for": "9" * 5000}, "idle_for: "),
        ({"dir": "in"}, "dir: 'in' is not valid: give one of ingress, egress."),
        ({"source": "10.0.0.1"}, "source is no filter. Give one of family, proto,"),
        ({"proto": ""}, "proto: '' is not valid: give icmp,"),
    ],
)
def test_bad_filters_are_named(words: dict[str, t.Any], message: str) -> None:
    with pytest.raises(ConntrackError) as caught:
        flow_filter.parse_filters(words)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"limit": -1}, "limit: -1 is not valid:"),
        ({"limit": "ten"}, "limit: 'ten' is not valid:"),
        ({"sort": "size"}, "sort: 'size' is not valid: give one of family, proto,"),
        ({"sort": "--bytes"}, "sort: '--bytes' is not valid:"),
        ({"sort": "orig"}, "sort: 'orig' is not valid:"),
        ({"fields": ["proto", "colour"]}, "fields: 'colour' is not valid:"),
        ({"group_by": "orig"}, "group_by: 'orig' is not valid:"),
        ({"order": "bytes"}, "order is no word of a query. Give one of"),
        ({"src": "x", "limit": 5}, "src: 'x' is not valid:"),
    ],
)
def test_bad_queries_are_named(words: dict[str, t.Any], message: str) -> None:
    with pytest.raises(ConntrackError) as caught:
        flow_filter.parse_query(words)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ({"proto": "tpc"}, "tcp"),
        ({"state": "establishd"}, "ESTABLISHED"),
        ({"dir": "egres"}, "egress"),
        ({"colour": "red"}, ""),
        ({"asured": True}, "assured"),
    ],
)
def test_the_nearest_word_is_offered(words: dict[str, t.Any], near: str) -> None:
    with pytest.raises(ConntrackError) as caught:
        flow_filter.parse_filters(words)
    assert caught.value.message.endswith(f" Did you mean {near}?" if near else "."), (
        caught.value.message
    )


def test_query() -> None:
    query = flow_filter.parse_query(
        {
            "sort": "-bytes",
            "limit": "5",
            "fields": "proto",
            "group_by": ["src", "src", "proto"],
            "port": 80,
        }
    )
    assert (query.sort, query.descending, query.limit, query.fields, query.group_by) == (
        "bytes",
        True,
        5,
        ("proto",),
        ("src", "proto"),
    )
    assert query.filters.values == {"port": (80,)}
    assert flow_filter.parse_query({}) == flow_filter.Query(flow_filter.Filters({}))


@pytest.mark.parametrize("word", flow_filter.FILTER_WORDS)
def test_fixed_filters_are_those_that_the_key_alone_answers(word: str) -> None:
    sample = {
        "family": "ipv4",
        "proto": "tcp",
        "state": "NEW",
        "src": "::",
        "dst": "::",
        "addr": "::",
        "dir": "egress",
        "assured": True,
    }.get(word, 1)
    filters = flow_filter.parse_filters({word: sample})
    assert filters
    assert filters.fixed is (word in ("family", "proto", "addr", "port"))


# ---------------------------------------------------------------- the last of each kind
#: Flows whose ports and protocols are the first and the last that there are, and those beside them.
EDGES = {
    (port, proto): fakes.entry(sport=port, dport=port ^ 1, proto=proto)
    for port in (0, 1, 65534, 65535)
    for proto in (0, 1, 6, 17, 254, 255)
}


def at_the_edges(**words: t.Any) -> set[tuple[int, int]]:
    table = fakes.TABLES[0]
    tests = flow_filter.parse_filters(words).tests(table, fakes.CLOCK)
    rows = {
        where: (table.key.unpack(key), flow.VIEW.unpack(value))
        for where, (key, value) in EDGES.items()
    }
    return {
        where
        for where, row in rows.items()
        if tests is not None and list(flow_filter.choose([row], tests))
    }


@pytest.mark.parametrize("port", [0, 65535])
@pytest.mark.parametrize("form", [int, str])
def test_the_first_and_the_last_port(form: t.Callable[[int], t.Any], port: int) -> None:
    udp = {(number, 17) for number in (0, 1, 65534, 65535)}
    assert at_the_edges(proto="udp", sport=form(port)) == {(port, 17)}
    assert at_the_edges(proto="udp", dport=form(port)) == {(port ^ 1, 17)}
    assert (
        at_the_edges(proto="udp", port=[form(port), form(port ^ 1)])
        == {(port, 17), (port ^ 1, 17)}
        < udp
    )


@pytest.mark.parametrize("number", [0, 254, 255])
@pytest.mark.parametrize("form", [int, str])
def test_the_first_and_the_last_protocol(form: t.Callable[[int], t.Any], number: int) -> None:
    assert {proto for dummy, proto in at_the_edges(proto=form(number))} == {number}


@pytest.mark.parametrize(
    "words",
    [
        {"sport": 65536},
        {"dport": "65536"},
        {"port": [65535, 65536]},
        {"proto": 256},
        {"proto": "256"},
        {"proto": -1},
        {"port": -1},
    ],
)
def test_beyond_the_last(words: dict[str, t.Any]) -> None:
    with pytest.raises(ConntrackError, match="is not valid: give .*0 to (65535|255)"):
        flow_filter.parse_filters(words)
