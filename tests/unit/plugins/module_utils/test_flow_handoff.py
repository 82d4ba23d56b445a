# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flows from one host's tables to another's, with another clock, other jiffies a second and another release; and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import chain, flow, flow_filter, flow_handoff, flow_table, schema
from ansible_collections.ebpf.conntrack.plugins.module_utils.clock import Clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.errors import ConntrackError
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

#: Another host: four times the jiffies a second, and up for a shorter time.
OTHER = Clock((1 << 33) + 77_000_123, 1000, 5_000_000_000)
TCP = fakes.entry(left=1000, idle=3, age=60)
OPENING = fakes.entry(sport=5, ctl=chain.TCP_STATES.index("SYN_SENT"), left=100)
UDP = fakes.entry(sport=53, dport=9, proto=17, ctl=chain.CTL_SEEN_REPLY, left=20, idle=1, age=2)
OVER = fakes.entry(sport=6, left=-1)
SIX = fakes.entry(src="2001:db8::2", dst="2001:db8::1", sport=5000, dport=443, left=50, vlans=(7,))


def tables(clock: Clock = fakes.CLOCK, capacity: int = 1024, **rows: t.Iterable[tuple[bytes, bytes]]) -> fakes.FakeTables:
    return fakes.FakeTables({**{table.name: () for table in flow.TABLES}, **rows}, clock=clock, capacity=capacity)


def exported(source: fakes.FakeTables | None = None, **words: t.Any) -> bytes:
    pieces: list[bytes] = []
    source = source or tables(ctt=[TCP, OVER], ctt_new=[OPENING, UDP], ctt6=[SIX])
    flow_handoff.export(source, flow_filter.parse_filters(words), pieces.append)
    return b"".join(pieces)


def imported(target: fakes.FakeTables, data: bytes, **more: t.Any) -> flow_handoff.Imported:
    return flow_handoff.take(target, flow_handoff.Reader(io.BytesIO(data), "pipe"), **more)


def records(source: fakes.FakeTables) -> dict[str, dict[str, t.Any]]:
    found = {}
    for opened in source.tables:
        decoder = flow.Decoder(opened.table, source.clock())
        for dummy, keys, values in source.batches(opened):
            for shape, values_of, row in decoder.flows(decoder.packed_rows(keys, values)):
                record = flow.shown((shape, values_of, row), window=True)
                found[f"{record['proto']} {record['orig']['src']} {record['orig'].get('sport')}"] = {**record, "table": opened.table.name}
    return found


def test_flows_go_on_as_they_were() -> None:
    source, target = tables(ctt=[TCP, OVER], ctt_new=[OPENING, UDP], ctt6=[SIX]), tables(OTHER)
    done = imported(target, exported(source))
    assert dataclasses.asdict(done) == {"read": 4, "imported": 4, "replaced": 0, "kept": 0, "expired": 0, "no_room": 0}
    before, after = records(source), records(target)
    assert list(before) and before.keys() == after.keys()
    for name, record in before.items():
        windows = [one.pop("window", {}) for one in (record, after[name])]
        assert record == after[name], "times are those left and those passed, whatever the clock"
        if record["proto"] == "tcp":
            assert [one["orig"]["td_maxwin"] for one in windows] == [1003, 0], "windows begin anew"
            assert windows[0]["orig"]["td_scale"] == windows[1]["orig"]["td_scale"] and windows[0]["reply"]["td_end"] == windows[1]["reply"]["td_end"]
    assert target.stats["created"] == 4 and target.stats["promoted"] == 2
    assert imported(target, exported(source)) == flow_handoff.Imported(read=4, kept=4), "again changes nothing"


