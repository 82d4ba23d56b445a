# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flows as text."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import output as flow_output
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

#: Printed by conntrack 1.4.7 (conntrack -L -o extended) about real traffic, through a router
#: namespace and over a loopback.
CONNTRACK_LINES = (
    (pathlib.Path(__file__).parents[1] / "fixtures" / "conntrack-L-extended.txt")
    .read_text(encoding="ascii")
    .splitlines()
)


def from_conntrack(line: str) -> tuple[flow.Table, tuple[bytes, bytes]]:
    """Return the entry that a line of conntrack describes."""
    words = line.split()
    pairs = [word.split("=") for word in words if "=" in word]
    half = next(at for at, pair in enumerate(pairs) if pair[0] == "bytes") + 1
    orig, reply = dict(pairs[:half]), dict(pairs[half:])
    ctl = (0 if "[UNREPLIED]" in line else chain_layout.CTL_SEEN_REPLY) | (
        chain_layout.CTL_ASSURED if "[ASSURED]" in line else 0
    )
    if words[3] == "6":
        ctl |= chain_states.TCP_STATES.index(words[5])
    icmp = "type" in orig
    return fakes.TABLES[words[0] == "ipv6"], fakes.entry(
        src=orig["src"],
        dst=orig["dst"],
        sport=int(orig["id"] if icmp else orig.get("sport", 0)),
        dport=(
            int(orig["type"]) << 8 | int(orig["code"])
            if icmp
            else int(orig.get("dport", orig.get("dstkey", "0")), 0)
        ),
        proto=int(words[3]),
        ctl=ctl,
        orig=(int(orig["packets"]), int(orig["bytes"])),
        reply=(int(reply["packets"]), int(reply["bytes"])),
        left=int(words[4]),
    )


def decode(
    rows: t.Iterable[tuple[bytes, bytes]], as_bytes: bool, table: flow.Table = fakes.TABLES[0]
) -> list[flow.Flow]:
    decoder = flow.Decoder(table, fakes.CLOCK, as_bytes)
    return [item for key, value in rows for item in decoder.flows(decoder.packed_rows(key, value))]


ROWS = (
    fakes.entry(),
    fakes.entry(
        src="172.30.56.105",
        dst="10.1.2.3",
        sport=53,
        dport=5353,
        proto=17,
        ctl=0,
        reply=(0, 0),
        vlans=(10, 20),
        related=(2, 112),
    ),
    fakes.entry(sport=99, dport=8 << 8, proto=1, ctl=chain_layout.CTL_SEEN_REPLY),
    fakes.entry(sport=0, dport=0, proto=253, ctl=0, orig=(2**64 - 1, 2**63)),
)


def text(
    writer: flow_output.Writer, rows: t.Sequence[tuple[bytes, bytes]] = ROWS, pieces: int = 1
) -> str:
    size = max(len(rows) // pieces, 1)
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    return b"".join(
        [
            writer.begin(),
            *(writer.write(decode(part, writer.as_bytes)) for part in parts),
            writer.end(),
        ]
    ).decode()


def records(rows: t.Sequence[tuple[bytes, bytes]] = ROWS) -> list[flow.Record]:
    return [flow.record(shape, values) for shape, values, dummy in decode(rows, as_bytes=False)]


@pytest.mark.parametrize("line", CONNTRACK_LINES, ids=lambda line: " ".join(line.split()[:6:2]))
@pytest.mark.parametrize("extended", [True, False])
def test_conntrack_lines_are_those_of_the_real_tool(line: str, extended: bool) -> None:
    table, row = from_conntrack(line)
    writer = flow_output.writer("conntrack", extended=extended)
    written = writer.write(decode([row], writer.as_bytes, table)).decode()
    assert written == (line if extended else re.sub("^ipv[46] +[0-9]+ ", "", line)) + "\n"


def test_stats_have_the_form_of_the_real_tool() -> None:
    """A line printed by conntrack 1.4.7, with the numbers of a chain that saw a little of
    everything.
    """
    nothing = dict.fromkeys(chain_counters.COUNTERS, 0)
    busy = {
        **nothing,
        "tracked": 100,
        "related": 3,
        "ignored_tcp_window": 2,
        "invalid_tcp_rst": 1,
        "invalid_checksum": 4,
        "created": 6,
        "reopened": 1,
    }
    busy[flow_output.GUEST_DROPPED] = 8
    busy.update(
        insert_failed=9,
        untracked_no_entry=9,
        untracked_contended=1,
        untracked_not_ip=50,
        deleted_expired=2,
    )
    real = (
        "cpu=1   \tfound=0 invalid=0 insert=0 insert_failed=0 drop=0 early_drop=0 error=0"
        " search_restart=0 clash_resolve=0 chaintoolong=0 \n"
    )
    first, second = flow_output.stats_lines([busy, nothing], evicted=7).splitlines(keepends=True)
    assert second == real
    assert (
        first
        == "cpu=0   \tfound=100 invalid=5 insert=6 insert_failed=9 drop=8 early_drop=7 error=10"
        " search_restart=0 clash_resolve=0 chaintoolong=0 \n"
    )


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_jsonl_is_each_record_as_the_json_module_writes_it(pieces: int) -> None:
    assert text(flow_output.writer("jsonl"), pieces=pieces) == "".join(
        json.dumps(record) + "\n" for record in records()
    )


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_json_is_one_list(pieces: int) -> None:
    assert json.loads(text(flow_output.writer("json"), pieces=pieces)) == records()


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "table", "conntrack"])
def test_no_flow_at_all(form: str) -> None:
    written = text(flow_output.writer(form), [])
    assert len(written.splitlines()) == (1 if form in ("json", "csv", "table") else 0)
    if form == "json":
        assert json.loads(written) == []


