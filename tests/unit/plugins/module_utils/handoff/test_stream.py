# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flows from one host's tables to another's, with another clock, other jiffies a second and another
release; and what is refused.
"""

from __future__ import annotations

import dataclasses
import io
import json
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.clock import Clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import schema
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.handoff import stream as handoff
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

#: Another host: four times the jiffies a second, and up for a shorter time.
OTHER = Clock((1 << 33) + 77_000_123, 1000, 5_000_000_000)
TCP = fakes.entry(left=1000, idle=3, age=60)
OPENING = fakes.entry(sport=5, ctl=chain_states.TCP_STATES.index("SYN_SENT"), left=100)
UDP = fakes.entry(
    sport=53, dport=9, proto=17, ctl=chain_layout.CTL_SEEN_REPLY, left=20, idle=1, age=2
)
OVER = fakes.entry(sport=6, left=-1)
SIX = fakes.entry(src="2001:db8::2", dst="2001:db8::1", sport=5000, dport=443, left=50, vlans=(7,))


def tables(
    clock: Clock = fakes.CLOCK, capacity: int = 1024, **rows: t.Iterable[tuple[bytes, bytes]]
) -> fakes.FakeTables:
    return fakes.FakeTables(
        {**{table.name: () for table in flow.TABLES}, **rows}, clock=clock, capacity=capacity
    )


def exported(source: fakes.FakeTables | None = None, **words: t.Any) -> bytes:
    pieces: list[bytes] = []
    source = source or tables(ctt=[TCP, OVER], ctt_new=[OPENING, UDP], ctt6=[SIX])
    handoff.export(source, flow_filter.parse_filters(words), pieces.append)
    return b"".join(pieces)


def imported(target: fakes.FakeTables, data: bytes, **more: t.Any) -> handoff.Imported:
    return handoff.take(target, handoff.Reader(io.BytesIO(data), "pipe"), **more)


def records(source: fakes.FakeTables) -> dict[str, dict[str, t.Any]]:
    found = {}
    for opened in source.tables:
        decoder = flow.Decoder(opened.table, source.clock())
        for dummy, keys, values in source.batches(opened):
            for shape, values_of, row in decoder.flows(decoder.packed_rows(keys, values)):
                record = flow.record_with((shape, values_of, row), window=True)
                found[
                    f"{record['proto']} {record['orig']['src']} {record['orig'].get('sport')}"
                ] = {**record, "table": opened.table.name}
    return found


def test_flows_go_on_as_they_were() -> None:
    source, target = tables(ctt=[TCP, OVER], ctt_new=[OPENING, UDP], ctt6=[SIX]), tables(OTHER)
    done = imported(target, exported(source))
    assert dataclasses.asdict(done) == {
        "read": 4,
        "imported": 4,
        "replaced": 0,
        "kept": 0,
        "expired": 0,
        "no_room": 0,
    }
    before, after = records(source), records(target)
    assert list(before) and before.keys() == after.keys()
    for name, record in before.items():
        windows = [one.pop("window", {}) for one in (record, after[name])]
        assert record == after[name], "times are those left and those passed, whatever the clock"
        if record["proto"] == "tcp":
            assert [one["orig"]["td_maxwin"] for one in windows] == [1003, 0], "windows begin anew"
            assert (
                windows[0]["orig"]["td_scale"] == windows[1]["orig"]["td_scale"]
                and windows[0]["reply"]["td_end"] == windows[1]["reply"]["td_end"]
            )
    assert target.stats["created"] == 4 and target.stats["promoted"] == 2
    assert imported(target, exported(source)) == handoff.Imported(read=4, kept=4), (
        "again changes nothing"
    )


def test_when_a_datagram_makes_a_stream_is_moved_along() -> None:
    key, value = UDP
    fields = dict(
        zip([name for name, dummy in chain_layout.ENTRY_FIELDS], chain_layout.ENTRY.unpack(value))
    )
    fields["last_end"] = (fakes.NOW + fakes.HZ) & 0xFFFFFFFF  # in a second
    moved, left = handoff.rebased(
        key, chain_layout.ENTRY.pack(*fields.values()), fakes.NOW, fakes.HZ, OTHER
    )
    after = dict(zip(fields, chain_layout.ENTRY.unpack(moved)))
    assert after["last_end"] == (OTHER.jiffies + OTHER.hz) & 0xFFFFFFFF and left == 20 * OTHER.hz
    key, value = TCP
    assert (
        chain_layout.ENTRY.unpack(handoff.rebased(key, value, fakes.NOW, fakes.HZ, OTHER)[0])[19]
        == chain_layout.ENTRY.unpack(value)[19]
    ), "TCP has a number there"


def test_filters_choose() -> None:
    assert imported(tables(OTHER), exported(proto=["tcp"], assured=True)).read == 2
    assert imported(tables(OTHER), exported(family=["ipv6"])) == handoff.Imported(
        read=1, imported=1
    )


def test_a_time_that_is_over_meanwhile() -> None:
    short = tables(ctt=[fakes.entry(left=1 / fakes.HZ)])
    done = imported(tables(Clock(OTHER.jiffies, 100, 0)), exported(short))
    assert (done.imported, done.expired) == (0, 1), "less than a jiffy is nothing"


# ---------------------------------------------------------------- both have it
PICKED_UP = fakes.entry(
    ctl=chain_layout.CTL_SEEN_REPLY | fakes.ESTABLISHED, orig=(1, 40), idle=1, left=300
)


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
        assert (found["table"], found["orig"]["packets"], done.replaced) == (
            "ctt",
            6,
            1,
        ), "it stands in one table"
        assert target.stats["deleted_flushed"] == 1


def test_one_that_is_over_here_is_no_conflict() -> None:
    target = tables(ctt=[fakes.entry(left=-5, orig=(99, 99))])
    assert imported(target, exported(tables(ctt=[TCP]))) == handoff.Imported(read=1, imported=1)
    assert [one["orig"]["packets"] for one in records(target).values()] == [6] and target.stats[
        "deleted_expired"
    ] == 1


class Racing(fakes.FakeTables):
    """Tables in which a packet makes the flow just before it is to be made."""

    def create(self, opened: flow_table.OpenTable, key: bytes, value: bytes) -> bool:
        super().create(opened, *PICKED_UP)
        return super().create(opened, key, value)


def test_a_packet_that_comes_meanwhile_wins() -> None:
    target = Racing({table.name: () for table in flow.TABLES})
    assert imported(target, exported(tables(ctt=[TCP]))) == handoff.Imported(read=1, kept=1)
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
    assert (
        list(target.entries["ctt"]) == []
        and len(target.entries["ctt_new"]) == 1
        and not any(target.stats.values())
    )


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
    fields = dict(
        zip([name for name, dummy in chain_layout.ENTRY_FIELDS], chain_layout.ENTRY.unpack(TCP[1]))
    )
    fields["ctl"] = fakes.REAL | 1
    value = chain_layout.codec(description["entry"]).pack(*(fields[name] for name in names))
    data = changed_header(
        exported(tables(ctt=[(TCP[0], value)])), description=description, layout=9
    )
    # what was written has the right length, and nobody reads it but by the description
    target = tables(OTHER)
    pieces = data.split(b"\n", 2)
    frame = handoff._frame(1, "ipv4", 1, fakes.NOW, TCP[0] + value) + handoff._frame(
        2, "ipv4", 1, fakes.NOW, b""
    )
    assert imported(target, b"\n".join((*pieces[:2], frame))).imported == 1
    (found,) = list(records(target).values())
    assert (found["state"], found["orig"]["packets"], found["timeout"]) == ("ESTABLISHED", 6, 1000)


def test_a_layout_that_has_more_is_refused() -> None:
    description = json.loads(schema.text())
    description["ctl"]["colour"] = 1 << 50
    with pytest.raises(
        ConntrackError,
        match=(
            r"layout 9, this release has layout 2: .*ctl colour has no place in this release's\."
            r" Nothing was imported\.$"
        ),
    ):
        imported(tables(), changed_header(exported(), description=description, layout=9))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is not what ct export wrote"),
        (b"[\n{}]\n", "it is not what ct export wrote"),
        (
            exported().replace(b"flows 1\n", b"flows 2\n", 1),
            (
                "it has format 2, this release reads format 1: use the release that wrote it on"
                " both hosts"
            ),
        ),
        (exported().replace(b"orig.td_end", b"orig.td_emd", 1), "its header is damaged"),
        (b"ebpf.conntrack flows 1\nno\n", "its header is damaged"),
        (changed_header(exported(), hz=0), "its header is damaged"),
        (
            changed_header(exported(), byteorder="big"),
            "it comes from a big-endian machine, and this one is little-endian",
        ),
    ],
)
def test_what_is_none_is_refused_before_anything_is_done(data: bytes, said: str) -> None:
    with pytest.raises(ConntrackError) as caught:
        handoff.Reader(io.BytesIO(data), "pipe")
    assert (
        caught.value.message == f"input: pipe: {said}. Nothing was imported."
        or said == "its header is damaged"
        and said in caught.value.message
    )


def test_of_what_is_cut_off_or_damaged_nothing_is_imported() -> None:
    data = exported()
    target = tables(OTHER)
    with pytest.raises(
        ConntrackError,
        match=(
            r"^input: pipe: it ends too early, after 4 flows\. Export it again\. Nothing was"
            r" imported\.$"
        ),
    ):
        imported(target, data[:-1])
    with pytest.raises(ConntrackError, match="it is damaged"):
        imported(target, data[:-60] + b"\xff" + data[-59:])
    for at in range(len(data) - 700, len(data), 7):
        with pytest.raises(ConntrackError):
            imported(target, data[:at])
    with pytest.raises(
        ConntrackError,
        match=(
            r"^input: pipe: something follows its end\. Give one stream at a time\. Nothing was"
            r" imported\.$"
        ),
    ):
        imported(target, data + b"\0")
    with pytest.raises(ConntrackError, match="something follows its end"):
        imported(target, data + data)
    assert not any(target.entries.values()) and not any(target.stats.values()), (
        "what came before it is not there either"
    )


# ---------------------------------------------------------------- a stream that somebody made up
def framed(
    *entries: tuple[bytes, bytes], family: str = "ipv4", jiffies: int = fakes.NOW, **header: t.Any
) -> bytes:
    """Return a stream that is whole, with these entries."""
    head = changed_header(exported(tables()), **header).split(b"\n", 2)[:2]
    data = b"".join(key + value for key, value in entries)
    frames = handoff._frame(1, family, len(entries), jiffies, data) + handoff._frame(
        2, "ipv4", len(entries), jiffies, b""
    )
    return b"\n".join((*head, frames))


def with_fields(entry: tuple[bytes, bytes], **changes: int) -> tuple[bytes, bytes]:
    """Return an entry with other fields; names with "_" for "."."""
    fields = dict(
        zip(
            [name.replace(".", "_") for name, dummy in chain_layout.ENTRY_FIELDS],
            chain_layout.ENTRY.unpack(entry[1]),
        )
    )
    return entry[0], chain_layout.ENTRY.pack(*{**fields, **changes}.values())


def with_key(entry: tuple[bytes, bytes], **changes: t.Any) -> tuple[bytes, bytes]:
    fields = dict(
        zip(
            [name for name, dummy in chain_layout.KEY_FIELDS["ipv4"]],
            chain_layout.KEY4.unpack(entry[0]),
        )
    )
    return chain_layout.KEY4.pack(*{**fields, **changes}.values()), entry[1]


PING = fakes.entry(sport=77, dport=8 << 8, proto=1, ctl=chain_layout.CTL_SEEN_REPLY, left=20)
LOW, HIGH = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (fakes.entry(ctl=12), "protocol 6 has no state 12"),
        (fakes.entry(proto=132, ctl=9), "protocol 132 has no state 9"),
        (fakes.entry(proto=17, ctl=3), "protocol 17 has no state 3"),
        (with_key(TCP, lo_ip=HIGH, hi_ip=LOW), "the sides of its key are not in order"),
        (
            with_key(TCP, lo_ip=LOW, hi_ip=LOW, lo_port=0xFFFF, hi_port=1),
            "the sides of its key are not in order",
        ),
        (with_key(TCP, role=1), "its key has role 1 and zone 0"),
        (with_key(TCP, zone=7), "its key has role 0 and zone 7"),
        (with_key(PING, role=1), "its key has role 1 and zone 0"),
        (fakes.entry(sport=77, dport=3 << 8, proto=1, ctl=0), "ICMP type 3 asks for nothing"),
        (fakes.entry(sport=5, dport=0, proto=50, ctl=0), "protocol 50 has no ports"),
        (fakes.entry(vlans=(1, 2, 3)), "it has more than two VLAN tags"),
        (with_fields(TCP, scale=0xF0), "its window scale is above 14 (RFC 7323)"),
    ],
)
def test_an_entry_that_the_tracker_can_not_have_made(entry: tuple[bytes, bytes], why: str) -> None:
    target = tables(OTHER)
    with pytest.raises(ConntrackError) as caught:
        imported(target, framed(TCP, UDP, PING, entry))
    assert caught.value.message == f"input: pipe: flow 4 can not be: {why}. Nothing was imported."
    assert not any(target.entries.values())
    assert imported(target, framed(TCP, UDP, PING)).imported == 3


@pytest.mark.parametrize(
    ("entry", "most"),
    [
        (fakes.entry(left=1_000_000), 432000),
        (
            fakes.entry(
                ctl=fakes.REAL | chain_states.TCP_STATES.index("TIME_WAIT"), left=1_000_000
            ),
            120,
        ),
        (fakes.entry(proto=17, ctl=0, left=90), 30),
        (fakes.entry(proto=17, ctl=chain_layout.CTL_SEEN_REPLY, left=119), 119),
        (fakes.entry(proto=17, left=9999, ctl=fakes.REAL), 120),
        (
            fakes.entry(
                proto=132,
                ctl=fakes.REAL | chain_states.SCTP_STATES.index("ESTABLISHED"),
                left=1_000_000,
            ),
            210,
        ),
        (fakes.entry(sport=77, dport=8 << 8, proto=1, ctl=0, left=1_000_000), 30),
        (fakes.entry(sport=0, dport=0, proto=47, ctl=fakes.REAL, left=1_000_000), 180),
        (fakes.entry(sport=0, dport=0, proto=50, ctl=0, left=1_000_000), 600),
    ],
)
def test_no_flow_has_more_time_left_than_its_state_has_here(
    entry: tuple[bytes, bytes], most: int
) -> None:
    target = tables(OTHER)
    assert imported(target, framed(entry)).imported == 1
    assert [one["timeout"] for one in records(target).values()] == [most]


def test_the_timeouts_in_force_here_are_the_bound() -> None:
    target = tables(OTHER)
    target.in_force = (
        {**chain_settings.TIMEOUTS, "tcp_established": 3600},
        dict(chain_settings.KNOBS),
    )
    assert imported(target, framed(fakes.entry(left=400_000))).imported == 1
    assert [one["timeout"] for one in records(target).values()] == [3600]


def test_times_that_have_not_come_yet_are_now() -> None:
    entry = with_fields(
        fakes.entry(proto=17, ctl=0, left=20, idle=-500, age=-5000),
        last_end=(fakes.NOW + 500_000) & 0xFFFFFFFF,
    )
    target = tables(OTHER)
    assert imported(target, framed(entry)).imported == 1
    (found,) = target.entries["ctt_new"].values()
    after = dict(
        zip([name for name, dummy in chain_layout.ENTRY_FIELDS], chain_layout.ENTRY.unpack(found))
    )
    assert (after["last_seen"], after["created"]) == (
        OTHER.jiffies & 0xFFFFFFFF,
        OTHER.jiffies // OTHER.hz,
    )
    assert after["last_end"] == (OTHER.jiffies + 2 * OTHER.hz) & 0xFFFFFFFF, (
        "as that of a flow that begins"
    )
    # and a clock that no host can have had moves nothing beyond what fits
    for jiffies, rate in ((0, 1), ((1 << 64) - 1, 1), (1 << 63, 10_000)):
        target = tables(OTHER)
        imported(target, framed(fakes.entry(idle=3), jiffies=jiffies, hz=rate))
        assert all(
            one["timeout"] <= 432000 and one["idle"] * OTHER.hz < 1 << 31
            for one in records(target).values()
        )


DEEP = b"[" * 60_000 + b"]" * 60_000


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("hz", b"Infinity", ""),
        ("hz", b'"250"', "hz: '250'"),
        ("hz", b"1e300", "hz: 1e+300"),
        ("hz", b"true", "hz: True"),
        ("hz", b"99999999999999999999999999", "hz: 99999999999999999999999999"),
        ("time", b"NaN", ""),
        ("time", b"1e300", "time: 1e+300"),
        ("time", b'"now"', "time: 'now'"),
        ("time", b"-1", "time: -1"),
        ("time", b"null", "time: None"),
        ("host", b'["r1"]', "host: a list"),
        ("host", b'"' + b"r" * 300 + b'"', "host: 'rrr"),
        ("layout", b'"\\u001b[2J"', "layout: '\\x1b[2J'"),
        ("description", DEEP[:30_000], ""),
        ("description", b"[" * 9000 + b"]" * 9000, ""),
        ("description", b'{"layout": 2}', "description: an object"),
    ],
)
def test_a_header_of_which_nothing_is_believed(field: str, text: bytes, said: str) -> None:
    magic, header, rest = exported().split(b"\n", 2)
    whole = json.loads(header)
    whole[field] = "MARK"
    target = tables(OTHER)
    with pytest.raises(ConntrackError) as caught:
        imported(
            target, b"\n".join((magic, json.dumps(whole).encode().replace(b'"MARK"', text), rest))
        )
    assert (
        caught.value.message.startswith("input: pipe: its header is damaged")
        and said in caught.value.message
    )
    assert caught.value.message.isprintable() and not any(target.entries.values())


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("entry", [["ctl", "Q"], ["expires", "1000000000s"]]),
        ("entry", [["ctl", "Q"], ["ctl", "Q"]]),
        ("entry", [["ctl", "Q"]]),
        ("keys", {"ipv4": [["proto", "999999999B"]]}),
        ("ctl", {"state": 0}),
        ("ctl", {"state": 15, "seen_reply": 3}),
        ("ctl", {"state": 5}),
        ("states", {"tcp": "NONE"}),
        ("states", {"tcp": ["\x1b[2J"]}),
        ("states", {"tcp": ["NONE"] * 100_00}),
        ("layout", True),
    ],
)
def test_a_description_that_is_none(part: str, value: t.Any) -> None:
    description = {**json.loads(schema.text()), part: value}
    with pytest.raises(ConntrackError, match="its header is damaged|was written with layout"):
        handoff.Reader(io.BytesIO(changed_header(exported(), description=description)), "pipe")


def test_what_a_host_calls_itself_does_not_reach_the_terminal() -> None:
    data = changed_header(exported(), host="r1\x1b[2J\x9b31m\u202e\ud800")
    with handoff.Reader(io.BytesIO(data), "pipe") as reader:
        told = handoff.describe(handoff.take(tables(OTHER), reader), reader.header)
    assert told.startswith("4 flows of r1\\u001b[2J\\u009b31m\\u202e\\ud800, 20")
    with pytest.raises(ConntrackError) as caught:
        handoff.Reader(io.BytesIO(b"ebpf.conntrack flows \x1b[2J\n"), "a\x1bb")
    assert caught.value.message.isprintable()


def test_policies_have_names() -> None:
    with pytest.raises(
        ConntrackError,
        match=r"^on_conflict: 'both' is not valid: give one of keep, newer, replace\.$",
    ):
        imported(tables(), exported(), on_conflict="both")


def test_what_is_told() -> None:
    done = handoff.Imported(read=5, imported=2, kept=2, no_room=1)
    assert (
        handoff.describe(done, {"host": "r1", "time": 0})
        == "5 flows of r1, 1970-01-01T00:00:00Z: 2 imported, 2 stayed as they were here, 1 without"
        " room"
    )
