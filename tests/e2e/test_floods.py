# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Established flows survive any flood of new ones, and what was pushed out is told exactly."""

from __future__ import annotations

import collections
import collections.abc as c
import dataclasses
import os
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.tests.e2e.support.flood import Lab
from ansible_collections.ebpf.conntrack.tests.oracle.rig import chain_rig, frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TABLE_SIZE = 1 << 16
#: How many flows of each flood begin; several times what the tables hold.
FLOODED = {"syn4": 1_000_000, "udp4": 1_000_000, "syn6": 250_000}
#: Where floods come from, as a filter.
FLOODING = {"src": ["10.0.0.0/8", "2001:db8:f100:d::/64"]}
#: Seconds after which UDP with traffic both ways is a stream.
STREAM_SECONDS = 2.2


@pytest.fixture(scope="module", params=[False, True], ids=["chain", "fused"])
def lab_of_all(request: pytest.FixtureRequest) -> c.Iterator[Lab]:
    """The chain in one of its forms, at an interface."""
    with Lab(fused=request.param, checksum="strict", table_size=TABLE_SIZE) as made:
        yield made


@pytest.fixture
def lab(lab_of_all: Lab) -> c.Iterator[Lab]:
    """The lab with empty tables and the settings that are usual."""
    lab_of_all.flush()
    yield lab_of_all
    lab_of_all.rig.settings()


def pairs(family: str, number: int) -> list[frames.Pair]:
    """Return two hosts with as many pairs of ports."""
    return [dataclasses.replace(frames.PAIRS[family], aport=10_000 + at) for at in range(number)]


class Talks:
    """Conversations, what they sent, and so what their flows have to look like."""

    def __init__(self, lab: Lab, tcp4: int = 0, tcp6: int = 0, udp4: int = 0) -> None:
        """Make so many established TCP connections and UDP streams."""
        self._lab = lab
        self._steps: dict[tuple[str, str, int], list[frames.Step]] = collections.defaultdict(list)
        self._tcp = {("ipv4", "tcp", pair.aport): Talk(pair) for pair in pairs("ipv4", tcp4)}
        self._tcp.update({("ipv6", "tcp", pair.aport): Talk(pair) for pair in pairs("ipv6", tcp6)})
        self._udp = {("ipv4", "udp", pair.aport): pair for pair in pairs("ipv4", udp4)}
        for key, talk in self._tcp.items():
            self._send(key, talk.open().steps)
        for key, pair in self._udp.items():
            self._send(key, [pair.udp("a"), pair.udp("b", 33)])
        if udp4:
            time.sleep(STREAM_SECONDS)
            for key, pair in self._udp.items():
                self._send(key, [pair.udp("a", 44)])

    def _send(self, key: tuple[str, str, int], steps: list[frames.Step]) -> None:
        self._lab.send(steps)
        self._steps[key] += steps

    def go_on(self) -> None:
        """Let each send one more packet each way."""
        for key, talk in self._tcp.items():
            before = len(talk.steps)
            self._send(key, talk.send("a", "PA", 100).send("b", "PA", 1000).steps[before:])
        for key, pair in self._udp.items():
            self._send(key, [pair.udp("a", 55), pair.udp("b", 66)])

    def there(self) -> int:
        """Return how many of their flows are established, assured, and have counted exactly what
        was sent.
        """
        return sum(found == self._flow(key) for key, found in self.found().items())

    def found(self) -> dict[tuple[str, str, int], tuple[t.Any, ...]]:
        """Return their flows: state, whether assured, packets and bytes of both sides."""
        found: dict[tuple[str, str, int], tuple[t.Any, ...]] = {}
        for one in self._lab.read(
            src=[frames.text(pair.a) for pair in frames.PAIRS.values()]
        ).flows:
            key = (one["family"], one["proto"], one["orig"]["sport"])
            assert key not in found, "a flow is listed once"
            sides = (one[side][what] for side in ("orig", "reply") for what in ("packets", "bytes"))
            found[key] = (one["state"], one["assured"], *sides)
        return found

    def _flow(self, key: tuple[str, str, int]) -> tuple[t.Any, ...]:
        sizes = [
            [len(step.frame) - 14 for step in self._steps[key] if step.side == side]
            for side in "ab"
        ]
        return ("ESTABLISHED", True, len(sizes[0]), sum(sizes[0]), len(sizes[1]), sum(sizes[1]))

    def __len__(self) -> int:
        return len(self._tcp) + len(self._udp)


