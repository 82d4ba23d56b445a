# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From bytes to flow records."""

from __future__ import annotations

import collections
import random
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.clock import Clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

TABLE4, TABLE6 = fakes.TABLES


def decode(
    *rows: tuple[bytes, bytes],
    table: flow.Table = TABLE4,
    as_bytes: bool = False,
    over: bool = False,
) -> list[flow.Flow]:
    decoder = flow.Decoder(table, fakes.CLOCK, as_bytes)
    return list(
        decoder.flows(
            decoder.packed_rows(
                b"".join(key for key, dummy in rows), b"".join(value for dummy, value in rows)
            ),
            over,
        )
    )


def one(table: flow.Table = TABLE4, **what: t.Any) -> dict[str, t.Any]:
    ((shape, values, dummy),) = decode(fakes.entry(**what), table=table)
    return flow.record(shape, values)


def test_layout_is_that_of_the_chain() -> None:
    assert TABLE4.key.size == chain_layout.KEY4.size
    assert flow.VIEW.size == chain_layout.ENTRY.size
    fields = chain_layout.ENTRY.unpack(bytes(range(chain_layout.ENTRY.size)))
    assert flow.VIEW.unpack(bytes(range(chain_layout.ENTRY.size))) == (
        *fields[0:2],
        *fields[6:8],
        *fields[12:16],
        *fields[26:28],
    )


def test_record_has_the_agreed_form() -> None:
    assert one() == {
        "family": "ipv4",
        "proto": "tcp",
        "state": "ESTABLISHED",
        "assured": True,
        "seen_reply": True,
        "timeout": 431994,
        "orig": {
            "src": "172.20.56.105",
            "dst": "172.30.56.105",
            "sport": 41234,
            "dport": 8080,
            "packets": 6,
            "bytes": 431,
        },
        "reply": {
            "src": "172.30.56.105",
            "dst": "172.20.56.105",
            "sport": 8080,
            "dport": 41234,
            "packets": 4,
            "bytes": 1210,
        },
        "dir": "ingress",
        "age": 6,
        "idle": 0,
        "related": {"packets": 0, "bytes": 0},
    }


def test_the_initiator_comes_first_on_whichever_hook_and_side_it_is() -> None:
    record = one(
        src="172.30.56.105",
        dst="172.20.56.105",
        sport=5000,
        dport=80,
        ctl=fakes.REAL | fakes.ESTABLISHED | chain_layout.CTL_EGRESS,
    )
    assert record["dir"] == "egress"
    assert (record["orig"]["src"], record["orig"]["sport"]) == ("172.30.56.105", 5000)
    assert (record["reply"]["src"], record["reply"]["sport"]) == ("172.20.56.105", 80)


def test_ports_that_read_alike_in_a_row_are_different_flows() -> None:
    rows = [fakes.entry(sport=1, dport=23), fakes.entry(sport=12, dport=3)]
    assert rows[0][0] != rows[1][0]
    assert [
        (flow.record(*item[:2])["orig"]["sport"], flow.record(*item[:2])["orig"]["dport"])
        for item in decode(*rows)
    ] == [(1, 23), (12, 3)]


@pytest.mark.parametrize(("number", "name"), list(enumerate(chain_states.TCP_STATES)))
def test_tcp_states_have_the_kernels_names_at_the_kernels_numbers(number: int, name: str) -> None:
    assert one(ctl=number)["state"] == name


def test_tcp_states_are_numbered_as_in_the_kernel() -> None:
    """include/uapi/linux/netfilter/nf_conntrack_tcp.h, enum tcp_conntrack."""
    names = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ]
    assert list(chain_states.TCP_STATES) == names


@pytest.mark.parametrize(
    ("ctl", "state"),
    [(0, "NEW"), (chain_layout.CTL_SEEN_REPLY, "REPLIED"), (fakes.REAL, "ESTABLISHED")],
)
@pytest.mark.parametrize("proto", [17, 47, 136, 253])
def test_other_protocols_have_plain_states(proto: int, ctl: int, state: str) -> None:
    assert one(proto=proto, ctl=ctl)["state"] == state


