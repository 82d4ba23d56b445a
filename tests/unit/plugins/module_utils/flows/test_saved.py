# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of flows is read as the tables were."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import output as flow_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows.saved import SavedFlows
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

ROWS4 = (
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
    fakes.entry(sport=99, dport=8 << 8, proto=1, ctl=chain_layout.CTL_SEEN_REPLY, idle=7, left=0.5),
    fakes.entry(sport=0, dport=0, proto=253, ctl=chain_layout.CTL_EGRESS, orig=(2**64 - 1, 2**63)),
    fakes.entry(sport=0, dport=4711, proto=47, ctl=fakes.REAL, age=1 << 20),
    fakes.entry(
        sport=9, dport=10, proto=132, ctl=fakes.REAL | chain_states.SCTP_STATES.index("ESTABLISHED")
    ),
    fakes.entry(sport=9, dport=10, proto=132, ctl=0),
    fakes.entry(sport=7, dport=7, ctl=15),
)
ROWS6 = (
    fakes.entry(src="2001:db8::2", dst="2001:db8::1", sport=5000, dport=443),
    fakes.entry(src="2001:db8::1", dst="2001:db8::2", sport=77, dport=128 << 8, proto=58, ctl=0),
)


def written(source: flow_table.Source, form: str = "json", **words: t.Any) -> str:
    query = flow_filter.parse_query(words)
    pieces: list[bytes] = []
    flow_read.read(
        source, query, flow_output.writer(form, query.fields), pieces.append, summary=False
    )
    return b"".join(pieces).decode()


@pytest.fixture
def tables() -> fakes.FakeTables:
    return fakes.FakeTables({"ctt": ROWS4, "ctt6": ROWS6}, batch=1024)


def saved(path: pathlib.Path, text: str) -> SavedFlows:
    path.write_text(text, "utf-8")
    return SavedFlows.load(str(path))


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_what_is_read_back_is_what_was_written(
    tmp_path: pathlib.Path, tables: fakes.FakeTables, form: str
) -> None:
    text = written(tables, form)
    assert text.count("\n") >= 9
    source = saved(tmp_path / "flows", text)
    for other in ("json", "jsonl", "csv", "table", "conntrack"):
        assert written(source, other) == written(tables, other), other


@pytest.mark.parametrize(
    "words",
    [
        {"proto": "udp"},
        {"family": "ipv6"},
        {"assured": "true"},
        {"src": "172.30.0.0/16"},
        {"dir": "egress"},
        {"idle_for": 7},
        {"older_than": 1000},
        {"port": 443},
    ]
    + [{"sort": "-bytes", "limit": 3}, {"state": ["replied", "new"]}, {"min_packets": 11}],
)
def test_the_same_questions_have_the_same_answers(
    tmp_path: pathlib.Path, tables: fakes.FakeTables, words: dict[str, t.Any]
) -> None:
    source = saved(tmp_path / "flows", written(tables))
    assert written(source, **words) == written(tables, **words) != written(tables)


def test_an_empty_file_holds_no_flow(tmp_path: pathlib.Path) -> None:
    for text in ("", "[]\n"):
        assert written(saved(tmp_path / "flows", text)) == "[]\n"


@pytest.mark.parametrize("line", ["{}", "hello", '{"family": "ipv4"}', "7", '{"family": "ipx"}'])
def test_what_is_no_flow_is_named(
    tmp_path: pathlib.Path, tables: fakes.FakeTables, line: str
) -> None:
    with pytest.raises(
        ConntrackError, match=r"^input: .*flows:2: .* is no whole flow: give a file"
    ):
        saved(tmp_path / "flows", f"{written(tables, 'jsonl', limit=1)}{line}\n")


def test_a_file_that_can_not_be_read(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConntrackError, match="^input: .* can not be read: No such file"):
        SavedFlows.load(str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConntrackError, match="^input: .* can not be read: it is no text"):
        SavedFlows.load(str(tmp_path / "binary"))
