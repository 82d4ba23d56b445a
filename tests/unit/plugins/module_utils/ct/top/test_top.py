# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ct top: rates from two reads, whatever became of the flows meanwhile, in bounded memory, and
lines that fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.clock import Clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import cli, manual
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import meter as top_meter
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import output as top_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import run as ct_top
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import view as top_view
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

SECONDS = 2
LATER = Clock(fakes.NOW + SECONDS * fakes.HZ, fakes.HZ, fakes.META["ktime_ns"] + SECONDS * 10**9)
LONG = "2001:db8:1111:2222:3333:4444:5555:{:x}"


def view(sort: str = "byte-rate", **words: t.Any) -> top_view.View:
    return top_view.parse(words, sort, str(SECONDS))


def read_twice(
    before: t.Iterable[t.Any], after: t.Iterable[t.Any], asked: top_view.View, **most: int
) -> top_meter.Batch:
    """What the second read gives."""
    meter = top_meter.Meter(asked, **most)
    assert meter.read(fakes.FakeTables({"ctt": before})).seconds is None
    return meter.read(fakes.FakeTables({"ctt": after}, clock=LATER))


def flow_at(number: int, packets: int, **more: t.Any) -> tuple[bytes, bytes]:
    """A flow as the second read finds it, unless now= is given: so many packets of 100 bytes there,
    and as many of 1000 bytes back.
    """
    return fakes.entry(
        **{
            "sport": number,
            "orig": (packets, 100 * packets),
            "reply": (packets, 1000 * packets),
            "age": 60,
            "now": LATER.jiffies,
            **more,
        }
    )


def rates(batch: top_meter.Batch, asked: top_view.View) -> dict[int, t.Any]:
    """The rates of flows by their source port."""
    return {one["orig"]["sport"]: one["rate"] for one in top_output.record(batch, asked)["top"]}


BEFORE = [
    flow_at(1, 10, now=fakes.NOW, age=58),
    flow_at(2, 50, now=fakes.NOW, age=58),
    flow_at(3, 70, now=fakes.NOW, age=58),
]


def test_the_rates_of_both_directions() -> None:
    batch = read_twice(BEFORE, [flow_at(1, 30), flow_at(2, 50), flow_at(3, 70)], view())
    assert rates(batch, view()) == {
        1: {
            "packets": 20.0,
            "bytes": 11000.0,
            "orig": {"packets": 10.0, "bytes": 1000.0},
            "reply": {"packets": 10.0, "bytes": 10000.0},
        },
        2: (
            still := {
                "packets": 0.0,
                "bytes": 0.0,
                "orig": {"packets": 0.0, "bytes": 0.0},
                "reply": {"packets": 0.0, "bytes": 0.0},
            }
        ),
        3: still,
    }
    whole = top_output.record(batch, view())
    assert (whole["flows"], whole["entries"], whole["seconds"], whole["rate"]["packets"]) == (
        3,
        3,
        2.0,
        20.0,
    )
    assert [one["orig"]["sport"] for one in whole["top"]] == [1, 3, 2], (
        "those without packets by their bytes"
    )


def test_no_rate_is_negative() -> None:
    """Flow 1 began anew, 2 is gone, 3 goes on, 4 is new, 5 was there but did not match before."""
    after = [flow_at(1, 4), flow_at(3, 72), flow_at(4, 6, age=1), flow_at(5, 900)]
    found = rates(read_twice(BEFORE, after, view()), view())
    assert {number: rate["packets"] for number, rate in found.items()} == {
        1: 4.0,
        3: 2.0,
        4: 6.0,
        5: 0.0,
    }
    groups = top_output.record(
        read_twice(BEFORE, after, view(group_by=["src"])), view(group_by=["src"])
    )["top"]
    assert [(one["src"], one["flows"], one["rate"]["packets"]) for one in groups] == [
        ("172.20.56.105", 4, 12.0)
    ]


@pytest.mark.parametrize(
    ("sort", "first"), [("byte-rate", 1), ("packet-rate", 1), ("bytes", 3), ("packets", 3)]
)
def test_the_order(sort: str, first: int) -> None:
    batch = read_twice(
        BEFORE, [flow_at(1, 30), flow_at(2, 50), flow_at(3, 70)], view(sort, limit=1)
    )
    assert list(rates(batch, view(sort, limit=1))) == [first]


def test_groups_have_their_share_of_the_table() -> None:
    asked = view("flows", group_by=["dport", "state"])
    batch = read_twice(
        [], [flow_at(number, 1, dport=80 if number < 4 else 443) for number in range(1, 5)], asked
    )
    assert [
        (one["dport"], one["state"], one["flows"], one["share"])
        for one in top_output.record(batch, asked)["top"]
    ] == [
        (80, "ESTABLISHED", 3, 75.0),
        (443, "ESTABLISHED", 1, 25.0),
    ]