def test_an_empty_piece_writes_nothing() -> None:
    for form in ("json", "jsonl", "csv", "conntrack"):
        assert flow_output.writer(form).write([]) == b""


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_of_some_fields(form: str) -> None:
    written = text(flow_output.writer(form, ["proto", "bytes", "orig.sport"]))
    found = (
        json.loads(written)
        if form == "json"
        else [json.loads(line) for line in written.splitlines()]
    )
    assert found[0] == {"proto": "tcp", "bytes": 1641, "orig": {"sport": 41234}}
    assert found[2] == {"proto": "icmp", "bytes": 1641}


def test_json_with_windows() -> None:
    found = json.loads(text(flow_output.writer("json", window=True)))
    assert found[0].pop("window")["orig"]["td_end"] == 1001
    assert found == records()


def test_csv_has_every_column() -> None:
    rows = list(csv.DictReader(io.StringIO(text(flow_output.writer("csv"), pieces=2))))
    assert list(rows[0]) == list(flow.COLUMNS)
    assert (
        rows[0]["orig.src"],
        rows[0]["assured"],
        rows[0]["icmp.id"],
        rows[1]["vlan"],
        rows[2]["orig.sport"],
    ) == ("172.20.56.105", "true", "", "10 20", "")


def test_csv_of_some_fields() -> None:
    assert text(flow_output.writer("csv", ["proto", "icmp"])).splitlines()[:3:2] == [
        "proto,icmp.type,icmp.code,icmp.id",
        "udp,,,",
    ]


def test_table() -> None:
    assert (
        text(flow_output.writer("table"))
        == "PROTO  STATE        FROM                 TO                               PACKETS      "
        "          BYTES  BACK PACKETS  BACK BYTES  RELATED     LEFT  IDLE  DIR      NOTE\ntcp  "
        "  ESTABLISHED  172.20.56.105:41234  172.30.56.105:8080                     6           "
        "       431             4        1210        0  431994s    0s  ingress  assured\nudp   "
        " NEW          172.30.56.105:53     10.1.2.3:5353                          6            "
        "      431             0           0        2  431994s    0s  ingress  unreplied, vlan"
        " 10 20\nicmp   REPLIED      172.20.56.105        172.30.56.105                         "
        " 6                  431             4        1210        0  431994s    0s  ingress "
        " type 8 code 0 id 99\n253    NEW          172.20.56.105        172.30.56.105      "
        " 18446744073709551615  9223372036854775808             4        1210        0  431994s "
        "   0s  ingress  unreplied\n"
    )


def test_table_of_some_fields_keeps_its_widths() -> None:
    assert text(flow_output.writer("table", ["proto", "src"]), pieces=2).splitlines() == [
        "proto  src",
        "tcp    172.20.56.105",
        "udp    172.30.56.105",
        "icmp   172.20.56.105",
        "253    172.20.56.105",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"form": "xml"},
            "format: 'xml' is not valid: give one of json, jsonl, table, csv, conntrack.",
        ),
        ({"form": "conntrack", "fields": ["proto"]}, "fields: "),
        (
            {"form": "table", "window": True},
            "window: True is not valid: the format table has no place for it",
        ),
    ],
)
def test_bad_combinations_are_named(words: dict[str, t.Any], message: str) -> None:
    with pytest.raises(ConntrackError) as caught:
        flow_output.writer(**words)
    assert caught.value.message.startswith(message)


def test_table_names_the_call_of_pptp_only() -> None:
    lines = text(
        flow_output.writer("table"), [fakes.entry(sport=0, dport=call, proto=47) for call in (0, 9)]
    ).splitlines()
    assert [line.partition("ingress  ")[2] for line in lines[1:]] == ["assured", "assured, call 9"]