def raised(after: t.Mapping[str, t.Any], before: t.Mapping[str, t.Any]) -> dict[str, int]:
    """Return which counters of a summary went up, and by how much; those in groups have dotted
    names.
    """
    found = {}
    for name, value in after.items():
        if isinstance(value, dict):
            found.update(
                {f"{name}.{inner}": number for inner, number in raised(value, before[name]).items()}
            )
        elif value != before[name]:
            found[name] = value - before[name]
    return found


# ---------------------------------------------------------------- floods
def test_established_flows_survive_a_flood(
    lab: Lab, figure: c.Callable[[str, object], None], request: pytest.FixtureRequest
) -> None:
    """With one table a family, as it was before, 0 of the 220 survive."""
    talks = Talks(lab, tcp4=100, tcp6=20, udp4=100)
    assert talks.there() == len(talks) == 220
    before = lab.counters()
    for name, number in FLOODED.items():
        lab.flood(name, number)
    survivors = talks.there()
    figure(
        f"established flows that survive a flood of {sum(FLOODED.values())} new ones,"
        f" {request.node.callspec.id}",
        f"{survivors} of {len(talks)}",
    )
    assert survivors == len(talks), talks.found()

    reading = lab.read(0, **FLOODING)
    assert reading.summary is not None
    up = raised(reading.summary["counters"], before)
    began = sum(FLOODED.values())
    assert up == {
        "created": began,
        "tracked": began,
        "evicted": began - reading.count,
    }, "what is not there any more was evicted, and nothing else"
    assert reading.summary["pressure"]["assured"]["entries"] == len(talks)
    half_open = reading.summary["pressure"]["half_open"]
    assert (
        half_open["entries"] == reading.count
        and half_open["capacity"] == 2 * TABLE_SIZE
        and half_open["percent"] > 98
    )

    talks.go_on()
    assert talks.there() == len(talks), "each goes on in its window"
    assert raised(lab.counters(), before)["tracked"] == began + 2 * len(talks)


def test_only_assured_flows_push_out_assured_flows() -> None:
    """What was evicted is told exactly for either class, by what was opened and what is there."""
    opened, half_open = 600, 900
    with chain_rig.ChainRig(table_size=512) as rig:
        for number, pair in enumerate(pairs("ipv4", opened + half_open)):
            for step in Talk(pair).open().steps[: 3 if number < opened else 1]:
                bpf.prog_test_run(rig.entries[step.side], step.frame)
        left = collections.Counter(record["assured"] for record in rig.records())
        summary = flow_read.read(rig.tables, flow_filter.parse_query({})).summary
        assert summary is not None
        counters = summary["counters"]
        assert (counters["created"], counters["promoted"], counters["promote_failed"]) == (
            opened + half_open,
            opened,
            0,
        )
        assert 0 < left[True] <= 512 and 0 < left[False] <= 512
        assert counters["evicted_assured"] == opened - left[True]
        assert counters["evicted"] - counters["evicted_assured"] == half_open - left[False]
        assert {name: one["entries"] for name, one in summary["pressure"].items()} == {
            "assured": left[True],
            "half_open": left[False],
        }
        assert (
            summary["tables"]["ctt"]["entries"] == left[True]
            and summary["tables"]["ctt_new"]["entries"] == left[False]
        )


# ---------------------------------------------------------------- in the place of an assured flow
def test_what_begins_anew_in_the_place_of_an_assured_flow_stays_there(lab: Lab) -> None:
    """Nothing is evicted, and nobody has more of that table than before."""
    before = lab.counters()
    talk = Talk().until("TIME_WAIT")
    lab.send(talk.steps)
    assert tables_of(lab) == {"ctt": 1}
    lab.send([talk.pair.tcp("a", "S", 7_000_000, 0)])
    (record,) = lab.read().flows
    assert (record["state"], record["assured"], tables_of(lab)) == ("SYN_SENT", False, {"ctt": 1})
    lab.send([talk.pair.tcp("b", "RA", 0, 7_000_001)])
    assert (lab.read().flows, tables_of(lab)) == ([], {})
    up = raised(lab.counters(), before)
    assert up == {
        "created": 1,
        "promoted": 1,
        "reopened": 1,
        "deleted.reset": 1,
        "assured_deleted": 1,
        "tracked": len(talk.steps) + 2,
    }


