# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of the trackers that other tests pass by: what ICMP errors quote, trailers, counters at
their end, limits that meet.
"""

from __future__ import annotations

import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import Play, Tune
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4, Pair, Step
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk
from ansible_collections.ebpf.conntrack.tests.oracle.test_fragments import pieces, segment
from ansible_collections.ebpf.conntrack.tests.oracle.test_packets import error

each_family = pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
LAST = compare.Rules(each=False)


# ---------------------------------------------------------------- what an ICMP error quotes
@each_family
@pytest.mark.parametrize(
    ("offset", "more", "found"),
    [(0, True, True), (0, False, True), (8, True, False), (8, False, False), (65528, False, False)],
)
def test_error_that_quotes_a_fragment(
    play: Play, pair: Pair, offset: int, more: bool, found: bool
) -> None:
    """The first one has the ports; in a later one these bytes are something else, whatever flow
    they would name.
    """
    datagram = frames.udp(*pair.ends("a"), b"12345678")
    parts: dict[int, dict[str, t.Any]] = {
        4: {"ident": 9, "offset": offset, "more": more},
        16: {"headers": [frames.ipv6_fragment(9, offset, more)]},
    }
    quoted = Step(
        "a",
        frames.frame(frames.ip(*pair.ends("a")[:2], frames.UDP, datagram, **parts[len(pair.a)])),
    )
    told = error("b", quoted, *((3, 3) if pair is V4 else (1, 4)), keep=16)
    assert play([pair.udp("a"), told]).outcome == ("related" if found else "invalid")


@each_family
@pytest.mark.parametrize("keep", range(9))
def test_quote_that_goes_on_in_the_padding(play: Play, pair: Pair, keep: int) -> None:
    """What follows the IP packet in its frame is no part of the quote, though it be its very next
    bytes.
    """
    known = pair.udp("a")
    told = error("b", known, *((3, 3) if pair is V4 else (1, 4)), keep=keep)
    header = len(known.frame) - 14 - 18
    play(
        [
            known,
            Step(
                "b",
                told.frame + known.frame[14 + header + keep :],
                f"keeps {keep}, the rest is padding",
            ),
        ]
    )


# ---------------------------------------------------------------- what follows a packet in its fram
@each_family
@pytest.mark.parametrize("trailer", [b"\1", b"\0" * 6, bytes(range(46)), b"\xff" * 200])
def test_trailers(play: Play, pair: Pair, trailer: bytes) -> None:
    """It counts for no checksum, no length and no option."""
    talk = (
        Talk(pair)
        .send("a", "S", options=frames.mss() + frames.SACK_PERMITTED)
        .send("b", "SA", options=frames.NOP + frames.wscale(7))
        .send("a", "A")
    )
    talk.send("a", "PA", 33).send("b", "FA")
    init = frames.sctp(
        *pair.ends("a")[2:], 0, frames.chunk(1, struct.pack(">IIHHI", 7, 1000, 1, 1, 1))
    )
    others = [
        (frames.SCTP, init),
        (frames.GRE, bytes.fromhex("3001880b0005000700000001")),
        (99, b"x"),
    ]
    steps = [
        *talk.steps,
        pair.udp("a", 3),
        pair.udp("b", 0),
        pair.echo("a", 5),
        pair.echo("b", 5, reply=True),
    ]
    steps += [
        Step("a", frames.frame(frames.ip(*pair.ends("a")[:2], proto, payload)))
        for proto, payload in others
    ]
    steps.append(error("b", steps[0], *((3, 3) if pair is V4 else (1, 4))))
    play([Step(step.side, step.frame + trailer, step.label) for step in steps])


# ---------------------------------------------------------------- TCP
@pytest.mark.parametrize("times", [3, 4, 256, 260])
def test_retransmissions_without_end(play: Play, times: int) -> None:
    """Their counter has eight bits; the timeout is that of the kernel whatever it holds."""
    talk = Talk(V4).open().send("a", "PA", 100).send("b", "A").send("b", "A", 100)
    for dummy in range(times):
        talk.again()
    play(talk.steps, LAST)


@pytest.mark.parametrize("established", [119, 125, 200])
@pytest.mark.parametrize("unacknowledged", [60, 122, 300])
@pytest.mark.parametrize("flags", ["FA", "RA"])
def test_end_out_of_the_window_both_ways(
    play: Play, tune: Tune, flags: str, unacknowledged: int, established: int
) -> None:
    """It shortens the rest to tcp_unacknowledged, where that is less and two minutes are left."""
    tune(timeouts={"tcp_established": established, "tcp_unacknowledged": unacknowledged})
    talk = Talk(V4).open().send("a", "PA", 100).send("b", "A")
    play(
        talk.send("a", flags, dseq=100_000)
        .send("b", flags, dseq=100_000)
        .send("a", flags, dseq=100_000)
        .steps
    )


FLOOR = 66_000


@pytest.mark.parametrize("off", [-1, 0, 1])
@pytest.mark.parametrize("win", [1, 65_535])
def test_acknowledgement_at_the_floor(play: Play, win: int, off: int) -> None:
    """One may be 66,000 bytes old, or a window where that is larger; what is older is ignored."""
    talk = Talk(V4).open(win=win)
    for dummy in range(70):
        talk.send("b", "A", 1000).send("a", "A")
    play(talk.send("a", "A", dack=-FLOOR + off).steps, LAST)


@pytest.mark.parametrize("off", [-1, 0, 1])
@pytest.mark.parametrize("scale", [1, 4])
def test_acknowledgement_at_the_floor_of_a_large_window(play: Play, scale: int, off: int) -> None:
    """The sender's own largest window is the floor where it is above 66,000."""
    talk = (
        Talk(V4, win=65_535)
        .send("a", "S", options=frames.NOP + frames.wscale(scale))
        .send("b", "SA", options=frames.NOP + frames.wscale(scale))
        .send("a", "A")
    )
    window = 65_535 << scale
    for dummy in range(window // 60_000 + 2):
        talk.send("b", "A", 1400, lost=True)
        talk.next["b"] += 58_600
        talk.send("b", "A", 1).send("a", "A")
    play(talk.send("a", "A", dack=-window + off).steps, LAST)


# ---------------------------------------------------------------- what no packet brings about by it
@pytest.fixture(scope="module")
def broken() -> t.Iterator[ChainRig]:
    """A chain whose tables of assured flows have no room, and which does not compare the headers of
    fragments with their datagram.
    """
    with ChainRig(
        checksum="strict",
        without="q->claimed > q->total",
        always="table_create(key, &copy, v6, true)",
    ) as chain:
        yield chain


@each_family
def test_a_promotion_that_is_refused(broken: ChainRig, pair: Pair) -> None:
    """The flow stays where it was, not locked, and its next packet tries again."""
    before = broken.counters()
    broken.flush()
    talk = Talk(pair).open().send("a", "PA", 10).send("b", "A")
    for step in talk.steps:
        assert broken.run(step.side, step.frame) == "tracked"
    assert [(flow.packets, flow.state, flow.assured) for flow in broken.flows().values()] == [
        ((3, 2), "ESTABLISHED", True)
    ]
    assert raised(
        broken, before, "promoted", "promote_failed", "created", "untracked_contended"
    ) == [0, 3, 1, 0]
    assert all(not entry[12] & chain_layout.CTL_LOCK for entry in broken.entries_now())


@each_family
def test_what_is_not_tracked_leaves_no_entry(broken: ChainRig, pair: Pair) -> None:
    """Behind the check of the data offset stands another one: an entry that was made for a packet
    that the tracker then refuses goes with it.
    """
    before = broken.counters()
    broken.flush()
    for step in pieces(pair, frames.TCP, segment(pair, "a", 15, 40, "S", 1), (24,)):
        detail = broken.run("a", step.frame)
    assert detail == "invalid_tcp_window"
    assert broken.entries_now() == []
    assert raised(broken, before, "created", "deleted_untracked") == [1, 1]
    assert broken.run("a", pair.tcp("a", "S", 1).frame) == "tracked"


def raised(chain: ChainRig, before: t.Sequence[int], *names: str) -> list[int]:
    """Return by how much some counters are more than they were."""
    return [
        chain.counters()[chain_counters.COUNTERS.index(name)]
        - before[chain_counters.COUNTERS.index(name)]
        for name in names
    ]
