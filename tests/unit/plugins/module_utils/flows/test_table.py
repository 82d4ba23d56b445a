# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and deleting, on tables in memory."""

from __future__ import annotations

import dataclasses
import json
import random
import tracemalloc
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import collect as flow_collect
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import delete as flow_delete
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import output as flow_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import summary as flow_summary
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

NOTHING = dict.fromkeys(flow.CLASSES, 0)


def many(number: int = 20, **what: t.Any) -> list[tuple[bytes, bytes]]:
    """Return flows whose source port is 1000, 1001, ... and whose packets are 1, 2, ..."""
    return [
        fakes.entry(
            **{"sport": 1000 + at, "orig": (at + 1, 100 * (at + 1)), "reply": (0, 0), **what}
        )
        for at in range(number)
    ]


def tables(
    *rows: tuple[bytes, bytes], six: t.Sequence[tuple[bytes, bytes]] = (), **what: t.Any
) -> fakes.FakeTables:
    return fakes.FakeTables({"ctt": rows, "ctt6": six} if six else {"ctt": rows}, **what)


def read(
    source: fakes.FakeTables, summary: bool = False, window: bool = False, **words: t.Any
) -> flow_collect.Reading:
    return flow_read.read(source, flow_filter.parse_query(words), summary=summary, window=window)


def ports(reading: flow_collect.Reading) -> list[int]:
    return [record["orig"]["sport"] for record in reading.flows]


# ---------------------------------------------------------------- reading
def test_everything() -> None:
    reading = read(tables(*many(5)), summary=True)
    assert ports(reading) == [1000, 1001, 1002, 1003, 1004]
    assert (reading.count, reading.truncated, reading.complete) == (5, False, True)


def test_flows_whose_time_is_over_are_neither_listed_nor_counted() -> None:
    reading = read(tables(*many(3), *many(2, dport=1, left=-1)), summary=True)
    assert reading.count == 3
    assert reading.summary is not None
    assert reading.summary["flows"] == 3
    assert reading.summary["tables"]["ctt"] == {
        "class": "assured",
        "entries": 5,
        "capacity": 1024,
        "percent": 0.5,
    }
    assert reading.summary["pressure"] == {
        "assured": {"entries": 5, "capacity": 1024, "percent": 0.5},
        "half_open": {"entries": 0, "capacity": 0, "percent": 0.0},
    }


class Promoting(fakes.FakeTables):
    """Flows become assured between the two tables of their family: read in the one, they are in the
    other, too.
    """

    def batches(
        self, opened: flow_table.OpenTable
    ) -> t.Iterator[tuple[int, memoryview, memoryview]]:
        yield from super().batches(opened)
        if opened.table.name == "ctt_new":
            moved = dict(list(self.entries["ctt_new"].items())[:4])
            self.entries["ctt"].update(moved)
            self.stats["promoted"] += len(moved)


@pytest.mark.parametrize(
    "words",
    [{}, {"sort": "sport"}, {"group_by": "proto"}, {"sport": list(range(1000, 1003))}],
    ids=str,
)
def test_a_flow_that_becomes_assured_meanwhile_is_listed_once(words: dict[str, t.Any]) -> None:
    source = Promoting({"ctt_new": many(6), "ctt": many(5, dport=1)})
    reading = read(source, **words)
    wanted = sorted([(1000 + at, 8080) for at in range(6)] + [(1000 + at, 1) for at in range(5)])
    if "sport" in words:
        wanted = [item for item in wanted if item[0] < 1003]
    assert (
        sorted((record["orig"]["sport"], record["orig"]["dport"]) for record in reading.flows)
        == wanted
    )
    assert reading.count == len(wanted)


def test_what_was_met_takes_few_bytes() -> None:
    """A reader remembers it of each flow of a large table, and a server has several readers."""
    number, once_more = 100_000, 1000
    source = fakes.FakeTables({"ctt_new": [], "ctt": []})
    by_class = {opened.table.flow_class: opened.table for opened in source.tables}
    met: list[t.Any] = [(None, None, (f"flow {at}",)) for at in range(number + once_more)]
    tracemalloc.start()
    try:
        once = flow_collect._Once(source)
        for at in range(0, number, flow_table.BATCH):
            once.new(by_class["half_open"], met[at : min(at + flow_table.BATCH, number)])
        source.stats["promoted"] += 1
        assert once.new(by_class["assured"], met[number - once_more :]) == met[number:]
        # of the other family, whose tables come after these
        once.new(by_class["half_open"], met[number:])
        assert once.new(by_class["assured"], met[::-7]) == []
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 16 * number and peak < 24 * number


