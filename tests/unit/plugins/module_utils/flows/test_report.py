# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules say, from their parameters on; the tables are in memory."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import output as flow_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import report as flow_report
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes


class _Pinned(fakes.FakeTables):
    def __enter__(self) -> _Pinned:
        return self

    def __exit__(self, *dummy: object) -> None:
        pass


@pytest.fixture(autouse=True)
def source(monkeypatch: pytest.MonkeyPatch) -> fakes.FakeTables:
    rows = [fakes.entry(sport=at) for at in range(5)] + [
        fakes.entry(proto=17, ctl=0),
        fakes.entry(proto=47, left=-1),
    ]
    pinned = _Pinned({"ctt": rows})
    for name in ("FlowTables", "writing"):
        monkeypatch.setattr(flow_table, name, lambda *dummy: pinned)
    monkeypatch.setattr(bpffs, "check", lambda pin_root: True)
    return pinned


@pytest.fixture
def nothing_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pin_root: str, *dummy: object) -> None:
        raise flow_table.NoChain(
            f"{pin_root}/map/stats does not exist: no chain is pinned there. Run xdp_program."
        )

    for name in ("FlowTables", "writing"):
        monkeypatch.setattr(flow_table, name, refuse)


def flows(check_mode: bool = False, **params: t.Any) -> dict[str, t.Any]:
    return flow_report.report(
        {name: spec.get("default") for name, spec in flow_report.FLOWS_OPTIONS.items()} | params,
        check_mode,
    )


def flush(check_mode: bool = False, **params: t.Any) -> dict[str, t.Any]:
    return flow_report.flush(
        {name: spec.get("default") for name, spec in flow_report.FLUSH_OPTIONS.items()} | params,
        check_mode,
    )


def test_every_word_of_a_query_is_an_option() -> None:
    assert set(flow_filter.QUERY_WORDS) <= set(flow_report.FLOWS_OPTIONS)
    assert set(flow_filter.FILTER_WORDS) <= set(flow_report.FLUSH_OPTIONS)


def test_result_and_facts() -> None:
    result = flows()
    assert (result["changed"], result["count"], len(result["flows"]), result["truncated"]) == (
        False,
        6,
        6,
        False,
    )
    assert result["summary"]["by_proto"] == {"tcp": 5, "udp": 1}
    assert result["ansible_facts"]["ct_flows"] == {
        name: result[name] for name in ("count", "truncated", "summary")
    }
    assert "msg" not in result and "text" not in result


def test_facts_hold_as_many_flows_as_they_were_asked_to(source: fakes.FakeTables) -> None:
    for limit, number in ((0, 0), (2, 2), (50, 6)):
        result = flows(limit=limit)
        assert (
            result["ansible_facts"]["ct_flows"]["flows"] == result["flows"]
            and len(result["flows"]) == number
        )
    source.entries["ctt"].update(fakes.entry(sport=at) for at in range(100, 400))
    result = flows()
    assert (
        len(result["flows"]) == 100
        and result["truncated"]
        and "flows" not in result["ansible_facts"]["ct_flows"]
    )


@pytest.mark.parametrize("form", flow_output.FORMATS)
def test_each_flow_is_returned_once(form: str, source: fakes.FakeTables) -> None:
    """The port is in no other number of the result."""
    source.entries["ctt"].update([fakes.entry(src="10.99.88.77")])
    for words, times in (({}, 1), ({"format": form}, 1), ({"format": form, "limit": 50}, 2)):
        result = flows(**words)
        assert ("text" in result) is not ("flows" in result)
        lines = [
            one
            for one in (result.get("flows"), result["ansible_facts"]["ct_flows"].get("flows"))
            if one is not None
        ]
        lines += [result["text"].splitlines()] if "text" in result else []
        assert (
            sum(
                "10.99.88.77" in str(line)
                for some in lines
                for line in (some if isinstance(some, list) else [some])
            )
            == times
        ), "facts hold limit"


def test_text_has_all_and_says_so(source: fakes.FakeTables) -> None:
    source.entries["ctt"].update(fakes.entry(sport=at) for at in range(100, 400))
    result = flows(format="jsonl")
    assert (
        len(result["text"].splitlines()),
        result["count"],
        result["truncated"],
        "msg" in result,
    ) == (306, 306, False, False)
    result = flows(format="jsonl", limit=9)
    assert (len(result["text"].splitlines()), result["truncated"]) == (9, True) and result[
        "msg"
    ].startswith("The result lists 9 of 306 flows:")


def test_a_cut_is_said() -> None:
    assert (
        flows(limit=2)["msg"]
        == "The result lists 2 of 6 flows: raise limit or narrow the filters, or have them written"
        " to dest."
    )
    assert flows(limit=2, summary=False)["msg"].startswith("The result lists 2 flows of more:")
    assert flows(limit=2, group_by=["sport"])["msg"].startswith("The result lists 2 of 6 groups:")


def test_text() -> None:
    assert flows(format="table", proto=["udp"])["text"].splitlines()[1].split()[:2] == [
        "udp",
        "NEW",
    ]
    assert len(flows(format="jsonl", limit=3)["text"].splitlines()) == 3


