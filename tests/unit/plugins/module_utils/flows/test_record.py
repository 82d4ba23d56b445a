# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records that somebody made up, through everything that reads records: each is refused by its
field, and nothing of it reaches a file or a terminal.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.printable import printable
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import text as ct_text
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import merge as flow_merge
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import run as fleet_run
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import output as flow_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import record as flow_record
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import saved as saved_flows
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows.saved import SavedFlows
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

ROWS4 = (
    fakes.entry(),
    fakes.entry(proto=17, ctl=0, sport=53, dport=5353, vlans=(10, 20), related=(2, 112)),
    fakes.entry(sport=99, dport=8 << 8, proto=1, ctl=0),
    fakes.entry(sport=0, dport=4711, proto=47, ctl=fakes.REAL),
    fakes.entry(sport=0, dport=0, proto=253, orig=(2**64 - 1, 2**64 - 1), ctl=0),
    fakes.entry(sport=9, dport=10, proto=132, ctl=0),
    fakes.entry(sport=7, dport=7, ctl=15),
    fakes.entry(sport=8, dport=8, ctl=fakes.REAL | chain_layout.CTL_AGGREGATED),
)
ROWS6 = (
    fakes.entry(src="2001:db8::2", dst="2001:db8::1", sport=77, dport=128 << 8, proto=58, ctl=0),
)


def written(window: bool = False) -> list[dict[str, t.Any]]:
    """Return the records that the tables above are written as."""
    pieces: list[bytes] = []
    source = fakes.FakeTables({"ctt": ROWS4, "ctt6": ROWS6}, batch=1024)
    flow_read.read(
        source,
        flow_filter.parse_query({}),
        flow_output.writer("jsonl", (), window=window),
        pieces.append,
        summary=False,
        window=window,
    )
    return [json.loads(line) for line in b"".join(pieces).splitlines()]


TCP, UDP, ICMP, GRE, OTHER = written()[:5]


def changed(record: dict[str, t.Any], path: str, value: t.Any) -> dict[str, t.Any]:
    """Return a record with another value at a dotted path; ``...`` takes the field away."""
    found = copy.deepcopy(record)
    *heads, last = path.split(".")
    at = found
    for head in heads:
        at = at[head]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return found


@pytest.mark.parametrize("window", [False, True])
def test_what_the_tables_are_written_as_is_taken_as_it_is(window: bool) -> None:
    for record in written(window):
        assert list(flow_record.checked(record).items()) == list(record.items())