def test_one_that_did_not_match_before_it_became_assured_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Promoting({"ctt_new": many(6, ctl=0), "ctt": []})
    batches = source.batches
    monkeypatch.setattr(source, "batches", lambda opened: _assured(batches(opened), opened))
    assert sorted(ports(read(source, assured=True))) == [1000, 1001, 1002, 1003]


def _assured(
    batches: t.Iterable[tuple[int, memoryview, memoryview]], opened: flow_table.OpenTable
) -> t.Iterator[tuple[int, memoryview, memoryview]]:
    """Return batches, those of the table of assured flows with that bit."""
    for number, keys, values in batches:
        entries = [list(fields) for fields in chain_layout.ENTRY.iter_unpack(values)]
        for fields in entries:
            fields[12] |= chain_layout.CTL_ASSURED if opened.table.flow_class == "assured" else 0
        yield (
            number,
            keys,
            memoryview(b"".join(chain_layout.ENTRY.pack(*fields) for fields in entries)),
        )


def test_a_limit_ends_the_pass_early() -> None:
    source = tables(*many(30))
    reading = read(source, limit=4)
    assert len(reading.flows) == 4
    assert (reading.truncated, reading.complete) == (True, False)
    assert source.batches_read == 2


def test_a_limit_that_is_just_enough_cuts_nothing() -> None:
    reading = read(tables(*many(6)), limit=6)
    assert (len(reading.flows), reading.truncated, reading.complete) == (6, False, True)


def test_the_default_limit_says_that_it_cut() -> None:
    reading = read(tables(*many(130)), summary=True)
    assert (len(reading.flows), reading.count, reading.truncated) == (
        flow_filter.DEFAULT_LIMIT,
        130,
        True,
    )


@pytest.mark.parametrize("making", [0, 1])
@pytest.mark.parametrize("limit", [0, 1, 50, 1000])
def test_the_summary_is_the_same_whatever_is_listed(limit: int, making: int) -> None:
    locked = [fakes.entry(ctl=chain_layout.CTL_LOCK, orig=(0, 0), reply=(0, 0))] * making
    source = tables(
        *many(130),
        *locked,
        *many(20, proto=17, ctl=0),
        *many(5, dport=1, left=-1),
        *many(30, proto=1, dport=8 << 8, ctl=chain_layout.CTL_SEEN_REPLY),
    )
    reading = read(source, summary=True, limit=limit)
    assert (len(reading.flows), reading.count, reading.truncated) == (
        min(limit, 180),
        180,
        limit < 180,
    )
    assert reading.summary is not None
    assert (reading.summary["by_proto"], reading.summary["assured"]) == (
        {"icmp": 30, "tcp": 130, "udp": 20},
        130,
    )


def test_no_flows_but_the_summary() -> None:
    reading = read(tables(*many(3)), summary=True, limit=0)
    assert (reading.flows, reading.count) == ([], 3)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("packets", [1000, 1001, 1002]),
        ("-packets", [1019, 1018, 1017]),
        ("-sport", [1019, 1018, 1017]),
    ],
)
def test_sorted_and_limited(sort: str, expected: list[int]) -> None:
    rows = many(20)
    random.Random(7).shuffle(rows)
    reading = read(tables(*rows), sort=sort, limit=3)
    assert ports(reading) == expected
    assert (reading.count, reading.truncated, reading.complete) == (20, True, True)


def test_sorted_ties_have_one_order() -> None:
    rows = many(20, orig=(1, 1))
    first = ports(read(tables(*rows), sort="bytes"))
    random.Random(3).shuffle(rows)
    assert ports(read(tables(*rows), sort="bytes")) == first


def test_both_families_in_one_order() -> None:
    six = [fakes.entry(src="2001:db8::2", dst="2001:db8::1", sport=5, orig=(3, 250))]
    source = tables(*many(4), six=six)
    reading = read(source, sort="orig.bytes", summary=True)
    assert ports(reading) == [1000, 1001, 5, 1002, 1003]
    assert reading.summary is not None
    assert reading.summary["by_family"] == {"ipv4": 4, "ipv6": 1}
    assert reading.summary["capacity"] == 2048