def test_sctp_has_states_of_its_own() -> None:
    assert one(proto=132, ctl=4)["state"] == "ESTABLISHED"
    assert one(proto=132, ctl=7)["state"] == "SHUTDOWN_ACK_SENT"
    assert one(proto=132, ctl=15)["state"] == "15"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "icmp"),
        (6, "tcp"),
        (17, "udp"),
        (47, "gre"),
        (58, "icmpv6"),
        (132, "sctp"),
        (136, "udplite"),
        (253, "253"),
    ],
)
def test_protocol_names(number: int, name: str) -> None:
    assert one(proto=number)["proto"] == name


def test_protocols_without_ports_show_none() -> None:
    assert list(one(proto=47, sport=0, dport=0)["orig"]) == ["src", "dst", "packets", "bytes"]


@pytest.mark.parametrize(("src", "dst"), [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")])
def test_icmp_queries_carry_type_code_and_id(src: str, dst: str) -> None:
    record = one(src=src, dst=dst, sport=77, dport=13 << 8 | 1, proto=1, ctl=0)
    assert record["icmp"] == {"type": 13, "code": 1, "id": 77}
    assert record["orig"]["src"] == src
    assert "sport" not in record["orig"] and "dport" not in record["reply"]


@pytest.mark.parametrize(("src", "dst"), [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")])
@pytest.mark.parametrize("call", [0, 5, 0xFFFF])
def test_gre_carries_keys(src: str, dst: str, call: int) -> None:
    record = one(src=src, dst=dst, sport=0, dport=call, proto=47, ctl=0)
    assert record["gre"] == {"srckey": 0, "dstkey": call}
    assert "sport" not in record["orig"] and "gre" not in one()


def test_gre_calls_of_one_batch_keep_their_keys() -> None:
    rows = [fakes.entry(sport=0, dport=call, proto=47, ctl=0) for call in (7, 8, 7)]
    assert [flow.record(*item[:2])["gre"]["dstkey"] for item in decode(*rows)] == [7, 8, 7]


def test_icmpv6_and_ipv6_addresses() -> None:
    record = one(
        TABLE6,
        src="2001:db8::2",
        dst="2001:db8::1",
        sport=9,
        dport=128 << 8,
        proto=58,
        ctl=chain_layout.CTL_SEEN_REPLY,
    )
    assert (record["family"], record["proto"], record["orig"]["src"]) == (
        "ipv6",
        "icmpv6",
        "2001:db8::2",
    )
    assert record["icmp"] == {"type": 128, "code": 0, "id": 9}


@pytest.mark.parametrize("vlans", [(), (0,), (100,), (4095, 1)])
def test_vlan_tags(vlans: tuple[int, ...]) -> None:
    record = one(vlans=vlans)
    assert record.get("vlan") == (list(vlans) or None)
    assert ("vlan" in record) is bool(vlans)


@pytest.mark.parametrize(
    ("left", "listed"),
    [(-432000, False), (-0.004, False), (0, False), (0.004, True), (1.9, True), (432000, True)],
)
def test_a_flow_whose_time_is_over_is_not_listed(left: float, listed: bool) -> None:
    flows = decode(fakes.entry(left=left))
    assert bool(flows) is listed
    if listed:
        assert flow.record(*flows[0][:2])["timeout"] == int(left)


def test_a_flow_whose_time_is_over_can_be_asked_for() -> None:
    ((shape, values, dummy),) = decode(fakes.entry(left=-5), over=True)
    assert flow.record(shape, values)["timeout"] == 0


def test_times_are_whole_seconds() -> None:
    record = one(left=29.99, idle=3.99, age=7)
    assert (record["timeout"], record["idle"], record["age"]) == (29, 3, 7)


def test_a_packet_after_the_instant_of_reading_is_no_negative_idle_time() -> None:
    record = one(idle=-2, age=-2)
    assert (record["idle"], record["age"]) == (0, 0)


def test_entries_read_while_they_are_locked_are_fine() -> None:
    assert one(ctl=chain_layout.CTL_LOCK | fakes.REAL | fakes.ESTABLISHED) == one()


def test_an_entry_that_is_just_being_made_is_not_a_flow_yet() -> None:
    assert decode(fakes.entry(ctl=chain_layout.CTL_LOCK, orig=(0, 0), reply=(0, 0))) == []


def test_related_errors_do_not_touch_time_or_state() -> None:
    record = one(proto=17, ctl=fakes.REAL, left=100, related=(3, 168))
    assert record["related"] == {"packets": 3, "bytes": 168}
    assert (record["state"], record["timeout"]) == ("ESTABLISHED", 100)


def test_udp_streams_last_as_long_as_in_the_kernel() -> None:
    assert (chain_settings.TIMEOUTS["udp"], chain_settings.TIMEOUTS["udp_stream"]) == (30, 120)


def test_large_counters() -> None:
    assert one(orig=(2**64 - 1, 2**63))["orig"]["packets"] == 2**64 - 1


def test_addresses_as_bytes_become_text() -> None:
    ((dummy, values, dummy_row),) = decode(fakes.entry(), as_bytes=True)
    assert values[flow.SRC] == b"172.20.56.105"
    assert flow.with_text(values) == decode(fakes.entry())[0][1]


def test_every_value_of_a_record_is_a_column() -> None:
    def leaves(record: dict[str, t.Any], prefix: str = "") -> set[str]:
        return set().union(
            *(
                leaves(value, f"{name}.") if isinstance(value, dict) else {prefix + name}
                for name, value in record.items()
            )
        )

    shown = (
        leaves(one(vlans=(5,), ctl=fakes.REAL | fakes.ESTABLISHED | chain_layout.CTL_AGGREGATED))
        | leaves(one(proto=1, dport=8 << 8))
        | leaves(one(proto=47))
    )
    assert shown == set(flow.COLUMNS)


def test_select() -> None:
    ((shape, values, dummy),) = decode(fakes.entry())
    assert flow.select(
        ["proto", "src", "bytes", "orig.dport", "reply.packets", "vlan", "icmp"], shape, values
    ) == {
        "proto": "tcp",
        "src": "172.20.56.105",
        "bytes": 1641,
        "orig": {"dport": 8080},
        "reply": {"packets": 4},
    }
    assert flow.select(["orig", "orig.src"], shape, values) == {
        "orig": flow.record(shape, values)["orig"]
    }


def test_addresses_sort_by_number() -> None:
    rows = [fakes.entry(src=src, dst="9.9.9.9") for src in ("100.0.0.1", "20.0.0.1", "3.0.0.1")]
    for name in ("src", "orig.src", "reply.dst"):
        assert [item[1][flow.SRC] for item in sorted(decode(*rows), key=flow.sort_key(name))] == [
            "3.0.0.1",
            "20.0.0.1",
            "100.0.0.1",
        ]
    assert [flow.sort_key("reply.src")(item)[1] for item in decode(*rows)] == [0x09090909] * 3


def test_flows_without_the_value_sort_first() -> None:
    rows = [fakes.entry(), fakes.entry(proto=1, dport=8 << 8)]
    assert [item[0].proto for item in sorted(decode(*rows), key=flow.sort_key("sport"))] == [
        "icmp",
        "tcp",
    ]


@pytest.mark.parametrize(
    "lefts",
    [(-432000, -0.004, 0, 0.004, 1, 432000), (0.004, 1, 432000)],
    ids=["some are over", "none is over"],
)
@pytest.mark.parametrize("table", flow.TABLES, ids=lambda table: table.name)
def test_counting_finds_the_flows_that_decoding_finds(
    table: flow.Table, lefts: tuple[float, ...]
) -> None:
    src, dst = (
        ("2001:db8::1", "2001:db8::2") if table.family == "ipv6" else ("10.0.0.1", "10.0.0.2")
    )
    dice = random.Random(11)
    rows = [
        fakes.entry(
            src,
            dst,
            proto=dice.choice((1, 6, 17, 47, 58, 132, 253)),
            ctl=dice.getrandbits(8),
            dport=dice.getrandbits(16),
            left=dice.choice(lefts),
            vlans=dice.choice(((), (5,), (5, 6))),
        )
        for dummy in range(500)
    ]
    counted = flow.Decoder(table, fakes.CLOCK).count(
        b"".join(key for key, dummy in rows), b"".join(value for dummy, value in rows)
    )
    assert counted is not None

    def seen(shape: flow.Shape) -> tuple[t.Any, ...]:
        return shape.family, shape.proto, shape.state, shape.assured

    expected = collections.Counter(
        seen(shape) for shape, dummy, dummy_row in decode(*rows, table=table)
    )
    assert (
        sum(expected.values()) == len(rows)
        if min(lefts) > 0
        else 200 < sum(expected.values()) < 300
    )
    assert (
        sum(
            (collections.Counter({seen(shape): number}) for shape, number in counted.items()),
            collections.Counter(),
        )
        == expected
    )


def test_counting_leaves_locked_entries_to_decoding() -> None:
    key, value = fakes.entry(ctl=chain_layout.CTL_LOCK | fakes.REAL)
    decoder = flow.Decoder(TABLE4, fakes.CLOCK)
    assert decoder.count(key, value) is None
    assert decoder.count(*fakes.entry(ctl=chain_layout.CTL_LOCK, left=0)) == {}


def test_windows() -> None:
    assert flow.windows(fakes.entry()[1]) == {
        "orig": {
            "td_end": 1001,
            "td_maxend": 1002,
            "td_maxwin": 1003,
            "td_maxack": 1004,
            "td_scale": 3,
            "flags": 8,
        },
        "reply": {
            "td_end": 2001,
            "td_maxend": 2002,
            "td_maxwin": 2003,
            "td_maxack": 2004,
            "td_scale": 7,
            "flags": 9,
        },
    }


#: Seconds since an entry was over, with 250 jiffies a second; half of the clock is 8,589,934 s.
LONG_AGO = (0, 1, 8_589_934, 8_589_935, 8_589_939, 16_000_000)


@pytest.mark.parametrize("ago", LONG_AGO)
def test_an_entry_that_was_over_long_ago_is_not_shown(ago: int) -> None:
    """By none of the ways in which a table is read: they must agree on which flows there are."""
    live, old = fakes.entry(left=30, idle=90), fakes.entry(sport=5, left=-ago, idle=ago + 120)
    keys, values = (b"".join(column) for column in zip(live, old))
    decoder = flow.Decoder(TABLE4, fakes.CLOCK)
    assert [values[flow.SPORT] for dummy, values, dummy_row in decode(live, old)] == [41234]
    assert [row[2] for row in decoder.over_rows(keys, values)] == [old[0]]
    counted = decoder.count(memoryview(keys), memoryview(values))
    assert counted is not None
    assert sum(counted.values()) == 1
    assert [values[flow.TIMEOUT] for dummy, values, dummy_row in decode(old, over=True)] == [0]


def test_the_clock_of_a_batch_goes_round() -> None:
    """Entries that end, or were seen, on either side of it are live or not as any others are."""
    for now in ((1 << 32) + 10, (1 << 33) - 10):
        clock = Clock(now, 250, 0)
        rows = [
            fakes.entry(sport=number, left=left, idle=idle, now=now)
            for number, (left, idle) in enumerate(
                [(1, 0), (30, 1), (0, 1), (432_000, 500), (-1, 9)]
            )
        ]
        keys, values = (memoryview(b"".join(column)) for column in zip(*rows))
        decoder = flow.Decoder(TABLE4, clock)
        shown = list(decoder.flows(decoder.rows(keys, values)))
        assert [values[flow.SPORT] for dummy, values, dummy_row in shown] == [0, 1, 3]
        counted = decoder.count(keys, values)
        assert counted is not None
        assert sum(counted.values()) == 3
        assert len(list(decoder.over_rows(keys, values))) == 2


def test_a_flow_of_merged_packets_says_so() -> None:
    """And others say nothing."""
    assert (
        one(ctl=fakes.REAL | fakes.ESTABLISHED | chain_layout.CTL_AGGREGATED)["aggregated"] is True
    )
    assert "aggregated" not in one()
    ((shape, values, dummy),) = decode(fakes.entry(ctl=fakes.REAL | chain_layout.CTL_AGGREGATED))
    assert flow.select(["proto", "aggregated"], shape, values) == {
        "proto": "tcp",
        "aggregated": True,
    }