def test_stats(source: fakes.FakeTables, tmp_path: pathlib.Path) -> None:
    source.stats.update(created=20, tracked=30)
    text = flows(format="stats", limit=0)["text"]
    assert [line.split()[:4] for line in text.splitlines()] == [
        ["cpu=0", "found=10", "invalid=0", "insert=20"],
        ["cpu=1", "found=0", "invalid=0", "insert=0"],
    ]
    assert " early_drop=13 " in text
    dest = tmp_path / "stats"
    assert flows(format="stats", dest=str(dest))["changed"]
    assert dest.read_text(encoding="ascii") == text


def test_dest(tmp_path: pathlib.Path) -> None:
    dest = tmp_path / "flows.json"
    assert flows(check_mode=True, dest=str(dest))["changed"]
    assert not dest.exists()
    result = flows(dest=str(dest))
    assert (result["changed"], result["dest"]) == (True, str(dest))
    assert json.loads(dest.read_text()) == result["flows"]
    assert not flows(dest=str(dest))["changed"]
    assert not flows(check_mode=True, dest=str(dest))["changed"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"proto": ["tpc"]}, "proto"),
        ({"sort": "x"}, "sort"),
        ({"limit": -1}, "limit"),
        ({"dest": "flows.json"}, "dest"),
        ({"mode": "rw"}, "mode"),
        ({"extended": True}, "extended"),
        ({"format": "csv", "window": True}, "window"),
        ({"format": "conntrack", "fields": ["src"]}, "fields"),
        ({"format": "stats", "summary": False}, "summary"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(
    params: dict[str, t.Any], field: str, source: fakes.FakeTables
) -> None:
    with pytest.raises(ConntrackError, match=f"^{field}: "):
        flows(**params)
    assert source.batches_read == 0


@pytest.mark.usefixtures("nothing_pinned")
def test_without_a_chain() -> None:
    for run in (flows, lambda **what: flush(all=True, **what)):
        with pytest.raises(ConntrackError, match="Run xdp_program"):
            run()
        result = run(check_mode=True)
        assert (result["changed"], result["count"], result["truncated"]) == (False, 0, False)
        assert "Run xdp_program" in result["warnings"][0]


@pytest.mark.usefixtures("nothing_pinned")
def test_text_without_a_chain() -> None:
    assert flows(check_mode=True, format="jsonl")["text"] == ""
    assert json.loads(flows(check_mode=True, format="json")["text"]) == []


def test_flush_in_four_runs(source: fakes.FakeTables) -> None:
    for check_mode, changed, count, deleted in (
        (True, True, 5, 0),
        (False, True, 5, 5),
        (False, False, 0, 0),
        (True, False, 0, 0),
    ):
        result = flush(check_mode, proto=["tcp"], limit=2)
        assert (result["changed"], result["count"], result["deleted"]) == (changed, count, deleted)
        assert len(result["plan"]) == min(count, 2)
        assert result["diff"]["before"].count("\n") == min(count, 2)
        assert ("msg" in result) is result["truncated"] is (count > 2)
    assert source.stats["deleted_flushed"] == 5


def test_flush_of_what_is_over(source: fakes.FakeTables) -> None:
    assert flush(expired=True)["deleted"] == 1
    assert source.stats["deleted_expired"] == 1
    assert flush(all=True)["deleted"] == 6


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "Nothing says which flows are to go."),
        ({"all": True, "expired": True}, "all and expired exclude each other."),
        ({"all": True, "proto": ["tcp"]}, "filters and all exclude each other."),
        ({"port": ["x"]}, "port: 'x' is not valid:"),
        ({"all": True, "limit": -1}, "limit: -1 is not valid:"),
    ],
)
def test_a_flush_must_say_what(
    params: dict[str, t.Any], message: str, source: fakes.FakeTables
) -> None:
    with pytest.raises(ConntrackError, match=f"^{message}"):
        flush(**params)
    assert source.batches_read == 0


def test_a_filter_that_is_false_is_a_filter() -> None:
    assert flush(check_mode=True, assured=False)["count"] == 1


def test_deleting_leaves_no_trace_in_the_chains_own_counters() -> None:
    """They are per CPU: written from user space, what the chain counts meanwhile would be lost."""
    assert {spec.name: spec.kind for spec in chain_maps.maps(16)}["deletions"] == "array"


def test_a_deletion_says_how_many_were_live_and_how_many_had_only_expired(
    source: fakes.FakeTables,
) -> None:
    def counts(**given: t.Any) -> list[int]:
        done = flush(**given)
        return [done[name] for name in ("count", "deleted", "live", "expired")]

    assert counts(check_mode=True, all=True) == [7, 0, 6, 1]
    assert counts(proto=["udp"]) == [1, 1, 1, 0]
    assert counts(all=True) == [6, 6, 5, 1]
    assert counts(expired=True) == [0, 0, 0, 0]


def test_an_empty_filter_deletes_nothing(source: fakes.FakeTables) -> None:
    given: list[dict[str, t.Any]] = [
        {"src": []},
        {"src": [""]},
        {"state": []},
        {"dport": ["80", ""]},
    ]
    for empty in given:
        with pytest.raises(ConntrackError, match="is not valid"):
            flush(proto=["tcp"], **empty)
    assert len(source.entries["ctt"]) == 7