def test_filters_apply_before_everything_else() -> None:
    reading = read(tables(*many(20)), summary=True, sport=[1003, 1005], sort="-packets")
    assert ports(reading) == [1005, 1003]
    assert reading.summary is not None
    assert (
        reading.count,
        reading.summary["flows"],
        reading.summary["tables"]["ctt"]["entries"],
    ) == (2, 2, 20)


def test_fields() -> None:
    assert read(tables(*many(1)), fields=["proto", "packets"]).flows == [
        {"proto": "tcp", "packets": 1}
    ]


def test_windows_on_request() -> None:
    source = tables(fakes.entry(), fakes.entry(proto=17, ctl=0))
    first, second = read(source, window=True).flows
    assert first["window"]["reply"]["td_end"] == 2001
    assert "window" not in second


def test_groups() -> None:
    source = tables(*many(4), *many(1, proto=17, ctl=0), *many(2, src="1.1.1.1"))
    reading = read(source, group_by=["src", "proto"], limit=2)
    assert reading.groups == [
        {"src": "172.20.56.105", "proto": "tcp", "flows": 4, "packets": 10, "bytes": 1000},
        {"src": "1.1.1.1", "proto": "tcp", "flows": 2, "packets": 3, "bytes": 300},
    ]
    assert (reading.group_count, reading.truncated, reading.complete) == (3, True, True)


def test_groups_of_tags() -> None:
    reading = read(tables(*many(2, vlans=(5, 6)), *many(1, dport=9)), group_by="vlan")
    assert [(group["vlan"], group["flows"]) for group in reading.groups] == [((5, 6), 2), (None, 1)]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "table", "conntrack"])
@pytest.mark.parametrize("words", [{}, {"sort": "-packets"}, {"group_by": "src"}])
def test_a_writer_gets_all_flows_whatever_is_listed(form: str, words: dict[str, t.Any]) -> None:
    pieces: list[bytes] = []
    source = tables(*many(130), six=[fakes.entry(src="2001:db8::2", dst="2001:db8::1")])
    reading = flow_read.read(
        source, flow_filter.parse_query(words), flow_output.writer(form), pieces.append
    )
    assert len(reading.flows) == flow_filter.DEFAULT_LIMIT
    json.dumps(reading.flows)  # the addresses are text
    written = b"".join(pieces).decode()
    assert written.count("172.20.56.105" + ("" if form != "conntrack" else " dst")) >= 130
    assert "2001:db8::2" in written


def test_a_limit_holds_for_the_writer_too() -> None:
    pieces: list[bytes] = []
    query = flow_filter.parse_query({"limit": 7})
    reading = flow_read.read(tables(*many(30)), query, flow_output.writer("jsonl"), pieces.append)
    assert len(b"".join(pieces).splitlines()) == len(reading.flows) == 7
    assert reading.truncated


# ---------------------------------------------------------------- the summary
def test_summary() -> None:
    source = tables(
        *many(3),
        *many(2, proto=17, ctl=0),
        *many(1, proto=1, dport=8 << 8, ctl=chain_layout.CTL_SEEN_REPLY),
        capacity=64,
    )
    source.stats.update(
        created=10,
        deleted_reset=1,
        deleted_flushed=2,
        invalid_tcp_rst=4,
        untracked_not_ip=5,
        related=6,
        ignored_tcp_window=7,
        tracked=8,
    )
    source.guests = {"acl": {"seen": 9, "passed": 7, "dropped": 2}}
    source.in_force = (
        {**chain_settings.TIMEOUTS, "udp": 7},
        {**chain_settings.KNOBS, "tcp_loose": 0, "tcp_max_retrans": 5},
    )
    summary = read(source, summary=True).summary
    assert summary is not None
    assert {
        name: summary[name]
        for name in ("flows", "capacity", "by_family", "by_proto", "by_state", "assured")
    } == {
        "flows": 6,
        "capacity": 64,
        "by_family": {"ipv4": 6},
        "by_proto": {"icmp": 1, "tcp": 3, "udp": 2},
        "by_state": {"ESTABLISHED": 3, "NEW": 2, "REPLIED": 1},
        "assured": 3,
    }
    counters = summary["counters"]
    assert (counters["created"], counters["evicted"], counters["related"], counters["tracked"]) == (
        10,
        1,
        6,
        8,
    )
    assert counters["deleted"] == {
        "reset": 1,
        "expired": 0,
        "flushed": 2,
        "dropped": 0,
        "untracked": 0,
    }
    assert (
        counters["invalid"]["tcp_rst"],
        counters["untracked"]["not_ip"],
        counters["ignored"]["tcp_window"],
    ) == (4, 5, 7)
    assert counters["guests"] == {"acl": {"seen": 9, "passed": 7, "dropped": 2}}
    assert summary["clock"]["jiffies"] == fakes.NOW
    assert summary["timeouts"] == {**chain_settings.TIMEOUTS, "udp": 7}
    assert summary["settings"] == {**chain_settings.KNOBS, "tcp_loose": False, "tcp_max_retrans": 5}
    assert [type(value) for value in summary["settings"].values()] == [
        type(value) for value in chain_settings.KNOBS.values()
    ]


