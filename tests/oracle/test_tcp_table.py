# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every cell of the TCP transition table, and both trackers in it."""

from __future__ import annotations

import pytest
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import Play
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import OTHER, Talk

STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
SHORT = {
    "SS": "SYN_SENT",
    "SR": "SYN_RECV",
    "ES": "ESTABLISHED",
    "FW": "FIN_WAIT",
    "CW": "CLOSE_WAIT",
    "LA": "LAST_ACK",
    "TW": "TIME_WAIT",
    "CL": "CLOSE",
}
SHORT.update(S2="SYN_SENT2")

# The table, as far as sequence numbers are right: the state after the segment. iv: invalid, ig: let
# pass and not counted, --: the entry goes.
# Two cells say more than the transition: a repeated SYN, or one that crosses it, does not count
# before there was an answer (SS, S2 in column SS).
# In column CL the side that sent the reset sends the segment, else a SYN would be ignored.
TABLE = """
orig  S   SS ig:SS ig    ig    ig    ig    ig    SS    SS    S2
orig  SA  iv iv    SR    iv    iv    iv    iv    iv    iv    SR
orig  FA  iv iv    FW    FW    LA    LA    LA    TW    CL    iv
orig  A   ES iv    ES    ES    CW    CW    TW    TW    CL    iv
orig  R   iv --    CL    CL    CL    CL    CL    CL    CL    CL
orig  .   iv iv    iv    iv    iv    iv    iv    iv    iv    iv
reply S   SS ig:S2 iv    iv    iv    iv    iv    SS    iv    S2
reply SA  iv SR    ig    ig    ig    ig    ig    ig    ig    SR
reply FA  iv iv    FW    FW    LA    LA    LA    TW    CL    iv
reply A   ES ig    SR    ES    CW    CW    TW    TW    CL    ig
reply R   iv --    CL    CL    CL    CL    CL    CL    CL    CL
reply .   iv iv    iv    iv    iv    iv    iv    iv    iv    iv
"""
CELLS = [
    (direction, flags.strip("."), state, cell)
    for direction, flags, *cells in map(str.split, TABLE.strip().splitlines())
    for state, cell in zip(STATES, cells)
]


def expected(state: str, cell: str) -> tuple[str, list[str]]:
    """Return the outcome and the states in the table that a cell stands for."""
    mark, dummy, after = cell.partition(":")
    if mark == "--":
        return "tracked", []
    outcome = {"iv": "invalid", "ig": "ignored"}.get(mark, "tracked")
    state = SHORT[after or mark] if after or outcome == "tracked" else state
    return outcome, [] if state == "NONE" else [state]


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
@pytest.mark.parametrize("opener", "ab")
@pytest.mark.parametrize(
    ("direction", "flags", "state", "cell"),
    CELLS,
    ids=["-".join(map(str, cell[:3])) for cell in CELLS],
)
def test_cell(
    play: Play, pair: frames.Pair, opener: str, direction: str, flags: str, state: str, cell: str
) -> None:
    """One segment in one state, whoever opened and closed the connection."""
    side = opener if direction == "orig" else OTHER[opener]
    for closer in {side} if state == "CLOSE" else "ab":
        kernel = play(Talk(pair).until(state, opener, closer).send(side, flags).steps)
        assert (kernel.outcome, [flow.state for flow in kernel.flows.values()]) == expected(
            state, cell
        )