def test_of_a_large_table_the_flows_with_packets_are_remembered() -> None:
    """Ten flows where three can be remembered: 8 and 9 had packets before the second read, 0 only
    after it.
    """
    third = Clock(
        LATER.jiffies + SECONDS * fakes.HZ, fakes.HZ, LATER.monotonic_ns + SECONDS * 10**9
    )
    meter = top_meter.Meter(view(), most_flows=3)
    meter.read(
        fakes.FakeTables(
            {"ctt": [flow_at(n + 1, 10, now=fakes.NOW, age=50, idle=20) for n in range(10)]}
        )
    )
    meter.read(
        fakes.FakeTables(
            {
                "ctt": [
                    flow_at(n + 1, 20 if n > 7 else 10, idle=0 if n > 7 else 22) for n in range(10)
                ]
            },
            clock=LATER,
        )
    )
    last = [
        flow_at(
            n + 1, 40 if n in (0, 8, 9) else 10, now=third.jiffies, idle=0 if n in (0, 8, 9) else 24
        )
        for n in range(10)
    ]
    batch = meter.read(fakes.FakeTables({"ctt": last}, clock=third))
    assert {
        number: rate["packets"] for number, rate in rates(batch, view()).items() if rate["packets"]
    } == {9: 20.0, 10: 20.0}
    assert len(meter._before) == 3


def test_the_memory_is_bounded() -> None:
    many = [flow_at(number, number) for number in range(1, 10001)]
    batch = read_twice([], many, view(limit=5), most_flows=1000)
    assert len(batch.ranked) <= 5 * len(top_view.ORDERS) and [
        c[top_view.PACKETS] for dummy, c in batch.first("packets", 5)
    ] == [20000, 19998, 19996, 19994, 19992]
    batch = read_twice([], many, view(group_by=["sport"]), most_groups=100)
    assert len(batch.ranked) <= 200 and batch.given_up and batch.flows == 10000
    assert batch.given_up + sum(c[top_view.FLOWS] for dummy, c in batch.ranked) == 10000
    assert [what for what, dummy in batch.first("packets", 2)] == [(10000,), (9999,)]
    assert any(
        f"{batch.given_up} flows of small groups" in line
        for line in top_output.heading(batch, view(group_by=["sport"]), False)
    )


@pytest.mark.parametrize("width", [40, 80, 132])
@pytest.mark.parametrize("group_by", [[], ["src"], ["proto", "src", "dst", "state"]])
def test_no_line_is_wider_than_the_terminal(width: int, group_by: list[str]) -> None:
    asked = view(group_by=group_by)
    rows = [
        fakes.entry(
            src=LONG.format(number),
            dst=LONG.format(99),
            sport=50000,
            dport=65000,
            orig=(10**9, 10**12),
        )
        for number in range(30)
    ]
    meter = top_meter.Meter(asked)
    meter.read(fakes.FakeTables({"ctt6": rows[1:]}))
    batch = meter.read(fakes.FakeTables({"ctt6": rows}, clock=LATER))
    lines = top_output.table(batch, asked, width)
    assert len(lines) == 31 and max(map(len, lines)) <= width
    assert width == 40 or all(len(line.split()) == len(lines[0].split()) for line in lines)
    assert len(top_output.table(batch, asked, width, 5)) == 6
    if width >= 80:
        assert max(map(len, top_output.heading(batch, asked, True))) < 80


def test_a_reading_without_rates_says_so() -> None:
    batch = top_meter.Meter(view()).read(fakes.FakeTables({"ctt": BEFORE}))
    assert "measuring" in top_output.heading(batch, view(), False)[1] and top_output.table(
        batch, view()
    )[1].split()[3:6] == ["-", "-", "-"]
    assert top_output.record(batch, view())["rate"] is None


def test_printing_some_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[bytes] = []
    asked = dataclasses.replace(view(), interval=0.01)
    ct_top.print_batches(
        lambda: contextlib.nullcontext(fakes.FakeTables({"ctt": BEFORE})),
        asked,
        printed.append,
        "text",
        2,
    )
    text = b"".join(printed).decode()
    assert (
        text.count("ct top  ") == text.count("PROTO FROM") == 2
        and text.count("172.20.56.105:1 ") == 2
    )


def test_the_words_and_the_completion_name_the_orders() -> None:
    (sort,) = (one for one in manual.commands(cli.parser())["top"] if "--sort" in one.names)
    assert sort.values == tuple(top_view.ORDERS)
    assert (
        len({order.key for order in top_view.ORDERS.values()} | {"q"}) == len(top_view.ORDERS) + 1
    )