def test_every_counter_is_in_the_summary() -> None:
    numbers = {name: 1000 + at for at, name in enumerate(chain_counters.COUNTERS)}

    def leaves(value: t.Any) -> set[int]:
        return set().union(*map(leaves, value.values())) if isinstance(value, dict) else {value}

    assert leaves(flow_summary.counter_summary(numbers, NOTHING)) >= set(numbers.values())


def test_evictions_are_told_by_class() -> None:
    numbers = {
        **dict.fromkeys(chain_counters.COUNTERS, 0),
        "created": 100,
        "promoted": 40,
        "deleted_expired": 7,
        "deleted_flushed": 3,
        "assured_deleted": 6,
    }
    summary = flow_summary.counter_summary(numbers, {"half_open": 30, "assured": 29})
    assert (summary["evicted"], summary["evicted_assured"]) == (100 - 10 - 59, 40 - 6 - 29)


def test_evictions_are_never_negative() -> None:
    summary = flow_summary.counter_summary(
        dict.fromkeys(chain_counters.COUNTERS, 0), {"half_open": 5, "assured": 1}
    )
    assert (summary["evicted"], summary["evicted_assured"]) == (0, 0)


# ---------------------------------------------------------------- deleting
def choice(**words: t.Any) -> flow_delete.Choice:
    return flow_delete.Choice("test", flow_filter.parse_filters(words))


def left(source: fakes.FakeTables) -> int:
    return sum(len(rows) for rows in source.entries.values())


@pytest.mark.parametrize("words", [{"proto": "udp"}, {"state": "NEW"}])
def test_delete_what_matches(words: dict[str, t.Any]) -> None:
    source = tables(*many(4), *many(3, proto=17, ctl=0))
    done = flow_delete.delete(source, choice(**words))
    assert (done.count, done.deleted, left(source)) == (3, 3, 4)
    assert source.stats["deleted_flushed"] == 3
    assert done.plan[0].as_dict() == {
        "action": "delete",
        "kind": "flow",
        "name": "udp 172.20.56.105:1000 -> 172.30.56.105:8080",
        "reason": "test",
        "before": done.plan[0].before,
        "after": None,
    }
    assert done.plan[0].before["proto"] == "udp"
    assert flow_delete.delete(source, choice(**words)) == flow_delete.Deletion()


def test_a_dry_run_deletes_nothing() -> None:
    source = tables(*many(4))
    done = flow_delete.delete(source, choice(proto="tcp"), limit=2, dry=True)
    assert (done.count, done.deleted, len(done.plan), left(source)) == (4, 0, 2, 4)
    assert source.stats["deleted_flushed"] == 0


def test_delete_everything_counts_by_reason() -> None:
    source = tables(*many(4), *many(3, proto=17, left=-1), six=[fakes.entry(src="::1", dst="::2")])
    done = flow_delete.delete(source, flow_delete.EVERYTHING)
    assert (done.deleted, left(source)) == (8, 0)
    assert (source.stats["deleted_flushed"], source.stats["deleted_expired"]) == (5, 3)