def test_when_a_datagram_makes_a_stream_is_moved_along() -> None:
    key, value = UDP
    fields = dict(zip([name for name, dummy in chain.ENTRY_FIELDS], chain.ENTRY.unpack(value)))
    fields["last_end"] = (fakes.NOW + fakes.HZ) & 0xFFFFFFFF  # in a second
    moved, left = flow_handoff.rebased(key, chain.ENTRY.pack(*fields.values()), fakes.NOW, fakes.HZ, OTHER)
    after = dict(zip(fields, chain.ENTRY.unpack(moved)))
    assert after["last_end"] == (OTHER.jiffies + OTHER.hz) & 0xFFFFFFFF and left == 20 * OTHER.hz
    key, value = TCP
    assert chain.ENTRY.unpack(flow_handoff.rebased(key, value, fakes.NOW, fakes.HZ, OTHER)[0])[19] == chain.ENTRY.unpack(value)[19], "TCP has a number there"


def test_filters_choose() -> None:
    assert imported(tables(OTHER), exported(proto=["tcp"], assured=True)).read == 2
    assert imported(tables(OTHER), exported(family=["ipv6"])) == flow_handoff.Imported(read=1, imported=1)


def test_a_time_that_is_over_meanwhile() -> None:
    short = tables(ctt=[fakes.entry(left=1 / fakes.HZ)])
    done = imported(tables(Clock(OTHER.jiffies, 100, 0)), exported(short))
    assert (done.imported, done.expired) == (0, 1), "less than a jiffy is nothing"


# ---------------------------------------------------------------- both have it
PICKED_UP = fakes.entry(ctl=chain.CTL_SEEN_REPLY | fakes.ESTABLISHED, orig=(1, 40), idle=1, left=300)


@pytest.mark.parametrize(
    ("on_conflict", "idle", "expected"),
    [("keep", 0, "here"), ("newer", 3, "here"), ("newer", 0, "there"), ("replace", 3, "there")],
)
def test_a_flow_that_is_live_in_both(on_conflict: str, idle: float, expected: str) -> None:
    target = tables(ctt_new=[PICKED_UP])
    done = imported(target, exported(tables(ctt=[fakes.entry(idle=idle)])), on_conflict=on_conflict)
    (found,) = list(records(target).values())
    if expected == "here":
        assert (found["table"], found["orig"]["packets"], done.kept) == ("ctt_new", 1, 1)
        assert target.stats["created"] == 0
    else:
        assert (found["table"], found["orig"]["packets"], done.replaced) == ("ctt", 6, 1), "it stands in one table"
        assert target.stats["deleted_flushed"] == 1


def test_one_that_is_over_here_is_no_conflict() -> None:
    target = tables(ctt=[fakes.entry(left=-5, orig=(99, 99))])
    assert imported(target, exported(tables(ctt=[TCP]))) == flow_handoff.Imported(read=1, imported=1)
    assert [one["orig"]["packets"] for one in records(target).values()] == [6] and target.stats["deleted_expired"] == 1


class Racing(fakes.FakeTables):
    """Tables in which a packet makes the flow just before it is to be made."""

    def create(self, opened: flow_table.OpenTable, key: bytes, value: bytes) -> bool:
        super().create(opened, *PICKED_UP)
        return super().create(opened, key, value)


def test_a_packet_that_comes_meanwhile_wins() -> None:
    target = Racing({table.name: () for table in flow.TABLES})
    assert imported(target, exported(tables(ctt=[TCP]))) == flow_handoff.Imported(read=1, kept=1)
    assert target.entries["ctt"] == dict([PICKED_UP]) and target.stats["created"] == 0


def test_nobody_makes_room() -> None:
    many = tables(ctt=[fakes.entry(sport=number) for number in range(2000)])
    target = tables(capacity=1024)
    done = imported(target, exported(many))
    assert done.read == 2000 and 0 < done.imported < 1024 and done.no_room == 2000 - done.imported
    assert len(target.entries["ctt"]) == done.imported


def test_a_dry_run_changes_nothing() -> None:
    target = tables(ctt_new=[PICKED_UP])
    done = imported(target, exported(), dry=True, on_conflict="replace")
    assert (done.read, done.imported, done.replaced) == (4, 3, 1)
    assert list(target.entries["ctt"]) == [] and len(target.entries["ctt_new"]) == 1 and not any(target.stats.values())