def test_an_assured_flow_whose_time_is_over(lab: Lab) -> None:
    """The next packet begins a flow in its place, or, where it can begin none, takes the entry
    away.
    """
    before = lab.counters()
    talk, other = (Talk(pair).open() for pair in pairs("ipv4", 2))
    lab.rig.settings(timeouts={"tcp_established": 1, "tcp_unacknowledged": 1})
    lab.send([*talk.steps, *other.steps])
    time.sleep(1.1)
    lab.rig.settings()
    lab.send(talk.send("a", "PA", 10).steps[-1:])  # picked up in the middle
    lab.send(other.send("a", "FA").steps[-1:])
    (record,) = lab.read().flows
    assert (record["state"], record["assured"], record["orig"]["packets"], tables_of(lab)) == (
        "ESTABLISHED",
        False,
        1,
        {"ctt": 1},
    )
    up = raised(lab.counters(), before)
    assert up == {
        "created": 3,
        "promoted": 2,
        "deleted.expired": 2,
        "assured_deleted": 1,
        "tracked": 7,
        "invalid.tcp_new": 1,
    }


def test_flushing_deletes_from_both_tables(lab: Lab) -> None:
    before = lab.counters()
    for at, pair in enumerate(pairs("ipv4", 20)):
        lab.send(Talk(pair).open().steps[: 3 if at < 7 else 1])
    assert tables_of(lab) == {"ctt": 7, "ctt_new": 13}
    assert lab.flush() == 20
    assert tables_of(lab) == {}
    assert raised(lab.counters(), before) == {
        "created": 20,
        "promoted": 7,
        "deleted.flushed": 20,
        "assured_deleted": 7,
        "tracked": 34,
    }


def tables_of(lab: Lab) -> dict[str, int]:
    """Return how many entries each table has, empty ones left out."""
    found = {
        opened.table.name: sum(count for count, dummy, dummy in lab.rig.tables.batches(opened))
        for opened in lab.rig.tables.tables
    }
    return {name: number for name, number in found.items() if number}


# ---------------------------------------------------------------- the bound on new flows
def test_no_more_flows_begin_in_a_second_than_are_allowed(lab: Lab) -> None:
    """Who was there first goes on."""
    allowed, sent = 2000, 300_000
    talks = Talks(lab, tcp4=20, tcp6=5)
    before = lab.counters()
    lab.rig.settings(knobs={"new_flows_per_second": allowed})
    start = time.monotonic()
    lab.flood("syn4", sent)
    lab.flood("syn6", sent)
    talks.go_on()
    seconds = time.monotonic() - start
    up = raised(lab.counters(), before)
    assert up["created"] + up["untracked.rate"] == 2 * sent
    assert allowed <= up["created"] <= allowed * (1 + seconds) + 2 * len(os.sched_getaffinity(0))
    assert up["tracked"] == up["created"] + 2 * len(talks) and talks.there() == len(talks)
    assert set(up) == {"created", "tracked", "untracked.rate"}, "nothing was evicted"

    lab.rig.settings()
    before = lab.counters()
    lab.flood("udp4", 10_000)
    assert raised(lab.counters(), before) == {
        "created": 10_000,
        "tracked": 10_000,
    }, "without a bound each begins a flow"


def test_the_bound_holds_again_after_a_quiet_time(lab: Lab) -> None:
    """What was not used in a second is not saved up."""
    allowed = 1000
    lab.rig.settings(knobs={"new_flows_per_second": allowed})
    for dummy in range(2):
        time.sleep(1.2)
        before, start = lab.counters(), time.monotonic()
        lab.flood("udp4", 3 * allowed)
        assert (
            allowed
            <= raised(lab.counters(), before)["created"]
            <= allowed * (1.1 + time.monotonic() - start)
        )


# ---------------------------------------------------------------- reading meanwhile
@pytest.mark.parametrize("sort", [None, "sport"])
def test_flows_that_become_assured_while_they_are_read_are_listed_once(
    lab: Lab, sort: str | None
) -> None:
    flows = 6000
    talks = [Talk(pair).open() for pair in pairs("ipv4", flows)]
    for talk in talks:
        lab.send(talk.steps[:2])
    wanted = {10_000 + at for at in range(flows)}
    before = lab.counters()
    moved = threading.Event()

    def promote() -> None:
        for talk in talks:
            lab.send(talk.steps[2:])
        moved.set()

    thread = threading.Thread(target=promote)
    thread.start()
    readings, between = 0, 0
    while not moved.is_set() or not readings:
        reading = lab.read(sort=sort)
        ports = [record["orig"]["sport"] for record in reading.flows]
        assert (len(ports), set(ports), reading.count) == (flows, wanted, flows)
        readings += 1
        between += 0 < sum(record["assured"] for record in reading.flows) < flows
    thread.join()
    assert between > 0, "flows moved while they were read"
    assert raised(lab.counters(), before)["promoted"] == flows