def test_filters_leave_expired_entries_alone() -> None:
    source = tables(*many(2), *many(3, dport=9, left=-1))
    assert flow_delete.delete(source, choice(proto="tcp")).deleted == 2
    assert left(source) == 3


def test_sweep_deletes_what_is_over_and_nothing_else() -> None:
    source = tables(*many(4), *many(3, proto=17, left=0))
    assert flow_delete.sweep(source) == 3
    assert left(source) == 4
    assert source.stats["deleted_expired"] == 3


def test_a_sweep_goes_over_both_tables() -> None:
    six: dict[str, t.Any] = {"src": "2001:db8::1", "dst": "2001:db8::2"}
    source = tables(
        *many(2, left=-1),
        *many(1, dport=9),
        six=[fakes.entry(**six, left=-1), fakes.entry(**six, dport=9)],
    )
    assert flow_delete.sweep(source) == 3
    assert {name: len(rows) for name, rows in source.entries.items()} == {"ctt": 1, "ctt6": 1}


def test_a_sweep_can_be_bounded() -> None:
    source = tables(*many(30, left=-1))
    assert flow_delete.sweep(source, most=5) == 6  # whole batches
    assert left(source) == 24


@pytest.mark.parametrize(
    ("before", "what"),
    [
        ({"left": -1}, flow_delete.EXPIRED),
        ({"idle": 60, "left": 10}, choice(idle_for=30)),
        ({"ctl": 1}, choice(state="syn_sent")),
    ],
)
def test_a_flow_that_was_revived_after_the_dump_stays(
    before: dict[str, t.Any], what: flow_delete.Choice
) -> None:
    key, value = fakes.entry(**before)
    source = tables((key, value))

    def packet() -> None:
        source.entries["ctt"][key] = fakes.entry()[1]

    source.meanwhile = packet
    done = flow_delete.delete(source, what)
    assert (done.count, done.deleted, left(source)) == (1, 0, 1)


def test_a_flow_that_comes_back_while_others_are_looked_at_stays() -> None:
    source = tables(*many(3, left=-1))
    key, live = fakes.entry(sport=1000, left=30)
    assert key == next(iter(source.entries["ctt"]))
    looked = 0

    def packet() -> None:
        nonlocal looked
        looked += 1
        if looked == 2:
            source.entries["ctt"][key] = live

    source.meanwhile = packet
    assert flow_delete.sweep(source) == 3
    assert source.entries["ctt"] == {key: live}


def test_a_flow_that_went_away_by_itself_is_not_counted() -> None:
    source = tables(fakes.entry(ctl=1))
    source.meanwhile = source.entries["ctt"].clear
    assert flow_delete.delete(source, choice(state="SYN_SENT")).deleted == 0


def test_an_error_says_how_many_are_gone_and_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tables(*many(9))
    delete = source.delete

    def failing(opened: flow_table.OpenTable, keys: t.Sequence[bytes]) -> int:
        if left(source) < 9:
            raise ConntrackError("boom")
        return delete(opened, keys)

    monkeypatch.setattr(source, "delete", failing)
    with pytest.raises(ConntrackError) as caught:
        flow_delete.delete(source, dataclasses.replace(flow_delete.EVERYTHING, expired=False))
    assert caught.value.facts == {"deleted": 3}
    assert source.stats["deleted_flushed"] == 3


def test_titles() -> None:
    six = fakes.entry(src="2001:db8::2", dst="2001:db8::1", sport=1, dport=2)
    ping = fakes.entry(proto=1, sport=7, dport=8 << 8)
    names = [
        step.name
        for step in flow_delete.delete(tables(ping, six=[six]), flow_delete.EVERYTHING).plan
    ]
    assert names == [
        "icmp 172.20.56.105 -> 172.30.56.105 type 8 code 0 id 7",
        "tcp [2001:db8::2]:1 -> [2001:db8::1]:2",
    ]


def test_tables_are_those_of_the_chain() -> None:
    specs = {spec.name: spec for spec in chain_maps.maps(1024)}
    for table in flow.TABLES:
        if table.name in specs:
            assert (specs[table.name].key_size, specs[table.name].value_size) == (
                table.key.size,
                flow.VIEW.size,
            )
    assert specs["deletions"].entries == len(chain_counters.DELETIONS)
    assert set(chain_counters.DELETIONS) <= set(chain_counters.COUNTERS)