EVIL: list[tuple[dict[str, t.Any], str, t.Any, str]] = [
    (TCP, "age", "x", "age: 'x' is not valid: give a whole number from 0 to 1073741823"),
    (TCP, "age", -1, "age: -1 is not valid"),
    (TCP, "aggregated", 1, "aggregated: 1 is not valid: give true or false"),
    (TCP, "age", True, "age: True is not valid"),
    (TCP, "age", 7.0, "age: 7.0 is not valid"),
    (TCP, "timeout", 1 << 30, "timeout: 1073741824 is not valid"),
    (TCP, "idle", ..., "idle: it is missing"),
    (
        TCP,
        "orig.packets",
        -1,
        "orig.packets: -1 is not valid: give a whole number from 0 to 18446744073709551615",
    ),
    (TCP, "reply.bytes", 1 << 64, "reply.bytes: 18446744073709551616 is not valid"),
    (TCP, "reply.bytes", 10**400, "reply.bytes: a number of many digits is not valid"),
    (TCP, "related.bytes", 1 << 32, "related.bytes: 4294967296 is not valid"),
    (TCP, "orig.sport", "80", "orig.sport: '80' is not valid"),
    (TCP, "orig.dport", 65536, "orig.dport: 65536 is not valid"),
    (
        TCP,
        "orig.src",
        "=cmd|' /C calc'!A0",
        "orig.src: \"=cmd|' /C calc'!A0\" is not valid: give an ipv4 address",
    ),
    (TCP, "orig.src", "10.0.0.01", "orig.src: '10.0.0.01' is not valid"),
    (TCP, "orig.src", "2001:db8::1", "orig.src: '2001:db8::1' is not valid"),
    (TCP, "orig.src", "10.0.0.1\x1b[2J", "orig.src: '10.0.0.1\\x1b[2J' is not valid"),
    (TCP, "orig.src", "\ud800", "orig.src: '\\ud800' is not valid"),
    (TCP, "orig.src", ["10.0.0.1"], "orig.src: a list is not valid"),
    (TCP, "reply.src", "10.9.9.9", "reply.src: '10.9.9.9' is not valid: give 172.30.56.105"),
    (TCP, "reply.dport", 5, "reply.dport: 5 is not valid: give 41234"),
    (TCP, "orig", None, "orig: None is not valid: give an object"),
    (TCP, "orig.mac", "x", "orig.mac: a flow has no such field here"),
    (TCP, "host", "another", "host: a flow has no such field here"),
    (TCP, "\x1b[2J", 1, "\\x1b[2J: a flow has no such field here"),
    (TCP, "state", "@SUM(1+1)", "state: '@SUM(1+1)' is not valid"),
    (TCP, "state", "NEW", "state: 'NEW' is not valid"),
    (TCP, "state", "16", "state: '16' is not valid"),
    (TCP, "state", {}, "state: an object is not valid"),
    (
        UDP,
        "state",
        "SYN_SENT",
        "state: 'SYN_SENT' is not valid: give one of NEW, REPLIED, ESTABLISHED",
    ),
    (TCP, "proto", "300", "proto: '300' is not valid"),
    (TCP, "proto", "06", "proto: '06' is not valid"),
    (TCP, "proto", "6", "proto: '6' is not valid: give its name, tcp"),
    (TCP, "proto", 6, "proto: 6 is not valid"),
    (TCP, "proto", "\u0666", "proto: '\\u0666' is not valid"),
    (TCP, "proto", "icmp", "orig.sport: a flow has no such field here"),
    (TCP, "family", "ipv6", "orig.src: '172.20.56.105' is not valid: give an ipv6 address"),
    (TCP, "family", ["ipv4"], "family: a list is not valid"),
    (TCP, "assured", "yes", "assured: 'yes' is not valid: give true or false"),
    (TCP, "seen_reply", 1, "seen_reply: 1 is not valid"),
    (TCP, "dir", "sideways", "dir: 'sideways' is not valid"),
    (TCP, "icmp", {"type": 8, "code": 0, "id": 1}, "icmp: a flow of tcp has no such field"),
    (ICMP, "icmp", ..., "icmp: it is missing"),
    (ICMP, "icmp.type", 256, "icmp.type: 256 is not valid"),
    (ICMP, "icmp.id", -5, "icmp.id: -5 is not valid"),
    (GRE, "gre.dstkey", "4711", "gre.dstkey: '4711' is not valid"),
    (GRE, "gre.key", 1, "gre.key: a flow has no such field here"),
    (UDP, "vlan", [1, 2, 3], "vlan: a list is not valid"),
    (UDP, "vlan", [], "vlan: a list is not valid"),
    (UDP, "vlan", [4096], "vlan[0]: 4096 is not valid"),
    (UDP, "vlan", "10", "vlan: '10' is not valid"),
    (OTHER, "window", {"orig": {}, "reply": {}}, "window.orig.td_end: it is missing"),
]
#: Lines that are no record at all, or that each reader may read as another one.
TORN = [
    ("[" * 60_000, "it nests too deeply"),
    ('{"orig":' * 8_000, "it nests too deeply"),
    ("[" * 70_000, "the line has more than 65536 characters"),
    ('{"age": ' + "9" * 5000 + "}", "it is not JSON"),
    (json.dumps(TCP).replace('"age": 6', '"age": NaN'), "NaN: JSON has no such number"),
    (json.dumps(TCP).replace('"age": 6', '"age": -Infinity'), "-Infinity: JSON has no such number"),
    (json.dumps(TCP).replace('"age": 6', '"age": 1e999'), "age: inf is not valid"),
    (json.dumps(TCP).replace('"age": 6', '"age": 1e300'), "age: 1e+300 is not valid"),
    (json.dumps(TCP).replace('"age": 6', '"age": 6, "age": "x"'), "'age': it is there twice"),
    (json.dumps(TCP) + json.dumps(TCP), "it is not JSON"),
    ("null", "record: None is not valid: give an object"),
    ('"\\u001b]0;x\\u0007"', "record: '\\x1b]0;x\\x07' is not valid"),
]
LINES = [
    (json.dumps(changed(record, path, value)), said) for record, path, value, said in EVIL
] + TORN


