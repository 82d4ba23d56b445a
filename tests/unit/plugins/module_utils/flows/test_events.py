# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events: from the bytes that the chain writes to records, lines and files, and back."""

from __future__ import annotations

import json
import pathlib
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import events as chain_events
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import watch as ct_watch
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import events
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import saved as saved_flows
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows.saved import SavedFlows
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

SYN_SENT = chain_states.TCP_STATES.index("SYN_SENT")
UNSEEN: dict[str, t.Any] = {"orig": (1, 60), "reply": (0, 0), "age": 0, "idle": 0}
#: CLOCK_REALTIME is this far ahead of CLOCK_MONOTONIC: the fakes' clock shows 2001-09-09.
OFFSET = 999_999_000 * 10**9
EXPIRED, TRACKED = (
    chain_counters.COUNTERS.index("deleted_expired"),
    chain_counters.COUNTERS.index("tracked"),
)


def raw(
    kind: str, seq: int, seconds: float = 0, reason: int = 0, v6: bool = False, **flow: t.Any
) -> bytes:
    """An event as the chain writes it, so many seconds after fakes.NOW."""
    jiffies = fakes.NOW + round(seconds * fakes.HZ)
    key, value = fakes.entry(**{"now": jiffies, **flow})
    return chain_layout.EVENT.pack(
        seq,
        jiffies,
        fakes.META["ktime_ns"] + round(seconds * 10**9),
        chain_events.EVENT_KINDS.index(kind),
        reason,
        v6,
        key,
        value,
    )


def parsed(*some: bytes) -> list[events.Event]:
    return [events.parse(one, fakes.HZ, OFFSET) for one in some]


def matched(
    some: t.Iterable[events.Event], kinds: t.Collection[str] = (), **words: t.Any
) -> list[dict[str, t.Any]]:
    return [
        events.record(item)
        for item in events.Matcher(flow_filter.parse_filters(words), kinds).matching(some)
    ]


LIFE = (
    raw("new", 7, ctl=SYN_SENT, left=120, **UNSEEN),
    raw("new", 8, 0.5, proto=17, sport=5353, dport=53, ctl=0, left=30, **UNSEEN),
    raw(
        "update",
        10,
        1,
        ctl=fakes.REAL | fakes.ESTABLISHED,
        left=432000,
        orig=(2, 112),
        reply=(1, 60),
        age=1,
        idle=0,
    ),
    raw(
        "new",
        11,
        2,
        src="2001:db8::1",
        dst="2001:db8::2",
        proto=17,
        ctl=0,
        left=30,
        v6=True,
        **UNSEEN,
    ),
    raw(
        "destroy",
        12,
        31,
        EXPIRED,
        proto=17,
        sport=5353,
        dport=53,
        ctl=0,
        left=0,
        orig=(1, 60),
        reply=(0, 0),
        age=31,
        idle=30,
    ),
)


def test_a_record_is_the_flows_with_what_became_of_it_in_front() -> None:
    first, second, third, fourth, fifth = matched(parsed(*LIFE))
    assert list(first)[:4] == ["event", "seq", "time", "family"] and list(fifth)[:4] == [
        "event",
        "seq",
        "time",
        "reason",
    ]
    assert (first["event"], first["seq"], first["state"], first["timeout"]) == (
        "new",
        7,
        "SYN_SENT",
        120,
    )
    assert [one["time"][17:26] for one in (first, second, third)] == [
        "40.000000"[:9],
        "40.500000"[:9],
        "41.000000"[:9],
    ]
    assert (third["state"], third["assured"], third["orig"]["packets"], third["age"]) == (
        "ESTABLISHED",
        True,
        2,
        1,
    )
    assert (fourth["family"], fourth["orig"]["src"]) == ("ipv6", "2001:db8::1")
    assert (fifth["reason"], fifth["timeout"], fifth["idle"]) == (
        "expired",
        0,
        30,
    ), "it is told although its time is over"


def test_every_reason_of_an_end_is_one_that_the_chain_counts() -> None:
    assert set(chain_events.EVENT_REASONS) <= set(chain_counters.COUNTERS)
    for name, reason in chain_events.EVENT_REASONS.items():
        (one,) = matched(parsed(raw("destroy", 1, reason=chain_counters.COUNTERS.index(name))))
        assert one["reason"] == reason
    with pytest.raises(struct.error):
        events.parse(b"short", 250, 0)


@pytest.mark.parametrize(
    ("kinds", "words", "expected"),
    [
        ((), {"proto": "tcp"}, [7, 10]),
        (("new",), {}, [7, 8, 11]),
        (("destroy", "update"), {}, [10, 12]),
        ((), {"family": "ipv6"}, [11]),
        ((), {"dport": "53", "state": "new"}, [8, 12]),
        ((), {"idle_for": "30"}, [12]),
        ((), {"older_than": "0"}, [10, 12]),
        ((), {"src": "10.0.0.0/8"}, []),
    ],
)
def test_filters_hold_at_the_instant_of_the_event(
    kinds: tuple[str, ...], words: dict[str, str], expected: list[int]
) -> None:
    assert [one["seq"] for one in matched(parsed(*LIFE), kinds, **words)] == expected


