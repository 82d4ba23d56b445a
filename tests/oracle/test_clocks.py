# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clocks of 32 bits go round, which the kernel's own do not: what is over stays over, and what is a
stream stays one.
"""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import Pair, Step
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk
from ansible_collections.ebpf.conntrack.tests.oracle.test_packets import error

each_family = pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
HZ = chain_jiffies.hz()
HALF, WHOLE = 1 << 31, 1 << 32
#: How long ago an entry was over, in jiffies; after a whole round its timeout is taken for what is
#: left of it, see docs/design/differences.md.
LATE = {
    "a second": HZ,
    "just less than half of the clock": HALF - 1,
    "half of the clock": HALF,
    "five seconds more": HALF + 5 * HZ,
    "nearly the whole clock": WHOLE - (500_000 + chain_settings.CLOCK_SLACK) * HZ,
}
WORDS = 0xFFFFFFFF


def began(pair: Pair) -> dict[str, tuple[list[Step], Step]]:
    """Return for some protocols how a flow begins, and what goes on with it."""
    talk = Talk(pair).open().send("a", "PA", 10)
    more = Talk(pair).open().send("a", "PA", 10).send("b", "A").steps[-1]
    return {
        "tcp": (talk.steps, more),
        "udp": ([pair.udp("a"), pair.udp("b")], pair.udp("a")),
        "echo": ([pair.echo("a", 5), pair.echo("b", 5, reply=True)], pair.echo("a", 5)),
    }


def aged(chain: ChainRig, idle: t.Callable[[int], int]) -> None:
    """Let the last packet of each flow have come so many jiffies ago; ``idle`` is told its
    timeout.
    """

    def older(entry: dict[str, int]) -> dict[str, int]:
        timeout = (entry["expires"] - entry["last_seen"]) & WORDS
        seen = chain.tables.clock().jiffies - idle(timeout)
        return {"last_seen": seen & WORDS, "expires": (seen + timeout) & WORDS}

    assert chain.change(older)


@each_family
@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_what_is_over_stays_over(chain: ChainRig, pair: Pair, proto: str, late: str) -> None:
    """It is not shown, and the next packet begins another flow in its place."""
    chain.flush()
    steps, more = began(pair)[proto]
    for step in steps:
        chain.run(step.side, step.frame)
    aged(chain, lambda timeout: timeout + LATE[late])
    assert chain.flows() == {}
    before = dict(zip(chain_counters.COUNTERS, chain.counters()))
    assert chain.run(more.side, more.frame) == "tracked"
    assert [flow.packets for flow in chain.flows().values()] == [(1, 0)]
    after = dict(zip(chain_counters.COUNTERS, chain.counters()))
    assert {name: after[name] - before[name] for name in ("created", "deleted_expired")} == {
        "created": 1,
        "deleted_expired": 1,
    }


@each_family
@pytest.mark.parametrize("late", LATE)
def test_only_the_time_left_is_wrong(chain: ChainRig, pair: Pair, late: str) -> None:
    """The same where the last packet seems to be a late one: no timeout is as long as what seems to
    be left.
    """
    if LATE[late] >= HALF and WHOLE - LATE[late] <= chain_settings.LONGEST_TIMEOUT * HZ:
        late = "a second"  # with so many jiffies a second nearly half of the clock can be a timeout
    chain.flush()
    for step in began(pair)["tcp"][0]:
        chain.run(step.side, step.frame)
    assert (
        chain.change(lambda entry: {"expires": (chain.tables.clock().jiffies - LATE[late]) & WORDS})
        == 1
    )
    assert chain.flows() == {}


@each_family
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_what_is_live_stays_live(chain: ChainRig, pair: Pair, proto: str) -> None:
    """Up to its last seconds, and where another CPU read the clock later than this one."""
    for idle in (
        lambda timeout: timeout - 5 * HZ,
        lambda timeout: 0,
        lambda timeout: -1,
        lambda timeout: -10 * HZ,
    ):
        chain.flush()
        steps, more = began(pair)[proto]
        for step in steps:
            chain.run(step.side, step.frame)
        before = [sum(flow.packets) for flow in chain.flows().values()]
        aged(chain, idle)
        assert chain.run(more.side, more.frame) == "tracked"
        assert [sum(flow.packets) for flow in chain.flows().values()] == [before[0] + 1]


@each_family
def test_an_error_about_a_flow_that_was_over_long_ago(chain: ChainRig, pair: Pair) -> None:
    """It is related to nothing."""
    chain.flush()
    sent = pair.udp("a")
    chain.run("a", sent.frame)
    told = error("b", sent)
    assert chain.run("b", told.frame) == "related"
    aged(chain, lambda timeout: timeout + HALF)
    assert chain.run("b", told.frame) == "invalid_icmp_error"


@each_family
@pytest.mark.parametrize("age", [3 * HZ, HALF - 1, HALF + 1, WHOLE - 1])
def test_a_stream_stays_a_stream(chain: ChainRig, pair: Pair, age: int) -> None:
    """However long ago it became one: UDP both ways, two seconds after it began."""
    chain.flush()
    for side in "ab":
        chain.run(side, pair.udp(side).frame)
    chain.change(lambda entry: {"last_end": (entry["last_seen"] - 1) & WORDS})
    chain.run("a", pair.udp("a").frame)
    assert [(flow.state, flow.timeout > 100) for flow in chain.flows().values()] == [
        ("ESTABLISHED", True)
    ]
    chain.change(lambda entry: {"last_end": (entry["last_seen"] - age) & WORDS})
    chain.run("b", pair.udp("b").frame)
    assert [(flow.state, flow.timeout > 100) for flow in chain.flows().values()] == [
        ("ESTABLISHED", True)
    ]


@each_family
@pytest.mark.parametrize("quarters", [1, 2, 3, 5])
def test_the_first_answer_may_take_its_time(chain: ChainRig, pair: Pair, quarters: int) -> None:
    """What one side sent for weeks is a stream when an answer was seen, as in the kernel: the clock
    goes round while it goes on.
    """
    chain.flush()
    chain.run("a", pair.udp("a").frame)
    for dummy in range(quarters):
        chain.change(lambda entry: {"last_end": (entry["last_end"] - (1 << 30)) & WORDS})
        chain.run("a", pair.udp("a").frame)
        assert [flow.state for flow in chain.flows().values()] == ["NEW"]
    for side in "ba":
        chain.run(side, pair.udp(side).frame)
    assert [(flow.state, flow.assured) for flow in chain.flows().values()] == [
        ("ESTABLISHED", True)
    ]