# ---------------------------------------------------------------- another release
def changed_header(data: bytes, **changes: t.Any) -> bytes:
    magic, header, rest = data.split(b"\n", 2)
    whole = json.loads(header)
    whole.update(changes)
    if "description" in changes:
        whole["schema"] = f"{schema.digest(changes['description']):016x}"
    return b"\n".join((magic, json.dumps(whole).encode(), rest))


def test_another_layout_is_translated_by_name() -> None:
    description = json.loads(schema.text())
    description["entry"] = [*description["entry"][2:], *description["entry"][:2]]
    description["states"]["tcp"] = ["NONE", "ESTABLISHED"]
    names = [name for name, dummy in description["entry"]]
    fields = dict(zip([name for name, dummy in chain.ENTRY_FIELDS], chain.ENTRY.unpack(TCP[1])))
    fields["ctl"] = fakes.REAL | 1
    value = chain.codec(description["entry"]).pack(*(fields[name] for name in names))
    data = changed_header(exported(tables(ctt=[(TCP[0], value)])), description=description, layout=9)
    # what was written has the right length, and nobody reads it but by the description
    target = tables(OTHER)
    pieces = data.split(b"\n", 2)
    frame = flow_handoff._frame(1, "ipv4", 1, fakes.NOW, TCP[0] + value) + flow_handoff._frame(2, "ipv4", 1, fakes.NOW, b"")
    assert imported(target, b"\n".join((*pieces[:2], frame))).imported == 1
    (found,) = list(records(target).values())
    assert (found["state"], found["orig"]["packets"], found["timeout"]) == ("ESTABLISHED", 6, 1000)


def test_a_layout_that_has_more_is_refused() -> None:
    description = json.loads(schema.text())
    description["ctl"]["colour"] = 1 << 50
    with pytest.raises(ConntrackError, match=r"layout 9, this release has layout 2: .*ctl colour has no place in this release's\. Nothing was imported\.$"):
        imported(tables(), changed_header(exported(), description=description, layout=9))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is not what ct export wrote"),
        (b"[\n{}]\n", "it is not what ct export wrote"),
        (exported().replace(b"flows 1\n", b"flows 2\n", 1), "it has format 2, this release reads format 1: use the release that wrote it on both hosts"),
        (exported().replace(b"orig.td_end", b"orig.td_emd", 1), "its header is damaged"),
        (b"ebpf.conntrack flows 1\nno\n", "its header is damaged"),
        (changed_header(exported(), hz=0), "its header is damaged"),
        (changed_header(exported(), byteorder="big"), "it comes from a big-endian machine, and this one is little-endian"),
    ],
)
def test_what_is_none_is_refused_before_anything_is_done(data: bytes, said: str) -> None:
    with pytest.raises(ConntrackError) as caught:
        flow_handoff.Reader(io.BytesIO(data), "pipe")
    assert caught.value.message == f"input: pipe: {said}. Nothing was imported." or said == "its header is damaged" and said in caught.value.message


def test_what_is_cut_off_or_damaged_says_how_much_was_imported() -> None:
    data = exported()
    target = tables(OTHER)
    with pytest.raises(ConntrackError, match=r"^input: pipe: it ends too early; 4 entries were read before\. Export and import again\.$") as caught:
        imported(target, data[:-1])
    assert caught.value.facts["imported"] == 4 and target.stats["created"] == 4, "what came is counted"
    with pytest.raises(ConntrackError, match="it is damaged"):
        imported(tables(OTHER), data[:-60] + b"\xff" + data[-59:])
    for at in range(len(data) - 700, len(data), 7):
        with pytest.raises(ConntrackError):
            imported(tables(OTHER), data[:at])


def test_policies_have_names() -> None:
    with pytest.raises(ConntrackError, match=r"^on_conflict: 'both' is not valid: give one of keep, newer, replace\.$"):
        imported(tables(), exported(), on_conflict="both")


def test_what_is_told() -> None:
    done = flow_handoff.Imported(read=5, imported=2, kept=2, no_room=1)
    assert flow_handoff.told(done, {"host": "r1", "time": 0}) == ("5 flows of r1, 1970-01-01T00:00:00Z: 2 imported, 2 stayed as they were here, 1 without room")