def test_lines() -> None:
    found = list(events.Matcher(flow_filter.Filters({})).matching(parsed(*LIFE)))
    there, back = (
        "src=172.20.56.105 dst=172.30.56.105 sport=41234 dport=8080",
        "src=172.30.56.105 dst=172.20.56.105 sport=8080 dport=41234",
    )
    lines = [events.FORMS["conntrack"](item) for item in found]
    assert lines[0] == f"    [NEW] tcp      6 120 SYN_SENT {there} [UNREPLIED] {back}"
    assert lines[2] == f" [UPDATE] tcp      6 432000 ESTABLISHED {there} {back} [ASSURED]"
    assert (
        lines[4].startswith("[DESTROY] udp      17 src=172.20.56.105")
        and "packets=1 bytes=60 [UNREPLIED]" in lines[4]
    )
    people = [events.FORMS["text"](item) for item in found]
    assert people[2].endswith(
        "     10 update  tcp 172.20.56.105:41234 -> 172.30.56.105:8080  ESTABLISHED, assured"
    )
    assert people[4].endswith("NEW, unreplied, expired, 1 packets, 60 bytes, 31 s")


def written(
    path: pathlib.Path, some: t.Iterable[events.Event] | None = None, **words: t.Any
) -> str:
    """Save events as --save does; return what was printed."""
    printed: list[bytes] = []
    with open(path, "wb") as file:
        sink = ct_watch.Sink(
            events.Matcher(flow_filter.parse_filters(words)), "jsonl", printed.append, None, file
        )
        sink.take(parsed(*LIFE) if some is None else some)
    return b"".join(printed).decode()


def test_what_is_saved_is_replayed_through_the_same_filters(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events"
    assert written(path) == path.read_text("utf-8")
    again = list(saved_flows.events(str(path)))
    assert (
        matched(again)
        == matched(parsed(*LIFE))
        == [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    )
    for words in ({"proto": "tcp"}, {"family": "ipv6"}, {"idle_for": "30"}, {"dport": "53"}):
        assert matched(again, **words) == matched(parsed(*LIFE), **words)
    printed: list[bytes] = []
    sink = ct_watch.Sink(events.Matcher(flow_filter.Filters({})), "text", printed.append, 2)
    assert (
        ct_watch.replay(
            again,
            ct_watch.Sink(events.Matcher(flow_filter.Filters({})), "text", printed.append, None),
        )
        == 1
    ), "number 9 is missing"
    sink.take(again)
    assert sink.full and b"".join(printed).count(b"\n") == 7


def test_what_was_there_at_the_end(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events"
    written(path)
    connection, dns = (
        flow_read.read(SavedFlows.load(str(path)), flow_filter.parse_query({})).flows[:1] * 2
    )
    assert (
        connection["proto"],
        connection["state"],
        connection["timeout"],
        connection["age"],
        connection["idle"],
    ) == ("tcp", "ESTABLISHED", 431970, 31, 30)
    assert dns is connection, "one ended, and of the other the time went by"
    written(path, parsed(*LIFE[:4]))
    found = flow_read.read(SavedFlows.load(str(path)), flow_filter.parse_query({})).flows
    assert sorted((one["family"], one["proto"]) for one in found) == [
        ("ipv4", "tcp"),
        ("ipv4", "udp"),
        ("ipv6", "udp"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "no event",
        '{"event": "gone", "seq": 1, "time": "2026-01-01T00:00:00+00:00"}',
        '{"event": "new", "seq": 1}',
    ],
)
def test_what_is_no_event_is_refused_with_its_line(tmp_path: pathlib.Path, line: str) -> None:
    path = tmp_path / "events"
    written(path)
    path.write_text(f"{path.read_text('utf-8')}{line}\n", "utf-8")
    with pytest.raises(
        ConntrackError,
        match=(
            f"input: {path}:6: .* is no event: give a file that ct watch --save or -o jsonl wrote"
        ),
    ):
        list(saved_flows.events(str(path)))


def test_what_can_not_be_read_or_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        ConntrackError, match="can not be read: No such file or directory; give a file"
    ):
        list(saved_flows.events(str(tmp_path / "none")))
    with pytest.raises(
        ConntrackError,
        match="save: '/nowhere/x' is not valid: No such file or directory; give the path",
    ):
        ct_watch.saving("/nowhere/x")
    with pytest.raises(
        ConntrackError, match="event: 'end' is not valid: give some of new, update, destroy"
    ):
        ct_watch.parse_kinds(["NEW", "end"])