def test_each_bad_host_of_a_fleet_is_named_and_left_out(tmp_path: pathlib.Path) -> None:
    sources = []
    for number, text in enumerate(
        [f"{json.dumps(UDP)}\n{line}\n" for line, dummy in LINES] + [json.dumps(TCP) + "\n"]
    ):
        path = tmp_path / f"r{number}"
        path.write_text(text, "utf-8")
        sources.append({"host": path.name, "path": str(path)})
    params = {name: option.get("default") for name, option in fleet_run.OPTIONS.items()}
    dest = tmp_path / "out.csv"
    result = fleet_run.report({**params, "sources": sources, "dest": str(dest)}, check_mode=False)
    assert result["hosts"] == {f"r{len(LINES)}": 1}, "all of the good one"
    for number, (dummy, said) in enumerate(LINES):
        why = result["unread"][f"r{number}"]
        assert f"r{number}:2: " in why and said in why and why.isprintable(), why
    assert "5353" not in dest.read_text("utf-8") and "41234" in dest.read_text("utf-8"), (
        "nothing of the bad ones"
    )


def test_ct_list_refuses_what_the_merge_refuses(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "flows"
    for line, said in LINES:
        if not said.startswith("host: "):  # which a file of ct_merge has
            path.write_text(f"{json.dumps(UDP)}\n{line}\n", "utf-8")
            with pytest.raises(ConntrackError) as caught:
                SavedFlows.load(str(path))
            assert f"{path}:2: " in caught.value.message and caught.value.message.isprintable()


EVENT = {"event": "new", "seq": 1, "time": "2026-01-01T00:00:00.000000+00:00"}


BAD_EVENTS: list[tuple[dict[str, t.Any], str]] = [
    *(
        ({path: value}, said)
        for record, path, value, said in EVIL
        if record is TCP and "." not in path and path != "host" and value is not ...
    ),
    ({"event": ["new"]}, "event: a list is not valid"),
    ({"seq": "7"}, "seq: '7' is not valid"),
    ({"seq": -1}, "seq: -1 is not valid"),
    ({"seq": 1e300}, "seq: 1e+300 is not valid"),
    (
        {"time": "2026-01-01\x1b00:00:00+00:00"},
        "time: '2026-01-01\\x1b00:00:00+00:00' is not valid",
    ),
    ({"time": "2026-13-01T00:00:00+00:00"}, "time: '2026-13-01T00:00:00+00:00' is not valid"),
    ({"time": "2026-01-01T00:00:00"}, "time: '2026-01-01T00:00:00' is not valid"),
    ({"time": 0}, "time: 0 is not valid"),
    ({"reason": "expired"}, "reason: only the event destroy has one"),
    ({"event": "destroy", "reason": "\x1b[31mexpired"}, "reason: '\\x1b[31mexpired' is not valid"),
]


def test_events_are_checked_as_flows_are(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events"
    for changes, said in BAD_EVENTS:
        path.write_text(
            json.dumps({**EVENT, **TCP}) + "\n" + json.dumps({**EVENT, **TCP, **changes}) + "\n",
            "utf-8",
        )
        for read in (
            lambda: list(saved_flows.events(str(path))),
            lambda: SavedFlows.load(str(path)),
        ):
            with pytest.raises(ConntrackError) as caught:
                read()
            assert (
                f"{path}:2: " in caught.value.message
                and said in caught.value.message
                and caught.value.message.isprintable()
            )


def test_events_that_are_ages_apart_make_no_flow_that_can_not_be(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events"
    most, longest = flow_record.MOST_SECONDS, chain_settings.LONGEST_TIMEOUT
    first = {
        **EVENT,
        **TCP,
        "time": "2026-01-01T00:00:00.000000+00:00",
        "timeout": longest,
        "age": most,
        "idle": most,
    }
    later = {**EVENT, **UDP, "seq": 2, "time": "2026-01-20T00:00:00.000000+00:00"}
    path.write_text("".join(json.dumps(one) + "\n" for one in (first, later)), "utf-8")
    found = flow_read.read(
        SavedFlows.load(str(path)), flow_filter.parse_query({"proto": "tcp"})
    ).flows
    assert [(one["age"], one["idle"], 0 < one["timeout"] < longest) for one in found] == [
        (most, most, True)
    ]


# ---------------------------------------------------------------- the end of a file
LIST = "[\n" + ",\n".join(map(json.dumps, written())) + "\n]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LIST + json.dumps(TCP), "something follows the end of the list"),
        (LIST + LIST, "something follows the end of the list"),
        ("[]\n{}\n", "something follows the end of the list"),
        (LIST[:-3], "it ends too early: the list is not closed"),
        ("[\n", "it ends too early: the list is not closed"),
        (json.dumps(TCP)[:-1], "it is not JSON"),
    ],
)
def test_what_is_cut_off_and_what_follows_the_end(
    tmp_path: pathlib.Path, text: str, said: str
) -> None:
    path = tmp_path / "flows"
    path.write_text(text, "utf-8")
    with pytest.raises(ConntrackError, match=said):
        SavedFlows.load(str(path))


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        LIST.replace("[\n", "["),
        LIST.replace("\n]", "]"),
        LIST[1:],
        LIST.replace(",\n", ",\n\n"),
    ],
)
def test_a_list_is_read_however_its_lines_are_broken(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "flows"
    path.write_text(text, "utf-8")
    assert flow_read.read(SavedFlows.load(str(path)), flow_filter.parse_query({})).count == len(
        written()
    )


def test_a_merged_file_is_read_as_flows(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fleet.jsonl"
    path.write_text(
        json.dumps({"host": "r1", "path": ["r1"], "ordered": True, **TCP}) + "\n", "utf-8"
    )
    assert flow_read.read(SavedFlows.load(str(path)), flow_filter.parse_query({})).flows == [TCP]


# ---------------------------------------------------------------- what is added up and printed
def test_counters_at_their_end_break_no_sum(tmp_path: pathlib.Path) -> None:
    """Of 70,000 of them the sums need more than the 63 bits that sqlite has."""
    most = (1 << 64) - 1
    record = changed(
        changed(
            changed(changed(TCP, "orig.bytes", most), "reply.bytes", most), "orig.packets", most
        ),
        "reply.packets",
        most,
    )
    connection = flow_merge.Connection(("r1",), True, [("r1", record, "")], record)
    with flow_merge.Store(str(tmp_path)) as store:
        store.count([connection] * 70_000)
        (paths,) = store.paths(5)[0]
        assert (paths["bytes"], paths["packets"]) == (70_000 * 2 * most,) * 2


def test_the_most_bytes_come_first_however_many_they_are(tmp_path: pathlib.Path) -> None:
    with flow_merge.Store(str(tmp_path)) as store:
        for number, octets in ((1, (1 << 33) + 5), (2, 7), (3, (1 << 64) - 1), (4, 1 << 33)):
            record = changed(
                changed(changed(TCP, "orig.src", f"10.0.0.{number}"), "orig.bytes", octets),
                "reply.bytes",
                0,
            )
            store.count([flow_merge.Connection(("r1",), True, [], record)])
        assert [one["src"][-1] for one in store.tops(5)["src"]] == ["3", "1", "4", "2"]
        assert [one["bytes"] for one in store.tops(5)["src"]] == [
            (1 << 64) - 1,
            (1 << 33) + 5,
            1 << 33,
            7,
        ]
        assert (
            store.addresses(2) == ["172.30.56.105", "10.0.0.3"]
            and sum(one[-1] for one in store.between([])) == (1 << 64) + (1 << 34) + 11
        )


@pytest.mark.parametrize("name", ["=cmd|'/C calc'!A0", "@SUM(1+1)", "+1", "-1", " =1", "\uff1d1"])
def test_no_cell_is_a_formula(tmp_path: pathlib.Path, name: str) -> None:
    """A host of the inventory may have any name."""
    (tmp_path / "in").write_text(json.dumps(TCP) + "\n", "utf-8")
    params = {name: option.get("default") for name, option in fleet_run.OPTIONS.items()}
    for view in ("flows", "paths"):
        dest = tmp_path / "out.csv"
        fleet_run.report(
            {
                **params,
                "sources": [{"host": name, "path": str(tmp_path / "in")}],
                "dest": str(dest),
                "view": view,
            },
            check_mode=False,
        )
        with open(dest, encoding="utf-8", newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["path"] == f"'{name}" and row["proto"] == "tcp"
        assert not any(
            cell.lstrip().startswith(("=", "@", "+", "-", "\uff1d")) for cell in row.values()
        )


def test_cells_hold_no_control_characters() -> None:
    (row,) = csv.reader(
        io.StringIO(flow_output.csv_text([["a\x1b[2J", "b\r\n=1+1", "\t=2", 'c"d,e', "10.0.0.1"]]))
    )
    assert row == ["a\\u001b[2J", "b\\u000d\\u000a=1+1", "\\u0009=2", 'c"d,e', "10.0.0.1"]


@pytest.mark.parametrize("name", ["r1\x1b[31m", "r1\nr2", "r\x9b2J", "\ud800", "\u202er1"])
def test_a_source_has_a_name_that_can_be_printed(tmp_path: pathlib.Path, name: str) -> None:
    for field in ("host", "zone"):
        with pytest.raises(
            ConntrackError,
            match=(
                rf"^sources\[3\]\.{field}: .* is not valid: give a name without control"
                r" characters\.$"
            ),
        ):
            flow_merge.parse_source(3, {"host": "r1", "path": "/x", field: name})


def test_what_hosts_answered_is_told_without_escape_codes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in").write_text(json.dumps(TCP) + "\n", "utf-8")
    merged = flow_merge.merge(
        [flow_merge.Source("r1", str(tmp_path / "in"))],
        str(tmp_path),
        unread={"r2": "\x1b[2Jdown\n\ud800"},
    )
    assert merged.unread == {"r2": "\\u001b[2Jdown\\u000a\\ud800"}


def test_no_cell_makes_a_line_of_its_own() -> None:
    text = ct_text.columns([["NAME", "STATE"], ["eth0\x1b[2J\nfake0", "good"]])
    assert text.splitlines() == [
        "NAME                      STATE",
        "eth0\\u001b[2J\\u000afake0  good",
    ]


def test_json_stays_json_when_it_is_printed() -> None:
    value = {"name": "a\x7f\x9b\u2028\u202e\U0001f600"}
    assert (
        json.loads(printable(json.dumps(value, ensure_ascii=False, indent=1), keep="\n")) == value
    )
